//! A disk queue whose back end completes everything at once.

use std::collections::VecDeque;
use std::sync::Arc;

use devices::virtio::blk::{BlkBackend, BlkConfig, BlkDevice, BlkError, BlkRequest, BlkStats, BlkWorker, RequestToken};
use devices::virtio::limit::{Meters, Rate, Throttle};
use devices::virtio::testing::Buf;

use super::{HostClock, Null, QUEUE_SIZE, Running};

/// `VIRTIO_F_VERSION_1` and `VIRTIO_BLK_F_FLUSH`.
const FEATURES: u64 = 1 << 32 | 1 << 9;

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

/// One queue of a disk.
pub struct NullQueue(Running<BlkWorker<NullDisk>>);

impl NullQueue {
    /// One with a ring of either format.
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
        let device = BlkDevice::new(BlkConfig { capacity_sectors: 1 << 20, ..BlkConfig::default() });
        let disk = NullDisk(VecDeque::with_capacity(QUEUE_SIZE.into()));
        Self(Running::start(equip(device.worker(0, disk, Arc::default())), 0, FEATURES, packed))
    }
}

impl Null for NullQueue {
    /// Reads of 4 KiB, as Linux posts them: each an indirect table of header, data and status.
    fn post(&mut self, count: u64) {
        for _ in 0..count {
            self.0.driver.post_indirect(&[Buf::Read(vec![0; 16]), Buf::Write(4096), Buf::Write(1)]);
        }
        self.0.driver.publish();
    }

    fn step(&mut self) {
        self.0.step();
    }

    fn take_back(&mut self, count: u64) {
        self.0.take_back(count);
    }
}
