//! What the process says on stderr besides its last word.

use std::fmt::Display;
use std::io::{Write, stderr, stdout};

use env_logger::{Builder, WriteStyle};
use log::LevelFilter;

use crate::config::LogRule;

/// Says one thing on stderr, in one line. Nobody reading is no reason to end a guest, as `eprintln!` would.
pub fn say(what: impl Display) {
    let _ = writeln!(stderr(), "zvmm: {}", line(what));
}

/// The text as one line that does nothing to a terminal: a configuration may come from somebody else, and its keys,
/// names and paths are in messages about it.
pub(crate) fn line(what: impl Display) -> String {
    let mut text = what.to_string().replace('\n', " ");
    if text.contains(char::is_control) {
        text = text.chars().map(|c| if c.is_control() { c.escape_default().to_string() } else { c.into() }).collect();
    }
    text
}

/// Writes a result to stdout. A reader that has seen enough (`| head`) is no failure.
pub fn print(what: impl Display) {
    let _ = writeln!(stdout(), "{what}");
}

/// Starts logging by the rules of the configuration; warnings and errors when there are none.
///
/// A line looks like `zvmm: warn: zvmm::vcpu: what happened`.
pub fn init(rules: &[LogRule]) {
    let mut builder = builder(rules);
    // Only a second call can fail, and then there is a logger already.
    let _ = builder.try_init();
}

fn builder(rules: &[LogRule]) -> Builder {
    let mut builder = Builder::new();
    builder.write_style(WriteStyle::Never).filter_level(LevelFilter::Warn);
    for rule in rules {
        match &rule.module {
            Some(module) => builder.filter_module(module, rule.level),
            None => builder.filter_level(rule.level),
        };
    }
    builder.format(|out, record| {
        let level = record.level().as_str().to_ascii_lowercase();
        writeln!(out, "zvmm: {level}: {}: {}", record.target(), line(record.args()))
    });
    builder
}

#[cfg(test)]
mod tests {
    use super::*;
    use log::{Level, Log, Metadata};

    #[test]
    fn a_message_about_hostile_text_is_one_line_without_control_characters() {
        assert_eq!(line("unknown key 'a\n\u{1b}[2Jb\rc'"), r"unknown key 'a \u{1b}[2Jb\rc'");
        assert_eq!(line("'é, ß' stays"), "'é, ß' stays");
    }

    #[test]
    fn rules_decide_by_module_and_warnings_are_the_default() {
        let rules = ["error", "zvmm::vcpu=debug"].map(|rule| rule.parse().unwrap());
        for (rules, target, level, written) in [
            (&[][..], "zvmm::machine", Level::Warn, true),
            (&[][..], "zvmm::machine", Level::Info, false),
            (&rules[..], "zvmm::vcpu", Level::Debug, true),
            (&rules[..], "zvmm::vcpu", Level::Trace, false),
            (&rules[..], "zvmm::machine", Level::Warn, false),
        ] {
            let logger = builder(rules).build();
            let metadata = Metadata::builder().target(target).level(level).build();
            assert_eq!(logger.enabled(&metadata), written, "{rules:?} {target} {level}");
        }
    }
}
