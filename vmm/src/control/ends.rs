//! Opens the outer ends of serial lines as the configuration says.

use std::fs::{File, OpenOptions};
use std::io::{self, IsTerminal};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use devices_host::tty::{Pty, RawMode, reopen_stdout};

use crate::config::{SerialBackend, VmConfig, read_metadata, system_text};
use crate::exit::Exit;

use super::device::RawTty;
use super::line::{End, Line, Lines};
use super::metadata::Responder;
use super::socket::{BindError, Listener, exit_for_path};
use super::{Built, SerialPort};

/// Why a serial line cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum LineError {
    /// The socket cannot be listened on.
    #[error("{0}: {1}")]
    Socket(&'static str, BindError),
    /// The file or terminal device cannot be opened.
    #[error("{name}: cannot open {}: {}", path.display(), system_text(.error))]
    File {
        /// Name of the line.
        name: &'static str,
        /// What was opened.
        path: PathBuf,
        /// What the system says.
        error: io::Error,
    },
    /// The keys of the metadata responder cannot be read.
    #[error("{0}: {1}")]
    Metadata(&'static str, String),
    /// The terminal or pseudo terminal cannot be opened.
    #[error("{name}: cannot open {what}: {}", system_text(.error))]
    Open {
        /// Name of the line.
        name: &'static str,
        /// What was opened.
        what: &'static str,
        /// What the system says.
        error: io::Error,
    },
    /// The machine has no such line.
    #[error("{0}: this machine has no such port")]
    NoPort(&'static str),
}

impl LineError {
    /// The status the process ends with.
    pub fn exit(&self) -> Exit {
        match self {
            Self::Socket(_, error) => error.exit(),
            Self::File { error, .. } => exit_for_path(error),
            Self::Open { .. } => Exit::HostFailed,
            Self::Metadata(..) | Self::NoPort(_) => Exit::Config,
        }
    }
}

/// The outer ends of all configured lines, open and not yet joined to the guest's ports.
pub struct Ends {
    ends: Vec<(&'static str, End)>,
    uses_terminal: bool,
}

impl Ends {
    /// Opens every end. Call it while the process has no thread that creates files (see [`Listener::bind`]).
    ///
    /// # Errors
    /// The first end that cannot be opened.
    pub fn open(config: &VmConfig) -> Result<Self, LineError> {
        let backends = config.backends();
        let on_stdio = backends.iter().any(|(_, backend)| **backend == SerialBackend::Stdio);
        let uses_terminal = on_stdio && io::stdin().is_terminal();
        let ends = backends.into_iter().map(|(name, backend)| Ok((name, open(name, backend, uses_terminal)?)));
        Ok(Self { ends: ends.collect::<Result<_, LineError>>()?, uses_terminal })
    }

    /// Has every socket serve one client and let go at once who comes meanwhile, as bhyve does. Otherwise they wait for it
    /// to go, as with qemu.
    pub fn turn_second_clients_away(&mut self) {
        self.ends.iter_mut().for_each(|(_, end)| end.turns_second_clients_away());
    }

    /// Puts the terminal into raw mode if a line is on it. Dropping the guard restores it.
    ///
    /// # Errors
    /// What the system says.
    pub fn enter_raw_mode(&self) -> io::Result<Option<RawMode>> {
        if self.uses_terminal { RawMode::enter(io::stdin().as_fd()) } else { Ok(None) }
    }

    /// Joins the ends to the guest's ports. A port without an end is drained, so that its guest never waits.
    ///
    /// # Errors
    /// When an end is configured for a port that the machine does not have.
    pub fn join(mut self, built: &Built) -> Result<Lines, LineError> {
        let mut lines: Vec<Line> = Vec::new();
        for (name, port) in &built.ports {
            let end = match self.ends.iter().position(|(other, _)| other == name) {
                Some(index) => self.ends.remove(index).1,
                None => End::null(),
            };
            let port: std::sync::Arc<dyn SerialPort> = port.clone();
            lines.push(end.join(name, port));
        }
        match self.ends.first() {
            Some((name, _)) => Err(LineError::NoPort(name)),
            None => Ok(Lines::new(lines)),
        }
    }
}

fn open(name: &'static str, backend: &SerialBackend, uses_terminal: bool) -> Result<End, LineError> {
    let failed = |what, error| LineError::Open { name, what, error };
    match backend {
        SerialBackend::Null => Ok(End::null()),
        SerialBackend::Stdio => stdio(uses_terminal).map_err(|error| failed("the terminal", error)),
        SerialBackend::Socket(path) => {
            Ok(End::socket(Listener::bind(path).map_err(|error| LineError::Socket(name, error))?))
        }
        SerialBackend::File(path) => {
            Ok(End::file(file(path).map_err(|error| LineError::File { name, path: path.clone(), error })?))
        }
        SerialBackend::Device(path) => {
            let raw = RawTty::open(path).and_then(End::device);
            raw.map_err(|error| LineError::File { name, path: path.clone(), error })
        }
        SerialBackend::Metadata(path) => {
            let metadata = read_metadata(path).map_err(|problem| LineError::Metadata(name, problem))?;
            Ok(End::metadata(Responder::new(metadata)))
        }
        SerialBackend::Pty => {
            let open = || -> io::Result<End> {
                let pty = Pty::open()?;
                // Nobody could use it without knowing its name.
                crate::logging::say(format_args!("{name} is {}", pty.path().display()));
                let (ours, theirs) = pty.into_parts();
                End::pty(ours, theirs)
            };
            open().map_err(|error| failed("a pseudo terminal", error))
        }
    }
}

fn file(path: &Path) -> io::Result<File> {
    // O_NONBLOCK: opening a pipe that nobody reads fails instead of waiting for ever. 0600: consoles show secrets.
    let flags = libc::O_NONBLOCK | libc::O_NOCTTY;
    let opened = OpenOptions::new().append(true).create(true).mode(0o600).custom_flags(flags).open(path);
    opened.map_err(|error| match error.raw_os_error() {
        Some(libc::ENXIO) => {
            io::Error::new(io::ErrorKind::InvalidInput, "it is a pipe that nobody reads, or no device")
        }
        _ => error,
    })
}

fn stdio(is_terminal: bool) -> io::Result<End> {
    let (stdin, stdout) = (io::stdin(), io::stdout());
    let input: OwnedFd = stdin.as_fd().try_clone_to_owned()?;
    let (output, blocks) = output(stdout.as_fd())?;
    Ok(End::terminal(input.into(), output, blocks, is_terminal))
}

/// A descriptor for standard output, and whether writing to it can block.
///
/// Its own blocking mode belongs to everybody who shares it, the user's shell among them, and must not be changed. A
/// terminal or pipe is therefore opened once more, for a mode of our own.
fn output(stdout: BorrowedFd<'_>) -> io::Result<(File, bool)> {
    let shared: File = stdout.try_clone_to_owned()?.into();
    let kind = shared.metadata()?.file_type();
    if kind.is_fifo() || shared.is_terminal() {
        return Ok(reopen_stdout().map_or((shared, true), |own| (own, false)));
    }
    Ok((shared, kind.is_socket()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::Machine;
    use std::sync::Arc;
    use tempfile::TempDir;

    struct NoMachine;

    impl Machine for NoMachine {
        fn pause(&self) {}
        fn resume(&self) {}
        fn press_power_button(&self) {}
        fn reset(&self) {}
        fn stop(&self) {}
        fn join(&self) {}
        fn inject_nmi(&self, _vcpu: u8) {}
        fn stats(&self) -> serde_json::Value {
            serde_json::Value::Null
        }
        fn resize_disk(&self, _resize: &crate::control::DiskResize, _ticket: crate::control::Ticket) {}
        fn set_link(&self, _change: &crate::control::LinkChange) -> Result<(), String> {
            Ok(())
        }
    }

    struct NoPort;

    impl SerialPort for NoPort {
        fn take_output(&self, _bytes: &mut [u8]) -> usize {
            0
        }
        fn push_input(&self, bytes: &[u8]) -> usize {
            bytes.len()
        }
    }

    fn built(names: &[&'static str]) -> Built {
        let port: Arc<dyn SerialPort> = Arc::new(NoPort);
        let ports = names.iter().map(|name| (*name, port.clone())).collect();
        Built { machine: Arc::new(NoMachine), ports, timers: Vec::new(), watches: Vec::new() }
    }

    fn with_com2(backend: SerialBackend) -> VmConfig {
        let mut config = VmConfig::default();
        config.serials[1] = Some(backend);
        config
    }

    #[test]
    fn a_line_without_its_port_is_an_error_and_a_port_without_a_line_is_not() {
        let ends = || Ends::open(&with_com2(SerialBackend::Null)).unwrap();
        assert!(ends().join(&built(&["com1", "com2"])).is_ok());
        let error = ends().join(&built(&["com1"])).err().unwrap();
        assert_eq!((error.to_string().as_str(), error.exit()), ("com2: this machine has no such port", Exit::Config));
    }

    #[test]
    fn a_file_is_appended_to_and_readable_by_its_owner_only() {
        use std::os::unix::fs::PermissionsExt;
        let dir = TempDir::new().unwrap();
        let path = dir.path().join("log");
        for _ in 0..2 {
            io::Write::write_all(&mut file(&path).unwrap(), b"x").unwrap();
        }
        assert_eq!(std::fs::read(&path).unwrap(), b"xx");
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    }

    #[test]
    fn an_end_that_cannot_be_opened_is_named() {
        let file = SerialBackend::File("/nonexistent/log".into());
        let error = Ends::open(&with_com2(file)).err().unwrap();
        assert_eq!(error.to_string(), "com2: cannot open /nonexistent/log: No such file or directory");
        assert_eq!(error.exit(), Exit::Config);
        let dir = TempDir::new().unwrap();
        let path = dir.path().join("file");
        std::fs::write(&path, "").unwrap();
        let error = Ends::open(&with_com2(SerialBackend::Socket(path))).err().unwrap();
        assert!(error.to_string().contains("exists and is not a socket"));
        assert_eq!(error.exit(), Exit::Config);
    }
}
