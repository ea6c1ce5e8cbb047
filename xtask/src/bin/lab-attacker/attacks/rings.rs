//! Rings that no driver makes.

use std::time::Duration;

use super::NOWHERE;
use crate::arena::DATA;
use crate::check;
use crate::device::{Device, LIMIT, SILENCE_MS, Verdict, block, feature};
use crate::machine::{sleep_ms, spin, wait};
use crate::queue::{Raw, Used, flag};
use crate::registers::status;

/// Says that one more chain is available where the entry names none.
pub fn index_jump_one(device: &mut Device) -> Verdict {
    device.refuses(device.features(), |device| {
        let queue = &device.queues[usize::from(device.target())];
        device.arena.write(queue.base + queue.driver + 4, 2, 0xa5a5);
        queue.set_index(device.arena, 1);
    })
}

/// A whole ring of the same head: as many requests as there are entries at the most.
pub fn index_jump_size(device: &mut Device) -> Verdict {
    device.arena.fill();
    device.start(device.features())?;
    let (id, offered) = device.post_valid();
    let target = device.target();
    let queue = &device.queues[usize::from(target)];
    let size = queue.size;
    for entry in 0..size {
        device.arena.write(queue.base + queue.driver + 4 + 2 * usize::from(entry), 2, id.into());
    }
    queue.set_index(device.arena, size);
    device.arena.watch();
    device.notify(target);
    at_most(device, id, size)?;
    device.check_memory(&offered)
}

/// The same head comes back up to so often, or the device asks to be reset: heads in flight are not accepted twice.
fn at_most(device: &mut Device, id: u16, most: u16) -> Verdict {
    let target = device.target();
    let (mut count, mut wrong) = (0, None);
    let limit = if device.is_legacy() { Duration::from_millis(100) } else { LIMIT };
    wait(limit, || {
        while let Some(used) = device.used(target) {
            count += 1;
            wrong = wrong.or((used.id != id).then_some(used));
        }
        count >= most || wrong.is_some() || device.registers.status() & status::NEEDS_RESET != 0
    });
    sleep_ms(SILENCE_MS);
    while device.used(target).is_some() {
        count += 1;
    }
    check!(wrong.is_none(), "{wrong:?} came back, where only {id} was made available");
    check!(count <= most, "{count} requests came back of {most}");
    let needs_reset = device.registers.status() & status::NEEDS_RESET != 0;
    check!(
        device.is_legacy() || count == most || needs_reset,
        "{count} of {most} came back, and no reset is asked for"
    );
    Ok(())
}

/// The index runs further ahead than the ring has entries.
pub fn index_jump_too_far(device: &mut Device, index: fn(u16) -> u16) -> Verdict {
    device.refuses(device.features(), |device| {
        device.post_valid();
        let queue = &device.queues[usize::from(device.target())];
        queue.set_index(device.arena, index(queue.size));
    })
}

pub fn head_outside(device: &mut Device) -> Verdict {
    for head in [|size: u16| size, |_: u16| 0x7fff, |_: u16| u16::MAX] {
        device.refuses(device.features(), |device| {
            let target = usize::from(device.target());
            let head = head(device.queues[target].size);
            device.queues[target].publish(device.arena, head);
        })?;
    }
    Ok(())
}

pub fn next_outside(device: &mut Device) -> Verdict {
    for next in [|size: u16| size, |_: u16| u16::MAX] {
        device.refuses(device.features(), |device| {
            let target = usize::from(device.target());
            let flags = device.direction() | flag::NEXT;
            let queue = &mut device.queues[target];
            let raw = Raw { address: device.arena.physical(DATA), len: 16, flags, next: next(queue.size) };
            queue.describe(device.arena, 0, raw, 0);
            queue.publish(device.arena, 0);
        })?;
    }
    Ok(())
}

/// A chain of up to `len` descriptors whose end is its beginning.
pub fn cycle(device: &mut Device, len: u16) -> Verdict {
    device.refuses(device.features(), |device| {
        let (target, flags) = (usize::from(device.target()), device.direction() | flag::NEXT);
        let queue = &mut device.queues[target];
        let len = len.min(queue.size);
        for index in 0..len {
            let raw = Raw { address: device.arena.physical(DATA), len: 16, flags, next: (index + 1) % len };
            queue.describe(device.arena, index, raw, 0);
        }
        queue.publish(device.arena, 0);
    })
}

/// The chain goes on in a descriptor that is not available (virtio 1.3 §2.8.6).
pub fn packed_unavailable(device: &mut Device) -> Verdict {
    device.refuses(device.features(), |device| {
        let raw = Raw::one(device.arena.physical(DATA), 16, device.direction() | flag::NEXT);
        device.post_raw(device.target(), &[raw]);
    })
}

/// Every descriptor of the ring is available and continues: a chain without an end.
pub fn packed_too_long(device: &mut Device) -> Verdict {
    device.refuses(device.features(), |device| {
        let size = device.queues[usize::from(device.target())].size;
        let raw = Raw::one(device.arena.physical(DATA), 16, device.direction() | flag::NEXT);
        device.post_raw(device.target(), &vec![raw; usize::from(size)]);
    })
}

/// Every combination of the two flags that say whose a descriptor is, in the whole ring behind a valid chain: one makes
/// each of them a request without bytes.
pub fn packed_flags(device: &mut Device) -> Verdict {
    for own in [0, flag::AVAIL, flag::USED, flag::AVAIL | flag::USED] {
        device.arena.fill();
        device.start(device.features())?;
        let (id, offered) = device.post_valid();
        let target = device.target();
        let queue = &device.queues[usize::from(target)];
        for index in 0..queue.size {
            let at = queue.base + 16 * usize::from(index);
            if device.arena.read(at + 8, 4) != 0 {
                continue;
            }
            let raw = Raw::one(device.arena.physical(DATA), 0, device.direction() | own);
            queue.describe(device.arena, index, raw, id.wrapping_add(1));
        }
        device.arena.watch();
        device.notify(target);
        // They share an id, so the second of them is refused if the first is in flight; they may overtake the valid chain.
        let first = device.wait_used(target);
        let known = |used: Used| used.id == id || own == flag::AVAIL && used.id == id.wrapping_add(1);
        check!(first.is_some_and(known), "{first:?} came back first");
        sleep_ms(SILENCE_MS);
        device.check_memory(&offered)?;
    }
    Ok(())
}

/// The driver's event suppression area is anything: requests are served all the same.
pub fn packed_events(device: &mut Device) -> Verdict {
    let features = device.features() | device.offered & feature::EVENT_IDX;
    device.start(features)?;
    let queue = &device.queues[usize::from(device.target())];
    let area = queue.base + queue.driver;
    for garbage in [0xffff_ffff_u64, 0x0003_7fff, 0x0002_ffff, 0x0002_8000, 0x0001_0000, 0xa5a5_a5a5] {
        device.arena.write(area, 4, garbage);
        device.request()?;
    }
    Ok(())
}

/// The event index is anything: requests are served all the same.
pub fn event_index(device: &mut Device) -> Verdict {
    check!(device.offered & feature::EVENT_IDX != 0, "EVENT_IDX is not offered");
    device.start(device.features() | feature::EVENT_IDX)?;
    let queue = &device.queues[usize::from(device.target())];
    let event = queue.base + queue.driver + 4 + 2 * usize::from(queue.size);
    for garbage in [0xffff_u64, 0x8000, 0x7fff, 1, 0, 0xa5a5] {
        device.arena.write(event, 2, garbage);
        device.request()?;
    }
    Ok(())
}

/// Two chains with one head, or with one buffer id, at once.
pub fn duplicate_head(device: &mut Device) -> Verdict {
    device.arena.fill();
    device.start(device.features())?;
    let target = usize::from(device.target());
    let (id, mut offered) = device.post_valid();
    if device.packed() {
        device.queues[target].repeat_id();
        offered.extend(device.post_valid().1);
    } else {
        let arena = &*device.arena;
        device.queues[target].publish(arena, id);
    }
    device.arena.watch();
    device.notify(device.target());
    at_most(device, id, 2)?;
    device.check_memory(&offered)
}

/// The driver changes descriptors while the device looks at them. Whatever the device sees, it writes nowhere else.
pub fn rewritten(device: &mut Device) -> Verdict {
    const ROUNDS: usize = 12;
    let target = device.target();
    for round in 0..ROUNDS {
        device.arena.fill();
        device.start(device.features())?;
        let offered = device.load();
        let queue = &device.queues[usize::from(target)];
        let ring = queue.base..queue.base + queue.device;
        let before: Vec<(u64, u64)> = (0..usize::from(queue.size))
            .map(|n| (device.arena.read(queue.base + 16 * n, 8), device.arena.read(queue.base + 16 * n + 8, 4)))
            .collect();
        device.arena.watch();
        device.notify(target);
        for flip in 0..4 * (round + 1) {
            for (n, (address, len)) in before.iter().enumerate() {
                let at = queue.base + 16 * n;
                let (address, len) = match (flip + n) % 4 {
                    0 => (NOWHERE, *len),
                    1 => (*address, u64::from(u32::MAX)),
                    2 => (*address, 0),
                    _ => (*address, *len),
                };
                device.arena.write(at, 8, address);
                device.arena.write(at + 8, 4, len);
            }
            spin(Duration::from_micros(20));
        }
        sleep_ms(2);
        // A length of a long buffer at a short one's address is still inside the blocks that were offered.
        let blocks = if offered.is_empty() { 0..0 } else { block(0)..block(16) };
        device.check_memory(&[ring, blocks])?;
        device.reset()?;
    }
    Ok(())
}
