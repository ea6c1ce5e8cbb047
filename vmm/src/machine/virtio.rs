//! Builds the virtio devices of a configuration: device, back end, workers, PCI function.

use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::sync::{Arc, Mutex, PoisonError};

use devices::pci::{PciAddress, PciError};
use devices::virtio::blk::{BlkDevice, BlkStats};
use devices::virtio::console::ConsoleDevice;
use devices::virtio::counters::QueueCounters;
use devices::virtio::limit::{Meters, Throttle};
use devices::virtio::net::responder::{BadLease, Responder};
use devices::virtio::net::{Duplex as LinkDuplex, NetConfig as LinkConfig, NetDevice};
use devices::virtio::pci::{Doorbell, Doorbells, QueueMessages, VirtioPci, VirtioPciParts};
use devices::virtio::rng::RngDevice;
use devices::virtio::{QueueRunner, VirtioDevice, VirtioInterrupt};
use devices::wake::Wake;
use devices_host::disk::Disk;
use devices_host::engine::Engine;
use devices_host::event::Event;
use devices_host::sys::Link;
use devices_host::tap::{InterfaceEvents, Tap, TapError};

use super::adapters::{
    ConsoleEnd, ConsolePipe, DiskFailures, EngineDisk, HostClock, HostRandom, Pace, TapLink, WorkerWake,
};
use super::chipset::{Chipset, ChipsetError};
use super::limits::Groups;
use super::link::{HostSide, NetLink};
use super::resize::ResizableDisk;
use super::write_through::WriteThrough;
use super::{StartError, address, carried, disk};
use crate::config::{Carrier, DiskConfig, DiskEngine, Duplex, Mac, NetConfig, Profile, Slot, VmConfig, system_text};
use crate::control::EventSender;
use crate::hypervisor::{DoorbellAddress, HardwareDoorbells, Hypervisor, HypervisorError, Vm};
use crate::sandbox::ThreadKind;
use crate::worker::{DeviceWorkers, Rings, WorkerSpec};

/// What a device needs of the host, opened before any guest memory exists.
pub struct HostDevices {
    disks: Vec<Arc<Disk>>,
    nets: Vec<HostNet>,
    /// What becomes of the interfaces of those, if there are some.
    pub interfaces: Option<InterfaceEvents>,
}

/// What is behind a network interface.
enum HostNet {
    /// A TAP device, with the address that the guest's interface has.
    Tap(Tap, Mac),
    /// A data link whose queues the VM's kernel carries.
    Kernel(Link),
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
    /// Opens every disk and TAP of the configuration, volumes and data links through the hypervisor's kernel; the error is one
    /// line that names the device.
    ///
    /// # Errors
    /// What the configuration names and nobody can use (missing, of another kind, taken, not permitted) is its fault,
    /// as a missing kernel is; anything else is the host's.
    pub fn open(config: &VmConfig, hypervisor: &dyn Hypervisor) -> Result<Self, StartError> {
        let sys = hypervisor.sys();
        let disks = config.disks.iter().map(|config| disk::open(config, sys)).collect::<Result<_, _>>()?;
        let nets: Vec<_> = config.nets.iter().map(|net| open_net(net, hypervisor)).collect::<Result<_, _>>()?;
        let listens = nets.iter().any(|net| matches!(net, HostNet::Tap(..)));
        let interfaces = listens.then(InterfaceEvents::listen).transpose().map_err(|error| {
            StartError::Host(format!("cannot hear of changes to network interfaces: {}", system_text(&error)))
        })?;
        Ok(Self { disks, nets, interfaces })
    }
}

fn open_net(config: &NetConfig, hypervisor: &dyn Hypervisor) -> Result<HostNet, StartError> {
    match (config.carrier, hypervisor.kernel_link(&config.tap)) {
        (Carrier::Tap, _) | (Carrier::Vnic, None) => open_tap(config).map(|(tap, mac)| HostNet::Tap(tap, mac)),
        (Carrier::Viona | Carrier::Vnic, Some(found)) => carried::check(config, found).map(HostNet::Kernel),
        (Carrier::Viona, None) => {
            let (id, name) = (&config.id, hypervisor.capabilities().name);
            Err(StartError::Config(format!("{id}: {name} has no viona, which is bhyve's on illumos: use tap=")))
        }
    }
}

fn open_tap(config: &NetConfig) -> Result<(Tap, Mac), StartError> {
    let tap = Tap::open(&config.tap).map_err(|error| {
        let line = format!("{}: {error}", config.id);
        match error {
            TapError::NoTun(_) => StartError::HostLacks(line),
            TapError::Call { .. } => StartError::Host(line),
            _ => StartError::Config(line),
        }
    })?;
    Ok((tap, address::of(config)?))
}

/// Puts devices on the PCI bus of a machine.
pub struct Builder<'a> {
    pub vm: &'a dyn Vm,
    pub chipset: &'a Chipset,
    pub profile: Profile,
    pub events: &'a EventSender,
    pub devices: Vec<Device>,
    pub resizable: Vec<ResizableDisk>,
    pub links: Vec<NetLink>,
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
struct Queues {
    rings: Rings,
    workers: Vec<WorkerSpec>,
    /// By queue.
    counters: Vec<Arc<QueueCounters>>,
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
            let worker = Box::new(worker);
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

    /// A network interface: one worker to send and one to receive, as two directions of one link never wait for each
    /// other. What the driver says on the control queue is about received frames, and their worker carries it out.
    pub fn net(&mut self, config: &NetConfig, (tap, mac): (Tap, Mac), slot: Slot) -> Result<(), DeviceError> {
        let host = |what| move |source| DeviceError::Host { id: config.id.clone(), what, source };
        let event = || Event::new().map(Arc::new).map_err(host("cannot create a wake-up"));
        let rx_wake = event()?;
        let mut device = NetDevice::new(card(config, mac.0, None));
        if let Some(dhcp) = &config.dhcp {
            let refused = |source| DeviceError::Lease { id: config.id.clone(), source };
            let responder = Responder::new(&dhcp.lease()).map_err(refused)?;
            device = device.with_responder(responder, Arc::new(WorkerWake(rx_wake.clone())));
        }
        let counters: Vec<_> = (0..3).map(|_| Arc::new(QueueCounters::default())).collect();
        let again = |tap: &Tap| tap.try_clone().map_err(host("cannot open its TAP device twice"));
        let (sender, watched) = (again(&tap)?, again(&tap)?);
        let (rx_fd, tx_fd) = (tap.as_fd().as_raw_fd(), sender.as_fd().as_raw_fd());
        let specs = vec![
            WorkerSpec {
                name: format!("{}-rx", config.id),
                worker: Box::new(device.rx_worker(TapLink(tap), counters[0].clone(), counters[2].clone())),
                wake: rx_wake,
                backend_fd: Some(rx_fd),
                counters: vec![counters[0].clone(), counters[2].clone()],
                poll_ns: 0,
            },
            WorkerSpec {
                name: format!("{}-tx", config.id),
                worker: Box::new(device.tx_worker(TapLink(sender), counters[1].clone())),
                wake: event()?,
                backend_fd: Some(tx_fd),
                counters: vec![counters[1].clone()],
                poll_ns: 0,
            },
        ];
        let rings = Rings { packed: config.packed, in_order: config.in_order };
        let queues = Queues { rings, workers: specs, counters };
        let (workers, interrupt) =
            self.add("net", ThreadKind::NetQueue, &config.id, Arc::new(device.clone()), queues, slot)?;
        if let Some(added) = self.devices.last_mut() {
            added.card = Some(device.clone());
        }
        let host = Some(HostSide::new(config.tap.clone(), watched));
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

    fn add(
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
            legacy: self.profile != Profile::Micro,
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
        for ((net, behind), slot) in config.nets.iter().zip(host.nets).zip(&plan.nets) {
            match behind {
                HostNet::Tap(tap, mac) => self.net(net, (tap, mac), *slot)?,
                HostNet::Kernel(link) => self.carried_net(net, &link, *slot)?,
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
pub(super) fn card(config: &NetConfig, mac: [u8; 6], mtu: Option<u16>) -> LinkConfig {
    LinkConfig {
        mac,
        mtu,
        offloads: true,
        queue_size: config.queue_size,
        speed_mbits: config.speed,
        duplex: config.duplex.map(|duplex| match duplex {
            Duplex::Half => LinkDuplex::Half,
            Duplex::Full => LinkDuplex::Full,
        }),
    }
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
