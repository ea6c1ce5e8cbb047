//! Disks that are volumes (zvols), by their raw device and through [`Sys`]: the same code on illumos and over a double.
//!
//! What makes a write durable is the volume's write cache, not the open: while it is off every write is in the intent log
//! before it returns, while it is on only a flush puts it there. The cache is one flag of the volume and outlives whoever
//! set it, so it is read when the volume is opened, set whatever it was, switched as the driver negotiates, and put back
//! at the end.
//!
//! Guest memory never reaches the kernel: system calls on it contend for the lock of its mapping there, and hold up
//! whatever changes the address space. Data goes through buffers of the process, which are all that a volume knows.

use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::bounce::Room;
use crate::disk::DiskProblem;
use crate::engine::Op;
use crate::iovec::Vectors;
use crate::sys::dkio::{self, Media};
use crate::sys::{Errno, Handle, OpenAccess, OpenFlags, RawHandle, Sys, SysResult};

/// Bytes of zeroes that one call writes: some of the largest blocks a volume can have.
const ZEROES_BYTES: usize = 1 << 20;

/// An open volume. Nobody else writes to it: a writer opens it exclusively.
pub struct Volume {
    cache: WriteCache,
    media: Media,
    can_free: bool,
}

impl Volume {
    /// Opens the raw device at `path`, asks for its shape, and turns its write cache off.
    ///
    /// # Errors
    /// See [`DiskProblem`]. A volume that is read-only is no reason to give the guest a read-only disk that was not asked
    /// for.
    pub fn open(sys: &Arc<dyn Sys>, path: &Path, read_only: bool) -> Result<Self, DiskProblem> {
        let name = path.to_str().ok_or_else(|| DiskProblem::Open(io::ErrorKind::InvalidFilename.into()))?;
        let access = if read_only { OpenAccess::Read } else { OpenAccess::ReadWrite };
        let flags = OpenFlags { access, exclusive: !read_only, nonblocking: false };
        let handle = again(|| Handle::open(sys, name, flags)).map_err(|errno| match errno {
            Errno::EBUSY => DiskProblem::InUse,
            Errno::EROFS => DiskProblem::WriteProtected,
            errno => DiskProblem::Open(host_error(errno)),
        })?;
        let query = |what| move |errno| DiskProblem::Query { what, error: host_error(errno) };
        let media = again(|| dkio::media(&**sys, handle.raw())).map_err(|errno| match errno {
            Errno::ENOTTY => DiskProblem::NotADisk("character device"),
            errno => query("read its size")(errno),
        })?;
        let cache = WriteCache::take_over(handle, read_only).map_err(query("set its write cache"))?;
        let can_free = !read_only && dkio::can_free(&**sys, cache.raw());
        Ok(Self { cache, media, can_free })
    }

    /// Its size and block sizes.
    #[must_use]
    pub fn media(&self) -> Media {
        self.media
    }

    /// What it holds now, in bytes, where [`media`](Self::media) is from when it was opened.
    ///
    /// # Errors
    /// What the volume says.
    pub fn bytes_now(&self) -> io::Result<u64> {
        again(|| dkio::media(self.sys(), self.cache.raw())).map(|media| media.size_bytes).map_err(host_error)
    }

    /// Whether it can give space back.
    #[must_use]
    pub fn can_free(&self) -> bool {
        self.can_free
    }

    /// Switches the volume's write cache, where that is a change. Costs one atomic load where it is none; where it is one,
    /// off means that everything written is in the intent log when this returns. A volume that refuses is used as one
    /// whose cache is on, and flushed for every durable write.
    pub fn set_write_cache(&self, on: bool) {
        self.cache.set(on);
    }

    /// Fills `buffer` from `offset_bytes`.
    ///
    /// # Errors
    /// What the volume says; `UnexpectedEof` where it ends before. Some of the buffer may have been written.
    pub fn read_exact_at(&self, mut buffer: &mut [u8], mut offset_bytes: u64) -> io::Result<()> {
        while !buffer.is_empty() {
            let moved = again(|| self.sys().read_at(self.cache.raw(), buffer, offset_bytes)).map_err(host_error)?;
            if moved == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            buffer = buffer.get_mut(moved..).unwrap_or_default();
            offset_bytes += moved as u64;
        }
        Ok(())
    }

    /// Writes all of `bytes` at `offset_bytes`. They are on stable storage when this returns where it is part of the work
    /// that [`durably`](Self::durably) does.
    ///
    /// # Errors
    /// What the volume says; some of it may have been written.
    pub fn write_all_at(&self, mut bytes: &[u8], mut offset_bytes: u64) -> io::Result<()> {
        while !bytes.is_empty() {
            let moved = again(|| self.sys().write_at(self.cache.raw(), bytes, offset_bytes)).map_err(host_error)?;
            if moved == 0 {
                return Err(io::ErrorKind::WriteZero.into());
            }
            bytes = bytes.get(moved..).unwrap_or_default();
            offset_bytes += moved as u64;
        }
        Ok(())
    }

    /// Writes zeroes, `zeroes` of this process at a time: a freed range is not promised to read as such, and a volume that
    /// compresses stores none of them anyway. `go_on` is asked between the steps.
    ///
    /// # Errors
    /// As [`write_all_at`](Self::write_all_at); `Interrupted` where `go_on` said no.
    pub fn write_zeroes(
        &self,
        offset_bytes: u64,
        len_bytes: u64,
        zeroes: &[u8],
        go_on: &dyn Fn() -> bool,
    ) -> io::Result<()> {
        let end = offset_bytes.checked_add(len_bytes).ok_or(io::ErrorKind::InvalidInput)?;
        let mut at = offset_bytes;
        while at < end {
            if !go_on() {
                return Err(io::ErrorKind::Interrupted.into());
            }
            let len = usize::try_from(end - at).unwrap_or(usize::MAX).min(zeroes.len());
            self.write_all_at(&zeroes[..len], at)?;
            at += len as u64;
        }
        Ok(())
    }

    /// Does `work`, all of whose writes are on stable storage when this returns, where it returns without an error. That
    /// costs a flush only where the write cache may have been on meanwhile.
    ///
    /// # Errors
    /// That of `work`, or of the flush.
    pub fn durably(&self, work: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
        let before = self.cache.era();
        work()?;
        if before.is_off() && self.cache.era() == before { Ok(()) } else { self.flush() }
    }

    /// Puts everything written so far on stable storage. By the request of its own and through the descriptor that wrote:
    /// fsync(2) is passed over where the kernel believes that nothing happened through the descriptor.
    ///
    /// # Errors
    /// What the volume says.
    pub fn flush(&self) -> io::Result<()> {
        again(|| dkio::flush(self.sys(), self.cache.raw())).map_err(host_error)
    }

    /// Gives the range's space back; what it reads as afterwards is undefined: some kernels do nothing, and say that they
    /// did. For a driver that cannot flush, or does not want to, it is given back when this returns.
    ///
    /// # Errors
    /// `Unsupported` where the volume cannot; what it says otherwise.
    pub fn discard(&self, offset_bytes: u64, len_bytes: u64) -> io::Result<()> {
        if !self.can_free {
            return Err(io::ErrorKind::Unsupported.into());
        }
        let wait = self.cache.is_write_through();
        again(|| dkio::free(self.sys(), self.cache.raw(), offset_bytes, len_bytes, wait)).map_err(|errno| match errno {
            Errno::ENOTTY | Errno::ENOTSUP => io::ErrorKind::Unsupported.into(),
            errno => host_error(errno),
        })
    }

    /// Does a request of an engine, whose place is an offset and a length; its data goes by way of `room`. `go_on` is asked
    /// between the pieces.
    ///
    /// # Errors
    /// What the volume says; `Interrupted` where `go_on` said no.
    pub(crate) fn run(
        &self,
        op: Op,
        (offset_bytes, len_bytes): (u64, u64),
        vectors: Vectors<'_>,
        room: &mut Room<'_>,
        go_on: &dyn Fn() -> bool,
    ) -> io::Result<()> {
        match op {
            Op::Read => room.carry_bytes(vectors, offset_bytes, true, go_on, |bytes, at| self.read_exact_at(bytes, at)),
            Op::Write { durable } => self.durably_if(durable, || {
                room.carry_bytes(vectors, offset_bytes, false, go_on, |bytes, at| self.write_all_at(bytes, at))
            }),
            Op::Flush => self.flush(),
            Op::Discard => self.discard(offset_bytes, len_bytes),
            Op::WriteZeroes { durable, .. } => self
                .durably_if(durable, || self.write_zeroes(offset_bytes, len_bytes, room.zeroes(ZEROES_BYTES), go_on)),
        }
    }

    fn durably_if(&self, durable: bool, work: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
        if durable { self.durably(work) } else { work() }
    }

    fn sys(&self) -> &dyn Sys {
        &**self.cache.handle.sys()
    }
}

impl std::fmt::Debug for Volume {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Volume").field("media", &self.media).field("can_free", &self.can_free).finish_non_exhaustive()
    }
}

/// The time between two switches of the write cache; odd while writes may stay in it.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Era(u64);

impl Era {
    const MAYBE_ON: Self = Self(1);

    fn is_off(self) -> bool {
        self.0.is_multiple_of(2)
    }

    fn next(self) -> Self {
        Self(self.0.wrapping_add(1))
    }

    /// This one, or the next, so that writes may stay in the cache.
    fn maybe_on(self) -> Self {
        if self.is_off() { self.next() } else { self }
    }
}

/// The write cache of an open volume, put back as it was found when this is dropped, just before the volume is closed.
struct WriteCache {
    handle: Handle,
    /// As it was found; `None` where there is nothing to switch.
    found: Option<bool>,
    /// What was asked for last.
    asked: AtomicBool,
    /// See [`Era`]. It changes before the cache is turned on and after it was turned off, so that whoever sees one and the
    /// same "off" before and after a write knows that the write was made without it.
    era: AtomicU64,
    /// What the volume has agreed to, if that is certain; held while switching.
    agreed: Mutex<Option<bool>>,
}

impl WriteCache {
    /// Turns the cache off. On a disk that will not be written to, it stays as it is.
    fn take_over(handle: Handle, read_only: bool) -> SysResult<Self> {
        let ask = || dkio::write_cache(&**handle.sys(), handle.raw());
        let found = match if read_only { Ok(None) } else { again(ask).map(Some) } {
            Ok(found) => found,
            // It may have one all the same.
            Err(Errno::ENOTTY | Errno::ENOTSUP) => None,
            Err(errno) => return Err(errno),
        };
        let mut cache = Self {
            handle,
            found,
            asked: AtomicBool::new(false),
            era: AtomicU64::new(Era::MAYBE_ON.0),
            agreed: Mutex::new(found),
        };
        if found.is_none() {
            return Ok(cache);
        }
        // Also where it is off already: it is said, not assumed.
        let said = cache.switch(&mut cache.agreed(), false);
        match said {
            Ok(()) => {}
            Err(Errno::ENOTTY | Errno::ENOTSUP) => cache.found = None,
            Err(errno) => return Err(errno),
        }
        Ok(cache)
    }

    fn raw(&self) -> RawHandle {
        self.handle.raw()
    }

    fn era(&self) -> Era {
        Era(self.era.load(Ordering::SeqCst))
    }

    /// Whether whoever drives the disk cannot flush, or does not want to.
    fn is_write_through(&self) -> bool {
        !self.asked.load(Ordering::Acquire)
    }

    fn set(&self, on: bool) {
        if self.asked.load(Ordering::Acquire) == on {
            return;
        }
        self.asked.store(on, Ordering::Release);
        if self.found.is_none() {
            return;
        }
        let mut agreed = self.agreed();
        // Of several workers with different news, the one that spoke last is right.
        let on = self.asked.load(Ordering::Acquire);
        if *agreed == Some(on) {
            return;
        }
        if let Err(errno) = self.switch(&mut agreed, on) {
            let state = if on { "on" } else { "off" };
            log::error!("a volume's write cache cannot be turned {state}: {errno}; durable writes are flushed");
        }
    }

    fn agreed(&self) -> MutexGuard<'_, Option<bool>> {
        self.agreed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn switch(&self, agreed: &mut Option<bool>, on: bool) -> SysResult<()> {
        let maybe_on = self.era().maybe_on();
        self.era.store(maybe_on.0, Ordering::SeqCst);
        *agreed = None;
        again(|| dkio::set_write_cache(&**self.handle.sys(), self.raw(), on))?;
        *agreed = Some(on);
        if !on {
            self.era.store(maybe_on.next().0, Ordering::SeqCst);
        }
        Ok(())
    }
}

impl Drop for WriteCache {
    fn drop(&mut self) {
        let mut agreed = self.agreed();
        if let Some(found) = self.found.filter(|_| *agreed != self.found)
            && let Err(errno) = self.switch(&mut agreed, found)
        {
            log::error!("a volume's write cache cannot be put back: {errno}");
        }
    }
}

/// Calls until no signal interrupts.
fn again<T>(mut call: impl FnMut() -> SysResult<T>) -> SysResult<T> {
    loop {
        match call() {
            Err(Errno::EINTR) => {}
            result => return result,
        }
    }
}

/// The error under the host's own number where that is the same, as all up to ERANGE are: what is done about a full disk
/// depends on it.
fn host_error(errno: Errno) -> io::Error {
    if (1..=Errno::ERANGE.0).contains(&errno.0) { io::Error::from_raw_os_error(errno.0) } else { errno.to_io_error() }
}
