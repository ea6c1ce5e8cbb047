//! The generation of a device's configuration space (virtio 1.3 §2.5, §4.1.4.3.1).

use std::sync::{Mutex, PoisonError};

/// Tells a driver that reads the configuration space piece by piece whether it changed in between. A change is counted
/// when somebody looks, so that however many changes there were the number differs: a number of 8 bits that counted each
/// change would be the same again after 256 of them.
#[derive(Debug, Default)]
pub(super) struct Generation(Mutex<Count>);

#[derive(Debug, Default)]
struct Count {
    shown: u8,
    changed: bool,
}

impl Generation {
    /// Makes `edit`, a change of the configuration space, where it says that it was one. Nobody is shown the old number
    /// after the new content.
    pub(super) fn change(&self, edit: impl FnOnce() -> bool) -> bool {
        let mut count = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let changed = edit();
        count.changed |= changed;
        changed
    }

    /// The number a driver reads.
    pub(super) fn show(&self) -> u8 {
        let mut count = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if std::mem::take(&mut count.changed) {
            count.shown = count.shown.wrapping_add(1);
        }
        count.shown
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
    fn what_was_no_change_shows_the_same_generation() {
        let generation = Generation::default();
        assert!(!generation.change(|| false));
        assert_eq!(generation.show(), generation.show());
        assert_eq!(generation.show(), Generation::default().show());
    }
}
