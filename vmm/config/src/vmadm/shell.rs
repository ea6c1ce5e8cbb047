//! What a shell makes of text, and text that a shell makes this of.
//!
//! The kvm brand's command line is in a script of bash's: arguments of VM.js' own in double quotes, `qemu_opts` and
//! `qemu_extra_opts` as they are. What a shell would look up or run is not known outside of the zone, so it is refused.

use crate::ConfigError;

/// Refuses words that change inside of double quotes.
pub(super) fn check_in_quotes(key: &str, words: &[String]) -> Result<(), ConfigError> {
    match words.iter().find_map(|word| word.chars().find(|letter| matches!(letter, '"' | '$' | '`' | '\\'))) {
        None => Ok(()),
        Some(letter) => {
            let problem = format!("the shell that starts the guest reads '{letter}' as its own; leave it out");
            Err(ConfigError::setting(key, problem))
        }
    }
}

/// Splits text into words as a shell does, with its quotes.
pub(super) fn words(key: &str, text: &str) -> Result<Vec<String>, ConfigError> {
    let problem = |problem: String| Err(ConfigError::setting(key, problem));
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut quote = None;
    let mut letters = text.chars().peekable();
    while let Some(letter) = letters.next() {
        match (quote, letter) {
            (Some(open), _) if letter == open => quote = None,
            (None, '\'' | '"') => {
                quote = Some(letter);
                word.get_or_insert_default();
            }
            (None | Some('"'), '$' | '`') => {
                return problem(format!("'{letter}' is for a shell to read; write what it comes to"));
            }
            (None, '*' | '?' | '[' | '{' | ';' | '&' | '|' | '<' | '>' | '(' | ')') => {
                return problem(format!("'{letter}' is for a shell to read; put it in quotes"));
            }
            (None, '#' | '~') if word.is_none() => {
                return problem(format!("'{letter}' at the start of a word is for a shell to read; put it in quotes"));
            }
            (None, '\n') => return problem("the command ends at a line break; write it in one line".to_owned()),
            (None, ' ' | '\t') => words.extend(word.take()),
            (None, '\\') => match letters.next() {
                // What the shell reads as no break at all.
                Some('\n') => {}
                Some(letter) => word.get_or_insert_default().push(letter),
                None => return problem("nothing follows the backslash at its end; leave it out".to_owned()),
            },
            (Some('"'), '\\') => match letters.next_if(|next| matches!(next, '$' | '`' | '"' | '\\' | '\n')) {
                Some('\n') => {}
                next => word.get_or_insert_default().push(next.unwrap_or(letter)),
            },
            _ => word.get_or_insert_default().push(letter),
        }
    }
    if let Some(open) = quote {
        return problem(format!("the quote {open} is not closed; add another"));
    }
    words.extend(word);
    Ok(words)
}

/// The word as a shell reads it. It does nothing to a terminal.
pub(super) fn quoted(word: &str) -> String {
    let is_plain = |letter: char| letter.is_ascii_alphanumeric() || "%+,-./:=@_".contains(letter);
    if word.contains(char::is_control) {
        let mut text = "$'".to_owned();
        for letter in word.chars() {
            match letter {
                '\'' | '\\' => text.extend(['\\', letter]),
                letter if letter.is_control() => text.push_str(&format!("\\u{:04x}", u32::from(letter))),
                letter => text.push(letter),
            }
        }
        text.push('\'');
        return text;
    }
    match word.is_empty() || !word.chars().all(is_plain) {
        true => format!("'{}'", word.replace('\'', r"'\''")),
        false => word.to_owned(),
    }
}
