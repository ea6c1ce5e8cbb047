//! The VM: memory slots, interrupt controllers, doorbells.

use std::mem::ManuallyDrop;
use std::os::fd::{AsRawFd, FromRawFd, RawFd};
use std::sync::{Arc, OnceLock};

use arch::cpu::CpuidEntry;
use arch::layout;
use devices::GuestRam;
use devices::interrupt::{IrqLine, MsiSource};
use devices_host::tap::Tap;
use kvm_bindings::{
    KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE, KVM_PIT_SPEAKER_DUMMY, KVMIO, kvm_irqchip,
    kvm_pit_config, kvm_pit_state2, kvm_userspace_memory_region,
};
use kvm_ioctls::{Cap, IoEventAddress, Kvm, NoDatamatch, VmFd};
use vm_memory::{Address, GuestMemoryBackend, GuestMemoryRegion};
use vmm_sys_util::eventfd::EventFd;
use vmm_sys_util::ioctl::ioctl;

use super::collected::{Collected, KvmPortCollector};
use super::irq::{KvmIrqLine, KvmMessageFd, KvmMsiSource, MessageFd, Routing};
use super::rom::Roms;
use super::vcpu::KvmVcpu;
use super::{HypervisorError, call, uninterrupted, vhost};
use crate::hypervisor::{
    DoorbellAddress, HardwareDoorbells, KernelDevices, KernelNic, PortCollector, Vcpu, Vm, VmSpec,
};

vmm_sys_util::ioctl_io_nr!(KVM_GET_TSC_KHZ, KVMIO, 0xa3);

/// One VM on Linux KVM.
pub struct KvmVm {
    fd: Arc<VmFd>,
    ram: GuestRam,
    roms: Roms,
    routing: Arc<Routing>,
    /// Mapped with the first vCPU, where KVM can collect port writes.
    collected: OnceLock<Arc<Collected>>,
}

impl KvmVm {
    /// Creates the VM in the order that is cheapest: a memory slot set after the irqchip stalls for milliseconds.
    pub fn create(kvm: &Kvm, spec: &VmSpec) -> Result<Self, HypervisorError> {
        let fd = Arc::new(uninterrupted("KVM_CREATE_VM", || kvm.create_vm())?);
        let ram = devices_host::ram::allocate(&spec.ram, &spec.ram_options)
            .map_err(|error| HypervisorError::Memory(error.to_string()))?;
        for (slot, region) in (0..).zip(ram.iter()) {
            let slot = kvm_userspace_memory_region {
                slot,
                flags: 0,
                guest_phys_addr: region.start_addr().raw_value(),
                memory_size: region.len(),
                userspace_addr: region.as_ptr() as u64,
            };
            // SAFETY: the mapping belongs to `ram`, which lives in the same struct as the VM's descriptor and is never
            // unmapped before it; nothing else in the process relies on the contents being stable.
            unsafe { fd.set_user_memory_region(slot) }.map_err(|error| call("KVM_SET_USER_MEMORY_REGION", error))?;
        }
        fd.set_identity_map_address(layout::KVM_IDENTITY_MAP)
            .map_err(|error| call("KVM_SET_IDENTITY_MAP_ADDR", error))?;
        fd.set_tss_address(layout::KVM_TSS as usize).map_err(|error| call("KVM_SET_TSS_ADDR", error))?;
        fd.create_irq_chip().map_err(|error| call("KVM_CREATE_IRQCHIP", error))?;
        fd.create_pit2(kvm_pit_config { flags: KVM_PIT_SPEAKER_DUMMY, ..Default::default() })
            .map_err(|error| call("KVM_CREATE_PIT2", error))?;
        let routing = Routing::install(fd.clone())?;
        let roms = Roms::after(ram.num_regions());
        Ok(Self { fd, ram, roms, routing, collected: OnceLock::new() })
    }
}

impl Vm for KvmVm {
    fn ram(&self) -> &GuestRam {
        &self.ram
    }

    fn tsc_khz(&self) -> Option<u32> {
        // SAFETY: the ioctl takes no argument; kernels that know it on vCPUs only answer with an error.
        let khz = unsafe { ioctl(&*self.fd, KVM_GET_TSC_KHZ()) };
        u32::try_from(khz).ok().filter(|&khz| khz > 0)
    }

    fn create_vcpu(&self, id: u8, cpuid: &[CpuidEntry]) -> Result<Box<dyn Vcpu>, HypervisorError> {
        let mut vcpu = KvmVcpu::create(&self.fd, id, cpuid)?;
        if self.collected.get().is_none() && self.fd.check_extension(Cap::CoalescedPio) {
            let ring = Collected::map(vcpu.as_raw_fd())
                .map_err(|source| HypervisorError::Call { call: "mmap of the coalesced ring", source })?;
            self.collected.get_or_init(|| Arc::new(ring));
        }
        vcpu.take_collected_from(self.collected.get().cloned());
        Ok(Box::new(vcpu))
    }

    fn irq_line(&self, gsi: u32) -> Arc<dyn IrqLine> {
        Arc::new(KvmIrqLine::new(self.fd.clone(), gsi))
    }

    fn msi_source(&self) -> Arc<dyn MsiSource> {
        Arc::new(KvmMsiSource::new(self.fd.clone(), self.routing.clone()))
    }

    fn doorbells(&self) -> Option<Arc<dyn HardwareDoorbells>> {
        Some(Arc::new(Ioeventfds(self.fd.clone())))
    }

    fn attach_tap(&self, name: &str, taps: Vec<Tap>) -> Result<KernelNic, HypervisorError> {
        let message = || -> Result<Box<dyn MessageFd>, HypervisorError> {
            Ok(Box::new(KvmMessageFd::new(&self.fd, self.routing.clone())?))
        };
        let doorbells = Arc::new(Ioeventfds(self.fd.clone()));
        let messages = taps.iter().map(|_| Ok([message()?, message()?])).collect::<Result<_, HypervisorError>>()?;
        vhost::attach(vhost::Parts { ram: &self.ram, doorbells, messages }, name, taps)
    }

    fn port_collector(&self) -> Option<Arc<dyn PortCollector>> {
        let ring = self.collected.get()?.clone();
        Some(Arc::new(KvmPortCollector::new(self.fd.clone(), ring)))
    }

    fn map_rom(&self, gpa: u64, image: &[u8]) -> Result<(), HypervisorError> {
        self.roms.add(&self.fd, gpa, image)
    }

    fn set_up_kernel_devices(&self, _devices: &KernelDevices) -> Result<(), HypervisorError> {
        // The capabilities say that KVM emulates neither the clock nor the PM timer.
        Ok(())
    }

    fn leave(&self, _restart: bool) {
        // The VM ends with its last descriptor.
    }

    fn reset(&self) -> Result<(), HypervisorError> {
        for chip_id in [KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE, KVM_IRQCHIP_IOAPIC] {
            let mut chip = kvm_irqchip { chip_id, ..Default::default() };
            match chip_id {
                KVM_IRQCHIP_IOAPIC => {
                    chip.chip.ioapic.base_address = layout::IOAPIC;
                    for entry in &mut {
                        // SAFETY: the chip id above says which union member KVM reads.
                        unsafe { &mut chip.chip.ioapic }.redirtbl.iter_mut()
                    } {
                        entry.bits = 1 << 16;
                    }
                }
                KVM_IRQCHIP_PIC_MASTER => chip.chip.pic.elcr_mask = 0xf8,
                _ => chip.chip.pic.elcr_mask = 0xde,
            }
            self.fd.set_irqchip(&chip).map_err(|error| call("KVM_SET_IRQCHIP", error))?;
        }
        // No flags: here bit 0 is KVM_PIT_FLAGS_HPET_LEGACY, with which channel 0 raises no interrupt.
        let mut pit = kvm_pit_state2::default();
        for (index, channel) in (0..).zip(&mut pit.channels) {
            channel.count = 0x10000;
            channel.mode = 0xff;
            channel.gate = u8::from(index != 2);
        }
        self.fd.set_pit2(&pit).map_err(|error| call("KVM_SET_PIT2", error))
    }
}

struct Ioeventfds(Arc<VmFd>);

impl Ioeventfds {
    fn with<R>(event: RawFd, use_it: impl FnOnce(&EventFd) -> R) -> R {
        // SAFETY: the descriptor is open and stays the caller's: ManuallyDrop keeps this borrowed view from closing it.
        let event = ManuallyDrop::new(unsafe { EventFd::from_raw_fd(event) });
        debug_assert!(event.as_raw_fd() >= 0);
        use_it(&event)
    }
}

impl HardwareDoorbells for Ioeventfds {
    fn bind(&self, at: DoorbellAddress, event: RawFd) -> Result<(), HypervisorError> {
        Self::with(event, |event| match at {
            DoorbellAddress::Mmio(address) => {
                self.0.register_ioevent(event, &IoEventAddress::Mmio(address), NoDatamatch)
            }
            DoorbellAddress::Pio { port, value } => {
                self.0.register_ioevent(event, &IoEventAddress::Pio(port.into()), value)
            }
        })
        .map_err(|error| call("KVM_IOEVENTFD", error))
    }

    fn unbind(&self, at: DoorbellAddress, event: RawFd) -> Result<(), HypervisorError> {
        Self::with(event, |event| match at {
            DoorbellAddress::Mmio(address) => {
                self.0.unregister_ioevent(event, &IoEventAddress::Mmio(address), NoDatamatch)
            }
            DoorbellAddress::Pio { port, value } => {
                self.0.unregister_ioevent(event, &IoEventAddress::Pio(port.into()), value)
            }
        })
        .map_err(|error| call("KVM_IOEVENTFD", error))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reset_leaves_timer_chip_and_interrupt_controllers_as_they_were_created() {
        let kvm = Kvm::new().expect("these tests need /dev/kvm: run them inside the lab");
        let spec = VmSpec { name: String::new(), ram: vec![(0, 2 << 20)], ram_options: Default::default() };
        let vm = KvmVm::create(&kvm, &spec).unwrap();
        let pit = || {
            let mut pit = vm.fd.get_pit2().unwrap();
            pit.channels.iter_mut().for_each(|channel| channel.count_load_time = 0);
            pit
        };
        let chips = || {
            [KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE, KVM_IRQCHIP_IOAPIC].map(|chip_id| {
                let mut chip = kvm_irqchip { chip_id, ..Default::default() };
                vm.fd.get_irqchip(&mut chip).unwrap();
                // SAFETY: the padding member covers the whole union, which KVM has filled.
                unsafe { chip.chip.dummy }
            })
        };
        let created = (pit(), chips());
        vm.reset().unwrap();
        assert_eq!((pit(), chips()), created);
    }
}
