//! A frame device: `/dev/vnd/LINK` (`usr/src/uts/common/io/vnd/vnd.c`, `usr/src/uts/common/io/frameio.c`).
//!
//! What the driver gets wrong, and what is therefore done here:
//!
//! * A call for several frames skips the check of their lengths and the account of their bytes: one frame a call.
//! * A vector that a frame does not reach keeps the length that was in it: every length is 0 before a call.
//! * An empty frame is told for ever that there is no room: no frame without an Ethernet header is sent.
//! * The descriptor polls writable unless the buffer is full to the last byte, whether the frame fits or not: who was refused
//!   waits a little ([`LinkFd::is_full`](crate::hypervisor::frames::LinkFd::is_full)).
//! * Where it was opened non-blocking by O_NDELAY, or exclusively, it is refused: it is made non-blocking afterwards.
//! * The error in a structure is set by calls that fail only; by those that ask for a frame's limits, which never fail, it is
//!   the only sign. The others' structures hold what was there before.

use std::sync::Arc;

use devices_host::sys::{Errno, Handle, IoctlArg, OpenFlags, RawHandle, Sys, SysResult};

use super::super::abi::vnd::{self, *};
use super::super::plain::{Plain, bytes_of_mut, zeroed};
use super::{FRAME_HEADER_BYTES, Verdict, uninterrupted};
use crate::hypervisor::frames::LinkError;

/// What qemu sets: the most that the driver allows unless somebody told it otherwise (`vnd_vdq_hard_max`).
const BUFFER_BYTES: u64 = 4 << 20;
/// Not less than this is worth it: the driver's own default (`vnd_vdq_default_size`).
const LEAST_BUFFER_BYTES: u64 = 64 << 10;

/// The device.
pub(super) struct Device {
    handle: Handle,
    /// Bytes of the smallest and the largest frame, with the Ethernet header.
    limits: (u64, u64),
}

impl Device {
    /// Opens the device of the link `name`: the one that the global zone made for the zone, or else, in the global zone, one of
    /// its own.
    pub(super) fn open(sys: &Arc<dyn Sys>, name: &str) -> Result<Self, LinkError> {
        let path = format!("/dev/vnd/{name}");
        let handle = match Handle::open(sys, &path, OpenFlags::READ_WRITE) {
            Ok(handle) => handle,
            Err(Errno::ENOENT) if sys.in_global_zone() => attach(sys, name)?,
            Err(Errno::ENOENT) => {
                let hint = format!("`vndadm create -z ZONE {name}` in the global zone makes it");
                return Err(LinkError::Config(format!("the zone has no frame device {path}: {hint}")));
            }
            Err(error @ (Errno::EPERM | Errno::EACCES)) => {
                return Err(LinkError::Config(format!("{path}: {error}: it takes the privilege net_rawaccess")));
            }
            Err(error) => return Err(LinkError::Host(format!("{path}: {error}"))),
        };
        let failed = |call: &'static str| move |error: Errno| LinkError::Host(format!("{path}: {call}: {error}"));
        let limits = (
            limit(&handle, VND_IOC_GETMINTU).map_err(failed.clone()("VND_IOC_GETMINTU"))?,
            limit(&handle, VND_IOC_GETMAXTU).map_err(failed.clone()("VND_IOC_GETMAXTU"))?,
        );
        for (request, call) in [(VND_IOC_SETRXBUF, "VND_IOC_SETRXBUF"), (VND_IOC_SETTXBUF, "VND_IOC_SETTXBUF")] {
            set_buffer(&handle, request, limits.1).map_err(failed.clone()(call))?;
        }
        sys.set_nonblocking(handle.raw()).map_err(failed("fcntl"))?;
        Ok(Self { handle, limits })
    }

    pub(super) fn handle(&self) -> RawHandle {
        self.handle.raw()
    }

    /// Sends the frame that `frame` lists.
    ///
    /// # Safety
    /// Its vectors point to memory that may be read.
    pub(super) unsafe fn send(&self, frame: &mut FrameVectors) -> Result<(), Verdict> {
        let len_bytes: usize = frame.listed().iter().map(|vector| vector.fv_buflen as usize).sum();
        if len_bytes < FRAME_HEADER_BYTES || !(self.limits.0..=self.limits.1).contains(&(len_bytes as u64)) {
            return Err(Verdict::Lost(Errno::ERANGE));
        }
        // SAFETY: the caller's promise.
        let sent = uninterrupted(|| unsafe { self.frame_call(VND_IOC_FRAMEIO_WRITE, frame) });
        sent.map_err(|error| match error {
            Errno::EAGAIN => Verdict::Wait,
            Errno::ENXIO | Errno::EBADF | Errno::ENODEV => Verdict::Gone(error),
            error => Verdict::Lost(error),
        })
    }

    /// Receives a frame into the memory that `frame` lists; its length in bytes.
    ///
    /// # Safety
    /// Its vectors point to memory that may be written.
    pub(super) unsafe fn receive(&self, frame: &mut FrameVectors) -> Result<usize, Verdict> {
        // SAFETY: the caller's promise.
        match uninterrupted(|| unsafe { self.frame_call(VND_IOC_FRAMEIO_READ, frame) }) {
            Ok(()) => Ok(frame.listed().iter().map(|vector| vector.fv_actlen as usize).sum()),
            Err(Errno::EAGAIN) => Err(Verdict::Wait),
            // The frame stays where it is.
            Err(error @ Errno::EOVERFLOW) => Err(Verdict::Lost(error)),
            Err(error) => Err(Verdict::Gone(error)),
        }
    }

    /// Bytes of the largest frame.
    pub(super) fn longest_frame_bytes(&self) -> usize {
        usize::try_from(self.limits.1).unwrap_or(usize::MAX)
    }

    unsafe fn frame_call(&self, request: i32, frame: &mut FrameVectors) -> SysResult<()> {
        frame.begin();
        // SAFETY: the argument is a frameio header with as many vectors behind it as it says; the caller vouches for them.
        unsafe { self.handle.ioctl(request, IoctlArg::Buffer(frame.bytes())) }.map(drop)
    }
}

/// The ioctl with a structure of the right size and without pointers.
fn ask<T: Plain>(handle: &Handle, request: i32, argument: &mut T) -> SysResult<()> {
    // SAFETY: the request's structure, and no pointer in it.
    unsafe { handle.ioctl(request, IoctlArg::Buffer(bytes_of_mut(argument))) }.map(drop)
}

/// A device of our own, which goes with its descriptor: it is linked into no name space.
fn attach(sys: &Arc<dyn Sys>, name: &str) -> Result<Handle, LinkError> {
    const CONTROL: &str = "/dev/vnd/ctl";
    let failed = |error: Errno| match error {
        Errno::ENOENT => LinkError::HostLacks(format!("{CONTROL}: {error}: frame devices (vnd) are SmartOS' alone")),
        error => LinkError::Host(format!("{CONTROL}: {error}")),
    };
    let handle = Handle::open(sys, CONTROL, OpenFlags::READ_WRITE).map_err(failed)?;
    let mut request: vnd_ioc_attach = zeroed();
    for (to, from) in request.via_name.iter_mut().take(VND_NAMELEN - 1).zip(name.bytes()) {
        *to = from;
    }
    request.via_zoneid = -1;
    match ask(&handle, VND_IOC_ATTACH, &mut request) {
        Ok(()) => Ok(handle),
        Err(error) => Err(match request.via_errno {
            vnd::errno::VND_E_DLEXCL => LinkError::Config(format!("link {name} is in use by somebody else")),
            vnd::errno::VND_E_NODATALINK => LinkError::Config(format!("the zone has no link {name}")),
            vnd::errno::VND_E_NOTETHER => LinkError::Config(format!("link {name} is no Ethernet")),
            vnd::errno::VND_E_BADNAME => LinkError::Config(format!("link {name} has a name that vnd does not take")),
            vnd::errno::VND_E_PERM => LinkError::Config(format!("link {name} belongs to another zone")),
            0 if matches!(error, Errno::EPERM | Errno::EACCES) => {
                let needs = "it takes the privileges sys_net_config and net_rawaccess";
                LinkError::Config(format!("link {name} cannot be attached: {error}: {needs}"))
            }
            0 => LinkError::Host(format!("link {name} cannot be attached: {error}")),
            number => LinkError::Host(format!("link {name} cannot be attached: {error} (vnd error {number})")),
        }),
    }
}

/// Bytes of the smallest or largest frame.
fn limit(handle: &Handle, request: i32) -> SysResult<u64> {
    let mut buffer: vnd_ioc_buf = zeroed();
    ask(handle, request, &mut buffer)?;
    if buffer.vib_errno != 0 { Err(Errno::EIO) } else { Ok(buffer.vib_size) }
}

/// Sets the size of a buffer: as much as qemu does, or what of it the driver allows. It tells its limit in the global zone
/// only.
fn set_buffer(handle: &Handle, request: i32, longest_frame_bytes: u64) -> SysResult<()> {
    let least_bytes = LEAST_BUFFER_BYTES.max(longest_frame_bytes);
    let mut size_bytes = BUFFER_BYTES.max(least_bytes);
    loop {
        let mut buffer: vnd_ioc_buf = zeroed();
        buffer.vib_size = size_bytes;
        match ask(handle, request, &mut buffer) {
            Err(_) if buffer.vib_errno == vnd::errno::VND_E_BUFTOOBIG && size_bytes > least_bytes => {
                size_bytes = (size_bytes / 2).max(least_bytes);
            }
            result => return result,
        }
    }
}

/// A frameio header with its vectors: where one frame lies. Its padding is a member.
#[repr(C)]
#[derive(Clone, Copy)]
pub(super) struct FrameVectors {
    fio_version: u32,
    fio_nvpf: u32,
    fio_nvecs: u32,
    _padding: u32,
    fio_vecs: [framevec; FRAMEIO_NVECS_MAX],
}

// SAFETY: four integers of 4 bytes, and vectors of three of 8 bytes each at an offset that is aligned for them.
unsafe impl Plain for FrameVectors {}

const HEADER_BYTES: usize = std::mem::offset_of!(FrameVectors, fio_vecs);
const _: () = assert!(HEADER_BYTES == size_of::<frameio>() && HEADER_BYTES == std::mem::offset_of!(frameio, fio_vecs));

impl FrameVectors {
    /// Most pieces of a frame.
    pub(super) const MOST: usize = FRAMEIO_NVECS_MAX;

    /// No piece.
    pub(super) fn new() -> Box<Self> {
        let mut vectors = Box::new(zeroed::<Self>());
        vectors.fio_version = FRAMEIO_VERSION;
        vectors
    }

    /// Lists these pieces of one frame, by address and length: at most [`MOST`](Self::MOST), none of them empty.
    pub(super) fn list(&mut self, pieces: impl Iterator<Item = (*mut u8, usize)>) {
        let mut count = 0;
        for (vector, (address, len)) in self.fio_vecs.iter_mut().zip(pieces) {
            *vector = framevec { fv_buf: address.expose_provenance() as u64, fv_buflen: len as u64, fv_actlen: 0 };
            count += 1;
        }
        self.fio_nvecs = count;
    }

    /// What is listed.
    fn listed(&self) -> &[framevec] {
        let count = (self.fio_nvecs as usize).min(self.fio_vecs.len());
        &self.fio_vecs[..count]
    }

    /// As a call wants it: the last one has left its answers.
    fn begin(&mut self) {
        self.fio_nvpf = self.fio_nvecs;
        self.fio_vecs.iter_mut().for_each(|vector| vector.fv_actlen = 0);
    }

    fn bytes(&mut self) -> &mut [u8] {
        let len = HEADER_BYTES + size_of_val(self.listed());
        &mut bytes_of_mut(self)[..len]
    }
}
