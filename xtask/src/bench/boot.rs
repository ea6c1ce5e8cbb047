//! `cargo xtask bench boot`: a stock guest's boot under zvmm and under qemu, in turn, in one boot of the outer machine.

use anyhow::{Context as _, ensure};

use crate::lab::job::{Job, Outcome, Sample};
use crate::lab::vmm::Vmm;
use crate::lab::{Lab, OUTER_CPUS, scenarios};

/// Options of `cargo xtask bench boot`.
#[derive(clap::Args)]
pub struct Options {
    /// Rounds; every VMM boots once a round
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Fail when a figure is beyond its limit
    #[arg(long)]
    check: bool,
}

const VMMS: [Vmm; 4] = [Vmm::ZVMM, Vmm::MICRO, Vmm::Q35, Vmm::MICROVM];
/// The scenario whose samples are taken.
const SCENARIO: &str = "figures";
const OUTER_MEMORY_MIB: u64 = 3072;

/// Of the same boot's q35, in time and in CPU time.
const TIME_LIMIT: f64 = 0.8;
/// Of zvmm's two profiles.
const RETURN_LIMITS: [f64; 2] = [1450.0, 700.0];
const PAGE_FAULT_LIMIT: f64 = 60.0;
const PSS_LIMIT_KIB: f64 = 4608.0;

/// One figure of a boot.
struct Figure {
    name: &'static str,
    of: fn(&Outcome) -> Option<f64>,
}

fn at_init(outcome: &Outcome) -> Option<&Sample> {
    outcome.samples.get("init")
}

fn counter(outcome: &Outcome, name: &str) -> Option<f64> {
    at_init(outcome)?.kvm.get(name).map(|&count| count as f64)
}

const FIGURES: [Figure; 8] = [
    Figure { name: "exec to init, ms", of: |o| at_init(o).map(|s| s.at_ms as f64) },
    Figure { name: "CPU to init, ms", of: |o| at_init(o).map(|s| s.cpu_ms as f64) },
    Figure { name: "port exits to init", of: |o| counter(o, "io_exits") },
    Figure { name: "MMIO exits to init", of: |o| counter(o, "mmio_exits") },
    Figure { name: "page faults to init", of: |o| counter(o, "pf_taken") },
    Figure { name: "all exits to init", of: |o| counter(o, "exits") },
    Figure { name: "PSS, KiB, drivers loaded", of: |o| o.samples.get("ready").map(|s| s.pss_kib as f64) },
    Figure { name: "returns to the process to init", of: |o| Some(at_init(o)?.returns? as f64) },
];

/// Runs the rounds and prints a row a figure: median (least to most) of each VMM.
///
/// # Errors
/// When a boot fails, or with `--check` a figure is beyond its limit.
pub fn run(options: &Options) -> anyhow::Result<()> {
    let all = scenarios::all();
    let scenario = all.iter().find(|scenario| scenario.name == SCENARIO).context("the scenario is gone")?;
    let lab = Lab::prepare(&VMMS)?;
    println!("guests run {}", lab.place.describe());
    let mut runs = Vec::new();
    for round in 0..options.rounds {
        // Rotated, so that nobody is always first.
        for turn in 0..VMMS.len() {
            let vmm = VMMS[(round + turn) % VMMS.len()];
            let mut run = scenario.run(vmm);
            run.name = name_of(vmm, round);
            runs.push(run);
        }
    }
    let report = lab.run("bench-boot", (OUTER_CPUS, OUTER_MEMORY_MIB), &Job { runs }, false)?;
    let boots: Vec<Vec<&Outcome>> = VMMS
        .iter()
        .map(|&vmm| {
            let names: Vec<String> = (0..options.rounds).map(|round| name_of(vmm, round)).collect();
            report.outcomes.iter().filter(|o| o.failure.is_none() && names.contains(&o.name)).collect()
        })
        .collect();
    print_table(&boots);
    for (vmm, boots) in VMMS.iter().zip(&boots) {
        ensure!(
            boots.len() == options.rounds,
            "{} of {} boots with {} are missing; console log: {}",
            options.rounds - boots.len(),
            options.rounds,
            vmm.name(),
            report.log.display()
        );
    }
    let beyond = beyond_limits(&boots);
    beyond.iter().for_each(|line| println!("beyond its limit: {line}"));
    ensure!(!options.check || beyond.is_empty(), "{} figures are beyond their limits", beyond.len());
    Ok(())
}

fn name_of(vmm: Vmm, round: usize) -> String {
    format!("{}-{round}", vmm.name())
}

fn values(boots: &[&Outcome], figure: &Figure) -> Vec<f64> {
    let mut values: Vec<f64> = boots.iter().filter_map(|outcome| (figure.of)(outcome)).collect();
    values.sort_by(f64::total_cmp);
    values
}

fn median(sorted: &[f64]) -> Option<f64> {
    sorted.get(sorted.len() / 2).copied()
}

fn print_table(boots: &[Vec<&Outcome>]) {
    println!("| | {} |", VMMS.map(Vmm::name).join(" | "));
    println!("|---|{}", "---|".repeat(VMMS.len()));
    for figure in &FIGURES {
        let cells: Vec<String> = boots
            .iter()
            .map(|boots| {
                let values = values(boots, figure);
                match (median(&values), values.first(), values.last()) {
                    (Some(median), Some(least), Some(most)) => format!("{median:.0} ({least:.0}–{most:.0})"),
                    _ => "–".to_owned(),
                }
            })
            .collect();
        println!("| {} | {} |", figure.name, cells.join(" | "));
    }
}

/// What is beyond its limit, a line each.
fn beyond_limits(boots: &[Vec<&Outcome>]) -> Vec<String> {
    let of = |vmm: usize, figure: usize| median(&values(&boots[vmm], &FIGURES[figure])).unwrap_or(f64::NAN);
    let q35 = 2;
    let mut lines = Vec::new();
    let mut check = |vmm: usize, figure: usize, value: f64, limit: f64| {
        // Written so that a figure nobody measured is beyond its limit, too.
        if !matches!(value.partial_cmp(&limit), Some(std::cmp::Ordering::Less | std::cmp::Ordering::Equal)) {
            lines.push(format!("{}: {}: {value:.2}, limit {limit:.2}", VMMS[vmm].name(), FIGURES[figure].name));
        }
    };
    for vmm in [0, 1] {
        for time in [0, 1] {
            check(vmm, time, of(vmm, time) / of(q35, time), TIME_LIMIT);
        }
        check(vmm, 4, of(vmm, 4), PAGE_FAULT_LIMIT);
        check(vmm, 6, of(vmm, 6), PSS_LIMIT_KIB);
        check(vmm, 7, of(vmm, 7), RETURN_LIMITS[vmm]);
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    fn boot(at_ms: u64, page_faults: u64, returns: Option<u64>) -> Outcome {
        let mut outcome = Outcome::default();
        for name in ["init", "ready"] {
            let mut sample = Sample { at_ms, cpu_ms: at_ms, pss_kib: 2000, returns, ..Sample::default() };
            sample.kvm.insert("pf_taken".to_owned(), page_faults);
            outcome.samples.insert(name.to_owned(), sample);
        }
        outcome
    }

    #[test]
    fn what_is_slower_than_its_limit_or_not_measured_is_named() {
        let (fast, slow, nothing) = (boot(700, 50, Some(700)), boot(900, 61, Some(1451)), Outcome::default());
        let control = boot(1000, 300, None);
        let boots = |ours| vec![vec![ours], vec![&fast], vec![&control], vec![]];
        assert!(beyond_limits(&boots(&fast)).is_empty());
        assert_eq!(beyond_limits(&boots(&slow)).len(), 4, "time, CPU time, page faults and returns");
        assert_eq!(beyond_limits(&boots(&nothing)).len(), 5);
    }
}
