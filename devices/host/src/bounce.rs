//! Bounce buffers: a disk that goes around the page cache takes memory at its own alignment only, and a guest's buffers
//! lie where the guest likes.

use std::io;
use std::ops::Range;

use vm_memory::MmapRegion;

use crate::iovec::Vectors;

/// The most direct I/O may ask for: what every bounce buffer, every mapping of guest memory and the static zeroes have.
pub const MAX_ALIGNMENT_BYTES: u32 = 4096;

/// Bytes of a piece of a [`Bounce`] that is given out as a whole.
#[allow(dead_code, reason = "only io_uring shares its buffers out, which not every system has")]
pub(crate) const CHUNK_BYTES: usize = 64 << 10;

/// What direct I/O asks of a request. Powers of two, 1 to [`MAX_ALIGNMENT_BYTES`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Alignment {
    /// What every address in memory is a multiple of, in bytes.
    pub memory_bytes: u32,
    /// What every offset on the disk and every length is a multiple of, in bytes.
    pub offset_bytes: u32,
}

impl Alignment {
    /// Whether all of this memory can be given to the disk as it is. Each piece counts, not only their sum: Linux before
    /// 6.18 refuses a list with a piece that is no multiple of the block.
    pub(crate) fn is_met_by(self, vectors: &[libc::iovec]) -> bool {
        let (memory, length) = (self.memory_bytes as usize, self.offset_bytes as usize);
        let is_met = |vector: &libc::iovec| {
            vector.iov_base.addr().is_multiple_of(memory) && vector.iov_len.is_multiple_of(length)
        };
        vectors.iter().all(is_met)
    }

    /// Whether a transfer that ended after so many bytes can be gone on with: the rest of it is aligned, too.
    pub(crate) fn is_met_after(self, moved_bytes: usize) -> bool {
        moved_bytes.is_multiple_of(self.memory_bytes.max(self.offset_bytes) as usize)
    }
}

/// Page-aligned memory that is not the guest's. Its pages are taken when they are first used, and kept.
#[derive(Debug)]
pub(crate) struct Bounce(MmapRegion<()>);

impl Bounce {
    /// Maps at least `len_bytes`, and at least a page.
    ///
    /// # Errors
    /// What mmap(2) says.
    pub(crate) fn map(len_bytes: usize) -> io::Result<Self> {
        let page = MAX_ALIGNMENT_BYTES as usize;
        MmapRegion::new(len_bytes.max(1).next_multiple_of(page)).map(Self).map_err(io::Error::other)
    }

    /// Shares all of it out in `count` equal parts of whole pages: where number `index` lies.
    pub(crate) fn part(&self, index: usize, count: usize) -> Range<usize> {
        let page = MAX_ALIGNMENT_BYTES as usize;
        let len = self.0.size() / count.max(1) / page * page;
        index * len..(index + 1) * len
    }

    /// Chunks of [`CHUNK_BYTES`] it has.
    #[allow(dead_code, reason = "only io_uring shares its buffers out, which not every system has")]
    pub(crate) fn chunks(&self) -> usize {
        self.0.size() / CHUNK_BYTES
    }

    /// The first `len` bytes of the chunk with this number, for a system call.
    ///
    /// # Panics
    /// When there is no such chunk.
    #[allow(dead_code, reason = "only io_uring shares its buffers out, which not every system has")]
    pub(crate) fn chunk(&self, number: usize, len: usize) -> libc::iovec {
        assert!(number < self.chunks() && len <= CHUNK_BYTES);
        let start = number * CHUNK_BYTES;
        self.vector(start..start + len)
    }

    fn vector(&self, range: Range<usize>) -> libc::iovec {
        assert!(range.start <= range.end && range.end <= self.0.size());
        libc::iovec { iov_base: self.0.as_ptr().wrapping_add(range.start).cast(), iov_len: range.len() }
    }
}

/// A part of a [`Bounce`] that one thread has for itself.
#[derive(Debug)]
pub(crate) struct Room<'a> {
    bounce: &'a Bounce,
    range: Range<usize>,
}

impl<'a> Room<'a> {
    /// The part number `index` of `count`. The caller gives out each part once.
    pub(crate) fn new(bounce: &'a Bounce, index: usize, count: usize) -> Self {
        Self { bounce, range: bounce.part(index, count) }
    }

    fn piece(&self, len: usize) -> libc::iovec {
        self.bounce.vector(self.range.start..self.range.start + len)
    }

    /// Does a request by way of this room, in as many pieces as it takes: `step` gets each piece and where it lies
    /// on the disk. `go_on` is asked between them. Where `to_guest`, what a step has left in the room goes to guest
    /// memory, else guest memory goes to the room before the step.
    ///
    /// # Errors
    /// A step's; `Interrupted` where `go_on` said no.
    pub(crate) fn carry(
        &mut self,
        mut vectors: Vectors<'_>,
        mut offset_bytes: u64,
        to_guest: bool,
        go_on: &dyn Fn() -> bool,
        mut step: impl FnMut(Vectors<'_>, u64) -> io::Result<()>,
    ) -> io::Result<()> {
        while vectors.len_bytes() > 0 {
            if !go_on() {
                return Err(io::ErrorKind::Interrupted.into());
            }
            let len = vectors.len_bytes().min(self.range.len());
            let piece = [self.piece(len)];
            if !to_guest {
                copy(vectors.as_slice(), &piece, len);
            }
            step(Vectors::of_buffer(&mut piece.clone(), len), offset_bytes)?;
            if to_guest {
                copy(&piece, vectors.as_slice(), len);
            }
            vectors.advance(len);
            offset_bytes += len as u64;
        }
        Ok(())
    }
}

impl Room<'_> {
    /// As [`carry`](Self::carry), for a step that takes bytes.
    ///
    /// # Errors
    /// As [`carry`](Self::carry).
    pub(crate) fn carry_bytes(
        &mut self,
        vectors: Vectors<'_>,
        offset_bytes: u64,
        to_guest: bool,
        go_on: &dyn Fn() -> bool,
        mut step: impl FnMut(&mut [u8], u64) -> io::Result<()>,
    ) -> io::Result<()> {
        self.carry(vectors, offset_bytes, to_guest, go_on, |piece, at| match piece.as_slice() {
            // SAFETY: a piece of this room, which is mapped, and which nobody else has.
            [piece] => step(unsafe { std::slice::from_raw_parts_mut(piece.iov_base.cast(), piece.iov_len) }, at),
            _ => Err(io::ErrorKind::InvalidInput.into()),
        })
    }

    /// Zeroes: as many bytes as there is room for, and not more than `most`.
    pub(crate) fn zeroes(&mut self, most: usize) -> &[u8] {
        let piece = self.piece(self.range.len().min(most));
        // SAFETY: as above.
        let bytes = unsafe { std::slice::from_raw_parts_mut(piece.iov_base.cast::<u8>(), piece.iov_len) };
        bytes.fill(0);
        bytes
    }
}

/// Copies up to `len` bytes from one list of memory to another, in order.
///
/// Both are lists of mapped memory of which nobody holds a reference, one of guest memory and one of bounce buffers: they
/// do not overlap.
pub(crate) fn copy(from: &[libc::iovec], to: &[libc::iovec], len: usize) {
    let (mut from, mut to) = (from.iter().copied(), to.iter().copied());
    let empty = libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 };
    let (mut source, mut target, mut left) = (empty, empty, len);
    while left > 0 {
        if source.iov_len == 0 {
            let Some(next) = from.next() else { return };
            source = next;
            continue;
        }
        if target.iov_len == 0 {
            let Some(next) = to.next() else { return };
            target = next;
            continue;
        }
        let count = left.min(source.iov_len).min(target.iov_len);
        // SAFETY: both pieces are mapped for `count` bytes, and guest memory and bounce buffers are different mappings.
        // The guest may write to its own at the same time: then it gets a mixture, which is its own doing.
        unsafe {
            std::ptr::copy_nonoverlapping(source.iov_base.cast::<u8>(), target.iov_base.cast::<u8>(), count);
        }
        for vector in [&mut source, &mut target] {
            vector.iov_base = vector.iov_base.wrapping_byte_add(count);
            vector.iov_len -= count;
        }
        left -= count;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vector(bytes: &mut [u8]) -> libc::iovec {
        libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: bytes.len() }
    }

    #[test]
    fn every_piece_must_be_aligned_and_not_only_their_sum() {
        let alignment = Alignment { memory_bytes: 4, offset_bytes: 512 };
        let at =
            |address: usize, len| libc::iovec { iov_base: std::ptr::without_provenance_mut(address), iov_len: len };
        assert!(alignment.is_met_by(&[at(0x1004, 512), at(0x2000, 1024)]));
        assert!(!alignment.is_met_by(&[at(0x1002, 512)]));
        assert!(!alignment.is_met_by(&[at(0x1000, 256), at(0x2000, 256)]));
        assert!(alignment.is_met_after(512) && !alignment.is_met_after(100));
        assert!(!Alignment { memory_bytes: 4096, offset_bytes: 512 }.is_met_after(512));
    }

    #[test]
    fn copying_ends_with_the_length_or_the_shorter_list() {
        let (mut left, mut right) = (*b"abcdefgh", [b'.'; 8]);
        let (head, tail) = left.split_at_mut(3);
        let from = [vector(head), vector(&mut []), vector(tail)];
        let (first, second) = right.split_at_mut(5);
        let to = [vector(first), vector(second)];
        copy(&from, &to, 6);
        assert_eq!(&right, b"abcdef..");
        let (first, second) = right.split_at_mut(5);
        copy(&from, &[vector(second), vector(first)][..1], 8);
        assert_eq!(&right, b"abcdeabc");
    }

    #[test]
    fn parts_and_chunks_are_aligned_and_apart() {
        let bounce = Bounce::map((1 << 20) + 1).unwrap();
        let page = MAX_ALIGNMENT_BYTES as usize;
        assert_eq!(bounce.chunks(), 16);
        let mut end = 0;
        for index in 0..5 {
            let part = bounce.part(index, 5);
            assert!(part.start == end && part.start.is_multiple_of(page) && !part.is_empty());
            end = part.end;
        }
        assert!(end <= bounce.0.size());
        assert!((0..16).all(|n| bounce.chunk(n, 512).iov_base.addr().is_multiple_of(page)));
    }
}
