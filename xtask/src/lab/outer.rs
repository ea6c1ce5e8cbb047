//! The outer machine: qemu's emulator with nested SVM, booted with a job.

use std::fs;
use std::io::{Read as _, Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};

use super::content::Content;
use super::job::{DONE, Job, Outcome, PULSE};
use super::kernel::Which;
use crate::{debian, paths};

/// How an outer machine is made.
#[derive(Debug, Clone)]
pub struct Shape {
    /// Names its log files.
    pub name: String,
    /// Its kernel, where it has one of its own.
    pub kernel: Which,
    /// vCPUs of the outer machine: one gives steadier figures, two are needed for guests with several.
    pub cpus: u32,
    /// Its memory, MiB.
    pub memory_mib: u64,
    /// The whole boot is cut off after this time.
    pub limit: Duration,
    /// Show its console while it runs.
    pub show: bool,
    /// Drives beside the tools disk, each a value of qemu's `-drive`.
    pub drives: Vec<String>,
}

/// What came back from an outer boot.
pub struct Report {
    /// One for each run that was finished.
    pub outcomes: Vec<Outcome>,
    /// How it ended.
    pub end: End,
    /// The outer machine's console, with the guests' lines.
    pub log: PathBuf,
    /// How long the boot took.
    pub wall: Duration,
}

/// How a boot ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// The runner said that it was done.
    Done,
    /// The runner gave no sign of life for [`SILENCE`]: the outer machine is stuck, whatever its guest does.
    Stuck,
    /// The time limit was reached, or it ended by itself too early.
    CutOff,
}

/// The runner reports every five seconds; under load it may be late, and the outer machine takes time to start.
const SILENCE: Duration = Duration::from_secs(90);

/// What the outer machine is.
pub const MACHINE: [&str; 6] = ["-M", "q35", "-accel", "tcg,thread=multi,tb-size=1024", "-cpu", "max"];

/// Boots an outer machine and runs a job in it. A run that fails is in the report, not an error.
///
/// # Errors
/// When the outer machine cannot be started.
pub fn boot(
    shape: &Shape,
    content: &Content,
    job: &Job,
    runner: &Path,
    programs: &[(String, PathBuf)],
) -> anyhow::Result<Report> {
    Outer::start(shape, content, job, runner, programs)?.finish(shape)
}

/// An outer machine that runs.
pub struct Outer {
    guard: Guard,
    folder: RunFolder,
    start: Instant,
}

impl Outer {
    /// Boots one with a job.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start(
        shape: &Shape,
        content: &Content,
        job: &Job,
        runner: &Path,
        programs: &[(String, PathBuf)],
    ) -> anyhow::Result<Self> {
        let folder = RunFolder::new(&shape.name)?;
        let (log, results, initrd) = (folder.file("log"), folder.file("results"), folder.file("initrd"));
        fs::write(&initrd, content.outer_initrd(shape.kernel, job, runner, programs)?)?;

        let mut qemu = debian::command(&content.qemu, "qemu-system-x86_64")?;
        // Debian ships the emulator itself as a module.
        qemu.env("QEMU_MODULE_DIR", content.qemu.join("usr/lib/x86_64-linux-gnu/qemu"));
        for folder in ["qemu", "seabios"] {
            qemu.arg("-L").arg(content.qemu.join("usr/share").join(folder));
        }
        qemu.args(MACHINE);
        if shape.kernel == Which::Backports {
            // The later value counts. After a CMPXCHG16B a page fault may leave garbage in the flags, of which this kernel dies.
            qemu.args(["-cpu", "max,-cx16"]);
        }
        qemu.args(["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"]);
        qemu.arg("-smp").arg(shape.cpus.to_string()).arg("-m").arg(format!("{}M", shape.memory_mib));
        qemu.arg("-serial").arg(format!("file:{}", log.display()));
        qemu.arg("-serial").arg(format!("file:{}", results.display()));
        qemu.arg("-kernel").arg(content.outer_kernel(shape.kernel)?).arg("-initrd").arg(&initrd);
        // Without `no_timer_check` the outer kernel panics where this machine is so busy that four ticks do not come in time.
        let cmdline = "console=ttyS0 quiet panic=-1 mitigations=off nokaslr no_timer_check rdinit=/init";
        qemu.args(["-append", cmdline]);
        // Scenarios may write to the disk; the next boot finds it as it was.
        qemu.arg("-drive")
            .arg(format!("file={},if=virtio,format=raw,snapshot=on,cache=unsafe", content.tools.display()));
        for drive in &shape.drives {
            qemu.arg("-drive").arg(drive);
        }
        qemu.arg("-monitor").arg(format!("unix:{},server=on,wait=off", folder.file("monitor").display()));
        qemu.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());

        let start = Instant::now();
        let guard = Guard(qemu.spawn().context("cannot start the outer machine")?);
        Ok(Self { guard, folder, start })
    }

    /// What its console has said.
    #[must_use]
    pub fn console(&self) -> String {
        String::from_utf8_lossy(&fs::read(self.folder.file("log")).unwrap_or_default()).into_owned()
    }

    /// Whether it has ended by itself.
    ///
    /// # Errors
    /// When it cannot be waited for.
    pub fn has_ended(&mut self) -> anyhow::Result<bool> {
        Ok(self.guard.0.try_wait()?.is_some())
    }

    /// Ends it as a power failure does: with nothing written back.
    ///
    /// # Errors
    /// When its log cannot be kept.
    pub fn kill(self) -> anyhow::Result<Report> {
        // SIGKILL, and waits.
        drop(self.guard);
        self.folder.report(self.start.elapsed(), false)
    }

    /// Waits for its end, and ends it when it got stuck or the time is over.
    ///
    /// # Errors
    /// When it could not do its work at all.
    pub fn finish(mut self, shape: &Shape) -> anyhow::Result<Report> {
        let (status, stuck) = self.guard.wait(shape, self.start, &self.folder)?;
        let wall = self.start.elapsed();
        if stuck {
            let state = registers(&self.folder.file("monitor")).unwrap_or_else(|error| format!("{error:#}"));
            fs::OpenOptions::new().append(true).open(self.folder.file("log"))?.write_all(state.as_bytes())?;
        }
        if let Some(status) = status
            && !status.success()
        {
            let mut said = String::new();
            if let Some(stderr) = self.guard.0.stderr.as_mut() {
                stderr.read_to_string(&mut said)?;
            }
            bail!("the outer machine ended with {status}: {}", said.trim_end());
        }
        drop(self.guard);
        self.folder.report(wall, stuck)
    }
}

/// The outer machine's registers, three times: shows whether it runs in circles, and where.
fn registers(monitor: &Path) -> anyhow::Result<String> {
    let mut stream = std::os::unix::net::UnixStream::connect(monitor).context("cannot reach the monitor")?;
    stream.set_read_timeout(Some(Duration::from_secs(2)))?;
    let mut text = "\nLAB-STUCK: the outer machine's registers\n".to_owned();
    for _ in 0..3 {
        stream.write_all(b"info registers\n")?;
        let mut bytes = [0; 16384];
        while let Ok(n) = stream.read(&mut bytes)
            && n > 0
        {
            text += &String::from_utf8_lossy(&bytes[..n]);
        }
    }
    Ok(text)
}

/// The files of one boot, in a folder that no other process uses.
pub struct RunFolder {
    path: PathBuf,
    name: String,
}

impl RunFolder {
    /// A fresh one.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn new(name: &str) -> anyhow::Result<Self> {
        let path = paths::lab().join("runs").join(format!("{name}-{}", std::process::id()));
        debian::remove_tree(&path)?;
        fs::create_dir_all(&path).with_context(|| format!("cannot create {}", path.display()))?;
        Ok(Self { path, name: name.to_owned() })
    }

    /// The path of a file in it.
    #[must_use]
    pub fn file(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// Reads what the runner reported, and keeps the console log as `target/lab/logs/<name>.log`.
    ///
    /// # Errors
    /// When the log cannot be kept.
    pub fn report(self, wall: Duration, stuck: bool) -> anyhow::Result<Report> {
        let logs = paths::lab().join("logs");
        fs::create_dir_all(&logs)?;
        let log = logs.join(format!("{}.log", self.name));
        fs::rename(self.file("log"), &log).context("the outer machine left no log")?;
        Ok(read_report(&self.file("results"), log, wall, stuck))
    }
}

impl Drop for RunFolder {
    fn drop(&mut self) {
        // A log that was not moved away is of a boot that failed to start: it stays for whoever looks.
        if !self.file("log").exists() {
            let _ = debian::remove_tree(&self.path);
        }
    }
}

/// Reads what the runner reported.
fn read_report(results: &Path, log: PathBuf, wall: Duration, stuck: bool) -> Report {
    let text = String::from_utf8_lossy(&fs::read(results).unwrap_or_default()).into_owned();
    let mut report = Report { outcomes: Vec::new(), end: if stuck { End::Stuck } else { End::CutOff }, log, wall };
    for line in text.lines().map(str::trim) {
        if line == DONE {
            report.end = End::Done;
        } else if line != PULSE
            && let Ok(outcome) = serde_json::from_str(line)
        {
            report.outcomes.push(outcome);
        }
    }
    report
}

/// Ends a child when it goes out of scope: no run may outlive xtask's own way out.
pub struct Guard(pub Child);

impl Guard {
    /// Waits for the child, at most as long as the shape allows; shows its log meanwhile when the shape says so. `None`
    /// when it had to be cut off; the second value says whether that was because it gave no sign of life.
    ///
    /// # Errors
    /// When the child cannot be waited for.
    pub fn wait(
        &mut self,
        shape: &Shape,
        start: Instant,
        folder: &RunFolder,
    ) -> anyhow::Result<(Option<ExitStatus>, bool)> {
        let (log, results) = (folder.file("log"), folder.file("results"));
        let (mut shown, mut reported, mut alive) = (0, 0, Instant::now());
        let status = loop {
            // Asked before the log is read, so that the last lines are shown.
            let status = self.0.try_wait()?;
            if shape.show {
                show(&log, &mut shown)?;
            }
            if status.is_some() || start.elapsed() > shape.limit {
                break (status, false);
            }
            let now = fs::metadata(&results).map_or(0, |metadata| metadata.len());
            if now != reported {
                (reported, alive) = (now, Instant::now());
            }
            if alive.elapsed() > SILENCE {
                break (None, true);
            }
            std::thread::sleep(Duration::from_millis(50));
        };
        Ok(status)
    }
}

/// Prints the complete lines of a growing file that were not yet shown.
fn show(log: &Path, shown: &mut u64) -> anyhow::Result<()> {
    let Ok(mut file) = fs::File::open(log) else { return Ok(()) };
    file.seek(SeekFrom::Start(*shown))?;
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes)?;
    if let Some(end) = bytes.iter().rposition(|&byte| byte == b'\n') {
        let text = String::from_utf8_lossy(&bytes[..=end]).replace('\r', "");
        let mut out = std::io::stdout().lock();
        out.write_all(text.as_bytes())?;
        out.flush()?;
        *shown += end as u64 + 1;
    }
    Ok(())
}

impl Drop for Guard {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Builds a program of the workspace as a static executable, so that it runs in the outer machine without libraries.
/// Returns its path.
///
/// # Errors
/// When cargo fails.
pub fn build_static(package: &str, binary: &str) -> anyhow::Result<PathBuf> {
    const TARGET: &str = "x86_64-unknown-linux-gnu";
    let target_dir = paths::lab().join("cargo");
    let status = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
        .args(["build", "--release", "--quiet", "--package", package, "--bin", binary, "--target", TARGET])
        .arg("--target-dir")
        .arg(&target_dir)
        .env("CARGO_ENCODED_RUSTFLAGS", "-Ctarget-feature=+crt-static")
        // What the standard library only asks about (`pthread_self`) is missing from a static program whose modules were
        // all made one: a call of it jumps to nowhere. What is measured keeps its optimisation, and calls no such thing.
        .envs((package == "zvmm-double").then_some(("CARGO_PROFILE_RELEASE_LTO", "off")))
        .current_dir(paths::workspace())
        .stdin(Stdio::null())
        .status()
        .context("cannot run cargo")?;
    if !status.success() {
        bail!("cannot build {binary}");
    }
    Ok(target_dir.join(TARGET).join("release").join(binary))
}
