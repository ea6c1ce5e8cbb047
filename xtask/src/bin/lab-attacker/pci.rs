//! PCI functions by way of sysfs: configuration space, memory BARs mapped, I/O BARs as ports.

use std::fs;
use std::os::unix::fs::FileExt as _;

use anyhow::{Context as _, bail, ensure};

use crate::machine::{Mapping, read_port, write_port};

const BUS: &str = "/sys/bus/pci/devices";

/// Bits of the command register.
pub mod command {
    pub const IO: u32 = 1;
    pub const MEMORY: u32 = 2;
    pub const MASTER: u32 = 4;
    pub const INTX_OFF: u32 = 0x400;
}

/// Registers of configuration space.
pub mod register {
    pub const COMMAND: u64 = 0x04;
    pub const BAR0: u64 = 0x10;
    pub const SUBSYSTEM: u64 = 0x2c;
    pub const CAPABILITIES: u64 = 0x34;
}

/// A function on bus 0.
pub struct Function {
    /// Its folder in sysfs, such as `0000:00:0b.0`.
    pub name: String,
    config: fs::File,
    /// What configuration mechanism #1 takes to select it.
    pub selector: u32,
}

impl Function {
    /// All functions that the kernel found.
    ///
    /// # Errors
    /// When sysfs does not show them.
    pub fn all() -> anyhow::Result<Vec<Self>> {
        let mut names: Vec<String> = fs::read_dir(BUS)
            .with_context(|| format!("cannot list {BUS}"))?
            .flatten()
            .map(|entry| entry.file_name().to_string_lossy().into_owned())
            .collect();
        names.sort();
        names.into_iter().map(Self::open).collect()
    }

    fn open(name: String) -> anyhow::Result<Self> {
        let path = format!("{BUS}/{name}/config");
        let config = fs::OpenOptions::new().read(true).write(true).open(&path).with_context(|| path.clone())?;
        let place = name.rsplit(':').next().and_then(|place| place.split_once('.')).context("no place in the name")?;
        let (device, function) = (u32::from_str_radix(place.0, 16)?, place.1.parse::<u32>()?);
        Ok(Self { name, config, selector: 1 << 31 | device << 11 | function << 8 })
    }

    /// Reads a dword.
    pub fn read(&self, register: u64) -> u32 {
        let mut bytes = [0xff; 4];
        let _ = self.config.read_at(&mut bytes, register);
        u32::from_le_bytes(bytes)
    }

    /// Writes a dword.
    pub fn write(&self, register: u64, value: u32) {
        let _ = self.config.write_at(&value.to_le_bytes(), register);
    }

    /// Vendor and device.
    pub fn id(&self) -> (u16, u16) {
        let id = self.read(0);
        (id as u16, (id >> 16) as u16)
    }

    /// Sets and clears bits of the command register.
    pub fn set_command(&self, set: u32, clear: u32) {
        let before = self.read(register::COMMAND) & 0xffff;
        self.write(register::COMMAND, (before | set) & !clear);
    }

    /// The capabilities with this id: their offsets.
    pub fn capabilities(&self, id: u8) -> Vec<u64> {
        let mut found = Vec::new();
        let mut at = u64::from(self.read(register::CAPABILITIES) as u8);
        // A list cannot have more entries than fit: a longer one is a loop.
        for _ in 0..48 {
            if at < 0x40 {
                break;
            }
            let header = self.read(at & 0xfc);
            if header as u8 == id {
                found.push(at & 0xfc);
            }
            at = u64::from((header >> 8) as u8);
        }
        found
    }

    /// The physical address or port of a BAR.
    pub fn bar(&self, index: u8) -> u64 {
        let at = register::BAR0 + 4 * u64::from(index);
        let low = self.read(at);
        match (low & 1, low >> 1 & 3) {
            (1, _) => u64::from(low & !3),
            (_, 2) => u64::from(self.read(at + 4)) << 32 | u64::from(low & !0xf),
            _ => u64::from(low & !0xf),
        }
    }

    /// Moves a memory BAR.
    pub fn set_bar(&self, index: u8, address: u64) {
        let at = register::BAR0 + 4 * u64::from(index);
        let wide = self.read(at) >> 1 & 3 == 2;
        self.write(at, address as u32);
        if wide {
            self.write(at + 4, (address >> 32) as u32);
        }
    }

    /// Maps a memory BAR.
    ///
    /// # Errors
    /// When the kernel gave it no place.
    pub fn map(&self, index: u8) -> anyhow::Result<Mapping> {
        let path = format!("{BUS}/{}/resource{index}", self.name);
        let len = fs::metadata(&path).with_context(|| format!("{path} is missing"))?.len();
        ensure!(len != 0, "{path} is empty");
        Mapping::new(&path, 0, usize::try_from(len)?)
    }

    /// The first port of an I/O BAR.
    ///
    /// # Errors
    /// When it is none.
    pub fn ports(&self, index: u8) -> anyhow::Result<(u16, u16)> {
        let text = fs::read_to_string(format!("{BUS}/{}/resource", self.name))?;
        let line = text.lines().nth(usize::from(index)).context("too few resources")?;
        let numbers: Vec<u64> = line
            .split_whitespace()
            .filter_map(|number| u64::from_str_radix(number.trim_start_matches("0x"), 16).ok())
            .collect();
        let [start, end, flags] = numbers[..] else { bail!("a resource is {line}") };
        // IORESOURCE_IO
        ensure!(flags & 0x100 != 0 && end > start, "BAR {index} is not of ports");
        Ok((u16::try_from(start)?, u16::try_from(end - start + 1)?))
    }

    /// Reads through ports 0xCF8 and 0xCFC in one access of 1, 2 or 4 bytes inside a dword.
    pub fn read_by_port(&self, offset: u32, width: usize) -> u32 {
        write_port(0xcf8, 4, self.selector | offset & 0xfc);
        read_port(0xcfc + (offset & 3) as u16, width)
    }

    /// Writes the same way.
    pub fn write_by_port(&self, offset: u32, width: usize, value: u32) {
        write_port(0xcf8, 4, self.selector | offset & 0xfc);
        write_port(0xcfc + (offset & 3) as u16, width, value);
    }

    /// What is in configuration space up to `end`, to put it back with [`restore`](Self::restore).
    pub fn save(&self, end: u64) -> Vec<u32> {
        (0..end).step_by(4).map(|register| self.read(register)).collect()
    }

    /// Puts back what differs. Nothing decodes meanwhile.
    pub fn restore(&self, saved: &[u32]) {
        self.write(register::COMMAND, saved[1] & 0xffff & !(command::IO | command::MEMORY));
        for (register, value) in (0..).step_by(4).zip(saved) {
            if register != register::COMMAND && self.read(register) != *value {
                self.write(register, *value);
            }
        }
        self.write(register::COMMAND, saved[1] & 0xffff);
    }
}
