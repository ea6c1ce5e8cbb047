//! Watches every system call of a run, thread by thread (ptrace(2)), and can make one another.

use std::collections::{HashMap, HashSet};
use std::io;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::thread;

use crate::process::{LIMIT, Outcome, Running, Zvmm};

/// A call that a thread is about to make.
pub struct Call {
    /// The thread's name.
    pub thread: String,
    /// What is called.
    pub number: i64,
    /// With what.
    pub arguments: [u64; 6],
}

fn check(result: libc::c_long) -> io::Result<libc::c_long> {
    if result == -1 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// Has the process that is about to be the program be watched by the thread that starts it.
fn watch_me() -> io::Result<()> {
    // SAFETY: takes a number.
    check(unsafe { libc::ptrace(libc::PTRACE_TRACEME, 0, 0, 0) }).map(drop)
}

/// What a stopped thread is at.
enum Stop {
    Entry { number: i64, arguments: [u64; 6] },
    Exit { result: i64 },
    Other,
}

fn look_at(thread: libc::pid_t) -> Stop {
    const GET_SYSCALL_INFO: libc::c_uint = 0x420e;
    // What it is at, where, and the numbers of an entry or of an exit.
    let mut words = [0u64; 11];
    // SAFETY: the kernel writes as many bytes as are said, at most.
    let got = unsafe { libc::ptrace(GET_SYSCALL_INFO, thread, size_of_val(&words), words.as_mut_ptr()) };
    match (got, words[0] as u8) {
        (..=0, _) => Stop::Other,
        (_, 1) => Stop::Entry { number: words[3] as i64, arguments: std::array::from_fn(|at| words[4 + at]) },
        (_, 2) => Stop::Exit { result: words[3] as i64 },
        _ => Stop::Other,
    }
}

/// Has a thread that is about to make a call make another one.
fn replace(thread: libc::pid_t, call: &Call) {
    // Indices of the registers in the kernel's structure of them: what is called, and its arguments.
    const CALLED: usize = 15;
    const ARGUMENTS: [usize; 6] = [14, 13, 12, 7, 9, 8];
    let put = |index: usize, value: u64| {
        // SAFETY: changes a register of a stopped thread of another process.
        check(unsafe { libc::ptrace(libc::PTRACE_POKEUSER, thread, index * 8, value) }).expect("a stopped thread");
    };
    put(CALLED, call.number as u64);
    for (index, value) in ARGUMENTS.into_iter().zip(call.arguments) {
        put(index, value);
    }
}

/// Runs the program to its end. `look` is shown every call that a thread makes after it has entered its filter, and says
/// whether it has changed it; `play` does meanwhile what the guest needs from outside.
pub fn trace(zvmm: Zvmm, look: &mut dyn FnMut(&mut Call) -> bool, play: impl FnOnce(&Running) + Send) -> Outcome {
    let running = zvmm.after(watch_me).start();
    let process = libc::pid_t::try_from(running.id()).expect("a process id");
    let status = thread::scope(|scope| {
        let (over, is_over) = channel::<()>();
        let played = &running;
        scope.spawn(move || {
            play(played);
            if is_over.recv_timeout(LIMIT) == Err(RecvTimeoutError::Timeout) {
                // SAFETY: the process is not yet waited for to its end, so the id is its own.
                unsafe { libc::kill(process, libc::SIGKILL) };
            }
        });
        let status = follow(process, look);
        drop(over);
        status
    });
    running.ended(status)
}

/// Follows all threads until the process has ended; its wait status.
fn follow(process: libc::pid_t, look: &mut dyn FnMut(&mut Call) -> bool) -> libc::c_int {
    let (mut known, mut entered) = (HashSet::new(), HashSet::new());
    let mut filters = HashMap::new();
    let mut ended = 0;
    loop {
        let mut status = 0;
        // Children of this thread only: other tests have theirs.
        // SAFETY: the status is valid through the call.
        let thread = unsafe { libc::waitpid(-1, &mut status, libc::__WALL | libc::__WNOTHREAD) };
        if thread < 0 {
            return ended;
        }
        if !libc::WIFSTOPPED(status) {
            if thread == process {
                ended = status;
            }
            continue;
        }
        let is_new = known.insert(thread);
        let mut deliver = libc::WSTOPSIG(status);
        match deliver {
            signal if signal == libc::SIGTRAP | 0x80 => {
                deliver = 0;
                match look_at(thread) {
                    Stop::Entry { number, arguments } => {
                        // seccomp(2) is also asked what it can do.
                        let filters_now = arguments[0] == u64::from(libc::SECCOMP_SET_MODE_FILTER);
                        filters.insert(thread, number == libc::SYS_seccomp && filters_now);
                        if entered.contains(&thread) {
                            let name = std::fs::read_to_string(format!("/proc/{process}/task/{thread}/comm"));
                            let name = name.unwrap_or_default().trim_end().to_owned();
                            let mut call = Call { thread: name, number, arguments };
                            if look(&mut call) {
                                replace(thread, &call);
                            }
                        }
                    }
                    Stop::Exit { result: 0 } if filters.get(&thread) == Some(&true) => {
                        entered.insert(thread);
                    }
                    Stop::Exit { .. } | Stop::Other => {}
                }
            }
            // The program is there.
            libc::SIGTRAP if is_new && thread == process => {
                let options = libc::PTRACE_O_TRACESYSGOOD | libc::PTRACE_O_TRACECLONE | libc::PTRACE_O_EXITKILL;
                // SAFETY: takes numbers.
                check(unsafe { libc::ptrace(libc::PTRACE_SETOPTIONS, process, 0, options) })
                    .expect("a stopped process");
                deliver = 0;
            }
            // A thread was started, or begins.
            libc::SIGTRAP if status >> 16 != 0 => deliver = 0,
            libc::SIGSTOP if is_new => deliver = 0,
            _ => {}
        }
        // A thread that is gone meanwhile is waited for next.
        // SAFETY: takes numbers.
        unsafe { libc::ptrace(libc::PTRACE_SYSCALL, thread, 0, deliver) };
    }
}
