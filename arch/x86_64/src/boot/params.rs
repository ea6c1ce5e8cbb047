//! What the kernel is handed: Linux `boot_params` or the PVH `hvm_start_info`.

use linux_loader::bootparam::{boot_e820_entry, boot_params, setup_header};
use linux_loader::loader::elf::start_info::{
    XEN_HVM_START_MAGIC_VALUE, hvm_memmap_table_entry, hvm_modlist_entry, hvm_start_info,
};
use vm_memory::ByteValued;

use super::elf::LINUX_CMDLINE_MAX;
use crate::layout::{AddressRange, CMDLINE, E820Entry, PAGE_BYTES, PVH_END, PVH_START_INFO};

/// "Undefined" loader id: the boot protocol's value for loaders without an assigned number (boot.rst,
/// `type_of_loader`); the extended fields stay 0.
const LOADER_UNDEFINED: u8 = 0xff;

const _: () = assert!(size_of::<boot_params>() as u64 == PAGE_BYTES);

/// The values both protocols pass.
pub(super) struct Handover<'a> {
    pub initrd: Option<AddressRange>,
    pub rsdp: Option<u64>,
    pub e820: &'a [E820Entry],
}

/// The zero page. `header` is the bzImage's own setup header; an ELF gets the few fields Linux looks at.
pub(super) fn zero_page(header: Option<&setup_header>, handover: &Handover<'_>) -> Vec<u8> {
    let mut params = boot_params::default();
    match header {
        Some(header) => params.hdr = *header,
        None => {
            params.hdr.boot_flag = 0xaa55;
            params.hdr.header = 0x5372_6448;
            params.hdr.version = 0x020f;
            params.hdr.loadflags = 1;
            params.hdr.kernel_alignment = 0x20_0000;
            params.hdr.cmdline_size = LINUX_CMDLINE_MAX as u32;
        }
    }
    params.hdr.type_of_loader = LOADER_UNDEFINED;
    params.hdr.cmd_line_ptr = CMDLINE as u32;
    if let Some(initrd) = handover.initrd {
        params.hdr.ramdisk_image = initrd.start as u32;
        params.ext_ramdisk_image = (initrd.start >> 32) as u32;
        params.hdr.ramdisk_size = initrd.len as u32;
        params.ext_ramdisk_size = (initrd.len >> 32) as u32;
    }
    params.acpi_rsdp_addr = handover.rsdp.unwrap_or(0);
    // The table's 128 slots exceed by far the handful of ranges the layout makes.
    for (slot, entry) in params.e820_table.iter_mut().zip(handover.e820) {
        *slot = boot_e820_entry { addr: entry.addr, size: entry.len, r#type: entry.kind as u32 };
        params.e820_entries += 1;
    }
    params.as_slice().to_vec()
}

/// The page at [`PVH_START_INFO`]: start info, one module (the initrd), memory map.
pub(super) fn pvh_page(handover: &Handover<'_>) -> Vec<u8> {
    let modules_at = PVH_START_INFO + size_of::<hvm_start_info>() as u64;
    let memmap_at = modules_at + size_of::<hvm_modlist_entry>() as u64;
    let info = hvm_start_info {
        magic: XEN_HVM_START_MAGIC_VALUE,
        // Version 1 has the memory map.
        version: 1,
        nr_modules: u32::from(handover.initrd.is_some()),
        modlist_paddr: if handover.initrd.is_some() { modules_at } else { 0 },
        cmdline_paddr: CMDLINE,
        rsdp_paddr: handover.rsdp.unwrap_or(0),
        memmap_paddr: memmap_at,
        memmap_entries: handover.e820.len() as u32,
        ..hvm_start_info::default()
    };
    let module = handover.initrd.map_or_else(hvm_modlist_entry::default, |initrd| hvm_modlist_entry {
        paddr: initrd.start,
        size: initrd.len,
        ..hvm_modlist_entry::default()
    });
    let mut page = info.as_slice().to_vec();
    page.extend_from_slice(module.as_slice());
    for entry in handover.e820 {
        let line = hvm_memmap_table_entry { addr: entry.addr, size: entry.len, type_: entry.kind as u32, reserved: 0 };
        page.extend_from_slice(line.as_slice());
    }
    debug_assert!(page.len() as u64 <= PVH_END - PVH_START_INFO);
    page
}
