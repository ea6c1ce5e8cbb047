//! The options that describe a guest.

use std::path::PathBuf;
use std::str::FromStr;

use clap::Args;
use serde::Deserialize;
use serde::de::IntoDeserializer;
use serde::de::value::{Error as ValueError, StrDeserializer};

use crate::config::options::{Options, on_off};
use crate::config::{
    Carrier, ConfigError, ConsoleConfig, DebugPortConfig, DhcpConfig, DirectionLimitConfig, DiskConfig, Ip, JailConfig,
    LimitConfig, LimitGroupConfig, NetConfig, NetLimitConfig, RngConfig, SerialBackend, Size, Topology, VmConfig,
    feature_mask, parse_size, reword, vcpu_limits,
};

/// The options that describe a guest, as typed. [`GuestArgs::into_config`] gives them their meaning: one reader for
/// each kind of value serves the command line and JSON, so clap only tells options apart.
#[allow(rustdoc::broken_intra_doc_links, reason = "the comments are the help text, where [default] is no link")]
#[derive(Debug, Default, Args)]
pub struct GuestArgs {
    /// Read the guest from a JSON file; options override its values, --disk, --limit-group, --net and --log add to its lists
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Name of the guest in logs and on the control socket
    #[arg(long, value_name = "NAME")]
    pub name: Option<String>,
    /// UUID that the guest reads in SMBIOS type 1
    #[arg(long, value_name = "UUID")]
    pub uuid: Option<String>,
    /// Machine the guest sees: i440fx [default] (as qemu's pc), bhyve (as bhyve on SmartOS) or micro (PCI with ECAM and
    /// COM1 only; boots fastest)
    #[arg(long, value_name = "PROFILE")]
    pub profile: Option<String>,
    /// Hypervisor to run on, where the host has more than one: bhyve or kvm [default: bhyve if it is there]
    #[arg(long, value_name = "bhyve|kvm")]
    pub hypervisor: Option<String>,

    /// Kernel: a bzImage or an ELF file
    #[arg(long, value_name = "FILE", help_heading = "What boots")]
    pub kernel: Option<PathBuf>,
    /// Initial RAM disk
    #[arg(long, value_name = "FILE", help_heading = "What boots")]
    pub initrd: Option<PathBuf>,
    /// Kernel command line
    #[arg(long, value_name = "TEXT", help_heading = "What boots", allow_hyphen_values = true)]
    pub cmdline: Option<String>,

    /// Number of vCPUs, 1 to 254 [default: 1]
    #[arg(long, value_name = "N", help_heading = "CPUs", allow_negative_numbers = true)]
    pub cpus: Option<String>,
    /// CPU model and mask: host [default], host,-avx512f, x86-64-v2, x86-64-v3
    #[arg(long = "cpu", value_name = "MODEL[,±FEATURE…]", help_heading = "CPUs")]
    pub cpu_model: Option<String>,
    /// Grouping of the vCPUs; the product is their number [default: one socket of single-thread cores]
    #[arg(long, value_name = "sockets=N,cores=N,threads=N", help_heading = "CPUs")]
    pub topology: Option<String>,
    /// Host CPU of each vCPU in turn
    #[arg(long, value_name = "CPU,CPU…", help_heading = "CPUs")]
    pub pin: Option<String>,

    /// Memory of the guest, such as 512M [default: 512M]
    #[arg(long, value_name = "SIZE", help_heading = "Memory", allow_negative_numbers = true)]
    pub memory: Option<String>,
    /// Back the memory with huge pages the host has set aside: 2M or 1G
    #[arg(long, value_name = "2M|1G", help_heading = "Memory")]
    pub hugepages: Option<String>,
    /// Touch all memory before the guest starts
    #[arg(long, help_heading = "Memory")]
    pub prealloc: bool,
    /// Lock all memory: it is never paged out
    #[arg(long, help_heading = "Memory")]
    pub mlock: bool,
    /// Take memory from this host NUMA node only
    #[arg(long, value_name = "NODE", help_heading = "Memory", allow_negative_numbers = true)]
    pub numa_node: Option<String>,
    /// Memory that another process can map
    #[arg(long, help_heading = "Memory")]
    pub shared_memory: bool,
    /// Take memory from what the host's administrator has set aside for guests (bhyve)
    #[arg(long, help_heading = "Memory")]
    pub reservoir: bool,
    /// End of the memory below 4 GiB [default: 3G]; the rest starts at 4 GiB
    #[arg(long, value_name = "SIZE", help_heading = "Memory", allow_negative_numbers = true)]
    pub low_split: Option<String>,

    /// Disk (virtio-blk) with raw contents: a file or block device. Again for more disks
    ///
    /// Keys: ro (the guest cannot write), slot=DEVICE[.FUNCTION] (place on the PCI bus), serial=TEXT (up to 20
    /// characters; the id given, or else one that follows from the path), queues=N (1 to 16; the vCPUs up to
    /// 4), queue_size=N (4 to 1024; 256), block_size=BYTES, physical_block_size=BYTES (what the guest sees:
    /// 512 to 4096 and 512 to 1048576; as the disk has them), packed, in_order (ring features to offer, as with
    /// qemu), engine=threads|io_uring (who does its work: threads),
    /// cache=direct|buffered (around the host's page cache or through it; on Linux around it, where the disk can),
    /// werror=report|stop|enospc, rerror=report|stop (what becomes of requests that the host's disk fails: report
    /// gives the guest an I/O error, stop holds the guest until cont on the control socket tries again, enospc
    /// does so where space has run out and reports else), id=NAME (disk0, disk1, …).
    ///
    /// Rate limits: limit_ops=N (requests a second), limit_bytes=SIZE (bytes a second, such as 50M), each with a burst
    /// after a pause (limit_ops_burst=N, limit_bytes_burst=SIZE; a tenth of a second's worth), limit_group=NAME (shares
    /// the limits of a --limit-group, beside its own). latency=off measures no times of requests for query-stats (on).
    /// poll_us=N: microseconds that a queue's thread looks for the next request at most before it sleeps, as long as
    /// that has been worth it lately (0 to 1000; 50, and 0 where there is one CPU). discard=off: the guest cannot give
    /// space back (on, where the disk can). write_through=on: each write is on the disk when the guest is told of it, and
    /// the guest is not offered to flush (off).
    #[arg(long, value_name = "PATH[,KEY=VALUE…]", help_heading = "Devices")]
    pub disk: Vec<String>,
    /// Rate limits that disks share: those with limit_group=NAME. Again for more groups
    ///
    /// Keys: limit_ops=N, limit_ops_burst=N, limit_bytes=SIZE, limit_bytes_burst=SIZE: as a disk has them by itself.
    #[arg(long, value_name = "NAME,KEY=VALUE…", help_heading = "Devices")]
    pub limit_group: Vec<String>,
    /// Network interface (virtio-net) on a link of the host. Again for more interfaces
    ///
    /// Keys: tap=NAME, mac=ADDRESS (both needed), slot=DEVICE[.FUNCTION], queues=N (queue pairs, 1 to 16; 1: a TAP
    /// device with more was created with multi_queue), queue_size=N (256), packed, in_order (ring features to offer, as
    /// with qemu), speed=N, duplex=half|full (what the guest is told of the link, in Mbit/s: unknown), mac_check=on (drop
    /// what the guest sends from another address than mac, which it cannot change then: off), feature_mask=MASK (features of
    /// virtio-net not to offer, a bit each, such as 0x800 for HOST_TSO4: none), id=NAME (net0, net1, …).
    /// vhost=on: the host's kernel carries the queues (/dev/vhost-net of Linux; off: threads of the process do), without ip=,
    /// mac_check, packed, in_order and rate limits. While the link of the host is down, so is the guest's.
    ///
    /// Instead of tap=, macvtap=NAME (a macvtap interface, whose own address the guest has where no mac is given), or
    /// fd=N[:N…] (open file descriptors of a TAP or macvtap device, a queue each, set up for frames with the header of
    /// virtio-net); on illumos viona=LINK (bhyve's kernel carries its frames, and its address is the link's; with slot=,
    /// queues=, queue_size=, speed=, duplex=, feature_mask= and id= only, and with tx_copy_data=on|off (off: lend the guest's
    /// pages to the network in place of a copy) and tx_header_pad=N (bytes free before a sent frame), both as the kernel has
    /// them when not given), vnd=LINK for a frame device of the kvm brand or dlpi=LINK for a stream of any data link, with the
    /// address of the link unless mac= gives another.
    ///
    /// Rate limits, to the guest (rx) and from it (tx): limit_rx_packets=N, limit_tx_packets=N (packets a second),
    /// limit_rx_bytes=SIZE, limit_tx_bytes=SIZE (bytes a second, such as 50M), each with a burst after a pause
    /// (limit_rx_packets_burst=N and so on; a tenth of a second's worth).
    ///
    /// With ip=ADDRESS,netmask=MASK the process answers the guest's DHCP requests itself, with that address, and no such
    /// request gets to the link. To that: gateway_ip=ADDRESS, dns_ip0= to dns_ip3=ADDRESS (dns_ip= where it is
    /// one), hostname=NAME, lease_time=SECONDS (86400), server_ip=ADDRESS (169.254.169.254: who answers).
    #[arg(long, value_name = "tap=NAME,mac=ADDRESS|viona=LINK[,KEY=VALUE…]", help_heading = "Devices")]
    pub net: Vec<String>,
    /// COM port on stdio, file:PATH, socket:PATH, device:PATH, metadata:FILE, pty or null. Again for COM2 to
    /// COM4; com3=… names one
    ///
    /// A socket has one client at a time. A device is a terminal or serial line of the host, such as a zone's
    /// /dev/zconsole; it is in raw mode while the guest runs. metadata:FILE answers SmartOS's mdata-get and its like, with
    /// the keys and values of a JSON object.
    #[arg(long, value_name = "[comN=]BACKEND", help_heading = "Devices")]
    pub serial: Vec<String>,
    /// Console (virtio-console, /dev/hvc0) on a back end as for --serial
    ///
    /// Keys: slot=DEVICE[.FUNCTION].
    #[arg(long, value_name = "BACKEND[,slot=…]", help_heading = "Devices")]
    pub console: Option<String>,
    /// Entropy source (virtio-rng)
    ///
    /// Keys: slot=DEVICE[.FUNCTION].
    #[arg(long, value_name = "slot=…", num_args = 0..=1, default_missing_value = "", help_heading = "Devices")]
    pub rng: Option<String>,
    /// Debug port of firmware and test kernels (0x402) on a back end as for --serial
    ///
    /// Keys: port=NUMBER.
    #[arg(long, value_name = "BACKEND[,port=…]", help_heading = "Devices")]
    pub debug_port: Option<String>,
    /// pvpanic device, by which the guest tells that it panicked
    #[arg(long, help_heading = "Devices")]
    pub pvpanic: bool,
    /// PS/2 keyboard controller: on or off [default: on with i440fx and bhyve, off with micro]
    #[arg(long, value_name = "on|off", help_heading = "Devices")]
    pub ps2: Option<String>,
    /// Paravirtual clock of KVM: on or off [default: on]
    #[arg(long, value_name = "on|off", help_heading = "Devices")]
    pub kvmclock: Option<String>,
    /// Drivers that find the virtio devices: both [default] those of virtio 0.9 and of virtio 1, legacy or modern alone
    #[arg(long, value_name = "both|legacy|modern", help_heading = "Devices")]
    pub virtio: Option<String>,
    /// Strings of SMBIOS type 1
    ///
    /// Keys: manufacturer, product, version, serial, sku, family.
    #[arg(long, value_name = "KEY=TEXT[,KEY=TEXT…]", help_heading = "Devices")]
    pub smbios: Vec<String>,

    /// After a reset by the guest: restart [default] in this process, or exit with status 5
    #[arg(long, value_name = "restart|exit", help_heading = "Life cycle")]
    pub on_reset: Option<String>,
    /// After a triple fault: reset [default] as by --on-reset, or exit with status 6
    #[arg(long, value_name = "reset|exit", help_heading = "Life cycle")]
    pub on_triple_fault: Option<String>,
    /// After a panic told through --pvpanic: report [default] and go on, or exit with status 7
    #[arg(long, value_name = "report|exit", help_heading = "Life cycle")]
    pub on_panic: Option<String>,
    /// Unix socket for control (QMP): query-status, query-stats, stop, cont, system_powerdown, system_reset, quit,
    /// block_resize, set_link
    ///
    /// It speaks qemu's protocol. block_resize gives a disk (device: its id) another size in bytes while the guest
    /// runs; without a size, what its file or device has by now. set_link pulls the cable of a network interface (name:
    /// its id) or plugs it in again (up: false or true).
    #[arg(long, value_name = "PATH", help_heading = "Life cycle")]
    pub qmp: Option<PathBuf>,
    /// File that has the process id while the process runs
    #[arg(long, value_name = "FILE", help_heading = "Life cycle")]
    pub pid_file: Option<PathBuf>,
    /// What becomes of a thread of the process that asks the host for what it does not need: strict (the process ends), log
    /// (the kernel's audit log has a line) or off (nothing is held back) [default: strict]
    #[arg(long, value_name = "strict|log|off", help_heading = "Life cycle")]
    pub sandbox: Option<String>,
    /// Empty directory to be the process's root once everything is open
    ///
    /// Keys: user=NAME (whose the process is from then on; only the superuser can say so).
    #[arg(long, value_name = "DIR[,user=NAME]", help_heading = "Life cycle")]
    pub jail: Option<String>,
    /// What is logged on stderr: a level (off, error, warn [default], info, debug, trace) and levels of modules
    #[arg(long, value_name = "LEVEL,MODULE=LEVEL…", help_heading = "Life cycle")]
    pub log: Vec<String>,
}

impl GuestArgs {
    /// The configuration: the file first, the options on top of it.
    // Cold, as what runs once is to be small: its pages stay in the process.
    #[cold]
    pub fn into_config(self) -> Result<VmConfig, ConfigError> {
        let mut config = match &self.config {
            Some(file) => VmConfig::read_json(file)?,
            None => VmConfig::default(),
        };
        self.put_machine(&mut config)?;
        self.put_memory(&mut config)?;
        self.put_devices(&mut config)?;
        self.put_life_cycle(&mut config)?;
        config.name_devices();
        Ok(config)
    }

    fn put_machine(&self, config: &mut VmConfig) -> Result<(), ConfigError> {
        set(&mut config.name, self.name.clone());
        set(&mut config.uuid, parsed("--uuid", &self.uuid)?.map(Some));
        set(&mut config.profile, named("--profile", &self.profile)?);
        set(&mut config.hypervisor, named("--hypervisor", &self.hypervisor)?.map(Some));
        set(&mut config.boot.kernel, self.kernel.clone());
        set(&mut config.boot.initrd, self.initrd.clone().map(Some));
        set(&mut config.boot.cmdline, self.cmdline.clone());
        if let Some(text) = &self.cpus {
            let count = text.parse::<u64>().map_err(|_| not_a_number("--cpus", text))?;
            config.cpus.count = u8::try_from(count).map_err(|_| ConfigError::setting("--cpus", vcpu_limits(count)))?;
        }
        set(&mut config.cpus.model, self.cpu_model.clone());
        if let Some(text) = &self.topology {
            let given = Options::read("--topology", text, None, &["sockets", "cores", "threads"])?;
            let part = |key| Ok::<u8, ConfigError>(given.number(key)?.unwrap_or(1));
            let (sockets, cores, threads) = (part("sockets")?, part("cores")?, part("threads")?);
            config.cpus.topology = Some(Topology { sockets, cores, threads });
        }
        if let Some(text) = &self.pin {
            let cpus = text.split(',').map(|cpu| cpu.trim().parse().map_err(|_| not_a_number("--pin", cpu)));
            config.cpus.pin = cpus.collect::<Result<_, _>>()?;
        }
        Ok(())
    }

    fn put_memory(&self, config: &mut VmConfig) -> Result<(), ConfigError> {
        let memory = &mut config.memory;
        set(&mut memory.size_bytes, size("--memory", &self.memory)?);
        set(&mut memory.huge_pages, named("--hugepages", &self.hugepages)?.map(Some));
        set(&mut memory.low_split_bytes, size("--low-split", &self.low_split)?.map(Some));
        if let Some(text) = &self.numa_node {
            memory.numa_node = Some(text.parse().map_err(|_| not_a_number("--numa-node", text))?);
        }
        memory.prealloc |= self.prealloc;
        memory.lock |= self.mlock;
        memory.shared |= self.shared_memory;
        memory.reservoir |= self.reservoir;
        Ok(())
    }

    #[cold]
    fn put_devices(&self, config: &mut VmConfig) -> Result<(), ConfigError> {
        for text in &self.disk {
            config.disks.push(disk(text)?);
        }
        for text in &self.limit_group {
            let given = Options::read("--limit-group", text, Some("name"), &LIMIT_KEYS)?;
            let name = given.required("name", "--limit-group tenant,limit_ops=1000")?;
            config.limit_groups.push(LimitGroupConfig { name, limits: limits(&given)? });
        }
        for text in &self.net {
            config.nets.push(net(text)?);
        }
        for (index, text) in self.serial.iter().enumerate() {
            let (port, backend) = com_port(index, text)?;
            config.serials[port] = Some(backend);
        }
        if let Some(text) = &self.console {
            let given = Options::read("--console", text, Some("backend"), &["slot"])?;
            config.console = Some(ConsoleConfig { backend: backend(&given)?, slot: given.value("slot")? });
        }
        if let Some(text) = &self.rng {
            let slot = match text.is_empty() {
                true => None,
                false => Options::read("--rng", text, None, &["slot"])?.value("slot")?,
            };
            config.rng = Some(RngConfig { slot });
        }
        if let Some(text) = &self.debug_port {
            let given = Options::read("--debug-port", text, Some("backend"), &["port"])?;
            let port = match given.text("port")? {
                Some(text) => io_port(&text).ok_or_else(|| given.problem(format!("port={text} is not an I/O port")))?,
                None => DebugPortConfig::DEFAULT_PORT,
            };
            config.debug_port = Some(DebugPortConfig { backend: backend(&given)?, port });
        }
        config.pvpanic |= self.pvpanic;
        set(&mut config.ps2, switch("--ps2", &self.ps2)?.map(Some));
        set(&mut config.kvmclock, switch("--kvmclock", &self.kvmclock)?);
        set(&mut config.virtio, named("--virtio", &self.virtio)?);
        for text in &self.smbios {
            let keys = ["manufacturer", "product", "version", "serial", "sku", "family"];
            let given = Options::read("--smbios", text, None, &keys)?;
            let smbios = &mut config.smbios;
            set(&mut smbios.manufacturer, given.text("manufacturer")?.map(Some));
            set(&mut smbios.product, given.text("product")?.map(Some));
            set(&mut smbios.version, given.text("version")?.map(Some));
            set(&mut smbios.serial, given.text("serial")?.map(Some));
            set(&mut smbios.sku, given.text("sku")?.map(Some));
            set(&mut smbios.family, given.text("family")?.map(Some));
        }
        Ok(())
    }

    fn put_life_cycle(&self, config: &mut VmConfig) -> Result<(), ConfigError> {
        set(&mut config.on_reset, named("--on-reset", &self.on_reset)?);
        set(&mut config.on_triple_fault, named("--on-triple-fault", &self.on_triple_fault)?);
        set(&mut config.on_panic, named("--on-panic", &self.on_panic)?);
        set(&mut config.qmp, self.qmp.clone().map(Some));
        set(&mut config.pid_file, self.pid_file.clone().map(Some));
        set(&mut config.sandbox, named("--sandbox", &self.sandbox)?);
        if let Some(text) = &self.jail {
            let given = Options::read("--jail", text, Some("dir"), &["user"])?;
            let dir = given.required("dir", "--jail /var/empty")?.into();
            config.jail = Some(JailConfig { dir, user: given.text("user")? });
        }
        for rule in self.log.iter().flat_map(|rules| rules.split(',')) {
            config.log.push(rule.trim().parse().map_err(|error| problem("--log", error))?);
        }
        Ok(())
    }
}

fn set<T>(place: &mut T, given: Option<T>) {
    if let Some(value) = given {
        *place = value;
    }
}

fn problem(option: &str, problem: impl std::fmt::Display) -> ConfigError {
    ConfigError::setting(option, problem.to_string())
}

fn not_a_number(option: &str, text: &str) -> ConfigError {
    problem(option, format!("'{text}' is not a number"))
}

fn parsed<T>(option: &str, text: &Option<String>) -> Result<Option<T>, ConfigError>
where
    T: std::str::FromStr<Err: std::fmt::Display>,
{
    text.as_ref().map(|text| text.parse().map_err(|error| problem(option, error))).transpose()
}

fn size(option: &str, text: &Option<String>) -> Result<Option<u64>, ConfigError> {
    text.as_ref().map(|text| parse_size(text).map_err(|error| problem(option, error))).transpose()
}

/// Reads one of a fixed set of words, through the names that JSON uses.
fn named<'a, T: Deserialize<'a>>(option: &str, text: &'a Option<String>) -> Result<Option<T>, ConfigError> {
    let Some(text) = text else { return Ok(None) };
    let word: StrDeserializer<'a, ValueError> = text.as_str().into_deserializer();
    T::deserialize(word).map(Some).map_err(|error| problem(option, reword(&error.to_string())))
}

fn switch(option: &str, text: &Option<String>) -> Result<Option<bool>, ConfigError> {
    text.as_ref().map(|text| on_off(text).map_err(|error| problem(option, error))).transpose()
}

fn disk(text: &str) -> Result<DiskConfig, ConfigError> {
    let keys = [
        "ro",
        "slot",
        "serial",
        "queues",
        "queue_size",
        "block_size",
        "physical_block_size",
        "packed",
        "in_order",
        "engine",
        "cache",
        "werror",
        "rerror",
        "id",
        "limit_group",
        "latency",
        "poll_us",
        "discard",
        "write_through",
    ];
    let keys = [&keys[..], &LIMIT_KEYS].concat();
    let given = Options::read("--disk", text, Some("path"), &keys)?;
    let defaults = DiskConfig::new(given.required("path", "--disk root.img")?);
    Ok(DiskConfig {
        id: given.text("id")?.unwrap_or_default(),
        read_only: given.flag("ro")?,
        slot: given.value("slot")?,
        serial: given.text("serial")?,
        queues: given.number("queues")?,
        queue_size: given.number("queue_size")?.unwrap_or(defaults.queue_size),
        block_size: given.number("block_size")?,
        physical_block_size: given.number("physical_block_size")?,
        packed: given.flag("packed")?,
        in_order: given.flag("in_order")?,
        engine: named("--disk: engine", &given.text("engine")?)?.unwrap_or_default(),
        limits: limits(&given)?,
        limit_group: given.text("limit_group")?,
        werror: named("--disk: werror", &given.text("werror")?)?.unwrap_or_default(),
        rerror: named("--disk: rerror", &given.text("rerror")?)?.unwrap_or_default(),
        latency: switch("--disk: latency", &given.text("latency")?)?.unwrap_or(defaults.latency),
        poll_us: given.number("poll_us")?,
        discard: switch("--disk: discard", &given.text("discard")?)?.unwrap_or(defaults.discard),
        write_through: switch("--disk: write_through", &given.text("write_through")?)?.unwrap_or_default(),
        cache: named("--disk: cache", &given.text("cache")?)?,
        path: defaults.path,
    })
}

const LIMIT_KEYS: [&str; 4] = ["limit_ops", "limit_ops_burst", "limit_bytes", "limit_bytes_burst"];

fn limits(given: &Options) -> Result<LimitConfig, ConfigError> {
    let bytes = |key| given.value(key).map(|size| size.map(|Size(bytes)| bytes));
    Ok(LimitConfig {
        ops: given.number("limit_ops")?,
        ops_burst: given.number("limit_ops_burst")?,
        bytes: bytes("limit_bytes")?,
        bytes_burst: bytes("limit_bytes_burst")?,
    })
}

fn net(text: &str) -> Result<NetConfig, ConfigError> {
    let keys =
        ["tap", "viona", "vnd", "dlpi", "macvtap", "fd", "mac", "slot", "queues", "queue_size", "packed", "in_order"];
    let keys =
        [&keys[..], &["mac_check", "vhost", "speed", "duplex", "id", "ip"], &VIONA_KEYS, &DHCP_KEYS, &NET_LIMIT_KEYS]
            .concat();
    let given = Options::read("--net", text, None, &keys)?;
    let example = "--net tap=tap0,mac=52:54:00:12:34:56";
    let (macvtap, fds) = (given.text("macvtap")?, descriptors(&given)?);
    let mut links = Vec::new();
    for carrier in [Carrier::Tap, Carrier::Viona, Carrier::Vnd, Carrier::Dlpi] {
        links.extend(given.text(carrier.key())?.map(|name| (name, carrier)));
    }
    let (tap, carrier) = match links.len() {
        0 if macvtap.is_some() || !fds.is_empty() => Default::default(),
        0 => (given.required("tap", example)?, Carrier::Tap),
        1 => links.swap_remove(0),
        _ => return Err(given.problem("tap, viona, vnd and dlpi are one link each; give one of them")),
    };
    // A TAP interface is usually made anew, with another address, so that its own is not a good one by default. Other links
    // are the guest's end, and have its address.
    if carrier == Carrier::Tap && macvtap.is_none() {
        given.required("mac", example)?;
    }
    Ok(NetConfig {
        tap,
        carrier,
        macvtap,
        fds,
        mac: given.value("mac")?,
        id: given.text("id")?.unwrap_or_default(),
        slot: given.value("slot")?,
        queues: given.number("queues")?,
        queue_size: given.number("queue_size")?.unwrap_or(NetConfig::DEFAULT_QUEUE_SIZE),
        packed: given.flag("packed")?,
        in_order: given.flag("in_order")?,
        limits: net_limits(&given)?,
        mac_check: given.flag("mac_check")?,
        vhost: given.flag("vhost")?,
        promiscuous: false,
        feature_mask: given.value::<Mask>("feature_mask")?.map_or(0, |Mask(mask)| mask),
        tx_copy_data: switch("--net: tx_copy_data", &given.text("tx_copy_data")?)?,
        tx_header_pad: given.number("tx_header_pad")?,
        dhcp: dhcp(&given)?,
        speed: given.number("speed")?,
        duplex: named("--net: duplex", &given.text("duplex")?)?,
    })
}

const VIONA_KEYS: [&str; 3] = ["feature_mask", "tx_copy_data", "tx_header_pad"];

/// The features of `feature_mask=0x800`.
struct Mask(u64);

impl FromStr for Mask {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        feature_mask(text).map(Self)
    }
}

/// The file descriptors of `fd=3:4`, none where it is not given.
fn descriptors(given: &Options) -> Result<Vec<i32>, ConfigError> {
    let Some(text) = given.text("fd")? else { return Ok(Vec::new()) };
    let number = |word: &str| {
        let bad = || given.problem(format!("fd={text}: '{word}' is not a file descriptor such as 3"));
        word.parse::<i32>().map_err(|_| bad())
    };
    text.split(':').map(number).collect()
}

const NET_LIMIT_KEYS: [&str; 8] = [
    "limit_rx_packets",
    "limit_rx_packets_burst",
    "limit_rx_bytes",
    "limit_rx_bytes_burst",
    "limit_tx_packets",
    "limit_tx_packets_burst",
    "limit_tx_bytes",
    "limit_tx_bytes_burst",
];

fn net_limits(given: &Options) -> Result<NetLimitConfig, ConfigError> {
    let bytes = |key| given.value(key).map(|size| size.map(|Size(bytes)| bytes));
    let rx = DirectionLimitConfig {
        packets: given.number("limit_rx_packets")?,
        packets_burst: given.number("limit_rx_packets_burst")?,
        bytes: bytes("limit_rx_bytes")?,
        bytes_burst: bytes("limit_rx_bytes_burst")?,
    };
    let tx = DirectionLimitConfig {
        packets: given.number("limit_tx_packets")?,
        packets_burst: given.number("limit_tx_packets_burst")?,
        bytes: bytes("limit_tx_bytes")?,
        bytes_burst: bytes("limit_tx_bytes_burst")?,
    };
    Ok(NetLimitConfig { rx, tx })
}

/// Keys that take `ip=`, beside that: the names of qemu's on SmartOS.
const DHCP_KEYS: [&str; 10] = [
    "netmask",
    "server_ip",
    "gateway_ip",
    "dns_ip",
    "dns_ip0",
    "dns_ip1",
    "dns_ip2",
    "dns_ip3",
    "hostname",
    "lease_time",
];

fn dhcp(given: &Options) -> Result<Option<DhcpConfig>, ConfigError> {
    let Some(ip) = given.value("ip")? else {
        for key in DHCP_KEYS {
            if given.text(key)?.is_some() {
                return Err(given.problem(format!("{key} is for ip=, the guest's address, which is not given")));
            }
        }
        return Ok(None);
    };
    given.required("netmask", "--net tap=tap0,mac=52:54:00:12:34:56,ip=10.0.0.5,netmask=255.255.255.0")?;
    let netmask = given.value("netmask")?.ok_or_else(|| given.problem("netmask is missing"))?;
    let defaults = DhcpConfig::new(ip, netmask);
    Ok(Some(DhcpConfig {
        server_ip: given.value("server_ip")?.unwrap_or(defaults.server_ip),
        gateway_ip: given.value("gateway_ip")?,
        dns_ips: dns_ips(given)?,
        hostname: given.text("hostname")?.unwrap_or_default(),
        lease_time: given.number("lease_time")?.unwrap_or(defaults.lease_time),
        ..defaults
    }))
}

fn dns_ips(given: &Options) -> Result<Vec<Ip>, ConfigError> {
    let single: Option<Ip> = given.value("dns_ip")?;
    let keys = ["dns_ip0", "dns_ip1", "dns_ip2", "dns_ip3"];
    let numbered: Vec<Option<Ip>> = keys.into_iter().map(|key| given.value(key)).collect::<Result<_, _>>()?;
    let count = numbered.iter().flatten().count();
    if let Some(missing) = numbered.iter().take(count).position(Option::is_none) {
        return Err(given.problem(format!("{} is missing before those that follow it", keys[missing])));
    }
    if single.is_some() && count > 0 {
        return Err(given.problem("dns_ip is dns_ip0 by another name; give one of them"));
    }
    Ok(single.into_iter().chain(numbered.into_iter().flatten()).collect())
}

fn com_port(index: usize, text: &str) -> Result<(usize, SerialBackend), ConfigError> {
    let named = text.split_once('=').filter(|(name, _)| name.starts_with("com"));
    let (port, backend) = match named {
        Some(("com1", backend)) => (0, backend),
        Some(("com2", backend)) => (1, backend),
        Some(("com3", backend)) => (2, backend),
        Some(("com4", backend)) => (3, backend),
        Some((name, _)) => return Err(problem("--serial", format!("'{name}' is not one of com1 to com4"))),
        None if index < 4 => (index, text),
        None => return Err(problem("--serial", "there are only four COM ports")),
    };
    Ok((port, backend.parse().map_err(|error| problem("--serial", error))?))
}

fn backend(given: &Options) -> Result<SerialBackend, ConfigError> {
    let text = given.required("backend", "stdio")?;
    text.parse().map_err(|error| given.problem(format!("{error}")))
}

fn io_port(text: &str) -> Option<u16> {
    match text.strip_prefix("0x") {
        Some(hex) => u16::from_str_radix(hex, 16).ok(),
        None => text.parse().ok(),
    }
}

#[cfg(test)]
#[path = "guest_tests.rs"]
mod tests;
