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
        if sum.descriptors >= u32::from(self.size) {
            return Err(QueueError::ChainTooLong { size: self.size });
        }
        sum.descriptors = sum.descriptors.wrapping_add(1);
        if write {
            if sum.writable == 0 {
                (body.readable, body.readable_bytes) = (body.ranges.len(), sum.bytes);
            }
            sum.writable = sum.writable.wrapping_add(1);
        } else if sum.writable > 0 && !is_planted(Defect::OrderUnchecked) {
            return Err(QueueError::ReadableAfterWritable);
        }
        let bytes = u64::from(len);
        sum.bytes = sum.bytes.saturating_add(bytes);
        if sum.bytes > MAX_CHAIN_BYTES {
            return Err(QueueError::TooManyBytes);
        }
        if len > 0 {
            self.check_buffer(mem, addr, bytes)?;
            body.ranges.push(GuestRange { addr, len });
        }
        Ok(())
    }

    /// Whether indirect tables were negotiated.
    pub(super) fn indirect(&self) -> bool {
        self.indirect
    }

    /// Entries of the indirect table of `len` bytes at `addr`, which is wholly inside guest memory then.
    pub(super) fn table_entries<M: RingMem + ?Sized>(
        &mut self,
        mem: &M,
        addr: u64,
        len: u32,
    ) -> Result<u16, QueueError> {
        let entries = u64::from(len).checked_div(Descriptor::SIZE).unwrap_or_default();
        let entries = u16::try_from(entries).unwrap_or(u16::MAX);
        let whole = u64::from(entries).wrapping_mul(Descriptor::SIZE) == u64::from(len);
        if entries == 0 || entries > self.size || !whole {
            return Err(QueueError::IndirectLength { len, size: self.size });
        }
        self.check_buffer(mem, addr, u64::from(len))?;
        Ok(entries)
    }

    /// Takes a chain back.
    #[inline]
    pub(super) fn recycle(&mut self, mut chain: Chain) {
        chain.clear();
        // The pool was sized for every head of the queue at once, so this never grows it.
        if self.spare.len() < self.spare.capacity() {
            self.spare.push(chain);
        }
    }

    /// Refuses a buffer that is not wholly inside guest memory. `len` is not zero.
    #[inline(always)]
    fn check_buffer<M: RingMem + ?Sized>(&mut self, mem: &M, addr: u64, len: u64) -> Result<(), QueueError> {
        let outside = OutsideMemory { addr, len };
        let last = addr.checked_add(len.wrapping_sub(1));
        if last.is_none() && is_planted(Defect::AddressWraps) {
            return Ok(());
        }
        let last = last.ok_or(outside)?;
        let [first, second] = self.stretches;
        let within = |(start, end): (u64, u64)| start <= addr && last <= end;
        if within(first) || within(second) {
            return Ok(());
        }
        self.find_buffer(mem, addr, len)
    }

    #[cold]
    fn find_buffer<M: RingMem + ?Sized>(&mut self, mem: &M, addr: u64, len: u64) -> Result<(), QueueError> {
        let checked = if is_planted(Defect::FirstByteChecked) { 1 } else { len };
        if !mem.contains(addr, checked) {
            return Err(OutsideMemory { addr, len }.into());
        }
        let [first, _] = self.stretches;
        self.stretches = [mem.stretch(addr).unwrap_or(NOWHERE), first];
        Ok(())
    }
}

/// What a direct descriptor says.
#[derive(Clone, Copy, Debug)]
pub(super) struct Buffer {
    pub(super) addr: u64,
    pub(super) len: u32,
    /// It is device-writable.
    pub(super) write: bool,
}

/// What the descriptors of a chain come to while it is walked: apart from its [`Body`] meanwhile, so that it lives in
/// registers.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Sum {
    /// Direct descriptors, those without bytes included.
    pub(super) descriptors: u32,
    /// Device-writable ones among them.
    writable: u32,
    bytes: u64,
}

impl Sum {
    /// The chain is complete.
    #[inline]
    pub(super) fn close(self, body: &mut Body) {
        if self.writable == 0 {
            (body.readable, body.readable_bytes) = (body.ranges.len(), self.bytes);
        }
        body.writable_bytes = self.bytes.wrapping_sub(body.readable_bytes);
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

    /// Adds a number that is not in it.
    #[inline]
    pub(super) fn insert(&mut self, number: u16, slots: u16) {
        if let Some(word) = self.bits.get_mut(usize::from(number >> 6)) {
            *word |= bit(number);
            self.count = self.count.wrapping_add(1);
            self.slots = self.slots.saturating_add(slots.into());
        }
    }

    /// Takes out a number, where it is in it.
    #[inline]
    pub(super) fn take(&mut self, number: u16, slots: u16) -> bool {
        let Some(word) = self.bits.get_mut(usize::from(number >> 6)).filter(|word| **word & bit(number) != 0) else {
            return false;
        };
        *word &= !bit(number);
        self.count = self.count.wrapping_sub(1);
        self.slots = self.slots.saturating_sub(slots.into());
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
