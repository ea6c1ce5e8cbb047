//! Where `virtio-queue` falls short of what a device here needs: each test shows the crate's behaviour beside ours, so
//! that it fails, and the wrapper can shrink, on the day the crate closes the gap.

use virtio_queue::{Queue as CrateQueue, QueueOwnedT, QueueT};
use vm_memory::{Bytes, GuestAddress};

use super::*;
use crate::GuestRam;
use crate::virtio::testing::{Buf, DriverQueue, Used, guest_ram};

const BASE: u64 = 0x10_0000;
const RAM: usize = 0x20_0000;

fn setup(features: u64) -> (GuestRam, DriverQueue, CrateQueue, Queue) {
    let mem = guest_ram(RAM);
    let driver = DriverQueue::new(&mem, BASE, 8, features);
    let state = driver.state();
    let mut theirs = CrateQueue::new(8).unwrap();
    theirs.try_set_size(8).unwrap();
    theirs.try_set_desc_table_address(GuestAddress(state.desc_table)).unwrap();
    theirs.try_set_avail_ring_address(GuestAddress(state.avail_ring)).unwrap();
    theirs.try_set_used_ring_address(GuestAddress(state.used_ring)).unwrap();
    theirs.set_event_idx(features & F_EVENT_IDX != 0);
    theirs.set_ready(true);
    let ours = Queue::new(&mem, &state, features, 8).unwrap();
    (mem, driver, theirs, ours)
}

fn link(addr: u64, flags: u16, next: u16) -> Descriptor {
    Descriptor { addr, len: 16, flags, next }
}

#[test]
fn gap_a_malformed_chain_ends_silently_and_looks_like_a_shorter_valid_one() {
    let (mem, mut driver, mut theirs, mut ours) = setup(0);
    driver.write_descriptor(0, link(0x1000, Descriptor::NEXT, 99));
    driver.offer(0);
    driver.publish();
    let chain = theirs.pop_descriptor_chain(&mem).unwrap();
    assert_eq!(chain.count(), 1, "a request of one descriptor, as if it were whole");
    assert_eq!(ours.pop(&mem).unwrap_err(), QueueError::BadNext { next: 99, entries: 8 });
}

#[test]
fn gap_a_cycle_is_cut_off_after_a_ring_of_descriptors_instead_of_being_refused() {
    let (mem, mut driver, mut theirs, mut ours) = setup(0);
    driver.write_descriptor(0, link(0x1000, Descriptor::NEXT, 0));
    driver.offer(0);
    driver.publish();
    assert_eq!(theirs.pop_descriptor_chain(&mem).unwrap().count(), 8);
    assert_eq!(ours.pop(&mem).unwrap_err(), QueueError::Cycle { index: 0 });
}

#[test]
fn gap_reader_and_writer_walk_the_chain_again_so_the_guest_can_change_it_in_between() {
    let (mem, mut driver, mut theirs, mut ours) = setup(0);
    driver.write_descriptor(0, link(0x1000, Descriptor::NEXT, 1));
    driver.write_descriptor(1, link(0x2000, Descriptor::WRITE, 0));
    driver.offer(0);
    driver.publish();
    let chain = theirs.pop_descriptor_chain(&mem).unwrap();
    let reader = chain.clone().reader(&mem).unwrap();
    assert_eq!(reader.available_bytes(), 16);
    let owned = ours.pop(&mem).unwrap().unwrap();
    driver.write_descriptor(0, Descriptor { len: 7, ..link(0x1000, Descriptor::NEXT, 1) });
    driver.write_descriptor(1, Descriptor { len: 9999, ..link(0x2000, Descriptor::WRITE, 0) });
    assert_eq!(chain.reader(&mem).unwrap().available_bytes(), 7, "the second look differs from the first");
    assert_eq!((owned.readable_bytes(), owned.writable_bytes()), (16, 16));
    ours.push(&mem, owned, 0).unwrap();
}

#[test]
fn gap_the_ring_slot_is_consumed_before_the_head_is_checked() {
    let (mem, mut driver, mut theirs, mut ours) = setup(0);
    driver.offer(500);
    driver.publish();
    assert_eq!(theirs.pop_descriptor_chain(&mem).unwrap().count(), 0, "an empty chain");
    assert_eq!(theirs.next_avail(), 1);
    assert_eq!(ours.pop(&mem).unwrap_err(), QueueError::BadHead { head: 500, size: 8 });
    assert_eq!(ours.state().next_avail, 0);
}

#[test]
fn gap_a_head_in_flight_is_handed_out_again() {
    let (mem, mut driver, mut theirs, mut ours) = setup(0);
    let posted = driver.post(&[Buf::Write(4)]);
    driver.offer(posted.head);
    driver.publish();
    let heads: Vec<_> = theirs.iter(&mem).unwrap().map(|chain| chain.head_index()).collect();
    assert_eq!(heads, [posted.head; 2]);
    let first = ours.pop(&mem).unwrap().unwrap();
    assert_eq!(ours.pop(&mem).unwrap_err(), QueueError::HeadInFlight { head: posted.head });
    first.abandon();
}

#[test]
fn gap_descriptors_outside_guest_memory_are_handed_to_the_device() {
    let (mem, mut driver, mut theirs, mut ours) = setup(0);
    driver.write_descriptor(0, link(0xdead_beef_0000, Descriptor::WRITE, 0));
    driver.offer(0);
    driver.publish();
    let addresses: Vec<_> = theirs.pop_descriptor_chain(&mem).unwrap().map(|desc| desc.addr().0).collect();
    assert_eq!(addresses, [0xdead_beef_0000]);
    let outside = OutsideMemory { addr: 0xdead_beef_0000, len: 16 };
    assert_eq!(ours.pop(&mem).unwrap_err(), QueueError::OutsideMemory(outside));
}

#[test]
fn gap_a_readable_descriptor_after_a_writable_one_is_sorted_instead_of_refused() {
    let (mem, mut driver, mut theirs, mut ours) = setup(0);
    driver.write_descriptor(0, link(0x1000, Descriptor::NEXT | Descriptor::WRITE, 1));
    driver.write_descriptor(1, link(0x2000, 0, 0));
    driver.offer(0);
    driver.publish();
    let chain = theirs.pop_descriptor_chain(&mem).unwrap();
    assert_eq!((chain.clone().readable().count(), chain.writable().count()), (1, 1));
    assert_eq!(ours.pop(&mem).unwrap_err(), QueueError::ReadableAfterWritable);
}

#[test]
fn gap_indirect_tables_are_followed_without_having_been_negotiated() {
    let (mem, mut driver, mut theirs, mut ours) = setup(0);
    driver.post_indirect(&[Buf::Write(4), Buf::Write(4)]);
    driver.publish();
    assert_eq!(theirs.pop_descriptor_chain(&mem).unwrap().count(), 2);
    assert_eq!(ours.pop(&mem).unwrap_err(), QueueError::IndirectNotNegotiated);
}

#[test]
fn gap_an_indirect_table_may_be_longer_than_the_queue() {
    let (mem, mut driver, mut theirs, mut ours) = setup(F_INDIRECT_DESC);
    for index in 0..20u16 {
        let flags = if index < 19 { Descriptor::NEXT } else { 0 };
        let desc = link(0x1000, flags, index + 1);
        mem.write_slice(&desc.to_bytes(), GuestAddress(0x8000 + 16 * u64::from(index))).unwrap();
    }
    driver.write_descriptor(0, Descriptor { addr: 0x8000, len: 320, flags: Descriptor::INDIRECT, next: 0 });
    driver.offer(0);
    driver.publish();
    assert_eq!(theirs.pop_descriptor_chain(&mem).unwrap().count(), 20);
    assert_eq!(ours.pop(&mem).unwrap_err(), QueueError::IndirectLength { len: 320, size: 8 });
}

#[test]
fn gap_each_used_element_is_published_on_its_own() {
    let (mem, mut driver, mut theirs, mut ours) = setup(0);
    let heads: Vec<u16> = (0..2).map(|_| driver.post(&[Buf::Write(4)]).head).collect();
    driver.publish();
    theirs.add_used(&mem, heads[0], 1).unwrap();
    assert_eq!(driver.used(), [Used { head: heads[0].into(), len: 1 }], "the driver sees half of a batch");

    let (mem, mut driver, _, mut fresh) = setup(0);
    std::mem::swap(&mut ours, &mut fresh);
    driver.post(&[Buf::Write(4)]);
    driver.publish();
    let chain = ours.pop(&mem).unwrap().unwrap();
    ours.push(&mem, chain, 1).unwrap();
    assert_eq!(driver.used(), []);
    ours.publish(&mem).unwrap();
    assert_eq!(driver.used().len(), 1);
}

#[test]
fn gap_a_driver_that_wants_no_interrupts_gets_them() {
    let (mem, mut driver, mut theirs, mut ours) = setup(0);
    driver.set_no_interrupt(true);
    let posted = driver.post(&[Buf::Write(4)]);
    driver.publish();
    theirs.add_used(&mem, posted.head, 0).unwrap();
    assert!(theirs.needs_notification(&mem).unwrap());
    let chain = ours.pop(&mem).unwrap().unwrap();
    ours.push(&mem, chain, 0).unwrap();
    assert!(!ours.publish(&mem).unwrap());
}

#[test]
fn gap_there_are_no_packed_rings() {
    let (mem, mut driver, mut theirs, mut ours) = setup(F_RING_PACKED);
    driver.post(&[Buf::Write(4)]);
    driver.publish();
    assert!(theirs.try_set_size(6).is_err(), "sizes that packed rings may have");
    assert!(theirs.pop_descriptor_chain(&mem).is_none(), "a driver that talks to nobody");
    ours.pop(&mem).unwrap().unwrap().abandon();
}
