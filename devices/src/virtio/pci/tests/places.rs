//! A queue whose index depends on the driver's features (virtio 1.3 §5.1.2), as that of virtio-net's control queue does.

use super::*;
use crate::virtio::F_RING_RESET;

/// A device with four queues; without the feature of bit 0 index 1 means the last one.
fn shape() -> Shape {
    Shape { queues: vec![256; 4], vectors: 5, rings: F_RING_RESET, moves: true, ..Default::default() }
}

/// One that runs with three queues enabled, queue *n* on vector *n* + 1.
fn running(features: u64) -> Rig {
    let mut rig = rig(shape());
    rig.enable();
    rig.enable_msix();
    assert!(rig.negotiate(VERSION_1 | F_RING_RESET | features));
    for queue in 0..3 {
        rig.set_up_queue(queue, queue + 1);
    }
    rig.set(field::STATUS, 1, 15);
    rig
}

fn kick(rig: &mut Rig, queue: u64) {
    let (notify, multiplier) = (rig.structure(2).unwrap().1, 4);
    rig.store(notify + queue * multiplier, 2, queue);
}

#[test]
fn a_queue_runs_by_the_devices_index_and_is_rung_and_interrupts_by_the_drivers() {
    let mut rig = running(0);
    assert_eq!(rig.runner.starts.lock().unwrap()[0], [(0, ring(0)), (3, ring(1))], "a third is not there");
    let placed: Vec<_> = rig.doorbells();
    let notify = rig.structure(2).unwrap().1;
    let at = |queue: u64| Doorbell::Mmio { address: notify + queue * 4, len: 2 };
    assert_eq!(placed, [(0, at(0)), (3, at(1))]);
    (0..5).for_each(|queue| kick(&mut rig, queue));
    assert_eq!(rig.runner.kicks(), [0, 3]);
    rig.runner.interrupt().queue_used(3);
    assert_eq!(rig.sent(), [0, 0, 1, 0, 0], "the driver gave queue 1 vector 2");
    rig.runner.interrupt().queue_used(1);
    assert_eq!(rig.sent(), [0, 0, 1, 0, 0], "and there is no other");
}

#[test]
fn with_the_feature_and_with_the_next_driver_all_is_where_it_is_meant_to_be() {
    let mut rig = running(1);
    assert_eq!(rig.runner.running(), [0, 1, 2]);
    for features in [0, 1, 0] {
        rig.set(field::STATUS, 1, 0);
        assert_eq!(rig.doorbells(), []);
        assert!(rig.negotiate(VERSION_1 | features));
        for queue in 0..3 {
            rig.set_up_queue(queue, queue + 1);
        }
        rig.set(field::STATUS, 1, 15);
        let expected = if features == 0 { vec![0, 3] } else { vec![0, 1, 2] };
        assert_eq!(rig.runner.running(), expected);
        assert_eq!(rig.doorbells().iter().map(|(queue, _)| *queue).collect::<Vec<_>>(), expected);
        kick(&mut rig, 1);
        assert_eq!(rig.runner.kicks(), [expected[1]]);
    }
}

#[test]
fn a_legacy_driver_without_the_feature_finds_its_queue_as_well() {
    let mut rig = rig(shape());
    rig.enable();
    let base = rig.bar(0);
    rig.outp(base + 18, 1, 3);
    rig.outp(base + 4, 4, 0b100);
    for queue in 0..2 {
        rig.outp(base + 14, 2, queue);
        rig.outp(base + 8, 4, 0x100 * (queue + 1));
    }
    rig.outp(base + 18, 1, 7);
    assert_eq!(rig.runner.running(), [0, 3]);
    rig.outp(base + 16, 2, 1);
    assert_eq!(rig.runner.kicks(), [3]);
    assert_eq!(rig.doorbells()[1], (3, Doorbell::Pio { port: base as u16 + 16, datamatch: 1 }));
}

#[test]
fn such_a_queue_is_reset_alone_and_one_that_is_not_there_at_once() {
    let mut rig = running(0);
    for (queue, left) in [(1, vec![0]), (2, vec![0])] {
        rig.set(field::SELECT, 2, queue);
        rig.set(field::RESET, 2, 1);
        assert_eq!((rig.get(field::RESET, 2), rig.get(field::ENABLE, 2)), (0, 0));
        assert_eq!(rig.runner.running(), left);
    }
    for queue in [1, 2] {
        rig.set_up_queue(queue, queue + 1);
    }
    assert_eq!((rig.runner.running(), rig.doorbells().len()), (vec![0, 3], 2));
}

#[test]
fn a_saved_driver_goes_on_with_the_queues_that_it_means() {
    let source = running(0);
    let (saved, queues) = (source.function.save(), [(0, ring(0)), (3, ring(1))]);
    let target = rig(shape());
    for wrong in [vec![(1, ring(1))], vec![(2, ring(2))], vec![(4, ring(1))]] {
        assert!(target.function.restore(&saved, &wrong).is_err(), "{wrong:?}");
    }
    target.function.restore(&saved, &queues).unwrap();
    assert_eq!(target.runner.running(), [0, 3]);
    target.runner.interrupt().queue_used(3);
    assert_eq!(target.sent(), [0, 0, 1, 0, 0]);
    assert_eq!(target.doorbells().iter().map(|(queue, _)| *queue).collect::<Vec<_>>(), [0, 3]);
}
