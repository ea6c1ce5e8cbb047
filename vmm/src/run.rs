//! Runs one guest from its configuration to its end.

use crate::config::VmConfig;
use crate::exit::Exit;

/// Runs the guest until it ends; says on stderr why it could not be started.
pub fn run(_config: &VmConfig) -> Exit {
    eprintln!("zvmm: this build has no machine to run a guest on");
    Exit::HostLacks
}
