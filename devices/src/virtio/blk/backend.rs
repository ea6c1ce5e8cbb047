//! What a disk has to offer: the seam between virtio-blk and whatever stores the sectors.

use serde::{Deserialize, Serialize};

use crate::virtio::queue::GuestRange;

/// Bytes of a sector, the protocol's unit whatever the logical block size is (virtio 1.3 §5.2.4).
pub const SECTOR_BYTES: u64 = 512;

/// Names one request between [`BlkBackend::submit`] and its completion. Opaque to the back end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct RequestToken(pub u64);

/// What a request does to the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum BlkOp {
    /// Disk to guest ranges.
    Read,
    /// Guest ranges to disk.
    Write {
        /// The data must be on stable storage before the request completes (the guest has no volatile cache to flush:
        /// virtio 1.3 §5.2.6.2).
        durable: bool,
    },
    /// Everything completed before this was submitted must be on stable storage before it completes.
    Flush,
    /// The range's content may be forgotten.
    Discard,
    /// The range reads as zeroes afterwards.
    WriteZeroes {
        /// The range may be deallocated.
        unmap: bool,
        /// As for [`Write`](Self::Write).
        durable: bool,
    },
}

/// One request. The device has checked it: the byte range lies inside the disk's capacity and is a multiple of
/// [`SECTOR_BYTES`], and `ranges` add up to `len_bytes` (and are empty for operations without data).
#[derive(Clone, Copy, Debug)]
pub struct BlkRequest<'a> {
    /// What the completion will be called.
    pub token: RequestToken,
    /// What to do.
    pub op: BlkOp,
    /// First byte on the disk.
    pub offset_bytes: u64,
    /// Bytes on the disk.
    pub len_bytes: u64,
    /// Guest memory to read into or write from, in order; borrowed for the call, so an asynchronous back end copies
    /// the list.
    pub ranges: &'a [GuestRange],
}

/// How a request failed. The guest sees UNSUPP for [`Unsupported`](Self::Unsupported) and IOERR for the rest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BlkError {
    /// This back end cannot do this operation.
    #[error("the disk does not support this operation")]
    Unsupported,
    /// The host refused, with this `errno` of the host.
    #[error("the disk failed with errno {0}")]
    Host(i32),
    /// The disk is out of space.
    #[error("no space is left for the disk")]
    NoSpace,
    /// The disk ended before the request did.
    #[error("the disk is shorter than its capacity")]
    Short,
    /// An earlier flush failed, and what it was to make durable may be gone. The device says this, no disk does.
    #[error("a flush failed before, and nobody has said to go on")]
    Lost,
    /// Guest memory could not be reached.
    #[error("guest memory could not be reached")]
    Memory,
    /// The request was cancelled by [`BlkBackend::cancel_all`].
    #[error("the request was cancelled")]
    Cancelled,
}

impl BlkError {
    /// Whether the disk is to blame, and not the guest or somebody who wanted the request to end.
    pub(super) fn is_of_disk(self) -> bool {
        match self {
            Self::Host(_) | Self::NoSpace | Self::Short | Self::Lost => true,
            Self::Unsupported | Self::Memory | Self::Cancelled => false,
        }
    }
}

impl BlkOp {
    /// Whether what it did is on stable storage when it has succeeded.
    pub(super) fn is_durable(self) -> bool {
        match self {
            Self::Flush => true,
            Self::Write { durable } | Self::WriteZeroes { durable, .. } => durable,
            Self::Read | Self::Discard => false,
        }
    }

    /// Whether it writes what a reader gets.
    pub(super) fn writes(self) -> bool {
        matches!(self, Self::Write { .. } | Self::WriteZeroes { .. })
    }
}

/// Where sectors live, as one queue's worker sees it. Asynchronous: a request is submitted, the worker is woken when
/// something has completed, and collects it. Nothing here blocks.
///
/// `M` is the guest memory `ranges` point into. A back end that works on other threads has its own handle to the same
/// memory and ignores the argument.
pub trait BlkBackend<M: ?Sized>: Send {
    /// Whether another request may be submitted. Where it says no, the worker leaves the chain in the ring; the back
    /// end wakes the worker when a completion makes room.
    fn has_room(&self) -> bool {
        true
    }

    /// Says whether writes may stay in a volatile cache of the disk from now on: while the driver can flush and has
    /// write-back on. Otherwise every write comes as durable (virtio 1.3 §5.2.6.2), and a disk with a cache to switch off
    /// spares a flush for each. Called before every batch, by every queue's worker, and with `false` when the device is
    /// reset: cheap where nothing changes. Whether a write must be durable is said by the request alone: with several
    /// queues a change reaches them one by one.
    fn set_write_cache(&mut self, _write_back: bool) {}

    /// Takes a request. It is not started necessarily before [`commit`](Self::commit). An error is the request's
    /// immediate failure: no completion follows it.
    fn submit(&mut self, mem: &M, request: BlkRequest<'_>) -> Result<(), BlkError>;

    /// Starts everything submitted: called once after each batch.
    fn commit(&mut self) {}

    /// Reports what has completed, each submitted request exactly once and in any order. A read's data is in guest
    /// memory by then.
    fn poll(&mut self, mem: &M, done: &mut dyn FnMut(RequestToken, Result<(), BlkError>));

    /// Asks for every request in flight to end as soon as possible. Each still completes through
    /// [`poll`](Self::poll), with [`BlkError::Cancelled`] or with whatever it came to.
    fn cancel_all(&mut self);

    /// Requests submitted and not yet reported by [`poll`](Self::poll). At zero the back end touches guest memory no
    /// more.
    fn in_flight(&self) -> usize;
}
