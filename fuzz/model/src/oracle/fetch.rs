//! Double fetches: within one pop and the look at the request that follows it, every byte of an available entry, a
//! descriptor or a request's header is the guest's to change between two reads. So a second read is answered with
//! something else; the models go by the first answer, and whoever acts on the second one disagrees with them.

/// Ranges remembered a pop.
const MAX: usize = 96;
/// Longer accesses move payload and may happen once more (a frame that is offered again).
const MAX_WORD: usize = crate::ram::MAX_ALTERED;

/// What was read since the last pop began.
#[derive(Debug, Default)]
pub struct Fetches {
    /// What second answers are altered with; nothing: the guest holds still.
    flip: Option<u8>,
    seen: Vec<(u64, u32)>,
    /// This pop's bytes are not altered.
    still: bool,
    /// Reads that polls repeat by right: ring indices, flags, event words.
    polled: bool,
    /// Answers altered so far.
    altered: u32,
    last: u64,
}

impl Fetches {
    /// A guest that holds still.
    pub fn reset(&mut self) {
        self.flip = None;
        self.seen.clear();
        self.altered = 0;
    }

    /// From now on second answers are altered with `flip`.
    pub fn change_with(&mut self, flip: Option<u8>) {
        self.flip = flip.filter(|flip| *flip != 0);
    }

    /// A pop begins, or a worker's step: words may be read once more.
    pub fn begin(&mut self) {
        self.seen.clear();
        self.still = false;
    }

    /// What lies there now is new: it may be read once.
    pub fn renewed(&mut self, addr: u64, len: u64) {
        self.seen.retain(|&(at, size)| at >= addr + len || addr >= at + u64::from(size));
    }

    /// Second reads are in order until the next pop.
    pub(super) fn hold_still(&mut self) {
        self.still = true;
    }

    /// This access is one of those that are repeated by right.
    pub(super) fn poll(&mut self) {
        self.polled = true;
    }

    /// Counts a read that was seen before it was clear that it belongs to a pop.
    pub(super) fn remember(&mut self, addr: u64, len: usize) {
        if self.seen.len() < MAX {
            self.seen.push((addr, len as u32));
        }
    }

    /// Counts a read, and says what its answer is altered with, if it was read before.
    #[inline]
    pub(super) fn again(&mut self, addr: u64, len: usize) -> Option<u8> {
        let polled = std::mem::take(&mut self.polled);
        let flip = self.flip?;
        // A descriptor at an odd address is asked for as a whole first, in vain, and then byte by byte.
        if polled || self.still || len > MAX_WORD || len == 0 || (len == 16 && !addr.is_multiple_of(8)) {
            return None;
        }
        let end = addr + len as u64;
        if self.seen.iter().any(|&(at, size)| at < end && addr < at + u64::from(size)) {
            self.altered += 1;
            self.last = addr;
            return Some(flip);
        }
        self.remember(addr, len);
        None
    }

    /// What a finding adds where second answers were altered.
    #[must_use]
    pub fn note(&self) -> String {
        match self.altered {
            0 => String::new(),
            count => format!(" ({count} second fetches were answered differently, the last one at {:#x})", self.last),
        }
    }

    /// Second reads so far.
    #[must_use]
    pub fn altered(&self) -> u32 {
        self.altered
    }
}
