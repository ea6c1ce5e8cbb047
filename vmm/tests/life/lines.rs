//! Serial lines of the whole process: pseudo terminal, socket, file, pipe.

use std::fs::File;
use std::io::{ErrorKind, Read as _, Write as _};
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use devices_host::poll::{PollFd, poll};

use crate::process::{self, LIMIT, Terminal, Zvmm, talk};
use crate::qmp::Qmp;

/// The pseudo terminal that the process says it has opened for COM1.
pub fn pty_of(zvmm: &Zvmm) -> PathBuf {
    process::until("the name of the terminal", || zvmm.errors().ends_with('\n'));
    let said = zvmm.errors();
    PathBuf::from(said.trim_end().strip_prefix("zvmm: com1 is ").unwrap_or_else(|| panic!("said: {said}")))
}

/// Opens it as `screen` and `minicom` do. It is raw already: nobody has to know how to make it so.
fn open(path: &PathBuf) -> File {
    File::options()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY)
        .open(path)
        .expect("a terminal")
}

/// Reads until the text has come.
#[track_caller]
fn expect(terminal: &mut File, text: &[u8]) {
    let end = Instant::now() + LIMIT;
    let mut seen = Vec::new();
    while !seen.ends_with(text) {
        assert!(Instant::now() < end, "seen: {:?}", String::from_utf8_lossy(&seen));
        let mut fds = [PollFd::new(terminal.as_raw_fd()).readable(true)];
        poll(&mut fds, Some(100_000_000)).expect("a descriptor");
        let mut bytes = [0; 4096];
        match terminal.read(&mut bytes) {
            Ok(count) => seen.extend_from_slice(&bytes[..count]),
            Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock),
        }
    }
}

#[test]
fn a_pseudo_terminal_tells_its_name_and_carries_both_directions() {
    if process::skip() {
        return;
    }
    let mut zvmm = Zvmm::start(&["--serial", "pty"]);
    let path = pty_of(&zvmm);
    let mut terminal = open(&path);
    // What was said before somebody came is still there.
    expect(&mut terminal, b"!");
    // No byte has a meaning of its own: not Ctrl-C, Ctrl-D, Ctrl-S, Ctrl-A x, line ends.
    terminal.write_all(b"a\x03\x04\x13\x11\x01x\r\nz").expect("a terminal");
    expect(&mut terminal, b"a\x03\x04\x13\x11\x01x\r\nz");
    zvmm.signal(libc::SIGQUIT);
    assert_eq!(zvmm.status(), Some(130));
    assert!(!path.exists(), "the terminal went away with the process");
}

#[test]
fn a_pseudo_terminal_survives_readers_that_go_away_and_is_opened_again() {
    if process::skip() {
        return;
    }
    let mut zvmm = Zvmm::start(&["--serial", "pty", "--qmp", "@qmp"]);
    let path = pty_of(&zvmm);
    for round in [b"one", b"two", b"six"] {
        let mut terminal = open(&path);
        terminal.write_all(round).expect("a terminal");
        expect(&mut terminal, round);
    }
    // A reader that leaves while the guest writes without end; the guest and the process go on.
    let mut terminal = open(&path);
    terminal.write_all(b"F").expect("a terminal");
    expect(&mut terminal, b"FFFF");
    drop(terminal);
    std::thread::sleep(Duration::from_millis(50));
    let mut qmp = Qmp::connect(&zvmm);
    assert_eq!(qmp.ask("query-status").0["status"], "running");
    expect(&mut open(&path), b"FFFF");
    qmp.ask("quit");
    assert_eq!(zvmm.status(), Some(0));
}

#[test]
fn a_pseudo_terminal_that_nobody_opens_uses_no_processor() {
    if process::skip() {
        return;
    }
    let mut zvmm = Zvmm::start(&["--serial", "pty", "--qmp", "@qmp"]);
    drop(open(&pty_of(&zvmm)));
    let mut qmp = Qmp::connect(&zvmm);
    qmp.ask("stop");
    // Fields 14 and 15 of the main thread's stat(5): ticks of 10 ms.
    let ticks = || -> u64 {
        let stat = std::fs::read_to_string(format!("/proc/{0}/task/{0}/stat", zvmm.id())).expect("a process");
        let after_name = stat.rsplit(')').next().unwrap_or_default();
        after_name.split_whitespace().skip(11).take(2).filter_map(|field| field.parse::<u64>().ok()).sum()
    };
    let before = ticks();
    std::thread::sleep(Duration::from_millis(300));
    assert!(ticks() - before < 10, "the main thread turns in circles");
    qmp.ask("quit");
    assert_eq!(zvmm.status(), Some(0));
}

#[test]
fn a_terminal_device_is_raw_while_the_guest_runs_and_as_before_afterwards() {
    if process::skip() {
        return;
    }
    let mut terminal = Terminal::open();
    let line = format!("device:{}", terminal.path.display());
    for (last, status) in [(&b"O"[..], 0), (b"", 130)] {
        let mut zvmm = Zvmm::start(&["--serial", &line]);
        terminal.expect(b"!");
        // Every byte is the guest's, and it is shown what the guest writes and nothing else: no echo, no line ends.
        terminal.send(b"a\x03\x04\x13\x11\x01x\r\nz");
        terminal.expect(b"a\x03\x04\x13\x11\x01x\r\nz");
        assert!(terminal.is_raw());
        terminal.send(last);
        if last.is_empty() {
            zvmm.signal(libc::SIGQUIT);
        }
        assert_eq!((zvmm.status(), zvmm.errors().as_str()), (Some(status), ""));
        assert!(terminal.is_as_before());
    }
}

#[test]
fn a_socket_serves_one_client_after_the_other_and_belongs_to_its_owner() {
    if process::skip() {
        return;
    }
    let mut zvmm = Zvmm::start(&["--serial", "socket:@com1"]);
    let mut first = process::connect(&zvmm.place("com1"));
    let mode = std::fs::metadata(zvmm.place("com1")).expect("a socket").permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    talk(&mut first, b"first", b"first");
    let mut second = process::connect(&zvmm.place("com1"));
    second.write_all(b"second").expect("a socket");
    talk(&mut first, b"still", b"still");
    drop(first);
    talk(&mut second, b"", b"second");
    for _ in 0..50 {
        drop(process::connect(&zvmm.place("com1")));
    }
    talk(&mut second, b"again", b"again");
    zvmm.signal(libc::SIGQUIT);
    assert_eq!(zvmm.status(), Some(130));
}

#[test]
fn a_file_is_appended_to_and_belongs_to_its_owner() {
    if process::skip() {
        return;
    }
    let folder = tempfile::TempDir::new().expect("a directory");
    let log = folder.path().join("log");
    let line = format!("file:{}", log.display());
    for said in ["!", "!!!"] {
        let mut zvmm = Zvmm::start(&["--serial", &line, "--qmp", "@qmp"]);
        let says = |text: &str| {
            process::until("the guest's word", || std::fs::read(&log).unwrap_or_default() == text.as_bytes());
        };
        says(said);
        let mut qmp = Qmp::connect(&zvmm);
        qmp.ask("system_reset");
        says(&format!("{said}!"));
        qmp.ask("quit");
        assert_eq!(zvmm.status(), Some(0));
    }
    let mode = std::fs::metadata(&log).expect("a file").permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
}

#[test]
fn a_full_disk_loses_the_guests_words_and_says_so_once() {
    if process::skip() {
        return;
    }
    let mut zvmm = Zvmm::start(&["--serial", "file:/dev/full", "--qmp", "@qmp"]);
    let mut qmp = Qmp::connect(&zvmm);
    process::until("the loss", || !zvmm.errors().is_empty());
    for _ in 0..5 {
        qmp.ask("system_reset");
        std::thread::sleep(Duration::from_millis(10));
    }
    assert_eq!(qmp.ask("query-status").0["status"], "running");
    qmp.ask("quit");
    assert_eq!(zvmm.status(), Some(0));
    let lost = "zvmm: error: zvmm::control::line: com1: output is lost: No space left on device\n";
    assert_eq!(zvmm.errors(), lost);
}
