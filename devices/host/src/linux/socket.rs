//! Unix sockets on Linux.

use std::io;
use std::mem::{MaybeUninit, size_of};
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};

use crate::check;

pub(crate) fn is_from_owner(socket: BorrowedFd<'_>) -> io::Result<bool> {
    let mut peer = MaybeUninit::<libc::ucred>::uninit();
    let mut len = size_of::<libc::ucred>() as libc::socklen_t;
    // SAFETY: the call fills the structure, whose size it is given, where it succeeds.
    let uid = unsafe {
        check(libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_PEERCRED,
            peer.as_mut_ptr().cast(),
            &mut len,
        ))?;
        peer.assume_init().uid
    };
    // SAFETY: takes nothing and cannot fail.
    Ok(uid == 0 || uid == unsafe { libc::geteuid() })
}

/// A write to a socket that does not block never waits.
pub(crate) fn may_send(_socket: RawFd) -> bool {
    true
}
