//! bzImage: the Linux boot protocol's 64-bit entry (Linux `Documentation/x86/boot.rst`).
//!
//! The header's layout is linux-loader's. Its loader is not used: it always loads at `code32_start` or a given address
//! without looking at `init_size`, alignment or the 64-bit flag, and takes bytes after a short header for header fields.

use std::io::{Read, Seek};

use linux_loader::bootparam::{LOADED_HIGH, XLF_CAN_BE_LOADED_ABOVE_4G, XLF_KERNEL_64, setup_header};
use vm_memory::ByteValued;

use super::{BootError, Image, Protocol, Segment, read_at};
use crate::layout::LEGACY_HOLE_END;

/// Offset of the setup header in the file and in the zero page.
const HEADER_OFFSET: u64 = 0x1f1;
/// Offset of the 64-bit entry point from the load address.
const ENTRY_64: u64 = 0x200;
/// "HdrS".
const HEADER_MAGIC: u32 = 0x5372_6448;
const BOOT_FLAG: u16 = 0xaa55;
/// First protocol version with `xloadflags`, which alone says whether there is a 64-bit entry (Linux 3.8).
const VERSION_XLOADFLAGS: u16 = 0x020c;

/// Whether the file starts like a bzImage: boot flag and "HdrS" in their places.
pub(super) fn matches<K: Read + Seek>(kernel: &mut K, file_len: u64) -> Result<bool, BootError> {
    if file_len < HEADER_OFFSET + size_of::<setup_header>() as u64 {
        return Ok(false);
    }
    let mut header = setup_header::default();
    read_at(kernel, HEADER_OFFSET, header.as_mut_slice())?;
    Ok(header.boot_flag == BOOT_FLAG && header.header == HEADER_MAGIC)
}

/// Reads and checks the setup header.
pub(super) fn inspect<K: Read + Seek>(kernel: &mut K, file_len: u64) -> Result<Image, BootError> {
    let mut bytes = [0u8; size_of::<setup_header>()];
    read_at(kernel, HEADER_OFFSET, &mut bytes)?;
    // The header ends where its own jump instruction says (boot.rst, "Details of Header Fields"); what follows is code.
    let header_len = 0x202 + usize::from(bytes[0x201 - HEADER_OFFSET as usize]) - HEADER_OFFSET as usize;
    if let Some(beyond) = bytes.get_mut(header_len..) {
        beyond.fill(0);
    }
    let mut header = setup_header::default();
    header.as_mut_slice().copy_from_slice(&bytes);

    if header.version < VERSION_XLOADFLAGS {
        return Err(BootError::Unsupported("its boot protocol is older than 2.12 (Linux 3.8)"));
    }
    if header.loadflags & LOADED_HIGH == 0 {
        return Err(BootError::Unsupported("it is a zImage that loads below 1 MiB"));
    }
    if header.xloadflags & XLF_KERNEL_64 == 0 {
        return Err(BootError::Unsupported("it is a 32-bit kernel without a 64-bit entry point"));
    }

    let setup_sectors = if header.setup_sects == 0 { 4 } else { u64::from(header.setup_sects) };
    let setup_len = (setup_sectors + 1) * 512;
    // `syssize` counts what the kernel needs; a signature or padding may follow it in the file.
    let code_len = u64::from(header.syssize) * 16;
    if code_len <= ENTRY_64 {
        return Err(BootError::Corrupt("the bzImage has no protected-mode code"));
    }
    // Linux pads the last paragraph in some versions and not in others: up to 15 bytes may be missing.
    let available = file_len.saturating_sub(setup_len);
    if available + 15 < code_len {
        return Err(BootError::Truncated { what: "the protected-mode code", end: setup_len + code_len, file_len });
    }
    let file_bytes = code_len.min(available);
    let payload_end = u64::from(header.payload_offset) + u64::from(header.payload_length);
    if payload_end > code_len {
        return Err(BootError::Truncated { what: "the compressed payload", end: setup_len + payload_end, file_len });
    }

    let init_size = u64::from(header.init_size);
    if init_size < file_bytes {
        return Err(BootError::Corrupt("init_size is smaller than the kernel itself"));
    }
    let mut load = header.pref_address;
    if header.relocatable_kernel != 0 {
        let alignment = u64::from(header.kernel_alignment);
        if !alignment.is_power_of_two() {
            return Err(BootError::Corrupt("kernel_alignment is not a power of two"));
        }
        load = load.checked_next_multiple_of(alignment).ok_or(BootError::Wraps("the load address"))?;
    }
    if load < LEGACY_HOLE_END {
        return Err(BootError::SegmentTooLow(load));
    }
    load.checked_add(init_size).ok_or(BootError::Wraps("the load address and init_size"))?;

    let segment = Segment { file_offset: setup_len, file_bytes, gpa: load, mem_bytes: init_size };
    Ok(Image {
        protocol: Protocol::Linux64,
        entry: load + ENTRY_64,
        segments: vec![segment],
        initrd_addr_max: u64::from(header.initrd_addr_max),
        initrd_above_4g: header.xloadflags & XLF_CAN_BE_LOADED_ABOVE_4G != 0,
        cmdline_max: header.cmdline_size as usize,
        header: Some(header),
    })
}
