//! A descriptor chain, parsed once and owned.

use serde::{Deserialize, Serialize};

/// A piece of guest memory that was inside guest memory when its chain was popped.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuestRange {
    /// First guest address.
    pub addr: u64,
    /// Length in bytes, never zero in a chain.
    pub len: u32,
}

/// A descriptor chain the driver made available: the snapshot everything downstream works on.
///
/// The ranges were checked against guest memory, readable ones come before writable ones, and their total is at most
/// 4 GiB. Zero-length descriptors are counted while parsing and then left out.
///
/// A chain is a linear value, the queue's claim that a request is in flight: it goes back through
/// [`Queue::push`](super::Queue::push) or [`Queue::unpop`](super::Queue::unpop), or is given up explicitly with
/// [`abandon`](Self::abandon) when the queue is reset. Dropping one would lose the driver's buffer for ever, which a
/// debug assertion reports.
#[derive(Debug)]
#[must_use = "a chain must be pushed back, unpopped or abandoned"]
pub struct Chain {
    /// In one place from pop to push, however many hands the chain goes through.
    pub(super) body: Box<Body>,
}

/// What a chain consists of. It is used again for another chain, with the room of its list.
#[derive(Debug, Default)]
pub(super) struct Body {
    pub(super) head: u16,
    /// What the driver knows the chain by: its head in a split ring, its buffer id in a packed one.
    pub(super) id: u16,
    /// Its place in the order of popping, where chains are returned in that order.
    pub(super) turn: u16,
    /// Descriptors of the ring it takes; an indirect table is one.
    pub(super) slots: u16,
    /// A device-writable descriptor was among those walked so far.
    pub(super) has_writable: bool,
    /// It is a request in flight: to be settled before it is dropped.
    pub(super) claimed: bool,
    pub(super) ranges: Vec<GuestRange>,
    /// How many of `ranges` are device-readable; the rest is device-writable.
    pub(super) readable: usize,
    pub(super) readable_bytes: u64,
    pub(super) writable_bytes: u64,
}

impl Chain {
    /// One without descriptors, which nobody claims yet. Apart, as the only allocation of a pop is here, and soon none comes.
    #[cold]
    #[inline(never)]
    pub(super) fn blank() -> Self {
        Self { body: Box::default() }
    }

    /// Takes the descriptors out and the claim away, and keeps the room.
    #[inline]
    pub(super) fn clear(&mut self) {
        let body = &mut *self.body;
        body.ranges.clear();
        (body.slots, body.has_writable, body.claimed) = (0, false, false);
    }

    /// The chain is complete, and in flight from now on. `head` is its identity there, `id` what the driver knows it by.
    #[inline]
    pub(super) fn claim(&mut self, head: u16, id: u16) {
        let body = &mut *self.body;
        (body.head, body.id, body.turn, body.claimed) = (head, id, 0, true);
    }

    /// The chain's identity while it is in flight, below the queue's size: the index of its first descriptor in a split
    /// ring, a number of the queue's own choice in a packed one.
    pub fn head(&self) -> u16 {
        self.body.head
    }

    /// What the device may read, in order.
    pub fn readable(&self) -> &[GuestRange] {
        self.body.ranges.get(..self.body.readable).unwrap_or_default()
    }

    /// What the device may write, in order.
    pub fn writable(&self) -> &[GuestRange] {
        self.body.ranges.get(self.body.readable..).unwrap_or_default()
    }

    /// Total of the readable part in bytes, at most 2³².
    pub fn readable_bytes(&self) -> u64 {
        self.body.readable_bytes
    }

    /// Total of the writable part in bytes, at most 2³².
    pub fn writable_bytes(&self) -> u64 {
        self.body.writable_bytes
    }

    /// Gives the chain up without returning it to the driver: the queue it came from is being reset.
    pub fn abandon(mut self) {
        self.body.claimed = false;
    }
}

/// What a ring needs to know of a chain that goes back to the driver.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Returned {
    pub(super) head: u16,
    pub(super) id: u16,
    pub(super) slots: u16,
    /// Bytes written from the start of its writable part.
    pub(super) len: u32,
}

impl Drop for Body {
    fn drop(&mut self) {
        debug_assert!(!self.claimed || std::thread::panicking(), "chain {} was dropped while in flight", self.head);
    }
}
