//! The oracles that need two runs: two wirings, and a restored machine against one that was only paused.

use super::play::{Outcome, differ, play};
use super::{Pair, Program};
use crate::machine::vmm::Kind;
use crate::machine::wires::Wiring;

/// Runs `program` in both machines and compares what their guests saw.
pub fn compare(kind: Kind, program: &Program<'_>, pair: Pair) {
    let own = program.knobs.wiring();
    let (one, other) = match pair {
        Pair::Wirings => {
            (play(kind, program, Wiring::Kvm, false, None), play(kind, program, Wiring::Bhyve, false, None))
        }
        _ => (play(kind, program, own, true, None), play(kind, program, own, false, None)),
    };
    same(program, &one, &other);
}

fn same(program: &Program<'_>, one: &Outcome, other: &Outcome) {
    for (at, (a, b)) in one.trace.iter().zip(&other.trace).enumerate() {
        if a != b {
            differ("what their guests saw", at, program.ops().nth(at));
        }
    }
    if one.shown != other.shown {
        differ("what they put out", one.trace.len(), None);
    }
    if one.memory != other.memory {
        differ("guest memory", one.trace.len(), None);
    }
}
