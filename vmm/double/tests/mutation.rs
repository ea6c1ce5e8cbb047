//! The double notices: the bhyve backend's real calls, one of them damaged, break a rule that is named.
//!
//! Nothing in the backend knows of this; the damage happens between it and the kernel.

#![cfg(target_os = "linux")]

mod process;

use std::collections::BTreeSet;
use std::time::Duration;

use process::{BROKEN, Run, disk, guests, path};

/// A guest and its arguments.
type Guest = (&'static str, &'static [&'static str]);

const POWER_OFF: Guest = ("reset_poweroff", &["--cmdline", "mode=s5"]);
const REBOOT: Guest = ("reset_poweroff", &["--cmdline", "mode=cf9 boots=2 count=cmos"]);
const MSIX: Guest = ("msix", &["--rng", "--cmdline", "pci=ecam"]);
const INTX: Guest = ("intx", &["--rng"]);

/// Damage, guest, and the rule that it breaks.
const DAMAGES: &[(&str, Guest, &str)] = &[
    // Calls that are left out.
    ("drop:VM_SET_AUTODESTRUCT:1", POWER_OFF, "sys-leak-object"),
    ("drop:VM_ACTIVATE_CPU:1", POWER_OFF, "bhyve-vcpu-active"),
    ("drop:VM_RESET_CPU:1", POWER_OFF, "bhyve-reset-before-run"),
    ("drop:VM_SET_RUN_STATE:1", POWER_OFF, "bhyve-boot-cpu-runs"),
    ("drop:VM_ALLOC_MEMSEG:1", POWER_OFF, "bhyve-map-inside"),
    ("drop:VM_MMAP_MEMSEG:1", POWER_OFF, "bhyve-mmap-hole"),
    ("drop:VM_SET_X2APIC_STATE:1", POWER_OFF, "bhyve-cpuid-x2apic"),
    ("drop:VM_REINIT:1", REBOOT, "bhyve-activate-once"),
    // Calls that come twice.
    ("duplicate:VM_ACTIVATE_CPU:1", POWER_OFF, "bhyve-activate-once"),
    ("duplicate:VM_MMAP_MEMSEG:1", POWER_OFF, "bhyve-map-overlap"),
    ("duplicate:VM_ISA_DEASSERT_IRQ:1", INTX, "bhyve-line-balanced"),
    ("duplicate:VM_RUN:2", POWER_OFF, "bhyve-fulfil-match"),
    ("duplicate:close:1", POWER_OFF, "sys-close-once"),
    // Calls that come too late.
    ("late:VM_ALLOC_MEMSEG:1", POWER_OFF, "bhyve-map-inside"),
    // Arguments of a wrong size or kind.
    ("resize=-8:VM_RUN:1", POWER_OFF, "bhyve-argument"),
    ("resize=8:VM_SET_REGISTER_SET:1", POWER_OFF, "bhyve-argument"),
    ("kind:VM_SET_AUTODESTRUCT:1", POWER_OFF, "bhyve-argument"),
    ("kind:VM_ACTIVATE_CPU:1", POWER_OFF, "bhyve-argument"),
    // Contents that are wrong: creation and memory.
    ("bytes=0+00:VMM_CREATE_VM:1", POWER_OFF, "bhyve-vm-name"),
    ("bytes=128+08:VMM_CREATE_VM:1", POWER_OFF, "bhyve-create-flags"),
    ("bytes=0+07:VM_ALLOC_MEMSEG:1", POWER_OFF, "bhyve-segment-id"),
    ("bytes=8+01:VM_ALLOC_MEMSEG:1", POWER_OFF, "bhyve-segment-length"),
    ("bytes=16+01:VM_MMAP_MEMSEG:1", POWER_OFF, "bhyve-map-pages"),
    ("bytes=32+00:VM_MMAP_MEMSEG:1", POWER_OFF, "bhyve-map-protection"),
    ("bytes=36+02:VM_MMAP_MEMSEG:1", POWER_OFF, "bhyve-map-flags"),
    // vCPUs.
    ("bytes=0+7f:VM_ACTIVATE_CPU:1", POWER_OFF, "bhyve-vcpu-id"),
    ("bytes=4+07:VM_RESET_CPU:1", POWER_OFF, "bhyve-reset-kind"),
    ("bytes=4+07:VM_SET_RUN_STATE:1", POWER_OFF, "bhyve-run-state"),
    ("bytes=4+05:VM_SET_X2APIC_STATE:1", POWER_OFF, "bhyve-x2apic-state"),
    ("bytes=4+40:VM_SET_REGISTER_SET:1", POWER_OFF, "bhyve-register-count"),
    ("bytes=8+0800000000000000:VM_SET_REGISTER_SET:1", POWER_OFF, "bhyve-pointer"),
    ("bytes=4+63:VM_SET_SEGMENT_DESCRIPTOR:1", POWER_OFF, "bhyve-segment-register"),
    ("bytes=20+8900:VM_SET_SEGMENT_DESCRIPTOR:1+", POWER_OFF, "bhyve-tr-busy"),
    ("bytes=16+00001000:VM_SET_SEGMENT_DESCRIPTOR:1+", POWER_OFF, "bhyve-segment-granularity"),
    ("bytes=4+08:VM_SET_CPUID:1", POWER_OFF, "bhyve-cpuid-flags"),
    ("bytes=8+01010000:VM_SET_CPUID:1", POWER_OFF, "bhyve-cpuid-count"),
    ("bytes=8+01000000:VM_SET_CPUID:1", POWER_OFF, "bhyve-cpuid-whole"),
    ("bytes=0+01:VM_SET_CPUID:1", POWER_OFF, "bhyve-cpuid-apic-id"),
    // Entries.
    ("bytes=4+09000000:VM_RUN:1", POWER_OFF, "bhyve-entry-command"),
    ("bytes=4+03000000:VM_RUN:1", POWER_OFF, "bhyve-fulfil-pending"),
    ("bytes=4+00000000:VM_RUN:2", POWER_OFF, "bhyve-exit-answered"),
    ("bytes=22+07:VM_RUN:2", POWER_OFF, "bhyve-fulfil-match"),
    ("bytes=8+0000000000000000:VM_RUN:1", POWER_OFF, "bhyve-exit-buffer"),
    ("value=18446744073709551615:VM_VCPU_BARRIER:1", POWER_OFF, "bhyve-barrier-id"),
    // Interrupts and devices.
    ("bytes=8+0000000000000000:VM_LAPIC_MSI:1", MSIX, "bhyve-msi-address"),
    ("bytes=1+80:VM_LAPIC_MSI:1", MSIX, "bhyve-msi-edge"),
    ("bytes=0+10:VM_ISA_ASSERT_IRQ:1", INTX, "bhyve-line-pin"),
    ("bytes=0+00:VM_ISA_SET_IRQ_TRIGGER:1", POWER_OFF, "bhyve-line-trigger"),
    ("bytes=0+0b:VM_RTC_WRITE:1", POWER_OFF, "bhyve-rtc-offset"),
    ("bytes=7+ff:VM_RTC_SETTIME:1", POWER_OFF, "bhyve-rtc-time"),
    ("value=112:VM_PMTMR_LOCATE:1", POWER_OFF, "bhyve-pmtmr-place"),
    ("value=65536:VM_PMTMR_LOCATE:1", POWER_OFF, "bhyve-pmtmr-port"),
    ("bytes=0+02:VM_REINIT:1", REBOOT, "bhyve-reinit-flags"),
    ("bytes=4+63:VM_DATA_READ:1", POWER_OFF, "bhyve-data-class"),
    ("bytes=12+01200000:VM_DATA_READ:1", POWER_OFF, "bhyve-data-length"),
];

#[test]
fn a_damaged_call_is_caught_under_the_name_of_the_rule_it_breaks() {
    let Some(guests) = guests() else { return };
    let mut missed = Vec::new();
    for &(damage, (guest, args), rule) in DAMAGES {
        // A guest that waits for ever for what was lost has told what it was before.
        let outcome = Run::new("bhyve", &guests, guest)
            .own("--mutate", damage)
            .args(args.iter().copied())
            .within(Duration::from_secs(3))
            .run();
        // -1: memory that is not there was touched, and the process died of it as it would have.
        let ended = matches!(outcome.status, Some(BROKEN | -1) | None);
        if !outcome.broke(rule) || !ended {
            missed.push(format!("{damage} for {rule}: {outcome:?}"));
        }
    }
    assert!(missed.is_empty(), "{}", missed.join("\n\n"));
    let rules: BTreeSet<_> = DAMAGES.iter().map(|(.., rule)| rule).collect();
    assert!(rules.len() >= 25, "{} rules", rules.len());
}

#[test]
fn without_damage_the_same_guests_break_nothing() {
    let Some(guests) = guests() else { return };
    let image = disk(1);
    for (guest, args) in [POWER_OFF, REBOOT, MSIX, INTX] {
        let outcome =
            Run::new("bhyve", &guests, guest).args(args.iter().copied()).args(["--disk", &path(&image)]).run();
        outcome.passed(&[]);
    }
}
