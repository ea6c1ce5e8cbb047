//! What a guest is told of its address.

use std::net::Ipv4Addr;

/// The most name servers an answer has room for.
pub const MOST_DNS_SERVERS: usize = 4;

/// The longest name an option holds.
pub const MOST_HOSTNAME_BYTES: usize = 255;

/// An address with what belongs to it, for one guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lease {
    /// The guest's address.
    pub ip: Ipv4Addr,
    /// The mask of the network it is in.
    pub netmask: Ipv4Addr,
    /// The responder's own address, which it answers ARP for.
    pub server_ip: Ipv4Addr,
    /// The router, where there is one.
    pub gateway_ip: Option<Ipv4Addr>,
    /// Name servers, at most [`MOST_DNS_SERVERS`].
    pub dns_ips: Vec<Ipv4Addr>,
    /// The guest's name, at most [`MOST_HOSTNAME_BYTES`]; empty for none.
    pub hostname: String,
    /// How long the address is good for, in seconds. It is always given again.
    pub lease_time_s: u32,
}

impl Lease {
    /// The responder's address where none is chosen.
    pub const DEFAULT_SERVER_IP: Ipv4Addr = Ipv4Addr::new(169, 254, 169, 254);
    /// The lease time where none is chosen: a day.
    pub const DEFAULT_LEASE_TIME_S: u32 = 86400;

    /// An address, with defaults for the rest.
    pub fn new(ip: Ipv4Addr, netmask: Ipv4Addr) -> Self {
        Self {
            ip,
            netmask,
            server_ip: Self::DEFAULT_SERVER_IP,
            gateway_ip: None,
            dns_ips: Vec::new(),
            hostname: String::new(),
            lease_time_s: Self::DEFAULT_LEASE_TIME_S,
        }
    }
}

/// Why a lease does not fit an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadLease {
    /// More name servers than there is room for.
    #[error("there are more than {MOST_DNS_SERVERS} name servers")]
    DnsServers,
    /// A name longer than an option can be.
    #[error("the host name is longer than {MOST_HOSTNAME_BYTES} bytes")]
    Hostname,
}
