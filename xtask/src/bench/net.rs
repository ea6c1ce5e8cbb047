//! `cargo xtask bench net`: TCP between a stock guest and its host under zvmm and under qemu, in turn, in one boot of the outer
//! machine; and what the threads of an interface do while nobody talks.

use anyhow::{Context as _, ensure};

use super::loads::{self, Figure, Part, Values, is_beyond, name_of};
use crate::lab::job::{Job, Outcome, Run, Step};
use crate::lab::kernel::Which;
use crate::lab::scenarios::Script;
use crate::lab::vmm::Vmm;
use crate::lab::{Lab, OUTER_CPUS};

/// Options of `cargo xtask bench net`.
#[derive(clap::Args)]
pub struct Options {
    /// Rounds; every VMM runs every load once a round
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Loads: `rtt:<round trips>` of a byte, `send:<MiB>` from the guest, `recv:<MiB>` to it
    #[arg(long, value_delimiter = ',', default_values = ["rtt:300", "send:8", "recv:8"])]
    loads: Vec<String>,
    /// Seconds for which nobody talks before the loads
    #[arg(long, default_value_t = 5)]
    idle_seconds: u64,
    /// Fail when a figure is beyond its limit
    #[arg(long)]
    check: bool,
}

/// Who talks.
const SIDES: [(&str, Vmm); 2] = [("zvmm", Vmm::ZVMM), ("qemu q35", Vmm::Q35)];
/// What the other one is compared with.
const CONTROL: usize = 1;

const OUTER_MEMORY_MIB: u64 = 3072;
/// A load may take so long, seconds: the emulated machine is slow, and shared.
const LOAD_S: u64 = 90;
/// What the two sides still have to say to each other before nobody talks, such as whose address is whose.
const SETTLE_MS: u64 = 8000;
const IDLE: [&str; 2] = ["idle before", "idle after"];

/// Exits an operation, by load: a round trip, or a MiB.
const EXIT_LIMITS: [(&str, f64); 3] = [("rtt", 5.3), ("send", 190.0), ("recv", 62.0)];

const EXITS: usize = 0;
const MMIO_EXITS: usize = 1;
const RATE: usize = 3;

const FIGURES: [Figure; 7] = [
    Figure { name: "exits/op", of: |p| p.counter("exits"), digits: 2 },
    Figure { name: "MMIO exits to user space/op", of: |p| p.counter("mmio_exits"), digits: 3 },
    Figure { name: "host CPU µs/op", of: |p| p.cpu_us(), digits: 0 },
    Figure { name: "operations/s", of: |p| p.rate(), digits: 1 },
    Figure { name: "irq injections/op", of: |p| p.counter("irq_injections"), digits: 2 },
    Figure { name: "KVM-emulated instructions/op", of: |p| p.counter("insn_emulation"), digits: 2 },
    Figure { name: "HLT exits/op", of: |p| p.counter("halt_exits"), digits: 2 },
];

/// Runs the rounds and prints a table a load: median (least to most) of each VMM.
///
/// # Errors
/// When a run fails, or with `--check` a figure is beyond its limit.
pub fn run(options: &Options) -> anyhow::Result<()> {
    let lab = Lab::prepare(&SIDES.map(|(_, vmm)| vmm))?;
    println!("guests run {}", lab.place.describe());
    let mut runs = Vec::new();
    for round in 0..options.rounds {
        // In turn, so that nobody is always first.
        for turn in 0..SIDES.len() {
            runs.push(talks((round + turn) % SIDES.len(), round, &options.loads, options.idle_seconds));
        }
    }
    let report = lab.run("bench-net", (OUTER_CPUS, OUTER_MEMORY_MIB), &Job { runs }, false)?;
    let mut values = Values::default();
    for side in 0..SIDES.len() {
        for round in 0..options.rounds {
            let outcome = loads::outcome_of(&report, &name_of_run(side, round))?;
            take(&mut values, side, outcome, &options.loads, options.idle_seconds)?;
        }
    }
    for (load, text) in options.loads.iter().enumerate() {
        values.print(text, load, &SIDES.map(|(name, _)| name), &FIGURES);
    }
    let idle = options.loads.len();
    println!("\nwake-ups of the interface's threads a second while nobody talks: {}", values.spread((idle, 0, 0), 2));
    let beyond = beyond_limits(&values, &options.loads);
    beyond.iter().for_each(|line| println!("beyond its limit: {line}"));
    ensure!(!options.check || beyond.is_empty(), "{} figures are beyond their limits", beyond.len());
    Ok(())
}

fn name_of_run(side: usize, round: usize) -> String {
    format!("{}-{round}", SIDES[side].0.replace(' ', "-"))
}

fn talks(side: usize, round: usize, loads: &[String], idle_seconds: u64) -> Run {
    let vmm = SIDES[side].1;
    let loads_text = loads.join(" ");
    let script = Script::new()
        .kernel(Which::Stable, true)
        .nic()
        // What the stacks say by themselves is not what is measured.
        .before("echo 1 > /proc/sys/net/ipv6/conf/tap0/disable_ipv6")
        .limit(120 + idle_seconds + LOAD_S * loads.len() as u64)
        .ready()
        .guest("echo 1 > /proc/sys/net/ipv6/conf/eth0/disable_ipv6; ip addr add 10.0.0.2/24 dev eth0 && ip link set eth0 up")
        .guest("ping -c 1 10.0.0.1")
        .step(Step::Sleep { ms: SETTLE_MS })
        .step(Step::Threads { name: IDLE[0].to_owned() })
        .step(Step::Sleep { ms: idle_seconds * 1000 })
        .step(Step::Threads { name: IDLE[1].to_owned() })
        .shell(
            "lab-peer flow-serve 10.0.0.1:5001 > /tmp/flow 2>&1 & \
             timeout 20 sh -c 'until netstat -ltn | grep -q :5001; do sleep 0.05; done'",
        )
        .send(&format!("lab-peer flow 10.0.0.1:5001 {loads_text}; echo LOADS-\"\"DONE\n"));
    loads::with_counters(script, loads, LOAD_S)
        .expect("LOADS-DONE\n", 30)
        .power_off()
        .finish(&name_of_run(side, round), vmm)
}

fn take(
    values: &mut Values,
    side: usize,
    outcome: &Outcome,
    loads: &[String],
    idle_seconds: u64,
) -> anyhow::Result<()> {
    for (at, load) in loads.iter().enumerate() {
        values.add_all((at, side), &FIGURES, &Part::of(outcome, name_of(load))?);
    }
    // qemu does the work of an interface in a thread that has other work, too.
    if side != CONTROL {
        values.add((loads.len(), side, 0), wake_ups(outcome)? / idle_seconds as f64);
    }
    Ok(())
}

/// How often the threads of the interface were woken while nobody talked.
fn wake_ups(outcome: &Outcome) -> anyhow::Result<f64> {
    let sleeps = |when| {
        let threads = outcome.threads.get(when).context("the threads were not looked at")?;
        let own: Vec<u64> =
            threads.iter().filter(|thread| thread.name.starts_with("net0-")).map(|thread| thread.sleeps).collect();
        ensure!(own.len() == 2, "an interface with {} threads", own.len());
        Ok(own.iter().sum::<u64>())
    };
    let [before, after] = IDLE.map(sleeps);
    Ok(after?.saturating_sub(before?) as f64)
}

/// What is beyond its limit, a line each.
fn beyond_limits(values: &Values, loads: &[String]) -> Vec<String> {
    let mut lines = Vec::new();
    for (load, text) in loads.iter().enumerate() {
        let name = name_of(text);
        for (side, (who, _)) in SIDES.iter().enumerate().filter(|(side, _)| *side != CONTROL) {
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
            // Not fewer than the control's: the other way round.
            at_most(RATE, -of(side, RATE), -of(CONTROL, RATE));
        }
    }
    let wake_ups = values.median((loads.len(), 0, 0));
    if is_beyond(wake_ups, 0.0) {
        lines.push(format!("zvmm: {wake_ups:.2} wake-ups of the interface's threads a second while nobody talks"));
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lab::job::{Sample, Thread};

    fn outcome(exits: u64, mmio_exits: u64, time_us: u64, sleeps: u64) -> Outcome {
        let mut outcome = Outcome::default();
        for (when, times) in [("before", 0), ("after", 1)] {
            let mut sample = Sample { cpu_ms: 5000 + times * 100, ..Sample::default() };
            sample.kvm.insert("exits".to_owned(), 70_000 + times * exits);
            sample.kvm.insert("mmio_exits".to_owned(), 3 + times * mmio_exits);
            outcome.samples.insert(format!("rtt {when}"), sample);
            let thread = |name: &str, sleeps| Thread { name: name.to_owned(), cpu_ns: 0, sleeps };
            let threads =
                vec![thread("net0-rx", 7 + times * sleeps), thread("net0-tx", 9), thread("vcpu0", 40 * times)];
            outcome.threads.insert(format!("idle {when}"), threads);
        }
        outcome.lines.push((1, format!("LOAD rtt 100 round-trips in {time_us} us")));
        outcome
    }

    fn beyond(ours: &Outcome) -> usize {
        let loads = ["rtt:100".to_owned()];
        let mut values = Values::default();
        for side in 0..SIDES.len() {
            let control = outcome(600, 0, 100_000, 0);
            take(&mut values, side, if side == CONTROL { &control } else { ours }, &loads, 5).unwrap();
        }
        beyond_limits(&values, &loads).len()
    }

    #[test]
    fn what_is_worse_than_its_limit_or_than_the_control_is_named() {
        assert_eq!(beyond(&outcome(530, 0, 100_000, 0)), 0);
        assert_eq!(beyond(&outcome(531, 0, 100_000, 0)), 1, "exits");
        assert_eq!(beyond(&outcome(530, 1, 100_000, 0)), 1, "MMIO exits");
        assert_eq!(beyond(&outcome(530, 0, 100_001, 0)), 1, "round trips a second");
        assert_eq!(beyond(&outcome(530, 0, 100_000, 1)), 1, "wake-ups");
    }

    #[test]
    fn what_was_not_measured_is_an_error_or_beyond_its_limit() {
        let mut values = Values::default();
        assert!(take(&mut values, 0, &Outcome::default(), &["rtt:100".to_owned()], 5).is_err());
        let mut one_thread = outcome(530, 0, 100_000, 0);
        one_thread.threads.values_mut().for_each(|threads| threads.truncate(1));
        assert!(take(&mut values, 0, &one_thread, &["rtt:100".to_owned()], 5).is_err());
        assert_eq!(beyond_limits(&Values::default(), &["send:8".to_owned()]).len(), 4);
    }

    #[test]
    fn counters_are_read_around_every_load_and_threads_before() {
        let run = talks(0, 0, &["rtt:10".to_owned(), "recv:1".to_owned()], 5);
        let steps = |wanted: fn(&Step) -> bool| run.steps.iter().filter(|step| wanted(step)).count();
        assert_eq!(steps(|step| matches!(step, Step::Sample { .. })), 4);
        assert_eq!(steps(|step| matches!(step, Step::Threads { .. })), 2);
        assert!(run.command.iter().any(|word| word.starts_with("tap=tap0")));
    }
}
