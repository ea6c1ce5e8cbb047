//! `cargo xtask bench disk`: reads of a disk by a stock guest under zvmm and under qemu, in turn, in one boot of the outer
//! machine.

use anyhow::ensure;

use super::loads::{self, Figure, Part, Values, is_beyond, name_of};
use crate::lab::job::{Job, Outcome, Run};
use crate::lab::kernel::Which;
use crate::lab::scenarios::Script;
use crate::lab::vmm::Vmm;
use crate::lab::{Lab, OUTER_CPUS};

/// Options of `cargo xtask bench disk`.
#[derive(clap::Args)]
pub struct Options {
    /// Rounds; every VMM runs every load once a round
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Loads: `rr<depth>:<operations>` reads 4 KiB at random, `sr<depth>:<operations>` 128 KiB in sequence
    #[arg(long, value_delimiter = ',', default_values = ["rr1:3000", "rr32:20000", "sr4:2000"])]
    loads: Vec<String>,
    /// Fail when a figure is beyond its limit
    #[arg(long)]
    check: bool,
}

/// Who reads: name, VMM, whether the kernel does the disk's work by io_uring.
const SIDES: [(&str, Vmm, bool); 3] =
    [("zvmm threads", Vmm::ZVMM, false), ("zvmm io_uring", Vmm::ZVMM, true), ("qemu q35", Vmm::Q35, false)];
/// The last one is what the others are compared with.
const CONTROL: usize = SIDES.len() - 1;

/// 128 MiB on the outer machine's memory file system; all of it was written.
const IMAGE: &str = "/tmp/load.img";
const MAKE_IMAGE: &str = "[ -f /tmp/load.img ] || dd if=/dev/zero of=/tmp/load.img bs=1M count=128 2>&1";
const OUTER_MEMORY_MIB: u64 = 3072;
/// A load may take so long, seconds: the emulated machine is slow, and shared.
const LOAD_S: u64 = 90;

/// Exits an operation, by load.
const EXIT_LIMITS: [(&str, f64); 3] = [("rr1", 1.7), ("rr32", 0.11), ("sr4", 1.05)];

const EXITS: usize = 0;
const MMIO_EXITS: usize = 1;
const CPU: usize = 2;
const IOPS: usize = 3;

const FIGURES: [Figure; 7] = [
    Figure { name: "exits/op", of: |r| r.counter("exits"), digits: 3 },
    Figure { name: "MMIO exits to user space/op", of: |r| r.counter("mmio_exits"), digits: 3 },
    Figure { name: "host CPU µs/op", of: |p| p.cpu_us(), digits: 0 },
    Figure { name: "operations/s", of: |p| p.rate(), digits: 0 },
    Figure { name: "irq injections/op", of: |r| r.counter("irq_injections"), digits: 3 },
    Figure { name: "KVM-emulated instructions/op", of: |r| r.counter("insn_emulation"), digits: 3 },
    Figure { name: "HLT exits/op", of: |r| r.counter("halt_exits"), digits: 3 },
];

/// Runs the rounds and prints a table a load: median (least to most) of each VMM.
///
/// # Errors
/// When a run fails, or with `--check` a figure is beyond its limit.
pub fn run(options: &Options) -> anyhow::Result<()> {
    let lab = Lab::prepare(&SIDES.map(|(_, vmm, _)| vmm))?;
    println!("guests run {}", lab.place.describe());
    let mut runs = Vec::new();
    for round in 0..options.rounds {
        // Rotated, so that nobody is always first.
        for turn in 0..SIDES.len() {
            let side = (round + turn) % SIDES.len();
            runs.push(reads(side, round, &options.loads));
        }
    }
    let report = lab.run("bench-disk", (OUTER_CPUS, OUTER_MEMORY_MIB), &Job { runs }, false)?;
    let mut values = Values::default();
    for side in 0..SIDES.len() {
        for round in 0..options.rounds {
            let outcome = loads::outcome_of(&report, &name_of_run(side, round))?;
            take(&mut values, side, outcome, &options.loads)?;
        }
    }
    for (load, text) in options.loads.iter().enumerate() {
        values.print(text, load, &SIDES.map(|(name, ..)| name), &FIGURES);
    }
    let beyond = beyond_limits(&values, &options.loads);
    beyond.iter().for_each(|line| println!("beyond its limit: {line}"));
    ensure!(!options.check || beyond.is_empty(), "{} figures are beyond their limits", beyond.len());
    Ok(())
}

fn name_of_run(side: usize, round: usize) -> String {
    format!("{}-{round}", SIDES[side].0.replace(' ', "-"))
}

fn reads(side: usize, round: usize, loads: &[String]) -> Run {
    let (_, vmm, io_uring) = SIDES[side];
    let script = Script::new()
        .kernel(Which::Stable, true)
        .before(MAKE_IMAGE)
        .with(|machine| {
            machine.disks.push(IMAGE.to_owned());
            machine.io_uring = io_uring;
        })
        .limit(90 + LOAD_S * loads.len() as u64)
        .ready()
        .send(&format!("lab-peer load /dev/vda {}; echo LOADS-\"\"DONE\n", loads.join(" ")));
    loads::with_counters(script, loads, LOAD_S)
        .expect("LOADS-DONE\n", 30)
        .power_off()
        .finish(&name_of_run(side, round), vmm)
}

fn take(values: &mut Values, side: usize, outcome: &Outcome, loads: &[String]) -> anyhow::Result<()> {
    for (at, load) in loads.iter().enumerate() {
        values.add_all((at, side), &FIGURES, &Part::of(outcome, name_of(load))?);
    }
    Ok(())
}

/// What is beyond its limit, a line each.
fn beyond_limits(values: &Values, loads: &[String]) -> Vec<String> {
    let mut lines = Vec::new();
    for (load, text) in loads.iter().enumerate() {
        let name = name_of(text);
        for (side, (who, ..)) in SIDES.iter().enumerate().filter(|(side, _)| *side != CONTROL) {
            let of = |side, figure| values.median((load, side, figure));
            let mut at_most = |figure: usize, value: f64, limit: f64| {
                if is_beyond(value, limit) {
                    lines.push(format!("{who}: {name}: {}: {value:.3}, limit {limit:.3}", FIGURES[figure].name));
                }
            };
            if let Some((_, limit)) = EXIT_LIMITS.iter().find(|(limited, _)| *limited == name) {
                at_most(EXITS, of(side, EXITS), *limit);
            }
            at_most(MMIO_EXITS, of(side, MMIO_EXITS), 0.0);
            at_most(CPU, of(side, CPU), of(CONTROL, CPU));
            // Not fewer than the control's: the other way round.
            at_most(IOPS, -of(side, IOPS), -of(CONTROL, IOPS));
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lab::job::{Sample, Step};

    fn outcome(exits: u64, mmio_exits: u64, cpu_ms: u64, time_us: u64) -> Outcome {
        let mut outcome = Outcome::default();
        for (when, times) in [("before", 0), ("after", 1)] {
            let mut sample = Sample { cpu_ms: 5000 + times * cpu_ms, ..Sample::default() };
            sample.kvm.insert("exits".to_owned(), 70_000 + times * exits);
            sample.kvm.insert("mmio_exits".to_owned(), 3 + times * mmio_exits);
            outcome.samples.insert(format!("rr1 {when}"), sample);
        }
        outcome.lines.push((1, format!("LOAD rr1 1000 reads in {time_us} us")));
        outcome
    }

    fn beyond(ours: &Outcome) -> usize {
        let loads = ["rr1:1000".to_owned()];
        let mut values = Values::default();
        for side in 0..SIDES.len() {
            let control = outcome(2000, 0, 800, 800_000);
            take(&mut values, side, if side == CONTROL { &control } else { ours }, &loads).unwrap();
        }
        beyond_limits(&values, &loads).len()
    }

    #[test]
    fn what_is_worse_than_its_limit_or_than_the_control_is_named_for_both_engines() {
        assert_eq!(beyond(&outcome(1700, 0, 800, 800_000)), 0);
        assert_eq!(beyond(&outcome(1701, 0, 800, 800_000)), 2, "exits");
        assert_eq!(beyond(&outcome(1700, 1, 800, 800_000)), 2, "MMIO exits");
        assert_eq!(beyond(&outcome(1700, 0, 810, 800_000)), 2, "CPU time");
        assert_eq!(beyond(&outcome(1700, 0, 800, 800_001)), 2, "operations a second");
    }

    #[test]
    fn a_load_that_says_nothing_is_an_error() {
        let mut values = Values::default();
        assert!(take(&mut values, 0, &Outcome::default(), &["rr1:1000".to_owned()]).is_err());
        assert_eq!(beyond_limits(&values, &["rr1:1000".to_owned()]).len(), 8);
    }

    #[test]
    fn counters_are_read_around_every_load() {
        let run = reads(0, 0, &["rr1:10".to_owned(), "sr4:5".to_owned()]);
        let samples = run.steps.iter().filter(|step| matches!(step, Step::Sample { .. })).count();
        assert_eq!(samples, 4);
        assert!(run.command.iter().any(|word| word.starts_with(IMAGE)));
    }
}
