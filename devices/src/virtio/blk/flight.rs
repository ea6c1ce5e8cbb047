//! A disk's requests in flight, and what the disk's answers to them say about durability.

use vm_memory::GuestMemory;

use super::backend::{BlkBackend, BlkError, BlkOp, BlkRequest, RequestToken};
use super::durability::{Durability, Moment};
use super::request::{Work, data_ranges};
use crate::virtio::queue::{Chain, GuestRange};

/// A request, in one place from its submission to its end, or room for one.
#[derive(Debug, Default)]
pub(super) struct InFlight {
    /// `None`: there is none, and the rest means nothing, but that `rest` is empty.
    pub chain: Option<Chain>,
    pub work: Work,
    /// What is to be done after it, the last one first.
    pub rest: Vec<Work>,
    pub stage: Stage,
    /// When the disk was asked.
    pub asked: Moment,
}

impl InFlight {
    /// What is to be done and is not, the first element last.
    pub fn work_left(&self) -> Vec<Work> {
        self.rest.iter().chain([&self.work]).copied().collect()
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Stage {
    /// The disk works on it.
    #[default]
    Asked,
    /// It is done, and counts as durable when the flush that the disk works on has succeeded.
    Settling,
    /// The disk failed it; it waits for the operator.
    Held,
}

/// What the disk is to call the request at `head`.
#[inline]
pub(super) fn token(life: u32, head: u16) -> RequestToken {
    RequestToken(u64::from(life) << 16 | u64::from(head))
}

/// The request at `head`, where there is one.
#[inline]
pub(super) fn request_at(in_flight: &mut [InFlight], head: u16) -> Option<&mut InFlight> {
    in_flight.get_mut(usize::from(head)).filter(|place| place.chain.is_some())
}

/// Has the disk do what `request` is for, which is `work`. Where it does not begin, the request ends with that error, and
/// what it means is remembered. `room` is for a list of ranges.
#[inline(always)]
pub(super) fn ask<M: GuestMemory, B: BlkBackend<M>>(
    disk: &mut B,
    durability: &Durability,
    mem: &M,
    token: RequestToken,
    request: &mut InFlight,
    work: Work,
    room: &mut Vec<GuestRange>,
) -> Result<(), BlkError> {
    let Some(chain) = &request.chain else { return Ok(()) };
    let Work { op, offset_bytes, len_bytes } = work;
    // A read changes nothing that has to be durable, and needs nothing that was to be.
    if op != BlkOp::Read {
        if op.is_durable() && durability.is_lost() {
            return Err(BlkError::Lost);
        }
        request.asked = durability.now();
    }
    request.stage = Stage::Asked;
    let begun = match data_ranges(mem, chain, &work, room) {
        Ok(ranges) => disk.submit(mem, BlkRequest { token, op, offset_bytes, len_bytes, ranges }),
        Err(_) => Err(BlkError::Memory),
    };
    if let Err(error) = begun {
        remember(durability, request, Err(error));
    }
    begun
}

/// What the disk's answer means for what is durable.
#[inline]
pub(super) fn remember(durability: &Durability, request: &InFlight, result: Result<(), BlkError>) {
    let flush = request.work.op == BlkOp::Flush || request.stage == Stage::Settling;
    match result {
        Ok(()) if flush => durability.flushed(request.asked),
        Ok(()) => {}
        Err(error) => remember_failure(durability, request, flush, error),
    }
}

#[cold]
fn remember_failure(durability: &Durability, request: &InFlight, flush: bool, error: BlkError) {
    match error {
        BlkError::Cancelled if flush => {}
        _ if flush => durability.flush_failed(),
        error if request.work.op.writes() => {
            if error.is_of_disk() || error == BlkError::Cancelled {
                durability.write_failed();
            }
            // It may have been the part that makes it durable, whose failure the system reports once, and of other
            // writes as well. Without space nothing was taken in the first place.
            if request.work.op.is_durable() && error.is_of_disk() && error != BlkError::NoSpace {
                durability.flush_failed();
            }
        }
        _ => {}
    }
}
