//! Zones of the bhyve brand.

use std::io::{Read as _, Write as _};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use zvmm_zone::LIMIT;
use zvmm_zone::argv::Properties;
use zvmm_zone::global::{Stop, Zone};
use zvmm_zone::root::Brand;

use crate::{create, guest};

/// A guest with its kernel in the documented extra options, which know no quotes.
fn properties(properties: Properties, cmdline: &[&str]) -> Properties {
    let words = cmdline.iter().map(|word| format!(" -o zvmm.cmdline={word}"));
    Properties {
        extra: format!("-o zvmm.kernel=/guest -o zvmm.sandbox=strict{}", words.collect::<String>()),
        ..properties
    }
}

fn booted(guest: &Path, cmdline: &[&str]) -> Zone {
    let mut zone = create(Brand::Bhyve, guest, properties(Properties::small(), cmdline));
    zone.boot();
    zone.until_console("UP\n");
    zone
}

/// Connects to the second serial line as the metadata agent does: until there is somebody.
fn connect(zone: &mut Zone, name: &str) -> UnixStream {
    let (socket, mut stream) = (zone.socket(name), None);
    zone.until("the socket is served", |_| {
        stream = UnixStream::connect(&socket).ok();
        stream.is_some()
    });
    let stream = stream.expect("a connection");
    stream.set_read_timeout(Some(LIMIT)).expect("a socket");
    stream
}

/// Every byte that is sent on a line comes back as it was.
fn is_transparent(stream: &mut UnixStream) {
    // Not more at once than what a UART and its back end hold: nobody reads while it is sent.
    for part in (0..=255).collect::<Vec<u8>>().chunks(16) {
        stream.write_all(part).expect("a line");
        let mut back = vec![0; part.len()];
        stream.read_exact(&mut back).expect("an echo");
        assert_eq!(back, part);
    }
}

#[test]
fn the_worked_example_provisions_talks_on_both_lines_and_stops_in_time() {
    let Some(guest) = guest() else { return };
    let mut zone = create(Brand::Bhyve, &guest, properties(Properties::example(), &[]));
    zone.boot();
    zone.until_console("UP\n");
    assert_eq!(zone.root.names("/var/svc"), ["provision_success"], "before the guest says anything");
    // Its sockets, and nothing else that stays when the zone is booted again.
    assert_eq!(zone.sockets_and_files(), (vec!["vm.ttyb".to_owned()], vec![]));
    assert_eq!(zone.root.names("/var/run"), [""; 0]);
    zone.until_confined();

    zone.root.forget_console();
    zone.root.type_on_console(b"abc\r\n\x03\x04\x1a");
    zone.until("the console is raw both ways", |zone| zone.root.console() == "abc\r\n\x03\x04\x1a");
    // The agent comes, goes and comes back, and whoever comes meanwhile is let go; the guest hears nothing of it.
    for _ in 0..3 {
        let mut agent = connect(&mut zone, "vm.ttyb");
        is_transparent(&mut agent);
        assert_eq!(connect(&mut zone, "vm.ttyb").read(&mut [0; 8]).expect("an end"), 0);
        is_transparent(&mut agent);
        // Closed for the VMM as well where another test is just starting a process, which has every descriptor until then.
        agent.shutdown(Shutdown::Both).expect("a connection");
    }
    assert_eq!(zone.stop(LIMIT), Stop::InTime);
    assert_eq!(zone.ends(), [1], "{}", zone.said());
    assert!(zone.root.console().ends_with("BUTTON\n"));
    // One record a message, each a whole line.
    let log = zone.log.all();
    assert!(
        log.iter().all(|record| record.starts_with("zvmm: ") && record.find('\n') == Some(record.len() - 1)),
        "{log:?}"
    );
    for what in ["-l bootrom,/usr/share/bhyve/uefi-csm-rom.bin", "-s 30:0,fbuf,", "-s 30:1,xhci,tablet"] {
        let told = log.iter().filter(|record| record.contains(what) && record.contains("not built yet")).count();
        assert_eq!(told, 1, "{what}: {log:?}");
    }
}

#[test]
fn a_zone_that_is_provisioned_and_one_that_is_halted_by_force_start_again() {
    let Some(guest) = guest() else { return };
    let mut zone = booted(&guest, &[]);
    // Told to ignore its button, it is cut off when time is up; its sockets stay in the zone's /tmp.
    zone.root.type_on_console(b"I");
    zone.until_console("IGNORES\n");
    assert_eq!(zone.stop(Duration::from_millis(300)), Stop::Forced);
    assert_eq!(zone.ends(), [-libc::SIGKILL]);
    assert!(zone.root.console().contains("BUTTON\n"), "it was asked first");
    assert_eq!(zone.sockets_and_files().0, ["vm.ttyb"]);

    zone.root.forget_console();
    zone.boot();
    zone.until_console("UP\n");
    assert_eq!(zone.root.names("/var/svc"), ["provision_success"]);
    is_transparent(&mut connect(&mut zone, "vm.ttyb"));
    assert_eq!(zone.stop(LIMIT), Stop::InTime);
}

#[test]
fn twenty_reboots_are_twenty_processes_that_leave_nothing_behind() {
    reboot(20);
}

#[test]
#[ignore = "takes long: cargo xtask test --full kvm"]
fn a_hundred_reboots_are_a_hundred_processes_that_leave_nothing_behind() {
    reboot(100);
}

fn reboot(count: usize) {
    let Some(guest) = guest() else { return };
    let mut zone = booted(&guest, &[]);
    let first = zone.belongings();
    for reboots in 1..=count {
        zone.root.forget_console();
        zone.root.type_on_console(b"R");
        zone.until_console("UP\n");
        assert_eq!(zone.ends(), vec![0; reboots]);
        assert_eq!(zone.sockets_and_files(), (vec!["vm.ttyb".to_owned()], vec![]));
    }
    assert_eq!(zone.belongings(), first);
    is_transparent(&mut connect(&mut zone, "vm.ttyb"));
    assert_eq!(zone.stop(LIMIT), Stop::InTime);
    assert_eq!(zone.sockets_and_files(), (vec![], vec![]));
}

#[test]
fn each_end_of_the_guest_is_the_status_that_the_brand_reads() {
    let Some(guest) = guest() else { return };
    for (key, status) in [(b"O", 1), (b"T", 3)] {
        let mut zone = booted(&guest, &[]);
        zone.root.type_on_console(key);
        zone.until_halted();
        assert_eq!(zone.ends(), [status], "{}", zone.said());
    }
    // A guest that cannot be: one line in the log, and the zone is halted; its mark stays.
    let mut zone = create(Brand::Bhyve, &guest, properties(Properties::small(), &[]));
    zone.properties.extra = "-o zvmm.kernel=/no-such-kernel".to_owned();
    zone.boot();
    zone.until_halted();
    assert_eq!(zone.ends(), [4]);
    let last = zone.log.all().last().cloned().unwrap_or_default();
    assert_eq!(last, "zvmm: boot.kernel (--kernel): cannot open /no-such-kernel: No such file or directory\n");
    assert_eq!(zone.root.names("/var/svc"), ["provisioning"]);
}

#[test]
fn sigterm_presses_the_button_however_often_it_comes_and_sighup_is_nothing() {
    let Some(guest) = guest() else { return };
    let mut zone = booted(&guest, &[]);
    zone.root.type_on_console(b"I");
    zone.until_console("IGNORES\n");
    for presses in 1..=3 {
        zone.signal(libc::SIGHUP);
        zone.signal(libc::SIGPIPE);
        zone.signal(libc::SIGTERM);
        zone.until("the button", |zone| zone.root.console().matches("BUTTON\n").count() == presses);
    }
    zone.root.type_on_console(b"still here");
    zone.until_console("still here");
    assert_eq!(zone.ends(), [0; 0]);
    zone.root.type_on_console(b"O");
    zone.until_halted();
    assert_eq!(zone.ends(), [1]);
}

/// The operator's order and the guest's own reset come at every moment of each other; who ordered the end gets it.
#[test]
fn a_stop_wins_over_a_racing_reboot_always() {
    race(60);
}

#[test]
#[ignore = "takes long: cargo xtask test --full kvm"]
fn a_stop_wins_over_two_hundred_racing_reboots() {
    race(200);
}

fn race(rounds: u64) {
    let Some(guest) = guest() else { return };
    let mut heard = 0;
    for round in 0..rounds {
        // A guest that does nothing but reset, after a moment that differs.
        let looks = format!("looks={}", 1 + round % 7 * 40);
        let mut zone = booted(&guest, &[&looks]);
        std::thread::sleep(Duration::from_micros(round * 977 % 40_000));
        assert_eq!(zone.stop(LIMIT), Stop::InTime);
        // By its own status, or by the signal where that comes before there is somebody to hear it; and never with the status
        // that has the guest started again.
        let ends = zone.ends_since_signal();
        assert!(ends == [1] || ends == [-libc::SIGTERM], "{ends:?} {}", zone.said());
        heard += usize::from(ends == [1]);
    }
    assert!(heard > 0, "every order came before there was somebody to hear it");
}
