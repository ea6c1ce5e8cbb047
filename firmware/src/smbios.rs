//! SMBIOS 3.0: a 64-bit entry point and structures of types 0, 1, 3, 4, 16, 17, 19, 32 and 127 (DMTF DSP0134, section
//! numbers of version 3.0).
//!
//! Guests without EFI look for `_SM3_` at multiples of 16 in the F segment (§5.2.2).

use arch::cpu::Topology;
use arch::layout::{RamRange, SMBIOS_TABLES_MAX};

/// Strings of type 1, the system. A field that is `None` or empty is reported as not specified, except manufacturer and
/// product, which have defaults.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SystemInfo {
    /// Manufacturer; "zvmm" when not given.
    pub manufacturer: Option<String>,
    /// Product name; "Virtual Machine" when not given. cloud-init finds its SmartOS data source by "SmartDC…" here.
    pub product: Option<String>,
    /// Version.
    pub version: Option<String>,
    /// Serial number; the chassis has the same.
    pub serial: Option<String>,
    /// Universally unique id, in the order its text form is written (RFC 9562). Without one the field says "not set".
    pub uuid: Option<[u8; 16]>,
    /// SKU number.
    pub sku: Option<String>,
    /// Family.
    pub family: Option<String>,
}

/// What the structures describe.
#[derive(Clone, Debug)]
pub struct SmbiosConfig<'a> {
    /// Type 1.
    pub system: SystemInfo,
    /// One type 4 a socket.
    pub topology: Topology,
    /// CPUID leaf 1: EAX and EDX, the processor id of type 4.
    pub processor_id: (u32, u32),
    /// RAM, one type 19 a range.
    pub ram: &'a [RamRange],
}

/// Structures as they go into guest memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SmbiosTables {
    /// Address of the entry point.
    pub entry_gpa: u64,
    /// Guest physical address and bytes: entry point, then structures.
    pub blobs: Vec<(u64, Vec<u8>)>,
}

/// Why the structures cannot be built.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SmbiosError {
    /// A string a structure cannot hold.
    #[error("SMBIOS {field} has {len} bytes, at most {MAX_STRING} are possible")]
    StringTooLong {
        /// Which one.
        field: &'static str,
        /// Its length.
        len: usize,
    },
    /// SMBIOS strings end with a zero byte, and a control character would garble every tool that prints them.
    #[error("SMBIOS {field} holds a control character at position {position}")]
    ControlCharacter {
        /// Which one.
        field: &'static str,
        /// Where.
        position: usize,
    },
}

/// Longest string. The format has no limit; this keeps all structures inside the F segment.
const MAX_STRING: usize = 1024;

const ENTRY_BYTES: usize = 24;
/// Date of the firmware: fixed, so that the same configuration gives the same bytes, and after 2008, from when Linux
/// trusts ACPI's PCI windows.
const RELEASE_DATE: &str = "01/01/2026";
const VERSION: &str = env!("CARGO_PKG_VERSION");
const NAME: &str = "zvmm";

/// Handles by type; types with several structures count up from theirs.
const HANDLE_BIOS: u16 = 0x000;
const HANDLE_SYSTEM: u16 = 0x100;
const HANDLE_CHASSIS: u16 = 0x300;
const HANDLE_PROCESSOR: u16 = 0x400;
const HANDLE_MEMORY_ARRAY: u16 = 0x1000;
const HANDLE_MEMORY_DEVICE: u16 = 0x1100;
const HANDLE_MEMORY_MAP: u16 = 0x1300;
const HANDLE_BOOT: u16 = 0x2000;
const HANDLE_END: u16 = 0x7f00;

const UNKNOWN_HANDLE: u16 = 0xffff;
const NO_ERROR_INFORMATION: u16 = 0xfffe;

/// Builds entry point and structures for `entry_gpa` (a multiple of 16; [`arch::layout::SMBIOS_TABLES`] where nothing
/// else asks), at most [`SMBIOS_TABLES_MAX`] bytes.
///
/// # Errors
/// A string that cannot be stored.
pub fn build_smbios(config: &SmbiosConfig<'_>, entry_gpa: u64) -> Result<SmbiosTables, SmbiosError> {
    config.system.check()?;
    let mut structures = bios();
    structures.extend(system(&config.system));
    structures.extend(chassis(&config.system));
    for socket in 0..config.topology.sockets() {
        structures.extend(processor(config, socket));
    }
    let ram_bytes: u64 = config.ram.iter().map(|range| range.len).sum();
    structures.extend(memory_array(ram_bytes));
    structures.extend(memory_device(ram_bytes));
    for (index, range) in (0u16..).zip(config.ram) {
        structures.extend(memory_map(index, range));
    }
    structures.extend(boot());
    structures.extend(Structure::new(127, HANDLE_END).finish());

    let structures_gpa = entry_gpa + 32;
    debug_assert!(structures.len() as u64 + 32 <= SMBIOS_TABLES_MAX);
    let entry = entry_point(structures_gpa, structures.len() as u32);
    Ok(SmbiosTables { entry_gpa, blobs: vec![(entry_gpa, entry), (structures_gpa, structures)] })
}

impl SystemInfo {
    /// Checks all strings, naming the field that is wrong: for front ends, before anything is built.
    ///
    /// # Errors
    /// See [`SmbiosError`].
    pub fn check(&self) -> Result<(), SmbiosError> {
        let fields = [
            ("manufacturer", &self.manufacturer),
            ("product", &self.product),
            ("version", &self.version),
            ("serial", &self.serial),
            ("sku", &self.sku),
            ("family", &self.family),
        ];
        for (field, text) in fields {
            let text = text.as_deref().unwrap_or_default();
            if text.len() > MAX_STRING {
                return Err(SmbiosError::StringTooLong { field, len: text.len() });
            }
            if let Some(position) = text.bytes().position(|byte| byte.is_ascii_control()) {
                return Err(SmbiosError::ControlCharacter { field, position });
            }
        }
        Ok(())
    }

    fn manufacturer(&self) -> &str {
        self.manufacturer.as_deref().filter(|text| !text.is_empty()).unwrap_or(NAME)
    }
}

/// The 64-bit entry point, §5.2.2.
fn entry_point(structures_gpa: u64, len: u32) -> Vec<u8> {
    let mut entry = b"_SM3_".to_vec();
    // Checksum (filled below), length, version 3.0, document revision, entry point revision, reserved.
    entry.extend_from_slice(&[0, ENTRY_BYTES as u8, 3, 0, 0, 1, 0]);
    entry.extend_from_slice(&len.to_le_bytes());
    entry.extend_from_slice(&structures_gpa.to_le_bytes());
    let sum = entry.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte));
    entry[5] = sum.wrapping_neg();
    entry
}

/// A structure in the making: formatted part, then its strings (§6.1).
struct Structure {
    formatted: Vec<u8>,
    strings: Vec<u8>,
    string_count: u8,
}

impl Structure {
    fn new(kind: u8, handle: u16) -> Self {
        let mut formatted = vec![kind, 0];
        formatted.extend_from_slice(&handle.to_le_bytes());
        Self { formatted, strings: Vec::new(), string_count: 0 }
    }

    fn byte(mut self, value: u8) -> Self {
        self.formatted.push(value);
        self
    }

    fn bytes(mut self, values: &[u8]) -> Self {
        self.formatted.extend_from_slice(values);
        self
    }

    fn word(self, value: u16) -> Self {
        self.bytes(&value.to_le_bytes())
    }

    fn dword(self, value: u32) -> Self {
        self.bytes(&value.to_le_bytes())
    }

    fn qword(self, value: u64) -> Self {
        self.bytes(&value.to_le_bytes())
    }

    /// A string reference: its number, or 0 for none.
    fn string(mut self, text: &str) -> Self {
        if text.is_empty() {
            return self.byte(0);
        }
        self.string_count += 1;
        self.strings.extend_from_slice(text.as_bytes());
        self.strings.push(0);
        let number = self.string_count;
        self.byte(number)
    }

    fn optional(self, text: &Option<String>) -> Self {
        self.string(text.as_deref().unwrap_or_default())
    }

    fn finish(mut self) -> Vec<u8> {
        self.formatted[1] = self.formatted.len() as u8;
        if self.strings.is_empty() {
            self.strings.push(0);
        }
        self.strings.push(0);
        self.formatted.append(&mut self.strings);
        self.formatted
    }
}

/// Type 0, §7.1.
fn bios() -> Vec<u8> {
    const CHARACTERISTICS_NOT_SUPPORTED: u64 = 1 << 3;
    const TARGETED_CONTENT_DISTRIBUTION: u8 = 1 << 2;
    const VIRTUAL_MACHINE: u8 = 1 << 4;
    let mut release = VERSION.split('.').map(|part| part.parse().unwrap_or(0));
    let (major, minor) = (release.next().unwrap_or(0), release.next().unwrap_or(0));
    Structure::new(0, HANDLE_BIOS)
        .string(NAME)
        .string(VERSION)
        // Starting segment: the ROM's usual last 96 KiB.
        .word(0xe800)
        .string(RELEASE_DATE)
        // 64 KiB.
        .byte(0)
        .qword(CHARACTERISTICS_NOT_SUPPORTED)
        .bytes(&[0, TARGETED_CONTENT_DISTRIBUTION | VIRTUAL_MACHINE])
        // No embedded controller.
        .bytes(&[major, minor, 0xff, 0xff])
        .finish()
}

/// Type 1, §7.2.
fn system(info: &SystemInfo) -> Vec<u8> {
    const POWER_SWITCH: u8 = 6;
    Structure::new(1, HANDLE_SYSTEM)
        .string(info.manufacturer())
        .string(info.product.as_deref().filter(|text| !text.is_empty()).unwrap_or("Virtual Machine"))
        .optional(&info.version)
        .optional(&info.serial)
        .bytes(&info.uuid.map_or([0; 16], wire_uuid))
        .byte(POWER_SWITCH)
        .optional(&info.sku)
        .optional(&info.family)
        .finish()
}

/// The first three fields of a UUID are little-endian on the wire (§7.2.1).
fn wire_uuid(uuid: [u8; 16]) -> [u8; 16] {
    let [a, b, c, d, e, f, g, h, rest @ ..] = uuid;
    let mut wire = [d, c, b, a, f, e, h, g, 0, 0, 0, 0, 0, 0, 0, 0];
    wire[8..].copy_from_slice(&rest);
    wire
}

/// Type 3, §7.4.
fn chassis(info: &SystemInfo) -> Vec<u8> {
    const OTHER: u8 = 1;
    const SAFE: u8 = 3;
    const UNKNOWN: u8 = 2;
    Structure::new(3, HANDLE_CHASSIS)
        .string(info.manufacturer())
        .byte(OTHER)
        .optional(&info.version)
        .optional(&info.serial)
        // Asset tag.
        .string("")
        // Boot-up, power supply and thermal state, security status.
        .bytes(&[SAFE, SAFE, SAFE, UNKNOWN])
        .dword(0)
        // Height, power cords, contained elements and their size, SKU.
        .bytes(&[0; 5])
        .finish()
}

/// Type 4, §7.5: one socket.
fn processor(config: &SmbiosConfig<'_>, socket: u8) -> Vec<u8> {
    const CENTRAL_PROCESSOR: u8 = 3;
    const OTHER: u8 = 1;
    const POPULATED_AND_ENABLED: u8 = 0x41;
    const CAPABLE_64_BIT: u16 = 1 << 2;
    const MULTI_CORE: u16 = 1 << 3;
    const HARDWARE_THREAD: u16 = 1 << 4;
    let (cores, threads) = (config.topology.cores(), config.topology.vcpus_per_socket());
    let bit = |set: bool, bit: u16| if set { bit } else { 0 };
    let characteristics =
        CAPABLE_64_BIT | bit(cores > 1, MULTI_CORE) | bit(config.topology.threads() > 1, HARDWARE_THREAD);
    Structure::new(4, HANDLE_PROCESSOR + u16::from(socket))
        .string(&format!("CPU {socket}"))
        .byte(CENTRAL_PROCESSOR)
        .byte(OTHER)
        // Not the system's manufacturer: a long one, once a socket, would not fit the segment.
        .string(NAME)
        .dword(config.processor_id.0)
        .dword(config.processor_id.1)
        .string("")
        // Voltage; external clock, highest and current speed: unknown.
        .byte(0)
        .word(0)
        .word(0)
        .word(0)
        .byte(POPULATED_AND_ENABLED)
        .byte(OTHER)
        // Caches.
        .word(UNKNOWN_HANDLE)
        .word(UNKNOWN_HANDLE)
        .word(UNKNOWN_HANDLE)
        // Serial number, asset tag, part number.
        .bytes(&[0; 3])
        .bytes(&[cores, cores, threads])
        .word(characteristics)
        .word(u16::from(OTHER))
        .word(cores.into())
        .word(cores.into())
        .word(threads.into())
        .finish()
}

/// Type 16, §7.17.
fn memory_array(ram_bytes: u64) -> Vec<u8> {
    const OTHER: u8 = 1;
    const SYSTEM_MEMORY: u8 = 3;
    const NO_ECC: u8 = 3;
    const SEE_EXTENDED: u32 = 0x8000_0000;
    let kib = ram_bytes >> 10;
    let fits = u32::try_from(kib).ok().filter(|kib| *kib < SEE_EXTENDED);
    Structure::new(16, HANDLE_MEMORY_ARRAY)
        .bytes(&[OTHER, SYSTEM_MEMORY, NO_ECC])
        .dword(fits.unwrap_or(SEE_EXTENDED))
        .word(NO_ERROR_INFORMATION)
        .word(1)
        .qword(if fits.is_some() { 0 } else { ram_bytes })
        .finish()
}

/// Type 17, §7.18: all RAM as one module.
fn memory_device(ram_bytes: u64) -> Vec<u8> {
    const DIMM: u8 = 9;
    const RAM: u8 = 7;
    const DETAIL_OTHER: u16 = 1 << 1;
    const WIDTH_UNKNOWN: u16 = 0xffff;
    const IN_KIB: u16 = 0x8000;
    const SEE_EXTENDED: u16 = 0x7fff;
    let (mib, kib) = (ram_bytes >> 20, ram_bytes >> 10);
    let (size, extended) = match (u16::try_from(mib), u16::try_from(kib)) {
        // A size that is not whole MiB is exact only in KiB, for which there are 15 bits.
        (_, Ok(kib)) if kib < IN_KIB && !ram_bytes.is_multiple_of(1 << 20) => (IN_KIB | kib, 0),
        (Ok(mib), _) if mib < SEE_EXTENDED => (mib, 0),
        _ => (SEE_EXTENDED, u32::try_from(mib).unwrap_or(u32::MAX)),
    };
    Structure::new(17, HANDLE_MEMORY_DEVICE)
        .word(HANDLE_MEMORY_ARRAY)
        .word(NO_ERROR_INFORMATION)
        .word(WIDTH_UNKNOWN)
        .word(WIDTH_UNKNOWN)
        .word(size)
        .byte(DIMM)
        .byte(0)
        .string("DIMM 0")
        .string("")
        .byte(RAM)
        .word(DETAIL_OTHER)
        .word(0)
        .string(NAME)
        // Serial number, asset tag, part number, rank.
        .bytes(&[0; 4])
        .dword(extended)
        // Configured speed; least, highest and configured voltage: unknown.
        .word(0)
        .word(0)
        .word(0)
        .word(0)
        .finish()
}

/// Type 19, §7.20: one range of addresses; ends are inclusive.
fn memory_map(index: u16, range: &RamRange) -> Vec<u8> {
    const SEE_EXTENDED: u32 = 0xffff_ffff;
    let last = range.gpa + (range.len - 1);
    let kib = |address: u64| u32::try_from(address >> 10).ok().filter(|kib| *kib != SEE_EXTENDED);
    let (start, end, extended) = match (kib(range.gpa), kib(last)) {
        (Some(start), Some(end)) => (start, end, (0, 0)),
        _ => (SEE_EXTENDED, SEE_EXTENDED, (range.gpa, last)),
    };
    Structure::new(19, HANDLE_MEMORY_MAP + index)
        .dword(start)
        .dword(end)
        .word(HANDLE_MEMORY_ARRAY)
        .byte(1)
        .qword(extended.0)
        .qword(extended.1)
        .finish()
}

/// Type 32, §7.33: no boot errors.
fn boot() -> Vec<u8> {
    Structure::new(32, HANDLE_BOOT).bytes(&[0; 7]).finish()
}

#[cfg(test)]
mod tests {
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
            uuid: Some([
                0x00, 0x11, 0x22, 0x33, 0x44, 0x55, 0x66, 0x77, 0x88, 0x99, 0xaa, 0xbb, 0xcc, 0xdd, 0xee, 0xff,
            ]),
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
}
