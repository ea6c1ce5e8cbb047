//! What `brand/` has for SmartOS works: its scripts run, and what its files name is there.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::paths;

fn brand(file: &str) -> PathBuf {
    paths::workspace().join("brand").join(file)
}

/// An executable shell script.
fn script(path: &Path, text: &str) {
    fs::write(path, format!("#!/bin/sh\n{text}\n")).unwrap();
    fs::set_permissions(path, PermissionsExt::from_mode(0o755)).unwrap();
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Runs `zone-install` with arguments in which `@` is the folder of the test.
fn zone_install(place: &TempDir, arguments: &[&str]) -> Output {
    let prefix = format!("{}/", place.path().display());
    let arguments = arguments.iter().map(|argument| argument.replace('@', &prefix));
    Command::new("sh").arg(brand("zone-install")).args(arguments).stdin(Stdio::null()).output().unwrap()
}

#[track_caller]
fn installs(place: &TempDir, arguments: &[&str]) {
    let output = zone_install(place, arguments);
    assert!(output.status.success(), "{}", text(&output.stderr));
}

#[track_caller]
fn refuses(place: &TempDir, arguments: &[&str], line: &str) {
    let output = zone_install(place, arguments);
    let prefix = format!("{}/", place.path().display());
    assert_eq!(text(&output.stderr), format!("zone-install: {}\n", line.replace('@', &prefix)));
    assert_eq!(output.status.code(), Some(1));
}

/// What the brand would start, called by its name.
fn hook_says(place: &TempDir, hook: &str) -> String {
    text(&Command::new(place.path().join("root").join(hook)).output().unwrap().stdout)
}

/// A zone's root, and two binaries.
fn zone() -> TempDir {
    let place = TempDir::new().unwrap();
    fs::create_dir(place.path().join("root")).unwrap();
    for version in ["one", "two"] {
        script(&place.path().join(version), &format!("echo {version}"));
    }
    place
}

#[test]
fn a_hook_is_installed_replaced_rolled_back_and_removed() {
    for (brand, hook) in [("bhyve", "bhyve.zone"), ("kvm", "startvm.zone")] {
        let place = zone();
        installs(&place, &["@root", brand, "@one"]);
        assert_eq!(hook_says(&place, hook), "one\n");
        let link = fs::read_link(place.path().join("root").join(hook)).unwrap();
        assert_eq!(link, Path::new("zvmm"), "the zone has its root elsewhere than the global zone");
        refuses(&place, &["--roll-back", "@root", brand], "there is no binary before this one in @root");
        installs(&place, &["@root", brand, "@two"]);
        assert_eq!(hook_says(&place, hook), "two\n");
        installs(&place, &["--roll-back", "@root", brand]);
        assert_eq!(hook_says(&place, hook), "one\n");
        installs(&place, &["--remove", "@root", brand]);
        assert_eq!(fs::read_dir(place.path().join("root")).unwrap().count(), 0, "{brand}");
    }
}

#[test]
fn a_hook_of_somebody_else_comes_back_when_ours_goes() {
    let place = zone();
    script(&place.path().join("root/bhyve.zone"), "echo theirs");
    refuses(&place, &["--remove", "@root", "bhyve"], "@root/bhyve.zone is no hook that was installed");
    installs(&place, &["@root", "bhyve", "@one"]);
    assert_eq!(hook_says(&place, "bhyve.zone"), "one\n");
    installs(&place, &["--remove", "@root", "bhyve"]);
    assert_eq!(hook_says(&place, "bhyve.zone"), "theirs\n");
}

#[test]
fn a_binary_that_does_not_run_replaces_none() {
    let place = zone();
    installs(&place, &["@root", "bhyve", "@one"]);
    script(&place.path().join("broken"), "exit 3");
    refuses(&place, &["@root", "bhyve", "@broken"], "@broken does not run");
    assert_eq!(hook_says(&place, "bhyve.zone"), "one\n");
    refuses(&place, &["@root", "lx", "@one"], "the brand is bhyve or kvm, and not 'lx'");
    refuses(&place, &["@none", "bhyve", "@one"], "@none is no folder");
    refuses(&place, &["@root"], "write zone-install ROOT bhyve|kvm BINARY");
    symlink("nowhere", place.path().join("root/startvm.zone")).unwrap();
    installs(&place, &["@root", "kvm", "@one"]);
    assert_eq!(hook_says(&place, "startvm.zone"), "one\n");
}

/// The service's method with a zvmm that does as told, and what it told the restarter. `stop` is sent to both processes, as
/// the restarter does, once zvmm runs.
fn method(zvmm: &str, stop: bool) -> (Option<i32>, String) {
    let place = TempDir::new().unwrap();
    let at = |name: &str| place.path().join(name);
    script(&at("zvmm"), zvmm);
    script(&at("svcadm"), &format!("echo \"$@\" >>{}", at("told").display()));
    fs::write(at("include"), "smf_clear_env() { unset SMF_FMRI; }\nSMF_EXIT_ERR_CONFIG=96\n").unwrap();
    fs::write(at("web.json"), "{}").unwrap();
    let path = format!("{}:{}", place.path().display(), std::env::var("PATH").unwrap());
    let mut command = Command::new("sh");
    command
        .arg(brand("smf/zvmm"))
        .arg(at("web.json"))
        .env("PATH", path)
        .env("SMF_FMRI", "svc:/application/zvmm:web")
        .env("SMF_INCLUDE", at("include"))
        .env("ZVMM", at("zvmm"))
        .env("PLACE", place.path());
    let mut shell = command.stdin(Stdio::null()).spawn().unwrap();
    if stop {
        let end = Instant::now() + Duration::from_secs(60);
        let pid = loop {
            if let Ok(pid) = fs::read_to_string(at("pid"))
                && pid.ends_with('\n')
            {
                break pid;
            }
            assert!(Instant::now() < end, "zvmm does not start");
            std::thread::sleep(Duration::from_millis(5));
        };
        let kill = Command::new("kill").arg("-TERM").arg(shell.id().to_string()).arg(pid.trim()).status().unwrap();
        assert!(kill.success());
    }
    let status = shell.wait().unwrap().code();
    (status, fs::read_to_string(at("told")).unwrap_or_default())
}

#[test]
fn the_service_tells_its_restarter_what_the_end_of_a_guest_means() {
    let disable = "disable -t svc:/application/zvmm:web\n".to_owned();
    let maintenance = "mark maintenance svc:/application/zvmm:web\n".to_owned();
    let arguments = "[ \"$1 $2 $3\" = \"run --config $PLACE/web.json\" ] || exit 9";
    assert_eq!(method(&format!("{arguments}\nexit 0"), false), (Some(0), disable));
    for status in [2, 3] {
        assert_eq!(method(&format!("{arguments}\nexit {status}"), false), (Some(96), maintenance.clone()));
    }
    assert_eq!(method(&format!("{arguments}\nexit 4"), false), (Some(4), String::new()), "it is started again");
}

#[test]
fn a_guest_that_is_stopped_is_waited_for_and_not_disabled() {
    // A guest that needs a moment for its end, as one that writes its disks does.
    let zvmm = "trap 'sleep 0.2; exit 0' TERM\necho $$ >$PLACE/pid\nwhile :; do sleep 0.05; done";
    assert_eq!(method(zvmm, true), (Some(0), String::new()));
}

#[test]
fn the_manifest_and_the_package_name_what_is_there_and_agree() {
    let manifest = fs::read_to_string(brand("smf/zvmm.xml")).unwrap();
    for part in [
        "exec=\"/lib/svc/method/zvmm /etc/zvmm/%i.json\"",
        "name=\"duration\" type=\"astring\" value=\"child\"",
        "exec=\":kill -TERM\" timeout_seconds=\"180\"",
    ] {
        assert!(manifest.contains(part), "{part}");
    }
    // In the order of the bundle's document type; xmllint --dtdvalid says more, where it and that are at hand.
    let order = ["<dependency ", "<method_context ", "<exec_method ", "<property_group ", "<stability ", "<template>"];
    let places = order.map(|element| manifest.find(element).unwrap_or_else(|| panic!("{element}")));
    assert!(places.is_sorted(), "{places:?}");
    for element in ["service_bundle", "service", "dependency", "method_context", "property_group", "template"] {
        let (opened, closed) =
            (manifest.matches(&format!("<{element} ")).count(), manifest.matches(&format!("</{element}>")).count());
        assert_eq!(opened + manifest.matches(&format!("<{element}>")).count(), closed, "{element}");
    }

    let package = fs::read_to_string(brand("ips/zvmm.p5m")).unwrap();
    let value = |line: &str, key: &str| {
        let word =
            line.split_whitespace().find_map(|word| word.strip_prefix(key)?.strip_prefix('=').map(str::to_owned));
        word.unwrap_or_else(|| panic!("no {key}: {line}"))
    };
    let mut installed = Vec::new();
    for line in package.lines().filter(|line| line.starts_with("file ")) {
        let from = line.split_whitespace().nth(1).unwrap();
        if let Some(source) = from.strip_prefix("source/") {
            assert!(paths::workspace().join(source).is_file(), "{source}");
        } else {
            assert_eq!(from, "zvmm");
        }
        for key in ["owner", "group", "mode"] {
            value(line, key);
        }
        installed.push(value(line, "path"));
    }
    for path in [
        "usr/bin/zvmm",
        "lib/svc/method/zvmm",
        "lib/svc/manifest/application/zvmm.xml",
        "usr/share/doc/zvmm/smartos.md",
    ] {
        assert!(installed.iter().any(|other| other == path), "{path}");
    }
    assert!(package.contains(concat!("@", env!("CARGO_PKG_VERSION"), "\n")), "another version than this one");
}
