//! The guest's side: a driver's thread, whoever serves its queue.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use devices::GuestRam;
use devices::virtio::QueueState;
use devices_host::Event;

use super::{Driver, Load, Offsets};

/// What one run took.
#[derive(Clone, Debug, Default)]
pub struct Times {
    /// Requests completed.
    pub requests: u64,
    /// From the first to the last.
    pub elapsed: Duration,
    /// Each request's time, with one in flight.
    pub latencies_ns: Vec<u32>,
}

impl Times {
    /// Requests a second.
    #[must_use]
    pub fn iops(&self) -> f64 {
        self.requests as f64 / self.elapsed.as_secs_f64()
    }

    /// Median time of a request, µs; `NaN` with more than one in flight.
    #[must_use]
    pub fn latency_us(&self) -> f64 {
        let mut latencies = self.latencies_ns.clone();
        latencies.sort_unstable();
        latencies.get(latencies.len() / 2).map_or(f64::NAN, |&ns| f64::from(ns) / 1e3)
    }
}

/// A driver with the two events between it and its device.
pub(super) struct Guest {
    driver: Driver,
    offsets: Offsets,
    depth: usize,
    kick: Arc<Event>,
    interrupt: Arc<Event>,
    halt_poll: Duration,
}

impl Guest {
    /// One whose device is not started yet. The memory is [`Driver::memory`]'s; `halt_poll` is how long its CPU looks for
    /// a completion before it sleeps. KVM looks for an interrupt so, which is the next thing a device does: only the used
    /// ring can be looked at in the same way with a device in this process and in another.
    pub fn new(mem: GuestRam, load: &Load, disk_bytes: u64, kick: Arc<Event>, halt_poll: Duration) -> io::Result<Self> {
        Ok(Self {
            driver: Driver::new(mem, load),
            offsets: Offsets::new(load, disk_bytes),
            depth: load.depth,
            kick,
            interrupt: Arc::new(Event::new()?),
            halt_poll,
        })
    }

    /// What the device is told about the queue.
    pub fn queue(&self) -> QueueState {
        self.driver.state()
    }

    /// What the device signals where the driver wants an interrupt.
    pub fn interrupt(&self) -> Arc<Event> {
        self.interrupt.clone()
    }

    /// Has requests done for `time`.
    pub fn run(&mut self, time: Duration) -> Times {
        let end = Instant::now() + time;
        self.run_while(|_| Instant::now() < end)
    }

    /// Has requests done until they are so many.
    pub fn run_count(&mut self, count: u64) -> Times {
        self.run_while(|done| done < count)
    }

    /// Fills the queue once; what its first request moved goes to `into`, and its place on the disk is returned.
    pub fn move_first(&mut self, into: &mut [u8]) -> u64 {
        let offset_bytes = self.offsets.clone().take();
        self.run_count(1);
        self.driver.data(0, into);
        offset_bytes
    }

    fn run_while(&mut self, mut more: impl FnMut(u64) -> bool) -> Times {
        let mut times = Times::default();
        let mut free: Vec<u16> = (0..self.depth as u16).collect();
        let mut in_flight = 0;
        let single = self.depth == 1;
        let start = Instant::now();
        let mut began = start;
        loop {
            if !free.is_empty() && more(times.requests) {
                if single {
                    began = Instant::now();
                }
                for slot in free.drain(..) {
                    self.driver.post(slot, self.offsets.take());
                    in_flight += 1;
                }
                if self.driver.ring().publish() {
                    self.kick.wake();
                }
            }
            if in_flight == 0 {
                break;
            }
            let before = free.len();
            self.driver.collect(|slot| free.push(slot));
            let done = free.len() - before;
            if done == 0 {
                self.driver.ring().wait(&self.interrupt, self.halt_poll);
                continue;
            }
            in_flight -= done;
            times.requests += done as u64;
            if single {
                times.latencies_ns.push(began.elapsed().as_nanos() as u32);
            }
        }
        times.elapsed = start.elapsed();
        times
    }

    /// Fills the queue with requests that nobody waits for.
    pub fn fill(&mut self) {
        for slot in 0..self.depth as u16 {
            self.driver.post(slot, self.offsets.take());
        }
        if self.driver.ring().publish() {
            self.kick.wake();
        }
    }

    /// Starts over after a reset of the device.
    pub fn reset(&mut self) {
        self.driver.ring().reset();
        self.interrupt.clear();
    }
}
