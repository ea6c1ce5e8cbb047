//! Base address registers (PCI Local Bus 3.0 §6.2.5).

use serde::{Deserialize, Serialize};

use super::PciError;

/// What a BAR decodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum BarKind {
    /// Ports.
    Io,
    /// Memory below 4 GiB.
    Memory32,
    /// Memory anywhere; takes two registers and is marked prefetchable, because bridges forward only prefetchable
    /// windows above 4 GiB.
    Memory64,
}

impl BarKind {
    /// The read-only low bits of the register.
    pub(super) const fn flags(self) -> u32 {
        match self {
            Self::Io => 0b0001,
            Self::Memory32 => 0b0000,
            Self::Memory64 => 0b1100,
        }
    }

    /// The bits of the low register that are address.
    pub(super) const fn address_mask(self) -> u32 {
        match self {
            Self::Io => !0b0011,
            Self::Memory32 | Self::Memory64 => !0b1111,
        }
    }
}

/// One BAR: its first register, kind and size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BarSpec {
    /// First register, 0–5 (0–4 for a 64-bit BAR).
    pub index: u8,
    /// What it decodes.
    pub kind: BarKind,
    /// Size in bytes: a power of two, at least 4 for ports and 16 for memory.
    pub len: u64,
}

impl BarSpec {
    /// Refuses what PCI does not have.
    pub(super) fn check(&self) -> Result<(), PciError> {
        let (last_index, least, most) = match self.kind {
            BarKind::Io => (5, 4, 1 << 16),
            BarKind::Memory32 => (5, 16, 1 << 31),
            BarKind::Memory64 => (4, 16, 1 << 62),
        };
        if self.index > last_index || !self.len.is_power_of_two() || self.len < least || self.len > most {
            return Err(PciError::BadBar { index: self.index, len: self.len });
        }
        Ok(())
    }

    /// Offset of its first register in configuration space.
    pub(super) const fn offset(&self) -> u8 {
        0x10u8.wrapping_add(self.index.wrapping_mul(4))
    }
}
