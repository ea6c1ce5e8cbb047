//! Options as getopt(3C) tells them apart: letters, clustered or not, with arguments joined to them or behind them.

use super::super::ConfigError;
use super::support::{LETTERS, Word, find, unknown};

/// One option as it was given.
#[derive(Debug, Clone, Copy)]
pub(super) struct Given<'a> {
    /// Its entry.
    pub(super) letter: &'static Word,
    /// Its argument; empty for a letter that takes none.
    pub(super) argument: &'a str,
}

/// Splits a command line without the program's name into its options, in their order, and what follows them.
///
/// # Errors
/// A letter that nobody knows, or one without the argument it takes.
pub(super) fn split(args: &[String]) -> Result<(Vec<Given<'_>>, &[String]), ConfigError> {
    let mut options = Vec::new();
    let mut rest = args;
    while let Some((word, behind)) = rest.split_first() {
        let Some(letters) = word.strip_prefix('-').filter(|letters| !letters.is_empty()) else { break };
        rest = behind;
        if letters == "-" {
            break;
        }
        let mut letters = letters.chars();
        while let Some(letter) = letters.next() {
            let name = letter.to_string();
            // getopt(3C) answers itself with '?', so that people type it for help.
            let known = find(&LETTERS, if letter == '?' { "h" } else { &name });
            let Some(known) = known else {
                let line = match word.starts_with("--") {
                    true => format!("'{word}' is no option of bhyve's; they are letters, and -h explains them"),
                    false => format!("unknown option '-{letter}'; -h explains those there are"),
                };
                return Err(ConfigError::Usage(line));
            };
            let mut argument = "";
            if !known.argument.is_empty() {
                argument = std::mem::replace(&mut letters, "".chars()).as_str();
                if argument.is_empty() {
                    let Some((next, behind)) = rest.split_first() else {
                        return Err(ConfigError::setting(&format!("-{letter}"), missing(known)));
                    };
                    (argument, rest) = (next, behind);
                }
            }
            options.push(Given { letter: known, argument });
        }
    }
    Ok((options, rest))
}

fn missing(letter: &Word) -> String {
    format!("no value is given; write -{} {}", letter.word, letter.argument)
}

/// The parts between commas, and none where there is no text.
pub(super) fn parts(text: &str) -> impl Iterator<Item = &str> {
    text.split(',').filter(move |_| !text.is_empty())
}

/// The value of a key that is on or off, in the words of bhyve's configuration.
///
/// # Errors
/// What would be right.
pub(super) fn boolean(text: &str) -> Result<bool, String> {
    match text.to_ascii_lowercase().as_str() {
        "true" | "yes" | "on" | "1" => Ok(true),
        "false" | "no" | "off" | "0" => Ok(false),
        _ => Err(format!("'{text}' is neither true nor false")),
    }
}

/// A key and its value behind a device; a key that takes none has an empty one.
///
/// # Errors
/// A key that nobody knows or that is refused, a value missing or too much.
pub(super) fn key<'a>(part: &'a str, keys: &'static [Word]) -> Result<(&'static Word, &'a str), String> {
    let (name, value) = part.split_once('=').map_or((part, None), |(name, value)| (name, Some(value)));
    let Some(known) = find(keys, name) else { return Err(unknown("key", name, keys)) };
    match (known.argument, value) {
        ("", None) => Ok((known, "")),
        ("", Some(_)) => Err(format!("{name} takes no value")),
        (argument, None | Some("")) => Err(format!("{name} has no value; write {name}={argument}")),
        (_, Some(value)) => Ok((known, value)),
    }
}
