//! Just enough ACPI: power-off, reset, and where interrupts and PCI configuration space are (ACPI 6.5 §5.2).

use crate::machine::{in16, load_unaligned, out8, out16, store};
use crate::pvh;

/// A table: its address, length checked against its header.
#[derive(Clone, Copy)]
pub struct Table {
    address: u64,
    length: u32,
}

impl Table {
    fn at(address: u64) -> Self {
        Self { address, length: load_unaligned(address + 4) }
    }

    /// Reads a field; `None` where the table is too short to hold it.
    fn field<T: Copy>(self, offset: u32) -> Option<T> {
        (offset + size_of::<T>() as u32 <= self.length).then(|| load_unaligned(self.address + u64::from(offset)))
    }

    /// The sum of all bytes, 0 in a valid table.
    #[must_use]
    pub fn checksum(self) -> u8 {
        sum(self.address, self.length)
    }
}

fn sum(address: u64, length: u32) -> u8 {
    (0..u64::from(length)).fold(0, |sum: u8, offset| sum.wrapping_add(load_unaligned(address + offset)))
}

fn rsdp() -> Option<u64> {
    let signature = u64::from_le_bytes(*b"RSD PTR ");
    let told = pvh::rsdp();
    let found = if told != 0 {
        Some(told)
    } else {
        // ACPI 6.5 §5.2.5.1: in the BIOS area, at a multiple of 16.
        (0xe_0000..0x10_0000).step_by(16).find(|&at| load_unaligned::<u64>(at) == signature)
    }?;
    assert!(load_unaligned::<u64>(found) == signature, "no ACPI root pointer at {found:#x}");
    assert!(sum(found, 20) == 0, "the ACPI root pointer has a wrong checksum");
    Some(found)
}

/// Finds a table through the XSDT, or the RSDT where there is none.
#[must_use]
pub fn table(signature: &[u8; 4]) -> Option<Table> {
    let rsdp = rsdp()?;
    let revision: u8 = load_unaligned(rsdp + 15);
    let xsdt: u64 = if revision >= 2 { load_unaligned(rsdp + 24) } else { 0 };
    let (root, width) =
        if xsdt != 0 { (Table::at(xsdt), 8) } else { (Table::at(load_unaligned::<u32>(rsdp + 16).into()), 4) };
    let mut offset = 36;
    while offset + width <= root.length {
        let address = if width == 8 { root.field(offset)? } else { u64::from(root.field::<u32>(offset)?) };
        if load_unaligned::<[u8; 4]>(address) == *signature {
            return Some(Table::at(address));
        }
        offset += width;
    }
    None
}

fn fadt() -> Option<Table> {
    table(b"FACP")
}

/// A register in a generic address structure (ACPI 6.5 §5.2.3.2).
fn write_register(register: Table, offset: u32, value: u8) -> bool {
    match (register.field::<u8>(offset), register.field::<u64>(offset + 4)) {
        (Some(1), Some(port)) if port != 0 => out8(port as u16, value),
        (Some(0), Some(address)) if address != 0 => store(address, value),
        _ => return false,
    }
    true
}

/// The sleep type of S5, from the `_S5_` package of the DSDT: name, package, length, count, first element.
fn sleep_type_s5(fadt: Table) -> Option<u8> {
    let dsdt = match fadt.field::<u64>(140) {
        Some(address) if address != 0 => address,
        _ => fadt.field::<u32>(40)?.into(),
    };
    let dsdt = Table::at(dsdt);
    let name = u32::from_le_bytes(*b"_S5_");
    let at = (36..dsdt.length.saturating_sub(8)).find(|&at| dsdt.field::<u32>(at) == Some(name))?;
    if dsdt.field::<u8>(at + 4)? != 0x12 {
        return None;
    }
    // The package's length field says in its two top bits how many more bytes it has.
    let first = at + 6 + u32::from(dsdt.field::<u8>(at + 5)? >> 6) + 1;
    match dsdt.field::<u8>(first)? {
        0x0a => dsdt.field(first + 1),
        small @ (0 | 1) => Some(small),
        _ => None,
    }
}

/// Where the power-off value goes when no table says it: PM1a control and sleep type of qemu's q35 machine.
const FALLBACK: (u16, u8) = (0x604, 0);

/// Turns the machine off: S5 through PM1a control, or the sleep control register of hardware-reduced machines.
pub fn power_off() -> ! {
    let fadt = fadt();
    let sleep_type = fadt.and_then(sleep_type_s5);
    if let (Some(fadt), Some(sleep_type)) = (fadt, sleep_type)
        && fadt.field::<u32>(112).is_some_and(|flags| flags & 1 << 20 != 0)
    {
        write_register(fadt, 244, sleep_type << 2 | 1 << 5);
    } else {
        let port = fadt.and_then(|fadt| fadt.field::<u32>(64)).filter(|&port| port != 0);
        let (port, sleep_type) = match (port, sleep_type) {
            (Some(port), Some(sleep_type)) => (port as u16, sleep_type),
            _ => FALLBACK,
        };
        out16(port, u16::from(sleep_type) << 10 | 1 << 13);
    }
    crate::machine::stop()
}

/// Resets through the FADT's reset register; returns when the machine has none or it did nothing.
pub fn reset() {
    const RESET_REG_SUP: u32 = 1 << 10;
    if let Some(fadt) = fadt()
        && fadt.field::<u32>(112).is_some_and(|flags| flags & RESET_REG_SUP != 0)
        && let Some(value) = fadt.field(128)
    {
        write_register(fadt, 116, value);
    }
}

/// The power button as the fixed hardware shows it (ACPI 6.5 §4.8.3.1): a status bit that stays set until it is cleared.
pub struct PowerButton {
    status: u16,
}

impl PowerButton {
    const BIT: u16 = 1 << 8;

    /// Enables it; `None` where the machine has none.
    #[must_use]
    pub fn enable() -> Option<Self> {
        let fadt = fadt()?;
        let (block, bytes): (u32, u8) = (fadt.field(56)?, fadt.field(88)?);
        let status = u16::try_from(block).ok().filter(|&port| port != 0)?;
        out16(status + u16::from(bytes / 2), Self::BIT);
        Some(Self { status })
    }

    /// Whether it was pressed since it was last cleared.
    #[must_use]
    pub fn is_pressed(&self) -> bool {
        in16(self.status) & Self::BIT != 0
    }

    /// Forgets that it was pressed.
    pub fn clear(&self) {
        out16(self.status, Self::BIT);
    }
}

/// A window into PCI configuration space.
#[derive(Clone, Copy)]
pub struct Ecam {
    /// Where it starts.
    pub base: u64,
    /// Which bus it shows: 0 is the one behind 0xCF8.
    pub segment: u16,
    /// The last bus it covers, from 0.
    pub last_bus: u8,
}

/// The first ECAM window (PCI firmware specification 3.3 §4.1.2).
#[must_use]
pub fn ecam() -> Option<Ecam> {
    let mcfg = table(b"MCFG")?;
    Some(Ecam { base: mcfg.field(44)?, segment: mcfg.field(52)?, last_bus: mcfg.field(55)? })
}

/// What the MADT says about the interrupt of an ISA device.
#[must_use]
pub fn isa_interrupt(irq: u8) -> u32 {
    madt_entries(2)
        .find_map(|entry| (entry.field::<u8>(3) == Some(irq)).then(|| entry.field(4)).flatten())
        .unwrap_or(irq.into())
}

/// Address of the first IOAPIC.
#[must_use]
pub fn ioapic() -> u64 {
    madt_entries(1).find_map(|entry| entry.field::<u32>(4)).map_or(0xfec0_0000, u64::from)
}

/// The entries of one type in the MADT.
fn madt_entries(kind: u8) -> impl Iterator<Item = Table> {
    let madt = table(b"APIC");
    let mut offset = 44;
    core::iter::from_fn(move || {
        let madt = madt?;
        while let (Some(found), Some(length)) = (madt.field::<u8>(offset), madt.field::<u8>(offset + 1)) {
            assert!(length >= 2, "an entry of the MADT has length {length}");
            let entry = Table { address: madt.address + u64::from(offset), length: length.into() };
            offset += u32::from(length);
            if found == kind {
                return Some(entry);
            }
        }
        None
    })
}
