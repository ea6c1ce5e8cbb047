//! A guest that asks for its address with ISC's client, which reads answers in its own way.

use anyhow::{Context as _, ensure};

use super::super::super::content::at;
use super::super::super::job::Outcome;
use super::super::{Scenario, Script, Vmm, output};
use super::dhcp::{KEYS, counted};

/// What the client makes of what the interface gives.
pub(super) const LEASE: &str =
    "ip=10.0.0.2/255.255.255.0 router=10.0.0.1 dns=10.0.0.1 10.0.0.3 host=web lease=600 server=169.254.169.254";

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
const NETWORK: &str = "ping -c 3 10.0.0.1";
const RELEASE: &str = "/network/bin/dhclient -r -cf /tmp/conf -sf /tmp/script -lf /tmp/db -pf /tmp/pid eth0 > /dev/null 2>&1; \
    grep -c ^RELEASE /tmp/leases";

/// The scenario.
pub fn scenario() -> Scenario {
    Scenario::new(
        "net-dhclient",
        "a guest with ISC's DHCP client gets the address that its interface has for it, and gives it back",
        |_| {
            Script::new()
                .nic()
                .with(|machine| {
                    machine.initrd = at::NETWORK.to_owned();
                    machine.nic_keys = KEYS.to_owned();
                })
                .ready()
                .guest(SCRIPT)
                .guest(ASK)
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
    let bound = output(outcome, ASK)?;
    ensure!(bound.lines().any(|line| line == format!("BOUND {LEASE}")), "the lease is another one: {bound}");
    let network = output(outcome, NETWORK)?;
    ensure!(network.contains("3 packets received"), "the address is of no use: {network}");
    ensure!(output(outcome, RELEASE)?.trim() == "1", "the lease was not given back");
    let stats = outcome.replies.first().context("no statistics")?;
    // DISCOVER and REQUEST; RELEASE.
    let (answered, swallowed) = (counted(stats, "answered")?, counted(stats, "swallowed")?);
    ensure!(answered >= 2 && swallowed >= 1, "{answered} requests answered and {swallowed} swallowed");
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn outcome() -> Outcome {
        let said = |command: &str, text: String| (command.to_owned(), text);
        let stats =
            json!({"return": {"devices": [{"id": "net0", "queues": [{}, {"answered": 2, "swallowed": 1}, {}]}]}});
        Outcome {
            outputs: vec![
                said(ASK, format!("PREINIT ip=/ router=\nBOUND {LEASE}\n")),
                said(NETWORK, "3 packets transmitted, 3 packets received, 0% packet loss\n".into()),
                said(RELEASE, "1\n".into()),
            ],
            replies: vec![stats],
            ..Outcome::default()
        }
    }

    #[test]
    fn a_lease_that_is_as_given_passes_and_nothing_else_does() {
        check(&outcome(), Vmm::ZVMM).unwrap();
        for (nth, text, message) in [
            (0, "BOUND ip=10.0.0.3/24", "the lease is another one"),
            (1, "0 packets received", "the address is of no use"),
            (2, "0", "the lease was not given back"),
        ] {
            let mut wrong = outcome();
            wrong.outputs[nth].1 = text.into();
            let error = check(&wrong, Vmm::ZVMM).unwrap_err().to_string();
            assert!(error.starts_with(message), "{error}");
        }
    }
}
