//! What the host makes of a configuration, found out before any guest memory exists.

use std::fs::{self, File, Metadata, OpenOptions};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

use super::values::format_size;
use super::{ConfigError, SerialBackend, VmConfig, read_metadata};

/// What this host has, as far as a configuration depends on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HostFacts {
    /// Physical memory in bytes.
    pub memory_bytes: u64,
    /// Configured CPUs; they are numbered from 0.
    pub cpus: usize,
    /// Bits of a physical address (MAXPHYADDR, Intel SDM vol. 3 §4.1.4).
    pub phys_addr_bits: u32,
}

impl HostFacts {
    /// Asks the system.
    pub fn read() -> Self {
        // SAFETY: sysconf takes a number and touches no memory of ours.
        let cpus = unsafe { libc::sysconf(libc::_SC_NPROCESSORS_CONF) };
        Self {
            memory_bytes: devices_host::ram::physical_memory_bytes(),
            // A number that the system does not know is no limit: the call that needs it will say more than we could.
            cpus: usize::try_from(cpus).unwrap_or(usize::MAX),
            phys_addr_bits: phys_addr_bits(),
        }
    }
}

#[cfg(target_arch = "x86_64")]
fn phys_addr_bits() -> u32 {
    use std::arch::x86_64::{__cpuid, __get_cpuid_max};
    // Leaf 0x8000_0008, EAX bits 7:0; processors without the leaf have 36 bits (Intel SDM vol. 3 §4.1.4).
    match __get_cpuid_max(0x8000_0000) {
        (max, _) if max >= 0x8000_0008 => __cpuid(0x8000_0008).eax & 0xff,
        _ => 36,
    }
}

#[cfg(not(target_arch = "x86_64"))]
fn phys_addr_bits() -> u32 {
    52
}

impl VmConfig {
    /// Judges the configuration by what this host has: files, memory, CPUs, socket paths.
    ///
    /// Files are opened as they will be used and closed again; nothing is created, changed or removed. Call
    /// [`VmConfig::check`] first.
    pub fn check_host(&self) -> Result<(), ConfigError> {
        self.check_facts(&HostFacts::read())?;
        self.check_files()
    }

    /// Judges sizes and numbers by what a host has.
    pub fn check_facts(&self, host: &HostFacts) -> Result<(), ConfigError> {
        let memory = &self.memory;
        let wanted = format_size(memory.size_bytes);
        if memory.size_bytes > host.memory_bytes {
            let mib = host.memory_bytes >> 20;
            let problem = format!("{wanted} is more than the host has ({mib}M)");
            return Err(ConfigError::setting("memory.size (--memory)", problem));
        }
        let last_byte = memory.end_of_ram().saturating_sub(1);
        if last_byte.checked_shr(host.phys_addr_bits).unwrap_or(0) != 0 {
            let bits = host.phys_addr_bits;
            let problem = format!("{wanted} does not fit in the {bits} physical address bits of this host");
            return Err(ConfigError::setting("memory.size (--memory)", problem));
        }
        if let Some(cpu) = self.cpus.pin.iter().find(|cpu| **cpu >= host.cpus) {
            let last = host.cpus.saturating_sub(1);
            let problem = format!("the host has no CPU {cpu}; its CPUs are 0 to {last}");
            return Err(ConfigError::setting("cpus.pin (--pin)", problem));
        }
        if let Some(node) = memory.numa_node
            && !devices_host::ram::has_numa_node(node)
        {
            let problem = format!("the host has no NUMA node {node}");
            return Err(ConfigError::setting("memory.numa_node (--numa-node)", problem));
        }
        Ok(())
    }

    fn check_files(&self) -> Result<(), ConfigError> {
        let kernel = regular_file("boot.kernel (--kernel)", &self.boot.kernel)?;
        if kernel.len() == 0 {
            let problem = format!("{} is empty", self.boot.kernel.display());
            return Err(ConfigError::setting("boot.kernel (--kernel)", problem));
        }
        if let Some(path) = &self.boot.initrd {
            let initrd = regular_file("boot.initrd (--initrd)", path)?;
            if initrd.len() == 0 {
                return Err(ConfigError::setting("boot.initrd (--initrd)", format!("{} is empty", path.display())));
            }
            if initrd.len() >= self.memory.size_bytes {
                let [initrd, memory] = [initrd.len(), self.memory.size_bytes].map(format_size);
                let problem = format!("{} has {initrd} bytes and cannot fit in {memory} of memory", path.display());
                return Err(ConfigError::setting("boot.initrd (--initrd)", problem));
            }
        }
        self.check_images()?;
        for (name, backend) in self.backends() {
            match backend {
                SerialBackend::Socket(path) => socket_place(name, path)?,
                SerialBackend::File(path) => file_place(name, path)?,
                SerialBackend::Device(path) => device(name, path)?,
                SerialBackend::Metadata(path) => {
                    regular_file(name, path)?;
                    read_metadata(path).map_err(|problem| ConfigError::setting(name, problem))?;
                }
                SerialBackend::Stdio | SerialBackend::Pty | SerialBackend::Null => {}
            }
        }
        self.qmp.as_deref().map_or(Ok(()), |path| socket_place("qmp (--qmp)", path))?;
        self.pid_file.as_deref().map_or(Ok(()), |path| file_place("pid_file (--pid-file)", path))?;
        self.jail.as_ref().map_or(Ok(()), |jail| directory("jail (--jail)", &jail.dir))
    }

    /// Judges the disks by their files. Call [`VmConfig::check`] first.
    pub fn check_images(&self) -> Result<(), ConfigError> {
        // Two paths can lead to one file: the path alone does not tell.
        let mut seen: Vec<((u64, u64), bool, &str)> = Vec::new();
        for disk in &self.disks {
            let path = disk.path.display();
            let metadata = look(&disk.id, &disk.path)?;
            let kind = metadata.file_type();
            // Raw disks are character devices on illumos, and nothing a guest could use elsewhere.
            let raw_disk = devices_host::disk::is_raw_device(&kind);
            if !(metadata.is_file() || kind.is_block_device() || raw_disk) {
                let problem = format!("{path} is {}; a disk is a file or a block device", kind_of(&metadata));
                return Err(ConfigError::setting(&disk.id, problem));
            }
            let least_bytes = u64::from(disk.block_size.unwrap_or(512));
            if metadata.is_file() && metadata.len() < least_bytes {
                let what = if least_bytes == 512 { "sector" } else { "block" };
                let problem = format!("{path} has {} bytes, not even one {what} of {least_bytes}", metadata.len());
                return Err(ConfigError::setting(&disk.id, problem));
            }
            open(&disk.id, &disk.path, !disk.read_only)?;
            let identity = (metadata.dev(), metadata.ino());
            let shares = |(other, read_only, _): &&_| *other == identity && !(*read_only && disk.read_only);
            if let Some((_, _, other)) = seen.iter().find(shares) {
                let problem = format!("{path} is the same file as {other}; a guest that writes would damage it");
                return Err(ConfigError::setting(&disk.id, problem));
            }
            seen.push((identity, disk.read_only, &disk.id));
        }
        Ok(())
    }
}

fn kind_of(metadata: &Metadata) -> &'static str {
    let kind = metadata.file_type();
    match () {
        () if kind.is_dir() => "a directory",
        () if kind.is_fifo() => "a pipe",
        () if kind.is_socket() => "a socket",
        () if kind.is_char_device() => "a character device",
        () if kind.is_block_device() => "a block device",
        () => "a file",
    }
}

fn cannot(setting: &str, what: &str, path: &Path, error: &std::io::Error) -> ConfigError {
    ConfigError::setting(setting, format!("cannot {what} {}: {}", path.display(), system_text(error)))
}

/// What the system says, without the number that Rust appends.
pub fn system_text(error: &std::io::Error) -> String {
    let text = error.to_string();
    match text.find(" (os error") {
        Some(end) => text[..end].to_owned(),
        None => text,
    }
}

fn look(setting: &str, path: &Path) -> Result<Metadata, ConfigError> {
    fs::metadata(path).map_err(|error| cannot(setting, "open", path, &error))
}

fn open(setting: &str, path: &Path, write: bool) -> Result<File, ConfigError> {
    OpenOptions::new().read(true).write(write).open(path).map_err(|error| cannot(setting, "open", path, &error))
}

fn regular_file(setting: &str, path: &Path) -> Result<Metadata, ConfigError> {
    let metadata = look(setting, path)?;
    if !metadata.is_file() {
        let problem = format!("{} is {}, not a file", path.display(), kind_of(&metadata));
        return Err(ConfigError::setting(setting, problem));
    }
    open(setting, path, false)?;
    Ok(metadata)
}

/// A socket file may be left over from a process that died: whether it is, shows when it is bound.
fn socket_place(setting: &str, path: &Path) -> Result<(), ConfigError> {
    match fs::symlink_metadata(path) {
        Ok(metadata) if metadata.file_type().is_socket() => Ok(()),
        Ok(metadata) => {
            let problem = format!("{} exists and is {}, not a socket", path.display(), kind_of(&metadata));
            Err(ConfigError::setting(setting, problem))
        }
        Err(_) => parent_place(setting, path),
    }
}

fn directory(setting: &str, path: &Path) -> Result<(), ConfigError> {
    match fs::metadata(path) {
        Ok(metadata) if metadata.is_dir() => Ok(()),
        Ok(_) => Err(ConfigError::setting(setting, format!("{} is not a directory", path.display()))),
        Err(error) => Err(ConfigError::setting(setting, format!("{}: {}", path.display(), system_text(&error)))),
    }
}

/// Whether a character device is a terminal shows when it is opened.
fn device(setting: &str, path: &Path) -> Result<(), ConfigError> {
    let metadata = look(setting, path)?;
    if metadata.file_type().is_char_device() {
        return Ok(());
    }
    let problem = format!("{} is {}, not a terminal or serial line", path.display(), kind_of(&metadata));
    Err(ConfigError::setting(setting, problem))
}

fn file_place(setting: &str, path: &Path) -> Result<(), ConfigError> {
    match fs::metadata(path) {
        Ok(metadata) if metadata.is_dir() => {
            Err(ConfigError::setting(setting, format!("{} is a directory, not a file", path.display())))
        }
        Ok(_) => Ok(()),
        Err(_) => parent_place(setting, path),
    }
}

fn parent_place(setting: &str, path: &Path) -> Result<(), ConfigError> {
    let parent = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    match look(setting, parent) {
        Ok(metadata) if metadata.is_dir() => Ok(()),
        Ok(_) => Err(ConfigError::setting(setting, format!("{} is not a directory", parent.display()))),
        Err(_) => Err(ConfigError::setting(setting, format!("the directory {} does not exist", parent.display()))),
    }
}

#[cfg(test)]
#[path = "host_tests.rs"]
mod tests;
