//! A driver's side of a split ring that costs as little as one can: what its descriptors say is prepared once, and posted
//! again and again.

use std::sync::atomic::{Ordering, fence};
use std::time::{Duration, Instant};

use devices::GuestRam;
use devices::virtio::QueueState;
use devices::virtio::queue::Descriptor;
use devices_host::Event;
use vm_memory::{Bytes as _, GuestAddress};

/// The size of the ring, as Linux gets it by default.
pub const SIZE: u16 = 256;

/// Bytes that a ring takes.
pub const RING_BYTES: u64 = 0x4000;
/// Where its parts are in them.
const AVAIL: u64 = 0x1000;
const USED: u64 = 0x2000;

/// The ring, with interrupts and kicks by event index.
pub struct DriverRing {
    mem: GuestRam,
    at: u64,
    next_avail: u16,
    published: u16,
    last_used: u16,
}

impl DriverRing {
    /// One at `at`, a multiple of 4096, in memory that is all zeroes there.
    #[must_use]
    pub fn new(mem: GuestRam, at: u64) -> Self {
        Self { mem, at, next_avail: 0, published: 0, last_used: 0 }
    }

    /// What the device is told about the queue.
    #[must_use]
    pub fn state(&self) -> QueueState {
        QueueState {
            size: SIZE,
            desc_table: self.at,
            avail_ring: self.at + AVAIL,
            used_ring: self.at + USED,
            next_avail: self.next_avail,
            next_used: self.last_used,
        }
    }

    /// Says what the descriptor of this number is from now on.
    ///
    /// # Panics
    /// When the ring is not in guest memory, as all others.
    pub fn describe(&mut self, slot: u16, descriptor: Descriptor) {
        put(&self.mem, self.at + 16 * u64::from(slot), descriptor);
    }

    /// Starts over after a reset of the device: nothing is in flight.
    pub fn reset(&mut self) {
        (self.next_avail, self.published, self.last_used) = (0, 0, 0);
        for addr in [self.at + AVAIL + 2, self.at + USED + 2, self.kick_event(), self.interrupt_event()] {
            self.store(addr, 0, Ordering::SeqCst);
        }
    }

    /// Posts the chain that begins with this descriptor, to be seen after [`publish`](Self::publish).
    pub fn post(&mut self, slot: u16) {
        self.store(self.at + AVAIL + 4 + 2 * u64::from(self.next_avail % SIZE), slot, Ordering::Relaxed);
        self.next_avail = self.next_avail.wrapping_add(1);
    }

    /// Shows what was posted; whether the device wants a kick for it (virtio 1.3 §2.7.10).
    pub fn publish(&mut self) -> bool {
        let (old, new) = (self.published, self.next_avail);
        if old == new {
            return false;
        }
        self.store(self.at + AVAIL + 2, new, Ordering::Release);
        self.published = new;
        fence(Ordering::SeqCst);
        let event = self.load(self.kick_event(), Ordering::Relaxed);
        new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
    }

    /// Takes what came back: the descriptor that each chain begins with, and how much was written to it.
    pub fn collect(&mut self, mut done: impl FnMut(u16, u32)) {
        let index = self.load(self.at + USED + 2, Ordering::Acquire);
        while self.last_used != index {
            let at = GuestAddress(self.at + USED + 4 + 8 * u64::from(self.last_used % SIZE));
            let element: u32 = self.mem.load(at, Ordering::Relaxed).expect("a used element");
            let len = self.mem.load(GuestAddress(at.0 + 4), Ordering::Relaxed).expect("a used element");
            self.last_used = self.last_used.wrapping_add(1);
            done(element as u16, len);
        }
    }

    /// Asks for an interrupt with the next chain that comes back; `false` where there is one already, and none may come.
    pub fn wait_for_interrupt(&mut self) -> bool {
        self.store(self.interrupt_event(), self.last_used, Ordering::Relaxed);
        fence(Ordering::SeqCst);
        !self.has_used()
    }

    /// Whether there is something to [`collect`](Self::collect).
    #[must_use]
    pub fn has_used(&self) -> bool {
        self.load(self.at + USED + 2, Ordering::Relaxed) != self.last_used
    }

    /// Sleeps until there is something to collect, or until an interrupt for what was collected before it came. Before it
    /// sleeps it looks for so long, as KVM does for a vCPU that halts.
    pub fn wait(&mut self, interrupt: &Event, halt_poll: Duration) {
        if !self.wait_for_interrupt() {
            return;
        }
        if !halt_poll.is_zero() {
            let end = Instant::now() + halt_poll;
            while Instant::now() < end {
                if self.has_used() {
                    return;
                }
                std::hint::spin_loop();
            }
        }
        interrupt.wait();
    }

    /// Where the device says for which chain it wants a kick.
    fn kick_event(&self) -> u64 {
        self.at + USED + 4 + 8 * u64::from(SIZE)
    }

    /// Where the driver says for which one it wants an interrupt.
    fn interrupt_event(&self) -> u64 {
        self.at + AVAIL + 4 + 2 * u64::from(SIZE)
    }

    fn store(&self, addr: u64, value: u16, order: Ordering) {
        self.mem.store(value, GuestAddress(addr), order).expect("a ring");
    }

    fn load(&self, addr: u64, order: Ordering) -> u16 {
        self.mem.load(GuestAddress(addr), order).expect("a ring")
    }
}

/// Writes a descriptor into a table.
///
/// # Panics
/// When that is not in guest memory.
pub fn put(mem: &GuestRam, addr: u64, descriptor: Descriptor) {
    mem.write_slice(&descriptor.to_bytes(), GuestAddress(addr)).expect("guest memory");
}
