//! illumos hosts.

use crate::config::VmConfig;

use super::{Hypervisor, HypervisorError};

/// Opens the host's hypervisor.
pub fn open(_config: &VmConfig) -> Result<Box<dyn Hypervisor>, HypervisorError> {
    let line = "this build has no backend for illumos: neither /dev/vmmctl (bhyve) nor /dev/kvm can be driven yet";
    Err(HypervisorError::Unavailable(line.to_owned()))
}
