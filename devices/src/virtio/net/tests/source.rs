//! A card whose driver may send from the card's address only.

use super::control::{ALL, ERR};
use super::*;
use crate::virtio::net::responder::{Lease, Responder};

const OWN: [u8; 6] = [2, 0, 0, 0, 0, 1];

fn checked(features: u64) -> Rig {
    rig_around(NetDevice::new(config()).with_checked_source(), features)
}

/// A frame of this length from this address.
fn frame_from(source: [u8; 6], len: usize) -> Vec<u8> {
    let mut bytes = frame(len.max(12));
    bytes[6..12].copy_from_slice(&source);
    bytes.truncate(len);
    bytes
}

#[test]
fn frames_from_the_cards_address_are_sent_whole_however_they_are_cut() {
    for features in [V1, 0] {
        let mut rig = checked(features);
        let header_bytes = if features == 0 { 10 } else { 12 };
        for len in [12, 13, 60, 1514, 40_000] {
            let mut bytes = header(0, 0)[..header_bytes].to_vec();
            bytes.extend(frame_from(OWN, len));
            for cut in [5, header_bytes, header_bytes + 6, header_bytes + 12, bytes.len()] {
                let cut = cut.min(bytes.len());
                let pieces = [&bytes[..cut], &bytes[cut..]];
                let bufs: Vec<Buf> =
                    pieces.into_iter().filter(|piece| !piece.is_empty()).map(|piece| Buf::Read(piece.into())).collect();
                rig.send(&bufs);
                assert_eq!(rig.link.take_sent(), [(header(0, 0), frame_from(OWN, len))], "{len} bytes cut at {cut}");
            }
        }
        assert_eq!(rig.tx_counters.spoofed.get(), 0);
    }
}

#[test]
fn frames_from_other_addresses_and_from_none_are_given_back_counted_and_not_sent() {
    let mut rig = checked(V1);
    let lies = [[2, 0, 0, 0, 0, 2], [3, 0, 0, 0, 0, 1], [0xff; 6], [0; 6], [1, 0, 0, 0, 0, 2]];
    for source in lies {
        rig.send(&[Buf::Read(header(0, 0).into()), Buf::Read(frame_from(source, 60))]);
    }
    for len in [1, 6, 11] {
        rig.send(&[Buf::Read(header(0, 0).into()), Buf::Read(frame_from(OWN, len))]);
    }
    assert_eq!((rig.link.take_sent(), rig.tx.used().len()), (vec![], 8));
    assert_eq!((rig.tx_counters.spoofed.get(), rig.tx_counters.bytes_from_guest.get()), (8, 0));
    rig.send(&[Buf::Read(header(0, 0).into()), Buf::Read(frame_from(OWN, 60))]);
    assert_eq!(rig.link.take_sent().len(), 1, "the queue goes on");
}

#[test]
fn without_the_check_any_address_will_do() {
    let mut rig = rig(V1);
    rig.send(&[Buf::Read(header(0, 0).into()), Buf::Read(frame_from([2, 9, 9, 9, 9, 9], 60))]);
    assert_eq!((rig.link.take_sent().len(), rig.tx_counters.spoofed.get()), (1, 0));
}

#[test]
fn a_driver_cannot_change_an_address_that_is_checked() {
    let mut rig = checked(ALL & !(1 << 23));
    assert_eq!(rig.device.features() & 1 << 23, 0, "CTRL_MAC_ADDR");
    assert_eq!(rig.command(&[1, 1, 2, 0x10, 0x20, 0x30, 0x40, 0x50]), ERR);
}

#[test]
fn a_frame_that_waits_for_the_link_is_looked_at_again_when_it_is_sent() {
    let mut rig = checked(V1);
    rig.link.set_full(true);
    let posted = rig.tx.post(&[Buf::Read(header(0, 0).into()), Buf::Read(frame_from(OWN, 60))]);
    rig.tx.publish();
    assert!(rig.step().want_writable);
    // The driver changes its mind about where that came from.
    rig.mem.write_slice(&[2, 9, 9, 9, 9, 9], GuestAddress(posted.buffers[1].addr + 6)).unwrap();
    rig.link.set_full(false);
    rig.step();
    assert_eq!((rig.link.take_sent(), rig.tx_counters.spoofed.get()), (vec![], 1));
}

#[test]
fn a_request_that_is_not_the_cards_own_is_not_answered_either() {
    let lease = Lease::new([10, 0, 0, 5].into(), [255, 255, 255, 0].into());
    let responder = Responder::new(&lease).unwrap();
    let device = NetDevice::new(config()).with_responder(responder, Arc::new(crate::wake::WakeCounter::default()));
    let mut rig = rig_around(device.with_checked_source(), V1);
    for (source, answered) in [([2, 9, 9, 9, 9, 9], 0), (OWN, 1)] {
        // Who has 169.254.169.254?
        let mut request = vec![0xff; 6];
        request.extend(source);
        request.extend([8, 6, 0, 1, 8, 0, 6, 4, 0, 1]);
        request.extend(source);
        request.extend([10, 0, 0, 5, 0, 0, 0, 0, 0, 0, 169, 254, 169, 254]);
        rig.send(&[Buf::Read(header(0, 0).into()), Buf::Read(request)]);
        assert_eq!((rig.tx_counters.answered.get(), rig.link.take_sent()), (answered, vec![]));
    }
    assert_eq!(rig.tx_counters.spoofed.get(), 1);
}
