//! A network interface with two queue pairs, of which its driver uses more and fewer, and which it gives up and takes again,
//! while streams run both ways.

use anyhow::{Context as _, ensure};
use serde_json::{Value, json};

use super::super::super::content::at;
use super::super::super::job::Outcome;
use super::super::{Scenario, Script, Vmm, output, outputs};
use super::FEATURES;

/// `VIRTIO_NET_F_MQ`.
pub(super) const MQ: usize = 22;

/// At once, so that the kernel of the outer machine has flows to spread.
pub(super) const STREAMS: u64 = 4;
pub(super) const BYTES: u64 = 400_000;
/// Checked byte by byte at both ends.
pub(super) const CALL: &str = "(for port in 5001 5002 5003 5004; do lab-peer call 10.0.0.1:$port 400000 & done; wait)";
/// A server of the calls before may still be reading, and has its port until it ends.
pub(super) const SERVE: &str = "timeout 20 sh -c 'while netstat -ltn | grep -q :500[1-4]; do sleep 0.05; done'; for port in 5001 5002 5003 5004; do \
    lab-peer serve 10.0.0.1:$port 400000 >> /tmp/served 2>&1 & done; \
    timeout 20 sh -c 'until [ $(netstat -ltn | grep -c :500[1-4]) = 4 ]; do sleep 0.05; done'";

/// Pairs that the driver uses one after the other: as many as there are at its start.
pub(super) const PAIRS: [u64; 4] = [2, 1, 2, 1];
/// While the streams run: the driver's pairs and offloads, `more` of these among them.
pub(super) fn busy(more: &str) -> String {
    format!(
        "((lab-peer call 10.0.0.1:5001 400000; lab-peer call 10.0.0.1:5002 400000; \
         lab-peer call 10.0.0.1:5003 400000; lab-peer call 10.0.0.1:5004 400000) > /tmp/busy 2>&1 & \
         for n in 1 2 1 2 1 2 1 2; do /network/bin/ethtool -L eth0 combined $n || exit 1; done; \
         for k in 'tx off' 'tx on' 'tso off' 'tso on' 'gso off' 'gso on' 'gro off' 'gro on' {more}; do \
         /network/bin/ethtool -K eth0 $k > /dev/null || exit 1; done; wait; cat /tmp/busy)"
    )
}

/// Segments that the driver lets the card put together, where it may change its mind on them
/// (`VIRTIO_NET_F_CTRL_GUEST_OFFLOADS`).
const OF_THE_CARD: &str = "'rx-gro-hw off' 'rx-gro-hw on'";

/// A driver that goes while packets come, and the next one.
pub(super) const REBIND: &str = "(device=$(basename $(readlink -f /sys/class/net/eth0/device)); cd /sys/bus/virtio/drivers/virtio_net; \
    for n in 1 2 3 4 5 6 7 8 9 10; do echo $device > unbind || exit 1; echo $device > bind || exit 1; \
    ip addr add 10.0.0.2/24 dev eth0 && ip link set eth0 up || exit 1; done; echo bound)";
pub(super) const FLOOD: &str = "(while [ ! -e /tmp/calm ]; do ping -c 1 -W 1 10.0.0.2; \
    lab-peer frames tap0 52:54:00:12:34:56 0 200; done) > /dev/null 2>&1 &";
pub(super) const CALM: &str = "touch /tmp/calm";
pub(super) const ANSWERS: &str = "ping -c 3 -W 5 10.0.0.1 | grep -o '[0-9]* packets received'";

/// Has the driver use so many pairs, and shows how many there are and are in use.
pub(super) fn set(pairs: u64) -> String {
    format!(
        "/network/bin/ethtool -L eth0 combined {pairs} 2>&1; \
         /network/bin/ethtool -l eth0 | awk '/^Combined/{{print $2}}' | tr '\\n' ' '"
    )
}

/// The scenario.
pub fn scenario() -> Scenario {
    Scenario::new(
        "net-queues",
        "a guest's driver uses one queue pair and two, and is taken away and given back, with streams both ways meanwhile",
        |_| {
            let mut script = Script::new()
                .with(|machine| {
                    machine.initrd = at::NETWORK.to_owned();
                    machine.cpus = 2;
                })
                .nic_of_pairs(2)
                .limit(300)
                .before("rm -f /tmp/served /tmp/calm")
                .ready()
                .guest(FEATURES)
                .guest("ip addr add 10.0.0.2/24 dev eth0 && ip link set eth0 up && ping -c 1 10.0.0.1");
            for pairs in PAIRS {
                script = script.guest(&set(pairs)).qmp("query-stats");
                script = script.shell(SERVE).guest_within(CALL, 60).qmp("query-stats");
            }
            script = script.shell(SERVE).guest_within(&busy(OF_THE_CARD), 90);
            script = script.shell(FLOOD).guest_within(REBIND, 90).shell(CALM).guest(ANSWERS);
            script = script.qmp("query-stats").shell(SERVE).guest_within(CALL, 60).qmp("query-stats");
            script.power_off()
        },
        check,
    )
    .only_where(Vmm::has_queue_pairs)
}

fn check(outcome: &Outcome, _: Vmm) -> anyhow::Result<()> {
    let features = output(outcome, FEATURES)?.trim().as_bytes();
    ensure!(features.get(MQ) == Some(&b'1'), "the driver has not accepted MQ");
    for pairs in [1, 2] {
        for shown in outputs(outcome, &set(pairs)) {
            // The most first, then those in use.
            ensure!(shown.trim().ends_with(&format!("2 {pairs}")), "ethtool shows {shown:?}, not {pairs} of 2 pairs");
        }
    }
    let calls = outputs(outcome, CALL);
    let wanted = PAIRS.len() + 1;
    ensure!(calls.len() == wanted, "{} calls, not {wanted}", calls.len());
    for text in calls.into_iter().chain([output(outcome, &busy(OF_THE_CARD))?]) {
        let whole = text.matches(&format!("received {BYTES} bytes")).count() as u64;
        ensure!(whole == STREAMS, "not everything arrived: {text}");
    }
    ensure!(output(outcome, REBIND)?.contains("bound"), "the driver does not come back");
    let answers = output(outcome, ANSWERS)?;
    ensure!(answers.trim() == "3 packets received", "after the driver came back: {answers}");

    let stats: Vec<_> = outcome.replies.iter().filter(|reply| reply["return"]["devices"].is_array()).collect();
    ensure!(stats.len() == 2 * wanted, "{} answers to query-stats, not two a call", stats.len());
    // Before and after each call.
    for (stats, in_use) in stats.chunks(2).zip(PAIRS.into_iter().chain([2])) {
        let [(before_pairs, before), (pairs, after)] = [card(stats[0])?, card(stats[1])?];
        let wanted = json!({"offered": 2, "in_use": in_use});
        ensure!(*pairs == wanted && pairs == before_pairs, "query-stats shows the pairs as {pairs}, not {wanted}");
        ensure!(after[0] > before[0], "the first pair received nothing");
        let second = after[1] - before[1];
        ensure!((second > 0) == (in_use == 2), "with {in_use} pairs in use the second one received {second} bytes");
    }
    Ok(())
}

/// The pairs as `query-stats` shows them, and what each has received, in bytes.
fn card(stats: &Value) -> anyhow::Result<(&Value, [u64; 2])> {
    let mut devices = stats["return"]["devices"].as_array().context("no devices")?.iter();
    let nic = devices.find(|device| device["id"] == "net0").context("no interface")?;
    ensure!(nic["queues"].as_array().is_some_and(|queues| queues.len() == 5), "not five queues");
    let bytes = |queue: usize| nic["queues"][queue]["bytes_to_guest"].as_u64().context("no count of bytes");
    Ok((&nic["pairs"], [bytes(0)?, bytes(2)?]))
}

#[cfg(test)]
mod tests {
    use super::*;

    type Change = fn(&mut Outcome);

    fn stats(in_use: u64, first: u64, second: u64) -> Value {
        let queue = |bytes: u64| json!({"bytes_to_guest": bytes});
        let queues = json!([queue(first), {}, queue(second), {}, {}]);
        json!({"return": {"devices": [{"id": "net0", "pairs": {"offered": 2, "in_use": in_use}, "queues": queues}]}})
    }

    fn outcome(change: impl FnOnce(&mut Outcome)) -> Outcome {
        let mut outcome = Outcome::default();
        let mut says = |command: &str, text: &str| outcome.outputs.push((command.to_owned(), text.to_owned()));
        says(FEATURES, &format!("{}1", "0".repeat(MQ)));
        for pairs in PAIRS {
            says(&set(pairs), &format!("2 {pairs} "));
        }
        for _ in 0..=PAIRS.len() {
            says(CALL, &"received 400000 bytes\n".repeat(4));
        }
        says(&busy(OF_THE_CARD), &"received 400000 bytes\n".repeat(4));
        says(REBIND, "bound\n");
        says(ANSWERS, "3 packets received\n");
        let readings = [(2, 10, 10), (1, 20, 11), (2, 30, 20), (1, 40, 21), (2, 50, 30)];
        for (in_use, first, second) in readings {
            let grown = if in_use == 2 { second + 5 } else { second };
            outcome.replies.extend([stats(in_use, first, second), stats(in_use, first + 5, grown)]);
        }
        change(&mut outcome);
        outcome
    }

    #[test]
    fn an_interface_that_does_as_it_is_told_passes_and_nothing_else_does() {
        check(&outcome(|_| ()), Vmm::ZVMM).unwrap();
        let changes: [(Change, &str); 8] = [
            (|outcome| outcome.outputs[0].1 = "0".into(), "the driver has not accepted MQ"),
            (|outcome| outcome.outputs[1].1 = "2 1 ".into(), "ethtool shows"),
            (|outcome| outcome.outputs[5].1 = "received 400000 bytes\n".into(), "not everything arrived"),
            (|outcome| outcome.outputs[10].1 = "received 400000 bytes\n".into(), "not everything arrived"),
            (|outcome| outcome.outputs[12].1 = "0 packets received".into(), "after the driver came back"),
            (|outcome| outcome.replies[3] = stats(1, 25, 12), "with 1 pairs in use the second one received 1 bytes"),
            (|outcome| outcome.replies[5] = stats(2, 35, 20), "with 2 pairs in use the second one received 0 bytes"),
            (|outcome| outcome.replies[7] = stats(2, 45, 21), "query-stats shows the pairs as"),
        ];
        for (change, message) in changes {
            let error = check(&outcome(change), Vmm::ZVMM).unwrap_err().to_string();
            assert!(error.starts_with(message), "{error}");
        }
    }
}
