//! Linux KVM: in-kernel interrupt controllers and PIT, irqfd with MSI routing, ioeventfd, immediate exit.

mod collected;
mod irq;
mod kick;
mod registers;
pub mod requests;
mod rom;
mod vcpu;
mod vhost;
mod vm;

#[cfg(test)]
mod tests;

use std::io;
use std::path::Path;
use std::sync::Arc;

use arch::cpu::{CpuidEntry, HypervisorLeaves};
use kvm_ioctls::{Cap, Kvm};

use super::{HostCapabilities, Hypervisor, HypervisorError, Vm, VmSpec};

const NAME: &str = "kvm";
const DEVICE: &str = "/dev/kvm";

/// Most entries KVM_GET_SUPPORTED_CPUID can give (KVM_MAX_CPUID_ENTRIES).
const MAX_CPUID_ENTRIES: usize = 256;

/// Every capability the machine is built on, and what for: a host that lacks one is told so at start, not by a guest
/// that hangs later.
const NEEDED: [(Cap, &str, &str); 11] = [
    (Cap::UserMemory, "KVM_CAP_USER_MEMORY", "guest memory"),
    (Cap::Irqchip, "KVM_CAP_IRQCHIP", "the in-kernel PIC, IOAPIC and local APICs"),
    (Cap::Pit2, "KVM_CAP_PIT2", "the in-kernel timer chip"),
    (Cap::IrqRouting, "KVM_CAP_IRQ_ROUTING", "message-signalled interrupts"),
    (Cap::Irqfd, "KVM_CAP_IRQFD", "interrupts from worker threads"),
    (Cap::Ioeventfd, "KVM_CAP_IOEVENTFD", "virtqueue doorbells"),
    (Cap::ImmediateExit, "KVM_CAP_IMMEDIATE_EXIT", "pause and stop"),
    (Cap::ExtCpuid, "KVM_CAP_EXT_CPUID", "the guest's CPUID"),
    (Cap::MpState, "KVM_CAP_MP_STATE", "guest reset"),
    (Cap::VcpuEvents, "KVM_CAP_VCPU_EVENTS", "guest reset"),
    (Cap::SetTssAddr, "KVM_CAP_SET_TSS_ADDR", "real-mode code on older Intel processors"),
];

/// `/dev/kvm`, opened and checked.
pub struct KvmHypervisor {
    kvm: Kvm,
    cpuid: Vec<CpuidEntry>,
    capabilities: HostCapabilities,
}

impl KvmHypervisor {
    /// Opens the device and checks that the kernel has all the machine needs.
    pub fn open() -> Result<Self, HypervisorError> {
        let kvm = Kvm::new().map_err(|error| HypervisorError::Unavailable(open_hint(&error.into())))?;
        let version = kvm.get_api_version();
        if version != 12 {
            return Err(HypervisorError::Unavailable(format!("{DEVICE}: API version {version}, need 12")));
        }
        for (cap, capability, purpose) in NEEDED {
            if !kvm.check_extension(cap) {
                return Err(HypervisorError::MissingCapability { hypervisor: NAME, capability, purpose });
            }
        }
        let supported =
            kvm.get_supported_cpuid(MAX_CPUID_ENTRIES).map_err(|error| call("KVM_GET_SUPPORTED_CPUID", error))?;
        let cpuid: Vec<CpuidEntry> = supported.as_slice().iter().map(registers::cpuid_from_kvm).collect();
        let capabilities = HostCapabilities {
            name: NAME,
            max_vcpus: kvm.get_max_vcpus().try_into().unwrap_or(u32::MAX),
            phys_bits: arch::cpu::phys_bits(&cpuid),
            apic_timer_hz: 1_000_000_000,
            x2apic: true,
            tsc_deadline: kvm.check_extension(Cap::TscDeadlineTimer),
            hypervisor_leaves: HypervisorLeaves::Kvm { features: arch::cpu::kvm_features(&cpuid), hints: 0 },
            rtc_in_kernel: false,
            pm_timer_in_kernel: false,
        };
        Ok(Self { kvm, cpuid, capabilities })
    }
}

impl Hypervisor for KvmHypervisor {
    fn capabilities(&self) -> &HostCapabilities {
        &self.capabilities
    }

    fn supported_cpuid(&self) -> Result<Vec<CpuidEntry>, HypervisorError> {
        Ok(self.cpuid.clone())
    }

    fn tap_carrier(&self) -> Option<Result<(), HypervisorError>> {
        Some(vhost::check())
    }

    fn create_vm(&self, spec: &VmSpec) -> Result<Arc<dyn Vm>, HypervisorError> {
        devices_host::thread::install_kick_handler()
            .map_err(|source| HypervisorError::Call { call: "installing a signal handler", source })?;
        Ok(Arc::new(vm::KvmVm::create(&self.kvm, spec)?))
    }
}

fn call(name: &'static str, error: kvm_ioctls::Error) -> HypervisorError {
    HypervisorError::Call { call: name, source: error.into() }
}

/// Makes a call, and again while a signal interrupts it: KVM starts a thread of the kernel's in some, and who stops the process
/// for a moment does not want its guest to fail.
fn uninterrupted<T>(
    name: &'static str,
    mut make: impl FnMut() -> Result<T, kvm_ioctls::Error>,
) -> Result<T, HypervisorError> {
    loop {
        match make() {
            Err(error) if error.errno() == libc::EINTR => {}
            made => return made.map_err(|error| call(name, error)),
        }
    }
}

fn open_hint(error: &io::Error) -> String {
    let hint = match error.kind() {
        io::ErrorKind::NotFound if Path::new("/sys/module/kvm").exists() => {
            "load kvm_intel or kvm_amd; is virtualization switched off in the firmware?"
        }
        io::ErrorKind::NotFound => "load the kvm module, or make the device visible in this container",
        io::ErrorKind::PermissionDenied => "add the user to the group that owns it (usually kvm)",
        _ => "is another hypervisor using the processor's virtualization?",
    };
    format!("{DEVICE}: {}: {hint}", os_message(error))
}

/// The system's words for an error, without the "(os error N)" that tells a user nothing.
fn os_message(error: &io::Error) -> String {
    let text = error.to_string();
    text.split(" (os error").next().unwrap_or(&text).to_owned()
}
