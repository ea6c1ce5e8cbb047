//! A disk in one process and without a VM: guest memory, queue worker, engine and file are zvmm's, the driver is a thread.

mod counted;
mod daemon;
mod driver;
mod guest;
mod raw;
mod stack;

pub use counted::{counted_load, counted_stack, prepare_counted};
pub use daemon::Daemon;
pub use driver::Driver;
pub use guest::Times;
pub use raw::Raw;
pub use stack::{EngineShape, Stack};

use std::fs::File;
use std::io::{self, Write as _};
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::sync::Arc;

use devices_host::disk::{Cache, Disk, DiskOptions};

use crate::threads::next_number;

/// What a load does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Load {
    /// Requests in flight.
    pub depth: usize,
    /// Bytes a request, a multiple of 4096.
    pub bytes: usize,
    /// Bytes of each of its buffers: a page, as a guest's memory is scattered, or as much as a request.
    pub piece_bytes: usize,
    /// Where each request is for: anywhere, or behind the last one.
    pub random: bool,
    /// Writes, not reads.
    pub writes: bool,
    /// Past the host's page cache.
    pub direct: bool,
}

impl Load {
    /// Its name in tables: `rr32` reads 4 KiB at random with 32 in flight, `sw4` writes 128 KiB in sequence with 4, from pages,
    /// and `sw4-whole` from one buffer each.
    #[must_use]
    pub fn name(&self) -> String {
        let whole = self.bytes > 4 << 10 && self.piece_bytes == self.bytes;
        let order = if self.random { "r" } else { "s" };
        let what = if self.writes { "w" } else { "r" };
        format!("{order}{what}{}{}", self.depth, if whole { "-whole" } else { "" })
    }
}

/// Offsets of requests, in the order of a [`Load`].
#[derive(Clone, Debug)]
pub struct Offsets {
    blocks: u64,
    bytes: u64,
    random: bool,
    next: u64,
}

impl Offsets {
    /// For a disk of `disk_bytes`.
    #[must_use]
    pub fn new(load: &Load, disk_bytes: u64) -> Self {
        let bytes = load.bytes as u64;
        let next = if load.random { 0x9e37_79b9_7f4a_7c15 } else { 0 };
        Self { blocks: disk_bytes / bytes, bytes, random: load.random, next }
    }

    /// The next one.
    pub fn take(&mut self) -> u64 {
        let block = self.next % self.blocks;
        if self.random {
            // xorshift64.
            self.next ^= self.next << 13;
            self.next ^= self.next >> 7;
            self.next ^= self.next << 17;
        } else {
            self.next += 1;
        }
        block * self.bytes
    }
}

/// Makes a file of `len` bytes that were all written, and are on the disk; leaves one alone that is there.
///
/// # Errors
/// What the system says.
pub fn prepare_file(path: &Path, len: u64) -> io::Result<()> {
    if std::fs::metadata(path).is_ok_and(|metadata| metadata.len() == len) {
        return Ok(());
    }
    let mut file = File::create(path)?;
    let mut chunk = vec![0u8; 1 << 20];
    for at in 0..len >> 20 {
        // Other bytes in every chunk: nothing below may store it as less than it is.
        for (n, byte) in chunk.iter_mut().enumerate() {
            *byte = (n as u64).wrapping_mul(2_654_435_761).wrapping_add(at.wrapping_mul(40_503)) as u8;
        }
        file.write_all(&chunk)?;
    }
    file.sync_all()
}

/// What the requests of a load write, so many bytes: words that do not repeat, and others each time, so that what an earlier
/// load left is not taken for it.
fn written(bytes: usize) -> Vec<u8> {
    let first = u64::from(std::process::id()) << 40 ^ next_number() << 32;
    (0..bytes as u64 / 8).flat_map(|n| (first | n).to_le_bytes()).collect()
}

/// Opens a file as a load needs it.
///
/// # Errors
/// What the system says.
pub fn open(path: &Path, load: &Load) -> io::Result<File> {
    let flags = if load.direct { libc::O_DIRECT } else { 0 };
    File::options().read(true).write(load.writes).custom_flags(flags).open(path)
}

/// Opens a file as a disk for stacks with such a load: several may have it, which lock it once.
///
/// # Errors
/// When it cannot be opened, or locked.
pub fn open_disk(path: &Path, load: &Load) -> io::Result<Arc<Disk>> {
    let cache = if load.direct { Cache::Direct } else { Cache::Buffered };
    let options = DiskOptions { read_only: !load.writes, cache, ..DiskOptions::default() };
    Disk::open("disk0", path, options).map(Arc::new).map_err(io::Error::other)
}

/// Puts all of a file into the page cache, or takes it out; what was written to it is on the disk then.
///
/// # Errors
/// What the system says.
pub fn set_cached(path: &Path, cached: bool) -> io::Result<()> {
    let mut file = File::open(path)?;
    file.sync_all()?;
    if cached {
        return io::copy(&mut file, &mut io::sink()).map(drop);
    }
    // SAFETY: takes numbers only.
    match unsafe { libc::posix_fadvise(file.as_raw_fd(), 0, 0, libc::POSIX_FADV_DONTNEED) } {
        0 => Ok(()),
        error => Err(io::Error::from_raw_os_error(error)),
    }
}
