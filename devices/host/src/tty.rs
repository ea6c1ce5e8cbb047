//! Terminals: raw mode that is undone on every way out, and pseudo-terminals.

use std::cell::UnsafeCell;
use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, IsTerminal};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicI32, AtomicU8, Ordering};

use crate::thread::BlockedSignals;
use crate::{check, os};

/// The settings the terminal had before. One for the process, because a panic hook has no other way to find them.
struct Saved {
    settings: UnsafeCell<MaybeUninit<libc::termios>>,
    stage: AtomicU8,
    /// The terminal in raw mode, or -1.
    fd: AtomicI32,
}

const EMPTY: u8 = 0;
const WRITING: u8 = 1;
const READY: u8 = 2;

// SAFETY: the settings are written once, by whoever moves `stage` from EMPTY to WRITING, and read only after READY.
unsafe impl Sync for Saved {}

static SAVED: Saved =
    Saved { settings: UnsafeCell::new(MaybeUninit::uninit()), stage: AtomicU8::new(EMPTY), fd: AtomicI32::new(-1) };

/// A terminal that passes every key on at once, Ctrl-C among them. Dropping it restores the terminal; where nothing is
/// dropped (a panic that aborts, `exit`), call [`restore`].
#[derive(Debug)]
pub struct RawMode(());

impl RawMode {
    /// Puts `terminal` into raw mode; `None` where it is no terminal. Output is left as it is, so that log lines still
    /// begin at the left. One terminal a process, and its descriptor stays open as long as the mode is on.
    ///
    /// # Errors
    /// What the system says; the terminal is unchanged.
    pub fn enter(terminal: BorrowedFd<'_>) -> io::Result<Option<Self>> {
        if !terminal.is_terminal() {
            return Ok(None);
        }
        let before = settings(terminal.as_raw_fd())?;
        match SAVED.stage.compare_exchange(EMPTY, WRITING, Ordering::AcqRel, Ordering::Acquire) {
            Ok(_) => {
                // SAFETY: only the one that moved the stage away from EMPTY gets here, and nobody reads before READY.
                unsafe { (*SAVED.settings.get()).write(before) };
                SAVED.stage.store(READY, Ordering::Release);
            }
            // Entered before: what was saved then is what the user had.
            Err(READY) => {}
            Err(_) => return Err(io::Error::other("the terminal is being changed by another thread")),
        }
        let mut raw = before;
        raw.c_iflag &= !(libc::IGNBRK
            | libc::BRKINT
            | libc::PARMRK
            | libc::ISTRIP
            | libc::INLCR
            | libc::IGNCR
            | libc::ICRNL
            | libc::IXON);
        raw.c_lflag &= !(libc::ECHO | libc::ECHONL | libc::ICANON | libc::ISIG | libc::IEXTEN);
        raw.c_cflag = raw.c_cflag & !(libc::CSIZE | libc::PARENB) | libc::CS8;
        raw.c_cc[libc::VMIN] = 1;
        raw.c_cc[libc::VTIME] = 0;
        // From here on a restore finds the terminal, should something end the process in between.
        SAVED.fd.store(terminal.as_raw_fd(), Ordering::Release);
        match apply(terminal.as_raw_fd(), &raw) {
            Ok(()) => Ok(Some(Self(()))),
            Err(error) => {
                SAVED.fd.store(-1, Ordering::Release);
                Err(error)
            }
        }
    }
}

impl Drop for RawMode {
    fn drop(&mut self) {
        restore();
    }
}

/// Gives the terminal back as [`RawMode::enter`] found it. Does nothing where there is nothing to do, any number of
/// times, from any thread, a panic hook or a signal handler: it takes no lock and allocates nothing.
pub fn restore() {
    let fd = SAVED.fd.swap(-1, Ordering::AcqRel);
    if fd >= 0 && SAVED.stage.load(Ordering::Acquire) == READY {
        // SAFETY: READY: the settings are written, and never again.
        let settings = unsafe { (*SAVED.settings.get()).assume_init_ref() };
        let _ = apply(fd, settings);
    }
}

fn settings(fd: RawFd) -> io::Result<libc::termios> {
    let mut settings = MaybeUninit::uninit();
    // SAFETY: the call fills the whole structure where it succeeds.
    unsafe {
        check(libc::tcgetattr(fd, settings.as_mut_ptr()))?;
        Ok(settings.assume_init())
    }
}

fn apply(fd: RawFd, settings: &libc::termios) -> io::Result<()> {
    // A process in the background is stopped by SIGTTOU for changing the terminal, unless it blocks that signal.
    let _blocked = BlockedSignals::all()?;
    // SAFETY: the settings are valid.
    crate::retry(|| unsafe { libc::tcsetattr(fd, libc::TCSANOW, settings) }).map(drop)
}

/// Standard output opened once more, with a blocking mode of its own that is off; `None` where the system cannot.
#[must_use]
pub fn reopen_stdout() -> Option<File> {
    os::tty::reopen_stdout()
}

/// A pseudo-terminal that somebody can attach a terminal program to.
#[derive(Debug)]
pub struct Pty {
    controller: File,
    terminal: OwnedFd,
    path: PathBuf,
}

impl Pty {
    /// A new pseudo-terminal in raw mode. Reading and writing our side never blocks.
    ///
    /// # Errors
    /// What the system says: most likely that it has none left.
    pub fn open() -> io::Result<Self> {
        // SAFETY: plain calls on a descriptor that is owned as soon as it exists.
        let (controller, path) = unsafe {
            let fd = check(libc::posix_openpt(libc::O_RDWR | libc::O_NOCTTY))?;
            let controller = File::from_raw_fd(fd);
            check(libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC))?;
            check(libc::grantpt(fd))?;
            check(libc::unlockpt(fd))?;
            let name = os::tty::terminal_name(fd)?;
            (controller, PathBuf::from(OsStr::from_bytes(&name)))
        };
        let terminal = {
            use std::os::unix::fs::OpenOptionsExt;
            std::fs::OpenOptions::new().read(true).write(true).custom_flags(libc::O_NOCTTY).open(&path)?
        };
        os::tty::make_terminal(terminal.as_fd())?;
        let mut raw = settings(terminal.as_raw_fd())?;
        raw.c_iflag = 0;
        raw.c_oflag &= !libc::OPOST;
        raw.c_lflag &= !(libc::ECHO | libc::ECHONL | libc::ICANON | libc::ISIG | libc::IEXTEN);
        raw.c_cflag = raw.c_cflag & !(libc::CSIZE | libc::PARENB) | libc::CS8;
        raw.c_cc[libc::VMIN] = 1;
        raw.c_cc[libc::VTIME] = 0;
        apply(terminal.as_raw_fd(), &raw)?;
        // SAFETY: adds a flag to a descriptor that only this function knows.
        unsafe {
            let flags = check(libc::fcntl(controller.as_raw_fd(), libc::F_GETFL))?;
            check(libc::fcntl(controller.as_raw_fd(), libc::F_SETFL, flags | libc::O_NONBLOCK))?;
        }
        Ok(Self { controller, terminal: terminal.into(), path })
    }

    /// What the user attaches to, such as `/dev/pts/3`.
    #[must_use]
    pub fn path(&self) -> &std::path::Path {
        &self.path
    }

    /// Our side; and the other side, to be kept open: without anybody on it, our side would report an error for ever.
    #[must_use]
    pub fn into_parts(self) -> (File, OwnedFd) {
        (self.controller, self.terminal)
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::unix::fs::OpenOptionsExt;

    use super::*;

    fn is_raw(terminal: &impl AsRawFd) -> bool {
        let settings = settings(terminal.as_raw_fd()).unwrap();
        settings.c_lflag & (libc::ICANON | libc::ECHO | libc::ISIG) == 0
    }

    /// One test, because the saved settings belong to the process.
    #[test]
    fn raw_mode_is_undone_by_drop_and_by_restore_in_any_order() {
        let (_controller, terminal) = Pty::open().unwrap().into_parts();
        let mut cooked = settings(terminal.as_raw_fd()).unwrap();
        cooked.c_lflag |= libc::ICANON | libc::ECHO | libc::ISIG;
        cooked.c_oflag |= libc::OPOST;
        apply(terminal.as_raw_fd(), &cooked).unwrap();

        restore();
        let guard = RawMode::enter(terminal.as_fd()).unwrap().expect("a terminal");
        assert!(is_raw(&terminal));
        assert_ne!(settings(terminal.as_raw_fd()).unwrap().c_oflag & libc::OPOST, 0);
        drop(guard);
        assert!(!is_raw(&terminal));

        let guard = RawMode::enter(terminal.as_fd()).unwrap().expect("a terminal");
        restore();
        assert!(!is_raw(&terminal), "restored without the guard, as a panic hook does");
        // Whatever the user does after that is not undone by a late guard.
        let mut changed = cooked;
        changed.c_lflag &= !libc::ECHO;
        apply(terminal.as_raw_fd(), &changed).unwrap();
        drop(guard);
        assert_eq!(settings(terminal.as_raw_fd()).unwrap().c_lflag & libc::ECHO, 0);

        let file = File::open("/dev/null").unwrap();
        assert!(RawMode::enter(file.as_fd()).unwrap().is_none());
    }

    #[test]
    fn a_pseudo_terminal_passes_every_byte_both_ways_and_never_blocks_us() {
        let pty = Pty::open().unwrap();
        let path = pty.path().to_owned();
        let (mut ours, _keep) = pty.into_parts();
        assert_eq!(ours.read(&mut [0; 8]).unwrap_err().kind(), io::ErrorKind::WouldBlock);
        let mut user =
            std::fs::OpenOptions::new().read(true).write(true).custom_flags(libc::O_NOCTTY).open(&path).unwrap();
        let bytes: Vec<u8> = (0..=255).collect();
        let mut read = vec![0; 256];
        ours.write_all(&bytes).unwrap();
        user.read_exact(&mut read).unwrap();
        assert_eq!(read, bytes);
        user.write_all(&bytes).unwrap();
        let mut got = 0;
        while got < 256 {
            let mut fds = [crate::poll::PollFd::new(ours.as_raw_fd()).readable(true)];
            crate::poll::poll(&mut fds, Some(5_000_000_000)).unwrap();
            got += ours.read(&mut read[got..]).unwrap();
        }
        assert_eq!(read, bytes);
        drop(user);
        assert_eq!(ours.read(&mut [0; 8]).unwrap_err().kind(), io::ErrorKind::WouldBlock, "nobody left, no error");
        while ours.write(&[b'x'; 4096]).is_ok() {}
    }
}
