//! illumos hosts: bhyve where its driver is, else the older KVM of the kvm brand.

use std::path::Path;
use std::sync::Arc;

use devices_host::sys::{RealSys, Sys};

use crate::config::{HypervisorName, VmConfig};

use super::bhyve::{BhyveConfig, BhyveHypervisor};
use super::illumos_kvm::IllumosKvmHypervisor;
use super::{Hypervisor, HypervisorError, refuse_reservoir};

/// Opens the host's hypervisor.
pub fn open(config: &VmConfig) -> Result<Box<dyn Hypervisor>, HypervisorError> {
    let sys: Arc<dyn Sys> = Arc::new(RealSys);
    // A zone of either brand has the node of its own driver alone; where neither is, bhyve's error says what to do.
    let host_has = || match Path::new("/dev/vmmctl").exists() || !Path::new("/dev/kvm").exists() {
        true => HypervisorName::Bhyve,
        false => HypervisorName::Kvm,
    };
    match config.hypervisor.unwrap_or_else(host_has) {
        HypervisorName::Bhyve => Ok(Box::new(BhyveHypervisor::open(sys, BhyveConfig::from(config))?)),
        HypervisorName::Kvm => {
            refuse_reservoir(config)?;
            Ok(Box::new(IllumosKvmHypervisor::open(sys)?))
        }
    }
}

/// The number that the system's tools show for the calling thread.
pub fn thread_id() -> u64 {
    // SAFETY: pthread_self has no preconditions. It is the number of the LWP.
    unsafe { libc::pthread_self() }.into()
}
