//! Attacks on network cards.

use devices::virtio::queue::Descriptor;
use devices::virtio::testing::Buf;
use vm_memory::{Bytes, GuestAddress};

use super::rig::{MRG_RXBUF, RAM, SIZE, formats, net, offer_raw};

const WRITE: u16 = Descriptor::WRITE;

#[test]
fn cve_2021_3748_a_mergeable_buffer_outside_memory_returns_no_element_of_the_frame() {
    for features in formats() {
        let mut rig = net(features | MRG_RXBUF);
        let packed = rig.packed();
        // The frame needs two buffers; the second is where registers are.
        let one = |addr| Descriptor { addr, len: 64, flags: WRITE, next: 0 };
        if packed {
            rig.rx.place(one(0x1000), 0);
            rig.rx.place(one(0xfee0_0000), 1);
        } else {
            rig.rx.write_descriptor(0, one(0x1000));
            rig.rx.write_descriptor(1, one(0xfee0_0000));
            rig.rx.offer(0);
            rig.rx.offer(1);
        }
        rig.rx.publish();
        rig.link.arrive([0; 12], &[1; 100]);
        rig.step();
        assert_eq!(rig.interrupt.take_needs_reset().len(), 1);
        assert!(rig.rx.used().is_empty());
        rig.revive();
    }
}

#[test]
fn cve_2015_7295_a_frame_larger_than_every_posted_buffer_is_dropped_whole() {
    for features in formats() {
        for merge in [0, MRG_RXBUF] {
            let mut rig = net(features | merge);
            for _ in 0..SIZE {
                rig.rx.post(&[Buf::Write(64)]);
            }
            rig.rx.publish();
            rig.link.arrive([0; 12], &vec![1; 9000]);
            rig.link.arrive([0; 12], &[2; 40]);
            rig.step();
            assert_eq!(rig.rx_counters.dropped.get(), 1);
            let used = rig.rx.used();
            assert_eq!(used.last().unwrap().len, 52, "the next frame is not kept back");
            assert!(used[..used.len() - 1].iter().all(|used| used.len == 0));
            rig.revive();
        }
    }
}

#[test]
fn cve_2020_16843_receive_goes_on_after_the_buffers_ran_out() {
    for features in formats() {
        for merge in [0, MRG_RXBUF] {
            let mut rig = net(features | merge);
            let mut received = 0;
            for round in 0..20 {
                for _ in 0..3 * SIZE {
                    rig.link.arrive([0; 12], &[round; 60]);
                }
                while rig.link.waiting() > 0 {
                    while rig.rx.free() > 0 {
                        rig.rx.post(&[Buf::Write(128)]);
                    }
                    rig.rx.publish();
                    rig.step();
                    received += rig.rx.used().len();
                }
            }
            assert_eq!(received, 20 * 3 * usize::from(SIZE));
            rig.revive();
        }
    }
}

#[test]
fn firecracker_4526_the_size_of_a_frame_is_checked_before_anything_is_copied() {
    for features in formats() {
        let mut rig = net(features);
        // A page described again and again: far beyond any frame.
        let piece = Descriptor { addr: 0, len: 0x20_0000, flags: Descriptor::NEXT, next: 0 };
        let mut chain = vec![piece; 4];
        chain[3].flags = 0;
        let packed = rig.packed();
        offer_raw(&mut rig.tx, packed, &chain);
        rig.step();
        assert_eq!((rig.tx.used().len(), rig.tx_counters.dropped.get(), rig.link.take_sent().len()), (1, 1, 0));
        rig.revive();
    }
}

#[test]
fn generic_a_header_alone_or_cut_short_is_never_a_frame() {
    for features in formats() {
        let mut rig = net(features);
        for len in 0..=12 {
            rig.tx.post(&[Buf::Read(vec![0xff; len])]);
            rig.tx.publish();
            rig.step();
            assert_eq!(rig.tx.used().len(), 1);
        }
        assert!(rig.link.take_sent().is_empty());
        rig.revive();
    }
}

#[test]
fn generic_header_fields_that_point_beyond_the_frame_reach_the_link_as_they_are_and_nothing_else() {
    // csum_start, csum_offset, hdr_len and gso_size are indices into the frame: the device follows none of them.
    for features in formats() {
        let mut rig = net(features);
        let before: u64 = rig.mem.read_obj(GuestAddress(RAM - 8)).unwrap();
        rig.tx.post(&[Buf::Read(vec![0xff; 12]), Buf::Read(vec![1; 60])]);
        rig.tx.publish();
        rig.step();
        let sent = rig.link.take_sent();
        assert_eq!((rig.tx.used().len(), sent.len()), (1, 1));
        assert_eq!(sent[0].1, [1; 60]);
        assert_eq!(rig.mem.read_obj::<u64>(GuestAddress(RAM - 8)).unwrap(), before);
        rig.revive();
    }
}
