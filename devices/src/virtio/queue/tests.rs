mod rules;

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::sync::atomic::Ordering;

use vm_memory::{Bytes, GuestAddress};

use super::*;
use crate::GuestRam;
use crate::virtio::QueueState;
use crate::virtio::testing::{Buf, DriverQueue, Used, guest_ram};

const BASE: u64 = 0x10_0000;
const RAM: usize = 0x20_0000;

fn setup(size: u16, features: u64) -> (GuestRam, DriverQueue, Queue) {
    let mem = guest_ram(RAM);
    let driver = DriverQueue::new(&mem, BASE, size, features);
    let queue = Queue::new(&mem, &driver.state(), features, 256).unwrap();
    (mem, driver, queue)
}

/// Guest memory that counts what a queue does to it.
struct Counting<'m> {
    mem: &'m GuestRam,
    descriptor_reads: RefCell<HashMap<u64, usize>>,
    /// Stores by address.
    stores: RefCell<HashMap<u64, usize>>,
    loads: Cell<usize>,
}

impl<'m> Counting<'m> {
    fn new(mem: &'m GuestRam) -> Self {
        Self { mem, descriptor_reads: RefCell::default(), stores: RefCell::default(), loads: Cell::new(0) }
    }
}

impl RingMem for Counting<'_> {
    fn load_u16(&self, addr: u64, order: Ordering) -> Result<u16, OutsideMemory> {
        self.loads.set(self.loads.get() + 1);
        self.mem.load_u16(addr, order)
    }
    fn store_u16(&self, addr: u64, value: u16, order: Ordering) -> Result<(), OutsideMemory> {
        *self.stores.borrow_mut().entry(addr).or_default() += 1;
        self.mem.store_u16(addr, value, order)
    }
    fn load_u64(&self, addr: u64, order: Ordering) -> Result<u64, OutsideMemory> {
        self.loads.set(self.loads.get() + 1);
        self.mem.load_u64(addr, order)
    }
    fn store_u64(&self, addr: u64, value: u64, order: Ordering) -> Result<(), OutsideMemory> {
        *self.stores.borrow_mut().entry(addr).or_default() += 1;
        self.mem.store_u64(addr, value, order)
    }
    fn read_descriptor(&self, addr: u64) -> Result<Descriptor, OutsideMemory> {
        *self.descriptor_reads.borrow_mut().entry(addr).or_default() += 1;
        self.mem.read_descriptor(addr)
    }
    fn write_used(&self, addr: u64, id: u32, len: u32) -> Result<(), OutsideMemory> {
        self.mem.write_used(addr, id, len)
    }
    fn contains(&self, addr: u64, len: u64) -> bool {
        self.mem.contains(addr, len)
    }
}

#[test]
fn a_chain_arrives_with_its_readable_and_writable_parts_and_returns_with_its_length() {
    let (mem, mut driver, mut queue) = setup(8, 0);
    assert!(queue.pop(&mem).unwrap().is_none());
    let posted = driver.post(&[Buf::Read(b"abc".into()), Buf::Read(b"de".into()), Buf::Write(7)]);
    assert!(queue.pop(&mem).unwrap().is_none(), "nothing is there before the index says so");
    driver.publish();
    let chain = queue.pop(&mem).unwrap().unwrap();
    assert_eq!(chain.readable(), &posted.buffers[..2]);
    assert_eq!(chain.writable(), &posted.buffers[2..]);
    assert_eq!((chain.readable_bytes(), chain.writable_bytes()), (5, 7));
    assert_eq!(queue.in_flight(), 1);
    queue.push(&mem, chain, 6).unwrap();
    assert_eq!(queue.in_flight(), 0);
    assert_eq!(driver.used(), [], "pushed is not published");
    assert!(queue.publish(&mem).unwrap());
    assert_eq!(driver.used(), [Used { head: posted.head.into(), len: 6 }]);
}

#[test]
fn layouts_that_break_the_rules_are_refused() {
    let mem = guest_ram(RAM);
    let good = DriverQueue::new(&mem, BASE, 8, 0).state();
    let refused = |state: QueueState| Queue::new(&mem, &state, 0, 256).unwrap_err();
    // CVE-2017-17381: sizes that are zero or no power of two.
    for size in [0, 3, 512, 65535] {
        assert_eq!(refused(QueueState { size, ..good }), QueueError::BadSize { size, max: 256 });
    }
    assert_eq!(
        refused(QueueState { desc_table: 0x1008, ..good }),
        QueueError::Misaligned { area: "descriptor table", addr: 0x1008, align: 16 }
    );
    assert_eq!(
        refused(QueueState { avail_ring: 0x1001, ..good }),
        QueueError::Misaligned { area: "available ring", addr: 0x1001, align: 2 }
    );
    assert_eq!(
        refused(QueueState { used_ring: 0x1002, ..good }),
        QueueError::Misaligned { area: "used ring", addr: 0x1002, align: 4 }
    );
    let end = RAM as u64;
    for (state, addr, len) in [
        (QueueState { desc_table: end - 112, ..good }, end - 112, 128),
        (QueueState { avail_ring: end - 20, ..good }, end - 20, 22),
        (QueueState { used_ring: end - 68, ..good }, end - 68, 70),
        (QueueState { desc_table: u64::MAX - 15, ..good }, u64::MAX - 15, 128),
        (QueueState { used_ring: u64::MAX - 3, ..good }, u64::MAX - 3, 70),
    ] {
        assert_eq!(refused(state), QueueError::OutsideMemory(OutsideMemory { addr, len }));
    }
    for state in [
        QueueState { desc_table: end - 128, ..good },
        QueueState { avail_ring: end - 22, ..good },
        QueueState { used_ring: end - 72, ..good },
    ] {
        assert!(Queue::new(&mem, &state, 0, 256).is_ok(), "a ring may end where memory ends");
    }
}

#[test]
fn the_available_index_may_run_a_whole_ring_ahead_and_no_further() {
    // vm-virtio#196, FC#3149.
    for (jump, allowed) in [(1, true), (8, true), (9, false), (0x8000, false), (0xffff, false)] {
        let (mem, mut driver, mut queue) = setup(8, 0);
        driver.set_avail_index(jump);
        match queue.pop(&mem) {
            Ok(Some(chain)) => {
                assert!(allowed, "jump {jump}");
                chain.abandon();
            }
            other => {
                assert!(!allowed, "jump {jump}: {other:?}");
                assert_eq!(other.unwrap_err(), QueueError::IndexJump { index: jump, next: 0, size: 8 });
                assert_eq!(queue.state().next_avail, 0, "nothing is consumed");
            }
        }
    }
}

#[test]
fn malformed_chains_are_refused_by_the_rule_they_break() {
    const NEXT: u16 = Descriptor::NEXT;
    const WRITE: u16 = Descriptor::WRITE;
    const INDIRECT: u16 = Descriptor::INDIRECT;
    const TABLE: u64 = 0x8000;
    let desc = |addr, len, flags, next| Descriptor { addr, len, flags, next };
    let ok = |flags, next| desc(0x1000, 16, flags, next);
    let outside = |addr, len| QueueError::OutsideMemory(OutsideMemory { addr, len });
    let one = |desc| vec![(0, desc)];
    let table = |len| one(desc(TABLE, len, INDIRECT, 0));
    let cases = [
        ("a cycle of one", one(ok(NEXT, 0)), vec![], QueueError::Cycle { index: 0 }),
        ("a cycle of two", vec![(0, ok(NEXT, 5)), (5, ok(NEXT, 0))], vec![], QueueError::Cycle { index: 0 }),
        ("a successor outside", one(ok(NEXT, 8)), vec![], QueueError::BadNext { next: 8, entries: 8 }),
        (
            "readable after writable",
            vec![(0, ok(NEXT | WRITE, 1)), (1, ok(0, 0))],
            vec![],
            QueueError::ReadableAfterWritable,
        ),
        (
            "an empty readable after writable",
            vec![(0, ok(NEXT | WRITE, 1)), (1, desc(0, 0, 0, 0))],
            vec![],
            QueueError::ReadableAfterWritable,
        ),
        ("outside memory", one(desc(RAM as u64, 1, 0, 0)), vec![], outside(RAM as u64, 1)),
        ("across the end", one(desc(RAM as u64 - 8, 16, 0, 0)), vec![], outside(RAM as u64 - 8, 16)),
        ("wraps", one(desc(u64::MAX - 7, 16, WRITE, 0)), vec![], outside(u64::MAX - 7, 16)),
        ("indirect with successor", one(ok(INDIRECT | NEXT, 1)), vec![], QueueError::IndirectWithNext),
        ("empty table", table(0), vec![], QueueError::IndirectLength { len: 0, size: 8 }),
        ("half a descriptor", table(24), vec![], QueueError::IndirectLength { len: 24, size: 8 }),
        ("less than one", table(15), vec![], QueueError::IndirectLength { len: 15, size: 8 }),
        // CVE-2011-2212.
        ("table longer than the queue", table(144), vec![], QueueError::IndirectLength { len: 144, size: 8 }),
        (
            "the longest table there is",
            table(u32::MAX - 15),
            vec![],
            QueueError::IndirectLength { len: u32::MAX - 15, size: 8 },
        ),
        ("table outside memory", one(desc(RAM as u64 - 16, 32, INDIRECT, 0)), vec![], outside(RAM as u64 - 16, 32)),
        ("nested", table(16), vec![desc(TABLE, 16, INDIRECT, 0)], QueueError::IndirectNested),
        ("nested with successor", table(16), vec![desc(TABLE, 16, INDIRECT | NEXT, 0)], QueueError::IndirectNested),
        ("cycle in the table", table(32), vec![ok(NEXT, 1), ok(NEXT, 0)], QueueError::Cycle { index: 0 }),
        ("successor outside the table", table(32), vec![ok(NEXT, 2)], QueueError::BadNext { next: 2, entries: 2 }),
        (
            "readable in the table after writable before it",
            vec![(0, ok(NEXT | WRITE, 1)), (1, desc(TABLE, 16, INDIRECT, 0))],
            vec![ok(0, 0)],
            QueueError::ReadableAfterWritable,
        ),
        (
            "a full table behind a direct descriptor",
            vec![(0, ok(NEXT, 1)), (1, desc(TABLE, 128, INDIRECT, 0))],
            (1..=8).map(|i| ok(if i < 8 { NEXT } else { 0 }, i)).collect(),
            QueueError::ChainTooLong { size: 8 },
        ),
    ];
    for (name, table, indirect, expected) in cases {
        let (mem, mut driver, mut queue) = setup(8, F_INDIRECT_DESC);
        for (index, desc) in table {
            driver.write_descriptor(index, desc);
        }
        for (index, desc) in indirect.iter().enumerate() {
            mem.write_slice(&desc.to_bytes(), GuestAddress(TABLE + 16 * index as u64)).unwrap();
        }
        driver.offer(0);
        driver.publish();
        assert_eq!(queue.pop(&mem).unwrap_err(), expected, "{name}");
        assert_eq!((queue.state().next_avail, queue.in_flight()), (0, 0), "{name} consumes nothing");
    }
}

#[test]
fn more_than_four_gigabytes_in_a_chain_are_refused_and_exactly_four_are_not() {
    // The chain describes the same memory again and again; u32 sums would wrap to something small.
    let mem = guest_ram(0x1000_1000);
    for (last, allowed) in [(0x1000_0000, true), (0x1000_0001, false)] {
        let mut driver = DriverQueue::new(&mem, 0x10_0000, 16, 0);
        let mut queue = Queue::new(&mem, &driver.state(), 0, 256).unwrap();
        for i in 0..15 {
            let desc = Descriptor { addr: 1 << 32, len: 0x1000_0000, flags: Descriptor::NEXT, next: i + 1 };
            driver.write_descriptor(i, desc);
        }
        driver.write_descriptor(15, Descriptor { addr: 1 << 32, len: last, flags: 0, next: 0 });
        driver.offer(0);
        driver.publish();
        match queue.pop(&mem) {
            Ok(Some(chain)) => {
                assert!(allowed);
                assert_eq!(chain.readable_bytes(), 1 << 32);
                chain.abandon();
            }
            other => {
                assert!(!allowed);
                assert_eq!(other.unwrap_err(), QueueError::TooManyBytes);
            }
        }
    }
}

#[test]
fn heads_outside_the_table_or_in_flight_are_refused() {
    for head in [8, 0x7fff, 0xffff] {
        let (mem, mut driver, mut queue) = setup(8, 0);
        driver.offer(head);
        driver.publish();
        assert_eq!(queue.pop(&mem).unwrap_err(), QueueError::BadHead { head, size: 8 });
    }
    let (mem, mut driver, mut queue) = setup(8, 0);
    let posted = driver.post(&[Buf::Write(4)]);
    driver.offer(posted.head);
    driver.publish();
    let chain = queue.pop(&mem).unwrap().unwrap();
    assert_eq!(queue.pop(&mem).unwrap_err(), QueueError::HeadInFlight { head: posted.head });
    queue.push(&mem, chain, 0).unwrap();
    let again = queue.pop(&mem).unwrap().expect("once returned, the head may come again");
    again.abandon();
}

#[test]
fn indirect_descriptors_are_refused_unless_negotiated() {
    let (mem, mut driver, mut queue) = setup(8, 0);
    driver.post_indirect(&[Buf::Write(4)]);
    driver.publish();
    assert_eq!(queue.pop(&mem).unwrap_err(), QueueError::IndirectNotNegotiated);
}

#[test]
fn direct_descriptors_may_lead_to_an_indirect_table_whose_write_flag_means_nothing() {
    // §2.7.5.3.2.
    let (mem, mut driver, mut queue) = setup(8, F_INDIRECT_DESC);
    let data = driver.buffer(b"data");
    let inner = Descriptor { addr: data.addr, len: 4, flags: 0, next: 0 };
    let table = driver.buffer(&inner.to_bytes());
    driver.write_descriptor(0, Descriptor { flags: Descriptor::NEXT, next: 3, ..inner });
    let flags = Descriptor::INDIRECT | Descriptor::WRITE;
    driver.write_descriptor(3, Descriptor { addr: table.addr, len: 16, flags, next: 0 });
    driver.offer(0);
    driver.publish();
    let chain = queue.pop(&mem).unwrap().unwrap();
    assert_eq!(chain.readable(), [data, data]);
    queue.push(&mem, chain, 0).unwrap();
}

#[test]
fn empty_descriptors_are_passed_over_wherever_they_point() {
    // CVE-2016-6490.
    let (mem, mut driver, mut queue) = setup(4, 0);
    let nowhere = |flags, next| Descriptor { addr: u64::MAX, len: 0, flags, next };
    driver.write_descriptor(0, nowhere(Descriptor::NEXT, 1));
    driver.write_descriptor(1, Descriptor { addr: 0x1000, len: 1, flags: 3, next: 2 });
    driver.write_descriptor(2, nowhere(Descriptor::NEXT | Descriptor::WRITE, 3));
    driver.write_descriptor(3, nowhere(Descriptor::WRITE, 0));
    driver.offer(0);
    driver.publish();
    let chain = queue.pop(&mem).unwrap().unwrap();
    assert_eq!(chain.readable(), []);
    assert_eq!(chain.writable(), [GuestRange { addr: 0x1000, len: 1 }]);
    chain.abandon();
}

#[test]
fn each_descriptor_is_read_exactly_once() {
    let (mem, mut driver, mut queue) = setup(8, F_INDIRECT_DESC);
    let counting = Counting::new(&mem);
    driver.post(&[Buf::Read(vec![1]), Buf::Write(1), Buf::Write(1)]);
    driver.post_indirect(&[Buf::Read(vec![1]), Buf::Write(1)]);
    driver.publish();
    for _ in 0..2 {
        let chain = queue.pop(&counting).unwrap().unwrap();
        queue.push(&counting, chain, 0).unwrap();
    }
    let reads = counting.descriptor_reads.into_inner();
    assert_eq!(reads.len(), 3 + 1 + 2);
    assert!(reads.values().all(|&count| count == 1), "{reads:?}");
    assert_eq!(counting.loads.get(), 1 + 2, "the index once for both chains, each ring entry once");
}

#[test]
fn a_batch_is_published_with_one_store_of_the_index() {
    let (mem, mut driver, mut queue) = setup(8, 0);
    let counting = Counting::new(&mem);
    for _ in 0..5 {
        driver.post(&[Buf::Write(1)]);
    }
    driver.publish();
    while let Some(chain) = queue.pop(&counting).unwrap() {
        queue.push(&counting, chain, 1).unwrap();
    }
    assert!(queue.publish(&counting).unwrap());
    assert_eq!(driver.used().len(), 5);
    assert_eq!(counting.stores.borrow().values().sum::<usize>(), 1);
    assert!(!queue.publish(&counting).unwrap(), "without news there is nothing to tell");
    assert_eq!(counting.stores.borrow().values().sum::<usize>(), 1);
}

#[test]
fn no_interrupt_silences_the_device_without_event_index_and_only_then() {
    for (features, expected) in [(0, false), (F_EVENT_IDX, true)] {
        let (mem, mut driver, mut queue) = setup(8, features);
        driver.set_no_interrupt(true);
        driver.post(&[Buf::Write(1)]);
        driver.publish();
        let chain = queue.pop(&mem).unwrap().unwrap();
        queue.push(&mem, chain, 0).unwrap();
        assert_eq!(queue.publish(&mem).unwrap(), expected);
    }
}

#[test]
fn with_event_index_the_interrupt_comes_with_the_batch_that_contains_the_event() {
    let (mem, mut driver, mut queue) = setup(8, F_EVENT_IDX);
    let mut next_used = 0u16;
    // The driver waits for element `event`; batches of two.
    for (event, expected) in [(0, true), (4, false), (4, true), (5, false), (9, true), (9, false), (0xffff, false)] {
        driver.set_used_event(event);
        for _ in 0..2 {
            driver.post(&[Buf::Write(1)]);
            driver.publish();
            let chain = queue.pop(&mem).unwrap().unwrap();
            queue.push(&mem, chain, 0).unwrap();
        }
        assert_eq!(queue.publish(&mem).unwrap(), expected, "elements {next_used}.. and event {event}");
        next_used += 2;
        driver.used();
    }
}

#[test]
fn kicks_are_suppressed_while_the_worker_looks_and_asked_for_when_it_stops() {
    for features in [0, F_EVENT_IDX] {
        let (mem, mut driver, mut queue) = setup(8, features);
        assert!(!queue.enable_kicks(&mem).unwrap());
        driver.post(&[Buf::Write(1)]);
        assert!(driver.publish(), "an idle device wants a kick");
        queue.disable_kicks(&mem).unwrap();
        queue.pop(&mem).unwrap().unwrap().abandon();
        driver.post(&[Buf::Write(1)]);
        assert!(!driver.publish(), "a busy one does not");
        assert!(queue.enable_kicks(&mem).unwrap(), "the chain that came without a kick is found");
        queue.pop(&mem).unwrap().unwrap().abandon();
        assert!(!queue.enable_kicks(&mem).unwrap());
    }
}

#[test]
fn unpopped_chains_come_again_in_the_same_order() {
    let (mem, mut driver, mut queue) = setup(8, 0);
    let heads: Vec<u16> = (0..3).map(|_| driver.post(&[Buf::Write(1)]).head).collect();
    driver.publish();
    let mut chains = Vec::new();
    while let Some(chain) = queue.pop(&mem).unwrap() {
        chains.push(chain);
    }
    while let Some(chain) = chains.pop() {
        queue.unpop(chain);
    }
    assert_eq!((queue.state(), queue.in_flight()), (driver.state(), 0));
    for head in heads {
        let chain = queue.pop(&mem).unwrap().unwrap();
        assert_eq!(chain.head(), head);
        queue.push(&mem, chain, 0).unwrap();
    }
}

#[test]
fn a_ring_is_exhausted_when_no_descriptor_is_left_to_the_driver() {
    let (mem, mut driver, mut queue) = setup(4, F_INDIRECT_DESC);
    driver.post(&[Buf::Write(1), Buf::Write(0)]);
    driver.post_indirect(&[Buf::Write(1), Buf::Write(1), Buf::Write(1)]);
    driver.publish();
    let (two, one) = (queue.pop(&mem).unwrap().unwrap(), queue.pop(&mem).unwrap().unwrap());
    assert!(!queue.is_exhausted());
    driver.post(&[Buf::Write(1)]);
    driver.publish();
    let last = queue.pop(&mem).unwrap().unwrap();
    assert!(queue.is_exhausted());
    queue.unpop(last);
    assert!(!queue.is_exhausted());
    let last = queue.pop(&mem).unwrap().unwrap();
    for chain in [two, one, last] {
        queue.push(&mem, chain, 0).unwrap();
        assert!(!queue.is_exhausted());
    }
}

#[test]
fn a_queue_goes_on_where_another_stopped_across_the_wrap_of_its_indices() {
    let (mem, mut driver, _) = setup(8, 0);
    let start = 0xfffe;
    let mut state = QueueState { next_avail: start, next_used: start, ..driver.state() };
    driver.set_avail_index(start);
    let mut heads = Vec::new();
    for _ in 0..4 {
        let mut queue = Queue::new(&mem, &state, 0, 8).unwrap();
        let posted = driver.post(&[Buf::Write(1)]);
        driver.publish();
        let chain = queue.pop(&mem).unwrap().unwrap();
        heads.push(chain.head());
        assert_eq!(chain.head(), posted.head);
        queue.push(&mem, chain, 0).unwrap();
        assert!(queue.publish(&mem).unwrap());
        state = queue.state();
    }
    assert_eq!((state.next_avail, state.next_used), (2, 2));
    assert_eq!(heads.len(), 4);
}

#[test]
#[should_panic(expected = "dropped while in flight")]
fn dropping_a_chain_in_flight_is_noticed() {
    let (mem, mut driver, mut queue) = setup(8, 0);
    driver.post(&[Buf::Write(1)]);
    driver.publish();
    drop(queue.pop(&mem).unwrap());
}

#[test]
fn readers_and_writers_know_bytes_not_descriptors() {
    let (mem, mut driver, mut queue) = setup(8, 0);
    let posted = driver.post(&[Buf::Read(b"hello ".into()), Buf::Read(b"world".into()), Buf::Write(3), Buf::Write(4)]);
    driver.publish();
    let chain = queue.pop(&mem).unwrap().unwrap();

    let (mut first, mut second) = chain.reader(&mem).split_at(8).unwrap();
    assert_eq!((first.remaining(), second.remaining()), (8, 3));
    assert_eq!(&first.read_array::<8>().unwrap(), b"hello wo");
    assert_eq!(first.read_array::<1>(), Err(ChainError::Short { wanted: 1, left: 0 }));
    assert_eq!(second.read_array::<4>(), Err(ChainError::Short { wanted: 4, left: 3 }));
    assert_eq!(&second.read_array::<3>().unwrap(), b"rld", "a refused read takes nothing");
    assert!(chain.reader(&mem).split_at(12).is_err());

    let (mut data, mut status) = chain.writer(&mem).split_at(6).unwrap();
    status.write(&[0xaa]).unwrap();
    data.skip(1).unwrap();
    let mut ranges = Vec::new();
    data.append_ranges(&mut ranges);
    let (a, b) = (posted.buffers[2].addr, posted.buffers[3].addr);
    assert_eq!(ranges, [GuestRange { addr: a + 1, len: 2 }, GuestRange { addr: b, len: 3 }]);
    data.write(b"12345").unwrap();
    assert!(data.write(b"6").is_err());
    assert_eq!(driver.read(posted.buffers[2]), b"\xee12");
    assert_eq!(driver.read(posted.buffers[3]), b"345\xaa");
    queue.push(&mem, chain, 7).unwrap();
}

#[test]
fn a_pair_of_words_and_the_last_byte_are_the_same_however_their_bytes_are_cut() {
    let bytes: Vec<u8> = (1..=24).collect();
    for cut in [1, 7, 8, 15, 16, 17, 24] {
        let (mem, mut driver, mut queue) = setup(16, 0);
        let (first, second) = bytes.split_at(cut);
        let mut bufs = vec![Buf::Read(first.to_vec()), Buf::Read(second.to_vec()), Buf::Write(3), Buf::Write(2)];
        if second.is_empty() {
            bufs.remove(1);
        }
        let posted = driver.post(&bufs);
        driver.publish();
        let chain = queue.pop(&mem).unwrap().unwrap();
        let near = Near::new(&mem, driver.state().desc_table);
        assert_eq!(chain.read_header(&near), Ok((0x0807_0605_0403_0201, 0x100f_0e0d_0c0b_0a09)), "cut at {cut}");
        let mut reader = chain.reader(&mem);
        assert_eq!(reader.read_pair(), Ok([0x0807_0605_0403_0201, 0x100f_0e0d_0c0b_0a09]), "cut at {cut}");
        assert_eq!(reader.remaining(), 8);
        assert!(reader.read_pair().is_err());
        assert_eq!(reader.read_array(), Ok([17, 18, 19, 20, 21, 22, 23, 24]));
        assert_eq!(chain.writer(&mem).first(4).remaining(), 4);
        assert_eq!(chain.writer(&mem).first(9).remaining(), 5);
        let mut ranges = Vec::new();
        chain.writer(&mem).first(4).append_ranges(&mut ranges);
        assert_eq!(ranges.iter().map(|range| range.len).collect::<Vec<_>>(), [3, 1]);
        chain.write_last(&near, 0x5a).unwrap();
        let last = *posted.buffers.last().unwrap();
        assert_eq!(driver.read(last), [0xee, 0x5a]);
        queue.push(&mem, chain, 5).unwrap();
    }
}

#[test]
fn the_largest_split_ring_works_to_its_last_entry() {
    let mem = guest_ram(0x40_0000);
    let state = QueueState {
        size: 32768,
        desc_table: 0x10_0000,
        avail_ring: 0x20_0000,
        used_ring: 0x30_0000,
        next_avail: 32767,
        next_used: 32767,
    };
    let mut queue = Queue::new(&mem, &state, F_EVENT_IDX, 32768).unwrap();
    let desc = Descriptor { addr: 0x1000, len: 5, flags: Descriptor::WRITE, next: 0 };
    mem.write_slice(&desc.to_bytes(), GuestAddress(0x10_0000 + 16 * 32767)).unwrap();
    mem.store_u16(0x20_0000 + 4 + 2 * 32767, 32767, Ordering::Relaxed).unwrap();
    mem.store_u16(0x20_0000 + 2, 32768, Ordering::Relaxed).unwrap();
    let chain = queue.pop(&mem).unwrap().unwrap();
    assert_eq!(chain.head(), 32767);
    queue.push(&mem, chain, 5).unwrap();
    queue.publish(&mem).unwrap();
    assert_eq!(mem.read_obj::<[u32; 2]>(GuestAddress(0x30_0000 + 4 + 8 * 32767)).unwrap(), [32767, 5]);
    assert_eq!(mem.load_u16(0x30_0000 + 2, Ordering::Relaxed), Ok(32768));
}
