//! One description of a guest, and the command line each VMM takes for it.

use anyhow::ensure;
use clap::ValueEnum;

use super::job::QMP;

/// The programs a scenario can run with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub enum Program {
    /// zvmm on the KVM of where it runs.
    Zvmm,
    /// zvmm's bhyve backend on the double of that driver.
    ZvmmDoubleBhyve,
    /// zvmm's illumos KVM backend on the double of that driver.
    ZvmmDoubleIllumosKvm,
    /// qemu with the q35 machine: the control of every comparison.
    QemuQ35,
    /// qemu with the microvm machine.
    QemuMicrovm,
}

/// The machines zvmm can show its guests.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub enum Profile {
    /// As qemu's pc.
    I440fx,
    /// The fastest direct boot.
    Micro,
    /// As bhyve's.
    Bhyve,
}

/// What runs the guests of a scenario.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, clap::Args)]
pub struct Vmm {
    /// The VMM to run guests with
    #[arg(long = "vmm", value_enum, default_value = "zvmm")]
    pub program: Program,
    /// The machine that zvmm shows them [default: i440fx]
    #[arg(long, value_enum, default_value = "i440fx", hide_default_value = true)]
    pub profile: Profile,
}

/// A guest.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Machine {
    /// Number of vCPUs.
    pub cpus: u32,
    /// Sockets, cores a socket and threads a core, when they are not to be the VMM's own choice.
    pub topology: Option<[u32; 3]>,
    /// Memory, MiB.
    pub memory_mib: u64,
    /// Memory below 4 GiB, MiB, when it is not to be as much as fits.
    pub low_split_mib: Option<u64>,
    /// Path of the kernel image.
    pub kernel: String,
    /// Path of the initial RAM file system.
    pub initrd: String,
    /// Kernel command line.
    pub cmdline: String,
    /// Raw disk images.
    pub disks: Vec<String>,
    /// TAP device and MAC address of each network interface.
    pub nics: Vec<(String, String)>,
    /// More keys of zvmm's for each of them, a comma before each.
    pub nic_keys: String,
    /// Keys for those that the kernel of a double carries instead, likewise.
    pub carried_keys: String,
    /// And what their links in that kernel are, likewise.
    pub link_keys: String,
    /// Offer packed virtqueues.
    pub packed: bool,
    /// Which drivers find the devices, when it is not to be the VMM's own choice.
    pub virtio: Option<&'static str>,
    /// Have the kernel do the disks' work.
    pub io_uring: bool,
    /// Whether the disks go through the host's page cache, when that is not to be the VMM's own choice.
    pub buffered: Option<bool>,
    /// Virtqueues of each disk, when they are not to be the VMM's own choice.
    pub queues: Option<u16>,
    /// Serial numbers of the first disks.
    pub serials: Vec<String>,
    /// A console of virtio's own, which nobody reads.
    pub console: bool,
    /// An entropy source.
    pub rng: bool,
    /// CPU model and changes to it.
    pub cpu: String,
    /// Offer KVM's clock.
    pub kvmclock: bool,
    /// End the VMM when the guest resets instead of restarting it.
    pub reset_ends: bool,
}

impl Vmm {
    /// zvmm with its default profile.
    pub const ZVMM: Self = Self { program: Program::Zvmm, profile: Profile::I440fx };
    /// zvmm with the `micro` profile.
    pub const MICRO: Self = Self { profile: Profile::Micro, ..Self::ZVMM };
    /// qemu with the q35 machine.
    pub const Q35: Self = Self { program: Program::QemuQ35, ..Self::ZVMM };
    /// qemu with the microvm machine.
    pub const MICROVM: Self = Self { program: Program::QemuMicrovm, ..Self::ZVMM };

    /// Its name in logs: the program's, and the profile's unless that is the default.
    #[must_use]
    pub fn name(self) -> String {
        let word =
            |value: Option<clap::builder::PossibleValue>| value.map_or_else(String::new, |v| v.get_name().to_owned());
        let program = word(self.program.to_possible_value());
        match self.profile {
            Profile::I440fx => program,
            profile => format!("{program}-{}", word(profile.to_possible_value())),
        }
    }

    /// Refuses what does not exist.
    ///
    /// # Errors
    /// When qemu is to show one of zvmm's machines.
    pub fn check(self) -> anyhow::Result<()> {
        ensure!(self.is_zvmm() || self.profile == Profile::I440fx, "--profile is about zvmm: qemu has no profiles");
        Ok(())
    }

    /// Whether it is ours.
    #[must_use]
    pub const fn is_zvmm(self) -> bool {
        !matches!(self.program, Program::QemuQ35 | Program::QemuMicrovm)
    }

    /// Whether its guests get KVM's clock when they may have it: bhyve has none.
    #[must_use]
    pub const fn has_kvmclock(self) -> bool {
        !matches!(self.program, Program::ZvmmDoubleBhyve)
    }

    /// The program of the workspace that it is: package and binary. `None` when it comes from Debian.
    #[must_use]
    pub const fn built_from(self) -> Option<&'static str> {
        match self.program {
            Program::Zvmm => Some("zvmm"),
            Program::ZvmmDoubleBhyve | Program::ZvmmDoubleIllumosKvm => Some("zvmm-double"),
            Program::QemuQ35 | Program::QemuMicrovm => None,
        }
    }

    /// The kernel interface that it has a double of.
    #[must_use]
    pub const fn doubled(self) -> Option<&'static str> {
        match self.program {
            Program::ZvmmDoubleBhyve => Some("bhyve"),
            Program::ZvmmDoubleIllumosKvm => Some("illumos-kvm"),
            Program::Zvmm | Program::QemuQ35 | Program::QemuMicrovm => None,
        }
    }

    /// Whether its guests leave checksums and segmentation to their network cards: devices for plain frames take none.
    #[must_use]
    pub const fn has_offloads(self) -> bool {
        !matches!(self.program, Program::ZvmmDoubleIllumosKvm)
    }

    /// Whether a guest's interface can have several queue pairs: devices for plain frames have one.
    #[must_use]
    pub const fn has_queue_pairs(self) -> bool {
        !matches!(self.program, Program::ZvmmDoubleIllumosKvm | Program::QemuQ35 | Program::QemuMicrovm)
    }

    /// Whether UDP datagrams go through its guests' network cards in segments: viona has no feature bit for that, and devices for
    /// plain frames have no segments at all.
    #[must_use]
    pub const fn has_udp_segments(self) -> bool {
        matches!(self.program, Program::Zvmm)
    }

    /// What carries the frames of its `n`th network interface: on the double of illumos KVM the devices that its zone has, which
    /// end in TAP interfaces there.
    const fn carrier(self, n: usize) -> &'static str {
        match self.program {
            Program::ZvmmDoubleIllumosKvm if n.is_multiple_of(2) => "vnd",
            Program::ZvmmDoubleIllumosKvm => "dlpi",
            _ => "tap",
        }
    }

    /// Whether guests' interfaces are in the kernel that there is a double of. Such a one does not filter by VLAN, and does
    /// not see what becomes of the TAP device behind it.
    #[must_use]
    pub const fn has_viona(self) -> bool {
        matches!(self.program, Program::ZvmmDoubleBhyve)
    }

    /// Whether those of a machine are: as far as that kernel has what is asked of them.
    #[must_use]
    pub const fn carries(self, machine: &Machine) -> bool {
        self.has_viona() && !machine.packed && machine.nic_keys.is_empty()
    }

    /// The argument vector that runs `machine` with its serial port on standard input and output.
    #[must_use]
    pub fn command(self, machine: &Machine) -> Vec<String> {
        match self.built_from() {
            Some(program) => self.zvmm(program, machine),
            None => self.qemu(machine),
        }
    }

    fn zvmm(self, program: &str, machine: &Machine) -> Vec<String> {
        let mut line = Line::new(program);
        if let Some(hypervisor) = self.doubled() {
            line.option("--hypervisor", hypervisor);
        }
        let carried = self.carries(machine);
        for (tap, mac) in machine.nics.iter().filter(|_| carried) {
            line.option("--link", format!("{tap},mac={mac}{}", machine.link_keys));
        }
        line.word("run");
        match self.profile {
            Profile::I440fx => {}
            Profile::Micro => line.option("--profile", "micro"),
            Profile::Bhyve => line.option("--profile", "bhyve"),
        }
        line.option("--cpus", machine.cpus);
        if let Some([sockets, cores, threads]) = machine.topology {
            line.option("--topology", format!("sockets={sockets},cores={cores},threads={threads}"));
        }
        line.option("--memory", format!("{}M", machine.memory_mib));
        if let Some(mib) = machine.low_split_mib {
            line.option("--low-split", format!("{mib}M"));
        }
        line.option("--cpu", &machine.cpu);
        line.option("--kernel", &machine.kernel);
        line.option("--initrd", &machine.initrd);
        line.option("--cmdline", &machine.cmdline);
        if let Some(interfaces) = machine.virtio {
            line.option("--virtio", interfaces);
        }
        let packed = if machine.packed { ",packed=on" } else { "" };
        let engine = if machine.io_uring { ",engine=io_uring" } else { "" };
        let cache = match machine.buffered {
            None => "",
            Some(true) => ",cache=buffered",
            Some(false) => ",cache=direct",
        };
        let queues = machine.queues.map_or_else(String::new, |count| format!(",queues={count}"));
        for (n, disk) in machine.disks.iter().enumerate() {
            let serial = machine.serials.get(n).map_or_else(String::new, |serial| format!(",serial={serial}"));
            line.option("--disk", format!("{disk}{packed}{engine}{cache}{queues}{serial}"));
        }
        for (n, (tap, mac)) in machine.nics.iter().enumerate() {
            line.option(
                "--net",
                match carried {
                    true => format!("viona={tap}{}", machine.carried_keys),
                    false => format!("{}={tap},mac={mac}{packed}{}", self.carrier(n), machine.nic_keys),
                },
            );
        }
        if machine.console {
            line.option("--console", "null");
        }
        if machine.rng {
            line.word("--rng");
        }
        line.option("--serial", "stdio");
        line.option("--qmp", QMP);
        if !machine.kvmclock {
            line.option("--kvmclock", "off");
        }
        if let Ok(rules) = std::env::var("ZVMM_LOG") {
            line.option("--log", rules);
        }
        if machine.reset_ends {
            line.option("--on-reset", "exit");
        }
        line.words
    }

    fn qemu(self, machine: &Machine) -> Vec<String> {
        let mut line = Line::new("qemu-system-x86_64");
        // `rtc=on`: without one Linux polls for it 40,000 times.
        let microvm = self.program == Program::QemuMicrovm;
        let (mut model, block, net) = match microvm {
            true => ("microvm,rtc=on".to_owned(), "virtio-blk-device", "virtio-net-device"),
            false => ("q35".to_owned(), "virtio-blk-pci", "virtio-net-pci"),
        };
        if let Some(mib) = machine.low_split_mib {
            model += &format!(",max-ram-below-4g={mib}M");
        }
        line.option("-M", model);
        line.option("-accel", "kvm");
        line.option("-cpu", format!("{}{}", machine.cpu, if machine.kvmclock { "" } else { ",-kvmclock" }));
        line.option(
            "-smp",
            match machine.topology {
                None => machine.cpus.to_string(),
                Some([sockets, cores, threads]) => {
                    format!("{},sockets={sockets},cores={cores},threads={threads}", machine.cpus)
                }
            },
        );
        line.option("-m", machine.memory_mib);
        for word in ["-nodefaults", "-no-user-config"] {
            line.word(word);
        }
        line.option("-L", "/tools/share/qemu");
        line.option("-L", "/tools/share/seabios");
        line.option("-display", "none");
        line.option("-serial", "stdio");
        line.option("-qmp", format!("unix:{QMP},server=on,wait=off"));
        line.option("-kernel", &machine.kernel);
        line.option("-initrd", &machine.initrd);
        // microvm has neither a keyboard controller nor a reset register.
        line.option("-append", format!("{}{}", machine.cmdline, if microvm { " reboot=t" } else { "" }));
        if let Some(interfaces) = machine.virtio {
            line.option("--virtio", interfaces);
        }
        let packed = if machine.packed { ",packed=on" } else { "" };
        let queues = machine.queues.map_or_else(String::new, |count| format!(",num-queues={count}"));
        let cache = if machine.buffered == Some(false) { "none" } else { "writeback" };
        let aio = if machine.io_uring { "io_uring" } else { "threads" };
        for (n, disk) in machine.disks.iter().enumerate() {
            line.option("-drive", format!("file={disk},format=raw,if=none,id=d{n},cache={cache},aio={aio}"));
            let serial = machine.serials.get(n).map_or_else(String::new, |serial| format!(",serial={serial}"));
            line.option("-device", format!("{block},drive=d{n}{packed}{queues}{serial}"));
        }
        for (n, (tap, mac)) in machine.nics.iter().enumerate() {
            line.option("-netdev", format!("tap,id=n{n},ifname={tap},script=no,downscript=no,vhost=off"));
            let rom = if microvm { "" } else { ",romfile=" };
            line.option("-device", format!("{net},netdev=n{n},mac={mac}{rom}{packed}"));
        }
        let bus = if microvm { "device" } else { "pci" };
        if machine.console {
            line.option("-chardev", "null,id=c0");
            line.option("-device", format!("virtio-serial-{bus}"));
            line.option("-device", "virtconsole,chardev=c0");
        }
        if machine.rng {
            line.option("-device", format!("virtio-rng-{bus}"));
        }
        if microvm {
            line.option("-global", "virtio-mmio.force-legacy=false");
        }
        if machine.reset_ends {
            line.word("-no-reboot");
        }
        line.words
    }
}

/// An argument vector under construction.
struct Line {
    words: Vec<String>,
}

impl Line {
    fn new(program: &str) -> Self {
        Self { words: vec![program.to_owned()] }
    }

    fn word(&mut self, word: &str) {
        self.words.push(word.to_owned());
    }

    fn option(&mut self, name: &str, value: impl ToString) {
        self.words.push(name.to_owned());
        self.words.push(value.to_string());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn machine() -> Machine {
        Machine {
            cpus: 2,
            topology: None,
            memory_mib: 512,
            low_split_mib: None,
            kernel: "k".into(),
            initrd: "i".into(),
            cmdline: "console=ttyS0".into(),
            disks: vec!["d".into()],
            nics: vec![("tap0".into(), "52:54:00:00:00:01".into())],
            nic_keys: String::new(),
            carried_keys: String::new(),
            link_keys: String::new(),
            console: false,
            rng: false,
            cpu: "host".into(),
            packed: false,
            virtio: None,
            io_uring: false,
            buffered: None,
            queues: None,
            serials: Vec::new(),
            kvmclock: true,
            reset_ends: true,
        }
    }

    #[test]
    fn zvmm_gets_the_command_line_its_readme_teaches() {
        let words = Vmm::ZVMM.command(&machine()).join(" ");
        assert_eq!(
            words,
            "zvmm run --cpus 2 --memory 512M --cpu host --kernel k --initrd i --cmdline console=ttyS0 --disk d \
             --net tap=tap0,mac=52:54:00:00:00:01 --serial stdio --qmp /tmp/qmp.sock --on-reset exit"
        );
    }

    #[test]
    fn a_double_gets_the_same_command_line_behind_the_hypervisor_it_plays() {
        let words = |vmm: Vmm| vmm.command(&machine()).join(" ");
        let ours = words(Vmm { profile: Profile::Bhyve, ..Vmm::ZVMM });
        for (program, hypervisor) in
            [(Program::ZvmmDoubleBhyve, "bhyve"), (Program::ZvmmDoubleIllumosKvm, "illumos-kvm")]
        {
            let double = words(Vmm { program, profile: Profile::Bhyve });
            let (link, net) = match program {
                Program::ZvmmDoubleBhyve => (" --link tap0,mac=52:54:00:00:00:01", "--net viona=tap0"),
                _ => ("", "--net vnd=tap0,mac=52:54:00:00:00:01"),
            };
            let ours = ours.replacen("--net tap=tap0,mac=52:54:00:00:00:01", net, 1);
            assert_eq!(double, ours.replacen("zvmm", &format!("zvmm-double --hypervisor {hypervisor}{link}"), 1));
        }
    }

    #[test]
    fn interfaces_in_the_double_s_kernel_have_keys_of_their_own_and_those_of_others_keep_them_out_of_it() {
        let bhyve = Vmm { program: Program::ZvmmDoubleBhyve, ..Vmm::ZVMM };
        let pairs = Machine { carried_keys: ",queues=2".to_owned(), link_keys: ",mtu=9000".to_owned(), ..machine() };
        let words = bhyve.command(&pairs).join(" ");
        assert!(words.contains("--link tap0,mac=52:54:00:00:00:01,mtu=9000 "), "{words}");
        assert!(words.contains("--net viona=tap0,queues=2 "), "{words}");
        let answered = Machine { nic_keys: ",ip=10.0.0.2".to_owned(), ..pairs.clone() };
        let words = bhyve.command(&answered).join(" ");
        assert!(words.contains("--net tap=tap0,mac=52:54:00:00:00:01,ip=10.0.0.2 ") && !words.contains("--link"));
        assert_eq!(Vmm::ZVMM.command(&pairs), Vmm::ZVMM.command(&machine()));
    }

    #[test]
    fn both_devices_for_frames_carry_an_interface_of_the_double() {
        let nic = |n: usize| (format!("tap{n}"), format!("52:54:00:00:00:0{n}"));
        let machine = Machine { nics: vec![nic(0), nic(1)], ..machine() };
        let words = Vmm { program: Program::ZvmmDoubleIllumosKvm, ..Vmm::ZVMM }.command(&machine).join(" ");
        assert!(
            words.contains("--net vnd=tap0,mac=52:54:00:00:00:00 --net dlpi=tap1,mac=52:54:00:00:00:01 "),
            "{words}"
        );
    }

    #[test]
    fn every_setting_of_a_machine_reaches_zvmm_and_qemu() {
        let plain = machine();
        let changed = [
            Machine { topology: Some([1, 1, 2]), ..plain.clone() },
            Machine { low_split_mib: Some(256), ..plain.clone() },
            Machine { console: true, ..plain.clone() },
            Machine { rng: true, ..plain.clone() },
            Machine { kvmclock: false, ..plain.clone() },
            Machine { packed: true, ..plain.clone() },
            Machine { io_uring: true, ..plain.clone() },
            Machine { buffered: Some(false), ..plain.clone() },
            Machine { queues: Some(2), ..plain.clone() },
            Machine { serials: vec!["one".to_owned()], ..plain.clone() },
            Machine { reset_ends: false, ..plain.clone() },
            Machine { cpu: "x86-64-v2".to_owned(), ..plain.clone() },
        ];
        for machine in changed {
            for vmm in [Vmm::ZVMM, Vmm::Q35] {
                assert_ne!(
                    vmm.command(&machine),
                    vmm.command(&plain),
                    "{} ignores something of {machine:?}",
                    vmm.name()
                );
            }
        }
    }

    #[test]
    fn qemu_microvm_gets_devices_without_a_bus() {
        let words = Vmm::MICROVM.command(&machine()).join(" ");
        assert!(words.contains("virtio-blk-device") && !words.contains("-pci"));
    }

    #[test]
    fn qemu_with_a_profile_is_refused() {
        assert!(Vmm { profile: Profile::Micro, ..Vmm::Q35 }.check().is_err());
        assert!(Vmm::Q35.check().is_ok() && Vmm::MICRO.check().is_ok());
    }
}
