//! A worker's thread that looks for the next request before it sleeps, in real time.

use std::sync::atomic::AtomicU32;
use std::time::{Duration, Instant};

use devices::virtio::testing::{RecordingInterrupt, guest_ram};

use super::*;

/// Has work where the test says so.
struct Watcher(Arc<Watched>);

#[derive(Default)]
struct Watched {
    work: AtomicBool,
    looks: AtomicU32,
    steps: AtomicU32,
    lingers: AtomicU32,
}

impl VirtioWorker<GuestRam> for Watcher {
    fn queues(&self) -> &[u16] {
        &[0]
    }

    fn start(&mut self, _mem: &GuestRam, _queue: u16, _state: QueueState, _activation: &WorkerActivation) {}

    fn step(&mut self, _mem: &GuestRam) -> Step {
        self.0.work.store(false, Ordering::Relaxed);
        self.0.steps.fetch_add(1, Ordering::Relaxed);
        Step::default()
    }

    fn linger(&mut self, _mem: &GuestRam) -> Step {
        self.0.work.store(false, Ordering::Relaxed);
        self.0.lingers.fetch_add(1, Ordering::Relaxed);
        Step { lingers: true, ..Step::default() }
    }

    fn has_work(&self, _mem: &GuestRam) -> bool {
        self.0.looks.fetch_add(1, Ordering::Relaxed);
        self.0.work.load(Ordering::Relaxed)
    }

    fn begin_stop(&mut self, _mem: &GuestRam) {}

    fn poll_stopped(&mut self, _mem: &GuestRam, _abandon: bool) -> bool {
        true
    }

    fn take_state(&mut self, _queue: u16) -> Option<QueueState> {
        Some(QueueState::default())
    }
}

struct Rig {
    workers: Arc<DeviceWorkers>,
    watched: Arc<Watched>,
    counters: Arc<QueueCounters>,
}

impl Rig {
    /// With its queue running, and asleep.
    fn new(poll: Duration) -> Self {
        let (watched, counters) = (Arc::<Watched>::default(), Arc::<QueueCounters>::default());
        let spec = WorkerSpec {
            name: "watcher".into(),
            worker: Box::new(Watcher(watched.clone())),
            wake: Arc::new(Event::new().unwrap()),
            backend_fd: None,
            counters: vec![counters.clone()],
            poll_ns: poll.as_nanos() as u64,
        };
        let workers = DeviceWorkers::spawn(&guest_ram(0x1000), Rings::default(), vec![spec]).unwrap();
        let interrupt = RecordingInterrupt::new();
        workers.start(Activation { features: 0, legacy: true, queues: vec![(0, QueueState::default())], interrupt });
        let rig = Self { workers, watched, counters };
        rig.until(|rig| rig.steps() + rig.lingers() > 0);
        rig
    }

    fn steps(&self) -> u32 {
        self.watched.steps.load(Ordering::Relaxed)
    }

    fn lingers(&self) -> u32 {
        self.watched.lingers.load(Ordering::Relaxed)
    }

    fn looks(&self) -> u32 {
        self.watched.looks.load(Ordering::Relaxed)
    }

    #[track_caller]
    fn until(&self, reached: impl Fn(&Self) -> bool) {
        let start = Instant::now();
        while !reached(self) {
            assert!(start.elapsed() < Duration::from_secs(10), "it takes more than ten seconds");
            std::thread::yield_now();
        }
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        self.workers.join();
    }
}

const LONG: Duration = Duration::from_secs(3600);

#[test]
fn work_is_found_without_a_kick_while_the_worker_looks() {
    let rig = Rig::new(LONG);
    // Any wait is a short one, beside an hour: from the first kick on it looks.
    rig.workers.kick(0);
    rig.until(|rig| rig.lingers() >= 1 && rig.looks() > 0);
    let (lingers, polled, wakeups) = (rig.lingers(), rig.counters.polled.get(), rig.counters.wakeups.get());
    rig.watched.work.store(true, Ordering::Relaxed);
    rig.until(|rig| rig.lingers() > lingers);
    assert_eq!((rig.counters.polled.get(), rig.counters.wakeups.get()), (polled + 1, wakeups));
}

#[test]
fn a_worker_that_looks_is_stopped_at_once() {
    for way in ["pause", "reset", "exit"] {
        let rig = Rig::new(LONG);
        rig.workers.kick(0);
        rig.until(|rig| rig.lingers() >= 1);
        let done = Parked::new();
        match way {
            "pause" => rig.workers.pause(Holder::Machine, done.clone()),
            "reset" => rig.workers.reset(done.clone()),
            _ => done.complete(),
        }
        rig.until(|_| done.is_complete());
        let start = Instant::now();
        drop(rig);
        assert!(start.elapsed() < Duration::from_secs(10), "{way}");
    }
}

#[test]
fn a_worker_that_looked_in_vain_asks_for_kicks_and_sleeps() {
    let rig = Rig::new(Duration::from_millis(1));
    // It learns to look by a wait that is shorter than that, which a busy machine may not give at once.
    rig.until(|rig| {
        rig.workers.kick(0);
        rig.lingers() > 0
    });
    // Twice as many looks as its patience has halvings end in sleep: nothing looks and nothing steps any more.
    assert!(rig.looks() > 0);
    rig.until(|rig| {
        let before = (rig.steps(), rig.looks());
        std::thread::sleep(Duration::from_millis(100));
        (rig.steps(), rig.looks()) == before
    });
}

#[test]
fn a_worker_without_patience_never_looks() {
    let rig = Rig::new(Duration::ZERO);
    for kicks in 2..10 {
        rig.workers.kick(0);
        rig.until(|rig| rig.steps() >= kicks);
    }
    assert_eq!((rig.lingers(), rig.looks()), (0, 0));
}
