//! Values as people write them: sizes, MAC addresses, PCI slots, UUIDs, log rules.
//!
//! Each is read from the same text on the command line and in JSON, so both front ends accept and refuse the same.

use std::fmt;
use std::net::Ipv4Addr;
use std::str::FromStr;

use log::LevelFilter;

/// Serialises as text through `Display` and `FromStr`.
macro_rules! as_text {
    ($type:ty, $what:literal) => {
        impl serde::Serialize for $type {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> serde::Deserialize<'de> for $type {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                struct Text;
                impl serde::de::Visitor<'_> for Text {
                    type Value = $type;
                    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                        formatter.write_str($what)
                    }
                    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<$type, E> {
                        text.parse().map_err(E::custom)
                    }
                    fn visit_u64<E: serde::de::Error>(self, number: u64) -> Result<$type, E> {
                        number.to_string().parse().map_err(E::custom)
                    }
                }
                deserializer.deserialize_any(Text)
            }
        }
    };
}
pub(super) use as_text;

/// The text of a value could not be read; says what was expected.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct BadValue(pub String);

fn bad<T>(message: impl Into<String>) -> Result<T, BadValue> {
    Err(BadValue(message.into()))
}

const UNITS: [(char, u32); 4] = [('K', 10), ('M', 20), ('G', 30), ('T', 40)];

/// Reads a size in bytes: a number, with an optional binary suffix `K`, `M`, `G` or `T` (also written `MiB`, `mb`).
pub fn parse_size(text: &str) -> Result<u64, BadValue> {
    let example = "write a number of bytes, or a number with K, M, G or T, such as 512M";
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, suffix) = text.split_at(digits);
    if number.is_empty() {
        return bad(format!("'{text}' is not a size; {example}"));
    }
    let Ok(number) = number.parse::<u64>() else { return bad(format!("'{text}' does not fit in 64 bits")) };
    let suffix = suffix.to_ascii_uppercase();
    let unit = suffix.strip_suffix("IB").or_else(|| suffix.strip_suffix('B')).unwrap_or(&suffix);
    let shift = match unit {
        "" if suffix.len() < 2 => 0,
        _ => match UNITS.iter().find(|(letter, _)| unit.len() == 1 && unit.starts_with(*letter)) {
            Some((_, shift)) => *shift,
            None => return bad(format!("'{text}' is not a size; {example}")),
        },
    };
    match number.checked_mul(1 << shift) {
        Some(bytes) => Ok(bytes),
        None => bad(format!("'{text}' does not fit in 64 bits")),
    }
}

/// Writes a size with the largest binary suffix that divides it.
pub fn format_size(bytes: u64) -> String {
    for (letter, shift) in UNITS.iter().rev() {
        if bytes != 0 && bytes.is_multiple_of(1 << shift) {
            return format!("{}{letter}", bytes >> shift);
        }
    }
    bytes.to_string()
}

/// A size in bytes that reads `"512M"` as well as a plain number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Size(pub u64);

impl FromStr for Size {
    type Err = BadValue;
    fn from_str(text: &str) -> Result<Self, BadValue> {
        parse_size(text).map(Size)
    }
}

impl fmt::Display for Size {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&format_size(self.0))
    }
}

as_text!(Size, "a size such as \"512M\", or a number of bytes");

/// `#[serde(with)]` for fields that hold plain bytes.
pub mod size_text {
    use super::Size;
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    /// Writes the size with its suffix.
    pub fn serialize<S: Serializer>(bytes: &u64, serializer: S) -> Result<S::Ok, S::Error> {
        Size(*bytes).serialize(serializer)
    }

    /// Reads a number of bytes or text with a suffix.
    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
        Size::deserialize(deserializer).map(|size| size.0)
    }
}

/// `#[serde(with)]` for fields that may hold bytes.
pub mod optional_size_text {
    use super::Size;
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    /// Writes the size with its suffix, or null.
    pub fn serialize<S: Serializer>(bytes: &Option<u64>, serializer: S) -> Result<S::Ok, S::Error> {
        bytes.map(Size).serialize(serializer)
    }

    /// Reads a number of bytes or text with a suffix, or null.
    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<u64>, D::Error> {
        Option::<Size>::deserialize(deserializer).map(|size| size.map(|size| size.0))
    }
}

/// An Ethernet address, written `52:54:00:12:34:56`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Mac(pub [u8; 6]);

impl Mac {
    /// A group address, which no station may have as its own (IEEE 802: the lowest bit of the first octet).
    pub fn is_multicast(self) -> bool {
        self.0[0] & 1 != 0
    }

    /// An address for the other end of a link with this address at the host's end: the same but for one bit of the first
    /// octet. Two ends with one address would each take the other's frames for their own, and a bridge keeps them.
    pub fn of_other_end(self) -> Self {
        let [first, rest @ ..] = self.0;
        let [b, c, d, e, f] = rest;
        Self([first ^ 0x04, b, c, d, e, f])
    }
}

impl FromStr for Mac {
    type Err = BadValue;
    fn from_str(text: &str) -> Result<Self, BadValue> {
        let mut octets = [0; 6];
        let mut parts = text.split([':', '-']);
        for octet in &mut octets {
            let part = parts.next().unwrap_or_default();
            let is_hex = (1..=2).contains(&part.len()) && part.bytes().all(|b| b.is_ascii_hexdigit());
            *octet = match u8::from_str_radix(part, 16) {
                Ok(value) if is_hex => value,
                _ => return bad(format!("'{text}' is not a MAC address such as 52:54:00:12:34:56")),
            };
        }
        match parts.next() {
            None => Ok(Self(octets)),
            Some(_) => bad(format!("'{text}' has more than the six octets of a MAC address")),
        }
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, f] = self.0;
        write!(formatter, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x}")
    }
}

as_text!(Mac, "a MAC address such as \"52:54:00:12:34:56\"");

/// An IPv4 address, written `10.0.0.5`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Ip(pub Ipv4Addr);

impl FromStr for Ip {
    type Err = BadValue;
    fn from_str(text: &str) -> Result<Self, BadValue> {
        match text.parse() {
            Ok(ip) => Ok(Self(ip)),
            Err(_) => bad(format!("'{text}' is not an IPv4 address such as 10.0.0.5")),
        }
    }
}

impl fmt::Display for Ip {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(formatter)
    }
}

as_text!(Ip, "an IPv4 address such as \"10.0.0.5\"");

/// A place on PCI bus 0, written `4` or `4.1` (device and function, decimal or with `0x`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Slot {
    /// Device number, 0 to 31.
    pub device: u8,
    /// Function number, 0 to 7.
    pub function: u8,
}

impl Slot {
    /// Function 0 of a device.
    pub const fn device(device: u8) -> Self {
        Self { device, function: 0 }
    }
}

fn parse_number(text: &str) -> Option<u8> {
    match text.strip_prefix("0x") {
        Some(hex) if hex.bytes().all(|b| b.is_ascii_hexdigit()) => u8::from_str_radix(hex, 16).ok(),
        None if text.bytes().all(|b| b.is_ascii_digit()) => text.parse().ok(),
        _ => None,
    }
}

impl FromStr for Slot {
    type Err = BadValue;
    fn from_str(text: &str) -> Result<Self, BadValue> {
        let (device, function) = text.split_once('.').unwrap_or((text, "0"));
        match (parse_number(device), parse_number(function)) {
            (Some(device @ 0..=31), Some(function @ 0..=7)) => Ok(Self { device, function }),
            _ => bad(format!("'{text}' is not a PCI slot; write device or device.function, 0 to 31 and 0 to 7")),
        }
    }
}

impl fmt::Display for Slot {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.function {
            0 => write!(formatter, "{}", self.device),
            function => write!(formatter, "{}.{function}", self.device),
        }
    }
}

as_text!(Slot, "a PCI slot such as 4 or \"4.1\"");

/// A UUID in its text order (RFC 9562 §4), as SMBIOS type 1 and the operator know it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Uuid(pub [u8; 16]);

impl FromStr for Uuid {
    type Err = BadValue;
    fn from_str(text: &str) -> Result<Self, BadValue> {
        let error = || BadValue(format!("'{text}' is not a UUID such as 6e2b1f0a-2c55-4b63-9a53-0d6f3a1f7c11"));
        let groups: Vec<&str> = text.split('-').collect();
        let right_shape = groups.iter().map(|group| group.len()).eq([8, 4, 4, 4, 12]);
        let digits = groups.concat();
        if !right_shape || !digits.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Err(error());
        }
        let number = u128::from_str_radix(&digits, 16).map_err(|_| error())?;
        Ok(Self(number.to_be_bytes()))
    }
}

impl fmt::Display for Uuid {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let digits = format!("{:032x}", u128::from_be_bytes(self.0));
        let (a, b, c, d, e) = (&digits[..8], &digits[8..12], &digits[12..16], &digits[16..20], &digits[20..]);
        write!(formatter, "{a}-{b}-{c}-{d}-{e}")
    }
}

as_text!(Uuid, "a UUID such as \"6e2b1f0a-2c55-4b63-9a53-0d6f3a1f7c11\"");

/// What one module, or every module, may log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogRule {
    /// Module path such as `zvmm::vcpu`, with everything below it; `None` for all that no other rule names.
    pub module: Option<String>,
    /// The most detailed level that is written.
    pub level: LevelFilter,
}

impl FromStr for LogRule {
    type Err = BadValue;
    fn from_str(text: &str) -> Result<Self, BadValue> {
        let (module, level) = match text.split_once('=') {
            Some((module, level)) => (Some(module.to_owned()), level),
            None => (None, text),
        };
        if module.as_deref() == Some("") {
            return bad(format!("'{text}' names no module before '='"));
        }
        match level.parse() {
            Ok(level) => Ok(Self { module, level }),
            Err(_) => {
                bad(format!("'{level}' is not a log level; the levels are off, error, warn, info, debug and trace"))
            }
        }
    }
}

impl fmt::Display for LogRule {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let level = self.level.as_str().to_ascii_lowercase();
        match &self.module {
            Some(module) => write!(formatter, "{module}={level}"),
            None => formatter.write_str(&level),
        }
    }
}

as_text!(LogRule, "a log rule such as \"warn\" or \"zvmm::vcpu=debug\"");

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_size_reads_plain_bytes_and_binary_suffixes() {
        for (text, bytes) in [("1", 1), ("4096", 4096), ("512M", 512 << 20), ("2g", 2 << 30), ("1MiB", 1 << 20)] {
            assert_eq!(parse_size(text), Ok(bytes), "{text}");
        }
    }

    #[test]
    fn a_size_refuses_signs_fractions_unknown_units_and_overflow() {
        for text in ["", "-1", "+1", "1.5G", "12Q", "M", "1ib", "16777216T", "99999999999999999999"] {
            assert!(parse_size(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_written_size_reads_back_as_the_same_bytes() {
        for bytes in [0, 1, 4096, 4097, 512 << 20, 5 << 30, u64::MAX] {
            assert_eq!(parse_size(&format_size(bytes)), Ok(bytes));
        }
    }

    #[test]
    fn a_mac_reads_six_octets_and_nothing_else() {
        assert_eq!("52:54:00:12:34:56".parse(), Ok(Mac([0x52, 0x54, 0, 0x12, 0x34, 0x56])));
        for text in ["52:54:00:12:34", "52:54:00:12:34:56:78", "52:54:00:12:34:+5", "hello", ""] {
            assert!(text.parse::<Mac>().is_err(), "{text}");
        }
    }

    #[test]
    fn an_ipv4_address_reads_four_decimal_octets_and_nothing_else() {
        assert_eq!("10.0.0.5".parse(), Ok(Ip(Ipv4Addr::new(10, 0, 0, 5))));
        for text in
            ["", "10.0.0", "10.0.0.256", "10.0.0.5/24", "010.0.0.5", "0xa.0.0.5", " 10.0.0.5", "fe80::1", "host"]
        {
            assert!(text.parse::<Ip>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_slot_reads_device_and_function_inside_their_limits() {
        assert_eq!("4".parse(), Ok(Slot::device(4)));
        assert_eq!("0x1f.7".parse(), Ok(Slot { device: 31, function: 7 }));
        for text in ["32", "4.8", "", "4.", "-1", "0x", "a"] {
            assert!(text.parse::<Slot>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_uuid_survives_being_written_and_read() {
        let text = "6e2b1f0a-2c55-4b63-9a53-0d6f3a1f7c11";
        assert_eq!(text.parse::<Uuid>().map(|uuid| uuid.to_string()), Ok(text.to_owned()));
        for text in ["6e2b1f0a2c554b639a530d6f3a1f7c11", "6e2b1f0a-2c55-4b63-9a53-0d6f3a1f7c1g", ""] {
            assert!(text.parse::<Uuid>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_log_rule_names_a_level_and_perhaps_a_module() {
        assert_eq!("warn".parse(), Ok(LogRule { module: None, level: LevelFilter::Warn }));
        let rule: LogRule = "zvmm::vcpu=debug".parse().unwrap();
        assert_eq!((rule.module.as_deref(), rule.level), (Some("zvmm::vcpu"), LevelFilter::Debug));
        assert!("loud".parse::<LogRule>().unwrap_err().to_string().contains("'loud' is not a log level"));
        assert!("=debug".parse::<LogRule>().is_err());
    }
}
