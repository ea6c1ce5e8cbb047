//! Calls that fail: at the start by a line, and while a guest runs by a link that is down until its driver begins anew, or by
//! a way around. Nothing panics, no worker spins, and nothing is left behind.

use std::cell::RefCell;
use std::time::Duration;

use zvmm::hypervisor::LinkOptions;
use zvmm_double::viona::Config;

use super::rig::*;

/// What becomes of a card whose call fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// It is not attached.
    Refused,
    /// Its link is down, and up again with the next driver.
    Down,
    /// Its driver is told to reset the device, which works then.
    Reset,
    /// Frames go on.
    Works,
}

use End::{Down, Refused, Reset, Works};

/// Calls, what they fail with, and what becomes of the card. A call that fails for every driver is up to its second one.
const FAILURES: &[(&str, &[&str], End)] = &[
    ("VNA_IOC_VERSION:1", &["ENOTTY", "ENXIO", "EIO"], Works),
    ("VNA_IOC_CREATE:1", &["EFAULT", "EIO", "EEXIST", "EBADF", "ENXIO", "ENOENT", "EBUSY", "ENOTSUP"], Refused),
    ("VNA_IOC_GET_PAIRS:1", &["ENOTTY"], Refused),
    ("VNA_IOC_SET_PAIRS:1", &["EINVAL", "EBUSY", "ENOTTY", "ENXIO"], Refused),
    ("VNA_IOC_GET_FEATURES:1", &["EFAULT", "ENXIO"], Refused),
    ("VNA_IOC_GET_MTU:1", &["ENXIO"], Refused),
    ("VNA_IOC_GET_MTU:1", &["ENOTTY"], Works),
    ("VNA_IOC_SET_MTU:1", &["EINVAL", "ENXIO"], Works),
    ("VNA_IOC_INTR_POLL_MQ:1", &["ENOTTY"], Refused),
    ("VNA_IOC_SET_FEATURES:1", &["EFAULT", "ENXIO"], Down),
    ("VNA_IOC_SET_USEPAIRS:1", &["EINVAL", "ENXIO", "EIO"], Works),
    ("VNA_IOC_RING_INIT_MODERN:1", &["ENOMEM", "EBUSY", "ENXIO", "EFAULT"], Down),
    ("VNA_IOC_RING_INIT_MODERN:4", &["ENOMEM", "EBUSY", "ENXIO"], Down),
    ("VNA_IOC_RING_INIT_MODERN:2", &["EINVAL"], Reset),
    ("VNA_IOC_RING_SET_STATE:1", &["ENOMEM", "EBUSY", "ENXIO"], Down),
    ("VNA_IOC_RING_SET_STATE:1", &["EINVAL"], Reset),
    ("VNA_IOC_RING_KICK:1", &["EBUSY", "EINVAL", "ENXIO"], Down),
    ("VNA_IOC_RING_KICK:2", &["EBUSY", "ENXIO"], Down),
    ("VNA_IOC_RING_KICK:6", &["EBUSY", "ENXIO"], Down),
    ("VNA_IOC_RING_SET_MSI:1", &["EINVAL", "ENXIO", "EFAULT"], Down),
    ("VNA_IOC_SET_NOTIFY_MMIO:1", &["ENOTTY", "ENXIO", "EEXIST", "EINVAL"], Works),
    ("VNA_IOC_INTR_POLL_MQ:2", &["EINVAL", "ENXIO", "EFAULT"], Down),
    ("VNA_IOC_INTR_POLL_MQ:2+", &["EINVAL", "ENXIO"], Down),
    ("VNA_IOC_RING_INTR_CLR:1", &["EINVAL", "ENXIO"], Down),
    ("VNA_IOC_RING_PAUSE:1", &["EINVAL", "ENXIO"], Down),
    ("VNA_IOC_RING_GET_STATE:1", &["EINVAL", "ENXIO", "EFAULT"], Down),
    ("VNA_IOC_RING_GET_STATE:4", &["EINVAL"], Down),
    ("VNA_IOC_SET_PROMISC:1", &["EINVAL", "ENXIO", "ENOTSUP"], Works),
    ("VNA_IOC_DELETE:1", &["EAGAIN", "ENXIO"], Works),
    ("VNA_IOC_SET_PARAMS:1", &["ENOTTY", "EINVAL", "E2BIG", "EFAULT", "ENXIO"], Refused),
    ("VNA_IOC_GET_PARAMS:1", &["ENOTTY", "E2BIG", "EFAULT", "ENXIO"], Works),
    ("VNA_IOC_GET_MAC_FILTERS:1", &["ENOTTY"], Works),
    ("VNA_IOC_GET_MAC_FILTERS:1", &["EFAULT", "ENXIO"], Refused),
    ("VNA_IOC_SET_MAC_FILTERS:1", &["EFAULT", "ENXIO", "EIO"], Works),
    ("VNA_IOC_GET_MAC_ADDR:1", &["ENOTTY"], Works),
    ("VNA_IOC_GET_MAC_ADDR:1", &["EFAULT", "ENXIO"], Refused),
    ("VNA_IOC_SET_MAC_ADDR:1", &["EFAULT", "ENXIO", "EIO"], Works),
];

/// What a card came to whose calls fail so, in a life of two drivers with a pause, messages and commands, and what of the
/// rules was broken.
fn live(injection: &str) -> (End, Vec<&'static str>) {
    let host = failing(Config::of_2026(), &[injection]);
    host.far.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
    let options = LinkOptions { tx_copy_data: Some(true), tx_header_pad: Some(2), ..LinkOptions::new(2) };
    let every = injection.contains("MAC_ADDR");
    let end = {
        let (_hypervisor, vm) = host.vm();
        match Card::with(&vm, &*host.sys, &options, every) {
            Err(error) => {
                let line = error.to_string();
                assert!(line.contains("net0") || line.contains("viona") || line.contains("VNA_IOC"), "{line}");
                Refused
            }
            Ok(mut card) => {
                let all = card.offered() & !(1 << 24) | VERSION_1;
                card.drive(all);
                card.kick(TX);
                card.kick(TX);
                card.step();
                if card.device.card().is_up() {
                    // Refused or not, they are answered.
                    card.command(&[4, 0, 2, 0]);
                    card.command(&[0, 0, 1]);
                    card.command(&[0, 1, 0]);
                    card.command(&[0, 0, 0]);
                    card.command(&[&[1, 1][..], &OTHER].concat());
                    card.send(&frame(OTHER, 1));
                    let _ = host.far.recv(&mut [0; 100]);
                    std::thread::sleep(Duration::from_millis(5));
                    card.step();
                    card.step();
                    card.interrupt_with(TX, Some(0x41));
                    card.step();
                    let states = card.pause();
                    card.start(&states);
                    card.step();
                    card.step();
                }
                let end = match (card.device.card().is_up(), card.interrupt.take_needs_reset().is_empty()) {
                    (true, true) => Works,
                    (true, false) => Reset,
                    (false, true) => Down,
                    (false, false) => panic!("{injection}: both"),
                };
                if end == Down {
                    // No ring is left that anybody could wait for, and nobody spins.
                    let step = devices::virtio::VirtioWorker::step(&mut card.worker, &card.mem);
                    assert!(!step.again && !step.want_readable, "{injection}: {step:?}");
                    assert!(card.interrupt.take_config_changes() > 0, "{injection}: the driver is not told");
                }
                card.reset();
                card.drive(all);
                card.send(&frame(OTHER, 2));
                let goes = host.far.recv(&mut [0; 100]).is_ok();
                assert_eq!(goes, !injection.contains('+'), "{injection}: the second driver");
                card.reset();
                end
            }
        }
    };
    host.process.end();
    (end, host.broken())
}

#[test]
fn every_errno_at_every_call_ends_as_it_is_documented() {
    let mut bad = Vec::new();
    let mut runs = 0;
    for (call, errnos, end) in FAILURES {
        for errno in *errnos {
            let injection = format!("{call}:{errno}");
            let (now, broken) = live(&injection);
            runs += 1;
            // A ring whose kick does not arrive was never kicked, which is how the double knows it.
            let fine = |rule: &&str| *rule == "viona-kick-once" && call.contains("RING_KICK");
            if now != *end || !broken.iter().all(fine) {
                bad.push(format!("{injection}: {now:?} in place of {end:?}, broken: {broken:?}"));
            }
        }
    }
    assert!(bad.is_empty(), "{} of {runs}:\n{}", bad.len(), bad.join("\n"));
    assert!(runs >= 70, "{runs}");
}

/// A call of the table is one that the backend makes.
#[test]
fn every_call_of_the_backend_fails_in_some_case() {
    let called = [
        "VERSION",
        "CREATE",
        "GET_PAIRS",
        "SET_PAIRS",
        "SET_USEPAIRS",
        "GET_FEATURES",
        "SET_FEATURES",
        "GET_MTU",
        "SET_MTU",
        "RING_INIT_MODERN",
        "RING_SET_STATE",
        "RING_GET_STATE",
        "RING_KICK",
        "RING_SET_MSI",
        "RING_PAUSE",
        "INTR_POLL_MQ",
        "RING_INTR_CLR",
        "SET_NOTIFY_MMIO",
        "SET_PROMISC",
        "DELETE",
        "SET_PARAMS",
        "GET_PARAMS",
        "SET_MAC_FILTERS",
        "GET_MAC_FILTERS",
        "SET_MAC_ADDR",
        "GET_MAC_ADDR",
    ];
    for call in called {
        assert!(FAILURES.iter().any(|(failure, ..)| failure.contains(&format!("IOC_{call}:"))), "{call}");
    }
}

/// A ring that the kernel does not reset would go on writing to memory that its driver has for something else.
#[test]
fn a_ring_that_cannot_be_reset_takes_the_link_with_it() {
    let host = failing(Config::default(), &["VNA_IOC_RING_RESET:1:EIO"]);
    {
        let (_hypervisor, vm) = host.vm();
        let mut card = Card::new(&vm, &*host.sys).unwrap();
        let all = card.offered() & !(1 << 24) | VERSION_1;
        card.drive(all);
        card.send(&frame(OTHER, 1));
        sent(&host.far);
        card.reset();
        assert_eq!(host.process.leaks().iter().filter(|leak| format!("{leak:?}").contains("link")).count(), 0);
        card.drive(all);
        assert!(!card.device.card().is_up());
        card.command(&[0, 0, 1]);
        card.interrupt_with(TX, Some(0x41));
        card.reset();
    }
    assert_eq!(host.broken(), ["viona-rings-reset", "viona-rings-reset"], "which is how the double knows it");
}

#[test]
fn legacy_rings_and_ports_fail_as_modern_ones_do() {
    for (injection, up) in [
        ("VNA_IOC_RING_INIT:1:ENOMEM", false),
        ("VNA_IOC_SET_NOTIFY_IOP:1:ENXIO", true),
        ("VNA_IOC_RING_INIT:2:EBUSY", false),
    ] {
        let host = failing(Config::default(), &[injection]);
        {
            let (_hypervisor, vm) = host.vm();
            let mut card = Card::new(&vm, &*host.sys).unwrap();
            card.drive(0);
            card.step();
            assert_eq!(card.device.card().is_up(), up, "{injection}");
            card.reset();
        }
        assert_eq!(host.broken(), [""; 0], "{injection}");
    }
}

thread_local! {
    static LINES: RefCell<Vec<String>> = const { RefCell::new(Vec::new()) };
}

/// Keeps what a thread logs.
struct Log;

impl log::Log for Log {
    fn enabled(&self, metadata: &log::Metadata<'_>) -> bool {
        metadata.level() <= log::Level::Warn
    }

    fn log(&self, record: &log::Record<'_>) {
        if self.enabled(record.metadata()) {
            LINES.with_borrow_mut(|lines| lines.push(record.args().to_string()));
        }
    }

    fn flush(&self) {}
}

#[test]
fn a_guest_that_makes_calls_fail_does_not_fill_the_log() {
    let _ = log::set_logger(&Log);
    log::set_max_level(log::LevelFilter::Warn);
    let injections = [
        "VNA_IOC_SET_NOTIFY_MMIO:1+:EIO",
        "VNA_IOC_SET_PROMISC:1+:EIO",
        "VNA_IOC_SET_USEPAIRS:1+:EIO",
        "VNA_IOC_RING_KICK:1+:EIO",
    ];
    let host = failing(Config::default(), &injections);
    let (_hypervisor, vm) = host.vm();
    let mut card = Card::with_pairs(&vm, &*host.sys, 2).unwrap();
    let all = card.offered() & !(1 << 24) | VERSION_1;
    LINES.take();
    for round in 0..200 {
        card.drive(all);
        card.ring_at(Some(NOTIFY + 0x1000 * (round % 2)));
        card.command(&[0, 0, (round % 2) as u8]);
        card.command(&[4, 0, 2, 0]);
        card.reset();
    }
    let lines = LINES.take();
    assert!(lines.iter().any(|line| line.ends_with("(time 128)")), "{lines:#?}");
    // The first, and each time there are twice as many: of four calls at most nine lines each.
    assert!((4..=40).contains(&lines.len()), "{} lines: {lines:#?}", lines.len());
}
