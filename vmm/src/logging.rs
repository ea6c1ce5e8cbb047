//! What the process says on stderr.
//!
//! A message is one line and one write(2), as the reader may make a record of each: the log of a zone does. A message that
//! comes while the guest runs never waits for the reader, who may have stopped reading: it would hold up the vCPU or the
//! worker that says it. What there is no room for is lost, and how much that was is said as soon as there is room.

use std::fmt::Display;
use std::io::{self, Write, stderr, stdout};
use std::os::fd::AsRawFd;
use std::sync::{Mutex, PoisonError};

use devices_host::poll::{PollFd, poll};
use env_logger::{Builder, Target, WriteStyle};
use log::LevelFilter;

use crate::config::LogRule;

/// How long the last words, and those before there is a guest, wait for a reader, in nanoseconds.
const PATIENCE_NS: u64 = 1_000_000_000;

/// The most bytes of one write: what a pipe or a stream takes at once where poll says that it takes any.
const PIECE_BYTES: usize = 4096;

static OUTLET: Mutex<Outlet> = Mutex::new(Outlet { lost: 0 });

/// The way to a reader.
struct Outlet {
    /// Messages for which there was no room since the last one that there was room for.
    lost: u64,
}

impl Outlet {
    /// Writes a message, its line feed included, or counts it as lost if there is no room for it within `patience_ns`.
    fn put<W>(&mut self, to: &W, message: &[u8], patience_ns: u64)
    where
        W: AsRawFd,
        for<'a> &'a W: Write,
    {
        if self.lost > 0 {
            let what = format!("zvmm: warn: {} messages were lost, as nobody read them\n", self.lost);
            if write(to, what.as_bytes(), patience_ns) {
                self.lost = 0;
            }
        }
        if !write(to, message, patience_ns) {
            self.lost = self.lost.saturating_add(1);
        }
    }
}

/// Whether all of it was written.
fn write<W>(mut to: &W, mut bytes: &[u8], patience_ns: u64) -> bool
where
    W: AsRawFd,
    for<'a> &'a W: Write,
{
    while !bytes.is_empty() {
        let mut fds = [PollFd::new(to.as_raw_fd()).writable(true)];
        if poll(&mut fds, Some(patience_ns)).is_err() || !fds[0].is_writable() {
            return false;
        }
        match to.write(&bytes[..bytes.len().min(PIECE_BYTES)]) {
            Ok(written) => bytes = bytes.get(written..).unwrap_or_default(),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => return false,
        }
    }
    true
}

fn put(message: &[u8], patience_ns: u64) {
    let mut outlet = OUTLET.lock().unwrap_or_else(PoisonError::into_inner);
    outlet.put(&stderr(), message, patience_ns);
}

/// Where the logger writes its messages to, one a call.
struct Log;

impl Write for Log {
    fn write(&mut self, message: &[u8]) -> io::Result<usize> {
        put(message, 0);
        Ok(message.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Says one thing on stderr, in one line. Nobody reading is no reason to end a guest, as `eprintln!` would.
pub fn say(what: impl Display) {
    put(format!("zvmm: {}\n", line(what)).as_bytes(), PATIENCE_NS);
}

/// The text as one line that does nothing to a terminal: a configuration may come from somebody else, and its keys,
/// names and paths are in messages about it.
pub(crate) fn line(what: impl Display) -> String {
    let mut text = what.to_string().replace('\n', " ");
    if text.contains(char::is_control) {
        text = text.chars().map(|c| if c.is_control() { c.escape_default().to_string() } else { c.into() }).collect();
    }
    text
}

/// Writes a result to stdout. A reader that has seen enough (`| head`) is no failure.
pub fn print(what: impl Display) {
    let _ = stdout().write_all(format!("{what}\n").as_bytes());
}

/// Starts logging by the rules of the configuration; warnings and errors when there are none.
///
/// A line looks like `zvmm: warn: zvmm::vcpu: what happened`.
pub fn init(rules: &[LogRule]) {
    let mut builder = builder(rules);
    // Only a second call can fail, and then there is a logger already.
    let _ = builder.try_init();
}

fn builder(rules: &[LogRule]) -> Builder {
    let mut builder = Builder::new();
    builder.target(Target::Pipe(Box::new(Log))).write_style(WriteStyle::Never).filter_level(LevelFilter::Warn);
    for rule in rules {
        match &rule.module {
            Some(module) => builder.filter_module(module, rule.level),
            None => builder.filter_level(rule.level),
        };
    }
    builder.format(|out, record| {
        let level = record.level().as_str().to_ascii_lowercase();
        writeln!(out, "zvmm: {level}: {}: {}", record.target(), line(record.args()))
    });
    builder
}

#[cfg(test)]
mod tests {
    use super::*;
    use log::{Level, Log, Metadata};

    #[test]
    fn a_message_is_one_write_and_nobody_waits_for_a_reader() {
        use std::fs::File;
        use std::io::Read;
        use std::os::fd::OwnedFd;
        let (reader, writer) = io::pipe().unwrap();
        let (mut reader, writer) = (File::from(OwnedFd::from(reader)), File::from(OwnedFd::from(writer)));
        let mut outlet = Outlet { lost: 0 };
        let message = format!("{:999}\n", "x");
        let mut written = 0;
        while outlet.lost == 0 {
            outlet.put(&writer, message.as_bytes(), 0);
            written += 1;
            assert!(written < 10_000, "the pipe never fills");
        }
        outlet.put(&writer, message.as_bytes(), 0);
        assert_eq!(outlet.lost, 2, "and here we are, not waiting");

        let mut text = vec![0; message.len() * (written - 1)];
        reader.read_exact(&mut text).unwrap();
        assert!(text.chunks(message.len()).all(|chunk| chunk == message.as_bytes()), "no message is in parts");
        outlet.put(&writer, b"again\n", 0);
        drop(writer);
        let mut rest = String::new();
        reader.read_to_string(&mut rest).unwrap();
        assert_eq!(rest, "zvmm: warn: 2 messages were lost, as nobody read them\nagain\n");
    }

    #[test]
    fn a_message_is_one_record_for_a_reader_who_makes_one_of_each_write() {
        use std::fs::File;
        use std::os::fd::OwnedFd;
        use std::os::unix::net::UnixDatagram;
        let (reader, writer) = UnixDatagram::pair().unwrap();
        let writer = File::from(OwnedFd::from(writer));
        let mut outlet = Outlet { lost: 3 };
        outlet.put(&writer, b"one\n", 0);
        let record = || {
            let mut bytes = [0; 256];
            let count = reader.recv(&mut bytes).unwrap();
            String::from_utf8_lossy(&bytes[..count]).into_owned()
        };
        assert_eq!([record(), record()], ["zvmm: warn: 3 messages were lost, as nobody read them\n", "one\n"]);
    }

    #[test]
    fn a_message_about_hostile_text_is_one_line_without_control_characters() {
        assert_eq!(line("unknown key 'a\n\u{1b}[2Jb\rc'"), r"unknown key 'a \u{1b}[2Jb\rc'");
        assert_eq!(line("'é, ß' stays"), "'é, ß' stays");
    }

    #[test]
    fn rules_decide_by_module_and_warnings_are_the_default() {
        let rules = ["error", "zvmm::vcpu=debug"].map(|rule| rule.parse().unwrap());
        for (rules, target, level, written) in [
            (&[][..], "zvmm::machine", Level::Warn, true),
            (&[][..], "zvmm::machine", Level::Info, false),
            (&rules[..], "zvmm::vcpu", Level::Debug, true),
            (&rules[..], "zvmm::vcpu", Level::Trace, false),
            (&rules[..], "zvmm::machine", Level::Warn, false),
        ] {
            let logger = builder(rules).build();
            let metadata = Metadata::builder().target(target).level(level).build();
            assert_eq!(logger.enabled(&metadata), written, "{rules:?} {target} {level}");
        }
    }
}
