//! A worker that looks for the next request for a while before it asks to be kicked for it.

use super::*;
use crate::virtio::Step;
use crate::virtio::queue::F_RING_PACKED;

fn lingering() -> Step {
    Step { lingers: true, ..Step::default() }
}

impl Rig {
    fn linger(&mut self) -> Step {
        for _ in 0..100 {
            let step = self.worker.linger(&self.mem);
            if !step.again {
                return step;
            }
        }
        panic!("the worker never came to rest");
    }

    /// Posts a read; whether the device wants to be kicked for it.
    fn post_read(&mut self) -> bool {
        self.driver.post(&[header(0, 0), Buf::Write(512), Buf::Write(1)]);
        self.driver.publish()
    }
}

#[test]
fn a_driver_need_not_kick_while_the_worker_looks_and_has_to_before_it_sleeps() {
    for features in [0, F_EVENT_IDX, F_RING_PACKED, F_RING_PACKED | F_EVENT_IDX] {
        let mut rig = rig(BlkConfig::default(), features);
        rig.step();
        assert!(rig.post_read(), "it has slept");
        assert_eq!(rig.linger(), lingering());
        assert_eq!(rig.driver.used().len(), 1, "the request is done all the same");
        assert!(!rig.worker.has_work(&rig.mem));

        assert!(!rig.post_read(), "§2.7.10, §2.8.10: {features:#x}");
        assert!(rig.worker.has_work(&rig.mem), "the driver will not say it again");
        assert_eq!(rig.linger(), lingering());
        assert_eq!(rig.driver.used().len(), 1);

        assert!(!rig.post_read());
        rig.step();
        assert_eq!(rig.driver.used().len(), 1, "what came at the last moment is found before it sleeps");
        assert!(rig.post_read(), "{features:#x}");
    }
}

#[test]
fn a_worker_with_requests_under_way_asks_to_be_kicked() {
    // Completions wake a worker that sleeps; one that looks for chains alone would come to them late.
    let mut rig = rig(BlkConfig::default(), F_EVENT_IDX);
    rig.disk.hold(true);
    rig.post_read();
    assert_eq!(rig.linger(), Step::default());
    assert!(rig.post_read());
    assert_eq!(rig.linger(), Step::default());
    assert!(rig.disk.complete(0) && rig.disk.complete(0));
    assert_eq!(rig.linger(), lingering());
    assert_eq!(rig.driver.used().len(), 2);
}

#[test]
fn a_broken_ring_has_no_work() {
    let mut rig = rig(BlkConfig::default(), 0);
    rig.linger();
    rig.driver.set_avail_index(1000);
    assert!(rig.worker.has_work(&rig.mem), "somebody has to find out");
    rig.linger();
    assert!(!rig.worker.has_work(&rig.mem) && rig.interrupt.take_needs_reset().len() == 1);
    assert_eq!(rig.linger(), Step::default());
}
