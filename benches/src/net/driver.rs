//! A guest's network driver that costs as little as one can: every buffer is prepared once, and posted again and again.
//!
//! As Linux's, it has header and frame in one buffer, and the pages behind that of a large segment in an indirect table; it
//! posts mergeable buffers for received frames, and asks for interrupts by event index.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use devices::GuestRam;
use devices::virtio::QueueState;
use devices::virtio::queue::{Descriptor, F_EVENT_IDX, F_INDIRECT_DESC};
use devices_host::Event;
use vm_memory::{Bytes as _, GuestAddress};

use super::{HEADER_BYTES, Load, TCP_HEADERS_BYTES};
use crate::ring::{DriverRing, RING_BYTES, SIZE, put};

/// The features that both drivers negotiate: `VIRTIO_F_VERSION_1`, CSUM, GUEST_CSUM, GUEST_TSO4, HOST_TSO4, MRG_RXBUF.
pub const FEATURES: u64 = 1 << 32 | 1 | 1 << 1 | 1 << 7 | 1 << 11 | 1 << 15 | F_INDIRECT_DESC | F_EVENT_IDX;

/// Where everything lies: rings and tables below 4 GiB, frames above, in two regions as large guests have them.
const SEND_RING: u64 = 0x1000;
const RECEIVE_RING: u64 = SEND_RING + RING_BYTES;
const TABLES: u64 = 0x4_0000;
const FRAMES: u64 = 1 << 32;
const PAGE: usize = 4096;

/// Guest memory for both drivers, as ranges of address and length.
pub fn memory(load: &Load) -> [(u64, u64); 2] {
    let tables = u64::from(SIZE) * table_bytes(load);
    let buffers = u64::from(SIZE) * (frame_room(load) + u64::from(load.buffer_bytes));
    [(0, (TABLES + tables).next_multiple_of(2 << 20)), (FRAMES, buffers.next_multiple_of(2 << 20))]
}

/// Where the frame of each chain begins to lie behind the other.
fn frame_room(load: &Load) -> u64 {
    (HEADER_BYTES + load.frame_bytes + PAGE).next_multiple_of(PAGE) as u64
}

/// Pages behind a segment's headers.
fn pages(load: &Load) -> usize {
    if load.gso { (load.frame_bytes - TCP_HEADERS_BYTES).div_ceil(PAGE) } else { 0 }
}

fn table_bytes(load: &Load) -> u64 {
    16 * (pages(load) as u64 + 1)
}

/// The two events between a driver and its queue.
#[derive(Clone)]
pub struct Events {
    pub kick: Arc<Event>,
    pub interrupt: Arc<Event>,
    /// How long the driver's CPU looks for what comes back before it sleeps.
    pub halt_poll: Duration,
}

/// The driver of a transmit queue.
pub struct Sender {
    ring: DriverRing,
    free: Vec<u16>,
    events: Events,
}

impl Sender {
    pub fn new(mem: GuestRam, load: &Load, events: Events) -> Self {
        let mut ring = DriverRing::new(mem.clone(), SEND_RING);
        let frame = load.frame(true);
        for slot in 0..SIZE {
            let at = FRAMES + u64::from(slot) * frame_room(load);
            if !load.gso {
                mem.write_slice(&frame, GuestAddress(at)).expect("guest memory");
                ring.describe(slot, Descriptor { addr: at, len: frame.len() as u32, flags: 0, next: 0 });
                continue;
            }
            let table = TABLES + u64::from(slot) * table_bytes(load);
            let (head, data) = frame.split_at(HEADER_BYTES + TCP_HEADERS_BYTES);
            let pieces = [(at, head)]
                .into_iter()
                .chain(data.chunks(PAGE).enumerate().map(|(page, piece)| (at + ((page + 1) * PAGE) as u64, piece)));
            let last = pages(load);
            for (n, (addr, piece)) in pieces.enumerate() {
                mem.write_slice(piece, GuestAddress(addr)).expect("guest memory");
                let (flags, next) = if n < last { (Descriptor::NEXT, (n + 1) as u16) } else { (0, 0) };
                put(&mem, table + 16 * n as u64, Descriptor { addr, len: piece.len() as u32, flags, next });
            }
            let len = table_bytes(load) as u32;
            ring.describe(slot, Descriptor { addr: table, len, flags: Descriptor::INDIRECT, next: 0 });
        }
        Self { ring, free: (0..SIZE).collect(), events }
    }

    pub fn state(&self) -> QueueState {
        self.ring.state()
    }

    /// Sends so many frames, at most `depth` at once: until the last one came back.
    pub fn send(&mut self, frames: u64, depth: usize) -> Duration {
        let start = Instant::now();
        let (mut posted, mut done) = (0, 0);
        while done < frames {
            while posted < frames
                && posted - done < depth as u64
                && let Some(slot) = self.free.pop()
            {
                self.ring.post(slot);
                posted += 1;
            }
            if self.ring.publish() {
                self.events.kick.wake();
            }
            let before = self.free.len();
            self.ring.collect(|slot, _| self.free.push(slot));
            match self.free.len() - before {
                0 => self.ring.wait(&self.events.interrupt, self.events.halt_poll),
                back => done += back as u64,
            }
        }
        start.elapsed()
    }

    /// Sends a frame without waiting for its buffer.
    pub fn post(&mut self) {
        self.ring.collect(|slot, _| self.free.push(slot));
        if let Some(slot) = self.free.pop() {
            self.ring.post(slot);
        }
        if self.ring.publish() {
            self.events.kick.wake();
        }
    }
}

/// The driver of a receive queue.
pub struct Receiver {
    mem: GuestRam,
    ring: DriverRing,
    events: Events,
    buffers_at: u64,
    buffer_bytes: u64,
    /// Buffers that the frame at hand has and that did not come yet.
    left: u16,
    back: Vec<u16>,
}

impl Receiver {
    /// One that has posted all of its buffers; kicks come later.
    pub fn new(mem: GuestRam, load: &Load, events: Events) -> Self {
        let mut ring = DriverRing::new(mem.clone(), RECEIVE_RING);
        let buffers_at = FRAMES + u64::from(SIZE) * frame_room(load);
        let buffer_bytes = u64::from(load.buffer_bytes);
        for slot in 0..SIZE {
            let addr = buffers_at + u64::from(slot) * buffer_bytes;
            ring.describe(slot, Descriptor { addr, len: load.buffer_bytes, flags: Descriptor::WRITE, next: 0 });
        }
        Self { mem, ring, events, buffers_at, buffer_bytes, left: 0, back: Vec::with_capacity(SIZE.into()) }
    }

    pub fn state(&self) -> QueueState {
        self.ring.state()
    }

    /// Posts all buffers.
    pub fn fill(&mut self) {
        (0..SIZE).for_each(|slot| self.ring.post(slot));
        if self.ring.publish() {
            self.events.kick.wake();
        }
    }

    /// Receives so many frames, and posts their buffers again.
    pub fn receive(&mut self, frames: u64) -> Duration {
        let start = Instant::now();
        let mut done = 0;
        while done < frames {
            let Self { mem, ring, buffers_at, buffer_bytes, left, back, .. } = self;
            ring.collect(|slot, _| {
                if *left == 0 {
                    // num_buffers, virtio 1.3 §5.1.6.4.
                    let at = *buffers_at + u64::from(slot) * *buffer_bytes + 10;
                    *left = mem.load(GuestAddress(at), Ordering::Relaxed).expect("a header");
                }
                *left -= 1;
                done += u64::from(*left == 0);
                back.push(slot);
            });
            if back.is_empty() {
                ring.wait(&self.events.interrupt, self.events.halt_poll);
                continue;
            }
            back.drain(..).for_each(|slot| ring.post(slot));
            if ring.publish() {
                self.events.kick.wake();
            }
        }
        start.elapsed()
    }

    /// Receives one frame and copies it out, its header included.
    pub fn receive_whole(&mut self, len: usize) -> io::Result<Vec<u8>> {
        let mut buffers = Vec::new();
        let Self { ring, events, .. } = self;
        loop {
            ring.collect(|slot, written| buffers.push((slot, written)));
            if buffers.len() as u64 >= (len as u64).div_ceil(self.buffer_bytes) {
                break;
            }
            ring.wait(&events.interrupt, events.halt_poll);
        }
        let mut frame = Vec::new();
        for (slot, written) in buffers {
            let mut piece = vec![0; written as usize];
            let at = GuestAddress(self.buffers_at + u64::from(slot) * self.buffer_bytes);
            self.mem.read_slice(&mut piece, at).map_err(io::Error::other)?;
            frame.extend(piece);
            ring.post(slot);
        }
        if ring.publish() {
            events.kick.wake();
        }
        Ok(frame)
    }
}
