//! `cargo xtask spec-report`: the rules of virtio 1.3 against the tests that show them kept.
//!
//! The rules and what shows them are committed, in `docs/virtio-1.3`; this checks that everything named there exists, and
//! counts.

mod proofs;
mod report;
mod statements;
#[cfg(test)]
mod zone;

use std::path::Path;

use anyhow::ensure;

use crate::{lab, paths};
use proofs::Proofs;
use statements::Statements;

/// Where the rules are, from the root of the workspace.
const FOLDER: &str = "docs/virtio-1.3";
/// The least part of the rules that must be shown to be kept.
const LEAST_PERCENT: usize = 90;

/// Options of `cargo xtask spec-report`.
#[derive(clap::Args)]
pub struct Options {
    /// Every rule as a row of a Markdown table, instead of the counts
    #[arg(long)]
    markdown: bool,
}

/// Prints the report.
///
/// # Errors
/// When the rules cannot be read, name something that does not exist, or are not covered as far as they must be.
pub fn run(options: Options) -> anyhow::Result<()> {
    let statements = checked(&paths::workspace())?;
    print!("{}", if options.markdown { report::markdown(&statements) } else { report::summary(&statements) });
    ensure_covered(&statements)
}

/// The rules of the workspace at `root`, each proof of which exists.
fn checked(root: &Path) -> anyhow::Result<Statements> {
    let statements = Statements::read(&root.join(FOLDER))?;
    let mut proofs = Proofs::of_sources(root)?;
    let scenarios = lab::scenarios::all().into_iter().chain(lab::scenarios::networks());
    proofs.add_scenarios(scenarios.map(|scenario| scenario.name));
    let missing = statements.missing(&proofs);
    ensure!(missing.is_empty(), "these do not exist, or are ignored:\n{}", missing.join("\n"));
    Ok(statements)
}

fn ensure_covered(statements: &Statements) -> anyhow::Result<()> {
    let count = report::Count::of(&statements.all);
    ensure!(
        count.covered * 100 >= count.denominator() * LEAST_PERCENT,
        "{} of {} statements are covered, less than {LEAST_PERCENT} %",
        count.covered,
        count.denominator()
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::statements::parse;
    use super::*;

    /// What keeps the coverage: it runs with every change.
    #[test]
    fn every_proof_exists_and_enough_is_covered() {
        ensure_covered(&checked(&paths::workspace()).unwrap()).unwrap();
    }

    #[test]
    fn less_than_nine_tenths_is_refused() {
        let rules = |covered: usize, not: usize| {
            let covered = "{ must = \"a\", covered_by = [\"t\"] },\n".repeat(covered);
            let not = "{ must = \"b\", not_covered = \"nobody has\" },\n".repeat(not);
            let text = format!("[\"2.1.1\"]\ntitle = \"x\"\ndevice = [\n{covered}{not}]\n");
            parse("", [("2.toml", text.as_str())]).unwrap()
        };
        assert!(ensure_covered(&rules(9, 1)).is_ok());
        let error = ensure_covered(&rules(8, 1)).unwrap_err().to_string();
        assert_eq!(error, "8 of 9 statements are covered, less than 90 %");
    }
}
