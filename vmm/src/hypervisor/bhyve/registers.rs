//! A boot processor's registers in the kernel's numbers.

use arch::regs::{BootCpu, Segment, TableRegister};

use super::abi;
use super::error::CallResult;
use super::vmfd::VmFd;

/// Sets every register of the boot processor.
///
/// # Errors
/// What the calls say.
pub fn set(fd: &VmFd, vcpu: i32, cpu: &BootCpu) -> CallResult<()> {
    let (regs, sregs) = (&cpu.regs, &cpu.sregs);
    let segments = [
        (abi::VM_REG_GUEST_CS, &sregs.cs),
        (abi::VM_REG_GUEST_DS, &sregs.ds),
        (abi::VM_REG_GUEST_ES, &sregs.es),
        (abi::VM_REG_GUEST_FS, &sregs.fs),
        (abi::VM_REG_GUEST_GS, &sregs.gs),
        (abi::VM_REG_GUEST_SS, &sregs.ss),
        (abi::VM_REG_GUEST_TR, &sregs.tr),
        (abi::VM_REG_GUEST_LDTR, &sregs.ldt),
    ];
    let mut registers = vec![
        // What paging needs comes before what switches it on.
        (abi::VM_REG_GUEST_EFER, sregs.efer),
        (abi::VM_REG_GUEST_CR4, sregs.cr4),
        (abi::VM_REG_GUEST_CR3, sregs.cr3),
        (abi::VM_REG_GUEST_CR2, sregs.cr2),
        (abi::VM_REG_GUEST_CR0, sregs.cr0),
        (abi::VM_REG_GUEST_RAX, regs.rax),
        (abi::VM_REG_GUEST_RBX, regs.rbx),
        (abi::VM_REG_GUEST_RCX, regs.rcx),
        (abi::VM_REG_GUEST_RDX, regs.rdx),
        (abi::VM_REG_GUEST_RSI, regs.rsi),
        (abi::VM_REG_GUEST_RDI, regs.rdi),
        (abi::VM_REG_GUEST_RBP, regs.rbp),
        (abi::VM_REG_GUEST_RSP, regs.rsp),
        (abi::VM_REG_GUEST_R8, regs.r8),
        (abi::VM_REG_GUEST_R9, regs.r9),
        (abi::VM_REG_GUEST_R10, regs.r10),
        (abi::VM_REG_GUEST_R11, regs.r11),
        (abi::VM_REG_GUEST_R12, regs.r12),
        (abi::VM_REG_GUEST_R13, regs.r13),
        (abi::VM_REG_GUEST_R14, regs.r14),
        (abi::VM_REG_GUEST_R15, regs.r15),
        (abi::VM_REG_GUEST_RIP, regs.rip),
        (abi::VM_REG_GUEST_RFLAGS, regs.rflags),
    ];
    registers.extend(segments.map(|(number, segment)| (number, segment.selector.into())));
    for (number, segment) in segments {
        fd.set_segment(vcpu, number, hidden_part(segment))?;
    }
    fd.set_segment(vcpu, abi::VM_REG_GUEST_GDTR, table(&sregs.gdt))?;
    fd.set_segment(vcpu, abi::VM_REG_GUEST_IDTR, table(&sregs.idt))?;
    fd.set_registers(vcpu, &registers)
}

fn hidden_part(segment: &Segment) -> abi::seg_desc {
    abi::seg_desc { base: segment.base, limit: segment.limit, access: segment.access() }
}

fn table(table: &TableRegister) -> abi::seg_desc {
    abi::seg_desc { base: table.base, limit: table.limit.into(), access: 0 }
}
