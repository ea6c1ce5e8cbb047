//! Where each device goes on the PCI bus: where qemu's `pc` puts it.

use super::{Device, Reading};
use crate::{ConfigError, DiskConfig, NetConfig, Slot};

/// First slot after the host bridge and the PIIX3.
const FIRST: u8 = 2;

/// Devices there are on one bus.
const SLOTS: usize = 32;

/// The slots that are taken, by whole devices.
struct Bus([bool; SLOTS]);

impl Bus {
    /// Where a device goes: where it is told to, or else to the first device number that has nothing yet.
    fn place(&mut self, what: &str, addr: Option<Slot>) -> Result<Slot, ConfigError> {
        let free = |device: &u8| self.0.get(usize::from(*device)) == Some(&false);
        let slot = match addr {
            Some(slot) => slot,
            None => match (FIRST..).take(SLOTS).find(free) {
                Some(device) => Slot::device(device),
                None => return Err(ConfigError::setting(what, "no PCI slot is left for it")),
            },
        };
        if let Some(taken) = self.0.get_mut(usize::from(slot.device)) {
            *taken = true;
        }
        Ok(slot)
    }
}

impl Reading {
    /// Makes disks and network interfaces, in qemu's order: graphics card, then `-net nic` as they are given (or the one
    /// card that there is without any `-net`), then `-device` as they are given, and disks of `-drive if=virtio` last, as
    /// qemu turns each into a `-device` once it has read all options. Each takes the first free device number from 2 on.
    pub(super) fn place(&mut self) -> Result<(), ConfigError> {
        let mut bus = Bus([false; SLOTS]);
        if self.vga_has_slot.unwrap_or(self.defaults) {
            bus.place("-vga", None)?;
        }
        if self.defaults && !self.has_net {
            // The guest has no such card here, but everything else stays where it was.
            bus.place("-net", None)?;
        }
        let mut default_macs = 0;
        let cards = std::mem::take(&mut self.cards);
        for (index, card) in cards.into_iter().enumerate() {
            let slot = bus.place(card.option, card.addr)?;
            let mac = card.mac.unwrap_or_else(|| super::networks::default_mac(index));
            let net = self.connect(card, mac)?;
            self.config.nets.push(NetConfig { slot: Some(slot), ..net });
        }
        for device in std::mem::take(&mut self.devices) {
            match device {
                Device::Card(card) => {
                    let slot = bus.place(card.option, card.addr)?;
                    let mac = card.mac.unwrap_or_else(|| {
                        default_macs += 1;
                        super::networks::default_mac(default_macs - 1)
                    });
                    let net = self.connect(card, mac)?;
                    self.config.nets.push(NetConfig { slot: Some(slot), ..net });
                }
                Device::Disk { drive, addr } => {
                    let slot = bus.place("-device", addr)?;
                    let disk = self.take_drive(&drive)?;
                    self.config.disks.push(DiskConfig { slot: Some(slot), ..disk });
                }
            }
        }
        self.check_ends()?;
        for drive in std::mem::take(&mut self.drives) {
            if !drive.virtio {
                let problem =
                    format!("drive {} is for no device; give -device virtio-blk-pci,drive={0}", drive.disk.id);
                return Err(ConfigError::setting("-drive", problem));
            }
            let slot = bus.place("-drive", drive.addr)?;
            self.config.disks.push(DiskConfig { slot: Some(slot), ..drive.disk });
        }
        Ok(())
    }
}

/// `addr=`: hexadecimal device and function, as qemu reads them.
pub(super) fn addr(option: &str, text: Option<String>) -> Result<Option<Slot>, ConfigError> {
    let Some(text) = text else { return Ok(None) };
    let hex = |digits: &str| match digits.strip_prefix("0x").unwrap_or(digits) {
        digits if digits.starts_with('+') => None,
        digits => u8::from_str_radix(digits, 16).ok(),
    };
    let (device, function) = text.split_once('.').unwrap_or((&text, "0"));
    match (hex(device), hex(function)) {
        (Some(device @ 0..=31), Some(function @ 0..=7)) => Ok(Some(Slot { device, function })),
        _ => {
            let problem =
                format!("addr={text} is no place on the PCI bus; write device or device.function, hexadecimal");
            Err(ConfigError::setting(option, problem))
        }
    }
}
