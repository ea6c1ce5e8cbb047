//! What each kind of thread is refused, tried in child processes: the wait status tells.

use std::fs::{self, File};
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use libc::*;

use super::policy::{LINES, Shown, When, texts};
use super::*;
use crate::config::JailConfig;
use crate::hypervisor::kvm::requests::{KVM_IRQFD, KVM_RUN};

/// Does something in a child process; its wait status.
pub(super) fn status_of(body: impl FnOnce() -> c_int) -> c_int {
    // SAFETY: the child runs the body and leaves; the C library makes its heap usable there.
    let child = unsafe { fork() };
    assert!(child >= 0, "{}", io::Error::last_os_error());
    if child == 0 {
        // SAFETY: takes numbers. A child that is killed leaves no core file; and no destructor runs twice.
        unsafe {
            prctl(PR_SET_DUMPABLE, 0);
            _exit(body())
        }
    }
    let mut status = 0;
    // SAFETY: the status is valid through the call.
    assert_eq!(unsafe { waitpid(child, &mut status, 0) }, child);
    status
}

/// Makes a call in a child process that has entered the filter of a kind.
fn call_as(program: &BpfProgram, (number, arguments): (c_long, [c_long; 6])) -> c_int {
    status_of(|| {
        if calls::no_new_privileges().is_err() || calls::filter_calls(program).is_err() {
            return 100;
        }
        let [a, b, c, d, e, f] = arguments;
        // SAFETY: a call that is refused does nothing, and those that pass here are harmless.
        unsafe { syscall(number, a, b, c, d, e, f) };
        0
    })
}

pub(super) fn is_refused(status: c_int) -> bool {
    WIFSIGNALED(status) && WTERMSIG(status) == SIGSYS
}

fn first(arguments: [c_long; 3]) -> [c_long; 6] {
    let [a, b, c] = arguments;
    [a, b, c, 0, 0, 0]
}

/// What a guest that has taken over a thread would ask for, by what it is after.
fn forbidden() -> Vec<(&'static str, c_long, [c_long; 6])> {
    let path = c"/".as_ptr() as c_long;
    let page = [0, 4096, (PROT_READ | PROT_EXEC).into(), (MAP_PRIVATE | MAP_ANONYMOUS).into(), -1, 0];
    let none = [0; 6];
    let mut all = vec![
        ("open", SYS_open, first([path, 0, 0])),
        ("openat", SYS_openat, first([AT_FDCWD.into(), path, 0])),
        ("openat2", SYS_openat2, first([AT_FDCWD.into(), path, 0])),
        ("open_by_handle_at", SYS_open_by_handle_at, none),
        ("creat", SYS_creat, first([path, 0, 0])),
        ("execve", SYS_execve, first([path, 0, 0])),
        ("execveat", SYS_execveat, first([AT_FDCWD.into(), path, 0])),
        ("socketpair", SYS_socketpair, first([AF_UNIX.into(), SOCK_STREAM.into(), 0])),
        ("connect", SYS_connect, first([0, 0, 0])),
        ("bind", SYS_bind, first([0, 0, 0])),
        ("listen", SYS_listen, first([0, 0, 0])),
        ("sendmsg", SYS_sendmsg, first([0, 0, 0])),
        ("ptrace", SYS_ptrace, first([PTRACE_TRACEME.into(), 0, 0])),
        ("process_vm_readv", SYS_process_vm_readv, none),
        ("process_vm_writev", SYS_process_vm_writev, none),
        ("pidfd_open", SYS_pidfd_open, none),
        ("pidfd_getfd", SYS_pidfd_getfd, none),
        ("kcmp", SYS_kcmp, none),
        ("mmap PROT_EXEC", SYS_mmap, page),
        ("mprotect PROT_EXEC", SYS_mprotect, first([0, 0, (PROT_READ | PROT_EXEC).into()])),
        ("mprotect", SYS_mprotect, none),
        ("pkey_mprotect", SYS_pkey_mprotect, none),
        ("shmget", SYS_shmget, none),
        ("memfd_create", SYS_memfd_create, none),
        ("fork", SYS_fork, none),
        ("vfork", SYS_vfork, none),
        ("clone", SYS_clone, none),
        ("clone3", SYS_clone3, none),
        ("kill", SYS_kill, first([0, 0, 0])),
        ("tgkill of another process", SYS_tgkill, first([1, 1, 0])),
        ("tkill", SYS_tkill, first([1, SIGKILL.into(), 0])),
        ("rt_sigaction SIGSYS", SYS_rt_sigaction, first([SIGSYS.into(), 0, 0])),
        ("mount", SYS_mount, none),
        ("umount2", SYS_umount2, none),
        ("move_mount", SYS_move_mount, none),
        ("pivot_root", SYS_pivot_root, none),
        ("chroot", SYS_chroot, first([path, 0, 0])),
        ("chdir", SYS_chdir, first([path, 0, 0])),
        ("unshare", SYS_unshare, none),
        ("setns", SYS_setns, none),
        ("setuid", SYS_setuid, none),
        ("setresuid", SYS_setresuid, none),
        ("setgroups", SYS_setgroups, none),
        ("capset", SYS_capset, none),
        ("prctl", SYS_prctl, none),
        ("arch_prctl", SYS_arch_prctl, none),
        ("seccomp", SYS_seccomp, none),
        ("personality", SYS_personality, none),
        ("bpf", SYS_bpf, none),
        ("perf_event_open", SYS_perf_event_open, none),
        ("userfaultfd", SYS_userfaultfd, none),
        ("io_uring_setup", SYS_io_uring_setup, none),
        ("keyctl", SYS_keyctl, none),
        ("add_key", SYS_add_key, none),
        ("init_module", SYS_init_module, none),
        ("finit_module", SYS_finit_module, none),
        ("kexec_load", SYS_kexec_load, none),
        ("reboot", SYS_reboot, none),
        ("iopl", SYS_iopl, none),
        ("modify_ldt", SYS_modify_ldt, none),
        ("rename", SYS_rename, first([path, path, 0])),
        ("link", SYS_link, first([path, path, 0])),
        ("symlink", SYS_symlink, first([path, path, 0])),
        ("mkdir", SYS_mkdir, first([path, 0, 0])),
        ("mknod", SYS_mknod, first([path, 0, 0])),
        ("chmod", SYS_chmod, first([path, 0, 0])),
        ("chown", SYS_chown, first([path, 0, 0])),
        ("truncate", SYS_truncate, first([path, 0, 0])),
        ("unlinkat", SYS_unlinkat, first([AT_FDCWD.into(), path, 0])),
        ("dup2", SYS_dup2, first([0, 0, 0])),
        ("setrlimit", SYS_setrlimit, none),
        ("sched_setaffinity", SYS_sched_setaffinity, none),
        ("ioctl TIOCSTI", SYS_ioctl, first([0, TIOCSTI as c_long, 0])),
        ("ioctl KVM_CREATE_VM", SYS_ioctl, first([0, 0xae01, 0])),
        ("ioctl KVM_SET_USER_MEMORY_REGION", SYS_ioctl, first([0, 0x4020_ae46, 0])),
        ("getpid of the x32 ABI", 0x4000_0000 + SYS_getpid, none),
    ];
    for (name, family) in
        [("AF_UNIX", AF_UNIX), ("AF_INET", AF_INET), ("AF_INET6", AF_INET6), ("AF_NETLINK", AF_NETLINK)]
    {
        all.push((name, SYS_socket, first([family.into(), SOCK_DGRAM.into(), 0])));
    }
    all
}

#[test]
fn every_kind_of_thread_that_asks_for_what_it_does_not_need_ends_its_process() {
    for kind in ThreadKind::ALL {
        let program = filter::program(kind, SeccompAction::KillProcess, std::process::id()).unwrap();
        for (name, number, arguments) in forbidden() {
            assert!(is_refused(call_as(&program, (number, arguments))), "{}: {name}", kind.name());
        }
        // What the others need is refused as well.
        let unlink = (SYS_unlink, first([c"/none/none".as_ptr() as c_long, 0, 0]));
        assert_eq!(is_refused(call_as(&program, unlink)), kind != ThreadKind::Main, "{}", kind.name());
        for request in [KVM_RUN, KVM_IRQFD] {
            let status = call_as(&program, (SYS_ioctl, first([-1, request.into(), 0])));
            assert_eq!(is_refused(status), kind != ThreadKind::Vcpu, "{}", kind.name());
        }
        let page = [0, 4096, PROT_READ.into(), (MAP_PRIVATE | MAP_ANONYMOUS).into(), -1, 0];
        for passes in [(SYS_getpid, [0; 6]), (SYS_mmap, page), (SYS_futex, [0; 6])] {
            assert_eq!(call_as(&program, passes), 0, "{}: {passes:?}", kind.name());
        }
    }
}

#[test]
fn what_is_only_logged_passes() {
    for kind in ThreadKind::ALL {
        let program = filter::program(kind, SeccompAction::Log, std::process::id()).unwrap();
        assert_eq!(call_as(&program, (SYS_getppid, [0; 6])), 0, "{}", kind.name());
        let program = filter::program(kind, SeccompAction::KillProcess, std::process::id()).unwrap();
        assert!(is_refused(call_as(&program, (SYS_getppid, [0; 6]))), "{}", kind.name());
    }
}

#[test]
fn no_line_of_the_table_is_there_twice_or_without_effect() {
    assert_eq!(LINES.len(), texts().len());
    for (index, line) in LINES.iter().enumerate() {
        assert!(ThreadKind::ALL.iter().any(|kind| line.is_for(*kind)), "{:?}", texts()[index]);
        for (other, earlier) in LINES[..index].iter().enumerate() {
            let shared = ThreadKind::ALL.iter().any(|kind| line.is_for(*kind) && earlier.is_for(*kind));
            let covers = line.when() == earlier.when() || [line.when(), earlier.when()].contains(&When::Always);
            let twice = shared && covers && line.call() == earlier.call();
            assert!(!twice, "{:?} and {:?}", texts()[other], texts()[index]);
        }
    }
}

/// What is written of the table in the documentation.
fn table() -> String {
    let mut table = String::from("| Call | Only | Threads | For |\n|---|---|---|---|\n");
    for (line, [call, when, threads, why]) in LINES.iter().zip(texts()) {
        let call = call.trim_start_matches("SYS_");
        let when = match when {
            "ALWAYS" => String::new(),
            "NO_CODE" => "without `PROT_EXEC`".to_owned(),
            "OWN" => "of its own process".to_owned(),
            "OF_SOCKETS" => "`SOL_SOCKET`".to_owned(),
            argument => {
                let inner = argument.split_once('(').map_or(argument, |(_, inner)| inner).trim_end_matches(')');
                format!("`{}`", inner.trim_end_matches(" as u32"))
            }
        };
        let threads = match threads {
            "ALL" => "all".to_owned(),
            _ => {
                let names: Vec<&str> =
                    ThreadKind::ALL.iter().filter(|kind| line.is_for(**kind)).map(|kind| kind.name()).collect();
                names.join(", ")
            }
        };
        let rare = if line.shown() == Shown::Never { " (rare)" } else { "" };
        table.push_str(&format!("| `{call}` | {when} | {threads} | {why}{rare} |\n"));
    }
    table
}

#[test]
fn the_table_of_the_documentation_is_the_one_that_is_enforced() {
    let table = table();
    let manual = include_str!("../../../../docs/sandbox.md");
    assert!(manual.contains(&table), "docs/sandbox.md lacks this table:\n\n{table}");
}

fn folder() -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    // Another user is to find it.
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let path = folder.path().to_owned();
    (folder, path)
}

#[test]
fn a_restricted_thread_opens_nothing_and_removes_only_what_the_process_makes() {
    let (_folder, path) = folder();
    fs::create_dir(path.join("own")).unwrap();
    for name in ["own/vm.pid", "other"] {
        fs::write(path.join(name), "").unwrap();
    }
    let config = VmConfig { pid_file: Some(path.join("own/vm.pid")), ..VmConfig::default() };
    let rules = files::ruleset(&config).unwrap();
    let mut open = File::create(path.join("open")).unwrap();
    let status = status_of(|| {
        let Some(rules) = &rules else { return 99 };
        if calls::no_new_privileges().is_err() || calls::restrict_files(rules.as_fd()).is_err() {
            return 1;
        }
        let refused = |result: io::Result<()>| result.is_err_and(|error| error.raw_os_error() == Some(EACCES));
        let tries = [
            File::open("/etc/passwd").map(drop),
            fs::read_dir("/").map(drop),
            File::create(path.join("new")).map(drop),
            File::create(path.join("own/new")).map(drop),
            fs::create_dir(path.join("own/folder")),
            fs::remove_file(path.join("other")),
            fs::rename(path.join("other"), path.join("own/other")),
        ];
        if !tries.into_iter().all(refused) {
            return 2;
        }
        let goes_on = open.write_all(b"what is open stays so").is_ok();
        c_int::from(!(goes_on && fs::remove_file(path.join("own/vm.pid")).is_ok())) * 3
    });
    if WIFEXITED(status) && WEXITSTATUS(status) == 99 {
        println!("SKIP: the kernel has no Landlock");
        return;
    }
    assert_eq!(status, 0);
}

/// In a child: prepares and enters a jail; what is wrong afterwards, as a number.
fn what_is_wrong_in_a_jail(dir: &Path, user: Option<&str>) -> c_int {
    let config = JailConfig { dir: dir.to_owned(), user: user.map(str::to_owned) };
    let Ok(jail) = Jail::prepare(&config) else { return 99 };
    if jail.enter(ThreadKind::Vcpu).is_err() && user.is_some() {
        return 1;
    }
    if user.is_some() {
        // A thread that has become another user changes no root: the main thread does so before.
        return c_int::from(calls::change_root(&c"/".to_owned()).is_ok()) * 2;
    }
    0
}

#[test]
fn a_jail_has_its_directory_for_a_root_and_neither_groups_nor_capabilities() {
    if !calls::is_root() {
        println!("SKIP: only the superuser can become another user");
        return;
    }
    let (_folder, path) = folder();
    fs::write(path.join("inside"), "").unwrap();
    let status = status_of(|| {
        let config = JailConfig { dir: path.clone(), user: Some("nobody".to_owned()) };
        let Ok(jail) = Jail::prepare(&config) else { return 1 };
        if jail.enter(ThreadKind::Main).is_err() {
            return 2;
        }
        let (uid, gid) = calls::own_ids();
        // SAFETY: asks for the number of groups.
        let groups = unsafe { getgroups(0, std::ptr::null_mut()) };
        if uid == 0 || gid == 0 || groups != 0 {
            return 3;
        }
        if !Path::new("/inside").exists() || Path::new("/etc").exists() {
            return 4;
        }
        // Neither the root nor the user comes back.
        if calls::change_root(&c"/".to_owned()).is_ok() || calls::become_user(0, 0).is_ok() {
            return 5;
        }
        0
    });
    assert_eq!(status, 0, "{}", WEXITSTATUS(status));
    assert_eq!(status_of(|| what_is_wrong_in_a_jail(&path, Some("nobody"))), 0);
}

#[test]
fn a_user_who_is_not_the_superuser_has_a_jail_in_namespaces_of_its_own() {
    let (_folder, path) = folder();
    fs::write(path.join("inside"), "").unwrap();
    let status = status_of(|| {
        if calls::is_root() && calls::become_user(65534, 65534).is_err() {
            return 1;
        }
        // Its files in /proc are another user's since then.
        // SAFETY: takes numbers.
        unsafe { prctl(PR_SET_DUMPABLE, 1) };
        let Ok(jail) = Jail::prepare(&JailConfig { dir: path.clone(), user: None }) else { return 99 };
        if jail.enter(ThreadKind::Main).is_err() {
            return 2;
        }
        if !Path::new("/inside").exists() || Path::new("/etc").exists() {
            return 3;
        }
        c_int::from(calls::change_root(&c"/".to_owned()).is_ok()) * 4
    });
    if WIFEXITED(status) && WEXITSTATUS(status) == 99 {
        println!("SKIP: the host gives users no namespaces");
        return;
    }
    assert_eq!(status, 0, "{}", WEXITSTATUS(status));
}

#[test]
fn a_jail_that_cannot_be_is_refused_by_its_name() {
    let line = |dir: &str, user: Option<&str>| {
        let config = JailConfig { dir: dir.into(), user: user.map(str::to_owned) };
        Jail::prepare(&config).err().map(|error| error.to_string()).unwrap_or_default()
    };
    assert_eq!(line("/none", None), "jail (--jail): /none: No such file or directory");
    assert_eq!(line("/dev/null", None), "jail (--jail): /dev/null is not a directory");
    if calls::is_root() {
        assert_eq!(line("/", Some("nobody-at-all")), "jail (--jail): user=nobody-at-all: there is no such user");
        assert_eq!(line("/", Some("root")), "jail (--jail): user=root is the superuser");
    }
}
