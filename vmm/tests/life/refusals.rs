//! What only the hypervisor, the network or the memory of the host can refuse: one line, a status, and no guest.

use std::io;
use std::process::Output;

use crate::process::{self, Zvmm, refuse};
use crate::qmp::Qmp;

fn check(result: libc::c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

fn limit(what: libc::__rlimit_resource_t, to: u64) -> io::Result<()> {
    let limit = libc::rlimit { rlim_cur: to, rlim_max: to };
    // SAFETY: the structure lives through the call.
    check(unsafe { libc::setrlimit(what, &limit) })
}

/// Room for the program and not for a guest of 512 MiB.
fn little_memory() -> io::Result<()> {
    limit(libc::RLIMIT_AS, 384 << 20)
}

fn no_locked_memory() -> io::Result<()> {
    // Linux capabilities(7); who may not drop it does not have it.
    const CAP_IPC_LOCK: libc::c_ulong = 14;
    // SAFETY: takes numbers.
    let _ = unsafe { libc::prctl(libc::PR_CAPBSET_DROP, CAP_IPC_LOCK, 0, 0, 0) };
    limit(libc::RLIMIT_MEMLOCK, 0)
}

#[track_caller]
fn is(outcome: &Output, status: i32, words: &str) {
    let line = String::from_utf8_lossy(&outcome.stderr);
    let is_one_line = line.starts_with("zvmm: ") && line.trim_end().lines().count() == 1;
    assert!(is_one_line && line.contains(words), "{words}: {outcome:?}");
    assert_eq!((outcome.status.code(), outcome.stdout.len()), (Some(status), 0), "{outcome:?}");
}

#[test]
fn what_the_configuration_asks_for_in_vain_is_refused_before_there_is_guest_memory() {
    if process::skip() {
        return;
    }
    let long = "a".repeat(5000);
    for (args, words) in [
        (&["--cpu", "host,+vmx,-vmx"][..], "both added and taken away"),
        (&["--cmdline", &long], "the kernel command line has 5000 bytes"),
        (&["--kernel", "/dev/null"], "/dev/null is a character device, not a file"),
        (&["--net", "tap=none0,mac=52:54:00:12:34:56"], "net0: TAP device none0 does not exist: create it with"),
        (&["--net", "tap=lo,mac=52:54:00:12:34:56"], "net0: lo is not a TAP device"),
    ] {
        is(&refuse(little_memory, &[&["--memory", "512M"], args].concat()), 2, words);
    }
    // Where none of that is wrong, the same limit is what is wrong.
    is(&refuse(little_memory, &["--memory", "512M"]), 4, "memory: cannot map 512 MiB of guest memory: ");
    is(&refuse(|| Ok(()), &["--memory", "1M"]), 2, "the kernel needs memory up to");
}

#[test]
fn memory_that_the_host_cannot_give_is_named_with_what_to_do() {
    if process::skip() {
        return;
    }
    is(&refuse(no_locked_memory, &["--mlock"]), 4, "raise the limit of locked memory (ulimit -l)");
    // All of the host's memory is never free as huge pages.
    let info = std::fs::read_to_string("/proc/meminfo").expect("the host's memory");
    let kib: u64 = info.split_whitespace().nth(1).and_then(|size| size.parse().ok()).expect("a size");
    let all = format!("{}M", (kib >> 10) & !1);
    is(&refuse(|| Ok(()), &["--memory", &all, "--hugepages", "2M"]), 4, "nr_hugepages");
}

#[test]
fn a_disk_that_another_guest_has_is_refused_unless_neither_writes() {
    if process::skip() {
        return;
    }
    let image = tempfile::NamedTempFile::new().expect("a file");
    image.as_file().set_len(1 << 20).expect("a size");
    let path = image.path().display().to_string();
    let mut zvmm = Zvmm::start(&["--disk", &path, "--qmp", "@qmp"]);
    let mut qmp = Qmp::connect(&zvmm);
    is(&refuse(little_memory, &["--disk", &path]), 2, "is in use by another process or mounted");
    is(&refuse(little_memory, &["--disk", &format!("{path},ro")]), 2, "is in use by another process or mounted");
    qmp.ask("quit");
    assert_eq!(zvmm.status(), Some(0));

    let reader = format!("{path},ro");
    let mut zvmm = Zvmm::start(&["--disk", &reader, "--qmp", "@qmp"]);
    let mut qmp = Qmp::connect(&zvmm);
    is(&refuse(little_memory, &["--disk", &path]), 2, "is in use by another process or mounted");
    is(&refuse(little_memory, &["--disk", &reader, "--memory", "512M"]), 4, "cannot map 512 MiB");
    qmp.ask("quit");
    assert_eq!(zvmm.status(), Some(0));
}
