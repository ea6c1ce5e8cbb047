//! Requests of a block device that its driver gets wrong (virtio 1.3 §5.2.6).

use crate::check;
use crate::device::{Device, Verdict, block};
use crate::queue::flag;
use crate::requests::blk;

const OK: u64 = 0;
const IO_ERROR: u64 = 1;
const UNSUPPORTED: u64 = 2;
/// What the status byte holds before.
const UNTOUCHED: u64 = 0xff;

const HEADER: usize = block_at(0);
const DATA: usize = HEADER + 0x1000;
const STATUS: usize = HEADER + 0x2000;

const fn block_at(n: usize) -> usize {
    crate::arena::DATA + n * 0x3000
}

/// Starts the device and makes one request of these buffers; it must come back with this length.
fn request(device: &mut Device, header: (u32, u64), buffers: &[(usize, u32, u16)], len: u32) -> Verdict {
    debug_assert_eq!(HEADER, block(0));
    device.arena.fill();
    device.start(device.features())?;
    device.put_blk_header(HEADER, header.0, header.1);
    device.arena.write(STATUS, 1, UNTOUCHED);
    let id = device.post(0, buffers);
    device.arena.watch();
    device.notify(0);
    device.expect_returned(0, id, len)?;
    let offered: Vec<_> = buffers
        .iter()
        .filter(|(.., flags)| flags & flag::WRITE != 0)
        .map(|(at, len, _)| *at..*at + *len as usize)
        .collect();
    device.check_memory(&offered)
}

/// The same, where the request's status must be this one.
fn answered(device: &mut Device, header: (u32, u64), buffers: &[(usize, u32, u16)], len: u32, want: u64) -> Verdict {
    request(device, header, buffers, len)?;
    let status = device.arena.read(STATUS, 1);
    check!(status == want, "the status is {status}, not {want}");
    Ok(())
}

/// Nowhere to put an answer: the buffer comes back.
pub fn header_only(device: &mut Device) -> Verdict {
    request(device, (blk::IN, 0), &[(HEADER, 16, 0)], 0)
}

pub fn header_short(device: &mut Device) -> Verdict {
    let buffers = [(HEADER, 8, 0), (DATA, 512, flag::WRITE), (STATUS, 1, flag::WRITE)];
    answered(device, (blk::IN, 0), &buffers, 0, IO_ERROR)
}

/// The header is the device's to write, so there is none.
pub fn header_writable(device: &mut Device) -> Verdict {
    let buffers = [(HEADER, 16, flag::WRITE), (DATA, 512, flag::WRITE), (STATUS, 1, flag::WRITE)];
    answered(device, (blk::IN, 0), &buffers, 0, IO_ERROR)
}

pub fn no_status(device: &mut Device) -> Verdict {
    request(device, (blk::OUT, 0), &[(HEADER, 16, 0), (DATA, 512, 0)], 0)
}

/// The last descriptor is empty: the status is the last byte there is.
pub fn status_zero(device: &mut Device) -> Verdict {
    let buffers =
        [(HEADER, 16, 0), (DATA, 512, flag::WRITE), (STATUS, 1, flag::WRITE), (STATUS + 0x800, 0, flag::WRITE)];
    answered(device, (blk::IN, 0), &buffers, 513, OK)
}

/// A sector that the disk does not have.
pub fn sector(device: &mut Device, sector: u64) -> Verdict {
    for kind in [blk::IN, blk::OUT] {
        let direction = if kind == blk::IN { flag::WRITE } else { 0 };
        let buffers = [(HEADER, 16, 0), (DATA, 1024, direction), (STATUS, 1, flag::WRITE)];
        answered(device, (kind, sector), &buffers, if kind == blk::IN { 0 } else { 1 }, IO_ERROR)?;
    }
    Ok(())
}

pub fn not_sectors(device: &mut Device) -> Verdict {
    for len in [1, 511, 513] {
        let buffers = [(HEADER, 16, 0), (DATA, len, flag::WRITE), (STATUS, 1, flag::WRITE)];
        answered(device, (blk::IN, 0), &buffers, 0, IO_ERROR)?;
    }
    Ok(())
}

pub fn unknown_type(device: &mut Device) -> Verdict {
    for kind in [2, 3, 0x7fff_ffff, u32::MAX] {
        let buffers = [(HEADER, 16, 0), (DATA, 512, flag::WRITE), (STATUS, 1, flag::WRITE)];
        answered(device, (kind, 0), &buffers, 0, UNSUPPORTED)?;
    }
    Ok(())
}

/// The name has 20 bytes, whatever is asked for.
pub fn ident(device: &mut Device) -> Verdict {
    let buffers = [(HEADER, 16, 0), (DATA, 0x1000, flag::WRITE), (STATUS, 1, flag::WRITE)];
    answered(device, (blk::GET_ID, 0), &buffers, 20, OK)?;
    let changed = device.arena.first_change(&[device.ring_areas(), vec![DATA..DATA + 20, STATUS..STATUS + 1]].concat());
    check!(changed.is_none(), "the name reaches {changed:x?}");
    Ok(())
}

/// Ranges that wrap, or leave the disk. Not negotiated, the request itself is unknown.
pub fn write_zeroes(device: &mut Device) -> Verdict {
    const F_WRITE_ZEROES: u64 = 1 << 14;
    let features = device.features() | device.offered & F_WRITE_ZEROES;
    let known = features & F_WRITE_ZEROES != 0;
    for (sector, sectors) in [(u64::MAX, 1), (u64::MAX - 7, 16), (1 << 40, u32::MAX), (0, u32::MAX)] {
        device.start(features)?;
        device.put_blk_header(HEADER, blk::WRITE_ZEROES, 0);
        device.arena.write(DATA, 8, sector);
        device.arena.write(DATA + 8, 4, sectors.into());
        device.arena.write(DATA + 12, 4, 0);
        device.arena.write(STATUS, 1, UNTOUCHED);
        let id = device.post(0, &[(HEADER, 16, 0), (DATA, 16, 0), (STATUS, 1, flag::WRITE)]);
        device.notify(0);
        device.expect_returned(0, id, 1)?;
        let status = device.arena.read(STATUS, 1);
        let want = if known { IO_ERROR } else { UNSUPPORTED };
        check!(status == want, "{sectors} sectors from {sector:#x} on: the status is {status}, not {want}");
    }
    Ok(())
}
