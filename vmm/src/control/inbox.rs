//! What other threads tell the main thread.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use devices::wake::Wake;
use devices_host::Event;

use super::signals::Signal;
use super::{MachineEvent, Ticket};

/// Something another thread says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Notice {
    /// A vCPU or device reports.
    Machine(MachineEvent),
    /// A signal arrived.
    Signal(Signal),
    /// An order that took its time is carried out, or failed for this reason.
    Answer(Ticket, Result<(), String>),
}

#[derive(Debug)]
struct Shared {
    queue: Mutex<VecDeque<Notice>>,
    event: Event,
}

impl Shared {
    fn queue(&self) -> MutexGuard<'_, VecDeque<Notice>> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The main thread's end.
#[derive(Debug)]
pub struct Inbox(Arc<Shared>);

/// The end of everybody else: sends notices, and as a [`Wake`] has the main loop look at serial lines and timers.
#[derive(Debug, Clone)]
pub struct EventSender(Arc<Shared>);

impl Inbox {
    /// An empty inbox.
    ///
    /// # Errors
    /// When the process has no descriptors left.
    pub fn new() -> io::Result<Self> {
        Ok(Self(Arc::new(Shared { queue: Mutex::default(), event: Event::new()? })))
    }

    /// A sender to this inbox.
    pub fn sender(&self) -> EventSender {
        EventSender(self.0.clone())
    }

    /// Takes the wake-up away; look at everything after it.
    pub fn clear(&self) {
        self.0.event.clear();
    }

    /// The oldest notice.
    pub fn next(&self) -> Option<Notice> {
        self.0.queue().pop_front()
    }
}

impl AsRawFd for Inbox {
    fn as_raw_fd(&self) -> RawFd {
        self.0.event.as_raw_fd()
    }
}

impl EventSender {
    /// Reports what happened in the machine. Never blocks.
    ///
    /// A report that is still unread is not queued again: a guest that repeats itself a million times a second must
    /// not grow the queue. What it said before a reset is not what it says after it: a wish for the next reset would be
    /// lost with the first one's.
    pub fn send(&self, event: MachineEvent) {
        let notice = Notice::Machine(event);
        let mut queue = self.0.queue();
        let reset_done = Notice::Machine(MachineEvent::ResetDone);
        let mut since_reset = queue.iter().rev().take_while(|&said| *said != reset_done || notice == reset_done);
        let unread = since_reset.any(|said| *said == notice);
        if !unread {
            queue.push_back(notice);
        }
        drop(queue);
        self.0.event.wake();
    }

    /// Says what became of an order that was not answered at once.
    pub fn answer(&self, ticket: Ticket, result: Result<(), String>) {
        self.0.queue().push_back(Notice::Answer(ticket, result));
        self.0.event.wake();
    }

    /// Passes a signal on; every one counts.
    pub(super) fn send_signal(&self, signal: Signal) {
        self.0.queue().push_back(Notice::Signal(signal));
        self.0.event.wake();
    }
}

impl Wake for EventSender {
    fn wake(&self) {
        self.0.event.wake();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reports_arrive_in_order_and_unread_ones_are_not_doubled() {
        let inbox = Inbox::new().unwrap();
        let sender = inbox.sender();
        for _ in 0..1000 {
            sender.send(MachineEvent::GuestPanicked);
            sender.send(MachineEvent::GuestPowerOff);
        }
        assert_eq!(inbox.next(), Some(Notice::Machine(MachineEvent::GuestPanicked)));
        assert_eq!(inbox.next(), Some(Notice::Machine(MachineEvent::GuestPowerOff)));
        assert_eq!(inbox.next(), None);
        sender.send(MachineEvent::GuestPanicked);
        assert_eq!(inbox.next(), Some(Notice::Machine(MachineEvent::GuestPanicked)));
    }

    #[test]
    fn a_wish_for_the_next_reset_is_not_taken_for_the_last_ones() {
        let inbox = Inbox::new().unwrap();
        let sender = inbox.sender();
        let wish = || MachineEvent::GuestReset { source: "port 0xcf9" };
        for event in [wish(), MachineEvent::ResetDone, MachineEvent::ResetDone, wish(), wish()] {
            sender.send(event);
        }
        let said: Vec<_> = std::iter::from_fn(|| inbox.next()).collect();
        assert_eq!(said, [wish(), MachineEvent::ResetDone, wish()].map(Notice::Machine));
    }

    #[test]
    fn every_signal_counts() {
        let inbox = Inbox::new().unwrap();
        inbox.sender().send_signal(Signal::Interrupt);
        inbox.sender().send_signal(Signal::Interrupt);
        assert_eq!(inbox.next(), Some(Notice::Signal(Signal::Interrupt)));
        assert_eq!(inbox.next(), Some(Notice::Signal(Signal::Interrupt)));
    }
}
