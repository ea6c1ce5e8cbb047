//! zvmm's own way from a driver's ring to a file and back: queue worker in its thread, engine, real wake-ups.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use devices::GuestRam;
use devices::park::Parked;
use devices::virtio::blk::{BlkBackend, BlkConfig, BlkDevice, BlkError, BlkRequest, RequestToken, SECTOR_BYTES};
use devices::virtio::counters::{QueueCounters, QueueCountersSnapshot};
use devices::virtio::{Activation, NeedsReset, QueueRunner, VirtioInterrupt};
use devices_host::Event;
use devices_host::clock::monotonic_ns;
use devices_host::disk::Disk;
use devices_host::engine::{Engine, EngineOptions, Kind};
use devices_host::ram::{RamOptions, allocate};
use devices_host::thread::bind_current;
use zvmm::machine::{EngineDisk, disk_round_bytes};
use zvmm::worker::{DeviceWorkers, Rings, WorkerSpec};

use super::guest::Guest;
use super::{Driver, Load, Times};
use crate::threads::{DRIVER_CPU, Sleeper, WORKER_CPU, next_number, wait_for_thread};

/// How a stack is built.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EngineShape {
    /// Who does the work.
    pub kind: Kind,
    /// Take the time of what the worker does to a request, which costs time itself.
    pub timed: bool,
    /// How long the driver's CPU looks for a completion before it sleeps. KVM does so for a vCPU that halts (its parameter
    /// `halt_poll_ns`, 200 µs by default).
    pub halt_poll: Duration,
    /// How long the worker looks for a request before it sleeps, at most.
    pub poll: Duration,
}

impl EngineShape {
    /// One whose threads sleep as soon as there is nothing to do, and take no times.
    #[must_use]
    pub fn sleeping(kind: Kind) -> Self {
        Self { kind, timed: false, halt_poll: Duration::ZERO, poll: Duration::ZERO }
    }
}

/// A running disk with its driver.
pub struct Stack {
    workers: Arc<DeviceWorkers>,
    guest: Guest,
    interrupt: Arc<Interrupt>,
    counters: Arc<QueueCounters>,
    clock: Arc<WorkerClock>,
    mem: GuestRam,
    /// The worker's thread.
    pub worker_thread: i32,
}

impl Stack {
    /// Starts one on a disk that was opened for the load. The calling thread may run on the driver's CPU only from now on.
    ///
    /// # Errors
    /// When a thread or engine cannot be started, or there is no memory.
    pub fn start(disk: Arc<Disk>, load: &Load, shape: EngineShape) -> io::Result<Self> {
        let disk_bytes = disk.size_bytes();
        let mem = allocate(&Driver::memory(load), &RamOptions::default()).map_err(io::Error::other)?;
        let config =
            BlkConfig { capacity_sectors: disk_bytes / SECTOR_BYTES, read_only: !load.writes, ..BlkConfig::default() };
        let is_direct = disk.alignment().is_some();
        // As the machine starts a disk of one queue.
        let options = EngineOptions {
            threads: 8,
            depth: usize::from(config.queue_size),
            inline_single: true,
            cpus: vec![DRIVER_CPU, WORKER_CPU],
            kind: shape.kind,
            ..EngineOptions::default()
        };
        let wake = Arc::new(Event::new()?);
        // A worker's thread runs where the one that starts it does. Those of the engine take what is free.
        let engine = Engine::start("disk0-q0", disk, Arc::new(mem.clone()), wake.clone(), &options)?;
        bind_current(&[WORKER_CPU])?;
        let counters = Arc::new(QueueCounters::default());
        let clock = Arc::new(WorkerClock::default());
        let backend =
            Timed { disk: EngineDisk(engine), clock: clock.clone(), timed: shape.timed, popping: None.into() };
        let poll_ns = shape.poll.as_nanos() as u64;
        let worker = BlkDevice::new(config).worker(0, backend, counters.clone());
        let worker = Box::new(worker.with_round_bytes(disk_round_bytes(shape.kind, poll_ns, is_direct)));
        let name = format!("worker-{}", next_number());
        let spec = WorkerSpec {
            name: name.clone(),
            worker,
            wake: wake.clone(),
            backend_fd: None,
            counters: vec![counters.clone()],
            poll_ns,
        };
        let workers = DeviceWorkers::spawn(&mem, Rings::default(), vec![spec])?;
        bind_current(&[DRIVER_CPU])?;
        let worker_thread = wait_for_thread(&name)?;
        let guest = Guest::new(mem.clone(), load, disk_bytes, wake, shape.halt_poll)?;
        let interrupt = Arc::new(Interrupt { event: guest.interrupt(), clock: clock.clone() });
        let stack = Self { workers, guest, interrupt, counters, clock, mem, worker_thread };
        stack.activate();
        Ok(stack)
    }

    fn activate(&self) {
        self.workers.start(Activation {
            features: Driver::FEATURES,
            legacy: false,
            queues: vec![(0, self.guest.queue())],
            interrupt: self.interrupt.clone(),
        });
    }

    /// Has requests done for `time`.
    pub fn run(&mut self, time: Duration) -> Times {
        self.guest.run(time)
    }

    /// Has requests done until they are so many.
    pub fn run_count(&mut self, count: u64) -> Times {
        self.guest.run_count(count)
    }

    /// Fills the queue, resets the device while its requests are under way, and starts it again. Returns how long the
    /// writing vCPU would be parked, and how long the call itself kept it, that is: any lock it holds.
    pub fn reset_under_load(&mut self) -> (Duration, Duration) {
        self.guest.fill();
        // Until the engine has them, or some of them.
        let chains = self.counters.chains.get();
        while self.counters.chains.get() == chains {
            std::hint::spin_loop();
        }
        let sleeper = Sleeper::new().expect("an event");
        let token = Parked::new();
        let start = Instant::now();
        self.workers.reset(token.clone());
        let call = start.elapsed();
        sleeper.wait_for(&token);
        let parked = start.elapsed();
        self.guest.reset();
        self.activate();
        (parked, call)
    }

    /// The memory its driver has.
    #[must_use]
    pub fn mem(&self) -> GuestRam {
        self.mem.clone()
    }

    /// The queue's counters.
    #[must_use]
    pub fn counters(&self) -> QueueCountersSnapshot {
        self.counters.snapshot()
    }

    /// Rounds of the worker so far in which it looked for requests.
    #[must_use]
    pub fn rounds(&self) -> u64 {
        self.clock.rounds.load(Ordering::Relaxed)
    }

    /// Mean time of the worker from taking a request to its submission, and from its completion to the used ring, µs;
    /// where it was to be taken.
    #[must_use]
    pub fn worker_times_us(&self) -> [f64; 2] {
        let mean = |[sum, count]: [&AtomicU64; 2]| {
            sum.load(Ordering::Relaxed) as f64 / count.load(Ordering::Relaxed) as f64 / 1e3
        };
        let WorkerClock { submit_ns, submits, complete_ns, completes, .. } = &*self.clock;
        [mean([submit_ns, submits]), mean([complete_ns, completes])]
    }
}

impl Drop for Stack {
    fn drop(&mut self) {
        self.workers.join();
    }
}

/// An interrupt as KVM takes it: one write to an eventfd.
struct Interrupt {
    event: Arc<Event>,
    clock: Arc<WorkerClock>,
}

impl VirtioInterrupt for Interrupt {
    fn queue_used(&self, _queue: u16) {
        self.clock.end_of_work();
        self.event.wake();
    }

    fn config_changed(&self) {}

    fn needs_reset(&self, why: &NeedsReset) {
        panic!("the device refused its driver: {}", why.reason);
    }
}

/// What the worker has spent on requests. Its thread alone writes it.
#[derive(Default)]
struct WorkerClock {
    rounds: AtomicU64,
    submit_ns: AtomicU64,
    submits: AtomicU64,
    complete_ns: AtomicU64,
    completes: AtomicU64,
    /// When the disk last reported completions, and how many; 0 where the worker is done with them.
    reported_ns: AtomicU64,
    reported: AtomicU64,
}

impl WorkerClock {
    /// The disk has reported completions, and the worker begins to return them.
    fn begin_of_work(&self, reported: u64) {
        self.reported.store(reported, Ordering::Relaxed);
        self.reported_ns.store(if reported > 0 { monotonic_ns() } else { 0 }, Ordering::Relaxed);
    }

    /// The worker has returned them: it shows them to the driver, or asks the disk for something else.
    fn end_of_work(&self) {
        let began = self.reported_ns.load(Ordering::Relaxed);
        if began > 0 {
            self.reported_ns.store(0, Ordering::Relaxed);
            self.complete_ns.fetch_add(monotonic_ns() - began, Ordering::Relaxed);
            self.completes.fetch_add(self.reported.load(Ordering::Relaxed), Ordering::Relaxed);
        }
    }
}

/// A back end that takes the time around what the worker does: from asking for room, which comes before taking a chain, to
/// the chain's submission; and from the report of completions to the next thing that the worker asks of anybody.
struct Timed<B> {
    disk: B,
    clock: Arc<WorkerClock>,
    timed: bool,
    popping: std::cell::Cell<Option<Instant>>,
}

// Inlined: where no times are taken, the disk is to cost what it does without this.
impl<B: BlkBackend<GuestRam>> BlkBackend<GuestRam> for Timed<B> {
    #[inline(always)]
    fn has_room(&self) -> bool {
        if self.timed {
            self.clock.end_of_work();
            self.popping.set(Some(Instant::now()));
        }
        self.disk.has_room()
    }

    #[inline(always)]
    fn submit(&mut self, mem: &GuestRam, request: BlkRequest<'_>) -> Result<(), BlkError> {
        let result = self.disk.submit(mem, request);
        if let Some(popping) = self.popping.take() {
            let clock = &self.clock;
            clock.submit_ns.fetch_add(popping.elapsed().as_nanos() as u64, Ordering::Relaxed);
            clock.submits.fetch_add(1, Ordering::Relaxed);
        }
        result
    }

    fn set_write_cache(&mut self, write_back: bool) {
        self.disk.set_write_cache(write_back);
    }

    fn commit(&mut self) {
        // By one thread: a locked instruction would be a cost of the bench's in every round.
        let rounds = &self.clock.rounds;
        rounds.store(rounds.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
        self.disk.commit();
    }

    #[inline(always)]
    fn poll(&mut self, mem: &GuestRam, done: &mut dyn FnMut(RequestToken, Result<(), BlkError>)) {
        if self.timed {
            self.clock.end_of_work();
        }
        let mut reported = 0;
        self.disk.poll(mem, &mut |token, result| {
            reported += 1;
            done(token, result);
        });
        if self.timed {
            self.clock.begin_of_work(reported);
        }
    }

    fn cancel_all(&mut self) {
        self.disk.cancel_all();
    }

    fn in_flight(&self) -> usize {
        self.disk.in_flight()
    }
}
