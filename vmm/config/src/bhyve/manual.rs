//! The tables of `docs/smartos.md` are those that the parser reads.

use super::support::{DISK_KEYS, DRIVERS, KEYS, LETTERS, LPC_DEVICES, NET_KEYS, Support, Word};

const MANUAL: &str = include_str!("../../../../docs/smartos.md");

/// The table that the manual has to hold.
fn table(before: &str, between: &str, words: &[Word]) -> String {
    let mut text = String::from("| Option | bhyve | Here |\n|---|---|---|\n");
    for Word { word, argument, meaning, support } in words {
        let fate = match support {
            Support::Implemented => "implemented".to_owned(),
            Support::Ignored(why) => format!("ignored: {why}"),
            Support::NotBuilt => "not built yet: accepted, and said once in the log".to_owned(),
            Support::Refused(why) => format!("refused: {why}"),
        };
        let between = if argument.is_empty() { "" } else { between };
        text.push_str(&format!("| `{before}{word}{between}{argument}` | {meaning} | {fate} |\n"));
    }
    text
}

#[test]
fn the_manual_has_what_the_parser_reads() {
    for table in [
        table("-", " ", &LETTERS),
        table("-s SLOT,", ",", &DRIVERS),
        table("", "=", &DISK_KEYS),
        table("", "=", &NET_KEYS),
        table("-l ", ",", &LPC_DEVICES),
        table("-o ", "=", &KEYS),
    ] {
        assert!(MANUAL.contains(&format!("\n\n{table}")), "docs/smartos.md lacks this table:\n\n{table}");
    }
}
