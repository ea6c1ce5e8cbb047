//! How a scenario's run is put together.

use super::super::content::at;
use super::super::job::{QMP, Run, Step};
use super::super::kernel::Which;
use super::super::vmm::{Machine, Vmm};

/// Kernel options of every guest: a panic resets at once. Each line on the serial port costs the nested emulator 40 ms,
/// hence `quiet`.
const CMDLINE: &str = "console=ttyS0 quiet panic=-1";

/// What the nested emulator gets wrong is taken away: XSAVE (every guest warns about it), and CMPXCHG16B, after which a
/// nested page fault leaves garbage in the flags (kernel 6.12 dies of it in `kmem_cache_alloc`).
pub const CPU: &str = "host,-xsave,-cx16";

/// Seconds a small guest may take to its shell in the nested emulator.
pub const BOOT_S: u64 = 90;

/// The kernel's messages of level 4 (warning) and more urgent.
pub const WARNINGS: &str = "dmesg -r | grep '^<[0-4]>'; true";

/// A journal that must be replayed is not clean, though e2fsck alone would not mind.
const FSCK: &str = "/tools/bin/e2fsck -f -n /tools/root-copy.img > /tmp/fsck 2>&1 || { cat /tmp/fsck; exit 1; }; \
    cat /tmp/fsck; ! grep -q journal /tmp/fsck";

/// A run under construction: a guest, what comes before and after it, and what is done with it.
pub struct Script {
    /// The guest: by default 1 vCPU, 256 MiB, Debian's own kernel as bzImage, no device.
    pub machine: Machine,
    /// What is run in place of the VMM's own command line for the guest.
    command: Option<Vec<String>>,
    console: Option<String>,
    before: Vec<String>,
    after: Vec<String>,
    steps: Vec<Step>,
    limit_s: u64,
}

impl Script {
    /// One with the default guest and no steps.
    pub fn new() -> Self {
        Self {
            machine: Machine {
                cpus: 1,
                topology: None,
                memory_mib: 256,
                low_split_mib: None,
                kernel: at::kernel(Which::Stable, false),
                initrd: at::initrd(Which::Stable),
                cmdline: CMDLINE.to_owned(),
                disks: Vec::new(),
                nics: Vec::new(),
                nic_keys: String::new(),
                carried_keys: String::new(),
                link_keys: String::new(),
                console: false,
                rng: false,
                cpu: CPU.to_owned(),
                packed: false,
                virtio: None,
                io_uring: false,
                buffered: None,
                queues: None,
                serials: Vec::new(),
                kvmclock: true,
                reset_ends: false,
            },
            command: None,
            console: None,
            before: vec![format!("rm -f {QMP}")],
            after: Vec::new(),
            steps: Vec::new(),
            limit_s: 60 + BOOT_S,
        }
    }

    /// With another kernel, and the initial RAM file system that belongs to it.
    pub fn kernel(mut self, which: Which, elf: bool) -> Self {
        self.machine.kernel = at::kernel(which, elf);
        self.machine.initrd = at::initrd(which);
        self
    }

    /// With something about the guest changed.
    pub fn with(mut self, change: impl FnOnce(&mut Machine)) -> Self {
        change(&mut self.machine);
        self
    }

    /// With another command line than the VMM's own for the guest.
    pub fn command(mut self, words: Vec<String>) -> Self {
        self.command = Some(words);
        self
    }

    /// With the guest's serial port on a socket that the command line names.
    pub fn console(mut self, socket: &str) -> Self {
        self.console = Some(socket.to_owned());
        self
    }

    /// With another limit of the whole run.
    pub fn limit(mut self, seconds: u64) -> Self {
        self.limit_s = seconds;
        self
    }

    /// The Debian root on a fresh copy of its disk, checked afterwards.
    pub fn debian_root(mut self) -> Self {
        self.before.push(format!("cp {} /tools/root-copy.img", at::ROOT_IMAGE));
        self.after.push(FSCK.to_owned());
        self.after.push("rm -f /tools/root-copy.img".to_owned());
        self.machine.disks.push("/tools/root-copy.img".to_owned());
        self.machine.memory_mib = 512;
        self.machine.cmdline += " root=/dev/vda";
        self
    }

    /// An empty disk of so many MiB.
    pub fn disk(mut self, mib: u64) -> Self {
        let path = format!("/tmp/disk{}.img", self.machine.disks.len());
        self.before.push(format!("rm -f {path}; truncate -s {mib}M {path}"));
        self.machine.disks.push(path);
        self
    }

    /// Network interface number N, on TAP device `tapN` with the address `10.0.N.1` on the host's side.
    pub fn nic(mut self) -> Self {
        let n = self.machine.nics.len();
        self.before.push(format!("tunctl -t tap{n} && ip addr add 10.0.{n}.1/24 dev tap{n} && ip link set tap{n} up"));
        self.after.push(format!("tunctl -d tap{n}"));
        self.machine.nics.push((format!("tap{n}"), format!("52:54:00:12:34:{:02x}", 0x56 + n)));
        self
    }

    /// The only network interface, with so many queue pairs, likewise.
    pub fn nic_of_pairs(mut self, pairs: u32) -> Self {
        self.before
            .push("lab-runner tap tap0 on && ip addr add 10.0.0.1/24 dev tap0 && ip link set tap0 up".to_owned());
        self.after.push("lab-runner tap tap0 off".to_owned());
        self.machine.nics = vec![("tap0".to_owned(), "52:54:00:12:34:56".to_owned())];
        self.machine.nic_keys = format!(",queues={pairs}");
        self
    }

    /// A shell command in the outer machine before the VMM starts.
    pub fn before(mut self, command: &str) -> Self {
        self.before.push(command.to_owned());
        self
    }

    /// A shell command in the outer machine after the VMM is gone.
    pub fn after(mut self, command: &str) -> Self {
        self.after.push(command.to_owned());
        self
    }

    /// One more step.
    pub fn step(mut self, step: Step) -> Self {
        self.steps.push(step);
        self
    }

    /// Wait until the guest's serial port says this.
    pub fn expect(self, text: &str, within_s: u64) -> Self {
        self.step(Step::Expect { text: text.to_owned(), within_s })
    }

    /// Wait for the guest's shell.
    pub fn ready(self) -> Self {
        self.ready_within(BOOT_S)
    }

    /// Wait for the guest's shell, longer or shorter than usual.
    pub fn ready_within(self, within_s: u64) -> Self {
        self.expect("LAB-READY", within_s).expect("\n", 10)
    }

    /// Run a command in the guest's shell; it must succeed.
    pub fn guest(self, command: &str) -> Self {
        self.guest_within(command, 30)
    }

    /// The same with another limit.
    pub fn guest_within(self, command: &str, within_s: u64) -> Self {
        self.step(Step::Guest { command: command.to_owned(), within_s })
    }

    /// Ask the guest for its warnings.
    pub fn warnings(self) -> Self {
        self.guest(WARNINGS)
    }

    /// Type something.
    pub fn send(self, text: &str) -> Self {
        self.step(Step::Send { text: text.to_owned() })
    }

    /// Run a command in the outer machine's shell.
    pub fn shell(self, command: &str) -> Self {
        self.step(Step::Shell { command: command.to_owned() })
    }

    /// Read the counters of the VMM's process.
    pub fn sample(self, name: &str) -> Self {
        self.step(Step::Sample { name: name.to_owned() })
    }

    /// One QMP command.
    pub fn qmp(self, execute: &str) -> Self {
        self.step(Step::Qmp { socket: QMP.to_owned(), execute: execute.to_owned(), arguments: None })
    }

    /// One with arguments.
    pub fn qmp_with(self, execute: &str, arguments: serde_json::Value) -> Self {
        self.step(Step::Qmp { socket: QMP.to_owned(), execute: execute.to_owned(), arguments: Some(arguments) })
    }

    /// The end of a guest with a small root: its warnings, then power-off.
    pub fn power_off(self) -> Self {
        self.warnings().send("poweroff -f\n").exit(30, Some(0))
    }

    /// Wait for the VMM's end, with a status if that is known.
    pub fn exit(self, within_s: u64, status: Option<i32>) -> Self {
        self.step(Step::Exit { within_s, status })
    }

    /// The finished run.
    pub fn finish(self, name: &str, vmm: Vmm) -> Run {
        Run {
            name: name.to_owned(),
            before: self.before,
            command: self.command.unwrap_or_else(|| vmm.command(&self.machine)),
            console: self.console,
            steps: self.steps,
            after: self.after,
            limit_s: self.limit_s,
        }
    }
}
