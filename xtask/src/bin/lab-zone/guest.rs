//! A stock guest in a zone, driven over its console.

use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::json;
use zvmm_zone::argv::{Disk, Properties};
use zvmm_zone::console::Console;
use zvmm_zone::global::Zone;
use zvmm_zone::qmp::{ask, try_ask};
use zvmm_zone::root::{Brand, Parts};

use crate::agent::Agent;

/// What the kernel is told beside what a scene adds. An emulated machine gets two things wrong (`xtask/src/lab/scenarios`),
/// which neither command line can take away from its guest's CPU: so its kernel leaves them alone.
const CMDLINE: [&str; 6] = ["console=ttyS0", "quiet", "panic=-1", "net.ifnames=0", "noxsave", "clearcpuid=cx16"];
/// The guest's kernel and its initial RAM disk, in the machine and in the zone.
const FILES: [(&str, &str); 2] = [("/tools/vmlinuz-6.1", "vmlinuz"), ("/tools/initrd-6.1", "initrd.img")];
/// Where zones are made: on a disk, as their disks are large.
const PLACE: &str = "/tools";
const E2FSCK: &str = "/tools/bin/e2fsck";
const DOUBLE: &str = "zvmm-double";
/// Where operators in the global zone reach the kernel that a double plays.
const OPERATORS: &str = "/dev/bhyvectl";

/// How long anything may take that a guest does; what vmadm grants a stop.
pub const PATIENCE: Duration = Duration::from_secs(180);
/// How long until somebody looks again.
const PAUSE: Duration = Duration::from_millis(20);

/// What the agent knows of every guest.
pub const METADATA: [(&str, &str); 4] = [
    ("sdc:uuid", "6e2b1f0a-2c55-4b63-9a53-0d6f3a1f7c11"),
    ("sdc:hostname", "web1"),
    ("root_authorized_keys", "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJ ops@example"),
    ("user-script", "#!/bin/sh\n.\n..dots\necho 'a line with blanks'  \n\nend"),
];

/// A zone with its guest, and whoever talks to it.
pub struct Guest {
    /// The zone.
    pub zone: Zone,
    /// The metadata agent.
    pub agent: Agent,
    /// Whether the VMM runs on a double of its kernel.
    pub on_double: bool,
    console: Option<Console>,
    /// How much of what the console has said was waited for, and how much was shown.
    consumed: usize,
    shown: usize,
    commands: u32,
}

impl Guest {
    /// Makes a zone for the guest of the documented examples, with a stock kernel in place of the ROM, and boots it. `program`
    /// and `words` are the VMM and what it takes before the brand's arguments, `cmdline` more for the kernel, `images` what the
    /// two disks have.
    pub fn boot(brand: Brand, program: &str, words: &[String], cmdline: &[&str], images: [&str; 2]) -> Self {
        let example = Properties::example();
        let on_double = program.ends_with(DOUBLE);
        let with_image = |(disk, image): (Disk, &str)| Disk { image: Some(image.into()), ..disk };
        let disks: Vec<Disk> = example.disks.into_iter().zip(images).map(with_image).collect();
        let mut words = words.to_vec();
        if on_double {
            words.extend(disks.iter().flat_map(|disk| ["--volume".to_owned(), disk.path.to_owned()]));
        }
        // What an operator of the bhyve brand asks the kernel for goes another way on Linux.
        let control = match (brand, on_double) {
            (Brand::Kvm, _) => "",
            (Brand::Bhyve, false) => " -o zvmm.qmp=/tmp/vm.qmp",
            (Brand::Bhyve, true) => {
                words.extend(["--bhyvectl", OPERATORS].map(str::to_owned));
                ""
            }
        };
        let cmdline = CMDLINE.iter().chain(cmdline);
        let extra = match brand {
            Brand::Bhyve => {
                let cmdline = cmdline.map(|word| format!(" -o zvmm.cmdline={word}")).collect::<String>();
                format!("-o zvmm.kernel=/vmlinuz -o zvmm.initrd=/initrd.img{control}{cmdline}")
            }
            Brand::Kvm => {
                let cmdline = cmdline.copied().collect::<Vec<_>>().join(" ");
                format!("-kernel /vmlinuz -initrd /initrd.img -append '{cmdline}'")
            }
        };
        let properties = Properties { ram_mib: 384, cpu_type: "qemu64", disks, extra, ..example };
        let files = FILES.map(|(from, to)| (Path::new(from), to));
        let parts = Parts { program: Path::new(program), words: &words, files: &files, place: Path::new(PLACE) };
        let mut zone = Zone::create(brand, &parts, properties);
        zone.limit = PATIENCE;
        zone.pause = PAUSE;
        let agent = Agent::of(zone.socket("vm.ttyb"), &METADATA);
        let mut guest = Self { zone, agent, on_double, console: None, consumed: 0, shown: 0, commands: 0 };
        guest.boot_again();
        guest
    }

    /// Boots the zone, which is halted.
    pub fn boot_again(&mut self) {
        self.zone.root.forget_console();
        self.zone.boot();
        (self.consumed, self.shown) = (0, 0);
        self.console = match self.zone.brand {
            Brand::Bhyve => None,
            Brand::Kvm => Some(Console::of(&mut self.zone)),
        };
    }

    /// Everything that the guest has said on its console, without carriage returns; what is new is shown.
    fn said(&mut self) -> String {
        let text = match &mut self.console {
            Some(console) => console.text(),
            None => self.zone.root.console().to_owned(),
        };
        let text = text.replace('\r', "");
        while let Some(end) = text[self.shown..].find('\n') {
            println!("{}", &text[self.shown..self.shown + end]);
            self.shown += end + 1;
        }
        text
    }

    /// Types something.
    pub fn send(&mut self, text: &str) {
        match &mut self.console {
            Some(console) => console.send(text.as_bytes()),
            None => self.zone.root.type_on_console(text.as_bytes()),
        }
    }

    /// Waits for something that the guest says, while the zone is looked after; what came before it.
    #[track_caller]
    pub fn expect(&mut self, text: &str) -> String {
        let end = Instant::now() + PATIENCE;
        loop {
            let said = self.said();
            if let Some(found) = said[self.consumed..].find(text) {
                let before = said[self.consumed..self.consumed + found].to_owned();
                self.consumed += found + text.len();
                return before;
            }
            let runs = self.zone.tend();
            assert!(runs, "the zone is halted before `{text}`: {:?}\n{}", self.zone.ends(), self.zone.said());
            assert!(Instant::now() < end, "no `{text}` in time\n{}", self.zone.said());
            std::thread::sleep(PAUSE);
        }
    }

    /// Waits for the guest's shell.
    #[track_caller]
    pub fn ready(&mut self) {
        self.expect("LAB-READY");
        self.expect("\n");
    }

    /// Runs a command line in the guest's shell, which does not echo: its status and what it says.
    #[track_caller]
    pub fn try_run(&mut self, command: &str) -> (String, String) {
        self.commands += 1;
        let number = self.commands;
        // Split, so that a shell that does echo is not taken for its answer.
        self.send(&format!("{command}; echo @\"\"@{number}:$?\n"));
        let output = self.expect(&format!("@@{number}:"));
        (self.expect("\n"), output)
    }

    /// The same of one that must succeed.
    #[track_caller]
    pub fn run(&mut self, command: &str) -> String {
        let (status, output) = self.try_run(command);
        assert_eq!(status, "0", "`{command}` says: {output}");
        output
    }

    /// Presses the guest's power button: in the kvm brand as vmadmd does, or as any brand's operator.
    pub fn press_button(&mut self, as_vmadmd: bool) {
        if as_vmadmd && self.zone.brand == Brand::Kvm {
            // A guest that ends at once can take the answer's connection with it.
            try_ask(&self.zone.socket("vm.qmp"), "system_powerdown", None);
        } else {
            self.zone.signal(libc::SIGTERM);
        }
    }

    /// Sends the guest a non-maskable interrupt, as the brand's operators do.
    ///
    /// # Panics
    /// When nobody takes the order.
    pub fn send_nmi(&mut self) {
        match (self.zone.brand, self.on_double) {
            (Brand::Kvm, _) => {
                let line = json!({"command-line": "nmi 0"});
                ask(&self.zone.socket("vm.qmp"), "human-monitor-command", Some(line));
            }
            (Brand::Bhyve, false) => {
                ask(&self.zone.socket("vm.qmp"), "inject-nmi", None);
            }
            (Brand::Bhyve, true) => {
                let mut kernel = UnixStream::connect(self.zone.root.path(OPERATORS)).expect("the kernel's side");
                writeln!(kernel, "SYSbhyve-{} inject-nmi", self.zone.properties.did).expect("it listens");
                let mut said = String::new();
                BufReader::new(kernel).read_line(&mut said).expect("an answer");
                assert_eq!(said, "ok\n");
            }
        }
    }

    /// Checks the file systems on the guest's disks. A journal that is to be replayed is not clean, though that alone would not
    /// be an error.
    #[track_caller]
    pub fn disks_are_clean(&self) {
        for disk in &self.zone.properties.disks {
            let file = self.zone.root.path(disk.path);
            let output = std::process::Command::new(E2FSCK).args(["-f", "-n"]).arg(&file).output().expect("e2fsck");
            let said = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success() && !said.contains("journal"), "{}: {said}", disk.path);
        }
    }
}
