//! The process's side of the machine: buses, the function, its device and its workers. A restored machine is another one
//! of these around the same memory and the same other ends.

use std::sync::Arc;

use devices::bus::{Bus, BusView};
use devices::legacy::clock::ManualClock;
use devices::pci::{BarMapper, ConfigPorts, Ecam, InterruptPin, PciAddress, PciBus, Windows, micro_host_bridge};
use devices::virtio::blk::{BlkConfig, BlkDevice, BlkStats, EraseLimits, Failure, FailureSink};
use devices::virtio::console::ConsoleDevice;
use devices::virtio::counters::QueueCounters;
use devices::virtio::limit::Throttle;
use devices::virtio::net::{NetConfig, NetDevice};
use devices::virtio::pci::{Interfaces, VirtioPci, VirtioPciParts};
use devices::virtio::rng::RngDevice;
use devices::virtio::{VirtioDevice, VirtioWorker};
use devices::wake::{Wake, WakeCounter};

use super::disk::Disk;
use super::ends::End;
use super::ram::Ram;
use super::runner::Runner;
use super::wires::Wired;
use crate::lone::Lone;
use crate::oracle::net::PAIRS;
use crate::oracle::{Device, Oracles, limit, resources};

pub use crate::oracle::blk::SECTORS;

/// Where configuration space is seen in memory.
pub const ECAM: u64 = 0xb000_0000;
/// Where the device sits.
pub const SLOT: PciAddress = PciAddress::from_devfn(3 << 3);

/// Which device a machine has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Kind {
    /// A disk.
    #[default]
    Blk,
    /// A network card.
    Net,
    /// A console.
    Console,
    /// A random generator.
    Rng,
}

/// The device itself, where the machine changes it.
pub enum Handle {
    /// A disk.
    Blk(BlkDevice),
    /// A card.
    Net(NetDevice),
    /// A console.
    Console(ConsoleDevice),
    /// A generator.
    Rng,
}

/// What a machine is made of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Its device.
    pub kind: Kind,
    /// Found by legacy drivers.
    pub transitional: bool,
    /// MSI-X vectors.
    pub vectors: usize,
    /// Ring features its workers carry.
    pub rings: u64,
    /// Queue pairs of the card.
    pub pairs: u16,
    /// The disk.
    pub disk: BlkConfig,
    /// Its queues are held to a rate.
    pub limited: bool,
    /// They measure how long requests take.
    pub timed: bool,
}

impl Shape {
    /// A machine with `kind`; bits of `knob` choose what it offers.
    #[must_use]
    pub fn new(kind: Kind, knob: u8) -> Self {
        let limits = (knob & 1 == 0).then_some(EraseLimits { max_sectors: 32, max_segments: 2, alignment_sectors: 1 });
        let disk = BlkConfig {
            capacity_sectors: SECTORS,
            read_only: knob & 0x0e == 0x0e,
            serial: if knob & 2 == 0 { "zvmm" } else { "a serial number of thirty bytes" }.to_owned(),
            queue_size: if knob & 4 == 0 { 16 } else { 128 },
            queues: if knob & 8 == 0 { 1 } else { 2 },
            discard: limits,
            write_zeroes: limits,
            config_wce: knob & 0x10 == 0,
            ..BlkConfig::default()
        };
        Self {
            kind,
            transitional: knob & 0x20 == 0,
            vectors: if knob & 0xc0 == 0xc0 { 0 } else { 3 },
            rings: super::runner::ALL_RINGS,
            pairs: 1,
            disk,
            limited: false,
            timed: false,
        }
    }
}

/// Buses, function, device and workers.
pub struct Vmm {
    /// Ports as the vCPU sees them.
    pub ports: BusView,
    /// Memory beside RAM as the vCPU sees it.
    pub memory: BusView,
    /// Bus 0.
    pub pci: Arc<PciBus>,
    /// The function.
    pub function: Arc<VirtioPci>,
    /// Its workers.
    pub runner: Arc<Runner>,
    /// Its device.
    pub handle: Handle,
    /// Its device as its transport sees it.
    pub device: Arc<dyn VirtioDevice>,
    /// What the queues of a disk say of themselves.
    pub stats: Vec<Arc<BlkStats>>,
    /// Counters of a card's queues.
    card: [Arc<QueueCounters>; super::QUEUES],
    pairs: u16,
}

type Workers = Vec<Box<dyn VirtioWorker<Ram>>>;

/// Where PCI may put BARs.
#[must_use]
pub fn windows() -> Windows {
    Windows {
        io: 0xc000..0x1_0000,
        mem32: 0xe000_0000..0xf000_0000,
        mem64: Some(0x80_0000_0000..0x90_0000_0000),
        prefer_mem64: false,
    }
}

struct NoReset;

impl devices::bus::BusDevice for NoReset {
    fn read(&self, _offset: u64, data: &mut [u8]) -> devices::bus::Access {
        data.fill(0);
        devices::bus::Access::Done
    }

    fn write(&self, _offset: u64, _data: &[u8]) -> devices::bus::Access {
        devices::bus::Access::Done
    }
}

/// The operator of a disk, who hears of failures.
struct Operator(Arc<Lone<Oracles>>);

impl FailureSink for Operator {
    fn failed(&self, failure: Failure) {
        let _quiet = resources::Quiet::begin();
        if let Device::Blk(blk) = &mut self.0.open().device {
            blk.heard(failure);
        }
    }
}

impl Vmm {
    /// A machine as it is after power-on.
    #[must_use]
    pub fn new(
        shape: &Shape,
        ram: &Ram,
        oracles: &Arc<Lone<Oracles>>,
        (disk, end): (&Disk, &End),
        wired: &Wired,
        clock: &Arc<ManualClock>,
    ) -> Self {
        let mut stats = Vec::new();
        let card: [Arc<QueueCounters>; super::QUEUES] = Default::default();
        let mut wakes = Vec::new();
        let (handle, device, workers): (Handle, Arc<dyn VirtioDevice>, Workers) = match shape.kind {
            Kind::Blk => {
                let device = BlkDevice::with_sink(shape.disk.clone(), Arc::new(Operator(oracles.clone())));
                stats.extend((0..shape.disk.queues).map(|_| Arc::new(BlkStats::new(shape.timed))));
                let meters = shape.limited.then(limit::meters);
                let worker = |queue| {
                    let worker = device.worker(queue, disk.handle(queue, ram, oracles), Arc::default());
                    let throttle = match &meters {
                        Some(meters) => Throttle::new(std::slice::from_ref(meters), clock.clone()),
                        None => Throttle::default(),
                    };
                    let own: Arc<BlkStats> = stats[usize::from(queue)].clone();
                    Box::new(worker.with_throttle(throttle).with_stats(own, clock.clone()))
                        as Box<dyn VirtioWorker<Ram>>
                };
                let workers = (0..shape.disk.queues).map(worker).collect();
                (Handle::Blk(device.clone()), Arc::new(device), workers)
            }
            Kind::Net => {
                let config = NetConfig {
                    mac: crate::oracle::net::MAC,
                    mtu: Some(crate::oracle::net::MTU as u16),
                    offloads: shape.disk.discard.is_some(),
                    queue_size: 16,
                    speed_mbits: shape.disk.discard.is_some().then_some(10_000),
                    duplex: None,
                };
                let mut device = NetDevice::new(config).with_udp_segments();
                if shape.pairs > 1 {
                    wakes.extend((0..shape.pairs).map(|pair| (2 * pair, Arc::<WakeCounter>::default())));
                    device = device.with_pairs(wakes.iter().map(|(_, wake)| wake.clone() as Arc<dyn Wake>).collect());
                }
                let of = |queue: u16| card[usize::from(queue)].clone();
                let control = of(device.control_queue());
                let mut workers: Workers = if shape.disk.queues == 1 {
                    vec![Box::new(device.worker(end.clone(), [of(0), of(1), control]))]
                } else {
                    vec![
                        Box::new(device.rx_worker(end.clone(), of(0), control)),
                        Box::new(device.tx_worker(end.clone(), of(1))),
                    ]
                };
                for pair in 1..shape.pairs {
                    let end = end.of_pair(pair);
                    workers.push(Box::new(device.further_rx_worker(pair, end.clone(), of(2 * pair))));
                    workers.push(Box::new(device.further_tx_worker(pair, end, of(2 * pair + 1))));
                }
                (Handle::Net(device.clone()), Arc::new(device), workers)
            }
            Kind::Console => {
                let device = ConsoleDevice::new(shape.disk.discard.is_some().then_some((80, 25)));
                let worker = Box::new(device.worker(end.clone(), Arc::default(), Arc::default()));
                (Handle::Console(device.clone()), Arc::new(device), vec![worker])
            }
            Kind::Rng => {
                let worker = Box::new(RngDevice.worker(end.clone(), Arc::default()));
                (Handle::Rng, Arc::new(RngDevice), vec![worker])
            }
        };
        let sizes = device.queue_max_sizes().to_vec();
        let runner = Runner::new(ram, oracles, (end, disk, clock), shape.rings, &sizes, workers);
        let runner = Arc::new(runner.woken_by(wakes));
        let (ports, memory) = (Arc::new(Bus::new()), Arc::new(Bus::new()));
        let mapper = Arc::new(BarMapper::new(&ports, &memory, windows()).expect("windows of PCI"));
        let sources = if shape.vectors > 0 { wired.sources() } else { Vec::new() };
        let function = VirtioPci::new(VirtioPciParts {
            name: "device".to_owned(),
            device: device.clone(),
            runner: runner.clone(),
            msix: sources,
            intx: Arc::new(wired.clone()),
            pin: InterruptPin::A,
            interrupt_line: 11,
            doorbells: Arc::new(wired.clone()),
            slot: SLOT,
            mapper,
            interfaces: if shape.transitional { Interfaces::Both } else { Interfaces::Modern },
        })
        .expect("a function that fits its bus");
        let pci = Arc::new(PciBus::new());
        pci.add(PciAddress::from_devfn(0), "bridge", Arc::new(micro_host_bridge())).expect("a free slot");
        pci.add(SLOT, "device", function.clone()).expect("a free slot");
        let config = Arc::new(ConfigPorts::new(pci.clone(), Arc::new(NoReset)));
        ports.insert(ConfigPorts::BASE, ConfigPorts::LEN, config).expect("free ports");
        memory.insert(ECAM, Ecam::BYTES_PER_BUS, Arc::new(Ecam::new(pci.clone()))).expect("free memory");
        Self {
            ports: BusView::new(ports),
            memory: BusView::new(memory),
            pci,
            function,
            runner,
            handle,
            device,
            stats,
            card,
            pairs: shape.pairs,
        }
    }

    /// Frames that a card's receive and transmit queues count as lost because the link was down.
    #[must_use]
    pub fn lost_to_link(&self) -> [u64; 2 * PAIRS] {
        let control = 2 * usize::from(self.pairs);
        std::array::from_fn(|queue| if queue < control { self.card[queue].link_down.get() } else { 0 })
    }
}
