//! Byte for byte what a guest sees.

use super::*;

const GUEST: [u8; 6] = [2, 8, 0x20, 1, 2, 3];
const SERVER: [u8; 6] = [0x52, 0x55, 0x55, 0x55, 0x55, 0x55];
const SERVER_IP: [u8; 4] = [169, 254, 169, 254];
const XID: [u8; 4] = [0xde, 0xad, 0xbe, 0xef];

fn lease() -> Lease {
    Lease {
        gateway_ip: Some(Ipv4Addr::new(10, 0, 0, 1)),
        dns_ips: vec![Ipv4Addr::new(8, 8, 8, 8), Ipv4Addr::new(8, 8, 4, 4)],
        hostname: "web1".into(),
        ..Lease::new(Ipv4Addr::new(10, 0, 0, 5), Ipv4Addr::new(255, 255, 255, 0))
    }
}

fn responder() -> Responder {
    Responder::new(&lease()).unwrap()
}

/// What the frame's answer is, where it has one; nothing else is written.
fn hear(responder: &Responder, frame: &[u8], ip_id: u16) -> Result<Vec<u8>, Heard> {
    let (mut answer, mut next_ip_id) = ([0xa5; MAX_ANSWER_BYTES], ip_id);
    let heard = responder.hear(frame, &mut next_ip_id, &mut answer);
    let packets = u16::from(heard == Heard::Answered { len_bytes: MAX_ANSWER_BYTES });
    assert_eq!(next_ip_id, ip_id.wrapping_add(packets), "each packet has its own number");
    let len_bytes = if let Heard::Answered { len_bytes } = heard { len_bytes } else { 0 };
    assert!(answer[len_bytes..].iter().all(|byte| *byte == 0xa5), "more is written than the answer");
    let for_us = responder.concerns(&frame[..frame.len().min(HEAD_BYTES)]);
    assert_eq!(for_us, heard != Heard::Passed, "the first bytes say whose frame it is");
    if len_bytes > 0 { Ok(answer[..len_bytes].to_vec()) } else { Err(heard) }
}

/// The options area of a message of this type.
fn options(kind: u8) -> Vec<u8> {
    vec![99, 130, 83, 99, 53, 1, kind, 55, 3, 1, 3, 6, 255]
}

/// A frame with this message, its checksums left out: nobody looks at them.
fn packet(ip_options: &[u8], source_ip: [u8; 4], message: &[u8]) -> Vec<u8> {
    let (header, total) = (20 + ip_options.len(), 28 + ip_options.len() + message.len());
    let mut frame = [&[0xff; 6][..], &GUEST, &[8, 0]].concat();
    frame.extend([0x40 | (header / 4) as u8, 0, (total >> 8) as u8, total as u8, 0, 0, 0, 0, 64, 17, 0, 0]);
    frame.extend(source_ip);
    frame.extend([0xff; 4]);
    frame.extend(ip_options);
    let len = message.len() + 8;
    frame.extend([0, 68, 0, 67, (len >> 8) as u8, len as u8, 0, 0]);
    frame.extend(message);
    frame
}

fn bootp(op: u8, options: &[u8]) -> Vec<u8> {
    let mut message = vec![op, 1, 6, 0];
    message.extend(XID);
    message.extend([0, 3, 0x80, 0]); // secs, flags: neither comes back
    message.extend([0; 16]);
    message.extend(GUEST);
    message.extend([0; 10 + 64 + 128]);
    message.extend(options);
    message
}

fn request(kind: u8) -> Vec<u8> {
    packet(&[], [0; 4], &bootp(1, &options(kind)))
}

/// What comes back, written down field by field; its checksums are those given.
fn reply(kind: u8, ip_id: u16, to_ip: [u8; 4], ip_checksum: u16, udp_checksum: u16) -> Vec<u8> {
    let mut frame = [&GUEST[..], &SERVER, &[8, 0]].concat();
    frame.extend([0x45, 0x10, 0x02, 0x40]);
    frame.extend(ip_id.to_be_bytes());
    frame.extend([0, 0, 64, 17]);
    frame.extend(ip_checksum.to_be_bytes());
    frame.extend(SERVER_IP);
    frame.extend(to_ip);
    frame.extend([0, 67, 0, 68, 0x02, 0x2c]);
    frame.extend(udp_checksum.to_be_bytes());
    frame.extend([2, 1, 6, 0]);
    frame.extend(XID);
    frame.extend([0; 8]);
    frame.extend([10, 0, 0, 5]);
    frame.extend(SERVER_IP);
    frame.extend([0; 4]);
    frame.extend(GUEST);
    frame.extend([0; 10 + 64 + 128]);
    frame.extend([99, 130, 83, 99]);
    frame.extend([53, 1, kind]);
    frame.extend([54, 4, 169, 254, 169, 254]);
    frame.extend([1, 4, 255, 255, 255, 0]);
    frame.extend([3, 4, 10, 0, 0, 1]);
    frame.extend([6, 8, 8, 8, 8, 8, 8, 8, 4, 4]);
    frame.extend([51, 4, 0, 1, 0x51, 0x80]);
    frame.extend(b"\x0c\x04web1\xff");
    frame.resize(14 + 576, 0);
    frame
}

#[test]
fn discover_and_request_and_no_type_have_their_answers_and_nothing_else_has_one() {
    let none = packet(&[], [0; 4], &bootp(1, &[]));
    let no_cookie = packet(&[], [0; 4], &bootp(1, &[53, 1, 1, 255]));
    let type_zero = request(0);
    let (offer, ack) = (Ok(2), Ok(5));
    let cases = [
        ("DISCOVER", request(1), offer),
        ("OFFER", request(2), Err(Heard::Swallowed)),
        ("REQUEST", request(3), ack),
        ("DECLINE", request(4), Err(Heard::Swallowed)),
        ("ACK", request(5), Err(Heard::Swallowed)),
        ("NAK", request(6), Err(Heard::Swallowed)),
        ("RELEASE", request(7), Err(Heard::Swallowed)),
        ("INFORM", request(8), Err(Heard::Swallowed)),
        ("FORCERENEW", request(9), Err(Heard::Swallowed)),
        ("an unknown type", request(255), Err(Heard::Swallowed)),
        ("type 0", type_zero, ack),
        ("BOOTP without options", none, ack),
        ("options without the cookie", no_cookie, ack),
        ("a reply", packet(&[], [0; 4], &bootp(2, &options(1))), Err(Heard::Swallowed)),
        ("no operation", packet(&[], [0; 4], &bootp(0, &options(1))), Err(Heard::Swallowed)),
    ];
    for (what, frame, expected) in cases {
        let got = hear(&responder(), &frame, 0);
        let udp = if expected == offer { OFFER_CHECKSUM } else { ACK_CHECKSUM };
        let expected = expected.map(|kind| reply(kind, 0, [0xff; 4], IP_CHECKSUM, udp));
        assert_eq!(got, expected, "{what}");
    }
}

/// Checksums of the answers to a broadcast, as another program has them.
const IP_CHECKSUM: u16 = 0x24a1;
const OFFER_CHECKSUM: u16 = 0x405c;
const ACK_CHECKSUM: u16 = 0x3d5c;

/// What RFC 1071 makes of these bytes, in the plainest way there is.
fn internet_checksum(bytes: &[u8]) -> u16 {
    let mut sum: u64 = 0;
    for (at, byte) in bytes.iter().enumerate() {
        sum += u64::from(*byte) << if at % 2 == 0 { 8 } else { 0 };
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

/// A frame's checksums are right where those over everything come to zero.
#[track_caller]
pub(super) fn assert_checksums(frame: &[u8]) {
    assert_eq!(internet_checksum(&frame[14..34]), 0, "the IP header's checksum");
    let segment = &frame[34..];
    assert_ne!(segment[6..8], [0, 0], "a UDP checksum is given");
    let pseudo = [&frame[26..34], &[0, 17], &(segment.len() as u16).to_be_bytes(), segment].concat();
    assert_eq!(internet_checksum(&pseudo), 0, "UDP's checksum");
}

#[test]
fn checksums_are_those_of_the_rfcs() {
    for (ip_id, source_ip) in [(0, [0; 4]), (1, [10, 0, 0, 5]), (0xffff, [255, 255, 255, 254])] {
        let frame = packet(&[], source_ip, &bootp(1, &options(3)));
        assert_checksums(&hear(&responder(), &frame, ip_id).unwrap());
    }
}

#[test]
fn a_checksum_of_zero_is_sent_as_all_ones() {
    // Whatever the rest comes to, one of these transaction ids brings the sum there.
    let all_ones = (0..=u16::MAX).filter(|low| {
        let mut frame = request(1);
        frame[14 + 28 + 6..14 + 28 + 8].copy_from_slice(&low.to_be_bytes());
        let answer = hear(&responder(), &frame, 0).unwrap();
        assert_ne!(answer[40..42], [0, 0]);
        answer[40..42] == [0xff, 0xff]
    });
    assert_eq!(all_ones.count(), 1);
}

#[test]
fn an_answer_goes_to_who_asked() {
    // A renewal: from an address, by way of the gateway or not, for another hardware address than its own.
    let mut frame = packet(&[], [10, 0, 0, 5], &bootp(1, &options(3)));
    frame[..6].copy_from_slice(&[2, 0, 0, 0, 0, 9]);
    frame[6..12].copy_from_slice(&[2, 0, 0, 0, 0, 7]);
    frame[30..34].copy_from_slice(&[10, 9, 8, 7]);
    let answer = hear(&responder(), &frame, 0x1234).unwrap();
    assert_eq!(answer[..6], [2, 0, 0, 0, 0, 7], "the frame goes where the other came from");
    assert_eq!(answer[18..20], [0x12, 0x34], "the packet's number");
    assert_eq!(answer[30..34], [10, 0, 0, 5], "the packet goes to the address it came from");
    assert_eq!(answer[70..80], [GUEST.as_slice(), &[0; 4]].concat(), "chaddr is the client's");
}

#[test]
fn the_options_are_those_of_the_lease_in_their_order() {
    let least = Lease::new(Ipv4Addr::new(10, 0, 0, 5), Ipv4Addr::new(255, 0, 0, 0));
    let answer = hear(&Responder::new(&least).unwrap(), &request(1), 0).unwrap();
    let expected = [
        &[99, 130, 83, 99, 53, 1, 2][..],
        &[54, 4, 169, 254, 169, 254],
        &[1, 4, 255, 0, 0, 0],
        &[51, 4, 0, 1, 0x51, 0x80, 255],
    ];
    let expected = expected.concat();
    assert_eq!(answer[278..278 + expected.len()], expected);
    assert!(answer[278 + expected.len()..].iter().all(|byte| *byte == 0));

    let most = Lease {
        server_ip: Ipv4Addr::new(10, 0, 0, 2),
        gateway_ip: Some(Ipv4Addr::new(10, 0, 0, 1)),
        dns_ips: (1..=4).map(|n| Ipv4Addr::new(n, n, n, n)).collect(),
        hostname: "h".repeat(255),
        lease_time_s: u32::MAX,
        ..least
    };
    let answer = hear(&Responder::new(&most).unwrap(), &request(1), 0).unwrap();
    assert_checksums(&answer);
    let expected = [
        &[99, 130, 83, 99, 53, 1, 2][..],
        &[54, 4, 10, 0, 0, 2],
        &[1, 4, 255, 0, 0, 0],
        &[3, 4, 10, 0, 0, 1],
        &[6, 16, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3, 4, 4, 4, 4],
        &[51, 4, 255, 255, 255, 255],
        &[12, 255],
        &[b'h'; 255],
        &[255, 0, 0, 0, 0, 0],
    ];
    assert_eq!(answer[278..], expected.concat());
    assert_eq!((&answer[26..30], &answer[62..66]), (&[10, 0, 0, 2][..], &[10, 0, 0, 2][..]), "sender and siaddr");
}

#[test]
fn a_lease_that_does_not_fit_is_refused() {
    let dns_ips = vec![Ipv4Addr::LOCALHOST; 5];
    assert_eq!(Responder::new(&Lease { dns_ips, ..lease() }).unwrap_err(), BadLease::DnsServers);
    let hostname = "h".repeat(256);
    assert_eq!(Responder::new(&Lease { hostname, ..lease() }).unwrap_err(), BadLease::Hostname);
}

#[test]
fn the_message_type_is_found_behind_anything() {
    let cookie = [99, 130, 83, 99];
    let offered = |options: &[u8]| {
        let answer = hear(&responder(), &packet(&[], [0; 4], &bootp(1, &[&cookie, options].concat())), 0);
        answer.map(|answer| answer[284])
    };
    let long = [&[43, 255][..], &[53; 255], &[53, 1, 1]].concat();
    for (options, kind) in [
        (&[0, 0, 0, 53, 1, 1, 255][..], Ok(2)),
        (&[53, 1, 1], Ok(2)),
        (&[53, 3, 1, 9, 9, 255], Ok(2)),
        (&[61, 2, 53, 53, 53, 1, 3, 255], Ok(5)),
        (&long, Ok(2)),
        // The last one counts, as long as it is whole and has a value.
        (&[53, 1, 3, 53, 1, 1, 255], Ok(2)),
        (&[53, 1, 1, 53, 0, 255], Ok(2)),
        (&[53, 1, 1, 53, 2, 3], Ok(2)),
        (&[53, 1, 1, 53], Ok(2)),
        (&[53, 1, 8, 255, 53, 1, 1], Err(Heard::Swallowed)),
        // None is found.
        (&[255, 53, 1, 1], Ok(5)),
        (&[53, 0, 255], Ok(5)),
        (&[53, 200, 1, 255], Ok(5)),
        (&[12, 5, 53, 1, 1], Ok(5)),
    ] {
        assert_eq!(offered(options), kind, "{options:?}");
    }
}

#[test]
fn a_packet_with_ip_options_is_read_behind_them() {
    for words in 1..=10 {
        let frame = packet(&vec![1; words * 4], [0; 4], &bootp(1, &options(1)));
        let answer = hear(&responder(), &frame, 0);
        assert_eq!(answer, Ok(reply(2, 0, [0xff; 4], IP_CHECKSUM, OFFER_CHECKSUM)), "{words} words");
    }
}

#[test]
fn checksums_of_a_request_are_not_looked_at() {
    let expected = hear(&responder(), &request(1), 0);
    for at in [24, 25, 40, 41] {
        let mut frame = request(1);
        frame[at] ^= 0x5a;
        assert_eq!(hear(&responder(), &frame, 0), expected);
    }
}

#[test]
fn a_request_cut_anywhere_is_passed_on_or_swallowed() {
    let frame = request(1);
    for len in 0..frame.len() {
        // With its ports it is known to be for us.
        let expected = if len < 42 { Heard::Passed } else { Heard::Swallowed };
        assert_eq!(hear(&responder(), &frame[..len], 0), Err(expected), "cut at {len}");
    }
    // Nothing behind the packet matters.
    let padded = [frame.clone(), vec![0x77; 900]].concat();
    assert_eq!(hear(&responder(), &padded, 0), hear(&responder(), &frame, 0));
}

#[test]
fn lengths_that_are_not_those_of_the_frame_are_swallowed() {
    let good = request(1);
    let total = u16::from_be_bytes([good[16], good[17]]);
    let with = |at: usize, value: u16| {
        let mut frame = good.clone();
        frame[at..at + 2].copy_from_slice(&value.to_be_bytes());
        hear(&responder(), &frame, 0).map(drop)
    };
    let swallowed = Err(Heard::Swallowed);
    for (what, at, value, expected) in [
        ("no packet", 16, 0, swallowed),
        ("a packet that ends in its header", 16, 19, swallowed),
        ("one that ends in UDP's", 16, 27, swallowed),
        ("one that ends in its segment", 16, total - 1, swallowed),
        ("one that ends behind the frame", 16, total + 1, swallowed),
        ("the longest packet", 16, 0xffff, swallowed),
        ("no segment", 38, 0, swallowed),
        ("a segment that ends in its header", 38, 7, swallowed),
        ("one without a message", 38, 8, swallowed),
        ("one that ends in its message", 38, 8 + 235, swallowed),
        ("one that ends behind the packet", 38, total - 19, swallowed),
        ("the longest segment", 38, 0xffff, swallowed),
        // What is left of these has no options, and a BOOTP client's is what it is.
        ("one that ends before the options", 38, 8 + 236, Ok(())),
        ("the right one", 38, total - 20, Ok(())),
    ] {
        assert_eq!(with(at, value), expected, "{what}");
    }
}

#[test]
fn a_frame_of_another_kind_is_passed_on() {
    let with = |changes: &[(usize, u8)]| {
        let mut frame = request(1);
        changes.iter().for_each(|(at, value)| frame[*at] = *value);
        hear(&responder(), &frame, 0).map(drop)
    };
    let passed = Err(Heard::Passed);
    let tagged = [&request(1)[..12], &[0x81, 0, 0, 5], &request(1)[12..]].concat();
    assert_eq!(hear(&responder(), &tagged, 0), Err(Heard::Passed), "a VLAN's");
    for (what, changes, expected) in [
        ("IPv6's", &[(12, 0x86), (13, 0xdd)][..], passed),
        ("no IPv4", &[(14, 0x65)], passed),
        ("a header too short for IPv4", &[(14, 0x44)], passed),
        ("TCP", &[(23, 6)], passed),
        ("another port", &[(37, 68)], passed),
        ("another port", &[(36, 1)], passed),
        ("a later fragment", &[(21, 1)], passed),
        ("the last fragment", &[(20, 0x1f), (21, 0xff)], passed),
        ("the first fragment", &[(20, 0x20)], Err(Heard::Swallowed)),
        ("one that may not be cut", &[(20, 0x40)], Ok(())),
        ("another client port", &[(35, 99)], Ok(())),
    ] {
        assert_eq!(with(changes), expected, "{what}");
    }
}

fn arp(target: [u8; 4]) -> Vec<u8> {
    let mut frame = [&[0xff; 6][..], &[2, 0, 0, 0, 0, 7], &[8, 6, 0, 1, 8, 0, 6, 4, 0, 1]].concat();
    frame.extend(GUEST);
    frame.extend([10, 0, 0, 5]);
    frame.extend([0; 6]);
    frame.extend(target);
    frame
}

#[test]
fn an_arp_request_for_the_server_is_answered_and_no_other() {
    let expected = [&GUEST[..], &SERVER, &[8, 6, 0, 1, 8, 0, 6, 4, 0, 2], &SERVER, &SERVER_IP, &GUEST, &[10, 0, 0, 5]];
    let expected = Ok(expected.concat());
    let good = arp(SERVER_IP);
    assert_eq!(hear(&responder(), &good, 0), expected);
    assert_eq!(hear(&responder(), &[good.clone(), vec![0; 18]].concat(), 0), expected, "padded");
    let unicast = [&SERVER[..], &good[6..]].concat();
    assert_eq!(hear(&responder(), &unicast, 0), expected, "a client that makes sure");
    for len in 0..good.len() {
        assert_eq!(hear(&responder(), &good[..len], 0), Err(Heard::Passed), "cut at {len}");
    }
    assert_eq!(hear(&responder(), &arp([10, 0, 0, 1]), 0), Err(Heard::Passed), "for somebody else");
    let tagged = [&good[..12], &[0x81, 0, 0, 5], &good[12..]].concat();
    assert_eq!(hear(&responder(), &tagged, 0), Err(Heard::Passed), "a VLAN's");
    for (what, at, value) in [
        ("hardware", 15, 6),
        ("protocol", 17, 1),
        ("length of hardware addresses", 18, 8),
        ("length of protocol addresses", 19, 16),
        ("a reply", 21, 2),
        ("another operation", 20, 1),
    ] {
        let mut frame = good.clone();
        frame[at] = value;
        assert_eq!(hear(&responder(), &frame, 0), Err(Heard::Passed), "{what}");
    }
}
