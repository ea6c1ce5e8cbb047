//! What the outer machine is given: the tools disk (VMMs, kernels, guests) and its own initial RAM file system. Made once
//! and kept until something it was made of changes.

use std::fmt::Write as _;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::Context as _;

use super::images::{self, Initramfs};
use super::job::Job;
use super::kernel::{self, Kernel, Which};
use crate::{debian, paths};

/// Modules of the outer machine.
const OUTER_MODULES: [&str; 9] =
    ["irqbypass", "kvm", "kvm-amd", "tun", "vhost_net", "virtio_pci", "virtio_blk", "virtio_net", "8021q"];

/// Modules of the guests.
const GUEST_MODULES: [&str; 9] = [
    "virtio_pci",
    "virtio_mmio",
    "virtio_blk",
    "virtio_net",
    "virtio_console",
    "virtio-rng",
    "evdev",
    "button",
    "failover",
];

/// And of guests whose disks are put to the proof.
const STORAGE_MODULES: [&str; 1] = ["xfs"];

/// And of guests that set up their network interface in all ways.
const NETWORK_MODULES: [&str; 1] = ["8021q"];
/// Their programs: a set of packages, and which of its programs.
const NETWORK_PROGRAMS: [(&str, &[&str], &[&str]); 6] = [
    ("root", &ROOT_PACKAGES, &["ip", "ping"]),
    ("ethtool", &["ethtool"], &["ethtool"]),
    ("dhclient", &["isc-dhcp-client"], &["dhclient"]),
    ("iperf3", &["iperf3"], &["iperf3"]),
    ("tcpdump", &["tcpdump"], &["tcpdump"]),
    ("networkd", &["systemd"], &["usr/lib/systemd/systemd-networkd"]),
];
/// And what some of these want to find: path and content.
const NETWORK_FILES: [(&str, &str); 3] = [
    ("etc/passwd", "root:x:0:0:root:/root:/bin/sh\nsystemd-network:x:998:998::/:/bin/false\n"),
    ("etc/group", "root:x:0:\nsystemd-network:x:998:\n"),
    ("etc/machine-id", "0123456789abcdef0123456789abcdef\n"),
];

/// Packages of the Debian guest root: a sysvinit system with a shell, no service that is not needed to check a VMM.
const ROOT_PACKAGES: [&str; 22] = [
    "base-files",
    "base-passwd",
    "bash",
    "coreutils",
    "dash",
    "debianutils",
    "e2fsprogs",
    "findutils",
    "gawk",
    "grep",
    "hostname",
    "iproute2",
    "iputils-ping",
    "kmod",
    "mount",
    "netcat-openbsd",
    "procps",
    "sed",
    "sysvinit-core",
    "udev",
    "util-linux",
    "acpid",
];

const OUTER_INIT: &str = include_str!("../../files/outer-init.sh");
const GUEST_INIT: &str = include_str!("../../files/guest-init.sh");
const GUEST_SHELL: &str = include_str!("../../files/guest-shell.sh");
const POWER_BUTTON: &str = "#!/bin/sh\necho LAB-POWER-BUTTON > /dev/console\npoweroff -f\n";
/// Files laid over the Debian guest root: path, mode, content.
const ROOT_FILES: [(&str, u32, &str); 6] = [
    ("etc/inittab", 0o644, include_str!("../../files/root/inittab")),
    ("etc/lab/start", 0o755, include_str!("../../files/root/start")),
    ("etc/lab/stop", 0o755, include_str!("../../files/root/stop")),
    ("etc/lab/shell", 0o755, include_str!("../../files/root/shell")),
    ("etc/acpi/events/power", 0o644, "event=button/power.*\naction=/sbin/shutdown -h -P now\n"),
    ("etc/hostname", 0o644, "lab\n"),
];

/// What an outer boot needs, ready on this machine's disk.
pub struct Content {
    /// The ext4 image mounted on `/tools`.
    pub tools: PathBuf,
    /// Where qemu for the outer machine was unpacked.
    pub qemu: PathBuf,
    /// The same content as a folder.
    pub tools_tree: PathBuf,
    /// Where the program of that name is.
    pub peer_path: PathBuf,
    /// Where the static busybox is.
    pub busybox_path: PathBuf,
    /// What guests without a disk of their own, and qemu, are made of.
    pub identity: String,
    busybox: Vec<u8>,
    outer_kernels: Vec<OuterKernel>,
}

/// A kernel that the outer machine can have.
struct OuterKernel {
    which: Which,
    image: PathBuf,
    modules: Vec<(String, Vec<u8>)>,
}

/// Where things are on the tools disk.
pub mod at {
    use super::Which;

    /// The Debian guest root.
    pub const ROOT_IMAGE: &str = "/tools/debian-root.img";

    /// A kernel, as bzImage or as ELF image.
    #[must_use]
    pub fn kernel(which: Which, elf: bool) -> String {
        format!("/tools/{}-{}", if elf { "vmlinux" } else { "vmlinuz" }, which.name())
    }

    /// The guests' initial RAM file system for a kernel.
    #[must_use]
    pub fn initrd(which: Which) -> String {
        format!("/tools/initrd-{}", which.name())
    }

    /// That of the attacker: not on the tools disk, so that a change of it costs no new disk.
    pub const ATTACKER: &str = "/initrd-attacker";

    /// That of Debian's own kernel with more file systems: made when it is needed, too.
    pub const STORAGE: &str = "/initrd-storage";

    /// That of Debian's own kernel with VLANs, and with programs in `/network/bin` that see to networks, likewise.
    pub const NETWORK: &str = "/initrd-network";

    /// The same of the newer kernel.
    pub const NETWORK_BACKPORTS: &str = "/initrd-network-backports";

    /// A disk with `fio`, to be mounted on `/fio`, likewise.
    pub const FIO: &str = "/fio.img";

    /// That of Debian's own kernel with `lscpu` in it.
    #[must_use]
    pub fn initrd_with_lscpu() -> String {
        format!("{}-lscpu", initrd(Which::Stable))
    }
}

/// Fetches and builds everything that is missing or out of date; `peer` is the program of that name, static.
///
/// # Errors
/// When a package cannot be had or an image cannot be made.
pub fn prepare(peer: &Path) -> anyhow::Result<Content> {
    let peer_path = peer.to_owned();
    let peer = fs::read(peer)?;
    let lab = paths::lab();
    fs::create_dir_all(&lab)?;
    let lock = fs::File::create(lab.join(".content.lock"))?;
    lock.lock().context("cannot take the lock of the lab's images")?;

    let qemu = debian::unpack("qemu", &["qemu-system-x86", "seabios"])?;
    let busybox_root = debian::unpack("busybox", &["busybox-static"])?;
    let busybox_path = debian::program_path(&busybox_root, "bin/busybox")?;
    let busybox = fs::read(&busybox_path)?;
    let kernels = Which::ALL.map(kernel::get).into_iter().collect::<anyhow::Result<Vec<Kernel>>>()?;
    let outer = |kernel: &Kernel| -> anyhow::Result<OuterKernel> {
        Ok(OuterKernel { which: kernel.which, image: kernel.bzimage.clone(), modules: kernel.modules(&OUTER_MODULES)? })
    };

    let tools = lab.join("tools.img");
    let tools_tree = lab.join("tools");
    let stamp_path = lab.join("tools.stamp");
    let stamp = stamp(&kernels, &peer)?;
    if !tools.exists() || fs::read_to_string(&stamp_path).ok().as_ref() != Some(&stamp) {
        eprintln!("lab: making the tools disk");
        let _ = fs::remove_file(&stamp_path);
        make_tools(&tools_tree, &tools, &qemu, [&busybox, &peer], &kernels)?;
        fs::write(&stamp_path, stamp)?;
    }
    Ok(Content {
        identity: identity(&kernels)?,
        outer_kernels: kernels.iter().map(outer).collect::<anyhow::Result<_>>()?,
        tools,
        tools_tree,
        qemu,
        peer_path,
        busybox_path,
        busybox,
    })
}

impl Content {
    fn outer(&self, which: Which) -> anyhow::Result<&OuterKernel> {
        self.outer_kernels.iter().find(|kernel| kernel.which == which).context("no such kernel")
    }

    /// The outer machine's kernel.
    ///
    /// # Errors
    /// Never in practice: both are there.
    pub fn outer_kernel(&self, which: Which) -> anyhow::Result<&Path> {
        Ok(&self.outer(which)?.image)
    }

    /// The outer machine's initial RAM file system for a kernel, with a job, the runner and programs (path there, file here).
    ///
    /// # Errors
    /// When a program cannot be read.
    pub fn outer_initrd(
        &self,
        which: Which,
        job: &Job,
        runner: &Path,
        programs: &[(String, PathBuf)],
    ) -> anyhow::Result<Vec<u8>> {
        let mut fs = Initramfs::new()?;
        fs.file("bin/busybox", &self.busybox)?;
        fs.link("bin/sh", "busybox")?;
        fs.file("init", OUTER_INIT.as_bytes())?;
        fs.modules(&self.outer(which)?.modules)?;
        fs.file("job.json", &serde_json::to_vec(job)?)?;
        let mut program = |name: &str, path: &Path| -> anyhow::Result<()> {
            let content = std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
            fs.file(name, &content)
        };
        program("bin/lab-runner", runner)?;
        program("bin/lab-peer", &self.peer_path)?;
        for (to, from) in programs {
            program(to, from)?;
        }
        fs.finish()
    }
}

/// The initial RAM file system whose init is the attacker, made anew.
///
/// # Errors
/// When it cannot be written.
pub fn attacker_initrd(attacker: &Path) -> anyhow::Result<PathBuf> {
    let path = paths::lab().join("initrd-attacker");
    let mut archive = Initramfs::new()?;
    archive.file("init", &fs::read(attacker)?)?;
    // Whole or not at all: another lab may be reading it.
    let fresh = path.with_extension(format!("new{}", std::process::id()));
    fs::write(&fresh, archive.finish()?)?;
    fs::rename(fresh, &path)?;
    Ok(path)
}

/// The initial RAM file system of guests whose disks are put to the proof, made anew.
///
/// # Errors
/// When it cannot be written.
pub fn storage_initrd(content: &Content) -> anyhow::Result<PathBuf> {
    let modules = GUEST_MODULES.into_iter().chain(STORAGE_MODULES).collect::<Vec<_>>();
    let programs = [&content.busybox[..], &fs::read(&content.peer_path)?];
    let archive = guest_initrd(&kernel::get(Which::Stable)?, programs, &modules, None)?;
    let path = paths::lab().join("initrd-storage");
    let fresh = path.with_extension(format!("new{}", std::process::id()));
    fs::write(&fresh, archive)?;
    fs::rename(fresh, &path)?;
    Ok(path)
}

/// The initial RAM file system of guests that set up their network interface in all ways, made anew.
///
/// # Errors
/// When a package cannot be had, or it cannot be written.
pub fn network_initrd(content: &Content, which: Which) -> anyhow::Result<PathBuf> {
    let stage = paths::lab().join(format!("network.stage{}", std::process::id()));
    debian::remove_tree(&stage)?;
    for (set, packages, programs) in NETWORK_PROGRAMS {
        let root = debian::unpack(set, packages)?;
        for program in programs {
            images::stage_program(&root, program, &stage.join("network"), "/network")?;
        }
    }
    for (path, content) in NETWORK_FILES {
        let path = stage.join(path);
        fs::create_dir_all(path.parent().unwrap_or(&stage))?;
        fs::write(path, content)?;
    }
    let modules = GUEST_MODULES.into_iter().chain(NETWORK_MODULES).collect::<Vec<_>>();
    let programs = [&content.busybox[..], &fs::read(&content.peer_path)?];
    let archive = guest_initrd(&kernel::get(which)?, programs, &modules, Some(&stage))?;
    debian::remove_tree(&stage)?;
    let path = paths::lab().join(format!("initrd-network-{}", which.name()));
    let fresh = path.with_extension(format!("new{}", std::process::id()));
    fs::write(&fresh, archive)?;
    fs::rename(fresh, &path)?;
    Ok(path)
}

/// The disk with Debian's `fio`, which wants four dozen libraries: kept until the package changes.
///
/// # Errors
/// When the package cannot be had, or the disk not be made.
pub fn fio_image() -> anyhow::Result<PathBuf> {
    let lab = paths::lab();
    let (image, stamp_path) = (lab.join("fio.img"), lab.join("fio.stamp"));
    let root = debian::unpack("fio", &["fio"])?;
    let lock = fs::File::create(lab.join(".fio.lock"))?;
    lock.lock().context("cannot take the lock of fio's image")?;
    let stamp = fs::read_to_string(lab.join("debian/fio.json"))?;
    if !image.exists() || fs::read_to_string(&stamp_path).ok().as_ref() != Some(&stamp) {
        let stage = lab.join("fio.stage");
        debian::remove_tree(&stage)?;
        images::stage_program(&root, "fio", &stage, "/fio")?;
        images::ext4(&stage, &image, 4)?;
        debian::remove_tree(&stage)?;
        fs::write(stamp_path, stamp)?;
    }
    Ok(image)
}

/// What decides what guests' kernels say, in a few lines of text.
fn identity(kernels: &[Kernel]) -> anyhow::Result<String> {
    let mut text = fs::read_to_string(paths::lab().join("debian/qemu.json"))?;
    for kernel in kernels {
        write!(text, " {}", kernel.release)?;
    }
    let init = format!("{GUEST_MODULES:?} {GUEST_INIT} {GUEST_SHELL} {OUTER_INIT}");
    write!(text, " {:x}", crc32fast::hash(init.as_bytes()))?;
    Ok(format!("{:x} {:x}", text.len(), crc32fast::hash(text.as_bytes())))
}

/// Everything the tools disk is made of, in a few lines of text: when it changes, so must the disk.
fn stamp(kernels: &[Kernel], peer: &[u8]) -> anyhow::Result<String> {
    let mut text = String::new();
    for kernel in kernels {
        writeln!(text, "{}", kernel.release)?;
    }
    for set in ["qemu", "busybox", "e2fsprogs", "root"] {
        text += &fs::read_to_string(paths::lab().join("debian").join(format!("{set}.json"))).unwrap_or_default();
    }
    writeln!(text, "{ROOT_PACKAGES:?} {GUEST_MODULES:?} {GUEST_INIT} {GUEST_SHELL} {POWER_BUTTON} {ROOT_FILES:?}")?;
    // The code that makes it: this program's own source files.
    for file in [include_str!("content.rs"), include_str!("images.rs")] {
        writeln!(text, "{} {:x}", file.len(), crc32fast::hash(file.as_bytes()))?;
    }
    writeln!(text, "{} {:x}", peer.len(), crc32fast::hash(peer))?;
    Ok(text)
}

fn make_tools(stage: &Path, tools: &Path, qemu: &Path, programs: [&[u8]; 2], kernels: &[Kernel]) -> anyhow::Result<()> {
    debian::remove_tree(stage)?;
    fs::create_dir_all(stage)?;
    for kernel in kernels {
        let which = kernel.which;
        let place = |path: String| stage.join(path.trim_start_matches("/tools/"));
        fs::copy(&kernel.bzimage, place(at::kernel(which, false)))?;
        fs::copy(&kernel.vmlinux, place(at::kernel(which, true)))?;
        fs::write(place(at::initrd(which)), guest_initrd(kernel, programs, &GUEST_MODULES, None)?)?;
    }
    let with_lscpu = stage.join(at::initrd_with_lscpu().trim_start_matches("/tools/"));
    fs::write(with_lscpu, guest_initrd(&kernels[0], programs, &GUEST_MODULES, Some(&lscpu()?))?)?;
    images::stage_program(qemu, "qemu-system-x86_64", stage, "/tools")?;
    let e2fsprogs = debian::unpack("e2fsprogs", &["e2fsprogs"])?;
    images::stage_program(&e2fsprogs, "e2fsck", stage, "/tools")?;
    for folder in ["qemu", "seabios"] {
        let to = stage.join("share").join(folder);
        fs::create_dir_all(&to)?;
        for file in ["bios-256k.bin", "bios-microvm.bin", "linuxboot_dma.bin", "pvh.bin", "kvmvapic.bin", "qboot.rom"] {
            let from = qemu.join("usr/share").join(folder).join(file);
            if from.is_file() {
                fs::copy(&from, to.join(file))?;
            }
        }
    }
    make_debian_root(&stage.join(at::ROOT_IMAGE.trim_start_matches("/tools/")))?;
    // Room for what scenarios copy and create.
    images::ext4(stage, tools, 1024)
}

/// A folder with Debian's `lscpu` and what it needs.
fn lscpu() -> anyhow::Result<PathBuf> {
    let stage = paths::lab().join("lscpu.stage");
    debian::remove_tree(&stage)?;
    images::stage_program(&debian::unpack("root", &ROOT_PACKAGES)?, "lscpu", &stage, "")?;
    Ok(stage)
}

fn guest_initrd(
    kernel: &Kernel,
    [busybox, peer]: [&[u8]; 2],
    modules: &[&str],
    more: Option<&Path>,
) -> anyhow::Result<Vec<u8>> {
    let mut fs = Initramfs::new()?;
    fs.file("bin/busybox", busybox)?;
    fs.link("bin/sh", "busybox")?;
    fs.file("bin/lab-peer", peer)?;
    fs.file("init", GUEST_INIT.as_bytes())?;
    fs.file("shell.sh", GUEST_SHELL.as_bytes())?;
    fs.file("etc/acpi/PWRF/00000080", POWER_BUTTON.as_bytes())?;
    fs.modules(&kernel.modules(modules)?)?;
    if let Some(folder) = more {
        fs.tree(folder, "")?;
    }
    fs.finish()
}

/// A Debian root file system of unpacked packages with the few files that maintainer scripts would have made.
fn make_debian_root(image: &Path) -> anyhow::Result<()> {
    let packages = debian::unpack("root", &ROOT_PACKAGES)?;
    let root = paths::lab().join("root.stage");
    debian::remove_tree(&root)?;
    images::copy_tree(&packages, &root)?;
    for waste in ["usr/share/doc", "usr/share/man", "usr/share/locale", "usr/share/info", "usr/share/bash-completion"] {
        debian::remove_tree(&root.join(waste))?;
    }
    for folder in ["proc", "sys", "dev", "run", "tmp", "root", "etc/acpi/events", "etc/lab"] {
        fs::create_dir_all(root.join(folder))?;
    }
    for name in ["passwd", "group"] {
        fs::copy(root.join("usr/share/base-passwd").join(format!("{name}.master")), root.join("etc").join(name))?;
    }
    let sh = root.join("usr/bin/sh");
    if !sh.exists() {
        std::os::unix::fs::symlink("dash", sh)?;
    }
    if !root.join("usr/bin/awk").exists() {
        std::os::unix::fs::symlink("gawk", root.join("usr/bin/awk"))?;
    }
    if !root.join("usr/bin/nc").exists() {
        std::os::unix::fs::symlink("nc.openbsd", root.join("usr/bin/nc"))?;
    }
    for (path, mode, content) in ROOT_FILES {
        let path = root.join(path);
        fs::write(&path, content)?;
        fs::set_permissions(&path, fs::Permissions::from_mode(mode))?;
    }
    images::ext4(&root, image, 64)?;
    debian::remove_tree(&root)
}
