//! What a ring knows of its requests.

use std::collections::VecDeque;
use std::io;
use std::ops::{Index, IndexMut};

use crate::bounce::{self, Alignment, Bounce, CHUNK_BYTES};
use crate::engine::Op;
use crate::iovec::{self, VectorBuffer};

/// The requests that the kernel has or waits for something, and room for others.
#[derive(Debug)]
pub(super) struct Slots {
    all: Vec<Slot>,
    free: Vec<usize>,
}

impl Slots {
    pub(super) fn with_capacity(depth: usize) -> Self {
        Self { all: Vec::with_capacity(depth), free: Vec::with_capacity(depth) }
    }

    /// A slot for a request, and its number.
    #[inline(always)]
    pub(super) fn begin(&mut self, token: u64, op: Op, offset_bytes: u64) -> (usize, &mut Slot) {
        let number = self.free.pop().unwrap_or_else(|| {
            self.all.push(Slot::default());
            self.all.len() - 1
        });
        let slot = &mut self.all[number];
        (slot.token, slot.op, slot.offset_bytes, slot.first) = (token, op, offset_bytes, 0);
        (slot.retries, slot.cancelled, slot.whole_bytes, slot.apart) = (0, false, 0, false);
        slot.vectors.vectors.clear();
        (number, slot)
    }

    /// The request in this slot is over.
    #[inline]
    pub(super) fn end(&mut self, number: usize) {
        self.free.push(number);
    }

    /// The slot of this number, where there is one: it may be a number that the kernel was given for something else.
    #[inline]
    pub(super) fn get(&self, number: usize) -> Option<&Slot> {
        self.all.get(number)
    }

    pub(super) fn cancel_all(&mut self) {
        self.all.iter_mut().for_each(|slot| slot.cancelled = true);
    }
}

impl Index<usize> for Slots {
    type Output = Slot;

    fn index(&self, number: usize) -> &Slot {
        &self.all[number]
    }
}

impl IndexMut<usize> for Slots {
    fn index_mut(&mut self, number: usize) -> &mut Slot {
        &mut self.all[number]
    }
}

/// A request. Its lists keep their room for the next one.
#[derive(Debug, Default)]
pub(super) struct Slot {
    pub(super) token: u64,
    pub(super) op: Op,
    pub(super) offset_bytes: u64,
    pub(super) vectors: VectorBuffer,
    /// Vectors that are done.
    pub(super) first: usize,
    /// Bytes of the one call that is to do all of it, straight from or to guest memory; 0 for every other request.
    pub(super) whole_bytes: usize,
    /// Its calls are for the kernel's threads.
    pub(super) apart: bool,
    /// Calls in a row that have come to nothing.
    pub(super) retries: u8,
    /// To end as soon as the kernel is done with the call it has.
    pub(super) cancelled: bool,
    /// Bounce buffers it holds.
    pub(super) chunks: Vec<usize>,
    /// Where these are for the current call, which moves them in place of guest memory.
    pub(super) bounced: VectorBuffer,
}

/// For a disk that takes only aligned memory: bounce buffers, and who waits for one.
#[derive(Debug)]
pub(super) struct Bouncing {
    pub(super) alignment: Alignment,
    bounce: Bounce,
    pub(super) free: Vec<usize>,
    /// Requests that hold none yet, in their order.
    pub(super) waiting: VecDeque<usize>,
}

impl Bouncing {
    pub(super) fn new(alignment: Alignment, bounce_bytes: usize, depth: usize) -> io::Result<Self> {
        let bounce = Bounce::map(bounce_bytes.max(CHUNK_BYTES))?;
        // The last one given back is the next one out: what was used once is used again before other pages are taken.
        let free = (0..bounce.chunks()).rev().collect();
        Ok(Self { alignment, bounce, free, waiting: VecDeque::with_capacity(depth) })
    }

    /// Gives a request that holds none as many bounce buffers as it has use for and as are free; whether it has any now.
    pub(super) fn give_chunks(&mut self, slot: &mut Slot) -> bool {
        let wanted = slot.bytes_left().div_ceil(CHUNK_BYTES).min(self.free.len());
        slot.chunks.extend(self.free.drain(self.free.len() - wanted..));
        wanted > 0
    }

    /// Prepares the next call of a request that holds bounce buffers.
    pub(super) fn fill(&self, slot: &mut Slot) {
        let mut left = slot.bytes_left();
        slot.bounced.vectors.clear();
        for &chunk in &slot.chunks {
            let len = left.min(CHUNK_BYTES);
            if len == 0 {
                break;
            }
            slot.bounced.vectors.push(self.bounce.chunk(chunk, len));
            left -= len;
        }
        if matches!(slot.op, Op::Write { .. }) {
            bounce::copy(&slot.vectors.vectors[slot.first..], &slot.bounced.vectors, usize::MAX);
        }
    }
}

impl Slot {
    /// Whether a write is done only once what is written is on stable storage, which its own call does not see to: see
    /// [`Disk::tells_of_each_write`].
    pub(super) fn ends_with_a_sync(&self, tells_of_each_write: bool) -> bool {
        self.op == Op::Write { durable: true } && !tells_of_each_write
    }

    pub(super) fn bytes_left(&self) -> usize {
        self.vectors.vectors[self.first..].iter().map(|vector| vector.iov_len).sum()
    }

    /// Whether a call that came to `result` has done all there was to do.
    #[inline]
    pub(super) fn is_done_by(&self, result: i32) -> bool {
        result > 0 && result as usize == self.whole_bytes
    }

    /// What the next call moves.
    #[inline]
    pub(super) fn vectors(&self) -> &[libc::iovec] {
        if self.chunks.is_empty() { &self.vectors.vectors[self.first..] } else { &self.bounced.vectors }
    }

    /// How many of them it takes.
    #[inline]
    pub(super) fn vectors_of_a_call(&self) -> usize {
        let vectors = self.vectors();
        match self.whole_bytes {
            bytes @ 1.. if iovec::is_one_call(vectors.len(), bytes) => vectors.len(),
            _ => iovec::vectors_of_a_call(vectors) as usize,
        }
    }

    /// Takes note of what a call has moved.
    pub(super) fn advance(&mut self, moved: usize) {
        if matches!(self.op, Op::Read) && !self.chunks.is_empty() {
            bounce::copy(&self.bounced.vectors, &self.vectors.vectors[self.first..], moved);
        }
        (self.retries, self.whole_bytes) = (0, 0);
        self.offset_bytes += moved as u64;
        self.first += iovec::take_off(&mut self.vectors.vectors[self.first..], moved);
    }
}
