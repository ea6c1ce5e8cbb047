//! What a driver has set through the control queue (virtio 1.3 §5.1.6.5), as all receive queues of a card go by it.
//!
//! The worker of the control queue changes it; each receiver has a copy, which it renews between two rounds where the
//! version says so: no lock and no shared word lies on a frame's way. A command is answered when no receiver is in a round
//! any more that it began with the settings of before, so a driver that has its answer sees nothing of those.

use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::filter::{Filter, Mac};
use crate::wake::Wake;

/// What the driver wants.
#[derive(Clone, Debug)]
pub(super) struct Wanted {
    pub filter: Filter,
    /// What it has made of the offloads it accepted (§5.1.6.5.8), where it has changed them.
    pub offloads: Option<u64>,
    /// Queue pairs in use (§5.1.6.5.6): received frames go to the first so many.
    pub pairs: u16,
}

impl Wanted {
    fn new(mac: Mac) -> Self {
        Self { filter: Filter::new(mac), offloads: None, pairs: 1 }
    }
}

/// The settings of one card.
pub(super) struct Settings {
    version: AtomicU64,
    now: Mutex<Wanted>,
    /// By queue pair; none for a card with one, whose receiver is the one that changes them.
    receivers: Box<[Receiver]>,
    /// The worker of the control queue waits for a round to end.
    is_waiting: AtomicBool,
}

struct Receiver {
    wake: Arc<dyn Wake>,
    /// Begun and ended rounds together: odd while it is in one.
    round: AtomicU64,
    /// The round that the worker of the control queue found it in.
    seen: AtomicU64,
}

impl fmt::Debug for Settings {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_tuple("Settings").field(&self.pairs()).finish()
    }
}

impl Settings {
    /// Those of a card with this address after a reset. `receivers` wake the workers of the receive queues, by pair, of a
    /// card with several; the first of them has the control queue as well.
    pub fn new(mac: Mac, receivers: Vec<Arc<dyn Wake>>) -> Self {
        let receiver = |wake| Receiver { wake, round: AtomicU64::new(0), seen: AtomicU64::new(0) };
        Self {
            version: AtomicU64::new(1),
            now: Mutex::new(Wanted::new(mac)),
            receivers: receivers.into_iter().map(receiver).collect(),
            is_waiting: AtomicBool::new(false),
        }
    }

    /// Queue pairs there are.
    pub fn pairs(&self) -> u16 {
        u16::try_from(self.receivers.len().max(1)).unwrap_or(u16::MAX)
    }

    /// Differs from every earlier one where something has changed; never 0.
    pub fn version(&self) -> u64 {
        self.version.load(SeqCst)
    }

    /// What the driver wants now. For a moment, and by who renews a copy.
    pub fn now(&self) -> MutexGuard<'_, Wanted> {
        self.now.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes what the driver wants. Receivers that sleep are told where that is about whether they get frames at all.
    pub fn change(&self, edit: impl FnOnce(&mut Wanted)) {
        let mut now = self.now();
        let before = now.pairs;
        edit(&mut now);
        let same = now.pairs == before;
        self.version.fetch_add(1, SeqCst);
        drop(now);
        for receiver in &self.receivers {
            receiver.seen.store(receiver.round.load(SeqCst), SeqCst);
            if !same {
                receiver.wake.wake();
            }
        }
    }

    /// As after a reset.
    pub fn reset(&self, mac: Mac) {
        self.change(|now| {
            now.filter.reset(mac);
            (now.offloads, now.pairs) = (None, 1);
        });
    }

    /// Whether every receiver goes by the last change. Where one does not yet, the worker of the control queue is woken
    /// when it does.
    pub fn is_settled(&self) -> bool {
        self.is_waiting.store(true, SeqCst);
        let old_round = |receiver: &Receiver| {
            let seen = receiver.seen.load(SeqCst);
            seen % 2 == 1 && receiver.round.load(SeqCst) == seen
        };
        let settled = !self.receivers.iter().any(old_round);
        if settled {
            self.is_waiting.store(false, SeqCst);
        }
        settled
    }

    /// A receiver begins a round: what it sees of the settings now it goes by until [`leave`](Self::leave). The first one's
    /// worker has the control queue, and needs no telling.
    pub fn enter(&self, pair: u16) {
        self.turn(pair);
    }

    /// The round is over.
    pub fn leave(&self, pair: u16) {
        if self.turn(pair)
            && self.is_waiting.load(SeqCst)
            && let Some(first) = self.receivers.first()
        {
            first.wake.wake();
        }
    }

    fn turn(&self, pair: u16) -> bool {
        let receiver = self.receivers.get(usize::from(pair)).filter(|_| pair > 0);
        receiver.is_some_and(|receiver| {
            receiver.round.fetch_add(1, SeqCst);
            true
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wake::WakeCounter;

    #[test]
    fn a_change_is_settled_when_the_rounds_that_began_before_it_are_over() {
        let wakes: Vec<Arc<WakeCounter>> = (0..3).map(|_| Arc::default()).collect();
        let settings = Settings::new([2; 6], wakes.iter().map(|wake| wake.clone() as Arc<dyn Wake>).collect());
        let woken = || wakes.iter().map(|wake| wake.take()).collect::<Vec<_>>();
        let before = settings.version();
        settings.change(|now| now.pairs = 3);
        assert!(settings.version() != before && settings.is_settled(), "nobody is in a round");
        assert_eq!(woken(), [1, 1, 1]);
        settings.enter(1);
        settings.enter(2);
        settings.change(|now| now.offloads = Some(0));
        assert!(!settings.is_settled());
        settings.leave(2);
        assert!(!settings.is_settled());
        // One that works without a pause is in another round by now, which began with the settings of now.
        settings.enter(2);
        settings.leave(1);
        assert!(settings.is_settled());
        assert_eq!(woken(), [2, 0, 0], "whoever waits is told, and nobody else");
        settings.leave(2);
        assert_eq!(woken(), [0, 0, 0]);
    }

    #[test]
    fn the_first_receiver_waits_for_nobody_as_it_is_the_one_who_changes_them() {
        for receivers in [Vec::new(), vec![Arc::<WakeCounter>::default() as Arc<dyn Wake>; 2]] {
            let settings = Settings::new([2; 6], receivers);
            settings.enter(0);
            settings.change(|now| now.pairs = 1);
            assert!(settings.is_settled());
            settings.leave(0);
        }
    }
}
