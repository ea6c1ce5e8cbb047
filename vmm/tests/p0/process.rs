//! One run of the program: its arguments, its time limit, and what became of it.

use std::io::{self, BufRead as _, BufReader, Read, Write as _};
use std::os::unix::net::UnixStream;
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use crate::tap;

/// For guests that hang. A hundred reboots of three guests at once take two minutes where an emulated machine runs them.
pub const LIMIT: Duration = Duration::from_secs(300);

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

/// `zvmm run` with one guest, to be.
pub struct Zvmm {
    command: Command,
}

impl Zvmm {
    /// One vCPU, 128 MiB, the guest's serial port on standard output.
    pub fn new(guests: &Path, guest: &str) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_zvmm"));
        command.args([
            "run",
            "--sandbox",
            "strict",
            "--cpus",
            "1",
            "--memory",
            "128M",
            "--serial",
            "stdio",
            "--kernel",
        ]);
        command.arg(guests.join(guest));
        Self { command }
    }

    /// Adds arguments.
    pub fn args<const N: usize>(mut self, arguments: [&str; N]) -> Self {
        self.command.args(arguments);
        self
    }

    /// Sets the guest's command line.
    pub fn cmdline(self, text: &str) -> Self {
        self.args(["--cmdline", text])
    }

    /// Runs it in a network namespace of its own that has one TAP device, so that tests neither need nor leave anything.
    pub fn with_tap(self) -> Self {
        self.after(tap::enter)
    }

    /// Runs it in a process prepared between fork and exec: system calls only, no allocation, no lock.
    pub fn after(mut self, prepare: impl FnMut() -> io::Result<()> + Send + Sync + 'static) -> Self {
        // SAFETY: what tests pass makes system calls only.
        unsafe { self.command.pre_exec(prepare) };
        self
    }

    /// Starts it.
    pub fn start(mut self) -> Running {
        let mut child = self
            .command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("{:?} does not start: {error}", self.command));
        let output = Pipe::read(child.stdout.take());
        let errors = Pipe::read(child.stderr.take());
        Running { command: format!("{:?}", self.command), child, output, errors, end: Instant::now() + LIMIT }
    }

    /// Runs it to its end, or kills it at the time limit.
    pub fn run(self) -> Outcome {
        self.start().finish()
    }
}

/// A run that goes on.
pub struct Running {
    command: String,
    child: Child,
    output: Pipe,
    errors: Pipe,
    end: Instant,
}

impl Running {
    /// Waits until the guest has printed a line.
    #[track_caller]
    pub fn wait_for(&self, line: &str) {
        while !self.output.text().lines().any(|said| said == line) {
            assert!(Instant::now() < self.end, "no line `{line}`: {}", self.output.text());
            thread::sleep(Duration::from_millis(2));
        }
    }

    /// Its process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// How often each thread whose name begins so has stopped running, of itself or not, by thread.
    pub fn switches(&self, name: &str) -> Vec<(String, u64)> {
        let tasks = std::fs::read_dir(format!("/proc/{}/task", self.child.id())).expect("a process");
        let mut all = Vec::new();
        for task in tasks.map(|task| task.expect("a thread").path()) {
            let status = std::fs::read_to_string(task.join("status")).expect("a thread's status");
            let field = |name| status.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default().trim();
            let count = |name| field(name).parse::<u64>().expect("a count");
            if field("Name:").starts_with(name) {
                let switches = count("voluntary_ctxt_switches:") + count("nonvoluntary_ctxt_switches:");
                all.push((task.display().to_string(), switches));
            }
        }
        all.sort();
        all
    }

    /// Sends a signal, and waits until it is taken: two that wait together are one (signal(7)).
    #[track_caller]
    pub fn signal(&self, signal: i32) {
        let pid = i32::try_from(self.child.id()).expect("a process id");
        // SAFETY: the child is not yet waited for, so the id is its own.
        assert_eq!(unsafe { libc::kill(pid, signal) }, 0);
        loop {
            let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("a process");
            let field = |name| status.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default().trim();
            let pending = u64::from_str_radix(field("ShdPnd:"), 16).expect("a set of signals");
            if field("State:").starts_with('Z') || pending & 1 << (signal - 1) == 0 {
                return;
            }
            assert!(Instant::now() < self.end, "signal {signal} is not taken");
            thread::sleep(Duration::from_millis(1));
        }
    }

    /// Ends it as the kernel does that has no memory left.
    pub fn kill(mut self) -> Outcome {
        // One that has ended already cannot be killed, and is what it is.
        let _ = self.child.kill();
        self.finish()
    }

    /// What became of it, when somebody else has waited for its end.
    pub fn ended(self, status: i32) -> Outcome {
        let status = Some(ExitStatus::from_raw(status));
        Outcome { command: self.command, status, output: self.output.rest(), errors: self.errors.rest() }
    }

    /// Waits for the end, or kills it at the time limit.
    pub fn finish(mut self) -> Outcome {
        let status = loop {
            match self.child.try_wait().expect("a child to wait for") {
                Some(status) => break Some(status),
                None if Instant::now() >= self.end => {
                    self.child.kill().expect("a child to kill");
                    self.child.wait().expect("a child to wait for");
                    break None;
                }
                None => thread::sleep(Duration::from_millis(2)),
            }
        };
        Outcome { command: self.command, status, output: self.output.rest(), errors: self.errors.rest() }
    }
}

/// What a child writes, read by a thread so that it never waits for us.
struct Pipe {
    bytes: Arc<Mutex<Vec<u8>>>,
    reader: thread::JoinHandle<()>,
}

impl Pipe {
    fn read(pipe: Option<impl Read + Send + 'static>) -> Self {
        let bytes = Arc::new(Mutex::new(Vec::new()));
        let into = bytes.clone();
        let reader = thread::spawn(move || {
            let mut pipe = pipe.expect("a pipe");
            let mut buffer = [0; 4096];
            // What came before an error is all there is to show.
            while let Ok(length @ 1..) = pipe.read(&mut buffer) {
                into.lock().expect("the bytes").extend_from_slice(&buffer[..length]);
            }
        });
        Self { bytes, reader }
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&self.bytes.lock().expect("the bytes")).replace('\r', "")
    }

    fn rest(self) -> String {
        let Self { bytes, reader } = self;
        reader.join().expect("a reader");
        String::from_utf8_lossy(&bytes.lock().expect("the bytes")).replace('\r', "")
    }
}

/// Asks the control socket one thing.
pub fn ask(socket: &Path, command: &str) -> serde_json::Value {
    order(socket, command, serde_json::json!({}))["return"].clone()
}

/// The control socket's whole answer to a command with arguments.
pub fn order(socket: &Path, command: &str, arguments: serde_json::Value) -> serde_json::Value {
    try_order(socket, command, arguments).expect("an answer of the control socket")
}

/// As [`order`], where the process may end at any moment: `None` when it has.
pub fn try_order(socket: &Path, command: &str, arguments: serde_json::Value) -> Option<serde_json::Value> {
    let stream = UnixStream::connect(socket).ok()?;
    let mut lines = BufReader::new(&stream).lines();
    let mut reply = || lines.next()?.ok();
    reply()?;
    writeln!(&stream, r#"{{"execute":"qmp_capabilities"}}"#).ok()?;
    reply()?;
    writeln!(&stream, "{}", serde_json::json!({"execute": command, "arguments": arguments})).ok()?;
    loop {
        let reply: serde_json::Value = serde_json::from_str(&reply()?).expect("a JSON reply");
        if reply.get("event").is_none() {
            return Some(reply);
        }
    }
}

/// What became of a run.
pub struct Outcome {
    command: String,
    status: Option<ExitStatus>,
    output: String,
    errors: String,
}

impl std::fmt::Debug for Outcome {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let status = match self.status {
            Some(status) => status.to_string(),
            None => format!("killed after {LIMIT:?}"),
        };
        write!(f, "{}\n{status}\n-- serial\n{}\n-- stderr\n{}", self.command, self.output, self.errors)
    }
}

impl Outcome {
    /// What the guest sent to its serial port.
    pub fn output(&self) -> &str {
        &self.output
    }

    /// What the process said on stderr.
    pub fn errors(&self) -> &str {
        &self.errors
    }

    /// The guest printed this line.
    #[track_caller]
    pub fn says(&self, line: &str) {
        assert!(self.output.lines().any(|said| said == line), "no line `{line}`: {self:?}");
    }

    /// The process ended by itself, and not by a signal.
    #[track_caller]
    pub fn ended_by_itself(&self) {
        assert!(self.status.is_some_and(|status| status.code().is_some()), "{self:?}");
    }

    /// The process ended by itself with this status.
    #[track_caller]
    pub fn ended_with(&self, status: i32) {
        assert_eq!(self.status.and_then(|status| status.code()), Some(status), "{self:?}");
    }

    /// The signal that has ended the process.
    pub fn signal(&self) -> Option<i32> {
        self.status.and_then(|status| status.signal())
    }

    /// The guest proved all of these, failed in nothing, and powered off; nothing was said on stderr.
    #[track_caller]
    pub fn passed(&self, proved: &[&str]) {
        self.passed_with_warnings(proved);
        assert_eq!(self.errors, "", "a guest that does nothing wrong causes no message: {self:?}");
    }

    /// As [`Self::passed`], for a guest that gives reason to warn.
    #[track_caller]
    pub fn passed_with_warnings(&self, proved: &[&str]) {
        assert!(!self.output.contains("FAIL"), "{self:?}");
        for what in proved {
            self.says(&format!("PASS {what}"));
        }
        self.ended_with(0);
    }
}
