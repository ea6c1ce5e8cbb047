//! The lab: stock guests inside an emulated machine with nested virtualization.

mod content;
mod direct;
mod images;
pub mod job;
mod kernel;
mod outer;
mod place;
pub mod scenarios;
pub mod vmm;
pub mod vmx;

use std::fmt::Write as _;
use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use job::{Job, Outcome};
use outer::{End, Report, Shape};
use place::Place;
use scenarios::Scenario;
use vmm::Vmm;

use crate::paths;
use crate::times::Times;

/// Options of `cargo xtask lab`.
#[derive(clap::Args)]
pub struct Options {
    /// Scenarios to run, by name or beginning of a name; all of them when none is given
    scenarios: Vec<String>,
    /// The VMM to run them with
    #[arg(long, value_enum, default_value = "zvmm")]
    vmm: Vmm,
    /// List the scenarios and end
    #[arg(long)]
    list: bool,
    /// Run in the emulated machine with VMX and EPT instead: its own tests, and scenarios that are named
    #[arg(long)]
    vmx: bool,
}

/// Runs `cargo xtask lab`.
pub fn run(options: Options) -> anyhow::Result<()> {
    if options.vmx {
        return vmx::run(&options.scenarios, options.vmm, options.list);
    }
    let all = scenarios::all();
    if options.list {
        for scenario in &all {
            println!("{:<24} {}", scenario.name, scenario.about);
        }
        return Ok(());
    }
    let chosen = choose(all, &options.scenarios)?;
    let failures = run_scenarios(&chosen, options.vmm)?;
    anyhow::ensure!(
        failures.is_empty(),
        "{} of {} scenarios failed: {}",
        failures.len(),
        chosen.len(),
        failures.join(", ")
    );
    Ok(())
}

fn choose(all: Vec<Scenario>, names: &[String]) -> anyhow::Result<Vec<Scenario>> {
    if names.is_empty() {
        return Ok(all);
    }
    for name in names {
        anyhow::ensure!(
            all.iter().any(|s| s.name.starts_with(name.as_str())),
            "no scenario `{name}`; `cargo xtask lab --list` shows them"
        );
    }
    Ok(all.into_iter().filter(|s| names.iter().any(|n| s.name.starts_with(n.as_str()))).collect())
}

/// Runs scenarios, as few outer boots as possible, prints a line for each, and returns the names of those that failed.
///
/// # Errors
/// When something cannot be built or started at all.
pub fn run_scenarios(chosen: &[Scenario], vmm: Vmm) -> anyhow::Result<Vec<String>> {
    let lab = Lab::prepare(vmm)?;
    println!("lab: guests run {}", lab.place.describe());
    run_group(&lab, vmm, chosen.iter().collect())
}

/// CPUs of the outer machine. With two, each a thread of the emulator, it hangs for good under guests of many vCPUs, both
/// CPUs with interrupts off; with one it does not, and SMP guests are no slower.
pub const OUTER_CPUS: u32 = 1;

/// How often an outer machine that got stuck is started again.
const RETRIES: u32 = 2;

/// Runs scenarios that share an outer machine. When that machine gets stuck, those that were not finished run in another.
fn run_group(lab: &Lab, vmm: Vmm, mut group: Vec<&Scenario>) -> anyhow::Result<Vec<String>> {
    let times = Times::read()?;
    let mut failures = Vec::new();
    for attempt in 0..=RETRIES {
        println!("lab: {} scenarios with {}", group.len(), vmm.name());
        let job = Job { runs: group.iter().map(|s| s.run(vmm)).collect() };
        let memory_mib = group.iter().map(|s| s.outer_memory_mib).max().unwrap_or_default();
        let report = lab.run(&vmm.name(), (OUTER_CPUS, memory_mib), &job, false)?;
        let mut left = Vec::new();
        for scenario in group {
            let verdict = match report.outcomes.iter().find(|o| o.name == scenario.name) {
                None if report.end == End::Stuck && attempt < RETRIES => {
                    left.push(scenario);
                    continue;
                }
                None => Err(anyhow::anyhow!("the outer machine ended before it ({:?})", report.end)),
                Some(outcome) => {
                    keep_log(vmm, outcome)?;
                    judge(scenario, outcome, &times)
                }
            };
            match verdict {
                Ok(wall_ms) => println!("ok      {:<24} {:.1} s", scenario.name, wall_ms as f64 / 1e3),
                Err(error) => {
                    println!("FAILED  {:<24} {error:#}", scenario.name);
                    failures.push(scenario.name.clone());
                }
            }
        }
        println!(
            "lab: {:?} after {:.0} s; console log: {}",
            report.end,
            report.wall.as_secs_f64(),
            report.log.display()
        );
        if left.is_empty() {
            break;
        }
        // Told apart by the runner's silence: the emulated machine itself stands still, its timers included.
        println!("lab: the outer machine got stuck in `{}`: once more from there", left[0].name);
        fs::rename(&report.log, report.log.with_extension(format!("stuck{attempt}.log")))?;
        group = left;
    }
    Ok(failures)
}

/// A lab that is ready to run jobs.
pub struct Lab {
    content: content::Content,
    runner: PathBuf,
    zvmm: Option<PathBuf>,
    /// Where its guests run.
    pub place: Place,
}

impl Lab {
    /// Fetches and builds what is missing. `ZVMM_BINARY` names a static zvmm to use instead of building one.
    ///
    /// # Errors
    /// When a package cannot be had or a program does not build.
    pub fn prepare(vmm: Vmm) -> anyhow::Result<Self> {
        let peer = outer::build_static("xtask", "lab-peer")?;
        let content = content::prepare(&peer)?;
        let runner = outer::build_static("xtask", "lab-runner")?;
        let zvmm = match std::env::var_os("ZVMM_BINARY") {
            _ if !vmm.is_zvmm() => None,
            Some(path) => Some(PathBuf::from(path)),
            None => Some(outer::build_static("zvmm", "zvmm")?),
        };
        Ok(Self { content, runner, zvmm, place: Place::find() })
    }

    /// Runs a job in an outer machine of so many CPUs and MiB; a run that fails is in the report, not an error.
    ///
    /// # Errors
    /// When the place cannot be set up.
    pub fn run(&self, name: &str, (cpus, memory_mib): (u32, u64), job: &Job, show: bool) -> anyhow::Result<Report> {
        let limit = job.runs.iter().map(|run| run.limit_s).sum::<u64>() + 60;
        let shape = Shape { name: name.to_owned(), cpus, memory_mib, limit: Duration::from_secs(limit), show };
        let run = match self.place {
            Place::Direct => direct::run,
            Place::Nested(_) => outer::boot,
        };
        run(&shape, &self.content, job, &self.runner, self.zvmm.as_deref())
    }
}

/// Keeps what a guest said as `target/lab/logs/<vmm>/<scenario>.log`.
fn keep_log(vmm: Vmm, outcome: &Outcome) -> anyhow::Result<()> {
    let folder = paths::lab().join("logs").join(vmm.name());
    fs::create_dir_all(&folder)?;
    let mut text = String::new();
    for (millis, line) in &outcome.lines {
        writeln!(text, "{millis:>7} {line}")?;
    }
    for (command, output) in &outcome.outputs {
        writeln!(text, "-- {command}\n{}", output.trim_end())?;
    }
    writeln!(text, "-- stderr\n{}", outcome.stderr.trim_end())?;
    writeln!(text, "-- end: {:?}, failure: {:?}", outcome.end, outcome.failure)?;
    for (name, sample) in &outcome.samples {
        writeln!(text, "-- sample {name}: {sample:?}")?;
    }
    fs::write(folder.join(format!("{}.log", outcome.name)), text)?;
    Ok(())
}

fn judge(scenario: &Scenario, outcome: &Outcome, times: &Times) -> anyhow::Result<u64> {
    if let Some(failure) = &outcome.failure {
        anyhow::bail!(
            "{failure}{}{}",
            if outcome.stderr.is_empty() { "" } else { "; stderr: " },
            outcome.stderr.trim()
        );
    }
    (scenario.check)(outcome)?;
    if let Some(why) = times.too_long(&format!("lab/{}", scenario.name), Duration::from_millis(outcome.wall_ms)) {
        anyhow::bail!("{why}");
    }
    Ok(outcome.wall_ms)
}
