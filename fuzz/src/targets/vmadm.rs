//! What vmadm says of a guest: whatever is a document becomes a command line that the front end of its brand reads as the same
//! machine, or there is one plain line that names the property.
//!
//! An input that begins with a brace is a document. Any other changes a good one, since few inputs would be documents: its
//! first line has a `k` in it for the one of the kvm brand, each further line is `POINTER VALUE`. The pointer is JSON's (RFC
//! 6901, without its escapes); `-` in it adds to a list a copy of what it ends with. A value that is no JSON is text.

use std::path::Path;

use serde_json::Value;
use zvmm::config::bhyve::{self, MOST_ARGUMENTS, Request};
use zvmm::config::qemu;
use zvmm::config::vmadm::{Argv, Document};

use crate::judge::{self, FILE};
use crate::stats;

const BHYVE: &str = include_str!("../../seeds/vmadm/bhyve.json");
const KVM: &str = include_str!("../../seeds/vmadm/kvm.json");

/// The properties that a refusal may be about.
const KEYS: [&str; 23] = [
    "bhyve_extra_opts",
    "boot",
    "bootrom",
    "brand",
    "com1",
    "com2",
    "cpu_type",
    "disks",
    "hostbridge",
    "nics",
    "pci_devices",
    "platform_buildstamp",
    "qemu_extra_opts",
    "qemu_opts",
    "ram",
    "spice_port",
    "uuid",
    "vcpus",
    "vga",
    "virtio1",
    "vnc_password",
    "vnc_port",
    "zonedid",
];

/// Reads the input as a document.
///
/// # Panics
/// On a finding.
pub fn run(data: &[u8]) {
    let Some(text) = text(data) else { return };
    stats::operations(1);
    let document = match Document::from_json(Path::new(FILE), &text) {
        Ok(document) => document,
        Err(error) => {
            let line = judge::message(&error);
            assert!(line.starts_with("vm.json:"), "'{line}' names no place");
            return;
        }
    };
    match document.argv() {
        Ok(argv) => judge_argv(&argv),
        Err(error) => judge_refusal(&judge::message(&error)),
    }
}

/// A command line is one that a process can have, and the front end makes of it what is shown.
fn judge_argv(argv: &Argv) {
    let args: Vec<String> = argv.args().map(str::to_owned).collect();
    assert!(!args.iter().any(|word| word.contains('\0')), "{args:?}");
    let shown = argv.to_string();
    assert!(!shown.replace('\n', "").contains(char::is_control), "{shown:?} does something to a terminal");
    let direct = match argv.program() {
        "bhyve" => {
            assert!(args.len() < MOST_ARGUMENTS, "{args:?}");
            assert!(args.last().is_some_and(|name| name.starts_with("SYSbhyve-")), "{args:?}");
            match bhyve::translate(&args) {
                Ok(Request::Run(translation)) => Some(translation),
                Ok(Request::Dump(_) | Request::Help) | Err(_) => None,
            }
        }
        _ => qemu::translate(&args).ok(),
    };
    match argv.translate() {
        Ok(translation) => {
            judge::translation(&translation);
            assert_eq!(Some(translation), direct);
        }
        Err(error) => {
            judge_refusal(&judge::message(&error));
            assert_eq!(direct, None, "{error}");
        }
    }
}

/// A refusal begins with a property, but where all of them together are too many.
fn judge_refusal(line: &str) {
    let is_named = |key: &str| line.strip_prefix(key).is_some_and(|rest| rest.starts_with([':', '[']));
    let is_too_long = line.contains(" arguments are more than the 100 that a zone's boot hook passes");
    assert!(is_too_long || KEYS.into_iter().any(is_named), "'{line}' names no property");
}

/// The document that the input means.
fn text(data: &[u8]) -> Option<String> {
    let text = std::str::from_utf8(data).ok()?;
    if text.starts_with('{') {
        return Some(text.to_owned());
    }
    let mut lines = text.lines();
    let good = if lines.next()?.contains('k') { KVM } else { BHYVE };
    let mut document: Value = serde_json::from_str(good).expect("a good document");
    for (pointer, value) in lines.filter_map(|line| line.split_once(' ')) {
        if let Some(place) = place(&mut document, pointer) {
            *place = serde_json::from_str(value).unwrap_or_else(|_| value.into());
        }
    }
    Some(document.to_string())
}

/// What a pointer leads to, made where there is nothing yet.
fn place<'a>(document: &'a mut Value, pointer: &str) -> Option<&'a mut Value> {
    let mut place = document;
    for name in pointer.strip_prefix('/')?.split('/') {
        place = match place {
            Value::Object(object) => object.entry(name).or_insert(Value::Null),
            Value::Array(list) => {
                if name == "-" {
                    list.push(list.last().cloned().unwrap_or_default());
                    list.last_mut()?
                } else {
                    list.get_mut(name.parse::<usize>().ok()?)?
                }
            }
            _ => return None,
        };
    }
    Some(place)
}

/// The document, and what it comes to.
#[must_use]
pub fn explain(data: &[u8]) -> String {
    let Some(text) = text(data) else { return "no text".to_owned() };
    let document = Document::from_json(Path::new(FILE), &text);
    let argv = match document.and_then(|document| document.argv()) {
        Ok(argv) => argv.to_string(),
        Err(error) => zvmm::fuzzing::said(error),
    };
    format!("document: {text}\ncommand line: {argv}")
}
