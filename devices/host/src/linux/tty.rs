//! Pseudo-terminals on Linux.

use std::io;
use std::os::fd::BorrowedFd;

/// A pseudo-terminal's user side is a terminal from the start.
pub(crate) fn make_terminal(_terminal: BorrowedFd<'_>) -> io::Result<()> {
    Ok(())
}
