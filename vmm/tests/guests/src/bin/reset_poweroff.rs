//! Every way to reset or turn off the machine, as often as told.
//!
//! Options: `mode=cf9|acpi|kbd|triple|s5`; `boots=<n>` resets until this is boot n (default 2), then turns off;
//! `count=cmos|disk` where the boots are counted (a byte of CMOS memory, or sector 0 of the first disk).

#![no_std]
#![no_main]

use guests::machine::{in8, out8, triple_fault};
use guests::pci::{self, Access};
use guests::pool::Identity;
use guests::{acpi, fail, interrupts, println, pvh};
use virtio_drivers::device::blk::VirtIOBlk;
use virtio_drivers::transport::pci::PciTransport;
use virtio_drivers::transport::pci::bus::PciRoot;

guests::guest!(main);

/// Two bytes of CMOS memory that no firmware uses say that the third is ours.
const CMOS: u8 = 0x70;
const MAGIC: [u8; 2] = [0x5a, 0xa7];

fn main() {
    let mode = pvh::option("mode").unwrap_or("s5");
    if mode == "s5" {
        println!("PASS reset_poweroff s5");
        return;
    }
    let boots = pvh::number("boots", 2);
    let boot = match pvh::option("count") {
        None | Some("cmos") => count_in_cmos(boots),
        Some("disk") => count_on_disk(boots),
        Some(other) => fail!("count={other} is neither cmos nor disk"),
    };
    println!("BOOT {boot}");
    if boot == boots {
        println!("PASS reset_poweroff {mode}");
        return;
    }
    match mode {
        "cf9" => {
            out8(0xcf9, 2);
            out8(0xcf9, 6);
        }
        "acpi" => acpi::reset(),
        "kbd" => out8(0x64, 0xfe),
        "triple" => triple_fault(),
        other => fail!("mode={other} is not one of cf9, acpi, kbd, triple, s5"),
    }
    // A reset may take the VMM a moment.
    interrupts::start_clock(5_000);
    interrupts::sleep(1_000);
    fail!("the machine still runs after mode={mode}");
}

fn cmos(index: u8) -> u8 {
    out8(0x70, index);
    in8(0x71)
}

fn set_cmos(index: u8, value: u8) {
    out8(0x70, index);
    out8(0x71, value);
}

/// The number of this boot, from 1. Starts over after the last.
fn count_in_cmos(boots: u32) -> u32 {
    let before = if [cmos(CMOS), cmos(CMOS + 1)] == MAGIC { cmos(CMOS + 2) } else { 0 };
    set_cmos(CMOS, MAGIC[0]);
    set_cmos(CMOS + 1, MAGIC[1]);
    let boot = before + 1;
    set_cmos(CMOS + 2, if u32::from(boot) == boots { 0 } else { boot });
    assert!(cmos(CMOS + 1) == MAGIC[1], "there is no CMOS memory: use count=disk");
    boot.into()
}

/// As [`count_in_cmos`]; the sector starts with the magic and the count.
fn count_on_disk(boots: u32) -> u32 {
    interrupts::start_clock(20_000);
    let access = Access::choose();
    pci::place_bars(access);
    let function = pci::functions(access)
        .find_map(|(function, vendor, id)| (vendor == 0x1af4 && [0x1001, 0x1042].contains(&id)).then_some(function))
        .expect("count=disk, but there is no virtio block device");
    let transport = PciTransport::new::<Identity, _>(&mut PciRoot::new(access), function).expect("virtio transport");
    let mut disk = VirtIOBlk::<Identity, _>::new(transport).expect("virtio block device");
    let mut sector = [0; 512];
    disk.read_blocks(0, &mut sector).expect("read of sector 0");
    let before =
        if sector[..2] == MAGIC { u32::from_le_bytes([sector[2], sector[3], sector[4], sector[5]]) } else { 0 };
    let boot = before + 1;
    sector[..2].copy_from_slice(&MAGIC);
    sector[2..6].copy_from_slice(&if boot == boots { 0 } else { boot }.to_le_bytes());
    disk.write_blocks(0, &sector).expect("write of sector 0");
    disk.flush().expect("flush");
    boot
}
