//! From a table of an interface (`layout.json`) and the names it has here (`layout-names.txt`) to Rust assertions.
//!
//! Every fact of the table becomes an assertion, or is left out by a line that says why. A line that decides nothing is
//! an error, so that neither file keeps what the other has lost.

use std::cell::Cell;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

/// Folders below `src/hypervisor` that hold a table.
pub const LAYOUTS: [&str; 2] = ["bhyve", "illumos_kvm"];

/// The table and the names of a layout, below `src/hypervisor`.
pub fn files(hypervisor: &Path, name: &str) -> [PathBuf; 2] {
    ["layout.json", "layout-names.txt"].map(|file| hypervisor.join(name).join(file))
}

/// What became of a table.
#[derive(Default)]
pub struct Assertions {
    /// Rust text: one item an assertion.
    pub code: String,
    /// The facts asserted, as `kind name`.
    pub asserted: Vec<String>,
    /// The facts that can be asserted where the target is illumos only, when it is not.
    pub illumos_only: Vec<String>,
    /// The facts left out, with the reason.
    pub left_out: Vec<(String, String)>,
}

/// One line of `layout-names.txt`.
struct Line {
    number: usize,
    kind: String,
    pattern: String,
    rule: Rule,
    used: Cell<bool>,
}

enum Rule {
    /// Where it is found: `{}` stands for its own name.
    At { path: String, illumos_only: bool },
    /// A part of a field's path that is spelled otherwise here.
    Field { theirs: String, ours: String },
    /// The kernel copies as many bytes as this structure has.
    Copies(String),
    /// Left out, and why.
    Omit(String),
}

struct Names(Vec<Line>);

impl Names {
    fn parse(text: &str) -> Result<Self, String> {
        let mut lines = Vec::new();
        for (index, line) in text.lines().enumerate() {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let number = index + 1;
            let mut words = line.splitn(4, ' ').map(str::trim);
            let mut word = || words.next().filter(|word| !word.is_empty()).map(str::to_owned);
            let (Some(verb), Some(kind), Some(pattern), Some(rest)) = (word(), word(), word(), word()) else {
                return Err(format!("line {number}: a line has four parts: verb, kind, name, and where or why"));
            };
            let rule = match verb.as_str() {
                "at" => Rule::At { path: rest, illumos_only: false },
                "at-on-illumos" => Rule::At { path: rest, illumos_only: true },
                // The structure, then their spelling, then ours.
                "field" => {
                    let rule = Rule::Field { theirs: pattern, ours: rest };
                    lines.push(Line { number, kind: "field".into(), pattern: kind, rule, used: Cell::new(false) });
                    continue;
                }
                "copies" => Rule::Copies(rest),
                "omit" => Rule::Omit(rest),
                _ => return Err(format!("line {number}: unknown verb '{verb}'")),
            };
            lines.push(Line { number, kind, pattern, rule, used: Cell::new(false) });
        }
        Ok(Self(lines))
    }

    /// The last line that decides about a fact.
    fn decide(&self, kind: &str, name: &str) -> Option<&Rule> {
        let decides = |line: &&Line| {
            !matches!(line.rule, Rule::Field { .. })
                && (line.kind == "*" || line.kind == kind)
                && matches(&line.pattern, name)
        };
        let line = self.0.iter().rev().find(decides)?;
        line.used.set(true);
        Some(&line.rule)
    }

    /// A field's path as it is spelled here.
    fn spell(&self, structure: &str, path: &str) -> String {
        let mut segments: Vec<&str> = path.split('.').collect();
        for line in &self.0 {
            let Rule::Field { theirs, ours } = &line.rule else { continue };
            if !matches(&line.pattern, structure) {
                continue;
            }
            for segment in &mut segments {
                if segment == theirs {
                    line.used.set(true);
                    *segment = ours;
                }
            }
        }
        segments.join(".")
    }

    fn unused(&self) -> Option<usize> {
        self.0.iter().find(|line| !line.used.get()).map(|line| line.number)
    }
}

/// Whether `name` fits `pattern`, in which each `*` stands for any text.
fn matches(pattern: &str, name: &str) -> bool {
    match pattern.split_once('*') {
        None => pattern == name,
        Some((start, rest)) => name
            .strip_prefix(start)
            .is_some_and(|tail| (0..=tail.len()).any(|at| tail.get(at..).is_some_and(|tail| matches(rest, tail)))),
    }
}

/// Makes assertions of a table.
pub fn assertions(table: &str, names: &str, on_illumos: bool) -> Result<Assertions, String> {
    let table: Value = serde_json::from_str(table).map_err(|error| error.to_string())?;
    let mut made = Maker { names: Names::parse(names)?, on_illumos, made: Assertions::default() };
    made.sections(object(&table, "the table")?, "")?;
    if let Some(number) = made.names.unused() {
        return Err(format!("line {number} decides about nothing in the table"));
    }
    Ok(made.made)
}

struct Maker {
    names: Names,
    on_illumos: bool,
    made: Assertions,
}

impl Maker {
    fn sections(&mut self, table: &Map<String, Value>, prefix: &str) -> Result<(), String> {
        for (name, section) in table {
            let section_name = format!("{prefix}{name}");
            if let Some(Rule::Omit(reason)) = self.names.decide("section", &section_name) {
                self.made.left_out.push((format!("section {section_name}"), reason.clone()));
                continue;
            }
            let section = object(section, &section_name)?;
            match section_name.as_str() {
                "ioctls" => self.numbers("ioctl", "", section)?,
                "constants" => self.numbers("constant", "", section)?,
                "enums" => {
                    for (name, members) in section {
                        self.numbers("enum", &format!("{name}."), object(members, name)?)?;
                    }
                }
                "structs" => self.structures(section)?,
                "meta" => self.sections(section, "meta.")?,
                "meta.kernel_copy_size" => self.numbers("copy", "", section)?,
                _ => self.numbers("enum", &format!("{name}."), section)?,
            }
        }
        Ok(())
    }

    /// Decides about one fact; where it is found, unless it is left out.
    fn place(&mut self, kind: &str, name: &str) -> Result<Option<String>, String> {
        let fact = format!("{kind} {name}");
        let own = name.rsplit('.').next().unwrap_or(name);
        match self.names.decide(kind, name) {
            None => Err(format!("no line says where {fact} is found")),
            Some(Rule::Omit(reason)) => {
                self.made.left_out.push((fact, reason.clone()));
                Ok(None)
            }
            Some(Rule::At { illumos_only: true, .. }) if !self.on_illumos => {
                self.made.illumos_only.push(fact);
                Ok(None)
            }
            Some(Rule::At { path, .. }) => {
                self.made.asserted.push(fact);
                Ok(Some(path.replace("{}", own)))
            }
            Some(Rule::Copies(structure)) => {
                self.made.asserted.push(fact);
                Ok(Some(format!("std::mem::size_of::<{structure}>()")))
            }
            Some(Rule::Field { .. }) => Err(format!("{fact} is no field")),
        }
    }

    fn numbers(&mut self, kind: &str, prefix: &str, section: &Map<String, Value>) -> Result<(), String> {
        for (name, value) in section {
            let name = format!("{prefix}{name}");
            let value = number(value).ok_or_else(|| format!("{name} is not a number: {value}"))?;
            let Some(path) = self.place(kind, &name)? else { continue };
            // An ioctl is a C int: whether a 32-bit number is taken for negative does not change it.
            let check = if kind == "ioctl" { "same_bits" } else { "number" };
            let _ = writeln!(self.made.code, "const _: () = {check}(\"{name}\", {path} as i128, {value});");
        }
        Ok(())
    }

    fn structures(&mut self, section: &Map<String, Value>) -> Result<(), String> {
        for (name, layout) in section {
            let layout = object(layout, name)?;
            let size = layout.get("size").and_then(number).ok_or_else(|| format!("{name} has no size"))?;
            let Some(path) = self.place("struct", name)? else { continue };
            let _ = writeln!(self.made.code, "const _: () = size::<{path}>(\"{name}\", {size});");
            if let Some(align) = layout.get("align").and_then(number) {
                let _ = writeln!(self.made.code, "const _: () = align::<{path}>(\"{name}\", {align});");
            }
            let fields = layout.get("fields").ok_or_else(|| format!("{name} has no fields"))?;
            for (field, place) in object(fields, name)? {
                let place = place.as_array().map(|place| place.iter().filter_map(number).collect::<Vec<_>>());
                let Some([offset, size]) = place.as_deref() else {
                    return Err(format!("{name}.{field} has no offset and size"));
                };
                let access = access(&self.names.spell(name, field))?;
                let _ = writeln!(
                    self.made.code,
                    "const _: () = {{ let room = Room::<{path}>::new(); let it = room.start(); \
                     let field = unsafe {{ {access} }}; \
                     field_at(\"{name}.{field}\", it, field, {offset}, {size}); }};"
                );
                self.made.asserted.push(format!("field {name}.{field}"));
            }
        }
        Ok(())
    }
}

/// A pointer to the field at `path` of the structure that `it` points to.
fn access(path: &str) -> Result<String, String> {
    let mut place = "(*it)".to_owned();
    for segment in path.split('.') {
        let (name, index) = match segment.strip_suffix(']').and_then(|segment| segment.split_once('[')) {
            Some((name, index)) => (name, Some(index)),
            None => (segment, None),
        };
        if name.is_empty() || name.contains(|c: char| !c.is_ascii_alphanumeric() && c != '_') {
            return Err(format!("'{segment}' of '{path}' cannot be the name of a field"));
        }
        place += if name == "type" { ".r#type" } else { "." };
        place += if name == "type" { "" } else { name };
        if let Some(index) = index {
            place = format!("(*element(&raw const {place}, {index}))");
        }
    }
    Ok(format!("&raw const {place}"))
}

fn object<'a>(value: &'a Value, name: &str) -> Result<&'a Map<String, Value>, String> {
    value.as_object().ok_or_else(|| format!("{name} is not an object"))
}

/// A number, or hexadecimal text.
fn number(value: &Value) -> Option<i128> {
    match value {
        Value::String(text) => i128::from_str_radix(text.strip_prefix("0x")?, 16).ok(),
        value => value.as_i64().map(i128::from).or_else(|| value.as_u64().map(i128::from)),
    }
}
