//! Terminals and serial lines of the host as outer ends of the guest's, such as a SmartOS zone's `/dev/zconsole`.
//!
//! Such a device is no user's terminal: nobody but the guest gives its bytes a meaning, so it is raw in both directions
//! while the line is open, and given back as it was found. [`devices_host::tty::RawMode`] is for the terminal that the
//! process was started on, of which there is one.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use devices_host::thread::BlockedSignals;
use rustix::termios::{
    ControlModes, InputModes, LocalModes, OptionalActions, OutputModes, SpecialCodeIndex, Termios, isatty, tcgetattr,
    tcsetattr,
};

/// Every terminal in raw mode, as it was before: for the ways out of the process on which nothing is dropped.
static CHANGED: Mutex<Vec<Changed>> = Mutex::new(Vec::new());

static NEXT_ID: AtomicU64 = AtomicU64::new(0);

struct Changed {
    id: u64,
    terminal: OwnedFd,
    before: Termios,
}

/// A terminal in raw mode. Dropping it restores the terminal; where nothing is dropped, [`restore`] does.
#[derive(Debug)]
pub(super) struct RawTty {
    terminal: File,
    /// Of its settings in [`CHANGED`].
    id: u64,
}

impl RawTty {
    /// Opens a terminal device and makes it raw: eight bits, no echo, no lines, no key and no line end with a meaning,
    /// no carrier needed. Reading and writing never block, and it does not become the process's own terminal.
    ///
    /// # Errors
    /// What the system says; `InvalidInput` where it is no terminal.
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        let flags = libc::O_NONBLOCK | libc::O_NOCTTY;
        let terminal = OpenOptions::new().read(true).write(true).custom_flags(flags).open(path)?;
        if !isatty(&terminal) {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is not a terminal"));
        }
        let before = tcgetattr(&terminal)?;
        let kept = terminal.as_fd().try_clone_to_owned()?;
        let id = NEXT_ID.fetch_add(1, Ordering::Relaxed);
        // First, so that a panic in between finds it.
        changed().push(Changed { id, terminal: kept, before: before.clone() });
        let raw = Self { terminal, id };
        set(&raw.terminal, &made_raw(before))?;
        Ok(raw)
    }

    /// The terminal.
    pub(super) fn terminal(&self) -> &File {
        &self.terminal
    }
}

impl Drop for RawTty {
    fn drop(&mut self) {
        let mut changed = changed();
        if let Some(index) = changed.iter().position(|one| one.id == self.id) {
            let Changed { terminal, before, .. } = changed.swap_remove(index);
            let _ = set(&terminal, &before);
        }
    }
}

/// Gives every terminal back as it was found, those of lines and the one that the process was started on. For a panic
/// hook and other threads than the one that has the lines: it waits for nobody.
pub(crate) fn restore() {
    devices_host::tty::restore();
    if let Ok(mut changed) = CHANGED.try_lock() {
        for Changed { terminal, before, .. } in changed.drain(..) {
            let _ = set(&terminal, &before);
        }
    }
}

fn changed() -> std::sync::MutexGuard<'static, Vec<Changed>> {
    CHANGED.lock().unwrap_or_else(PoisonError::into_inner)
}

fn set(terminal: &impl AsFd, settings: &Termios) -> io::Result<()> {
    // It can be our session's terminal all the same, and changing that from the background stops a process by SIGTTOU.
    let _blocked = BlockedSignals::all()?;
    Ok(tcsetattr(terminal, OptionalActions::Now, settings)?)
}

fn made_raw(mut settings: Termios) -> Termios {
    settings.input_modes = InputModes::empty();
    settings.output_modes -= OutputModes::OPOST;
    settings.local_modes -= LocalModes::ECHO | LocalModes::ECHONL | LocalModes::ICANON | LocalModes::ISIG;
    settings.local_modes -= LocalModes::IEXTEN;
    settings.control_modes -= ControlModes::CSIZE | ControlModes::PARENB;
    settings.control_modes |= ControlModes::CS8 | ControlModes::CREAD | ControlModes::CLOCAL;
    settings.special_codes[SpecialCodeIndex::VMIN] = 1;
    settings.special_codes[SpecialCodeIndex::VTIME] = 0;
    settings
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::fd::AsRawFd;

    use devices_host::poll::{PollFd, poll};
    use devices_host::tty::Pty;

    use super::*;

    /// Serialises the tests: what [`restore`] gives back belongs to the process.
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

    /// A terminal as a zone's console is before somebody makes it raw; our side of it, and the user's.
    fn cooked() -> (File, OwnedFd, std::path::PathBuf) {
        let pty = Pty::open().unwrap();
        let path = pty.path().to_owned();
        let (ours, terminal) = pty.into_parts();
        let mut settings = tcgetattr(&terminal).unwrap();
        settings.input_modes |= InputModes::ICRNL | InputModes::IXON;
        settings.output_modes |= OutputModes::OPOST | OutputModes::ONLCR;
        settings.local_modes |= LocalModes::ECHO | LocalModes::ICANON | LocalModes::ISIG | LocalModes::IEXTEN;
        set(&terminal, &settings).unwrap();
        (ours, terminal, path)
    }

    fn text(settings: &Termios) -> String {
        format!("{settings:?}")
    }

    fn read(file: &mut File, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        let mut got = 0;
        while got < len {
            let mut fds = [PollFd::new(file.as_raw_fd()).readable(true)];
            assert_ne!(poll(&mut fds, Some(60_000_000_000)).unwrap(), 0, "nothing comes");
            got += file.read(&mut bytes[got..]).unwrap();
        }
        bytes
    }

    #[test]
    fn every_byte_passes_both_ways_unchanged_and_the_terminal_is_given_back_as_it_was() {
        let _one = ONE_AT_A_TIME.lock();
        let (mut ours, terminal, path) = cooked();
        let before = text(&tcgetattr(&terminal).unwrap());
        let raw = RawTty::open(&path).unwrap();
        assert_ne!(text(&tcgetattr(&terminal).unwrap()), before);
        let mut line = raw.terminal().try_clone().unwrap();
        assert_eq!(line.read(&mut [0; 8]).unwrap_err().kind(), io::ErrorKind::WouldBlock);
        let bytes: Vec<u8> = (0..=255).collect();
        ours.write_all(&bytes).unwrap();
        assert_eq!(read(&mut line, 256), bytes);
        line.write_all(&bytes).unwrap();
        assert_eq!(read(&mut ours, 256), bytes);
        drop((raw, line));
        assert_eq!(text(&tcgetattr(&terminal).unwrap()), before);
    }

    #[test]
    fn a_way_out_without_drops_gives_all_terminals_back_and_a_late_drop_changes_nothing() {
        let _one = ONE_AT_A_TIME.lock();
        let places = [cooked(), cooked()];
        let before = text(&tcgetattr(&places[0].1).unwrap());
        let raw: Vec<RawTty> = places.iter().map(|(.., path)| RawTty::open(path).unwrap()).collect();
        restore();
        for (_, terminal, _) in &places {
            assert_eq!(text(&tcgetattr(terminal).unwrap()), before);
            // What the next process makes of it is not undone.
            let mut settings = tcgetattr(terminal).unwrap();
            settings.local_modes -= LocalModes::ECHO;
            set(terminal, &settings).unwrap();
        }
        drop(raw);
        assert!(places.iter().all(|(_, terminal, _)| text(&tcgetattr(terminal).unwrap()) != before));
    }

    #[test]
    fn what_is_no_terminal_is_refused() {
        let error = RawTty::open(Path::new("/dev/null")).unwrap_err();
        assert_eq!((error.kind(), error.to_string().as_str()), (io::ErrorKind::InvalidInput, "it is not a terminal"));
        assert_eq!(RawTty::open(Path::new("/nonexistent/tty")).unwrap_err().kind(), io::ErrorKind::NotFound);
    }
}
