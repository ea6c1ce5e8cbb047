//! State of what the kernel emulates (`usr/src/uts/intel/sys/vmm_data.h` of illumos-gate).

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

// Flags and limit of a transfer.
pub const VDX_FLAG_READ_COPYIN: u32 = 1;
pub const VDX_FLAG_WRITE_COPYOUT: u32 = 2;
pub const VM_DATA_XFER_LIMIT: usize = 0x2000;

// Classes (`vmm_data_class`).
pub const VDC_VERSION: u16 = 1;
pub const VDC_REGISTER: u16 = 2;
pub const VDC_MSR: u16 = 3;
pub const VDC_FPU: u16 = 4;
pub const VDC_LAPIC: u16 = 5;
pub const VDC_VMM_ARCH: u16 = 6;
pub const VDC_IOAPIC: u16 = 7;
pub const VDC_ATPIT: u16 = 8;
pub const VDC_ATPIC: u16 = 9;
pub const VDC_HPET: u16 = 10;
pub const VDC_PM_TIMER: u16 = 11;
pub const VDC_RTC: u16 = 12;
pub const VDC_VMM_TIME: u16 = 13;
pub const VDC_PMU_AMD: u16 = 14;

// Fields of [`VDC_VMM_ARCH`] (`vmm_arch_ident`).
pub const VAI_TSC_BOOT_OFFSET_pre_v11: u32 = 1;
pub const VAI_BOOT_HRTIME_pre_v11: u32 = 2;
pub const VAI_TSC_FREQ_pre_v11: u32 = 3;
pub const VAI_VM_IS_PAUSED: u32 = 4;
pub const VAI_PEND_NMI: u32 = 10;
pub const VAI_PEND_EXTINT: u32 = 11;
pub const VAI_PEND_EXCP: u32 = 12;
pub const VAI_PEND_INTINFO: u32 = 13;

/// Argument of `VM_DATA_READ` and `VM_DATA_WRITE`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, Immutable, IntoBytes, KnownLayout)]
#[repr(C)]
pub struct vm_data_xfer {
    pub vdx_vcpuid: i32,
    pub vdx_class: u16,
    pub vdx_version: u16,
    pub vdx_flags: u32,
    pub vdx_len: u32,
    pub vdx_result_len: u32,
    pub _pad0: [u8; 4],
    pub vdx_data: usize,
}

/// One row of `VDC_VERSION`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, Immutable, IntoBytes, KnownLayout)]
#[repr(C)]
pub struct vdi_version_entry_v1 {
    pub vve_class: u16,
    pub vve_version: u16,
    pub vve_len_expect: u16,
    pub vve_len_per_item: u16,
}

/// One value of a class made of fields.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, Immutable, IntoBytes, KnownLayout)]
#[repr(C)]
pub struct vdi_field_entry_v1 {
    pub vfe_ident: u32,
    pub _pad: u32,
    pub vfe_value: u64,
}

/// Registers of a local APIC.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, Immutable, IntoBytes, KnownLayout)]
#[repr(C)]
pub struct vdi_lapic_page_v1 {
    pub vlp_id: u32,
    pub vlp_version: u32,
    pub vlp_tpr: u32,
    pub vlp_apr: u32,
    pub vlp_ldr: u32,
    pub vlp_dfr: u32,
    pub vlp_svr: u32,
    pub vlp_isr: [u32; 8],
    pub vlp_tmr: [u32; 8],
    pub vlp_irr: [u32; 8],
    pub vlp_esr: u32,
    pub vlp_lvt_cmci: u32,
    pub _pad0: [u8; 4],
    pub vlp_icr: u64,
    pub vlp_lvt_timer: u32,
    pub vlp_lvt_thermal: u32,
    pub vlp_lvt_pcint: u32,
    pub vlp_lvt_lint0: u32,
    pub vlp_lvt_lint1: u32,
    pub vlp_lvt_error: u32,
    pub vlp_icr_timer: u32,
    pub vlp_dcr_timer: u32,
}

/// `VDC_LAPIC`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, Immutable, IntoBytes, KnownLayout)]
#[repr(C)]
pub struct vdi_lapic_v1 {
    pub vl_lapic: vdi_lapic_page_v1,
    pub vl_msr_apicbase: u64,
    pub vl_timer_target: i64,
    pub vl_esr_pending: u32,
    pub _pad0: [u8; 4],
}

/// `VDC_IOAPIC`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, Immutable, IntoBytes, KnownLayout)]
#[repr(C)]
pub struct vdi_ioapic_v1 {
    pub vi_pin_reg: [u64; 32],
    pub vi_pin_level: [u32; 32],
    pub vi_id: u32,
    pub vi_reg_sel: u32,
}

/// One channel of the timer chip.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, Immutable, IntoBytes, KnownLayout)]
#[repr(C)]
pub struct vdi_atpit_channel_v1 {
    pub vac_initial: u16,
    pub vac_reg_cr: u16,
    pub vac_reg_ol: u16,
    pub vac_reg_status: u8,
    pub vac_mode: u8,
    pub vac_status: u8,
    pub _pad0: [u8; 7],
    pub vac_time_target: i64,
}

/// `VDC_ATPIT`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, Immutable, IntoBytes, KnownLayout)]
#[repr(C)]
pub struct vdi_atpit_v1 {
    pub va_channel: [vdi_atpit_channel_v1; 3],
}

/// One of the two PICs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, Immutable, IntoBytes, KnownLayout)]
#[repr(C)]
pub struct vdi_atpic_chip_v1 {
    pub vac_icw_state: u8,
    pub vac_status: u8,
    pub vac_reg_irr: u8,
    pub vac_reg_isr: u8,
    pub vac_reg_imr: u8,
    pub vac_irq_base: u8,
    pub vac_lowprio: u8,
    pub vac_elc: u8,
    pub vac_level: [u32; 8],
}

/// `VDC_ATPIC`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, Immutable, IntoBytes, KnownLayout)]
#[repr(C)]
pub struct vdi_atpic_v1 {
    pub va_chip: [vdi_atpic_chip_v1; 2],
}

/// One timer of the HPET.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, Immutable, IntoBytes, KnownLayout)]
#[repr(C)]
pub struct vdi_hpet_timer_v1 {
    pub vht_config: u64,
    pub vht_msi: u64,
    pub vht_comp_val: u32,
    pub vht_comp_rate: u32,
    pub vht_time_target: i64,
}

/// `VDC_HPET`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, Immutable, IntoBytes, KnownLayout)]
#[repr(C)]
pub struct vdi_hpet_v1 {
    pub vh_config: u64,
    pub vh_isr: u64,
    pub vh_count_base: u32,
    pub _pad0: [u8; 4],
    pub vh_time_base: i64,
    pub vh_timers: [vdi_hpet_timer_v1; 8],
}

/// `VDC_PM_TIMER`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, Immutable, IntoBytes, KnownLayout)]
#[repr(C)]
pub struct vdi_pm_timer_v1 {
    pub vpt_time_base: i64,
    pub vpt_ioport: u16,
    pub _pad0: [u8; 6],
}

/// `VDC_RTC` since interface version 12.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, Immutable, IntoBytes, KnownLayout)]
#[repr(C)]
pub struct vdi_rtc_v2 {
    pub vr_base_clock: i64,
    pub vr_last_period: i64,
    pub vr_content: [u8; 128],
    pub vr_addr: u8,
    pub _pad0: [u8; 7],
}

/// `VDC_RTC` before interface version 12.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, Immutable, IntoBytes, KnownLayout)]
#[repr(C)]
pub struct vdi_rtc_v1 {
    pub vr_content: [u8; 128],
    pub vr_addr: u8,
    pub _pad0: [u8; 7],
    pub vr_time_base: i64,
    pub vr_rtc_sec: u64,
    pub vr_rtc_nsec: u64,
}

/// `VDC_VMM_TIME`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, Immutable, IntoBytes, KnownLayout)]
#[repr(C)]
pub struct vdi_time_info_v1 {
    pub vt_guest_freq: u64,
    pub vt_guest_tsc: u64,
    pub vt_boot_hrtime: i64,
    pub vt_hrtime: i64,
    pub vt_hres_sec: u64,
    pub vt_hres_ns: u64,
}

/// `VDC_PMU_AMD`, since interface version 18.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, Immutable, IntoBytes, KnownLayout)]
#[repr(C)]
pub struct vdi_pmu_amd_v1 {
    pub vpa_evtsel: [u64; 6],
    pub vpa_ctr: [u64; 6],
}
