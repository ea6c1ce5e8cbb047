//! A guest whose interface's queues are in the kernel of the machine that runs it.

use anyhow::{Context as _, ensure};
use serde_json::{Value, json};

use super::super::super::job::{Outcome, Step};
use super::super::super::vmm::{Profile, Program};
use super::super::{Scenario, Script, Vmm, output, outputs};

const FEATURES: &str = "cat /sys/class/net/eth0/device/features";
/// What the kernel carries, what the TAP device does and what takes no queue: CSUM, GUEST_CSUM, MTU, GUEST_TSO4, GUEST_TSO6,
/// HOST_TSO4, MRG_RXBUF, CTRL_VQ, CTRL_RX, INDIRECT_DESC, EVENT_IDX and VERSION_1.
const CARRIED: [usize; 12] = [0, 1, 3, 7, 8, 11, 15, 17, 18, 28, 29, 32];
/// What only queues in the process have: CTRL_GUEST_OFFLOADS, CTRL_VLAN and CTRL_MAC_ADDR.
const OURS: [usize; 3] = [2, 19, 23];
const IS_MODERN: &str = "cut -c33 /sys/class/net/eth0/device/features";

const UP: &str = "ip addr add 10.0.0.2/24 dev eth0 && ip link set eth0 up && ping -c 3 10.0.0.1";
/// Whether each queue has a message of its own.
const MESSAGES: &str = "grep -c 'MSI.*virtio.*-[io].*put' /proc/interrupts";
const BYTES: u64 = 10_000_000;
const CALL: &str = "lab-peer call 10.0.0.1:5001 10000000";
/// The one before has gone: else its port is taken.
const SERVE: &str = "timeout 20 sh -c 'while pidof lab-peer > /dev/null; do sleep 0.1; done'; \
    lab-peer serve 10.0.0.1:5001 10000000 > /dev/null 2>&1 & \
    timeout 20 sh -c 'until netstat -ltn | grep -q :5001; do sleep 0.05; done'";
/// Every frame, both ways, was an exit if the kernel saw no doorbell.
const MOST_WRITES: u64 = 100;
/// The thread that sees to the rings' life and to the control queue is woken by other things than frames.
const MOST_WAKES: u64 = 20;
/// The ticks that the kernel's threads for this process have had.
const KERNEL: &str =
    "cat /proc/[0-9]*/task/*/stat 2> /dev/null | grep \"(vhost-$VMM)\" | awk '{n += $14 + $15} END {print n + 0}'";
const BEFORE: &str = "before";
const AFTER: &str = "after";

/// The driver lets the device go under traffic, and takes it again.
const REBIND: &str = "(ping -f 10.0.0.1 > /dev/null 2>&1 & echo $! > /tmp/flood); sleep 0.3; \
    d=$(basename $(readlink -f /sys/class/net/eth0/device)); cd /sys/bus/virtio/drivers/virtio_net; \
    echo $d > unbind; sleep 0.1; echo $d > bind; kill $(cat /tmp/flood) 2> /dev/null; cd /; sleep 0.2; \
    ip addr add 10.0.0.2/24 dev eth0; ip link set eth0 up; ping -c 3 -A 10.0.0.1 | grep -o '[0-9]* packets received'";
/// The interface goes down and up under traffic.
const DOWN_AND_UP: &str = "(ping -f 10.0.0.1 > /dev/null 2>&1 & echo $! > /tmp/flood); sleep 0.3; \
    ip link set eth0 down; sleep 0.1; ip link set eth0 up; kill $(cat /tmp/flood) 2> /dev/null; \
    ping -c 3 -A 10.0.0.1 | grep -o '[0-9]* packets received'";
const TIMES: usize = 3;
const AGAIN: &str = "ping -c 2 -A 10.0.0.1 | grep -o '[0-9]* packets received'";
const CARRIER: &str = "timeout 20 sh -c 'until grep -q 0 /sys/class/net/eth0/carrier; do sleep 0.1; done'; \
    cat /sys/class/net/eth0/carrier";
const BACK: &str = "timeout 20 sh -c 'until grep -q up /sys/class/net/eth0/operstate; do sleep 0.1; done'; \
    ping -c 3 -W 5 10.0.0.1 | grep -o '[0-9]* packets received'";
/// Doorbells are a port then, and headers may be shorter.
const LEGACY: &str = "rmmod virtio_net virtio_pci && insmod /modules/virtio_pci.ko force_legacy=1 && \
    insmod /modules/virtio_net.ko && sleep 0.2";

/// The scenario.
pub fn scenario() -> Scenario {
    Scenario::new(
        "net-vhost",
        "a guest talks through queues in the host's kernel, by few exits and no thread of the VMM, while its driver lets go, it stands still, its cable is pulled and it reboots",
        |_| {
            let mut script = Script::new()
                .with(|machine| {
                    machine.reset_ends = false;
                    machine.nic_keys = ",vhost=on".to_owned();
                })
                .nic()
                .limit(400)
                .ready()
                .guest(FEATURES)
                .guest(UP)
                .guest(MESSAGES)
                .shell(SERVE)
                .shell(KERNEL)
                .qmp("query-stats")
                .step(Step::Threads { name: BEFORE.to_owned() })
                .guest_within(CALL, 90)
                .step(Step::Threads { name: AFTER.to_owned() })
                .qmp("query-stats")
                .shell(KERNEL);
            for _ in 0..TIMES {
                script = script.guest_within(REBIND, 40).guest_within(DOWN_AND_UP, 40);
            }
            script = script.qmp("stop").qmp("cont").guest(AGAIN);
            for set in [by_operator, by_interface] {
                script = set(set(script, false).guest(CARRIER), true).guest(BACK);
            }
            script
                .guest(LEGACY)
                .guest(IS_MODERN)
                .guest(UP)
                .shell(SERVE)
                .guest_within(CALL, 90)
                .send("reboot -f\n")
                .ready()
                .guest(IS_MODERN)
                .guest(UP)
                .shell(SERVE)
                .guest_within(CALL, 90)
                .power_off()
        },
        check,
    )
    .only_where(|vmm| vmm.program == Program::Zvmm && vmm.profile != Profile::Micro)
}

fn by_operator(script: Script, up: bool) -> Script {
    script.qmp_with("set_link", json!({"name": "net0", "up": up}))
}

fn by_interface(script: Script, up: bool) -> Script {
    script.shell(if up { "ip link set tap0 up" } else { "ip link set tap0 down" })
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
    let modern: Vec<&str> = outputs(outcome, IS_MODERN).into_iter().map(str::trim).collect();
    ensure!(modern == ["0", "1"], "the drivers' interfaces were {modern:?}");
    let calls = outputs(outcome, CALL);
    let whole = |text: &&str| text.contains(&format!("received {BYTES} bytes"));
    ensure!(calls.len() == 3 && calls.iter().all(whole), "not everything arrived: {calls:?}");
    let answered: Vec<_> = [REBIND, DOWN_AND_UP, BACK].iter().flat_map(|command| outputs(outcome, command)).collect();
    ensure!(
        answered.len() == 2 * TIMES + 2 && answered.iter().all(|text| text.trim() == "3 packets received"),
        "somebody does not answer any more: {answered:?}"
    );
    ensure!(output(outcome, AGAIN)?.trim() == "2 packets received", "after a pause nobody answers");
    let carriers = outputs(outcome, CARRIER);
    ensure!(
        carriers.len() == 2 && carriers.iter().all(|text| text.trim() == "0"),
        "the guest has a carrier without a cable: {carriers:?}"
    );
    few_exits(outcome)?;
    nobody_here(outcome)
}

fn few_exits(outcome: &Outcome) -> anyhow::Result<()> {
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

/// The frames were moved by the kernel's thread, and the interface has one thread here that slept meanwhile.
fn nobody_here(outcome: &Outcome) -> anyhow::Result<()> {
    let of = |when: &str| -> anyhow::Result<Vec<(String, u64)>> {
        let threads = outcome.threads.get(when).with_context(|| format!("no threads {when} the call"))?;
        let own = threads.iter().filter(|thread| thread.name.starts_with("net0"));
        Ok(own.map(|thread| (thread.name.clone(), thread.sleeps)).collect())
    };
    let (before, after) = (of(BEFORE)?, of(AFTER)?);
    let ([(name, slept)], [(same, sleeps)]) = (&before[..], &after[..]) else {
        anyhow::bail!("the interface's threads are {after:?}")
    };
    ensure!(name == "net0-ctl" && same == name, "the interface's threads are {after:?}");
    let woken = sleeps.checked_sub(*slept).context("sleeps that were taken back")?;
    ensure!(woken <= MOST_WAKES, "{name} was woken {woken} times while {BYTES} bytes went each way");
    let ticks: Vec<u64> =
        outputs(outcome, KERNEL).into_iter().map(|text| text.trim().parse()).collect::<Result<_, _>>()?;
    let [before, after] = ticks[..] else { anyhow::bail!("{} readings of the kernel's threads", ticks.len()) };
    ensure!(after > before, "the kernel's threads have had {before} ticks before the call and {after} after it");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::super::super::job::Thread;
    use super::*;

    fn good() -> Outcome {
        let bits = |bit: usize| if CARRIED.contains(&bit) { '1' } else { '0' };
        let said = |command: &str, text: &str| (command.to_owned(), text.to_owned());
        let stats = |writes: u64| json!({"return": {"vcpus": [{"exits": {"mmio_write": writes}}]}});
        let mut outputs = vec![
            said(FEATURES, &(0..64).map(bits).collect::<String>()),
            said(MESSAGES, "2\n"),
            said(AGAIN, "2 packets received\n"),
            said(IS_MODERN, "0\n"),
            said(IS_MODERN, "1\n"),
            said(KERNEL, "3\n"),
            said(KERNEL, "90\n"),
        ];
        outputs.extend((0..2).map(|_| said(CARRIER, "0\n")));
        outputs.extend((0..3).map(|_| said(CALL, "received 10000000 bytes\n")));
        for command in [REBIND, DOWN_AND_UP] {
            outputs.extend((0..TIMES).map(|_| said(command, "3 packets received\n")));
        }
        outputs.extend((0..2).map(|_| said(BACK, "3 packets received\n")));
        let thread = |name: &str, sleeps| Thread { name: name.to_owned(), cpu_ns: 1, sleeps };
        let threads = [(BEFORE, 40), (AFTER, 42)];
        let threads = threads
            .map(|(when, sleeps)| (when.to_owned(), vec![thread("vcpu0", 100 * sleeps), thread("net0-ctl", sleeps)]));
        let replies = vec![stats(50), json!({"return": {}}), stats(60)];
        Outcome { outputs, replies, threads: threads.into(), ..Outcome::default() }
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
        let mut busy = good();
        busy.threads.get_mut(AFTER).unwrap()[1].sleeps = 61;
        assert!(check(&busy, Vmm::ZVMM).is_err());
        let mut ours = good();
        ours.threads.get_mut(AFTER).unwrap()[1].name = "net0-rx".to_owned();
        assert!(check(&ours, Vmm::ZVMM).is_err());
        let mut idle = good();
        idle.outputs.iter_mut().filter(|(command, _)| command == KERNEL).for_each(|(_, text)| "3\n".clone_into(text));
        assert!(check(&idle, Vmm::ZVMM).is_err());
    }
}
