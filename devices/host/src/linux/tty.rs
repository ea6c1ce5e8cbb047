//! Terminals on Linux.

use std::ffi::CStr;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{BorrowedFd, RawFd};
use std::os::unix::fs::OpenOptionsExt;

/// A pseudo-terminal's user side is a terminal from the start.
pub(crate) fn make_terminal(_terminal: BorrowedFd<'_>) -> io::Result<()> {
    Ok(())
}

/// Path of the user side of the pseudo-terminal whose other side is `fd`.
pub(crate) fn terminal_name(fd: RawFd) -> io::Result<Vec<u8>> {
    let mut name = [0 as libc::c_char; 128];
    // SAFETY: the call gets the buffer's length, and ends what it writes with NUL.
    unsafe {
        match libc::ptsname_r(fd, name.as_mut_ptr(), name.len()) {
            0 => Ok(CStr::from_ptr(name.as_ptr()).to_bytes().to_vec()),
            error => Err(io::Error::from_raw_os_error(error)),
        }
    }
}

pub(crate) fn reopen_stdout() -> Option<File> {
    OpenOptions::new().write(true).custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY).open("/proc/self/fd/1").ok()
}
