//! Guest memory that tells the oracles of every access, and can be made zero again for what was written to it.
//!
//! The device model reaches memory as it does in production: through `GuestMemoryBackend`, its regions and their
//! volatile slices. A slice that is handed out is a read until something is written through it, which its bitmap says.

use std::fmt;
use std::sync::Arc;

use vm_memory::bitmap::{Bitmap, BitmapSlice, WithBitmapSlice};
use vm_memory::guest_memory::Error;
use vm_memory::{
    GuestAddress, GuestMemoryBackend, GuestMemoryRegion, GuestMemoryRegionBytes, MemoryRegionAddress, VolatileSlice,
};

use crate::lone::Lone;
use crate::oracle::Oracles;

/// Bytes of guest memory from address 0 on.
pub const LOW_BYTES: u64 = 0x10_0000;
/// Where the rest begins.
pub const HIGH_START: u64 = 1 << 32;
/// Bytes of the rest.
pub const HIGH_BYTES: u64 = 0x2_0000;
/// Bytes that are made zero together.
const GRANULE: usize = 1024;
/// Longest access that can be answered with something else.
pub const MAX_ALTERED: usize = 16;
/// Altered answers that may be alive at a time.
const ALTERED_SLOTS: usize = 64;

/// Guest memory. Clones are the same memory.
#[derive(Clone)]
pub struct Ram(Arc<Inner>);

struct Inner {
    regions: [Region; 2],
}

/// One stretch of it.
pub struct Region {
    start: u64,
    len: usize,
    bytes: *mut u8,
    /// One bit a granule.
    dirty: Lone<Vec<u64>>,
    oracles: Arc<Lone<Oracles>>,
    /// Answers that differ from memory.
    altered: *mut Altered,
    next_altered: Lone<usize>,
}

/// Room for one altered answer at the original's place within 16 bytes, so that an access that is aligned there is here.
#[repr(align(16))]
#[derive(Clone)]
struct Altered {
    _bytes: [u8; 2 * MAX_ALTERED],
}

// SAFETY: the pointers are owned allocations; they are reached through slices that only the machine's thread takes, as
// the `Lone` beside them enforces for every access.
unsafe impl Send for Region {}
// SAFETY: as above.
unsafe impl Sync for Region {}

impl Region {
    fn new(start: u64, len: u64, oracles: Arc<Lone<Oracles>>) -> Self {
        let len = len as usize;
        // Words, so that the start is aligned for every atomic access.
        let words = vec![0u128; len / 16].into_boxed_slice();
        let altered = vec![Altered { _bytes: [0; 2 * MAX_ALTERED] }; ALTERED_SLOTS].into_boxed_slice();
        Self {
            start,
            len,
            bytes: Box::into_raw(words).cast(),
            dirty: Lone::new(vec![0; len.div_ceil(64 * GRANULE)]),
            oracles,
            altered: Box::into_raw(altered).cast(),
            next_altered: Lone::default(),
        }
    }

    fn soil(&self, offset: usize, len: usize) {
        if len == 0 {
            return;
        }
        let mut dirty = self.dirty.open();
        for granule in offset / GRANULE..=(offset + len - 1) / GRANULE {
            dirty[granule / 64] |= 1 << (granule % 64);
        }
    }

    fn clear(&self) {
        for (word, bits) in self.dirty.open().iter_mut().enumerate() {
            while *bits != 0 {
                let granule = 64 * word + bits.trailing_zeros() as usize;
                *bits &= *bits - 1;
                let offset = granule * GRANULE;
                let len = GRANULE.min(self.len - offset);
                // SAFETY: the granule lies inside the allocation; no slice is alive between programs.
                unsafe { self.bytes.add(offset).write_bytes(0, len) };
            }
        }
    }

    /// A copy of what memory holds there, with `flip` in it.
    fn alter(&self, offset: usize, len: usize, flip: u8) -> *mut u8 {
        let mut next = self.next_altered.open();
        debug_assert!(len <= MAX_ALTERED);
        // SAFETY: a slot below their number.
        let slot = unsafe { self.altered.add(*next).cast::<u8>() }.wrapping_add(offset % 16);
        *next = (*next + 1) % ALTERED_SLOTS;
        for i in 0..len {
            // SAFETY: both are inside their allocations, see above.
            unsafe { slot.add(i).write(self.bytes.add(offset + i).read() ^ flip) };
        }
        slot
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        // SAFETY: both were made by `Box::into_raw` in `new`, with these lengths.
        unsafe {
            drop(Box::from_raw(std::ptr::slice_from_raw_parts_mut(self.bytes.cast::<u128>(), self.len / 16)));
            drop(Box::from_raw(std::ptr::slice_from_raw_parts_mut(self.altered, ALTERED_SLOTS)));
        }
    }
}

impl Ram {
    /// Zeroes, watched by `oracles`.
    #[must_use]
    pub fn new(oracles: &Arc<Lone<Oracles>>) -> Self {
        let region = |start, len| Region::new(start, len, oracles.clone());
        Self(Arc::new(Inner { regions: [region(0, LOW_BYTES), region(HIGH_START, HIGH_BYTES)] }))
    }

    /// Makes everything that was written zero again.
    pub fn clear(&self) {
        self.0.regions.iter().for_each(Region::clear);
    }

    /// Whether the whole range is memory; ranges may span regions only where those touch, which these do not.
    #[must_use]
    pub fn has(&self, addr: u64, len: u64) -> bool {
        self.place(addr, len).is_some()
    }

    fn place(&self, addr: u64, len: u64) -> Option<(&Region, usize)> {
        let end = addr.checked_add(len)?;
        let region = self.0.regions.iter().find(|r| r.start <= addr && end <= r.start + r.len as u64)?;
        Some((region, (addr - region.start) as usize))
    }

    /// Copies out without telling anybody; bytes outside memory read as zero.
    pub fn peek(&self, addr: u64, to: &mut [u8]) -> bool {
        let Some((region, offset)) = self.place(addr, to.len() as u64) else {
            to.fill(0);
            return false;
        };
        // SAFETY: `place` has checked the range; nobody else writes meanwhile.
        unsafe { std::ptr::copy_nonoverlapping(region.bytes.add(offset), to.as_mut_ptr(), to.len()) };
        true
    }

    /// Copies in as the guest or a back end, without telling anybody. `false` outside memory, where nothing changes.
    pub fn poke(&self, addr: u64, from: &[u8]) -> bool {
        let Some((region, offset)) = self.place(addr, from.len() as u64) else { return false };
        region.soil(offset, from.len());
        // SAFETY: as in `peek`.
        unsafe { std::ptr::copy_nonoverlapping(from.as_ptr(), region.bytes.add(offset), from.len()) };
        true
    }

    /// A little-endian word of the guest's.
    #[must_use]
    pub fn word(&self, addr: u64, width: usize) -> u64 {
        let mut bytes = [0; 8];
        self.peek(addr, &mut bytes[..width]);
        u64::from_le_bytes(bytes)
    }

    /// Writes a little-endian word as the guest.
    pub fn set_word(&self, addr: u64, width: usize, value: u64) {
        self.poke(addr, &value.to_le_bytes()[..width]);
    }

    /// A digest of everything that was ever written.
    #[must_use]
    pub fn digest(&self) -> u64 {
        let mut hash = Hash::default();
        for region in &self.0.regions {
            for (word, &bits) in region.dirty.open().iter().enumerate() {
                let mut bits = bits;
                while bits != 0 {
                    let granule = 64 * word + bits.trailing_zeros() as usize;
                    bits &= bits - 1;
                    for at in (granule * GRANULE..(granule + 1) * GRANULE).step_by(8) {
                        // SAFETY: inside the allocation, and aligned.
                        let value = unsafe { region.bytes.add(at).cast::<u64>().read() };
                        // A granule of zeroes is the same written or not.
                        if value != 0 {
                            hash.add(region.start + at as u64);
                            hash.add(value);
                        }
                    }
                }
            }
        }
        hash.0
    }
}

/// A digest, good enough to tell two runs apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hash(pub u64);

impl Default for Hash {
    fn default() -> Self {
        Self(0xcbf2_9ce4_8422_2325)
    }
}

impl Hash {
    /// Adds a word.
    pub fn add(&mut self, word: u64) {
        self.0 = (self.0.rotate_left(5) ^ word).wrapping_mul(0x517c_c1b7_2722_0a95);
    }
}

/// A digest of a stream of bytes, whatever pieces they come in.
#[derive(Clone, Copy, Debug, Default)]
pub struct Stream {
    hash: Hash,
    /// Bytes that make no word yet, the first one lowest.
    rest: u64,
    rest_bytes: u32,
}

impl Stream {
    /// Adds the next bytes.
    pub fn add(&mut self, bytes: &[u8]) {
        let missing = (8 - self.rest_bytes as usize) % 8;
        let (first, others) = bytes.split_at(missing.min(bytes.len()));
        first.iter().for_each(|byte| self.push(*byte));
        let (words, last) = others.as_chunks();
        for word in words {
            self.hash.add(u64::from_le_bytes(*word));
        }
        last.iter().for_each(|byte| self.push(*byte));
    }

    fn push(&mut self, byte: u8) {
        self.rest |= u64::from(byte) << (8 * self.rest_bytes);
        self.rest_bytes += 1;
        if self.rest_bytes == 8 {
            self.hash.add(std::mem::take(&mut self.rest));
            self.rest_bytes = 0;
        }
    }

    /// The digest so far.
    #[must_use]
    pub fn digest(&self) -> u64 {
        let mut hash = self.hash;
        hash.add(self.rest);
        hash.add(self.rest_bytes.into());
        hash.0
    }
}

impl fmt::Debug for Ram {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Ram")
    }
}

impl GuestMemoryBackend for Ram {
    type R = Region;

    fn find_region(&self, addr: GuestAddress) -> Option<&Region> {
        self.0.regions.iter().find(|region| addr.0.wrapping_sub(region.start) < region.len as u64)
    }

    fn iter(&self) -> impl Iterator<Item = &Region> {
        self.0.regions.iter()
    }

    fn check_range(&self, base: GuestAddress, len: usize) -> bool {
        // Asking is no access: the general way would hand out slices.
        self.has(base.0, len as u64) || len == 0
    }
}

impl GuestMemoryRegionBytes for Region {}

impl GuestMemoryRegion for Region {
    type B = Tracker;

    fn len(&self) -> u64 {
        self.len as u64
    }

    fn start_addr(&self) -> GuestAddress {
        GuestAddress(self.start)
    }

    fn bitmap(&self) -> Mark<'_> {
        Mark { region: Some(self), offset: 0, altered: None }
    }

    fn get_slice(&self, at: MemoryRegionAddress, count: usize) -> Result<VolatileSlice<'_, Mark<'_>>, Error> {
        let offset = at.0 as usize;
        if offset.checked_add(count).is_none_or(|end| end > self.len) {
            return Err(Error::InvalidBackendAddress);
        }
        let addr = self.start + at.0;
        let flip = Oracles::touched(&self.oracles, addr, count);
        let (pointer, altered) = match flip {
            // SAFETY: the range lies inside the allocation.
            None => (unsafe { self.bytes.add(offset) }, None),
            Some(flip) => {
                let slot = self.alter(offset, count, flip);
                (slot, Some(slot))
            }
        };
        let mark = Mark { region: Some(self), offset, altered };
        // SAFETY: the memory lives as long as the region, and is written by this thread only.
        Ok(unsafe { VolatileSlice::with_bitmap(pointer, count, mark, None) })
    }
}

/// What regions say their bitmap is; the slices' [`Mark`]s do the work.
#[derive(Clone, Copy, Debug, Default)]
pub struct Tracker;

impl<'a> WithBitmapSlice<'a> for Tracker {
    type S = Mark<'a>;
}

impl Bitmap for Tracker {
    fn mark_dirty(&self, _offset: usize, _len: usize) {}

    fn dirty_at(&self, _offset: usize) -> bool {
        false
    }

    fn slice_at(&self, _offset: usize) -> Mark<'_> {
        Mark { region: None, offset: 0, altered: None }
    }
}

/// Where a slice lies, so that a write through it is known.
#[derive(Clone, Copy)]
pub struct Mark<'a> {
    region: Option<&'a Region>,
    offset: usize,
    /// The slice is an altered copy: what is written to it belongs into memory.
    altered: Option<*mut u8>,
}

impl fmt::Debug for Mark<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Mark({:#x})", self.offset)
    }
}

impl<'b> WithBitmapSlice<'b> for Mark<'_> {
    type S = Self;
}

impl BitmapSlice for Mark<'_> {}

impl Bitmap for Mark<'_> {
    fn mark_dirty(&self, offset: usize, len: usize) {
        let Some(region) = self.region.filter(|_| len > 0) else { return };
        let at = self.offset + offset;
        region.soil(at, len);
        if let Some(copy) = self.altered {
            // SAFETY: the slice was `len` bytes long at least, in both places.
            unsafe { std::ptr::copy_nonoverlapping(copy.add(offset), region.bytes.add(at), len) };
        }
        Oracles::written(&region.oracles, region.start + at as u64, len);
    }

    fn dirty_at(&self, _offset: usize) -> bool {
        false
    }

    fn slice_at(&self, offset: usize) -> Self {
        Self { offset: self.offset + offset, altered: self.altered.map(|copy| copy.wrapping_add(offset)), ..*self }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_streams_digest_is_of_its_bytes_and_not_of_their_pieces() {
        let bytes: Vec<u8> = (1..=40).collect();
        let digest = |pieces: &[&[u8]]| {
            let mut stream = Stream::default();
            pieces.iter().for_each(|piece| stream.add(piece));
            stream.digest()
        };
        let whole = digest(&[&bytes]);
        for cut in 0..=bytes.len() {
            let (one, other) = bytes.split_at(cut);
            let (other, last) = other.split_at(other.len() / 3);
            assert_eq!(digest(&[one, other, last]), whole, "cut at {cut}");
            if cut < bytes.len() {
                let mut changed = bytes.clone();
                changed[cut] ^= 1;
                assert_ne!(digest(&[&changed]), whole);
                assert_ne!(digest(&[one]), whole);
            }
        }
        assert_ne!(digest(&[&[0; 8]]), digest(&[&[0; 7]]));
    }
}
