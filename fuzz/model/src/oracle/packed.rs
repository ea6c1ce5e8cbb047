//! The packed format of [`ring`](super::ring) (virtio 1.3 §2.8).

use super::fetch::Fetches;
use super::ring::{Flying, Live, Walk, descriptor, fresh, table_in_ring};
use super::split::table_entries;
use crate::finding;
use crate::ram::Ram;
use devices::virtio::queue::Descriptor;

const AVAIL: u16 = 1 << 7;
const USED: u16 = 1 << 15;
/// The wrap counter in a position.
const WRAP: u16 = 1 << 15;

/// `slots` descriptors after `position`.
pub(super) fn plus(position: u16, slots: u16, size: u16) -> u16 {
    let index = u32::from(position & !WRAP) + u32::from(slots);
    let laps = index / u32::from(size);
    let wrap = position & WRAP ^ if laps % 2 == 1 { WRAP } else { 0 };
    (index % u32::from(size)) as u16 | wrap
}

/// `slots` descriptors before `position`, at most two rings: as many less than two rings on.
pub(super) fn minus(position: u16, slots: u16, size: u16) -> u16 {
    plus(position, (2 * size).saturating_sub(slots), size)
}

/// A descriptor's second half: length, id and flags.
fn tail(live: &Live, ram: &Ram, position: u16) -> (u32, u16, u16) {
    let word = ram.word(live.desc + 16 * u64::from(position & !WRAP) + 8, 8);
    (word as u32, (word >> 32) as u16, (word >> 48) as u16)
}

/// Whether the driver has made the descriptor at `position` available (§2.8.1).
pub(super) fn available(live: &Live, ram: &Ram, position: u16) -> bool {
    let (_, _, flags) = tail(live, ram, position);
    let wrap = position & WRAP != 0;
    (flags & AVAIL != 0) == wrap && (flags & USED != 0) != wrap
}

/// The device reads `len` bytes at `addr`; the chain that begins with it. The flags of the next descriptor are polled;
/// the address before them is read only where they say "available".
pub(super) fn read(
    live: &mut Live,
    ram: &Ram,
    fetches: &mut Fetches,
    addr: u64,
    len: usize,
    spare: &mut Vec<Flying>,
) -> Option<Flying> {
    let size = u64::from(live.size);
    if addr.wrapping_sub(live.avail) < 4 || addr.wrapping_sub(live.used) < 4 {
        fetches.poll();
        return None;
    }
    let offset = addr.wrapping_sub(live.desc);
    if offset >= 16 * size || len != 8 {
        return None;
    }
    let slot = (offset / 16) as u16;
    if live.broken.is_some() {
        // What is given back goes to where the ring was read.
        fetches.poll();
        return None;
    }
    if slot != live.next_avail & !WRAP {
        return None;
    }
    if offset % 16 == 8 {
        fetches.poll();
        // A queue without a free slot refuses before it reads further.
        if available(live, ram, live.next_avail) && live.free() == 0 {
            live.poised = true;
        }
        return None;
    }
    fetches.begin();
    fetches.remember(addr + 8, 8);
    if !available(live, ram, live.next_avail) {
        finding!("spec", "queue {} takes descriptor {slot}, which is not available", live.index);
    }
    live.next_begins();
    let mut chain = fresh(spare);
    let parsed = parse(live, ram, &mut chain);
    if table_in_ring(live, &chain) {
        fetches.hold_still();
    }
    match parsed {
        Ok(()) => {
            chain.at = live.next_avail;
            chain.born = live.steps;
            live.next_avail = plus(live.next_avail, chain.slots, live.size);
            Some(chain)
        }
        Err(rule) => {
            live.breaks(rule);
            spare.push(chain);
            None
        }
    }
}

fn parse(live: &Live, ram: &Ram, chain: &mut Flying) -> Result<(), &'static str> {
    let mut walk = Walk::default();
    let mut at = live.next_avail;
    let free = live.free();
    loop {
        chain.slots += 1;
        if chain.slots > live.size || u32::from(chain.slots) > free {
            return Err("more descriptors than the ring has");
        }
        let (len, id, flags) = tail(live, ram, at);
        let addr = ram.word(live.desc + 16 * u64::from(at & !WRAP), 8);
        if chain.slots > 1 && !available(live, ram, at) {
            return Err("chain continues at an unavailable descriptor");
        }
        chain.id = id;
        if flags & Descriptor::INDIRECT != 0 {
            if !live.indirect || flags & Descriptor::NEXT != 0 || chain.slots != 1 {
                return Err("misplaced indirect descriptor");
            }
            let entries = table_entries(live, ram, &Descriptor { addr, len, flags, next: 0 })?;
            chain.table = (addr, len);
            for index in 0..u64::from(entries) {
                // The flags stand where a split ring has the next index (§2.8.7).
                let desc = descriptor(ram, addr + 16 * index);
                walk.add(ram, live.size, chain, (desc.addr, desc.len, desc.next & Descriptor::WRITE != 0))?;
            }
            break;
        }
        walk.add(ram, live.size, chain, (addr, len, flags & Descriptor::WRITE != 0))?;
        if flags & Descriptor::NEXT == 0 {
            break;
        }
        at = plus(at, 1, live.size);
    }
    if live.has(chain.id) { Err("buffer id in flight") } else { Ok(()) }
}

/// The device has written to one of the areas; the elements that are complete with it. A batch shows with its first
/// descriptor, which is written last.
pub(super) fn wrote(live: &mut Live, ram: &Ram, addr: u64, len: usize, all: &mut Vec<(u32, u32)>) {
    let index = live.index;
    if addr.wrapping_sub(live.used) < 4 {
        return;
    }
    let offset = addr.wrapping_sub(live.desc);
    if offset >= 16 * u64::from(live.size) {
        finding!("spec", "queue {index} writes to the driver's event area at {addr:#x}");
    }
    if offset % 16 != 8 || len != 8 {
        finding!("spec", "queue {index} writes {len} bytes at offset {offset} of its ring");
    }
    let slot = (offset / 16) as u16;
    if slot != live.next_used & !WRAP {
        live.ahead.push((slot, ram.word(addr, 8)));
        return;
    }
    let mut at = live.next_used;
    let ahead = std::mem::take(&mut live.ahead);
    let mut given: Vec<usize> = Vec::new();
    for (next, word) in std::iter::once((slot, ram.word(addr, 8))).chain(ahead.iter().copied()) {
        if next != at & !WRAP {
            finding!("spec", "queue {index} marks descriptor {next} used where {:#x} is next", at);
        }
        let (len, id, flags) = (word as u32, (word >> 32) as u16, (word >> 48) as u16);
        let wrap = at & WRAP != 0;
        if (flags & AVAIL != 0) != wrap || (flags & USED != 0) != wrap {
            finding!("spec", "queue {index} shows descriptor {next} with flags {flags:#x} in the lap of {wrap}");
        }
        let Some(place) = live.flying.iter().enumerate().position(|(i, chain)| chain.id == id && !given.contains(&i))
        else {
            finding!("spec", "queue {index} gives buffer {id} back, which it does not have")
        };
        given.push(place);
        at = plus(at, live.flying[place].slots, live.size);
        // §2.8.4: without the write flag the length means nothing.
        all.push((id.into(), if flags & Descriptor::WRITE != 0 { len } else { 0 }));
    }
    live.ahead = ahead;
    live.ahead.clear();
    if wants_interrupt(live, ram, live.published, at) {
        live.owed += 1;
    }
    live.published = at;
}

/// virtio 1.3 §2.8.10.
fn wants_interrupt(live: &Live, ram: &Ram, old: u16, new: u16) -> bool {
    let flags = ram.word(live.avail + 2, 2);
    if flags == 1 {
        return false;
    }
    let event = ram.word(live.avail, 2) as u16;
    if flags != 2 || !live.event_idx || event & !WRAP >= live.size {
        return true;
    }
    let laps = 2 * u32::from(live.size);
    let place = |at: u16| u32::from(at & !WRAP) + if at & WRAP != 0 { 0 } else { u32::from(live.size) };
    let since = |at: u16| (place(at) + laps - place(old)) % laps;
    since(event) < since(new)
}
