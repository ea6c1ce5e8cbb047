//! Ethernet, ARP (RFC 826), IPv4 (RFC 791), UDP (RFC 768), BOOTP (RFC 951) and DHCP (RFC 2131, RFC 2132), as far as a
//! responder needs them. Every access is bounded by a pattern or a `split`: the frames are a guest's.

use super::lease::{BadLease, Lease, MOST_DNS_SERVERS};
use crate::virtio::net::filter::Mac;

/// Who answers.
const SERVER_MAC: Mac = [0x52, 0x55, 0x55, 0x55, 0x55, 0x55];

const ETHERTYPE_IPV4: [u8; 2] = [0x08, 0x00];
const ETHERTYPE_ARP: [u8; 2] = [0x08, 0x06];
const IP_PROTOCOL_UDP: u8 = 17;
/// The port of DHCP servers, that of clients behind it.
const SERVER_PORT: [u8; 2] = [0, 67];
const CLIENT_PORT: [u8; 2] = [0, 68];
/// The first four bytes of the options area where there are options in it (RFC 2131 §3).
const COOKIE: [u8; 4] = [99, 130, 83, 99];

/// `op` of BOOTP.
const BOOTREQUEST: u8 = 1;
const BOOTREPLY: u8 = 2;

/// Option 53, and its values (RFC 2132 §9.6).
const MESSAGE_TYPE: u8 = 53;
const DISCOVER: u8 = 1;
const OFFER: u8 = 2;
const REQUEST: u8 = 3;
const ACK: u8 = 5;

const ETHERNET_BYTES: usize = 14;
const IP_BYTES: usize = 20;
const UDP_BYTES: usize = 8;
/// A BOOTP message up to its options.
const BOOTP_BYTES: usize = 236;
/// The options area of an answer.
const OPTIONS_BYTES: usize = 312;
/// The IP packet of an answer.
const PACKET_BYTES: usize = IP_BYTES + UDP_BYTES + BOOTP_BYTES + OPTIONS_BYTES;
/// The frame of an answer.
pub const DHCP_BYTES: usize = ETHERNET_BYTES + PACKET_BYTES;
/// The frame of an answer to an ARP request: not padded, which is for the link.
pub const ARP_BYTES: usize = 42;

/// Something that a responder may be asked.
pub enum Request<'a> {
    Arp(Arp),
    Dhcp(DhcpSegment<'a>),
}

/// An ARP request: whose hardware address is `target_ip`'s?
pub struct Arp {
    pub sender_mac: Mac,
    pub sender_ip: [u8; 4],
    pub target_ip: [u8; 4],
}

/// What goes to the port of DHCP servers, not looked at yet.
pub struct DhcpSegment<'a> {
    source_mac: Mac,
    source_ip: [u8; 4],
    /// It is the first of several fragments.
    fragment: bool,
    /// What the two headers say of the lengths of packet and segment.
    packet_bytes: usize,
    segment_bytes: usize,
    ip_header_bytes: usize,
    /// From the UDP payload to the end of the frame.
    rest: &'a [u8],
}

/// A DHCP request that has an answer.
pub struct DhcpRequest {
    source_mac: Mac,
    source_ip: [u8; 4],
    /// Transaction id.
    xid: [u8; 4],
    /// `chaddr`, as far as Ethernet fills it.
    client_mac: Mac,
    /// The answer's message type.
    answer: u8,
}

impl<'a> Request<'a> {
    /// What a frame asks, if it is an ARP request or one to the port of DHCP servers.
    pub fn read(frame: &'a [u8]) -> Option<Self> {
        let ([_, _, _, _, _, _, source_mac @ .., t0, t1], packet) = frame.split_first_chunk::<ETHERNET_BYTES>()?;
        match [*t0, *t1] {
            ETHERTYPE_ARP => Arp::read(packet).map(Self::Arp),
            ETHERTYPE_IPV4 => DhcpSegment::read(*source_mac, packet).map(Self::Dhcp),
            // A frame with a VLAN tag among others.
            _ => None,
        }
    }
}

impl Arp {
    fn read(packet: &[u8]) -> Option<Self> {
        let (what, rest) = packet.split_first_chunk()?;
        // Hardware Ethernet, protocol IPv4, lengths of their addresses, a request.
        if *what != [0, 1, 8, 0, 6, 4, 0, 1] {
            return None;
        }
        let (sender_mac, rest) = rest.split_first_chunk()?;
        let (sender_ip, rest) = rest.split_first_chunk()?;
        let (_, rest) = rest.split_first_chunk::<6>()?;
        let (target_ip, _) = rest.split_first_chunk()?;
        Some(Self { sender_mac: *sender_mac, sender_ip: *sender_ip, target_ip: *target_ip })
    }

    /// The answer to it.
    pub fn answer(&self) -> [u8; ARP_BYTES] {
        let Self { sender_mac: [m0, m1, m2, m3, m4, m5], sender_ip: [i0, i1, i2, i3], target_ip: [t0, t1, t2, t3] } =
            *self;
        let [s0, s1, s2, s3, s4, s5] = SERVER_MAC;
        let ([e0, e1], [p0, p1]) = (ETHERTYPE_ARP, ETHERTYPE_IPV4);
        [
            m0, m1, m2, m3, m4, m5, s0, s1, s2, s3, s4, s5, e0, e1, // Ethernet
            0, 1, p0, p1, 6, 4, 0, 2, // what it is about, and a reply
            s0, s1, s2, s3, s4, s5, t0, t1, t2, t3, // who has the address
            m0, m1, m2, m3, m4, m5, i0, i1, i2, i3, // who wanted to know
        ]
    }
}

impl<'a> DhcpSegment<'a> {
    fn read(source_mac: Mac, packet: &'a [u8]) -> Option<Self> {
        let (ip, _) = packet.split_first_chunk::<IP_BYTES>()?;
        let [version, _, l0, l1, _, _, f0, f1, _, protocol, _, _, source_ip @ .., _, _, _, _] = *ip;
        let ip_header_bytes = usize::from(version & 0x0f).saturating_mul(4);
        let fragment = u16::from_be_bytes([f0, f1]);
        // A later fragment has no ports: what looks like them is anything.
        let has_ports = version >> 4 == 4 && ip_header_bytes >= IP_BYTES && fragment & 0x1fff == 0;
        if !has_ports || protocol != IP_PROTOCOL_UDP {
            return None;
        }
        let (udp, rest) = packet.get(ip_header_bytes..)?.split_first_chunk::<UDP_BYTES>()?;
        let [_, _, to @ .., u0, u1, _, _] = *udp;
        (to == SERVER_PORT).then_some(Self {
            source_mac,
            source_ip,
            fragment: fragment & 0x2000 != 0,
            packet_bytes: u16::from_be_bytes([l0, l1]).into(),
            segment_bytes: u16::from_be_bytes([u0, u1]).into(),
            ip_header_bytes,
            rest,
        })
    }

    /// The request in it, if it is one, whole, and of a kind that has an answer.
    pub fn request(&self) -> Option<DhcpRequest> {
        if self.fragment {
            return None;
        }
        // What lies behind the packet is the frame's padding.
        let packet_rest = self.packet_bytes.checked_sub(self.ip_header_bytes)?.checked_sub(UDP_BYTES)?;
        let message = self.rest.get(..packet_rest)?.get(..self.segment_bytes.checked_sub(UDP_BYTES)?)?;
        let (bootp, options) = message.split_first_chunk::<BOOTP_BYTES>()?;
        let [op, _, _, _, x0, x1, x2, x3, ..] = *bootp;
        let (_, client_mac) = bootp.split_first_chunk::<28>()?;
        let (client_mac, _) = client_mac.split_first_chunk()?;
        if op != BOOTREQUEST {
            return None;
        }
        let answer = match message_type(options) {
            Some(DISCOVER) => OFFER,
            // None at all: a BOOTP client.
            Some(REQUEST) | None => ACK,
            Some(_) => return None,
        };
        let (source_mac, source_ip) = (self.source_mac, self.source_ip);
        Some(DhcpRequest { source_mac, source_ip, xid: [x0, x1, x2, x3], client_mac: *client_mac, answer })
    }
}

/// The type of a message with these options; `None` where they have none.
fn message_type(options: &[u8]) -> Option<u8> {
    let mut found = None;
    let mut rest = options.strip_prefix(&COOKIE)?;
    while let [code, after @ ..] = rest {
        rest = match (*code, after) {
            (0, _) => after,
            (255, _) | (_, []) => break,
            (code, [len, after @ ..]) => {
                let Some((value, after)) = after.split_at_checked((*len).into()) else { break };
                if let (MESSAGE_TYPE, [kind, ..]) = (code, value) {
                    found = Some(*kind);
                }
                after
            }
        };
    }
    found.filter(|kind| *kind != 0)
}

/// An answer to nobody.
///
/// # Errors
/// The lease does not fit it.
pub fn template(lease: &Lease) -> Result<[u8; DHCP_BYTES], BadLease> {
    let mut frame = [0; DHCP_BYTES];
    let mut to = Writer(&mut frame);
    // Ethernet: from whom.
    to.skip(6);
    to.put(&SERVER_MAC);
    to.put(&ETHERTYPE_IPV4);
    // IPv4: version and header length, low delay, total length; identification; no fragment; TTL, protocol; checksum.
    let length = |bytes: usize| u16::try_from(bytes).unwrap_or_default().to_be_bytes();
    to.put(&[0x45, 0x10]);
    to.put(&length(PACKET_BYTES));
    to.skip(4);
    to.put(&[64, IP_PROTOCOL_UDP]);
    to.skip(2);
    to.put(&lease.server_ip.octets());
    to.skip(4);
    to.put(&SERVER_PORT);
    to.put(&CLIENT_PORT);
    to.put(&length(PACKET_BYTES - IP_BYTES));
    to.skip(2);
    // BOOTP: a reply about Ethernet addresses, `xid`, `secs`, `flags`, `ciaddr`; `yiaddr`, `siaddr`; `giaddr`, `chaddr`,
    // `sname`, `file`.
    to.put(&[BOOTREPLY, 1, 6, 0]);
    to.skip(12);
    to.put(&lease.ip.octets());
    to.put(&lease.server_ip.octets());
    to.skip(4 + 16 + 64 + 128);
    to.put(&COOKIE);
    to.option(MESSAGE_TYPE, &[0]);
    to.option(54, &lease.server_ip.octets());
    to.option(1, &lease.netmask.octets());
    if let Some(gateway_ip) = lease.gateway_ip {
        to.option(3, &gateway_ip.octets());
    }
    if lease.dns_ips.len() > MOST_DNS_SERVERS {
        return Err(BadLease::DnsServers);
    }
    if !lease.dns_ips.is_empty() {
        to.option(6, &lease.dns_ips.iter().flat_map(|ip| ip.octets()).collect::<Vec<_>>());
    }
    to.option(51, &lease.lease_time_s.to_be_bytes());
    if !lease.hostname.is_empty() && !to.option(12, lease.hostname.as_bytes()) {
        return Err(BadLease::Hostname);
    }
    to.put(&[255]);
    Ok(frame)
}

/// Makes a copy of the template the answer to `request`.
pub fn address(frame: &mut [u8; DHCP_BYTES], request: &DhcpRequest, ip_id: u16) {
    let broadcast = [0xff; 4];
    let to_ip = if request.source_ip == [0; 4] { broadcast } else { request.source_ip };
    let mut to = Writer(frame);
    to.put(&request.source_mac);
    to.skip(12);
    to.put(&ip_id.to_be_bytes());
    to.skip(10);
    to.put(&to_ip);
    to.skip(UDP_BYTES + 4);
    to.put(&request.xid);
    to.skip(20);
    to.put(&request.client_mac);
    to.skip(10 + 64 + 128 + 4 + 2);
    to.put(&[request.answer]);

    let Some((_, packet)) = frame.split_first_chunk_mut::<ETHERNET_BYTES>() else { return };
    let Some((ip, segment)) = packet.split_first_chunk_mut::<IP_BYTES>() else { return };
    let checksum = !sum(0, ip);
    let [.., c0, c1, _, _, _, _, _, _, _, _] = ip;
    [*c0, *c1] = checksum.to_be_bytes();
    // With the pseudo header of RFC 768: the addresses, at the end of the IP header, then protocol and length.
    let addresses = ip.last_chunk::<8>().copied().unwrap_or_default();
    let pseudo = u32::from(IP_PROTOCOL_UDP).wrapping_add(segment.len() as u32);
    let checksum = !sum(u32::from(sum(pseudo, &addresses)), segment);
    let [_, _, _, _, _, _, c0, c1, ..] = segment else { return };
    // Zero says that there is no checksum.
    [*c0, *c1] = if checksum == 0 { [0xff; 2] } else { checksum.to_be_bytes() };
}

/// The ones' complement sum of `data`, whose length is even, and `start`.
fn sum(start: u32, data: &[u8]) -> u16 {
    let words = data.as_chunks::<2>().0.iter().map(|word| u32::from(u16::from_be_bytes(*word)));
    // An answer has a few hundred words: nothing wraps.
    let total = words.fold(start, u32::wrapping_add);
    let folded = (total & 0xffff).wrapping_add(total >> 16);
    ((folded & 0xffff).wrapping_add(folded >> 16)) as u16
}

/// Fills a frame from its front.
struct Writer<'a>(&'a mut [u8]);

impl Writer<'_> {
    /// Writes `bytes`; `false` where they do not fit: then nothing more does.
    fn put(&mut self, bytes: &[u8]) -> bool {
        let Some((here, rest)) = std::mem::take(&mut self.0).split_at_mut_checked(bytes.len()) else { return false };
        here.copy_from_slice(bytes);
        self.0 = rest;
        true
    }

    fn skip(&mut self, bytes: usize) {
        self.0 = std::mem::take(&mut self.0).get_mut(bytes..).unwrap_or_default();
    }

    /// Writes an option; `false` where it does not fit.
    fn option(&mut self, code: u8, value: &[u8]) -> bool {
        u8::try_from(value.len()).is_ok_and(|len| self.put(&[code, len]) && self.put(value))
    }
}
