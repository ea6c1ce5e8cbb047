//! A guest's disk driver that costs as little as one can: every request is prepared once, and posted again and again.
//!
//! As Linux's, it posts each request as an indirect table (header, data pages, status) and asks for interrupts by event
//! index; unlike the driver of the tests it checks nothing but the status byte.

use std::sync::atomic::{Ordering, fence};

use devices::GuestRam;
use devices::virtio::QueueState;
use devices::virtio::queue::{Descriptor, F_EVENT_IDX, F_INDIRECT_DESC};
use vm_memory::{Bytes as _, GuestAddress};

use super::Load;

/// Where everything lies: rings and requests below 4 GiB, data above, in two regions as large guests have them.
const DESC: u64 = 0x1000;
const AVAIL: u64 = 0x8000;
const USED: u64 = 0xa000;
const HEADERS: u64 = 0x10000;
const STATUS: u64 = 0x20000;
const TABLES: u64 = 0x40000;
const DATA: u64 = 1 << 32;

/// The size of the ring, as Linux gets it by default.
const SIZE: u16 = 256;
/// No status the device writes.
const PENDING: u8 = 0xff;

/// The driver of one queue.
pub struct Driver {
    mem: GuestRam,
    next_avail: u16,
    published: u16,
    last_used: u16,
}

impl Driver {
    /// The features it negotiates.
    pub const FEATURES: u64 = 1 << 32 | F_INDIRECT_DESC | F_EVENT_IDX | FLUSH;

    /// Guest memory, as ranges of address and length, for the requests of `load`.
    #[must_use]
    pub fn memory(load: &Load) -> [(u64, u64); 2] {
        let tables = load.depth as u64 * table_bytes(load);
        let data = (load.depth * load.bytes) as u64;
        [(0, (TABLES + tables).next_multiple_of(2 << 20)), (DATA, data.next_multiple_of(2 << 20))]
    }

    /// Prepares the reads of `load`.
    ///
    /// # Panics
    /// Where `mem` is not [`memory`](Self::memory).
    #[must_use]
    pub fn new(mem: GuestRam, load: &Load) -> Self {
        let Load { depth, bytes, piece_bytes, .. } = *load;
        assert!(depth <= usize::from(SIZE));
        let put = |addr: u64, desc: Descriptor| {
            mem.write_slice(&desc.to_bytes(), GuestAddress(addr)).expect("guest memory");
        };
        for slot in 0..depth as u64 {
            let (header, status) = (HEADERS + 16 * slot, STATUS + slot);
            // The header's first word is VIRTIO_BLK_T_IN (virtio 1.3 §5.2.6), which is zero, as fresh memory is.
            let pieces = pieces(load);
            let table = TABLES + slot * table_bytes(load);
            let link = |n: u64| (n + 1) as u16;
            put(table, Descriptor { addr: header, len: 16, flags: Descriptor::NEXT, next: link(0) });
            for piece in 0..pieces {
                let addr = DATA + slot * bytes as u64 + piece * piece_bytes as u64;
                let flags = Descriptor::NEXT | Descriptor::WRITE;
                let len = piece_bytes as u32;
                put(table + 16 * (piece + 1), Descriptor { addr, len, flags, next: link(piece + 1) });
            }
            let last = Descriptor { addr: status, len: 1, flags: Descriptor::WRITE, next: 0 };
            put(table + 16 * (pieces + 1), last);
            let len = table_bytes(load) as u32;
            put(DESC + 16 * slot, Descriptor { addr: table, len, flags: Descriptor::INDIRECT, next: 0 });
        }
        Self { mem, next_avail: 0, published: 0, last_used: 0 }
    }

    /// What the device is told about the queue.
    #[must_use]
    pub fn state(&self) -> QueueState {
        QueueState {
            size: SIZE,
            desc_table: DESC,
            avail_ring: AVAIL,
            used_ring: USED,
            next_avail: self.next_avail,
            next_used: self.last_used,
        }
    }

    /// Starts over after a reset of the device: nothing is in flight.
    pub fn reset(&mut self) {
        (self.next_avail, self.published, self.last_used) = (0, 0, 0);
        for addr in [AVAIL + 2, USED + 2, USED + 4 + 8 * u64::from(SIZE), AVAIL + 4 + 2 * u64::from(SIZE)] {
            self.store(addr, 0, Ordering::SeqCst);
        }
    }

    /// Posts request `slot` for a disk offset, to be seen after [`publish`](Self::publish).
    pub fn post(&mut self, slot: u16, offset_bytes: u64) {
        let slot64 = u64::from(slot);
        let sector = offset_bytes / 512;
        self.mem.store(sector, GuestAddress(HEADERS + 16 * slot64 + 8), Ordering::Relaxed).expect("a header");
        self.mem.store(PENDING, GuestAddress(STATUS + slot64), Ordering::Relaxed).expect("a status");
        self.store(AVAIL + 4 + 2 * u64::from(self.next_avail % SIZE), slot, Ordering::Relaxed);
        self.next_avail = self.next_avail.wrapping_add(1);
    }

    /// Shows what was posted; whether the device wants a kick for it (virtio 1.3 §2.7.10).
    pub fn publish(&mut self) -> bool {
        let (old, new) = (self.published, self.next_avail);
        if old == new {
            return false;
        }
        self.store(AVAIL + 2, new, Ordering::Release);
        self.published = new;
        fence(Ordering::SeqCst);
        let event = self.load(USED + 4 + 8 * u64::from(SIZE), Ordering::Relaxed);
        new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
    }

    /// Takes the requests that have completed.
    ///
    /// # Panics
    /// When one failed.
    pub fn collect(&mut self, mut done: impl FnMut(u16)) {
        let index = self.load(USED + 2, Ordering::Acquire);
        while self.last_used != index {
            let at = USED + 4 + 8 * u64::from(self.last_used % SIZE);
            let slot = self.mem.load::<u32>(GuestAddress(at), Ordering::Relaxed).expect("a used element") as u16;
            let status: u8 =
                self.mem.load(GuestAddress(STATUS + u64::from(slot)), Ordering::Relaxed).expect("a status");
            assert_eq!(status, 0, "request {slot} failed");
            self.last_used = self.last_used.wrapping_add(1);
            done(slot);
        }
    }

    /// What request `slot` has read; `into` is as long as every request.
    ///
    /// # Panics
    /// When there is no such request.
    pub fn data(&self, slot: u16, into: &mut [u8]) {
        let at = DATA + u64::from(slot) * into.len() as u64;
        self.mem.read_slice(into, GuestAddress(at)).expect("data");
    }

    /// Asks for an interrupt with the next completion; `false` where there is one already, and none may come.
    pub fn wait_for_interrupt(&mut self) -> bool {
        self.store(AVAIL + 4 + 2 * u64::from(SIZE), self.last_used, Ordering::Relaxed);
        fence(Ordering::SeqCst);
        !self.has_used()
    }

    /// Whether there is something to [`collect`](Self::collect).
    #[must_use]
    pub fn has_used(&self) -> bool {
        self.load(USED + 2, Ordering::Relaxed) != self.last_used
    }

    fn store(&self, addr: u64, value: u16, order: Ordering) {
        self.mem.store(value, GuestAddress(addr), order).expect("a ring");
    }

    fn load(&self, addr: u64, order: Ordering) -> u16 {
        self.mem.load(GuestAddress(addr), order).expect("a ring")
    }
}

/// `VIRTIO_BLK_F_FLUSH` (virtio 1.3 §5.2.3): without it every write is durable.
const FLUSH: u64 = 1 << 9;

/// Bytes of a request's indirect table.
fn table_bytes(load: &Load) -> u64 {
    16 * (pieces(load) + 2)
}

/// Buffers of a request.
fn pieces(load: &Load) -> u64 {
    (load.bytes / load.piece_bytes) as u64
}
