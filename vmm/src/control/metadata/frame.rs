//! Frames of version 2 of the metadata protocol: `V2 LENGTH CRC32 ID WORD[ PAYLOAD]`, without the line end.
//!
//! Length and checksum (CRC-32 as in Ethernet, eight lower-case hexadecimal digits) are of the body, which begins with the
//! identifier. The word is a command in a request and a code in an answer. The payload is base64.

use base64::Engine as _;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};

/// With padding; what comes may lack it.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &base64::alphabet::STANDARD,
    GeneralPurposeConfig::new()
        .with_decode_padding_mode(DecodePaddingMode::Indifferent)
        .with_decode_allow_trailing_bits(true),
);

/// The most digits of an identifier: it is a number of 32 bits.
const ID_DIGITS: usize = 8;

/// A request whose length and checksum are right.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Frame<'a> {
    /// What the answer has to repeat.
    pub(super) id: &'a [u8],
    pub(super) command: &'a [u8],
    /// Still base64; empty where there is none.
    pub(super) payload: &'a [u8],
}

impl<'a> Frame<'a> {
    /// Reads what follows the word `V2`; `None` where it is no whole frame: nothing in it can be trusted then.
    pub(super) fn parse(text: &'a [u8]) -> Option<Self> {
        let (length, rest) = word(text);
        let (checksum, body) = word(rest);
        let length: usize = std::str::from_utf8(digits(length)?).ok()?.parse().ok()?;
        if body.len() != length || checksum != checksum_of(body) {
            return None;
        }
        let (id, rest) = word(body);
        let (command, payload) = word(rest);
        (is_id(id) && !command.is_empty()).then_some(Self { id, command, payload })
    }

    /// The identifier of a frame that is not whole, from its beginning.
    pub(super) fn claimed_id(text: &'a [u8]) -> Option<&'a [u8]> {
        let (_, rest) = word(text);
        let (_, body) = word(rest);
        let (id, rest) = word(body);
        (is_id(id) && !rest.is_empty()).then_some(id)
    }
}

/// A frame as it goes on the line. Where there are no bytes to tell, there is no payload.
pub(super) fn encode(id: &[u8], code: &str, payload: &[u8]) -> Vec<u8> {
    let mut body = [id, b" ", code.as_bytes()].concat();
    if !payload.is_empty() {
        body.push(b' ');
        body.extend_from_slice(BASE64.encode(payload).as_bytes());
    }
    let mut frame = format!("V2 {} ", body.len()).into_bytes();
    frame.extend_from_slice(&checksum_of(&body));
    frame.push(b' ');
    frame.append(&mut body);
    frame.push(b'\n');
    frame
}

/// What base64 text says; `None` where it is none.
pub(super) fn decode(text: &[u8]) -> Option<Vec<u8>> {
    BASE64.decode(text).ok()
}

fn checksum_of(body: &[u8]) -> [u8; 8] {
    let checksum = crc32fast::hash(body);
    std::array::from_fn(|digit| b"0123456789abcdef"[(checksum >> (28 - 4 * digit)) as usize & 0xf])
}

/// The first word, and what follows the blanks behind it.
fn word(text: &[u8]) -> (&[u8], &[u8]) {
    let text = text.trim_ascii_start();
    let end = text.iter().position(u8::is_ascii_whitespace).unwrap_or(text.len());
    let (word, rest) = text.split_at(end);
    (word, rest.trim_ascii_start())
}

/// The text, if it is a decimal number.
fn digits(text: &[u8]) -> Option<&[u8]> {
    (!text.is_empty() && text.iter().all(u8::is_ascii_digit)).then_some(text)
}

fn is_id(text: &[u8]) -> bool {
    (1..=ID_DIGITS).contains(&text.len()) && text.iter().all(|digit| matches!(digit, b'0'..=b'9' | b'a'..=b'f'))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The example of the protocol's description (§4.4 of version 2): an answer whose payload is `[]`.
    #[test]
    fn the_example_of_the_protocol_is_written_and_read_byte_for_byte() {
        assert_eq!(encode(b"dc4fae17", "SUCCESS", b"[]"), b"V2 21 265ae1d8 dc4fae17 SUCCESS W10=\n");
        let frame = Frame { id: b"dc4fae17", command: b"SUCCESS", payload: b"W10=" };
        assert_eq!(Frame::parse(b"21 265ae1d8 dc4fae17 SUCCESS W10="), Some(frame));
        assert_eq!(decode(b"W10="), Some(b"[]".to_vec()));
    }

    #[test]
    fn without_anything_to_tell_there_is_no_payload_and_no_blank_for_it() {
        assert_eq!(encode(b"00000001", "NOTFOUND", b""), b"V2 17 203d705b 00000001 NOTFOUND\n");
        let frame = Frame { id: b"00000001", command: b"NOTFOUND", payload: b"" };
        assert_eq!(Frame::parse(b"17 203d705b 00000001 NOTFOUND"), Some(frame));
    }

    /// CRC-32 by its definition, bit by bit: polynomial 0xEDB88320, reflected, inverted before and after.
    fn slow_crc(bytes: &[u8]) -> u32 {
        !bytes.iter().fold(!0u32, |mut crc, byte| {
            crc ^= u32::from(*byte);
            for _ in 0..8 {
                crc = if crc & 1 == 1 { crc >> 1 ^ 0xedb8_8320 } else { crc >> 1 };
            }
            crc
        })
    }

    #[test]
    fn a_checksum_has_eight_digits_even_where_the_first_are_zero() {
        let mut zeros = 0;
        for number in 0..5000u32 {
            let body = format!("{number:08x} KEYS");
            let digits = String::from_utf8(checksum_of(body.as_bytes()).to_vec()).unwrap();
            assert_eq!(digits, format!("{:08x}", slow_crc(body.as_bytes())));
            zeros += u32::from(digits.starts_with('0'));
            let frame = format!("{} {digits} {body}", body.len());
            assert!(Frame::parse(frame.as_bytes()).is_some(), "{frame}");
        }
        assert!(zeros > 100);
    }

    #[test]
    fn a_frame_with_anything_wrong_is_none() {
        let good = b"21 265ae1d8 dc4fae17 SUCCESS W10=";
        for index in 0..good.len() {
            for bit in 0..8 {
                let mut text = good.to_vec();
                text[index] ^= 1 << bit;
                assert_eq!(Frame::parse(&text), None, "{}", text.escape_ascii());
            }
            assert_eq!(Frame::parse(&good[..index]), None);
        }
        for text in [
            &b""[..],
            b" ",
            b"0 00000000 ",
            b"-21 265ae1d8 dc4fae17 SUCCESS W10=",
            b"+21 265ae1d8 dc4fae17 SUCCESS W10=",
            b"21 265AE1D8 dc4fae17 SUCCESS W10=",
            b"21 0265ae1d8 dc4fae17 SUCCESS W10=",
            b"99999999999999999999999999 265ae1d8 dc4fae17 SUCCESS W10=",
        ] {
            assert_eq!(Frame::parse(text), None, "{}", text.escape_ascii());
        }
    }

    #[test]
    fn an_identifier_is_one_to_eight_lower_case_digits() {
        let framed = |body: &str| format!("{} {:08x} {body}", body.len(), slow_crc(body.as_bytes()));
        for (body, right) in [
            ("dc4fae17 KEYS", true),
            ("1 KEYS", true),
            ("DC4FAE17 KEYS", false),
            ("dc4fae170 KEYS", false),
            ("xyz KEYS", false),
            ("dc4fae17", false),
        ] {
            assert_eq!(Frame::parse(framed(body).as_bytes()).is_some(), right, "{body}");
        }
    }

    #[test]
    fn base64_comes_with_or_without_padding() {
        for text in [&b"Zm9vYg=="[..], b"Zm9vYg=", b"Zm9vYg"] {
            assert_eq!(decode(text), Some(b"foob".to_vec()));
        }
        assert_eq!(
            (decode(b""), decode(b"Z"), decode(b"Zm 9"), decode(b"\xff\xff\xff\xff")),
            (Some(vec![]), None, None, None)
        );
    }
}
