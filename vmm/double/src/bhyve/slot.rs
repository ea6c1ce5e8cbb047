//! Who has a vCPU: the thread that runs it, or one that asks about it.
//!
//! The kernel takes a vCPU for every ioctl of the vCPU class: if it is in the guest it is kicked out, and the caller waits
//! until it is idle (reference section 2.1). A barrier reaches a thread that is only about to enter, too (section 2.10).

use std::cell::Cell;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, OnceLock, PoisonError};

use super::halted::Sleeping;
use super::vcpu::Core;

/// One vCPU.
pub struct Slot {
    gate: Mutex<Gate>,
    calm: Condvar,
    core: Mutex<Core>,
    /// Known once it has run.
    sleeping: OnceLock<Option<Sleeping>>,
}

#[derive(Default)]
struct Gate {
    runner: Option<Runner>,
    /// Callers that want the vCPU idle.
    waiting: usize,
    /// The next entry, or the one under way, ends without the guest having run on.
    barrier: bool,
    active: bool,
    debug: bool,
}

struct Runner {
    thread: libc::pid_t,
    immediate_exit: *const AtomicU8,
}

// SAFETY: the byte is used as an atomic, under the gate's lock, while its run page is mapped: the runner takes itself
// away before its vCPU can go.
unsafe impl Send for Runner {}

/// Why an entry must not go into the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hindrance {
    /// Stopped by VM_SUSPEND_CPU.
    Debug,
    /// A barrier, or somebody who waits for the vCPU.
    Kick,
}

/// A vCPU that is idle and the holder's.
pub struct Held<'a> {
    slot: &'a Slot,
    core: MutexGuard<'a, Core>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Slot {
    pub fn new(core: Core) -> Self {
        Self { gate: Mutex::default(), calm: Condvar::new(), core: Mutex::new(core), sleeping: OnceLock::new() }
    }

    /// Takes the vCPU: out of the guest if it is there.
    pub fn hold(&self) -> Held<'_> {
        let mut gate = lock(&self.gate);
        gate.waiting += 1;
        gate.poke();
        drop(gate);
        Held { slot: self, core: lock(&self.core) }
    }

    /// Takes the vCPU to run it, behind everybody who waits for it.
    pub fn hold_to_run(&self) -> MutexGuard<'_, Core> {
        let mut gate = lock(&self.gate);
        while gate.waiting > 0 {
            gate = self.calm.wait(gate).unwrap_or_else(PoisonError::into_inner);
        }
        drop(gate);
        lock(&self.core)
    }

    /// The runner is about to enter the guest; `immediate_exit` is the byte of its run page.
    pub fn enter(&self, immediate_exit: *const AtomicU8, hindered: impl FnOnce() -> bool) -> Result<(), Hindrance> {
        let mut gate = lock(&self.gate);
        if gate.debug {
            return Err(Hindrance::Debug);
        }
        if std::mem::take(&mut gate.barrier) || gate.waiting > 0 || hindered() {
            return Err(Hindrance::Kick);
        }
        let thread = unblock_poke();
        gate.runner = Some(Runner { thread, immediate_exit });
        Ok(())
    }

    /// Where it is told whether it sleeps.
    pub fn sleeping(&self) -> Option<&Sleeping> {
        self.sleeping.get()?.as_ref()
    }

    /// It is about to run for the first time, or again.
    pub fn can_sleep(&self, core: &mut Core) {
        if self.sleeping.get().is_none() {
            let _ = self.sleeping.set(core.fd().ok().and_then(|fd| Sleeping::of(fd)));
        }
    }

    /// The runner is back.
    pub fn leave(&self) {
        let mut gate = lock(&self.gate);
        if let Some(runner) = gate.runner.take() {
            // SAFETY: the runner's own run page, and it is the caller.
            unsafe { &*runner.immediate_exit }.store(0, Ordering::SeqCst);
        }
    }

    /// Whether somebody wants this vCPU out; takes a barrier away.
    pub fn wanted(&self) -> bool {
        let mut gate = lock(&self.gate);
        std::mem::take(&mut gate.barrier) || gate.waiting > 0
    }

    /// VM_VCPU_BARRIER.
    pub fn barrier(&self) {
        let mut gate = lock(&self.gate);
        if gate.active {
            gate.barrier = true;
            gate.poke();
        }
    }

    /// Gets it out of the guest, for something that the runner finds out itself.
    pub fn poke(&self) {
        lock(&self.gate).poke();
    }

    /// Activates it; `false` if it was.
    pub fn activate(&self) -> bool {
        !std::mem::replace(&mut lock(&self.gate).active, true)
    }

    /// What VM_REINIT does.
    pub fn deactivate(&self) {
        lock(&self.gate).active = false;
    }

    pub fn is_active(&self) -> bool {
        lock(&self.gate).active
    }

    /// VM_SUSPEND_CPU and VM_RESUME_CPU.
    pub fn set_debug(&self, stopped: bool) {
        let mut gate = lock(&self.gate);
        gate.debug = stopped;
        gate.poke();
    }

    pub fn is_debug(&self) -> bool {
        lock(&self.gate).debug
    }
}

impl Gate {
    fn poke(&self) {
        if let Some(runner) = &self.runner {
            // SAFETY: mapped as long as there is a runner.
            unsafe { &*runner.immediate_exit }.store(1, Ordering::SeqCst);
            // SAFETY: the thread is alive, since it has to pass the gate to leave; the signal has a handler.
            unsafe { libc::syscall(libc::SYS_tgkill, libc::getpid(), runner.thread, poke_signal()) };
        }
    }
}

impl std::ops::Deref for Held<'_> {
    type Target = Core;

    fn deref(&self) -> &Core {
        &self.core
    }
}

impl std::ops::DerefMut for Held<'_> {
    fn deref_mut(&mut self) -> &mut Core {
        &mut self.core
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        let mut gate = lock(&self.slot.gate);
        gate.waiting -= 1;
        if gate.waiting == 0 {
            self.slot.calm.notify_all();
        }
    }
}

/// A signal that nobody else uses: KVM_RUN returns for it, whatever its thread has blocked.
fn poke_signal() -> libc::c_int {
    libc::SIGRTMIN() + 7
}

/// Lets the poke interrupt the calling thread, and gives the thread's id.
fn unblock_poke() -> libc::pid_t {
    extern "C" fn nothing(_signal: libc::c_int) {}
    thread_local!(static THREAD: Cell<libc::pid_t> = const { Cell::new(0) });
    THREAD.with(|thread| {
        if thread.get() == 0 {
            // SAFETY: all-zero is a valid action and set, and what matters is filled in; the handler touches nothing.
            unsafe {
                let mut action: libc::sigaction = std::mem::zeroed();
                action.sa_sigaction = nothing as extern "C" fn(libc::c_int) as usize;
                libc::sigemptyset(&raw mut action.sa_mask);
                libc::sigaction(poke_signal(), &raw const action, std::ptr::null_mut());
                let mut set = std::mem::zeroed();
                libc::sigemptyset(&raw mut set);
                libc::sigaddset(&raw mut set, poke_signal());
                libc::pthread_sigmask(libc::SIG_UNBLOCK, &raw const set, std::ptr::null_mut());
                thread.set(libc::gettid());
            }
        }
        thread.get()
    })
}
