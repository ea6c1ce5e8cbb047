//! The packed virtqueue alone.

use crate::program::{play, queue};

/// Judges one program.
pub fn run(data: &[u8]) {
    queue::play(true, data, &mut play::Mute);
}

/// What the program means and does, a line an operation.
#[must_use]
pub fn explain(data: &[u8]) -> String {
    queue::explain(true, data)
}
