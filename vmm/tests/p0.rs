//! The whole process on the machine's own `/dev/kvm`: each tiny guest of `tests/guests`, from the command line to the
//! exit status.
//!
//! `cargo xtask test` builds the guests and names their folder in `ZVMM_GUESTS`; without it these tests skip, and say so.
//! What is in the guests is explained there. They print `PASS <what>` for each thing proved, or `FAIL: <why>`.

#![cfg(target_os = "linux")]

#[path = "p0/disks.rs"]
mod disks;
#[path = "p0/full_disk.rs"]
mod full_disk;
#[path = "p0/interface.rs"]
mod interface;
#[path = "p0/limits.rs"]
mod limits;
#[path = "p0/link.rs"]
mod link;
#[path = "p0/process.rs"]
mod process;
#[path = "p0/program.rs"]
mod program;
#[path = "p0/reboots.rs"]
mod reboots;
#[path = "p0/refusals.rs"]
mod refusals;
#[path = "p0/resize.rs"]
mod resize;
#[path = "p0/sandbox.rs"]
mod sandbox;
#[path = "p0/tap.rs"]
mod tap;
#[path = "p0/tracer.rs"]
mod tracer;

use std::io::{Read as _, Seek as _, SeekFrom};

use process::{Outcome, Zvmm, guests};

/// All profiles: what a guest proves on one says little about the others.
const PROFILES: [&str; 3] = ["i440fx", "bhyve", "micro"];

/// Who does a disk's work.
const ENGINES: [&str; 2] = ["threads", "io_uring"];

/// How a guest reaches PCI configuration space on a profile.
fn pci_ways(profile: &str) -> &'static [&'static str] {
    if profile == "micro" { &["pci=ecam"] } else { &["pci=ports", "pci=ecam"] }
}

fn disk(mib: u64) -> tempfile::NamedTempFile {
    let file = tempfile::NamedTempFile::new().expect("a temporary file");
    file.as_file().set_len(mib << 20).expect("space for a disk image");
    file
}

fn path(file: &tempfile::NamedTempFile) -> String {
    file.path().display().to_string()
}

#[test]
fn every_port_and_memory_exit_and_every_wake_up_from_hlt_is_served() {
    let Some(guests) = guests() else { return };
    for profile in PROFILES {
        let outcome = Zvmm::new(&guests, "pio_mmio_hlt").args(["--profile", profile]).run();
        outcome.passed(&["pio", "mmio", "hlt apic-timer", "hlt pit", "hlt periodic", "hlt"]);
    }
}

#[test]
fn msix_is_delivered_masked_and_redirected() {
    let Some(guests) = guests() else { return };
    for profile in PROFILES {
        for pci in pci_ways(profile) {
            let outcome = Zvmm::new(&guests, "msix").cmdline(pci).args(["--profile", profile, "--rng"]).run();
            outcome.passed(&["msix deliver", "msix mask", "msix redirect", "msix after-reset"]);
        }
    }
    let image = disk(1);
    let outcome = Zvmm::new(&guests, "msix").cmdline("dev=blk").args(["--disk", &path(&image)]).run();
    outcome.passed(&["msix deliver", "msix mask", "msix redirect", "msix after-reset"]);
}

#[test]
fn ecam_and_the_configuration_ports_show_the_same_functions() {
    let Some(guests) = guests() else { return };
    Zvmm::new(&guests, "msix").args(["--profile", "i440fx", "--rng"]).run().passed(&["ecam"]);
}

#[test]
fn intx_reaches_the_ioapic_input_of_the_interrupt_line_register() {
    let Some(guests) = guests() else { return };
    let image = disk(1);
    for profile in PROFILES {
        // In every slot the lines are swizzled differently.
        for slot in ["slot=4", "slot=5", "slot=6", "slot=7"] {
            let outcome = Zvmm::new(&guests, "intx").args(["--profile", profile, "--rng", slot]).run();
            outcome.passed(&["intx deliver", "intx off-and-on"]);
        }
        let outcome =
            Zvmm::new(&guests, "intx").cmdline("dev=blk").args(["--profile", profile, "--disk", &path(&image)]).run();
        outcome.passed(&["intx deliver", "intx off-and-on"]);
    }
}

#[test]
fn no_notification_and_no_completion_is_lost() {
    let Some(guests) = guests() else { return };
    for profile in PROFILES {
        let outcome = Zvmm::new(&guests, "doorbell").cmdline("n=2000").args(["--profile", profile, "--rng"]).run();
        outcome.passed(&["doorbell single 2000", "doorbell burst 2000"]);
        let image = disk(1);
        let outcome = Zvmm::new(&guests, "doorbell")
            .cmdline("dev=blk n=500")
            .args(["--profile", profile, "--disk", &path(&image)])
            .run();
        outcome.passed(&["doorbell single 500", "doorbell burst 500"]);
    }
}

#[test]
fn the_vcpu_does_not_leave_the_kernel_for_a_notification() {
    let Some(guests) = guests() else { return };
    let folder = tempfile::tempdir().expect("a temporary folder");
    let socket = folder.path().join("qmp");
    let running = Zvmm::new(&guests, "doorbell")
        .cmdline("n=1000 hold=2000")
        .args(["--rng", "--qmp", &socket.display().to_string()])
        .start();
    running.wait_for("PASS doorbell burst 1000");
    let stats = process::ask(&socket, "query-stats");
    let exits = stats["vcpus"][0]["exits"]["mmio_write"].as_u64();
    // 2000 notifications; what is left is the set-up of the device.
    assert!(exits.is_some_and(|exits| exits < 200), "{stats:#}");
    running.finish().passed(&["doorbell single 1000", "doorbell burst 1000"]);
}

/// A disk costs nothing while its guest leaves it alone: no thread of it runs, not even to look whether there is work.
#[test]
fn an_idle_disk_wakes_none_of_its_threads() {
    let Some(guests) = guests() else { return };
    for engine in ENGINES {
        let image = disk(1);
        let folder = tempfile::tempdir().expect("a temporary folder");
        let socket = folder.path().join("qmp");
        let running = Zvmm::new(&guests, "doorbell")
            .cmdline("dev=blk n=200 hold=3000")
            .args(["--disk", &format!("{},engine={engine}", path(&image)), "--qmp", &socket.display().to_string()])
            .start();
        running.wait_for("PASS doorbell burst 200");
        let look = || {
            let stats = process::ask(&socket, "query-stats");
            let disk = stats["devices"].as_array().and_then(|all| all.iter().find(|device| device["kind"] == "disk"));
            let wakeups = disk.and_then(|disk| disk["queues"][0]["wakeups"].as_u64()).expect("a counter");
            (wakeups, running.switches("disk0-"))
        };
        // The last interrupt's round may still be ending.
        std::thread::sleep(std::time::Duration::from_millis(200));
        let before = look();
        std::thread::sleep(std::time::Duration::from_millis(2000));
        assert!(before.0 > 0 && before.1.len() >= 2, "{engine}: {before:?}");
        assert_eq!(look(), before, "{engine}: wake-ups, and switches of each thread, in two seconds");
        running.finish().passed(&["doorbell single 200", "doorbell burst 200"]);
    }
}

#[test]
fn an_independent_driver_verifies_blocks_random_bytes_and_console_output() {
    let Some(guests) = guests() else { return };
    for profile in PROFILES {
        for (pci, engine) in pci_ways(profile).iter().flat_map(|pci| ENGINES.map(|engine| (pci, engine))) {
            let mut image = disk(4);
            let console = tempfile::NamedTempFile::new().expect("a temporary file");
            let outcome = Zvmm::new(&guests, "virtio")
                .cmdline(&format!("{pci} expect=blk,rng,console"))
                .args(["--profile", profile, "--rng", "--disk", &format!("{},engine={engine}", path(&image))])
                .args(["--console", &format!("file:{}", path(&console))])
                .run();
            outcome.passed(&["blk data", "blk range", "blk", "rng", "console"]);

            // What the guest verified is also what is in the file.
            let mut sectors = [0; 16 * 512];
            image.as_file_mut().seek(SeekFrom::Start(16 * 512)).expect("a seekable image");
            image.as_file_mut().read_exact(&mut sectors).expect("the image has kept its size");
            let expected = |at: usize| (at as u8) ^ (at >> 8) as u8 ^ 16_u8.wrapping_mul(29);
            let wrong = sectors.iter().enumerate().find(|&(at, &byte)| byte != expected(at));
            assert_eq!(wrong, None, "the image differs from what the guest wrote at sector 16");
            let told = std::fs::read_to_string(console.path()).expect("the console's file");
            assert_eq!(told, "hello from the guest\n");
        }
    }
}

#[test]
fn what_follows_the_last_sector_of_a_disk_is_left_out_and_said() {
    let Some(guests) = guests() else { return };
    let image = disk(1);
    image.as_file().set_len((1 << 20) + 100).expect("space for a disk image");
    let outcome = Zvmm::new(&guests, "virtio")
        .cmdline("pci=ecam expect=blk")
        .args(["--profile", "micro", "--disk", &path(&image)])
        .run();
    outcome.passed_with_warnings(&["blk data", "blk range", "blk"]);
    let line = format!("disk disk0: {}: its last 100 bytes are no block of 512 and left out", path(&image));
    assert!(outcome.errors().contains(&line), "{outcome:?}");
    assert_eq!(image.as_file().metadata().expect("an image").len(), (1 << 20) + 100, "and left alone");
}

#[test]
fn an_independent_driver_exchanges_packets_of_all_sizes_with_the_host() {
    let Some(guests) = guests() else { return };
    for profile in PROFILES {
        let outcome = Zvmm::new(&guests, "virtio")
            .cmdline(&format!("expect=net arp={} ip=192.0.2.2", tap::HOST_ADDRESS))
            .args(["--profile", profile, "--net", &format!("tap={},mac=52:54:00:12:34:56", tap::NAME)])
            .with_tap()
            .run();
        outcome.says("INFO net mac 52:54:00:12:34:56");
        outcome.passed(&["net arp", "net"]);
    }
}

#[test]
fn every_way_to_reset_restarts_the_guest_in_the_same_process() {
    let Some(guests) = guests() else { return };
    for profile in ["i440fx", "bhyve"] {
        for mode in ["cf9", "acpi", "kbd", "triple"] {
            reboots(&guests, profile, mode, 5);
        }
    }
    for mode in ["cf9", "acpi", "triple"] {
        reboots(&guests, "micro", mode, 5);
    }
}

/// Counts boots on a disk, so that each boot also starts the devices anew.
fn reboots(guests: &std::path::Path, profile: &str, mode: &str, boots: u32) {
    let image = disk(1);
    let outcome = Zvmm::new(guests, "reset_poweroff")
        .cmdline(&format!("mode={mode} boots={boots} count=disk"))
        .args(["--profile", profile, "--disk", &path(&image)])
        .run();
    for boot in 1..=boots {
        outcome.says(&format!("BOOT {boot}"));
    }
    let proved = format!("reset_poweroff {mode}");
    if mode == "triple" {
        outcome.passed_with_warnings(&[&proved]);
    } else {
        outcome.passed(&[&proved]);
    }
}

#[test]
fn cmos_memory_survives_a_reset() {
    let Some(guests) = guests() else { return };
    let outcome = Zvmm::new(&guests, "reset_poweroff").cmdline("mode=cf9 boots=3 count=cmos").run();
    outcome.passed(&["reset_poweroff cf9"]);
}

#[test]
fn power_off_by_the_guest_ends_the_process_with_status_0() {
    let Some(guests) = guests() else { return };
    for profile in PROFILES {
        let outcome = Zvmm::new(&guests, "reset_poweroff").cmdline("mode=s5").args(["--profile", profile]).run();
        outcome.passed(&["reset_poweroff s5"]);
    }
}

#[test]
fn a_reset_ends_the_process_with_status_5_when_told_to_exit() {
    let Some(guests) = guests() else { return };
    for mode in ["cf9", "acpi", "kbd"] {
        let outcome = Zvmm::new(&guests, "reset_poweroff")
            .cmdline(&format!("mode={mode} boots=2"))
            .args(["--on-reset", "exit"])
            .run();
        outcome.says("BOOT 1");
        outcome.ended_with(5);
    }
}

#[test]
fn a_triple_fault_ends_the_process_with_status_6_when_told_to_exit() {
    let Some(guests) = guests() else { return };
    let outcome =
        Zvmm::new(&guests, "reset_poweroff").cmdline("mode=triple boots=2").args(["--on-triple-fault", "exit"]).run();
    outcome.says("BOOT 1");
    outcome.ended_with(6);
}

#[test]
fn the_first_instructions_of_a_guest_reach_the_serial_port() {
    let Some(guests) = guests() else { return };
    for profile in PROFILES {
        let outcome: Outcome = Zvmm::new(&guests, "exits").args(["--profile", profile, "--on-reset", "exit"]).run();
        assert_eq!(outcome.output(), "!", "{outcome:?}");
        outcome.ended_with(5);
    }
}

/// What a broken ring or chain must lead to (virtio 1.3 §2.1.2: the device asks for a reset), on any device.
const BROKEN_RINGS: [&str; 13] = [
    "next-outside",
    "loop-of-one",
    "loop-of-all",
    "address-wraps",
    "outside-memory",
    "crosses-end-of-memory",
    "huge-length",
    "local-apic",
    "own-registers",
    "head-outside",
    "index-jump-one-more",
    "index-jump-far",
    "index-backwards",
];

#[test]
fn a_hostile_guest_breaks_only_its_own_device_until_the_next_reset() {
    let Some(guests) = guests() else { return };
    for (profile, seed) in PROFILES.into_iter().zip([1, 2]) {
        for device in ["rng", "blk"] {
            let image = disk(1);
            let outcome = Zvmm::new(&guests, "hostile")
                .cmdline(&format!("dev={device} seed={seed}"))
                .args(["--profile", profile, "--rng", "--disk", &path(&image)])
                .run();
            for abuse in BROKEN_RINGS {
                outcome.says(&format!("ABUSE {abuse}: needs-reset"));
            }
            // Rings that move after the queue is enabled are where they were.
            for abuse in ["descriptors-moved", "available-moved", "used-moved"] {
                outcome.says(&format!("ABUSE {abuse}: completed"));
            }
            outcome.passed_with_warnings(&["hostile"]);
        }
    }
}

#[test]
fn a_guest_of_each_interface_finds_its_devices_and_no_others() {
    let Some(guests) = guests() else { return };
    let run = |profile: &str, interfaces: &str| {
        let image = disk(4);
        let words = ["--profile", profile, "--virtio", interfaces, "--disk", &path(&image)];
        Zvmm::new(&guests, "virtio").cmdline("pci=ecam expect=blk").args(words).run()
    };
    // This driver knows virtio 1 alone.
    for profile in ["i440fx", "bhyve"] {
        for interfaces in ["both", "modern"] {
            run(profile, interfaces).passed(&["blk data", "blk range", "blk"]);
        }
        let outcome = run(profile, "legacy");
        assert!(outcome.output().contains("FAIL"), "{outcome:?}");
        assert!(!outcome.output().contains("PASS blk"), "{outcome:?}");
    }
    run("micro", "modern").passed(&["blk data", "blk range", "blk"]);
    let outcome = run("micro", "legacy");
    outcome.ended_with(2);
    let line =
        "virtio (--virtio): micro has no ports for devices of virtio 0.9; use both or modern, or another profile";
    assert_eq!(outcome.errors(), format!("zvmm: {line}\n"));
}
