//! Kernels built byte by byte, good ones and hostile ones. The builders write the formats from their specifications and
//! share nothing with the code they test.

use std::io::Cursor;

use proptest::prelude::*;
use vm_memory::GuestMemoryMmap;

use super::*;

const MIB: u64 = 1 << 20;

/// A bzImage with one setup sector and `code` bytes of protected-mode code.
struct BzImage {
    bytes: Vec<u8>,
}

impl BzImage {
    fn new() -> Self {
        let code = 64 << 10;
        let mut image = Self { bytes: vec![0; 1024 + code] };
        image.put(0x1f1, &[1]); // setup_sects
        image.put(0x1f4, &((code / 16) as u32).to_le_bytes()); // syssize
        image.put(0x1fe, &[0x55, 0xaa]);
        image.put(0x200, &[0xeb, 0x6a]); // jump: header ends at 0x26c
        image.put(0x202, b"HdrS");
        image.put(0x206, &[0x0f, 0x02]); // version 2.15
        image.put(0x211, &[1]); // LOADED_HIGH
        image.put(0x22c, &0x7fff_ffffu32.to_le_bytes()); // initrd_addr_max
        image.put(0x230, &0x20_0000u32.to_le_bytes()); // kernel_alignment
        image.put(0x234, &[1]); // relocatable
        image.put(0x236, &[0x03, 0x00]); // 64-bit entry, loadable above 4 GiB
        image.put(0x238, &2047u32.to_le_bytes()); // cmdline_size
        image.put(0x258, &(16 * MIB).to_le_bytes()); // pref_address
        image.put(0x260, &(8 * MIB as u32).to_le_bytes()); // init_size
        image.put(1024, &[0xc0; 64]); // recognisable start of the code
        image
    }

    fn put(&mut self, at: usize, bytes: &[u8]) {
        self.bytes[at..at + bytes.len()].copy_from_slice(bytes);
    }

    fn with(mut self, at: usize, bytes: &[u8]) -> Self {
        self.put(at, bytes);
        self
    }

    fn inspect(&self) -> Result<BootPlan, BootError> {
        inspect(&mut Cursor::new(&self.bytes), None, "console=ttyS0", &layout(64 * MIB), None)
    }

    fn refusal(&self) -> String {
        self.inspect().unwrap_err().to_string()
    }
}

/// An ELF with the given program headers `(type, offset, paddr, filesz, memsz)`; file content starts at 0x1000.
struct Elf {
    bytes: Vec<u8>,
}

const LOAD: u32 = 1;
const NOTE: u32 = 4;

impl Elf {
    fn new(entry: u64, phdrs: &[(u32, u64, u64, u64, u64)]) -> Self {
        let mut bytes = vec![0; 0x1_0000];
        bytes[..8].copy_from_slice(b"\x7fELF\x02\x01\x01\x00");
        bytes[16..18].copy_from_slice(&2u16.to_le_bytes());
        bytes[18..20].copy_from_slice(&62u16.to_le_bytes());
        bytes[24..32].copy_from_slice(&entry.to_le_bytes());
        bytes[32..40].copy_from_slice(&64u64.to_le_bytes());
        bytes[54..56].copy_from_slice(&56u16.to_le_bytes());
        bytes[56..58].copy_from_slice(&(phdrs.len() as u16).to_le_bytes());
        for (index, (kind, offset, paddr, filesz, memsz)) in phdrs.iter().enumerate() {
            let at = 64 + index * 56;
            bytes[at..at + 4].copy_from_slice(&kind.to_le_bytes());
            for (field, value) in [(8, offset), (24, paddr), (32, filesz), (40, memsz)] {
                bytes[at + field..at + field + 8].copy_from_slice(&value.to_le_bytes());
            }
        }
        bytes[0x1000..0x1010].copy_from_slice(&[0xe1; 16]);
        Self { bytes }
    }

    fn good() -> Self {
        Self::new(MIB + 16, &[(LOAD, 0x1000, MIB, 0x1000, 0x2000)])
    }

    fn with(mut self, at: usize, bytes: &[u8]) -> Self {
        self.bytes[at..at + bytes.len()].copy_from_slice(bytes);
        self
    }

    /// Adds notes at 0x3000, which a header must name.
    fn with_note(self, name: &[u8], kind: u32, desc: &[u8]) -> Self {
        let mut note = Vec::new();
        for word in [name.len() as u32, desc.len() as u32, kind] {
            note.extend_from_slice(&word.to_le_bytes());
        }
        for part in [name, desc] {
            note.extend_from_slice(part);
            note.resize(note.len().next_multiple_of(4), 0);
        }
        self.with(0x3000, &note)
    }

    fn inspect(&self) -> Result<BootPlan, BootError> {
        inspect(&mut Cursor::new(&self.bytes), None, "", &layout(64 * MIB), None)
    }

    fn refusal(&self) -> String {
        self.inspect().unwrap_err().to_string()
    }
}

fn layout(ram: u64) -> MemoryLayout {
    MemoryLayout::new(ram, 40).unwrap()
}

fn memory(layout: &MemoryLayout) -> GuestMemoryMmap {
    let ranges: Vec<_> = layout.ram().iter().map(|r| (GuestAddress(r.gpa), r.len as usize)).collect();
    GuestMemoryMmap::from_ranges(&ranges).unwrap()
}

fn read<T: vm_memory::ByteValued>(mem: &GuestMemoryMmap, at: u64) -> T {
    mem.read_obj(GuestAddress(at)).unwrap()
}

/// A file in memory that vm-memory can stream from.
fn file(bytes: &[u8]) -> Cursor<Vec<u8>> {
    Cursor::new(bytes.to_vec())
}

fn place_all(plan: &BootPlan, mem: &GuestMemoryMmap, kernel: &[u8], initrd: Option<&[u8]>) -> LoadedKernel {
    let placement = Placement { rsdp: Some(layout::ACPI_TABLES), ecam: true, reused_memory: true };
    place(plan, placement, mem, &mut file(kernel), initrd.map(file).as_mut()).unwrap()
}

#[test]
fn a_bzimage_lands_at_its_preferred_address_with_a_filled_zero_page() {
    let image = BzImage::new();
    let layout = layout(64 * MIB);
    let initrd = vec![0x5a; 5000];
    let plan =
        inspect(&mut file(&image.bytes), Some(initrd.len() as u64), "console=ttyS0 quiet", &layout, None).unwrap();
    assert_eq!(plan.entry(), 16 * MIB + 0x200);
    assert_eq!(plan.kernel_end(), 24 * MIB);

    let mem = memory(&layout);
    let loaded = place_all(&plan, &mem, &image.bytes, Some(&initrd));
    assert_eq!(loaded.protocol, Protocol::Linux64);
    assert_eq!(read::<[u8; 32]>(&mem, 16 * MIB), [0xc0; 32]);

    let zero_page = loaded.params;
    assert_eq!(read::<u64>(&mem, zero_page + 0x70), layout::ACPI_TABLES, "acpi_rsdp_addr");
    assert_eq!(read::<u8>(&mem, zero_page + 0x210), 0xff, "type_of_loader");
    assert_eq!(read::<u32>(&mem, zero_page + 0x238), 2047, "the header's own fields stay");
    let ramdisk = u64::from(read::<u32>(&mem, zero_page + 0x218));
    assert_eq!(u64::from(read::<u32>(&mem, zero_page + 0x21c)), initrd.len() as u64);
    assert_eq!(ramdisk, 64 * MIB - 8192, "as high as it fits, on a page");
    assert_eq!(read::<[u8; 16]>(&mem, ramdisk), [0x5a; 16]);
    let cmdline = u64::from(read::<u32>(&mem, zero_page + 0x228));
    assert_eq!(&read::<[u8; 20]>(&mem, cmdline), b"console=ttyS0 quiet\0");

    let entries = read::<u8>(&mem, zero_page + 0x1e8);
    assert_eq!(usize::from(entries), layout.e820(true).len());
    assert_eq!(read::<u64>(&mem, zero_page + 0x2d0 + 8), layout::EBDA, "first range ends where the EBDA starts");

    let cpu = loaded.boot_cpu();
    assert_eq!((cpu.regs.rip, cpu.regs.rsi), (plan.entry(), zero_page));
}

#[test]
fn an_elf_without_a_pvh_note_is_entered_in_long_mode() {
    let elf = Elf::good();
    let layout = layout(64 * MIB);
    let plan = elf.inspect().unwrap();
    let mem = memory(&layout);
    mem.write_slice(&[0xff; 0x2000], GuestAddress(MIB)).unwrap();
    let loaded = place_all(&plan, &mem, &elf.bytes, None);
    assert_eq!((loaded.protocol, loaded.entry), (Protocol::Linux64, MIB + 16));
    assert_eq!(read::<[u8; 16]>(&mem, MIB), [0xe1; 16]);
    assert_eq!(read::<u64>(&mem, MIB + 0x1000), 0, "memory beyond the file's part is zero after a reset too");
    assert_eq!(read::<u32>(&mem, loaded.params + 0x202), 0x5372_6448, "Linux checks for HdrS");
}

#[test]
fn an_elf_with_a_pvh_note_is_entered_by_pvh_with_the_initrd_as_module() {
    let elf = Elf::new(MIB, &[(LOAD, 0x1000, MIB, 0x1000, 0x1000), (NOTE, 0x3000, 0, 64, 64)]).with_note(
        b"Xen\0",
        18,
        &((MIB + 0x40) as u32).to_le_bytes(),
    );
    let layout = layout(64 * MIB);
    let plan = inspect(&mut file(&elf.bytes), Some(4096), "a=b", &layout, None).unwrap();
    let mem = memory(&layout);
    let loaded = place_all(&plan, &mem, &elf.bytes, Some(&[0x77; 4096]));
    assert_eq!((loaded.protocol, loaded.entry), (Protocol::Pvh, MIB + 0x40));
    assert_eq!(loaded.boot_cpu().regs.rbx, loaded.params);

    let info = loaded.params;
    assert_eq!(read::<u32>(&mem, info), 0x336e_c578);
    assert_eq!(read::<u32>(&mem, info + 4), 1);
    assert_eq!(read::<u32>(&mem, info + 12), 1, "one module");
    let module = read::<u64>(&mem, info + 16);
    assert_eq!(read::<u64>(&mem, module), plan.initrd().unwrap().start);
    assert_eq!(read::<u64>(&mem, module + 8), 4096);
    assert_eq!(&read::<[u8; 4]>(&mem, read::<u64>(&mem, info + 24)), b"a=b\0");
    assert_eq!(read::<u64>(&mem, info + 32), layout::ACPI_TABLES);
    let memmap = read::<u64>(&mem, info + 40);
    assert_eq!(read::<u32>(&mem, info + 48) as usize, layout.e820(true).len());
    assert_eq!(read::<[u64; 2]>(&mem, memmap), [0, layout::EBDA]);
}

#[test]
fn the_caller_can_choose_the_protocol_an_elf_offers() {
    let elf = Elf::new(MIB, &[(LOAD, 0x1000, MIB, 0x1000, 0x1000), (NOTE, 0x3000, 0, 64, 64)]).with_note(
        b"Xen\0",
        18,
        &((MIB + 0x40) as u32).to_le_bytes(),
    );
    let choose = |bytes: &[u8], wanted| inspect(&mut file(bytes), None, "", &layout(64 * MIB), Some(wanted));
    assert_eq!(choose(&elf.bytes, Protocol::Linux64).unwrap().entry(), MIB);
    assert_eq!(choose(&Elf::good().bytes, Protocol::Pvh).unwrap_err().to_string(), "the kernel has no PVH entry point");
    assert_eq!(
        choose(&BzImage::new().bytes, Protocol::Pvh).unwrap_err().to_string(),
        "the kernel has no PVH entry point"
    );
}

#[test]
fn an_initrd_goes_above_four_gib_only_if_the_kernel_can_take_it_there() {
    let layout = MemoryLayout::with_split(128 * MIB, 40, 32 * MIB).unwrap();
    let place_initrd = |image: &BzImage, bytes| inspect(&mut file(&image.bytes), Some(bytes), "", &layout, None);
    let image = BzImage::new();
    assert_eq!(place_initrd(&image, MIB).unwrap().initrd().unwrap().start, 31 * MIB);
    let high = place_initrd(&image, 20 * MIB).unwrap().initrd().unwrap();
    assert_eq!(high.start, HIGH_RAM_START + 76 * MIB);
    let image = image.with(0x236, &[1]);
    assert_eq!(
        place_initrd(&image, 20 * MIB).unwrap_err().to_string(),
        "the initrd of 20971520 bytes does not fit: 8388608 bytes are free between the kernel and 0x2000000, \
         the end of memory the kernel can take it from"
    );
}

#[test]
fn the_initrd_stays_below_the_kernels_own_limit() {
    let image = BzImage::new().with(0x22c, &(0x2ff_ffffu32).to_le_bytes());
    let plan = inspect(&mut file(&image.bytes), Some(MIB), "", &layout(256 * MIB), None).unwrap();
    assert_eq!(plan.initrd().unwrap().end(), 0x300_0000);
}

#[test]
fn initrds_that_cannot_be_loaded_are_refused_before_memory_exists() {
    let refuse = |bytes| {
        inspect(&mut file(&BzImage::new().bytes), Some(bytes), "", &layout(64 * MIB), None).unwrap_err().to_string()
    };
    assert_eq!(refuse(0), "the initrd is empty");
    assert!(refuse(64 * MIB).starts_with("the initrd of 67108864 bytes does not fit: 41943040 bytes are free"));
    assert!(refuse(u64::MAX).starts_with("the initrd of 18446744073709551615 bytes does not fit"));
}

#[test]
fn command_lines_are_accepted_up_to_the_kernels_own_limit() {
    let with_len =
        |len: usize| inspect(&mut file(&BzImage::new().bytes), None, &"x".repeat(len), &layout(64 * MIB), None);
    assert!(with_len(2047).is_ok());
    assert_eq!(
        with_len(2048).unwrap_err().to_string(),
        "the kernel command line has 2048 bytes, this kernel takes at most 2047"
    );
    let greedy = BzImage::new().with(0x238, &u32::MAX.to_le_bytes());
    let long = |len: usize| inspect(&mut file(&greedy.bytes), None, &"x".repeat(len), &layout(64 * MIB), None);
    assert!(long(65535).is_ok());
    assert!(long(65536).is_err(), "the area for it ends");
    assert_eq!(
        inspect(&mut file(&greedy.bytes), None, "a\0b", &layout(64 * MIB), None).unwrap_err().to_string(),
        "the kernel command line holds a zero byte at position 1"
    );
}

#[test]
fn files_that_are_no_kernels_say_what_they_are() {
    let refuse = |bytes: &[u8]| inspect(&mut file(bytes), None, "", &layout(64 * MIB), None).unwrap_err().to_string();
    assert_eq!(refuse(b""), "the kernel is neither a bzImage nor an ELF file: it is empty");
    assert_eq!(refuse(b"hello"), "the kernel is neither a bzImage nor an ELF file: it is too short to be a kernel");
    assert_eq!(refuse(&[7; 4096]), "the kernel is neither a bzImage nor an ELF file");
    assert_eq!(
        refuse(&[0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0]),
        "the kernel is neither a bzImage nor an ELF file: it is gzip data, decompress it first"
    );
    assert_eq!(
        refuse(b"070701................"),
        "the kernel is neither a bzImage nor an ELF file: it is a cpio archive, perhaps the initrd"
    );
}

#[test]
fn bzimages_for_other_machines_are_refused() {
    let refuse = |at, bytes: &[u8]| BzImage::new().with(at, bytes).refusal();
    let prefix = "the kernel cannot run on this machine: ";
    assert_eq!(refuse(0x206, &[0x0b, 0x02]), format!("{prefix}its boot protocol is older than 2.12 (Linux 3.8)"));
    assert_eq!(refuse(0x211, &[0]), format!("{prefix}it is a zImage that loads below 1 MiB"));
    assert_eq!(refuse(0x236, &[0]), format!("{prefix}it is a 32-bit kernel without a 64-bit entry point"));
}

#[test]
fn hostile_bzimages_are_refused_with_what_is_wrong() {
    let refuse = |at, bytes: &[u8]| BzImage::new().with(at, bytes).refusal();
    assert_eq!(
        refuse(0x1f4, &u32::MAX.to_le_bytes()),
        "the kernel file is truncated: the protected-mode code ends at byte 68719477744, the file has 66560"
    );
    assert!(refuse(0x1f1, &[255]).starts_with("the kernel file is truncated: the protected-mode code"));
    assert_eq!(refuse(0x1f4, &[0; 4]), "the kernel file is corrupt: the bzImage has no protected-mode code");
    assert!(refuse(0x24c, &u32::MAX.to_le_bytes()).starts_with("the kernel file is truncated: the compressed payload"));
    assert_eq!(
        refuse(0x230, &3u32.to_le_bytes()),
        "the kernel file is corrupt: kernel_alignment is not a power of two"
    );
    assert_eq!(refuse(0x230, &[0; 4]), "the kernel file is corrupt: kernel_alignment is not a power of two");
    assert_eq!(refuse(0x260, &[0; 4]), "the kernel file is corrupt: init_size is smaller than the kernel itself");
    assert_eq!(
        refuse(0x260, &u32::MAX.to_le_bytes()),
        "the kernel needs memory up to 0x100ffffff, but kernels have to fit below 3 GiB"
    );
    assert_eq!(
        refuse(0x260, &(64 * MIB as u32).to_le_bytes()),
        "the kernel needs memory up to 0x5000000, but low memory ends at 0x4000000: give the guest at least 80M"
    );
    assert_eq!(
        refuse(0x258, &u64::MAX.to_le_bytes()),
        "the kernel file is corrupt: offset and size of the load address wrap around"
    );
    assert_eq!(
        refuse(0x258, &(!0x1f_ffffu64).to_le_bytes()),
        "the kernel file is corrupt: offset and size of the load address and init_size wrap around"
    );
    assert_eq!(
        BzImage::new().with(0x234, &[0]).with(0x258, &0x7000u64.to_le_bytes()).refusal(),
        "the kernel wants to be loaded at 0x7000: nothing can be loaded below 1 MiB"
    );
}

#[test]
fn a_short_setup_header_does_not_lend_code_to_the_zero_page() {
    // The jump says the header ends at 0x250, before pref_address: what lies there is code.
    let image = BzImage::new().with(0x201, &[0x4e]);
    assert_eq!(
        image.refusal(),
        "the kernel file is corrupt: init_size is smaller than the kernel itself",
        "init_size at 0x260 is not part of the header"
    );
}

#[test]
fn elf_files_for_other_machines_are_refused() {
    let refuse = |at, bytes: &[u8]| Elf::good().with(at, bytes).refusal();
    let prefix = "the kernel cannot run on this machine: ";
    assert_eq!(refuse(4, &[1]), format!("{prefix}it is a 32-bit ELF file"));
    assert_eq!(refuse(5, &[2]), format!("{prefix}it is a big-endian ELF file"));
    assert_eq!(refuse(18, &[183]), format!("{prefix}it is an ELF file for another processor"));
    assert_eq!(refuse(16, &[1]), format!("{prefix}it is an ELF file that is not executable (an object or core file)"));
}

#[test]
fn hostile_elf_headers_are_refused_with_what_is_wrong() {
    let refuse = |at, bytes: &[u8]| Elf::good().with(at, bytes).refusal();
    assert_eq!(
        Elf { bytes: Elf::good().bytes[..40].to_vec() }.refusal(),
        "the kernel file is truncated: the ELF header ends at byte 64, the file has 40"
    );
    assert_eq!(refuse(54, &[32]), "the kernel file is corrupt: the ELF program headers have the wrong size");
    assert_eq!(refuse(32, &[8]), "the kernel file is corrupt: the ELF program headers overlap the ELF header");
    assert_eq!(refuse(56, &[0xff, 0xff]), "the kernel file is corrupt: the ELF has more than 128 program headers");
    assert_eq!(
        refuse(32, &u64::MAX.to_le_bytes()),
        "the kernel file is corrupt: offset and size of the program headers wrap around"
    );
    assert_eq!(
        refuse(32, &0xfff0u64.to_le_bytes()),
        "the kernel file is truncated: the program header table ends at byte 65576, the file has 65536"
    );
    assert_eq!(refuse(56, &[0, 0]), "the kernel file is corrupt: the ELF has no segment to load");
}

#[test]
fn hostile_elf_segments_are_refused_with_what_is_wrong() {
    let refuse = |phdrs: &[_]| Elf::new(MIB, phdrs).refusal();
    assert_eq!(
        refuse(&[(LOAD, 0x1000, MIB, 0x2000, 0x1000)]),
        "the kernel file is corrupt: an ELF segment is larger in the file than in memory"
    );
    assert_eq!(
        refuse(&[(LOAD, 0x1000, MIB, 0x10_0000, 0x10_0000)]),
        "the kernel file is truncated: an ELF segment ends at byte 1052672, the file has 65536"
    );
    assert_eq!(
        refuse(&[(LOAD, u64::MAX, MIB, 2, 2)]),
        "the kernel file is corrupt: offset and size of an ELF segment in the file wrap around"
    );
    assert_eq!(
        refuse(&[(LOAD, 0x1000, u64::MAX - 10, 16, 16)]),
        "the kernel file is corrupt: offset and size of an ELF segment in memory wrap around"
    );
    assert_eq!(
        refuse(&[(LOAD, 0x1000, 0x8000, 16, 16)]),
        "the kernel wants to be loaded at 0x8000: nothing can be loaded below 1 MiB"
    );
    assert_eq!(
        refuse(&[(LOAD, 0x1000, MIB, 16, 64 * MIB)]),
        "the kernel needs memory up to 0x4100000, but low memory ends at 0x4000000: give the guest at least 65M"
    );
    assert_eq!(
        refuse(&[(LOAD, 0x1000, 2 * MIB, 16, 16), (LOAD, 0x1000, MIB, 16, MIB + 1)]),
        "the kernel's segments overlap at physical address 0x200000"
    );
}

#[test]
fn an_entry_outside_the_loaded_bytes_is_refused() {
    let entry = |entry| Elf::new(entry, &[(LOAD, 0x1000, MIB, 0x1000, 0x2000)]);
    assert_eq!(entry(0x1000).refusal(), "the kernel's entry point 0x1000 lies outside its loaded segments");
    assert!(entry(MIB + 0x1000).inspect().is_err(), "zeroed memory is not code");
    assert!(entry(0xffff_ffff_8100_0000).inspect().is_err());
    assert!(entry(MIB + 0xfff).inspect().is_ok());
}

#[test]
fn hostile_notes_are_refused_and_harmless_ones_skipped() {
    let with_notes = |offset, len| Elf::new(MIB, &[(LOAD, 0x1000, MIB, 0x1000, 0x1000), (NOTE, offset, 0, len, len)]);
    assert_eq!(
        with_notes(0x3000, 1 << 40).refusal(),
        "the kernel file is truncated: the ELF notes ends at byte 1099511640064, the file has 65536"
    );
    let mut long = with_notes(0x3000, 0x2_0000);
    long.bytes.resize(0x10_0000, 0);
    assert_eq!(long.refusal(), "the kernel file is corrupt: the ELF notes are longer than 64 KiB");
    // 4 KiB of zeros are 341 empty notes: skipped, not looped over for ever.
    assert_eq!(with_notes(0x4000, 0x1000).inspect().unwrap().protocol(), Protocol::Linux64);
    let huge = with_notes(0x3000, 64).with(0x3000, &[0xff; 12]);
    assert_eq!(huge.refusal(), "the kernel file is corrupt: an ELF note is longer than its segment");
    assert_eq!(
        with_notes(0x3000, 64).with_note(b"Xen\0", 18, &[1, 2, 3]).refusal(),
        "the kernel's PVH note is invalid: its entry point has neither 4 nor 8 bytes"
    );
    assert_eq!(
        with_notes(0x3000, 64).with_note(b"Xen\0", 18, &(1u64 << 32).to_le_bytes()).refusal(),
        "the kernel's PVH note is invalid: its 32-bit entry point lies above 4 GiB"
    );
    assert_eq!(
        with_notes(0x3000, 64).with_note(b"Xen\0", 18, &0x5000u32.to_le_bytes()).refusal(),
        "the kernel's entry point 0x5000 lies outside its loaded segments"
    );
    let other = with_notes(0x3000, 64).with_note(b"GNU\0", 18, &0x5000u32.to_le_bytes());
    assert_eq!(other.inspect().unwrap().protocol(), Protocol::Linux64);
}

#[test]
fn a_file_that_shrinks_after_the_check_is_an_error_not_a_short_kernel() {
    let elf = Elf::good();
    let plan = elf.inspect().unwrap();
    let mem = memory(&layout(64 * MIB));
    let refused =
        place(&plan, Placement::default(), &mem, &mut file(&elf.bytes[..0x1800]), None::<&mut Cursor<Vec<u8>>>);
    assert_eq!(
        refused.unwrap_err().to_string(),
        "the kernel became shorter while it was loaded: 2048 bytes are missing"
    );
}

proptest! {
    /// No bytes make the checks panic, and no accepted plan leaves memory.
    #[test]
    fn any_change_of_a_good_kernel_is_refused_or_fits(
        elf: bool, changes in prop::collection::vec((0usize..0x3040, any::<u8>()), 1..12)
    ) {
        let mut bytes = if elf {
            Elf::new(MIB, &[(LOAD, 0x1000, MIB, 0x1000, 0x1000), (NOTE, 0x3000, 0, 64, 64)])
                .with_note(b"Xen\0", 18, &((MIB + 0x40) as u32).to_le_bytes()).bytes
        } else {
            BzImage::new().bytes
        };
        for (at, value) in changes {
            // Aim at the headers: that is where the meaning is.
            let at = if elf { at % 176 } else { 0x1f0 + at % 0x80 };
            bytes[at] = value;
        }
        let layout = layout(64 * MIB);
        if let Ok(plan) = inspect(&mut Cursor::new(&bytes), Some(4096), "x", &layout, None) {
            prop_assert!(plan.kernel_end() <= layout.low_ram_end());
            let initrd = plan.initrd().unwrap();
            prop_assert!(initrd.start >= plan.kernel_end());
            prop_assert!(initrd.end() <= layout.low_ram_end());
            for segment in &plan.segments {
                prop_assert!(segment.gpa >= layout::LEGACY_HOLE_END);
                prop_assert!(segment.file_offset + segment.file_bytes <= bytes.len() as u64);
            }
        }
    }
}
