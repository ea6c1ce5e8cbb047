//! A guest whose interface's queues are in the kernel of the machine that runs it.

use anyhow::{Context as _, ensure};
use serde_json::json;

use super::super::super::job::{Outcome, Step};
use super::super::super::vmm::{Profile, Program};
use super::super::{Scenario, Script, outputs};
use super::FEATURES;
use super::in_kernel::{
    AGAIN, BACK, CARRIER, MESSAGES, TIMES, UP, call, check_features, check_traffic, few_exits, rebind, serve,
};

/// What the kernel carries, what the TAP device does and what takes no queue: CSUM, GUEST_CSUM, MTU, GUEST_TSO4, GUEST_TSO6,
/// HOST_TSO4, MRG_RXBUF, CTRL_VQ, CTRL_RX, INDIRECT_DESC, EVENT_IDX and VERSION_1.
const CARRIED: [usize; 12] = [0, 1, 3, 7, 8, 11, 15, 17, 18, 28, 29, 32];
/// What only queues in the process have: CTRL_GUEST_OFFLOADS, CTRL_VLAN and CTRL_MAC_ADDR.
const OURS: [usize; 3] = [2, 19, 23];
const IS_MODERN: &str = "cut -c33 /sys/class/net/eth0/device/features";

const BYTES: u64 = 10_000_000;
const CALLS: usize = 3;
/// The thread that sees to the rings' life and to the control queue is woken by other things than frames.
const MOST_WAKES: u64 = 20;
/// The ticks that the kernel's threads for this process have had.
const KERNEL: &str =
    "cat /proc/[0-9]*/task/*/stat 2> /dev/null | grep \"(vhost-$VMM)\" | awk '{n += $14 + $15} END {print n + 0}'";
const BEFORE: &str = "before";
const AFTER: &str = "after";

const TRAFFIC: &str = "ping -f";
/// The interface goes down and up under traffic.
const DOWN_AND_UP: &str = "(ping -f 10.0.0.1 > /dev/null 2>&1 & echo $! > /tmp/flood); sleep 0.3; \
    ip link set eth0 down; sleep 0.1; ip link set eth0 up; kill $(cat /tmp/flood) 2> /dev/null; \
    ping -c 3 -A 10.0.0.1 | grep -o '[0-9]* packets received'";
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
                .shell(&serve(BYTES))
                .shell(KERNEL)
                .qmp("query-stats")
                .step(Step::Threads { name: BEFORE.to_owned() })
                .guest_within(&call(BYTES), 90)
                .step(Step::Threads { name: AFTER.to_owned() })
                .qmp("query-stats")
                .shell(KERNEL);
            for _ in 0..TIMES {
                script = script.guest_within(&rebind(TRAFFIC), 40).guest_within(DOWN_AND_UP, 40);
            }
            script = script.qmp("stop").qmp("cont").guest(AGAIN);
            for set in [by_operator, by_interface] {
                script = set(set(script, false).guest(CARRIER), true).guest(BACK);
            }
            script
                .guest(LEGACY)
                .guest(IS_MODERN)
                .guest(UP)
                .shell(&serve(BYTES))
                .guest_within(&call(BYTES), 90)
                .send("reboot -f\n")
                .ready()
                .guest(IS_MODERN)
                .guest(UP)
                .shell(&serve(BYTES))
                .guest_within(&call(BYTES), 90)
                .power_off()
        },
        |outcome, _| check(outcome),
    )
    .only_where(|vmm| vmm.program == Program::Zvmm && vmm.profile != Profile::Micro)
}

fn by_operator(script: Script, up: bool) -> Script {
    script.qmp_with("set_link", json!({"name": "net0", "up": up}))
}

fn by_interface(script: Script, up: bool) -> Script {
    script.shell(if up { "ip link set tap0 up" } else { "ip link set tap0 down" })
}

/// After these commands somebody answered, each so many times.
fn answered() -> [(String, usize); 3] {
    [(rebind(TRAFFIC), TIMES), (DOWN_AND_UP.to_owned(), TIMES), (BACK.to_owned(), 2)]
}

fn check(outcome: &Outcome) -> anyhow::Result<()> {
    check_features(outcome, &CARRIED, &OURS)?;
    let modern: Vec<&str> = outputs(outcome, IS_MODERN).into_iter().map(str::trim).collect();
    ensure!(modern == ["0", "1"], "the drivers' interfaces were {modern:?}");
    let answered = answered();
    check_traffic(outcome, (BYTES, CALLS), &answered.each_ref().map(|(said, times)| (said.as_str(), *times)), 2)?;
    few_exits(outcome, BYTES)?;
    nobody_here(outcome)
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
    use super::super::in_kernel;
    use super::*;

    fn good() -> Outcome {
        let answered = answered();
        let answered = answered.each_ref().map(|(said, times)| (said.as_str(), *times));
        let mut outcome = in_kernel::good(&CARRIED, (BYTES, CALLS), &answered, 2);
        for (command, text) in [(IS_MODERN, "0\n"), (IS_MODERN, "1\n"), (KERNEL, "3\n"), (KERNEL, "90\n")] {
            outcome.outputs.push((command.to_owned(), text.to_owned()));
        }
        let thread = |name: &str, sleeps| Thread { name: name.to_owned(), cpu_ns: 1, sleeps };
        let threads = [(BEFORE, 40), (AFTER, 42)];
        let threads = threads
            .map(|(when, sleeps)| (when.to_owned(), vec![thread("vcpu0", 100 * sleeps), thread("net0-ctl", sleeps)]));
        outcome.threads = threads.into();
        outcome
    }

    #[test]
    fn a_run_that_is_as_it_should_be_passes_and_nothing_else_does() {
        in_kernel::judges(check, good);
        let mut busy = good();
        busy.threads.get_mut(AFTER).unwrap()[1].sleeps = 61;
        assert!(check(&busy).is_err());
        let mut ours = good();
        ours.threads.get_mut(AFTER).unwrap()[1].name = "net0-rx".to_owned();
        assert!(check(&ours).is_err());
        let mut idle = good();
        idle.outputs.iter_mut().filter(|(command, _)| command == KERNEL).for_each(|(_, text)| "3\n".clone_into(text));
        assert!(check(&idle).is_err());
    }
}
