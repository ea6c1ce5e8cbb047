//! PCI: configuration space through 0xCF8 or ECAM, enumeration of bus 0, placing of BARs (PCI Local Bus 3.0 §3.2.2.3,
//! §6.1, §6.2.5.1; PCI Express Base 4.0 §7.2.2).

use virtio_drivers::transport::pci::bus::{ConfigurationAccess, DeviceFunction};

use crate::machine::{in32, load, out32, store};
use crate::{acpi, pvh};

/// Configuration registers.
pub mod register {
    #![allow(missing_docs)]
    pub const ID: u8 = 0x00;
    pub const COMMAND: u8 = 0x04;
    pub const CLASS: u8 = 0x08;
    pub const HEADER: u8 = 0x0c;
    pub const BAR0: u8 = 0x10;
    pub const CAPABILITIES: u8 = 0x34;
    pub const INTERRUPT: u8 = 0x3c;
}

/// Bits of the command register, and of status above bit 16.
pub mod command {
    #![allow(missing_docs)]
    pub const IO: u32 = 1 << 0;
    pub const MEMORY: u32 = 1 << 1;
    pub const MASTER: u32 = 1 << 2;
    pub const INTX_OFF: u32 = 1 << 10;
    pub const STATUS_INTERRUPT: u32 = 1 << 19;
    pub const STATUS_CAPABILITIES: u32 = 1 << 20;
}

/// How configuration space is reached.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Access {
    /// Address port 0xCF8, data port 0xCFC.
    Ports,
    /// Memory-mapped at this address.
    Ecam(u64),
}

impl Access {
    /// What the command line asks for with `pci=ports|ecam`; else the ports, or ECAM where they do not answer or answer
    /// for another bus.
    #[must_use]
    pub fn choose() -> Self {
        let ecam = acpi::ecam();
        let through_ecam = || Self::Ecam(ecam.expect("there is no MCFG table").base);
        match pvh::option("pci") {
            Some("ports") => Self::Ports,
            Some("ecam") => through_ecam(),
            Some(other) => panic!("pci={other} is neither ports nor ecam"),
            None if ecam.is_some_and(|ecam| ecam.segment != 0) => through_ecam(),
            None if Self::Ports.read(address(0, 0), register::ID) != u32::MAX => Self::Ports,
            None => through_ecam(),
        }
    }

    /// Reads an aligned double word.
    #[must_use]
    pub fn read(self, function: DeviceFunction, register: u8) -> u32 {
        match self {
            Self::Ports => {
                out32(0xcf8, selector(function, register));
                in32(0xcfc)
            }
            Self::Ecam(base) => load(base + offset(function, register)),
        }
    }

    /// Writes an aligned double word.
    pub fn write(self, function: DeviceFunction, register: u8, value: u32) {
        match self {
            Self::Ports => {
                out32(0xcf8, selector(function, register));
                out32(0xcfc, value);
            }
            Self::Ecam(base) => store(base + offset(function, register), value),
        }
    }

    /// Offset of the first capability with this id after `after` (0 for the first).
    #[must_use]
    pub fn capability(self, function: DeviceFunction, id: u8, after: u8) -> Option<u8> {
        if self.read(function, register::COMMAND) & command::STATUS_CAPABILITIES == 0 {
            return None;
        }
        let mut at = if after == 0 {
            self.read(function, register::CAPABILITIES) as u8
        } else {
            (self.read(function, after) >> 8) as u8
        };
        // A list cannot have more entries than fit: a longer one is a loop.
        for _ in 0..48 {
            if at < 0x40 {
                return None;
            }
            let header = self.read(function, at & 0xfc);
            if header as u8 == id {
                return Some(at & 0xfc);
            }
            at = (header >> 8) as u8;
        }
        panic!("the capabilities of {function} are a loop")
    }

    /// The address in a memory BAR.
    #[must_use]
    pub fn bar(self, function: DeviceFunction, index: u8) -> u64 {
        let low = self.read(function, register::BAR0 + 4 * index);
        assert!(low & 1 == 0, "BAR {index} of {function} is not memory");
        let high = if low >> 1 & 3 == 2 { self.read(function, register::BAR0 + 4 * index + 4) } else { 0 };
        u64::from(high) << 32 | u64::from(low & !0xf)
    }
}

impl ConfigurationAccess for Access {
    fn read_word(&self, function: DeviceFunction, register: u8) -> u32 {
        self.read(function, register)
    }

    fn write_word(&mut self, function: DeviceFunction, register: u8, value: u32) {
        self.write(function, register, value);
    }

    unsafe fn unsafe_clone(&self) -> Self {
        *self
    }
}

/// A function on bus 0.
#[must_use]
pub fn address(device: u8, function: u8) -> DeviceFunction {
    DeviceFunction { bus: 0, device, function }
}

fn selector(function: DeviceFunction, register: u8) -> u32 {
    1 << 31 | routing_id(function) << 8 | u32::from(register)
}

fn offset(function: DeviceFunction, register: u8) -> u64 {
    u64::from(routing_id(function) << 12 | u32::from(register))
}

fn routing_id(function: DeviceFunction) -> u32 {
    u32::from(function.bus) << 8 | u32::from(function.device) << 3 | u32::from(function.function)
}

/// The functions on bus 0, with their vendor and device id.
pub fn functions(access: Access) -> impl Iterator<Item = (DeviceFunction, u16, u16)> {
    (0..32).flat_map(move |device| {
        let first = access.read(address(device, 0), register::ID);
        let many = first != u32::MAX && access.read(address(device, 0), register::HEADER) & 1 << 23 != 0;
        let last = if first == u32::MAX {
            0
        } else if many {
            8
        } else {
            1
        };
        (0..last).filter_map(move |function| {
            let id = access.read(address(device, function), register::ID);
            (id != u32::MAX).then_some((address(device, function), id as u16, (id >> 16) as u16))
        })
    })
}

/// Hands out addresses for BARs.
struct Window {
    memory: u32,
    memory_end: u32,
    io: u32,
}

impl Window {
    /// From 3 GiB, above all RAM below 4 GiB, to the IOAPIC; before or after the ECAM where that lies between.
    fn new() -> Self {
        const START: u32 = 0xc000_0000;
        const END: u32 = 0xfec0_0000;
        let (memory, memory_end) = match acpi::ecam() {
            Some(ecam) if ecam.base == START.into() => (START + ((u32::from(ecam.last_bus) + 1) << 20), END),
            Some(ecam) if (START.into()..END.into()).contains(&ecam.base) => (START, ecam.base as u32),
            _ => (START, END),
        };
        Self { memory, memory_end, io: 0xc000 }
    }

    fn take_memory(&mut self, size: u32) -> u32 {
        let base = self.memory.next_multiple_of(size);
        assert!(size <= self.memory_end - base, "no room for a BAR of {size:#x} bytes");
        self.memory = base + size;
        base
    }

    fn take_io(&mut self, size: u32) -> u32 {
        self.io = self.io.next_multiple_of(size) + size;
        assert!(self.io <= 0x1_0000, "no room for an I/O BAR of {size:#x} bytes");
        self.io - size
    }
}

/// Gives every function with a type 0 header its BARs, wherever they were before, and turns decoding and bus mastering
/// on.
pub fn place_bars(access: Access) {
    let mut window = Window::new();
    for (function, ..) in functions(access) {
        let is_bridge = access.read(function, register::CLASS) >> 24 == 6;
        if access.read(function, register::HEADER) >> 16 & 0x7f != 0 || is_bridge {
            continue;
        }
        let decode = command::IO | command::MEMORY;
        let before = access.read(function, register::COMMAND) & 0xffff;
        access.write(function, register::COMMAND, before & !decode);
        let mut index = 0;
        while index < 6 {
            index += place_bar(access, function, index, &mut window);
        }
        access.write(function, register::COMMAND, before | decode | command::MASTER);
    }
}

/// Places one BAR and returns how many registers it takes.
fn place_bar(access: Access, function: DeviceFunction, index: u8, window: &mut Window) -> u8 {
    let register = register::BAR0 + 4 * index;
    access.write(function, register, u32::MAX);
    let mask = access.read(function, register);
    if mask == 0 {
        return 1;
    }
    if mask & 1 != 0 {
        // An I/O BAR may leave its upper half at zero.
        let size = (mask & 0xfffc | 0xffff_0000).wrapping_neg();
        access.write(function, register, window.take_io(size));
        return 1;
    }
    let size = (mask & !0xf).wrapping_neg();
    assert!(size != 0, "BAR {index} of {function} is 4 GiB or larger");
    let base = window.take_memory(size);
    access.write(function, register, base);
    let read = access.read(function, register) & !0xf;
    assert!(read == base, "BAR {index} of {function} holds {read:#x} after {base:#x} was written");
    if mask >> 1 & 3 == 2 {
        access.write(function, register + 4, 0);
        return 2;
    }
    1
}
