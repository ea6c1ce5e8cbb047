//! The configuration as JSON: whatever is accepted reads back as itself, and a refusal names its place.

use std::path::Path;

use zvmm::config::VmConfig;

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
                assert!(!problem.to_string().is_empty());
            }
        }
        Err(error) => {
            let line = error.to_string();
            assert!(line.starts_with("vm.json:"), "'{line}' names no place");
            assert!(!line.contains('\n'), "'{line}' has more than one line");
        }
    }
}

/// The text, and what becomes of it.
#[must_use]
pub fn explain(data: &[u8]) -> String {
    format!("configuration file: {}", String::from_utf8_lossy(data))
}
