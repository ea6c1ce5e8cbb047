//! The control device and the VM: `usr/src/uts/intel/sys/vmm_dev.h`, `vmm.h` of illumos-gate, interface version 18.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

pub const VMM_CURRENT_INTERFACE_VERSION: i32 = 18;

// On `/dev/vmmctl`.
pub const VMM_CREATE_VM: i32 = 0x564d01;
pub const VMM_DESTROY_VM: i32 = 0x564d02;
pub const VMM_VM_SUPPORTED: i32 = 0x564d03;
pub const VMM_INTERFACE_VERSION: i32 = 0x564d04;
pub const VMM_CHECK_IOMMU: i32 = 0x564d05;
pub const VMM_RESV_QUERY: i32 = 0x564d10;
pub const VMM_RESV_SET_TARGET: i32 = 0x564d11;

// On a VM, with every vCPU frozen meanwhile.
pub const VM_REINIT: i32 = 0x766c01;
pub const VM_BIND_PPTDEV: i32 = 0x766c02;
pub const VM_UNBIND_PPTDEV: i32 = 0x766c03;
pub const VM_MAP_PPTDEV_MMIO: i32 = 0x766c04;
pub const VM_ALLOC_MEMSEG: i32 = 0x766c05;
pub const VM_MMAP_MEMSEG: i32 = 0x766c06;
pub const VM_PMTMR_LOCATE: i32 = 0x766c07;
pub const VM_MUNMAP_MEMSEG: i32 = 0x766c08;
pub const VM_UNMAP_PPTDEV_MMIO: i32 = 0x766c09;
pub const VM_PAUSE: i32 = 0x766c0a;
pub const VM_RESUME: i32 = 0x766c0b;
pub const VM_WRLOCK_CYCLE: i32 = 0x766cff;

// On a VM, beside running vCPUs.
pub const VM_GET_GPA_PMAP: i32 = 0x766d01;
pub const VM_GET_MEMSEG: i32 = 0x766d02;
pub const VM_MMAP_GETNEXT: i32 = 0x766d03;
pub const VM_LAPIC_IRQ: i32 = 0x766d04;
pub const VM_LAPIC_LOCAL_IRQ: i32 = 0x766d05;
pub const VM_LAPIC_MSI: i32 = 0x766d06;
pub const VM_IOAPIC_ASSERT_IRQ: i32 = 0x766d07;
pub const VM_IOAPIC_DEASSERT_IRQ: i32 = 0x766d08;
pub const VM_IOAPIC_PULSE_IRQ: i32 = 0x766d09;
pub const VM_ISA_ASSERT_IRQ: i32 = 0x766d0a;
pub const VM_ISA_DEASSERT_IRQ: i32 = 0x766d0b;
pub const VM_ISA_PULSE_IRQ: i32 = 0x766d0c;
pub const VM_ISA_SET_IRQ_TRIGGER: i32 = 0x766d0d;
pub const VM_RTC_WRITE: i32 = 0x766d0e;
pub const VM_RTC_READ: i32 = 0x766d0f;
pub const VM_RTC_SETTIME: i32 = 0x766d10;
pub const VM_RTC_GETTIME: i32 = 0x766d11;
pub const VM_SUSPEND: i32 = 0x766d12;
pub const VM_IOAPIC_PINCOUNT: i32 = 0x766d13;
pub const VM_GET_PPTDEV_LIMITS: i32 = 0x766d14;
pub const VM_GET_HPET_CAPABILITIES: i32 = 0x766d15;
pub const VM_STATS_IOC: i32 = 0x766d16;
pub const VM_STAT_DESC: i32 = 0x766d17;
pub const VM_INJECT_NMI: i32 = 0x766d18;
pub const VM_GET_X2APIC_STATE: i32 = 0x766d19;
pub const VM_SET_TOPOLOGY: i32 = 0x766d1a;
pub const VM_GET_TOPOLOGY: i32 = 0x766d1b;
pub const VM_GET_CPUS: i32 = 0x766d1c;
pub const VM_SUSPEND_CPU: i32 = 0x766d1d;
pub const VM_RESUME_CPU: i32 = 0x766d1e;
pub const VM_PPTDEV_DISABLE_MSIX: i32 = 0x766d1f;
pub const VM_TRACK_DIRTY_PAGES: i32 = 0x766d20;
pub const VM_DESC_FPU_AREA: i32 = 0x766d21;
pub const VM_DATA_READ: i32 = 0x766d22;
pub const VM_DATA_WRITE: i32 = 0x766d23;
pub const VM_SET_AUTODESTRUCT: i32 = 0x766d24;
pub const VM_DESTROY_SELF: i32 = 0x766d25;
pub const VM_DESTROY_PENDING: i32 = 0x766d26;
pub const VM_VCPU_BARRIER: i32 = 0x766d27;
pub const VM_NPT_OPERATION: i32 = 0x766d28;
pub const VM_DEVMEM_GETOFFSET: i32 = 0x766dff;

// Sizes.
pub const VM_MAX_NAMELEN: usize = 128;
pub const VM_MAX_SEG_NAMELEN: usize = 128;
pub const VM_MAXCPU_gate: u32 = 32;
pub const VM_MAXCPU_smartos_since_2025_05: u32 = 64;
pub const VM_MAXCPU_oxide: u32 = 254;
pub const VM_MAX_MEMSEGS: i32 = 5;
pub const VM_MAX_MEMMAPS_observed: usize = 8;
pub const MAX_VM_STATS: usize = 64;

// Flags of [`vm_create_req`], [`vm_memmap`] and [`vm_reinit`].
pub const VCF_RESERVOIR_MEM: u64 = 1;
pub const VCF_TRACK_DIRTY: u64 = 2;
pub const VM_MEMMAP_F_WIRED: i32 = 1;
pub const VM_MEMMAP_F_IOMMU: i32 = 2;
pub const VM_REINIT_F_FORCE_SUSPEND_deprecated: u64 = 1;

// Protection of a map.
pub const VM_PROT_READ: i32 = 1;
pub const VM_PROT_WRITE: i32 = 2;
pub const VM_PROT_EXECUTE: i32 = 4;

// What the kernel emulates, and where.
pub const VM_DEVMEM_START: u64 = 0x400000000000;
pub const LAPIC_BASE: u64 = 0xfee00000;
pub const IOAPIC_BASE: u64 = 0xfec00000;
pub const HPET_BASE: u64 = 0xfed00000;
pub const IOAPIC_PINS: u32 = 32;
pub const HPET_FREQ_HZ: u32 = 0x1000000;
pub const HPET_TIMERS: u32 = 8;
pub const HPET_BLOCK_ID: u32 = 0x80860701;
pub const HPET_PERIOD_FS: u32 = 0x38d7ea4;
pub const LAPIC_TIMER_HZ: u32 = 0x8000000;
pub const PMTMR_HZ: u32 = 0x369e99;

// Why a VM is suspended (`vm_suspend_how`).
pub const VM_SUSPEND_NONE: i32 = 0;
pub const VM_SUSPEND_RESET: i32 = 1;
pub const VM_SUSPEND_POWEROFF: i32 = 2;
pub const VM_SUSPEND_HALT: i32 = 3;
pub const VM_SUSPEND_TRIPLEFAULT: i32 = 4;

// Trigger of an ISA line (`vm_intr_trigger`).
pub const EDGE_TRIGGER: i32 = 0;
pub const LEVEL_TRIGGER: i32 = 1;

// Operations on the nested page tables (`vm_npt_operation`).
pub const VNO_OP_RESET_DIRTY: u32 = 1;
pub const VNO_OP_SET_DIRTY: u32 = 2;
pub const VNO_OP_GET_DIRTY: u32 = 3;
pub const VNO_OP_GET_TRACK_DIRTY: u32 = 32;
pub const VNO_OP_EN_TRACK_DIRTY: u32 = 33;
pub const VNO_OP_DIS_TRACK_DIRTY: u32 = 34;
pub const VNO_FLAG_BITMAP_IN: u32 = 0x40000000;
pub const VNO_FLAG_BITMAP_OUT: u32 = 0x80000000;

/// Argument of `VMM_CREATE_VM`: the VM's name, NUL-terminated, and `VCF_*`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, Immutable, IntoBytes, KnownLayout)]
#[repr(C)]
pub struct vm_create_req {
    pub name: [u8; 128],
    pub flags: u64,
}

/// Argument of `VMM_DESTROY_VM`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, Immutable, IntoBytes, KnownLayout)]
#[repr(C)]
pub struct vm_destroy_req {
    pub name: [u8; 128],
}

/// Answer of `VMM_RESV_QUERY`: sizes of the reservoir in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, Immutable, IntoBytes, KnownLayout)]
#[repr(C)]
pub struct vmm_resv_query {
    pub vrq_free_sz: usize,
    pub vrq_alloc_sz: usize,
    pub vrq_alloc_transient_sz: usize,
    pub vrq_limit: usize,
}

/// Argument and answer of `VMM_RESV_SET_TARGET`, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, Immutable, IntoBytes, KnownLayout)]
#[repr(C)]
pub struct vmm_resv_target {
    pub vrt_target_sz: usize,
    pub vrt_chunk_sz: usize,
    pub vrt_result_sz: usize,
}

/// A memory segment: allocated by `VM_ALLOC_MEMSEG`, told by `VM_GET_MEMSEG`. Without a name it is system memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, Immutable, IntoBytes, KnownLayout)]
#[repr(C)]
pub struct vm_memseg {
    pub segid: i32,
    pub _pad0: [u8; 4],
    pub len: usize,
    pub name: [u8; 128],
}

/// A segment's place in the guest: made by `VM_MMAP_MEMSEG`, told by `VM_MMAP_GETNEXT`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, Immutable, IntoBytes, KnownLayout)]
#[repr(C)]
pub struct vm_memmap {
    pub gpa: u64,
    pub segid: i32,
    pub _pad0: [u8; 4],
    pub segoff: i64,
    pub len: usize,
    pub prot: i32,
    pub flags: i32,
}

/// Argument of `VM_MUNMAP_MEMSEG`: exactly one existing map.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, Immutable, IntoBytes, KnownLayout)]
#[repr(C)]
pub struct vm_munmap {
    pub gpa: u64,
    pub len: usize,
}

/// Argument and answer of `VM_DEVMEM_GETOFFSET`: where a segment lies in the VM's descriptor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, Immutable, IntoBytes, KnownLayout)]
#[repr(C)]
pub struct vm_devmem_offset {
    pub segid: i32,
    pub _pad0: [u8; 4],
    pub offset: i64,
}

/// Argument of `VM_LAPIC_MSI`: the message comes before the address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, Immutable, IntoBytes, KnownLayout)]
#[repr(C)]
pub struct vm_lapic_msi {
    pub msg: u64,
    pub addr: u64,
}

/// Argument of `VM_LAPIC_IRQ` and `VM_LAPIC_LOCAL_IRQ`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, Immutable, IntoBytes, KnownLayout)]
#[repr(C)]
pub struct vm_lapic_irq {
    pub cpuid: i32,
    pub vector: i32,
}

/// Argument of the IOAPIC line ioctls.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, Immutable, IntoBytes, KnownLayout)]
#[repr(C)]
pub struct vm_ioapic_irq {
    pub irq: i32,
}

/// Argument of the ISA line ioctls: the PIC's line, and the IOAPIC's pin or -1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, Immutable, IntoBytes, KnownLayout)]
#[repr(C)]
pub struct vm_isa_irq {
    pub atpic_irq: i32,
    pub ioapic_irq: i32,
}

/// Argument of `VM_ISA_SET_IRQ_TRIGGER`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, Immutable, IntoBytes, KnownLayout)]
#[repr(C)]
pub struct vm_isa_irq_trigger {
    pub atpic_irq: i32,
    pub trigger: i32,
}

/// A passed-through device, by the descriptor of its `ppt` node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, Immutable, IntoBytes, KnownLayout)]
#[repr(C)]
pub struct vm_pptdev {
    pub pptfd: i32,
}

/// A BAR of a passed-through device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, Immutable, IntoBytes, KnownLayout)]
#[repr(C)]
pub struct vm_pptdev_mmio {
    pub pptfd: i32,
    pub _pad0: [u8; 4],
    pub gpa: u64,
    pub hpa: u64,
    pub len: usize,
}

/// MSI of a passed-through device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, Immutable, IntoBytes, KnownLayout)]
#[repr(C)]
pub struct vm_pptdev_msi {
    pub vcpu: i32,
    pub pptfd: i32,
    pub numvec: i32,
    pub _pad0: [u8; 4],
    pub msg: u64,
    pub addr: u64,
}

/// One MSI-X vector of a passed-through device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, Immutable, IntoBytes, KnownLayout)]
#[repr(C)]
pub struct vm_pptdev_msix {
    pub vcpu: i32,
    pub pptfd: i32,
    pub idx: i32,
    pub _pad0: [u8; 4],
    pub msg: u64,
    pub vector_control: u32,
    pub _pad1: [u8; 4],
    pub addr: u64,
}

/// Answer of `VM_GET_PPTDEV_LIMITS`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, Immutable, IntoBytes, KnownLayout)]
#[repr(C)]
pub struct vm_pptdev_limits {
    pub pptfd: i32,
    pub msi_limit: i32,
    pub msix_limit: i32,
}

/// `struct timeval` of an LP64 process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, Immutable, IntoBytes, KnownLayout)]
#[repr(C)]
pub struct vm_timeval {
    pub tv_sec: i64,
    pub tv_usec: i64,
}

/// Argument and answer of `VM_STATS_IOC`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, Immutable, IntoBytes, KnownLayout)]
#[repr(C)]
pub struct vm_stats {
    pub cpuid: i32,
    pub index: i32,
    pub num_entries: i32,
    pub _pad0: [u8; 4],
    pub tv: vm_timeval,
    pub statbuf: [u64; 64],
}

/// Argument and answer of `VM_STAT_DESC`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, Immutable, IntoBytes, KnownLayout)]
#[repr(C)]
pub struct vm_stat_desc {
    pub index: i32,
    pub desc: [u8; 128],
}

/// Argument of `VM_GET_GPA_PMAP`, which always fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, Immutable, IntoBytes, KnownLayout)]
#[repr(C)]
pub struct vm_gpa_pte {
    pub gpa: u64,
    pub pte: [u64; 4],
    pub ptenum: i32,
    pub _pad0: [u8; 4],
}

/// Answer of `VM_GET_HPET_CAPABILITIES`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, Immutable, IntoBytes, KnownLayout)]
#[repr(C)]
pub struct vm_hpet_cap {
    pub capabilities: u32,
}

/// Argument of `VM_SUSPEND`; `source` is a vCPU or -1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, Immutable, IntoBytes, KnownLayout)]
#[repr(C)]
pub struct vm_suspend {
    pub how: i32,
    pub source: i32,
}

/// Argument of `VM_SUSPEND` before interface version 16.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, Immutable, IntoBytes, KnownLayout)]
#[repr(C)]
pub struct vm_suspend_pre_v16 {
    pub how: i32,
}

/// Argument of `VM_REINIT`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, Immutable, IntoBytes, KnownLayout)]
#[repr(C)]
pub struct vm_reinit {
    pub flags: u64,
}

/// One byte of the real-time clock's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, Immutable, IntoBytes, KnownLayout)]
#[repr(C)]
pub struct vm_rtc_data {
    pub offset: i32,
    pub value: u8,
    pub _pad0: [u8; 3],
}

/// `struct timespec` of an LP64 process: the argument of `VM_RTC_SETTIME` since interface version 12.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, Immutable, IntoBytes, KnownLayout)]
#[repr(C)]
pub struct vm_rtc_timespec {
    pub tv_sec: i64,
    pub tv_nsec: i64,
}

/// Argument of `VM_SET_KERNEMU_DEV`: the low three bits of the bit field are the width's logarithm.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, Immutable, IntoBytes, KnownLayout)]
#[repr(C)]
pub struct vm_readwrite_kernemu_device {
    pub vcpuid: i32,
    pub access_width_bitfield: u32,
    pub gpa: u64,
    pub value: u64,
}

/// Argument of `VM_TRACK_DIRTY_PAGES`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, Immutable, IntoBytes, KnownLayout)]
#[repr(C)]
pub struct vmm_dirty_tracker {
    pub vdt_start_gpa: u64,
    pub vdt_len: usize,
    pub vdt_pfns: usize,
}

/// Argument of `VM_NPT_OPERATION`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, Immutable, IntoBytes, KnownLayout)]
#[repr(C)]
pub struct vm_npt_operation {
    pub vno_gpa: u64,
    pub vno_len: u64,
    pub vno_bitmap: usize,
    pub vno_operation: u32,
    pub _pad0: [u8; 4],
}
