//! Offloads that are switched off and on at both ends of the cable, while streams over IPv4 and IPv6 run both ways.

use anyhow::ensure;

use super::super::super::content::at;
use super::super::super::job::Outcome;
use super::super::{Scenario, Script, Vmm, output, outputs};
use super::iperf::no_complaint;
use super::stream::Stream;
use super::{ADDRESSES, PROGRAMS, TAP_ADDRESSES};

const STREAMS: [Stream; 2] = [Stream("10.0.0.1", 5010), Stream("[fd00::1]", 5011)];
const ROUNDS: usize = 3;
/// Of the guest's card, in ethtool's words. What one needs, it is switched off with.
const GUESTS: [&str; 7] = ["tx", "sg", "tso", "tx-tcp6-segmentation", "gso", "gro", "rx-gro-hw"];
/// Of the host's end, which takes what the guest sends and cuts it up for the stack, or not.
const HOSTS: [&str; 5] = ["tx", "sg", "tso", "gso", "gro"];
/// Of one that carries plain frames: its stack does all of it, and the kernel refuses to switch what the device was not given.
const PLAIN_HOSTS: [&str; 3] = ["sg", "gso", "gro"];
/// Nothing may come for so long, milliseconds: a frame that is lost with a change is sent again after 200.
const MOST_PAUSE_MS: u64 = 5000;

fn switch(interface: &str, names: &[&str]) -> String {
    let switches = names.iter().map(|name| format!("'{name} off' '{name} on'")).collect::<Vec<_>>().join(" ");
    format!(
        "(for k in {switches}; do /network/bin/ethtool -K {interface} $k > /dev/null || exit 1; sleep 0.1; done) && echo switched"
    )
}

/// All offloads are on again, those that the kernel fixes left out.
const LEFT_ON: &str = "/network/bin/ethtool -k eth0 | \
    grep -E '^(tx-checksumming|tcp-segmentation-offload|generic-receive-offload|rx-gro-hw): o'";

/// The scenario.
pub fn scenario() -> Scenario {
    Scenario::new(
        "net-offloads",
        "offloads are switched off and on at both ends, with streams both ways meanwhile, every byte of which is checked",
        |vmm| {
            let mut script = Script::new()
                .nic()
                .with(|machine| {
                    machine.initrd = at::NETWORK.to_owned();
                    machine.memory_mib = 512;
                })
                .before(PROGRAMS)
                .before(TAP_ADDRESSES)
                .limit(300)
                .ready()
                .guest(ADDRESSES);
            for stream in STREAMS {
                script = stream.begin(script);
            }
            for _ in 0..ROUNDS {
                script = script.guest_within(&switch("eth0", guests(vmm)), 60).shell(&switch("tap0", hosts(vmm)));
            }
            for stream in STREAMS {
                script = stream.end(script);
            }
            script.guest(LEFT_ON).qmp("query-stats").power_off()
        },
        |outcome, vmm| {
            check(outcome, vmm)?;
            if vmm.has_viona() { Ok(()) } else { no_complaint(outcome) }
        },
    )
    .only_where(Vmm::is_zvmm)
}

/// What the host can switch.
fn hosts(vmm: Vmm) -> &'static [&'static str] {
    if vmm.has_offloads() { &HOSTS } else { &PLAIN_HOSTS }
}

/// What a guest can switch: without offloads of its card little of it.
fn guests(vmm: Vmm) -> &'static [&'static str] {
    if !vmm.has_offloads() {
        return &["gro"];
    }
    // Those of received frames are switched by a command that viona has none of, and it has no segments of IPv6.
    if vmm.has_viona() { &["tx", "sg", "tso", "gso", "gro"] } else { &GUESTS }
}

fn check(outcome: &Outcome, vmm: Vmm) -> anyhow::Result<()> {
    for stream in STREAMS {
        let pause_ms = stream.check(outcome)?.longest_pause_ms;
        ensure!(pause_ms <= MOST_PAUSE_MS, "nothing came to the guest for {pause_ms} ms");
    }
    for command in [switch("eth0", guests(vmm)), switch("tap0", hosts(vmm))] {
        let done = outputs(outcome, &command).iter().filter(|said| said.contains("switched")).count();
        ensure!(done == ROUNDS, "{done} of {ROUNDS} rounds of `{command}`");
    }
    let off = output(outcome, LEFT_ON)?.lines().any(|line| line.contains(": off") && !line.contains("fixed"));
    ensure!(!off || !vmm.has_offloads(), "something was not switched on again: {}", output(outcome, LEFT_ON)?);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::super::super::job::Step;
    use super::super::super::super::vmm::Program;
    use super::super::stream::tests::good as exchanged;
    use super::*;

    fn good(vmm: Vmm) -> Vec<(String, String)> {
        let mut outputs: Vec<_> = STREAMS.into_iter().flat_map(exchanged).collect();
        for _ in 0..ROUNDS {
            outputs.push((switch("eth0", guests(vmm)), "switched\n".to_owned()));
            outputs.push((switch("tap0", hosts(vmm)), "switched\n".to_owned()));
        }
        outputs.push((LEFT_ON.to_owned(), "rx-gro-hw: on\ntx-checksumming: on\n".to_owned()));
        outputs
    }

    #[test]
    fn streams_without_a_wrong_byte_and_a_long_pause_pass_and_nothing_else_does() {
        let with = |outputs| check(&Outcome { outputs, ..Outcome::default() }, Vmm::ZVMM);
        let good = || good(Vmm::ZVMM);
        with(good()).unwrap();
        for nth in 0..good().len() {
            let mut worse = good();
            worse[nth].1 = "rx-gro-hw: off\n".to_owned();
            assert!(with(worse).is_err(), "{}", good()[nth].0);
        }
        let mut slow = good();
        slow[0].1 = "exchanged 65536 bytes for 131072, longest pause 5001 ms\n".to_owned();
        assert!(with(slow).unwrap_err().to_string().contains("5001 ms"));
    }

    /// The kernel refuses `ethtool -K tap0 tx on` where who opened the device takes no checksum for done.
    #[test]
    fn ends_of_a_cable_for_plain_frames_switch_what_their_own_stacks_do_and_no_more() {
        let plain = Vmm { program: Program::ZvmmDoubleIllumosKvm, ..Vmm::ZVMM };
        let with = |vmm, outputs| check(&Outcome { outputs, ..Outcome::default() }, vmm);
        with(plain, good(plain)).unwrap();
        assert!(with(plain, good(Vmm::ZVMM)).is_err() && with(Vmm::ZVMM, good(plain)).is_err());
        let run = scenario().run(plain);
        let commands: Vec<&str> = run.steps.iter().filter_map(command).collect();
        assert!(!commands.iter().any(|said| said.contains("tso") || said.contains("'tx ")), "{commands:?}");
        assert_eq!(commands.iter().filter(|said| **said == switch("tap0", &PLAIN_HOSTS)).count(), ROUNDS);
    }

    fn command(step: &Step) -> Option<&str> {
        match step {
            Step::Guest { command, .. } | Step::Shell { command } => Some(command),
            _ => None,
        }
    }
}
