//! What `vmadm get` says of a guest, as the command line that SmartOS starts it with.
//!
//! [`Document::argv`] is what a process of the zone is given: in a zone of the bhyve brand what the brand's boot hook passes,
//! in one of the kvm brand what the script says that VM.js writes. Nothing here makes a machine of it: that is done by the
//! front end that reads such a command line anyway ([`Argv::translate`]), so that what is shown is what runs.
//!
//! Sources: VM.js and vmload of smartos-live, the boot hook of the bhyve brand in illumos-joyent, zonecfg's attributes as
//! VM.js sets them.

mod argv;
mod bhyve;
mod objects;
mod qemu;
mod shell;
mod slots;
#[cfg(test)]
mod tests;

use std::path::Path;

use serde::Deserialize;

use super::{ConfigError, json};

pub use argv::Argv;
use argv::Line;

/// A guest's metadata are in the document, too, and may be long.
const MAX_FILE_MIB: u64 = 4;

/// The disks, network interfaces or devices of the host that a guest has at most: there are so many places on a PCI bus.
const MOST_DEVICES: usize = 256;

/// A document of `vmadm get`, as far as it says how the guest is started. Properties that say nothing of that are passed over,
/// as are those of another brand.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(remote = "Self")]
pub struct Document {
    brand: Brand,
    uuid: String,
    /// The zone's name, where it is not the UUID.
    zonename: Option<String>,
    /// What the zone is called in the name of bhyve's VM.
    zonedid: Option<u64>,
    /// Of the platform that the host runs: there is none in the zone's configuration.
    platform_buildstamp: Option<String>,
    /// In MiB.
    ram: u64,
    vcpus: Option<u64>,
    #[serde(default)]
    disks: Vec<Disk>,
    #[serde(default)]
    nics: Vec<Nic>,
    vnc_port: Option<i64>,
    vnc_password: Option<String>,

    // Of the bhyve brand alone.
    bootrom: Option<String>,
    com1: Option<String>,
    com2: Option<String>,
    /// vmadm knows no such property, so that it does not print it; the zone may have it for the boot hook all the same.
    hostbridge: Option<String>,
    virtio09: Option<bool>,
    virtio1: Option<bool>,
    bhyve_extra_opts: Option<String>,
    #[serde(default)]
    pci_devices: Vec<PciDevice>,

    // Of the kvm brand alone.
    cpu_type: Option<String>,
    boot: Option<String>,
    vga: Option<String>,
    hostname: Option<String>,
    #[serde(default)]
    resolvers: Vec<String>,
    virtio_txtimer: Option<u64>,
    virtio_txburst: Option<u64>,
    spice_port: Option<i64>,
    spice_password: Option<String>,
    spice_opts: Option<String>,
    qemu_opts: Option<String>,
    qemu_extra_opts: Option<String>,
}

/// The zone brands that run guests.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Brand {
    Bhyve,
    Kvm,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(remote = "Self")]
struct Disk {
    path: String,
    model: String,
    #[serde(default)]
    media: Media,
    #[serde(default)]
    boot: bool,
    pci_slot: Option<String>,
    guest_block_size: Option<String>,
    #[serde(default)]
    notrim: bool,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Media {
    #[default]
    Disk,
    Cdrom,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(remote = "Self")]
struct Nic {
    interface: String,
    mac: String,
    /// The bhyve brand takes no notice of it.
    model: Option<String>,
    #[serde(default)]
    primary: bool,
    ips: Option<Vec<String>>,
    ip: Option<String>,
    netmask: Option<String>,
    #[serde(default)]
    gateways: Vec<String>,
    gateway: Option<String>,
    #[serde(default)]
    allow_mac_spoofing: bool,
}

/// A device of the host that the guest is given.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(remote = "Self")]
struct PciDevice {
    path: String,
    pci_slot: String,
}

objects::only_objects! {
    Document: "the object that 'vmadm get' prints",
    Disk: "a disk, which is an object",
    Nic: "a network interface, which is an object",
    PciDevice: "a PCI device, which is an object",
}

impl Document {
    /// Reads a file of up to 4 MiB.
    ///
    /// # Errors
    /// A file that cannot be read, or is no document of a guest: one line that names the place and the property.
    pub fn read(file: &Path) -> Result<Self, ConfigError> {
        Self::from_json(file, &json::read_text(file, MAX_FILE_MIB)?)
    }

    /// Reads its text; `file` only appears in errors.
    ///
    /// # Errors
    /// As [`Document::read`].
    pub fn from_json(file: &Path, text: &str) -> Result<Self, ConfigError> {
        json::parse(file, text)
    }

    /// The command line that the guest is started with, the program's name included.
    ///
    /// # Errors
    /// What keeps VM.js or the boot hook from starting the zone, and what only a shell in the zone could say: one line that
    /// names the property and what to do.
    pub fn argv(&self) -> Result<Argv, ConfigError> {
        let devices = [("disks", self.disks.len()), ("nics", self.nics.len()), ("pci_devices", self.pci_devices.len())];
        for (key, count) in devices {
            if count > MOST_DEVICES {
                let problem =
                    format!("{count} of them are more than the {MOST_DEVICES} places of a PCI bus; remove some");
                return Err(ConfigError::setting(key, problem));
            }
        }
        match self.brand {
            Brand::Bhyve => self.bhyve(),
            Brand::Kvm => self.qemu(),
        }
    }
}
