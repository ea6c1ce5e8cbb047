//! Guest RAM that belongs to the process (both KVMs; bhyve's belongs to the kernel).

use std::io;
use std::sync::{Arc, OnceLock};

use vm_memory::mmap::MmapRegionError;
use vm_memory::{GuestAddress, GuestMemoryMmap, GuestRegionMmap, MmapRegion};

use crate::{check, os};

/// How guest RAM is to be allocated.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RamOptions {
    /// Backed by an anonymous file that another process can be given, instead of private memory.
    pub shared: bool,
    /// Page size.
    pub pages: Pages,
    /// Take every page now instead of on first touch, with this many threads; 0 leaves it to the first touch.
    pub prealloc_threads: usize,
    /// Keep all of it in memory: it is never swapped out. Implies taking every page now.
    pub lock: bool,
    /// Take pages from this NUMA node only.
    pub numa_node: Option<u32>,
    /// Put guest RAM into core dumps of the process.
    pub dump: bool,
}

impl Default for RamOptions {
    /// Private memory taken on first touch, in huge pages where the kernel has them at hand, outside core dumps.
    fn default() -> Self {
        Self {
            shared: false,
            pages: Pages::Transparent,
            prealloc_threads: 0,
            lock: false,
            numa_node: None,
            dump: false,
        }
    }
}

/// The size of the host pages behind guest RAM.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Pages {
    /// 4 KiB.
    Small,
    /// 2 MiB where the kernel has them, 4 KiB elsewhere.
    #[default]
    Transparent,
    /// 2 MiB, from the host's reserved pool.
    Huge2M,
    /// 1 GiB, from the host's reserved pool.
    Huge1G,
}

impl Pages {
    /// The length a range must be a multiple of, in bytes.
    #[must_use]
    pub fn granule_bytes(self) -> u64 {
        match self {
            Self::Small | Self::Transparent => 4 << 10,
            Self::Huge2M => 2 << 20,
            Self::Huge1G => 1 << 30,
        }
    }
}

/// Why there is no guest RAM.
#[derive(Debug, thiserror::Error)]
pub enum RamError {
    /// No range, or an empty one.
    #[error("guest memory of 0 bytes: give at least 1 MiB")]
    Empty,
    /// A range does not consist of whole pages, or wraps around the address space.
    #[error("guest memory at {start:#x}+{len_bytes:#x} is not made of whole pages of {} KiB", .granule_bytes >> 10)]
    Unaligned {
        /// First guest address.
        start: u64,
        /// Length in bytes.
        len_bytes: u64,
        /// Page size in bytes.
        granule_bytes: u64,
    },
    /// Ranges overlap or are not in order.
    #[error("guest memory ranges overlap or are not in order")]
    Overlap,
    /// The host does not have that much.
    #[error("guest memory of {} MiB is more than the host's {} MiB", .wanted_bytes >> 20, .host_bytes >> 20)]
    MoreThanHost {
        /// What was asked for.
        wanted_bytes: u64,
        /// What the host has.
        host_bytes: u64,
    },
    /// The pool of huge pages is too small.
    #[error(
        "guest memory needs {needed} huge pages of {} MiB and {free} are free: reserve more in {pool}",
        .page_bytes >> 20
    )]
    NoHugePages {
        /// Pages needed for all ranges.
        needed: u64,
        /// Pages free now.
        free: u64,
        /// Size of one page.
        page_bytes: u64,
        /// Where the host's administrator reserves them.
        pool: String,
    },
    /// The system refused the mapping.
    #[error("cannot map {} MiB of guest memory: {source}", .len_bytes >> 20)]
    Map {
        /// Length in bytes.
        len_bytes: u64,
        /// What it said.
        source: io::Error,
    },
    /// The system refused to take every page now.
    #[error("cannot preallocate {} MiB of guest memory: {source}", .len_bytes >> 20)]
    Prealloc {
        /// Length in bytes.
        len_bytes: u64,
        /// What it said.
        source: io::Error,
    },
    /// The system refused to keep it in memory.
    #[error("cannot lock {} MiB of guest memory: {source}: raise the limit of locked memory (ulimit -l)", .len_bytes >> 20)]
    Lock {
        /// Length in bytes.
        len_bytes: u64,
        /// What it said.
        source: io::Error,
    },
    /// The host has no such NUMA node.
    #[error("cannot bind guest memory to NUMA node {node}: {source}")]
    Node {
        /// The node asked for.
        node: u32,
        /// What the system said.
        source: io::Error,
    },
    /// This system cannot do it.
    #[error("{0} is not supported on this system")]
    Unsupported(&'static str),
}

/// Allocates guest RAM: each range is a guest address and a length in bytes, in ascending order. The memory is zero,
/// and unmapped when the last clone of the result is gone.
///
/// # Errors
/// See [`RamError`]; nothing stays allocated.
pub fn allocate(ranges: &[(u64, u64)], options: &RamOptions) -> Result<GuestMemoryMmap<()>, RamError> {
    let wanted_bytes = check_ranges(ranges, options)?;
    let host_bytes = physical_memory_bytes();
    if wanted_bytes > host_bytes {
        return Err(RamError::MoreThanHost { wanted_bytes, host_bytes });
    }
    let mut regions = Vec::with_capacity(ranges.len());
    for &(start, len_bytes) in ranges {
        let mapping = os::ram::map(len_bytes, wanted_bytes, options)?;
        regions.push(GuestRegionMmap::new(mapping, GuestAddress(start)).ok_or(RamError::Overlap)?);
    }
    // Pages are taken after everything is mapped: a range that does not fit is found before the long part begins.
    for region in &regions {
        if options.lock {
            lock(region)?;
        } else if options.prealloc_threads > 0 {
            take_pages(region, options.prealloc_threads)
                .map_err(|source| RamError::Prealloc { len_bytes: region.size() as u64, source })?;
        }
    }
    GuestMemoryMmap::from_regions(regions).map_err(|_| RamError::Overlap)
}

/// Whether the host has a NUMA node of that number, as far as it says: where memory cannot be bound to a node at all,
/// [`allocate`] refuses.
#[must_use]
pub fn has_numa_node(node: u32) -> bool {
    os::ram::has_numa_node(node)
}

/// How much memory the host has, in bytes, when it is asked for first; [`u64::MAX`] where the host does not say: a later
/// call that needs the number will say more than we could.
#[must_use]
pub fn physical_memory_bytes() -> u64 {
    static BYTES: OnceLock<u64> = OnceLock::new();
    *BYTES.get_or_init(|| {
        // SAFETY: sysconf takes a number and touches nothing.
        let (pages, page_bytes) = unsafe { (libc::sysconf(libc::_SC_PHYS_PAGES), libc::sysconf(libc::_SC_PAGESIZE)) };
        let [pages, page_bytes] = [pages, page_bytes].map(|value| u64::try_from(value).unwrap_or(u64::MAX));
        pages.saturating_mul(page_bytes)
    })
}

fn check_ranges(ranges: &[(u64, u64)], options: &RamOptions) -> Result<u64, RamError> {
    let granule_bytes = options.pages.granule_bytes();
    let (mut total_bytes, mut next) = (0u64, 0);
    for &(start, len_bytes) in ranges {
        if len_bytes == 0 {
            return Err(RamError::Empty);
        }
        let unaligned = RamError::Unaligned { start, len_bytes, granule_bytes };
        let Some(end) = start.checked_add(len_bytes) else { return Err(unaligned) };
        if !start.is_multiple_of(4096) || !len_bytes.is_multiple_of(granule_bytes) {
            return Err(unaligned);
        }
        if start < next {
            return Err(RamError::Overlap);
        }
        next = end;
        total_bytes = total_bytes.saturating_add(len_bytes);
    }
    if total_bytes == 0 { Err(RamError::Empty) } else { Ok(total_bytes) }
}

fn lock(region: &MmapRegion<()>) -> Result<(), RamError> {
    // SAFETY: the range is one live mapping.
    check(unsafe { libc::mlock(region.as_ptr().cast(), region.size()) })
        .map(drop)
        .map_err(|source| RamError::Lock { len_bytes: region.size() as u64, source })
}

/// Takes every page of `region` with several threads: zeroing is what costs, and one thread does a few GiB a second.
fn take_pages(region: &MmapRegion<()>, threads: usize) -> io::Result<()> {
    const PART_BYTES: usize = 64 << 20;
    let parts = region.size().div_ceil(PART_BYTES);
    let next = std::sync::atomic::AtomicUsize::new(0);
    let work = || -> io::Result<()> {
        loop {
            let part = next.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            if part >= parts {
                return Ok(());
            }
            let offset = part * PART_BYTES;
            let len = PART_BYTES.min(region.size() - offset);
            // SAFETY: offset and length stay inside the live mapping, which nobody else uses yet.
            unsafe { os::ram::take_pages(region.as_ptr().add(offset), len) }?;
        }
    };
    std::thread::scope(|scope| {
        let others: Vec<_> = (1..threads.min(parts).min(64)).map(|_| scope.spawn(work)).collect();
        let mut result = work();
        for other in others {
            let theirs = other.join().unwrap_or_else(|_| Err(io::Error::other("a thread failed")));
            result = result.and(theirs);
        }
        result
    })
}

/// Takes every page by writing the zero that is there already.
///
/// # Safety
/// The range is writable memory that nobody uses yet.
#[allow(dead_code, reason = "Linux needs it only before 5.14")]
pub(crate) unsafe fn touch_pages(start: *mut u8, len: usize) {
    for offset in (0..len).step_by(4096) {
        // SAFETY: inside the range.
        unsafe { start.add(offset).write_volatile(0) };
    }
}

/// What building a mapping said, as an error of the system.
pub(crate) fn map_error(len_bytes: u64, error: MmapRegionError) -> RamError {
    let source = match error {
        MmapRegionError::Mmap(source) => source,
        other => io::Error::other(other),
    };
    RamError::Map { len_bytes, source }
}

/// Guest RAM as threads share it: I/O in flight keeps it mapped.
pub type SharedRam = Arc<GuestMemoryMmap<()>>;

#[cfg(test)]
mod tests {
    use vm_memory::{Bytes, GuestMemoryBackend};

    use super::*;

    const MIB: u64 = 1 << 20;

    fn options() -> RamOptions {
        RamOptions::default()
    }

    #[test]
    fn memory_is_zero_writable_and_where_it_was_asked_for() {
        for shared in [false, true] {
            let mem = allocate(&[(0, 4 * MIB), (4096 * MIB, 3 * MIB)], &RamOptions { shared, ..options() }).unwrap();
            assert_eq!(mem.num_regions(), 2);
            for address in [0, 4 * MIB - 8, 4096 * MIB, 4099 * MIB - 8] {
                assert_eq!(mem.read_obj::<u64>(GuestAddress(address)).unwrap(), 0);
                mem.write_obj(0x1234_5678_9abc_def0u64, GuestAddress(address)).unwrap();
                assert_eq!(mem.read_obj::<u64>(GuestAddress(address)).unwrap(), 0x1234_5678_9abc_def0);
            }
            assert!(mem.read_obj::<u8>(GuestAddress(4 * MIB)).is_err());
        }
    }

    #[test]
    fn shared_memory_has_a_file_that_another_mapping_sees() {
        let mem = allocate(&[(0, 4 * MIB)], &RamOptions { shared: true, ..options() }).unwrap();
        mem.write_obj(42u32, GuestAddress(0x1000)).unwrap();
        let region = mem.find_region(GuestAddress(0)).unwrap();
        let file = region.file_offset().expect("a file").clone();
        let other = MmapRegion::<()>::from_file(file, 4 << 20).unwrap();
        // SAFETY: inside the second mapping of the same file.
        assert_eq!(unsafe { other.as_ptr().add(0x1000).cast::<u32>().read_volatile() }, 42);
    }

    #[test]
    fn large_memory_is_aligned_for_huge_pages() {
        let mem = allocate(&[(0, 66 * MIB), (4096 * MIB, 6 * MIB)], &options()).unwrap();
        let address = mem.get_host_address(GuestAddress(0)).unwrap() as u64;
        assert_eq!(address % (2 * MIB), 0, "{address:#x}");
    }

    #[test]
    fn preallocated_memory_is_resident_before_its_first_use() {
        let mem = allocate(&[(0, 16 * MIB)], &RamOptions { prealloc_threads: 3, ..options() }).unwrap();
        let start = mem.get_host_address(GuestAddress(0)).unwrap();
        let mut resident = vec![0u8; 4096];
        // SAFETY: the range is mapped and the vector has a byte a page.
        check(unsafe { libc::mincore(start.cast(), 16 << 20, resident.as_mut_ptr()) }).unwrap();
        assert!(resident.iter().all(|&page| page & 1 == 1));
    }

    #[test]
    fn locked_memory_is_locked_and_a_refusal_names_the_limit() {
        match allocate(&[(0, MIB)], &RamOptions { lock: true, ..options() }) {
            Ok(mem) => drop(mem),
            Err(error) => assert!(error.to_string().contains("ulimit -l"), "{error}"),
        }
    }

    #[test]
    fn wrong_sizes_are_refused_with_their_reason() {
        let message = |ranges: &[(u64, u64)], pages| {
            allocate(ranges, &RamOptions { pages, ..options() }).unwrap_err().to_string()
        };
        assert_eq!(message(&[], Pages::Small), "guest memory of 0 bytes: give at least 1 MiB");
        assert_eq!(message(&[(0, 0)], Pages::Small), "guest memory of 0 bytes: give at least 1 MiB");
        assert_eq!(message(&[(0, 1)], Pages::Small), "guest memory at 0x0+0x1 is not made of whole pages of 4 KiB");
        assert_eq!(
            message(&[(0, 3 * MIB)], Pages::Huge2M),
            "guest memory at 0x0+0x300000 is not made of whole pages of 2048 KiB"
        );
        assert_eq!(message(&[(0, MIB), (0, MIB)], Pages::Small), "guest memory ranges overlap or are not in order");
        assert!(message(&[(u64::MAX - 4095, 8192)], Pages::Small).contains("whole pages"));
        let wanted = physical_memory_bytes() + MIB;
        assert_eq!(
            message(&[(0, wanted)], Pages::Small),
            format!("guest memory of {} MiB is more than the host's {} MiB", wanted >> 20, (wanted >> 20) - 1)
        );
    }
}
