//! Many orders at once.

use std::io::{Read as _, Write as _};
use std::time::Duration;

use serde_json::json;

use crate::process::{self, LIMIT, Zvmm, talk};
use crate::qmp::Qmp;

#[test]
fn a_storm_of_pauses_neither_loses_nor_doubles_a_byte() {
    if process::skip() {
        return;
    }
    let mut zvmm = Zvmm::start(&["--serial", "socket:@com1", "--qmp", "@qmp"]);
    let mut console = process::connect(&zvmm.place("com1"));
    talk(&mut console, b"x", b"x");
    let bytes: Vec<u8> = (0..4_000_u32).map(|i| b'a' + (i % 23) as u8).collect();
    let mut writer = console.try_clone().expect("a descriptor");
    let mut received = vec![0; bytes.len()];
    std::thread::scope(|scope| {
        scope.spawn(|| writer.write_all(&bytes).expect("a console"));
        let reader = scope.spawn(|| console.read_exact(&mut received));
        let mut qmp = Qmp::connect(&zvmm);
        for _ in 0..150 {
            assert_eq!(qmp.ask("stop"), (json!({}), vec!["STOP".to_owned()]));
            assert_eq!(qmp.ask("cont"), (json!({}), vec!["RESUME".to_owned()]));
        }
        reader.join().expect("a thread").expect("every byte in time");
    });
    assert!(received == bytes);
    zvmm.signal(libc::SIGQUIT);
    assert_eq!(zvmm.status(), Some(130));
    assert_eq!(zvmm.errors(), "");
}

#[test]
fn orders_of_many_clients_and_signals_at_once_leave_a_guest_that_works() {
    if process::skip() {
        return;
    }
    let mut zvmm = Zvmm::start(&["--cpus", "2", "--serial", "socket:@com1", "--qmp", "@qmp"]);
    let mut console = process::connect(&zvmm.place("com1"));
    talk(&mut console, b"x", b"x");
    std::thread::scope(|scope| {
        for order in ["stop", "cont", "system_reset", "query-stats", "inject-nmi"] {
            let zvmm = &zvmm;
            scope.spawn(move || {
                let mut qmp = Qmp::connect(zvmm);
                // An NMI without an interrupt table is a triple fault, and so one more reset.
                for _ in 0..if order == "inject-nmi" { 3 } else { 60 } {
                    qmp.ask(order);
                }
            });
        }
        for _ in 0..50 {
            zvmm.signal(libc::SIGTERM);
            std::thread::sleep(Duration::from_millis(1));
        }
    });
    let mut qmp = Qmp::connect(&zvmm);
    qmp.ask("cont");
    // What is typed into the last reset is gone with it, as on a real machine.
    console.set_read_timeout(Some(Duration::from_millis(100))).expect("a socket");
    process::until("the guest works", || {
        console.write_all(b"k").expect("a console");
        let mut bytes = [0; 4096];
        console.read(&mut bytes).is_ok_and(|count| bytes[..count].contains(&b'k'))
    });
    qmp.ask("quit");
    assert_eq!(zvmm.status(), Some(0));
    assert_eq!(zvmm.errors(), "");
}

#[test]
fn a_second_interrupt_stops_at_once_whatever_the_guest_and_its_readers_do() {
    if process::skip() {
        return;
    }
    for state in ["paused", "flooding a reader that does not read", "waiting for its power button"] {
        let mut zvmm = Zvmm::start(&["--serial", "socket:@com1", "--qmp", "@qmp"]);
        let mut console = process::connect(&zvmm.place("com1"));
        talk(&mut console, b"x", b"x");
        let mut qmp = Qmp::connect(&zvmm);
        match state {
            "paused" => drop(qmp.ask("stop")),
            "waiting for its power button" => {
                // A press that it never sees, because it is held.
                talk(&mut console, b"W", b"w");
                qmp.ask("stop");
            }
            _ => {
                console.write_all(b"F").expect("a console");
                std::thread::sleep(Duration::from_millis(50));
            }
        }
        // Only once the first has been taken: two that wait together are one (signal(7)).
        zvmm.signal(libc::SIGINT);
        while qmp.next()["event"] != "POWERDOWN" {}
        let start = std::time::Instant::now();
        zvmm.signal(libc::SIGINT);
        assert_eq!(zvmm.status(), Some(130), "{state}");
        // A reader may keep the end waiting for a second, nobody longer.
        assert!(start.elapsed() < LIMIT / 4, "{state}");
    }
}
