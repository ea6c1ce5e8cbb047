//! Finds the messages in a stream of bytes.

/// The longest message, in bytes.
pub const MAX_MESSAGE: usize = 64 * 1024;

/// What was found.
#[derive(Debug, PartialEq, Eq)]
pub enum Frame {
    /// The bytes of one message; whether they are JSON is for the reader to find out.
    Message(Vec<u8>),
    /// A message longer than [`MAX_MESSAGE`]. Its rest is skipped up to the end of the line, or to where the client starts
    /// over.
    TooLong,
}

/// Splits a stream into messages: JSON objects and arrays by their brackets, anything else by lines.
///
/// Neither line ends nor the pieces in which the bytes arrive matter, as with qemu. A line feed inside a string, which
/// JSON forbids, ends the message, so that a forgotten quote costs one line and not the connection.
#[derive(Debug, Default)]
pub struct Framing {
    message: Vec<u8>,
    depth: usize,
    in_string: bool,
    escaped: bool,
    skipping: bool,
}

impl Framing {
    /// Feeds one byte; gives what it completed.
    pub fn byte(&mut self, byte: u8) -> Option<Frame> {
        // qemu's clients send 0xFF, which no JSON text holds, to have a half-sent message forgotten.
        if byte == 0xff {
            *self = Self::default();
            return None;
        }
        if self.skipping {
            self.skipping = byte != b'\n';
            return None;
        }
        if self.message.is_empty() && byte.is_ascii_whitespace() {
            return None;
        }
        if byte == b'\n' && (self.in_string || self.depth == 0) {
            return self.complete();
        }
        if self.message.len() == MAX_MESSAGE {
            *self = Self { skipping: byte != b'\n', ..Self::default() };
            return Some(Frame::TooLong);
        }
        self.message.push(byte);
        match byte {
            _ if self.escaped => self.escaped = false,
            b'\\' if self.in_string => self.escaped = true,
            b'"' => self.in_string = !self.in_string,
            _ if self.in_string => {}
            b'{' | b'[' => self.depth += 1,
            b'}' | b']' => {
                self.depth = self.depth.saturating_sub(1);
                if self.depth == 0 {
                    return self.complete();
                }
            }
            _ => {}
        }
        None
    }

    /// Bytes that are kept.
    pub fn buffered_bytes(&self) -> usize {
        self.message.len()
    }

    fn complete(&mut self) -> Option<Frame> {
        Some(Frame::Message(std::mem::take(self).message))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frames(bytes: &[u8]) -> Vec<String> {
        let mut framing = Framing::default();
        let text = |frame| match frame {
            Frame::Message(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
            Frame::TooLong => "too long".to_owned(),
        };
        bytes.iter().filter_map(|byte| framing.byte(*byte)).map(text).collect()
    }

    #[test]
    fn objects_are_found_with_and_without_line_ends_between_them() {
        assert_eq!(frames(b"{\"a\":1}\r\n{\"b\":{}}{}\n\n[1]"), ["{\"a\":1}", "{\"b\":{}}", "{}", "[1]"]);
        assert_eq!(frames(b"{\"a\":\n1}"), ["{\"a\":\n1}"]);
    }

    #[test]
    fn brackets_and_quotes_inside_strings_do_not_count() {
        assert_eq!(frames(br#"{"a":"}\"]{"}{}"#), [r#"{"a":"}\"]{"}"#, "{}"]);
    }

    #[test]
    fn other_text_is_a_message_a_line() {
        assert_eq!(frames(b"hello\n42\n{}\n"), ["hello", "42", "{}"]);
    }

    #[test]
    fn a_forgotten_quote_costs_one_line() {
        assert_eq!(frames(b"{\"a: 1}\n{}\n"), ["{\"a: 1}", "{}"]);
    }

    #[test]
    fn a_message_beyond_the_limit_is_skipped_to_the_end_of_its_line() {
        let mut bytes = vec![b'{'; MAX_MESSAGE * 3];
        bytes.extend_from_slice(b"}}}\n{}");
        assert_eq!(frames(&bytes), ["too long", "{}"]);
        let mut longest = vec![b' '; MAX_MESSAGE - 2];
        longest.insert(0, b'{');
        longest.push(b'}');
        assert_eq!(frames(&longest).len(), 1);
        assert_ne!(frames(&longest), ["too long"]);
    }

    #[test]
    fn the_reset_byte_forgets_a_half_message() {
        assert_eq!(frames(b"{\"a\":\xff{}"), ["{}"]);
    }

    #[test]
    fn the_reset_byte_ends_a_message_that_was_too_long() {
        let mut bytes = vec![b'{'; MAX_MESSAGE + 1];
        bytes.extend_from_slice(b"{{\xff{}");
        assert_eq!(frames(&bytes), ["too long", "{}"], "a client that starts over is heard");
    }
}
