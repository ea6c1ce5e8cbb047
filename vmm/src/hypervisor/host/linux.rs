//! Linux hosts: KVM.

use super::{Hypervisor, HypervisorError};

/// Opens the host's hypervisor.
pub fn open() -> Result<Box<dyn Hypervisor>, HypervisorError> {
    Ok(Box::new(super::kvm::KvmHypervisor::open()?))
}
