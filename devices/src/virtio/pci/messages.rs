//! Which message each queue interrupts with: for a kernel that carries queues, and sends their interrupts in our stead.

use std::sync::{Arc, Mutex, PoisonError};

use crate::interrupt::MsiMessage;

/// Hears which message stands for a queue's interrupt.
pub trait QueueMessages: Send + Sync {
    /// The interrupt of `queue` is `message` now. `None`: MSI-X is disabled, or the queue has no vector, or the vector is
    /// masked or has no message; then the interrupt goes through [`VirtioInterrupt`](crate::virtio::VirtioInterrupt),
    /// which knows what becomes of it. Called only on changes, on vCPU threads, before the guest's access that made the
    /// change is over; never blocks.
    fn place(&self, queue: u16, message: Option<MsiMessage>);
}

/// Keeps a watcher in line with vectors and MSI-X table.
pub(super) struct Messages {
    watcher: Arc<dyn QueueMessages>,
    /// What the watcher was told last, by queue.
    placed: Mutex<Vec<Option<MsiMessage>>>,
}

impl Messages {
    pub(super) fn new(watcher: Arc<dyn QueueMessages>, queues: usize) -> Self {
        Self { watcher, placed: Mutex::new(vec![None; queues]) }
    }

    /// Something has changed that `message_of` a queue follows from. It is asked under this object's lock, so that of two
    /// changes the later one is told last.
    pub(super) fn update(&self, message_of: impl Fn(u16) -> Option<MsiMessage>) {
        let mut placed = self.placed.lock().unwrap_or_else(PoisonError::into_inner);
        for (queue, placed) in (0u16..=u16::MAX).zip(placed.iter_mut()) {
            let now = message_of(queue);
            if *placed != now {
                *placed = now;
                self.watcher.place(queue, now);
            }
        }
    }
}
