//! What a network interface tells its guest by DHCP.

use devices::virtio::net::responder::{Lease, MOST_DNS_SERVERS, MOST_HOSTNAME_BYTES};
use serde::{Deserialize, Serialize};

use super::check::Problems;
use super::values::Ip;

/// The address that an interface gives its guest, by answering DHCP itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DhcpConfig {
    /// The guest's address.
    pub ip: Ip,
    /// The mask of the network it is in.
    pub netmask: Ip,
    /// Who answers: the address the guest knows its DHCP server by. The process answers ARP for it too.
    #[serde(default = "default_server_ip")]
    pub server_ip: Ip,
    /// The guest's router.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gateway_ip: Option<Ip>,
    /// The guest's name servers, at most [`MOST_DNS_SERVERS`].
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub dns_ips: Vec<Ip>,
    /// The guest's name, at most [`MOST_HOSTNAME_BYTES`] printable ASCII bytes; none when empty.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub hostname: String,
    /// How long the guest may use its address before it asks again, in seconds.
    #[serde(default = "default_lease_time")]
    pub lease_time: u32,
}

impl DhcpConfig {
    /// An address, with defaults for the rest.
    pub fn new(ip: Ip, netmask: Ip) -> Self {
        Self {
            ip,
            netmask,
            server_ip: default_server_ip(),
            gateway_ip: None,
            dns_ips: Vec::new(),
            hostname: String::new(),
            lease_time: default_lease_time(),
        }
    }

    /// What the device is to give.
    pub fn lease(&self) -> Lease {
        Lease {
            ip: self.ip.0,
            netmask: self.netmask.0,
            server_ip: self.server_ip.0,
            gateway_ip: self.gateway_ip.map(|ip| ip.0),
            dns_ips: self.dns_ips.iter().map(|ip| ip.0).collect(),
            hostname: self.hostname.clone(),
            lease_time_s: self.lease_time,
        }
    }

    /// Finds what is wrong with it on the interface `id`.
    pub(super) fn check(&self, id: &str, found: &mut Problems) {
        let Self { ip, netmask, server_ip, gateway_ip, dns_ips, hostname, lease_time } = self;
        let gateway = gateway_ip.iter().map(|ip| ("gateway_ip", ip));
        let dns = dns_ips.iter().map(|ip| ("dns_ip", ip));
        for (key, ip) in [("ip", ip), ("server_ip", server_ip)].into_iter().chain(gateway).chain(dns) {
            if ip.0.is_unspecified() || ip.0.is_multicast() || ip.0.is_broadcast() {
                found.add(id, format!("{key} {ip} is no address of one host; use for example 10.0.0.5"));
            }
        }
        let (address, mask) = (u32::from(ip.0), u32::from(netmask.0));
        if mask == 0 || mask.count_ones() != mask.leading_ones() {
            found.add(id, format!("netmask {netmask} is not a network mask; use for example 255.255.255.0"));
        } else if !mask > 1 && (address & !mask == 0 || address | mask == u32::MAX) {
            let what = if address & !mask == 0 { "the network itself" } else { "everybody in its network" };
            found.add(id, format!("ip {ip} with netmask {netmask} is {what}, not a guest"));
        }
        for (key, other) in [("server_ip", Some(server_ip)), ("gateway_ip", gateway_ip.as_ref())] {
            if other == Some(ip) {
                found.add(id, format!("{key} {ip} is the guest's own address"));
            }
        }
        if dns_ips.len() > MOST_DNS_SERVERS {
            found.add(id, format!("{} name servers are more than the {MOST_DNS_SERVERS} possible", dns_ips.len()));
        }
        if hostname.len() > MOST_HOSTNAME_BYTES || !hostname.bytes().all(|byte| byte.is_ascii_graphic()) {
            let what = format!("it has up to {MOST_HOSTNAME_BYTES} printable ASCII letters and no blank");
            found.add(id, format!("hostname '{}' is not a host name; {what}", hostname.escape_debug()));
        }
        if *lease_time == 0 {
            found.add(id, format!("lease_time 0 is no time; use for example {}", default_lease_time()));
        }
    }
}

fn default_server_ip() -> Ip {
    Ip(Lease::DEFAULT_SERVER_IP)
}

fn default_lease_time() -> u32 {
    Lease::DEFAULT_LEASE_TIME_S
}

/// A text that reads as an address: for tests.
#[cfg(test)]
pub fn ip(text: &str) -> Ip {
    text.parse().unwrap()
}
