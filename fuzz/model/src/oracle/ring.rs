//! Virtqueues as virtio 1.3 §2.7 and §2.8 have them, seen from the words the device reads and writes.
//!
//! The model pops a chain when the device reads its available entry (or the packed descriptor that starts it), from
//! memory as it is at that moment: that is the one snapshot the device has to go by. Everything the device writes must
//! belong to a chain in flight or to the device's half of a ring.

use super::fetch::Fetches;
use super::{Device, packed, split};
use crate::finding;
use crate::ram::Ram;
use devices::virtio::QueueState;
use devices::virtio::queue::{Descriptor, F_EVENT_IDX, F_IN_ORDER, F_INDIRECT_DESC, F_RING_PACKED};

/// Guest address and length.
pub type Range = (u64, u32);

/// A chain the device has taken and not given back.
#[derive(Debug, Default)]
pub struct Flying {
    /// Its head, in a packed ring its buffer id.
    pub id: u16,
    /// What its device calls it: in a packed ring a number of its own choice, which the model learns from its disk.
    pub head: Option<u16>,
    /// Descriptors of the ring it takes.
    pub slots: u16,
    /// Where it was available.
    pub at: u16,
    /// The worker's step it was taken in.
    pub born: u32,
    /// The device has nothing more to do for it: it may have been given back without the driver seeing it yet.
    pub leaving: bool,
    /// What the device may read, without empty descriptors.
    pub readable: Vec<Range>,
    /// What it may write.
    pub writable: Vec<Range>,
    /// Bytes of both.
    pub readable_bytes: u64,
    /// See above.
    pub writable_bytes: u64,
    /// Its indirect table, as address and bytes.
    pub table: Range,
    /// Another chain in flight may write to the same bytes, or to those it reads: its content means nothing.
    pub shared: bool,
    /// What the device's model makes of it.
    pub plan: Plan,
    /// What the disk has to be asked for after that, the last first.
    pub rest: Vec<super::blk::Ask>,
    /// When it was taken, where that is measured.
    pub taken_ns: u64,
}

/// What a device's model expects of a chain.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Plan {
    /// Nothing in particular.
    #[default]
    Open,
    /// A disk request, see [`blk`](super::blk).
    Blk(super::blk::Plan),
    /// A frame to send, see [`net`](super::net).
    Send(super::net::Sending),
    /// A command to a card, and its answer.
    Control(u8),
    /// This many random bytes, from this number of the generator's on.
    Random(u32, u64),
    /// Console output: bytes read so far.
    Output(u64),
}

/// A queue that runs.
#[derive(Debug, Default)]
pub struct Live {
    pub(super) index: u16,
    pub(super) size: u16,
    pub(super) packed: bool,
    pub(super) indirect: bool,
    pub(super) event_idx: bool,
    pub(super) in_order: bool,
    pub(super) desc: u64,
    pub(super) avail: u64,
    pub(super) used: u64,
    pub(super) next_avail: u16,
    pub(super) next_used: u16,
    /// `next_used` as of the last publication.
    pub(super) published: u16,
    /// The furthest available index the device was shown.
    pub(super) seen: u16,
    /// Oldest first.
    pub(super) flying: Vec<Flying>,
    /// Used descriptors of a packed ring that wait for the first of their batch, as they were written.
    pub(super) ahead: Vec<(u16, u64)>,
    /// The id of a used element whose length is still to come.
    pub(super) half: bool,
    /// The rule the driver broke, as soon as the device has read so.
    pub(super) broken: Option<&'static str>,
    /// The device has asked for a reset.
    pub(super) told: bool,
    /// Interrupts the driver has to get.
    pub(super) owed: u32,
    /// No new chains: `true` for a reset, where nothing is given back either.
    pub(super) stopping: Option<bool>,
    /// The device has read an index that jumps, or a descriptor where none is free: it may ask for a reset.
    pub(super) poised: bool,
    /// Steps of its worker.
    pub(super) steps: u32,
    /// A chain is done with before the next one is taken.
    pub(super) serial: bool,
    /// The layout was refused: the queue does not exist for its worker.
    dead: bool,
}

/// All queues of a device.
#[derive(Debug, Default)]
pub struct Rings {
    pub(super) live: Vec<Live>,
    /// Queues that are paused with chains in flight.
    kept: Vec<Live>,
    /// Queues that were paused while the model was blind, so that nobody knows which chains they keep.
    unwatched: Vec<u16>,
    /// Rings, tables or buffers lie on top of each other in a way that makes the device rewrite its own orders: nothing
    /// can be said but that it survives. Until every queue has stopped.
    blind: bool,
    spare: Vec<Flying>,
    idle: Vec<Live>,
    /// Used elements of one write, kept for their allocation.
    elements: Vec<(u32, u32)>,
}

fn overlap(a: (u64, u64), b: (u64, u64)) -> bool {
    a.0 < b.0 + b.1 && b.0 < a.0 + a.1
}

impl Live {
    /// The three areas of the ring.
    pub(super) fn areas(&self) -> [(u64, u64); 3] {
        let size = u64::from(self.size);
        if self.packed {
            [(self.desc, 16 * size), (self.avail, 4), (self.used, 4)]
        } else {
            [(self.desc, 16 * size), (self.avail, 6 + 2 * size), (self.used, 6 + 8 * size)]
        }
    }

    /// Chains in flight that were not given back, as far as the model can know: a packed ring shows it late.
    fn held(&self) -> impl Iterator<Item = &Flying> {
        let waits = |chain: &&Flying| !chain.leaving;
        // In order, a chain goes back when all before it have.
        let first = self.flying.iter().position(|chain| !chain.leaving).unwrap_or(self.flying.len());
        let from = if self.in_order { first } else { 0 };
        let in_order = self.in_order;
        self.flying[from..].iter().filter(move |chain| in_order || waits(chain))
    }

    fn slots(&self) -> u32 {
        self.flying.iter().map(|chain| u32::from(chain.slots)).sum()
    }

    /// Descriptors of a packed ring that the driver has, as far as it was shown.
    pub(super) fn free(&self) -> u32 {
        u32::from(self.size).saturating_sub(self.slots())
    }

    /// A chain is being taken: those before it may be done.
    pub(super) fn next_begins(&mut self) {
        if self.serial {
            self.flying.iter_mut().for_each(|chain| chain.leaving = true);
        }
    }

    pub(super) fn has(&self, id: u16) -> bool {
        self.held().any(|chain| chain.id == id)
    }

    /// The driver has broken a rule and the device has seen it.
    pub(super) fn breaks(&mut self, rule: &'static str) {
        self.broken.get_or_insert(rule);
    }
}

impl Rings {
    /// No queue runs.
    pub fn reset(&mut self) {
        while let Some(live) = self.live.pop().or_else(|| self.kept.pop()) {
            self.retire(live);
        }
        self.unwatched.clear();
        self.blind = false;
    }

    fn retire(&mut self, mut live: Live) {
        self.spare.append(&mut live.flying);
        self.idle.push(live);
    }

    /// A paused queue is reset: its chains are its driver's again.
    pub fn forgotten(&mut self, index: u16) {
        if let Some(at) = self.kept.iter().position(|live| live.index == index) {
            let live = self.kept.swap_remove(at);
            self.retire(live);
        }
        self.unwatched.retain(|queue| *queue != index);
        self.blind &= !(self.live.is_empty() && self.unwatched.is_empty());
    }

    /// The worker is to go on with a queue that was paused with chains in flight. `false` where there is none.
    pub fn goes_on(&mut self, index: u16, state: &QueueState) -> bool {
        let Some(at) = self.kept.iter().position(|live| live.index == index) else { return false };
        let mut live = self.kept.swap_remove(at);
        let found = (state.desc_table, state.size, state.next_avail, state.next_used);
        if found != (live.desc, live.size, live.next_avail, live.next_used) {
            finding!("spec", "queue {index} is to go on at {found:x?}");
        }
        // All else the worker looks at anew, as at any start.
        live.ahead.clear();
        self.live.push(Live {
            published: live.next_used,
            seen: live.next_avail,
            half: false,
            broken: None,
            told: false,
            owed: 0,
            stopping: None,
            poised: false,
            ..live
        });
        true
    }

    /// The chains of paused queues that go on with them, each with its queue.
    pub fn kept_mut(&mut self) -> impl Iterator<Item = (u16, &mut Flying)> {
        self.kept.iter_mut().flat_map(|live| live.flying.iter_mut().map(|chain| (live.index, chain)))
    }

    /// Whether queue `index` is being reset, so that nothing is given back.
    #[must_use]
    pub fn abandons(&self, index: u16) -> bool {
        self.live(index).is_some_and(|live| live.stopping == Some(true))
    }

    /// Whether the device rewrites its own orders, so that nothing can be predicted.
    #[must_use]
    pub fn blind(&self) -> bool {
        self.blind
    }

    /// The running queue `index`.
    #[must_use]
    pub fn live(&self, index: u16) -> Option<&Live> {
        self.live.iter().find(|live| live.index == index)
    }

    pub(super) fn live_mut(&mut self, index: u16) -> Option<&mut Live> {
        self.live.iter_mut().find(|live| live.index == index)
    }

    /// The chains of queue `index` in flight, oldest first.
    #[must_use]
    pub fn flying(&self, index: u16) -> &[Flying] {
        self.live(index).map_or(&[], |live| &live.flying)
    }

    /// As [`flying`](Self::flying), to plan with.
    pub fn flying_mut(&mut self, index: u16) -> &mut [Flying] {
        self.live_mut(index).map_or(&mut [], |live| &mut live.flying)
    }

    /// The worker is given a queue. Whether the layout is one it has to accept.
    pub fn start(&mut self, ram: &Ram, index: u16, state: &QueueState, features: u64, (max_size, serial): (u16, bool)) {
        if self.live(index).is_some() {
            finding!("spec", "queue {index} is started while it runs");
        }
        self.unwatched.retain(|queue| *queue != index);
        let mut live = self.idle.pop().unwrap_or_default();
        let flying = std::mem::take(&mut live.flying);
        let mut ahead = std::mem::take(&mut live.ahead);
        ahead.clear();
        live = Live {
            index,
            size: state.size,
            packed: features & F_RING_PACKED != 0,
            indirect: features & F_INDIRECT_DESC != 0,
            event_idx: features & F_EVENT_IDX != 0,
            in_order: features & F_IN_ORDER != 0,
            desc: state.desc_table,
            avail: state.avail_ring,
            used: state.used_ring,
            next_avail: state.next_avail,
            next_used: state.next_used,
            published: state.next_used,
            seen: state.next_avail,
            flying,
            ahead,
            serial,
            ..Live::default()
        };
        if let Some(rule) = layout_error(ram, &live, max_size) {
            live.breaks(rule);
            live.dead = true;
        } else {
            let areas = live.areas();
            let others = self.live.iter().filter(|live| !live.dead).flat_map(Live::areas);
            let own = [(areas[0], areas[1]), (areas[0], areas[2]), (areas[1], areas[2])];
            self.blind |= own.iter().any(|(a, b)| overlap(*a, *b))
                || others.into_iter().any(|other| areas.iter().any(|area| overlap(*area, other)));
        }
        self.live.push(live);
    }

    /// The worker has been given queue `index`, whose chains it may be known to handle one by one.
    pub fn started(&mut self, index: u16) {
        if let Some(live) = self.live(index)
            && let (true, false, Some(rule)) = (live.dead, live.told, live.broken)
        {
            finding!("spec", "queue {index} is accepted with a bad {rule}");
        }
    }

    /// A worker has made `count` allocations of `bytes` bytes in one go. Vectors of ranges grow to the longest chain
    /// once, and messages are written.
    pub fn allocated(&self, queues: &[u16], count: u64, bytes: u64) {
        let sizes = self.live.iter().filter(|live| queues.contains(&live.index)).map(|live| u64::from(live.size));
        let size: u64 = sizes.sum::<u64>().max(16);
        let (most, most_bytes) = (256 + 16 * size, (160 << 10) + 64 * size * size);
        if count > most || bytes > most_bytes {
            finding!("resources", "queues {queues:?} of {size} entries made {count} allocations of {bytes} bytes");
        }
    }

    /// The device shall take no more chains of `queue`; with `abandon` it shall give none back either.
    pub fn stopping(&mut self, queue: u16, abandon: bool) {
        if let Some(live) = self.live_mut(queue) {
            live.stopping = Some(abandon);
        }
    }

    /// The worker has given up a queue, at `state` where it says so.
    /// Where requests may be kept (`may_hold`) it may go on with chains in flight.
    pub fn stopped(&mut self, index: u16, state: Option<QueueState>, abandoned: bool, may_hold: bool) {
        let Some(at) = self.live.iter().position(|live| live.index == index) else { return };
        let live = self.live.swap_remove(at);
        let is_held = |chain: &Flying| matches!(chain.plan, Plan::Blk(super::blk::Plan::Held(_)));
        let keeps = !abandoned && !self.blind && live.flying.iter().any(is_held);
        if live.dead && state.is_some() {
            finding!("spec", "queue {index} stops though it never started");
        }
        if let Some(state) = state.filter(|_| !abandoned && !self.blind && live.broken.is_none()) {
            // Chains that were taken ahead of their need are in the ring again.
            let again = live.flying.iter().filter(|_| !keeps);
            let back: u16 = again.map(|chain| if live.packed { chain.slots } else { 1 }).sum();
            let expected = match live.packed {
                true => packed::minus(live.next_avail, back, live.size),
                false => live.next_avail.wrapping_sub(back),
            };
            let found = (state.next_avail, state.next_used);
            if found != (expected, live.next_used) || live.published != live.next_used {
                finding!(
                    "spec",
                    "queue {index} stopped at {found:x?} where it stood at {:x?}, {:#x} published",
                    (expected, live.next_used),
                    live.published
                );
            }
        }
        match keeps {
            true => self.kept.push(live),
            false => self.retire(live),
        }
        if self.blind && !abandoned && may_hold {
            self.unwatched.push(index);
        }
        self.blind &= !(self.live.is_empty() && self.unwatched.is_empty());
    }

    /// The device interrupts the driver for `queue`.
    pub fn interrupted(&mut self, queue: u16) {
        if self.blind {
            return;
        }
        match self.live_mut(queue) {
            Some(live) if live.owed > 0 => live.owed -= 1,
            Some(_) => finding!("spec", "queue {queue} interrupts a driver that wants none, or has nothing new"),
            None => finding!("spec", "queue {queue} interrupts while it does not run"),
        }
    }

    /// The device asks for a reset because of `queue`.
    pub fn needs_reset(&mut self, queue: u16, reason: &str) {
        let blind = self.blind;
        let Some(live) = self.live_mut(queue) else {
            finding!("spec", "queue {queue} asks for a reset while it does not run: {reason}")
        };
        if live.broken.is_none() && !live.poised && !blind {
            finding!("spec", "queue {queue} asks for a reset though no rule is broken: {reason}");
        }
        if live.told && !blind {
            finding!("spec", "queue {queue} asks for a reset twice: {reason}");
        }
        live.told = true;
        live.breaks("what the device says");
    }

    /// The chain that was taken last is in the ring again, for its driver to rewrite.
    pub fn put_back(&mut self, index: u16) {
        if let Some(live) = self.live_mut(index)
            && let Some(chain) = live.flying.pop()
        {
            live.next_avail = chain.at;
            self.spare.push(chain);
        }
    }

    /// Whether queue `index` may ask for a reset: a rule is broken, as far as the device can have seen.
    #[must_use]
    pub fn may_refuse(&self, index: u16) -> bool {
        self.blind || self.live(index).is_some_and(|live| live.broken.is_some() || live.poised)
    }

    /// Whether the device would find something, if it looked at queue `index`.
    #[must_use]
    pub fn has_more(&self, ram: &Ram, index: u16) -> bool {
        self.live(index).is_some_and(|live| has_more(ram, live))
    }

    /// A worker's step has ended: nothing that it owes the driver is left.
    pub fn step_ended(&mut self, queues: &[u16], again: bool) {
        if self.blind {
            return;
        }
        for live in self.live.iter_mut().filter(|live| queues.contains(&live.index)) {
            live.steps = live.steps.wrapping_add(1);
            // What waits for its turn the guest may write over meanwhile.
            for chain in live.flying.iter_mut().filter(|chain| chain.leaving) {
                chain.shared = true;
            }
            if live.owed > 0 {
                finding!("spec", "queue {} publishes without the interrupt the driver asked for", live.index);
            }
            if let Some(rule) = live.broken.filter(|_| !live.told && !again) {
                finding!("spec", "queue {} hides a broken rule from its driver: {rule}", live.index);
            }
            if live.next_used != live.published {
                finding!("spec", "queue {} keeps used buffers unpublished", live.index);
            }
        }
    }

    /// The worker sleeps. `may_leave` says that chains may wait in the ring for something else than a kick.
    pub fn rests(&mut self, ram: &Ram, index: u16, may_leave: bool) {
        if self.blind || may_leave {
            return;
        }
        let Some(live) = self.live(index) else { return };
        if live.broken.is_none() && live.stopping.is_none() && has_more(ram, live) {
            finding!("spec", "queue {index} sleeps over an available chain at {:#x}", live.next_avail);
        }
    }

    /// The device reads (or is about to write).
    pub(super) fn read(&mut self, ram: &Ram, fetches: &mut Fetches, device: &mut Device, addr: u64, len: usize) {
        if self.blind {
            return;
        }
        for at in 0..self.live.len() {
            let live = &self.live[at];
            if live.dead {
                continue;
            }
            let popped = match live.packed {
                false => split::read(&mut self.live[at], ram, fetches, addr, len, &mut self.spare),
                true => packed::read(&mut self.live[at], ram, fetches, addr, len, &mut self.spare),
            };
            let live = &mut self.live[at];
            if live.packed && live.broken.is_some() && device.gives_back_unseen(live.index) {
                // Buffers may have gone back that a packed ring does not show yet, so the rule may hold.
                self.blind = true;
                return;
            }
            if let Some(mut chain) = popped {
                self.check_pop(at, &mut chain, fetches);
                if !self.blind {
                    device.popped(ram, self.live[at].index, &mut chain);
                }
                // Nothing tells which one the disk is asked for first.
                let is_twin = |other: &Flying| chain.head.or(other.head).is_none() && other.plan == chain.plan;
                let held = matches!(chain.plan, Plan::Blk(super::blk::Plan::Held(_)));
                self.blind |= held && self.live[at].flying.iter().any(is_twin);
                self.live[at].flying.push(chain);
            }
        }
    }

    fn check_pop(&mut self, at: usize, chain: &mut Flying, fetches: &mut Fetches) {
        let live = &mut self.live[at];
        if live.stopping.is_some() {
            finding!("spec", "queue {} takes a chain while it stops", live.index);
        }
        let ranges =
            |list: &[Range], area: (u64, u64)| list.iter().any(|&(addr, len)| overlap((addr, len.into()), area));
        let rings = self.live.iter().filter(|live| !live.dead).flat_map(Live::areas);
        let mut blind = false;
        for area in rings {
            blind |= ranges(&chain.writable, area) || ranges(&chain.readable, area);
        }
        self.blind |= blind;
        for live in &mut self.live {
            for other in &mut live.flying {
                let mut meets = false;
                for &(addr, len) in &other.writable {
                    let area = (addr, len.into());
                    meets |= ranges(&chain.writable, area) || ranges(&chain.readable, area);
                }
                for &(addr, len) in &other.readable {
                    meets |= ranges(&chain.writable, (addr, len.into()));
                }
                other.shared |= meets;
                chain.shared |= meets;
            }
        }
        // A byte that is part of two buffers, or of a buffer and the table, is read twice by right.
        for (i, &(addr, len)) in chain.readable.iter().enumerate() {
            let area = (addr, u64::from(len));
            let table = (chain.table.0, u64::from(chain.table.1));
            if ranges(&chain.readable[i + 1..], area) || overlap(table, area) {
                fetches.hold_still();
                chain.shared = true;
            }
        }
        // A chain may write over itself, too.
        for (i, &(addr, len)) in chain.writable.iter().enumerate() {
            let area = (addr, u64::from(len));
            chain.shared |= ranges(&chain.readable, area) || ranges(&chain.writable[i + 1..], area);
        }
    }

    /// The device has written.
    pub(super) fn wrote(&mut self, ram: &Ram, device: &mut Device, addr: u64, len: usize) {
        if self.blind {
            return;
        }
        for at in 0..self.live.len() {
            let live = &mut self.live[at];
            let areas = live.areas();
            if live.dead || !areas.iter().any(|area| overlap(*area, (addr, len as u64))) {
                continue;
            }
            let mut elements = std::mem::take(&mut self.elements);
            match live.packed {
                false => elements.extend(split::wrote(live, ram, addr, len)),
                true => packed::wrote(live, ram, addr, len, &mut elements),
            }
            for element in elements.drain(..) {
                self.give_back(at, ram, device, element);
            }
            self.elements = elements;
            return;
        }
        if !self.may_write(addr, len as u64) {
            finding!("spec", "{len} bytes are written to {addr:#x}, which no chain in flight offers");
        }
    }

    /// Whether a chain in flight offers the bytes to the device.
    #[must_use]
    pub fn may_write(&self, addr: u64, len: u64) -> bool {
        let inside = |&(at, size): &Range| at <= addr && addr + len <= at + u64::from(size);
        // While a reset waits, an engine may still fill what it was given.
        self.blind || self.live.iter().flat_map(|live| &live.flying).any(|chain| chain.writable.iter().any(inside))
    }

    /// Whether a chain in flight offers the bytes to be read.
    #[must_use]
    pub fn may_read(&self, addr: u64, len: u64) -> bool {
        let inside = |&(at, size): &Range| at <= addr && addr + len <= at + u64::from(size);
        self.blind || self.live.iter().flat_map(|live| &live.flying).any(|chain| chain.readable.iter().any(inside))
    }

    fn give_back(&mut self, at: usize, ram: &Ram, device: &mut Device, (id, len): (u32, u32)) {
        let live = &mut self.live[at];
        let index = live.index;
        if live.stopping == Some(true) {
            finding!("spec", "queue {index} gives buffer {id} back after its reset began");
        }
        let Some(place) = live.flying.iter().position(|chain| u32::from(chain.id) == id) else {
            finding!("spec", "queue {index} gives buffer {id} back, which it does not have")
        };
        if live.in_order && place != 0 {
            finding!("spec", "queue {index} gives buffer {id} back before {}", live.flying[0].id);
        }
        let mut chain = live.flying.remove(place);
        if u64::from(len) > chain.writable_bytes {
            finding!("spec", "queue {index}: used length {len} of buffer {id} with {} bytes", chain.writable_bytes);
        }
        live.next_used = match live.packed {
            false => live.next_used.wrapping_add(1),
            true => packed::plus(live.next_used, chain.slots, live.size),
        };
        device.used(ram, index, &mut chain, len);
        chain.plan = Plan::Open;
        chain.rest.clear();
        self.spare.push(chain);
    }
}

/// The rule the place and size of a ring break.
fn layout_error(ram: &Ram, live: &Live, max_size: u16) -> Option<&'static str> {
    let Live { size, packed, desc, avail, used, .. } = *live;
    if size == 0 || size > max_size || !(packed || size.is_power_of_two()) {
        return Some("queue size");
    }
    let align = if packed { 4 } else { 2 };
    if !desc.is_multiple_of(16) || !avail.is_multiple_of(align) || !used.is_multiple_of(4) {
        return Some("ring alignment");
    }
    if live.areas().iter().any(|&(addr, len)| !ram.has(addr, len)) {
        return Some("ring outside memory");
    }
    let outside = |position: u16| position & 0x7fff >= size;
    (packed && (outside(live.next_avail) || outside(live.next_used))).then_some("saved position")
}

/// Whether the device would find a chain, or a broken rule, if it looked.
fn has_more(ram: &Ram, live: &Live) -> bool {
    match live.packed {
        false => ram.word(live.avail + 2, 2) as u16 != live.next_avail,
        true => packed::available(live, ram, live.next_avail),
    }
}

/// What walking a chain has found.
#[derive(Default)]
pub(super) struct Walk {
    descriptors: u32,
    total: u64,
    writable_seen: bool,
}

impl Walk {
    /// Adds one direct descriptor.
    pub(super) fn add(
        &mut self,
        ram: &Ram,
        size: u16,
        chain: &mut Flying,
        (addr, len, write): (u64, u32, bool),
    ) -> Result<(), &'static str> {
        self.descriptors += 1;
        self.total += u64::from(len);
        if self.descriptors > size.into() {
            return Err("chain longer than the queue");
        }
        if self.writable_seen && !write {
            return Err("readable after writable");
        }
        self.writable_seen |= write;
        if self.total > 1 << 32 {
            return Err("more than 4 GiB");
        }
        if len == 0 {
            return Ok(());
        }
        if !ram.has(addr, len.into()) {
            return Err("buffer outside memory");
        }
        let (list, bytes) = match write {
            false => (&mut chain.readable, &mut chain.readable_bytes),
            true => (&mut chain.writable, &mut chain.writable_bytes),
        };
        list.push((addr, len));
        *bytes += u64::from(len);
        Ok(())
    }

    pub(super) fn descriptors(&self) -> u16 {
        self.descriptors as u16
    }
}

/// Whether the table of a chain lies over a ring: its words are read for two purposes then.
pub(super) fn table_in_ring(live: &Live, chain: &Flying) -> bool {
    let table = (chain.table.0, u64::from(chain.table.1));
    table.1 > 0 && live.areas().iter().any(|area| overlap(*area, table))
}

/// A descriptor as memory has it now.
pub(super) fn descriptor(ram: &Ram, addr: u64) -> Descriptor {
    let mut bytes = [0; 16];
    ram.peek(addr, &mut bytes);
    Descriptor::from_bytes(bytes)
}

/// A chain to fill.
pub(super) fn fresh(spare: &mut Vec<Flying>) -> Flying {
    let mut chain = spare.pop().unwrap_or_default();
    chain.readable.clear();
    chain.writable.clear();
    Flying { readable: chain.readable, writable: chain.writable, ..Flying::default() }
}
