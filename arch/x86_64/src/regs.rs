//! Registers a vCPU starts with, in neutral types.
//!
//! Each hypervisor backend translates them: KVM into `kvm_regs`/`kvm_sregs`, bhyve into register and descriptor ioctls
//! (there [`Segment::access`] is already the word it wants).

use vm_memory::{Bytes, GuestAddress, GuestMemory};

use crate::layout;

/// CR0.PE: protected mode.
pub const CR0_PE: u64 = 1;
/// CR0.ET: hard-wired 1 on every CPU since the 486.
pub const CR0_ET: u64 = 1 << 4;
/// CR0.NE: native x87 errors.
pub const CR0_NE: u64 = 1 << 5;
/// CR0.PG: paging.
pub const CR0_PG: u64 = 1 << 31;
/// CR4.PAE: 8-byte page table entries, needed by long mode.
pub const CR4_PAE: u64 = 1 << 5;
/// EFER.LME: long mode enable.
pub const EFER_LME: u64 = 1 << 8;
/// EFER.LMA: long mode active.
pub const EFER_LMA: u64 = 1 << 10;

/// Selector of the flat code segment of the boot GDT (`__BOOT_CS` of the Linux boot protocol).
pub const BOOT_CS: u16 = 0x10;
/// Selector of the flat data segment (`__BOOT_DS`).
pub const BOOT_DS: u16 = 0x18;
/// Selector of the task state segment.
pub const BOOT_TSS: u16 = 0x20;

/// General-purpose registers, instruction pointer and flags.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs, reason = "the names are the architecture's")]
pub struct Registers {
    pub rax: u64,
    pub rbx: u64,
    pub rcx: u64,
    pub rdx: u64,
    pub rsi: u64,
    pub rdi: u64,
    pub rsp: u64,
    pub rbp: u64,
    pub r8: u64,
    pub r9: u64,
    pub r10: u64,
    pub r11: u64,
    pub r12: u64,
    pub r13: u64,
    pub r14: u64,
    pub r15: u64,
    pub rip: u64,
    pub rflags: u64,
}

/// A segment register with its hidden part (Intel SDM vol. 3 §3.4.3, §25.4.1).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Segment {
    /// Linear base address.
    pub base: u64,
    /// Limit in bytes (already expanded when `g` is set).
    pub limit: u32,
    /// Visible selector.
    pub selector: u16,
    /// Type field, 4 bits.
    pub type_: u8,
    /// Code or data (1) rather than system (0).
    pub s: bool,
    /// Descriptor privilege level, 0 to 3.
    pub dpl: u8,
    /// Present.
    pub present: bool,
    /// Available to software.
    pub avl: bool,
    /// 64-bit code.
    pub l: bool,
    /// Default operand size 32 bits.
    pub db: bool,
    /// Limit counts 4 KiB units in the descriptor.
    pub g: bool,
    /// No segment is loaded.
    pub unusable: bool,
}

impl Segment {
    /// The VMX access-rights word: type 3:0, S 4, DPL 6:5, P 7, AVL 12, L 13, D/B 14, G 15, unusable 16. bhyve takes
    /// it as is.
    pub fn access(&self) -> u32 {
        u32::from(self.type_ & 0xf)
            | u32::from(self.s) << 4
            | u32::from(self.dpl & 3) << 5
            | u32::from(self.present) << 7
            | u32::from(self.avl) << 12
            | u32::from(self.l) << 13
            | u32::from(self.db) << 14
            | u32::from(self.g) << 15
            | u32::from(self.unusable) << 16
    }

    /// The segment as the 8-byte descriptor a GDT holds (Intel SDM vol. 3 §3.4.5). Only the low 32 bits of the base fit.
    pub fn descriptor(&self) -> u64 {
        let limit = u64::from(if self.g { self.limit >> 12 } else { self.limit });
        let access = u64::from(self.access());
        (limit & 0xffff)
            | (self.base & 0xff_ffff) << 16
            | (access & 0xff) << 40
            | (limit >> 16 & 0xf) << 48
            | (access >> 12 & 0xf) << 52
            | (self.base >> 24 & 0xff) << 56
    }

    fn flat_code(long_mode: bool) -> Self {
        Self {
            limit: u32::MAX,
            selector: BOOT_CS,
            type_: 0xb,
            s: true,
            present: true,
            l: long_mode,
            db: !long_mode,
            g: true,
            ..Self::default()
        }
    }

    fn flat_data() -> Self {
        Self {
            limit: u32::MAX,
            selector: BOOT_DS,
            type_: 0x3,
            s: true,
            present: true,
            db: true,
            g: true,
            ..Self::default()
        }
    }

    /// A busy TSS: Intel refuses VM entry without one, though nothing ever switches to it.
    fn task(selector: u16, limit: u32) -> Self {
        Self { limit, selector, type_: 0xb, present: true, ..Self::default() }
    }

    fn real_mode(selector: u16, base: u64) -> Self {
        Self { base, limit: 0xffff, selector, type_: 0x3, s: true, present: true, ..Self::default() }
    }

    fn unusable() -> Self {
        Self { unusable: true, ..Self::default() }
    }
}

/// GDTR or IDTR.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TableRegister {
    /// Linear address of the table.
    pub base: u64,
    /// Size in bytes minus one.
    pub limit: u16,
}

/// Segments, tables and control registers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs, reason = "the names are the architecture's")]
pub struct SpecialRegisters {
    pub cs: Segment,
    pub ds: Segment,
    pub es: Segment,
    pub fs: Segment,
    pub gs: Segment,
    pub ss: Segment,
    pub tr: Segment,
    pub ldt: Segment,
    pub gdt: TableRegister,
    pub idt: TableRegister,
    pub cr0: u64,
    pub cr2: u64,
    pub cr3: u64,
    pub cr4: u64,
    pub efer: u64,
}

/// Complete initial state of the boot CPU. The APIC base stays what the hypervisor set it to at reset.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BootCpu {
    /// General registers.
    pub regs: Registers,
    /// Special registers.
    pub sregs: SpecialRegisters,
}

const RFLAGS_ALWAYS_1: u64 = 2;

/// State at a 64-bit Linux entry point: long mode, identity map of the first 4 GiB, RSI = `boot_params`
/// (Linux `Documentation/x86/boot.rst`, "64-bit boot protocol"). [`write_gdt`] and [`write_identity_map`] must have
/// filled the tables.
pub fn long_mode_boot(entry: u64, zero_page: u64) -> BootCpu {
    let data = Segment::flat_data();
    BootCpu {
        regs: Registers {
            rip: entry,
            rsi: zero_page,
            rsp: layout::BOOT_STACK,
            rflags: RFLAGS_ALWAYS_1,
            ..Registers::default()
        },
        sregs: SpecialRegisters {
            cs: Segment::flat_code(true),
            ds: data,
            es: data,
            fs: data,
            gs: data,
            ss: data,
            tr: Segment::task(BOOT_TSS, 0x67),
            ldt: Segment::unusable(),
            gdt: TableRegister { base: layout::GDT, limit: GDT_BYTES - 1 },
            idt: TableRegister::default(),
            cr0: CR0_PE | CR0_ET | CR0_NE | CR0_PG,
            cr3: layout::PML4,
            cr4: CR4_PAE,
            efer: EFER_LME | EFER_LMA,
            ..SpecialRegisters::default()
        },
    }
}

/// State at a PVH entry point: 32-bit protected mode without paging, EBX = `hvm_start_info` (Xen
/// `docs/misc/pvh.pandoc`). [`write_gdt`] must have filled the GDT.
pub fn pvh_boot(entry: u64, start_info: u64) -> BootCpu {
    let data = Segment::flat_data();
    BootCpu {
        regs: Registers { rip: entry, rbx: start_info, rflags: RFLAGS_ALWAYS_1, ..Registers::default() },
        sregs: SpecialRegisters {
            cs: Segment::flat_code(false),
            ds: data,
            es: data,
            fs: data,
            gs: data,
            ss: data,
            tr: Segment::task(BOOT_TSS, 0x67),
            ldt: Segment::unusable(),
            gdt: TableRegister { base: layout::GDT, limit: GDT_BYTES - 1 },
            idt: TableRegister::default(),
            cr0: CR0_PE | CR0_ET,
            ..SpecialRegisters::default()
        },
    }
}

/// State after RESET: real mode at the last 16 bytes below 4 GiB (Intel SDM vol. 3, table 10-1). RDX holds the family of
/// a P6, as every hypervisor's reset does.
pub fn reset_vector() -> BootCpu {
    let data = Segment::real_mode(0, 0);
    BootCpu {
        regs: Registers { rip: 0xfff0, rdx: 0x600, rflags: RFLAGS_ALWAYS_1, ..Registers::default() },
        sregs: SpecialRegisters {
            cs: Segment { type_: 0xb, ..Segment::real_mode(0xf000, 0xffff_0000) },
            ds: data,
            es: data,
            fs: data,
            gs: data,
            ss: data,
            tr: Segment::task(0, 0xffff),
            ldt: Segment { limit: 0xffff, type_: 2, present: true, ..Segment::default() },
            gdt: TableRegister { base: 0, limit: 0xffff },
            idt: TableRegister { base: 0, limit: 0xffff },
            cr0: CR0_ET | 0x6000_0000,
            ..SpecialRegisters::default()
        },
    }
}

const GDT_ENTRIES: usize = 6;
const GDT_BYTES: u16 = (GDT_ENTRIES * 8) as u16;

/// Writes the boot GDT at [`layout::GDT`]: null, unused, code, data, and the 16-byte TSS descriptor. The same descriptors
/// as in the registers, so a guest that reloads a selector keeps what it has.
///
/// # Errors
/// When guest memory does not hold the first page.
pub fn write_gdt<M: GuestMemory + ?Sized>(mem: &M, long_mode: bool) -> Result<(), vm_memory::GuestMemoryError> {
    let table: [u64; GDT_ENTRIES] = [
        0,
        0,
        Segment::flat_code(long_mode).descriptor(),
        Segment::flat_data().descriptor(),
        Segment::task(BOOT_TSS, 0x67).descriptor(),
        0,
    ];
    let mut bytes = [0u8; GDT_ENTRIES * 8];
    for (slot, descriptor) in bytes.chunks_exact_mut(8).zip(table) {
        slot.copy_from_slice(&descriptor.to_le_bytes());
    }
    mem.write_slice(&bytes, GuestAddress(layout::GDT))
}

/// Writes page tables at [`layout::PML4`] that map the first 4 GiB onto themselves with 2 MiB pages (Intel SDM vol. 3
/// §4.5).
///
/// # Errors
/// When guest memory does not hold the first 64 KiB.
pub fn write_identity_map<M: GuestMemory + ?Sized>(mem: &M) -> Result<(), vm_memory::GuestMemoryError> {
    const PRESENT_WRITABLE: u64 = 0b11;
    const LARGE: u64 = 1 << 7;
    const TABLE: u64 = 4096;
    let pdpt = layout::PML4 + TABLE;
    let directories = pdpt + TABLE;

    let mut tables = vec![0u8; (layout::PAGE_TABLES_END - layout::PML4) as usize];
    let mut put = |address: u64, entry: u64| {
        let offset = (address - layout::PML4) as usize;
        tables[offset..offset + 8].copy_from_slice(&entry.to_le_bytes());
    };
    put(layout::PML4, pdpt | PRESENT_WRITABLE);
    for gib in 0..4 {
        put(pdpt + gib * 8, (directories + gib * TABLE) | PRESENT_WRITABLE);
    }
    for page in 0..4 * 512 {
        put(directories + page * 8, page << 21 | PRESENT_WRITABLE | LARGE);
    }
    mem.write_slice(&tables, GuestAddress(layout::PML4))
}

#[cfg(test)]
mod tests {
    use vm_memory::GuestMemoryMmap;

    use super::*;

    fn memory() -> GuestMemoryMmap {
        GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 1 << 20)]).unwrap()
    }

    #[test]
    fn access_words_are_those_bhyve_documents_for_direct_boot() {
        let cpu = long_mode_boot(0x100_0200, 0x7000);
        assert_eq!(cpu.sregs.cs.access(), 0xa09b);
        assert_eq!(cpu.sregs.ds.access(), 0xc093);
        assert_eq!(cpu.sregs.tr.access(), 0x8b);
        assert_eq!(cpu.sregs.ldt.access(), 0x1_0000);
        assert_eq!(pvh_boot(0, 0).sregs.cs.access(), 0xc09b);
    }

    #[test]
    fn descriptors_in_memory_equal_the_registers() {
        let mem = memory();
        write_gdt(&mem, true).unwrap();
        let descriptor =
            |selector: u16| -> u64 { mem.read_obj(GuestAddress(layout::GDT + u64::from(selector))).unwrap() };
        assert_eq!(descriptor(BOOT_CS), 0x00af_9b00_0000_ffff);
        assert_eq!(descriptor(BOOT_DS), 0x00cf_9300_0000_ffff);
        assert_eq!(descriptor(BOOT_TSS), 0x0000_8b00_0000_0067);
        write_gdt(&mem, false).unwrap();
        assert_eq!(descriptor(BOOT_CS), 0x00cf_9b00_0000_ffff);
    }

    /// Walks the tables as a CPU would.
    fn translate(mem: &GuestMemoryMmap, cr3: u64, address: u64) -> Option<u64> {
        let mut table = cr3;
        for shift in [39, 30, 21] {
            let entry: u64 = mem.read_obj(GuestAddress(table + (address >> shift & 0x1ff) * 8)).unwrap();
            if entry & 1 == 0 {
                return None;
            }
            if entry & (1 << 7) != 0 {
                assert_eq!(shift, 21, "only 2 MiB pages");
                return Some((entry & !0x1f_ffff) | (address & 0x1f_ffff));
            }
            table = entry & !0xfff;
        }
        None
    }

    #[test]
    fn the_first_four_gib_map_onto_themselves_and_nothing_else_does() {
        let mem = memory();
        write_identity_map(&mem).unwrap();
        let cr3 = long_mode_boot(0, 0).sregs.cr3;
        for address in [0, 0x7000, 0x10_0000, 0x3fff_ffff, 0x4000_0000, 0xbfff_ffff, 0xffff_ffff] {
            assert_eq!(translate(&mem, cr3, address), Some(address));
        }
        assert_eq!(translate(&mem, cr3, 1 << 32), None);
    }

    #[test]
    fn reset_fetches_the_last_sixteen_bytes_below_four_gib() {
        let cpu = reset_vector();
        assert_eq!(cpu.sregs.cs.base + cpu.regs.rip, 0xffff_fff0);
        assert_eq!(cpu.sregs.cr0 & (CR0_PE | CR0_PG), 0);
    }
}
