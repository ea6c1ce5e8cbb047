//! Linux hosts: KVM.

use crate::config::VmConfig;

use super::{Hypervisor, HypervisorError};

/// Opens the host's hypervisor.
pub fn open(_config: &VmConfig) -> Result<Box<dyn Hypervisor>, HypervisorError> {
    Ok(Box::new(super::kvm::KvmHypervisor::open()?))
}
