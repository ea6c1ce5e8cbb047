//! The second outer machine: Bochs, which emulates VMX with EPT and unrestricted guests, and AVX inside guests. Slow, but
//! right where the nested SVM of the first is not: the last word on CPU state.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};

use super::content::at;
use super::control::Controls;
use super::images::{self, Initramfs};
use super::job::{Job, Outcome, QMP, Run, Step};
use super::kernel::{self, Which};
use super::kvm_tests::{KvmTests, all_passed};
use super::outer::{Guard, Report, RunFolder};
use super::scenarios::{self, LSCPU, WARNINGS, shows_topology};
use super::vmm::{Machine, Vmm};
use super::{Lab, keep_log};
use crate::{debian, paths};

const PACKAGES: [&str; 6] = ["bochs", "bochsbios", "vgabios", "grub-pc-bin", "grub-common", "xorriso"];

/// Modules of the outer machine: KVM, and the disks that Bochs has.
const MODULES: [&str; 6] = ["irqbypass", "kvm", "kvm-intel", "tun", "ata_piix", "sd_mod"];

const INIT: &str = include_str!("../../files/vmx-init.sh");

/// The whole boot is cut off after this time.
const LIMIT: Duration = Duration::from_secs(60 * 60);

/// The runner gives a sign of life every five seconds of the emulated machine's time; before it starts, a loaded machine
/// takes minutes.
const SILENCE: Duration = Duration::from_secs(150);

/// Kernel options of the outer machine. Its clocks follow the emulated instructions: nothing is to be measured.
const CMDLINE: &str = "console=ttyS0,115200 nokaslr panic=1 mitigations=off tsc=reliable lpj=1000000 no_timer_check \
                       quiet audit=0 apparmor=0 cryptomgr.notests rdinit=/init";

/// The CPU. `haswell` is the model that both boots and gives guests XSAVE and AVX.
const MODEL: &str = "model=corei7_haswell_4770, count=1, ips=40000000, reset_on_triple_fault=0, ignore_bad_msrs=1";

/// One run in this machine.
struct Test {
    about: &'static str,
    run: Run,
    check: Check,
}

type Check = Box<dyn Fn(&Outcome) -> anyhow::Result<()>>;

/// Runs the tests of this machine (all, or those whose names begin as given); scenarios of the first machine run here too
/// when they are named.
///
/// # Errors
/// When something cannot be built or started, or a test fails.
pub fn run(names: &[String], vmm: Vmm, list: bool) -> anyhow::Result<()> {
    let wanted = |name: &str| names.iter().any(|wanted| name.starts_with(wanted.as_str()));
    let kvm_tests = if list { KvmTests::default() } else { KvmTests::build()? };
    let mut tests = if vmm == Vmm::ZVMM { tests(&kvm_tests, vmm) } else { Vec::new() };
    if list {
        for test in &tests {
            println!("{:<24} {}", test.run.name, test.about);
        }
        return Ok(());
    }
    if !names.is_empty() {
        tests.retain(|test| wanted(test.run.name.trim_start_matches("vmx/")));
        for scenario in scenarios::all().into_iter().filter(|scenario| wanted(&scenario.name)) {
            // What is masked in the first machine is right here.
            let run = scenario.run_with(vmm, |machine| machine.cpu = machine.cpu.replace(scenarios::CPU, "host"));
            tests.push(Test { about: "", run, check: Box::new(move |outcome| scenario.check(outcome, vmm)) });
        }
        ensure!(!tests.is_empty(), "no such test; `cargo xtask lab --vmx --list` shows them");
    }
    let mut lab = Lab::prepare(&[vmm])?;
    lab.add_what_guests_need(scenarios::all().iter().filter(|s| wanted(&s.name)).map(|s| s.machine(vmm)))?;
    println!("lab: {} tests with {}, in an emulated outer machine with VMX and EPT", tests.len(), vmm.name());
    let job = Job { runs: tests.iter().map(|test| test.run.clone()).collect() };
    let identity = format!("bochs {:x} {}", crc32fast::hash(MODEL.as_bytes()), lab.content.identity);
    let stock = tests.iter().any(|test| test.run.name == STOCK).then(|| (vmm, stock_machine()));
    let controls = Controls::of(&identity, stock, |job| boot(&lab, &kvm_tests, job))?;
    let report = boot(&lab, &kvm_tests, &job)?;
    let mut failed = Vec::new();
    for test in &tests {
        let name = &test.run.name;
        match judge(test, &report, &controls, vmm) {
            Ok(wall_ms) => println!("ok      {name:<24} {:.1} s of the outer machine's time", wall_ms as f64 / 1e3),
            Err(error) => {
                println!("FAILED  {name:<24} {error:#}");
                failed.push(name.as_str());
            }
        }
    }
    let (wall, log) = (report.wall.as_secs_f64(), report.log.display());
    println!("lab: {:?} after {wall:.0} s; console log: {log}", report.end);
    ensure!(failed.is_empty(), "{} of {} tests failed: {}", failed.len(), tests.len(), failed.join(", "));
    Ok(())
}

fn judge(test: &Test, report: &Report, controls: &Controls, vmm: Vmm) -> anyhow::Result<u64> {
    let outcome = report
        .outcomes
        .iter()
        .find(|outcome| outcome.name == test.run.name)
        .with_context(|| format!("the outer machine ended before it ({:?})", report.end))?;
    keep_log(outcome)?;
    if let Some(failure) = &outcome.failure {
        let failed: Vec<&str> =
            outcome.lines.iter().map(|(_, line)| line.as_str()).filter(|line| line.ends_with("FAILED")).collect();
        bail!("{failure}; {} stderr: {}", failed.join("; "), outcome.stderr.trim());
    }
    (test.check)(outcome)?;
    if test.run.name == STOCK {
        controls.check(vmm, &stock_machine(), outcome)?;
    }
    Ok(outcome.wall_ms)
}

const NMIS: &str = "grep NMI: /proc/interrupts";
const AVX: &str = "lab-peer avx 2 500";
const ONLINE: &str = "nproc; grep -c ' avx ' /proc/cpuinfo";
/// The last bytes below 4 GiB, where a PC has its ROM, and a hole below it.
const READ_ONLY: &str = "for a in 0xfffffff0 0xe8000000; do devmem $a 32 0x12345678 && devmem $a 32; done";

const STOCK: &str = "vmx/stock-guest";

/// What the backend's own tests show here beside everything else, and must therefore be among those that ran.
const SHOWN: [&str; 4] = [
    "a_vcpu_starts_in_real_mode_at_the_reset_vector",
    "a_write_to_a_rom_arrives_as_an_exit_and_changes_nothing",
    "a_triple_fault_is_told_apart_from_a_reset",
    "a_doorbell_signals_its_event_without_an_exit",
];

fn tests(kvm_tests: &KvmTests, vmm: Vmm) -> Vec<Test> {
    let run = |name: &str, program: &str| Run {
        name: format!("vmx/{name}"),
        ..kvm_tests.runs(Some(program)).pop().unwrap_or_default()
    };
    vec![
        Test {
            about: "the KVM backend's own tests: real mode at the reset vector, ROM, exits, triple fault, doorbells",
            run: run("backend", "zvmm-lib"),
            check: Box::new(backend_is_right),
        },
        Test {
            about: "a stock guest with a core of 2 threads and AVX: registers kept, NMI, writes to no memory, triple fault",
            run: stock(vmm),
            check: Box::new(stock_is_right),
        },
        Test {
            about: "all own guests that run on any /dev/kvm",
            run: run("p0", "zvmm-p0"),
            check: Box::new(all_passed),
        },
    ]
}

fn backend_is_right(outcome: &Outcome) -> anyhow::Result<()> {
    all_passed(outcome)?;
    for shown in SHOWN {
        let passed = outcome.lines.iter().any(|(_, line)| line.contains(shown) && line.ends_with("... ok"));
        ensure!(passed, "the test {shown} did not run");
    }
    Ok(())
}

/// One core of two threads: what the other machine's CPU cannot have.
const TOPOLOGY: [u32; 3] = [1, 1, 2];

/// The stock guest: nothing is masked from its CPU.
fn stock_machine() -> Machine {
    Machine {
        cpus: 2,
        topology: Some(TOPOLOGY),
        memory_mib: 256,
        low_split_mib: None,
        kernel: at::kernel(Which::Stable, true),
        initrd: at::initrd_with_lscpu(),
        // The crypto self-tests are half the boot here.
        cmdline: "console=ttyS0 quiet panic=-1 reboot=t cryptomgr.notests".to_owned(),
        disks: vec!["/tmp/a.img".to_owned()],
        nics: Vec::new(),
        nic_keys: String::new(),
        carried_keys: String::new(),
        link_keys: String::new(),
        console: false,
        rng: false,
        cpu: "host".to_owned(),
        packed: false,
        virtio: None,
        io_uring: false,
        buffered: None,
        queues: None,
        serials: Vec::new(),
        kvmclock: true,
        reset_ends: false,
    }
}

fn stock(vmm: Vmm) -> Run {
    const BOOT_S: u64 = 240;
    let machine = stock_machine();
    let mut command = vmm.command(&machine);
    // The reason of a reset is in the log.
    command.extend(["--log", "info"].map(str::to_owned));
    let expect = |text: &str, within_s| Step::Expect { text: text.to_owned(), within_s };
    let guest = |command: &str| Step::Guest { command: command.to_owned(), within_s: 120 };
    let qmp = |execute: &str| Step::Qmp { socket: QMP.to_owned(), execute: execute.to_owned(), arguments: None };
    Run {
        name: STOCK.to_owned(),
        before: vec![format!("rm -f {QMP}"), "truncate -s 8M /tmp/a.img".to_owned()],
        command,
        steps: vec![
            expect("LAB-READY", BOOT_S),
            expect("\n", 10),
            guest(ONLINE),
            guest(LSCPU),
            guest(WARNINGS),
            guest(AVX),
            guest(READ_ONLY),
            guest("dd if=/dev/vda of=/dev/null bs=64k 2>&1"),
            guest(NMIS),
            qmp("inject-nmi"),
            Step::Sleep { ms: 1000 },
            guest(NMIS),
            // `reboot=t`: by a triple fault.
            Step::Send { text: "reboot -f\n".to_owned() },
            expect("LAB-INIT", BOOT_S),
            qmp("quit"),
            Step::Exit { within_s: 30, status: None },
        ],
        limit_s: 2 * BOOT_S + 120,
        ..Run::default()
    }
}

fn stock_is_right(outcome: &Outcome) -> anyhow::Result<()> {
    let said = |command: &str| -> Vec<&str> {
        outcome.outputs.iter().filter(|(c, _)| c == command).map(|(_, output)| output.trim()).collect()
    };
    shows_topology(said(LSCPU).first().context("lscpu was not run")?, TOPOLOGY)?;
    ensure!(said(ONLINE) == ["2\n2"], "not two vCPUs with AVX are online: {:?}", said(ONLINE));
    ensure!(said(AVX).iter().any(|text| text.contains("left all YMM registers")), "AVX state: {:?}", said(AVX));
    ensure!(said(READ_ONLY) == ["0xFFFFFFFF\n0xFFFFFFFF"], "memory where none is: {:?}", said(READ_ONLY));
    // The kernel's complaint about an NMI that nobody asked for comes between.
    let nmis = |text: &str| {
        let (_, counts) = text.split_once("NMI:")?;
        counts.split_whitespace().next()?.parse::<u32>().ok()
    };
    let counts: Vec<_> = said(NMIS).into_iter().map(nmis).collect();
    ensure!(matches!(counts[..], [Some(before), Some(after)] if after == before + 1), "NMIs of CPU 0: {counts:?}");
    ensure!(outcome.stderr.contains("triple fault"), "the guest reset, but not by a triple fault: {}", outcome.stderr);
    Ok(())
}

/// Boots Bochs with a job.
fn boot(lab: &Lab, kvm_tests: &KvmTests, job: &Job) -> anyhow::Result<Report> {
    let root = debian::unpack("bochs", &PACKAGES)?;
    let iso = boot_image(&root, lab)?;
    let folder = RunFolder::new("vmx")?;
    let disk = folder.file("lab.img");
    lab_disk(&folder.file("stage"), &disk, lab, kvm_tests, job)?;
    fs::write(folder.file("bochsrc"), settings(&root, &iso, &lab.content.tools, &disk, &folder))?;
    // Debian's is the build with a debugger: it waits to be told to continue.
    fs::write(folder.file("commands"), "c\n")?;

    let mut bochs = debian::command(&root, "bochs-bin")?;
    let library = root.join("usr/lib/x86_64-linux-gnu");
    bochs.env("LTDL_LIBRARY_PATH", library.join("bochs/plugins")).env("BXSHARE", root.join("usr/share/bochs"));
    bochs.arg("-q").arg("-f").arg(folder.file("bochsrc")).arg("-rc").arg(folder.file("commands"));
    let output = fs::File::create(folder.file("bochs.out"))?;
    bochs.stdin(Stdio::null()).stdout(output.try_clone()?).stderr(output);
    for file in ["log", "results"] {
        fs::write(folder.file(file), "")?;
    }
    let start = Instant::now();
    let mut guard = Guard(bochs.spawn().context("cannot start bochs")?);
    let stuck = wait(&mut guard, &folder, start)?;
    drop(guard);
    let said = fs::read_to_string(folder.file("bochs.out")).unwrap_or_default();
    if fs::metadata(folder.file("log"))?.len() == 0 {
        let said: Vec<&str> = said.lines().rev().filter(|line| !line.trim().is_empty()).take(8).collect();
        bail!("bochs booted nothing; what it said, newest first: {said:#?}");
    }
    folder.report(start.elapsed(), stuck)
}

/// Waits for the end of Bochs, which has status 1 also when its guest powers off. Says whether it was stuck.
fn wait(guard: &mut Guard, folder: &RunFolder, start: Instant) -> anyhow::Result<bool> {
    let (mut said, mut alive) = (0, start);
    while guard.0.try_wait()?.is_none() {
        let length = |name: &str| fs::metadata(folder.file(name)).map_or(0, |metadata| metadata.len());
        let now = length("log") + length("results");
        if now != said {
            (said, alive) = (now, Instant::now());
        }
        if alive.elapsed() > SILENCE {
            return Ok(true);
        }
        if start.elapsed() > LIMIT {
            return Ok(false);
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    Ok(false)
}

/// The CD that Bochs boots: GRUB, the kernel, and what is needed to reach the disks. Kept until its parts change.
fn boot_image(root: &Path, lab: &Lab) -> anyhow::Result<PathBuf> {
    let kernel = kernel::get(Which::Stable)?;
    let mut initrd = Initramfs::new()?;
    initrd.file("bin/busybox", &fs::read(&lab.content.busybox_path)?)?;
    initrd.link("bin/sh", "busybox")?;
    initrd.file("init", INIT.as_bytes())?;
    initrd.modules(&kernel.modules(&MODULES)?)?;
    let initrd = initrd.finish()?;
    let iso = paths::lab().join("vmx.iso");
    let stamp_path = paths::lab().join("vmx.stamp");
    let mut stamp = String::new();
    writeln!(stamp, "{} {CMDLINE} {} {:x}", kernel.release, initrd.len(), crc32fast::hash(&initrd))?;
    writeln!(stamp, "{:x}", crc32fast::hash(include_bytes!("vmx.rs")))?;
    if iso.exists() && fs::read_to_string(&stamp_path).ok().as_ref() == Some(&stamp) {
        return Ok(iso);
    }
    eprintln!("lab: making the boot image of the outer machine");
    let stage = paths::lab().join("vmx.stage");
    debian::remove_tree(&stage)?;
    let content = stage.join("content");
    fs::create_dir_all(&content)?;
    fs::copy(&kernel.bzimage, content.join("vmlinuz"))?;
    fs::write(content.join("initrd"), initrd)?;
    fs::write(stage.join("grub.cfg"), format!("linux /vmlinuz {CMDLINE}\ninitrd /initrd\nboot\n"))?;
    let mut mkimage = debian::command(root, "grub-mkimage")?;
    mkimage.args(["--format", "i386-pc-eltorito", "--prefix", "/", "--directory"]);
    mkimage.arg(root.join("usr/lib/grub/i386-pc")).arg("--config").arg(stage.join("grub.cfg"));
    mkimage.arg("--output").arg(content.join("grub.img")).args(["biosdisk", "iso9660", "linux"]);
    run_tool(&mut mkimage)?;
    let fresh = iso.with_extension("new");
    let mut xorriso = debian::command(root, "xorriso")?;
    xorriso.args(["-as", "mkisofs", "-quiet", "-R", "-b", "grub.img", "-no-emul-boot", "-boot-load-size", "4"]);
    xorriso.args(["-boot-info-table", "-o"]).arg(&fresh).arg(&content);
    run_tool(&mut xorriso)?;
    fs::rename(fresh, &iso)?;
    fs::write(stamp_path, stamp)?;
    debian::remove_tree(&stage)?;
    Ok(iso)
}

fn run_tool(command: &mut Command) -> anyhow::Result<()> {
    let output = command.stdin(Stdio::null()).output().with_context(|| format!("cannot run {command:?}"))?;
    ensure!(output.status.success(), "{command:?} failed: {}", String::from_utf8_lossy(&output.stderr).trim_end());
    Ok(())
}

/// The second disk: what changes from run to run.
fn lab_disk(stage: &Path, image: &Path, lab: &Lab, kvm_tests: &KvmTests, job: &Job) -> anyhow::Result<()> {
    let own = [("bin/lab-runner", lab.runner.clone()), ("bin/lab-peer", lab.content.peer_path.clone())];
    let own = own.map(|(to, from)| (to.to_owned(), from));
    for (to, from) in own.iter().chain(&lab.programs).chain(&kvm_tests.files()?) {
        // The disk itself is mounted on `/lab`.
        let to = stage.join(to.strip_prefix("lab/").unwrap_or(to));
        fs::create_dir_all(to.parent().unwrap_or(stage))?;
        fs::copy(from, to).with_context(|| format!("cannot copy {}", from.display()))?;
    }
    fs::write(stage.join("job.json"), serde_json::to_vec(job)?)?;
    images::ext4(stage, image, 8)?;
    debian::remove_tree(stage)
}

/// Bochs' settings; without the lines about sound and plug-ins Debian's build dies at start.
fn settings(root: &Path, iso: &Path, tools: &Path, disk: &Path, folder: &RunFolder) -> String {
    let rom = |name: &str| root.join("usr/share").join(name).display().to_string();
    format!(
        "config_interface: textconfig
display_library: rfb, options=\"timeout=0\"
cpu: {MODEL}
memory: guest=1024, host=1024
romimage: file={bios}, options=fastboot
vgaromimage: file={vga}
pci: enabled=1, chipset=i440fx
ata0: enabled=1, ioaddr1=0x1f0, ioaddr2=0x3f0, irq=14
ata1: enabled=1, ioaddr1=0x170, ioaddr2=0x370, irq=15
ata0-master: type=disk, mode=volatile, path={tools}, journal={journal}-a
ata0-slave: type=disk, mode=volatile, path={disk}, journal={journal}-b
ata1-master: type=cdrom, path={iso}, status=inserted
boot: cdrom
com1: enabled=1, mode=file, dev={log}
com2: enabled=1, mode=file, dev={results}
log: {said}
plugin_ctrl: speaker=0, gameport=0, sb16=0, es1370=0
sound: driver=dummy, waveoutdrv=dummy, waveout=none, waveindrv=dummy, midioutdrv=dummy
clock: sync=none, time0=1700000000
panic: action=report
error: action=ignore
info: action=ignore
debug: action=ignore
",
        bios = rom("bochs/BIOS-bochs-latest"),
        vga = rom("vgabios/vgabios.bin"),
        tools = tools.display(),
        disk = disk.display(),
        iso = iso.display(),
        journal = folder.file("journal").display(),
        log = folder.file("log").display(),
        results = folder.file("results").display(),
        said = folder.file("bochs.log").display(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_backend_whose_tests_leave_out_one_that_is_to_be_shown_is_not_right() {
        let mut lines: Vec<String> =
            SHOWN.iter().map(|name| format!("test hypervisor::kvm::tests::{name} ... ok")).collect();
        lines.push("test result: ok. 4 passed; 0 failed; 0 ignored".to_owned());
        let outcome = |skip: Option<usize>| Outcome {
            lines: lines.iter().enumerate().filter(|(n, _)| Some(*n) != skip).map(|(_, l)| (0, l.clone())).collect(),
            ..Outcome::default()
        };
        backend_is_right(&outcome(None)).unwrap();
        assert!((0..lines.len()).all(|missing| backend_is_right(&outcome(Some(missing))).is_err()));
    }

    #[test]
    fn every_step_of_the_stock_guest_is_needed_to_be_right() {
        let mut good = Outcome { stderr: "vCPU 0: triple fault".to_owned(), ..Outcome::default() };
        for (command, output) in [
            (ONLINE, "2\n2\n"),
            (LSCPU, "CPU(s): 2\nThread(s) per core: 2\nCore(s) per socket: 1\nSocket(s): 1\n"),
            (AVX, "100 rounds on 2 CPUs left all YMM registers as they were\n"),
            (READ_ONLY, "0xFFFFFFFF\n0xFFFFFFFF\n"),
            (NMIS, " NMI:          0          0   Non-maskable interrupts\n"),
            (
                NMIS,
                "[   39.3] Uhhuh. NMI received for unknown reason 30\n NMI:          1          0   Non-maskable interrupts\n",
            ),
        ] {
            good.outputs.push((command.to_owned(), output.to_owned()));
        }
        stock_is_right(&good).unwrap();
        for missing in 0..good.outputs.len() {
            let mut bad = good.clone();
            bad.outputs.remove(missing);
            assert!(stock_is_right(&bad).is_err(), "without {missing}");
        }
        good.stderr.clear();
        assert!(stock_is_right(&good).is_err());
    }
}
