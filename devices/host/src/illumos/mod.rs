//! illumos's side of every service. The zone has no `/dev/poll`, `/dev/eventfd` or `/dev/urandom`, so nothing here
//! opens a device node.

use std::io;

use crate::check;
use crate::sys::P_MYID;

pub(crate) mod direct;
pub(crate) mod disk;
pub(crate) mod heap;
pub(crate) mod image;
pub(crate) mod ram;
pub(crate) mod ring;
pub(crate) mod socket;
pub(crate) mod tap;
pub(crate) mod tty;

pub(crate) use crate::pipe::PipeEvent as Event;

/// An error number of this system.
pub(crate) fn illumos_error(number: i32, _kind: io::ErrorKind, _words: String) -> io::Error {
    io::Error::from_raw_os_error(number)
}

// poll.h; the libc crate lacks it.
unsafe extern "C" {
    fn ppoll(
        fds: *mut libc::pollfd,
        count: libc::nfds_t,
        timeout: *const libc::timespec,
        mask: *const libc::sigset_t,
    ) -> libc::c_int;
}

/// What there is to read: data, or an interrupt that waits, which viona tells as data of a priority.
pub(crate) const READABLE: i16 = libc::POLLIN | libc::POLLRDBAND;

/// # Safety
/// `fds` points to `count` pollfds that the call may change.
pub(crate) unsafe fn poll(fds: *mut libc::pollfd, count: usize, timeout_ns: Option<u64>) -> i32 {
    let timeout = timeout_ns.map(|timeout_ns| libc::timespec {
        tv_sec: libc::time_t::try_from(timeout_ns / 1_000_000_000).unwrap_or(libc::time_t::MAX),
        tv_nsec: libc::c_long::try_from(timeout_ns % 1_000_000_000).unwrap_or(0),
    });
    let timeout = timeout.as_ref().map_or(std::ptr::null(), |timeout| timeout as *const _);
    // SAFETY: the caller vouches for the slice; the timeout is null or valid during the call.
    unsafe { ppoll(fds, count as libc::nfds_t, timeout, std::ptr::null()) }
}

/// The calling thread is bound to one CPU, until this is dropped.
#[derive(Debug)]
pub(crate) struct Bound {
    before: libc::processorid_t,
}

impl Bound {
    pub(crate) fn to(cpus: &[usize]) -> io::Result<Self> {
        let &[cpu] = cpus else {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "illumos binds a thread to exactly one CPU"));
        };
        let cpu = libc::processorid_t::try_from(cpu)
            .map_err(|_| io::Error::new(io::ErrorKind::InvalidInput, format!("the host has no CPU {cpu}")))?;
        let mut before = libc::PBIND_NONE;
        // SAFETY: binds the calling thread; `before` receives what it was bound to.
        check(unsafe { libc::processor_bind(libc::P_LWPID, P_MYID, cpu, &mut before) })?;
        Ok(Self { before })
    }
}

impl Drop for Bound {
    fn drop(&mut self) {
        // SAFETY: binds the calling thread; the old binding is not asked for.
        unsafe { libc::processor_bind(libc::P_LWPID, P_MYID, self.before, std::ptr::null_mut()) };
    }
}
