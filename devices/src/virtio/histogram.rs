//! How long things took: a histogram that a worker fills and anybody reads.

use std::sync::atomic::{AtomicU64, Ordering};

use serde::Serialize;

/// Buckets: the last one counts everything from 2³⁹ ns (nine minutes) on.
const BUCKETS: usize = 40;

/// Durations in nanoseconds, counted by powers of two: bucket 0 counts those of 0 and 1 ns, bucket *i* those from 2ⁱ up
/// to 2ⁱ⁺¹. Fixed in size; recording neither allocates nor locks.
#[derive(Debug)]
pub struct Histogram {
    buckets: [AtomicU64; BUCKETS],
    sum_ns: AtomicU64,
    max_ns: AtomicU64,
}

impl Default for Histogram {
    fn default() -> Self {
        Self {
            buckets: [const { AtomicU64::new(0) }; BUCKETS],
            sum_ns: AtomicU64::default(),
            max_ns: AtomicU64::default(),
        }
    }
}

impl Histogram {
    /// Counts `count` things that took `duration_ns` each. Only one thread may record.
    pub fn record(&self, duration_ns: u64, count: u64) {
        let bucket = (duration_ns | 1).ilog2() as usize;
        if let Some(counter) = self.buckets.get(bucket).or(self.buckets.last()) {
            add(counter, count);
        }
        add(&self.sum_ns, duration_ns.saturating_mul(count));
        if duration_ns > self.max_ns.load(Ordering::Relaxed) {
            self.max_ns.store(duration_ns, Ordering::Relaxed);
        }
    }

    /// What was recorded up to now. Its numbers are read one after the other, so they may be off by what is recorded
    /// meanwhile.
    pub fn snapshot(&self) -> HistogramSnapshot {
        let mut buckets: Vec<u64> = self.buckets.iter().map(|bucket| bucket.load(Ordering::Relaxed)).collect();
        let used = buckets.iter().rposition(|&count| count > 0).map_or(0, |last| last.saturating_add(1));
        buckets.truncate(used);
        let max_ns = self.max_ns.load(Ordering::Relaxed);
        let count = buckets.iter().fold(0u64, |sum, &count| sum.saturating_add(count));
        let sum_ns = self.sum_ns.load(Ordering::Relaxed);
        let quantile = |per_mille| quantile_ns(&buckets, count, per_mille).min(max_ns);
        HistogramSnapshot {
            count,
            mean_ns: sum_ns.checked_div(count).unwrap_or(0),
            p50_ns: quantile(500),
            p99_ns: quantile(990),
            p999_ns: quantile(999),
            max_ns,
            buckets,
        }
    }
}

/// Adds to a counter that one thread writes: a plain load and store, where a locked instruction would cost ten times as
/// much.
fn add(counter: &AtomicU64, n: u64) {
    counter.store(counter.load(Ordering::Relaxed).wrapping_add(n), Ordering::Relaxed);
}

/// A [`Histogram`] at one moment, as `query-stats` shows it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct HistogramSnapshot {
    /// Durations recorded.
    pub count: u64,
    /// Their mean.
    pub mean_ns: u64,
    /// Half of them took at most about this long. An estimate within the bucket it falls into, as are the other two.
    pub p50_ns: u64,
    /// 99 of 100 took at most about this long.
    pub p99_ns: u64,
    /// 999 of 1000 took at most about this long.
    pub p999_ns: u64,
    /// The longest one.
    pub max_ns: u64,
    /// How many took from 2ⁱ up to 2ⁱ⁺¹ ns, by *i*; the first bucket also counts 0 ns. Empty ones at the end are left out.
    pub buckets: Vec<u64>,
}

/// The duration that `per_mille` of a thousand durations do not exceed, were they spread evenly within their buckets.
fn quantile_ns(buckets: &[u64], count: u64, per_mille: u64) -> u64 {
    let rank = u128::from(count).saturating_mul(per_mille.into()).div_ceil(1000);
    let mut below = 0u128;
    for (index, &here) in buckets.iter().enumerate() {
        let reached = below.saturating_add(here.into());
        if here > 0 && reached >= rank {
            let start_ns = if index == 0 { 0u128 } else { 1u128.checked_shl(index as u32).unwrap_or(u128::MAX) };
            let width_ns = start_ns.max(2);
            let part = rank.saturating_sub(below).saturating_mul(width_ns).checked_div(here.into()).unwrap_or(0);
            return u64::try_from(start_ns.saturating_add(part)).unwrap_or(u64::MAX);
        }
        below = reached;
    }
    0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(durations_ns: impl IntoIterator<Item = u64>) -> HistogramSnapshot {
        let histogram = Histogram::default();
        durations_ns.into_iter().for_each(|ns| histogram.record(ns, 1));
        histogram.snapshot()
    }

    #[test]
    fn nothing_recorded_is_all_zeroes() {
        assert_eq!(of([]), HistogramSnapshot::default());
    }

    #[test]
    fn each_duration_is_in_the_bucket_of_its_power_of_two() {
        let shown = of([0, 1, 2, 3, 4, 1023, 1024]);
        assert_eq!(shown.buckets, [2, 2, 1, 0, 0, 0, 0, 0, 0, 1, 1]);
        assert_eq!((shown.count, shown.max_ns, shown.mean_ns), (7, 1024, 2057 / 7));
    }

    #[test]
    fn what_is_longer_than_the_last_bucket_is_in_it() {
        let shown = of([1 << 39, 1 << 40, u64::MAX]);
        assert_eq!((shown.buckets.len(), shown.buckets[39], shown.max_ns), (40, 3, u64::MAX));
    }

    #[test]
    fn several_at_once_count_as_one_after_the_other() {
        let histogram = Histogram::default();
        histogram.record(700, 5);
        assert_eq!(histogram.snapshot(), of([700; 5]));
    }

    #[test]
    fn quantiles_are_within_the_bucket_of_the_exact_ones_and_never_beyond_the_longest() {
        let even = of(1..=100_000);
        for (estimate_ns, exact_ns) in [(even.p50_ns, 50_000), (even.p99_ns, 99_000), (even.p999_ns, 99_900)] {
            assert_eq!(estimate_ns.ilog2(), u64::ilog2(exact_ns), "{estimate_ns} for {exact_ns}");
            assert!(estimate_ns.abs_diff(exact_ns) < exact_ns / 3 && estimate_ns <= 100_000);
        }
        let tail = of(std::iter::repeat_n(100, 995).chain([1_000_000; 5]));
        assert!(tail.p50_ns < 128 && tail.p99_ns <= 128, "{tail:?}");
        assert!(tail.p999_ns > 1 << 19 && tail.max_ns == 1_000_000, "{tail:?}");
        assert_eq!(of([5; 10]).p999_ns, 5);
    }
}
