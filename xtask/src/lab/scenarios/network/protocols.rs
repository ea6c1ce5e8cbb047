//! Streams over IPv4, IPv6 and both in a VLAN, and groups that somebody is in.

use anyhow::ensure;

use super::super::super::content::at;
use super::super::super::job::Outcome;
use super::super::{Scenario, Script, Vmm, output, outputs};
use super::{ADDRESSES, PROGRAMS, TAP_ADDRESSES};

/// VLAN 7 on top of both ends.
const VLAN: &str = "/network/bin/ip link add link eth0 name eth0.7 type vlan id 7 && /network/bin/ip link set eth0.7 up && \
    ip addr add 10.0.7.2/24 dev eth0.7 && /network/bin/ip addr add fd00:7::2/64 dev eth0.7 nodad";
const TAP_VLAN: &str = "/network/bin/ip link add link tap0 name tap0.7 type vlan id 7 && /network/bin/ip link set tap0.7 up && \
    ip addr add 10.0.7.1/24 dev tap0.7 && /network/bin/ip addr add fd00:7::1/64 dev tap0.7 nodad";
const NO_VLAN: &str = "/network/bin/ip link del eth0.7";
/// In the VLAN nobody is there any more, but beside it.
const ALONE: &str = "(! ping -c 2 -W 1 10.0.7.2 > /dev/null) && ping -c 2 10.0.0.2 > /dev/null && echo alone";

/// The host's addresses: IPv4 and IPv6, outside and inside the VLAN.
const HOSTS: [&str; 4] = ["10.0.0.1", "[fd00::1]", "10.0.7.1", "[fd00:7::1]"];
const BYTES: u64 = 2_000_000;

fn serve(host: &str) -> String {
    format!(
        "timeout 20 sh -c 'while netstat -ltn | grep -q :5001; do sleep 0.05; done'; \
         lab-peer serve {host}:5001 {BYTES} > /tmp/served 2>&1 & \
         timeout 20 sh -c 'until netstat -ltn | grep -q :5001; do sleep 0.05; done'"
    )
}

fn call(host: &str) -> String {
    format!("lab-peer call {host}:5001 {BYTES}")
}

/// A group, and what is asked of the two sides: IPv4's by the address of the interface, IPv6's by the interface's number.
#[derive(Clone, Copy)]
struct Group {
    address: &'static str,
    guest: (&'static str, &'static str),
    host: (&'static str, &'static str),
}

/// Datagrams to a group.
const DATAGRAMS: u64 = 40;
const GROUPS: [Group; 3] = [
    Group { address: "239.1.2.3", guest: ("eth0", "10.0.0.2"), host: ("tap0", "10.0.0.1") },
    Group { address: "ff02::4321", guest: ("eth0", "::"), host: ("tap0", "::") },
    Group { address: "239.7.2.3", guest: ("eth0.7", "10.0.7.2"), host: ("tap0.7", "10.0.7.1") },
];

impl Group {
    /// The group's name on an interface, for a shell.
    fn on(self, interface: &str) -> String {
        match self.address.contains(':') {
            true => format!("\"[{}%$(cat /sys/class/net/{interface}/ifindex)]:7000\"", self.address),
            false => format!("{}:7000", self.address),
        }
    }

    fn join(self, (interface, own): (&str, &str)) -> String {
        format!(
            "(lab-peer hear {} {own} {DATAGRAMS} > /tmp/heard 2>&1 &); \
             timeout 20 sh -c 'until grep -Eq \"^joined|Error\" /tmp/heard; do sleep 0.05; done'; grep joined /tmp/heard",
            self.on(interface)
        )
    }

    fn tell(self, (interface, own): (&str, &str)) -> String {
        format!("lab-peer tell {} {own} {DATAGRAMS}", self.on(interface))
    }

    fn heard(self) -> String {
        let group = self.address;
        format!(
            ": {group}; timeout 35 sh -c 'until grep -Eq \"^heard|Error\" /tmp/heard; do sleep 0.1; done'; cat /tmp/heard"
        )
    }
}

/// Frames that were sent before have been counted.
const SETTLED: &str = "ping -c 1 10.0.0.1 > /dev/null";

/// The scenario.
pub fn scenario() -> Scenario {
    Scenario::new(
        "net-protocols",
        "a guest talks over IPv4 and IPv6, in a VLAN and outside, and to and from groups that somebody is in",
        |_| {
            let mut script = Script::new()
                .nic()
                .with(|machine| machine.initrd = at::NETWORK.to_owned())
                .before(PROGRAMS)
                .before(TAP_ADDRESSES)
                .before(TAP_VLAN)
                .limit(240)
                .ready()
                .guest(ADDRESSES)
                .guest(VLAN);
            for host in HOSTS {
                script = script.shell(&serve(host)).guest_within(&call(host), 60);
            }
            for group in GROUPS {
                // To nobody, to somebody, and to nobody again.
                script = script.guest(SETTLED).qmp("query-stats").shell(&group.tell(group.host));
                script = script.guest(SETTLED).qmp("query-stats");
                script = script.guest(&group.join(group.guest)).shell(&group.tell(group.host));
                script = script.guest_within(&group.heard(), 40).qmp("query-stats");
                script = script.shell(&group.tell(group.host)).guest(SETTLED).qmp("query-stats");
                script = script.shell(&group.join(group.host)).guest(&group.tell(group.guest));
                script = script.shell(&group.heard());
            }
            script.guest(NO_VLAN).shell(ALONE).power_off()
        },
        |outcome, vmm| {
            check(outcome)?;
            if vmm.has_viona() { Ok(()) } else { check_filter(outcome) }
        },
    )
    .only_where(Vmm::is_zvmm)
}

fn check(outcome: &Outcome) -> anyhow::Result<()> {
    for host in HOSTS {
        let said = output(outcome, &call(host))?;
        ensure!(said.contains(&format!("received {BYTES} bytes")), "not everything came from {host}: {said}");
    }
    for group in GROUPS {
        // In the guest, and in the outer machine.
        let heard = outputs(outcome, &group.heard());
        let all = heard.iter().filter(|said| said.contains(&format!("heard {DATAGRAMS} datagrams"))).count();
        ensure!(all == 2, "of what was told to {} was heard: {heard:?}", group.address);
    }
    ensure!(output(outcome, ALONE)?.contains("alone"), "somebody answers in a VLAN that is gone");
    Ok(())
}

/// What is for a group that nobody in the guest is in does not reach it.
fn check_filter(outcome: &Outcome) -> anyhow::Result<()> {
    let counts: Vec<u64> = outcome.replies.iter().map(super::filtered).collect::<anyhow::Result<_>>()?;
    ensure!(counts.len() == 4 * GROUPS.len(), "{} answers to query-stats, not four a group", counts.len());
    for (group, counts) in GROUPS.into_iter().zip(counts.chunks(4)) {
        let [before, nobody, somebody, left] = counts else { anyhow::bail!("not four answers") };
        for (kept_out, wanted) in [(nobody - before, true), (somebody - nobody, false), (left - somebody, true)] {
            let right = if wanted { kept_out >= DATAGRAMS } else { kept_out < DATAGRAMS };
            ensure!(right, "{kept_out} of {DATAGRAMS} frames to {} were filtered: {counts:?}", group.address);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn good() -> Outcome {
        let mut outputs: Vec<_> =
            HOSTS.map(|host| (call(host), format!("received {BYTES} bytes, CRC-32 0\n"))).into_iter().collect();
        for group in GROUPS {
            for _ in 0..2 {
                outputs.push((group.heard(), format!("joined\nheard {DATAGRAMS} datagrams\n")));
            }
        }
        outputs.push((ALONE.to_owned(), "alone\n".to_owned()));
        let stats =
            |filtered: u64| json!({"return": {"devices": [{"id": "net0", "queues": [{"filtered": filtered}]}]}});
        let replies = (0..3).flat_map(|_| [0, 40, 41, 81].map(stats)).collect();
        Outcome { outputs, replies, ..Outcome::default() }
    }

    #[test]
    fn a_guest_that_hears_everything_it_wants_passes_and_nothing_else_does() {
        check(&good()).unwrap();
        for nth in 0..good().outputs.len() {
            let mut worse = good();
            worse.outputs[nth].1 = format!("heard {} datagrams", DATAGRAMS - 1);
            assert!(check(&worse).is_err(), "{:?}", worse.outputs[nth]);
        }
    }

    #[test]
    fn frames_to_a_group_that_nobody_is_in_must_be_filtered_and_others_not() {
        check_filter(&good()).unwrap();
        for (nth, count) in [(1, 39), (2, 80), (3, 80)] {
            let mut worse = good();
            worse.replies[nth]["return"]["devices"][0]["queues"][0]["filtered"] = Value::from(count);
            assert!(check_filter(&worse).is_err(), "{nth}");
        }
        assert!(check_filter(&Outcome::default()).is_err());
    }

    #[test]
    fn a_group_of_ipv6_has_the_number_of_its_interface() {
        assert_eq!(GROUPS[0].on("eth0"), "239.1.2.3:7000");
        assert_eq!(GROUPS[1].on("eth0"), "\"[ff02::4321%$(cat /sys/class/net/eth0/ifindex)]:7000\"");
    }
}
