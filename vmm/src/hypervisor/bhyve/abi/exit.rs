//! Entries and exits of [`VM_RUN`](super::VM_RUN) (`usr/src/uts/intel/sys/vmm.h`, `vmm_dev.h` of illumos-gate).

use super::vm_guest_paging;
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout};

// Entry commands (`vm_entry_cmds`).
pub const VEC_DEFAULT: u32 = 0;
pub const VEC_DISCARD_INSTR: u32 = 1;
pub const VEC_FULFILL_MMIO: u32 = 2;
pub const VEC_FULFILL_INOUT: u32 = 3;
pub const VEC_FLAG_EXIT_CONSISTENT: u32 = 0x80000000;

// Exit codes (`vm_exitcode`).
pub const VM_EXITCODE_INOUT: i32 = 0;
pub const VM_EXITCODE_VMX: i32 = 1;
pub const VM_EXITCODE_BOGUS: i32 = 2;
pub const VM_EXITCODE_RDMSR: i32 = 3;
pub const VM_EXITCODE_WRMSR: i32 = 4;
pub const VM_EXITCODE_HLT: i32 = 5;
pub const VM_EXITCODE_MTRAP: i32 = 6;
pub const VM_EXITCODE_PAUSE: i32 = 7;
pub const VM_EXITCODE_PAGING: i32 = 8;
pub const VM_EXITCODE_INST_EMUL: i32 = 9;
pub const VM_EXITCODE_RUN_STATE: i32 = 10;
pub const VM_EXITCODE_MMIO_EMUL: i32 = 11;
pub const VM_EXITCODE_DEPRECATED: i32 = 12;
pub const VM_EXITCODE_IOAPIC_EOI: i32 = 13;
pub const VM_EXITCODE_SUSPENDED: i32 = 14;
pub const VM_EXITCODE_MMIO: i32 = 15;
pub const VM_EXITCODE_TASK_SWITCH: i32 = 16;
pub const VM_EXITCODE_MONITOR: i32 = 17;
pub const VM_EXITCODE_MWAIT: i32 = 18;
pub const VM_EXITCODE_SVM: i32 = 19;
pub const VM_EXITCODE_DEPRECATED2: i32 = 20;
pub const VM_EXITCODE_DEBUG: i32 = 21;
pub const VM_EXITCODE_VMINSN: i32 = 22;
pub const VM_EXITCODE_BPT: i32 = 23;
pub const VM_EXITCODE_HT: i32 = 24;
pub const VM_EXITCODE_MAX: i32 = 25;

// Flags of [`vm_inout`]. The last two never reach the process.
pub const INOUT_IN: u8 = 1;
pub const INOUT_STR_kernel_only: u8 = 2;
pub const INOUT_REP_kernel_only: u8 = 4;

// Reasons of a task switch (`task_switch_reason`).
pub const TSR_CALL: i32 = 0;
pub const TSR_IRET: i32 = 1;
pub const TSR_JMP: i32 = 2;
pub const TSR_IDT_GATE: i32 = 3;

/// A port access, in an exit and in its answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, Immutable, IntoBytes, KnownLayout)]
#[repr(C)]
pub struct vm_inout {
    pub eax: u32,
    pub port: u16,
    pub bytes: u8,
    pub flags: u8,
    pub addrsize: u8,
    pub segment: u8,
    pub _pad0: [u8; 2],
}

/// A memory access, in an exit and in its answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, Immutable, IntoBytes, KnownLayout)]
#[repr(C)]
pub struct vm_mmio {
    pub bytes: u8,
    pub read: u8,
    pub _pad: [u16; 3],
    pub gpa: u64,
    pub data: u64,
}

/// Payload of `VM_EXITCODE_TASK_SWITCH`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, Immutable, IntoBytes, KnownLayout)]
#[repr(C)]
pub struct vm_task_switch {
    pub tsssel: u16,
    pub _pad0: [u8; 2],
    pub ext: i32,
    pub errcode: u32,
    pub errcode_valid: i32,
    pub reason: i32,
    pub _pad1: [u8; 4],
    pub paging: vm_guest_paging,
}

/// Payload of `VM_EXITCODE_PAGING`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, Immutable, IntoBytes, KnownLayout)]
#[repr(C)]
pub struct vm_exit_paging {
    pub gpa: u64,
    pub fault_type: i32,
    pub _pad0: [u8; 4],
}

/// Payload of `VM_EXITCODE_MMIO_EMUL`, which stays in the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, Immutable, IntoBytes, KnownLayout)]
#[repr(C)]
pub struct vm_exit_mmio_emul {
    pub gpa: u64,
    pub gla: u64,
    pub cs_base: u64,
    pub cs_d: i32,
    pub _pad0: [u8; 4],
}

/// Payload of `VM_EXITCODE_INST_EMUL`: the instruction the kernel did not understand.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, Immutable, IntoBytes, KnownLayout)]
#[repr(C)]
pub struct vm_exit_inst_emul {
    pub inst: [u8; 15],
    pub num_valid: u8,
}

/// Payload of `VM_EXITCODE_VMX`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, Immutable, IntoBytes, KnownLayout)]
#[repr(C)]
pub struct vm_exit_vmx {
    pub status: i32,
    pub exit_reason: u32,
    pub exit_qualification: u64,
    pub inst_type: i32,
    pub inst_error: i32,
}

/// Payload of `VM_EXITCODE_SVM`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, Immutable, IntoBytes, KnownLayout)]
#[repr(C)]
pub struct vm_exit_svm {
    pub exitcode: u64,
    pub exitinfo1: u64,
    pub exitinfo2: u64,
}

/// Payload of `VM_EXITCODE_BPT`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, Immutable, IntoBytes, KnownLayout)]
#[repr(C)]
pub struct vm_exit_bpt {
    pub inst_length: i32,
}

/// Payload of `VM_EXITCODE_RDMSR` and `VM_EXITCODE_WRMSR`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, Immutable, IntoBytes, KnownLayout)]
#[repr(C)]
pub struct vm_exit_msr {
    pub code: u32,
    pub _pad0: [u8; 4],
    pub wval: u64,
}

/// Payload of `VM_EXITCODE_HLT`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, Immutable, IntoBytes, KnownLayout)]
#[repr(C)]
pub struct vm_exit_hlt {
    pub rflags: u64,
}

/// Payload of `VM_EXITCODE_IOAPIC_EOI`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, Immutable, IntoBytes, KnownLayout)]
#[repr(C)]
pub struct vm_exit_ioapic_eoi {
    pub vector: i32,
}

/// Payload of `VM_EXITCODE_SUSPENDED`; `when` in nanoseconds since the VM's boot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, Immutable, IntoBytes, KnownLayout)]
#[repr(C)]
pub struct vm_exit_suspended {
    pub how: i32,
    pub source: i32,
    pub when: u64,
}

/// What an exit says, by its code.
#[derive(Clone, Copy, FromZeros, Immutable, KnownLayout)]
#[repr(C)]
pub union vm_exit_union {
    pub inout: vm_inout,
    pub mmio: vm_mmio,
    pub paging: vm_exit_paging,
    pub mmio_emul: vm_exit_mmio_emul,
    pub inst_emul: vm_exit_inst_emul,
    pub vmx: vm_exit_vmx,
    pub svm: vm_exit_svm,
    pub bpt: vm_exit_bpt,
    pub msr: vm_exit_msr,
    pub hlt: vm_exit_hlt,
    pub ioapic_eoi: vm_exit_ioapic_eoi,
    pub suspended: vm_exit_suspended,
    pub task_switch: vm_task_switch,
}

/// An exit. `VM_RUN` writes all 64 bytes.
#[derive(Clone, Copy, FromZeros, Immutable, KnownLayout)]
#[repr(C)]
pub struct vm_exit {
    pub exitcode: i32,
    pub inst_length: i32,
    pub rip: u64,
    pub u: vm_exit_union,
}

/// What an entry answers, by its command.
#[derive(Clone, Copy, FromZeros, Immutable, KnownLayout)]
#[repr(C)]
pub union vm_entry_union {
    pub inout: vm_inout,
    pub mmio: vm_mmio,
}

/// Argument of `VM_RUN`: `exit_data` is the address of a `vm_exit`.
#[derive(Clone, Copy, FromZeros, Immutable, KnownLayout)]
#[repr(C)]
pub struct vm_entry {
    pub cpuid: i32,
    pub cmd: u32,
    pub exit_data: usize,
    pub u: vm_entry_union,
}
