//! The interface of illumos' `/dev/kvm` (`sys/kvm.h`, `sys/kvm_x86.h` of illumos-kvm), name for name.
//!
//! It looks like Linux' and is not: an ioctl number carries 8 bits of the size instead of 14, with the directions the
//! other way round, several structures are larger, and the object model differs. Nothing here may be shared with Linux
//! KVM.
//!
//! Members of C's anonymous unions lie below a field `u` here, which C has not: `kvm_run.io` is `kvm_run.u.io`.

#![allow(non_camel_case_types, missing_docs, reason = "the names are the C header's, which documents them")]

pub mod dlpi;
mod structs;
pub mod vnd;

pub use structs::*;

pub const KVM_GET_API_VERSION: i32 = 0x2000_ae00_u32 as i32;
pub const KVM_CREATE_VM: i32 = 0x2000_ae01_u32 as i32;
pub const KVM_GET_MSR_INDEX_LIST: i32 = 0xc008_ae02_u32 as i32;
pub const KVM_CLONE: i32 = 0x2000_ae20_u32 as i32;
pub const KVM_CHECK_EXTENSION: i32 = 0x2000_ae03_u32 as i32;
pub const KVM_GET_VCPU_MMAP_SIZE: i32 = 0x2000_ae04_u32 as i32;
pub const KVM_GET_SUPPORTED_CPUID: i32 = 0xc008_ae05_u32 as i32;
pub const KVM_CREATE_VCPU: i32 = 0x2000_ae41_u32 as i32;
pub const KVM_GET_DIRTY_LOG: i32 = 0x8010_ae42_u32 as i32;
pub const KVM_SET_NR_MMU_PAGES: i32 = 0x2000_ae44_u32 as i32;
pub const KVM_GET_NR_MMU_PAGES: i32 = 0x2000_ae45_u32 as i32;
pub const KVM_SET_USER_MEMORY_REGION: i32 = 0x8020_ae46_u32 as i32;
pub const KVM_SET_TSS_ADDR: i32 = 0x2000_ae47_u32 as i32;
pub const KVM_SET_IDENTITY_MAP_ADDR: i32 = 0x8008_ae48_u32 as i32;
pub const KVM_CREATE_IRQCHIP: i32 = 0x2000_ae60_u32 as i32;
pub const KVM_IRQ_LINE: i32 = 0x8008_ae61_u32 as i32;
pub const KVM_GET_IRQCHIP: i32 = 0xc008_ae62_u32 as i32;
pub const KVM_SET_IRQCHIP: i32 = 0x4008_ae63_u32 as i32;
pub const KVM_CREATE_PIT: i32 = 0x2000_ae64_u32 as i32;
pub const KVM_GET_PIT: i32 = 0xc048_ae65_u32 as i32;
pub const KVM_SET_PIT: i32 = 0x4048_ae66_u32 as i32;
pub const KVM_IRQ_LINE_STATUS: i32 = 0xc008_ae67_u32 as i32;
pub const KVM_REGISTER_COALESCED_MMIO: i32 = 0x8010_ae67_u32 as i32;
pub const KVM_UNREGISTER_COALESCED_MMIO: i32 = 0x8010_ae68_u32 as i32;
pub const KVM_SET_GSI_ROUTING: i32 = 0x8038_ae6a_u32 as i32;
pub const KVM_REINJECT_CONTROL: i32 = 0x2000_ae71_u32 as i32;
pub const KVM_CREATE_PIT2: i32 = 0x8040_ae77_u32 as i32;
pub const KVM_SET_BOOT_CPU_ID: i32 = 0x2000_ae78_u32 as i32;
pub const KVM_SET_CLOCK: i32 = 0x8030_ae7b_u32 as i32;
pub const KVM_GET_CLOCK: i32 = 0x4030_ae7c_u32 as i32;
pub const KVM_GET_PIT2: i32 = 0x4070_ae9f_u32 as i32;
pub const KVM_SET_PIT2: i32 = 0x8070_aea0_u32 as i32;
pub const KVM_RUN: i32 = 0x2000_ae80_u32 as i32;
pub const KVM_GET_REGS: i32 = 0x4090_ae81_u32 as i32;
pub const KVM_SET_REGS: i32 = 0x8090_ae82_u32 as i32;
pub const KVM_GET_SREGS: i32 = 0x4038_ae83_u32 as i32;
pub const KVM_SET_SREGS: i32 = 0x8038_ae84_u32 as i32;
pub const KVM_INTERRUPT: i32 = 0x8004_ae86_u32 as i32;
pub const KVM_GET_MSRS: i32 = 0xc048_ae88_u32 as i32;
pub const KVM_SET_MSRS: i32 = 0x8048_ae89_u32 as i32;
pub const KVM_SET_CPUID: i32 = 0x8068_ae8a_u32 as i32;
pub const KVM_SET_SIGNAL_MASK: i32 = 0x8008_ae8b_u32 as i32;
pub const KVM_GET_FPU: i32 = 0x40a0_ae8c_u32 as i32;
pub const KVM_SET_FPU: i32 = 0x80a0_ae8d_u32 as i32;
pub const KVM_GET_LAPIC: i32 = 0x4000_ae8e_u32 as i32;
pub const KVM_SET_LAPIC: i32 = 0x8000_ae8f_u32 as i32;
pub const KVM_SET_CPUID2: i32 = 0x8008_ae90_u32 as i32;
pub const KVM_GET_CPUID2: i32 = 0xc008_ae91_u32 as i32;
pub const KVM_TPR_ACCESS_REPORTING: i32 = 0xc028_ae92_u32 as i32;
pub const KVM_SET_VAPIC_ADDR: i32 = 0x8008_ae93_u32 as i32;
pub const KVM_GET_MP_STATE: i32 = 0x4004_ae98_u32 as i32;
pub const KVM_SET_MP_STATE: i32 = 0x8004_ae99_u32 as i32;
pub const KVM_NMI: i32 = 0x2000_ae9a_u32 as i32;
pub const KVM_X86_SETUP_MCE: i32 = 0x8008_ae9c_u32 as i32;
pub const KVM_X86_GET_MCE_CAP_SUPPORTED: i32 = 0x4008_ae9d_u32 as i32;
pub const KVM_X86_SET_MCE: i32 = 0x8040_ae9e_u32 as i32;
pub const KVM_GET_VCPU_EVENTS: i32 = 0x4040_ae9f_u32 as i32;
pub const KVM_SET_VCPU_EVENTS: i32 = 0x8040_aea0_u32 as i32;

/// Why KVM_RUN returned (`exit_reason`).
pub mod exit {
    pub const UNKNOWN: u32 = 0;
    pub const EXCEPTION: u32 = 1;
    pub const IO: u32 = 2;
    pub const HYPERCALL: u32 = 3;
    pub const DEBUG: u32 = 4;
    pub const HLT: u32 = 5;
    pub const MMIO: u32 = 6;
    pub const IRQ_WINDOW_OPEN: u32 = 7;
    pub const SHUTDOWN: u32 = 8;
    pub const FAIL_ENTRY: u32 = 9;
    pub const INTR: u32 = 10;
    pub const SET_TPR: u32 = 11;
    pub const TPR_ACCESS: u32 = 12;
    pub const S390_SIEIC: u32 = 13;
    pub const S390_RESET: u32 = 14;
    pub const DCR: u32 = 15;
    pub const NMI: u32 = 16;
    pub const INTERNAL_ERROR: u32 = 17;
}

/// What KVM_CHECK_EXTENSION may be asked for.
pub mod cap {
    pub const IRQCHIP: usize = 0;
    pub const HLT: usize = 1;
    pub const MMU_SHADOW_CACHE_CONTROL: usize = 2;
    pub const USER_MEMORY: usize = 3;
    pub const SET_TSS_ADDR: usize = 4;
    pub const VAPIC: usize = 6;
    pub const EXT_CPUID: usize = 7;
    pub const CLOCKSOURCE: usize = 8;
    pub const NR_VCPUS: usize = 9;
    pub const NR_MEMSLOTS: usize = 10;
    pub const PIT: usize = 11;
    pub const NOP_IO_DELAY: usize = 12;
    pub const MP_STATE: usize = 14;
    pub const COALESCED_MMIO: usize = 15;
    pub const SYNC_MMU: usize = 16;
    pub const IOMMU: usize = 18;
    pub const DESTROY_MEMORY_REGION_WORKS: usize = 21;
    pub const USER_NMI: usize = 22;
    pub const REINJECT_CONTROL: usize = 24;
    pub const IRQ_ROUTING: usize = 25;
    pub const IRQ_INJECT_STATUS: usize = 26;
    pub const ASSIGN_DEV_IRQ: usize = 29;
    pub const JOIN_MEMORY_REGIONS_WORKS: usize = 30;
    pub const MCE: usize = 31;
    pub const PIT2: usize = 33;
    pub const SET_BOOT_CPU_ID: usize = 34;
    pub const PIT_STATE2: usize = 35;
    pub const IOEVENTFD: usize = 36;
    pub const SET_IDENTITY_MAP_ADDR: usize = 37;
    pub const XEN_HVM: usize = 38;
    pub const ADJUST_CLOCK: usize = 39;
    pub const INTERNAL_ERROR_DATA: usize = 40;
    pub const VCPU_EVENTS: usize = 41;
    pub const HYPERV: usize = 44;
    pub const HYPERV_VAPIC: usize = 45;
    pub const HYPERV_SPIN: usize = 46;
    pub const PCI_SEGMENT: usize = 47;
    pub const X86_ROBUST_SINGLESTEP: usize = 51;
}

pub const KVM_API_VERSION: i32 = 12;
pub const KVM_MAX_VCPUS: usize = 64;
pub const KVM_MEMORY_SLOTS: usize = 32;
pub const KVM_PRIVATE_MEM_SLOTS: usize = 4;
pub const KVM_MAX_IRQ_ROUTES: usize = 1024;
pub const KVM_MAX_CPUID_ENTRIES: usize = 40;
pub const KVM_MAX_MCE_BANKS: usize = 32;
pub const KVM_COALESCED_MMIO_PAGE_OFFSET: usize = 2;
pub const KVM_COALESCED_MMIO_ZONE_MAX: usize = 100;
/// What a vCPU's descriptor maps: exactly this much from offset 0.
pub const KVM_VCPU_MMAP_BYTES: usize = 12288;
/// Where port data lies in that mapping.
pub const KVM_PIO_PAGE_OFFSET: usize = 1;

pub const KVM_MEM_LOG_DIRTY_PAGES: u32 = 1;

pub const KVM_IRQCHIP_PIC_MASTER: u32 = 0;
pub const KVM_IRQCHIP_PIC_SLAVE: u32 = 1;
pub const KVM_IRQCHIP_IOAPIC: u32 = 2;

pub const KVM_IRQ_ROUTING_IRQCHIP: u32 = 1;
pub const KVM_IRQ_ROUTING_MSI: u32 = 2;

pub const KVM_IOAPIC_NUM_PINS: usize = 24;

pub const KVM_EXIT_IO_IN: u8 = 0;
pub const KVM_EXIT_IO_OUT: u8 = 1;

pub const KVM_INTERNAL_ERROR_EMULATION: u32 = 1;
pub const KVM_INTERNAL_ERROR_SIMUL_EX: u32 = 2;

pub const KVM_MP_STATE_RUNNABLE: u32 = 0;
pub const KVM_MP_STATE_UNINITIALIZED: u32 = 1;
pub const KVM_MP_STATE_INIT_RECEIVED: u32 = 2;
pub const KVM_MP_STATE_HALTED: u32 = 3;
pub const KVM_MP_STATE_SIPI_RECEIVED: u32 = 4;

pub const KVM_PIT_SPEAKER_DUMMY: u32 = 1;

pub const KVM_CPUID_FLAG_SIGNIFCANT_INDEX: u32 = 1;

pub const KVM_VCPUEVENT_VALID_NMI_PENDING: u32 = 1;
pub const KVM_VCPUEVENT_VALID_SIPI_VECTOR: u32 = 2;
