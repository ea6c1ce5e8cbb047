//! The table of `docs/illumos.md`: nothing of illumos' suite is passed over, and every twin that is named exists.

use std::collections::{BTreeMap, BTreeSet};

const CASES: &str = include_str!("cases.txt");
const PAGE: &str = include_str!("../../../../docs/illumos.md");
const HEADING: &str = "## illumos' own tests and their twins";
/// Modules with twins.
const MODULES: [(&str, &str); 5] = [
    ("emulation", include_str!("emulation.rs")),
    ("kernel_devices", include_str!("kernel_devices.rs")),
    ("contracts", include_str!("contracts.rs")),
    ("memory", include_str!("memory.rs")),
    ("state", include_str!("state.rs")),
];

/// The table's rows: case, and what is said of it.
fn rows() -> Vec<(&'static str, &'static str)> {
    let (_, section) = PAGE.split_once(HEADING).expect("the section");
    let section = section.split("\n## ").next().unwrap_or_default();
    let row = |line: &'static str| {
        let (case, rest) = line.strip_prefix("| `")?.split_once("` | ")?;
        Some((case, rest.strip_suffix(" |")?))
    };
    section.lines().filter_map(row).collect()
}

/// What stands between backquotes and has the form of a test's path.
fn twins(text: &str) -> impl Iterator<Item = &str> {
    text.split('`').skip(1).step_by(2).filter(|word| word.contains("::"))
}

fn tests() -> BTreeSet<String> {
    let mut tests = BTreeSet::new();
    for (module, source) in MODULES {
        let mut lines = source.lines();
        while let Some(line) = lines.next() {
            if line != "#[test]" {
                continue;
            }
            let name = lines.next().and_then(|line| line.strip_prefix("fn ")?.split_once('(')).expect("a test").0;
            tests.insert(format!("{module}::{name}"));
        }
    }
    tests
}

#[test]
fn every_case_of_the_suite_stands_in_the_table_once_and_nothing_else_does() {
    let cases: Vec<&str> = CASES.lines().filter(|line| !line.starts_with('#')).collect();
    let listed: Vec<&str> = rows().iter().map(|row| row.0).collect();
    assert!(cases.is_sorted() && cases.len() > 50, "{} cases", cases.len());
    assert_eq!(listed, cases);
}

#[test]
fn every_case_has_a_twin_that_exists_or_a_reason_why_it_has_none() {
    let tests = tests();
    for (case, text) in rows() {
        let named: Vec<&str> = twins(text).collect();
        for twin in &named {
            assert!(tests.contains(*twin), "{case}: there is no {twin}");
        }
        let reason = text.strip_prefix("none: ").is_some_and(|reason| reason.len() > 20);
        assert!(named.is_empty() == reason, "{case}: {text}");
    }
}

#[test]
fn every_test_here_is_somebodys_twin() {
    let mut count: BTreeMap<String, usize> = tests().into_iter().map(|test| (test, 0)).collect();
    for (_, text) in rows() {
        twins(text).for_each(|twin| *count.entry(twin.to_owned()).or_default() += 1);
    }
    let orphans: Vec<_> = count.iter().filter(|(_, count)| **count == 0).collect();
    assert!(orphans.is_empty(), "{orphans:?}");
}
