//! Memory of this process by addresses that may be wrong: a wrong one is an error, as it is to the kernel.

use devices_host::sys::{Errno, SysResult};

fn vector(address: usize, len: usize) -> libc::iovec {
    libc::iovec { iov_base: std::ptr::with_exposed_provenance_mut(address), iov_len: len }
}

/// Reads all of it.
pub(super) fn read(address: usize, into: &mut [u8]) -> SysResult<()> {
    let (ours, theirs) = (vector(into.as_mut_ptr().expose_provenance(), into.len()), vector(address, into.len()));
    // SAFETY: the call writes to the slice alone, and looks itself whether the other address is good.
    let moved = unsafe { libc::process_vm_readv(libc::getpid(), &raw const ours, 1, &raw const theirs, 1, 0) };
    if usize::try_from(moved) == Ok(into.len()) { Ok(()) } else { Err(Errno::EFAULT) }
}

/// Writes all of it.
///
/// # Safety
/// Where the address is good, the memory is the caller's to be written.
pub(super) unsafe fn write(address: usize, from: &[u8]) -> SysResult<()> {
    let (ours, theirs) = (vector(from.as_ptr().expose_provenance(), from.len()), vector(address, from.len()));
    // SAFETY: the call reads the slice, and looks itself whether the other address is good; the caller vouches for it.
    let moved = unsafe { libc::process_vm_writev(libc::getpid(), &raw const ours, 1, &raw const theirs, 1, 0) };
    if usize::try_from(moved) == Ok(from.len()) { Ok(()) } else { Err(Errno::EFAULT) }
}
