//! A guest that means harm. Whatever it does, the VMM lives, and the device works again after a reset.
//!
//! For each abuse of the ring it prints what became of it: `ABUSE <name>: needs-reset | completed | silent`; what that
//! must be is for the test to judge. Options: `dev=rng|blk`, `pci=ports|ecam`, `seed=<n>` and `n=<count>` of random
//! accesses of each kind.

#![no_std]
#![no_main]

use guests::machine::{in8, in16, in32, load, out8, out16, out32, store};
use guests::pci::{self, Access, command, register};
use guests::virtio::{Device, QUEUE_SIZE, common, flag};
use guests::{interrupts, println, pvh};

guests::guest!(main);

/// No machine has memory there, and a 52-bit physical address may name it.
const NOWHERE: u64 = 0x000f_ffff_f000_0000;

fn main() {
    interrupts::start_clock(50_000);
    let access = Access::choose();
    pci::place_bars(access);
    let mut device = Device::find(access);
    device.set_command(command::INTX_OFF, true);
    works(&mut device, "nothing");
    rings(&mut device);
    println!("PASS hostile rings");
    let mut random = Random(u64::from(pvh::number("seed", 1)) | 1 << 40);
    let count = pvh::number("n", 300);
    registers(&mut device, &mut random, count);
    println!("PASS hostile registers");
    configuration(access, &mut device, &mut random, count);
    println!("PASS hostile configuration");
    ports(&mut random, count);
    works(&mut device, "random ports");
    println!("PASS hostile ports");
    println!("PASS hostile");
}

/// The oracle: after a reset, a valid request succeeds.
fn works(device: &mut Device, after: &str) {
    device.start(None);
    device.submit();
    device.notify();
    assert!(interrupts::wait(1_000, || device.is_idle()), "after {after}, a valid request does not complete");
    device.check();
}

/// One abuse of the ring: prepared on a fresh queue, notified, judged, and followed by a valid request.
fn abuse(device: &mut Device, name: &str, prepare: impl FnOnce(&mut Device)) {
    device.start(None);
    prepare(device);
    device.notify();
    let used = || load::<u16>(device.page() + 0x202) != 0;
    let _ = interrupts::wait(40, || device.needs_reset() || used());
    let outcome = match (device.needs_reset(), used()) {
        (true, _) => "needs-reset",
        (false, true) => "completed",
        (false, false) => "silent",
    };
    println!("ABUSE {name}: {outcome}");
    works(device, name);
}

fn rings(device: &mut Device) {
    let buffer = device.page() + 0x800;
    let own_registers = device.common();
    let one = |address, length, flags, next| {
        move |device: &mut Device| {
            device.describe(0, address, length, flags, next);
            device.publish(0);
        }
    };
    abuse(device, "next-outside", one(buffer, 16, flag::NEXT | flag::WRITE, 200));
    abuse(device, "loop-of-one", one(buffer, 16, flag::NEXT | flag::WRITE, 0));
    abuse(device, "loop-of-all", |device| {
        for index in 0..QUEUE_SIZE {
            device.describe(index, buffer, 16, flag::NEXT | flag::WRITE, (index + 1) % QUEUE_SIZE);
        }
        device.publish(0);
    });
    abuse(device, "zero-length", one(buffer, 0, flag::WRITE, 0));
    abuse(device, "address-wraps", one(u64::MAX - 0xfff, u32::MAX, flag::WRITE, 0));
    abuse(device, "outside-memory", one(NOWHERE, 16, flag::WRITE, 0));
    let last_page = pvh::ram_end() - 0x1000;
    abuse(device, "crosses-end-of-memory", one(last_page, 0x1001, flag::WRITE, 0));
    abuse(device, "huge-length", one(last_page, u32::MAX, flag::WRITE, 0));
    abuse(device, "local-apic", one(0xfee0_0000, 0x1000, flag::WRITE, 0));
    abuse(device, "own-registers", one(own_registers, common::BYTES as u32, flag::WRITE, 0));
    abuse(device, "indirect-not-negotiated", one(buffer, 16, flag::INDIRECT, 0));
    abuse(device, "readable-only", one(buffer, 16, 0, 0));
    abuse(device, "writable-before-readable", |device| {
        device.describe(0, buffer, 16, flag::WRITE | flag::NEXT, 1);
        device.describe(1, buffer, 16, 0, 0);
        device.publish(0);
    });
    abuse(device, "head-outside", |device| device.publish(500));
    abuse(device, "head-twice", |device| {
        for _ in 0..QUEUE_SIZE {
            device.publish(0);
        }
    });
    for (name, index) in
        [("index-jump-one-more", QUEUE_SIZE + 1), ("index-jump-far", 0x8000), ("index-backwards", u16::MAX)]
    {
        abuse(device, name, |device| store(device.page() + 0x102, index));
    }
    // The size is only known after `start`, so these move rings that are already in use: the device must keep to what
    // it was given, or the new place must be harmless.
    for (name, ring) in [
        ("descriptors-moved", common::QUEUE_DESC),
        ("available-moved", common::QUEUE_DRIVER),
        ("used-moved", common::QUEUE_DEVICE),
    ] {
        abuse(device, name, |device| {
            store(device.common() + ring, NOWHERE as u32);
            store(device.common() + ring + 4, (NOWHERE >> 32) as u32);
            device.submit();
        });
    }
    abuse(device, "enabled-with-rings-outside", |device| {
        device.reset();
        let registers = device.common();
        for status in [1_u8, 3] {
            store(registers + common::STATUS, status);
        }
        store(registers + common::DRIVER_FEATURE_SELECT, 1_u32);
        store(registers + common::DRIVER_FEATURE, 1_u32);
        store(registers + common::STATUS, 11_u8);
        for ring in [common::QUEUE_DESC, common::QUEUE_DRIVER, common::QUEUE_DEVICE] {
            store(registers + ring, NOWHERE as u32);
            store(registers + ring + 4, (NOWHERE >> 32) as u32);
        }
        store(registers + common::QUEUE_ENABLE, 1_u16);
        store(registers + common::STATUS, 15_u8);
    });
    abuse(device, "notified-before-it-is-ready", |device| device.reset());
}

/// Deterministic noise (xorshift64, Marsaglia 2003).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, end: u64) -> u64 {
        (self.next() >> 16) % end
    }

    /// Values that are often special.
    fn value(&mut self) -> u64 {
        match self.below(6) {
            0 => 0,
            1 => u64::MAX,
            2 => 1 << self.below(64),
            3 => self.below(16),
            _ => self.next(),
        }
    }
}

/// One access of any width, even across a register's end.
fn touch(random: &mut Random, address: u64) {
    let value = random.value();
    match random.below(8) {
        0 => drop(load::<u8>(address)),
        1 => drop(load::<u16>(address)),
        2 => drop(load::<u32>(address)),
        3 => drop(load::<u64>(address)),
        4 => store(address, value as u8),
        5 => store(address, value as u16),
        6 => store(address, value as u32),
        _ => store(address, value),
    }
}

fn registers(device: &mut Device, random: &mut Random, count: u32) {
    let regions = [
        (device.common(), common::BYTES),
        (device.common() & !0xfff, 0x4000),
        (device.doorbell(), 16),
        (device.isr(), 8),
    ];
    for round in 0..6 {
        // On a device that runs, and on one that does not.
        if round % 2 == 0 {
            device.start(None);
        } else {
            device.reset();
        }
        for _ in 0..count {
            let (start, length) = regions[random.below(4) as usize];
            let address = start + random.below(length);
            // Where the rings are is left alone: a ring in this program's memory would break it, and rightly so.
            let rings = device.common() + common::QUEUE_DESC - 7..device.common() + common::BYTES;
            if !rings.contains(&address) {
                touch(random, address);
            }
        }
        works(device, "random register accesses");
    }
    // Every queue number, in every width.
    device.start(None);
    for queue in [0_u32, 1, 2, 255, 256, 0x7fff, 0xffff, 0x1_0000, 0x8000_0000, u32::MAX] {
        store(device.common() + common::QUEUE_SELECT, queue as u16);
        for size in [0_u16, 3, 0x8000, u16::MAX] {
            store(device.common() + common::QUEUE_SIZE, size);
            store(device.common() + common::QUEUE_VECTOR, size);
            store(device.common() + common::QUEUE_ENABLE, size);
        }
        store(device.doorbell(), queue as u8);
        store(device.doorbell(), queue as u16);
        store(device.doorbell(), queue);
    }
    works(device, "wrong queue numbers");
    // Every pair of status values, legal or not.
    for first in 0..16_u8 {
        for second in [0_u8, 1, 3, 11, 15, 0x40, 0x80, 0xff] {
            store(device.common() + common::STATUS, first);
            store(device.common() + common::STATUS, second);
        }
    }
    works(device, "illegal status sequences");
}

fn configuration(access: Access, device: &mut Device, random: &mut Random, count: u32) {
    let function = device.function();
    // Over the local APIC, over RAM, at the ends of the address space.
    for base in [0xfee0_0000_u32, 0xfec0_0000, 0x0010_0000, 0, 0xffff_f000] {
        for index in 0..6 {
            access.write(function, register::BAR0 + 4 * index, base);
            let _ = interrupts::apic_id();
        }
        interrupts::sleep(2);
    }
    pci::place_bars(access);
    *device = Device::find(access);
    works(device, "BARs in wrong places");

    // Messages to wrong places: the device may only use them as messages.
    let msix = device.msix();
    msix.enable(true);
    for entry in 0..2 {
        msix.set(entry, interrupts::DEVICE);
        msix.garble(entry, random.next(), random.next() as u32);
    }
    device.start(Some(0));
    device.submit();
    device.notify();
    assert!(interrupts::wait(1_000, || device.is_idle()), "a wrong message address stops the queue");
    msix.enable(false);
    works(device, "wrong message addresses");

    for _ in 0..count {
        let register = random.below(256) as u8 & 0xfc;
        if random.below(4) == 0 {
            let _ = access.read(function, register);
        } else {
            access.write(function, register, random.value() as u32);
        }
    }
    access.write(function, register::COMMAND, command::INTX_OFF);
    pci::place_bars(access);
    *device = Device::find(access);
    device.msix().enable(false);
    works(device, "random configuration writes");
}

/// Ports whose purpose is to stop or reset the machine, or that carry this guest's output: not abuse but use.
fn has_an_effect(port: u16) -> bool {
    // System control port A, keyboard controller, interrupt controllers, PIT, COM1, PCI, reset, power management.
    matches!(port, 0x92 | 0x60..=0x64 | 0x20..=0x21 | 0xa0..=0xa1 | 0xb0..=0xbf | 0x3f0..=0x3ff | 0xcf8..=0xcff)
        // PM registers of our profiles and of qemu's machines, pvpanic.
        || matches!(port, 0x400..=0x40f | 0x500..=0x50f | 0x600..=0x67f | 0xb000..=0xb0ff | 0xafe0..=0xafff)
}

fn ports(random: &mut Random, count: u32) {
    for _ in 0..count {
        // Most of what there is, is below 0x1000.
        let port = if random.below(2) == 0 { random.below(0x1000) } else { random.below(0x1_0000) } as u16;
        if (0..4).any(|byte| has_an_effect(port.saturating_add(byte))) {
            continue;
        }
        let value = random.value();
        match random.below(6) {
            0 => drop(in8(port)),
            1 => drop(in16(port)),
            2 => drop(in32(port)),
            3 => out8(port, value as u8),
            4 => out16(port, value as u16),
            _ => out32(port, value as u32),
        }
    }
}
