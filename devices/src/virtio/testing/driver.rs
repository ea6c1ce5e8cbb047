//! The driver's half of a virtqueue: split here, packed in [`super::packed`]; each step with the clause of virtio 1.3 it comes from.

use std::collections::HashMap;
use std::sync::atomic::{Ordering, fence};

use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use super::packed::PackedRing;
use crate::GuestRam;
use crate::virtio::QueueState;
use crate::virtio::queue::{Descriptor, F_EVENT_IDX, F_RING_PACKED, GuestRange};

/// `VIRTIO_F_VERSION_1` (virtio 1.3 §6).
pub(super) const F_VERSION_1: u64 = 1 << 32;

/// Guest RAM of `len` bytes from address 0, and as much again from 4 GiB on.
pub fn guest_ram(len: usize) -> GuestRam {
    GuestMemoryMmap::from_ranges(&[(GuestAddress(0), len), (GuestAddress(1 << 32), len)]).unwrap()
}

/// One buffer of a chain to post.
#[derive(Clone, Debug)]
pub enum Buf {
    /// Device-readable, with this content.
    Read(Vec<u8>),
    /// Device-writable, this many bytes, filled with 0xee.
    Write(u32),
}

/// A chain the driver has posted.
#[derive(Clone, Debug)]
pub struct Posted {
    /// Its first descriptor; in a packed ring its buffer id.
    pub head: u16,
    /// Where its buffers are, in order.
    pub buffers: Vec<GuestRange>,
}

/// A chain the device has returned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Used {
    /// The chain's first descriptor; in a packed ring its buffer id.
    pub head: u32,
    /// Bytes the device says it wrote.
    pub len: u32,
}

/// A driver's view of one virtqueue. Rings and buffers live in a window of guest memory of its own.
pub struct DriverQueue {
    mem: GuestRam,
    size: u16,
    event_idx: bool,
    desc: u64,
    avail: u64,
    used: u64,
    buffers: std::ops::Range<u64>,
    next_buffer: u64,
    free: Vec<u16>,
    chains: HashMap<u16, Vec<u16>>,
    next_avail: u16,
    published: u16,
    last_used: u16,
    /// Where the ring is a packed one; the fields of split rings mean nothing then.
    packed: Option<PackedRing>,
}

impl DriverQueue {
    /// Bytes of guest memory a queue takes: rings of up to 1024 entries, and the rest for buffers, which are reused in
    /// a circle.
    pub const WINDOW: u64 = 0x10_0000;

    /// A queue of `size` entries in the window that starts at `base`: packed where `features` say so.
    pub fn new(mem: &GuestRam, base: u64, size: u16, features: u64) -> Self {
        // §2.7: descriptor table 16·size bytes aligned to 16, available ring 6 + 2·size aligned to 2, used ring
        // 6 + 8·size aligned to 4.
        let (desc, avail, used) = (base, base + 0x4000, base + 0x5000);
        let buffers = base + 0x8000..base + Self::WINDOW;
        // §2.7.10.1: the driver initialises the used ring's flags to zero when it allocates the ring.
        for ring in [avail, used] {
            mem.write_slice(&vec![0; 6 + 8 * usize::from(size)], GuestAddress(ring)).unwrap();
        }
        let event_idx = features & F_EVENT_IDX != 0;
        let packed =
            (features & F_RING_PACKED != 0).then(|| PackedRing::new(mem, desc, [avail, used], size, event_idx));
        Self {
            mem: mem.clone(),
            size,
            event_idx,
            packed,
            desc,
            avail,
            used,
            next_buffer: buffers.start,
            buffers,
            free: (0..size).rev().collect(),
            chains: HashMap::new(),
            next_avail: 0,
            published: 0,
            last_used: 0,
        }
    }

    /// What the driver tells the device about the queue before it runs (§4.1.5.1.3).
    pub fn state(&self) -> QueueState {
        let next = if self.packed.is_some() { QueueState::PACKED_START } else { 0 };
        QueueState {
            size: self.size,
            desc_table: self.desc,
            avail_ring: self.avail,
            used_ring: self.used,
            next_avail: next,
            next_used: next,
        }
    }

    /// Memory for a buffer, filled with `content`.
    pub fn buffer(&mut self, content: &[u8]) -> GuestRange {
        let len = content.len() as u64;
        if self.next_buffer + len > self.buffers.end {
            self.next_buffer = self.buffers.start;
        }
        assert!(self.next_buffer + len <= self.buffers.end, "a buffer of {len} bytes does not fit the window");
        let addr = self.next_buffer;
        // Indirect tables live here too, and are naturally aligned as a kernel's allocator would align them.
        self.next_buffer += len.next_multiple_of(16);
        self.mem.write_slice(content, GuestAddress(addr)).unwrap();
        GuestRange { addr, len: content.len() as u32 }
    }

    /// Posts one chain, one descriptor a buffer: §2.7.13 steps 1 to 3. The device may not look at it before
    /// [`publish`](Self::publish).
    pub fn post(&mut self, bufs: &[Buf]) -> Posted {
        let descs = self.describe(bufs);
        if let Some(packed) = &mut self.packed {
            return Posted { head: packed.place(&descs), buffers: ranges(&descs) };
        }
        let table: Vec<u16> = descs.iter().map(|_| self.free.pop().expect("a free descriptor")).collect();
        for (i, desc) in descs.iter().enumerate() {
            // §2.7.13.1: each descriptor but the last names the next one.
            let linked = match table.get(i + 1) {
                Some(&next) => Descriptor { flags: desc.flags | Descriptor::NEXT, next, ..*desc },
                None => *desc,
            };
            self.write_descriptor(table[i], linked);
        }
        let head = table[0];
        self.chains.insert(head, table);
        self.offer(head);
        Posted { head, buffers: ranges(&descs) }
    }

    /// Posts one chain through an indirect table: §2.7.5.3. It takes one descriptor of the ring.
    pub fn post_indirect(&mut self, bufs: &[Buf]) -> Posted {
        let descs = self.describe(bufs);
        let mut table = Vec::new();
        if self.packed.is_some() {
            // §2.8.7: the table is an array; ids and links in it mean nothing, and the flags come last.
            for desc in &descs {
                table.extend_from_slice(&Descriptor { flags: 0, next: desc.flags, ..*desc }.to_bytes());
            }
            let table = self.buffer(&table);
            let whole = Descriptor { addr: table.addr, len: table.len, flags: Descriptor::INDIRECT, next: 0 };
            let head = self.packed.as_mut().map(|packed| packed.place(&[whole])).unwrap();
            return Posted { head, buffers: ranges(&descs) };
        }
        for (i, desc) in descs.iter().enumerate() {
            let linked = match i + 1 < descs.len() {
                true => Descriptor { flags: desc.flags | Descriptor::NEXT, next: i as u16 + 1, ..*desc },
                false => *desc,
            };
            table.extend_from_slice(&linked.to_bytes());
        }
        let table = self.buffer(&table);
        let head = self.free.pop().expect("a free descriptor");
        self.write_descriptor(
            head,
            Descriptor { addr: table.addr, len: table.len, flags: Descriptor::INDIRECT, next: 0 },
        );
        self.chains.insert(head, vec![head]);
        self.offer(head);
        Posted { head, buffers: ranges(&descs) }
    }

    /// Shows every chain offered so far to the device: §2.7.13 steps 4 and 5. Says whether the device wants a
    /// notification for it (§2.7.10.1).
    pub fn publish(&mut self) -> bool {
        if let Some(packed) = &mut self.packed {
            return packed.publish();
        }
        let (old, new) = (self.published, self.next_avail);
        // §2.7.13.3.1: a barrier before the index makes the descriptors visible first.
        self.mem.store(new, GuestAddress(self.avail + 2), Ordering::Release).unwrap();
        self.published = new;
        // §2.7.13.4.1: a barrier before reading flags or avail_event, so that no notification is missed.
        fence(Ordering::SeqCst);
        if self.event_idx {
            let event: u16 = self.load(self.used + 4 + 8 * u64::from(self.size));
            new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
        } else {
            self.load(self.used) == 0
        }
    }

    /// Collects what the device has returned: §2.7.14.
    pub fn used(&mut self) -> Vec<Used> {
        if let Some(packed) = &mut self.packed {
            return packed.used();
        }
        let index: u16 = self.mem.load(GuestAddress(self.used + 2), Ordering::Acquire).unwrap();
        let mut all = Vec::new();
        while self.last_used != index {
            let at = self.used + 4 + 8 * u64::from(self.last_used % self.size);
            let element: u64 = self.mem.read_obj(GuestAddress(at)).unwrap();
            let used = Used { head: element as u32, len: (element >> 32) as u32 };
            if let Some(table) = u16::try_from(used.head).ok().and_then(|head| self.chains.remove(&head)) {
                self.free.extend(table);
            }
            all.push(used);
            self.last_used = self.last_used.wrapping_add(1);
        }
        all
    }

    /// Descriptors not in use.
    pub fn free(&self) -> usize {
        self.packed.as_ref().map_or(self.free.len(), PackedRing::free)
    }

    /// The bytes of a buffer.
    pub fn read(&self, range: GuestRange) -> Vec<u8> {
        let mut bytes = vec![0; range.len as usize];
        self.mem.read_slice(&mut bytes, GuestAddress(range.addr)).unwrap();
        bytes
    }

    /// Asks for no interrupts, or for them again, without `EVENT_IDX` (§2.7.7.1).
    pub fn set_no_interrupt(&self, no_interrupt: bool) {
        if let Some(packed) = &self.packed {
            return packed.set_no_interrupt(no_interrupt);
        }
        self.mem.store(u16::from(no_interrupt), GuestAddress(self.avail), Ordering::SeqCst).unwrap();
    }

    /// Asks for an interrupt once the element with free-running index `event` is used, with `EVENT_IDX` (§2.7.7.1); in a
    /// packed ring `event` is the descriptor's offset with the wrap counter in bit 15.
    pub fn set_used_event(&self, event: u16) {
        if let Some(packed) = &self.packed {
            return packed.set_used_event(event);
        }
        let at = self.avail + 4 + 2 * u64::from(self.size);
        self.mem.store(event, GuestAddress(at), Ordering::SeqCst).unwrap();
    }

    /// The hostile driver's tools: any descriptor anywhere in the table.
    pub fn write_descriptor(&self, index: u16, desc: Descriptor) {
        self.mem.write_slice(&desc.to_bytes(), GuestAddress(self.desc + 16 * u64::from(index))).unwrap();
    }

    /// The hostile driver's tools: any descriptor at the end of a packed ring, available with the next
    /// [`publish`](Self::publish).
    pub fn place(&mut self, desc: Descriptor, id: u16) {
        self.packed.as_mut().expect("a packed ring").place_one(desc, id);
    }

    /// The hostile driver's tools: any head in the next available entry.
    pub fn offer(&mut self, head: u16) {
        let at = self.avail + 4 + 2 * u64::from(self.next_avail % self.size);
        self.mem.store(head, GuestAddress(at), Ordering::Relaxed).unwrap();
        self.next_avail = self.next_avail.wrapping_add(1);
    }

    /// The hostile driver's tools: any available index.
    pub fn set_avail_index(&mut self, index: u16) {
        self.next_avail = index;
        self.published = index;
        self.mem.store(index, GuestAddress(self.avail + 2), Ordering::SeqCst).unwrap();
    }

    fn describe(&mut self, bufs: &[Buf]) -> Vec<Descriptor> {
        let mut descs = Vec::new();
        for buf in bufs {
            let (content, flags) = match buf {
                Buf::Read(content) => (content.clone(), 0),
                Buf::Write(len) => (vec![0xee; *len as usize], Descriptor::WRITE),
            };
            let range = self.buffer(&content);
            descs.push(Descriptor { addr: range.addr, len: range.len, flags, next: 0 });
        }
        descs
    }

    fn load(&self, addr: u64) -> u16 {
        self.mem.load(GuestAddress(addr), Ordering::SeqCst).unwrap()
    }
}

fn ranges(descs: &[Descriptor]) -> Vec<GuestRange> {
    descs.iter().map(|desc| GuestRange { addr: desc.addr, len: desc.len }).collect()
}
