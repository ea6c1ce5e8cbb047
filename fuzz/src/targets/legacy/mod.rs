//! Everything a PC had before PCI, behind its ports, at every width.
//!
//! Two machines run every program side by side; one of them is saved and restored where the program says so. Oracles: what
//! they show is the same at every step (restore equivalence); lines follow from what can be read; the main loop is never
//! called again for a moment that has passed; who waits for output or for room is woken; states stay small; and after any
//! program a reset gives devices that work (no wedge).

pub(crate) mod machine;
pub(crate) mod program;
pub(super) mod works;

use machine::Machine;
use program::{Program, Step};

use crate::stats;

/// Runs the input as a program of accesses and events.
///
/// # Panics
/// On a finding.
pub fn run(data: &[u8]) {
    let program = Program::read(data);
    stats::operations(program.steps.len());
    let mut machine = Machine::new(program.kind);
    // The other machine has nothing to say where nothing is restored.
    let restores = program.steps.iter().any(|step| matches!(step, Step::SaveAndRestore));
    let mut steady = restores.then(|| Machine::new(program.kind));
    for step in &program.steps {
        let seen = program::perform(step, &mut machine, true);
        machine.check();
        if let Some(steady) = &mut steady {
            assert_eq!(seen, program::perform(step, steady, false), "a restored machine shows else after {step:x?}");
            assert_eq!(machine.lines(), steady.lines(), "a restored machine has other lines after {step:x?}");
        }
    }
    machine.check_bounds();
    works::check(&mut machine);
}

/// The steps.
#[must_use]
pub fn explain(data: &[u8]) -> String {
    let program = Program::read(data);
    let steps = program.steps.iter().enumerate().map(|(number, step)| format!("{number:>4} {step:x?}\n"));
    format!("a machine of kind {:?}\n{}", program.kind, steps.collect::<String>())
}
