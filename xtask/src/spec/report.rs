//! The report as text: counts by section and what is missing, or every statement as a row of a table.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use super::statements::{SECTIONS, Statement, Statements, Verdict};

/// How many statements there are of each kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Count {
    pub excluded: usize,
    pub covered: usize,
    pub not_covered: usize,
}

impl Count {
    /// Counts.
    pub fn of<'a>(statements: impl IntoIterator<Item = &'a Statement>) -> Self {
        let mut count = Self::default();
        for statement in statements {
            *match statement.verdict {
                Verdict::Excluded(_) => &mut count.excluded,
                Verdict::Covered(_) => &mut count.covered,
                Verdict::NotCovered(_) => &mut count.not_covered,
            } += 1;
        }
        count
    }

    /// What the percentage is of: all statements that are not left out.
    pub fn denominator(self) -> usize {
        self.covered + self.not_covered
    }

    fn row(self, name: &str) -> String {
        let all = self.denominator() + self.excluded;
        // Rounded down, so that 100 % means all.
        let percent = (self.covered * 100).checked_div(self.denominator());
        let percent = percent.map_or_else(|| "-".to_owned(), |percent| format!("{percent} %"));
        format!("{name:<32}{all:>11}{:>10}{:>9}{:>13}{percent:>8}\n", self.excluded, self.covered, self.not_covered)
    }
}

/// Counts by section, what is left out and why, and what nothing shows.
pub fn summary(statements: &Statements) -> String {
    let mut text =
        format!("{:<32}{:>11}{:>10}{:>9}{:>13}\n", "virtio 1.3", "statements", "left out", "covered", "not covered");
    for (index, (number, title)) in SECTIONS.iter().enumerate() {
        let of_section = statements.all.iter().filter(|statement| statement.clause.section() == Some(index));
        text += &Count::of(of_section).row(&format!("{number} {title}"));
    }
    text += &Count::of(&statements.all).row("in all");

    let mut left_out: BTreeMap<&str, usize> = BTreeMap::new();
    for statement in &statements.all {
        if let Verdict::Excluded(reason) = &statement.verdict {
            *left_out.entry(reason).or_default() += 1;
        }
    }
    text += "\nLeft out:\n";
    for (reason, count) in left_out {
        let why = statements.reasons.get(reason).map_or("", |reason| reason.why.as_str());
        let _ = writeln!(text, "{count:>5}  {reason}: {why}");
    }

    text += "\nNot covered:\n";
    for statement in &statements.all {
        if let Verdict::NotCovered(why) = &statement.verdict {
            let Statement { clause, binds, level, says, .. } = statement;
            let _ = writeln!(text, "  {clause} {binds} {level}: {says} ({why})");
        }
    }
    text
}

/// Every statement, with what shows it.
pub fn markdown(statements: &Statements) -> String {
    let mut text = "| Clause | Binds | Statement | Shown by |\n|---|---|---|---|\n".to_owned();
    for Statement { clause, title, binds, level, says, verdict } in &statements.all {
        let shown = match verdict {
            Verdict::Covered(by) => by.iter().map(|id| format!("`{id}`")).collect::<Vec<_>>().join(" "),
            Verdict::Excluded(reason) => format!("left out: {reason}"),
            Verdict::NotCovered(why) => format!("**not covered**: {why}"),
        };
        let _ = writeln!(text, "| {clause} {title} | {binds}, {level} | {} | {shown} |", says.replace('|', "\\|"));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::super::statements::parse;
    use super::*;

    fn rules() -> Statements {
        let reasons = "[driver]\nwhy = \"it binds the driver\"\n";
        let text = r#"
            ["2.7.8"]
            title = "Used ring"
            device = [
                { must = "one", covered_by = ["a::b", "lab/c"] },
                { must = "two", covered_by = ["a::b"] },
                { should = "a|b", not_covered = "nobody has" },
            ]
            driver = [{ may = "three", excluded = "driver" }]
        "#;
        parse(reasons, [("2.toml", text)]).unwrap()
    }

    #[test]
    fn what_is_left_out_is_not_in_the_denominator() {
        let count = Count::of(&rules().all);
        assert_eq!((count, count.denominator()), (Count { excluded: 1, covered: 2, not_covered: 1 }, 3));
    }

    #[test]
    fn the_summary_counts_by_section_and_names_what_is_missing() {
        let text = summary(&rules());
        let row = |name: &str| {
            let line = text.lines().find(|line| line.starts_with(name)).unwrap();
            line[32..].split_whitespace().map(str::to_owned).collect::<Vec<_>>()
        };
        assert_eq!(row("2.7 "), ["4", "1", "2", "1", "66", "%"]);
        assert_eq!(row("2.8 "), ["0", "0", "0", "0", "-"]);
        assert_eq!(row("in all"), row("2.7 "));
        assert!(text.contains("    1  driver: it binds the driver\n"), "{text}");
        assert!(text.contains("  2.7.8 device should: a|b (nobody has)\n"), "{text}");
    }

    #[test]
    fn the_table_has_a_row_for_each_statement() {
        let text = markdown(&rules());
        let rows: Vec<&str> = text.lines().skip(2).collect();
        assert_eq!(rows.len(), 4);
        assert_eq!(rows[0], "| 2.7.8 Used ring | device, must | one | `a::b` `lab/c` |");
        assert_eq!(rows[2], "| 2.7.8 Used ring | device, should | a\\|b | **not covered**: nobody has |");
        assert_eq!(rows[3], "| 2.7.8 Used ring | driver, may | three | left out: driver |");
    }
}
