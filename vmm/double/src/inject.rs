//! Making chosen calls fail.

use std::collections::BTreeMap;
use std::os::fd::RawFd;
use std::ptr::NonNull;
use std::str::FromStr;
use std::sync::{Arc, Mutex, PoisonError};

use devices_host::sys::{
    DeviceNumber, Errno, IoctlArg, Link, MapRequest, OpenFlags, RawHandle, Ready, Sys, SysResult, SysThread,
};

use crate::names;

/// Which calls of a name are meant: written `3` (the third), `3+` (from the third on), `3x5` (five from the third on),
/// `3%2` (every second from the third on).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Moment {
    /// The first, counted from 1.
    pub from: usize,
    /// How many.
    pub count: usize,
    /// Every how many.
    pub step: usize,
}

impl Moment {
    /// The `nth` call only, counted from 1.
    #[must_use]
    pub fn nth(nth: usize) -> Self {
        Self { from: nth, count: 1, step: 1 }
    }

    pub(crate) fn is(self, nth: usize) -> bool {
        nth >= self.from && (nth - self.from).is_multiple_of(self.step) && (nth - self.from) / self.step < self.count
    }
}

impl FromStr for Moment {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let number = |text: &str| text.parse().map_err(|_| format!("'{text}' is no number of calls"));
        if let Some(from) = text.strip_suffix('+') {
            return Ok(Self { from: number(from)?, count: usize::MAX, step: 1 });
        }
        if let Some((from, step)) = text.split_once('%') {
            return Ok(Self { from: number(from)?, count: usize::MAX, step: number(step)?.max(1) });
        }
        match text.split_once('x') {
            Some((from, count)) => Ok(Self { from: number(from)?, count: number(count)?, step: 1 }),
            None => Ok(Self::nth(number(text)?)),
        }
    }
}

/// One failure: written `VM_RUN:3:EBUSY`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Injection {
    /// Name of the call: an ioctl's, or `open`, `mmap`, `mlock`, `fstat`, `read`, `write`, `pread`, `pwrite`,
    /// `poll`, `bind`, `link`.
    pub call: String,
    /// Which of them.
    pub moment: Moment,
    /// What they fail with.
    pub errno: Errno,
}

impl FromStr for Injection {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut parts = text.split(':');
        let (Some(call), Some(moment), Some(errno), None) = (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(format!("'{text}' is not CALL:MOMENT:ERRNO"));
        };
        let errno = Errno::ALL.iter().find(|known| known.name() == Some(errno));
        let errno = *errno.ok_or_else(|| format!("'{text}' names no errno"))?;
        Ok(Self { call: call.to_owned(), moment: moment.parse()?, errno })
    }
}

/// A [`Sys`] whose chosen calls fail before they reach the inner one. The kernel has then done nothing.
pub struct Injecting {
    inner: Arc<dyn Sys>,
    injections: Vec<Injection>,
    counts: Mutex<BTreeMap<String, usize>>,
}

impl Injecting {
    /// Wraps `inner`.
    #[must_use]
    pub fn new(inner: Arc<dyn Sys>, injections: Vec<Injection>) -> Arc<Self> {
        Arc::new(Self { inner, injections, counts: Mutex::default() })
    }

    /// How often each call was made.
    #[must_use]
    pub fn counts(&self) -> BTreeMap<String, usize> {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn pass(&self, call: &str) -> SysResult<()> {
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        let nth = counts.entry(call.to_owned()).or_insert(0);
        *nth += 1;
        match self.injections.iter().find(|injection| injection.call == call && injection.moment.is(*nth)) {
            Some(injection) => Err(injection.errno),
            None => Ok(()),
        }
    }
}

impl Sys for Injecting {
    fn is_character_device(&self, path: &str) -> SysResult<bool> {
        self.inner.is_character_device(path)
    }

    fn open(&self, path: &str, flags: OpenFlags) -> SysResult<RawHandle> {
        self.pass("open")?;
        self.inner.open(path, flags)
    }

    fn close(&self, handle: RawHandle) {
        self.inner.close(handle);
    }

    unsafe fn ioctl(&self, handle: RawHandle, request: i32, arg: IoctlArg<'_>) -> SysResult<i32> {
        self.pass(&names::ioctl(request))?;
        // SAFETY: the caller's promise.
        unsafe { self.inner.ioctl(handle, request, arg) }
    }

    fn mmap(&self, handle: RawHandle, request: MapRequest) -> SysResult<NonNull<u8>> {
        self.pass("mmap")?;
        self.inner.mmap(handle, request)
    }

    unsafe fn munmap(&self, start: NonNull<u8>, len_bytes: usize) {
        // SAFETY: the caller's promise.
        unsafe { self.inner.munmap(start, len_bytes) }
    }

    unsafe fn mlock(&self, start: NonNull<u8>, len_bytes: usize) -> SysResult<()> {
        self.pass("mlock")?;
        // SAFETY: the caller's promise.
        unsafe { self.inner.mlock(start, len_bytes) }
    }

    fn device_number(&self, handle: RawHandle) -> SysResult<DeviceNumber> {
        self.pass("fstat")?;
        self.inner.device_number(handle)
    }

    fn read(&self, handle: RawHandle, buffer: &mut [u8]) -> SysResult<usize> {
        self.pass("read")?;
        self.inner.read(handle, buffer)
    }

    fn write(&self, handle: RawHandle, buffer: &[u8]) -> SysResult<usize> {
        self.pass("write")?;
        self.inner.write(handle, buffer)
    }

    fn read_at(&self, handle: RawHandle, buffer: &mut [u8], offset_bytes: u64) -> SysResult<usize> {
        self.pass("pread")?;
        self.inner.read_at(handle, buffer, offset_bytes)
    }

    fn write_at(&self, handle: RawHandle, buffer: &[u8], offset_bytes: u64) -> SysResult<usize> {
        self.pass("pwrite")?;
        self.inner.write_at(handle, buffer, offset_bytes)
    }

    fn poll(&self, handle: RawHandle, interest: Ready, timeout_ns: Option<u64>) -> SysResult<Ready> {
        self.pass("poll")?;
        self.inner.poll(handle, interest, timeout_ns)
    }

    fn poll_fd(&self, handle: RawHandle) -> SysResult<RawFd> {
        self.inner.poll_fd(handle)
    }

    fn bind_thread(&self, cpu: Option<i32>) -> SysResult<()> {
        self.pass("bind")?;
        self.inner.bind_thread(cpu)
    }

    fn current_thread(&self) -> SysThread {
        self.inner.current_thread()
    }

    fn signal_thread(&self, thread: SysThread) {
        self.inner.signal_thread(thread);
    }

    fn kick_signal(&self) -> i32 {
        self.inner.kick_signal()
    }

    fn block_kick_signal(&self, blocked: bool) -> SysResult<()> {
        self.inner.block_kick_signal(blocked)
    }

    fn take_kick_signal(&self) -> bool {
        self.inner.take_kick_signal()
    }

    fn link(&self, name: &str) -> SysResult<Link> {
        self.pass("link")?;
        self.inner.link(name)
    }

    fn in_global_zone(&self) -> bool {
        self.inner.in_global_zone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_is_written_as_call_moment_and_errno() {
        let injection: Injection = "VM_RUN:3x5:EBUSY".parse().unwrap();
        assert_eq!(injection.errno, Errno::EBUSY);
        let hits: Vec<usize> = (1..12).filter(|&nth| injection.moment.is(nth)).collect();
        assert_eq!(hits, [3, 4, 5, 6, 7]);
        let hits: Vec<usize> = (1..9).filter(|&nth| "3%2".parse::<Moment>().unwrap().is(nth)).collect();
        assert_eq!(hits, [3, 5, 7]);
        assert!("2+".parse::<Moment>().unwrap().is(1_000_000) && !"2+".parse::<Moment>().unwrap().is(1));
        for wrong in ["VM_RUN", "VM_RUN:3", "VM_RUN:x:EBUSY", "VM_RUN:3:EWHAT", "VM_RUN:3:EBUSY:4"] {
            assert!(wrong.parse::<Injection>().is_err(), "{wrong}");
        }
    }
}
