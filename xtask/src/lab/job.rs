//! What xtask tells the runner inside the outer machine to do, and what the runner reports. One JSON document in, one
//! JSON line per run out. Shared source of the two binaries.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// The line that ends a report: without it the outer machine died or was killed.
pub const DONE: &str = "LAB-DONE";

/// A line the runner reports every few seconds.
pub const PULSE: &str = ".";

/// All the work of one outer boot.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Job {
    /// Done one after the other.
    pub runs: Vec<Run>,
}

/// One guest, from the start of its VMM to the end.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Run {
    /// Names the scenario in logs.
    pub name: String,
    /// Shell commands before the VMM starts; each must succeed.
    pub before: Vec<String>,
    /// The VMM's argument vector.
    pub command: Vec<String>,
    /// The socket that is the guest's serial port; the VMM's standard input and output where there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub console: Option<String>,
    /// What to do with the guest, in order; the first failing step ends the run.
    pub steps: Vec<Step>,
    /// Shell commands after the VMM is gone, also when a step failed.
    pub after: Vec<String>,
    /// The whole run is cut off after this many seconds.
    pub limit_s: u64,
}

/// One step of a run.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Step {
    /// Wait until the guest's serial port has said this, after what earlier steps matched.
    Expect {
        /// Exact text.
        text: String,
        /// Time limit.
        within_s: u64,
    },
    /// Write to the guest's serial port.
    Send {
        /// Bytes to write.
        text: String,
    },
    /// Write a pattern of `lines` lines of 64 bytes at full speed; see [`pattern`].
    SendPattern {
        /// Number of lines.
        lines: u32,
    },
    /// Run a command in the guest's shell and record its output; a non-zero status fails the run.
    Guest {
        /// Shell text, one line.
        command: String,
        /// Time limit.
        within_s: u64,
    },
    /// Run a shell command in the outer machine (`$VMM` is the process id) and record its output.
    Shell {
        /// Shell text.
        command: String,
    },
    /// Send one command to the VMM's QMP socket and record the answer.
    Qmp {
        /// Path of the socket.
        socket: String,
        /// Name of the command.
        execute: String,
        /// Its arguments, if it has any.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        arguments: Option<serde_json::Value>,
    },
    /// Send the VMM a signal.
    Signal {
        /// Its number.
        number: i32,
    },
    /// Wait.
    Sleep {
        /// Milliseconds.
        ms: u64,
    },
    /// Record exits, memory and CPU time of the VMM under this name.
    Sample {
        /// Name of the sample.
        name: String,
    },
    /// Record under this name what each thread of the VMM has had of the host's CPUs.
    Threads {
        /// Name of the record.
        name: String,
    },
    /// Record how far the guest's realtime clock is behind the outer machine's.
    ClockOffset {
        /// Name of the reading.
        name: String,
    },
    /// Wait for the VMM to end with this status.
    Exit {
        /// Time limit.
        within_s: u64,
        /// Expected status; `None` accepts any.
        status: Option<i32>,
    },
}

/// What happened in a run.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Outcome {
    /// [`Run::name`].
    pub name: String,
    /// Why the run failed, or nothing.
    pub failure: Option<String>,
    /// How the VMM ended: `exit 0`, `signal 9`, or nothing when it was cut off.
    pub end: Option<String>,
    /// The guest's serial lines with the milliseconds since the VMM was started.
    pub lines: Vec<(u64, String)>,
    /// What the VMM wrote to stderr.
    pub stderr: String,
    /// Output of [`Step::Guest`] and [`Step::Shell`] and of `before`/`after`, in order: command, output.
    pub outputs: Vec<(String, String)>,
    /// Answers of [`Step::Qmp`].
    pub replies: Vec<serde_json::Value>,
    /// [`Step::ClockOffset`], milliseconds.
    pub offsets_ms: BTreeMap<String, f64>,
    /// [`Step::Sample`].
    pub samples: BTreeMap<String, Sample>,
    /// [`Step::Threads`].
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub threads: BTreeMap<String, Vec<Thread>>,
    /// How long the run took, milliseconds.
    pub wall_ms: u64,
}

/// Where the VMM's control socket is in the outer machine.
pub const QMP: &str = "/tmp/qmp.sock";

/// The state of a VMM process at one moment.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Sample {
    /// Since the start of the VMM, milliseconds.
    pub at_ms: u64,
    /// User and system time of all threads, milliseconds.
    pub cpu_ms: u64,
    /// Threads.
    pub threads: u64,
    /// Memory in nobody else's use, guest memory apart, KiB.
    pub private_kib: u64,
    /// Proportional set size of everything but guest memory, KiB.
    pub pss_kib: u64,
    /// Proportional set size of guest memory (mappings of at least 100 MiB), KiB.
    pub guest_kib: u64,
    /// Returns of vCPUs to the process so far, where the VMM counts them.
    pub returns: Option<u64>,
    /// KVM's own counters, by name.
    pub kvm: BTreeMap<String, u64>,
}

/// What a thread has had of the host's CPUs since it began.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Thread {
    /// Its name.
    pub name: String,
    /// Time on a CPU, nanoseconds.
    pub cpu_ns: u64,
    /// How often it went to sleep by itself; as often, but for once, it was woken.
    pub sleeps: u64,
}

/// Line `n` of the pattern of [`Step::SendPattern`]: 64 bytes with the line end.
#[must_use]
pub fn pattern(n: u32) -> String {
    let body = n.wrapping_mul(2_654_435_761);
    format!("{n:08x} {body:08x} the quick brown fox jumps over the lazy dogs.\n")
}
