//! Builds the virtio devices of a configuration: device, back end, workers, PCI function.

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::{Arc, Mutex, PoisonError};

use devices::pci::{PciAddress, PciError};
use devices::virtio::blk::{BlkDevice, BlkStats};
use devices::virtio::console::ConsoleDevice;
use devices::virtio::counters::QueueCounters;
use devices::virtio::limit::{Meters, Throttle};
use devices::virtio::net::responder::{BadLease, Responder};
use devices::virtio::net::{Duplex as LinkDuplex, NetConfig as CardConfig, NetDevice};
use devices::virtio::pci::{Doorbell, Doorbells, Interfaces, QueueMessages, VirtioPci, VirtioPciParts};
use devices::virtio::rng::RngDevice;
use devices::virtio::{QueueRunner, VirtioDevice, VirtioInterrupt};
use devices::wake::Wake;
use devices_host::disk::Disk;
use devices_host::engine::Engine;
use devices_host::event::Event;
use devices_host::tap::{InterfaceEvents, Tap};

use super::adapters::{ConsoleEnd, ConsolePipe, DiskFailures, EngineDisk, HostClock, HostRandom, Pace, WorkerWake};
use super::chipset::{Chipset, ChipsetError};
use super::frame_link::{GuestLink, HostLink};
use super::limits::{self, Groups};
use super::link::{HostSide, NetLink};
use super::resize::ResizableDisk;
use super::tap_link::TapLink;
use super::write_through::WriteThrough;
use super::{StartError, disk};
use crate::config::{
    DiskConfig, DiskEngine, Duplex, Mac, NetConfig, Profile, Slot, VirtioInterfaces, VmConfig, system_text,
};
use crate::control::EventSender;
use crate::hypervisor::{DoorbellAddress, HardwareDoorbells, Hypervisor, HypervisorError, Vm};
use crate::sandbox::ThreadKind;
use crate::worker::{BackendFd, DeviceWorkers, Rings, WorkerSpec};

/// What a device needs of the host, opened before any guest memory exists.
pub struct HostDevices {
    disks: Vec<Arc<Disk>>,
    /// With the address that its guest's interface has.
    nets: Vec<(HostLink, Mac)>,
    /// What becomes of the TAP interfaces among those, if there are some.
    pub interfaces: Option<InterfaceEvents>,
}

/// A device of the running machine, for pause, stop and statistics.
pub struct Device {
    /// Name in logs and counters.
    pub id: String,
    /// `disk`, `net`, `rng` or `console`.
    pub kind: &'static str,
    /// Its queues' threads.
    pub workers: Arc<DeviceWorkers>,
    /// Counters by queue.
    pub queues: Vec<Arc<QueueCounters>>,
    /// The disk, where it is one.
    pub disk: Option<BlkDevice>,
    /// The card, where it is a network interface.
    pub card: Option<NetDevice>,
    /// Counters of a disk's requests by queue; other devices have none.
    pub requests: Vec<Arc<BlkStats>>,
}

/// Why a device cannot be built once its host side is open.
#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    /// The host is out of something.
    #[error("{id}: {what}: {}", crate::config::system_text(.source))]
    Host {
        /// The device.
        id: String,
        /// What was asked for.
        what: &'static str,
        /// What the host said.
        source: io::Error,
    },
    /// The address for its guest does not fit a DHCP answer.
    #[error("{id}: {source}")]
    Lease {
        /// The device.
        id: String,
        /// Why.
        source: BadLease,
    },
    /// The kernel does not carry its queues.
    #[error("{id}: {source}")]
    Kernel {
        /// The device.
        id: String,
        /// Why.
        source: HypervisorError,
    },
    /// PCI has no place for it.
    #[error("{id}: {source}")]
    Pci {
        /// The device.
        id: String,
        /// Why.
        source: PciError,
    },
}

impl HostDevices {
    /// Opens every disk and link of the configuration, those of an illumos kernel through the hypervisor; the error is one
    /// line that names the device.
    ///
    /// # Errors
    /// What the configuration names and nobody can use (missing, of another kind, taken, not permitted) is its fault,
    /// as a missing kernel is; anything else is the host's.
    pub fn open(config: &VmConfig, hypervisor: &dyn Hypervisor) -> Result<Self, StartError> {
        let sys = hypervisor.sys();
        let disks = config.disks.iter().map(|config| disk::open(config, sys)).collect::<Result<_, _>>()?;
        let nets: Vec<_> =
            config.nets.iter().map(|config| HostLink::open(config, hypervisor)).collect::<Result<_, _>>()?;
        let has_taps = nets.iter().any(|(link, _)| matches!(link, HostLink::Tap(_) | HostLink::Vhost(_)));
        let interfaces = has_taps.then(InterfaceEvents::listen).transpose().map_err(|error| {
            StartError::Host(format!("cannot hear of changes to network interfaces: {}", system_text(&error)))
        })?;
        Ok(Self { disks, nets, interfaces })
    }
}

/// Which drivers find the virtio devices of a machine.
pub fn interfaces(config: &VmConfig) -> Interfaces {
    match config.virtio {
        VirtioInterfaces::Legacy => Interfaces::Legacy,
        VirtioInterfaces::Both if config.profile != Profile::Micro => Interfaces::Both,
        VirtioInterfaces::Both | VirtioInterfaces::Modern => Interfaces::Modern,
    }
}

/// Puts devices on the PCI bus of a machine.
pub struct Builder<'a> {
    pub vm: &'a dyn Vm,
    pub chipset: &'a Chipset,
    /// Which drivers find its virtio devices.
    pub interfaces: Interfaces,
    pub events: &'a EventSender,
    pub devices: Vec<Device>,
    pub resizable: Vec<ResizableDisk>,
    pub links: Vec<NetLink>,
    pub frame_links: Vec<GuestLink>,
}

/// A device before it is on the bus, with what the transport is to know of its queues.
pub(super) struct Seat {
    pub device: Arc<dyn VirtioDevice>,
    pub runner: Arc<dyn QueueRunner>,
    pub doorbells: Arc<dyn Doorbells>,
    /// Who sends the queues' interrupts in our stead.
    pub messages: Option<Arc<dyn QueueMessages>>,
    pub workers: Arc<DeviceWorkers>,
    /// By queue.
    pub counters: Vec<Arc<QueueCounters>>,
}

/// How a device's queues run.
pub(super) struct Queues {
    pub rings: Rings,
    pub workers: Vec<WorkerSpec>,
    /// By queue.
    pub counters: Vec<Arc<QueueCounters>>,
}

impl Builder<'_> {
    /// A disk, with a worker and an engine a queue, all of them held back by `limits`.
    pub fn disk(
        &mut self,
        config: &DiskConfig,
        disk: Arc<Disk>,
        slot: Slot,
        vcpus: u8,
        limits: &[Meters],
    ) -> Result<(), DeviceError> {
        let host = |what| move |source| DeviceError::Host { id: config.id.clone(), what, source };
        let seen = disk::seen(config, &disk, vcpus);
        let (queues, block_bytes) = (seen.queues, seen.block_bytes);
        let failures = DiskFailures { id: config.id.clone(), events: self.events.clone(), log: Pace::default() };
        let device = BlkDevice::with_sink(seen, Arc::new(failures));
        let ram = Arc::new(self.vm.ram().clone());
        let options = disk::engine(config, queues);
        let poll_ns = disk::poll_ns(config);
        let round_bytes = disk::round_bytes(options.kind, poll_ns, disk.alignment().is_some());
        let mut specs = Vec::new();
        let (mut counters, mut requests) = (Vec::new(), Vec::new());
        for queue in 0..queues {
            let name = format!("{}-q{queue}", config.id);
            let wake = Arc::new(Event::new().map_err(host("cannot create a wake-up"))?);
            let engine =
                Engine::start(&name, disk.clone(), ram.clone(), wake.clone(), &options).map_err(host(match config
                    .engine
                {
                    DiskEngine::Threads => "cannot start its threads",
                    DiskEngine::IoUring => "cannot have the kernel do its work (engine=threads works everywhere)",
                }))?;
            let count = Arc::new(QueueCounters::default());
            let (clock, stats) = (Arc::new(HostClock), Arc::new(BlkStats::new(config.latency)));
            let worker = device.worker(queue, EngineDisk(engine), count.clone());
            let worker = worker.with_throttle(Throttle::new(limits, clock.clone())).with_stats(stats.clone(), clock);
            let worker = Box::new(worker.with_round_bytes(round_bytes));
            requests.push(stats);
            specs.push(WorkerSpec { name, worker, wake, backend_fd: None, counters: vec![count.clone()], poll_ns });
            counters.push(count);
        }
        let rings = Rings { packed: config.packed, in_order: config.in_order };
        let queues = Queues { rings, workers: specs, counters };
        let offered: Arc<dyn VirtioDevice> = match config.write_through {
            true => Arc::new(WriteThrough(device.clone())),
            false => Arc::new(device.clone()),
        };
        let (workers, interrupt) = self.add("disk", ThreadKind::DiskQueue, &config.id, offered, queues, slot)?;
        if let Some(added) = self.devices.last_mut() {
            added.disk = Some(device.clone());
            added.requests = requests;
        }
        let id = config.id.clone();
        self.resizable.push(ResizableDisk { id, device, disk, block_bytes, workers, interrupt });
        Ok(())
    }

    /// A network interface: a worker to send and one to receive for each queue pair, as two directions of one link never
    /// wait for each other. What the driver says on the control queue is about received frames, and the first of their
    /// workers carries it out.
    pub fn net(&mut self, config: &NetConfig, (taps, mac): (Vec<Tap>, Mac), slot: Slot) -> Result<(), DeviceError> {
        let host = |what| move |source| DeviceError::Host { id: config.id.clone(), what, source };
        let rx_wakes: Vec<Arc<Event>> = taps.iter().map(|_| event(&config.id)).collect::<Result<_, _>>()?;
        let mut device = card(config, mac, &rx_wakes, true, None)?;
        // All of them are of one interface.
        if taps.first().is_some_and(Tap::has_udp_segments) {
            device = device.with_udp_segments();
        }
        let again = |tap: &Tap| tap.try_clone().map_err(host("cannot open its TAP device twice"));
        let (to_guest, from_guest) = throttles(config);
        let control = Arc::new(QueueCounters::default());
        let (mut specs, mut counters, mut watched) = (Vec::new(), Vec::new(), None);
        let senders: Vec<Tap> = taps.iter().map(again).collect::<Result<_, _>>()?;
        let rx_fds: Vec<RawFd> = taps.iter().map(AsRawFd::as_raw_fd).collect();
        let receivers = TapLink::of_queues(taps).map_err(host("cannot open its TAP device twice"))?;
        let of_pairs = receivers.into_iter().zip(rx_fds).zip(senders).zip(&rx_wakes);
        for (pair, (((link, rx_fd), sender), wake)) in (0u16..).zip(of_pairs) {
            let [rx, tx] = [(); 2].map(|()| Arc::new(QueueCounters::default()));
            counters.extend([rx.clone(), tx.clone()]);
            if watched.is_none() {
                watched = Some(again(&sender)?);
            }
            let tx_fd = sender.as_raw_fd();
            let name =
                |way| if pair == 0 { format!("{}-{way}", config.id) } else { format!("{}-{way}{pair}", config.id) };
            let mut counted = vec![rx.clone()];
            let receiver = if pair == 0 {
                counted.push(control.clone());
                device.rx_worker(link, rx, control.clone())
            } else {
                device.further_rx_worker(pair, link, rx)
            };
            let sender = device.further_tx_worker(pair, TapLink::new(sender), tx.clone());
            specs.push(WorkerSpec {
                name: name("rx"),
                worker: Box::new(receiver.with_throttles(to_guest(), Throttle::default())),
                wake: wake.clone(),
                backend_fd: Some(BackendFd::Fixed(rx_fd)),
                counters: counted,
                poll_ns: 0,
            });
            specs.push(WorkerSpec {
                name: name("tx"),
                worker: Box::new(sender.with_throttles(Throttle::default(), from_guest())),
                wake: event(&config.id)?,
                backend_fd: Some(BackendFd::Fixed(tx_fd)),
                counters: vec![tx],
                poll_ns: 0,
            });
        }
        counters.push(control);
        let rings = Rings { packed: config.packed, in_order: config.in_order };
        let queues = Queues { rings, workers: specs, counters };
        let (workers, interrupt) =
            self.add("net", ThreadKind::NetQueue, &config.id, Arc::new(device.clone()), queues, slot)?;
        if let Some(added) = self.devices.last_mut() {
            added.card = Some(device.clone());
        }
        let host = watched.map(|tap| HostSide::new(config.link_name(), tap));
        self.links.push(NetLink { id: config.id.clone(), device, workers, interrupt, host });
        Ok(())
    }

    /// An entropy source.
    pub fn rng(&mut self, slot: Slot) -> Result<(), DeviceError> {
        let counters = Arc::new(QueueCounters::default());
        let spec = WorkerSpec {
            name: "rng".into(),
            worker: Box::new(RngDevice.worker(HostRandom, counters.clone())),
            wake: event("rng")?,
            backend_fd: None,
            counters: vec![counters.clone()],
            poll_ns: 0,
        };
        let queues = Queues { rings: Rings::default(), workers: vec![spec], counters: vec![counters] };
        self.add("rng", ThreadKind::RngQueue, "rng", Arc::new(RngDevice), queues, slot).map(drop)
    }

    /// A console with one port; the main loop's end of it is returned.
    pub fn console(&mut self, slot: Slot, main: Arc<dyn Wake>) -> Result<Arc<ConsolePipe>, DeviceError> {
        let wake = event("console")?;
        let pipe = ConsolePipe::new(main, wake.clone());
        let counters: Vec<_> = (0..2).map(|_| Arc::new(QueueCounters::default())).collect();
        let device = ConsoleDevice::new(None);
        let worker = device.worker(ConsoleEnd(pipe.clone()), counters[0].clone(), counters[1].clone());
        let spec = WorkerSpec {
            name: "console".into(),
            worker: Box::new(worker),
            wake,
            backend_fd: None,
            counters: counters.clone(),
            poll_ns: 0,
        };
        let queues = Queues { rings: Rings::default(), workers: vec![spec], counters };
        self.add("console", ThreadKind::ConsoleQueue, "console", Arc::new(device), queues, slot)?;
        Ok(pipe)
    }

    pub(super) fn add(
        &mut self,
        kind: &'static str,
        threads: ThreadKind,
        id: &str,
        device: Arc<dyn VirtioDevice>,
        queues: Queues,
        slot: Slot,
    ) -> Result<(Arc<DeviceWorkers>, Arc<dyn VirtioInterrupt>), DeviceError> {
        let workers = DeviceWorkers::spawn_as(threads, self.vm.ram(), queues.rings, queues.workers)
            .map_err(|source| DeviceError::Host { id: id.to_owned(), what: "cannot start a thread", source })?;
        let doorbells = KernelDoorbells::new(id, self.vm.doorbells(), workers.clone());
        let (runner, counters) = (workers.clone(), queues.counters);
        let seat = Seat { device, runner, doorbells, messages: None, workers: workers.clone(), counters };
        Ok((workers, self.place(kind, id, seat, slot)?))
    }

    /// Puts a device with its workers on the bus.
    pub(super) fn place(
        &mut self,
        kind: &'static str,
        id: &str,
        seat: Seat,
        slot: Slot,
    ) -> Result<Arc<dyn VirtioInterrupt>, DeviceError> {
        let pci = |source| DeviceError::Pci { id: id.to_owned(), source };
        let Seat { device, runner, doorbells, messages, workers, counters: queues } = seat;
        let slot = PciAddress::new(slot.device, slot.function).map_err(pci)?;
        let (pin, intx, interrupt_line) = self.chipset.interrupt_pin(slot);
        let parts = VirtioPciParts {
            name: id.to_owned(),
            msix: (0..=queues.len()).map(|_| self.vm.msi_source()).collect(),
            device,
            runner,
            intx: Arc::new(intx),
            pin,
            interrupt_line,
            doorbells,
            slot,
            mapper: self.chipset.mapper.clone(),
            interfaces: self.interfaces,
        };
        let function = match messages {
            None => VirtioPci::new(parts),
            Some(messages) => VirtioPci::carried(parts, messages),
        }
        .map_err(pci)?;
        let interrupt = function.interrupt();
        self.chipset.pci.add(slot, id, function).map_err(pci)?;
        let (id, disk, card, requests) = (id.to_owned(), None, None, Vec::new());
        self.devices.push(Device { id, kind, workers, queues, disk, card, requests });
        Ok(interrupt)
    }

    /// All devices of `config`, in the slots its plan says.
    pub fn all(
        &mut self,
        config: &VmConfig,
        host: HostDevices,
        main: &Arc<dyn Wake>,
    ) -> Result<Option<Arc<ConsolePipe>>, BuildError> {
        let plan = config.slot_plan().map_err(|error| BuildError::Config(error.to_string()))?;
        let groups = Groups::new(&config.limit_groups);
        for ((disk, opened), slot) in config.disks.iter().zip(host.disks).zip(&plan.disks) {
            self.disk(disk, opened, *slot, config.cpus.count, &groups.meters_of(disk))?;
        }
        for ((net, (link, mac)), slot) in config.nets.iter().zip(host.nets).zip(&plan.nets) {
            match link {
                HostLink::Tap(tap) => self.net(net, (tap, mac), *slot)?,
                HostLink::Vhost(taps) => self.vhost_net(net, (taps, mac), *slot)?,
                HostLink::Kernel(link) => self.carried_net(net, &link, *slot)?,
                HostLink::Frames(link) => self.frame_net(net, (link, mac), *slot)?,
            }
        }
        if let Some(slot) = plan.rng {
            self.rng(slot)?;
        }
        plan.console.map(|slot| self.console(slot, main.clone())).transpose().map_err(BuildError::Device)
    }
}

/// Why the machine's devices cannot be built.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// A slot that the check did not catch.
    #[error("{0}")]
    Config(String),
    /// A device.
    #[error("{0}")]
    Device(#[from] DeviceError),
    /// The chipset.
    #[error("{0}")]
    Chipset(#[from] ChipsetError),
}

/// What the card of an interface looks like.
pub(super) fn face(config: &NetConfig, mac: [u8; 6], offloads: bool, mtu: Option<u16>) -> CardConfig {
    CardConfig {
        mac,
        mtu,
        offloads,
        queue_size: config.queue_size,
        speed_mbits: config.speed,
        duplex: config.duplex.map(|duplex| match duplex {
            Duplex::Half => LinkDuplex::Half,
            Duplex::Full => LinkDuplex::Full,
        }),
    }
}

/// The card of an interface: with a responder where it has one, that wakes the worker of received frames.
pub(super) fn card(
    config: &NetConfig,
    mac: Mac,
    receivers: &[Arc<Event>],
    offloads: bool,
    mtu: Option<u16>,
) -> Result<NetDevice, DeviceError> {
    let mut device = NetDevice::new(face(config, mac.0, offloads, mtu));
    let receivers = receivers.iter().map(|wake| -> Arc<dyn Wake> { Arc::new(WorkerWake(wake.clone())) });
    if let (Some(dhcp), Some(first)) = (&config.dhcp, receivers.clone().next()) {
        let refused = |source| DeviceError::Lease { id: config.id.clone(), source };
        device = device.with_responder(Responder::new(&dhcp.lease()).map_err(refused)?, first);
    }
    device = device.with_pairs(receivers.collect()).without_features(config.feature_mask);
    Ok(if config.mac_check { device.with_checked_source() } else { device })
}

/// What holds back the workers of each direction: to the guest, and from it.
pub(super) fn throttles(config: &NetConfig) -> (impl Fn() -> Throttle, impl Fn() -> Throttle) {
    let of = |limit| {
        let meters = limits::of_direction(limit);
        move || Throttle::new(std::slice::from_ref(&meters), Arc::new(HostClock))
    };
    (of(&config.limits.rx), of(&config.limits.tx))
}

pub(super) fn event(id: &str) -> Result<Arc<Event>, DeviceError> {
    Event::new().map(Arc::new).map_err(|source| DeviceError::Host {
        id: id.to_owned(),
        what: "cannot create a wake-up",
        source,
    })
}

/// Binds a device's doorbells to its workers' wake-ups where the hypervisor can; elsewhere the bus write kicks.
struct KernelDoorbells {
    id: String,
    kernel: Option<Arc<dyn HardwareDoorbells>>,
    workers: Arc<DeviceWorkers>,
    bound: Mutex<Vec<(u16, DoorbellAddress)>>,
}

impl KernelDoorbells {
    fn new(id: &str, kernel: Option<Arc<dyn HardwareDoorbells>>, workers: Arc<DeviceWorkers>) -> Arc<Self> {
        Arc::new(Self { id: id.to_owned(), kernel, workers, bound: Mutex::default() })
    }
}

impl Doorbells for KernelDoorbells {
    fn place(&self, queue: u16, at: Option<Doorbell>) {
        let (Some(kernel), Some(wake)) = (&self.kernel, self.workers.wake_of(queue)) else { return };
        let fd = wake.as_raw_fd();
        let warn = |error| log::warn!("{}: doorbell of queue {queue}: {error}; it goes through the process", self.id);
        let mut bound = self.bound.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(index) = bound.iter().position(|(bound, _)| *bound == queue) {
            let (_, address) = bound.swap_remove(index);
            kernel.unbind(address, fd).unwrap_or_else(warn);
        }
        let address = match at {
            None => return,
            Some(Doorbell::Mmio { address, .. }) => DoorbellAddress::Mmio(address),
            Some(Doorbell::Pio { port, datamatch }) => DoorbellAddress::Pio { port, value: datamatch },
        };
        match kernel.bind(address, fd) {
            Ok(()) => bound.push((queue, address)),
            Err(error) => warn(error),
        }
    }
}
