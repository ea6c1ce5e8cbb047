//! A wake-up that can be polled.

use std::io;
use std::os::fd::{AsRawFd, RawFd};

use crate::os;

/// Tells a thread that sleeps in [`poll`](crate::poll::poll) to look for work.
///
/// Level-like: any number of wakes before the sleeper clears the event count as one, and a wake before the sleeper
/// sleeps is not lost. The sleeper clears the event first and looks for work second. Share it in an `Arc`.
///
/// Linux: an eventfd, which KVM also binds as an ioeventfd or irqfd. illumos: a pipe, because the zone has no
/// `/dev/eventfd`.
#[derive(Debug)]
pub struct Event(pub(crate) os::Event);

impl Event {
    /// A new event, not signalled; its descriptors are closed on exec and never block.
    ///
    /// # Errors
    /// What the system says, most likely that the process has no descriptors left.
    pub fn new() -> io::Result<Self> {
        os::Event::new().map(Self)
    }

    /// Signals the event. Never blocks and cannot fail: an event that is signalled already stays so.
    pub fn wake(&self) {
        self.0.wake();
    }

    /// Sleeps until the event is signalled, and takes the signal away: one system call on Linux.
    pub fn wait(&self) {
        self.0.wait();
    }

    /// Takes the signal away; whether there was one. Never blocks.
    pub fn clear(&self) -> bool {
        self.0.clear()
    }
}

impl AsRawFd for Event {
    /// The descriptor that polls readable while the event is signalled.
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::poll::{PollFd, poll};

    fn is_readable(event: &impl AsRawFd) -> bool {
        let mut fds = [PollFd::new(event.as_raw_fd()).readable(true)];
        poll(&mut fds, Some(0)).unwrap();
        fds[0].is_readable()
    }

    #[test]
    fn many_wakes_count_as_one_and_clear_takes_them_all() {
        let event = Event::new().unwrap();
        assert!(!is_readable(&event));
        for _ in 0..100 {
            event.wake();
        }
        assert!(is_readable(&event));
        assert!(event.clear());
        assert!(!is_readable(&event));
        assert!(!event.clear());
    }

    #[test]
    fn a_wake_from_another_thread_ends_a_poll_without_a_limit() {
        let event = Arc::new(Event::new().unwrap());
        let waker = std::thread::spawn({
            let event = event.clone();
            move || event.wake()
        });
        let mut fds = [PollFd::new(event.as_raw_fd()).readable(true)];
        poll(&mut fds, None).unwrap();
        assert!(fds[0].is_readable());
        waker.join().unwrap();
    }

    #[test]
    fn a_wait_ends_with_a_wake_before_or_after_it_and_takes_it_away() {
        let event = Arc::new(Event::new().unwrap());
        event.wake();
        event.wait();
        assert!(!event.clear());
        let woken = Arc::new(Event::new().unwrap());
        let waiter = std::thread::spawn({
            let (event, woken) = (event.clone(), woken.clone());
            move || {
                for _ in 0..1000 {
                    event.wait();
                    woken.wake();
                }
            }
        });
        for _ in 0..1000 {
            event.wake();
            woken.wait();
        }
        waiter.join().unwrap();
        assert!(!event.clear() && !woken.clear());
    }

    #[test]
    fn a_pipe_behaves_like_an_eventfd() {
        let event = crate::pipe::PipeEvent::new().unwrap();
        assert!(!is_readable(&event));
        // More than a pipe holds: a wake must not block on a full pipe.
        for _ in 0..200_000 {
            event.wake();
        }
        assert!(is_readable(&event));
        assert!(event.clear());
        assert!(!is_readable(&event));
        event.wake();
        assert!(is_readable(&event), "a wake after a clear must signal again");
        event.wait();
        assert!(!event.clear(), "a wait takes the signal away");
    }
}
