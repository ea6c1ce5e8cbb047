//! Which state, and what is expected of restoring it.

use std::fmt::Debug;

use devices::pci::StateError;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::mutation::Mutation;
use super::tree;
use crate::targets::legacy::machine::Machine as Legacy;
use crate::targets::pci_config::machine::{ECAM, Function, Machine as Bus, SHAPES};

/// What a kind of input is about.
pub fn name(kind: u8) -> &'static str {
    match kind {
        0 => "a serial port",
        1 => "the real-time clock",
        2 => "the keyboard controller",
        3 => "power management",
        4 => "the debug console",
        5 => "the self-test port",
        6 => "the smbus host",
        7..=9 => "a virtio function",
        10 => "a bridge",
        _ => "a virtqueue",
    }
}

/// Restores a changed state into a device of the legacy machine.
pub fn hostile_legacy(machine: &mut Legacy, kind: u8, mutations: &[Mutation]) {
    match kind {
        0 => hostile(|| machine.uarts[0].save(), |state| machine.uarts[0].restore(state), mutations),
        1 => hostile(|| machine.cmos.save(), |state| machine.cmos.restore(state), mutations),
        2 => hostile(|| machine.ps2.save(), |state| machine.ps2.restore(state), mutations),
        3 => hostile(|| machine.pm.save(), |state| machine.pm.restore(state), mutations),
        4 => hostile(|| machine.debug.save(), |state| machine.debug.restore(state), mutations),
        5 => hostile(|| machine.post.save(), |state| machine.post.restore(state), mutations),
        _ => hostile(|| machine.smbus.save(), |state| machine.smbus.restore(state), mutations),
    }
}

/// Restores a changed state into a function on the bus, as a machine does: into one that is new. Says what was restored.
pub fn hostile_bus(machine: &mut Bus, kind: u8, mutations: &[Mutation]) -> u8 {
    if kind == 10 {
        let ((device, function), bridge) = &machine.bridges[machine.bridges.len() - 1];
        hostile(|| bridge.save(), |state| bridge.restore(state), mutations);
        return device << 3 | function;
    }
    let which = usize::from(kind - 7);
    let slot = SHAPES[which].slot;
    let saved = machine.functions[which].pci.save();
    // Queues of a running driver cannot be restored into a function that runs.
    *machine = Bus::new(machine.profile);
    let function = &machine.functions[which].pci;
    if let Some(state) = changed(&saved, mutations) {
        let before = function.save();
        match function.restore(&state, &[]) {
            Err(_) => assert_eq!(function.save(), before, "refused, and yet changed"),
            Ok(()) => {
                let taken = function.save();
                let other = Function::alone(which);
                assert_eq!(other.pci.restore(&taken, &[]), Ok(()), "what was saved is refused");
                assert_eq!(other.pci.save(), taken, "another machine makes another of it");
            }
        }
    }
    slot.0 << 3 | slot.1
}

/// Touches what a guest can of a bus with one function, or bridge, in an unknown state.
pub fn touch(machine: &mut Bus, devfn: u8) {
    let space = ECAM | u64::from(devfn) << 12;
    let mut bars = [0; 6];
    for (bar, offset) in bars.iter_mut().zip((0x10..).step_by(4)) {
        let mut data = [0; 4];
        machine.memory_read(space | offset, &mut data);
        *bar = u64::from(u32::from_le_bytes(data));
    }
    let mut data = [0; 8];
    for offset in (0..256).step_by(8) {
        machine.memory_read(space | offset, &mut data);
    }
    let Some(which) = SHAPES.iter().position(|shape| shape.slot.0 << 3 | shape.slot.1 == devfn) else { return };
    machine.port_read(bars[0] & !3, &mut data[..4]);
    for base in [bars[1] & !15, bars[4] & !15 | bars[5] << 32] {
        for offset in [0, 0x10, 0x1000, 0x2000] {
            machine.memory_read(base.wrapping_add(offset), &mut data);
        }
    }
    let function = &machine.functions[which].pci;
    function.interrupt().queue_used(0);
    function.interrupt().config_changed();
}

fn changed<S: Serialize + DeserializeOwned>(state: &S, mutations: &[Mutation]) -> Option<S> {
    let mut value = tree::of(state);
    for mutation in mutations {
        mutation.apply(&mut value);
    }
    tree::read(value)
}

fn hostile<S>(save: impl Fn() -> S, restore: impl Fn(&S) -> Result<(), StateError>, mutations: &[Mutation])
where
    S: Serialize + DeserializeOwned + PartialEq + Debug,
{
    let before = save();
    let Some(state) = changed(&before, mutations) else { return };
    match restore(&state) {
        Err(_) => assert_eq!(save(), before, "refused, and yet changed"),
        Ok(()) => {
            let taken = save();
            assert_eq!(restore(&taken), Ok(()), "what was saved is refused");
            assert_eq!(save(), taken, "what was saved reads back as something else");
        }
    }
}
