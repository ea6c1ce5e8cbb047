//! Read-only memory slots.

use std::sync::{Mutex, PoisonError};

use kvm_bindings::{KVM_MEM_READONLY, kvm_userspace_memory_region};
use kvm_ioctls::{Cap, VmFd};
use vm_memory::MmapRegion;

use super::{HypervisorError, NAME, call};

/// The ROMs of one VM. Their memory stays mapped as long as the VM has slots that point to it.
pub struct Roms {
    first_slot: u32,
    mapped: Mutex<Vec<MmapRegion>>,
}

impl Roms {
    /// No ROM yet; the slots below `ram_slots` are the RAM's.
    pub fn after(ram_slots: usize) -> Self {
        Self { first_slot: u32::try_from(ram_slots).unwrap_or(u32::MAX), mapped: Mutex::default() }
    }

    /// Maps a copy of `image` at `gpa`. KVM turns the guest's writes into memory-mapped writes.
    pub fn add(&self, vm: &VmFd, gpa: u64, image: &[u8]) -> Result<(), HypervisorError> {
        if !vm.check_extension(Cap::ReadonlyMem) {
            let (capability, purpose) = ("KVM_CAP_READONLY_MEM", "firmware ROMs");
            return Err(HypervisorError::MissingCapability { hypervisor: NAME, capability, purpose });
        }
        let memory = MmapRegion::new(image.len()).map_err(|error| HypervisorError::Memory(format!("ROM: {error}")))?;
        // SAFETY: both ranges are `image.len()` bytes long, and nobody else knows the new mapping yet.
        unsafe { std::ptr::copy_nonoverlapping(image.as_ptr(), memory.as_ptr(), image.len()) };
        let mut mapped = self.mapped.lock().unwrap_or_else(PoisonError::into_inner);
        let slot = kvm_userspace_memory_region {
            slot: self.first_slot.saturating_add(mapped.len() as u32),
            flags: KVM_MEM_READONLY,
            guest_phys_addr: gpa,
            memory_size: image.len() as u64,
            userspace_addr: memory.as_ptr() as u64,
        };
        // SAFETY: the mapping is kept by `self`, which the VM owns beside its descriptor, and is never written again.
        unsafe { vm.set_user_memory_region(slot) }.map_err(|error| call("KVM_SET_USER_MEMORY_REGION", error))?;
        mapped.push(memory);
        Ok(())
    }
}
