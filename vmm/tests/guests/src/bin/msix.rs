//! Completions of a virtio device as MSI-X messages: delivered, held back while masked, redirected.
//!
//! Options: `dev=rng|blk`, `pci=ports|ecam`.

#![no_std]
#![no_main]

use guests::pci::{self, Access, command};
use guests::virtio::Device;
use guests::{acpi, interrupts, println};

guests::guest!(main);

const FIRST: u8 = interrupts::DEVICE;
const SECOND: u8 = interrupts::DEVICE + 1;

fn main() {
    interrupts::on(FIRST, None);
    interrupts::on(SECOND, None);
    interrupts::start_clock(10_000);
    let access = Access::choose();
    both_ways_show_the_same_functions();
    pci::place_bars(access);

    let mut device = Device::find(access);
    let msix = device.msix();
    // One for each queue and one for configuration changes; more would be of no use (virtio 1.3 §4.1.5.1.2.1).
    assert!(msix.entries() == device.queues() + 1, "{} vectors for {} queues", msix.entries(), device.queues());
    device.set_command(command::INTX_OFF, true);
    msix.set(0, FIRST);
    msix.enable(true);
    device.start(Some(0));
    for expected in 1..=5 {
        device.submit();
        device.notify();
        device.finish();
        expect(FIRST, expected);
    }
    println!("PASS msix deliver");

    msix.mask(0, true);
    device.submit();
    device.notify();
    device.finish();
    interrupts::sleep(6);
    assert!(interrupts::count(FIRST) == 5, "a masked entry fired");
    assert!(msix.is_pending(0), "a masked entry is not pending");
    msix.mask(0, false);
    expect(FIRST, 6);
    assert!(!msix.is_pending(0), "an entry is pending after it fired");
    println!("PASS msix mask");

    msix.mask(0, true);
    msix.set(0, SECOND);
    device.submit();
    device.notify();
    device.finish();
    expect(SECOND, 1);
    assert!(interrupts::count(FIRST) == 6, "a redirected entry also fired at its old vector");
    println!("PASS msix redirect");

    // Reset and start again: the table is the driver's, the queue's vector is not (virtio 1.3 §4.1.5.1.2).
    device.start(Some(0));
    device.submit();
    device.notify();
    device.finish();
    expect(SECOND, 2);
    println!("PASS msix after-reset");
}

fn expect(vector: u8, count: u32) {
    assert!(interrupts::wait(1_000, || interrupts::count(vector) >= count), "interrupt {count} does not come");
    let got = interrupts::count(vector);
    assert!(got == count, "{got} interrupts for {count} completions");
}

fn both_ways_show_the_same_functions() {
    let Some(window) = acpi::ecam().filter(|window| window.segment == 0) else {
        println!("SKIP ecam: there is no MCFG table for segment 0");
        return;
    };
    let (ports, ecam) = (Access::Ports, Access::Ecam(window.base));
    if ports.read(pci::address(0, 0), 0) == u32::MAX {
        println!("SKIP ecam: 0xCF8 does not answer, nothing to compare with");
        return;
    }
    assert!(pci::functions(ports).eq(pci::functions(ecam)), "0xCF8 and ECAM show different functions");
    println!("PASS ecam");
}
