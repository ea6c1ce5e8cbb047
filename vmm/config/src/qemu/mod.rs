//! The command line of the kvm brand's qemu (0.14, as SmartOS has it) as a [`VmConfig`].
//!
//! [`options`] lists every option and what becomes of it; the files beside it read the options that are implemented. qemu
//! reads all options first and makes devices afterwards, and so does this: what the order of options means for a guest,
//! which remembers PCI slots, is in `slots.rs`.

mod drives;
mod lines;
mod machine;
mod networks;
mod slots;
mod table;

pub use table::{QemuOption, Status, options};

use super::nearest::nearest;
use super::{ConfigError, Fate, MemoryConfig, Note, Profile, Translation, VmConfig};
use drives::Drive;
use networks::{Card, HostEnd};

/// Reads the arguments that qemu would be started with, its own name not included.
///
/// A guest on it finds what it finds on qemu's `pc`: the devices of virtio in the same PCI slots, each vCPU in a socket of
/// its own, disks with blocks of 512 bytes. As the brand asks for, all memory is touched and locked, a reset starts the guest
/// again, and a write that finds no space holds it.
///
/// # Errors
/// A value that is wrong, or an option or device that is known and not built; one line that names the option. An option
/// that nobody knows is no error but a [`Note`].
pub fn translate(args: &[String]) -> Result<Translation, ConfigError> {
    let mut reading = Reading::new();
    let mut words = args.iter().map(String::as_str).peekable();
    while let Some(word) = words.next() {
        // qemu takes two dashes for one.
        let name = word.strip_prefix("--").or_else(|| word.strip_prefix('-')).unwrap_or_default();
        if name.is_empty() {
            let problem = format!("'{word}' belongs to no option; a disk is given by -drive file={word},if=virtio");
            return Err(ConfigError::Usage(problem));
        }
        let Some(option) = table::find(name) else {
            // Whether it takes an argument nobody knows either: what follows and is no option is taken for it.
            let argument = words.next_if(|next| !next.starts_with('-'));
            reading.unknown(word, argument);
            continue;
        };
        let value = match option.argument {
            None => None,
            Some(_) => match words.next() {
                Some(value) => Some(value),
                None => return Err(ConfigError::setting(word, "its argument is missing")),
            },
        };
        reading.put(option, value.unwrap_or_default())?;
    }
    reading.finish()
}

/// What was read so far.
struct Reading {
    config: VmConfig,
    notes: Vec<Note>,
    /// Whether qemu's default devices are wanted.
    defaults: bool,
    nographic: bool,
    /// Whether the graphics card, if there were one, would have a PCI slot; `None` where none is named.
    vga_has_slot: Option<bool>,
    /// Whether any `-net` or `-netdev` was given: without, qemu has a network card of its own.
    has_net: bool,
    drives: Vec<Drive>,
    /// `-net nic`.
    cards: Vec<Card>,
    /// `-net vnic` and `-netdev vnic`.
    ends: Vec<HostEnd>,
    /// `-device`.
    devices: Vec<Device>,
    chardevs: Vec<lines::Chardev>,
    serials: Vec<String>,
    qmp: Vec<(&'static str, String)>,
    debug_port: Option<String>,
}

/// What `-device` makes.
enum Device {
    Card(Card),
    /// The disk of the drive of this id.
    Disk {
        drive: String,
        addr: Option<super::Slot>,
    },
}

impl Reading {
    fn new() -> Self {
        let memory =
            MemoryConfig { size_bytes: machine::DEFAULT_MEMORY, lock: true, prealloc: true, ..MemoryConfig::default() };
        let mut config = VmConfig { profile: Profile::I440fx, memory, ..VmConfig::default() };
        machine::default_cpus(&mut config.cpus);
        Self {
            config,
            notes: Vec::new(),
            defaults: true,
            nographic: false,
            vga_has_slot: None,
            has_net: false,
            drives: Vec::new(),
            cards: Vec::new(),
            ends: Vec::new(),
            devices: Vec::new(),
            chardevs: Vec::new(),
            serials: Vec::new(),
            qmp: Vec::new(),
            debug_port: None,
        }
    }

    fn unknown(&mut self, word: &str, argument: Option<&str>) {
        let what = match argument {
            Some(argument) => format!("{word} {argument}"),
            None => word.to_owned(),
        };
        self.notes.push(Note { what, fate: Fate::Unknown });
    }

    fn note(&mut self, what: impl Into<String>, fate: Fate) {
        self.notes.push(Note { what: what.into(), fate });
    }

    /// Takes one option that is in the table.
    fn put(&mut self, option: QemuOption, value: &str) -> Result<(), ConfigError> {
        let QemuOption { name, status, about, .. } = option;
        let fate = match status {
            Status::Refused => return Err(ConfigError::setting(&format!("-{name}"), about)),
            Status::Implemented => None,
            Status::Ignored => Some(Fate::Ignored(about)),
            Status::NotBuilt => Some(Fate::NotBuilt),
        };
        let ignored = self.read(name, value)?;
        if let Some(fate) = ignored.map(Fate::Ignored).or(fate) {
            let blank = if value.is_empty() { "" } else { " " };
            // A password is for nobody's log.
            let value = match value.split_once("password=") {
                Some((before, _)) => format!("{before}password=…"),
                None => value.to_owned(),
            };
            self.note(format!("-{name}{blank}{value}"), fate);
        }
        Ok(())
    }

    /// Reads the value of an option; says why this value is to be ignored, where the option is not as a whole.
    fn read(&mut self, name: &str, value: &str) -> Result<Option<&'static str>, ConfigError> {
        match name {
            "m" => self.config.memory.size_bytes = machine::memory(value)?,
            "name" => self.config.name = machine::name(value)?,
            "uuid" => self.config.uuid = Some(machine::uuid("-uuid", value)?),
            "cpu" => self.config.cpus.model = machine::cpu_model(value)?,
            "smp" => machine::smp(value, &mut self.config.cpus)?,
            "M" => machine::machine("-M", value)?,
            "machine" => machine::machine("-machine", value)?,
            "smbios" => {
                return machine::smbios(value, &mut self.config).map(|built| self.firmware_tables(value, built));
            }
            "rtc" => machine::rtc(value)?,
            "boot" => machine::boot_order(value)?,
            "balloon" => machine::balloon(value)?,
            "kernel" => self.config.boot.kernel = value.into(),
            "initrd" => self.config.boot.initrd = Some(value.into()),
            "append" => value.clone_into(&mut self.config.boot.cmdline),
            "sandbox" => self.config.sandbox = machine::sandbox(value)?,
            "no-reboot" => self.config.on_reset = super::OnReset::Exit,
            "nodefaults" => self.defaults = false,
            "nographic" => self.nographic = true,
            "pidfile" => self.config.pid_file = Some(value.into()),
            "vga" => self.vga_has_slot = Some(machine::vga_has_slot(value)?),
            "usbdevice" => machine::usb_device(value)?,
            "parallel" | "monitor" if matches!(value, "none" | "null") => {
                return Ok(Some("there is none"));
            }
            "drive" => self.drives.push(Drive::read(value, &self.drives)?),
            "device" => self.read_device(value)?,
            "net" => self.read_net(value)?,
            "netdev" => self.read_netdev(value)?,
            "chardev" => self.read_chardev(value)?,
            "serial" => self.serials.push(value.to_owned()),
            "qmp" => self.qmp.push(("-qmp", value.to_owned())),
            "mon" => self.read_mon(value)?,
            "debugcon" => self.debug_port = Some(value.to_owned()),
            _ => {}
        }
        Ok(None)
    }

    fn firmware_tables(&mut self, value: &str, built: bool) -> Option<&'static str> {
        if !built {
            self.note(format!("-smbios {value}"), Fate::NotBuilt);
        }
        None
    }

    fn read_device(&mut self, value: &str) -> Result<(), ConfigError> {
        const DRIVERS: [&str; 2] = [networks::DRIVER, drives::DRIVER];
        let device = match value.split(',').next().unwrap_or_default() {
            networks::DRIVER => Device::Card(self.read_card_device(value)?),
            drives::DRIVER => self.read_disk_device(value)?,
            driver => {
                let built = match nearest(driver, &DRIVERS) {
                    Some(near) => format!("did you mean '{near}'?"),
                    None => format!("the drivers are {}", DRIVERS.join(" and ")),
                };
                return Err(ConfigError::setting("-device", format!("'{driver}' is not built; {built}")));
            }
        };
        self.devices.push(device);
        Ok(())
    }

    fn finish(mut self) -> Result<Translation, ConfigError> {
        self.connect_lines()?;
        self.place()?;
        self.config.name_devices();
        Ok(Translation { config: self.config, notes: self.notes })
    }
}

#[cfg(test)]
mod manual;
#[cfg(test)]
mod tests;
