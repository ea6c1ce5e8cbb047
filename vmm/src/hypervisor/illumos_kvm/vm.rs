//! The VM: memory, interrupt controllers, timer chip.

use std::sync::{Arc, Mutex, PoisonError};

use arch::cpu::CpuidEntry;
use arch::layout;
use devices::GuestRam;
use devices::interrupt::{IrqLine, MsiSource};
use devices_host::sys::Sys;

use super::abi::{
    KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE, KVM_PIT_SPEAKER_DUMMY, kvm_ioapic_redirect,
    kvm_ioapic_state, kvm_irqchip, kvm_pic_state, kvm_pit_config, kvm_pit_state2,
};
use super::irq::{Line, Msi, Routing};
use super::memory::{Patience, VmFd};
use super::plain::zeroed;
use super::vcpu::IllumosKvmVcpu;
use super::{HypervisorError, call};
use crate::hypervisor::{HardwareDoorbells, KernelDevices, Vcpu, Vm, VmSpec};

/// One VM on illumos KVM.
pub struct IllumosKvmVm {
    fd: Arc<VmFd>,
    ram: GuestRam,
    routing: Arc<Routing>,
    /// Number of the next vCPU.
    next_vcpu: Mutex<u8>,
}

impl IllumosKvmVm {
    /// Creates the VM in the order the driver needs: the pages it maps itself before anything asks for them, the
    /// interrupt controllers before the vCPUs that get a local APIC from them.
    pub fn create(sys: &Arc<dyn Sys>, spec: &VmSpec, patience: Patience) -> Result<Self, HypervisorError> {
        let fd = Arc::new(VmFd::create(sys, patience)?);
        let ram = fd.add_ram(&spec.ram, &spec.ram_options)?;
        fd.set_tss_addr(layout::KVM_TSS).map_err(|error| call("KVM_SET_TSS_ADDR", error))?;
        fd.set_identity_map_addr(layout::KVM_IDENTITY_MAP).map_err(|error| call("KVM_SET_IDENTITY_MAP_ADDR", error))?;
        fd.create_irqchip().map_err(|error| call("KVM_CREATE_IRQCHIP", error))?;
        fd.create_pit2(&kvm_pit_config { flags: KVM_PIT_SPEAKER_DUMMY, pad: [0; 15] })
            .map_err(|error| call("KVM_CREATE_PIT2", error))?;
        let routing = Routing::install(fd.clone()).map_err(|error| call("KVM_SET_GSI_ROUTING", error))?;
        Ok(Self { fd, ram, routing, next_vcpu: Mutex::new(0) })
    }
}

impl Vm for IllumosKvmVm {
    fn ram(&self) -> &GuestRam {
        &self.ram
    }

    fn tsc_khz(&self) -> Option<u32> {
        // The driver has no call that tells.
        None
    }

    fn create_vcpu(&self, id: u8, cpuid: &[CpuidEntry]) -> Result<Box<dyn Vcpu>, HypervisorError> {
        let mut next = self.next_vcpu.lock().unwrap_or_else(PoisonError::into_inner);
        if id != *next {
            let what = format!("vCPUs must be created in order: the next one is {next}");
            return Err(HypervisorError::Vcpu { vcpu: id, what });
        }
        let vcpu = IllumosKvmVcpu::create(self.fd.clone(), id, cpuid)?;
        *next += 1;
        Ok(Box::new(vcpu))
    }

    fn irq_line(&self, gsi: u32) -> Arc<dyn IrqLine> {
        Arc::new(Line::new(self.fd.clone(), gsi))
    }

    fn msi_source(&self) -> Arc<dyn MsiSource> {
        Arc::new(Msi::new(self.routing.clone()))
    }

    fn doorbells(&self) -> Option<Arc<dyn HardwareDoorbells>> {
        // The driver claims KVM_CAP_IOEVENTFD and has no such call.
        None
    }

    fn map_rom(&self, gpa: u64, image: &[u8]) -> Result<(), HypervisorError> {
        self.fd.add_rom(gpa, image)
    }

    fn set_up_kernel_devices(&self, _devices: &KernelDevices) -> Result<(), HypervisorError> {
        // The capabilities say that the driver emulates neither the clock nor the PM timer.
        Ok(())
    }

    fn reset(&self) -> Result<(), HypervisorError> {
        self.fd.restore_roms()?;
        // Whole states, since KVM_GET_IRQCHIP cannot be used to read what is there.
        for chip in
            [pic_after_reset(KVM_IRQCHIP_PIC_MASTER), pic_after_reset(KVM_IRQCHIP_PIC_SLAVE), ioapic_after_reset()]
        {
            self.fd.set_irqchip(&chip).map_err(|error| call("KVM_SET_IRQCHIP", error))?;
        }
        self.fd.set_pit2(&pit_after_reset()).map_err(|error| call("KVM_SET_PIT2", error))
    }

    fn leave(&self, _restart: bool) {
        // The VM ends with its last descriptor.
    }
}

fn pic_after_reset(chip_id: u32) -> kvm_irqchip {
    let mut chip = kvm_irqchip { chip_id, ..zeroed() };
    // Which pins may be level-triggered is part of the state: without the mask, ELCR would stay 0.
    let elcr_mask = if chip_id == KVM_IRQCHIP_PIC_MASTER { 0xf8 } else { 0xde };
    chip.chip.pic = kvm_pic_state { elcr_mask, ..zeroed() };
    chip
}

fn ioapic_after_reset() -> kvm_irqchip {
    const MASKED: kvm_ioapic_redirect = kvm_ioapic_redirect { bits: 1 << 16 };
    let mut chip = kvm_irqchip { chip_id: KVM_IRQCHIP_IOAPIC, ..zeroed() };
    let redirtbl = [MASKED; super::abi::KVM_IOAPIC_NUM_PINS];
    chip.chip.ioapic = kvm_ioapic_state { base_address: layout::IOAPIC, redirtbl, ..zeroed() };
    chip
}

fn pit_after_reset() -> kvm_pit_state2 {
    // No flags: here bit 0 is KVM_PIT_FLAGS_HPET_LEGACY, with which channel 0 raises no interrupt.
    let mut pit: kvm_pit_state2 = zeroed();
    for (index, channel) in (0..).zip(&mut pit.channels) {
        channel.count = 0x10000;
        channel.mode = 0xff;
        channel.gate = u8::from(index != 2);
    }
    pit
}
