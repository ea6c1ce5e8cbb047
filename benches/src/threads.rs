//! Threads and where they run: a driver has one CPU, its device's worker and whatever that is compared with the other.

use std::io::{self, Write as _};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use devices::park::Parked;
use devices::wake::Wake;
use devices_host::Event;
use devices_host::thread::bind_current;

use crate::figures::median;

/// The CPU of the driver.
pub const DRIVER_CPU: usize = 0;
/// That of the worker, and of what it is compared with.
pub const WORKER_CPU: usize = 1;

/// Runs `work` on the worker's CPU: what the worker is compared with has its place, and threads that are started run where
/// the one does that starts them. The calling thread has the driver's from then on.
///
/// # Errors
/// When there is no such CPU.
pub fn on_worker_cpu<T>(work: impl FnOnce() -> T) -> io::Result<T> {
    bind_current(&[WORKER_CPU])?;
    let result = work();
    bind_current(&[DRIVER_CPU])?;
    Ok(result)
}

/// One wake-up each way between two threads on the CPUs of driver and worker, by the same calls: µs a round trip, median.
///
/// # Errors
/// When the system has no thread or event left.
pub fn eventfd_round_trip_us(rounds: usize) -> io::Result<f64> {
    let (there, back) = (Arc::new(Event::new()?), Arc::new(Event::new()?));
    let other = on_worker_cpu(|| {
        let (there, back) = (there.clone(), back.clone());
        std::thread::spawn(move || {
            for _ in 0..rounds {
                there.wait();
                back.wake();
            }
        })
    })?;
    let mut times: Vec<f64> = Vec::with_capacity(rounds);
    for _ in 0..rounds {
        let start = Instant::now();
        there.wake();
        back.wait();
        times.push(start.elapsed().as_nanos() as f64 / 1e3);
    }
    other.join().map_err(|_| io::Error::other("a thread panicked"))?;
    Ok(median(&times))
}

/// Runs the calling thread ahead of everything that is not real-time, it and the threads it starts from now on.
///
/// # Errors
/// When the system does not permit it.
pub fn become_realtime() -> io::Result<()> {
    // By field, as musl's has more of them.
    // SAFETY: all bits zero are valid parameters.
    let mut parameters: libc::sched_param = unsafe { std::mem::zeroed() };
    parameters.sched_priority = 10;
    // SAFETY: the parameters live through the call.
    match unsafe { libc::sched_setscheduler(0, libc::SCHED_FIFO, &parameters) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Has no CPU sleep while it is idle, from now on until the process ends (Linux, `Documentation/power/pm_qos_interface.rst`).
/// Where the machine is a guest, how long a CPU that has slept takes to wake is its host's doing and moves by tens of
/// microseconds, more than what is measured.
///
/// # Errors
/// When the system does not permit it.
pub fn keep_cpus_awake() -> io::Result<()> {
    let mut latency = std::fs::File::options().write(true).open("/dev/cpu_dma_latency")?;
    latency.write_all(&0_i32.to_ne_bytes())?;
    // It holds for as long as the file is open.
    std::mem::forget(latency);
    Ok(())
}

/// CPU time of a thread of this process, nanoseconds.
///
/// # Errors
/// When there is no such thread, or the kernel does not say.
pub fn thread_cpu_ns(thread: i32) -> io::Result<u64> {
    let text = std::fs::read_to_string(format!("/proc/self/task/{thread}/schedstat"))?;
    text.split_whitespace().next().and_then(|ns| ns.parse().ok()).ok_or_else(|| io::Error::other("no CPU time"))
}

/// CPU time of the calling thread, nanoseconds.
///
/// # Errors
/// As [`thread_cpu_ns`].
pub fn own_cpu_ns() -> io::Result<u64> {
    // SAFETY: takes nothing.
    thread_cpu_ns(unsafe { libc::gettid() })
}

/// The thread of this process with that name.
///
/// # Errors
/// When there is none.
pub fn thread_named(name: &str) -> io::Result<i32> {
    for entry in std::fs::read_dir("/proc/self/task")? {
        let path = entry?.path();
        if std::fs::read_to_string(path.join("comm")).is_ok_and(|comm| comm.trim_end() == name) {
            let id = path.file_name().and_then(|id| id.to_str()).and_then(|id| id.parse().ok());
            return id.ok_or_else(|| io::Error::other("a thread without a number"));
        }
    }
    Err(io::Error::new(io::ErrorKind::NotFound, format!("no thread `{name}`")))
}

/// As [`thread_named`], of one that was just started: a thread names itself when it runs first.
///
/// # Errors
/// When there is none within five seconds.
pub fn wait_for_thread(name: &str) -> io::Result<i32> {
    let end = Instant::now() + Duration::from_secs(5);
    loop {
        match thread_named(name) {
            Err(error) if error.kind() == io::ErrorKind::NotFound && Instant::now() < end => {
                std::thread::sleep(Duration::from_millis(1));
            }
            result => return result,
        }
    }
}

/// A number that nobody else in this process has.
pub fn next_number() -> u64 {
    static NUMBER: AtomicU64 = AtomicU64::new(0);
    NUMBER.fetch_add(1, Ordering::Relaxed)
}

/// Somebody who waits for others.
pub struct Sleeper(Arc<Waker>);

struct Waker(Event);

impl Sleeper {
    /// One who has not waited for anything yet.
    ///
    /// # Errors
    /// When the process has no descriptors left.
    pub fn new() -> io::Result<Self> {
        Ok(Self(Arc::new(Waker(Event::new()?))))
    }

    /// Sleeps until what the token stands for is complete.
    pub fn wait_for(&self, token: &Parked) {
        token.wake_on_complete(self.0.clone());
        while !token.is_complete() {
            self.0.0.wait();
        }
    }
}

impl Wake for Waker {
    fn wake(&self) {
        self.0.wake();
    }
}
