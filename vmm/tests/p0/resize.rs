//! Disks that get another size while their guest uses them.

use std::io::{Read as _, Seek as _, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};

use serde_json::{Value, json};
use tempfile::{NamedTempFile, TempDir};

use crate::process::{Running, Zvmm, ask, guests, order, try_order};
use crate::{ENGINES, PROFILES, disk, path};

/// A guest on a disk of 1 MiB, and its control socket.
struct Guest {
    image: NamedTempFile,
    folder: TempDir,
    running: Running,
}

impl Guest {
    fn start(guests: &Path, cmdline: &str, profile: &str, options: &str) -> Self {
        let (image, folder) = (disk(1), tempfile::tempdir().expect("a temporary folder"));
        let socket = folder.path().join("qmp");
        let running = Zvmm::new(guests, "resize")
            .cmdline(cmdline)
            .args(["--profile", profile, "--disk", &format!("{}{options}", path(&image))])
            .args(["--qmp", &socket.display().to_string()])
            .start();
        let guest = Self { image, folder, running };
        guest.running.wait_for("SIZE 2048");
        guest
    }

    fn socket(&self) -> PathBuf {
        self.folder.path().join("qmp")
    }

    fn resize(&self, bytes: u64) {
        assert_eq!(order(&self.socket(), "block_resize", size(bytes)), json!({"return": {}}), "{bytes}");
    }

    fn image_bytes(&self) -> u64 {
        self.image.as_file().metadata().expect("an image").len()
    }
}

fn size(bytes: u64) -> Value {
    json!({"device": "disk0", "size": bytes})
}

#[test]
fn a_guest_is_told_of_the_new_size_of_its_disk_and_uses_it_to_the_last_sector() {
    let Some(guests) = guests() else { return };
    for (profile, engine) in PROFILES.iter().zip(ENGINES.iter().cycle()) {
        let mut guest = Guest::start(&guests, "", profile, &format!(",engine={engine}"));
        guest.resize(4 << 20);
        guest.running.wait_for("SIZE 8192");
        // Somebody else has changed the file: what follows the last sector is left alone.
        guest.image.as_file().set_len((2 << 20) + 100).expect("a file");
        assert_eq!(order(&guest.socket(), "block_resize", json!({"device": "disk0"})), json!({"return": {}}));
        guest.running.wait_for("SIZE 4096");
        assert_eq!(guest.image_bytes(), (2 << 20) + 100);
        guest.resize(3072 * 512);
        guest.running.wait_for("SIZE 3072");
        let mut last = [0; 8];
        let file = guest.image.as_file_mut();
        file.seek(SeekFrom::Start(3071 * 512)).expect("a seekable image");
        file.read_exact(&mut last).expect("a whole image");
        assert_eq!(u64::from_le_bytes(last), 3072, "{profile}: what the guest wrote is in the file");
        guest.resize(8 * 512);
        let outcome = guest.running.finish();
        let warning = "disk0: its last 100 bytes are no block of 512 and left out";
        assert!(outcome.errors().lines().count() == 1 && outcome.errors().contains(warning), "{outcome:?}");
        outcome.passed_with_warnings(&["resize 4"]);
        assert_eq!(guest.image.as_file().metadata().expect("an image").len(), 8 * 512);
    }
}

#[test]
fn a_paused_guest_hears_of_the_new_size_when_it_goes_on() {
    let Some(guests) = guests() else { return };
    let guest = Guest::start(&guests, "", "micro", "");
    ask(&guest.socket(), "stop");
    guest.resize(4 << 20);
    guest.resize(8 * 512);
    assert_eq!(guest.image_bytes(), 8 * 512);
    ask(&guest.socket(), "cont");
    let outcome = guest.running.finish();
    outcome.passed(&[]);
    assert!(outcome.output().contains("PASS resize") && !outcome.output().contains("SIZE 8192"), "{outcome:?}");
}

#[test]
fn a_disk_that_shrinks_and_grows_under_load_loses_nothing_that_is_left() {
    let Some(guests) = guests() else { return };
    for (engine, queue) in ENGINES.into_iter().zip(["", ",packed"]) {
        let guest = Guest::start(&guests, "load=1", "micro", &format!(",engine={engine}{queue}"));
        let mut seed = 1_u64;
        for _ in 0..100 {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let sectors = 9 + (seed >> 33) % 4088;
            guest.resize(sectors * 512);
            assert_eq!(guest.image_bytes(), sectors * 512, "no request has made the file longer again");
        }
        guest.resize(8 * 512);
        let image = guest.image;
        guest.running.finish().passed(&["resize load"]);
        assert_eq!(image.as_file().metadata().expect("an image").len(), 8 * 512);
    }
}

#[test]
fn resets_pauses_and_the_end_of_the_guest_come_between_a_new_size_and_its_answer() {
    let Some(guests) = guests() else { return };
    for profile in PROFILES {
        let guest = Guest::start(&guests, "load=1", profile, "");
        let socket = guest.socket();
        // Some orders are carried out before the end comes, which finds each client with one under way.
        let (resized, over) = (AtomicUsize::new(0), AtomicBool::new(false));
        let resizes = &|from: u64| {
            let mut answers = Vec::new();
            for bytes in (from..).map(|step| 4096 * (2 + step * 7 % 500)) {
                match try_order(&socket, "block_resize", size(bytes)) {
                    Some(answer) => {
                        resized.fetch_add(usize::from(answer["return"].is_object()), Relaxed);
                        answers.push(answer);
                    }
                    None if over.load(Relaxed) => break,
                    None => {}
                }
            }
            answers
        };
        let answers = std::thread::scope(|scope| {
            let both = [0, 1000].map(|from| scope.spawn(move || resizes(from)));
            let mut step = 0;
            while step < 12 || resized.load(Relaxed) < 10 {
                ask(&socket, ["system_reset", "stop", "cont"][step % 3]);
                step += 1;
                assert!(step < 10_000, "{} new sizes", resized.load(Relaxed));
            }
            ask(&socket, "cont");
            over.store(true, Relaxed);
            ask(&socket, "quit");
            both.map(|thread| thread.join().expect("a thread"))
        });
        let known = ["disk0: another change of its size is not over yet", "the guest has ended"];
        for answer in answers.iter().flatten() {
            let desc = answer["error"]["desc"].as_str();
            assert!(answer["return"].is_object() || desc.is_some_and(|desc| known.contains(&desc)), "{answer}");
        }
        let outcome = guest.running.finish();
        outcome.ended_with(0);
        assert_eq!(outcome.errors(), "");
        assert!(!outcome.output().contains("FAIL"), "{outcome:?}");
    }
}
