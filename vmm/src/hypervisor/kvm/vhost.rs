//! A card's data queues in the kernel: vhost-net, over a TAP device.
//!
//! The kernel finds rings and buffers by the table of guest memory that it was given, wakes up by an eventfd that KVM signals
//! for the guest's doorbell, and signals another one that KVM makes the guest's interrupt. What it cannot send, as there is
//! no message for it, it signals to a third one that somebody waits for. (Linux `include/uapi/linux/vhost.h`,
//! `drivers/vhost/net.c`.)

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use devices::GuestRam;
use devices::interrupt::MsiMessage;
use devices::virtio::QueueState;
use devices::virtio::net::kernel::{KernelError, KernelQueues, Reception, Window};
use devices::virtio::pci::NOTIFY_MULTIPLIER;
use devices_host::tap::{HEADER_BYTES, Offloads, SHORT_HEADER_BYTES, Tap};
use vhost::net::VhostNet;
use vhost::vhost_kern::VhostKernBackend;
use vhost::vhost_kern::net::Net;
use vhost::{Error, VhostUserMemoryRegionInfo, VringConfigData};
use vm_memory::{Address, Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryRegion};
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::irq::MessageFd;
use super::{HypervisorError, os_message};
use crate::hypervisor::{DoorbellAddress, HardwareDoorbells, KernelNic};

const DEVICE: &str = "/dev/vhost-net";

/// Rings of an instance: one to receive, one to send.
const RINGS: usize = 2;

/// Features of virtio 1.3 §5.1.3 and §6 that somebody else than the rings' driver has: the TAP device.
const OF_THE_TAP: u64 = CSUM | GUEST_CSUM | GUEST_TSO4 | GUEST_TSO6 | GUEST_ECN | HOST_TSO4 | HOST_TSO6 | HOST_ECN;
const CSUM: u64 = 1;
const GUEST_CSUM: u64 = 1 << 1;
const GUEST_TSO4: u64 = 1 << 7;
const GUEST_TSO6: u64 = 1 << 8;
const GUEST_ECN: u64 = 1 << 9;
const HOST_TSO4: u64 = 1 << 11;
const HOST_TSO6: u64 = 1 << 12;
const HOST_ECN: u64 = 1 << 13;
const MRG_RXBUF: u64 = 1 << 15;
const INDIRECT_DESC: u64 = 1 << 28;
const EVENT_IDX: u64 = 1 << 29;
const VERSION_1: u64 = 1 << 32;
/// Those it is told of. Others of its bits mean something else than to a guest: with 27 it makes up headers itself.
const OF_THE_RINGS: u64 = MRG_RXBUF | INDIRECT_DESC | EVENT_IDX | VERSION_1;

/// One instance of the driver, with a TAP device behind it.
pub struct Vhost<K> {
    kernel: K,
    ram: GuestRam,
    name: String,
    frames: Mutex<Box<dyn Frames>>,
    /// The same device, in the form that the driver is given.
    backend: File,
    /// What the driver has of [`OF_THE_RINGS`].
    features: u64,
    rings: [Ring; RINGS],
    doorbells: Arc<dyn HardwareDoorbells>,
    /// Those that are watched, by ring.
    bound: Mutex<Vec<(usize, DoorbellAddress)>>,
    /// Readable while one of the rings' `waiting` or `broken` is.
    ready: Epoll,
}

/// What is said to the TAP device itself.
trait Frames: Send {
    /// See [`Tap::set_header_bytes`].
    fn set_header_bytes(&self, len_bytes: usize) -> io::Result<()>;

    /// See [`Tap::set_offloads`].
    fn set_offloads(&self, offloads: Offloads) -> io::Result<()>;
}

impl Frames for Tap {
    fn set_header_bytes(&self, len_bytes: usize) -> io::Result<()> {
        Tap::set_header_bytes(self, len_bytes)
    }

    fn set_offloads(&self, offloads: Offloads) -> io::Result<()> {
        Tap::set_offloads(self, offloads)
    }
}

struct Ring {
    kick: EventFd,
    message: Box<dyn MessageFd>,
    /// Signalled for an interrupt while there is no message.
    waiting: EventFd,
    /// Signalled when the kernel has given the ring up.
    broken: EventFd,
    /// Whether the kernel signals `message`, and not `waiting`.
    sends: Mutex<bool>,
    /// Where its used ring is.
    used_ring: AtomicU64,
}

/// What the driver is to know of a VM.
pub struct Parts<'a> {
    pub ram: &'a GuestRam,
    pub doorbells: Arc<dyn HardwareDoorbells>,
    /// By ring.
    pub messages: [Box<dyn MessageFd>; RINGS],
}

/// The driver of this kernel.
pub struct Kernel(Net<Arc<GuestRam>>);

impl Kernel {
    /// Opens an instance.
    ///
    /// # Errors
    /// One line that says what to do.
    pub fn open(ram: &GuestRam) -> Result<Self, HypervisorError> {
        Net::new(Arc::new(ram.clone())).map(Self).map_err(|error| match error {
            Error::VhostOpen(error) => HypervisorError::Unavailable(open_hint(&error)),
            other => HypervisorError::Unavailable(format!("{DEVICE}: {other}")),
        })
    }
}

/// Whether the driver is there, and this process may use it.
///
/// # Errors
/// One line that says what to do.
pub fn check() -> Result<(), HypervisorError> {
    let opened = File::options().read(true).write(true).open(DEVICE);
    opened.map(drop).map_err(|error| HypervisorError::Unavailable(open_hint(&error)))
}

fn open_hint(error: &io::Error) -> String {
    let hint = match error.kind() {
        io::ErrorKind::NotFound => "load the module vhost_net, or make the device visible in this container",
        io::ErrorKind::PermissionDenied => "add the user to the group that owns it (usually kvm)",
        _ => "without vhost=on the process carries the frames itself",
    };
    format!("{DEVICE}: {}: {hint}", os_message(error))
}

impl AsRawFd for Kernel {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

impl VhostKernBackend for Kernel {
    type AS = Arc<GuestRam>;

    fn mem(&self) -> &Self::AS {
        self.0.mem()
    }

    fn is_valid(&self, ring: &VringConfigData) -> bool {
        is_in_one_piece(self.mem(), ring)
    }
}

/// Whether each part of a ring is in one piece of memory: the kernel is given its first address in this process, and trusts
/// that the rest follows. (The crate's own check refuses a ring at the end of memory.)
fn is_in_one_piece(ram: &GuestRam, ring: &VringConfigData) -> bool {
    let size = usize::from(ring.queue_size);
    let parts =
        [(ring.desc_table_addr, size * 16), (ring.avail_ring_addr, size * 2 + 6), (ring.used_ring_addr, size * 8 + 6)];
    parts.into_iter().all(|(at, len_bytes)| ram.get_slice(GuestAddress(at), len_bytes).is_ok())
}

impl VhostNet for Kernel {
    fn set_backend(&self, queue: usize, fd: Option<&File>) -> vhost::Result<()> {
        self.0.set_backend(queue, fd)
    }
}

/// Has `kernel` carry a card's queues to and from `tap`, called `name`.
///
/// # Errors
/// One line that says what to do.
pub fn attach(kernel: Kernel, parts: Parts<'_>, name: &str, tap: Tap) -> Result<KernelNic, HypervisorError> {
    let backend = tap.as_fd().try_clone_to_owned().map(File::from).map_err(host("dup"))?;
    let mtu = tap.mtu().ok().and_then(|mtu| u16::try_from(mtu).ok());
    let queues = queues(kernel, parts, name, (Box::new(tap), backend))?;
    Ok(KernelNic { descriptor: queues.ready.as_raw_fd(), queues: Arc::new(queues), mtu })
}

fn queues<K: VhostNet>(
    kernel: K,
    parts: Parts<'_>,
    name: &str,
    (frames, backend): (Box<dyn Frames>, File),
) -> Result<Vhost<K>, HypervisorError> {
    let features = kernel.get_features().map_err(failed("VHOST_GET_FEATURES"))?;
    if features & VERSION_1 == 0 {
        return Err(HypervisorError::Unavailable(format!("{DEVICE} has no modern virtio: use a newer kernel")));
    }
    kernel.set_owner().map_err(failed("VHOST_SET_OWNER"))?;
    kernel.set_mem_table(&regions(parts.ram)).map_err(failed("VHOST_SET_MEM_TABLE"))?;
    let ready = Epoll::new().map_err(host("epoll"))?;
    let [rx, tx] = parts.messages;
    let rings = [Ring::new(rx)?, Ring::new(tx)?];
    for (queue, ring) in rings.iter().enumerate() {
        // Its kick and its errors stay what they are; a ring without a backend does nothing for them.
        kernel.set_vring_kick(queue, &ring.kick).map_err(failed("VHOST_SET_VRING_KICK"))?;
        kernel.set_vring_err(queue, &ring.broken).map_err(failed("VHOST_SET_VRING_ERR"))?;
        kernel.set_vring_call(queue, &ring.waiting).map_err(failed("VHOST_SET_VRING_CALL"))?;
        for fd in [&ring.waiting, &ring.broken].map(AsRawFd::as_raw_fd) {
            let event = EpollEvent::new(EventSet::IN, 0);
            ready.ctl(ControlOperation::Add, fd, event).map_err(host("epoll_ctl"))?;
        }
    }
    Ok(Vhost {
        kernel,
        ram: parts.ram.clone(),
        name: name.to_owned(),
        frames: Mutex::new(frames),
        backend,
        features: features & OF_THE_RINGS,
        rings,
        doorbells: parts.doorbells,
        bound: Mutex::default(),
        ready,
    })
}

/// The table of guest memory.
fn regions(ram: &GuestRam) -> Vec<VhostUserMemoryRegionInfo> {
    let info = |region: &<GuestRam as GuestMemoryBackend>::R| VhostUserMemoryRegionInfo {
        guest_phys_addr: region.start_addr().raw_value(),
        memory_size: region.len(),
        userspace_addr: region.as_ptr() as u64,
        ..Default::default()
    };
    ram.iter().map(info).collect()
}

fn host(call: &'static str) -> impl Fn(io::Error) -> HypervisorError {
    move |source| HypervisorError::Call { call, source }
}

fn failed(call: &'static str) -> impl Fn(Error) -> HypervisorError {
    move |error| HypervisorError::Call { call, source: system(error) }
}

/// What the system said.
fn system(error: Error) -> io::Error {
    match error {
        Error::IoctlError(error) | Error::IOError(error) | Error::VhostOpen(error) => error,
        // What the crate does not take, the kernel would not either.
        _ => io::Error::from_raw_os_error(libc::EINVAL),
    }
}

impl Ring {
    fn new(message: Box<dyn MessageFd>) -> Result<Self, HypervisorError> {
        let event = || EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC).map_err(host("eventfd"));
        let (sends, used_ring) = (Mutex::new(false), AtomicU64::new(0));
        Ok(Self { kick: event()?, message, waiting: event()?, broken: event()?, sends, used_ring })
    }

    /// Whether the kernel signals its message. Held while that changes.
    fn sends(&self) -> MutexGuard<'_, bool> {
        self.sends.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<K: VhostNet> Vhost<K> {
    fn complain(&self, what: &str, error: Error) {
        log::error!("kvm: {}: {what}: {}", self.name, os_message(&system(error)));
    }

    fn failed(&self, call: &str, error: &io::Error) -> KernelError {
        KernelError::Failed(format!("{}: {call}: {}", self.name, os_message(error)))
    }

    fn ring(&self, queue: u16) -> Option<(usize, &Ring)> {
        let queue = usize::from(queue);
        self.rings.get(queue).map(|ring| (queue, ring))
    }

    /// Has the kernel signal a ring's message, or what somebody waits for.
    fn signal(&self, (queue, ring): (usize, &Ring), sends: &mut bool, wanted: bool) {
        if *sends != wanted {
            let fd = if wanted { ring.message.fd() } else { &ring.waiting };
            match self.kernel.set_vring_call(queue, fd) {
                Ok(()) => *sends = wanted,
                Err(error) => self.complain("its interrupt", error),
            }
        }
    }

    /// Gives a ring to the kernel; an error is the call's that failed.
    fn begin(&self, (queue, ring): (usize, &Ring), at: &QueueState) -> Result<(), (&'static str, Error)> {
        let named = |call| move |error| (call, error);
        self.signal((queue, ring), &mut ring.sends(), false);
        // What a driver before this one left.
        for event in [&ring.waiting, &ring.broken] {
            let _ = event.read();
        }
        ring.used_ring.store(at.used_ring, Ordering::Relaxed);
        let place = VringConfigData {
            queue_max_size: at.size,
            queue_size: at.size,
            flags: 0,
            desc_table_addr: at.desc_table,
            used_ring_addr: at.used_ring,
            avail_ring_addr: at.avail_ring,
            log_addr: None,
        };
        self.kernel.set_vring_num(queue, at.size).map_err(named("VHOST_SET_VRING_NUM"))?;
        // The kernel reads where the used ring stands in the ring itself.
        self.kernel.set_vring_base(queue, at.next_avail).map_err(named("VHOST_SET_VRING_BASE"))?;
        self.kernel.set_vring_addr(queue, &place).map_err(named("VHOST_SET_VRING_ADDR"))?;
        self.kernel.set_backend(queue, Some(&self.backend)).map_err(named("VHOST_NET_SET_BACKEND"))
    }

    fn bind(&self, queue: usize, window: Window) -> Result<DoorbellAddress, HypervisorError> {
        let at = match window {
            Window::Mmio { address, .. } => {
                DoorbellAddress::Mmio(address.wrapping_add(NOTIFY_MULTIPLIER * queue as u64))
            }
            Window::Port(port) => DoorbellAddress::Pio { port, value: queue as u16 },
        };
        self.doorbells.bind(at, self.rings[queue].kick.as_raw_fd()).map(|()| at)
    }
}

impl<K: VhostNet + Send + Sync> KernelQueues for Vhost<K> {
    fn features(&self) -> u64 {
        self.features | OF_THE_TAP
    }

    fn use_pairs(&self, _pairs: u16) -> Result<(), KernelError> {
        // There is one: the configuration has no more, and MQ is not offered.
        Ok(())
    }

    fn accept(&self, features: u64) -> Result<(), KernelError> {
        let has = |feature| features & feature != 0;
        let long = has(MRG_RXBUF | VERSION_1);
        let frames = self.frames.lock().unwrap_or_else(PoisonError::into_inner);
        frames
            .set_header_bytes(if long { HEADER_BYTES } else { SHORT_HEADER_BYTES })
            .map_err(|error| self.failed("TUNSETVNETHDRSZ", &error))?;
        let (csum, tso4, tso6, ecn) = (has(GUEST_CSUM), has(GUEST_TSO4), has(GUEST_TSO6), has(GUEST_ECN));
        frames
            .set_offloads(Offloads { csum, tso4, tso6, ecn, uso: false })
            .map_err(|error| self.failed("TUNSETOFFLOAD", &error))?;
        let set = self.kernel.set_features(features & self.features);
        set.map_err(|error| self.failed("VHOST_SET_FEATURES", &system(error)))
    }

    fn init(&self, queue: u16, ring: &QueueState, _legacy: bool) -> Result<(), KernelError> {
        let Some(known) = self.ring(queue) else { return Err(KernelError::Ring("there is no such ring".to_owned())) };
        self.begin(known, ring).map_err(|(call, error)| {
            let error = system(error);
            match error.raw_os_error() {
                Some(libc::EINVAL | libc::EFAULT) => KernelError::Ring(format!("{call}: {}", os_message(&error))),
                _ => self.failed(call, &error),
            }
        })
    }

    fn kick(&self, queue: u16) {
        // A full counter means that it is kicked already.
        if let Some((_, ring)) = self.ring(queue)
            && let Err(error) = ring.kick.write(1)
            && error.kind() != io::ErrorKind::WouldBlock
        {
            self.complain("a kick", Error::IOError(error));
        }
    }

    fn set_msi(&self, queue: u16, message: Option<MsiMessage>) {
        let Some(ring) = self.ring(queue) else { return };
        let mut sends = ring.1.sends();
        let routed = match message.map(|message| ring.1.message.route(message)) {
            Some(Err(error)) => {
                log::error!("kvm: {}: a message: {error}", self.name);
                false
            }
            routed => routed.is_some(),
        };
        self.signal(ring, &mut sends, routed);
    }

    fn pause(&self, queue: u16) -> Result<(), KernelError> {
        let Some((queue, _)) = self.ring(queue) else { return Ok(()) };
        // It returns when the kernel's thread has let go of the ring.
        let stopped = self.kernel.set_backend(queue, None);
        stopped.map_err(|error| self.failed("VHOST_NET_SET_BACKEND", &system(error)))
    }

    fn state(&self, queue: u16) -> Result<(u16, u16), KernelError> {
        let Some((queue, ring)) = self.ring(queue) else { return Ok((0, 0)) };
        let base = self.kernel.get_vring_base(queue);
        let base = base.map_err(|error| self.failed("VHOST_GET_VRING_BASE", &system(error)))?;
        // The kernel itself goes by the index in the ring when it takes it up again (virtio 1.3 §2.7.8).
        let used_index = GuestAddress(ring.used_ring.load(Ordering::Relaxed).wrapping_add(2));
        let used =
            self.ram.load(used_index, Ordering::Acquire).map_err(|error| KernelError::Ring(error.to_string()))?;
        Ok((base as u16, u16::from_le(used)))
    }

    fn reset(&self, queue: u16) {
        if let Some((queue, _)) = self.ring(queue)
            && let Err(error) = self.kernel.set_backend(queue, None)
        {
            self.complain("a ring's reset", error);
        }
    }

    fn notify_window(&self, window: Option<Window>) {
        let warn = |error| log::warn!("kvm: {}: {error}: its doorbells are exits of the guest", self.name);
        let mut bound = self.bound.lock().unwrap_or_else(PoisonError::into_inner);
        for (queue, at) in bound.drain(..) {
            self.doorbells.unbind(at, self.rings[queue].kick.as_raw_fd()).unwrap_or_else(warn);
        }
        for queue in 0..RINGS {
            match window.map(|window| self.bind(queue, window)) {
                None => {}
                Some(Ok(at)) => bound.push((queue, at)),
                Some(Err(error)) => warn(error),
            }
        }
    }

    fn poll(&self, raised: &mut dyn FnMut(u16)) {
        for (queue, ring) in (0..).zip(&self.rings) {
            if ring.waiting.read().is_ok() {
                raised(queue);
            }
        }
    }

    fn tells_of_broken(&self) -> bool {
        true
    }

    fn take_broken(&self, broken: &mut dyn FnMut(u16)) {
        for (queue, ring) in (0..).zip(&self.rings) {
            if ring.broken.read().is_ok() {
                broken(queue);
            }
        }
    }

    fn set_reception(&self, _reception: &Reception) {
        // A TAP device hands over every frame there is.
    }
}

#[cfg(test)]
#[path = "vhost_tests.rs"]
mod tests;
