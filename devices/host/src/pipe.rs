//! A wake-up made of a pipe, where there is no eventfd. Linux compiles it for its tests.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicBool, Ordering};

use crate::check;

/// A pipe that holds a byte while the event is signalled.
#[derive(Debug)]
pub(crate) struct PipeEvent {
    reader: OwnedFd,
    writer: OwnedFd,
    /// Set while a byte is in the pipe, or about to be: it saves the write of a wake that would change nothing.
    signalled: AtomicBool,
}

impl PipeEvent {
    pub(crate) fn new() -> io::Result<Self> {
        let mut fds = [-1; 2];
        // SAFETY: `fds` has room for the two descriptors.
        check(unsafe { libc::pipe2(fds.as_mut_ptr(), libc::O_CLOEXEC | libc::O_NONBLOCK) })?;
        // SAFETY: pipe2 succeeded, so both descriptors are open and nobody else owns them.
        let (reader, writer) = unsafe { (OwnedFd::from_raw_fd(fds[0]), OwnedFd::from_raw_fd(fds[1])) };
        Ok(Self { reader, writer, signalled: AtomicBool::new(false) })
    }

    pub(crate) fn wake(&self) {
        if !self.signalled.swap(true, Ordering::AcqRel) {
            // SAFETY: writes one byte from a valid buffer to a descriptor this object owns. A full pipe is signalled
            // already, so the result says nothing new.
            unsafe { libc::write(self.writer.as_raw_fd(), [1u8].as_ptr().cast(), 1) };
        }
    }

    pub(crate) fn wait(&self) {
        // Fails only where memory is short; who waits looks for work and waits again.
        let _ = crate::poll::poll(&mut [crate::poll::PollFd::new(self.as_raw_fd()).readable(true)], None);
        self.clear();
    }

    pub(crate) fn clear(&self) -> bool {
        let mut bytes = [0u8; 16];
        // SAFETY: reads at most as many bytes as the buffer holds from a descriptor this object owns.
        let count = unsafe { libc::read(self.reader.as_raw_fd(), bytes.as_mut_ptr().cast(), bytes.len()) };
        // After the read: the other way round, the read could take the byte of a wake that came in between and leave
        // the flag set, and no later wake would write a byte. A wake between read and store is seen by the caller, who
        // looks for work after this returns.
        self.signalled.store(false, Ordering::Release);
        count > 0
    }
}

impl AsRawFd for PipeEvent {
    fn as_raw_fd(&self) -> RawFd {
        self.reader.as_raw_fd()
    }
}
