//! Counts what a program asks of the kernel before its guest runs.

use std::fs;
use std::io::Read as _;
use std::os::unix::process::CommandExt as _;
use std::process::{Command, Stdio};

use anyhow::Context as _;

use crate::paths;

/// System calls from exec to the first KVM_RUN, both included, of all threads.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Counts {
    pub all: usize,
    pub ioctls: usize,
}

/// Runs a command under strace until its first byte; `None` where there is no strace.
pub fn count(command: &[String]) -> anyhow::Result<Option<Counts>> {
    if Command::new("strace").arg("-V").stdout(Stdio::null()).stderr(Stdio::null()).status().is_err() {
        return Ok(None);
    }
    let trace = paths::target().join("start.strace");
    // strace and the guest it traces in a group of their own: strace alone cannot be killed without letting go of it.
    let mut strace = Command::new("strace")
        .args(["-f", "-o"])
        .arg(&trace)
        .args(command)
        .env_remove("LD_LIBRARY_PATH")
        .process_group(0)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .context("cannot start strace")?;
    let byte = strace.stdout.as_mut().context("no standard output")?.read_exact(&mut [0]);
    // SAFETY: the group was made above, and its leader has not been waited for.
    unsafe { libc::kill(-strace.id().cast_signed(), libc::SIGKILL) };
    strace.wait()?;
    byte.with_context(|| format!("{} printed nothing under strace", command[0]))?;
    Ok(Some(parse(&fs::read_to_string(&trace)?)))
}

/// Every line begins with a thread id and the name of a call, or ends a call that began in an earlier line.
fn parse(trace: &str) -> Counts {
    let mut counts = Counts::default();
    for line in trace.lines() {
        let Some((_, call)) = line.split_once(char::is_whitespace) else { continue };
        let call = call.trim_start();
        if call.starts_with(['<', '+', '-']) {
            continue;
        }
        counts.all += 1;
        counts.ioctls += usize::from(call.starts_with("ioctl("));
        if call.contains(", KVM_RUN") {
            break;
        }
    }
    counts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_in_two_lines_counts_once_and_nothing_counts_after_the_first_entry() {
        let trace = "\
7  execve(\"zvmm\", [\"zvmm\"], 0x7f /* 3 vars */) = 0
7  ioctl(5, KVM_GET_API_VERSION <unfinished ...>
8  read(3, \"+++\", 3) = 3
7  <... ioctl resumed>) = 12
7  --- SIGCHLD {si_signo=SIGCHLD} ---
8  ioctl(9, KVM_RUN <unfinished ...>
7  close(3) = 0
";
        assert_eq!(parse(trace), Counts { all: 4, ioctls: 2 });
    }
}
