//! The split virtqueue, device side (virtio 1.3 §2.7).
//!
//! `virtio_queue::Queue` holds the ring's state and knows its size and alignment rules. Popping, publishing and
//! suppression are written here, because the crate's iterator ends a malformed chain silently (a device would act on
//! the part before the fault), walks a chain twice (the guest can change it in between), stores the used index once an
//! element instead of once a batch, and ignores `VIRTQ_AVAIL_F_NO_INTERRUPT`.

use std::sync::atomic::Ordering;

use virtio_queue::{Queue as Ring, QueueT};
use vm_memory::GuestAddress;

use super::chain::{Body, Chain, Returned};
use super::error::QueueError;
use super::mem::{Descriptor, OutsideMemory, RingMem, entry_of};
use super::ring::{F_EVENT_IDX, F_INDIRECT_DESC};
use super::walk::{Buffer, InFlight, Parser, Sum};
use crate::planted::{Defect, is_planted, panic_if_planted};
use crate::virtio::QueueState;

/// `VIRTQ_AVAIL_F_NO_INTERRUPT`: the driver wants no interrupts (virtio 1.3 §2.7.6).
const AVAIL_F_NO_INTERRUPT: u16 = 1;
/// `VIRTQ_USED_F_NO_NOTIFY`: the device wants no kicks (virtio 1.3 §2.7.8).
const USED_F_NO_NOTIFY: u16 = 1;
/// Bytes of `flags` and `idx` before the entries of the available and of the used ring.
const RING_HEADER: u64 = 4;
/// Offset of `idx` in both rings.
const RING_INDEX: u64 = 2;
const AVAIL_ENTRY: u64 = 2;
const USED_ENTRY: u64 = 8;
/// Bytes of the event index behind the entries of either ring.
const RING_EVENT: u64 = 2;

/// A running split virtqueue.
///
/// Address arithmetic wraps on purpose: [`Split::new`] has checked that every ring lies inside guest memory, so no sum
/// made of a ring's address and an index below its size can leave it, and an access would be refused there anyway.
#[derive(Debug)]
pub(super) struct Split {
    ring: Ring,
    parser: Parser,
    /// The available index as the driver last showed it.
    seen_avail: u16,
    /// `next_used` as of the last [`publish`](Self::publish).
    published: u16,
    /// `flags` of the used ring as the device last wrote them.
    used_flags: Option<u16>,
    in_flight: InFlight,
    visits: Visits,
}

/// Which entries of a table a walk has visited: finds cycles without clearing anything between chains.
#[derive(Debug)]
struct Visits {
    /// For each index, the walk that last visited it.
    marks: Box<[u32]>,
    walk: u32,
}

impl Visits {
    /// For tables of at most `entries`.
    fn new(entries: u16) -> Self {
        Self { marks: vec![0; usize::from(entries)].into_boxed_slice(), walk: 0 }
    }

    /// Another walk, which has visited the entries from `first` to `last` so far.
    fn begin(&mut self, first: u16, last: u16) {
        self.walk = self.walk.wrapping_add(1);
        if self.walk == 0 {
            // After 2³² walks the marks of old walks would look current.
            self.marks.fill(0);
            self.walk = 1;
        }
        if let Some(marks) = self.marks.get_mut(usize::from(first)..=usize::from(last)) {
            marks.fill(self.walk);
        }
    }

    /// Visits an entry; whether it is for the first time.
    fn is_first(&mut self, index: u16) -> bool {
        let walk = self.walk;
        self.marks.get_mut(usize::from(index)).is_some_and(|mark| std::mem::replace(mark, walk) != walk)
    }
}

/// A table of descriptors, and where a chain enters it.
#[derive(Clone, Copy)]
struct Table {
    addr: u64,
    entries: u32,
    first: u32,
}

/// Length of a table from which on descriptors that are alike are looked for in it: six. A header, a buffer and a status are
/// not.
const LONG_TABLE_BYTES: u32 = 6 * Descriptor::SIZE as u32;

/// What the descriptors come to at the end of a walk through a table, and the indirect descriptor that ends it, if one does.
type Walked = (Sum, Option<Descriptor>);

/// What follows a descriptor in its chain.
enum Next {
    /// The descriptor at this index.
    At(u16),
    /// The table that it names itself.
    Indirect,
    /// Nothing.
    None,
}

impl Table {
    /// Why it has no descriptor at `index`.
    #[cold]
    fn error_at(self, index: u16) -> QueueError {
        if u32::from(index) >= self.entries {
            return QueueError::BadNext { next: index, entries: self.entries as u16 };
        }
        OutsideMemory { addr: entry_of(self.addr, index), len: Descriptor::SIZE }.into()
    }
}

impl Split {
    /// See [`Queue::new`](super::Queue::new).
    pub(super) fn new<M: RingMem + ?Sized>(
        mem: &M,
        state: &QueueState,
        features: u64,
        max_size: u16,
    ) -> Result<Self, QueueError> {
        let bad_size = |_| QueueError::BadSize { size: state.size, max: max_size };
        let mut ring = Ring::new(max_size).map_err(bad_size)?;
        ring.try_set_size(state.size).map_err(bad_size)?;
        let misaligned = |area, addr, align| move |_| QueueError::Misaligned { area, addr, align };
        ring.try_set_desc_table_address(GuestAddress(state.desc_table)).map_err(misaligned(
            "descriptor table",
            state.desc_table,
            16,
        ))?;
        ring.try_set_avail_ring_address(GuestAddress(state.avail_ring)).map_err(misaligned(
            "available ring",
            state.avail_ring,
            2,
        ))?;
        ring.try_set_used_ring_address(GuestAddress(state.used_ring)).map_err(misaligned(
            "used ring",
            state.used_ring,
            4,
        ))?;
        // The crate's `is_valid` would do, but it wants a `GuestMemory` and logs what a guest can provoke at will.
        let entries = u64::from(state.size);
        let ring_bytes = |entry: u64| RING_HEADER.wrapping_add(entries.wrapping_mul(entry)).wrapping_add(RING_EVENT);
        for (addr, len) in [
            (state.desc_table, entries.wrapping_mul(Descriptor::SIZE)),
            (state.avail_ring, ring_bytes(AVAIL_ENTRY)),
            (state.used_ring, ring_bytes(USED_ENTRY)),
        ] {
            if !mem.contains(addr, len) {
                return Err(OutsideMemory { addr, len }.into());
            }
        }
        ring.set_next_avail(state.next_avail);
        ring.set_next_used(state.next_used);
        ring.set_event_idx(features & F_EVENT_IDX != 0);
        ring.set_ready(true);
        Ok(Self {
            ring,
            parser: Parser::new(state.size, features & F_INDIRECT_DESC != 0),
            seen_avail: state.next_avail,
            published: state.next_used,
            used_flags: None,
            in_flight: InFlight::new(usize::from(state.size)),
            visits: Visits::new(state.size),
        })
    }

    pub(super) fn size(&self) -> u16 {
        self.ring.size()
    }

    pub(super) fn address(&self) -> u64 {
        self.ring.avail_ring()
    }

    pub(super) fn in_flight(&self) -> &InFlight {
        &self.in_flight
    }

    pub(super) fn state(&self) -> QueueState {
        QueueState {
            size: self.ring.size(),
            desc_table: self.ring.desc_table(),
            avail_ring: self.ring.avail_ring(),
            used_ring: self.ring.used_ring(),
            next_avail: self.ring.next_avail(),
            next_used: self.ring.next_used(),
        }
    }

    pub(super) fn parser(&mut self) -> &mut Parser {
        &mut self.parser
    }

    /// Chains that the positions say are in flight.
    pub(super) fn outstanding(&self) -> u32 {
        self.ring.next_avail().wrapping_sub(self.ring.next_used()).into()
    }

    /// Has a chain in flight again that was popped from another queue: its head, and the room it takes.
    pub(super) fn occupy(&mut self, Returned { head, id, slots, .. }: Returned) -> Result<(), QueueError> {
        let size = self.ring.size();
        if head >= size || id != head {
            return Err(QueueError::BadHead { head, size });
        }
        if self.in_flight.contains(head) {
            return Err(QueueError::HeadInFlight { head });
        }
        self.in_flight.insert(head, slots);
        Ok(())
    }

    /// What [`occupy`](Self::occupy) took from [`outstanding`](Self::outstanding).
    pub(super) fn occupied(&self) -> u32 {
        self.in_flight.count().into()
    }

    /// See [`Queue::pop`](super::Queue::pop).
    #[inline(always)]
    pub(super) fn pop<M: RingMem + ?Sized>(&mut self, mem: &M) -> Result<Option<Chain>, QueueError> {
        let (next, size) = (self.ring.next_avail(), self.ring.size());
        if self.seen_avail == next {
            // Acquire: the entries and descriptors behind the index are read after it (virtio 1.3 §2.7.13.3.1).
            let index = mem.load_u16(self.ring.avail_ring().wrapping_add(RING_INDEX), Ordering::Acquire)?;
            if index.wrapping_sub(next) > size && !is_planted(Defect::IndexJump) {
                return Err(QueueError::IndexJump { index, next, size });
            }
            self.seen_avail = index;
            if index == next {
                return Ok(None);
            }
        }
        let entry = self.entry(self.ring.avail_ring(), next, AVAIL_ENTRY);
        let head = mem.load_u16(entry, Ordering::Relaxed)?;
        if head >= size {
            panic_if_planted(Defect::HeadAsserted);
            return Err(QueueError::BadHead { head, size });
        }
        let mut chain = self.parser.begin();
        let mut parsed = self.parse(mem, head, &mut chain.body);
        if parsed.is_ok() && !self.in_flight.insert(head, chain.body.slots) && !is_planted(Defect::DuplicateHead) {
            parsed = Err(QueueError::HeadInFlight { head });
        }
        if let Err(error) = parsed {
            self.parser.recycle(chain);
            return Err(error);
        }
        chain.claim(head, head);
        self.ring.set_next_avail(next.wrapping_add(1));
        Ok(Some(chain))
    }

    /// See [`Queue::has_available`](super::Queue::has_available).
    #[inline]
    pub(super) fn has_available<M: RingMem + ?Sized>(&self, mem: &M) -> Result<bool, QueueError> {
        let next = self.ring.next_avail();
        if self.seen_avail != next {
            return Ok(true);
        }
        let index = mem.load_u16(self.ring.avail_ring().wrapping_add(RING_INDEX), Ordering::Relaxed)?;
        Ok(index != next)
    }

    /// See [`Queue::seen`](super::Queue::seen).
    #[inline]
    pub(super) fn seen(&self) -> u16 {
        self.seen_avail.wrapping_sub(self.ring.next_avail())
    }

    /// See [`Queue::look`](super::Queue::look).
    #[inline]
    pub(super) fn look<M: RingMem + ?Sized>(&mut self, mem: &M) {
        // Acquire: as in `pop`, which goes by it. What breaks a rule there is left for it to find.
        if let Ok(index) = mem.load_u16(self.ring.avail_ring().wrapping_add(RING_INDEX), Ordering::Acquire)
            && index.wrapping_sub(self.ring.next_avail()) <= self.ring.size()
        {
            self.seen_avail = index;
        }
    }

    /// See [`Queue::unpop`](super::Queue::unpop).
    pub(super) fn unpop(&mut self, chain: Chain) {
        self.in_flight.remove(chain.body.head, chain.body.slots);
        self.ring.set_next_avail(self.ring.next_avail().wrapping_sub(1));
        self.parser.recycle(chain);
    }

    /// Takes a chain back.
    #[inline]
    pub(super) fn settle(&mut self, chain: Chain) {
        self.parser.recycle(chain);
    }

    /// Writes the used element of a chain; it is shown with the next [`publish`](Self::publish).
    #[inline(always)]
    pub(super) fn give_back<M: RingMem + ?Sized>(&mut self, mem: &M, chain: Returned) -> Result<(), QueueError> {
        let Returned { head, slots, len, .. } = chain;
        if !self.in_flight.take(head, slots) {
            return Err(QueueError::NotInFlight { head });
        }
        let next = self.ring.next_used();
        let written = mem.write_used(self.entry(self.ring.used_ring(), next, USED_ENTRY), u32::from(head), len);
        if written.is_err() {
            self.in_flight.insert(head, slots);
        }
        written?;
        self.ring.set_next_used(next.wrapping_add(1));
        Ok(())
    }

    pub(super) fn has_unpublished(&self) -> bool {
        self.published != self.ring.next_used()
    }

    /// See [`Queue::publish`](super::Queue::publish), and virtio 1.3 §2.7.7.
    pub(super) fn publish<M: RingMem + ?Sized>(&mut self, mem: &M) -> Result<bool, QueueError> {
        let (old, new) = (self.published, self.ring.next_used());
        if old == new {
            return Ok(false);
        }
        // Release: the used elements and the data are visible before the index that points at them.
        mem.store_u16(self.ring.used_ring().wrapping_add(RING_INDEX), new, Ordering::Release)?;
        self.published = new;
        // The driver stores its wish and then looks at the index once more; the device stores the index and then looks
        // at the wish. Without a full fence both could miss the other and the interrupt would be lost.
        mem.fence(Ordering::SeqCst);
        if self.ring.event_idx_enabled() {
            let event = mem.load_u16(self.event(self.ring.avail_ring(), AVAIL_ENTRY), Ordering::Relaxed)?;
            // Does the batch old..new contain the element the driver waits for?
            Ok(new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old))
        } else {
            let flags = mem.load_u16(self.ring.avail_ring(), Ordering::Relaxed)?;
            Ok(flags & AVAIL_F_NO_INTERRUPT == 0)
        }
    }

    /// See [`Queue::disable_kicks`](super::Queue::disable_kicks), and virtio 1.3 §2.7.10. With `EVENT_IDX` nothing needs
    /// to be said: the driver kicks once per announced event.
    pub(super) fn disable_kicks<M: RingMem + ?Sized>(&mut self, mem: &M) -> Result<(), QueueError> {
        if self.ring.event_idx_enabled() {
            return Ok(());
        }
        self.write_used_flags(mem, USED_F_NO_NOTIFY)
    }

    /// See [`Queue::enable_kicks`](super::Queue::enable_kicks).
    pub(super) fn enable_kicks<M: RingMem + ?Sized>(&mut self, mem: &M) -> Result<bool, QueueError> {
        let next = self.ring.next_avail();
        if self.ring.event_idx_enabled() {
            mem.store_u16(self.event(self.ring.used_ring(), USED_ENTRY), next, Ordering::Relaxed)?;
        } else {
            self.write_used_flags(mem, 0)?;
        }
        // Pairs with the driver's fence between storing its index and reading the wish above.
        mem.fence(Ordering::SeqCst);
        let index = mem.load_u16(self.ring.avail_ring().wrapping_add(RING_INDEX), Ordering::Relaxed)?;
        Ok(index != next)
    }

    fn write_used_flags<M: RingMem + ?Sized>(&mut self, mem: &M, flags: u16) -> Result<(), QueueError> {
        if self.used_flags != Some(flags) {
            mem.store_u16(self.ring.used_ring(), flags, Ordering::Relaxed)?;
            self.used_flags = Some(flags);
        }
        Ok(())
    }

    /// Walks the chain at `head`.
    #[inline(always)]
    fn parse<M: RingMem + ?Sized>(&mut self, mem: &M, head: u16, body: &mut Body) -> Result<(), QueueError> {
        let first = mem.read_descriptor(entry_of(self.ring.desc_table(), head))?;
        if first.flags & Descriptor::INDIRECT != 0 {
            body.slots = 1;
            let sum = self.parser.sum();
            return match first.len < LONG_TABLE_BYTES {
                true => self.walk_indirect::<false, _>(mem, first, sum, body),
                false => self.walk_indirect::<true, _>(mem, first, sum, body),
            };
        }
        if first.flags & Descriptor::NEXT == 0 {
            // One buffer alone, as network cards have them: there is nothing to walk.
            let table = Table { addr: self.ring.desc_table(), entries: self.ring.size().into(), first: head.into() };
            let mut sum = self.parser.sum();
            self.visit(mem, table, (head, first), &mut sum, body)?;
            body.slots = 1;
            return sum.close(body);
        }
        self.walk_ring(mem, head, first, body)
    }

    /// Walks a chain that begins in the ring with its `first` descriptor, which has been read.
    #[inline(never)]
    fn walk_ring<M: RingMem + ?Sized>(
        &mut self,
        mem: &M,
        head: u16,
        first: Descriptor,
        body: &mut Body,
    ) -> Result<(), QueueError> {
        let (addr, entries) = (self.ring.desc_table(), self.ring.size());
        let table = Table { addr, entries: entries.into(), first: head.into() };
        let sum = self.parser.sum();
        let (sum, last) = match mem.table(addr, entries) {
            Some(read) => self.walk::<false, _>(mem, table, read, Some(first), sum, body)?,
            None => self.walk_anywhere(mem, table, Some(first), sum, body)?,
        };
        body.slots = u32::from(self.ring.size()).wrapping_sub(sum.room) as u16;
        match last {
            Some(indirect) => {
                // It is in the ring as well.
                body.slots = body.slots.saturating_add(1);
                self.walk_indirect::<true, _>(mem, indirect, sum, body)
            }
            None => sum.close(body),
        }
    }

    /// Walks the table that `desc` names, which ends the chain; the descriptors before it come to `sum`. For `RUNS` see
    /// [`walk`](Self::walk).
    #[inline(never)]
    fn walk_indirect<const RUNS: bool, M: RingMem + ?Sized>(
        &mut self,
        mem: &M,
        desc: Descriptor,
        sum: Sum,
        body: &mut Body,
    ) -> Result<(), QueueError> {
        check_indirect(self.parser.indirect(), desc)?;
        let entries = self.parser.table_entries(desc.len)?;
        let table = Table { addr: desc.addr, entries: entries.into(), first: 0 };
        let (sum, nested) = match mem.table(desc.addr, entries) {
            Some(read) => self.walk::<RUNS, _>(mem, table, read, None, sum, body)?,
            None => {
                self.parser.check_table(mem, desc.addr, desc.len)?;
                self.walk_anywhere(mem, table, None, sum, body)?
            }
        };
        if nested.is_some() {
            return Err(QueueError::IndirectNested);
        }
        sum.close(body)
    }

    /// As [`walk`](Self::walk), of a table that cannot be had as one.
    #[cold]
    #[inline(never)]
    fn walk_anywhere<M: RingMem + ?Sized>(
        &mut self,
        mem: &M,
        table: Table,
        first: Option<Descriptor>,
        sum: Sum,
        body: &mut Body,
    ) -> Result<Walked, QueueError> {
        let read = |index| match u32::from(index) < table.entries {
            true => mem.read_descriptor(entry_of(table.addr, index)).ok(),
            false => None,
        };
        self.walk::<false, _>(mem, table, read, first, sum, body)
    }

    /// Follows the descriptors of one table, each by `read`, which knows none outside the table; the first one may have been
    /// read. With `RUNS` those that are alike are taken together.
    #[inline(always)]
    fn walk<const RUNS: bool, M: RingMem + ?Sized>(
        &mut self,
        mem: &M,
        table: Table,
        read: impl Fn(u16) -> Option<Descriptor>,
        first: Option<Descriptor>,
        mut sum: Sum,
        body: &mut Body,
    ) -> Result<Walked, QueueError> {
        let mut index = table.first as u16;
        let mut desc = match first {
            Some(desc) => desc,
            None => read(index).ok_or_else(|| table.error_at(index))?,
        };
        // As long as each is the one behind the last, as in nearly every chain, none can have come twice. Tables end far below
        // the last index, so what is behind a descriptor is never the first one.
        loop {
            let next = match self.visit(mem, table, (index, desc), &mut sum, body)? {
                Next::At(next) => next,
                Next::Indirect => return Ok((sum, Some(desc))),
                Next::None => return Ok((sum, None)),
            };
            if next != index.wrapping_add(1) {
                return self.walk_out_of_order(mem, table, read, (index, next), sum, body);
            }
            index = next;
            if !RUNS {
                desc = read(index).ok_or_else(|| table.error_at(index))?;
                continue;
            }
            let run = self.parser.add_run(&read, index, desc.flags, sum, body);
            (index, sum) = (run.end, run.sum);
            desc = run.desc.ok_or_else(|| table.error_at(index))?;
        }
    }

    /// Goes on with a [`walk`](Self::walk) that was in order up to the first of these two descriptors and jumps to the second.
    #[cold]
    #[inline(never)]
    fn walk_out_of_order<M: RingMem + ?Sized>(
        &mut self,
        mem: &M,
        table: Table,
        read: impl Fn(u16) -> Option<Descriptor>,
        (last, mut index): (u16, u16),
        mut sum: Sum,
        body: &mut Body,
    ) -> Result<Walked, QueueError> {
        self.visits.begin(table.first as u16, last);
        loop {
            if u32::from(index) < table.entries && !self.visits.is_first(index) {
                return Err(QueueError::Cycle { index });
            }
            let desc = read(index).ok_or_else(|| table.error_at(index))?;
            index = match self.visit(mem, table, (index, desc), &mut sum, body)? {
                Next::At(next) => next,
                Next::Indirect => return Ok((sum, Some(desc))),
                Next::None => return Ok((sum, None)),
            };
        }
    }

    /// Takes a descriptor of a table into a chain, and says where the chain goes on.
    #[inline(always)]
    fn visit<M: RingMem + ?Sized>(
        &mut self,
        mem: &M,
        table: Table,
        (index, mut desc): (u16, Descriptor),
        sum: &mut Sum,
        body: &mut Body,
    ) -> Result<Next, QueueError> {
        if desc.flags & Descriptor::INDIRECT != 0 {
            return Ok(Next::Indirect);
        }
        if is_planted(Defect::DescriptorReadTwice) {
            desc = mem.read_descriptor(entry_of(table.addr, index))?;
        }
        self.parser.add(mem, sum, body, Buffer::of(desc))?;
        if desc.flags & Descriptor::NEXT == 0
            || u32::from(desc.next) >= table.entries && is_planted(Defect::ChainCutShort)
        {
            return Ok(Next::None);
        }
        Ok(Next::At(desc.next))
    }

    /// Guest address of the ring entry that free-running `index` falls on.
    fn entry(&self, ring: u64, index: u16, entry_bytes: u64) -> u64 {
        let slot = u64::from(index & self.ring.size().wrapping_sub(1));
        ring.wrapping_add(RING_HEADER).wrapping_add(slot.wrapping_mul(entry_bytes))
    }

    /// Guest address of the event index behind a ring's entries.
    fn event(&self, ring: u64, entry_bytes: u64) -> u64 {
        ring.wrapping_add(RING_HEADER).wrapping_add(u64::from(self.ring.size()).wrapping_mul(entry_bytes))
    }
}

/// Whether an indirect descriptor may stand in the ring (virtio 1.3 §2.7.5.3.1).
fn check_indirect(negotiated: bool, desc: Descriptor) -> Result<(), QueueError> {
    if !negotiated {
        Err(QueueError::IndirectNotNegotiated)
    } else if desc.flags & Descriptor::NEXT != 0 {
        Err(QueueError::IndirectWithNext)
    } else {
        Ok(())
    }
}
