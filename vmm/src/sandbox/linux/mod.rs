//! Linux: no new privileges, no file system (Landlock), no other user (`--jail`), and no system calls but those of the
//! table (seccomp).

mod arguments;
mod calls;
mod files;
mod filter;
mod jail;
pub mod policy;

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::OnceLock;

use seccompiler::{BpfProgram, SeccompAction};

pub use self::arguments::each_argument;
use self::jail::Jail;
use super::ThreadKind;
use crate::config::{SandboxMode, VmConfig, system_text};
use crate::exit::Exit;

/// Why the process cannot be confined.
#[derive(Debug, thiserror::Error)]
pub enum SandboxError {
    /// The configuration names what cannot be used.
    #[error("{0}")]
    Config(String),
    /// The kernel lacks it.
    #[error("the kernel has no seccomp filters: {}; --sandbox off runs without", system_text(.0))]
    NoSeccomp(io::Error),
    /// The kernel refuses it.
    #[error("{what}: {}", system_text(.source))]
    Call {
        /// What was asked for.
        what: &'static str,
        /// What it said.
        source: io::Error,
    },
    /// The policy does not become a program the kernel takes.
    #[error("seccomp: {0}")]
    Filter(String),
    /// Landlock refuses.
    #[error("landlock: {0}")]
    Files(String),
    /// The kernel that is played refuses.
    #[error("cannot give up privileges: {}", system_text(.0))]
    Privileges(io::Error),
}

impl SandboxError {
    /// How the process ends for it.
    pub fn exit(&self) -> Exit {
        match self {
            Self::Config(_) => Exit::Config,
            Self::NoSeccomp(_) => Exit::HostLacks,
            Self::Call { .. } | Self::Filter(_) | Self::Files(_) | Self::Privileges(_) => Exit::HostFailed,
        }
    }
}

fn call(what: &'static str) -> impl FnOnce(io::Error) -> SandboxError {
    move |source| SandboxError::Call { what, source }
}

/// What threads enter.
pub struct Prepared {
    jail: Option<Jail>,
    /// `None` where the operator wants no filters.
    filters: Option<Filters>,
}

struct Filters {
    /// Landlock's rules; `None` where the kernel has none.
    files: Option<OwnedFd>,
    /// What becomes of a call that is not in the table.
    refused: SeccompAction,
    /// Asked for once: each call before the guest counts.
    process: u32,
    /// By kind of thread, each made for the first thread of its kind.
    programs: [OnceLock<BpfProgram>; ThreadKind::ALL.len()],
}

impl Prepared {
    /// Gives up new privileges, and makes the rest ready.
    ///
    /// # Errors
    /// When the host cannot do it.
    pub fn new(config: &VmConfig) -> Result<Self, SandboxError> {
        calls::no_new_privileges().map_err(call("cannot give up new privileges"))?;
        log::debug!(target: super::LOG, "no new privileges from now on");
        let refused = match config.sandbox {
            SandboxMode::Off => None,
            SandboxMode::Log => Some((SeccompAction::Log, libc::SECCOMP_RET_LOG)),
            SandboxMode::Strict => Some((SeccompAction::KillProcess, libc::SECCOMP_RET_KILL_PROCESS)),
        };
        let filters = match refused {
            None => None,
            Some((refused, number)) => {
                calls::knows_action(number).map_err(SandboxError::NoSeccomp)?;
                let files = files::ruleset(config).map_err(|error| SandboxError::Files(error.to_string()))?;
                Some(Filters { files, refused, process: std::process::id(), programs: Default::default() })
            }
        };
        let jail = config.jail.as_ref().map(Jail::prepare).transpose()?;
        Ok(Self { jail, filters })
    }

    /// Confines the calling thread.
    pub fn enter(&self, kind: ThreadKind) -> Result<(), SandboxError> {
        if let Some(jail) = &self.jail {
            jail.enter(kind)?;
        }
        let Some(filters) = &self.filters else { return Ok(()) };
        // Calls alone, and no more of them than two a thread: the crates' own functions make five.
        match &filters.files {
            Some(files) => {
                calls::restrict_files(files.as_fd()).map_err(call("landlock"))?;
                log::debug!(target: super::LOG, "{}: no file can be opened", kind.name());
            }
            None if kind == ThreadKind::Main => {
                log::warn!("the kernel has no Landlock: files are kept from threads by their system calls alone");
            }
            None => {}
        }
        let program = &filters.programs[kind as usize];
        if program.get().is_none() {
            let made = filter::program(kind, filters.refused.clone(), filters.process);
            // Another thread of the kind may have been faster, with the same.
            let _ = program.set(made.map_err(|error| SandboxError::Filter(error.to_string()))?);
        }
        let program = program.get().map_or(&[][..], Vec::as_slice);
        if log::log_enabled!(target: super::LOG, log::Level::Debug) {
            let lines = policy::LINES.iter().filter(|line| line.is_for(kind)).count();
            log::debug!(target: super::LOG, "{}: the calls of {lines} lines of the policy are left", kind.name());
        }
        calls::filter_calls(program).map_err(call("seccomp"))
    }

    /// Nothing comes back.
    ///
    /// # Errors
    /// None.
    pub fn leave(&self) -> Result<(), SandboxError> {
        Ok(())
    }
}

#[cfg(test)]
mod line_tests;
#[cfg(test)]
mod tests;
