//! Getting a vCPU out of the guest: a signal to its thread.
//!
//! The driver has no immediate-exit flag. So the signal stays blocked in the thread, except inside KVM_RUN
//! (KVM_SET_SIGNAL_MASK): one that comes in between stays pending, and KVM_RUN returns at once. That is why it cannot be
//! lost, and why whoever has seen it takes it away.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use devices_host::sys::{Sys, SysThread};

use super::abi::illumos_sigset;
use crate::hypervisor::Kick;

/// Signals of illumos (`sys/iso/signal_iso.h`, `sys/signal.h`) that nobody may block: SIGKILL, SIGSTOP, and SIGCANCEL,
/// which belongs to libc.
const NEVER_BLOCKED: [u32; 3] = [9, 23, 36];
/// Highest signal number (MAXSIG).
const HIGHEST_SIGNAL: u32 = 74;

/// How other threads reach one vCPU. Goes dead when the vCPU does.
pub struct IllumosKvmKick {
    sys: Arc<dyn Sys>,
    target: Mutex<Target>,
}

enum Target {
    /// No thread yet; whether it was kicked already.
    Unbound {
        kicked: bool,
    },
    Thread(SysThread),
    Gone,
}

impl IllumosKvmKick {
    pub fn new(sys: Arc<dyn Sys>) -> Arc<Self> {
        Arc::new(Self { sys, target: Mutex::new(Target::Unbound { kicked: false }) })
    }

    /// The calling thread, in which the signal is blocked, is the one to signal. A kick that came before arrives now.
    pub fn bind_to_current_thread(&self) {
        let mut target = self.lock();
        let thread = self.sys.current_thread();
        if let Target::Unbound { kicked: true } = *target {
            self.sys.signal_thread(thread);
        }
        *target = Target::Thread(thread);
    }

    /// The vCPU is going away, and so may its thread: kicks from now on do nothing.
    pub fn disarm(&self) {
        *self.lock() = Target::Gone;
    }

    fn lock(&self) -> MutexGuard<'_, Target> {
        self.target.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Kick for IllumosKvmKick {
    fn kick(&self) {
        match &mut *self.lock() {
            Target::Unbound { kicked } => *kicked = true,
            // Under the lock, so that the thread is still there: it disarms before it ends.
            Target::Thread(thread) => self.sys.signal_thread(*thread),
            Target::Gone => {}
        }
    }
}

/// What is blocked while the guest runs: everything but `kick_signal`. The process' other signals belong to the thread
/// that waits for them; one let in here would end the process.
pub fn mask_while_running(kick_signal: i32) -> illumos_sigset {
    let mut bits = [0; 4];
    for signal in 1..=HIGHEST_SIGNAL {
        if Ok(signal) != u32::try_from(kick_signal) && !NEVER_BLOCKED.contains(&signal) {
            let bit = signal - 1;
            bits[(bit / 32) as usize] |= 1 << (bit % 32);
        }
    }
    illumos_sigset { __sigbits: bits }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_is_blocked_while_the_guest_runs_but_the_kick_and_what_cannot_be() {
        let mask = mask_while_running(16).__sigbits;
        let blocked = |signal: u32| mask[((signal - 1) / 32) as usize] & 1 << ((signal - 1) % 32) != 0;
        for signal in 1..=HIGHEST_SIGNAL {
            assert_eq!(blocked(signal), ![9, 16, 23, 36].contains(&signal), "signal {signal}");
        }
        assert_eq!(mask[2] >> (HIGHEST_SIGNAL - 64), 0, "no signal above the highest");
        assert_eq!(mask[3], 0);
    }
}
