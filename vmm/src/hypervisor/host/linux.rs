//! Linux hosts: KVM.

use crate::config::{HypervisorName, VmConfig};

use super::{Hypervisor, HypervisorError, refuse_reservoir};

/// Opens the host's hypervisor.
pub fn open(config: &VmConfig) -> Result<Box<dyn Hypervisor>, HypervisorError> {
    if config.hypervisor == Some(HypervisorName::Bhyve) {
        let line = "hypervisor: bhyve is illumos': this host has kvm";
        return Err(HypervisorError::Unavailable(line.to_owned()));
    }
    refuse_reservoir(config)?;
    Ok(Box::new(super::kvm::KvmHypervisor::open()?))
}

/// The number that the system's tools show for the calling thread.
pub fn thread_id() -> u64 {
    // SAFETY: gettid takes nothing and cannot fail.
    unsafe { libc::syscall(libc::SYS_gettid) }.unsigned_abs()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_this_host_does_not_have_is_refused_by_its_name() {
        let line = |edit: fn(&mut VmConfig)| {
            let mut config = VmConfig::default();
            edit(&mut config);
            open(&config).err().unwrap().to_string()
        };
        let bhyve = line(|config| config.hypervisor = Some(HypervisorName::Bhyve));
        assert_eq!(bhyve, "hypervisor: bhyve is illumos': this host has kvm");
        let reservoir = line(|config| config.memory.reservoir = true);
        assert_eq!(reservoir, "memory: the reservoir is bhyve's, and kvm takes memory where it is free");
    }
}
