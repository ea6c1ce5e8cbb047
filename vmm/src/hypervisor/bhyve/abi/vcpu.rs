//! vCPUs: registers, CPUID, run state (`usr/src/uts/intel/sys/vmm.h`, `vmm_dev.h` of illumos-gate).

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

// The first int of every argument is the vCPU, which is taken out of the guest meanwhile.
pub const VM_RUN: i32 = 0x767001;
pub const VM_SET_REGISTER: i32 = 0x767002;
pub const VM_GET_REGISTER: i32 = 0x767003;
pub const VM_SET_SEGMENT_DESCRIPTOR: i32 = 0x767004;
pub const VM_GET_SEGMENT_DESCRIPTOR: i32 = 0x767005;
pub const VM_SET_REGISTER_SET: i32 = 0x767006;
pub const VM_GET_REGISTER_SET: i32 = 0x767007;
pub const VM_INJECT_EXCEPTION: i32 = 0x767008;
pub const VM_SET_CAPABILITY: i32 = 0x767009;
pub const VM_GET_CAPABILITY: i32 = 0x76700a;
pub const VM_PPTDEV_MSI: i32 = 0x76700b;
pub const VM_PPTDEV_MSIX: i32 = 0x76700c;
pub const VM_SET_X2APIC_STATE: i32 = 0x76700d;
pub const VM_GLA2GPA: i32 = 0x76700e;
pub const VM_GLA2GPA_NOFAULT: i32 = 0x76700f;
pub const VM_ACTIVATE_CPU: i32 = 0x767010;
pub const VM_SET_INTINFO: i32 = 0x767011;
pub const VM_GET_INTINFO: i32 = 0x767012;
pub const VM_RESTART_INSTRUCTION: i32 = 0x767013;
pub const VM_SET_KERNEMU_DEV: i32 = 0x767014;
pub const VM_GET_KERNEMU_DEV: i32 = 0x767015;
pub const VM_RESET_CPU: i32 = 0x767016;
pub const VM_GET_RUN_STATE: i32 = 0x767017;
pub const VM_SET_RUN_STATE: i32 = 0x767018;
pub const VM_GET_FPU: i32 = 0x767019;
pub const VM_SET_FPU: i32 = 0x76701a;
pub const VM_GET_CPUID: i32 = 0x76701b;
pub const VM_SET_CPUID: i32 = 0x76701c;
pub const VM_LEGACY_CPUID: i32 = 0x76701d;

// Registers (`vm_reg_name`).
pub const VM_REG_GUEST_RAX: i32 = 0;
pub const VM_REG_GUEST_RBX: i32 = 1;
pub const VM_REG_GUEST_RCX: i32 = 2;
pub const VM_REG_GUEST_RDX: i32 = 3;
pub const VM_REG_GUEST_RSI: i32 = 4;
pub const VM_REG_GUEST_RDI: i32 = 5;
pub const VM_REG_GUEST_RBP: i32 = 6;
pub const VM_REG_GUEST_R8: i32 = 7;
pub const VM_REG_GUEST_R9: i32 = 8;
pub const VM_REG_GUEST_R10: i32 = 9;
pub const VM_REG_GUEST_R11: i32 = 10;
pub const VM_REG_GUEST_R12: i32 = 11;
pub const VM_REG_GUEST_R13: i32 = 12;
pub const VM_REG_GUEST_R14: i32 = 13;
pub const VM_REG_GUEST_R15: i32 = 14;
pub const VM_REG_GUEST_CR0: i32 = 15;
pub const VM_REG_GUEST_CR3: i32 = 16;
pub const VM_REG_GUEST_CR4: i32 = 17;
pub const VM_REG_GUEST_DR7: i32 = 18;
pub const VM_REG_GUEST_RSP: i32 = 19;
pub const VM_REG_GUEST_RIP: i32 = 20;
pub const VM_REG_GUEST_RFLAGS: i32 = 21;
pub const VM_REG_GUEST_ES: i32 = 22;
pub const VM_REG_GUEST_CS: i32 = 23;
pub const VM_REG_GUEST_SS: i32 = 24;
pub const VM_REG_GUEST_DS: i32 = 25;
pub const VM_REG_GUEST_FS: i32 = 26;
pub const VM_REG_GUEST_GS: i32 = 27;
pub const VM_REG_GUEST_LDTR: i32 = 28;
pub const VM_REG_GUEST_TR: i32 = 29;
pub const VM_REG_GUEST_IDTR: i32 = 30;
pub const VM_REG_GUEST_GDTR: i32 = 31;
pub const VM_REG_GUEST_EFER: i32 = 32;
pub const VM_REG_GUEST_CR2: i32 = 33;
pub const VM_REG_GUEST_PDPTE0: i32 = 34;
pub const VM_REG_GUEST_PDPTE1: i32 = 35;
pub const VM_REG_GUEST_PDPTE2: i32 = 36;
pub const VM_REG_GUEST_PDPTE3: i32 = 37;
pub const VM_REG_GUEST_INTR_SHADOW: i32 = 38;
pub const VM_REG_GUEST_DR0: i32 = 39;
pub const VM_REG_GUEST_DR1: i32 = 40;
pub const VM_REG_GUEST_DR2: i32 = 41;
pub const VM_REG_GUEST_DR3: i32 = 42;
pub const VM_REG_GUEST_DR6: i32 = 43;
pub const VM_REG_GUEST_ENTRY_INST_LENGTH: i32 = 44;
pub const VM_REG_GUEST_XCR0: i32 = 45;
pub const VM_REG_LAST: i32 = 46;

// The access word of [`seg_desc`].
pub const SEG_ACCESS_TYPE_MASK: u32 = 15;
pub const SEG_ACCESS_S: u32 = 16;
pub const SEG_ACCESS_DPL_SHIFT: u32 = 5;
pub const SEG_ACCESS_P: u32 = 128;
pub const SEG_ACCESS_AVL: u32 = 0x1000;
pub const SEG_ACCESS_L: u32 = 0x2000;
pub const SEG_ACCESS_DB: u32 = 0x4000;
pub const SEG_ACCESS_G: u32 = 0x8000;
pub const SEG_ACCESS_UNUSABLE: u32 = 0x10000;

// The word of [`vm_intinfo`].
pub const VM_INTINFO_VECTOR_MASK: u64 = 255;
pub const VM_INTINFO_TYPE_MASK: u64 = 0x700;
pub const VM_INTINFO_HWINTR: u64 = 0;
pub const VM_INTINFO_NMI: u64 = 0x200;
pub const VM_INTINFO_HWEXCP: u64 = 0x300;
pub const VM_INTINFO_SWINTR: u64 = 0x400;
pub const VM_INTINFO_DEL_ERRCODE: u64 = 0x800;
pub const VM_INTINFO_RSVD_MASK: u64 = 0x7ffff000;
pub const VM_INTINFO_VALID: u64 = 0x80000000;
pub const VM_INTINFO_ERRCODE_SHIFT: u32 = 32;

// CPUID tables.
pub const VCC_FLAG_LEGACY_HANDLING: u32 = 1;
pub const VCC_FLAG_INTEL_FALLBACK: u32 = 2;
pub const VCE_FLAG_MATCH_INDEX: u32 = 1;
pub const VMM_MAX_CPUID_ENTRIES: usize = 0x100;

// Sizes.
pub const VM_FPU_AREA_MAX: usize = 0x2000;
pub const VM_FPU_DESC_MAX_ENTRIES: usize = 64;

// Capabilities (`vm_cap_type`).
pub const VM_CAP_HALT_EXIT: i32 = 0;
pub const VM_CAP_MTRAP_EXIT: i32 = 1;
pub const VM_CAP_PAUSE_EXIT: i32 = 2;
pub const VM_CAP_ENABLE_INVPCID: i32 = 3;
pub const VM_CAP_BPT_EXIT: i32 = 4;

// Processor modes (`vm_cpu_mode`).
pub const CPU_MODE_REAL: i32 = 0;
pub const CPU_MODE_PROTECTED: i32 = 1;
pub const CPU_MODE_COMPATIBILITY: i32 = 2;
pub const CPU_MODE_64BIT: i32 = 3;

// Paging modes (`vm_paging_mode`).
pub const PAGING_MODE_FLAT: i32 = 0;
pub const PAGING_MODE_32: i32 = 1;
pub const PAGING_MODE_PAE: i32 = 2;
pub const PAGING_MODE_64: i32 = 3;

// Whether the x2APIC can be switched on (`x2apic_state`).
pub const X2APIC_DISABLED: i32 = 0;
pub const X2APIC_ENABLED: i32 = 1;

// Kinds of reset (`vcpu_reset_kind`).
pub const VRK_RESET: u32 = 0;
pub const VRK_INIT: u32 = 1;

// Run states (`vcpu_run_state`).
pub const VRS_HALT: u32 = 0;
pub const VRS_INIT: u32 = 1;
pub const VRS_RUN: u32 = 2;
pub const VRS_PEND_INIT: u32 = 0x4000;
pub const VRS_PEND_SIPI: u32 = 0x8000;

// Sets of vCPUs (`vm_cpuset_which`).
pub const VM_ACTIVE_CPUS: i32 = 0;
pub const VM_SUSPENDED_CPUS_deprecated: i32 = 1;
pub const VM_DEBUG_CPUS: i32 = 2;

/// One register of one vCPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, Immutable, IntoBytes, KnownLayout)]
#[repr(C)]
pub struct vm_register {
    pub cpuid: i32,
    pub regnum: i32,
    pub regval: u64,
}

/// Several registers of one vCPU: addresses of `count` numbers (i32) and `count` values (u64).
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, Immutable, IntoBytes, KnownLayout)]
#[repr(C)]
pub struct vm_register_set {
    pub cpuid: i32,
    pub count: u32,
    pub regnums: usize,
    pub regvals: usize,
}

/// The hidden part of a segment register; `access` as in VMX.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, Immutable, IntoBytes, KnownLayout)]
#[repr(C)]
pub struct seg_desc {
    pub base: u64,
    pub limit: u32,
    pub access: u32,
}

/// The hidden part of one segment register of one vCPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, Immutable, IntoBytes, KnownLayout)]
#[repr(C)]
pub struct vm_seg_desc {
    pub cpuid: i32,
    pub regnum: i32,
    pub desc: seg_desc,
}

/// Argument of `VM_INJECT_EXCEPTION`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, Immutable, IntoBytes, KnownLayout)]
#[repr(C)]
pub struct vm_exception {
    pub cpuid: i32,
    pub vector: i32,
    pub error_code: u32,
    pub error_code_valid: i32,
    pub restart_instruction: i32,
}

/// Argument of `VM_SET_CAPABILITY` and `VM_GET_CAPABILITY`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, Immutable, IntoBytes, KnownLayout)]
#[repr(C)]
pub struct vm_capability {
    pub cpuid: i32,
    pub captype: i32,
    pub capval: i32,
    pub allcpus: i32,
}

/// Argument of `VM_INJECT_NMI`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, Immutable, IntoBytes, KnownLayout)]
#[repr(C)]
pub struct vm_nmi {
    pub cpuid: i32,
}

/// Argument of `VM_SET_X2APIC_STATE`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, Immutable, IntoBytes, KnownLayout)]
#[repr(C)]
pub struct vm_x2apic {
    pub cpuid: i32,
    pub state: i32,
}

/// How the guest translates addresses, for `VM_GLA2GPA`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, Immutable, IntoBytes, KnownLayout)]
#[repr(C)]
pub struct vm_guest_paging {
    pub cr3: u64,
    pub cpl: i32,
    pub cpu_mode: i32,
    pub paging_mode: i32,
    pub _pad0: [u8; 4],
}

/// Argument and answer of `VM_GLA2GPA`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, Immutable, IntoBytes, KnownLayout)]
#[repr(C)]
pub struct vm_gla2gpa {
    pub vcpuid: i32,
    pub prot: i32,
    pub gla: u64,
    pub paging: vm_guest_paging,
    pub fault: i32,
    pub _pad0: [u8; 4],
    pub gpa: u64,
}

/// Argument of `VM_ACTIVATE_CPU`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, Immutable, IntoBytes, KnownLayout)]
#[repr(C)]
pub struct vm_activate_cpu {
    pub vcpuid: i32,
}

/// Argument of `VM_GET_CPUS`: address and bytes of a bitmap.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, Immutable, IntoBytes, KnownLayout)]
#[repr(C)]
pub struct vm_cpuset {
    pub which: i32,
    pub cpusetsize: i32,
    pub cpus: usize,
}

/// An event being delivered, `VM_INTINFO_*`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, Immutable, IntoBytes, KnownLayout)]
#[repr(C)]
pub struct vm_intinfo {
    pub vcpuid: i32,
    pub _pad0: [u8; 4],
    pub info1: u64,
    pub info2: u64,
}

/// Argument of `VM_SET_TOPOLOGY`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, Immutable, IntoBytes, KnownLayout)]
#[repr(C)]
pub struct vm_cpu_topology {
    pub sockets: u16,
    pub cores: u16,
    pub threads: u16,
    pub maxcpus: u16,
}

/// Argument of `VM_RESET_CPU`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, Immutable, IntoBytes, KnownLayout)]
#[repr(C)]
pub struct vm_vcpu_reset {
    pub vcpuid: i32,
    pub kind: u32,
}

/// Argument of `VM_SET_RUN_STATE`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, Immutable, IntoBytes, KnownLayout)]
#[repr(C)]
pub struct vm_run_state {
    pub vcpuid: i32,
    pub state: u32,
    pub sipi_vector: u8,
    pub _pad: [u8; 3],
}

/// Argument of `VM_SET_FPU`: an XSAVE area in standard format.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, Immutable, IntoBytes, KnownLayout)]
#[repr(C)]
pub struct vm_fpu_state {
    pub vcpuid: i32,
    pub _pad0: [u8; 4],
    pub buf: usize,
    pub len: usize,
}

/// One component of the XSAVE area.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, Immutable, IntoBytes, KnownLayout)]
#[repr(C)]
pub struct vm_fpu_desc_entry {
    pub vfde_feature: u64,
    pub vfde_size: u32,
    pub vfde_off: u32,
}

/// Argument and answer of `VM_DESC_FPU_AREA`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, Immutable, IntoBytes, KnownLayout)]
#[repr(C)]
pub struct vm_fpu_desc {
    pub vfd_entry_data: usize,
    pub vfd_req_size: usize,
    pub vfd_num_entries: u32,
    pub _pad0: [u8; 4],
}

/// One CPUID answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, Immutable, IntoBytes, KnownLayout)]
#[repr(C)]
pub struct vcpu_cpuid_entry {
    pub vce_function: u32,
    pub vce_index: u32,
    pub vce_flags: u32,
    pub vce_eax: u32,
    pub vce_ebx: u32,
    pub vce_ecx: u32,
    pub vce_edx: u32,
    pub _pad: u32,
}

/// Argument of `VM_SET_CPUID`: address and number of `vcpu_cpuid_entry`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, Immutable, IntoBytes, KnownLayout)]
#[repr(C)]
pub struct vm_vcpu_cpuid_config {
    pub vvcc_vcpuid: i32,
    pub vvcc_flags: u32,
    pub vvcc_nent: u32,
    pub _pad: u32,
    pub vvcc_entries: usize,
}

/// Argument and answer of `VM_LEGACY_CPUID`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, Immutable, IntoBytes, KnownLayout)]
#[repr(C)]
pub struct vm_legacy_cpuid {
    pub vlc_vcpuid: i32,
    pub vlc_eax: u32,
    pub vlc_ebx: u32,
    pub vlc_ecx: u32,
    pub vlc_edx: u32,
}
