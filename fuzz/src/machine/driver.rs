//! The guest's driver of one queue: rings in guest memory, chains of whatever descriptors the program asks for.
//!
//! It allocates nothing, and it believes nothing it finds in a used ring.

use devices::virtio::queue::{Descriptor, F_EVENT_IDX, F_RING_PACKED};

use super::ram::Ram;

/// Entries of the longest ring a driver here sets up.
pub const MAX_SIZE: usize = 128;
const AVAIL: u16 = 1 << 7;
const USED: u16 = 1 << 15;
const WRAP: u16 = 1 << 15;

/// A driver's view of a queue.
#[derive(Clone)]
pub struct Driver {
    /// Guest address of the table or the packed ring.
    pub desc: u64,
    /// Guest address of the available ring or the driver area.
    pub avail: u64,
    /// Guest address of the used ring or the device area.
    pub used: u64,
    /// Entries.
    pub size: u16,
    /// The packed format.
    pub packed: bool,
    /// Event indices are negotiated.
    pub event_idx: bool,
    /// Buffers are taken from here in a circle.
    buffers: (u64, u64),
    next_buffer: u64,
    free: [u16; MAX_SIZE],
    free_count: usize,
    /// By head or buffer id: descriptors that come back with it, and for a split ring the next one of each.
    taken: [u16; MAX_SIZE],
    links: [u16; MAX_SIZE],
    next_avail: u16,
    published: u16,
    next_used: u16,
    first: Option<(u64, u16)>,
    /// The head or id posted last, and where its first writable byte range is.
    pub last: u16,
}

impl Driver {
    /// Bytes of guest memory a queue takes: 16 KiB of rings and the rest of buffers.
    pub const WINDOW: u64 = 0x3_0000;

    /// A driver that has set nothing up, for the queue whose window starts at `base`.
    #[must_use]
    pub fn new(base: u64) -> Self {
        let mut driver = Self {
            desc: base,
            avail: base + 0x1000,
            used: base + 0x2000,
            size: 1,
            packed: false,
            event_idx: false,
            buffers: (base + 0x4000, base + Self::WINDOW),
            next_buffer: base + 0x4000,
            free: [0; MAX_SIZE],
            free_count: 0,
            taken: [0; MAX_SIZE],
            links: [0; MAX_SIZE],
            next_avail: 0,
            published: 0,
            next_used: 0,
            first: None,
            last: 0,
        };
        driver.forget(1);
        driver
    }

    fn forget(&mut self, size: u16) {
        self.size = size.clamp(1, MAX_SIZE as u16);
        self.free_count = usize::from(self.size);
        for (slot, free) in self.free.iter_mut().take(self.free_count).enumerate() {
            *free = self.size - 1 - slot as u16;
        }
        self.taken = [0; MAX_SIZE];
        let start = if self.packed { WRAP } else { 0 };
        (self.next_avail, self.published, self.next_used, self.first, self.last) = (start, start, start, None, 0);
        self.next_buffer = self.buffers.0;
    }

    /// Sets the rings up, all zeroes (§2.7.10.1, §2.8.10).
    pub fn set_up(&mut self, ram: &Ram, size: u16, features: u64) {
        self.packed = features & F_RING_PACKED != 0;
        self.event_idx = features & F_EVENT_IDX != 0;
        self.forget(size);
        let size = usize::from(self.size);
        let zeroes = [0; 16 * MAX_SIZE];
        ram.poke(self.desc, &zeroes[..16 * size]);
        ram.poke(self.avail, &zeroes[..6 + 2 * size]);
        ram.poke(self.used, &zeroes[..6 + 8 * size]);
    }

    /// Descriptors not in use.
    #[must_use]
    pub fn free(&self) -> usize {
        self.free_count
    }

    /// Room for a buffer of `len` bytes, 16-byte aligned; what is there is left.
    pub fn buffer(&mut self, len: u32) -> u64 {
        let len = u64::from(len).next_multiple_of(16).max(16);
        if self.next_buffer + len > self.buffers.1 {
            self.next_buffer = self.buffers.0;
        }
        let addr = self.next_buffer;
        self.next_buffer = (self.next_buffer + len).min(self.buffers.1);
        addr
    }

    /// Places a chain (§2.7.13 steps 1 to 3, §2.8.21 steps 1 and 2); `false` where there are too few free descriptors.
    /// Flags NEXT and links are the driver's to fill in.
    pub fn place(&mut self, ram: &Ram, chain: &[Descriptor]) -> bool {
        if chain.is_empty() || chain.len() > self.free_count {
            return false;
        }
        if self.packed {
            let id = self.take();
            for (i, desc) in chain.iter().enumerate() {
                let next = if i + 1 < chain.len() { Descriptor::NEXT } else { 0 };
                self.place_packed(ram, Descriptor { flags: desc.flags | next, ..*desc }, id);
            }
            // The id came off the list; the other descriptors are only counted.
            for _ in 1..chain.len() {
                self.free_count -= 1;
            }
            self.taken[usize::from(id)] = chain.len() as u16;
            self.last = id;
            return true;
        }
        let head = self.free[self.free_count - 1];
        for (i, desc) in chain.iter().enumerate() {
            let index = self.take();
            let next = if i + 1 < chain.len() { self.free[self.free_count - 1] } else { 0 };
            self.links[usize::from(index)] = next;
            let linked = if i + 1 < chain.len() { Descriptor::NEXT } else { 0 };
            let next = if linked != 0 { next } else { desc.next };
            self.write(ram, index, Descriptor { flags: desc.flags | linked, next, ..*desc });
        }
        self.taken[usize::from(head)] = chain.len() as u16;
        self.last = head;
        self.offer(ram, head);
        true
    }

    fn take(&mut self) -> u16 {
        self.free_count -= 1;
        self.free[self.free_count]
    }

    fn give(&mut self, index: u16) {
        if self.free_count < usize::from(self.size) {
            self.free[self.free_count] = index;
            self.free_count += 1;
        }
    }

    /// Writes entry `index` of the table, whatever it says.
    pub fn write(&self, ram: &Ram, index: u16, desc: Descriptor) {
        ram.poke(self.desc + 16 * u64::from(index), &desc.to_bytes());
    }

    /// Puts one descriptor at the end of a packed ring.
    pub fn place_packed(&mut self, ram: &Ram, desc: Descriptor, id: u16) {
        let (index, wrap) = (self.next_avail & !WRAP, self.next_avail & WRAP != 0);
        let at = self.desc + 16 * u64::from(index);
        let flags = desc.flags & !(AVAIL | USED) | if wrap { AVAIL } else { USED };
        ram.poke(at, &desc.to_bytes()[..12]);
        ram.set_word(at + 12, 2, id.into());
        match self.first {
            None => self.first = Some((at + 14, flags)),
            Some(_) => ram.set_word(at + 14, 2, flags.into()),
        }
        self.next_avail = self.plus(self.next_avail, 1);
    }

    /// Puts `head` into the next available entry.
    pub fn offer(&mut self, ram: &Ram, head: u16) {
        let slot = u64::from(self.next_avail % self.size);
        ram.set_word(self.avail + 4 + 2 * slot, 2, head.into());
        self.next_avail = self.next_avail.wrapping_add(1);
    }

    /// Moves the available index by `delta` without entries for it.
    pub fn jump(&mut self, ram: &Ram, delta: u16) {
        if !self.packed {
            self.next_avail = self.next_avail.wrapping_add(delta);
            self.publish(ram);
        }
    }

    /// Shows the device what was placed; whether it wants a kick for it (§2.7.13 steps 4 and 5, §2.8.21 steps 3, 4).
    pub fn publish(&mut self, ram: &Ram) -> bool {
        let (old, new) = (self.published, self.next_avail);
        if self.packed {
            let Some((at, flags)) = self.first.take() else { return false };
            ram.set_word(at, 2, flags.into());
            self.published = new;
            return match ram.word(self.used + 2, 2) {
                1 => false,
                2 if self.event_idx => {
                    let event = ram.word(self.used, 2) as u16;
                    event & !WRAP >= self.size || self.since(event, old) < self.since(new, old)
                }
                _ => true,
            };
        }
        ram.set_word(self.avail + 2, 2, new.into());
        self.published = new;
        if self.event_idx {
            let event = ram.word(self.used + 4 + 8 * u64::from(self.size), 2) as u16;
            new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
        } else {
            old != new && ram.word(self.used, 2) & 1 == 0
        }
    }

    /// Takes back the next used buffer: its id and length (§2.7.14, §2.8.22).
    pub fn collect(&mut self, ram: &Ram) -> Option<(u32, u32)> {
        if self.packed {
            let (index, wrap) = (self.next_used & !WRAP, self.next_used & WRAP != 0);
            let word = ram.word(self.desc + 16 * u64::from(index) + 8, 8);
            let (len, id, flags) = (word as u32, (word >> 32) as u16, (word >> 48) as u16);
            if (flags & AVAIL != 0) != wrap || (flags & USED != 0) != wrap {
                return None;
            }
            let slots = self.taken.get_mut(usize::from(id)).map_or(1, |slots| std::mem::take(slots).max(1));
            if id < self.size {
                self.give(id);
            }
            self.free_count = (self.free_count + usize::from(slots) - 1).min(usize::from(self.size));
            self.rebuild_ids();
            self.next_used = self.plus(self.next_used, slots);
            return Some((id.into(), if flags & Descriptor::WRITE != 0 { len } else { 0 }));
        }
        let index = ram.word(self.used + 2, 2) as u16;
        if index == self.next_used {
            return None;
        }
        let at = self.used + 4 + 8 * u64::from(self.next_used % self.size);
        let (id, len) = (ram.word(at, 4) as u32, ram.word(at + 4, 4) as u32);
        self.next_used = self.next_used.wrapping_add(1);
        if id < self.size.into() {
            let (mut entry, count) = (id as u16, std::mem::take(&mut self.taken[id as usize]));
            for _ in 0..count {
                let next = self.links[usize::from(entry)];
                self.give(entry);
                entry = next % self.size;
            }
        }
        Some((id, len))
    }

    /// Ids not in flight are free, as many as there are free descriptors.
    fn rebuild_ids(&mut self) {
        let mut at = 0;
        for id in (0..self.size).rev() {
            if self.taken[usize::from(id)] == 0 && at < self.free_count {
                self.free[at] = id;
                at += 1;
            }
        }
        self.free_count = at;
    }

    /// Wants no interrupts (0), all (1), or one `distance` buffers on (2) (§2.7.7, §2.8.10).
    pub fn wish(&self, ram: &Ram, how: u8, distance: u16) {
        let event = if self.packed {
            self.plus(self.next_used, distance % self.size)
        } else {
            self.next_used.wrapping_add(distance)
        };
        if self.packed {
            ram.set_word(self.avail, 2, event.into());
            ram.set_word(self.avail + 2, 2, [1, 0, 2][usize::from(how % 3)]);
        } else {
            ram.set_word(self.avail, 2, u64::from(how.is_multiple_of(3)));
            ram.set_word(self.avail + 4 + 2 * u64::from(self.size), 2, event.into());
        }
    }

    fn plus(&self, position: u16, slots: u16) -> u16 {
        let index = u32::from(position & !WRAP) + u32::from(slots);
        match index.checked_sub(self.size.into()) {
            Some(index) => ((index as u16) % self.size) | ((position & WRAP) ^ WRAP),
            None => index as u16 | position & WRAP,
        }
    }

    fn since(&self, at: u16, old: u16) -> u32 {
        let laps = 2 * u32::from(self.size);
        let place = |at: u16| u32::from(at & !WRAP) + if at & WRAP != 0 { 0 } else { u32::from(self.size) };
        (place(at) + laps - place(old)) % laps
    }
}
