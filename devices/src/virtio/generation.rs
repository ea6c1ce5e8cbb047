//! The generation of a device's configuration space (virtio 1.3 §2.5, §4.1.4.3.1).

use std::sync::{Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};

/// Tells a driver that reads the configuration space piece by piece whether it changed in between. A change is counted
/// when somebody looks, so that however many changes there were the number differs: a number of 8 bits that counted each
/// change would be the same again after 256 of them.
#[derive(Debug, Default)]
pub struct Generation(Mutex<Count>);

/// What of a [`Generation`] a saved machine has to bring back.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Count {
    shown: u8,
    /// Something has changed since somebody looked.
    changed: bool,
}

impl Generation {
    /// Makes `edit`, a change of the configuration space, where it says that it was one. Nobody is shown the old number
    /// after the new content.
    pub(super) fn change(&self, edit: impl FnOnce() -> bool) -> bool {
        let mut count = self.count();
        let changed = edit();
        count.changed |= changed;
        changed
    }

    /// The number a driver reads.
    pub(super) fn show(&self) -> u8 {
        let mut count = self.count();
        if std::mem::take(&mut count.changed) {
            count.shown = count.shown.wrapping_add(1);
        }
        count.shown
    }

    pub(super) fn save(&self) -> Count {
        *self.count()
    }

    /// Goes on where a saved machine stopped; `changed`: its configuration space is not the saved one's, which a driver
    /// between two looks has to notice.
    pub(super) fn restore(&self, saved: Count, changed: bool) {
        *self.count() = Count { changed: saved.changed || changed, ..saved };
    }

    fn count(&self) -> MutexGuard<'_, Count> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_number_of_changes_between_two_looks_shows_another_generation() {
        for changes in [1, 2, 255, 256, 512] {
            let generation = Generation::default();
            let before = generation.show();
            for _ in 0..changes {
                assert!(generation.change(|| true));
            }
            let after = generation.show();
            assert_ne!(after, before, "{changes} changes");
            assert_eq!(generation.show(), after, "and none since");
        }
    }

    #[test]
    fn a_saved_count_goes_on_and_differs_where_the_space_does() {
        let generation = Generation::default();
        for _ in 0..7 {
            generation.change(|| true);
            generation.show();
        }
        for (pending, other) in [(false, false), (true, false), (false, true), (true, true)] {
            generation.change(|| pending);
            let (seen, saved) = (generation.save().shown, generation.save());
            let restored = Generation::default();
            restored.change(|| true);
            restored.restore(saved, other);
            assert_eq!(restored.show() != seen, pending || other, "{pending} {other}");
            assert_eq!(generation.show() != seen, pending, "saving is no look");
        }
    }

    #[test]
    fn what_was_no_change_shows_the_same_generation() {
        let generation = Generation::default();
        assert!(!generation.change(|| false));
        assert_eq!(generation.show(), generation.show());
        assert_eq!(generation.show(), Generation::default().show());
    }
}
