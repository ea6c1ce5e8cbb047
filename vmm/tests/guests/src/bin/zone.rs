//! A guest as whoever manages a zone meets it: it says that it is up, obeys the power button, and does what it is told on COM1.
//!
//! Bytes on COM1: `R` resets the machine, `O` turns it off, `T` has the processor shut down by triple fault, `H` halts it
//! for ever, `I` has it ignore the power button from then on, and everything else comes back, as everything on COM2 does. A non-maskable interrupt is told.
//! Option: `looks=<n>` has it reset after it has looked at the button n times.

#![no_std]
#![no_main]

use core::sync::atomic::{AtomicBool, Ordering};

use guests::acpi::PowerButton;
use guests::machine::{out8, stop, triple_fault};
use guests::serial::{self, COM1, COM2};
use guests::{fail, interrupts, println, pvh};

guests::guest!(main);

/// Told outside the interrupt, which may come in the middle of a line.
static NMI: AtomicBool = AtomicBool::new(false);

fn main() {
    interrupts::on(interrupts::NMI, Some(|| NMI.store(true, Ordering::Relaxed)));
    let Some(button) = PowerButton::enable() else { fail!("there is no power button") };
    let most_looks = pvh::number("looks", u32::MAX);
    let (mut looks, mut obeys) = (0, true);
    serial::set_up(COM2);
    println!("UP");
    loop {
        if NMI.swap(false, Ordering::Relaxed) {
            println!("NMI");
        }
        if button.is_pressed() {
            button.clear();
            println!("BUTTON");
            if obeys {
                return;
            }
        }
        if let Some(byte) = serial::read(COM2) {
            serial::write(COM2, byte);
        }
        match serial::read(COM1) {
            Some(b'R') => reset(),
            Some(b'O') => return,
            Some(b'T') => triple_fault(),
            Some(b'H') => stop(),
            Some(b'I') => {
                obeys = false;
                println!("IGNORES");
            }
            Some(byte) => serial::write(COM1, byte),
            None => {}
        }
        looks += 1;
        if looks == most_looks {
            reset();
        }
    }
}

fn reset() -> ! {
    out8(0xcf9, 2);
    out8(0xcf9, 6);
    stop()
}
