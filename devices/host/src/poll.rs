//! Waiting for several descriptors at once.

use std::io;
use std::os::fd::RawFd;

use crate::{check, clock, os};

/// One descriptor to wait for, and what came of it.
#[derive(Clone, Copy)]
#[repr(transparent)]
pub struct PollFd(libc::pollfd);

impl PollFd {
    /// `fd`, waiting for nothing but errors and hang-ups. A negative `fd` is ignored.
    pub fn new(fd: RawFd) -> Self {
        Self(libc::pollfd { fd, events: 0, revents: 0 })
    }

    /// Whether to wait until it can be read.
    #[must_use]
    pub fn readable(mut self, wanted: bool) -> Self {
        self.set_events(os::READABLE, wanted);
        self
    }

    /// Whether to wait until it can be written.
    #[must_use]
    pub fn writable(mut self, wanted: bool) -> Self {
        self.set_events(libc::POLLOUT, wanted);
        self
    }

    fn set_events(&mut self, events: i16, wanted: bool) {
        if wanted {
            self.0.events |= events;
        } else {
            self.0.events &= !events;
        }
    }

    /// The descriptor.
    pub fn fd(&self) -> RawFd {
        self.0.fd
    }

    /// A read would not block: there is data, an end of file or an error to fetch.
    pub fn is_readable(&self) -> bool {
        self.0.revents & (os::READABLE | libc::POLLHUP | libc::POLLERR) != 0
    }

    /// A write would not block.
    pub fn is_writable(&self) -> bool {
        self.0.revents & (libc::POLLOUT | libc::POLLERR) != 0
    }

    /// The other side is gone, or the descriptor is broken or closed.
    pub fn is_hung_up(&self) -> bool {
        self.0.revents & (libc::POLLHUP | libc::POLLERR | libc::POLLNVAL) != 0
    }
}

impl std::fmt::Debug for PollFd {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PollFd")
            .field("fd", &self.0.fd)
            .field("events", &self.0.events)
            .field("revents", &self.0.revents)
            .finish()
    }
}

/// Waits until a descriptor of `fds` is ready or `timeout_ns` nanoseconds have passed (`None`: for ever); how many are
/// ready. It never returns earlier than asked. A signal does not end the wait.
///
/// # Errors
/// What poll(2) says; with valid descriptors only that memory is short.
pub fn poll(fds: &mut [PollFd], timeout_ns: Option<u64>) -> io::Result<usize> {
    let deadline_ns = timeout_ns.map(|timeout_ns| clock::monotonic_ns().saturating_add(timeout_ns));
    let mut left_ns = timeout_ns;
    loop {
        // SAFETY: `PollFd` is a transparent `pollfd`, and pointer and length come from one slice.
        let ready = unsafe { os::poll(fds.as_mut_ptr().cast(), fds.len(), left_ns) };
        match check(ready) {
            Ok(ready) => return Ok(usize::try_from(ready).unwrap_or(0)),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
        left_ns = deadline_ns.map(|deadline_ns| deadline_ns.saturating_sub(clock::monotonic_ns()));
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd;

    use super::*;
    use crate::Event;
    use crate::thread;

    #[test]
    fn a_timeout_is_kept_and_reported_as_nothing_ready() {
        let event = Event::new().unwrap();
        let start_ns = clock::monotonic_ns();
        assert_eq!(poll(&mut [PollFd::new(event.as_raw_fd()).readable(true)], Some(20_000_000)).unwrap(), 0);
        assert!(clock::monotonic_ns() - start_ns >= 20_000_000);
    }

    #[test]
    fn a_signal_neither_ends_nor_lengthens_the_wait() {
        thread::install_kick_handler().unwrap();
        let (sender, receiver) = std::sync::mpsc::channel();
        let sleeper = std::thread::spawn(move || {
            let guard = thread::KickGuard::for_current_thread();
            sender.send(guard.target()).unwrap();
            let event = Event::new().unwrap();
            let start_ns = clock::monotonic_ns();
            let ready = poll(&mut [PollFd::new(event.as_raw_fd()).readable(true)], Some(100_000_000)).unwrap();
            (ready, clock::monotonic_ns() - start_ns)
        });
        let target = receiver.recv().unwrap();
        for _ in 0..20 {
            target.kick();
            std::thread::sleep(std::time::Duration::from_millis(2));
        }
        let (ready, took_ns) = sleeper.join().unwrap();
        assert_eq!(ready, 0);
        assert!(took_ns >= 100_000_000, "{took_ns}");
        assert!(took_ns < 2_000_000_000, "{took_ns}");
    }

    #[test]
    fn writable_and_hung_up_are_told_apart() {
        let (ours, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
        let mut fds = [PollFd::new(ours.as_raw_fd()).readable(true).writable(true)];
        assert_eq!(poll(&mut fds, Some(0)).unwrap(), 1);
        assert!(fds[0].is_writable() && !fds[0].is_readable() && !fds[0].is_hung_up());
        drop(theirs);
        poll(&mut fds, Some(0)).unwrap();
        assert!(fds[0].is_hung_up() && fds[0].is_readable());
    }
}
