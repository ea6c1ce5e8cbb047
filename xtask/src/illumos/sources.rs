//! What the sources of what ships may not say: where the systems differ is the business of few modules.

use std::fs;
use std::path::{Path, PathBuf};

use crate::paths;

/// Folders of what runs on illumos.
const SHIPS: [&str; 5] = ["vmm/src", "devices/src", "devices/host/src", "arch", "firmware"];

/// The switches between the systems' modules, and how often each names a system.
const SWITCHES: [(&str, usize); 5] = [
    // linux/ or illumos/; and the pipe that stands for an eventfd, tested everywhere.
    ("devices/host/src/lib.rs", 4),
    // The real calls are illumos'.
    ("devices/host/src/sys/mod.rs", 3),
    // The host's hypervisor, and Linux KVM.
    ("vmm/src/hypervisor/mod.rs", 3),
    // What the process gives up; the order on illumos is tested everywhere.
    ("vmm/src/sandbox/mod.rs", 2),
    // The heap of the static Linux binary.
    ("vmm/src/main.rs", 1),
];

/// Words that decide by system, wherever they stand in a line of code.
const BY_SYSTEM: [&str; 3] = ["target_os", "target_env", "target_vendor"];

/// Calls that do not do on illumos what they seem to, and what to use.
const CALLS: [(&str, &str); 4] = [
    ("libc::signal(", "its handler is forgotten at the first signal on illumos: use sigaction"),
    ("SO_SNDTIMEO", "illumos ignores it on unix sockets: poll before sending"),
    ("MSG_DONTWAIT", "illumos ignores it when sending: poll before sending"),
    ("set_write_timeout", "illumos ignores it on unix sockets: poll before sending"),
];

/// Files in a folder named for one system, or of its name, are that system's own.
fn is_a_systems_own(path: &Path) -> bool {
    let of = |name: &str| matches!(name, "linux" | "illumos" | "linux.rs" | "illumos.rs" | "kvm" | "kvm.rs");
    path.components().any(|part| part.as_os_str().to_str().is_some_and(of))
}

fn sources(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|end| end == "rs") {
            found.push(path);
        }
    }
}

/// What is wrong with one source file; `path` is relative to the workspace.
fn problems(path: &Path, text: &str) -> Vec<String> {
    let mut problems = Vec::new();
    let code = || text.lines().enumerate().filter(|(_, line)| !line.trim_start().starts_with("//"));
    if !is_a_systems_own(path) {
        let lines: Vec<usize> = code()
            .filter(|(_, line)| BY_SYSTEM.iter().any(|word| line.contains(word)))
            .map(|(index, _)| index + 1)
            .collect();
        let allowed = SWITCHES.iter().find(|(file, _)| Path::new(file) == path).map_or(0, |(_, count)| *count);
        if lines.len() > allowed {
            problems.push(format!(
                "{} decides by the system in lines {lines:?}: put what differs into a file for each system",
                path.display()
            ));
        }
    }
    for (index, line) in code() {
        for (call, why) in CALLS.iter().filter(|(call, _)| line.contains(call)) {
            problems.push(format!("{}:{}: {call}: {why}", path.display(), index + 1));
        }
    }
    problems
}

#[test]
fn only_the_switches_and_the_systems_own_files_decide_by_the_system() {
    let workspace = paths::workspace();
    let mut files = Vec::new();
    for folder in SHIPS {
        sources(&workspace.join(folder), &mut files);
    }
    assert!(files.len() > 150, "only {} files looked at", files.len());
    let found: Vec<String> = files
        .iter()
        .flat_map(|file| problems(file.strip_prefix(&workspace).unwrap(), &fs::read_to_string(file).unwrap()))
        .collect();
    assert!(found.is_empty(), "{}", found.join("\n"));
}

#[test]
fn every_switch_is_as_long_as_it_says() {
    for (file, count) in SWITCHES {
        let text = fs::read_to_string(paths::workspace().join(file)).unwrap();
        let has = text.lines().filter(|line| BY_SYSTEM.iter().any(|word| line.contains(word))).count();
        assert_eq!(has, count, "{file}");
    }
}

#[test]
fn a_decision_elsewhere_and_a_call_that_misleads_are_found() {
    let path = Path::new("vmm/src/machine/mod.rs");
    let found = problems(path, "fn f() {\n    if cfg!(target_os = \"linux\") {}\n}\n// cfg(target_os) in a remark\n");
    assert_eq!(
        found,
        ["vmm/src/machine/mod.rs decides by the system in lines [2]: put what differs into a file for each system"]
    );
    assert_eq!(problems(path, "#[cfg(target_env = \"gnu\")]\n").len(), 1);
    assert_eq!(problems(path, "unsafe { libc::signal(1, 2) };\n").len(), 1);
    assert!(problems(Path::new("devices/host/src/linux/heap.rs"), "#[cfg(target_env = \"gnu\")]\n").is_empty());
    assert_eq!(problems(Path::new("devices/host/src/lib.rs"), &"#[cfg(target_os = \"linux\")]\n".repeat(6)).len(), 1);
}
