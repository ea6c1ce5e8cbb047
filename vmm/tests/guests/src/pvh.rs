//! What the loader tells a PVH guest: `struct hvm_start_info` (Xen, `public/arch-x86/hvm/start_info.h`).

use core::sync::atomic::{AtomicU64, Ordering};

use crate::machine::load;

const MAGIC: u32 = 0x336e_c578;

static START_INFO: AtomicU64 = AtomicU64::new(0);

/// Keeps the address of the start info.
pub fn init(start_info: u64) {
    START_INFO.store(start_info, Ordering::Relaxed);
    assert!(field::<u32>(0) == MAGIC, "the loader passed no PVH start info at {start_info:#x}");
}

fn field<T: Copy>(offset: u64) -> T {
    load(START_INFO.load(Ordering::Relaxed) + offset)
}

/// Address of the ACPI root pointer, or 0.
#[must_use]
pub fn rsdp() -> u64 {
    field(32)
}

/// End of the RAM that starts at 1 MiB.
///
/// # Panics
/// When the memory map says nothing about it.
#[must_use]
pub fn ram_end() -> u64 {
    const RAM: u32 = 1;
    let (map, entries): (u64, u32) = (field(40), field(48));
    (0..entries)
        .map(|index| map + 24 * u64::from(index))
        .find_map(|entry| {
            let (start, length): (u64, u64) = (load(entry), load(entry + 8));
            (load::<u32>(entry + 16) == RAM && (start..start + length).contains(&0x10_0000)).then_some(start + length)
        })
        .expect("the memory map has no RAM at 1 MiB")
}

/// The command line, or an empty one.
#[must_use]
pub fn command_line() -> &'static str {
    let address: u64 = field(24);
    if address == 0 {
        return "";
    }
    let mut length = 0;
    while load::<u8>(address + length) != 0 {
        length += 1;
    }
    // SAFETY: the loader keeps the line in memory for the guest, and the guest never writes there.
    let bytes = unsafe { core::slice::from_raw_parts(address as *const u8, length as usize) };
    core::str::from_utf8(bytes).expect("the command line is not text")
}

/// The value of `name=value` on the command line.
#[must_use]
pub fn option(name: &str) -> Option<&'static str> {
    command_line().split_ascii_whitespace().find_map(|word| word.strip_prefix(name)?.strip_prefix('='))
}

/// The value of `name=number`, or a default.
#[must_use]
pub fn number(name: &str, default: u32) -> u32 {
    option(name).map_or(default, |text| text.parse().expect("an option is not a number"))
}
