//! Completions of a virtio device on its interrupt line, through the IOAPIC.
//!
//! The IOAPIC input is the one in the interrupt line register, where whoever played the firmware has put it; `irq=<n>`
//! on the command line names another. Further options: `dev=rng|blk`, `pci=ports|ecam`.

#![no_std]
#![no_main]

use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use guests::pci::{self, Access, command, register};
use guests::virtio::Device;
use guests::{interrupts, machine, println, pvh};

guests::guest!(main);

const VECTOR: u8 = interrupts::DEVICE;

static ISR: AtomicU64 = AtomicU64::new(0);
static QUEUE_INTERRUPTS: AtomicU32 = AtomicU32::new(0);

/// Reading the ISR register lowers the line; without it the interrupt would come again at once.
fn acknowledge() {
    if machine::load::<u8>(ISR.load(Ordering::Relaxed)) & 1 != 0 {
        QUEUE_INTERRUPTS.fetch_add(1, Ordering::Relaxed);
    }
}

fn main() {
    interrupts::on(VECTOR, Some(acknowledge));
    interrupts::start_clock(10_000);
    let access = Access::choose();
    pci::place_bars(access);
    let mut device = Device::find(access);
    ISR.store(device.isr(), Ordering::Relaxed);

    let wiring = access.read(device.function(), register::INTERRUPT);
    let (line, pin) = (wiring & 0xff, wiring >> 8 & 0xff);
    assert!((1..=4).contains(&pin), "the interrupt pin register reads {pin}");
    let input = pvh::number("irq", line);
    assert!(input < interrupts::ioapic_pins(), "the interrupt line register reads {line}: no IOAPIC input");
    interrupts::route(input, VECTOR, true);
    println!("INFO pin {pin} line {line}");

    device.set_command(command::INTX_OFF, false);
    device.start(None);
    for expected in 1..=5 {
        device.submit();
        device.notify();
        device.finish();
        expect(expected);
    }
    println!("PASS intx deliver");

    device.set_command(command::INTX_OFF, true);
    device.submit();
    device.notify();
    device.finish();
    interrupts::sleep(6);
    assert!(QUEUE_INTERRUPTS.load(Ordering::Relaxed) == 5, "INTx came although it is off");
    assert!(device.intx_status(), "the status register does not show the pending INTx");
    device.set_command(command::INTX_OFF, false);
    expect(6);
    assert!(!device.intx_status(), "the status register still shows INTx after it was acknowledged");
    println!("PASS intx off-and-on");
}

fn expect(count: u32) {
    let got = || QUEUE_INTERRUPTS.load(Ordering::Relaxed);
    assert!(interrupts::wait(1_000, || got() >= count), "interrupt {count} does not come");
    interrupts::sleep(4);
    assert!(got() == count, "{} interrupts for {count} completions", got());
    // A line that is never lowered fires without end. Not exactly once a completion: the
    // software KVM this was made on delivers a level-triggered interrupt once more after its end was signalled.
    let fired = interrupts::count(VECTOR);
    assert!(fired <= 3 * count, "the line stays asserted: {fired} interrupts for {count} completions");
}
