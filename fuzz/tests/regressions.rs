//! What was found once is not found again: every file of `regressions/` is run.

use std::fs;
use std::path::Path;

use zvmm_fuzz::TARGETS;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let mut names: Vec<String> = entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|n| !n.starts_with('.'))
        .collect();
    names.sort();
    names
}

#[test]
fn every_committed_regression_and_seed_runs_without_a_finding_and_can_be_explained() {
    for folder in ["regressions", "seeds"] {
        for name in names(&root().join(folder)) {
            let target = zvmm_fuzz::target(&name).unwrap_or_else(|| panic!("{folder}/{name} belongs to no target"));
            for file in names(&root().join(folder).join(&name)) {
                println!("{folder}/{name}/{file}");
                let data = fs::read(root().join(folder).join(&name).join(file)).unwrap();
                assert!(!(target.explain)(&data).trim().is_empty());
                (target.run)(&data);
            }
        }
    }
}

#[test]
fn every_target_has_its_program_and_its_seeds_and_no_program_lacks_a_target() {
    let manifest = fs::read_to_string(root().join("Cargo.toml")).unwrap();
    for target in TARGETS {
        assert!(manifest.contains(&format!("path = \"fuzz_targets/{}.rs\"", target.name)), "{}", target.name);
        assert!(!names(&root().join("seeds").join(target.name)).is_empty(), "{} has no seed", target.name);
    }
    let mut programs = names(&root().join("fuzz_targets"));
    programs.iter_mut().for_each(|name| *name = name.trim_end_matches(".rs").to_owned());
    let mut targets: Vec<_> = TARGETS.iter().map(|target| target.name.to_owned()).collect();
    targets.sort();
    assert_eq!(programs, targets);
}

#[test]
fn no_target_minds_an_empty_input() {
    for target in TARGETS {
        (target.run)(&[]);
        let _ = (target.explain)(&[]);
    }
}
