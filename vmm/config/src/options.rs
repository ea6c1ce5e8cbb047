//! Option values of the form `VALUE,key=value,flag`, as in `--disk root.img,ro,slot=4`.

use std::num::IntErrorKind;
use std::str::FromStr;

use super::{ConfigError, nearest};

/// The keys of one option value. A comma inside a value is written twice.
#[derive(Debug)]
pub struct Options {
    option: &'static str,
    given: Vec<(String, Option<String>)>,
}

impl Options {
    /// Splits the text and refuses keys that are not in `keys` or come twice.
    ///
    /// `first` is the key of a leading part without `=`, such as the path of a disk.
    pub fn read(
        option: &'static str,
        text: &str,
        first: Option<&'static str>,
        keys: &[&'static str],
    ) -> Result<Self, ConfigError> {
        let mut options = Self { option, given: Vec::new() };
        for (index, part) in split_commas(text).into_iter().enumerate() {
            let known = |key: &str| keys.contains(&key) || first == Some(key);
            let (key, value) = match (part.split_once('='), first) {
                (Some((key, value)), _) if known(key) => (key.to_owned(), Some(value.to_owned())),
                // A path may hold '=': only a leading part that looks like a key is one.
                (Some((key, _)), Some(first)) if index == 0 && key.contains('/') => (first.to_owned(), Some(part)),
                (None, Some(first)) if index == 0 && !known(&part) => (first.to_owned(), Some(part)),
                (None, _) if known(&part) => (part, None),
                (split, _) => {
                    let key = split.map_or(part.as_str(), |(key, _)| key);
                    return Err(options.problem(nearest::unknown("key", key, keys.iter().copied().chain(first))));
                }
            };
            if options.given.iter().any(|(other, _)| *other == key) {
                return Err(options.problem(format!("{key} is given twice")));
            }
            options.given.push((key, value));
        }
        Ok(options)
    }

    /// An error about this option.
    pub fn problem(&self, problem: impl Into<String>) -> ConfigError {
        ConfigError::setting(self.option, problem)
    }

    /// A switch: `ro`, `ro=on` or `ro=off`.
    pub fn flag(&self, key: &str) -> Result<bool, ConfigError> {
        match self.given.iter().find(|(other, _)| other == key) {
            None => Ok(false),
            Some((_, None)) => Ok(true),
            Some((_, Some(value))) => on_off(value).map_err(|problem| self.problem(format!("{key}={problem}"))),
        }
    }

    /// The text of a key, if given.
    pub fn text(&self, key: &str) -> Result<Option<String>, ConfigError> {
        match self.given.iter().find(|(other, _)| other == key) {
            None => Ok(None),
            Some((_, Some(value))) => Ok(Some(value.clone())),
            Some((_, None)) => Err(self.problem(format!("{key} has no value; write {key}=…"))),
        }
    }

    /// The text of a key that must be given.
    pub fn required(&self, key: &str, example: &str) -> Result<String, ConfigError> {
        match self.text(key)? {
            Some(value) if !value.is_empty() => Ok(value),
            _ => Err(self.problem(format!("{key} is missing; write for example {example}"))),
        }
    }

    /// The value of a key, if given.
    pub fn value<T: FromStr<Err: std::fmt::Display>>(&self, key: &str) -> Result<Option<T>, ConfigError> {
        let parse = |text: String| text.parse().map_err(|error| self.problem(format!("{key}={text}: {error}")));
        self.text(key)?.map(parse).transpose()
    }

    /// The number of a key, if given; `max` is the largest that fits.
    pub fn number<T: TryFrom<u64>>(&self, key: &str) -> Result<Option<T>, ConfigError> {
        let parse = |text: String| match text.parse::<u64>() {
            Ok(number) => T::try_from(number).map_err(|_| self.problem(format!("{key}={text} is too large"))),
            Err(error) if *error.kind() == IntErrorKind::PosOverflow => {
                Err(self.problem(format!("{key}={text} is too large")))
            }
            Err(_) => Err(self.problem(format!("{key}={text} is not a number"))),
        };
        self.text(key)?.map(parse).transpose()
    }
}

/// Reads `on` or `off`.
pub fn on_off(text: &str) -> Result<bool, String> {
    match text {
        "on" => Ok(true),
        "off" => Ok(false),
        _ => Err(format!("'{text}' is neither on nor off")),
    }
}

fn split_commas(text: &str) -> Vec<String> {
    let mut parts = vec![String::new()];
    let mut letters = text.chars().peekable();
    while let Some(letter) = letters.next() {
        let doubled = letter == ',' && letters.next_if_eq(&',').is_some();
        match parts.last_mut() {
            Some(part) if letter != ',' || doubled => part.push(letter),
            _ => parts.push(String::new()),
        }
    }
    parts
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEYS: &[&str] = &["ro", "slot", "serial"];

    fn read(text: &str) -> Result<Options, String> {
        Options::read("--disk", text, Some("path"), KEYS).map_err(|error| error.to_string())
    }

    #[test]
    fn a_leading_part_without_a_key_is_the_first_value() {
        let options = read("root.img,ro,slot=4").unwrap();
        assert_eq!(options.text("path"), Ok(Some("root.img".into())));
        assert_eq!((options.flag("ro"), options.number::<u8>("slot")), (Ok(true), Ok(Some(4))));
        assert_eq!(read("path=root.img").unwrap().text("path"), Ok(Some("root.img".into())));
    }

    #[test]
    fn a_doubled_comma_is_a_comma_and_a_path_may_hold_an_equals_sign() {
        assert_eq!(read("a,,b,ro").unwrap().text("path"), Ok(Some("a,b".into())));
        assert_eq!(read("/vm/a=b,ro").unwrap().text("path"), Ok(Some("/vm/a=b".into())));
    }

    #[test]
    fn an_unknown_key_is_answered_with_the_nearest_one() {
        assert_eq!(read("a,serail=1").unwrap_err(), "--disk: unknown key 'serail'; did you mean 'serial'?");
        assert_eq!(read("a,r0").unwrap_err(), "--disk: unknown key 'r0'; did you mean 'ro'?");
        assert_eq!(read("a,").unwrap_err(), "--disk: unknown key ''; the valid ones are ro, slot, serial, path");
    }

    #[test]
    fn a_key_given_twice_or_without_its_value_is_refused() {
        assert_eq!(read("a,slot=1,slot=2").unwrap_err(), "--disk: slot is given twice");
        assert!(read("a,slot").unwrap().text("slot").unwrap_err().to_string().contains("slot has no value"));
        assert!(read("a,ro=maybe").unwrap().flag("ro").unwrap_err().to_string().contains("neither on nor off"));
    }

    #[test]
    fn a_missing_first_value_is_named() {
        let error = read("ro").unwrap().required("path", "root.img").unwrap_err().to_string();
        assert_eq!(error, "--disk: path is missing; write for example root.img");
    }

    #[test]
    fn a_number_that_does_not_fit_is_refused() {
        let error = read("a,slot=300").unwrap().number::<u8>("slot").unwrap_err().to_string();
        assert_eq!(error, "--disk: slot=300 is too large");
        let error = read("a,slot=99999999999999999999").unwrap().number::<u64>("slot").unwrap_err().to_string();
        assert_eq!(error, "--disk: slot=99999999999999999999 is too large");
        let error = read("a,slot=x").unwrap().number::<u8>("slot").unwrap_err().to_string();
        assert_eq!(error, "--disk: slot=x is not a number");
    }
}
