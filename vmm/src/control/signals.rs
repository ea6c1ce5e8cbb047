//! Signals, as messages to the main thread.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::thread::JoinHandle;

use devices_host::thread::{KickGuard, KickTarget, SignalWaiter, Signalled, spawn};

use super::inbox::EventSender;
use crate::exit::{Exit, ExitConvention};
use crate::sandbox::{self, ThreadKind};

/// What a signal asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Signal {
    /// End in good order.
    Terminate,
    /// End in good order, and at once when it comes again.
    Interrupt,
    /// End at once.
    Quit,
}

impl Signal {
    /// What a signal means to whoever started the process. SIGTERM is the power button to everybody.
    fn from_number(number: i32, convention: ExitConvention) -> Option<Self> {
        use ExitConvention::{Bhyve, Own, Qemu};
        match (number, convention) {
            (libc::SIGTERM, _) => Some(Self::Terminate),
            (libc::SIGQUIT, _) => Some(Self::Quit),
            // A terminal that went away ends what runs on it. In a zone of the bhyve brand nobody sends it on purpose.
            (libc::SIGHUP, Own) => Some(Self::Terminate),
            (libc::SIGHUP, Bhyve) => None,
            (libc::SIGINT, Own | Bhyve) => Some(Self::Interrupt),
            // What qemu does at a signal that it has not been told to take for the power button.
            (libc::SIGINT | libc::SIGHUP, Qemu) => Some(Self::Quit),
            _ => None,
        }
    }
}

/// Interrupts after which the process leaves even if the main thread does not answer: the second one is the main
/// thread's, and only a host call that hangs can keep it from obeying.
const PATIENCE: u32 = 3;

/// Signals kept away from every thread, before there is a thread that could take one.
#[derive(Debug)]
pub struct Signals {
    waiter: SignalWaiter,
    /// The process was started so that it outlives its terminal (`nohup`).
    ignores_hang_up: bool,
}

impl Signals {
    /// Blocks the signals. Call it first, while the process has one thread: threads inherit what is blocked.
    ///
    /// # Errors
    /// Never in practice; what pthread_sigmask(3) says.
    pub fn block() -> io::Result<Self> {
        // A disk's image that may not grow (`ulimit -f`) is an error of the guest's write and no reason to end it.
        ignore(libc::SIGXFSZ)?;
        let waiter = SignalWaiter::new(&[libc::SIGTERM, libc::SIGINT, libc::SIGHUP, libc::SIGQUIT])?;
        Ok(Self { waiter, ignores_hang_up: is_ignored(libc::SIGHUP) })
    }

    /// Starts the thread `signals`, which passes them to the main thread in the sense that `convention` gives them.
    /// `restore` puts the terminal back if the thread has to end the process by itself.
    ///
    /// # Errors
    /// When the system cannot start a thread.
    pub fn start(self, sender: EventSender, convention: ExitConvention, restore: fn()) -> io::Result<SignalThread> {
        let ending = Arc::new(AtomicBool::new(false));
        let (introduce, introduced) = mpsc::channel();
        let thread = spawn("signals", &[], {
            let ending = ending.clone();
            move || {
                sandbox::enter(ThreadKind::Signals);
                let guard = KickGuard::for_current_thread();
                // Nobody to introduce ourselves to: the starter is gone, and so will we be.
                let _ = introduce.send(guard.target());
                self.pass_on(&sender, convention, &ending, restore);
            }
        })?;
        // Not waited for here: until the thread runs, the kernel keeps what arrives.
        Ok(SignalThread { thread: Some(thread), introduced, ending })
    }
}

impl Signals {
    fn pass_on(&self, sender: &EventSender, convention: ExitConvention, ending: &AtomicBool, restore: fn()) {
        let mut interrupts = 0;
        while let Ok(signalled) = self.waiter.wait() {
            let number = match signalled {
                // Passed on even when this thread is to end: what is taken here the kernel keeps for nobody else.
                Signalled::Signal(number) => number,
                Signalled::Kicked if ending.load(Ordering::Acquire) => return,
                // The kick signal can also come from outside: alone it means nothing.
                Signalled::Kicked => continue,
            };
            if number == libc::SIGHUP && self.ignores_hang_up {
                continue;
            }
            let Some(signal) = Signal::from_number(number, convention) else { continue };
            if signal != Signal::Terminate {
                interrupts += 1;
            }
            if interrupts >= PATIENCE {
                restore();
                // SAFETY: ends the process without running anything that could wait for the main thread.
                unsafe { libc::_exit(convention.status(Exit::Interrupted).into()) };
            }
            sender.send_signal(signal);
        }
    }
}

/// The running thread; dropping it ends it.
#[derive(Debug)]
pub struct SignalThread {
    thread: Option<JoinHandle<()>>,
    introduced: mpsc::Receiver<KickTarget>,
    ending: Arc<AtomicBool>,
}

impl Drop for SignalThread {
    fn drop(&mut self) {
        self.ending.store(true, Ordering::Release);
        if let Ok(target) = self.introduced.recv() {
            target.kick();
        }
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// From here on SIGTERM ends the process, one that has arrived unheard among them. Call it last, before an exit status that
/// has the guest started again: no moment is left in which an order to end is lost.
pub fn die_of_termination() {
    // SAFETY: an empty set is a valid one to fill, both structures live through the calls, and only this thread's mask
    // changes.
    unsafe {
        let mut termination = std::mem::zeroed();
        libc::sigemptyset(&raw mut termination);
        libc::sigaddset(&raw mut termination, libc::SIGTERM);
        libc::pthread_sigmask(libc::SIG_UNBLOCK, &raw const termination, std::ptr::null_mut());
    }
}

/// Has the process ignore a signal.
fn ignore(signal: i32) -> io::Result<()> {
    // SAFETY: all-zero is a valid sigaction, without a handler.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = libc::SIG_IGN;
    // SAFETY: the structure is valid during the call.
    match unsafe { libc::sigaction(signal, &action, std::ptr::null_mut()) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Whether whoever started the process wants it to ignore a signal. A blocked signal arrives all the same.
fn is_ignored(signal: i32) -> bool {
    let mut action = std::mem::MaybeUninit::<libc::sigaction>::zeroed();
    // SAFETY: asks only; the structure is valid as zeroes and written by the call.
    let action = unsafe {
        libc::sigaction(signal, std::ptr::null(), action.as_mut_ptr());
        action.assume_init()
    };
    action.sa_sigaction == libc::SIG_IGN
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::control::inbox::{Inbox, Notice};

    /// Else a guest that resets itself at that moment is started again, and whoever ordered its end waits for ever.
    #[test]
    fn a_signal_that_comes_just_before_the_thread_is_told_to_end_is_passed_on() {
        let inbox = Inbox::new().unwrap();
        let (introduce, introduced) = mpsc::channel();
        let sender = inbox.sender();
        let thread = std::thread::spawn(move || {
            let signals = Signals::block().unwrap();
            let guard = KickGuard::for_current_thread();
            // SAFETY: sends a signal to this thread alone, which blocks it.
            assert_eq!(unsafe { libc::raise(libc::SIGTERM) }, 0);
            introduce.send(guard.target()).unwrap();
            signals.pass_on(&sender, ExitConvention::Bhyve, &AtomicBool::new(true), || ());
        });
        let target = introduced.recv().unwrap();
        let notice = loop {
            match inbox.next() {
                Some(notice) => break notice,
                None => assert!(!thread.is_finished(), "the signal is lost"),
            }
            std::thread::sleep(Duration::from_millis(1));
        };
        assert!(matches!(notice, Notice::Signal(Signal::Terminate)));
        target.kick();
        thread.join().unwrap();
    }

    #[test]
    fn each_signal_means_what_whoever_starts_the_process_takes_it_for() {
        use ExitConvention::{Bhyve, Own, Qemu};
        let (terminate, interrupt, quit) = (Some(Signal::Terminate), Some(Signal::Interrupt), Some(Signal::Quit));
        for (number, meanings) in [
            (libc::SIGTERM, [terminate, terminate, terminate]),
            (libc::SIGHUP, [terminate, None, quit]),
            (libc::SIGINT, [interrupt, interrupt, quit]),
            (libc::SIGQUIT, [quit, quit, quit]),
            (libc::SIGCHLD, [None, None, None]),
        ] {
            assert_eq!([Own, Bhyve, Qemu].map(|starter| Signal::from_number(number, starter)), meanings, "{number}");
        }
    }
}
