//! The front end of the bhyve brand from outside: one line and bhyve's exit status, whatever the process was called.

use std::fs;
use std::io;

use serde_json::Value;
use zvmm::config::VmConfig;

use crate::process::{Place, called, empty_dev, refused, refused_with, zvmm, zvmm_after};

/// bhyve's status for "there is no guest": its zone halts, while 0 would start it again for ever.
const ERROR: i32 = 4;

#[track_caller]
fn bhyve_refuses(args: &[&str], line: &str) {
    refused_with(ERROR, &[&["bhyve"], args].concat(), line);
}

#[test]
fn what_is_wrong_is_one_line_and_status_4() {
    bhyve_refuses(&[], "the name of the VM is missing; it comes last");
    bhyve_refuses(&["-Q", "vm"], "unknown option '-Q'; -h explains those there are");
    bhyve_refuses(&["-s", "4,nvme,/d", "vm"], "-s 4,nvme: use virtio-blk");
    bhyve_refuses(&["-m", "lots", "vm"], {
        "-m: 'lots' is not a size; write a number of bytes, or a number with K, M, G or T, such as 512M"
    });
    bhyve_refuses(
        &["-l", "bootrom,/usr/share/bhyve/uefi-csm-rom.bin", "vm"],
        "-o zvmm.kernel: firmware is not built yet, and no kernel is given in its place",
    );
    bhyve_refuses(&["-o", "zvmm.kernel=/nonexistent/vmlinuz", "vm"], {
        "boot.kernel (--kernel): cannot open /nonexistent/vmlinuz: No such file or directory"
    });
    bhyve_refuses(&["-c", "2", "-m", "0", "-o", "zvmm.kernel=/k", "vm"], {
        "memory.size (--memory): 0 bytes are too little; a guest has at least 1M"
    });
    let many = [&["-H"; 99][..], &["vm"]].concat();
    bhyve_refuses(&many, "101 arguments are more than the 100 that a zone's boot hook passes");
}

#[test]
fn a_serial_line_on_what_is_no_terminal_is_refused() {
    let place = Place::new();
    let kernel = place.fill("zvmm.kernel=@vmlinuz");
    let line = place.fill("com1: @root.img is a file, not a terminal or serial line");
    bhyve_refuses(&["-o", &kernel, "-l", &place.fill("com1,@root.img"), "vm"], &line);
    let line = "com1: cannot open /dev/nonexistent: No such file or directory";
    bhyve_refuses(&["-o", &kernel, "-l", "com1,/dev/nonexistent", "vm"], line);
}

#[test]
fn a_host_without_a_hypervisor_is_status_4_and_what_is_not_built_is_said_once() {
    let place = Place::new();
    let options = ["-s", "30,fbuf,password=secret", "-A", "-o", &place.fill("zvmm.kernel=@vmlinuz"), "-m", "64", "vm"];
    let outcome = zvmm_after(empty_dev, &[&["bhyve"][..], &options].concat());
    let lines: Vec<&str> = outcome.errors.lines().collect();
    assert_eq!(outcome.status, Some(ERROR), "{outcome:?}");
    assert_eq!(
        lines[0], "zvmm: warn: zvmm::run: -s 30,fbuf,password=…: not built yet; the guest runs without it",
        "{outcome:?}"
    );
    assert_eq!(lines.len(), 2, "{outcome:?}");
}

#[test]
fn the_name_it_was_called_by_decides_whose_command_line_it_is() {
    let place = Place::new();
    for name in ["bhyve", "bhyve.zone"] {
        let outcome = called(&place, name, &["-H"]);
        assert_eq!(outcome.errors, "zvmm: the name of the VM is missing; it comes last\n");
        assert_eq!(outcome.status, Some(ERROR));
    }
    let outcome = called(&place, "zhyve", &[]);
    let line = "zvmm: /var/run/bhyve/zhyve.cmd: cannot read the command line: No such file or directory\n";
    assert_eq!((outcome.status, outcome.errors.as_str()), (Some(ERROR), line));
    let outcome = called(&place, "anything", &["bhyve"]);
    assert_eq!(outcome.errors, "zvmm: the name of the VM is missing; it comes last\n");
}

/// Who asked for help, or for the configuration, is no guest that was reset.
#[test]
fn help_and_dump_do_not_end_with_the_status_that_starts_a_zone_again() {
    let help = zvmm(&["bhyve", "-H", "-h"]);
    assert_eq!((help.status, help.errors.as_str()), (Some(1), ""));
    assert!(help.output.starts_with("Usage: bhyve OPTIONS… NAME\n"), "{}", help.output);
    let dump = zvmm(&["bhyve", "-o", "config.dump=1", "-c", "2", "vm"]);
    assert_eq!((dump.status, dump.errors.as_str()), (Some(1), ""));
    let dump: Value = serde_json::from_str(&dump.output).expect("JSON");
    assert_eq!(dump["cpus"]["count"], 2);
}

#[test]
fn an_explained_machine_is_a_table_or_a_file_for_run() {
    let place = Place::new();
    let disk = place.fill("4:0,virtio-blk,@root.img,nodelete");
    let kernel = place.fill("zvmm.kernel=@vmlinuz");
    let args = [
        "bhyve",
        "-H",
        "-o",
        "virtio.modern=false",
        "-c",
        "2",
        "-s",
        &disk,
        "-s",
        "6,virtio-net-viona,net7",
        "-o",
        &kernel,
        "vm",
    ];
    let table = zvmm(&[&["explain"], &args[..]].concat());
    assert_eq!((table.status, table.errors.as_str()), (Some(0), ""));
    for line in [
        "name       vm",
        "cpus       2: 2 sockets × 1 cores × 1 threads",
        "slot 6     net0 virtio-net net7 mac of the link queues 1024",
        "virtio     for drivers of virtio 0.9 alone",
        "note       -H: ignored: a halted vCPU always gives its host CPU away",
    ] {
        assert!(table.output.lines().any(|other| other == line), "{line}\n{}", table.output);
    }
    let json = zvmm(&[&["explain", "--json"], &args[..]].concat());
    assert_eq!((json.status, json.errors.as_str()), (Some(0), ""));
    fs::write(place.path("vm.json"), &json.output).expect("a file");
    let read = VmConfig::read_json(&place.path("vm.json")).expect("it reads back");
    assert_eq!((read.disks[0].discard, read.nets[0].mac), (false, None));
    let again = zvmm(&["check-config", "--print", &place.text("vm.json")]);
    assert_eq!((again.status, again.output), (Some(0), json.output));
}

#[test]
fn explain_says_what_it_cannot_read() {
    refused(&["explain", "bhive", "vm"], "unknown VMM 'bhive'; did you mean 'bhyve'?");
    refused(&["explain", "bhyve", "-m"], "-m: no value is given; write -m SIZE");
    let place = Place::new();
    let file = place.text("root.img");
    refused(&["explain", "--cmd-file", &file, "bhyve"], &format!("{file}: the encoding is 0, not 1"));
}

#[test]
fn a_zhyve_cmd_is_explained() -> io::Result<()> {
    let words = [
        0x0101_0000u32,
        0,
        1,
        0x44,
        0x50,
        0x0a,
        0x6268_7976,
        0x655f_6172,
        0x6773_0000,
        0x11,
        3,
        5,
        0x6268_7976,
        0x6500_0000,
        2,
        0x2d48_0000,
        0x0a,
        0x5359_5362,
        0x6879_7665,
        0x2d37_0000,
        0,
        0,
    ];
    let place = Place::new();
    fs::write(place.path("zhyve.cmd"), words.map(u32::to_be_bytes).concat())?;
    let outcome = zvmm(&["explain", "--cmd-file", &place.text("zhyve.cmd"), "bhyve"]);
    assert_eq!((outcome.status, outcome.errors.as_str()), (Some(0), ""));
    assert!(outcome.output.starts_with("name       SYSbhyve-7\n"), "{}", outcome.output);
    Ok(())
}
