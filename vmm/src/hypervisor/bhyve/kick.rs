//! Getting a vCPU out of the guest.
//!
//! The barrier alone reaches a vCPU that runs or is about to enter; it finds no vCPU that is inactive (between a reset of
//! the VM and its own). The flag finds every one that will enter later. Both together cannot be lost.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::abi;
use super::vmfd::VmFd;
use crate::hypervisor::Kick;

/// How other threads reach one vCPU.
pub struct BhyveKick {
    fd: Arc<VmFd>,
    vcpu: i32,
    wanted: AtomicBool,
}

impl BhyveKick {
    /// A kick for one vCPU.
    pub fn new(fd: Arc<VmFd>, vcpu: i32) -> Arc<Self> {
        Arc::new(Self { fd, vcpu, wanted: AtomicBool::new(false) })
    }

    /// Whether somebody kicked since the last call. Whoever takes a kick must look at the control state afterwards.
    pub fn take(&self) -> bool {
        self.wanted.swap(false, Ordering::SeqCst)
    }
}

impl Kick for BhyveKick {
    fn kick(&self) {
        self.wanted.store(true, Ordering::SeqCst);
        let Err(error) = self.fd.barrier(self.vcpu) else { return };
        // Looking at a register takes a running vCPU out, too, and misses only one that is just about to enter.
        if self.fd.registers(self.vcpu, &[abi::VM_REG_GUEST_RIP]).is_err() {
            log::error!("bhyve: vcpu{}: {error}", self.vcpu);
        }
    }
}
