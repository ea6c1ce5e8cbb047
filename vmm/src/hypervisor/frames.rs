//! Links of the host that carry plain Ethernet frames: no header of virtio's before them, no checksum left to anybody, no
//! segmentation.

use std::os::fd::RawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};

use devices::GuestRam;
use devices::virtio::net::NetBackend;
use devices::wake::Wake;

/// What of the host's carries the frames of a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FrameDevice {
    /// A frame device of illumos' kvm brand (`/dev/vnd/LINK`).
    Vnd,
    /// A stream of the data link provider interface (`/dev/net/LINK`).
    Dlpi,
}

/// Why a link cannot be used: one line, that does not yet name the guest's interface.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// The configuration names what nobody can use.
    #[error("{0}")]
    Config(String),
    /// The host has no such device at all.
    #[error("{0}")]
    HostLacks(String),
    /// A call failed that should not fail.
    #[error("{0}")]
    Host(String),
}

/// How a link is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LinkState {
    /// Frames go through.
    Up,
    /// What it is plugged into carries nothing now.
    Down,
    /// It is not there, or failed: it is looked for again every second.
    Gone,
}

/// A link of the host that is open.
pub trait FrameLink: Send + Sync {
    /// Its address, where the host tells it: the guest's, unless another one is configured.
    fn mac(&self) -> Option<[u8; 6]>;

    /// Its largest packet, in bytes without the Ethernet header.
    fn mtu(&self) -> u32;

    /// The end for one more worker.
    fn end(self: Arc<Self>) -> FrameEnd;

    /// What polls readable when [`look`](Self::look) may have something new; -1 where nothing tells.
    fn events_fd(&self) -> RawFd;

    /// Has this woken when a worker finds that the link failed.
    fn on_failure(&self, wake: Arc<dyn Wake>);

    /// When [`look`](Self::look) is due without an event, in nanoseconds of the monotonic clock: never, while the link is there.
    fn deadline_ns(&self) -> Option<u64>;

    /// How the link is now. Takes the events off [`events_fd`](Self::events_fd), and looks for a link that is gone. Ends
    /// that exist go on with what it finds.
    fn look(&self, now_ns: u64) -> LinkState;
}

/// One worker's end of a link.
pub struct FrameEnd {
    /// Moves the frames.
    pub backend: Box<dyn NetBackend<GuestRam>>,
    /// What the worker's thread waits for.
    pub ready: Arc<LinkFd>,
}

/// The descriptor of a link that may be opened anew while its workers wait for it.
#[derive(Debug)]
pub struct LinkFd {
    fd: AtomicI32,
    full: AtomicBool,
}

impl LinkFd {
    /// A link whose descriptor is `fd` now.
    #[must_use]
    pub fn new(fd: RawFd) -> Self {
        Self { fd: AtomicI32::new(fd), full: AtomicBool::new(false) }
    }

    /// The descriptor.
    pub fn get(&self) -> RawFd {
        self.fd.load(Ordering::Acquire)
    }

    /// The link was opened anew.
    pub fn set(&self, fd: RawFd) {
        self.fd.store(fd, Ordering::Release);
    }

    /// Whether the link takes no frame, and its descriptor does not tell when it does: who has one tries again a little
    /// later.
    pub fn is_full(&self) -> bool {
        self.full.load(Ordering::Relaxed)
    }

    /// See [`is_full`](Self::is_full). Set and looked at by one thread.
    pub fn set_full(&self, full: bool) {
        self.full.store(full, Ordering::Relaxed);
    }
}
