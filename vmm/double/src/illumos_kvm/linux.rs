//! The machine's own KVM: descriptors and calls, nothing else.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU8, Ordering};

use devices_host::sys::{Errno, SysResult};

use crate::sys::translate;

/// Linux' KVM_CREATE_VM.
pub const CREATE_VM: u32 = 0xae01;
/// Linux' KVM_GET_VCPU_MMAP_SIZE.
pub const GET_VCPU_MMAP_SIZE: u32 = 0xae04;
/// Linux' KVM_GET_SUPPORTED_CPUID.
pub const GET_SUPPORTED_CPUID: u32 = 0xc008_ae05;
/// Linux' KVM_SET_SIGNAL_MASK.
pub const SET_SIGNAL_MASK: u32 = 0x4004_ae8b;

/// A descriptor of the machine's KVM.
pub struct Fd(OwnedFd);

fn last_errno() -> Errno {
    translate(&io::Error::last_os_error())
}

impl Fd {
    /// Opens `/dev/kvm`.
    ///
    /// # Panics
    /// Where the machine has none: the double cannot do without.
    pub fn open() -> Self {
        let file = std::fs::File::options().read(true).write(true).open("/dev/kvm");
        Self(file.expect("the double needs /dev/kvm: run it inside the lab").into())
    }

    /// A call with a number, or none (0).
    pub fn value(&self, request: u32, value: usize) -> SysResult<i32> {
        // SAFETY: the callers' commands take a number.
        match unsafe { libc::ioctl(self.0.as_raw_fd(), request as libc::Ioctl, value) } {
            -1 => Err(last_errno()),
            result => Ok(result),
        }
    }

    /// A call with a pointer.
    ///
    /// # Safety
    /// The buffer is large enough for the command, and pointers in it are good.
    pub unsafe fn bytes(&self, request: u32, buffer: &mut [u8]) -> SysResult<i32> {
        // SAFETY: the caller's promise.
        match unsafe { libc::ioctl(self.0.as_raw_fd(), request as libc::Ioctl, buffer.as_mut_ptr()) } {
            -1 => Err(last_errno()),
            result => Ok(result),
        }
    }

    /// A call that gives a new descriptor.
    pub fn create(&self, request: u32, value: usize) -> SysResult<Self> {
        let fd = self.value(request, value)?;
        // SAFETY: the command gave a descriptor that nobody else has.
        Ok(Self(unsafe { OwnedFd::from_raw_fd(fd) }))
    }

    /// Maps `len_bytes` of it, shared, to be read and written.
    pub fn map(&self, len_bytes: usize) -> SysResult<Shared> {
        Shared::new(self.0.as_raw_fd(), len_bytes)
    }
}

/// Memory in a file, so that it can be mapped more than once.
pub struct Memory(OwnedFd);

impl Memory {
    /// `len_bytes` of zeros.
    pub fn new(len_bytes: usize) -> SysResult<Self> {
        // SAFETY: a good name, no flags beyond close-on-exec.
        let fd = unsafe { libc::memfd_create(c"vcpu".as_ptr(), libc::MFD_CLOEXEC) };
        if fd < 0 {
            return Err(last_errno());
        }
        // SAFETY: a new descriptor that nobody else has.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        // SAFETY: the descriptor is open.
        if unsafe { libc::ftruncate(fd.as_raw_fd(), len_bytes as libc::off_t) } != 0 {
            return Err(last_errno());
        }
        Ok(Self(fd))
    }

    /// Maps all of it.
    pub fn map(&self, len_bytes: usize) -> SysResult<Shared> {
        Shared::new(self.0.as_raw_fd(), len_bytes)
    }
}

/// A shared mapping, unmapped when it is dropped. Its bytes are only ever used one at a time: the other side of the
/// mapping is the kernel's or the process'.
pub struct Shared {
    start: NonNull<u8>,
    len_bytes: usize,
}

// SAFETY: the mapping belongs to the process, not to a thread; its bytes are accessed atomically.
unsafe impl Send for Shared {}
// SAFETY: as above.
unsafe impl Sync for Shared {}

impl Shared {
    fn new(fd: i32, len_bytes: usize) -> SysResult<Self> {
        let prot = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: a new mapping at an address of the system's choice.
        let start = unsafe { libc::mmap(std::ptr::null_mut(), len_bytes, prot, libc::MAP_SHARED, fd, 0) };
        if start == libc::MAP_FAILED {
            return Err(last_errno());
        }
        NonNull::new(start.cast()).map(|start| Self { start, len_bytes }).ok_or(Errno::ENOMEM)
    }

    /// Gives the mapping away: whoever gets it unmaps it.
    pub fn into_raw(self) -> NonNull<u8> {
        let start = self.start;
        std::mem::forget(self);
        start
    }

    /// Its bytes.
    pub fn bytes(&self) -> &[AtomicU8] {
        // SAFETY: the range is mapped as long as `self`; everybody here uses it atomically.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr().cast(), self.len_bytes) }
    }

    /// `N` bytes at `offset`.
    pub fn read<const N: usize>(&self, offset: usize) -> [u8; N] {
        std::array::from_fn(|at| self.bytes()[offset + at].load(Ordering::Relaxed))
    }

    /// A 32-bit word at `offset`.
    pub fn word(&self, offset: usize) -> u32 {
        u32::from_ne_bytes(self.read(offset))
    }

    /// Copies a range from the same place of another mapping.
    pub fn copy_from(&self, other: &Self, range: std::ops::Range<usize>) {
        for (to, from) in self.bytes()[range.clone()].iter().zip(&other.bytes()[range]) {
            to.store(from.load(Ordering::Relaxed), Ordering::Relaxed);
        }
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        // SAFETY: the mapping is this struct's own.
        unsafe { libc::munmap(self.start.as_ptr().cast(), self.len_bytes) };
    }
}

/// How many pages of a range of the process are resident; `None` where not all of it is mapped.
pub fn resident_pages(start: usize, len_bytes: usize) -> Option<usize> {
    let mut pages = vec![0_u8; len_bytes.div_ceil(4096)];
    // SAFETY: the vector has a byte for every page asked about; the range itself is only looked up.
    let result = unsafe { libc::mincore(start as *mut libc::c_void, len_bytes, pages.as_mut_ptr()) };
    (result == 0).then(|| pages.iter().filter(|&&page| page & 1 == 1).count())
}

/// Signals the calling thread blocks, as one word: bit n - 1 stands for Linux' signal n.
pub fn blocked_signals() -> u64 {
    let mut set = std::mem::MaybeUninit::<libc::sigset_t>::zeroed();
    // SAFETY: no new mask, and a place for the old one; the kernel's mask is the set's first word.
    unsafe {
        libc::pthread_sigmask(libc::SIG_BLOCK, std::ptr::null(), set.as_mut_ptr());
        set.as_ptr().cast::<u64>().read()
    }
}

/// Signals pending for the calling thread, likewise.
pub fn pending_signals() -> u64 {
    let mut set = std::mem::MaybeUninit::<libc::sigset_t>::zeroed();
    // SAFETY: a place for the set.
    unsafe {
        libc::sigpending(set.as_mut_ptr());
        set.as_ptr().cast::<u64>().read()
    }
}
