//! The function's decoding, its BARs and its MSI-X table, changed under load.

use super::NOWHERE;
use crate::check;
use crate::device::{Device, Trouble, Verdict};
use crate::machine::{Mapping, read_port, sleep_ms};
use crate::pci::{Function, command};
use crate::registers::{Registers, common, legacy};

/// Decoding and bus mastering off and on while requests are in flight.
pub fn decode_off(device: &mut Device) -> Verdict {
    const ALL: u32 = command::IO | command::MEMORY | command::MASTER;
    device.start(device.features())?;
    let before = device.registers.status();
    for off in [command::MASTER, command::IO | command::MEMORY, ALL] {
        device.load();
        device.notify(device.target());
        device.function.set_command(0, off);
        let blind = device.registers.status();
        device.notify(device.target());
        device.function.set_command(ALL, 0);
        let decodes = off == command::MASTER;
        check!(blind == if decodes { before } else { 0xff }, "with {off:#x} off the status reads {blind:#x}");
        let after = device.registers.status();
        check!(after == before, "after {off:#x} was off the status is {after:#x}, not {before:#x}");
        device.notify(device.target());
        // What was in flight may take its time.
        sleep_ms(5);
        device.request()?;
    }
    Ok(())
}

/// An address for a BAR of `len` bytes above `from` that no other function uses.
fn free_place(from: u64, len: u64, step: u64) -> Verdict<u64> {
    let functions = Function::all().map_err(|error| Trouble::Fail(format!("{error:#}")))?;
    let taken: Vec<u64> = functions.iter().flat_map(|function| (0..6).map(|bar| function.bar(bar))).collect();
    // No BAR here is longer than a step.
    let free = |place: &u64| !taken.iter().any(|bar| *bar < place + len && *place < bar + step);
    (1..64).map(|n| from + n * step).find(free).ok_or_else(|| Trouble::Fail("no place for a BAR".to_owned()))
}

/// The BAR moves while requests are in flight, works in its new place, and again in its old one.
pub fn bar_moved(device: &mut Device) -> Verdict {
    device.start(device.features())?;
    let before = device.registers.status();
    let (bar, len, step) = match &*device.registers {
        Registers::Modern(modern) => (modern.bar_index, modern.bar.len() as u64, 0x10_0000),
        Registers::Legacy { len, .. } => (0, u64::from(*len), 0x100),
    };
    let home = device.function.bar(bar);
    let place = free_place(home, len, step)?;
    for _ in 0..3 {
        device.load();
        device.notify(device.target());
        device.function.set_bar(bar, place);
        let blind = device.registers.status();
        check!(blind == 0xff, "the BAR was moved to {place:#x}, and its old place reads {blind:#x}");
        // The doorbell has moved along.
        match &*device.registers {
            Registers::Modern(modern) => {
                let there = Mapping::new("/dev/mem", place, len as usize)
                    .map_err(|error| Trouble::Fail(format!("the new place cannot be looked at: {error:#}")))?;
                let seen = there.read(modern.common + common::STATUS, 1) as u8;
                check!(seen == before, "at its new place {place:#x} the status is {seen:#x}");
                there.write(modern.doorbell(device.target()), 2, device.target().into());
            }
            Registers::Legacy { .. } => {
                let seen = read_port(place as u16 + legacy::STATUS, 1) as u8;
                check!(seen == before, "at its new place {place:#x} the status is {seen:#x}");
                crate::machine::write_port(place as u16 + legacy::QUEUE_NOTIFY, 2, device.target().into());
            }
        }
        device.function.set_bar(bar, home);
        let after = device.registers.status();
        check!(after == before, "back at {home:#x} the status is {after:#x}");
        sleep_ms(5);
        device.request()?;
    }
    Ok(())
}

/// The BAR over memory, the APICs and the ends of the address space: memory stays memory.
pub fn bar_over_memory(device: &mut Device) -> Verdict {
    device.start(device.features())?;
    let (bar, home) = (device.modern().bar_index, device.function.bar(device.modern().bar_index));
    device.arena.fill();
    device.arena.watch();
    let memory = device.arena.physical(0);
    for place in [memory, 0, 0xfee0_0000, 0xfec0_0000, 0xffff_c000, 0xffff_ffff_ffff_c000, NOWHERE] {
        device.function.set_bar(bar, place);
        device.arena.write(0x7_0000, 8, 0x1122_3344_5566_7788);
        let read = device.arena.read(0x7_0000, 8);
        check!(read == 0x1122_3344_5566_7788, "with the BAR at {place:#x} memory reads {read:#x}");
        sleep_ms(1);
        device.function.set_bar(bar, home);
    }
    device.check_memory(std::slice::from_ref(&(0x7_0000..0x7_0008)))
}

/// MSI-X on, with messages to places where no APIC is, and masks that change, while requests come back.
pub fn msix_garbage(device: &mut Device) -> Verdict {
    device.start(device.features())?;
    let function = device.function;
    let Some(capability) = function.capabilities(0x11).first().copied() else { return device.request() };
    let place = function.read(capability + 4);
    let Ok(table) = function.map((place & 7) as u8) else {
        check!(false, "the MSI-X table cannot be mapped");
        return Ok(());
    };
    let table_at = (place & !7) as usize;
    let entries = (function.read(capability) >> 16 & 0x7ff) as usize + 1;
    let control = function.read(capability) & 0x3fff_ffff;
    let (enable, mask_all) = (1 << 31, 1 << 30);
    for queue in 0..device.maximum.len() as u16 {
        device.modern().write(common::QUEUE_SELECT, 2, queue.into());
        device.modern().write(common::QUEUE_VECTOR, 2, u64::from(queue) % entries as u64);
    }
    for (round, address) in [0, 4, 0x10_0000, 0xfff0_0000, NOWHERE, !3, device.own_registers()].into_iter().enumerate()
    {
        function.write(capability, control | enable | mask_all);
        for entry in 0..entries {
            table.write(table_at + 16 * entry, 8, address);
            table.write(table_at + 16 * entry + 8, 4, 0xffff_ffff >> round);
            table.write(table_at + 16 * entry + 12, 4, 0);
        }
        device.load();
        device.notify(device.target());
        function.write(capability, control | enable);
        for entry in 0..entries {
            table.write(table_at + 16 * entry + 12, 4, 0xffff_ffff);
            table.write(table_at + 16 * entry + 12, 4, 0);
        }
        device.request()?;
        function.write(capability, control);
    }
    Ok(())
}
