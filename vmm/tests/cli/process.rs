//! One run of the program on words that it refuses, in a process that could not have guest memory if it wanted to.

use std::fs;
use std::io;
use std::os::unix::fs::symlink;
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use tempfile::TempDir;

use crate::images::good_elf;

/// Less than the 512 MiB a guest gets by default, and much more than the program needs: where a run would come as far as
/// guest memory, it could not say what a test expects. `life::memory_that_the_host_refuses` is the other side of it.
pub const ADDRESS_SPACE: u64 = 384 << 20;

/// What a run left behind.
#[derive(Debug)]
pub struct Outcome {
    pub status: Option<i32>,
    pub output: String,
    pub errors: String,
}

/// Runs the program in an address space too small for a guest.
pub fn zvmm(args: &[&str]) -> Outcome {
    zvmm_after(limit_memory, args)
}

/// Runs the program in a process that was prepared between fork and exec: system calls only.
pub fn zvmm_after(prepare: fn() -> io::Result<()>, args: &[&str]) -> Outcome {
    let mut command = Command::new(env!("CARGO_BIN_EXE_zvmm"));
    // SAFETY: what tests pass makes system calls only, as it must between fork and exec.
    unsafe { command.pre_exec(prepare) };
    outcome(command.args(args))
}

/// Runs the program under another name.
pub fn called(place: &Place, name: &str, args: &[&str]) -> Outcome {
    let program = place.path(name);
    symlink(env!("CARGO_BIN_EXE_zvmm"), &program).expect("a link");
    outcome(Command::new(program).args(args))
}

fn outcome(command: &mut Command) -> Outcome {
    let run = command.stdin(Stdio::null()).output().expect("the binary runs");
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
    Outcome { status: run.status.code(), output: text(run.stdout), errors: text(run.stderr) }
}

fn limit_memory() -> io::Result<()> {
    let limit = libc::rlimit { rlim_cur: ADDRESS_SPACE, rlim_max: ADDRESS_SPACE };
    // SAFETY: the structure lives through the call.
    check(unsafe { libc::setrlimit(libc::RLIMIT_AS, &limit) })
}

/// As root: no longer above file permissions.
pub fn obey_permissions() -> io::Result<()> {
    // Linux capabilities(7).
    const CAP_DAC_OVERRIDE: libc::c_ulong = 1;
    const CAP_DAC_READ_SEARCH: libc::c_ulong = 2;
    for capability in [CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH] {
        // Who may not drop them has none.
        // SAFETY: takes numbers.
        let _ = unsafe { libc::prctl(libc::PR_CAPBSET_DROP, capability, 0, 0, 0) };
    }
    limit_memory()
}

/// Mounts that nobody else sees.
pub fn own_mounts() -> io::Result<()> {
    // SAFETY: changes only this process.
    if unsafe { libc::unshare(libc::CLONE_NEWNS) } != 0 {
        // Not root: in a user namespace of its own, this process may mount.
        // SAFETY: as above.
        check(unsafe { libc::unshare(libc::CLONE_NEWUSER | libc::CLONE_NEWNS) })?;
    }
    mount(c"none", c"/", libc::MS_REC | libc::MS_PRIVATE)
}

fn mount(what: &std::ffi::CStr, at: &std::ffi::CStr, flags: libc::c_ulong) -> io::Result<()> {
    // SAFETY: all are C strings.
    check(unsafe { libc::mount(what.as_ptr(), at.as_ptr(), what.as_ptr(), flags, std::ptr::null()) })
}

/// A file system of its own in which `/dev` is empty.
pub fn empty_dev() -> io::Result<()> {
    own_mounts()?;
    mount(c"tmpfs", c"/dev", 0)?;
    limit_memory()
}

/// As [`empty_dev`], with a `/dev/kvm` that nobody may open.
pub fn forbidden_kvm() -> io::Result<()> {
    empty_dev()?;
    // SAFETY: the path is a C string.
    check(unsafe { libc::open(c"/dev/kvm".as_ptr(), libc::O_CREAT | libc::O_RDONLY | libc::O_CLOEXEC, 0) })?;
    obey_permissions()
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// The run is refused as a configuration error, with this one line.
#[track_caller]
pub fn refused(args: &[&str], line: &str) {
    refused_with(2, args, line);
}

/// The run is refused with this status, and this one line.
#[track_caller]
pub fn refused_with(status: i32, args: &[&str], line: &str) {
    let outcome = zvmm(args);
    assert_eq!(outcome.errors, format!("zvmm: {line}\n"), "{args:?}");
    assert_eq!((outcome.status, outcome.output.as_str()), (Some(status), ""), "{args:?}");
}

/// A directory with what a good configuration names.
pub struct Place(pub TempDir);

impl Place {
    pub fn new() -> Self {
        let place = Self(TempDir::new().expect("a directory"));
        fs::write(place.path("vmlinuz"), good_elf()).expect("a file");
        for (name, bytes) in [("initrd.img", 4096), ("root.img", 1 << 20)] {
            fs::write(place.path(name), vec![0; bytes]).expect("a file");
        }
        place
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    pub fn text(&self, name: &str) -> String {
        self.path(name).display().to_string()
    }

    /// `@name` stands for a path in this place.
    pub fn fill(&self, text: &str) -> String {
        text.replace('@', &format!("{}/", self.0.path().display()))
    }

    /// `run` with a kernel and more options, filled.
    pub fn options(&self, more: &[&str]) -> Vec<String> {
        let options = ["run", "--kernel", "@vmlinuz"].iter().chain(more);
        options.map(|option| self.fill(option)).collect()
    }

    #[track_caller]
    pub fn refuses(&self, more: &[&str], line: &str) {
        let options = self.options(more);
        let options: Vec<&str> = options.iter().map(String::as_str).collect();
        refused(&options, &self.fill(line));
    }
}
