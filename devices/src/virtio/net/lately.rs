//! What received frames were like lately, so that the next ones cost what such frames cost.

use super::header::MAX_FRAME_BYTES;

/// How long frames were lately: the longest of the last few dozen.
pub(super) struct Lately {
    longest_bytes: usize,
    longest_before_bytes: usize,
    frames: u8,
}

impl Lately {
    /// After so many frames those before them are forgotten, one such lot later.
    const FRAMES: u8 = 64;

    /// Nothing is known: any frame may come.
    pub fn new() -> Self {
        Self { longest_bytes: 0, longest_before_bytes: MAX_FRAME_BYTES, frames: 0 }
    }

    pub fn longest_bytes(&self) -> usize {
        self.longest_bytes.max(self.longest_before_bytes)
    }

    pub fn came(&mut self, len_bytes: usize) {
        self.longest_bytes = self.longest_bytes.max(len_bytes);
        self.frames = self.frames.wrapping_add(1);
        if self.frames == Self::FRAMES {
            *self = Self { longest_bytes: 0, longest_before_bytes: self.longest_bytes, frames: 0 };
        }
    }
}

/// Whether frames come one at a time, so that to ask for another one is in vain: whoever waits for it hears of it.
#[derive(Default)]
pub(super) struct Alone {
    /// Rounds in a row that brought one frame, as far as it matters.
    rounds: u8,
    /// Rounds since the link was last asked for another one.
    unasked: u8,
}

impl Alone {
    /// So many rounds say that the next one is the same.
    const ROUNDS: u8 = 4;
    /// After so many the link is asked again: with two frames at once each of these rounds took a wait too many.
    const UNASKED: u8 = 63;

    /// The first frame of a round is there; whether that is all.
    pub fn is_all(&mut self) -> bool {
        if self.rounds < Self::ROUNDS || self.unasked >= Self::UNASKED {
            self.unasked = 0;
            return false;
        }
        self.unasked = self.unasked.wrapping_add(1);
        true
    }

    /// A round was over when the link had no more: how many frames it brought.
    pub fn was_all(&mut self, frames: u32) {
        match frames {
            0 => {}
            1 => self.rounds = self.rounds.wrapping_add(1).min(Self::ROUNDS),
            _ => self.rounds = 0,
        }
    }

    /// Another frame came behind the first one.
    pub fn was_not_all(&mut self) {
        self.rounds = 0;
    }
}
