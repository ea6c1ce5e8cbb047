//! A card's data queues in the kernel: viona.
//!
//! The kernel's driver is taken for what it answers, not for its version's number: two interfaces share one. What it needs to
//! have is asked once, when the link is attached; what it may lack has a way around it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use devices::interrupt::MsiMessage;
use devices::virtio::QueueState;
use devices::virtio::net::kernel::{KernelError, KernelQueues, Promiscuity, Window};
use devices_host::sys::{Errno, Link};

use super::error::{CallError, CallResult};
use super::vmfd::{VionaFd, VmFd};
use super::{abi, irq};
use crate::hypervisor::{HypervisorError, KernelNic};

/// `VIRTIO_F_VERSION_1`: without it the kernel takes a driver for a legacy one.
const VERSION_1: u64 = 1 << 32;

/// What the kernel has when nothing is said.
const USUAL_MTU: u32 = 1500;

/// Rings of the pair there is.
const RINGS: u16 = 2;

/// One instance of the driver, attached to a link and a VM.
pub struct Viona {
    fd: VionaFd,
    link: String,
    features: u64,
    memory: Watch,
    port: Watch,
}

/// One of the two ways to watch doorbells.
#[derive(Default)]
struct Watch {
    /// The kernel does not have it.
    lacks: AtomicBool,
    /// It is set to some place.
    set: AtomicBool,
}

/// Attaches `link`, called `name`, to the VM.
///
/// # Errors
/// One line that says what to do.
pub fn attach(vm: &VmFd, name: &str, link: &Link) -> Result<KernelNic, HypervisorError> {
    let sys = vm.handle().sys();
    let fd = VionaFd::open(sys).map_err(|error| HypervisorError::Unavailable(open_hint(error)))?;
    match fd.version() {
        Ok(version) => log::info!("bhyve: link {name}: viona, interface version {version}"),
        Err(error) => log::info!("bhyve: link {name}: viona without a version ({error})"),
    }
    fd.create(link.id, vm).map_err(|error| HypervisorError::Unavailable(create_hint(name, error)))?;
    // The interface with rings in three parts, as modern drivers lay them, is the one that has this.
    if VionaFd::lacks(&fd.pending(RINGS)) {
        let line = "viona has no rings of modern virtio (VNA_IOC_RING_INIT_MODERN): use a newer platform";
        return Err(HypervisorError::Unavailable(line.to_owned()));
    }
    let features = fd.features()?;
    let mtu = follow_mtu(&fd, name, link.mtu)?;
    let descriptor = sys.poll_fd(fd.handle().raw()).map_err(|errno| CallError { call: VionaFd::NODE, errno })?;
    let queues = Viona { fd, link: name.to_owned(), features, memory: Watch::default(), port: Watch::default() };
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
    fn complain(&self, what: &str, error: CallError) {
        log::error!("bhyve: link {}: {what}: {error}", self.link);
    }

    fn failed(&self, error: CallError) -> KernelError {
        KernelError::Failed(format!("link {}: {error}", self.link))
    }

    /// Sets a watch to some place, or to none. What the kernel does not watch arrives as an exit; one that lacks the call is
    /// not asked again.
    fn watch(&self, watch: &Watch, place: bool, call: impl FnOnce(&VionaFd) -> CallResult<()>) {
        let was = watch.set.swap(place, Ordering::Relaxed);
        if watch.lacks.load(Ordering::Relaxed) || !place && !was {
            return;
        }
        match call(&self.fd) {
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
        self.features
    }

    fn accept(&self, features: u64) -> Result<(), KernelError> {
        let carried = features & (self.features | VERSION_1);
        self.fd.set_features(carried).map_err(|error| self.failed(error))
    }

    fn init(&self, queue: u16, ring: &QueueState, legacy: bool) -> Result<(), KernelError> {
        let QueueState { size, desc_table, avail_ring, used_ring, next_avail, next_used } = *ring;
        let done = if next_avail != 0 || next_used != 0 {
            self.fd.set_state(&abi::vioc_ring_state {
                vrs_index: queue,
                vrs_avail_idx: next_avail,
                vrs_used_idx: next_used,
                vrs_qsize: size,
                vrs_qaddr_desc: desc_table,
                vrs_qaddr_avail: avail_ring,
                vrs_qaddr_used: used_ring,
            })
        } else if legacy {
            self.fd.init_legacy(queue, size, desc_table)
        } else {
            self.fd.init_modern(queue, size, [desc_table, avail_ring, used_ring])
        };
        done.map_err(|error| match error.errno {
            Errno::EINVAL => KernelError::Ring(error.to_string()),
            _ => self.failed(error),
        })
    }

    fn kick(&self, queue: u16) {
        if let Err(error) = self.fd.kick(queue) {
            self.complain("a kick", error);
        }
    }

    fn set_msi(&self, queue: u16, message: Option<MsiMessage>) {
        // One to another address the kernel would refuse when it comes to send it, and nobody would hear of it.
        let MsiMessage { address, data } = message.filter(irq::is_deliverable).unwrap_or_default();
        if let Err(error) = self.fd.set_msi(queue, address, data) {
            self.complain("a message", error);
        }
    }

    fn pause(&self, queue: u16) -> Result<(), KernelError> {
        self.fd.pause_ring(queue).map_err(|error| self.failed(error))
    }

    fn state(&self, queue: u16) -> Result<(u16, u16), KernelError> {
        let state = self.fd.state(queue).map_err(|error| self.failed(error))?;
        Ok((state.vrs_avail_idx, state.vrs_used_idx))
    }

    fn reset(&self, queue: u16) {
        match self.fd.reset_ring(queue) {
            // The VM is being destroyed, and its rings with it.
            Ok(()) | Err(CallError { errno: Errno::ENXIO, .. }) => {}
            Err(error) => self.complain("a ring's reset", error),
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
        let pending = match self.fd.pending(RINGS) {
            Ok(pending) => pending,
            Err(error) => return self.complain("its interrupts", error),
        };
        let [bits, ..] = pending;
        for queue in (0..RINGS).filter(|queue| bits >> queue & 1 != 0) {
            // First: what is used after the guest has looked makes a new one.
            if let Err(error) = self.fd.clear_pending(queue) {
                self.complain("an interrupt", error);
            }
            raised(queue);
        }
    }

    fn set_promiscuity(&self, promiscuity: Promiscuity) {
        let mode = match promiscuity {
            Promiscuity::Own => abi::VIONA_PROMISC_MULTI,
            Promiscuity::All => abi::VIONA_PROMISC_ALL,
        };
        if let Err(error) = self.fd.set_promisc(mode) {
            self.complain("which frames it receives", error);
        }
    }
}

impl Drop for Viona {
    fn drop(&mut self) {
        // The kernel would do it when the descriptor is closed. Errors are of a VM that is gone.
        if let Err(error) = self.fd.delete() {
            log::debug!("bhyve: link {}: {error}", self.link);
        }
    }
}
