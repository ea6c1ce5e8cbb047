//! Numbers of the requests that are made of KVM and of vhost-net while a guest runs (Linux `include/uapi/linux/kvm.h` and
//! `vhost.h`), for whoever lets through those alone. `kvm-ioctls` keeps its own to itself, and those of `vhost` are not
//! constant.

use kvm_bindings::{
    KVMIO, kvm_coalesced_mmio_zone, kvm_debugregs, kvm_fpu, kvm_ioeventfd, kvm_irq_level, kvm_irq_routing, kvm_irqchip,
    kvm_irqfd, kvm_lapic_state, kvm_mp_state, kvm_msrs, kvm_pit_state2, kvm_regs, kvm_sregs, kvm_vcpu_events, kvm_xcrs,
};
use vhost::vhost_kern::vhost_binding::{VHOST, vhost_vring_addr, vhost_vring_file, vhost_vring_state};

/// A request without an argument, or with a number (`_IO`).
const fn plain(number: u32) -> u32 {
    KVMIO << 8 | number
}

/// A request that KVM reads a structure of (`_IOW`).
const fn writes<T>(number: u32) -> u32 {
    1 << 30 | (size_of::<T>() as u32) << 16 | plain(number)
}

/// A request that KVM answers with a structure (`_IOR`).
const fn reads<T>(number: u32) -> u32 {
    2 << 30 | (size_of::<T>() as u32) << 16 | plain(number)
}

/// Of a vCPU: runs the guest.
pub const KVM_RUN: u32 = plain(0x80);
/// Of a vCPU: what a failure names.
pub const KVM_GET_REGS: u32 = reads::<kvm_regs>(0x81);
/// Of a vCPU: a reset.
pub const KVM_SET_REGS: u32 = writes::<kvm_regs>(0x82);
/// Of a vCPU: a reset.
pub const KVM_SET_SREGS: u32 = writes::<kvm_sregs>(0x84);
/// Of a vCPU: a reset.
pub const KVM_SET_MSRS: u32 = writes::<kvm_msrs>(0x89);
/// Of a vCPU: a reset.
pub const KVM_SET_FPU: u32 = writes::<kvm_fpu>(0x8d);
/// Of a vCPU: a reset.
pub const KVM_SET_LAPIC: u32 = writes::<kvm_lapic_state>(0x8f);
/// Of a vCPU: a reset.
pub const KVM_SET_MP_STATE: u32 = writes::<kvm_mp_state>(0x99);
/// Of a vCPU: a non-maskable interrupt.
pub const KVM_NMI: u32 = plain(0x9a);
/// Of a vCPU: a reset.
pub const KVM_SET_VCPU_EVENTS: u32 = writes::<kvm_vcpu_events>(0xa0);
/// Of a vCPU: a reset.
pub const KVM_SET_DEBUGREGS: u32 = writes::<kvm_debugregs>(0xa2);
/// Of a vCPU: a reset.
pub const KVM_SET_XCRS: u32 = writes::<kvm_xcrs>(0xa7);
/// Of a vCPU: the guest's clock was stopped for a pause.
pub const KVM_KVMCLOCK_CTRL: u32 = plain(0xad);
/// Of a VM: an interrupt line.
pub const KVM_IRQ_LINE: u32 = writes::<kvm_irq_level>(0x61);
/// Of a VM: a reset. Its number says that it answers, which it does not.
pub const KVM_SET_IRQCHIP: u32 = reads::<kvm_irqchip>(0x63);
/// Of a VM: port writes that are collected.
pub const KVM_REGISTER_COALESCED_MMIO: u32 = writes::<kvm_coalesced_mmio_zone>(0x67);
/// Of a VM: port writes that are no longer collected.
pub const KVM_UNREGISTER_COALESCED_MMIO: u32 = writes::<kvm_coalesced_mmio_zone>(0x68);
/// Of a VM: where message-signalled interrupts go.
pub const KVM_SET_GSI_ROUTING: u32 = writes::<kvm_irq_routing>(0x6a);
/// Of a VM: an interrupt by eventfd.
pub const KVM_IRQFD: u32 = writes::<kvm_irqfd>(0x76);
/// Of a VM: a doorbell by eventfd.
pub const KVM_IOEVENTFD: u32 = writes::<kvm_ioeventfd>(0x79);
/// Of a VM: a reset.
pub const KVM_SET_PIT2: u32 = writes::<kvm_pit_state2>(0xa0);

/// A request that vhost reads a structure of (`_IOW`).
const fn vhost_reads<T>(number: u32) -> u32 {
    1 << 30 | (size_of::<T>() as u32) << 16 | VHOST << 8 | number
}

/// Of a card's queues: what the driver takes.
pub const VHOST_SET_FEATURES: u32 = vhost_reads::<u64>(0x00);
/// Of a ring: its size.
pub const VHOST_SET_VRING_NUM: u32 = vhost_reads::<vhost_vring_state>(0x10);
/// Of a ring: where it lies.
pub const VHOST_SET_VRING_ADDR: u32 = vhost_reads::<vhost_vring_addr>(0x11);
/// Of a ring: where it begins.
pub const VHOST_SET_VRING_BASE: u32 = vhost_reads::<vhost_vring_state>(0x12);
/// Of a ring: where it stands, which vhost answers in the structure (`_IOWR`).
pub const VHOST_GET_VRING_BASE: u32 = 2 << 30 | VHOST_SET_VRING_BASE;
/// Of a ring: what its interrupt signals.
pub const VHOST_SET_VRING_CALL: u32 = vhost_reads::<vhost_vring_file>(0x21);
/// Of a ring: it runs, or stops.
pub const VHOST_NET_SET_BACKEND: u32 = vhost_reads::<vhost_vring_file>(0x30);

#[cfg(test)]
mod tests {
    use vhost::vhost_kern::vhost_binding;

    use super::*;

    #[test]
    fn the_numbers_are_those_of_the_calls_that_are_made() {
        for (ours, made) in [
            (VHOST_SET_FEATURES, vhost_binding::VHOST_SET_FEATURES()),
            (VHOST_SET_VRING_NUM, vhost_binding::VHOST_SET_VRING_NUM()),
            (VHOST_SET_VRING_ADDR, vhost_binding::VHOST_SET_VRING_ADDR()),
            (VHOST_SET_VRING_BASE, vhost_binding::VHOST_SET_VRING_BASE()),
            (VHOST_GET_VRING_BASE, vhost_binding::VHOST_GET_VRING_BASE()),
            (VHOST_SET_VRING_CALL, vhost_binding::VHOST_SET_VRING_CALL()),
            (VHOST_NET_SET_BACKEND, vhost_binding::VHOST_NET_SET_BACKEND()),
        ] {
            assert_eq!(u64::from(ours), made, "{ours:#x}");
        }
    }
}
