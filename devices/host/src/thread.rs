//! Named threads, where they run, and the signals that reach them.

use std::io;
use std::mem::MaybeUninit;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{Builder, JoinHandle};

use crate::{check, os};

/// Stack of every thread. Rust's default of 2 MiB is as large as a huge page: where the host hands those out unasked, the
/// first touch of a stack that happens to lie well costs all of it.
const STACK_BYTES: usize = 512 << 10;

/// Starts a thread under `name` (the system keeps its first 15 bytes on Linux, 31 on illumos), allowed on `cpus` only
/// unless that is empty. Every signal is blocked in it: signals go to the one thread that waits for them.
///
/// # Errors
/// When the system cannot start a thread or refuses the CPUs.
pub fn spawn<T, F>(name: &str, cpus: &[usize], body: F) -> io::Result<JoinHandle<T>>
where
    F: FnOnce() -> T + Send + 'static,
    T: Send + 'static,
{
    // A thread inherits its creator's signal mask and CPUs, so it never runs a moment without them.
    let blocked = BlockedSignals::all()?;
    let bound = if cpus.is_empty() { None } else { Some(os::Bound::to(cpus)?) };
    let handle = Builder::new().name(name.to_owned()).stack_size(STACK_BYTES).spawn(body);
    drop(bound);
    drop(blocked);
    handle
}

/// Lets the calling thread run on `cpus` only, from now on.
///
/// # Errors
/// `InvalidInput` where the host has no such CPU or none is given; illumos: also where more than one is given.
pub fn bind_current(cpus: &[usize]) -> io::Result<()> {
    os::Bound::to(cpus).map(std::mem::forget)
}

/// The signal that [`KickTarget::kick`] sends. Not a real-time signal: those queue up, and a thread that is kicked
/// faster than it handles kicks would do nothing else for minutes.
pub const KICK_SIGNAL: i32 = libc::SIGUSR1;

/// Gives the kick signal a handler that does nothing, so that it interrupts a system call instead of ending the
/// process. Call it once before the first kick; calling it again is harmless.
///
/// # Errors
/// Never with the signal chosen here; what sigaction(2) says otherwise.
pub fn install_kick_handler() -> io::Result<()> {
    extern "C" fn nothing(_signal: libc::c_int) {}
    // SAFETY: all-zero is a valid sigaction; every field that matters is set below. The handler touches nothing.
    // `sigaction` and not `signal`, which is one-shot on illumos; no SA_RESTART, or calls would not be interrupted.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = nothing as extern "C" fn(libc::c_int) as usize;
        libc::sigemptyset(&mut action.sa_mask);
        check(libc::sigaction(KICK_SIGNAL, &action, std::ptr::null_mut()))?;
    }
    Ok(())
}

/// Lets the kick signal interrupt the calling thread (threads of [`spawn`] start with it blocked).
///
/// # Errors
/// Never in practice; what pthread_sigmask(3) says.
pub fn unblock_kick() -> io::Result<()> {
    change_mask(libc::SIG_UNBLOCK, &set_of(&[KICK_SIGNAL])).map(drop)
}

/// Held by the thread that can be kicked; when it goes away, kicks go nowhere.
#[derive(Debug)]
pub struct KickGuard(KickTarget);

impl KickGuard {
    /// Makes the calling thread a target.
    #[must_use]
    pub fn for_current_thread() -> Self {
        // SAFETY: takes no arguments and cannot fail.
        let thread = unsafe { libc::pthread_self() };
        Self(KickTarget(Arc::new(Mutex::new(Some(Thread(thread))))))
    }

    /// What others kick this thread with.
    #[must_use]
    pub fn target(&self) -> KickTarget {
        self.0.clone()
    }
}

impl Drop for KickGuard {
    fn drop(&mut self) {
        *self.0.0.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}

/// A thread that can be interrupted in a system call or in the guest.
#[derive(Clone, Debug)]
pub struct KickTarget(Arc<Mutex<Option<Thread>>>);

#[derive(Debug)]
struct Thread(libc::pthread_t);

// SAFETY: a pthread_t is only a name that any thread of the process may use while the thread exists.
unsafe impl Send for Thread {}

impl KickTarget {
    /// Sends the kick signal to the thread. The signal only interrupts: what the thread should do next must be said
    /// before. `false` where the thread is gone.
    pub fn kick(&self) -> bool {
        // Held across the call: the guard takes the name away before its thread ends, so the thread still exists.
        let thread = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(Thread(thread)) = *thread else { return false };
        // SAFETY: the thread exists, see above; the signal is valid.
        unsafe { libc::pthread_kill(thread, KICK_SIGNAL) == 0 }
    }
}

/// Signals kept away from the calling thread until this is dropped.
#[derive(Debug)]
pub struct BlockedSignals {
    before: libc::sigset_t,
    /// The mask is a property of the thread that changed it.
    _not_send: std::marker::PhantomData<*const ()>,
}

impl BlockedSignals {
    /// Blocks every signal that can be blocked.
    ///
    /// # Errors
    /// Never in practice; what pthread_sigmask(3) says.
    pub fn all() -> io::Result<Self> {
        let mut set = MaybeUninit::uninit();
        // SAFETY: sigfillset initialises the whole set and cannot fail with a valid pointer.
        let set = unsafe {
            libc::sigfillset(set.as_mut_ptr());
            set.assume_init()
        };
        Ok(Self { before: change_mask(libc::SIG_BLOCK, &set)?, _not_send: std::marker::PhantomData })
    }

    /// Blocks them for the rest of the thread's life.
    pub fn keep(self) {
        std::mem::forget(self);
    }
}

impl Drop for BlockedSignals {
    fn drop(&mut self) {
        let _ = change_mask(libc::SIG_SETMASK, &self.before);
    }
}

pub(crate) fn set_of(signals: &[i32]) -> libc::sigset_t {
    let mut set = MaybeUninit::uninit();
    // SAFETY: sigemptyset initialises the whole set; a number sigaddset does not know leaves the set as it is.
    unsafe {
        libc::sigemptyset(set.as_mut_ptr());
        for &signal in signals {
            libc::sigaddset(set.as_mut_ptr(), signal);
        }
        set.assume_init()
    }
}

pub(crate) fn change_mask(how: i32, set: &libc::sigset_t) -> io::Result<libc::sigset_t> {
    let mut before = MaybeUninit::uninit();
    // SAFETY: both pointers are valid; on success the old mask is written.
    match unsafe { libc::pthread_sigmask(how, set, before.as_mut_ptr()) } {
        // SAFETY: the call succeeded.
        0 => Ok(unsafe { before.assume_init() }),
        error => Err(io::Error::from_raw_os_error(error)),
    }
}

/// Waits for signals instead of handling them: the body of the `signals` thread.
///
/// The signals must be blocked in every thread: create it first in `main`, before any thread is started.
#[derive(Debug)]
pub struct SignalWaiter {
    set: libc::sigset_t,
}

/// What [`SignalWaiter::wait`] returned for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signalled {
    /// One of the signals arrived; its number.
    Signal(i32),
    /// The waiting thread was kicked ([`KickTarget::kick`]): it should look whether it is to end. Somebody outside can
    /// send the process the same signal, so this alone is no reason to.
    Kicked,
}

impl SignalWaiter {
    /// Blocks `signals`, and the kick signal, in the calling thread and in those it starts from now on.
    ///
    /// # Errors
    /// Never in practice; what pthread_sigmask(3) says.
    pub fn new(signals: &[i32]) -> io::Result<Self> {
        let mut set = set_of(signals);
        // SAFETY: the set is initialised and the signal valid.
        unsafe { libc::sigaddset(&mut set, KICK_SIGNAL) };
        change_mask(libc::SIG_BLOCK, &set)?;
        Ok(Self { set })
    }

    /// Sleeps until one of the signals, or a kick of this thread, arrives. Signals that came earlier are not lost,
    /// but several of one number count as one.
    ///
    /// # Errors
    /// Never in practice; what sigwait(3) says.
    pub fn wait(&self) -> io::Result<Signalled> {
        loop {
            let mut signal = 0;
            // SAFETY: the set is initialised, `signal` is valid for the result.
            match unsafe { libc::sigwait(&self.set, &mut signal) } {
                0 if signal == KICK_SIGNAL => return Ok(Signalled::Kicked),
                0 => return Ok(Signalled::Signal(signal)),
                libc::EINTR => {}
                error => return Err(io::Error::from_raw_os_error(error)),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    #[test]
    fn a_thread_has_its_name_and_blocks_every_signal() {
        let thread = spawn("a-name", &[], || {
            let mask = change_mask(libc::SIG_BLOCK, &set_of(&[])).unwrap();
            // SAFETY: the mask is initialised.
            let blocked = [libc::SIGTERM, libc::SIGINT, libc::SIGHUP, KICK_SIGNAL]
                .map(|signal| unsafe { libc::sigismember(&mask, signal) });
            (std::thread::current().name().map(str::to_owned), blocked)
        })
        .unwrap();
        let (name, blocked) = thread.join().unwrap();
        assert_eq!(name.as_deref(), Some("a-name"));
        assert_eq!(blocked, [1; 4]);
    }

    #[test]
    fn starting_a_thread_leaves_the_starters_mask_and_cpus_alone() {
        let before = std::thread::available_parallelism().unwrap();
        let inside = spawn("bound", &[0], || std::thread::available_parallelism().unwrap()).unwrap().join().unwrap();
        assert_eq!(inside.get(), 1);
        assert_eq!(std::thread::available_parallelism().unwrap(), before);
        let mask = change_mask(libc::SIG_BLOCK, &set_of(&[])).unwrap();
        // SAFETY: the mask is initialised.
        assert_eq!(unsafe { libc::sigismember(&mask, libc::SIGHUP) }, 0);
    }

    #[test]
    fn a_cpu_the_host_does_not_have_is_refused_and_nothing_runs() {
        for cpus in [&[4000][..], &[usize::MAX], &[1 << 40]] {
            let (ran, has_run) = mpsc::channel();
            let error = spawn("nowhere", cpus, move || ran.send(())).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidInput, "{error}");
            assert!(has_run.recv().is_err());
        }
    }

    #[test]
    fn a_kick_interrupts_a_system_call_and_a_finished_thread_cannot_be_kicked() {
        install_kick_handler().unwrap();
        let (sender, receiver) = mpsc::channel();
        let thread = spawn("kicked", &[], move || {
            let guard = KickGuard::for_current_thread();
            unblock_kick().unwrap();
            sender.send(guard.target()).unwrap();
            // SAFETY: no descriptors, no limit: only a signal ends it.
            let result = unsafe { libc::poll(std::ptr::null_mut(), 0, -1) };
            (result, io::Error::last_os_error().kind())
        })
        .unwrap();
        let target = receiver.recv().unwrap();
        while !thread.is_finished() {
            target.kick();
            std::thread::yield_now();
        }
        assert_eq!(thread.join().unwrap(), (-1, io::ErrorKind::Interrupted));
        assert!(!target.kick());
    }

    #[test]
    fn a_waiter_sees_a_signal_sent_to_its_thread_and_ends_when_kicked() {
        let (sender, receiver) = mpsc::channel();
        let (signalled, signals) = mpsc::channel();
        let thread = spawn("signals", &[], move || {
            let waiter = SignalWaiter::new(&[libc::SIGUSR2]).unwrap();
            let guard = KickGuard::for_current_thread();
            // SAFETY: takes no arguments.
            sender.send((guard.target(), Thread(unsafe { libc::pthread_self() }))).unwrap();
            loop {
                let signal = waiter.wait().unwrap();
                signalled.send(signal).unwrap();
                if signal == Signalled::Kicked {
                    return;
                }
            }
        })
        .unwrap();
        let (target, name) = receiver.recv().unwrap();
        // SAFETY: the thread exists until it is kicked.
        unsafe { libc::pthread_kill(name.0, libc::SIGUSR2) };
        assert_eq!(signals.recv().unwrap(), Signalled::Signal(libc::SIGUSR2));
        target.kick();
        assert_eq!(signals.recv().unwrap(), Signalled::Kicked);
        thread.join().unwrap();
    }
}
