//! Datagrams to a group, and somebody who is in it.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::time::Duration;

use anyhow::{Context as _, ensure};

use crate::Pattern;

const SILENCE: Duration = Duration::from_secs(30);
/// One datagram is below every MTU.
const BYTES: usize = 1000;

/// Joins a group on the interface with an address (IPv4), or on that of the group's scope (IPv6), and checks so many
/// datagrams to it.
pub fn hear(group: &str, own: &str, count: u64) -> anyhow::Result<()> {
    let group = parse(group)?;
    // Bound to the group: what comes to the host itself is not for it.
    let socket = UdpSocket::bind(group).with_context(|| format!("cannot bind to {group}"))?;
    match group {
        SocketAddr::V4(v4) => socket.join_multicast_v4(v4.ip(), &own.parse()?),
        SocketAddr::V6(v6) => socket.join_multicast_v6(v6.ip(), v6.scope_id()),
    }
    .with_context(|| format!("cannot join {group}"))?;
    socket.set_read_timeout(Some(SILENCE))?;
    println!("joined {group}");
    let (mut datagram, mut got) = (Datagrams::new(), [0; 2 * BYTES]);
    for nth in 0..count {
        let len = socket.recv(&mut got).with_context(|| format!("only {nth} of {count} datagrams came"))?;
        ensure!(got[..len] == *datagram.next(), "datagram {nth} is not what was sent");
    }
    println!("heard {count} datagrams");
    Ok(())
}

/// Sends so many datagrams to a group, from an address (IPv4) or out of the interface of the group's scope (IPv6).
pub fn tell(group: &str, own: &str, count: u64) -> anyhow::Result<()> {
    let group = parse(group)?;
    let from: IpAddr = own.parse().with_context(|| format!("{own} is no address"))?;
    let socket = UdpSocket::bind((from, 0)).with_context(|| format!("cannot bind to {from}"))?;
    let mut datagram = Datagrams::new();
    for nth in 0..count {
        let sent = socket.send_to(datagram.next(), group).with_context(|| format!("cannot send datagram {nth}"))?;
        ensure!(sent == BYTES, "{sent} bytes of datagram {nth} were sent");
    }
    println!("told {count} datagrams");
    Ok(())
}

fn parse(group: &str) -> anyhow::Result<SocketAddr> {
    let address: SocketAddr = group.parse().with_context(|| format!("{group} is no address with a port"))?;
    ensure!(address.ip().is_multicast() && address.ip() != IpAddr::V4(Ipv4Addr::BROADCAST), "{group} is no group");
    Ok(address)
}

/// The datagrams one after the other, no two alike.
struct Datagrams(Pattern, [u8; BYTES]);

impl Datagrams {
    fn new() -> Self {
        Self(Pattern::new(), [0; BYTES])
    }

    fn next(&mut self) -> &[u8] {
        self.0.fill(&mut self.1);
        &self.1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_that_is_no_group_is_refused() {
        for text in ["10.0.0.1:7000", "239.1.2.3", "[fd00::1]:7000", "255.255.255.255:7000"] {
            assert!(parse(text).is_err(), "{text}");
        }
        assert!(parse("239.1.2.3:7000").is_ok() && parse("[ff02::4321%3]:7000").is_ok());
    }

    #[test]
    fn no_two_datagrams_are_alike() {
        let mut datagrams = Datagrams::new();
        let first = datagrams.next().to_vec();
        assert_ne!(first, datagrams.next());
        assert_eq!(first, Datagrams::new().next());
    }
}
