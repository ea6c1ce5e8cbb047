//! What a machine is made of, as far as somebody outside can ask for it.

use devices::virtio::blk::OpsSnapshot;

/// A machine's parts, and how they are at one moment.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Inventory {
    /// Name of the guest.
    pub name: String,
    /// What the guest reads as its identity.
    pub uuid: Option<String>,
    /// The hypervisor is a KVM.
    pub is_kvm: bool,
    /// vCPUs by their number.
    pub vcpus: Vec<VcpuFacts>,
    /// Disks, in the order the guest sees them.
    pub disks: Vec<DiskFacts>,
    /// Network interfaces, in the order the guest sees them.
    pub nets: Vec<NetFacts>,
    /// The control socket and serial lines.
    pub characters: Vec<CharacterFacts>,
    /// Functions on PCI bus 0.
    pub functions: Vec<PciFacts>,
}

/// A vCPU.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct VcpuFacts {
    /// The system's number of its thread: what `ps -L` shows on Linux and `ps -L` or `prstat -L` on illumos. 0 as long as
    /// the thread has not begun.
    pub thread_id: u64,
    /// Its socket.
    pub socket: u8,
    /// Its core in the socket.
    pub core: u8,
    /// Its thread in the core.
    pub thread: u8,
}

/// A disk.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DiskFacts {
    /// Its name in the configuration.
    pub id: String,
    /// File or device behind it.
    pub path: String,
    /// The guest may not write.
    pub read_only: bool,
    /// What the guest sees as its size.
    pub size_bytes: u64,
    /// Requests a second it may do.
    pub limit_ops: Option<u64>,
    /// Bytes a second it may move.
    pub limit_bytes: Option<u64>,
    /// Requests so far.
    pub ops: OpsSnapshot,
    /// Bytes read so far.
    pub read_bytes: u64,
    /// Bytes written so far.
    pub written_bytes: u64,
}

/// A network interface.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NetFacts {
    /// Its name in the configuration.
    pub id: String,
    /// The guest's address.
    pub mac: String,
    /// The host's interface behind it.
    pub host: String,
    /// The guest sees the link up.
    pub is_up: bool,
}

/// A stream of bytes that somebody may be at the end of.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CharacterFacts {
    /// `qmp`, `serial0` (COM1) to `serial3`, `console`, `debug port`.
    pub label: String,
    /// What is behind it, in qemu's words: `unix:/tmp/vm.qmp,server`, `null`, …
    pub filename: String,
}

/// A PCI function.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PciFacts {
    /// Its name in messages: a device's id.
    pub id: String,
    /// Device number.
    pub slot: u8,
    /// Function number.
    pub function: u8,
    /// Vendor id.
    pub vendor: u16,
    /// Device id.
    pub device: u16,
    /// Base class and subclass.
    pub class: u16,
    /// Interrupt line register, where it has an interrupt pin.
    pub irq: Option<u8>,
    /// Its base address registers.
    pub bars: Vec<BarFacts>,
}

/// A base address register as the guest has set it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct BarFacts {
    /// Its number.
    pub index: u8,
    /// It decodes ports.
    pub is_io: bool,
    /// It is prefetchable.
    pub is_prefetchable: bool,
    /// It is a 64-bit address, and takes the next register too.
    pub is_64_bit: bool,
    /// Where the guest has put it.
    pub address: u64,
    /// Its size in bytes.
    pub len: u64,
}
