//! Packed name-value lists, as far as viona's parameters need them: libnvpair's native encoding on a little-endian machine
//! (`usr/src/common/nvpair/nvpair.c` of illumos-gate).
//!
//! A head of four bytes, version and flags, then each pair as libnvpair keeps it in memory, and a size of zero at the end. Of
//! a pair the head (size, length of the name with its NUL, number of values, type) and the name are filled up to 8 bytes
//! together, and so is the value.

/// `NV_ENCODE_NATIVE`, and a little-endian writer.
const HEAD: [u8; 4] = [0, 1, 0, 0];
const NV_VERSION: i32 = 0;
const NV_UNIQUE_NAME: u32 = 1;

const PAIR_BYTES: usize = 16;

const DATA_TYPE_UINT16: i32 = 4;
const DATA_TYPE_STRING: i32 = 9;
const DATA_TYPE_BOOLEAN_VALUE: i32 = 21;

/// The value of a pair.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value {
    /// `boolean_value`.
    Boolean(bool),
    /// `uint16`.
    Uint16(u16),
    /// `string`.
    Text(String),
    /// One of a type that nothing here has to do with, by its number.
    Other(i32),
}

/// The bytes are no such list.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no packed name-value list: {0}")]
pub struct NvlistError(&'static str);

/// Packs a list; pairs of type [`Value::Other`] have no value in it.
#[must_use]
pub fn pack(pairs: &[(&str, Value)]) -> Vec<u8> {
    let mut packed = HEAD.to_vec();
    packed.extend(NV_VERSION.to_le_bytes());
    packed.extend(NV_UNIQUE_NAME.to_le_bytes());
    for (name, value) in pairs {
        let (kind, bytes) = match value {
            Value::Boolean(value) => (DATA_TYPE_BOOLEAN_VALUE, i32::from(*value).to_le_bytes().to_vec()),
            Value::Uint16(value) => (DATA_TYPE_UINT16, value.to_le_bytes().to_vec()),
            Value::Text(text) => (DATA_TYPE_STRING, [text.as_bytes(), &[0]].concat()),
            Value::Other(kind) => (*kind, Vec::new()),
        };
        let name_bytes = name.len() + 1;
        let front = (PAIR_BYTES + name_bytes).next_multiple_of(8);
        let mut pair = Vec::new();
        pair.extend(word(front + bytes.len().next_multiple_of(8)));
        pair.extend(u16::try_from(name_bytes).unwrap_or(u16::MAX).to_le_bytes());
        pair.extend([0; 2]);
        pair.extend(1i32.to_le_bytes());
        pair.extend(kind.to_le_bytes());
        pair.extend(name.as_bytes());
        pair.resize(front, 0);
        pair.extend(bytes);
        pair.resize(pair.len().next_multiple_of(8), 0);
        packed.extend(pair);
    }
    packed.extend([0; 4]);
    packed
}

fn word(number: usize) -> [u8; 4] {
    u32::try_from(number).unwrap_or(u32::MAX).to_le_bytes()
}

/// Unpacks a list.
///
/// # Errors
/// What of it is not as it has to be; nothing outside `bytes` is looked at, and nothing larger than it is allocated.
pub fn unpack(bytes: &[u8]) -> Result<Vec<(String, Value)>, NvlistError> {
    let (head, mut rest) = bytes.split_first_chunk::<12>().ok_or(NvlistError("it ends in its head"))?;
    if !head.starts_with(&HEAD) {
        return Err(NvlistError("it is of another encoding"));
    }
    let mut pairs = Vec::new();
    loop {
        let (size, _) = rest.split_first_chunk::<4>().ok_or(NvlistError("it has no end"))?;
        let size = u32::from_le_bytes(*size) as usize;
        if size == 0 {
            return Ok(pairs);
        }
        let (pair, behind) = rest.split_at_checked(size).ok_or(NvlistError("a pair is longer than it"))?;
        pairs.push(unpack_pair(pair).ok_or(NvlistError("a pair's parts are longer than it"))?);
        rest = behind;
    }
}

fn unpack_pair(pair: &[u8]) -> Option<(String, Value)> {
    let (head, _) = pair.split_first_chunk::<PAIR_BYTES>()?;
    let [_, _, _, _, n0, n1, _, _, _, _, _, _, k0, k1, k2, k3] = *head;
    let name_end = PAIR_BYTES.checked_add(usize::from(u16::from_le_bytes([n0, n1])))?;
    let name = pair.get(PAIR_BYTES..name_end)?.strip_suffix(&[0])?;
    let value = pair.get(name_end.next_multiple_of(8)..)?;
    let value = match i32::from_le_bytes([k0, k1, k2, k3]) {
        DATA_TYPE_BOOLEAN_VALUE => Value::Boolean(*value.first_chunk::<4>()? != [0; 4]),
        DATA_TYPE_UINT16 => Value::Uint16(u16::from_le_bytes(*value.first_chunk()?)),
        DATA_TYPE_STRING => {
            let text = value.split(|byte| *byte == 0).next()?;
            Value::Text(String::from_utf8_lossy(text).into_owned())
        }
        kind => Value::Other(kind),
    };
    Some((String::from_utf8_lossy(name).into_owned(), value))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hex(bytes: &[u8]) -> String {
        bytes
            .chunks(4)
            .map(|word| word.iter().map(|byte| format!("{byte:02x}")).collect())
            .collect::<Vec<String>>()
            .join(" ")
    }

    #[test]
    fn a_list_is_packed_as_libnvpair_packs_it() {
        let packed = pack(&[("tx_copy_data", Value::Boolean(true)), ("tx_header_pad", Value::Uint16(0x102))]);
        let copy = "28000000 0d000000 01000000 15000000 74785f63 6f70795f 64617461 00000000 01000000 00000000";
        let pad = "28000000 0e000000 01000000 04000000 74785f68 65616465 725f7061 64000000 02010000 00000000";
        assert_eq!(hex(&packed), format!("00010000 00000000 01000000 {copy} {pad} 00000000"));
        assert_eq!(hex(&pack(&[])), "00010000 00000000 01000000 00000000");
    }

    #[test]
    fn what_is_packed_is_unpacked() {
        let text = Value::Text("value out of range".to_owned());
        let pairs = [
            ("a", Value::Boolean(false)),
            ("bcd", text),
            ("", Value::Uint16(u16::MAX)),
            ("seventeen-letters", Value::Other(2)),
        ];
        let found = unpack(&pack(&pairs)).unwrap();
        assert_eq!(found, pairs.map(|(name, value)| (name.to_owned(), value)));
    }

    #[test]
    fn damaged_lists_are_refused_and_nothing_beyond_them_is_read() {
        let packed = pack(&[("tx_copy_data", Value::Boolean(true)), ("why", Value::Text("no".to_owned()))]);
        for len in 0..packed.len() {
            assert!(unpack(&packed[..len]).is_err(), "{len}");
        }
        for (at, byte) in [(0, 1), (1, 0), (12, 0xff), (12, 8), (16, 0xff), (17, 0xff), (16, 0)] {
            let mut damaged = packed.clone();
            damaged[at] = byte;
            assert!(unpack(&damaged).is_err(), "byte {at}");
        }
        // Whatever stands there: no panic.
        for at in 0..packed.len() {
            for byte in 0..=255 {
                let mut damaged = packed.clone();
                damaged[at] = byte;
                let _ = unpack(&damaged);
            }
        }
    }
}
