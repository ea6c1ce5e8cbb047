//! Signals, as messages to the main thread.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::thread::JoinHandle;

use devices_host::thread::{KickGuard, KickTarget, SignalWaiter, Signalled, spawn};

use super::inbox::EventSender;
use crate::exit::Exit;

/// What a signal asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Signal {
    /// SIGTERM, or SIGHUP when the terminal went away: end in good order.
    Terminate,
    /// SIGINT: end in good order, and at once when it comes again.
    Interrupt,
    /// SIGQUIT: end at once.
    Quit,
}

impl Signal {
    fn from_number(number: i32) -> Option<Self> {
        match number {
            libc::SIGTERM | libc::SIGHUP => Some(Self::Terminate),
            libc::SIGINT => Some(Self::Interrupt),
            libc::SIGQUIT => Some(Self::Quit),
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

    /// Starts the thread `signals`, which passes them to the main thread. `restore` puts the terminal back if the
    /// thread has to end the process by itself.
    ///
    /// # Errors
    /// When the system cannot start a thread.
    pub fn start(self, sender: EventSender, restore: fn()) -> io::Result<SignalThread> {
        let ending = Arc::new(AtomicBool::new(false));
        let (introduce, introduced) = mpsc::channel();
        let thread = spawn("signals", &[], {
            let ending = ending.clone();
            move || {
                let guard = KickGuard::for_current_thread();
                // Nobody to introduce ourselves to: the starter is gone, and so will we be.
                let _ = introduce.send(guard.target());
                self.pass_on(&sender, &ending, restore);
            }
        })?;
        // Not waited for here: until the thread runs, the kernel keeps what arrives.
        Ok(SignalThread { thread: Some(thread), introduced, ending })
    }
}

impl Signals {
    fn pass_on(&self, sender: &EventSender, ending: &AtomicBool, restore: fn()) {
        let mut interrupts = 0;
        while let Ok(signalled) = self.waiter.wait() {
            // The kick signal can also come from outside: alone it means nothing.
            if ending.load(Ordering::Acquire) {
                return;
            }
            let Signalled::Signal(number) = signalled else { continue };
            if number == libc::SIGHUP && self.ignores_hang_up {
                continue;
            }
            let Some(signal) = Signal::from_number(number) else { continue };
            if signal != Signal::Terminate {
                interrupts += 1;
            }
            if interrupts >= PATIENCE {
                restore();
                // SAFETY: ends the process without running anything that could wait for the main thread.
                unsafe { libc::_exit(Exit::Interrupted.status().into()) };
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
    use super::*;

    #[test]
    fn each_signal_has_its_meaning() {
        for (number, signal) in [
            (libc::SIGTERM, Some(Signal::Terminate)),
            (libc::SIGHUP, Some(Signal::Terminate)),
            (libc::SIGINT, Some(Signal::Interrupt)),
            (libc::SIGQUIT, Some(Signal::Quit)),
            (libc::SIGCHLD, None),
        ] {
            assert_eq!(Signal::from_number(number), signal);
        }
    }
}
