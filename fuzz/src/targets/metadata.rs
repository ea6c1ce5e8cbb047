//! A guest at the metadata responder: anything it may say, in any pieces, read as it likes.
//!
//! Byte 0 says which keys there are (bit 0 a few, bit 1 a large one; 0xff: there is hardly room for more). The rest is what
//! the guest says, byte by byte, but for these:
//!
//! ```text
//! 0x81 N …        the next N bytes as the body of a frame
//! 0x82 N B …      the same, with bit B of the frame flipped
//! 0x83 K V …      a frame that puts the next K bytes, the key, to the V bytes behind
//! 0x84 C N …      a frame with command C of `COMMANDS` and the next N bytes as its payload
//! 0x85 N          N × 2 KiB of x
//! 0x86            the guest is reset
//! 0x87 N          the guest reads N × 16 bytes of its answers
//! 0x88 N          from here on pieces of N bytes; 0: of any size
//! 0x89 B          byte B as it is
//! 0x8a K N …      a frame that puts the next K bytes, the key, to N × 128 dots and line ends
//! ```
//!
//! Oracles: no panic; each request has the answer that a model makes of it from the protocol's description, byte for byte,
//! and a refusal is a whole frame that says why; whatever it has said, a guest that begins a new line is heard; what is
//! held for requests and answers is bounded, and while too much waits to be read nothing is taken.

use std::fmt::Write as _;

use zvmm::config::Metadata;
use zvmm::control::Responder;

use crate::oracle::metadata::{MOST_REQUEST_BYTES, Model, Told, check_refusal, framed, to_base64, with_length_and_sum};
use crate::stats;

const COMMANDS: [&str; 7] = ["GET", "KEYS", "DELETE", "PUT", "NEGOTIATE", "V2", "get"];

/// What a guest says in more bytes than that is much of the same.
const MOST_INPUT_BYTES: usize = 2200;
/// Answers beyond that are not added to.
const MOST_UNREAD_BYTES: usize = 64 << 10;
/// The most bytes of [`filling`] a program has: a little more than a request may be long.
const MOST_FILLING_BYTES: usize = 300 << 10;
/// What the store may take in all.
const STORE_BYTES: usize = 1 << 20;

/// What happens next.
#[derive(Debug, PartialEq, Eq)]
enum Step {
    Say(Vec<u8>),
    Restart,
    Read(usize),
    Pieces(usize),
}

struct Input {
    keys: Metadata,
    steps: Vec<Step>,
}

impl Input {
    fn read(data: &[u8]) -> Self {
        let data = &data[..data.len().min(MOST_INPUT_BYTES)];
        let (knob, mut rest) = data.split_first().map_or((0, data), |(knob, rest)| (*knob, rest));
        let mut steps = Vec::new();
        let mut filling = Filling(MOST_FILLING_BYTES);
        while let Some((byte, behind)) = rest.split_first() {
            rest = behind;
            let said = match *byte {
                0x81 => with_length_and_sum(counted(&mut rest)),
                0x82 => {
                    let (count, bit) = (number(&mut rest), number(&mut rest));
                    let mut frame = with_length_and_sum(taken(&mut rest, count));
                    let bit = bit % (8 * frame.len());
                    frame[bit / 8] ^= 1 << (bit % 8);
                    frame
                }
                0x83 => {
                    let (key, value) = (number(&mut rest), number(&mut rest));
                    put(taken(&mut rest, key), taken(&mut rest, value))
                }
                0x84 => {
                    let command = COMMANDS[number(&mut rest) % COMMANDS.len()];
                    framed(b"0badcafe", command, counted(&mut rest))
                }
                0x85 => filling.of(b"x", 2048 * number(&mut rest)),
                0x86 => {
                    steps.push(Step::Restart);
                    continue;
                }
                0x87 => {
                    steps.push(Step::Read(16 * number(&mut rest)));
                    continue;
                }
                0x88 => {
                    steps.push(Step::Pieces(number(&mut rest)));
                    continue;
                }
                0x89 => taken(&mut rest, 1).to_vec(),
                0x8a => {
                    let (key, value) = (number(&mut rest), 128 * number(&mut rest));
                    put(taken(&mut rest, key), &filling.of(b".\n", value))
                }
                byte => vec![byte],
            };
            match steps.last_mut() {
                Some(Step::Say(before)) => before.extend(said),
                _ => steps.push(Step::Say(said)),
            }
        }
        Self { keys: keys(knob), steps }
    }
}

struct Filling(usize);

impl Filling {
    fn of(&mut self, what: &[u8], count: usize) -> Vec<u8> {
        let count = count.min(self.0);
        self.0 -= count;
        let mut filling = what.repeat(count.div_ceil(what.len()));
        filling.truncate(count);
        filling
    }
}

fn keys(knob: u8) -> Metadata {
    let few: [(&str, &[u8]); 6] = [
        ("a", b"1"),
        ("b", b".\n..two\nthree"),
        ("empty", b""),
        ("root_pw", b"secret"),
        ("sdc:nics", b"[]"),
        ("key with blanks", b"SUCCESS\n"),
    ];
    let mut keys = Metadata::new();
    if knob & 1 != 0 {
        keys.extend(few.map(|(key, value)| (key.to_owned(), value.to_vec())));
    }
    if knob == 0xff {
        // A name that is not written often: each answer is as long as thousands of others.
        keys.insert("full".repeat(50), vec![b'f'; STORE_BYTES - 1000]);
    } else if knob & 2 != 0 {
        keys.insert("big".to_owned(), b".\n".repeat(3000));
    }
    keys
}

fn taken<'a>(rest: &mut &'a [u8], count: usize) -> &'a [u8] {
    let (taken, behind) = rest.split_at(count.min(rest.len()));
    *rest = behind;
    taken
}

fn number(rest: &mut &[u8]) -> usize {
    taken(rest, 1).first().copied().unwrap_or(0).into()
}

fn counted<'a>(rest: &mut &'a [u8]) -> &'a [u8] {
    let count = number(rest);
    taken(rest, count)
}

fn put(key: &[u8], value: &[u8]) -> Vec<u8> {
    framed(b"1", "PUT", &[to_base64(key), to_base64(value)].join(&b' '))
}

/// A program with much filling costs as much as hundreds of others: few mutations leave it in.
pub fn rarely_long(data: &mut [u8], seed: u32) {
    if (seed >> 16).is_multiple_of(128) {
        return;
    }
    for at in 1..data.len() {
        match (data[at - 1], data.get(at + 1)) {
            (0x85, _) => data[at] = data[at].min(1),
            (0x8a, Some(_)) => data[at + 1] = data[at + 1].min(16),
            _ => {}
        }
    }
}

/// Talks to a responder.
///
/// # Panics
/// On a finding.
pub fn run(data: &[u8]) {
    let Input { keys, steps } = Input::read(data);
    stats::operations(steps.len());
    let mut guest = Guest::new(keys);
    for step in &steps {
        match step {
            Step::Say(bytes) => guest.say(bytes),
            Step::Restart => guest.restart(),
            Step::Read(count) => {
                guest.read(*count);
            }
            Step::Pieces(bytes) => guest.piece_bytes = if *bytes == 0 { usize::MAX } else { *bytes },
        }
    }
    guest.say(b"\nNEGOTIATE V2\n");
    while guest.read(usize::MAX) > 0 {}
    judge(&guest.said, &guest.told, true);
    assert!(guest.said.ends_with(b"V2_OK\n"), "a guest that begins anew is not heard");
}

/// A guest, what it was told, and what it had to be told.
struct Guest {
    responder: Responder,
    model: Model,
    piece_bytes: usize,
    said: Vec<u8>,
    told: Vec<Told>,
}

impl Guest {
    fn new(keys: Metadata) -> Self {
        let (responder, model) = (Responder::new(keys.clone()), Model::new(keys));
        Self { responder, model, piece_bytes: usize::MAX, said: Vec::new(), told: Vec::new() }
    }

    fn say(&mut self, bytes: &[u8]) {
        let mut rest = bytes;
        while !rest.is_empty() {
            let given = rest.len().min(self.piece_bytes);
            let took = self.responder.take(&rest[..given]);
            self.model.hear(&rest[..took], &mut self.told);
            rest = &rest[took..];
            self.check_memory();
            if took < given {
                assert!(self.read(self.piece_bytes.max(16)) > 0, "it neither takes nor says anything");
            }
        }
    }

    /// Reads so many bytes at most; how many there were.
    fn read(&mut self, count: usize) -> usize {
        let mut left = count;
        loop {
            let answers = self.responder.answers();
            let got = answers.len().min(left);
            self.said.extend_from_slice(&answers[..got]);
            self.responder.sent(got);
            left -= got;
            if got == 0 {
                return count - left;
            }
        }
    }

    fn restart(&mut self) {
        self.responder.restart();
        self.model.restart();
        assert!(self.responder.answers().is_empty(), "what the guest had not read is still there");
        judge(&self.said, &self.told, false);
        (self.said, self.told) = (Vec::new(), Vec::new());
    }

    /// The largest answer is the store's with a dot for each byte and its head, and memory grows in steps of twice as much.
    fn check_memory(&self) {
        let answers = MOST_UNREAD_BYTES + 2 * self.model.store_bytes() + 128;
        let (held, most) = (self.responder.held_bytes(), 2 * (MOST_REQUEST_BYTES + answers));
        assert!(held <= most, "[resources] {held} bytes are held, and {most} are the most");
        assert!(self.model.store_bytes() <= STORE_BYTES);
    }
}

/// Compares what a guest has read with what it had to be told: all of that, or the beginning.
fn judge(said: &[u8], told: &[Told], is_all: bool) {
    let mut rest = said;
    for told in told {
        if !is_all && rest.is_empty() {
            return;
        }
        match told {
            Told::Bytes(bytes) => {
                let begins = rest.iter().zip(bytes).all(|(said, told)| said == told);
                let is_right = begins && (rest.len() >= bytes.len() || !is_all);
                assert!(is_right, "{} in place of {}", shown(rest), shown(bytes));
                rest = rest.get(bytes.len()..).unwrap_or_default();
            }
            Told::Refusal(id) => {
                let end = rest.iter().position(|byte| *byte == b'\n');
                assert!(end.is_some() || !is_all, "{} has no end", shown(rest));
                let Some(end) = end else { return };
                if let Err(wrong) = check_refusal(&rest[..end], id) {
                    panic!("{} in place of a refusal under {} {wrong}", shown(&rest[..end]), shown(id));
                }
                rest = &rest[end + 1..];
            }
        }
    }
    assert!(rest.is_empty(), "{} was never asked for", shown(rest));
}

fn shown(bytes: &[u8]) -> String {
    let more = if bytes.len() > 200 { format!("… ({} bytes)", bytes.len()) } else { String::new() };
    format!("'{}'{more}", bytes[..bytes.len().min(200)].escape_ascii())
}

/// What the guest does, and what it has to be told.
#[must_use]
pub fn explain(data: &[u8]) -> String {
    let Input { keys, steps } = Input::read(data);
    let mut text = format!("keys: {:?}\n", keys.keys().collect::<Vec<_>>());
    let mut model = Model::new(keys);
    for step in &steps {
        let _ = match step {
            Step::Say(bytes) => writeln!(text, "says {}", shown(bytes)),
            Step::Restart => writeln!(text, "is reset"),
            Step::Read(count) => writeln!(text, "reads up to {count} bytes"),
            Step::Pieces(0) => writeln!(text, "from here on in one piece"),
            Step::Pieces(bytes) => writeln!(text, "from here on in pieces of {bytes} bytes"),
        };
        let mut told = Vec::new();
        match step {
            Step::Say(bytes) => model.hear(bytes, &mut told),
            Step::Restart => model.restart(),
            Step::Read(_) | Step::Pieces(_) => {}
        }
        for told in told {
            let _ = match told {
                Told::Bytes(bytes) => writeln!(text, "  is to be told {}", shown(&bytes)),
                Told::Refusal(id) => writeln!(text, "  is to be refused under {}", shown(&id)),
            };
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a guest with a few keys is told of this.
    fn told(text: &[u8]) -> Vec<u8> {
        let Input { keys, steps } = Input::read(&[&[1][..], text].concat());
        let mut guest = Guest::new(keys);
        for step in steps {
            let Step::Say(bytes) = step else { continue };
            guest.say(&bytes);
            guest.read(usize::MAX);
        }
        judge(&guest.said, &guest.told, true);
        guest.said
    }

    #[test]
    fn each_kind_of_frame_reaches_its_command() {
        assert_eq!(told(b"GET a\n"), b"SUCCESS\n1\n.\n");
        assert_eq!(told(b"\x84\x00\x08sdc:nics"), b"V2 21 5825887b 0badcafe SUCCESS W10=\n");
        let both = told(b"\x83\x03\x02newhi\x84\x00\x03new");
        assert_eq!(both.iter().filter(|byte| **byte == b'\n').count(), 2);
        assert!(both.starts_with(b"V2 14 ") && both.ends_with(b" 0badcafe SUCCESS aGk=\n"), "{}", shown(&both));
        assert!(told(b"\x81\x0d0000000a KEYSGET empty\n").ends_with(b"\nSUCCESS\n\n.\n"));
        assert_eq!(told(b"\x82\x0d\x200000000a KEYS"), b"");
    }

    #[test]
    #[should_panic(expected = "in place of")]
    fn another_byte_is_found() {
        judge(b"SUCCESS\n2\n.\n", &[Told::Bytes(b"SUCCESS\n1\n.\n".to_vec())], true);
    }

    #[test]
    #[should_panic(expected = "has a wrong checksum")]
    fn a_refusal_with_a_wrong_checksum_is_found() {
        let mut frame = framed(b"1", "FAILURE", b"why");
        frame[8] ^= 1;
        judge(&frame, &[Told::Refusal(b"1".to_vec())], true);
    }

    #[test]
    #[should_panic(expected = "has a wrong length")]
    fn a_refusal_with_a_wrong_length_is_found() {
        let mut frame = framed(b"1", "FAILURE", b"why");
        frame.insert(frame.len() - 1, b'=');
        judge(&frame, &[Told::Refusal(b"1".to_vec())], true);
    }

    #[test]
    #[should_panic(expected = "was never asked for")]
    fn an_answer_too_many_is_found() {
        judge(b"V2_OK\nV2_OK\n", &[Told::Bytes(b"V2_OK\n".to_vec())], true);
    }
}
