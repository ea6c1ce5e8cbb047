//! Exits, memory and CPU time of a VMM process.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::Context as _;
use zvmm_zone::memory::Memory;

use crate::job::{Sample, Thread};

/// Reads `/proc/PID` and KVM's debugfs folder.
///
/// # Errors
/// When the process is gone.
pub fn take(pid: u32, start: Instant) -> anyhow::Result<Sample> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).context("the VMM is gone")?;
    // The second field may hold blanks; it ends with the last parenthesis.
    let fields: Vec<u64> = stat
        .rsplit_once(')')
        .map(|(_, rest)| rest.split_whitespace().map(|f| f.parse().unwrap_or(0)).collect())
        .unwrap_or_default();
    let field = |n: usize| fields.get(n - 3).copied().unwrap_or(0);
    // proc(5): 14 utime and 15 stime in ticks of 1/100 s, 20 num_threads.
    let mut sample = Sample {
        at_ms: u64::try_from(start.elapsed().as_millis())?,
        cpu_ms: (field(14) + field(15)) * 10,
        threads: field(20),
        ..Sample::default()
    };
    let memory = Memory::of(pid)?;
    sample.private_kib = memory.private_kib;
    sample.pss_kib = memory.proportional_kib;
    sample.guest_kib = memory.guest_kib;
    // The folder carries the id of the thread that created the VM, which need not be the first.
    let threads: Vec<String> = fs::read_dir(format!("/proc/{pid}/task"))?
        .flatten()
        .map(|entry| format!("{}-", entry.file_name().to_string_lossy()))
        .collect();
    for folder in fs::read_dir("/sys/kernel/debug/kvm").into_iter().flatten().flatten() {
        let name = folder.file_name().to_string_lossy().into_owned();
        if !threads.iter().any(|thread| name.starts_with(thread)) {
            continue;
        }
        for file in fs::read_dir(folder.path()).into_iter().flatten().flatten() {
            let value = fs::read_to_string(file.path()).ok().and_then(|v| v.trim().parse::<u64>().ok());
            if let Some(value) = value {
                *sample.kvm.entry(file.file_name().to_string_lossy().into_owned()).or_default() += value;
            }
        }
    }
    Ok(sample)
}

/// What each thread of a process has had of the host's CPUs. One that ends while it is looked at is left out.
///
/// # Errors
/// When the process is gone, or the kernel does not count.
pub fn shares(pid: u32) -> anyhow::Result<Vec<Thread>> {
    let mut threads = Vec::new();
    for task in fs::read_dir(format!("/proc/{pid}/task")).context("the VMM is gone")? {
        let task = task?.path();
        match share(&task) {
            Ok(thread) => threads.push(thread),
            Err(_) if !task.exists() => {}
            Err(error) => return Err(error),
        }
    }
    Ok(threads)
}

/// What a thread has had, by its folder in `/proc`.
fn share(task: &Path) -> anyhow::Result<Thread> {
    let text = |name: &str| fs::read_to_string(task.join(name)).with_context(|| format!("{name} of a thread"));
    // Nanoseconds on a CPU, nanoseconds of waiting for one, and turns.
    let cpu_ns = text("schedstat")?.split_whitespace().next().and_then(|ns| ns.parse().ok());
    let status = text("status")?;
    let sleeps = status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
    Ok(Thread {
        name: text("comm")?.trim().to_owned(),
        cpu_ns: cpu_ns.context("no CPU time of a thread")?,
        sleeps: sleeps.and_then(|count| count.trim().parse().ok()).context("no count of a thread's sleeps")?,
    })
}

/// A line a thread of a process: its name, state, CPU time in ticks, and where it sleeps in the kernel.
pub fn threads(pid: u32) -> Vec<String> {
    let Ok(tasks) = fs::read_dir(format!("/proc/{pid}/task")) else { return Vec::new() };
    let text = |task: &Path, name: &str| fs::read_to_string(task.join(name)).unwrap_or_default().trim().to_owned();
    let describe = |task: PathBuf| {
        let stat = text(&task, "stat");
        // The name, in parentheses, may hold anything.
        let (_, fields) = stat.rsplit_once(')').unwrap_or_default();
        let field = |n: usize| fields.split_whitespace().nth(n).unwrap_or("?").to_owned();
        let (state, user, system) = (field(0), field(11), field(12));
        let (name, wchan, call) = (text(&task, "comm"), text(&task, "wchan"), text(&task, "syscall"));
        format!("{name}: {state}, {user} + {system} ticks, in {wchan}, system call {call}")
    };
    tasks.flatten().map(|task| describe(task.path())).collect()
}
