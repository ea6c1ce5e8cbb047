//! The packed virtqueue, device side (virtio 1.3 §2.8).
//!
//! ```text
//! descriptor ring   size × { addr, len, id, flags }   read by both, written by both
//! driver area       { off | wrap << 15, flags }       when the driver wants interrupts
//! device area       { off | wrap << 15, flags }       when the device wants kicks
//! ```
//!
//! There is no index that says how far the driver is: each descriptor's own flags do, against a counter that flips
//! with every lap. Half a descriptor (length, id, flags) is therefore loaded and stored as one 64-bit word: flags that
//! were checked belong to the length and the id that are used.

use std::sync::atomic::Ordering;

use super::chain::{Body, Chain, Returned};
use super::error::QueueError;
use super::mem::{Descriptor, OutsideMemory, RingMem, entry_of};
use super::ring::{F_EVENT_IDX, F_INDIRECT_DESC};
use super::walk::{Buffer, InFlight, Parser, Sum};
use crate::virtio::QueueState;

/// `VIRTQ_DESC_F_AVAIL` and `VIRTQ_DESC_F_USED` (virtio 1.3 §2.8.1).
const AVAIL: u16 = 1 << 7;
const USED: u16 = 1 << 15;

/// Offset of `flags` in an event suppression area; `off` and `wrap` are before it (virtio 1.3 §2.8.14).
const EVENT_FLAGS: u64 = 2;
const EVENT_BYTES: u64 = 4;
/// `RING_EVENT_FLAGS_*`.
const EVENTS_ENABLED: u16 = 0;
const EVENTS_DISABLED: u16 = 1;
const EVENTS_AT_DESCRIPTOR: u16 = 2;
/// The wrap counter's bit in `desc_event_off` and in a saved position.
const WRAP: u16 = 1 << 15;

/// A place in the ring, and the wrap counter of whoever is there (virtio 1.3 §2.8.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Position {
    index: u16,
    wrap: bool,
}

impl Position {
    /// From a saved position.
    fn decode(word: u16, size: u16) -> Result<Self, QueueError> {
        let index = word & !WRAP;
        if index < size {
            Ok(Self { index, wrap: word & WRAP != 0 })
        } else {
            Err(QueueError::BadPosition { index, size })
        }
    }

    fn encode(self) -> u16 {
        self.index | if self.wrap { WRAP } else { 0 }
    }

    /// `slots` descriptors on; at most a ring.
    #[inline]
    fn plus(self, slots: u16, size: u16) -> Self {
        let index = u32::from(self.index).wrapping_add(slots.into());
        match index.checked_sub(size.into()) {
            Some(index) => Self { index: index as u16, wrap: !self.wrap },
            None => Self { index: index as u16, wrap: self.wrap },
        }
    }

    /// `slots` descriptors back; at most a ring.
    fn minus(self, slots: u16, size: u16) -> Self {
        match self.index.checked_sub(slots) {
            Some(index) => Self { index, wrap: self.wrap },
            None => Self { index: self.index.wrapping_add(size).wrapping_sub(slots), wrap: !self.wrap },
        }
    }

    /// Descriptors from `earlier` to here, going forward: both wrap counters together tell two laps apart.
    fn since(self, earlier: Self, size: u16) -> u32 {
        let laps = u32::from(size).wrapping_mul(2);
        let place = |at: Self| u32::from(at.index).wrapping_add(if at.wrap { 0 } else { size.into() });
        place(self).wrapping_add(laps).wrapping_sub(place(earlier)).checked_rem(laps).unwrap_or_default()
    }
}

/// The second half of a descriptor.
#[derive(Clone, Copy)]
struct Tail {
    len: u32,
    id: u16,
    flags: u16,
}

impl Tail {
    fn from_word(word: u64) -> Self {
        Self { len: word as u32, id: (word >> 32) as u16, flags: (word >> 48) as u16 }
    }

    fn to_word(self) -> u64 {
        u64::from(self.len) | u64::from(self.id) << 32 | u64::from(self.flags) << 48
    }

    /// Whether the driver of a ring whose counter is `wrap` has made the descriptor available (virtio 1.3 §2.8.1).
    fn is_available(self, wrap: bool) -> bool {
        (self.flags & AVAIL != 0) == wrap && (self.flags & USED != 0) != wrap
    }
}

/// A running packed virtqueue.
///
/// Address arithmetic wraps on purpose: [`Packed::new`] has checked that all areas lie inside guest memory, so no sum
/// made of the ring's address and an index below its size can leave it.
#[derive(Debug)]
pub(super) struct Packed {
    size: u16,
    ring: u64,
    driver_area: u64,
    device_area: u64,
    event_idx: bool,
    parser: Parser,
    next_avail: Position,
    next_used: Position,
    /// `next_used` as of the last [`publish`](Self::publish).
    published: Position,
    /// Slots from there to `next_used`.
    unshown: u32,
    /// The first used descriptor since then, not stored yet: the driver finds none of the later ones before it.
    first: Option<(u64, u64)>,
    /// `flags` of the device area as last written.
    event_flags: Option<u16>,
    /// By buffer id, which is any number of the driver's.
    in_flight: InFlight,
    /// Identities for chains: below the size of the ring, as devices want them for their tables.
    heads: Vec<u16>,
}

impl Packed {
    /// See [`Queue::new`](super::Queue::new).
    pub(super) fn new<M: RingMem + ?Sized>(
        mem: &M,
        state: &QueueState,
        features: u64,
        max_size: u16,
    ) -> Result<Self, QueueError> {
        let QueueState { size, desc_table, avail_ring, used_ring, .. } = *state;
        if size == 0 || size > max_size || size > WRAP {
            return Err(QueueError::BadPackedSize { size, max: max_size });
        }
        let ring_bytes = u64::from(size).wrapping_mul(Descriptor::SIZE);
        for (area, addr, align, len) in [
            ("descriptor ring", desc_table, Descriptor::SIZE, ring_bytes),
            ("driver event suppression area", avail_ring, EVENT_BYTES, EVENT_BYTES),
            ("device event suppression area", used_ring, EVENT_BYTES, EVENT_BYTES),
        ] {
            if !addr.is_multiple_of(align) {
                return Err(QueueError::Misaligned { area, addr, align });
            }
            if !mem.contains(addr, len) {
                return Err(OutsideMemory { addr, len }.into());
            }
        }
        let next_used = Position::decode(state.next_used, size)?;
        Ok(Self {
            size,
            ring: desc_table,
            driver_area: avail_ring,
            device_area: used_ring,
            event_idx: features & F_EVENT_IDX != 0,
            parser: Parser::new(size, features & F_INDIRECT_DESC != 0),
            next_avail: Position::decode(state.next_avail, size)?,
            next_used,
            published: next_used,
            unshown: 0,
            first: None,
            event_flags: None,
            in_flight: InFlight::new(1 << 16),
            heads: (0..size).rev().collect(),
        })
    }

    pub(super) fn size(&self) -> u16 {
        self.size
    }

    pub(super) fn address(&self) -> u64 {
        self.ring
    }

    pub(super) fn in_flight(&self) -> &InFlight {
        &self.in_flight
    }

    pub(super) fn state(&self) -> QueueState {
        QueueState {
            size: self.size,
            desc_table: self.ring,
            avail_ring: self.driver_area,
            used_ring: self.device_area,
            next_avail: self.next_avail.encode(),
            next_used: self.next_used.encode(),
        }
    }

    pub(super) fn parser(&mut self) -> &mut Parser {
        &mut self.parser
    }

    /// Descriptors that the positions say are of chains in flight.
    pub(super) fn outstanding(&self) -> u32 {
        self.next_avail.since(self.next_used, self.size)
    }

    /// Has a chain in flight again that was popped from another queue: its head, its buffer id, and the room it takes.
    pub(super) fn occupy(&mut self, Returned { head, id, slots, .. }: Returned) -> Result<(), QueueError> {
        if self.in_flight.contains(id) {
            return Err(QueueError::HeadInFlight { head: id });
        }
        let free = self.heads.iter().position(|free| *free == head);
        self.heads.swap_remove(free.ok_or(QueueError::BadHead { head, size: self.size })?);
        self.in_flight.insert(id, slots);
        Ok(())
    }

    /// What [`occupy`](Self::occupy) took from [`outstanding`](Self::outstanding).
    pub(super) fn occupied(&self) -> u32 {
        self.in_flight.slots()
    }

    /// See [`Queue::pop`](super::Queue::pop).
    #[inline(never)]
    pub(super) fn pop<M: RingMem + ?Sized>(&mut self, mem: &M) -> Result<Option<Chain>, QueueError> {
        // Acquire: the rest of the chain is read after the flags that make it available (virtio 1.3 §2.8.2).
        let tail = self.load_tail(mem, self.next_avail, Ordering::Acquire)?;
        if !tail.is_available(self.next_avail.wrap) {
            return Ok(None);
        }
        let mut chain = self.parser.begin();
        let id = match self.walk(mem, tail, &mut chain.body) {
            Ok(id) => id,
            Err(error) => {
                self.parser.recycle(chain);
                return Err(error);
            }
        };
        // Chains in flight take at least a slot each, and the walk refused a chain that has none left.
        let Some(head) = self.heads.pop() else {
            self.parser.recycle(chain);
            return Err(QueueError::Overrun { slots: 1, free: 0 });
        };
        chain.claim(head, id);
        self.in_flight.insert(id, chain.body.slots);
        self.next_avail = self.next_avail.plus(chain.body.slots, self.size);
        Ok(Some(chain))
    }

    /// See [`Queue::has_available`](super::Queue::has_available).
    #[inline]
    pub(super) fn has_available<M: RingMem + ?Sized>(&self, mem: &M) -> Result<bool, QueueError> {
        let tail = self.load_tail(mem, self.next_avail, Ordering::Relaxed)?;
        Ok(tail.is_available(self.next_avail.wrap))
    }

    /// See [`Queue::seen`](super::Queue::seen): a packed ring has no count of what was made available.
    #[inline]
    pub(super) fn seen(&self) -> u16 {
        0
    }

    /// See [`Queue::look`](super::Queue::look).
    #[inline]
    pub(super) fn look<M: RingMem + ?Sized>(&mut self, _mem: &M) {}

    /// See [`Queue::unpop`](super::Queue::unpop).
    pub(super) fn unpop(&mut self, chain: Chain) {
        self.in_flight.remove(chain.body.id, chain.body.slots);
        self.next_avail = self.next_avail.minus(chain.body.slots, self.size);
        self.free_head(chain.body.head);
        self.parser.recycle(chain);
    }

    /// Takes a chain back.
    #[inline]
    pub(super) fn settle(&mut self, chain: Chain) {
        self.parser.recycle(chain);
    }

    /// Writes the used descriptor of a chain; it is shown with the next [`publish`](Self::publish).
    #[inline(always)]
    pub(super) fn give_back<M: RingMem + ?Sized>(&mut self, mem: &M, chain: Returned) -> Result<(), QueueError> {
        let Returned { head, id, slots, len } = chain;
        if !self.in_flight.take(id, slots) {
            return Err(QueueError::NotInFlight { head });
        }
        let mut flags = if self.next_used.wrap { AVAIL | USED } else { 0 };
        if len > 0 {
            // §2.8.3: in a used descriptor, whether anything was written. Without it the length means nothing (§2.8.4).
            flags |= Descriptor::WRITE;
        }
        let at = self.tail_address(self.next_used);
        let word = Tail { len, id, flags }.to_word();
        if self.first.is_none() {
            self.first = Some((at, word));
        } else if let Err(outside) = mem.store_u64(at, word, Ordering::Relaxed) {
            self.in_flight.insert(id, slots);
            return Err(outside.into());
        }
        self.unshown = self.unshown.wrapping_add(slots.into());
        self.free_head(head);
        self.next_used = self.next_used.plus(slots, self.size);
        Ok(())
    }

    pub(super) fn has_unpublished(&self) -> bool {
        self.first.is_some()
    }

    /// See [`Queue::publish`](super::Queue::publish), and virtio 1.3 §2.8.10.
    #[inline]
    pub(super) fn publish<M: RingMem + ?Sized>(&mut self, mem: &M) -> Result<bool, QueueError> {
        let Some((at, word)) = self.first else { return Ok(false) };
        // Release: the later used descriptors and the data are visible before the first one, where the driver looks.
        mem.store_u64(at, word, Ordering::Release)?;
        (self.first, self.unshown) = (None, 0);
        let (old, new) = (self.published, self.next_used);
        self.published = new;
        // The driver stores its wish and then looks at the ring once more; the device stores the descriptor and then
        // looks at the wish. Without a full fence both could miss the other and the interrupt would be lost.
        mem.fence(Ordering::SeqCst);
        // Acquire: a driver writes the offset before the flags that give it a meaning.
        let flags = mem.load_u16(self.driver_area.wrapping_add(EVENT_FLAGS), Ordering::Acquire)?;
        if flags == EVENTS_DISABLED {
            return Ok(false);
        }
        if flags != EVENTS_AT_DESCRIPTOR || !self.event_idx {
            return Ok(true);
        }
        let wish = mem.load_u16(self.driver_area, Ordering::Relaxed)?;
        // An offset outside the ring names no descriptor; an interrupt too many does less harm than one too few.
        let Ok(event) = Position::decode(wish, self.size) else { return Ok(true) };
        // Does the batch old..new contain the descriptor the driver waits for?
        Ok(event.since(old, self.size) < new.since(old, self.size))
    }

    /// See [`Queue::disable_kicks`](super::Queue::disable_kicks). With `EVENT_IDX` nothing needs to be said: the driver
    /// kicks once per announced descriptor.
    pub(super) fn disable_kicks<M: RingMem + ?Sized>(&mut self, mem: &M) -> Result<(), QueueError> {
        if self.event_idx { Ok(()) } else { self.write_event_flags(mem, EVENTS_DISABLED) }
    }

    /// See [`Queue::enable_kicks`](super::Queue::enable_kicks).
    pub(super) fn enable_kicks<M: RingMem + ?Sized>(&mut self, mem: &M) -> Result<bool, QueueError> {
        if self.event_idx {
            mem.store_u16(self.device_area, self.next_avail.encode(), Ordering::Relaxed)?;
            self.write_event_flags(mem, EVENTS_AT_DESCRIPTOR)?;
        } else {
            self.write_event_flags(mem, EVENTS_ENABLED)?;
        }
        // Pairs with the driver's fence between making a descriptor available and reading the wish above.
        mem.fence(Ordering::SeqCst);
        let tail = self.load_tail(mem, self.next_avail, Ordering::Relaxed)?;
        Ok(tail.is_available(self.next_avail.wrap))
    }

    fn write_event_flags<M: RingMem + ?Sized>(&mut self, mem: &M, flags: u16) -> Result<(), QueueError> {
        if self.event_flags != Some(flags) {
            // Release: the descriptor it may refer to was written before.
            mem.store_u16(self.device_area.wrapping_add(EVENT_FLAGS), flags, Ordering::Release)?;
            self.event_flags = Some(flags);
        }
        Ok(())
    }

    /// Follows the chain whose first descriptor ends in `tail`. Returns its buffer id: the last descriptor's
    /// (virtio 1.3 §2.8.6).
    #[inline(always)]
    fn walk<M: RingMem + ?Sized>(&mut self, mem: &M, tail: Tail, walked: &mut Body) -> Result<u16, QueueError> {
        // At most `size` slots are in flight or used and not shown yet: a driver that offers one of the latter again cannot
        // have seen it back, and the used descriptor that waits would be written over its next one.
        let free = self.size.saturating_sub(self.in_flight.slots().saturating_add(self.unshown) as u16);
        let (mut at, mut tail, mut sum) = (self.next_avail, tail, self.parser.sum());
        self.take_slot(walked, free)?;
        loop {
            let addr = mem.load_u64(self.slot(at), Ordering::Relaxed)?;
            if tail.flags & Descriptor::INDIRECT != 0 {
                self.walk_table(mem, addr, tail, walked, sum)?;
                break;
            }
            let write = tail.flags & Descriptor::WRITE != 0;
            self.parser.add(mem, &mut sum, walked, Buffer { addr, len: tail.len, write })?;
            if tail.flags & Descriptor::NEXT == 0 {
                sum.close(walked)?;
                break;
            }
            self.take_slot(walked, free)?;
            at = at.plus(1, self.size);
            tail = self.load_tail(mem, at, Ordering::Relaxed)?;
            if !tail.is_available(at.wrap) {
                return Err(QueueError::NotAvailable { index: at.index });
            }
        }
        if self.in_flight.contains(tail.id) {
            return Err(QueueError::HeadInFlight { head: tail.id });
        }
        Ok(tail.id)
    }

    /// Counts one more descriptor of the ring, where there is one that belongs to the driver.
    #[inline]
    fn take_slot(&self, walked: &mut Body, free: u16) -> Result<(), QueueError> {
        walked.slots = walked.slots.wrapping_add(1);
        if walked.slots > self.size {
            Err(QueueError::ChainTooLong { size: self.size })
        } else if walked.slots > free {
            Err(QueueError::Overrun { slots: walked.slots, free })
        } else {
            Ok(())
        }
    }

    /// Reads an indirect table, which ends the chain: all of it, in order; only its write flags mean anything (virtio 1.3
    /// §2.8.7).
    #[inline(always)]
    fn walk_table<M: RingMem + ?Sized>(
        &mut self,
        mem: &M,
        addr: u64,
        tail: Tail,
        walked: &mut Body,
        mut sum: Sum,
    ) -> Result<(), QueueError> {
        if !self.parser.indirect() {
            return Err(QueueError::IndirectNotNegotiated);
        }
        if tail.flags & Descriptor::NEXT != 0 || walked.slots != 1 {
            return Err(QueueError::IndirectLinked);
        }
        let entries = self.parser.table_entries(tail.len)?;
        let outside = |index| OutsideMemory { addr: entry_of(addr, index), len: Descriptor::SIZE };
        let table = mem.table(addr, entries);
        if table.is_none() {
            self.parser.check_table(mem, addr, tail.len)?;
        }
        for index in 0..entries {
            let desc = match &table {
                Some(read) => read(index).ok_or(outside(index))?,
                None => mem.read_descriptor(entry_of(addr, index))?,
            };
            let Descriptor { addr, len, next, .. } = desc;
            // The flags stand where a split ring has the next index.
            self.parser.add(mem, &mut sum, walked, Buffer { addr, len, write: next & Descriptor::WRITE != 0 })?;
        }
        sum.close(walked)
    }

    #[inline]
    fn load_tail<M: RingMem + ?Sized>(&self, mem: &M, at: Position, order: Ordering) -> Result<Tail, QueueError> {
        Ok(Tail::from_word(mem.load_u64(self.tail_address(at), order)?))
    }

    /// Guest address of the descriptor at `at`.
    fn slot(&self, at: Position) -> u64 {
        self.ring.wrapping_add(u64::from(at.index).wrapping_mul(Descriptor::SIZE))
    }

    /// Guest address of its second half.
    fn tail_address(&self, at: Position) -> u64 {
        self.slot(at).wrapping_add(8)
    }

    fn free_head(&mut self, head: u16) {
        // As many heads as the ring has descriptors were made, so this never grows the list.
        if self.heads.len() < self.heads.capacity() {
            self.heads.push(head);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positions_go_forth_and_back_around_the_ring() {
        for size in [1u16, 2, 3, 7, 256, 32767, 32768] {
            let start = Position { index: 0, wrap: true };
            for steps in [0, 1, size / 2, size] {
                let there = start.plus(steps, size);
                assert_eq!(there.minus(steps, size), start, "{size} {steps}");
                assert_eq!(there.since(start, size), u32::from(steps), "{size} {steps}");
                let laps = 2 * u32::from(size);
                assert_eq!(there.plus(size, size).since(start, size), (u32::from(steps) + u32::from(size)) % laps);
                assert_eq!(Position::decode(there.encode(), size), Ok(there));
            }
            assert_eq!(start.plus(size, size), Position { index: 0, wrap: false });
        }
    }

    #[test]
    fn a_batch_contains_exactly_the_descriptors_it_steps_over() {
        for size in 1..=5u16 {
            let laps = 2 * size;
            let place = |n: u16| Position { index: n % size, wrap: (n / size).is_multiple_of(2) };
            for (old, step, event) in (0..laps)
                .flat_map(|old| (1..=size).flat_map(move |step| (0..laps).map(move |event| (old, step, event))))
            {
                let contained = (0..step).any(|n| place(old + n) == place(event));
                let (old, new, event) = (place(old), place(old + step), place(event));
                assert_eq!(
                    event.since(old, size) < new.since(old, size),
                    contained,
                    "{size}: {old:?} {new:?} {event:?}"
                );
            }
        }
    }
}
