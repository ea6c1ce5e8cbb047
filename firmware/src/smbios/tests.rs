//! Structures are read back as dmidecode reads them, and compared with what they were made from.

use arch::layout::{MemoryLayout, SMBIOS_TABLES};
use proptest::prelude::*;

use super::*;

/// A structure read back as dmidecode does.
#[derive(Debug)]
struct Read {
    kind: u8,
    handle: u16,
    formatted: Vec<u8>,
    strings: Vec<String>,
}

impl Read {
    fn text(&self, at: usize) -> &str {
        match self.formatted[at] {
            0 => "",
            number => &self.strings[usize::from(number) - 1],
        }
    }

    fn number(&self, at: usize, bytes: usize) -> u64 {
        self.formatted[at..at + bytes].iter().rev().fold(0, |value, byte| value << 8 | u64::from(*byte))
    }
}

/// Finds the entry point by scanning, follows it, and walks the structures.
fn decode(tables: &SmbiosTables) -> Vec<Read> {
    let mut segment = vec![0u8; 0x1_0000];
    for (gpa, bytes) in &tables.blobs {
        let at = (gpa - SMBIOS_TABLES) as usize;
        segment[at..at + bytes.len()].copy_from_slice(bytes);
    }
    let entry = segment.chunks(16).position(|line| line.starts_with(b"_SM3_")).unwrap() * 16;
    let entry_len = usize::from(segment[entry + 6]);
    let header = &segment[entry..entry + entry_len];
    assert_eq!(header.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte)), 0);
    assert_eq!((entry_len, header[7], header[8], header[10]), (24, 3, 0, 1));
    let len = u32::from_le_bytes(header[12..16].try_into().unwrap()) as usize;
    let start = u64::from_le_bytes(header[16..24].try_into().unwrap()) - SMBIOS_TABLES;
    let mut rest = &segment[start as usize..start as usize + len];
    let mut found = Vec::new();
    while !rest.is_empty() {
        let formatted = rest[..usize::from(rest[1])].to_vec();
        let after = &rest[formatted.len()..];
        let end = after.windows(2).position(|pair| pair == [0, 0]).unwrap();
        let strings = after[..end].split(|byte| *byte == 0).map(|text| String::from_utf8(text.to_vec()).unwrap());
        let strings: Vec<_> = if end == 0 { Vec::new() } else { strings.collect() };
        let handle = u16::from_le_bytes([formatted[2], formatted[3]]);
        found.push(Read { kind: formatted[0], handle, formatted, strings });
        rest = &after[end + 2..];
    }
    found
}

fn build(system: SystemInfo, topology: Topology, ram: u64) -> Vec<Read> {
    let layout = MemoryLayout::new(ram, 46).unwrap();
    let config = SmbiosConfig { system, topology, processor_id: (0x306c4, 0x0f8b_fbff), ram: layout.ram() };
    decode(&build_smbios(&config, SMBIOS_TABLES).unwrap())
}

fn of_kind(structures: &[Read], kind: u8) -> Vec<&Read> {
    structures.iter().filter(|structure| structure.kind == kind).collect()
}

#[test]
fn every_type_is_there_with_the_length_of_version_3_0() {
    let structures = build(SystemInfo::default(), Topology::new(1).unwrap(), 1 << 30);
    let kinds: Vec<_> = structures.iter().map(|s| (s.kind, s.formatted.len())).collect();
    assert_eq!(
        kinds,
        [(0, 0x18), (1, 0x1b), (3, 0x16), (4, 0x30), (16, 0x17), (17, 0x28), (19, 0x1f), (32, 0x0b), (127, 4)]
    );
}

#[test]
fn the_systems_strings_are_those_given() {
    let text = |text: &str| Some(text.to_owned());
    let info = SystemInfo {
        manufacturer: text("Joyent"),
        product: text("SmartDC HVM"),
        version: text("7.20260305T000000Z"),
        serial: text("00112233-4455-6677-8899-aabbccddeeff"),
        uuid: Some([0x00, 0x11, 0x22, 0x33, 0x44, 0x55, 0x66, 0x77, 0x88, 0x99, 0xaa, 0xbb, 0xcc, 0xdd, 0xee, 0xff]),
        sku: text("001"),
        family: text("Virtual Machine"),
    };
    let structures = build(info, Topology::new(1).unwrap(), 1 << 30);
    let system = of_kind(&structures, 1)[0];
    let texts = [4, 5, 6, 7, 25, 26].map(|at| system.text(at));
    assert_eq!(
        texts,
        [
            "Joyent",
            "SmartDC HVM",
            "7.20260305T000000Z",
            "00112233-4455-6677-8899-aabbccddeeff",
            "001",
            "Virtual Machine"
        ]
    );
    assert_eq!(system.number(8, 4), 0x0011_2233);
    assert_eq!(system.number(12, 2), 0x4455);
    assert_eq!(system.number(14, 2), 0x6677);
    assert_eq!(system.formatted[16..24], [0x88, 0x99, 0xaa, 0xbb, 0xcc, 0xdd, 0xee, 0xff]);
    assert_eq!(of_kind(&structures, 3)[0].text(4), "Joyent");
}

#[test]
fn strings_that_are_not_given_do_not_exist() {
    let system = SystemInfo { version: Some(String::new()), ..SystemInfo::default() };
    let structures = build(system, Topology::new(1).unwrap(), 1 << 30);
    let system = of_kind(&structures, 1)[0];
    assert_eq!([4, 5, 6, 7, 25, 26].map(|at| system.text(at)), ["zvmm", "Virtual Machine", "", "", "", ""]);
    assert_eq!(system.formatted[8..24], [0; 16], "no UUID");
}

#[test]
fn strings_that_cannot_be_stored_are_refused_by_name() {
    let refuse = |system: SystemInfo| system.check().unwrap_err().to_string();
    assert_eq!(
        refuse(SystemInfo { serial: Some("a\0b".to_owned()), ..SystemInfo::default() }),
        "SMBIOS serial holds a control character at position 1"
    );
    assert_eq!(
        refuse(SystemInfo { family: Some("x".repeat(1025)), ..SystemInfo::default() }),
        "SMBIOS family has 1025 bytes, at most 1024 are possible"
    );
}

#[test]
fn the_longest_strings_and_most_sockets_fit_the_f_segment() {
    let long = || Some("x".repeat(MAX_STRING));
    let system = SystemInfo {
        manufacturer: long(),
        product: long(),
        version: long(),
        serial: long(),
        uuid: None,
        sku: long(),
        family: long(),
    };
    let layout = MemoryLayout::new(5 << 30, 46).unwrap();
    let topology = Topology::with(254, 1, 1).unwrap();
    let config = SmbiosConfig { system, topology, processor_id: (0, 0), ram: layout.ram() };
    let tables = build_smbios(&config, SMBIOS_TABLES).unwrap();
    assert_eq!(of_kind(&decode(&tables), 4).len(), 254);
}

#[test]
fn memory_sizes_are_exact_in_each_of_their_encodings() {
    let sizes = |ram: u64| {
        let structures = build(SystemInfo::default(), Topology::new(1).unwrap(), ram);
        let device = of_kind(&structures, 17)[0];
        let array = of_kind(&structures, 16)[0];
        let maps: Vec<_> = of_kind(&structures, 19).iter().map(|m| (m.number(4, 4), m.number(8, 4))).collect();
        (device.number(12, 2), device.number(28, 4), array.number(7, 4), array.number(15, 8), maps)
    };
    assert_eq!(sizes((1 << 20) + 4096), (0x8000 | 1028, 0, 1028, 0, vec![(0, 1027)]));
    assert_eq!(sizes(128 << 20), (128, 0, 128 << 10, 0, vec![(0, (128 << 10) - 1)]));
    assert_eq!(sizes(5 << 30), (5120, 0, 5 << 20, 0, vec![(0, (3 << 20) - 1), (4 << 20, (6 << 20) - 1)]));
    let (size, extended, capacity, capacity_bytes, _) = sizes(3 << 40);
    assert_eq!((size, extended, capacity, capacity_bytes), (0x7fff, 3 << 20, 0x8000_0000, 3 << 40));
}

#[test]
fn addresses_beyond_four_tib_use_the_extended_fields() {
    let range = RamRange { gpa: 4 << 40, len: 1 << 30 };
    let bytes = memory_map(0, &range);
    assert_eq!(bytes[4..12], [0xff; 8]);
    assert_eq!(bytes[15..23], (4u64 << 40).to_le_bytes());
    assert_eq!(bytes[23..31], ((4u64 << 40) + (1 << 30) - 1).to_le_bytes());
}

proptest! {
    #[test]
    fn processors_agree_with_the_topology(sockets in 1u32..=8, cores in 1u32..=32, threads in 1u32..=2) {
        let Ok(topology) = Topology::with(sockets, cores, threads) else { return Ok(()) };
        let structures = build(SystemInfo::default(), topology, 1 << 30);
        let processors = of_kind(&structures, 4);
        prop_assert_eq!(processors.len() as u32, sockets);
        for (socket, processor) in processors.iter().enumerate() {
            let designation = format!("CPU {socket}");
            prop_assert_eq!(processor.text(4), designation.as_str());
            prop_assert_eq!(processor.number(8, 8), 0x0f8b_fbff_0003_06c4);
            let counts = [0x23, 0x24, 0x25].map(|at| u32::from(processor.formatted[at]));
            prop_assert_eq!(counts, [cores, cores, cores * threads]);
            let wide = [0x2a, 0x2c, 0x2e].map(|at| processor.number(at, 2) as u32);
            prop_assert_eq!(wide, counts);
        }
        let mut handles: Vec<_> = structures.iter().map(|structure| structure.handle).collect();
        handles.sort_unstable();
        handles.dedup();
        prop_assert_eq!(handles.len(), structures.len(), "handles are unique");
    }
}
