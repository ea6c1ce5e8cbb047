//! Our neutral CPU state in the driver's structures, and the state after power-on.

use arch::apic;
use arch::regs::{Registers, Segment, SpecialRegisters, TableRegister};

use super::abi::{kvm_dtable, kvm_fpu, kvm_lapic_state, kvm_msr_entry, kvm_regs, kvm_segment, kvm_sregs};
use super::plain::zeroed;

pub fn general(regs: &Registers) -> kvm_regs {
    kvm_regs {
        rax: regs.rax,
        rbx: regs.rbx,
        rcx: regs.rcx,
        rdx: regs.rdx,
        rsi: regs.rsi,
        rdi: regs.rdi,
        rsp: regs.rsp,
        rbp: regs.rbp,
        r8: regs.r8,
        r9: regs.r9,
        r10: regs.r10,
        r11: regs.r11,
        r12: regs.r12,
        r13: regs.r13,
        r14: regs.r14,
        r15: regs.r15,
        rip: regs.rip,
        rflags: regs.rflags,
    }
}

pub fn special(sregs: &SpecialRegisters, boot: bool) -> kvm_sregs {
    kvm_sregs {
        cs: segment(&sregs.cs),
        ds: segment(&sregs.ds),
        es: segment(&sregs.es),
        fs: segment(&sregs.fs),
        gs: segment(&sregs.gs),
        ss: segment(&sregs.ss),
        tr: segment(&sregs.tr),
        ldt: segment(&sregs.ldt),
        gdt: table(&sregs.gdt),
        idt: table(&sregs.idt),
        cr0: sregs.cr0,
        cr2: sregs.cr2,
        cr3: sregs.cr3,
        cr4: sregs.cr4,
        cr8: 0,
        efer: sregs.efer,
        apic_base: apic::base_after_reset(boot),
        interrupt_bitmap: [0; 4],
    }
}

fn segment(segment: &Segment) -> kvm_segment {
    kvm_segment {
        base: segment.base,
        limit: segment.limit,
        selector: segment.selector,
        r#type: segment.type_,
        present: segment.present.into(),
        dpl: segment.dpl,
        db: segment.db.into(),
        s: segment.s.into(),
        l: segment.l.into(),
        g: segment.g.into(),
        avl: segment.avl.into(),
        unusable: segment.unusable.into(),
        padding: 0,
    }
}

fn table(table: &TableRegister) -> kvm_dtable {
    kvm_dtable { base: table.base, limit: table.limit, padding: [0; 3] }
}

/// The x87 and SSE state after FNINIT and reset (Intel SDM vol. 3 table 10-1).
pub fn fpu_after_reset() -> kvm_fpu {
    kvm_fpu { fcw: 0x37f, mxcsr: 0x1f80, ..zeroed() }
}

/// The local APIC after reset. The driver's has no entry for corrected machine checks.
pub fn lapic_after_reset(id: u8, boot: bool) -> kvm_lapic_state {
    kvm_lapic_state { regs: apic::registers_after_reset(id, boot, false) }
}

/// Model-specific registers that the driver knows and that keep their values across a guest reset: above all the
/// paravirtual clock's, with which the kernel would go on writing into the memory of the next boot. PAT is here for the
/// first start, too: a new vCPU has the host's.
pub fn msrs_after_reset() -> Vec<kvm_msr_entry> {
    const PAT_AFTER_RESET: u64 = 0x0007_0406_0007_0406;
    let zeroed = [
        0x12,        // MSR_KVM_SYSTEM_TIME
        0x11,        // MSR_KVM_WALL_CLOCK
        0x4000_0000, // HV_X64_MSR_GUEST_OS_ID; takes the hypercall page with it
        0x4000_0073, // HV_X64_MSR_APIC_ASSIST_PAGE
        0x174,       // IA32_SYSENTER_CS
        0x175,       // IA32_SYSENTER_ESP
        0x176,       // IA32_SYSENTER_EIP
        0xc000_0081, // STAR
        0xc000_0082, // LSTAR
        0xc000_0083, // CSTAR
        0xc000_0084, // SFMASK
        0xc000_0102, // KERNEL_GS_BASE
    ];
    let entry = |index, data| kvm_msr_entry { index, reserved: 0, data };
    let mut msrs: Vec<_> = zeroed.into_iter().map(|index| entry(index, 0)).collect();
    msrs.push(entry(0x277, PAT_AFTER_RESET));
    msrs.extend((0x200..0x210).map(|variable_mtrr| entry(variable_mtrr, 0)));
    msrs.extend(arch::msr::boot_msrs().map(|msr| entry(msr.index, msr.value)));
    msrs
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_clock_stops_before_the_next_boot_and_the_registers_fit_one_call() {
        let msrs = msrs_after_reset();
        assert!([0x11, 0x12].iter().all(|index| msrs.iter().any(|msr| msr.index == *index && msr.data == 0)));
        assert!(msrs.len() <= 100);
        let pat = msrs.iter().find(|msr| msr.index == 0x277).unwrap();
        assert_eq!(pat.data, 0x0007_0406_0007_0406, "or guests start with the host's");
    }
}
