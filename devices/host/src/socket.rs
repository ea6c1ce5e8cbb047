//! Unix sockets: who is at the other end, and when it can be sent to.

use std::io;
use std::os::fd::{AsFd, AsRawFd};

use crate::os;

/// Whether the process at the other end may give orders here: its user is ours or root, and on illumos its zone is ours
/// or the global one. The mode of a socket file says the same; this also holds where somebody changed it.
///
/// # Errors
/// What the system says: for one, that the other end is gone.
pub fn is_from_owner(socket: &impl AsFd) -> io::Result<bool> {
    os::socket::is_from_owner(socket.as_fd())
}

/// Whether a write of a few KiB to a socket that does not block can be tried now. Where a write could wait all the same,
/// the system is asked first.
#[must_use]
pub fn may_send(socket: &impl AsRawFd) -> bool {
    os::socket::may_send(socket.as_raw_fd())
}

/// Whether the error of connecting a *datagram* socket to the file of a stream socket says that nobody is there: Linux
/// says ECONNREFUSED, illumos EDESTADDRREQ. A listener, even with a full backlog, is told apart by its type.
#[must_use]
pub fn nobody_listens(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ECONNREFUSED | libc::EDESTADDRREQ))
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};

    use vmm_sys_util::tempdir::TempDir;

    use super::*;

    #[test]
    fn our_own_process_is_an_owner_and_a_file_is_no_peer() {
        let (ours, _theirs) = UnixStream::pair().unwrap();
        assert!(is_from_owner(&ours).unwrap());
        assert!(is_from_owner(&std::fs::File::open("/dev/null").unwrap()).is_err());
    }

    #[test]
    fn a_left_over_socket_file_is_told_from_a_listener() {
        let dir = TempDir::new().unwrap();
        let path = dir.as_path().join("s");
        let listener = UnixListener::bind(&path).unwrap();
        let connect = || UnixDatagram::unbound().unwrap().connect(&path).unwrap_err();
        assert!(!nobody_listens(&connect()));
        drop(listener);
        assert!(nobody_listens(&connect()));
        assert!(nobody_listens(&io::Error::from_raw_os_error(libc::EDESTADDRREQ)), "as illumos says it");
    }

    #[test]
    fn a_socket_with_room_may_be_sent_to() {
        let (ours, _theirs) = UnixStream::pair().unwrap();
        assert!(may_send(&ours));
    }
}
