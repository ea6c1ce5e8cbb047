//! What a queue says it did, and when.

use super::*;
use crate::legacy::clock::{Clock, ManualClock};
use crate::virtio::queue::F_RING_PACKED;

struct Timed {
    rig: Rig,
    stats: Arc<BlkStats>,
    clock: Arc<dyn Ticking>,
}

/// A clock that a test can move.
trait Ticking: Clock {
    fn pass_ns(&self, ns: u64);
}

impl Ticking for ManualClock {
    fn pass_ns(&self, ns: u64) {
        self.advance_ns(ns);
    }
}

/// A clock on which every look takes a microsecond.
#[derive(Default)]
struct SlowClock(std::sync::atomic::AtomicU64);

impl Clock for SlowClock {
    fn realtime(&self) -> (i64, u32) {
        (0, 0)
    }

    fn monotonic_ns(&self) -> u64 {
        self.0.fetch_add(1000, std::sync::atomic::Ordering::Relaxed)
    }
}

impl Ticking for SlowClock {
    fn pass_ns(&self, ns: u64) {
        self.0.fetch_add(ns, std::sync::atomic::Ordering::Relaxed);
    }
}

impl SlowClock {
    /// Looks since the last call.
    fn looks(&self) -> u64 {
        self.0.swap(0, std::sync::atomic::Ordering::Relaxed) / 1000
    }
}

const ERASE: EraseLimits = EraseLimits { max_sectors: 64, max_segments: 2, alignment_sectors: 1 };
const FEATURES: u64 = MODERN | FLUSH | 1 << 13 | 1 << 14;

fn counted(clock: Arc<dyn Ticking>, timed: bool, features: u64) -> Timed {
    let config = BlkConfig { discard: Some(ERASE), write_zeroes: Some(ERASE), ..Default::default() };
    let mut rig = rig(config, features);
    let stats = Arc::new(BlkStats::new(timed));
    let clock_of_worker: Arc<dyn Clock> = clock.clone();
    let worker = rig.device.worker(0, rig.disk.clone(), rig.counters.clone());
    rig.worker = Box::new(worker.with_stats(stats.clone(), clock_of_worker));
    rig.start(features);
    Timed { rig, stats, clock }
}

fn timed() -> Timed {
    counted(Arc::new(ManualClock::new(0)), true, FEATURES)
}

impl Timed {
    fn post(&mut self, bufs: &[Buf]) {
        self.rig.driver.post_indirect(bufs);
        self.rig.driver.publish();
    }

    fn latency(&self) -> LatencySnapshot {
        self.stats.snapshot().latency.expect("times are measured")
    }
}

#[test]
fn requests_count_by_what_they_ask_for() {
    let mut timed = timed();
    let ok = || Buf::Write(1);
    for (times, bufs) in [
        (1, vec![header(0, 0), Buf::Write(512), ok()]),
        (2, vec![header(1, 0), Buf::Read(vec![0; 512]), ok()]),
        (3, vec![header(4, 0), ok()]),
        (4, vec![header(11, 0), segment(0, 1, 0), ok()]),
        (5, vec![header(13, 0), segment(0, 1, 0), ok()]),
        // The id, a read of no sectors, one beyond the end, and nonsense.
        (1, vec![header(8, 0), Buf::Write(20), ok()]),
        (1, vec![header(0, 0), ok()]),
        (1, vec![header(0, 1 << 40), Buf::Write(512), ok()]),
        (1, vec![header(99, 0), ok()]),
    ] {
        for _ in 0..times {
            timed.rig.status(&bufs);
        }
    }
    let shown = timed.stats.snapshot();
    assert_eq!(shown.ops, OpsSnapshot { read: 1, write: 2, flush: 3, discard: 4, write_zeroes: 5, other: 4 });
    assert_eq!(shown.errors, ErrorsSnapshot { guest: 2, disk: 0 });
    assert_eq!(timed.latency().total.count, 15, "those that the disk was asked for");
}

#[test]
fn errors_count_by_whose_fault_they_are() {
    let mut timed = timed();
    for error in [BlkError::Host(5), BlkError::Short, BlkError::Unsupported] {
        timed.rig.disk.fail_next(error);
        timed.rig.status(&[header(0, 0), Buf::Write(512), Buf::Write(1)]);
    }
    assert_eq!(timed.stats.snapshot().errors, ErrorsSnapshot { guest: 1, disk: 2 });
    assert_eq!(timed.rig.counters.errors.get(), 3);
}

#[test]
fn each_phase_takes_the_time_it_took() {
    let mut timed = timed();
    timed.rig.disk.hold(true);
    timed.post(&[header(4, 0), Buf::Write(1)]);
    timed.rig.step();
    assert_eq!((timed.latency().queued.count, timed.latency().disk.count), (1, 0));
    timed.clock.pass_ns(5_000);
    timed.rig.step();
    assert_eq!(timed.latency().total.count, 0, "it is with the disk still");
    timed.clock.pass_ns(6_000);
    timed.rig.disk.complete(0);
    timed.rig.step();
    let latency = timed.latency();
    assert_eq!((latency.disk.count, latency.disk.max_ns, latency.disk.mean_ns), (1, 11_000, 11_000));
    assert_eq!((latency.total.count, latency.total.max_ns), (1, 11_000));
    assert_eq!(latency.disk.buckets.iter().rposition(|&count| count == 1), Some(13), "8192 to 16383 ns");
    assert_eq!((latency.queued.max_ns, latency.injected.max_ns), (0, 0));
}

/// A disk that does its work before it comes back from `commit`.
struct Inline(MemoryDisk, Arc<ManualClock>);

impl<M: vm_memory::GuestMemory + ?Sized> BlkBackend<M> for Inline {
    fn submit(&mut self, mem: &M, request: BlkRequest<'_>) -> Result<(), BlkError> {
        self.0.submit(mem, request)
    }

    fn commit(&mut self) {
        BlkBackend::<M>::commit(&mut self.0);
        self.1.advance_ns(7_000);
    }

    fn poll(&mut self, mem: &M, done: &mut dyn FnMut(RequestToken, Result<(), BlkError>)) {
        self.0.poll(mem, done);
    }

    fn cancel_all(&mut self) {
        BlkBackend::<M>::cancel_all(&mut self.0);
    }

    fn in_flight(&self) -> usize {
        BlkBackend::<M>::in_flight(&self.0)
    }
}

#[test]
fn what_a_disk_does_before_it_comes_back_is_the_disks_time() {
    let mut timed = timed();
    let clock = Arc::new(ManualClock::new(0));
    let worker = timed.rig.device.worker(0, Inline(timed.rig.disk.clone(), clock.clone()), timed.rig.counters.clone());
    timed.rig.worker = Box::new(worker.with_stats(timed.stats.clone(), clock));
    timed.rig.start(FEATURES);
    timed.post(&[header(4, 0), Buf::Write(1)]);
    timed.rig.step();
    let latency = timed.latency();
    assert_eq!([&latency.queued, &latency.disk, &latency.injected].map(|phase| phase.max_ns), [0, 7_000, 0]);
}

#[test]
fn the_phases_of_a_request_add_up_to_its_whole_time() {
    for hold in [false, true] {
        let clock = Arc::new(SlowClock::default());
        let mut timed = counted(clock, true, FEATURES);
        timed.rig.disk.hold(hold);
        for _ in 0..3 {
            timed.post(&[header(4, 0), Buf::Write(1)]);
        }
        timed.rig.step();
        timed.clock.pass_ns(40_000);
        while timed.rig.disk.complete(0) {}
        timed.rig.step();
        let latency = timed.latency();
        let phases = [&latency.queued, &latency.disk, &latency.injected];
        assert!(phases.iter().all(|phase| phase.count == 3), "{latency:?}");
        assert_eq!(phases.iter().map(|phase| phase.mean_ns).sum::<u64>(), latency.total.mean_ns, "{latency:?}");
        assert!(latency.queued.mean_ns > 0 && latency.injected.mean_ns > 0, "{latency:?}");
    }
}

#[test]
fn the_clock_is_looked_at_once_a_batch_and_phase_and_never_without_work_or_where_times_are_not_wanted() {
    let clock = Arc::new(SlowClock::default());
    let mut timed = counted(clock.clone(), true, FEATURES);
    timed.rig.disk.hold(true);
    for _ in 0..8 {
        timed.post(&[header(4, 0), Buf::Write(1)]);
    }
    timed.rig.step();
    assert_eq!(clock.looks(), 2, "taken, submitted");
    timed.rig.step();
    assert_eq!(clock.looks(), 0, "nothing to do");
    while timed.rig.disk.complete(0) {}
    timed.rig.step();
    assert_eq!(clock.looks(), 2, "completed, published");
    assert_eq!(timed.rig.driver.used().len(), 8);
    timed.rig.disk.hold(false);
    timed.post(&[header(4, 0), Buf::Write(1)]);
    timed.rig.step();
    assert_eq!(clock.looks(), 4, "a disk that answers at once");

    let mut counted = counted(clock.clone(), false, FEATURES);
    counted.post(&[header(4, 0), Buf::Write(1)]);
    counted.rig.step();
    assert_eq!(clock.looks(), 0);
    let shown = counted.stats.snapshot();
    assert_eq!((shown.ops.flush, shown.in_flight_max, shown.latency), (1, 1, None));
}

#[test]
fn requests_in_flight_are_counted_up_and_down_and_the_most_is_remembered() {
    for ring in [0, F_RING_PACKED] {
        let mut timed = counted(Arc::new(ManualClock::new(0)), true, FEATURES | ring);
        timed.rig.disk.hold(true);
        let in_flight = |timed: &Timed| {
            let shown = timed.stats.snapshot();
            (shown.in_flight, shown.in_flight_max)
        };
        for count in 1..=5 {
            timed.post(&[header(4, 0), Buf::Write(1)]);
            timed.rig.step();
            assert_eq!(in_flight(&timed), (count, count));
        }
        timed.rig.disk.complete(2);
        timed.rig.disk.complete(0);
        timed.rig.step();
        assert_eq!(in_flight(&timed), (3, 5));
        // A reset forgets them, and so do the times of requests that never completed.
        assert!(timed.rig.worker.reset_queue(&timed.rig.mem, 0));
        assert_eq!(in_flight(&timed), (0, 5));
        timed.rig.disk.hold(false);
        timed.rig.start(FEATURES | ring);
        timed.post(&[header(4, 0), Buf::Write(1)]);
        timed.rig.step();
        assert_eq!((in_flight(&timed), timed.latency().total.count), ((0, 5), 3));
    }
}

#[test]
fn what_completes_during_a_pause_is_counted() {
    let mut timed = timed();
    timed.rig.disk.hold(true);
    timed.post(&[header(4, 0), Buf::Write(1)]);
    timed.rig.step();
    timed.rig.worker.begin_stop(&timed.rig.mem);
    timed.clock.pass_ns(3_000);
    timed.rig.disk.complete(0);
    assert!(timed.rig.worker.poll_stopped(&timed.rig.mem, false));
    let latency = timed.latency();
    assert_eq!((latency.total.count, latency.disk.max_ns), (1, 3_000));
    assert_eq!(timed.stats.snapshot().in_flight, 0);
}

#[test]
fn a_queue_held_back_by_a_limit_says_so() {
    use crate::virtio::limit::{Meters, Rate, Throttle};
    let mut timed = timed();
    let meters = Meters::new(Some(Rate { per_second: 1, burst: Some(1) }), None);
    let worker = timed.rig.device.worker(0, timed.rig.disk.clone(), timed.rig.counters.clone());
    let clock = Arc::new(ManualClock::new(0));
    let worker = worker.with_throttle(Throttle::new(&[meters], clock.clone())).with_stats(timed.stats.clone(), clock);
    timed.rig.worker = Box::new(worker);
    timed.rig.start(FEATURES);
    for flushes in [1, 2] {
        timed.post(&[header(4, 0), Buf::Write(1)]);
        timed.rig.step();
        assert_eq!(timed.stats.snapshot().throttled, flushes - 1);
    }
}

#[test]
fn a_request_kept_for_the_operator_is_in_flight_and_counts_once_when_it_ends() {
    let mut timed = timed();
    let config = BlkConfig { on_write_error: OnError::Hold, ..Default::default() };
    timed.rig.device = BlkDevice::new(BlkConfig { capacity_sectors: SECTORS as u64, queue_size: 8, ..config });
    let clock: Arc<dyn Clock> = timed.clock.clone();
    let worker = timed.rig.device.worker(0, timed.rig.disk.clone(), timed.rig.counters.clone());
    timed.rig.worker = Box::new(worker.with_stats(timed.stats.clone(), clock));
    timed.rig.start(FEATURES);
    timed.rig.disk.fail_next(BlkError::NoSpace);
    timed.post(&[header(1, 0), Buf::Read(vec![1; 512]), Buf::Write(1)]);
    timed.rig.step();
    let kept = timed.stats.snapshot();
    assert_eq!((kept.in_flight, kept.errors, timed.latency().total.count), (1, ErrorsSnapshot::default(), 0));

    timed.rig.worker.begin_stop(&timed.rig.mem);
    assert!(timed.rig.worker.poll_stopped(&timed.rig.mem, false));
    let state = timed.rig.worker.take_state(0).unwrap();
    timed.clock.pass_ns(9_000_000);
    let activation = timed.rig.interrupt.activation(FEATURES);
    timed.rig.worker.start(&timed.rig.mem, 0, state, &activation);
    timed.rig.step();
    let ended = timed.stats.snapshot();
    assert_eq!((ended.in_flight, ended.ops.write, ended.errors), (0, 1, ErrorsSnapshot::default()));
    assert_eq!((timed.latency().total.count, timed.latency().total.max_ns), (1, 9_000_000));
}

#[test]
fn a_kept_request_that_is_refused_after_a_pause_ends_then_and_not_when_it_was_kept() {
    let mut timed = timed();
    let config = BlkConfig {
        capacity_sectors: SECTORS as u64,
        queue_size: 8,
        on_write_error: OnError::Hold,
        ..Default::default()
    };
    timed.rig.device = BlkDevice::new(config);
    let worker = timed.rig.device.worker(0, timed.rig.disk.clone(), timed.rig.counters.clone());
    timed.rig.worker = Box::new(worker.with_stats(timed.stats.clone(), timed.clock.clone()));
    timed.rig.start(FEATURES);
    timed.rig.disk.fail_next(BlkError::NoSpace);
    timed.post(&[header(1, SECTORS as u64 - 1), Buf::Read(vec![7; 512]), Buf::Write(1)]);
    timed.rig.step();
    // One that the pause waits for has the worker look at the clock.
    timed.rig.disk.hold(true);
    timed.post(&[header(0, 0), Buf::Write(512), Buf::Write(1)]);
    timed.rig.step();
    let mem = timed.rig.mem.clone();
    timed.rig.worker.begin_stop(&mem);
    assert!(timed.rig.disk.complete(0));
    assert!(timed.rig.worker.poll_stopped(&mem, false));
    let state = timed.rig.worker.take_state(0).unwrap();
    timed.rig.device.set_capacity(1);
    timed.clock.pass_ns(1 << 30);
    let activation = timed.rig.interrupt.activation(FEATURES);
    timed.rig.worker.start(&mem, 0, state, &activation);
    timed.rig.step();
    let latency = timed.latency();
    assert_eq!((latency.disk.count, latency.disk.max_ns), (2, 1 << 30), "it was the disk's all the time");
    assert_eq!((latency.injected.count, latency.injected.max_ns), (2, 0));
}
