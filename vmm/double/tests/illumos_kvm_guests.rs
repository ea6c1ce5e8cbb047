//! The whole process on the double of illumos KVM: the tiny guests of `vmm/tests/guests`, from the command line to the
//! exit status, with no rule broken on the way (`zvmm-double` ends with status 70 otherwise).
//!
//! `cargo xtask test` builds the guests and names their folder in `ZVMM_GUESTS`; without it these tests skip, and say so.
#![cfg(target_os = "linux")]

use std::path::PathBuf;
use std::process::{Command, Output, Stdio};

const PROFILES: [&str; 3] = ["i440fx", "bhyve", "micro"];

fn guests() -> Option<PathBuf> {
    let folder = std::env::var_os("ZVMM_GUESTS");
    if folder.is_none() {
        println!("SKIP: ZVMM_GUESTS does not name the folder of the guests; `cargo xtask test` builds them");
    }
    folder.map(PathBuf::from)
}

fn run(guest: &std::path::Path, arguments: &[&str]) -> Output {
    // No guest needs a tenth of a minute; one that hangs must not take its test along.
    let mut command = Command::new("timeout");
    command.args(["-s", "KILL", "60", env!("CARGO_BIN_EXE_zvmm-double"), "--hypervisor", "illumos-kvm", "run"]);
    command.args(["--memory", "128M", "--serial", "stdio", "--kernel"]).arg(guest).args(arguments);
    command.stdin(Stdio::null()).output().unwrap()
}

#[track_caller]
fn passes(output: &Output, proved: &[&str]) {
    let (said, errors) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert_eq!(output.status.code(), Some(0), "{said}\n{errors}");
    assert!(!said.contains("FAIL"), "{said}");
    for proof in proved {
        assert!(said.lines().any(|line| line == format!("PASS {proof}")), "no {proof}: {said}");
    }
}

fn disk() -> (tempfile::NamedTempFile, String) {
    let file = tempfile::NamedTempFile::new().unwrap();
    file.as_file().set_len(4 << 20).unwrap();
    let path = file.path().display().to_string();
    (file, path)
}

#[test]
fn exits_interrupts_and_virtio_work_on_every_profile() {
    let Some(guests) = guests() else { return };
    let (_file, image) = disk();
    for profile in PROFILES {
        let run = |guest: &str, arguments: &[&str]| {
            run(&guests.join(guest), &[&["--cpus", "2", "--profile", profile], arguments].concat())
        };
        passes(&run("pio_mmio_hlt", &[]), &["pio", "mmio", "hlt apic-timer", "hlt pit", "hlt periodic", "hlt"]);
        passes(&run("intx", &["--rng"]), &["intx deliver", "intx off-and-on"]);
        passes(&run("msix", &["--rng"]), &["msix deliver", "msix mask", "msix redirect", "msix after-reset"]);
        let virtio = run("virtio", &["--cmdline", "expect=blk,rng", "--rng", "--disk", &image]);
        passes(&virtio, &["blk", "rng"]);
    }
}

#[test]
fn a_guest_resets_in_every_way_and_finds_the_machine_as_it_was() {
    let Some(guests) = guests() else { return };
    for mode in ["cf9", "acpi", "kbd", "triple"] {
        let (_file, image) = disk();
        let cmdline = format!("mode={mode} boots=10 count=disk");
        let output = run(&guests.join("reset_poweroff"), &["--cpus", "1", "--cmdline", &cmdline, "--disk", &image]);
        passes(&output, &[&format!("reset_poweroff {mode}")]);
    }
}

#[test]
fn more_vcpus_than_the_driver_takes_are_refused_with_the_number() {
    let Some(guests) = guests() else { return };
    let output = run(&guests.join("pio_mmio_hlt"), &["--cpus", "65"]);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_ne!(output.status.code(), Some(0));
    assert!(errors.contains("illumos-kvm has at most 64 vCPUs"), "{errors}");
}
