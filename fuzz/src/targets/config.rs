//! The configuration, as JSON and as arguments: whatever is accepted reads back as itself once it is printed, and a
//! refusal is one plain line that names its place.
//!
//! An input that begins with a brace is a file; any other is a command line, an argument a line.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt as _;
use std::path::Path;

use zvmm::config::VmConfig;

use crate::judge::{FILE, configuration, message};

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
        Ok(config) => configuration(&config),
        Err(error) => {
            let line = message(&error);
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
            message(&error);
            return;
        }
    };
    // Files of this machine are no input.
    guest.config = None;
    match guest.into_config() {
        Ok(config) => configuration(&config),
        Err(error) => {
            let line = message(&error);
            assert!(line.starts_with("--"), "'{line}' names no option");
        }
    }
}

/// The text.
#[must_use]
pub fn explain(data: &[u8]) -> String {
    match data.first() {
        Some(b'{') => format!("configuration file: {}", String::from_utf8_lossy(data)),
        _ => format!("arguments: {:?}", words(data)),
    }
}
