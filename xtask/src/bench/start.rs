//! Process start to first guest instruction: the guest's first instruction writes a byte to COM1, and the clock stops
//! when that byte arrives on the other end of standard output.

use std::io::Read as _;
use std::process::Command;
use std::time::Instant;

use anyhow::{Context as _, ensure};

use super::{Programs, Running, memory, syscalls};

/// The limits of the project, checked with `--check`.
const OVER_FLOOR_MS: f64 = 1.5;
const IOCTLS: usize = 40;
const SYSCALLS: usize = 150;
const BARE_PSS_KIB: u64 = 2 << 10;
const DEVICES_PSS_KIB: u64 = 4608;
const BINARY_BYTES: u64 = 4 << 20;

/// Guest memory of the second series: what it costs to have more of it.
const LARGE_MIB: u32 = 4096;
const SMALL_MIB: u32 = 128;

/// Options of `cargo xtask bench start`.
#[derive(clap::Args)]
pub struct Options {
    /// Rounds; every round starts every program once, in an order of its own
    #[arg(long, default_value_t = 25)]
    runs: usize,
    /// Measure another command too, words split at spaces; it must print a byte
    #[arg(long, value_name = "NAME=COMMAND")]
    also: Vec<String>,
    /// Run everything ahead of what else the machine does (SCHED_FIFO; needs root)
    #[arg(long)]
    realtime: bool,
    /// Fail when a figure is beyond the project's limit
    #[arg(long)]
    check: bool,
}

/// What is measured, under its name in the table.
struct Contestant {
    name: String,
    command: Vec<String>,
    wall_ms: Vec<f64>,
    cpu_ms: Vec<f64>,
}

pub fn run(options: &Options) -> anyhow::Result<()> {
    let programs = Programs::build()?;
    let mut contestants = contestants(&programs, &options.also)?;
    if options.realtime {
        become_realtime().context("--realtime")?;
    }
    // The first round reads the programs from disk.
    round(&mut contestants, &mut Shuffle::new())?;
    contestants.iter_mut().for_each(|one| (one.wall_ms, one.cpu_ms) = Default::default());
    let mut shuffle = Shuffle::new();
    for _ in 0..options.runs.max(1) {
        round(&mut contestants, &mut shuffle)?;
    }

    println!("exec to first byte, median (min–max) of {} runs in random order:\n", options.runs.max(1));
    println!("| | wall ms | CPU ms | wall over floor, ms | wall ÷ floor |");
    println!("|---|---|---|---|---|");
    let mut beyond = Vec::new();
    for (index, one) in contestants.iter().enumerate() {
        let floor = if one.command.iter().any(|word| word.contains(&LARGE_MIB.to_string())) { 1 } else { 0 };
        let floor = median(&contestants[floor].wall_ms);
        let wall = median(&one.wall_ms);
        let (over, ratio) = if index < 2 {
            ("–".to_owned(), "–".to_owned())
        } else {
            (format!("{:+.2}", wall - floor), format!("{:.2}", wall / floor))
        };
        println!("| {} | {} | {} | {over} | {ratio} |", one.name, spread(&one.wall_ms), spread(&one.cpu_ms));
        if (2..6).contains(&index) && wall - floor > OVER_FLOOR_MS {
            beyond.push(format!("{}: {over} ms over its floor, limit {OVER_FLOOR_MS}", one.name));
        }
    }

    println!("\nsystem calls from exec to the first KVM_RUN:\n");
    for one in &contestants {
        match syscalls::count(&one.command)? {
            None => {
                println!("not counted: strace is not installed");
                break;
            }
            Some(counts) => {
                println!("- {}: {} ioctls of {} system calls", one.name, counts.ioctls, counts.all);
                if one.name.starts_with("zvmm") && (counts.ioctls > IOCTLS || counts.all > SYSCALLS) {
                    beyond.push(format!("{}: limits are {IOCTLS} ioctls, {SYSCALLS} system calls", one.name));
                }
            }
        }
    }

    println!("\nproportional set size outside guest memory:\n");
    let bare = memory::paused(&programs)?;
    println!("- no devices, guest paused: {} ", bare.text());
    let devices = memory::with_devices(&programs)?;
    println!("- disk and network in use, largest of {} samples: {}", devices.samples, devices.text());
    let bytes = std::fs::metadata(&programs.zvmm)?.len();
    println!("\nstripped binary: {bytes} bytes");
    for (what, is, limit) in [
        ("PSS without devices, KiB", bare.pss_kib, BARE_PSS_KIB),
        ("PSS with devices, KiB", devices.pss_kib, DEVICES_PSS_KIB),
        ("binary, bytes", bytes, BINARY_BYTES),
    ] {
        if is > limit {
            beyond.push(format!("{what}: {is}, limit {limit}"));
        }
    }

    for line in &beyond {
        println!("beyond its limit: {line}");
    }
    ensure!(!options.check || beyond.is_empty(), "{} figures are beyond their limits", beyond.len());
    Ok(())
}

/// The two floors first, then zvmm, then what else was asked for.
fn contestants(programs: &Programs, also: &[String]) -> anyhow::Result<Vec<Contestant>> {
    let mut commands = Vec::new();
    for mib in [SMALL_MIB, LARGE_MIB] {
        commands.push((format!("floor, {mib} MiB"), vec![programs.floor.display().to_string(), mib.to_string()]));
    }
    for (profile, mib) in [("i440fx", SMALL_MIB), ("micro", SMALL_MIB), ("i440fx", LARGE_MIB), ("micro", LARGE_MIB)] {
        let command = programs.zvmm("exits", mib, &["--profile", profile]);
        commands.push((format!("zvmm {profile}, {mib} MiB"), command));
    }
    for text in also {
        let (name, command) = text.split_once('=').context("--also: give NAME=COMMAND")?;
        let command: Vec<String> = command.split_whitespace().map(str::to_owned).collect();
        ensure!(!command.is_empty(), "--also {name}: there is no command");
        commands.push((name.to_owned(), command));
    }
    let new = |(name, command)| Contestant { name, command, wall_ms: Vec::new(), cpu_ms: Vec::new() };
    Ok(commands.into_iter().map(new).collect())
}

fn round(contestants: &mut [Contestant], shuffle: &mut Shuffle) -> anyhow::Result<()> {
    for index in shuffle.order(contestants.len()) {
        let one = &mut contestants[index];
        let mut command = Command::new(&one.command[0]);
        command.args(&one.command[1..]);
        let start = Instant::now();
        let mut running = Running::start(&mut command)?;
        let stdout = running.0.stdout.as_mut().context("no standard output")?;
        stdout.read_exact(&mut [0]).with_context(|| format!("{}: printed nothing", one.name))?;
        one.wall_ms.push(start.elapsed().as_secs_f64() * 1e3);
        one.cpu_ms.push(cpu_ms(running.0.id()).with_context(|| format!("{}: ended too early", one.name))?);
    }
    Ok(())
}

/// CPU time of all threads of a process so far. It may have ended, but not been waited for.
fn cpu_ms(pid: u32) -> std::io::Result<f64> {
    let mut clock = 0;
    // SAFETY: `clock` is valid for the result.
    let failed = unsafe { libc::clock_getcpuclockid(pid.cast_signed(), &mut clock) };
    if failed != 0 {
        return Err(std::io::Error::from_raw_os_error(failed));
    }
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `time` is valid for the result.
    if unsafe { libc::clock_gettime(clock, &mut time) } != 0 {
        return Err(std::io::Error::last_os_error());
    }
    Ok(time.tv_sec as f64 * 1e3 + time.tv_nsec as f64 / 1e6)
}

/// Children inherit it.
fn become_realtime() -> std::io::Result<()> {
    let parameters = libc::sched_param { sched_priority: 10 };
    // SAFETY: the parameters live through the call.
    if unsafe { libc::sched_setscheduler(0, libc::SCHED_FIFO, &parameters) } != 0 {
        return Err(std::io::Error::last_os_error());
    }
    Ok(())
}

/// Random orders (xorshift64, seeded by the clock): a fixed one would give each program the same predecessor, whose
/// end the kernel is still busy with.
struct Shuffle(u64);

impl Shuffle {
    fn new() -> Self {
        let now = std::time::UNIX_EPOCH.elapsed().map_or(1, |time| time.as_nanos() as u64);
        Self(now | 1)
    }

    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % bound as u64) as usize
    }

    fn order(&mut self, count: usize) -> Vec<usize> {
        let mut order: Vec<usize> = (0..count).collect();
        for last in (1..count).rev() {
            order.swap(last, self.below(last + 1));
        }
        order
    }
}

fn sorted(values: &[f64]) -> Vec<f64> {
    let mut values = values.to_vec();
    values.sort_by(f64::total_cmp);
    values
}

fn median(values: &[f64]) -> f64 {
    sorted(values).get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

fn spread(values: &[f64]) -> String {
    let sorted = sorted(values);
    let (first, last) = (sorted.first().copied().unwrap_or(f64::NAN), sorted.last().copied().unwrap_or(f64::NAN));
    format!("{:.2} ({first:.2}–{last:.2})", median(values))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_order_names_everyone_once_and_changes() {
        let mut shuffle = Shuffle::new();
        let orders: Vec<_> = (0..64).map(|_| shuffle.order(6)).collect();
        for order in &orders {
            let mut order = order.clone();
            order.sort_unstable();
            assert_eq!(order, [0, 1, 2, 3, 4, 5]);
        }
        assert!(orders.iter().any(|order| *order != orders[0]));
    }

    #[test]
    fn a_median_does_not_care_for_order_or_outliers() {
        assert_eq!(median(&[900.0, 2.0, 1.0]), 2.0);
        assert_eq!(spread(&[3.0, 1.0, 2.0]), "2.00 (1.00–3.00)");
    }
}
