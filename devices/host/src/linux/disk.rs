//! What files and block devices do on Linux.

use std::fs::{File, FileType};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Arc;

use crate::check;
use crate::disk::IoSizes;
use crate::iovec::Vectors;
use crate::sys::Sys;

/// On a block device: nobody else has it so, a mount included (open(2)).
pub(crate) const EXCLUSIVE: libc::c_int = libc::O_EXCL;

/// Linux has no volumes.
pub(crate) fn volumes() -> Option<Arc<dyn Sys>> {
    None
}

/// Linux has no raw twins of block devices.
pub(crate) fn is_raw_device(_file_type: &FileType) -> bool {
    false
}

/// Locks the whole file for as long as it is open; `false` where somebody else has it.
pub(crate) fn lock(file: BorrowedFd<'_>, exclusive: bool) -> io::Result<bool> {
    // An open file description lock: unlike a process's lock it is not lost when some other descriptor of the same
    // file is closed, and two disks of one process exclude each other.
    // SAFETY: all-zero is a valid flock; zero start and length mean the whole file.
    let mut lock: libc::flock = unsafe { std::mem::zeroed() };
    lock.l_type = if exclusive { libc::F_WRLCK } else { libc::F_RDLCK } as libc::c_short;
    lock.l_whence = libc::SEEK_SET as libc::c_short;
    // SAFETY: the lock is valid during the call.
    match check(unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_SETLK, &lock) }) {
        Ok(_) => Ok(true),
        Err(error) => match error.raw_os_error() {
            Some(libc::EAGAIN | libc::EACCES) => Ok(false),
            // A file system that cannot lock must not make its disks unusable.
            Some(libc::EINVAL | libc::ENOLCK | libc::EOPNOTSUPP | libc::ENOSYS) => Ok(true),
            _ => Err(error),
        },
    }
}

/// The file at `path`, opened as `file` is: with its access mode, and direct I/O or none.
pub(crate) fn open_again(file: &File, path: &Path) -> io::Result<File> {
    // SAFETY: takes numbers only.
    let flags = check(unsafe { libc::fcntl(file.as_raw_fd(), libc::F_GETFL) })?;
    let mode = flags & libc::O_ACCMODE;
    std::fs::OpenOptions::new()
        .read(mode != libc::O_WRONLY)
        .write(mode != libc::O_RDONLY)
        .custom_flags((flags & libc::O_DIRECT) | libc::O_NOCTTY)
        .open(path)
}

/// Whether ranges can be given back, found out without touching any that is the disk's.
pub(crate) fn can_discard(file: &File, is_block_device: bool, end_bytes: u64) -> bool {
    match is_block_device {
        // What lies behind the end is refused as such only where the device discards at all.
        true => discard_device(file, end_bytes / 512 * 512, 512)
            .is_err_and(|error| error.raw_os_error() == Some(libc::EINVAL)),
        false => punch_hole(file, end_bytes.saturating_add(1).next_multiple_of(1 << 20), 4096).is_ok(),
    }
}

/// What a block device does best; what it does not say is 0.
pub(crate) fn block_device_sizes(file: &File) -> io::Result<IoSizes> {
    // linux/fs.h
    const BLKIOMIN: libc::Ioctl = 0x1278;
    const BLKIOOPT: libc::Ioctl = 0x1279;
    const BLKPBSZGET: libc::Ioctl = 0x127b;
    let number = |request| {
        let mut bytes: libc::c_uint = 0;
        // SAFETY: each of these writes one number of that type.
        check(unsafe { libc::ioctl(file.as_raw_fd(), request, &mut bytes) }).map(|_| bytes)
    };
    Ok(IoSizes {
        physical_block_bytes: number(BLKPBSZGET)?,
        minimum_bytes: number(BLKIOMIN)?,
        optimal_bytes: number(BLKIOOPT)?,
        discard_bytes: queue_limit(file, "discard_granularity").unwrap_or(0),
    })
}

/// What the kernel has no call for, where /sys is there. A partition's queue is its disk's.
fn queue_limit(file: &File, name: &str) -> Option<u32> {
    let device = file.metadata().ok()?.rdev();
    let (major, minor) = (libc::major(device), libc::minor(device));
    let read = |queue| std::fs::read_to_string(format!("/sys/dev/block/{major}:{minor}/{queue}/{name}")).ok();
    read("queue").or_else(|| read("../queue"))?.trim().parse().ok()
}

/// Size and logical block size in bytes.
pub(crate) fn block_device_size(file: &File) -> io::Result<(u64, u32)> {
    // linux/fs.h
    const BLKGETSIZE64: libc::Ioctl = 0x8008_1272_u32 as libc::Ioctl;
    const BLKSSZGET: libc::Ioctl = 0x1268;
    let (mut size_bytes, mut block_bytes) = (0u64, 0 as libc::c_int);
    // SAFETY: each call writes one number of the type given.
    unsafe {
        check(libc::ioctl(file.as_raw_fd(), BLKGETSIZE64, &mut size_bytes))?;
        check(libc::ioctl(file.as_raw_fd(), BLKSSZGET, &mut block_bytes))?;
    }
    Ok((size_bytes, u32::try_from(block_bytes).unwrap_or(512)))
}

pub(crate) fn write_durably(file: BorrowedFd<'_>, vectors: Vectors<'_>, offset_bytes: u64) -> io::Result<()> {
    // One call does both and waits only for these bytes, where fdatasync waits for all of the file's.
    vectors.write_all_with(offset_bytes, |vectors, count, at| {
        // SAFETY: `write_all_with` passes vectors of mapped guest memory.
        unsafe { libc::pwritev2(file.as_raw_fd(), vectors, count, at, libc::RWF_DSYNC) }
    })
}

pub(crate) fn discard(file: &File, is_block_device: bool, offset_bytes: u64, len_bytes: u64) -> io::Result<()> {
    match is_block_device {
        // Punching a hole would have the device write zeroes where it cannot promise them otherwise.
        true => discard_device(file, offset_bytes, len_bytes),
        false => punch_hole(file, offset_bytes, len_bytes),
    }
}

pub(crate) fn zero_range(
    file: &File,
    is_block_device: bool,
    offset_bytes: u64,
    len_bytes: u64,
    unmap: bool,
) -> io::Result<()> {
    if unmap {
        match punch_hole(file, offset_bytes, len_bytes) {
            // It may be given back, and need not.
            Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => {}
            result => return result,
        }
    }
    match is_block_device {
        // The kernel writes zeroes itself where the device has no way of its own.
        true => device_range(file, BLKZEROOUT, offset_bytes, len_bytes),
        false => fallocate(file, libc::FALLOC_FL_ZERO_RANGE | libc::FALLOC_FL_KEEP_SIZE, offset_bytes, len_bytes),
    }
}

// linux/fs.h
const BLKDISCARD: libc::Ioctl = 0x1277;
const BLKZEROOUT: libc::Ioctl = 0x127f;

fn discard_device(file: &File, offset_bytes: u64, len_bytes: u64) -> io::Result<()> {
    device_range(file, BLKDISCARD, offset_bytes, len_bytes)
}

/// A call that takes a range of a block device.
fn device_range(file: &File, request: libc::Ioctl, offset_bytes: u64, len_bytes: u64) -> io::Result<()> {
    if len_bytes == 0 {
        return Ok(());
    }
    let range = [offset_bytes, len_bytes];
    // SAFETY: the call reads two numbers of this type.
    crate::retry(|| unsafe { libc::ioctl(file.as_raw_fd(), request, range.as_ptr()) }).map(drop)
}

fn punch_hole(file: &File, offset_bytes: u64, len_bytes: u64) -> io::Result<()> {
    fallocate(file, libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE, offset_bytes, len_bytes)
}

fn fallocate(file: &File, mode: libc::c_int, offset_bytes: u64, len_bytes: u64) -> io::Result<()> {
    if len_bytes == 0 {
        return Ok(());
    }
    let too_far = |_| io::Error::from_raw_os_error(libc::EFBIG);
    let offset = libc::off_t::try_from(offset_bytes).map_err(too_far)?;
    let len = libc::off_t::try_from(len_bytes).map_err(too_far)?;
    // SAFETY: takes numbers only.
    crate::retry(|| unsafe { libc::fallocate(file.as_raw_fd(), mode, offset, len) }).map(drop)
}

#[cfg(test)]
#[path = "disk_tests.rs"]
mod tests;
