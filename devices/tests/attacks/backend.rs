//! Advisories of the crates this one stands on.

/// The version of `name` in the workspace's lock file.
fn locked(name: &str) -> Vec<u64> {
    let lock = include_str!("../../../Cargo.lock");
    let entry = lock.split("[[package]]").find(|entry| entry.contains(&format!("name = \"{name}\""))).unwrap();
    let version = entry.lines().find_map(|line| line.strip_prefix("version = \"")).unwrap();
    version.trim_end_matches('"').split('.').map(|part| part.parse().unwrap()).collect()
}

#[test]
fn cve_2023_41051_cve_2020_13759_cve_2023_50711_the_crates_below_are_newer_than_their_advisories() {
    for (name, fixed) in [
        // A default `get_slice` whose length was trusted (CVE-2023-41051); torn accesses (CVE-2020-13759).
        ("vm-memory", [0, 12, 2]),
        // A flexible array's length (CVE-2023-50711).
        ("vmm-sys-util", [0, 12, 0]),
        // An endless loop over a bad ELF file (GHSA-52h2-m2cf-9jh6).
        ("linux-loader", [0, 8, 1]),
        // Registers read beyond a structure (RUSTSEC-2024-0428).
        ("kvm-ioctls", [0, 19, 1]),
    ] {
        assert!(locked(name) >= fixed.to_vec(), "{name} {:?} is older than {fixed:?}", locked(name));
    }
}
