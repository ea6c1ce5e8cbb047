//! The structures.

use super::KVM_IOAPIC_NUM_PINS;

#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct kvm_memory_region {
    pub slot: u32,
    pub flags: u32,
    pub guest_phys_addr: u64,
    pub memory_size: u64,
}

#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct kvm_userspace_memory_region {
    pub slot: u32,
    pub flags: u32,
    pub guest_phys_addr: u64,
    pub memory_size: u64,
    pub userspace_addr: u64,
}

/// The anonymous union of [`kvm_irq_level`].
#[repr(C)]
#[derive(Clone, Copy)]
pub union kvm_irq_level_u {
    pub irq: u32,
    pub status: i32,
}

#[repr(C)]
#[derive(Clone, Copy)]
pub struct kvm_irq_level {
    pub u: kvm_irq_level_u,
    pub level: u32,
}

#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct kvm_pic_state {
    pub last_irr: u8,
    pub irr: u8,
    pub imr: u8,
    pub isr: u8,
    pub priority_add: u8,
    pub irq_base: u8,
    pub read_reg_select: u8,
    pub poll: u8,
    pub special_mask: u8,
    pub init_state: u8,
    pub auto_eoi: u8,
    pub rotate_on_auto_eoi: u8,
    pub special_fully_nested_mode: u8,
    pub init4: u8,
    pub elcr: u8,
    pub elcr_mask: u8,
}

/// A redirection entry by fields; `bits` holds the bit fields from `delivery_mode` to `mask`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct kvm_ioapic_redirect_fields {
    pub vector: u8,
    pub bits: [u8; 2],
    pub reserved: [u8; 4],
    pub dest_id: u8,
}

#[repr(C)]
#[derive(Clone, Copy)]
pub union kvm_ioapic_redirect {
    pub bits: u64,
    pub fields: kvm_ioapic_redirect_fields,
}

#[repr(C)]
#[derive(Clone, Copy)]
pub struct kvm_ioapic_state {
    pub base_address: u64,
    pub ioregsel: u32,
    pub id: u32,
    pub irr: u32,
    pub pad: u32,
    pub redirtbl: [kvm_ioapic_redirect; KVM_IOAPIC_NUM_PINS],
}

#[repr(C)]
#[derive(Clone, Copy)]
pub union kvm_irqchip_chip {
    pub dummy: [u8; 512],
    pub pic: kvm_pic_state,
    pub ioapic: kvm_ioapic_state,
}

#[repr(C)]
#[derive(Clone, Copy)]
pub struct kvm_irqchip {
    pub chip_id: u32,
    pub pad: u32,
    pub chip: kvm_irqchip_chip,
}

#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct kvm_pit_config {
    pub flags: u32,
    pub pad: [u32; 15],
}

#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct kvm_debug_exit_arch {
    pub exception: u32,
    pub pad: u32,
    pub pc: u64,
    pub dr6: u64,
    pub dr7: u64,
}

#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct kvm_run_hw {
    pub hardware_exit_reason: u64,
}

#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct kvm_run_fail_entry {
    pub hardware_entry_failure_reason: u64,
}

#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct kvm_run_ex {
    pub exception: u32,
    pub error_code: u32,
}

#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct kvm_run_io {
    pub direction: u8,
    pub size: u8,
    pub port: u16,
    pub count: u32,
    pub data_offset: u64,
}

#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct kvm_run_debug {
    pub arch: kvm_debug_exit_arch,
}

#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct kvm_run_mmio {
    pub phys_addr: u64,
    pub data: [u8; 8],
    pub len: u32,
    pub is_write: u8,
}

#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct kvm_run_hypercall {
    pub nr: u64,
    pub args: [u64; 6],
    pub ret: u64,
    pub longmode: u32,
    pub pad: u32,
}

#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct kvm_run_tpr_access {
    pub rip: u64,
    pub is_write: u32,
    pub pad: u32,
}

#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct kvm_run_dcr {
    pub dcrn: u32,
    pub data: u32,
    pub is_write: u8,
}

#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct kvm_run_internal {
    pub suberror: u32,
    pub ndata: u32,
    pub data: [u64; 16],
}

/// The anonymous union of [`kvm_run`]; `exit_reason` says which member is filled.
#[repr(C)]
#[derive(Clone, Copy)]
pub union kvm_run_u {
    pub hw: kvm_run_hw,
    pub fail_entry: kvm_run_fail_entry,
    pub ex: kvm_run_ex,
    pub io: kvm_run_io,
    pub debug: kvm_run_debug,
    pub mmio: kvm_run_mmio,
    pub hypercall: kvm_run_hypercall,
    pub tpr_access: kvm_run_tpr_access,
    pub dcr: kvm_run_dcr,
    pub internal: kvm_run_internal,
    pub padding: [u8; 256],
}

/// First page of a vCPU's mapping.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct kvm_run {
    pub request_interrupt_window: u8,
    pub padding1: [u8; 7],
    pub exit_reason: u32,
    pub ready_for_interrupt_injection: u8,
    pub if_flag: u8,
    pub padding2: [u8; 2],
    pub cr8: u64,
    pub apic_base: u64,
    pub u: kvm_run_u,
}

#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct kvm_coalesced_mmio_zone {
    pub addr: u64,
    pub size: u32,
    pub pad: u32,
}

#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct kvm_coalesced_mmio {
    pub phys_addr: u64,
    pub len: u32,
    pub pad: u32,
    pub data: [u8; 8],
}

#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct kvm_coalesced_mmio_ring {
    pub first: u32,
    pub last: u32,
    pub coalesced_mmio: [kvm_coalesced_mmio; 1],
}

#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct kvm_interrupt {
    pub irq: u32,
}

/// The anonymous union of [`kvm_dirty_log`].
#[repr(C)]
#[derive(Clone, Copy)]
pub union kvm_dirty_log_u {
    pub dirty_bitmap: u64,
    pub padding2: u64,
}

#[repr(C)]
#[derive(Clone, Copy)]
pub struct kvm_dirty_log {
    pub slot: u32,
    pub padding1: u32,
    pub u: kvm_dirty_log_u,
}

/// The mask itself starts at `sigset` and is 16 bytes long: see [`illumos_sigset`].
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct kvm_signal_mask {
    pub len: u32,
    pub sigset: [u8; 1],
    pub padding: [u8; 3],
}

#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct kvm_tpr_access_ctl {
    pub enabled: u32,
    pub flags: u32,
    pub reserved: [u32; 8],
}

#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct kvm_vapic_addr {
    pub vapic_addr: u64,
}

#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct kvm_mp_state {
    pub mp_state: u32,
}

#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct kvm_guest_debug_arch {
    pub debugreg: [u64; 8],
}

#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct kvm_guest_debug {
    pub control: u32,
    pub pad: u32,
    pub arch: kvm_guest_debug_arch,
}

#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct kvm_irq_routing_irqchip {
    pub irqchip: u32,
    pub pin: u32,
}

#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct kvm_irq_routing_msi {
    pub address_lo: u32,
    pub address_hi: u32,
    pub data: u32,
    pub pad: u32,
}

#[repr(C)]
#[derive(Clone, Copy)]
pub union kvm_irq_routing_entry_u {
    pub irqchip: kvm_irq_routing_irqchip,
    pub msi: kvm_irq_routing_msi,
    pub pad: [u32; 8],
}

#[repr(C)]
#[derive(Clone, Copy)]
pub struct kvm_irq_routing_entry {
    pub gsi: u32,
    pub r#type: u32,
    pub flags: u32,
    pub pad: u32,
    pub u: kvm_irq_routing_entry_u,
}

/// `nr` entries start at `entries`, whose length of 1 is C's old way of saying so.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct kvm_irq_routing {
    pub nr: u32,
    pub flags: u32,
    pub entries: [kvm_irq_routing_entry; 1],
}

#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct kvm_x86_mce {
    pub status: u64,
    pub addr: u64,
    pub misc: u64,
    pub mcg_status: u64,
    pub bank: u8,
    pub pad1: [u8; 7],
    pub pad2: [u64; 3],
}

#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct kvm_clock_data {
    pub clock: u64,
    pub flags: u32,
    pub pad: [u32; 9],
}

#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct kvm_regs {
    pub rax: u64,
    pub rbx: u64,
    pub rcx: u64,
    pub rdx: u64,
    pub rsi: u64,
    pub rdi: u64,
    pub rsp: u64,
    pub rbp: u64,
    pub r8: u64,
    pub r9: u64,
    pub r10: u64,
    pub r11: u64,
    pub r12: u64,
    pub r13: u64,
    pub r14: u64,
    pub r15: u64,
    pub rip: u64,
    pub rflags: u64,
}

#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct kvm_lapic_state {
    pub regs: [u8; 1024],
}

#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct kvm_segment {
    pub base: u64,
    pub limit: u32,
    pub selector: u16,
    pub r#type: u8,
    pub present: u8,
    pub dpl: u8,
    pub db: u8,
    pub s: u8,
    pub l: u8,
    pub g: u8,
    pub avl: u8,
    pub unusable: u8,
    pub padding: u8,
}

#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct kvm_dtable {
    pub base: u64,
    pub limit: u16,
    pub padding: [u16; 3],
}

#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct kvm_sregs {
    pub cs: kvm_segment,
    pub ds: kvm_segment,
    pub es: kvm_segment,
    pub fs: kvm_segment,
    pub gs: kvm_segment,
    pub ss: kvm_segment,
    pub tr: kvm_segment,
    pub ldt: kvm_segment,
    pub gdt: kvm_dtable,
    pub idt: kvm_dtable,
    pub cr0: u64,
    pub cr2: u64,
    pub cr3: u64,
    pub cr4: u64,
    pub cr8: u64,
    pub efer: u64,
    pub apic_base: u64,
    pub interrupt_bitmap: [u64; 4],
}

#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct kvm_fpu {
    pub fpr: [[u8; 16]; 8],
    pub fcw: u16,
    pub fsw: u16,
    pub ftwx: u8,
    pub pad1: u8,
    pub last_opcode: u16,
    pub last_ip: u64,
    pub last_dp: u64,
    pub xmm: [[u8; 16]; 16],
    pub mxcsr: u32,
    pub pad2: u32,
}

#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct kvm_msr_entry {
    pub index: u32,
    pub reserved: u32,
    pub data: u64,
}

/// The kernel copies all of it, whatever `nmsrs` says.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct kvm_msrs {
    pub nmsrs: u32,
    pub pad: u32,
    pub entries: [kvm_msr_entry; 100],
}

#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct kvm_msr_list {
    pub nmsrs: u32,
    pub indices: [u32; 1],
}

#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct kvm_cpuid_entry {
    pub function: u32,
    pub eax: u32,
    pub ebx: u32,
    pub ecx: u32,
    pub edx: u32,
    pub padding: u32,
}

#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct kvm_cpuid {
    pub nent: u32,
    pub padding: u32,
    pub entries: [kvm_cpuid_entry; 100],
}

#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct kvm_cpuid_entry2 {
    pub function: u32,
    pub index: u32,
    pub flags: u32,
    pub eax: u32,
    pub ebx: u32,
    pub ecx: u32,
    pub edx: u32,
    pub padding: [u32; 3],
}

/// `nent` entries follow.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct kvm_cpuid2 {
    pub nent: u32,
    pub padding: u32,
    pub entries: [kvm_cpuid_entry2; 0],
}

#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct kvm_pit_channel_state {
    pub count: u32,
    pub latched_count: u16,
    pub count_latched: u8,
    pub status_latched: u8,
    pub status: u8,
    pub read_state: u8,
    pub write_state: u8,
    pub write_latch: u8,
    pub rw_mode: u8,
    pub mode: u8,
    pub bcd: u8,
    pub gate: u8,
    pub count_load_time: i64,
}

#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct kvm_pit_state {
    pub channels: [kvm_pit_channel_state; 3],
}

#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct kvm_pit_state2 {
    pub channels: [kvm_pit_channel_state; 3],
    pub flags: u32,
    pub reserved: [u32; 9],
}

#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct kvm_reinject_control {
    pub pit_reinject: u8,
    pub reserved: [u8; 31],
}

#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct kvm_vcpu_events_exception {
    pub injected: u8,
    pub nr: u8,
    pub has_error_code: u8,
    pub pad: u8,
    pub error_code: u32,
}

#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct kvm_vcpu_events_interrupt {
    pub injected: u8,
    pub nr: u8,
    pub soft: u8,
    pub pad: u8,
}

#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct kvm_vcpu_events_nmi {
    pub injected: u8,
    pub pending: u8,
    pub masked: u8,
    pub pad: u8,
}

#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct kvm_vcpu_events {
    pub exception: kvm_vcpu_events_exception,
    pub interrupt: kvm_vcpu_events_interrupt,
    pub nmi: kvm_vcpu_events_nmi,
    pub sipi_vector: u32,
    pub flags: u32,
    pub reserved: [u32; 10],
}

#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct kvm_steal_time {
    pub steal: u64,
    pub version: u32,
    pub flags: u32,
    pub pad: [u32; 12],
}

/// illumos' `sigset_t`: bit n - 1 stands for signal n.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct illumos_sigset {
    pub __sigbits: [u32; 4],
}
