//! `cargo xtask test`: the gate lane, or with `--full` everything. Each part has a time it may take, in a committed table.

use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::Context as _;

use crate::lab::vmm::Vmm;
use crate::lab::{self, scenarios};
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
    /// Only the parts whose names begin so
    parts: Vec<String>,
}

struct Part {
    name: &'static str,
    run: fn(&Options) -> anyhow::Result<Outcome>,
    /// Only with `--full`: too slow for the gate.
    full_only: bool,
}

/// How a part that did not fail ended.
enum Outcome {
    Passed,
    /// With the reason.
    Skipped(String),
}

const PARTS: [Part; 5] = [
    Part { name: "unit", run: unit, full_only: false },
    Part { name: "illumos", run: illumos, full_only: false },
    Part { name: "lab", run: lab, full_only: false },
    Part { name: "micro", run: micro, full_only: true },
    Part { name: "vmx", run: vmx, full_only: true },
];

/// Runs the tests.
///
/// # Errors
/// When a part fails, takes too long, or with `CI=true` is skipped.
pub fn run(options: Options) -> anyhow::Result<()> {
    let times = Times::read()?;
    let in_ci = std::env::var("CI").is_ok_and(|value| value == "true");
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
            Ok(Outcome::Passed) => match times.too_long(name, took) {
                None => "passed".to_owned(),
                Some(why) => {
                    failures.push(name);
                    format!("FAILED: {why}")
                }
            },
            Ok(Outcome::Skipped(why)) => {
                if in_ci {
                    failures.push(name);
                }
                format!("skipped: {why}")
            }
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

fn unit(_options: &Options) -> anyhow::Result<Outcome> {
    let guests = guests::build()?;
    let kvm = std::fs::OpenOptions::new().read(true).write(true).open("/dev/kvm");
    // Tests that run tiny guests pass over themselves without this.
    let guests = kvm.is_ok().then_some(("ZVMM_GUESTS", guests));
    cargo(&["test", "--workspace", "--quiet"], guests)?;
    Ok(match kvm {
        Ok(_) => Outcome::Passed,
        Err(error) => Outcome::Skipped(format!("tests that need /dev/kvm: {error}")),
    })
}

fn illumos(_options: &Options) -> anyhow::Result<Outcome> {
    illumos::run(illumos::Options::default())?;
    Ok(Outcome::Passed)
}

fn lab(options: &Options) -> anyhow::Result<Outcome> {
    let chosen: Vec<_> = scenarios::all().into_iter().filter(|s| options.full || s.gate).collect();
    if chosen.is_empty() {
        println!("no scenario is part of the gate yet");
        return Ok(Outcome::Passed);
    }
    let failures = lab::run_scenarios(&chosen, Vmm::Zvmm)?;
    anyhow::ensure!(failures.is_empty(), "{} of {}: {}", failures.len(), chosen.len(), failures.join(", "));
    Ok(Outcome::Passed)
}

/// All scenarios with the other profile.
fn micro(_options: &Options) -> anyhow::Result<Outcome> {
    let failures = lab::run_scenarios(&scenarios::all(), Vmm::ZvmmMicro)?;
    anyhow::ensure!(failures.is_empty(), "failed: {}", failures.join(", "));
    Ok(Outcome::Passed)
}

/// What the emulation of SVM gets wrong, on emulated VMX and EPT.
fn vmx(_options: &Options) -> anyhow::Result<Outcome> {
    lab::vmx::run(&[], Vmm::Zvmm, false)?;
    Ok(Outcome::Passed)
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
