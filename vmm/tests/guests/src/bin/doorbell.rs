//! Many notifications and many completions: one by one, then in bursts.
//!
//! Options: `n=<count>` (default 500), `dev=rng|blk`, `pci=ports|ecam`; `hold=<ms>` waits at the end, for whoever wants
//! to read counters.

#![no_std]
#![no_main]

use guests::pci::{self, Access, command};
use guests::virtio::Device;
use guests::{interrupts, println, pvh};

guests::guest!(main);

const VECTOR: u8 = interrupts::DEVICE;

fn main() {
    let count = pvh::number("n", 500);
    interrupts::on(VECTOR, None);
    interrupts::start_clock(60_000);
    let access = Access::choose();
    pci::place_bars(access);
    let mut device = Device::find(access);
    let msix = device.msix();
    device.set_command(command::INTX_OFF, true);
    msix.set(0, VECTOR);
    msix.enable(true);
    device.start(Some(0));

    for expected in 1..=count {
        device.submit();
        device.notify();
        assert!(
            interrupts::wait(1_000, || interrupts::count(VECTOR) >= expected),
            "completion {expected} of {count} is lost"
        );
        assert!(device.is_idle(), "interrupt {expected} came before its completion");
    }
    device.check();
    interrupts::sleep(4);
    let got = interrupts::count(VECTOR);
    assert!(got == count, "{got} interrupts for {count} notifications one by one");
    println!("PASS doorbell single {count}");

    let burst = u32::from(device.capacity());
    let mut completed = 0;
    while completed < count {
        let before = interrupts::count(VECTOR);
        for _ in 0..burst {
            device.submit();
            device.notify();
        }
        device.finish();
        // A device shows what is done before it says so. The interrupt of this burst may still be on its way, and one that
        // comes while another one of its vector is pending is that one (SDM vol. 3 §11.8.4).
        assert!(interrupts::wait(1_000, || interrupts::count(VECTOR) > before), "a burst's interrupt is lost");
        completed += burst;
    }
    interrupts::sleep(4);
    let got = interrupts::count(VECTOR) - count;
    assert!(got >= completed / burst && got <= completed, "{got} interrupts for {completed} completions in bursts");
    println!("PASS doorbell burst {completed}");
    interrupts::sleep(pvh::number("hold", 0));
}
