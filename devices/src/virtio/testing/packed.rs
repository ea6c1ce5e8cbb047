//! The driver's half of a packed virtqueue, each step with the clause of virtio 1.3 it comes from.

use std::collections::HashMap;
use std::sync::atomic::{Ordering, fence};

use vm_memory::{Bytes, GuestAddress};

use super::driver::Used;
use crate::GuestRam;
use crate::virtio::queue::Descriptor;

const AVAIL: u16 = 1 << 7;
const USED: u16 = 1 << 15;

/// A driver's view of one packed ring.
pub(super) struct PackedRing {
    mem: GuestRam,
    size: u16,
    event_idx: bool,
    ring: u64,
    driver_area: u64,
    device_area: u64,
    /// Where the next available and the next used descriptor go, with their wrap counters (§2.8.1).
    avail: (u16, bool),
    used: (u16, bool),
    /// `avail` as of the last publication.
    published: (u16, bool),
    /// The flags that make everything since then available, and where they go.
    first: Option<(u64, u16)>,
    free_slots: u16,
    ids: Vec<u16>,
    /// Slots of the ring by buffer id.
    chains: HashMap<u16, u16>,
}

impl PackedRing {
    pub(super) fn new(mem: &GuestRam, ring: u64, areas: [u64; 2], size: u16, event_idx: bool) -> Self {
        // §2.8.10, §2.8.1: both areas and the ring start as zero.
        mem.write_slice(&vec![0; 16 * usize::from(size)], GuestAddress(ring)).unwrap();
        for area in areas {
            mem.write_slice(&[0; 4], GuestAddress(area)).unwrap();
        }
        Self {
            mem: mem.clone(),
            size,
            event_idx,
            ring,
            driver_area: areas[0],
            device_area: areas[1],
            avail: (0, true),
            used: (0, true),
            published: (0, true),
            first: None,
            free_slots: size,
            ids: (0..size).rev().collect(),
            chains: HashMap::new(),
        }
    }

    /// Descriptors not in use.
    pub(super) fn free(&self) -> usize {
        self.free_slots.into()
    }

    /// §2.8.21 steps 1 and 2: one descriptor after the other, each with the flags of its lap; the flags of the very
    /// first wait for [`publish`](Self::publish). Returns the buffer id.
    pub(super) fn place(&mut self, descs: &[Descriptor]) -> u16 {
        assert!(descs.len() <= self.free(), "a free descriptor");
        let id = self.ids.pop().expect("a free buffer id");
        for (i, desc) in descs.iter().enumerate() {
            let next = if i + 1 < descs.len() { Descriptor::NEXT } else { 0 };
            self.place_one(Descriptor { flags: desc.flags | next, ..*desc }, id);
        }
        let slots = descs.len() as u16;
        self.free_slots -= slots;
        self.chains.insert(id, slots);
        id
    }

    /// One descriptor, whatever it is.
    pub(super) fn place_one(&mut self, desc: Descriptor, id: u16) {
        let (index, wrap) = self.avail;
        let at = self.ring + 16 * u64::from(index);
        let flags = desc.flags & !(AVAIL | USED) | if wrap { AVAIL } else { USED };
        // Addr, length, id: only then the flags (§2.8.21.1.1).
        self.mem.write_slice(&desc.to_bytes()[..12], GuestAddress(at)).unwrap();
        self.mem.write_obj(id.to_le(), GuestAddress(at + 12)).unwrap();
        match self.first {
            None => self.first = Some((at + 14, flags)),
            Some(_) => self.mem.store(flags, GuestAddress(at + 14), Ordering::Relaxed).unwrap(),
        }
        self.avail = self.plus(self.avail, 1);
    }

    /// §2.8.21 steps 3 and 4, and whether the device wants a notification for it (§2.8.10).
    pub(super) fn publish(&mut self) -> bool {
        let Some((at, flags)) = self.first.take() else { return false };
        self.mem.store(flags, GuestAddress(at), Ordering::Release).unwrap();
        let (old, new) = (self.published, self.avail);
        self.published = new;
        // §2.8.21.3.1: the descriptors are visible before the suppression area is read.
        fence(Ordering::SeqCst);
        match self.load(self.device_area + 2) {
            0 => true,
            2 if self.event_idx => {
                let event = self.load(self.device_area);
                let event = (event & 0x7fff, event & 0x8000 != 0);
                self.distance(old, event) < self.distance(old, new)
            }
            _ => false,
        }
    }

    /// §2.8.22: used descriptors carry both flags as the counter of this side's lap has them.
    pub(super) fn used(&mut self) -> Vec<Used> {
        let mut all = Vec::new();
        loop {
            let (index, wrap) = self.used;
            let at = self.ring + 16 * u64::from(index);
            let flags: u16 = self.mem.load(GuestAddress(at + 14), Ordering::Acquire).unwrap();
            if (flags & AVAIL != 0) != wrap || (flags & USED != 0) != wrap {
                return all;
            }
            let id = self.load(at + 12);
            let len: u32 = self.mem.read_obj(GuestAddress(at + 8)).unwrap();
            // §2.8.4: without the write flag the length means nothing.
            all.push(Used { head: id.into(), len: if flags & Descriptor::WRITE != 0 { len } else { 0 } });
            let slots = self.chains.remove(&id).unwrap_or(1);
            self.ids.push(id);
            self.free_slots += slots;
            self.used = self.plus(self.used, slots);
        }
    }

    /// Asks for no interrupts, or for them again (§2.8.10).
    pub(super) fn set_no_interrupt(&self, no_interrupt: bool) {
        self.mem.store(u16::from(no_interrupt), GuestAddress(self.driver_area + 2), Ordering::SeqCst).unwrap();
    }

    /// Asks for an interrupt once the descriptor at `event` is used: offset and wrap counter (§2.8.10).
    pub(super) fn set_used_event(&self, event: u16) {
        self.mem.store(event, GuestAddress(self.driver_area), Ordering::Relaxed).unwrap();
        self.mem.store(2u16, GuestAddress(self.driver_area + 2), Ordering::SeqCst).unwrap();
    }

    fn plus(&self, (index, wrap): (u16, bool), slots: u16) -> (u16, bool) {
        let index = u32::from(index) + u32::from(slots);
        match index.checked_sub(self.size.into()) {
            Some(index) => (index as u16, !wrap),
            None => (index as u16, wrap),
        }
    }

    /// Steps from one place to another, going forward over two laps.
    fn distance(&self, from: (u16, bool), to: (u16, bool)) -> u32 {
        let laps = 2 * u32::from(self.size);
        let place = |(index, wrap): (u16, bool)| u32::from(index) + if wrap { 0 } else { u32::from(self.size) };
        (place(to) + laps - place(from)) % laps
    }

    fn load(&self, addr: u64) -> u16 {
        self.mem.load(GuestAddress(addr), Ordering::SeqCst).unwrap()
    }
}
