//! A guest whose interface is set up by systemd-networkd, the third client that reads answers in its own way.

use anyhow::ensure;

use super::super::super::content::at;
use super::super::super::job::Outcome;
use super::super::{Scenario, output};
use super::lease::{Client, LEASE, reaches};

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

static CLIENT: Client = Client {
    name: "net-networkd",
    about: "a guest with systemd-networkd gets the address that its interface has for it, and gives it back",
    initrd: Some(at::NETWORK),
    steps: |script| script.guest(SETUP).guest_within(ASK, 40).guest(NETWORK).guest(RELEASE),
    check,
    // DISCOVER and REQUEST.
    answered: 2,
};

/// The scenario.
pub fn scenario() -> Scenario {
    CLIENT.scenario()
}

fn check(outcome: &Outcome) -> anyhow::Result<()> {
    let said = output(outcome, ASK)?;
    ensure!(lease(said) == format!("ip=10.0.0.2/255.255.255.0 {LEASE}"), "the lease is another one: {said}");
    reaches(outcome, NETWORK)?;
    let network = output(outcome, NETWORK)?;
    ensure!(network.starts_with('1'), "the address is of no use: {network}");
    ensure!(output(outcome, RELEASE)?.contains("over"), "it does not end");
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
    use super::super::lease::judges;
    use super::*;

    const GOOD: &str = "# This is private data. Do not parse.\nADDRESS=10.0.0.2\nNETMASK=255.255.255.0\nROUTER=10.0.0.1\n\
        SERVER_ADDRESS=169.254.169.254\nLIFETIME=600\nDNS=10.0.0.1 10.0.0.3\nHOSTNAME=web\n";

    #[test]
    fn a_lease_that_is_as_given_passes_and_nothing_else_does() {
        let outputs = [(ASK, GOOD), (NETWORK, "1\n3 packets received\n"), (RELEASE, "over\n")];
        let wrong = [
            (0, &*GOOD.replace("LIFETIME=600", "LIFETIME=601"), "the lease is another one"),
            (0, "", "the lease is another one"),
            (1, "0\n3 packets received", "the address is of no use"),
            (1, "1\n2 packets received", "the address is of no use"),
            (2, "", "it does not end"),
        ];
        judges(&CLIENT, &outputs, &wrong);
    }
}
