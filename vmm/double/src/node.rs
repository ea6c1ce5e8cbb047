//! What a driver of the double implements.

use std::any::Any;
use std::os::fd::RawFd;
use std::ptr::NonNull;
use std::sync::Arc;

use devices_host::sys::{
    DeviceNumber, Errno, IoctlArg, MapRequest, OpenFlags, RawHandle, Ready, StreamMessage, SysResult,
};

use crate::rules::{Ledger, Rule};
use crate::sys::DoubleSys;
use crate::zone::Zone;

/// A driver: opens the device nodes it serves, and keeps what outlives a process. One for all zones of a host.
pub trait Driver: Send + Sync {
    /// Whether it serves this path.
    fn serves(&self, path: &str) -> bool;

    /// Opens a node for a process. The zone has the node.
    ///
    /// # Errors
    /// What the kernel's driver says.
    fn open(&self, process: &DoubleSys, path: &str, flags: OpenFlags) -> SysResult<Arc<dyn Node>>;

    /// Its objects that live without an open handle, for the check at the end.
    fn leaks(&self) -> Vec<String>;
}

/// An open device.
pub trait Node: Any + Send + Sync {
    /// ioctl(2).
    ///
    /// # Errors
    /// What the kernel's driver says.
    ///
    /// # Safety
    /// As for [`Sys::ioctl`](devices_host::sys::Sys::ioctl).
    unsafe fn ioctl(&self, call: &Call<'_>, request: i32, arg: IoctlArg<'_>) -> SysResult<i32>;

    /// mmap(2). Gives the start of a mapping of this process of exactly the wanted length, made with mmap(2) of the
    /// machine: [`DoubleSys`] unmaps it.
    ///
    /// # Errors
    /// What the kernel's driver says; by default ENODEV.
    fn mmap(&self, _call: &Call<'_>, _request: MapRequest) -> SysResult<NonNull<u8>> {
        Err(Errno::ENODEV)
    }

    /// A mapping of [`mmap`](Self::mmap) is gone.
    fn unmapped(&self, _start: NonNull<u8>, _len_bytes: usize) {}

    /// The handle is closed; no call goes on or comes.
    fn close(&self) {}

    /// `st_rdev`.
    fn device_number(&self) -> DeviceNumber;

    /// read(2); by default ENXIO.
    ///
    /// # Errors
    /// What the kernel's driver says.
    fn read(&self, _call: &Call<'_>, _buffer: &mut [u8]) -> SysResult<usize> {
        Err(Errno::ENXIO)
    }

    /// write(2); by default ENXIO.
    ///
    /// # Errors
    /// What the kernel's driver says.
    fn write(&self, _call: &Call<'_>, _buffer: &[u8]) -> SysResult<usize> {
        Err(Errno::ENXIO)
    }

    /// pread(2); by default ENXIO.
    ///
    /// # Errors
    /// What the kernel's driver says.
    fn read_at(&self, _call: &Call<'_>, _buffer: &mut [u8], _offset_bytes: u64) -> SysResult<usize> {
        Err(Errno::ENXIO)
    }

    /// pwrite(2); by default ENXIO.
    ///
    /// # Errors
    /// What the kernel's driver says.
    fn write_at(&self, _call: &Call<'_>, _buffer: &[u8], _offset_bytes: u64) -> SysResult<usize> {
        Err(Errno::ENXIO)
    }

    /// A descriptor of the machine that polls readable while the device does; by default ENXIO.
    ///
    /// # Errors
    /// Where nobody waits for such a device.
    fn poll_fd(&self) -> SysResult<RawFd> {
        Err(Errno::ENXIO)
    }

    /// poll(2); by default ENXIO.
    ///
    /// # Errors
    /// What the kernel's driver says.
    fn poll(&self, _call: &Call<'_>, _interest: Ready, _timeout_ns: Option<u64>) -> SysResult<Ready> {
        Err(Errno::ENXIO)
    }

    /// putmsg(2); by default ENXIO, as of what is no stream.
    ///
    /// # Errors
    /// What the kernel's driver says.
    fn putmsg(&self, _call: &Call<'_>, _control: Option<&[u8]>, _data: Option<&[u8]>, _urgent: bool) -> SysResult<()> {
        Err(Errno::ENXIO)
    }

    /// getmsg(2); by default ENXIO.
    ///
    /// # Errors
    /// What the kernel's driver says.
    fn getmsg(&self, _call: &Call<'_>, _control: &mut [u8], _data: &mut [u8]) -> SysResult<StreamMessage> {
        Err(Errno::ENXIO)
    }
}

/// A call on an open device: who calls, and through which handle.
pub struct Call<'a> {
    /// The process.
    pub process: &'a DoubleSys,
    /// The handle.
    pub handle: RawHandle,
    /// How it was opened, and whether it has been made non-blocking.
    pub flags: OpenFlags,
}

impl Call<'_> {
    /// The caller's zone.
    #[must_use]
    pub fn zone(&self) -> &Zone {
        self.process.zone()
    }

    /// The book of broken rules.
    #[must_use]
    pub fn ledger(&self) -> &Ledger {
        self.process.ledger()
    }

    /// Another open device of the process, as a descriptor number in an argument names it.
    #[must_use]
    pub fn other(&self, handle: RawHandle) -> Option<Arc<dyn Node>> {
        self.process.node(handle)
    }

    /// Takes a violation down, and gives the error that the call fails with.
    pub fn refuse(&self, rule: &'static Rule, errno: Errno, detail: impl Into<String>) -> Errno {
        self.ledger().refuse(rule, errno, detail)
    }

    /// Takes a violation down that the kernel would not have noticed.
    pub fn note(&self, rule: &'static Rule, detail: impl Into<String>) {
        self.ledger().note(rule, detail);
    }
}
