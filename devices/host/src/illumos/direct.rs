//! Whether a disk can be read and written around a cache on illumos.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

use crate::bounce::Alignment;

// sys/filio.h, sys/fcntl.h: what directio(3C) asks for.
const _FIODIRECTIO: libc::c_int = 0x664c;
const DIRECTIO_OFF: libc::c_int = 0;
const DIRECTIO_ON: libc::c_int = 1;

/// Where nothing was asked for: only what has no cache anyway.
pub(crate) fn is_default(file: &File) -> io::Result<bool> {
    Ok(super::disk::is_raw_device(&file.metadata()?.file_type()))
}

/// Sets `file` to direct I/O and says what that asks of requests; `None` where there is none, which is so on ZFS: its
/// files are always cached. A raw device has no cache to leave out and asks for nothing that guests do not keep to.
pub(crate) fn enable(file: &File) -> io::Result<Option<Alignment>> {
    let any = Some(Alignment { memory_bytes: 1, offset_bytes: 1 });
    if super::disk::is_raw_device(&file.metadata()?.file_type()) {
        return Ok(any);
    }
    // SAFETY: takes numbers only.
    match crate::check(unsafe { libc::ioctl(file.as_raw_fd(), _FIODIRECTIO, DIRECTIO_ON) }) {
        Ok(_) => Ok(any),
        Err(error) if error.raw_os_error() == Some(libc::ENOTTY) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Lets calls on `file` go through the cache.
pub(crate) fn disable(file: &File) -> io::Result<()> {
    // SAFETY: as above. Where there is no direct I/O, there is none to end.
    unsafe { libc::ioctl(file.as_raw_fd(), _FIODIRECTIO, DIRECTIO_OFF) };
    Ok(())
}
