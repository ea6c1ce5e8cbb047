//! The split virtqueue, device side (virtio 1.3 §2.7).
//!
//! `virtio_queue::Queue` holds the ring's state and knows its size and alignment rules. Popping, publishing and
//! suppression are written here, because the crate's iterator ends a malformed chain silently (a device would act on
//! the part before the fault), walks a chain twice (the guest can change it in between), stores the used index once an
//! element instead of once a batch, and ignores `VIRTQ_AVAIL_F_NO_INTERRUPT`.

use std::sync::atomic::Ordering;

use virtio_queue::{Queue as Ring, QueueT};
use vm_memory::GuestAddress;

use super::chain::{Chain, GuestRange};
use super::error::QueueError;
use super::mem::{Descriptor, OutsideMemory, RingMem};
use crate::virtio::QueueState;

/// `VIRTIO_F_INDIRECT_DESC` (virtio 1.3 §6).
pub const F_INDIRECT_DESC: u64 = 1 << 28;
/// `VIRTIO_F_EVENT_IDX` (virtio 1.3 §6).
pub const F_EVENT_IDX: u64 = 1 << 29;

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
/// The most bytes a chain may describe (virtio 1.3 §2.7.5.2).
const MAX_CHAIN_BYTES: u64 = 1 << 32;

/// A running split virtqueue: one driver, one worker.
///
/// Address arithmetic wraps on purpose: [`Queue::new`] has checked that every ring lies inside guest memory, so no sum
/// made of a ring's address and an index below its size can leave it, and an access would be refused there anyway.
#[derive(Debug)]
pub struct Queue {
    ring: Ring,
    indirect: bool,
    /// The available index as the driver last showed it.
    seen_avail: u16,
    /// `next_used` as of the last [`publish`](Self::publish).
    published: u16,
    /// `flags` of the used ring as the device last wrote them.
    used_flags: Option<u16>,
    /// One bit a head that has been popped and not pushed.
    in_flight: Box<[u64]>,
    in_flight_count: u16,
    /// Descriptors of the ring that chains in flight take.
    slots_in_flight: u32,
    /// For each table index, the walk that last visited it: finds cycles without clearing anything between chains.
    visited: Box<[u32]>,
    walk: u32,
    /// Vectors of chains that came back, ready for the next ones.
    spare: Vec<Vec<GuestRange>>,
    /// First and last address of the stretch of guest memory the last buffer was in. Guest memory does not shrink under
    /// a running queue, and an access beyond it would be refused again.
    stretch: Option<(u64, u64)>,
}

/// A table of descriptors, and where a chain enters it.
#[derive(Clone, Copy)]
struct Table {
    addr: u64,
    entries: u16,
    first: u16,
    indirect: bool,
}

/// What walking a chain has found so far.
#[derive(Default)]
struct Walked {
    ranges: Vec<GuestRange>,
    descriptors: u16,
    /// Descriptors of the ring itself.
    slots: u16,
    readable: usize,
    readable_bytes: u64,
    writable_bytes: u64,
    writable_seen: bool,
}

impl Queue {
    /// Takes over a queue where `state` says the driver put it.
    ///
    /// `features` are the accepted ones; `max_size` is the device's maximum, at most 32768. Fails without side effects
    /// where the size or an alignment breaks virtio 1.3 §2.7 or a ring is not wholly inside guest memory.
    pub fn new<M: RingMem + ?Sized>(
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
            indirect: features & F_INDIRECT_DESC != 0,
            seen_avail: state.next_avail,
            published: state.next_used,
            used_flags: None,
            in_flight: vec![0; usize::from(state.size).div_ceil(64)].into_boxed_slice(),
            in_flight_count: 0,
            slots_in_flight: 0,
            visited: vec![0; usize::from(state.size)].into_boxed_slice(),
            walk: 0,
            spare: Vec::with_capacity(usize::from(state.size)),
            stretch: None,
        })
    }

    /// Entries in the ring.
    pub fn size(&self) -> u16 {
        self.ring.size()
    }

    /// Chains popped and not yet pushed, unpopped or abandoned.
    pub fn in_flight(&self) -> u16 {
        self.in_flight_count
    }

    /// Whether every descriptor of the ring belongs to a chain in flight: the driver can post nothing more before it
    /// gets one back.
    pub fn is_exhausted(&self) -> bool {
        self.slots_in_flight >= u32::from(self.size())
    }

    /// Where the queue stands: what another [`Queue::new`] needs to go on. Complete once nothing is in flight and
    /// everything pushed is published.
    pub fn state(&self) -> QueueState {
        QueueState {
            size: self.ring.size(),
            desc_table: self.ring.desc_table(),
            avail_ring: self.ring.avail_ring(),
            used_ring: self.ring.used_ring(),
            next_avail: self.ring.next_avail(),
            next_used: self.ring.next_used(),
        }
    }

    /// Takes the next chain: `None` where the driver has made none available.
    ///
    /// Every ring word and descriptor is read once. On an error nothing is consumed: the queue stands where it stood
    /// and the caller stops using it until the driver resets the device.
    pub fn pop<M: RingMem + ?Sized>(&mut self, mem: &M) -> Result<Option<Chain>, QueueError> {
        let (next, size) = (self.ring.next_avail(), self.ring.size());
        if self.seen_avail == next {
            // Acquire: the entries and descriptors behind the index are read after it (virtio 1.3 §2.7.13.3.1).
            let index = mem.load_u16(self.ring.avail_ring().wrapping_add(RING_INDEX), Ordering::Acquire)?;
            if index.wrapping_sub(next) > size {
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
            return Err(QueueError::BadHead { head, size });
        }
        if self.is_in_flight(head) {
            return Err(QueueError::HeadInFlight { head });
        }
        let mut walked = Walked { ranges: self.spare.pop().unwrap_or_default(), ..Walked::default() };
        if let Err(error) = self.parse(mem, head, &mut walked) {
            self.recycle(walked.ranges);
            return Err(error);
        }
        self.set_in_flight(head, true);
        self.slots_in_flight = self.slots_in_flight.saturating_add(u32::from(walked.slots));
        self.ring.set_next_avail(next.wrapping_add(1));
        Ok(Some(Chain {
            head,
            ranges: walked.ranges,
            readable: walked.readable,
            readable_bytes: walked.readable_bytes,
            writable_bytes: walked.writable_bytes,
            slots: walked.slots,
            settled: false,
        }))
    }

    /// Undoes the latest [`pop`](Self::pop): the chain will be popped again. Chains go back in the opposite order of
    /// their popping, and none popped after `chain` may have been pushed meanwhile.
    pub fn unpop(&mut self, chain: Chain) {
        self.set_in_flight(chain.head, false);
        self.slots_in_flight = self.slots_in_flight.saturating_sub(u32::from(chain.slots));
        self.ring.set_next_avail(self.ring.next_avail().wrapping_sub(1));
        let ranges = chain.settle();
        self.recycle(ranges);
    }

    /// Returns a chain to the driver, with the number of bytes written from the start of its writable part
    /// (virtio 1.3 §2.7.8.2). The driver sees it after the next [`publish`](Self::publish).
    pub fn push<M: RingMem + ?Sized>(&mut self, mem: &M, chain: Chain, written_bytes: u64) -> Result<(), QueueError> {
        let (head, slots) = (chain.head, u32::from(chain.slots));
        debug_assert!(written_bytes <= chain.writable_bytes, "more written than the chain has room for");
        let len = u32::try_from(written_bytes.min(chain.writable_bytes)).unwrap_or(u32::MAX);
        let ranges = chain.settle();
        self.recycle(ranges);
        if !self.is_in_flight(head) {
            return Err(QueueError::NotInFlight { head });
        }
        let next = self.ring.next_used();
        mem.write_used(self.entry(self.ring.used_ring(), next, USED_ENTRY), u32::from(head), len)?;
        self.set_in_flight(head, false);
        self.slots_in_flight = self.slots_in_flight.saturating_sub(slots);
        self.ring.set_next_used(next.wrapping_add(1));
        Ok(())
    }

    /// Whether something was pushed that the driver has not been shown.
    pub fn has_unpublished(&self) -> bool {
        self.published != self.ring.next_used()
    }

    /// Shows everything pushed so far to the driver with one store of the used index, and says whether the driver
    /// wants an interrupt for it (virtio 1.3 §2.7.7). Without news it says no and touches nothing.
    pub fn publish<M: RingMem + ?Sized>(&mut self, mem: &M) -> Result<bool, QueueError> {
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

    /// Tells the driver that kicks are not needed while the worker is looking anyway (virtio 1.3 §2.7.10). With
    /// `EVENT_IDX` nothing needs to be said: the driver kicks once per announced event.
    pub fn disable_kicks<M: RingMem + ?Sized>(&mut self, mem: &M) -> Result<(), QueueError> {
        if self.ring.event_idx_enabled() {
            return Ok(());
        }
        self.write_used_flags(mem, USED_F_NO_NOTIFY)
    }

    /// Asks for a kick with the next available chain, then looks once more: `true` means there already is one, which
    /// the driver may not kick for.
    pub fn enable_kicks<M: RingMem + ?Sized>(&mut self, mem: &M) -> Result<bool, QueueError> {
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
    fn parse<M: RingMem + ?Sized>(&mut self, mem: &M, head: u16, walked: &mut Walked) -> Result<(), QueueError> {
        let size = self.ring.size();
        let ring = Table { addr: self.ring.desc_table(), entries: size, first: head, indirect: false };
        let indirect = self.walk(mem, ring, walked)?;
        walked.slots = walked.descriptors.saturating_add(u16::from(indirect.is_some()));
        let Some(Descriptor { addr, len, .. }) = indirect else { return Ok(()) };
        let entries = u64::from(len).checked_div(Descriptor::SIZE).unwrap_or_default();
        let entries = u16::try_from(entries).unwrap_or(u16::MAX);
        let whole = u64::from(entries).wrapping_mul(Descriptor::SIZE) == u64::from(len);
        if entries == 0 || entries > size || !whole {
            return Err(QueueError::IndirectLength { len, size });
        }
        if !mem.contains(addr, u64::from(len)) {
            return Err(OutsideMemory { addr, len: u64::from(len) }.into());
        }
        self.walk(mem, Table { addr, entries, first: 0, indirect: true }, walked)?;
        Ok(())
    }

    /// Follows the descriptors of one table. Returns the indirect descriptor that ends the walk, if one does.
    fn walk<M: RingMem + ?Sized>(
        &mut self,
        mem: &M,
        table: Table,
        walked: &mut Walked,
    ) -> Result<Option<Descriptor>, QueueError> {
        let (size, entries) = (self.ring.size(), table.entries);
        self.walk = self.walk.wrapping_add(1);
        if self.walk == 0 {
            // After 2³² walks the marks of old walks would look current.
            self.visited.fill(0);
            self.walk = 1;
        }
        let mut index = table.first;
        loop {
            let mark = self.visited.get_mut(usize::from(index)).ok_or(QueueError::BadNext { next: index, entries })?;
            if std::mem::replace(mark, self.walk) == self.walk {
                return Err(QueueError::Cycle { index });
            }
            let offset = u64::from(index).wrapping_mul(Descriptor::SIZE);
            let desc = mem.read_descriptor(table.addr.wrapping_add(offset))?;
            if desc.flags & Descriptor::INDIRECT != 0 {
                return self.check_indirect(table, desc).map(Some);
            }
            // Direct descriptors before an indirect table count too: the whole chain is bounded by the queue.
            walked.descriptors = walked.descriptors.wrapping_add(1);
            if walked.descriptors > size {
                return Err(QueueError::ChainTooLong { size });
            }
            let bytes = u64::from(desc.len);
            if desc.flags & Descriptor::WRITE != 0 {
                walked.writable_seen = true;
                walked.writable_bytes = walked.writable_bytes.saturating_add(bytes);
            } else if walked.writable_seen {
                return Err(QueueError::ReadableAfterWritable);
            } else {
                walked.readable_bytes = walked.readable_bytes.saturating_add(bytes);
            }
            if walked.readable_bytes.saturating_add(walked.writable_bytes) > MAX_CHAIN_BYTES {
                return Err(QueueError::TooManyBytes);
            }
            if desc.len > 0 {
                self.check_buffer(mem, desc.addr, bytes)?;
                walked.ranges.push(GuestRange { addr: desc.addr, len: desc.len });
                if !walked.writable_seen {
                    walked.readable = walked.ranges.len();
                }
            }
            if desc.flags & Descriptor::NEXT == 0 {
                return Ok(None);
            }
            if desc.next >= entries {
                return Err(QueueError::BadNext { next: desc.next, entries });
            }
            index = desc.next;
        }
    }

    /// Whether an indirect descriptor may stand where it was found (virtio 1.3 §2.7.5.3.1).
    fn check_indirect(&self, table: Table, desc: Descriptor) -> Result<Descriptor, QueueError> {
        if !self.indirect {
            Err(QueueError::IndirectNotNegotiated)
        } else if table.indirect {
            Err(QueueError::IndirectNested)
        } else if desc.flags & Descriptor::NEXT != 0 {
            Err(QueueError::IndirectWithNext)
        } else {
            Ok(desc)
        }
    }

    /// Refuses a buffer that is not wholly inside guest memory. `len` is not zero.
    #[inline]
    fn check_buffer<M: RingMem + ?Sized>(&mut self, mem: &M, addr: u64, len: u64) -> Result<(), QueueError> {
        let outside = OutsideMemory { addr, len };
        let last = addr.checked_add(len.wrapping_sub(1)).ok_or(outside)?;
        if self.stretch.is_some_and(|(start, end)| start <= addr && last <= end) {
            return Ok(());
        }
        if !mem.contains(addr, len) {
            return Err(outside.into());
        }
        self.stretch = mem.stretch(addr);
        Ok(())
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

    fn is_in_flight(&self, head: u16) -> bool {
        let word = self.in_flight.get(usize::from(head >> 6)).copied().unwrap_or_default();
        word & bit(head) != 0
    }

    fn set_in_flight(&mut self, head: u16, busy: bool) {
        if let Some(word) = self.in_flight.get_mut(usize::from(head >> 6)) {
            if busy {
                *word |= bit(head);
                self.in_flight_count = self.in_flight_count.wrapping_add(1);
            } else {
                *word &= !bit(head);
                self.in_flight_count = self.in_flight_count.wrapping_sub(1);
            }
        }
    }

    fn recycle(&mut self, mut ranges: Vec<GuestRange>) {
        ranges.clear();
        // The pool was sized for every head of the queue at once, so this never grows it.
        if self.spare.len() < self.spare.capacity() {
            self.spare.push(ranges);
        }
    }
}

fn bit(head: u16) -> u64 {
    1u64.wrapping_shl(u32::from(head & 63))
}
