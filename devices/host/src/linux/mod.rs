//! Linux's side of every service.

use std::io;
use std::mem;
use std::os::fd::{AsRawFd, RawFd};

use vmm_sys_util::eventfd::{EFD_CLOEXEC, EventFd};

use crate::check;

pub(crate) mod direct;
pub(crate) mod disk;
pub(crate) mod heap;
pub(crate) mod image;
#[cfg(test)]
pub(crate) mod loop_device;
pub(crate) mod ram;
pub(crate) mod restricted;
pub(crate) mod ring;
pub(crate) mod socket;
pub(crate) mod tap;
pub(crate) mod tty;

/// What there is to read.
pub(crate) const READABLE: i16 = libc::POLLIN;

#[derive(Debug)]
pub(crate) struct Event(EventFd);

impl Event {
    pub(crate) fn new() -> io::Result<Self> {
        // Blocking, so that sleeping and taking the signal away are one call.
        EventFd::new(EFD_CLOEXEC).map(Self)
    }

    pub(crate) fn wake(&self) {
        // Would wait only where the counter is full, which 2⁶⁴ wakes in a row make it.
        let _ = self.0.write(1);
    }

    pub(crate) fn wait(&self) {
        // A signal that interrupts it ends it, or not: who waits looks for work and waits again.
        let _ = self.0.read();
    }

    pub(crate) fn clear(&self) -> bool {
        let mut count = 0u64;
        let into = libc::iovec { iov_base: (&raw mut count).cast(), iov_len: size_of::<u64>() };
        // SAFETY: the vector is the counter above. Without a wait, whatever the descriptor's own flag says.
        let read = unsafe { libc::preadv2(self.0.as_raw_fd(), &raw const into, 1, -1, libc::RWF_NOWAIT) };
        if read < 0 && io::Error::last_os_error().kind() != io::ErrorKind::WouldBlock {
            // A kernel before 5.8 cannot read an eventfd so; a signal that stays would be a loop. Nobody else takes it
            // away between the question and the read.
            let mut fds = [crate::poll::PollFd::new(self.as_raw_fd()).readable(true)];
            return crate::poll::poll(&mut fds, Some(0)).is_ok_and(|ready| ready > 0) && self.0.read().is_ok();
        }
        read > 0
    }
}

impl AsRawFd for Event {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

impl crate::Event {
    /// The eventfd itself, for KVM to bind. Linux only.
    pub fn event_fd(&self) -> &EventFd {
        &self.0.0
    }
}

/// An error number of illumos means nothing here; its kind and its words do.
pub(crate) fn illumos_error(_number: i32, kind: io::ErrorKind, words: String) -> io::Error {
    io::Error::new(kind, words)
}

/// # Safety
/// `fds` points to `count` pollfds that the call may change.
pub(crate) unsafe fn poll(fds: *mut libc::pollfd, count: usize, timeout_ns: Option<u64>) -> i32 {
    let timeout = timeout_ns.map(|timeout_ns| libc::timespec {
        tv_sec: i64::try_from(timeout_ns / 1_000_000_000).unwrap_or(i64::MAX),
        tv_nsec: i64::try_from(timeout_ns % 1_000_000_000).unwrap_or(0),
    });
    let timeout = timeout.as_ref().map_or(std::ptr::null(), |timeout| timeout as *const _);
    // SAFETY: the caller vouches for the slice; the timeout is null or valid during the call.
    unsafe { libc::ppoll(fds, count as libc::nfds_t, timeout, std::ptr::null()) }
}

/// The calling thread is allowed on some CPUs only, until this is dropped.
#[derive(Debug)]
pub(crate) struct Bound {
    before: libc::cpu_set_t,
}

impl Bound {
    pub(crate) fn to(cpus: &[usize]) -> io::Result<Self> {
        // SAFETY: all-zero is the empty set.
        let (mut before, mut wanted): (libc::cpu_set_t, libc::cpu_set_t) = unsafe { mem::zeroed() };
        for &cpu in cpus {
            if cpu >= libc::CPU_SETSIZE as usize {
                return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("the host has no CPU {cpu}")));
            }
            // SAFETY: the number fits the set.
            unsafe { libc::CPU_SET(cpu, &mut wanted) };
        }
        let size = mem::size_of::<libc::cpu_set_t>();
        // SAFETY: both sets are valid and of the size given; 0 is the calling thread.
        unsafe {
            check(libc::sched_getaffinity(0, size, &mut before))?;
            check(libc::sched_setaffinity(0, size, &wanted))?;
            // The kernel drops CPUs the host does not have as long as one remains; a silent half would mislead.
            let mut allowed: libc::cpu_set_t = mem::zeroed();
            check(libc::sched_getaffinity(0, size, &mut allowed))?;
            if let Some(cpu) = cpus.iter().find(|&&cpu| !libc::CPU_ISSET(cpu, &allowed)) {
                drop(Self { before });
                return Err(io::Error::new(
                    io::ErrorKind::InvalidInput,
                    format!("CPU {cpu} is absent or not allowed to this process"),
                ));
            }
        }
        Ok(Self { before })
    }
}

impl Drop for Bound {
    fn drop(&mut self) {
        // SAFETY: the set is valid and was the thread's own.
        unsafe { libc::sched_setaffinity(0, mem::size_of::<libc::cpu_set_t>(), &self.before) };
    }
}
