//! Registers by number, segment descriptors, and the state after a reset (reference sections 2.6 and 2.9).

use kvm_bindings::{kvm_dtable, kvm_fpu, kvm_regs, kvm_segment, kvm_sregs};
use zvmm::hypervisor::bhyve::abi::*;

/// Bits of the access word that mean something.
pub const ACCESS_BITS: u32 = 0xff | SEG_ACCESS_AVL | SEG_ACCESS_L | SEG_ACCESS_DB | SEG_ACCESS_G | SEG_ACCESS_UNUSABLE;

/// Where a general register lives.
pub fn general(regs: &mut kvm_regs, number: i32) -> Option<&mut u64> {
    Some(match number {
        VM_REG_GUEST_RAX => &mut regs.rax,
        VM_REG_GUEST_RBX => &mut regs.rbx,
        VM_REG_GUEST_RCX => &mut regs.rcx,
        VM_REG_GUEST_RDX => &mut regs.rdx,
        VM_REG_GUEST_RSI => &mut regs.rsi,
        VM_REG_GUEST_RDI => &mut regs.rdi,
        VM_REG_GUEST_RBP => &mut regs.rbp,
        VM_REG_GUEST_R8 => &mut regs.r8,
        VM_REG_GUEST_R9 => &mut regs.r9,
        VM_REG_GUEST_R10 => &mut regs.r10,
        VM_REG_GUEST_R11 => &mut regs.r11,
        VM_REG_GUEST_R12 => &mut regs.r12,
        VM_REG_GUEST_R13 => &mut regs.r13,
        VM_REG_GUEST_R14 => &mut regs.r14,
        VM_REG_GUEST_R15 => &mut regs.r15,
        VM_REG_GUEST_RSP => &mut regs.rsp,
        VM_REG_GUEST_RIP => &mut regs.rip,
        VM_REG_GUEST_RFLAGS => &mut regs.rflags,
        _ => return None,
    })
}

/// Where a control register lives.
pub fn control(sregs: &mut kvm_sregs, number: i32) -> Option<&mut u64> {
    Some(match number {
        VM_REG_GUEST_CR0 => &mut sregs.cr0,
        VM_REG_GUEST_CR2 => &mut sregs.cr2,
        VM_REG_GUEST_CR3 => &mut sregs.cr3,
        VM_REG_GUEST_CR4 => &mut sregs.cr4,
        VM_REG_GUEST_EFER => &mut sregs.efer,
        _ => return None,
    })
}

/// Where a segment register lives.
pub fn segment(sregs: &mut kvm_sregs, number: i32) -> Option<&mut kvm_segment> {
    Some(match number {
        VM_REG_GUEST_ES => &mut sregs.es,
        VM_REG_GUEST_CS => &mut sregs.cs,
        VM_REG_GUEST_SS => &mut sregs.ss,
        VM_REG_GUEST_DS => &mut sregs.ds,
        VM_REG_GUEST_FS => &mut sregs.fs,
        VM_REG_GUEST_GS => &mut sregs.gs,
        VM_REG_GUEST_LDTR => &mut sregs.ldt,
        VM_REG_GUEST_TR => &mut sregs.tr,
        _ => return None,
    })
}

/// Where a table register lives.
pub fn table(sregs: &mut kvm_sregs, number: i32) -> Option<&mut kvm_dtable> {
    Some(match number {
        VM_REG_GUEST_IDTR => &mut sregs.idt,
        VM_REG_GUEST_GDTR => &mut sregs.gdt,
        _ => return None,
    })
}

/// A segment's descriptor as the interface has it.
pub fn descriptor(segment: &kvm_segment) -> seg_desc {
    let access = u32::from(segment.type_)
        | u32::from(segment.s) << 4
        | u32::from(segment.dpl) << SEG_ACCESS_DPL_SHIFT
        | u32::from(segment.present) << 7
        | u32::from(segment.avl) << 12
        | u32::from(segment.l) << 13
        | u32::from(segment.db) << 14
        | u32::from(segment.g) << 15
        | u32::from(segment.unusable) << 16;
    seg_desc { base: segment.base, limit: segment.limit, access }
}

/// The other way round; the selector stays.
pub fn set_descriptor(segment: &mut kvm_segment, desc: &seg_desc) {
    let bit = |mask: u32| u8::from(desc.access & mask != 0);
    *segment = kvm_segment {
        base: desc.base,
        limit: desc.limit,
        selector: segment.selector,
        type_: (desc.access & SEG_ACCESS_TYPE_MASK) as u8,
        s: bit(SEG_ACCESS_S),
        dpl: (desc.access >> SEG_ACCESS_DPL_SHIFT) as u8 & 3,
        present: bit(SEG_ACCESS_P),
        avl: bit(SEG_ACCESS_AVL),
        l: bit(SEG_ACCESS_L),
        db: bit(SEG_ACCESS_DB),
        g: bit(SEG_ACCESS_G),
        unusable: bit(SEG_ACCESS_UNUSABLE),
        ..Default::default()
    };
}

/// Whether limit and granularity agree, as Intel's entry checks demand; an unusable segment may say anything.
pub fn granularity_is_sound(desc: &seg_desc) -> bool {
    let g = desc.access & SEG_ACCESS_G != 0;
    desc.access & SEG_ACCESS_UNUSABLE != 0 || ((desc.limit >> 20 == 0 || g) && (desc.limit & 0xfff == 0xfff || !g))
}

/// General registers after a reset.
pub fn general_after_reset() -> kvm_regs {
    kvm_regs { rip: 0xfff0, rflags: 2, rdx: 0x600, ..Default::default() }
}

/// Everything else after a reset, on top of what KVM keeps in the same structure.
pub fn special_after_reset(sregs: &mut kvm_sregs, boot: bool) {
    let data = kvm_segment { limit: 0xffff, type_: 3, present: 1, s: 1, ..Default::default() };
    sregs.cs = kvm_segment { base: 0xffff_0000, selector: 0xf000, ..data };
    for segment in [&mut sregs.ds, &mut sregs.es, &mut sregs.fs, &mut sregs.gs, &mut sregs.ss] {
        *segment = data;
    }
    sregs.ldt = kvm_segment { type_: 2, s: 0, ..data };
    sregs.tr = kvm_segment { type_: 11, s: 0, ..data };
    let table = kvm_dtable { limit: 0xffff, ..Default::default() };
    (sregs.gdt, sregs.idt) = (table, table);
    (sregs.cr0, sregs.cr2, sregs.cr3, sregs.cr4, sregs.cr8, sregs.efer) = (0x6000_0010, 0, 0, 0, 0, 0);
    sregs.apic_base = LAPIC_BASE | 1 << 11 | u64::from(boot) << 8;
    sregs.interrupt_bitmap = [0; 4];
}

/// The FPU after a reset, as FINIT leaves it and with all SSE exceptions masked.
pub fn fpu_after_reset() -> kvm_fpu {
    kvm_fpu { fcw: 0x37f, mxcsr: 0x1f80, ..Default::default() }
}

/// MSRs after a reset.
pub const MSRS_AFTER_RESET: [(u32, u64); 10] = [
    (0x174, 0),
    (0x175, 0),
    (0x176, 0),
    (0x277, 0x0007_0406_0007_0406),
    (0x2ff, 0),
    (0xc000_0081, 0),
    (0xc000_0082, 0),
    (0xc000_0083, 0),
    (0xc000_0084, 0),
    (0xc000_0102, 0),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_descriptor_survives_the_way_through_kvm() {
        for access in [0xa09b, 0xc093, 0x8b, 0x82, 0x10000, 0x93 | 3 << 5, ACCESS_BITS] {
            let desc = seg_desc { base: 0x1234, limit: 0xffff_ffff, access };
            let mut segment = kvm_segment { selector: 7, ..Default::default() };
            set_descriptor(&mut segment, &desc);
            assert_eq!(descriptor(&segment), desc);
            assert_eq!(segment.selector, 7);
        }
    }

    #[test]
    fn granularity_follows_the_limit() {
        let sound = |limit, access| granularity_is_sound(&seg_desc { base: 0, limit, access });
        assert!(sound(0xffff_ffff, 0xc093) && sound(0xffff, 0x93) && sound(0x67, 0x8b) && sound(0xf_ffff, 0x93));
        assert!(!sound(0xffff_ffff, 0x4093) && !sound(0x67, 0x808b) && sound(0x67, 0x1_8000));
    }
}
