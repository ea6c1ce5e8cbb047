//! A guest whose interface's queues are in the kernel that the double stands in for.

use serde_json::json;

use super::super::super::job::Outcome;
use super::super::{Scenario, Script, Vmm};
use super::FEATURES;
use super::in_kernel::{
    AGAIN, BACK, CARRIER, MESSAGES, TIMES, UP, call, check_features, check_traffic, few_exits, rebind, serve,
};

/// What the kernel carries and what takes no queue: CSUM, GUEST_CSUM, GUEST_TSO4, HOST_TSO4, MRG_RXBUF, CTRL_VQ, CTRL_RX and
/// INDIRECT_DESC.
const CARRIED: [usize; 8] = [0, 1, 7, 11, 15, 17, 18, 28];
/// What only queues in the process have: CTRL_GUEST_OFFLOADS, GUEST_TSO6, CTRL_VLAN, CTRL_MAC_ADDR and EVENT_IDX.
const OURS: [usize; 5] = [2, 8, 19, 23, 29];

const BYTES: u64 = 4_000_000;
const CALLS: usize = 2;
/// The double carries a frame at a time: floods would have it do nothing else.
const TRAFFIC: &str = "ping -A";
const PROMISCUOUS: &str =
    "ip link set eth0 promisc on && ping -c 1 10.0.0.1 > /dev/null && ip link set eth0 promisc off";

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
                .shell(&serve(BYTES))
                .qmp("query-stats")
                .guest_within(&call(BYTES), 60)
                .qmp("query-stats");
            for _ in 0..TIMES {
                script = script.guest_within(&rebind(TRAFFIC), 40);
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
                .shell(&serve(BYTES))
                .guest_within(&call(BYTES), 60)
                .power_off()
        },
        |outcome, _| check(outcome),
    )
    .only_where(Vmm::has_viona)
}

fn check(outcome: &Outcome) -> anyhow::Result<()> {
    check_features(outcome, &CARRIED, &OURS)?;
    check_traffic(outcome, (BYTES, CALLS), &[(&rebind(TRAFFIC), TIMES), (BACK, 1)], 1)?;
    few_exits(outcome, BYTES)
}

#[cfg(test)]
mod tests {
    use super::super::in_kernel;
    use super::*;

    #[test]
    fn a_run_that_is_as_it_should_be_passes_and_nothing_else_does() {
        let good = || in_kernel::good(&CARRIED, (BYTES, CALLS), &[(&rebind(TRAFFIC), TIMES), (BACK, 1)], 1);
        in_kernel::judges(check, good);
    }
}
