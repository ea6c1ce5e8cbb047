//! SMBIOS 3.0: a 64-bit entry point and structures of types 0, 1, 3, 4, 16, 17, 19, 32 and 127 (DMTF DSP0134, section
//! numbers of version 3.0).
//!
//! Guests without EFI look for `_SM3_` at multiples of 16 in the F segment (§5.2.2).

#[cfg(test)]
mod tests;

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
// By itself it is built for size, as this package is; as a part of its caller it is not.
#[inline(never)]
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
