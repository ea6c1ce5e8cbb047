//! The scenarios: what each guest is, what is done with it, and what must be seen.

use anyhow::{Context as _, bail, ensure};

use super::content::at;
use super::job::{Outcome, Run, Step, pattern};
use super::kernel::Which;
use super::vmm::{Machine, QMP, Vmm};

/// Kernel options of every guest: a panic resets at once. Each line on the serial port costs the nested emulator 40 ms,
/// hence `quiet`.
const CMDLINE: &str = "console=ttyS0 quiet panic=-1";
/// What the nested emulator gets wrong is taken away: XSAVE (every guest warns about it), and CMPXCHG16B, after which a
/// nested page fault leaves garbage in the flags (kernel 6.12 dies of it in `kmem_cache_alloc`).
const CPU: &str = "host,-xsave,-cx16";
/// Seconds a small guest may take to its shell in the nested emulator.
const BOOT_S: u64 = 90;
const SIGTERM: i32 = 15;
/// Lines of 64 bytes that are typed into the serial port: twice what the guest's terminal layer buffers.
const TYPED_LINES: u32 = 128;

/// The gate lane: each kernel, form, vCPU count and device at least once.
const GATE: [&str; 12] = [
    "boot-6.1-bzimage",
    "boot-backports-elf",
    "vcpus-2",
    "vcpus-16",
    "memory-128",
    "memory-5120",
    "disk-root",
    "tcp-100mb",
    "two-disks-two-nics",
    "serial-input",
    "sigterm",
    "pause",
];

/// A journal that must be replayed is not clean, though e2fsck alone would not mind.
const FSCK: &str = "/tools/bin/e2fsck -f -n /tools/root-copy.img > /tmp/fsck 2>&1 || { cat /tmp/fsck; exit 1; }; \
    cat /tmp/fsck; ! grep -q journal /tmp/fsck";

/// One test of the lab.
pub struct Scenario {
    /// Its name.
    pub name: String,
    /// What it shows.
    pub about: String,
    /// Memory the outer machine needs, MiB.
    pub outer_memory_mib: u64,
    /// Part of the gate lane.
    pub gate: bool,
    /// The run, for a VMM.
    pub build: Box<dyn Fn(Vmm) -> Script>,
    /// What must be true afterwards.
    pub check: fn(&Outcome) -> anyhow::Result<()>,
}

impl Scenario {
    /// The run of this scenario with a VMM.
    #[must_use]
    pub fn run(&self, vmm: Vmm) -> Run {
        (self.build)(vmm).finish(&self.name, vmm)
    }
}

/// A run under construction.
pub struct Script {
    machine: Machine,
    before: Vec<String>,
    after: Vec<String>,
    steps: Vec<Step>,
    limit_s: u64,
}

impl Script {
    fn new() -> Self {
        Self {
            machine: Machine {
                cpus: 1,
                memory_mib: 256,
                kernel: at::kernel(Which::Stable, false),
                initrd: at::initrd(Which::Stable),
                cmdline: CMDLINE.to_owned(),
                disks: Vec::new(),
                nics: Vec::new(),
                cpu: CPU.to_owned(),
                reset_ends: false,
            },
            before: vec![format!("rm -f {QMP}")],
            after: Vec::new(),
            steps: Vec::new(),
            limit_s: 60 + BOOT_S,
        }
    }

    fn kernel(mut self, which: Which, elf: bool) -> Self {
        self.machine.kernel = at::kernel(which, elf);
        self.machine.initrd = at::initrd(which);
        self
    }

    fn cmdline(mut self, more: &str) -> Self {
        self.machine.cmdline = format!("{} {more}", self.machine.cmdline);
        self
    }

    fn limit(mut self, seconds: u64) -> Self {
        self.limit_s = seconds;
        self
    }

    /// The Debian root on a fresh copy of its disk, checked afterwards.
    fn debian_root(mut self) -> Self {
        self.before.push(format!("cp {} /tools/root-copy.img", at::ROOT_IMAGE));
        self.after.push(FSCK.to_owned());
        self.after.push("rm -f /tools/root-copy.img".to_owned());
        self.machine.disks.push("/tools/root-copy.img".to_owned());
        self.machine.memory_mib = 512;
        self.cmdline("root=/dev/vda")
    }

    /// Network interface number N, on TAP device `tapN` with the address `10.0.N.1` on the host's side.
    fn nic(mut self) -> Self {
        let n = self.machine.nics.len();
        self.before.push(format!("tunctl -t tap{n} && ip addr add 10.0.{n}.1/24 dev tap{n} && ip link set tap{n} up"));
        self.after.push(format!("tunctl -d tap{n}"));
        self.machine.nics.push((format!("tap{n}"), format!("52:54:00:12:34:{:02x}", 0x56 + n)));
        self
    }

    fn before(mut self, command: &str) -> Self {
        self.before.push(command.to_owned());
        self
    }

    fn step(mut self, step: Step) -> Self {
        self.steps.push(step);
        self
    }

    fn expect(self, text: &str, within_s: u64) -> Self {
        self.step(Step::Expect { text: text.to_owned(), within_s })
    }

    fn ready(self) -> Self {
        self.ready_within(BOOT_S)
    }

    fn ready_within(self, within_s: u64) -> Self {
        self.expect("LAB-READY", within_s).expect("\n", 10)
    }

    fn guest(self, command: &str) -> Self {
        self.guest_within(command, 30)
    }

    fn guest_within(self, command: &str, within_s: u64) -> Self {
        self.step(Step::Guest { command: command.to_owned(), within_s })
    }

    fn send(self, text: &str) -> Self {
        self.step(Step::Send { text: text.to_owned() })
    }

    fn shell(self, command: &str) -> Self {
        self.step(Step::Shell { command: command.to_owned() })
    }

    fn sample(self, name: &str) -> Self {
        self.step(Step::Sample { name: name.to_owned() })
    }

    fn qmp(self, execute: &str) -> Self {
        self.step(Step::Qmp { socket: QMP.to_owned(), execute: execute.to_owned() })
    }

    fn power_off(self) -> Self {
        self.send("poweroff -f\n").step(Step::Exit { within_s: 30, status: Some(0) })
    }

    fn finish(self, name: &str, vmm: Vmm) -> Run {
        let mut machine = self.machine;
        if vmm == Vmm::QemuMicrovm {
            // It has neither a keyboard controller nor a reset register.
            machine.cmdline += " reboot=t";
        }
        Run {
            name: name.to_owned(),
            before: self.before,
            command: vmm.command(&machine),
            steps: self.steps,
            after: self.after,
            limit_s: self.limit_s,
        }
    }
}

/// All scenarios, in the order they run.
#[must_use]
pub fn all() -> Vec<Scenario> {
    let mut list = Vec::new();
    boots(&mut list);
    figures(&mut list);
    topologies(&mut list);
    memories(&mut list);
    devices(&mut list);
    life_cycle(&mut list);
    list
}

fn add(
    list: &mut Vec<Scenario>,
    name: &str,
    about: &str,
    build: impl Fn(Vmm) -> Script + 'static,
    check: fn(&Outcome) -> anyhow::Result<()>,
) {
    list.push(Scenario {
        name: name.to_owned(),
        about: about.to_owned(),
        outer_memory_mib: 2048,
        gate: GATE.contains(&name),
        build: Box::new(build),
        check,
    });
}

const BANNER: &str = "dmesg | head -n 1";
/// Messages of level 4 (warning) and more urgent.
const WARNINGS: &str = "dmesg -r | grep '^<[0-4]>'; true";

fn boots(list: &mut Vec<Scenario>) {
    for which in Which::ALL {
        for elf in [false, true] {
            let form = if elf { "elf" } else { "bzimage" };
            add(
                list,
                &format!("boot-{}-{form}", which.name()),
                &format!("Debian's {} cloud kernel as {form} reaches a shell and powers off", which.name()),
                move |_| {
                    Script::new().kernel(which, elf).ready().sample("ready").guest(BANNER).guest(WARNINGS).power_off()
                },
                |outcome| {
                    let banner = output(outcome, BANNER)?.contains("Linux version");
                    ensure!(banner, "no kernel banner in the guest's log");
                    Ok(())
                },
            );
        }
    }
}

/// What the boot figures are taken from: 1 vCPU, 256 MiB, ELF kernel, a disk and an interface, read when the guest's init
/// starts and when its drivers are loaded.
fn figures(list: &mut Vec<Scenario>) {
    add(
        list,
        "figures",
        "exits, page faults and memory of a boot with a disk and an interface",
        |_| {
            let mut script = Script::new()
                .kernel(Which::Stable, true)
                .nic()
                .before("truncate -s 8M /tmp/a.img")
                .expect("LAB-INIT", BOOT_S)
                .sample("init")
                .ready()
                .sample("ready")
                .guest(WARNINGS)
                .power_off();
            script.machine.disks = vec!["/tmp/a.img".to_owned()];
            script
        },
        |outcome| {
            ensure!(outcome.samples.contains_key("init"), "no counters were read when init started");
            Ok(())
        },
    );
}

const TOPOLOGY: &str = "for c in /sys/devices/system/cpu/cpu[0-9]*; do \
    echo ${c##*cpu} $(cat $c/topology/physical_package_id $c/topology/core_id $c/topology/thread_siblings_list); done";

fn topologies(list: &mut Vec<Scenario>) {
    for cpus in [2_u32, 4, 16] {
        add(
            list,
            &format!("vcpus-{cpus}"),
            &format!("{cpus} vCPUs are online, each a core of its own"),
            move |_| {
                let mut script = Script::new()
                    .limit(60 + BOOT_S + 10 * u64::from(cpus))
                    .ready_within(BOOT_S + 8 * u64::from(cpus))
                    .guest("nproc")
                    .guest("cat /sys/devices/system/cpu/online")
                    .guest(TOPOLOGY)
                    .guest(WARNINGS)
                    .power_off();
                script.machine.cpus = cpus;
                script
            },
            |outcome| {
                let cpus: u32 = outcome.name.rsplit('-').next().unwrap_or_default().parse()?;
                let online: u32 = output(outcome, "nproc")?.trim().parse()?;
                ensure!(online == cpus, "{online} of {cpus} vCPUs are online");
                let mut cores = std::collections::BTreeSet::new();
                for line in output(outcome, TOPOLOGY)?.lines().filter(|line| !line.trim().is_empty()) {
                    let words: Vec<&str> = line.split_whitespace().collect();
                    let [cpu, package, core, siblings] = words[..] else {
                        anyhow::bail!("no topology in `{line}`");
                    };
                    ensure!(siblings == cpu, "vCPU {cpu} shares its core with {siblings}");
                    ensure!(cores.insert((package.to_owned(), core.to_owned())), "two vCPUs are core {core}");
                }
                ensure!(cores.len() == cpus as usize, "{} cores for {cpus} vCPUs", cores.len());
                Ok(())
            },
        );
    }
}

fn memories(list: &mut Vec<Scenario>) {
    for mib in [128_u64, 512, 5120] {
        add(
            list,
            &format!("memory-{mib}"),
            &format!("a guest of {mib} MiB finds its memory"),
            move |_| {
                let mut script = Script::new().ready().guest("cat /proc/meminfo").guest("cat /proc/iomem").power_off();
                script.machine.memory_mib = mib;
                script
            },
            |outcome| {
                let mib: u64 = outcome.name.rsplit('-').next().unwrap_or_default().parse()?;
                let text = output(outcome, "cat /proc/meminfo")?;
                let total_kib: u64 = text
                    .lines()
                    .find_map(|line| line.strip_prefix("MemTotal:"))
                    .and_then(|rest| rest.split_whitespace().next())
                    .context("no MemTotal")?
                    .parse()?;
                // The kernel's own text and tables are not counted: about 50 MiB and 1/32 of the rest.
                let total = total_kib / 1024;
                ensure!(total <= mib && total + 56 + mib / 32 >= mib, "the guest of {mib} MiB sees {total} MiB");
                Ok(())
            },
        );
        // More memory than the host has is refused; only what is touched is ever taken from the machine.
        if let Some(last) = list.last_mut() {
            last.outer_memory_mib = last.outer_memory_mib.max(mib + 1024);
        }
    }
}

const SIZES: &str = "cat /sys/block/vda/size /sys/block/vdb/size";
const PLACES: &str = "for d in block/vda block/vdb net/eth0 net/eth1; do readlink -f /sys/class/$d/device; done";
const ADDRESSES: &str = "cat /sys/class/net/eth0/address /sys/class/net/eth1/address";

const TRANSFER_BYTES: u64 = 100_000_000;
const CALL: &str = "lab-peer call 10.0.0.1:5001 100000000";
const SERVED: &str = "timeout 20 sh -c 'until grep received /tmp/served; do sleep 0.2; done'";
const CHECKSUM: &str = "crc32 /tmp/in; wc -c < /tmp/in";

fn devices(list: &mut Vec<Scenario>) {
    add(
        list,
        "disk-root",
        "a Debian root on virtio-blk reaches a shell, is written to, and is clean after power-off",
        |_| {
            Script::new()
                .debian_root()
                .limit(240)
                .ready_within(150)
                .guest("findmnt -n -o SOURCE,FSTYPE,OPTIONS /")
                .guest("cat /etc/debian_version; lscpu; lsblk")
                .guest_within("dd if=/dev/urandom of=/var/tmp/data bs=64k count=256 conv=fsync 2>&1", 60)
                .guest_within("sha256sum /var/tmp/data | tee /var/tmp/sum; echo 3 > /proc/sys/vm/drop_caches", 60)
                .guest_within("sha256sum -c /var/tmp/sum && rm -r /usr/share/perl*", 60)
                .send("shutdown -h -P now\n")
                .expect("LAB-DOWN poweroff", 60)
                .step(Step::Exit { within_s: 30, status: Some(0) })
        },
        |outcome| {
            let root = output(outcome, "findmnt -n -o SOURCE,FSTYPE,OPTIONS /")?;
            let columns: Vec<&str> = root.split_whitespace().collect();
            let [source, kind, options] = columns[..] else { bail!("the root file system is {root}") };
            let writable = options.split(',').any(|option| option == "rw");
            ensure!(source == "/dev/vda" && kind == "ext4" && writable, "the root file system is {root}");
            Ok(())
        },
    );
    add(
        list,
        "tcp-100mb",
        "100 MB each way over TCP arrive as they were sent",
        |_| {
            Script::new()
                .nic()
                .limit(300)
                .before(&format!("lab-peer serve 10.0.0.1:5001 {TRANSFER_BYTES} > /tmp/served 2>&1 &"))
                .ready()
                .guest("ip addr add 10.0.0.2/24 dev eth0 && ip link set eth0 up && ping -c 3 10.0.0.1")
                .guest_within(CALL, 200)
                .shell(SERVED)
                .power_off()
        },
        |outcome| {
            for command in [CALL, SERVED] {
                let text = output(outcome, command)?;
                ensure!(text.contains(&format!("received {TRANSFER_BYTES} bytes")), "not everything arrived: {text}");
            }
            Ok(())
        },
    );
    add(
        list,
        "two-disks-two-nics",
        "two disks and two network interfaces keep their names over a reboot",
        |_| {
            let mut script = Script::new()
                .nic()
                .nic()
                .limit(60 + 2 * BOOT_S)
                .before("truncate -s 8M /tmp/a.img; truncate -s 16M /tmp/b.img")
                .ready()
                .guest(SIZES)
                .guest(ADDRESSES)
                .guest(PLACES)
                .send("reboot -f\n")
                .ready()
                .guest(SIZES)
                .guest(ADDRESSES)
                .guest(PLACES)
                .power_off();
            script.machine.disks = vec!["/tmp/a.img".to_owned(), "/tmp/b.img".to_owned()];
            script
        },
        |outcome| {
            for (command, want) in [(SIZES, "16384 32768"), (ADDRESSES, "52:54:00:12:34:56 52:54:00:12:34:57")] {
                for found in outputs(outcome, command) {
                    let found = found.split_whitespace().collect::<Vec<_>>().join(" ");
                    ensure!(found == want, "`{command}` shows {found}, not {want}");
                }
            }
            let places = outputs(outcome, PLACES);
            ensure!(places.len() == 2 && places[0] == places[1], "devices moved over the reboot: {places:?}");
            Ok(())
        },
    );
    add(
        list,
        "serial-input",
        "8 KiB typed at full speed arrive without loss",
        |_| {
            Script::new()
                .ready()
                .send(&format!(
                    "stty raw -echo; (timeout 50 cat <&3 > /tmp/in & echo LAB\"\"-GO; for n in $(seq 50); do \
                     [ $(wc -c < /tmp/in) -ge {} ] && break; sleep 1; done; kill $! 2>&-) 3<&0; \
                     stty sane -echo; echo LAB\"\"-GOT\n",
                    64 * TYPED_LINES
                ))
                .expect("LAB-GO\n", 20)
                .step(Step::SendPattern { lines: TYPED_LINES })
                .expect("LAB-GOT\n", 60)
                .guest(CHECKSUM)
                .power_off()
        },
        |outcome| {
            let text: String = (0..TYPED_LINES).map(pattern).collect();
            let want = format!("{:08x}", crc32fast::hash(text.as_bytes()));
            let got = output(outcome, CHECKSUM)?.trim();
            ensure!(got.starts_with(&want), "what arrived has the checksum {got}, not {want}");
            Ok(())
        },
    );
}

fn life_cycle(list: &mut Vec<Scenario>) {
    add(
        list,
        "reboot-5",
        "five reboots from inside the guest, then power-off",
        |_| {
            let mut script = Script::new().limit(60 + 6 * BOOT_S).ready();
            for _ in 0..5 {
                script = script.send("reboot -f\n").ready();
            }
            script.power_off()
        },
        |_| Ok(()),
    );
    add(
        list,
        "sigterm",
        "SIGTERM is the power button: a Debian guest shuts down cleanly",
        |vmm| {
            let script = Script::new().debian_root().limit(240).ready_within(150).guest("touch /var/tmp/unsynced");
            // For qemu SIGTERM is the plug, not the button.
            let script = if vmm.is_zvmm() {
                script.step(Step::Signal { number: SIGTERM }).step(Step::Signal { number: SIGTERM })
            } else {
                script.qmp("system_powerdown")
            };
            script.expect("LAB-DOWN poweroff", 60).step(Step::Exit { within_s: 30, status: Some(0) })
        },
        |_| Ok(()),
    );
    add(
        list,
        "panic",
        "a kernel panic with panic=-1 resets the guest",
        |_| {
            let mut script = Script::new()
                .ready()
                .send("echo c > /proc/sysrq-trigger\n")
                .expect("Kernel panic", 30)
                .step(Step::Exit { within_s: 30, status: None });
            script.machine.reset_ends = true;
            script
        },
        |_| Ok(()),
    );
    for (name, more) in [("pause", ""), ("pause-tsc", "no-kvmclock")] {
        add(
            list,
            name,
            "a second of pause leaves the guest's realtime within 50 ms of the host's",
            move |_| {
                Script::new()
                    .cmdline(more)
                    .ready()
                    .guest("cat /sys/devices/system/clocksource/clocksource0/current_clocksource")
                    .step(Step::ClockOffset { name: "before".to_owned() })
                    .qmp("stop")
                    .step(Step::Sleep { ms: 1000 })
                    .qmp("cont")
                    .step(Step::ClockOffset { name: "after".to_owned() })
                    .power_off()
            },
            |outcome| {
                let offset = |name: &str| outcome.offsets_ms.get(name).copied().context("no clock reading");
                let moved = offset("after")? - offset("before")?;
                ensure!(moved.abs() < 50.0, "the guest's clock is {moved:.0} ms off after the pause");
                Ok(())
            },
        );
    }
}

const FROM_HOST: &str = "greetings from the host";
const FROM_GUEST: &str = "greetings from the guest";
const GREETING_ARRIVED: &str = "cat /tmp/greeting";

/// What `cargo xtask demo` shows.
#[must_use]
pub fn demo() -> Scenario {
    let mut list = Vec::new();
    add(
        &mut list,
        "demo",
        "a Debian guest: banner, root on /dev/vda, TCP with the host, clean power-off",
        |_| {
            let mut script = Script::new()
                .debian_root()
                .nic()
                .limit(300)
                .before(&format!("echo {FROM_HOST} | nc -l -p 5001 > /tmp/greeting &"))
                .ready_within(200)
                .guest("lscpu | head -n 12; lsblk; free -m")
                .guest(
                    "ip addr add 10.0.0.2/24 dev eth0 && ip link set eth0 up && ip -brief addr && ping -c 2 10.0.0.1",
                )
                .guest(&format!("echo {FROM_GUEST} | nc -N -w 10 10.0.0.1 5001"))
                .shell(GREETING_ARRIVED)
                .send("shutdown -h -P now\n")
                .expect("LAB-DOWN poweroff", 60)
                .step(Step::Exit { within_s: 30, status: Some(0) });
            // Here people watch: with the kernel's messages.
            script.machine.cmdline = script.machine.cmdline.replace(" quiet", "");
            script
        },
        |_| Ok(()),
    );
    list.remove(0)
}

/// The four things the demo is about, each with the line that shows it, if it was seen.
#[must_use]
pub fn demo_sights(outcome: &Outcome) -> [(&'static str, Option<String>); 4] {
    let line = |text: &str| outcome.lines.iter().map(|(_, line)| line).find(|line| line.contains(text)).cloned();
    let heard = |text: &str| outcome.outputs.iter().any(|(_, output)| output.contains(text));
    [
        ("the kernel's banner", line("Linux version")),
        ("the root file system on /dev/vda", line(" on /dev/vda").filter(|line| line.starts_with("LAB-READY"))),
        (
            "a TCP exchange with the host over virtio-net",
            (line(FROM_HOST).is_some() && heard(FROM_GUEST)).then(|| format!("`{FROM_GUEST}`, `{FROM_HOST}`")),
        ),
        ("a clean power-off", line("LAB-DOWN poweroff").filter(|_| outcome.end.as_deref() == Some("exit 0"))),
    ]
}

/// The outputs of a command that ran several times.
fn outputs<'a>(outcome: &'a Outcome, command: &str) -> Vec<&'a str> {
    outcome.outputs.iter().filter(|(c, _)| c == command).map(|(_, output)| output.as_str()).collect()
}

fn output<'a>(outcome: &'a Outcome, command: &str) -> anyhow::Result<&'a str> {
    outputs(outcome, command).first().copied().with_context(|| format!("`{command}` was not run"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_typed_has_lines_of_64_bytes_and_no_two_alike() {
        assert!([0, 1, 127, u32::MAX].iter().all(|&n| pattern(n).len() == 64));
        assert_ne!(pattern(1), pattern(2));
    }

    #[test]
    fn every_scenario_has_a_time() {
        let times = crate::times::Times::read().unwrap();
        for scenario in all() {
            assert!(times.seconds(&format!("lab/{}", scenario.name)).is_some(), "{}", scenario.name);
        }
    }

    #[test]
    fn the_gate_names_scenarios_that_exist() {
        let all = all();
        assert_eq!(all.iter().filter(|s| s.gate).count(), GATE.len());
    }

    #[test]
    fn a_demo_that_was_cut_off_shows_nothing() {
        assert!(demo_sights(&Outcome::default()).iter().all(|(_, seen)| seen.is_none()));
    }

    #[test]
    fn every_scenario_has_a_name_of_its_own_and_ends_its_guest() {
        let all = all();
        let mut names: Vec<&str> = all.iter().map(|s| s.name.as_str()).collect();
        names.sort_unstable();
        let count = names.len();
        names.dedup();
        assert_eq!(names.len(), count);
        for scenario in &all {
            let run = scenario.run(Vmm::Zvmm);
            assert!(matches!(run.steps.last(), Some(Step::Exit { .. })), "{} ends nothing", scenario.name);
        }
    }
}
