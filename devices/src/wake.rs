//! Waking whoever waits for a device.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Something that can be told "there is work": a worker, the main loop, a parked vCPU.
///
/// A wake-up is level-like: any number of wakes before the sleeper looks count as one, and a wake before the sleeper
/// sleeps is not lost. Waking never blocks.
pub trait Wake: Send + Sync {
    /// Tells the sleeper to look for work.
    fn wake(&self);
}

impl<W: Wake + ?Sized> Wake for Arc<W> {
    fn wake(&self) {
        (**self).wake();
    }
}

/// Counts wake-ups instead of waking anybody: for tests, the fuzzer and benches.
#[derive(Debug, Default)]
pub struct WakeCounter(AtomicUsize);

impl WakeCounter {
    /// Wake-ups since the last call.
    pub fn take(&self) -> usize {
        self.0.swap(0, Ordering::AcqRel)
    }
}

impl Wake for WakeCounter {
    fn wake(&self) {
        self.0.fetch_add(1, Ordering::AcqRel);
    }
}
