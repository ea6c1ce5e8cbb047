//! Where a driver has its split rings, and the chains it makes available in them.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use devices::GuestRam;
use devices::virtio::pci::{LEGACY_BAR, MODERN_BAR, NOTIFY, NOTIFY_MULTIPLIER};
use devices::virtio::queue::{Descriptor, F_RING_PACKED};
use vm_memory::{Bytes as _, GuestAddress};

use super::Seen;
use super::bars::Function;

/// Bytes of the first readable descriptor that are written down: the header of a virtio-blk request.
const HEAD_BYTES: usize = 16;
/// Entries of the largest split ring (virtio 1.3 §2.7).
const MAX_SIZE: u16 = 1 << 15;

/// The queues of every virtio function.
#[derive(Default)]
pub(super) struct Queues(BTreeMap<Function, Device>);

#[derive(Default)]
struct Device {
    select: u16,
    feature_select: u32,
    /// Features the driver has accepted.
    features: u64,
    queues: BTreeMap<u16, Queue>,
}

#[derive(Default)]
struct Queue {
    size: u16,
    desc: u64,
    avail: u64,
    /// Available entries up to here were seen.
    next: u16,
}

impl Queues {
    /// Follows the registers of a BAR; a queue where the access is its doorbell.
    pub(super) fn note(&mut self, function: Function, bar: u8, offset: u64, seen: Seen) -> Option<u16> {
        let device = self.0.entry(function).or_default();
        match bar {
            LEGACY_BAR => device.note_legacy(offset, seen),
            MODERN_BAR if offset >= NOTIFY => {
                let queue = (offset - NOTIFY) / NOTIFY_MULTIPLIER;
                seen.is_write.then_some(queue as u16)
            }
            MODERN_BAR => {
                device.note_common(offset, seen);
                None
            }
            _ => None,
        }
    }

    /// Writes a line for each chain that was made available since the last call.
    pub(super) fn write_chains(&mut self, function: Function, queue: u16, ram: &GuestRam, out: &mut String) {
        let Some(device) = self.0.get_mut(&function) else { return };
        if device.features & F_RING_PACKED != 0 {
            return;
        }
        let Some(ring) = device.queues.get_mut(&queue).filter(|ring| (1..=MAX_SIZE).contains(&ring.size)) else {
            return;
        };
        let Some(end) = half(ram, ring.avail, 2) else { return };
        // Who has moved the index further than there are entries has overwritten the first of them.
        if end.wrapping_sub(ring.next) > ring.size {
            ring.next = end.wrapping_sub(ring.size);
        }
        while ring.next != end {
            let slot = u64::from(ring.next % ring.size);
            ring.next = ring.next.wrapping_add(1);
            let Some(head) = half(ram, ring.avail, 4 + 2 * slot) else { return };
            if let Some(chain) = chain(ram, ring, head) {
                // Writing to a string does not fail.
                let _ = writeln!(out, "chain {function} {queue:x} {chain}");
            }
        }
    }
}

impl Device {
    /// The common configuration (virtio 1.3 §4.1.4.3), in the widths drivers use.
    fn note_common(&mut self, offset: u64, seen: Seen) {
        let value = seen.value;
        // A driver that takes the size it finds does not write it.
        if offset == 0x18 {
            self.selected().size = value as u16;
        }
        if !seen.is_write {
            return;
        }
        let halves = |old: u64, upper: bool| match (seen.width, upper) {
            (8, _) => value,
            (_, false) => old & !0xffff_ffff | value,
            (_, true) => old & 0xffff_ffff | value << 32,
        };
        match offset {
            0x08 => self.feature_select = value as u32,
            0x0c if self.feature_select < 2 => {
                let shift = 32 * self.feature_select;
                self.features = self.features & !(0xffff_ffff << shift) | (value & 0xffff_ffff) << shift;
            }
            0x14 if value == 0 => *self = Self::default(),
            0x16 => self.select = value as u16,
            0x20 | 0x24 => self.selected().desc = halves(self.selected().desc, offset == 0x24),
            0x28 | 0x2c => self.selected().avail = halves(self.selected().avail, offset == 0x2c),
            // Whoever enables a queue, or resets it alone, begins at its first entry.
            0x1c | 0x3a => self.selected().next = 0,
            _ => {}
        }
    }

    /// The legacy header (virtio 1.3 §4.1.4.10); a queue where the access is its doorbell.
    fn note_legacy(&mut self, offset: u64, seen: Seen) -> Option<u16> {
        let value = seen.value;
        if offset == 0x0c {
            self.selected().size = value as u16;
        }
        if !seen.is_write {
            return None;
        }
        match offset {
            0x04 => self.features = value,
            0x08 => {
                let queue = self.selected();
                queue.desc = value << 12;
                queue.avail = queue.desc + 16 * u64::from(queue.size);
                queue.next = 0;
            }
            0x0e => self.select = value as u16,
            0x10 => return Some(value as u16),
            0x12 if value == 0 => *self = Self::default(),
            _ => {}
        }
        None
    }

    fn selected(&mut self) -> &mut Queue {
        self.queues.entry(self.select).or_default()
    }
}

/// A 16-bit word of a ring.
fn half(ram: &GuestRam, area: u64, at: u64) -> Option<u16> {
    ram.read_obj(GuestAddress(area.checked_add(at)?)).ok()
}

fn descriptor(ram: &GuestRam, table: u64, index: u64) -> Option<Descriptor> {
    let mut bytes = [0; 16];
    ram.read_slice(&mut bytes, GuestAddress(table.checked_add(16 * index)?)).ok()?;
    Some(Descriptor::from_bytes(bytes))
}

/// The chain at `head` as a record says it, `None` where it does not lie in memory. One that goes in circles ends where a
/// table's every entry was used.
fn chain(ram: &GuestRam, ring: &Queue, head: u16) -> Option<String> {
    let first = descriptor(ram, ring.desc, head.into())?;
    let indirect = first.flags & Descriptor::INDIRECT != 0;
    let (table, entries) = if indirect { (first.addr, first.len / 16) } else { (ring.desc, ring.size.into()) };
    let mut desc = if indirect { descriptor(ram, table, 0)? } else { first };
    let (mut start, mut shape) = (None, String::new());
    for _ in 0..entries.min(MAX_SIZE.into()) {
        let is_writable = desc.flags & Descriptor::WRITE != 0;
        if start.is_none() && !is_writable {
            let mut bytes = [0; HEAD_BYTES];
            let bytes = &mut bytes[..HEAD_BYTES.min(desc.len as usize)];
            ram.read_slice(bytes, GuestAddress(desc.addr)).ok()?;
            start = Some(bytes.iter().fold(String::new(), |text, byte| format!("{text}{byte:02x}")));
        }
        // Writing to a string does not fail.
        let _ = write!(shape, " {}{:x}", if is_writable { 'w' } else { 'r' }, desc.len);
        if desc.flags & Descriptor::NEXT == 0 {
            break;
        }
        desc = descriptor(ram, table, desc.next.into())?;
    }
    let start = start.filter(|start| !start.is_empty()).unwrap_or_else(|| "-".to_owned());
    Some(format!("{} {start}{shape}", if indirect { "indirect" } else { "direct" }))
}
