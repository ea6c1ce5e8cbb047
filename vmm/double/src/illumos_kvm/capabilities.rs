//! What KVM_CHECK_EXTENSION says, and what is behind it.

use zvmm::hypervisor::illumos_kvm::abi::cap;

/// The value of a capability and whether a working command stands behind it; `None` for EINVAL.
pub fn value(number: usize) -> Option<(i32, bool)> {
    Some(match number {
        cap::IRQCHIP
        | cap::HLT
        | cap::USER_MEMORY
        | cap::SET_TSS_ADDR
        | cap::EXT_CPUID
        | cap::CLOCKSOURCE
        | cap::PIT
        | cap::NOP_IO_DELAY
        | cap::MP_STATE
        | cap::DESTROY_MEMORY_REGION_WORKS
        | cap::JOIN_MEMORY_REGIONS_WORKS
        | cap::IRQ_INJECT_STATUS
        | cap::PIT2
        | cap::SET_BOOT_CPU_ID
        | cap::PIT_STATE2
        | cap::SET_IDENTITY_MAP_ADDR
        | cap::INTERNAL_ERROR_DATA
        | cap::VCPU_EVENTS => (1, true),
        cap::MMU_SHADOW_CACHE_CONTROL
        | cap::SYNC_MMU
        | cap::REINJECT_CONTROL
        | cap::ASSIGN_DEV_IRQ
        | cap::IOEVENTFD
        | cap::XEN_HVM
        | cap::ADJUST_CLOCK
        | cap::HYPERV
        | cap::HYPERV_VAPIC
        | cap::HYPERV_SPIN
        | cap::PCI_SEGMENT
        | cap::X86_ROBUST_SINGLESTEP => (1, false),
        cap::NR_VCPUS => (64, true),
        cap::NR_MEMSLOTS => (32, true),
        cap::COALESCED_MMIO => (2, true),
        cap::IRQ_ROUTING => (1024, true),
        cap::MCE => (32, true),
        cap::VAPIC | cap::IOMMU => (0, true),
        _ => return None,
    })
}
