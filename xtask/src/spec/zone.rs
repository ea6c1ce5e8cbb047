//! What the zone brands of SmartOS ask of a VMM, line by line, against what shows that it is kept: the table in
//! `docs/smartos.md`.

use std::collections::BTreeSet;

use super::proofs::Proofs;

const MANUAL: &str = include_str!("../../../docs/smartos.md");

/// How many lines each part of the checklist has: what the two brands have a VMM accept (A), and what it produces (P).
const LINES: [(&str, usize); 4] = [("bhyve A", 8), ("bhyve P", 13), ("kvm A", 4), ("kvm P", 13)];

/// Commands that show something besides tests.
const COMMANDS: [&str; 1] = ["cargo xtask illumos-check"];

/// What may be accepted and not built yet.
const LATER: [&str; 2] = ["display", "firmware"];

/// A row of the table.
#[derive(Debug, PartialEq, Eq)]
struct Row<'a> {
    line: &'a str,
    /// What becomes of it.
    fate: &'a str,
    shown_by: &'a str,
}

/// The rows of the tables whose first column is a line of the checklist.
fn rows(manual: &str) -> Vec<Row<'_>> {
    let parts = |line: &str| LINES.iter().any(|(part, _)| line.starts_with(part));
    manual
        .lines()
        .filter_map(|row| {
            let mut cells = row.strip_prefix("| ")?.strip_suffix(" |")?.split(" | ");
            let (line, _asked, fate, shown_by) = (cells.next()?, cells.next()?, cells.next()?, cells.next()?);
            (parts(line) && cells.next().is_none()).then_some(Row { line, fate, shown_by })
        })
        .collect()
}

/// Whether a line's fate is one: everything asked for is done, but for what is refused by name, and what is accepted and not
/// built yet, which may be of the parts alone that come later.
fn is_fate(fate: &str) -> bool {
    let is_later = |what: &str| LATER.iter().any(|part| what.contains(part));
    let mut parts = fate.split("; ");
    parts.next() == Some("done")
        && parts.all(|part| {
            part.starts_with("refused by name: ") || part.strip_prefix("not built yet: ").is_some_and(is_later)
        })
}

/// What is wrong with a table.
fn problems(manual: &str, proofs: &Proofs) -> Vec<String> {
    let (rows, mut problems) = (rows(manual), Vec::new());
    let expected: Vec<String> =
        LINES.iter().flat_map(|(part, count)| (1..=*count).map(move |number| format!("{part}{number}"))).collect();
    let found: Vec<&str> = rows.iter().map(|row| row.line).collect();
    if found != expected {
        problems.push(format!("the lines are {found:?}"));
    }
    for Row { line, fate, shown_by } in rows {
        let (mut ids, mut seen) = (0, BTreeSet::new());
        for id in shown_by.split('`').skip(1).step_by(2) {
            ids += 1;
            if !proofs.contains(id) && !COMMANDS.contains(&id) {
                problems.push(format!("{line}: {id} does not exist, or is ignored"));
            }
            if !seen.insert(id) {
                problems.push(format!("{line}: {id} stands there twice"));
            }
        }
        if !is_fate(fate) {
            problems.push(format!("{line}: '{fate}' is no fate"));
        }
        if ids == 0 {
            problems.push(format!("{line}: nothing shows it"));
        }
    }
    problems
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lab::scenarios;
    use crate::paths;

    #[test]
    fn every_line_is_there_and_shown_by_what_exists() {
        let mut proofs = Proofs::of_sources(&paths::workspace()).unwrap();
        proofs.add_scenarios(scenarios::all().into_iter().chain(scenarios::networks()).map(|scenario| scenario.name));
        let problems = problems(MANUAL, &proofs);
        assert!(problems.is_empty(), "docs/smartos.md:\n{}", problems.join("\n"));
    }

    #[test]
    fn a_table_that_says_what_is_not_so_is_noticed() {
        let row = |fate: &str, shown_by: &str| format!("| bhyve A1 | what | {fate} | {shown_by} |\n");
        let said = |text: String| problems(&text, &Proofs::default());
        let lines = "the lines are [\"bhyve A1\"]".to_owned();
        for (fate, shown_by, problem) in [
            ("done", "", "bhyve A1: nothing shows it"),
            ("done", "`zvmm::gone`", "bhyve A1: zvmm::gone does not exist, or is ignored"),
            ("perhaps", "`cargo xtask illumos-check`", "bhyve A1: 'perhaps' is no fate"),
            ("in part: x", "`cargo xtask illumos-check`", "bhyve A1: 'in part: x' is no fate"),
            (
                "done; not built yet: the disks",
                "`cargo xtask illumos-check`",
                "bhyve A1: 'done; not built yet: the disks' is no fate",
            ),
        ] {
            assert_eq!(said(row(fate, shown_by)), [lines.clone(), problem.to_owned()]);
        }
        for fate in ["done", "done; refused by name: x", "done; refused by name: x; not built yet: the display's y"] {
            assert_eq!(said(row(fate, "`cargo xtask illumos-check`")), std::slice::from_ref(&lines));
        }
        assert_eq!(said("| bhyve A1 | too | few |\n".to_owned()), ["the lines are []"]);
    }
}
