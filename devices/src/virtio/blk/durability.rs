//! What a disk may still call durable after something failed: shared by all its queues, without a lock.
//!
//! Two things can go wrong. A *write* that failed or was cancelled leaves it open what is on the disk, so nothing later is
//! called durable before a flush has succeeded. A *flush* that failed may have lost what was acknowledged long before, and a
//! second one proves nothing: Linux drops the pages it could not write and forgets the error with the first report
//! (fsync(2)). So that is final until the operator says to go on.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// A moment in a disk's history of failed writes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Moment(u64);

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Durability {
    /// Writes that failed or were cancelled, ever.
    failed_writes: AtomicU64,
    /// How many of them a flush that succeeded was asked for after.
    settled: AtomicU64,
    lost: AtomicBool,
}

impl Durability {
    /// Now; to be taken when a flush is asked for.
    pub fn now(&self) -> Moment {
        Moment(self.failed_writes.load(Ordering::Acquire))
    }

    /// A write failed or was cancelled.
    pub fn write_failed(&self) {
        self.failed_writes.fetch_add(1, Ordering::AcqRel);
    }

    /// A flush that was asked for at `asked` succeeded.
    pub fn flushed(&self, asked: Moment) {
        self.settled.fetch_max(asked.0, Ordering::AcqRel);
    }

    /// A flush failed.
    pub fn flush_failed(&self) {
        self.lost.store(true, Ordering::Release);
    }

    /// Whether a flush has succeeded since the last write that failed.
    pub fn is_settled(&self) -> bool {
        self.settled.load(Ordering::Acquire) >= self.failed_writes.load(Ordering::Acquire)
    }

    /// Whether a flush failed and nobody has said to go on.
    pub fn is_lost(&self) -> bool {
        self.lost.load(Ordering::Acquire)
    }

    /// The operator says to go on with the disk as it is.
    pub fn go_on(&self) {
        self.lost.store(false, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_flush_that_began_after_the_last_failure_settles_it() {
        let disk = Durability::default();
        assert!(disk.is_settled());
        let before = disk.now();
        disk.write_failed();
        disk.flushed(before);
        assert!(!disk.is_settled());
        let after = disk.now();
        disk.write_failed();
        disk.flushed(after);
        assert!(!disk.is_settled(), "another write failed while it ran");
        disk.flushed(disk.now());
        assert!(disk.is_settled());
        disk.flushed(before);
        assert!(disk.is_settled(), "a flush that ends late takes nothing back");
    }

    #[test]
    fn a_failed_flush_lasts_until_the_operator_says_to_go_on() {
        let disk = Durability::default();
        disk.flush_failed();
        disk.flushed(disk.now());
        assert!(disk.is_lost());
        disk.go_on();
        assert!(!disk.is_lost());
    }
}
