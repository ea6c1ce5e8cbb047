//! The whole VMM, with the backends' real code, on the doubles of their kernels: each tiny guest of `vmm/tests/guests`.
//!
//! What the guests prove is explained there and in `vmm/tests/p0.rs`, which runs them on Linux KVM; here no rule of the
//! kernel's interface may be broken on the way.

#![cfg(target_os = "linux")]

mod process;

use process::{Outcome, Run, disk, guests, path};

const HYPERVISORS: [&str; 2] = ["bhyve", "illumos-kvm"];
const PROFILES: [&str; 3] = ["i440fx", "bhyve", "micro"];

/// Runs `guest` on every double and profile.
#[track_caller]
fn everywhere(guest: &str, args: &[&str], judge: impl Fn(&str, Outcome)) {
    let Some(guests) = guests() else { return };
    for hypervisor in HYPERVISORS {
        for profile in PROFILES {
            let run = Run::new(hypervisor, &guests, guest).args(["--profile", profile]).args(args.iter().copied());
            judge(profile, run.run());
        }
    }
}

#[test]
fn every_port_and_memory_exit_and_every_wake_up_from_hlt_is_served() {
    everywhere("pio_mmio_hlt", &[], |_, outcome| {
        outcome.passed(&["pio", "mmio", "hlt apic-timer", "hlt pit", "hlt periodic", "hlt"]);
    });
}

#[test]
fn msix_is_delivered_masked_and_redirected() {
    everywhere("msix", &["--rng", "--cmdline", "pci=ecam"], |_, outcome| {
        outcome.passed(&["msix deliver", "msix mask", "msix redirect", "msix after-reset"]);
    });
}

#[test]
fn intx_reaches_the_input_of_the_interrupt_line_register() {
    for slot in ["slot=4", "slot=5", "slot=6", "slot=7"] {
        everywhere("intx", &["--rng", slot], |_, outcome| outcome.passed(&["intx deliver", "intx off-and-on"]));
    }
}

#[test]
fn no_notification_and_no_completion_is_lost() {
    everywhere("doorbell", &["--rng", "--cmdline", "n=1000"], |_, outcome| {
        outcome.passed(&["doorbell single 1000"]);
        assert!(outcome.output.contains("PASS doorbell burst 10"), "{outcome:?}");
    });
}

#[test]
fn an_independent_driver_verifies_blocks_and_random_bytes() {
    let image = disk(4);
    everywhere("virtio", &["--rng", "--disk", &path(&image), "--cmdline", "pci=ecam expect=blk,rng"], |_, outcome| {
        outcome.passed(&["blk data", "blk range", "blk", "rng"])
    });
}

#[test]
fn every_way_to_reset_restarts_the_guest_in_the_same_process() {
    let Some(guests) = guests() else { return };
    for hypervisor in HYPERVISORS {
        for (profile, mode) in [
            ("i440fx", "cf9"),
            ("i440fx", "acpi"),
            ("i440fx", "kbd"),
            ("i440fx", "triple"),
            ("bhyve", "cf9"),
            ("bhyve", "acpi"),
            ("bhyve", "triple"),
            ("micro", "cf9"),
            ("micro", "triple"),
        ] {
            let image = disk(1);
            let outcome = Run::new(hypervisor, &guests, "reset_poweroff")
                .args(["--profile", profile, "--disk", &path(&image)])
                .args(["--cmdline", &format!("mode={mode} boots=5 count=disk")])
                .run();
            for boot in 1..=5 {
                outcome.says(&format!("BOOT {boot}"));
            }
            outcome.says(&format!("PASS reset_poweroff {mode}"));
            // A triple fault is worth a warning.
            assert_eq!(outcome.status, Some(0), "{outcome:?}");
        }
    }
}

#[test]
fn a_hundred_reboots_leave_the_process_as_good_as_new() {
    let Some(guests) = guests() else { return };
    for hypervisor in HYPERVISORS {
        let image = disk(1);
        let outcome = Run::new(hypervisor, &guests, "reset_poweroff")
            .args(["--disk", &path(&image), "--cmdline", "mode=cf9 boots=100 count=disk"])
            .run();
        outcome.says("BOOT 100");
        outcome.passed(&["reset_poweroff cf9"]);
    }
}

#[test]
fn memory_of_the_clock_survives_a_reset() {
    let Some(guests) = guests() else { return };
    for hypervisor in HYPERVISORS {
        let outcome =
            Run::new(hypervisor, &guests, "reset_poweroff").args(["--cmdline", "mode=cf9 boots=3 count=cmos"]).run();
        outcome.passed(&["reset_poweroff cf9"]);
    }
}

#[test]
fn power_off_by_the_guest_ends_the_process_and_its_vm() {
    everywhere("reset_poweroff", &["--cmdline", "mode=s5"], |_, outcome| outcome.passed(&["reset_poweroff s5"]));
}

#[test]
fn several_vcpus_wait_for_the_guest_to_start_them_and_are_reset_with_it() {
    let Some(guests) = guests() else { return };
    for hypervisor in HYPERVISORS {
        for cpus in ["2", "4"] {
            let outcome = Run::new(hypervisor, &guests, "reset_poweroff")
                .cpus(cpus)
                .args(["--cmdline", "mode=cf9 boots=5 count=cmos"])
                .run();
            outcome.passed(&["reset_poweroff cf9"]);
        }
    }
}

/// The brand's kernel starts it again; the VM that it finds then is none that was left behind.
#[test]
fn a_reset_ends_a_process_that_was_started_as_bhyve_with_status_0_and_no_rule_broken() {
    let Some(guests) = guests() else { return };
    let outcome = Run::as_bhyve(&guests, "exits").run();
    assert_eq!(outcome.status, Some(0), "{outcome:?}");
}

#[test]
fn a_reset_ends_the_process_with_status_5_when_told_to_exit() {
    everywhere("exits", &["--on-reset", "exit"], |_, outcome| {
        assert_eq!((outcome.status, &*outcome.output, &*outcome.errors), (Some(5), "!", ""), "{outcome:?}");
    });
}

#[test]
fn a_triple_fault_ends_the_process_with_status_6_when_told_to_exit() {
    let Some(guests) = guests() else { return };
    for hypervisor in HYPERVISORS {
        let outcome = Run::new(hypervisor, &guests, "reset_poweroff")
            .args(["--on-triple-fault", "exit", "--cmdline", "mode=triple boots=2 count=cmos"])
            .run();
        assert_eq!(outcome.status, Some(6), "{outcome:?}");
    }
}

#[test]
fn a_hostile_guest_breaks_no_rule_of_the_kernel() {
    let Some(guests) = guests() else { return };
    for hypervisor in HYPERVISORS {
        for device in ["rng", "blk"] {
            let image = disk(1);
            let outcome = Run::new(hypervisor, &guests, "hostile")
                .args(["--rng", "--disk", &path(&image), "--cmdline", &format!("dev={device} seed=3")])
                .run();
            outcome.says("PASS hostile");
            assert_eq!(outcome.status, Some(0), "{outcome:?}");
        }
    }
}
