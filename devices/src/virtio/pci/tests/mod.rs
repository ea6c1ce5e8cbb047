//! A machine with one virtio-pci device, and a driver that finds and runs it the way an operating system does.

mod attacks;
mod legacy;
mod messages;
mod modern;
mod places;
mod queue_reset;
mod rules;

use std::sync::{Arc, Mutex};

use super::{Doorbell, Doorbells, Interfaces, QueueMessages, VirtioPci, VirtioPciParts};
use crate::bus::{Access, Bus, BusDevice, BusView};
use crate::interrupt::{IrqLine, MsiMessage, MsiSource};
use crate::park::Parked;
use crate::pci::{BarMapper, ConfigPorts, Ecam, InterruptPin, PciAddress, PciBus, Windows, i440fx_host_bridge};
use crate::virtio::{Activation, NeedsReset, QueueRunner, QueueState, VirtioDevice, VirtioInterrupt};

const ECAM: u64 = 0xb000_0000;
const SLOT: (u8, u8) = (5, 0);

const INDIRECT: u64 = 1 << 28;
const EVENT_IDX: u64 = 1 << 29;
const VERSION_1: u64 = 1 << 32;

struct FakeDevice {
    device_type: u16,
    features: u64,
    queues: Vec<u16>,
    config: Mutex<Vec<u8>>,
    /// Without the feature of bit 0 a driver means the last queue by index 1, and none beyond.
    moves: bool,
    /// What it was told of the driver's features, since the test last looked.
    accepted: Mutex<Vec<u64>>,
}

impl VirtioDevice for FakeDevice {
    fn device_type(&self) -> u16 {
        self.device_type
    }
    fn features(&self) -> u64 {
        self.features
    }
    fn queue_max_sizes(&self) -> &[u16] {
        &self.queues
    }
    fn queue_of(&self, index: u16, features: u64) -> Option<u16> {
        match index {
            _ if !self.moves || features & 1 != 0 => Some(index),
            0 => Some(0),
            1 => Some(self.queues.len() as u16 - 1),
            _ => None,
        }
    }
    fn read_config(&self, offset: u32, data: &mut [u8]) {
        let config = self.config.lock().unwrap();
        // Indexing is the point: the transport may not ask beyond the end.
        data.copy_from_slice(&config[offset as usize..offset as usize + data.len()]);
    }
    fn write_config(&self, offset: u32, data: &[u8]) {
        self.config.lock().unwrap()[offset as usize..offset as usize + data.len()].copy_from_slice(data);
    }
    fn config_len(&self) -> u32 {
        self.config.lock().unwrap().len() as u32
    }
    fn config_generation(&self) -> u8 {
        0x5a
    }
    fn features_accepted(&self, features: u64) {
        self.accepted.lock().unwrap().push(features);
    }
}

/// A strict runner: starting twice, or resetting what does not run, fails the test.
#[derive(Default)]
struct FakeRunner {
    active: Mutex<Option<Activation>>,
    starts: Mutex<Vec<Vec<(u16, QueueState)>>>,
    kicks: Mutex<Vec<u16>>,
    /// Whether a reset waits for [`FakeRunner::stop`].
    slow: Mutex<bool>,
    stopping: Mutex<Vec<Parked>>,
    /// Ring features it carries.
    rings: u64,
    /// Queues that stop on their own, where that is slow.
    stopping_queues: Mutex<Vec<(u16, Parked)>>,
}

impl FakeRunner {
    fn stop(&self) {
        self.active.lock().unwrap().take();
        let stopping: Vec<Parked> = self.stopping.lock().unwrap().drain(..).collect();
        for token in stopping {
            token.complete();
        }
    }
    fn interrupt(&self) -> Arc<dyn VirtioInterrupt> {
        self.active.lock().unwrap().as_ref().unwrap().interrupt.clone()
    }
    fn kicks(&self) -> Vec<u16> {
        std::mem::take(&mut self.kicks.lock().unwrap())
    }
    fn is_active(&self) -> bool {
        self.active.lock().unwrap().is_some()
    }
    fn stop_queues(&self) {
        let stopping: Vec<_> = self.stopping_queues.lock().unwrap().drain(..).collect();
        for (queue, token) in stopping {
            if let Some(active) = &mut *self.active.lock().unwrap() {
                active.queues.retain(|(index, _)| *index != queue);
            }
            token.complete();
        }
    }
    fn running(&self) -> Vec<u16> {
        let active = self.active.lock().unwrap();
        active.iter().flat_map(|active| active.queues.iter().map(|(index, _)| *index)).collect()
    }
}

impl QueueRunner for FakeRunner {
    fn start(&self, activation: Activation) {
        let mut active = self.active.lock().unwrap();
        assert!(active.is_none() && self.stopping.lock().unwrap().is_empty(), "started while running");
        self.starts.lock().unwrap().push(activation.queues.clone());
        *active = Some(activation);
    }
    fn reset(&self, done: Parked) {
        assert!(self.is_active(), "reset while stopped");
        self.stopping.lock().unwrap().push(done);
        if !*self.slow.lock().unwrap() {
            self.stop();
        }
    }
    fn kick(&self, queue: u16) {
        assert!(self.is_active(), "kicked while stopped");
        self.kicks.lock().unwrap().push(queue);
    }
    fn ring_features(&self) -> u64 {
        self.rings
    }
    fn reset_queue(&self, queue: u16, done: Parked) {
        assert!(self.running().contains(&queue), "queue {queue} reset while stopped");
        self.stopping_queues.lock().unwrap().push((queue, done));
        if !*self.slow.lock().unwrap() {
            self.stop_queues();
        }
    }
    fn start_queue(&self, queue: u16, state: QueueState) {
        assert!(!self.running().contains(&queue), "queue {queue} started while running");
        self.starts.lock().unwrap().push(vec![(queue, state)]);
        self.active.lock().unwrap().as_mut().expect("a running device").queues.push((queue, state));
    }
}

/// What a test looks at when an interrupt arrives.
type Look = Mutex<Option<Arc<dyn Fn() + Send + Sync>>>;

#[derive(Default)]
struct FakeMsi(Mutex<(Option<MsiMessage>, u32)>, Look);

impl MsiSource for FakeMsi {
    fn set_message(&self, message: Option<MsiMessage>) {
        self.0.lock().unwrap().0 = message;
    }
    fn trigger(&self) {
        let mut state = self.0.lock().unwrap();
        if state.0.is_some() {
            state.1 += 1;
            drop(state);
            self.1.lock().unwrap().iter().for_each(|look| look());
        }
    }
}

#[derive(Default)]
struct Line(Mutex<bool>, Look);

impl IrqLine for Line {
    fn set(&self, asserted: bool) {
        *self.0.lock().unwrap() = asserted;
        if asserted {
            self.1.lock().unwrap().iter().for_each(|look| look());
        }
    }
}

/// Remembers where each doorbell is, and fails on calls that change nothing.
#[derive(Default)]
struct Watcher(Mutex<std::collections::BTreeMap<u16, Doorbell>>);

impl Doorbells for Watcher {
    fn place(&self, queue: u16, at: Option<Doorbell>) {
        let mut map = self.0.lock().unwrap();
        assert_ne!(map.get(&queue).copied(), at, "nothing changed");
        match at {
            Some(at) => map.insert(queue, at),
            None => map.remove(&queue),
        };
    }
}

struct NoReset;

impl BusDevice for NoReset {
    fn read(&self, _offset: u64, data: &mut [u8]) -> Access {
        data.fill(0);
        Access::Done
    }
    fn write(&self, _offset: u64, _data: &[u8]) -> Access {
        Access::Done
    }
}

/// What differs between the devices under test.
#[derive(Clone)]
struct Shape {
    device_type: u16,
    queues: Vec<u16>,
    config_len: usize,
    vectors: usize,
    interfaces: Interfaces,
    rings: u64,
    moves: bool,
}

impl Default for Shape {
    fn default() -> Self {
        let queues = vec![128, 256];
        Self {
            device_type: 2,
            queues,
            config_len: 60,
            vectors: 3,
            interfaces: Interfaces::Both,
            rings: 0,
            moves: false,
        }
    }
}

/// What a modern driver is offered by [`FakeDevice`].
fn rig_features() -> u64 {
    INDIRECT | EVENT_IDX | VERSION_1 | 0b101
}

struct Rig {
    function: Arc<VirtioPci>,
    pci: Arc<PciBus>,
    device: Arc<FakeDevice>,
    runner: Arc<FakeRunner>,
    msis: Vec<Arc<FakeMsi>>,
    line: Arc<Line>,
    watcher: Arc<Watcher>,
    ports: BusView,
    memory: BusView,
    /// The last access that parked.
    parked: Option<Parked>,
}

fn rig(shape: Shape) -> Rig {
    rig_with(shape, None)
}

fn rig_with(shape: Shape, messages: Option<Arc<dyn QueueMessages>>) -> Rig {
    let (port_bus, memory_bus) = (Arc::new(Bus::new()), Arc::new(Bus::new()));
    let windows = Windows {
        io: 0xc000..0x1_0000,
        mem32: 0xe000_0000..0xf000_0000,
        mem64: Some(0x80_0000_0000..0x90_0000_0000),
        prefer_mem64: true,
    };
    let mapper = Arc::new(BarMapper::new(&port_bus, &memory_bus, windows).unwrap());
    let pci = Arc::new(PciBus::new());
    port_bus.insert(0xcf8, 8, Arc::new(ConfigPorts::new(pci.clone(), Arc::new(NoReset)))).unwrap();
    memory_bus.insert(ECAM, 1 << 20, Arc::new(Ecam::new(pci.clone()))).unwrap();
    pci.add(PciAddress::new(0, 0).unwrap(), "host bridge", Arc::new(i440fx_host_bridge())).unwrap();

    let device = Arc::new(FakeDevice {
        device_type: shape.device_type,
        // A ring feature of each kind the transport has to think about, and two of the device's own.
        features: INDIRECT | EVENT_IDX | 1 << 24 | 1 << 38 | 1 << 40 | 0b101,
        queues: shape.queues,
        config: Mutex::new((0..shape.config_len).map(|byte| byte as u8).collect()),
        moves: shape.moves,
        accepted: Mutex::default(),
    });
    let runner = Arc::new(FakeRunner { rings: shape.rings, ..FakeRunner::default() });
    let msis: Vec<_> = (0..shape.vectors).map(|_| Arc::new(FakeMsi::default())).collect();
    let line = Arc::new(Line::default());
    let watcher = Arc::new(Watcher::default());
    let slot = PciAddress::new(SLOT.0, SLOT.1).unwrap();
    let parts = VirtioPciParts {
        name: "test device".to_owned(),
        device: device.clone(),
        runner: runner.clone(),
        msix: msis.iter().map(|msi| msi.clone() as Arc<dyn MsiSource>).collect(),
        intx: line.clone(),
        pin: InterruptPin::A,
        interrupt_line: 11,
        doorbells: watcher.clone(),
        slot,
        mapper,
        interfaces: shape.interfaces,
    };
    let function = match messages {
        None => VirtioPci::new(parts),
        Some(messages) => VirtioPci::carried(parts, messages),
    }
    .unwrap();
    pci.add(slot, "test device", function.clone()).unwrap();
    let (ports, memory) = (BusView::new(port_bus), BusView::new(memory_bus));
    Rig { function, pci, device, runner, msis, line, watcher, ports, memory, parked: None }
}

/// Raw accesses, as a vCPU makes them.
impl Rig {
    fn keep(&mut self, access: Access) {
        if let Access::Parked(token) = access {
            self.parked = Some(token);
        }
    }
    fn inp(&mut self, port: u64, width: usize) -> u64 {
        let mut data = [0; 8];
        let access = self.ports.read(port, &mut data[..width]);
        self.keep(access);
        u64::from_le_bytes(data)
    }
    fn outp(&mut self, port: u64, width: usize, value: u64) {
        let access = self.ports.write(port, &value.to_le_bytes()[..width]);
        self.keep(access);
    }
    fn load(&mut self, address: u64, width: usize) -> u64 {
        let mut data = [0; 8];
        let access = self.memory.read(address, &mut data[..width]);
        self.keep(access);
        u64::from_le_bytes(data)
    }
    fn store(&mut self, address: u64, width: usize, value: u64) {
        let access = self.memory.write(address, &value.to_le_bytes()[..width]);
        self.keep(access);
    }
    fn config_read(&mut self, offset: u64, width: usize) -> u64 {
        self.outp(0xcf8, 4, 0x8000_0000 | u64::from(SLOT.0) << 11 | u64::from(SLOT.1) << 8 | offset & 0xfc);
        self.inp(0xcfc + (offset & 3), width)
    }
    fn config_write(&mut self, offset: u64, width: usize, value: u64) {
        self.outp(0xcf8, 4, 0x8000_0000 | u64::from(SLOT.0) << 11 | u64::from(SLOT.1) << 8 | offset & 0xfc);
        self.outp(0xcfc + (offset & 3), width, value);
    }
}

/// What an operating system does with configuration space.
impl Rig {
    /// Sizes and addresses of the BARs, read as PCI Local Bus 3.0 §6.2.5.1 says, with decoding off meanwhile.
    fn size_bars(&mut self) -> Vec<(u64, u64, u64)> {
        let command = self.config_read(4, 2);
        self.config_write(4, 2, command & !3);
        let mut found = Vec::new();
        let mut register = 0x10;
        while register < 0x28 {
            let at = register;
            let low = self.config_read(at, 4);
            self.config_write(at, 4, 0xffff_ffff);
            let mut size = self.config_read(at, 4);
            self.config_write(at, 4, low);
            register += 4;
            let flags = if size & 1 != 0 { 3 } else { 15 };
            let mut address = low & !flags;
            size &= !flags;
            if low & 7 == 4 {
                let high = self.config_read(at + 4, 4);
                self.config_write(at + 4, 4, 0xffff_ffff);
                size |= self.config_read(at + 4, 4) << 32;
                self.config_write(at + 4, 4, high);
                address |= high << 32;
                register += 4;
            } else {
                size |= 0xffff_ffff << 32;
            }
            if size as u32 != 0 {
                found.push(((at - 0x10) / 4, address, !size + 1));
            }
        }
        self.config_write(4, 2, command);
        found
    }

    /// Base of BAR `index` as its registers have it.
    fn bar(&mut self, index: u64) -> u64 {
        let low = self.config_read(0x10 + index * 4, 4);
        match low & 7 {
            1 => low & !3,
            0 => low & !15,
            _ => low & !15 | self.config_read(0x14 + index * 4, 4) << 32,
        }
    }

    /// Offsets of the capabilities with `id`.
    fn capabilities(&mut self, id: u64) -> Vec<u64> {
        assert_ne!(self.config_read(6, 2) & 0x10, 0);
        let mut found = Vec::new();
        let mut at = self.config_read(0x34, 1);
        while at != 0 {
            if self.config_read(at, 1) == id {
                found.push(at);
            }
            at = self.config_read(at + 1, 1);
        }
        found
    }

    /// The virtio structure of kind `kind` (§4.1.4): capability offset, address and length.
    fn structure(&mut self, kind: u64) -> Option<(u64, u64, u64)> {
        let at = self.capabilities(9).into_iter().find(|at| self.config_read(at + 3, 1) == kind)?;
        let bar = self.config_read(at + 4, 1);
        Some((at, self.bar(bar) + self.config_read(at + 8, 4), self.config_read(at + 12, 4)))
    }

    fn enable(&mut self) {
        self.config_write(4, 2, 7);
    }

    /// Enables MSI-X with vector *n* programmed to message data 0x40 + *n*.
    fn enable_msix(&mut self) {
        let at = self.capabilities(0x11)[0];
        let table = self.bar(1);
        self.config_write(at + 2, 2, 0xc000);
        for vector in 0..self.msis.len() as u64 {
            self.store(table + vector * 16, 8, 0xfee0_0000);
            self.store(table + vector * 16 + 8, 8, 0x40 + vector);
        }
        self.config_write(at + 2, 2, 0x8000);
    }

    fn sent(&self) -> Vec<u32> {
        self.msis.iter().map(|msi| msi.0.lock().unwrap().1).collect()
    }
    fn line(&self) -> bool {
        *self.line.0.lock().unwrap()
    }
    fn doorbells(&self) -> Vec<(u16, Doorbell)> {
        self.watcher.0.lock().unwrap().iter().map(|(queue, at)| (*queue, *at)).collect()
    }
    fn needs_reset(&self, queue: u16) {
        self.runner.interrupt().needs_reset(&NeedsReset { queue, reason: "a test".to_owned() });
    }
}

/// Fields of the common configuration (§4.1.4.3).
mod field {
    pub(super) const DEVICE_FEATURE_SELECT: u64 = 0x00;
    pub(super) const DEVICE_FEATURE: u64 = 0x04;
    pub(super) const DRIVER_FEATURE_SELECT: u64 = 0x08;
    pub(super) const DRIVER_FEATURE: u64 = 0x0c;
    pub(super) const CONFIG_VECTOR: u64 = 0x10;
    pub(super) const NUM_QUEUES: u64 = 0x12;
    pub(super) const STATUS: u64 = 0x14;
    pub(super) const GENERATION: u64 = 0x15;
    pub(super) const SELECT: u64 = 0x16;
    pub(super) const SIZE: u64 = 0x18;
    pub(super) const VECTOR: u64 = 0x1a;
    pub(super) const ENABLE: u64 = 0x1c;
    pub(super) const NOTIFY_OFF: u64 = 0x1e;
    pub(super) const DESC: u64 = 0x20;
    pub(super) const DRIVER: u64 = 0x28;
    pub(super) const DEVICE: u64 = 0x30;
    pub(super) const RESET: u64 = 0x3a;
}

/// A modern driver (virtio 1.3 §3.1.1).
impl Rig {
    fn common(&mut self) -> u64 {
        self.structure(1).unwrap().1
    }
    fn get(&mut self, field: u64, width: usize) -> u64 {
        let common = self.common();
        self.load(common + field, width)
    }
    fn set(&mut self, field: u64, width: usize, value: u64) {
        let common = self.common();
        self.store(common + field, width, value);
    }
    fn status(&mut self) -> u64 {
        self.get(field::STATUS, 1)
    }
    fn device_features(&mut self) -> u64 {
        self.set(field::DEVICE_FEATURE_SELECT, 4, 0);
        let low = self.get(field::DEVICE_FEATURE, 4);
        self.set(field::DEVICE_FEATURE_SELECT, 4, 1);
        low | self.get(field::DEVICE_FEATURE, 4) << 32
    }
    fn accept(&mut self, features: u64) {
        for (select, word) in [(0, features & 0xffff_ffff), (1, features >> 32)] {
            self.set(field::DRIVER_FEATURE_SELECT, 4, select);
            self.set(field::DRIVER_FEATURE, 4, word);
        }
    }
    /// Steps 1 to 6: reset, acknowledge, driver, features.
    fn negotiate(&mut self, features: u64) -> bool {
        self.set(field::STATUS, 1, 0);
        assert_eq!(self.status(), 0);
        self.set(field::STATUS, 1, 1);
        self.set(field::STATUS, 1, 3);
        self.accept(features);
        self.set(field::STATUS, 1, 11);
        self.status() & 8 != 0
    }
    /// Step 7 for one queue of 64 entries, rings where `ring` says.
    fn set_up_queue(&mut self, queue: u64, vector: u64) {
        self.set(field::SELECT, 2, queue);
        self.set(field::SIZE, 2, 64);
        let state = ring(queue);
        for (field, address) in
            [(field::DESC, state.desc_table), (field::DRIVER, state.avail_ring), (field::DEVICE, state.used_ring)]
        {
            self.set(field, 4, address & 0xffff_ffff);
            self.set(field + 4, 4, address >> 32);
        }
        self.set(field::VECTOR, 2, vector);
        self.set(field::ENABLE, 2, 1);
    }
    /// The whole dance.
    fn start(&mut self) {
        self.enable();
        assert!(self.negotiate(VERSION_1 | INDIRECT));
        for queue in 0..self.device.queues.len() as u64 {
            self.set_up_queue(queue, queue + 1);
        }
        self.set(field::CONFIG_VECTOR, 2, 0);
        self.set(field::STATUS, 1, 15);
    }
}

/// Where [`Rig::set_up_queue`] puts a queue.
fn ring(queue: u64) -> QueueState {
    let base = 0x1_0000_0000 + queue * 0x1_0000;
    QueueState {
        size: 64,
        desc_table: base,
        avail_ring: base + 0x4000,
        used_ring: base + 0x8000,
        next_avail: 0,
        next_used: 0,
    }
}
