//! Rate limits, as a worker keeps them: in simulated time, over a disk that answers at once.

use super::*;
use crate::legacy::clock::{Clock, ManualClock};
use crate::virtio::Step;
use crate::virtio::limit::{Meters, Rate, Throttle};

const SECOND_NS: u64 = 1_000_000_000;
const DISCARD: u64 = 1 << 13;
const WRITE_ZEROES: u64 = 1 << 14;

fn rate(per_second: u64, burst: u64) -> Option<Rate> {
    Some(Rate { per_second, burst: Some(burst) })
}

fn limited(meters: &[Meters], clock: &Arc<ManualClock>) -> Rig {
    let erase = EraseLimits { max_sectors: 64, max_segments: 1, alignment_sectors: 1 };
    let features = MODERN | FLUSH | DISCARD | WRITE_ZEROES;
    let mut rig = rig(BlkConfig { discard: Some(erase), write_zeroes: Some(erase), ..Default::default() }, features);
    let worker = rig.device.worker(0, rig.disk.clone(), rig.counters.clone());
    rig.worker = Box::new(worker.with_throttle(Throttle::new(meters, clock.clone())));
    rig.start(features);
    rig
}

fn read(bytes: u32) -> [Buf; 3] {
    [header(0, 0), Buf::Write(bytes), Buf::Write(1)]
}

impl Rig {
    /// Fills the ring with reads, lets the worker look once, and takes back what is done: how many reads that is.
    fn busy_step(&mut self, bytes: u32) -> (u64, Step) {
        while self.driver.free() > 0 {
            self.driver.post_indirect(&read(bytes));
        }
        self.driver.publish();
        let step = self.worker.step(&self.mem);
        (self.driver.used().len() as u64, step)
    }

    fn post_flushes(&mut self, count: usize) {
        for _ in 0..count {
            self.driver.post_indirect(&[header(4, 0), Buf::Write(1)]);
        }
    }
}

/// Reads done in ten seconds by drivers that never leave their rings empty; the first of them is always served first.
fn ten_seconds(rigs: &mut [Rig], clock: &ManualClock, bytes: u32) -> Vec<u64> {
    let mut done = vec![0; rigs.len()];
    let mut wake_at_ns = vec![0; rigs.len()];
    while clock.monotonic_ns() < 10 * SECOND_NS {
        for ((rig, done), wake_at_ns) in rigs.iter_mut().zip(&mut done).zip(&mut wake_at_ns) {
            if *wake_at_ns > clock.monotonic_ns() {
                continue;
            }
            let (reads, step) = rig.busy_step(bytes);
            *done += reads;
            if let Some(at_ns) = step.wake_at_ns {
                assert!(!step.again && at_ns > clock.monotonic_ns(), "{step:?}");
                *wake_at_ns = at_ns;
            }
        }
        let next_ns = wake_at_ns.iter().min().unwrap();
        clock.advance_ns(next_ns.saturating_sub(clock.monotonic_ns()));
    }
    done
}

#[test]
fn over_ten_seconds_a_disk_does_what_its_limit_of_requests_says() {
    let clock = Arc::new(ManualClock::new(0));
    let mut rigs = [limited(&[Meters::new(rate(1000, 300), None)], &clock)];
    let done = ten_seconds(&mut rigs, &clock, 512)[0];
    assert!(done.abs_diff(10_000 + 300) <= 20, "{done}");
}

#[test]
fn over_ten_seconds_a_disk_moves_what_its_limit_of_bytes_says() {
    let clock = Arc::new(ManualClock::new(0));
    let mut rigs = [limited(&[Meters::new(None, rate(1 << 20, 256 << 10))], &clock)];
    let moved = 4096 * ten_seconds(&mut rigs, &clock, 4096)[0];
    assert!(moved.abs_diff((10 << 20) + (256 << 10)) <= (10 << 20) / 100, "{moved}");
}

#[test]
fn the_tighter_of_two_limits_holds() {
    for (disk, group) in [(1000, 500), (500, 1000)] {
        let clock = Arc::new(ManualClock::new(0));
        let meters = [Meters::new(rate(disk, 10), rate(1 << 30, 1 << 20)), Meters::new(rate(group, 10), None)];
        let done = ten_seconds(&mut [limited(&meters, &clock)], &clock, 512)[0];
        assert!(done.abs_diff(5010) <= 50, "{done}");
    }
}

#[test]
fn disks_of_a_group_share_its_limit_fairly_whoever_is_served_first() {
    let clock = Arc::new(ManualClock::new(0));
    let group = Meters::new(rate(1000, 100), None);
    let mut rigs: Vec<Rig> = (0..3).map(|_| limited(&[Meters::default(), group.clone()], &clock)).collect();
    let done = ten_seconds(&mut rigs, &clock, 512);
    assert!(done.iter().sum::<u64>().abs_diff(10_100) <= 100, "{done:?}");
    assert!(done.iter().all(|done| done.abs_diff(10_100 / 3) <= 200), "{done:?}");
}

#[test]
fn a_burst_is_done_at_once_and_the_next_request_waits_in_the_ring() {
    let clock = Arc::new(ManualClock::new(0));
    let mut rig = limited(&[Meters::new(rate(10, 5), None)], &clock);
    let (done, step) = rig.busy_step(512);
    assert_eq!((done, step), (5, Step { wake_at_ns: Some(SECOND_NS / 10), ..Step::default() }));
    rig.post_flushes(1);
    assert!(!rig.driver.publish(), "a kick would be in vain");
    // Whatever wakes the worker before the time, it does nothing and does not spin.
    clock.advance_ns(SECOND_NS / 10 - 1);
    assert_eq!(rig.worker.step(&rig.mem), step);
    assert_eq!(rig.driver.used(), []);
    clock.advance_ns(1);
    let next = rig.worker.step(&rig.mem);
    assert_eq!(next, Step { wake_at_ns: Some(2 * SECOND_NS / 10), ..Step::default() });
    assert_eq!(rig.driver.used().len(), 1);
    assert_eq!(rig.counters.chains.get(), 6, "what waits was not taken");
}

#[test]
fn a_worker_at_its_limit_with_nothing_to_do_sleeps_until_it_is_kicked() {
    let clock = Arc::new(ManualClock::new(0));
    let mut rig = limited(&[Meters::new(rate(1, 5), None)], &clock);
    rig.post_flushes(5);
    rig.driver.publish();
    assert_eq!(rig.worker.step(&rig.mem), Step::default());
    assert_eq!(rig.driver.used().len(), 5);
    assert_eq!(rig.worker.step(&rig.mem), Step::default(), "still nothing");
    rig.post_flushes(1);
    assert!(rig.driver.publish(), "the worker wants to know");
    assert_eq!(rig.worker.step(&rig.mem).wake_at_ns, Some(SECOND_NS));
}

#[test]
fn a_disk_without_work_takes_nothing_from_its_group() {
    let clock = Arc::new(ManualClock::new(0));
    let group = Meters::new(rate(1, 8), None);
    let mut idle: Vec<Rig> = (0..8).map(|_| limited(std::slice::from_ref(&group), &clock)).collect();
    idle.iter_mut().for_each(|rig| assert_eq!(rig.worker.step(&rig.mem), Step::default()));
    let (done, _) = limited(&[group], &clock).busy_step(512);
    assert_eq!(done, 8);
}

#[test]
fn a_queue_that_is_held_back_pauses_and_resets_at_once_and_keeps_what_was_not_taken() {
    let clock = Arc::new(ManualClock::new(0));
    let mut rig = limited(&[Meters::new(rate(1, 1), None)], &clock);
    rig.post_flushes(3);
    rig.driver.publish();
    assert!(rig.worker.step(&rig.mem).wake_at_ns.is_some());
    assert_eq!(rig.driver.used().len(), 1);
    rig.worker.begin_stop(&rig.mem);
    assert_eq!(rig.worker.step(&rig.mem), Step::default(), "no deadline once it stops");
    assert!(rig.worker.poll_stopped(&rig.mem, false));
    let state = rig.worker.take_state(0).unwrap();
    assert_eq!(state.next_avail, 1);

    let activation = rig.interrupt.activation(MODERN | FLUSH);
    rig.worker.start(&rig.mem, 0, state, &activation);
    assert_eq!(rig.worker.step(&rig.mem).wake_at_ns, Some(SECOND_NS), "a pause is no way around the limit");
    clock.advance_ns(SECOND_NS);
    rig.worker.step(&rig.mem);
    assert_eq!(rig.driver.used().len(), 1);
    assert!(rig.worker.reset_queue(&rig.mem, 0));
    rig.start(MODERN | FLUSH);
    rig.post_flushes(1);
    rig.driver.publish();
    assert_eq!(rig.worker.step(&rig.mem).wake_at_ns, Some(2 * SECOND_NS), "nor is a reset");
}

#[test]
fn bytes_are_those_of_reads_writes_and_zeroes_and_everything_is_a_request() {
    let sectors: u32 = 2;
    let data = || Buf::Read(vec![0; 512 * sectors as usize]);
    let ok = || Buf::Write(1);
    for (name, bufs, bytes) in [
        ("read", vec![header(0, 0), Buf::Write(512 * sectors), ok()], 1024),
        ("write", vec![header(1, 0), data(), ok()], 1024),
        ("zeroes", vec![header(13, 0), segment(0, sectors, 0), ok()], 1024),
        ("discard", vec![header(11, 0), segment(0, sectors, 0), ok()], 0),
        ("flush", vec![header(4, 0), ok()], 0),
        ("id", vec![header(8, 0), Buf::Write(20), ok()], 0),
        ("a read that is refused", vec![header(0, 1 << 40), Buf::Write(512), ok()], 0),
        ("nonsense", vec![header(99, 0), ok()], 0),
    ] {
        let clock = Arc::new(ManualClock::new(0));
        let mut by_bytes = limited(&[Meters::new(None, rate(1024, 1))], &clock);
        let mut by_number = limited(&[Meters::new(rate(1, 1), None)], &clock);
        for rig in [&mut by_bytes, &mut by_number] {
            rig.driver.post_indirect(&bufs);
            rig.post_flushes(1);
            rig.driver.publish();
        }
        assert_eq!(by_number.worker.step(&by_number.mem).wake_at_ns, Some(SECOND_NS), "{name}");
        let held_back = by_bytes.worker.step(&by_bytes.mem).wake_at_ns.is_some();
        assert_eq!(held_back, bytes > 0, "{name}");
    }
}
