//! What the queues of a disk say they did, and how long it took: nothing is counted twice or lost.
//!
//! Time passes between two operations of a program alone. So a request takes no time from the ring to the disk, and what it
//! takes at the disk is from the step it was taken in to the one it was answered in. Its driver is told in the same step,
//! but where a request that was kept ends as its queue goes on: then in the next step, if a reset does not come before.

use std::sync::Arc;

use devices::legacy::clock::{Clock as _, ManualClock};
use devices::virtio::blk::{BlkStats, LatencySnapshot};

use crate::finding;

/// A disk whose queues are measured.
#[derive(Debug)]
pub struct Times {
    clock: Arc<ManualClock>,
    queues: Vec<Counted>,
    /// What is answered, and not told yet.
    owed: Vec<Answer>,
    /// Requests were taken that no model saw.
    unknown: bool,
}

/// A request that the disk is through with.
#[derive(Clone, Copy, Debug)]
struct Answer {
    queue: u16,
    taken_ns: u64,
    answered_ns: u64,
}

/// What one queue has to say.
#[derive(Clone, Copy, Debug, Default)]
struct Counted {
    taken: u64,
    told: u64,
    disk: Durations,
    injected: Durations,
    total: Durations,
}

#[derive(Clone, Copy, Debug, Default)]
struct Durations {
    sum_ns: u64,
    longest_ns: u64,
}

impl Durations {
    fn add(&mut self, ns: u64) {
        self.sum_ns = self.sum_ns.saturating_add(ns);
        self.longest_ns = self.longest_ns.max(ns);
    }
}

impl Times {
    /// Of a disk with so many queues that have done nothing.
    #[must_use]
    pub fn new(clock: &Arc<ManualClock>, queues: u16) -> Self {
        let queues = vec![Counted::default(); queues.into()];
        Self { clock: clock.clone(), queues, owed: Vec::new(), unknown: false }
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
        self.owed.push(Answer { queue, taken_ns, answered_ns: self.clock.monotonic_ns() });
    }

    /// The drivers of `queues` are told what is answered in them.
    pub fn told(&mut self, queues: &[u16]) {
        let now_ns = self.clock.monotonic_ns();
        for Answer { queue, taken_ns, answered_ns } in self.owed.extract_if(.., |it| queues.contains(&it.queue)) {
            let Some(counted) = self.queues.get_mut(usize::from(queue)) else { continue };
            counted.told += 1;
            counted.disk.add(answered_ns - taken_ns);
            counted.injected.add(now_ns - answered_ns);
            counted.total.add(now_ns - taken_ns);
        }
    }

    /// A queue is reset: what is answered in it nobody is told.
    pub fn reset(&mut self, queue: u16) {
        self.owed.retain(|answer| answer.queue != queue);
    }

    /// The models do not see what is taken.
    pub fn forget(&mut self) {
        self.unknown = true;
    }

    /// The disk goes on in another process, which has counted nothing yet. Requests that are saved are taken anew there.
    pub fn start_over(&mut self) {
        self.queues.fill(Counted::default());
        self.owed.clear();
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
        let Self { taken, told, .. } = *self;
        let found = stats.snapshot();
        let ops = found.ops;
        let asked = ops.read + ops.write + ops.flush + ops.discard + ops.write_zeroes;
        let Some(LatencySnapshot { queued, disk, injected, total }) = found.latency else {
            finding!("spec", "queue {queue} is to measure times and has none")
        };
        let counts = [asked, queued.count, disk.count, injected.count, total.count];
        if counts != [taken, taken, told, told, told] {
            finding!("spec", "queue {queue} counts {counts:?} of {taken} requests, {told} of them answered");
        }
        // A duration beyond the last bucket is one of its own; a sum that has no room stays the greatest there is.
        let right = [Durations::default(), self.disk, self.injected, self.total]
            .map(|Durations { sum_ns, longest_ns }| (sum_ns.checked_div(told).unwrap_or(0), longest_ns));
        let measured = [queued, disk, injected, total].map(|phase| (phase.mean_ns, phase.max_ns));
        if measured != right {
            finding!(
                "spec",
                "queue {queue} measured {measured:?} from its ring to its driver, where {right:?} is right"
            );
        }
        if found.in_flight > taken - told || found.in_flight_max > taken {
            finding!("spec", "queue {queue} has {} requests in flight of {taken}", found.in_flight);
        }
    }
}
