//! The life of the whole process around a guest that only echoes its serial port: signals, terminal, consoles, control
//! socket.
//!
//! The guest is a handful of instructions, written out below, so these tests need nothing but `/dev/kvm`. Where that does
//! not open they skip, and say so; `cargo xtask test` (which sets `ZVMM_GUESTS`) runs them where it does.

#![cfg(target_os = "linux")]

#[path = "life/process.rs"]
mod process;

use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use process::{Terminal, Zvmm, talk};
use serde_json::{Value, json};

/// A client of the control socket.
struct Qmp {
    stream: UnixStream,
    unread: Vec<u8>,
}

impl Qmp {
    fn connect(zvmm: &Zvmm) -> Self {
        let mut qmp = Self { stream: process::connect(&zvmm.place("qmp")), unread: Vec::new() };
        assert!(qmp.next()["QMP"].is_object());
        qmp.ask("qmp_capabilities");
        qmp
    }

    fn next(&mut self) -> Value {
        loop {
            if let Some(end) = self.unread.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.unread.drain(..=end).collect();
                return serde_json::from_slice(&line).expect("a line of JSON");
            }
            let mut bytes = [0; 4096];
            let count = self.stream.read(&mut bytes).expect("an answer in time");
            assert_ne!(count, 0, "the connection ended");
            self.unread.extend_from_slice(&bytes[..count]);
        }
    }

    /// The answer, and the events that came before it.
    fn ask(&mut self, command: &str) -> (Value, Vec<String>) {
        writeln!(self.stream, "{}", json!({"execute": command})).expect("a connection");
        let mut events = Vec::new();
        loop {
            let line = self.next();
            match line["event"].as_str() {
                Some(event) => events.push(event.to_owned()),
                None => return (line["return"].clone(), events),
            }
        }
    }
}

#[test]
fn the_terminal_is_raw_while_the_guest_runs_and_as_before_after_control_a_x() {
    if process::skip() {
        return;
    }
    let mut terminal = Terminal::open();
    let mut zvmm = Zvmm::start_on(&terminal, &["--serial", "stdio"]);
    terminal.expect(b"!");
    assert!(terminal.is_raw());
    // Ctrl-C, and Ctrl-A typed twice, are bytes for the guest.
    terminal.send(b"hello\x03\x01\x01");
    terminal.expect(b"hello\x03\x01");
    terminal.send(b"\x01h");
    terminal.expect(b"Ctrl-A x  leave");
    terminal.send(b"\x01x");
    assert_eq!(zvmm.status(), Some(0));
    assert!(terminal.is_as_before());
}

#[test]
fn the_terminal_is_as_before_after_every_other_end_too() {
    if process::skip() {
        return;
    }
    for (how, status) in [("interrupts", 130), ("reset", 5), ("quit", 0)] {
        let mut terminal = Terminal::open();
        let mut zvmm = Zvmm::start_on(&terminal, &["--serial", "stdio", "--on-reset", "exit", "--qmp", "@qmp"]);
        terminal.expect(b"!");
        match how {
            "interrupts" => {
                zvmm.signal(libc::SIGINT);
                std::thread::sleep(Duration::from_millis(50));
                zvmm.signal(libc::SIGINT);
            }
            "reset" => terminal.send(b"R"),
            _ => drop(Qmp::connect(&zvmm).ask("quit")),
        }
        assert_eq!(zvmm.status(), Some(status), "{how}");
        assert!(terminal.is_as_before(), "{how}");
    }
}

#[test]
fn sigterm_never_ends_a_guest_that_does_not_listen_and_a_second_sigint_does() {
    if process::skip() {
        return;
    }
    let mut zvmm = Zvmm::start(&["--serial", "socket:@com1"]);
    let mut console = process::connect(&zvmm.place("com1"));
    talk(&mut console, b"before", b"before");
    for _ in 0..5 {
        zvmm.signal(libc::SIGTERM);
        std::thread::sleep(Duration::from_millis(10));
    }
    zvmm.signal(libc::SIGINT);
    talk(&mut console, b"after", b"after");
    zvmm.signal(libc::SIGINT);
    assert_eq!(zvmm.status(), Some(130));
    assert!(!zvmm.place("com1").exists(), "the socket went away with its process");
}

#[test]
fn the_guest_is_paused_resumed_reset_and_ended_through_the_control_socket() {
    if process::skip() {
        return;
    }
    let mut zvmm = Zvmm::start(&["--serial", "socket:@com1", "--qmp", "@qmp"]);
    let mut console = process::connect(&zvmm.place("com1"));
    talk(&mut console, b"a", b"a");
    let mut qmp = Qmp::connect(&zvmm);
    assert_eq!(qmp.ask("query-status").0["status"], "running");
    assert!(qmp.ask("query-stats").0.is_object());

    assert_eq!(qmp.ask("stop"), (json!({}), vec!["STOP".to_owned()]));
    assert_eq!(
        qmp.ask("query-status").0,
        json!({"running": false, "singlestep": false, "status": "paused", "hwsetup": true})
    );
    console.write_all(b"held").expect("a console");
    std::thread::sleep(Duration::from_millis(100));
    console.set_nonblocking(true).expect("a socket");
    assert!(console.read(&mut [0; 16]).is_err(), "a paused guest answers nothing");
    console.set_nonblocking(false).expect("a socket");
    assert_eq!(qmp.ask("cont"), (json!({}), vec!["RESUME".to_owned()]));
    talk(&mut console, b"", b"held");

    assert_eq!(qmp.ask("system_reset"), (json!({}), vec!["RESET".to_owned()]));
    talk(&mut console, b"", b"!");
    assert_eq!(qmp.ask("query-status").0["status"], "running");
    talk(&mut console, b"b", b"b");

    assert_eq!(qmp.ask("quit").1, ["SHUTDOWN"]);
    assert_eq!(zvmm.status(), Some(0));
}

#[test]
fn a_stop_wins_over_reboots_that_never_end() {
    if process::skip() {
        return;
    }
    for _ in 0..10 {
        let mut zvmm = Zvmm::start(&["--serial", "socket:@com1", "--qmp", "@qmp"]);
        let mut console = process::connect(&zvmm.place("com1"));
        console.write_all(&[b'R'; 200]).expect("a console");
        let mut qmp = Qmp::connect(&zvmm);
        qmp.ask("quit");
        assert_eq!(zvmm.status(), Some(0));
    }
}

#[test]
fn a_guest_that_resets_itself_starts_again_in_the_same_process() {
    if process::skip() {
        return;
    }
    let mut zvmm = Zvmm::start(&["--serial", "socket:@com1"]);
    let mut console = process::connect(&zvmm.place("com1"));
    talk(&mut console, b"x", b"x");
    for _ in 0..5 {
        talk(&mut console, b"R", b"!");
    }
    zvmm.signal(libc::SIGQUIT);
    assert_eq!(zvmm.status(), Some(130));
}

#[test]
fn serial_input_and_output_at_full_speed_lose_no_byte() {
    if process::skip() {
        return;
    }
    let mut zvmm = Zvmm::start(&["--serial", "socket:@com1"]);
    let mut console = process::connect(&zvmm.place("com1"));
    let bytes: Vec<u8> = (0..20_000_u32).map(|i| b'a' + (i % 26) as u8).collect();
    talk(&mut console, &bytes, &bytes);
    zvmm.signal(libc::SIGQUIT);
    zvmm.status();
}

#[test]
fn a_reader_that_does_not_read_does_not_stop_the_guest() {
    if process::skip() {
        return;
    }
    let mut zvmm = Zvmm::start(&["--serial", "socket:@com1", "--qmp", "@qmp"]);
    let console = process::connect(&zvmm.place("com1"));
    // The guest writes without end and nobody reads.
    (&console).write_all(b"F").expect("a console");
    std::thread::sleep(Duration::from_millis(300));
    let mut qmp = Qmp::connect(&zvmm);
    assert_eq!(qmp.ask("query-status").0["status"], "running");
    qmp.ask("quit");
    assert_eq!(zvmm.status(), Some(0));
}

#[test]
fn a_file_keeps_what_the_guest_said() {
    if process::skip() {
        return;
    }
    let mut zvmm = Zvmm::start(&["--serial", "file:@log", "--qmp", "@qmp"]);
    let until = std::time::Instant::now() + process::LIMIT;
    while std::fs::read(zvmm.place("log")).unwrap_or_default() != b"!" {
        assert!(std::time::Instant::now() < until, "the guest says nothing: {zvmm:?}");
        std::thread::sleep(Duration::from_millis(5));
    }
    Qmp::connect(&zvmm).ask("quit");
    assert_eq!(zvmm.status(), Some(0));
}

#[test]
fn what_only_the_hypervisor_or_the_kernel_file_can_refuse_is_refused_in_one_line() {
    if process::skip() {
        return;
    }
    let long = "a".repeat(5000);
    for (args, status, words) in [
        (&["--cpu", "hosst"][..], 2, "did you mean 'host'?"),
        (&["--cpu", "host,-avx512x"], 2, "did you mean 'avx512f'?"),
        (&["--cmdline", &long], 2, "the kernel command line has 5000 bytes"),
        (&["--kernel", "/dev/null"], 2, "/dev/null is a character device, not a file"),
        (&["--kernel", "@short"], 2, "the kernel file is truncated: the ELF header ends"),
        (&["--kernel", "@truncated"], 2, "the kernel file is truncated"),
        (&["--memory", "1M"], 2, "the kernel needs memory up to"),
        (&["--net", "tap=none0,mac=52:54:00:12:34:56"], 2, "net0: TAP device none0 does not exist: create it with"),
    ] {
        let outcome = Zvmm::refuse(args);
        assert_eq!(outcome.status.code(), Some(status), "{args:?}: {outcome:?}");
        let line = String::from_utf8_lossy(&outcome.stderr);
        let is_one_line = line.starts_with("zvmm: ") && line.trim_end().lines().count() == 1;
        assert!(is_one_line && line.contains(words), "{args:?}: {line}");
        assert!(outcome.stdout.is_empty(), "{args:?}: {outcome:?}");
    }
}
