//! A virtio device's registers, of either interface (virtio 1.3 §4.1.4).

use anyhow::{Context as _, ensure};

use crate::arena::Arena;
use crate::machine::{Mapping, read_port, write_port};
use crate::pci::Function;
use crate::queue::Queue;

/// Device status bits (§2.1).
pub mod status {
    pub const ACKNOWLEDGE: u8 = 1;
    pub const DRIVER: u8 = 2;
    pub const DRIVER_OK: u8 = 4;
    pub const FEATURES_OK: u8 = 8;
    pub const NEEDS_RESET: u8 = 64;
    pub const FAILED: u8 = 128;
}

/// Offsets in the common configuration (§4.1.4.3).
pub mod common {
    pub const DEVICE_FEATURE_SELECT: usize = 0x00;
    pub const DEVICE_FEATURE: usize = 0x04;
    pub const DRIVER_FEATURE_SELECT: usize = 0x08;
    pub const DRIVER_FEATURE: usize = 0x0c;
    pub const CONFIG_VECTOR: usize = 0x10;
    pub const NUM_QUEUES: usize = 0x12;
    pub const STATUS: usize = 0x14;
    pub const QUEUE_SELECT: usize = 0x16;
    pub const QUEUE_SIZE: usize = 0x18;
    pub const QUEUE_VECTOR: usize = 0x1a;
    pub const QUEUE_ENABLE: usize = 0x1c;
    pub const QUEUE_NOTIFY_OFF: usize = 0x1e;
    pub const QUEUE_DESC: usize = 0x20;
    pub const QUEUE_DRIVER: usize = 0x28;
    pub const QUEUE_DEVICE: usize = 0x30;
    pub const QUEUE_RESET: usize = 0x3a;
    /// Bytes up to and including `queue_reset`.
    pub const BYTES: usize = 0x3c;
}

/// Offsets in the legacy header (§4.1.4.10).
pub mod legacy {
    pub const DEVICE_FEATURES: u16 = 0x00;
    pub const DRIVER_FEATURES: u16 = 0x04;
    pub const QUEUE_PFN: u16 = 0x08;
    pub const QUEUE_SIZE: u16 = 0x0c;
    pub const QUEUE_SELECT: u16 = 0x0e;
    pub const QUEUE_NOTIFY: u16 = 0x10;
    pub const STATUS: u16 = 0x12;
    pub const ISR: u16 = 0x13;
}

/// The structures of the modern interface, all in one BAR.
pub struct Modern {
    pub bar: Mapping,
    pub bar_index: u8,
    pub common: usize,
    pub common_len: usize,
    pub notify: usize,
    pub notify_len: usize,
    /// Where the doorbells are: as read once, because a device that does not decode says nothing.
    doorbells: Vec<usize>,
    pub isr: usize,
    /// Device configuration and its length; some devices have none.
    pub config: (usize, usize),
}

/// The registers.
pub enum Registers {
    Modern(Modern),
    Legacy { ports: u16, len: u16 },
}

impl Modern {
    /// Finds them by the function's capabilities (§4.1.4).
    ///
    /// # Errors
    /// When something is missing.
    pub fn find(function: &Function) -> anyhow::Result<Self> {
        let (mut places, mut multiplier, mut bars) = ([(0, 0); 6], 0, Vec::new());
        for at in function.capabilities(9) {
            let kind = (function.read(at) >> 24) as usize;
            if !(1..=4).contains(&kind) {
                continue;
            }
            bars.push(function.read(at + 4) as u8);
            places[kind] = (function.read(at + 8) as usize, function.read(at + 12) as usize);
            if kind == 2 {
                multiplier = function.read(at + 16) as usize;
            }
        }
        let bar = *bars.first().context("no modern interface")?;
        ensure!(bars.iter().all(|other| *other == bar), "the structures are in several BARs");
        let [_, (common, common_len), (notify, notify_len), (isr, _), config, _] = places;
        ensure!(common_len >= 0x38 && notify_len != 0 && isr != 0, "a structure is missing");
        let bar_index = bar;
        let bar = function.map(bar_index)?;
        let mut modern =
            Self { bar, bar_index, common, common_len, notify, notify_len, doorbells: Vec::new(), isr, config };
        let queues = modern.read(common::NUM_QUEUES, 2) as u16;
        let doorbell = |queue| notify + modern.read_queue(queue, common::QUEUE_NOTIFY_OFF, 2) as usize * multiplier;
        modern.doorbells = (0..queues).map(doorbell).collect();
        Ok(modern)
    }

    /// Reads a field of the common configuration.
    pub fn read(&self, field: usize, width: usize) -> u64 {
        self.bar.read(self.common + field, width)
    }

    /// Writes one.
    pub fn write(&self, field: usize, width: usize, value: u64) {
        self.bar.write(self.common + field, width, value);
    }

    /// Reads a field of a queue.
    pub fn read_queue(&self, queue: u16, field: usize, width: usize) -> u64 {
        self.write(common::QUEUE_SELECT, 2, queue.into());
        self.read(field, width)
    }

    /// A feature word, by the select and value registers given.
    pub fn features(&self, select: usize, value: usize) -> u64 {
        let word = |n| {
            self.write(select, 4, n);
            self.read(value, 4)
        };
        word(0) | word(1) << 32
    }

    /// Where a queue's doorbell is in the BAR.
    pub fn doorbell(&self, queue: u16) -> usize {
        self.doorbells[usize::from(queue)]
    }
}

impl Registers {
    /// The device status.
    pub fn status(&self) -> u8 {
        match self {
            Self::Modern(modern) => modern.read(common::STATUS, 1) as u8,
            Self::Legacy { ports, .. } => read_port(ports + legacy::STATUS, 1) as u8,
        }
    }

    /// Writes the device status.
    pub fn set_status(&self, value: u8) {
        match self {
            Self::Modern(modern) => modern.write(common::STATUS, 1, value.into()),
            Self::Legacy { ports, .. } => write_port(ports + legacy::STATUS, 1, value.into()),
        }
    }

    /// What the device offers.
    pub fn offered(&self) -> u64 {
        match self {
            Self::Modern(modern) => modern.features(common::DEVICE_FEATURE_SELECT, common::DEVICE_FEATURE),
            Self::Legacy { ports, .. } => read_port(ports + legacy::DEVICE_FEATURES, 4).into(),
        }
    }

    /// Accepts features.
    pub fn accept(&self, features: u64) {
        match self {
            Self::Modern(modern) => {
                for (select, word) in [(0, features & 0xffff_ffff), (1, features >> 32)] {
                    modern.write(common::DRIVER_FEATURE_SELECT, 4, select);
                    modern.write(common::DRIVER_FEATURE, 4, word);
                }
            }
            Self::Legacy { ports, .. } => write_port(ports + legacy::DRIVER_FEATURES, 4, features as u32),
        }
    }

    /// What was accepted, as far as the device shows it.
    pub fn accepted(&self) -> u64 {
        match self {
            Self::Modern(modern) => modern.features(common::DRIVER_FEATURE_SELECT, common::DRIVER_FEATURE),
            Self::Legacy { ports, .. } => read_port(ports + legacy::DRIVER_FEATURES, 4).into(),
        }
    }

    /// The size of a queue: before it is set up, the device's maximum.
    pub fn queue_size(&self, queue: u16) -> u16 {
        match self {
            Self::Modern(modern) => modern.read_queue(queue, common::QUEUE_SIZE, 2) as u16,
            Self::Legacy { ports, .. } => {
                write_port(ports + legacy::QUEUE_SELECT, 2, queue.into());
                read_port(ports + legacy::QUEUE_SIZE, 2) as u16
            }
        }
    }

    /// Writes the size of a queue.
    pub fn set_queue_size(&self, queue: u16, size: u16) {
        match self {
            Self::Modern(modern) => {
                modern.write(common::QUEUE_SELECT, 2, queue.into());
                modern.write(common::QUEUE_SIZE, 2, size.into());
            }
            Self::Legacy { ports, .. } => {
                write_port(ports + legacy::QUEUE_SELECT, 2, queue.into());
                write_port(ports + legacy::QUEUE_SIZE, 2, size.into());
            }
        }
    }

    /// Tells the device where a queue's three parts are, and enables it. The legacy interface takes the first address
    /// for all of them.
    pub fn place_queue(&self, queue: u16, [desc, driver, device]: [u64; 3]) {
        match self {
            Self::Modern(modern) => {
                modern.write(common::QUEUE_SELECT, 2, queue.into());
                for (field, address) in
                    [(common::QUEUE_DESC, desc), (common::QUEUE_DRIVER, driver), (common::QUEUE_DEVICE, device)]
                {
                    modern.write(field, 4, address & 0xffff_ffff);
                    modern.write(field + 4, 4, address >> 32);
                }
                modern.write(common::QUEUE_ENABLE, 2, 1);
            }
            Self::Legacy { ports, .. } => {
                write_port(ports + legacy::QUEUE_SELECT, 2, queue.into());
                write_port(ports + legacy::QUEUE_PFN, 4, (desc >> 12) as u32);
            }
        }
    }

    /// Whether a queue is enabled.
    pub fn is_enabled(&self, queue: u16) -> bool {
        match self {
            Self::Modern(modern) => modern.read_queue(queue, common::QUEUE_ENABLE, 2) != 0,
            Self::Legacy { ports, .. } => {
                write_port(ports + legacy::QUEUE_SELECT, 2, queue.into());
                read_port(ports + legacy::QUEUE_PFN, 4) != 0
            }
        }
    }

    /// Rings a queue's doorbell.
    pub fn notify(&self, queue: u16) {
        match self {
            Self::Modern(modern) => modern.bar.write(modern.doorbell(queue), 2, queue.into()),
            Self::Legacy { ports, .. } => write_port(ports + legacy::QUEUE_NOTIFY, 2, queue.into()),
        }
    }
}

/// Where the parts of a queue are in guest memory.
pub fn places(arena: &Arena, queue: &Queue) -> [u64; 3] {
    [0, queue.driver, queue.device].map(|part| arena.physical(queue.base + part))
}
