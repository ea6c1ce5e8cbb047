//! What bhyve knows and what becomes of it here, as tables: the parser, the help and the manual read the same ones.

use super::super::nearest;

/// What becomes of an option, a device or a key of bhyve's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Support {
    /// It means what it means to bhyve.
    Implemented,
    /// It is accepted without an effect; the text says why that is right.
    Ignored(&'static str),
    /// Display or firmware that zvmm does not have yet: accepted, said once in the log, and the guest runs without it.
    NotBuilt,
    /// There is no guest; the text says why, or what to do.
    Refused(&'static str),
}

/// A word with a meaning: an option letter, a driver of `-s`, a key of a device, of `-l` or `-o`.
#[derive(Debug, Clone, Copy)]
pub struct Word {
    /// The word; a key that ends in `.*` stands for all that begin so.
    pub word: &'static str,
    /// What its argument is; empty where it takes none.
    pub argument: &'static str,
    /// What it means to bhyve.
    pub meaning: &'static str,
    /// What becomes of it.
    pub support: Support,
}

const fn word(word: &'static str, argument: &'static str, meaning: &'static str, support: Support) -> Word {
    Word { word, argument, meaning, support }
}

use Support::{Ignored, Implemented, NotBuilt, Refused};

/// Every option letter of illumos' bhyve.
pub static LETTERS: [Word; 25] = [
    word(
        "a",
        "",
        "local APIC in xAPIC mode",
        Ignored("the local APIC starts in xAPIC mode, and the guest may leave it"),
    ),
    word("A", "", "build ACPI tables", Ignored("a guest always has them")),
    word("B", "1,KEY=VALUE,…", "strings of SMBIOS type 1", Implemented),
    word("c", "N or cpus=N,sockets=N,cores=N,threads=N", "vCPUs and their topology", Implemented),
    word("C", "", "guest memory in core files", Refused("guest memory is never written to core files; leave it out")),
    word("d", "", "vCPU 0 held at start", Refused("a guest starts at once; leave it out")),
    word("D", "", "destroy the VM on power-off", Ignored("the VM goes with its process, but for a reset")),
    word("e", "", "end on an unknown I/O port", Ignored("a port that nobody answers reads as ones and ends no guest")),
    word("G", "[w]PORT", "debugger stub", Refused("there is no debugger stub; leave it out")),
    word("h", "", "help", Implemented),
    word("H", "", "leave the guest on HLT", Ignored("a halted vCPU always gives its host CPU away")),
    word("I", "", "none", Ignored("bhyve ignores it, too")),
    word("k", "FILE", "configuration file", Refused("bhyve's files are not read; give the options themselves")),
    word("l", "DEVICE,CONF", "device behind the LPC bridge", Implemented),
    word("m", "SIZE", "memory: MiB where it is a number below 1048576, else bytes; or with k, m, g, t", Implemented),
    word("o", "KEY=VALUE", "configuration value", Implemented),
    word("P", "", "leave the guest on PAUSE", Ignored("spinning vCPUs are the hypervisor's matter")),
    word("s", "SLOT,DRIVER,CONF", "PCI device at DEVICE, DEVICE:FUNCTION or BUS:DEVICE:FUNCTION", Implemented),
    word("S", "", "wired memory", Implemented),
    word("u", "", "RTC in UTC", Ignored("the clock is always in UTC")),
    word("U", "UUID", "UUID of SMBIOS type 1", Implemented),
    word("w", "", "ignore unknown MSRs", Ignored("the MSRs that known guests touch are always answered")),
    word("W", "", "virtio without MSI-X", Ignored("every device has INTx beside MSI-X, and the guest chooses")),
    word("x", "", "x2APIC", Ignored("it is offered wherever the hypervisor has it")),
    word("Y", "", "no MP table", Ignored("there never is one; the vCPUs are in the ACPI tables")),
];

/// Every driver of `-s`.
pub static DRIVERS: [Word; 21] = [
    word("hostbridge", "[model=i440fx]", "host bridge, at 0", Implemented),
    word("lpc", "", "LPC bridge, at 31", Implemented),
    word("virtio-blk", "PATH[,KEY…]", "disk", Implemented),
    word("virtio-net-viona", "LINK[,KEY…]", "network interface", Implemented),
    word("virtio-rnd", "", "entropy source", Implemented),
    word("virtio-console", "NAME=SOCKET", "console with one port on a socket", Implemented),
    word("fbuf", "KEY…", "frame buffer with VNC", NotBuilt),
    word("xhci", "tablet", "USB controller with a tablet", NotBuilt),
    word("nvme", "", "NVMe disk", Refused("use virtio-blk")),
    word("ahci", "", "AHCI controller", Refused("use virtio-blk for each disk")),
    word("ahci-hd", "", "AHCI disk", Refused("use virtio-blk")),
    word("ahci-cd", "", "AHCI CD", Refused("use virtio-blk with ro")),
    word("passthru", "", "device of the host", Refused("devices of the host cannot be given to a guest")),
    word("virtio-9p", "", "shared folder", Refused("there are no shared folders")),
    word("virtio-scsi", "", "SCSI controller", Refused("use virtio-blk for each disk")),
    word("virtio-net", "", "network interface of other systems' bhyve", Refused("use virtio-net-viona")),
    word("virtio-input", "", "input device", Refused("there is no display")),
    word("e1000", "", "Intel network interface", Refused("use virtio-net-viona")),
    word("hda", "", "sound", Refused("there is no sound")),
    word("uart", "", "PCI serial port", Refused("use -l com1 to com4")),
    word("amd_hostbridge", "", "host bridge of AMD", Refused("use hostbridge,model=i440fx")),
];

/// Every device of `-l`.
pub static LPC_DEVICES: [Word; 7] = [
    word("bootrom", "PATH[,VARIABLES]", "firmware", NotBuilt),
    word("com1", "DEVICE, stdio or socket,PATH", "first serial line", Implemented),
    word("com2", "DEVICE, stdio or socket,PATH", "second serial line", Implemented),
    word("com3", "DEVICE, stdio or socket,PATH", "third serial line", Implemented),
    word("com4", "DEVICE, stdio or socket,PATH", "fourth serial line", Implemented),
    word("tpm", "", "TPM", Refused("there is no TPM")),
    word("pc-testdev", "", "device of kvm-unit-tests", Refused("there is none; leave it out")),
];

/// Keys of a virtio-blk disk, behind its path.
pub static DISK_KEYS: [Word; 9] = [
    word("nocache", "", "around the host's page cache", Implemented),
    word("sync", "", "each write is on the disk when it ends", Implemented),
    word("direct", "", "each write is on the disk when it ends", Implemented),
    word("ro", "", "the guest cannot write", Implemented),
    word("nodelete", "", "no DISCARD", Implemented),
    word("sectorsize", "LOGICAL[/PHYSICAL]", "blocks the guest sees", Implemented),
    word("ser", "TEXT", "serial number", Implemented),
    word("serial", "TEXT", "serial number", Implemented),
    word("bootindex", "N", "place in the firmware's boot order", NotBuilt),
];

/// Keys of a network interface, behind its link.
pub static NET_KEYS: [Word; 9] = [
    word("vqsize", "N", "descriptors a queue, up to 1024", Implemented),
    word("qpair", "N", "queue pairs, up to 16; one when not given", Implemented),
    word("feature_mask", "MASK", "features not to offer, a bit each", Implemented),
    word("promiscphys", "BOOL", "frames of the whole link, and the guest may change its address", Implemented),
    word("tx_copy_data", "BOOL", "viona's: copy what is sent (zvmm's own key)", Implemented),
    word("tx_header_pad", "N", "viona's: bytes free before what is sent (zvmm's own key)", Implemented),
    word("promiscrxonly", "BOOL", "of the others only received frames", Ignored(ALL_FRAMES)),
    word("promiscsap", "BOOL", "frames of every protocol", Ignored(ALL_FRAMES)),
    word("promiscmulti", "BOOL", "frames of every group", Ignored(ALL_FRAMES)),
];

const ALL_FRAMES: &str = "an interface has its own frames and those of groups, or all of them";

/// Keys of `-o`: bhyve's that mean something here, and our own. Others are stored by bhyve without a word.
pub static KEYS: [Word; 20] = [
    word("zvmm.kernel", "PATH", "kernel to boot in place of a ROM: a bzImage or an ELF file", Implemented),
    word("zvmm.initrd", "PATH", "its initial RAM disk", Implemented),
    word("zvmm.cmdline", "TEXT", "its command line; given again, TEXT follows after a blank", Implemented),
    word("zvmm.qmp", "PATH", "control socket (docs/qmp.md)", Implemented),
    word("zvmm.sandbox", "MODE", "what the process gives up: strict, log or off (docs/sandbox.md)", Implemented),
    word("memory.size", "SIZE", "as -m", Implemented),
    word("memory.wired", "BOOL", "as -S", Implemented),
    word("memory.use_reservoir", "BOOL", "memory that the host's administrator has set aside", Implemented),
    word("cpus", "N", "as -c", Implemented),
    word("sockets", "N", "as -c", Implemented),
    word("cores", "N", "as -c", Implemented),
    word("threads", "N", "as -c", Implemented),
    word("uuid", "UUID", "as -U", Implemented),
    word("config.dump", "BOOL", "print the configuration (here: as JSON) and run no guest", Implemented),
    word("virtio.legacy", "BOOL", "whether drivers of virtio 0.9 find the devices", Implemented),
    word("virtio.modern", "BOOL", "whether drivers of virtio 1 find the devices", Implemented),
    word("privileges.debug", "BOOL", "log what the process gives up, step by step", Implemented),
    word("acpi_tables", "BOOL", "as -A", Ignored("a guest always has them")),
    word("pci.*", "", "devices", Refused("give devices with -s")),
    word("lpc.*", "", "devices behind the LPC bridge", Refused("give devices with -l")),
];

/// The entry of a word.
pub(super) fn find<'a>(words: &'a [Word], wanted: &str) -> Option<&'a Word> {
    words.iter().find(|entry| match entry.word.strip_suffix('*') {
        Some(prefix) => wanted.starts_with(prefix),
        None => entry.word == wanted,
    })
}

/// "unknown `what` 'wrong'", with the nearest of the words that could have been meant.
pub(super) fn unknown(what: &str, wrong: &str, words: &[Word]) -> String {
    let usable = words.iter().filter(|entry| !matches!(entry.support, Refused(_)));
    nearest::unknown(what, wrong, usable.map(|entry| entry.word))
}
