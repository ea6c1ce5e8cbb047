//! The devices a guest can be given.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::dhcp::DhcpConfig;
use super::limits::{LimitConfig, NetLimitConfig};
use super::values::{BadValue, Mac, Slot, as_text};

/// The most virtqueues one disk may have.
pub const MAX_DISK_QUEUES: u16 = 16;

/// The largest logical block a disk may show: guests refuse one that is larger than their page.
pub const MAX_BLOCK_BYTES: u32 = 4096;

/// The largest physical block a disk may show: that of a volume (`volblocksize`).
pub const MAX_PHYSICAL_BLOCK_BYTES: u32 = 1 << 20;

/// Longest serial number that fits a virtio-blk device id (virtio 1.3 §5.2.6: 20 bytes).
pub const MAX_DISK_SERIAL: usize = 20;

/// A virtio-blk disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DiskConfig {
    /// Image file or block device with the raw contents.
    pub path: PathBuf,
    /// Name in logs, counters and on the control socket; `disk0`, `disk1`, … by position when not given.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub id: String,
    /// The guest may not write.
    #[serde(default)]
    pub read_only: bool,
    /// Place on PCI bus 0; see [`super::SlotPlan`] for where it goes when not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub slot: Option<Slot>,
    /// What the guest reads as the disk's serial number, at most [`MAX_DISK_SERIAL`] printable ASCII bytes. When not given:
    /// the id where that is, else one that follows from the path, so that it stays when other disks come and go.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub serial: Option<String>,
    /// Number of virtqueues, each with its own worker thread; the smaller of 4 and the vCPUs when not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub queues: Option<u16>,
    /// Descriptors a queue, a power of two from 4 on: a request has up to two segments less.
    #[serde(default = "default_queue_size")]
    pub queue_size: u16,
    /// Bytes of the logical block the guest sees, a power of two from 512 to [`MAX_BLOCK_BYTES`] and not below that of what
    /// is behind it, which it is when not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub block_size: Option<u32>,
    /// Bytes of the physical block the guest sees, a power of two from the logical block to [`MAX_PHYSICAL_BLOCK_BYTES`];
    /// 4096 at least when not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub physical_block_size: Option<u32>,
    /// Offer packed virtqueues (virtio 1.3 §2.8). Off by default, as with qemu.
    #[serde(default)]
    pub packed: bool,
    /// Offer to use buffers in the order they were made available (virtio 1.3 §2.7.9). Off by default, as with qemu.
    #[serde(default)]
    pub in_order: bool,
    /// Who reads and writes it.
    #[serde(default)]
    pub engine: DiskEngine,
    /// How much it may do.
    #[serde(default, skip_serializing_if = "LimitConfig::is_empty")]
    pub limits: LimitConfig,
    /// The [group](super::LimitGroupConfig) whose limits it shares.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit_group: Option<String>,
    /// What becomes of writes, flushes and erasures that fail.
    #[serde(default)]
    pub werror: WriteError,
    /// What becomes of reads that fail.
    #[serde(default)]
    pub rerror: ReadError,
    /// Measure how long its requests take, for `query-stats`.
    #[serde(default = "yes")]
    pub latency: bool,
    /// How long a queue's thread looks for the next request before it sleeps, as long as that has been worth it lately, in
    /// microseconds, up to [`MOST_POLL_US`](Self::MOST_POLL_US). [`DEFAULT_POLL_US`](Self::DEFAULT_POLL_US) when not given,
    /// and not at all where the process may use one CPU only: the guest would need that one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub poll_us: Option<u16>,
    /// Let the guest give space back (DISCARD), where the disk can.
    #[serde(default = "yes")]
    pub discard: bool,
    /// Have each write on stable storage before the guest is told of it, whatever the guest does: it is not offered to flush.
    /// Without, one that flushes has there what it flushed, and one that does not has every write.
    #[serde(default)]
    pub write_through: bool,
    /// Whether it goes through the host's page cache; around it, where the disk can and the guest's blocks suit it, when
    /// not given (on illumos: where there is none).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cache: Option<DiskCache>,
}

/// Whether a disk goes through the host's page cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DiskCache {
    /// Around it (`O_DIRECT`); there is no guest where that is not possible.
    Direct,
    /// Through it.
    Buffered,
}

/// What becomes of a write that the disk failed, in the words of qemu's `werror=`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WriteError {
    /// The guest gets an I/O error.
    #[default]
    Report,
    /// The guest is held, and the request tried again when it is resumed.
    Stop,
    /// `Stop` where the disk is out of space, `Report` else.
    Enospc,
}

/// What becomes of a read that the disk failed, in the words of qemu's `rerror=`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ReadError {
    /// The guest gets an I/O error.
    #[default]
    Report,
    /// The guest is held, and the request tried again when it is resumed.
    Stop,
}

/// Who does a disk's work.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DiskEngine {
    /// Threads that block in system calls: on every host.
    #[default]
    Threads,
    /// The kernel, by io_uring(7): on Linux.
    IoUring,
}

impl DiskConfig {
    /// What it takes for a thread to sleep and be woken, twice over.
    pub const DEFAULT_POLL_US: u16 = 50;
    /// Longer than that is a CPU given away.
    pub const MOST_POLL_US: u16 = 1000;

    /// A writable disk with default settings.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self {
            path: path.into(),
            id: String::new(),
            read_only: false,
            slot: None,
            serial: None,
            queues: None,
            queue_size: default_queue_size(),
            block_size: None,
            physical_block_size: None,
            packed: false,
            in_order: false,
            engine: DiskEngine::default(),
            limits: LimitConfig::default(),
            limit_group: None,
            werror: WriteError::default(),
            rerror: ReadError::default(),
            latency: true,
            poll_us: None,
            discard: true,
            write_through: false,
            cache: None,
        }
    }

    /// The number of virtqueues, the default applied.
    pub fn queue_count(&self, vcpus: u8) -> u16 {
        self.queues.unwrap_or_else(|| u16::from(vcpus).clamp(1, 4))
    }
}

/// The serial number of a disk for which none is given. `id` is what it is called, if it is; `nth`: how many disks before
/// it are on the same path.
pub(super) fn default_serial(id: &str, path: &Path, nth: usize) -> String {
    if !id.is_empty() && id.len() <= MAX_DISK_SERIAL {
        return id.to_owned();
    }
    let name = if id.is_empty() { path.as_os_str().as_encoded_bytes() } else { id.as_bytes() };
    // FNV-1a: a guest finds its disks by this number, so it is the same for ever, unlike what the library hashes with.
    let hash = name
        .iter()
        .chain(std::iter::repeat_n(&0, nth))
        .fold(0xcbf2_9ce4_8422_2325, |hash: u64, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3));
    format!("zvmm-{:015x}", hash >> 4)
}

/// A virtio-net interface on a link of the host, or on descriptors of one that the process was started with.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NetConfig {
    /// Name of the host's link: of a TAP interface, unless the carrier is another one; empty where it is on something else.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub tap: String,
    /// What of the host's carries the frames of that link.
    #[serde(default, skip_serializing_if = "Carrier::is_tap")]
    pub carrier: Carrier,
    /// Name of a macvtap interface instead.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub macvtap: Option<String>,
    /// File descriptors of a TAP or macvtap interface instead, a queue each, which the process was started with.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub fds: Vec<i32>,
    /// The guest's own address. When not given: the link's, where the link is the guest's end (a VNIC, macvtap); the address
    /// of a TAP interface is that of the host's end, and the guest has it with [another bit](Mac::of_other_end).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mac: Option<Mac>,
    /// Name in logs, counters and on the control socket; `net0`, `net1`, … by position when not given.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub id: String,
    /// Place on PCI bus 0; see [`super::SlotPlan`] for where it goes when not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub slot: Option<Slot>,
    /// Queue pairs, each with two worker threads, of which the guest says how many it uses; up to
    /// [`MOST_QUEUES`](Self::MOST_QUEUES). One when not given, whatever the vCPUs: a TAP interface has as many queues as it
    /// was created for, and one usually.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub queues: Option<u16>,
    /// Descriptors a queue, a power of two.
    #[serde(default = "default_queue_size")]
    pub queue_size: u16,
    /// Offer packed virtqueues (virtio 1.3 §2.8). Off by default, as with qemu.
    #[serde(default)]
    pub packed: bool,
    /// Offer to use buffers in the order they were made available (virtio 1.3 §2.7.9). Off by default, as with qemu.
    #[serde(default)]
    pub in_order: bool,
    /// How much goes through.
    #[serde(default, skip_serializing_if = "NetLimitConfig::is_empty")]
    pub limits: NetLimitConfig,
    /// Drop what the guest sends from another address than its own, for hosts whose network does not see to that. The guest
    /// cannot change its address then.
    #[serde(default)]
    pub mac_check: bool,
    /// Have the host's kernel carry the queues (vhost-net of Linux, over a TAP interface): the process moves no frame, and has
    /// no limit, check or answer of its own for them.
    #[serde(default)]
    pub vhost: bool,
    /// Have the guest receive every frame of the link, whatever its driver asks for. Off by default; a TAP interface hands over
    /// every frame as it is.
    #[serde(default)]
    pub promiscuous: bool,
    /// Answer the guest's DHCP requests, and ARP requests for the one who answers; they do not get to the TAP interface.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dhcp: Option<DhcpConfig>,
    /// Features of virtio-net not to offer (bits of virtio 1.3 §5.1.3), for what a guest or a network does not get right; those
    /// that ask for one of them are not offered either.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub feature_mask: u64,
    /// Whether viona copies what the guest sends; with `false` it lends the network the guest's pages. As the kernel has it when
    /// not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tx_copy_data: Option<bool>,
    /// Bytes that viona leaves free before what the guest sends, for headers of the network. As the kernel has it when not
    /// given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tx_header_pad: Option<u16>,
    /// What the guest is told that the link carries, in Mbit/s, up to [`MOST_SPEED_MBITS`](Self::MOST_SPEED_MBITS); nothing
    /// is slower or faster for it. Unknown when not given, as with qemu.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub speed: Option<u32>,
    /// Whether the guest is told that it does so both ways at once; unknown when not given, as with qemu.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub duplex: Option<Duplex>,
}

/// What of the host's carries the frames of a link.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Carrier {
    /// A TAP interface (Linux).
    #[default]
    Tap,
    /// What the host has for a link of that name: the kernel that runs the VM on bhyve, a frame device on the KVM of illumos,
    /// a TAP interface on Linux.
    Vnic,
    /// The kernel that runs the VM, over a data link of the zone (bhyve's viona).
    Viona,
    /// A frame device of illumos' kvm brand (`/dev/vnd/LINK`).
    Vnd,
    /// A stream of illumos' data link provider interface (`/dev/net/LINK`).
    Dlpi,
}

impl Carrier {
    /// Most bytes of a name on illumos (`MAXLINKNAMELEN`, which counts the NUL).
    const LONGEST_LINK_BYTES: usize = 31;

    /// What the command line calls it.
    #[must_use]
    pub fn key(self) -> &'static str {
        match self {
            Self::Tap => "tap",
            Self::Vnic => "vnic",
            Self::Viona => "viona",
            Self::Vnd => "vnd",
            Self::Dlpi => "dlpi",
        }
    }

    /// Most bytes of the name of a link that it carries.
    #[must_use]
    pub fn longest_name_bytes(self) -> usize {
        match self {
            Self::Tap | Self::Vnic => devices_host::tap::LONGEST_NAME_BYTES,
            Self::Viona | Self::Vnd | Self::Dlpi => Self::LONGEST_LINK_BYTES,
        }
    }

    fn is_tap(&self) -> bool {
        *self == Self::Tap
    }
}

/// How the two directions of a network link share it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Duplex {
    /// One at a time.
    Half,
    /// Both at once.
    Full,
}

impl NetConfig {
    /// Descriptors a queue when not given.
    pub const DEFAULT_QUEUE_SIZE: u16 = DEFAULT_QUEUE_SIZE;
    /// The fastest link there is a number for (virtio 1.3 §5.1.4.1).
    pub const MOST_SPEED_MBITS: u32 = 0x7fff_ffff;

    /// An interface with the address of its link and default settings.
    pub fn new(tap: impl Into<String>) -> Self {
        Self {
            tap: tap.into(),
            carrier: Carrier::Tap,
            macvtap: None,
            fds: Vec::new(),
            mac: None,
            id: String::new(),
            slot: None,
            queues: None,
            limits: NetLimitConfig::default(),
            mac_check: false,
            vhost: false,
            queue_size: Self::DEFAULT_QUEUE_SIZE,
            packed: false,
            in_order: false,
            promiscuous: false,
            feature_mask: 0,
            tx_copy_data: None,
            tx_header_pad: None,
            dhcp: None,
            speed: None,
            duplex: None,
        }
    }
}

/// What qemu offers by default, so drivers are well used to it; a power of two as the split ring asks
/// (virtio 1.3 §2.7).
const DEFAULT_QUEUE_SIZE: u16 = 256;

fn yes() -> bool {
    true
}

fn is_zero(number: &u64) -> bool {
    *number == 0
}

fn default_queue_size() -> u16 {
    DEFAULT_QUEUE_SIZE
}

/// A virtio-rng entropy source, fed by the host's `getrandom`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RngConfig {
    /// Place on PCI bus 0; see [`super::SlotPlan`] for where it goes when not given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub slot: Option<Slot>,
}

/// A virtio-console with one port.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ConsoleConfig {
    /// What the port is connected to.
    pub backend: SerialBackend,
    /// Place on PCI bus 0; see [`super::SlotPlan`] for where it goes when not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub slot: Option<Slot>,
}

/// The debug port: one I/O port whose written bytes go to the host (0xE9 of Bochs, 0x402 of SeaBIOS and OVMF).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DebugPortConfig {
    /// What the port writes to.
    pub backend: SerialBackend,
    /// I/O port address.
    #[serde(default = "default_debug_port")]
    pub port: u16,
}

impl DebugPortConfig {
    /// Where SeaBIOS and OVMF write their debug messages.
    pub const DEFAULT_PORT: u16 = 0x402;
}

fn default_debug_port() -> u16 {
    DebugPortConfig::DEFAULT_PORT
}

/// What a serial line of the guest is connected to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SerialBackend {
    /// The terminal or pipe this process was started on. Ctrl-A x leaves.
    Stdio,
    /// A file: output is appended, there is no input.
    File(PathBuf),
    /// A listening unix socket that serves one client at a time.
    Socket(PathBuf),
    /// A terminal or serial line of the host, such as a SmartOS zone's `/dev/zconsole`, in raw mode while the guest runs.
    Device(PathBuf),
    /// The built-in metadata responder, with the keys of a JSON file (see [`super::read_metadata`]).
    Metadata(PathBuf),
    /// A new pseudo terminal, whose name is logged.
    Pty,
    /// Nothing: output is discarded, there is no input.
    Null,
}

impl FromStr for SerialBackend {
    type Err = BadValue;
    fn from_str(text: &str) -> Result<Self, BadValue> {
        let (kind, path) = match text.split_once(':') {
            Some((kind, path)) => (kind, Some(path)),
            None => (text, None),
        };
        match (kind, path) {
            ("stdio", None) => Ok(Self::Stdio),
            ("pty", None) => Ok(Self::Pty),
            ("null", None) => Ok(Self::Null),
            ("file", Some(path)) if !path.is_empty() => Ok(Self::File(path.into())),
            ("socket", Some(path)) if !path.is_empty() => Ok(Self::Socket(path.into())),
            ("device", Some(path)) if !path.is_empty() => Ok(Self::Device(path.into())),
            ("metadata", Some(path)) if !path.is_empty() => Ok(Self::Metadata(path.into())),
            ("metadata", _) => Err(BadValue(format!("'{text}' has no file; write metadata:FILE"))),
            ("file" | "socket" | "device", _) => Err(BadValue(format!("'{text}' has no path; write {kind}:PATH"))),
            ("stdio" | "pty" | "null", Some(_)) => Err(BadValue(format!("'{kind}' takes no path"))),
            _ => Err(BadValue(format!(
                "'{text}' is not a serial back end; they are stdio, file:PATH, socket:PATH, device:PATH, metadata:FILE, \
                 pty and null"
            ))),
        }
    }
}

impl fmt::Display for SerialBackend {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Stdio => formatter.write_str("stdio"),
            Self::File(path) => write!(formatter, "file:{}", path.display()),
            Self::Socket(path) => write!(formatter, "socket:{}", path.display()),
            Self::Device(path) => write!(formatter, "device:{}", path.display()),
            Self::Metadata(path) => write!(formatter, "metadata:{}", path.display()),
            Self::Pty => formatter.write_str("pty"),
            Self::Null => formatter.write_str("null"),
        }
    }
}

as_text!(
    SerialBackend,
    "a serial back end: \"stdio\", \"file:PATH\", \"socket:PATH\", \"device:PATH\", \"metadata:FILE\", \"pty\" or \"null\""
);

/// `#[serde(with)]` for the four COM ports: in JSON an object with the keys `com1` to `com4`.
pub mod com_ports {
    use super::SerialBackend;
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    #[derive(Default, Serialize, Deserialize)]
    #[serde(deny_unknown_fields, default)]
    struct Ports {
        #[serde(skip_serializing_if = "Option::is_none")]
        com1: Option<SerialBackend>,
        #[serde(skip_serializing_if = "Option::is_none")]
        com2: Option<SerialBackend>,
        #[serde(skip_serializing_if = "Option::is_none")]
        com3: Option<SerialBackend>,
        #[serde(skip_serializing_if = "Option::is_none")]
        com4: Option<SerialBackend>,
    }

    /// Writes the ports that are configured.
    pub fn serialize<S: Serializer>(ports: &[Option<SerialBackend>; 4], serializer: S) -> Result<S::Ok, S::Error> {
        let [com1, com2, com3, com4] = ports.clone();
        Ports { com1, com2, com3, com4 }.serialize(serializer)
    }

    /// Reads the ports that are given.
    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<[Option<SerialBackend>; 4], D::Error> {
        let Ports { com1, com2, com3, com4 } = Ports::deserialize(deserializer)?;
        Ok([com1, com2, com3, com4])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_serial_back_end_survives_being_written_and_read() {
        for text in [
            "stdio",
            "file:/var/log/com1",
            "socket:/run/vm:1",
            "device:/dev/zconsole",
            "metadata:m.json",
            "pty",
            "null",
        ] {
            assert_eq!(text.parse::<SerialBackend>().map(|backend| backend.to_string()), Ok(text.to_owned()));
        }
    }

    #[test]
    fn a_serial_back_end_that_is_unknown_or_lacks_its_path_is_refused() {
        for (text, problem) in [
            ("stdoi", "'stdoi' is not a serial back end"),
            ("file", "write file:PATH"),
            ("socket:", "write socket:PATH"),
            ("pty:/dev/pts/1", "'pty' takes no path"),
        ] {
            let error = text.parse::<SerialBackend>().unwrap_err().to_string();
            assert!(error.contains(problem), "{error}");
        }
    }

    #[test]
    fn a_default_serial_is_the_id_or_follows_from_the_path_and_fits() {
        let serial = |id: &str, path: &str, nth| default_serial(id, Path::new(path), nth);
        assert_eq!(serial("root", "a", 0), "root");
        // What a guest has in its fstab: never another one for this path.
        assert_eq!(serial("", "/zones/web/root.img", 0), "zvmm-302195dc8ea006c");
        let long = "i".repeat(64);
        let all = [
            serial("", "a", 0),
            serial("", "a", 1),
            serial("", "b", 0),
            serial(&long, "a", 0),
            serial(&format!("{long}2"), "a", 0),
        ];
        assert!(all.iter().all(|serial| serial.len() <= MAX_DISK_SERIAL && serial.is_ascii()), "{all:?}");
        assert_eq!(all.iter().collect::<std::collections::HashSet<_>>().len(), all.len(), "{all:?}");
    }

    #[test]
    fn a_disk_has_a_queue_for_each_vcpu_up_to_four() {
        let disk = DiskConfig::new("disk");
        assert_eq!([1, 2, 4, 16].map(|vcpus| disk.queue_count(vcpus)), [1, 2, 4, 4]);
        assert_eq!(DiskConfig { queues: Some(8), ..disk }.queue_count(1), 8);
    }
}
