//! What vmadm says of a guest, from outside: the command line, the machine, and one line where there is none.

use std::fs;

use serde_json::Value;
use zvmm::config::VmConfig;

use crate::process::{Place, refused, zvmm};

const BHYVE: &str = include_str!("../../config/src/vmadm/bhyve.json");
const KVM: &str = include_str!("../../config/src/vmadm/kvm.json");

/// A file with a document in it.
fn written(place: &Place, text: &str) -> String {
    let file = place.text("vmadm.json");
    fs::write(&file, text).expect("a file");
    file
}

#[test]
fn a_guest_is_its_command_line_and_its_configuration_and_what_is_to_be_known_of_them() {
    let place = Place::new();
    for (text, program, last) in [(BHYVE, "bhyve", "SYSbhyve-7"), (KVM, "/startvm.zone", "en-us")] {
        let file = written(&place, text);
        let outcome = zvmm(&["from-vmadm", &file]);
        assert_eq!((outcome.status, outcome.errors.as_str()), (Some(0), ""), "{outcome:?}");
        let guest: Value = serde_json::from_str(&outcome.output).expect("JSON");
        let argv: Vec<&str> = guest["argv"].as_array().unwrap().iter().map(|word| word.as_str().unwrap()).collect();
        assert_eq!((argv.first(), argv.last()), (Some(&program), Some(&last)));
        let problem = "boot.kernel (--kernel): no kernel is given, and there is nothing else to boot";
        assert_eq!(guest["problems"], serde_json::json!([problem]));
        assert!(guest["notes"].as_array().unwrap().iter().any(|note| note.as_str().unwrap().contains("not built yet")));

        // What the front end of the brand shows for this command line is the configuration.
        let vmm = if program == "bhyve" { "bhyve" } else { "qemu" };
        let explained = zvmm(&[&["explain", "--json", vmm], &argv[1..]].concat());
        assert_eq!(guest["config"], serde_json::from_str::<Value>(&explained.output).expect("JSON"));
        let alone = zvmm(&["from-vmadm", "--config-only", &file]);
        assert_eq!((alone.status, alone.output), (Some(0), explained.output));
    }
}

#[test]
fn the_configuration_alone_is_a_file_for_run() {
    let place = Place::new();
    let more = place.fill(r#""vnc_port": 0, "bhyve_extra_opts": "-o zvmm.kernel=@vmlinuz""#);
    let file = written(&place, &BHYVE.replace(r#""vnc_port": 0"#, &more));
    let printed = zvmm(&["from-vmadm", "--config-only", &file]);
    assert_eq!((printed.status, printed.errors.as_str()), (Some(0), ""), "{printed:?}");
    fs::write(place.path("guest.json"), &printed.output).expect("a file");
    let read = VmConfig::read_json(&place.path("guest.json")).expect("it reads back");
    assert_eq!((read.cpus.count, read.disks.len(), read.nets[0].tap.as_str()), (2, 2, "net0"));
    let again = zvmm(&["check-config", "--no-host", "--print", &place.text("guest.json")]);
    assert_eq!((again.status, again.output), (Some(0), printed.output), "{}", again.errors);
}

#[test]
fn the_command_line_alone_is_for_a_shell_and_needs_no_machine() {
    let place = Place::new();
    let file = written(&place, &KVM.replacen(r#""model": "virtio""#, r#""model": "ide""#, 1));
    let outcome = zvmm(&["from-vmadm", "--argv-only", &file]);
    assert_eq!((outcome.status, outcome.errors.as_str()), (Some(0), ""), "{outcome:?}");
    assert!(outcome.output.starts_with("/startvm.zone \\\n    -m 2048 \\\n    -name "), "{}", outcome.output);
    assert!(outcome.output.contains("-disk0,if=ide,index=0,media=disk,boot=on \\\n"), "{}", outcome.output);
    assert!(outcome.output.contains(" 'type=1,manufacturer=Joyent,product=SmartDC HVM,version="), "{}", outcome.output);
    refused(&["from-vmadm", &file], &format!("{file}: disks[0]: -drive: if=ide is not built; write if=virtio"));
}

#[test]
fn what_is_no_guest_is_one_line_and_status_2() {
    let place = Place::new();
    let changed = |from: &str, to: &str| written(&place, &BHYVE.replacen(from, to, 1));
    let file = changed(r#""vcpus": 2"#, r#""vcpus": "two""#);
    refused(&["from-vmadm", &file], &format!("{file}:21:16: vcpus: invalid type: string \"two\", expected u64"));
    let file = changed(r#""primary": true"#, r#""primary": false"#);
    for option in ["--argv-only", "--config-only"] {
        let line = "nics: none of them is primary; set primary to true on one, or the zone does not boot";
        refused(&["from-vmadm", option, &file], &format!("{file}: {line}"));
    }
    let file = written(&place, "");
    refused(&["from-vmadm", &file], &format!("{file}:1:0: .: EOF while parsing a value"));
    refused(&["from-vmadm", "/nonexistent"], {
        "/nonexistent: cannot read the configuration: No such file or directory"
    });
    refused(&["from-vmadm", "/dev/zero"], "/dev/zero: cannot read the configuration: it is longer than 4 MiB");
    refused(&["from-vmadm", "--argv-only", "--config-only", &file], {
        "--argv-only and --config-only cannot both be given"
    });
    refused(&["from-vmadm", "--json", &file], "unknown option '--json'");
    let missing = zvmm(&["from-vmadm"]);
    assert_eq!((missing.status, missing.errors.lines().count()), (Some(2), 1), "{missing:?}");
}

#[test]
fn its_help_has_an_example() {
    let help = zvmm(&["from-vmadm", "--help"]);
    assert_eq!(help.status, Some(0));
    assert!(help.output.contains("vmadm get UUID > vm.json\n    zvmm from-vmadm vm.json\n"), "{}", help.output);
}
