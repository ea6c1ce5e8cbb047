//! A guest that looks at frames with tcpdump: at others' only while it is promiscuous.

use anyhow::{Context as _, ensure};

use super::super::super::content::at;
use super::super::super::job::Outcome;
use super::super::{Scenario, Script, Vmm, output, outputs};
use super::{FOREIGN, FRAMES, PROGRAMS};

/// A VLAN that nobody in the guest is in.
const VLAN: u16 = 9;

/// Writes down every frame of the kind that `lab-peer` sends, with or without a tag; `-p` is not promiscuous.
fn watch(promiscuous: bool) -> String {
    let flag = if promiscuous { "" } else { "-p " };
    format!(
        "(/network/bin/tcpdump {flag}-Z root -l -n -e -i eth0 'ether proto 0x88b5 or vlan' > /tmp/seen 2> /tmp/said & \
         echo $! > /tmp/tcpdump); timeout 20 sh -c 'until grep -q listening /tmp/said; do sleep 0.1; done'; cat /tmp/said"
    )
}

/// Frames to somebody else, to somebody else in a VLAN, and to the guest.
fn frames() -> [String; 3] {
    let own = "52:54:00:12:34:56";
    [(FOREIGN, 0), (FOREIGN, VLAN), (own, 0)].map(|(to, vlan)| format!("lab-peer frames tap0 {to} {vlan} {FRAMES}"))
}

/// How many of each were seen, after what came before has been.
fn seen(promiscuous: bool) -> String {
    format!(
        ": promiscuous {promiscuous}; ping -c 1 10.0.0.1 > /dev/null; sleep 0.3; kill $(cat /tmp/tcpdump); \
         timeout 20 sh -c 'while pidof ld.so > /dev/null; do sleep 0.1; done'; \
         echo seen $(grep '> {FOREIGN}' /tmp/seen | grep -vc vlan) $(grep '> {FOREIGN}' /tmp/seen | grep -c 'vlan {VLAN}') \
         $(grep -c '> 52:54:00:12:34:56' /tmp/seen)"
    )
}

/// One look after the other: the last one shows that the interface has gone back.
const LOOKS: [bool; 3] = [false, true, false];

/// The scenario.
pub fn scenario() -> Scenario {
    Scenario::new(
        "net-capture",
        "a guest's tcpdump sees frames to others, tagged ones too, while it is promiscuous, and none without",
        |_| {
            let mut script = Script::new()
                .nic()
                .with(|machine| machine.initrd = at::NETWORK.to_owned())
                .before(PROGRAMS)
                .before("echo 1 > /proc/sys/net/ipv6/conf/tap0/disable_ipv6")
                .limit(200)
                .ready()
                .guest("ip addr add 10.0.0.2/24 dev eth0 && ip link set eth0 up && ping -c 1 10.0.0.1");
            for promiscuous in LOOKS {
                script = script.guest(&watch(promiscuous)).qmp("query-stats");
                for frames in frames() {
                    script = script.shell(&frames);
                }
                script = script.guest(&seen(promiscuous)).qmp("query-stats");
            }
            script.power_off()
        },
        |outcome, vmm| {
            check(outcome)?;
            // What a kernel keeps out that carries the frames is its own to count.
            if vmm.has_viona() { Ok(()) } else { check_filter(outcome) }
        },
    )
    .only_where(Vmm::is_zvmm)
}

fn check(outcome: &Outcome) -> anyhow::Result<()> {
    for promiscuous in [false, true] {
        ensure!(output(outcome, &watch(promiscuous))?.contains("listening on eth0"), "tcpdump does not look");
    }
    let mut of = [outputs(outcome, &seen(false)).into_iter(), outputs(outcome, &seen(true)).into_iter()];
    for promiscuous in LOOKS {
        let said = of[usize::from(promiscuous)].next().context("a look is missing")?;
        let others = if promiscuous { FRAMES } else { 0 };
        let wanted = format!("seen {others} {others} {FRAMES}");
        ensure!(said.trim() == wanted, "promiscuous: {promiscuous}, tcpdump has {said:?}, not {wanted:?}");
    }
    Ok(())
}

fn check_filter(outcome: &Outcome) -> anyhow::Result<()> {
    let filtered: Vec<u64> = outcome.replies.iter().map(super::filtered).collect::<anyhow::Result<_>>()?;
    ensure!(filtered.len() == 2 * LOOKS.len(), "{} answers to query-stats, not two a look", filtered.len());
    for (promiscuous, filtered) in LOOKS.into_iter().zip(filtered.chunks(2)) {
        let kept_out = filtered[1] - filtered[0];
        let right = if promiscuous { 0 } else { 2 * FRAMES };
        ensure!(kept_out == right, "promiscuous: {promiscuous}, {kept_out} frames were filtered, not {right}");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn good() -> Outcome {
        let said = |command: String, text: &str| (command, text.to_owned());
        let mut outputs = Vec::new();
        for promiscuous in LOOKS {
            outputs.push(said(watch(promiscuous), "listening on eth0, link-type EN10MB\n"));
            outputs.push(said(seen(promiscuous), if promiscuous { "seen 40 40 40\n" } else { "seen 0 0 40\n" }));
        }
        let stats =
            |filtered: u64| json!({"return": {"devices": [{"id": "net0", "queues": [{"filtered": filtered}]}]}});
        Outcome { outputs, replies: [0, 80, 80, 80, 80, 160].map(stats).into(), ..Outcome::default() }
    }

    #[test]
    fn frames_to_others_are_seen_with_promiscuity_and_kept_out_without_and_nothing_else_passes() {
        check(&good()).unwrap();
        check_filter(&good()).unwrap();
        for nth in [1, 3, 5] {
            let mut worse = good();
            worse.outputs[nth].1 = "seen 40 0 40\n".to_owned();
            assert!(check(&worse).is_err(), "{nth}");
        }
        for nth in 0..6 {
            let mut worse = good();
            worse.replies[nth]["return"]["devices"][0]["queues"][0]["filtered"] =
                if nth % 2 == 0 { 0 } else { 999 }.into();
            assert!(nth == 0 || check_filter(&worse).is_err(), "{nth}");
        }
        let mut blind = good();
        blind.outputs[0].1 = "no suitable device found\n".to_owned();
        assert!(check(&blind).is_err());
    }
}
