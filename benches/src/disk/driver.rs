//! A guest's disk driver that costs as little as one can: every request is prepared once, and posted again and again.
//!
//! As Linux's, it posts each request as an indirect table (header, data pages, status) and asks for interrupts by event
//! index; unlike the driver of the tests it checks nothing but the status byte.

use std::sync::atomic::Ordering;

use devices::GuestRam;
use devices::virtio::QueueState;
use devices::virtio::queue::{Descriptor, F_EVENT_IDX, F_INDIRECT_DESC};
use vm_memory::{Bytes as _, GuestAddress, GuestMemoryBackend as _, GuestMemoryError};

use super::{Load, written};
use crate::ring::{DriverRing, SIZE, put};

/// Where everything lies: rings and requests below 4 GiB, data above, in two regions as large guests have them.
const RING: u64 = 0x1000;
const REQUESTS: u64 = 0x10000;
const TABLES: u64 = 0x40000;
const DATA: u64 = 1 << 32;

/// Bytes that a request has at `REQUESTS`, a cache line, for its header and its status byte. As with Linux they lie side by
/// side, in memory of the request's own (`struct virtblk_req`).
const REQUEST_BYTES: u64 = 64;

/// No status the device writes.
const PENDING: u8 = 0xff;

/// The driver of one queue.
pub struct Driver {
    mem: GuestRam,
    ring: DriverRing,
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

    /// Where the data of all requests lies in this process, those of a request behind those of the one before.
    ///
    /// # Errors
    /// Where `mem` is not its [`memory`](Self::memory).
    pub(super) fn host_data(mem: &GuestRam, load: &Load) -> Result<*mut u8, GuestMemoryError> {
        Ok(mem.get_slice(GuestAddress(DATA), load.depth * load.bytes)?.ptr_guard_mut().as_ptr())
    }

    /// Prepares the requests of `load`.
    ///
    /// # Panics
    /// Where `mem` is not [`memory`](Self::memory).
    #[must_use]
    pub fn new(mem: GuestRam, load: &Load) -> Self {
        let Load { depth, bytes, piece_bytes, writes, .. } = *load;
        assert!(depth <= usize::from(SIZE));
        let mut ring = DriverRing::new(mem.clone(), RING);
        let (kind, moved) = match writes {
            false => (TYPE_IN, Descriptor::WRITE),
            true => (TYPE_OUT, 0),
        };
        if writes {
            let data = written(depth * bytes);
            mem.write_slice(&data, GuestAddress(DATA)).expect("data");
        }
        for slot in 0..depth as u64 {
            let (header, status) = (header(slot), status(slot));
            mem.write_obj(kind, GuestAddress(header)).expect("a header");
            let pieces = pieces(load);
            let table = TABLES + slot * table_bytes(load);
            let link = |n: u64| (n + 1) as u16;
            put(&mem, table, Descriptor { addr: header, len: 16, flags: Descriptor::NEXT, next: link(0) });
            for piece in 0..pieces {
                let addr = DATA + slot * bytes as u64 + piece * piece_bytes as u64;
                let flags = Descriptor::NEXT | moved;
                let len = piece_bytes as u32;
                put(&mem, table + 16 * (piece + 1), Descriptor { addr, len, flags, next: link(piece + 1) });
            }
            let last = Descriptor { addr: status, len: 1, flags: Descriptor::WRITE, next: 0 };
            put(&mem, table + 16 * (pieces + 1), last);
            let len = table_bytes(load) as u32;
            ring.describe(slot as u16, Descriptor { addr: table, len, flags: Descriptor::INDIRECT, next: 0 });
        }
        Self { mem, ring }
    }

    /// What the device is told about the queue.
    #[must_use]
    pub fn state(&self) -> QueueState {
        self.ring.state()
    }

    /// Its ring.
    pub fn ring(&mut self) -> &mut DriverRing {
        &mut self.ring
    }

    /// Posts request `slot` for a disk offset, to be seen when the ring is published.
    pub fn post(&mut self, slot: u16, offset_bytes: u64) {
        let (number, sector) = (u64::from(slot), offset_bytes / 512);
        self.mem.store(sector, GuestAddress(header(number) + 8), Ordering::Relaxed).expect("a header");
        self.mem.store(PENDING, GuestAddress(status(number)), Ordering::Relaxed).expect("a status");
        self.ring.post(slot);
    }

    /// Takes the requests that have completed.
    ///
    /// # Panics
    /// When one failed.
    pub fn collect(&mut self, mut done: impl FnMut(u16)) {
        let Self { mem, ring } = self;
        ring.collect(|slot, _| {
            let at = GuestAddress(status(slot.into()));
            let answer: u8 = mem.load(at, Ordering::Relaxed).expect("a status");
            assert_eq!(answer, 0, "request {slot} failed");
            done(slot);
        });
    }

    /// What request `slot` has read, or writes; `into` is as long as every request.
    ///
    /// # Panics
    /// When there is no such request.
    pub fn data(&self, slot: u16, into: &mut [u8]) {
        let at = DATA + u64::from(slot) * into.len() as u64;
        self.mem.read_slice(into, GuestAddress(at)).expect("data");
    }
}

/// `VIRTIO_BLK_T_IN` and `VIRTIO_BLK_T_OUT`, a header's first word (virtio 1.3 §5.2.6).
const TYPE_IN: u32 = 0;
const TYPE_OUT: u32 = 1;

/// `VIRTIO_BLK_F_FLUSH` (virtio 1.3 §5.2.3): without it every write is durable.
const FLUSH: u64 = 1 << 9;

fn header(slot: u64) -> u64 {
    REQUESTS + REQUEST_BYTES * slot
}

fn status(slot: u64) -> u64 {
    header(slot) + 16
}

/// Bytes of a request's indirect table.
fn table_bytes(load: &Load) -> u64 {
    16 * (pieces(load) + 2)
}

/// Buffers of a request.
fn pieces(load: &Load) -> u64 {
    (load.bytes / load.piece_bytes) as u64
}
