//! How much of its queue a step takes.
//!
//! A disk that answers at once (the host has the data in memory) answers all of a step before the driver is shown the first.
//! With all of a long queue in one step the driver would sleep while the worker works, and the worker while the driver does.

use vm_memory::GuestMemory;

use crate::virtio::queue::Near;
use crate::virtio::worker::WorkerQueue;

/// The most chains a step takes.
pub(super) const MOST_CHAINS: u16 = 16;
/// Bytes after which a step takes no more from a disk that answers at once, where nothing else was said.
pub(super) const MOST_BYTES: u64 = 128 << 10;
/// How many times as many chains as were taken have to wait for a step to go beyond these bytes.
const DEEP: u16 = 2;
/// So many have to in any case: a driver that has no more under way would wait for all of them.
const LEAST_DEEP: u16 = 4;
/// And how many times these bytes it takes at most.
const MOST_TIMES: u64 = 8;

/// What a step has taken.
#[derive(Clone, Copy)]
pub(super) struct Portion {
    most_bytes: u64,
    bytes: u64,
    /// Chains that were known to wait before the first was taken.
    waiting: u16,
}

impl Portion {
    /// Nothing yet, of so many bytes, where so many chains are known to wait. Of a disk that takes its time, `u64::MAX`: it is
    /// asked for as much as there is, which it may do as one.
    pub(super) fn of(most_bytes: u64, waiting: u16) -> Self {
        Self { most_bytes, bytes: 0, waiting }
    }

    /// Bytes taken, headers included.
    #[inline(always)]
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// A chain of so many bytes was taken.
    #[inline(always)]
    pub(super) fn add(&mut self, bytes: u64) {
        // A few times 4 GiB at most.
        self.bytes = self.bytes.wrapping_add(bytes);
    }

    /// Whether the step is to show the chains that it has taken before it takes more.
    #[inline(always)]
    pub(super) fn is_enough<M: GuestMemory>(self, chains: u16, queue: &mut WorkerQueue, mem: &Near<'_, M>) -> bool {
        self.bytes >= self.most_bytes && !self.goes_on(chains, queue, mem)
    }

    /// Whether a step that has its bytes goes on all the same.
    #[inline(never)]
    fn goes_on<M: GuestMemory>(self, chains: u16, queue: &mut WorkerQueue, mem: &Near<'_, M>) -> bool {
        let Self { most_bytes, bytes, waiting } = self;
        if bytes >= most_bytes.saturating_mul(MOST_TIMES) {
            return false;
        }
        // Half as much more, where that is a chain.
        let may_be_longer = chains > 1 && bytes < most_bytes.saturating_add(most_bytes / 2);
        let deep = chains.saturating_mul(DEEP).max(LEAST_DEEP);
        // What was seen is older with every step. A look costs the driver's CPU a cache line: only where it is promising.
        if queue.seen() < deep && (queue.seen() > chains || may_be_longer) {
            queue.look(mem);
        }
        let seen = queue.seen();
        // The driver is behind anyway.
        let is_behind = seen >= deep;
        // It has answered what the last step showed while this one takes what waited then, so it is awake and quick: a step
        // that is longer spares every third call and interrupt. One that sleeps meanwhile would only sleep longer.
        let is_quick = waiting > 0 && seen.wrapping_add(chains) > waiting;
        is_behind || is_quick && may_be_longer
    }
}
