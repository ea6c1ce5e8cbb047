//! The whole process on a double of illumos, with a volume as its guest's disk.

#![cfg(target_os = "linux")]

mod process;

use std::os::unix::fs::FileExt;

use process::{Outcome, Run, disk, guests, path};

/// A driver that negotiates to flush writes sectors from 8 on, flushes and reads them back.
fn run(hypervisor: &str, guests: &std::path::Path, image: &str, volume: &str, own: &[(&str, &str)]) -> Outcome {
    let run = own.iter().fold(Run::new(hypervisor, guests, "virtio"), |run, (name, value)| run.own(name, value));
    run.own("--volume", volume).args(["--disk", image, "--cmdline", "pci=ecam expect=blk"]).run()
}

/// Whether the sector is as the guest wrote it.
fn is_written(image: &tempfile::NamedTempFile, sector: u64) -> bool {
    let mut block = [0; 512];
    image.as_file().read_exact_at(&mut block, sector * 512).unwrap();
    (0..512).all(|at| block[at] == at as u8 ^ (at >> 8) as u8 ^ (sector as u8).wrapping_mul(29))
}

#[test]
fn a_guest_on_a_volume_keeps_what_it_flushed_and_leaves_the_cache_as_it_was() {
    let Some(guests) = guests() else { return };
    for hypervisor in ["bhyve", "illumos-kvm"] {
        for options in ["", ",cached"] {
            let (image, calls) = (disk(1), tempfile::NamedTempFile::new().unwrap());
            let volume = format!("{}{options}", path(&image));
            let outcome = run(hypervisor, &guests, &path(&image), &volume, &[("--calls", &path(&calls))]);
            outcome.passed(&["blk data", "blk range", "blk"]);
            assert!(is_written(&image, 8), "{outcome:?}");
            let calls = std::fs::read_to_string(calls.path()).unwrap();
            for call in ["DKIOCGMEDIAINFOEXT", "DKIOCSETWCE", "DKIOCFLUSHWRITECACHE", "pread", "pwrite"] {
                assert!(calls.lines().any(|line| line.starts_with(&format!("{call} "))), "no {call} in {calls}");
            }
        }
    }
}

#[test]
fn a_flush_that_is_not_made_is_missed() {
    let Some(guests) = guests() else { return };
    let image = disk(1);
    let dropped = ("--mutate", "drop:DKIOCFLUSHWRITECACHE:1+");
    // The last word to the cache, which turns it off, commits what is in it.
    let left_on = ("--mutate", "drop:DKIOCSETWCE:3+");
    let outcome = run("bhyve", &guests, &path(&image), &path(&image), &[dropped, left_on]);
    assert!(!is_written(&image, 8), "{outcome:?}");
    assert!(outcome.broke("zvol-cache-back"), "{outcome:?}");
}

#[test]
fn a_volume_that_fails_is_an_error_for_the_guest_and_one_in_use_is_refused() {
    let Some(guests) = guests() else { return };
    let image = disk(1);
    let outcome = run("bhyve", &guests, &path(&image), &path(&image), &[("--inject", "pwrite:1+:EIO")]);
    assert!(outcome.output.contains("PANIC") || outcome.output.contains("FAIL"), "{outcome:?}");
    for (errno, why) in [("EBUSY", "is in use by another process or mounted"), ("EROFS", "is read-only; with ro")] {
        // The first is the hypervisor's own node.
        let failures: Vec<_> = (1..6).map(|nth| format!("open:{nth}:{errno}")).collect();
        let refused = failures.iter().any(|failure| {
            run("bhyve", &guests, &path(&image), &path(&image), &[("--inject", failure)]).errors.contains(why)
        });
        assert!(refused, "{errno}");
    }
}

#[test]
fn a_volume_cannot_be_used_through_a_page_cache() {
    let Some(guests) = guests() else { return };
    let image = disk(1);
    let buffered = format!("{},cache=buffered", path(&image));
    let outcome = run("bhyve", &guests, &buffered, &path(&image), &[]);
    let line = "cache=buffered is not possible: it is a volume's raw device, in front of no page cache; leave it out";
    assert!(outcome.errors.contains(line), "{outcome:?}");
}
