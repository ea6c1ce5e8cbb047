//! illumos KVM: `/dev/kvm` of SmartOS' kvm brand, behind `Sys`.
//!
//! A port of Linux KVM as of 2.6.34 with an object model of its own: a descriptor becomes a VM by KVM_CREATE_VM, and a
//! fresh one becomes a vCPU by KVM_CLONE of the VM's device number and KVM_CREATE_VCPU. Interrupt controllers and timer
//! chip are in the kernel; there is no irqfd, no ioeventfd, no read-only memory and no immediate exit.
//!
//! What the driver gets wrong, and what is therefore not done here:
//!
//! * Capabilities are asked for by value, those with nothing behind them not at all (`CAPABILITIES`).
//! * KVM_GET_CPUID2 copies past its buffer, KVM_GET_IRQCHIP reads an uninitialised chip number, KVM_SET_BOOT_CPU_ID keeps
//!   a lock for ever once there is a vCPU: never called (`device`).
//! * KVM_SET_GSI_ROUTING and KVM_SET_MSRS check their counts too late or too generously: counted before the call
//!   (`device`).
//! * KVM_CREATE_VCPU with any other number than the next one hands out another vCPU: refused (`vm`).
//! * Pages are neither locked nor faulted in, and a slot over the driver's own pages is not refused (`memory`).
//! * A CPUID leaf without an entry reads as the highest leaf, and leaf 7 is the host's (`cpuid`).
//! * KVM_SET_PIT2 needs a PIT, which it does not look for: always after KVM_CREATE_PIT2 (`vm`).

pub mod abi;
mod cpuid;
mod device;
mod irq;
mod kick;
mod memory;
mod net;
pub mod plain;
mod registers;
mod run_page;
mod vcpu;
mod vm;

#[cfg(test)]
mod fake;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use arch::cpu::{CpuidEntry, HypervisorLeaves};
use devices_host::sys::{Errno, Sys};

use self::abi::{KVM_API_VERSION, KVM_MAX_VCPUS, KVM_VCPU_MMAP_BYTES, cap};
use self::device::Device;
pub use self::net::open as open_link;
use super::frames::FrameDevice;
use super::{HostCapabilities, Hypervisor, HypervisorError, Vm, VmSpec};

const NAME: &str = "illumos-kvm";

/// Address width of the page tables the driver builds: it brings the host down when a guest goes beyond.
const MAX_PHYS_BITS: u8 = 48;

/// Every capability the machine is built on: its number, the least value that will do, its name, and what it is for.
const CAPABILITIES: [(usize, i32, &str, &str); 12] = [
    (cap::USER_MEMORY, 1, "KVM_CAP_USER_MEMORY", "guest memory"),
    (cap::NR_MEMSLOTS, 4, "KVM_CAP_NR_MEMSLOTS", "guest memory"),
    (cap::SET_TSS_ADDR, 1, "KVM_CAP_SET_TSS_ADDR", "real-mode code"),
    (cap::SET_IDENTITY_MAP_ADDR, 1, "KVM_CAP_SET_IDENTITY_MAP_ADDR", "real-mode code"),
    (cap::IRQCHIP, 1, "KVM_CAP_IRQCHIP", "the in-kernel PIC, IOAPIC and local APICs"),
    (cap::IRQ_ROUTING, 64, "KVM_CAP_IRQ_ROUTING", "message-signalled interrupts"),
    (cap::PIT2, 1, "KVM_CAP_PIT2", "the in-kernel timer chip"),
    (cap::PIT_STATE2, 1, "KVM_CAP_PIT_STATE2", "guest reset"),
    (cap::EXT_CPUID, 1, "KVM_CAP_EXT_CPUID", "the guest's CPUID"),
    (cap::MP_STATE, 1, "KVM_CAP_MP_STATE", "guest reset"),
    (cap::VCPU_EVENTS, 1, "KVM_CAP_VCPU_EVENTS", "guest reset"),
    (cap::NR_VCPUS, 1, "KVM_CAP_NR_VCPUS", "virtual CPUs"),
];

/// KVM_FEATURE_CLOCKSOURCE and KVM_FEATURE_NOP_IO_DELAY (Linux `Documentation/virt/kvm/x86/cpuid.rst`): the clock's
/// registers are 0x11 and 0x12.
const KVM_FEATURES: u32 = 1 << 0 | 1 << 1;

/// `/dev/kvm` of illumos, opened and checked.
pub struct IllumosKvmHypervisor {
    sys: Arc<dyn Sys>,
    /// Holds the hardware for this process, so that nothing checked here changes before there is a VM.
    _system: Device,
    cpuid: Vec<CpuidEntry>,
    capabilities: HostCapabilities,
    patience: memory::Patience,
}

impl IllumosKvmHypervisor {
    /// Opens the device and checks that the driver has all the machine needs.
    ///
    /// # Errors
    /// What is missing, and what to do.
    pub fn open(sys: Arc<dyn Sys>) -> Result<Self, HypervisorError> {
        let system = Device::open(&sys).map_err(|error| HypervisorError::Unavailable(open_hint(error)))?;
        let version = system.api_version().map_err(|error| call("KVM_GET_API_VERSION", error))?;
        if version != KVM_API_VERSION {
            return Err(unavailable(&format!("API version {version}, need {KVM_API_VERSION}")));
        }
        let mut max_vcpus = 0;
        for (number, least, capability, purpose) in CAPABILITIES {
            let value = match system.check_extension(number) {
                Ok(value) => value,
                Err(Errno::EINVAL) => 0,
                Err(error) => return Err(call("KVM_CHECK_EXTENSION", error)),
            };
            if value < least {
                return Err(HypervisorError::MissingCapability { hypervisor: NAME, capability, purpose });
            }
            if number == cap::NR_VCPUS {
                max_vcpus = value.unsigned_abs().min(KVM_MAX_VCPUS as u32);
            }
        }
        let shared_bytes = system.vcpu_mmap_size().map_err(|error| call("KVM_GET_VCPU_MMAP_SIZE", error))?;
        if usize::try_from(shared_bytes) != Ok(KVM_VCPU_MMAP_BYTES) {
            return Err(unavailable(&format!("shares {shared_bytes} bytes a vCPU, need {KVM_VCPU_MMAP_BYTES}")));
        }
        let offered = system.supported_cpuid().map_err(|error| call("KVM_GET_SUPPORTED_CPUID", error))?;
        let cpuid = cpuid::supported(&offered);
        let capabilities = HostCapabilities {
            name: NAME,
            max_vcpus,
            phys_bits: arch::cpu::phys_bits(&cpuid).min(MAX_PHYS_BITS),
            apic_timer_hz: 1_000_000_000,
            x2apic: true,
            tsc_deadline: false,
            hypervisor_leaves: HypervisorLeaves::Kvm { features: KVM_FEATURES, hints: 0 },
            rtc_in_kernel: false,
            pm_timer_in_kernel: false,
        };
        Ok(Self { sys, _system: system, cpuid, capabilities, patience: memory::PATIENCE })
    }
}

impl Hypervisor for IllumosKvmHypervisor {
    fn capabilities(&self) -> &HostCapabilities {
        &self.capabilities
    }

    fn supported_cpuid(&self) -> Result<Vec<CpuidEntry>, HypervisorError> {
        Ok(self.cpuid.clone())
    }

    fn create_vm(&self, spec: &VmSpec) -> Result<Arc<dyn Vm>, HypervisorError> {
        Ok(Arc::new(vm::IllumosKvmVm::create(&self.sys, spec, self.patience)?))
    }

    fn sys(&self) -> Option<&Arc<dyn Sys>> {
        Some(&self.sys)
    }

    fn frame_device(&self) -> Option<FrameDevice> {
        Some(FrameDevice::Vnd)
    }
}

fn call(name: &'static str, error: Errno) -> HypervisorError {
    HypervisorError::Call { call: name, source: error.to_io_error() }
}

fn unavailable(what: &str) -> HypervisorError {
    HypervisorError::Unavailable(format!("{}: {what}: this is not the driver of SmartOS", device::PATH))
}

fn open_hint(error: Errno) -> String {
    let hint = match error {
        Errno::ENOENT => "the zone has no such device: its brand must be kvm",
        Errno::ENXIO => {
            "the processor's virtualization cannot be had: it needs Intel VT-x with EPT, switched on in the firmware, and no \
             other hypervisor than bhyve beside it"
        }
        Errno::EACCES | Errno::EPERM => "only the zone's root may open it",
        Errno::EMFILE => "raise the limit of open files",
        _ => "is the kvm driver of SmartOS loaded?",
    };
    format!("{}: {error}: {hint}", device::PATH)
}
