//! One VMM process and the guest on its serial port.

use std::io::{BufRead as _, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::os::unix::process::ExitStatusExt as _;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, bail, ensure};

use crate::job::{Outcome, QMP, Run, Step, pattern};
use crate::{sample, shell};

/// How long a VMM may take to go away after SIGKILL.
const KILL_GRACE: Duration = Duration::from_secs(10);

/// The most readings of a guest's clock, the fewest, and how close its bounds are to come.
const CLOCK_READINGS: u32 = 60;
const CLOCK_READINGS_MIN: u32 = 5;
const CLOCK_WIDTH_MS: f64 = 20.0;

struct Guest {
    child: Child,
    /// Where the guest's serial port reads from. Given away when that ends.
    stdin: Option<Box<dyn Write>>,
    serial: Receiver<(Instant, Vec<u8>)>,
    stderr: Option<std::thread::JoinHandle<String>>,
    start: Instant,
    deadline: Instant,
    /// Everything the serial port said, carriage returns removed.
    text: String,
    /// How much of `text` earlier steps have consumed.
    consumed: usize,
    /// Start of the line that is not yet complete.
    line_start: usize,
    lines: Vec<(u64, String)>,
    commands: u32,
}

/// Starts the VMM, takes all steps, and makes sure that it is gone afterwards.
pub fn drive(run: &Run, deadline: Instant, outcome: &mut Outcome) -> anyhow::Result<()> {
    let (program, arguments) = run.command.split_first().context("the run has no command")?;
    let start = Instant::now();
    let mut child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::piped())
        // Where the guest's port is elsewhere, what the VMM says is for whoever reads the log.
        .stdout(if run.console.is_some() { Stdio::inherit() } else { Stdio::piped() })
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot start {program}"))?;
    let (sender, serial) = channel();
    let mut stderr = child.stderr.take().context("no stderr")?;
    let stderr = std::thread::spawn(move || {
        let mut text = Vec::new();
        let _ = stderr.read_to_end(&mut text);
        String::from_utf8_lossy(&text).into_owned()
    });
    let mut guest = Guest {
        child,
        stdin: None,
        serial,
        stderr: Some(stderr),
        start,
        deadline,
        text: String::new(),
        consumed: 0,
        line_start: 0,
        lines: Vec::new(),
        commands: 0,
    };
    let mut steps = run.steps.iter().enumerate();
    let result = guest.attach(run.console.as_deref(), sender).and_then(|()| {
        steps.try_for_each(|(n, step)| guest.step(step, outcome).with_context(|| format!("step {} {step:?}", n + 1)))
    });
    if result.is_err() {
        guest.autopsy();
    }
    guest.end(outcome);
    result
}

/// Hands over everything that comes out of a guest's serial port, until nobody wants it any more.
fn hand_over(mut port: impl Read + Send + 'static, to: Sender<(Instant, Vec<u8>)>) {
    std::thread::spawn(move || {
        let mut buffer = [0; 4096];
        while let Ok(n) = port.read(&mut buffer) {
            if n == 0 || to.send((Instant::now(), buffer[..n].to_vec())).is_err() {
                return;
            }
        }
    });
}

impl Guest {
    /// Takes hold of the guest's serial port: the VMM's standard streams, or a socket as soon as there is one.
    fn attach(&mut self, console: Option<&str>, to: Sender<(Instant, Vec<u8>)>) -> anyhow::Result<()> {
        let Some(socket) = console else {
            hand_over(self.child.stdout.take().context("no stdout")?, to);
            self.stdin = Some(Box::new(self.child.stdin.take().context("no stdin")?));
            return Ok(());
        };
        loop {
            if let Ok(stream) = UnixStream::connect(socket) {
                hand_over(stream.try_clone()?, to);
                self.stdin = Some(Box::new(stream));
                return Ok(());
            }
            ensure!(self.child.try_wait()?.is_none(), "the VMM ended without a console");
            ensure!(Instant::now() < self.deadline, "{socket} is not served");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    fn step(&mut self, step: &Step, outcome: &mut Outcome) -> anyhow::Result<()> {
        match step {
            Step::Expect { text, within_s } => self.expect(text, *within_s).map(|_| ()),
            Step::Send { text } => self.send(text.as_bytes()),
            Step::SendPattern { lines } => {
                let text: String = (0..*lines).map(pattern).collect();
                self.send(text.as_bytes())
            }
            Step::Guest { command, within_s } => {
                let output = self.guest(command, *within_s)?;
                outcome.outputs.push((command.clone(), output));
                Ok(())
            }
            Step::Shell { command } => shell(command, Some(self.child.id()), outcome),
            Step::Qmp { socket, execute, arguments } => {
                let reply = qmp(socket, execute, arguments.as_ref())?;
                let failed = reply.get("error").is_some();
                outcome.replies.push(reply.clone());
                ensure!(!failed, "QMP {execute}: {reply}");
                Ok(())
            }
            Step::Signal { number } => self.signal(*number),
            Step::Sleep { ms } => {
                self.listen(Duration::from_millis(*ms));
                Ok(())
            }
            Step::Sample { name } => {
                let mut sample = sample::take(self.child.id(), self.start)?;
                sample.returns = qmp(QMP, "query-stats", None).ok().and_then(|stats| returns(&stats));
                outcome.samples.insert(name.clone(), sample);
                Ok(())
            }
            Step::Threads { name } => {
                outcome.threads.insert(name.clone(), sample::shares(self.child.id())?);
                Ok(())
            }
            Step::ClockOffset { name } => {
                let offset = self.clock_offset_ms()?;
                outcome.offsets_ms.insert(name.clone(), offset);
                Ok(())
            }
            Step::Exit { within_s, status } => {
                let end = self.wait_exit(*within_s)?;
                ensure!(
                    status.is_none_or(|want| end == format!("exit {want}")),
                    "the VMM ended with {end}, not with status {status:?}"
                );
                Ok(())
            }
        }
    }

    fn send(&mut self, bytes: &[u8]) -> anyhow::Result<()> {
        let stdin = self.stdin.as_mut().context("the serial port's input is closed")?;
        stdin.write_all(bytes).and_then(|()| stdin.flush()).context("cannot write to the serial port")
    }

    /// Takes in what arrives during `time`.
    fn listen(&mut self, time: Duration) {
        let until = Instant::now() + time;
        while let Some(left) = until.checked_duration_since(Instant::now()) {
            match self.serial.recv_timeout(left) {
                Ok((at, bytes)) => self.take_in(at, &bytes),
                Err(RecvTimeoutError::Timeout) => return,
                Err(RecvTimeoutError::Disconnected) => {
                    std::thread::sleep(left);
                    return;
                }
            }
        }
    }

    fn take_in(&mut self, at: Instant, bytes: &[u8]) {
        let millis = u64::try_from((at - self.start).as_millis()).unwrap_or(u64::MAX);
        let text = String::from_utf8_lossy(bytes).replace('\r', "");
        self.text += &text;
        while let Some(end) = self.text[self.line_start..].find('\n') {
            let line = self.text[self.line_start..self.line_start + end].to_owned();
            println!("{millis:>7} {line}");
            self.lines.push((millis, line));
            self.line_start += end + 1;
        }
    }

    /// Waits for `text` and returns what came before it.
    fn expect(&mut self, text: &str, within_s: u64) -> anyhow::Result<String> {
        let until = (Instant::now() + Duration::from_secs(within_s)).min(self.deadline);
        let mut ended = false;
        loop {
            if let Some(found) = self.text[self.consumed..].find(text) {
                let before = self.text[self.consumed..self.consumed + found].to_owned();
                self.consumed += found + text.len();
                return Ok(before);
            }
            if ended {
                let status = self.child.try_wait()?.map(describe);
                bail!("the guest's serial port closed before `{text}`; VMM: {status:?}");
            }
            let Some(left) = until.checked_duration_since(Instant::now()) else {
                let tail: Vec<&str> = self.text[self.consumed..].lines().rev().take(3).collect();
                bail!("no `{text}` within {within_s} s; last lines, newest first: {tail:?}");
            };
            match self.serial.recv_timeout(left) {
                Ok((at, bytes)) => self.take_in(at, &bytes),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => ended = true,
            }
        }
    }

    /// Runs one command line in the guest's shell (which does not echo).
    fn guest(&mut self, command: &str, within_s: u64) -> anyhow::Result<String> {
        self.commands += 1;
        let mark = format!("@@{}:", self.commands);
        // The marker is split so that a shell that does echo is not taken for its answer.
        let line = format!("{command}; echo @\"\"@{}:$?\n", self.commands);
        self.send(line.as_bytes())?;
        let output = self.expect(&mark, within_s)?;
        let status = self.expect("\n", 10)?;
        ensure!(status == "0", "in the guest `{command}` failed with {status}: {}", output.trim());
        Ok(output)
    }

    /// Outer machine's clock minus guest's clock, milliseconds. The guest reads its clock between the question and the
    /// answer, so every reading gives bounds; the best of all count.
    fn clock_offset_ms(&mut self) -> anyhow::Result<f64> {
        self.send(b"lab-peer clock\n")?;
        let (mut least, mut most) = (f64::MIN, f64::MAX);
        for reading in 0..CLOCK_READINGS {
            if reading >= CLOCK_READINGS_MIN && most - least < CLOCK_WIDTH_MS {
                break;
            }
            let asked = real_time()?;
            self.send(b"\n")?;
            self.expect("clock ", 30)?;
            let guest = self.expect("\n", 10)?;
            let answered = real_time()?;
            let guest: f64 = guest.trim().parse().with_context(|| format!("no time in `{guest}`"))?;
            least = least.max((asked - guest) * 1e3);
            most = most.min((answered - guest) * 1e3);
        }
        self.send(b"end\n")?;
        self.guest("true", 30)?;
        println!("-- the guest's clock is between {least:.1} and {most:.1} ms behind");
        Ok(least.midpoint(most))
    }

    fn signal(&self, number: i32) -> anyhow::Result<()> {
        let pid = i32::try_from(self.child.id())?;
        // SAFETY: kill takes no pointer; the child has not been waited for, so the id is still its.
        ensure!(unsafe { libc::kill(pid, number) } == 0, "cannot send signal {number}");
        Ok(())
    }

    fn wait_exit(&mut self, within_s: u64) -> anyhow::Result<String> {
        let until = (Instant::now() + Duration::from_secs(within_s)).min(self.deadline);
        loop {
            self.listen(Duration::from_millis(10));
            if let Some(status) = self.child.try_wait()? {
                return Ok(describe(status));
            }
            ensure!(Instant::now() < until, "the VMM still runs after {within_s} s");
        }
    }

    /// Writes down what a VMM that still runs says of itself, and what its threads do: a guest that hangs once in a thousand
    /// runs may not do so again.
    fn autopsy(&mut self) {
        let Ok(None) = self.child.try_wait() else { return };
        for question in ["query-status", "query-stats"] {
            match qmp(QMP, question, None) {
                Ok(answer) => println!("-- {question}: {answer}"),
                Err(error) => println!("-- {question}: {error:#}"),
            }
        }
        for line in sample::threads(self.child.id()) {
            println!("-- thread {line}");
        }
    }

    /// Stops what still runs and moves all records to the outcome.
    fn end(&mut self, outcome: &mut Outcome) {
        self.stdin = None;
        if !matches!(self.child.try_wait(), Ok(Some(_))) {
            let _ = self.child.kill();
            let until = Instant::now() + KILL_GRACE;
            while Instant::now() < until && matches!(self.child.try_wait(), Ok(None)) {
                std::thread::sleep(Duration::from_millis(5));
            }
        }
        outcome.end = self.child.try_wait().ok().flatten().map(describe);
        self.listen(Duration::from_millis(50));
        if self.line_start < self.text.len() {
            let rest = self.text[self.line_start..].to_owned();
            println!("        {rest}");
            self.lines.push((u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX), rest));
        }
        outcome.lines = std::mem::take(&mut self.lines);
        if outcome.end.is_some()
            && let Some(thread) = self.stderr.take()
        {
            outcome.stderr = thread.join().unwrap_or_default();
            if !outcome.stderr.is_empty() {
                println!("-- stderr: {}", outcome.stderr.trim_end());
            }
        }
    }
}

fn real_time() -> anyhow::Result<f64> {
    Ok(SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs_f64())
}

fn describe(status: std::process::ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exit {code}"),
        (_, Some(signal)) => format!("signal {signal}"),
        _ => "unknown".to_owned(),
    }
}

/// Returns of all vCPUs to the process in an answer to `query-stats`; qemu knows another command of that name.
fn returns(stats: &serde_json::Value) -> Option<u64> {
    let vcpus = stats.pointer("/return/vcpus")?.as_array()?;
    let kinds = vcpus.iter().filter_map(|vcpu| vcpu.get("exits")?.as_object());
    Some(kinds.flat_map(|kinds| kinds.values()).filter_map(serde_json::Value::as_u64).sum())
}

/// One command over a fresh QMP connection; events before the answer are skipped.
fn qmp(socket: &str, execute: &str, arguments: Option<&serde_json::Value>) -> anyhow::Result<serde_json::Value> {
    let stream = UnixStream::connect(socket).with_context(|| format!("cannot connect to {socket}"))?;
    stream.set_read_timeout(Some(Duration::from_secs(20)))?;
    let mut writer = stream.try_clone()?;
    let mut lines = BufReader::new(stream).lines();
    let mut next = || -> anyhow::Result<serde_json::Value> {
        let line = lines.next().context("the QMP socket closed")??;
        serde_json::from_str(&line).with_context(|| format!("not JSON on the QMP socket: {line}"))
    };
    ensure!(next()?.get("QMP").is_some(), "no QMP greeting");
    let mut answer = serde_json::Value::Null;
    for (execute, arguments) in [("qmp_capabilities", None), (execute, arguments)] {
        let mut command = serde_json::json!({ "execute": execute });
        if let Some(arguments) = arguments {
            command["arguments"] = arguments.clone();
        }
        writer.write_all(format!("{command}\n").as_bytes())?;
        loop {
            answer = next()?;
            if answer.get("return").is_some() || answer.get("error").is_some() {
                break;
            }
        }
    }
    Ok(answer)
}
