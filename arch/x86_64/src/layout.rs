//! The guest physical address map.
//!
//! ```text
//! 0x0000_0000  low RAM          boot structures below 640 KiB, ACPI and SMBIOS tables in the E and F segments
//! 0x0010_0000  low RAM          kernel and initrd
//! 0xC000_0000  32-bit BARs      the hole starts at 3 GiB on every backend
//! 0xE000_0000  ECAM             1 MiB: bus 0 and no other
//! 0xFEC0_0000  IOAPIC, 0xFEE0_0000 local APIC, 0xFEFF_C000 pages KVM needs on Intel
//! 0xFF00_0000  firmware ROM     ends at 4 GiB
//! 0x1_0000_0000 high RAM        then, 1 GiB aligned, the 64-bit BARs
//! ```

/// Low RAM ends here, at 3 GiB, however much RAM the guest has: guests of one snapshot or migration pair must agree, and
/// the bhyve brand's guests have always seen this split.
pub const LOW_RAM_END: u64 = 3 << 30;
/// RAM that does not fit below [`LOW_RAM_END`] continues here.
pub const HIGH_RAM_START: u64 = 4 << 30;
/// The smallest guest: the boot structures and the legacy tables need the first MiB.
pub const MIN_RAM_BYTES: u64 = 1 << 20;
/// RAM sizes are multiples of the page size.
pub const PAGE_BYTES: u64 = 4096;

/// Global descriptor table of the boot CPU, in the page the BIOS data area would occupy.
pub const GDT: u64 = 0x500;
/// PVH `hvm_start_info`, its module list and memory map: one page.
pub const PVH_START_INFO: u64 = 0x6000;
/// One past the PVH page.
pub const PVH_END: u64 = 0x7000;
/// Linux `boot_params`, one page.
pub const ZERO_PAGE: u64 = 0x7000;
/// Stack pointer of the boot CPU; the page below it is free until the kernel sets its own stack.
pub const BOOT_STACK: u64 = 0x8ff0;
/// PML4 of the boot CPU's identity map.
pub const PML4: u64 = 0x9000;
/// One past the identity map's tables: PML4, one PDPT and four page directories of 2 MiB pages. 1 GiB pages would need
/// fewer tables, but triple-fault on KVM implementations that lack them.
pub const PAGE_TABLES_END: u64 = 0xf000;
/// Kernel command line.
pub const CMDLINE: u64 = 0x2_0000;
/// Room for the command line with its terminating zero, 64 KiB.
pub const CMDLINE_MAX: u64 = 0x1_0000;
/// End of RAM below the legacy hole; one KiB for the extended BIOS data area comes before 640 KiB, as on a PC.
pub const EBDA: u64 = 0x9_fc00;
/// Legacy video and ROM hole: no guest is told of RAM between here and [`LEGACY_HOLE_END`].
pub const LEGACY_HOLE: u64 = 0xa_0000;
/// End of the legacy hole; kernels load from here upwards.
pub const LEGACY_HOLE_END: u64 = 0x10_0000;
/// RSDP and the other ACPI tables, in the E segment: found by the scan for the RSDP (ACPI 6.5 §5.2.5.1) even by a
/// kernel that was not told the address.
pub const ACPI_TABLES: u64 = 0xe_0000;
/// Room for the ACPI tables, 64 KiB (254 CPUs need about 14 KiB).
pub const ACPI_TABLES_MAX: u64 = 0x1_0000;
/// SMBIOS entry point and tables, in the F segment, where guests without EFI look for `_SM3_` (SMBIOS 3.6 §5.2.2).
pub const SMBIOS_TABLES: u64 = 0xf_0000;
/// Room for SMBIOS, 64 KiB.
pub const SMBIOS_TABLES_MAX: u64 = 0x1_0000;

/// First address of the 32-bit BAR window.
pub const MMIO32_START: u64 = LOW_RAM_END;
/// ECAM window of machines that have one (also bhyve's address).
pub const ECAM_START: u64 = 0xe000_0000;
/// One bus. A longer window would make guests probe buses that do not exist, 32 slots each.
pub const ECAM_BYTES: u64 = 1 << 20;
/// I/O APIC registers.
pub const IOAPIC: u64 = 0xfec0_0000;
/// HPET registers (bhyve carries one in the kernel).
pub const HPET: u64 = 0xfed0_0000;
/// Bytes of the HPET's registers.
pub const HPET_BYTES: u64 = 0x400;
/// Local APIC registers and the MSI address window.
pub const LAPIC: u64 = 0xfee0_0000;
/// Page for KVM's real-mode identity map on Intel without unrestricted guest. Below the 16 MiB that firmware may take.
pub const KVM_IDENTITY_MAP: u64 = 0xfeff_c000;
/// Three pages for KVM's task state segment on Intel.
pub const KVM_TSS: u64 = 0xfeff_d000;
/// End of the pages KVM takes; firmware ROM lies between here and 4 GiB.
pub const KVM_RESERVED_END: u64 = 0xff00_0000;

/// Largest 64-bit BAR window handed out, so that guests do not build page tables for terabytes.
const MMIO64_MAX: u64 = 512 << 30;
/// AMD's HyperTransport range: addresses in it do not reach memory or devices on hosts with an IOMMU.
const HT_START: u64 = 0xfd_0000_0000;
const HT_END: u64 = 0x100_0000_0000;
/// Guest physical addresses stay below this even where the CPU offers more: nested tables of four levels end here.
const MAX_PHYS_BITS: u8 = 48;

/// A half-open range of guest physical addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AddressRange {
    /// First address.
    pub start: u64,
    /// Length in bytes, never 0.
    pub len: u64,
}

impl AddressRange {
    /// One past the last address.
    pub fn end(&self) -> u64 {
        self.start.saturating_add(self.len)
    }
}

/// One contiguous piece of RAM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RamRange {
    /// Guest physical address of the first byte.
    pub gpa: u64,
    /// Length in bytes, a multiple of [`PAGE_BYTES`].
    pub len: u64,
}

/// What a range of the memory map is, numbered as INT 15h E820h does (ACPI 6.5 §15.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum E820Type {
    /// RAM the guest may use.
    Ram = 1,
    /// Not for the guest: registers, tables, holes.
    Reserved = 2,
    /// ACPI tables, reclaimable once read.
    Acpi = 3,
}

/// One line of the memory map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct E820Entry {
    /// First address.
    pub addr: u64,
    /// Length in bytes.
    pub len: u64,
    /// What it is.
    pub kind: E820Type,
}

/// Why a memory size was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LayoutError {
    /// No memory, or less than the boot structures take.
    #[error("guest memory of {0} bytes is too small: a guest needs at least 1 MiB (1M)")]
    TooSmall(u64),
    /// Not a whole number of pages.
    #[error("guest memory of {0} bytes is not a multiple of 4 KiB: use a size such as {nearest}M", nearest = (.0 >> 20).max(1))]
    Unaligned(u64),
    /// RAM would reach past what the host's CPU can address.
    #[error(
        "guest memory of {ram_bytes} bytes does not fit the CPU's {phys_bits}-bit physical addresses: at most {max_mib}M fits"
    )]
    BeyondPhysicalAddress {
        /// Requested size.
        ram_bytes: u64,
        /// Address width the check used.
        phys_bits: u8,
        /// Largest size that fits, in MiB.
        max_mib: u64,
    },
    /// The split between low and high RAM lies outside what the map allows.
    #[error("low memory cannot end at {0:#x}: it must be a multiple of 2 MiB, at least 1 MiB and at most 3 GiB")]
    Split(u64),
}

/// Where RAM, BAR windows and ECAM lie for one guest. Computed from the RAM size and the CPU's physical address width
/// alone, so the same configuration always gives the same map.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemoryLayout {
    ram: Vec<RamRange>,
    mmio64: Option<AddressRange>,
    phys_bits: u8,
}

impl MemoryLayout {
    /// Lays out `ram_bytes` of RAM for a CPU with `phys_bits` physical address bits (CPUID 0x8000_0008).
    ///
    /// # Errors
    /// A size below 1 MiB, not a multiple of 4 KiB, or ending beyond the address width.
    pub fn new(ram_bytes: u64, phys_bits: u8) -> Result<Self, LayoutError> {
        Self::with_split(ram_bytes, phys_bits, LOW_RAM_END)
    }

    /// As [`MemoryLayout::new`], with low RAM ending at `low_ram_end`: tests reach high RAM without gigabytes.
    ///
    /// # Errors
    /// As [`MemoryLayout::new`], and a split outside 2 MiB to 3 GiB.
    pub fn with_split(ram_bytes: u64, phys_bits: u8, low_ram_end: u64) -> Result<Self, LayoutError> {
        if !(MIN_RAM_BYTES..=LOW_RAM_END).contains(&low_ram_end) || !low_ram_end.is_multiple_of(2 << 20) {
            return Err(LayoutError::Split(low_ram_end));
        }
        if ram_bytes < MIN_RAM_BYTES {
            return Err(LayoutError::TooSmall(ram_bytes));
        }
        if !ram_bytes.is_multiple_of(PAGE_BYTES) {
            return Err(LayoutError::Unaligned(ram_bytes));
        }
        let phys_bits = phys_bits.min(MAX_PHYS_BITS);
        let address_end = 1u64 << phys_bits;
        let low = ram_bytes.min(low_ram_end);
        let high = ram_bytes - low;
        let high_room = address_end.saturating_sub(HIGH_RAM_START);
        if low > address_end || high > high_room {
            return Err(LayoutError::BeyondPhysicalAddress {
                ram_bytes,
                phys_bits,
                max_mib: (low_ram_end.min(address_end) + high_room) >> 20,
            });
        }
        let mut ram = vec![RamRange { gpa: 0, len: low }];
        if high > 0 {
            ram.push(RamRange { gpa: HIGH_RAM_START, len: high });
        }
        let mmio64 = mmio64_window(HIGH_RAM_START + high, address_end);
        Ok(Self { ram, mmio64, phys_bits })
    }

    /// RAM in address order: one or two ranges. The legacy hole is backed by RAM (tables and shadowed ROMs live there);
    /// only the E820 map leaves it out.
    pub fn ram(&self) -> &[RamRange] {
        &self.ram
    }

    /// Bytes of RAM in total.
    pub fn ram_bytes(&self) -> u64 {
        self.ram.iter().map(|range| range.len).sum()
    }

    /// One past the last byte of RAM below 4 GiB.
    pub fn low_ram_end(&self) -> u64 {
        self.ram.first().map_or(0, |low| low.len)
    }

    /// RAM above 4 GiB, if any.
    pub fn high_ram(&self) -> Option<RamRange> {
        self.ram.get(1).copied()
    }

    /// Physical address bits the map was made for; the guest's CPUID must say the same.
    pub fn phys_bits(&self) -> u8 {
        self.phys_bits
    }

    /// Window for 32-bit BARs.
    pub fn mmio32(&self) -> AddressRange {
        AddressRange { start: MMIO32_START, len: ECAM_START - MMIO32_START }
    }

    /// Window for 64-bit BARs, above all RAM and inside the address width; `None` when RAM fills it.
    pub fn mmio64(&self) -> Option<AddressRange> {
        self.mmio64
    }

    /// The ECAM window: bus 0 only, which keeps guests from scanning buses that cannot exist.
    pub fn ecam(&self) -> AddressRange {
        AddressRange { start: ECAM_START, len: ECAM_BYTES }
    }

    /// The memory map handed to the guest, sorted, without overlaps. `ecam` reserves the ECAM window (Linux uses
    /// memory-mapped configuration only where the firmware reserved it).
    pub fn e820(&self, ecam: bool) -> Vec<E820Entry> {
        let entry = |start: u64, end: u64, kind| E820Entry { addr: start, len: end - start, kind };
        let mut map = vec![
            entry(0, EBDA, E820Type::Ram),
            entry(EBDA, LEGACY_HOLE, E820Type::Reserved),
            entry(ACPI_TABLES, LEGACY_HOLE_END, E820Type::Reserved),
        ];
        if self.low_ram_end() > LEGACY_HOLE_END {
            map.push(entry(LEGACY_HOLE_END, self.low_ram_end(), E820Type::Ram));
        }
        if ecam {
            map.push(entry(ECAM_START, ECAM_START + ECAM_BYTES, E820Type::Reserved));
        }
        map.push(entry(KVM_IDENTITY_MAP, KVM_RESERVED_END, E820Type::Reserved));
        if let Some(high) = self.high_ram() {
            map.push(entry(high.gpa, high.gpa + high.len, E820Type::Ram));
        }
        map
    }
}

fn mmio64_window(ram_end: u64, address_end: u64) -> Option<AddressRange> {
    let mut start = ram_end.checked_next_multiple_of(1 << 30)?;
    if (HT_START..HT_END).contains(&start) {
        start = HT_END;
    }
    let mut end = address_end.min(start.checked_add(MMIO64_MAX)?);
    if start < HT_START {
        end = end.min(HT_START);
    }
    (end > start).then(|| AddressRange { start, len: end - start })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn memory_up_to_three_gib_is_one_range() {
        let layout = MemoryLayout::new(LOW_RAM_END, 40).unwrap();
        assert_eq!(layout.ram(), [RamRange { gpa: 0, len: LOW_RAM_END }]);
        assert_eq!(layout.high_ram(), None);
    }

    #[test]
    fn memory_beyond_three_gib_continues_at_four() {
        let layout = MemoryLayout::new(5 << 30, 40).unwrap();
        assert_eq!(layout.ram(), [RamRange { gpa: 0, len: 3 << 30 }, RamRange { gpa: 4 << 30, len: 2 << 30 }]);
        assert_eq!(layout.mmio64().unwrap().start, 6 << 30);
    }

    #[test]
    fn sizes_that_cannot_work_are_refused_with_what_would() {
        let message = |ram, bits| MemoryLayout::new(ram, bits).unwrap_err().to_string();
        assert_eq!(message(0, 40), "guest memory of 0 bytes is too small: a guest needs at least 1 MiB (1M)");
        assert_eq!(message(1, 40), "guest memory of 1 bytes is too small: a guest needs at least 1 MiB (1M)");
        assert_eq!(
            message((128 << 20) + 1, 40),
            "guest memory of 134217729 bytes is not a multiple of 4 KiB: use a size such as 128M"
        );
        assert_eq!(
            message(64 << 30, 36),
            "guest memory of 68719476736 bytes does not fit the CPU's 36-bit physical addresses: at most 64512M fits"
        );
    }

    #[test]
    fn the_largest_size_an_error_names_is_accepted() {
        let layout = MemoryLayout::new(64512 << 20, 36).unwrap();
        assert_eq!(layout.mmio64(), None, "RAM fills the address space");
    }

    #[test]
    fn a_lower_split_puts_high_memory_in_small_guests() {
        let layout = MemoryLayout::with_split(64 << 20, 36, 32 << 20).unwrap();
        assert_eq!(layout.high_ram(), Some(RamRange { gpa: 4 << 30, len: 32 << 20 }));
        assert_eq!(MemoryLayout::with_split(64 << 20, 36, 12345).unwrap_err(), LayoutError::Split(12345));
    }

    #[test]
    fn the_boot_structures_do_not_overlap() {
        const {
            assert!(GDT + 64 <= PVH_START_INFO);
            assert!(PVH_END <= ZERO_PAGE);
            assert!(ZERO_PAGE + PAGE_BYTES <= BOOT_STACK & !0xfff);
            assert!(BOOT_STACK < PML4);
            assert!(PAGE_TABLES_END <= CMDLINE);
            assert!(CMDLINE + CMDLINE_MAX <= EBDA);
            assert!(ACPI_TABLES + ACPI_TABLES_MAX <= SMBIOS_TABLES);
            assert!(SMBIOS_TABLES + SMBIOS_TABLES_MAX <= LEGACY_HOLE_END);
            assert!(ECAM_START + ECAM_BYTES <= IOAPIC);
            assert!(KVM_TSS + 3 * PAGE_BYTES <= KVM_RESERVED_END);
        }
    }

    proptest! {
        #[test]
        fn the_memory_map_is_sorted_disjoint_and_holds_exactly_the_ram(
            pages in 256u64..(1 << 26), bits in 36u8..=52, ecam: bool
        ) {
            let Ok(layout) = MemoryLayout::new(pages * PAGE_BYTES, bits) else {
                prop_assert!(pages * PAGE_BYTES > (1u64 << bits.min(48)) - (1 << 30));
                return Ok(());
            };
            prop_assert_eq!(layout.ram_bytes(), pages * PAGE_BYTES);
            let map = layout.e820(ecam);
            for pair in map.windows(2) {
                prop_assert!(pair[0].addr + pair[0].len <= pair[1].addr);
            }
            let told: u64 = map.iter().filter(|e| e.kind == E820Type::Ram).map(|e| e.len).sum();
            prop_assert_eq!(told, layout.ram_bytes() - (LEGACY_HOLE_END - EBDA));
            if let Some(window) = layout.mmio64() {
                let ram_end = layout.high_ram().map_or(HIGH_RAM_START, |high| high.gpa + high.len);
                prop_assert!(window.start >= ram_end);
                prop_assert!(window.end() <= 1u64 << bits.min(48));
                prop_assert!(window.end() <= HT_START || window.start >= HT_END);
            }
        }
    }
}
