//! The configuration as JSON: whatever is accepted reads back as itself, and a refusal names its place.

use std::path::Path;

use zvmm::config::{ConfigError, VmConfig};

const FILE: &str = "vm.json";

/// Reads the input as a configuration file.
///
/// # Panics
/// On a finding.
pub fn run(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    match VmConfig::from_json(Path::new(FILE), text) {
        Ok(config) => {
            let printed = config.to_json();
            let again = VmConfig::from_json(Path::new(FILE), &printed);
            assert_eq!(again.as_ref().ok(), Some(&config), "{again:?} from {printed}");
            for problem in config.problems() {
                judge_message(&problem);
            }
        }
        Err(error) => {
            let line = judge_message(&error);
            assert!(line.starts_with("vm.json:"), "'{line}' names no place");
        }
    }
}

/// A message is one line that does nothing to a terminal, and says something.
fn judge_message(error: &ConfigError) -> String {
    let line = zvmm::fuzzing::said(error);
    assert!(!line.contains(char::is_control), "{line:?} is no plain line");
    assert!(!line.trim().is_empty());
    line
}

/// The text, and what becomes of it.
#[must_use]
pub fn explain(data: &[u8]) -> String {
    format!("configuration file: {}", String::from_utf8_lossy(data))
}
