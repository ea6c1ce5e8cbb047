//! A guest that asks for its address by DHCP, and gets it from its network interface.

use anyhow::ensure;

use super::super::super::job::Outcome;
use super::super::{Scenario, output};
use super::lease::{Client, LEASE, NETWORK, reaches};

/// What udhcpc runs with everything that happens to its lease: writes it down, and sets the interface up.
const SCRIPT: &str = "printf '%s\\n' '#!/bin/sh' \
    'echo \"$1 ip=$ip/$mask router=$router dns=$dns host=$hostname lease=$lease server=$serverid\" >> /tmp/leases' \
    '[ \"$1\" = bound ] || exit 0' \
    'ip addr add \"$ip/$mask\" dev \"$interface\"' \
    'ip route add default via \"$router\"' > /tmp/lease && chmod +x /tmp/lease && ip link set eth0 up";
/// Goes on in the background once it has a lease, and gives that back at its end.
const ASK: &str = "udhcpc -i eth0 -s /tmp/lease -b -R -p /tmp/udhcpc -t 5 -T 2 && cat /tmp/leases";
/// By way of the gateway, whose address the outer machine answers ARP for, from a socket of the kernel's, which leaves its
/// checksum to the card.
const RENEW: &str = "sleep 1; kill -USR1 $(cat /tmp/udhcpc); \
    timeout 20 sh -c 'until grep -q ^renew /tmp/leases; do sleep 0.1; done'; grep ^renew /tmp/leases";
const SERVER: &str = "arping -c 1 -I eth0 169.254.169.254";
const RELEASE: &str = "kill $(cat /tmp/udhcpc); \
    timeout 20 sh -c 'while pidof udhcpc > /dev/null; do sleep 0.1; done'; ip addr show dev eth0";

static CLIENT: Client = Client {
    name: "net-dhcp",
    about: "a guest's own DHCP client gets, renews and gives back the address that its interface has for it",
    initrd: None,
    steps: |script| script.guest(SCRIPT).guest(ASK).guest(NETWORK).guest(RENEW).guest(SERVER).guest(RELEASE),
    check,
    // DISCOVER, REQUEST, its renewal and ARP.
    answered: 4,
};

/// The scenario.
pub fn scenario() -> Scenario {
    CLIENT.scenario()
}

fn check(outcome: &Outcome) -> anyhow::Result<()> {
    let has = |said: &str, event: &str| said.lines().any(|line| line == format!("{event} ip=10.0.0.2/24 {LEASE}"));
    let bound = output(outcome, ASK)?;
    ensure!(has(bound, "bound"), "the lease is another one: {bound}");
    let renewed = output(outcome, RENEW)?;
    ensure!(has(renewed, "renew"), "the renewed lease is another one: {renewed}");
    reaches(outcome, NETWORK)?;
    let server = output(outcome, SERVER)?;
    ensure!(server.contains("[52:55:55:55:55:55]"), "nobody answers for the server: {server}");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::lease::judges;
    use super::*;

    #[test]
    fn a_lease_that_is_as_given_passes_and_nothing_else_does() {
        let outputs = [
            (ASK, &*format!("deconfig ip=/ router=\nbound ip=10.0.0.2/24 {LEASE}\n")),
            (RENEW, &format!("renew ip=10.0.0.2/24 {LEASE}\n")),
            (NETWORK, "3 packets transmitted, 3 packets received, 0% packet loss\n"),
            (SERVER, "Unicast reply from 169.254.169.254 [52:55:55:55:55:55] 0.315ms\n"),
        ];
        let wrong = [
            (0, "bound ip=10.0.0.3/24", "the lease is another one"),
            (1, "", "the renewed lease is another one"),
            (2, "0 packets received", "the address is of no use"),
            (3, "Received 0 response(s)", "nobody answers for the server"),
        ];
        judges(&CLIENT, &outputs, &wrong);
    }
}
