//! Attacks on rings and chains.

use std::sync::atomic::Ordering;

use devices::virtio::queue::{Descriptor, F_INDIRECT_DESC, F_RING_PACKED, Queue, QueueError, RingMem};
use devices::virtio::testing::{Buf, DriverQueue, FickleMemory, guest_ram};
use vm_memory::{Bytes, GuestAddress};

use super::rig::{DISK_BYTES, Disk, RAM, SIZE, disk, formats, header, net, offer_raw};

const NEXT: u16 = Descriptor::NEXT;
const WRITE: u16 = Descriptor::WRITE;
const INDIRECT: u16 = Descriptor::INDIRECT;
/// Where hostile tables are.
const TABLE: u64 = 0x8000;

fn desc(addr: u64, len: u32, flags: u16) -> Descriptor {
    Descriptor { addr, len, flags, next: 0 }
}

/// Writes an indirect table in the layout of the ring's format.
fn table(rig: &Disk, entries: &[Descriptor]) {
    for (i, entry) in (0u64..).zip(entries) {
        let entry = if rig.packed() {
            Descriptor { flags: 0, next: entry.flags, ..*entry }
        } else {
            let next = if entry.next == 0 { i as u16 + 1 } else { entry.next };
            Descriptor { next, ..*entry }
        };
        rig.mem.write_slice(&entry.to_bytes(), GuestAddress(TABLE + 16 * i)).unwrap();
    }
}

#[test]
fn cve_2011_2212_indirect_table_longer_than_queue() {
    for features in formats() {
        for entries in [9u32, 16, 1024, 0x0fff_ffff] {
            let mut rig = disk(features);
            table(&rig, &[desc(0x1000, 16, NEXT); 32]);
            rig.attack(&[desc(TABLE, entries.wrapping_mul(16), INDIRECT)]);
            rig.is_refused();
            rig.revive();
        }
    }
}

#[test]
fn cve_2016_6490_zero_length_descriptors_alone_and_in_the_middle_end() {
    for features in formats() {
        let mut rig = disk(features);
        for posts in [
            vec![Buf::Write(0)],
            vec![Buf::Read(vec![])],
            vec![Buf::Write(0); 8],
            vec![header(0, 0), Buf::Read(vec![]), Buf::Write(0), Buf::Write(0)],
        ] {
            rig.driver.post(&posts);
            rig.driver.publish();
            rig.step();
            assert_eq!(rig.driver.used().len(), 1, "returned, not looped over");
        }
        assert!(rig.disk.take_log().is_empty());
        let mixed = [
            Buf::Read(vec![]),
            header(0, 0),
            Buf::Write(0),
            Buf::Write(512),
            Buf::Write(0),
            Buf::Write(1),
            Buf::Write(0),
        ];
        assert_eq!(rig.request(&mixed), (0, 513));
        rig.revive();
    }
}

#[test]
fn cve_2016_5403_republishing_without_waiting_has_no_more_requests_in_flight_than_the_ring_has_entries() {
    for features in formats() {
        let mut rig = disk(features);
        rig.disk.hold(true);
        for _ in 0..SIZE {
            rig.driver.post_indirect(&[header(0, 0), Buf::Write(512), Buf::Write(1)]);
        }
        rig.driver.publish();
        rig.step();
        assert_eq!(rig.disk.take_log().len(), usize::from(SIZE));
        for _ in 0..100 {
            if rig.packed() {
                rig.driver.place(desc(0x1000, 16, 0), 77);
            } else {
                rig.driver.offer(3);
            }
            rig.driver.publish();
            rig.step();
        }
        assert!(rig.disk.take_log().is_empty());
        assert_eq!(rig.interrupt.take_needs_reset().len(), 1);
        rig.revive();
    }
}

#[test]
fn cve_2016_7422_openvmm_4047_lengths_that_wrap_or_leave_memory() {
    for features in formats() {
        for (addr, len) in [
            (u64::MAX, 1),
            (u64::MAX, 2),
            (u64::MAX - 255, 256),
            (u64::MAX - 255, 512),
            (u64::MAX - 0xffff_fffe, u32::MAX),
            (1 << 63, u32::MAX),
            (RAM, 1),
            (RAM - 1, 2),
            (0, u32::MAX),
            ((1 << 32) - 1, 1),
            ((1 << 32) + RAM - 1, 2),
        ] {
            let mut rig = disk(features);
            rig.attack(&[desc(0x1000, 16, NEXT), desc(addr, len, WRITE | NEXT), desc(0x3000, 1, WRITE)]);
            rig.is_refused();
            rig.revive();
        }
    }
}

#[test]
fn cve_2021_29631_no_chain_that_cannot_be_fetched_becomes_a_request() {
    let read = desc(0x1000, 16, 0);
    let chains: [(&str, Vec<Descriptor>); 8] = [
        ("cycle", vec![desc(0x1000, 16, NEXT); usize::from(SIZE)]),
        ("order", vec![desc(0x1000, 16, NEXT | WRITE), read]),
        ("outside", vec![desc(RAM, 16, 0)]),
        ("second outside", vec![desc(0x1000, 16, NEXT), desc(RAM, 16, WRITE)]),
        ("empty table", vec![desc(TABLE, 0, INDIRECT)]),
        ("odd table", vec![desc(TABLE, 17, INDIRECT)]),
        ("table outside", vec![desc(RAM - 8, 16, INDIRECT)]),
        ("linked table", vec![desc(TABLE, 16, INDIRECT | NEXT), read]),
    ];
    for features in formats() {
        for (name, chain) in &chains {
            println!("{name}");
            let mut rig = disk(features);
            let mut chain = chain.clone();
            if *name == "cycle" {
                // Back to the first, which only a split ring can say; a packed one runs into its own tail.
                chain.last_mut().unwrap().next = if rig.packed() { 0 } else { 1 };
            }
            rig.attack(&chain);
            rig.is_refused();
            rig.revive();
        }
    }
}

#[test]
fn cve_2024_51563_ring_words_that_change_between_reads_are_read_once() {
    for features in [F_INDIRECT_DESC, F_INDIRECT_DESC | F_RING_PACKED] {
        let mem = guest_ram(RAM as usize);
        let mut driver = DriverQueue::new(&mem, 0x10_0000, SIZE, features);
        let mut queue = Queue::new(&mem, &driver.state(), features, SIZE).unwrap();
        let fickle = FickleMemory::new(&mem);
        for round in 0..20 {
            let bufs = [Buf::Read(vec![1; 16]), Buf::Write(512), Buf::Write(1)];
            let posted = if round % 2 == 0 { driver.post(&bufs) } else { driver.post_indirect(&bufs) };
            driver.publish();
            fickle.snapshot();
            let chain = queue.pop(&fickle).unwrap().unwrap();
            assert_eq!(fickle.reads().1, 1, "a word was read twice");
            let ranges: Vec<_> = chain.readable().iter().chain(chain.writable()).copied().collect();
            assert_eq!(ranges, posted.buffers, "the outcome is that of one snapshot");
            queue.push(&fickle, chain, 513).unwrap();
            queue.publish(&fickle).unwrap();
            assert_eq!(driver.used().len(), 1);
        }
    }
}

#[test]
fn vm_virtio_196_firecracker_3149_an_available_index_that_jumps_processes_nothing() {
    for jump in [SIZE + 1, SIZE + 2, 0x7fff, 0x8000, 0xffff] {
        let mut rig = disk(formats()[0]);
        assert_eq!(rig.request(&[header(0, 0), Buf::Write(512), Buf::Write(1)]).0, 0);
        rig.disk.take_log();
        rig.driver.set_avail_index(jump.wrapping_add(1));
        rig.step();
        rig.is_refused();
        rig.revive();
    }
    // A packed ring has no index; its counterpart is a lap that begins before the one before has come back.
    let mut rig = disk(formats()[1]);
    rig.disk.hold(true);
    table(&rig, &[desc(0x1000, 16, NEXT), desc(0x2000, 512, NEXT | WRITE), desc(0x3000, 1, WRITE)]);
    for lap in 0..2 {
        for id in 0..SIZE {
            rig.driver.place(desc(TABLE, 48, INDIRECT), id + lap * SIZE);
        }
        rig.driver.publish();
        rig.step();
    }
    assert_eq!(rig.interrupt.take_needs_reset().len(), 1);
    assert_eq!(rig.disk.take_log().len(), usize::from(SIZE), "one lap and no more");
    rig.revive();
}

#[test]
fn openvmm_4045_a_cyclic_chain_neither_spins_nor_survives_the_reset() {
    for features in formats() {
        let mut rig = disk(features);
        if rig.packed() {
            rig.attack(&[desc(0x1000, 16, NEXT); SIZE as usize]);
        } else {
            rig.driver.write_descriptor(0, Descriptor { next: 1, ..desc(0x1000, 16, NEXT) });
            rig.driver.write_descriptor(1, Descriptor { next: 0, ..desc(0x1000, 16, NEXT) });
            rig.driver.offer(0);
            rig.driver.publish();
            rig.step();
        }
        rig.is_refused();
        rig.revive();
    }
}

#[test]
fn cloud_hypervisor_8401_a_chain_that_is_only_a_header_gives_its_head_back() {
    for features in formats() {
        let mut rig = disk(features);
        for kind in [0, 1, 4, 8, 11, 13, 0xffff_ffff] {
            for bytes in [0, 1, 15, 16, 17] {
                let Buf::Read(head) = header(kind, 0) else { unreachable!() };
                let cut = head.iter().copied().chain([0]).take(bytes).collect();
                rig.driver.post(&[Buf::Read(cut)]);
                rig.driver.publish();
                rig.step();
                assert_eq!(rig.driver.used().len(), 1, "type {kind}, {bytes} bytes");
            }
        }
        assert!(rig.interrupt.take_needs_reset().is_empty(), "a bad request is not a bad ring");
        rig.revive();
    }
}

#[test]
fn propolis_heads_and_links_beyond_the_table_and_sums_beyond_32_bits() {
    let mut rig = disk(formats()[0]);
    for head in [SIZE, SIZE + 1, 0x7fff, 0xffff] {
        rig.driver.offer(head);
        rig.driver.publish();
        rig.step();
        rig.is_refused();
        rig.revive();
    }
    table(&rig, &[Descriptor { next: 500, ..desc(0x1000, 16, NEXT) }]);
    rig.attack(&[desc(TABLE, 16, INDIRECT)]);
    rig.is_refused();
    rig.revive();
    // A table that leads back into itself for ever.
    table(&rig, &[Descriptor { next: 1, ..desc(0x1000, 16, NEXT) }, Descriptor { next: 1, ..desc(0x1000, 16, NEXT) }]);
    rig.attack(&[desc(TABLE, 32, INDIRECT)]);
    rig.is_refused();
    rig.revive();
    // Lengths whose 32-bit sum is a small number: 8 * 0x2000_0001 = 8 modulo 2³².
    let mem = guest_ram(0x2001_0000);
    for features in [0, F_RING_PACKED] {
        let mut driver = DriverQueue::new(&mem, 0x10_0000, SIZE, features);
        let mut queue = Queue::new(&mem, &driver.state(), features, SIZE).unwrap();
        let link = desc(0, 0x2000_0001, NEXT | WRITE);
        let mut chain = vec![link; usize::from(SIZE)];
        chain[7].flags = WRITE;
        offer_raw(&mut driver, features != 0, &chain);
        assert_eq!(queue.pop(&mem).unwrap_err(), QueueError::TooManyBytes);
    }
}

#[test]
fn rust_vmm_a_malformed_chain_is_never_a_shorter_valid_request() {
    // The first two descriptors are a valid flush; the third is the fault.
    for features in formats() {
        for fault in [desc(RAM, 1, WRITE), desc(0x3000, 1, 0), desc(TABLE, 24, INDIRECT)] {
            let mut rig = disk(features);
            rig.mem.write_slice(&4u32.to_le_bytes(), GuestAddress(0x1000)).unwrap();
            rig.attack(&[desc(0x1000, 16, NEXT), desc(0x2000, 1, WRITE | NEXT), fault]);
            rig.is_refused();
            assert_eq!(rig.mem.read_obj::<u8>(GuestAddress(0x2000)).unwrap(), 0, "no status was written");
            rig.revive();
        }
    }
}

#[test]
fn cve_2021_3750_cve_2021_3929_cve_2024_3446_descriptors_at_device_registers_are_no_memory() {
    // Where a machine puts its BARs and its APIC: a device that wrote there would call itself.
    for features in formats() {
        for target in [0xfee0_0000u64, 0xe000_0000, 0xb000_0000, 0xfec0_0000, 0x80_0000_0000] {
            let mut rig = disk(features);
            rig.attack(&[desc(0x1000, 16, NEXT), desc(target, 512, WRITE | NEXT), desc(0x3000, 1, WRITE)]);
            rig.is_refused();
            rig.attack_ring_at(target);
            rig.revive();
            let mut card = net(features);
            let packed = card.packed();
            offer_raw(&mut card.rx, packed, &[desc(target, 2048, WRITE)]);
            card.link.arrive([0; 12], &[1; 60]);
            card.step();
            assert_eq!(card.interrupt.take_needs_reset().len(), 1);
            assert!(card.rx.used().is_empty());
            card.revive();
        }
    }
}

impl Disk {
    /// The rings themselves at `target`.
    fn attack_ring_at(&mut self, target: u64) {
        for area in 0..3 {
            self.stop(true);
            let mut state = self.driver.state();
            *[&mut state.desc_table, &mut state.avail_ring, &mut state.used_ring][area] = target;
            self.interrupt.take_needs_reset();
            self.worker.start(&self.mem, 0, state, &self.interrupt.activation(self.features));
            assert_eq!(self.interrupt.take_needs_reset().len(), 1);
            // Kept where revive finds a queue to stop.
            self.start();
        }
    }
}

#[test]
fn cve_2019_18960_a_buffer_across_the_end_of_a_region_is_refused_and_pieces_on_both_sides_are_not() {
    for features in formats() {
        for write in [0, WRITE] {
            let mut rig = disk(features);
            rig.attack(&[desc(0x1000, 16, NEXT), desc(RAM - 256, 512, write | NEXT), desc(0x3000, 1, WRITE)]);
            rig.is_refused();
            rig.revive();
        }
        let mut rig = disk(features);
        rig.mem.write_slice(&[0; 16], GuestAddress(0x1000)).unwrap();
        rig.disk.fill(0, &[0x77; 512]);
        rig.attack(&[
            desc(0x1000, 16, NEXT),
            desc(RAM - 256, 256, WRITE | NEXT),
            desc(1 << 32, 256, WRITE | NEXT),
            desc(0x3000, 1, WRITE),
        ]);
        let mut both = [0; 512];
        rig.mem.read_slice(&mut both[..256], GuestAddress(RAM - 256)).unwrap();
        rig.mem.read_slice(&mut both[256..], GuestAddress(1 << 32)).unwrap();
        assert_eq!(both, [0x77; 512]);
        assert!(rig.interrupt.take_needs_reset().is_empty());
    }
}

#[test]
fn cve_2026_45782_two_chains_never_share_a_head_while_the_disk_works() {
    for features in formats() {
        let mut rig = disk(features);
        rig.disk.hold(true);
        rig.mem.write_slice(&[0; 16], GuestAddress(0x1000)).unwrap();
        let request = [desc(0x1000, 16, NEXT), desc(0x2000, 512, WRITE | NEXT), desc(0x3000, 1, WRITE)];
        rig.attack(&request);
        assert_eq!(rig.disk.take_log().len(), 1);
        rig.attack(&request);
        assert!(rig.disk.take_log().is_empty());
        assert_eq!(rig.interrupt.take_needs_reset().len(), 1);
        // The one in flight completes as ever, once.
        assert!(rig.disk.complete(0));
        rig.step();
        assert_eq!(rig.driver.used().len(), 1);
        rig.revive();
    }
    // And completions in reverse order go to the requests they belong to.
    for features in formats() {
        let mut rig = disk(features);
        rig.disk.hold(true);
        for sector in 0..2u64 {
            rig.disk.fill(512 * sector as usize, &[sector as u8 + 1; 512]);
        }
        let posted: Vec<_> =
            (0..2).map(|sector| rig.driver.post(&[header(0, sector), Buf::Write(512), Buf::Write(1)])).collect();
        rig.driver.publish();
        rig.step();
        for nth in [1, 0] {
            assert!(rig.disk.complete(nth));
            rig.step();
            let used = rig.driver.used();
            assert_eq!((used.len(), used[0].head), (1, posted[nth].head.into()));
            assert_eq!(rig.driver.read(posted[nth].buffers[1]), vec![nth as u8 + 1; 512]);
        }
        assert_eq!(DISK_BYTES % 512, 0);
    }
}

#[test]
fn generic_index_every_u16_a_driver_can_put_into_a_ring_is_a_request_or_an_error() {
    let mem = guest_ram(RAM as usize);
    for word in 0..=u16::MAX {
        let driver = DriverQueue::new(&mem, 0x10_0000, SIZE, 0);
        let state = driver.state();
        let mut queue = Queue::new(&mem, &state, 0, SIZE).unwrap();
        mem.store_u16(state.avail_ring + 4, word, Ordering::Relaxed).unwrap();
        mem.store_u16(state.avail_ring + 2, 1, Ordering::Relaxed).unwrap();
        match queue.pop(&mem) {
            Ok(Some(chain)) => {
                assert!(word < SIZE);
                queue.push(&mem, chain, 0).unwrap();
            }
            other => assert_eq!(other.unwrap_err(), QueueError::BadHead { head: word, size: SIZE }),
        }
    }
}
