//! What the process needs besides the guest's memory.

use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt as _;
use std::process::Command;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use zvmm_zone::memory::Memory;

use super::{Programs, Running};
use crate::paths;

/// The tests' network of one process: a TAP device whose other end is the kernel.
#[path = "../../../vmm/tests/p0/tap.rs"]
mod tap;

/// Enough for the guest's memory to be known by its size.
const MEMORY_MIB: u32 = 256;
const LIMIT: Duration = Duration::from_secs(20);

/// When zvmm has long given back what of its program only the start needs.
const SETTLES: Duration = Duration::from_millis(500);

/// Memory of the process outside guest RAM, in KiB.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Footprint {
    /// Proportional set size.
    pub pss_kib: u64,
    /// The part of it that has been written.
    pub anonymous_kib: u64,
    pub threads: u64,
    pub samples: usize,
}

impl Footprint {
    pub fn text(&self) -> String {
        let Self { pss_kib, anonymous_kib, threads, .. } = self;
        format!("{pss_kib} KiB, {anonymous_kib} KiB of it written, the rest of files; {threads} threads")
    }
}

/// The `micro` profile without devices, held by QMP `stop` after its guest has run.
pub fn paused(programs: &Programs) -> anyhow::Result<Footprint> {
    let socket = paths::target().join("bench.qmp");
    let path = socket.display().to_string();
    let words = programs.zvmm("exits", MEMORY_MIB, &["--profile", "micro", "--qmp", &path]);
    let mut running = Running::start(Command::new(&words[0]).args(&words[1..]))?;
    let mut stdout = running.0.stdout.take().context("no standard output")?;
    stdout.read_exact(&mut [0]).context("the guest printed nothing")?;
    // The guest goes on printing: a full pipe would hold its bytes back in zvmm, in memory that is not zvmm's own.
    std::thread::spawn(move || std::io::copy(&mut stdout, &mut std::io::sink()));

    let mut qmp = UnixStream::connect(&socket).context("cannot connect to QMP")?;
    qmp.set_read_timeout(Some(LIMIT))?;
    let mut answers = BufReader::new(qmp.try_clone()?).lines();
    qmp.write_all(b"{\"execute\":\"qmp_capabilities\"}\n{\"execute\":\"stop\"}\n")?;
    loop {
        let line = answers.next().context("QMP ended")??;
        if line.contains("\"STOP\"") {
            break;
        }
    }
    sleep(SETTLES);
    sample(running.0.id())?.context("the process is gone")
}

/// A disk and a network interface that a guest's driver uses: the largest of many looks at the running process.
pub fn with_devices(programs: &Programs) -> anyhow::Result<Footprint> {
    let disk = paths::target().join("bench.img");
    fs::File::create(&disk)?.set_len(16 << 20)?;
    let disk = disk.display().to_string();
    let net = format!("tap={},mac=52:54:00:12:34:56", tap::NAME);
    let cmdline = format!("expect=blk,net arp={} ip=192.0.2.2", tap::HOST_ADDRESS);
    let more = [["--profile", "i440fx"], ["--disk", &disk], ["--net", &net], ["--cmdline", &cmdline]];
    let words = programs.zvmm("virtio", MEMORY_MIB, more.as_flattened());
    let mut command = Command::new(&words[0]);
    // SAFETY: between fork and exec `tap::enter` makes system calls only: no allocation, no lock.
    unsafe { command.args(&words[1..]).pre_exec(tap::enter) };
    let mut running = Running::start(&mut command)?;
    let mut largest = Footprint::default();
    let mut samples = 0;
    let end = Instant::now() + LIMIT;
    while running.0.try_wait()?.is_none() {
        ensure!(Instant::now() < end, "the guest does not end");
        if let Some(now) = sample(running.0.id())?
            && now.threads > 0
        {
            samples += 1;
            if now.pss_kib > largest.pss_kib {
                largest = now;
            }
        }
        sleep(Duration::from_micros(500));
    }
    let mut output = String::new();
    running.0.stdout.take().context("no standard output")?.read_to_string(&mut output)?;
    ensure!(output.contains("PASS net") && samples > 0, "the guest did not use its devices: {output}");
    Ok(Footprint { samples, ..largest })
}

/// Looks at a process; `None` when it has ended, or is not zvmm with a guest that has run yet.
fn sample(pid: u32) -> anyhow::Result<Option<Footprint>> {
    let (Ok(memory), Ok(status)) = (Memory::of(pid), fs::read_to_string(format!("/proc/{pid}/status"))) else {
        return Ok(None);
    };
    let threads = status.lines().find_map(|line| line.strip_prefix("Threads:")).and_then(|n| n.trim().parse().ok());
    let (pss_kib, anonymous_kib) = (memory.proportional_kib, memory.anonymous_kib);
    let found = Footprint { pss_kib, anonymous_kib, threads: threads.unwrap_or(0), samples: 0 };
    Ok((memory.guest_kib > 0).then_some(found))
}
