//! A disk on a file system that runs out of space while the guest writes.

use std::ffi::{CStr, CString};
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::process::{Running, Zvmm, ask, guests};

/// Where the file system is, for the program alone: in a folder of the test's, as not every machine has a place for it.
const PLACE: &str = "full";

/// Mounts a file system of eight pages at `place` with a disk of 4 MiB that takes none yet, and one page left.
fn small_file_system(place: &CStr) -> io::Result<()> {
    let none = c"none".as_ptr();
    let options = c"size=32k".as_ptr().cast();
    // SAFETY: changes only this process; all are C strings.
    unsafe {
        if libc::unshare(libc::CLONE_NEWNS) != 0 {
            check(libc::unshare(libc::CLONE_NEWUSER | libc::CLONE_NEWNS))?;
        }
        check(libc::mount(none, c"/".as_ptr(), none, libc::MS_REC | libc::MS_PRIVATE, std::ptr::null()))?;
        check(libc::mount(none, place.as_ptr(), c"tmpfs".as_ptr(), 0, options))?;
        let flags = libc::O_CREAT | libc::O_RDWR | libc::O_CLOEXEC;
        let place = check(libc::open(place.as_ptr(), libc::O_PATH | libc::O_CLOEXEC))?;
        let image = check(libc::openat(place, c"disk.img".as_ptr(), flags, 0o600))?;
        check(libc::ftruncate(image, 4 << 20))?;
        let filler = check(libc::openat(place, c"filler".as_ptr(), flags, 0o600))?;
        let pages = [1_u8; 7 * 4096];
        if libc::write(filler, pages.as_ptr().cast(), pages.len()) != pages.len() as isize {
            return Err(io::Error::last_os_error());
        }
        libc::close(image);
        libc::close(filler);
        libc::close(place);
    }
    Ok(())
}

fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// A guest with the disk in `folder`, where the control socket is, too.
fn start(guests: &Path, options: &str, folder: &Path) -> Running {
    let place = folder.join(PLACE);
    std::fs::create_dir_all(&place).expect("a folder");
    let mounted = CString::new(place.as_os_str().as_bytes()).expect("a path");
    let (image, socket) = (place.join("disk.img").display().to_string(), folder.join("qmp").display().to_string());
    Zvmm::new(guests, "virtio")
        .cmdline("pci=ecam expect=blk")
        .args(["--profile", "micro", "--disk", &format!("{image}{options}"), "--qmp", &socket])
        .after(move || small_file_system(&mounted))
        .start()
}

#[test]
fn a_full_disk_holds_the_guest_until_there_is_space_and_it_is_resumed() {
    let Some(guests) = guests() else { return };
    for engine in ["threads", "io_uring"] {
        for werror in ["enospc", "stop"] {
            let folder = tempfile::tempdir().expect("a temporary folder");
            let socket = folder.path().join("qmp");
            let running = start(&guests, &format!(",werror={werror},engine={engine}"), folder.path());
            let end = Instant::now() + Duration::from_secs(60);
            while !socket.exists() || ask(&socket, "query-status")["status"] != "io-error" {
                assert!(Instant::now() < end, "the guest is not held");
                std::thread::sleep(Duration::from_millis(5));
            }
            // Nothing has changed, so it is held again.
            ask(&socket, "cont");
            while ask(&socket, "query-status")["status"] != "io-error" {
                assert!(Instant::now() < end, "the guest is not held again");
                std::thread::sleep(Duration::from_millis(5));
            }
            // As the process sees it: nobody else does.
            let filler = format!("/proc/{}/root{}/{PLACE}/filler", running.id(), folder.path().display());
            std::fs::remove_file(filler).expect("a file to remove");
            ask(&socket, "cont");
            let outcome = running.finish();
            outcome.passed_with_warnings(&["blk data", "blk range", "blk"]);
            let line = "disk0: a write failed: No space left on device; the guest is held until it is resumed";
            assert!(outcome.errors().contains(line), "{outcome:?}");
        }
    }
}

#[test]
fn a_full_disk_is_the_guests_io_error_by_default() {
    let Some(guests) = guests() else { return };
    let folder = tempfile::tempdir().expect("a temporary folder");
    let outcome = start(&guests, "", folder.path()).finish();
    assert!(outcome.output().contains("FAIL") && outcome.output().contains("IoError"), "{outcome:?}");
    let line = "disk0: a write failed: No space left on device; the guest gets an I/O error";
    assert!(outcome.errors().contains(line), "{outcome:?}");
}
