//! Runs of `zvmm-double` with the small guests of `vmm/tests/guests`.
#![allow(dead_code, reason = "every test file uses a part of it")]

use std::io::Read;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

/// Status of a run that broke a rule.
pub const BROKEN: i32 = 70;

/// No guest needs a tenth of it.
const LIMIT: Duration = Duration::from_secs(60);

/// The folder of the guests, or `None` with a printed reason.
///
/// # Panics
/// When there are guests but no KVM to run them on: a test that cannot run must not look like one that passed.
pub fn guests() -> Option<PathBuf> {
    let Some(folder) = std::env::var_os("ZVMM_GUESTS") else {
        println!("SKIP: ZVMM_GUESTS does not name the folder of the guests; `cargo xtask test` builds them");
        return None;
    };
    if let Err(error) = std::fs::File::options().read(true).write(true).open("/dev/kvm") {
        panic!("/dev/kvm does not open ({error}): run these tests inside the lab (`cargo xtask lab`)");
    }
    Some(folder.into())
}

/// A disk image.
pub fn disk(mib: u64) -> tempfile::NamedTempFile {
    let file = tempfile::NamedTempFile::new().expect("a temporary file");
    file.as_file().set_len(mib << 20).expect("space for a disk image");
    file
}

pub fn path(file: &tempfile::NamedTempFile) -> String {
    file.path().display().to_string()
}

/// A run to be.
pub struct Run {
    own: Vec<String>,
    rest: Vec<String>,
    limit: Duration,
    before: Option<fn() -> std::io::Result<()>>,
}

impl Run {
    /// One vCPU, 128 MiB, the guest's serial port on standard output.
    pub fn new(hypervisor: &str, guests: &Path, guest: &str) -> Self {
        let kernel = guests.join(guest).display().to_string();
        Self {
            own: ["--hypervisor", hypervisor].map(str::to_owned).into(),
            rest: ["run", "--cpus", "1", "--memory", "128M", "--serial", "stdio", "--kernel", &kernel]
                .map(str::to_owned)
                .into(),
            limit: LIMIT,
            before: None,
        }
    }

    /// These arguments of zvmm and no others.
    pub fn with<'a>(hypervisor: &str, arguments: impl IntoIterator<Item = &'a str>) -> Self {
        Self {
            own: ["--hypervisor", hypervisor].map(str::to_owned).into(),
            rest: arguments.into_iter().map(str::to_owned).collect(),
            limit: LIMIT,
            before: None,
        }
    }

    /// The same, started as bhyve is.
    pub fn as_bhyve(guests: &Path, guest: &str) -> Self {
        let kernel = format!("zvmm.kernel={}", guests.join(guest).display());
        let rest = ["bhyve", "-m", "128", "-s", "31,lpc", "-l", "com1,stdio", "-o", &kernel, "SYSbhyve-7"];
        Self {
            own: ["--hypervisor", "bhyve"].map(str::to_owned).into(),
            rest: rest.map(str::to_owned).into(),
            limit: LIMIT,
            before: None,
        }
    }

    /// Adds an option of the double.
    pub fn own(mut self, name: &str, value: &str) -> Self {
        self.own.extend([name, value].map(str::to_owned));
        self
    }

    /// Adds arguments of zvmm.
    pub fn args<'a>(mut self, arguments: impl IntoIterator<Item = &'a str>) -> Self {
        self.rest.extend(arguments.into_iter().map(str::to_owned));
        self
    }

    /// Gives it this many vCPUs.
    pub fn cpus(mut self, cpus: &str) -> Self {
        cpus.clone_into(&mut self.rest[2]);
        self
    }

    /// Adds options before bhyve's name of the VM.
    pub fn options<'a>(mut self, options: impl IntoIterator<Item = &'a str>) -> Self {
        let at = self.rest.len() - 1;
        self.rest.splice(at..at, options.into_iter().map(str::to_owned));
        self
    }

    /// Runs something in the process first: system calls only.
    pub fn after(mut self, before: fn() -> std::io::Result<()>) -> Self {
        self.before = Some(before);
        self
    }

    /// Gives it up after this time.
    pub fn within(mut self, limit: Duration) -> Self {
        self.limit = limit;
        self
    }

    /// Runs it to its end, or kills it at the time limit.
    pub fn run(self) -> Outcome {
        let mut command = Command::new(env!("CARGO_BIN_EXE_zvmm-double"));
        command.args(&self.own).args(&self.rest);
        if let Some(before) = self.before {
            // SAFETY: whoever gives it says that it makes system calls only.
            unsafe { command.pre_exec(before) };
        }
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("{command:?} does not start: {error}"));
        let output = read(child.stdout.take());
        let errors = read(child.stderr.take());
        let status = wait(&mut child, self.limit);
        Outcome {
            command: format!("{command:?}"),
            status,
            output: output.join().expect("a reader"),
            errors: errors.join().expect("a reader"),
        }
    }
}

fn read(pipe: Option<impl Read + Send + 'static>) -> thread::JoinHandle<String> {
    let mut pipe = pipe.expect("a pipe");
    thread::spawn(move || {
        let mut bytes = Vec::new();
        // What came before an error is all there is to show.
        let _ = pipe.read_to_end(&mut bytes);
        String::from_utf8_lossy(&bytes).replace('\r', "")
    })
}

fn wait(child: &mut Child, limit: Duration) -> Option<i32> {
    let end = Instant::now() + limit;
    loop {
        if let Some(status) = child.try_wait().expect("a child to wait for") {
            return Some(status.code().unwrap_or(-1));
        }
        if Instant::now() >= end {
            child.kill().expect("a child to kill");
            child.wait().expect("a child to wait for");
            return None;
        }
        thread::sleep(Duration::from_millis(2));
    }
}

/// What became of a run.
pub struct Outcome {
    command: String,
    /// The exit status; -1 for a signal, `None` for the time limit.
    pub status: Option<i32>,
    pub output: String,
    pub errors: String,
}

impl std::fmt::Debug for Outcome {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { command, status, output, errors } = self;
        write!(f, "{command}\nstatus {status:?}\n-- serial\n{output}\n-- stderr\n{errors}")
    }
}

impl Outcome {
    /// The guest printed this line.
    #[track_caller]
    pub fn says(&self, line: &str) {
        assert!(self.output.lines().any(|said| said == line), "no line `{line}`: {self:?}");
    }

    /// The guest proved all of these, failed in nothing, and powered off; no rule was broken, nothing was said.
    #[track_caller]
    pub fn passed(&self, proved: &[&str]) {
        assert!(!self.output.contains("FAIL"), "{self:?}");
        for what in proved {
            self.says(&format!("PASS {what}"));
        }
        assert_eq!(self.status, Some(0), "{self:?}");
        assert_eq!(self.errors, "", "{self:?}");
    }

    /// Whether a rule was broken, by name.
    pub fn broke(&self, rule: &str) -> bool {
        self.errors.contains(&format!("rule {rule} broken"))
    }
}
