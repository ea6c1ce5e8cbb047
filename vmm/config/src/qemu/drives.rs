//! `-drive`, and `-device virtio-blk-pci`.

use super::slots::addr;
use super::{Device, Reading};
use crate::devices::default_serial;
use crate::options::Options;
use crate::{ConfigError, DiskCache, DiskConfig, ReadError, Slot, WriteError, nearest};

/// What `-device` calls a disk.
pub(super) const DRIVER: &str = "virtio-blk-pci";

/// What a guest on qemu 0.14 sees of every disk.
const BLOCK_BYTES: u32 = 512;

/// `-drive`.
pub(super) struct Drive {
    pub disk: DiskConfig,
    /// A device by itself; else `-device` makes one of it.
    pub virtio: bool,
    pub addr: Option<Slot>,
    bus: u32,
    unit: u32,
    boot: bool,
}

const KEYS: &[&str] = &[
    "file", "if", "index", "bus", "unit", "media", "boot", "cache", "serial", "format", "werror", "rerror", "readonly",
    "aio", "id", "addr", "snapshot", "cyls", "heads", "secs", "trans",
];

impl Drive {
    /// Reads one; `others` were given before.
    pub(super) fn read(text: &str, others: &[Self]) -> Result<Self, ConfigError> {
        let given = Options::read("-drive", text, None, KEYS)?;
        let kind = given.text("if")?.unwrap_or_else(|| "ide".to_owned());
        let virtio = match kind.as_str() {
            "virtio" => true,
            "none" => false,
            "ide" | "scsi" | "floppy" | "sd" | "mtd" | "pflash" | "xen" => {
                return Err(given.problem(format!("if={kind} is not built; write if=virtio")));
            }
            _ => return Err(given.problem(nearest::unknown("if", &kind, ["virtio", "none"].into_iter()))),
        };
        match given.text("media")?.as_deref() {
            None | Some("disk") => {}
            Some("cdrom") => return Err(given.problem("media=cdrom is not built; write media=disk,readonly=on")),
            Some(media) => return Err(given.problem(nearest::unknown("media", media, ["disk", "cdrom"].into_iter()))),
        }
        let file = given.required("file", "file=/dev/zvol/rdsk/zones/disk0,if=virtio")?;
        match given.text("format")?.as_deref() {
            // Raw disks are device files to qemu, whose reader has this name.
            None | Some("raw" | "host_device") => {}
            Some(format) => return Err(given.problem(format!("format={format} is not built; disks are raw"))),
        }
        if given.flag("snapshot")? {
            return Err(given.problem("snapshot=on is not built; take a snapshot of the file system"));
        }
        let (bus, unit) = unit(&given, virtio, others)?;
        let boot = given.flag("boot")?;
        if boot && others.iter().any(|other| other.boot) {
            return Err(given.problem("boot=on is given to two drives"));
        }
        let id = match given.text("id")? {
            Some(id) => id,
            None => format!("{kind}{unit}"),
        };
        if others.iter().any(|other| other.disk.id == id) {
            return Err(given.problem(format!("id={id} is given to two drives")));
        }
        let nth = others.iter().filter(|other| other.disk.path.as_os_str() == file.as_str()).count();
        let serial = match given.text("serial")? {
            Some(serial) => serial,
            None => default_serial("", file.as_ref(), nth),
        };
        let disk = DiskConfig {
            id,
            read_only: given.flag("readonly")?,
            serial: Some(serial),
            block_size: Some(BLOCK_BYTES),
            cache: cache(&given)?,
            write_through: given.text("cache")?.as_deref() == Some("writethrough"),
            werror: write_error(&given)?,
            rerror: read_error(&given)?,
            ..DiskConfig::new(file)
        };
        match given.text("aio")?.as_deref() {
            None | Some("threads" | "native") => {}
            Some(aio) => return Err(given.problem(nearest::unknown("aio", aio, ["threads", "native"].into_iter()))),
        }
        for key in ["cyls", "heads", "secs"] {
            given.number::<u32>(key)?;
        }
        Ok(Self { disk, virtio, addr: addr("-drive", given.text("addr")?)?, bus, unit, boot })
    }
}

/// Which drive of its kind it is: what is given, else the first that nobody has.
fn unit(given: &Options, virtio: bool, others: &[Drive]) -> Result<(u32, u32), ConfigError> {
    let taken = |bus, unit| others.iter().any(|other| (other.virtio, other.bus, other.unit) == (virtio, bus, unit));
    let (index, bus, unit) = (given.number("index")?, given.number("bus")?, given.number("unit")?);
    if index.is_some() && (bus.is_some() || unit.is_some()) {
        return Err(given.problem("index says it all; leave bus and unit out"));
    }
    let bus = bus.unwrap_or(0);
    match index.or(unit) {
        Some(unit) if taken(bus, unit) => {
            let key = if index.is_some() { "index" } else { "unit" };
            Err(given.problem(format!("{key}={unit} is given to two drives")))
        }
        Some(unit) => Ok((bus, unit)),
        None => Ok((bus, (0..=u32::MAX).find(|unit| !taken(bus, *unit)).unwrap_or(0))),
    }
}

/// Around the host's page cache or through it. Unless write-through is asked for by name, it is the guest's choice: one that
/// does not flush has every write on the disk before it is told so.
fn cache(given: &Options) -> Result<Option<DiskCache>, ConfigError> {
    match given.text("cache")?.as_deref() {
        None | Some("writethrough") => Ok(None),
        Some("none" | "off") => Ok(Some(DiskCache::Direct)),
        Some("writeback") => Ok(Some(DiskCache::Buffered)),
        Some("unsafe") => Err(given.problem("cache=unsafe is not built: what a guest flushes is on the disk")),
        Some(cache) => {
            let valid = ["none", "off", "writethrough", "writeback"];
            Err(given.problem(nearest::unknown("cache", cache, valid.into_iter())))
        }
    }
}

fn write_error(given: &Options) -> Result<WriteError, ConfigError> {
    match given.text("werror")?.as_deref() {
        None | Some("enospc") => Ok(WriteError::Enospc),
        Some("report") => Ok(WriteError::Report),
        Some("stop") => Ok(WriteError::Stop),
        Some("ignore") => Err(given.problem("werror=ignore is not built: it loses what the guest wrote")),
        Some(action) => {
            Err(given.problem(nearest::unknown("werror", action, ["report", "stop", "enospc"].into_iter())))
        }
    }
}

fn read_error(given: &Options) -> Result<ReadError, ConfigError> {
    match given.text("rerror")?.as_deref() {
        None | Some("report") => Ok(ReadError::Report),
        Some("stop") => Ok(ReadError::Stop),
        Some("ignore") => Err(given.problem("rerror=ignore is not built: it gives the guest what nobody wrote")),
        Some(action) => Err(given.problem(nearest::unknown("rerror", action, ["report", "stop"].into_iter()))),
    }
}

impl Reading {
    /// `-device virtio-blk-pci`.
    pub(super) fn read_disk_device(&mut self, text: &str) -> Result<Device, ConfigError> {
        const KEYS: &[&str] = &["drive", "addr", "id", "ioeventfd", "vectors", "class"];
        let given = Options::read("-device virtio-blk-pci", text, Some("driver"), KEYS)?;
        given.flag("ioeventfd")?;
        given.number::<u32>("vectors")?;
        Ok(Device::Disk { drive: given.required("drive", "drive=ID")?, addr: addr("-device", given.text("addr")?)? })
    }

    /// The drive that a device is made of.
    pub(super) fn take_drive(&mut self, id: &str) -> Result<DiskConfig, ConfigError> {
        match self.drives.iter().position(|drive| drive.disk.id == id) {
            Some(index) if self.drives.get(index).is_some_and(|drive| !drive.virtio) => {
                Ok(self.drives.remove(index).disk)
            }
            Some(_) => {
                let problem = format!("drive={id} is a device already; write if=none at its -drive");
                Err(ConfigError::setting("-device virtio-blk-pci", problem))
            }
            None => {
                let ids = self.drives.iter().filter(|drive| !drive.virtio).map(|drive| drive.disk.id.as_str());
                Err(ConfigError::setting("-device virtio-blk-pci", unknown("drive", id, ids)))
            }
        }
    }
}

/// An id that nobody has.
pub(super) fn unknown<'a>(what: &str, id: &str, ids: impl Iterator<Item = &'a str>) -> String {
    let mut ids = ids.peekable();
    match ids.peek() {
        None => format!("there is no {what} '{id}'"),
        Some(_) => nearest::unknown(what, id, ids),
    }
}
