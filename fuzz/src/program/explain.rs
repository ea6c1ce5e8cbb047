//! A program as text, with what happens when it runs.

use std::cell::RefCell;
use std::fmt::Write;
use std::panic::{AssertUnwindSafe, catch_unwind};

use super::ops::{Code, REQUESTS};
use super::{Pair, Program, play};
use crate::machine::vmm::Kind;
use crate::machine::wires::Wiring;

/// Runs the program up to its finding, if it has one, and says what each operation did.
#[must_use]
pub fn explain(kind: Kind, data: &[u8]) -> String {
    explain_in(kind, data, REQUESTS)
}

/// As [`explain`], with another table of codes.
#[must_use]
pub fn explain_in(kind: Kind, data: &[u8], table: &'static [Code]) -> String {
    let program = Program::new(data, table);
    let knobs = program.knobs;
    let text = RefCell::new(String::new());
    let (pair, wiring) = (knobs.pair(), knobs.wiring());
    let _ = writeln!(text.borrow_mut(), "{kind:?}, {:?}", knobs.shape(kind));
    let _ = writeln!(text.borrow_mut(), "driver: {:?}", knobs.setup());
    let _ = writeln!(
        text.borrow_mut(),
        "workers run by themselves: {}, disk holds, cancels slowly: {:?}, second fetches: {:x?}, oracle: {pair:?}",
        knobs.auto(),
        knobs.hold(),
        knobs.flip()
    );
    let runs = match pair {
        Pair::Single => vec![(wiring, false)],
        Pair::Wirings => vec![(Wiring::Kvm, false), (Wiring::Bhyve, false)],
        Pair::Restore => vec![(wiring, true), (wiring, false)],
    };
    for (wiring, save_is_pause) in runs {
        let _ = writeln!(text.borrow_mut(), "wired as {wiring:?}, saving is pausing: {save_is_pause}");
        let mut number = 0;
        let mut each = |op: &super::ops::Op, note: Option<&str>| match note {
            None => {
                let _ = write!(text.borrow_mut(), "{number:3}: {:?} ", op.code);
                number += 1;
            }
            Some(note) => {
                let _ = writeln!(text.borrow_mut(), "{note}");
            }
        };
        let played =
            catch_unwind(AssertUnwindSafe(|| play::play(kind, &program, wiring, save_is_pause, Some(&mut each))));
        if let Err(panic) = played {
            let _ = writeln!(text.borrow_mut());
            let why = panic.downcast_ref::<String>().cloned();
            let why = why.or_else(|| panic.downcast_ref::<&str>().map(|why| (*why).to_owned()));
            let _ = writeln!(text.borrow_mut(), "\nfinding: {}", why.unwrap_or_default());
            break;
        }
    }
    if pair != Pair::Single
        && let Err(panic) = catch_unwind(|| play::run_in(kind, data, table))
        && let Some(why) = panic.downcast_ref::<String>()
    {
        let _ = writeln!(text.borrow_mut(), "finding: {why}");
    }
    text.into_inner()
}
