//! No file system: what is open stays usable, and no path leads anywhere (Landlock, Linux
//! `Documentation/userspace-api/landlock.rst`).
//!
//! It is a second fence: system calls that take paths are not in the table of most threads anyway, but work that is given
//! to the kernel (io_uring) passes that table by, and Landlock holds it, too.
//!
//! Signals are left to the table: kernels before 6.15 hold a thread back that Landlock restricted from signalling another
//! of its own process, which is how vCPUs are woken.

use std::os::fd::OwnedFd;
use std::path::Path;

use landlock::{
    ABI, Access, AccessFs, AccessNet, PathBeneath, PathFd, Ruleset, RulesetAttr, RulesetCreatedAttr, RulesetError,
    Scope,
};

use crate::config::{SerialBackend, VmConfig};

/// What a kernel can hold back that is not older: an older one holds back less.
const FILES: ABI = ABI::V5;
const PORTS: ABI = ABI::V4;

/// Everything is refused but to remove what the process makes in the file system and takes away at its end: its sockets
/// and the file with its id. A jail has none of the directories. `None` where the kernel has no Landlock; one that has some
/// of it does that.
///
/// # Errors
/// When no descriptor is left.
pub fn ruleset(config: &VmConfig) -> Result<Option<OwnedFd>, RulesetError> {
    let mut rules = Ruleset::default()
        .handle_access(AccessFs::from_all(FILES))?
        .handle_access(AccessNet::from_all(PORTS))?
        .scope(Scope::AbstractUnixSocket)?
        .create()?;
    if config.jail.is_none() {
        for made in made(config) {
            let directory = made.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
            // One that is not there is refused where the file is to be made, by its name.
            if let Ok(directory) = PathFd::new(directory) {
                rules = rules.add_rule(PathBeneath::new(directory, AccessFs::RemoveFile))?;
            }
        }
    }
    Ok(rules.into())
}

/// The files that go away with the process.
fn made(config: &VmConfig) -> impl Iterator<Item = &Path> {
    let lines = config.backends().into_iter().filter_map(|(_, backend)| match backend {
        SerialBackend::Socket(path) => Some(path.as_path()),
        _ => None,
    });
    lines.chain(config.qmp.as_deref()).chain(config.pid_file.as_deref())
}
