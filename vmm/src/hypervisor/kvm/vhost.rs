//! A card's data queues in the kernel: vhost-net, over a TAP device.
//!
//! The kernel finds rings and buffers by the table of guest memory that it was given, wakes up by an eventfd that KVM signals
//! for the guest's doorbell, and signals another one that KVM makes the guest's interrupt. What it cannot send, as there is
//! no message for it, it signals to a third one that somebody waits for. (Linux `include/uapi/linux/vhost.h`,
//! `drivers/vhost/net.c`.)

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
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

/// Rings of a pair, and of an instance of the driver: one to receive, one to send.
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

/// The queues of a card on a TAP device: an instance of the driver for each pair of them.
pub struct Vhost<K> {
    ram: GuestRam,
    name: String,
    pairs: Vec<Pair<K>>,
    /// Pairs in use, which are the first ones. The TAP device gives the others nothing, and the kernel does not run their rings. Held while that changes, and while a ring begins or ends.
    used: Mutex<u16>,
    /// What the driver has of [`OF_THE_RINGS`].
    features: u64,
    doorbells: Arc<dyn HardwareDoorbells>,
    /// Those that are watched, by ring.
    bound: Mutex<Vec<(u16, DoorbellAddress)>>,
    /// Readable while one of the rings' `waiting` or `broken` is.
    ready: Epoll,
}

/// One instance of the driver, with a queue of the TAP device behind it.
struct Pair<K> {
    kernel: K,
    frames: Mutex<Box<dyn Frames>>,
    /// The same queue, in the form that the driver is given.
    backend: File,
    rings: [Ring; RINGS],
}

/// What is said to a queue of the TAP device itself.
trait Frames: Send {
    /// See [`Tap::set_header_bytes`].
    fn set_header_bytes(&self, len_bytes: usize) -> io::Result<()>;

    /// See [`Tap::set_offloads`].
    fn set_offloads(&self, offloads: Offloads) -> io::Result<()>;

    /// See [`Tap::set_attached`].
    fn set_attached(&self, attached: bool) -> io::Result<()>;
}

impl Frames for Tap {
    fn set_header_bytes(&self, len_bytes: usize) -> io::Result<()> {
        Tap::set_header_bytes(self, len_bytes)
    }

    fn set_offloads(&self, offloads: Offloads) -> io::Result<()> {
        Tap::set_offloads(self, offloads)
    }

    fn set_attached(&self, attached: bool) -> io::Result<()> {
        Tap::set_attached(self, attached)
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
    /// The kernel knows where it is, and runs it where its pair is in use.
    begun: AtomicBool,
}

/// What the driver is to know of a VM.
pub struct Parts<'a> {
    pub ram: &'a GuestRam,
    pub doorbells: Arc<dyn HardwareDoorbells>,
    /// By pair and ring.
    pub messages: Vec<[Box<dyn MessageFd>; RINGS]>,
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

/// Has the kernel carry a card's queues to and from the queues `taps` of a TAP device, called `name`, a pair each. The first one
/// is attached, and no other.
///
/// # Errors
/// One line that says what to do.
pub fn attach(parts: Parts<'_>, name: &str, taps: Vec<Tap>) -> Result<KernelNic, HypervisorError> {
    let mtu = taps.first().and_then(|tap| tap.mtu().ok()).and_then(|mtu| u16::try_from(mtu).ok());
    let mut instances = Vec::new();
    for tap in taps {
        let backend = tap.as_fd().try_clone_to_owned().map(File::from).map_err(host("dup"))?;
        instances.push((Kernel::open(parts.ram)?, Box::new(tap) as Box<dyn Frames>, backend));
    }
    let queues = queues(instances, parts, name)?;
    Ok(KernelNic { descriptor: queues.ready.as_raw_fd(), queues: Arc::new(queues), mtu })
}

fn queues<K: VhostNet>(
    instances: Vec<(K, Box<dyn Frames>, File)>,
    parts: Parts<'_>,
    name: &str,
) -> Result<Vhost<K>, HypervisorError> {
    let ready = Epoll::new().map_err(host("epoll"))?;
    let (mut features, mut pairs) = (OF_THE_RINGS, Vec::new());
    for ((kernel, frames, backend), [rx, tx]) in instances.into_iter().zip(parts.messages) {
        let of_this = kernel.get_features().map_err(failed("VHOST_GET_FEATURES"))?;
        if of_this & VERSION_1 == 0 {
            return Err(HypervisorError::Unavailable(format!("{DEVICE} has no modern virtio: use a newer kernel")));
        }
        features &= of_this;
        kernel.set_owner().map_err(failed("VHOST_SET_OWNER"))?;
        kernel.set_mem_table(&regions(parts.ram)).map_err(failed("VHOST_SET_MEM_TABLE"))?;
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
        pairs.push(Pair { kernel, frames: Mutex::new(frames), backend, rings });
    }
    Ok(Vhost {
        ram: parts.ram.clone(),
        name: name.to_owned(),
        pairs,
        used: Mutex::new(1),
        features,
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
        let (sends, used_ring, begun) = Default::default();
        Ok(Self { kick: event()?, message, waiting: event()?, broken: event()?, sends, used_ring, begun })
    }

    /// Whether the kernel signals its message. Held while that changes.
    fn sends(&self) -> MutexGuard<'_, bool> {
        self.sends.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<K: VhostNet> Pair<K> {
    /// Has the kernel signal a ring's message, or what somebody waits for.
    fn signal(&self, ring: usize, sends: &mut bool, wanted: bool) -> vhost::Result<()> {
        if *sends != wanted
            && let Some(of) = self.rings.get(ring)
        {
            self.kernel.set_vring_call(ring, if wanted { of.message.fd() } else { &of.waiting })?;
            *sends = wanted;
        }
        Ok(())
    }

    /// Tells the kernel where a ring is; an error is the call's that failed.
    fn place(&self, ring: usize, at: &QueueState) -> Result<(), (&'static str, Error)> {
        let named = |call| move |error| (call, error);
        let place = VringConfigData {
            queue_max_size: at.size,
            queue_size: at.size,
            flags: 0,
            desc_table_addr: at.desc_table,
            used_ring_addr: at.used_ring,
            avail_ring_addr: at.avail_ring,
            log_addr: None,
        };
        self.kernel.set_vring_num(ring, at.size).map_err(named("VHOST_SET_VRING_NUM"))?;
        // The kernel reads where the used ring stands in the ring itself.
        self.kernel.set_vring_base(ring, at.next_avail).map_err(named("VHOST_SET_VRING_BASE"))?;
        self.kernel.set_vring_addr(ring, &place).map_err(named("VHOST_SET_VRING_ADDR"))
    }

    /// Has the kernel run a ring that it knows.
    fn run(&self, ring: usize) -> Result<(), (&'static str, Error)> {
        self.kernel.set_backend(ring, Some(&self.backend)).map_err(|error| ("VHOST_NET_SET_BACKEND", error))
    }

    /// Has it run a ring no more. It returns when the kernel's thread has let go of it.
    fn stop(&self, ring: usize) -> Result<(), (&'static str, Error)> {
        self.kernel.set_backend(ring, None).map_err(|error| ("VHOST_NET_SET_BACKEND", error))
    }

    /// The rings that the kernel knows.
    fn begun(&self) -> impl Iterator<Item = (usize, &Ring)> {
        self.rings.iter().enumerate().filter(|(_, ring)| ring.begun.load(Ordering::Relaxed))
    }

    fn set_attached(&self, attached: bool) -> Result<(), (&'static str, Error)> {
        let frames = self.frames.lock().unwrap_or_else(PoisonError::into_inner);
        frames.set_attached(attached).map_err(|error| ("TUNSETQUEUE", Error::IOError(error)))
    }

    /// Goes out of use: its rings stand where they are, and the TAP device gives it nothing. In this order: what the kernel's
    /// thread has taken from the device by now is in the ring when this returns, and not later.
    fn end_use(&self) -> Result<(), (&'static str, Error)> {
        self.begun().try_for_each(|(ring, _)| self.stop(ring))?;
        self.set_attached(false)
    }

    /// Comes into use: the rings that have begun go on. After an error it is not in use.
    fn begin_use(&self) -> Result<(), (&'static str, Error)> {
        self.set_attached(true)?;
        let running = self.begun().try_for_each(|(at, ring)| {
            self.run(at)?;
            // What the guest rang for meanwhile is nobody else's to tell. A full counter means that it is kicked already.
            let _ = ring.kick.write(1);
            Ok(())
        });
        // That it is not, the error says; what else is wrong comes with the next call.
        running.inspect_err(|_| drop(self.end_use()))
    }
}

impl<K: VhostNet> Vhost<K> {
    fn complain(&self, what: &str, error: Error) {
        log::error!("kvm: {}: {what}: {}", self.name, os_message(&system(error)));
    }

    fn failed(&self, call: &str, error: &io::Error) -> KernelError {
        KernelError::Failed(format!("{}: {call}: {}", self.name, os_message(error)))
    }

    /// The pair of a queue, and its ring in that.
    fn ring(&self, queue: u16) -> Option<(&Pair<K>, usize, &Ring)> {
        let (pair, at) = (usize::from(queue) / RINGS, usize::from(queue) % RINGS);
        let pair = self.pairs.get(pair)?;
        pair.rings.get(at).map(|ring| (pair, at, ring))
    }

    fn all_rings(&self) -> impl Iterator<Item = (u16, &Ring)> {
        (0..).zip(self.pairs.iter().flat_map(|pair| &pair.rings))
    }

    fn used(&self) -> MutexGuard<'_, u16> {
        self.used.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Has the first so many pairs in use. Where a call fails, those are that were reached.
    fn use_first(&self, wanted: u16) -> Result<(), (&'static str, Error)> {
        let mut used = self.used();
        while *used > wanted {
            if let Some(pair) = self.pairs.get(usize::from(*used) - 1) {
                pair.end_use()?;
            }
            *used -= 1;
        }
        while *used < wanted {
            if let Some(pair) = self.pairs.get(usize::from(*used)) {
                pair.begin_use()?;
            }
            *used += 1;
        }
        Ok(())
    }

    fn bind(&self, queue: u16, ring: &Ring, window: Window) -> Result<DoorbellAddress, HypervisorError> {
        let at = match window {
            Window::Mmio { address, .. } => {
                DoorbellAddress::Mmio(address.wrapping_add(NOTIFY_MULTIPLIER * u64::from(queue)))
            }
            Window::Port(port) => DoorbellAddress::Pio { port, value: queue },
        };
        self.doorbells.bind(at, ring.kick.as_raw_fd()).map(|()| at)
    }
}

impl<K: VhostNet + Send + Sync> KernelQueues for Vhost<K> {
    fn features(&self) -> u64 {
        self.features | OF_THE_TAP
    }

    fn use_pairs(&self, pairs: u16) -> Result<(), KernelError> {
        self.use_first(pairs).map_err(|(call, error)| {
            let error = system(error);
            log::error!("kvm: {}: its queue pairs: {call}: {}", self.name, os_message(&error));
            self.failed(call, &error)
        })
    }

    fn accept(&self, features: u64) -> Result<(), KernelError> {
        let has = |feature| features & feature != 0;
        let long = has(MRG_RXBUF | VERSION_1);
        self.use_first(1).map_err(|(call, error)| self.failed(call, &system(error)))?;
        // Of the device, whatever its queue; the first one is always attached.
        if let Some(first) = self.pairs.first() {
            let frames = first.frames.lock().unwrap_or_else(PoisonError::into_inner);
            frames
                .set_header_bytes(if long { HEADER_BYTES } else { SHORT_HEADER_BYTES })
                .map_err(|error| self.failed("TUNSETVNETHDRSZ", &error))?;
            let (csum, tso4, tso6, ecn) = (has(GUEST_CSUM), has(GUEST_TSO4), has(GUEST_TSO6), has(GUEST_ECN));
            frames
                .set_offloads(Offloads { csum, tso4, tso6, ecn, uso: false })
                .map_err(|error| self.failed("TUNSETOFFLOAD", &error))?;
        }
        for pair in &self.pairs {
            let set = pair.kernel.set_features(features & self.features);
            set.map_err(|error| self.failed("VHOST_SET_FEATURES", &system(error)))?;
        }
        Ok(())
    }

    fn init(&self, queue: u16, ring: &QueueState, _legacy: bool) -> Result<(), KernelError> {
        let Some((pair, at, known)) = self.ring(queue) else {
            return Err(KernelError::Ring("there is no such ring".to_owned()));
        };
        if let Err(error) = pair.signal(at, &mut known.sends(), false) {
            self.complain("its interrupt", error);
        }
        // What a driver before this one left.
        for event in [&known.waiting, &known.broken] {
            let _ = event.read();
        }
        known.used_ring.store(ring.used_ring, Ordering::Relaxed);
        let used = self.used();
        let is_used = usize::from(queue) / RINGS < usize::from(*used);
        let begun = pair.place(at, ring).and_then(|()| if is_used { pair.run(at) } else { Ok(()) });
        begun.map_err(|(call, error)| {
            let error = system(error);
            match error.raw_os_error() {
                Some(libc::EINVAL | libc::EFAULT) => KernelError::Ring(format!("{call}: {}", os_message(&error))),
                _ => self.failed(call, &error),
            }
        })?;
        known.begun.store(true, Ordering::Relaxed);
        Ok(())
    }

    fn kick(&self, queue: u16) {
        // A full counter means that it is kicked already.
        if let Some((_, _, ring)) = self.ring(queue)
            && let Err(error) = ring.kick.write(1)
            && error.kind() != io::ErrorKind::WouldBlock
        {
            self.complain("a kick", Error::IOError(error));
        }
    }

    fn set_msi(&self, queue: u16, message: Option<MsiMessage>) {
        let Some((pair, at, ring)) = self.ring(queue) else { return };
        let mut sends = ring.sends();
        let routed = match message.map(|message| ring.message.route(message)) {
            Some(Err(error)) => {
                log::error!("kvm: {}: a message: {error}", self.name);
                false
            }
            routed => routed.is_some(),
        };
        if let Err(error) = pair.signal(at, &mut sends, routed) {
            self.complain("its interrupt", error);
        }
    }

    fn pause(&self, queue: u16) -> Result<(), KernelError> {
        let Some((pair, at, ring)) = self.ring(queue) else { return Ok(()) };
        let _used = self.used();
        pair.stop(at).map_err(|(call, error)| self.failed(call, &system(error)))?;
        ring.begun.store(false, Ordering::Relaxed);
        Ok(())
    }

    fn state(&self, queue: u16) -> Result<(u16, u16), KernelError> {
        let Some((pair, at, ring)) = self.ring(queue) else { return Ok((0, 0)) };
        let base = pair.kernel.get_vring_base(at);
        let base = base.map_err(|error| self.failed("VHOST_GET_VRING_BASE", &system(error)))?;
        // The kernel itself goes by the index in the ring when it takes it up again (virtio 1.3 §2.7.8).
        let used_index = GuestAddress(ring.used_ring.load(Ordering::Relaxed).wrapping_add(2));
        let used =
            self.ram.load(used_index, Ordering::Acquire).map_err(|error| KernelError::Ring(error.to_string()))?;
        Ok((base as u16, u16::from_le(used)))
    }

    fn reset(&self, queue: u16) {
        let Some((pair, at, ring)) = self.ring(queue) else { return };
        let _used = self.used();
        ring.begun.store(false, Ordering::Relaxed);
        if let Err((_, error)) = pair.stop(at) {
            self.complain("a ring's reset", error);
        }
    }

    fn notify_window(&self, window: Option<Window>) {
        let warn = |error| log::warn!("kvm: {}: {error}: its doorbells are exits of the guest", self.name);
        let mut bound = self.bound.lock().unwrap_or_else(PoisonError::into_inner);
        for (queue, at) in bound.drain(..) {
            if let Some((_, _, ring)) = self.ring(queue) {
                self.doorbells.unbind(at, ring.kick.as_raw_fd()).unwrap_or_else(warn);
            }
        }
        for (queue, ring) in self.all_rings() {
            match window.map(|window| self.bind(queue, ring, window)) {
                None => {}
                Some(Ok(at)) => bound.push((queue, at)),
                Some(Err(error)) => warn(error),
            }
        }
    }

    fn poll(&self, raised: &mut dyn FnMut(u16)) {
        for (queue, ring) in self.all_rings() {
            if ring.waiting.read().is_ok() {
                raised(queue);
            }
        }
    }

    fn tells_of_broken(&self) -> bool {
        true
    }

    fn take_broken(&self, broken: &mut dyn FnMut(u16)) {
        for (queue, ring) in self.all_rings() {
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
