//! The command line of the kvm brand's qemu, an argument a line: what is accepted is a machine that reads back as itself,
//! and a refusal is one plain line.
//!
//! Beside that, the words are told apart here once more: an option that is refused, or one whose argument is missing, makes no
//! machine; one without effect and one that nobody knows has a note each; and two dashes mean what one means.

use zvmm::config::qemu::{QemuOption, Status, options, translate};
use zvmm::config::{Fate, Note, Translation};

use super::bhyve_argv::words;
use crate::judge;
use crate::stats;

/// Reads the input as qemu's arguments.
///
/// # Panics
/// On a finding.
pub fn run(data: &[u8]) {
    let args = words(data);
    stats::operations(args.len());
    let outcome = translate(&args);
    match &outcome {
        Ok(translation) => judge::translation(translation),
        Err(error) => drop(judge::message(error)),
    }
    let Some(given) = split(&args) else {
        assert!(outcome.is_err(), "{args:?} has no option, or no argument of one: {outcome:?}");
        return;
    };
    let refused = given.iter().find_map(|given| given.option.filter(|option| option.status == Status::Refused));
    assert!(refused.is_none() || outcome.is_err(), "{refused:?} is taken: {outcome:?}");
    if let Ok(translation) = &outcome {
        judge_notes(&given, &translation.notes);
    }
    let dashes: Vec<String> = given.iter().flat_map(Given::with_two_dashes).collect();
    match (&outcome, translate(&dashes)) {
        (Ok(one), Ok(two)) => assert_eq!(known(one), known(&two), "written as {dashes:?}"),
        (one, two) => assert_eq!(one.is_ok(), two.is_ok(), "{one:?} is {two:?} when written as {dashes:?}"),
    }
}

/// An option as it was given.
struct Given<'a> {
    name: &'a str,
    /// What it is; `None` where nobody knows.
    option: Option<QemuOption>,
    argument: Option<&'a str>,
}

impl Given<'_> {
    fn with_two_dashes(&self) -> Vec<String> {
        [Some(format!("--{}", self.name)), self.argument.map(str::to_owned)].into_iter().flatten().collect()
    }
}

/// Options with their arguments; `None` where there is something else, or an argument is missing.
fn split(args: &[String]) -> Option<Vec<Given<'_>>> {
    let mut given = Vec::new();
    let mut at = 0;
    while let Some(word) = args.get(at) {
        at += 1;
        let name = word.strip_prefix("--").or(word.strip_prefix('-')).filter(|name| !name.is_empty())?;
        let option = options().find(|option| option.name == name);
        let next = args.get(at).map(String::as_str);
        let argument = match option {
            Some(QemuOption { argument: None, .. }) => None,
            Some(_) => Some(next?),
            None => next.filter(|next| !next.starts_with('-')),
        };
        at += usize::from(argument.is_some());
        given.push(Given { name, option, argument });
    }
    Some(given)
}

/// Nothing that has no effect is passed over in silence.
fn judge_notes(given: &[Given<'_>], notes: &[Note]) {
    let unknown = given.iter().filter(|given| given.option.is_none()).count();
    let noted = notes.iter().filter(|note| note.fate == Fate::Unknown).count();
    assert_eq!(noted, unknown, "options that nobody knows, among {notes:?}");
    for each in given {
        let Some(QemuOption { name, status: Status::Ignored | Status::NotBuilt, .. }) = each.option else { continue };
        let wanted = given.iter().filter(|other| other.name == name).count();
        let is_its = |note: &&Note| {
            let rest = note.what.strip_prefix('-').and_then(|what| what.strip_prefix(name));
            note.fate != Fate::Unknown && rest.is_some_and(|rest| rest.is_empty() || rest.starts_with(' '))
        };
        assert_eq!(notes.iter().filter(is_its).count(), wanted, "notes of -{name}, among {notes:?}");
    }
}

/// What does not show how many dashes there were.
fn known(translation: &Translation) -> Translation {
    let mut known = translation.clone();
    known.notes.retain(|note| note.fate != Fate::Unknown);
    known
}

/// The words.
#[must_use]
pub fn explain(data: &[u8]) -> String {
    format!("qemu {:?}\n{:?}\n", words(data), translate(&words(data)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_told_apart_and_written_with_two_dashes() {
        let args = words(b"-m\n64\n-xyz\nvalue\n--xyz\n-usb\n-name\n-v");
        let given = split(&args).unwrap();
        let again: Vec<String> = given.iter().flat_map(Given::with_two_dashes).collect();
        assert_eq!(again, words(b"--m\n64\n--xyz\nvalue\n--xyz\n--usb\n--name\n-v"));
        assert!(split(&words(b"-m")).is_none() && split(&words(b"disk")).is_none() && split(&words(b"--")).is_none());
    }

    #[test]
    #[should_panic(expected = "notes of -usb")]
    fn an_option_without_effect_that_is_passed_over_is_found() {
        judge_notes(&split(&words(b"-usb")).unwrap(), &[]);
    }

    #[test]
    #[should_panic(expected = "nobody knows")]
    fn an_unknown_option_that_is_passed_over_is_found() {
        judge_notes(&split(&words(b"-xyz")).unwrap(), &[]);
    }
}
