//! The words of a ring, behind a trait.
//!
//! The queue's protocol is a conversation over a handful of shared words. Reaching them through [`RingMem`] lets the
//! same queue run over guest memory, over a model checker's atomics and over an adversarial memory that answers
//! differently when it is asked twice.

use std::sync::atomic::{self, Ordering};

use vm_memory::bitmap::{BS, BitmapSlice};
use vm_memory::{
    AtomicAccess, Bytes, GuestAddress, GuestMemory, GuestMemoryBackend, GuestMemoryRegion, MemoryRegionAddress,
    Permissions, VolatileSlice,
};

/// An access that does not lie wholly inside guest memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("guest range {addr:#x}+{len:#x} is not inside guest memory")]
pub struct OutsideMemory {
    /// First guest address.
    pub addr: u64,
    /// Length in bytes.
    pub len: u64,
}

/// One descriptor as it was read: a snapshot the guest cannot change any more (virtio 1.3 §2.7.5).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Descriptor {
    /// Guest address of the buffer, or of the indirect table.
    pub addr: u64,
    /// Length in bytes.
    pub len: u32,
    /// `VIRTQ_DESC_F_*`.
    pub flags: u16,
    /// Index of the next descriptor where `VIRTQ_DESC_F_NEXT` is set.
    pub next: u16,
}

impl Descriptor {
    /// Another descriptor follows.
    pub const NEXT: u16 = 1;
    /// The buffer is device-writable (otherwise device-readable).
    pub const WRITE: u16 = 2;
    /// The buffer is a table of descriptors.
    pub const INDIRECT: u16 = 4;
    /// Bytes a descriptor takes in its table.
    pub const SIZE: u64 = 16;

    /// Decodes the 16 little-endian bytes of a table entry.
    pub fn from_bytes(bytes: [u8; 16]) -> Self {
        let word = u128::from_le_bytes(bytes);
        Self::from_words(word as u64, (word >> 64) as u64)
    }

    /// Decodes the two halves of a table entry. Truncating casts pick the fields out.
    pub(super) fn from_words(addr: u64, rest: u64) -> Self {
        Self { addr, len: rest as u32, flags: (rest >> 32) as u16, next: (rest >> 48) as u16 }
    }

    /// Flags and next index in one, as they lie in memory.
    #[inline(always)]
    pub(super) fn link(self) -> u32 {
        Self::link_of(self.flags, self.next)
    }

    /// The [`link`](Self::link) of a descriptor with these.
    #[inline(always)]
    pub(super) fn link_of(flags: u16, next: u16) -> u32 {
        u32::from(flags) | u32::from(next) << 16
    }

    /// Encodes the descriptor as a table entry.
    pub fn to_bytes(self) -> [u8; 16] {
        let word = u128::from(self.addr)
            | u128::from(self.len) << 64
            | u128::from(self.flags) << 96
            | u128::from(self.next) << 112;
        word.to_le_bytes()
    }
}

/// The accesses a queue makes to the memory it shares with the driver. Words are little endian in memory
/// (virtio 1.3 §1.4; x86 guests of the legacy interface agree) and native here.
pub trait RingMem {
    /// Loads a 16-bit word; `addr` is 2-byte aligned.
    fn load_u16(&self, addr: u64, order: Ordering) -> Result<u16, OutsideMemory>;

    /// Stores a 16-bit word; `addr` is 2-byte aligned.
    fn store_u16(&self, addr: u64, value: u16, order: Ordering) -> Result<(), OutsideMemory>;

    /// Loads a 64-bit word; `addr` is 8-byte aligned. Half a descriptor of a packed ring, atomically: its flags say
    /// whether the rest may be believed.
    fn load_u64(&self, addr: u64, order: Ordering) -> Result<u64, OutsideMemory>;

    /// Stores a 64-bit word; `addr` is 8-byte aligned.
    fn store_u64(&self, addr: u64, value: u64, order: Ordering) -> Result<(), OutsideMemory>;

    /// Reads one descriptor, once. Needs no ordering of its own: the acquiring load of the available index orders it.
    fn read_descriptor(&self, addr: u64) -> Result<Descriptor, OutsideMemory>;

    /// A table of `entries` descriptors at `addr` to read from by index, each as by
    /// [`read_descriptor`](Self::read_descriptor), where that is cheaper and all of it is guest memory: of a table that is
    /// given here nobody asks that again. An index outside the table gives `None`.
    fn table(&self, addr: u64, entries: u16) -> Option<impl Fn(u16) -> Option<Descriptor>> {
        let _ = (addr, entries);
        None::<fn(u16) -> Option<Descriptor>>
    }

    /// Writes one used element. Needs no ordering of its own: the releasing store of the used index orders it.
    fn write_used(&self, addr: u64, id: u32, len: u32) -> Result<(), OutsideMemory>;

    /// Whether the whole range lies inside guest memory.
    fn contains(&self, addr: u64, len: u64) -> bool;

    /// First and last address of a stretch of guest memory around `addr`, where there is a cheap answer. It lets a
    /// queue check a chain's buffers by comparing instead of asking [`contains`](Self::contains) for each.
    fn stretch(&self, addr: u64) -> Option<(u64, u64)> {
        let _ = addr;
        None
    }

    /// A memory fence between accesses to this memory.
    fn fence(&self, order: Ordering) {
        atomic::fence(order);
    }
}

/// The dirty bitmap of the plain memory behind `M`.
pub(super) type Marks<M> = <<<M as GuestMemory>::PhysicalMemory as GuestMemoryBackend>::R as GuestMemoryRegion>::B;

/// The bytes at `addr` where they lie in one region of plain memory: one look-up, where the general way makes an iterator
/// of regions for every word. `None` says to go the general way, not that there is nothing.
///
/// A machine has two or three regions: asking each in turn takes a third of the instructions of a binary search.
#[inline(always)]
pub(super) fn slice<M: GuestMemory + ?Sized>(
    mem: &M,
    addr: u64,
    len: usize,
) -> Option<VolatileSlice<'_, BS<'_, Marks<M>>>> {
    mem.physical_memory()?.iter().find_map(|region| {
        let offset = addr.checked_sub(region.start_addr().0)?;
        region.get_slice(MemoryRegionAddress(offset), len).ok()
    })
}

/// As [`slice`], of what is then accessed without asking again: only where the region is memory of the process and nothing
/// more. One that wants to know of every access has no host address to tell.
#[inline]
pub(super) fn window<M: GuestMemory + ?Sized>(
    mem: &M,
    addr: u64,
    len: usize,
) -> Option<VolatileSlice<'_, BS<'_, Marks<M>>>> {
    mem.physical_memory()?.iter().find_map(|region| {
        let offset = addr.checked_sub(region.start_addr().0)?;
        // First, as one that wants to know takes a slice for an access.
        region.get_host_address(MemoryRegionAddress(offset)).ok()?;
        region.get_slice(MemoryRegionAddress(offset), len).ok()
    })
}

/// As [`window`], of all of the region around `addr`, with the address where it begins.
pub(super) fn region_around<M: GuestMemory + ?Sized>(
    mem: &M,
    addr: u64,
) -> Option<(u64, VolatileSlice<'_, BS<'_, Marks<M>>>)> {
    mem.physical_memory()?.iter().find_map(|region| {
        let (start, len) = (region.start_addr().0, region.len());
        addr.checked_sub(start).filter(|offset| *offset < len)?;
        region.get_host_address(MemoryRegionAddress(0)).ok()?;
        Some((start, region.get_slice(MemoryRegionAddress(0), usize::try_from(len).ok()?).ok()?))
    })
}

/// Guest address of a descriptor of the table at `addr`.
#[inline]
pub(super) fn entry_of(addr: u64, index: u16) -> u64 {
    addr.wrapping_add(u64::from(index).wrapping_mul(Descriptor::SIZE))
}

/// Bytes of a table of so many descriptors.
#[inline]
pub(super) fn table_bytes(entries: u16) -> usize {
    usize::from(entries).wrapping_mul(Descriptor::SIZE as usize)
}

/// Reads the descriptors of a table by index.
#[inline(always)]
pub(super) fn descriptors<B: BitmapSlice>(table: VolatileSlice<'_, B>) -> Option<impl Fn(u16) -> Option<Descriptor>> {
    // Two words of an entry are read at once only where they are aligned: then they are in every entry.
    let aligned = table.ptr_guard().as_ptr().addr().is_multiple_of(align_of::<u64>());
    aligned.then_some(move |index: u16| {
        let [low, high] = load_two(&table, table_bytes(index))?;
        Some(Descriptor::from_words(low, high))
    })
}

/// Writes a used element, which is aligned to four bytes, so as two words; whether `slice` has them.
#[inline(always)]
pub(super) fn store_element<B: BitmapSlice>(slice: &VolatileSlice<'_, B>, id: u32, len: u32) -> bool {
    slice.store(id.to_le(), 0, Ordering::Relaxed).is_ok() && slice.store(len.to_le(), 4, Ordering::Relaxed).is_ok()
}

/// Writes twelve bytes as three words, where they are aligned in memory; whether they were written.
#[inline(always)]
pub(super) fn store_first<B: BitmapSlice>(slice: &VolatileSlice<'_, B>, bytes: &[u8; 12]) -> bool {
    let &[a, b, c, d, e, f, g, h, i, j, k, l] = bytes;
    let store = |word, offset| slice.store(u32::from_ne_bytes(word), offset, Ordering::Relaxed).is_ok();
    store([a, b, c, d], 0) && store([e, f, g, h], 4) && store([i, j, k, l], 8)
}

/// Twelve bytes, as three words that are read once and atomically each, where they are aligned in memory.
#[inline(always)]
pub(super) fn load_first<B: BitmapSlice>(slice: &VolatileSlice<'_, B>) -> Option<[u8; 12]> {
    let word = |offset| load::<u32, B>(slice, offset, Ordering::Relaxed).map(u32::to_ne_bytes);
    let ([a, b, c, d], [e, f, g, h], [i, j, k, l]) = (word(0)?, word(4)?, word(8)?);
    Some([a, b, c, d, e, f, g, h, i, j, k, l])
}

/// A word of `slice`, at an offset that is aligned in it.
#[inline(always)]
fn load<T: AtomicAccess, B: BitmapSlice>(slice: &VolatileSlice<'_, B>, offset: usize, order: Ordering) -> Option<T> {
    slice.load(offset, order).ok()
}

/// Sixteen bytes as two little-endian words, each read once.
#[inline]
pub(super) fn load_pair<M: GuestMemory + ?Sized>(mem: &M, addr: u64) -> Result<[u64; 2], OutsideMemory> {
    // Atomic loads, because a plain copy leaves the compiler free to read the guest's memory again instead of the copy.
    // Where the address is too odd for that (an indirect table may lie anywhere), byte by byte.
    match slice(mem, addr, 16).and_then(|slice| load_two(&slice, 0)) {
        Some(words) => Ok(words),
        None => load_pair_anywhere(mem, addr),
    }
}

/// Two little-endian words of `slice`, each read once and atomically, where they are aligned in memory.
#[inline(always)]
pub(super) fn load_two<B: BitmapSlice>(slice: &VolatileSlice<'_, B>, offset: usize) -> Option<[u64; 2]> {
    // One check of the bounds for both.
    let pair = slice.subslice(offset, 16).ok()?;
    let low = load(&pair, 0, Ordering::Relaxed)?;
    let high = load(&pair, 8, Ordering::Relaxed)?;
    Some([u64::from_le(low), u64::from_le(high)])
}

#[cold]
fn load_pair_anywhere<M: GuestMemory + ?Sized>(mem: &M, addr: u64) -> Result<[u64; 2], OutsideMemory> {
    let outside = OutsideMemory { addr, len: 16 };
    if !mem.contains(addr, 16) {
        return Err(outside);
    }
    let mut words = [0u64; 2];
    for (start, word) in [0, 8].into_iter().zip(&mut words) {
        let mut bytes = [0; 8];
        for (offset, byte) in (start..).zip(&mut bytes) {
            *byte = mem.load(GuestAddress(addr.wrapping_add(offset)), Ordering::Relaxed).map_err(|_| outside)?;
        }
        *word = u64::from_le_bytes(bytes);
    }
    Ok(words)
}

#[cold]
#[inline(never)]
fn load_u16_anywhere<M: GuestMemory + ?Sized>(mem: &M, addr: u64, order: Ordering) -> Result<u16, OutsideMemory> {
    mem.load(GuestAddress(addr), order).map(u16::from_le).map_err(|_| OutsideMemory { addr, len: 2 })
}

/// Writes one byte.
#[inline]
pub(super) fn store_byte<M: GuestMemory + ?Sized>(mem: &M, addr: u64, value: u8) -> Result<(), OutsideMemory> {
    if slice(mem, addr, 1).is_some_and(|slice| slice.store(value, 0, Ordering::Relaxed).is_ok()) {
        return Ok(());
    }
    mem.store(value, GuestAddress(addr), Ordering::Relaxed).map_err(|_| OutsideMemory { addr, len: 1 })
}

impl<M: GuestMemory + ?Sized> RingMem for M {
    #[inline(always)]
    fn load_u16(&self, addr: u64, order: Ordering) -> Result<u16, OutsideMemory> {
        if let Some(word) = slice(self, addr, 2).and_then(|slice| load(&slice, 0, order)) {
            return Ok(u16::from_le(word));
        }
        load_u16_anywhere(self, addr, order)
    }

    #[inline]
    fn store_u16(&self, addr: u64, value: u16, order: Ordering) -> Result<(), OutsideMemory> {
        if slice(self, addr, 2).is_some_and(|slice| slice.store(value.to_le(), 0, order).is_ok()) {
            return Ok(());
        }
        self.store(value.to_le(), GuestAddress(addr), order).map_err(|_| OutsideMemory { addr, len: 2 })
    }

    #[inline]
    fn load_u64(&self, addr: u64, order: Ordering) -> Result<u64, OutsideMemory> {
        if let Some(word) = slice(self, addr, 8).and_then(|slice| load(&slice, 0, order)) {
            return Ok(u64::from_le(word));
        }
        self.load(GuestAddress(addr), order).map(u64::from_le).map_err(|_| OutsideMemory { addr, len: 8 })
    }

    #[inline]
    fn store_u64(&self, addr: u64, value: u64, order: Ordering) -> Result<(), OutsideMemory> {
        if slice(self, addr, 8).is_some_and(|slice| slice.store(value.to_le(), 0, order).is_ok()) {
            return Ok(());
        }
        self.store(value.to_le(), GuestAddress(addr), order).map_err(|_| OutsideMemory { addr, len: 8 })
    }

    #[inline]
    fn read_descriptor(&self, addr: u64) -> Result<Descriptor, OutsideMemory> {
        let [low, high] = load_pair(self, addr)?;
        Ok(Descriptor::from_words(low, high))
    }

    #[inline(always)]
    fn table(&self, addr: u64, entries: u16) -> Option<impl Fn(u16) -> Option<Descriptor>> {
        descriptors(window(self, addr, table_bytes(entries))?)
    }

    #[inline(always)]
    fn write_used(&self, addr: u64, id: u32, len: u32) -> Result<(), OutsideMemory> {
        if slice(self, addr, 8).is_some_and(|slice| store_element(&slice, id, len)) {
            return Ok(());
        }
        let element = u64::from(id) | u64::from(len) << 32;
        self.write_slice(&element.to_le_bytes(), GuestAddress(addr)).map_err(|_| OutsideMemory { addr, len: 8 })
    }

    #[inline]
    fn contains(&self, addr: u64, len: u64) -> bool {
        usize::try_from(len).is_ok_and(|len| self.check_range(GuestAddress(addr), len, Permissions::ReadWrite))
    }

    #[inline]
    fn stretch(&self, addr: u64) -> Option<(u64, u64)> {
        let region = self.physical_memory()?.find_region(GuestAddress(addr))?;
        Some((region.start_addr().0, region.last_addr().0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vm_memory::GuestMemoryMmap;

    #[test]
    fn a_descriptor_survives_the_trip_through_its_table_entry() {
        let desc = Descriptor { addr: 0x1122_3344_5566_7788, len: 0x99aa_bbcc, flags: 0xddee, next: 0x1234 };
        assert_eq!(Descriptor::from_bytes(desc.to_bytes()), desc);
        assert_eq!(desc.to_bytes()[..9], [0x88, 0x77, 0x66, 0x55, 0x44, 0x33, 0x22, 0x11, 0xcc]);
    }

    #[test]
    fn a_descriptor_is_read_from_any_address_and_across_regions() {
        let regions = [(GuestAddress(0), 0x1000), (GuestAddress(0x1000), 0x1000)];
        let mem = GuestMemoryMmap::<()>::from_ranges(&regions).unwrap();
        let desc = Descriptor { addr: 0x1122_3344_5566_7788, len: 0x99aa_bbcc, flags: 0xddee, next: 0x1234 };
        for addr in [0x10, 0x18, 0x21, 0xff8, 0xfff, 0xff0] {
            mem.write_slice(&desc.to_bytes(), GuestAddress(addr)).unwrap();
            assert_eq!(mem.read_descriptor(addr), Ok(desc), "at {addr:#x}");
        }
        assert_eq!(mem.stretch(0x1fff), Some((0x1000, 0x1fff)));
        assert_eq!(mem.stretch(0x2000), None);
    }

    #[test]
    fn a_table_is_read_where_all_of_it_is_guest_memory_and_no_further() {
        let regions = [(GuestAddress(0), 0x1000), (GuestAddress(0x1000), 0x1000)];
        let mem = GuestMemoryMmap::<()>::from_ranges(&regions).unwrap();
        let entry = |index: u16| Descriptor { addr: 7 * u64::from(index), len: 9, flags: 3, next: (index + 3) % 8 };
        // In one region, at addresses that no word may have, and across regions at either.
        for (addr, is_one) in [
            (0x100, true),
            (0x108, true),
            (0x101, false),
            (0xf80, true),
            (0xfc0, false),
            (0xfb8, false),
            (0xfb3, false),
            (0x1f80, true),
            (0x1f88, false),
            (0x3000, false),
        ] {
            for index in (0..8).filter(|_| addr < 0x1f88) {
                mem.write_slice(&entry(index).to_bytes(), GuestAddress(entry_of(addr, index))).unwrap();
                assert_eq!(mem.read_descriptor(entry_of(addr, index)), Ok(entry(index)), "at {addr:#x}");
            }
            let table = mem.table(addr, 8);
            assert_eq!(table.is_some(), is_one, "at {addr:#x}");
            if let Some(read) = table {
                assert_eq!([0, 7, 3].map(&read), [0, 7, 3].map(|index| Some(entry(index))), "at {addr:#x}");
                assert_eq!([8, u16::MAX].map(&read), [None, None], "at {addr:#x}");
            }
        }
    }

    #[test]
    fn accesses_outside_guest_memory_are_refused_not_clipped() {
        let mem = GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0x1000), 0x1000)]).unwrap();
        assert_eq!(mem.load_u16(0x2000, Ordering::Relaxed), Err(OutsideMemory { addr: 0x2000, len: 2 }));
        assert_eq!(mem.read_descriptor(0x1ff8), Err(OutsideMemory { addr: 0x1ff8, len: 16 }));
        assert_eq!(mem.write_used(0x1ffc, 0, 0), Err(OutsideMemory { addr: 0x1ffc, len: 8 }));
        assert!(mem.contains(0x1000, 0x1000) && !mem.contains(0x1000, 0x1001) && !mem.contains(0xfff, 2));
        assert!(!mem.contains(u64::MAX, 2) && !mem.contains(u64::MAX - 1, u64::MAX));
    }
}
