//! Guest memory with a short way to where a queue's ring is.

use std::sync::atomic::Ordering;

use vm_memory::bitmap::BS;
use vm_memory::{AtomicAccess, Bytes, GuestMemory, VolatileSlice};

use super::chain::{Chain, GuestRange};
use super::io::ChainError;
use super::mem::{
    Descriptor, Marks, OutsideMemory, RingMem, descriptors, load_first, load_two, region_around, store_byte,
    store_element, store_first, table_bytes, window,
};

/// Guest memory for a round of a queue's worker.
///
/// A driver keeps ring, indirect tables, headers and status bytes in one region mostly. That region is looked up once, and
/// each access to it is then an offset and a comparison. An access anywhere else goes the way of the memory itself, and so
/// does every access where a region is more than memory of the process: one that wants to know of each hears of each.
pub struct Near<'m, M: GuestMemory + ?Sized> {
    mem: &'m M,
    home: Region<'m, M>,
    /// Where the buffers are, if somebody said so.
    buffers: Region<'m, M>,
}

/// A region of plain memory; none where a look-up found nothing.
struct Region<'m, M: GuestMemory + ?Sized> {
    start: u64,
    slice: Option<VolatileSlice<'m, BS<'m, Marks<M>>>>,
}

impl<'m, M: GuestMemory + ?Sized> Region<'m, M> {
    /// The one around `addr`.
    fn around(mem: &'m M, addr: u64) -> Self {
        match region_around(mem, addr) {
            Some((start, slice)) => Self { start, slice: Some(slice) },
            None => Self { start: 0, slice: None },
        }
    }

    /// The bytes at `addr`, where they are in it.
    #[inline(always)]
    fn slice(&self, addr: u64, len: usize) -> Option<VolatileSlice<'m, BS<'m, Marks<M>>>> {
        // An address before the region wraps to an offset far behind it.
        let offset = usize::try_from(addr.wrapping_sub(self.start)).ok()?;
        self.slice.as_ref()?.subslice(offset, len).ok()
    }
}

impl<'m, M: GuestMemory + ?Sized> Near<'m, M> {
    /// With a short way to the region around `addr`, where there is one.
    #[inline(never)]
    pub fn new(mem: &'m M, addr: u64) -> Self {
        Self { mem, home: Region::around(mem, addr), buffers: Region { start: 0, slice: None } }
    }

    /// With another short way, for what chains point to, to the region around `addr`: a driver has its ring below 4 GiB and
    /// its buffers above, where there is memory above.
    #[inline(never)]
    #[must_use]
    pub fn and_buffers(self, addr: u64) -> Self {
        Self { buffers: Region::around(self.mem, addr), ..self }
    }

    /// All of guest memory.
    pub fn memory(&self) -> &'m M {
        self.mem
    }

    /// The bytes at `addr`, where they are near.
    #[inline(always)]
    fn slice(&self, addr: u64, len: usize) -> Option<VolatileSlice<'m, BS<'m, Marks<M>>>> {
        self.home.slice(addr, len)
    }

    /// The first bytes of a part of a chain, where they are near and in one piece.
    #[inline(always)]
    fn first(&self, ranges: &[GuestRange]) -> Option<VolatileSlice<'m, BS<'m, Marks<M>>>> {
        let &GuestRange { addr, .. } = ranges.first().filter(|range| range.len as usize >= FIRST_BYTES)?;
        self.buffers.slice(addr, FIRST_BYTES).or_else(|| self.home.slice(addr, FIRST_BYTES))
    }

    /// The word at `addr`, where it is near.
    #[inline(always)]
    fn load<T: AtomicAccess>(&self, addr: u64, order: Ordering) -> Option<T> {
        self.slice(addr, size_of::<T>())?.load(0, order).ok()
    }

    /// Stores a word at `addr`, where that is near; whether it was.
    #[inline(always)]
    fn store<T: AtomicAccess>(&self, addr: u64, value: T, order: Ordering) -> bool {
        self.slice(addr, size_of::<T>()).is_some_and(|slice| slice.store(value, 0, order).is_ok())
    }
}

impl<M: GuestMemory + ?Sized> RingMem for Near<'_, M> {
    #[inline(always)]
    fn load_u16(&self, addr: u64, order: Ordering) -> Result<u16, OutsideMemory> {
        match self.load(addr, order) {
            Some(word) => Ok(u16::from_le(word)),
            None => far(move || self.mem.load_u16(addr, order)),
        }
    }

    #[inline(always)]
    fn store_u16(&self, addr: u64, value: u16, order: Ordering) -> Result<(), OutsideMemory> {
        if self.store(addr, value.to_le(), order) {
            Ok(())
        } else {
            far(move || self.mem.store_u16(addr, value, order))
        }
    }

    #[inline(always)]
    fn load_u64(&self, addr: u64, order: Ordering) -> Result<u64, OutsideMemory> {
        match self.load(addr, order) {
            Some(word) => Ok(u64::from_le(word)),
            None => far(move || self.mem.load_u64(addr, order)),
        }
    }

    #[inline(always)]
    fn store_u64(&self, addr: u64, value: u64, order: Ordering) -> Result<(), OutsideMemory> {
        if self.store(addr, value.to_le(), order) {
            Ok(())
        } else {
            far(move || self.mem.store_u64(addr, value, order))
        }
    }

    #[inline(always)]
    fn read_descriptor(&self, addr: u64) -> Result<Descriptor, OutsideMemory> {
        match self.slice(addr, Descriptor::SIZE as usize).and_then(|slice| load_two(&slice, 0)) {
            Some([low, high]) => Ok(Descriptor::from_words(low, high)),
            None => far(move || self.mem.read_descriptor(addr)),
        }
    }

    #[inline(always)]
    fn table(&self, addr: u64, entries: u16) -> Option<impl Fn(u16) -> Option<Descriptor>> {
        let len = table_bytes(entries);
        descriptors(match self.slice(addr, len) {
            Some(table) => table,
            None => far(move || window(self.mem, addr, len))?,
        })
    }

    #[inline(always)]
    fn write_used(&self, addr: u64, id: u32, len: u32) -> Result<(), OutsideMemory> {
        match self.slice(addr, 8).is_some_and(|slice| store_element(&slice, id, len)) {
            true => Ok(()),
            false => far(move || self.mem.write_used(addr, id, len)),
        }
    }

    fn contains(&self, addr: u64, len: u64) -> bool {
        self.mem.contains(addr, len)
    }

    fn stretch(&self, addr: u64) -> Option<(u64, u64)> {
        self.mem.stretch(addr)
    }
}

/// An access to what is not near: apart, so that those which are stay short.
#[cold]
#[inline(never)]
fn far<R>(access: impl FnOnce() -> R) -> R {
    access()
}

/// Bytes of a header at the beginning of a part of a chain.
const FIRST_BYTES: usize = 12;

impl Chain {
    /// Writes the last byte of the device-writable part, where many devices answer with a status.
    #[inline(always)]
    pub fn write_last<M: GuestMemory + ?Sized>(&self, mem: &Near<'_, M>, byte: u8) -> Result<(), ChainError> {
        let last = self.writable().last().ok_or(ChainError::Short { wanted: 1, left: 0 })?;
        // Its length is not zero.
        let addr = last.addr.wrapping_add(u64::from(last.len)).wrapping_sub(1);
        if mem.store(addr, byte, Ordering::Relaxed) {
            return Ok(());
        }
        far(move || store_byte(mem.mem, addr, byte)).map_err(|_| ChainError::Memory { addr })
    }

    /// Writes the first twelve bytes of the device-writable part, where network cards have a header.
    #[inline(always)]
    pub fn write_first<M: GuestMemory + ?Sized>(
        &self,
        mem: &Near<'_, M>,
        bytes: &[u8; FIRST_BYTES],
    ) -> Result<(), ChainError> {
        if mem.first(self.writable()).is_some_and(|slice| store_first(&slice, bytes)) {
            return Ok(());
        }
        far(move || self.writer(mem.mem).write(bytes))
    }

    /// The first twelve bytes of the device-readable part, each read once, where network cards have a header; `None`, and
    /// nothing is read, where they are not near and in one piece.
    #[inline(always)]
    pub fn read_first<M: GuestMemory + ?Sized>(&self, mem: &Near<'_, M>) -> Option<[u8; FIRST_BYTES]> {
        load_first(&mem.first(self.readable())?)
    }

    /// The first sixteen bytes of the device-readable part, as two little-endian words: where many devices have a header.
    #[inline(always)]
    pub fn read_header<M: GuestMemory + ?Sized>(&self, mem: &Near<'_, M>) -> Result<(u64, u64), ChainError> {
        if let Some(&GuestRange { addr, len: 16.. }) = self.readable().first()
            && let Some([first, second]) = mem.slice(addr, 16).and_then(|slice| load_two(&slice, 0))
        {
            return Ok((first, second));
        }
        let [first, second] = far(move || self.reader(mem.mem).read_pair())?;
        Ok((first, second))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use vm_memory::{GuestAddress, GuestMemoryBackend as _, GuestMemoryMmap, GuestMemoryRegion as _};

    use super::*;

    type Mem = GuestMemoryMmap<()>;

    /// Three regions, two of which touch.
    fn memory() -> Mem {
        let regions = [(0x1000, 0x1000), (0x2000, 0x1000), (0x1_0000_0000, 0x1000)];
        GuestMemoryMmap::from_ranges(&regions.map(|(addr, len)| (GuestAddress(addr), len))).unwrap()
    }

    /// Addresses at and around every edge, and what wraps around.
    fn address() -> impl Strategy<Value = u64> {
        let edges = [0, 0x1000, 0x2000, 0x3000, 0x1_0000_0000, 0x1_0000_1000, u64::MAX];
        (prop::sample::select(edges.to_vec()), -24i64..24).prop_map(|(edge, by)| edge.wrapping_add_signed(by))
    }

    /// One buffer, for the device to write.
    fn chain(addr: u64, len: u32) -> Chain {
        let mut chain = Chain::blank();
        chain.body.ranges.push(GuestRange { addr, len });
        chain.body.writable_bytes = len.into();
        chain
    }

    /// The same, for the device to read.
    fn readable(mut chain: Chain) -> Chain {
        let body = &mut chain.body;
        (body.readable, body.readable_bytes, body.writable_bytes) = (1, body.writable_bytes, 0);
        chain
    }

    #[test]
    fn a_header_in_a_region_that_was_named_is_near_and_one_elsewhere_is_not() {
        let mem = memory();
        let near = Near::new(&mem, 0x1000).and_buffers(0x1_0000_0000);
        for (addr, len, is_near) in [
            (0x1000, 12, true),
            (0x1_0000_0004, 2000, true),
            (0x1_0000_0002, 12, false),
            (0x1000, 11, false),
            (0x2000, 12, false),
            (0x1_0000_0ff8, 12, false),
        ] {
            assert_eq!(readable(chain(addr, len)).read_first(&near).is_some(), is_near, "{addr:#x} {len}");
        }
        assert!(readable(chain(0x1_0000_0000, 12)).read_first(&Near::new(&mem, 0x1000)).is_none());
    }

    proptest! {
        /// Whatever regions are near, and whatever is asked for, the answer is the memory's own.
        #[test]
        fn what_is_near_is_what_is_there(
            home in prop::sample::select(vec![0u64, 0x1800, 0x2fff, 0x1_0000_0000]),
            buffers in prop::sample::select(vec![0u64, 0x1800, 0x2fff, 0x1_0000_0000]),
            accesses in prop::collection::vec((0u8..7, address(), any::<u64>()), 1..40),
        ) {
            let (near_mem, mem) = (memory(), memory());
            let near = Near::new(&near_mem, home).and_buffers(buffers);
            let order = Ordering::Relaxed;
            for (kind, addr, value) in accesses {
                // As the callers promise.
                let (even, eighth) = (addr & !1, addr & !7);
                match kind {
                    0 => prop_assert_eq!(near.load_u16(even, order), mem.load_u16(even, order)),
                    1 => prop_assert_eq!(near.load_u64(eighth, order), mem.load_u64(eighth, order)),
                    2 => prop_assert_eq!(near.read_descriptor(addr), mem.read_descriptor(addr)),
                    3 => prop_assert_eq!(
                        near.store_u16(even, value as u16, order),
                        mem.store_u16(even, value as u16, order)
                    ),
                    4 => prop_assert_eq!(near.store_u64(eighth, value, order), mem.store_u64(eighth, value, order)),
                    5 => {
                        let chain = chain(addr, 10 + (value % 4) as u32);
                        let bytes = [value.to_be_bytes(), value.to_le_bytes()].concat();
                        let bytes: [u8; FIRST_BYTES] = bytes[..FIRST_BYTES].try_into().unwrap();
                        prop_assert_eq!(chain.write_first(&near, &bytes), chain.writer(&mem).write(&bytes));
                        let (chain, mut read) = (readable(chain), [0; FIRST_BYTES]);
                        if let Some(first) = chain.read_first(&near) {
                            chain.reader(&mem).read(&mut read).unwrap();
                            prop_assert_eq!(first, read);
                        }
                    }
                    _ => {
                        let (addr, id, len) = (addr & !3, value as u32, (value >> 32) as u32);
                        prop_assert_eq!(near.write_used(addr, id, len), mem.write_used(addr, id, len));
                    }
                }
                let entries = 1 + (value % 5) as u16;
                let (ours, theirs) = (near.table(addr, entries), mem.table(addr, entries));
                prop_assert_eq!(ours.is_some(), theirs.is_some());
                for index in 0..=entries {
                    prop_assert_eq!(ours.as_ref().map(|read| read(index)), theirs.as_ref().map(|read| read(index)));
                }
                prop_assert_eq!(near.contains(addr, value % 0x2000), mem.contains(addr, value % 0x2000));
                prop_assert_eq!(near.stretch(addr), mem.stretch(addr));
            }
            for region in mem.iter() {
                let mut bytes = [[0; 0x1000]; 2];
                near_mem.read_slice(&mut bytes[0], region.start_addr()).unwrap();
                mem.read_slice(&mut bytes[1], region.start_addr()).unwrap();
                prop_assert_eq!(bytes[0], bytes[1]);
            }
        }
    }
}
