//! The oracles that need two runs: two wirings, and a restored machine against one that was only paused.

use super::play::{Outcome, differ, play};
use super::{Pair, Program};
use crate::counters::uncounted;
use crate::machine::vmm::Kind;
use crate::machine::wires::Wiring;

/// Runs `program` in both machines and compares what their guests saw.
pub fn compare(kind: Kind, program: &Program<'_>, pair: Pair) {
    let own = program.knobs.wiring();
    let (first, second) = match pair {
        Pair::Wirings => (Wiring::Kvm, Wiring::Bhyve),
        _ => (own, own),
    };
    // The same code runs twice: counted twice, every program in two machines would look new to a fuzzer.
    let one = uncounted(|| play(kind, program, first, pair != Pair::Wirings, None));
    let other = play(kind, program, second, false, None);
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
