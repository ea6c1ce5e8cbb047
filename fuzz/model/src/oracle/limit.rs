//! What a rate limit lets through: how many requests and bytes a disk's queues take in any stretch of time together, and how
//! long one of them may be made to wait.

use std::sync::Arc;

use devices::legacy::clock::{Clock as _, ManualClock};
use devices::virtio::limit::{Meters, Rate};

use crate::finding;

const NS_PER_S: u128 = 1_000_000_000;
/// Requests a second, and at once: few, so that programs reach them.
const REQUESTS: Rate = Rate { per_second: 500, burst: Some(2) };
/// Bytes a second, and at once.
const BYTES: Rate = Rate { per_second: 1 << 20, burst: Some(4096) };
/// The most bytes one request moves here: two segments of zeroes as long as the disk.
const MAX_REQUEST_BYTES: u64 = 2 * 512 * super::blk::SECTORS;
/// Nanoseconds of either rate that a worker takes at a time (`devices::virtio::limit`).
const TURN_NS: u128 = 2_000_000;

/// Meters of the limited disk of a new process.
#[must_use]
pub fn meters() -> Meters {
    Meters::new(Some(REQUESTS), Some(BYTES))
}

/// A disk whose queues are limited together.
#[derive(Debug)]
pub struct Limit {
    clock: Arc<ManualClock>,
    requests: Bucket,
    bytes: Bucket,
}

/// A token bucket, kept the plain way. Units are billionths, so that nothing is rounded.
#[derive(Debug)]
struct Bucket {
    what: &'static str,
    per_second: u128,
    full: u128,
    level: u128,
    at_ns: u64,
}

impl Bucket {
    /// The burst, and what each of `shares` workers may have beside it: a turn, and one request it does not know before
    /// it has taken it.
    fn new(what: &'static str, rate: Rate, shares: u16, request: u64, now_ns: u64) -> Self {
        let per_second = u128::from(rate.per_second);
        let share = (per_second * TURN_NS).max(NS_PER_S) + u128::from(request) * NS_PER_S;
        let full = u128::from(rate.burst.unwrap_or(0)) * NS_PER_S + u128::from(shares) * share;
        Self { what, per_second, full, level: full, at_ns: now_ns }
    }

    fn take(&mut self, units: u64, now_ns: u64) {
        let passed_ns = u128::from(now_ns - std::mem::replace(&mut self.at_ns, now_ns));
        self.level = (self.level + passed_ns * self.per_second).min(self.full);
        match self.level.checked_sub(u128::from(units) * NS_PER_S) {
            Some(left) => self.level = left,
            None => finding!("spec", "more {} are taken from the queues than their rate allows", self.what),
        }
    }

    /// How long everything that may be owed takes.
    fn longest_wait_ns(&self) -> u64 {
        u64::try_from(self.full / self.per_second).unwrap_or(u64::MAX)
    }
}

impl Limit {
    /// A limit that nothing was taken from, of a disk with so many queues.
    #[must_use]
    pub fn new(clock: &Arc<ManualClock>, queues: u16) -> Self {
        let now_ns = clock.monotonic_ns();
        Self {
            clock: clock.clone(),
            requests: Bucket::new("requests", REQUESTS, queues, 1, now_ns),
            bytes: Bucket::new("bytes", BYTES, queues, MAX_REQUEST_BYTES, now_ns),
        }
    }

    /// A request that moves `bytes` is taken from a ring.
    pub fn taken(&mut self, bytes: u64) {
        let now_ns = self.clock.monotonic_ns();
        self.requests.take(1, now_ns);
        self.bytes.take(bytes, now_ns);
    }

    /// The disk goes on in another process, which has taken nothing yet.
    pub fn start_over(&mut self) {
        let now_ns = self.clock.monotonic_ns();
        for bucket in [&mut self.requests, &mut self.bytes] {
            (bucket.level, bucket.at_ns) = (bucket.full, now_ns);
        }
    }

    /// A queue is to wait until `at_ns` for its next request.
    pub fn waits(&self, queue: u16, at_ns: u64) {
        let now_ns = self.clock.monotonic_ns();
        let longest_ns = self.requests.longest_wait_ns().max(self.bytes.longest_wait_ns());
        if at_ns > now_ns.saturating_add(longest_ns) {
            finding!("wedge", "queue {queue} waits until {at_ns} ns at {now_ns} ns, {longest_ns} ns at most are owed");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[should_panic(expected = "more requests")]
    fn a_limit_counts_what_is_taken_at_once() {
        let clock = Arc::new(ManualClock::new(0));
        let mut limit = Limit::new(&clock, 1);
        clock.advance_ns(1 << 40);
        (0..5).for_each(|_| limit.taken(0));
    }

    #[test]
    fn a_limit_lets_through_what_time_has_brought() {
        let clock = Arc::new(ManualClock::new(0));
        let mut limit = Limit::new(&clock, 1);
        (0..4).for_each(|_| limit.taken(512));
        for _ in 0..100 {
            clock.advance_ns(2_000_000);
            limit.taken(1024);
        }
    }

    #[test]
    #[should_panic(expected = "waits until")]
    fn nobody_waits_for_ever() {
        let clock = Arc::new(ManualClock::new(0));
        Limit::new(&clock, 2).waits(0, u64::MAX);
    }
}
