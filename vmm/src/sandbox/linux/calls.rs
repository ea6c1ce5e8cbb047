//! The system calls by which a process and its threads give things up, and nothing around them.

use std::ffi::{CStr, CString};
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd};

use seccompiler::BpfProgramRef;

/// Turns the `-1` of a libc call into the error it left in `errno`.
fn check(result: impl Into<i64>) -> io::Result<()> {
    if result.into() == -1 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// No program that is executed gives privileges any more; kernels ask for this before a thread may restrict itself.
/// Inherited by threads that are started from now on.
pub fn no_new_privileges() -> io::Result<()> {
    // SAFETY: takes numbers.
    check(unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) })
}

/// Whether the kernel knows what is to become of a refused call (seccomp(2), SECCOMP_GET_ACTION_AVAIL).
pub fn knows_action(action: u32) -> io::Result<()> {
    // SAFETY: the kernel reads the number, which lives through the call.
    check(unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_GET_ACTION_AVAIL, 0, &raw const action) })
}

/// The calling thread keeps to a Landlock ruleset from now on (landlock_restrict_self(2)). It has given up new privileges.
pub fn restrict_files(rules: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: takes numbers.
    check(unsafe { libc::syscall(libc::SYS_landlock_restrict_self, rules.as_raw_fd(), 0) })
}

/// The calling thread keeps to a program from now on (seccomp(2)). It has given up new privileges.
pub fn filter_calls(program: BpfProgramRef<'_>) -> io::Result<()> {
    /// `struct sock_fprog`.
    #[repr(C)]
    struct Program {
        len: libc::c_ushort,
        first: *const seccompiler::sock_filter,
    }
    let len = libc::c_ushort::try_from(program.len()).map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))?;
    let program = Program { len, first: program.as_ptr() };
    // SAFETY: the kernel copies the instructions, of which there are so many, and changes nothing.
    check(unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, 0, &raw const program) })
}

/// Whether the process is the superuser's.
pub fn is_root() -> bool {
    // SAFETY: takes nothing and cannot fail.
    unsafe { libc::geteuid() == 0 }
}

/// User and group of the process.
pub fn own_ids() -> (libc::uid_t, libc::gid_t) {
    // SAFETY: take nothing and cannot fail.
    unsafe { (libc::geteuid(), libc::getegid()) }
}

/// A user's id and group, by name; `None` where there is no such user.
pub fn user(name: &CStr) -> io::Result<Option<(libc::uid_t, libc::gid_t)>> {
    let mut entry = MaybeUninit::<libc::passwd>::zeroed();
    let mut found = std::ptr::null_mut();
    let mut texts = vec![0 as libc::c_char; 16 << 10];
    // SAFETY: all pointers are valid through the call, and the room for texts has the length given.
    let error =
        unsafe { libc::getpwnam_r(name.as_ptr(), entry.as_mut_ptr(), texts.as_mut_ptr(), texts.len(), &mut found) };
    if error != 0 {
        return Err(io::Error::from_raw_os_error(error));
    }
    // SAFETY: zeroed, which is a valid entry, and filled in where one was found.
    let entry = unsafe { entry.assume_init() };
    Ok((!found.is_null()).then_some((entry.pw_uid, entry.pw_gid)))
}

/// A user namespace and a mount namespace of the process's own, while it has one thread.
pub fn own_namespaces() -> io::Result<()> {
    // SAFETY: takes a number; changes what the process may do, and not its memory.
    check(unsafe { libc::unshare(libc::CLONE_NEWUSER | libc::CLONE_NEWNS) })
}

/// Makes a directory the root of the process: of all its threads, as they share it.
pub fn change_root(directory: &CString) -> io::Result<()> {
    // SAFETY: the path is terminated and lives through the calls.
    unsafe {
        check(libc::chdir(directory.as_ptr()))?;
        check(libc::chroot(c".".as_ptr()))?;
        check(libc::chdir(c"/".as_ptr()))
    }
}

/// The calling thread becomes another user's, without supplementary groups. Not by the C library's functions: they do it to
/// all threads with a signal to each, which the others' own confinement need not let through.
pub fn become_user(uid: libc::uid_t, gid: libc::gid_t) -> io::Result<()> {
    // SAFETY: take numbers; no groups are read.
    unsafe {
        check(libc::syscall(libc::SYS_setgroups, 0, std::ptr::null::<libc::gid_t>()))?;
        check(libc::syscall(libc::SYS_setresgid, gid, gid, gid))?;
        check(libc::syscall(libc::SYS_setresuid, uid, uid, uid))
    }
}

/// The calling thread gives up all capabilities (capset(2), version 3: two words of each set).
pub fn drop_capabilities() -> io::Result<()> {
    const VERSION_3: u32 = 0x2008_0522;
    let header = [VERSION_3, 0];
    let none = [0u32; 6];
    // SAFETY: the kernel reads a header of two words and two structures of three, which live through the call.
    check(unsafe { libc::syscall(libc::SYS_capset, header.as_ptr(), none.as_ptr()) })
}
