//! The VM: memory, lines, what the kernel emulates, and its end.

use std::sync::{Arc, Mutex, PoisonError};

use arch::cpu::CpuidEntry;
use devices::GuestRam;
use devices::interrupt::{IrqLine, MsiSource};
use devices_host::sys::{Errno, Link};

use super::error::{CallError, CallResult};
use super::irq::{BhyveIrqLine, BhyveMsiSource, Resets};
use super::memory::{Ram, Roms};
use super::state::{self, KernelState};
use super::vcpu::BhyveVcpu;
use super::viona;
use super::vmfd::VmFd;
use crate::hypervisor::{HardwareDoorbells, HypervisorError, KernelDevices, KernelNic, LinkOptions, Vcpu, Vm};

/// One VM on bhyve.
pub struct BhyveVm {
    // Before the descriptor, since a mapping holds the VM as well.
    ram: Ram,
    fd: Arc<VmFd>,
    /// An earlier process left the RAM with what its guest wrote.
    ram_is_used: bool,
    roms: Roms,
    resets: Resets,
    settings: Mutex<Settings>,
}

/// What a reset of the VM makes the kernel forget.
#[derive(Default)]
struct Settings {
    devices: Option<KernelDevices>,
    level_lines: Vec<i32>,
    paused: bool,
    vcpus: u8,
}

impl BhyveVm {
    /// A VM with its RAM mapped on both sides.
    pub fn new(fd: Arc<VmFd>, ram: Ram, ram_is_used: bool) -> Self {
        let (roms, resets, settings) = Default::default();
        Self { ram, fd, ram_is_used, roms, resets, settings }
    }

    /// The VM's descriptor, for drivers that take one (viona).
    pub fn fd(&self) -> &Arc<VmFd> {
        &self.fd
    }

    /// Reads everything the kernel knows about the VM but its memory. The VM is [paused](Vm::pause), and every vCPU was
    /// [quiescent](Vcpu::quiesce) before that.
    ///
    /// # Errors
    /// What the calls say, and that the VM is not paused.
    pub fn save_kernel_state(&self) -> Result<KernelState, HypervisorError> {
        Ok(state::save(&self.fd, self.vcpus_of_paused()?)?)
    }

    /// Writes it into a VM with the same vCPUs, none of which has run. The VM is [paused](Vm::pause).
    ///
    /// # Errors
    /// What the calls say, that the VM is not paused, and that the state is not of such a VM.
    pub fn restore_kernel_state(&self, state: &KernelState) -> Result<(), HypervisorError> {
        state::restore(&self.fd, self.vcpus_of_paused()?, state)
    }

    fn vcpus_of_paused(&self) -> Result<u8, HypervisorError> {
        let settings = self.settings();
        let running = || HypervisorError::Unavailable("the kernel's state can be had of a paused VM only".to_owned());
        settings.paused.then_some(settings.vcpus).ok_or_else(running)
    }

    fn settings(&self) -> std::sync::MutexGuard<'_, Settings> {
        self.settings.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn place_devices(&self, devices: &KernelDevices) -> CallResult<()> {
        if let Some(port) = devices.pm_timer_port {
            self.fd.place_pm_timer(port)?;
        }
        let (seconds, nanoseconds) = devices_host::clock::realtime();
        self.fd.set_time(seconds, nanoseconds)?;
        devices.nvram.iter().try_for_each(|&(offset, value)| self.fd.set_nvram(offset, value))
    }
}

impl Vm for BhyveVm {
    fn ram(&self) -> &GuestRam {
        self.ram.guest()
    }

    fn ram_is_used(&self) -> bool {
        self.ram_is_used
    }

    fn tsc_khz(&self) -> Option<u32> {
        state::guest_tsc_khz(&self.fd).inspect_err(|error| log::debug!("bhyve: {error}")).ok().flatten()
    }

    fn create_vcpu(&self, id: u8, cpuid: &[CpuidEntry]) -> Result<Box<dyn Vcpu>, HypervisorError> {
        let vcpu = BhyveVcpu::create(self.fd.clone(), id, cpuid, self.resets.clone())?;
        self.settings().vcpus += 1;
        Ok(Box::new(vcpu))
    }

    fn irq_line(&self, gsi: u32) -> Arc<dyn IrqLine> {
        Arc::new(BhyveIrqLine::new(self.fd.clone(), gsi, self.resets.clone()))
    }

    fn line_is_level(&self, gsi: u32) -> Result<(), HypervisorError> {
        // Lines above have no PIC, and the timer, the keyboard, the cascade, the clock and the coprocessor are edges by
        // the chip's nature (82371AB datasheet, ELCR1 and ELCR2).
        if let irq @ (3..=7 | 9..=12 | 14 | 15) = gsi {
            let irq = irq.cast_signed();
            self.fd.isa_line_is_level(irq)?;
            self.settings().level_lines.push(irq);
        }
        Ok(())
    }

    fn msi_source(&self) -> Arc<dyn MsiSource> {
        Arc::new(BhyveMsiSource::new(self.fd.clone()))
    }

    fn doorbells(&self) -> Option<Arc<dyn HardwareDoorbells>> {
        None
    }

    fn attach_link(&self, name: &str, link: &Link, options: &LinkOptions) -> Result<KernelNic, HypervisorError> {
        viona::attach(&self.fd, name, link, options)
    }

    fn has_hpet(&self) -> bool {
        true
    }

    fn map_rom(&self, gpa: u64, image: &[u8]) -> Result<(), HypervisorError> {
        self.roms.add(&self.fd, gpa, image)
    }

    fn set_up_kernel_devices(&self, devices: &KernelDevices) -> Result<(), HypervisorError> {
        self.place_devices(devices)?;
        self.settings().devices = Some(devices.clone());
        Ok(())
    }

    fn reset(&self) -> Result<(), HypervisorError> {
        self.fd.reinit()?;
        self.resets.count();
        self.roms.map_again(&self.fd)?;
        let settings = self.settings();
        for &irq in &settings.level_lines {
            self.fd.isa_line_is_level(irq)?;
        }
        if let Some(devices) = &settings.devices {
            self.place_devices(devices)?;
        }
        Ok(())
    }

    fn pause(&self) -> Result<(), HypervisorError> {
        let mut settings = self.settings();
        if !settings.paused {
            already(self.fd.pause())?;
            settings.paused = true;
        }
        Ok(())
    }

    fn resume(&self) -> Result<(), HypervisorError> {
        let mut settings = self.settings();
        if settings.paused {
            already(self.fd.resume())?;
            settings.paused = false;
        }
        Ok(())
    }

    fn leave(&self, restart: bool) {
        // Without a restart the VM ends with its descriptors. With one, a guest that starts again within the same VM
        // needs no memory given back, zeroed and allocated anew.
        if !restart {
            return;
        }
        let left = self.resume().and_then(|()| Ok(self.fd.autodestruct(false)?));
        if let Err(error) = left {
            log::warn!("bhyve: {error}: the guest starts in a new VM");
        }
    }
}

/// Somebody else has paused or resumed the VM: it is as it should be.
fn already(result: CallResult<()>) -> CallResult<()> {
    match result {
        Err(CallError { errno: Errno::EALREADY, .. }) => Ok(()),
        other => other,
    }
}
