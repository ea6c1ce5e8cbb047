//! `cargo xtask bench zone`: what the VMM of the kvm brand's example needs for itself while its guest does nothing, beside
//! qemu with the same guest, in turn, in one boot of the outer machine.

use anyhow::{Context as _, ensure};
use zvmm_zone::argv::{Disk, Properties};

use crate::lab::job::{Job, Outcome, Run, Step, Thread};
use crate::lab::scenarios::{CPU, Script};
use crate::lab::vmm::Vmm;
use crate::lab::{Lab, OUTER_CPUS};

/// Options of `cargo xtask bench zone`.
#[derive(clap::Args)]
pub struct Options {
    /// Rounds; every VMM runs its guest once a round
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// How long the guest does nothing while it is looked at
    #[arg(long, default_value_t = 30)]
    idle_seconds: u64,
    /// Fail when a figure is beyond its limit
    #[arg(long)]
    check: bool,
}

const OUTER_MEMORY_MIB: u64 = 3072;
const MEMORY_MIB: u32 = 512;
const VCPUS: u32 = 2;
const DISK_MIB: u64 = 8;
/// How long a guest has to settle after its boot.
const SETTLE_MS: u64 = 10_000;
/// Where the example has its guest's console.
const CONSOLE: &str = "/tmp/vm.console";

/// Names of the records before and after the time in which nothing happens, and of the look at memory after it.
const BEFORE: &str = "before";
const AFTER: &str = "after";
const IDLE: &str = "idle";

/// Private memory of the process, of 1024 MiB that SmartOS allows for it.
const PRIVATE_LIMIT_KIB: f64 = 8192.0;
/// Of a core, by all threads but those of the vCPUs.
const OWN_CPU_LIMIT_PERCENT: f64 = 0.1;
/// A second, of the same threads.
const OWN_WAKE_UPS_LIMIT: f64 = 5.0;

/// The two who run the guest. The second one is what the first is compared with.
const SIDES: [&str; 2] = ["zvmm, started as qemu", "qemu q35"];

/// What is taken of a guest that did nothing.
struct Figure {
    name: &'static str,
    of: fn(&Idle) -> f64,
    digits: usize,
}

/// What a process did while its guest did nothing.
struct Idle {
    private_kib: u64,
    seconds: f64,
    /// CPU time in nanoseconds and wake-ups, of the vCPUs' threads and of all others.
    vcpus: (u64, u64),
    others: (u64, u64),
}

const PRIVATE: usize = 0;
const OWN_CPU: usize = 1;
const OWN_WAKE_UPS: usize = 2;
const ALL_CPU: usize = 3;

const FIGURES: [Figure; 5] = [
    Figure { name: "private memory, guest's apart, KiB", of: |idle| idle.private_kib as f64, digits: 0 },
    Figure { name: "threads beside the vCPUs': % of a core", of: |idle| idle.percent(idle.others.0), digits: 3 },
    Figure { name: "threads beside the vCPUs': wake-ups/s", of: |idle| idle.others.1 as f64 / idle.seconds, digits: 2 },
    Figure { name: "all threads: % of a core", of: |idle| idle.percent(idle.others.0 + idle.vcpus.0), digits: 3 },
    Figure {
        name: "all threads: wake-ups/s",
        of: |idle| (idle.others.1 + idle.vcpus.1) as f64 / idle.seconds,
        digits: 2,
    },
];

impl Idle {
    fn of(outcome: &Outcome, seconds: u64) -> anyhow::Result<Self> {
        let record = |name: &str| outcome.threads.get(name).with_context(|| format!("no record '{name}'"));
        let (before, after) = (record(BEFORE)?, record(AFTER)?);
        let grown = |vcpus: bool| {
            let sum = |threads: &[Thread]| {
                let chosen = threads.iter().filter(|thread| is_vcpu(&thread.name) == vcpus);
                chosen.fold((0, 0), |(cpu_ns, sleeps), thread| (cpu_ns + thread.cpu_ns, sleeps + thread.sleeps))
            };
            let (before, after) = (sum(before), sum(after));
            // A thread that has ended took its time with it.
            (u64::saturating_sub(after.0, before.0), u64::saturating_sub(after.1, before.1))
        };
        let threads = after.iter().filter(|thread| is_vcpu(&thread.name)).count();
        ensure!(threads == VCPUS as usize, "{threads} threads of vCPUs among {after:?}");
        let sample = outcome.samples.get(IDLE).context("memory was not looked at")?;
        Ok(Self { private_kib: sample.private_kib, seconds: seconds as f64, vcpus: grown(true), others: grown(false) })
    }

    /// Of a core.
    fn percent(&self, cpu_ns: u64) -> f64 {
        cpu_ns as f64 / 1e9 / self.seconds * 100.0
    }
}

/// Whether a thread is a vCPU's, by the names that ours and qemu's have.
fn is_vcpu(thread: &str) -> bool {
    thread.starts_with("vcpu") || (thread.starts_with("CPU ") && thread.ends_with("/KVM"))
}

/// Runs the rounds and prints a row a figure: median (least to most) of each side.
///
/// # Errors
/// When a run fails, or with `--check` a figure is beyond its limit.
pub fn run(options: &Options) -> anyhow::Result<()> {
    let lab = Lab::prepare(&[Vmm::ZVMM, Vmm::Q35])?;
    println!("guests run {}", lab.place.describe());
    let mut runs = Vec::new();
    for round in 0..options.rounds {
        // In turn, so that nobody is always first.
        for turn in 0..SIDES.len() {
            runs.push(one(options.idle_seconds, (round + turn) % SIDES.len(), round));
        }
    }
    let report = lab.run("bench-zone", (OUTER_CPUS, OUTER_MEMORY_MIB), &Job { runs }, false)?;
    let mut values = vec![vec![Vec::new(); FIGURES.len()]; SIDES.len()];
    for (side, values) in values.iter_mut().enumerate() {
        for round in 0..options.rounds {
            let name = name_of(side, round);
            let found = report.outcomes.iter().find(|outcome| outcome.name == name);
            let outcome = found.filter(|outcome| outcome.failure.is_none());
            let why = || found.and_then(|outcome| outcome.failure.clone()).unwrap_or_else(|| "not run".to_owned());
            let outcome = outcome.with_context(|| format!("{name}: {}; log: {}", why(), report.log.display()))?;
            let idle = Idle::of(outcome, options.idle_seconds).with_context(|| name.clone())?;
            for (values, figure) in values.iter_mut().zip(&FIGURES) {
                values.push((figure.of)(&idle));
            }
        }
        values.iter_mut().for_each(|values| values.sort_by(f64::total_cmp));
    }
    print_table(&values);
    let beyond = beyond_limits(&values);
    beyond.iter().for_each(|line| println!("beyond its limit: {line}"));
    ensure!(!options.check || beyond.is_empty(), "{} figures are beyond their limits", beyond.len());
    Ok(())
}

fn name_of(side: usize, round: usize) -> String {
    format!("{}-{round}", ["zvmm-as-qemu", "q35"][side])
}

/// One guest that boots, does nothing while its VMM is looked at, and powers off.
fn one(idle_seconds: u64, side: usize, round: usize) -> Run {
    let script = if side == 0 { as_qemu() } else { as_q35() };
    let mut run = script
        .limit(240 + idle_seconds)
        .ready()
        .step(Step::Sleep { ms: SETTLE_MS })
        .step(Step::Threads { name: BEFORE.to_owned() })
        .step(Step::Sleep { ms: idle_seconds * 1000 })
        .step(Step::Threads { name: AFTER.to_owned() })
        .sample(IDLE)
        .power_off()
        .finish(&name_of(side, round), if side == 0 { Vmm::ZVMM } else { Vmm::Q35 });
    if side != 0 {
        // Otherwise qemu's threads all have the program's name.
        run.command.extend(["-name", "q35,debug-threads=on"].map(str::to_owned));
    }
    run
}

/// zvmm with the command line that the example's properties come to.
fn as_qemu() -> Script {
    let mut script = Script::new();
    let example = Properties::example();
    for Disk { path, .. } in &example.disks {
        script =
            script.before(&format!("mkdir -p $(dirname {path}) && rm -f {path} && truncate -s {DISK_MIB}M {path}"));
    }
    for nic in &example.nics {
        let link = nic.link;
        script =
            script.before(&format!("tunctl -t {link} && ip link set {link} up")).after(&format!("tunctl -d {link}"));
    }
    let machine = &script.machine;
    let (kernel, initrd, cmdline) = (&machine.kernel, &machine.initrd, &machine.cmdline);
    let properties = Properties {
        ram_mib: MEMORY_MIB,
        vcpus: VCPUS,
        cpu_type: CPU,
        extra: format!("-kernel {kernel} -initrd {initrd} -append '{cmdline}'"),
        ..example
    };
    let words = ["zvmm", "qemu"].map(str::to_owned).into_iter().chain(properties.kvm().into_iter().skip(1));
    let words = words.collect();
    script.before(&format!("rm -f {CONSOLE}")).command(words).console(CONSOLE)
}

/// The control: as much of everything.
fn as_q35() -> Script {
    Script::new().nic().nic().disk(DISK_MIB).disk(DISK_MIB).with(|machine| {
        machine.cpus = VCPUS;
        machine.memory_mib = u64::from(MEMORY_MIB);
    })
}

/// Values by side and figure, sorted.
type Values = [Vec<Vec<f64>>];

fn median(sorted: &[f64]) -> f64 {
    sorted.get(sorted.len() / 2).copied().unwrap_or(f64::NAN)
}

fn print_table(values: &Values) {
    println!("| | {} |", SIDES.join(" | "));
    println!("|---|{}", "---|".repeat(SIDES.len()));
    for (at, figure) in FIGURES.iter().enumerate() {
        let digits = figure.digits;
        let cell = |values: &Vec<Vec<f64>>| {
            let values = &values[at];
            let (least, most) = (values.first().copied(), values.last().copied());
            let (least, most) = (least.unwrap_or(f64::NAN), most.unwrap_or(f64::NAN));
            format!("{:.digits$} ({least:.digits$}–{most:.digits$})", median(values))
        };
        println!("| {} | {} |", figure.name, values.iter().map(cell).collect::<Vec<_>>().join(" | "));
    }
}

/// What is beyond its limit, a line each.
fn beyond_limits(values: &Values) -> Vec<String> {
    let of = |side: usize, figure: usize| median(&values[side][figure]);
    let limits = [
        (PRIVATE, PRIVATE_LIMIT_KIB),
        (OWN_CPU, OWN_CPU_LIMIT_PERCENT),
        (OWN_WAKE_UPS, OWN_WAKE_UPS_LIMIT),
        (ALL_CPU, of(1, ALL_CPU)),
    ];
    let mut lines = Vec::new();
    for (figure, limit) in limits {
        let value = of(0, figure);
        // Written so that a figure nobody measured is beyond its limit, too.
        if !matches!(value.partial_cmp(&limit), Some(std::cmp::Ordering::Less | std::cmp::Ordering::Equal)) {
            lines.push(format!("{}: {value:.3}, limit {limit:.3}", FIGURES[figure].name));
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lab::job::Sample;

    fn thread(name: &str, cpu_ms: u64, sleeps: u64) -> Thread {
        Thread { name: name.to_owned(), cpu_ns: cpu_ms * 1_000_000, sleeps }
    }

    fn outcome(vcpus: [&str; 2]) -> Outcome {
        let mut outcome = Outcome::default();
        let threads = |factor: u64| {
            let vcpus = vcpus.iter().map(|name| thread(name, 20 * factor, 100 * factor));
            vcpus.chain([thread("zvmm", factor, 3 * factor), thread("disk0-q0", 2, 5)]).collect()
        };
        outcome.threads.insert(BEFORE.to_owned(), threads(1));
        outcome.threads.insert(AFTER.to_owned(), threads(11));
        outcome.samples.insert(IDLE.to_owned(), Sample { private_kib: 3000, ..Sample::default() });
        outcome
    }

    #[test]
    fn what_grew_between_the_two_records_is_told_apart_by_whose_thread_it_was() {
        for vcpus in [["vcpu0", "vcpu1"], ["CPU 0/KVM", "CPU 1/KVM"]] {
            let idle = Idle::of(&outcome(vcpus), 10).unwrap();
            let figures = FIGURES.iter().map(|figure| (figure.of)(&idle)).collect::<Vec<_>>();
            let near = |(is, wanted): (&f64, f64)| (is - wanted).abs() < 1e-9;
            assert!(figures.iter().zip([3000.0, 0.1, 3.0, 4.1, 203.0]).all(near), "{figures:?}");
        }
        assert!(Idle::of(&outcome(["vcpu0", "CPU 0"]), 10).is_err(), "a vCPU that is not known as one");
        assert!(Idle::of(&Outcome::default(), 10).is_err());
    }

    #[test]
    fn what_is_too_much_or_not_measured_is_named() {
        let side = |values: [f64; 5]| values.map(|value| vec![value]).to_vec();
        let control = side([90_000.0, 1.0, 50.0, 4.1, 300.0]);
        assert!(beyond_limits(&[side([8192.0, 0.1, 5.0, 4.1, 999.0]), control.clone()]).is_empty());
        assert_eq!(beyond_limits(&[side([8193.0, 0.2, 5.1, 4.2, 0.0]), control.clone()]).len(), 4);
        assert_eq!(beyond_limits(&[vec![Vec::new(); 5], control]).len(), 4);
    }

    #[test]
    fn ours_gets_the_example_s_command_line_with_a_kernel_and_its_console_on_the_socket_there() {
        let run = one(30, 0, 0);
        assert_eq!(run.command[..4], ["zvmm", "qemu", "-m", "512"]);
        assert!(run.command.contains(&format!("socket,id=serial0,path={CONSOLE},server,nowait")));
        assert_eq!(run.console.as_deref(), Some(CONSOLE));
        assert!(run.command.windows(2).any(|pair| pair[0] == "-append" && pair[1].contains("console=ttyS0")));
    }
}
