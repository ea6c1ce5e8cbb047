//! The life of the whole process around a guest that only echoes its serial port: signals, terminal, consoles, control
//! socket.
//!
//! The guest is a handful of instructions, written out below, so these tests need nothing but `/dev/kvm`. Where that does
//! not open they skip, and say so; `cargo xtask test` (which sets `ZVMM_GUESTS`) runs them where it does.

#![cfg(target_os = "linux")]

#[path = "life/clients.rs"]
mod clients;
#[path = "life/lines.rs"]
mod lines;
#[path = "life/metadata.rs"]
mod metadata;
#[path = "life/process.rs"]
mod process;
#[path = "life/qmp.rs"]
mod qmp;
#[path = "life/refusals.rs"]
mod refusals;
#[path = "life/storms.rs"]
mod storms;

use std::io::{Read as _, Write as _};
use std::time::Duration;

use process::{Terminal, Zvmm, talk};
use qmp::Qmp;
use serde_json::json;

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
    let exits = ["--on-reset", "exit", "--on-triple-fault", "exit", "--pvpanic", "--on-panic", "exit"];
    for (how, status) in [
        ("two interrupts", 130),
        ("SIGQUIT", 130),
        ("SIGTERM", 0),
        ("SIGHUP", 0),
        ("SIGINT", 0),
        ("quit", 0),
        ("R", 5),
        ("T", 6),
        ("P", 7),
        ("O", 0),
    ] {
        let mut terminal = Terminal::open();
        let mut zvmm = Zvmm::start_on(&terminal, &[&["--serial", "stdio", "--qmp", "@qmp"][..], &exits].concat());
        terminal.expect(b"!");
        assert!(terminal.is_raw(), "{how}");
        let button = |terminal: &mut Terminal, zvmm: &Zvmm, signal| {
            terminal.send(b"W");
            terminal.expect(b"w");
            zvmm.signal(signal);
        };
        match how {
            "two interrupts" => {
                let mut qmp = Qmp::connect(&zvmm);
                zvmm.signal(libc::SIGINT);
                assert_eq!(qmp.next()["event"], "POWERDOWN");
                zvmm.signal(libc::SIGINT);
            }
            "SIGQUIT" => zvmm.signal(libc::SIGQUIT),
            "SIGTERM" => button(&mut terminal, &zvmm, libc::SIGTERM),
            "SIGHUP" => button(&mut terminal, &zvmm, libc::SIGHUP),
            "SIGINT" => button(&mut terminal, &zvmm, libc::SIGINT),
            "quit" => drop(Qmp::connect(&zvmm).ask("quit")),
            key => terminal.send(key.as_bytes()),
        }
        assert_eq!(zvmm.status(), Some(status), "{how}");
        assert!(terminal.is_as_before(), "{how}");
    }
}

#[test]
fn a_run_that_is_refused_late_leaves_the_terminal_alone() {
    if process::skip() {
        return;
    }
    let terminal = Terminal::open();
    let mut zvmm = Zvmm::start_on(&terminal, &["--serial", "stdio", "--net", "tap=none0,mac=52:54:00:12:34:56"]);
    assert_eq!(zvmm.status(), Some(2));
    assert!(terminal.is_as_before());
}

#[test]
fn every_word_behind_control_a_is_understood_and_others_are_swallowed() {
    if process::skip() {
        return;
    }
    let mut terminal = Terminal::open();
    let mut zvmm = Zvmm::start_on(&terminal, &["--serial", "stdio"]);
    terminal.expect(b"!");
    for line in ["Ctrl-A h  this help", "Ctrl-A x  leave", "Ctrl-A b  send a break", "Ctrl-A a  send Ctrl-A"] {
        terminal.send(b"\x01h");
        terminal.expect(line.as_bytes());
    }
    terminal.send(b"\x01za\x01ab");
    terminal.expect(b"a\x01b");
    // Ctrl-A x works while the guest has stopped reading.
    terminal.send(b"W");
    terminal.expect(b"w");
    terminal.send(&[b'.'; 2000]);
    std::thread::sleep(Duration::from_millis(20));
    terminal.send(b"\x01x");
    assert_eq!(zvmm.status(), Some(0));
    assert!(terminal.is_as_before());
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
fn each_policy_decides_what_a_triple_fault_and_a_panic_lead_to() {
    if process::skip() {
        return;
    }
    let fault = ["--on-triple-fault", "reset"];
    for (key, args, status) in [
        (b'T', &["--on-triple-fault", "exit"][..], Some(6)),
        (b'T', &[&fault[..], &["--on-reset", "exit"]].concat(), Some(5)),
        (b'T', &fault, None),
        (b'P', &["--pvpanic", "--on-panic", "exit"], Some(7)),
        (b'P', &["--pvpanic"], None),
        (b'R', &[], None),
        (b'R', &["--on-reset", "exit"], Some(5)),
    ] {
        let mut zvmm = Zvmm::start(&[&["--serial", "socket:@com1"][..], args].concat());
        let mut console = process::connect(&zvmm.place("com1"));
        talk(&mut console, b"x", b"x");
        match status {
            Some(_) => console.write_all(&[key]).expect("a console"),
            None => {
                // A guest that goes on, or starts again.
                talk(&mut console, &[key], if key == b'P' { b"" } else { b"!" });
                talk(&mut console, b"y", b"y");
                zvmm.signal(libc::SIGQUIT);
            }
        }
        assert_eq!(zvmm.status(), status.or(Some(130)), "{} {args:?}: {}", char::from(key), zvmm.errors());
    }
}

#[test]
fn the_power_button_however_pressed_ends_a_guest_that_listens() {
    if process::skip() {
        return;
    }
    for how in [libc::SIGTERM, libc::SIGHUP, libc::SIGINT, 0] {
        let mut zvmm = Zvmm::start(&["--serial", "socket:@com1", "--qmp", "@qmp"]);
        let mut console = process::connect(&zvmm.place("com1"));
        let mut qmp = Qmp::connect(&zvmm);
        talk(&mut console, b"W", b"w");
        let reason = match how {
            0 => {
                assert_eq!(qmp.ask("system_powerdown"), (json!({}), vec!["POWERDOWN".to_owned()]));
                qmp.next()
            }
            signal => {
                zvmm.signal(signal);
                assert_eq!(qmp.next()["event"], "POWERDOWN");
                qmp.next()
            }
        };
        assert_eq!((&reason["event"], &reason["data"]["reason"]), (&json!("SHUTDOWN"), &json!("guest-shutdown")));
        assert_eq!(zvmm.status(), Some(0));
        assert_eq!(zvmm.errors(), "");
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
fn a_password_among_bhyves_arguments_is_not_shown_to_other_users_of_the_host() {
    if process::skip() {
        return;
    }
    let display = "30:0,fbuf,vga=off,unix=@vnc,password=sesame";
    let mut zvmm = Zvmm::start_as_bhyve(&[
        "-c",
        "1",
        "-m",
        "32M",
        "-s",
        "0,hostbridge",
        "-s",
        "31,lpc",
        "-l",
        "com1,socket,@com1",
        "-s",
        display,
        "-o",
        "zvmm.kernel=@guest",
        "-o",
        "zvmm.sandbox=strict",
        "vm",
    ]);
    let mut console = process::connect(&zvmm.place("com1"));
    talk(&mut console, b"x", b"x");
    let shown = std::fs::read(format!("/proc/{}/cmdline", zvmm.id())).expect("a process");
    let shown = String::from_utf8_lossy(&shown).replace('\0', " ");
    assert!(shown.contains(",password=xxxxxx -o zvmm.kernel=") && !shown.contains("sesame"), "{shown}");
    zvmm.signal(libc::SIGQUIT);
    zvmm.status();
    assert!(!zvmm.errors().contains("sesame"), "{}", zvmm.errors());
}
