//! What the queues of a disk say they did, and how long it took: nothing is counted twice or lost.
//!
//! Time passes between two operations of a program alone. So a request takes no time from the ring to the disk and none from
//! the disk to its driver, and all that it takes is from the step it was taken in to the one it was answered in.

use std::sync::Arc;

use devices::legacy::clock::{Clock as _, ManualClock};
use devices::virtio::blk::{BlkStats, LatencySnapshot};

use crate::finding;

/// A disk whose queues are measured.
#[derive(Debug)]
pub struct Times {
    clock: Arc<ManualClock>,
    queues: Vec<Counted>,
    /// Requests were taken that no model saw.
    unknown: bool,
}

/// What one queue has to say.
#[derive(Clone, Copy, Debug, Default)]
struct Counted {
    taken: u64,
    answered: u64,
    sum_ns: u64,
    longest_ns: u64,
}

impl Times {
    /// Of a disk with so many queues that have done nothing.
    #[must_use]
    pub fn new(clock: &Arc<ManualClock>, queues: u16) -> Self {
        Self { clock: clock.clone(), queues: vec![Counted::default(); queues.into()], unknown: false }
    }

    /// A request for the disk is taken from a ring. When.
    pub fn taken(&mut self, queue: u16) -> u64 {
        if let Some(counted) = self.queues.get_mut(usize::from(queue)) {
            counted.taken += 1;
        }
        self.clock.monotonic_ns()
    }

    /// A request for the disk that was taken at `taken_ns` is answered.
    pub fn answered(&mut self, queue: u16, taken_ns: u64) {
        let Some(counted) = self.queues.get_mut(usize::from(queue)) else { return };
        let took_ns = self.clock.monotonic_ns() - taken_ns;
        counted.answered += 1;
        counted.sum_ns = counted.sum_ns.saturating_add(took_ns);
        counted.longest_ns = counted.longest_ns.max(took_ns);
    }

    /// The models do not see what is taken.
    pub fn forget(&mut self) {
        self.unknown = true;
    }

    /// The disk goes on in another process, which has counted nothing yet; requests are not saved.
    pub fn start_over(&mut self) {
        self.queues.fill(Counted::default());
    }

    /// Its queues are at rest, and have counted this.
    pub fn judge(&self, stats: &[Arc<BlkStats>]) {
        if self.unknown {
            return;
        }
        for (queue, (counted, stats)) in self.queues.iter().zip(stats).enumerate() {
            counted.judge(queue, stats);
        }
    }
}

impl Counted {
    fn judge(&self, queue: usize, stats: &BlkStats) {
        let Self { taken, answered, sum_ns, longest_ns } = *self;
        let found = stats.snapshot();
        let ops = found.ops;
        let asked = ops.read + ops.write + ops.flush + ops.discard + ops.write_zeroes;
        let Some(LatencySnapshot { queued, disk, injected, total }) = found.latency else {
            finding!("spec", "queue {queue} is to measure times and has none")
        };
        let counts = [asked, queued.count, disk.count, injected.count, total.count];
        if counts != [taken, taken, answered, answered, answered] {
            finding!("spec", "queue {queue} counts {counts:?} of {taken} requests, {answered} of them answered");
        }
        // A duration beyond the last bucket is one of its own; a sum that has no room stays the greatest there is.
        let mean_ns = sum_ns.checked_div(answered).unwrap_or(0);
        let took = [(disk.mean_ns, disk.max_ns), (total.mean_ns, total.max_ns)];
        if took != [(mean_ns, longest_ns); 2] || (queued.max_ns, injected.max_ns) != (0, 0) {
            finding!(
                "spec",
                "queue {queue} measured {took:?} at the disk and in all, {} before and {} after, where {:?} is right",
                queued.max_ns,
                injected.max_ns,
                (mean_ns, longest_ns)
            );
        }
        if found.in_flight > taken - answered || found.in_flight_max > taken {
            finding!("spec", "queue {queue} has {} requests in flight of {taken}", found.in_flight);
        }
    }
}
