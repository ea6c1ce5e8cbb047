//! Zones of the kvm brand.

use std::fs;
use std::path::Path;
use std::time::Duration;

use serde_json::json;

use zvmm_zone::LIMIT;
use zvmm_zone::argv::Properties;
use zvmm_zone::console::Console;
use zvmm_zone::global::{Stop, Zone};
use zvmm_zone::qmp::{ask, try_ask};
use zvmm_zone::root::Brand;

use crate::{create, guest};

/// A guest with its kernel in the documented extra options.
fn properties(properties: Properties, cmdline: &str) -> Properties {
    let append = if cmdline.is_empty() { String::new() } else { format!(" -append {cmdline}") };
    Properties { extra: format!("-kernel /guest -sandbox on{append}"), ..properties }
}

/// A zone with a guest that answers: what it said before somebody came is lost, as the brand has it.
fn booted(guest: &Path, cmdline: &str) -> (Zone, Console) {
    let mut zone = create(Brand::Kvm, guest, properties(Properties::small(), cmdline));
    zone.boot();
    let mut console = Console::of(&mut zone);
    if cmdline.is_empty() {
        console.call(&mut zone);
    }
    (zone, console)
}

#[test]
fn the_worked_example_provisions_answers_vmadmd_and_stops_in_time() {
    let Some(guest) = guest() else { return };
    let mut zone = create(Brand::Kvm, &guest, properties(Properties::example(), ""));
    zone.boot();
    zone.until("the control socket", |zone| zone.socket("vm.qmp").exists());
    zone.until("the hardware is set up", |zone| zone.provision());
    assert_eq!(zone.root.names("/var/svc"), ["provision_success"]);
    let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
    let expected = (names(&["vm.console", "vm.qmp", "vm.ttyb"]), names(&["vm.log", "vm.pid"]));
    assert_eq!(zone.sockets_and_files(), expected);
    let pid = fs::read_to_string(zone.root.path("/tmp/vm.pid")).expect("a file");
    assert_eq!(pid.trim().parse::<i32>(), Ok(zone.init_pid()));

    let mut console = Console::of(&mut zone);
    console.call(&mut zone);
    console.send(b"abc");
    console.until(&mut zone, "abc");
    zone.until_confined();
    // What `vmadm info` shows as it comes, and what else vmadmd sends: an error would have it wait for ever.
    let socket = zone.socket("vm.qmp");
    for (what, least) in [
        ("query-version", 1),
        ("query-chardev", 3),
        ("query-block", 2),
        ("query-blockstats", 2),
        ("query-cpus", 2),
        ("query-pci", 1),
        ("query-kvm", 1),
    ] {
        let answer = ask(&socket, what, None);
        let count = answer.as_array().map_or(answer.as_object().map_or(0, |object| object.len()), Vec::len);
        assert!(count >= least, "{what}: {answer}");
    }
    ask(&socket, "set_password", Some(json!({"protocol": "vnc", "password": "secret"})));
    ask(&socket, "screendump", Some(json!({"filename": "/tmp/vm.ppm"})));
    ask(&socket, "human-monitor-command", Some(json!({"command-line": "sendkey shift"})));

    assert_eq!(zone.power_down(LIMIT), Stop::InTime);
    assert_eq!(zone.ends(), [0], "{}", zone.said());
    assert!(console.text().contains("BUTTON\n"));
    // The log is the zone's; the file with the process id goes with the process.
    assert_eq!(zone.sockets_and_files(), (vec![], vec!["vm.log".to_owned()]));
}

#[test]
fn twenty_reboots_stay_in_the_process_and_leave_nothing_behind() {
    reboot(20);
}

#[test]
#[ignore = "takes long: cargo xtask test --full kvm"]
fn a_hundred_reboots_stay_in_the_process_and_leave_nothing_behind() {
    reboot(100);
}

/// By how much the VMM's memory may differ after the first reboots from what it is after the last.
const SCATTER_KIB: u64 = 256;

fn reboot(count: usize) {
    let Some(guest) = guest() else { return };
    let (mut zone, mut console) = booted(&guest, "");
    let (pid, first) = (zone.init_pid(), zone.belongings());
    let mut early_kib = None;
    for reboots in 1..=count {
        console.send(b"R");
        zone.until("the guest is up", |_| console.text().matches("UP\n").count() >= reboots);
        if reboots == 10 {
            early_kib = Some(zone.memory().anonymous_kib);
        }
    }
    let (early_kib, late_kib) = (early_kib.expect("ten reboots"), zone.memory().anonymous_kib);
    assert!(late_kib <= early_kib + SCATTER_KIB, "{early_kib} KiB after 10 reboots, {late_kib} KiB after {count}");
    // `vmadm reboot -F`, and a triple fault, which is a reset in this brand.
    ask(&zone.socket("vm.qmp"), "system_reset", None);
    zone.until("the guest is up", |_| console.text().matches("UP\n").count() > count);
    console.send(b"T");
    zone.until("the guest is up", |_| console.text().matches("UP\n").count() > count + 1);
    // The client of the reset may not be seen off yet.
    zone.until("as before", |zone| zone.belongings() == first);
    assert_eq!((zone.init_pid(), zone.ends()), (pid, vec![]));
    console.send(b"O");
    zone.until_halted();
    assert_eq!(zone.ends(), [0]);
}

#[test]
fn a_non_maskable_interrupt_and_an_unmaskable_operator_reach_the_guest() {
    let Some(guest) = guest() else { return };
    let (mut zone, mut console) = booted(&guest, "");
    ask(&zone.socket("vm.qmp"), "human-monitor-command", Some(json!({"command-line": "nmi 0"})));
    console.until(&mut zone, "NMI\n");
    // The power button by SIGTERM, however often; then time is up, as vmadmd has it.
    console.send(b"I");
    console.until(&mut zone, "IGNORES\n");
    for presses in 1..=2 {
        zone.signal(libc::SIGTERM);
        zone.until("the button", |_| console.text().matches("BUTTON\n").count() == presses);
    }
    assert_eq!(zone.power_down(Duration::from_millis(300)), Stop::Forced);
    assert_eq!(zone.ends(), [-libc::SIGKILL]);
    // Sockets and the file of the process that was cut off are in nobody's way.
    zone.boot();
    let mut console = Console::of(&mut zone);
    console.call(&mut zone);
    console.send(b"again");
    console.until(&mut zone, "again");
    assert_eq!(zone.power_down(LIMIT), Stop::InTime);
    assert_eq!(zone.ends(), [0]);
}

#[test]
fn sigint_and_sighup_end_the_process_at_once_and_successfully() {
    let Some(guest) = guest() else { return };
    for signal in [libc::SIGINT, libc::SIGHUP] {
        let (mut zone, mut console) = booted(&guest, "");
        zone.signal(signal);
        zone.until_halted();
        assert_eq!(zone.ends(), [0], "{signal}");
        assert!(!console.text().contains("BUTTON"), "{signal}");
    }
}

#[test]
fn what_cannot_run_is_a_line_in_the_log_and_status_1() {
    let Some(guest) = guest() else { return };
    let mut zone = create(Brand::Kvm, &guest, properties(Properties::small(), ""));
    zone.properties.extra = "-kernel /no-such-kernel -frob nicate".to_owned();
    zone.boot();
    zone.until_halted();
    assert_eq!(zone.ends(), [1]);
    let log = fs::read_to_string(zone.root.path("/tmp/vm.log")).expect("a log");
    let last = "zvmm: boot.kernel (--kernel): cannot open /no-such-kernel: No such file or directory\n";
    assert!(log.ends_with(last), "{log}");
}

/// As in the bhyve brand, where the guest's reset is none of the process's ends.
#[test]
fn a_stop_wins_over_a_racing_reboot_always() {
    race(40);
}

#[test]
#[ignore = "takes long: cargo xtask test --full kvm"]
fn a_stop_wins_over_two_hundred_racing_reboots() {
    race(200);
}

fn race(rounds: u64) {
    let Some(guest) = guest() else { return };
    for round in 0..rounds {
        let (mut zone, _console) = booted(&guest, &format!("looks={}", 1 + round % 7 * 40));
        std::thread::sleep(Duration::from_micros(round * 977 % 20_000));
        let stop = if round % 2 == 0 {
            zone.stop(LIMIT)
        } else {
            // A guest that obeys at once can take the answer's connection with it.
            try_ask(&zone.socket("vm.qmp"), "system_powerdown", None);
            zone.wait_for_end(LIMIT)
        };
        assert_eq!((stop, zone.ends()), (Stop::InTime, vec![0]), "{}", zone.said());
    }
}
