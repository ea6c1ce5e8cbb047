//! The lab: stock guests inside an emulated machine with nested virtualization.

pub mod attacks;
mod content;
mod control;
pub mod crash;
mod direct;
mod images;
pub mod job;
pub mod kernel;
pub mod kvm_tests;
pub mod matrix;
pub mod outer;
pub mod place;
mod power;
pub mod scenarios;
pub mod vmm;
pub mod vmx;
mod warnings;
mod zone_disk;

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use control::Controls;
use job::{Job, Outcome, Run};
use kernel::Which;
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
    #[command(flatten)]
    vmm: Vmm,
    /// List the scenarios and end
    #[arg(long)]
    list: bool,
    /// Seconds of verified load on a disk, in each scenario that has it
    #[arg(long, default_value_t = scenarios::LOAD_S)]
    load_seconds: u64,
    /// Let the outer machine lose power while guests write, instead, so many times
    #[arg(long, value_name = "ROUNDS", num_args = 0..=1, default_missing_value = "20")]
    crash: Option<u32>,
    /// Run in the emulated machine with VMX and EPT instead: its own tests, and scenarios that are named
    #[arg(long)]
    vmx: bool,
}

/// Runs `cargo xtask lab`.
pub fn run(options: Options) -> anyhow::Result<()> {
    options.vmm.check()?;
    if let Some(rounds) = options.crash {
        return crash::run(rounds);
    }
    if options.vmx {
        return vmx::run(&options.scenarios, options.vmm, options.list);
    }
    let long = scenarios::long(options.load_seconds).into_iter().chain(scenarios::networks());
    let all: Vec<Scenario> = scenarios::all().into_iter().chain(long).collect();
    if options.list {
        for scenario in &all {
            println!("{:<24} {}", scenario.name, scenario.about);
        }
        return Ok(());
    }
    let chosen = choose(all, &options.scenarios)?;
    run_cases(&options.vmm.name(), &matrix::everything(&chosen, options.vmm))
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

/// A scenario with the VMM that runs it.
#[derive(Clone, Copy)]
pub struct Case<'a> {
    /// What is done.
    pub scenario: &'a Scenario,
    /// With whom.
    pub vmm: Vmm,
}

impl Case<'_> {
    /// Its name: the VMM's and the scenario's.
    #[must_use]
    pub fn name(&self) -> String {
        format!("{}/{}", self.vmm.name(), self.scenario.name)
    }

    fn run(&self) -> Run {
        Run { name: self.name(), ..self.scenario.run(self.vmm) }
    }
}

/// CPUs of the outer machine. With two, each a thread of the emulator, it hangs for good under guests of many vCPUs, both
/// CPUs with interrupts off; with one it does not, and SMP guests are no slower.
pub const OUTER_CPUS: u32 = 1;

/// How often an outer machine that got stuck is started again.
const RETRIES: u32 = 2;

/// Runs scenarios in as few outer boots as there are cores to share, and prints a line for each; `name` is that of the
/// console logs. When an outer machine gets stuck, those that were not finished run in another.
///
/// # Errors
/// When something cannot be built or started at all, or with the names of those that failed.
pub fn run_cases(name: &str, cases: &[Case]) -> anyhow::Result<()> {
    let mut lab = Lab::prepare(&cases.iter().map(|case| case.vmm).collect::<Vec<_>>())?;
    lab.add_what_guests_need(cases.iter().map(|case| case.scenario.machine(case.vmm)))?;
    println!("lab: guests run {}", lab.place.describe());
    let guests = cases.iter().map(|case| (case.vmm, case.scenario.machine(case.vmm)));
    let controls = Controls::of(&lab.identity()?, guests, |job| lab.run("control", (OUTER_CPUS, 2048), job, false))?;
    let times = Times::read()?;
    let mut sum = Tally::default();
    // Those that need another kernel in the outer machine are few, and come last.
    for kernel in Which::ALL {
        let of_kernel: Vec<Case> = cases.iter().copied().filter(|case| case.scenario.outer_kernel == kernel).collect();
        let name = if kernel == Which::Stable { name.to_owned() } else { format!("{name}-on-{}", kernel.name()) };
        for tally in run_shares(&lab, (kernel, &name), &of_kernel, &times, &controls) {
            let Tally { failures, rare } = tally?;
            sum.failures.extend(failures);
            sum.rare += rare;
        }
    }
    let (bad, all) = (sum.failures.len(), cases.len());
    anyhow::ensure!(bad == 0, "{bad} of {all} scenarios failed: {}", sum.failures.join(", "));
    let rare = sum.rare;
    anyhow::ensure!(!warnings::too_often(rare, all), "{rare} of {all} guests said what a slow host causes rarely");
    Ok(())
}

/// Runs scenarios of one kernel of the outer machine, in as many outer boots at once as there are cores to share.
fn run_shares(
    lab: &Lab,
    (kernel, name): (Which, &str),
    cases: &[Case],
    times: &Times,
    controls: &Controls,
) -> Vec<anyhow::Result<Tally>> {
    let shares = shares(cases, times, lab.outer_machines(cases.len()));
    std::thread::scope(|scope| {
        let several = shares.len() > 1;
        let name_of = |n: usize| if several { format!("{name}-{}", n + 1) } else { name.to_owned() };
        let run = |(n, share)| {
            let name = name_of(n);
            scope.spawn(move || run_share(lab, (kernel, &name), share, times, controls))
        };
        let threads: Vec<_> = shares.into_iter().enumerate().map(run).collect();
        threads.into_iter().map(|thread| thread.join().unwrap_or_else(|_| anyhow::bail!("a runner panicked"))).collect()
    })
}

/// What became of scenarios.
#[derive(Default)]
struct Tally {
    failures: Vec<String>,
    /// Guests that were excused for something rare.
    rare: usize,
}

/// Deals the cases out so that every share takes about as long; each keeps its order.
fn shares<'a>(cases: &[Case<'a>], times: &Times, count: usize) -> Vec<Vec<Case<'a>>> {
    let seconds = |case: &Case| times.seconds(&line_of(case, times)).unwrap_or(1);
    let mut longest_first: Vec<usize> = (0..cases.len()).collect();
    longest_first.sort_by_key(|&at| std::cmp::Reverse(seconds(&cases[at])));
    let mut loads = vec![(0, Vec::new()); count.max(1)];
    for at in longest_first {
        if let Some((load, share)) = loads.iter_mut().min_by_key(|(load, _)| *load) {
            *load += seconds(&cases[at]);
            share.push(at);
        }
    }
    let in_order = |(_, mut share): (u64, Vec<usize>)| {
        share.sort_unstable();
        share.into_iter().map(|at| cases[at]).collect::<Vec<_>>()
    };
    loads.into_iter().map(in_order).filter(|share| !share.is_empty()).collect()
}

/// The line of a case in the table of times: its own, or that of its scenario.
fn line_of(case: &Case, times: &Times) -> String {
    let own = format!("lab/{}", case.name());
    if times.seconds(&own).is_some() { own } else { format!("lab/{}", case.scenario.name) }
}

fn run_share(
    lab: &Lab,
    (kernel, name): (Which, &str),
    mut group: Vec<Case<'_>>,
    times: &Times,
    controls: &Controls,
) -> anyhow::Result<Tally> {
    let mut tally = Tally::default();
    for attempt in 0..=RETRIES {
        println!("lab: {} scenarios", group.len());
        let job = Job { runs: group.iter().map(Case::run).collect() };
        let memory_mib = group.iter().map(|case| case.scenario.outer_memory_mib).max().unwrap_or_default();
        let report = lab.run_on(kernel, name, (OUTER_CPUS, memory_mib), &job, false)?;
        let mut left = Vec::new();
        for case in group {
            let outcome = report.outcomes.iter().find(|o| o.name == case.name());
            let verdict = match outcome {
                None if report.end == End::Stuck && attempt < RETRIES => {
                    left.push(case);
                    continue;
                }
                None => Err(anyhow::anyhow!("the outer machine ended before it ({:?})", report.end)),
                Some(outcome) => keep_log(outcome).and_then(|()| judge(&case, outcome, times, controls)),
            };
            match verdict {
                Ok(wall_ms) => {
                    println!("ok      {:<40} {:.1} s", case.name(), wall_ms as f64 / 1e3);
                    for (line, slow) in outcome.into_iter().flat_map(warnings_of).flat_map(warnings::excused) {
                        println!("        passed over: {line} ({})", slow.why);
                        tally.rare += usize::from(slow.rare);
                    }
                }
                Err(error) => {
                    println!("FAILED  {:<40} {error:#}", case.name());
                    tally.failures.push(case.name());
                }
            }
        }
        println!(
            "lab: {:?} after {:.0} s; console log: {}",
            report.end,
            report.wall.as_secs_f64(),
            report.log.display()
        );
        let Some(first) = left.first() else { break };
        // Told apart by the runner's silence: the emulated machine itself stands still, its timers included.
        println!("lab: the outer machine got stuck in `{}`: once more from there", first.name());
        fs::rename(&report.log, report.log.with_extension(format!("stuck{attempt}.log")))?;
        group = left;
    }
    Ok(tally)
}

/// A lab that is ready to run jobs.
pub struct Lab {
    content: content::Content,
    runner: PathBuf,
    /// What jobs find in the outer machine beside the lab's own programs: path there, file here.
    pub programs: Vec<(String, PathBuf)>,
    /// Where its guests run.
    pub place: Place,
}

impl Lab {
    /// Fetches and builds what is missing for these VMMs. `ZVMM_BINARY` names a static zvmm to use instead of building
    /// one.
    ///
    /// # Errors
    /// When a package cannot be had or a program does not build.
    pub fn prepare(vmms: &[Vmm]) -> anyhow::Result<Self> {
        let peer = outer::build_static("xtask", "lab-peer")?;
        let content = content::prepare(&peer)?;
        let runner = outer::build_static("xtask", "lab-runner")?;
        let mut programs = Vec::new();
        for name in vmms.iter().filter_map(|vmm| vmm.built_from()).collect::<BTreeSet<_>>() {
            let given = std::env::var_os("ZVMM_BINARY").filter(|_| name == "zvmm").map(PathBuf::from);
            let binary = given.map_or_else(|| outer::build_static(name, name), Ok)?;
            programs.push((format!("bin/{name}"), binary));
        }
        Ok(Self { content, runner, programs, place: Place::find() })
    }

    /// Adds what these guests are made of and is not on the tools disk.
    ///
    /// # Errors
    /// When it does not build.
    fn add_what_guests_need(&mut self, guests: impl IntoIterator<Item = vmm::Machine>) -> anyhow::Result<()> {
        let guests: Vec<vmm::Machine> = guests.into_iter().collect();
        let mut add = |at: &str, file: PathBuf| self.programs.push((at.trim_start_matches('/').to_owned(), file));
        if guests.iter().any(|guest| guest.initrd == content::at::ATTACKER) {
            add(content::at::ATTACKER, content::attacker_initrd(&outer::build_static("xtask", "lab-attacker")?)?);
        }
        if guests.iter().any(|guest| guest.initrd == content::at::STORAGE) {
            add(content::at::STORAGE, content::storage_initrd(&self.content)?);
        }
        for (at, which) in [(content::at::NETWORK, Which::Stable), (content::at::NETWORK_BACKPORTS, Which::Backports)] {
            if guests.iter().any(|guest| guest.initrd == at) {
                add(at, content::network_initrd(&self.content, which)?);
            }
        }
        if guests.iter().any(|guest| guest.disks.iter().any(|disk| disk == content::at::FIO)) {
            add(content::at::FIO, content::fio_image()?);
        }
        if guests.iter().any(|guest| guest.disks.iter().any(|disk| disk == zone_disk::AT)) {
            add(zone_disk::AT, zone_disk::image()?);
            add(&format!("bin/{}", scenarios::PLAYER), outer::build_static("xtask", scenarios::PLAYER)?);
        }
        Ok(())
    }

    /// How many outer machines to run `cases` scenarios in at once: each takes a core, and few scenarios are not worth a
    /// second boot. Guests that run directly share the machine's network: one after the other.
    fn outer_machines(&self, cases: usize) -> usize {
        let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        match self.place {
            Place::Direct => 1,
            Place::Nested(_) => (cases / 4).clamp(1, cores.min(2)),
        }
    }

    /// Everything outside the guest that what its kernel says depends on.
    ///
    /// # Errors
    /// When this machine does not say what it is.
    fn identity(&self) -> anyhow::Result<String> {
        let place = match self.place {
            Place::Direct => {
                let cpu = fs::read_to_string("/proc/cpuinfo")?;
                let model = cpu.lines().find(|line| line.starts_with("model name")).unwrap_or_default();
                format!("{} {model}", fs::read_to_string("/proc/version")?.trim())
            }
            Place::Nested(_) => outer::MACHINE.join(" "),
        };
        Ok(format!("{place} {}", self.content.identity))
    }

    /// Runs a job in an outer machine of so many CPUs and MiB; a run that fails is in the report, not an error.
    ///
    /// # Errors
    /// When the place cannot be set up.
    pub fn run(&self, name: &str, shape: (u32, u64), job: &Job, show: bool) -> anyhow::Result<Report> {
        self.run_on(Which::Stable, name, shape, job, show)
    }

    /// The same in one with a kernel of choice, where guests do not run directly.
    ///
    /// # Errors
    /// As [`Self::run`].
    fn run_on(
        &self,
        kernel: Which,
        name: &str,
        (cpus, memory_mib): (u32, u64),
        job: &Job,
        show: bool,
    ) -> anyhow::Result<Report> {
        let limit = job.runs.iter().map(|run| run.limit_s).sum::<u64>() + 60;
        let shape = Shape {
            name: name.to_owned(),
            kernel,
            cpus,
            memory_mib,
            limit: Duration::from_secs(limit),
            show,
            drives: Vec::new(),
        };
        let run = match self.place {
            Place::Direct => direct::run,
            Place::Nested(_) => outer::boot,
        };
        run(&shape, &self.content, job, &self.runner, &self.programs)
    }
}

/// Keeps what a guest said as `target/lab/logs/<vmm>/<scenario>.log`.
fn keep_log(outcome: &Outcome) -> anyhow::Result<()> {
    let path = paths::lab().join("logs").join(format!("{}.log", outcome.name));
    fs::create_dir_all(path.parent().unwrap_or(&path))?;
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
    fs::write(path, text)?;
    Ok(())
}

/// What a guest warned about, each time it was asked.
fn warnings_of(outcome: &Outcome) -> impl Iterator<Item = &str> {
    outcome.outputs.iter().filter(|(command, _)| command == scenarios::WARNINGS).map(|(_, said)| said.as_str())
}

fn judge(case: &Case, outcome: &Outcome, times: &Times, controls: &Controls) -> anyhow::Result<u64> {
    if let Some(failure) = &outcome.failure {
        anyhow::bail!(
            "{failure}{}{}",
            if outcome.stderr.is_empty() { "" } else { "; stderr: " },
            outcome.stderr.trim()
        );
    }
    case.scenario.check(outcome, case.vmm)?;
    if case.vmm.is_zvmm() {
        controls.check(case.vmm, &case.scenario.machine(case.vmm), outcome)?;
    }
    if let Some(why) = times.too_long(&line_of(case, times), Duration::from_millis(outcome.wall_ms)) {
        anyhow::bail!("{why}");
    }
    Ok(outcome.wall_ms)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_take_about_as_long_and_hold_every_case_once_in_its_order() {
        let (all, times) = (scenarios::all(), Times::read().unwrap());
        let cases = matrix::gate(&all);
        let seconds = |share: &[Case]| share.iter().filter_map(|c| times.seconds(&line_of(c, &times))).sum::<u64>();
        let place = |case: &Case| cases.iter().position(|other| other.name() == case.name()).unwrap();
        for count in [1, 2, 3] {
            let shares = shares(&cases, &times, count);
            assert_eq!(shares.len(), count);
            let mut places: Vec<usize> = Vec::new();
            for share in &shares {
                assert!(share.is_sorted_by_key(place));
                assert!(seconds(share) <= seconds(&cases) / count as u64 + 60);
                places.extend(share.iter().map(place));
            }
            places.sort_unstable();
            assert!(places.into_iter().eq(0..cases.len()));
        }
        assert_eq!(shares(&cases[..1], &times, 2).len(), 1);
    }
}
