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
    /// Chains returned that are not counted yet: a count that others may read costs more than the rest of it.
    returned: u64,
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
                self.running =
                    Some(Running { queue, interrupt: activation.interrupt.clone(), returned: 0, broken: false });
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
    #[inline(never)]
    pub fn pop<M: RingMem + ?Sized>(&mut self, mem: &M) -> Option<Chain> {
        let chain = self.with(|queue| queue.pop(mem)).flatten();
        if chain.is_some() {
            self.counters.chains.count();
        }
        chain
    }

    /// Gives chains to `take` for as long as there are some, and it says that it takes another one: what [`pop`](Self::pop)
    /// costs beside the chain itself is paid once for all of them.
    #[inline(always)]
    pub fn pop_while<M: RingMem + ?Sized>(&mut self, mem: &M, mut take: impl FnMut(Chain) -> bool) {
        let popped = self.with(|queue| {
            let mut popped = 0u64;
            loop {
                match queue.pop(mem) {
                    Ok(Some(chain)) => {
                        popped = popped.wrapping_add(1);
                        if !take(chain) {
                            return Ok((popped, None));
                        }
                    }
                    Ok(None) => return Ok((popped, None)),
                    Err(error) => return Ok((popped, Some(error))),
                }
            }
        });
        let Some((popped, error)) = popped else { return };
        if popped > 0 {
            self.counters.chains.add(popped);
        }
        if let Some(error) = error {
            self.fail(&error);
        }
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
        match &mut self.running {
            // A chain that was popped before the driver broke the ring still belongs to it.
            Some(running) => {
                running.returned = running.returned.wrapping_add(1);
                if let Err(error) = running.queue.push(mem, chain, written_bytes) {
                    self.fail(&error);
                }
            }
            None => chain.abandon(),
        }
    }

    /// Shows what was pushed to the driver and interrupts it where it wants that.
    pub fn publish<M: RingMem + ?Sized>(&mut self, mem: &M) {
        self.count_returned();
        let Some(running) = self.running.as_mut().filter(|running| running.queue.has_unpublished()) else { return };
        match running.queue.publish(mem) {
            Ok(true) => {
                self.counters.interrupts_sent.count();
                running.interrupt.queue_used(self.index);
            }
            Ok(false) => self.counters.interrupts_suppressed.count(),
            Err(error) => self.fail(&error),
        }
    }

    fn count_returned(&mut self) {
        let Some(running) = self.running.as_mut().filter(|running| running.returned > 0) else { return };
        self.counters.completions.add(std::mem::take(&mut running.returned));
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
        self.count_returned();
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::virtio::testing::{Buf, DriverQueue, RecordingInterrupt, guest_ram};

    #[test]
    fn chains_are_taken_together_while_they_are_wanted_and_until_one_breaks_a_rule() {
        for features in [1 << 32, 1 << 32 | crate::virtio::queue::F_RING_PACKED] {
            let (mem, interrupt) = (guest_ram(0x20_0000), RecordingInterrupt::new());
            let mut driver = DriverQueue::new(&mem, 0x10_0000, 16, features);
            let mut queue = WorkerQueue::new(0, 16, Arc::default());
            queue.start(&mem, &driver.state(), &interrupt.activation(features));
            (0..10).for_each(|_| drop(driver.post(&[Buf::Write(100)])));
            driver.publish();
            let mut taken = Vec::new();
            let mut take = |queue: &mut WorkerQueue, up_to: usize| {
                let before = taken.len();
                queue.pop_while(&mem, |chain| {
                    taken.push(chain);
                    taken.len() < up_to
                });
                taken.len() - before
            };
            assert_eq!(take(&mut queue, 4), 4, "as many as are wanted");
            assert_eq!(take(&mut queue, 100), 6, "as many as are there");
            assert_eq!(take(&mut queue, 100), 0);
            assert_eq!(queue.counters().chains.get(), 10);
            driver.post(&[Buf::Write(100)]);
            // Readable behind writable.
            driver.post(&[Buf::Write(100), Buf::Read(vec![0; 4])]);
            driver.publish();
            assert_eq!(take(&mut queue, 100), 1, "those before it");
            assert!(!queue.is_live() && interrupt.take_needs_reset().len() == 1);
            assert_eq!((queue.counters().chains.get(), queue.counters().malformed.get()), (11, 1));
            assert_eq!(take(&mut queue, 100), 0, "of a broken ring");
            let returned = taken.len() as u64 - 1;
            taken.pop().into_iter().for_each(Chain::abandon);
            taken.into_iter().for_each(|chain| queue.push(&mem, chain, 0));
            queue.publish(&mem);
            queue.take_state();
            assert_eq!(queue.counters().completions.get(), returned, "they are the driver's all the same");
        }
    }
}
