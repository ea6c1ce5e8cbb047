//! Devices with a virtual driver, for hostile use.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex};

use devices::GuestRam;
use devices::virtio::blk::{BlkConfig, BlkDevice, EraseLimits};
use devices::virtio::console::{ConsoleBackend, ConsoleDevice};
use devices::virtio::counters::QueueCounters;
use devices::virtio::net::{NetConfig, NetDevice, RX_QUEUE, TX_QUEUE};
use devices::virtio::queue::{Descriptor, F_INDIRECT_DESC, F_RING_PACKED};
use devices::virtio::rng::{RngBackend, RngDevice, RngError};
use devices::virtio::testing::{Buf, DriverQueue, MemoryDisk, MemoryLink, RecordingInterrupt, Used, guest_ram};
use devices::virtio::{QueueState, VirtioWorker};

/// Entries of every queue under attack.
pub const SIZE: u16 = 8;
/// Bytes of guest memory from 0 on; as many more lie above 4 GiB.
pub const RAM: u64 = 0x40_0000;
/// Bytes of the disk.
pub const DISK_BYTES: usize = 64 * 512;

const VERSION_1: u64 = 1 << 32;

/// What a driver of each ring format negotiates beside the device's own features.
pub fn formats() -> [u64; 2] {
    [VERSION_1 | F_INDIRECT_DESC, VERSION_1 | F_INDIRECT_DESC | F_RING_PACKED]
}

/// Steps a worker until it rests. One that never does is wedged.
pub fn settle(worker: &mut dyn VirtioWorker<GuestRam>, mem: &GuestRam) {
    for _ in 0..200 {
        if !worker.step(mem).again {
            return;
        }
    }
    panic!("the worker spins");
}

/// What a transport does with a worker at device reset; gives back where its queues stood.
pub fn stop(worker: &mut dyn VirtioWorker<GuestRam>, mem: &GuestRam, abandon: bool) -> Vec<QueueState> {
    worker.begin_stop(mem);
    let stopped = (0..100).any(|_| worker.poll_stopped(mem, abandon));
    assert!(stopped, "the worker does not stop");
    let queues = worker.queues().to_vec();
    queues.into_iter().filter_map(|queue| worker.take_state(queue)).collect()
}

/// Makes a chain of exactly these descriptors available, whatever they say; split rings get their links.
pub fn offer_raw(driver: &mut DriverQueue, packed: bool, chain: &[Descriptor]) {
    for (i, desc) in (0u16..).zip(chain) {
        if packed {
            driver.place(Descriptor { next: 0, ..*desc }, 0);
        } else {
            let next = if desc.flags & Descriptor::NEXT != 0 && desc.next == 0 { i + 1 } else { desc.next };
            driver.write_descriptor(i, Descriptor { next, ..*desc });
        }
    }
    if !packed {
        driver.offer(0);
    }
    driver.publish();
}

/// A disk behind one queue.
pub struct Disk {
    pub mem: GuestRam,
    pub device: BlkDevice,
    pub worker: Box<dyn VirtioWorker<GuestRam>>,
    pub disk: MemoryDisk,
    pub driver: DriverQueue,
    pub interrupt: Arc<RecordingInterrupt>,
    pub features: u64,
}

/// The 16 bytes before the data of a request.
pub fn header(kind: u32, sector: u64) -> Buf {
    Buf::Read([kind.to_le_bytes().as_slice(), &[0; 4], &sector.to_le_bytes()].concat())
}

/// The data of a discard or write-zeroes request.
pub fn segment(sector: u64, sectors: u32, flags: u32) -> Buf {
    Buf::Read([sector.to_le_bytes().as_slice(), &sectors.to_le_bytes(), &flags.to_le_bytes()].concat())
}

/// A disk whose driver accepted `features` and everything the device offers beside.
pub fn disk(features: u64) -> Disk {
    let mem = guest_ram(RAM as usize);
    let disk = MemoryDisk::new(DISK_BYTES);
    let limits = Some(EraseLimits { max_sectors: u32::MAX, max_segments: 1, alignment_sectors: 1 });
    let device = BlkDevice::new(BlkConfig {
        capacity_sectors: DISK_BYTES as u64 / 512,
        queue_size: SIZE,
        serial: "0123456789abcdefghijklmnop".to_owned(),
        discard: limits,
        write_zeroes: limits,
        ..Default::default()
    });
    let features = features | 1 << 9 | 1 << 13 | 1 << 14;
    let worker = Box::new(device.worker(0, disk.clone(), Arc::default()));
    let driver = DriverQueue::new(&mem, 0x10_0000, SIZE, features);
    let mut rig = Disk { mem, device, worker, disk, driver, interrupt: RecordingInterrupt::new(), features };
    rig.start();
    rig
}

impl Disk {
    pub fn packed(&self) -> bool {
        self.features & F_RING_PACKED != 0
    }

    pub fn start(&mut self) {
        self.driver = DriverQueue::new(&self.mem, 0x10_0000, SIZE, self.features);
        self.worker.start(&self.mem, 0, self.driver.state(), &self.interrupt.activation(self.features));
    }

    pub fn step(&mut self) {
        settle(&mut *self.worker, &self.mem);
    }

    pub fn stop(&mut self, abandon: bool) -> QueueState {
        stop(&mut *self.worker, &self.mem, abandon).remove(0)
    }

    /// One request of the driver's, and what came back: status byte and used length.
    pub fn request(&mut self, bufs: &[Buf]) -> (u8, u32) {
        let posted = self.driver.post(bufs);
        self.driver.publish();
        self.step();
        let used = self.driver.used();
        assert_eq!(used.len(), 1, "one request, one answer");
        assert_eq!(used[0].head, u32::from(posted.head));
        let status = posted.buffers.iter().rev().find(|range| range.len > 0).unwrap();
        (*self.driver.read(*status).last().unwrap(), used[0].len)
    }

    pub fn attack(&mut self, chain: &[Descriptor]) {
        let packed = self.packed();
        offer_raw(&mut self.driver, packed, chain);
        self.step();
    }

    /// The driver has been told to reset the device, once, and nothing reached the disk or the ring.
    pub fn is_refused(&mut self) {
        assert_eq!(self.interrupt.take_needs_reset().len(), 1);
        assert_eq!((self.disk.take_log().len(), self.driver.used().len()), (0, 0));
        // More of the same is not even looked at.
        self.step();
        assert!(self.interrupt.take_needs_reset().is_empty());
    }

    /// Resets the device and has it serve one valid request.
    pub fn revive(&mut self) {
        self.disk.hold(false);
        stop(&mut *self.worker, &self.mem, true);
        self.start();
        self.interrupt.take_needs_reset();
        self.disk.fill(512, &[0x5a; 512]);
        let posted = self.driver.post(&[header(0, 1), Buf::Write(512), Buf::Write(1)]);
        self.driver.publish();
        self.step();
        assert_eq!(self.driver.used(), [Used { head: posted.head.into(), len: 513 }], "wedged");
        assert_eq!(self.driver.read(posted.buffers[1]), [0x5a; 512]);
        assert!(self.interrupt.take_needs_reset().is_empty());
        self.disk.take_log();
    }
}

/// A network card with one worker.
pub struct Net {
    pub mem: GuestRam,
    pub worker: Box<dyn VirtioWorker<GuestRam>>,
    pub link: MemoryLink,
    pub rx: DriverQueue,
    pub tx: DriverQueue,
    pub interrupt: Arc<RecordingInterrupt>,
    pub rx_counters: Arc<QueueCounters>,
    pub tx_counters: Arc<QueueCounters>,
    pub features: u64,
}

/// `VIRTIO_NET_F_MRG_RXBUF`.
pub const MRG_RXBUF: u64 = 1 << 15;

pub fn net(features: u64) -> Net {
    let mem = guest_ram(RAM as usize);
    let link = MemoryLink::default();
    let (rx_counters, tx_counters) = (Arc::<QueueCounters>::default(), Arc::<QueueCounters>::default());
    let device = NetDevice::new(NetConfig {
        mac: [2, 0, 0, 0, 0, 1],
        mtu: None,
        offloads: true,
        queue_size: SIZE,
        speed_mbits: None,
        duplex: None,
    });
    let worker = Box::new(device.worker(link.clone(), [rx_counters.clone(), tx_counters.clone(), Arc::default()]));
    let queue = |base| DriverQueue::new(&mem, base, SIZE, features);
    let (rx, tx) = (queue(0x10_0000), queue(0x20_0000));
    let interrupt = RecordingInterrupt::new();
    let mut rig = Net { mem, worker, link, rx, tx, interrupt, rx_counters, tx_counters, features };
    rig.start();
    rig
}

impl Net {
    pub fn packed(&self) -> bool {
        self.features & F_RING_PACKED != 0
    }

    pub fn start(&mut self) {
        self.rx = DriverQueue::new(&self.mem, 0x10_0000, SIZE, self.features);
        self.tx = DriverQueue::new(&self.mem, 0x20_0000, SIZE, self.features);
        let activation = self.interrupt.activation(self.features);
        self.worker.start(&self.mem, RX_QUEUE, self.rx.state(), &activation);
        self.worker.start(&self.mem, TX_QUEUE, self.tx.state(), &activation);
    }

    pub fn step(&mut self) {
        settle(&mut *self.worker, &self.mem);
    }

    /// Resets the card and has it move a frame each way.
    pub fn revive(&mut self) {
        stop(&mut *self.worker, &self.mem, true);
        while self.link.waiting() > 0 {
            // What arrived for the old driver is of no interest.
            self.start();
            while self.rx.free() > 0 {
                self.rx.post(&[Buf::Write(0x1_1000)]);
            }
            self.rx.publish();
            self.step();
            stop(&mut *self.worker, &self.mem, true);
        }
        self.link.set_full(false);
        self.link.set_broken(false);
        self.start();
        self.interrupt.take_needs_reset();
        self.link.take_sent();
        let posted = self.rx.post(&[Buf::Write(1526)]);
        self.rx.publish();
        self.tx.post(&[Buf::Read(vec![0; 12]), Buf::Read(vec![9; 60])]);
        self.tx.publish();
        self.link.arrive([0; 12], &[7; 60]);
        self.step();
        assert_eq!(self.rx.used(), [Used { head: posted.head.into(), len: 72 }], "receive is wedged");
        assert_eq!(self.tx.used().len(), 1, "transmit is wedged");
        assert_eq!(self.link.take_sent(), [([0; 12], vec![9; 60])]);
        assert!(self.interrupt.take_needs_reset().is_empty());
    }
}

/// A terminal that takes `room` bytes and gives what was typed.
#[derive(Clone, Default)]
pub struct Terminal(pub Arc<Mutex<Screen>>);

#[derive(Default)]
pub struct Screen {
    pub shown: usize,
    pub typed: VecDeque<u8>,
    pub room: usize,
}

impl ConsoleBackend for Terminal {
    fn write(&mut self, bytes: &[u8]) -> usize {
        let screen = &mut *self.0.lock().unwrap();
        let count = bytes.len().min(screen.room);
        screen.room -= count;
        screen.shown += count;
        count
    }

    fn read(&mut self, buf: &mut [u8]) -> usize {
        let screen = &mut *self.0.lock().unwrap();
        let count = buf.len().min(screen.typed.len());
        buf.iter_mut().zip(screen.typed.drain(..count)).for_each(|(to, from)| *to = from);
        count
    }
}

pub struct Console {
    pub mem: GuestRam,
    pub worker: Box<dyn VirtioWorker<GuestRam>>,
    pub device: ConsoleDevice,
    pub terminal: Terminal,
    pub rx: DriverQueue,
    pub tx: DriverQueue,
    pub interrupt: Arc<RecordingInterrupt>,
    pub features: u64,
}

pub fn console(features: u64) -> Console {
    let mem = guest_ram(RAM as usize);
    let terminal = Terminal::default();
    let device = ConsoleDevice::new(Some((80, 25)));
    let worker = Box::new(device.worker(terminal.clone(), Arc::default(), Arc::default()));
    let queue = |base| DriverQueue::new(&mem, base, SIZE, features);
    let (rx, tx) = (queue(0x10_0000), queue(0x20_0000));
    let mut rig = Console { mem, worker, device, terminal, rx, tx, interrupt: RecordingInterrupt::new(), features };
    rig.start();
    rig
}

impl Console {
    pub fn start(&mut self) {
        self.rx = DriverQueue::new(&self.mem, 0x10_0000, SIZE, self.features);
        self.tx = DriverQueue::new(&self.mem, 0x20_0000, SIZE, self.features);
        let activation = self.interrupt.activation(self.features);
        self.worker.start(&self.mem, 0, self.rx.state(), &activation);
        self.worker.start(&self.mem, 1, self.tx.state(), &activation);
    }

    pub fn step(&mut self) {
        settle(&mut *self.worker, &self.mem);
    }

    pub fn revive(&mut self) {
        stop(&mut *self.worker, &self.mem, true);
        self.start();
        self.interrupt.take_needs_reset();
        self.terminal.0.lock().unwrap().room = usize::MAX;
        self.tx.post(&[Buf::Read(b"hello".into())]);
        self.tx.publish();
        self.step();
        assert_eq!(self.tx.used().len(), 1, "wedged");
        assert!(self.interrupt.take_needs_reset().is_empty());
    }
}

/// Counts what it was asked for, and fails where told to.
#[derive(Clone, Default)]
pub struct Dice {
    pub asked: Arc<AtomicUsize>,
    pub broken: Arc<AtomicBool>,
}

impl RngBackend for Dice {
    fn fill(&mut self, buf: &mut [u8]) -> Result<(), RngError> {
        if self.broken.load(Relaxed) {
            return Err(RngError(5));
        }
        self.asked.fetch_add(buf.len(), Relaxed);
        buf.fill(4);
        Ok(())
    }
}

pub struct Rng {
    pub mem: GuestRam,
    pub worker: Box<dyn VirtioWorker<GuestRam>>,
    pub dice: Dice,
    pub driver: DriverQueue,
    pub interrupt: Arc<RecordingInterrupt>,
    pub features: u64,
}

pub fn rng(features: u64) -> Rng {
    let mem = guest_ram(RAM as usize);
    let dice = Dice::default();
    let worker = Box::new(RngDevice.worker(dice.clone(), Arc::default()));
    let driver = DriverQueue::new(&mem, 0x10_0000, SIZE, features);
    let mut rig = Rng { mem, worker, dice, driver, interrupt: RecordingInterrupt::new(), features };
    rig.start();
    rig
}

impl Rng {
    pub fn start(&mut self) {
        self.driver = DriverQueue::new(&self.mem, 0x10_0000, SIZE, self.features);
        self.worker.start(&self.mem, 0, self.driver.state(), &self.interrupt.activation(self.features));
    }

    pub fn step(&mut self) {
        settle(&mut *self.worker, &self.mem);
    }

    pub fn revive(&mut self) {
        self.dice.broken.store(false, Relaxed);
        stop(&mut *self.worker, &self.mem, true);
        self.start();
        self.interrupt.take_needs_reset();
        let posted = self.driver.post(&[Buf::Write(16)]);
        self.driver.publish();
        self.step();
        assert_eq!(self.driver.used(), [Used { head: posted.head.into(), len: 16 }], "wedged");
        assert!(self.interrupt.take_needs_reset().is_empty());
    }
}
