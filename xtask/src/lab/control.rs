//! The control of the boot log: what qemu's q35 machine makes the same kernel warn about, with the same CPU flags in the
//! same outer machine. Booted once and kept until something it depends on changes.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::PathBuf;

use anyhow::{Context as _, ensure};
use serde::{Deserialize, Serialize};

use super::job::{Job, Outcome};
use super::outer::{End, Report};
use super::scenarios::Script;
use super::vmm::{Machine, Vmm};
use super::warnings::{normalised, unexplained};
use super::{RETRIES, warnings_of};
use crate::paths;

/// Seconds until the shell; the slowest of the outer machines takes most of them.
const BOOT_S: u64 = 300;

/// What was kept of a control's boot.
#[derive(Serialize, Deserialize)]
struct Kept {
    /// Everything it depends on.
    key: String,
    /// Its normalised warnings.
    warnings: BTreeSet<String>,
}

/// The warnings of q35 for each kind of guest.
#[derive(Default)]
pub struct Controls(BTreeMap<Machine, BTreeSet<String>>);

impl Controls {
    /// Those for all guests of ours among `guests`: as they were kept, or from one boot for all that are missing.
    /// `identity` is everything outside the guest that they depend on, `boot` runs a job in the outer machine.
    ///
    /// # Errors
    /// When q35 cannot be booted.
    pub fn of(
        identity: &str,
        guests: impl IntoIterator<Item = (Vmm, Machine)>,
        boot: impl Fn(&Job) -> anyhow::Result<Report>,
    ) -> anyhow::Result<Self> {
        let guests = guests.into_iter().filter(|(vmm, _)| vmm.is_zvmm());
        let controls: BTreeMap<Machine, Slot> = guests
            .map(|(vmm, guest)| of_guest(vmm, &guest))
            .map(|machine| (machine.clone(), Slot::of(identity, &machine)))
            .collect();
        for _ in 0..=RETRIES {
            let missing: Vec<_> = controls.iter().filter(|(_, slot)| slot.read().is_none()).collect();
            if missing.is_empty() || fill(&missing, &boot)? != End::Stuck {
                break;
            }
        }
        let kept = controls.into_iter().map(|(machine, slot)| {
            let warnings = slot.read().context("q35's boots as the control came to no end")?;
            Ok((machine, warnings))
        });
        Ok(Self(kept.collect::<anyhow::Result<_>>()?))
    }

    /// Checks what a guest of ours warned about, each time it was asked.
    ///
    /// # Errors
    /// With the warnings that q35 does not print.
    pub fn check(&self, vmm: Vmm, guest: &Machine, outcome: &Outcome) -> anyhow::Result<()> {
        for said in warnings_of(outcome) {
            let control = self.0.get(&of_guest(vmm, guest)).context("no control for this guest")?;
            let ours = unexplained(said, control);
            ensure!(ours.is_empty(), "the guest warns where it does not on q35: {}", ours.join("; "));
        }
        Ok(())
    }
}

/// The guest whose warnings on q35 say what a guest of ours may warn about: the same kernel, CPU and clock, one or two
/// vCPUs, a disk and an interface.
fn of_guest(vmm: Vmm, guest: &Machine) -> Machine {
    let plain = Script::new().nic().disk(8).machine;
    // The form of the kernel is not in its log.
    let kernel = guest.kernel.replace("vmlinuz-", "vmlinux-");
    let its_own = |word: &&str| !word.starts_with("root=") && !word.starts_with("reboot=");
    Machine {
        initrd: kernel.replace("vmlinux-", "initrd-"),
        kernel,
        cmdline: guest.cmdline.split(' ').filter(its_own).collect::<Vec<_>>().join(" "),
        cpu: guest.cpu.clone(),
        cpus: guest.cpus.min(2),
        // Kernels warn about some CPUs' bugs only where a core has two threads.
        topology: guest.topology.filter(|[_, _, threads]| *threads > 1).map(|_| [1, 1, 2]),
        kvmclock: guest.kvmclock && vmm.has_kvmclock(),
        ..plain
    }
}

/// Where a control is kept.
struct Slot {
    key: String,
}

impl Slot {
    fn of(identity: &str, machine: &Machine) -> Self {
        Self { key: format!("{identity} {}", Vmm::Q35.command(machine).join(" ")) }
    }

    fn path(&self) -> PathBuf {
        paths::lab().join("control").join(format!("q35-{:08x}.json", crc32fast::hash(self.key.as_bytes())))
    }

    fn read(&self) -> Option<BTreeSet<String>> {
        let kept: Kept = serde_json::from_slice(&fs::read(self.path()).ok()?).ok()?;
        (kept.key == self.key).then_some(kept.warnings)
    }

    fn write(&self, warnings: BTreeSet<String>) -> anyhow::Result<()> {
        let path = self.path();
        fs::create_dir_all(path.parent().context("no folder")?)?;
        let fresh = path.with_extension(format!("new{}", std::process::id()));
        fs::write(&fresh, serde_json::to_vec_pretty(&Kept { key: self.key.clone(), warnings })?)?;
        fs::rename(fresh, path)?;
        Ok(())
    }
}

/// Boots q35 with each machine, and keeps what they warned about.
fn fill(missing: &[(&Machine, &Slot)], boot: impl Fn(&Job) -> anyhow::Result<Report>) -> anyhow::Result<End> {
    println!("lab: {} boots of {} as the control of the guests' warnings", missing.len(), Vmm::Q35.name());
    let name = |n: usize| format!("control/{n}");
    let runs = missing.iter().enumerate().map(|(n, (machine, _))| {
        let script = Script::new().nic().disk(8).with(|plain| plain.clone_from(machine));
        script.limit(2 * BOOT_S).ready_within(BOOT_S).power_off().finish(&name(n), Vmm::Q35)
    });
    let report = boot(&Job { runs: runs.collect() })?;
    for (n, (_, slot)) in missing.iter().enumerate() {
        let Some(outcome) = report.outcomes.iter().find(|outcome| outcome.name == name(n)) else { continue };
        if let Some(failure) = &outcome.failure {
            let log = report.log.display();
            anyhow::bail!("q35 as the control failed: {failure}; console log: {log}; it said: {}", outcome.stderr);
        }
        let said = warnings_of(outcome).next().context("q35 was not asked")?;
        slot.write(normalised(said))?;
    }
    Ok(report.end)
}

#[cfg(test)]
mod tests {
    use super::super::scenarios::{self, WARNINGS};
    use super::super::vmm::Program;
    use super::*;

    fn machine(name: &str, vmm: Vmm) -> Machine {
        let all = scenarios::all();
        of_guest(vmm, &all.iter().find(|scenario| scenario.name == name).unwrap().machine(vmm))
    }

    #[test]
    fn guests_share_a_control_when_only_form_devices_and_memory_differ() {
        let plain = machine("boot-6.1-bzimage", Vmm::ZVMM);
        for name in ["boot-6.1-elf", "figures", "memory-5120", "two-disks-two-nics", "disk-root", "vcpus-1"] {
            assert_eq!(machine(name, Vmm::ZVMM), plain, "{name}");
        }
        assert_eq!(machine("boot-6.1-elf", Vmm::MICRO), plain);
    }

    #[test]
    fn kernel_vcpus_clock_and_cpu_have_a_control_of_their_own() {
        let plain = machine("boot-6.1-bzimage", Vmm::ZVMM);
        for name in ["boot-backports-elf", "vcpus-2", "pause-no-kvmclock"] {
            assert_ne!(machine(name, Vmm::ZVMM), plain, "{name}");
        }
        assert_eq!(machine("vcpus-2", Vmm::ZVMM), machine("vcpus-16", Vmm::ZVMM));
        let double = Vmm { program: Program::ZvmmDoubleBhyve, ..Vmm::ZVMM };
        assert_eq!(machine("boot-6.1-elf", double), machine("pause-no-kvmclock", Vmm::ZVMM));
        for change in [|m: &mut Machine| m.cpu = "host".to_owned(), |m: &mut Machine| m.topology = Some([1, 2, 2])] {
            let mut other = plain.clone();
            change(&mut other);
            assert_ne!(of_guest(Vmm::ZVMM, &other), plain);
        }
    }

    #[test]
    fn the_controls_files_are_where_the_guests_are() {
        let machine = machine("boot-backports-bzimage", Vmm::ZVMM);
        assert_eq!(machine.cmdline, Script::new().machine.cmdline);
        assert_eq!(machine.kernel, "/tools/vmlinux-backports");
        assert_eq!(machine.initrd, "/tools/initrd-backports");
    }

    #[test]
    fn a_warning_fails_a_guest_of_ours_unless_q35_prints_it() {
        let guest = Script::new().machine;
        let line = "<4>[    1.5] pci 0000:00:04.0: can't claim BAR 1";
        let mut outcome = Outcome::default();
        outcome.outputs.push((WARNINGS.to_owned(), line.to_owned()));
        let with = |warnings| Controls(BTreeMap::from([(of_guest(Vmm::ZVMM, &guest), warnings)]));
        let error = with(BTreeSet::new()).check(Vmm::ZVMM, &guest, &outcome).unwrap_err().to_string();
        assert!(error.contains("can't claim BAR 1"), "{error}");
        assert!(with(normalised(line)).check(Vmm::ZVMM, &guest, &outcome).is_ok());
        assert!(Controls::default().check(Vmm::ZVMM, &guest, &outcome).is_err(), "without a control nothing passes");
        outcome.outputs.clear();
        assert!(Controls::default().check(Vmm::ZVMM, &guest, &outcome).is_ok(), "a guest that was not asked");
    }
}
