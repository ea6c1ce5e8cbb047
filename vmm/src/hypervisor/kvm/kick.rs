//! Getting a vCPU out of the guest: the immediate-exit byte of its run page, and a signal to its thread.
//!
//! The byte alone catches a thread that is about to enter; the signal alone would miss it. Both together cannot be lost.

use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use crate::hypervisor::Kick;

/// How other threads reach one vCPU. Goes dead when the vCPU does.
pub struct KvmKick {
    target: Mutex<Option<Target>>,
}

struct Target {
    immediate_exit: *const AtomicU8,
    thread: Option<libc::pthread_t>,
}

// SAFETY: `immediate_exit` is only used through the mutex, as an atomic, and only while the vCPU that owns the run page
// is alive: `KvmKick::disarm` takes the target away before the page is unmapped.
unsafe impl Send for Target {}

impl KvmKick {
    /// A kick for the vCPU whose run page has its immediate-exit byte at `immediate_exit`.
    ///
    /// # Safety
    ///
    /// The byte must stay mapped until [`disarm`](Self::disarm) has returned.
    pub unsafe fn new(immediate_exit: *mut u8) -> Arc<Self> {
        let immediate_exit = immediate_exit.cast::<AtomicU8>().cast_const();
        Arc::new(Self { target: Mutex::new(Some(Target { immediate_exit, thread: None })) })
    }

    /// The calling thread is the one to signal.
    pub fn bind_to_current_thread(&self) {
        if let Some(target) = &mut *self.lock() {
            // SAFETY: pthread_self has no preconditions.
            target.thread = Some(unsafe { libc::pthread_self() });
        }
    }

    /// The kick has been seen: the next entry may run. Whoever clears must look at the control state afterwards.
    pub fn clear(&self) {
        if let Some(target) = &*self.lock() {
            // SAFETY: the byte is mapped while the target is armed (contract of `new`).
            unsafe { &*target.immediate_exit }.store(0, Ordering::SeqCst);
        }
    }

    /// The vCPU is going away, and so may its thread: kicks from now on do nothing.
    pub fn disarm(&self) {
        *self.lock() = None;
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Option<Target>> {
        self.target.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Kick for KvmKick {
    fn kick(&self) {
        if let Some(target) = &*self.lock() {
            // SAFETY: the byte is mapped while the target is armed (contract of `new`).
            unsafe { &*target.immediate_exit }.store(1, Ordering::SeqCst);
            if let Some(thread) = target.thread {
                // SAFETY: the thread is alive: it disarms the target before it ends. The signal has a handler.
                unsafe { libc::pthread_kill(thread, devices_host::thread::KICK_SIGNAL) };
            }
        }
    }
}
