//! PCI: configuration space, base address registers, MSI-X, bus 0 and the host bridges of the machine profiles.
//!
//! ```text
//! ports 0xCF8/0xCFC ─┐                                   ┌─► ConfigSpace (registers as data)
//!                    ├─► PciBus ─► PciFunction ──────────┤
//! ECAM window ───────┘                                   └─► BarMapper ─► Bus (ports, memory): one range a BAR
//! ```
//!
//! Every function has its own lock and only configuration accesses take it: a BAR is its own range on the port or
//! memory bus, so the data path never passes through here.

use serde::{Deserialize, Serialize};

use crate::bus::Access;

mod bar;
mod bhyve;
mod bus;
pub(crate) mod bytes;
mod config;
mod host_bridge;
mod intx;
mod mapper;
mod msix;
mod piix;
mod pirq;

pub use bar::{BarKind, BarSpec};
pub use bhyve::{BHYVE_LINKS, bhyve_host_bridge, bhyve_link, bhyve_lpc_bridge};
pub use bus::{ConfigPorts, Ecam, PciBus};
pub use config::{ConfigSpace, ConfigState, Field, Identity, StateError, command};
pub use host_bridge::{FixedFunction, i440fx_host_bridge, micro_host_bridge};
pub use intx::{InterruptPin, IntxPin, IntxRouter, PIRQ_LINKS, i440fx_link};
pub use mapper::{BarId, BarListener, BarMapper, Windows};
pub use msix::{MAX_VECTORS, Msix, MsixState};
pub use piix::{Piix4Pm, SmbusHost, SmbusState, piix3_isa_bridge, piix4_pm};

/// Functions a bus can hold: 32 devices of 8 functions.
pub const FUNCTIONS_PER_BUS: usize = 256;

/// Where a function sits on bus 0: device 0–31, function 0–7 (PCI Local Bus 3.0 §3.2.2.3.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct PciAddress {
    device: u8,
    function: u8,
}

impl PciAddress {
    /// The address of `function` of `device`; refuses numbers the bus does not have.
    pub const fn new(device: u8, function: u8) -> Result<Self, PciError> {
        if device > 31 || function > 7 {
            return Err(PciError::NoSuchSlot { device, function });
        }
        Ok(Self { device, function })
    }

    /// Device number, 0–31.
    pub const fn device(self) -> u8 {
        self.device
    }

    /// Function number, 0–7.
    pub const fn function(self) -> u8 {
        self.function
    }

    /// The index configuration accesses carry: `device << 3 | function`.
    pub const fn devfn(self) -> u8 {
        self.device << 3 | self.function
    }

    /// The address with this index.
    pub const fn from_devfn(devfn: u8) -> Self {
        Self { device: devfn >> 3, function: devfn & 7 }
    }
}

impl std::fmt::Display for PciAddress {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "00:{:02x}.{}", self.device, self.function)
    }
}

/// Why a function, a BAR or a capability cannot be set up. All of these are configuration errors: nothing a guest does
/// leads here.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum PciError {
    /// The slot does not exist.
    #[error("pci slot {device}.{function} does not exist: devices are 0 to 31, functions 0 to 7")]
    NoSuchSlot {
        /// The device number asked for.
        device: u8,
        /// The function number asked for.
        function: u8,
    },
    /// Another function is there.
    #[error("pci slot {address} is taken by {by}: choose another slot for {name}")]
    SlotTaken {
        /// The slot asked for.
        address: PciAddress,
        /// What wanted it.
        name: String,
        /// What has it.
        by: String,
    },
    /// The window has no room left.
    #[error("no room for a bar of {len:#x} bytes in the {window} window: enlarge the window or remove a device")]
    NoRoom {
        /// Size of the BAR in bytes.
        len: u64,
        /// `i/o port`, `32-bit memory` or `64-bit memory`.
        window: &'static str,
    },
    /// An address window is empty, wraps or lies where its kind cannot be addressed.
    #[error("pci {window} window {start:#x}..{end:#x} is not usable")]
    BadWindow {
        /// `i/o port`, `32-bit memory` or `64-bit memory`.
        window: &'static str,
        /// First address.
        start: u64,
        /// First address behind it.
        end: u64,
    },
    /// A BAR's index or size is not one PCI has.
    #[error("bar {index} of {len:#x} bytes does not exist in pci: sizes are powers of two, indexes 0 to 5")]
    BadBar {
        /// Index of the BAR.
        index: u8,
        /// Its size in bytes.
        len: u64,
    },
    /// The capability list is full.
    #[error("capability {id:#x} of {len} bytes does not fit into the configuration space")]
    NoCapabilityRoom {
        /// Capability id.
        id: u8,
        /// Its length in bytes.
        len: usize,
    },
    /// More message-signalled vectors than MSI-X has.
    #[error("{vectors} msi-x vectors are more than the {MAX_VECTORS} that one function can have")]
    TooManyVectors {
        /// Vectors asked for.
        vectors: usize,
    },
}

/// One function on the bus. Accesses come from any vCPU thread; `offset + data.len()` stays inside one aligned dword
/// of the 4096-byte extended configuration space.
pub trait PciFunction: Send + Sync {
    /// Fills `data` from configuration space; what the function does not have reads zero below 0x100 and all ones above.
    fn read_config(&self, offset: u16, data: &mut [u8]);

    /// Takes `data` into configuration space; read-only bits keep their value.
    fn write_config(&self, offset: u16, data: &[u8]) -> Access;

    /// Puts the function back into its power-on state: registers as built, BARs at the addresses they were given.
    /// Called with all vCPUs outside the guest. Finishes later where an engine still has to let go of guest memory.
    fn reset(&self) -> Access;
}
