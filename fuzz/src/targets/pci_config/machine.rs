//! A bus with the bridges of a profile and three virtio functions, without a virtual machine around it.

use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex};

use devices::bus::{Access, Bus, BusView};
use devices::interrupt::{IrqLine, MsiMessage, MsiSource};
use devices::legacy::power::PowerLog;
use devices::legacy::reset::ResetControl;
use devices::park::Parked;
use devices::pci::{
    BarMapper, ConfigPorts, Ecam, FixedFunction, InterruptPin, IntxRouter, PciAddress, PciBus, Piix4Pm, Windows,
    bhyve_host_bridge, bhyve_lpc_bridge, i440fx_host_bridge, micro_host_bridge, piix3_isa_bridge, piix4_pm,
};
use devices::virtio::pci::{Interfaces, NoDoorbells, VirtioPci, VirtioPciParts};
use devices::virtio::{Activation, QueueRunner, QueueState, VirtioDevice};

/// Which bridges.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Profile {
    I440fx,
    Bhyve,
    Micro,
}

pub const ECAM: u64 = 0xb000_0000;

pub fn windows() -> Windows {
    Windows {
        io: 0xc000..0x1_0000,
        mem32: 0xe000_0000..0xf000_0000,
        mem64: Some(0x80_0000_0000..0x90_0000_0000),
        prefer_mem64: true,
    }
}

/// A virtio function of the machine, as its maker knows it.
pub struct Shape {
    pub slot: (u8, u8),
    pub device_type: u16,
    pub interfaces: Interfaces,
    pub queues: &'static [u16],
    pub config_bytes: u32,
    pub vectors: usize,
}

/// Each has another number of queues: that is how an access tells whom it has reached.
pub const SHAPES: [Shape; 3] = [
    Shape { slot: (3, 0), device_type: 4, interfaces: Interfaces::Both, queues: &[64], config_bytes: 0, vectors: 3 },
    Shape {
        slot: (3, 1),
        device_type: 2,
        interfaces: Interfaces::Modern,
        queues: &[128; 5],
        config_bytes: 60,
        vectors: 20,
    },
    Shape {
        slot: (5, 0),
        device_type: 1,
        interfaces: Interfaces::Both,
        queues: &[256; 2],
        config_bytes: 12,
        vectors: 0,
    },
];

/// What a legacy driver reads at the start of the legacy BAR: the offered features, other ones for each function.
pub fn features(which: usize) -> u64 {
    0x10 << which
}

struct Device {
    shape: &'static Shape,
    features: u64,
}

impl VirtioDevice for Device {
    fn device_type(&self) -> u16 {
        self.shape.device_type
    }
    fn features(&self) -> u64 {
        self.features
    }
    fn queue_max_sizes(&self) -> &[u16] {
        self.shape.queues
    }
    fn read_config(&self, offset: u32, data: &mut [u8]) {
        assert!(u64::from(offset) + data.len() as u64 <= u64::from(self.shape.config_bytes), "beyond the end");
        data.fill(0xc5);
    }
    fn write_config(&self, offset: u32, data: &[u8]) {
        assert!(u64::from(offset) + data.len() as u64 <= u64::from(self.shape.config_bytes), "beyond the end");
    }
    fn config_len(&self) -> u32 {
        self.shape.config_bytes
    }
}

/// Runs nothing, and minds being told in the wrong order.
#[derive(Default)]
struct Idle(AtomicBool);

impl QueueRunner for Idle {
    fn start(&self, _activation: Activation) {
        assert!(!self.0.swap(true, Relaxed), "started while running");
    }
    fn reset(&self, done: Parked) {
        self.0.store(false, Relaxed);
        done.complete();
    }
    fn kick(&self, _queue: u16) {
        assert!(self.0.load(Relaxed), "kicked while stopped");
    }
    fn reset_queue(&self, _queue: u16, done: Parked) {
        done.complete();
    }
    fn start_queue(&self, _queue: u16, _state: QueueState) {}
}

/// A message-signalled interrupt that minds being told what it knows.
#[derive(Default)]
pub struct Source(Mutex<(Option<MsiMessage>, u32)>);

impl Source {
    /// Its message, and how often it was sent.
    pub fn seen(&self) -> (Option<MsiMessage>, u32) {
        *self.0.lock().unwrap()
    }

    fn forget_sent(&self) {
        self.0.lock().unwrap().1 = 0;
    }
}

impl MsiSource for Source {
    fn set_message(&self, message: Option<MsiMessage>) {
        let mut state = self.0.lock().unwrap();
        assert_ne!(state.0, message, "a source was told what it knew");
        state.0 = message;
    }
    fn trigger(&self) {
        let mut state = self.0.lock().unwrap();
        state.1 += u32::from(state.0.is_some());
    }
}

/// An interrupt line that remembers its level.
#[derive(Default)]
pub struct Line(AtomicBool);

impl Line {
    pub fn level(&self) -> bool {
        self.0.load(Relaxed)
    }
}

impl IrqLine for Line {
    fn set(&self, asserted: bool) {
        self.0.store(asserted, Relaxed);
    }
}

/// A virtio function and what is around it.
pub struct Function {
    pub pci: Arc<VirtioPci>,
    pub sources: Vec<Arc<Source>>,
    pub line: Arc<Line>,
}

/// The bus.
pub struct Machine {
    pub profile: Profile,
    pub functions: Vec<Function>,
    /// The bridges, with their places.
    pub bridges: Vec<((u8, u8), Arc<FixedFunction>)>,
    pub router: Arc<IntxRouter>,
    pci: Arc<PciBus>,
    config_ports: Arc<ConfigPorts>,
    ports: BusView,
    memory: BusView,
}

impl Machine {
    /// A machine after power-on.
    pub fn new(profile: Profile) -> Self {
        let (ports, memory) = (Arc::new(Bus::new()), Arc::new(Bus::new()));
        let mapper = Arc::new(BarMapper::new(&ports, &memory, windows()).unwrap());
        let pci = Arc::new(PciBus::new());
        let reset_control = Arc::new(ResetControl::new(Arc::new(PowerLog::default())));
        let config_ports = Arc::new(ConfigPorts::new(pci.clone(), reset_control));
        ports.insert(ConfigPorts::BASE, ConfigPorts::LEN, config_ports.clone()).unwrap();
        memory.insert(ECAM, Ecam::BYTES_PER_BUS, Arc::new(Ecam::new(pci.clone()))).unwrap();

        let lines = [5, 10, 11].map(|gsi| (gsi, Arc::new(Line::default()) as Arc<dyn IrqLine>)).to_vec();
        let (router, bridges) = bridges(profile, lines);
        for ((device, function), bridge) in &bridges {
            pci.add(PciAddress::new(*device, *function).unwrap(), "bridge", bridge.clone()).unwrap();
        }
        let functions = SHAPES.iter().enumerate().map(|(which, shape)| Function::new(which, shape, &pci, &mapper));
        Self {
            profile,
            functions: functions.collect(),
            bridges,
            router,
            pci,
            config_ports,
            ports: BusView::new(ports),
            memory: BusView::new(memory),
        }
    }

    /// Puts everything into its power-on state.
    pub fn reset(&mut self) {
        assert!(self.pci.reset().iter().all(Parked::is_complete), "nothing runs that could be waited for");
        self.config_ports.set_address(0);
    }

    /// Forgets what was sent.
    pub fn forget_sent(&self) {
        self.functions.iter().flat_map(|function| &function.sources).for_each(|source| source.forget_sent());
    }

    /// A machine that goes on from the state of this one.
    pub fn restored(&self) -> Self {
        let other = Self::new(self.profile);
        for ((_, from), (_, to)) in self.bridges.iter().zip(&other.bridges) {
            to.restore(&from.save()).unwrap();
        }
        for (from, to) in self.functions.iter().zip(&other.functions) {
            to.pci.restore(&from.pci.save(), &[]).unwrap();
        }
        other.config_ports.set_address(self.config_ports.address());
        other
    }

    pub fn port_read(&mut self, port: u64, data: &mut [u8]) {
        finished(&self.ports.read(port, data));
    }

    pub fn port_write(&mut self, port: u64, data: &[u8]) {
        finished(&self.ports.write(port, data));
    }

    pub fn memory_read(&mut self, address: u64, data: &mut [u8]) {
        finished(&self.memory.read(address, data));
    }

    pub fn memory_write(&mut self, address: u64, data: &[u8]) {
        finished(&self.memory.write(address, data));
    }
}

/// Nothing runs here, so nothing has to be waited for.
fn finished(access: &Access) {
    match access {
        Access::Done => {}
        Access::Parked(token) => assert!(token.is_complete(), "an access waits for ever"),
    }
}

type Bridges = Vec<((u8, u8), Arc<FixedFunction>)>;

fn bridges(profile: Profile, lines: Vec<(u32, Arc<dyn IrqLine>)>) -> (Arc<IntxRouter>, Bridges) {
    match profile {
        Profile::I440fx => {
            let router = IntxRouter::new(lines, [10, 10, 11, 11]);
            let pm = piix4_pm(Piix4Pm { pm_base: 0x600, smbus_base: 0x700 });
            let bridges = vec![
                ((0, 0), Arc::new(i440fx_host_bridge())),
                ((1, 0), Arc::new(piix3_isa_bridge(router.clone()))),
                ((1, 3), Arc::new(pm)),
            ];
            (router, bridges)
        }
        Profile::Bhyve => {
            let fixed = std::array::from_fn(|_| Arc::new(Line::default()) as Arc<dyn IrqLine>);
            let router = IntxRouter::with_fixed(lines, [10, 11, 10, 11, 10, 11, 10, 11], fixed);
            let bridges = vec![
                ((0, 0), Arc::new(bhyve_host_bridge().unwrap())),
                ((31, 0), Arc::new(bhyve_lpc_bridge(router.clone()))),
            ];
            (router, bridges)
        }
        Profile::Micro => (IntxRouter::new(lines, [10, 10, 11, 11]), vec![((0, 0), Arc::new(micro_host_bridge()))]),
    }
}

impl Function {
    /// One that has a bus for itself.
    pub fn alone(which: usize) -> Self {
        let mapper = BarMapper::new(&Arc::new(Bus::new()), &Arc::new(Bus::new()), windows()).unwrap();
        Self::new(which, &SHAPES[which], &PciBus::new(), &Arc::new(mapper))
    }

    fn new(which: usize, shape: &'static Shape, pci: &PciBus, mapper: &Arc<BarMapper>) -> Self {
        let sources: Vec<Arc<Source>> = (0..shape.vectors).map(|_| Arc::default()).collect();
        let line = Arc::new(Line::default());
        let slot = PciAddress::new(shape.slot.0, shape.slot.1).unwrap();
        let function = VirtioPci::new(VirtioPciParts {
            name: "function".to_owned(),
            device: Arc::new(Device { shape, features: features(which) }),
            runner: Arc::new(Idle::default()),
            msix: sources.iter().map(|source| source.clone() as Arc<dyn MsiSource>).collect(),
            intx: line.clone(),
            pin: InterruptPin::A,
            interrupt_line: 11,
            doorbells: Arc::new(NoDoorbells),
            slot,
            mapper: mapper.clone(),
            interfaces: shape.interfaces,
        })
        .unwrap();
        pci.add(slot, "function", function.clone()).unwrap();
        Self { pci: function, sources, line }
    }
}
