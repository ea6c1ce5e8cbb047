//! Any bytes: an answer where one is due, whole and right, and never more than one holds.

use proptest::prelude::*;

use super::tests::assert_checksums;
use super::*;

fn ip() -> impl Strategy<Value = Ipv4Addr> {
    any::<u32>().prop_map(Ipv4Addr::from)
}

fn lease() -> impl Strategy<Value = Lease> {
    let dns_ips = prop::collection::vec(ip(), 0..=MOST_DNS_SERVERS);
    (ip(), ip(), ip(), prop::option::of(ip()), dns_ips, "[a-z]{0,255}", any::<u32>()).prop_map(
        |(ip, netmask, server_ip, gateway_ip, dns_ips, hostname, lease_time_s)| Lease {
            ip,
            netmask,
            server_ip,
            gateway_ip,
            dns_ips,
            hostname,
            lease_time_s,
        },
    )
}

/// Frames that get far: the fixed fields right, then a few bytes wrong, then cut.
fn frame() -> impl Strategy<Value = Vec<u8>> {
    let dhcp = (0usize..=10, prop::collection::vec(any::<u8>(), 0..700)).prop_map(|(words, mut message)| {
        let (header, total) = (20 + 4 * words, 28 + 4 * words + message.len());
        if let Some(op) = message.first_mut() {
            *op = 1;
        }
        if let Some(cookie) = message.get_mut(236..240) {
            cookie.copy_from_slice(&[99, 130, 83, 99]);
        }
        let mut frame = vec![2; 12];
        frame.extend([8, 0, 0x40 | (header / 4) as u8, 0, (total >> 8) as u8, total as u8, 0, 0, 0, 0, 64, 17, 0, 0]);
        frame.resize(14 + header, 3);
        let len = message.len() + 8;
        frame.extend([0, 68, 0, 67, (len >> 8) as u8, len as u8, 0, 0]);
        frame.extend(message);
        frame
    });
    let arp = prop::collection::vec(any::<u8>(), 20).prop_map(|rest| {
        let mut frame = vec![2; 12];
        frame.extend([8, 6, 0, 1, 8, 0, 6, 4, 0, 1]);
        frame.extend(rest);
        frame
    });
    let wrong = prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4);
    let shaped = (prop_oneof![4 => dhcp, 1 => arp], wrong, any::<prop::sample::Index>(), 0..4u8);
    let shaped = shaped.prop_map(|(mut frame, wrong, cut, whole)| {
        for (at, value) in wrong {
            let at = at.index(frame.len());
            frame[at] = value;
        }
        if whole == 0 {
            frame.truncate(cut.index(frame.len() + 1));
        }
        frame
    });
    prop_oneof![1 => prop::collection::vec(any::<u8>(), 0..MAX_REQUEST_BYTES), 4 => shaped]
}

proptest! {
    #[test]
    fn every_frame_has_a_right_answer_or_none(lease in lease(), frame in frame(), ip_id in any::<u16>()) {
        let responder = Responder::new(&lease).unwrap();
        let mut answer = [0; MAX_ANSWER_BYTES];
        let heard = responder.hear(&frame, &mut ip_id.clone(), &mut answer);
        let head = &frame[..frame.len().min(HEAD_BYTES)];
        prop_assert_eq!(responder.concerns(head), heard != Heard::Passed);
        match heard {
            Heard::Answered { len_bytes: 42 } => {
                prop_assert_eq!(&frame[12..14], &[8, 6]);
                prop_assert_eq!(&answer[28..32], &lease.server_ip.octets());
            }
            Heard::Answered { len_bytes } => {
                prop_assert_eq!(len_bytes, MAX_ANSWER_BYTES);
                prop_assert_eq!(&frame[12..14], &[8, 0]);
                prop_assert_eq!(&answer[..6], &frame[6..12]);
                prop_assert_eq!(&answer[58..62], &lease.ip.octets());
                prop_assert_eq!(&answer[18..20], &ip_id.to_be_bytes());
                assert_checksums(&answer);
            }
            Heard::Passed | Heard::Swallowed => prop_assert!(answer.iter().all(|byte| *byte == 0), "written to in vain"),
        }
    }
}
