//! One vCPU: its state after reset, and the run loop around VM_RUN.
//!
//! bhyve answers every I/O exit, a write too, with the next entry, and may refuse that entry. So an answer is kept until
//! an entry has taken it: an entry that fails leaves it for the next, and one that succeeds can never be given it twice.

use std::sync::Arc;
use std::thread;
use std::time::Duration;

use arch::cpu::CpuidEntry;
use devices::bus::Access;
use devices_host::sys::Errno;
use zerocopy::{FromZeros, IntoBytes};

use super::error::{CallError, CallResult};
use super::exits::Exit;
use super::irq::Resets;
use super::kick::BhyveKick;
use super::vmfd::VmFd;
use super::{abi, cpuid, registers};
use crate::hypervisor::{ExitHandler, ExitKind, HypervisorError, Kick, Stop, Vcpu, VcpuStart};

/// Most returns to the process that one call of `run` answers before it lets its caller look around. A kick ends the
/// loop at once anyway, so this is a bound, not a latency.
const EXITS_PER_RUN: usize = 1 << 16;

/// How long a vCPU that the kernel does not let in waits before it tries again: somebody else paused the VM, or a
/// debugger holds the vCPU.
const REFUSED: Duration = Duration::from_millis(1);

/// What the next entry has to say about the exit before it.
#[derive(Clone, Copy, Default)]
enum Answer {
    /// Nothing.
    #[default]
    None,
    /// The port access is done.
    Port(abi::vm_inout),
    /// The memory access is done.
    Memory(abi::vm_mmio),
}

impl Answer {
    fn entry(self) -> (u32, abi::vm_entry_union) {
        // From zeroes, so that what the smaller member leaves of the larger is initialised, too.
        let mut union = abi::vm_entry_union::new_zeroed();
        match self {
            Self::None => (abi::VEC_DEFAULT, union),
            Self::Port(inout) => {
                union.inout = inout;
                (abi::VEC_FULFILL_INOUT, union)
            }
            Self::Memory(mmio) => {
                union.mmio = mmio;
                (abi::VEC_FULFILL_MMIO, union)
            }
        }
    }
}

/// One vCPU on bhyve.
pub struct BhyveVcpu {
    fd: Arc<VmFd>,
    id: u8,
    kick: Arc<BhyveKick>,
    resets: Resets,
    /// In which life of the VM this vCPU was activated: a reset of the VM makes all of them inactive.
    active_since: u64,
    answer: Answer,
    /// An exit that [`quiesce`](Vcpu::quiesce) met and nobody has looked at.
    unseen: Option<Exit>,
}

impl BhyveVcpu {
    /// Activates the vCPU with its CPUID table.
    ///
    /// # Errors
    /// What the calls say.
    pub fn create(fd: Arc<VmFd>, id: u8, table: &[CpuidEntry], resets: Resets) -> CallResult<Self> {
        let active_since = resets.now();
        let kick = BhyveKick::new(fd.clone(), id.into());
        let vcpu = Self { fd, id, kick, resets, active_since, answer: Answer::None, unseen: None };
        cpuid::install(&vcpu.fd, id.into(), table)?;
        vcpu.activate()?;
        Ok(vcpu)
    }

    fn number(&self) -> i32 {
        self.id.into()
    }

    /// Interrupts, INIT and SIPI reach only vCPUs that are active, so all are before any runs.
    fn activate(&self) -> CallResult<()> {
        self.fd.activate(self.number())?;
        self.fd.offer_x2apic(self.number())
    }

    /// Memory is write-back by default and the MTRRs are on, as a PC's firmware leaves them (see
    /// [`arch::msr::boot_msrs`]; the kernel keeps no other register of that list where it could be set).
    fn enable_mtrrs(&self) -> CallResult<()> {
        let fields: Vec<abi::vdi_field_entry_v1> = arch::msr::boot_msrs()
            .iter()
            .filter(|msr| msr.index == arch::msr::IA32_MTRR_DEF_TYPE)
            .map(|msr| abi::vdi_field_entry_v1 { vfe_ident: msr.index, _pad: 0, vfe_value: msr.value })
            .collect();
        self.fd.write_data(self.number(), abi::VDC_MSR, 1, fields.as_bytes())
    }

    /// Enters the guest; `None` where the kernel did not let it in, which leaves the answer for the next entry.
    fn enter(&mut self, flags: u32) -> CallResult<Option<abi::vm_exit>> {
        let (command, union) = self.answer.entry();
        match self.fd.run(self.number(), command | flags, union) {
            Ok(exit) => {
                self.answer = Answer::None;
                Ok(Some(exit))
            }
            Err(CallError { errno: Errno::EBUSY | Errno::EINTR, .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn failure(&self, what: String) -> HypervisorError {
        HypervisorError::Vcpu { vcpu: self.id, what }
    }

    /// Does what an exit asks for; `Some` where that is for the vCPU loop to decide.
    fn serve(&mut self, exit: Exit, io: &mut dyn ExitHandler) -> Result<Option<Stop>, HypervisorError> {
        let access = match exit {
            Exit::Port(inout) => self.port(inout, io)?,
            Exit::Memory(mmio) => self.memory(mmio, io)?,
            Exit::ReadMsr(code) => {
                io.count(ExitKind::Msr);
                match io.rdmsr(code) {
                    Some(value) => self.fd.set_registers(
                        self.number(),
                        &[(abi::VM_REG_GUEST_RAX, value & 0xffff_ffff), (abi::VM_REG_GUEST_RDX, value >> 32)],
                    )?,
                    None => self.fd.inject_general_protection(self.number())?,
                }
                Access::Done
            }
            Exit::WriteMsr { code, value } => {
                io.count(ExitKind::Msr);
                if !io.wrmsr(code, value) {
                    self.fd.inject_general_protection(self.number())?;
                }
                Access::Done
            }
            Exit::Nothing => {
                io.count(ExitKind::Kicked);
                Access::Done
            }
            Exit::Halt => {
                io.count(ExitKind::Halt);
                Access::Done
            }
            Exit::Held => {
                io.count(ExitKind::Other);
                thread::sleep(REFUSED);
                return Ok(Some(Stop::Kicked));
            }
            Exit::Suspended { how, source } => {
                io.count(ExitKind::Other);
                return self.suspended(how, source).map(Some);
            }
            Exit::Fatal(what) => {
                io.count(ExitKind::Other);
                return Err(self.failure(what));
            }
        };
        match access {
            Access::Parked(token) if !token.is_complete() => Ok(Some(Stop::Parked(token))),
            Access::Parked(_) | Access::Done => Ok(None),
        }
    }

    fn port(&mut self, mut inout: abi::vm_inout, io: &mut dyn ExitHandler) -> Result<Access, HypervisorError> {
        let mut data = inout.eax.to_le_bytes();
        let len = match inout.bytes {
            bytes @ (1 | 2 | 4) => usize::from(bytes),
            bytes => return Err(self.failure(format!("a port access of {bytes} bytes"))),
        };
        let access = if inout.flags & abi::INOUT_IN != 0 {
            io.count(ExitKind::PortIn);
            data = [0; 4];
            let access = io.port_in(inout.port, &mut data[..len]);
            inout.eax = u32::from_le_bytes(data);
            access
        } else {
            io.count(ExitKind::PortOut);
            io.port_out(inout.port, &data[..len])
        };
        self.answer = Answer::Port(inout);
        Ok(access)
    }

    fn memory(&mut self, mut mmio: abi::vm_mmio, io: &mut dyn ExitHandler) -> Result<Access, HypervisorError> {
        let mut data = mmio.data.to_le_bytes();
        let len = match mmio.bytes {
            bytes @ (1 | 2 | 4 | 8) => usize::from(bytes),
            bytes => return Err(self.failure(format!("a memory access of {bytes} bytes at {:#x}", mmio.gpa))),
        };
        let access = if mmio.read != 0 {
            io.count(ExitKind::MmioRead);
            data = [0; 8];
            let access = io.mmio_read(mmio.gpa, &mut data[..len]);
            mmio.data = u64::from_le_bytes(data);
            access
        } else {
            io.count(ExitKind::MmioWrite);
            io.mmio_write(mmio.gpa, &data[..len])
        };
        self.answer = Answer::Memory(mmio);
        Ok(access)
    }

    /// Every vCPU is told of a suspension, and again at every entry. One tells the machine; the others wait for what
    /// follows as a halted CPU does.
    fn suspended(&self, how: i32, source: i32) -> Result<Stop, HypervisorError> {
        let mine = source == self.number() || source < 0;
        match how {
            abi::VM_SUSPEND_RESET if mine => Ok(Stop::Reset),
            abi::VM_SUSPEND_POWEROFF if mine => Ok(Stop::PowerOff),
            abi::VM_SUSPEND_TRIPLEFAULT if mine => Ok(Stop::TripleFault),
            abi::VM_SUSPEND_HALT => Ok(Stop::AllHalted),
            abi::VM_SUSPEND_RESET | abi::VM_SUSPEND_POWEROFF | abi::VM_SUSPEND_TRIPLEFAULT => Ok(Stop::Halt),
            how => Err(self.failure(format!("suspended in an unknown way ({how})"))),
        }
    }
}

impl Vcpu for BhyveVcpu {
    fn reset(&mut self, start: &VcpuStart) -> Result<(), HypervisorError> {
        let vcpu = self.number();
        self.answer = Answer::None;
        self.unseen = None;
        let now = self.resets.now();
        if self.active_since != now {
            self.activate()?;
            self.active_since = now;
        }
        // The others are reset by the INIT that comes before their SIPI; reset here as well, they are slow to start.
        if let VcpuStart::Boot(cpu) = start {
            self.fd.reset_vcpu(vcpu)?;
            registers::set(&self.fd, vcpu, cpu)?;
            self.fd.set_run_state(vcpu, abi::VRS_RUN, 0)?;
        }
        Ok(self.enable_mtrrs()?)
    }

    fn bind_to_current_thread(&mut self) -> Result<(), HypervisorError> {
        // A kick is a call on the VM, whichever thread runs the vCPU.
        Ok(())
    }

    fn run(&mut self, io: &mut dyn ExitHandler) -> Result<Stop, HypervisorError> {
        for _ in 0..EXITS_PER_RUN {
            if self.kick.take() {
                io.count(ExitKind::Kicked);
                return Ok(Stop::Kicked);
            }
            let exit = match self.unseen.take() {
                Some(unseen) => unseen,
                None => match self.enter(0)? {
                    Some(exit) => Exit::from(&exit),
                    None => {
                        io.count(ExitKind::Kicked);
                        thread::sleep(REFUSED);
                        return Ok(Stop::Kicked);
                    }
                },
            };
            if let Some(stop) = self.serve(exit, io)? {
                return Ok(stop);
            }
        }
        Ok(Stop::Kicked)
    }

    fn quiesce(&mut self) -> Result<(), HypervisorError> {
        if self.unseen.is_some() {
            return Ok(());
        }
        // An instruction with several accesses comes back with the next one: that is for the next run to answer. A VM
        // that is paused lets nobody in, and the answer waits for the next entry.
        if let Some(exit) = self.enter(abi::VEC_FLAG_EXIT_CONSISTENT)? {
            let exit = Exit::from(&exit);
            self.unseen = (exit != Exit::Nothing).then_some(exit);
        }
        Ok(())
    }

    fn kicker(&self) -> Arc<dyn Kick> {
        self.kick.clone()
    }

    fn inject_nmi(&mut self) -> Result<(), HypervisorError> {
        Ok(self.fd.inject_nmi(self.number())?)
    }

    fn note_pause(&mut self) {
        // There is no paravirtual clock to tell.
    }
}
