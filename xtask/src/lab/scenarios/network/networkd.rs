//! A guest whose interface is set up by systemd-networkd, the third client that reads answers in its own way.

use anyhow::{Context as _, ensure};

use super::super::super::content::at;
use super::super::super::job::Outcome;
use super::super::{Scenario, Script, Vmm, output};
use super::dhclient::LEASE;
use super::dhcp::{KEYS, counted};

/// It runs by hand, without systemd and udev: where `/sys` cannot be written it takes links as they are.
const SETUP: &str = "mkdir -p /run/systemd/network /run/systemd/netif/links /run/systemd/netif/leases /run/systemd/netif/lldp && \
    chown -R 998:998 /run/systemd/netif && \
    printf '%s\\n' '[Match]' 'Name=eth0' '[Network]' 'DHCP=ipv4' 'LinkLocalAddressing=no' 'IPv6AcceptRA=no' \
    '[DHCPv4]' 'ClientIdentifier=mac' 'UseHostname=no' > /run/systemd/network/eth0.network && mount -o remount,ro /sys";
const ASK: &str = "(/network/bin/systemd-networkd > /tmp/said 2>&1 & echo $! > /tmp/pid); \
    timeout 30 sh -c 'until grep -qs ADDRESS /run/systemd/netif/leases/*; do sleep 0.1; done' || cat /tmp/said; \
    cat /run/systemd/netif/leases/*";
const NETWORK: &str = "timeout 20 sh -c 'until ip addr show dev eth0 | grep -q 10.0.0.2/24; do sleep 0.1; done'; \
    ip route | grep -c 'default via 10.0.0.1'; ping -c 3 10.0.0.1";
/// It gives its lease back at its end.
const RELEASE: &str = "kill $(cat /tmp/pid); timeout 20 sh -c 'while [ -d /proc/$(cat /tmp/pid) ]; do sleep 0.1; done'; \
    [ ! -d /proc/$(cat /tmp/pid) ] && echo over";

/// The scenario.
pub fn scenario() -> Scenario {
    Scenario::new(
        "net-networkd",
        "a guest with systemd-networkd gets the address that its interface has for it, and gives it back",
        |_| {
            Script::new()
                .nic()
                .with(|machine| {
                    machine.initrd = at::NETWORK.to_owned();
                    machine.nic_keys = KEYS.to_owned();
                })
                .ready()
                .guest(SETUP)
                .guest_within(ASK, 40)
                .guest(NETWORK)
                .guest(RELEASE)
                .qmp("query-stats")
                .power_off()
        },
        check,
    )
    .only_where(Vmm::is_zvmm)
}

fn check(outcome: &Outcome, _: Vmm) -> anyhow::Result<()> {
    let said = output(outcome, ASK)?;
    ensure!(lease(said) == LEASE, "the lease is another one: {said}");
    let network = output(outcome, NETWORK)?;
    ensure!(network.starts_with('1') && network.contains("3 packets received"), "the address is of no use: {network}");
    ensure!(output(outcome, RELEASE)?.contains("over"), "it does not end");
    let stats = outcome.replies.first().context("no statistics")?;
    // DISCOVER and REQUEST; RELEASE.
    let (answered, swallowed) = (counted(stats, "answered")?, counted(stats, "swallowed")?);
    ensure!(answered >= 2 && swallowed >= 1, "{answered} requests answered and {swallowed} swallowed");
    Ok(())
}

/// What it has written down of its lease, in the words of the other clients.
fn lease(text: &str) -> String {
    let value =
        |name: &str| text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('=')).unwrap_or_default();
    format!(
        "ip={}/{} router={} dns={} host={} lease={} server={}",
        value("ADDRESS"),
        value("NETMASK"),
        value("ROUTER"),
        value("DNS"),
        value("HOSTNAME"),
        value("LIFETIME"),
        value("SERVER_ADDRESS")
    )
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const GOOD: &str = "# This is private data. Do not parse.\nADDRESS=10.0.0.2\nNETMASK=255.255.255.0\nROUTER=10.0.0.1\n\
        SERVER_ADDRESS=169.254.169.254\nLIFETIME=600\nDNS=10.0.0.1 10.0.0.3\nHOSTNAME=web\n";

    fn outcome() -> Outcome {
        let said = |command: &str, text: &str| (command.to_owned(), text.to_owned());
        let stats =
            json!({"return": {"devices": [{"id": "net0", "queues": [{}, {"answered": 2, "swallowed": 1}, {}]}]}});
        Outcome {
            outputs: vec![said(ASK, GOOD), said(NETWORK, "1\n3 packets received\n"), said(RELEASE, "over\n")],
            replies: vec![stats],
            ..Outcome::default()
        }
    }

    #[test]
    fn a_lease_that_is_as_given_passes_and_nothing_else_does() {
        check(&outcome(), Vmm::ZVMM).unwrap();
        for (nth, text, message) in [
            (0, GOOD.replace("LIFETIME=600", "LIFETIME=601"), "the lease is another one"),
            (0, String::new(), "the lease is another one"),
            (1, "0\n3 packets received".to_owned(), "the address is of no use"),
            (2, String::new(), "it does not end"),
        ] {
            let mut wrong = outcome();
            wrong.outputs[nth].1 = text;
            let error = check(&wrong, Vmm::ZVMM).unwrap_err().to_string();
            assert!(error.starts_with(message), "{error}");
        }
    }

    #[test]
    fn three_clients_are_to_get_the_same() {
        assert_eq!(super::super::dhcp::LEASE.replace("/24", "/255.255.255.0"), LEASE);
        assert!(super::super::dhcp::scenario().machine(Vmm::ZVMM).nic_keys == KEYS);
        assert!(super::super::dhclient::scenario().machine(Vmm::ZVMM).nic_keys == KEYS);
    }
}
