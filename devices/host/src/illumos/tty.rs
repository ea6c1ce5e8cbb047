//! Pseudo-terminals on illumos: terminals are made of STREAMS modules (pts(4D)).

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use crate::check;

/// Makes a terminal of a pseudo-terminal's user side.
pub(crate) fn make_terminal(terminal: BorrowedFd<'_>) -> io::Result<()> {
    for module in [c"ptem", c"ldterm"] {
        // SAFETY: the call reads the name of a module.
        check(unsafe { libc::ioctl(terminal.as_raw_fd(), libc::I_PUSH, module.as_ptr()) })?;
    }
    Ok(())
}
