//! What becomes of requests that the disk fails, and of those after them, a rule a test.

use std::sync::Mutex;

use super::*;
use crate::virtio::queue::{F_IN_ORDER, F_RING_PACKED};

const DISCARD: u64 = 1 << 13;
const OK: u8 = 0;
const IOERR: u8 = 1;
const EIO: BlkError = BlkError::Host(5);
const DURABLE: BlkOp = BlkOp::Write { durable: true };
const WRITE: BlkOp = BlkOp::Write { durable: false };

/// Remembers what it hears.
#[derive(Default)]
pub(super) struct Heard(Mutex<Vec<Failure>>);

impl FailureSink for Heard {
    fn failed(&self, failure: Failure) {
        self.0.lock().unwrap().push(failure);
    }
}

impl Heard {
    pub(super) fn take(&self) -> Vec<Failure> {
        std::mem::take(&mut self.0.lock().unwrap())
    }
}

fn write() -> [Buf; 3] {
    [header(1, 0), Buf::Read(vec![7; 512]), Buf::Write(1)]
}

fn read() -> [Buf; 3] {
    [header(0, 0), Buf::Write(512), Buf::Write(1)]
}

fn flush() -> [Buf; 2] {
    [header(4, 0), Buf::Write(1)]
}

/// A disk that does with failures what `on_write_error` says, and who hears of them.
pub(super) fn holding(on_write_error: OnError, on_read_error: OnError, features: u64) -> (Rig, Arc<Heard>) {
    let heard = Arc::<Heard>::default();
    let mut rig = rig(BlkConfig::default(), features);
    let config = BlkConfig {
        capacity_sectors: SECTORS as u64,
        queue_size: 8,
        on_write_error,
        on_read_error,
        ..Default::default()
    };
    rig.device = BlkDevice::with_sink(config, heard.clone());
    rig.worker = Box::new(rig.device.worker(0, rig.disk.clone(), rig.counters.clone()));
    rig.start(features);
    (rig, heard)
}

impl Rig {
    pub(super) fn post(&mut self, bufs: &[Buf]) -> Posted {
        let posted = self.driver.post(bufs);
        self.driver.publish();
        self.step();
        posted
    }

    /// Stops the worker as a pause does.
    pub(super) fn pause(&mut self) -> QueueState {
        self.worker.begin_stop(&self.mem);
        assert!(self.worker.poll_stopped(&self.mem, false), "nothing is in flight");
        self.worker.take_state(0).unwrap()
    }

    pub(super) fn go_on(&mut self, state: QueueState, features: u64) {
        let activation = self.interrupt.activation(features);
        self.worker.start(&self.mem, 0, state, &activation);
        self.step();
    }
}

#[test]
fn after_a_failed_write_nothing_is_durable_before_a_flush_has_succeeded() {
    // Without FLUSH every write is durable.
    let mut rig = rig(BlkConfig::default(), MODERN);
    rig.disk.fail_next(EIO);
    assert_eq!(rig.status(&write()), IOERR);
    // A durable write that failed may be a flush that failed: here the operator has said to go on.
    rig.device.go_on();
    rig.disk.take_log();
    assert_eq!(rig.status(&write()), OK);
    assert_eq!(rig.disk.take_log(), [DURABLE, BlkOp::Flush], "acknowledged behind a flush");
    assert_eq!(rig.status(&write()), OK);
    assert_eq!(rig.disk.take_log(), [DURABLE], "which settles it for the later ones");
}

#[test]
fn a_flush_that_fails_behind_a_write_fails_the_write() {
    let mut rig = rig(BlkConfig::default(), MODERN);
    rig.disk.fail_next(BlkError::NoSpace);
    assert_eq!(rig.status(&write()), IOERR);
    rig.disk.hold(true);
    let posted = rig.post(&write());
    rig.disk.fail_next(EIO);
    assert!(rig.disk.complete(0));
    rig.step();
    assert_eq!(rig.driver.used(), [], "the flush is under way");
    assert!(rig.disk.complete(0));
    rig.step();
    assert_eq!(rig.driver.used().len(), 1);
    assert_eq!(rig.driver.read(posted.buffers[2]), [IOERR]);
    assert!(rig.device.is_lost());
}

#[test]
fn a_write_cancelled_by_a_reset_leaves_the_disk_unsettled() {
    let mut rig = rig(BlkConfig::default(), MODERN);
    rig.disk.hold(true);
    rig.post(&write());
    rig.worker.begin_stop(&rig.mem);
    assert!(rig.worker.poll_stopped(&rig.mem, true));
    rig.worker.take_state(0);
    rig.disk.hold(false);
    assert!(!rig.device.is_settled());
    rig.start(MODERN);
    rig.disk.take_log();
    assert_eq!(rig.status(&write()), OK);
    assert_eq!(rig.disk.take_log(), [DURABLE, BlkOp::Flush]);
}

#[test]
fn a_failed_flush_fails_the_later_ones_until_the_operator_says_to_go_on() {
    let mut rig = rig(BlkConfig::default(), MODERN | FLUSH);
    rig.disk.fail_next(EIO);
    assert_eq!(rig.status(&flush()), IOERR);
    rig.disk.take_log();
    assert_eq!(rig.status(&flush()), IOERR, "the disk would say that all is well now");
    assert_eq!(rig.disk.take_log(), [], "so it is not asked");
    assert_eq!((rig.status(&write()), rig.status(&read())), (OK, OK), "what promises nothing goes on");
    // A driver that resets the device does not get rid of it.
    rig.worker.begin_stop(&rig.mem);
    assert!(rig.worker.poll_stopped(&rig.mem, true));
    rig.worker.take_state(0);
    rig.start(MODERN | FLUSH);
    assert_eq!(rig.status(&flush()), IOERR);
    rig.device.go_on();
    assert_eq!(rig.status(&flush()), OK);
}

#[test]
fn a_write_that_was_under_way_when_a_flush_failed_is_not_called_durable() {
    // Linux tells one of those who wait for the pages that they were lost, not all.
    let mut rig = rig(BlkConfig::default(), MODERN);
    rig.disk.hold(true);
    let posted = rig.post(&write());
    rig.disk.fail_next(EIO);
    rig.post(&flush());
    assert!(rig.disk.complete(1) && rig.disk.complete(0));
    rig.step();
    assert_eq!(rig.driver.used().len(), 2);
    assert_eq!(rig.driver.read(posted.buffers[2]), [IOERR]);
}

#[test]
fn what_is_doubtful_is_saved_with_a_queue_and_restored() {
    let mut rig = rig(BlkConfig::default(), MODERN | FLUSH);
    assert_eq!(rig.worker.save(), WorkerState::default());
    rig.disk.fail_next(EIO);
    assert_eq!(rig.status(&write()), IOERR);
    rig.disk.fail_next(EIO);
    assert_eq!(rig.status(&flush()), IOERR);
    let saved = rig.worker.save();
    assert!(saved.unsettled && saved.lost);
    let mut other = self::rig(BlkConfig::default(), MODERN);
    other.worker.restore(&saved).unwrap();
    assert!(!other.device.is_settled() && other.device.is_lost());
    for bad in [WorkerState { version: 2, ..saved.clone() }, WorkerState { to_guest: vec![1], ..saved.clone() }] {
        assert!(other.worker.restore(&bad).is_err());
    }
}

#[test]
fn errors_are_the_guests_by_default_and_somebody_hears_of_them() {
    let (mut rig, heard) = holding(OnError::Report, OnError::Report, MODERN | FLUSH);
    for (error, request, op) in [(EIO, write(), WRITE), (BlkError::NoSpace, write(), WRITE), (EIO, read(), BlkOp::Read)]
    {
        rig.disk.fail_next(error);
        assert_eq!(rig.status(&request), IOERR);
        assert_eq!(heard.take(), [Failure { op, error, held: false }]);
    }
    rig.disk.fail_next(BlkError::Unsupported);
    assert_eq!(rig.status(&flush()), 2);
    assert_eq!(rig.status(&[header(0, 1 << 40), Buf::Write(512), Buf::Write(1)]), IOERR);
    assert_eq!(heard.take(), [], "what the guest did wrong is no failure of the disk");
}

#[test]
fn a_held_request_is_tried_again_after_a_pause_and_answered_once() {
    for features in [MODERN | FLUSH, MODERN | FLUSH | F_RING_PACKED, MODERN | FLUSH | F_IN_ORDER] {
        let (mut rig, heard) = holding(OnError::Hold, OnError::Report, features);
        rig.disk.fail_next(EIO);
        let posted = rig.post(&write());
        assert_eq!(rig.driver.used(), [], "the guest does not hear of it");
        assert_eq!(heard.take(), [Failure { op: WRITE, error: EIO, held: true }]);
        // Others go on meanwhile; in order, they wait behind it.
        rig.post(&read());
        let in_order = features & F_IN_ORDER != 0;
        assert_eq!(rig.driver.used().len(), usize::from(!in_order));
        let state = rig.pause();
        // It fails once more.
        rig.disk.fail_next(EIO);
        rig.go_on(state, features);
        assert_eq!((rig.driver.used().len(), heard.take().len()), (0, 1));
        let state = rig.pause();
        rig.go_on(state, features);
        let used = rig.driver.used();
        assert_eq!(used.len(), 1 + usize::from(in_order));
        assert_eq!(rig.driver.read(posted.buffers[2]), [OK]);
        assert_eq!(rig.disk.bytes()[..512], [7; 512]);
        assert_eq!(rig.status(&read()), OK);
    }
}

#[test]
fn a_full_disk_can_hold_requests_where_other_errors_are_the_guests() {
    let (mut rig, heard) = holding(OnError::HoldIfFull, OnError::Report, MODERN | FLUSH);
    rig.disk.fail_next(EIO);
    assert_eq!(rig.status(&write()), IOERR);
    rig.disk.fail_next(BlkError::NoSpace);
    rig.post(&write());
    assert_eq!(rig.driver.used(), []);
    assert_eq!(heard.take().last(), Some(&Failure { op: WRITE, error: BlkError::NoSpace, held: true }));
    let state = rig.pause();
    rig.go_on(state, MODERN | FLUSH);
    assert_eq!(rig.driver.used().len(), 1);
}

#[test]
fn a_flush_that_is_held_succeeds_when_the_operator_says_to_go_on() {
    let (mut rig, heard) = holding(OnError::Hold, OnError::Report, MODERN | FLUSH);
    rig.disk.fail_next(EIO);
    rig.post(&flush());
    rig.post(&flush());
    let errors: Vec<_> = heard.take().iter().map(|failure| (failure.error, failure.held)).collect();
    assert_eq!(errors, [(EIO, true), (BlkError::Lost, true)]);
    let state = rig.pause();
    rig.device.go_on();
    rig.go_on(state, MODERN | FLUSH);
    assert_eq!(rig.driver.used().len(), 2);
}

#[test]
fn reads_are_held_where_that_is_wanted_and_a_short_one_is_a_failure() {
    let (mut rig, heard) = holding(OnError::Report, OnError::Hold, MODERN | FLUSH);
    rig.disk.fail_next(BlkError::Short);
    rig.post(&read());
    assert_eq!(heard.take(), [Failure { op: BlkOp::Read, error: BlkError::Short, held: true }]);
    let state = rig.pause();
    rig.go_on(state, MODERN | FLUSH);
    assert_eq!(rig.driver.used(), [Used { head: 0, len: 513 }]);
}

#[test]
fn a_reset_makes_an_end_of_held_requests() {
    for paused in [false, true] {
        let (mut rig, _) = holding(OnError::Hold, OnError::Report, MODERN | FLUSH);
        rig.disk.fail_next(EIO);
        rig.post(&write());
        if paused {
            rig.pause();
            rig.worker.forget(0);
        } else {
            rig.worker.begin_stop(&rig.mem);
            assert!(rig.worker.poll_stopped(&rig.mem, true));
            rig.worker.take_state(0);
        }
        rig.disk.take_log();
        rig.start(MODERN | FLUSH);
        rig.step();
        assert_eq!((rig.driver.used().len(), rig.disk.take_log()), (0, vec![]));
        assert_eq!(rig.status(&read()), OK);
    }
}

#[test]
fn segments_are_erased_one_after_the_other_and_all_are_checked_before() {
    let erase = Some(EraseLimits { max_sectors: 8, max_segments: 3, alignment_sectors: 1 });
    let mut rig = rig(BlkConfig { discard: erase, ..Default::default() }, MODERN | FLUSH | DISCARD);
    rig.disk.fill(0, &[9; SECTORS * 512]);
    let Buf::Read(first) = segment(1, 2, 0) else { unreachable!() };
    let Buf::Read(none) = segment(5, 0, 0) else { unreachable!() };
    let Buf::Read(last) = segment(8, 1, 0) else { unreachable!() };
    let Buf::Read(beyond) = segment(SECTORS as u64, 1, 0) else { unreachable!() };
    let request = |segments: &[&Vec<u8>]| {
        let bytes = segments.iter().flat_map(|segment| segment.iter().copied()).collect();
        [header(11, 0), Buf::Read(bytes), Buf::Write(1)]
    };
    assert_eq!(rig.status(&request(&[&first, &none, &last])), OK);
    let zero: Vec<usize> = (0..SECTORS).filter(|n| rig.disk.bytes()[n * 512] == 0).collect();
    assert_eq!(zero, [1, 2, 8]);
    assert_eq!(rig.disk.take_log(), [BlkOp::Discard; 2], "what has no sectors is no work");
    for refused in [&[&first, &beyond][..], &[&first; 4], &[]] {
        assert_eq!(rig.status(&request(refused)), IOERR);
    }
    assert_eq!(rig.disk.take_log(), []);
    // A disk that fails the second one fails the request.
    rig.disk.hold(true);
    let posted = rig.post(&request(&[&first, &last]));
    rig.disk.fail_next(EIO);
    assert!(rig.disk.complete(0));
    rig.step();
    assert!(rig.disk.complete(0));
    rig.step();
    assert_eq!(rig.driver.read(posted.buffers[2]), [IOERR]);
}

#[test]
fn a_held_request_behind_the_new_end_of_a_disk_that_shrank_meanwhile_is_an_error_and_never_reaches_the_disk() {
    let (mut rig, _) = holding(OnError::Hold, OnError::Hold, MODERN | FLUSH);
    let end = SECTORS as u64 - 1;
    rig.disk.fail_next(EIO);
    rig.disk.fail_next(EIO);
    let behind = rig.post(&[header(1, end), Buf::Read(vec![7; 512]), Buf::Write(1)]);
    let inside = rig.post(&write());
    let state = rig.pause();
    rig.device.set_capacity(end);
    rig.disk.take_log();
    rig.go_on(state, MODERN | FLUSH);
    assert_eq!(rig.disk.take_log(), [WRITE], "it would make the file longer again");
    let used: Vec<_> = rig.driver.used().iter().map(|used| used.head).collect();
    assert_eq!(used.len(), 2, "{used:?}");
    assert_eq!([behind, inside].map(|posted| rig.driver.read(posted.buffers[2])[0]), [IOERR, OK]);
}

#[test]
fn a_request_that_is_tried_again_begins_though_the_queue_is_paused_before_its_first_step() {
    let (mut rig, _) = holding(OnError::Hold, OnError::Report, MODERN | FLUSH);
    rig.disk.fail_next(EIO);
    let posted = rig.post(&write());
    let state = rig.pause();
    let activation = rig.interrupt.activation(MODERN | FLUSH);
    rig.worker.start(&rig.mem, 0, state, &activation);
    // Nothing else is submitted from here on, whose commit would be this one's, too; and the pause waits for the disk.
    rig.pause();
    assert_eq!(rig.driver.used().len(), 1);
    assert_eq!(rig.driver.read(posted.buffers[2]), [OK]);
}

#[test]
fn a_request_that_is_tried_again_begins_though_its_driver_has_broken_the_ring_meanwhile() {
    let (mut rig, _) = holding(OnError::Hold, OnError::Report, MODERN | FLUSH);
    rig.disk.fail_next(EIO);
    let posted = rig.post(&write());
    rig.driver.set_avail_index(100);
    rig.step();
    assert_eq!(rig.interrupt.take_needs_reset().len(), 1);
    let state = rig.pause();
    rig.go_on(state, MODERN | FLUSH);
    assert_eq!(rig.driver.read(posted.buffers[2]), [OK], "nobody takes chains from here on");
    rig.pause();
}
