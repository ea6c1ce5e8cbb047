//! Requests that a queue keeps for the operator while it stands still, in the worker or in a saved machine.

use serde::{Deserialize, Serialize};

use super::backend::{BlkOp, SECTOR_BYTES};
use super::device::{BlkConfig, EraseLimits};
use super::flight::{InFlight, Stage};
use super::request::{HEADER_BYTES, SEGMENT_BYTES, Work};
use crate::pci::StateError;
use crate::virtio::QueueState;
use crate::virtio::queue::{Chain, SavedChain, SavedFlight};
use crate::virtio::worker::WorkerQueue;

/// Requests that a disk failed and its queue keeps, with their chains: what another worker needs to go on with them. Each
/// is carried out as it was decoded when it was taken from the ring: its driver may have written over it meanwhile.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeldRequests {
    flight: SavedFlight,
    /// What is left to be done, a chain of `flight` each: the first element last.
    work: Vec<Vec<Work>>,
}

impl HeldRequests {
    /// Takes all requests out of `in_flight`, each of which is held. `None` where `queue` does not run.
    pub(super) fn take(queue: &WorkerQueue, in_flight: &mut [InFlight]) -> Option<Self> {
        let held = Self {
            flight: queue.save_flight(in_flight.iter().filter_map(|place| place.chain.as_ref()))?,
            work: in_flight.iter().filter(|place| place.chain.is_some()).map(InFlight::work_left).collect(),
        };
        for place in in_flight {
            place.rest.clear();
            if let Some(chain) = place.chain.take() {
                debug_assert_eq!(place.stage, Stage::Held, "nothing else outlasts a pause");
                chain.abandon();
            }
        }
        Some(held)
    }

    /// Whether the queue stood at `state` with them.
    pub(super) fn are_of(&self, state: &QueueState) -> bool {
        self.flight.at() == state
    }

    /// Refuses what no disk that looks like `config` keeps. Of guest memory and the rings nothing is known yet.
    pub(super) fn check(&self, config: &BlkConfig) -> Result<(), StateError> {
        let refuse = |why| Err(StateError { what: "a request that a disk keeps", why });
        let chains = self.flight.chains();
        if chains.is_empty() || chains.len() > usize::from(config.queue_size) || chains.len() != self.work.len() {
            return refuse("there is not one for each chain");
        }
        match chains.iter().zip(&self.work).all(|(chain, work)| may_be_left(config, chain, work)) {
            true => Ok(()),
            false => refuse("its chain does not ask for that"),
        }
    }

    /// The requests in flight again: each chain with what is left to be done, the first element last. `None` where they
    /// cannot be: the driver hears of it.
    pub(super) fn resume<M: vm_memory::GuestMemory>(
        self,
        queue: &mut WorkerQueue,
        mem: &M,
    ) -> Option<impl Iterator<Item = (Chain, Vec<Work>)> + use<M>> {
        Some(queue.resume_flight(mem, &self.flight)?.into_iter().zip(self.work))
    }
}

/// Whether `work` can be what is left of a request in `chain`.
fn may_be_left(config: &BlkConfig, chain: &SavedChain, work: &[Work]) -> bool {
    let Some(first) = work.last() else { return false };
    // The last byte is the status.
    let Some(room_bytes) = chain.writable_bytes().checked_sub(1) else { return false };
    let Some(data_bytes) = chain.readable_bytes().checked_sub(HEADER_BYTES) else { return false };
    let alone = |len_bytes| work.len() == 1 && first.len_bytes == len_bytes;
    let erases = |limits: Option<EraseLimits>| {
        limits.is_some_and(|limits| {
            let most_bytes = u64::from(limits.max_sectors).saturating_mul(SECTOR_BYTES);
            let segments = data_bytes.checked_div(SEGMENT_BYTES).unwrap_or_default().min(limits.max_segments.into());
            work.len() as u64 <= segments && work.iter().all(|work| work.len_bytes <= most_bytes)
        })
    };
    let fits = match first.op {
        BlkOp::Flush => return *work == [Work { op: BlkOp::Flush, offset_bytes: 0, len_bytes: 0 }],
        BlkOp::Read => alone(room_bytes),
        BlkOp::Write { .. } => alone(data_bytes) && !config.read_only,
        BlkOp::Discard => erases(config.discard) && !config.read_only,
        BlkOp::WriteZeroes { .. } => erases(config.write_zeroes) && !config.read_only,
    };
    let whole = |work: &Work| {
        let Work { op, offset_bytes, len_bytes } = *work;
        std::mem::discriminant(&op) == std::mem::discriminant(&first.op)
            && len_bytes > 0
            && offset_bytes.is_multiple_of(SECTOR_BYTES)
            && len_bytes.is_multiple_of(SECTOR_BYTES)
            && offset_bytes.checked_add(len_bytes).is_some()
    };
    fits && work.iter().all(whole)
}
