use std::collections::HashSet;

use vm_memory::{Bytes, GuestAddress};

use super::*;
use crate::GuestRam;
use crate::virtio::QueueState;
use crate::virtio::testing::{Buf, DriverQueue, FickleMemory, Used, guest_ram};

const BASE: u64 = 0x10_0000;
const RAM: usize = 0x20_0000;
const NEXT: u16 = Descriptor::NEXT;
const WRITE: u16 = Descriptor::WRITE;
const INDIRECT: u16 = Descriptor::INDIRECT;

fn setup(size: u16, features: u64) -> (GuestRam, DriverQueue, Queue) {
    let mem = guest_ram(RAM);
    let features = features | F_RING_PACKED;
    let driver = DriverQueue::new(&mem, BASE, size, features);
    let queue = Queue::new(&mem, &driver.state(), features, 256).unwrap();
    (mem, driver, queue)
}

fn pop(queue: &mut Queue, mem: &GuestRam) -> Chain {
    queue.pop(mem).unwrap().expect("a chain")
}

#[test]
fn a_packed_chain_arrives_with_its_parts_and_returns_with_its_length() {
    let (mem, mut driver, mut queue) = setup(8, 0);
    assert!(queue.pop(&mem).unwrap().is_none());
    let posted = driver.post(&[Buf::Read(b"abc".into()), Buf::Read(b"de".into()), Buf::Write(7)]);
    assert!(queue.pop(&mem).unwrap().is_none(), "nothing is there before the first flags say so");
    assert!(driver.publish());
    let chain = pop(&mut queue, &mem);
    assert_eq!(chain.readable(), &posted.buffers[..2]);
    assert_eq!(chain.writable(), &posted.buffers[2..]);
    assert_eq!((chain.readable_bytes(), chain.writable_bytes()), (5, 7));
    assert!(queue.pop(&mem).unwrap().is_none());
    queue.push(&mem, chain, 6).unwrap();
    assert_eq!((queue.in_flight(), driver.used()), (0, vec![]), "pushed is not published");
    assert!(queue.publish(&mem).unwrap());
    assert_eq!(driver.used(), [Used { head: posted.head.into(), len: 6 }]);
    assert!(!queue.publish(&mem).unwrap(), "without news there is nothing to tell");
}

#[test]
fn packed_rings_of_any_size_go_round_with_chains_of_any_length_in_any_order_of_completion() {
    for size in [1u16, 2, 3, 5, 8, 100] {
        for features in [0, F_INDIRECT_DESC, F_EVENT_IDX, F_IN_ORDER, F_IN_ORDER | F_EVENT_IDX] {
            let (mem, mut driver, mut queue) = setup(size, features);
            let mut random = 0x9e37_79b9_u32;
            let mut dice = |sides: usize| {
                random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                (random >> 16) as usize % sides
            };
            let mut flying: Vec<Chain> = Vec::new();
            let (mut posted, mut returned) = (Vec::new(), Vec::new());
            for _ in 0..400 {
                match dice(4) {
                    0 | 1 if driver.free() > 0 => {
                        let len = 1 + dice(driver.free().min(3));
                        let bufs = vec![Buf::Write(1 + len as u32); len];
                        let one = if features & F_INDIRECT_DESC != 0 && dice(2) == 0 {
                            driver.post_indirect(&bufs[..len.min(size.into())])
                        } else {
                            driver.post(&bufs)
                        };
                        posted.push((one.head, one.buffers));
                        driver.publish();
                    }
                    2 => flying.extend(queue.pop(&mem).unwrap()),
                    _ if !flying.is_empty() => {
                        let chain = flying.swap_remove(dice(flying.len()));
                        let len = chain.writable_bytes();
                        queue.push(&mem, chain, len).unwrap();
                        if dice(2) == 0 {
                            queue.publish(&mem).unwrap();
                            returned.extend(driver.used());
                        }
                    }
                    _ => {
                        queue.publish(&mem).unwrap();
                        returned.extend(driver.used());
                    }
                }
            }
            while let Some(chain) = queue.pop(&mem).unwrap() {
                flying.push(chain);
            }
            for chain in flying.drain(..).rev() {
                let len = chain.writable_bytes();
                queue.push(&mem, chain, len).unwrap();
            }
            queue.publish(&mem).unwrap();
            returned.extend(driver.used());
            let lengths = |buffers: &[GuestRange]| buffers.iter().map(|range| range.len).sum::<u32>();
            let mut expected: Vec<_> =
                posted.iter().map(|(head, buffers)| Used { head: (*head).into(), len: lengths(buffers) }).collect();
            assert!(expected.len() > 20);
            if features & F_IN_ORDER == 0 {
                expected.sort_by_key(|used| (used.head, used.len));
                returned.sort_by_key(|used| (used.head, used.len));
            }
            assert_eq!(returned, expected, "size {size}, features {features:#x}");
            assert_eq!((driver.free(), queue.in_flight()), (size.into(), 0));
        }
    }
}

#[test]
fn packed_layouts_that_break_the_rules_are_refused() {
    let mem = guest_ram(RAM);
    let good = DriverQueue::new(&mem, BASE, 8, F_RING_PACKED).state();
    let refused = |state: QueueState| Queue::new(&mem, &state, F_RING_PACKED, 256).unwrap_err();
    for size in [0, 257, 0x8001, 65535] {
        assert_eq!(refused(QueueState { size, ..good }), QueueError::BadPackedSize { size, max: 256 });
    }
    assert!(Queue::new(&mem, &QueueState { size: 3, ..good }, F_RING_PACKED, 256).is_ok(), "no power of two is needed");
    let area = "driver event suppression area";
    assert_eq!(
        refused(QueueState { avail_ring: 0x1002, ..good }),
        QueueError::Misaligned { area, addr: 0x1002, align: 4 }
    );
    let area = "device event suppression area";
    assert_eq!(
        refused(QueueState { used_ring: 0x1001, ..good }),
        QueueError::Misaligned { area, addr: 0x1001, align: 4 }
    );
    let area = "descriptor ring";
    assert_eq!(
        refused(QueueState { desc_table: 0x1008, ..good }),
        QueueError::Misaligned { area, addr: 0x1008, align: 16 }
    );
    let end = RAM as u64;
    for (state, addr, len) in [
        (QueueState { desc_table: end - 112, ..good }, end - 112, 128),
        (QueueState { avail_ring: end, ..good }, end, 4),
        (QueueState { used_ring: u64::MAX - 3, ..good }, u64::MAX - 3, 4),
    ] {
        assert_eq!(refused(state), QueueError::OutsideMemory(OutsideMemory { addr, len }));
    }
    for word in [8, 0x7fff, 0x8008, 0xffff] {
        let error = QueueError::BadPosition { index: word & 0x7fff, size: 8 };
        assert_eq!(refused(QueueState { next_avail: word, ..good }), error);
        assert_eq!(refused(QueueState { next_used: word, ..good }), error);
    }
}

#[test]
fn the_largest_packed_ring_works_to_its_last_descriptor() {
    let mem = guest_ram(0x40_0000);
    let state = QueueState {
        size: 32768,
        desc_table: 0x10_0000,
        avail_ring: 0x1000,
        used_ring: 0x2000,
        next_avail: 0xffff,
        next_used: 0xffff,
    };
    let mut queue = Queue::new(&mem, &state, F_RING_PACKED, 32768).unwrap();
    let word = 5u64 | 0xabcd << 32 | 0x80u64 << 48;
    mem.write_obj(word, GuestAddress(0x10_0000 + 16 * 32767 + 8)).unwrap();
    let chain = queue.pop(&mem).unwrap().unwrap();
    assert!(chain.head() < 32768, "devices keep tables by it");
    queue.push(&mem, chain, 0).unwrap();
    queue.publish(&mem).unwrap();
    assert_eq!((queue.state().next_avail, queue.state().next_used), (0, 0), "the counters have flipped");
    let used: u64 = mem.read_obj(GuestAddress(0x10_0000 + 16 * 32767 + 8)).unwrap();
    assert_eq!(used, 0xabcd << 32 | 0x8080 << 48);
}

#[test]
fn malformed_packed_chains_are_refused_by_the_rule_they_break() {
    const TABLE: u64 = 0x8000;
    let desc = |addr, len, flags| Descriptor { addr, len, flags, next: 0 };
    let ok = |flags| desc(0x1000, 16, flags);
    let outside = |addr, len| QueueError::OutsideMemory(OutsideMemory { addr, len });
    let table = |len| vec![desc(TABLE, len, INDIRECT)];
    let entry = |flags: u16| Descriptor { next: flags, ..ok(0) };
    let length = |len| QueueError::IndirectLength { len, size: 4 };
    let cases = [
        ("a chain that never ends", vec![ok(NEXT); 4], vec![], QueueError::ChainTooLong { size: 4 }),
        ("a chain that is not there", vec![ok(NEXT)], vec![], QueueError::NotAvailable { index: 1 }),
        ("readable after writable", vec![ok(NEXT | WRITE), ok(0)], vec![], QueueError::ReadableAfterWritable),
        ("outside memory", vec![desc(RAM as u64 - 8, 16, 0)], vec![], outside(RAM as u64 - 8, 16)),
        ("wraps", vec![desc(u64::MAX - 7, 16, WRITE)], vec![], outside(u64::MAX - 7, 16)),
        ("indirect with successor", vec![ok(INDIRECT | NEXT), ok(0)], vec![], QueueError::IndirectLinked),
        ("indirect as successor", vec![ok(NEXT), desc(TABLE, 16, INDIRECT)], vec![], QueueError::IndirectLinked),
        ("empty table", table(0), vec![], length(0)),
        ("half a descriptor", table(24), vec![], length(24)),
        ("table longer than the queue", table(80), vec![], length(80)),
        ("longest table", table(u32::MAX - 15), vec![], length(u32::MAX - 15)),
        ("table outside memory", vec![desc(RAM as u64 - 16, 32, INDIRECT)], vec![], outside(RAM as u64 - 16, 32)),
        (
            "readable after writable in the table",
            table(32),
            vec![entry(WRITE), entry(0)],
            QueueError::ReadableAfterWritable,
        ),
        ("outside memory in the table", table(16), vec![desc(u64::MAX, 2, 0)], outside(u64::MAX, 2)),
    ];
    for (name, chain, entries, expected) in cases {
        let (mem, mut driver, mut queue) = setup(4, F_INDIRECT_DESC);
        for desc in chain {
            driver.place(desc, 3);
        }
        for (i, entry) in entries.iter().enumerate() {
            mem.write_slice(&entry.to_bytes(), GuestAddress(TABLE + 16 * i as u64)).unwrap();
        }
        driver.publish();
        let before = queue.state();
        assert_eq!(queue.pop(&mem).unwrap_err(), expected, "{name}");
        assert_eq!((queue.state(), queue.in_flight()), (before, 0), "{name} consumes nothing");
    }
    let (mem, mut driver, mut queue) = setup(4, 0);
    driver.post_indirect(&[Buf::Write(4)]);
    driver.publish();
    assert_eq!(queue.pop(&mem).unwrap_err(), QueueError::IndirectNotNegotiated);
}

#[test]
fn in_a_packed_table_only_the_write_flag_means_anything() {
    let (mem, mut driver, mut queue) = setup(4, F_INDIRECT_DESC);
    let flags = NEXT | INDIRECT | 0x8080;
    for (i, write) in [0, WRITE].into_iter().enumerate() {
        let entry = Descriptor { addr: 0x1000 + 0x100 * i as u64, len: 4, flags: 0xffff, next: flags | write };
        mem.write_slice(&entry.to_bytes(), GuestAddress(0x8000 + 16 * i as u64)).unwrap();
    }
    driver.place(Descriptor { addr: 0x8000, len: 32, flags: INDIRECT | WRITE, next: 0 }, 1);
    driver.publish();
    let chain = pop(&mut queue, &mem);
    assert_eq!(chain.readable(), [GuestRange { addr: 0x1000, len: 4 }]);
    assert_eq!(chain.writable(), [GuestRange { addr: 0x1100, len: 4 }]);
    chain.abandon();
}

#[test]
fn a_lap_ahead_of_the_device_and_an_id_in_flight_are_refused() {
    let one = Descriptor { addr: 0x1000, len: 4, flags: WRITE, next: 0 };
    let (mem, mut driver, mut queue) = setup(2, 0);
    for id in [7, 0xffff] {
        driver.place(one, id);
    }
    driver.publish();
    let first = pop(&mut queue, &mem);
    let second = pop(&mut queue, &mem);
    assert!(queue.is_exhausted());
    // The second lap begins before anything came back.
    driver.place(one, 1);
    driver.publish();
    assert_eq!(queue.pop(&mem).unwrap_err(), QueueError::Overrun { slots: 1, free: 0 });
    queue.push(&mem, second, 0).unwrap();
    queue.publish(&mem).unwrap();
    driver.used();
    driver.place(one, 7);
    driver.publish();
    first.abandon();

    let (mem, mut driver, mut queue) = setup(4, 0);
    driver.place(one, 7);
    driver.place(one, 7);
    driver.publish();
    let first = pop(&mut queue, &mem);
    assert_eq!(queue.pop(&mem).unwrap_err(), QueueError::HeadInFlight { head: 7 });
    queue.push(&mem, first, 0).unwrap();
    pop(&mut queue, &mem).abandon();
}

#[test]
fn each_word_of_a_packed_ring_is_read_once_and_a_batch_is_shown_with_its_first_descriptor_last() {
    let (mem, mut driver, mut queue) = setup(16, F_INDIRECT_DESC);
    let fickle = FickleMemory::new(&mem);
    driver.post(&[Buf::Read(vec![1]), Buf::Write(1), Buf::Write(1)]);
    driver.post_indirect(&[Buf::Read(vec![1]), Buf::Write(1)]);
    driver.publish();
    for words in [3 * 2, 2 + 2] {
        fickle.snapshot();
        let chain = queue.pop(&fickle).unwrap().unwrap();
        assert_eq!(fickle.reads(), (words, 1));
        queue.push(&fickle, chain, 1).unwrap();
    }
    let stores: HashSet<u64> = fickle.stores().into_keys().collect();
    assert_eq!(stores, HashSet::from([BASE + 16 * 3 + 8]), "the second of the batch, where the first chain ended");
    assert_eq!(driver.used(), []);
    assert!(queue.publish(&fickle).unwrap());
    assert_eq!(fickle.stores().len(), 2);
    assert_eq!(driver.used().len(), 2);
}

#[test]
fn packed_interrupts_follow_the_drivers_area() {
    let round = |driver: &mut DriverQueue, queue: &mut Queue, mem: &GuestRam, count: usize| {
        for _ in 0..count {
            driver.post(&[Buf::Write(1)]);
            driver.publish();
            let chain = pop(queue, mem);
            queue.push(mem, chain, 0).unwrap();
        }
        let wanted = queue.publish(mem).unwrap();
        driver.used();
        wanted
    };
    for features in [0, F_EVENT_IDX] {
        let (mem, mut driver, mut queue) = setup(8, features);
        assert!(round(&mut driver, &mut queue, &mem, 1), "all zero means enabled");
        driver.set_no_interrupt(true);
        assert!(!round(&mut driver, &mut queue, &mem, 2));
        driver.set_no_interrupt(false);
        assert!(round(&mut driver, &mut queue, &mem, 1));
    }
    // Batches of three around a ring of eight; the wish is a descriptor with its wrap counter.
    let (mem, mut driver, mut queue) = setup(8, F_EVENT_IDX);
    for (event, expected) in [
        (0x8000, true),
        (0x8000, false),
        (0x8006, true),
        (0x8001, false),
        (0x0004, true),
        (0x0002, false),
        (0x7fff, true),
        (0x8000 | 8, true),
    ] {
        driver.set_used_event(event);
        let at = queue.state().next_used;
        assert_eq!(round(&mut driver, &mut queue, &mem, 3), expected, "from {at:#x} on, event {event:#x}");
    }
    let (mem, mut driver, mut queue) = setup(8, F_EVENT_IDX);
    driver.set_used_event(0x8003);
    assert!(!round(&mut driver, &mut queue, &mem, 3), "the descriptor after the batch is not of it");
    assert!(round(&mut driver, &mut queue, &mem, 1));
    let (mem, mut driver, mut queue) = setup(8, 0);
    driver.set_used_event(0x8005);
    assert!(round(&mut driver, &mut queue, &mem, 1), "without EVENT_IDX an offset means nothing");
}

#[test]
fn packed_kicks_are_suppressed_while_the_worker_looks_and_asked_for_when_it_stops() {
    for features in [0, F_EVENT_IDX] {
        let (mem, mut driver, mut queue) = setup(4, features);
        for lap in 0..9 {
            assert!(!queue.enable_kicks(&mem).unwrap());
            driver.post(&[Buf::Write(1)]);
            assert!(driver.publish(), "an idle device wants a kick: lap {lap}");
            queue.disable_kicks(&mem).unwrap();
            let first = pop(&mut queue, &mem);
            driver.post(&[Buf::Write(1)]);
            assert!(!driver.publish(), "a busy one does not: lap {lap}");
            assert!(queue.enable_kicks(&mem).unwrap(), "the chain that came without a kick is found");
            let second = pop(&mut queue, &mem);
            for chain in [second, first] {
                queue.push(&mem, chain, 0).unwrap();
            }
            queue.publish(&mem).unwrap();
            assert_eq!(driver.used().len(), 2);
        }
    }
}

#[test]
fn unpopped_packed_chains_come_again_and_a_queue_goes_on_where_another_stopped() {
    let (mem, mut driver, mut queue) = setup(5, F_IN_ORDER);
    for lap in 0..7 {
        let heads: Vec<_> = (0..2).map(|_| driver.post(&[Buf::Write(1), Buf::Write(1)]).head).collect();
        driver.publish();
        let before = queue.state();
        let chains: Vec<_> = (0..2).map(|_| pop(&mut queue, &mem)).collect();
        for chain in chains.into_iter().rev() {
            queue.unpop(chain);
        }
        assert_eq!((queue.state(), queue.in_flight()), (before, 0), "lap {lap}");
        queue = Queue::new(&mem, &before, F_RING_PACKED | F_IN_ORDER, 5).unwrap();
        let mut returned = Vec::new();
        while let Some(chain) = queue.pop(&mem).unwrap() {
            queue.push(&mem, chain, 1).unwrap();
            queue.publish(&mem).unwrap();
            returned.extend(driver.used().into_iter().map(|used| used.head as u16));
        }
        assert_eq!(returned, heads);
    }
}

#[test]
fn in_order_chains_wait_for_those_before_them_in_either_format() {
    for features in [F_IN_ORDER, F_IN_ORDER | F_RING_PACKED] {
        let mem = guest_ram(RAM);
        let mut driver = DriverQueue::new(&mem, BASE, 8, features);
        let mut queue = Queue::new(&mem, &driver.state(), features, 8).unwrap();
        let heads: Vec<u32> = (0..3).map(|_| driver.post(&[Buf::Write(4)]).head.into()).collect();
        driver.publish();
        let mut chains: Vec<_> = (0..3).map(|_| pop(&mut queue, &mem)).collect();
        queue.push(&mem, chains.pop().unwrap(), 3).unwrap();
        assert!(!queue.has_unpublished());
        queue.push(&mem, chains.remove(0), 1).unwrap();
        assert!(queue.publish(&mem).unwrap());
        assert_eq!(driver.used(), [Used { head: heads[0], len: 1 }]);
        assert_eq!(queue.in_flight(), 2);
        queue.push(&mem, chains.pop().unwrap(), 2).unwrap();
        queue.publish(&mem).unwrap();
        assert_eq!(driver.used(), [Used { head: heads[1], len: 2 }, Used { head: heads[2], len: 3 }]);
        assert_eq!(queue.in_flight(), 0);
    }
}

#[test]
fn a_chain_of_another_queue_is_not_taken_in_either_format() {
    for features in [0, F_RING_PACKED, F_IN_ORDER, F_RING_PACKED | F_IN_ORDER] {
        let mem = guest_ram(RAM);
        let mut driver = DriverQueue::new(&mem, BASE, 8, features);
        let mut queue = Queue::new(&mem, &driver.state(), features, 8).unwrap();
        let mut other = Queue::new(&mem, &driver.state(), features, 8).unwrap();
        driver.post(&[Buf::Write(4)]);
        driver.publish();
        let chain = pop(&mut queue, &mem);
        assert!(matches!(other.push(&mem, chain, 0), Err(QueueError::NotInFlight { .. })), "{features:#x}");
        assert!(!other.has_unpublished());
    }
}

#[test]
fn an_unpopped_chain_is_not_waited_for_in_order() {
    for features in [F_IN_ORDER, F_IN_ORDER | F_RING_PACKED] {
        let mem = guest_ram(RAM);
        let mut driver = DriverQueue::new(&mem, BASE, 8, features);
        let mut queue = Queue::new(&mem, &driver.state(), features, 8).unwrap();
        for _ in 0..2 {
            driver.post(&[Buf::Write(4)]);
        }
        driver.publish();
        let (first, second) = (pop(&mut queue, &mem), pop(&mut queue, &mem));
        queue.unpop(second);
        queue.push(&mem, first, 0).unwrap();
        let second = pop(&mut queue, &mem);
        queue.push(&mem, second, 0).unwrap();
        queue.publish(&mem).unwrap();
        assert_eq!((driver.used().len(), queue.in_flight()), (2, 0), "{features:#x}");
    }
}

#[test]
fn a_buffer_that_begins_in_known_memory_is_checked_to_its_end() {
    for features in [0, F_RING_PACKED] {
        for (addr, len) in [(RAM as u64 - 8, 9), ((1 << 32) + RAM as u64 - 8, 9)] {
            let mem = guest_ram(RAM);
            let mut driver = DriverQueue::new(&mem, BASE, 8, features);
            let mut queue = Queue::new(&mem, &driver.state(), features, 8).unwrap();
            // The pieces before it make both regions known.
            let known = |addr| Descriptor { addr, len: 8, flags: NEXT, next: 0 };
            let chain = [known(0x1000), known(1 << 32), known(addr), Descriptor { addr, len, flags: 0, next: 0 }];
            for (i, desc) in (0u16..).zip(chain) {
                if features == 0 {
                    driver.write_descriptor(i, Descriptor { next: i + 1, ..desc });
                } else {
                    driver.place(desc, 0);
                }
            }
            if features == 0 {
                driver.offer(0);
            }
            driver.publish();
            let outside = OutsideMemory { addr, len: len.into() };
            assert_eq!(queue.pop(&mem).unwrap_err(), QueueError::OutsideMemory(outside));
        }
    }
}

#[test]
fn a_descriptor_that_is_offered_again_before_the_driver_was_shown_it_used_is_refused() {
    let one = Descriptor { addr: 0x1000, len: 4, flags: WRITE, next: 0 };
    let (mem, mut driver, mut queue) = setup(1, 0);
    driver.place(one, 7);
    driver.publish();
    let first = pop(&mut queue, &mem);
    queue.push(&mem, first, 4).unwrap();
    // Its used descriptor waits for the end of the batch, in the place where the second lap begins.
    driver.place(one, 7);
    driver.publish();
    assert_eq!(queue.pop(&mem).unwrap_err(), QueueError::Overrun { slots: 1, free: 0 });
    queue.publish(&mem).unwrap();
    assert_eq!(driver.used(), [Used { head: 7, len: 4 }], "what was given back is shown all the same");
}
