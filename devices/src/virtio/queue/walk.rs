//! What both ring formats share: the rules of a chain, what chains are made of, and what is in flight.

use super::chain::{Body, Chain, GuestRange};
use super::error::QueueError;
use super::mem::{Descriptor, OutsideMemory, RingMem};
use crate::planted::{Defect, is_planted};

/// The most bytes a chain may describe (virtio 1.3 §2.7.5.2).
const MAX_CHAIN_BYTES: u64 = 1 << 32;

/// A stretch that nothing lies in.
const NOWHERE: (u64, u64) = (1, 0);

/// Checks the descriptors of chains, one at a time, and keeps what they come in.
#[derive(Debug)]
pub(super) struct Parser {
    size: u16,
    indirect: bool,
    /// Chains that came back, ready for the next ones.
    spare: Vec<Chain>,
    /// First and last address of the stretches of guest memory the last buffers were in, the latest first: memory below
    /// and above 4 GiB, for most. Guest memory does not shrink under a running queue, and an access beyond it would be
    /// refused again.
    stretches: [(u64, u64); 2],
}

impl Parser {
    /// For a queue of `size` entries, with or without indirect tables.
    pub(super) fn new(size: u16, indirect: bool) -> Self {
        Self { size, indirect, spare: Vec::with_capacity(usize::from(size)), stretches: [NOWHERE; 2] }
    }

    /// A chain without descriptors.
    #[inline]
    pub(super) fn begin(&mut self) -> Chain {
        self.spare.pop().unwrap_or_else(Chain::blank)
    }

    /// Adds one direct descriptor to a chain whose descriptors come to `sum` so far.
    #[inline(always)]
    pub(super) fn add<M: RingMem + ?Sized>(
        &mut self,
        mem: &M,
        sum: &mut Sum,
        body: &mut Body,
        Buffer { addr, len, write }: Buffer,
    ) -> Result<(), QueueError> {
        // Direct descriptors before an indirect table count too: the whole chain is bounded by the queue.
        let Some(room) = sum.room.checked_sub(1) else {
            return Err(QueueError::ChainTooLong { size: self.size });
        };
        sum.room = room;
        if write {
            if !body.has_writable {
                (body.readable, body.readable_bytes) = (body.ranges.len(), sum.bytes);
                body.has_writable = true;
            }
        } else if body.has_writable && !is_planted(Defect::OrderUnchecked) {
            return Err(QueueError::ReadableAfterWritable);
        }
        // So many lengths of 32 bits as there is room for do not overflow.
        sum.bytes = sum.bytes.wrapping_add(u64::from(len));
        if len == 0 {
            return Ok(());
        }
        let range = GuestRange { addr, len };
        // Apart, as a call that may come keeps registers from the loop it is in.
        if !self.knows(addr, len.into()) || body.ranges.len() == body.ranges.capacity() {
            return self.add_unknown(mem, body, range);
        }
        body.ranges.push(range);
        Ok(())
    }

    /// Adds a range that is not known to be guest memory, or that its list has no room for.
    #[cold]
    #[inline(never)]
    fn add_unknown<M: RingMem + ?Sized>(
        &mut self,
        mem: &M,
        body: &mut Body,
        range: GuestRange,
    ) -> Result<(), QueueError> {
        self.check_buffer(mem, range.addr, range.len.into())?;
        body.ranges.push(range);
        Ok(())
    }

    /// Adds the descriptors of a table from `index` on that are like the one before, which has `flags` and was added last: each
    /// followed by the next, and with its buffer in the same stretch of guest memory. They are what most of a long chain is,
    /// and one comparison says of each that the rules of [`add`](Self::add) hold. Ends with one that is not so, or too many.
    #[inline(never)]
    pub(super) fn add_run(
        &self,
        read: &impl Fn(u16) -> Option<Descriptor>,
        index: u16,
        flags: u16,
        mut sum: Sum,
        body: &mut Body,
    ) -> Run {
        let last = body.ranges.last().map_or(0, |range| range.addr);
        let [first, second] = self.stretches;
        let (start, end) = if first.0 <= last && last <= first.1 { first } else { second };
        // Of `NOWHERE`, none.
        let bytes = end.wrapping_sub(start).wrapping_add(1);
        let mut end = index;
        let mut link = Descriptor::link_of(flags, index.wrapping_add(1));
        loop {
            let Some(desc) = read(end) else { return Run { end, desc: None, sum } };
            let Descriptor { addr, len, .. } = desc;
            // An address before the stretch wraps to an offset far behind it.
            let (from, to) = (addr.wrapping_sub(start), addr.wrapping_sub(start).wrapping_add(len.into()));
            let has_room = sum.room > 0 && body.ranges.len() < body.ranges.capacity();
            if desc.link() != link || from >= to || to > bytes || !has_room || is_planted(Defect::DescriptorReadTwice) {
                return Run { end, desc: Some(desc), sum };
            }
            sum.room = sum.room.wrapping_sub(1);
            sum.bytes = sum.bytes.wrapping_add(u64::from(len));
            body.ranges.push(GuestRange { addr, len });
            end = end.wrapping_add(1);
            link = link.wrapping_add(Descriptor::link_of(0, 1));
        }
    }

    /// What no descriptors come to.
    #[inline]
    pub(super) fn sum(&self) -> Sum {
        Sum { room: self.size.into(), bytes: 0 }
    }

    /// Whether indirect tables were negotiated.
    pub(super) fn indirect(&self) -> bool {
        self.indirect
    }

    /// Entries of an indirect table of `len` bytes.
    #[inline]
    pub(super) fn table_entries(&self, len: u32) -> Result<u16, QueueError> {
        let entries = u64::from(len).checked_div(Descriptor::SIZE).unwrap_or_default();
        let entries = u16::try_from(entries).unwrap_or(u16::MAX);
        let whole = u64::from(entries).wrapping_mul(Descriptor::SIZE) == u64::from(len);
        if entries == 0 || entries > self.size || !whole {
            return Err(QueueError::IndirectLength { len, size: self.size });
        }
        Ok(entries)
    }

    /// Refuses an indirect table that is not wholly inside guest memory. One that [`RingMem::table`] gives is.
    #[cold]
    pub(super) fn check_table<M: RingMem + ?Sized>(&mut self, mem: &M, addr: u64, len: u32) -> Result<(), QueueError> {
        self.check_buffer(mem, addr, len.into())
    }

    /// Takes a chain back.
    #[inline(always)]
    pub(super) fn recycle(&mut self, mut chain: Chain) {
        chain.clear();
        // The pool was sized for every head of the queue at once, so this never grows it.
        if self.spare.len() < self.spare.capacity() {
            self.spare.push(chain);
        }
    }

    /// Whether a buffer is known to lie inside guest memory. `len` is not zero.
    #[inline(always)]
    fn knows(&self, addr: u64, len: u64) -> bool {
        let Some(last) = addr.checked_add(len.wrapping_sub(1)) else { return false };
        let [first, second] = self.stretches;
        let within = |(start, end): (u64, u64)| start <= addr && last <= end;
        within(first) || within(second)
    }

    /// Refuses a buffer that is not wholly inside guest memory. `len` is not zero.
    #[inline(always)]
    fn check_buffer<M: RingMem + ?Sized>(&mut self, mem: &M, addr: u64, len: u64) -> Result<(), QueueError> {
        if self.knows(addr, len) { Ok(()) } else { self.find_buffer(mem, addr, len) }
    }

    #[cold]
    fn find_buffer<M: RingMem + ?Sized>(&mut self, mem: &M, addr: u64, len: u64) -> Result<(), QueueError> {
        if is_planted(Defect::AddressWraps) && addr.checked_add(len.wrapping_sub(1)).is_none() {
            return Ok(());
        }
        let checked = if is_planted(Defect::FirstByteChecked) { 1 } else { len };
        if !mem.contains(addr, checked) {
            return Err(OutsideMemory { addr, len }.into());
        }
        let [first, _] = self.stretches;
        self.stretches = [mem.stretch(addr).unwrap_or(NOWHERE), first];
        Ok(())
    }
}

/// Where [`Parser::add_run`] has stopped.
#[derive(Clone, Copy, Debug)]
pub(super) struct Run {
    /// The first descriptor that was not added.
    pub(super) end: u16,
    /// What was read there; `None` where there is none.
    pub(super) desc: Option<Descriptor>,
    pub(super) sum: Sum,
}

/// What a direct descriptor says.
#[derive(Clone, Copy, Debug)]
pub(super) struct Buffer {
    pub(super) addr: u64,
    pub(super) len: u32,
    /// It is device-writable.
    pub(super) write: bool,
}

impl Buffer {
    /// That of a descriptor of a split ring.
    #[inline(always)]
    pub(super) fn of(desc: Descriptor) -> Self {
        Self { addr: desc.addr, len: desc.len, write: desc.flags & Descriptor::WRITE != 0 }
    }
}

/// What the descriptors of a chain come to while it is walked: apart from its [`Body`] meanwhile, so that it lives in
/// registers.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sum {
    /// Direct descriptors that may still come, those without bytes included.
    pub(super) room: u32,
    bytes: u64,
}

impl Sum {
    /// The chain is complete.
    #[inline(always)]
    pub(super) fn close(self, body: &mut Body) -> Result<(), QueueError> {
        if self.bytes > MAX_CHAIN_BYTES {
            return Err(QueueError::TooManyBytes);
        }
        if !body.has_writable {
            (body.readable, body.readable_bytes) = (body.ranges.len(), self.bytes);
        }
        body.writable_bytes = self.bytes.wrapping_sub(body.readable_bytes);
        Ok(())
    }
}

/// Which chains are in flight, by a number of the driver's.
#[derive(Debug)]
pub(super) struct InFlight {
    /// One bit a number.
    bits: Box<[u64]>,
    count: u16,
    /// Descriptors of the ring that chains in flight take.
    slots: u32,
}

impl InFlight {
    /// For numbers below `numbers`.
    pub(super) fn new(numbers: usize) -> Self {
        Self { bits: vec![0; numbers.div_ceil(64)].into_boxed_slice(), count: 0, slots: 0 }
    }

    #[inline]
    pub(super) fn contains(&self, number: u16) -> bool {
        let word = self.bits.get(usize::from(number >> 6)).copied().unwrap_or_default();
        word & bit(number) != 0
    }

    /// Adds a number; whether it was not in it yet.
    #[inline]
    pub(super) fn insert(&mut self, number: u16, slots: u16) -> bool {
        let Some(word) = self.bits.get_mut(usize::from(number >> 6)).filter(|word| **word & bit(number) == 0) else {
            return false;
        };
        *word |= bit(number);
        self.count = self.count.wrapping_add(1);
        self.slots = self.slots.wrapping_add(slots.into());
        true
    }

    /// Takes out a number, where it is in it.
    #[inline(always)]
    pub(super) fn take(&mut self, number: u16, slots: u16) -> bool {
        let Some(word) = self.bits.get_mut(usize::from(number >> 6)).filter(|word| **word & bit(number) != 0) else {
            return false;
        };
        *word &= !bit(number);
        self.count = self.count.wrapping_sub(1);
        self.slots = self.slots.wrapping_sub(slots.into());
        true
    }

    /// Takes out a number that is in it.
    #[inline]
    pub(super) fn remove(&mut self, number: u16, slots: u16) {
        if let Some(word) = self.bits.get_mut(usize::from(number >> 6)) {
            *word &= !bit(number);
            self.count = self.count.wrapping_sub(1);
            self.slots = self.slots.saturating_sub(slots.into());
        }
    }

    pub(super) fn count(&self) -> u16 {
        self.count
    }

    pub(super) fn slots(&self) -> u32 {
        self.slots
    }
}

fn bit(number: u16) -> u64 {
    1u64.wrapping_shl(u32::from(number & 63))
}
