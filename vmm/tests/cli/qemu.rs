//! The front end of the kvm brand from outside: one line and qemu's exit status, whatever the process was called.

use serde_json::Value;

use crate::process::{Place, called, empty_dev, refused_with, zvmm, zvmm_after};

/// qemu's status for whatever went wrong. Any end halts the zone.
const ERROR: i32 = 1;

const LINK: [&str; 4] = ["-device", "virtio-net-pci,mac=b2:1e:ba:a5:6e:71,vlan=0", "-net", "vnic,vlan=0,ifname=net0"];

#[track_caller]
fn qemu_refuses(args: &[&str], line: &str) {
    refused_with(ERROR, &[&["qemu"], args].concat(), line);
}

#[test]
fn what_is_wrong_is_one_line_and_status_1() {
    qemu_refuses(&[], "-kernel: firmware is not built yet, and no kernel is given in its place");
    qemu_refuses(&["-m"], "-m: its argument is missing");
    qemu_refuses(&["-drive", "file=/a,if=ide"], "-drive: if=ide is not built; write if=virtio");
    qemu_refuses(&["-drive", "file=/a,if=virtio,media=cdrom"], {
        "-drive: media=cdrom is not built; write media=disk,readonly=on"
    });
    qemu_refuses(&["-net", "nic,model=e1000"], "-net nic: model=e1000 is not built; write model=virtio");
    qemu_refuses(&["-device", "virtio-net-pic"], {
        "-device: 'virtio-net-pic' is not built; did you mean 'virtio-net-pci'?"
    });
    qemu_refuses(&["-hda", "/a"], "-hda: IDE disks are not built; use -drive file=FILE,if=virtio");
    qemu_refuses(&["-kernel", "/nonexistent/vmlinuz"], {
        "boot.kernel (--kernel): cannot open /nonexistent/vmlinuz: No such file or directory"
    });
    qemu_refuses(&["-kernel", "/k", "-pidfile", "/nonexistent/pid", "-smp", "300"], {
        "-smp: 300 vCPUs are not possible; a guest has 1 to 254"
    });
}

#[test]
fn a_pid_file_that_cannot_be_is_refused() {
    let place = Place::new();
    let kernel = place.text("vmlinuz");
    qemu_refuses(&["-kernel", &kernel, "-pidfile", "/nonexistent/pid"], {
        "pid_file (--pid-file): the directory /nonexistent does not exist"
    });
}

#[test]
fn a_host_without_a_hypervisor_is_status_1_and_unknown_options_are_said_once() {
    let place = Place::new();
    let (kernel, pid) = (place.text("vmlinuz"), place.text("vm.pid"));
    let options =
        ["qemu", "-m", "64", "-frob", "x=y", "-vga", "std", "-k", "en-us", "-kernel", &kernel, "-pidfile", &pid];
    let outcome = zvmm_after(empty_dev, &options);
    let lines: Vec<&str> = outcome.errors.lines().collect();
    assert_eq!((outcome.status, lines.len()), (Some(ERROR), 3), "{outcome:?}");
    assert_eq!(lines[0], "zvmm: warn: zvmm::run: -frob x=y: unknown; the guest runs without it");
    assert_eq!(lines[1], "zvmm: warn: zvmm::run: -vga std: not built yet; the guest runs without it");
    assert!(!place.path("vm.pid").exists(), "the file goes with the process");
}

#[test]
fn the_name_it_was_called_by_decides_whose_command_line_it_is() {
    let place = Place::new();
    for name in ["startvm.zone", "qemu-system-x86_64"] {
        let outcome = called(&place, name, &["-drive", "file=/a"]);
        assert_eq!((outcome.status, outcome.output.as_str()), (Some(ERROR), ""), "{name}");
        assert_eq!(outcome.errors, "zvmm: -drive: if=ide is not built; write if=virtio\n", "{name}");
    }
}

#[test]
fn explain_shows_the_machine_and_what_has_no_effect() {
    let args = [&["explain", "qemu", "-name", "web", "-m", "64", "-vga", "std", "-k", "de"][..], &LINK].concat();
    let outcome = zvmm(&args);
    assert_eq!((outcome.status, outcome.errors.as_str()), (Some(0), ""), "{outcome:?}");
    for line in [
        "name       web",
        "memory     64M, locked",
        "slot 3     net0 virtio-net net0 mac b2:1e:ba:a5:6e:71",
        "note       -vga std: not built yet; the guest runs without it",
        "note       -k de: ignored: the keyboard of a display, which there is not",
    ] {
        assert!(outcome.output.contains(line), "{line}: {}", outcome.output);
    }
    let json = [&["explain", "--json", "qemu"][..], &LINK].concat();
    let machine: Value = serde_json::from_str(&zvmm(&json).output).expect("JSON");
    assert_eq!(machine["nets"][0]["slot"], "3");
}
