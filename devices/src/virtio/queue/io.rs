//! Request code's view of a chain: a stream to read from and a stream to write to.

use vm_memory::{Bytes, GuestAddress, GuestMemory};

use super::chain::{Chain, GuestRange};
use super::mem::{load_pair, slice};

/// Why a chain could not be read or written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ChainError {
    /// Fewer bytes are left than asked for. Nothing was copied.
    #[error("{wanted} bytes were needed where the chain has {left}")]
    Short {
        /// Bytes asked for.
        wanted: u64,
        /// Bytes left.
        left: u64,
    },
    /// Guest memory refused an access it had accepted when the chain was popped.
    #[error("guest memory at {addr:#x} is gone")]
    Memory {
        /// Guest address of the access.
        addr: u64,
    },
}

/// A position in a list of ranges, with an end.
#[derive(Clone, Debug)]
struct Cursor<'c> {
    ranges: &'c [GuestRange],
    /// Bytes of the first range already consumed.
    skip: u32,
    left: u64,
}

impl<'c> Cursor<'c> {
    /// Consumes up to `max` bytes of the current range.
    fn take(&mut self, max: u64) -> Option<GuestRange> {
        loop {
            let max = max.min(self.left);
            let (first, rest) = self.ranges.split_first()?;
            if max == 0 {
                return None;
            }
            let here = first.len.saturating_sub(self.skip);
            let len = u32::try_from(max).unwrap_or(u32::MAX).min(here);
            let piece = GuestRange { addr: first.addr.wrapping_add(u64::from(self.skip)), len };
            self.left = self.left.saturating_sub(u64::from(len));
            if len == here {
                self.ranges = rest;
                self.skip = 0;
            } else {
                self.skip = self.skip.saturating_add(len);
            }
            if len > 0 {
                return Some(piece);
            }
        }
    }

    /// Consumes `len` bytes where they lie in one range: the usual case, without a loop.
    #[inline]
    fn take_whole(&mut self, len: u32) -> Option<GuestRange> {
        let (first, rest) = self.ranges.split_first()?;
        let end = self.skip.checked_add(len).filter(|end| *end <= first.len)?;
        let left = self.left.checked_sub(u64::from(len))?;
        let piece = GuestRange { addr: first.addr.wrapping_add(u64::from(self.skip)), len };
        (self.ranges, self.skip) = if end == first.len { (rest, 0) } else { (self.ranges, end) };
        self.left = left;
        Some(piece)
    }

    /// Consumes `wanted` bytes piece by piece; all or, where they are not there, none.
    fn take_exact(
        &mut self,
        wanted: u64,
        mut each: impl FnMut(GuestRange) -> Result<(), ChainError>,
    ) -> Result<(), ChainError> {
        if wanted > self.left {
            return Err(ChainError::Short { wanted, left: self.left });
        }
        let mut rest = wanted;
        while let Some(piece) = self.take(rest) {
            rest = rest.saturating_sub(u64::from(piece.len));
            each(piece)?;
        }
        Ok(())
    }

    /// Cuts at `at` bytes from here: the part before and the part from there on.
    fn split_at(mut self, at: u64) -> Result<(Self, Self), ChainError> {
        let before = Self { left: at.min(self.left), ..self.clone() };
        if u32::try_from(at).ok().and_then(|len| self.take_whole(len)).is_none() {
            self.take_exact(at, |_| Ok(()))?;
        }
        Ok((before, self))
    }

    fn append_to(mut self, out: &mut Vec<GuestRange>) {
        while let Some(piece) = self.take(u64::MAX) {
            out.push(piece);
        }
    }
}

macro_rules! stream {
    ($name:ident) => {
        impl<M: ?Sized> Clone for $name<'_, M> {
            fn clone(&self) -> Self {
                Self { mem: self.mem, cursor: self.cursor.clone() }
            }
        }

        impl<'c, M: GuestMemory + ?Sized> $name<'c, M> {
            /// Bytes left.
            pub fn remaining(&self) -> u64 {
                self.cursor.left
            }

            /// Cuts the stream at `at` bytes from here: the part before and the part from there on.
            pub fn split_at(self, at: u64) -> Result<(Self, Self), ChainError> {
                let (before, after) = self.cursor.split_at(at)?;
                Ok((Self { mem: self.mem, cursor: before }, Self { mem: self.mem, cursor: after }))
            }

            /// The first `bytes` bytes of what is left, or all of it where it is less.
            #[must_use]
            pub fn first(mut self, bytes: u64) -> Self {
                self.cursor.left = self.cursor.left.min(bytes);
                self
            }

            /// Passes over `bytes` bytes.
            pub fn skip(&mut self, bytes: u64) -> Result<(), ChainError> {
                self.cursor.take_exact(bytes, |_| Ok(()))
            }

            /// Appends the guest ranges of what is left, for an engine that moves the data itself.
            pub fn append_ranges(&self, out: &mut Vec<GuestRange>) {
                self.cursor.clone().append_to(out);
            }
        }
    };
}

/// The device-readable part of a chain as a stream of bytes.
#[derive(Debug)]
pub struct Reader<'c, M: ?Sized> {
    mem: &'c M,
    cursor: Cursor<'c>,
}

/// The device-writable part of a chain as a stream of bytes.
#[derive(Debug)]
pub struct Writer<'c, M: ?Sized> {
    mem: &'c M,
    cursor: Cursor<'c>,
}

stream!(Reader);
stream!(Writer);

impl<M: GuestMemory + ?Sized> Reader<'_, M> {
    /// Copies out exactly `buf.len()` bytes.
    #[inline]
    pub fn read(&mut self, buf: &mut [u8]) -> Result<(), ChainError> {
        // What headers are: in one range, and that in one region.
        if let Some(GuestRange { addr, len }) =
            u32::try_from(buf.len()).ok().and_then(|len| self.cursor.take_whole(len))
        {
            return match slice(self.mem, addr, len as usize) {
                Some(slice) => {
                    slice.copy_to(buf);
                    Ok(())
                }
                None => self.mem.read_slice(buf, GuestAddress(addr)).map_err(|_| ChainError::Memory { addr }),
            };
        }
        self.read_pieces(buf)
    }

    fn read_pieces(&mut self, buf: &mut [u8]) -> Result<(), ChainError> {
        let (mem, mut rest) = (self.mem, buf);
        let wanted = rest.len() as u64;
        self.cursor.take_exact(wanted, |piece| {
            let (here, after) = std::mem::take(&mut rest)
                .split_at_mut_checked(piece.len as usize)
                .ok_or(ChainError::Short { wanted, left: 0 })?;
            rest = after;
            mem.read_slice(here, GuestAddress(piece.addr)).map_err(|_| ChainError::Memory { addr: piece.addr })
        })
    }

    /// Copies out sixteen bytes, as two little-endian words.
    #[inline]
    pub fn read_pair(&mut self) -> Result<[u64; 2], ChainError> {
        if let Some(GuestRange { addr, .. }) = self.cursor.take_whole(16) {
            return load_pair(self.mem, addr).map_err(|_| ChainError::Memory { addr });
        }
        let both = u128::from_le_bytes(self.read_array()?);
        Ok([both as u64, (both >> 64) as u64])
    }

    /// Copies out `N` bytes.
    pub fn read_array<const N: usize>(&mut self) -> Result<[u8; N], ChainError> {
        let mut bytes = [0; N];
        self.read(&mut bytes)?;
        Ok(bytes)
    }
}

impl<M: GuestMemory + ?Sized> Writer<'_, M> {
    /// Copies in all of `buf`.
    #[inline]
    pub fn write(&mut self, buf: &[u8]) -> Result<(), ChainError> {
        if let Some(GuestRange { addr, len }) =
            u32::try_from(buf.len()).ok().and_then(|len| self.cursor.take_whole(len))
        {
            return match slice(self.mem, addr, len as usize) {
                Some(slice) => {
                    slice.copy_from(buf);
                    Ok(())
                }
                None => self.mem.write_slice(buf, GuestAddress(addr)).map_err(|_| ChainError::Memory { addr }),
            };
        }
        self.write_pieces(buf)
    }

    fn write_pieces(&mut self, buf: &[u8]) -> Result<(), ChainError> {
        let (mem, mut rest) = (self.mem, buf);
        let wanted = rest.len() as u64;
        self.cursor.take_exact(wanted, |piece| {
            let (here, after) =
                rest.split_at_checked(piece.len as usize).ok_or(ChainError::Short { wanted, left: 0 })?;
            rest = after;
            mem.write_slice(here, GuestAddress(piece.addr)).map_err(|_| ChainError::Memory { addr: piece.addr })
        })
    }
}

impl Chain {
    /// The device-readable part as a stream over `mem`, the memory the chain was popped from.
    pub fn reader<'c, M: GuestMemory + ?Sized>(&'c self, mem: &'c M) -> Reader<'c, M> {
        Reader { mem, cursor: Cursor { ranges: self.readable(), skip: 0, left: self.readable_bytes() } }
    }

    /// The device-writable part as a stream over `mem`, the memory the chain was popped from.
    pub fn writer<'c, M: GuestMemory + ?Sized>(&'c self, mem: &'c M) -> Writer<'c, M> {
        Writer { mem, cursor: Cursor { ranges: self.writable(), skip: 0, left: self.writable_bytes() } }
    }
}
