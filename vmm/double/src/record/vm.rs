//! The VM and its vCPUs: everything is delegated; a vCPU's exits pass a recorder on their way to the process.

use std::sync::Arc;

use arch::cpu::CpuidEntry;
use devices::GuestRam;
use devices::bus::Access;
use devices::interrupt::{IrqLine, MsiSource};
use devices_host::sys::Link;
use devices_host::tap::Tap;
use zvmm::hypervisor::{
    ExitHandler, ExitKind, HardwareDoorbells, HypervisorError, KernelDevices, KernelNic, Kick, LinkOptions,
    PortCollector, Stop, Vcpu, VcpuStart, Vm,
};

use super::kernel::Unwatched;
use super::{Record, Seen, Space};

pub(super) struct RecordingVm {
    pub(super) inner: Arc<dyn Vm>,
    pub(super) record: Record,
}

impl Vm for RecordingVm {
    fn ram(&self) -> &GuestRam {
        self.inner.ram()
    }

    fn ram_is_used(&self) -> bool {
        self.inner.ram_is_used()
    }

    fn tsc_khz(&self) -> Option<u32> {
        self.inner.tsc_khz()
    }

    fn create_vcpu(&self, id: u8, cpuid: &[CpuidEntry]) -> Result<Box<dyn Vcpu>, HypervisorError> {
        let inner = self.inner.create_vcpu(id, cpuid)?;
        Ok(Box::new(RecordingVcpu { inner, vm: self.inner.clone(), record: self.record.clone() }))
    }

    fn irq_line(&self, gsi: u32) -> Arc<dyn IrqLine> {
        self.inner.irq_line(gsi)
    }

    fn line_is_level(&self, gsi: u32) -> Result<(), HypervisorError> {
        self.inner.line_is_level(gsi)
    }

    fn msi_source(&self) -> Arc<dyn MsiSource> {
        self.inner.msi_source()
    }

    /// None: a kick that the kernel takes is not seen.
    fn doorbells(&self) -> Option<Arc<dyn HardwareDoorbells>> {
        None
    }

    fn attach_link(&self, name: &str, link: &Link, options: &LinkOptions) -> Result<KernelNic, HypervisorError> {
        let nic = self.inner.attach_link(name, link, options)?;
        Ok(KernelNic { queues: Arc::new(Unwatched(nic.queues)), ..nic })
    }

    fn attach_tap(&self, name: &str, taps: Vec<Tap>) -> Result<KernelNic, HypervisorError> {
        let nic = self.inner.attach_tap(name, taps)?;
        Ok(KernelNic { queues: Arc::new(Unwatched(nic.queues)), ..nic })
    }

    /// None: what is collected comes late, and from no vCPU.
    fn port_collector(&self) -> Option<Arc<dyn PortCollector>> {
        None
    }

    fn map_rom(&self, gpa: u64, image: &[u8]) -> Result<(), HypervisorError> {
        self.inner.map_rom(gpa, image)
    }

    fn has_hpet(&self) -> bool {
        self.inner.has_hpet()
    }

    fn set_up_kernel_devices(&self, devices: &KernelDevices) -> Result<(), HypervisorError> {
        self.inner.set_up_kernel_devices(devices)
    }

    fn reset(&self) -> Result<(), HypervisorError> {
        self.inner.reset()
    }

    fn pause(&self) -> Result<(), HypervisorError> {
        self.inner.pause()
    }

    fn resume(&self) -> Result<(), HypervisorError> {
        self.inner.resume()
    }

    fn leave(&self, restart: bool) {
        self.inner.leave(restart);
    }
}

struct RecordingVcpu {
    inner: Box<dyn Vcpu>,
    vm: Arc<dyn Vm>,
    record: Record,
}

impl Vcpu for RecordingVcpu {
    fn reset(&mut self, start: &VcpuStart) -> Result<(), HypervisorError> {
        self.inner.reset(start)
    }

    fn bind_to_current_thread(&mut self) -> Result<(), HypervisorError> {
        self.inner.bind_to_current_thread()
    }

    fn run(&mut self, io: &mut dyn ExitHandler) -> Result<Stop, HypervisorError> {
        self.inner.run(&mut RecordingIo { inner: io, ram: self.vm.ram(), record: &self.record })
    }

    fn quiesce(&mut self) -> Result<(), HypervisorError> {
        self.inner.quiesce()
    }

    fn kicker(&self) -> Arc<dyn Kick> {
        self.inner.kicker()
    }

    fn inject_nmi(&mut self) -> Result<(), HypervisorError> {
        self.inner.inject_nmi()
    }

    fn note_pause(&mut self) {
        self.inner.note_pause();
    }
}

struct RecordingIo<'r> {
    inner: &'r mut dyn ExitHandler,
    ram: &'r GuestRam,
    record: &'r Record,
}

impl RecordingIo<'_> {
    fn note(&self, space: Space, address: u64, is_write: bool, data: &[u8]) {
        self.record.note(Seen::new(space, address, is_write, data), self.ram);
    }
}

impl ExitHandler for RecordingIo<'_> {
    fn port_in(&mut self, port: u16, data: &mut [u8]) -> Access {
        let access = self.inner.port_in(port, data);
        self.note(Space::Port, port.into(), false, data);
        access
    }

    fn port_out(&mut self, port: u16, data: &[u8]) -> Access {
        self.note(Space::Port, port.into(), true, data);
        self.inner.port_out(port, data)
    }

    fn mmio_read(&mut self, address: u64, data: &mut [u8]) -> Access {
        let access = self.inner.mmio_read(address, data);
        self.note(Space::Memory, address, false, data);
        access
    }

    fn mmio_write(&mut self, address: u64, data: &[u8]) -> Access {
        self.note(Space::Memory, address, true, data);
        self.inner.mmio_write(address, data)
    }

    fn rdmsr(&mut self, code: u32) -> Option<u64> {
        self.inner.rdmsr(code)
    }

    fn wrmsr(&mut self, code: u32, value: u64) -> bool {
        self.inner.wrmsr(code, value)
    }

    fn count(&mut self, exit: ExitKind) {
        self.inner.count(exit);
    }
}
