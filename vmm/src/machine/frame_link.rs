//! Network interfaces on what the host has for links: TAP interfaces, or devices for plain frames and kernels that carry
//! queues, which illumos has.

use std::os::fd::{AsRawFd, RawFd};
use std::sync::{Arc, Mutex, PoisonError};

use devices::virtio::VirtioInterrupt;
use devices::virtio::counters::QueueCounters;
use devices::virtio::limit::Throttle;
use devices::virtio::net::NetDevice;
use devices::wake::Wake;
use devices_host::clock;
use devices_host::sys::{Link, SysResult};
use devices_host::tap::{Tap, TapError};

use super::adapters::Pace;
use super::link::NetLink;
use super::virtio::{Builder, DeviceError, Queues, card, event, throttles};
use super::{StartError, address, carried};
use crate::config::{Carrier, LinkConfig, Mac, NetConfig, Slot};
use crate::control::{Timed, Watched};
use crate::hypervisor::Hypervisor;
use crate::hypervisor::frames::{FrameDevice, FrameEnd, FrameLink, LinkError, LinkState};
use crate::sandbox::ThreadKind;
use crate::worker::{BackendFd, DeviceWorkers, Rings, WorkerSpec};

/// A link of the host that is open.
pub enum HostLink {
    /// The queues of a TAP or macvtap interface.
    Tap(Vec<Tap>),
    /// The queues of a TAP or macvtap interface that the kernel carries.
    Vhost(Vec<Tap>),
    /// A device for plain frames.
    Frames(Arc<dyn FrameLink>),
    /// A data link whose queues the VM's kernel carries.
    Kernel(Link),
}

impl HostLink {
    /// Opens the link of an interface; with it, the address that its guest has.
    ///
    /// # Errors
    /// One line that names the interface.
    pub fn open(config: &NetConfig, hypervisor: &dyn Hypervisor) -> Result<(Self, Mac), StartError> {
        if config.vhost {
            return Ok((Self::vhost(config, hypervisor)?, address::of(config)?));
        }
        let kernel_link = || hypervisor.kernel_link(&config.tap);
        let device = match config.carrier {
            Carrier::Tap => None,
            Carrier::Vnic => match kernel_link() {
                Some(found) => return Self::carried(config, found),
                None => hypervisor.frame_device(),
            },
            Carrier::Viona => match kernel_link() {
                Some(found) => return Self::carried(config, found),
                None => {
                    let (id, name) = (&config.id, hypervisor.capabilities().name);
                    let line = format!("{id}: {name} has no viona, which is bhyve's on illumos: use tap=");
                    return Err(StartError::Config(line));
                }
            },
            Carrier::Vnd => Some(FrameDevice::Vnd),
            Carrier::Dlpi => Some(FrameDevice::Dlpi),
        };
        for key in config.viona_keys() {
            log::warn!("{}: {key} is for viona, and nothing else carries it here", config.id);
        }
        let Some(device) = device else { return Ok((Self::Tap(open_tap(config)?), address::of(config)?)) };
        has_one_pair(config)?;
        let link = hypervisor.open_link(device, &config.tap).map_err(|error| {
            let line = format!("{}: {error}", config.id);
            match error {
                LinkError::Config(_) => StartError::Config(line),
                LinkError::HostLacks(_) => StartError::HostLacks(line),
                LinkError::Host(_) => StartError::Host(line),
            }
        })?;
        let mac = config.mac.or(link.mac().map(Mac)).ok_or_else(|| {
            let (id, name) = (&config.id, &config.tap);
            StartError::Config(format!("{id}: no mac is given, and that of link {name} cannot be read"))
        })?;
        Ok((Self::Frames(link), mac))
    }

    fn vhost(config: &NetConfig, hypervisor: &dyn Hypervisor) -> Result<Self, StartError> {
        match hypervisor.tap_carrier() {
            None => {
                let (id, name) = (&config.id, hypervisor.capabilities().name);
                let line = format!("{id}: {name} has no vhost-net, which is Linux' own: leave vhost=on away");
                return Err(StartError::Config(line));
            }
            Some(found) => found.map_err(|error| StartError::HostLacks(format!("{}: {error}", config.id)))?,
        }
        open_tap(config).map(Self::Vhost)
    }

    fn carried(config: &NetConfig, found: SysResult<Link>) -> Result<(Self, Mac), StartError> {
        let link = carried::check(config, found)?;
        let mac = Mac(link.mac);
        Ok((Self::Kernel(link), mac))
    }
}

/// What a name alone does not tell.
fn has_one_pair(config: &NetConfig) -> Result<(), StartError> {
    match config.queue_count() {
        1 => Ok(()),
        pairs => {
            let (id, name) = (&config.id, &config.tap);
            Err(StartError::Config(format!("{id}: {pairs} queue pairs are not possible on link {name}; it has one")))
        }
    }
}

fn open_tap(config: &NetConfig) -> Result<Vec<Tap>, StartError> {
    let taps = match config.link() {
        LinkConfig::Named(_, name) => Tap::open_queues(name, config.queue_count()),
        LinkConfig::Macvtap(name) => Tap::open_macvtap(name, config.queue_count()),
        LinkConfig::Fds(fds) => Tap::inherit(fds),
    };
    taps.map_err(|error| {
        let line = format!("{}: {error}", config.id);
        match error {
            TapError::NoTun(_) => StartError::HostLacks(line),
            TapError::Call { .. } => StartError::Host(line),
            _ => StartError::Config(line),
        }
    })
}

/// A guest's interface on a link for plain frames: follows what becomes of the link.
pub struct GuestLink {
    id: String,
    name: String,
    link: Arc<dyn FrameLink>,
    device: NetDevice,
    workers: Arc<DeviceWorkers>,
    interrupt: Arc<dyn VirtioInterrupt>,
    seen: Mutex<LinkState>,
    log: Pace,
}

impl Builder<'_> {
    /// A network interface whose link carries plain frames: without offloads, and with the link's MTU.
    pub fn frame_net(
        &mut self,
        config: &NetConfig,
        (link, mac): (Arc<dyn FrameLink>, Mac),
        slot: Slot,
    ) -> Result<(), DeviceError> {
        let rx_wake = event(&config.id)?;
        let device = card(config, mac, std::slice::from_ref(&rx_wake), false, u16::try_from(link.mtu()).ok())?;
        let (to_guest, from_guest) = throttles(config);
        let counters: Vec<_> = (0..3).map(|_| Arc::new(QueueCounters::default())).collect();
        let (rx, tx): (FrameEnd, FrameEnd) = (link.clone().end(), link.clone().end());
        let workers = vec![
            WorkerSpec {
                name: format!("{}-rx", config.id),
                worker: Box::new(
                    device
                        .rx_worker(rx.backend, counters[0].clone(), counters[2].clone())
                        .with_throttles(to_guest(), Throttle::default()),
                ),
                wake: rx_wake,
                backend_fd: Some(BackendFd::Link(rx.ready)),
                counters: vec![counters[0].clone(), counters[2].clone()],
                poll_ns: 0,
            },
            WorkerSpec {
                name: format!("{}-tx", config.id),
                worker: Box::new(
                    device.tx_worker(tx.backend, counters[1].clone()).with_throttles(Throttle::default(), from_guest()),
                ),
                wake: event(&config.id)?,
                backend_fd: Some(BackendFd::Link(tx.ready)),
                counters: vec![counters[1].clone()],
                poll_ns: 0,
            },
        ];
        let rings = Rings { packed: config.packed, in_order: config.in_order };
        let (workers, interrupt) = self.add(
            "net",
            ThreadKind::NetQueue,
            &config.id,
            Arc::new(device.clone()),
            Queues { rings, workers, counters },
            slot,
        )?;
        if let Some(added) = self.devices.last_mut() {
            added.card = Some(device.clone());
        }
        let id = config.id.clone();
        self.links.push(NetLink {
            id: id.clone(),
            device: device.clone(),
            workers: workers.clone(),
            interrupt: interrupt.clone(),
            host: None,
        });
        let (seen, log) = (Mutex::new(LinkState::Up), Pace::default());
        self.frame_links.push(GuestLink { id, name: config.tap.clone(), link, device, workers, interrupt, seen, log });
        Ok(())
    }
}

impl GuestLink {
    /// Begins to follow the link, on the main loop that `main` wakes.
    pub fn listen(self, main: &Arc<dyn Wake>) -> Arc<Self> {
        self.link.on_failure(main.clone());
        self.look();
        Arc::new(self)
    }

    fn look(&self) {
        let now_ns = clock::monotonic_ns();
        let seen = &mut *self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let now = self.link.look(now_ns);
        if *seen == now {
            return;
        }
        *seen = now;
        let Self { id, name, .. } = self;
        match now {
            LinkState::Up => log::info!("{id}: link {name} is up again, and so is the guest's"),
            LinkState::Down => self.warn(now_ns, || format!("{id}: link {name} is down, and so is the guest's")),
            LinkState::Gone => {
                self.warn(now_ns, || format!("{id}: link {name} is gone; the guest's is down until it is back"));
            }
        }
        if self.device.set_carrier(now == LinkState::Up) {
            self.interrupt.config_changed();
        }
        // Frames that waited for the link go or are lost, and the one behind it may be another device now.
        self.workers.wake();
    }

    fn warn(&self, now_ns: u64, line: impl FnOnce() -> String) {
        if let Some(unsaid) = self.log.next(now_ns) {
            let more = if unsaid > 0 { format!(" (and {unsaid} more changes before)") } else { String::new() };
            log::warn!("{}{more}", line());
        }
    }
}

impl AsRawFd for GuestLink {
    fn as_raw_fd(&self) -> RawFd {
        self.link.events_fd()
    }
}

impl Watched for GuestLink {
    fn ready(&self) {
        self.look();
    }
}

impl Timed for GuestLink {
    fn deadline_ns(&self) -> Option<u64> {
        self.link.deadline_ns()
    }

    fn tick(&self, _now_ns: u64) {
        self.look();
    }
}

#[cfg(test)]
#[path = "frame_link_tests.rs"]
mod tests;
