//! Two queue pairs in the kernel of the machine that runs the guest, of which its driver uses one and both, with streams both
//! ways meanwhile.

use anyhow::{Context as _, ensure};
use serde_json::{Value, json};

use super::super::super::content::at;
use super::super::super::job::Outcome;
use super::super::super::vmm::{Profile, Program};
use super::super::{Scenario, Script, Vmm, output, outputs};
use super::FEATURES;
use super::queues::{ANSWERS, BYTES, CALL, CALM, FLOOD, MQ, PAIRS, REBIND, SERVE, STREAMS, busy, set};

/// Interrupts of the second pair for received frames, on both CPUs.
const SECOND: &str = "awk '/-input.1$/ {print $2 + $3}' /proc/interrupts";

/// The scenario.
pub fn scenario() -> Scenario {
    Scenario::new(
        "net-vhost-2",
        "a guest's driver uses one and two queue pairs in the host's kernel, and is taken away and given back, with streams both ways meanwhile",
        |_| {
            let mut script = Script::new()
                .with(|machine| {
                    machine.initrd = at::NETWORK.to_owned();
                    machine.cpus = 2;
                })
                .nic_of_pairs(2)
                .with(|machine| machine.nic_keys.push_str(",vhost=on"))
                .limit(400)
                .before("rm -f /tmp/served /tmp/calm")
                .ready()
                .guest(FEATURES)
                .guest("ip addr add 10.0.0.2/24 dev eth0 && ip link set eth0 up && ping -c 1 10.0.0.1");
            for pairs in PAIRS {
                script = script.guest(&set(pairs)).qmp("query-stats").guest(SECOND);
                script = script.shell(SERVE).guest_within(CALL, 60).guest(SECOND);
            }
            script = script.shell(SERVE).guest_within(&busy(""), 90);
            script = script.shell(FLOOD).guest_within(REBIND, 90).shell(CALM).guest(ANSWERS);
            script = script.qmp("query-stats").guest(SECOND).shell(SERVE).guest_within(CALL, 60).guest(SECOND);
            script.power_off()
        },
        check,
    )
    .only_where(|vmm| vmm.program == Program::Zvmm && vmm.profile != Profile::Micro)
}

fn check(outcome: &Outcome, _: Vmm) -> anyhow::Result<()> {
    let features = output(outcome, FEATURES)?.trim().as_bytes();
    ensure!(features.get(MQ) == Some(&b'1'), "the driver has not accepted MQ");
    for pairs in [1, 2] {
        for shown in outputs(outcome, &set(pairs)) {
            ensure!(shown.trim().ends_with(&format!("2 {pairs}")), "ethtool shows {shown:?}, not {pairs} of 2 pairs");
        }
    }
    let calls = outputs(outcome, CALL);
    let wanted = PAIRS.len() + 1;
    ensure!(calls.len() == wanted, "{} calls, not {wanted}", calls.len());
    for text in calls.into_iter().chain([output(outcome, &busy(""))?]) {
        let whole = text.matches(&format!("received {BYTES} bytes")).count() as u64;
        ensure!(whole == STREAMS, "not everything arrived: {text}");
    }
    ensure!(output(outcome, REBIND)?.contains("bound"), "the driver does not come back");
    let answers = output(outcome, ANSWERS)?;
    ensure!(answers.trim() == "3 packets received", "after the driver came back: {answers}");

    let stats: Vec<&Value> = outcome.replies.iter().filter(|reply| reply["return"]["devices"].is_array()).collect();
    let second: Vec<u64> =
        outputs(outcome, SECOND).into_iter().map(|text| text.trim().parse()).collect::<Result<_, _>>()?;
    ensure!(stats.len() == wanted && second.len() == 2 * wanted, "{} and {} readings", stats.len(), second.len());
    for ((stats, second), in_use) in stats.into_iter().zip(second.chunks(2)).zip(PAIRS.into_iter().chain([2])) {
        let (wanted, shown) = (json!({"offered": 2, "in_use": in_use}), pairs(stats)?);
        ensure!(*shown == wanted, "query-stats shows the pairs as {shown}, not {wanted}");
        let came = second[1].checked_sub(second[0]).context("interrupts that were taken back")?;
        ensure!((came > 0) == (in_use == 2), "with {in_use} pairs in use the second one had {came} interrupts");
    }
    Ok(())
}

fn pairs(stats: &Value) -> anyhow::Result<&Value> {
    let mut devices = stats["return"]["devices"].as_array().context("no devices")?.iter();
    Ok(&devices.find(|device| device["id"] == "net0").context("no interface")?["pairs"])
}

#[cfg(test)]
mod tests {
    use super::*;

    type Change = fn(&mut Outcome);

    fn outcome(change: impl FnOnce(&mut Outcome)) -> Outcome {
        let mut outcome = Outcome::default();
        let mut says = |command: &str, text: &str| outcome.outputs.push((command.to_owned(), text.to_owned()));
        says(FEATURES, &format!("{}1", "0".repeat(MQ)));
        let mut interrupts = 10;
        for pairs in PAIRS.into_iter().chain([2]) {
            says(&set(pairs), &format!("2 {pairs} "));
            says(CALL, &"received 400000 bytes\n".repeat(4));
            says(SECOND, &format!("{interrupts}\n"));
            interrupts += if pairs == 2 { 5 } else { 0 };
            says(SECOND, &format!("{interrupts}\n"));
        }
        says(&busy(""), &"received 400000 bytes\n".repeat(4));
        says(REBIND, "bound\n");
        says(ANSWERS, "3 packets received\n");
        for in_use in PAIRS.into_iter().chain([2]) {
            let net = json!({"id": "net0", "pairs": {"offered": 2, "in_use": in_use}});
            outcome.replies.push(json!({"return": {"devices": [net]}}));
        }
        change(&mut outcome);
        outcome
    }

    #[test]
    fn a_run_that_is_as_it_should_be_passes_and_nothing_else_does() {
        check(&outcome(|_| ()), Vmm::ZVMM).unwrap();
        let wrong: [Change; 5] = [
            |outcome| outcome.outputs[0].1 = "0".repeat(64),
            |outcome| outcome.outputs.retain(|(command, _)| command != REBIND),
            |outcome| {
                outcome.outputs.iter_mut().filter(|(command, _)| command == CALL).for_each(|(_, text)| text.clear())
            },
            |outcome| {
                outcome
                    .outputs
                    .iter_mut()
                    .filter(|(command, _)| command == SECOND)
                    .for_each(|(_, text)| *text = "7".to_owned())
            },
            |outcome| outcome.replies[1]["return"]["devices"][0]["pairs"]["in_use"] = json!(2),
        ];
        for (nth, change) in wrong.into_iter().enumerate() {
            assert!(check(&outcome(change), Vmm::ZVMM).is_err(), "{nth}");
        }
    }
}
