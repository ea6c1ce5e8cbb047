//! A guest that asks for its address with ISC's client, which reads answers in its own way.

use anyhow::ensure;

use super::super::super::content::at;
use super::super::super::job::Outcome;
use super::super::{Scenario, output};
use super::lease::{Client, LEASE, NETWORK, reaches};

/// What the client runs with everything that happens to its lease: writes it down, and sets the interface up.
const SCRIPT: &str = "printf '%s\\n' '#!/bin/sh' \
    'echo \"$reason ip=$new_ip_address/$new_subnet_mask router=$new_routers dns=$new_domain_name_servers \
host=$new_host_name lease=$new_dhcp_lease_time server=$new_dhcp_server_identifier\" >> /tmp/leases' \
    '[ \"$reason\" = BOUND ] || exit 0' \
    'ip addr add \"$new_ip_address/24\" dev \"$interface\"' \
    'ip route add default via \"$new_routers\"' > /tmp/script && chmod +x /tmp/script && ip link set eth0 up";
/// Goes on in the background once it has a lease.
const ASK: &str = "echo > /tmp/conf; /network/bin/dhclient -1 -cf /tmp/conf -sf /tmp/script -lf /tmp/db -pf /tmp/pid eth0 \
    > /tmp/said 2>&1 || cat /tmp/said; cat /tmp/leases";
const RELEASE: &str = "/network/bin/dhclient -r -cf /tmp/conf -sf /tmp/script -lf /tmp/db -pf /tmp/pid eth0 > /dev/null 2>&1; \
    grep -c ^RELEASE /tmp/leases";

static CLIENT: Client = Client {
    name: "net-dhclient",
    about: "a guest with ISC's DHCP client gets the address that its interface has for it, and gives it back",
    initrd: Some(at::NETWORK),
    steps: |script| script.guest(SCRIPT).guest(ASK).guest(NETWORK).guest(RELEASE),
    check,
    // DISCOVER and REQUEST.
    answered: 2,
};

/// The scenario.
pub fn scenario() -> Scenario {
    CLIENT.scenario()
}

fn check(outcome: &Outcome) -> anyhow::Result<()> {
    let bound = output(outcome, ASK)?;
    let wanted = format!("BOUND ip=10.0.0.2/255.255.255.0 {LEASE}");
    ensure!(bound.lines().any(|line| line == wanted), "the lease is another one: {bound}");
    reaches(outcome, NETWORK)?;
    ensure!(output(outcome, RELEASE)?.trim() == "1", "the lease was not given back");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::lease::judges;
    use super::*;

    #[test]
    fn a_lease_that_is_as_given_passes_and_nothing_else_does() {
        let outputs = [
            (ASK, &*format!("PREINIT ip=/ router=\nBOUND ip=10.0.0.2/255.255.255.0 {LEASE}\n")),
            (NETWORK, "3 packets transmitted, 3 packets received, 0% packet loss\n"),
            (RELEASE, "1\n"),
        ];
        let wrong = [
            (0, "BOUND ip=10.0.0.3/24", "the lease is another one"),
            (1, "0 packets received", "the address is of no use"),
            (2, "0", "the lease was not given back"),
        ];
        judges(&CLIENT, &outputs, &wrong);
    }
}
