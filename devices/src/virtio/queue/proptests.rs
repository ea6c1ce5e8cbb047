//! Pop against rings of any content, judged by a model that reads the same snapshot the slow way.

use std::cell::RefCell;
use std::collections::HashMap;
use std::sync::atomic::Ordering;

use proptest::prelude::*;
use vm_memory::{Bytes, GuestAddress};

use super::*;
use crate::GuestRam;
use crate::virtio::QueueState;
use crate::virtio::testing::guest_ram;

const SIZE: u16 = 8;
const RAM: u64 = 0x1_0000;
const DESC: u64 = 0x1000;
const AVAIL: u64 = 0x2000;
const USED: u64 = 0x3000;
/// Where indirect tables are, far from the rings: the model counts reads by address.
const TABLES: u64 = 0x8000;

/// Memory that answers a second read of a descriptor with something else: whoever reads twice is found out, either by
/// the count or by a result that no snapshot explains.
struct Fickle {
    mem: GuestRam,
    reads: RefCell<HashMap<u64, usize>>,
}

impl RingMem for Fickle {
    fn load_u16(&self, addr: u64, order: Ordering) -> Result<u16, OutsideMemory> {
        self.mem.load_u16(addr, order)
    }
    fn store_u16(&self, addr: u64, value: u16, order: Ordering) -> Result<(), OutsideMemory> {
        self.mem.store_u16(addr, value, order)
    }
    fn load_u64(&self, addr: u64, order: Ordering) -> Result<u64, OutsideMemory> {
        self.mem.load_u64(addr, order)
    }
    fn store_u64(&self, addr: u64, value: u64, order: Ordering) -> Result<(), OutsideMemory> {
        self.mem.store_u64(addr, value, order)
    }
    fn read_descriptor(&self, addr: u64) -> Result<Descriptor, OutsideMemory> {
        let mut reads = self.reads.borrow_mut();
        let count = reads.entry(addr).or_default();
        *count += 1;
        let desc = self.mem.read_descriptor(addr)?;
        Ok(if *count > 1 { Descriptor { addr: !desc.addr, flags: desc.flags ^ 3, ..desc } } else { desc })
    }
    fn write_used(&self, addr: u64, id: u32, len: u32) -> Result<(), OutsideMemory> {
        self.mem.write_used(addr, id, len)
    }
    fn contains(&self, addr: u64, len: u64) -> bool {
        self.mem.contains(addr, len)
    }
}

/// What virtio 1.3 §2.7 makes of the chain at `head`: its readable and writable parts, or `None` where it breaks a rule.
fn model(mem: &GuestRam, head: u16, indirect: bool) -> Option<(Vec<GuestRange>, Vec<GuestRange>)> {
    let entry = |table: u64, index: u64| mem.read_descriptor(table + 16 * index).unwrap();
    let mut chain = Vec::new();
    let mut tables = vec![(DESC, u64::from(SIZE), u64::from(head))];
    while let Some((table, entries, mut index)) = tables.pop() {
        let mut seen = Vec::new();
        loop {
            if index >= entries || seen.contains(&index) {
                return None;
            }
            seen.push(index);
            let desc = entry(table, index);
            if desc.flags & Descriptor::INDIRECT != 0 {
                let entries = u64::from(desc.len) / 16;
                let fits = desc.len % 16 == 0 && (1..=u64::from(SIZE)).contains(&entries);
                let alone = desc.flags & Descriptor::NEXT == 0 && table == DESC;
                if !indirect || !fits || !alone || !mem.contains(desc.addr, desc.len.into()) {
                    return None;
                }
                tables.push((desc.addr, entries, 0));
                break;
            }
            chain.push(desc);
            if desc.flags & Descriptor::NEXT == 0 {
                break;
            }
            index = desc.next.into();
        }
    }
    let is_write = |desc: &Descriptor| desc.flags & Descriptor::WRITE != 0;
    let readable = chain.iter().take_while(|desc| !is_write(desc)).count();
    let total: u64 = chain.iter().map(|desc| u64::from(desc.len)).sum();
    let inside = |desc: &Descriptor| desc.len == 0 || mem.contains(desc.addr, desc.len.into());
    let legal = chain.len() <= usize::from(SIZE)
        && chain[readable..].iter().all(is_write)
        && total <= 1 << 32
        && chain.iter().all(inside);
    let ranges = |part: &[Descriptor]| {
        part.iter().filter(|desc| desc.len > 0).map(|desc| GuestRange { addr: desc.addr, len: desc.len }).collect()
    };
    legal.then(|| (ranges(&chain[..readable]), ranges(&chain[readable..])))
}

/// Descriptors that are mostly good, so that chains get long, and bad in every field now and then.
fn descriptor() -> impl Strategy<Value = Descriptor> {
    let addr = prop_oneof![
        8 => 0u64..RAM,
        6 => (0u64..4).prop_map(|table| TABLES + table * 0x100),
        1 => any::<u64>(),
        1 => RAM - 32..RAM + 32,
    ];
    let len = prop_oneof![
        6 => 0u32..64,
        4 => (1u32..10).prop_map(|entries| entries * 16),
        1 => any::<u32>(),
    ];
    let flags = prop_oneof![6 => Just(1u16), 3 => Just(3), 2 => Just(0), 2 => Just(2), 4 => Just(4), 1 => any::<u16>()];
    let next = prop_oneof![12 => 0..SIZE, 1 => any::<u16>()];
    (addr, len, flags, next).prop_map(|(addr, len, flags, next)| {
        // Tables stay away from the rings and from other tables' insides, see `TABLES`.
        let addr = if flags & Descriptor::INDIRECT != 0 && addr < TABLES { TABLES + (addr & 0x300) } else { addr };
        let addr = if flags & Descriptor::INDIRECT != 0 && addr < RAM { addr & !0xff } else { addr };
        Descriptor { addr, len, flags, next }
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 600, ..ProptestConfig::default() })]

    #[test]
    fn pop_agrees_with_the_model_and_reads_each_descriptor_once(
        table in prop::collection::vec(descriptor(), usize::from(SIZE)),
        tables in prop::collection::vec(descriptor(), 4 * 16),
        heads in prop::collection::vec(prop_oneof![15 => 0..SIZE, 1 => any::<u16>()], usize::from(SIZE)),
        jump in prop_oneof![12 => 0..=SIZE, 1 => any::<u16>()],
        start in any::<u16>(),
        indirect in prop::bool::weighted(0.9),
        event_idx in any::<bool>(),
    ) {
        let mem = guest_ram(RAM as usize);
        for (i, desc) in table.iter().enumerate() {
            mem.write_slice(&desc.to_bytes(), GuestAddress(DESC + 16 * i as u64)).unwrap();
        }
        for (i, desc) in tables.iter().enumerate() {
            let at = TABLES + 0x100 * (i as u64 / 16) + 16 * (i as u64 % 16);
            mem.write_slice(&desc.to_bytes(), GuestAddress(at)).unwrap();
        }
        for (i, head) in heads.iter().enumerate() {
            let slot = u64::from(start.wrapping_add(i as u16) % SIZE);
            mem.store_u16(AVAIL + 4 + 2 * slot, *head, Ordering::Relaxed).unwrap();
        }
        mem.store_u16(AVAIL + 2, start.wrapping_add(jump), Ordering::Relaxed).unwrap();
        let state = QueueState {
            size: SIZE, desc_table: DESC, avail_ring: AVAIL, used_ring: USED, next_avail: start, next_used: start,
        };
        let features = if indirect { F_INDIRECT_DESC } else { 0 } | if event_idx { F_EVENT_IDX } else { 0 };
        let mut queue = Queue::new(&mem, &state, features, SIZE).unwrap();

        let mut in_flight: Vec<Chain> = Vec::new();
        #[allow(clippy::needless_range_loop, reason = "the last round finds the ring empty")]
        for popped in 0..=usize::from(SIZE) {
            let fickle = Fickle { mem: mem.clone(), reads: RefCell::default() };
            let result = queue.pop(&fickle);
            prop_assert!(fickle.reads.borrow().values().all(|&count| count == 1), "a descriptor was read twice");
            prop_assert!(fickle.reads.borrow().len() <= 2 * usize::from(SIZE) + 1);
            if jump > SIZE {
                let index = start.wrapping_add(jump);
                prop_assert_eq!(result.unwrap_err(), QueueError::IndexJump { index, next: start, size: SIZE });
                break;
            }
            if popped == usize::from(jump) {
                prop_assert!(result.unwrap().is_none());
                break;
            }
            let head = heads[popped];
            let fresh = in_flight.iter().all(|chain| chain.head() != head);
            let expected = if head < SIZE && fresh { model(&mem, head, indirect) } else { None };
            match (result, expected) {
                (Ok(Some(chain)), Some((readable, writable))) => {
                    prop_assert_eq!(chain.head(), head);
                    prop_assert_eq!(chain.readable(), readable);
                    prop_assert_eq!(chain.writable(), writable);
                    in_flight.push(chain);
                }
                (Err(_), None) => {
                    prop_assert_eq!(queue.state().next_avail, start.wrapping_add(popped as u16));
                    break;
                }
                (result, expected) => {
                    let text = format!("the queue says {result:?}, the model {expected:?}");
                    result.into_iter().flatten().for_each(Chain::abandon);
                    in_flight.drain(..).for_each(Chain::abandon);
                    prop_assert!(false, "{}", text);
                }
            }
        }
        // Everything popped can be returned, in reverse order, and is seen once.
        let count = in_flight.len() as u16;
        for chain in in_flight.drain(..).rev() {
            queue.push(&mem, chain, 0).unwrap();
        }
        queue.publish(&mem).unwrap();
        prop_assert_eq!(queue.in_flight(), 0);
        let index = mem.load_u16(USED + 2, Ordering::Relaxed).unwrap();
        prop_assert_eq!(index, if count > 0 { start.wrapping_add(count) } else { 0 });
    }

}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    #[test]
    fn rings_of_noise_never_panic(noise in prop::collection::vec(any::<u8>(), 0x400), next in any::<u16>()) {
        let mem = guest_ram(RAM as usize);
        mem.write_slice(&noise, GuestAddress(0x1000)).unwrap();
        // All three rings overlap each other, and the noise.
        let state = QueueState {
            size: 16, desc_table: 0x1000, avail_ring: 0x1100, used_ring: 0x1180, next_avail: next, next_used: next,
        };
        let mut queue = Queue::new(&mem, &state, F_INDIRECT_DESC | F_EVENT_IDX, 16).unwrap();
        for _ in 0..40 {
            match queue.pop(&mem) {
                Ok(Some(chain)) => {
                    prop_assert!(chain.readable().len() + chain.writable().len() <= 16);
                    queue.push(&mem, chain, 0).unwrap();
                    queue.publish(&mem).unwrap();
                }
                Ok(None) => { queue.enable_kicks(&mem).unwrap(); }
                Err(_) => break,
            }
        }
    }

    #[test]
    fn packed_rings_of_noise_never_panic_and_never_hold_more_than_the_ring(
        noise in prop::collection::vec(any::<u8>(), 0x400),
        size in 1u16..=16,
        // Available in the first lap, in the second, or noise: pure noise is seldom available.
        laps in prop::collection::vec(prop_oneof![3 => Just(Some(0x0080u16)), 1 => Just(Some(0x8000)), 1 => Just(None)], 16),
        order in any::<bool>(),
    ) {
        let mem = guest_ram(RAM as usize);
        mem.write_slice(&noise, GuestAddress(0x1000)).unwrap();
        for (i, lap) in laps.iter().enumerate() {
            if let Some(lap) = lap {
                let at = GuestAddress(0x1000 + 16 * i as u64 + 14);
                let flags: u16 = mem.read_obj(at).unwrap();
                mem.write_obj(flags & 7 | lap, at).unwrap();
                // Addresses inside memory, for most.
                mem.write_obj(u64::from(flags), GuestAddress(0x1000 + 16 * i as u64)).unwrap();
                mem.write_obj(u32::from(flags & 0x3f0), GuestAddress(0x1000 + 16 * i as u64 + 8)).unwrap();
            }
        }
        let next = QueueState::PACKED_START;
        let state = QueueState {
            size, desc_table: 0x1000, avail_ring: 0x1180, used_ring: 0x1184, next_avail: next, next_used: next,
        };
        let features = F_RING_PACKED | F_INDIRECT_DESC | F_EVENT_IDX | if order { F_IN_ORDER } else { 0 };
        let mut queue = Queue::new(&mem, &state, features, 16).unwrap();
        let mut flying: Vec<Chain> = Vec::new();
        for round in 0..40 {
            match queue.pop(&mem) {
                Ok(Some(chain)) => {
                    prop_assert!(chain.readable().len() + chain.writable().len() <= usize::from(size));
                    prop_assert!(flying.iter().all(|other| other.head() != chain.head()));
                    flying.push(chain);
                }
                Ok(None) => { queue.enable_kicks(&mem).unwrap(); }
                Err(_) => break,
            }
            prop_assert!(queue.in_flight() <= size);
            if round % 3 == 0 && let Some(chain) = flying.pop() {
                queue.push(&mem, chain, 0).unwrap();
                queue.publish(&mem).unwrap();
            }
        }
        for chain in flying.drain(..) {
            queue.push(&mem, chain, 0).unwrap();
        }
        queue.publish(&mem).unwrap();
        prop_assert_eq!(queue.in_flight(), 0);
    }
}

/// A table as drivers post it: buffers of one kind and then of the other, each followed by the next.
fn long_table() -> impl Strategy<Value = Vec<Descriptor>> {
    let lens = prop::collection::vec((0u64..RAM - 0x1000, 1u32..0x1000), 6..=32);
    (lens, 0usize..32).prop_map(|(buffers, readable)| {
        let count = buffers.len();
        let describe = |(at, (addr, len)): (usize, (u64, u32))| {
            let next = if at + 1 < count { Descriptor::NEXT } else { 0 };
            let write = if at < readable { 0 } else { Descriptor::WRITE };
            Descriptor { addr, len, flags: next | write, next: at as u16 + 1 }
        };
        buffers.into_iter().enumerate().map(describe).collect()
    })
}

/// Something that is wrong with one of its descriptors, or rare.
fn flaw() -> impl Strategy<Value = (usize, fn(&mut Descriptor))> {
    let flaws: [fn(&mut Descriptor); 10] = [
        |desc| desc.len = 0,
        |desc| desc.addr = RAM.wrapping_sub(desc.len.into()),
        |desc| desc.addr = RAM.wrapping_sub(desc.len.into()).wrapping_add(1),
        |desc| desc.addr = u64::MAX - 1,
        |desc| desc.len = u32::MAX,
        |desc| desc.flags ^= Descriptor::WRITE,
        |desc| desc.flags ^= Descriptor::NEXT,
        |desc| desc.flags ^= Descriptor::INDIRECT,
        |desc| desc.next = desc.next.wrapping_sub(3),
        |desc| desc.next = desc.next.wrapping_add(2),
    ];
    (0usize..32, prop::sample::select(flaws.to_vec()))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]

    #[test]
    fn a_long_table_is_the_same_chain_however_its_descriptors_are_reached(
        plain in long_table(),
        mut flawed in long_table(),
        flaws in prop::collection::vec(flaw(), 0..3),
        size in prop::sample::select(vec![32u16, 64]),
    ) {
        for (at, flaw) in flaws {
            let at = at % flawed.len();
            flaw(&mut flawed[at]);
        }
        let mem = guest_ram(RAM as usize);
        for (head, table) in [&plain, &flawed].into_iter().enumerate() {
            let at = TABLES + 0x400 * head as u64;
            for (n, desc) in table.iter().enumerate() {
                mem.write_slice(&desc.to_bytes(), GuestAddress(at + 16 * n as u64)).unwrap();
            }
            let len = 16 * table.len() as u32;
            let desc = Descriptor { addr: at, len, flags: Descriptor::INDIRECT, next: 0 };
            mem.write_slice(&desc.to_bytes(), GuestAddress(DESC + 16 * head as u64)).unwrap();
            mem.store_u16(AVAIL + 4 + 2 * head as u64, head as u16, Ordering::Relaxed).unwrap();
        }
        mem.store_u16(AVAIL + 2, 2, Ordering::Relaxed).unwrap();
        let state =
            QueueState { size, desc_table: DESC, avail_ring: AVAIL, used_ring: USED, next_avail: 0, next_used: 0 };
        let new = || Queue::new(&mem, &state, F_INDIRECT_DESC, size).unwrap();
        let mut pops = [new(), new()];
        let fickle = Fickle { mem: mem.clone(), reads: RefCell::default() };
        let near = Near::new(&mem, AVAIL);
        for head in 0..2 {
            let popped = [pops[0].pop(&fickle), pops[1].pop(&near)].map(|popped| {
                popped.map(|chain| {
                    let chain = chain.expect("it is available");
                    let parts = (chain.readable().to_vec(), chain.writable().to_vec());
                    let bytes = (chain.readable_bytes(), chain.writable_bytes());
                    chain.abandon();
                    (parts, bytes)
                })
            });
            prop_assert!(head == 1 || popped[0].is_ok());
            prop_assert_eq!(&popped[0], &popped[1]);
        }
        prop_assert!(fickle.reads.borrow().values().all(|&count| count == 1), "a descriptor was read twice");
    }
}
