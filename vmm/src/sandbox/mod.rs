//! What the process gives up once it has everything that a guest needs: what a guest that takes over a thread could ask of
//! the host's kernel is what that thread needs to go on, and no more.
//!
//! [`prepare`] is called while the process has one thread; each thread [`enter`]s by itself as it begins its steady work,
//! the main thread last, when all is open. What is given up differs between the systems, and is in one folder a system;
//! `docs/sandbox.md` is for operators.

#[cfg(target_os = "linux")]
#[path = "linux/mod.rs"]
#[doc(hidden)]
pub mod os;

#[cfg(target_os = "illumos")]
#[path = "illumos/mod.rs"]
#[doc(hidden)]
pub mod os;

pub mod ladder;
pub mod secrets;

use std::sync::OnceLock;

use crate::config::{SandboxMode, VmConfig};
use crate::control::restore_terminals;
use crate::exit::{Exit, ExitConvention};
use crate::logging;

pub use os::SandboxError;

use ladder::Privileges;

/// Where it is logged what is given up (`-o privileges.debug=true`).
const LOG: &str = "zvmm::sandbox";

/// What threads there are, by what they need of the system.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum ThreadKind {
    /// Control sockets, consoles, timers.
    Main,
    /// Waits for signals.
    Signals,
    /// Runs a vCPU.
    Vcpu,
    /// Works on a queue of a disk; on Linux it may give the work to the kernel (io_uring).
    DiskQueue,
    /// Does a disk's blocking calls.
    DiskEngine,
    /// Works on a queue of a network interface.
    NetQueue,
    /// Works on the queue of the entropy source.
    RngQueue,
    /// Works on the queues of the virtio console.
    ConsoleQueue,
}

impl ThreadKind {
    /// All of them.
    pub const ALL: [Self; 8] = [
        Self::Main,
        Self::Signals,
        Self::Vcpu,
        Self::DiskQueue,
        Self::DiskEngine,
        Self::NetQueue,
        Self::RngQueue,
        Self::ConsoleQueue,
    ];

    /// Its name in messages and in the documentation.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Main => "main",
            Self::Signals => "signals",
            Self::Vcpu => "vcpu",
            Self::DiskQueue => "disk queue",
            Self::DiskEngine => "disk engine",
            Self::NetQueue => "net queue",
            Self::RngQueue => "rng queue",
            Self::ConsoleQueue => "console queue",
        }
    }
}

/// What threads enter, and how the process ends where one cannot.
static PREPARED: OnceLock<(Confinement, ExitConvention)> = OnceLock::new();

/// Whose rules confine the process.
enum Confinement {
    /// Those of the system it runs on.
    Own(Box<os::Prepared>),
    /// Those of the kernel that it plays the part of.
    Played(&'static (dyn Privileges + Send + Sync)),
}

impl Confinement {
    fn enter(&self, kind: ThreadKind) -> Result<(), SandboxError> {
        match self {
            Self::Own(prepared) => prepared.enter(kind),
            // Privileges belong to the whole process.
            Self::Played(privileges) if kind == ThreadKind::Main => {
                ladder::lock(*privileges).map_err(SandboxError::Privileges)
            }
            Self::Played(_) => Ok(()),
        }
    }

    fn leave(&self) -> Result<(), SandboxError> {
        match self {
            Self::Own(prepared) => prepared.leave(),
            Self::Played(privileges) => ladder::leave(*privileges).map_err(SandboxError::Privileges),
        }
    }
}

/// Of a process that plays the part of a kernel: the privileges that a process has there.
static PLAYED: OnceLock<Box<dyn Privileges + Send + Sync>> = OnceLock::new();

/// Has this process give up the privileges of the kernel that it plays the part of, and nothing of its own system: it needs
/// there what no policy lets pass.
pub fn play(privileges: Box<dyn Privileges + Send + Sync>) {
    // Only a second kernel in one process could find one there, and there is none.
    let _ = PLAYED.set(privileges);
}

/// Makes ready what threads enter later, and gives up at once what nobody needs. Call it while the process has one thread.
///
/// # Errors
/// When the host cannot do what the configuration asks for: nobody runs a guest who believes it to be confined.
pub fn prepare(config: &VmConfig, convention: ExitConvention) -> Result<(), SandboxError> {
    let played = PLAYED.get();
    if config.sandbox == SandboxMode::Off && (config.jail.is_none() || played.is_some()) {
        return Ok(());
    }
    let prepared = match played {
        None => Confinement::Own(Box::new(os::Prepared::new(config)?)),
        Some(privileges) => {
            ladder::start(&**privileges).map_err(SandboxError::Privileges)?;
            Confinement::Played(&**privileges)
        }
    };
    // Only a second guest in one process could find one there, and there is none.
    let _ = PREPARED.set((prepared, convention));
    devices_host::engine::at_thread_start(|| enter(ThreadKind::DiskEngine));
    Ok(())
}

/// Confines the calling thread, from now on and for ever, to what its kind needs. Nothing happens where nothing was
/// prepared.
///
/// Where it fails the process ends, as a thread that is not confined may not meet its guest.
pub fn enter(kind: ThreadKind) {
    let Some((prepared, convention)) = PREPARED.get() else { return };
    if let Err(error) = prepared.enter(kind) {
        restore_terminals();
        logging::say(format_args!("sandbox: {}: {error}", kind.name()));
        // SAFETY: ends the process, without anything of its other threads that still run.
        unsafe { libc::_exit(convention.status(Exit::HostFailed).into()) };
    }
}

/// The guest is gone, none of its threads runs any more, and what the process made in the file system is about to go.
pub fn leave() {
    if let Some(Err(error)) = PREPARED.get().map(|(prepared, _)| prepared.leave()) {
        log::warn!("sandbox: {error}");
    }
}
