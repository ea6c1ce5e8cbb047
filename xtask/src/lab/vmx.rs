//! The second outer machine: Bochs, which emulates VMX with EPT and unrestricted guests, and AVX inside guests. Slow, but
//! right where the nested SVM of the first is not: the last word on CPU state.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};

use super::content::at;
use super::images::{self, Initramfs};
use super::job::{Job, Outcome, Run, Step};
use super::kernel::{self, Which};
use super::outer::{Guard, Report, RunFolder};
use super::vmm::{Machine, QMP, Vmm};
use super::{Lab, keep_log, scenarios};
use crate::{debian, guests, paths};

const PACKAGES: [&str; 6] = ["bochs", "bochsbios", "vgabios", "grub-pc-bin", "grub-common", "xorriso"];

/// Modules of the outer machine: KVM, and the disks that Bochs has.
const MODULES: [&str; 6] = ["irqbypass", "kvm", "kvm-intel", "tun", "ata_piix", "sd_mod"];

const INIT: &str = include_str!("../../files/vmx-init.sh");

/// The whole boot is cut off after this time.
const LIMIT: Duration = Duration::from_secs(20 * 60);

/// The runner gives a sign of life every five seconds of the emulated machine's time; before it starts, a loaded machine
/// takes minutes.
const SILENCE: Duration = Duration::from_secs(150);

/// Kernel options of the outer machine. Its clocks follow the emulated instructions: nothing is to be measured.
const CMDLINE: &str = "console=ttyS0,115200 nokaslr panic=1 mitigations=off tsc=reliable lpj=1000000 no_timer_check \
                       quiet audit=0 apparmor=0 cryptomgr.notests rdinit=/init";

const TARGET: &str = "x86_64-unknown-linux-gnu";

/// One run in this machine.
struct Test {
    about: &'static str,
    run: Run,
    check: fn(&Outcome) -> anyhow::Result<()>,
}

/// Runs the tests of this machine (all, or those whose names begin as given); scenarios of the first machine run here too
/// when they are named.
///
/// # Errors
/// When something cannot be built or started, or a test fails.
pub fn run(names: &[String], vmm: Vmm, list: bool) -> anyhow::Result<()> {
    let wanted = |name: &str| names.iter().any(|wanted| name.starts_with(wanted.as_str()));
    let binaries = if list { Binaries::default() } else { Binaries::build()? };
    let mut tests = if vmm.is_zvmm() { tests(&binaries, vmm) } else { Vec::new() };
    if list {
        for test in &tests {
            println!("{:<24} {}", test.run.name, test.about);
        }
        return Ok(());
    }
    if !names.is_empty() {
        tests.retain(|test| wanted(&test.run.name));
        for scenario in scenarios::all().into_iter().filter(|scenario| wanted(&scenario.name)) {
            let mut run = scenario.run(vmm);
            // What is masked in the first machine is right here.
            run.command.iter_mut().filter(|word| *word == "host,-xsave").for_each(|word| "host".clone_into(word));
            tests.push(Test { about: "", run, check: scenario.check });
        }
        ensure!(!tests.is_empty(), "no such test; `cargo xtask lab --vmx --list` shows them");
    }
    let lab = Lab::prepare(vmm)?;
    println!("lab: {} tests with {}, in an emulated outer machine with VMX and EPT", tests.len(), vmm.name());
    let job = Job { runs: tests.iter().map(|test| test.run.clone()).collect() };
    let report = boot(&lab, &binaries, &job)?;
    let mut failed = Vec::new();
    for test in &tests {
        let name = &test.run.name;
        match judge(vmm, test, &report) {
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

fn judge(vmm: Vmm, test: &Test, report: &Report) -> anyhow::Result<u64> {
    let outcome = report
        .outcomes
        .iter()
        .find(|outcome| outcome.name == test.run.name)
        .with_context(|| format!("the outer machine ended before it ({:?})", report.end))?;
    keep_log(vmm, outcome)?;
    if let Some(failure) = &outcome.failure {
        let failed: Vec<&str> =
            outcome.lines.iter().map(|(_, line)| line.as_str()).filter(|line| line.ends_with("FAILED")).collect();
        bail!("{failure}; {} stderr: {}", failed.join("; "), outcome.stderr.trim());
    }
    (test.check)(outcome)?;
    Ok(outcome.wall_ms)
}

const NMIS: &str = "grep NMI: /proc/interrupts";
const AVX: &str = "lab-peer avx 2 500";
const ONLINE: &str = "nproc; grep -c ' avx ' /proc/cpuinfo";
const WARNINGS: &str = "dmesg -r | grep '^<[0-4]>'; true";
/// The last bytes below 4 GiB, where a PC has its ROM, and a hole below it.
const READ_ONLY: &str = "for a in 0xfffffff0 0xe8000000; do devmem $a 32 0x12345678 && devmem $a 32; done";

fn tests(binaries: &Binaries, vmm: Vmm) -> Vec<Test> {
    let program = |name: &str, command: &str, limit_s| Run {
        name: name.to_owned(),
        before: binaries.links(),
        command: ["sh", "-c", command].map(str::to_owned).to_vec(),
        steps: vec![Step::Exit { within_s: limit_s, status: Some(0) }],
        after: Vec::new(),
        limit_s,
    };
    vec![
        Test {
            about: "the KVM backend's own tests: real mode at the reset vector, exits, triple fault, doorbells",
            run: program("backend", "exec /lab/bin/unit-tests --test-threads=1 hypervisor::kvm::tests 2>&1", 120),
            check: all_tests_passed,
        },
        Test {
            about: "a stock guest with 2 vCPUs and AVX: registers kept, NMI, writes to no memory, triple fault",
            run: stock(vmm),
            check: stock_is_right,
        },
        Test {
            about: "all own guests that run on any /dev/kvm",
            run: program("p0", "ZVMM_GUESTS=/lab/guests exec /lab/bin/p0-tests --test-threads=1 2>&1", 600),
            check: all_tests_passed,
        },
    ]
}

fn all_tests_passed(outcome: &Outcome) -> anyhow::Result<()> {
    let result = outcome.lines.iter().map(|(_, line)| line).find(|line| line.starts_with("test result:"));
    let result = result.context("the test program said no result")?;
    ensure!(result.starts_with("test result: ok.") && !result.contains(" 0 passed"), "{result}");
    Ok(())
}

fn stock(vmm: Vmm) -> Run {
    const BOOT_S: u64 = 240;
    let machine = Machine {
        cpus: 2,
        memory_mib: 256,
        kernel: at::kernel(Which::Stable, true),
        initrd: at::initrd(Which::Stable),
        // The crypto self-tests are half the boot here.
        cmdline: "console=ttyS0 quiet panic=-1 reboot=t cryptomgr.notests".to_owned(),
        disks: vec!["/tmp/a.img".to_owned()],
        nics: Vec::new(),
        cpu: "host".to_owned(),
        reset_ends: false,
    };
    let mut command = vmm.command(&machine);
    // The reason of a reset is in the log.
    command.extend(["--log", "info"].map(str::to_owned));
    let expect = |text: &str, within_s| Step::Expect { text: text.to_owned(), within_s };
    let guest = |command: &str| Step::Guest { command: command.to_owned(), within_s: 120 };
    let qmp = |execute: &str| Step::Qmp { socket: QMP.to_owned(), execute: execute.to_owned() };
    Run {
        name: "stock-guest".to_owned(),
        before: vec![format!("rm -f {QMP}"), "truncate -s 8M /tmp/a.img".to_owned()],
        command,
        steps: vec![
            expect("LAB-READY", BOOT_S),
            expect("\n", 10),
            guest(ONLINE),
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
        after: Vec::new(),
        limit_s: 2 * BOOT_S + 120,
    }
}

fn stock_is_right(outcome: &Outcome) -> anyhow::Result<()> {
    let said = |command: &str| -> Vec<&str> {
        outcome.outputs.iter().filter(|(c, _)| c == command).map(|(_, output)| output.trim()).collect()
    };
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

/// Programs that only this machine needs.
#[derive(Default)]
struct Binaries {
    guests: PathBuf,
    unit_tests: PathBuf,
    p0_tests: PathBuf,
    /// Where `p0_tests` believes zvmm to be.
    zvmm: PathBuf,
}

impl Binaries {
    /// Builds the tests that need KVM, static, and the guests they run.
    fn build() -> anyhow::Result<Self> {
        let target_dir = paths::lab().join("cargo");
        let output = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
            .args(["test", "--quiet", "--package", "zvmm", "--lib", "--test", "p0", "--no-run"])
            .args(["--message-format", "json", "--target", TARGET, "--target-dir"])
            .arg(&target_dir)
            .env("CARGO_ENCODED_RUSTFLAGS", "-Ctarget-feature=+crt-static")
            // The emulator runs them: small and not quite naive.
            .envs([("CARGO_PROFILE_DEV_DEBUG", "0"), ("CARGO_PROFILE_DEV_STRIP", "true")])
            .env("CARGO_PROFILE_DEV_OPT_LEVEL", "1")
            .current_dir(paths::workspace())
            .stdin(Stdio::null())
            .stderr(Stdio::inherit())
            .output()
            .context("cannot run cargo")?;
        ensure!(output.status.success(), "cannot build the tests");
        let executable = |kind: &str| {
            String::from_utf8_lossy(&output.stdout)
                .lines()
                .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok())
                .filter(|message| message["target"]["kind"][0] == kind && message["profile"]["test"] == true)
                .find_map(|message| message["executable"].as_str().map(PathBuf::from))
                .with_context(|| format!("cargo built no {kind} program"))
        };
        Ok(Self {
            guests: guests::build()?,
            unit_tests: executable("lib")?,
            p0_tests: executable("test")?,
            zvmm: target_dir.join(TARGET).join("debug/zvmm"),
        })
    }

    fn links(&self) -> Vec<String> {
        let folder = self.zvmm.parent().unwrap_or(Path::new("/"));
        vec![format!("mkdir -p {}; ln -sf /lab/bin/zvmm {}", folder.display(), self.zvmm.display())]
    }
}

/// Boots Bochs with a job.
fn boot(lab: &Lab, binaries: &Binaries, job: &Job) -> anyhow::Result<Report> {
    let root = debian::unpack("bochs", &PACKAGES)?;
    let iso = boot_image(&root, lab)?;
    let folder = RunFolder::new("vmx")?;
    let disk = folder.file("lab.img");
    lab_disk(&folder.file("stage"), &disk, lab, binaries, job)?;
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
fn lab_disk(stage: &Path, image: &Path, lab: &Lab, binaries: &Binaries, job: &Job) -> anyhow::Result<()> {
    fs::create_dir_all(stage.join("bin"))?;
    let programs = [
        ("lab-runner", Some(lab.runner.as_path())),
        ("lab-peer", Some(lab.content.peer_path.as_path())),
        ("unit-tests", Some(binaries.unit_tests.as_path())),
        ("p0-tests", Some(binaries.p0_tests.as_path())),
        ("zvmm", lab.zvmm.as_deref()),
    ];
    for (name, from) in programs {
        if let Some(from) = from {
            fs::copy(from, stage.join("bin").join(name)).with_context(|| format!("cannot copy {}", from.display()))?;
        }
    }
    images::copy_tree(&binaries.guests, &stage.join("guests"))?;
    fs::write(stage.join("job.json"), serde_json::to_vec(job)?)?;
    images::ext4(stage, image, 8)?;
    debian::remove_tree(stage)
}

/// Bochs' settings. `haswell` is the model that both boots and gives guests XSAVE and AVX; without the lines about sound
/// and plug-ins Debian's build dies at start.
fn settings(root: &Path, iso: &Path, tools: &Path, disk: &Path, folder: &RunFolder) -> String {
    let rom = |name: &str| root.join("usr/share").join(name).display().to_string();
    format!(
        "config_interface: textconfig
display_library: rfb, options=\"timeout=0\"
cpu: model=corei7_haswell_4770, count=1, ips=40000000, reset_on_triple_fault=0, ignore_bad_msrs=1
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

    fn outcome(lines: &[&str]) -> Outcome {
        Outcome { lines: lines.iter().map(|line| (0, (*line).to_owned())).collect(), ..Outcome::default() }
    }

    #[test]
    fn a_test_program_that_ran_nothing_or_said_nothing_has_not_passed() {
        assert!(all_tests_passed(&outcome(&["test result: ok. 9 passed; 0 failed; 0 ignored"])).is_ok());
        for said in ["test result: ok. 0 passed; 0 failed", "test result: FAILED. 8 passed; 1 failed", "killed"] {
            assert!(all_tests_passed(&outcome(&[said])).is_err(), "{said}");
        }
    }

    #[test]
    fn every_step_of_the_stock_guest_is_needed_to_be_right() {
        let mut good = Outcome { stderr: "vCPU 0: triple fault".to_owned(), ..Outcome::default() };
        for (command, output) in [
            (ONLINE, "2\n2\n"),
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
