//! What a disk that loses acknowledged writes looks like from outside: the kernel's fdatasync(2) and fsync(2) taken away
//! from a program, which is told that they succeeded, and IORING_OP_FSYNC with them ([`rings`]). The program itself is the
//! one that ships.

use std::fs::File;
use std::io;
use std::os::fd::{FromRawFd as _, OwnedFd};
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::process::{Command, ExitStatus};
use std::sync::mpsc::channel;

use anyhow::Context as _;

use crate::rings;

/// Offset of the system call's number in `seccomp_data` (linux/seccomp.h).
const NUMBER: u32 = 0;

/// Runs `program`, and ends as it does.
pub fn run(program: &str, arguments: &[&str]) -> anyhow::Result<()> {
    let status = run_without_syncs(Command::new(program).args(arguments))?;
    // As a shell says it.
    std::process::exit(status.code().unwrap_or(128 + status.signal().unwrap_or(0)));
}

/// Runs `command`, from this thread, which has no syncs either from here on.
fn run_without_syncs(command: &mut Command) -> anyhow::Result<ExitStatus> {
    let (tell, told) = channel::<(File, u32)>();
    // A thread of its own, as this one's calls are watched.
    let watcher = std::thread::spawn(move || match told.recv() {
        // Its calls fail from here on where this does.
        Ok((listener, process)) => {
            rings::watch(&listener, process).inspect_err(|error| eprintln!("lab-peer: {error:#}"))
        }
        // It was not started.
        Err(_) => Ok(()),
    });
    let listener = take_syncs_away()?;
    // SAFETY: prctl takes numbers only, and may be called between fork and exec.
    unsafe {
        command.pre_exec(|| match libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        });
    }
    let mut child = command.spawn().context("cannot run the program")?;
    tell.send((listener, child.id())).context("nobody watches the program's rings")?;
    let status = child.wait()?;
    if watcher.is_finished() {
        watcher.join().map_err(|_| anyhow::anyhow!("who watches the program's rings panicked"))??;
    }
    Ok(status)
}

/// Installs a filter for this thread and what it starts: both calls return 0 at once, and who has what is returned hears
/// of each io_uring_enter(2) before it is made; all others are as they were.
fn take_syncs_away() -> anyhow::Result<File> {
    let calls = [libc::SYS_fdatasync, libc::SYS_fsync, libc::SYS_io_uring_enter];
    let op = |code: u32| u16::try_from(code).unwrap_or_default();
    let statement = |code, k| libc::sock_filter { code: op(code), jt: 0, jf: 0, k };
    let equal = |number: libc::c_long, jt| libc::sock_filter {
        code: op(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K),
        jt,
        jf: 0,
        k: number as u32,
    };
    let mut filter = [
        statement(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, NUMBER),
        equal(calls[0], 3),
        equal(calls[1], 2),
        equal(calls[2], 2),
        statement(libc::BPF_RET | libc::BPF_K, libc::SECCOMP_RET_ALLOW),
        // An errno of 0: the call is not made, and succeeds.
        statement(libc::BPF_RET | libc::BPF_K, libc::SECCOMP_RET_ERRNO),
        statement(libc::BPF_RET | libc::BPF_K, libc::SECCOMP_RET_USER_NOTIF),
    ];
    let program = libc::sock_fprog { len: filter.len() as libc::c_ushort, filter: filter.as_mut_ptr() };
    // SAFETY: takes numbers only.
    let no_new = unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) };
    anyhow::ensure!(no_new == 0, io::Error::last_os_error());
    let (mode, flags) = (libc::SECCOMP_SET_MODE_FILTER, libc::SECCOMP_FILTER_FLAG_NEW_LISTENER);
    // SAFETY: the program and its filter are valid during the call, which copies them.
    let listener = unsafe { libc::syscall(libc::SYS_seccomp, mode, flags, &program) };
    anyhow::ensure!(listener >= 0, io::Error::last_os_error());
    // SAFETY: the call has just made the descriptor, for nobody else.
    Ok(File::from(unsafe { OwnedFd::from_raw_fd(listener as libc::c_int) }))
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use std::os::fd::AsRawFd as _;

    use super::*;

    const INSIDE: &str = "LAB_PEER_NO_SYNC";

    /// Runs the test that asks, anew, in a process without syncs; `None` inside of that one.
    fn inside() -> Option<ExitStatus> {
        if std::env::var_os(INSIDE).is_some() {
            return None;
        }
        let test = std::thread::current().name().unwrap().to_owned();
        let mut command = Command::new(std::env::current_exe().unwrap());
        Some(run_without_syncs(command.args(["--exact", &test, "--nocapture"]).env(INSIDE, "1")).unwrap())
    }

    #[test]
    fn a_program_without_syncs_is_told_that_they_succeed_on_what_cannot_be_synced() {
        // A pipe cannot be synced: EINVAL, unless nobody asks the kernel.
        let mut ends = [0; 2];
        // SAFETY: two descriptors are written.
        assert_eq!(unsafe { libc::pipe(ends.as_mut_ptr()) }, 0);
        // SAFETY: takes numbers only.
        let syncs = || unsafe { [libc::fdatasync(ends[1]), libc::fsync(ends[1])] };
        if std::env::var_os(INSIDE).is_none() {
            assert_eq!(syncs(), [-1; 2]);
        }
        match inside() {
            Some(status) => assert!(status.success(), "{status}"),
            None => assert_eq!(syncs(), [0; 2]),
        }
    }

    #[test]
    fn so_is_one_that_asks_a_ring() {
        // The kernel syncs no such device.
        let zeroes = File::options().read(true).write(true).open("/dev/zero").unwrap();
        let mut ring = match io_uring::IoUring::new(4) {
            Ok(ring) => ring,
            Err(error) => return println!("SKIP: no io_uring here: {error}"),
        };
        let mut syncs = || {
            let to = io_uring::types::Fd(zeroes.as_raw_fd());
            let sync = io_uring::opcode::Fsync::new(to).flags(io_uring::types::FsyncFlags::DATASYNC).build();
            let write = io_uring::opcode::Write::new(to, b"x".as_ptr(), 1).build();
            for (number, entry) in [sync, write].into_iter().enumerate() {
                // SAFETY: the descriptor is open and the byte static.
                unsafe { ring.submission().push(&entry.user_data(number as u64)) }.unwrap();
            }
            ring.submit_and_wait(2).unwrap();
            let mut found: Vec<_> = ring.completion().map(|done| (done.user_data(), done.result())).collect();
            found.sort_unstable();
            found
        };
        if std::env::var_os(INSIDE).is_none() {
            assert_eq!(syncs(), [(0, -libc::EINVAL), (1, 1)]);
        }
        match inside() {
            Some(status) => assert!(status.success(), "{status}"),
            // More often than the ring is long, and nothing else is touched.
            None => (0..10).for_each(|_| assert_eq!(syncs(), [(0, 0), (1, 1)])),
        }
    }

    #[test]
    fn it_ends_as_its_program_does() {
        let mut shell = Command::new("sh");
        let status = std::thread::spawn(move || run_without_syncs(shell.args(["-c", "exit 7"])));
        assert_eq!(status.join().unwrap().unwrap().code(), Some(7));
        let missing = std::thread::spawn(|| run_without_syncs(&mut Command::new("/no/such/program")));
        assert!(format!("{:#}", missing.join().unwrap().unwrap_err()).contains("cannot run the program"));
    }
}
