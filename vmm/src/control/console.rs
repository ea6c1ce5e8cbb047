//! What is typed on the terminal: Ctrl-A begins a word to zvmm, everything else goes to the guest.

/// Ctrl-A.
const ESCAPE: u8 = 0x01;

/// Shown on Ctrl-A h.
pub(super) const HELP: &str = "\r\n\
    Ctrl-A h  this help\r\n\
    Ctrl-A x  leave: the guest ends at once\r\n\
    Ctrl-A b  send a break\r\n\
    Ctrl-A a  send Ctrl-A\r\n";

/// What a typed byte means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Typed {
    /// A byte for the guest.
    Byte(u8),
    /// Send a break.
    Break,
    /// End the guest and leave.
    Leave,
    /// Show the help text.
    Help,
}

/// Tells words to zvmm from bytes for the guest. The keys are those that qemu users know.
#[derive(Debug, Default)]
pub struct Escape {
    pending: bool,
}

impl Escape {
    /// Judges the next byte; `None`: it needs the one after it.
    pub fn typed(&mut self, byte: u8) -> Option<Typed> {
        match (std::mem::take(&mut self.pending), byte) {
            (false, ESCAPE) => {
                self.pending = true;
                None
            }
            (false, byte) => Some(Typed::Byte(byte)),
            (true, b'x' | b'X' | 0x18) => Some(Typed::Leave),
            (true, b'b' | b'B' | 0x02) => Some(Typed::Break),
            (true, b'h' | b'H' | b'?' | 0x08) => Some(Typed::Help),
            (true, b'a' | b'A' | ESCAPE) => Some(Typed::Byte(ESCAPE)),
            (true, _) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn type_all(bytes: &[u8]) -> Vec<Typed> {
        let mut escape = Escape::default();
        bytes.iter().filter_map(|byte| escape.typed(*byte)).collect()
    }

    #[test]
    fn bytes_go_to_the_guest_with_control_c_among_them() {
        assert_eq!(type_all(b"a\x03\x00\xff"), [0x61, 3, 0, 0xff].map(Typed::Byte));
    }

    #[test]
    fn the_escape_key_begins_a_word() {
        assert_eq!(type_all(b"\x01x"), [Typed::Leave]);
        assert_eq!(type_all(b"\x01b\x01h"), [Typed::Break, Typed::Help]);
        assert_eq!(type_all(b"\x01a"), [Typed::Byte(1)]);
    }

    #[test]
    fn an_escape_that_means_nothing_swallows_its_letter_only() {
        assert_eq!(type_all(b"\x01qx"), [Typed::Byte(b'x')]);
    }

    #[test]
    fn the_escape_key_twice_sends_it_once() {
        assert_eq!(type_all(b"\x01\x01x"), [Typed::Byte(1), Typed::Byte(b'x')]);
    }
}
