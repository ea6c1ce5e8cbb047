//! illumos bhyve: `/dev/vmmctl` and `/dev/vmm/<name>`, behind [`Sys`].
//!
//! The kernel owns guest memory and emulates the interrupt controllers, the timer chips, the real-time clock, the HPET
//! and the PM timer. Every exit is answered with the next entry; interrupt lines count; an MSI is an ioctl; nothing
//! here is signalled by a descriptor. [`abi`] has the interface bit for bit, `vmfd` the ioctls as typed calls (all
//! unsafe ones are there), and the rest is safe code over them.

pub mod abi;
mod cpuid;
mod error;
mod exits;
mod irq;
mod kick;
mod memory;
pub mod nvlist;
mod registers;
mod shell;
mod state;
mod vcpu;
mod viona;
mod vm;
mod vmfd;

#[cfg(test)]
mod tests;

use std::sync::{Arc, Mutex, PoisonError};

use arch::cpu::{CpuidEntry, HypervisorLeaves};
use devices_host::sys::{Errno, Link, Sys, SysResult};

pub use self::error::{CallError, CallResult};
pub use self::state::KernelState;
pub use self::vm::BhyveVm;
pub use self::vmfd::VmFd;

use self::shell::{Existing, Shell};
use self::vmfd::Control;
use super::{HostCapabilities, Hypervisor, HypervisorError, Vm, VmSpec};
use crate::config::VmConfig;

const NAME: &str = "bhyve";

/// The oldest interface that has a barrier for kicks, reliable reports of a suspension, CPUID tables and writable state.
const OLDEST_INTERFACE: i32 = 16;

/// vCPUs of a VM where the kernel does not say.
const VCPUS_EVERYWHERE: u16 = 32;

/// What of the configuration has to be known when the VM is created, which is before its memory is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BhyveConfig {
    /// Name of the VM, unique on the whole machine.
    pub name: String,
    /// Take guest memory from the machine's reservoir.
    pub reservoir: bool,
}

impl From<&VmConfig> for BhyveConfig {
    fn from(config: &VmConfig) -> Self {
        Self { name: config.name.clone(), reservoir: config.memory.reservoir }
    }
}

/// The control device, and a VM without memory.
///
/// The VM comes first, because what the kernel offers a guest's CPUs can be asked of a VM alone, and a zone can have only
/// one: so everything the configuration asks of the CPUs can be refused before there is guest memory.
pub struct BhyveHypervisor {
    sys: Arc<dyn Sys>,
    control: Control,
    config: BhyveConfig,
    patience: memory::Patience,
    shell: Mutex<Option<Shell>>,
    cpuid: Vec<CpuidEntry>,
    capabilities: HostCapabilities,
}

impl BhyveHypervisor {
    /// Opens the control device, checks the kernel's interface and creates the VM, which ends with the process.
    ///
    /// # Errors
    /// One line that says what to do. No VM is left behind.
    pub fn open(sys: Arc<dyn Sys>, config: BhyveConfig) -> Result<Self, HypervisorError> {
        shell::check_name(&config.name)?;
        let control = Control::open(&sys).map_err(|error| HypervisorError::Unavailable(open_hint(error)))?;
        let version = control.interface_version()?;
        if version < OLDEST_INTERFACE {
            return Err(HypervisorError::Unavailable(format!(
                "{}: interface version {version}, need {OLDEST_INTERFACE} or newer: use a newer platform",
                Control::NODE
            )));
        }
        let shell = Shell::obtain(&control, &config, Existing::TakeOver)?;
        let cpuid = cpuid::offered(&shell.fd)?;
        let max_vcpus = shell.fd.max_vcpus().ok().filter(|&max| max > 0).unwrap_or(VCPUS_EVERYWHERE);
        let capabilities = HostCapabilities {
            name: NAME,
            max_vcpus: u32::from(max_vcpus).min(abi::VM_MAXCPU_oxide),
            phys_bits: arch::cpu::phys_bits(&cpuid),
            apic_timer_hz: abi::LAPIC_TIMER_HZ,
            x2apic: true,
            tsc_deadline: false,
            hypervisor_leaves: HypervisorLeaves::Bhyve,
            rtc_in_kernel: true,
            pm_timer_in_kernel: true,
        };
        let patience = memory::PATIENCE;
        Ok(Self { sys, control, config, patience, shell: Mutex::new(Some(shell)), cpuid, capabilities })
    }

    /// [`Hypervisor::create_vm`] with the VM's own type.
    ///
    /// # Errors
    /// What the kernel refuses. The VM is gone then.
    pub fn create(&self, spec: &VmSpec) -> Result<BhyveVm, HypervisorError> {
        memory::check(&spec.ram, &spec.ram_options)?;
        let waiting = self.shell.lock().unwrap_or_else(PoisonError::into_inner).take();
        let mut shell = match waiting {
            Some(shell) => shell,
            None => Shell::obtain(&self.control, &self.config, Existing::WaitForItsEnd)?,
        };
        let mut ram_is_used = shell.existing;
        if shell.existing && !take_over(&shell, spec) {
            shell.destroy(&self.control, &self.config.name);
            shell = Shell::obtain(&self.control, &self.config, Existing::WaitForItsEnd)?;
            ram_is_used = false;
        }
        if !ram_is_used {
            memory::allocate(&shell.fd, &spec.ram, &spec.ram_options, self.config.reservoir, self.patience)?;
        }
        let ram = memory::Ram::map(&shell.fd, &spec.ram, &spec.ram_options)?;
        Ok(BhyveVm::new(shell.fd, ram, ram_is_used))
    }
}

/// Resets a VM that was there before; whether it can serve.
fn take_over(shell: &Shell, spec: &VmSpec) -> bool {
    let attempt = || -> CallResult<bool> {
        // Whoever left it in a pause did not leave it for another process.
        if state::is_paused(&shell.fd)? {
            return Ok(false);
        }
        // EBUSY: the kernel's network queues of the process before are still there.
        shell.fd.reinit()?;
        memory::is_as_wanted(&shell.fd, &spec.ram, &spec.ram_options)
    };
    match attempt() {
        Ok(serves) => serves,
        Err(error) => {
            log::info!("bhyve: the VM that was there cannot be used again: {error}");
            false
        }
    }
}

impl Hypervisor for BhyveHypervisor {
    fn capabilities(&self) -> &HostCapabilities {
        &self.capabilities
    }

    fn supported_cpuid(&self) -> Result<Vec<CpuidEntry>, HypervisorError> {
        Ok(self.cpuid.clone())
    }

    fn create_vm(&self, spec: &VmSpec) -> Result<Arc<dyn Vm>, HypervisorError> {
        Ok(Arc::new(self.create(spec)?))
    }

    fn sys(&self) -> Option<&Arc<dyn Sys>> {
        Some(&self.sys)
    }

    fn kernel_link(&self, name: &str) -> Option<SysResult<Link>> {
        Some(self.sys.link(name))
    }
}

fn open_hint(error: CallError) -> String {
    let hint = match error.errno {
        Errno::ENOENT => "load the driver vmm, or give the zone the device (add device; set match=vmm*)",
        Errno::EACCES | Errno::EPERM => "the process must be root",
        _ => "is the driver vmm attached?",
    };
    format!("{error}: {hint}")
}
