//! What a disk that loses acknowledged writes looks like from outside: the kernel's fdatasync(2) and fsync(2) taken away
//! from a program, which is told that they succeeded. The program itself is the one that ships.

use std::os::unix::process::CommandExt as _;
use std::process::Command;

/// Offset of the system call's number in `seccomp_data` (linux/seccomp.h).
const NUMBER: u32 = 0;

/// Becomes `program`; comes back only with the error that kept it from doing so.
pub fn become_program(program: &str, arguments: &[&str]) -> anyhow::Error {
    match take_syncs_away() {
        Ok(()) => anyhow::Error::new(Command::new(program).args(arguments).exec()).context("cannot run the program"),
        Err(error) => error,
    }
}

/// Installs a filter for this process and what it becomes: both calls return 0 at once, all others are as they were.
fn take_syncs_away() -> anyhow::Result<()> {
    let calls = [libc::SYS_fdatasync, libc::SYS_fsync];
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
        equal(calls[0], 2),
        equal(calls[1], 1),
        statement(libc::BPF_RET | libc::BPF_K, libc::SECCOMP_RET_ALLOW),
        // An errno of 0: the call is not made, and succeeds.
        statement(libc::BPF_RET | libc::BPF_K, libc::SECCOMP_RET_ERRNO),
    ];
    let program = libc::sock_fprog { len: filter.len() as libc::c_ushort, filter: filter.as_mut_ptr() };
    // SAFETY: takes numbers only.
    let no_new = unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) };
    // SAFETY: the program and its filter are valid during the call, which copies them.
    let set = unsafe { libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &program) };
    anyhow::ensure!(no_new == 0 && set == 0, std::io::Error::last_os_error());
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    /// Runs itself anew as `name` so that the filter stays in a process of its own.
    #[test]
    fn a_program_without_syncs_is_told_that_they_succeed_on_what_cannot_be_synced() {
        const INSIDE: &str = "LAB_PEER_NO_SYNC";
        // A pipe cannot be synced: EINVAL, unless nobody asks the kernel.
        let mut ends = [0; 2];
        // SAFETY: two descriptors are written.
        assert_eq!(unsafe { libc::pipe(ends.as_mut_ptr()) }, 0);
        if std::env::var_os(INSIDE).is_none() {
            // SAFETY: takes numbers only.
            assert_eq!(unsafe { libc::fdatasync(ends[1]) }, -1);
            let test = std::thread::current().name().unwrap().to_owned();
            let program = std::env::current_exe().unwrap();
            let status = Command::new(program).args(["--exact", &test]).env(INSIDE, "1").output().unwrap();
            assert!(status.status.success(), "{}", String::from_utf8_lossy(&status.stdout));
            return;
        }
        take_syncs_away().unwrap();
        // SAFETY: takes numbers only.
        unsafe {
            assert_eq!((libc::fdatasync(ends[1]), libc::fsync(ends[1])), (0, 0));
            assert!(libc::getppid() > 0);
        }
    }
}
