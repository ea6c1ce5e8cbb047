//! What can be known about a configuration without looking at the host.

use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::values::format_size;
use super::{
    DEFAULT_LOW_SPLIT, DebugPortConfig, DiskConfig, MAX_BLOCK_BYTES, MAX_DISK_QUEUES, MAX_DISK_SERIAL,
    MAX_PHYSICAL_BLOCK_BYTES, MAX_VCPUS, Mac, NetConfig, PAGE_SIZE, Profile, SerialBackend, VirtioInterfaces, VmConfig,
};

/// Why there is no guest: the configuration is wrong. One line, naming the setting.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// A setting has a value that cannot work.
    #[error("{setting}: {problem}")]
    Setting {
        /// The setting by its JSON key and command line option, or the device by its id.
        setting: String,
        /// What is wrong and what would be right.
        problem: String,
    },
    /// The JSON text is wrong.
    #[error("{}:{line}:{column}: {path}: {problem}", file.display())]
    Json {
        /// The file.
        file: PathBuf,
        /// Line, from 1.
        line: usize,
        /// Column, from 1.
        column: usize,
        /// Path of the key, such as `disks[0].slot`; `.` for the whole text.
        path: String,
        /// What is wrong.
        problem: String,
    },
    /// The configuration file cannot be read.
    #[error("{}: cannot read the configuration: {reason}", file.display())]
    File {
        /// The file.
        file: PathBuf,
        /// What the system says.
        reason: String,
    },
    /// The command line is wrong.
    #[error("{0}")]
    Usage(String),
}

impl ConfigError {
    /// A setting has a value that cannot work.
    pub fn setting(setting: &str, problem: impl Into<String>) -> Self {
        Self::Setting { setting: setting.to_owned(), problem: problem.into() }
    }
}

/// Reads a vCPU count of any size, so that 1000 is answered with the limits and not with the width of a type.
pub(super) fn vcpu_count<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<u8, D::Error> {
    let count = u64::deserialize(deserializer)?;
    u8::try_from(count).map_err(|_| serde::de::Error::custom(vcpu_limits(count)))
}

/// What is said about a vCPU count outside the limits.
pub fn vcpu_limits(count: u64) -> String {
    format!("{count} vCPUs are not possible; a guest has 1 to {MAX_VCPUS}")
}

/// Unix socket paths fit `sun_path`, 108 bytes with the terminating zero on Linux and illumos.
const MAX_SOCKET_PATH: usize = 107;

/// The smallest guest: the tables and start-up structures live in the first MiB.
const MIN_MEMORY: u64 = 1 << 20;

/// The backends map RAM in pieces that large pages can fill (`arch::layout`).
const LOW_SPLIT_UNIT: u64 = 2 << 20;

/// Physical addresses never have more than 52 bits (Intel SDM vol. 3 §4.1.4).
const MAX_PHYS_BITS: u32 = 52;

impl VmConfig {
    /// Judges all that can be judged without the host; the first problem found is the error.
    ///
    /// Nothing is opened, asked of the system or allocated.
    pub fn check(&self) -> Result<(), ConfigError> {
        self.problems().into_iter().next().map_or(Ok(()), Err)
    }

    /// Every problem that [`VmConfig::check`] can see.
    #[cold]
    pub fn problems(&self) -> Vec<ConfigError> {
        let mut found = Problems(Vec::new());
        found.text("name (--name)", &self.name);
        self.check_cpus(&mut found);
        self.check_memory(&mut found);
        self.check_boot(&mut found);
        self.check_disks(&mut found);
        self.check_limits(&mut found);
        self.check_nets(&mut found);
        self.check_ids(&mut found);
        self.check_backends(&mut found);
        self.check_debug_port(&mut found);
        self.check_smbios(&mut found);
        if (self.virtio, self.profile) == (VirtioInterfaces::Legacy, Profile::Micro) {
            let problem = "micro has no ports for devices of virtio 0.9; use both or modern, or another profile";
            found.add("virtio (--virtio)", problem);
        }
        if self.jail.as_ref().and_then(|jail| jail.user.as_deref()).is_some_and(|user| user.trim().is_empty()) {
            found.add("jail (--jail user=)", "no user is named");
        }
        if let Err(error) = self.slot_plan() {
            found.0.push(error);
        }
        found.0
    }

    /// The problems of its disks alone.
    pub fn disk_problems(&self) -> Vec<ConfigError> {
        let mut found = Problems(Vec::new());
        self.check_disks(&mut found);
        self.check_ids(&mut found);
        found.0
    }

    fn check_cpus(&self, found: &mut Problems) {
        let cpus = &self.cpus;
        let count = usize::from(cpus.count);
        if !(1..=MAX_VCPUS).contains(&cpus.count) {
            return found.add("cpus.count (--cpus)", vcpu_limits(cpus.count.into()));
        }
        if cpus.model.trim().is_empty() {
            found.add("cpus.model (--cpu)", "no model is named; write host, or host,-feature");
        } else if let Err(error) = self.cpu_model() {
            found.add("cpus.model (--cpu)", error.to_string());
        }
        if !cpus.pin.is_empty() && cpus.pin.len() != count {
            let named = cpus.pin.len();
            found.add("cpus.pin (--pin)", format!("{named} host CPUs for {count} vCPUs; name one for each vCPU"));
        }
        let topology = cpus.topology();
        let [sockets, cores, threads] = [topology.sockets, topology.cores, topology.threads].map(usize::from);
        let setting = "cpus.topology (--topology)";
        if sockets * cores * threads != count {
            let product = sockets * cores * threads;
            let shape = format!("{sockets} sockets × {cores} cores × {threads} threads");
            found.add(setting, format!("{shape} are {product} vCPUs, but cpus.count (--cpus) is {count}"));
        } else if sockets * cores > 1 && !threads.is_power_of_two() {
            // The APIC id has a bit field for threads and one for cores, and APIC id = vCPU number.
            let problem = format!("{threads} threads a core leave gaps in the APIC ids; use a power of two");
            found.add(setting, problem);
        } else if sockets > 1 && !(cores * threads).is_power_of_two() {
            let problem = format!("{cores} cores × {threads} threads a socket leave gaps in the APIC ids");
            found.add(setting, format!("{problem}; make their product a power of two"));
        }
    }

    fn check_memory(&self, found: &mut Problems) {
        let memory = &self.memory;
        let setting = "memory.size (--memory)";
        let size = memory.size_bytes;
        let page = memory.huge_pages.map_or(PAGE_SIZE, |pages| pages.bytes());
        if size < MIN_MEMORY {
            let unit = if size == 1 { "byte is" } else { "bytes are" };
            let mut problem = format!("{size} {unit} too little; a guest has at least 1M");
            if (16..=65536).contains(&size) {
                problem += &format!(" (for {size} MiB write {size}M)");
            }
            found.add(setting, problem);
        } else if !size.is_multiple_of(page) {
            let [down, up] = [size - size % page, (size - size % page).saturating_add(page)].map(format_size);
            let pages = format_size(page);
            found.add(setting, format!("{size} bytes are no multiple of the {pages} page; use {down} or {up}"));
        }
        if memory.end_of_ram() > 1 << MAX_PHYS_BITS {
            let size = format_size(size);
            found.add(setting, format!("{size} is beyond the {MAX_PHYS_BITS} address bits of x86"));
        }
        let unit = page.max(LOW_SPLIT_UNIT);
        if let Some(split) = memory.low_split_bytes
            && (!(unit..=DEFAULT_LOW_SPLIT).contains(&split) || !split.is_multiple_of(unit))
        {
            let units = format_size(unit);
            let problem = format!("RAM below 4 GiB ends between {units} and 3G at a multiple of {units}");
            found.add("memory.low_split (--low-split)", problem);
        }
    }

    fn check_boot(&self, found: &mut Problems) {
        if self.boot.kernel.as_os_str().is_empty() {
            found.add("boot.kernel (--kernel)", "no kernel is given, and there is nothing else to boot");
        }
        if self.boot.cmdline.contains('\0') {
            found.add("boot.cmdline (--cmdline)", "a command line cannot hold a NUL byte");
        }
    }

    fn check_disks(&self, found: &mut Problems) {
        for (index, disk) in self.disks.iter().enumerate() {
            let id = &disk.id;
            check_disk(disk, found);
            let shares = |other: &&DiskConfig| other.path == disk.path && !(other.read_only && disk.read_only);
            if let Some(other) = self.disks[..index].iter().find(shares) {
                let problem = format!("{} is also {}; a guest that writes would damage it", path(disk), other.id);
                found.add(id, problem);
            }
        }
    }

    fn check_nets(&self, found: &mut Problems) {
        for (index, net) in self.nets.iter().enumerate() {
            let id = &net.id;
            net.check_link(found);
            if let Some(mac) = net.mac {
                check_mac(id, mac, found);
            }
            check_queue_size(id, net.queue_size, 2, found);
            if let Some(dhcp) = &net.dhcp {
                dhcp.check(id, found);
            }
            let most = NetConfig::MOST_SPEED_MBITS;
            if let Some(speed) = net.speed.filter(|speed| !(1..=most).contains(speed)) {
                found.add(id, format!("a speed of {speed} Mbit/s is not possible; it is 1 to {most}"));
            }
            for other in &self.nets[..index] {
                if other.link() == net.link() {
                    found.add(id, format!("{} is already taken by {}", net.link(), other.id));
                }
                if let Some(mac) = net.mac.filter(|mac| other.mac == Some(*mac)) {
                    found.add(id, format!("mac {mac} is already taken by {}", other.id));
                }
            }
        }
    }

    fn check_ids(&self, found: &mut Problems) {
        let disks = self.disks.iter().map(|disk| &disk.id);
        let ids: Vec<&String> = disks.chain(self.nets.iter().map(|net| &net.id)).collect();
        for (index, id) in ids.iter().enumerate() {
            if ids[..index].contains(id) {
                found.add("id", format!("'{id}' names two devices"));
            }
            let fits = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
            if id.is_empty() || id.len() > 64 || !id.bytes().all(fits) {
                found.add("id", format!("'{id}' is not an id; it has 1 to 64 letters, digits, '-', '_' and '.'"));
            }
        }
    }

    /// Every serial line with the name of its setting.
    pub fn backends(&self) -> Vec<(&'static str, &SerialBackend)> {
        let names = ["com1", "com2", "com3", "com4"];
        let serials = names.into_iter().zip(&self.serials).filter_map(|(name, port)| Some((name, port.as_ref()?)));
        let console = self.console.iter().map(|console| ("console", &console.backend));
        let debug = self.debug_port.iter().map(|debug| ("debug port", &debug.backend));
        serials.chain(console).chain(debug).collect()
    }

    fn check_backends(&self, found: &mut Problems) {
        let backends = self.backends();
        for (index, (name, backend)) in backends.iter().enumerate() {
            if let SerialBackend::Socket(socket) = backend {
                check_socket(name, socket, found);
            }
            if matches!(backend, SerialBackend::Pty | SerialBackend::Null) {
                continue;
            }
            if let Some((other, _)) = backends[..index].iter().find(|(_, taken)| taken == backend) {
                found.add(name, format!("{backend} is already taken by {other}; give one of them another back end"));
            }
        }
        if let Some(socket) = &self.qmp {
            check_socket("qmp (--qmp)", socket, found);
            let same = |backend: &SerialBackend| matches!(backend, SerialBackend::Socket(path) if path == socket);
            if let Some((other, _)) = backends.iter().find(|(_, backend)| same(backend)) {
                found.add("qmp (--qmp)", format!("{} is already the socket of {other}", socket.display()));
            }
        }
    }

    fn check_debug_port(&self, found: &mut Problems) {
        let Some(port) = self.debug_port.as_ref().map(|debug_port| debug_port.port) else { return };
        if let Some(owner) = self.port_owner(port) {
            let free = match self.port_owner(DebugPortConfig::DEFAULT_PORT) {
                None => format!("firmware uses {:#x}", DebugPortConfig::DEFAULT_PORT),
                Some(_) => "use port=0xe9".to_owned(),
            };
            let problem = format!("port {port:#x} belongs to {owner}; {free}");
            found.add("debug_port.port (--debug-port port=)", problem);
        }
    }

    fn check_smbios(&self, found: &mut Problems) {
        let smbios = &self.smbios;
        for (key, text) in [
            ("manufacturer", &smbios.manufacturer),
            ("product", &smbios.product),
            ("version", &smbios.version),
            ("serial", &smbios.serial),
            ("sku", &smbios.sku),
            ("family", &smbios.family),
        ] {
            if let Some(text) = text {
                found.text(&format!("smbios.{key} (--smbios {key}=)"), text);
            }
        }
    }
}

fn path(disk: &DiskConfig) -> std::path::Display<'_> {
    disk.path.display()
}

fn check_disk(disk: &DiskConfig, found: &mut Problems) {
    let id = &disk.id;
    if disk.path.as_os_str().is_empty() {
        found.add(id, "the path of the image is empty");
    }
    if let Some(serial) = &disk.serial
        && (serial.len() > MAX_DISK_SERIAL || !serial.bytes().all(|b| (0x20..0x7f).contains(&b)))
    {
        found.add(id, format!("serial '{serial}' does not fit; it has at most {MAX_DISK_SERIAL} printable characters"));
    }
    if let Some(queues) = disk.queues
        && !(1..=MAX_DISK_QUEUES).contains(&queues)
    {
        found.add(id, format!("{queues} queues are not possible; a disk has 1 to {MAX_DISK_QUEUES}"));
    }
    check_queue_size(id, disk.queue_size, 4, found);
    if let Some(poll_us) = disk.poll_us.filter(|poll_us| *poll_us > DiskConfig::MOST_POLL_US) {
        let most = DiskConfig::MOST_POLL_US;
        found.add(id, format!("poll_us {poll_us} is not possible; it is 0 to {most}, and 0 sleeps at once"));
    }
    check_block_size(id, "block_size", disk.block_size, 512, MAX_BLOCK_BYTES, found);
    let least = disk.block_size.unwrap_or(512);
    check_block_size(id, "physical_block_size", disk.physical_block_size, least, MAX_PHYSICAL_BLOCK_BYTES, found);
}

fn check_mac(id: &str, mac: Mac, found: &mut Problems) {
    if mac.0 == [0; 6] {
        found.add(id, "mac 00:00:00:00:00:00 is no address; use for example 52:54:00:12:34:56");
    } else if mac.is_multicast() {
        let mut own = mac;
        own.0[0] &= !1;
        found.add(id, format!("mac {mac} is multicast (the first octet is odd); use for example {own}"));
    }
}

fn check_queue_size(id: &str, size: u16, least: u16, found: &mut Problems) {
    if !(least..=1024).contains(&size) || !size.is_power_of_two() {
        found.add(id, format!("queue size {size} is not possible; it is a power of two from {least} to 1024"));
    }
}

fn check_block_size(id: &str, key: &str, size: Option<u32>, least: u32, most: u32, found: &mut Problems) {
    if let Some(size) = size
        && (!(least..=most).contains(&size) || !size.is_power_of_two())
    {
        found.add(id, format!("{key} {size} is not possible; it is a power of two from {least} to {most}"));
    }
}

fn check_socket(setting: &str, socket: &Path, found: &mut Problems) {
    let length = socket.as_os_str().len();
    if length == 0 || length > MAX_SOCKET_PATH {
        let problem = format!("a socket path has 1 to {MAX_SOCKET_PATH} bytes, this one has {length}");
        found.add(setting, problem);
    }
}

pub(super) struct Problems(Vec<ConfigError>);

impl Problems {
    pub(super) fn add(&mut self, setting: &str, problem: impl Into<String>) {
        self.0.push(ConfigError::setting(setting, problem));
    }

    /// Text that ends up in a table of zero-terminated strings: an empty one would end the table.
    fn text(&mut self, setting: &str, text: &str) {
        if text.is_empty() || text.len() > 255 || text.chars().any(char::is_control) {
            self.add(setting, "a string here has 1 to 255 bytes and no control characters");
        }
    }
}

#[cfg(test)]
#[path = "check_tests.rs"]
mod tests;
