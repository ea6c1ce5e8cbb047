//! Where disks go on the PCI bus of a guest of the bhyve brand.

use std::fmt;

use super::{Disk, Media};
use crate::ConfigError;

/// A place on a PCI bus, as the boot hook writes it: `BUS:DEVICE:FUNCTION`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) bus: u8,
    device: u8,
    function: u8,
}

impl fmt::Display for Place {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}:{}:{}", self.bus, self.device, self.function)
    }
}

/// What has its devices of bus 0 for itself: nothing of a disk may be beside it.
const RESERVED: [(u8, &str); 4] =
    [(0, "the host bridge"), (6, "network interfaces"), (30, "the display"), (31, "the LPC bridge")];

/// Functions of a PCI device.
const FUNCTIONS: u8 = 8;

impl Place {
    /// Reads `DEVICE`, `DEVICE:FUNCTION` or `BUS:DEVICE:FUNCTION`.
    pub(super) fn read(key: &str, text: &str) -> Result<Self, ConfigError> {
        let number = |part: &str, most: u8| {
            let digits = !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
            part.parse::<u8>().ok().filter(|number| digits && *number <= most)
        };
        let parts: Vec<&str> = text.split(':').collect();
        let (bus, device, function) = match parts[..] {
            [device] => ("0", device, "0"),
            [device, function] => ("0", device, function),
            [bus, device, function] => (bus, device, function),
            _ => ("", "", ""),
        };
        match (number(bus, 255), number(device, 31), number(function, 7)) {
            (Some(bus), Some(device), Some(function)) => Ok(Self { bus, device, function }),
            _ => {
                let problem = format!(
                    "'{text}' is not a slot; write DEVICE, DEVICE:FUNCTION or BUS:DEVICE:FUNCTION, up to 255:31:7"
                );
                Err(ConfigError::setting(key, problem))
            }
        }
    }

    /// The device that a disk without a place goes to.
    fn device_for(disk: &Disk) -> u8 {
        match disk.media {
            Media::Cdrom => 3,
            Media::Disk if disk.boot => 4,
            Media::Disk => 5,
        }
    }
}

/// The place of each disk: its own, or the first that is free on the device of its kind.
///
/// vmadm gives every disk a place for good when it is added, so that disks without one are as old as that: they have those
/// that VM.js makes permanent at their zone's next start, which are where the boot hook has always put them.
pub(super) fn places(disks: &[Disk]) -> Result<Vec<Place>, ConfigError> {
    if let Some((index, _)) = disks.iter().enumerate().filter(|(_, disk)| disk.boot).nth(1) {
        let problem = "a disk before it has boot, too; a guest boots from one, set it to false";
        return Err(ConfigError::setting(&format!("disks[{index}].boot"), problem));
    }
    let mut places: Vec<Option<Place>> = Vec::new();
    for (index, disk) in disks.iter().enumerate() {
        let key = format!("disks[{index}].pci_slot");
        let place = disk.pci_slot.as_deref().map(|text| Place::read(&key, text)).transpose()?;
        if let Some(place) = place {
            check(&key, place, &places)?;
        }
        places.push(place);
    }
    let mut found = Vec::new();
    for (index, disk) in disks.iter().enumerate() {
        let place = match places.get(index).copied().flatten() {
            Some(place) => place,
            None => {
                let device = Place::device_for(disk);
                let mut free = (0..FUNCTIONS).map(|function| Place { bus: 0, device, function });
                let Some(place) = free.find(|place| !places.contains(&Some(*place))) else {
                    let problem = format!("it is missing, and nothing of device {device} is free; choose a slot");
                    return Err(ConfigError::setting(&format!("disks[{index}].pci_slot"), problem));
                };
                if let Some(taken) = places.get_mut(index) {
                    *taken = Some(place);
                }
                place
            }
        };
        found.push(place);
    }
    Ok(found)
}

/// A place that a disk may have, and none before it has.
fn check(key: &str, place: Place, taken: &[Option<Place>]) -> Result<(), ConfigError> {
    let problem = |problem: String| Err(ConfigError::setting(key, problem));
    if let Some((device, whose)) = RESERVED.iter().find(|(device, _)| place.bus == 0 && place.device == *device) {
        return problem(format!("device {device} is reserved for {whose}; choose another slot"));
    }
    match taken.iter().position(|other| *other == Some(place)) {
        Some(other) => problem(format!("{place} is the slot of disks[{other}], too; choose another")),
        None => Ok(()),
    }
}
