//! One typed configuration, whatever front end it came from.
//!
//! The command line and the JSON file both end in a [`VmConfig`]. It is judged in two steps, both before any guest
//! memory exists: [`VmConfig::check`] says what can be known from the configuration alone, [`VmConfig::check_host`]
//! what the host makes of it.

pub mod bhyve;
mod check;
mod devices;
mod dhcp;
mod host;
mod json;
mod limits;
mod metadata;
pub mod nearest;
mod nets;
pub mod options;
mod ports;
pub mod qemu;
mod sandbox;
mod slots;
mod translation;
mod values;
pub mod vmadm;

use std::path::PathBuf;

use arch::cpu::{CpuError, CpuModel};
use serde::{Deserialize, Serialize};

pub use self::devices::{
    Carrier, ConsoleConfig, DebugPortConfig, DiskCache, DiskConfig, DiskEngine, Duplex, MAX_BLOCK_BYTES,
    MAX_DISK_QUEUES, MAX_DISK_SERIAL, MAX_PHYSICAL_BLOCK_BYTES, NetConfig, ReadError, RngConfig, SerialBackend,
    WriteError,
};
pub use check::{ConfigError, vcpu_limits};
pub use dhcp::DhcpConfig;
pub use host::{HostFacts, system_text};
pub use json::reword;
pub use limits::{DirectionLimitConfig, LimitConfig, LimitGroupConfig, NetLimitConfig};
pub use metadata::{Metadata, is_metadata_key, read_metadata};
pub use nets::{LinkConfig, mask as feature_mask};
pub use sandbox::{JailConfig, SandboxMode};
pub use slots::SlotPlan;
pub use translation::{Fate, Note, Translation};
pub use values::{BadValue, Ip, LogRule, Mac, Size, Slot, Uuid, format_size, parse_size};

/// The most vCPUs a guest may have: APIC id 255 is the broadcast id of the xAPIC (Intel SDM vol. 3 §12.6.1).
pub const MAX_VCPUS: u8 = 254;

/// The page size of x86, in bytes.
pub const PAGE_SIZE: u64 = 4096;

/// Everything that is known about one guest before it starts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct VmConfig {
    /// Name in logs and on the control socket.
    pub name: String,
    /// Identity that the guest reads in SMBIOS type 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub uuid: Option<Uuid>,
    /// The machine the guest sees.
    pub profile: Profile,
    /// The hypervisor it runs on; `None` takes the host's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hypervisor: Option<HypervisorName>,
    /// vCPUs.
    pub cpus: CpuConfig,
    /// Guest memory.
    pub memory: MemoryConfig,
    /// What the guest boots.
    pub boot: BootConfig,
    /// virtio-blk disks, in the order the guest sees them.
    pub disks: Vec<DiskConfig>,
    /// Rate limits that disks share.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub limit_groups: Vec<LimitGroupConfig>,
    /// virtio-net interfaces, in the order the guest sees them.
    pub nets: Vec<NetConfig>,
    /// virtio-rng.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rng: Option<RngConfig>,
    /// virtio-console.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub console: Option<ConsoleConfig>,
    /// COM1 to COM4. `None` means that nobody is at the other end; whether the port exists is the profile's matter.
    #[serde(rename = "serial", with = "devices::com_ports")]
    pub serials: [Option<SerialBackend>; 4],
    /// The debug port of firmware and test kernels.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub debug_port: Option<DebugPortConfig>,
    /// The pvpanic device, by which a guest tells that it panicked.
    pub pvpanic: bool,
    /// The PS/2 controller; `None` leaves it to the profile (`i440fx` and `bhyve` have one, `micro` has none).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ps2: Option<bool>,
    /// The paravirtual clock of KVM.
    pub kvmclock: bool,
    /// Which drivers find the virtio devices.
    pub virtio: VirtioInterfaces,
    /// Strings of SMBIOS type 1 (system information).
    pub smbios: SmbiosConfig,
    /// What a reset by the guest leads to.
    pub on_reset: OnReset,
    /// What a triple fault leads to.
    pub on_triple_fault: OnTripleFault,
    /// What a panic reported by the guest leads to.
    pub on_panic: OnPanic,
    /// Unix socket of the control interface (QMP).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub qmp: Option<PathBuf>,
    /// File that has the process id while the process runs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pid_file: Option<PathBuf>,
    /// Whether threads give up what they do not need.
    pub sandbox: SandboxMode,
    /// The root directory and user that the process takes once everything is open.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub jail: Option<JailConfig>,
    /// What is logged on stderr; `warn` when empty.
    pub log: Vec<LogRule>,
}

impl Default for VmConfig {
    fn default() -> Self {
        Self {
            name: "zvmm".to_owned(),
            uuid: None,
            profile: Profile::default(),
            hypervisor: None,
            cpus: CpuConfig::default(),
            memory: MemoryConfig::default(),
            boot: BootConfig::default(),
            disks: Vec::new(),
            limit_groups: Vec::new(),
            nets: Vec::new(),
            rng: None,
            console: None,
            serials: [const { None }; 4],
            debug_port: None,
            pvpanic: false,
            ps2: None,
            kvmclock: true,
            virtio: VirtioInterfaces::default(),
            smbios: SmbiosConfig::default(),
            on_reset: OnReset::default(),
            on_triple_fault: OnTripleFault::default(),
            on_panic: OnPanic::default(),
            qmp: None,
            pid_file: None,
            sandbox: SandboxMode::DEFAULT,
            jail: None,
            log: Vec::new(),
        }
    }
}

impl VmConfig {
    /// Whether the guest has a PS/2 controller, the profile's default applied.
    pub fn has_ps2(&self) -> bool {
        self.ps2.unwrap_or(self.profile != Profile::Micro)
    }

    /// Which of COM1 to COM4 the guest has: those with somebody at the other end, and under `bhyve` all.
    pub fn com_ports(&self) -> [bool; 4] {
        std::array::from_fn(|port| self.profile == Profile::Bhyve || self.serials[port].is_some())
    }

    /// The CPU model and its mask, what [`VmConfig::kvmclock`] says applied.
    ///
    /// # Errors
    /// A model or feature that is not known, or a mask that contradicts itself.
    pub fn cpu_model(&self) -> Result<CpuModel, CpuError> {
        let hide_clock = if self.kvmclock { "" } else { ",-kvmclock" };
        format!("{}{hide_clock}", self.cpus.model).parse()
    }

    /// Gives every disk and interface without an id the one of its position: `disk0`, `net0`, …, and every disk without a
    /// serial number its own.
    ///
    /// Front ends call this last, so that everything behind them can rely on the ids.
    pub fn name_devices(&mut self) {
        for index in 0..self.disks.len() {
            let (before, rest) = self.disks.split_at_mut(index);
            if let Some(disk) = rest.first_mut().filter(|disk| disk.serial.is_none()) {
                let nth = before.iter().filter(|other| other.path == disk.path).count();
                disk.serial = Some(devices::default_serial(&disk.id, &disk.path, nth));
            }
        }
        for (index, disk) in self.disks.iter_mut().enumerate().filter(|(_, disk)| disk.id.is_empty()) {
            disk.id = format!("disk{index}");
        }
        for (index, net) in self.nets.iter_mut().enumerate().filter(|(_, net)| net.id.is_empty()) {
            net.id = format!("net{index}");
        }
    }
}

/// The machine the guest sees; guests remember their hardware, so this never changes under an installed guest.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Profile {
    /// 440FX and PIIX as under qemu's `pc`.
    #[default]
    I440fx,
    /// Host bridge, LPC bridge and power management as under bhyve on SmartOS.
    Bhyve,
    /// Host bridge with ECAM and COM1 only: the fastest direct boot.
    Micro,
}

/// Which drivers find a guest's virtio devices.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum VirtioInterfaces {
    /// Those of virtio 0.9 and of virtio 1; under `micro`, which has no I/O ports for devices, the latter alone.
    #[default]
    Both,
    /// Those of virtio 0.9 alone.
    Legacy,
    /// Those of virtio 1 alone.
    Modern,
}

/// A hypervisor, for hosts that have more than one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum HypervisorName {
    /// bhyve of illumos.
    Bhyve,
    /// The host's KVM.
    Kvm,
}

/// vCPUs and where they run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct CpuConfig {
    /// Number of vCPUs, 1 to [`MAX_VCPUS`].
    #[serde(deserialize_with = "check::vcpu_count")]
    pub count: u8,
    /// CPU model with its mask, such as `host,-avx512f` or `x86-64-v2`.
    pub model: String,
    /// How the vCPUs are grouped; one socket of single-thread cores when not given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub topology: Option<Topology>,
    /// The host CPU of each vCPU in turn; empty to leave the choice to the host's scheduler.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub pin: Vec<usize>,
}

impl Default for CpuConfig {
    fn default() -> Self {
        Self { count: 1, model: "host".to_owned(), topology: None, pin: Vec::new() }
    }
}

impl CpuConfig {
    /// The topology, the default applied.
    pub fn topology(&self) -> Topology {
        self.topology.unwrap_or(Topology { sockets: 1, cores: self.count, threads: 1 })
    }
}

/// Sockets × cores × threads: their product is the number of vCPUs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Topology {
    /// CPU packages.
    #[serde(default = "one")]
    pub sockets: u8,
    /// Cores a package.
    #[serde(default = "one")]
    pub cores: u8,
    /// Threads a core.
    #[serde(default = "one")]
    pub threads: u8,
}

fn one() -> u8 {
    1
}

/// Guest memory and what backs it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct MemoryConfig {
    /// Size of the guest's RAM in bytes, a multiple of [`PAGE_SIZE`].
    #[serde(rename = "size", with = "values::size_text")]
    pub size_bytes: u64,
    /// Back the memory with huge pages that the host has set aside.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub huge_pages: Option<HugePages>,
    /// Touch all memory before the guest starts.
    pub prealloc: bool,
    /// Lock all memory, so that it is never paged out.
    pub lock: bool,
    /// Take memory from this host NUMA node only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub numa_node: Option<u32>,
    /// Memory that another process can map (memfd) instead of private anonymous memory.
    pub shared: bool,
    /// Take memory from what the host's administrator set aside for guests (bhyve).
    pub reservoir: bool,
    /// End of the RAM below 4 GiB, in bytes; 3 GiB when not given. RAM beyond it continues at 4 GiB.
    #[serde(rename = "low_split", with = "values::optional_size_text", skip_serializing_if = "Option::is_none")]
    pub low_split_bytes: Option<u64>,
}

/// Where RAM below 4 GiB ends, in bytes, unless [`MemoryConfig::low_split_bytes`] says less.
pub const DEFAULT_LOW_SPLIT: u64 = 3 << 30;

impl Default for MemoryConfig {
    fn default() -> Self {
        Self {
            size_bytes: 512 << 20,
            huge_pages: None,
            prealloc: false,
            lock: false,
            numa_node: None,
            shared: false,
            reservoir: false,
            low_split_bytes: None,
        }
    }
}

impl MemoryConfig {
    /// First guest physical address above all RAM. Saturates for sizes that [`VmConfig::check`] refuses.
    pub fn end_of_ram(&self) -> u64 {
        let split = self.low_split_bytes.unwrap_or(DEFAULT_LOW_SPLIT);
        match self.size_bytes.checked_sub(split) {
            None | Some(0) => self.size_bytes,
            Some(high) => (4u64 << 30).saturating_add(high),
        }
    }
}

/// Size of the host's huge pages.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum HugePages {
    /// 2 MiB.
    #[serde(rename = "2M")]
    Size2M,
    /// 1 GiB.
    #[serde(rename = "1G")]
    Size1G,
}

impl HugePages {
    /// Bytes of one page.
    pub fn bytes(self) -> u64 {
        match self {
            Self::Size2M => 2 << 20,
            Self::Size1G => 1 << 30,
        }
    }
}

/// What the guest boots: a kernel loaded by the VMM.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct BootConfig {
    /// bzImage or ELF kernel.
    pub kernel: PathBuf,
    /// Initial RAM disk.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub initrd: Option<PathBuf>,
    /// Kernel command line.
    pub cmdline: String,
}

/// Strings of SMBIOS type 1; `None` leaves the built-in string.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SmbiosConfig {
    /// Manufacturer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub manufacturer: Option<String>,
    /// Product name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub product: Option<String>,
    /// Version.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// Serial number.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub serial: Option<String>,
    /// SKU number.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sku: Option<String>,
    /// Family.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub family: Option<String>,
}

/// What a reset by the guest leads to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnReset {
    /// The guest starts again inside this process.
    #[default]
    Restart,
    /// The process ends with its own exit status.
    Exit,
}

/// What a triple fault leads to. Real machines reset, and kernels use it as their last way to reboot.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnTripleFault {
    /// Treated as a reset by the guest.
    #[default]
    Reset,
    /// The process ends with its own exit status.
    Exit,
}

/// What a panic reported through pvpanic leads to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnPanic {
    /// It is logged and announced on the control socket; the guest goes on, and reboots itself if told to.
    #[default]
    Report,
    /// The process ends with its own exit status.
    Exit,
}
