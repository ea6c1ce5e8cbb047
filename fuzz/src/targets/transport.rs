//! Registers: any device, programs of mostly register accesses, set-ups, resets and interrupts.

use crate::program::{explain, ops, play};

/// Judges one program.
pub fn run(data: &[u8]) {
    play::run_in(play::kind_of(data), data, ops::REGISTERS);
}

/// What the program means and does, a line an operation.
#[must_use]
pub fn explain(data: &[u8]) -> String {
    explain::explain_in(play::kind_of(data), data, ops::REGISTERS)
}
