//! `cargo xtask test`: the gate lane, or with `--full` everything. Each part has a time it may take, in a committed table.

use std::ffi::OsString;
use std::io::Read as _;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Context as _;

use crate::lab::kvm_tests::PACKAGES;
use crate::lab::vmm::Vmm;
use crate::lab::{self, Case, kvm_tests, matrix, place, scenarios};
use crate::times::Times;
use crate::{clients, fuzz, guests, illumos, paths};

/// What the gate lane may take in all.
const GATE_LIMIT: Duration = Duration::from_secs(25 * 60);

/// The test that builds the devices as they are shipped, which takes one core most of a minute.
const NO_PANIC: &str = "of_queue_and_transport_only_what_is_listed_reaches_the_panic_machinery";

/// Options of `cargo xtask test`.
#[derive(clap::Args)]
pub struct Options {
    /// Everything at full length, not only what fits into the gate
    #[arg(long)]
    full: bool,
    /// Where the tests that need a KVM run [default: here, when this machine's /dev/kvm runs small guests]
    #[arg(long, value_enum)]
    kvm_tests: Option<Where>,
    /// Only the parts whose names begin so
    parts: Vec<String>,
}

/// Where tests run.
#[derive(Clone, Copy, clap::ValueEnum)]
enum Where {
    /// On this machine's own `/dev/kvm`.
    Here,
    /// In the lab's emulated machine.
    Lab,
}

struct Part {
    name: &'static str,
    /// Returns the name of its line in the table of times.
    run: fn(&Options) -> anyhow::Result<&'static str>,
    /// Only with `--full`: too slow for the gate.
    full_only: bool,
}

const PARTS: [Part; 15] = [
    Part { name: "unit", run: unit, full_only: false },
    Part { name: "kvm", run: kvm, full_only: false },
    Part { name: "illumos", run: illumos, full_only: false },
    Part { name: "fuzz", run: fuzz, full_only: false },
    Part { name: "teeth", run: teeth, full_only: false },
    Part { name: "lab", run: lab, full_only: false },
    Part { name: "clients", run: clients, full_only: true },
    Part { name: "storage", run: storage, full_only: true },
    Part { name: "network", run: network, full_only: true },
    Part { name: "crash", run: crash, full_only: true },
    Part { name: "micro", run: micro, full_only: true },
    Part { name: "bhyve", run: bhyve, full_only: true },
    Part { name: "double-bhyve", run: double_bhyve, full_only: true },
    Part { name: "double-illumos-kvm", run: double_illumos_kvm, full_only: true },
    Part { name: "vmx", run: vmx, full_only: true },
];

/// Runs the tests.
///
/// # Errors
/// When a part fails or takes too long.
pub fn run(options: Options) -> anyhow::Result<()> {
    let known = |wanted: &String| {
        PARTS.iter().any(|part| part.name.starts_with(wanted.as_str()) && (options.full || !part.full_only))
    };
    if let Some(wanted) = options.parts.iter().find(|wanted| !known(wanted)) {
        let names: Vec<_> = PARTS.iter().map(|part| part.name).collect();
        anyhow::bail!("no part begins with '{wanted}'; with --full there are {}", names.join(", "));
    }
    let times = Times::read()?;
    let start = Instant::now();
    let mut failures = Vec::new();
    let mut summary = Vec::new();
    for Part { name, run: part, full_only } in PARTS {
        if full_only && !options.full {
            continue;
        }
        if !options.parts.is_empty() && !options.parts.iter().any(|p| name.starts_with(p.as_str())) {
            continue;
        }
        println!("== {name}");
        let began = Instant::now();
        let result = part(&options);
        let took = began.elapsed();
        let verdict = match result {
            Ok(line) => match times.too_long(line, took) {
                None => "passed".to_owned(),
                Some(why) => {
                    failures.push(name);
                    format!("FAILED: {why}")
                }
            },
            Err(error) => {
                failures.push(name);
                format!("FAILED: {error:#}")
            }
        };
        summary.push(format!("{name:<20} {:>6.0} s  {verdict}", took.as_secs_f64()));
    }
    println!("\n{}", summary.join("\n"));
    let all = start.elapsed();
    println!("{:<20} {:>6.0} s", "in all", all.as_secs_f64());
    anyhow::ensure!(failures.is_empty(), "failed: {}", failures.join(", "));
    anyhow::ensure!(options.full || all < GATE_LIMIT, "the gate took longer than {} s", GATE_LIMIT.as_secs());
    Ok(())
}

/// Everything that needs no KVM.
fn unit(options: &Options) -> anyhow::Result<&'static str> {
    let seeds = seeds(options);
    let packages = |flag: &'static str| PACKAGES.iter().flat_map(move |(package, _)| [flag, package]);
    let workspace: Vec<_> = ["test", "--workspace", "--quiet"].into_iter().chain(packages("--exclude")).collect();
    let but_slow = [workspace.as_slice(), &["--", "--skip", NO_PANIC]].concat();
    let slow = [workspace.as_slice(), &["--test", "no_panic"]].concat();
    let mut others = vec![["test", "--doc", "--quiet"].into_iter().chain(packages("--package")).collect()];
    for (package, needs_kvm) in PACKAGES.into_iter().filter(|(_, needs_kvm)| !needs_kvm.is_empty()) {
        others.push(vec!["test", "--package", package, "--lib", "--bins", "--quiet", "--", "--skip", needs_kvm]);
    }
    if options.full {
        // What takes minutes.
        others.push(vec!["test", "--package", "devices", "--lib", "--quiet", "--", "--ignored"]);
    }
    side_by_side(&[vec![but_slow], vec![slow], others], &seeds)?;
    Ok("unit")
}

/// Everything that needs one, on this machine's where that runs small guests, else in the lab.
fn kvm(options: &Options) -> anyhow::Result<&'static str> {
    let here = match options.kvm_tests {
        Some(Where::Here) => Ok(()),
        Some(Where::Lab) => Err("as was asked for".to_owned()),
        None => place::runs_small_guests(),
    };
    if let Err(why) = here {
        kvm_tests::run(&why, options.full)?;
        return Ok("kvm in the lab");
    }
    println!("tests that need a KVM run on this machine's");
    let guests = guests::build()?;
    let mut environment = seeds(options);
    // Tests that run tiny guests pass over themselves without this.
    environment.push(("ZVMM_GUESTS", guests.into()));
    let test = |arguments: &[&'static str]| [&["test", "--quiet", "--package"], arguments].concat();
    let rows = PACKAGES.map(|(package, needs_kvm)| match needs_kvm {
        "" => vec![test(&[package, "--lib", "--bins", "--tests"])],
        needs_kvm => vec![test(&[package, "--lib", "--", needs_kvm]), test(&[package, "--test", "*"])],
    });
    side_by_side(&rows, &environment)?;
    if options.full {
        let (package, program) = kvm_tests::LONG;
        side_by_side(&[vec![test(&[package, "--test", program, "--", "--ignored"])]], &environment)?;
    }
    Ok("kvm")
}

fn illumos(_options: &Options) -> anyhow::Result<&'static str> {
    illumos::run(illumos::Options::default())?;
    Ok("illumos")
}

/// What was found once, and every fuzz target for a while: with AddressSanitizer where there is time for it.
fn fuzz(options: &Options) -> anyhow::Result<&'static str> {
    if options.full {
        fuzz::all(Duration::from_secs(600), fuzz::Build::Asan, false)?;
        return Ok("fuzz at length");
    }
    fuzz::all(Duration::from_secs(20), fuzz::Build::Fuzz, true)?;
    Ok("fuzz")
}

/// Whether fuzzing finds bugs that are put there for it.
fn teeth(options: &Options) -> anyhow::Result<&'static str> {
    if options.full {
        fuzz::all_teeth()?;
        return Ok("teeth at length");
    }
    fuzz::some_teeth()?;
    Ok("teeth")
}

fn lab(options: &Options) -> anyhow::Result<&'static str> {
    let all = scenarios::all();
    if options.full {
        lab::run_cases("zvmm", &matrix::everything(&all, Vmm::ZVMM))?;
    } else {
        lab::run_cases("gate", &matrix::gate(&all))?;
    }
    Ok("lab")
}

/// What others have written to talk to a VMM.
fn clients(_options: &Options) -> anyhow::Result<&'static str> {
    clients::run()?;
    Ok("clients")
}

/// Verified load on disks, at length.
fn storage(_options: &Options) -> anyhow::Result<&'static str> {
    lab::run_cases("storage", &matrix::everything(&scenarios::long(scenarios::LOAD_S), Vmm::ZVMM))?;
    Ok("storage")
}

/// Networks under load.
fn network(_options: &Options) -> anyhow::Result<&'static str> {
    lab::run_cases("network", &matrix::networks(&scenarios::networks()))?;
    Ok("network")
}

/// Power failures while guests write.
fn crash(_options: &Options) -> anyhow::Result<&'static str> {
    lab::crash::run(lab::crash::ROUNDS)?;
    Ok("crash")
}

/// All scenarios with the smallest machine.
fn micro(_options: &Options) -> anyhow::Result<&'static str> {
    lab::run_cases("zvmm-micro", &matrix::everything(&scenarios::all(), Vmm::MICRO))?;
    Ok("micro")
}

/// All scenarios with the machine that guests of bhyve remember.
fn bhyve(_options: &Options) -> anyhow::Result<&'static str> {
    lab::run_cases("zvmm-bhyve", &matrix::everything(&scenarios::all(), matrix::BHYVE_ON_KVM))?;
    Ok("bhyve")
}

fn double_bhyve(_options: &Options) -> anyhow::Result<&'static str> {
    double(0)
}

fn double_illumos_kvm(_options: &Options) -> anyhow::Result<&'static str> {
    double(1)
}

/// All scenarios through an illumos backend on its double, with both profiles.
fn double(which: usize) -> anyhow::Result<&'static str> {
    let (name, vmms) = matrix::DOUBLES[which];
    let all = scenarios::all();
    let cases: Vec<Case> = vmms.into_iter().flat_map(|vmm| matrix::everything(&all, vmm)).collect();
    lab::run_cases(name, &cases)?;
    Ok(name)
}

/// What the emulation of SVM gets wrong, on emulated VMX and EPT.
fn vmx(_options: &Options) -> anyhow::Result<&'static str> {
    lab::vmx::run(&[], Vmm::ZVMM, false)?;
    Ok("vmx")
}

/// What property tests begin with. In the gate they try the same cases each time, so that no change is held up by what
/// another one did; the full lane looks for new ones.
fn seeds(options: &Options) -> Vec<(&'static str, OsString)> {
    if options.full { Vec::new() } else { vec![("PROPTEST_RNG_SEED", "1".into())] }
}

/// Runs rows of commands of cargo, the rows beside each other and each in its order: much of the time of tests is waiting,
/// and of what they build the last step of one core. A row's output is shown when it ends.
fn side_by_side(rows: &[Vec<Vec<&str>>], environment: &[(&str, OsString)]) -> anyhow::Result<()> {
    let results: Vec<_> = thread::scope(|scope| {
        let started: Vec<_> = rows
            .iter()
            .map(|row| scope.spawn(move || row.iter().try_for_each(|arguments| cargo(arguments, environment))))
            .collect();
        started.into_iter().map(|row| row.join().expect("a row of tests does not panic")).collect()
    });
    results.into_iter().collect()
}

/// Runs cargo, and shows what it says when it is done.
fn cargo(arguments: &[&str], environment: &[(&str, OsString)]) -> anyhow::Result<()> {
    let (mut from, to) = std::io::pipe().context("cannot make a pipe")?;
    let mut child = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
        .args(arguments)
        .envs(environment.iter().map(|(name, value)| (name, value)))
        .current_dir(paths::workspace())
        .stdin(Stdio::null())
        .stdout(to.try_clone().context("cannot make a pipe")?)
        .stderr(to)
        .spawn()
        .context("cannot run cargo")?;
    let mut output = Vec::new();
    let read = from.read_to_end(&mut output);
    let status = child.wait().context("cannot wait for cargo")?;
    println!("{}", String::from_utf8_lossy(&output));
    read.context("cannot read what cargo says")?;
    anyhow::ensure!(status.success(), "cargo {} failed", arguments.join(" "));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_part_has_a_time_and_those_of_the_gate_fit_it() {
        let times = Times::read().unwrap();
        let gate = PARTS.iter().filter(|part| !part.full_only);
        let sum: u64 = gate.map(|part| times.seconds(part.name).unwrap()).sum();
        assert!(Duration::from_secs(sum) < GATE_LIMIT);
        assert!(PARTS.iter().all(|part| times.seconds(part.name).is_some()));
    }
}
