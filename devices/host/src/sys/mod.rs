//! Everything the illumos backends ask of their system, behind one trait.
//!
//! The bhyve and illumos KVM backends, viona, vnd and the zvol code are plain portable code over [`Sys`]: they compile
//! and run on every system. `RealSys` (illumos only) makes the calls; the strict doubles of the kernel in `vmm/double`
//! answer them on Linux, so that the backends' real code is what the tests run.
//!
//! Error numbers are illumos' own ([`Errno`]): above 34 they differ from Linux'.

#[allow(missing_docs, non_camel_case_types, reason = "the names are the C headers', which document them")]
pub mod dkio;
#[allow(missing_docs, non_camel_case_types, reason = "the names are the C headers', which document them")]
pub mod dladm;
mod errno;

#[cfg(target_os = "illumos")]
mod illumos;

use std::os::fd::RawFd;
use std::ptr::NonNull;
use std::sync::Arc;

pub use errno::Errno;
#[cfg(target_os = "illumos")]
pub(crate) use illumos::getzoneid;
#[cfg(target_os = "illumos")]
pub use illumos::{P_MYID, RealSys};

/// What a call of [`Sys`] gives.
pub type SysResult<T> = Result<T, Errno>;

/// A descriptor as the system numbers it. Only the [`Sys`] that gave it understands it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RawHandle(pub i32);

/// Flags of [`Sys::open`]. Every open is close-on-exec.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OpenFlags {
    /// O_WRONLY or O_RDWR in place of O_RDONLY.
    pub access: OpenAccess,
    /// O_EXCL.
    pub exclusive: bool,
    /// O_NONBLOCK.
    pub nonblocking: bool,
}

/// What an open is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OpenAccess {
    /// O_RDONLY.
    Read,
    /// O_WRONLY.
    Write,
    /// O_RDWR.
    ReadWrite,
}

impl OpenFlags {
    /// Read and write, nothing else.
    pub const READ_WRITE: Self = Self { access: OpenAccess::ReadWrite, exclusive: false, nonblocking: false };
}

/// The third parameter of ioctl(2): its kind is part of the interface, since the kernel cannot tell a pointer from a
/// number.
pub enum IoctlArg<'a> {
    /// The command takes none: 0 is passed.
    None,
    /// A number passed by value.
    Value(usize),
    /// A pointer to this many bytes, in, out or both. The buffer is aligned for the structure it holds.
    Buffer(&'a mut [u8]),
}

impl std::fmt::Debug for IoctlArg<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::None => f.write_str("none"),
            Self::Value(value) => write!(f, "value {value:#x}"),
            Self::Buffer(bytes) => write!(f, "{} bytes", bytes.len()),
        }
    }
}

/// What [`Sys::mmap`] is asked for: always MAP_SHARED and readable, at an address of the system's choice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MapRequest {
    /// Length in bytes, whole pages.
    pub len_bytes: usize,
    /// Offset in the object, a multiple of the page size.
    pub offset: u64,
    /// Writable too.
    pub write: bool,
}

/// Identity of a device node: `st_rdev` of fstat(2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceNumber(pub u64);

/// A thread, as [`Sys::signal_thread`] finds it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SysThread(pub u64);

/// A data link (dladm).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Link {
    /// Its id, for `VNA_IOC_CREATE`.
    pub id: u32,
    /// Its primary MAC address.
    pub mac: [u8; 6],
    /// Its MTU in bytes.
    pub mtu: u32,
}

/// What poll(2) reports of one descriptor.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ready {
    /// POLLIN, or POLLRDBAND, by which viona says that an interrupt waits.
    pub readable: bool,
    /// POLLOUT.
    pub writable: bool,
    /// POLLERR, POLLHUP or POLLNVAL.
    pub failed: bool,
}

/// The calls. All of them may come from any thread.
///
/// Errors are the system's, untranslated: what an error of a call means is its caller's business.
pub trait Sys: Send + Sync {
    /// stat(2): whether the path leads to a character device, as a volume's raw device is.
    fn is_character_device(&self, path: &str) -> SysResult<bool>;

    /// open(2).
    fn open(&self, path: &str, flags: OpenFlags) -> SysResult<RawHandle>;

    /// close(2). Never fails: there is nothing a caller could do.
    fn close(&self, handle: RawHandle);

    /// ioctl(2); the result is what the call returned. Interrupted calls are not repeated.
    ///
    /// # Safety
    /// The buffer must have at least the size and the alignment of the command's structure, and every pointer in it must
    /// be good for what the command does through it.
    unsafe fn ioctl(&self, handle: RawHandle, request: i32, arg: IoctlArg<'_>) -> SysResult<i32>;

    /// mmap(2).
    fn mmap(&self, handle: RawHandle, request: MapRequest) -> SysResult<NonNull<u8>>;

    /// munmap(2).
    ///
    /// # Safety
    /// The range is one whole mapping of [`mmap`](Self::mmap), and nobody uses it any more.
    unsafe fn munmap(&self, start: NonNull<u8>, len_bytes: usize);

    /// mlock(2) of memory of the process.
    ///
    /// # Safety
    /// The range is mapped.
    unsafe fn mlock(&self, start: NonNull<u8>, len_bytes: usize) -> SysResult<()>;

    /// fstat(2): which device node this is.
    fn device_number(&self, handle: RawHandle) -> SysResult<DeviceNumber>;

    /// read(2).
    fn read(&self, handle: RawHandle, buffer: &mut [u8]) -> SysResult<usize>;

    /// write(2).
    fn write(&self, handle: RawHandle, buffer: &[u8]) -> SysResult<usize>;

    /// pread(2) of a disk: how many bytes came.
    fn read_at(&self, handle: RawHandle, buffer: &mut [u8], offset_bytes: u64) -> SysResult<usize>;

    /// pwrite(2) to a disk: how many bytes went.
    fn write_at(&self, handle: RawHandle, buffer: &[u8], offset_bytes: u64) -> SysResult<usize>;

    /// poll(2) of one descriptor; `None` waits for ever. `Ok` with nothing set: the time is over.
    fn poll(&self, handle: RawHandle, interest: Ready, timeout_ns: Option<u64>) -> SysResult<Ready>;

    /// The descriptor of this process that polls as `handle` does, for who waits for several things at once. It is valid
    /// while the handle is open.
    fn poll_fd(&self, _handle: RawHandle) -> SysResult<RawFd> {
        Err(Errno::ENOTSUP)
    }

    /// Binds the calling thread to a processor; `None` takes the binding away (processor_bind(2)).
    fn bind_thread(&self, cpu: Option<i32>) -> SysResult<()>;

    /// The calling thread.
    fn current_thread(&self) -> SysThread;

    /// Sends [`kick_signal`](Self::kick_signal) to a thread of the process that is alive.
    fn signal_thread(&self, thread: SysThread);

    /// The number, in illumos' numbering, of the signal that interrupts a vCPU thread's ioctl. It has a handler that
    /// does nothing.
    fn kick_signal(&self) -> i32;

    /// Blocks or unblocks the kick signal in the calling thread.
    fn block_kick_signal(&self, blocked: bool) -> SysResult<()>;

    /// Takes one pending kick signal away from the calling thread, which has it blocked, without running its handler
    /// (sigtimedwait(2) with time 0); `false` if none was pending.
    fn take_kick_signal(&self) -> bool;

    /// Looks a data link up by name.
    fn link(&self, name: &str) -> SysResult<Link>;

    /// Whether the process runs in the global zone.
    fn in_global_zone(&self) -> bool;
}

/// An open descriptor, closed when it is dropped.
pub struct Handle {
    sys: Arc<dyn Sys>,
    raw: RawHandle,
}

impl Handle {
    /// Opens `path`.
    ///
    /// # Errors
    /// What open(2) says.
    pub fn open(sys: &Arc<dyn Sys>, path: &str, flags: OpenFlags) -> SysResult<Self> {
        Ok(Self { sys: sys.clone(), raw: sys.open(path, flags)? })
    }

    /// The system it belongs to.
    #[must_use]
    pub fn sys(&self) -> &Arc<dyn Sys> {
        &self.sys
    }

    /// Its number.
    #[must_use]
    pub fn raw(&self) -> RawHandle {
        self.raw
    }

    /// An ioctl on it: see [`Sys::ioctl`].
    ///
    /// # Errors
    /// What ioctl(2) says.
    ///
    /// # Safety
    /// As for [`Sys::ioctl`].
    pub unsafe fn ioctl(&self, request: i32, arg: IoctlArg<'_>) -> SysResult<i32> {
        // SAFETY: the caller's promise.
        unsafe { self.sys.ioctl(self.raw, request, arg) }
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.sys.close(self.raw);
    }
}

/// A mapping of an open object, unmapped as a whole when it is dropped.
pub struct Mapping {
    sys: Arc<dyn Sys>,
    start: NonNull<u8>,
    len_bytes: usize,
}

// SAFETY: a mapping is an address range of the process; what is done through its address is the user's unsafe business.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Maps a part of `handle`'s object.
    ///
    /// # Errors
    /// What mmap(2) says.
    pub fn new(handle: &Handle, request: MapRequest) -> SysResult<Self> {
        let start = handle.sys.mmap(handle.raw, request)?;
        Ok(Self { sys: handle.sys.clone(), start, len_bytes: request.len_bytes })
    }

    /// Its first byte.
    #[must_use]
    pub fn start(&self) -> NonNull<u8> {
        self.start
    }

    /// Its length in bytes.
    #[must_use]
    pub fn len_bytes(&self) -> usize {
        self.len_bytes
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the whole mapping, and the owner of the last reference is gone.
        unsafe { self.sys.munmap(self.start, self.len_bytes) };
    }
}
