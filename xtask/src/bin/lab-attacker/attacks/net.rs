//! Frames and receive buffers that a network driver gets wrong (virtio 1.3 §5.1.6).

use crate::arena::{CHECKED, TABLES};
use crate::check;
use crate::device::{Device, LIMIT, Verdict, block};
use crate::machine::wait;
use crate::queue::{Raw, flag, write_table};

/// A buffer for one frame that has no whole header, or nothing behind it: it comes back and nothing is sent.
pub fn transmit(device: &mut Device, len: u32) -> Verdict {
    device.arena.fill();
    device.start(device.features())?;
    device.arena.put(block(0), &vec![0; len as usize]);
    let id = device.post(1, &[(block(0), len, 0)]);
    device.arena.watch();
    device.notify(1);
    device.expect_returned(1, id, 0)?;
    device.check_memory(&[])
}

/// More bytes than any frame has, in one buffer and in a whole table of them.
pub fn huge(device: &mut Device) -> Verdict {
    device.start(device.features())?;
    let large = device.arena.physical(CHECKED);
    let id = device.post_raw(1, &[Raw::one(large, 0x10_0000, 0)]);
    device.notify(1);
    device.expect_returned(1, id, 0)?;
    let entries = device.queues[1].size;
    let raw = |n| {
        let last = n + 1 == entries;
        Raw {
            address: large,
            len: 0x1_0000,
            flags: if last { 0 } else { flag::NEXT },
            next: if last { 0 } else { n + 1 },
        }
    };
    let table: Vec<Raw> = (0..entries).map(raw).collect();
    write_table(device.arena, TABLES, &table, device.packed());
    let indirect = Raw::one(device.arena.physical(TABLES), u32::from(entries) * 16, flag::INDIRECT);
    let id = device.post_raw(1, &[indirect]);
    device.notify(1);
    device.expect_returned(1, id, 0)?;
    device.request()
}

/// Offload requests that were not negotiated or make no sense: the frame is sent or lost, the buffer comes back.
pub fn header_garbage(device: &mut Device) -> Verdict {
    device.start(device.features())?;
    for header in
        [[0xff; 12], [1, 1, 0xff, 0xff, 0, 0, 0xff, 0xff, 0xff, 0xff, 0, 0], [1, 0x84, 0, 0, 1, 0, 0, 0, 0, 0, 9, 9]]
    {
        device.arena.put(block(0), &[0x55; 1000]);
        device.arena.put(block(0), &header[..device.net_header_bytes()]);
        let id = device.post(1, &[(block(0), 1000, 0)]);
        device.notify(1);
        device.expect_returned(1, id, 0)?;
    }
    device.request()
}

/// Makes the host say something, without a buffer of this program's for it.
fn provoke(device: &mut Device) -> Verdict {
    let (id, _) = device.post_valid();
    device.notify(1);
    device.expect_returned(1, id, 0)
}

/// Receive buffers that have no room for a header: each comes back unwritten, and others work.
pub fn receive_short(device: &mut Device, features: u64) -> Verdict {
    const SHORT: usize = 4;
    device.arena.fill();
    device.start(features)?;
    let at = block(8);
    let ids: Vec<u16> = (0..SHORT).map(|n| device.post(0, &[(at + n * 0x1000, 4, flag::WRITE)])).collect();
    device.notify(0);
    // It may only be looked at once there is a frame.
    provoke(device)?;
    for id in ids {
        let used = device.wait_used(0);
        check!(used.is_some_and(|used| used.id == id && used.len == 0), "{used:?} came back for id {id}");
    }
    for n in 0..SHORT {
        let bytes = device.arena.get(at + n * 0x1000..at + n * 0x1000 + 4);
        check!(bytes == [0xa5; 4], "a buffer without room for a header was written to: {bytes:x?}");
    }
    device.request()
}

/// A readable buffer to receive into: it comes back unwritten, or the ring is refused.
pub fn receive_readable(device: &mut Device) -> Verdict {
    device.arena.fill();
    device.start(device.features())?;
    let at = block(8);
    let id = device.post(0, &[(at, 1600, 0)]);
    device.arena.watch();
    device.notify(0);
    provoke(device)?;
    let mut used = None;
    wait(LIMIT, || {
        used = device.used(0);
        used.is_some()
    });
    check!(used.is_some_and(|used| used.id == id && used.len == 0), "{used:?} came back for id {id}");
    let bytes = device.arena.get(at..at + 1600);
    check!(bytes.iter().all(|byte| *byte == 0xa5), "a readable buffer was written to");
    Ok(())
}
