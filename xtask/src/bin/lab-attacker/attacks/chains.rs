//! Chains that no driver makes, in any ring.

use std::slice;

use super::NOWHERE;
use crate::arena::{DATA, TABLES};
use crate::device::{Device, Verdict, feature};
use crate::queue::{Raw, flag, write_table};

/// A buffer without bytes is no error: it comes back.
pub fn zero_length(device: &mut Device) -> Verdict {
    device.arena.fill();
    device.start(device.features())?;
    let queue = device.target();
    let (at, direction) = (device.arena.physical(DATA), device.direction());
    let piece = |flags| Raw::one(at, 0, direction | flags);
    device.arena.watch();
    for chain in [vec![piece(0)], vec![piece(flag::NEXT), piece(flag::NEXT), piece(0)]] {
        let id = device.post_raw(queue, &chain);
        device.notify(queue);
        device.expect_returned(queue, id, 0)?;
    }
    // The descriptors were written after the look at memory.
    let ring = &device.queues[usize::from(queue)];
    device.check_memory(slice::from_ref(&(ring.base..ring.base + ring.device)))
}

/// A buffer somewhere else than in memory, or not wholly in it.
pub fn buffer(device: &mut Device, address: u64, len: u32) -> Verdict {
    device.refuses(device.features(), |device| {
        let raw = Raw::one(address, len, device.direction());
        device.post_raw(device.target(), &[raw]);
    })
}

pub fn four_gib(device: &mut Device) -> Verdict {
    device.refuses(device.features(), |device| {
        let piece = |flags| Raw::one(0x10_0000, u32::MAX, device.direction() | flags);
        let chain = [piece(flag::NEXT), piece(flag::NEXT), piece(0)];
        device.post_raw(device.target(), &chain);
    })
}

pub fn readable_last(device: &mut Device) -> Verdict {
    device.refuses(device.features(), |device| {
        let at = device.arena.physical(DATA);
        let chain = [Raw::one(at, 16, flag::WRITE | flag::NEXT), Raw::one(at + 0x1000, 16, 0)];
        device.post_raw(device.target(), &chain);
    })
}

/// Writes a table of `entries` linked descriptors.
fn table(device: &Device, entries: u16) {
    let raw = |n: u16| {
        let more = if n + 1 == entries { 0 } else { flag::NEXT };
        let next = if n + 1 == entries { 0 } else { n + 1 };
        Raw { address: device.arena.physical(DATA), len: 16, flags: device.direction() | more, next }
    };
    let entries: Vec<Raw> = (0..entries).map(raw).collect();
    write_table(device.arena, TABLES, &entries, device.packed());
}

/// Makes the table at [`TABLES`] available as one of `len` bytes.
fn post_table(device: &mut Device, len: u32) -> u16 {
    let raw = Raw::one(device.arena.physical(TABLES), len, flag::INDIRECT);
    device.post_raw(device.target(), &[raw])
}

pub fn indirect_too_long(device: &mut Device) -> Verdict {
    device.refuses(device.features(), |device| {
        let entries = device.queues[usize::from(device.target())].size + 1;
        table(device, entries);
        post_table(device, u32::from(entries) * 16);
    })
}

/// A table in a table. In a packed ring only the write flag of an entry means anything (virtio 1.3 §2.8.7), so there the
/// inner table is a buffer like any other, and is not followed.
pub fn indirect_nested(device: &mut Device) -> Verdict {
    let nest = |device: &mut Device| {
        let inner = Raw::one(device.arena.physical(TABLES + 0x8000), 16, flag::INDIRECT);
        write_table(device.arena, TABLES, &[inner], device.packed());
        let buffer = Raw::one(device.arena.physical(DATA), 16, flag::WRITE);
        write_table(device.arena, TABLES + 0x8000, &[buffer], device.packed());
        post_table(device, 16)
    };
    if !device.packed() {
        return device.refuses(device.features(), |device| {
            nest(device);
        });
    }
    device.arena.fill();
    device.start(device.features())?;
    let id = nest(device);
    device.arena.watch();
    device.notify(device.target());
    device.expect_returned(device.target(), id, 0)?;
    device.check_memory(&[])
}

pub fn indirect_next(device: &mut Device) -> Verdict {
    device.refuses(device.features(), |device| {
        table(device, 1);
        let first = Raw::one(device.arena.physical(TABLES), 16, flag::INDIRECT | flag::NEXT);
        let second = Raw::one(device.arena.physical(DATA), 16, device.direction());
        device.post_raw(device.target(), &[first, second]);
    })
}

/// A table that is empty, or no whole number of descriptors.
pub fn indirect_len(device: &mut Device, len: u32) -> Verdict {
    device.refuses(device.features(), |device| {
        table(device, 2);
        post_table(device, len);
    })
}

pub fn indirect_outside(device: &mut Device) -> Verdict {
    device.refuses(device.features(), |device| {
        device.post_raw(device.target(), &[Raw::one(NOWHERE, 16, flag::INDIRECT)]);
    })
}

pub fn indirect_cycle(device: &mut Device) -> Verdict {
    device.refuses(device.features(), |device| {
        let entry =
            |next| Raw { address: device.arena.physical(DATA), len: 16, flags: device.direction() | flag::NEXT, next };
        write_table(device.arena, TABLES, &[entry(1), entry(0)], device.packed());
        post_table(device, 32);
    })
}

pub fn indirect_refused(device: &mut Device) -> Verdict {
    device.refuses(device.features() & !feature::INDIRECT, |device| {
        table(device, 1);
        post_table(device, 16);
    })
}
