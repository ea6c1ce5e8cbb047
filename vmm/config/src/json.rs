//! The configuration as one JSON file.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use serde::de::DeserializeOwned;

use super::host::system_text;
use super::{ConfigError, VmConfig, nearest};

/// A configuration is far smaller; the limit keeps a wrong path (a disk image, `/dev/zero`) from being read whole.
const MAX_FILE_MIB: u64 = 1;

impl VmConfig {
    /// Reads a JSON file. Keys that are missing keep their defaults; unknown and doubled keys are errors.
    pub fn read_json(file: &Path) -> Result<Self, ConfigError> {
        Self::from_json(file, &read_text(file, MAX_FILE_MIB)?)
    }

    /// Reads JSON text; `file` only appears in errors.
    pub fn from_json(file: &Path, text: &str) -> Result<Self, ConfigError> {
        let mut config: Self = parse(file, text)?;
        config.name_devices();
        Ok(config)
    }

    /// The configuration as JSON text that [`VmConfig::from_json`] reads back as the same configuration.
    pub fn to_json(&self) -> String {
        serde_json::to_string_pretty(self).unwrap_or_else(|error| format!("{{\"error\": \"{error}\"}}"))
    }
}

/// Reads a file of text that has no more than so many MiB.
pub(super) fn read_text(file: &Path, most_mib: u64) -> Result<String, ConfigError> {
    let unreadable = |reason: String| ConfigError::File { file: file.into(), reason };
    let most_bytes = most_mib << 20;
    let mut text = String::new();
    let read = File::open(file).and_then(|open| open.take(most_bytes + 1).read_to_string(&mut text));
    read.map_err(|error| unreadable(system_text(&error)))?;
    if text.len() as u64 > most_bytes {
        return Err(unreadable(format!("it is longer than {most_mib} MiB")));
    }
    Ok(text)
}

/// Reads text that is one JSON value and nothing more; `file` only appears in errors.
pub(super) fn parse<T: DeserializeOwned>(file: &Path, text: &str) -> Result<T, ConfigError> {
    let mut json = serde_json::Deserializer::from_str(text);
    let value =
        serde_path_to_error::deserialize(&mut json).map_err(|error| locate(file, &path_of(&error), error.inner()))?;
    json.end().map_err(|error| locate(file, ".", &error))?;
    Ok(value)
}

/// The path of the key; where the text breaks off before the key is known, of what it is in.
fn path_of(error: &serde_path_to_error::Error<serde_json::Error>) -> String {
    let path = error.path().to_string();
    match path.strip_suffix('?') {
        None => path,
        Some("") => ".".to_owned(),
        Some(known) => known.trim_end_matches('.').to_owned(),
    }
}

fn locate(file: &Path, path: &str, error: &serde_json::Error) -> ConfigError {
    let text = error.to_string();
    let problem = match text.rfind(" at line ") {
        Some(end) => &text[..end],
        None => &text,
    };
    ConfigError::Json {
        file: file.into(),
        line: error.line(),
        column: error.column(),
        path: path.to_owned(),
        problem: reword(problem),
    }
}

/// Turns serde's "unknown field `slto`, expected one of `path`, `slot`" into a sentence with the nearest valid name.
pub fn reword(problem: &str) -> String {
    let what = if problem.starts_with("unknown field ") {
        "key"
    } else if problem.starts_with("unknown variant ") {
        "value"
    } else {
        return problem.replace('`', "'");
    };
    let mut quoted = problem.split('`').skip(1).step_by(2);
    let wrong = quoted.next().unwrap_or_default();
    nearest::unknown(what, wrong, quoted)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{DiskConfig, Profile, SerialBackend};

    fn read(text: &str) -> Result<VmConfig, String> {
        VmConfig::from_json(Path::new("vm.json"), text).map_err(|error| error.to_string())
    }

    #[test]
    fn an_empty_object_is_the_default_configuration() {
        assert_eq!(read("{}"), Ok(VmConfig::default()));
    }

    #[test]
    fn every_part_of_a_full_file_is_read() {
        let config = read(
            r#"{ "name": "web", "profile": "micro", "cpus": {"count": 2, "model": "host,-avx512f",
                "topology": {"cores": 2}, "pin": [0, 1]},
                "memory": {"size": "1G", "huge_pages": "2M", "numa_node": 0, "low_split": "512M"},
                "boot": {"kernel": "vmlinuz", "cmdline": "console=ttyS0"},
                "disks": [{"path": "root.img", "slot": 4}, {"path": "b", "slot": "5.1", "read_only": true}],
                "nets": [{"tap": "tap0", "mac": "52:54:00:12:34:56"}],
                "serial": {"com1": "stdio", "com3": "socket:/run/c"}, "on_reset": "exit", "log": ["warn", "a=debug"] }"#,
        )
        .unwrap();
        assert_eq!((config.name.as_str(), config.profile), ("web", Profile::Micro));
        assert_eq!((config.cpus.topology().cores, config.memory.size_bytes), (2, 1 << 30));
        assert_eq!(
            config.disks[0],
            DiskConfig {
                id: "disk0".into(),
                slot: "4".parse().ok(),
                serial: Some(crate::devices::default_serial("", Path::new("root.img"), 0)),
                ..DiskConfig::new("root.img")
            }
        );
        assert_eq!(config.nets[0].id, "net0");
        assert_eq!(config.serials[2], Some(SerialBackend::Socket("/run/c".into())));
        assert_eq!(config.log.len(), 2);
    }

    #[test]
    fn what_is_written_reads_back_as_the_same_configuration() {
        let config = read(
            r#"{"disks": [{"path": "a"}], "rng": {}, "serial": {"com2": "pty"}, "memory": {"size": 12345},
                "uuid": "6e2b1f0a-2c55-4b63-9a53-0d6f3a1f7c11", "debug_port": {"backend": "null"}}"#,
        )
        .unwrap();
        assert_eq!(read(&config.to_json()), Ok(config));
    }

    #[test]
    fn every_profile_is_read_and_written_by_its_name() {
        for (name, profile) in [("i440fx", Profile::I440fx), ("bhyve", Profile::Bhyve), ("micro", Profile::Micro)] {
            let config = read(&format!(r#"{{"profile": "{name}"}}"#)).unwrap();
            assert_eq!(config, VmConfig { profile, ..VmConfig::default() });
            assert!(config.to_json().contains(&format!(r#""profile": "{name}""#)));
            assert_eq!(read(&config.to_json()), Ok(config));
        }
    }

    #[test]
    fn an_unknown_key_is_named_with_its_place_and_the_nearest_valid_one() {
        let error = read("{\n \"disks\": [\n  {\"path\": \"a\", \"slto\": 4}]}").unwrap_err();
        assert_eq!(error, "vm.json:3:22: disks[0].slto: unknown key 'slto'; did you mean 'slot'?");
        let error = read(r#"{"memroy": {}}"#).unwrap_err();
        assert_eq!(error, "vm.json:1:9: memroy: unknown key 'memroy'; did you mean 'memory'?");
    }

    #[test]
    fn a_wrong_value_is_named_with_the_path_of_its_key() {
        for (text, message) in [
            (r#"{"profile": "i440"}"#, "profile: unknown value 'i440'; did you mean 'i440fx'?"),
            (r#"{"profile": "Bhyve"}"#, "profile: unknown value 'Bhyve'; did you mean 'bhyve'?"),
            (r#"{"cpus": {"count": 255000}}"#, "cpus.count: 255000 vCPUs are not possible; a guest has 1 to 254"),
            (r#"{"cpus": {"count": -1}}"#, "cpus.count: invalid value: integer '-1', expected u64"),
            (r#"{"memory": {"size": "lots"}}"#, "memory.size: 'lots' is not a size"),
            (
                r#"{"memory": {"size": 1.5}}"#,
                "memory.size: invalid type: floating point '1.5', expected a size such as",
            ),
            (r#"{"nets": [{"tap": "t", "mac": "52"}]}"#, "nets[0].mac: '52' is not a MAC address"),
            (r#"{"nets": [{"tap": 5, "mac": "52:54:00:12:34:56"}]}"#, "nets[0].tap: invalid type: integer '5'"),
            (r#"{"nets": [{"dhcp": {"ip": "10.0.0.5/8"}}]}"#, "nets[0].dhcp.ip: '10.0.0.5/8' is not an IPv4 address"),
            (r#"{"nets": [{"dhcp": {"ip": "10.0.0.5"}}]}"#, "nets[0].dhcp: missing field 'netmask'"),
            (
                r#"{"nets": [{"dhcp": {"gateway": "1"}}]}"#,
                "nets[0].dhcp.gateway: unknown key 'gateway'; did you mean 'gateway_ip'",
            ),
            (r#"{"nets": [{"dhcp": {"dns_ips": ["x"]}}]}"#, "nets[0].dhcp.dns_ips[0]: 'x' is not an IPv4 address"),
            (r#"{"nets": [{"dhcp": {"lease_time": -1}}]}"#, "nets[0].dhcp.lease_time: invalid value: integer '-1'"),
            (r#"{"serial": {"com5": "stdio"}}"#, "serial.com5: unknown key 'com5'; did you mean 'com"),
            (r#"{"serial": {"com1": "ttyS0"}}"#, "serial.com1: 'ttyS0' is not a serial back end"),
            (r#"{"name": "a", "name": "b"}"#, "duplicate field 'name'"),
            (r#"{"name": "a""#, "EOF while parsing an object"),
            ("{} {}", "trailing characters"),
            ("", "EOF while parsing a value"),
        ] {
            let error = read(text).unwrap_err();
            assert!(error.starts_with("vm.json:1:") && error.contains(message), "{text}: {error}");
        }
    }

    #[test]
    fn a_file_that_cannot_be_read_is_named() {
        let error = VmConfig::read_json(Path::new("/nonexistent/vm.json")).unwrap_err().to_string();
        assert_eq!(error, "/nonexistent/vm.json: cannot read the configuration: No such file or directory");
        let error = VmConfig::read_json(Path::new("/dev/zero")).unwrap_err().to_string();
        assert_eq!(error, "/dev/zero: cannot read the configuration: it is longer than 1 MiB");
    }
}
