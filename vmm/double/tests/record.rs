//! `zvmm-double --record FILE`: what a guest does to its machine, written down.

#![cfg(target_os = "linux")]

mod process;

use process::{Run, guests};

#[test]
fn a_file_that_cannot_be_written_ends_it_before_there_is_a_guest() {
    let run = Run::new("bhyve", "/nowhere".as_ref(), "nothing").own("--record", "/no/such/folder/record");
    let outcome = run.run();
    assert_eq!(outcome.status, Some(64), "{outcome:?}");
    assert_eq!(outcome.errors, "zvmm-double: /no/such/folder/record: No such file or directory (os error 2)\n");
}

#[test]
fn what_a_guest_prints_is_in_its_record() {
    let Some(guests) = guests() else { return };
    for hypervisor in ["bhyve", "illumos-kvm"] {
        let file = tempfile::NamedTempFile::new().expect("a temporary file");
        let path = file.path().display().to_string();
        let outcome = Run::new(hypervisor, &guests, "virtio")
            .own("--record", &path)
            .args(["--rng", "--cmdline", "pci=ecam expect=rng"])
            .run();
        outcome.passed(&["rng"]);
        let record = std::fs::read_to_string(file.path()).expect("a record");
        assert!(record.starts_with("zvmm record 1\n"), "{record}");
        let bytes = record.lines().filter_map(|line| line.strip_prefix("port w 3f8 1 "));
        let said: Vec<u8> = bytes.filter_map(|byte| u8::from_str_radix(byte, 16).ok()).collect();
        assert!(String::from_utf8_lossy(&said).contains("PASS rng"), "{record}");
        // The driver's request, and the doorbell it rings for it.
        assert!(record.lines().any(|line| line.starts_with("chain ")), "{record}");
        assert!(record.lines().any(|line| line.starts_with("config ecam r ")), "{record}");
    }
}
