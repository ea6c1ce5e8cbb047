//! What a link is plugged into: a TAP interface of this machine, or the other end of a socket.

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixDatagram;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

use devices_host::sys::{Errno, Link, SysResult};
use devices_host::tap::{HEADER_BYTES, Interface, InterfaceEvents, Tap};

use crate::sys::translate;

/// The largest frame there can be, and more.
const MOST_FRAME_BYTES: usize = 1 << 17;

/// Who carries frames by a link: one at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Owner {
    Vnd,
    Dlpi,
}

pub(super) enum Medium {
    /// With its descriptor, for calls that need no lock.
    Tap(Mutex<Tap>, RawFd),
    Socket(UnixDatagram),
}

impl Medium {
    pub(super) fn tap(tap: Tap) -> Self {
        let fd = tap.as_raw_fd();
        Self::Tap(Mutex::new(tap), fd)
    }
}

/// A link.
pub(super) struct Wire {
    pub(super) facts: Link,
    medium: Medium,
    gone: AtomicBool,
    full: AtomicBool,
    carrier: AtomicBool,
    old: AtomicBool,
    owner: Mutex<Option<(Owner, usize)>>,
    /// A frame that a reader had no room for.
    held: Mutex<Option<Vec<u8>>>,
    /// Where those who watch it hear of changes.
    watchers: Mutex<Vec<UnixDatagram>>,
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Wire {
    pub(super) fn new(facts: Link, medium: Medium) -> Self {
        Self {
            facts,
            medium,
            gone: AtomicBool::new(false),
            full: AtomicBool::new(false),
            carrier: AtomicBool::new(true),
            old: AtomicBool::new(false),
            owner: Mutex::default(),
            held: Mutex::default(),
            watchers: Mutex::default(),
        }
    }

    /// Bytes of the largest frame, with a VLAN tag.
    pub(super) fn longest_frame_bytes(&self) -> usize {
        self.facts.mtu as usize + 18
    }

    pub(super) fn fd(&self) -> RawFd {
        match &self.medium {
            Medium::Tap(_, fd) => *fd,
            Medium::Socket(socket) => socket.as_raw_fd(),
        }
    }

    /// Has one more of these carry its frames; `false` where another kind does.
    pub(super) fn take(&self, owner: Owner) -> bool {
        let mut now = lock(&self.owner);
        match *now {
            Some((other, _)) if other != owner => false,
            Some((_, count)) => {
                *now = Some((owner, count + 1));
                true
            }
            None => {
                *now = Some((owner, 1));
                true
            }
        }
    }

    pub(super) fn leave(&self) {
        let mut now = lock(&self.owner);
        *now = now.and_then(|(owner, count)| (count > 1).then(|| (owner, count - 1)));
    }

    pub(super) fn is_gone(&self) -> bool {
        if !self.gone.load(Ordering::Acquire)
            && let Medium::Tap(tap, _) = &self.medium
            && InterfaceEvents::listen()
                .and_then(|events| events.interface_of(&lock(tap)))
                .is_ok_and(|now| now == Interface::Gone)
        {
            self.gone.store(true, Ordering::Release);
        }
        self.gone.load(Ordering::Acquire)
    }

    /// Takes the link away.
    pub(super) fn remove(&self) {
        self.gone.store(true, Ordering::Release);
        if let Medium::Socket(socket) = &self.medium {
            // Whoever polls it wakes.
            let _ = socket.shutdown(std::net::Shutdown::Both);
        }
        for watcher in lock(&self.watchers).drain(..) {
            let _ = watcher.send(&[0]);
        }
    }

    pub(super) fn set_full(&self, full: bool) {
        self.full.store(full, Ordering::Release);
    }

    /// It is of a kernel that has not learned to finish frames.
    pub(super) fn set_old(&self) {
        self.old.store(true, Ordering::Release);
    }

    pub(super) fn is_old(&self) -> bool {
        self.old.load(Ordering::Acquire)
    }

    pub(super) fn set_carrier(&self, up: bool) {
        self.carrier.store(up, Ordering::Release);
        lock(&self.watchers).retain(|watcher| watcher.send(&[u8::from(up)]).is_ok());
    }

    pub(super) fn has_carrier(&self) -> bool {
        self.carrier.load(Ordering::Acquire)
    }

    /// Sends a frame. What a link without a carrier is given is lost.
    pub(super) fn send(&self, frame: &[u8]) -> SysResult<()> {
        if self.gone.load(Ordering::Acquire) {
            return Err(Errno::ENXIO);
        }
        if self.full.load(Ordering::Acquire) {
            return Err(Errno::EAGAIN);
        }
        let result = match &self.medium {
            Medium::Socket(_) if !self.has_carrier() => return Ok(()),
            Medium::Socket(socket) => socket.send(frame).map(drop),
            Medium::Tap(_, fd) => {
                let header = [0; HEADER_BYTES];
                let parts = [io::IoSlice::new(&header), io::IoSlice::new(frame)];
                // SAFETY: `IoSlice` is an iovec; both parts live through the call, which reads them.
                let sent = unsafe { libc::writev(*fd, parts.as_ptr().cast(), 2) };
                if sent < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
            }
        };
        match result {
            Ok(()) => Ok(()),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Err(Errno::EAGAIN),
            // An interface that is down takes nothing: a link of illumos loses what it is given then.
            Err(error) if error.raw_os_error() == Some(libc::EIO) => Ok(()),
            Err(_) if self.is_gone() => Err(Errno::ENXIO),
            Err(error) if matches!(self.medium, Medium::Socket(_)) && error.raw_os_error() != Some(libc::EMSGSIZE) => {
                Err(Errno::ENXIO)
            }
            Err(error) => Err(translate(&error)),
        }
    }

    /// Hands the next frame to `take`, which says whether it takes it; one that is not taken is the next one again.
    pub(super) fn receive<T>(&self, take: impl FnOnce(&[u8]) -> SysResult<T>) -> SysResult<T> {
        let mut held = lock(&self.held);
        if self.gone.load(Ordering::Acquire) {
            return Err(Errno::ENXIO);
        }
        let frame = match held.take() {
            Some(frame) => frame,
            None => self.next()?,
        };
        let result = take(&frame);
        if result.is_err() {
            *held = Some(frame);
        }
        result
    }

    fn next(&self) -> SysResult<Vec<u8>> {
        let mut bytes = vec![0; MOST_FRAME_BYTES];
        // SAFETY: the buffer has the length given.
        let got = unsafe { libc::read(self.fd(), bytes.as_mut_ptr().cast(), bytes.len()) };
        match usize::try_from(got) {
            // The other end is gone, or nothing was sent.
            Ok(0) => Err(if self.gone.load(Ordering::Acquire) { Errno::ENXIO } else { Errno::EAGAIN }),
            Ok(len) => {
                bytes.truncate(len);
                if matches!(self.medium, Medium::Tap(..)) {
                    bytes.drain(..HEADER_BYTES.min(len));
                }
                Ok(bytes)
            }
            Err(_) => {
                let error = io::Error::last_os_error();
                match error.kind() {
                    io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted => Err(Errno::EAGAIN),
                    _ if self.is_gone() => Err(Errno::ENXIO),
                    // A TAP interface that is down.
                    _ => Err(Errno::EAGAIN),
                }
            }
        }
    }

    /// What hears of its going up and down.
    pub(super) fn watch(&self) -> io::Result<Ears> {
        match &self.medium {
            Medium::Tap(tap, _) => Ok(Ears::Tap(InterfaceEvents::listen()?, Mutex::new(lock(tap).try_clone()?))),
            Medium::Socket(_) => {
                let (ours, theirs) = UnixDatagram::pair()?;
                theirs.set_nonblocking(true)?;
                if !self.is_gone() {
                    lock(&self.watchers).push(ours);
                }
                Ok(Ears::Socket(theirs))
            }
        }
    }
}

/// What hears of a wire.
pub(super) enum Ears {
    Tap(InterfaceEvents, Mutex<Tap>),
    Socket(UnixDatagram),
}

impl Ears {
    pub(super) fn fd(&self) -> RawFd {
        match self {
            Self::Tap(events, _) => events.as_raw_fd(),
            Self::Socket(socket) => socket.as_raw_fd(),
        }
    }

    /// Forgets what was heard, and says how the wire is now: ENXIO where it is gone.
    pub(super) fn hear(&self, wire: &Wire) -> SysResult<bool> {
        match self {
            Self::Tap(events, tap) => {
                events.clear();
                match events.interface_of(&lock(tap)) {
                    Ok(Interface::Up) => Ok(true),
                    Ok(Interface::Down) => Ok(false),
                    Ok(Interface::Gone) => Err(Errno::ENXIO),
                    Err(error) => Err(translate(&error)),
                }
            }
            Self::Socket(socket) => {
                while socket.recv(&mut [0]).is_ok_and(|len| len > 0) {}
                if wire.is_gone() { Err(Errno::ENXIO) } else { Ok(wire.has_carrier()) }
            }
        }
    }
}
