//! Saved states from anywhere: the state of a device that has lived a while, with some of its values replaced, is restored.
//!
//! Oracles: a state is refused and nothing has changed, or it is taken and what is then saved is taken again as the same; no
//! access panics after it; and a reset gives a device that works (no wedge).

mod device;
mod mutation;
mod queue;
mod tree;

use std::fmt::Write as _;

use arbitrary::Unstructured;

use mutation::Mutation;

use super::{legacy, pci_config};
use crate::stats;

/// What a device lives through, half of it before its state is restored: longer lives find no more.
const MAX_STEPS: usize = 16;

/// Devices of the legacy machine, then functions on the bus, then queues.
const KINDS: u8 = 12;

struct Input<'a> {
    kind: u8,
    mutations: Vec<Mutation>,
    /// What the device lives through, before and after.
    life: &'a [u8],
}

impl<'a> Input<'a> {
    fn read(data: &'a [u8]) -> Self {
        let mut input = Unstructured::new(data);
        let [kind, count]: [u8; 2] = input.arbitrary().unwrap_or_default();
        let mutations = (0..1 + count % 6).map_while(|_| Mutation::read(&mut input).ok()).collect();
        Self { kind: kind % KINDS, mutations, life: input.take_rest() }
    }
}

/// Restores what the input makes of a state.
///
/// # Panics
/// On a finding.
pub fn run(data: &[u8]) {
    let input = Input::read(data);
    match input.kind {
        0..=6 => on_legacy(&input),
        7..=10 => on_bus(&input),
        _ => queue::run(&input.mutations, input.life),
    }
}

fn on_legacy(input: &Input) {
    let mut program = legacy::program::Program::read(input.life);
    program.steps.truncate(MAX_STEPS);
    stats::operations(program.steps.len() + input.mutations.len());
    let mut machine = legacy::machine::Machine::new(program.kind);
    let (before, after) = program.steps.split_at(program.steps.len() / 2);
    for step in before {
        legacy::program::perform(step, &mut machine, false);
    }
    device::hostile_legacy(&mut machine, input.kind, &input.mutations);
    for step in after {
        legacy::program::perform(step, &mut machine, true);
        machine.check();
    }
    machine.check_bounds();
    legacy::works::check(&mut machine);
}

fn on_bus(input: &Input) {
    let mut program = pci_config::program::Program::read(input.life);
    program.steps.truncate(MAX_STEPS);
    stats::operations(program.steps.len() + input.mutations.len());
    let mut machine = pci_config::machine::Machine::new(program.profile);
    let mut model = pci_config::model::Model::of(&mut machine);
    let (before, after) = program.steps.split_at(program.steps.len() / 2);
    for step in before {
        pci_config::program::perform(step, &mut machine, &mut model);
    }
    let restored = device::hostile_bus(&mut machine, input.kind, &input.mutations);
    device::touch(&mut machine, restored);
    machine.reset();
    machine.forget_sent();
    let mut model = pci_config::model::Model::of(&mut machine);
    for step in after {
        pci_config::program::perform(step, &mut machine, &mut model);
    }
    model.check_everything(&mut machine);
}

/// The state, the changes, the programs around them.
#[must_use]
pub fn explain(data: &[u8]) -> String {
    let input = Input::read(data);
    let mut text = format!("the state of {}\n", device::name(input.kind));
    for mutation in &input.mutations {
        let _ = writeln!(text, "  with {mutation:x?}");
    }
    let around = match input.kind {
        0..=6 => legacy::explain(input.life),
        7..=10 => pci_config::explain(input.life),
        _ => queue::explain(&input.mutations, input.life),
    };
    text + "restored in the middle of (on the bus, before a reset):\n" + &around
}
