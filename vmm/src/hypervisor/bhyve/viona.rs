//! A card's data queues in the kernel: viona.
//!
//! The kernel's driver is taken for what it answers, not for its version's number: two interfaces share one. What it needs to
//! have is asked once, when the link is attached; what it may lack has a way around it.

mod params;
mod receiver;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU16, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use devices::interrupt::MsiMessage;
use devices::virtio::QueueState;
use devices::virtio::net::kernel::{KernelError, KernelQueues, Reception, Window};
use devices_host::sys::{Errno, Link};

use self::receiver::{Receiver, ReceiverError};
use super::error::{CallError, CallResult};
use super::vmfd::{VionaFd, VmFd};
use super::{abi, irq};
use crate::hypervisor::{HypervisorError, KernelNic, LinkOptions};

/// `VIRTIO_F_VERSION_1`: without it the kernel takes a driver for a legacy one.
const VERSION_1: u64 = 1 << 32;

/// `VIRTIO_NET_F_MQ`: with it a driver knows of the further pairs.
const MQ: u64 = 1 << 22;

/// What the kernel has when nothing is said.
const USUAL_MTU: u32 = 1500;

/// One instance of the driver, attached to a link and a VM.
pub struct Viona {
    fd: VionaFd,
    link: String,
    /// What the kernel carries in the queues.
    features: u64,
    pairs: Pairs,
    receiver: Receiver,
    complaints: Complaints,
    /// It was let go of while the guest ran: no call is made any more.
    gone: AtomicBool,
    /// What a call without an answer has met: the rings cannot go on.
    failure: Mutex<Option<String>>,
    memory: Watch,
    port: Watch,
}

/// Queue pairs of an instance.
struct Pairs {
    /// Those of the card.
    most: u16,
    /// Those that the kernel has rings for.
    allocated: AtomicU16,
    /// Those that receive, and whose interrupts can be asked for.
    used: AtomicU16,
}

impl Default for Pairs {
    /// One, as the kernel begins.
    fn default() -> Self {
        Self { most: 1, allocated: AtomicU16::new(1), used: AtomicU16::new(1) }
    }
}

impl Pairs {
    /// Has the kernel have rings for so many pairs, of which one is in use. All rings are reset.
    fn allocate(&self, fd: &VionaFd, pairs: u16) -> CallResult<()> {
        // First, as there cannot be fewer than are in use.
        self.use_first(fd, 1)?;
        // Only where it is a change: the kernel makes all rings anew.
        if self.allocated.load(Ordering::Relaxed) != pairs {
            fd.set_pairs(pairs)?;
            self.allocated.store(pairs, Ordering::Relaxed);
        }
        Ok(())
    }

    fn use_first(&self, fd: &VionaFd, pairs: u16) -> CallResult<()> {
        if self.used.load(Ordering::Relaxed) != pairs {
            fd.set_used_pairs(pairs)?;
            self.used.store(pairs, Ordering::Relaxed);
        }
        Ok(())
    }
}

/// How often each call has failed while a guest ran, which may be as often as that likes.
#[derive(Default)]
struct Complaints(Mutex<BTreeMap<&'static str, u64>>);

impl Complaints {
    /// Counts one more of a call. Where it is one to tell of (1, 2, 4, 8 … are enough for the log): how many there were.
    fn count(&self, call: &'static str) -> Option<u64> {
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let count = counts.entry(call).or_insert(0);
        *count = count.saturating_add(1);
        count.is_power_of_two().then_some(*count)
    }
}

/// One of the two ways to watch doorbells.
#[derive(Default)]
struct Watch {
    /// The kernel does not have it.
    lacks: AtomicBool,
    /// It is set to some place.
    set: AtomicBool,
}

/// Attaches `link`, called `name`, to the VM, as the `options` say.
///
/// # Errors
/// One line that says what to do.
pub fn attach(vm: &VmFd, name: &str, link: &Link, options: &LinkOptions) -> Result<KernelNic, HypervisorError> {
    let most = options.pairs;
    let sys = vm.handle().sys();
    let fd = VionaFd::open(sys).map_err(|error| HypervisorError::Unavailable(open_hint(error)))?;
    match fd.version() {
        Ok(version) => log::info!("bhyve: link {name}: viona, interface version {version}"),
        Err(error) => log::info!("bhyve: link {name}: viona without a version ({error})"),
    }
    fd.create(link.id, vm).map_err(|error| HypervisorError::Unavailable(create_hint(name, error)))?;
    // The interface with rings in three parts, as modern drivers lay them, is the one that has this.
    if VionaFd::lacks(&fd.pending(2)) {
        let line = "viona has no rings of modern virtio (VNA_IOC_RING_INIT_MODERN): use a newer platform";
        return Err(HypervisorError::Unavailable(line.to_owned()));
    }
    let pairs = Pairs { most, ..Pairs::default() };
    if most > 1 {
        let refused =
            |why| HypervisorError::Unavailable(format!("link {name}: {most} queue pairs are not possible: {why}"));
        if VionaFd::lacks(&fd.pairs()) {
            return Err(refused(
                "viona has one (it lacks VNA_IOC_GET_PAIRS): use a newer platform, or queues=1".to_owned(),
            ));
        }
        // Now, and not in front of a driver.
        pairs.allocate(&fd, most).map_err(|error| refused(error.to_string()))?;
    }
    params::set(&fd, name, options)?;
    let receiver = Receiver::new(&fd, link.mac)?;
    let features = fd.features()?;
    let mtu = follow_mtu(&fd, name, link.mtu)?;
    let descriptor = sys.poll_fd(fd.handle().raw()).map_err(|errno| CallError { call: VionaFd::NODE, errno })?;
    let (memory, port, complaints, failure) = Default::default();
    let queues = Viona {
        fd,
        link: name.to_owned(),
        features,
        pairs,
        receiver,
        complaints,
        gone: AtomicBool::new(false),
        failure,
        memory,
        port,
    };
    Ok(KernelNic { queues: Arc::new(queues), descriptor, mtu })
}

/// Has the kernel carry frames as long as the link does; the MTU that both have then.
fn follow_mtu(fd: &VionaFd, name: &str, wanted: u32) -> CallResult<Option<u16>> {
    let has = fd.mtu();
    if VionaFd::lacks(&has) {
        return Ok(u16::try_from(wanted).ok().filter(|_| wanted == USUAL_MTU));
    }
    let has = u32::try_from(has?).unwrap_or(0);
    match u16::try_from(wanted) {
        Ok(mtu) if has == wanted => Ok(Some(mtu)),
        Ok(mtu) => match fd.set_mtu(mtu) {
            Ok(()) => Ok(Some(mtu)),
            Err(error) => {
                log::warn!("bhyve: link {name} has an MTU of {wanted}, and its guest one of {has}: {error}");
                Ok(u16::try_from(has).ok())
            }
        },
        // A zone may not be told (reported as 0): the guest is not either.
        Err(_) => Ok(None),
    }
}

fn open_hint(error: CallError) -> String {
    let hint = match error.errno {
        Errno::ENOENT => "load the driver viona, or give the zone the device (add device; set match=viona)",
        Errno::EACCES | Errno::EPERM => "the process must be root",
        Errno::EBUSY => "the machine has no instance of it left",
        _ => "is the driver viona attached?",
    };
    format!("{error}: {hint}")
}

fn create_hint(name: &str, error: CallError) -> String {
    let hint = match error.errno {
        Errno::ENOENT => "there is no such link in this zone (dladm show-link)",
        Errno::EBUSY => "something else has it: an IP interface (ipadm show-if) or another VM",
        Errno::EIO => "the zone has no network stack of its own (set ip-type=exclusive)",
        Errno::ENOTSUP => "it is no Ethernet link",
        _ => "it cannot be attached to the VM",
    };
    format!("link {name}: {error}: {hint}")
}

impl Viona {
    fn complain(&self, what: &str, error: impl Into<ReceiverError>) {
        let error = error.into();
        match self.complaints.count(error.call()) {
            Some(1) => log::error!("bhyve: link {}: {what}: {error}", self.link),
            Some(count) => log::error!("bhyve: link {}: {what}: {error} (time {count})", self.link),
            None => {}
        }
    }

    /// Makes a call, as long as there is somebody to ask.
    fn ask<T>(&self, call: impl FnOnce(&VionaFd) -> CallResult<T>) -> CallResult<T> {
        if self.gone.load(Ordering::Acquire) {
            return Err(CallError { call: VionaFd::NODE, errno: Errno::ENXIO });
        }
        call(&self.fd)
    }

    fn failed(&self, error: CallError) -> KernelError {
        KernelError::Failed(format!("link {}: {error}", self.link))
    }

    /// A call without an answer has failed, and its ring waits for ever.
    fn note_failure(&self, error: CallError) {
        let mut failure = self.failure.lock().unwrap_or_else(PoisonError::into_inner);
        failure.get_or_insert_with(|| format!("link {}: {error}", self.link));
    }

    /// Sets a watch to some place, or to none. What the kernel does not watch arrives as an exit; one that lacks the call is
    /// not asked again.
    fn watch(&self, watch: &Watch, place: bool, call: impl FnOnce(&VionaFd) -> CallResult<()>) {
        let was = watch.set.swap(place, Ordering::Relaxed);
        if watch.lacks.load(Ordering::Relaxed) || !place && !was {
            return;
        }
        match self.ask(call) {
            Ok(()) => {}
            Err(error) if error.errno == Errno::ENOTTY => {
                watch.lacks.store(true, Ordering::Relaxed);
                log::info!("bhyve: link {}: {error}: its doorbells are exits of the guest", self.link);
            }
            Err(error) => self.complain("its doorbells are exits of the guest", error),
        }
    }
}

impl KernelQueues for Viona {
    fn features(&self) -> u64 {
        self.features | self.receiver.features()
    }

    fn accept(&self, features: u64) -> Result<(), KernelError> {
        let carried = features & (self.features | VERSION_1);
        let pairs = if features & MQ == 0 { 1 } else { self.pairs.most };
        let accepted = self.ask(|fd| self.pairs.allocate(fd, pairs).and_then(|()| fd.set_features(carried)));
        accepted.map_err(|error| self.failed(error))
    }

    fn use_pairs(&self, pairs: u16) -> Result<(), KernelError> {
        self.ask(|fd| self.pairs.use_first(fd, pairs)).map_err(|error| {
            self.complain("its queue pairs stay as they are", error);
            self.failed(error)
        })
    }

    fn init(&self, queue: u16, ring: &QueueState, legacy: bool) -> Result<(), KernelError> {
        let QueueState { size, desc_table, avail_ring, used_ring, next_avail, next_used } = *ring;
        let done = if next_avail != 0 || next_used != 0 {
            let state = abi::vioc_ring_state {
                vrs_index: queue,
                vrs_avail_idx: next_avail,
                vrs_used_idx: next_used,
                vrs_qsize: size,
                vrs_qaddr_desc: desc_table,
                vrs_qaddr_avail: avail_ring,
                vrs_qaddr_used: used_ring,
            };
            self.ask(|fd| fd.set_state(&state))
        } else if legacy {
            self.ask(|fd| fd.init_legacy(queue, size, desc_table))
        } else {
            self.ask(|fd| fd.init_modern(queue, size, [desc_table, avail_ring, used_ring]))
        };
        done.map_err(|error| match error.errno {
            Errno::EINVAL => KernelError::Ring(error.to_string()),
            _ => self.failed(error),
        })
    }

    fn kick(&self, queue: u16) {
        if let Err(error) = self.ask(|fd| fd.kick(queue)) {
            self.note_failure(error);
        }
    }

    fn set_msi(&self, queue: u16, message: Option<MsiMessage>) {
        // One to another address the kernel would refuse when it comes to send it, and nobody would hear of it.
        let MsiMessage { address, data } = message.filter(irq::is_deliverable).unwrap_or_default();
        if let Err(error) = self.ask(|fd| fd.set_msi(queue, address, data)) {
            self.note_failure(error);
        }
    }

    fn pause(&self, queue: u16) -> Result<(), KernelError> {
        self.ask(|fd| fd.pause_ring(queue)).map_err(|error| self.failed(error))
    }

    fn state(&self, queue: u16) -> Result<(u16, u16), KernelError> {
        let state = self.ask(|fd| fd.state(queue)).map_err(|error| self.failed(error))?;
        Ok((state.vrs_avail_idx, state.vrs_used_idx))
    }

    fn reset(&self, queue: u16) {
        match self.ask(|fd| fd.reset_ring(queue)) {
            // The VM is being destroyed, and its rings with it.
            Ok(()) | Err(CallError { errno: Errno::ENXIO, .. }) => {}
            Err(error) => {
                self.complain("it is let go of, as a ring of it cannot be reset", error);
                // A ring that stays would write to memory that the driver has for something else by now.
                if let Err(error) = self.ask(VionaFd::delete) {
                    self.complain("it cannot be let go of", error);
                }
                self.gone.store(true, Ordering::Release);
                self.note_failure(error);
            }
        }
    }

    fn notify_window(&self, window: Option<Window>) {
        let (mmio, port) = match window {
            Some(Window::Mmio { address, len_bytes }) => (Some((address, len_bytes)), None),
            Some(Window::Port(port)) => (None, Some(port)),
            None => (None, None),
        };
        self.watch(&self.memory, mmio.is_some(), |fd| match mmio {
            Some((address, len_bytes)) => fd.set_notify_mmio(address, len_bytes),
            None => fd.clear_notify_mmio(),
        });
        // Port 0 is none.
        self.watch(&self.port, port.is_some(), |fd| fd.set_notify_port(port.unwrap_or(0)));
    }

    fn poll(&self, raised: &mut dyn FnMut(u16)) {
        // Those of other pairs the kernel does not tell of.
        let rings = self.pairs.used.load(Ordering::Relaxed).saturating_mul(2);
        let pending = match self.ask(|fd| fd.pending(rings)) {
            Ok(pending) => pending,
            Err(error) => return self.note_failure(error),
        };
        let waits = |queue: u16| pending.get(usize::from(queue / 32)).is_some_and(|word| word >> (queue % 32) & 1 != 0);
        for queue in (0..rings).filter(|queue| waits(*queue)) {
            // First: what is used after the guest has looked makes a new one.
            if let Err(error) = self.ask(|fd| fd.clear_pending(queue)) {
                self.note_failure(error);
            }
            raised(queue);
        }
    }

    fn set_reception(&self, reception: &Reception) {
        match self.ask(|fd| Ok(self.receiver.follow(fd, reception))) {
            Ok(Ok(())) => {}
            Ok(Err(error)) => self.complain("it receives more frames than it should", error),
            Err(error) => self.complain("it receives more frames than it should", error),
        }
    }

    fn set_address(&self, mac: [u8; 6]) -> Result<(), KernelError> {
        let done = self.ask(|fd| Ok(self.receiver.set_address(fd, mac))).map_err(ReceiverError::from).flatten();
        done.map_err(|error| {
            self.complain("its address stays as it is", error);
            KernelError::Failed(format!("link {}: {error}", self.link))
        })
    }

    fn failure(&self) -> Option<String> {
        self.failure.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

impl Drop for Viona {
    fn drop(&mut self) {
        // Whoever has the link next knows it by its own.
        if let Ok(Err(error)) = self.ask(|fd| Ok(self.receiver.give_address_back(fd))) {
            log::warn!("bhyve: link {}: it keeps the address that its guest has given it: {error}", self.link);
        }
        // The kernel would do it when the descriptor is closed. Errors are of a VM that is gone.
        if let Err(error) = self.ask(VionaFd::delete) {
            log::debug!("bhyve: link {}: {error}", self.link);
        }
    }
}
