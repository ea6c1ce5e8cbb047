//! A driver's end of one virtqueue of either format (virtio 1.3 §2.7, §2.8), which also writes what no driver writes.

use std::collections::HashMap;

use crate::arena::{Arena, DEVICE, DRIVER, QUEUE};
use crate::attacks_list::Way;

/// Descriptor flags.
pub mod flag {
    pub const NEXT: u16 = 1;
    pub const WRITE: u16 = 2;
    pub const INDIRECT: u16 = 4;
    /// `VIRTQ_DESC_F_AVAIL` and `VIRTQ_DESC_F_USED` of packed rings.
    pub const AVAIL: u16 = 1 << 7;
    pub const USED: u16 = 1 << 15;
}

/// A descriptor as it is written; `next` means something in split rings only.
#[derive(Clone, Copy, Debug)]
pub struct Raw {
    pub address: u64,
    pub len: u32,
    pub flags: u16,
    pub next: u16,
}

impl Raw {
    /// One that is alone.
    pub fn one(address: u64, len: u32, flags: u16) -> Self {
        Self { address, len, flags, next: 0 }
    }
}

/// What the device returned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Used {
    pub id: u16,
    pub len: u32,
}

/// A virtqueue.
pub struct Queue {
    pub index: u16,
    pub size: u16,
    packed: bool,
    /// Where its memory is in the arena.
    pub base: usize,
    /// Where its available ring or driver area is from there.
    pub driver: usize,
    /// Where its used ring or device area is from there.
    pub device: usize,
    /// The next descriptor to write.
    cursor: u16,
    /// The driver's wrap counter.
    wrap: bool,
    /// The available index, or the next buffer id.
    published: u16,
    /// The used index, or the next descriptor that may be used.
    seen: u16,
    seen_wrap: bool,
    /// Chains that were made available and have not come back.
    pub in_flight: u32,
    /// Descriptors by buffer id.
    slots: HashMap<u16, u16>,
}

impl Queue {
    /// Queue `index` of so many entries, with its memory zeroed.
    pub fn new(arena: &Arena, index: u16, size: u16, way: Way) -> Self {
        assert!(size != 0 && size <= 256, "queue {index} of {size} entries has no room");
        let base = usize::from(index) * QUEUE;
        arena.zero(base..base + QUEUE);
        let packed = way == Way::Packed;
        let (driver, device) = match way {
            Way::Legacy => legacy_layout(size),
            Way::Split | Way::Packed => (DRIVER, DEVICE),
        };
        let (wrap, seen_wrap, slots) = (true, true, HashMap::new());
        Self {
            index,
            size,
            packed,
            base,
            driver,
            device,
            cursor: 0,
            wrap,
            published: 0,
            seen: 0,
            seen_wrap,
            in_flight: 0,
            slots,
        }
    }

    /// Writes descriptor `index` as it is, and nothing else.
    pub fn describe(&self, arena: &Arena, index: u16, raw: Raw, id: u16) {
        write_descriptor(arena, self.base + 16 * usize::from(index), raw, self.packed.then_some(id));
    }

    /// Makes a chain of descriptors available, with their flags as they are and each linked to the next one in the
    /// table. Returns what the device will call it.
    pub fn post_raw(&mut self, arena: &Arena, chain: &[Raw]) -> u16 {
        self.in_flight += 1;
        if self.packed { self.post_packed(arena, chain) } else { self.post_split(arena, chain) }
    }

    fn post_split(&mut self, arena: &Arena, chain: &[Raw]) -> u16 {
        let head = self.cursor;
        for raw in chain {
            let next = (self.cursor + 1) % self.size;
            self.describe(arena, self.cursor, Raw { next, ..*raw }, 0);
            self.cursor = next;
        }
        self.publish(arena, head);
        head
    }

    fn post_packed(&mut self, arena: &Arena, chain: &[Raw]) -> u16 {
        let id = self.published;
        self.published = self.published.wrapping_add(1);
        self.slots.insert(id, chain.len() as u16);
        let first = self.cursor;
        let mut first_flags = 0;
        for (n, raw) in chain.iter().enumerate() {
            let flags = raw.flags | if self.wrap { flag::AVAIL } else { flag::USED };
            if n == 0 {
                // The first one's flags are written last: they make the chain available.
                first_flags = flags;
                let before = arena.read(self.base + 16 * usize::from(first) + 14, 2) as u16;
                self.describe(arena, first, Raw { flags: before, ..*raw }, id);
            } else {
                self.describe(arena, self.cursor, Raw { flags, ..*raw }, id);
            }
            self.cursor += 1;
            if self.cursor == self.size {
                self.cursor = 0;
                self.wrap = !self.wrap;
            }
        }
        arena.write(self.base + 16 * usize::from(first) + 14, 2, first_flags.into());
        id
    }

    /// Puts a head into the available ring (split rings only).
    pub fn publish(&mut self, arena: &Arena, head: u16) {
        arena.write(self.base + self.driver + 4 + 2 * usize::from(self.published % self.size), 2, head.into());
        self.published = self.published.wrapping_add(1);
        self.set_index(arena, self.published);
    }

    /// Sets the available index, and nothing else (split rings only).
    pub fn set_index(&self, arena: &Arena, index: u16) {
        arena.write(self.base + self.driver + 2, 2, index.into());
    }

    /// The next thing that the device returned.
    pub fn used(&mut self, arena: &Arena) -> Option<Used> {
        let used = if self.packed { self.used_packed(arena) } else { self.used_split(arena) };
        self.in_flight = self.in_flight.saturating_sub(used.is_some().into());
        used
    }

    fn used_split(&mut self, arena: &Arena) -> Option<Used> {
        let ring = self.base + self.device;
        if arena.read(ring + 2, 2) as u16 == self.seen {
            return None;
        }
        let at = ring + 4 + 8 * usize::from(self.seen % self.size);
        self.seen = self.seen.wrapping_add(1);
        Some(Used { id: arena.read(at, 4) as u16, len: arena.read(at + 4, 4) as u32 })
    }

    fn used_packed(&mut self, arena: &Arena) -> Option<Used> {
        let at = self.base + 16 * usize::from(self.seen);
        let flags = arena.read(at + 14, 2) as u16;
        let (avail, used) = (flags & flag::AVAIL != 0, flags & flag::USED != 0);
        if avail != used || used != self.seen_wrap {
            return None;
        }
        let id = arena.read(at + 12, 2) as u16;
        // §2.8.4: without the flag the length means nothing.
        let len = if flags & flag::WRITE != 0 { arena.read(at + 8, 4) as u32 } else { 0 };
        self.seen += self.slots.get(&id).copied().unwrap_or(1);
        if self.seen >= self.size {
            self.seen -= self.size;
            self.seen_wrap = !self.seen_wrap;
        }
        Some(Used { id, len })
    }

    /// Makes the next chain have the same id as the last one (packed rings only).
    pub fn repeat_id(&mut self) {
        self.published = self.published.wrapping_sub(1);
    }
}

/// Where a legacy device expects the available and the used ring of a queue (§2.7.2).
fn legacy_layout(size: u16) -> (usize, usize) {
    let driver = 16 * usize::from(size);
    (driver, (driver + 6 + 2 * usize::from(size)).next_multiple_of(4096))
}

/// Writes a descriptor of a split ring, or with an id one of a packed ring.
fn write_descriptor(arena: &Arena, at: usize, raw: Raw, id: Option<u16>) {
    arena.write(at, 8, raw.address);
    arena.write(at + 8, 4, raw.len.into());
    let (first, second) = match id {
        None => (raw.flags, raw.next),
        Some(id) => (id, raw.flags),
    };
    arena.write(at + 12, 2, first.into());
    arena.write(at + 14, 2, second.into());
}

/// Writes an indirect table.
pub fn write_table(arena: &Arena, at: usize, entries: &[Raw], packed: bool) {
    for (n, raw) in entries.iter().enumerate() {
        write_descriptor(arena, at + 16 * n, *raw, packed.then_some(0));
    }
}
