use std::collections::BTreeSet;
use std::fs;
use std::panic::catch_unwind;
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::*;

#[path = "../../build/layout.rs"]
mod generator;

use generator::{Assertions, LAYOUTS, assertions, files};

fn hypervisor() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src/hypervisor")
}

fn texts(name: &str) -> [String; 2] {
    files(&hypervisor(), name).map(|file| fs::read_to_string(&file).unwrap())
}

fn made(name: &str) -> Assertions {
    let [table, names] = texts(name);
    assertions(&table, &names, ON_ILLUMOS).unwrap()
}

/// Without the note on how the numbers of ioctls came about, which has numbers of its own.
fn table(name: &str) -> Value {
    let mut table: Value = serde_json::from_str(&texts(name)[0]).unwrap();
    if let Some(meta) = table.get_mut("meta").and_then(Value::as_object_mut) {
        meta.remove("encoding");
    }
    table
}

fn is_number(value: &Value) -> bool {
    value.is_number() || value.as_str().is_some_and(|text| text.starts_with("0x"))
}

/// The facts of a table, found without the generator: sections of numbers, enums of numbers, and structures.
fn facts(name: &str) -> BTreeSet<String> {
    let table = table(name);
    let mut facts = BTreeSet::new();
    let mut sections: Vec<(String, Value)> = Vec::new();
    for (section, value) in table.as_object().unwrap() {
        match section.as_str() {
            "meta" => sections.extend(value.as_object().unwrap().clone()),
            _ => sections.push((section.clone(), value.clone())),
        }
    }
    for (section, value) in sections {
        for (name, value) in value.as_object().into_iter().flatten() {
            if let Some(fields) = value.get("fields") {
                facts.insert(name.clone());
                facts.extend(fields.as_object().unwrap().keys().map(|field| format!("{name}.{field}")));
            } else if let Some(members) = value.as_object() {
                facts.extend(members.keys().map(|member| format!("{name}.{member}")));
            } else if is_number(value) {
                let prefix = match section.as_str() {
                    "exit_reasons" | "limits" => format!("{section}."),
                    _ => String::new(),
                };
                facts.insert(format!("{prefix}{name}"));
            }
        }
    }
    facts
}

#[test]
fn every_fact_of_the_tables_is_asserted_or_left_out_for_a_reason() {
    for (name, asserted, at_least) in [("bhyve", bhyve::ASSERTED, 880), ("illumos_kvm", illumos_kvm::ASSERTED, 500)] {
        let made = made(name);
        assert_eq!(made.asserted.len(), asserted, "{name}: what was compiled is what is counted here");
        assert!(asserted >= at_least, "{name}: only {asserted} assertions");
        let mut decided: BTreeSet<String> = BTreeSet::new();
        let left_out = made.left_out.iter().map(|(fact, _)| fact);
        for fact in made.asserted.iter().chain(&made.illumos_only).chain(left_out) {
            decided.insert(fact.split_once(' ').unwrap().1.to_owned());
        }
        for fact in facts(name) {
            let structure = fact.split('.').next().unwrap();
            let left_out_whole = made.left_out.iter().any(|(left, _)| left == &format!("struct {structure}"));
            assert!(decided.contains(&fact) || left_out_whole, "{name}: nothing decides about {fact}");
        }
        for (fact, reason) in &made.left_out {
            assert!(reason.len() > 5, "{name}: {fact} is left out without a reason");
        }
    }
}

#[test]
fn what_is_left_out_is_not_in_the_interface() {
    for name in LAYOUTS {
        let mut text = String::new();
        let mut folders = vec![hypervisor().join(name)];
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    folders.push(path);
                } else if path.components().any(|part| part.as_os_str().to_string_lossy().starts_with("abi")) {
                    text += &fs::read_to_string(path).unwrap();
                }
            }
        }
        let words: BTreeSet<&str> = text.split(|c: char| !c.is_alphanumeric() && c != '_').collect();
        for (fact, _) in made(name).left_out {
            let (kind, fact) = fact.split_once(' ').unwrap();
            let own = fact.rsplit('.').next().unwrap();
            assert!(kind == "section" || !words.contains(own), "{name}: {own} is there: assert it");
        }
    }
}

#[test]
fn no_number_of_a_table_is_passed_over() {
    fn renumber(value: &mut Value, next: &mut u64) {
        match value {
            Value::Object(members) => members.values_mut().for_each(|value| renumber(value, next)),
            Value::Array(values) => values.iter_mut().for_each(|value| renumber(value, next)),
            value if is_number(value) => {
                *next += 1;
                *value = Value::from(*next);
            }
            _ => {}
        }
    }
    const FIRST: u64 = 7_000_000;
    for name in LAYOUTS {
        let mut table = table(name);
        // What is left out has numbers that nothing uses, and what is for illumos only has them there.
        let kept = |line: &&str| {
            (!line.starts_with("omit") || line.starts_with("omit section")) && !line.contains("meta.encoding")
        };
        let names: Vec<String> = texts(name)[1].lines().filter(kept).map(str::to_owned).collect();
        let mut last = FIRST;
        renumber(&mut table, &mut last);
        let code = assertions(&table.to_string(), &names.join("\n"), true).unwrap().code;
        let used: BTreeSet<u64> =
            code.split(|c: char| !c.is_ascii_digit()).filter_map(|number| number.parse().ok()).collect();
        for number in FIRST + 1..=last {
            assert!(used.contains(&number), "{name}: number {} of the table is not used", number - FIRST);
        }
    }
}

#[test]
fn an_assertion_fails_where_either_side_is_wrong_by_one() {
    #[repr(C)]
    struct Pair {
        small: u32,
        many: [u64; 2],
    }
    let field_is = |offset, size| {
        catch_unwind(|| {
            let room = Room::<Pair>::new();
            let it = room.start();
            let _ = (size_of::<u32>(), |pair: &Pair| (pair.small, pair.many));
            // SAFETY: the pointer stays inside the room, and is not read.
            field_at("Pair.many", it, unsafe { &raw const (*it).many }, offset, size);
        })
        .is_ok()
    };
    assert!(field_is(8, 16));
    assert!(!field_is(7, 16) && !field_is(9, 16) && !field_is(8, 15) && !field_is(8, 17));
    let second = || {
        let room = Room::<Pair>::new();
        let it = room.start();
        // SAFETY: as above.
        field_at("Pair.many[1]", it, element(unsafe { &raw const (*it).many }, 1), 16, 8);
    };
    assert!(catch_unwind(second).is_ok());
    assert!(catch_unwind(|| size::<Pair>("Pair", 24)).is_ok() && catch_unwind(|| size::<Pair>("Pair", 20)).is_err());
    assert!(catch_unwind(|| align::<Pair>("Pair", 8)).is_ok() && catch_unwind(|| align::<Pair>("Pair", 4)).is_err());
    assert!(catch_unwind(|| number("N", -1, -1)).is_ok() && catch_unwind(|| number("N", 3, 4)).is_err());
    assert!(catch_unwind(|| number("N", -1, 0xffff_ffff)).is_err(), "a constant has a sign");
    assert!(catch_unwind(|| same_bits("N", 0xc008_ae02_u32 as i32 as i128, 0xc008_ae02)).is_ok());
    assert!(catch_unwind(|| same_bits("N", 0x4008_ae02, 0xc008_ae02)).is_err());
}

#[test]
fn a_fact_without_a_line_and_a_line_without_a_fact_are_refused() {
    let refused = |table: &str, names: &str| assertions(table, names, false).err().unwrap();
    let table = r#"{"ioctls": {"A": "0x1"}, "structs": {"s": {"size": 1, "fields": {"f": [0, 1]}}}}"#;
    assert_eq!(refused(table, "at struct s here::{}\n"), "no line says where ioctl A is found");
    let names = "# note\nat ioctl A here::{}\n\nat struct s here::{}\nat struct t here::{}\n";
    assert_eq!(refused(table, names), "line 5 decides about nothing in the table");
    assert_eq!(refused(table, "at ioctl A\n"), "line 1: a line has four parts: verb, kind, name, and where or why");
    assert_eq!(refused(table, "put ioctl A here\n"), "line 1: unknown verb 'put'");
    assert_eq!(refused(r#"{"ioctls": {"A": "one"}}"#, "at * * x\n"), "A is not a number: \"one\"");
    assert_eq!(refused(r#"{"structs": {"s": {"fields": {}}}}"#, "at * * x\n"), "s has no size");
    let bad = r#"{"structs": {"s": {"size": 1, "fields": {"f": [0]}}}}"#;
    assert_eq!(refused(bad, "at * * x\n"), "s.f has no offset and size");
    assert_eq!(refused(r#"{"news": 1}"#, "at * * x\n"), "news is not an object");
    let good = assertions(table, "at * * here::{}\n", false).unwrap();
    assert_eq!(good.asserted, ["ioctl A", "struct s", "field s.f"]);
}
