//! A worker's thread while a rate limit holds the worker back, in real time.

use std::sync::Mutex;
use std::time::{Duration, Instant};

use devices::virtio::testing::{RecordingInterrupt, guest_ram};

use super::*;

/// Asks to be woken after `waits_ns`, one step after the other, and then not at all.
struct Sleeper {
    waits_ns: std::vec::IntoIter<u64>,
    steps_ns: Arc<Mutex<Vec<u64>>>,
}

impl VirtioWorker<GuestRam> for Sleeper {
    fn queues(&self) -> &[u16] {
        &[0]
    }

    fn start(&mut self, _mem: &GuestRam, _queue: u16, _state: QueueState, _activation: &WorkerActivation) {}

    fn step(&mut self, _mem: &GuestRam) -> Step {
        let now_ns = monotonic_ns();
        self.steps_ns.lock().unwrap().push(now_ns);
        Step { wake_at_ns: self.waits_ns.next().map(|wait_ns| now_ns + wait_ns), ..Step::default() }
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
    steps_ns: Arc<Mutex<Vec<u64>>>,
    counters: Arc<QueueCounters>,
}

impl Rig {
    fn running(waits_ns: Vec<u64>) -> Self {
        let (steps_ns, counters) = (Arc::<Mutex<Vec<u64>>>::default(), Arc::<QueueCounters>::default());
        let sleeper = Sleeper { waits_ns: waits_ns.into_iter(), steps_ns: steps_ns.clone() };
        let spec = WorkerSpec {
            name: "sleeper".into(),
            worker: Box::new(sleeper),
            wake: Arc::new(Event::new().unwrap()),
            backend_fd: None,
            counters: vec![counters.clone()],
            poll_ns: 0,
        };
        let workers = DeviceWorkers::spawn(&guest_ram(0x1000), Rings::default(), vec![spec]).unwrap();
        let interrupt = RecordingInterrupt::new();
        workers.start(Activation { features: 0, legacy: true, queues: vec![(0, QueueState::default())], interrupt });
        Self { workers, steps_ns, counters }
    }

    fn steps_ns(&self) -> Vec<u64> {
        self.steps_ns.lock().unwrap().clone()
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        self.workers.join();
    }
}

/// What a loaded host may need for what takes a millisecond, and no limit of these tests is as short.
const LONG: Duration = Duration::from_secs(60);

#[track_caller]
fn in_the_end(mut reached: impl FnMut() -> bool) {
    let start = Instant::now();
    while !reached() {
        assert!(start.elapsed() < LONG, "it takes more than {LONG:?}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn a_worker_is_woken_when_its_limit_is_over_not_before_and_then_sleeps_for_good() {
    let rig = Rig::running(vec![20_000_000, 30_000_000, 0]);
    in_the_end(|| rig.steps_ns().len() == 4);
    std::thread::sleep(Duration::from_millis(100));
    let steps_ns = rig.steps_ns();
    assert_eq!(steps_ns.len(), 4, "nothing wakes it any more");
    assert!(steps_ns[1] - steps_ns[0] >= 20_000_000 && steps_ns[2] - steps_ns[1] >= 30_000_000, "{steps_ns:?}");
    assert_eq!(rig.counters.wakeups.get(), 1, "only its start was a wake-up from outside");
}

#[test]
fn pause_reset_and_exit_do_not_wait_for_a_limit() {
    const HOUR_NS: u64 = 3_600_000_000_000;
    for way in ["pause", "reset", "exit"] {
        let rig = Rig::running(vec![HOUR_NS; 8]);
        in_the_end(|| !rig.steps_ns().is_empty());
        let done = Parked::new();
        match way {
            "pause" => rig.workers.pause(Holder::Machine, done.clone()),
            "reset" => rig.workers.reset(done.clone()),
            _ => done.complete(),
        }
        in_the_end(|| done.is_complete());
        let start = Instant::now();
        drop(rig);
        assert!(start.elapsed() < LONG, "{way}");
    }
}

#[test]
fn a_kick_reaches_a_worker_that_waits_for_its_limit() {
    let rig = Rig::running(vec![3_600_000_000_000; 8]);
    in_the_end(|| rig.steps_ns().len() == 1);
    rig.workers.kick(0);
    in_the_end(|| rig.steps_ns().len() == 2);
}
