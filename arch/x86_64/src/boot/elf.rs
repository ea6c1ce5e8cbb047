//! ELF kernels: `vmlinux` and anything with a PVH note.
//!
//! Types and constants are linux-loader's. Its loader is not used: it does not check segments against each other, the
//! entry against the segments, or sizes against the file, and it writes to memory before it has seen everything.

use std::io::{Read, Seek};

use linux_loader::elf;
use vm_memory::ByteValued;

use super::{BootError, Image, Protocol, Segment, read_at};
use crate::layout::{HIGH_RAM_START, LEGACY_HOLE_END};

/// More program headers than any kernel has (Linux: 5); bounds the work a hostile header can cause.
const MAX_PROGRAM_HEADERS: u16 = 128;
/// Longest note segment that is searched (Linux: about 500 bytes).
const MAX_NOTES_BYTES: u64 = 64 << 10;
/// XEN_ELFNOTE_PHYS32_ENTRY (Xen `public/elfnote.h`).
const NOTE_PHYS32_ENTRY: u32 = 18;
const NOTE_NAME: &[u8] = b"Xen\0";
/// Highest initrd address for kernels that state none: what every Linux bzImage states.
const DEFAULT_INITRD_ADDR_MAX: u64 = 0x7fff_ffff;
/// `COMMAND_LINE_SIZE` of x86 Linux less the terminating zero; an ELF does not state it.
pub(super) const LINUX_CMDLINE_MAX: usize = 2047;

/// Whether the file starts with the ELF magic.
pub(super) fn matches(start: &[u8]) -> bool {
    start.starts_with(b"\x7fELF")
}

/// Reads and checks headers, segments and notes.
pub(super) fn inspect<K: Read + Seek>(
    kernel: &mut K,
    file_len: u64,
    wanted: Option<Protocol>,
) -> Result<Image, BootError> {
    let ehdr = read_header(kernel, file_len)?;
    let phdrs_end = ehdr
        .e_phoff
        .checked_add(u64::from(ehdr.e_phnum) * size_of::<elf::Elf64_Phdr>() as u64)
        .ok_or(BootError::Wraps("the program headers"))?;
    if phdrs_end > file_len {
        return Err(BootError::Truncated { what: "the program header table", end: phdrs_end, file_len });
    }

    let mut segments = Vec::new();
    let mut pvh_entry = None;
    for index in 0..u64::from(ehdr.e_phnum) {
        let mut phdr = elf::Elf64_Phdr::default();
        read_at(kernel, ehdr.e_phoff + index * size_of::<elf::Elf64_Phdr>() as u64, phdr.as_mut_slice())?;
        match phdr.p_type {
            elf::PT_LOAD => segments.extend(load_segment(&phdr, file_len)?),
            elf::PT_NOTE if pvh_entry.is_none() => pvh_entry = find_pvh_entry(kernel, &phdr, file_len)?,
            _ => {}
        }
    }
    if segments.is_empty() {
        return Err(BootError::Corrupt("the ELF has no segment to load"));
    }
    segments.sort_by_key(|segment| segment.gpa);
    for pair in segments.windows(2) {
        if pair[0].end() > pair[1].gpa {
            return Err(BootError::SegmentsOverlap(pair[1].gpa));
        }
    }

    // PVH first: it is the entry an ELF kernel documents for hypervisors, it takes the initrd as a module, and costs
    // the same exits as the 64-bit entry. `e_entry` may be a virtual address in kernels that are not Linux.
    let (protocol, entry) = match (wanted, pvh_entry) {
        (Some(Protocol::Pvh), None) => return Err(BootError::NoSuchEntry(Protocol::Pvh)),
        (None | Some(Protocol::Pvh), Some(entry)) => (Protocol::Pvh, entry),
        (None | Some(Protocol::Linux64), _) => (Protocol::Linux64, ehdr.e_entry),
    };
    let inside = |segment: &Segment| (segment.gpa..segment.gpa + segment.file_bytes).contains(&entry);
    if !segments.iter().any(inside) {
        return Err(BootError::EntryOutside { entry });
    }
    Ok(Image {
        protocol,
        entry,
        segments,
        initrd_addr_max: DEFAULT_INITRD_ADDR_MAX,
        initrd_above_4g: false,
        cmdline_max: LINUX_CMDLINE_MAX,
        header: None,
    })
}

fn read_header<K: Read + Seek>(kernel: &mut K, file_len: u64) -> Result<elf::Elf64_Ehdr, BootError> {
    let header_len = size_of::<elf::Elf64_Ehdr>() as u64;
    if file_len < header_len {
        return Err(BootError::Truncated { what: "the ELF header", end: header_len, file_len });
    }
    let mut ehdr = elf::Elf64_Ehdr::default();
    read_at(kernel, 0, ehdr.as_mut_slice())?;
    if ehdr.e_ident[elf::EI_CLASS] != elf::ELFCLASS64 {
        return Err(BootError::Unsupported("it is a 32-bit ELF file"));
    }
    if ehdr.e_ident[elf::EI_DATA] != elf::ELFDATA2LSB {
        return Err(BootError::Unsupported("it is a big-endian ELF file"));
    }
    if ehdr.e_machine != elf::EM_X86_64 {
        return Err(BootError::Unsupported("it is an ELF file for another processor"));
    }
    if ehdr.e_type != elf::ET_EXEC && ehdr.e_type != elf::ET_DYN {
        return Err(BootError::Unsupported("it is an ELF file that is not executable (an object or core file)"));
    }
    if usize::from(ehdr.e_phentsize) != size_of::<elf::Elf64_Phdr>() {
        return Err(BootError::Corrupt("the ELF program headers have the wrong size"));
    }
    if ehdr.e_phoff < header_len {
        return Err(BootError::Corrupt("the ELF program headers overlap the ELF header"));
    }
    if ehdr.e_phnum > MAX_PROGRAM_HEADERS {
        return Err(BootError::Corrupt("the ELF has more than 128 program headers"));
    }
    Ok(ehdr)
}

fn load_segment(phdr: &elf::Elf64_Phdr, file_len: u64) -> Result<Option<Segment>, BootError> {
    if phdr.p_memsz == 0 && phdr.p_filesz == 0 {
        return Ok(None);
    }
    if phdr.p_memsz < phdr.p_filesz {
        return Err(BootError::Corrupt("an ELF segment is larger in the file than in memory"));
    }
    let file_end = phdr.p_offset.checked_add(phdr.p_filesz).ok_or(BootError::Wraps("an ELF segment in the file"))?;
    if file_end > file_len {
        return Err(BootError::Truncated { what: "an ELF segment", end: file_end, file_len });
    }
    phdr.p_paddr.checked_add(phdr.p_memsz).ok_or(BootError::Wraps("an ELF segment in memory"))?;
    if phdr.p_paddr < LEGACY_HOLE_END {
        return Err(BootError::SegmentTooLow(phdr.p_paddr));
    }
    Ok(Some(Segment {
        file_offset: phdr.p_offset,
        file_bytes: phdr.p_filesz,
        gpa: phdr.p_paddr,
        mem_bytes: phdr.p_memsz,
    }))
}

/// Looks for the PVH entry in one note segment. Notes are 4-byte aligned: name size, descriptor size, type, name,
/// descriptor (ELF specification, "Note Section").
fn find_pvh_entry<K: Read + Seek>(
    kernel: &mut K,
    phdr: &elf::Elf64_Phdr,
    file_len: u64,
) -> Result<Option<u64>, BootError> {
    let end = phdr.p_offset.checked_add(phdr.p_filesz).ok_or(BootError::Wraps("the ELF notes"))?;
    if end > file_len {
        return Err(BootError::Truncated { what: "the ELF notes", end, file_len });
    }
    if phdr.p_filesz > MAX_NOTES_BYTES {
        return Err(BootError::Corrupt("the ELF notes are longer than 64 KiB"));
    }
    let mut notes = vec![0u8; phdr.p_filesz as usize];
    read_at(kernel, phdr.p_offset, &mut notes)?;

    let mut rest = notes.as_slice();
    while let Some((header, after)) = rest.split_first_chunk::<12>() {
        let word = |at: usize| u32::from_le_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
        let (name_len, desc_len, kind) = (word(0) as usize, word(4) as usize, word(8));
        let name_room = name_len.next_multiple_of(4);
        let desc_room = desc_len.next_multiple_of(4);
        let (Some(name), Some(desc)) = (
            after.get(..name_len),
            name_room.checked_add(desc_len).and_then(|desc_end| after.get(name_room..desc_end)),
        ) else {
            return Err(BootError::Corrupt("an ELF note is longer than its segment"));
        };
        if name == NOTE_NAME && kind == NOTE_PHYS32_ENTRY {
            let entry = match *desc {
                [a, b, c, d] => u64::from(u32::from_le_bytes([a, b, c, d])),
                [a, b, c, d, e, f, g, h] => u64::from_le_bytes([a, b, c, d, e, f, g, h]),
                _ => return Err(BootError::PvhNote("its entry point has neither 4 nor 8 bytes")),
            };
            if entry >= HIGH_RAM_START {
                return Err(BootError::PvhNote("its 32-bit entry point lies above 4 GiB"));
            }
            return Ok(Some(entry));
        }
        rest = after.get(name_room + desc_room..).unwrap_or_default();
    }
    Ok(None)
}
