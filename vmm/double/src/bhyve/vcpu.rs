//! One vCPU while nobody runs it: registers, events, CPUID, reset.

use std::collections::BTreeMap;
use std::sync::Arc;

use devices_host::sys::{Errno, SysResult};
use kvm_bindings::{
    KVM_MP_STATE_INIT_RECEIVED, KVM_MP_STATE_RUNNABLE, KVM_MP_STATE_SIPI_RECEIVED, KVM_MP_STATE_UNINITIALIZED,
    KVM_VCPUEVENT_VALID_NMI_PENDING, KVM_VCPUEVENT_VALID_SHADOW, KVM_VCPUEVENT_VALID_SIPI_VECTOR, Msrs,
    kvm_cpuid_entry2, kvm_debugregs, kvm_lapic_state, kvm_mp_state, kvm_msr_entry, kvm_regs, kvm_sregs,
    kvm_vcpu_events, kvm_xcr, kvm_xcrs,
};
use kvm_ioctls::{SyncReg, VcpuFd};
use zvmm::hypervisor::bhyve::abi::*;

use super::cpuid::Table;
use super::machine::Machine;
use super::run::{Pending, Raw};
use super::{registers, rules};
use crate::node::Call;

/// An RDMSR or WRMSR that the process answers.
#[derive(Clone, Copy, Debug, Default)]
pub struct MsrExit {
    /// It is a read, so RAX and RDX must come.
    pub read: bool,
    pub rax: bool,
    pub rdx: bool,
    pub exception: bool,
}

/// A vCPU that its holder alone touches.
pub struct Core {
    pub id: i32,
    machine: Arc<Machine>,
    fd: Option<VcpuFd>,
    regs: Option<kvm_regs>,
    regs_dirty: bool,
    sregs: Option<kvm_sregs>,
    sregs_dirty: bool,
    /// The exit that waits for its answer.
    pub pending: Option<Pending>,
    /// KVM has the answer, and finishes the instruction on the next entry.
    pub unfinished: bool,
    /// An exit that came while an instruction was being finished.
    pub queued: Option<Raw>,
    /// Where the guest goes on, if not at RIP.
    pub next_rip: Option<u64>,
    pub msr: Option<MsrExit>,
    pub has_run: bool,
    pub was_reset: bool,
    pub x2apic: bool,
    pub table: Table,
    pub table_dirty: bool,
    /// What KVM has of it.
    applied: Vec<kvm_cpuid_entry2>,
    pub capabilities: BTreeMap<i32, i32>,
    pub exits: u64,
    /// The exit buffer that was found to be memory.
    pub exit_buffer: usize,
}

fn failed(_error: kvm_ioctls::Error) -> Errno {
    Errno::EIO
}

impl Core {
    pub fn new(id: i32, machine: Arc<Machine>) -> Self {
        Self {
            id,
            machine,
            fd: None,
            regs: None,
            regs_dirty: false,
            sregs: None,
            sregs_dirty: false,
            pending: None,
            unfinished: false,
            queued: None,
            next_rip: None,
            msr: None,
            has_run: false,
            was_reset: false,
            x2apic: false,
            table: Table::Legacy,
            table_dirty: true,
            applied: Vec::new(),
            capabilities: BTreeMap::from([(VM_CAP_HALT_EXIT, 1)]),
            exits: 0,
            exit_buffer: 0,
        }
    }

    /// KVM's vCPU, created when it is first needed: the interrupt controllers must come first, memory should.
    pub fn fd(&mut self) -> SysResult<&mut VcpuFd> {
        if self.fd.is_none() {
            let mut fd = self.machine.vcpu(self.id)?;
            fd.set_sync_valid_reg(SyncReg::Register);
            // bhyve's vCPUs all wait until they are told to run; KVM's first one does not.
            fd.set_mp_state(kvm_mp_state { mp_state: KVM_MP_STATE_UNINITIALIZED }).map_err(failed)?;
            self.fd = Some(fd);
        }
        self.fd.as_mut().ok_or(Errno::ENOMEM)
    }

    /// The guest has run: what is known of the registers is old.
    pub fn forget(&mut self) {
        (self.regs, self.sregs) = (None, None);
    }

    pub fn regs(&mut self) -> SysResult<&mut kvm_regs> {
        if self.regs.is_none() {
            self.regs = Some(self.fd()?.get_regs().map_err(failed)?);
        }
        self.regs.as_mut().ok_or(Errno::EIO)
    }

    pub fn set_regs(&mut self, regs: kvm_regs) {
        self.regs = Some(regs);
        self.regs_dirty = true;
    }

    pub fn sregs(&mut self) -> SysResult<&mut kvm_sregs> {
        if self.sregs.is_none() {
            self.sregs = Some(self.fd()?.get_sregs().map_err(failed)?);
        }
        self.sregs.as_mut().ok_or(Errno::EIO)
    }

    /// Gives KVM what was set. The guest is about to be entered, unless it still waits for a SIPI.
    pub fn flush(&mut self, call: &Call<'_>) -> SysResult<()> {
        if let Some(rip) = self.next_rip.take() {
            self.regs()?.rip = rip;
            self.regs_dirty = true;
        }
        if std::mem::take(&mut self.sregs_dirty)
            && let Some(sregs) = self.sregs
        {
            let tr = registers::descriptor(&sregs.tr);
            let kind = tr.access & SEG_ACCESS_TYPE_MASK;
            if tr.access & SEG_ACCESS_UNUSABLE != 0 || !(kind == 11 || kind == 3 && sregs.efer & 0x400 == 0) {
                call.note(&rules::TR_BUSY, format!("vCPU {}: TR's access is {:#x}", self.id, tr.access));
            }
            if self.fd()?.set_sregs(&sregs).is_err() {
                let detail = format!(
                    "vCPU {}: CR0 {:#x}, CR3 {:#x}, CR4 {:#x}, EFER {:#x}, CS {:x?}",
                    self.id,
                    sregs.cr0,
                    sregs.cr3,
                    sregs.cr4,
                    sregs.efer,
                    registers::descriptor(&sregs.cs)
                );
                return Err(call.refuse(&rules::GUEST_STATE, Errno::EIO, detail));
            }
        }
        if std::mem::take(&mut self.regs_dirty)
            && let Some(regs) = self.regs
        {
            self.fd()?.set_regs(&regs).map_err(failed)?;
        }
        Ok(())
    }

    pub fn set_register(&mut self, call: &Call<'_>, number: i32, value: u64) -> SysResult<()> {
        if registers::general(&mut kvm_regs::default(), number).is_some() {
            if number == VM_REG_GUEST_RIP {
                self.next_rip = None;
            }
            if let Some(msr) = &mut self.msr {
                msr.rax |= number == VM_REG_GUEST_RAX;
                msr.rdx |= number == VM_REG_GUEST_RDX;
                if matches!(number, VM_REG_GUEST_RAX | VM_REG_GUEST_RDX) && value >> 32 != 0 {
                    call.note(&rules::RDMSR_ANSWERED, format!("{value:#x} is more than 32 bits"));
                }
            }
            let regs = self.regs()?;
            *registers::general(regs, number).ok_or(Errno::EINVAL)? = value;
            self.regs_dirty = true;
            return Ok(());
        }
        let wide = match number {
            VM_REG_GUEST_CR0 => value >> 32 != 0,
            VM_REG_GUEST_EFER => value & !0xfd01 != 0,
            VM_REG_GUEST_XCR0 => value & 1 == 0,
            VM_REG_GUEST_ES..=VM_REG_GUEST_TR => value >> 16 != 0,
            _ => false,
        };
        if wide {
            return Err(call.refuse(&rules::REGISTER_VALUE, Errno::EINVAL, format!("register {number}: {value:#x}")));
        }
        match number {
            VM_REG_GUEST_XCR0 => {
                let mut xcrs = kvm_xcrs { nr_xcrs: 1, ..Default::default() };
                xcrs.xcrs[0] = kvm_xcr { value, ..Default::default() };
                self.fd()?.set_xcrs(&xcrs).map_err(|_| Errno::EINVAL)
            }
            VM_REG_GUEST_DR0..=VM_REG_GUEST_DR6 | VM_REG_GUEST_DR7 => {
                let mut debug = self.fd()?.get_debug_regs().map_err(failed)?;
                *debug_register(&mut debug, number) = value;
                self.fd()?.set_debug_regs(&debug).map_err(|_| Errno::EINVAL)
            }
            VM_REG_GUEST_INTR_SHADOW => {
                let mut events = self.fd()?.get_vcpu_events().map_err(failed)?;
                events.flags = KVM_VCPUEVENT_VALID_SHADOW;
                events.interrupt.shadow = u8::from(value != 0);
                self.fd()?.set_vcpu_events(&events).map_err(failed)
            }
            VM_REG_GUEST_PDPTE0..=VM_REG_GUEST_PDPTE3 | VM_REG_GUEST_ENTRY_INST_LENGTH => Ok(()),
            _ => {
                let sregs = self.sregs()?;
                if let Some(place) = registers::control(sregs, number) {
                    *place = value;
                } else if let Some(segment) = registers::segment(sregs, number) {
                    segment.selector = value as u16;
                } else {
                    return Err(call.refuse(&rules::REGISTER_KNOWN, Errno::EINVAL, format!("register {number}")));
                }
                self.sregs_dirty = true;
                Ok(())
            }
        }
    }

    pub fn get_register(&mut self, call: &Call<'_>, number: i32) -> SysResult<u64> {
        if registers::general(&mut kvm_regs::default(), number).is_some() {
            return registers::general(self.regs()?, number).map(|value| *value).ok_or(Errno::EINVAL);
        }
        match number {
            VM_REG_GUEST_XCR0 => Ok(self.fd()?.get_xcrs().map_or(1, |xcrs| xcrs.xcrs[0].value)),
            VM_REG_GUEST_DR0..=VM_REG_GUEST_DR6 | VM_REG_GUEST_DR7 => {
                let mut debug = self.fd()?.get_debug_regs().map_err(failed)?;
                Ok(*debug_register(&mut debug, number))
            }
            VM_REG_GUEST_INTR_SHADOW => Ok(self.fd()?.get_vcpu_events().map_err(failed)?.interrupt.shadow.into()),
            VM_REG_GUEST_PDPTE0..=VM_REG_GUEST_PDPTE3 | VM_REG_GUEST_ENTRY_INST_LENGTH => Ok(0),
            _ => {
                let sregs = self.sregs()?;
                if let Some(value) = registers::control(sregs, number) {
                    Ok(*value)
                } else if let Some(segment) = registers::segment(sregs, number) {
                    Ok(segment.selector.into())
                } else {
                    Err(call.refuse(&rules::REGISTER_KNOWN, Errno::EINVAL, format!("register {number}")))
                }
            }
        }
    }

    pub fn set_descriptor(&mut self, call: &Call<'_>, number: i32, desc: &seg_desc) -> SysResult<i32> {
        let id = self.id;
        let sregs = self.sregs()?;
        if let Some(table) = registers::table(sregs, number) {
            table.base = desc.base;
            table.limit = desc.limit as u16;
            if desc.limit >> 16 != 0 {
                call.note(&rules::SEGMENT_ACCESS, format!("a table's limit of {:#x}", desc.limit));
            }
        } else if let Some(segment) = registers::segment(sregs, number) {
            if desc.access & !registers::ACCESS_BITS != 0 {
                call.note(&rules::SEGMENT_ACCESS, format!("vCPU {id}, register {number}: {:#x}", desc.access));
            }
            if !registers::granularity_is_sound(desc) {
                call.note(&rules::SEGMENT_GRANULARITY, format!("vCPU {id}, register {number}: {desc:x?}"));
            }
            registers::set_descriptor(segment, desc);
        } else {
            return Err(call.refuse(&rules::SEGMENT_KNOWN, Errno::EINVAL, format!("register {number}")));
        }
        self.sregs_dirty = true;
        Ok(0)
    }

    pub fn get_descriptor(&mut self, call: &Call<'_>, number: i32) -> SysResult<seg_desc> {
        let sregs = self.sregs()?;
        if let Some(table) = registers::table(sregs, number) {
            return Ok(seg_desc { base: table.base, limit: table.limit.into(), access: 0 });
        }
        match registers::segment(sregs, number) {
            Some(segment) => Ok(registers::descriptor(segment)),
            None => Err(call.refuse(&rules::SEGMENT_KNOWN, Errno::EINVAL, format!("register {number}"))),
        }
    }

    /// Gives KVM the CPUID table, if it has another.
    pub fn apply_table(&mut self, call: &Call<'_>, topology: &vm_cpu_topology) -> SysResult<()> {
        if !std::mem::take(&mut self.table_dirty) {
            return Ok(());
        }
        let table = self.table.for_kvm(call, &self.machine, self.id, self.x2apic, topology);
        if self.applied == table.as_slice() {
            return Ok(());
        }
        if self.fd()?.set_cpuid2(&table).is_err() {
            // KVM takes no other table once a vCPU has run.
            let detail = format!("another CPUID table for vCPU {}, which has run", self.id);
            return Err(call.refuse(&rules::NOT_MODELLED, Errno::EIO, detail));
        }
        self.applied = table.as_slice().to_vec();
        Ok(())
    }

    /// VM_INJECT_EXCEPTION.
    pub fn inject(&mut self, call: &Call<'_>, arg: &vm_exception) -> SysResult<i32> {
        let vector = arg.vector;
        if !(0..32).contains(&vector) || vector == 2 || vector == 8 {
            return Err(call.refuse(&rules::EXCEPTION_VECTOR, Errno::EINVAL, format!("vector {vector}")));
        }
        self.flush_regs()?;
        let mut events = self.fd()?.get_vcpu_events().map_err(failed)?;
        if events.exception.injected != 0 || events.exception.pending != 0 {
            return Err(call.refuse(&rules::EXCEPTION_FREE, Errno::EBUSY, format!("vector {vector}")));
        }
        events.exception.injected = 1;
        events.exception.nr = vector as u8;
        // Real mode delivers no error code.
        let protected = self.sregs()?.cr0 & 1 != 0;
        events.exception.has_error_code = u8::from(arg.error_code_valid != 0 && protected);
        events.exception.error_code = arg.error_code;
        events.flags = 0;
        self.fd()?.set_vcpu_events(&events).map_err(failed)?;
        if arg.restart_instruction != 0 {
            self.next_rip = None;
        } else if let Some(rip) = self.next_rip.take() {
            self.regs()?.rip = rip;
            self.regs_dirty = true;
            self.flush_regs()?;
        }
        if let Some(msr) = &mut self.msr {
            msr.exception = true;
        }
        Ok(0)
    }

    fn flush_regs(&mut self) -> SysResult<()> {
        if std::mem::take(&mut self.regs_dirty)
            && let Some(regs) = self.regs
        {
            self.fd()?.set_regs(&regs).map_err(failed)?;
        }
        Ok(())
    }

    /// VM_RESET_CPU.
    pub fn reset(&mut self, call: &Call<'_>, kind: u32) -> SysResult<i32> {
        if kind != VRK_RESET && kind != VRK_INIT {
            return Err(call.refuse(&rules::RESET_KIND, Errno::EINVAL, format!("kind {kind}")));
        }
        self.abandon()?;
        let id = self.id;
        let mp_state = self.fd()?.get_mp_state().map_err(failed)?;
        if kind == VRK_RESET {
            let fd = self.fd()?;
            fd.set_fpu(&registers::fpu_after_reset()).map_err(failed)?;
            let mut xcrs = kvm_xcrs { nr_xcrs: 1, ..Default::default() };
            xcrs.xcrs[0].value = 1;
            // A processor without XSAVE has no XCR0.
            let _ = fd.set_xcrs(&xcrs);
            for (index, data) in registers::MSRS_AFTER_RESET {
                self.set_msr(index, data)?;
            }
        }
        let sregs = self.sregs()?;
        registers::special_after_reset(sregs, id == 0);
        let after = *sregs;
        // At once: what mode the local APIC is in decides how its registers are read below.
        self.fd()?.set_sregs(&after).map_err(failed)?;
        self.sregs_dirty = true;
        self.set_regs(registers::general_after_reset());
        self.next_rip = None;
        self.msr = None;
        let fd = self.fd()?;
        fd.set_lapic(&lapic_after_reset(id)).map_err(failed)?;
        let flags = KVM_VCPUEVENT_VALID_NMI_PENDING | KVM_VCPUEVENT_VALID_SIPI_VECTOR | KVM_VCPUEVENT_VALID_SHADOW;
        fd.set_vcpu_events(&kvm_vcpu_events { flags, ..Default::default() }).map_err(failed)?;
        let debug = kvm_debugregs { dr6: 0xffff_0ff0, dr7: 0x400, ..Default::default() };
        fd.set_debug_regs(&debug).map_err(failed)?;
        // The run state is a thing of its own.
        fd.set_mp_state(mp_state).map_err(failed)?;
        self.was_reset = true;
        Ok(0)
    }

    /// What VM_REINIT does to a vCPU.
    pub fn reinit(&mut self) -> SysResult<()> {
        self.abandon()?;
        if self.fd.is_some() {
            self.fd()?.set_mp_state(kvm_mp_state { mp_state: KVM_MP_STATE_UNINITIALIZED }).map_err(failed)?;
        }
        self.msr = None;
        self.next_rip = None;
        self.was_reset = false;
        self.has_run = false;
        Ok(())
    }

    /// VM_SET_RUN_STATE.
    pub fn set_run_state(&mut self, call: &Call<'_>, arg: &vm_run_state) -> SysResult<i32> {
        let sipi = arg.state & VRS_PEND_SIPI != 0;
        let mp_state = match arg.state & !VRS_PEND_SIPI {
            VRS_HALT if !sipi => KVM_MP_STATE_UNINITIALIZED,
            VRS_INIT if sipi => KVM_MP_STATE_SIPI_RECEIVED,
            VRS_INIT => KVM_MP_STATE_INIT_RECEIVED,
            VRS_RUN => KVM_MP_STATE_RUNNABLE,
            _ => return Err(call.refuse(&rules::RUN_STATE, Errno::EINVAL, format!("state {:#x}", arg.state))),
        };
        if sipi {
            let mut events = self.fd()?.get_vcpu_events().map_err(failed)?;
            events.flags = KVM_VCPUEVENT_VALID_SIPI_VECTOR;
            events.sipi_vector = arg.sipi_vector.into();
            self.fd()?.set_vcpu_events(&events).map_err(failed)?;
        }
        self.fd()?.set_mp_state(kvm_mp_state { mp_state }).map_err(failed)?;
        Ok(0)
    }

    /// VM_GET_RUN_STATE.
    pub fn run_state(&mut self) -> SysResult<(u32, u8)> {
        let state = match self.fd()?.get_mp_state().map_err(failed)?.mp_state {
            KVM_MP_STATE_UNINITIALIZED => VRS_HALT,
            KVM_MP_STATE_INIT_RECEIVED => VRS_INIT,
            KVM_MP_STATE_SIPI_RECEIVED => VRS_INIT | VRS_PEND_SIPI,
            _ => VRS_RUN,
        };
        let vector = self.fd()?.get_vcpu_events().map_err(failed)?.sipi_vector as u8;
        Ok((state, vector))
    }

    pub fn set_msr(&mut self, index: u32, data: u64) -> SysResult<bool> {
        let msrs =
            Msrs::from_entries(&[kvm_msr_entry { index, data, ..Default::default() }]).map_err(|_| Errno::EIO)?;
        Ok(self.fd()?.set_msrs(&msrs).map_err(failed)? == 1)
    }

    pub fn msr(&mut self, index: u32) -> SysResult<Option<u64>> {
        let mut msrs = Msrs::from_entries(&[kvm_msr_entry { index, ..Default::default() }]).map_err(|_| Errno::EIO)?;
        let found = self.fd()?.get_msrs(&mut msrs).map_err(failed)? == 1;
        Ok(found.then(|| msrs.as_slice()[0].data))
    }
}

fn debug_register(debug: &mut kvm_debugregs, number: i32) -> &mut u64 {
    match number {
        VM_REG_GUEST_DR6 => &mut debug.dr6,
        VM_REG_GUEST_DR7 => &mut debug.dr7,
        _ => &mut debug.db[(number - VM_REG_GUEST_DR0) as usize & 3],
    }
}

/// Registers of a local APIC after a reset (Intel SDM vol. 3 §11.4.7.1): offset and value.
fn lapic_after_reset(id: i32) -> kvm_lapic_state {
    let mut lapic = kvm_lapic_state::default();
    let mut registers = vec![(0x20, (id as u32) << 24), (0x30, 0x5_0014), (0xe0, u32::MAX), (0xf0, 0xff)];
    registers.extend((0x320..=0x370).step_by(0x10).map(|offset| (offset, 1 << 16)));
    for (offset, value) in registers {
        for (place, byte) in lapic.regs[offset..offset + 4].iter_mut().zip(value.to_le_bytes()) {
            *place = byte.cast_signed();
        }
    }
    lapic
}
