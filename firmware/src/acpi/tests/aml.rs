//! A decoder of the AML these tables use (ACPI 6.5 §20.2) and of resource templates (§6.4).

use std::collections::BTreeMap;

pub fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes(bytes[at..at + 2].try_into().unwrap())
}

pub fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap())
}

pub fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
}

/// An AML value, as far as these tables use AML.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    Int(u64),
    Text(String),
    Buffer(Vec<u8>),
    Package(Vec<Value>),
    /// Another object, by its path.
    Reference(String),
    /// Number of arguments and body.
    Method(u8, Vec<u8>),
    /// Address space, offset and length.
    Region(u8, u64, u64),
    /// Region, offset and length, both in bits.
    Field(String, usize, usize),
}

/// What a device appears as.
pub const DEVICE: Value = Value::Text(String::new());

/// Named objects by full path.
#[derive(Default)]
pub struct Namespace(BTreeMap<String, Value>);

impl Namespace {
    pub fn of(dsdt: &[u8]) -> Self {
        let mut names = Self::default();
        names.objects(&dsdt[36..], "");
        names
    }

    pub fn get(&self, path: &str) -> Option<&Value> {
        self.0.get(path)
    }

    pub fn devices(&self) -> Vec<&str> {
        let is_device = |(_, value): &(&String, &Value)| **value == DEVICE;
        self.0.iter().filter(is_device).map(|(path, _)| path.as_str()).collect()
    }

    fn objects(&mut self, mut rest: &[u8], scope: &str) {
        while !rest.is_empty() {
            rest = match rest {
                [0x08, name @ ..] => {
                    let (path, value) = name_string(name, scope);
                    let (value, rest) = term(value);
                    assert!(self.0.insert(path.clone(), value).is_none(), "{path} is defined twice");
                    rest
                }
                [0x10, package @ ..] => {
                    let (body, rest) = package_body(package);
                    let (path, body) = name_string(body, scope);
                    self.objects(body, &path);
                    rest
                }
                [0x5b, 0x82, package @ ..] => {
                    let (body, rest) = package_body(package);
                    let (path, body) = name_string(body, scope);
                    assert!(self.0.insert(path.clone(), DEVICE).is_none(), "{path} is defined twice");
                    self.objects(body, &path);
                    rest
                }
                [0x14, package @ ..] => {
                    let (body, rest) = package_body(package);
                    let (path, body) = name_string(body, scope);
                    let method = Value::Method(body[0] & 7, body[1..].to_vec());
                    assert!(self.0.insert(path.clone(), method).is_none(), "{path} is defined twice");
                    rest
                }
                [0x5b, 0x80, name @ ..] => {
                    let (path, region) = name_string(name, scope);
                    let (Value::Int(offset), rest) = term(&region[1..]) else { panic!("offset of {path}") };
                    let (Value::Int(length), rest) = term(rest) else { panic!("length of {path}") };
                    assert!(self.0.insert(path, Value::Region(region[0], offset, length)).is_none());
                    rest
                }
                [0x5b, 0x81, package @ ..] => {
                    let (body, rest) = package_body(package);
                    let (region, fields) = name_string(body, scope);
                    assert_eq!(fields[0], 1, "access by byte, no lock, the rest preserved");
                    self.fields(&fields[1..], &region, scope);
                    rest
                }
                other => panic!("AML opcode {:#x} in {scope}", other[0]),
            };
        }
    }
}

impl Namespace {
    fn fields(&mut self, mut rest: &[u8], region: &str, scope: &str) {
        let mut at = 0;
        while !rest.is_empty() {
            let named = rest[0] != 0;
            let (name, length) = rest.split_at(if named { 4 } else { 1 });
            assert!(length[0] < 0x40, "a short length");
            let bits = usize::from(length[0]);
            if named {
                let (path, _) = name_string(name, scope);
                self.0.insert(path, Value::Field(region.to_owned(), at, bits));
            }
            at += bits;
            rest = &length[1..];
        }
    }
}

/// A name string (root prefix or not, one to a few segments) relative to `scope`.
fn name_string<'a>(bytes: &'a [u8], scope: &str) -> (String, &'a [u8]) {
    let (absolute, bytes) = match bytes {
        [b'\\', rest @ ..] => (true, rest),
        rest => (false, rest),
    };
    let (count, bytes) = match bytes {
        [0x2e, rest @ ..] => (2, rest),
        [0x2f, count, rest @ ..] => (usize::from(*count), rest),
        rest => (1, rest),
    };
    let (segments, rest) = bytes.split_at(4 * count);
    let mut path: Vec<String> = if absolute || scope.is_empty() { Vec::new() } else { vec![scope.to_owned()] };
    for segment in segments.chunks(4) {
        let text = std::str::from_utf8(segment).unwrap();
        assert!(text.bytes().all(|c| c.is_ascii_uppercase() || c.is_ascii_digit() || c == b'_'), "{text}");
        path.push(text.to_owned());
    }
    (path.join("."), rest)
}

/// A PkgLength and the bytes it covers, ACPI 6.5 §20.2.4.
fn package_body(bytes: &[u8]) -> (&[u8], &[u8]) {
    let follow = usize::from(bytes[0] >> 6);
    let length = match follow {
        0 => usize::from(bytes[0] & 0x3f),
        _ => (1..=follow).fold(usize::from(bytes[0] & 0xf), |n, at| n | usize::from(bytes[at]) << (8 * at - 4)),
    };
    (&bytes[1 + follow..length], &bytes[length..])
}

fn term(bytes: &[u8]) -> (Value, &[u8]) {
    match bytes {
        [0x00, rest @ ..] => (Value::Int(0), rest),
        [0x01, rest @ ..] => (Value::Int(1), rest),
        [0x0a, rest @ ..] => (Value::Int(rest[0].into()), &rest[1..]),
        [0x0b, rest @ ..] => (Value::Int(u16_at(rest, 0).into()), &rest[2..]),
        [0x0c, rest @ ..] => (Value::Int(u32_at(rest, 0).into()), &rest[4..]),
        [0x0e, rest @ ..] => (Value::Int(u64_at(rest, 0)), &rest[8..]),
        [0x0d, rest @ ..] => {
            let end = rest.iter().position(|byte| *byte == 0).unwrap();
            (Value::Text(String::from_utf8(rest[..end].to_vec()).unwrap()), &rest[end + 1..])
        }
        [0x11, package @ ..] => {
            let (body, rest) = package_body(package);
            let (Value::Int(length), data) = term(body) else { panic!("buffer size") };
            assert_eq!(length, data.len() as u64);
            (Value::Buffer(data.to_vec()), rest)
        }
        [0x12, package @ ..] => {
            let (body, rest) = package_body(package);
            let (count, mut body) = (body[0], &body[1..]);
            let mut elements = Vec::new();
            while !body.is_empty() {
                let (element, after) = term(body);
                elements.push(element);
                body = after;
            }
            assert_eq!(elements.len(), usize::from(count));
            (Value::Package(elements), rest)
        }
        [b'\\' | b'_' | b'A'..=b'Z', ..] => {
            let (path, rest) = name_string(bytes, "");
            (Value::Reference(path), rest)
        }
        other => panic!("AML term {:#x}", other[0]),
    }
}

/// A resource of a `_CRS`, ACPI 6.5 §6.4.
#[derive(Clone, Debug, PartialEq)]
pub enum Resource {
    Port(u16, u8),
    Memory(u64, u64),
    Bus(u64, u64),
    PortWindow(u64, u64),
    MemoryWindow(u64, u64),
    Irq(u32),
}

pub fn resources(names: &Namespace, device: &str) -> Vec<Resource> {
    let Some(Value::Buffer(bytes)) = names.get(&format!("{device}._CRS")) else { panic!("{device} has no _CRS") };
    let mut rest = bytes.as_slice();
    let mut found = Vec::new();
    loop {
        let small = rest[0] & 0x80 == 0;
        let (head, len) = if small { (1, usize::from(rest[0] & 7)) } else { (3, usize::from(u16_at(rest, 1))) };
        let body = &rest[head..head + len];
        let window = |min: u64, max: u64, len: u64| {
            assert_eq!(max - min + 1, len, "length of a window in {device}");
            assert_eq!(body[1] & 0b1100, 0b1100, "both ends fixed");
            match body[0] {
                0 => Resource::MemoryWindow(min, max),
                1 => Resource::PortWindow(min, max),
                2 => Resource::Bus(min, max),
                other => panic!("address space {other}"),
            }
        };
        match rest[0] {
            0x79 => {
                assert_eq!(rest.len(), 2, "nothing after the end tag");
                return found;
            }
            0x47 => {
                assert_eq!(u16_at(body, 1), u16_at(body, 3));
                found.push(Resource::Port(u16_at(body, 1), body[6]));
            }
            0x86 => found.push(Resource::Memory(u32_at(body, 1).into(), u32_at(body, 5).into())),
            0x87 => found.push(window(u32_at(body, 7).into(), u32_at(body, 11).into(), u32_at(body, 19).into())),
            0x88 => found.push(window(u16_at(body, 5).into(), u16_at(body, 7).into(), u16_at(body, 11).into())),
            0x8a => found.push(window(u64_at(body, 11), u64_at(body, 19), u64_at(body, 35))),
            0x89 => found.push(Resource::Irq(u32_at(body, 2))),
            other => panic!("resource {other:#x} in {device}"),
        }
        rest = &rest[head + len..];
    }
}
