//! The whole machine in one address space, without a thread: guest memory, PCI, transport, device, workers and other
//! ends, driven access by access, with the models of [`oracle`](crate::oracle) beside it.

pub mod disk;
pub mod driver;
pub mod ends;
mod pause;
mod revive;
pub mod runner;
mod setup;
mod time;
pub mod vmm;
pub mod wires;

pub use model::ram;
use std::cell::RefCell;
use std::sync::Arc;

use devices::bus::Access;
use devices::legacy::clock::ManualClock;
use devices::park::Parked;
use devices::virtio::blk::BlkError;

use crate::finding;
use crate::lone::Lone;
use crate::oracle::transport::{self, Transport};
use crate::oracle::{Device, Oracles, blk, console, limit, net, rng, times};
use disk::Disk;
use driver::Driver;
use ends::End;
use ram::{Hash, Ram};
use vmm::{ECAM, Handle, Kind, SLOT, Shape, Vmm};
use wires::{Wired, Wiring};

pub(crate) use setup::PLACES;
pub use setup::{Driven, Setup};

/// Rounds after which something that has to end has not.
const MAX_ROUNDS: usize = 64;
/// Queues a driver here looks after.
pub const QUEUES: usize = 2 * net::PAIRS + 1;
/// The first queue's window of guest memory.
const WINDOWS: u64 = 0x1_0000;

/// What one thread keeps from program to program.
struct Home {
    ram: Ram,
    oracles: Arc<Lone<Oracles>>,
}

thread_local! {
    static HOME: RefCell<Option<Home>> = const { RefCell::new(None) };
}

/// Guest memory and models of this thread: made once, and cleaned for each program.
#[must_use]
pub fn home() -> (Ram, Arc<Lone<Oracles>>) {
    HOME.with(|home| {
        let mut home = home.borrow_mut();
        let home = home.get_or_insert_with(|| {
            let oracles = Arc::new(Lone::new(Oracles::default()));
            let ram = Ram::new(&oracles);
            oracles.open().ram = Some(ram.clone());
            Home { ram, oracles }
        });
        (home.ram.clone(), home.oracles.clone())
    })
}

/// A machine and its guest.
pub struct Machine {
    /// What it is made of.
    pub shape: Shape,
    /// Guest memory.
    pub ram: Ram,
    /// The models.
    pub oracles: Arc<Lone<Oracles>>,
    /// The disk, where it has one.
    pub disk: Disk,
    /// The other end, where it has one.
    pub end: End,
    /// Time, which passes when the program says so.
    clock: Arc<ManualClock>,
    wired: Wired,
    wiring: Wiring,
    vmm: Vmm,
    /// The guest's drivers, by queue.
    pub drivers: [Driver; QUEUES],
    transport: Transport,
    /// Where BARs decode, as configuration space says: legacy, MSI-X and modern.
    bars: [Option<u64>; 3],
    /// Capability offsets: MSI-X and configuration access.
    capabilities: (u16, u16),
    /// Ports of the legacy BAR.
    ports: u64,
    /// What the host has changed about the device so far.
    changes: Vec<u16>,
    /// vCPUs that wait for a reset.
    parked: Vec<Parked>,
    /// Workers run after every access.
    pub auto: bool,
    /// What the guest saw.
    pub trace: Hash,
}

/// The three BARs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bar {
    /// Legacy header, ports.
    Legacy,
    /// MSI-X table.
    Msix,
    /// Everything else.
    Modern,
}

impl Machine {
    /// A machine after power-on; guest memory is zero.
    #[must_use]
    pub fn new(shape: Shape, wiring: Wiring) -> Self {
        let (ram, oracles) = home();
        ram.clear();
        let clock = Arc::new(ManualClock::new(0));
        let device = match shape.kind {
            Kind::Blk => Device::Blk(blk::Blk {
                features: 0,
                legacy: false,
                writeback: true,
                capacity: shape.disk.capacity_sectors,
                bytes: vec![0; shape.disk.capacity_sectors as usize * 512],
                failed: (0, 0),
                lost: false,
                limit: shape.limited.then(|| Box::new(limit::Limit::new(&clock, shape.disk.queues))),
                times: shape.timed.then(|| Box::new(times::Times::new(&clock, shape.disk.queues))),
                unheard: (0, 0),
                config: shape.disk.clone(),
            }),
            Kind::Net => Device::Net(net::Net::new(shape.pairs)),
            Kind::Console => Device::Console(console::Console::default()),
            Kind::Rng => Device::Rng(rng::Rng::default()),
        };
        oracles.open().reset(device);
        let (disk, end) = (Disk::new(), End::new(&oracles));
        let wired = Wired::new(wiring, shape.vectors, QUEUES);
        let vmm = Vmm::new(&shape, &ram, &oracles, (&disk, &end), &wired, &clock);
        let mut transport = Transport::default();
        transport.power_on(&*vmm.device, shape.rings, shape.vectors);
        let driver = |queue: u64| Driver::new(WINDOWS + queue * Driver::WINDOW);
        let mut machine = Self {
            shape,
            ram,
            oracles,
            disk,
            end,
            clock,
            wired,
            wiring,
            vmm,
            drivers: std::array::from_fn(|queue| driver(queue as u64)),
            transport,
            bars: [None; 3],
            capabilities: (0, 0),
            ports: 0,
            changes: Vec::new(),
            parked: Vec::new(),
            auto: true,
            trace: Hash::default(),
        };
        machine.find_capabilities();
        machine.size_ports();
        machine.place_bars();
        machine
    }

    /// Queues of the device that a driver here looks after.
    #[must_use]
    pub fn queues(&self) -> u16 {
        (self.vmm.device.queue_max_sizes().len() as u16).min(QUEUES as u16)
    }

    /// What a card's driver calls the control queue; the queues before it carry frames.
    #[must_use]
    pub fn control(&self) -> u16 {
        let control = 2 * self.shape.pairs;
        (0..control).find(|queue| self.transport.place(*queue) == Some(control)).unwrap_or(control)
    }

    /// Features a modern driver may accept.
    #[must_use]
    pub fn offered(&self) -> u64 {
        self.vmm.device.features() | self.shape.rings | 1 << 32
    }

    fn find_capabilities(&mut self) {
        let mut at = self.config(0x34, 1) as u16;
        for _ in 0..16 {
            match (self.config(at, 1), self.config(at + 3, 1)) {
                (0x11, _) => self.capabilities.0 = at,
                (0x09, 5) => self.capabilities.1 = at,
                _ => {}
            }
            at = self.config(at + 1, 1) as u16;
            if at == 0 {
                break;
            }
        }
    }

    /// As firmware does: of an address that is all ones the bits stay that a BAR has.
    fn size_ports(&mut self) {
        self.store_config(0x10, 4, 0xffff_ffff);
        let stays = self.config(0x10, 4) & !3;
        self.ports = stays & stays.wrapping_neg();
    }

    /// Reads configuration space, unseen by the trace.
    pub fn config(&mut self, at: u16, width: usize) -> u64 {
        let mut data = [0; 8];
        let address = ECAM + (u64::from(SLOT.devfn()) << 12) + u64::from(at);
        let _ = self.vmm.memory.read(address, &mut data[..width]);
        u64::from_le_bytes(data)
    }

    /// Writes a register of the header and looks at nothing.
    fn store_config(&mut self, at: u16, width: usize, value: u64) {
        let address = ECAM + (u64::from(SLOT.devfn()) << 12) + u64::from(at);
        let _ = self.vmm.memory.write(address, &value.to_le_bytes()[..width]);
    }

    /// Writes configuration space.
    pub fn set_config(&mut self, at: u16, width: usize, value: u64) {
        let address = ECAM + (u64::from(SLOT.devfn()) << 12) + u64::from(at);
        let window = self.window(at, width);
        if let Some((offset, len)) = window {
            // §4.1.4.9: what is written to the window's data is written to the BAR.
            let data = self.capabilities.1 + 16;
            let mut bytes = [0; 8];
            if at > data || usize::from(at) + width < usize::from(data) + len {
                // The others are those of before, which a read tells: and that is a read of the BAR, too.
                bytes = self.config(data, 4).to_le_bytes();
                self.judge_read(Bar::Modern, offset, &bytes[..len]);
            }
            for (i, byte) in value.to_le_bytes()[..width].iter().enumerate() {
                if let Some(to) = bytes[..4].get_mut((usize::from(at) + i).wrapping_sub(data.into())) {
                    *to = *byte;
                }
            }
            self.model_write(Bar::Modern, offset, &bytes[..len]);
        }
        let access = self.vmm.memory.write(address, &value.to_le_bytes()[..width]);
        self.after(access);
        self.look_at_config();
        self.settle();
    }

    /// What the configuration-access capability shows, where an access touches its data.
    fn window(&mut self, at: u16, width: usize) -> Option<(u64, usize)> {
        let base = self.capabilities.1;
        let data = base + 16;
        if base == 0 || at + width as u16 <= data || at >= data + 4 {
            return None;
        }
        let (bar, offset, len) = (self.config(base + 4, 1), self.config(base + 8, 4), self.config(base + 12, 4));
        let inside = offset + len <= 0x4000;
        (bar == 4 && matches!(len, 1 | 2 | 4) && offset.is_multiple_of(len) && inside).then_some((offset, len as usize))
    }

    /// Reads through the configuration-access capability.
    pub fn read_window(&mut self) {
        let at = self.capabilities.1 + 16;
        let window = self.window(at, 4);
        let value = self.config(at, 4);
        if let Some((offset, len)) = window {
            let bytes = value.to_le_bytes();
            self.judge_read(Bar::Modern, offset, &bytes[..len]);
        }
        self.trace.add(value);
        self.settle();
    }

    /// The model follows what configuration space says of BARs and interrupts.
    fn look_at_config(&mut self) {
        let command = self.config(4, 2);
        let control = match self.capabilities.0 {
            0 => 0,
            at => self.config(at + 2, 2) as u16,
        };
        self.transport.interrupts(control, command & 0x400 != 0);
        let io = (command & 1 != 0).then(|| self.config(0x10, 4) & !3);
        let msix = (command & 2 != 0).then(|| self.config(0x14, 4) & !15);
        let modern = (command & 2 != 0).then(|| self.config(0x20, 8) & !15);
        let windows = vmm::windows();
        let inside = |at: u64, len: u64| {
            let in_range = |range: &std::ops::Range<u64>| range.start <= at && at + len <= range.end;
            at < 1 << 62 && (in_range(&windows.mem32) || windows.mem64.as_ref().is_some_and(in_range))
        };
        let mut bars = [
            io.filter(|at| self.shape.transitional && windows.io.contains(at) && at + self.ports <= windows.io.end),
            msix.filter(|at| self.shape.vectors > 0 && inside(*at, 0x2000)),
            modern.filter(|at| inside(*at, 0x4000)),
        ];
        if let [_, Some(msix), Some(modern)] = bars
            && msix < modern + 0x4000
            && modern < msix + 0x2000
        {
            // Of two BARs in one place the first one answers.
            bars[2] = None;
        }
        self.bars = bars;
    }

    /// Where a BAR decodes.
    #[must_use]
    pub fn bar(&self, bar: Bar) -> Option<u64> {
        self.bars[bar as usize]
    }

    /// A guest write to a BAR. What it does to the model, if the BAR decodes, it does before.
    pub fn write(&mut self, bar: Bar, offset: u64, data: &[u8]) {
        let Some(base) = self.bar(bar) else { return };
        let address = base + offset;
        let port = bar == Bar::Legacy;
        self.model_write(bar, offset, data);
        let access = match self.wired.rings(port, address, data) {
            Some(queue) => {
                devices::virtio::QueueRunner::kick(&*self.vmm.runner, queue);
                Access::Done
            }
            None if port => self.vmm.ports.write(address, data),
            None => self.vmm.memory.write(address, data),
        };
        self.after(access);
        self.settle();
    }

    fn after(&mut self, access: Access) {
        match access {
            Access::Parked(token) => self.parked.push(token),
            Access::Done if self.transport.resetting() && self.parked.is_empty() => self.transport.reset_done(),
            Access::Done => {}
        }
    }

    fn model_write(&mut self, bar: Bar, offset: u64, data: &[u8]) {
        match bar {
            Bar::Legacy => {
                self.transport.write_legacy(offset, data);
            }
            Bar::Msix => self.transport.write_table(offset, data),
            Bar::Modern if offset < transport::ISR => self.transport.write_common(offset, data),
            Bar::Modern => {}
        }
    }

    /// A guest read of a BAR.
    pub fn read(&mut self, bar: Bar, offset: u64, width: usize) -> u64 {
        let Some(value) = self.look_up(bar, offset, width) else { return u64::MAX };
        self.settle();
        value
    }

    /// Reads a BAR, which the model judges; `None` where it does not decode.
    fn look_up(&mut self, bar: Bar, offset: u64, width: usize) -> Option<u64> {
        let mut data = [0; 8];
        let base = self.bar(bar)?;
        let _ = match bar {
            Bar::Legacy => self.vmm.ports.read(base + offset, &mut data[..width]),
            _ => self.vmm.memory.read(base + offset, &mut data[..width]),
        };
        self.judge_read(bar, offset, &data[..width]);
        let value = u64::from_le_bytes(data);
        self.trace.add(value);
        Some(value)
    }

    fn judge_read(&mut self, bar: Bar, offset: u64, found: &[u8]) {
        let width = found.len();
        let mut expected = [0; 8];
        let known = match bar {
            Bar::Modern if offset < transport::ISR => {
                let image = self.transport.common(self.vmm.device.config_generation());
                copy(&image, offset, &mut expected[..width]);
                true
            }
            Bar::Modern if offset == transport::ISR => {
                expected[0] = self.transport.take_isr();
                true
            }
            Bar::Modern => false,
            Bar::Msix if offset <= 0x1000 => self.transport.table(offset, &mut expected[..width]),
            Bar::Msix => false,
            Bar::Legacy => {
                let header = self.transport.legacy_header();
                let inside = offset + width as u64 <= header;
                if offset <= 0x13 && offset + width as u64 > 0x13 && offset < header {
                    let isr = self.transport.take_isr();
                    if inside {
                        copy(&self.transport.legacy(), offset, &mut expected[..width]);
                        expected[(0x13 - offset) as usize] = isr;
                    }
                } else if inside {
                    copy(&self.transport.legacy(), offset, &mut expected[..width]);
                }
                inside
            }
        };
        if known && found != &expected[..width] {
            finding!("spec", "{bar:?} reads {found:x?} at {offset:#x} where {:x?} is due", &expected[..width]);
        }
    }

    /// Lets what follows of itself from an access happen: workers run, resets end, the models look.
    pub fn settle(&mut self) {
        if self.auto {
            self.run(usize::MAX);
        }
        self.look();
    }

    /// Lets workers that are awake run, at most `budget` steps.
    pub fn run(&mut self, budget: usize) {
        if let (Device::Blk(blk), device) = (&mut self.oracles.open().device, &self.vmm.device) {
            let mut byte = [0];
            device.read_config(32, &mut byte);
            blk.writeback = byte[0] != 0;
        }
        self.vmm.runner.run(budget);
        self.resync();
    }

    /// A model that did not see what the disk was asked for does not know what is durable.
    fn resync(&mut self) {
        let oracles = &mut *self.oracles.open();
        if let (true, Device::Blk(blk), Handle::Blk(device)) =
            (oracles.rings.blind(), &mut oracles.device, &self.vmm.handle)
        {
            (blk.failed, blk.lost) = (if device.is_settled() { (0, 0) } else { (1, 0) }, device.is_lost());
        }
    }

    fn look(&mut self) {
        for told in self.vmm.runner.take_told() {
            self.transport.told(told);
        }
        let running = self.vmm.runner.resetting();
        if !self.parked.is_empty() && self.parked.iter().all(Parked::is_complete) {
            self.parked.clear();
            if running || self.disk.busy(None) > 0 {
                finding!("spec", "a reset is complete while the device may still touch guest memory");
            }
            self.transport.reset_done();
        }
        let done: Vec<u16> = self.transport.resetting_queues().collect();
        for queue in done {
            if self.transport.place(queue).is_none_or(|queue| !self.vmm.runner.resets(queue)) {
                self.transport.queue_reset_done(queue);
            }
        }
        let sent = self.wired.take_sent();
        let line = self.wired.0.open().line;
        self.transport.check(&sent, line);
        let [ports, _, modern] = self.bars;
        let due = |queue| self.transport.doorbell(queue, ports, modern);
        self.wired.judge_doorbells(due, |queue| self.oracles.open().rings.live(queue).is_some());
        for (vector, message) in &sent {
            self.trace.add(u64::from(*vector) << 32 | u64::from(message.data));
            self.trace.add(message.address);
        }
        self.trace.add(u64::from(line));
    }

    /// Fails where a card shows another address than its driver has set. To be called after each of the guest's operations.
    ///
    /// # Panics
    /// With a finding.
    pub fn judge_card(&self) {
        if let Device::Net(net) = &self.oracles.open().device
            && !net.card.lost
        {
            net.judge_lost(self.vmm.lost_to_link());
            let mut mac = [0; 6];
            self.vmm.device.read_config(0, &mut mac);
            if mac != net.card.mac {
                finding!("spec", "the card shows address {mac:x?} where {:x?} was set", net.card.mac);
            }
        }
    }

    /// Lets the `nth` waiting disk request complete.
    pub fn complete(&mut self, nth: usize, error: Option<BlkError>) -> bool {
        let queue = self.disk.complete(nth, error, &self.ram, &self.oracles);
        if let Some(queue) = queue {
            self.vmm.runner.wake(queue);
        }
        self.settle();
        queue.is_some()
    }

    /// Lets everything that waits in the disk complete.
    fn complete_all(&mut self) {
        while let Some(queue) = self.disk.complete(0, None, &self.ram, &self.oracles) {
            self.vmm.runner.wake(queue);
        }
    }

    /// The host changes the device: a disk's size, a cable, a terminal's size.
    pub fn change(&mut self, value: u16) {
        // A disk is made smaller only after its requests have drained.
        let value = if self.disk.busy(None) == 0 { value } else { 0 };
        self.changes.push(value);
        if self.tell_device(value) {
            self.vmm.function.interrupt().config_changed();
            self.transport.config_changed();
            if self.shape.kind == Kind::Net {
                // Frames that wait are the workers' to drop.
                (0..self.queues()).for_each(|queue| self.vmm.runner.wake(queue));
            }
        }
        self.settle();
    }

    fn is_lost(&self) -> bool {
        matches!(&self.oracles.open().device, Device::Blk(blk) if blk.lost)
    }

    /// `true` where the guest has to hear of it.
    fn tell_device(&mut self, value: u16) -> bool {
        match &self.vmm.handle {
            Handle::Blk(device) => {
                let sectors = vmm::SECTORS - u64::from(value % 4);
                if let Device::Blk(blk) = &mut self.oracles.open().device {
                    blk.capacity = sectors;
                    blk.lost &= value & 4 == 0;
                }
                if value & 4 != 0 {
                    device.go_on();
                }
                device.set_capacity(sectors);
                true
            }
            Handle::Net(device) => {
                let up = value & 1 == 0;
                let Oracles { rings, device: model, .. } = &mut *self.oracles.open();
                if let Device::Net(net) = model {
                    net.set_link(up, rings);
                }
                device.set_link(up)
            }
            Handle::Console(device) => device.set_size(80 + value % 4, 25),
            Handle::Rng => false,
        }
    }

    /// Whether a disk keeps failed requests, or has some in flight.
    #[must_use]
    pub fn holds(&self) -> bool {
        self.vmm.stats.iter().any(|stats| stats.snapshot().in_flight > 0)
    }

    /// Everything a worker has done it has counted by now.
    fn judge_times(&self) {
        if let Device::Blk(blk) = &self.oracles.open().device
            && let Some(times) = &blk.times
        {
            times.judge(&self.vmm.stats);
        }
    }

    /// The operator says to go on with a disk whose flush failed.
    pub fn go_on(&mut self) {
        if let (Device::Blk(blk), Handle::Blk(device)) = (&mut self.oracles.open().device, &self.vmm.handle) {
            device.go_on();
            blk.lost = false;
        }
    }

    /// Whether the disk may keep requests that failed.
    #[must_use]
    pub fn may_hold(&self) -> bool {
        self.oracles.open().device.may_hold()
    }
}

fn copy(image: &[u8], offset: u64, to: &mut [u8]) {
    let from = image.get(offset as usize..).unwrap_or(&[]);
    for (to, from) in to.iter_mut().zip(from) {
        *to = *from;
    }
}

impl Machine {
    /// Offset of the configuration-access capability.
    #[must_use]
    pub fn window_capability(&self) -> u16 {
        self.capabilities.1
    }

    /// The machine is reset with its vCPUs outside the guest: the function goes back to its power-on state.
    pub fn power_on(&mut self) {
        self.transport.write_status(0, false);
        let parked = self.vmm.pci.reset();
        self.parked.extend(parked);
        if self.parked.is_empty() {
            self.transport.reset_done();
        }
        self.transport.pci_reset();
        self.look_at_config();
        self.settle();
    }

    /// What came out at the other end, and what the disk holds.
    #[must_use]
    pub fn shown(&self) -> u64 {
        let mut hash = self.end.inner.open().shown;
        hash.add(self.end.inner.open().printed.digest());
        if let Device::Blk(blk) = &self.oracles.open().device {
            for word in blk.bytes.chunks(8) {
                hash.add(u64::from_le_bytes(word.try_into().unwrap_or_default()));
            }
        }
        hash.0
    }

    /// What the models still have to say at the end of a program.
    pub fn judge(&mut self) {
        if self.bar(Bar::Modern).is_some() {
            // None of these lets anything happen.
            for offset in (0..0x38).step_by(8) {
                self.look_up(Bar::Modern, offset, 8);
            }
            self.settle();
        }
    }
}
