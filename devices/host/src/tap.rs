//! TAP devices: a network link whose other end is the host's network stack, or the network of another interface (macvtap).
//!
//! A device has one queue or several, each with a descriptor: the kernel gives the frames of one flow to one of those that
//! are attached.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};

use vm_memory::GuestMemoryMmap;

use crate::iovec::{FrameError, GuestRange, VectorBuffer};
use crate::os;

/// Bytes of the header before every frame: `struct virtio_net_hdr_v1`.
pub const HEADER_BYTES: usize = 12;

/// That of a legacy driver without mergeable buffers: `struct virtio_net_hdr`.
pub const SHORT_HEADER_BYTES: usize = 10;

/// Most bytes of a link's name.
pub const LONGEST_NAME_BYTES: usize = os::tap::LONGEST_NAME_BYTES;

/// Why a TAP device cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TapError {
    /// No interface can have such a name.
    #[error("\"{0}\" is no name of a network interface: 1 to 15 characters without / or spaces")]
    BadName(String),
    /// There is none of that name.
    #[error("TAP device {0} does not exist: create it with `ip tuntap add dev {0} mode tap`")]
    Missing(String),
    /// Another process has it open.
    #[error("TAP device {0} is in use by another process")]
    InUse(String),
    /// The interface is something else.
    #[error("{0} is not a TAP device with one queue")]
    NotATap(String),
    /// The interface is something else, or has one queue.
    #[error("{0} is not a TAP device with several queues: create it with `ip tuntap add dev {0} mode tap multi_queue`")]
    NotSeveral(String),
    /// The interface is something else.
    #[error("{0} is not a macvtap interface: create it with `ip link add link ... name {0} type macvtap`")]
    NotAMacvtap(String),
    /// There is no such descriptor, or it is something else.
    #[error("file descriptor {fd} {problem}")]
    BadFd {
        /// Its number.
        fd: RawFd,
        /// What it is not.
        problem: &'static str,
    },
    /// The user may not.
    #[error(
        "no permission to open TAP device {0}: it belongs to another user (`ip tuntap add dev {0} mode tap user ...`)"
    )]
    Permission(String),
    /// The system has no TAP devices, or does not let us at them.
    #[error("cannot open /dev/net/tun: {0}")]
    NoTun(io::Error),
    /// A call failed.
    #[error("TAP device {name}: {call}: {error}")]
    Call {
        /// The device.
        name: String,
        /// The call.
        call: &'static str,
        /// What it said.
        error: io::Error,
    },
    /// Not on this system.
    #[error("TAP devices are not supported here yet: use a VNIC (viona)")]
    Unsupported,
}

/// What received frames may leave unfinished, because the guest can finish it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Offloads {
    /// Partial checksums. The others need it.
    pub csum: bool,
    /// Large TCP over IPv4 segments.
    pub tso4: bool,
    /// Large TCP over IPv6 segments.
    pub tso6: bool,
    /// Large segments with ECN.
    pub ecn: bool,
    /// UDP datagrams in one segment, over IPv4 and IPv6. Kernels before Linux 6.2 know none.
    pub uso: bool,
}

/// What has become of a TAP device's interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Interface {
    /// It carries frames, or is out of sight in another network namespace.
    Up,
    /// It was set down: what is sent is refused, and nothing is received.
    Down,
    /// It was deleted, for good: one of the same name is another one.
    Gone,
}

/// Hears of every change to the system's network interfaces. The descriptor polls readable when there may have been one.
#[derive(Debug)]
pub struct InterfaceEvents(os::tap::Events);

impl InterfaceEvents {
    /// Begins to listen, in the network namespace of the calling thread.
    ///
    /// # Errors
    /// When the process has no descriptors left, or may not.
    pub fn listen() -> io::Result<Self> {
        os::tap::Events::listen().map(Self)
    }

    /// Forgets what was heard so far. What to look at is looked at after that: a change that comes meanwhile is heard.
    pub fn clear(&self) {
        self.0.clear();
    }

    /// How the interface of `tap` is now, whatever was heard.
    ///
    /// # Errors
    /// When the system does not say.
    pub fn interface_of(&self, tap: &Tap) -> io::Result<Interface> {
        self.0.interface_of(&tap.device)
    }
}

impl AsRawFd for InterfaceEvents {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

/// An open TAP device. Reads and writes never block; the descriptor polls.
#[derive(Debug)]
pub struct Tap {
    device: os::tap::Device,
    buffer: VectorBuffer,
}

impl Tap {
    /// Opens the existing TAP device `name`, every frame with a 12-byte header before it, no offloads.
    ///
    /// # Errors
    /// See [`TapError`].
    pub fn open(name: &str) -> Result<Self, TapError> {
        check_name(name)?;
        os::tap::Device::open(name, false).map(Self::of)
    }

    /// Opens the existing TAP device `name` so many times, a queue each, as [`open`](Self::open) does. The first queue is
    /// [attached](Self::set_attached); with more than one the others are not.
    ///
    /// # Errors
    /// See [`TapError`]. A device with several queues that is down may be in use by another process all the same.
    pub fn open_queues(name: &str, queues: u16) -> Result<Vec<Self>, TapError> {
        check_name(name)?;
        if queues < 2 {
            return Ok(vec![Self::open(name)?]);
        }
        os::tap::check_unused(name)?;
        let open = |_| os::tap::Device::open(name, true).map(Self::of);
        let taps: Vec<Self> = (0..queues).map(open).collect::<Result<_, _>>()?;
        detach_further(name, &taps)?;
        Ok(taps)
    }

    /// Opens the macvtap interface `name` so many times, a queue each, as [`open_queues`](Self::open_queues) does.
    ///
    /// # Errors
    /// See [`TapError`]. Whether another process has it open cannot be seen.
    pub fn open_macvtap(name: &str, queues: u16) -> Result<Vec<Self>, TapError> {
        check_name(name)?;
        let open = |_| os::tap::Device::open_macvtap(name, queues > 1).map(Self::of);
        let taps: Vec<Self> = (0..queues.max(1)).map(open).collect::<Result<_, _>>()?;
        detach_further(name, &taps)?;
        Ok(taps)
    }

    /// Takes over TAP or macvtap descriptors that the process was started with, a queue of the same device each.
    ///
    /// # Errors
    /// [`TapError::BadFd`] where one is not open, is something else, has not been set up for frames with a header
    /// (`IFF_TAP`, `IFF_NO_PI` and `IFF_VNET_HDR`), or is of another device than the first.
    pub fn inherit(fds: &[RawFd]) -> Result<Vec<Self>, TapError> {
        let several = fds.len() > 1;
        let mut first = None;
        let mut taps = Vec::new();
        for &fd in fds {
            let (device, name) = os::tap::Device::inherit(fd, several)?;
            if *first.get_or_insert_with(|| name.clone()) != name {
                return Err(TapError::BadFd { fd, problem: "is of another interface than the first one" });
            }
            taps.push(Self::of(device));
        }
        if let Some(name) = first {
            detach_further(&name, &taps)?;
        }
        Ok(taps)
    }

    fn of(device: os::tap::Device) -> Self {
        Self { device, buffer: VectorBuffer::with_capacity(64) }
    }

    /// Has the kernel give frames to this queue, or give it none, and forget those it has; of a device with several queues.
    /// What is sent goes either way. May take a few milliseconds.
    ///
    /// # Errors
    /// What the system says: `EINVAL` where it is as it shall be.
    pub fn set_attached(&self, attached: bool) -> io::Result<()> {
        self.device.set_attached(attached)
    }

    /// A second handle to the same device and queue, for a worker that only sends or only receives.
    ///
    /// # Errors
    /// When the process has no descriptors left.
    pub fn try_clone(&self) -> io::Result<Self> {
        self.device.try_clone().map(Self::of)
    }

    /// Whether it takes UDP datagrams in segments, and gives them so to who can finish them. Received frames come with nothing
    /// left unfinished after this.
    pub fn has_udp_segments(&self) -> bool {
        let asked = Offloads { csum: true, uso: true, ..Offloads::default() };
        let has = self.set_offloads(asked).is_ok();
        self.set_offloads(Offloads::default()).is_ok() && has
    }

    /// Says what received frames may look like from now on.
    ///
    /// # Errors
    /// What the system says, most likely that it is too old for one of them.
    pub fn set_offloads(&self, offloads: Offloads) -> io::Result<()> {
        self.device.set_offloads(offloads)
    }

    /// Has every frame begin with a header of `len_bytes`: [`HEADER_BYTES`], as after it was opened, or
    /// [`SHORT_HEADER_BYTES`]. For whoever moves frames by other means than [`send`](Self::send) and
    /// [`receive`](Self::receive), which know the longer one alone.
    ///
    /// # Errors
    /// What the system says.
    pub fn set_header_bytes(&self, len_bytes: usize) -> io::Result<()> {
        self.device.set_header_bytes(len_bytes)
    }

    /// The largest packet of its interface now, without the Ethernet header. The interface is looked for in the network
    /// namespace of the calling thread.
    ///
    /// # Errors
    /// What the system says.
    pub fn mtu(&self) -> io::Result<u32> {
        self.device.mtu()
    }

    /// Sends one frame: `header`, of [`HEADER_BYTES`] and possibly with the frame's first bytes, and then guest memory. How
    /// many bytes went, the header's included.
    ///
    /// # Errors
    /// `WouldBlock` where the link takes nothing now; `EIO` where the interface is down; see [`FrameError`].
    pub fn send(
        &mut self,
        mem: &GuestMemoryMmap<()>,
        header: &[u8],
        frame: impl IntoIterator<Item = GuestRange, IntoIter: Clone>,
    ) -> Result<usize, FrameError> {
        self.buffer.write_frame(self.device.as_fd(), mem, header, frame)
    }

    /// Receives one frame: into guest memory, and what does not fit there into `spill`. How many bytes came, the
    /// header's included; a frame longer than header, memory and spill together is cut.
    ///
    /// # Errors
    /// `WouldBlock` where no frame waits; see [`FrameError`].
    pub fn receive(
        &mut self,
        mem: &GuestMemoryMmap<()>,
        header: &mut [u8; HEADER_BYTES],
        into: impl IntoIterator<Item = GuestRange, IntoIter: Clone>,
        spill: &mut [u8],
    ) -> Result<usize, FrameError> {
        self.buffer.read_frame(self.device.as_fd(), mem, header, into, spill)
    }
}

fn check_name(name: &str) -> Result<(), TapError> {
    let is_good = |byte: u8| byte.is_ascii_graphic() && byte != b'/' && byte != b'%';
    let bad = name.is_empty() || name.len() > 15 || name == "." || name == ".." || !name.bytes().all(is_good);
    if bad { Err(TapError::BadName(name.to_owned())) } else { Ok(()) }
}

/// Leaves the first queue attached alone.
fn detach_further(name: &str, taps: &[Tap]) -> Result<(), TapError> {
    let failed = |error| TapError::Call { name: name.to_owned(), call: "TUNSETQUEUE", error };
    taps.iter().skip(1).try_for_each(|tap| tap.set_attached(false)).map_err(failed)
}

impl AsFd for Tap {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.device.as_fd()
    }
}

impl AsRawFd for Tap {
    fn as_raw_fd(&self) -> RawFd {
        self.device.as_fd().as_raw_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_no_interface_can_have_are_refused() {
        for name in ["", "a/b", "sixteen-letters-", "a b", "tap%d", "..", "tap\n"] {
            let message = Tap::open(name).unwrap_err().to_string();
            assert_eq!(
                message,
                format!("\"{name}\" is no name of a network interface: 1 to 15 characters without / or spaces")
            );
        }
    }
}
