//! Queues whose back ends do everything at once, and nothing.

mod disk;
mod net;

pub use disk::NullQueue;
pub use net::{NullCard, Way};

use std::sync::Arc;

use devices::GuestRam;
use devices::legacy::clock::Clock;
use devices::virtio::queue::{F_EVENT_IDX, F_INDIRECT_DESC, F_RING_PACKED};
use devices::virtio::testing::{DriverQueue, guest_ram};
use devices::virtio::{NeedsReset, VirtioInterrupt, VirtioWorker, WorkerActivation};

/// Entries of each ring.
const QUEUE_SIZE: u16 = 256;

/// A queue with its driver, its worker and what is behind that.
pub trait Null {
    /// So many requests or packets are there to be moved: at most as many as the ring has entries.
    fn post(&mut self, count: u64);

    /// The worker does what there is to do.
    fn step(&mut self);

    /// The driver takes its buffers back.
    ///
    /// # Panics
    /// When there are not so many.
    fn take_back(&mut self, count: u64);

    /// Moves `count` in all and `depth` at once; `measure` has to have the worker [`step`](Self::step), each time.
    fn run(&mut self, count: u64, depth: u64, mut measure: impl FnMut(&mut Self))
    where
        Self: Sized,
    {
        let mut left = count;
        while left > 0 {
            let now = left.min(depth);
            self.post(now);
            measure(self);
            self.take_back(now);
            left -= now;
        }
    }
}

/// One queue that runs.
struct Running<W> {
    mem: GuestRam,
    worker: W,
    driver: DriverQueue,
}

/// A driver that needs no interrupt: it looks after each step.
struct Unheard;

impl VirtioInterrupt for Unheard {
    fn queue_used(&self, _queue: u16) {}
    fn config_changed(&self) {}
    fn needs_reset(&self, why: &NeedsReset) {
        panic!("{}", why.reason);
    }
}

impl<W: VirtioWorker<GuestRam>> Running<W> {
    /// The queue of this index, with a ring of either format and `features` of its device beside those of the ring.
    fn start(mut worker: W, queue: u16, features: u64, packed: bool) -> Self {
        let mem = guest_ram(0x40_0000);
        let features = features | F_INDIRECT_DESC | F_EVENT_IDX | if packed { F_RING_PACKED } else { 0 };
        let driver = DriverQueue::new(&mem, 0x10_0000, QUEUE_SIZE, features);
        let activation = WorkerActivation { features, legacy: false, interrupt: Arc::new(Unheard) };
        worker.start(&mem, queue, driver.state(), &activation);
        Self { mem, worker, driver }
    }

    fn step(&mut self) {
        while self.worker.step(&self.mem).again {}
    }

    fn take_back(&mut self, count: u64) {
        assert_eq!(self.driver.used().len() as u64, count);
    }
}

/// The machine's clock.
struct HostClock;

impl Clock for HostClock {
    fn realtime(&self) -> (i64, u32) {
        devices_host::clock::realtime()
    }
    fn monotonic_ns(&self) -> u64 {
        devices_host::clock::monotonic_ns()
    }
}
