//! A guest whose interface's queues are in the kernel that the double stands in for.

use anyhow::{Context as _, ensure};
use serde_json::{Value, json};

use super::super::super::job::Outcome;
use super::super::{Scenario, Script, Vmm, output, outputs};

const FEATURES: &str = "cat /sys/class/net/eth0/device/features";
/// What the kernel carries and what takes no queue: CSUM, GUEST_CSUM, GUEST_TSO4, HOST_TSO4, MRG_RXBUF, CTRL_VQ, CTRL_RX and
/// INDIRECT_DESC.
const CARRIED: [usize; 8] = [0, 1, 7, 11, 15, 17, 18, 28];
/// What only queues in the process have: CTRL_GUEST_OFFLOADS, GUEST_TSO6, CTRL_VLAN, CTRL_MAC_ADDR and EVENT_IDX.
const OURS: [usize; 5] = [2, 8, 19, 23, 29];

const UP: &str = "ip addr add 10.0.0.2/24 dev eth0 && ip link set eth0 up && ping -c 3 10.0.0.1";
/// Whether each queue has a message of its own.
const MESSAGES: &str = "grep -c 'MSI.*virtio.*-[io].*put' /proc/interrupts";
const BYTES: u64 = 4_000_000;
const CALL: &str = "lab-peer call 10.0.0.1:5001 4000000";
const SERVE: &str = "lab-peer serve 10.0.0.1:5001 4000000 > /dev/null 2>&1 & \
    timeout 20 sh -c 'until netstat -ltn | grep -q :5001; do sleep 0.05; done'";
/// Every frame, both ways, was an exit if the kernel saw no doorbell.
const MOST_WRITES: u64 = 100;
/// The driver lets the device go under traffic, and takes it again.
const REBIND: &str = "(ping -A 10.0.0.1 > /dev/null 2>&1 & echo $! > /tmp/flood); sleep 0.3; \
    d=$(basename $(readlink -f /sys/class/net/eth0/device)); cd /sys/bus/virtio/drivers/virtio_net; \
    echo $d > unbind; sleep 0.1; echo $d > bind; kill $(cat /tmp/flood) 2> /dev/null; cd /; sleep 0.2; \
    ip addr add 10.0.0.2/24 dev eth0; ip link set eth0 up; ping -c 3 -A 10.0.0.1 | grep -o '[0-9]* packets received'";
const TIMES: usize = 3;
const PROMISCUOUS: &str =
    "ip link set eth0 promisc on && ping -c 1 10.0.0.1 > /dev/null && ip link set eth0 promisc off";
const AGAIN: &str = "ping -c 2 -A 10.0.0.1 | grep -o '[0-9]* packets received'";
const CARRIER: &str = "timeout 20 sh -c 'until grep -q 0 /sys/class/net/eth0/carrier; do sleep 0.1; done'; \
    cat /sys/class/net/eth0/carrier";
const BACK: &str = "timeout 20 sh -c 'until grep -q up /sys/class/net/eth0/operstate; do sleep 0.1; done'; \
    ping -c 3 -W 5 10.0.0.1 | grep -o '[0-9]* packets received'";

/// The scenario.
pub fn scenario() -> Scenario {
    Scenario::new(
        "net-carried",
        "a guest talks through queues in the kernel, by few exits, while its driver lets go, it stands still, its cable is pulled and it reboots",
        |_| {
            let mut script = Script::new()
                .with(|machine| machine.reset_ends = false)
                .nic()
                .limit(300)
                .ready()
                .guest(FEATURES)
                .guest(UP)
                .guest(MESSAGES)
                .shell(SERVE)
                .qmp("query-stats")
                .guest_within(CALL, 60)
                .qmp("query-stats");
            for _ in 0..TIMES {
                script = script.guest_within(REBIND, 40);
            }
            script
                .guest(PROMISCUOUS)
                .qmp("stop")
                .qmp("cont")
                .guest(AGAIN)
                .qmp_with("set_link", json!({"name": "net0", "up": false}))
                .guest(CARRIER)
                .qmp_with("set_link", json!({"name": "net0", "up": true}))
                .guest(BACK)
                .send("reboot -f\n")
                .ready()
                .guest(UP)
                .shell(SERVE)
                .guest_within(CALL, 60)
                .power_off()
        },
        check,
    )
    .only_where(Vmm::has_viona)
}

fn check(outcome: &Outcome, _: Vmm) -> anyhow::Result<()> {
    let features = output(outcome, FEATURES)?.trim().as_bytes();
    for (bits, wanted) in [(&CARRIED[..], b'1'), (&OURS[..], b'0')] {
        for bit in bits {
            ensure!(features.get(*bit) == Some(&wanted), "feature {bit} is not {}", char::from(wanted));
        }
    }
    ensure!(
        output(outcome, MESSAGES)?.trim() == "2",
        "not every queue has its message: {}",
        output(outcome, MESSAGES)?
    );
    let calls = outputs(outcome, CALL);
    let whole = |text: &&str| text.contains(&format!("received {BYTES} bytes"));
    ensure!(calls.len() == 2 && calls.iter().all(whole), "not everything arrived: {calls:?}");
    let answered: Vec<_> = [outputs(outcome, REBIND), outputs(outcome, BACK)].concat();
    ensure!(
        answered.len() == TIMES + 1 && answered.iter().all(|text| text.trim() == "3 packets received"),
        "somebody does not answer any more: {answered:?}"
    );
    ensure!(output(outcome, AGAIN)?.trim() == "2 packets received", "after a pause nobody answers");
    ensure!(output(outcome, CARRIER)?.trim() == "0", "the guest has a carrier without a cable");
    let writes: Vec<u64> = outcome.replies.iter().filter_map(writes).collect();
    let [before, after] = writes[..] else { anyhow::bail!("{} answers to query-stats", writes.len()) };
    let writes = after.checked_sub(before).context("exits that were taken back")?;
    ensure!(writes <= MOST_WRITES, "{writes} exits by writes while {BYTES} bytes went each way");
    Ok(())
}

/// Exits of all vCPUs by memory-mapped writes, which doorbells are.
fn writes(reply: &Value) -> Option<u64> {
    let vcpus = reply["return"]["vcpus"].as_array()?;
    Some(vcpus.iter().filter_map(|vcpu| vcpu["exits"]["mmio_write"].as_u64()).sum())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn good() -> Outcome {
        let bits = |bit: usize| if CARRIED.contains(&bit) { '1' } else { '0' };
        let said = |command: &str, text: &str| (command.to_owned(), text.to_owned());
        let stats = |writes: u64| json!({"return": {"vcpus": [{"exits": {"mmio_write": writes}}]}});
        let mut outputs = vec![
            said(FEATURES, &(0..64).map(bits).collect::<String>()),
            said(MESSAGES, "2\n"),
            said(AGAIN, "2 packets received\n"),
            said(CARRIER, "0\n"),
            said(BACK, "3 packets received\n"),
        ];
        outputs.extend((0..2).map(|_| said(CALL, "received 4000000 bytes\n")));
        outputs.extend((0..TIMES).map(|_| said(REBIND, "3 packets received\n")));
        Outcome { outputs, replies: vec![stats(50), json!({"return": {}}), stats(60)], ..Outcome::default() }
    }

    #[test]
    fn a_run_that_is_as_it_should_be_passes_and_nothing_else_does() {
        check(&good(), Vmm::ZVMM).unwrap();
        for nth in 0..good().outputs.len() {
            let mut worse = good();
            worse.outputs[nth].1 = "nothing".to_owned();
            assert!(check(&worse, Vmm::ZVMM).is_err(), "{:?}", worse.outputs[nth]);
        }
        let mut many = good();
        many.replies[2] = json!({"return": {"vcpus": [{"exits": {"mmio_write": 151}}]}});
        assert!(check(&many, Vmm::ZVMM).is_err());
    }
}
