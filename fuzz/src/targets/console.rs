//! A machine with a console.

use crate::machine::vmm::Kind;
use crate::program::{explain, play};

/// Judges one program.
pub fn run(data: &[u8]) {
    play::run(Kind::Console, data);
}

/// What the program means and does, a line an operation.
#[must_use]
pub fn explain(data: &[u8]) -> String {
    explain::explain(Kind::Console, data)
}
