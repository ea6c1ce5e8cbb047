//! Enumeration and what else drivers did to configuration space.

use std::collections::BTreeMap;

use super::{Access, Event, Piece};
use crate::targets::pci_config::machine::{Profile, SHAPES, windows};
use crate::targets::pci_config::program::{MAX_STEPS, Program, Step, Way};
use devices::virtio::pci::MSIX_BAR;

/// Where nobody is in any machine.
const NOBODY: u8 = 31 << 3;
/// The bridges of the default machine: host, ISA, power management.
const BRIDGES: [u8; 3] = [0, 1 << 3, 1 << 3 | 3];

/// All pieces of a record.
pub fn pieces(events: &[Event]) -> Vec<Piece> {
    let mut functions = Functions::default();
    let mut steps: Vec<Step> = Vec::new();
    for event in events {
        let step = match *event {
            Event::Config { ecam, devfn, offset, access } => Some(functions.register(ecam, devfn, offset, access)),
            Event::Bar { devfn, bar: MSIX_BAR, offset, access } => functions.table(devfn, offset, access),
            _ => None,
        };
        // What is read twice says no more, and most places of a bus are empty.
        steps.extend(step.filter(|step| !steps.iter().rev().take(2).any(|last| last == step)));
    }
    let pieces = steps.chunks(MAX_STEPS).map(|steps| {
        let program = Program { profile: Profile::I440fx, steps: steps.to_vec() };
        Piece { data: program.bytes(), steps: steps.iter().map(label).collect() }
    });
    pieces.collect()
}

/// Which functions of the target's machine stand for which of the recorded one.
#[derive(Default)]
struct Functions(BTreeMap<u8, u8>);

impl Functions {
    /// Virtio functions in the order in which they are found.
    fn find(&mut self, devfn: u8, offset: u16, access: Access) {
        if offset == 0 && !access.is_write && access.value & 0xffff == 0x1af4 && !self.0.contains_key(&devfn) {
            self.0.insert(devfn, (self.0.len() % SHAPES.len()) as u8);
        }
    }

    fn register(&mut self, ecam: bool, devfn: u8, offset: u16, access: Access) -> Step {
        self.find(devfn, offset, access);
        let Access { is_write, width, value } = access;
        let function = self.0.get(&devfn);
        let value = if function.is_some() { placed(offset, value) } else { value };
        let devfn = match function {
            Some(function) => {
                let (device, function) = SHAPES[usize::from(*function)].slot;
                device << 3 | function
            }
            None if BRIDGES.contains(&devfn) => devfn,
            None => NOBODY,
        };
        let way = if ecam { Way::Ecam } else { Way::Ports };
        match is_write {
            true => Step::Write { way, devfn, offset, width, value },
            false => Step::Read { way, devfn, offset, width },
        }
    }

    fn table(&self, devfn: u8, offset: u64, access: Access) -> Option<Step> {
        let function = *self.0.get(&devfn)?;
        let Access { is_write, width, value } = access;
        is_write.then_some(Step::Table { function, offset: offset as u16 & 0x1fff, width, value })
    }
}

/// A BAR that is placed is placed in a window of the target's machine.
fn placed(offset: u16, value: u64) -> u64 {
    let windows = windows();
    match offset {
        _ if value & 0xffff_fff0 == 0xffff_fff0 => value,
        0x10 => windows.io.start | value & 0x3fff,
        0x14 | 0x20 => windows.mem32.start | value & 0x00ff_ffff,
        0x24 => 0,
        _ => value,
    }
}

fn label(step: &Step) -> String {
    match step {
        Step::Read { devfn, offset, width, .. } => format!("read {devfn} {offset} {width}"),
        Step::Write { devfn, offset, width, .. } => format!("write {devfn} {offset} {width}"),
        Step::Table { function, offset, .. } => format!("table {function} {}", offset & 15),
        step => format!("{step:?}"),
    }
}
