//! Rules of virtio 1.3 §2.7 and §2.8 that leave a trace in guest memory, a rule a test.

use super::*;
use crate::virtio::testing::FickleMemory;

/// `flags` of the used ring.
fn used_flags(mem: &GuestRam, queue: &Queue) -> u16 {
    mem.load_u16(queue.state().used_ring, Ordering::Relaxed).unwrap()
}

/// Posts a buffer and lets the device return it. Whether an interrupt was wanted.
fn round(mem: &GuestRam, driver: &mut DriverQueue, queue: &mut Queue) -> bool {
    driver.post(&[Buf::Write(1)]);
    driver.publish();
    let chain = queue.pop(mem).unwrap().unwrap();
    queue.push(mem, chain, 0).unwrap();
    let wanted = queue.publish(mem).unwrap();
    driver.used();
    wanted
}

#[test]
fn without_event_index_the_used_event_means_nothing() {
    let (mem, mut driver, mut queue) = setup(8, 0);
    for event in [0, 1, 2, 5, 0x7fff, 0x8000, 0xffff] {
        driver.set_used_event(event);
        assert!(round(&mem, &mut driver, &mut queue), "event {event}");
        driver.set_no_interrupt(true);
        assert!(!round(&mem, &mut driver, &mut queue), "event {event}, no interrupt");
        driver.set_no_interrupt(false);
    }
}

#[test]
fn of_the_available_flags_only_the_lowest_bit_counts() {
    let (mem, mut driver, mut queue) = setup(8, 0);
    for (flags, wanted) in [(0, true), (0xfffe, true), (2, true), (1, false), (0xffff, false), (0x8001, false)] {
        mem.store_u16(driver.state().avail_ring, flags, Ordering::Relaxed).unwrap();
        assert_eq!(round(&mem, &mut driver, &mut queue), wanted, "{flags:#x}");
    }
}

#[test]
fn what_was_in_the_used_ring_before_the_device_means_nothing_to_it() {
    for features in [0, F_EVENT_IDX] {
        let mem = guest_ram(RAM);
        let mut driver = DriverQueue::new(&mem, BASE, 8, features);
        let used = driver.state().used_ring;
        // A driver that did not zero it; the index it did, or it would take noise for used buffers.
        mem.write_slice(&[0xff; 6 + 8 * 8], GuestAddress(used)).unwrap();
        mem.store_u16(used + 2, 0, Ordering::Relaxed).unwrap();
        let mut queue = Queue::new(&mem, &driver.state(), features, 8).unwrap();
        for _ in 0..10 {
            queue.enable_kicks(&mem).unwrap();
            // With EVENT_IDX the driver ignores the flags.
            assert!(features != 0 || used_flags(&mem, &queue) == 0, "the driver would never kick");
            driver.set_used_event(queue.state().next_used);
            driver.set_no_interrupt(false);
            assert!(round(&mem, &mut driver, &mut queue));
        }
    }
}

#[test]
fn links_are_followed_in_an_indirect_table_that_is_not_in_sequence() {
    for features in [F_INDIRECT_DESC, F_INDIRECT_DESC | F_IN_ORDER] {
        let (mem, mut driver, mut queue) = setup(8, features);
        let entry = |len, flags, next| Descriptor { addr: 0x1000 * u64::from(len), len, flags, next };
        let table = [entry(1, Descriptor::NEXT, 2), entry(3, 0, 0), entry(2, Descriptor::NEXT, 1)];
        let table = driver.buffer(&table.map(|entry| entry.to_bytes()).concat());
        let indirect = Descriptor { addr: table.addr, len: table.len, flags: Descriptor::INDIRECT, next: 0 };
        driver.write_descriptor(0, indirect);
        driver.offer(0);
        driver.publish();
        let chain = queue.pop(&mem).unwrap().unwrap();
        assert_eq!(chain.readable().iter().map(|range| range.len).collect::<Vec<_>>(), [1, 2, 3]);
        queue.push(&mem, chain, 0).unwrap();
    }
}

#[test]
fn the_used_flags_are_0_or_1_and_with_event_index_always_0() {
    for (features, suppressed) in [(0, 1), (F_EVENT_IDX, 0)] {
        let (mem, mut driver, mut queue) = setup(8, features);
        for _ in 0..10 {
            queue.disable_kicks(&mem).unwrap();
            assert_eq!(used_flags(&mem, &queue), suppressed);
            round(&mem, &mut driver, &mut queue);
            queue.enable_kicks(&mem).unwrap();
            assert_eq!(used_flags(&mem, &queue), 0);
        }
    }
}

#[test]
fn with_event_index_the_device_asks_for_the_kick_of_the_next_buffer() {
    let (mem, mut driver, mut queue) = setup(8, F_EVENT_IDX);
    for turn in 0..20u16 {
        queue.enable_kicks(&mem).unwrap();
        let event = mem.load_u16(queue.state().used_ring + 4 + 8 * 8, Ordering::Relaxed).unwrap();
        assert_eq!(event, turn);
        round(&mem, &mut driver, &mut queue);
    }
}

#[test]
fn no_descriptor_of_a_split_ring_or_of_an_indirect_table_is_written() {
    let (mem, mut driver, mut queue) = setup(8, F_INDIRECT_DESC);
    driver.post(&[Buf::Read(vec![1; 9]), Buf::Write(7), Buf::Write(5)]);
    driver.post_indirect(&[Buf::Read(vec![2; 9]), Buf::Write(7), Buf::Write(5)]);
    driver.publish();
    let image = || {
        let mut table = [0; 16 * 8];
        mem.read_slice(&mut table, GuestAddress(driver.state().desc_table)).unwrap();
        let indirect = table.chunks(16).find(|entry| entry[12] & Descriptor::INDIRECT as u8 != 0).unwrap();
        let mut entries = [0; 16 * 3];
        let at = u64::from_le_bytes(indirect[..8].try_into().unwrap());
        mem.read_slice(&mut entries, GuestAddress(at)).unwrap();
        (table, entries)
    };
    let before = image();
    for _ in 0..2 {
        let chain = queue.pop(&mem).unwrap().unwrap();
        chain.writer(&mem).write(&[0x77; 12]).unwrap();
        queue.push(&mem, chain, 12).unwrap();
        queue.publish(&mem).unwrap();
    }
    assert_eq!(image(), before);
}

#[test]
fn an_available_index_that_goes_back_is_refused() {
    for back in 1..=4u16 {
        let (mem, mut driver, mut queue) = setup(8, 0);
        for _ in 0..4 {
            round(&mem, &mut driver, &mut queue);
        }
        driver.set_avail_index(4 - back);
        assert_eq!(queue.pop(&mem).unwrap_err(), QueueError::IndexJump { index: 4 - back, next: 4, size: 8 });
    }
}

#[test]
fn a_look_counts_the_chains_of_an_index_that_keeps_the_rules_and_of_no_other() {
    let (mem, mut driver, mut queue) = setup(8, 0);
    for _ in 0..4 {
        driver.post(&[Buf::Write(8)]);
    }
    driver.set_avail_index(2);
    queue.look(&mem);
    driver.set_avail_index(4);
    assert_eq!(queue.seen(), 2);
    queue.look(&mem);
    assert_eq!(queue.seen(), 4);
    queue.pop(&mem).unwrap().unwrap().abandon();
    for broken in [0, 20] {
        driver.set_avail_index(broken);
        queue.look(&mem);
        assert_eq!(queue.seen(), 3);
    }
    // What was seen before it broke is taken, and then it is found.
    for _ in 0..3 {
        queue.pop(&mem).unwrap().unwrap().abandon();
    }
    assert_eq!(queue.pop(&mem).unwrap_err(), QueueError::IndexJump { index: 20, next: 4, size: 8 });
}

#[test]
fn split_buffers_are_returned_with_their_length_in_place_before_the_index_moves() {
    let (mem, mut driver, mut queue) = setup(8, 0);
    let posted = driver.post(&[Buf::Write(100)]);
    driver.publish();
    let chain = queue.pop(&mem).unwrap().unwrap();
    queue.push(&mem, chain, 33).unwrap();
    let used = queue.state().used_ring;
    let element: [u32; 2] = mem.read_obj(GuestAddress(used + 4)).unwrap();
    assert_eq!(element, [posted.head.into(), 33]);
    assert_eq!(mem.load_u16(used + 2, Ordering::Relaxed), Ok(0), "not shown yet");
    queue.publish(&mem).unwrap();
    assert_eq!(mem.load_u16(used + 2, Ordering::Relaxed), Ok(1));
}

#[test]
fn a_packed_ring_is_taken_in_its_order_and_returned_in_the_order_of_completion() {
    let features = F_RING_PACKED;
    let mem = guest_ram(RAM);
    let mut driver = DriverQueue::new(&mem, BASE, 8, features);
    let mut queue = Queue::new(&mem, &driver.state(), features, 8).unwrap();
    for lap in 0..10 {
        let posted: Vec<_> = (0..4).map(|_| driver.post(&[Buf::Write(1), Buf::Write(1)])).collect();
        driver.publish();
        let mut chains: Vec<Chain> = (0..4).map(|_| queue.pop(&mem).unwrap().unwrap()).collect();
        for (chain, posted) in chains.iter().zip(&posted) {
            assert_eq!(chain.writable(), posted.buffers, "lap {lap}: each list in its order, one after the other");
        }
        let order = [2, 0, 1, 0];
        let mut expected: Vec<u32> = posted.iter().map(|posted| posted.head.into()).collect();
        let expected = order.map(|nth| expected.remove(nth));
        for nth in order {
            queue.push(&mem, chains.remove(nth), 1).unwrap();
        }
        queue.publish(&mem).unwrap();
        assert_eq!(driver.used().iter().map(|used| used.head).collect::<Vec<_>>(), expected, "lap {lap}");
    }
}

#[test]
fn a_used_descriptor_of_a_packed_ring_is_written_once_and_its_address_never() {
    let features = F_RING_PACKED;
    let mem = guest_ram(RAM);
    let mut driver = DriverQueue::new(&mem, BASE, 8, features);
    let mut queue = Queue::new(&mem, &driver.state(), features, 8).unwrap();
    let fickle = FickleMemory::new(&mem);
    for _ in 0..8 {
        driver.post(&[Buf::Write(1)]);
    }
    driver.publish();
    for batch in [1, 3, 4] {
        for _ in 0..batch {
            fickle.snapshot();
            let chain = queue.pop(&fickle).unwrap().unwrap();
            queue.push(&fickle, chain, 1).unwrap();
        }
        queue.publish(&fickle).unwrap();
    }
    let ring: HashMap<u64, usize> = fickle.stores().into_iter().filter(|(at, _)| *at < BASE + 16 * 8).collect();
    assert_eq!(ring, (0..8).map(|slot| (BASE + 16 * slot + 8, 1)).collect());
    assert_eq!(driver.used().len(), 8);
}

#[test]
fn a_descriptor_whose_flags_have_not_changed_is_not_used() {
    // All but the one right pair of flags in each lap: of the lap before, of the lap after, used, or never written.
    let features = F_RING_PACKED;
    for (wrap, right) in [(true, 0x0080_u16), (false, 0x8000)] {
        for flags in [0, 0x0080, 0x8000, 0x8080] {
            let mem = guest_ram(RAM);
            let driver = DriverQueue::new(&mem, BASE, 4, features);
            let next = if wrap { QueueState::PACKED_START } else { 0 };
            let state = QueueState { next_avail: next, next_used: next, ..driver.state() };
            let mut queue = Queue::new(&mem, &state, features, 4).unwrap();
            mem.write_obj(0x1000_u64, GuestAddress(BASE)).unwrap();
            mem.write_obj(16 | u64::from(flags) << 48, GuestAddress(BASE + 8)).unwrap();
            match queue.pop(&mem).unwrap() {
                Some(chain) => {
                    assert_eq!(flags, right);
                    chain.abandon();
                }
                None => assert_ne!(flags, right),
            }
        }
    }
}
