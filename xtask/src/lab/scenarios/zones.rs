//! Guests of SmartOS' documented examples, each in a zone of the stand-in for the global zone (`vmm/zone`), which
//! `src/bin/lab-zone` plays in the outer machine.

use anyhow::ensure;

use super::super::job::Outcome;
use super::super::vmm::{Profile, Program, Vmm};
use super::super::zone_disk;
use super::script::BOOT_S;
use super::{Scenario, Script};

/// The program that runs in the place of a VMM.
pub const PLAYER: &str = "lab-zone";

/// What each scene says that it has shown.
const LIFE: [&str; 6] = ["provisioned", "console", "metadata v1", "metadata v2", "stop", "clean disks"];
const REBOOTS: [&str; 5] = ["provisioned", "reboots", "nmi", "races", "power-off"];

/// Seconds that the boots of the longer scene may take, nine of them.
const REBOOTS_S: u64 = 60 + 12 * BOOT_S;

/// The scenarios of this file.
pub fn all() -> Vec<Scenario> {
    let life =
        "is provisioned, has a console, gets its metadata by both versions of the protocol, and is stopped in time";
    let reboots = "reboots five times and leaves nothing behind, takes a non-maskable interrupt, is stopped while it reboots, \
                   and powers off";
    vec![
        zone("bhyve", "life", life, 600, LIFE.to_vec()).only_where(runs_bhyves_brand),
        zone("bhyve", "reboots", reboots, REBOOTS_S, REBOOTS.to_vec()).only_where(runs_bhyves_brand),
        zone("kvm", "life", life, 600, LIFE.to_vec()).only_where(runs_the_kvm_brand),
        zone("kvm", "reboots", reboots, REBOOTS_S, REBOOTS.to_vec()).only_where(runs_the_kvm_brand),
    ]
}

/// The brand's VMM talks to bhyve's kernel interface, or is Linux's stand-in for it. (The brand says which machine it is.)
fn runs_bhyves_brand(vmm: Vmm) -> bool {
    vmm.profile == Profile::I440fx && matches!(vmm.program, Program::Zvmm | Program::ZvmmDoubleBhyve)
}

/// The same of illumos' KVM.
fn runs_the_kvm_brand(vmm: Vmm) -> bool {
    vmm.profile == Profile::I440fx && matches!(vmm.program, Program::Zvmm | Program::ZvmmDoubleIllumosKvm)
}

fn zone(brand: &'static str, scene: &'static str, about: &str, limit_s: u64, shown: Vec<&'static str>) -> Scenario {
    Scenario::new(
        format!("zone-{brand}-{scene}"),
        format!("the example guest of the {brand} brand in its zone {about}"),
        move |vmm| {
            let mut words = vec![PLAYER.to_owned(), brand.to_owned(), scene.to_owned()];
            words.push(format!("/bin/{}", vmm.built_from().unwrap_or_default()));
            if let Some(hypervisor) = vmm.doubled() {
                words.extend(["--hypervisor".to_owned(), hypervisor.to_owned()]);
            }
            Script::new()
                .with(|machine| machine.disks.push(zone_disk::AT.to_owned()))
                .command(words)
                .limit(limit_s)
                // A zone whose player is killed stays.
                .after("rm -rf /tools/.tmp*")
                .exit(limit_s, Some(0))
        },
        move |outcome, _| check(outcome, &shown),
    )
}

fn check(outcome: &Outcome, shown: &[&str]) -> anyhow::Result<()> {
    for what in shown {
        let line = format!("SHOWN {what}");
        ensure!(outcome.lines.iter().any(|(_, said)| *said == line), "not shown: {what}");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::super::matrix;
    use super::*;

    #[test]
    fn each_brand_runs_on_linux_and_on_the_double_of_its_own_kernel_interface_once_in_the_full_lane() {
        let all = all();
        let zvmm = matrix::everything(&all, Vmm::ZVMM);
        let others = [Vmm::MICRO, matrix::BHYVE_ON_KVM]
            .into_iter()
            .chain(matrix::DOUBLES.into_iter().flat_map(|(_, vmms)| vmms));
        let others = others.flat_map(|vmm| matrix::everything(&all, vmm));
        let names: Vec<String> = zvmm.into_iter().chain(others).map(|case| case.name()).collect();
        assert_eq!(
            names,
            [
                "zvmm/zone-bhyve-life",
                "zvmm/zone-bhyve-reboots",
                "zvmm/zone-kvm-life",
                "zvmm/zone-kvm-reboots",
                "zvmm-double-bhyve/zone-bhyve-life",
                "zvmm-double-bhyve/zone-bhyve-reboots",
                "zvmm-double-illumos-kvm/zone-kvm-life",
                "zvmm-double-illumos-kvm/zone-kvm-reboots",
            ]
        );
    }

    #[test]
    fn a_scene_that_was_not_played_to_its_end_does_not_pass() {
        let lines = LIFE.iter().map(|what| (0, format!("SHOWN {what}"))).collect();
        let mut outcome = Outcome { lines, ..Outcome::default() };
        assert!(check(&outcome, &LIFE).is_ok());
        outcome.lines.pop();
        assert!(check(&outcome, &LIFE).is_err());
    }
}
