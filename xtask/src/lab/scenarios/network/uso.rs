//! UDP datagrams that go through the card in segments, both ways, as kernels from 6.2 on can have it.

use anyhow::{Context as _, ensure};
use serde_json::Value;

use super::super::super::content::at;
use super::super::super::job::Outcome;
use super::super::super::kernel::Which;
use super::super::{Scenario, Script, Vmm, output, outputs};
use super::iperf::no_complaint;
use super::{ADDRESSES, FEATURES, TAP_ADDRESSES};

/// `VIRTIO_NET_F_GUEST_USO4`, `_GUEST_USO6` and `_HOST_USO`.
const USO: [usize; 3] = [54, 55, 56];

const PROGRAMS: &str = "cd / && cpio -idu 'network/*' < /initrd-network-backports 2>&1";
const HOSTS: [&str; 2] = ["10.0.0.1", "[fd00::1]"];

/// Messages each way, and datagrams of each (see `lab-peer segments`).
const MESSAGES: u64 = 50;
const DATAGRAMS: u64 = 40;
const SEGMENT_BYTES: u64 = 1400;

/// Frames received, before the stack has put any together. Of those it sends the driver counts the segments: the card's own
/// count of them is in `query-stats`.
const RECEIVED: &str = "cat /sys/class/net/eth0/statistics/rx_packets";
const OFF: &str = "/network/bin/ethtool -K eth0 tx-udp-segmentation off && \
    /network/bin/ethtool -k eth0 | grep tx-udp-segmentation";
/// Linux' driver can send segments where it has accepted `VIRTIO_NET_F_HOST_USO`, and does so when it is told to only.
const ON: &str = "/network/bin/ethtool -K eth0 tx-udp-segmentation on && \
    /network/bin/ethtool -k eth0 | grep tx-udp-segmentation";

fn serve(host: &str) -> String {
    format!(
        "rm -f /tmp/served; (lab-peer segments serve {host}:5020 {MESSAGES} > /tmp/served 2>&1 &); \
         timeout 20 sh -c 'until netstat -lun | grep -q :5020; do sleep 0.05; done'"
    )
}

fn call(host: &str) -> String {
    format!("lab-peer segments call {host}:5020 {MESSAGES}")
}

const SERVED: &str =
    "timeout 20 sh -c 'until grep -Eq \"^served|Error\" /tmp/served; do sleep 0.1; done'; cat /tmp/served";

/// The scenario.
pub fn scenario() -> Scenario {
    Scenario::new(
        "net-uso",
        "UDP datagrams go through the card in segments, over IPv4 and IPv6, both ways, every byte checked (Linux 6.2 and newer)",
        |_| {
            let mut script = Script::new()
                .kernel(Which::Backports, true)
                .nic()
                .with(|machine| {
                    machine.initrd = at::NETWORK_BACKPORTS.to_owned();
                    machine.memory_mib = 512;
                })
                .before(PROGRAMS)
                .before(TAP_ADDRESSES)
                .limit(240)
                .ready()
                .guest(FEATURES)
                .guest(ADDRESSES)
                .guest(ON)
                .guest(RECEIVED)
                .qmp("query-stats");
            for host in HOSTS {
                script = script.shell(&serve(host)).guest_within(&call(host), 60).shell(SERVED);
                script = script.guest(RECEIVED).qmp("query-stats");
            }
            // The guest's stack divides what its card may not.
            script = script.guest(OFF).shell(&serve(HOSTS[0])).guest_within(&call(HOSTS[0]), 60).shell(SERVED);
            script.guest(RECEIVED).qmp("query-stats").power_off()
        },
        |outcome, _| check(outcome).and_then(|()| no_complaint(outcome)),
    )
    .only_where(Vmm::has_udp_segments)
    .outer_kernel(Which::Backports)
}

fn check(outcome: &Outcome) -> anyhow::Result<()> {
    let features = output(outcome, FEATURES)?.trim().as_bytes();
    ensure!(USO.iter().all(|bit| features.get(*bit) == Some(&b'1')), "the driver has not accepted UDP segments");
    let calls: Vec<&str> = HOSTS.into_iter().flat_map(|host| outputs(outcome, &call(host))).collect();
    let all = |said: &&str| said.contains(&format!("{MESSAGES} messages of {DATAGRAMS} datagrams"));
    ensure!(calls.len() == HOSTS.len() + 1 && calls.iter().all(all), "not everything arrived: {calls:?}");
    let served = outputs(outcome, SERVED);
    ensure!(served.len() == calls.len() && served.iter().all(all), "not everything was served: {served:?}");

    let received: Vec<u64> =
        outputs(outcome, RECEIVED).into_iter().map(|text| text.trim().parse()).collect::<Result<_, _>>()?;
    let counts: Vec<[u64; 3]> = outcome.replies.iter().map(counts).collect::<anyhow::Result<_>>()?;
    ensure!((received.len(), counts.len()) == (4, 4), "{} and {} readings, not four", received.len(), counts.len());
    let whole = MESSAGES * DATAGRAMS;
    for (nth, (received, counts)) in received.windows(2).zip(counts.windows(2)).enumerate() {
        let [to_guest, from_guest, sent] = [0, 1, 2].map(|of| counts[1][of] - counts[0][of]);
        let received = received[1].checked_sub(received[0]).context("frames that were taken back")?;
        // A frame a message, and what else there is on a network.
        let few = |count: u64| (MESSAGES..2 * MESSAGES).contains(&count);
        ensure!(few(received), "{received} frames came for {MESSAGES} messages: not in segments");
        let switched_off = nth == HOSTS.len();
        let right = if switched_off { sent >= whole } else { few(sent) };
        ensure!(right, "{sent} frames went for {MESSAGES} messages, switched off: {switched_off}");
        let least = whole * SEGMENT_BYTES;
        ensure!(to_guest >= least && from_guest >= least, "the card has moved {to_guest} and {from_guest} bytes");
    }
    let states = [output(outcome, ON)?.trim(), output(outcome, OFF)?.trim()];
    ensure!(states == ["tx-udp-segmentation: on", "tx-udp-segmentation: off"], "ethtool shows {states:?}");
    Ok(())
}

/// Bytes to the guest and from it, and frames from it.
fn counts(stats: &Value) -> anyhow::Result<[u64; 3]> {
    let mut devices = stats["return"]["devices"].as_array().context("no devices")?.iter();
    let nic = devices.find(|device| device["id"] == "net0").context("no interface")?;
    let count = |queue: usize, name: &str| nic["queues"][queue][name].as_u64().with_context(|| format!("no {name}"));
    Ok([count(0, "bytes_to_guest")?, count(1, "bytes_from_guest")?, count(1, "chains")?])
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn good() -> Outcome {
        let mut outputs = vec![(FEATURES.to_owned(), format!("{}111", "0".repeat(USO[0])))];
        for host in [HOSTS[0], HOSTS[1], HOSTS[0]] {
            outputs.push((call(host), "called with 50 messages of 40 datagrams\n".to_owned()));
            outputs.push((SERVED.to_owned(), "served 50 messages of 40 datagrams\n".to_owned()));
        }
        for text in ["10", "61", "112", "163"] {
            outputs.push((RECEIVED.to_owned(), text.to_owned()));
        }
        outputs.push((OFF.to_owned(), "tx-udp-segmentation: off\n".to_owned()));
        outputs.push((ON.to_owned(), "tx-udp-segmentation: on\n".to_owned()));
        let stats = |(nth, chains): (u64, u64)| {
            let bytes = nth * 2_800_000;
            let queues = json!([{"bytes_to_guest": bytes}, {"bytes_from_guest": bytes, "chains": chains}]);
            json!({"return": {"devices": [{"id": "net0", "queues": queues}]}})
        };
        let replies = [(0, 10), (1, 62), (2, 115), (3, 2116)].map(stats).into();
        Outcome { outputs, replies, ..Outcome::default() }
    }

    #[test]
    fn segments_that_are_passed_whole_pass_and_nothing_else_does() {
        check(&good()).unwrap();
        for nth in 0..good().outputs.len() {
            let mut worse = good();
            worse.outputs[nth].1 = "2500".to_owned();
            assert!(check(&worse).is_err(), "{:?}", worse.outputs[nth]);
        }
        let mut divided = good();
        divided.outputs[8].1 = "2061".to_owned();
        assert!(check(&divided).unwrap_err().to_string().contains("not in segments"));
        for (nth, chains) in [(1, 2062), (3, 167)] {
            let mut sent = good();
            sent.replies[nth]["return"]["devices"][0]["queues"][1]["chains"] = chains.into();
            assert!(check(&sent).is_err(), "{nth}");
        }
        let mut lost = good();
        lost.replies[3] = lost.replies[2].clone();
        assert!(check(&lost).is_err());
    }
}
