//! Which scenarios run with which backend and profile, in which lane.
//!
//! The full lane runs everything with everything. The gate lane runs zvmm's own backend and default profile through each
//! kernel, form, vCPU count and device at least once, and of the rest a selection that leaves the lane its time: every backend
//! with every profile that guests remember, a plain boot on every backend, and every other aspect on one of the doubles.

use super::Case;
use super::scenarios::Scenario;
use super::vmm::{Profile, Program, Vmm};

const BHYVE: Vmm = Vmm { program: Program::ZvmmDoubleBhyve, profile: Profile::I440fx };
const BHYVE_ON_BHYVE: Vmm = Vmm { program: Program::ZvmmDoubleBhyve, profile: Profile::Bhyve };
const ILLUMOS_KVM: Vmm = Vmm { program: Program::ZvmmDoubleIllumosKvm, profile: Profile::I440fx };
const BHYVE_ON_ILLUMOS_KVM: Vmm = Vmm { program: Program::ZvmmDoubleIllumosKvm, profile: Profile::Bhyve };
/// zvmm with the `bhyve` profile on the KVM of where it runs.
pub const BHYVE_ON_KVM: Vmm = Vmm { profile: Profile::Bhyve, ..Vmm::ZVMM };

/// The gate lane.
const GATE: [(Vmm, &[&str]); 7] = [
    (
        Vmm::ZVMM,
        &[
            "boot-6.1-bzimage",
            "boot-backports-elf",
            "vcpus-2",
            "vcpus-16",
            "memory-128",
            "memory-5120",
            "disk-root",
            "tcp-100mb",
            "packed-rings",
            "two-disks-two-nics",
            "serial-input",
            "sigterm",
            "panic-exit",
            "pause",
            "attacker",
            "erase",
        ],
    ),
    (Vmm::MICRO, &["boot-6.1-elf"]),
    (BHYVE_ON_KVM, &["boot-6.1-elf"]),
    (BHYVE_ON_BHYVE, &["boot-6.1-elf", "disk-root", "pause"]),
    (BHYVE, &["vcpus-2", "tcp-10mb"]),
    (ILLUMOS_KVM, &["boot-6.1-elf", "memory-split", "sigterm"]),
    (BHYVE_ON_ILLUMOS_KVM, &["vcpus-4", "two-disks-two-nics"]),
];

/// Who runs the scenarios of networks under load, which take minutes: all of them zvmm's own backend and default profile, and
/// each of them another profile and one of the doubles, as far as these have what it is about.
const NETWORKS: [(Vmm, &[&str]); 6] = [
    (Vmm::MICRO, &["net-iperf-2", "net-capture", "net-rebind-modern", "net-networkd", "net-uso"]),
    (BHYVE_ON_KVM, &["net-iperf-1", "net-offloads", "net-protocols", "net-rebind-legacy", "net-vhost-2"]),
    (BHYVE, &["net-iperf-1", "net-iperf-2", "net-rebind-legacy", "net-networkd"]),
    (BHYVE_ON_BHYVE, &["net-offloads", "net-protocols", "net-capture", "net-rebind-modern"]),
    (ILLUMOS_KVM, &["net-iperf-1", "net-capture", "net-rebind-modern"]),
    (BHYVE_ON_ILLUMOS_KVM, &["net-offloads", "net-protocols", "net-rebind-legacy", "net-networkd"]),
];

/// The VMMs beside the default one that the full lane takes through all scenarios.
pub const DOUBLES: [(&str, [Vmm; 2]); 2] =
    [("double-bhyve", [BHYVE, BHYVE_ON_BHYVE]), ("double-illumos-kvm", [ILLUMOS_KVM, BHYVE_ON_ILLUMOS_KVM])];

/// The gate lane.
#[must_use]
pub fn gate(all: &[Scenario]) -> Vec<Case<'_>> {
    named(all, &GATE)
}

/// Networks under load: `all` are the scenarios of that kind.
#[must_use]
pub fn networks(all: &[Scenario]) -> Vec<Case<'_>> {
    [everything(all, Vmm::ZVMM), named(all, &NETWORKS)].concat()
}

fn named<'a>(all: &'a [Scenario], table: &[(Vmm, &[&str])]) -> Vec<Case<'a>> {
    let chosen = table.iter().flat_map(|(vmm, names)| names.iter().map(|name| (*vmm, *name)));
    chosen
        .filter_map(|(vmm, name)| Some(Case { scenario: all.iter().find(|scenario| scenario.name == name)?, vmm }))
        .collect()
}

/// Everything with one VMM, as far as its machine has it.
#[must_use]
pub fn everything(all: &[Scenario], vmm: Vmm) -> Vec<Case<'_>> {
    all.iter().filter(|scenario| scenario.fits(vmm)).map(|scenario| Case { scenario, vmm }).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::super::scenarios;
    use super::*;

    /// What every backend must show, each by a scenario: vCPUs, disk, network, memory above 4 GiB, reboot, power button,
    /// pause. (All of them power off.)
    const ASPECTS: [&str; 9] = [
        "boot-6.1-elf",
        "vcpus-2",
        "vcpus-4",
        "disk-root",
        "tcp-10mb",
        "memory-split",
        "two-disks-two-nics",
        "sigterm",
        "pause",
    ];

    #[test]
    fn the_gate_names_scenarios_that_exist_each_once_with_a_vmm() {
        let all = scenarios::all();
        let names: BTreeSet<String> = gate(&all).iter().map(Case::name).collect();
        assert_eq!(names.len(), GATE.iter().map(|(_, names)| names.len()).sum::<usize>());
    }

    #[test]
    fn the_gate_has_every_backend_with_every_profile_a_boot_on_each_and_every_aspect_on_a_double() {
        let all = scenarios::all();
        let cases = gate(&all);
        let has = |wanted: &dyn Fn(&Case) -> bool| cases.iter().any(wanted);
        let doubles = [Program::ZvmmDoubleBhyve, Program::ZvmmDoubleIllumosKvm];
        for aspect in ASPECTS {
            let on = |case: &Case| case.scenario.name == aspect && doubles.contains(&case.vmm.program);
            assert!(has(&on), "{aspect}");
        }
        for program in doubles {
            assert!(has(&|case| case.scenario.name == "boot-6.1-elf" && case.vmm.program == program), "{program:?}");
        }
        for program in [Program::Zvmm, Program::ZvmmDoubleBhyve, Program::ZvmmDoubleIllumosKvm] {
            for profile in [Profile::I440fx, Profile::Bhyve] {
                assert!(has(&|case| case.vmm == Vmm { program, profile }), "{program:?} {profile:?}");
            }
        }
    }

    #[test]
    fn every_scenario_of_networks_runs_with_another_profile_and_on_a_double_that_has_it() {
        let all = scenarios::networks();
        let cases = networks(&all);
        let names: BTreeSet<String> = cases.iter().map(Case::name).collect();
        assert_eq!(names.len(), cases.len(), "one runs twice");
        assert_eq!(cases.len(), all.len() + NETWORKS.iter().map(|(_, names)| names.len()).sum::<usize>());
        assert!(cases.iter().all(|case| case.scenario.fits(case.vmm)));
        for scenario in &all {
            let on =
                |wanted: &dyn Fn(Vmm) -> bool| cases.iter().any(|c| c.scenario.name == scenario.name && wanted(c.vmm));
            assert!(on(&|vmm| vmm == Vmm::ZVMM), "{}", scenario.name);
            assert!(on(&|vmm| vmm.profile != Profile::I440fx), "{} has one profile", scenario.name);
            for [double, _] in DOUBLES.map(|(_, vmms)| vmms) {
                let has = on(&|vmm| vmm.program == double.program);
                assert!(has || !scenario.fits(double), "{}", scenario.name);
            }
        }
    }

    #[test]
    fn the_gate_fits_its_line_in_the_table_of_times() {
        let times = crate::times::Times::read().unwrap();
        let all = scenarios::all();
        let of = |case: &Case| times.seconds(&format!("lab/{}", case.scenario.name)).unwrap();
        // Two outer machines share them.
        assert!(gate(&all).iter().map(of).sum::<u64>() <= 2 * times.seconds("lab").unwrap());
    }
}
