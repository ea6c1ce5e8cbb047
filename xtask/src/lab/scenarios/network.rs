//! A network interface that is set up in all ways while it is in use.

mod capture;
mod carried;
mod dhclient;
mod dhcp;
mod in_kernel;
mod iperf;
mod lease;
mod networkd;
mod offloads;
mod protocols;
mod queues;
mod rebind;
mod stream;
mod uso;
mod vhost;
mod vhost_pairs;

use anyhow::{Context as _, bail, ensure};
use serde_json::Value;

use super::super::content::at;
use super::super::job::Outcome;
use super::{Scenario, Script, Vmm, output, outputs};

/// The scenarios of this file.
pub fn all() -> Vec<Scenario> {
    vec![control(), carried::scenario(), vhost::scenario(), dhcp::scenario(), dhclient::scenario(), queues::scenario()]
}

/// Scenarios that take minutes, or programs that no other scenario needs.
pub fn long() -> Vec<Scenario> {
    vec![
        iperf::scenario(1),
        iperf::scenario(2),
        offloads::scenario(),
        protocols::scenario(),
        capture::scenario(),
        rebind::scenario(false),
        rebind::scenario(true),
        networkd::scenario(),
        uso::scenario(),
        vhost_pairs::scenario(),
    ]
}

/// Puts the guest's programs into the outer machine, too.
const PROGRAMS: &str = "[ -d /network ] || (cd / && cpio -idu 'network/*' < /initrd-network) 2>&1";
/// The host's and the guest's second address, and the guest's first; those of IPv6 are good at once.
const TAP_ADDRESSES: &str = "/network/bin/ip addr add fd00::1/64 dev tap0 nodad";
const ADDRESSES: &str = "ip addr add 10.0.0.2/24 dev eth0 && ip link set eth0 up && \
    /network/bin/ip addr add fd00::2/64 dev eth0 nodad && ping -c 1 10.0.0.1";

/// The bits of what the driver accepted, the lowest first.
const FEATURES: &str = "cat /sys/class/net/eth0/device/features";
const OFFLOADS: &str = "CTRL_GUEST_OFFLOADS";
/// Commands on the control queue that virtio 1.3 §5.1.3 has a feature for, and that Linux uses.
const NEEDED: [(usize, &str); 6] =
    [(2, OFFLOADS), (17, "CTRL_VQ"), (18, "CTRL_RX"), (19, "CTRL_VLAN"), (21, "GUEST_ANNOUNCE"), (23, "CTRL_MAC_ADDR")];

const FIRST: &str = "52:54:00:12:34:56";
const SECOND: &str = "52:54:00:12:34:99";
const FOREIGN: &str = "52:54:00:aa:bb:cc";
const GROUP: &str = "01:00:5e:01:01:01";
const ALL: &str = "ff:ff:ff:ff:ff:ff";

/// Frames the outer machine sends to an address: many more than those of the packets that count them.
const FRAMES: u64 = 40;
/// What the guest has received, after all that came before it.
const RECEIVED: &str = "ping -c 1 10.0.0.1 > /dev/null && cat /sys/class/net/eth0/statistics/rx_packets";

const BYTES: u64 = 400_000;
const CALL: &str = "lab-peer call 10.0.0.1:5001 400000";
const SERVE: &str = "lab-peer serve 10.0.0.1:5001 400000 >> /tmp/served 2>&1 & \
    timeout 20 sh -c 'until netstat -ltn | grep -q :5001; do sleep 0.05; done'";
/// As many calls as there were.
fn served(calls: usize) -> String {
    format!(
        "timeout 20 sh -c 'until [ $(grep -c received /tmp/served) = {calls} ]; do sleep 0.1; done'; \
         grep -c received /tmp/served"
    )
}

/// The changes of offloads, where the interface has some.
fn switches(vmm: Vmm) -> &'static [&'static str] {
    if vmm.has_offloads() { &SWITCH } else { &[] }
}

/// How Linux calls it that it takes TCP segments that were put together by the card, each with one checksum's promise.
const SWITCH: [&str; 2] = ["/network/bin/ethtool -K eth0 rx-gro-hw off", "/network/bin/ethtool -K eth0 rx-gro-hw on"];
const SWITCHED: &str = "/network/bin/ethtool -k eth0 | grep rx-gro-hw";
/// Bytes of TCP in a frame of an MTU of 1500, where the headers are as short as they can be.
const SEGMENT: u64 = 1460;
/// Before the calls with each of the two.
const COUNTED: &str = "cat /sys/class/net/eth0/statistics/rx_packets";

/// What is done to the interface, and frames after it: to whom, in which VLAN, and whether the guest wants them.
type Change = (&'static str, &'static [(&'static str, u16, bool)]);

const CHANGES: [Change; 9] = [
    ("true", &[(FIRST, 0, true), (ALL, 0, true), (FOREIGN, 0, false), (GROUP, 0, false), (FIRST, 7, false)]),
    ("/network/bin/ip link set eth0 promisc on", &[(FOREIGN, 0, true), (GROUP, 0, true)]),
    ("/network/bin/ip link set eth0 promisc off", &[(FIRST, 0, true), (FOREIGN, 0, false)]),
    ("/network/bin/ip maddr add 01:00:5e:01:01:01 dev eth0", &[(GROUP, 0, true), ("01:00:5e:01:01:02", 0, false)]),
    ("/network/bin/ip maddr del 01:00:5e:01:01:01 dev eth0", &[(GROUP, 0, false)]),
    (
        "/network/bin/ip link add link eth0 name eth0.7 type vlan id 7 && /network/bin/ip link set eth0.7 up",
        &[(FIRST, 7, true), (FIRST, 8, false)],
    ),
    ("/network/bin/ip link del eth0.7", &[(FIRST, 7, false)]),
    ("/network/bin/ip link set eth0 address 52:54:00:12:34:99", &[(SECOND, 0, true), (FIRST, 0, false)]),
    ("/network/bin/ip link set eth0 allmulticast on", &[(GROUP, 0, true), (FOREIGN, 0, false)]),
];

fn control() -> Scenario {
    Scenario::new(
        "net-control",
        "a guest's driver has its interface filter by mode, address and VLAN, and changes address and offloads, with TCP after each",
        |vmm| {
            let mut script = Script::new()
                .nic()
                .with(|machine| machine.initrd = at::NETWORK.to_owned())
                .limit(240)
                // What the outer machine's own stack would say to a group must not be counted.
                .before("echo 1 > /proc/sys/net/ipv6/conf/tap0/disable_ipv6; rm -f /tmp/served")
                .ready()
                .guest(FEATURES)
                .guest("ip addr add 10.0.0.2/24 dev eth0 && ip link set eth0 up && ping -c 1 10.0.0.1");
            for (nth, (change, frames)) in CHANGES.into_iter().enumerate() {
                // Until the other side has all of it: its acknowledgements are frames, too.
                script = script.guest(change).shell(SERVE).guest(CALL).shell(&served(nth + 1));
                script = script.guest(RECEIVED).qmp("query-stats");
                for (to, vlan, _) in frames {
                    script = script.shell(&format!("lab-peer frames tap0 {to} {vlan} {FRAMES}"));
                    script = script.guest(RECEIVED).qmp("query-stats");
                }
            }
            for switch in switches(vmm) {
                script = script.guest(switch).guest(SWITCHED).shell(SERVE);
                script = script.guest(COUNTED).guest(CALL).guest(COUNTED);
            }
            script.shell(&served(CHANGES.len() + switches(vmm).len())).power_off()
        },
        check,
    )
    .only_where(|vmm| vmm.is_zvmm() && !vmm.has_viona())
}

fn check(outcome: &Outcome, vmm: Vmm) -> anyhow::Result<()> {
    let features = output(outcome, FEATURES)?.trim().as_bytes();
    for (bit, name) in NEEDED {
        let expected = if name == OFFLOADS && !vmm.has_offloads() { b'0' } else { b'1' };
        ensure!(features.get(bit) == Some(&expected), "the driver has not accepted {name}, or has where it must not");
    }
    let calls = outputs(outcome, CALL);
    let wanted = CHANGES.len() + switches(vmm).len();
    ensure!(calls.len() == wanted, "{} calls, not {wanted}", calls.len());
    for text in calls {
        ensure!(text.contains(&format!("received {BYTES} bytes")), "not everything arrived: {text}");
    }
    ensure!(output(outcome, &served(wanted))?.trim() == wanted.to_string(), "not everything was served");
    let received: Vec<u64> =
        outputs(outcome, RECEIVED).into_iter().map(|text| text.trim().parse()).collect::<Result<_, _>>()?;
    let filtered: Vec<u64> = outcome.replies.iter().map(filtered).collect::<anyhow::Result<_>>()?;
    let mut readings = received.into_iter().zip(filtered);
    for (change, frames) in CHANGES {
        let mut before = readings.next().context("a reading is missing")?;
        for (to, vlan, wanted) in frames {
            let after = readings.next().context("a reading is missing")?;
            let (came, kept_out) = (after.0 - before.0, after.1 - before.1);
            let right = if *wanted { came >= FRAMES && kept_out == 0 } else { came < FRAMES && kept_out == FRAMES };
            let of = format!("of {FRAMES} frames to {to} in VLAN {vlan} after `{change}`");
            ensure!(right, "{of} {came} were received (with others) and {kept_out} filtered, wanted: {wanted}");
            before = after;
        }
    }
    if vmm.has_offloads() { check_offloads(outcome) } else { Ok(()) }
}

/// Switched off, the host's segments come one by one; switched on again, many in one frame.
fn check_offloads(outcome: &Outcome) -> anyhow::Result<()> {
    let switched: Vec<&str> = outputs(outcome, SWITCHED).into_iter().map(str::trim).collect();
    ensure!(switched == ["rx-gro-hw: off", "rx-gro-hw: on"], "ethtool shows {switched:?}");
    let counted: Vec<u64> =
        outputs(outcome, COUNTED).into_iter().map(|text| text.trim().parse()).collect::<Result<_, _>>()?;
    let [before_off, after_off, before_on, after_on] = counted[..] else {
        bail!("{} times counted, not 4", counted.len())
    };
    let (off, on) = (after_off - before_off, after_on - before_on);
    ensure!(off >= BYTES / SEGMENT && on < BYTES / SEGMENT, "{off} frames without the offload, and {on} with it");
    Ok(())
}

/// Frames that the interface's filter has kept out.
fn filtered(stats: &Value) -> anyhow::Result<u64> {
    let mut devices = stats["return"]["devices"].as_array().context("no devices")?.iter();
    let nic = devices.find(|device| device["id"] == "net0").context("no interface")?;
    nic["queues"][0]["filtered"].as_u64().context("no count of filtered frames")
}
