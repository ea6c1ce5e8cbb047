//! A guest that asks for its address by DHCP, and gets it from its network interface.

use anyhow::{Context as _, ensure};
use serde_json::Value;

use super::super::super::job::Outcome;
use super::super::{Scenario, Script, Vmm, output};

/// What the interface is to give, whoever asks.
pub(super) const KEYS: &str = ",ip=10.0.0.2,netmask=255.255.255.0,gateway_ip=10.0.0.1,dns_ip0=10.0.0.1,dns_ip1=10.0.0.3,hostname=web,\
    lease_time=600";
/// And what udhcpc makes of that.
pub(super) const LEASE: &str =
    "ip=10.0.0.2/24 router=10.0.0.1 dns=10.0.0.1 10.0.0.3 host=web lease=600 server=169.254.169.254";

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
const NETWORK: &str = "ping -c 3 10.0.0.1";
const SERVER: &str = "arping -c 1 -I eth0 169.254.169.254";
const RELEASE: &str = "kill $(cat /tmp/udhcpc); \
    timeout 20 sh -c 'while pidof udhcpc > /dev/null; do sleep 0.1; done'; ip addr show dev eth0";

/// The scenario.
pub fn scenario() -> Scenario {
    Scenario::new(
        "net-dhcp",
        "a guest's own DHCP client gets, renews and gives back the address that its interface has for it",
        |_| {
            Script::new()
                .nic()
                .with(|machine| machine.nic_keys = KEYS.to_owned())
                .ready()
                .guest(SCRIPT)
                .guest(ASK)
                .guest(NETWORK)
                .guest(RENEW)
                .guest(SERVER)
                .guest(RELEASE)
                .qmp("query-stats")
                .power_off()
        },
        check,
    )
    .only_where(Vmm::is_zvmm)
}

fn check(outcome: &Outcome, _: Vmm) -> anyhow::Result<()> {
    let bound = output(outcome, ASK)?;
    ensure!(bound.lines().any(|line| line == format!("bound {LEASE}")), "the lease is another one: {bound}");
    let renewed = output(outcome, RENEW)?;
    ensure!(
        renewed.lines().any(|line| line == format!("renew {LEASE}")),
        "the renewed lease is another one: {renewed}"
    );
    let network = output(outcome, NETWORK)?;
    ensure!(network.contains("3 packets received"), "the address is of no use: {network}");
    let server = output(outcome, SERVER)?;
    ensure!(server.contains("[52:55:55:55:55:55]"), "nobody answers for the server: {server}");
    let stats = outcome.replies.first().context("no statistics")?;
    // DISCOVER, REQUEST, its renewal and ARP; RELEASE.
    let (answered, swallowed) = (counted(stats, "answered")?, counted(stats, "swallowed")?);
    ensure!(answered >= 4 && swallowed >= 1, "{answered} requests answered and {swallowed} swallowed");
    Ok(())
}

/// A counter of the interface's send queue.
pub(super) fn counted(stats: &Value, name: &str) -> anyhow::Result<u64> {
    let mut devices = stats["return"]["devices"].as_array().context("no devices")?.iter();
    let nic = devices.find(|device| device["id"] == "net0").context("no interface")?;
    nic["queues"][1][name].as_u64().with_context(|| format!("no count of {name} frames"))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    type Change = fn(&mut Outcome);

    fn outcome(change: impl FnOnce(&mut Outcome)) -> Outcome {
        let said = |command: &str, text: String| (command.to_owned(), text);
        let stats =
            json!({"return": {"devices": [{"id": "net0", "queues": [{}, {"answered": 4, "swallowed": 1}, {}]}]}});
        let mut outcome = Outcome {
            outputs: vec![
                said(ASK, format!("deconfig ip=/ router=\nbound {LEASE}\n")),
                said(RENEW, format!("renew {LEASE}\n")),
                said(NETWORK, "3 packets transmitted, 3 packets received, 0% packet loss\n".into()),
                said(SERVER, "Unicast reply from 169.254.169.254 [52:55:55:55:55:55] 0.315ms\n".into()),
            ],
            replies: vec![stats],
            ..Outcome::default()
        };
        change(&mut outcome);
        outcome
    }

    #[test]
    fn a_lease_that_is_as_given_passes_and_nothing_else_does() {
        check(&outcome(|_| ()), Vmm::ZVMM).unwrap();
        let changes: [(Change, &str); 5] = [
            (|outcome| outcome.outputs[0].1 = "bound ip=10.0.0.3/24".into(), "the lease is another one"),
            (|outcome| outcome.outputs[1].1 = String::new(), "the renewed lease is another one"),
            (|outcome| outcome.outputs[2].1 = "0 packets received".into(), "the address is of no use"),
            (|outcome| outcome.outputs[3].1 = "Received 0 response(s)".into(), "nobody answers for the server"),
            (|outcome| outcome.replies.clear(), "no statistics"),
        ];
        for (change, message) in changes {
            let error = check(&outcome(change), Vmm::ZVMM).unwrap_err().to_string();
            assert!(error.starts_with(message), "{error}");
        }
    }

    #[test]
    fn the_interface_gets_what_the_guest_is_to_see() {
        let command = scenario().run(Vmm::ZVMM).command.join(" ");
        assert!(command.contains(&format!("--net tap=tap0,mac=52:54:00:12:34:56{KEYS} ")), "{command}");
        assert!(!KEYS.contains(' '), "{KEYS}");
    }
}
