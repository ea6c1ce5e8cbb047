//! What a queue has done, for whoever operates the machine.

use std::sync::atomic::{AtomicU64, Ordering};

use serde::Serialize;

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident),* $(,)?) => {
        /// Counters of one queue, written by its worker and read by anybody at any time.
        #[derive(Debug, Default)]
        pub struct QueueCounters {
            $($(#[$doc])* pub $name: Counter,)*
        }

        /// [`QueueCounters`] at one moment. Fields are read one after the other, so sums over a running queue may be
        /// off by what happened in between.
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
        pub struct QueueCountersSnapshot {
            $($(#[$doc])* pub $name: u64,)*
        }

        impl QueueCounters {
            /// All counters now.
            pub fn snapshot(&self) -> QueueCountersSnapshot {
                QueueCountersSnapshot { $($name: self.$name.get(),)* }
            }
        }
    };
}

counters! {
    /// Times the queue's worker was woken: notifications from the driver and completions of the back end, together where
    /// they came together. Kernel doorbells do not tell one from the other.
    wakeups,
    /// Times the worker found the next chain while it was looking for one before it slept: wake-ups that were spared.
    polled,
    /// Chains taken from the available ring.
    chains,
    /// Chains returned through the used ring.
    completions,
    /// Interrupts sent.
    interrupts_sent,
    /// Published batches the driver wanted no interrupt for.
    interrupts_suppressed,
    /// Rings or chains that broke a rule: each is a needs-reset or a request without room for its answer.
    malformed,
    /// Requests that failed, by the guest's fault or the back end's.
    errors,
    /// Frames lost while the link was up.
    dropped,
    /// Frames lost because the link was down.
    link_down,
    /// Frames that the driver's receive filter kept out.
    filtered,
    /// Frames of the guest's that the card answered itself.
    answered,
    /// Frames of the guest's that were for the card itself and have no answer.
    swallowed,
    /// Frames of the guest's with a source address that is not the card's, which went nowhere.
    spoofed,
    /// Times that a rate limit held a network card's queue back.
    throttled,
    /// Payload bytes from the guest.
    bytes_from_guest,
    /// Payload bytes to the guest.
    bytes_to_guest,
}

/// A number that only grows. One thread writes it at a time, and any reads it.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds one.
    pub fn count(&self) {
        self.add(1);
    }

    /// Adds `n`. A plain load and store: a locked instruction would wait for all stores before it, such as that of a status
    /// byte in a cache line that the driver's CPU has.
    pub fn add(&self, n: u64) {
        self.0.store(self.get().wrapping_add(n), Ordering::Relaxed);
    }

    /// The number now.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_snapshot_shows_every_count() {
        let counters = QueueCounters::default();
        counters.wakeups.count();
        counters.bytes_to_guest.add(512);
        let expected = QueueCountersSnapshot { wakeups: 1, bytes_to_guest: 512, ..Default::default() };
        assert_eq!(counters.snapshot(), expected);
    }
}
