//! The keys that the built-in metadata responder starts with, as one JSON file.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::File;
use std::io::Read;
use std::path::Path;

use serde::de::{Deserialize, Deserializer, Error, MapAccess, Visitor};
use serde_json::Value;

use super::host::system_text;

/// The longest file, in bytes. What is served stays in memory; and a wrong path (a disk image, `/dev/zero`) must not be
/// read whole.
const MAX_FILE_BYTES: u64 = 1 << 20;

/// Keys and their values: any bytes, as a guest may put them there.
pub type Metadata = BTreeMap<String, Vec<u8>>;

/// Reads the file: an object whose values are strings. Any other value but `null` is served as its JSON text.
///
/// # Errors
/// One line, with the file and where it is wrong.
pub fn read_metadata(file: &Path) -> Result<Metadata, String> {
    let mut text = String::new();
    let read = File::open(file).and_then(|open| open.take(MAX_FILE_BYTES + 1).read_to_string(&mut text));
    read.map_err(|error| format!("cannot read {}: {}", file.display(), system_text(&error)))?;
    if text.len() as u64 > MAX_FILE_BYTES {
        return Err(format!("cannot read {}: it is longer than 1 MiB", file.display()));
    }
    parse(&text).map_err(|error| {
        let text = error.to_string();
        let problem = text.rfind(" at line ").map_or(&*text, |end| &text[..end]).replace('`', "'");
        format!("{}:{}:{}: {problem}", file.display(), error.line(), error.column())
    })
}

/// Whether a name can be asked for and listed: names are separated by line ends, and blanks around them are dropped.
pub fn is_metadata_key(key: &str) -> bool {
    !key.is_empty() && key.trim() == key && !key.contains(char::is_control)
}

fn parse(text: &str) -> serde_json::Result<Metadata> {
    Ok(serde_json::from_str::<Keys>(text)?.0)
}

struct Keys(Metadata);

impl<'de> Deserialize<'de> for Keys {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(Keys(Metadata::new()))
    }
}

impl<'de> Visitor<'de> for Keys {
    type Value = Self;

    fn expecting(&self, text: &mut fmt::Formatter<'_>) -> fmt::Result {
        text.write_str("an object with the keys and values of the metadata")
    }

    fn visit_map<A: MapAccess<'de>>(mut self, mut map: A) -> Result<Self, A::Error> {
        while let Some(key) = map.next_key::<String>()? {
            if !is_metadata_key(&key) {
                let rule = "it has at least one character, none of control, and no blank at its ends";
                return Err(A::Error::custom(format!("{key:?} is not a key; {rule}")));
            }
            let value = match map.next_value()? {
                Value::String(text) => text.into_bytes(),
                Value::Null => {
                    return Err(A::Error::custom(format!("'{key}' has no value; leave out what does not exist")));
                }
                other => other.to_string().into_bytes(),
            };
            if self.0.insert(key.clone(), value).is_some() {
                return Err(A::Error::custom(format!("'{key}' is there twice")));
            }
        }
        Ok(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(text: &str) -> Result<Metadata, String> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        read_metadata(file.path()).map_err(|error| error.replace(&file.path().display().to_string(), "m.json"))
    }

    #[test]
    fn strings_are_served_as_they_are_and_all_else_as_json() {
        let all = said(
            r#"{"a": "line\nline", "é": "", "sdc:nics": [{"mac": "52:54", "mtu": 1500}], "n": 7, "t": true,
                "user script": "x"}"#,
        )
        .unwrap();
        let expected: [(&str, &[u8]); 6] = [
            ("a", b"line\nline"),
            ("\u{e9}", b""),
            ("sdc:nics", br#"[{"mac":"52:54","mtu":1500}]"#),
            ("n", b"7"),
            ("t", b"true"),
            ("user script", b"x"),
        ];
        assert_eq!(all, expected.into_iter().map(|(key, value)| (key.to_owned(), value.to_vec())).collect());
        assert_eq!(said("{}"), Ok(Metadata::new()));
    }

    #[test]
    fn what_is_wrong_is_said_with_its_place() {
        for (text, problem) in [
            ("[]", "m.json:1:0: invalid type: sequence, expected an object with the keys and values of the metadata"),
            ("{\n \"a\": 1,\n \"a\": 2}", "m.json:3:8: 'a' is there twice"),
            (r#"{"a": null}"#, "m.json:1:11: 'a' has no value; leave out what does not exist"),
            (
                r#"{" a": ""}"#,
                "m.json:1:5: \" a\" is not a key; it has at least one character, none of control, and no blank at its \
                 ends",
            ),
            (r#"{"": ""}"#, "m.json:1:3: \"\" is not a key; it has at least one"),
            (r#"{"a\nb": ""}"#, "m.json:1:7: \"a\\nb\" is not a key; it has at least one"),
            (r#"{"a": "b""#, "m.json:1:9: EOF while parsing an object"),
            ("{} {}", "m.json:1:4: trailing characters"),
            ("", "m.json:1:0: EOF while parsing a value"),
        ] {
            let error = said(text).unwrap_err();
            assert!(error.starts_with(problem), "{text}: {error}");
        }
    }

    #[test]
    fn a_file_that_cannot_be_read_is_named() {
        let error = read_metadata(Path::new("/nonexistent/m.json")).unwrap_err();
        assert_eq!(error, "cannot read /nonexistent/m.json: No such file or directory");
        let error = read_metadata(Path::new("/dev/zero")).unwrap_err();
        assert_eq!(error, "cannot read /dev/zero: it is longer than 1 MiB");
    }
}
