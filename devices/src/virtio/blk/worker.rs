//! virtio-blk's queue worker: chains to requests to the disk, completions back to the ring.

use std::sync::Arc;

use vm_memory::GuestMemory;

use super::backend::{BlkBackend, BlkError, BlkOp, BlkRequest, RequestToken};
use super::device::Shared;
use super::request::{Mode, Outcome, Status, parse};
use crate::planted::{Defect, is_planted};
use crate::virtio::counters::QueueCounters;
use crate::virtio::limit::Throttle;
use crate::virtio::queue::{Chain, GuestRange};
use crate::virtio::worker::WorkerQueue;
use crate::virtio::{QueueState, Step, VirtioWorker, WorkerActivation};

/// Runs one queue of a [`BlkDevice`](super::BlkDevice) over a disk.
///
/// A request is acknowledged when the disk has completed it, in whatever order that happens. A step takes at most as
/// many chains as the queue has entries. The worker is woken by kicks and by the disk.
pub struct BlkWorker<B> {
    shared: Arc<Shared>,
    mode: Mode,
    queue: WorkerQueue,
    indices: [u16; 1],
    backend: B,
    throttle: Throttle,
    /// Requests the disk is working on, by head. As long as the queue.
    in_flight: Vec<Option<InFlight>>,
    /// Counts starts, so that no completion is taken for a request of an earlier life of the queue.
    life: u32,
    stopping: bool,
    cancelled: bool,
    /// Guest ranges of the request being submitted, kept for its allocation.
    ranges: Vec<GuestRange>,
}

struct InFlight {
    chain: Chain,
    /// Data bytes in guest memory once the disk has succeeded.
    filled_bytes: u64,
    /// Data bytes out of guest memory.
    taken_bytes: u64,
}

impl<B> BlkWorker<B> {
    pub(super) fn new(shared: Arc<Shared>, queue: u16, backend: B, counters: Arc<QueueCounters>) -> Self {
        let max_size = shared.config.queue_size;
        Self {
            shared,
            mode: Mode::default(),
            queue: WorkerQueue::new(queue, max_size, counters),
            indices: [queue],
            backend,
            throttle: Throttle::default(),
            in_flight: Vec::new(),
            life: 0,
            stopping: false,
            cancelled: false,
            ranges: Vec::new(),
        }
    }

    /// Holds the worker to rate limits. Every request counts as one, also one that fails; the bytes are those of reads,
    /// writes and zeroes written. Flushes, discards and the rest move no data and count by number alone.
    #[must_use]
    pub fn with_throttle(mut self, throttle: Throttle) -> Self {
        self.throttle = throttle;
        self
    }

    /// The disk.
    pub fn backend(&mut self) -> &mut B {
        &mut self.backend
    }

    fn token(&self, head: u16) -> RequestToken {
        RequestToken(u64::from(self.life) << 16 | u64::from(head))
    }

    /// Takes chains while there are some, the disk has room, no rate limit is reached and the step's budget lasts. Says
    /// when to come back.
    fn take_requests<M: GuestMemory>(&mut self, mem: &M) -> Step
    where
        B: BlkBackend<M>,
    {
        self.queue.disable_kicks(mem);
        self.backend.set_write_cache(!self.mode.durable(&self.shared));
        self.throttle.begin_step();
        let (mut drained, mut wake_at_ns) = (false, None);
        for _ in 0..self.queue.size() {
            if !self.backend.has_room() {
                break;
            }
            wake_at_ns = self.throttle.wait_until();
            if wake_at_ns.is_some() {
                break;
            }
            let Some(chain) = self.queue.pop(mem) else {
                drained = true;
                break;
            };
            self.begin(mem, chain);
        }
        self.backend.commit();
        // A disk that answers at once saves the driver a wake-up.
        self.collect(mem, false);
        // A disk that is full wakes the worker when it has room again, and a rate limit when it is over; until then a kick
        // would be in vain. A limit that holds no chain back does not wake anybody.
        let held_back = wake_at_ns.is_some();
        if (drained || held_back) && !self.queue.enable_kicks(mem) {
            self.throttle.rest();
            return Step::default();
        }
        if held_back {
            self.queue.disable_kicks(mem);
        }
        Step { again: !held_back && (drained || self.backend.has_room()), wake_at_ns, ..Step::default() }
    }

    fn begin<M: GuestMemory>(&mut self, mem: &M, chain: Chain)
    where
        B: BlkBackend<M>,
    {
        self.ranges.clear();
        let outcome = parse(mem, &chain, &self.shared, self.mode, &mut self.ranges);
        self.throttle.charge(data_bytes(&outcome));
        let work = match outcome {
            Ok(Outcome::Submit(work)) => work,
            Ok(Outcome::Done { filled_bytes }) => return finish(&mut self.queue, mem, chain, Status::Ok, filled_bytes),
            Err(status) => return finish(&mut self.queue, mem, chain, status, 0),
        };
        let token = self.token(chain.head());
        let request = BlkRequest {
            token,
            op: work.op,
            offset_bytes: work.offset_bytes,
            len_bytes: work.len_bytes,
            ranges: &self.ranges,
        };
        let (filled_bytes, taken_bytes) = match work.op {
            BlkOp::Read => (work.len_bytes, 0),
            BlkOp::Write { .. } => (0, work.len_bytes),
            _ => (0, 0),
        };
        let head = usize::from(chain.head());
        match (self.backend.submit(mem, request), self.in_flight.get_mut(head)) {
            (Ok(()), Some(slot)) => *slot = Some(InFlight { chain, filled_bytes, taken_bytes }),
            (Err(error), _) => finish(&mut self.queue, mem, chain, status(Err(error)), 0),
            // The table is as long as the queue and the queue refuses heads beyond its size.
            (Ok(()), None) => chain.abandon(),
        }
    }

    /// Takes the disk's completions: returns them to the driver, or abandons them.
    fn collect<M: GuestMemory>(&mut self, mem: &M, abandon: bool)
    where
        B: BlkBackend<M>,
    {
        let Self { backend, in_flight, queue, life, .. } = self;
        backend.poll(mem, &mut |token, result| {
            let (token_life, head) = (token.0 >> 16, token.0 & 0xffff);
            let slot = in_flight.get_mut(head as usize).filter(|_| token_life == u64::from(*life));
            let Some(request) = slot.and_then(Option::take) else {
                debug_assert!(false, "the disk completed {token:?}, which is not in flight");
                return;
            };
            if abandon {
                request.chain.abandon();
                return;
            }
            let status = status(result);
            let filled_bytes = if status == Status::Ok { request.filled_bytes } else { 0 };
            queue.counters().bytes_to_guest.add(filled_bytes);
            if status == Status::Ok {
                queue.counters().bytes_from_guest.add(request.taken_bytes);
            }
            finish(queue, mem, request.chain, status, filled_bytes);
        });
    }

    fn abandon_all(&mut self) {
        for request in self.in_flight.iter_mut().filter_map(Option::take) {
            request.chain.abandon();
        }
    }
}

impl<B> Drop for BlkWorker<B> {
    fn drop(&mut self) {
        self.abandon_all();
    }
}

/// Bytes that a request costs at a rate limit. Zeroes count, since the disk may have to write them; a discard does not.
fn data_bytes(outcome: &Result<Outcome, Status>) -> u64 {
    match outcome {
        Ok(Outcome::Submit(work)) if work.op != BlkOp::Discard => work.len_bytes,
        _ => 0,
    }
}

/// Writes the status byte and returns the chain.
fn finish<M: GuestMemory>(queue: &mut WorkerQueue, mem: &M, chain: Chain, status: Status, filled_bytes: u64) {
    if status != Status::Ok {
        queue.counters().errors.count();
    }
    let Some(data_bytes) = chain.writable_bytes().checked_sub(1) else {
        // No byte for the status: the request cannot be answered, but its buffer goes back, or the queue would fill up
        // with such chains.
        queue.counters().malformed.count();
        if is_planted(Defect::HeadLeaks) {
            return chain.abandon();
        }
        return queue.push(mem, chain, 0);
    };
    let alone = chain.writable().last().is_none_or(|last| last.len == 1);
    let at = if is_planted(Defect::StatusMisplaced) && !alone { 0 } else { data_bytes };
    let written = chain.writer(mem).split_at(at).and_then(|(_, mut byte)| byte.write(&[status as u8]));
    debug_assert!(written.is_ok(), "a chain's memory was checked when it was popped");
    // §2.7.8.2: `len` counts from the start of the writable part without gaps, so it includes the status byte only
    // where all data before it was written.
    let len = if filled_bytes == data_bytes { chain.writable_bytes() } else { filled_bytes };
    queue.push(mem, chain, len);
}

/// What the guest learns of the disk's answer.
fn status(result: Result<(), BlkError>) -> Status {
    match result {
        Ok(()) => Status::Ok,
        Err(BlkError::Unsupported) => Status::Unsupported,
        Err(BlkError::Host(_) | BlkError::Short | BlkError::Memory | BlkError::Cancelled) => Status::IoErr,
    }
}

impl<M: GuestMemory, B: BlkBackend<M>> VirtioWorker<M> for BlkWorker<B> {
    fn queues(&self) -> &[u16] {
        &self.indices
    }

    fn start(&mut self, mem: &M, queue: u16, state: QueueState, activation: &WorkerActivation) {
        if queue != self.queue.index() {
            return;
        }
        self.abandon_all();
        self.mode = Mode { features: activation.features, legacy: activation.legacy };
        self.life = self.life.wrapping_add(1);
        self.stopping = false;
        self.cancelled = false;
        self.queue.start(mem, &state, activation);
        self.in_flight.clear();
        self.in_flight.resize_with(usize::from(self.queue.size()), || None);
    }

    fn step(&mut self, mem: &M) -> Step {
        self.collect(mem, false);
        let takes = !self.stopping && self.queue.is_live();
        let step = if takes { self.take_requests(mem) } else { Step::default() };
        self.queue.publish(mem);
        step
    }

    fn begin_stop(&mut self, _mem: &M) {
        // Requests are cancelled when it is clear that their answers do not matter: a pause must not turn into I/O
        // errors.
        self.stopping = true;
    }

    fn poll_stopped(&mut self, mem: &M, abandon: bool) -> bool {
        if abandon && !self.cancelled {
            self.cancelled = true;
            self.backend.cancel_all();
        }
        self.collect(mem, abandon);
        if !abandon {
            self.queue.publish(mem);
        }
        let stopped = self.backend.in_flight() == 0;
        if stopped && abandon {
            // Whoever drives the disk next may know of no cache.
            self.backend.set_write_cache(false);
        }
        stopped
    }

    fn take_state(&mut self, queue: u16) -> Option<QueueState> {
        if queue != self.queue.index() {
            return None;
        }
        self.throttle.rest();
        self.abandon_all();
        self.queue.take_state()
    }
}
