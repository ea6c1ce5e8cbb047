//! `cargo xtask test`: the gate lane, or with `--full` everything. Each part has a time it may take, in a committed table.

use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::Context as _;

use crate::lab::kvm_tests::PACKAGES;
use crate::lab::vmm::Vmm;
use crate::lab::{self, Case, kvm_tests, place, scenarios};
use crate::times::Times;
use crate::{guests, illumos, paths};

/// What the gate lane may take in all.
const GATE_LIMIT: Duration = Duration::from_secs(25 * 60);

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
    run: fn(&Options) -> anyhow::Result<()>,
    /// Only with `--full`: too slow for the gate.
    full_only: bool,
}

const PARTS: [Part; 6] = [
    Part { name: "unit", run: unit, full_only: false },
    Part { name: "kvm", run: kvm, full_only: false },
    Part { name: "illumos", run: illumos, full_only: false },
    Part { name: "lab", run: lab, full_only: false },
    Part { name: "micro", run: micro, full_only: true },
    Part { name: "vmx", run: vmx, full_only: true },
];

/// Runs the tests.
///
/// # Errors
/// When a part fails or takes too long.
pub fn run(options: Options) -> anyhow::Result<()> {
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
            Ok(()) => match times.too_long(name, took) {
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
        summary.push(format!("{name:<10} {:>6.0} s  {verdict}", took.as_secs_f64()));
    }
    println!("\n{}", summary.join("\n"));
    let all = start.elapsed();
    println!("{:<10} {:>6.0} s", "in all", all.as_secs_f64());
    anyhow::ensure!(failures.is_empty(), "failed: {}", failures.join(", "));
    anyhow::ensure!(options.full || all < GATE_LIMIT, "the gate took longer than {} s", GATE_LIMIT.as_secs());
    Ok(())
}

/// Everything that needs no KVM.
fn unit(_options: &Options) -> anyhow::Result<()> {
    let packages = |flag: &'static str| PACKAGES.iter().flat_map(move |(package, _)| [flag, package]);
    cargo(&["test", "--workspace", "--quiet"].into_iter().chain(packages("--exclude")).collect::<Vec<_>>(), None)?;
    cargo(&["test", "--doc", "--quiet"].into_iter().chain(packages("--package")).collect::<Vec<_>>(), None)?;
    for (package, needs_kvm) in PACKAGES.into_iter().filter(|(_, needs_kvm)| !needs_kvm.is_empty()) {
        cargo(&["test", "--package", package, "--lib", "--bins", "--quiet", "--", "--skip", needs_kvm], None)?;
    }
    Ok(())
}

/// Everything that needs one, on this machine's where that runs small guests, else in the lab.
fn kvm(options: &Options) -> anyhow::Result<()> {
    let here = match options.kvm_tests {
        Some(Where::Here) => Ok(()),
        Some(Where::Lab) => Err("as was asked for".to_owned()),
        None => place::runs_small_guests(),
    };
    if let Err(why) = here {
        kvm_tests::run(&why)?;
        return Ok(());
    }
    println!("tests that need a KVM run on this machine's");
    let guests = guests::build()?;
    for (package, needs_kvm) in PACKAGES {
        // Tests that run tiny guests pass over themselves without this.
        let guests = Some(("ZVMM_GUESTS", guests.clone()));
        cargo(&["test", "--package", package, "--lib", "--quiet", "--", needs_kvm], guests.clone())?;
        cargo(&["test", "--package", package, "--test", "*", "--quiet"], guests)?;
    }
    Ok(())
}

fn illumos(_options: &Options) -> anyhow::Result<()> {
    illumos::run(illumos::Options::default())?;
    Ok(())
}

fn lab(options: &Options) -> anyhow::Result<()> {
    let all = scenarios::all();
    let chosen = all.iter().filter(|scenario| options.full || scenario.gate);
    lab::run_cases("zvmm", &chosen.map(|scenario| Case { scenario, vmm: Vmm::ZVMM }).collect::<Vec<_>>())?;
    Ok(())
}

/// All scenarios with the other profile.
fn micro(_options: &Options) -> anyhow::Result<()> {
    let all = scenarios::all();
    lab::run_cases("zvmm-micro", &all.iter().map(|scenario| Case { scenario, vmm: Vmm::MICRO }).collect::<Vec<_>>())?;
    Ok(())
}

/// What the emulation of SVM gets wrong, on emulated VMX and EPT.
fn vmx(_options: &Options) -> anyhow::Result<()> {
    lab::vmx::run(&[], Vmm::ZVMM, false)?;
    Ok(())
}

fn cargo(arguments: &[&str], environment: Option<(&str, PathBuf)>) -> anyhow::Result<()> {
    let status = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
        .args(arguments)
        .envs(environment)
        .current_dir(paths::workspace())
        .stdin(Stdio::null())
        .status()
        .context("cannot run cargo")?;
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
