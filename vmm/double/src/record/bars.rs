//! Which access belongs to whom: configuration space as the guest has read and written it, and BARs by that.

use std::collections::BTreeMap;
use std::fmt;

use arch::layout::{ECAM_BYTES, ECAM_START};
use devices::pci::{ConfigPorts, PciAddress};
use devices::virtio::pci::{LEGACY_BAR, MODERN_BAR, MSIX_BAR};

use super::{Seen, Space};

/// A function of bus 0, written `3.0`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Function(u8);

impl fmt::Display for Function {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let address = PciAddress::from_devfn(self.0);
        write!(f, "{:x}.{:x}", address.device(), address.function())
    }
}

/// Where an access goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// Somewhere else.
    Plain,
    /// Configuration space of a function of bus 0.
    Config { function: Function, offset: u16, through: &'static str },
    /// A BAR of a virtio function.
    Bar { function: Function, bar: u8, offset: u64 },
}

/// Bytes of the header of configuration space (type 0), in which the BARs are.
const HEADER_BYTES: usize = 0x40;
const BARS: usize = 0x10;
/// Vendor id of virtio functions (virtio 1.3 §4.1.2).
const VIRTIO_VENDOR: u32 = 0x1af4;
const ENABLED: u64 = 1 << 31;

/// Bytes after the start of a BAR in which an access is taken to be its: the largest legacy header and configuration, a
/// table and pending bits on a page each, and all structures with a page of doorbells.
const LENGTHS: [(u8, Space, u64); 3] =
    [(LEGACY_BAR, Space::Port, 0x80), (MSIX_BAR, Space::Memory, 0x2000), (MODERN_BAR, Space::Memory, 0x4000)];

/// What the guest knows of configuration space.
#[derive(Default)]
pub(super) struct Bars {
    /// What was last written to the address port.
    address: u64,
    headers: BTreeMap<Function, [u8; HEADER_BYTES]>,
}

impl Bars {
    /// Where `seen` goes. Follows the address port.
    pub(super) fn place(&mut self, seen: Seen) -> Place {
        match seen.space {
            Space::Port => {
                let Some(offset) = seen.address.checked_sub(ConfigPorts::BASE).filter(|at| *at < ConfigPorts::LEN)
                else {
                    return self.bar(seen);
                };
                if offset == 0 && seen.is_write && seen.width == 4 {
                    self.address = seen.value;
                }
                // The upper bits of the address are the bus.
                if offset < 4 || self.address & ENABLED == 0 || self.address >> 16 & 0xff != 0 {
                    return Place::Plain;
                }
                let register = (self.address & 0xfc) as u16;
                let function = Function((self.address >> 8) as u8);
                Place::Config { function, offset: register + (offset as u16 & 3), through: "ports" }
            }
            Space::Memory => match seen.address.checked_sub(ECAM_START).filter(|at| *at < ECAM_BYTES) {
                Some(at) => {
                    let function = Function((at >> 12) as u8);
                    Place::Config { function, offset: (at & 0xfff) as u16, through: "ecam" }
                }
                None => self.bar(seen),
            },
        }
    }

    /// The BAR that begins last before the access: what is taken for the length of one may reach into the next.
    fn bar(&self, seen: Seen) -> Place {
        let mut best = Place::Plain;
        let mut best_offset = u64::MAX;
        for (&function, header) in &self.headers {
            if word(header, 0) & 0xffff != VIRTIO_VENDOR {
                continue;
            }
            for (bar, space, len) in LENGTHS {
                let Some(base) = base(header, bar).filter(|_| space == seen.space) else { continue };
                let Some(offset) = seen.address.checked_sub(base).filter(|at| *at < len) else { continue };
                if offset < best_offset {
                    (best, best_offset) = (Place::Bar { function, bar, offset }, offset);
                }
            }
        }
        best
    }

    /// The guest has seen or set this much of configuration space.
    pub(super) fn note_config(&mut self, function: Function, offset: u16, seen: Seen) {
        let header = self.headers.entry(function).or_insert([0; HEADER_BYTES]);
        for (byte, value) in header.iter_mut().skip(offset.into()).zip(&seen.value.to_le_bytes()[..seen.width]) {
            *byte = *value;
        }
    }
}

fn word(header: &[u8; HEADER_BYTES], at: usize) -> u32 {
    header.get(at..at + 4).and_then(|bytes| bytes.try_into().ok()).map_or(0, u32::from_le_bytes)
}

/// Where a BAR of a virtio function is, if it is anywhere: by its layout, whatever bits of its type the guest wrote.
fn base(header: &[u8; HEADER_BYTES], bar: u8) -> Option<u64> {
    let at = BARS + 4 * usize::from(bar);
    let low = u64::from(word(header, at));
    let base = match bar {
        LEGACY_BAR => low & 0xfffc,
        MODERN_BAR => low & !15 | u64::from(word(header, at + 4)) << 32,
        _ => low & !15,
    };
    (base != 0).then_some(base)
}
