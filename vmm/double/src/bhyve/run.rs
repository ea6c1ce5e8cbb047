//! VM_RUN: entries, exits, and the answers in between (reference section 2.5).

use std::ptr;
use std::sync::atomic::AtomicU8;

use devices_host::sys::{Errno, SysResult};
use kvm_bindings::{
    KVM_EXIT_FAIL_ENTRY, KVM_EXIT_HLT, KVM_EXIT_INTERNAL_ERROR, KVM_EXIT_INTR, KVM_EXIT_IO, KVM_EXIT_IO_IN,
    KVM_EXIT_IRQ_WINDOW_OPEN, KVM_EXIT_MMIO, KVM_EXIT_SHUTDOWN, KVM_EXIT_X86_RDMSR, KVM_EXIT_X86_WRMSR, kvm_run,
};
use zvmm::hypervisor::bhyve::abi::*;

use super::slot::{Hindrance, Slot};
use super::user::copy_out;
use super::vcpu::{Core, MsrExit};
use super::vm::Vm;
use super::{msr, rules};
use crate::node::Call;

/// A return of KVM_RUN.
#[derive(Clone, Copy, Debug)]
pub enum Raw {
    /// A port access of `count` elements, whose data lies at `data` in the run page.
    Port { port: u16, size: u8, count: u32, input: bool, data: usize },
    /// A memory access.
    Memory { gpa: u64, len: u8, write: bool },
    /// RDMSR.
    ReadMsr(u32),
    /// WRMSR.
    WriteMsr(u32, u64),
    /// The instruction cannot be emulated: its bytes.
    NoEmulation([u8; 15], u8),
    /// A triple fault.
    Shutdown,
    /// The processor refused the guest's state.
    FailEntry(u64),
    /// Anything else that KVM says when it is at its wits' end.
    Strange(u32),
    /// Nothing happened.
    Nothing,
    /// A signal.
    Interrupted,
}

/// An exit that waits for its answer. A string instruction or a crooked access is answered element by element.
#[derive(Clone, Copy, Debug)]
pub struct Pending {
    raw: Raw,
    /// Element of a port access, offset in a memory access.
    at: u32,
}

/// What an entry does next.
enum Next {
    Exit(Box<vm_exit>),
    GoOn,
}

fn run_page(run: &mut kvm_run) -> *mut u8 {
    ptr::from_mut(run).cast()
}

impl Core {
    /// One KVM_RUN.
    fn run_once(&mut self) -> SysResult<Raw> {
        self.forget();
        self.unfinished = false;
        let fd = self.fd()?;
        let result = fd.run().map(|_| ());
        let run = fd.get_kvm_run();
        if let Err(error) = result {
            return Ok(match error.errno() {
                libc::EINTR => Raw::Interrupted,
                libc::EAGAIN => Raw::Nothing,
                _ => Raw::Strange(u32::MAX),
            });
        }
        // SAFETY: every member of the union is read under the exit reason that fills it.
        Ok(unsafe {
            let exit = &run.__bindgen_anon_1;
            match run.exit_reason {
                KVM_EXIT_IO => Raw::Port {
                    port: exit.io.port,
                    size: exit.io.size,
                    count: exit.io.count,
                    input: u32::from(exit.io.direction) == KVM_EXIT_IO_IN,
                    data: exit.io.data_offset as usize,
                },
                KVM_EXIT_MMIO => {
                    Raw::Memory { gpa: exit.mmio.phys_addr, len: exit.mmio.len as u8, write: exit.mmio.is_write != 0 }
                }
                KVM_EXIT_X86_RDMSR => Raw::ReadMsr(exit.msr.index),
                KVM_EXIT_X86_WRMSR => Raw::WriteMsr(exit.msr.index, exit.msr.data),
                KVM_EXIT_INTERNAL_ERROR if exit.internal.suberror == 1 => {
                    let failure = &exit.emulation_failure;
                    let known = failure.ndata > 0 && failure.flags & 1 != 0;
                    let instruction = &failure.__bindgen_anon_1.__bindgen_anon_1;
                    let count = if known { instruction.insn_size.min(15) } else { 0 };
                    Raw::NoEmulation(instruction.insn_bytes, count)
                }
                KVM_EXIT_SHUTDOWN => Raw::Shutdown,
                KVM_EXIT_FAIL_ENTRY => Raw::FailEntry(exit.fail_entry.hardware_entry_failure_reason),
                KVM_EXIT_INTR => Raw::Interrupted,
                KVM_EXIT_HLT | KVM_EXIT_IRQ_WINDOW_OPEN => Raw::Nothing,
                reason => Raw::Strange(reason),
            }
        })
    }

    /// Has KVM finish RDMSR with `data`, or WRMSR.
    fn finish_msr(&mut self, data: u64) -> SysResult<()> {
        let run = self.fd()?.get_kvm_run();
        run.__bindgen_anon_1.msr.error = 0;
        run.__bindgen_anon_1.msr.data = data;
        self.unfinished = true;
        self.settle()
    }

    /// RIP at the last return.
    fn rip(&mut self) -> SysResult<u64> {
        Ok(self.fd()?.sync_regs().regs.rip)
    }

    /// Lets KVM finish the instruction that was answered, without entering the guest.
    pub fn settle(&mut self) -> SysResult<()> {
        while self.unfinished {
            self.fd()?.set_kvm_immediate_exit(1);
            let raw = self.run_once();
            self.fd()?.set_kvm_immediate_exit(0);
            match raw? {
                Raw::Interrupted => {}
                Raw::Nothing => {}
                raw => self.queued = Some(raw),
            }
        }
        Ok(())
    }

    /// Gives up whatever instruction is under way.
    pub fn abandon(&mut self) -> SysResult<()> {
        for _ in 0..64 {
            if let Some(Pending { raw, .. }) =
                self.pending.take().or(self.queued.take().map(|raw| Pending { raw, at: 0 }))
            {
                self.unfinished = matches!(raw, Raw::Port { .. } | Raw::Memory { .. });
            }
            if !self.unfinished {
                break;
            }
            self.settle()?;
        }
        Ok(())
    }

    /// Where the data of element `at` lies in the run page, and how long it is.
    fn element(&mut self, pending: Pending) -> SysResult<(*mut u8, usize)> {
        let run = self.fd()?.get_kvm_run();
        Ok(match pending.raw {
            Raw::Port { size, data, .. } => {
                let offset = data + pending.at as usize * usize::from(size);
                // SAFETY: KVM's data lies inside the mapped run pages.
                (unsafe { run_page(run).add(offset) }, size.into())
            }
            Raw::Memory { len, .. } => {
                let left = usize::from(len) - pending.at as usize;
                // Sizes are 1, 2, 4 and 8; KVM cuts a crooked access at a page's end into what else there is.
                let chunk = if left >= 8 { 8 } else { 1 << left.ilog2() };
                // SAFETY: the exit was a memory access, and `at` is inside of its eight bytes.
                (unsafe { run.__bindgen_anon_1.mmio.data.as_mut_ptr().add(pending.at as usize) }, chunk)
            }
            _ => return Err(Errno::EIO),
        })
    }

    fn data(&mut self, pending: Pending) -> SysResult<u64> {
        let (from, len) = self.element(pending)?;
        let mut bytes = [0; 8];
        // SAFETY: `element` gives a readable place of at most eight bytes.
        unsafe { ptr::copy_nonoverlapping(from, bytes.as_mut_ptr(), len) };
        Ok(u64::from_le_bytes(bytes))
    }

    fn set_data(&mut self, pending: Pending, data: u64) -> SysResult<()> {
        let (to, len) = self.element(pending)?;
        // SAFETY: `element` gives a writable place of at most eight bytes.
        unsafe { ptr::copy_nonoverlapping(data.to_le_bytes().as_ptr(), to, len) };
        Ok(())
    }

    /// The element after this one, or nothing: then the instruction is answered.
    fn advance(&mut self, pending: Pending) -> SysResult<()> {
        let (_, len) = self.element(pending)?;
        let (step, end) = match pending.raw {
            Raw::Port { count, .. } => (1, count),
            Raw::Memory { len: whole, .. } => (len as u32, whole.into()),
            _ => (1, 0),
        };
        let at = pending.at + step;
        self.pending = (at < end).then_some(Pending { at, ..pending });
        self.unfinished = self.pending.is_none();
        Ok(())
    }

    /// The exit of the pending element.
    fn exit_of(&mut self, pending: Pending) -> SysResult<vm_exit> {
        let (_, len) = self.element(pending)?;
        let data = self.data(pending)?;
        let mut exit = new_exit(VM_EXITCODE_BOGUS);
        exit.rip = self.rip()?;
        match pending.raw {
            Raw::Port { port, input, .. } => {
                exit.exitcode = VM_EXITCODE_INOUT;
                exit.u.inout = vm_inout {
                    eax: if input { 0 } else { data as u32 },
                    port,
                    bytes: len as u8,
                    flags: if input { INOUT_IN } else { 0 },
                    addrsize: 4,
                    segment: 0,
                    _pad0: [0; 2],
                };
            }
            Raw::Memory { gpa, write, .. } => {
                exit.exitcode = VM_EXITCODE_MMIO;
                exit.u.mmio = vm_mmio {
                    bytes: len as u8,
                    read: u8::from(!write),
                    _pad: [0; 3],
                    gpa: gpa + u64::from(pending.at),
                    data: if write { data } else { 0 },
                };
            }
            _ => return Err(Errno::EIO),
        }
        Ok(exit)
    }
}

fn new_exit(code: i32) -> vm_exit {
    // SAFETY: all-zero is a valid exit of any code.
    let mut exit: vm_exit = unsafe { std::mem::zeroed() };
    exit.exitcode = code;
    exit
}

impl Vm {
    /// VM_RUN.
    ///
    /// # Safety
    /// `entry.exit_data` is 0 or points to room for an exit.
    pub unsafe fn run(&self, call: &Call<'_>, slot: &Slot, entry: &vm_entry) -> SysResult<i32> {
        let id = entry.cpuid;
        if !slot.is_active() {
            return Err(call.refuse(&rules::VCPU_ACTIVE, Errno::EINVAL, format!("vCPU {id}")));
        }
        let mut core = slot.hold_to_run();
        if self.is_dying() {
            return Err(Errno::ENXIO);
        }
        if self.is_paused() {
            return Err(Errno::EBUSY);
        }
        if entry.exit_data == 0 || !entry.exit_data.is_multiple_of(8) {
            let detail = format!("vCPU {id}: {:#x}", entry.exit_data);
            return Err(call.refuse(&rules::EXIT_BUFFER, Errno::EFAULT, detail));
        }
        slot.can_sleep(&mut core);
        self.check_first_run(call, &mut core)?;
        let mut exit = match self.answer(call, &mut core, entry)? {
            Next::Exit(exit) => *exit,
            Next::GoOn if entry.cmd & VEC_FLAG_EXIT_CONSISTENT != 0 => self.consistent(&mut core)?,
            Next::GoOn => self.go(call, slot, &mut core)?,
        };
        core.exits += 1;
        if core.exit_buffer == entry.exit_data {
            // SAFETY: copying there has worked before, and the caller promises that it is an exit's place.
            unsafe { ptr::write(entry.exit_data as *mut vm_exit, exit) };
        } else {
            // SAFETY: an exit made by `new_exit` has no byte that is not initialised.
            let bytes =
                unsafe { std::slice::from_raw_parts(ptr::from_mut(&mut exit).cast::<u8>(), size_of::<vm_exit>()) };
            copy_out(call, bytes, entry.exit_data)?;
            core.exit_buffer = entry.exit_data;
        }
        Ok(0)
    }

    fn check_first_run(&self, call: &Call<'_>, core: &mut Core) -> SysResult<()> {
        core.apply_table(call, &self.topology())?;
        if !std::mem::replace(&mut core.has_run, true) && core.id == 0 {
            if !core.was_reset {
                call.note(&rules::RESET_BEFORE_RUN, "vCPU 0");
            }
            if core.run_state()?.0 == VRS_HALT {
                call.note(&rules::BOOT_CPU_RUNS, "it waits for a SIPI that nobody can send");
            }
        }
        Ok(())
    }

    /// What the entry's command says about the last exit.
    fn answer(&self, call: &Call<'_>, core: &mut Core, entry: &vm_entry) -> SysResult<Next> {
        let id = core.id;
        if let Some(msr) = core.msr.take()
            && msr.read
            && !msr.exception
            && !(msr.rax && msr.rdx)
        {
            call.note(&rules::RDMSR_ANSWERED, format!("vCPU {id}: RAX {}, RDX {}", msr.rax, msr.rdx));
        }
        let command = entry.cmd & !VEC_FLAG_EXIT_CONSISTENT;
        match command {
            VEC_DEFAULT => match core.pending {
                None => {}
                Some(pending) => {
                    let exit = core.exit_of(pending)?;
                    call.note(&rules::EXIT_ANSWERED, format!("vCPU {id}: {pending:?}"));
                    return Ok(Next::Exit(Box::new(exit)));
                }
            },
            VEC_DISCARD_INSTR => {
                if core.pending.is_some() {
                    let regs = *core.regs()?;
                    core.abandon()?;
                    core.set_regs(regs);
                }
            }
            VEC_FULFILL_INOUT | VEC_FULFILL_MMIO => {
                let Some(pending) = core.pending else {
                    let detail = format!("vCPU {id}: command {command} with nothing pending");
                    return Err(call.refuse(&rules::FULFIL_PENDING, Errno::EINVAL, detail));
                };
                let exit = core.exit_of(pending)?;
                let data = fulfilment(&exit, command, entry).map_err(|detail| {
                    call.refuse(&rules::FULFIL_MATCH, Errno::EINVAL, format!("vCPU {id}: {detail}"))
                })?;
                if let Some(data) = data {
                    core.set_data(pending, data)?;
                }
                core.advance(pending)?;
                if let Some(pending) = core.pending {
                    return Ok(Next::Exit(Box::new(core.exit_of(pending)?)));
                }
            }
            _ => {
                let detail = format!("vCPU {id}: command {:#x}", entry.cmd);
                return Err(call.refuse(&rules::ENTRY_COMMAND, Errno::EINVAL, detail));
            }
        }
        Ok(Next::GoOn)
    }

    /// An exit without an entry: whatever is under way is finished first.
    fn consistent(&self, core: &mut Core) -> SysResult<vm_exit> {
        core.settle()?;
        if let Some(raw) = core.queued.take()
            && let Next::Exit(exit) = self.exit(core, raw)?
        {
            return Ok(*exit);
        }
        core.settle()?;
        let mut exit = new_exit(VM_EXITCODE_BOGUS);
        exit.rip = core.regs()?.rip;
        Ok(exit)
    }

    /// Runs the guest until something is left to the process.
    fn go(&self, call: &Call<'_>, slot: &Slot, core: &mut Core) -> SysResult<vm_exit> {
        loop {
            if let Some(suspended) = self.suspended() {
                core.settle()?;
                let mut exit = new_exit(VM_EXITCODE_SUSPENDED);
                exit.u.suspended = suspended;
                return Ok(exit);
            }
            let raw = match core.queued.take() {
                Some(raw) => raw,
                None => match self.enter(call, slot, core)? {
                    Ok(raw) => raw,
                    Err(Hindrance::Debug) => return Ok(new_exit(VM_EXITCODE_DEBUG)),
                    Err(Hindrance::Kick) => Raw::Interrupted,
                },
            };
            if matches!(raw, Raw::Interrupted) {
                // Taken before the suspension is looked at: who suspends pokes afterwards.
                let _ = slot.wanted();
                if self.suspended().is_some() {
                    continue;
                }
                return self.consistent(core);
            }
            if let Next::Exit(exit) = self.exit(core, raw)? {
                return Ok(*exit);
            }
        }
    }

    fn enter(&self, call: &Call<'_>, slot: &Slot, core: &mut Core) -> SysResult<Result<Raw, Hindrance>> {
        if core.unfinished && slot.wanted() {
            return Ok(Err(Hindrance::Kick));
        }
        core.flush(call)?;
        let byte = ptr::from_mut(&mut core.fd()?.get_kvm_run().immediate_exit).cast::<AtomicU8>();
        if let Err(hindrance) = slot.enter(byte, || self.suspended().is_some() || self.is_paused()) {
            return Ok(Err(hindrance));
        }
        let raw = core.run_once();
        slot.leave();
        Ok(Ok(raw?))
    }

    /// Serves an exit in the kernel, or makes it one of the process.
    fn exit(&self, core: &mut Core, raw: Raw) -> SysResult<Next> {
        let exit = match raw {
            Raw::Nothing | Raw::Interrupted => return Ok(Next::GoOn),
            Raw::Port { port, size, input, count, .. } => {
                for at in 0..count {
                    let pending = Pending { raw, at };
                    let value = if input { 0 } else { core.data(pending)? as u32 };
                    let Some(answer) = self.ports(port, size, (!input).then_some(value)) else {
                        // No device of the kernel changes while its string is under way.
                        core.pending = Some(pending);
                        return Ok(Next::Exit(Box::new(core.exit_of(pending)?)));
                    };
                    core.set_data(pending, answer.into())?;
                }
                core.unfinished = true;
                return Ok(Next::GoOn);
            }
            Raw::Memory { gpa, len, write } => {
                let pending = Pending { raw, at: 0 };
                let data = core.data(pending)?;
                if let Some(answer) = self.hpet_access(gpa, len, write.then_some(data)) {
                    core.set_data(pending, answer)?;
                    core.unfinished = true;
                    return Ok(Next::GoOn);
                }
                if write && self.hooks.memory(gpa, data) {
                    core.unfinished = true;
                    return Ok(Next::GoOn);
                }
                if self.protection(gpa).is_some() {
                    // Memory is there, and still the access came out: a write to what can only be read.
                    core.unfinished = true;
                    let mut exit = new_exit(VM_EXITCODE_PAGING);
                    exit.rip = core.rip()?;
                    let fault_type = if write { VM_PROT_WRITE } else { VM_PROT_READ };
                    exit.u.paging = vm_exit_paging { gpa, fault_type, _pad0: [0; 4] };
                    return Ok(Next::Exit(Box::new(exit)));
                }
                core.pending = Some(pending);
                core.exit_of(pending)?
            }
            Raw::ReadMsr(code) if let Some(value) = msr::kernel_read(&self.machine, code) => {
                core.finish_msr(value)?;
                return Ok(Next::GoOn);
            }
            Raw::WriteMsr(code, _) if msr::kernel_ignores_write(&self.machine, code) => {
                core.finish_msr(0)?;
                return Ok(Next::GoOn);
            }
            Raw::ReadMsr(code) => self.msr_exit(core, code, None)?,
            Raw::WriteMsr(code, value) => self.msr_exit(core, code, Some(value))?,
            Raw::NoEmulation(inst, num_valid) => {
                let mut exit = new_exit(VM_EXITCODE_INST_EMUL);
                exit.rip = core.regs()?.rip;
                exit.u.inst_emul = vm_exit_inst_emul { inst, num_valid };
                exit
            }
            Raw::Shutdown => {
                self.suspend(VM_SUSPEND_TRIPLEFAULT, core.id);
                return Ok(Next::GoOn);
            }
            Raw::FailEntry(reason) => fatal(0, reason as u32),
            Raw::Strange(reason) => fatal(-1, reason),
        };
        Ok(Next::Exit(Box::new(exit)))
    }

    /// RDMSR and WRMSR: KVM finishes the instruction now; the guest is put back onto it, and goes on behind it at the
    /// next entry unless the process wants otherwise.
    fn msr_exit(&self, core: &mut Core, code: u32, wval: Option<u64>) -> SysResult<vm_exit> {
        let before = core.fd()?.get_regs().map_err(|_| Errno::EIO)?;
        core.finish_msr(0)?;
        core.set_regs(before);
        core.next_rip = Some(before.rip + 2);
        core.msr = Some(MsrExit { read: wval.is_none(), ..Default::default() });
        let mut exit = new_exit(if wval.is_some() { VM_EXITCODE_WRMSR } else { VM_EXITCODE_RDMSR });
        exit.rip = before.rip;
        exit.inst_length = 2;
        exit.u.msr = vm_exit_msr { code, _pad0: [0; 4], wval: wval.unwrap_or(0) };
        Ok(exit)
    }
}

fn fatal(status: i32, exit_reason: u32) -> vm_exit {
    let mut exit = new_exit(VM_EXITCODE_VMX);
    exit.u.vmx = vm_exit_vmx { status, exit_reason, exit_qualification: 0, inst_type: 0, inst_error: 0 };
    exit
}

/// The data that an entry brings for an exit; nothing for a write.
fn fulfilment(exit: &vm_exit, command: u32, entry: &vm_entry) -> Result<Option<u64>, String> {
    match (exit.exitcode, command) {
        (VM_EXITCODE_INOUT, VEC_FULFILL_INOUT) => {
            // SAFETY: code and command say which members of the unions are meant.
            let (asked, told) = unsafe { (exit.u.inout, entry.u.inout) };
            let same =
                asked.port == told.port && asked.bytes == told.bytes && (asked.flags ^ told.flags) & INOUT_IN == 0;
            if !same {
                return Err(format!("{told:?} for {asked:?}"));
            }
            Ok((asked.flags & INOUT_IN != 0).then_some(told.eax.into()))
        }
        (VM_EXITCODE_MMIO, VEC_FULFILL_MMIO) => {
            // SAFETY: as above.
            let (asked, told) = unsafe { (exit.u.mmio, entry.u.mmio) };
            let same = asked.gpa == told.gpa && asked.bytes == told.bytes && asked.read == told.read;
            if !same {
                return Err(format!("{told:x?} for {asked:x?}"));
            }
            Ok((asked.read != 0).then_some(told.data))
        }
        (code, command) => Err(format!("command {command} for exit {code}")),
    }
}
