//! Memory that devices are given: one huge page, so that its physical address is known and stays. Whatever is not offered
//! to a device holds a pattern, and is looked at after every attack.
//!
//! ```text
//! 0x00000  queue n at n * 0x4000: descriptors, available ring (0x1000), used ring (0x2000)
//! 0x10000  indirect tables
//! 0x20000  buffers
//! 0x60000  nothing: a guard up to the end of what is checked
//! 0x80000  large buffers, not checked
//! ```

use std::io::{Read as _, Seek as _, SeekFrom};
use std::ops::Range;
use std::sync::atomic::{Ordering, fence};

use anyhow::{Context as _, ensure};

/// Bytes of the arena.
pub const BYTES: usize = 2 << 20;
/// Distance of two queues.
pub const QUEUE: usize = 0x4000;
/// Where the available ring or the driver area of a queue is.
pub const DRIVER: usize = 0x1000;
/// Where the used ring or the device area of a queue is.
pub const DEVICE: usize = 0x2000;
/// Indirect tables.
pub const TABLES: usize = 0x1_0000;
/// Buffers.
pub const DATA: usize = 0x2_0000;
/// Where it ends what is checked.
pub const CHECKED: usize = 0x8_0000;

/// What no device was asked to change.
const PATTERN: u8 = 0xa5;

/// The memory.
pub struct Arena {
    base: *mut u8,
    physical: u64,
    /// First physical address above all memory.
    pub end_of_memory: u64,
    snapshot: Vec<u8>,
}

impl Arena {
    /// Takes a huge page.
    ///
    /// # Errors
    /// When there is none, or its address is kept secret.
    pub fn new() -> anyhow::Result<Self> {
        std::fs::write("/proc/sys/vm/nr_hugepages", "1").context("cannot reserve a huge page")?;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_HUGETLB | libc::MAP_POPULATE | libc::MAP_LOCKED;
        // SAFETY: a fresh mapping that no Rust object lies in.
        let base = unsafe { libc::mmap(std::ptr::null_mut(), BYTES, libc::PROT_READ | libc::PROT_WRITE, flags, -1, 0) };
        ensure!(base != libc::MAP_FAILED, "no huge page: {}", std::io::Error::last_os_error());
        let mut pagemap = std::fs::File::open("/proc/self/pagemap").context("/proc/self/pagemap")?;
        pagemap.seek(SeekFrom::Start(base as u64 / 4096 * 8))?;
        let mut entry = [0; 8];
        pagemap.read_exact(&mut entry)?;
        // Bits 0 to 54 are the frame, where the page is present (Linux, admin-guide/mm/pagemap).
        let entry = u64::from_le_bytes(entry);
        let frame = entry & ((1 << 55) - 1);
        ensure!(entry >> 63 != 0 && frame != 0, "the kernel does not say where the huge page is");
        let physical = frame * 4096;
        ensure!(physical.is_multiple_of(BYTES as u64), "the huge page is at {physical:#x}");
        Ok(Self { base: base.cast(), physical, end_of_memory: end_of_memory()?, snapshot: Vec::new() })
    }

    /// The physical address of a place.
    pub fn physical(&self, offset: usize) -> u64 {
        self.physical + offset as u64
    }

    fn at(&self, offset: usize, len: usize) -> *mut u8 {
        assert!(offset + len <= BYTES, "{len} bytes at {offset:#x} leave the arena");
        // SAFETY: inside the mapping, as was just checked.
        unsafe { self.base.add(offset) }
    }

    /// Reads a little-endian number of `width` bytes, after everything that was read before.
    pub fn read(&self, offset: usize, width: usize) -> u64 {
        assert!(offset.is_multiple_of(width), "ring words are aligned");
        let from = self.at(offset, width);
        // SAFETY: mapped, and aligned as was just checked: the mapping is.
        let value = unsafe {
            match width {
                1 => u64::from(from.read_volatile()),
                2 => u64::from(from.cast::<u16>().read_volatile()),
                4 => u64::from(from.cast::<u32>().read_volatile()),
                _ => from.cast::<u64>().read_volatile(),
            }
        };
        fence(Ordering::SeqCst);
        value
    }

    /// Writes a little-endian number of `width` bytes, before everything that is written afterwards.
    pub fn write(&self, offset: usize, width: usize, value: u64) {
        assert!(offset.is_multiple_of(width), "ring words are aligned");
        let to = self.at(offset, width);
        fence(Ordering::SeqCst);
        // SAFETY: as in `read`.
        unsafe {
            match width {
                1 => to.write_volatile(value as u8),
                2 => to.cast::<u16>().write_volatile(value as u16),
                4 => to.cast::<u32>().write_volatile(value as u32),
                _ => to.cast::<u64>().write_volatile(value),
            }
        }
        fence(Ordering::SeqCst);
    }

    /// Copies bytes in.
    pub fn put(&self, offset: usize, bytes: &[u8]) {
        // SAFETY: `at` checks the range, which no slice of Rust's overlaps.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), self.at(offset, bytes.len()), bytes.len()) };
    }

    /// Copies bytes out.
    pub fn get(&self, range: Range<usize>) -> Vec<u8> {
        let mut bytes = vec![0; range.len()];
        // SAFETY: as in `put`.
        unsafe { std::ptr::copy_nonoverlapping(self.at(range.start, range.len()), bytes.as_mut_ptr(), range.len()) };
        bytes
    }

    /// Zeroes a range.
    pub fn zero(&self, range: Range<usize>) {
        // SAFETY: as in `put`.
        unsafe { self.at(range.start, range.len()).write_bytes(0, range.len()) };
    }

    /// Fills everything that is checked with the pattern.
    pub fn fill(&mut self) {
        // SAFETY: as in `put`.
        unsafe { self.at(0, CHECKED).write_bytes(PATTERN, CHECKED) };
    }

    /// Remembers what is there now.
    pub fn watch(&mut self) {
        fence(Ordering::SeqCst);
        self.snapshot = self.get(0..CHECKED);
    }

    /// The first byte that has changed since [`watch`](Self::watch) outside the allowed ranges.
    pub fn first_change(&self, allowed: &[Range<usize>]) -> Option<usize> {
        fence(Ordering::SeqCst);
        let now = self.get(0..CHECKED);
        if now == self.snapshot {
            return None;
        }
        (0..CHECKED).find(|at| now[*at] != self.snapshot[*at] && !allowed.iter().any(|range| range.contains(at)))
    }
}

/// The end of the highest memory that the kernel found.
fn end_of_memory() -> anyhow::Result<u64> {
    let text = std::fs::read_to_string("/proc/iomem").context("/proc/iomem")?;
    let ends = text.lines().filter(|line| line.ends_with(": System RAM")).filter_map(|line| {
        let (_, end) = line.split_once(" : ")?.0.trim().split_once('-')?;
        u64::from_str_radix(end, 16).ok()
    });
    let end = ends.max().context("the kernel shows no memory in /proc/iomem")?;
    ensure!(end != 0, "/proc/iomem is censored");
    Ok(end + 1)
}
