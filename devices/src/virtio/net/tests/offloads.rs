//! What the header in front of a frame may say, whatever the link or the driver wrote there (virtio 1.3 §5.1.6.2,
//! §5.1.6.4).

use super::control::{ALL, ERR, OK};
use super::*;

const CSUM: u64 = 1;
const GUEST_TSO6: u64 = 1 << 8;
const GUEST_ECN: u64 = 1 << 9;
const HOST_TSO4: u64 = 1 << 11;
const HOST_TSO6: u64 = 1 << 12;
const HOST_ECN: u64 = 1 << 13;
const GUEST_USO4: u64 = 1 << 54;
const GUEST_USO6: u64 = 1 << 55;
const HOST_USO: u64 = 1 << 56;
const RSC_INFO: u8 = 4;
const ECN: u8 = 0x80;

/// What becomes of a frame that arrives with this header: its header at the driver, or `None` where it is dropped.
fn delivered(features: u64, arriving: Header) -> Option<Header> {
    let mut rig = rig(features);
    let posted = rig.post_rx(&[200]);
    rig.link.arrive(arriving, &frame(60));
    rig.step();
    let received = rig.received(&posted);
    assert_eq!(received.len() as u64 + rig.rx_counters.dropped.get(), 1);
    received.first().map(|bytes| bytes[..12].try_into().unwrap())
}

#[test]
fn flags_nobody_negotiated_do_not_reach_the_driver() {
    // Without RSC_EXT the driver would take csum_start for a checksum's place where it is a count of segments.
    for flags in 0..=255u8 {
        let header = delivered(V1 | GUEST_CSUM, header(flags, 0)).unwrap();
        assert_eq!(header[0], flags & 3, "{flags:#x}");
        assert_eq!(header[0] & RSC_INFO, 0);
    }
}

#[test]
fn no_segment_comes_without_its_checksum_to_complete_or_without_its_size() {
    let features = V1 | GUEST_CSUM | GUEST_TSO4 | GUEST_TSO6 | GUEST_USO4 | GUEST_USO6;
    for gso_type in [1, 4, 5] {
        assert!(delivered(features, header(1, gso_type)).is_some());
        for flags in [0, 2] {
            assert_eq!(delivered(features, header(flags, gso_type)), None, "no NEEDS_CSUM, type {gso_type}");
        }
        let mut sizeless = header(1, gso_type);
        sizeless[4..6].fill(0);
        assert_eq!(delivered(features, sizeless), None, "no gso_size, type {gso_type}");
    }
}

#[test]
fn each_kind_of_segment_comes_only_to_a_driver_that_accepted_it() {
    for (features, accepted) in [
        (0, [false; 7]),
        (GUEST_CSUM, [false; 7]),
        (GUEST_CSUM | GUEST_TSO4, [true, false, false, false, false, false, false]),
        (GUEST_CSUM | GUEST_TSO6, [false, true, false, false, false, false, false]),
        (GUEST_CSUM | GUEST_TSO4 | GUEST_ECN, [true, false, true, false, false, false, false]),
        (GUEST_CSUM | GUEST_TSO4 | GUEST_TSO6 | GUEST_ECN, [true, true, true, true, false, false, false]),
        (GUEST_CSUM | GUEST_USO4 | GUEST_USO6, [false, false, false, false, false, true, false]),
        // The header does not say which IP carries the datagrams.
        (GUEST_CSUM | GUEST_USO4, [false; 7]),
        (GUEST_CSUM | GUEST_USO6, [false; 7]),
        (GUEST_USO4 | GUEST_USO6, [false; 7]),
        (EVERY_OFFLOAD, [true, true, true, true, false, true, false]),
    ] {
        // TCP over IPv4 and IPv6, both with ECN, UDP fragments, UDP segments, and these with what only TCP has.
        for (gso_type, accepted) in [1, 4, 1 | ECN, 4 | ECN, 3, 5, 5 | ECN].into_iter().zip(accepted) {
            let found = delivered(V1 | features, header(1, gso_type));
            assert_eq!(found.map(|header| header[1]), accepted.then_some(gso_type), "{features:#x} {gso_type:#x}");
        }
    }
}

#[test]
fn a_frame_that_is_no_segment_has_no_congestion_bit() {
    for features in [V1, V1 | GUEST_CSUM, V1 | GUEST_CSUM | GUEST_TSO4 | GUEST_ECN] {
        assert_eq!(delivered(features, header(0, ECN)).unwrap()[1], 0);
    }
}

#[test]
fn flags_the_device_does_not_know_are_not_the_links_to_interpret() {
    let mut rig = rig(V1 | CSUM);
    for flags in 0..=255u8 {
        rig.send(&[Buf::Read(header(flags, 0).into()), Buf::Read(frame(60))]);
        assert_eq!(rig.link.take_sent(), [(header(flags & 1, 0), frame(60))], "{flags:#x}");
        assert_eq!(rig.tx.used().len(), 1);
    }
}

#[test]
fn wrong_lengths_and_offsets_in_a_sent_header_change_no_byte_of_the_frame() {
    // §5.1.6.2.2: hdr_len is a hint at most, and without NEEDS_CSUM the checksum's place means nothing.
    let mut rig = rig(V1 | CSUM | HOST_TSO4 | HOST_TSO6 | HOST_ECN);
    for (flags, gso_type) in [(0, 0), (1, 0), (1, 1), (1, 4), (1, 1 | ECN), (1, 4 | ECN)] {
        for value in [0, 1, 59, 60, 61, 0x7fff, 0xffff_u16] {
            let mut wrong = header(flags, gso_type);
            for field in [2, 6, 8] {
                wrong[field..field + 2].copy_from_slice(&value.to_le_bytes());
            }
            rig.send(&[Buf::Read(wrong.into()), Buf::Read(frame(60))]);
            let sent = rig.link.take_sent();
            assert_eq!((sent.len(), &sent[0].1), (1, &frame(60)), "{value:#x}");
            assert_eq!(sent[0].0[..2], [flags, gso_type], "what is asked of the link is left to it");
            assert_eq!(rig.tx.used().len(), 1);
        }
    }
}

#[test]
fn a_segment_the_driver_had_no_leave_for_is_answered_like_any_frame() {
    let mut rig = rig(V1);
    for (gso_type, flags, gso_size) in
        (0..=255).flat_map(|gso_type| [(gso_type, 0xff, 5), (gso_type, 0, 5), (gso_type, 1, 0)])
    {
        let mut header = header(flags, gso_type);
        header[5] = gso_size;
        rig.send(&[Buf::Read(header.into()), Buf::Read(frame(60))]);
        assert_eq!(rig.tx.used().len(), 1, "{gso_type:#x}");
        assert_eq!(rig.link.take_sent()[0].1, frame(60));
    }
    assert!(rig.interrupt.take_needs_reset().is_empty());
}

#[test]
fn a_legacy_driver_may_have_its_header_and_its_frame_in_any_descriptors() {
    let mut rig = rig(0);
    let whole = [header(1, 1)[..10].to_vec(), frame(60)].concat();
    for cut in [3, 10, 40, 70] {
        let (before, after) = whole.split_at(cut);
        rig.send(&[Buf::Read(before.into()), Buf::Read(after.into())]);
        assert_eq!(rig.link.take_sent(), [(header(1, 1), frame(60))], "cut at {cut}");
        let posted = vec![rig.rx.post(&[Buf::Write(cut as u32), Buf::Write(200)])];
        rig.rx.publish();
        rig.link.arrive(header(0, 0), &frame(60));
        rig.step();
        assert_eq!(rig.received(&posted)[0][10..], frame(60), "cut at {cut}");
    }
}

#[test]
fn no_offload_is_offered_without_the_one_it_needs() {
    for offloads in [false, true] {
        let features = NetDevice::new(NetConfig { offloads, ..config() }).with_udp_segments().features();
        for (feature, needs) in [
            (GUEST_USO4, GUEST_CSUM),
            (GUEST_USO6, GUEST_CSUM),
            (HOST_USO, CSUM),
            (GUEST_TSO4, GUEST_CSUM),
            (GUEST_TSO6, GUEST_CSUM),
            (GUEST_ECN, GUEST_TSO4 | GUEST_TSO6),
            (HOST_TSO4, CSUM),
            (HOST_TSO6, CSUM),
            (HOST_ECN, HOST_TSO4 | HOST_TSO6),
        ] {
            assert_eq!(features & feature != 0, offloads);
            assert!(features & feature == 0 || features & needs != 0, "{feature:#x}");
        }
    }
}

#[test]
fn features_nothing_here_stands_behind_are_never_offered() {
    // Hashes, coalescing, USO where the link has none, GUEST_HDRLEN, RSS, RSC_EXT, STANDBY, and SPEED_DUPLEX where neither was
    // given.
    let others = 50..=63;
    // UFO both ways.
    let udp = [10, 14];
    let features = NetDevice::new(NetConfig { mtu: Some(1500), ..config() }).features();
    for bit in udp.into_iter().chain(others) {
        assert_eq!(features & 1 << bit, 0, "bit {bit}");
    }
}

#[test]
fn what_is_not_to_be_offered_takes_what_asks_for_it_with_it() {
    let without = |mask: u64| NetDevice::new(config()).with_udp_segments().without_features(mask).features();
    let all = without(0);
    let gone = |mask: u64| all & !without(mask);
    let (csum, ctrl_vq, tso4, tso6, ecn) = (1, 1 << 17, 1 << 11, 1 << 12, 1 << 13);
    assert_eq!(gone(tso4), tso4);
    assert_eq!(gone(tso4 | tso6), tso4 | tso6 | ecn);
    assert_eq!(gone(csum), csum | tso4 | tso6 | ecn | HOST_USO);
    let guest = GUEST_CSUM | GUEST_TSO4 | GUEST_TSO6 | GUEST_ECN | GUEST_USO4 | GUEST_USO6;
    assert_eq!(gone(GUEST_CSUM), guest);
    let of_control = 1 << 2 | 1 << 18 | 1 << 19 | 1 << 20 | 1 << 21 | 1 << 23;
    assert_eq!(gone(ctrl_vq), ctrl_vq | of_control);
    assert_eq!(without(u64::MAX), 0);
    // Bits that nobody offers change nothing.
    assert_eq!(gone(1 << 6 | 1 << 10 | 1 << 62), 0);
}

#[test]
fn udp_segments_are_offered_where_the_link_has_them_and_nowhere_else() {
    let all = HOST_USO | GUEST_USO4 | GUEST_USO6;
    let plain = NetDevice::new(config());
    assert_eq!(plain.features() & all, 0);
    assert_eq!(plain.clone().with_udp_segments().features(), plain.features() | all);
}

#[test]
fn no_control_feature_is_offered_without_its_queue() {
    let device = NetDevice::new(config());
    assert_ne!(device.features() & 1 << 17, 0, "CTRL_VQ");
    assert!(device.queue_max_sizes().get(usize::from(CONTROL_QUEUE)).is_some());
    assert_ne!(device.features() & 1 << 2, 0, "CTRL_GUEST_OFFLOADS");
    let without = NetDevice::new(NetConfig { offloads: false, ..config() });
    assert_eq!(without.features() & 1 << 2, 0, "there are none to choose from");
    // GUEST_ANNOUNCE needs STATUS to ask by.
    assert_ne!(device.features() & 1 << 16, 0);
}

const EVERY_OFFLOAD: u64 = GUEST_CSUM | GUEST_TSO4 | GUEST_TSO6 | GUEST_ECN | GUEST_USO4 | GUEST_USO6;
/// Frames of as many kinds as [`kinds_delivered`] has.
const KINDS: usize = 6;

fn choose(rig: &mut Rig, bits: u64) -> u8 {
    rig.command(&[[5, 0].as_slice(), &bits.to_le_bytes()].concat())
}

/// How many of one frame of each kind reach the driver: complete, to be completed, and segments.
fn kinds_delivered(rig: &mut Rig) -> usize {
    let posted = rig.post_rx(&[200; KINDS]);
    for header in [header(0, 0), header(1, 0), header(1, 1), header(1, 4), header(1, 0x81), header(1, 5)] {
        rig.link.arrive(header, &frame(60));
    }
    rig.step();
    let delivered = rig.received(&posted).len();
    // The buffers that are left get frames that every driver takes.
    for _ in delivered..KINDS {
        rig.link.arrive(header(0, 0), &frame(60));
    }
    rig.step();
    rig.rx.used();
    delivered
}

#[test]
fn a_driver_chooses_among_the_offloads_it_accepted_as_often_as_it_likes() {
    let mut rig = rig(ALL | EVERY_OFFLOAD);
    for (bits, offloads, delivered) in [
        (EVERY_OFFLOAD, [true; 5], KINDS),
        (0, [false; 5], 1),
        (GUEST_CSUM, [true, false, false, false, false], 2),
        (GUEST_CSUM | GUEST_TSO4, [true, true, false, false, false], 3),
        (GUEST_CSUM | GUEST_TSO6, [true, false, true, false, false], 3),
        (GUEST_CSUM | GUEST_TSO4 | GUEST_ECN, [true, true, false, true, false], 4),
        (GUEST_CSUM | GUEST_USO4 | GUEST_USO6, [true, false, false, false, true], 3),
        (GUEST_CSUM | GUEST_USO6, [true, false, false, false, false], 2),
        // §5.1.3.1: nothing without what it needs.
        (GUEST_TSO4 | GUEST_TSO6 | GUEST_ECN | GUEST_USO4 | GUEST_USO6, [false; 5], 1),
        (GUEST_CSUM | GUEST_ECN, [true, false, false, false, false], 2),
        (EVERY_OFFLOAD, [true; 5], KINDS),
    ] {
        assert_eq!(choose(&mut rig, bits), OK, "{bits:#x}");
        let [csum, tso4, tso6, ecn, uso] = offloads;
        assert_eq!(rig.link.offloads(), Offloads { csum, tso4, tso6, ecn, uso }, "{bits:#x}");
        assert_eq!(kinds_delivered(&mut rig), delivered, "{bits:#x}");
    }
}

#[test]
fn offloads_nobody_accepted_are_refused_and_leave_those_there_are() {
    let mut rig = rig(ALL | GUEST_CSUM | GUEST_TSO4);
    let before = rig.link.offloads();
    // Of features that were not accepted, of the other direction, of those nobody offers, and no bits at all.
    for bits in [GUEST_TSO6, GUEST_CSUM | GUEST_ECN, CSUM, HOST_TSO4, 1 << 10, 1 << 54, 1 << 63, u64::MAX] {
        assert_eq!(choose(&mut rig, bits), ERR, "{bits:#x}");
        assert_eq!(rig.link.offloads(), before);
    }
    assert_eq!(rig.worker.save().card, None);
}

#[test]
fn a_link_that_refuses_an_offload_is_the_drivers_to_hear_of() {
    let mut rig = rig(ALL | EVERY_OFFLOAD);
    rig.link.set_broken(true);
    assert_eq!(choose(&mut rig, 0), ERR);
    rig.link.set_broken(false);
    assert_eq!(kinds_delivered(&mut rig), KINDS, "frames are admitted as before");
}

#[test]
fn a_choice_of_offloads_survives_a_pause_and_ends_with_its_driver() {
    let mut rig = rig(ALL | EVERY_OFFLOAD);
    assert_eq!(choose(&mut rig, GUEST_CSUM), OK);
    let saved = rig.worker.save();
    let queues = rig.pause();
    rig.worker = Box::new(NetDevice::new(config()).worker(rig.link.clone(), Default::default()));
    rig.worker.restore(&saved).unwrap();
    rig.start(queues);
    assert_eq!(rig.link.offloads(), Offloads { csum: true, ..Offloads::default() });
    assert_eq!(rig.worker.save(), saved);
    rig.restart();
    assert_eq!(rig.link.offloads(), Offloads { csum: true, tso4: true, tso6: true, ecn: true, uso: true });
}

#[test]
fn a_frame_in_waiting_is_looked_at_again_when_its_driver_changes_its_offloads() {
    let mut rig = rig(ALL | MRG | EVERY_OFFLOAD);
    rig.post_rx(&[500; 4]);
    for _ in 0..2 {
        rig.link.arrive(header(1, 1), &frame(1200));
    }
    rig.step();
    assert_eq!(choose(&mut rig, 0), OK);
    assert_eq!(rig.rx_counters.dropped.get(), 1, "a segment is nothing for it any more");
}
