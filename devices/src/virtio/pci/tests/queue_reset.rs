//! Ring features of the runner: packed rings, in-order use and the reset of one queue (virtio 1.3 §2.6.1).

use super::*;
use crate::virtio::F_RING_RESET;
use crate::virtio::queue::{F_IN_ORDER, F_RING_PACKED};

const RINGS: u64 = F_RING_PACKED | F_IN_ORDER | F_RING_RESET;

fn rig_with(rings: u64) -> Rig {
    let mut rig = rig(Shape { rings, ..Default::default() });
    rig.enable();
    rig
}

/// A device whose driver accepted `rings` beside the usual, with both queues running.
fn running(rings: u64) -> Rig {
    let mut rig = rig_with(RINGS);
    assert!(rig.negotiate(VERSION_1 | INDIRECT | rings));
    for queue in 0..2 {
        rig.set_up_queue(queue, queue + 1);
    }
    rig.set(field::STATUS, 1, 15);
    assert_eq!(rig.runner.running(), [0, 1]);
    rig
}

#[test]
fn ring_features_are_offered_where_the_runner_carries_them_and_never_to_legacy_drivers() {
    for rings in [0, F_RING_PACKED, F_IN_ORDER, F_RING_RESET, RINGS] {
        let mut rig = rig_with(rings);
        assert_eq!(rig.device_features() & RINGS, rings);
        assert_eq!(rig.negotiate(VERSION_1 | RINGS), rings == RINGS);
        let base = rig.bar(0);
        assert_eq!(rig.inp(base, 4), INDIRECT | 1 << 24 | 0b101);
    }
    let mut rig = rig_with(u64::MAX);
    assert_eq!(rig.device_features() & !RINGS, super::rig_features(), "a runner has no say in anything else");
}

#[test]
fn packed_rings_start_with_wrap_counter_1_and_may_have_any_size() {
    let mut rig = rig_with(RINGS);
    assert!(rig.negotiate(VERSION_1 | F_RING_PACKED));
    rig.set_up_queue(0, 0xffff);
    rig.set(field::SELECT, 2, 1);
    rig.set(field::SIZE, 2, 100);
    assert_eq!(rig.get(field::SIZE, 2), 100);
    rig.set(field::ENABLE, 2, 1);
    rig.set(field::STATUS, 1, 15);
    let starts = rig.runner.starts.lock().unwrap();
    let packed = QueueState { next_avail: 0x8000, next_used: 0x8000, ..ring(0) };
    assert_eq!(starts[0][0], (0, packed));
    assert_eq!((starts[0][1].1.size, starts[0][1].1.next_avail), (100, 0x8000));
}

#[test]
fn a_queue_is_reset_and_set_up_again_elsewhere_while_the_other_one_runs() {
    for packed in [0, F_RING_PACKED] {
        let mut rig = running(F_RING_RESET | packed);
        rig.set(field::SELECT, 2, 1);
        assert_eq!((rig.get(field::RESET, 2), rig.get(field::ENABLE, 2)), (0, 1));
        rig.set(field::RESET, 2, 1);
        assert!(rig.parked.is_none(), "the driver polls the register instead of waiting in the write");
        assert_eq!((rig.get(field::RESET, 2), rig.get(field::ENABLE, 2)), (0, 0));
        assert_eq!((rig.get(field::SIZE, 2), rig.get(field::DESC, 8), rig.get(field::VECTOR, 2)), (256, 0, 0xffff));
        assert_eq!((rig.status(), rig.runner.running()), (15, vec![0]));
        assert_eq!(rig.doorbells().len(), 1);
        for (field, width, value) in [
            (field::SIZE, 2, 16),
            (field::DESC, 8, 0x7000),
            (field::DRIVER, 8, 0x8000),
            (field::DEVICE, 8, 0x9000),
            (field::ENABLE, 2, 1),
        ] {
            rig.set(field, width, value);
        }
        let next = if packed != 0 { QueueState::PACKED_START } else { 0 };
        let again = QueueState {
            size: 16,
            desc_table: 0x7000,
            avail_ring: 0x8000,
            used_ring: 0x9000,
            next_avail: next,
            next_used: next,
        };
        assert_eq!(rig.runner.starts.lock().unwrap()[1..], [vec![(1, again)]]);
        assert_eq!((rig.runner.running(), rig.doorbells().len()), (vec![0, 1], 2));
        rig.set(field::DESC, 8, 0xdead_0000);
        assert_eq!(rig.get(field::DESC, 8), 0x7000, "frozen again");
        rig.set(field::ENABLE, 2, 1);
        assert_eq!(rig.runner.starts.lock().unwrap().len(), 2, "and started once");
    }
}

#[test]
fn a_slow_queue_reset_reads_1_and_changes_nothing_until_it_is_done() {
    let mut rig = running(F_RING_RESET);
    *rig.runner.slow.lock().unwrap() = true;
    rig.set(field::SELECT, 2, 0);
    rig.set(field::RESET, 2, 1);
    assert_eq!((rig.get(field::RESET, 2), rig.get(field::ENABLE, 2)), (1, 1));
    rig.set(field::DESC, 8, 0x7000);
    rig.set(field::ENABLE, 2, 1);
    rig.set(field::RESET, 2, 1);
    assert_eq!(rig.runner.stopping_queues.lock().unwrap().len(), 1, "asked for once");
    assert_eq!(rig.get(field::DESC, 8), ring(0).desc_table);
    rig.runner.stop_queues();
    assert_eq!((rig.get(field::RESET, 2), rig.get(field::ENABLE, 2), rig.get(field::DESC, 8)), (0, 0, 0));
}

#[test]
fn a_queue_reset_needs_the_feature_the_value_1_and_a_queue_that_is_enabled() {
    let mut rig = running(0);
    rig.set(field::SELECT, 2, 0);
    rig.set(field::RESET, 2, 1);
    assert_eq!(rig.runner.running(), [0, 1], "not negotiated");
    let mut rig = running(F_RING_RESET);
    for (select, value, width) in
        [(0, 0, 2), (0, 2, 2), (0, 0xffff, 2), (0, 1, 1), (0, 1, 4), (2, 1, 2), (0xffff, 1, 2)]
    {
        rig.set(field::SELECT, 2, select);
        rig.set(field::RESET, width, value);
    }
    assert_eq!(rig.runner.running(), [0, 1]);
    rig.set(field::SELECT, 2, 0);
    for _ in 0..2 {
        rig.set(field::RESET, 2, 1);
        assert_eq!(rig.runner.running(), [1]);
    }
    // Before DRIVER_OK there is nothing to stop.
    let mut rig = rig_with(RINGS);
    assert!(rig.negotiate(VERSION_1 | F_RING_RESET));
    rig.set_up_queue(0, 1);
    rig.set(field::RESET, 2, 1);
    assert_eq!((rig.get(field::ENABLE, 2), rig.get(field::DESC, 8)), (0, 0));
    rig.set(field::STATUS, 1, 15);
    assert_eq!(rig.runner.running(), [] as [u16; 0]);
}

#[test]
fn a_device_reset_overtakes_a_queue_reset_and_the_late_end_of_it_changes_nothing() {
    let mut rig = running(F_RING_RESET);
    *rig.runner.slow.lock().unwrap() = true;
    rig.set(field::SELECT, 2, 0);
    rig.set(field::RESET, 2, 1);
    rig.set(field::STATUS, 1, 0);
    let parked = rig.parked.take().unwrap();
    rig.runner.stop();
    assert!(parked.is_complete());
    assert!(rig.negotiate(VERSION_1 | F_RING_RESET));
    rig.set_up_queue(0, 1);
    rig.set(field::STATUS, 1, 15);
    let tokens: Vec<_> = rig.runner.stopping_queues.lock().unwrap().drain(..).collect();
    tokens[0].1.complete();
    assert_eq!((rig.get(field::ENABLE, 2), rig.get(field::DESC, 8)), (1, ring(0).desc_table));
    assert_eq!(rig.runner.running(), [0]);
}

#[test]
fn the_end_of_a_queue_reset_of_a_former_driver_is_not_taken_for_that_of_the_present_one() {
    let mut rig = running(F_RING_RESET);
    *rig.runner.slow.lock().unwrap() = true;
    rig.set(field::SELECT, 2, 0);
    rig.set(field::RESET, 2, 1);
    let old: Vec<_> = rig.runner.stopping_queues.lock().unwrap().drain(..).collect();
    rig.set(field::STATUS, 1, 0);
    rig.runner.stop();
    assert!(rig.negotiate(VERSION_1 | F_RING_RESET));
    rig.set_up_queue(0, 1);
    rig.set(field::STATUS, 1, 15);
    rig.set(field::RESET, 2, 1);
    old[0].1.complete();
    assert_eq!((rig.get(field::RESET, 2), rig.get(field::ENABLE, 2)), (1, 1), "an engine may still be at work");
    rig.runner.stop_queues();
    assert_eq!(rig.get(field::RESET, 2), 0);
}

#[test]
fn two_queues_that_were_reset_start_once_each() {
    let mut rig = running(F_RING_RESET);
    for queue in 0..2 {
        rig.set(field::SELECT, 2, queue);
        rig.set(field::RESET, 2, 1);
    }
    for queue in 0..2 {
        rig.set_up_queue(queue, 0xffff);
    }
    assert_eq!(rig.runner.starts.lock().unwrap()[1..], [vec![(0, ring(0))], vec![(1, ring(1))]]);
}

#[test]
fn a_queue_that_was_not_enabled_before_driver_ok_stays_as_it_is() {
    let mut rig = rig_with(RINGS);
    assert!(rig.negotiate(VERSION_1 | F_RING_RESET));
    rig.set_up_queue(0, 1);
    rig.set(field::STATUS, 1, 15);
    rig.set(field::SELECT, 2, 1);
    for (field, width, value) in [(field::SIZE, 2, 8), (field::DESC, 8, 0x7000), (field::ENABLE, 2, 1)] {
        let before = rig.get(field, width);
        rig.set(field, width, value);
        assert_eq!(rig.get(field, width), before, "{field:#x}");
    }
    assert_eq!(rig.runner.running(), [0]);
}

#[test]
fn a_queue_reset_that_was_pending_when_the_device_was_saved_is_done_after_restore() {
    let mut one = running(F_RING_RESET);
    *one.runner.slow.lock().unwrap() = true;
    one.set(field::SELECT, 2, 1);
    one.set(field::RESET, 2, 1);
    let saved = one.function.save();
    let mut two = rig(Shape { rings: RINGS, ..Default::default() });
    two.function.restore(&saved, &[(0, ring(0))]).unwrap();
    assert_eq!((two.get(field::SELECT, 2), two.get(field::RESET, 2), two.get(field::ENABLE, 2)), (1, 0, 0));
    two.set(field::DESC, 8, 0x7000);
    two.set(field::ENABLE, 2, 1);
    assert_eq!(two.runner.running(), [0, 1]);
}

#[test]
fn needs_reset_outlives_a_queue_reset() {
    let mut rig = running(F_RING_RESET);
    rig.needs_reset(0);
    rig.set(field::SELECT, 2, 0);
    rig.set(field::RESET, 2, 1);
    assert_eq!(rig.status(), 0x4f, "only status 0 clears it (§2.1.1)");
}
