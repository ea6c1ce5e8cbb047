//! What the boot hook of the bhyve brand passes.

use super::slots::{Place, places};
use super::{Argv, Brand, Disk, Document, Line, Media, PciDevice};
use crate::ConfigError;
use crate::bhyve::MOST_ARGUMENTS;

/// Bytes of a device's argument that the hook has room for.
const MOST_DEVICE_BYTES: usize = 255;

/// Bytes of any other argument.
const MOST_BYTES: usize = 1023;

impl Document {
    /// The command line of bhyve.
    pub(super) fn bhyve(&self) -> Result<Argv, ConfigError> {
        let uuid = &self.uuid;
        let mut lines = vec![Line::new("brand", &["-H"]), Line::new("uuid", &["-U", uuid])];
        let version = self.platform_buildstamp.as_deref().unwrap_or("?");
        let serial = self.zonename.as_ref().unwrap_or(uuid);
        let system = format!("manufacturer=Joyent,product=SmartDC HVM,version=7.{version},serial={serial}");
        let system = format!("1,{system},sku=001,family=Virtual Machine");
        lines.push(Line::new("platform_buildstamp", &["-B", &system]));
        lines.push(Line::new("brand", &["-s", "31,lpc"]));
        self.lpc_devices(&mut lines)?;
        self.host_bridge(&mut lines)?;
        if let Some(vcpus) = self.vcpus {
            lines.push(Line::new("vcpus", &["-c", &vcpus.to_string()]));
        }
        lines.push(Line::new("ram", &["-m", &self.ram.to_string()]));
        for (index, (disk, place)) in self.disks.iter().zip(places(&self.disks)?).enumerate() {
            lines.push(device(format!("disks[{index}]"), driver(index, disk)?, place)?);
        }
        self.host_devices(&mut lines)?;
        self.interfaces(&mut lines)?;
        if self.virtio09.is_some() || self.virtio1.is_some() {
            // Platforms that know neither have no such options.
            let legacy = format!("virtio.legacy={}", self.virtio09.unwrap_or(true));
            let modern = format!("virtio.modern={}", self.virtio1.unwrap_or(false));
            lines.push(Line::new("virtio1", &["-o", &legacy, "-o", &modern]));
        }
        // Nothing is a quote in it.
        let extra = self.bhyve_extra_opts.as_deref().unwrap_or_default().split([' ', '\t']);
        lines.push(Line::new("bhyve_extra_opts", &extra.filter(|word| !word.is_empty()).collect::<Vec<_>>()));
        self.display(&mut lines)?;
        let name = self.zonedid.map_or("unknown".to_owned(), |did| did.to_string());
        lines.push(Line::new("zonedid", &[&format!("SYSbhyve-{name}")]));
        let argv = Argv::new(Brand::Bhyve, lines)?;
        match argv.args().count().saturating_add(1) {
            count if count > MOST_ARGUMENTS => Err(ConfigError::Usage(format!(
                "{count} arguments are more than the {MOST_ARGUMENTS} that a zone's boot hook passes; remove devices, or words \
                 of bhyve_extra_opts"
            ))),
            _ => Ok(argv),
        }
    }

    /// Firmware, which comes last where the zone does not say which, and serial lines.
    fn lpc_devices(&self, lines: &mut Vec<Line>) -> Result<(), ConfigError> {
        let rom = match self.bootrom.as_deref() {
            None | Some("bios") => "/usr/share/bhyve/uefi-csm-rom.bin",
            Some("uefi") => "/usr/share/bhyve/uefi-rom.bin",
            Some(path) => path,
        };
        let ports = [("com1", self.com1.as_deref()), ("com2", self.com2.as_deref())];
        let mut devices: Vec<_> = ports.into_iter().filter_map(|(name, conf)| Some((name, conf?))).collect();
        let place = if self.bootrom.is_some() { 0 } else { devices.len() };
        devices.insert(place, ("bootrom", rom));
        for (name, conf) in devices {
            let device = within(name, format!("{name},{conf}"), MOST_BYTES)?;
            lines.push(Line::new(name, &["-l", &device]));
        }
        Ok(())
    }

    fn host_bridge(&self, lines: &mut Vec<Line>) -> Result<(), ConfigError> {
        let bridge = self.hostbridge.as_deref().unwrap_or("i440fx");
        if bridge != "none" {
            // More than a model is whoever wrote it in full.
            let key = if bridge.contains('=') { "" } else { "model=" };
            let device = within("hostbridge", format!("0,hostbridge,{key}{bridge}"), MOST_BYTES)?;
            lines.push(Line::new("hostbridge", &["-s", &device]));
        }
        Ok(())
    }

    /// Devices of the host. The hook has `/dev/pptN` for each, which only the host knows; here it is what the zone has.
    fn host_devices(&self, lines: &mut Vec<Line>) -> Result<(), ConfigError> {
        let (mut acpi, mut wired) = (false, false);
        for (index, PciDevice { path, pci_slot }) in self.pci_devices.iter().enumerate() {
            let key = format!("pci_devices[{index}]");
            let place = Place::read(&format!("{key}.pci_slot"), pci_slot)?;
            for (is_due, is_given, letter) in [(place.bus > 0, &mut acpi, "-A"), (true, &mut wired, "-S")] {
                if is_due && !std::mem::replace(is_given, true) {
                    lines.push(Line::new(&*key, &[letter]));
                }
            }
            lines.push(device(key, format!("passthru,{path}"), place)?);
        }
        Ok(())
    }

    /// Network interfaces in the order of the document, the primary one at function 0 wherever it is.
    fn interfaces(&self, lines: &mut Vec<Line>) -> Result<(), ConfigError> {
        let mut primaries = self.nics.iter().enumerate().filter(|(_, nic)| nic.primary);
        if primaries.next().is_none() && !self.nics.is_empty() {
            let problem = "none of them is primary; set primary to true on one, or the zone does not boot";
            return Err(ConfigError::setting("nics", problem));
        }
        if let Some((index, _)) = primaries.next() {
            let problem = "a network interface before it is primary, too; set it to false, or the zone does not boot";
            return Err(ConfigError::setting(&format!("nics[{index}].primary"), problem));
        }
        let mut others = 1..;
        for (index, nic) in self.nics.iter().enumerate() {
            let function = if nic.primary { 0 } else { others.next().unwrap_or(usize::MAX) };
            let promiscuous = if nic.allow_mac_spoofing { ",promiscphys=true" } else { "" };
            let text = format!("6:{function},virtio-net-viona,{}{promiscuous}", nic.interface);
            let key = format!("nics[{index}]");
            let text = within(&key, text, MOST_DEVICE_BYTES)?;
            lines.push(Line::new(key, &["-s", &text]));
        }
        Ok(())
    }

    /// A frame buffer, and a tablet for its pointer.
    fn display(&self, lines: &mut Vec<Line>) -> Result<(), ConfigError> {
        if self.vnc_port == Some(-1) {
            return Ok(());
        }
        // Of an empty password VM.js leaves nothing in the zone.
        let password = self.vnc_password.as_deref().filter(|password| !password.is_empty());
        let password = password.map(|password| format!(",password={password}")).unwrap_or_default();
        let display = within("vnc_password", format!("30:0,fbuf,vga=off,unix=/tmp/vm.vnc{password}"), MOST_BYTES)?;
        lines.push(Line::new("vnc_password", &["-s", &display]));
        lines.push(Line::new("vnc_port", &["-s", "30:1,xhci,tablet"]));
        Ok(())
    }
}

/// A device at its place.
fn device(key: String, driver: String, place: Place) -> Result<Line, ConfigError> {
    let text = within(&key, format!("{place},{driver}"), MOST_DEVICE_BYTES)?;
    Ok(Line::new(key, &["-s", &text]))
}

/// The text, if it is no longer than the hook can take.
fn within(key: &str, text: String, most: usize) -> Result<String, ConfigError> {
    match text.len() {
        bytes if bytes > most => {
            let problem = format!("its argument has {bytes} bytes, and the boot hook takes {most}; shorten it");
            Err(ConfigError::setting(key, problem))
        }
        _ => Ok(text),
    }
}

/// The driver of a disk, and what it is told.
fn driver(index: usize, disk: &Disk) -> Result<String, ConfigError> {
    let driver = match (disk.model.as_str(), disk.media) {
        ("virtio", _) => "virtio-blk",
        ("nvme", _) => "nvme",
        ("ahci", Media::Cdrom) => "ahci-cd",
        ("ahci", Media::Disk) => "ahci-hd",
        (model, _) => {
            let problem = format!("the bhyve brand has no disks of model '{model}'; set virtio, nvme or ahci");
            return Err(ConfigError::setting(&format!("disks[{index}].model"), problem));
        }
    };
    let mut text = format!("{driver},{}", disk.path);
    if disk.model == "virtio" {
        if disk.notrim {
            text.push_str(",nodelete");
        }
        if let Some(size) = disk.guest_block_size.as_deref().filter(|size| *size != "0") {
            text.push_str(&format!(",sectorsize={size}"));
        }
    }
    Ok(text)
}
