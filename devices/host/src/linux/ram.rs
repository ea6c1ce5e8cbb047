//! Guest RAM on Linux.

use std::ffi::CStr;
use std::fs::File;
use std::io;
use std::os::fd::FromRawFd;
use std::path::Path;

use vm_memory::mmap::MmapRegionBuilder;
use vm_memory::{FileOffset, MmapRegion};

use crate::check;
use crate::ram::{Pages, RamError, RamOptions, map_error, touch_pages};

const HUGE_2M_BYTES: usize = 2 << 20;

/// Maps one range of guest RAM; `total_bytes` is the length of all of them, for the message.
pub(crate) fn map(len_bytes: u64, total_bytes: u64, options: &RamOptions) -> Result<MmapRegion<()>, RamError> {
    let len = usize::try_from(len_bytes)
        .map_err(|_| RamError::Map { len_bytes, source: io::ErrorKind::InvalidInput.into() })?;
    let region = map_aligned(len, options).map_err(|error| match (options.pages, &error) {
        (Pages::Huge2M | Pages::Huge1G, RamError::Map { source, .. })
            if matches!(source.raw_os_error(), Some(libc::ENOMEM | libc::ENOENT | libc::EINVAL | libc::ENODEV)) =>
        {
            no_huge_pages(total_bytes, options.pages)
        }
        _ => error,
    })?;
    let start = region.as_ptr().cast();
    // SAFETY: the advice and the policy concern one live mapping and change no byte of it.
    unsafe {
        // A kernel without transparent huge pages, or without core dump filters, does without.
        if options.pages == Pages::Transparent {
            libc::madvise(start, len, libc::MADV_HUGEPAGE);
        } else if options.pages == Pages::Small {
            libc::madvise(start, len, libc::MADV_NOHUGEPAGE);
        }
        if !options.dump {
            libc::madvise(start, len, libc::MADV_DONTDUMP);
        }
        if let Some(node) = options.numa_node {
            bind_to_node(start, len, node).map_err(|source| RamError::Node { node, source })?;
        }
    }
    Ok(region)
}

pub(crate) fn has_numa_node(node: u32) -> bool {
    // A kernel without NUMA has no such folder, and the first node all the same.
    node == 0 || Path::new(&format!("/sys/devices/system/node/node{node}")).exists()
}

/// Maps at a multiple of 2 MiB, so that host pages of that size can back guest pages of that size. Linux 6.7 does it
/// unasked for whole multiples; else the address is where the mappings above end, and a pad moves a second try down to
/// a multiple. Where that fails too, the guest only has more page faults.
fn map_aligned(len: usize, options: &RamOptions) -> Result<MmapRegion<()>, RamError> {
    let first = map_anywhere(len, options)?;
    let excess = first.as_ptr() as usize % HUGE_2M_BYTES;
    if excess == 0 || len < HUGE_2M_BYTES || options.pages != Pages::Transparent {
        return Ok(first);
    }
    drop(first);
    let _pad = MmapRegionBuilder::<()>::new(excess)
        .with_mmap_flags(libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE)
        .build();
    map_anywhere(len, options)
}

fn map_anywhere(len: usize, options: &RamOptions) -> Result<MmapRegion<()>, RamError> {
    let huge = match options.pages {
        Pages::Small | Pages::Transparent => 0,
        Pages::Huge2M => libc::MAP_HUGETLB | libc::MAP_HUGE_2MB,
        Pages::Huge1G => libc::MAP_HUGETLB | libc::MAP_HUGE_1GB,
    };
    // Huge pages are reserved by the mapping: without, a missing page is a SIGBUS in the middle of the guest's life.
    let reserve = if huge == 0 { libc::MAP_NORESERVE } else { 0 };
    let builder = MmapRegionBuilder::new(len).with_mmap_prot(libc::PROT_READ | libc::PROT_WRITE);
    let builder = if options.shared {
        let file = memory_file(len, options.pages).map_err(|source| RamError::Map { len_bytes: len as u64, source })?;
        builder.with_mmap_flags(libc::MAP_SHARED | reserve).with_file_offset(FileOffset::new(file, 0))
    } else {
        builder.with_mmap_flags(libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | reserve | huge)
    };
    builder.with_hugetlbfs(huge != 0).build().map_err(|error| map_error(len as u64, error))
}

fn memory_file(len: usize, pages: Pages) -> io::Result<File> {
    const NAME: &CStr = c"guest-ram";
    let huge = match pages {
        Pages::Small | Pages::Transparent => 0,
        Pages::Huge2M => libc::MFD_HUGETLB | libc::MFD_HUGE_2MB,
        Pages::Huge1G => libc::MFD_HUGETLB | libc::MFD_HUGE_1GB,
    };
    // SAFETY: the name is a C string.
    let fd = check(unsafe { libc::memfd_create(NAME.as_ptr(), libc::MFD_CLOEXEC | huge) })?;
    // SAFETY: a new descriptor that nobody else owns.
    let file = unsafe { File::from_raw_fd(fd) };
    file.set_len(len as u64)?;
    Ok(file)
}

fn no_huge_pages(total_bytes: u64, pages: Pages) -> RamError {
    let page_bytes = pages.granule_bytes();
    let pool = format!("/sys/kernel/mm/hugepages/hugepages-{}kB/nr_hugepages", page_bytes >> 10);
    let free = std::fs::read_to_string(pool.replace("nr_", "free_"))
        .ok()
        .and_then(|text| text.trim().parse().ok())
        .unwrap_or(0);
    RamError::NoHugePages { needed: total_bytes.div_ceil(page_bytes), free, page_bytes, pool }
}

/// # Safety
/// The range is one live mapping.
unsafe fn bind_to_node(start: *mut libc::c_void, len: usize, node: u32) -> io::Result<()> {
    // linux/mempolicy.h
    const MPOL_BIND: libc::c_int = 2;
    const MAX_NODES: usize = 1024;
    let mut mask = [0u64; MAX_NODES / 64];
    let word = mask.get_mut(node as usize / 64).ok_or(io::ErrorKind::InvalidInput)?;
    *word = 1 << (node % 64);
    // SAFETY: the mask is valid for the number of bits given (the kernel wants one more than the last it reads).
    let result = unsafe { libc::syscall(libc::SYS_mbind, start, len, MPOL_BIND, mask.as_ptr(), MAX_NODES + 1, 0) };
    check(result).map(drop)
}

/// # Safety
/// The range is writable memory that nobody uses yet.
pub(crate) unsafe fn take_pages(start: *mut u8, len: usize) -> io::Result<()> {
    // SAFETY: populating changes no byte.
    match crate::retry(|| unsafe { libc::madvise(start.cast(), len, libc::MADV_POPULATE_WRITE) }) {
        // Before Linux 5.14.
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
            // SAFETY: the caller's promise.
            unsafe { touch_pages(start, len) };
            Ok(())
        }
        result => result.map(drop),
    }
}

#[cfg(test)]
mod tests {
    use crate::ram::{Pages, RamOptions, allocate};

    #[test]
    fn huge_pages_that_are_not_there_are_counted_in_the_message() {
        // 1 TiB would be refused as more than the host has, so ask for what no test machine reserves: 2 GiB.
        for (pages, needed) in [(Pages::Huge2M, 1024), (Pages::Huge1G, 2)] {
            for shared in [false, true] {
                let Err(error) = allocate(&[(0, 2 << 30)], &RamOptions { pages, shared, ..Default::default() }) else {
                    continue;
                };
                let message = error.to_string();
                assert!(message.starts_with(&format!("guest memory needs {needed} huge pages of ")), "{message}");
                assert!(message.contains("nr_hugepages"), "{message}");
            }
        }
    }

    #[test]
    fn memory_binds_to_the_first_node_and_not_to_one_that_is_absent() {
        let bound = |node| allocate(&[(0, 1 << 20)], &RamOptions { numa_node: Some(node), ..Default::default() });
        match bound(0) {
            Ok(_) => {}
            // A kernel without NUMA has no such call.
            Err(error) => assert!(error.to_string().contains("NUMA node 0: Function not implemented"), "{error}"),
        }
        for node in [1000, 5000] {
            let message = bound(node).unwrap_err().to_string();
            assert!(message.starts_with(&format!("cannot bind guest memory to NUMA node {node}: ")), "{message}");
        }
    }
}
