//! Listening unix sockets, by the rules that hold on Linux and in a SmartOS zone.
//!
//! Sockets are 0600, and a client is its owner or root. A socket file that nobody listens on is left over from a process
//! that died and is replaced; a file of any other kind, and a socket somebody listens on, is not ours to touch. Data is
//! sent without blocking, after [`may_send`](devices_host::socket::may_send), in pieces of at most [`MAX_SEND`]: illumos
//! ignores `SO_SNDTIMEO` and `MSG_DONTWAIT`, and moves one STREAMS message of that size at a time.

use std::fs::{self, Metadata};
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use devices_host::socket::{is_from_owner, nobody_listens};

use crate::exit::Exit;

/// The most bytes handed to one send.
pub const MAX_SEND: usize = 8 * 1024;

/// Why a socket cannot be listened on.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// Something else has that name.
    #[error("{} exists and is not a socket; remove it or choose another path", .0.display())]
    NotASocket(PathBuf),
    /// Another process serves it.
    #[error("{} is served by another process", .0.display())]
    InUse(PathBuf),
    /// What the system says.
    #[error("cannot listen on {}: {}", .0.display(), crate::config::system_text(.1))]
    System(PathBuf, io::Error),
}

impl BindError {
    /// The status the process ends with: a path that cannot be had is the configuration's fault, anything else the
    /// host's.
    pub fn exit(&self) -> Exit {
        match self {
            Self::NotASocket(_) | Self::InUse(_) => Exit::Config,
            Self::System(_, error) => exit_for_path(error),
        }
    }
}

/// How the process ends when a path of the configuration cannot be opened or created: by the path's fault, or because
/// the host is out of something.
pub(super) fn exit_for_path(error: &io::Error) -> Exit {
    use io::ErrorKind;
    match error.kind() {
        ErrorKind::NotFound
        | ErrorKind::PermissionDenied
        | ErrorKind::NotADirectory
        | ErrorKind::IsADirectory
        | ErrorKind::ReadOnlyFilesystem
        | ErrorKind::InvalidInput
        | ErrorKind::InvalidFilename
        | ErrorKind::AddrInUse => Exit::Config,
        _ => Exit::HostFailed,
    }
}

/// A listening socket; its file goes away with it.
#[derive(Debug)]
pub struct Listener {
    listener: UnixListener,
    path: PathBuf,
    identity: Option<(u64, u64)>,
}

impl Listener {
    /// Listens on `path`. Call it while no other thread creates files: the file mode comes from the process's umask.
    pub fn bind(path: &Path) -> Result<Self, BindError> {
        let system = |error| BindError::System(path.into(), error);
        if let Ok(metadata) = fs::symlink_metadata(path) {
            if !metadata.file_type().is_socket() {
                return Err(BindError::NotASocket(path.into()));
            }
            if !is_stale(path) {
                return Err(BindError::InUse(path.into()));
            }
            fs::remove_file(path).map_err(system)?;
        }
        // SAFETY: umask takes and returns a number; it cannot fail.
        let before = unsafe { libc::umask(0o177) };
        let bound = UnixListener::bind(path);
        // SAFETY: as above.
        unsafe { libc::umask(before) };
        let listener = bound.map_err(system)?;
        listener.set_nonblocking(true).map_err(system)?;
        let identity = fs::symlink_metadata(path).ok().map(|metadata| identity(&metadata));
        Ok(Self { listener, path: path.into(), identity })
    }

    /// The next client, if one waits. Its socket does not block.
    pub fn accept(&self) -> Option<UnixStream> {
        let stream = match self.listener.accept() {
            Ok((stream, _)) => stream,
            Err(error) => {
                if !matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) {
                    // Most likely no descriptors are left. The client still waits, so the next poll returns at once:
                    // without a pause the main thread would use up a CPU until a descriptor becomes free.
                    std::thread::sleep(std::time::Duration::from_millis(10));
                }
                return None;
            }
        };
        // Inherited from the listener on illumos, not on Linux.
        stream.set_nonblocking(true).ok()?;
        if !is_from_owner(&stream).unwrap_or(false) {
            log::warn!("{}: a client of another user or zone is turned away", self.path.display());
            return None;
        }
        Some(stream)
    }
}

impl AsRawFd for Listener {
    fn as_raw_fd(&self) -> RawFd {
        self.listener.as_raw_fd()
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        // By now the name may belong to a process that replaced us.
        let now = fs::symlink_metadata(&self.path).ok().map(|metadata| identity(&metadata));
        if now.is_some() && now == self.identity {
            let _ = fs::remove_file(&self.path);
        }
    }
}

fn identity(metadata: &Metadata) -> (u64, u64) {
    (metadata.dev(), metadata.ino())
}

/// Whether nobody listens on a socket file.
///
/// Asked with a datagram socket, which a listener refuses for its type and a left-over file because nobody is there. A
/// stream connection would be refused, or block, while a living listener's backlog is full.
fn is_stale(path: &Path) -> bool {
    let probe = UnixDatagram::unbound().and_then(|probe| probe.connect(path));
    probe.is_err_and(|error| nobody_listens(&error))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;
    use tempfile::TempDir;

    #[test]
    fn a_socket_is_for_its_owner_only_and_goes_away_with_its_listener() {
        let dir = TempDir::new().unwrap();
        let path = dir.path().join("s");
        let listener = Listener::bind(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        drop(listener);
        assert!(!path.exists());
    }

    #[test]
    fn a_left_over_socket_is_replaced_and_a_living_one_is_not() {
        let dir = TempDir::new().unwrap();
        let path = dir.path().join("s");
        drop(UnixListener::bind(&path).unwrap());
        assert!(path.exists());
        let _listener = Listener::bind(&path).unwrap();
        assert!(matches!(Listener::bind(&path), Err(BindError::InUse(_))));
        assert!(path.exists());
    }

    #[test]
    fn a_living_socket_with_a_full_backlog_is_not_taken_for_a_left_over() {
        let dir = TempDir::new().unwrap();
        let path = dir.path().join("s");
        // SAFETY: plain socket calls on descriptors of this test.
        let _listener = unsafe {
            let listener = UnixListener::bind(&path).unwrap();
            libc::listen(listener.as_raw_fd(), 0);
            listener
        };
        let _waiting = UnixStream::connect(&path).unwrap();
        assert!(matches!(Listener::bind(&path), Err(BindError::InUse(_))));
    }

    #[test]
    fn a_file_is_never_removed() {
        let dir = TempDir::new().unwrap();
        let path = dir.path().join("precious");
        fs::write(&path, "data").unwrap();
        let error = Listener::bind(&path).unwrap_err().to_string();
        assert!(error.ends_with("exists and is not a socket; remove it or choose another path"), "{error}");
        assert_eq!(fs::read(&path).unwrap(), b"data");
    }

    #[test]
    fn a_directory_and_a_link_are_refused_and_left_as_they_were() {
        let dir = TempDir::new().unwrap();
        let (folder, served, link) = (dir.path().join("folder"), dir.path().join("served"), dir.path().join("link"));
        fs::create_dir(&folder).unwrap();
        let _theirs = UnixListener::bind(&served).unwrap();
        // To a served socket, to a left-over one, to a file, to a directory, to nothing: whoever can make links here could
        // have files removed or sockets made anywhere.
        let left_over = dir.path().join("left-over");
        drop(UnixListener::bind(&left_over).unwrap());
        let file = dir.path().join("file");
        fs::write(&file, "data").unwrap();
        let refused = |path: &Path| match Listener::bind(path) {
            Err(error @ BindError::NotASocket(_)) => assert_eq!(error.exit(), Exit::Config),
            other => panic!("{other:?}"),
        };
        refused(&folder);
        assert!(folder.is_dir());
        for target in [&served, &left_over, &file, &folder, &dir.path().join("nothing")] {
            std::os::unix::fs::symlink(target, &link).unwrap();
            refused(&link);
            assert_eq!(fs::read_link(&link).unwrap(), *target);
            fs::remove_file(&link).unwrap();
        }
        assert!(left_over.exists() && !dir.path().join("nothing").exists());
        assert_eq!(fs::read(&file).unwrap(), b"data");
    }

    #[test]
    fn a_socket_file_that_changed_hands_is_left_alone() {
        let dir = TempDir::new().unwrap();
        let path = dir.path().join("s");
        let ours = Listener::bind(&path).unwrap();
        fs::remove_file(&path).unwrap();
        let _theirs = UnixListener::bind(&path).unwrap();
        drop(ours);
        assert!(path.exists());
    }

    #[test]
    fn a_path_that_cannot_be_had_is_the_configurations_fault_and_a_full_table_is_the_hosts() {
        for (errno, exit) in
            [(libc::EACCES, Exit::Config), (libc::ENOENT, Exit::Config), (libc::EMFILE, Exit::HostFailed)]
        {
            let error = BindError::System("/s".into(), io::Error::from_raw_os_error(errno));
            assert_eq!(error.exit(), exit, "{error}");
        }
    }

    #[test]
    fn a_place_that_does_not_exist_is_named() {
        let error = Listener::bind(Path::new("/nonexistent/s")).unwrap_err().to_string();
        assert_eq!(error, "cannot listen on /nonexistent/s: No such file or directory");
    }
}
