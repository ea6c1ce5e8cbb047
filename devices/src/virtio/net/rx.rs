//! The receive queue: frames from the link into the driver's buffers.
//!
//! Buffers are popped ahead of the frames and held, because a link gives up a frame's size only together with the
//! frame. Held chains are unpopped when the queue stops. Frames go straight into guest memory where the held buffers
//! take any frame there can be; else they come by way of a buffer of our own, where one frame that does not fit yet
//! can wait for the driver to post more. The link is given as many of the held buffers as frames have taken lately: what
//! of a longer one is left over comes by way of our own buffer, too. To list buffers for the longest frame there is costs
//! more than a small frame does.

use std::sync::Arc;

use vm_memory::{Bytes, GuestAddress, GuestMemory};

use super::backend::{HEADER_BYTES, Header, MAX_FRAME_RANGES, NetBackend, Received};
use super::filter::{Filter, HEAD_BYTES};
use super::header::{ETHERTYPE, Framing, GUEST_OFFLOADS, MAX_FRAME_BYTES, offloads, set_num_buffers};
use super::held::{Held, Place};
use super::lately::{Alone, Lately};
use super::responder::{AnswersState, Station};
use super::settings::Settings;
use super::tx::{ROUND_BYTES, ROUND_FRAMES, Round};
use crate::planted::{Defect, is_planted};
use crate::virtio::limit::Throttle;
use crate::virtio::queue::{Chain, GuestRange, Near};
use crate::virtio::worker::WorkerQueue;

pub(super) struct Rx {
    pub queue: WorkerQueue,
    /// Its queue pair.
    pair: u16,
    features: u64,
    framing: Framing,
    /// What the driver has set, as of the version last seen.
    filter: Filter,
    is_in_use: bool,
    settings_seen: u64,
    /// Chains popped and not used yet.
    held: Held,
    /// Where a buffer was lately: the next ones will be near it.
    buffers_at: u64,
    /// So many are enough for any frame; none where a frame has one chain, whatever it takes.
    enough_bytes: u64,
    /// The most bytes the driver ever had posted at once, as far as anybody looked: a frame beyond that will never fit.
    peak_bytes: u64,
    /// Where frames land that the held buffers may not take.
    bounce: Box<[u8]>,
    /// A frame in `bounce` that waits for buffers.
    waiting: Option<Frame>,
    /// The queue has been reset by itself, and what came since is nobody's.
    missed: bool,
    /// Guest ranges of the frame being received, kept for their allocation.
    ranges: Vec<GuestRange>,
    lately: Lately,
    alone: Alone,
    /// Bytes of frames that are the driver's and were not counted yet.
    delivered_bytes: u64,
    /// Where the answers of the card's own responder come from, where it has one.
    station: Option<Arc<Station>>,
    pub throttle: Throttle,
}

#[derive(Clone, Copy)]
struct Frame {
    header: Header,
    len_bytes: usize,
}

/// Frames that a link keeps for a queue at most, as far as anybody waits for them: a TAP device has room for a thousand.
const MOST_MISSED: usize = 1024;

/// So many chains are popped together where one is needed.
const MORE_CHAINS: u8 = 16;

/// What stopped a round.
enum Stop {
    /// The budget.
    Budget,
    /// The link has no frame.
    Empty,
    /// The driver has posted no (or too few) buffers.
    Starved,
    /// A rate limit, until then.
    Held { until_ns: u64 },
    /// The link is broken; it is tried again with the next kick.
    Broken,
}

impl Rx {
    /// The receive queue of this pair, stopped.
    pub fn new(queue: WorkerQueue, pair: u16, filter: Filter, station: Option<Arc<Station>>) -> Self {
        Self {
            queue,
            pair,
            features: 0,
            framing: Framing::default(),
            filter,
            is_in_use: false,
            settings_seen: 0,
            held: Held::default(),
            buffers_at: 0,
            enough_bytes: 0,
            peak_bytes: 0,
            bounce: vec![0; MAX_FRAME_BYTES].into_boxed_slice(),
            waiting: None,
            missed: false,
            ranges: Vec::with_capacity(MAX_FRAME_RANGES),
            lately: Lately::new(),
            alone: Alone::default(),
            delivered_bytes: 0,
            station,
            throttle: Throttle::default(),
        }
    }

    /// The queue has started.
    pub fn started<M: ?Sized, B: NetBackend<M>>(
        &mut self,
        backend: &mut B,
        features: u64,
        framing: Framing,
        settings: &Settings,
    ) {
        (self.features, self.framing, self.settings_seen) = (features, framing, 0);
        self.enough_bytes = if framing.mergeable { framing.bytes_of(MAX_FRAME_BYTES) } else { 0 };
        self.renew(settings);
        // A frame kept through a pause was admitted for the driver of then.
        self.waiting = self.waiting.and_then(|frame| self.readmitted(frame));
        // It would not wait if the driver had never posted that much.
        self.peak_bytes = self.waiting.map_or(0, |frame| self.framing.bytes_of(frame.len_bytes));
        if backend.set_offloads(self.framing.offloads).is_err() {
            // Frames that the driver could not digest are dropped one by one.
            self.queue.counters().errors.count();
        }
    }

    /// The driver has reset the queue by itself (§2.6.1): frames go to others meanwhile, or are lost (§5.1.6.5.6.2).
    pub fn reset_alone<M: ?Sized, B: NetBackend<M>>(&mut self, backend: &mut B) {
        self.abandon();
        self.queue.take_state();
        self.missed = true;
        self.set_receiving(backend, false);
    }

    /// The queue begins again, or all of them do: what came for it while it was being reset is lost.
    pub fn end_reset<M: GuestMemory, B: NetBackend<M>>(&mut self, mem: &M, backend: &mut B, link_is_up: bool) {
        if !self.missed {
            return;
        }
        let counters = self.queue.counters();
        let lost = if link_is_up { &counters.dropped } else { &counters.link_down };
        for _ in 0..if self.is_in_use { MOST_MISSED } else { 0 } {
            match backend.receive(mem, &mut [0; HEADER_BYTES], &[], &mut self.bounce) {
                Ok(Received::Frame { .. }) => lost.count(),
                // A link that is broken is the next round's matter.
                Ok(Received::WouldBlock) | Err(_) => break,
            }
        }
        self.receive_again(backend);
    }

    /// Frames come again, where the queue was being reset.
    fn receive_again<M: ?Sized, B: NetBackend<M>>(&mut self, backend: &mut B) {
        if std::mem::take(&mut self.missed) {
            self.set_receiving(backend, true);
        }
    }

    fn set_receiving<M: ?Sized, B: NetBackend<M>>(&self, backend: &mut B, receiving: bool) {
        if backend.set_receiving(receiving).is_err() {
            self.queue.counters().errors.count();
        }
    }

    /// Its queue pair.
    pub fn pair(&self) -> u16 {
        self.pair
    }

    /// Goes by what the driver wants now. Before each round.
    pub fn renew(&mut self, settings: &Settings) {
        if self.settings_seen == settings.version() {
            return;
        }
        let now = settings.now();
        // Under the lock: nothing changes meanwhile.
        self.settings_seen = settings.version();
        self.filter.clone_from(&now.filter);
        self.is_in_use = self.pair < now.pairs;
        // Not all of them where they were saved with a driver that had more than this one has.
        let wanted = now.offloads.map(|chosen| offloads(chosen & self.features));
        drop(now);
        self.filter.accept(self.features);
        let wanted = wanted.unwrap_or_else(|| offloads(self.features));
        if self.framing.offloads != wanted {
            self.framing.offloads = wanted;
            // The frame that waits for buffers was admitted for the offloads of before.
            self.waiting = self.waiting.and_then(|frame| self.readmitted(frame));
        }
        if !self.is_in_use && self.waiting.take().is_some() {
            self.queue.counters().dropped.count();
        }
    }

    /// Asks the link for others of the offloads that the driver with these features has accepted; `false` where it never
    /// accepted them, or the link refuses: then nothing has changed.
    pub fn offer_offloads<M: ?Sized, B: NetBackend<M>>(&mut self, backend: &mut B, features: u64, bits: u64) -> bool {
        if bits & !(features & GUEST_OFFLOADS) != 0 {
            return false;
        }
        let taken = backend.set_offloads(offloads(bits)).is_ok();
        if !taken {
            // What the link makes of the frames meanwhile, the driver gets as far as it can digest it.
            let _ = backend.set_offloads(self.framing.offloads);
        }
        taken
    }

    /// The driver has reset the card.
    pub fn forget_driver<M: ?Sized, B: NetBackend<M>>(&mut self, backend: &mut B) {
        self.receive_again(backend);
        if let Some(station) = &self.station {
            station.forget();
        }
    }

    /// What the card's own responder would go on with elsewhere.
    pub fn save_answers(&self) -> Option<AnswersState> {
        self.station.as_ref().and_then(|station| station.save())
    }

    /// Takes back what [`save_answers`](Self::save_answers) gave; `false` where the card has no responder, or its
    /// responder no such answers.
    pub fn restore_answers(&mut self, saved: Option<&AnswersState>) -> bool {
        self.station.as_ref().map_or(saved.is_none(), |station| station.restore(saved))
    }

    /// One round: a few dozen frames.
    pub fn step<M: GuestMemory, B: NetBackend<M>>(&mut self, mem: &M, backend: &mut B) -> Round {
        if !self.queue.is_live() || !self.is_in_use {
            return Round::default();
        }
        if let Some([GuestRange { addr, .. }, ..]) = self.held.first().map(Chain::writable) {
            self.buffers_at = *addr;
        }
        let near = &self.queue.near(mem).and_buffers(self.buffers_at);
        self.queue.disable_kicks(near);
        self.throttle.begin_step();
        let stop = self.receive_frames(near, backend);
        if self.delivered_bytes > 0 {
            self.queue.counters().bytes_to_guest.add(std::mem::take(&mut self.delivered_bytes));
        }
        self.queue.publish(near);
        match stop {
            Stop::Budget => Round { again: true, ..Round::default() },
            Stop::Empty => {
                self.throttle.rest();
                Round { want_link: true, ..Round::default() }
            }
            Stop::Starved => {
                let again = self.queue.enable_kicks(near);
                if !again {
                    self.throttle.rest();
                }
                Round { again, ..Round::default() }
            }
            Stop::Held { until_ns } => {
                self.queue.counters().throttled.count();
                Round { wake_at_ns: Some(until_ns), ..Round::default() }
            }
            Stop::Broken => {
                // Buffers may well be waiting; to come back for them at once would be to spin.
                self.queue.enable_kicks(near);
                Round::default()
            }
        }
    }

    /// One round while the link is down: what arrives is lost, and nothing of what waits in the network then is news of the
    /// past when the link is up again. No buffer is used. Returns as [`step`](Self::step).
    pub fn lose<M: GuestMemory, B: NetBackend<M>>(&mut self, mem: &M, backend: &mut B) -> Round {
        if !self.queue.is_live() || !self.is_in_use {
            return Round::default();
        }
        if self.waiting.take().is_some() {
            self.queue.counters().link_down.count();
        }
        if self.station.as_ref().and_then(|station| station.take(&mut self.bounce)).is_some() {
            self.queue.counters().link_down.count();
        }
        for _ in 0..self.queue.size() {
            match backend.receive(mem, &mut [0; HEADER_BYTES], &[], &mut self.bounce) {
                Ok(Received::Frame { .. }) => self.queue.counters().link_down.count(),
                Ok(Received::WouldBlock) => return Round { want_link: true, ..Round::default() },
                Err(_) => {
                    self.queue.counters().errors.count();
                    return Round::default();
                }
            }
        }
        Round { again: true, ..Round::default() }
    }

    fn receive_frames<M: GuestMemory, B: NetBackend<M>>(&mut self, near: &Near<'_, M>, backend: &mut B) -> Stop {
        let mem = near.memory();
        if let Some(frame) = self.waiting {
            if !self.gather(near) {
                return Stop::Budget;
            }
            if !self.deliver_bounced(near, frame) {
                return Stop::Starved;
            }
        }
        // One a round: a guest that asks on and on does not keep its own frames from arriving.
        let mut may_answer = self.station.is_some();
        let (mut came, mut came_bytes) = (0u32, 0u64);
        for _ in 0..self.queue.size().min(ROUND_FRAMES) {
            if came_bytes >= ROUND_BYTES {
                break;
            }
            if came == 1 && backend.tells_of_every_frame() && self.alone.is_all() {
                return Stop::Empty;
            }
            let Some(Place { mut direct, capacity, room }) = self.place(near) else { return Stop::Starved };
            if let Some(until_ns) = self.throttle.wait_until() {
                return Stop::Held { until_ns };
            }
            let into = if direct { self.ranges.as_slice() } else { &[] };
            let mut header = [0; HEADER_BYTES];
            let answer =
                self.station.as_ref().filter(|_| may_answer).and_then(|station| station.take(&mut self.bounce));
            let len_bytes = if let Some(len_bytes) = answer {
                (may_answer, direct) = (false, false);
                len_bytes
            } else {
                match backend.receive(mem, &mut header, into, &mut self.bounce) {
                    Ok(Received::Frame { len_bytes }) => len_bytes,
                    Ok(Received::WouldBlock) => {
                        self.alone.was_all(came);
                        return Stop::Empty;
                    }
                    Err(_) => {
                        self.queue.counters().errors.count();
                        return Stop::Broken;
                    }
                }
            };
            self.lately.came(len_bytes);
            came = came.wrapping_add(1);
            came_bytes = came_bytes.saturating_add(len_bytes as u64);
            if came == 2 {
                self.alone.was_not_all();
            }
            if !self.filter.is_open() && !self.filter.passes(&self.head(mem, direct, len_bytes)) {
                // No buffer was used for it: the next frame lands where it did.
                self.queue.counters().filtered.count();
                continue;
            }
            self.throttle.charge(len_bytes as u64);
            let fits = len_bytes <= capacity || is_planted(Defect::FrameTooLarge);
            let admitted = self.framing.admit(&mut header)
                && !self.framing.exceeds_mtu(&header, len_bytes, || self.ethertype(mem, direct));
            if !admitted || !fits {
                self.queue.counters().dropped.count();
                if !fits && !self.framing.mergeable {
                    // The next frame gets the next buffer: one that is too small must not stay in everybody's way.
                    self.use_first(near, 0);
                }
                continue;
            }
            if direct {
                if len_bytes > room {
                    self.deliver_rest(mem, room, len_bytes.min(capacity));
                }
                self.finish(near, header, len_bytes);
            } else if !self.deliver_bounced(near, Frame { header, len_bytes }) {
                return Stop::Starved;
            }
        }
        Stop::Budget
    }

    /// Where the next frame lands; `None` where the driver has no buffer for it. Pops buffers until they take any frame, or
    /// one of them without mergeable buffers.
    #[inline(always)]
    fn place<M: GuestMemory>(&mut self, near: &Near<'_, M>) -> Option<Place> {
        // A small frame has one buffer, which is one piece.
        if self.held.bytes() >= self.enough_bytes
            && let Some([GuestRange { addr, len }, rest @ ..]) = self.held.first().map(Chain::writable)
            && let Some(len @ 1..) = len.checked_sub(self.framing.header_bytes as u32)
            && len as usize >= self.lately.longest_bytes()
            && (self.framing.mergeable || rest.is_empty())
        {
            let header_bytes = self.framing.header_bytes as u64;
            self.ranges.clear();
            self.ranges.push(GuestRange { addr: addr.saturating_add(header_bytes), len });
            // As for any frame: without mergeable buffers this one is all that is held.
            let (room, held) = (len as usize, self.held.bytes().saturating_sub(header_bytes));
            let capacity = usize::try_from(held).unwrap_or(usize::MAX).min(room.saturating_add(self.bounce.len()));
            return Some(Place { direct: true, capacity, room });
        }
        self.place_anywhere(near)
    }

    /// As [`place`](Self::place), of any frame.
    #[inline(never)]
    fn place_anywhere<M: GuestMemory>(&mut self, near: &Near<'_, M>) -> Option<Place> {
        if !self.gather(near) || self.held.is_empty() {
            return None;
        }
        // Without mergeable buffers a frame has one chain, and what does not fit is lost either way.
        let (direct, capacity) = self.capacity();
        let room = if direct { self.lay_out(self.lately.longest_bytes()) } else { 0 };
        Some(Place { direct, capacity: capacity.min(room.saturating_add(self.bounce.len())), room })
    }

    /// Pops buffers until they take any frame, or one of them without mergeable buffers. The first one has room for a
    /// header; `false` where so many had none that a driver must be giving them as fast as they go back.
    fn gather<M: GuestMemory>(&mut self, near: &Near<'_, M>) -> bool {
        self.hold_enough(near);
        let mut left = self.queue.size();
        // §5.1.6.3.1: a buffer holds at least the header. One that does not goes back, or it would be lost; only from
        // the front, because a chain that is unpopped may have none behind it that was pushed.
        while self.held.first().is_some_and(|chain| chain.writable_bytes() < self.framing.header_bytes as u64) {
            let Some(fewer) = left.checked_sub(1) else { return false };
            left = fewer;
            self.queue.counters().malformed.count();
            self.use_first(near, 0);
            self.hold_enough(near);
        }
        self.peak_bytes = self.peak_bytes.max(self.held.bytes());
        true
    }

    /// Pops buffers until they take any frame, and some more then, as one that is popped with others costs less. Without
    /// mergeable buffers a frame has one chain, and no other one is held.
    fn hold_enough<M: GuestMemory>(&mut self, near: &Near<'_, M>) {
        if !self.held.is_empty() && self.held.bytes() >= self.enough_bytes {
            return;
        }
        let Self { queue, held, enough_bytes, .. } = self;
        let mut more = if *enough_bytes > 0 { MORE_CHAINS } else { 1 };
        queue.pop_while(near, |chain| {
            held.push(chain);
            if held.bytes() >= *enough_bytes {
                more = more.saturating_sub(1);
            }
            more > 0
        });
    }

    /// Returns the oldest held chain with up to `bytes` bytes written; how many they were.
    fn use_first<M: GuestMemory>(&mut self, near: &Near<'_, M>, bytes: u64) -> u64 {
        let Some(chain) = self.held.take_first() else { return 0 };
        let used = bytes.min(chain.writable_bytes());
        self.queue.push(near, chain, used);
        used
    }

    /// Whether the next frame goes straight into the held buffers, and how long it may be.
    fn capacity(&self) -> (bool, usize) {
        let held_bytes = match self.held.first() {
            Some(first) if !self.framing.mergeable => first.writable_bytes(),
            _ => self.held.bytes(),
        };
        let room = usize::try_from(held_bytes.saturating_sub(self.framing.header_bytes as u64)).unwrap_or(usize::MAX);
        if self.framing.mergeable && room < MAX_FRAME_BYTES { (false, self.bounce.len()) } else { (true, room) }
    }

    /// Lists the guest ranges that the next frame begins in, behind its header, until they take `wanted` bytes. Returns the
    /// bytes they take.
    fn lay_out(&mut self, wanted: usize) -> usize {
        self.ranges.clear();
        let mut skip = self.framing.header_bytes as u64;
        let mut room = 0usize;
        let chains = if self.framing.mergeable { usize::MAX } else { 1 };
        for chain in self.held.iter().take(chains) {
            for range in chain.writable() {
                let len = u64::from(range.len);
                let cut = skip.min(len);
                skip = skip.saturating_sub(cut);
                if cut == len {
                    continue;
                }
                if self.ranges.len() == MAX_FRAME_RANGES {
                    return room;
                }
                let len = range.len.saturating_sub(u32::try_from(cut).unwrap_or(u32::MAX));
                self.ranges.push(GuestRange { addr: range.addr.saturating_add(cut), len });
                room = room.saturating_add(len as usize);
                if room >= wanted {
                    return room;
                }
            }
        }
        room
    }

    fn bounced_ethertype(&self) -> [u8; 2] {
        let bytes = self.bounce.get(ETHERTYPE as usize..).and_then(|bytes| bytes.first_chunk());
        bytes.copied().unwrap_or_default()
    }

    /// The type of the payload of the frame that was received last.
    fn ethertype<M: GuestMemory>(&self, mem: &M, direct: bool) -> [u8; 2] {
        let mut found = [0; 2];
        self.look(mem, direct, ETHERTYPE, &mut found);
        found
    }

    /// The first bytes of the frame of `len_bytes` that was received last.
    fn head<M: GuestMemory>(&self, mem: &M, direct: bool, len_bytes: usize) -> [u8; HEAD_BYTES] {
        let mut found = [0; HEAD_BYTES];
        self.look(mem, direct, 0, found.get_mut(..len_bytes.min(HEAD_BYTES)).unwrap_or_default());
        found
    }

    /// Bytes from `skip` on of the frame that was received last: in the driver's buffers and, behind them or without them,
    /// in our own. A driver that rewrites its buffer meanwhile deceives itself only.
    fn look<M: GuestMemory>(&self, mem: &M, direct: bool, mut skip: u64, mut rest: &mut [u8]) {
        for range in self.ranges.iter().filter(|_| direct) {
            if rest.is_empty() {
                return;
            }
            let cut = skip.min(range.len.into());
            skip = skip.saturating_sub(cut);
            let left = u64::from(range.len).saturating_sub(cut);
            let here = rest.len().min(usize::try_from(left).unwrap_or(usize::MAX));
            let Some((here, after)) = rest.split_at_mut_checked(here) else { return };
            // A guest that takes the memory away while its frame is being looked at has an unknown type.
            let _ = mem.read_slice(here, GuestAddress(range.addr.saturating_add(cut)));
            rest = after;
        }
        let bounced = self.bounce.get(usize::try_from(skip).unwrap_or(usize::MAX)..).unwrap_or_default();
        rest.iter_mut().zip(bounced).for_each(|(to, from)| *to = *from);
    }

    /// The frame in `bounce` as the driver of now may see it, if it may.
    fn readmitted(&self, mut frame: Frame) -> Option<Frame> {
        let Frame { header, len_bytes } = &mut frame;
        let admitted =
            self.framing.admit(header) && !self.framing.exceeds_mtu(header, *len_bytes, || self.bounced_ethertype());
        if !admitted {
            self.queue.counters().dropped.count();
        }
        admitted.then_some(frame)
    }

    /// The frame that waits for buffers: its header, then its bytes.
    pub fn save(&self) -> Vec<u8> {
        let Some(Frame { header, len_bytes }) = &self.waiting else { return Vec::new() };
        [header, self.bounce.get(..*len_bytes).unwrap_or_default()].concat()
    }

    /// Takes back what [`save`](Self::save) gave; `false` where that is no frame.
    pub fn restore(&mut self, saved: &[u8]) -> bool {
        self.waiting = None;
        let Some((header, data)) = saved.split_first_chunk() else { return saved.is_empty() };
        let Some(to) = self.bounce.get_mut(..data.len()) else { return false };
        to.copy_from_slice(data);
        self.waiting = Some(Frame { header: *header, len_bytes: data.len() });
        true
    }

    /// Copies the frame in `bounce` to the driver. `false` where it has to wait for more buffers.
    fn deliver_bounced<M: GuestMemory>(&mut self, near: &Near<'_, M>, frame: Frame) -> bool {
        let needed = self.framing.bytes_of(frame.len_bytes);
        if needed > self.held.bytes() {
            if needed > self.peak_bytes || self.queue.is_exhausted() {
                // The driver never had that much posted, or cannot post more. To wait might mean to wait for ever, with
                // the driver waiting for us.
                self.waiting = None;
                self.queue.counters().dropped.count();
                return true;
            }
            self.waiting = Some(frame);
            return false;
        }
        self.waiting = None;
        let data = self.bounce.get(..frame.len_bytes).unwrap_or_default();
        match self.held.write(near.memory(), self.framing.header_bytes as u64, data) {
            Ok(()) => self.finish_any(near, frame.header, frame.len_bytes),
            Err(_) => self.queue.counters().dropped.count(),
        }
        true
    }

    /// Copies what of a frame of `len_bytes` did not go into the `room` bytes that the link was given.
    #[inline(never)]
    fn deliver_rest<M: GuestMemory>(&mut self, mem: &M, room: usize, len_bytes: usize) {
        let Some(rest) = len_bytes.checked_sub(room).and_then(|rest| self.bounce.get(..rest)) else { return };
        let at = self.framing.bytes_of(room);
        let written = self.held.write(mem, at, rest);
        debug_assert!(written.is_ok(), "a chain's memory was checked when it was popped");
    }

    /// Writes the header of a frame of `len_bytes` that is in place, and returns the chains it spans.
    #[inline(always)]
    fn finish<M: GuestMemory>(&mut self, near: &Near<'_, M>, mut header: Header, len_bytes: usize) {
        let total = self.framing.bytes_of(len_bytes);
        let Some(first) = self.held.first() else { return };
        if first.writable_bytes() < total || self.framing.header_bytes < HEADER_BYTES {
            return self.finish_any(near, header, len_bytes);
        }
        set_num_buffers(&mut header, 1);
        let written = first.write_first(near, &header);
        debug_assert!(written.is_ok(), "a chain's memory was checked when it was popped");
        let Some(first) = self.held.take_first() else { return };
        self.queue.push(near, first, total);
        self.delivered_bytes = self.delivered_bytes.wrapping_add(len_bytes as u64);
    }

    /// As [`finish`](Self::finish), of a frame in however many chains.
    #[inline(never)]
    fn finish_any<M: GuestMemory>(&mut self, near: &Near<'_, M>, mut header: Header, len_bytes: usize) {
        let total = self.framing.bytes_of(len_bytes);
        let buffers = self.held.spanned_by(total);
        set_num_buffers(&mut header, buffers);
        let Some(first) = self.held.first() else { return };
        // It has room for it.
        let written = first.writer(near.memory()).write(header.get(..self.framing.header_bytes).unwrap_or_default());
        debug_assert!(written.is_ok(), "a chain's memory was checked when it was popped");
        let mut left = total;
        for _ in 0..buffers {
            left = left.saturating_sub(self.use_first(near, left));
        }
        self.delivered_bytes = self.delivered_bytes.wrapping_add(len_bytes as u64);
    }

    /// Puts every held chain back into the ring, so that the queue's state accounts for all of them.
    pub fn release(&mut self) {
        self.throttle.rest();
        while let Some(chain) = self.held.take_last() {
            self.queue.unpop(chain);
        }
    }

    /// Forgets everything of the driver that is going away.
    pub fn abandon(&mut self) {
        self.held.abandon();
        self.waiting = None;
    }
}
