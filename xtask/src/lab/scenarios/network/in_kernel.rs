//! A guest whose interface's queues are in a kernel: what is the same whichever kernel that is.

use anyhow::{Context as _, bail, ensure};
use serde_json::Value;

use super::super::super::job::Outcome;
use super::super::{output, outputs};
use super::FEATURES;

pub const UP: &str = "ip addr add 10.0.0.2/24 dev eth0 && ip link set eth0 up && ping -c 3 10.0.0.1";
/// Whether each queue has a message of its own.
pub const MESSAGES: &str = "grep -c 'MSI.*virtio.*-[io].*put' /proc/interrupts";
/// Every frame, both ways, was an exit if the kernel saw no doorbell.
const MOST_WRITES: u64 = 100;

/// How often the driver lets the device go.
pub const TIMES: usize = 3;
pub const AGAIN: &str = "ping -c 2 -A 10.0.0.1 | grep -o '[0-9]* packets received'";
pub const CARRIER: &str = "timeout 20 sh -c 'until grep -q 0 /sys/class/net/eth0/carrier; do sleep 0.1; done'; \
    cat /sys/class/net/eth0/carrier";
pub const BACK: &str = "timeout 20 sh -c 'until grep -q up /sys/class/net/eth0/operstate; do sleep 0.1; done'; \
    ping -c 3 -W 5 10.0.0.1 | grep -o '[0-9]* packets received'";

/// So many bytes each way, seen from the guest.
pub fn call(bytes: u64) -> String {
    format!("lab-peer call 10.0.0.1:5001 {bytes}")
}

/// The other side of a call. The one before has gone: else its port is taken.
pub fn serve(bytes: u64) -> String {
    format!(
        "timeout 20 sh -c 'while pidof lab-peer > /dev/null; do sleep 0.1; done'; \
         lab-peer serve 10.0.0.1:5001 {bytes} > /dev/null 2>&1 & \
         timeout 20 sh -c 'until netstat -ltn | grep -q :5001; do sleep 0.05; done'"
    )
}

/// The driver lets the device go under traffic of this command, and takes it again.
pub fn rebind(traffic: &str) -> String {
    format!(
        "({traffic} 10.0.0.1 > /dev/null 2>&1 & echo $! > /tmp/flood); sleep 0.3; \
         d=$(basename $(readlink -f /sys/class/net/eth0/device)); cd /sys/bus/virtio/drivers/virtio_net; \
         echo $d > unbind; sleep 0.1; echo $d > bind; kill $(cat /tmp/flood) 2> /dev/null; cd /; sleep 0.2; \
         ip addr add 10.0.0.2/24 dev eth0; ip link set eth0 up; \
         ping -c 3 -A 10.0.0.1 | grep -o '[0-9]* packets received'"
    )
}

/// The driver has accepted `carried`, and of `ours`, which only queues in the process have, nothing; each queue has its message.
pub fn check_features(outcome: &Outcome, carried: &[usize], ours: &[usize]) -> anyhow::Result<()> {
    let features = output(outcome, FEATURES)?.trim().as_bytes();
    for (bits, wanted) in [(carried, b'1'), (ours, b'0')] {
        for bit in bits {
            ensure!(features.get(*bit) == Some(&wanted), "feature {bit} is not {}", char::from(wanted));
        }
    }
    let messages = output(outcome, MESSAGES)?;
    ensure!(messages.trim() == "2", "not every queue has its message: {messages}");
    Ok(())
}

/// Everything arrived in each of so many calls, after these commands somebody answered as often as they were run, and the
/// carrier went each time that it was taken away.
pub fn check_traffic(
    outcome: &Outcome,
    (bytes, calls): (u64, usize),
    answered: &[(&str, usize)],
    carriers: usize,
) -> anyhow::Result<()> {
    let called = outputs(outcome, &call(bytes));
    let whole = |text: &&str| text.contains(&format!("received {bytes} bytes"));
    ensure!(called.len() == calls && called.iter().all(whole), "not everything arrived: {called:?}");
    for (command, times) in answered {
        let said = outputs(outcome, command);
        let all = said.len() == *times && said.iter().all(|text| text.trim() == "3 packets received");
        ensure!(all, "somebody does not answer any more: {said:?} to `{command}`");
    }
    ensure!(output(outcome, AGAIN)?.trim() == "2 packets received", "after a pause nobody answers");
    let without = outputs(outcome, CARRIER);
    let gone = without.len() == carriers && without.iter().all(|text| text.trim() == "0");
    ensure!(gone, "the guest has a carrier without a cable: {without:?}");
    Ok(())
}

/// Frames of a call of so many bytes each way, with `query-stats` before and after it, were no exits.
pub fn few_exits(outcome: &Outcome, bytes: u64) -> anyhow::Result<()> {
    let writes: Vec<u64> = outcome.replies.iter().filter_map(writes).collect();
    let [before, after] = writes[..] else { bail!("{} answers to query-stats", writes.len()) };
    let writes = after.checked_sub(before).context("exits that were taken back")?;
    ensure!(writes <= MOST_WRITES, "{writes} exits by writes while {bytes} bytes went each way");
    Ok(())
}

/// Exits of all vCPUs by memory-mapped writes, which doorbells are.
fn writes(reply: &Value) -> Option<u64> {
    let vcpus = reply["return"]["vcpus"].as_array()?;
    Some(vcpus.iter().filter_map(|vcpu| vcpu["exits"]["mmio_write"].as_u64()).sum())
}

/// What a run that is as it should be has shown of all this.
#[cfg(test)]
pub fn good(carried: &[usize], (bytes, calls): (u64, usize), answered: &[(&str, usize)], carriers: usize) -> Outcome {
    use serde_json::json;

    let stats = |writes: u64| json!({"return": {"vcpus": [{"exits": {"mmio_write": writes}}]}});
    let bits = (0..64).map(|bit| if carried.contains(&bit) { '1' } else { '0' });
    let mut outcome = Outcome { replies: vec![stats(50), json!({"return": {}}), stats(60)], ..Outcome::default() };
    let mut says = |command: &str, text: &str, times: usize| {
        outcome.outputs.extend((0..times).map(|_| (command.to_owned(), text.to_owned())));
    };
    says(FEATURES, &bits.collect::<String>(), 1);
    says(MESSAGES, "2\n", 1);
    says(&call(bytes), &format!("received {bytes} bytes\n"), calls);
    says(AGAIN, "2 packets received\n", 1);
    says(CARRIER, "0\n", carriers);
    answered.iter().for_each(|(command, times)| says(command, "3 packets received\n", *times));
    outcome
}

/// A run that is as it should be passes; one in which any command has said something else, or that took many exits, does not.
#[cfg(test)]
pub fn judges(check: impl Fn(&Outcome) -> anyhow::Result<()>, good: impl Fn() -> Outcome) {
    use serde_json::json;

    check(&good()).unwrap();
    for nth in 0..good().outputs.len() {
        let mut worse = good();
        "nothing".clone_into(&mut worse.outputs[nth].1);
        assert!(check(&worse).is_err(), "{:?}", worse.outputs[nth]);
    }
    let mut many = good();
    many.replies[2] = json!({"return": {"vcpus": [{"exits": {"mmio_write": 151}}]}});
    assert!(check(&many).is_err());
}
