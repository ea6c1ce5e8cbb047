//! Terminals on illumos: terminals are made of STREAMS modules (pts(4D)).

use std::ffi::CStr;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::sync::{Mutex, PoisonError};

use crate::check;

/// Makes a terminal of a pseudo-terminal's user side.
pub(crate) fn make_terminal(terminal: BorrowedFd<'_>) -> io::Result<()> {
    for module in [c"ptem", c"ldterm"] {
        // SAFETY: the call reads the name of a module.
        check(unsafe { libc::ioctl(terminal.as_raw_fd(), libc::I_PUSH, module.as_ptr()) })?;
    }
    Ok(())
}

/// Path of the user side of the pseudo-terminal whose other side is `fd`.
pub(crate) fn terminal_name(fd: RawFd) -> io::Result<Vec<u8>> {
    // The libc of 2023 has no ptsname_r, and ptsname has one buffer for the process.
    static BUFFER: Mutex<()> = Mutex::new(());
    let _buffer = BUFFER.lock().unwrap_or_else(PoisonError::into_inner);
    // SAFETY: the result is null or a string that stays until the next call, which the lock puts off.
    unsafe {
        let name = libc::ptsname(fd);
        if name.is_null() { Err(io::Error::last_os_error()) } else { Ok(CStr::from_ptr(name).to_bytes().to_vec()) }
    }
}

/// `/dev/fd` and `/proc` give the same open file again.
pub(crate) fn reopen_stdout() -> Option<File> {
    None
}
