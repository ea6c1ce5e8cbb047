//! The table of `docs/smartos.md` is that which the parser reads.

use super::options;

const MANUAL: &str = include_str!("../../../../docs/smartos.md");

/// The table that the manual has to hold.
fn table() -> String {
    let mut text = String::from("| Option | Here | How, or why |\n|---|---|---|\n");
    for option in options() {
        let argument = option.argument.map(|name| format!(" {name}")).unwrap_or_default();
        let escaped = argument.replace('|', "\\|");
        text.push_str(&format!("| `-{}{escaped}` | {} | {} |\n", option.name, option.status.name(), option.about));
    }
    text
}

#[test]
fn the_manual_has_what_the_parser_reads() {
    let table = table();
    assert!(MANUAL.contains(&format!("\n\n{table}")), "docs/smartos.md lacks this table:\n\n{table}");
}
