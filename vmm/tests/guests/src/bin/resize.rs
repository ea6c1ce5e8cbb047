//! A disk that gets another size while its guest uses it: the guest hears of it by the configuration's interrupt, and
//! uses what it has got to the last sector, and no sector more.
//!
//! Options: `pci=ports|ecam`; `end=SECTORS`, the size at which it is content (8). It prints `SIZE SECTORS` for every size
//! it has checked. With `load=1` it does not wait for interrupts but reads and writes on and on, wherever the disk ends.

#![no_std]
#![no_main]

use guests::machine::{load, store};
use guests::pci::{self, Access, command};
use guests::virtio::Device;
use guests::{interrupts, println, pvh};

guests::guest!(main);

const QUEUE: u8 = interrupts::DEVICE;
const CONFIG: u8 = interrupts::DEVICE + 1;

const OK: u8 = 0;
const IO_ERROR: u8 = 1;

fn main() {
    interrupts::on(QUEUE, None);
    interrupts::on(CONFIG, None);
    interrupts::start_clock(120_000);
    let access = Access::choose();
    pci::place_bars(access);
    let mut device = Device::find(access);
    let msix = device.msix();
    device.set_command(command::INTX_OFF, true);
    msix.set(0, QUEUE);
    msix.set(1, CONFIG);
    msix.enable(true);
    device.start(Some(0));
    device.set_config_vector(1);
    let end = u64::from(pvh::number("end", 8));
    if pvh::number("load", 0) != 0 {
        under_load(&mut device, end);
    } else {
        step_by_step(&mut device, end);
    }
}

fn step_by_step(device: &mut Device, end: u64) {
    let mut told = 0;
    loop {
        let sectors = device.sectors();
        check(device, sectors);
        println!("SIZE {sectors}");
        if sectors == end {
            break;
        }
        assert!(interrupts::wait(60_000, || interrupts::count(CONFIG) > told), "nobody says that the size has changed");
        told = interrupts::count(CONFIG);
    }
    assert!(told > 0, "it had this size from the start");
    println!("PASS resize {told}");
}

/// The last sector keeps what is written, and behind it there is none.
fn check(device: &mut Device, sectors: u64) {
    fill(device, sectors);
    assert!(device.transfer(sectors - 1, true) == OK, "the last of {sectors} sectors cannot be written");
    fill(device, 0);
    assert!(device.transfer(sectors - 1, false) == OK, "the last of {sectors} sectors cannot be read");
    assert!(load::<u64>(device.data()) == sectors, "the last of {sectors} sectors holds something else");
    for write in [false, true] {
        let status = device.transfer(sectors, write);
        assert!(status == IO_ERROR, "status {status} behind the last of {sectors} sectors");
    }
}

fn fill(device: &Device, value: u64) {
    for at in (0..512).step_by(8) {
        store(device.data() + at, value);
    }
}

/// The size may change at any time, so a request may fail or not; what is written must be there as long as nobody has cut
/// it off.
fn under_load(device: &mut Device, end: u64) {
    let (mut sector, mut rounds, mut errors) = (1_u64, 0_u32, 0_u32);
    println!("SIZE {}", device.sectors());
    while device.sectors() != end {
        sector = sector.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        // The last sectors of the largest size as often as all others.
        let at = if sector & 1 << 40 == 0 { (sector >> 33) % 4096 } else { 4088 + (sector >> 33) % 8 };
        let changes = interrupts::count(CONFIG);
        fill(device, sector);
        let written = device.transfer(at, true);
        fill(device, 0);
        let read = device.transfer(at, false);
        assert!(written <= IO_ERROR && read <= IO_ERROR, "status {written} and {read}");
        if written == OK && read == OK && changes == interrupts::count(CONFIG) {
            let found: u64 = load(device.data());
            // A size that went down and up again leaves zeroes, and may be told once only.
            assert!(found == sector || found == 0, "sector {at} holds {found:#x} in place of {sector:#x}");
        }
        errors += u32::from(written) + u32::from(read);
        rounds += 1;
    }
    assert!(interrupts::count(CONFIG) > 0, "nobody said that the size has changed");
    println!("INFO {rounds} rounds, {errors} errors");
    assert!(rounds > 0 && device.transfer(end - 1, true) == OK && device.transfer(end, false) == IO_ERROR);
    println!("PASS resize load");
}
