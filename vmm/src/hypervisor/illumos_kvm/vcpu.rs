//! One vCPU: its state after reset, and the run loop around KVM_RUN.

use std::sync::Arc;

use arch::cpu::CpuidEntry;
use arch::regs::reset_vector;
use devices::bus::Access;
use devices::park::Parked;
use devices_host::sys::{Errno, Sys};

use super::abi::{
    KVM_INTERNAL_ERROR_EMULATION, KVM_INTERNAL_ERROR_SIMUL_EX, KVM_MP_STATE_RUNNABLE, KVM_MP_STATE_UNINITIALIZED,
    KVM_VCPUEVENT_VALID_NMI_PENDING, KVM_VCPUEVENT_VALID_SIPI_VECTOR, exit, kvm_mp_state, kvm_msr_entry,
    kvm_vcpu_events,
};
use super::device::Device;
use super::kick::{IllumosKvmKick, mask_while_running};
use super::memory::VmFd;
use super::plain::zeroed;
use super::run_page::{Exit, RunPage};
use super::{HypervisorError, call, cpuid, registers};
use crate::hypervisor::{ExitHandler, ExitKind, Kick, Stop, Vcpu, VcpuStart};

/// Most returns to the process that one call of `run` answers before it looks at kicks again. A kick ends the loop at
/// once anyway (KVM_RUN returns EINTR), so this is a bound, not a latency.
const EXITS_PER_RUN: usize = 1 << 16;

/// One vCPU on illumos KVM.
pub struct IllumosKvmVcpu {
    // In the order in which they must go: the mapping before its descriptor, that before the VM's memory.
    page: RunPage,
    device: Device,
    sys: Arc<dyn Sys>,
    _vm: Arc<VmFd>,
    id: u8,
    kick: Arc<IllumosKvmKick>,
    exit: ExitState,
}

/// How far the last exit has got.
#[derive(Clone, Copy, PartialEq, Eq)]
enum ExitState {
    /// The guest has had its answer.
    Consumed,
    /// It is answered in the run page; the next KVM_RUN hands the answer over.
    Answered,
    /// Nobody has looked at it yet: it came out of [`Vcpu::quiesce`].
    Fresh,
}

/// How KVM_RUN returned.
enum Ran {
    Exit,
    /// A signal, or an application processor that was woken or not.
    Interrupted,
}

impl IllumosKvmVcpu {
    pub fn create(vm: Arc<VmFd>, id: u8, cpuid: &[CpuidEntry]) -> Result<Self, HypervisorError> {
        let table = cpuid::table(cpuid)?;
        let device = Device::clone_of(&vm).map_err(|error| call("KVM_CLONE", error))?;
        let index = device.create_vcpu(id).map_err(|error| call("KVM_CREATE_VCPU", error))?;
        if index != i32::from(id) {
            let what = format!("the kernel made it number {index}: vCPUs must be created in order");
            return Err(HypervisorError::Vcpu { vcpu: id, what });
        }
        let page = RunPage::map(&device).map_err(|error| call("mmap of the vCPU", error))?;
        device.set_cpuid2(&table).map_err(|error| call("KVM_SET_CPUID2", error))?;
        let sys = device.sys().clone();
        let kick = IllumosKvmKick::new(sys.clone());
        Ok(Self { page, device, sys, _vm: vm, id, kick, exit: ExitState::Consumed })
    }

    fn set_msrs(&self, entries: &[kvm_msr_entry]) -> Result<(), HypervisorError> {
        // The driver stops at the first register this host does not have: skip it and go on with the rest.
        let mut rest = entries;
        while !rest.is_empty() {
            let done = self.device.set_msrs(rest).map_err(|error| call("KVM_SET_MSRS", error))?;
            rest = rest.get(done + 1..).unwrap_or_default();
        }
        Ok(())
    }

    fn enter(&mut self) -> Result<Ran, HypervisorError> {
        let result = self.device.run();
        match result {
            Ok(()) => {
                self.exit = ExitState::Fresh;
                Ok(Ran::Exit)
            }
            // EAGAIN: an application processor that waited for its SIPI, whether it has it now or was interrupted.
            Err(Errno::EINTR | Errno::EAGAIN) => {
                self.exit = ExitState::Consumed;
                Ok(Ran::Interrupted)
            }
            Err(error) => Err(call("KVM_RUN", error)),
        }
    }

    fn failure(&self, what: String) -> HypervisorError {
        let place = self.device.regs().map_or_else(|_| String::new(), |regs| format!(" at rip {:#x}", regs.rip));
        HypervisorError::Vcpu { vcpu: self.id, what: what + &place }
    }

    /// Answers the exit in the run page.
    fn answer(&mut self, io: &mut dyn ExitHandler) -> Result<Answer, HypervisorError> {
        let access = match self.page.exit() {
            Exit::Port { out: true, port, width, len } => {
                io.count(ExitKind::PortOut);
                all(self.page.port_data(len).chunks(width).map(|element| io.port_out(port, element)))
            }
            Exit::Port { out: false, port, width, len } => {
                io.count(ExitKind::PortIn);
                all(self.page.port_data(len).chunks_mut(width).map(|element| io.port_in(port, element)))
            }
            Exit::Mmio { write: true, address, len } => {
                io.count(ExitKind::MmioWrite);
                io.mmio_write(address, self.page.mmio_data(len))
            }
            Exit::Mmio { write: false, address, len } => {
                io.count(ExitKind::MmioRead);
                io.mmio_read(address, self.page.mmio_data(len))
            }
            // With the in-kernel local APIC a halted vCPU sleeps in the kernel; this is for one without.
            Exit::Halt => {
                io.count(ExitKind::Halt);
                return Ok(Answer::Stop(Stop::Halt));
            }
            Exit::Shutdown => {
                io.count(ExitKind::Other);
                return Ok(Answer::Stop(Stop::TripleFault));
            }
            Exit::Interrupted => {
                self.sys.take_kick_signal();
                io.count(ExitKind::Kicked);
                return Ok(Answer::Stop(Stop::Kicked));
            }
            Exit::FailedEntry(reason) => {
                return Err(self.failure(format!("the processor refused to enter the guest (reason {reason:#x})")));
            }
            Exit::Internal(suberror) => {
                let what = match suberror {
                    KVM_INTERNAL_ERROR_EMULATION => "illumos KVM cannot emulate the instruction",
                    KVM_INTERNAL_ERROR_SIMUL_EX => "illumos KVM cannot deliver two exceptions at once",
                    _ => "illumos KVM internal error",
                };
                return Err(self.failure(format!("{what} (suberror {suberror})")));
            }
            Exit::Other(exit::UNKNOWN, reason) => {
                return Err(self.failure(format!("illumos KVM does not know hardware exit {reason:#x}")));
            }
            Exit::Other(reason, _) => return Err(self.failure(format!("unexpected exit {reason}"))),
        };
        Ok(match access {
            Access::Parked(token) if !token.is_complete() => Answer::Stop(Stop::Parked(token)),
            _ => Answer::GoOn,
        })
    }
}

enum Answer {
    GoOn,
    Stop(Stop),
}

impl Drop for IllumosKvmVcpu {
    fn drop(&mut self) {
        self.kick.disarm();
    }
}

impl Vcpu for IllumosKvmVcpu {
    fn reset(&mut self, start: &VcpuStart) -> Result<(), HypervisorError> {
        let boot = matches!(start, VcpuStart::Boot(_));
        let cpu = match start {
            VcpuStart::Boot(cpu) => **cpu,
            VcpuStart::WaitForSipi => reset_vector(),
        };
        self.exit = ExitState::Consumed;
        // The APIC base before the APIC's registers: the driver takes its address from there.
        self.device.set_sregs(&registers::special(&cpu.sregs, boot)).map_err(|error| call("KVM_SET_SREGS", error))?;
        self.device.set_regs(&registers::general(&cpu.regs)).map_err(|error| call("KVM_SET_REGS", error))?;
        self.set_msrs(&registers::msrs_after_reset())?;
        self.device
            .set_lapic(&registers::lapic_after_reset(self.id, boot))
            .map_err(|error| call("KVM_SET_LAPIC", error))?;
        let flags = KVM_VCPUEVENT_VALID_NMI_PENDING | KVM_VCPUEVENT_VALID_SIPI_VECTOR;
        self.device
            .set_vcpu_events(&kvm_vcpu_events { flags, ..zeroed() })
            .map_err(|error| call("KVM_SET_VCPU_EVENTS", error))?;
        self.device.set_fpu(&registers::fpu_after_reset()).map_err(|error| call("KVM_SET_FPU", error))?;
        let mp_state = if boot { KVM_MP_STATE_RUNNABLE } else { KVM_MP_STATE_UNINITIALIZED };
        self.device.set_mp_state(&kvm_mp_state { mp_state }).map_err(|error| call("KVM_SET_MP_STATE", error))
    }

    fn bind_to_current_thread(&mut self) -> Result<(), HypervisorError> {
        self.sys.block_kick_signal(true).map_err(|error| call("blocking a signal", error))?;
        self.device
            .set_signal_mask(&mask_while_running(self.sys.kick_signal()))
            .map_err(|error| call("KVM_SET_SIGNAL_MASK", error))?;
        self.kick.bind_to_current_thread();
        Ok(())
    }

    fn run(&mut self, io: &mut dyn ExitHandler) -> Result<Stop, HypervisorError> {
        for _ in 0..EXITS_PER_RUN {
            if self.exit != ExitState::Fresh
                && let Ran::Interrupted = self.enter()?
            {
                // Left pending, it would end every later KVM_RUN before it begins.
                self.sys.take_kick_signal();
                io.count(ExitKind::Kicked);
                return Ok(Stop::Kicked);
            }
            let answer = self.answer(io)?;
            self.exit = ExitState::Answered;
            if let Answer::Stop(stop) = answer {
                return Ok(stop);
            }
        }
        Ok(Stop::Kicked)
    }

    fn quiesce(&mut self) -> Result<(), HypervisorError> {
        if self.exit != ExitState::Answered {
            return Ok(());
        }
        // The driver hands the answer over on entry, looks for signals after that, and runs the guest last.
        self.sys.signal_thread(self.sys.current_thread());
        let ran = self.enter();
        self.sys.take_kick_signal();
        ran.map(drop)
    }

    fn kicker(&self) -> Arc<dyn Kick> {
        self.kick.clone()
    }

    fn inject_nmi(&mut self) -> Result<(), HypervisorError> {
        self.device.nmi().map_err(|error| call("KVM_NMI", error))
    }

    fn note_pause(&mut self) {
        // The driver has no call for it.
    }
}

/// Answers every element; parks on the last one that parked.
fn all(accesses: impl Iterator<Item = Access>) -> Access {
    let mut parked: Option<Parked> = None;
    for access in accesses {
        if let Access::Parked(token) = access {
            parked = Some(token);
        }
    }
    parked.map_or(Access::Done, Access::Parked)
}
