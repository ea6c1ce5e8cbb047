//! Buffers back in the order they came (`VIRTIO_F_IN_ORDER`, virtio 1.3 §2.7.9, §2.8.8).

use std::collections::VecDeque;

use super::chain::Returned;
use super::error::QueueError;

/// The chains in flight in the order of their popping. A driver with this feature goes by the order alone, so a request
/// that is done early waits here for those before it.
#[derive(Debug)]
pub(super) struct Order {
    /// `None`: not pushed yet.
    waiting: VecDeque<Option<Returned>>,
    /// The turn of the first of them. Turns wrap, and at most a ring of them is in flight.
    first: u16,
}

impl Order {
    /// For a queue of `size` entries: never more chains than that are in flight.
    pub(super) fn new(size: u16) -> Self {
        Self { waiting: VecDeque::with_capacity(usize::from(size)), first: 0 }
    }

    /// The place of the chain of `turn` among those in flight.
    pub(super) fn place(&self, turn: u16) -> u16 {
        turn.wrapping_sub(self.first)
    }

    /// Those that are done and wait for others, with their places.
    pub(super) fn done(&self) -> impl Iterator<Item = (u16, Returned)> {
        (0..=u16::MAX).zip(&self.waiting).filter_map(|(place, chain)| Some((place, (*chain)?)))
    }

    /// Has chains in flight again: in these places those that are done, in the other ones those that are not. `None` where
    /// there is not one chain a place.
    pub(super) fn resume(
        &mut self,
        done: impl Iterator<Item = (u16, Returned)>,
        others: impl Iterator<Item = u16>,
    ) -> Option<()> {
        let chains: Vec<_> = done.map(|(at, chain)| (at, Some(chain))).chain(others.map(|at| (at, None))).collect();
        let mut places: Vec<Option<Option<Returned>>> = vec![None; chains.len()];
        for (at, chain) in chains {
            let place = places.get_mut(usize::from(at)).filter(|place| place.is_none())?;
            *place = Some(chain);
        }
        self.waiting.extend(places.into_iter().flatten());
        Some(())
    }

    /// A chain was popped: its turn. Apart from popping, as few drivers have this feature.
    #[inline(never)]
    pub(super) fn begin(&mut self) -> u16 {
        let turn = self.first.wrapping_add(self.waiting.len() as u16);
        self.waiting.push_back(None);
        turn
    }

    /// The chain popped last was put back.
    pub(super) fn undo(&mut self) {
        self.waiting.pop_back();
    }

    /// The chain of `turn` is done.
    pub(super) fn finish(&mut self, turn: u16, chain: Returned) -> Result<(), QueueError> {
        let at = usize::from(turn.wrapping_sub(self.first));
        let entry = self.waiting.get_mut(at).filter(|entry| entry.is_none());
        *entry.ok_or(QueueError::NotInFlight { head: chain.head })? = Some(chain);
        Ok(())
    }

    /// The next chain that may go back now.
    pub(super) fn next(&mut self) -> Option<Returned> {
        let chain = (*self.waiting.front()?)?;
        self.waiting.pop_front();
        self.first = self.first.wrapping_add(1);
        Some(chain)
    }
}
