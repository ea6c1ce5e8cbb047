//! What one queue of a disk did, and how long its requests took where.
//!
//! ```text
//! taken from the ring ── queued ──► submitted ── disk ──► completed ── injected ──► published, with its interrupt
//! ```
//!
//! A batch that is taken, completed or published together has one time, so the clock is read at most once a batch and
//! phase.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use serde::Serialize;

use super::backend::{BlkError, BlkOp};
use super::request::{Outcome, Status};
use crate::legacy::clock::Clock;
use crate::virtio::counters::Counter;
use crate::virtio::histogram::{Histogram, HistogramSnapshot};

/// Counters of one queue, beside the [`QueueCounters`](crate::virtio::counters::QueueCounters) every queue has. Written
/// by its worker and read by anybody at any time.
#[derive(Debug, Default)]
pub struct BlkStats {
    timed: bool,
    read: Counter,
    write: Counter,
    flush: Counter,
    discard: Counter,
    write_zeroes: Counter,
    other: Counter,
    guest_errors: Counter,
    disk_errors: Counter,
    throttled: Counter,
    in_flight: AtomicU64,
    in_flight_max: AtomicU64,
    queued: Histogram,
    disk: Histogram,
    injected: Histogram,
    total: Histogram,
}

const _: () = assert!(size_of::<BlkStats>() <= 4096, "memory of a queue that nobody asked for");

/// [`BlkStats`] at one moment, as `query-stats` shows them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct BlkStatsSnapshot {
    /// Requests taken from the ring.
    pub ops: OpsSnapshot,
    /// Requests that failed.
    pub errors: ErrorsSnapshot,
    /// Requests the disk has, or that wait for the operator after a failure.
    pub in_flight: u64,
    /// The most there ever were.
    pub in_flight_max: u64,
    /// Times that a rate limit held the queue back.
    pub throttled: u64,
    /// How long requests that reached the disk took; absent where that is not measured.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub latency: Option<LatencySnapshot>,
}

/// Requests by what they ask for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct OpsSnapshot {
    /// Reads.
    pub read: u64,
    /// Writes.
    pub write: u64,
    /// Flushes.
    pub flush: u64,
    /// Discards.
    pub discard: u64,
    /// Zeroes to be written.
    pub write_zeroes: u64,
    /// Those that the disk did not have to be asked for: its id, no sectors at all, and what was refused.
    pub other: u64,
}

/// Failed requests by whose fault it was.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct ErrorsSnapshot {
    /// The guest's: malformed, out of range, unsupported, writes to a read-only disk.
    pub guest: u64,
    /// The disk's.
    pub disk: u64,
}

/// Times of requests that the disk was asked for, by phase.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct LatencySnapshot {
    /// From the ring to the disk.
    pub queued: HistogramSnapshot,
    /// At the disk.
    pub disk: HistogramSnapshot,
    /// From the disk to the used ring and the interrupt.
    pub injected: HistogramSnapshot,
    /// All of it.
    pub total: HistogramSnapshot,
}

impl BlkStats {
    /// Counters at zero, with times of requests where `timed`: which costs two to four looks at the clock a batch.
    pub fn new(timed: bool) -> Self {
        Self { timed, ..Self::default() }
    }

    fn of(&self, op: BlkOp) -> &Counter {
        match op {
            BlkOp::Read => &self.read,
            BlkOp::Write { .. } => &self.write,
            BlkOp::Flush => &self.flush,
            BlkOp::Discard => &self.discard,
            BlkOp::WriteZeroes { .. } => &self.write_zeroes,
        }
    }

    /// All numbers now. They are read one after the other, so sums may be off by what happened in between.
    pub fn snapshot(&self) -> BlkStatsSnapshot {
        let latency = self.timed.then(|| LatencySnapshot {
            queued: self.queued.snapshot(),
            disk: self.disk.snapshot(),
            injected: self.injected.snapshot(),
            total: self.total.snapshot(),
        });
        BlkStatsSnapshot {
            ops: OpsSnapshot {
                read: self.read.get(),
                write: self.write.get(),
                flush: self.flush.get(),
                discard: self.discard.get(),
                write_zeroes: self.write_zeroes.get(),
                other: self.other.get(),
            },
            errors: ErrorsSnapshot { guest: self.guest_errors.get(), disk: self.disk_errors.get() },
            in_flight: self.in_flight.load(Ordering::Relaxed),
            in_flight_max: self.in_flight_max.load(Ordering::Relaxed),
            throttled: self.throttled.get(),
            latency,
        }
    }
}

/// The worker's hand at [`BlkStats`].
#[derive(Default)]
pub(super) struct Recorder {
    stats: Arc<BlkStats>,
    clock: Option<Arc<dyn Clock>>,
    /// The time of the batch at hand, once somebody wanted to know.
    now_ns: Option<u64>,
    /// Requests the disk has, by head.
    times: Vec<Option<Times>>,
    in_flight: u64,
    /// Heads submitted since the last commit.
    batch: Vec<u16>,
    /// Requests completed since the last publish.
    done: Vec<Done>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
struct Times {
    taken_ns: u64,
    submitted_ns: u64,
}

/// Requests that were taken, submitted and completed together.
struct Done {
    times: Times,
    completed_ns: u64,
    count: u64,
}

impl Recorder {
    /// Counts into `stats`, and measures times by `clock` where those are wanted.
    pub(super) fn new(stats: Arc<BlkStats>, clock: Arc<dyn Clock>) -> Self {
        Self { clock: stats.timed.then_some(clock), stats, ..Self::default() }
    }

    /// A queue of `size` entries starts, without requests.
    pub(super) fn start(&mut self, size: u16) {
        let size = usize::from(size);
        self.times.clear();
        self.batch.clear();
        self.done.clear();
        self.forget_all();
        if self.clock.is_some() {
            self.times.resize(size, None);
            self.batch.reserve(size);
            // Those in flight before a step, and those it takes and the disk answers at once.
            self.done.reserve(size.saturating_mul(2));
        }
    }

    /// The requests in flight will never complete, and nobody is told of those that have.
    pub(super) fn forget_all(&mut self) {
        self.times.iter_mut().for_each(|times| *times = None);
        self.done.clear();
        self.in_flight = 0;
        self.stats.in_flight.store(0, Ordering::Relaxed);
    }

    /// The time has moved on.
    pub(super) fn begin_step(&mut self) {
        self.now_ns = None;
    }

    fn now_ns(&mut self) -> u64 {
        let Self { clock, now_ns, .. } = self;
        let Some(clock) = clock else { return 0 };
        *now_ns.get_or_insert_with(|| clock.monotonic_ns())
    }

    /// A read was taken from the ring.
    #[inline]
    pub(super) fn taken_read(&mut self) {
        self.stats.read.count();
    }

    /// A request was taken from the ring and understood, or not.
    pub(super) fn taken(&mut self, outcome: &Result<Outcome, Status>) {
        let stats = &self.stats;
        let counter = match outcome {
            Ok(Outcome::Submit(work)) => stats.of(work.op),
            Ok(Outcome::Done { .. }) => &stats.other,
            Err(_) => {
                stats.guest_errors.count();
                &stats.other
            }
        };
        counter.count();
    }

    /// A request that another worker had taken, and a saved machine brought, is this one's at `head`: it counts as taken now.
    pub(super) fn brought(&mut self, head: u16, op: BlkOp) {
        self.stats.of(op).count();
        self.submitted(head);
    }

    /// The disk is asked for the request at `head`, which was taken in this batch.
    #[inline]
    pub(super) fn submitted(&mut self, head: u16) {
        self.in_flight = self.in_flight.wrapping_add(1);
        if self.clock.is_none() {
            return;
        }
        let taken_ns = self.now_ns();
        if let Some(times) = self.times.get_mut(usize::from(head)) {
            *times = Some(Times { taken_ns, submitted_ns: taken_ns });
            self.batch.push(head);
        }
    }

    /// The disk is about to begin with everything submitted; some begin and end with it before they come back.
    pub(super) fn committing(&mut self) {
        if self.in_flight > self.stats.in_flight_max.load(Ordering::Relaxed) {
            self.stats.in_flight_max.store(self.in_flight, Ordering::Relaxed);
        }
        if self.batch.is_empty() {
            return;
        }
        let taken_ns = self.now_ns();
        self.now_ns = None;
        let submitted_ns = self.now_ns();
        self.now_ns = None;
        self.stats.queued.record(submitted_ns.saturating_sub(taken_ns), self.batch.len() as u64);
        for head in self.batch.drain(..) {
            if let Some(Some(times)) = self.times.get_mut(usize::from(head)) {
                times.submitted_ns = submitted_ns;
            }
        }
    }

    /// The request at `head` has ended well.
    #[inline]
    pub(super) fn completed(&mut self, head: u16) {
        self.in_flight = self.in_flight.saturating_sub(1);
        if self.clock.is_some() {
            self.take_time(head);
        }
    }

    /// The request at `head` has ended with an error.
    pub(super) fn failed(&mut self, head: u16, error: BlkError) {
        match error {
            BlkError::Cancelled => {}
            error if error.is_of_disk() => self.stats.disk_errors.count(),
            _ => self.stats.guest_errors.count(),
        }
        self.completed(head);
    }

    fn take_time(&mut self, head: u16) {
        let Some(times) = self.times.get_mut(usize::from(head)).and_then(Option::take) else { return };
        let completed_ns = self.now_ns();
        match self.done.last_mut() {
            Some(last) if last.times == times && last.completed_ns == completed_ns => {
                last.count = last.count.saturating_add(1);
            }
            _ => self.done.push(Done { times, completed_ns, count: 1 }),
        }
    }

    /// A rate limit holds the queue back.
    pub(super) fn throttled(&mut self) {
        self.stats.throttled.count();
    }

    /// What has completed is the driver's now, and it was interrupted.
    pub(super) fn published(&mut self) {
        self.stats.in_flight.store(self.in_flight, Ordering::Relaxed);
        if self.done.is_empty() {
            return;
        }
        self.now_ns = None;
        let now_ns = self.now_ns();
        for Done { times, completed_ns, count } in self.done.drain(..) {
            self.stats.disk.record(completed_ns.saturating_sub(times.submitted_ns), count);
            self.stats.injected.record(now_ns.saturating_sub(completed_ns), count);
            self.stats.total.record(now_ns.saturating_sub(times.taken_ns), count);
        }
    }
}
