//! Nothing is forgotten: options, keys of options and JSON keys are read off the program itself, and each must be in
//! the tables of `values.rs`.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use serde_json::{Map, Value, json};
use zvmm::config::VmConfig;

use crate::process::{Place, refused, zvmm};
use crate::values::{KEYS, OPTIONS};

/// A word near to no valid one, so that all of them are listed.
const NOBODY: &str = "xyzzy";

/// The names that an answer to [`NOBODY`] lists, if it is one.
fn listed(answer: &str) -> Option<Vec<String>> {
    let (_, names) = answer.trim_end().split_once(&format!("unknown key '{NOBODY}'; the valid ones are "))?;
    Some(names.split(", ").map(str::to_owned).collect())
}

/// Every option of a command, from its help.
fn options_of(command: &str) -> BTreeSet<String> {
    let help = zvmm(&[command, "--help"]).output;
    let words = help.lines().filter_map(|line| {
        let line = line.trim_start();
        let line = line.strip_prefix("-h, ").or(line.strip_prefix("-V, ")).unwrap_or(line);
        line.starts_with("--").then(|| line.split([' ', '=', '[']).next().unwrap_or_default().to_owned())
    });
    words.collect()
}

/// Options that are lists: each time adds to what was given before.
const LISTS: [&str; 6] = ["--disk", "--limit-group", "--net", "--serial", "--smbios", "--log"];

/// Every option and every key inside one.
fn options_and_keys() -> BTreeSet<String> {
    let mut all = BTreeSet::from(["--version".to_owned()]);
    for option in options_of("run").union(&options_of("check-config")) {
        match listed(&zvmm(&["check-config", &format!("{option}=null,{NOBODY}")]).errors)
            .or_else(|| listed(&zvmm(&["check-config", &format!("{option}={NOBODY}")]).errors))
        {
            Some(keys) => all.extend(keys.iter().map(|key| format!("{option} {key}"))),
            None => drop(all.insert(option.clone())),
        }
    }
    all
}

#[test]
fn every_option_and_every_key_in_one_has_a_wrong_value_in_the_table() {
    let covered: BTreeSet<String> = OPTIONS.iter().map(|(name, ..)| (*name).to_owned()).collect();
    let all = options_and_keys();
    assert!(all.len() > 50 && all.contains("--disk slot") && all.contains("--rng slot"), "{all:?}");
    let forgotten: Vec<_> = all.difference(&covered).collect();
    assert!(forgotten.is_empty(), "values.rs has no wrong value for {forgotten:?}");
    let unknown: Vec<_> = covered.difference(&all).collect();
    assert!(unknown.is_empty(), "values.rs has wrong values for {unknown:?}, which do not exist");
}

#[test]
fn every_wrong_option_is_refused_with_its_line() {
    let place = Place::new();
    let run = options_of("run");
    for (name, option, line) in OPTIONS {
        let option = place.fill(option);
        let line = place.fill(line);
        match name.split(' ').next().unwrap_or_default() {
            "--version" => refused(&[&option], &line),
            name if !run.contains(name) => refused(&["check-config", &option], &line),
            "--kernel" => refused(&["run", &option], &line),
            _ => place.refuses(&[&option], &line),
        }
    }
}

#[test]
fn an_option_that_is_no_list_can_be_given_once() {
    let takes_no_value: Vec<&str> =
        OPTIONS.iter().filter(|(_, _, line)| line.ends_with("takes no value")).map(|(name, ..)| *name).collect();
    let mut seen = 0;
    for option in options_of("run").union(&options_of("check-config")) {
        if LISTS.contains(&option.as_str()) || option == "--help" {
            continue;
        }
        let word = if takes_no_value.contains(&option.as_str()) { option.clone() } else { format!("{option}=a") };
        refused(&["check-config", &word, &word], &format!("{option}: it is given more than once"));
        seen += 1;
    }
    assert!(seen > 25, "{seen}");
}

#[test]
fn an_option_that_needs_a_value_says_so() {
    let mut seen = 0;
    for (name, _, line) in OPTIONS {
        let option = name.split(' ').next().unwrap_or_default();
        // The entropy source needs none.
        if !line.ends_with("takes no value") && option != "--rng" {
            refused(&["check-config", option], &format!("{option}: no value is given"));
            seen += 1;
        }
    }
    assert!(seen > 50, "{seen}");
}

/// What is said about JSON text, if it is wrong.
fn problem(text: &str) -> String {
    VmConfig::from_json(Path::new("vm.json"), text).err().map(|error| error.to_string()).unwrap_or_default()
}

/// Every key without keys of its own, such as `disks[].path`.
fn json_keys(path: &str, wrap: &dyn Fn(&str) -> String, all: &mut BTreeSet<String>) {
    for (brackets, text) in [("", format!("{{\"{NOBODY}\": 0}}")), ("[]", format!("[{{\"{NOBODY}\": 0}}]"))] {
        let Some(keys) = listed(&problem(&wrap(&text))) else { continue };
        for key in keys {
            let wrapped = |value: &str| match brackets {
                "" => wrap(&format!("{{\"{key}\": {value}}}")),
                _ => wrap(&format!("[{{\"{key}\": {value}}}]")),
            };
            let dot = if path.is_empty() { "" } else { "." };
            json_keys(&format!("{path}{brackets}{dot}{key}"), &wrapped, all);
        }
        return;
    }
    all.insert(path.to_owned());
}

fn all_json_keys() -> BTreeSet<String> {
    let mut all = BTreeSet::new();
    json_keys("", &str::to_owned, &mut all);
    all
}

/// A configuration that is good but for this value of this key.
fn document(place: &Place, path: &str, value: &str) -> String {
    let needed = |part: &str| match part {
        "disks" => json!({"path": place.text("root.img")}),
        "nets" => json!({"tap": "tap0", "mac": "52:54:00:12:34:56"}),
        "dhcp" => json!({"ip": "10.0.0.5", "netmask": "255.255.255.0"}),
        "limit_groups" => json!({"name": "all", "limits": {}}),
        "jail" => json!({"dir": "/"}),
        "console" | "debug_port" => json!({"backend": "null"}),
        _ => json!({}),
    };
    let mut document = json!({"boot": {"kernel": place.text("vmlinuz")}});
    let mut at = &mut document;
    for part in path.split('.') {
        let (key, is_list) = (part.trim_end_matches("[]"), part.ends_with("[]"));
        let members: &mut Map<String, Value> = at.as_object_mut().expect("an object");
        at = members.entry(key).or_insert_with(|| if is_list { json!([needed(key)]) } else { needed(key) });
        if is_list {
            at = &mut at[0];
        }
    }
    *at = serde_json::from_str(&place.fill(value)).expect("a value");
    document.to_string()
}

#[test]
fn every_json_key_has_a_wrong_value_in_the_table() {
    let covered: BTreeSet<String> = KEYS.iter().map(|(key, ..)| (*key).to_owned()).collect();
    let all = all_json_keys();
    assert!(all.len() > 45 && all.contains("cpus.topology.cores") && all.contains("disks[].path"), "{all:?}");
    let forgotten: Vec<_> = all.difference(&covered).collect();
    assert!(forgotten.is_empty(), "values.rs has no wrong value for {forgotten:?}");
    let unknown: Vec<_> = covered.difference(&all).collect();
    assert!(unknown.is_empty(), "values.rs has wrong values for {unknown:?}, which do not exist");
}

#[test]
fn every_wrong_value_of_a_json_key_is_refused_with_its_line() {
    let place = Place::new();
    let file = place.text("vm.json");
    for (key, value, message) in KEYS {
        fs::write(&file, document(&place, key, value)).expect("a file");
        let (checked, run) = (zvmm(&["check-config", &file]), zvmm(&["run", "--config", &file]));
        assert_eq!((checked.status, run.status), (Some(2), Some(2)), "{key}: {value}: {checked:?} {run:?}");
        for said in [checked.errors, run.errors] {
            let line = said.strip_suffix('\n').unwrap_or_default();
            let is_one_line = line.starts_with("zvmm: ") && !line.contains('\n');
            assert!(is_one_line && line.ends_with(&place.fill(message)), "{key}: {value}: {said}");
        }
    }
}

#[test]
fn a_json_value_of_another_type_is_refused_with_the_path_of_its_key() {
    let place = Place::new();
    for key in all_json_keys() {
        for value in [r#"{"a": 1}"#, "[{}]", "1.5", "[[]]"] {
            let said = problem(&document(&place, &key, value));
            let path = key.replace("[]", "[0]");
            let named = said.split(": ").nth(1).unwrap_or_default();
            assert!(named.starts_with(&path), "{key}: {value}: {said:?}");
        }
    }
}

/// Whether the key of this path is there, of a list in one of its entries: some keys exclude each other.
fn has<'a>(at: &Value, mut path: impl Iterator<Item = &'a str> + Clone) -> bool {
    match path.next().map(|part| (part, part.strip_suffix("[]"))) {
        None => true,
        Some((_, Some(list))) => {
            at.get(list).and_then(Value::as_array).is_some_and(|all| all.iter().any(|entry| has(entry, path.clone())))
        }
        Some((part, None)) => at.get(part).is_some_and(|value| has(value, path)),
    }
}

#[test]
fn every_json_key_given_twice_is_refused() {
    let text = include_str!("complete.json");
    assert_eq!(problem(text), "", "the complete configuration is good");
    let complete: Value = serde_json::from_str(text).expect("JSON");
    for key in all_json_keys() {
        assert!(has(&complete, key.split('.')), "complete.json lacks {key}");
    }
    let lines: Vec<&str> = text.lines().collect();
    let mut seen = 0;
    for (index, line) in
        lines.iter().enumerate().filter(|(_, line)| line.contains("\": ") && !line.ends_with(['{', '[']))
    {
        let mut twice = lines.clone();
        let again = format!("{},", line.trim_end_matches(','));
        twice.insert(index, &again);
        let said = problem(&twice.join("\n"));
        assert!(said.contains("duplicate field '"), "{line}: {said}");
        seen += 1;
    }
    assert!(seen > 45, "{seen}");
}

#[test]
fn the_complete_configuration_is_what_check_config_prints() {
    let place = Place::new();
    fs::write(place.path("vm.json"), include_str!("complete.json")).expect("a file");
    let printed = zvmm(&["check-config", "--no-host", "--print", &place.text("vm.json")]);
    assert_eq!((printed.status, printed.output.as_str()), (Some(0), include_str!("complete.json")), "{printed:?}");
}
