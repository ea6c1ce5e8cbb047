//! The caller's memory, as the kernel sees it: a bad pointer is an error, not a crash.

use devices_host::sys::{Errno, SysResult};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes};

use super::rules;
use crate::node::Call;

/// The structure in an argument whose size was checked.
pub fn get<T: FromBytes>(bytes: &[u8]) -> T {
    T::read_from_prefix(bytes).map(|(value, _)| value).unwrap_or_else(|_| unreachable!("the size was checked"))
}

/// Writes a structure back into its argument.
pub fn put<T: IntoBytes + Immutable>(bytes: &mut [u8], value: &T) {
    bytes.copy_from_slice(value.as_bytes());
}

/// Copies from an address of the process.
///
/// # Errors
/// EFAULT.
pub fn copy_in(call: &Call<'_>, from: usize, into: &mut [u8]) -> SysResult<()> {
    if into.is_empty() {
        return Ok(());
    }
    let local = libc::iovec { iov_base: into.as_mut_ptr().cast(), iov_len: into.len() };
    let remote = libc::iovec { iov_base: from as *mut libc::c_void, iov_len: into.len() };
    // SAFETY: `local` is a good buffer; the kernel checks every address of `remote`.
    let done = unsafe { libc::process_vm_readv(libc::getpid(), &raw const local, 1, &raw const remote, 1, 0) };
    finish(call, done, from, into.len())
}

/// Copies to an address of the process.
///
/// # Errors
/// EFAULT.
pub fn copy_out(call: &Call<'_>, from: &[u8], to: usize) -> SysResult<()> {
    if from.is_empty() {
        return Ok(());
    }
    let local = libc::iovec { iov_base: from.as_ptr().cast_mut().cast(), iov_len: from.len() };
    let remote = libc::iovec { iov_base: to as *mut libc::c_void, iov_len: from.len() };
    // SAFETY: `local` is a good buffer that is only read; the kernel checks every address of `remote`, and what lies
    // there is what the caller gave for it.
    let done = unsafe { libc::process_vm_writev(libc::getpid(), &raw const local, 1, &raw const remote, 1, 0) };
    finish(call, done, to, from.len())
}

fn finish(call: &Call<'_>, done: isize, at: usize, len: usize) -> SysResult<()> {
    if usize::try_from(done) == Ok(len) {
        return Ok(());
    }
    Err(call.refuse(&rules::POINTER, Errno::EFAULT, format!("{len} bytes at {at:#x}")))
}

/// An array at an address of the process.
///
/// # Errors
/// EFAULT.
pub fn array_in<T: FromBytes + IntoBytes + FromZeros + Copy>(
    call: &Call<'_>,
    from: usize,
    count: usize,
) -> SysResult<Vec<T>> {
    let mut values = vec![T::new_zeroed(); count];
    copy_in(call, from, values.as_mut_bytes())?;
    Ok(values)
}

/// Writes an array to an address of the process.
///
/// # Errors
/// EFAULT.
pub fn array_out<T: IntoBytes + Immutable>(call: &Call<'_>, values: &[T], to: usize) -> SysResult<()> {
    copy_out(call, values.as_bytes(), to)
}
