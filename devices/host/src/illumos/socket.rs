//! Unix sockets on illumos.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::ptr::null_mut;

use crate::check;
use crate::poll::{PollFd, poll};
use crate::sys::getzoneid;

const GLOBAL_ZONE: libc::zoneid_t = 0;

pub(crate) fn is_from_owner(socket: BorrowedFd<'_>) -> io::Result<bool> {
    let mut peer = null_mut();
    // SAFETY: receives what the calls below read and the last one frees.
    let (uid, zone) = unsafe {
        check(libc::getpeerucred(socket.as_raw_fd(), &mut peer))?;
        let found = (libc::ucred_geteuid(peer), libc::ucred_getzoneid(peer));
        libc::ucred_free(peer);
        found
    };
    // SAFETY: take nothing and cannot fail.
    let (own_uid, own_zone) = unsafe { (libc::geteuid(), getzoneid()) };
    Ok((uid == 0 || uid == own_uid) && (zone == GLOBAL_ZONE || zone == own_zone))
}

/// Flow control is STREAMS': room for one message is what poll says.
pub(crate) fn may_send(socket: RawFd) -> bool {
    let mut fds = [PollFd::new(socket).writable(true)];
    poll(&mut fds, Some(0)).is_ok() && (fds[0].is_writable() || fds[0].is_hung_up())
}
