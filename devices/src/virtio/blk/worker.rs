//! virtio-blk's queue worker: chains to requests to the disk, completions back to the ring.

mod kept;
mod portion;

use std::sync::Arc;

use vm_memory::GuestMemory;

use super::backend::{BlkBackend, BlkError, BlkOp, BlkRequest, RequestToken};
use super::device::Shared;
use super::failure::Failure;
use super::flight::{InFlight, Stage, ask, remember, request_at, token};
use super::request::{Header, Mode, Outcome, Status, Work, parse, parse_read};
use super::stats::{BlkStats, Recorder};
use crate::legacy::clock::Clock;
use crate::planted::{Defect, is_planted};
use crate::virtio::counters::QueueCounters;
use crate::virtio::limit::Throttle;
use crate::virtio::queue::{Chain, GuestRange, Near};
use crate::virtio::worker::WorkerQueue;
use crate::virtio::{QueueState, StateError, Step, VirtioWorker, WorkerActivation, WorkerState};
use kept::Kept;
use portion::Portion;

/// Runs one queue of a [`BlkDevice`](super::BlkDevice) over a disk.
///
/// A request is acknowledged when the disk has completed it, in whatever order that happens. A step takes a few
/// chains. The worker is woken by kicks and by the disk.
///
/// What a disk failed, the guest hears of, or it is kept ([`OnError`](super::OnError)): requests that are kept outlast a
/// pause, and are tried again when the queue is started after it.
pub struct BlkWorker<B> {
    shared: Arc<Shared>,
    mode: Mode,
    queue: WorkerQueue,
    indices: [u16; 1],
    backend: B,
    throttle: Throttle,
    recorder: Recorder,
    /// Places for requests, by head. As long as the queue.
    in_flight: Vec<InFlight>,
    /// How many of them are kept after a failure.
    held: usize,
    /// Those, while the queue stands still.
    kept: Option<Kept>,
    /// Counts starts, so that no completion is taken for a request of an earlier life of the queue.
    life: u32,
    stopping: bool,
    cancelled: bool,
    /// What was last asked of the disk was done when it had been asked.
    answers_at_once: bool,
    /// Bytes after which a step takes no more chains then.
    round_bytes: u64,
    /// Kept for their allocations: the guest ranges of the request being submitted, the disk's completions, and lists of
    /// segments: that of the request being decoded, and those of requests that had some and are done.
    ranges: Vec<GuestRange>,
    ended: Vec<(RequestToken, Result<(), BlkError>)>,
    segments: Vec<Work>,
    spare: Vec<Vec<Work>>,
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
            recorder: Recorder::default(),
            in_flight: Vec::new(),
            held: 0,
            kept: None,
            life: 0,
            stopping: false,
            cancelled: false,
            answers_at_once: true,
            round_bytes: portion::MOST_BYTES,
            ranges: Vec::new(),
            ended: Vec::new(),
            segments: Vec::new(),
            spare: Vec::new(),
        }
    }

    /// Holds the worker to rate limits. Every request counts as one, also one that fails; the bytes are those of reads,
    /// writes and zeroes written. Flushes, discards and the rest move no data and count by number alone.
    #[must_use]
    pub fn with_throttle(mut self, throttle: Throttle) -> Self {
        self.throttle = throttle;
        self
    }

    /// Has a step take chains until they have so many bytes, 128 KiB otherwise, from a disk that answers at once. More spares
    /// calls, and has the driver wait for longer, which it need not mind on a CPU of its own.
    #[must_use]
    pub fn with_round_bytes(mut self, round_bytes: u64) -> Self {
        self.round_bytes = round_bytes;
        self
    }

    /// Counts requests into `stats`, and measures their times by `clock` where `stats` are to have them.
    #[must_use]
    pub fn with_stats(mut self, stats: Arc<BlkStats>, clock: Arc<dyn Clock>) -> Self {
        self.recorder = Recorder::new(stats, clock);
        self
    }

    /// The disk.
    pub fn backend(&mut self) -> &mut B {
        &mut self.backend
    }

    /// Takes chains while there are some, the disk has room, no rate limit is reached and the step's budget lasts. Says
    /// when to come back. With `lingering` it may leave kicks off where there is nothing to wait for but the next chain.
    fn take_requests<M: GuestMemory>(&mut self, mem: &Near<'_, M>, lingering: bool) -> Step
    where
        B: BlkBackend<M>,
    {
        self.queue.disable_kicks(mem);
        self.backend.set_write_cache(!self.mode.durable(&self.shared));
        self.throttle.begin_step();
        let (mut drained, mut wake_at_ns) = (false, None);
        let most_bytes = if self.answers_at_once { self.round_bytes } else { u64::MAX };
        let mut portion = Portion::of(most_bytes, self.queue.seen());
        for taken in 0..self.queue.size().min(portion::MOST_CHAINS) {
            if portion.is_enough(taken, &mut self.queue, mem) {
                break;
            }
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
            portion.add(chain.readable_bytes().wrapping_add(chain.writable_bytes()));
            self.begin(mem, chain);
        }
        self.recorder.committing();
        self.backend.commit();
        // A disk that answers at once saves the driver a wake-up.
        self.collect(mem, false);
        if portion.bytes() > 0 {
            // As the next step is likely to find it, too.
            self.answers_at_once = self.backend.in_flight() == 0;
        }
        // A disk that is full wakes the worker when it has room again, and a rate limit when it is over; until then a kick
        // would be in vain. A limit that holds no chain back does not wake anybody.
        let held_back = wake_at_ns.is_some();
        if drained && lingering && self.backend.in_flight() == 0 {
            return Step { lingers: true, ..Step::default() };
        }
        if (drained || held_back) && !self.queue.enable_kicks(mem) {
            self.throttle.rest();
            return Step::default();
        }
        if held_back {
            self.recorder.throttled();
            self.queue.disable_kicks(mem);
        }
        Step { again: !held_back && (drained || self.backend.has_room()), wake_at_ns, ..Step::default() }
    }

    #[inline(always)]
    fn begin<M: GuestMemory>(&mut self, mem: &Near<'_, M>, chain: Chain)
    where
        B: BlkBackend<M>,
    {
        let header = match chain.read_header(mem) {
            Ok(words) => Header::from(words),
            Err(error) => return self.begin_other(mem, chain, Err(error.into())),
        };
        // Apart, so that what is known of a read does not have to be found out again.
        match parse_read(&chain, &self.shared, header) {
            Some(work) => {
                self.throttle.charge(work.len_bytes);
                self.recorder.taken_read();
                self.start_request(mem, chain, work);
            }
            None => self.begin_other(mem, chain, Ok(header)),
        }
    }

    /// As [`begin`](Self::begin), of anything but a read for the disk.
    #[inline(never)]
    fn begin_other<M: GuestMemory>(&mut self, mem: &Near<'_, M>, chain: Chain, header: Result<Header, Status>)
    where
        B: BlkBackend<M>,
    {
        let parse = |header| parse(mem.memory(), &chain, &self.shared, self.mode, header, &mut self.segments);
        let outcome = header.and_then(parse);
        self.throttle.charge(data_bytes(&outcome, &self.segments));
        self.recorder.taken(&outcome);
        match outcome {
            Ok(Outcome::Submit(work)) => return self.start_request(mem, chain, work),
            Ok(Outcome::Done { filled_bytes }) => finish_apart(&mut self.queue, mem, chain, Status::Ok, filled_bytes),
            Err(status) => finish_apart(&mut self.queue, mem, chain, status, 0),
        }
        self.segments.clear();
    }

    #[inline(always)]
    fn start_request<M: GuestMemory>(&mut self, mem: &Near<'_, M>, chain: Chain, work: Work)
    where
        B: BlkBackend<M>,
    {
        let head = chain.head();
        self.recorder.submitted(head);
        // The table is as long as the queue and the queue refuses heads beyond its size, and those in flight.
        let Some(request) = self.in_flight.get_mut(usize::from(head)) else { return chain.abandon() };
        // Nearly no request has more than one segment: the list stays here for the next one then.
        if !self.segments.is_empty() {
            request.rest = std::mem::replace(&mut self.segments, self.spare.pop().unwrap_or_default());
        }
        request.work = work;
        request.chain = Some(chain);
        let (durability, token) = (&self.shared.durability, token(self.life, head));
        let asked = ask(&mut self.backend, durability, mem.memory(), token, request, work, &mut self.ranges);
        if let Err(error) = asked {
            self.fail(mem, head, error);
        }
    }

    /// Has the disk do what the request at `head` is for, after something else was done for it.
    #[inline(never)]
    fn ask_again<M: GuestMemory>(&mut self, mem: &Near<'_, M>, head: u16)
    where
        B: BlkBackend<M>,
    {
        let Some(request) = request_at(&mut self.in_flight, head) else { return };
        let (durability, token, work) = (&self.shared.durability, token(self.life, head), request.work);
        let asked = ask(&mut self.backend, durability, mem.memory(), token, request, work, &mut self.ranges);
        if let Err(error) = asked {
            self.fail(mem, head, error);
        }
    }

    /// Has the disk flush, so that the write at `head`, which is done, counts as durable.
    #[cold]
    fn settle<M: GuestMemory>(&mut self, mem: &Near<'_, M>, head: u16)
    where
        B: BlkBackend<M>,
    {
        let durability = &self.shared.durability;
        let token = token(self.life, head);
        let Some(request) = request_at(&mut self.in_flight, head) else { return };
        request.stage = Stage::Settling;
        request.asked = durability.now();
        let flush = BlkRequest { token, op: BlkOp::Flush, offset_bytes: 0, len_bytes: 0, ranges: &[] };
        if let Err(error) = self.backend.submit(mem.memory(), flush) {
            remember(durability, request, Err(error));
            self.fail(mem, head, error);
        }
    }

    /// Takes the disk's completions: returns them to the driver, or abandons them. What they lead to next is committed,
    /// and may be done at once: no request has more than its segments and a flush a segment.
    fn collect<M: GuestMemory>(&mut self, mem: &Near<'_, M>, abandon: bool)
    where
        B: BlkBackend<M>,
    {
        while self.collect_once(mem, abandon) {
            self.backend.commit();
        }
    }

    /// As [`collect`](Self::collect); whether the disk was asked for something else, which is not committed.
    fn collect_once<M: GuestMemory>(&mut self, mem: &Near<'_, M>, abandon: bool) -> bool
    where
        B: BlkBackend<M>,
    {
        let mut ended = std::mem::take(&mut self.ended);
        self.backend.poll(mem.memory(), &mut |token, result| ended.push((token, result)));
        let (mut asked, mut read_bytes) = (false, 0u64);
        for (token, result) in ended.drain(..) {
            let (life, head) = (token.0 >> 16, token.0 as u16);
            let request = request_at(&mut self.in_flight, head).filter(|_| life == u64::from(self.life));
            let Some(request) = request.filter(|request| request.stage != Stage::Held) else {
                debug_assert!(false, "the disk completed {token:?}, which is not in flight");
                continue;
            };
            // A read that went well leaves nothing to be looked into.
            if result.is_ok() && matches!(request.work.op, BlkOp::Read) && !abandon {
                let Some(chain) = request.chain.take() else { continue };
                let len_bytes = request.work.len_bytes;
                read_bytes = read_bytes.wrapping_add(len_bytes);
                self.recorder.completed(head);
                finish(&mut self.queue, mem, chain, Status::Ok, len_bytes);
                continue;
            }
            remember(&self.shared.durability, request, result);
            if !abandon {
                asked |= self.answered(mem, head, result);
            } else if let Some((chain, _)) = self.take(head) {
                chain.abandon();
            }
        }
        self.ended = ended;
        if read_bytes > 0 {
            self.queue.counters().bytes_to_guest.add(read_bytes);
        }
        asked
    }

    /// Takes the request at `head` out: its chain, and what was to be done.
    #[inline]
    fn take(&mut self, head: u16) -> Option<(Chain, Work)> {
        let request = self.in_flight.get_mut(usize::from(head))?;
        let chain = request.chain.take()?;
        // Keeps the room of a list of segments, if it has any.
        if request.rest.capacity() > 0 {
            let mut rest = std::mem::take(&mut request.rest);
            rest.clear();
            self.spare.push(rest);
        }
        Some((chain, request.work))
    }

    /// The disk has answered the request at `head`. Says whether it was asked for something else.
    #[inline(never)]
    fn answered<M: GuestMemory>(&mut self, mem: &Near<'_, M>, head: u16, result: Result<(), BlkError>) -> bool
    where
        B: BlkBackend<M>,
    {
        let durability = &self.shared.durability;
        let Some(request) = request_at(&mut self.in_flight, head) else { return false };
        let op = request.work.op;
        match result {
            Err(error) => self.fail(mem, head, error),
            // A flush of another queue failed meanwhile, and may have had this one's error.
            Ok(()) if op.is_durable() && durability.is_lost() => self.fail(mem, head, BlkError::Lost),
            Ok(()) if op.is_durable() && op != BlkOp::Flush && !durability.is_settled() => {
                self.settle(mem, head);
                return true;
            }
            Ok(()) => match request.rest.pop() {
                Some(next) => {
                    request.work = next;
                    self.ask_again(mem, head);
                    return true;
                }
                None => self.succeed(mem, head),
            },
        }
        false
    }

    #[inline]
    fn succeed<M: GuestMemory>(&mut self, mem: &Near<'_, M>, head: u16) {
        let Some((chain, work)) = self.take(head) else { return };
        let counters = self.queue.counters();
        let filled_bytes = match work.op {
            BlkOp::Read => work.len_bytes,
            _ => 0,
        };
        counters.bytes_to_guest.add(filled_bytes);
        if let BlkOp::Write { .. } = work.op {
            counters.bytes_from_guest.add(work.len_bytes);
        }
        self.recorder.completed(head);
        finish_apart(&mut self.queue, mem, chain, Status::Ok, filled_bytes);
    }

    /// Ends the request at `head` with an error, or keeps it for the operator.
    #[cold]
    fn fail<M: GuestMemory>(&mut self, mem: &Near<'_, M>, head: u16, error: BlkError) {
        let Some(request) = request_at(&mut self.in_flight, head) else { return };
        let op = request.work.op;
        let held = self.shared.config.on_error(op).holds(error);
        if held {
            request.stage = Stage::Held;
            self.held = self.held.saturating_add(1);
        } else if let Some((chain, _)) = self.take(head) {
            self.recorder.failed(head, error);
            finish_apart(&mut self.queue, mem, chain, status(error), 0);
        }
        if error.is_of_disk() {
            self.shared.failures.failed(Failure { op, error, held });
        }
    }

    fn round<M: GuestMemory>(&mut self, mem: &Near<'_, M>, lingering: bool) -> Step
    where
        B: BlkBackend<M>,
    {
        self.recorder.begin_step();
        self.collect(mem, false);
        let takes = !self.stopping && self.queue.is_live();
        let step = if takes { self.take_requests(mem, lingering) } else { Step::default() };
        self.queue.publish(mem);
        self.recorder.published();
        step
    }

    fn abandon_all(&mut self) {
        self.recorder.forget_all();
        self.held = 0;
        self.kept = None;
        for request in &mut self.in_flight {
            request.rest.clear();
            if let Some(chain) = request.chain.take() {
                chain.abandon();
            }
        }
    }
}

impl<B> Drop for BlkWorker<B> {
    fn drop(&mut self) {
        self.abandon_all();
    }
}

/// Bytes that a request costs at a rate limit. Zeroes count, since the disk may have to write them; a discard does not.
fn data_bytes(outcome: &Result<Outcome, Status>, rest: &[Work]) -> u64 {
    let Ok(Outcome::Submit(work)) = outcome else { return 0 };
    let counted = [work].into_iter().chain(rest).filter(|work| work.op != BlkOp::Discard);
    counted.fold(0, |sum, work| sum.saturating_add(work.len_bytes))
}

/// As [`finish`], for those that are not many.
#[inline(never)]
fn finish_apart<M: GuestMemory>(
    queue: &mut WorkerQueue,
    mem: &Near<'_, M>,
    chain: Chain,
    status: Status,
    filled_bytes: u64,
) {
    finish(queue, mem, chain, status, filled_bytes);
}

/// Writes the status byte and returns the chain.
#[inline(always)]
fn finish<M: GuestMemory>(queue: &mut WorkerQueue, mem: &Near<'_, M>, chain: Chain, status: Status, filled_bytes: u64) {
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
    let written = match is_planted(Defect::StatusMisplaced) && !alone {
        true => chain.writer(mem.memory()).write(&[status as u8]),
        false => chain.write_last(mem, status as u8),
    };
    debug_assert!(written.is_ok(), "a chain's memory was checked when it was popped");
    // §2.7.8.2: `len` counts from the start of the writable part without gaps, so it includes the status byte only
    // where all data before it was written.
    let len = if filled_bytes == data_bytes { chain.writable_bytes() } else { filled_bytes };
    queue.push(mem, chain, len);
}

/// What the guest learns of a failure.
fn status(error: BlkError) -> Status {
    match error {
        BlkError::Unsupported => Status::Unsupported,
        BlkError::Host(_)
        | BlkError::NoSpace
        | BlkError::Short
        | BlkError::Lost
        | BlkError::Memory
        | BlkError::Cancelled => Status::IoErr,
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
        self.mode = Mode { features: activation.features, legacy: activation.legacy };
        self.stopping = false;
        self.cancelled = false;
        let kept = self.kept.take().filter(|kept| kept.are_of(&state));
        let own = kept.as_ref().is_some_and(Kept::is_own);
        if !own {
            self.abandon_all();
        }
        self.life = self.life.wrapping_add(1);
        self.queue.start(mem, &state, activation);
        self.in_flight.clear();
        self.in_flight.resize_with(usize::from(self.queue.size()), InFlight::default);
        if !own {
            self.recorder.start(self.queue.size());
        }
        self.ended.reserve(usize::from(self.queue.size()));
        self.spare.reserve(usize::from(self.queue.size()));
        if let Some(kept) = kept {
            self.go_on(mem, kept);
        }
    }

    fn step(&mut self, mem: &M) -> Step {
        self.round(&self.queue.near(mem), false)
    }

    fn linger(&mut self, mem: &M) -> Step {
        self.round(&self.queue.near(mem), true)
    }

    fn has_work(&self, mem: &M) -> bool {
        self.queue.has_news(mem)
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
        let mem = &self.queue.near(mem);
        self.recorder.begin_step();
        self.collect(mem, abandon);
        if !abandon {
            self.queue.publish(mem);
            self.recorder.published();
        }
        let stopped = self.backend.in_flight() == 0;
        if stopped && abandon {
            // Whoever drives the disk next may know of no cache.
            self.backend.set_write_cache(false);
            self.abandon_all();
        }
        stopped
    }

    fn take_state(&mut self, queue: u16) -> Option<QueueState> {
        if queue != self.queue.index() {
            return None;
        }
        self.throttle.rest();
        if self.held > 0 {
            self.keep();
        } else {
            self.abandon_all();
        }
        self.queue.take_state()
    }

    fn save(&self) -> WorkerState {
        let durability = &self.shared.durability;
        let held = self.kept.as_ref().map(Kept::requests).cloned();
        WorkerState {
            version: if held.is_some() { 2 } else { 1 },
            unsettled: !durability.is_settled(),
            lost: durability.is_lost(),
            held,
            ..WorkerState::default()
        }
    }

    fn restore(&mut self, state: &WorkerState) -> Result<(), StateError> {
        let WorkerState { version, from_guest, to_guest, unsettled, lost, card: None, held } = state else {
            return Err(StateError { what: "a disk's queue", why: "it has a card" });
        };
        if !matches!((version, held), (1, None) | (2, Some(_))) {
            return Err(StateError { what: "a disk's queue", why: "its version is unknown" });
        }
        if !from_guest.is_empty() || !to_guest.is_empty() {
            return Err(StateError { what: "a disk's queue", why: "it holds no bytes" });
        }
        self.kept = held.as_ref().map(|held| Kept::brought(held, &self.shared.config)).transpose()?;
        // Each queue of a disk has saved the same.
        let durability = &self.shared.durability;
        if *unsettled && durability.is_settled() {
            durability.write_failed();
        }
        if *lost {
            durability.flush_failed();
        }
        Ok(())
    }

    fn forget(&mut self, queue: u16) {
        if queue == self.queue.index() {
            self.abandon_all();
            self.queue.take_state();
            self.backend.set_write_cache(false);
        }
    }
}
