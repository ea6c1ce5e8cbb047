//! A VM without anything in it: how it comes to be, taken over or new, and how it is never left behind.
//!
//! A VM outlives the process that made it, and its name is taken on the whole machine. So destruction with the last
//! descriptor is switched on first thing, and every way out before that destroys the VM by hand.

use std::sync::Arc;
use std::thread;
use std::time::Duration;

use devices_host::sys::Errno;

use super::error::{CallError, CallResult};
use super::vmfd::{Control, MAX_NAME_BYTES, VmFd};
use super::{BhyveConfig, abi};
use crate::hypervisor::HypervisorError;

/// How often creation is tried while an old VM of the name goes away, and how long between: the end of a VM waits for
/// whoever else holds it (a dying process, the kernel's network queues).
const ATTEMPTS: usize = 20;
const BETWEEN_ATTEMPTS: Duration = Duration::from_millis(if cfg!(test) { 1 } else { 100 });

/// A VM that ends with its descriptor.
pub struct Shell {
    /// The VM.
    pub fd: Arc<VmFd>,
    /// It was there before: left by an earlier process for this one, or by one that did not clean up.
    pub existing: bool,
}

/// What may be done with a VM of the wanted name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Existing {
    /// Take it.
    TakeOver,
    /// It is on its way out: wait for that.
    WaitForItsEnd,
}

/// Checks what the kernel would refuse in fewer words.
///
/// # Errors
/// A line that says what is wrong with the name.
pub fn check_name(name: &str) -> Result<(), HypervisorError> {
    let wrong = match name {
        "" => "it is empty",
        _ if name.len() > MAX_NAME_BYTES => "it is longer than 127 bytes",
        _ if name.contains(['/', '\0']) => "it may not contain '/' or NUL",
        "." | ".." => "it names a directory",
        _ => return Ok(()),
    };
    Err(HypervisorError::Unavailable(format!("the name '{name}' cannot be a VM's on bhyve: {wrong}")))
}

impl Shell {
    /// Creates the VM, or takes over one of the same name.
    ///
    /// # Errors
    /// A line that says why there is none; no VM is left behind.
    pub fn obtain(control: &Control, config: &BhyveConfig, existing: Existing) -> Result<Self, HypervisorError> {
        let flags = if config.reservoir { abi::VCF_RESERVOIR_MEM } else { 0 };
        let in_zone = !control.sys().in_global_zone();
        let mut last = None;
        for attempt in 0..ATTEMPTS {
            if attempt > 0 {
                thread::sleep(BETWEEN_ATTEMPTS);
            }
            let refused = match control.create(&config.name, flags) {
                Ok(()) => return Self::adopt_new(control, &config.name).map_err(Into::into),
                Err(error) => error,
            };
            match refused.errno {
                Errno::EEXIST if existing == Existing::TakeOver => match Self::adopt_old(control, &config.name) {
                    Ok(shell) => return Ok(shell),
                    // It went away meanwhile, or belongs to another zone, where it cannot be seen.
                    Err(error @ CallError { errno: Errno::ENOENT | Errno::ENXIO, .. }) => last = Some(error),
                    Err(error) => return Err(error.into()),
                },
                // A zone has one VM: the old one may still be on its way out.
                Errno::EEXIST | Errno::EBUSY => last = Some(refused),
                Errno::EINVAL if in_zone => last = Some(refused),
                _ => return Err(creation_refused(config, refused)),
            }
        }
        Err(match last {
            Some(CallError { errno: Errno::ENOENT, .. }) => HypervisorError::Unavailable(format!(
                "the name '{}' is taken by a VM of another zone: names are one space on the whole machine",
                config.name
            )),
            Some(error) => creation_refused(config, error),
            None => creation_refused(config, CallError { call: "VMM_CREATE_VM", errno: Errno::EBUSY }),
        })
    }

    fn adopt_new(control: &Control, name: &str) -> CallResult<Self> {
        let fd = VmFd::open(control.sys(), name).inspect_err(|_| destroy_by_name(control, name))?;
        Self::adopt(control, name, fd, false)
    }

    fn adopt_old(control: &Control, name: &str) -> CallResult<Self> {
        Self::adopt(control, name, VmFd::open(control.sys(), name)?, true)
    }

    fn adopt(control: &Control, name: &str, fd: VmFd, existing: bool) -> CallResult<Self> {
        match fd.autodestruct(true) {
            Ok(()) => Ok(Self { fd: Arc::new(fd), existing }),
            Err(error) => {
                scrap(control, name, fd);
                Err(error)
            }
        }
    }

    /// Destroys the VM. It may take until a later [`obtain`](Self::obtain) that it is gone.
    pub fn destroy(self, control: &Control, name: &str) {
        match Arc::try_unwrap(self.fd) {
            Ok(fd) => scrap(control, name, fd),
            // It ends with the last of those who share it.
            Err(shared) => drop(shared.destroy_self()),
        }
    }
}

/// Destroys a VM whatever state it is in.
fn scrap(control: &Control, name: &str, fd: VmFd) {
    let destroyed = fd.destroy_self();
    drop(fd);
    if let Err(error) = destroyed
        // ENXIO: it is being destroyed already.
        && error.errno != Errno::ENXIO
    {
        log::debug!("bhyve: {error}");
        destroy_by_name(control, name);
    }
}

fn destroy_by_name(control: &Control, name: &str) {
    match control.destroy(name) {
        Ok(()) | Err(CallError { errno: Errno::ENOENT, .. }) => {}
        Err(error) => log::error!("bhyve: the VM '{name}' stays behind: {error}"),
    }
}

fn creation_refused(config: &BhyveConfig, error: CallError) -> HypervisorError {
    let name = &config.name;
    let why = match error.errno {
        Errno::EEXIST => format!("a VM '{name}' exists and does not go away: is another process running it?"),
        Errno::EINVAL => "this zone has a VM already, and a zone can have one".to_owned(),
        Errno::ENXIO => "another hypervisor holds the processor's virtualization, or it has none".to_owned(),
        Errno::EPERM | Errno::EACCES => "the process may not create VMs: it must be root".to_owned(),
        Errno::ENOMEM => return HypervisorError::Memory(format!("no room for a VM: {error}")),
        _ => return error.into(),
    };
    HypervisorError::Unavailable(format!("cannot create the VM '{name}': {why}"))
}
