//! What a guest is told on its metadata port, from the description of the protocol and its bounds (docs/metadata.md) alone.

use std::collections::BTreeMap;

/// The longest request, in bytes.
pub const MOST_REQUEST_BYTES: usize = 256 << 10;
/// What the keys and values may take.
const MOST_STORE_BYTES: usize = 1 << 20;
/// What a key takes besides itself and its value.
const ENTRY_BYTES: usize = 64;
/// The bytes of a request that is too long which still count: an identifier has to be among them.
const HEAD_BYTES: usize = 64;

/// What a guest is told next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Told {
    /// These bytes.
    Bytes(Vec<u8>),
    /// A frame with this identifier, which says FAILURE and why.
    Refusal(Vec<u8>),
}

/// One guest's responder.
#[derive(Debug, Default)]
pub struct Model {
    store: BTreeMap<String, Vec<u8>>,
    request: Vec<u8>,
}

impl Model {
    /// One that serves these keys.
    pub fn new(store: BTreeMap<String, Vec<u8>>) -> Self {
        Self { store, request: Vec::new() }
    }

    /// The guest begins anew.
    pub fn restart(&mut self) {
        self.request.clear();
    }

    /// What keys and values take, in bytes.
    pub fn store_bytes(&self) -> usize {
        self.store.iter().map(|(key, value)| key.len() + value.len() + ENTRY_BYTES).sum()
    }

    /// The guest says these bytes; what it is told, in order.
    pub fn hear(&mut self, bytes: &[u8], told: &mut Vec<Told>) {
        for byte in bytes {
            if *byte == b'\n' {
                let request = std::mem::take(&mut self.request);
                told.extend(self.answer(&request));
            } else if self.request.len() <= MOST_REQUEST_BYTES {
                self.request.push(*byte);
            }
        }
    }

    fn answer(&mut self, request: &[u8]) -> Option<Told> {
        let plain = |text: &str| Some(Told::Bytes(format!("{text}\n").into_bytes()));
        if request.len() > MOST_REQUEST_BYTES {
            let (command, rest) = first_word(request[..HEAD_BYTES].trim_ascii_end());
            return if command == b"V2" { claimed_id(rest).map(Told::Refusal) } else { plain("invalid command") };
        }
        let (command, rest) = first_word(request.trim_ascii_end());
        match (command, rest) {
            (b"", _) | (b"GET" | b"NEGOTIATE", b"") => plain("invalid command"),
            (b"NEGOTIATE", b"V2") => plain("V2_OK"),
            (b"V2", frame) => self.answer_frame(frame),
            (b"GET", key) => match self.value(key) {
                Some(Some(value)) => Some(Told::Bytes(plain_value(&value))),
                Some(None) => plain("NOTFOUND"),
                None => plain("FAILURE"),
            },
            (b"KEYS", _) => Some(Told::Bytes(plain_value(&self.keys()))),
            _ => plain("FAILURE"),
        }
    }

    fn answer_frame(&mut self, frame: &[u8]) -> Option<Told> {
        let (length, rest) = next_word(frame);
        let (checksum, body) = next_word(rest);
        let is_number = !length.is_empty() && length.iter().all(u8::is_ascii_digit);
        let length = std::str::from_utf8(length).ok()?.parse::<usize>().ok()?;
        if !is_number || length != body.len() || checksum != format!("{:08x}", crc32(body)).as_bytes() {
            return None;
        }
        let (id, rest) = next_word(body);
        let (command, payload) = next_word(rest);
        if !is_id(id) || command.is_empty() {
            return None;
        }
        let frame = |code: &str, payload: &[u8]| Some(Told::Bytes(framed(id, code, payload)));
        let refusal = Some(Told::Refusal(id.to_vec()));
        let Some(payload) = from_base64(payload) else { return refusal };
        match command {
            b"GET" => match self.value(&payload) {
                Some(Some(value)) => frame("SUCCESS", &value),
                Some(None) => frame("NOTFOUND", b""),
                None => refusal,
            },
            b"KEYS" => frame("SUCCESS", &self.keys()),
            b"PUT" if self.put(&payload).is_some() => frame("SUCCESS", b"OK"),
            b"DELETE" if self.delete(&payload).is_some() => frame("SUCCESS", b"OK"),
            _ => refusal,
        }
    }

    /// The value of a key; `Some(None)` where it is not there, `None` where no key is named.
    fn value(&self, key: &[u8]) -> Option<Option<Vec<u8>>> {
        match std::str::from_utf8(key).map(str::trim) {
            Ok("") => None,
            Ok(key) => Some(self.store.get(key).cloned()),
            Err(_) => Some(None),
        }
    }

    fn keys(&self) -> Vec<u8> {
        let keys: Vec<&str> = self.store.keys().map(String::as_str).filter(|key| !is_the_hosts(key)).collect();
        keys.join("\n").into_bytes()
    }

    fn put(&mut self, payload: &[u8]) -> Option<()> {
        let words: Vec<&[u8]> = payload.trim_ascii().split(|byte| *byte == b' ').collect();
        let [key, value] = words[..] else { return None };
        let (key, value) = (from_base64(key)?, from_base64(value)?);
        let key = std::str::from_utf8(&key).ok()?.trim();
        if key.is_empty() || key.contains(char::is_control) || is_the_hosts(key) {
            return None;
        }
        let before = self.store_bytes();
        let old = self.store.get(key).map_or(0, |old| key.len() + old.len() + ENTRY_BYTES);
        let after = before - old + key.len() + value.len() + ENTRY_BYTES;
        if after > MOST_STORE_BYTES.max(before) {
            return None;
        }
        self.store.insert(key.to_owned(), value);
        Some(())
    }

    fn delete(&mut self, payload: &[u8]) -> Option<()> {
        let key = std::str::from_utf8(payload).ok()?.trim();
        if key.is_empty() || is_the_hosts(key) {
            return None;
        }
        self.store.remove(key);
        Some(())
    }
}

fn is_the_hosts(key: &str) -> bool {
    key.starts_with("sdc:")
}

/// Version 1: a dot more at the beginning of a line that has one, and a dot alone at the end.
fn plain_value(value: &[u8]) -> Vec<u8> {
    let mut told = b"SUCCESS\n".to_vec();
    for line in value.split(|byte| *byte == b'\n') {
        if line.first() == Some(&b'.') {
            told.push(b'.');
        }
        told.extend_from_slice(line);
        told.push(b'\n');
    }
    told.extend_from_slice(b".\n");
    told
}

/// A frame of version 2, with its line end. Also for requests: the command in place of the code.
pub fn framed(id: &[u8], code: &str, payload: &[u8]) -> Vec<u8> {
    let mut body = [id, b" ", code.as_bytes()].concat();
    if !payload.is_empty() {
        body.push(b' ');
        body.extend(to_base64(payload));
    }
    with_length_and_sum(&body)
}

/// The frame of a body, with its line end.
pub fn with_length_and_sum(body: &[u8]) -> Vec<u8> {
    let mut frame = format!("V2 {} {:08x} ", body.len(), crc32(body)).into_bytes();
    frame.extend_from_slice(body);
    frame.push(b'\n');
    frame
}

/// What is wrong with a line that should be a frame with this identifier that says FAILURE and why.
///
/// # Errors
/// That.
pub fn check_refusal(line: &[u8], id: &[u8]) -> Result<(), &'static str> {
    let line = line.strip_prefix(b"V2 ").ok_or("is no frame")?;
    let mut words = line.split(|byte| *byte == b' ');
    let (Some(length), Some(sum)) = (words.next(), words.next()) else { return Err("is no frame") };
    let body = line.get(length.len() + sum.len() + 2..).ok_or("has no body")?;
    if length != body.len().to_string().as_bytes() {
        return Err("has a wrong length");
    }
    if sum != format!("{:08x}", crc32(body)).as_bytes() {
        return Err("has a wrong checksum");
    }
    if words.next() != Some(id) || words.next() != Some(b"FAILURE") {
        return Err("is another answer");
    }
    let why = words.next().and_then(from_base64).ok_or("does not say why")?;
    match std::str::from_utf8(&why) {
        Ok(why) if !why.trim().is_empty() && !why.contains(char::is_control) && words.next().is_none() => Ok(()),
        _ => Err("does not say why in a line"),
    }
}

/// The first word, which nothing comes before, and what follows it.
fn first_word(text: &[u8]) -> (&[u8], &[u8]) {
    let end = text.iter().position(u8::is_ascii_whitespace).unwrap_or(text.len());
    (&text[..end], text[end..].trim_ascii_start())
}

/// The first word after any blanks, and what follows it.
fn next_word(text: &[u8]) -> (&[u8], &[u8]) {
    first_word(text.trim_ascii_start())
}

fn is_id(word: &[u8]) -> bool {
    (1..=8).contains(&word.len()) && word.iter().all(|digit| b"0123456789abcdef".contains(digit))
}

/// The identifier in the beginning of a frame: whole only where something follows it.
fn claimed_id(frame: &[u8]) -> Option<Vec<u8>> {
    let (_, rest) = next_word(frame);
    let (_, body) = next_word(rest);
    let (id, rest) = next_word(body);
    (is_id(id) && !rest.is_empty()).then(|| id.to_vec())
}

/// CRC-32 by its definition.
pub fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(u32::MAX, |sum, byte| {
        (0..8).fold(sum ^ u32::from(*byte), |sum, _| if sum & 1 == 1 { sum >> 1 ^ 0xedb8_8320 } else { sum >> 1 })
    })
}

const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

/// Base64 (RFC 4648 §4) with padding.
pub fn to_base64(bytes: &[u8]) -> Vec<u8> {
    let mut text = Vec::new();
    for group in bytes.chunks(3) {
        let at = |index: usize| u32::from(group.get(index).copied().unwrap_or(0));
        let bits = at(0) << 16 | at(1) << 8 | at(2);
        for digit in 0..4 {
            let value = bits >> (18 - 6 * digit) & 0x3f;
            text.push(if digit <= group.len() { DIGITS[value as usize] } else { b'=' });
        }
    }
    text
}

/// The bytes of base64 text, whose padding may be missing and whose last bits count for nothing.
pub fn from_base64(text: &[u8]) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    let last = text.len().saturating_sub(1) / 4;
    for (index, group) in text.chunks(4).enumerate() {
        let digits = group.iter().position(|digit| *digit == b'=').unwrap_or(group.len());
        let is_whole = digits == 4 || (index == last && digits >= 2);
        if !is_whole || group[digits..].iter().any(|digit| *digit != b'=') {
            return None;
        }
        let mut bits = 0;
        for digit in &group[..digits] {
            let value = DIGITS.iter().position(|other| other == digit)?;
            bits = bits << 6 | value as u32;
        }
        bits <<= 6 * (4 - digits);
        bytes.extend_from_slice(&bits.to_be_bytes()[1..digits]);
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_and_base64_are_those_of_their_definitions() {
        assert_eq!(crc32(b"123456789"), 0xcbf4_3926);
        assert_eq!(framed(b"dc4fae17", "SUCCESS", b"[]"), b"V2 21 265ae1d8 dc4fae17 SUCCESS W10=\n");
        for bytes in [&b""[..], b"f", b"fo", b"foo", b"foob", b"\xff\xfe\xfd"] {
            assert_eq!(from_base64(&to_base64(bytes)).as_deref(), Some(bytes));
        }
        assert_eq!(to_base64(b"foob"), b"Zm9vYg==");
        for text in [&b"Zm9vYg="[..], b"Zm9vYg", b"Zm9vYh"] {
            assert_eq!(from_base64(text).as_deref(), Some(&b"foob"[..]));
        }
        for text in [&b"Z"[..], b"Zm9v=", b"Zm 9", b"=", b"Zg==Zg=="] {
            assert_eq!(from_base64(text), None);
        }
    }

    #[test]
    fn a_guest_is_told_what_it_asked_for() {
        let mut model = Model::new([("a".to_owned(), b".1".to_vec())].into());
        let mut told = Vec::new();
        model.hear(b"GET a\nV2 41 ee9e3f3e 0000000b PUT WVNCclpYaz0gWVNCMllXeDFaUW89\nKEYS\nV2 x\n\n", &mut told);
        let answers = [
            "SUCCESS\n..1\n.\n",
            "V2 21 2fcae427 0000000b SUCCESS T0s=\n",
            "SUCCESS\na\na key\n.\n",
            "invalid command\n",
        ];
        assert_eq!(told, answers.map(|answer| Told::Bytes(answer.as_bytes().to_vec())));
    }

    #[test]
    fn a_refusal_is_judged_by_all_of_it() {
        let good = framed(b"1", "FAILURE", b"why");
        let good = &good[..good.len() - 1];
        assert_eq!(check_refusal(good, b"1"), Ok(()));
        for at in 0..good.len() {
            let mut bad = good.to_vec();
            bad[at] ^= 1;
            assert!(check_refusal(&bad, b"1").is_err(), "{}", bad.escape_ascii());
        }
        assert!(check_refusal(good, b"2").is_err());
    }
}
