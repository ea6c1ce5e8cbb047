//! The guest-side attacker: every device is attacked from inside a guest, and none may react wrongly or stay dead.

use anyhow::{Context as _, ensure};

use super::super::attacks::{Attack, ERROR, Kind, MachineAttack, OVER, VERDICT, WAYS, Way};
use super::super::content::at;
use super::super::job::Outcome;
use super::super::vmm::{Profile, Vmm};
use super::script::BOOT_S;
use super::{Scenario, Script};

/// The scenario's name.
pub const NAME: &str = "attacker";

/// Seconds all attacks may take, with boots that are as slow as [`BOOT_S`] allows.
const ATTACKS_S: u64 = 900;

/// How often the guest is paused and resumed in between, and after how many verdicts each time.
const PAUSES: usize = 40;
const VERDICTS_A_PAUSE: usize = 6;

/// The scenarios of this file.
pub fn all() -> Vec<Scenario> {
    vec![attacker()]
}

fn attacker() -> Scenario {
    Scenario::new(
        NAME,
        "an init of our own attacks every device from inside the guest, with pauses: no FAIL, no WEDGED, then power-off",
        |_| {
            let mut script = Script::new()
                .nic()
                .disk(8)
                .with(|machine| {
                    machine.initrd = at::ATTACKER.to_owned();
                    // One that works and one that is in its way.
                    machine.cpus = 2;
                    machine.console = true;
                    machine.rng = true;
                    machine.packed = true;
                })
                .limit(BOOT_S + ATTACKS_S + 60);
            for _ in 0..PAUSES {
                for _ in 0..VERDICTS_A_PAUSE {
                    script = script.expect(VERDICT, BOOT_S);
                }
                // In the middle of the next attack.
                script = script.qmp("stop").qmp("cont");
            }
            script.expect(OVER, ATTACKS_S).exit(60, Some(0))
        },
        check,
    )
}

/// Every attack has its verdict, and it is PASS; the VMM has neither panicked nor reported an error.
fn check(outcome: &Outcome, vmm: Vmm) -> anyhow::Result<()> {
    let lines: Vec<&str> = outcome.lines.iter().map(|(_, line)| line.as_str()).collect();
    let wrong: Vec<&str> = lines
        .iter()
        .copied()
        .filter(|line| line.starts_with(ERROR) || line.starts_with(&format!("{VERDICT} ")) && !line.ends_with(" PASS"))
        .collect();
    ensure!(wrong.is_empty(), "{}", wrong.join("; "));
    let mut expected: Vec<String> =
        MachineAttack::ALL.iter().map(|attack| format!("{VERDICT} machine {} PASS", attack.name())).collect();
    for kind in Kind::ALL {
        let ways = ways(&lines, kind)?;
        for must in must_have(kind, vmm) {
            ensure!(ways.contains(&must), "{kind} could not be attacked over {must}");
        }
        for way in ways {
            let attacks = Attack::ALL.iter().filter(|attack| attack.applies(kind, way));
            expected.extend(attacks.map(|attack| format!("{VERDICT} {kind}/{way} {} PASS", attack.name())));
        }
    }
    let missing: Vec<&String> = expected.iter().filter(|line| !lines.contains(&line.as_str())).collect();
    ensure!(missing.is_empty(), "{} verdicts are missing: {missing:?}", missing.len());
    let panicked = outcome.stderr.lines().find(|line| line.contains("panicked") || line.contains("ERROR"));
    ensure!(panicked.is_none(), "the VMM said: {}", panicked.unwrap_or_default());
    Ok(())
}

/// The ways over which a device was attacked, as the attacker says.
fn ways(lines: &[&str], kind: Kind) -> anyhow::Result<Vec<Way>> {
    let start = format!("{WAYS} {kind} ");
    let said =
        lines.iter().find_map(|line| line.strip_prefix(&start)).with_context(|| format!("no {kind} was found"))?;
    let way = |word: &str| Way::ALL.into_iter().find(|way| way.to_string() == word);
    said.split_whitespace().map(|word| way(word).with_context(|| format!("no way is called {word}"))).collect()
}

/// The ways that must be there: disks and interfaces were configured with packed rings, and `micro` has no legacy interface.
fn must_have(kind: Kind, vmm: Vmm) -> Vec<Way> {
    let mut ways = vec![Way::Split];
    if matches!(kind, Kind::Blk | Kind::Net) {
        ways.push(Way::Packed);
    }
    if vmm.profile != Profile::Micro {
        ways.push(Way::Legacy);
    }
    ways
}

#[cfg(test)]
mod tests {
    use super::*;

    fn passed() -> Outcome {
        let mut lines: Vec<String> =
            MachineAttack::ALL.iter().map(|attack| format!("{VERDICT} machine {} PASS", attack.name())).collect();
        for kind in Kind::ALL {
            lines.push(format!("{WAYS} {kind} split packed legacy"));
            for way in Way::ALL {
                let attacks = Attack::ALL.iter().filter(|attack| attack.applies(kind, way));
                lines.extend(attacks.map(|attack| format!("{VERDICT} {kind}/{way} {} PASS", attack.name())));
            }
        }
        Outcome { lines: lines.into_iter().map(|line| (0, line)).collect(), ..Outcome::default() }
    }

    #[test]
    fn only_a_pass_of_every_attack_passes() {
        assert!(check(&passed(), Vmm::ZVMM).is_ok());
        for missing in 0..passed().lines.len() {
            let mut outcome = passed();
            let (_, line) = outcome.lines.remove(missing);
            assert!(check(&outcome, Vmm::ZVMM).is_err(), "{line}");
        }
        for verdict in ["FAIL memory changed", "WEDGED no answer"] {
            let mut outcome = passed();
            outcome.lines[3].1 = outcome.lines[3].1.replace("PASS", verdict);
            assert!(check(&outcome, Vmm::ZVMM).is_err());
            outcome = passed();
            outcome.lines.push((0, format!("{VERDICT} rng/split rng-huge-buffer {verdict}")));
            assert!(check(&outcome, Vmm::ZVMM).is_err(), "beside a pass");
        }
    }

    #[test]
    fn a_panic_of_the_vmm_and_an_error_of_the_attacker_fail() {
        let mut outcome = passed();
        outcome.stderr = "thread 'net0-rx' panicked at".to_owned();
        assert!(check(&outcome, Vmm::ZVMM).is_err());
        outcome = passed();
        outcome.lines.push((0, format!("{ERROR} no huge page")));
        assert!(check(&outcome, Vmm::ZVMM).is_err());
    }

    #[test]
    fn a_device_without_a_way_that_it_must_have_fails() {
        let without = |way: &str| {
            let mut outcome = passed();
            for (_, line) in outcome.lines.iter_mut().filter(|(_, line)| line.starts_with(WAYS)) {
                *line = line.replace(&format!(" {way}"), "");
            }
            outcome
        };
        assert!(check(&without("legacy"), Vmm::ZVMM).is_err());
        assert!(check(&without("legacy"), Vmm::MICRO).is_ok(), "the smallest machine has no legacy interface");
        for way in ["split", "packed"] {
            assert!(check(&without(way), Vmm::ZVMM).is_err() && check(&without(way), Vmm::MICRO).is_err(), "{way}");
        }
    }

    #[test]
    fn the_pauses_come_before_the_last_verdict() {
        let of = |kind| Attack::ALL.iter().filter(|attack| attack.applies(kind, Way::Split)).count();
        let fewest = MachineAttack::ALL.len() + Kind::ALL.into_iter().map(of).sum::<usize>();
        assert!(PAUSES * VERDICTS_A_PAUSE < fewest, "{fewest}");
    }

    #[test]
    fn every_attack_is_on_the_page_about_security() {
        let page = include_str!("../../../../docs/security.md");
        let names = Attack::ALL.iter().map(|a| a.name()).chain(MachineAttack::ALL.iter().map(|a| a.name()));
        let missing: Vec<&str> = names.filter(|name| !page.contains(&format!("`{name}`"))).collect();
        assert!(missing.is_empty(), "docs/security.md says nothing of {missing:?}");
    }

    #[test]
    fn every_attack_has_a_name_of_its_own_and_a_device() {
        let names = Attack::ALL.iter().map(|a| a.name()).chain(MachineAttack::ALL.iter().map(|a| a.name()));
        let mut names: Vec<&str> = names.collect();
        let count = names.len();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), count);
        for attack in Attack::ALL {
            assert!(Kind::ALL.iter().any(|kind| Way::ALL.iter().any(|way| attack.applies(*kind, *way))), "{attack:?}");
        }
    }
}
