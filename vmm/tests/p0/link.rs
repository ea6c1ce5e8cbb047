//! Network interfaces whose link goes down, in the whole process.

use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::process::{Zvmm, ask, guests, order};
use crate::{disk, interface, path, tap};

/// The link as the control socket shows it.
fn link(socket: &Path) -> Value {
    let stats = ask(socket, "query-stats");
    let devices = stats["devices"].as_array().expect("devices");
    devices.iter().find(|device| device["id"] == "net0").expect("an interface")["link"].clone()
}

#[track_caller]
fn becomes(socket: &Path, up: bool, plugged: bool, carrier: bool) {
    let wanted = json!({"up": up, "plugged": plugged, "carrier": carrier});
    let end = Instant::now() + Duration::from_secs(30);
    while link(socket) != wanted {
        assert!(Instant::now() < end, "{} and not {wanted}", link(socket));
        thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn a_link_goes_with_its_cable_and_with_the_hosts_interface_and_the_process_goes_on() {
    let Some(guests) = guests() else { return };
    let (image, folder) = (disk(1), tempfile::tempdir().expect("a temporary folder"));
    let socket = folder.path().join("qmp");
    let running = Zvmm::new(&guests, "resize")
        .args(["--disk", &path(&image), "--net", &format!("tap={},mac=52:54:00:12:34:56", tap::NAME)])
        .args(["--qmp", &socket.display().to_string(), "--log", "info"])
        .with_tap()
        .start();
    running.wait_for("SIZE 2048");
    let set_link = |name: &str, up: bool| order(&socket, "set_link", json!({"name": name, "up": up}));
    becomes(&socket, true, true, true);
    assert_eq!(set_link("net0", false), json!({"return": {}}));
    becomes(&socket, false, false, true);
    assert_eq!(set_link("net0", true), json!({"return": {}}));
    becomes(&socket, true, true, true);
    let unknown = json!({"class": "DeviceNotFound", "desc": "Device 'net1' not found; did you mean 'net0'?"});
    assert_eq!(set_link("net1", true)["error"], unknown);

    let process = running.id();
    let (down, up) = (|| interface::set_up(false), || interface::set_up(true));
    let there = |change: &(dyn Fn() -> std::io::Result<()> + Sync)| {
        // A thread of its own: it stays in the network it has moved to.
        thread::scope(|scope| {
            let moved = scope.spawn(|| interface::join(process).and_then(|()| change()));
            moved.join().expect("no panic").expect("a change to the network");
        });
    };
    there(&down);
    becomes(&socket, false, true, false);
    there(&up);
    becomes(&socket, true, true, true);
    // Lines that follow one another within a second are counted only.
    thread::sleep(Duration::from_millis(1100));
    there(&interface::delete);
    becomes(&socket, false, true, false);

    // Nothing wakes for a descriptor that reports an error for ever.
    let switches = || ["net0", "zvmm"].map(|name| running.switches(name).iter().map(|(_, count)| count).sum::<u64>());
    thread::sleep(Duration::from_millis(50));
    let before = switches();
    thread::sleep(Duration::from_millis(200));
    let woken: u64 = switches().iter().sum::<u64>() - before.iter().sum::<u64>();
    assert!(woken < 50, "woken {woken} times");

    order(&socket, "block_resize", json!({"device": "disk0", "size": 4096}));
    let outcome = running.finish();
    outcome.passed_with_warnings(&[]);
    let said: Vec<&str> = outcome.errors().lines().filter(|line| line.contains("interface")).collect();
    for (line, said) in ["is down, and so", "is up again", "was deleted; the guest's link stays down"].iter().zip(&said)
    {
        assert!(said.contains("net0: interface tap0 ") && said.contains(line), "{outcome:?}");
    }
    assert_eq!(said.len(), 3, "{outcome:?}");
}
