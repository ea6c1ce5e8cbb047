//! The real calls.

use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::mem::MaybeUninit;
use std::ptr::{NonNull, null_mut};
use std::sync::Once;

use super::dladm::{self, DLADM_OPT_ACTIVE, MAXLINKNAMELEN, dladm_attr, dladm_vnic_attr_prefix};
use super::{
    DeviceNumber, Errno, IoctlArg, Link, MapRequest, OpenAccess, OpenFlags, RawHandle, Ready, Sys, SysResult, SysThread,
};
use crate::thread::{KICK_SIGNAL, change_mask, install_kick_handler, set_of};

/// The calling thread, in the calls that name one (`sys/types.h`).
pub const P_MYID: libc::id_t = -1;

/// MTU of an Ethernet link whose own cannot be read.
const ETHERNET_MTU: u32 = 1500;

/// Room for `dladm_vnic_attr_t`, in 8-byte words: several times what any release needs.
const VNIC_ATTR_WORDS: usize = 64 * 1024 / 8;

// What the libc crate lacks: signal.h, zone.h.
unsafe extern "C" {
    fn sigtimedwait(set: *const libc::sigset_t, info: *mut c_void, timeout: *const libc::timespec) -> c_int;
    pub(crate) fn getzoneid() -> libc::zoneid_t;
}

#[link(name = "dladm")]
unsafe extern "C" {
    fn dladm_open(handle: *mut *mut c_void) -> c_int;
    fn dladm_close(handle: *mut c_void);
    fn dladm_name2info(
        handle: *mut c_void,
        link: *const c_char,
        id: *mut u32,
        flags: *mut u32,
        class: *mut c_int,
        media: *mut u32,
    ) -> c_int;
    fn dladm_vnic_info(handle: *mut c_void, link: u32, attr: *mut dladm_vnic_attr_prefix, flags: u32) -> c_int;
    fn dladm_info(handle: *mut c_void, link: u32, attr: *mut dladm_attr) -> c_int;
}

/// The system the process runs on.
#[derive(Clone, Copy, Debug, Default)]
pub struct RealSys;

fn last_errno() -> Errno {
    // SAFETY: the address is the calling thread's own errno.
    Errno(unsafe { *libc::___errno() })
}

/// The result of a call that says -1 and sets errno.
fn check(result: c_int) -> SysResult<c_int> {
    if result == -1 { Err(last_errno()) } else { Ok(result) }
}

fn count(result: isize) -> SysResult<usize> {
    usize::try_from(result).map_err(|_| last_errno())
}

/// A handler for the kick signal, before the first can arrive: its default action ends the process.
fn handle_kicks() {
    static ONCE: Once = Once::new();
    // It fails for a signal that cannot be handled only; this one can.
    ONCE.call_once(|| drop(install_kick_handler()));
}

impl Sys for RealSys {
    fn is_character_device(&self, path: &str) -> SysResult<bool> {
        let path = CString::new(path).map_err(|_| Errno::EINVAL)?;
        let mut stat = MaybeUninit::<libc::stat>::uninit();
        // SAFETY: the path ends in NUL; the structure is the call's own, filled where it succeeds.
        let stat = unsafe {
            check(libc::stat(path.as_ptr(), stat.as_mut_ptr()))?;
            stat.assume_init()
        };
        Ok(stat.st_mode & libc::S_IFMT == libc::S_IFCHR)
    }

    fn open(&self, path: &str, flags: OpenFlags) -> SysResult<RawHandle> {
        let path = CString::new(path).map_err(|_| Errno::EINVAL)?;
        let mut bits = libc::O_CLOEXEC
            | match flags.access {
                OpenAccess::Read => libc::O_RDONLY,
                OpenAccess::Write => libc::O_WRONLY,
                OpenAccess::ReadWrite => libc::O_RDWR,
            };
        if flags.exclusive {
            bits |= libc::O_EXCL;
        }
        if flags.nonblocking {
            bits |= libc::O_NONBLOCK;
        }
        // SAFETY: the path ends in NUL.
        check(unsafe { libc::open(path.as_ptr(), bits) }).map(RawHandle)
    }

    fn close(&self, handle: RawHandle) {
        // SAFETY: takes a number. EINTR leaves the descriptor closed, as on every other way out.
        unsafe { libc::close(handle.0) };
    }

    unsafe fn ioctl(&self, handle: RawHandle, request: i32, arg: IoctlArg<'_>) -> SysResult<i32> {
        // SAFETY: the caller's promise; a number goes where the kernel expects a number, in the register of a pointer.
        check(unsafe {
            match arg {
                IoctlArg::None => libc::ioctl(handle.0, request, 0usize),
                IoctlArg::Value(value) => libc::ioctl(handle.0, request, value),
                IoctlArg::Buffer(bytes) => libc::ioctl(handle.0, request, bytes.as_mut_ptr()),
            }
        })
    }

    fn mmap(&self, handle: RawHandle, request: MapRequest) -> SysResult<NonNull<u8>> {
        let offset = libc::off_t::try_from(request.offset).map_err(|_| Errno::EOVERFLOW)?;
        let protection = libc::PROT_READ | if request.write { libc::PROT_WRITE } else { 0 };
        // SAFETY: a new mapping where the kernel likes it touches no other.
        let start =
            unsafe { libc::mmap(null_mut(), request.len_bytes, protection, libc::MAP_SHARED, handle.0, offset) };
        if start == libc::MAP_FAILED {
            return Err(last_errno());
        }
        NonNull::new(start.cast()).ok_or(Errno::EFAULT)
    }

    unsafe fn munmap(&self, start: NonNull<u8>, len_bytes: usize) {
        // SAFETY: the caller's promise.
        unsafe { libc::munmap(start.as_ptr().cast(), len_bytes) };
    }

    unsafe fn mlock(&self, start: NonNull<u8>, len_bytes: usize) -> SysResult<()> {
        // SAFETY: the caller's promise.
        check(unsafe { libc::mlock(start.as_ptr().cast(), len_bytes) }).map(drop)
    }

    fn device_number(&self, handle: RawHandle) -> SysResult<DeviceNumber> {
        let mut stat = MaybeUninit::<libc::stat>::uninit();
        // SAFETY: the structure is the call's own, filled where it succeeds.
        let stat = unsafe {
            check(libc::fstat(handle.0, stat.as_mut_ptr()))?;
            stat.assume_init()
        };
        Ok(DeviceNumber(stat.st_rdev))
    }

    fn read(&self, handle: RawHandle, buffer: &mut [u8]) -> SysResult<usize> {
        // SAFETY: pointer and length come from one slice.
        count(unsafe { libc::read(handle.0, buffer.as_mut_ptr().cast(), buffer.len()) })
    }

    fn write(&self, handle: RawHandle, buffer: &[u8]) -> SysResult<usize> {
        // SAFETY: pointer and length come from one slice.
        count(unsafe { libc::write(handle.0, buffer.as_ptr().cast(), buffer.len()) })
    }

    fn read_at(&self, handle: RawHandle, buffer: &mut [u8], offset_bytes: u64) -> SysResult<usize> {
        let offset = libc::off_t::try_from(offset_bytes).map_err(|_| Errno::EOVERFLOW)?;
        // SAFETY: pointer and length come from one slice.
        count(unsafe { libc::pread(handle.0, buffer.as_mut_ptr().cast(), buffer.len(), offset) })
    }

    fn write_at(&self, handle: RawHandle, buffer: &[u8], offset_bytes: u64) -> SysResult<usize> {
        let offset = libc::off_t::try_from(offset_bytes).map_err(|_| Errno::EOVERFLOW)?;
        // SAFETY: pointer and length come from one slice.
        count(unsafe { libc::pwrite(handle.0, buffer.as_ptr().cast(), buffer.len(), offset) })
    }

    fn poll(&self, handle: RawHandle, interest: Ready, timeout_ns: Option<u64>) -> SysResult<Ready> {
        const READABLE: i16 = libc::POLLIN | libc::POLLRDBAND;
        const FAILED: i16 = libc::POLLERR | libc::POLLHUP | libc::POLLNVAL;
        let mut events = 0;
        if interest.readable {
            events |= READABLE;
        }
        if interest.writable {
            events |= libc::POLLOUT;
        }
        let mut fd = libc::pollfd { fd: handle.0, events, revents: 0 };
        // SAFETY: one descriptor, valid during the call.
        check(unsafe { crate::os::poll(&mut fd, 1, timeout_ns) })?;
        Ok(Ready {
            readable: fd.revents & READABLE != 0,
            writable: fd.revents & libc::POLLOUT != 0,
            failed: fd.revents & FAILED != 0,
        })
    }

    fn poll_fd(&self, handle: RawHandle) -> SysResult<std::os::fd::RawFd> {
        Ok(handle.0)
    }

    fn bind_thread(&self, cpu: Option<i32>) -> SysResult<()> {
        let cpu = cpu.unwrap_or(libc::PBIND_NONE);
        // SAFETY: binds the calling thread; the old binding is not asked for.
        check(unsafe { libc::processor_bind(libc::P_LWPID, P_MYID, cpu, null_mut()) }).map(drop)
    }

    fn current_thread(&self) -> SysThread {
        // SAFETY: takes nothing and cannot fail.
        SysThread(unsafe { libc::pthread_self() }.into())
    }

    fn signal_thread(&self, thread: SysThread) {
        handle_kicks();
        if let Ok(thread) = libc::pthread_t::try_from(thread.0) {
            // SAFETY: threads are numbers here, and one that has ended is refused.
            unsafe { libc::pthread_kill(thread, KICK_SIGNAL) };
        }
    }

    fn kick_signal(&self) -> i32 {
        handle_kicks();
        KICK_SIGNAL
    }

    fn block_kick_signal(&self, blocked: bool) -> SysResult<()> {
        handle_kicks();
        let how = if blocked { libc::SIG_BLOCK } else { libc::SIG_UNBLOCK };
        change_mask(how, &set_of(&[KICK_SIGNAL]))
            .map(drop)
            .map_err(|error| Errno(error.raw_os_error().unwrap_or(libc::EINVAL)))
    }

    fn take_kick_signal(&self) -> bool {
        let now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        let set = set_of(&[KICK_SIGNAL]);
        // SAFETY: set and time are valid during the call, and no information is asked for.
        unsafe { sigtimedwait(&set, null_mut(), &now) == KICK_SIGNAL }
    }

    fn link(&self, name: &str) -> SysResult<Link> {
        let name = CString::new(name).map_err(|_| Errno::EINVAL)?;
        if name.is_empty() || name.as_bytes_with_nul().len() > MAXLINKNAMELEN {
            return Err(Errno::EINVAL);
        }
        Dladm::open()?.link(&name)
    }

    fn in_global_zone(&self) -> bool {
        // SAFETY: takes nothing and cannot fail.
        unsafe { getzoneid() == 0 }
    }
}

/// An open libdladm.
struct Dladm(*mut c_void);

impl Dladm {
    fn open() -> SysResult<Self> {
        let mut handle = null_mut();
        // SAFETY: receives a pointer.
        dladm::check(unsafe { dladm_open(&mut handle) })?;
        Ok(Self(handle))
    }

    fn link(&self, name: &CStr) -> SysResult<Link> {
        let mut id = 0;
        // SAFETY: the name ends in NUL; what is not asked for may be null.
        dladm::check(unsafe { dladm_name2info(self.0, name.as_ptr(), &mut id, null_mut(), null_mut(), null_mut()) })?;
        let mut room = vec![0u64; VNIC_ATTR_WORDS];
        let attr = room.as_mut_ptr().cast::<dladm_vnic_attr_prefix>();
        // SAFETY: the library clears and fills a structure far smaller than the room, which is aligned for it; the
        // prefix of all-zero bytes is valid, and is read after the call.
        let attr = unsafe {
            dladm::check(dladm_vnic_info(self.0, id, attr, DLADM_OPT_ACTIVE))?;
            *attr
        };
        let mac = attr.va_mac_addr.first_chunk().copied().filter(|_| attr.va_mac_len == 6).ok_or(Errno::ENOTSUP)?;
        let mut sizes = dladm_attr::default();
        // SAFETY: fills the structure. Unlike the property "mtu" this can be read in every zone that has the link.
        let known = dladm::check(unsafe { dladm_info(self.0, id, &mut sizes) }).is_ok() && sizes.da_max_sdu != 0;
        Ok(Link { id, mac, mtu: if known { sizes.da_max_sdu } else { ETHERNET_MTU } })
    }
}

impl Drop for Dladm {
    fn drop(&mut self) {
        // SAFETY: opened by `open`, closed once.
        unsafe { dladm_close(self.0) };
    }
}
