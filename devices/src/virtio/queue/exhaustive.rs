//! Every ring of up to four entries with every shape of chain of up to three descriptors: no sample, all of them.
//!
//! The memory decides what a word says when the queue reads it, and the search tries every decision. What was read is
//! then given to a model of the rules, which must come to the same verdict. Words behind the third descriptor say
//! something harmless.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::Ordering;

use super::*;
use crate::virtio::QueueState;

const DESC: u64 = 0x1000;
const AVAIL: u64 = 0x2000;
const USED: u64 = 0x3000;
const TABLE: u64 = 0x4000;
const DATA: u64 = 0x5000;
const RAM: u64 = 0x1_0000;
/// Free decisions about descriptors a run.
const DEPTH: usize = 3;

const NEXT: u16 = Descriptor::NEXT;
const WRITE: u16 = Descriptor::WRITE;
const INDIRECT: u16 = Descriptor::INDIRECT;
const AVAIL_FLAG: u16 = 1 << 7;
const USED_FLAG: u16 = 1 << 15;

/// A walk through a tree of decisions: each run follows `path` and takes the first branch beyond it.
#[derive(Default)]
struct Search {
    path: RefCell<Vec<(usize, usize)>>,
    at: Cell<usize>,
}

impl Search {
    /// One of `count` branches.
    fn choose(&self, count: usize) -> usize {
        let mut path = self.path.borrow_mut();
        let at = self.at.get();
        self.at.set(at + 1);
        if at == path.len() {
            path.push((0, count));
        }
        assert_eq!(path[at].1, count, "the run is not repeatable");
        path[at].0
    }

    /// To the next path; `false` after the last.
    fn advance(&self) -> bool {
        self.at.set(0);
        let mut path = self.path.borrow_mut();
        while let Some((branch, count)) = path.pop() {
            if branch + 1 < count {
                path.push((branch + 1, count));
                return true;
            }
        }
        false
    }
}

struct Memory<'s> {
    search: &'s Search,
    size: u16,
    packed: bool,
    decided: Cell<usize>,
    /// What was read where: words of 64 bits and descriptors.
    words: RefCell<BTreeMap<u64, u64>>,
    descriptors: RefCell<BTreeMap<u64, Descriptor>>,
    short: RefCell<BTreeMap<u64, u16>>,
    long_stores: RefCell<Vec<(u64, u64)>>,
    used: RefCell<Vec<(u64, u32, u32)>>,
    twice: Cell<bool>,
}

impl<'s> Memory<'s> {
    fn new(search: &'s Search, size: u16, packed: bool) -> Self {
        Self {
            search,
            size,
            packed,
            decided: Cell::new(0),
            words: RefCell::default(),
            descriptors: RefCell::default(),
            short: RefCell::default(),
            long_stores: RefCell::default(),
            used: RefCell::default(),
            twice: Cell::new(false),
        }
    }

    /// Whether one more descriptor may be anything.
    fn is_free(&self) -> bool {
        self.decided.set(self.decided.get() + 1);
        self.decided.get() <= DEPTH
    }

    /// Length and flags of any descriptor.
    fn shape(&self) -> (u32, u16) {
        let flags = self.search.choose(8) as u16;
        let len = if flags & INDIRECT != 0 {
            [0, 16, 24, 32, 16 * (u32::from(self.size) + 1)][self.search.choose(5)]
        } else {
            [16, 0][self.search.choose(2)]
        };
        (len, flags)
    }

    fn address(&self, flags: u16) -> u64 {
        let inside = if flags & INDIRECT != 0 { TABLE } else { DATA };
        [inside, RAM - 8][self.search.choose(2)]
    }

    /// What is at `addr`, for the model: decided now where the queue did not look.
    fn peek(&self, addr: u64) -> Descriptor {
        let read = self.descriptors.borrow().get(&addr).copied();
        read.unwrap_or_else(|| self.read_descriptor(addr).unwrap())
    }

    /// An entry of a table: of the split ring, or an indirect one of either format.
    fn entry(&self) -> Descriptor {
        if !self.is_free() {
            return Descriptor { addr: DATA, len: 16, flags: 0, next: 0 };
        }
        let (len, flags) = self.shape();
        let addr = self.address(flags);
        if self.packed {
            return Descriptor { addr, len, flags: 0, next: flags };
        }
        let next = if flags & NEXT != 0 { self.search.choose(usize::from(self.size) + 1) as u16 } else { 0 };
        Descriptor { addr, len, flags, next }
    }
}

impl RingMem for Memory<'_> {
    fn load_u16(&self, addr: u64, _order: Ordering) -> Result<u16, OutsideMemory> {
        Ok(self.short.borrow().get(&addr).copied().unwrap_or(0))
    }
    fn store_u16(&self, addr: u64, value: u16, _order: Ordering) -> Result<(), OutsideMemory> {
        self.short.borrow_mut().insert(addr, value);
        Ok(())
    }
    fn load_u64(&self, addr: u64, _order: Ordering) -> Result<u64, OutsideMemory> {
        if let Some(word) = self.words.borrow().get(&addr) {
            // Set by the test, or read before.
            return Ok(*word);
        }
        let word = if addr.is_multiple_of(16) {
            let tail = self.words.borrow().get(&(addr + 8)).copied().unwrap_or(0);
            self.address((tail >> 48) as u16)
        } else if self.is_free() {
            let (len, flags) = self.shape();
            let lap = [AVAIL_FLAG, USED_FLAG, 0, AVAIL_FLAG | USED_FLAG][self.search.choose(4)];
            let id = self.search.choose(2) as u64;
            u64::from(len) | id << 32 | u64::from(flags | lap) << 48
        } else {
            16 | u64::from(AVAIL_FLAG) << 48
        };
        self.words.borrow_mut().insert(addr, word);
        Ok(word)
    }
    fn store_u64(&self, addr: u64, value: u64, _order: Ordering) -> Result<(), OutsideMemory> {
        self.long_stores.borrow_mut().push((addr, value));
        Ok(())
    }
    fn read_descriptor(&self, addr: u64) -> Result<Descriptor, OutsideMemory> {
        let desc = self.entry();
        if self.descriptors.borrow_mut().insert(addr, desc).is_some() {
            self.twice.set(true);
        }
        Ok(desc)
    }
    fn write_used(&self, addr: u64, id: u32, len: u32) -> Result<(), OutsideMemory> {
        self.used.borrow_mut().push((addr, id, len));
        Ok(())
    }
    fn contains(&self, addr: u64, len: u64) -> bool {
        addr.checked_add(len).is_some_and(|end| end <= RAM)
    }
}

/// What the rules make of a list of buffers: address, length, whether writable.
fn judge(memory: &Memory, buffers: &[(u64, u32, bool)]) -> Option<(Vec<GuestRange>, Vec<GuestRange>)> {
    let writable = buffers.iter().position(|buffer| buffer.2).unwrap_or(buffers.len());
    let sorted = buffers[writable..].iter().all(|buffer| buffer.2);
    let inside = buffers.iter().all(|buffer| buffer.1 == 0 || memory.contains(buffer.0, buffer.1.into()));
    let ranges = |part: &[(u64, u32, bool)]| {
        part.iter().filter(|it| it.1 > 0).map(|&(addr, len, _)| GuestRange { addr, len }).collect::<Vec<_>>()
    };
    let legal = sorted && inside && buffers.len() <= usize::from(memory.size);
    legal.then(|| (ranges(&buffers[..writable]), ranges(&buffers[writable..])))
}

/// A table that an indirect descriptor may name.
fn table_entries(memory: &Memory, addr: u64, len: u32) -> Option<u32> {
    let whole = len.is_multiple_of(16) && (1..=u32::from(memory.size)).contains(&(len / 16));
    (whole && memory.contains(addr, len.into())).then_some(len / 16)
}

/// The model for split rings (§2.7).
fn split_model(memory: &Memory, head: u16, indirect: bool) -> Option<(Vec<GuestRange>, Vec<GuestRange>)> {
    let mut buffers = Vec::new();
    let (mut table, mut entries, mut index) = (DESC, u32::from(memory.size), u32::from(head));
    let mut seen = BTreeSet::new();
    loop {
        if index >= entries || !seen.insert((table, index)) {
            return None;
        }
        let desc = memory.peek(table + 16 * u64::from(index));
        if desc.flags & INDIRECT != 0 {
            if !indirect || table != DESC || desc.flags & NEXT != 0 {
                return None;
            }
            entries = table_entries(memory, desc.addr, desc.len)?;
            (table, index) = (desc.addr, 0);
            continue;
        }
        buffers.push((desc.addr, desc.len, desc.flags & WRITE != 0));
        // No good buffer makes up for a bad one.
        let parts = judge(memory, &buffers)?;
        if desc.flags & NEXT == 0 {
            return Some(parts);
        }
        index = desc.next.into();
    }
}

#[test]
fn every_small_split_ring_is_popped_as_the_model_says() {
    let (mut runs, mut good) = (0u64, 0u64);
    for size in [1u16, 2, 4] {
        for (head, indirect) in (0..=size).map(|head| (head, true)).chain([(0, false)]) {
            let search = Search::default();
            loop {
                let memory = Memory::new(&search, size, false);
                memory.short.borrow_mut().extend([(AVAIL + 2, 1), (AVAIL + 4, head)]);
                let features = if indirect { F_INDIRECT_DESC } else { 0 };
                let state =
                    QueueState { size, desc_table: DESC, avail_ring: AVAIL, used_ring: USED, ..Default::default() };
                let mut queue = Queue::new(&memory, &state, features, size).unwrap();
                let popped = queue.pop(&memory);
                assert!(!memory.twice.get(), "a descriptor was read twice");
                runs += 1;
                match (popped, split_model(&memory, head, indirect)) {
                    (Ok(Some(chain)), Some((readable, writable))) => {
                        good += 1;
                        assert_eq!((chain.readable(), chain.writable()), (&*readable, &*writable));
                        let len = chain.writable_bytes();
                        queue.push(&memory, chain, len).unwrap();
                        assert!(queue.publish(&memory).unwrap());
                        assert_eq!(*memory.used.borrow(), [(USED + 4, head.into(), len as u32)]);
                        assert_eq!(memory.short.borrow().get(&(USED + 2)), Some(&1));
                    }
                    (Err(_), None) => assert_eq!((queue.state(), queue.in_flight()), (state, 0)),
                    (popped, model) => {
                        let text = format!("{size} {head} {indirect}: {:?}", memory.descriptors.borrow());
                        panic!("{text}: the queue says {popped:?}, the model {model:?}");
                    }
                }
                if !search.advance() {
                    break;
                }
            }
        }
    }
    println!("{runs} rings, {good} of them with a valid chain");
    assert!(runs > 100_000 && good > 1000);
}

/// The model for packed rings (§2.8), from slot `at` of a lap with counter `wrap` on, with `free` slots not in flight:
/// the parts, the buffer id and the slots. `None` for a fault; `Some(None)` for an empty ring.
#[allow(clippy::type_complexity)]
fn packed_model(
    memory: &Memory,
    (mut at, mut wrap): (u16, bool),
    free: u16,
    busy: &[u16],
    indirect: bool,
) -> Option<Option<(Vec<GuestRange>, Vec<GuestRange>, u16, u16)>> {
    let word = |addr| memory.load_u64(addr, Ordering::Relaxed).unwrap();
    let mut buffers = Vec::new();
    for slots in 1.. {
        if slots > 1 && slots > free {
            return None;
        }
        let tail = word(DESC + 16 * u64::from(at) + 8);
        let (len, id, flags) = (tail as u32, (tail >> 32) as u16, (tail >> 48) as u16);
        let available = (flags & AVAIL_FLAG != 0) == wrap && (flags & USED_FLAG != 0) != wrap;
        if !available {
            return if slots == 1 { Some(None) } else { None };
        }
        if slots > free {
            return None;
        }
        let addr = word(DESC + 16 * u64::from(at));
        let last = if flags & INDIRECT != 0 {
            if !indirect || slots > 1 || flags & NEXT != 0 {
                return None;
            }
            for index in 0..table_entries(memory, addr, len)? {
                let entry = memory.peek(addr + 16 * u64::from(index));
                buffers.push((entry.addr, entry.len, entry.next & WRITE != 0));
                judge(memory, &buffers)?;
            }
            true
        } else {
            buffers.push((addr, len, flags & WRITE != 0));
            judge(memory, &buffers)?;
            flags & NEXT == 0
        };
        if last {
            let (readable, writable) = judge(memory, &buffers)?;
            return (!busy.contains(&id)).then_some(Some((readable, writable, id, slots)));
        }
        at += 1;
        if at == memory.size {
            (at, wrap) = (0, !wrap);
        }
    }
    None
}

#[test]
fn every_small_packed_ring_is_popped_as_the_model_says() {
    let (mut runs, mut good) = (0u64, 0u64);
    for size in 1..=4u16 {
        // From every place of both laps, with every number of slots in flight; the tables once.
        for place in 0..2 * size {
            for busy_slots in 0..=size {
                let indirect = place == 0 || busy_slots == size;
                let search = Search::default();
                loop {
                    let memory = Memory::new(&search, size, true);
                    let (index, wrap) = (place % size, place < size);
                    let next = index | if wrap { 1 << 15 } else { 0 };
                    let state = QueueState {
                        size,
                        desc_table: DESC,
                        avail_ring: AVAIL,
                        used_ring: USED,
                        next_avail: next,
                        next_used: next,
                    };
                    let features = F_RING_PACKED | if indirect { F_INDIRECT_DESC } else { 0 };
                    let mut queue = Queue::new(&memory, &state, features, size).unwrap();
                    // Chains of one slot that stay in flight; the first has an id that others may claim, too.
                    let mut flying = Vec::new();
                    let (mut at, mut lap) = (index, wrap);
                    for nth in 0..busy_slots {
                        let flags = if lap { AVAIL_FLAG } else { USED_FLAG };
                        let id = if nth == 0 { 1 } else { 40 + u64::from(nth) };
                        let slot = DESC + 16 * u64::from(at);
                        memory
                            .words
                            .borrow_mut()
                            .extend([(slot, DATA), (slot + 8, 16 | id << 32 | u64::from(flags) << 48)]);
                        flying.push(queue.pop(&memory).unwrap().unwrap());
                        memory.words.borrow_mut().clear();
                        at += 1;
                        if at == size {
                            (at, lap) = (0, !lap);
                        }
                    }
                    let busy: &[u16] = if busy_slots > 0 { &[1] } else { &[] };
                    let before = queue.state();
                    let popped = queue.pop(&memory);
                    assert!(!memory.twice.get(), "a descriptor was read twice");
                    runs += 1;
                    match (popped, packed_model(&memory, (at, lap), size - busy_slots, busy, indirect)) {
                        (Ok(Some(chain)), Some(Some((readable, writable, id, slots)))) => {
                            good += 1;
                            assert_eq!((chain.readable(), chain.writable()), (&*readable, &*writable));
                            assert!(chain.head() < size);
                            let len = chain.writable_bytes();
                            queue.push(&memory, chain, len).unwrap();
                            queue.publish(&memory).unwrap();
                            let flags = if wrap { AVAIL_FLAG | USED_FLAG } else { 0 } | if len > 0 { WRITE } else { 0 };
                            let used = len | u64::from(id) << 32 | u64::from(flags) << 48;
                            assert_eq!(*memory.long_stores.borrow(), [(DESC + 16 * u64::from(index) + 8, used)]);
                            let steps = queue.state().next_used & 0x7fff;
                            assert_eq!(steps, (index + slots) % size);
                        }
                        (Ok(None), Some(None)) => assert_eq!(queue.state(), before),
                        (Err(_), None) => {
                            assert_eq!((queue.state(), queue.in_flight()), (before, busy_slots));
                        }
                        (popped, model) => {
                            let text = format!("{size} {place} {busy_slots}: {:x?}", memory.words.borrow());
                            panic!("{text}: the queue says {popped:?}, the model {model:?}");
                        }
                    }
                    flying.into_iter().for_each(Chain::abandon);
                    if !search.advance() {
                        break;
                    }
                }
            }
        }
    }
    println!("{runs} rings, {good} of them with a valid chain");
    assert!(runs > 100_000 && good > 1000);
}
