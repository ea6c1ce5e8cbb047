//! iperf3 both ways with TCP and UDP, one stream and four, small frames and jumbo frames, by one queue pair and by two; and
//! floods of pings.

use anyhow::{Context as _, ensure};
use serde_json::Value;

use super::super::super::content::at;
use super::super::super::job::Outcome;
use super::super::{Scenario, Script, output};
use super::PROGRAMS;

/// Bytes of the largest packet, without its Ethernet header.
const MTUS: [u32; 2] = [1500, 9000];
/// Seconds of one run.
const SECONDS: u32 = 3;
/// What each stream of UDP sends at most, Mbit/s: without a limit it would lose nearly all.
const UDP_MBITS: u32 = 40;
const PINGS: u32 = 1000;

/// One run of iperf3, seen from the outer machine, which calls.
#[derive(Clone, Copy)]
struct Load {
    mtu: u32,
    udp: bool,
    streams: usize,
    /// The guest sends.
    back: bool,
}

impl Load {
    fn all() -> Vec<Self> {
        let mut all = Vec::new();
        for mtu in MTUS {
            for udp in [false, true] {
                for streams in [1, 4] {
                    all.extend([false, true].map(|back| Self { mtu, udp, streams, back }));
                }
            }
        }
        all
    }

    fn command(self) -> String {
        let Self { mtu, udp, streams, back } = self;
        let udp = if udp { format!(" -u -b {UDP_MBITS}M") } else { String::new() };
        let back = if back { " -R" } else { "" };
        format!("/network/bin/iperf3 -c 10.0.0.2 -J -t {SECONDS} -P {streams}{udp}{back} # MTU {mtu}")
    }

    fn check(self, text: &str) -> anyhow::Result<()> {
        let said: Value = serde_json::from_str(text).with_context(|| format!("no answer of iperf3's: {text}"))?;
        ensure!(said["error"].is_null(), "iperf3 says {}", said["error"]);
        let streams = said["end"]["streams"].as_array().context("no streams")?;
        ensure!(streams.len() == self.streams, "{} streams, not {}", streams.len(), self.streams);
        for stream in streams {
            let arrived = match self.udp {
                false => stream["receiver"]["bytes"].as_u64(),
                true => packets(&stream["udp"]),
            };
            ensure!(arrived.context("no count of what arrived")? > 0, "nothing arrived in a stream: {stream}");
        }
        // What is left at the end may be short.
        let seconds = said["intervals"].as_array().context("no intervals")?.iter().map(|interval| &interval["sum"]);
        let whole = seconds.filter(|sum| sum["seconds"].as_f64().is_some_and(|seconds| seconds > 0.5));
        let moved: Vec<u64> = whole.filter_map(|sum| sum["bytes"].as_u64()).collect();
        ensure!(moved.len() + 1 >= SECONDS as usize, "{} seconds were counted, not {SECONDS}", moved.len());
        ensure!(moved.iter().all(|bytes| *bytes > 0), "it stood still: {moved:?} bytes a second");
        Ok(())
    }
}

/// Packets of UDP that arrived.
fn packets(udp: &Value) -> Option<u64> {
    udp["packets"].as_u64()?.checked_sub(udp["lost_packets"].as_u64()?)
}

fn set_mtu(mtu: u32) -> String {
    format!("/network/bin/ip link set eth0 mtu {mtu}")
}

fn flood(to: &str) -> String {
    format!("/network/bin/ping -f -q -c {PINGS} {to}")
}

/// As large as fits, in one frame.
fn whole(mtu: u32) -> String {
    format!("/network/bin/ping -M do -s {} -c 3 -q 10.0.0.1", mtu - 28)
}

/// The scenario with so many queue pairs.
pub fn scenario(pairs: u32) -> Scenario {
    let scenario = Scenario::new(
        format!("net-iperf-{pairs}"),
        format!(
            "iperf3 with TCP and UDP both ways, 1 and 4 streams, MTU 1500 and 9000, and ping -f, by {pairs} queue pairs"
        ),
        move |vmm| {
            let script = Script::new().with(|machine| {
                machine.initrd = at::NETWORK.to_owned();
                machine.memory_mib = 512;
                machine.cpus = pairs;
                machine.link_keys = format!(",mtu={}", MTUS[1]);
            });
            let script = match pairs {
                1 => script.nic(),
                // All pairs have one link then.
                _ if vmm.has_viona() => script.nic().with(|machine| machine.carried_keys = format!(",queues={pairs}")),
                _ => script.nic_of_pairs(pairs),
            };
            let mut script = script
                .before(PROGRAMS)
                .before("ip link set tap0 mtu 9000")
                .limit(400)
                .ready()
                .guest("ip addr add 10.0.0.2/24 dev eth0 && ip link set eth0 up && /network/bin/iperf3 -s -D");
            for mtu in MTUS {
                script = script.shell(&format!("ip link set tap0 mtu {mtu}")).guest(&set_mtu(mtu)).guest(&whole(mtu));
                for load in Load::all().into_iter().filter(|load| load.mtu == mtu) {
                    script = script.shell(&load.command());
                }
            }
            script.guest_within(&flood("10.0.0.1"), 60).shell(&flood("10.0.0.2")).qmp("query-stats").power_off()
        },
        move |outcome, vmm| {
            check(outcome)?;
            if vmm.has_viona() { Ok(()) } else { no_complaint(outcome) }
        },
    );
    match pairs {
        1 => scenario.only_where(super::Vmm::is_zvmm),
        _ => scenario.only_where(super::Vmm::has_queue_pairs),
    }
}

fn check(outcome: &Outcome) -> anyhow::Result<()> {
    for load in Load::all() {
        let command = load.command();
        load.check(output(outcome, &command)?).with_context(|| command.clone())?;
    }
    for command in MTUS.map(whole).into_iter().chain(["10.0.0.1", "10.0.0.2"].map(flood)) {
        let said = output(outcome, &command)?;
        ensure!(said.contains(" 0% packet loss"), "`{command}` lost something: {said}");
    }
    Ok(())
}

/// Nothing about the queues was wrong in anybody's eyes.
pub(super) fn no_complaint(outcome: &Outcome) -> anyhow::Result<()> {
    let stats = outcome.replies.iter().rfind(|reply| reply["return"]["devices"].is_array());
    let mut devices = stats.context("no statistics")?["return"]["devices"].as_array().context("no devices")?.iter();
    let nic = devices.find(|device| device["id"] == "net0").context("no interface")?;
    for (nth, queue) in nic["queues"].as_array().context("no queues")?.iter().enumerate() {
        for count in ["malformed", "errors"] {
            ensure!(queue[count] == 0, "queue {nth} counts {} {count}", queue[count]);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn said(load: Load) -> Value {
        let seconds = |bytes: u64| json!({"sum": {"seconds": 1.0, "bytes": bytes}});
        let stream = match load.udp {
            true => json!({"udp": {"packets": 100, "lost_packets": 99}}),
            false => json!({"receiver": {"bytes": 1}}),
        };
        let intervals = [seconds(1), seconds(2), seconds(3), json!({"sum": {"seconds": 0.1, "bytes": 0}})];
        json!({"intervals": intervals, "end": {"streams": vec![stream; load.streams]}})
    }

    #[test]
    fn a_run_in_which_something_arrived_each_second_passes_and_nothing_else_does() {
        for load in Load::all() {
            let good = said(load);
            load.check(&good.to_string()).unwrap();
            let changes: [fn(&mut Value); 5] = [
                |said| said["error"] = "refused".into(),
                |said| said["intervals"][1]["sum"]["bytes"] = 0.into(),
                |said| said["intervals"] = json!([]),
                |said| said["end"]["streams"] = json!([{}, {}]),
                |said| {
                    said["end"]["streams"][0] =
                        json!({"udp": {"packets": 9, "lost_packets": 9}, "receiver": {"bytes": 0}})
                },
            ];
            for change in changes {
                let mut worse = good.clone();
                change(&mut worse);
                assert!(load.check(&worse.to_string()).is_err(), "{worse}");
            }
        }
        assert!(Load::all()[0].check("no route").is_err());
    }

    #[test]
    fn every_load_is_run_once_and_pings_may_not_be_lost() {
        let mut outputs: Vec<_> = Load::all().iter().map(|load| (load.command(), said(*load).to_string())).collect();
        let names: std::collections::BTreeSet<_> = outputs.iter().map(|(command, _)| command.clone()).collect();
        assert_eq!(names.len(), 16);
        for command in MTUS.map(whole).into_iter().chain(["10.0.0.1", "10.0.0.2"].map(flood)) {
            outputs.push((command, "3 received, 0% packet loss".to_owned()));
        }
        check(&Outcome { outputs: outputs.clone(), ..Outcome::default() }).unwrap();
        for nth in 0..outputs.len() {
            let mut worse = outputs.clone();
            worse[nth].1 = "2 received, 10% packet loss".to_owned();
            assert!(check(&Outcome { outputs: worse, ..Outcome::default() }).is_err(), "{}", outputs[nth].0);
        }
    }

    #[test]
    fn a_queue_that_something_was_wrong_with_is_seen() {
        let with = |malformed: u64, errors: u64| {
            let queues = json!([{"malformed": 0, "errors": 0}, {"malformed": malformed, "errors": errors}]);
            let reply = json!({"return": {"devices": [{"id": "net0", "queues": queues}]}});
            no_complaint(&Outcome { replies: vec![reply], ..Outcome::default() })
        };
        assert!(with(0, 0).is_ok() && with(1, 0).is_err() && with(0, 1).is_err());
        assert!(no_complaint(&Outcome::default()).is_err());
    }
}
