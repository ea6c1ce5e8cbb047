//! One description of a guest, and the command line each VMM takes for it.

use clap::ValueEnum;

/// The VMMs a scenario can run with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Vmm {
    /// zvmm with its default profile.
    Zvmm,
    /// zvmm with the `micro` profile.
    ZvmmMicro,
    /// qemu with the q35 machine: the control of every comparison.
    QemuQ35,
    /// qemu with the microvm machine.
    QemuMicrovm,
}

/// Where the VMM's control socket is in the outer machine.
pub const QMP: &str = "/tmp/qmp.sock";

/// A guest.
#[derive(Debug, Clone)]
pub struct Machine {
    /// Number of vCPUs.
    pub cpus: u32,
    /// Memory, MiB.
    pub memory_mib: u64,
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
    /// CPU model and changes to it.
    pub cpu: String,
    /// End the VMM when the guest resets instead of restarting it.
    pub reset_ends: bool,
}

impl Vmm {
    /// Its name on command lines and in logs.
    #[must_use]
    pub fn name(self) -> String {
        self.to_possible_value().map_or_else(String::new, |value| value.get_name().to_owned())
    }

    /// Whether it is ours.
    #[must_use]
    pub const fn is_zvmm(self) -> bool {
        matches!(self, Self::Zvmm | Self::ZvmmMicro)
    }

    /// The argument vector that runs `machine` with its serial port on standard input and output.
    #[must_use]
    pub fn command(self, machine: &Machine) -> Vec<String> {
        if self.is_zvmm() { self.zvmm(machine) } else { self.qemu(machine) }
    }

    fn zvmm(self, machine: &Machine) -> Vec<String> {
        let mut line = Line::new("zvmm");
        line.word("run");
        if self == Self::ZvmmMicro {
            line.option("--profile", "micro");
        }
        line.option("--cpus", machine.cpus);
        line.option("--memory", format!("{}M", machine.memory_mib));
        line.option("--cpu", &machine.cpu);
        line.option("--kernel", &machine.kernel);
        line.option("--initrd", &machine.initrd);
        line.option("--cmdline", &machine.cmdline);
        for disk in &machine.disks {
            line.option("--disk", disk);
        }
        for (tap, mac) in &machine.nics {
            line.option("--net", format!("tap={tap},mac={mac}"));
        }
        line.option("--serial", "stdio");
        line.option("--qmp", QMP);
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
        let (model, block, net) = match self {
            Self::QemuMicrovm => ("microvm,rtc=on", "virtio-blk-device", "virtio-net-device"),
            _ => ("q35", "virtio-blk-pci", "virtio-net-pci"),
        };
        line.option("-M", model);
        line.option("-accel", "kvm");
        line.option("-cpu", &machine.cpu);
        line.option("-smp", machine.cpus);
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
        line.option("-append", &machine.cmdline);
        for (n, disk) in machine.disks.iter().enumerate() {
            line.option("-drive", format!("file={disk},format=raw,if=none,id=d{n},cache=writeback,aio=threads"));
            line.option("-device", format!("{block},drive=d{n}"));
        }
        for (n, (tap, mac)) in machine.nics.iter().enumerate() {
            line.option("-netdev", format!("tap,id=n{n},ifname={tap},script=no,downscript=no,vhost=off"));
            let rom = if self == Self::QemuMicrovm { "" } else { ",romfile=" };
            line.option("-device", format!("{net},netdev=n{n},mac={mac}{rom}"));
        }
        if self == Self::QemuMicrovm {
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
            memory_mib: 512,
            kernel: "k".into(),
            initrd: "i".into(),
            cmdline: "console=ttyS0".into(),
            disks: vec!["d".into()],
            nics: vec![("tap0".into(), "52:54:00:00:00:01".into())],
            cpu: "host".into(),
            reset_ends: true,
        }
    }

    #[test]
    fn zvmm_gets_the_command_line_its_readme_teaches() {
        let words = Vmm::Zvmm.command(&machine()).join(" ");
        assert_eq!(
            words,
            "zvmm run --cpus 2 --memory 512M --cpu host --kernel k --initrd i --cmdline console=ttyS0 --disk d \
             --net tap=tap0,mac=52:54:00:00:00:01 --serial stdio --qmp /tmp/qmp.sock --on-reset exit"
        );
    }

    #[test]
    fn qemu_microvm_gets_devices_without_a_bus() {
        let words = Vmm::QemuMicrovm.command(&machine()).join(" ");
        assert!(words.contains("virtio-blk-device") && !words.contains("-pci"));
    }
}
