//! The guest's side of SmartOS' metadata protocol, as the guest's tools keep to it; static, so that it needs nothing.
//!
//! `lab-mdata VERSION get KEY|keys|put KEY VALUE|delete KEY` asks over the second serial port, by version 1 or 2 of the
//! protocol, and prints what it gets. Ends with 0, with 1 where there is no such key, with 2 where it was refused, or with a
//! message.

mod frame;

use std::fs::{File, OpenOptions};
use std::io::{Read as _, Write as _};
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;

use frame::Frame;

const PORT: &str = "/dev/ttyS1";
/// How long the other side may take to say that an empty line is no command; it is asked again after [`AGAIN`].
const SIGN: Duration = Duration::from_secs(2);
const AGAIN: Duration = Duration::from_secs(1);
/// How long to any other answer of version 1, and of version 2.
const ANSWER: [Duration; 2] = [Duration::from_secs(6), Duration::from_secs(45)];
/// The guest's tools ask for ever.
const PATIENCE: Duration = Duration::from_secs(90);

/// What became of a request.
#[derive(Debug, PartialEq, Eq)]
enum Answer {
    Success(Vec<u8>),
    NotFound,
    Failure,
}

fn main() -> anyhow::Result<ExitCode> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let (&version, request) = arguments.split_first().context("which version of the protocol?")?;
    let answer = match version {
        "1" => Port::open()?.ask(request)?,
        "2" => Port::open()?.negotiated()?.ask_framed(request)?,
        _ => bail!("there is no version {version}"),
    };
    Ok(match answer {
        Answer::Success(value) => {
            std::io::stdout().write_all(&value)?;
            ExitCode::SUCCESS
        }
        Answer::NotFound => ExitCode::from(1),
        Answer::Failure => ExitCode::from(2),
    })
}

/// The second serial port, with somebody at its other end who listens.
struct Port(File);

impl Port {
    /// Opens it for this process alone, and calls until somebody answers.
    fn open() -> anyhow::Result<Self> {
        let end = Instant::now() + PATIENCE;
        loop {
            let mut options = OpenOptions::new();
            let port = options.read(true).write(true).custom_flags(libc::O_NOCTTY).open(PORT).context(PORT)?;
            let mut port = Self(port);
            port.prepare()?;
            port.drain()?;
            port.send("\n")?;
            match port.line(SIGN)? {
                Some(line) if line == "invalid command" => return Ok(port),
                other => ensure!(Instant::now() < end, "nobody answers as the host should: {other:?}"),
            }
            drop(port);
            std::thread::sleep(AGAIN);
        }
    }

    /// Locked, and every byte as it is.
    fn prepare(&self) -> anyhow::Result<()> {
        let fd = self.0.as_raw_fd();
        // SAFETY: the descriptor is open; the settings are filled by the first call before anything reads them.
        unsafe {
            ensure!(libc::flock(fd, libc::LOCK_EX) == 0, "cannot lock the port");
            let mut settings: libc::termios = std::mem::zeroed();
            ensure!(libc::tcgetattr(fd, &raw mut settings) == 0, "{PORT} is no terminal");
            libc::cfmakeraw(&raw mut settings);
            settings.c_cflag |= libc::CLOCAL | libc::CREAD;
            ensure!(libc::tcsetattr(fd, libc::TCSAFLUSH, &raw const settings) == 0, "cannot set up the port");
        }
        Ok(())
    }

    /// Whether there is something to read within this time.
    fn is_readable(&self, within: Duration) -> anyhow::Result<bool> {
        let mut fd = libc::pollfd { fd: self.0.as_raw_fd(), events: libc::POLLIN, revents: 0 };
        // SAFETY: one descriptor, which lives through the call.
        let ready = unsafe { libc::poll(&raw mut fd, 1, i32::try_from(within.as_millis())?) };
        ensure!(ready >= 0, "cannot wait for the port: {}", std::io::Error::last_os_error());
        Ok(ready > 0)
    }

    /// What an earlier user of the port has not read.
    fn drain(&mut self) -> anyhow::Result<()> {
        while self.is_readable(Duration::from_millis(50))? {
            let _ = self.0.read(&mut [0; 256])?;
        }
        Ok(())
    }

    fn send(&mut self, text: &str) -> anyhow::Result<()> {
        self.0.write_all(text.as_bytes()).context("cannot write to the port")
    }

    /// The next line, without its end; `None` when it is not whole in time.
    fn line(&mut self, within: Duration) -> anyhow::Result<Option<String>> {
        let end = Instant::now() + within;
        let mut line = Vec::new();
        loop {
            let left = end.saturating_duration_since(Instant::now());
            if !self.is_readable(left)? {
                return Ok(None);
            }
            let mut byte = [0];
            ensure!(self.0.read(&mut byte)? == 1, "the port is gone");
            match byte {
                [b'\n'] => return Ok(Some(String::from_utf8(line).context("a line that is no text")?)),
                [byte] => line.push(byte),
            }
        }
    }

    fn answer(&mut self, within: Duration) -> anyhow::Result<String> {
        self.line(within)?.context("no answer in time")
    }

    /// Asks by version 1.
    fn ask(mut self, request: &[&str]) -> anyhow::Result<Answer> {
        match request {
            ["get", key] => self.send(&format!("GET {key}\n"))?,
            ["keys"] => self.send("KEYS\n")?,
            _ => bail!("version 1 has no such command: {request:?}"),
        }
        match self.answer(ANSWER[0])?.as_str() {
            "NOTFOUND" => return Ok(Answer::NotFound),
            "SUCCESS" => {}
            _ => return Ok(Answer::Failure),
        }
        let mut lines = Vec::new();
        loop {
            let line = self.answer(ANSWER[0])?;
            match line.strip_prefix('.') {
                Some("") => return Ok(Answer::Success(lines.join("\n").into_bytes())),
                Some(rest) => lines.push(rest.to_owned()),
                None => lines.push(line),
            }
        }
    }

    /// Agrees on version 2.
    fn negotiated(mut self) -> anyhow::Result<Self> {
        self.send("NEGOTIATE V2\n")?;
        let answer = self.answer(ANSWER[0])?;
        ensure!(answer == "V2_OK", "version 2 is answered by {answer}");
        Ok(self)
    }

    /// Asks by version 2.
    fn ask_framed(mut self, request: &[&str]) -> anyhow::Result<Answer> {
        let (word, payload) = match request {
            ["get", key] => ("GET", Some((*key).to_owned())),
            ["keys"] => ("KEYS", None),
            ["put", key, value] => ("PUT", Some([*key, *value].map(|text| BASE64_STANDARD.encode(text)).join(" "))),
            ["delete", key] => ("DELETE", Some((*key).to_owned())),
            _ => bail!("version 2 has no such command: {request:?}"),
        };
        let id = format!("{:08x}", std::process::id());
        let asked = Frame { id, word: word.to_owned(), payload: payload.map(String::into_bytes) };
        self.send(&asked.line())?;
        let end = Instant::now() + ANSWER[1];
        loop {
            let line = self.answer(end.saturating_duration_since(Instant::now()))?;
            // What is damaged, or an answer to somebody else's request, is passed over.
            let Some(answer) = Frame::parse(&line).filter(|answer| answer.id == asked.id) else { continue };
            return Ok(match answer.word.as_str() {
                "SUCCESS" => Answer::Success(answer.payload.unwrap_or_default()),
                "NOTFOUND" => Answer::NotFound,
                _ => Answer::Failure,
            });
        }
    }
}
