//! One vCPU: its state after reset, and the run loop around KVM_RUN.

use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;

use arch::cpu::CpuidEntry;
use arch::regs::reset_vector;
use devices::bus::Access;
use devices::park::Parked;
use kvm_bindings::{
    CpuId, KVM_MP_STATE_RUNNABLE, KVM_MP_STATE_UNINITIALIZED, Msrs, kvm_debugregs, kvm_fpu, kvm_mp_state,
    kvm_msr_entry, kvm_vcpu_events, kvm_xcr, kvm_xcrs,
};
use kvm_ioctls::{VcpuExit, VcpuFd, VmFd};

use super::collected::Collected;
use super::kick::KvmKick;
use super::{HypervisorError, call, registers, uninterrupted};
use crate::hypervisor::{ExitHandler, ExitKind, Kick, Stop, Vcpu, VcpuStart};

/// Most returns to the process that one call of `run` answers before it looks at kicks again. A kick ends the loop at
/// once anyway (KVM_RUN returns EINTR), so this is a bound, not a latency.
const EXITS_PER_RUN: usize = 1 << 16;

/// One vCPU on Linux KVM.
pub struct KvmVcpu {
    fd: VcpuFd,
    id: u8,
    kick: Arc<KvmKick>,
    /// Never run and never reset: KVM has just put it into its power-on state.
    pristine: bool,
    collected: Option<Arc<Collected>>,
}

impl KvmVcpu {
    pub fn create(vm: &VmFd, id: u8, cpuid: &[CpuidEntry]) -> Result<Self, HypervisorError> {
        let mut fd = uninterrupted("KVM_CREATE_VCPU", || vm.create_vcpu(id.into()))?;
        let entries: Vec<_> = cpuid.iter().map(registers::cpuid_to_kvm).collect();
        let table =
            CpuId::from_entries(&entries).map_err(|_| call("KVM_SET_CPUID2", kvm_ioctls::Error::new(libc::E2BIG)))?;
        fd.set_cpuid2(&table).map_err(|error| call("KVM_SET_CPUID2", error))?;
        // SAFETY: the run page stays mapped as long as `fd` lives, and `drop` disarms the kick first.
        let kick = unsafe { KvmKick::new(&raw mut fd.get_kvm_run().immediate_exit) };
        Ok(Self { fd, id, kick, pristine: true, collected: None })
    }

    /// Where the VM's collected port writes lie: taken out before every exit is answered.
    pub fn take_collected_from(&mut self, collected: Option<Arc<Collected>>) {
        self.collected = collected;
    }

    fn set_msrs(&self, entries: &[kvm_msr_entry]) -> Result<(), HypervisorError> {
        // KVM stops at the first register this host does not have: skip it and go on with the rest.
        let mut rest = entries;
        while !rest.is_empty() {
            let msrs =
                Msrs::from_entries(rest).map_err(|_| call("KVM_SET_MSRS", kvm_ioctls::Error::new(libc::E2BIG)))?;
            let done = self.fd.set_msrs(&msrs).map_err(|error| call("KVM_SET_MSRS", error))?;
            rest = rest.get(done + 1..).unwrap_or_default();
        }
        Ok(())
    }

    /// What KVM_CREATE_VCPU gives for nothing, restored by hand.
    fn power_on(&mut self, boot: bool) -> Result<(), HypervisorError> {
        self.set_msrs(&registers::msrs_after_reset())?;
        self.fd
            .set_lapic(&registers::lapic_after_reset(self.id, boot))
            .map_err(|error| call("KVM_SET_LAPIC", error))?;
        self.fd
            .set_vcpu_events(&kvm_vcpu_events {
                flags: kvm_bindings::KVM_VCPUEVENT_VALID_NMI_PENDING | kvm_bindings::KVM_VCPUEVENT_VALID_SIPI_VECTOR,
                ..Default::default()
            })
            .map_err(|error| call("KVM_SET_VCPU_EVENTS", error))?;
        self.fd
            .set_debug_regs(&kvm_debugregs { dr6: 0xffff_0ff0, dr7: 0x400, ..Default::default() })
            .map_err(|error| call("KVM_SET_DEBUGREGS", error))?;
        self.fd
            .set_fpu(&kvm_fpu { fcw: 0x37f, mxcsr: 0x1f80, ..Default::default() })
            .map_err(|error| call("KVM_SET_FPU", error))?;
        let mut xcrs = kvm_xcrs { nr_xcrs: 1, ..Default::default() };
        xcrs.xcrs[0] = kvm_xcr { xcr: 0, value: 1, ..Default::default() };
        // A host without XSAVE has no XCR0 to reset.
        if let Err(error) = self.fd.set_xcrs(&xcrs)
            && error.errno() != libc::EINVAL
        {
            return Err(call("KVM_SET_XCRS", error));
        }
        let mp_state = if boot { KVM_MP_STATE_RUNNABLE } else { KVM_MP_STATE_UNINITIALIZED };
        self.fd.set_mp_state(kvm_mp_state { mp_state }).map_err(|error| call("KVM_SET_MP_STATE", error))
    }

    fn failure(&mut self, what: String) -> HypervisorError {
        let place = self.fd.get_regs().map_or_else(|_| String::new(), |regs| format!(" at rip {:#x}", regs.rip));
        HypervisorError::Vcpu { vcpu: self.id, what: what + &place }
    }
}

impl AsRawFd for KvmVcpu {
    fn as_raw_fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }
}

impl Drop for KvmVcpu {
    fn drop(&mut self) {
        self.kick.disarm();
    }
}

impl Vcpu for KvmVcpu {
    fn reset(&mut self, start: &VcpuStart) -> Result<(), HypervisorError> {
        let boot = matches!(start, VcpuStart::Boot(_));
        let pristine = std::mem::take(&mut self.pristine);
        let cpu = match start {
            VcpuStart::Boot(cpu) => **cpu,
            VcpuStart::WaitForSipi => reset_vector(),
        };
        if boot || !pristine {
            self.fd.set_sregs(&registers::special(&cpu.sregs, boot)).map_err(|error| call("KVM_SET_SREGS", error))?;
            self.fd.set_regs(&registers::general(&cpu.regs)).map_err(|error| call("KVM_SET_REGS", error))?;
        }
        if !pristine {
            self.power_on(boot)?;
        }
        let boot_msrs: Vec<_> = arch::msr::boot_msrs()
            .iter()
            .map(|msr| kvm_msr_entry { index: msr.index, data: msr.value, ..Default::default() })
            .collect();
        self.set_msrs(&boot_msrs)
    }

    fn bind_to_current_thread(&mut self) -> Result<(), HypervisorError> {
        devices_host::thread::unblock_kick()
            .map_err(|source| HypervisorError::Call { call: "unblocking a signal", source })?;
        self.kick.bind_to_current_thread();
        Ok(())
    }

    fn run(&mut self, io: &mut dyn ExitHandler) -> Result<Stop, HypervisorError> {
        for _ in 0..EXITS_PER_RUN {
            let exit = self.fd.run();
            if let Some(collected) = &self.collected {
                // Index registers answer at once: nothing here can park.
                collected.take(|port, data| drop(io.port_out(port, data)));
            }
            let exit = match exit {
                Ok(exit) => exit,
                Err(error) => match error.errno() {
                    libc::EINTR | libc::EAGAIN => {
                        self.kick.clear();
                        io.count(ExitKind::Kicked);
                        return Ok(Stop::Kicked);
                    }
                    _ => return Err(call("KVM_RUN", error)),
                },
            };
            let access = match exit {
                VcpuExit::IoOut(port, data) => {
                    io.count(ExitKind::PortOut);
                    let (start, len) = (data.as_ptr(), data.len());
                    // SAFETY: the elements lie in the run page, which outlives this call and which KVM leaves alone
                    // until the next KVM_RUN.
                    let data = unsafe { std::slice::from_raw_parts(start, len) };
                    let width = port_width(&mut self.fd);
                    all(data.chunks(width).map(|element| io.port_out(port, element)))
                }
                VcpuExit::IoIn(port, data) => {
                    io.count(ExitKind::PortIn);
                    let (start, len) = (data.as_mut_ptr(), data.len());
                    // SAFETY: as above; no other reference to these bytes exists.
                    let data = unsafe { std::slice::from_raw_parts_mut(start, len) };
                    let width = port_width(&mut self.fd);
                    all(data.chunks_mut(width).map(|element| io.port_in(port, element)))
                }
                VcpuExit::MmioRead(address, data) => {
                    io.count(ExitKind::MmioRead);
                    io.mmio_read(address, data)
                }
                VcpuExit::MmioWrite(address, data) => {
                    io.count(ExitKind::MmioWrite);
                    io.mmio_write(address, data)
                }
                VcpuExit::X86Rdmsr(exit) => {
                    io.count(ExitKind::Msr);
                    match io.rdmsr(exit.index) {
                        Some(value) => *exit.data = value,
                        None => *exit.error = 1,
                    }
                    Access::Done
                }
                VcpuExit::X86Wrmsr(exit) => {
                    io.count(ExitKind::Msr);
                    *exit.error = u8::from(!io.wrmsr(exit.index, exit.data));
                    Access::Done
                }
                VcpuExit::Intr => {
                    io.count(ExitKind::Kicked);
                    self.kick.clear();
                    return Ok(Stop::Kicked);
                }
                // With the in-kernel local APIC a halted vCPU sleeps in the kernel; this is for kernels that return.
                VcpuExit::Hlt => {
                    io.count(ExitKind::Halt);
                    return Ok(Stop::Halt);
                }
                VcpuExit::Shutdown => {
                    io.count(ExitKind::Other);
                    return Ok(Stop::TripleFault);
                }
                VcpuExit::SystemEvent(kind, _) => {
                    io.count(ExitKind::Other);
                    return Ok(if kind == kvm_bindings::KVM_SYSTEM_EVENT_SHUTDOWN {
                        Stop::PowerOff
                    } else {
                        Stop::Reset
                    });
                }
                VcpuExit::FailEntry(reason, _) => {
                    return Err(self.failure(format!("the processor refused to enter the guest (reason {reason:#x})")));
                }
                VcpuExit::InternalError => {
                    // SAFETY: the exit reason says which union member KVM filled.
                    let suberror = unsafe { self.fd.get_kvm_run().__bindgen_anon_1.internal }.suberror;
                    let what = match suberror {
                        kvm_bindings::KVM_INTERNAL_ERROR_EMULATION => "KVM cannot emulate the instruction",
                        kvm_bindings::KVM_INTERNAL_ERROR_DELIVERY_EV => "KVM cannot deliver an event",
                        _ => "KVM internal error",
                    };
                    return Err(self.failure(format!("{what} (suberror {suberror})")));
                }
                other => {
                    let what = format!("unexpected exit {other:?}");
                    return Err(self.failure(what));
                }
            };
            if let Access::Parked(token) = access
                && !token.is_complete()
            {
                return Ok(Stop::Parked(token));
            }
        }
        Ok(Stop::Kicked)
    }

    fn quiesce(&mut self) -> Result<(), HypervisorError> {
        // KVM completes the last exit on the next entry, and comes straight back for the immediate-exit flag.
        self.fd.set_kvm_immediate_exit(1);
        let result = self.fd.run().map(|_| ());
        self.kick.clear();
        match result {
            Err(error) if error.errno() != libc::EINTR => Err(call("KVM_RUN", error)),
            _ => Ok(()),
        }
    }

    fn kicker(&self) -> Arc<dyn Kick> {
        self.kick.clone()
    }

    fn inject_nmi(&mut self) -> Result<(), HypervisorError> {
        self.fd.nmi().map_err(|error| call("KVM_NMI", error))
    }

    fn note_pause(&mut self) {
        // EINVAL: the guest has no kvmclock, so there is nobody to tell.
        if let Err(error) = self.fd.kvmclock_ctrl()
            && error.errno() != libc::EINVAL
        {
            log::warn!("vcpu{}: KVM_KVMCLOCK_CTRL: {error}", self.id);
        }
    }
}

/// Width of the elements of a port exit: a string instruction brings several of them at once.
fn port_width(fd: &mut VcpuFd) -> usize {
    // SAFETY: called after KVM_EXIT_IO, for which KVM fills this union member.
    let io = unsafe { fd.get_kvm_run().__bindgen_anon_1.io };
    usize::from(io.size).max(1)
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
