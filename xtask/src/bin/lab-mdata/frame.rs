//! Frames of version 2 of SmartOS' metadata protocol. Shared source of the guest's side and of the agent's.

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;

/// A request or its answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    /// Eight hexadecimal digits, the same in a request and its answer.
    pub id: String,
    /// The command, or what became of it.
    pub word: String,
    /// What goes with it, not encoded.
    pub payload: Option<Vec<u8>>,
}

impl Frame {
    /// Its line, with the line's end.
    pub fn line(&self) -> String {
        let mut body = format!("{} {}", self.id, self.word);
        if let Some(payload) = &self.payload {
            body += &format!(" {}", BASE64_STANDARD.encode(payload));
        }
        format!("V2 {} {:08x} {body}\n", body.len(), crc32fast::hash(body.as_bytes()))
    }

    /// The frame of a line; `None` when it is damaged or no frame.
    pub fn parse(line: &str) -> Option<Self> {
        let (length, rest) = line.strip_prefix("V2 ")?.split_once(' ')?;
        let (sum, body) = rest.split_once(' ')?;
        let whole = length.parse() == Ok(body.len()) && sum == format!("{:08x}", crc32fast::hash(body.as_bytes()));
        let mut words = whole.then_some(body)?.split(' ');
        let (id, word) = (words.next()?.to_owned(), words.next()?.to_owned());
        let payload = match words.next() {
            Some(text) => Some(BASE64_STANDARD.decode(text).ok()?),
            None => None,
        };
        Some(Self { id, word, payload })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_comes_back_as_it_was_and_a_damaged_one_does_not() {
        for payload in [None, Some(Vec::new()), Some(b"root_authorized_keys".to_vec()), Some((0..=255).collect())] {
            let frame = Frame { id: "dc4fae17".to_owned(), word: "GET".to_owned(), payload };
            let line = frame.line();
            let line = line.strip_suffix('\n').unwrap();
            assert_eq!(Frame::parse(line), Some(frame));
            for at in 0..line.len() {
                let mut damaged = line.to_owned().into_bytes();
                damaged[at] ^= 1;
                assert_eq!(Frame::parse(&String::from_utf8(damaged).unwrap()), None, "{at} of {line}");
            }
        }
    }

    /// Length and checksum of one that was worked out by hand (`printf 'dc4fae17 KEYS' | crc32 /dev/stdin`).
    #[test]
    fn the_length_is_that_of_the_body_and_the_checksum_is_the_usual_one() {
        let frame = Frame { id: "dc4fae17".to_owned(), word: "KEYS".to_owned(), payload: None };
        assert_eq!(frame.line(), "V2 13 7c5eff90 dc4fae17 KEYS\n");
    }
}
