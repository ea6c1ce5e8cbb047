//! Exits one by one: port I/O of every width, memory nobody claims, HLT and its wake-ups.
//!
//! Options: `hole=<hex address>` of 4 KiB that nobody claims (default: just below the IOAPIC); `unclaimed=zero` for a
//! VMM whose unclaimed memory reads zeros (qemu), not all ones.

#![no_std]
#![no_main]

use guests::machine::{in8, in8_string, in16, in32, load, out8, out8_string, out16, out32, store};
use guests::{acpi, interrupts, machine, println, pvh};

guests::guest!(main);

/// A port of no PC device.
const NOBODYS_PORT: u16 = 0x2e80;
const SCRATCH: u16 = 0x3ff;

fn main() {
    ports();
    println!("PASS pio");
    holes();
    println!("PASS mmio");
    halt();
    println!("PASS hlt");
}

fn ports() {
    out8(SCRATCH, 0x5a);
    assert!(in8(SCRATCH) == 0x5a, "the UART's scratch register lost its value");
    out8_string(SCRATCH, &[1, 2, 3, 0xa5]);
    let mut read = [0; 3];
    in8_string(SCRATCH, &mut read);
    assert!(read == [0xa5; 3], "string I/O read {read:x?}, not the last byte written");

    assert!(in8(NOBODYS_PORT) == 0xff, "an unclaimed port does not read all ones (8 bits)");
    assert!(in16(NOBODYS_PORT) == 0xffff, "an unclaimed port does not read all ones (16 bits)");
    assert!(in32(NOBODYS_PORT) == u32::MAX, "an unclaimed port does not read all ones (32 bits)");
    out8(NOBODYS_PORT, 0);
    out16(NOBODYS_PORT, 0);
    out32(NOBODYS_PORT, 0);
    assert!(in32(NOBODYS_PORT) == u32::MAX, "an unclaimed port kept a value");
    in8_string(NOBODYS_PORT, &mut read);
    assert!(read == [0xff; 3], "string input from an unclaimed port read {read:x?}");

    // The host bridge's id, in every width.
    out32(0xcf8, 1 << 31);
    if in32(0xcf8) != 1 << 31 {
        println!("SKIP pci ports: 0xCF8 does not answer");
        return;
    }
    let id = in32(0xcfc);
    assert!(id != u32::MAX && id != 0, "no host bridge: its id reads {id:#x}");
    for byte in 0..4 {
        let read = in8(0xcfc + byte);
        assert!(read == (id >> (8 * byte)) as u8, "byte {byte} of {id:#x} reads {read:#x}");
    }
    for half in [0, 2] {
        let read = in16(0xcfc + half);
        assert!(read == (id >> (8 * half)) as u16, "half {half} of {id:#x} reads {read:#x}");
    }
    // A function that does not exist, and a disabled selector, read all ones.
    out32(0xcf8, 1 << 31 | 0x1f << 11 | 7 << 8);
    assert!(in32(0xcfc) == u32::MAX, "a PCI function that does not exist has an id");
    out32(0xcf8, 0);
}

fn holes() {
    let given = pvh::option("hole")
        .map(|hole| u64::from_str_radix(hole.trim_start_matches("0x"), 16).expect("hole= is not a hexadecimal number"));
    let expected = if pvh::option("unclaimed") == Some("zero") { 0 } else { u64::MAX };
    // The second lies between the end of a small guest's RAM and device memory.
    for hole in [given.unwrap_or(0xfeb0_0000), 0x9000_0000] {
        // The second time after a write.
        for _ in 0..2 {
            let byte: u8 = load(hole);
            assert!(byte == expected as u8, "{hole:#x} reads {byte:#x} (8 bits)");
            let word: u16 = load(hole + 2);
            assert!(word == expected as u16, "{hole:#x} reads {word:#x} (16 bits)");
            let double: u32 = load(hole + 4);
            assert!(double == expected as u32, "{hole:#x} reads {double:#x} (32 bits)");
            let quad: u64 = load(hole + 8);
            assert!(quad == expected, "{hole:#x} reads {quad:#x} (64 bits)");
            store(hole, 0x55_u8);
            store(hole + 2, 0x5555_u16);
            store(hole + 4, 0x5555_5555_u32);
            store(hole + 8, 0x5555_5555_5555_5555_u64);
        }
    }
}

fn halt() {
    const ONCE: u8 = interrupts::DEVICE;
    const PIT: u8 = interrupts::DEVICE + 1;
    interrupts::on(ONCE, None);
    interrupts::on(PIT, None);

    machine::interrupts_off();
    interrupts::one_shot(ONCE, 2_000_000);
    machine::interrupts_on_and_halt();
    machine::interrupts_off();
    assert!(interrupts::count(ONCE) == 1, "HLT woke before the local APIC's timer");
    println!("PASS hlt apic-timer");

    let pin = acpi::isa_interrupt(0);
    assert!(pin < interrupts::ioapic_pins(), "the MADT sends the PIT to input {pin}, which the IOAPIC does not have");
    interrupts::route(pin, PIT, false);
    interrupts::pit_one_shot(2_000);
    // A clock that counts down below its start is a clock that runs.
    let left = interrupts::pit_count();
    assert!(left <= 2_000 || interrupts::count(PIT) == 1, "the PIT counts {left} of 2000");
    machine::interrupts_on_and_halt();
    machine::interrupts_off();
    assert!(interrupts::count(PIT) == 1, "HLT woke before the PIT");
    interrupts::mask(pin);
    println!("PASS hlt pit");

    interrupts::start_clock(5_000);
    interrupts::sleep(20);
    println!("PASS hlt periodic");
}
