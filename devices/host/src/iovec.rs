//! Guest memory in vectored I/O: the kernel reads and writes the guest's pages directly.

use std::io;
use std::marker::PhantomData;
use std::os::fd::{AsRawFd, BorrowedFd};

use vm_memory::{
    GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion, MemoryRegionAddress, VolatileSlice,
};

use crate::bounce::Alignment;
use crate::check;

/// Vectors one call takes (POSIX `IOV_MAX` of Linux and illumos). Longer lists go out in several calls.
const MAX_VECTORS: usize = 1024;

/// Bytes one call moves at most: Linux stops at 2 GiB less a page, illumos refuses more than 2 GiB.
const MAX_CALL_BYTES: usize = 1 << 30;

/// A piece of guest memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GuestRange {
    /// Guest-physical address.
    pub address: u64,
    /// Length in bytes.
    pub len: u32,
}

/// A range that is not guest memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("guest range {address:#x}+{len:#x} is outside guest memory", address = .0.address, len = .0.len)]
pub struct OutsideMemory(pub GuestRange);

/// Room for vectors, kept between requests so that filling it allocates nothing.
#[derive(Debug, Default)]
pub struct VectorBuffer {
    pub(crate) vectors: Vec<libc::iovec>,
}

// SAFETY: outside of the calls that fill it, the pointers in it are never followed; they are only left-over room.
unsafe impl Send for VectorBuffer {}

impl VectorBuffer {
    /// Room for `vectors` vectors.
    #[must_use]
    pub fn with_capacity(vectors: usize) -> Self {
        Self { vectors: Vec::with_capacity(vectors) }
    }

    /// The host's view of `ranges`, in order; empty ranges are left out, and a range that spans two regions of guest
    /// memory becomes two vectors.
    ///
    /// # Errors
    /// The first range that is not wholly guest memory.
    pub fn fill<'a>(
        &'a mut self,
        mem: &'a GuestMemoryMmap<()>,
        ranges: impl IntoIterator<Item = GuestRange, IntoIter: Clone>,
    ) -> Result<Vectors<'a>, OutsideMemory> {
        self.vectors.clear();
        let len_bytes = self.extend(mem, ranges)?;
        Ok(Vectors { vectors: &mut self.vectors, len_bytes, _memory: PhantomData })
    }

    /// Appends vectors for `ranges`; their length in bytes.
    #[inline(always)]
    pub(crate) fn extend(
        &mut self,
        mem: &GuestMemoryMmap<()>,
        ranges: impl IntoIterator<Item = GuestRange, IntoIter: Clone>,
    ) -> Result<usize, OutsideMemory> {
        let mut ranges = ranges.into_iter();
        // Most requests have one, and are to have it without a loop.
        let Some(first) = ranges.next() else { return Ok(0) };
        let len_bytes = self.push(mem, first)?;
        match ranges.next() {
            None => Ok(len_bytes),
            Some(second) => Ok(len_bytes + self.push_all(mem, second, ranges)?),
        }
    }

    /// Appends vectors for `first` and the `others`; their length in bytes.
    #[inline(never)]
    fn push_all(
        &mut self,
        mem: &GuestMemoryMmap<()>,
        first: GuestRange,
        others: impl Iterator<Item = GuestRange> + Clone,
    ) -> Result<usize, OutsideMemory> {
        let first_bytes = self.push(mem, first)?;
        // The pages of a request are in one region mostly, which is looked up once: then they are appended without a question
        // in between, and whether all were there is asked at the end.
        if let Some(home) = Home::around(mem, first.address) {
            let begin = self.vectors.len();
            let (mut fit, mut len_bytes) = (true, first_bytes);
            self.vectors.extend(others.clone().map(|range| {
                fit &= home.has(range);
                len_bytes += range.len as usize;
                libc::iovec { iov_base: home.host_address(range.address), iov_len: range.len as usize }
            }));
            if fit {
                return Ok(len_bytes);
            }
            self.vectors.truncate(begin);
        }
        others.map(|range| self.push(mem, range)).sum::<Result<usize, _>>().map(|len_bytes| first_bytes + len_bytes)
    }

    /// Appends what vectors a range takes; its length in bytes.
    #[inline(always)]
    fn push(&mut self, mem: &GuestMemoryMmap<()>, range: GuestRange) -> Result<usize, OutsideMemory> {
        let len = range.len as usize;
        // In one region, nearly always, of two or three: asking each takes less than a search.
        let whole = mem.iter().find_map(|region| {
            let offset = range.address.checked_sub(region.start_addr().0)?;
            region.get_slice(MemoryRegionAddress(offset), len).ok()
        });
        match whole {
            Some(slice) if len > 0 => self.vectors.push(vector(&slice)),
            _ => self.push_pieces(mem, range)?,
        }
        Ok(len)
    }

    /// Appends vectors for a range that is not in one region, or empty.
    #[cold]
    fn push_pieces(&mut self, mem: &GuestMemoryMmap<()>, range: GuestRange) -> Result<(), OutsideMemory> {
        for slice in mem.get_slices(GuestAddress(range.address), range.len as usize) {
            self.vectors.push(vector(&slice.map_err(|_| OutsideMemory(range))?));
        }
        Ok(())
    }
}

/// A region of guest memory, and where the host has it.
struct Home {
    start: u64,
    bytes: u64,
    at: *mut u8,
}

impl Home {
    fn around(mem: &GuestMemoryMmap<()>, address: u64) -> Option<Self> {
        let region = mem.find_region(GuestAddress(address))?;
        let slice = region.as_volatile_slice().ok()?;
        Some(Self { start: region.start_addr().0, bytes: slice.len() as u64, at: slice.ptr_guard_mut().as_ptr() })
    }

    /// Whether a range is in it, and not empty.
    #[inline(always)]
    fn has(&self, range: GuestRange) -> bool {
        // An address before the region wraps to an offset far behind it.
        let begin = range.address.wrapping_sub(self.start);
        let end = begin.wrapping_add(range.len.into());
        begin < end && end <= self.bytes
    }

    /// Where the host has an address that is in it.
    #[inline(always)]
    fn host_address(&self, address: u64) -> *mut libc::c_void {
        self.at.wrapping_add(address.wrapping_sub(self.start) as usize).cast()
    }
}

/// The host's view of a slice of guest memory. That its guard is gone is of no consequence for mapped memory: the mapping
/// lives as long as the memory does.
fn vector(slice: &VolatileSlice<'_>) -> libc::iovec {
    libc::iovec { iov_base: slice.ptr_guard_mut().as_ptr().cast(), iov_len: slice.len() }
}

/// Vectors that point into guest memory, which stays mapped while they exist. What is moved is taken off the front.
#[derive(Debug)]
pub struct Vectors<'a> {
    vectors: &'a mut [libc::iovec],
    /// Bytes left to move.
    len_bytes: usize,
    _memory: PhantomData<&'a GuestMemoryMmap<()>>,
}

impl<'a> Vectors<'a> {
    /// A buffer of this process in place of guest memory. The caller keeps it mapped, and nobody holds a reference to it.
    pub(crate) fn of_buffer(buffer: &'a mut [libc::iovec; 1], len_bytes: usize) -> Self {
        Self { vectors: buffer, len_bytes, _memory: PhantomData }
    }

    /// Bytes left to move.
    #[must_use]
    pub fn len_bytes(&self) -> usize {
        self.len_bytes
    }

    pub(crate) fn as_slice(&self) -> &[libc::iovec] {
        self.vectors
    }

    /// Fills all of guest memory named from `file` at `offset`, in as many calls as it takes. `alignment` is what the file
    /// asks for, if anything.
    ///
    /// # Errors
    /// What the system says, and `UnexpectedEof` where the file ends before; some memory may have been written.
    pub fn read_exact_at(
        mut self,
        file: BorrowedFd<'_>,
        mut offset: u64,
        alignment: Option<Alignment>,
    ) -> io::Result<()> {
        while self.len_bytes > 0 {
            let (vectors, count) = self.next_call();
            // SAFETY: every vector is a piece of mapped guest memory. The guest may access it at the same time; nobody
            // in this process holds a reference to it.
            let moved = retry_at(offset, |at| unsafe { libc::preadv(file.as_raw_fd(), vectors, count, at) })?;
            if moved == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            self.advance(moved);
            offset += moved as u64;
            // Only the end of the file leaves direct I/O in the middle of a block; asking for the rest would be refused
            // with an error that does not say so.
            if self.len_bytes > 0 && alignment.is_some_and(|alignment| !alignment.is_met_after(moved)) {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
        Ok(())
    }

    /// Writes all of guest memory named to `file` at `offset`, in as many calls as it takes.
    ///
    /// # Errors
    /// What the system says; some of it may have been written.
    pub fn write_all_at(self, file: BorrowedFd<'_>, offset: u64) -> io::Result<()> {
        self.write_all_with(offset, |vectors, count, at| {
            // SAFETY: `write_all_with` passes vectors of mapped guest memory; the kernel only reads them.
            unsafe { libc::pwritev(file.as_raw_fd(), vectors, count, at) }
        })
    }

    /// Writes all with `call`, which gets vectors that are valid during the call, their count and the file offset, and
    /// answers as pwritev(2) does.
    pub(crate) fn write_all_with(
        mut self,
        mut offset: u64,
        mut call: impl FnMut(*const libc::iovec, libc::c_int, libc::off_t) -> isize,
    ) -> io::Result<()> {
        while self.len_bytes > 0 {
            let (vectors, count) = self.next_call();
            let moved = retry_at(offset, |at| call(vectors, count, at))?;
            if moved == 0 {
                return Err(io::ErrorKind::WriteZero.into());
            }
            self.advance(moved);
            offset += moved as u64;
        }
        Ok(())
    }

    /// One read into guest memory: a frame from a TAP device, bytes from a socket. How many bytes came.
    ///
    /// # Errors
    /// `WouldBlock` where nothing is there; what the system says. `InvalidInput` beyond 1024 vectors, because a frame
    /// cannot come in two calls.
    pub fn read(&mut self, file: BorrowedFd<'_>) -> io::Result<usize> {
        let moved = self.read_whole(file)?;
        self.advance(moved);
        Ok(moved)
    }

    /// As [`read`](Self::read), of what nobody asks for the rest of.
    fn read_whole(&self, file: BorrowedFd<'_>) -> io::Result<usize> {
        let (vectors, count) = self.only_call()?;
        // SAFETY: as in `read_exact_at`.
        let moved = crate::retry(|| unsafe { libc::readv(file.as_raw_fd(), vectors, count) })?;
        Ok(usize::try_from(moved).unwrap_or(0))
    }

    /// One write of guest memory. How many bytes went.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    pub fn write(&mut self, file: BorrowedFd<'_>) -> io::Result<usize> {
        let moved = self.write_whole(file)?;
        self.advance(moved);
        Ok(moved)
    }

    /// As [`write`](Self::write), of what nobody sends the rest of.
    fn write_whole(&self, file: BorrowedFd<'_>) -> io::Result<usize> {
        let (vectors, count) = self.only_call()?;
        // SAFETY: as in `write_all_at`.
        let moved = crate::retry(|| unsafe { libc::writev(file.as_raw_fd(), vectors, count) })?;
        Ok(usize::try_from(moved).unwrap_or(0))
    }

    /// Where the memory lies in this process: address and length of each piece, in order. It may be used while the guest
    /// memory lives, as memory that the guest changes meanwhile.
    pub fn pieces(&self) -> impl ExactSizeIterator<Item = (*mut u8, usize)> + '_ {
        self.vectors.iter().map(|vector| (vector.iov_base.cast(), vector.iov_len))
    }

    fn only_call(&self) -> io::Result<(*const libc::iovec, libc::c_int)> {
        if self.vectors.len() > MAX_VECTORS {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "more pieces than one system call takes"));
        }
        Ok((self.vectors.as_ptr(), self.vectors.len() as libc::c_int))
    }

    /// As many vectors as one call takes.
    fn next_call(&self) -> (*const libc::iovec, libc::c_int) {
        let all = is_one_call(self.vectors.len(), self.len_bytes);
        let count = if all { self.vectors.len() as libc::c_int } else { vectors_of_a_call(self.vectors) };
        (self.vectors.as_ptr(), count)
    }

    /// Takes `moved` bytes off the front.
    pub(crate) fn advance(&mut self, moved: usize) {
        let moved = moved.min(self.len_bytes);
        self.len_bytes -= moved;
        let done = take_off(self.vectors, moved);
        self.vectors = &mut std::mem::take(&mut self.vectors)[done..];
    }
}

/// Whether one call takes so many vectors of so many bytes in all.
#[inline]
pub(crate) fn is_one_call(vectors: usize, bytes: usize) -> bool {
    vectors <= MAX_VECTORS && bytes <= MAX_CALL_BYTES
}

/// How many of these vectors one call takes.
#[inline]
pub(crate) fn vectors_of_a_call(vectors: &[libc::iovec]) -> libc::c_int {
    if vectors.len() <= 1 {
        return vectors.len() as libc::c_int;
    }
    let mut bytes = 0usize;
    let mut count = 0;
    for vector in vectors.iter().take(MAX_VECTORS) {
        bytes = bytes.saturating_add(vector.iov_len);
        if bytes > MAX_CALL_BYTES && count > 0 {
            break;
        }
        count += 1;
    }
    count
}

/// Takes `moved` bytes off the front of vectors that have at least as many; how many of them have none left.
pub(crate) fn take_off(vectors: &mut [libc::iovec], moved: usize) -> usize {
    let mut left = moved;
    let mut done = 0;
    for vector in vectors {
        if left < vector.iov_len {
            vector.iov_base = vector.iov_base.wrapping_byte_add(left);
            vector.iov_len -= left;
            break;
        }
        left -= vector.iov_len;
        done += 1;
    }
    done
}

/// Writes `len_bytes` zeroes to `file` at `offset`, asking `go_on` between calls.
///
/// # Errors
/// What the system says; `Interrupted` where `go_on` said no.
pub(crate) fn write_zeroes_at(
    file: BorrowedFd<'_>,
    mut offset: u64,
    len_bytes: u64,
    go_on: &dyn Fn() -> bool,
) -> io::Result<()> {
    /// Aligned as direct I/O may ask.
    #[repr(align(4096))]
    struct Page([u8; 4096]);
    static ZEROES: Page = Page([0; 4096]);
    const _: () = assert!(align_of::<Page>() >= crate::bounce::MAX_ALIGNMENT_BYTES as usize);
    let zeroes = libc::iovec { iov_base: ZEROES.0.as_ptr().cast_mut().cast(), iov_len: ZEROES.0.len() };
    let end = offset.checked_add(len_bytes).ok_or(io::ErrorKind::InvalidInput)?;
    while offset < end {
        if !go_on() {
            return Err(io::ErrorKind::Interrupted.into());
        }
        let left = end - offset;
        let mut vectors = [zeroes; 256];
        let count = (left.div_ceil(ZEROES.0.len() as u64)).min(vectors.len() as u64) as usize;
        let last = left.saturating_sub((count as u64 - 1) * ZEROES.0.len() as u64);
        vectors[count - 1].iov_len = last.min(ZEROES.0.len() as u64) as usize;
        let moved = retry_at(offset, |at| {
            // SAFETY: every vector is the static page or less of it; the kernel only reads it.
            unsafe { libc::pwritev(file.as_raw_fd(), vectors.as_ptr(), count as libc::c_int, at) }
        })?;
        if moved == 0 {
            return Err(io::ErrorKind::WriteZero.into());
        }
        offset += moved as u64;
    }
    Ok(())
}

/// Why a frame could not be moved.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    /// A range is not guest memory.
    #[error(transparent)]
    Memory(#[from] OutsideMemory),
    /// The system refused; `WouldBlock` where nothing can be moved now.
    #[error(transparent)]
    Io(#[from] io::Error),
}

impl VectorBuffer {
    /// Writes `header` and then guest memory in one call: one frame. How many bytes went.
    ///
    /// # Errors
    /// See [`FrameError`]; `InvalidInput` beyond 1023 ranges.
    pub fn write_frame(
        &mut self,
        file: BorrowedFd<'_>,
        mem: &GuestMemoryMmap<()>,
        header: &[u8],
        ranges: impl IntoIterator<Item = GuestRange, IntoIter: Clone>,
    ) -> Result<usize, FrameError> {
        self.vectors.clear();
        // The pointer is only read through: `write` hands it to writev.
        self.vectors.push(libc::iovec { iov_base: header.as_ptr().cast_mut().cast(), iov_len: header.len() });
        let len_bytes = header.len() + self.extend(mem, ranges)?;
        Ok(Vectors { vectors: &mut self.vectors, len_bytes, _memory: PhantomData }.write_whole(file)?)
    }

    /// Reads one frame in one call: `header` first, then guest memory, and what does not fit there into `spill`. How
    /// many bytes came, the header's included.
    ///
    /// # Errors
    /// See [`FrameError`]; `InvalidInput` beyond 1022 ranges.
    pub fn read_frame(
        &mut self,
        file: BorrowedFd<'_>,
        mem: &GuestMemoryMmap<()>,
        header: &mut [u8],
        ranges: impl IntoIterator<Item = GuestRange, IntoIter: Clone>,
        spill: &mut [u8],
    ) -> Result<usize, FrameError> {
        self.vectors.clear();
        self.vectors.push(libc::iovec { iov_base: header.as_mut_ptr().cast(), iov_len: header.len() });
        let len_bytes = header.len() + self.extend(mem, ranges)? + spill.len();
        if !spill.is_empty() {
            self.vectors.push(libc::iovec { iov_base: spill.as_mut_ptr().cast(), iov_len: spill.len() });
        }
        Ok(Vectors { vectors: &mut self.vectors, len_bytes, _memory: PhantomData }.read_whole(file)?)
    }
}

/// Calls until no signal interrupts; the offset as the call wants it.
fn retry_at(offset: u64, mut call: impl FnMut(libc::off_t) -> isize) -> io::Result<usize> {
    let at = libc::off_t::try_from(offset).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
    loop {
        match check(call(at)) {
            Ok(moved) => return Ok(usize::try_from(moved).unwrap_or(0)),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Seek, SeekFrom, Write};
    use std::os::fd::AsFd;

    use proptest::prelude::*;
    use vm_memory::Bytes;
    use vmm_sys_util::tempfile::TempFile;

    use super::*;

    fn memory() -> GuestMemoryMmap<()> {
        GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x10000), (GuestAddress(0x10000), 0x10000)]).unwrap()
    }

    fn range(address: u64, len: u32) -> GuestRange {
        GuestRange { address, len }
    }

    #[test]
    fn ranges_outside_memory_are_refused_and_name_themselves() {
        let (mem, mut buffer) = (memory(), VectorBuffer::default());
        for bad in [range(0x20000, 1), range(0x1ffff, 2), range(u64::MAX, 1), range(u64::MAX, u32::MAX)] {
            let error = buffer.fill(&mem, [range(0, 16), bad]).unwrap_err();
            assert_eq!(error, OutsideMemory(bad));
        }
        let error = buffer.fill(&mem, [range(0x20000, 1)]).unwrap_err();
        assert_eq!(error.to_string(), "guest range 0x20000+0x1 is outside guest memory");
        assert_eq!(buffer.fill(&mem, [range(u64::MAX, 0)]).unwrap().len_bytes(), 0);
    }

    #[test]
    fn a_range_across_two_regions_is_read_whole() {
        let (mem, mut buffer) = (memory(), VectorBuffer::default());
        let mut file = TempFile::new().unwrap().into_file();
        let bytes: Vec<u8> = (0..=255).cycle().take(0x2000).collect();
        file.write_all(&bytes).unwrap();
        let vectors = buffer.fill(&mem, [range(0xf000, 0x2000)]).unwrap();
        vectors.read_exact_at(file.as_fd(), 0, None).unwrap();
        let mut read = vec![0; 0x2000];
        mem.read_slice(&mut read, GuestAddress(0xf000)).unwrap();
        assert_eq!(read, bytes);
    }

    #[test]
    fn a_file_that_ends_early_is_an_error() {
        let (mem, mut buffer) = (memory(), VectorBuffer::default());
        let file = TempFile::new().unwrap().into_file();
        file.set_len(100).unwrap();
        let error = buffer.fill(&mem, [range(0, 512)]).unwrap().read_exact_at(file.as_fd(), 0, None).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
        let vectors = buffer.fill(&mem, [range(0, 1)]).unwrap();
        assert_eq!(
            vectors.read_exact_at(file.as_fd(), u64::MAX, None).unwrap_err().kind(),
            io::ErrorKind::InvalidInput
        );
    }

    #[test]
    fn more_pieces_than_one_call_takes_are_all_moved() {
        let (mem, mut buffer) = (memory(), VectorBuffer::default());
        let mut file = TempFile::new().unwrap().into_file();
        let bytes: Vec<u8> = (0..3000u32).map(|n| (n * 7) as u8).collect();
        mem.write_slice(&bytes, GuestAddress(0x100)).unwrap();
        let pieces = || (0..3000).map(|n| range(0x100 + n, 1));
        buffer.fill(&mem, pieces()).unwrap().write_all_at(file.as_fd(), 5).unwrap();
        let mut written = Vec::new();
        file.seek(SeekFrom::Start(5)).unwrap();
        file.read_to_end(&mut written).unwrap();
        assert_eq!(written, bytes);
        let error = buffer.fill(&mem, pieces()).unwrap().write(file.as_fd()).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
    }

    #[test]
    fn zeroes_are_written_to_the_byte_and_can_be_stopped() {
        for len in [1u64, 4095, 4096, 4097, 3 << 20, (3 << 20) + 5] {
            let mut file = TempFile::new().unwrap().into_file();
            file.write_all(&vec![7; len as usize + 10]).unwrap();
            write_zeroes_at(file.as_fd(), 5, len, &|| true).unwrap();
            file.rewind().unwrap();
            let mut bytes = Vec::new();
            file.read_to_end(&mut bytes).unwrap();
            assert_eq!(bytes.len() as u64, len + 10);
            assert!(
                bytes
                    .iter()
                    .enumerate()
                    .all(|(at, &byte)| { byte == if (5..5 + len).contains(&(at as u64)) { 0 } else { 7 } })
            );
            assert_eq!(
                write_zeroes_at(file.as_fd(), 5, len, &|| false).unwrap_err().kind(),
                io::ErrorKind::Interrupted
            );
        }
    }

    #[test]
    fn a_frame_fills_header_memory_and_spill_in_order() {
        let (mem, mut buffer) = (memory(), VectorBuffer::default());
        let (ours, theirs) = std::os::unix::net::UnixDatagram::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        mem.write_slice(b"abcdef", GuestAddress(0x40)).unwrap();
        let sent = buffer.write_frame(theirs.as_fd(), &mem, b"HDR", [range(0x40, 4), range(0x44, 2)]).unwrap();
        assert_eq!(sent, 9);
        let (mut header, mut spill) = ([0; 3], [0; 8]);
        let got = buffer.read_frame(ours.as_fd(), &mem, &mut header, [range(0x80, 4)], &mut spill).unwrap();
        assert_eq!((got, &header, &spill[..2]), (9, b"HDR", &b"ef"[..]));
        let mut bytes = [0; 5];
        mem.read_slice(&mut bytes, GuestAddress(0x80)).unwrap();
        assert_eq!(&bytes, b"abcd\0");
        let error = buffer.read_frame(ours.as_fd(), &mem, &mut header, [range(0x80, 4)], &mut spill).unwrap_err();
        assert!(matches!(error, FrameError::Io(error) if error.kind() == io::ErrorKind::WouldBlock));
    }

    proptest! {
        #[test]
        fn many_ranges_become_what_each_becomes_alone(
            ranges in prop::collection::vec(
                (prop_oneof![12 => 0u64..0x1_f000, 2 => 0xff00u64..0x1_0010, 1 => 0x1_fff0u64..0x2_0010, 1 => any::<u64>()],
                 prop_oneof![12 => 1u32..0x1000, 1 => Just(0), 1 => any::<u32>()])
                    .prop_map(|(address, len)| range(address, len)),
                0..12,
            ),
        ) {
            let (mem, mut buffer) = (memory(), VectorBuffer::default());
            let mut alone = || {
                let mut vectors = Vec::new();
                for &one in &ranges {
                    buffer.vectors.clear();
                    buffer.push(&mem, one)?;
                    vectors.extend(buffer.vectors.iter().map(|vector| (vector.iov_base, vector.iov_len)));
                }
                Ok::<_, OutsideMemory>(vectors)
            };
            let alone = alone();
            let together = buffer.fill(&mem, ranges.iter().copied());
            let len_bytes = together.as_ref().map_or(0, Vectors::len_bytes);
            let sum = ranges.iter().map(|range| range.len as usize).sum::<usize>();
            prop_assert!(together.is_err() || len_bytes == sum);
            let together = together.map(|it| it.vectors.iter().map(|vector| (vector.iov_base, vector.iov_len)).collect());
            prop_assert_eq!(together, alone);
        }

        #[test]
        fn moving_in_any_steps_reaches_every_byte_once(
            lens in prop::collection::vec(0u32..40, 1..20),
            steps in prop::collection::vec(1usize..50, 1..60),
        ) {
            let (mem, mut buffer) = (memory(), VectorBuffer::default());
            let mut address = 0;
            let ranges: Vec<_> = lens.iter().map(|&len| { address += 64; range(address, len) }).collect();
            let expected: Vec<u64> =
                ranges.iter().flat_map(|range| (0..u64::from(range.len)).map(|n| range.address + n)).collect();
            let base = mem.get_host_address(GuestAddress(0)).unwrap() as usize;
            let mut vectors = buffer.fill(&mem, ranges).unwrap();
            let mut seen = Vec::new();
            for step in steps {
                let mut left = step;
                for vector in vectors.vectors.iter() {
                    let take = left.min(vector.iov_len);
                    seen.extend((0..take).map(|n| (vector.iov_base as usize + n - base) as u64));
                    left -= take;
                }
                vectors.advance(step);
            }
            prop_assert_eq!(&seen[..], &expected[..seen.len()]);
            prop_assert_eq!(vectors.len_bytes(), expected.len() - seen.len());
        }
    }
}
