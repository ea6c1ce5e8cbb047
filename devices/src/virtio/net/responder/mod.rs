//! The card's own DHCP server, and who answers ARP for it.
//!
//! A guest whose address its operator has chosen learns it here, where the network has no DHCP server: what it asks is
//! answered by the card, with what SmartOS's qemu answers, byte for byte. [`Responder`] knows no queue and no link: a frame
//! from the guest gives an answer or none. It serves the guest and protects nobody: what a guest may send is for the link to
//! say, and a driver that rewrites a frame while it is looked at deceives itself only.
//!
//! Requests are read for what an answer takes and for their lengths. Checksums are not: nothing lies between guest and card
//! that could have damaged a frame, the driver may leave them to the link, and qemu answers in spite of them.
//!
//! It is written by hand because of what crates for these formats do: dhcproto allocates for each message and chooses the
//! order of options, accessors of smoltcp panic on a frame that is too short, and etherparse knows no DHCP, which leaves it
//! the forty lines of `wire.rs`.

mod lease;
#[cfg(test)]
mod proptests;
mod station;
#[cfg(test)]
mod tests;
mod wire;

use std::net::Ipv4Addr;

pub use lease::{BadLease, Lease, MOST_DNS_SERVERS, MOST_HOSTNAME_BYTES};
pub use station::AnswersState;
pub(super) use station::{Ear, Sight, Station};

use wire::{ARP_BYTES, Request};

/// The longest answer: an Ethernet header and a DHCP message, whose IP packet always has 576 bytes.
pub const MAX_ANSWER_BYTES: usize = wire::DHCP_BYTES;

/// Bytes at the start of a frame that say whether it is for the responder: Ethernet, the longest IPv4 header, UDP; or
/// Ethernet and ARP.
pub const HEAD_BYTES: usize = 14 + 60 + 8;

/// Bytes at the start of a frame that are read for an answer: a frame without jumbo. A request that claims more is none.
pub const MAX_REQUEST_BYTES: usize = 1514;

/// What became of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Heard {
    /// It is for somebody else: the link takes it.
    Passed,
    /// It was for the responder, who has nothing to say to it.
    Swallowed,
    /// It has this answer of so many bytes.
    Answered {
        /// Bytes of the answer.
        len_bytes: usize,
    },
}

/// Answers a guest's DHCP and ARP requests.
#[derive(Clone, Debug)]
pub struct Responder {
    server_ip: [u8; 4],
    /// An answer to nobody, whose message type is still to be said.
    template: [u8; wire::DHCP_BYTES],
}

impl Responder {
    /// One that gives this lease to everybody who asks.
    ///
    /// # Errors
    /// The lease does not fit an answer.
    pub fn new(lease: &Lease) -> Result<Self, BadLease> {
        Ok(Self { server_ip: lease.server_ip.octets(), template: wire::template(lease)? })
    }

    /// The responder's own address.
    pub fn server_ip(&self) -> Ipv4Addr {
        self.server_ip.into()
    }

    /// Whether the frame that begins with `head` is for the responder: an ARP request for its address, or whatever goes to
    /// the port of DHCP servers over IPv4. Of a frame longer than [`HEAD_BYTES`] so many bytes are enough.
    pub fn concerns(&self, head: &[u8]) -> bool {
        self.request(head).is_some()
    }

    /// Answers a frame, of which [`MAX_REQUEST_BYTES`] are enough. An answer that is an IP packet takes its identification
    /// from `next_ip_id`, which goes on with the next one. `answer` is written to where there is one only.
    pub fn hear(&self, frame: &[u8], next_ip_id: &mut u16, answer: &mut [u8; MAX_ANSWER_BYTES]) -> Heard {
        match self.request(frame) {
            None => Heard::Passed,
            Some(Request::Arp(arp)) => {
                let Some(to) = answer.first_chunk_mut() else { return Heard::Swallowed };
                *to = arp.answer();
                Heard::Answered { len_bytes: ARP_BYTES }
            }
            Some(Request::Dhcp(segment)) => match segment.request() {
                Some(request) => {
                    answer.copy_from_slice(&self.template);
                    wire::address(answer, &request, *next_ip_id);
                    *next_ip_id = next_ip_id.wrapping_add(1);
                    Heard::Answered { len_bytes: MAX_ANSWER_BYTES }
                }
                None => Heard::Swallowed,
            },
        }
    }

    fn request<'a>(&self, frame: &'a [u8]) -> Option<Request<'a>> {
        let request = Request::read(frame)?;
        match &request {
            Request::Arp(arp) if arp.target_ip != self.server_ip => None,
            _ => Some(request),
        }
    }
}
