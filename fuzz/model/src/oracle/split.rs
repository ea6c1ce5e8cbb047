//! The split format of [`ring`](super::ring) (virtio 1.3 §2.7).

use super::fetch::Fetches;
use super::ring::{Flying, Live, Walk, descriptor, fresh, table_in_ring};
use crate::finding;
use crate::ram::Ram;
use devices::virtio::queue::Descriptor;

/// The device reads `len` bytes at `addr`; the chain that begins with it.
pub(super) fn read(
    live: &mut Live,
    ram: &Ram,
    fetches: &mut Fetches,
    addr: u64,
    len: usize,
    spare: &mut Vec<Flying>,
) -> Option<Flying> {
    let size = u64::from(live.size);
    if addr.wrapping_sub(live.used) < 6 + 8 * size {
        fetches.poll();
        return None;
    }
    let offset = addr.wrapping_sub(live.avail);
    if offset >= 6 + 2 * size {
        return None;
    }
    if offset == 2 && len == 2 {
        let index = ram.word(addr, 2) as u16;
        let ahead = index.wrapping_sub(live.next_avail);
        if ahead > live.size {
            live.poised = true;
        } else if ahead > live.seen.wrapping_sub(live.next_avail) {
            live.seen = index;
        }
    }
    if len != 2 || offset < 4 || offset >= 4 + 2 * size || live.broken.is_some() {
        fetches.poll();
        return None;
    }
    let slot = ((offset - 4) / 2) as u16;
    let last = live.flying.last().filter(|chain| chain.born == live.steps);
    if last.is_some_and(|chain| chain.at % live.size == slot && slot != live.next_avail % live.size) {
        // Nobody puts a chain back and takes it again in one step: the entry is fetched twice.
        return None;
    }
    fetches.poll();
    fetches.begin();
    fetches.remember(addr, 2);
    if slot != live.next_avail % live.size {
        let next = live.next_avail;
        finding!("spec", "queue {} reads available entry {slot} where {next:#x} is next", live.index);
    }
    if live.seen == live.next_avail {
        finding!("spec", "queue {} takes an entry beyond the available index {:#x}", live.index, live.seen);
    }
    let head = ram.word(addr, 2) as u16;
    live.next_begins();
    let mut chain = fresh(spare);
    let parsed = parse(live, ram, head, &mut chain);
    if table_in_ring(live, &chain) {
        fetches.hold_still();
    }
    match parsed {
        Ok(()) => {
            (chain.id, chain.head) = (head, Some(head));
            chain.at = live.next_avail;
            chain.born = live.steps;
            live.next_avail = live.next_avail.wrapping_add(1);
            Some(chain)
        }
        Err(rule) => {
            live.breaks(rule);
            spare.push(chain);
            None
        }
    }
}

fn parse(live: &Live, ram: &Ram, head: u16, chain: &mut Flying) -> Result<(), &'static str> {
    if head >= live.size {
        return Err("head outside the table");
    }
    if live.has(head) {
        return Err("head in flight");
    }
    let mut walk = Walk::default();
    let mut visited = [0u64; 16];
    let (mut table, mut entries, mut index, mut indirect) = (live.desc, live.size, head, None);
    loop {
        if index >= entries {
            return Err("next outside its table");
        }
        let (word, bit) = (usize::from(index / 64), 1u64 << (index % 64));
        if visited[word] & bit != 0 {
            return Err("cycle");
        }
        visited[word] |= bit;
        let desc = descriptor(ram, table + 16 * u64::from(index));
        if desc.flags & Descriptor::INDIRECT != 0 {
            if !live.indirect || indirect.is_some() || desc.flags & Descriptor::NEXT != 0 {
                return Err("misplaced indirect descriptor");
            }
            entries = table_entries(live, ram, &desc)?;
            chain.table = (desc.addr, desc.len);
            indirect = Some(walk.descriptors());
            (table, index, visited) = (desc.addr, 0, [0; 16]);
            continue;
        }
        walk.add(ram, live.size, chain, (desc.addr, desc.len, desc.flags & Descriptor::WRITE != 0))?;
        if desc.flags & Descriptor::NEXT == 0 {
            break;
        }
        index = desc.next;
    }
    chain.slots = indirect.map_or(walk.descriptors(), |direct| direct + 1);
    Ok(())
}

/// Entries of an indirect table (virtio 1.3 §2.7.5.3).
pub(super) fn table_entries(live: &Live, ram: &Ram, desc: &Descriptor) -> Result<u16, &'static str> {
    let entries = desc.len / 16;
    if !desc.len.is_multiple_of(16) || entries == 0 || entries > live.size.into() {
        return Err("length of an indirect table");
    }
    if !ram.has(desc.addr, desc.len.into()) {
        return Err("indirect table outside memory");
    }
    Ok(entries as u16)
}

/// The device has written to one of the areas; the element that is complete with it.
pub(super) fn wrote(live: &mut Live, ram: &Ram, addr: u64, len: usize) -> Option<(u32, u32)> {
    let index = live.index;
    let offset = addr.wrapping_sub(live.used);
    let size = u64::from(live.size);
    if offset >= 6 + 8 * size {
        finding!("spec", "queue {index} writes to the driver's half of its ring at {addr:#x}");
    }
    match (offset, len) {
        (0, 2) => {
            let flags = ram.word(addr, 2);
            if flags > 1 {
                finding!("spec", "queue {index} sets used flags {flags:#x}");
            }
        }
        (2, 2) => {
            let shown = ram.word(addr, 2) as u16;
            if shown != live.next_used || live.half {
                finding!("spec", "queue {index} shows used index {shown:#x} where {:#x} is next", live.next_used);
            }
            if wants_interrupt(live, ram, live.published, shown) {
                live.owed += 1;
            }
            live.published = shown;
        }
        (at, 2) if at == 4 + 8 * size => {}
        (at, 4 | 8) if at >= 4 && at < 4 + 8 * size => {
            let slot = (at - 4) / 8;
            if slot != u64::from(live.next_used % live.size) {
                finding!("spec", "queue {index} writes used element {slot} where {:#x} is next", live.next_used);
            }
            let start = live.used + 4 + 8 * slot;
            match (len, addr == start) {
                (4, true) => live.half = true,
                (4, false) | (8, true) => {
                    live.half = false;
                    return Some((ram.word(start, 4) as u32, ram.word(start + 4, 4) as u32));
                }
                _ => finding!("spec", "queue {index} writes half of two used elements"),
            }
        }
        _ => finding!("spec", "queue {index} writes {len} bytes at offset {offset} of its used ring"),
    }
    None
}

/// virtio 1.3 §2.7.7.2.
fn wants_interrupt(live: &Live, ram: &Ram, old: u16, new: u16) -> bool {
    if live.event_idx {
        let event = ram.word(live.avail + 4 + 2 * u64::from(live.size), 2) as u16;
        new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
    } else {
        ram.word(live.avail, 2) & 1 == 0
    }
}
