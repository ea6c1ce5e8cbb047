//! The largest packet, where the driver was told one (virtio 1.3 §5.1.4.1).

use super::*;

const MTU: u64 = 1 << 3;
const PACKET: usize = 1500;
const HEADER: usize = 14;

fn card(features: u64) -> Rig {
    rig_of(NetConfig { mtu: Some(PACKET as u16), ..config() }, features)
}

/// A frame of `len` bytes with this type of payload.
fn typed(len: usize, ethertype: u16) -> Vec<u8> {
    let mut bytes = frame(len);
    bytes[12..14].copy_from_slice(&ethertype.to_be_bytes());
    bytes
}

/// Whether a frame that arrives is delivered, whatever the buffers: whole, cut between the bytes of the frame's type, or
/// several for a frame.
fn arrives(features: u64, header: Header, frame: &[u8]) -> bool {
    let whole = [Buf::Write(0x8000)].as_slice();
    let cut = [Buf::Write(5), Buf::Write(20), Buf::Write(1), Buf::Write(0x8000)].as_slice();
    let results = [(0, whole), (0, cut), (MRG, &[Buf::Write(700)]), (MRG, whole)].map(|(merge, bufs)| {
        let mut rig = card(features | merge);
        let posted: Vec<Posted> = (0..4).map(|_| rig.rx.post(bufs)).collect();
        rig.rx.publish();
        rig.link.arrive(header, frame);
        rig.step();
        let delivered = rig.received(&posted).concat();
        assert!(delivered.is_empty() || delivered[12..] == *frame);
        assert_eq!(rig.rx_counters.dropped.get(), u64::from(delivered.is_empty()));
        !delivered.is_empty()
    });
    assert!(results.iter().all(|result| *result == results[0]), "{results:?}");
    results[0]
}

#[test]
fn a_driver_that_was_told_an_mtu_receives_no_larger_packet() {
    let none = header(0, 0);
    for (len, ethertype, fits) in [
        (PACKET + HEADER, 0x0800, true),
        (PACKET + HEADER + 1, 0x0800, false),
        (PACKET + HEADER + 4, 0x0800, false),
        // A VLAN tag is part of the header.
        (PACKET + HEADER + 4, 0x8100, true),
        (PACKET + HEADER + 5, 0x8100, false),
        (PACKET + HEADER + 4, 0x88a8, true),
    ] {
        assert_eq!(arrives(V1 | MTU, none, &typed(len, ethertype)), fits, "{len} {ethertype:#x}");
        assert!(arrives(V1, none, &typed(len, ethertype)), "a driver that was not told takes what it has room for");
    }
}

#[test]
fn a_segment_may_be_larger_than_the_mtu() {
    assert!(arrives(V1 | MTU | GUEST_CSUM | GUEST_TSO4, header(1, 1), &typed(2700, 0x0800)));
}

#[test]
fn packets_as_large_as_the_mtu_are_sent_whole() {
    let mut rig = card(V1 | MTU);
    for len in [PACKET, PACKET + HEADER] {
        rig.send(&[Buf::Read(header(0, 0).into()), Buf::Read(frame(len))]);
        assert_eq!(rig.link.take_sent(), [(header(0, 0), frame(len))]);
    }
}

#[test]
fn a_packet_larger_than_the_mtu_is_answered_and_the_next_one_sent() {
    let mut rig = card(V1 | MTU);
    for len in [PACKET + HEADER + 1, 9000, 65536, 0x2_0000] {
        rig.send(&[Buf::Read(header(0, 0).into()), Buf::Read(vec![1; len])]);
        rig.link.take_sent();
        rig.send(&[Buf::Read(header(0, 0).into()), Buf::Read(frame(60))]);
        assert_eq!((rig.tx.used().len(), rig.link.take_sent()), (2, vec![(header(0, 0), frame(60))]), "{len}");
    }
}

#[test]
fn an_mtu_below_68_is_never_offered_and_nothing_changes_it() {
    for mtu in [0, 1, 67] {
        let device = NetDevice::new(NetConfig { mtu: Some(mtu), ..config() });
        assert_eq!(device.features() & MTU, 0, "{mtu}");
    }
    for mtu in [68, 1280, 1500, 65535] {
        let device = NetDevice::new(NetConfig { mtu: Some(mtu), ..config() });
        assert_ne!(device.features() & MTU, 0, "{mtu}");
        let read = || {
            let mut field = [0; 2];
            device.read_config(10, &mut field);
            u16::from_le_bytes(field)
        };
        assert_eq!(read(), mtu);
        device.write_config(10, &[0x12, 0x34]);
        device.set_link(false);
        device.features_accepted(MTU);
        device.features_accepted(0);
        assert_eq!(read(), mtu);
    }
}
