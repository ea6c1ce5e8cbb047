//! Images that fail while a guest uses them: it gets I/O errors, and the process goes on.

use std::io;

use crate::process::{Zvmm, guests};
use crate::{ENGINES, disk, path};

/// Bytes that a file may have in the process.
const FILE_BYTES: libc::rlim_t = 16 << 10;

/// The end of the file system's space, as far as a process can see it: beyond this no file grows.
fn limit_files() -> io::Result<()> {
    let limit = libc::rlimit { rlim_cur: FILE_BYTES, rlim_max: FILE_BYTES };
    // SAFETY: the structure lives through the call; the signal is put to what a process has that nobody prepared.
    unsafe {
        libc::signal(libc::SIGXFSZ, libc::SIG_DFL);
        match libc::setrlimit(libc::RLIMIT_FSIZE, &limit) {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }
}

#[test]
fn an_image_that_may_not_grow_is_an_error_of_the_guests_write_and_not_the_end_of_the_process() {
    let Some(guests) = guests() else { return };
    for (engine, cache) in ENGINES.iter().flat_map(|engine| ["buffered", "direct"].map(|cache| (engine, cache))) {
        let image = disk(4);
        let outcome = Zvmm::new(&guests, "virtio")
            .cmdline("pci=ecam expect=blk")
            .args(["--profile", "micro", "--disk", &format!("{},engine={engine},cache={cache}", path(&image))])
            .after(limit_files)
            .run();
        if cache == "direct" && outcome.errors().contains("cache=direct is not possible") {
            println!("SKIP: {} has no direct I/O", path(&image));
            continue;
        }
        // Its first writes are inside the limit.
        assert!(outcome.output().contains("write: IoError"), "{outcome:?}");
        outcome.ended_by_itself();
    }
}

#[test]
fn a_killed_process_leaves_its_disk_to_the_next_one_at_once() {
    let Some(guests) = guests() else { return };
    let image = disk(4);
    for engine in ENGINES {
        for _ in 0..5 {
            let running = Zvmm::new(&guests, "virtio")
                .cmdline("pci=ecam expect=blk")
                .args(["--profile", "micro", "--disk", &format!("{},engine={engine}", path(&image))])
                .start();
            running.wait_for("PASS blk data");
            let outcome = running.kill();
            assert!(!outcome.errors().contains("in use"), "{outcome:?}");
        }
    }
}
