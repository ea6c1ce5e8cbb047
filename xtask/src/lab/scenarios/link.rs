//! A network interface whose cable is pulled, and whose host's interface goes down, while it is in use.

use anyhow::{Context as _, ensure};
use serde_json::{Value, json};

use super::super::job::Outcome;
use super::{Scenario, Script, outputs};

/// The scenarios of this file.
pub fn all() -> Vec<Scenario> {
    vec![link()]
}

/// What Linux makes of the link: it reads the card's status when it is told of a change.
const CARRIER: &str = "cat /sys/class/net/eth0/carrier";
/// Hardly ever silent, so that there is a frame on its way when the link changes.
const TRAFFIC: &str =
    "{ (while [ ! -e /tmp/stop ]; do ping -c 1 -W 1 10.0.0.1; sleep 0.05; done) > /tmp/pings 2>&1 & }";
const WAITS_FOR_DOWN: &str = "timeout 20 sh -c 'until grep -q 0 /sys/class/net/eth0/carrier; do sleep 0.1; done'";
/// Kept, as no two questions for an address are less than a second apart: the first frame would wait for the second.
const KNOWS_THE_HOST: &str = "arp -s 10.0.0.1 $(awk '/^10.0.0.1 /{print $4}' /proc/net/arp)";
/// The carrier is there at once, but Linux starts its queues by looking at carriers once a second, and drops what is sent
/// before.
const WAITS_FOR_UP: &str = "timeout 20 sh -c 'until grep -q up /sys/class/net/eth0/operstate; do sleep 0.1; done'";
/// Linux sends nothing itself without a carrier: what is lost comes from the other side.
const FRAMES: u64 = 40;
const ARRIVING: &str = "lab-peer frames tap0 52:54:00:12:34:56 0 40";
/// As long as it takes to see that nobody answers.
const IN_VAIN: &str = "! ping -c 2 -W 1 10.0.0.1 > /dev/null && echo nobody answers";
/// Without a pause in which a stalled queue could recover.
const AT_ONCE: &str = "ping -c 3 -W 5 10.0.0.1 | grep -o '[0-9]* packets received'";

const BYTES: u64 = 400_000;
const CALL: &str = "lab-peer call 10.0.0.1:5001 400000";
const SERVE: &str = "lab-peer serve 10.0.0.1:5001 400000 > /tmp/served 2>&1 & \
    timeout 20 sh -c 'until netstat -ltn | grep -q :5001; do sleep 0.05; done'";
/// The call is over for the other side, too: else the next one finds that side still there.
const SERVED: &str = "timeout 20 sh -c 'until grep -q received /tmp/served; do sleep 0.1; done'; \
    timeout 20 sh -c 'while pidof lab-peer > /dev/null; do sleep 0.1; done'";

/// How often each of the two takes the link away.
const TIMES: usize = 3;

fn link() -> Scenario {
    Scenario::new(
        "net-link",
        "a guest's carrier goes with set_link and with the host's interface while traffic runs, which goes on at once each time",
        |_| {
            let mut script = Script::new()
                .nic()
                .limit(240)
                .ready()
                .guest("ip addr add 10.0.0.2/24 dev eth0 && ip link set eth0 up && ping -c 1 10.0.0.1")
                .guest(KNOWS_THE_HOST)
                .guest(CARRIER)
                .guest(TRAFFIC);
            for time in 0..2 * TIMES {
                let by_operator = time < TIMES;
                let set = |script: Script, up: bool| match by_operator {
                    true => script.qmp_with("set_link", json!({"name": "net0", "up": up})),
                    false => script.shell(if up { "ip link set tap0 up" } else { "ip link set tap0 down" }),
                };
                script = set(script, false).guest(WAITS_FOR_DOWN).guest(CARRIER);
                if by_operator {
                    script = script.shell(ARRIVING);
                }
                script = script.guest(IN_VAIN).qmp("query-stats");
                script = set(script, true).guest(WAITS_FOR_UP).guest(CARRIER).guest(AT_ONCE);
                script = script.shell(SERVE).guest(CALL).shell(SERVED).qmp("query-stats");
            }
            script.guest_within("touch /tmp/stop; wait", 30).power_off()
        },
        check,
    )
    .only_where(|vmm| vmm.is_zvmm() && !vmm.has_viona())
}

fn check(outcome: &Outcome, _: super::Vmm) -> anyhow::Result<()> {
    let carriers: Vec<&str> = outputs(outcome, CARRIER).into_iter().map(str::trim).collect();
    let wanted: Vec<&str> = std::iter::once("1").chain(["0", "1"].into_iter().cycle().take(4 * TIMES)).collect();
    ensure!(carriers == wanted, "the guest's carrier was {carriers:?}, not {wanted:?}");
    let silent = outputs(outcome, IN_VAIN);
    ensure!(silent.len() == 2 * TIMES, "somebody answers while the link is down: {silent:?}");
    let answered = outputs(outcome, AT_ONCE);
    ensure!(
        answered.len() == 2 * TIMES && answered.iter().all(|text| text.trim() == "3 packets received"),
        "after the link came back: {answered:?}"
    );
    let calls = outputs(outcome, CALL);
    let whole = |text: &&str| text.contains(&format!("received {BYTES} bytes"));
    ensure!(calls.len() == 2 * TIMES && calls.iter().all(whole), "not everything arrived: {calls:?}");

    let stats: Vec<_> = outcome.replies.iter().filter(|reply| reply["return"]["devices"].is_array()).collect();
    ensure!(stats.len() == 4 * TIMES, "{} answers to query-stats, not {}", stats.len(), 4 * TIMES);
    let mut lost_before = 0;
    for (nth, stats) in stats.into_iter().enumerate() {
        let (link, lost) = card(stats)?;
        let (up, by_operator) = (nth % 2 == 1, nth < 2 * TIMES);
        let wanted = json!({"up": up, "plugged": up || !by_operator, "carrier": up || by_operator});
        ensure!(*link == wanted, "query-stats shows the link as {link}, not {wanted}");
        let least = lost_before + if up || !by_operator { 0 } else { FRAMES };
        ensure!(lost >= least, "{lost} frames were lost to the link, not {least} at least");
        lost_before = lost;
    }
    Ok(())
}

/// The link as `query-stats` shows it, and the frames for the guest that were lost because it was down.
fn card(stats: &Value) -> anyhow::Result<(&Value, u64)> {
    let mut devices = stats["return"]["devices"].as_array().context("no devices")?.iter();
    let nic = devices.find(|device| device["id"] == "net0").context("no interface")?;
    let lost = nic["queues"][0]["link_down"].as_u64().context("no count of frames lost to the link")?;
    Ok((&nic["link"], lost))
}

#[cfg(test)]
mod tests {
    use super::super::Vmm;
    use super::*;

    fn stats(link: Value, lost: u64) -> Value {
        let queues = json!([{"link_down": lost}, {"link_down": 0}]);
        json!({"return": {"devices": [{"id": "disk0"}, {"id": "net0", "link": link, "queues": queues}]}})
    }

    /// What a run that is as it should be has shown.
    fn good() -> Outcome {
        let mut outcome = Outcome::default();
        let mut says = |command: &str, text: &str| outcome.outputs.push((command.to_owned(), text.to_owned()));
        says(CARRIER, "1\n");
        for _ in 0..2 * TIMES {
            says(CARRIER, "0\n");
            says(IN_VAIN, "nobody answers\n");
            says(CARRIER, "1\n");
            says(AT_ONCE, "3 packets received\n");
            says(CALL, "received 400000 bytes\n");
        }
        for time in 0..2 * TIMES {
            let by_operator = time < TIMES;
            let down = json!({"up": false, "plugged": !by_operator, "carrier": by_operator});
            let up = json!({"up": true, "plugged": true, "carrier": true});
            let lost = FRAMES * (1 + time.min(TIMES - 1) as u64);
            outcome.replies.extend([json!({"return": {}}), stats(down, lost), stats(up, lost)]);
        }
        outcome
    }

    #[test]
    fn a_link_that_comes_and_goes_as_it_should_passes() {
        check(&good(), Vmm::ZVMM).unwrap();
    }

    #[test]
    fn a_guest_that_sees_no_change_a_stall_or_frames_that_are_not_counted_fail() {
        let spoilt = |spoil: &dyn Fn(&mut Outcome)| {
            let mut outcome = good();
            spoil(&mut outcome);
            check(&outcome, Vmm::ZVMM).unwrap_err().to_string()
        };
        let set = |command: &'static str, text: &'static str| {
            move |outcome: &mut Outcome| {
                let (_, output) = outcome.outputs.iter_mut().rfind(|(said, _)| said == command).unwrap();
                *output = text.to_owned();
            }
        };
        assert!(spoilt(&set(CARRIER, "0\n")).starts_with("the guest's carrier was"));
        assert!(spoilt(&set(AT_ONCE, "2 packets received\n")).starts_with("after the link came back"));
        assert!(spoilt(&set(CALL, "received 1 bytes\n")).starts_with("not everything arrived"));
        assert!(spoilt(&|outcome| drop(outcome.replies.pop())).contains("answers to query-stats"));
        let uncounted = |outcome: &mut Outcome| {
            let link = json!({"up": false, "plugged": false, "carrier": true});
            outcome.replies[4] = stats(link, FRAMES);
        };
        assert_eq!(spoilt(&uncounted), "40 frames were lost to the link, not 80 at least");
        let unseen = |outcome: &mut Outcome| {
            outcome.replies[1] = stats(json!({"up": true, "plugged": true, "carrier": true}), FRAMES);
        };
        assert!(spoilt(&unseen).starts_with("query-stats shows the link as"));
    }
}
