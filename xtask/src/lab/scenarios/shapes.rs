//! Numbers of vCPUs and sizes of memory.

use std::collections::BTreeSet;

use anyhow::{Context as _, ensure};

use super::super::content::at;
use super::script::BOOT_S;
use super::{Scenario, Script, output};

/// vCPUs, and their sockets, cores a socket and threads a core when these are asked for. No core has two threads: the
/// emulated AMD CPU lacks TOPOEXT, without which an AMD guest knows no threads (the VMX lab shows them).
const TOPOLOGIES: [(u32, Option<[u32; 3]>); 4] = [(1, None), (2, None), (4, Some([2, 2, 1])), (16, Some([2, 8, 1]))];

/// Needs the initial RAM file system with that program.
pub const LSCPU: &str = "lscpu";
const ONLINE: &str = "cat /sys/devices/system/cpu/online";
const TOPOLOGY: &str = "for c in /sys/devices/system/cpu/cpu[0-9]*; do \
    echo ${c##*cpu} $(cat $c/topology/physical_package_id $c/topology/core_id $c/topology/thread_siblings_list); done";

/// The scenarios of this file.
pub fn all() -> Vec<Scenario> {
    let mut list: Vec<Scenario> = TOPOLOGIES.map(|(cpus, topology)| vcpus(cpus, topology)).into();
    list.extend([128, 512, 5120].map(memory));
    list.push(low_split());
    list
}

fn vcpus(cpus: u32, topology: Option<[u32; 3]>) -> Scenario {
    // The default: one socket of cores with one thread each.
    let [sockets, cores, threads] = topology.unwrap_or([1, cpus, 1]);
    Scenario::new(
        format!("vcpus-{cpus}"),
        format!("{cpus} vCPUs are online: sockets {sockets}, cores each {cores}, threads each {threads}"),
        move |_| {
            Script::new()
                .with(|machine| {
                    machine.cpus = cpus;
                    machine.topology = topology;
                    machine.initrd = at::initrd_with_lscpu();
                })
                .limit(60 + BOOT_S + 10 * u64::from(cpus))
                .ready_within(BOOT_S + 8 * u64::from(cpus))
                .guest("nproc")
                .guest(ONLINE)
                .guest(TOPOLOGY)
                .guest(LSCPU)
                .power_off()
        },
        move |outcome, _| {
            let online: u32 = output(outcome, "nproc")?.trim().parse()?;
            ensure!(online == cpus, "{online} of {cpus} vCPUs are online");
            shows_topology(output(outcome, LSCPU)?, [sockets, cores, threads])?;
            siblings(output(outcome, TOPOLOGY)?, sockets * cores, threads)
        },
    )
}

/// Checks what `lscpu` printed: so many sockets, cores each, threads each.
pub fn shows_topology(lscpu: &str, [sockets, cores, threads]: [u32; 3]) -> anyhow::Result<()> {
    let said = Lscpu::parse(lscpu)?;
    let wanted = Lscpu { cpus: sockets * cores * threads, sockets, cores, threads };
    ensure!(said == wanted, "lscpu shows {said:?}, not {wanted:?}");
    Ok(())
}

/// What `lscpu` says about the topology.
#[derive(Debug, PartialEq, Eq)]
struct Lscpu {
    cpus: u32,
    sockets: u32,
    cores: u32,
    threads: u32,
}

impl Lscpu {
    fn parse(text: &str) -> anyhow::Result<Self> {
        let number = |name: &str| -> anyhow::Result<u32> {
            text.lines()
                .find_map(|line| line.trim().strip_prefix(name)?.strip_prefix(':')?.trim().parse().ok())
                .with_context(|| format!("lscpu says no number for `{name}`: {text}"))
        };
        Ok(Self {
            cpus: number("CPU(s)")?,
            sockets: number("Socket(s)")?,
            cores: number("Core(s) per socket")?,
            threads: number("Thread(s) per core")?,
        })
    }
}

/// Checks lines of `vCPU package core siblings`: so many cores, each shared by so many neighbours.
fn siblings(text: &str, cores: u32, threads: u32) -> anyhow::Result<()> {
    let mut seen = BTreeSet::new();
    for line in text.lines().filter(|line| !line.trim().is_empty()) {
        let words: Vec<&str> = line.split_whitespace().collect();
        let [cpu, package, core, siblings] = words[..] else {
            anyhow::bail!("no topology in `{line}`");
        };
        let cpu: u32 = cpu.parse().with_context(|| format!("no vCPU in `{line}`"))?;
        let first = cpu / threads * threads;
        let wanted = if threads == 1 { cpu.to_string() } else { format!("{first}-{}", first + threads - 1) };
        // The kernel writes a list of two neighbours either way.
        let same = siblings == wanted || siblings == wanted.replace('-', ",");
        ensure!(same, "vCPU {cpu} shares its core with {siblings}, not with {wanted}");
        seen.insert((package.to_owned(), core.to_owned()));
    }
    ensure!(seen.len() == cores as usize, "{} cores, not {cores}", seen.len());
    Ok(())
}

const MEMINFO: &str = "cat /proc/meminfo";
const IOMEM: &str = "cat /proc/iomem";

fn memory(mib: u64) -> Scenario {
    let mut scenario = Scenario::new(
        format!("memory-{mib}"),
        format!("a guest of {mib} MiB finds its memory"),
        move |_| {
            // illumos KVM wants memory touched page by page before the start: up to 30 ms a MiB under emulation.
            Script::new()
                .with(|machine| machine.memory_mib = mib)
                .limit(90 + BOOT_S + mib / 32)
                .ready_within(BOOT_S + mib / 32)
                .guest(MEMINFO)
                .guest(IOMEM)
                .power_off()
        },
        move |outcome, _| found_memory(output(outcome, MEMINFO)?, mib, 0),
    );
    // More memory than the host has is refused; only what is touched is ever taken from the machine.
    scenario.outer_memory_mib = scenario.outer_memory_mib.max(mib + 1024);
    scenario
}

fn found_memory(meminfo: &str, mib: u64, set_aside_mib: u64) -> anyhow::Result<()> {
    let total_kib: u64 = meminfo
        .lines()
        .find_map(|line| line.strip_prefix("MemTotal:"))
        .and_then(|rest| rest.split_whitespace().next())
        .context("no MemTotal")?
        .parse()?;
    // The kernel's own text and tables are not counted: about 50 MiB and 1/32 of the rest.
    let total = total_kib / 1024;
    ensure!(total <= mib && total + 56 + mib / 32 + set_aside_mib >= mib, "the guest of {mib} MiB sees {total} MiB");
    Ok(())
}

const LOW_MIB: u64 = 128;
const SPLIT_MIB: u64 = 448;
/// What Linux sets aside for devices of 32 bits as soon as there is memory above 4 GiB (`swiotlb=`).
const BOUNCE_BUFFERS_MIB: u64 = 64;
/// Fills memory, and reads it back. Linux takes what programs use from above 4 GiB first.
const FILL: &str = "lab-peer pattern /tmp/filled 67108864";

/// Memory above 4 GiB without gigabytes of it.
fn low_split() -> Scenario {
    Scenario::new(
        "memory-split",
        format!("a guest of {SPLIT_MIB} MiB has {LOW_MIB} of them below 4 GiB, and uses the rest"),
        |_| {
            Script::new()
                .with(|machine| {
                    machine.memory_mib = SPLIT_MIB;
                    machine.low_split_mib = Some(LOW_MIB);
                })
                .ready()
                .guest(MEMINFO)
                .guest(IOMEM)
                .guest_within(FILL, 60)
                .power_off()
        },
        |outcome, _| {
            found_memory(output(outcome, MEMINFO)?, SPLIT_MIB, BOUNCE_BUFFERS_MIB)?;
            ensure!(output(outcome, FILL)?.contains("as it was written"), "the memory was not filled");
            let high = high_memory(output(outcome, IOMEM)?);
            let wanted = (SPLIT_MIB - LOW_MIB) << 20;
            ensure!(high == wanted, "{high:#x} bytes of memory above 4 GiB, not {wanted:#x}");
            Ok(())
        },
    )
}

/// Bytes of memory above 4 GiB in `/proc/iomem`.
fn high_memory(iomem: &str) -> u64 {
    let hex = |text: &str| u64::from_str_radix(text, 16).ok();
    iomem
        .lines()
        .filter_map(|line| line.strip_suffix(" : System RAM")?.trim().split_once('-'))
        .filter_map(|(start, end)| Some((hex(start)?, hex(end)?)))
        .filter(|(start, _)| *start >= 1 << 32)
        .map(|(start, end)| end + 1 - start)
        .sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    const SAID: &str = "Architecture:                x86_64\n  CPU op-mode(s):            32-bit, 64-bit\n\
        CPU(s):                      4\n  On-line CPU(s) list:       0-3\n    Thread(s) per core:      2\n    \
        Core(s) per socket:      1\n    Socket(s):               2\nNUMA node0 CPU(s):         0-3\n";

    #[test]
    fn what_lscpu_says_is_read_whatever_its_indentation() {
        assert_eq!(Lscpu::parse(SAID).unwrap(), Lscpu { cpus: 4, sockets: 2, cores: 1, threads: 2 });
    }

    #[test]
    fn an_lscpu_without_one_of_the_four_numbers_is_refused() {
        for missing in ["CPU(s):  ", "Thread(s)", "Core(s)", "Socket(s)"] {
            let text = SAID.lines().filter(|line| !line.trim().starts_with(missing)).collect::<Vec<_>>().join("\n");
            assert!(Lscpu::parse(&text).is_err(), "without {missing}");
        }
        assert!(Lscpu::parse(&SAID.replace("Socket(s):               2", "Socket(s):  -")).is_err());
    }

    #[test]
    fn threads_that_share_no_core_and_cores_that_are_shared_are_told() {
        assert!(siblings("0 0 0 0-1\n1 0 0 0-1\n2 1 0 2-3\n3 1 0 2-3\n", 2, 2).is_ok());
        assert!(siblings("0 0 0 0\n1 0 1 1\n", 2, 1).is_ok());
        assert!(siblings("0 0 0 0\n1 0 1 1\n", 1, 2).is_err(), "no thread shares");
        assert!(siblings("0 0 0 0-1\n1 0 0 0-1\n", 2, 1).is_err(), "both are one core");
        assert!(siblings("0 0 0 0\n1 0 0 1\n", 2, 1).is_err(), "one name for two cores");
        assert!(siblings("", 1, 1).is_err());
    }

    #[test]
    fn only_memory_above_4_gib_counts_as_such() {
        let text = "00001000-0009fbff : System RAM\n00100000-0fffffff : System RAM\n  01000000-01ffffff : Kernel code\n\
            100000000-117ffffff : System RAM\n";
        assert_eq!(high_memory(text), 0x1800_0000);
        assert_eq!(high_memory("00001000-0009fbff : System RAM\n"), 0);
    }
}
