//! What files do on illumos, and block nodes; volumes have a back end of their own.

use std::fs::{File, FileType};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::fs::FileTypeExt;
use std::path::Path;
use std::sync::Arc;

use crate::check;
use crate::disk::IoSizes;
use crate::iovec::Vectors;
use crate::sys::{Errno, RawHandle, RealSys, Sys, dkio};

/// On a volume: nobody has it open, and nobody else opens it.
pub(crate) const EXCLUSIVE: libc::c_int = libc::O_EXCL;

/// The system whose character devices are volumes.
pub(crate) fn volumes() -> Option<Arc<dyn Sys>> {
    Some(Arc::new(RealSys))
}

/// A volume's raw device is a character device, and the better one of its two nodes.
pub(crate) fn is_raw_device(file_type: &FileType) -> bool {
    file_type.is_char_device()
}

/// Locks the whole file for as long as it is open; `false` where somebody else has it.
pub(crate) fn lock(file: BorrowedFd<'_>, exclusive: bool) -> io::Result<bool> {
    // SAFETY: all-zero is a valid flock; zero start and length mean the whole file.
    let mut lock: libc::flock = unsafe { std::mem::zeroed() };
    lock.l_type = if exclusive { libc::F_WRLCK } else { libc::F_RDLCK } as libc::c_short;
    lock.l_whence = libc::SEEK_SET as libc::c_short;
    // SAFETY: the lock is valid during the call.
    match check(unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_SETLK, &lock) }) {
        Ok(_) => Ok(true),
        Err(error) => match error.raw_os_error() {
            Some(libc::EAGAIN | libc::EACCES) => Ok(false),
            // A device or file system that cannot lock must not make its disks unusable.
            Some(libc::EINVAL | libc::ENOLCK | libc::EOPNOTSUPP | libc::ENOSYS) => Ok(true),
            _ => Err(error),
        },
    }
}

/// A second descriptor of the same open file: whoever asks here is told of what could not be written by his own call.
pub(crate) fn open_again(file: &File, _path: &Path) -> io::Result<File> {
    file.try_clone()
}

/// Whether ranges can be given back: files can be full of holes. A block node is in front of the page cache, where a
/// request to the volume behind it would be overtaken by what the cache writes later.
pub(crate) fn can_discard(_file: &File, is_block_device: bool, _end_bytes: u64) -> bool {
    !is_block_device
}

/// What a volume does best.
pub(crate) fn block_device_sizes(file: &File) -> io::Result<IoSizes> {
    let media = dkio::media(&RealSys, RawHandle(file.as_raw_fd())).map_err(Errno::to_io_error)?;
    let physical_block_bytes = media.physical_block_bytes;
    Ok(IoSizes { physical_block_bytes, discard_bytes: physical_block_bytes, ..IoSizes::default() })
}

/// Size and logical block size in bytes.
pub(crate) fn block_device_size(file: &File) -> io::Result<(u64, u32)> {
    let media = dkio::media(&RealSys, RawHandle(file.as_raw_fd())).map_err(Errno::to_io_error)?;
    Ok((media.size_bytes, media.logical_block_bytes))
}

pub(crate) fn write_durably(file: BorrowedFd<'_>, vectors: Vectors<'_>, offset_bytes: u64) -> io::Result<()> {
    vectors.write_all_at(file, offset_bytes)?;
    // SAFETY: the descriptor is open.
    crate::retry(|| unsafe { libc::fdatasync(file.as_raw_fd()) }).map(drop)
}

pub(crate) fn discard(file: &File, _is_block_device: bool, offset_bytes: u64, len_bytes: u64) -> io::Result<()> {
    if !file.metadata()?.is_file() {
        return Err(io::ErrorKind::Unsupported.into());
    }
    // Length 0 would be everything up to the end.
    if len_bytes == 0 {
        return Ok(());
    }
    let too_far = |_| io::Error::from_raw_os_error(libc::EFBIG);
    // SAFETY: all-zero is a valid flock.
    let mut range: libc::flock = unsafe { std::mem::zeroed() };
    range.l_whence = libc::SEEK_SET as libc::c_short;
    range.l_start = offset_bytes.try_into().map_err(too_far)?;
    range.l_len = len_bytes.try_into().map_err(too_far)?;
    // SAFETY: the range is valid during the call.
    crate::retry(|| unsafe { libc::fcntl(file.as_raw_fd(), dkio::F_FREESP, &range) }).map(drop)
}

/// Freed ranges are not promised to read as zeroes: they are written.
pub(crate) fn zero_range(
    _file: &File,
    _is_block_device: bool,
    _offset_bytes: u64,
    _len_bytes: u64,
    _unmap: bool,
) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}
