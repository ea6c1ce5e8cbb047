//! The table in `docs/security.md` and the tests agree.

use std::collections::BTreeSet;
use std::path::Path;

/// Names of all functions in the Rust sources below `folder`.
fn functions(folder: &Path, found: &mut BTreeSet<String>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() && !path.ends_with("target") {
            functions(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let text = std::fs::read_to_string(&path).unwrap();
            let names = text.lines().filter_map(|line| line.trim_start().strip_prefix("fn ")?.split('(').next());
            found.extend(names.map(str::to_owned));
        }
    }
}

/// The cells of the table's rows.
fn rows() -> Vec<Vec<String>> {
    let table = include_str!("../../../docs/security.md");
    let rows = table.lines().filter(|line| line.starts_with('|')).skip(2);
    rows.map(|row| row.trim_matches('|').split('|').map(|cell| cell.trim().to_owned()).collect()).collect()
}

fn names(cell: &str) -> Vec<&str> {
    cell.split('`').skip(1).step_by(2).collect()
}

#[test]
fn every_test_in_the_table_exists_and_every_attack_has_one() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let mut found = BTreeSet::new();
    for folder in ["devices", "vmm/src", "vmm/tests", "firmware/src", "arch/x86_64/src"] {
        functions(&root.join(folder), &mut found);
    }
    let rows = rows();
    assert!(rows.len() > 40, "{} rows", rows.len());
    for row in &rows {
        assert_eq!(row.len(), 3, "{row:?}");
        let tests = names(&row[1]);
        assert!(!tests.is_empty(), "{} has no test", row[0]);
        for test in tests {
            assert!(found.contains(test), "{test}, which is to show {}, does not exist", row[0]);
        }
    }
}

#[test]
fn every_attack_test_is_in_the_table() {
    let listed: BTreeSet<String> =
        rows().iter().flat_map(|row| names(&row[1]).into_iter().map(str::to_owned).collect::<Vec<_>>()).collect();
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    for (file, prefix) in [("tests/attacks", ""), ("src/virtio/pci/tests", "cve_")] {
        let mut found = BTreeSet::new();
        functions(&root.join(file), &mut found);
        for name in found.iter().filter(|name| !prefix.is_empty() && name.starts_with(prefix) || is_attack(name)) {
            assert!(listed.contains(name), "{name} is missing in docs/security.md");
        }
    }
}

/// Whether a function is named for an attack.
fn is_attack(name: &str) -> bool {
    let origins = [
        "cve_",
        "ghsa_",
        "openvmm_",
        "cloud_hypervisor_",
        "firecracker_",
        "propolis_",
        "bhyve_",
        "vm_virtio_",
        "rust_vmm_",
        "generic_",
    ];
    origins.iter().any(|origin| name.starts_with(origin))
}
