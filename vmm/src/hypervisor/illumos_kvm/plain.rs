//! C structures as bytes, for [`Sys::ioctl`](devices_host::sys::Sys::ioctl).

use super::abi;

/// A C structure for which every pattern of bytes is a value.
///
/// # Safety
/// The type is `repr(C)`, holds nothing but integers, arrays and unions of them, and has no padding the compiler adds.
pub unsafe trait Plain: Copy {}

macro_rules! plain {
    ($($name:ident)*) => {
        $(
            // SAFETY: integers and explicit padding only; the sizes are those of `illumos_kvm_layout.json`.
            unsafe impl Plain for abi::$name {}
        )*
    };
}

plain! {
    kvm_userspace_memory_region kvm_irq_level kvm_irqchip kvm_pit_config kvm_pit_state2 kvm_regs kvm_sregs kvm_fpu
    kvm_msrs kvm_lapic_state kvm_vcpu_events kvm_mp_state kvm_cpuid2 kvm_cpuid_entry2 kvm_irq_routing_entry
    kvm_pic_state kvm_ioapic_state kvm_segment kvm_dtable kvm_msr_entry kvm_signal_mask illumos_sigset kvm_interrupt kvm_coalesced_mmio_zone
}

macro_rules! plain_of {
    ($from:ident: $($name:ident)*) => {
        $(
            // SAFETY: integers and arrays of them only, laid out without gaps as the headers have them.
            unsafe impl Plain for abi::$from::$name {}
        )*
    };
}

plain_of! { vnd: vnd_ioc_attach vnd_ioc_buf framevec }
plain_of! { dlpi:
    dl_info_req_t dl_info_ack_t dl_bind_req_t dl_bind_ack_t dl_promiscon_req_t dl_ok_ack_t dl_error_ack_t dl_notify_req_t
    dl_notify_ack_t dl_notify_ind_t
}

/// All bytes zero.
#[must_use]
pub fn zeroed<T: Plain>() -> T {
    // SAFETY: every pattern of bytes is a value of a `Plain` type.
    unsafe { std::mem::zeroed() }
}

/// The bytes of `value`.
pub fn bytes_of<T: Plain>(value: &T) -> &[u8] {
    // SAFETY: a `Plain` type has no padding, so that all its bytes are initialised.
    unsafe { std::slice::from_raw_parts(std::ptr::from_ref(value).cast(), size_of::<T>()) }
}

/// The bytes of `value`, to be written too.
pub fn bytes_of_mut<T: Plain>(value: &mut T) -> &mut [u8] {
    // SAFETY: as above, and any bytes written make a value.
    unsafe { std::slice::from_raw_parts_mut(std::ptr::from_mut(value).cast(), size_of::<T>()) }
}

/// The value whose bytes `bytes` begins with; `None` where there are too few.
#[must_use]
pub fn from_bytes<T: Plain>(bytes: &[u8]) -> Option<T> {
    // SAFETY: the bytes are there, and any of them make a value.
    (bytes.len() >= size_of::<T>()).then(|| unsafe { bytes.as_ptr().cast::<T>().read_unaligned() })
}
