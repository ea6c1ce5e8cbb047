//! What becomes of a request that the disk, and not the guest, made fail.

use super::backend::{BlkError, BlkOp};

/// What to do when the disk fails a request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnError {
    /// The guest gets an I/O error.
    #[default]
    Report,
    /// The request is kept for the operator, who is told to hold the guest: it is tried again when the queue is started
    /// again after a pause.
    Hold,
    /// [`Hold`](Self::Hold) where the disk is out of space, which the operator can mend; [`Report`](Self::Report) else.
    HoldIfFull,
}

/// A request that the disk failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Failure {
    /// What it was to do.
    pub op: BlkOp,
    /// What went wrong.
    pub error: BlkError,
    /// The request is kept, and the guest should be held; otherwise the guest has been told of an I/O error.
    pub held: bool,
}

/// Who hears of failures. Called on worker threads, once a failed request: it must not block, and has to expect as many as
/// a guest can make requests.
pub trait FailureSink: Send + Sync {
    /// The disk failed a request.
    fn failed(&self, failure: Failure);
}

/// Nobody hears of them.
#[derive(Clone, Copy, Debug, Default)]
pub struct Unheard;

impl FailureSink for Unheard {
    fn failed(&self, _failure: Failure) {}
}

impl OnError {
    pub(super) fn holds(self, error: BlkError) -> bool {
        match self {
            Self::Report => false,
            Self::Hold => error.is_of_disk(),
            Self::HoldIfFull => error == BlkError::NoSpace,
        }
    }
}
