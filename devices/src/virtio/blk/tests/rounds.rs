//! How many requests a step takes.

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

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

/// A rig whose queue is longer, with a worker that takes so many bytes a step.
fn long_rig<B: BlkBackend<GuestRam> + Send + 'static>(round_bytes: u64, backend: impl FnOnce(&mut Rig) -> B) -> Rig {
    const SIZE: u16 = 32;
    let features = MODERN | F_INDIRECT_DESC;
    let mut rig = rig(BlkConfig::default(), MODERN);
    let config = BlkConfig { capacity_sectors: SECTORS as u64, queue_size: SIZE, ..BlkConfig::default() };
    rig.device = BlkDevice::new(config);
    rig.driver = DriverQueue::new(&rig.mem, 0x10_0000, SIZE, features);
    let backend = backend(&mut rig);
    let worker = rig.device.worker(0, backend, rig.counters.clone());
    rig.worker = Box::new(worker.with_round_bytes(round_bytes));
    rig.worker.start(&rig.mem, 0, rig.driver.state(), &rig.interrupt.activation(features));
    rig
}

fn post_sectors(driver: &mut DriverQueue, count: usize) {
    for _ in 0..count {
        driver.post_indirect(&[header(0, 0), Buf::Write(512), Buf::Write(1)]);
    }
    driver.publish();
}

#[test]
fn a_step_goes_on_where_the_driver_is_behind_anyway_and_not_for_ever() {
    let mut rig = long_rig(512, |rig| rig.disk.clone());
    for (posted, first) in [(4, 1), (5, 2), (15, 6), (31, 8)] {
        post_sectors(&mut rig.driver, posted);
        assert_eq!(
            rig.asked(),
            first,
            "of {posted}: twice as many wait, four at least, and eight times the bytes at most"
        );
        while rig.asked() > 0 {}
        assert_eq!(rig.driver.used().len(), posted);
    }
    // What the driver has posted since the worker looked counts as well.
    post_sectors(&mut rig.driver, 31);
    assert_eq!((rig.asked(), rig.driver.used().len()), (8, 8));
    post_sectors(&mut rig.driver, 8);
    assert_eq!(rig.asked(), 8);
}

/// A disk whose driver posts as many reads as it is told while a step takes its own.
struct Meanwhile {
    disk: MemoryDisk,
    driver: Arc<Mutex<DriverQueue>>,
    posts: Arc<AtomicUsize>,
}

impl BlkBackend<GuestRam> for Meanwhile {
    fn has_room(&self) -> bool {
        BlkBackend::<GuestRam>::has_room(&self.disk)
    }

    fn submit(&mut self, mem: &GuestRam, request: BlkRequest<'_>) -> Result<(), BlkError> {
        post_sectors(&mut self.driver.lock().unwrap(), self.posts.swap(0, Ordering::Relaxed));
        self.disk.submit(mem, request)
    }

    fn set_write_cache(&mut self, write_back: bool) {
        BlkBackend::<GuestRam>::set_write_cache(&mut self.disk, write_back);
    }

    fn commit(&mut self) {
        BlkBackend::<GuestRam>::commit(&mut self.disk);
    }

    fn poll(&mut self, mem: &GuestRam, done: &mut dyn FnMut(RequestToken, Result<(), BlkError>)) {
        self.disk.poll(mem, done);
    }

    fn cancel_all(&mut self) {
        BlkBackend::<GuestRam>::cancel_all(&mut self.disk);
    }

    fn in_flight(&self) -> usize {
        BlkBackend::<GuestRam>::in_flight(&self.disk)
    }
}

#[test]
fn a_step_is_half_as_long_again_where_the_driver_answers_while_it_takes_what_waited() {
    for (round_bytes, longer) in [(512, 1), (1024, 3)] {
        let posts = Arc::<AtomicUsize>::default();
        let mut driver = None;
        let mut rig = long_rig(round_bytes, |rig| {
            let shared = Arc::new(Mutex::new(DriverQueue::new(&rig.mem, 0x10_0000, 32, MODERN | F_INDIRECT_DESC)));
            driver = Some(shared.clone());
            Meanwhile { disk: rig.disk.clone(), driver: shared, posts: posts.clone() }
        });
        let driver = driver.unwrap();
        let usual = round_bytes as usize / 512;
        let waits = 2 * usual - 1;
        post_sectors(&mut driver.lock().unwrap(), usual + waits);
        assert_eq!(rig.asked(), usual, "nothing came while it took them");
        posts.store(usual, Ordering::Relaxed);
        assert_eq!(rig.asked(), longer, "what waited, and of what came meanwhile");
        while rig.asked() > 0 {}
        assert_eq!(driver.lock().unwrap().used().len(), 2 * usual + waits);
        // What comes to a worker that had nothing says nothing of how quick its driver is.
        post_sectors(&mut driver.lock().unwrap(), usual);
        posts.store(usual, Ordering::Relaxed);
        assert_eq!(rig.asked(), usual);
    }
}
