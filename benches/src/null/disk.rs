//! A disk queue whose back end completes everything at once.

use std::collections::VecDeque;
use std::sync::Arc;

use devices::GuestRam;
use devices::virtio::VirtioWorker as _;
use devices::virtio::blk::{BlkBackend, BlkConfig, BlkDevice, BlkError, BlkRequest, BlkStats, BlkWorker, RequestToken};
use devices::virtio::limit::{Meters, Rate, Throttle};
use devices::virtio::queue::{F_EVENT_IDX, F_INDIRECT_DESC, F_RING_PACKED};
use devices::virtio::testing::{Buf, DriverQueue, RecordingInterrupt, guest_ram};

use super::HostClock;

/// `VIRTIO_F_VERSION_1` and `VIRTIO_BLK_F_FLUSH`.
const FEATURES: u64 = 1 << 32 | 1 << 9 | F_INDIRECT_DESC | F_EVENT_IDX;

/// A disk that does nothing.
struct NullDisk(VecDeque<RequestToken>);

impl<M: ?Sized> BlkBackend<M> for NullDisk {
    fn submit(&mut self, _mem: &M, request: BlkRequest<'_>) -> Result<(), BlkError> {
        self.0.push_back(request.token);
        Ok(())
    }
    fn poll(&mut self, _mem: &M, done: &mut dyn FnMut(RequestToken, Result<(), BlkError>)) {
        self.0.drain(..).for_each(|token| done(token, Ok(())));
    }
    fn cancel_all(&mut self) {}
    fn in_flight(&self) -> usize {
        self.0.len()
    }
}

/// A queue with its worker and its driver.
pub struct NullQueue {
    mem: GuestRam,
    worker: BlkWorker<NullDisk>,
    driver: DriverQueue,
    interrupt: Arc<RecordingInterrupt>,
}

impl NullQueue {
    /// One with a ring of 256 entries, of either format.
    #[must_use]
    pub fn new(packed: bool) -> Self {
        Self::with(packed, |worker| worker)
    }

    /// As [`new`](Self::new) with a split ring, and the times of requests are measured.
    #[must_use]
    pub fn measured() -> Self {
        Self::with(false, |worker| worker.with_stats(Arc::new(BlkStats::new(true)), Arc::new(HostClock)))
    }

    /// As [`new`](Self::new) with a split ring, under limits of requests and bytes that it never reaches.
    #[must_use]
    pub fn limited() -> Self {
        let rate = Some(Rate { per_second: 10_000_000_000, burst: None });
        Self::with(false, |worker| worker.with_throttle(Throttle::new(&[Meters::new(rate, rate)], Arc::new(HostClock))))
    }

    fn with(packed: bool, equip: impl FnOnce(BlkWorker<NullDisk>) -> BlkWorker<NullDisk>) -> Self {
        let mem = guest_ram(0x40_0000);
        let features = FEATURES | if packed { F_RING_PACKED } else { 0 };
        let device = BlkDevice::new(BlkConfig { capacity_sectors: 1 << 20, ..BlkConfig::default() });
        let mut worker = equip(device.worker(0, NullDisk(VecDeque::with_capacity(256)), Arc::default()));
        let driver = DriverQueue::new(&mem, 0x10_0000, 256, features);
        let interrupt = RecordingInterrupt::new();
        worker.start(&mem, 0, driver.state(), &interrupt.activation(features));
        Self { mem, worker, driver, interrupt }
    }

    /// The driver posts reads of 4 KiB, as Linux does: each an indirect table of header, data and status.
    pub fn post(&mut self, count: u64) {
        for _ in 0..count {
            self.driver.post_indirect(&[Buf::Read(vec![0; 16]), Buf::Write(4096), Buf::Write(1)]);
        }
        self.driver.publish();
    }

    /// The worker does what there is to do.
    pub fn step(&mut self) {
        while self.worker.step(&self.mem).again {}
    }

    /// The driver takes its requests back.
    ///
    /// # Panics
    /// When there are not so many.
    pub fn take_back(&mut self, count: u64) {
        assert_eq!(self.driver.used().len() as u64, count);
        self.interrupt.take_used();
    }
}
