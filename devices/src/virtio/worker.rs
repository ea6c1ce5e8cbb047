//! One queue inside a worker: ring, interrupt and counters as one thing.
//!
//! Every device's worker needs the same care around its queues: a broken ring is reported once and then left alone, a
//! batch ends in at most one interrupt, and every step is counted. It lives here, so that a device is its requests.

use std::sync::Arc;

use vm_memory::GuestMemory;

use super::counters::QueueCounters;
use super::queue::{Chain, Near, Queue, QueueError, RingMem, SavedFlight};
use super::{NeedsReset, QueueState, VirtioInterrupt, WorkerActivation};
use crate::planted::{Defect, is_planted};

/// A queue a worker serves, running or not.
pub struct WorkerQueue {
    index: u16,
    max_size: u16,
    counters: Arc<QueueCounters>,
    running: Option<Running>,
}

struct Running {
    queue: Queue,
    interrupt: Arc<dyn VirtioInterrupt>,
    /// The driver broke the ring and has been told: nothing is taken from it until the next start.
    broken: bool,
}

impl WorkerQueue {
    /// The stopped queue `index` of a device, at most `max_size` entries long.
    pub fn new(index: u16, max_size: u16, counters: Arc<QueueCounters>) -> Self {
        Self { index, max_size, counters, running: None }
    }

    /// The queue's index in its device.
    pub fn index(&self) -> u16 {
        self.index
    }

    /// The queue's counters.
    pub fn counters(&self) -> &QueueCounters {
        &self.counters
    }

    /// Takes over the driver's ring. A layout that breaks the rules is reported as needs-reset and leaves the queue
    /// stopped.
    pub fn start<M: RingMem + ?Sized>(&mut self, mem: &M, state: &QueueState, activation: &WorkerActivation) {
        match Queue::new(mem, state, activation.features, self.max_size) {
            Ok(queue) => {
                self.running = Some(Running { queue, interrupt: activation.interrupt.clone(), broken: false });
            }
            Err(error) => {
                self.counters.malformed.count();
                activation.interrupt.needs_reset(&NeedsReset { queue: self.index, reason: error.to_string() });
            }
        }
    }

    /// Has chains in flight again, of a queue that stood where this one was just [started](Self::start): in the order of
    /// `saved`. `None` where they cannot be, which is reported as needs-reset and ends the queue.
    pub fn resume_flight<M: RingMem + ?Sized>(&mut self, mem: &M, saved: &SavedFlight) -> Option<Vec<Chain>> {
        self.with(|queue| queue.resume_flight(mem, saved))
    }

    /// Where a running queue stands with `chains`, all that are in flight; `None` where it does not run.
    pub fn save_flight<'c>(&self, chains: impl Iterator<Item = &'c Chain>) -> Option<SavedFlight> {
        self.running.as_ref().map(|running| running.queue.save_flight(chains))
    }

    /// Guest memory with a short way to where the ring is, for as long as the queue runs.
    pub fn near<'m, M: GuestMemory + ?Sized>(&self, mem: &'m M) -> Near<'m, M> {
        Near::new(mem, self.running.as_ref().map_or(0, |running| running.queue.address()))
    }

    /// Whether chains can be taken from the queue.
    pub fn is_live(&self) -> bool {
        self.running.as_ref().is_some_and(|running| !running.broken)
    }

    /// Entries in the ring, zero while it is stopped.
    pub fn size(&self) -> u16 {
        self.running.as_ref().map_or(0, |running| running.queue.size())
    }

    /// Whether the driver can post nothing more before it gets something back.
    pub fn is_exhausted(&self) -> bool {
        self.running.as_ref().is_some_and(|running| running.queue.is_exhausted())
    }

    /// The next chain; `None` where there is none, the queue is stopped, or the driver broke it.
    pub fn pop<M: RingMem + ?Sized>(&mut self, mem: &M) -> Option<Chain> {
        let chain = self.with(|queue| queue.pop(mem)).flatten();
        if chain.is_some() {
            self.counters.chains.count();
        }
        chain
    }

    /// Chains that are known to be available, see [`Queue::seen`].
    pub fn seen(&self) -> u16 {
        self.running.as_ref().map_or(0, |running| running.queue.seen())
    }

    /// Looks how many there are now, see [`Queue::look`].
    pub fn look<M: RingMem + ?Sized>(&mut self, mem: &M) {
        if let Some(running) = &mut self.running {
            running.queue.look(mem);
        }
    }

    /// Puts the chain popped last back into the ring, see [`Queue::unpop`].
    pub fn unpop(&mut self, chain: Chain) {
        match &mut self.running {
            Some(running) => running.queue.unpop(chain),
            None => chain.abandon(),
        }
    }

    /// Returns a chain with `written_bytes` bytes written to it; the driver sees it at the next
    /// [`publish`](Self::publish).
    #[inline(always)]
    pub fn push<M: RingMem + ?Sized>(&mut self, mem: &M, chain: Chain, written_bytes: u64) {
        self.counters.completions.count();
        match &mut self.running {
            // A chain that was popped before the driver broke the ring still belongs to it.
            Some(running) => {
                if let Err(error) = running.queue.push(mem, chain, written_bytes) {
                    self.fail(&error);
                }
            }
            None => chain.abandon(),
        }
    }

    /// Shows what was pushed to the driver and interrupts it where it wants that.
    pub fn publish<M: RingMem + ?Sized>(&mut self, mem: &M) {
        let Some(running) = &mut self.running else { return };
        if !running.queue.has_unpublished() {
            return;
        }
        match running.queue.publish(mem) {
            Ok(true) => {
                self.counters.interrupts_sent.count();
                running.interrupt.queue_used(self.index);
            }
            Ok(false) => self.counters.interrupts_suppressed.count(),
            Err(error) => self.fail(&error),
        }
    }

    /// Tells the driver not to kick for now.
    pub fn disable_kicks<M: RingMem + ?Sized>(&mut self, mem: &M) {
        self.with(|queue| queue.disable_kicks(mem));
    }

    /// Asks the driver to kick again. `true` means that chains are there already and the worker must go on looking.
    pub fn enable_kicks<M: RingMem + ?Sized>(&mut self, mem: &M) -> bool {
        self.with(|queue| queue.enable_kicks(mem)).unwrap_or(false)
    }

    /// Whether [`pop`](Self::pop) has something to say: a chain, or a rule that the driver broke.
    #[inline]
    pub fn has_news<M: RingMem + ?Sized>(&self, mem: &M) -> bool {
        self.running.as_ref().is_some_and(|running| !running.broken && running.queue.has_available(mem).unwrap_or(true))
    }

    /// Stops the queue and gives its state; chains still in flight have to be abandoned. `None` where it was not
    /// running.
    pub fn take_state(&mut self) -> Option<QueueState> {
        self.running.take().map(|running| running.queue.state())
    }

    /// Runs an operation on a queue that is live, and reports the rule the driver broke, if it did.
    fn with<R>(&mut self, operation: impl FnOnce(&mut Queue) -> Result<R, QueueError>) -> Option<R> {
        let running = self.running.as_mut().filter(|running| !running.broken)?;
        match operation(&mut running.queue) {
            Ok(result) => Some(result),
            Err(error) => {
                self.fail(&error);
                None
            }
        }
    }

    #[cold]
    fn fail(&mut self, error: &QueueError) {
        self.counters.malformed.count();
        if let Some(running) = &mut self.running
            && !running.broken
        {
            running.broken = !is_planted(Defect::RefusedRingSpins);
            running.interrupt.needs_reset(&NeedsReset { queue: self.index, reason: error.to_string() });
        }
    }
}
