//! Our neutral CPU state in KVM's structs.

use arch::apic;
use arch::cpu::CpuidEntry;
use arch::regs::{Registers, Segment, SpecialRegisters, TableRegister};
use kvm_bindings::{
    KVM_CPUID_FLAG_SIGNIFCANT_INDEX, kvm_cpuid_entry2, kvm_dtable, kvm_lapic_state, kvm_msr_entry, kvm_regs,
    kvm_segment, kvm_sregs,
};

pub fn cpuid_from_kvm(entry: &kvm_cpuid_entry2) -> CpuidEntry {
    CpuidEntry {
        function: entry.function,
        index: entry.index,
        index_significant: entry.flags & KVM_CPUID_FLAG_SIGNIFCANT_INDEX != 0,
        eax: entry.eax,
        ebx: entry.ebx,
        ecx: entry.ecx,
        edx: entry.edx,
    }
}

pub fn cpuid_to_kvm(entry: &CpuidEntry) -> kvm_cpuid_entry2 {
    kvm_cpuid_entry2 {
        function: entry.function,
        index: entry.index,
        flags: if entry.index_significant { KVM_CPUID_FLAG_SIGNIFCANT_INDEX } else { 0 },
        eax: entry.eax,
        ebx: entry.ebx,
        ecx: entry.ecx,
        edx: entry.edx,
        ..Default::default()
    }
}

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
        type_: segment.type_,
        s: segment.s.into(),
        dpl: segment.dpl,
        present: segment.present.into(),
        avl: segment.avl.into(),
        l: segment.l.into(),
        db: segment.db.into(),
        g: segment.g.into(),
        unusable: segment.unusable.into(),
        padding: 0,
    }
}

fn table(table: &TableRegister) -> kvm_dtable {
    kvm_dtable { base: table.base, limit: table.limit, padding: [0; 3] }
}

/// The local APIC after reset.
pub fn lapic_after_reset(id: u8, boot: bool) -> kvm_lapic_state {
    kvm_lapic_state { regs: apic::registers_after_reset(id, boot, true).map(|byte| byte as _) }
}

/// Model-specific registers that survive in KVM across a guest reset and may not: above all the paravirtual ones, with
/// which the kernel would go on writing into the memory of the next boot.
pub fn msrs_after_reset() -> Vec<kvm_msr_entry> {
    const PAT_AFTER_RESET: u64 = 0x0007_0406_0007_0406;
    let zeroed = [
        0x4b56_4d00, // MSR_KVM_WALL_CLOCK_NEW
        0x4b56_4d01, // MSR_KVM_SYSTEM_TIME_NEW
        0x4b56_4d02, // MSR_KVM_ASYNC_PF_EN
        0x4b56_4d03, // MSR_KVM_STEAL_TIME
        0x4b56_4d04, // MSR_KVM_PV_EOI_EN
        0x11,        // MSR_KVM_WALL_CLOCK
        0x12,        // MSR_KVM_SYSTEM_TIME
        0x48,        // IA32_SPEC_CTRL
        0x6e0,       // IA32_TSC_DEADLINE
        0xda0,       // IA32_XSS
        0x174,       // IA32_SYSENTER_CS
        0x175,       // IA32_SYSENTER_ESP
        0x176,       // IA32_SYSENTER_EIP
        0x1d9,       // IA32_DEBUGCTL
        0x2ff,       // IA32_MTRR_DEF_TYPE
        0xc000_0081, // STAR
        0xc000_0082, // LSTAR
        0xc000_0083, // CSTAR
        0xc000_0084, // SFMASK
        0xc000_0102, // KERNEL_GS_BASE
        0xc000_0103, // TSC_AUX
    ];
    let entry = |index, data| kvm_msr_entry { index, data, ..Default::default() };
    let mut msrs: Vec<_> = zeroed.into_iter().map(|index| entry(index, 0)).collect();
    msrs.push(entry(0x277, PAT_AFTER_RESET));
    msrs.extend((0x200..0x210).map(|variable_mtrr| entry(variable_mtrr, 0)));
    msrs
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_paravirtual_clocks_are_off_after_reset() {
        let msrs = msrs_after_reset();
        for index in [0x4b56_4d00, 0x4b56_4d01, 0x4b56_4d03] {
            assert!(msrs.iter().any(|msr| msr.index == index && msr.data == 0));
        }
    }
}
