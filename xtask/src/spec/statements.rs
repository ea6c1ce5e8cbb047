//! The committed rules: one file a chapter, one entry a statement, and the named reasons for which some are left out.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use anyhow::{Context as _, bail, ensure};
use serde::Deserialize;

use super::proofs::Proofs;

/// The sections the report covers, with what they are about.
pub const SECTIONS: [(&str, &str); 12] = [
    ("2.1", "Device status"),
    ("2.2", "Feature bits"),
    ("2.3", "Notifications"),
    ("2.4", "Device reset"),
    ("2.5", "Device configuration space"),
    ("2.6", "Virtqueues"),
    ("2.7", "Split virtqueues"),
    ("2.8", "Packed virtqueues"),
    ("2.9", "Driver notifications"),
    ("4.1", "Virtio over PCI"),
    ("5.1", "Network device"),
    ("5.2", "Block device"),
];

/// The reasons' file.
const REASONS: &str = "reasons.toml";
/// The longest paraphrase: what does not fit is two statements, or a copy.
const LONGEST: usize = 120;

/// A number such as 2.7.13.3.1.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Number(Vec<u16>);

impl Number {
    fn parse(text: &str) -> anyhow::Result<Self> {
        let parts: Option<Vec<u16>> = text.split('.').map(|part| part.parse().ok()).collect();
        let number = Self(parts.with_context(|| format!("{text} is no number of a clause"))?);
        ensure!(number.section().is_some(), "{text} is in no section of the report");
        Ok(number)
    }

    /// The section it is in, as a place in [`SECTIONS`].
    pub fn section(&self) -> Option<usize> {
        SECTIONS.iter().position(|(section, _)| {
            let mut parts = section.split('.').map(str::parse);
            self.0.len() >= 2 && self.0.iter().take(2).all(|part| parts.next() == Some(Ok(*part)))
        })
    }
}

impl std::fmt::Display for Number {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let parts: Vec<String> = self.0.iter().map(u16::to_string).collect();
        f.write_str(&parts.join("."))
    }
}

/// One statement of the specification.
#[derive(Clone, Debug)]
pub struct Statement {
    pub clause: Number,
    pub title: String,
    /// Whom it binds: device, driver or transport.
    pub binds: &'static str,
    /// How much: must, should or may.
    pub level: &'static str,
    /// The paraphrase.
    pub says: String,
    pub verdict: Verdict,
}

/// What is known about a statement.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Shown by these.
    Covered(Vec<String>),
    /// Left out, for this reason.
    Excluded(String),
    /// Shown by nothing, and why that is.
    NotCovered(String),
}

/// Why statements may be left out.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Reason {
    pub why: String,
    /// What shows that the reason holds, where something can.
    #[serde(default)]
    pub shown_by: Vec<String>,
}

/// The rules.
#[derive(Debug)]
pub struct Statements {
    /// By clause.
    pub all: Vec<Statement>,
    pub reasons: BTreeMap<String, Reason>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Clause {
    title: String,
    #[serde(default)]
    device: Vec<Entry>,
    #[serde(default)]
    driver: Vec<Entry>,
    #[serde(default)]
    transport: Vec<Entry>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    must: Option<String>,
    should: Option<String>,
    may: Option<String>,
    covered_by: Option<Vec<String>>,
    excluded: Option<String>,
    not_covered: Option<String>,
}

impl Entry {
    fn decode(self) -> anyhow::Result<(&'static str, String, Verdict)> {
        let levels = [("must", self.must), ("should", self.should), ("may", self.may)];
        let mut levels = levels.into_iter().filter_map(|(level, says)| says.map(|says| (level, says)));
        let (Some((level, says)), None) = (levels.next(), levels.next()) else {
            bail!("an entry has one of must, should and may");
        };
        ensure!(!says.is_empty() && says.chars().count() <= LONGEST, "{says:?} is empty or longer than {LONGEST}");
        let verdicts = [
            self.covered_by.map(Verdict::Covered),
            self.excluded.map(Verdict::Excluded),
            self.not_covered.map(Verdict::NotCovered),
        ];
        let mut verdicts = verdicts.into_iter().flatten();
        let (Some(verdict), None) = (verdicts.next(), verdicts.next()) else {
            bail!("{says:?} has not exactly one of covered_by, excluded and not_covered");
        };
        match &verdict {
            Verdict::Covered(by) => ensure!(!by.is_empty(), "{says:?} is covered by nothing"),
            Verdict::NotCovered(why) => ensure!(!why.is_empty(), "{says:?} is not covered for no reason"),
            Verdict::Excluded(_) => {}
        }
        Ok((level, says, verdict))
    }
}

/// Reads the reasons and the chapters, each with the name of its file.
pub fn parse<'a>(reasons: &str, chapters: impl IntoIterator<Item = (&'a str, &'a str)>) -> anyhow::Result<Statements> {
    let reasons: BTreeMap<String, Reason> = toml::from_str(reasons).context(REASONS)?;
    let (mut all, mut seen, mut used) = (Vec::new(), BTreeSet::new(), BTreeSet::new());
    for (file, text) in chapters {
        let clauses: BTreeMap<String, Clause> = toml::from_str(text).with_context(|| file.to_owned())?;
        for (number, clause) in clauses {
            let in_clause = || format!("{file}, {number}");
            let parsed = Number::parse(&number).with_context(in_clause)?;
            ensure!(seen.insert(parsed.clone()), "{number} is in {file} and in another file");
            let Clause { title, device, driver, transport } = clause;
            let sides = [("device", device), ("driver", driver), ("transport", transport)];
            let mut empty = true;
            for (binds, entry) in sides.into_iter().flat_map(|(binds, all)| all.into_iter().map(move |it| (binds, it)))
            {
                empty = false;
                let (level, says, verdict) = entry.decode().with_context(in_clause)?;
                if let Verdict::Excluded(reason) = &verdict {
                    ensure!(reasons.contains_key(reason), "{}: {reason} is no reason of {REASONS}", in_clause());
                    used.insert(reason.clone());
                }
                all.push(Statement { clause: parsed.clone(), title: title.clone(), binds, level, says, verdict });
            }
            ensure!(!empty, "{} has no statement", in_clause());
        }
    }
    if let Some(reason) = reasons.keys().find(|reason| !used.contains(*reason)) {
        bail!("nothing is left out for the reason {reason}");
    }
    all.sort_by(|one, other| one.clause.cmp(&other.clause));
    Ok(Statements { all, reasons })
}

impl Statements {
    /// Reads the files of `folder`.
    ///
    /// # Errors
    /// Says which file, clause and statement is not as it should be.
    pub fn read(folder: &Path) -> anyhow::Result<Self> {
        let read = |path: &Path| std::fs::read_to_string(path).with_context(|| path.display().to_string());
        let mut chapters = Vec::new();
        for entry in std::fs::read_dir(folder).with_context(|| folder.display().to_string())? {
            let path = entry?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            if name.ends_with(".toml") && name != REASONS {
                chapters.push((name, read(&path)?));
            }
        }
        chapters.sort();
        parse(&read(&folder.join(REASONS))?, chapters.iter().map(|(name, text)| (name.as_str(), text.as_str())))
    }

    /// What is named as a proof and is none, with the clause or the reason that names it.
    pub fn missing(&self, proofs: &Proofs) -> Vec<String> {
        let covered = self.all.iter().filter_map(|statement| match &statement.verdict {
            Verdict::Covered(by) => Some((statement.clause.to_string(), by)),
            _ => None,
        });
        let reasons = self.reasons.iter().map(|(name, reason)| (name.clone(), &reason.shown_by));
        let named = covered.chain(reasons).flat_map(|(by, ids)| ids.iter().map(move |id| (by.clone(), id)));
        named.filter(|(_, id)| !proofs.contains(id)).map(|(by, id)| format!("{by}: {id}")).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const REASON: &str = "[driver]\nwhy = \"it binds the driver\"\n";

    fn error(reasons: &str, chapters: &[(&str, &str)]) -> String {
        format!("{:#}", parse(reasons, chapters.iter().copied()).unwrap_err())
    }

    /// A chapter with one entry.
    fn entry(entry: &str) -> String {
        format!("[\"2.7.8\"]\ntitle = \"Used ring\"\ndevice = [{{ {entry} }}]\n")
    }

    fn refused(text: &str) -> String {
        error("", &[("2.toml", &entry(text))])
    }

    #[test]
    fn statements_come_by_clause_with_whom_they_bind_how_much_and_what_shows_them() {
        let text = "[\"2.10.1\"]\ntitle = \"t\"\ndevice = [{ must = \"m\", covered_by = [\"a\"] }]\n";
        assert!(error("", &[("2.toml", text)]).contains("2.10.1 is in no section"));
        let text = r#"
            ["4.1.10"]
            title = "Ten"
            transport = [{ may = "c", not_covered = "later" }]
            ["4.1.2"]
            title = "Two"
            device = [{ must = "a", covered_by = ["x", "y"] }]
            driver = [{ should = "b", excluded = "driver" }]
        "#;
        let rules = parse(REASON, [("4.toml", text)]).unwrap();
        let found: Vec<_> = rules
            .all
            .iter()
            .map(|it| (it.clause.to_string(), it.title.as_str(), it.binds, it.level, it.says.as_str(), &it.verdict))
            .collect();
        assert_eq!(
            found,
            [
                ("4.1.2".into(), "Two", "device", "must", "a", &Verdict::Covered(vec!["x".into(), "y".into()])),
                ("4.1.2".into(), "Two", "driver", "should", "b", &Verdict::Excluded("driver".into())),
                ("4.1.10".into(), "Ten", "transport", "may", "c", &Verdict::NotCovered("later".into())),
            ]
        );
    }

    #[test]
    fn an_entry_has_one_level_and_one_verdict() {
        for levels in ["covered_by = [\"a\"]", "must = \"m\", may = \"n\", covered_by = [\"a\"]"] {
            assert!(refused(levels).contains("one of must, should and may"), "{levels}");
        }
        for verdicts in ["must = \"m\"", "must = \"m\", covered_by = [\"a\"], not_covered = \"b\""] {
            assert!(refused(verdicts).contains("exactly one of covered_by"), "{verdicts}");
        }
    }

    #[test]
    fn a_proof_a_reason_and_a_paraphrase_are_not_empty() {
        assert!(refused("must = \"m\", covered_by = []").contains("covered by nothing"));
        assert!(refused("must = \"m\", not_covered = \"\"").contains("for no reason"));
        assert!(refused("must = \"\", covered_by = [\"a\"]").contains("is empty or longer"));
    }

    #[test]
    fn a_paraphrase_has_at_most_120_characters() {
        let rule = |len: usize| entry(&format!("must = \"{}\", covered_by = [\"a\"]", "§".repeat(len)));
        assert!(parse("", [("2.toml", rule(120).as_str())]).is_ok());
        assert!(error("", &[("2.toml", &rule(121))]).contains("longer than 120"));
    }

    #[test]
    fn unknown_keys_are_refused() {
        assert!(refused("must = \"m\", coverd_by = [\"a\"]").contains("unknown field `coverd_by`"));
        let clause = "[\"2.7.8\"]\ntitle = \"t\"\nhost = []\n";
        assert!(error("", &[("2.toml", clause)]).contains("unknown field `host`"));
        assert!(error("[a]\nwhy = \"b\"\nshown = []\n", &[]).contains("unknown field `shown`"));
    }

    #[test]
    fn numbers_that_are_none_or_of_other_sections_are_refused() {
        for number in ["2.7.x", "two", "", "2.7.", "2", "3.1.1", "4.2.1", "5.3", "6.1"] {
            let text = format!("[\"{number}\"]\ntitle = \"t\"\ndevice = [{{ must = \"m\", covered_by = [\"a\"] }}]\n");
            assert!(parse("", [("2.toml", text.as_str())]).is_err(), "{number}");
        }
    }

    #[test]
    fn a_clause_is_in_one_place_and_says_something() {
        let text = entry("must = \"m\", covered_by = [\"a\"]");
        assert!(error("", &[("a.toml", &text), ("b.toml", &text)]).contains("2.7.8 is in b.toml and in another file"));
        assert!(parse("", [("a.toml", format!("{text}{text}").as_str())]).is_err());
        assert!(error("", &[("a.toml", "[\"2.7.8\"]\ntitle = \"t\"\n")]).contains("has no statement"));
    }

    #[test]
    fn a_reason_has_a_name_and_is_used() {
        assert!(refused("must = \"m\", excluded = \"driver\"").contains("driver is no reason of reasons.toml"));
        let text = entry("must = \"m\", covered_by = [\"a\"]");
        assert!(error(REASON, &[("2.toml", &text)]).contains("nothing is left out for the reason driver"));
    }

    #[test]
    fn what_does_not_exist_is_named_with_its_clause_or_reason() {
        let text = "[\"2.7.8\"]\ntitle = \"t\"\ndevice = [{ must = \"m\", covered_by = [\"lab/there\", \"lab/not\"] }, \
                    { must = \"n\", excluded = \"driver\" }]\n";
        let rules = parse("[driver]\nwhy = \"w\"\nshown_by = [\"lab/gone\"]\n", [("2.toml", text)]).unwrap();
        let mut proofs = Proofs::default();
        proofs.add_scenarios(["there".to_owned()]);
        assert_eq!(rules.missing(&proofs), ["2.7.8: lab/not", "driver: lab/gone"]);
    }
}
