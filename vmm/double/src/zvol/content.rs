//! What a volume holds: on stable storage, which is a file, and in the write cache on top of it.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

/// What a crash loses or keeps as a whole.
const BLOCK_BYTES: u64 = 512;

type Block = [u8; BLOCK_BYTES as usize];

/// Stable storage and the cache.
pub(super) struct Content {
    stable: File,
    cached: BTreeMap<u64, Box<Block>>,
}

impl Content {
    pub(super) fn new(stable: File) -> Self {
        Self { stable, cached: BTreeMap::new() }
    }

    fn block(&self, number: u64) -> io::Result<Block> {
        if let Some(block) = self.cached.get(&number) {
            return Ok(**block);
        }
        let mut block = [0; BLOCK_BYTES as usize];
        let mut done = 0;
        // A file that ends before its volume has a hole there.
        while done < block.len() {
            match self.stable.read_at(&mut block[done..], number * BLOCK_BYTES + done as u64)? {
                0 => break,
                count => done += count,
            }
        }
        Ok(block)
    }

    /// Fills the buffer, whatever lies in the cache and whatever on stable storage.
    pub(super) fn read(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        pieces(buffer.len(), offset, |number, within, range| {
            buffer[range].copy_from_slice(&self.block(number)?[within]);
            Ok(())
        })
    }

    /// Writes into the cache, or to stable storage.
    pub(super) fn write(&mut self, bytes: &[u8], offset: u64, stably: bool) -> io::Result<()> {
        pieces(bytes.len(), offset, |number, within, range| {
            let mut block = self.block(number)?;
            block[within].copy_from_slice(&bytes[range]);
            if stably {
                self.cached.remove(&number);
                self.stable.write_all_at(&block, number * BLOCK_BYTES)
            } else {
                self.cached.insert(number, Box::new(block));
                Ok(())
            }
        })
    }

    /// Whether a crash would lose something.
    pub(super) fn is_dirty(&self) -> bool {
        !self.cached.is_empty()
    }

    /// Puts the cache on stable storage.
    pub(super) fn commit(&mut self) -> io::Result<()> {
        while let Some((number, block)) = self.cached.first_key_value() {
            self.stable.write_all_at(&**block, number * BLOCK_BYTES)?;
            self.cached.pop_first();
        }
        Ok(())
    }

    /// Loses the cache, but for the blocks that had just been written back; says how many were lost.
    pub(super) fn crash(&mut self, mut had_been_written: impl FnMut(u64) -> bool) -> io::Result<usize> {
        let cached = std::mem::take(&mut self.cached);
        let mut lost = 0;
        for (number, block) in cached {
            match had_been_written(number) {
                true => self.stable.write_all_at(&*block, number * BLOCK_BYTES)?,
                false => lost += 1,
            }
        }
        Ok(lost)
    }
}

/// Cuts `len` bytes at `offset` into pieces of one block each: its number, the bytes inside it, and those of the whole.
fn pieces(
    len: usize,
    offset: u64,
    mut each: impl FnMut(u64, std::ops::Range<usize>, std::ops::Range<usize>) -> io::Result<()>,
) -> io::Result<()> {
    let mut done = 0;
    while done < len {
        let at = offset + done as u64;
        let start = (at % BLOCK_BYTES) as usize;
        let count = (BLOCK_BYTES as usize - start).min(len - done);
        each(at / BLOCK_BYTES, start..start + count, done..done + count)?;
        done += count;
    }
    Ok(())
}
