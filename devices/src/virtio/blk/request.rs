//! One virtio-blk request: from the bytes of a chain to an operation on the disk, or to the status it ends with.

use std::sync::atomic::Ordering;

use serde::{Deserialize, Serialize};
use vm_memory::GuestMemory;

use super::backend::{BlkOp, SECTOR_BYTES};
use super::device::{EraseLimits, ID_BYTES, Shared, feature};
use crate::planted::{Defect, is_planted};
use crate::virtio::queue::{Chain, ChainError, GuestRange};

/// The status byte (virtio 1.3 §5.2.6).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Status {
    Ok = 0,
    IoErr = 1,
    Unsupported = 2,
}

/// Request types of virtio 1.3 §5.2.6; `FLUSH_OUT` is legacy (§5.2.6.3).
mod kind {
    pub const IN: u32 = 0;
    pub const OUT: u32 = 1;
    pub const FLUSH: u32 = 4;
    pub const FLUSH_OUT: u32 = 5;
    pub const GET_ID: u32 = 8;
    pub const DISCARD: u32 = 11;
    pub const WRITE_ZEROES: u32 = 13;
}

/// Bytes of `type`, `reserved` and `sector`.
pub(super) const HEADER_BYTES: u64 = 16;
/// The `unmap` flag of a write-zeroes segment.
const UNMAP: u32 = 1;
/// Bytes of a segment of DISCARD and WRITE_ZEROES.
pub(super) const SEGMENT_BYTES: u64 = 16;

/// How the driver has set the device up.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Mode {
    pub features: u64,
    pub legacy: bool,
}

impl Mode {
    /// Whether a completed write must be on stable storage (virtio 1.3 §5.2.6.2): the driver has no way to flush, or
    /// has switched the cache to write-through.
    pub(super) fn durable(self, shared: &Shared) -> bool {
        let cannot_flush = self.features & feature::FLUSH == 0;
        let write_through = self.features & feature::CONFIG_WCE != 0 && !shared.writeback.load(Ordering::Acquire);
        cannot_flush || write_through
    }
}

/// What a request comes to.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// The disk has to do something.
    Submit(Work),
    /// It is done, with this many bytes of its data area filled.
    Done {
        /// Bytes of data written to the guest.
        filled_bytes: u64,
    },
}

/// An operation on the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Work {
    pub op: BlkOp,
    pub offset_bytes: u64,
    pub len_bytes: u64,
}

impl Default for Work {
    /// Nothing, as a place for it.
    fn default() -> Self {
        Self { op: BlkOp::Read, offset_bytes: 0, len_bytes: 0 }
    }
}

impl Work {
    /// Whether the disk still reaches as far as it did when the request was decoded.
    pub fn is_inside(&self, shared: &Shared) -> bool {
        let capacity_bytes = shared.capacity_sectors.load(Ordering::Acquire).saturating_mul(SECTOR_BYTES);
        self.offset_bytes.saturating_add(self.len_bytes) <= capacity_bytes
    }
}

impl From<ChainError> for Status {
    fn from(_: ChainError) -> Self {
        Self::IoErr
    }
}

/// What a request begins with.
#[derive(Clone, Copy, Debug)]
pub(super) struct Header {
    kind: u32,
    sector: u64,
}

impl From<(u64, u64)> for Header {
    /// Of its two words. The upper half of the first one is reserved.
    fn from((first, sector): (u64, u64)) -> Self {
        Self { kind: first as u32, sector }
    }
}

/// The request in `chain`, where it is a read that the disk has to do; `None` says that it is for [`parse`].
#[inline(always)]
pub(super) fn parse_read(chain: &Chain, shared: &Shared, header: Header) -> Option<Work> {
    let len_bytes = chain.writable_bytes().checked_sub(1)?;
    if header.kind != kind::IN || len_bytes == 0 {
        return None;
    }
    let offset_bytes = extent(shared, header.sector, len_bytes).ok()?;
    Some(Work { op: BlkOp::Read, offset_bytes, len_bytes })
}

/// Decodes and checks the request in `chain`. The last writable byte is the status and is not touched here. A request of
/// several segments is several operations: those after the first are put into `rest`, the last one first. An error is the
/// status the request ends with.
pub(super) fn parse<M: GuestMemory + ?Sized>(
    mem: &M,
    chain: &Chain,
    shared: &Shared,
    mode: Mode,
    Header { kind, sector }: Header,
    rest: &mut Vec<Work>,
) -> Result<Outcome, Status> {
    let data_bytes = chain.writable_bytes().checked_sub(1).ok_or(Status::IoErr)?;
    match kind {
        kind::IN => {
            let offset_bytes = extent(shared, sector, data_bytes)?;
            Ok(submit(BlkOp::Read, offset_bytes, data_bytes))
        }
        kind::OUT => {
            writable(shared)?;
            let len_bytes = chain.readable_bytes().saturating_sub(HEADER_BYTES);
            let offset_bytes = extent(shared, sector, len_bytes)?;
            Ok(submit(BlkOp::Write { durable: mode.durable(shared) }, offset_bytes, len_bytes))
        }
        _ => parse_rare(mem, chain, shared, mode, kind, rest),
    }
}

/// As [`parse`], of a request of any other `kind`, so that those which are common stay small.
#[inline(never)]
fn parse_rare<M: GuestMemory + ?Sized>(
    mem: &M,
    chain: &Chain,
    shared: &Shared,
    mode: Mode,
    kind: u32,
    rest: &mut Vec<Work>,
) -> Result<Outcome, Status> {
    let (_, out_data) = chain.reader(mem).split_at(HEADER_BYTES)?;
    let data_bytes = chain.writable_bytes().checked_sub(1).ok_or(Status::IoErr)?;

    let mut erase = |limits: Option<EraseLimits>, bit: u64, op: fn(u32, bool) -> Option<BlkOp>| {
        let limits = limits.filter(|_| mode.features & bit != 0).ok_or(Status::Unsupported)?;
        let mut segments = out_data.clone();
        let count = segments.remaining().checked_div(SEGMENT_BYTES).unwrap_or_default();
        let whole = count.checked_mul(SEGMENT_BYTES) == Some(segments.remaining());
        if !whole || count == 0 || count > u64::from(limits.max_segments) {
            return Err(Status::IoErr);
        }
        for _ in 0..count {
            let first = u64::from_le_bytes(segments.read_array()?);
            let sectors = u32::from_le_bytes(segments.read_array()?);
            let flags = u32::from_le_bytes(segments.read_array()?);
            let op = op(flags, mode.durable(shared)).ok_or(Status::Unsupported)?;
            if sectors > limits.max_sectors {
                return Err(Status::IoErr);
            }
            writable(shared)?;
            let len_bytes = u64::from(sectors).checked_mul(SECTOR_BYTES).ok_or(Status::IoErr)?;
            let offset_bytes = extent(shared, first, len_bytes)?;
            if len_bytes > 0 {
                rest.push(Work { op, offset_bytes, len_bytes });
            }
        }
        rest.reverse();
        Ok(rest.pop().map_or(Outcome::Done { filled_bytes: 0 }, Outcome::Submit))
    };

    match kind {
        kind::FLUSH => Ok(flush()),
        kind::FLUSH_OUT if mode.legacy => Ok(flush()),
        kind::GET_ID => {
            // §5.2.6: NUL-padded, without a NUL where it takes all 20 bytes.
            let mut id = [0; ID_BYTES];
            for (to, from) in id.iter_mut().zip(shared.config.serial.bytes()) {
                *to = from;
            }
            let filled_bytes = data_bytes.min(ID_BYTES as u64);
            chain.writer(mem).write(id.get(..filled_bytes as usize).unwrap_or_default())?;
            Ok(Outcome::Done { filled_bytes })
        }
        // §5.2.6.2: UNSUPP for unknown flags, and for unmap in a discard.
        kind::DISCARD => {
            erase(shared.config.discard, feature::DISCARD, |flags, _| (flags == 0).then_some(BlkOp::Discard))
        }
        kind::WRITE_ZEROES => erase(shared.config.write_zeroes, feature::WRITE_ZEROES, |flags, durable| {
            (flags & !UNMAP == 0).then_some(BlkOp::WriteZeroes { unmap: flags & UNMAP != 0, durable })
        }),
        _ => Err(Status::Unsupported),
    }
}

/// The guest memory that holds the data of a request for `work`, which [`parse`] found in `chain`. `room` is for a list
/// where the chain has none.
#[inline(always)]
pub(super) fn data_ranges<'r, M: GuestMemory + ?Sized>(
    mem: &M,
    chain: &'r Chain,
    work: &Work,
    room: &'r mut Vec<GuestRange>,
) -> Result<&'r [GuestRange], ChainError> {
    // As drivers do it: header and status are buffers of their own, and the data is what lies between.
    match (work.op, chain.readable().split_first(), chain.writable().split_last()) {
        (BlkOp::Read, _, Some((status, data))) if status.len == 1 => Ok(data),
        (BlkOp::Write { .. }, Some((header, data)), _) if u64::from(header.len) == HEADER_BYTES => Ok(data),
        _ => data_ranges_anywhere(mem, chain, work, room),
    }
}

#[cold]
fn data_ranges_anywhere<'r, M: GuestMemory + ?Sized>(
    mem: &M,
    chain: &Chain,
    work: &Work,
    ranges: &'r mut Vec<GuestRange>,
) -> Result<&'r [GuestRange], ChainError> {
    ranges.clear();
    match work.op {
        BlkOp::Read => chain.writer(mem).first(work.len_bytes).append_ranges(ranges),
        BlkOp::Write { .. } => chain.reader(mem).split_at(HEADER_BYTES)?.1.append_ranges(ranges),
        BlkOp::Flush | BlkOp::Discard | BlkOp::WriteZeroes { .. } => {}
    }
    Ok(ranges)
}

/// A disk operation; one without bytes is done already.
fn submit(op: BlkOp, offset_bytes: u64, len_bytes: u64) -> Outcome {
    match len_bytes {
        0 => Outcome::Done { filled_bytes: 0 },
        _ => Outcome::Submit(Work { op, offset_bytes, len_bytes }),
    }
}

fn flush() -> Outcome {
    Outcome::Submit(Work { op: BlkOp::Flush, offset_bytes: 0, len_bytes: 0 })
}

fn writable(shared: &Shared) -> Result<(), Status> {
    if shared.config.read_only { Err(Status::IoErr) } else { Ok(()) }
}

/// The byte offset of `sector`, where `len_bytes` bytes from there are whole sectors inside the disk.
#[inline]
fn extent(shared: &Shared, sector: u64, len_bytes: u64) -> Result<u64, Status> {
    let sectors = len_bytes.checked_div(SECTOR_BYTES).unwrap_or_default();
    let whole = sectors.checked_mul(SECTOR_BYTES) == Some(len_bytes);
    let end = match is_planted(Defect::SectorsWrap) {
        true => sector.wrapping_add(sectors),
        false => sector.checked_add(sectors).ok_or(Status::IoErr)?,
    };
    if !whole || end > shared.capacity_sectors.load(Ordering::Acquire) {
        return Err(Status::IoErr);
    }
    if is_planted(Defect::SectorsWrap) {
        return Ok(sector.wrapping_mul(SECTOR_BYTES));
    }
    sector.checked_mul(SECTOR_BYTES).ok_or(Status::IoErr)
}
