//! Time, as it is injected into devices that show it.

use std::sync::atomic::{AtomicU64, Ordering};

/// The host's clocks. Reading them never blocks.
pub trait Clock: Send + Sync {
    /// UTC: seconds since 1970-01-01 without leap seconds, and nanoseconds below 10^9.
    fn realtime(&self) -> (i64, u32);

    /// Nanoseconds since some fixed moment; never goes back.
    fn monotonic_ns(&self) -> u64;
}

/// A clock that stands still until it is told to go on: for tests, the fuzzer and benches.
#[derive(Debug)]
pub struct ManualClock {
    start_s: i64,
    passed_ns: AtomicU64,
}

impl ManualClock {
    /// A clock that shows `start_s` seconds since 1970.
    pub fn new(start_s: i64) -> Self {
        Self { start_s, passed_ns: AtomicU64::new(0) }
    }

    /// Lets time pass.
    pub fn advance_ns(&self, ns: u64) {
        self.passed_ns.fetch_add(ns, Ordering::AcqRel);
    }
}

impl Clock for ManualClock {
    fn realtime(&self) -> (i64, u32) {
        let passed_ns = self.monotonic_ns();
        let seconds = i64::try_from(passed_ns / 1_000_000_000).unwrap_or(i64::MAX);
        (self.start_s.saturating_add(seconds), u32::try_from(passed_ns % 1_000_000_000).unwrap_or(0))
    }

    fn monotonic_ns(&self) -> u64 {
        self.passed_ns.load(Ordering::Acquire)
    }
}
