//! Reboots without end: the process stays as it is, and a stop wins.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::Duration;

use crate::process::{Running, Zvmm, ask, guests};
use crate::{PROFILES, disk, path};

/// What a process has, guest memory aside.
#[derive(Debug)]
struct Belongings {
    /// Descriptors, by what they stand for.
    files: BTreeSet<String>,
    file_count: usize,
    threads: BTreeSet<String>,
    /// Written memory in KiB, by mapping.
    written_kib: BTreeMap<String, u64>,
}

impl Belongings {
    fn of(process: u32) -> Self {
        let names = |folder: &str| -> Vec<String> {
            let entries = std::fs::read_dir(format!("/proc/{process}/{folder}")).expect("a process");
            entries.map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned()).collect()
        };
        let fds = names("fd");
        let link = |fd: &String| std::fs::read_link(format!("/proc/{process}/fd/{fd}")).ok();
        Self {
            files: fds.iter().filter_map(link).map(|link| link.display().to_string()).collect(),
            file_count: fds.len(),
            threads: names("task").into_iter().collect(),
            written_kib: written_kib(&std::fs::read_to_string(format!("/proc/{process}/smaps")).expect("a process")),
        }
    }

    /// Nothing has come to stay since `early`.
    fn are_those_of(&self, early: &Self, profile: &str) {
        const INTERRUPTS: usize = 8;
        let Self { files, file_count, threads, written_kib } = self;
        assert_eq!((files, threads), (&early.files, &early.threads), "{profile}");
        // Where the guest was stopped in its boot decides how many of its interrupts have descriptors yet.
        assert!(*file_count <= early.file_count + INTERRUPTS, "{profile}: {file_count}, {} before", early.file_count);
        let sum = |kib: &BTreeMap<String, u64>| kib.values().sum::<u64>();
        let grown: Vec<_> = written_kib.iter().filter(|(at, kib)| early.written_kib.get(*at) != Some(kib)).collect();
        assert!(sum(written_kib) <= sum(&early.written_kib) + 128, "{profile}: {grown:?} of {:?}", early.written_kib);
    }
}

/// Written memory by `smaps` (proc_pid_smaps(5)), without the mappings as large as guest memory. Pages of a file that is not
/// on its disk yet are dirty, too, and no process has written them: those of a program that was built just now.
fn written_kib(smaps: &str) -> BTreeMap<String, u64> {
    let (mut written_kib, mut mapping, mut size_kib) = (BTreeMap::new(), "", 0);
    for line in smaps.lines() {
        let mut words = line.split_whitespace();
        match (words.next(), words.next().map(str::parse::<u64>)) {
            (Some("Size:"), Some(Ok(kib))) => size_kib = kib,
            (Some("Anonymous:"), Some(Ok(kib))) if size_kib < 64 << 10 && kib > 0 => {
                written_kib.insert(mapping.to_owned(), kib);
            }
            (Some(range), _) if !range.ends_with(':') => mapping = line,
            _ => {}
        }
    }
    written_kib
}

/// Holds the guest after a boot and looks at the process.
fn belongings_after(boot: u32, running: &Running, socket: &Path) -> Belongings {
    running.wait_for(&format!("BOOT {boot}"));
    ask(socket, "stop");
    // The client that has just gone, and a reset in progress, have their end.
    std::thread::sleep(Duration::from_millis(100));
    let belongings = Belongings::of(running.id());
    ask(socket, "cont");
    belongings
}

#[test]
fn a_hundred_reboots_leave_the_process_as_good_as_new() {
    let Some(guests) = &guests() else { return };
    std::thread::scope(|scope| {
        for profile in PROFILES {
            scope.spawn(move || {
                let folder = tempfile::tempdir().expect("a temporary folder");
                let (socket, image) = (folder.path().join("qmp"), disk(1));
                // Counted on a disk, so that each boot also starts the device anew.
                let running = Zvmm::new(guests, "reset_poweroff")
                    .cmdline("mode=cf9 boots=101 count=disk")
                    .args(["--profile", profile, "--rng", "--disk", &path(&image)])
                    .args(["--qmp", &socket.display().to_string()])
                    .start();
                let [early, late] = [10, 100].map(|boot| belongings_after(boot, &running, &socket));
                let outcome = running.finish();
                for boot in 1..=101 {
                    outcome.says(&format!("BOOT {boot}"));
                }
                outcome.passed(&["reset_poweroff cf9"]);
                late.are_those_of(&early, profile);
            });
        }
    });
}

#[test]
fn a_hundred_reboots_each_way_end_in_a_power_off() {
    let Some(guests) = &guests() else { return };
    for profile in ["i440fx", "bhyve"] {
        for mode in ["cf9", "acpi", "kbd", "triple"] {
            let outcome = Zvmm::new(guests, "reset_poweroff")
                .cmdline(&format!("mode={mode} boots=101 count=cmos"))
                .args(["--profile", profile])
                .run();
            outcome.says("BOOT 101");
            outcome.passed_with_warnings(&[&format!("reset_poweroff {mode}")]);
        }
    }
}

#[test]
fn a_stop_wins_over_a_reboot_in_progress() {
    let Some(guests) = guests() else { return };
    let folder = tempfile::tempdir().expect("a temporary folder");
    let modes = ["cf9", "acpi", "kbd", "triple"];
    for run in 0..100_u64 {
        let socket = folder.path().join(format!("qmp{run}"));
        let mode = modes[run as usize % modes.len()];
        let running = Zvmm::new(&guests, "reset_poweroff")
            .cmdline(&format!("mode={mode} boots=250 count=cmos"))
            .args(["--profile", ["i440fx", "bhyve"][run as usize / 4 % 2], "--qmp", &socket.display().to_string()])
            .start();
        running.wait_for(&format!("BOOT {}", 1 + run % 7));
        // Every moment of a reboot, which lasts some milliseconds.
        std::thread::sleep(Duration::from_micros(run * 137 % 7_000));
        running.signal(libc::SIGTERM);
        let status = match run % 3 {
            0 => {
                ask(&socket, "quit");
                0
            }
            1 => {
                running.signal(libc::SIGINT);
                running.signal(libc::SIGTERM);
                running.signal(libc::SIGINT);
                130
            }
            _ => {
                running.signal(libc::SIGQUIT);
                130
            }
        };
        let outcome = running.finish();
        outcome.ended_with(status);
        assert!(!outcome.output().contains("BOOT 250"), "the guest ended by itself: {outcome:?}");
        assert!(!outcome.output().contains("FAIL"), "{outcome:?}");
    }
}
