//! Requests that drivers of consoles and entropy sources get wrong (virtio 1.3 §5.3.6, §5.4.6).

use crate::arena::{CHECKED, TABLES};
use crate::check;
use crate::device::{Device, Verdict, block};
use crate::machine::sleep_ms;
use crate::queue::{Raw, flag, write_table};

/// 8 MiB of output as fast as it goes: every buffer comes back.
pub fn flood(device: &mut Device) -> Verdict {
    const CHAIN: u32 = 0x8_0000;
    device.start(device.features())?;
    let at = device.arena.physical(CHECKED);
    for _ in 0..4 {
        let ids: Vec<u16> = (0..4).map(|_| device.post_raw(1, &[Raw::one(at, CHAIN, 0)])).collect();
        device.notify(1);
        for id in ids {
            let used = device.wait_used(1);
            check!(used.is_some_and(|used| used.id == id && used.len == 0), "{used:?} came back for id {id}");
        }
    }
    device.request()
}

/// A chain of 16 MiB: a reset does not wait for its end, and nothing is looked at after it.
pub fn endless(device: &mut Device) -> Verdict {
    device.start(device.features())?;
    let entries = device.queues[1].size.min(16);
    let raw = |n| {
        let last = n + 1 == entries;
        Raw {
            address: device.arena.physical(CHECKED),
            len: 0x10_0000,
            flags: if last { 0 } else { flag::NEXT },
            next: if last { 0 } else { n + 1 },
        }
    };
    let table: Vec<Raw> = (0..entries).map(raw).collect();
    write_table(device.arena, TABLES, &table, device.packed());
    let indirect = Raw::one(device.arena.physical(TABLES), u32::from(entries) * 16, flag::INDIRECT);
    for _ in 0..8 {
        device.post_raw(1, &[indirect]);
    }
    device.notify(1);
    sleep_ms(1);
    device.reset()?;
    device.check_is_quiet(3)
}

/// A buffer to write to in the queue for output: it comes back as it was.
pub fn transmit_writable(device: &mut Device) -> Verdict {
    device.arena.fill();
    device.start(device.features())?;
    let id = device.post(1, &[(block(0), 64, flag::WRITE)]);
    device.arena.watch();
    device.notify(1);
    device.expect_returned(1, id, 0)?;
    device.check_memory(&[])
}

/// Readable buffers: nothing can be written, so nothing comes back but the buffer.
pub fn readable(device: &mut Device) -> Verdict {
    device.arena.fill();
    device.start(device.features())?;
    let id = device.post(0, &[(block(0), 64, 0), (block(1), 64, 0)]);
    device.arena.watch();
    device.notify(0);
    device.expect_returned(0, id, 0)?;
    device.check_memory(&[])?;
    // The writable part is filled where there is one.
    let id = device.post(0, &[(block(0), 64, 0), (block(1), 64, flag::WRITE)]);
    device.arena.watch();
    device.notify(0);
    device.expect_returned(0, id, 64)?;
    device.check_memory(std::slice::from_ref(&(block(1)..block(1) + 64)))
}

/// A length does not size anything in the host: 1 MiB gets what there is.
pub fn huge(device: &mut Device) -> Verdict {
    device.start(device.features())?;
    let id = device.post_raw(0, &[Raw::one(device.arena.physical(CHECKED), 0x10_0000, flag::WRITE)]);
    device.notify(0);
    let used = device.wait_used(0);
    check!(
        used.is_some_and(|used| used.id == id && used.len > 0 && used.len <= 0x10_0000),
        "{used:?} came back for id {id}"
    );
    Ok(())
}

/// As many pieces as a chain has, each of one byte: all are filled, and nothing between them.
pub fn pieces(device: &mut Device) -> Verdict {
    device.arena.fill();
    device.start(device.features())?;
    let count = device.queues[0].size.min(16);
    let buffers: Vec<_> = (0..usize::from(count)).map(|n| (block(0) + 64 * n, 1, flag::WRITE)).collect();
    let id = device.post(0, &buffers);
    device.arena.watch();
    device.notify(0);
    device.expect_returned(0, id, count.into())?;
    let offered: Vec<_> = buffers.iter().map(|(at, ..)| *at..*at + 1).collect();
    device.check_memory(&offered)
}
