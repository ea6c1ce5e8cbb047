//! bhyve's command line, an argument a line: what is accepted is a machine that reads back as itself, and a refusal is one
//! plain line.
//!
//! Beside that, the letters are told apart here once more: what nobody knows, what is refused, an argument or a name that is
//! missing makes no machine, and however the same letters are written (one word each, or together, with their arguments
//! joined to them) they mean the same.

use zvmm::config::ConfigError;
use zvmm::config::bhyve::{Request, translate};

use crate::judge;
use crate::stats;

/// bhyve's letters that take an argument.
const WITH_ARGUMENT: &str = "BcGklmosU";
/// Its other letters; '?' is what getopt answers itself.
const ALONE: &str = "aACdDeh?HIPSuwWxY";
/// Those that no guest is started with.
const REFUSED: &str = "CdGk";
/// Those that are noted and have no effect.
const IGNORED: &str = "aADeHIPuwWxY";
/// What the brand's boot hook passes, without the program's name.
const MOST_WORDS: usize = 99;

/// Reads the input as bhyve's arguments.
///
/// # Panics
/// On a finding.
pub fn run(data: &[u8]) {
    let args = words(data);
    stats::operations(args.len());
    judge_words(&args);
}

/// The words of an input: whatever is no text is replaced, as nothing but text is read.
pub(super) fn words(data: &[u8]) -> Vec<String> {
    let text = String::from_utf8_lossy(data);
    if text.is_empty() { Vec::new() } else { text.split('\n').map(str::to_owned).collect() }
}

/// Judges what these arguments, without the program's name, come to.
pub(super) fn judge_words(args: &[String]) {
    let outcome = translate(args);
    match &outcome {
        Ok(Request::Run(translation) | Request::Dump(translation)) => judge::translation(translation),
        Ok(Request::Help) => {}
        Err(error) => drop(judge::message(error)),
    }
    let Some((options, rest)) = split(args).filter(|_| args.len() <= MOST_WORDS) else {
        assert!(outcome.is_err(), "{args:?} has what nobody knows: {outcome:?}");
        return;
    };
    let given = |letters: &str| options.iter().filter(|(letter, _)| letters.contains(*letter)).count();
    if given("h?") > 0 {
        assert_eq!(outcome, Ok(Request::Help));
        return;
    }
    let [name] = rest else {
        assert!(outcome.is_err(), "{args:?} has no name, or two: {outcome:?}");
        return;
    };
    assert!(given(REFUSED) == 0 || outcome.is_err(), "{args:?} is taken: {outcome:?}");
    if let Ok(Request::Run(translation) | Request::Dump(translation)) = &outcome {
        assert_eq!(&translation.config.name, name);
        for letter in IGNORED.chars() {
            let word = format!("-{letter}");
            let noted = translation.notes.iter().filter(|note| note.what == word).count();
            assert_eq!(noted, given(&letter.to_string()), "notes of {word} among {:?}", translation.notes);
        }
    }
    for other in [apart(&options, name), together(&options, name)] {
        if other.len() <= MOST_WORDS {
            same(&translate(&other), &outcome, &other);
        }
    }
}

fn same(other: &Result<Request, ConfigError>, outcome: &Result<Request, ConfigError>, words: &[String]) {
    assert_eq!(other, outcome, "written as {words:?}");
}

type Options<'a> = Vec<(char, &'a str)>;

/// Letters with their arguments, and what follows them; `None` where a letter or its argument is none.
fn split(args: &[String]) -> Option<(Options<'_>, &[String])> {
    let mut options = Vec::new();
    let mut at = 0;
    while let Some(word) = args.get(at).filter(|word| word.len() > 1 && word.starts_with('-')) {
        at += 1;
        if word == "--" {
            break;
        }
        let letters = word.char_indices().skip(1);
        for (index, letter) in letters {
            if ALONE.contains(letter) {
                options.push((letter, ""));
                continue;
            }
            if !WITH_ARGUMENT.contains(letter) {
                return None;
            }
            let joined = &word[index + 1..];
            if joined.is_empty() {
                options.push((letter, args.get(at)?.as_str()));
                at += 1;
            } else {
                options.push((letter, joined));
            }
            break;
        }
    }
    Some((options, &args[at..]))
}

/// Every letter and every argument a word of its own.
fn apart(options: &Options<'_>, name: &str) -> Vec<String> {
    let mut words = Vec::new();
    for (letter, argument) in options {
        words.push(format!("-{letter}"));
        if WITH_ARGUMENT.contains(*letter) {
            words.push((*argument).to_owned());
        }
    }
    words.extend(["--".to_owned(), name.to_owned()]);
    words
}

/// Letters in one word up to one with an argument, which is joined to it unless it is empty.
fn together(options: &Options<'_>, name: &str) -> Vec<String> {
    let mut words = Vec::new();
    let mut word = String::new();
    for (letter, argument) in options {
        word = if word.is_empty() { "-".to_owned() } else { word };
        word.push(*letter);
        if WITH_ARGUMENT.contains(*letter) {
            words.push(std::mem::take(&mut word) + argument);
            if argument.is_empty() {
                words.push(String::new());
            }
        }
    }
    words.extend(Some(word).filter(|word| !word.is_empty()));
    words.extend(["--".to_owned(), name.to_owned()]);
    words
}

/// The words.
#[must_use]
pub fn explain(data: &[u8]) -> String {
    format!("bhyve {:?}\n{:?}\n", words(data), translate(&words(data)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn letters_are_told_apart_and_written_both_ways() {
        let args = words(b"-Hm1g\n-c\n2\n-oa=b\n-m\n\nname");
        let (options, rest) = split(&args).unwrap();
        assert_eq!(options, [('H', ""), ('m', "1g"), ('c', "2"), ('o', "a=b"), ('m', "")]);
        assert_eq!(rest, ["name"]);
        assert_eq!(apart(&options, "name"), words(b"-H\n-m\n1g\n-c\n2\n-o\na=b\n-m\n\n--\nname"));
        assert_eq!(together(&options, "name"), words(b"-Hm1g\n-c2\n-oa=b\n-m\n\n--\nname"));
        assert_eq!((split(&words(b"-m")), split(&words(b"-Q"))), (None, None));
    }

    #[test]
    #[should_panic(expected = "written as")]
    fn another_meaning_of_the_same_letters_is_found() {
        let meaning = |text: &[u8]| translate(&words(text));
        same(&meaning(b"-c2\nvm"), &meaning(b"-c\n3\nvm"), &[]);
    }
}
