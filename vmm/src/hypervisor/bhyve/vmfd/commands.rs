//! Which structure each ioctl takes: the pairing that makes passing it safe, in one place.

use std::marker::PhantomData;

use crate::hypervisor::bhyve::abi;

/// An ioctl whose argument is a pointer to one structure without pointers.
pub struct Plain<T> {
    pub name: &'static str,
    pub request: i32,
    argument: PhantomData<fn(&mut T)>,
}

/// An ioctl whose argument is a number, or none at all (then 0).
pub struct Value {
    pub name: &'static str,
    pub request: i32,
}

macro_rules! plain {
    ($($name:ident: $argument:ident,)*) => {
        $(pub const $name: Plain<abi::$argument> =
            Plain { name: stringify!($name), request: abi::$name, argument: PhantomData };)*
    };
}

macro_rules! value {
    ($($name:ident,)*) => {
        $(pub const $name: Value = Value { name: stringify!($name), request: abi::$name };)*
    };
}

plain! {
    VMM_CREATE_VM: vm_create_req,
    VMM_DESTROY_VM: vm_destroy_req,

    VM_REINIT: vm_reinit,
    VM_ALLOC_MEMSEG: vm_memseg,
    VM_MMAP_MEMSEG: vm_memmap,
    VM_GET_MEMSEG: vm_memseg,
    VM_MMAP_GETNEXT: vm_memmap,
    VM_DEVMEM_GETOFFSET: vm_devmem_offset,
    VM_GET_TOPOLOGY: vm_cpu_topology,

    VM_LAPIC_MSI: vm_lapic_msi,
    VM_IOAPIC_ASSERT_IRQ: vm_ioapic_irq,
    VM_IOAPIC_DEASSERT_IRQ: vm_ioapic_irq,
    VM_IOAPIC_PULSE_IRQ: vm_ioapic_irq,
    VM_ISA_ASSERT_IRQ: vm_isa_irq,
    VM_ISA_DEASSERT_IRQ: vm_isa_irq,
    VM_ISA_PULSE_IRQ: vm_isa_irq,
    VM_ISA_SET_IRQ_TRIGGER: vm_isa_irq_trigger,
    VM_INJECT_NMI: vm_nmi,

    VM_RTC_WRITE: vm_rtc_data,
    VM_RTC_SETTIME: vm_rtc_timespec,

    VM_ACTIVATE_CPU: vm_activate_cpu,
    VM_RESET_CPU: vm_vcpu_reset,
    VM_SET_RUN_STATE: vm_run_state,
    VM_GET_RUN_STATE: vm_run_state,
    VM_SET_REGISTER: vm_register,
    VM_SET_SEGMENT_DESCRIPTOR: vm_seg_desc,
    VM_GET_SEGMENT_DESCRIPTOR: vm_seg_desc,
    VM_SET_X2APIC_STATE: vm_x2apic,
    VM_LEGACY_CPUID: vm_legacy_cpuid,
    VM_INJECT_EXCEPTION: vm_exception,

    VNA_IOC_CREATE: vioc_create,
    VNA_IOC_RING_INIT: vioc_ring_init,
    VNA_IOC_RING_INIT_MODERN: vioc_ring_init_modern,
    VNA_IOC_RING_SET_STATE: vioc_ring_state,
    VNA_IOC_RING_GET_STATE: vioc_ring_state,
    VNA_IOC_RING_SET_MSI: vioc_ring_msi,
    VNA_IOC_INTR_POLL_MQ: vioc_intr_poll_mq,
    VNA_IOC_SET_NOTIFY_MMIO: vioc_notify_mmio,
    VNA_IOC_SET_MAC_ADDR: vioc_mac_addr_v7,
    VNA_IOC_GET_MAC_ADDR: vioc_mac_addr_v7,
}

/// Features are exchanged through a pointer to a word without a name.
pub const VNA_IOC_GET_FEATURES: Plain<u64> =
    Plain { name: "VNA_IOC_GET_FEATURES", request: abi::VNA_IOC_GET_FEATURES, argument: PhantomData };
pub const VNA_IOC_SET_FEATURES: Plain<u64> =
    Plain { name: "VNA_IOC_SET_FEATURES", request: abi::VNA_IOC_SET_FEATURES, argument: PhantomData };

/// Only SmartOS has it, and no header that the layouts are measured from.
pub const VM_ARC_RESV: Value = Value { name: "VM_ARC_RESV", request: 0x76_6dfe };

value! {
    VMM_INTERFACE_VERSION,

    VM_PMTMR_LOCATE,
    VM_PAUSE,
    VM_RESUME,
    VM_SET_AUTODESTRUCT,
    VM_DESTROY_SELF,
    VM_VCPU_BARRIER,

    VNA_IOC_DELETE,
    VNA_IOC_VERSION,
    VNA_IOC_RING_RESET,
    VNA_IOC_RING_KICK,
    VNA_IOC_RING_PAUSE,
    VNA_IOC_RING_INTR_CLR,
    VNA_IOC_SET_NOTIFY_IOP,
    VNA_IOC_SET_PROMISC,
    VNA_IOC_GET_MTU,
    VNA_IOC_SET_MTU,
    VNA_IOC_GET_PAIRS,
    VNA_IOC_SET_PAIRS,
    VNA_IOC_SET_USEPAIRS,
}
