//! Bus accesses that finish later.
//!
//! A device reset must not return to the guest before the last engine has let go of guest memory, yet a vCPU thread may
//! not block inside a device. So the access answers [`Access::Parked`](crate::bus::Access::Parked) with a [`Parked`]
//! token: the vCPU thread leaves every lock, waits for the token, and only then enters the guest again. Kick, pause and
//! stop still reach it while it waits.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use crate::wake::Wake;

/// One access that has been accepted but not finished. Clones stand for the same access.
#[derive(Clone, Default)]
pub struct Parked(Arc<Inner>);

#[derive(Default)]
struct Inner {
    complete: AtomicBool,
    waiter: Mutex<Option<Arc<dyn Wake>>>,
}

impl Parked {
    /// A new, unfinished access.
    pub fn new() -> Self {
        Self::default()
    }

    /// Finishes the access and wakes the vCPU that waits for it. Idempotent.
    pub fn complete(&self) {
        self.0.complete.store(true, Ordering::Release);
        let waiter = self.0.waiter.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(waiter) = waiter {
            waiter.wake();
        }
    }

    /// Whether the access has finished.
    pub fn is_complete(&self) -> bool {
        self.0.complete.load(Ordering::Acquire)
    }

    /// Registers who is woken by [`complete`](Self::complete); wakes at once where that has happened already.
    pub fn wake_on_complete(&self, waiter: Arc<dyn Wake>) {
        *self.0.waiter.lock().unwrap_or_else(PoisonError::into_inner) = Some(waiter);
        if self.is_complete() {
            self.complete();
        }
    }
}

impl std::fmt::Debug for Parked {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Parked").field(&self.is_complete()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wake::WakeCounter;

    #[test]
    fn completion_wakes_a_waiter_registered_before_it() {
        let (token, waiter) = (Parked::new(), Arc::new(WakeCounter::default()));
        token.wake_on_complete(waiter.clone());
        assert_eq!(waiter.take(), 0);
        token.clone().complete();
        assert!(token.is_complete());
        assert_eq!(waiter.take(), 1);
    }

    #[test]
    fn completion_wakes_a_waiter_registered_after_it() {
        let (token, waiter) = (Parked::new(), Arc::new(WakeCounter::default()));
        token.complete();
        token.wake_on_complete(waiter.clone());
        assert_eq!(waiter.take(), 1);
    }
}
