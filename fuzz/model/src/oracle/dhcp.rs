//! What a responder has to answer, by offsets: as plain as it can be, and with nothing of the code's.

use devices::virtio::net::responder::Lease;

/// What is to become of a frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Expected {
    /// It goes to the link.
    Passed,
    /// It goes nowhere.
    Swallowed,
    /// It has this answer, whose checksums are zero.
    Answer(Vec<u8>),
}

const SERVER_MAC: [u8; 6] = [0x52, 0x55, 0x55, 0x55, 0x55, 0x55];

/// Where things are in an Ethernet frame with an IPv4 header of `header` bytes.
struct Frame<'a>(&'a [u8]);

impl Frame<'_> {
    fn byte(&self, at: usize) -> Option<usize> {
        self.0.get(at).map(|byte| usize::from(*byte))
    }

    fn word(&self, at: usize) -> Option<usize> {
        Some(self.byte(at)? * 256 + self.byte(at + 1)?)
    }
}

/// What this frame's answer has to be.
pub fn answer(lease: &Lease, ip_id: u16, bytes: &[u8]) -> Expected {
    let frame = Frame(bytes);
    match frame.word(12) {
        Some(0x0806) => arp(lease, bytes),
        Some(0x0800) => ipv4(lease, ip_id, bytes).unwrap_or(Expected::Passed),
        _ => Expected::Passed,
    }
}

fn arp(lease: &Lease, bytes: &[u8]) -> Expected {
    let server = lease.server_ip.octets();
    let asks = bytes.len() >= 42 && bytes[14..22] == [0, 1, 8, 0, 6, 4, 0, 1] && bytes[38..42] == server;
    if !asks {
        return Expected::Passed;
    }
    let (mac, ip) = (&bytes[22..28], &bytes[28..32]);
    let kind = [8, 6, 0, 1, 8, 0, 6, 4, 0, 2];
    Expected::Answer([mac, &SERVER_MAC, &kind, &SERVER_MAC, &server, mac, ip].concat())
}

/// `None` where the frame is no UDP packet, or its port cannot be known.
fn ipv4(lease: &Lease, ip_id: u16, bytes: &[u8]) -> Option<Expected> {
    let frame = Frame(bytes);
    let (version, header) = (frame.byte(14)? / 16, frame.byte(14)? % 16 * 4);
    let (fragment_at, more) = (frame.word(20)? % 0x2000, frame.word(20)? & 0x2000 != 0);
    let udp = 14 + header;
    frame.byte(udp + 7)?;
    if version != 4 || header < 20 || fragment_at != 0 || frame.byte(23)? != 17 || frame.word(udp + 2)? != 67 {
        return None;
    }
    let (packet, segment) = (frame.word(16)?, frame.word(udp + 4)?);
    let fits = packet <= bytes.len() - 14 && header + segment <= packet && segment >= 8 + 236;
    if more || !fits || frame.byte(udp + 8)? != 1 {
        return Some(Expected::Swallowed);
    }
    let kind = match kind(&bytes[udp + 8 + 236..udp + segment]) {
        1 => 2,
        0 | 3 => 5,
        _ => return Some(Expected::Swallowed),
    };
    Some(Expected::Answer(dhcp(lease, ip_id, bytes, &bytes[udp + 8..], kind)))
}

/// The message type that options say; 0 for none.
fn kind(options: &[u8]) -> u8 {
    if !options.starts_with(&[99, 130, 83, 99]) {
        return 0;
    }
    let (mut at, mut kind) = (4, 0);
    while at < options.len() && options[at] != 255 {
        if options[at] == 0 {
            at += 1;
            continue;
        }
        let Some(len) = options.get(at + 1).map(|len| usize::from(*len)) else { break };
        if at + 2 + len > options.len() {
            break;
        }
        if options[at] == 53 && len > 0 {
            kind = options[at + 2];
        }
        at += 2 + len;
    }
    kind
}

fn dhcp(lease: &Lease, ip_id: u16, asked: &[u8], message: &[u8], kind: u8) -> Vec<u8> {
    let mut frame = vec![0; 590];
    let mut put = |at: usize, bytes: &[u8]| frame[at..at + bytes.len()].copy_from_slice(bytes);
    let server = lease.server_ip.octets();
    put(0, &asked[6..12]);
    put(6, &SERVER_MAC);
    put(12, &[8, 0, 0x45, 0x10, 2, 64]);
    put(18, &ip_id.to_be_bytes());
    put(22, &[64, 17]);
    put(26, &server);
    put(30, if asked[26..30] == [0; 4] { &[255; 4] } else { &asked[26..30] });
    put(34, &[0, 67, 0, 68, 2, 44]);
    put(42, &[2, 1, 6, 0]);
    put(46, &message[4..8]);
    put(58, &lease.ip.octets());
    put(62, &server);
    put(70, &message[28..34]);
    put(278, &[99, 130, 83, 99, 53, 1, kind, 54, 4]);
    put(287, &server);
    put(291, &[1, 4]);
    put(293, &lease.netmask.octets());
    let mut at = 297;
    let mut option = |code: u8, value: &[u8]| {
        put(at, &[code, value.len() as u8]);
        put(at + 2, value);
        at += 2 + value.len();
    };
    if let Some(gateway) = lease.gateway_ip {
        option(3, &gateway.octets());
    }
    if !lease.dns_ips.is_empty() {
        option(6, &lease.dns_ips.iter().flat_map(|ip| ip.octets()).collect::<Vec<u8>>());
    }
    option(51, &lease.lease_time_s.to_be_bytes());
    if !lease.hostname.is_empty() {
        option(12, lease.hostname.as_bytes());
    }
    put(at, &[255]);
    frame
}

/// The ones' complement sum of some bytes: all ones where a checksum among them is right.
pub fn sum_of(bytes: &[u8]) -> u32 {
    let mut sum = 0;
    for pair in bytes.chunks(2) {
        sum += u32::from(pair[0]) * 256 + pair.get(1).map_or(0, |byte| u32::from(*byte));
    }
    while sum > 0xffff {
        sum = sum % 0x10000 + sum / 0x10000;
    }
    sum
}
