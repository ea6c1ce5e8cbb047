//! Each line of the table is in force and needed: its call passes with it, and ends the process without it. And what most of
//! the rare lines are there for does happen under the table.

use std::hint::black_box;
use std::os::fd::AsRawFd as _;

use libc::*;
use seccompiler::SeccompAction;

use super::calls;
use super::filter::program_of;
use super::policy::{LINES, Line, When, texts};
use super::tests::{is_refused, status_of};
use crate::logging;
use crate::sandbox::ThreadKind;

/// Enters the filter of a kind, without one line perhaps, in a child process, and does something there. Ends the child
/// where that cannot be.
fn enter(kind: ThreadKind, without: Option<usize>) {
    let lines = LINES.iter().enumerate().filter(|(index, line)| line.is_for(kind) && Some(*index) != without);
    // Made in the child, as a line speaks of the process's own id.
    let lines = lines.map(|(_, line)| line);
    let program = program_of(lines, SeccompAction::KillProcess, std::process::id()).expect("a program");
    calls::no_new_privileges().and_then(|()| calls::filter_calls(&program)).expect("a filter");
}

/// Makes the line's call in a way that it lets pass and that does nothing, as every other argument is invalid.
fn make(line: &Line) {
    let mut arguments: [c_long; 6] = [-1; 6];
    match line.when() {
        When::Always => {}
        When::Is { arg, value } => arguments[usize::from(arg)] = value.into(),
        When::Without { arg, bits } => arguments[usize::from(arg)] = (!bits).into(),
        When::ThisProcess => arguments[0] = std::process::id().into(),
    }
    let [a, b, c, d, e, f] = arguments;
    // SAFETY: no address among the arguments is one that the kernel would use, and no descriptor exists.
    unsafe { syscall(line.call(), a, b, c, d, e, f) };
}

extern "C" fn nothing(_: c_int) {}

/// Handles a signal: its end is a call that nothing else can make.
fn handle_a_signal() {
    // SAFETY: the handler does nothing.
    unsafe { raise(SIGUSR1) };
}

#[test]
fn each_line_lets_its_call_pass_and_without_it_the_call_ends_the_process() {
    // SAFETY: the handler does nothing, and no other test has one for this signal.
    unsafe { signal(SIGUSR1, nothing as *const () as sighandler_t) };
    for (index, line) in LINES.iter().enumerate() {
        for kind in ThreadKind::ALL.into_iter().filter(|kind| line.is_for(*kind)) {
            let status_without = |without| {
                status_of(|| {
                    enter(kind, without);
                    if line.call() == SYS_rt_sigreturn {
                        handle_a_signal()
                    } else {
                        make(line)
                    }
                    0
                })
            };
            let text = texts().swap_remove(index);
            assert!(WIFEXITED(status_without(None)), "{}: {text:?}", kind.name());
            assert!(is_refused(status_without(Some(index))), "{}: {text:?} is not needed", kind.name());
        }
    }
}

#[test]
fn every_thread_can_grow_and_shrink_the_heap_and_say_something_in_the_log() {
    let (_reader, log) = std::io::pipe().unwrap();
    for kind in ThreadKind::ALL {
        let status = status_of(|| {
            // SAFETY: takes descriptors of this child.
            unsafe { dup2(log.as_raw_fd(), STDERR_FILENO) };
            enter(kind, None);
            // Very large pieces alone: a thread of the tests has a heap of its own, which zvmm's have not, and that one's
            // other pieces come by another call. glibc takes up to 32 MiB for such, by what was given back before.
            let mut large = Vec::<u8>::with_capacity(33 << 20);
            large.push(1);
            large.reserve_exact(66 << 20);
            drop(black_box(large));
            logging::say(kind.name());
            0
        });
        assert_eq!(status, 0, "{}", kind.name());
    }
}

#[test]
fn a_bug_in_any_thread_ends_the_process_as_a_bug_does_and_not_as_an_attack() {
    for kind in ThreadKind::ALL {
        let aborted = status_of(|| {
            enter(kind, None);
            std::process::abort()
        });
        assert!(WIFSIGNALED(aborted) && WTERMSIG(aborted) == SIGABRT, "{}: {aborted:#x}", kind.name());
        let faulted = status_of(|| {
            enter(kind, None);
            // SAFETY: none: the address is nobody's, and the child ends here.
            unsafe { black_box(16 as *mut u32).write_volatile(1) };
            0
        });
        assert!(WIFSIGNALED(faulted) && WTERMSIG(faulted) == SIGSEGV, "{}: {faulted:#x}", kind.name());
    }
}
