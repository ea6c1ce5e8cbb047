//! Chains in flight as a queue that stands still keeps them, and a saved machine.
//!
//! A chain is kept as it was popped, not as a place in the ring. Used descriptors of a packed ring are written over those
//! of chains that are still in flight (virtio 1.3 §2.8.6), so they are not there to be read again; and a driver that
//! changes a descriptor meanwhile would be believed twice.

use serde::{Deserialize, Serialize};

use super::chain::{Chain, GuestRange, Returned};
use super::error::QueueError;
use super::mem::RingMem;
use super::walk::{Buffer, Parser};
use crate::virtio::QueueState;

/// Where a queue stands, and the chains it has popped and not given back.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SavedFlight {
    pub(super) at: QueueState,
    pub(super) chains: Vec<SavedChain>,
    /// With `VIRTIO_F_IN_ORDER`: those that are done, and wait for `chains` before them.
    pub(super) done: Vec<SavedReturn>,
}

impl SavedFlight {
    /// Where the queue stands.
    pub fn at(&self) -> &QueueState {
        &self.at
    }

    /// The chains that devices have, in the order in which they were saved.
    pub fn chains(&self) -> &[SavedChain] {
        &self.chains
    }
}

/// A chain in flight.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SavedChain {
    pub(super) head: u16,
    pub(super) id: u16,
    /// Its place among all that are in flight, where they go back in that order; zero elsewhere.
    pub(super) turn: u16,
    pub(super) slots: u16,
    pub(super) readable: Vec<GuestRange>,
    pub(super) writable: Vec<GuestRange>,
}

impl SavedChain {
    /// As `chain` is, whose place is `turn`.
    pub(super) fn new(chain: &Chain, turn: u16) -> Self {
        Self {
            head: chain.head(),
            id: chain.body.id,
            turn,
            slots: chain.body.slots,
            readable: chain.readable().to_vec(),
            writable: chain.writable().to_vec(),
        }
    }

    /// See [`Chain::readable_bytes`].
    pub fn readable_bytes(&self) -> u64 {
        bytes(&self.readable)
    }

    /// See [`Chain::writable_bytes`].
    pub fn writable_bytes(&self) -> u64 {
        bytes(&self.writable)
    }
}

fn bytes(ranges: &[GuestRange]) -> u64 {
    ranges.iter().fold(0, |sum, range| sum.saturating_add(range.len.into()))
}

/// A chain that is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct SavedReturn {
    pub(super) turn: u16,
    head: u16,
    id: u16,
    slots: u16,
    len: u32,
}

impl SavedReturn {
    pub(super) fn new(turn: u16, Returned { head, id, slots, len }: Returned) -> Self {
        Self { turn, head, id, slots, len }
    }

    pub(super) fn returned(self) -> Returned {
        let Self { head, id, slots, len, .. } = self;
        Returned { head, id, slots, len }
    }
}

impl Parser {
    /// The chain that `saved` says, by the rules for every chain. Nobody claims it yet.
    pub(super) fn rebuild<M: RingMem + ?Sized>(&mut self, mem: &M, saved: &SavedChain) -> Result<Chain, QueueError> {
        let mut chain = self.begin();
        match self.fill(mem, &mut chain, saved) {
            Ok(()) => Ok(chain),
            Err(error) => {
                self.recycle(chain);
                Err(error)
            }
        }
    }

    fn fill<M: RingMem + ?Sized>(&mut self, mem: &M, chain: &mut Chain, saved: &SavedChain) -> Result<(), QueueError> {
        let mut sum = self.sum();
        let readable = saved.readable.iter().map(|range| (range, false));
        for (range, write) in readable.chain(saved.writable.iter().map(|range| (range, true))) {
            let GuestRange { addr, len } = *range;
            self.add(mem, &mut sum, &mut chain.body, Buffer { addr, len, write })?;
        }
        sum.close(&mut chain.body)?;
        chain.body.slots = saved.slots;
        Ok(())
    }
}
