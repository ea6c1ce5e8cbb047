//! illumos: the zone is the jail, and the process gives up its privileges ([`ladder`](super::ladder)).

mod arguments;

use std::io;

use illumos_priv::{PrivOp, PrivPtype, PrivSet, Privilege as Name, getppriv, setppriv};

pub use self::arguments::each_argument;
use super::ThreadKind;
use super::ladder::{self, Privilege, Privileges, Set};
use crate::config::{SandboxMode, VmConfig, system_text};
use crate::exit::Exit;

/// Why the process cannot be confined.
#[derive(Debug, thiserror::Error)]
pub enum SandboxError {
    /// The configuration asks for what this system does otherwise.
    #[error("{0}")]
    Config(String),
    /// The system refuses.
    #[error("cannot give up privileges: {}", system_text(.0))]
    Privileges(io::Error),
}

impl SandboxError {
    /// How the process ends for it.
    pub fn exit(&self) -> Exit {
        match self {
            Self::Config(_) => Exit::Config,
            Self::Privileges(_) => Exit::HostFailed,
        }
    }
}

/// What the process gives up later.
pub struct Prepared(());

impl Prepared {
    /// Gives up what no VMM needs.
    ///
    /// # Errors
    /// When the configuration asks for what is Linux's, or the system refuses.
    pub fn new(config: &VmConfig) -> Result<Self, SandboxError> {
        if config.jail.is_some() {
            return Err(SandboxError::Config("jail (--jail): on illumos the zone is the jail".to_owned()));
        }
        if config.sandbox == SandboxMode::Log {
            let line = "sandbox (--sandbox): illumos cannot let pass and log; ppriv -D tells what is refused";
            return Err(SandboxError::Config(line.to_owned()));
        }
        ladder::start(&Process).map_err(SandboxError::Privileges)?;
        Ok(Self(()))
    }

    /// The main thread gives up the rest for all of them.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn enter(&self, kind: ThreadKind) -> Result<(), SandboxError> {
        match kind {
            ThreadKind::Main => ladder::lock(&Process).map_err(SandboxError::Privileges),
            _ => Ok(()),
        }
    }

    /// The guest is gone, and what the process made in the file system is to go.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn leave(&self) -> Result<(), SandboxError> {
        ladder::leave(&Process).map_err(SandboxError::Privileges)
    }
}

/// The calls of the system, on this process.
struct Process;

fn kind(set: Set) -> PrivPtype {
    match set {
        Set::Effective => PrivPtype::Effective,
        Set::Permitted => PrivPtype::Permitted,
        Set::Limit => PrivPtype::Limit,
    }
}

fn name(privilege: Privilege) -> Name {
    match privilege {
        Privilege::FileRead => Name::FileRead,
        Privilege::FileWrite => Name::FileWrite,
        Privilege::FileLinkAny => Name::FileLinkAny,
        Privilege::NetAccess => Name::NetAccess,
        Privilege::ProcExec => Name::ProcExec,
        Privilege::ProcFork => Name::ProcFork,
        Privilege::ProcInfo => Name::ProcInfo,
        Privilege::ProcSecflags => Name::ProcSecflags,
        Privilege::ProcSession => Name::ProcSession,
        Privilege::ProcClockHighres => Name::ProcClockHighres,
    }
}

impl Privileges for Process {
    fn has(&self, set: Set, privilege: Privilege) -> io::Result<bool> {
        Ok(getppriv(kind(set))?.is_member(name(privilege)))
    }

    fn take_out(&self, set: Set, privileges: &[Privilege]) -> io::Result<()> {
        setppriv(PrivOp::Off, kind(set), &these(privileges)?)
    }

    fn make(&self, set: Set, privileges: &[Privilege]) -> io::Result<()> {
        setppriv(PrivOp::Set, kind(set), &these(privileges)?)
    }
}

fn these(privileges: &[Privilege]) -> io::Result<PrivSet> {
    let mut set = PrivSet::new_empty()?;
    for &privilege in privileges {
        set.addset(name(privilege))?;
    }
    Ok(set)
}
