//! How many requests a step takes.

use super::*;
use crate::virtio::queue::F_INDIRECT_DESC;

/// Of 32 KiB each, which is all of the disk.
const READ_BYTES: u32 = SECTORS as u32 * 512;

impl Rig {
    fn post_reads(&mut self, count: usize) {
        for _ in 0..count {
            self.driver.post_indirect(&[header(0, 0), Buf::Write(READ_BYTES), Buf::Write(1)]);
        }
        self.driver.publish();
    }

    /// Takes one step; how many requests it has asked the disk for.
    fn asked(&mut self) -> usize {
        self.worker.step(&self.mem);
        self.disk.take_log().len()
    }
}

#[test]
fn a_disk_that_answers_at_once_is_asked_for_a_part_and_one_that_takes_its_time_for_all() {
    let mut rig = rig(BlkConfig::default(), MODERN | F_INDIRECT_DESC);
    rig.post_reads(8);
    assert_eq!(rig.asked(), 4, "the driver is shown 128 KiB before the rest is read");
    assert_eq!(rig.driver.used().len(), 4);
    assert_eq!(rig.asked(), 4);
    assert_eq!(rig.driver.used().len(), 4);

    rig.disk.hold(true);
    rig.post_reads(1);
    assert_eq!(rig.asked(), 1);
    rig.post_reads(7);
    assert_eq!(rig.asked(), 7, "nobody waits for the last of them any longer than for the first");
    while rig.disk.complete(0) {}
    rig.step();
    assert_eq!(rig.driver.used().len(), 8);

    rig.disk.hold(false);
    rig.post_reads(8);
    assert_eq!(rig.asked(), 8, "it took its time the last time");
    assert_eq!(rig.driver.used().len(), 8);
    rig.post_reads(8);
    assert_eq!(rig.asked(), 4);
}

#[test]
fn a_worker_beside_its_driver_takes_as_much_as_it_was_told() {
    let mut rig = rig(BlkConfig::default(), MODERN);
    let worker = rig.device.worker(0, rig.disk.clone(), rig.counters.clone());
    rig.worker = Box::new(worker.with_round_bytes(6 * u64::from(READ_BYTES)));
    rig.start(MODERN | F_INDIRECT_DESC);
    rig.post_reads(8);
    assert_eq!((rig.asked(), rig.asked()), (6, 2));
}

#[test]
fn a_step_goes_on_where_the_driver_is_behind_anyway_and_not_for_ever() {
    const SIZE: u16 = 16;
    let features = MODERN | F_INDIRECT_DESC;
    let mut rig = rig(BlkConfig::default(), MODERN);
    let config = BlkConfig { capacity_sectors: SECTORS as u64, queue_size: SIZE, ..BlkConfig::default() };
    rig.device = BlkDevice::new(config);
    let worker = rig.device.worker(0, rig.disk.clone(), rig.counters.clone());
    rig.worker = Box::new(worker.with_round_bytes(READ_BYTES.into()));
    rig.driver = DriverQueue::new(&rig.mem, 0x10_0000, SIZE, features);
    rig.worker.start(&rig.mem, 0, rig.driver.state(), &rig.interrupt.activation(features));
    for (posted, first) in [(4, 1), (5, 2), (15, 4)] {
        rig.post_reads(posted);
        assert_eq!(rig.asked(), first, "of {posted}: four times as many wait, and four times the bytes at most");
        while rig.asked() > 0 {}
        assert_eq!(rig.driver.used().len(), posted);
    }
    // The driver keeps up: what it has posted since the worker looked counts as well.
    rig.post_reads(15);
    assert_eq!((rig.asked(), rig.driver.used().len()), (4, 4));
    rig.post_reads(4);
    assert_eq!(rig.asked(), 4);
}
