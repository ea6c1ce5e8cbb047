//! The configuration, as JSON and as arguments: whatever is accepted reads back as itself once it is printed, and a
//! refusal is one plain line that names its place.
//!
//! An input that begins with a brace is a file; any other is a command line, an argument a line.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt as _;
use std::path::Path;

use zvmm::config::{ConfigError, VmConfig};

const FILE: &str = "vm.json";

/// Reads the input as a configuration.
///
/// # Panics
/// On a finding.
pub fn run(data: &[u8]) {
    match data.first() {
        Some(b'{') => {
            let Ok(text) = std::str::from_utf8(data) else { return };
            file(text);
        }
        Some(_) => arguments(data),
        None => {}
    }
}

fn file(text: &str) {
    match VmConfig::from_json(Path::new(FILE), text) {
        Ok(config) => judge(&config),
        Err(error) => {
            let line = judge_message(&error);
            assert!(line.starts_with("vm.json:"), "'{line}' names no place");
        }
    }
}

fn words(data: &[u8]) -> Vec<OsString> {
    let typed = data.split(|byte| *byte == b'\n').map(|word| OsString::from_vec(word.to_vec()));
    ["zvmm", "run"].map(OsString::from).into_iter().chain(typed).collect()
}

fn arguments(data: &[u8]) {
    let mut guest = match zvmm::fuzzing::guest_arguments(words(data)) {
        Ok(Some(guest)) => guest,
        Ok(None) => return,
        Err(error) => {
            judge_message(&error);
            return;
        }
    };
    // Files of this machine are no input.
    guest.config = None;
    match guest.into_config() {
        Ok(config) => judge(&config),
        Err(error) => {
            let line = judge_message(&error);
            assert!(line.starts_with("--"), "'{line}' names no option");
        }
    }
}

/// A configuration that was accepted reads back as itself, and everything that is said about it is well said.
fn judge(config: &VmConfig) {
    // JSON is text: a path that is not can be typed, but not printed.
    let paths = [Some(&config.boot.kernel), config.boot.initrd.as_ref(), config.qmp.as_ref()];
    let disks = config.disks.iter().map(|disk| &disk.path);
    if paths.into_iter().flatten().chain(disks).all(|path| path.to_str().is_some()) {
        let printed = config.to_json();
        let again = VmConfig::from_json(Path::new(FILE), &printed);
        assert_eq!(again.as_ref().ok(), Some(config), "{again:?} from {printed}");
    }
    for problem in config.problems() {
        judge_message(&problem);
    }
    assert_eq!(config.check().is_ok(), config.problems().is_empty());
    if config.check().is_ok() {
        let topology = config.cpus.topology();
        assert_eq!(
            u16::from(topology.sockets) * u16::from(topology.cores) * u16::from(topology.threads),
            u16::from(config.cpus.count)
        );
        let _ = (config.cpu_model(), config.com_ports(), config.has_ps2(), config.memory.end_of_ram());
        config.slot_plan().expect("a good configuration has a place for every device");
    }
}

/// A message is one line that does nothing to a terminal, and says something.
fn judge_message(error: &ConfigError) -> String {
    let line = zvmm::fuzzing::said(error);
    assert!(!line.contains(char::is_control), "{line:?} is no plain line");
    assert!(!line.trim().is_empty());
    line
}

/// The text.
#[must_use]
pub fn explain(data: &[u8]) -> String {
    match data.first() {
        Some(b'{') => format!("configuration file: {}", String::from_utf8_lossy(data)),
        _ => format!("arguments: {:?}", words(data)),
    }
}
