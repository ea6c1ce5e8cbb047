//! After any program, a reset gives devices that work: what drivers ask of each, step by step.

use devices::legacy::power::ResetSource;
use devices::legacy::ps2::{PS2_DATA_PORT, PS2_STATUS_PORT};

use super::machine::{CMOS, COM, DEBUG, Machine, PM, PORT_92, POST, RESET, SMI};
use super::program::output;

/// Asks everything of everybody.
pub fn check(machine: &mut Machine) {
    (0..COM.len()).for_each(|com| who_waits_is_woken(machine, com));
    machine.reset();
    (0..COM.len()).for_each(|com| serial(machine, com));
    keyboard_controller(machine);
    clock(machine);
    power_management(machine);
    ports(machine);
    assert_eq!(machine.lines(), [false; 6], "nothing waits for the guest");
}

/// Somebody whose input was refused is woken once the guest has read what there was.
fn who_waits_is_woken(machine: &mut Machine, com: usize) {
    if !machine.owners[com].refused {
        return;
    }
    let base = COM[com];
    machine.write(base + 3, 1, 0x03);
    machine.write(base + 4, 1, 0x08);
    for _ in 0..300 {
        if machine.read(base + 5, 1) & 1 == 0 {
            break;
        }
        machine.read(base, 1);
    }
    machine.owners[com].look();
    assert!(machine.owners[com].for_input, "COM{}: nobody says that there is room again", com + 1);
}

fn serial(machine: &mut Machine, com: usize) {
    let base = COM[com];
    while output(machine, com == 1, 100).len() == 100 {}
    machine.write(base + 3, 1, 0x03);
    assert_eq!(machine.read(base + 5, 1) & 0x61, 0x60, "COM{}: an idle line", com + 1);
    machine.write(base, 1, b'Z'.into());
    assert_eq!(output(machine, com == 1, 100), b"Z", "COM{}", com + 1);
    assert_eq!(machine.uarts[com].push_input(b"q"), 1, "COM{}", com + 1);
    assert_eq!((machine.read(base + 5, 1) & 1, machine.read(base, 1)), (1, b'q'.into()), "COM{}", com + 1);
}

fn keyboard_controller(machine: &mut Machine) {
    let mut answer = |port: u64, byte: u8| {
        machine.write(port, 1, byte.into());
        (machine.read(PS2_STATUS_PORT, 1) as u8 & 0x21, machine.read(PS2_DATA_PORT, 1))
    };
    assert_eq!(answer(PS2_STATUS_PORT, 0xaa), (0x01, 0x55), "self test");
    assert_eq!(answer(PS2_DATA_PORT, 0xf4), (0x01, 0xfa), "the keyboard acknowledges");
    assert_eq!(answer(PS2_STATUS_PORT, 0xd4).0, 0);
    assert_eq!(answer(PS2_DATA_PORT, 0xf4), (0x21, 0xfa), "the mouse acknowledges");
}

fn clock(machine: &mut Machine) {
    let write = |machine: &mut Machine, register: u64, value: u64| {
        machine.write(CMOS, 1, register);
        machine.write(CMOS + 1, 1, value);
    };
    write(machine, 0x40, 0x5a);
    assert_eq!(machine.read(CMOS + 1, 1), 0x5a, "memory");
    write(machine, 0x0b, 0x12);
    machine.pass(1_100_000_000);
    assert!(machine.lines()[2], "no interrupt after an update");
    machine.write(CMOS, 1, 0x0c);
    assert_eq!(machine.read(CMOS + 1, 1) & 0x90, 0x90, "an update ended");
    write(machine, 0x0b, 0x02);
}

fn power_management(machine: &mut Machine) {
    if machine.kind.smi {
        machine.write(SMI, 1, 0xa0);
    }
    machine.write(PM + 2, 2, 0x100);
    assert!(machine.pm.press_power_button(), "a guest that listens is told");
    assert!(machine.lines()[5]);
    machine.write(PM, 2, 0x100);
    let before = machine.read(PM + 8, 4);
    machine.pass(1_000_000);
    let passed = machine.read(PM + 8, 4).wrapping_sub(before) & 0xff_ffff;
    assert!((3579..=3580).contains(&passed), "the timer counted {passed} in a millisecond");
    machine.power.take();
    machine.write(PM + 4, 2, 5 << 10 | 1 << 13);
    assert_eq!(machine.power.take(), [None], "S5");
}

fn ports(machine: &mut Machine) {
    machine.write(RESET, 1, 0x06);
    machine.write(PORT_92, 1, 0x03);
    assert_eq!(machine.power.take(), [Some(ResetSource::Port0Cf9), Some(ResetSource::Port92)]);
    machine.write(POST, 1, 0xa5);
    assert_eq!(machine.read(POST, 1), 0xa5);
    while machine.debug.take_output(&mut [0; 100]) == 100 {}
    machine.write(DEBUG, 1, b'd'.into());
    let mut buffer = [0; 2];
    assert_eq!((machine.debug.take_output(&mut buffer), buffer[0]), (1, b'd'));
}
