//! The arguments of commands that take some.

use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer};
use serde_json::{Map, Value};

use super::Order;
use crate::config::nearest;
use crate::control::{DiskResize, LinkChange};

/// Arguments of `block_resize`, as qemu has them; in qemu the size is never left out.
#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct BlockResize {
    #[serde(default, deserialize_with = "given")]
    device: Option<String>,
    #[serde(default, deserialize_with = "given")]
    node_name: Option<String>,
    #[serde(default, deserialize_with = "given")]
    size: Option<u64>,
}

/// Arguments of `set_link`, as qemu has them.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct SetLink {
    #[serde(default, deserialize_with = "given")]
    name: Option<String>,
    #[serde(default, deserialize_with = "given")]
    up: Option<bool>,
}

/// Arguments of `human-monitor-command`. `cpu-index` only matters to lines that are not known here.
#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct HumanMonitorCommand {
    #[serde(default, deserialize_with = "given")]
    command_line: Option<String>,
    #[serde(default, deserialize_with = "given")]
    #[expect(dead_code, reason = "known, and without effect here")]
    cpu_index: Option<u64>,
}

/// Arguments of `set_password`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct SetPassword {
    #[serde(default, deserialize_with = "given")]
    protocol: Option<String>,
    #[serde(default, deserialize_with = "given")]
    password: Option<String>,
    #[serde(default, deserialize_with = "given")]
    #[expect(dead_code, reason = "known, and without effect here")]
    connected: Option<String>,
}

/// Arguments of `screendump`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Screendump {
    #[serde(default, deserialize_with = "given")]
    filename: Option<String>,
}

/// Arguments of `change`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Change {
    #[serde(default, deserialize_with = "given")]
    device: Option<String>,
    #[serde(default, deserialize_with = "given")]
    target: Option<String>,
    #[serde(default, deserialize_with = "given")]
    #[expect(dead_code, reason = "known, and without effect here")]
    arg: Option<String>,
}

/// An argument that may be left out, and may not be `null`.
fn given<'de, D: Deserializer<'de>, T: Deserialize<'de>>(deserializer: D) -> Result<Option<T>, D::Error> {
    T::deserialize(deserializer).map(Some)
}

/// Reads `block_resize`'s: there is one kind of node, so a node's name is a device's.
pub fn block_resize(arguments: Map<String, Value>) -> Result<Order, String> {
    let BlockResize { device, node_name, size } = read("block_resize", arguments)?;
    let disk = match (device, node_name) {
        (Some(disk), None) | (None, Some(disk)) => disk,
        (None, None) => return Err("'block_resize' needs the parameter 'device'".to_owned()),
        (Some(_), Some(_)) => return Err("'block_resize' takes 'device' or 'node-name', not both".to_owned()),
    };
    Ok(Order::ResizeDisk(DiskResize { disk, size_bytes: size }))
}

/// Reads `set_link`'s.
pub fn set_link(arguments: Map<String, Value>) -> Result<Order, String> {
    let SetLink { name, up } = read("set_link", arguments)?;
    let (name, up) = (needed("set_link", "name", name)?, needed("set_link", "up", up)?);
    Ok(Order::SetLink(LinkChange { name, up }))
}

/// Reads `human-monitor-command`'s.
pub fn human_monitor_command(arguments: Map<String, Value>) -> Result<Order, String> {
    let HumanMonitorCommand { command_line, .. } = read("human-monitor-command", arguments)?;
    needed("human-monitor-command", "command-line", command_line).map(Order::Monitor)
}

/// Reads `set_password`'s. The password is not kept: there is nobody to ask for it.
pub fn set_password(arguments: Map<String, Value>) -> Result<Order, String> {
    let SetPassword { protocol, password, .. } = read("set_password", arguments)?;
    needed("set_password", "password", password)?;
    match &*needed("set_password", "protocol", protocol)? {
        "vnc" | "spice" => Ok(Order::NoDisplay("set_password")),
        other => Err(format!("'set_password': protocol: '{other}' is neither 'vnc' nor 'spice'")),
    }
}

/// Reads `screendump`'s.
pub fn screendump(arguments: Map<String, Value>) -> Result<Order, String> {
    let Screendump { filename } = read("screendump", arguments)?;
    needed("screendump", "filename", filename).map(|_| Order::NoDisplay("screendump"))
}

/// Reads `change`'s: about the VNC server (its password, mostly) or a drive's medium.
pub fn change(arguments: Map<String, Value>) -> Result<Order, String> {
    let Change { device, target, .. } = read("change", arguments)?;
    needed("change", "target", target)?;
    let device = needed("change", "device", device)?;
    Ok(if device == "vnc" { Order::NoDisplay("change") } else { Order::ChangeMedium(device) })
}

fn needed<T>(command: &str, name: &str, value: Option<T>) -> Result<T, String> {
    value.ok_or_else(|| format!("'{command}' needs the parameter '{name}'"))
}

/// Reads the arguments of a command; the error is a line for the client, and names the argument.
fn read<T: DeserializeOwned>(command: &str, arguments: Map<String, Value>) -> Result<T, String> {
    serde_path_to_error::deserialize(Value::Object(arguments)).map_err(|error| {
        let problem = error.inner().to_string();
        let mut quoted = problem.split('`').skip(1).step_by(2);
        let path = error.path();
        match quoted.next() {
            Some(wrong) if problem.starts_with("unknown field ") => unknown(command, wrong, quoted),
            _ => format!("'{command}': {path}: {}", problem.replace('`', "'")),
        }
    })
}

/// What is said about an argument that a command does not take.
pub fn unknown<'a>(command: &str, wrong: &str, valid: impl Iterator<Item = &'a str>) -> String {
    let refused = format!("'{command}' has no parameter '{wrong}'");
    match nearest::nearest(wrong, &valid.collect::<Vec<_>>()) {
        Some(name) => format!("{refused}; did you mean '{name}'?"),
        None => refused,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(arguments: Value) -> Result<(String, Option<u64>), String> {
        let Value::Object(arguments) = arguments else { panic!("{arguments}") };
        match block_resize(arguments)? {
            Order::ResizeDisk(DiskResize { disk, size_bytes }) => Ok((disk, size_bytes)),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_disk_is_named_in_either_way_and_its_size_may_be_left_out() {
        assert_eq!(read(json!({"device": "disk0", "size": 1 << 30})), Ok(("disk0".into(), Some(1 << 30))));
        assert_eq!(read(json!({"size": u64::MAX, "node-name": "d"})), Ok(("d".into(), Some(u64::MAX))));
        assert_eq!(read(json!({"device": "disk0"})), Ok(("disk0".into(), None)));
    }

    #[test]
    fn every_wrong_argument_is_refused_by_its_name() {
        for (arguments, problem) in [
            (json!({}), "'block_resize' needs the parameter 'device'"),
            (json!({"size": 512}), "'block_resize' needs the parameter 'device'"),
            (json!({"device": "a", "node-name": "a"}), "'block_resize' takes 'device' or 'node-name', not both"),
            (json!({"device": "a", "siez": 1}), "'block_resize' has no parameter 'siez'; did you mean 'size'?"),
            (
                json!({"device": "a", "node_name": 1}),
                "'block_resize' has no parameter 'node_name'; did you mean 'node-name'?",
            ),
            (json!({"device": "a", "x": []}), "'block_resize' has no parameter 'x'"),
            (json!({"device": 1}), "'block_resize': device: invalid type: integer '1', expected a string"),
            (json!({"device": null}), "'block_resize': device: invalid type: null, expected a string"),
            (json!({"device": "a", "size": null}), "'block_resize': size: invalid type: null, expected u64"),
            (json!({"device": "a", "size": "1"}), "'block_resize': size: invalid type: string \"1\", expected u64"),
            (json!({"device": "a", "size": -1}), "'block_resize': size: invalid value: integer '-1', expected u64"),
            (
                json!({"device": "a", "size": 1.0}),
                "'block_resize': size: invalid type: floating point '1.0', expected u64",
            ),
        ] {
            assert_eq!(read(arguments.clone()), Err(problem.to_owned()), "{arguments}");
        }
    }

    #[test]
    fn a_link_needs_its_name_and_its_state() {
        let read = |arguments: Value| {
            let Value::Object(arguments) = arguments else { panic!("{arguments}") };
            set_link(arguments)
        };
        for up in [false, true] {
            let change = LinkChange { name: "net0".into(), up };
            assert_eq!(read(json!({"up": up, "name": "net0"})), Ok(Order::SetLink(change)));
        }
        for (arguments, problem) in [
            (json!({}), "'set_link' needs the parameter 'name'"),
            (json!({"up": true}), "'set_link' needs the parameter 'name'"),
            (json!({"name": "net0"}), "'set_link' needs the parameter 'up'"),
            (json!({"name": null, "up": true}), "'set_link': name: invalid type: null, expected a string"),
            (json!({"name": ["net0"], "up": true}), "'set_link': name: invalid type: sequence, expected a string"),
            (json!({"name": "net0", "up": "on"}), "'set_link': up: invalid type: string \"on\", expected a boolean"),
            (json!({"name": "net0", "up": 1}), "'set_link': up: invalid type: integer '1', expected a boolean"),
            (json!({"name": "net0", "up": null}), "'set_link': up: invalid type: null, expected a boolean"),
            (json!({"name": "net0", "upp": true}), "'set_link' has no parameter 'upp'; did you mean 'up'?"),
            (json!({"id": "net0", "up": true}), "'set_link' has no parameter 'id'"),
        ] {
            assert_eq!(read(arguments.clone()), Err(problem.to_owned()), "{arguments}");
        }
    }
}
