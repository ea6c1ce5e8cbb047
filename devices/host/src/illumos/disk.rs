//! What files and volumes do on illumos. Volumes (zvols) beyond reading and writing are not here yet.

use std::fs::{File, FileType};
use std::io::{self, Seek, SeekFrom};
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::fs::FileTypeExt;

use crate::check;
use crate::iovec::Vectors;

pub(crate) const CAN_DISCARD: bool = false;

/// What makes the open of a volume exclusive: nothing is known to.
pub(crate) const EXCLUSIVE: libc::c_int = 0;

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

/// Size and logical block size in bytes.
pub(crate) fn block_device_size(file: &File) -> io::Result<(u64, u32)> {
    let mut file = file;
    Ok((file.seek(SeekFrom::End(0))?, 512))
}

pub(crate) fn write_durably(file: BorrowedFd<'_>, vectors: Vectors<'_>, offset_bytes: u64) -> io::Result<()> {
    vectors.write_all_at(file, offset_bytes)?;
    // SAFETY: the descriptor is open.
    crate::retry(|| unsafe { libc::fdatasync(file.as_raw_fd()) }).map(drop)
}

pub(crate) fn punch_hole(_file: &File, _offset_bytes: u64, _len_bytes: u64) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}

pub(crate) fn zero_range(_file: &File, _offset_bytes: u64, _len_bytes: u64, _unmap: bool) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}
