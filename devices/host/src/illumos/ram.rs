//! Guest RAM on illumos, for its KVM: bhyve's RAM belongs to the kernel.

use std::io;

use vm_memory::MmapRegion;
use vm_memory::mmap::MmapRegionBuilder;

use crate::ram::{Pages, RamError, RamOptions, map_error, touch_pages};

/// Maps one range of guest RAM.
pub(crate) fn map(len_bytes: u64, _total_bytes: u64, options: &RamOptions) -> Result<MmapRegion<()>, RamError> {
    if options.shared {
        return Err(RamError::Unsupported("shared guest memory"));
    }
    if matches!(options.pages, Pages::Huge2M | Pages::Huge1G) {
        return Err(RamError::Unsupported("a pool of huge pages"));
    }
    if options.numa_node.is_some() {
        return Err(RamError::Unsupported("binding guest memory to a NUMA node"));
    }
    let len = usize::try_from(len_bytes)
        .map_err(|_| RamError::Map { len_bytes, source: io::ErrorKind::InvalidInput.into() })?;
    // Without MAP_NORESERVE, all of it would be reserved in swap.
    MmapRegionBuilder::new(len)
        .with_mmap_prot(libc::PROT_READ | libc::PROT_WRITE)
        .with_mmap_flags(libc::MAP_PRIVATE | libc::MAP_ANON | libc::MAP_NORESERVE)
        .build()
        .map_err(|error| map_error(len_bytes, error))
}

pub(crate) fn has_numa_node(_node: u32) -> bool {
    true
}

/// # Safety
/// The range is writable memory that nobody uses yet.
pub(crate) unsafe fn take_pages(start: *mut u8, len: usize) -> io::Result<()> {
    // SAFETY: the caller's promise.
    unsafe { touch_pages(start, len) };
    Ok(())
}
