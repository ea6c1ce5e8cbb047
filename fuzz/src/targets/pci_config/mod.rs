//! Configuration space, BARs and MSI-X of a whole bus, against a model that knows nothing of how they are built.
//!
//! Oracles, each after every step: configuration space reads as the model says, through the ports and the enhanced window
//! alike (read-only bits never change); each BAR answers where its registers say and nowhere else, and no two at one
//! address; every MSI-X message and interrupt arrives once, or is pending; the INTx line has the level that follows from
//! the registers. A saved and restored bus goes on under the same model, so nothing may get lost on the way.

pub(crate) mod machine;
pub(super) mod model;
pub(crate) mod program;

use machine::Machine;
use model::Model;
use program::Program;

use crate::stats;

/// Runs the input as a program of accesses.
///
/// # Panics
/// On a finding.
pub fn run(data: &[u8]) {
    let program = Program::read(data);
    stats::operations(program.steps.len());
    let mut machine = Machine::new(program.profile);
    let mut model = Model::of(&mut machine);
    for step in &program.steps {
        program::perform(step, &mut machine, &mut model);
    }
    model.check_everything(&mut machine);
}

/// The steps.
#[must_use]
pub fn explain(data: &[u8]) -> String {
    let program = Program::read(data);
    let steps = program.steps.iter().enumerate().map(|(number, step)| format!("{number:>4} {step:x?}\n"));
    format!("a machine of profile {:?}\n{}", program.profile, steps.collect::<String>())
}
