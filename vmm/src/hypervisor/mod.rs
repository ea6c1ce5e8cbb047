//! What the machine needs of a hypervisor, and one folder a backend.
//!
//! The traits are shaped by the narrowest backend (`bhyve`): guest RAM may belong to the kernel, so creating a VM gives
//! the memory back; every exit, writes included, is answered on the *next* entry, so exits are answered through an
//! [`ExitHandler`] while the vCPU is out and a backend keeps the answer until an entry has consumed it; irqfd, ioeventfd
//! and an immediate-exit flag exist on Linux KVM only, so an interrupt line, an MSI source and a doorbell are objects
//! whose kernel shortcut is the backend's own business.

use std::os::fd::RawFd;
use std::sync::Arc;

use arch::cpu::CpuidEntry;
use arch::regs::BootCpu;
use devices::GuestRam;
use devices::bus::Access;
use devices::interrupt::{IrqLine, MsiSource};
use devices::park::Parked;
use devices::virtio::net::kernel::KernelQueues;
use devices_host::sys::{Link, Sys, SysResult};
use devices_host::tap::Tap;

use self::frames::{FrameDevice, FrameLink, LinkError};
use crate::config::VmConfig;

#[cfg(target_os = "linux")]
#[path = "host/linux.rs"]
mod host;

#[cfg(target_os = "illumos")]
#[path = "host/illumos.rs"]
mod host;

pub mod bhyve;
pub mod frames;
pub mod illumos_kvm;
mod layout;

#[cfg(target_os = "linux")]
pub mod kvm;

pub use host::open;
pub(crate) use host::thread_id;

/// Refuses memory from a reservoir where the hypervisor has none.
fn refuse_reservoir(config: &VmConfig) -> Result<(), HypervisorError> {
    if config.memory.reservoir {
        let line = "memory: the reservoir is bhyve's, and kvm takes memory where it is free";
        return Err(HypervisorError::Unavailable(line.to_owned()));
    }
    Ok(())
}

/// How a process comes to its hypervisor: the host's own ([`open`]), or a backend on a double of its kernel.
pub type OpenHypervisor<'a> = &'a dyn Fn(&VmConfig) -> Result<Box<dyn Hypervisor>, HypervisorError>;

/// What went wrong between the process and the hypervisor. Every variant ends the guest or prevents its start; the
/// message names the call and what to do.
#[derive(Debug, thiserror::Error)]
pub enum HypervisorError {
    /// The hypervisor cannot be had on this host at all.
    #[error("{0}")]
    Unavailable(String),
    /// The hypervisor lacks something the machine is built on.
    #[error("{hypervisor} lacks {capability}, needed for {purpose}: use a newer host kernel")]
    MissingCapability {
        /// Name of the backend.
        hypervisor: &'static str,
        /// The missing capability.
        capability: &'static str,
        /// What it is needed for.
        purpose: &'static str,
    },
    /// Guest memory could not be had.
    #[error("memory: {0}")]
    Memory(String),
    /// A call failed that should not fail.
    #[error("{call}: {source}")]
    Call {
        /// The failing call.
        call: &'static str,
        /// Why.
        source: std::io::Error,
    },
    /// The vCPU cannot go on.
    #[error("vcpu{vcpu}: {what}")]
    Vcpu {
        /// The vCPU.
        vcpu: u8,
        /// What the hypervisor said.
        what: String,
    },
}

/// What this host's hypervisor can do, as far as the machine's shape depends on it.
#[derive(Clone, Debug)]
pub struct HostCapabilities {
    /// Name for logs and `query-status`.
    pub name: &'static str,
    /// Most vCPUs of one VM.
    pub max_vcpus: u32,
    /// Width of guest-physical addresses.
    pub phys_bits: u8,
    /// Clock of the local APIC timer in Hz.
    pub apic_timer_hz: u32,
    /// Whether the local APIC has x2APIC mode.
    pub x2apic: bool,
    /// Whether the local APIC has a TSC-deadline timer.
    pub tsc_deadline: bool,
    /// Hypervisor leaves the guest gets.
    pub hypervisor_leaves: arch::cpu::HypervisorLeaves,
    /// Whether the kernel answers ports 0x70/0x71, so that the machine must not.
    pub rtc_in_kernel: bool,
    /// Whether the kernel answers the ACPI PM timer port, so that the machine must not.
    pub pm_timer_in_kernel: bool,
}

/// What a VM is made of, before devices.
#[derive(Clone, Debug)]
pub struct VmSpec {
    /// Name of the VM, where the hypervisor has a place for one.
    pub name: String,
    /// Ranges of guest RAM: address and length in bytes.
    pub ram: Vec<(u64, u64)>,
    /// How the RAM is backed.
    pub ram_options: devices_host::ram::RamOptions,
}

/// A way to run VMs on this host.
pub trait Hypervisor: Send + Sync {
    /// What it can do.
    fn capabilities(&self) -> &HostCapabilities;

    /// CPUID leaves the host supports for guests: the basis of [`arch::cpu::build_cpuid`].
    fn supported_cpuid(&self) -> Result<Vec<CpuidEntry>, HypervisorError>;

    /// Creates a VM with its memory, interrupt controllers and PIT; no vCPU yet.
    fn create_vm(&self, spec: &VmSpec) -> Result<Arc<dyn Vm>, HypervisorError>;

    /// What an illumos backend asks its kernel through: volumes belong to the same kernel, and are opened through it.
    fn sys(&self) -> Option<&Arc<dyn Sys>> {
        None
    }

    /// Looks up a data link whose queues the VM's kernel can carry ([`Vm::attach_link`]); `None` where no kernel here does.
    fn kernel_link(&self, _name: &str) -> Option<SysResult<Link>> {
        None
    }

    /// Whether this host's kernel can carry the queues of a card on a TAP device ([`Vm::attach_tap`]), or one line that says
    /// what it lacks; `None` where the hypervisor has nothing of the kind.
    fn tap_carrier(&self) -> Option<Result<(), HypervisorError>> {
        None
    }

    /// Opens a link of the host for plain frames, where the host has the device: illumos only.
    ///
    /// # Errors
    /// See [`LinkError`].
    fn open_link(&self, device: FrameDevice, name: &str) -> Result<Arc<dyn FrameLink>, LinkError> {
        match self.sys() {
            Some(sys) => illumos_kvm::open_link(sys, device, name),
            None => {
                let device = match device {
                    FrameDevice::Vnd => "vnd",
                    FrameDevice::Dlpi => "dlpi",
                };
                let line = format!("link {name} by {device}: only illumos has that; use tap={name} on this host");
                Err(LinkError::Config(line))
            }
        }
    }

    /// What carries a link of the host that is named and nothing more, where that is not a TAP interface.
    fn frame_device(&self) -> Option<FrameDevice> {
        None
    }
}

/// How a kernel is to carry a card's queues ([`Vm::attach_link`]).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LinkOptions {
    /// Queue pairs of the card.
    pub pairs: u16,
    /// Whether the kernel copies what the guest sends, and does not lend the guest's pages to the network instead, where a
    /// slow device then holds up a ring's reset. As the kernel has it when not given.
    pub tx_copy_data: Option<bool>,
    /// Bytes to leave free before what the guest sends, for headers that the network puts there. As the kernel has it when not
    /// given.
    pub tx_header_pad: Option<u16>,
}

impl LinkOptions {
    /// So many queue pairs, and all else as the kernel has it.
    #[must_use]
    pub fn new(pairs: u16) -> Self {
        Self { pairs, tx_copy_data: None, tx_header_pad: None }
    }
}

/// One virtual machine.
pub trait Vm: Send + Sync {
    /// The guest's RAM.
    fn ram(&self) -> &GuestRam;

    /// Whether the RAM holds what an earlier process' guest wrote. RAM is zero otherwise.
    fn ram_is_used(&self) -> bool {
        false
    }

    /// Frequency of the guest's time-stamp counter, where the hypervisor tells.
    fn tsc_khz(&self) -> Option<u32>;

    /// Creates vCPU `id` (its APIC id too) with its CPUID table, in the state after power-on.
    fn create_vcpu(&self, id: u8, cpuid: &[CpuidEntry]) -> Result<Box<dyn Vcpu>, HypervisorError>;

    /// The interrupt line into IOAPIC pin `gsi`, and into the PIC where `gsi` < 16.
    fn irq_line(&self, gsi: u32) -> Arc<dyn IrqLine>;

    /// Says that devices drive the line `gsi` as a level, so that the PIC takes it so (ELCR), now and after every reset,
    /// where the kernel lets the process say that. Without firmware nobody else does.
    fn line_is_level(&self, _gsi: u32) -> Result<(), HypervisorError> {
        Ok(())
    }

    /// A new message-signalled interrupt, without a message.
    fn msi_source(&self) -> Arc<dyn MsiSource>;

    /// Kernel doorbells, where the hypervisor has them.
    fn doorbells(&self) -> Option<Arc<dyn HardwareDoorbells>>;

    /// Has the kernel carry the data queues of a network card on the data link `name`, which was
    /// [looked up](Hypervisor::kernel_link), as the `options` say: it lets go of the link with the queues.
    ///
    /// # Errors
    /// One line: the kernel does not have so many pairs, the link is somebody else's, or what else the kernel says.
    fn attach_link(&self, name: &str, _link: &Link, _options: &LinkOptions) -> Result<KernelNic, HypervisorError> {
        Err(HypervisorError::Unavailable(format!("link {name}: no kernel here carries the queues of a network card")))
    }

    /// Has the kernel carry the data queues of a network card on a TAP device, called `name`, of which nobody else moves frames:
    /// a pair for each of its queues `taps`, of which the first one alone is [attached](Tap::set_attached).
    ///
    /// # Errors
    /// One line that says what to do.
    fn attach_tap(&self, name: &str, _taps: Vec<Tap>) -> Result<KernelNic, HypervisorError> {
        Err(HypervisorError::Unavailable(format!("{name}: no kernel here carries the queues of a network card")))
    }

    /// Collected port writes, where the hypervisor has them. After the first vCPU was created.
    fn port_collector(&self) -> Option<Arc<dyn PortCollector>> {
        None
    }

    /// Puts read-only memory with the contents of `image` (whole pages) at `gpa`. The guest's writes to it change nothing
    /// and arrive at [`ExitHandler::mmio_write`]; where the hypervisor has no read-only memory they do change it, until
    /// [`reset`](Self::reset). Before the first vCPU runs.
    fn map_rom(&self, gpa: u64, image: &[u8]) -> Result<(), HypervisorError>;

    /// Whether the kernel answers at [`arch::layout::HPET`] as an HPET.
    fn has_hpet(&self) -> bool {
        false
    }

    /// Sets up what the kernel emulates in place of the machine ([`HostCapabilities::rtc_in_kernel`],
    /// [`HostCapabilities::pm_timer_in_kernel`]), now and after every reset; the real-time clock gets the host's time.
    /// Called once, before the first vCPU runs.
    fn set_up_kernel_devices(&self, devices: &KernelDevices) -> Result<(), HypervisorError>;

    /// Puts everything the kernel emulates outside the vCPUs into its power-on state: interrupt controllers, timer chip,
    /// clock. All vCPUs are out, and each is [reset](Vcpu::reset) on its own thread afterwards, before any runs.
    fn reset(&self) -> Result<(), HypervisorError>;

    /// Stops the timers of what the kernel emulates, where it can. No vCPU is in the guest, and none enters before
    /// [`resume`](Self::resume); a reset in between changes nothing about it. Idempotent.
    fn pause(&self) -> Result<(), HypervisorError> {
        Ok(())
    }

    /// Undoes [`pause`](Self::pause). Idempotent.
    fn resume(&self) -> Result<(), HypervisorError> {
        Ok(())
    }

    /// The process is about to end, with no vCPU running. `restart` says that its exit status asks for the guest to be
    /// started again by another process, which may want to take the VM over.
    fn leave(&self, restart: bool);
}

/// A network card as far as the kernel carries it.
pub struct KernelNic {
    /// Its data queues.
    pub queues: Arc<dyn KernelQueues>,
    /// Polls readable while an interrupt waits that has no message. It is the queues', and open as long as they are.
    pub descriptor: RawFd,
    /// The largest packet without its Ethernet header, where the kernel tells.
    pub mtu: Option<u16>,
}

/// What the machine wants of devices that the kernel emulates.
#[derive(Clone, Debug, Default)]
pub struct KernelDevices {
    /// Port of the ACPI PM timer.
    pub pm_timer_port: Option<u16>,
    /// Bytes of the real-time clock's memory: offset and value.
    pub nvram: Vec<(u8, u8)>,
}

/// A guest address whose write the kernel turns into a wake-up without a return to the process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DoorbellAddress {
    /// Any write to this guest-physical address.
    Mmio(u64),
    /// A 16-bit write of `value` to `port`.
    Pio {
        /// The port.
        port: u16,
        /// The value that rings.
        value: u16,
    },
}

/// Doorbells in the kernel (ioeventfd). Optional: without them the bus write wakes the worker.
pub trait HardwareDoorbells: Send + Sync {
    /// From now on a write to `at` signals `event`. The descriptor is an eventfd and must outlive the binding.
    fn bind(&self, at: DoorbellAddress, event: RawFd) -> Result<(), HypervisorError>;

    /// Undoes [`bind`](Self::bind).
    fn unbind(&self, at: DoorbellAddress, event: RawFd) -> Result<(), HypervisorError>;
}

/// Lets the kernel collect `out`s instead of returning from the guest for each; they are dispatched, in order, before
/// the next exit of any vCPU. Optional. For index registers, whose writes do nothing a guest could notice before its next
/// access.
pub trait PortCollector: Send + Sync {
    /// From now on collects writes that lie inside the `len` ports from `port`; `false` where it cannot: then nothing
    /// changes.
    fn collect(&self, port: u16, len: u8) -> bool;

    /// Undoes [`collect`](Self::collect). What was collected before stays to be taken out.
    fn release(&self, port: u16, len: u8);

    /// Hands over what was collected, for a guest that has not left since.
    fn take_out(&self, write: &mut dyn FnMut(u16, &[u8]));
}

/// Answers what the guest asks of the process. Called on the vCPU's own thread, outside every lock of the backend.
pub trait ExitHandler {
    /// `in` from a port: fills `data` (1, 2 or 4 bytes).
    fn port_in(&mut self, port: u16, data: &mut [u8]) -> Access;
    /// `out` to a port.
    fn port_out(&mut self, port: u16, data: &[u8]) -> Access;
    /// A read of guest-physical memory that is not RAM.
    fn mmio_read(&mut self, address: u64, data: &mut [u8]) -> Access;
    /// A write to guest-physical memory that is not writable RAM.
    fn mmio_write(&mut self, address: u64, data: &[u8]) -> Access;
    /// RDMSR the hypervisor does not know; `None` injects #GP.
    fn rdmsr(&mut self, code: u32) -> Option<u64>;
    /// WRMSR the hypervisor does not know; `false` injects #GP.
    fn wrmsr(&mut self, code: u32, value: u64) -> bool;
    /// Counts a return from the guest by its kind.
    fn count(&mut self, exit: ExitKind);
}

/// Kinds of returns to the process, for the counters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
pub enum ExitKind {
    /// `in` from a port.
    PortIn,
    /// `out` to a port.
    PortOut,
    /// Read of a memory-mapped register.
    MmioRead,
    /// Write of a memory-mapped register.
    MmioWrite,
    /// RDMSR or WRMSR.
    Msr,
    /// A kick or a signal.
    Kicked,
    /// HLT that reached the process.
    Halt,
    /// Anything else.
    Other,
}

impl ExitKind {
    /// All kinds, in the order of their discriminants.
    pub const ALL: [(Self, &'static str); 8] = [
        (Self::PortIn, "port_in"),
        (Self::PortOut, "port_out"),
        (Self::MmioRead, "mmio_read"),
        (Self::MmioWrite, "mmio_write"),
        (Self::Msr, "msr"),
        (Self::Kicked, "kicked"),
        (Self::Halt, "halt"),
        (Self::Other, "other"),
    ];
}

/// Why [`Vcpu::run`] came back to the vCPU loop.
#[derive(Debug)]
pub enum Stop {
    /// The hypervisor says the guest wants a reset.
    Reset,
    /// The hypervisor says the guest powered off.
    PowerOff,
    /// This vCPU is halted until a reset.
    Halt,
    /// All vCPUs are halted for ever, with interrupts off.
    AllHalted,
    /// Triple fault.
    TripleFault,
    /// Somebody kicked this vCPU, or a signal came: look at the control state and run again.
    Kicked,
    /// An access is accepted but not finished: do not enter the guest before the token completes.
    Parked(Parked),
}

/// Makes a vCPU leave the guest, from any thread.
pub trait Kick: Send + Sync {
    /// The next or current [`Vcpu::run`] returns [`Stop::Kicked`] soon. Never lost, never blocks.
    fn kick(&self);
}

/// How a vCPU starts after power-on or reset.
#[derive(Clone, Debug)]
pub enum VcpuStart {
    /// The boot processor, with these registers.
    Boot(Box<BootCpu>),
    /// An application processor: waits for INIT and SIPI.
    WaitForSipi,
}

/// One virtual CPU. All calls come from its own thread, once it has one.
pub trait Vcpu: Send {
    /// Puts the CPU into its power-on state, then applies `start`.
    fn reset(&mut self, start: &VcpuStart) -> Result<(), HypervisorError>;

    /// Prepares the calling thread to run this vCPU: kicks find it from now on. Called once on that thread.
    fn bind_to_current_thread(&mut self) -> Result<(), HypervisorError>;

    /// Runs the guest until something is left to decide. Port, memory and MSR exits are answered through `io` and do
    /// not come back unless they park.
    fn run(&mut self, io: &mut dyn ExitHandler) -> Result<Stop, HypervisorError>;

    /// Finishes an exit whose answer has not reached the guest yet, without running guest code: state may be read
    /// afterwards.
    fn quiesce(&mut self) -> Result<(), HypervisorError>;

    /// How other threads get it out of the guest.
    fn kicker(&self) -> Arc<dyn Kick>;

    /// Injects a non-maskable interrupt.
    fn inject_nmi(&mut self) -> Result<(), HypervisorError>;

    /// Tells a paravirtual clock that the guest stood still, so that its watchdogs do not bark.
    fn note_pause(&mut self);
}
