//! Transport, worker and back end as one, with a driver that does everything through configuration space: no BAR is
//! mapped, no thread runs. Every ring format and every ring feature, from discovery to reset.

use std::sync::Arc;

use devices::GuestRam;
use devices::bus::{Access, Bus};
use devices::interrupt::IrqLine;
use devices::pci::{BarMapper, InterruptPin, PciAddress, PciFunction, Windows};
use devices::virtio::F_RING_RESET;
use devices::virtio::blk::{BlkConfig, BlkDevice, BlkOp};
use devices::virtio::pci::{Interfaces, NoDoorbells, VirtioPci, VirtioPciParts};
use devices::virtio::queue::{F_EVENT_IDX, F_IN_ORDER, F_INDIRECT_DESC, F_RING_PACKED};
use devices::virtio::testing::{Buf, DriverQueue, InlineRunner, MemoryDisk, Used, guest_ram};

const VERSION_1: u64 = 1 << 32;
const BASE: u64 = 0x10_0000;
const STATUS: u64 = 0x14;
const GENERATION: u64 = 0x15;
const SELECT: u64 = 0x16;
const SIZE: u64 = 0x18;
const ENABLE: u64 = 0x1c;
const RESET: u64 = 0x3a;
const ISR: u64 = 0x1000;
const CAPACITY: u64 = 0x2000;
const NOTIFY: u64 = 0x3000;

struct Line;

impl IrqLine for Line {
    fn set(&self, _asserted: bool) {}
}

struct Machine {
    mem: GuestRam,
    function: Arc<VirtioPci>,
    runner: Arc<InlineRunner>,
    device: BlkDevice,
    disk: MemoryDisk,
    driver: DriverQueue,
    /// Offset of the configuration-access capability (§4.1.4.9).
    window: u16,
    parked: Option<devices::park::Parked>,
}

fn machine() -> Machine {
    machine_over(guest_ram(0x40_0000))
}

fn machine_over(mem: GuestRam) -> Machine {
    machine_of(mem, 64)
}

fn machine_of(mem: GuestRam, capacity_sectors: u64) -> Machine {
    let disk = MemoryDisk::new(64 * 512);
    let config = BlkConfig { capacity_sectors, queue_size: 128, config_wce: true, ..Default::default() };
    let device = BlkDevice::new(config);
    let worker = Box::new(device.worker(0, disk.clone(), Arc::default()));
    let runner = Arc::new(InlineRunner::new(&mem, InlineRunner::ALL_RINGS, vec![worker]));
    let windows = Windows { io: 0xc000..0x1_0000, mem32: 0xe000_0000..0xf000_0000, mem64: None, prefer_mem64: false };
    let function = VirtioPci::new(VirtioPciParts {
        name: "disk".to_owned(),
        device: Arc::new(device.clone()),
        runner: runner.clone(),
        msix: Vec::new(),
        intx: Arc::new(Line),
        pin: InterruptPin::A,
        interrupt_line: 11,
        doorbells: Arc::new(NoDoorbells),
        slot: PciAddress::new(1, 0).unwrap(),
        mapper: Arc::new(BarMapper::new(&Arc::new(Bus::new()), &Arc::new(Bus::new()), windows).unwrap()),
        interfaces: Interfaces::Both,
    })
    .unwrap();
    // Replaced at start; elsewhere, so that it leaves the rings of a machine that moves alone.
    let driver = DriverQueue::new(&mem, 2 * BASE, 16, 0);
    let mut machine = Machine { mem, function, runner, device, disk, driver, window: 0, parked: None };
    let mut at = machine.config(0x34, 1) as u16;
    while machine.config(at, 1) != 9 || machine.config(at + 3, 1) != 5 {
        at = machine.config(at + 1, 1) as u16;
        assert_ne!(at, 0, "no configuration-access capability");
    }
    machine.window = at;
    machine
}

impl Machine {
    fn config(&self, at: u16, width: usize) -> u64 {
        let mut data = [0; 8];
        self.function.read_config(at, &mut data[..width]);
        u64::from_le_bytes(data)
    }

    fn config_write(&mut self, at: u16, width: usize, value: u64) {
        if let Access::Parked(parked) = self.function.write_config(at, &value.to_le_bytes()[..width]) {
            self.parked = Some(parked);
        }
    }

    fn aim(&mut self, offset: u64, width: usize) {
        self.config_write(self.window + 4, 1, 4);
        self.config_write(self.window + 8, 4, offset);
        self.config_write(self.window + 12, 4, width as u64);
    }

    fn get(&mut self, offset: u64, width: usize) -> u64 {
        self.aim(offset, width);
        self.config(self.window + 16, 4) & (u64::MAX >> (64 - 8 * width))
    }

    fn set(&mut self, offset: u64, width: usize, value: u64) {
        self.aim(offset, width);
        self.config_write(self.window + 16, 4, value);
    }

    /// virtio 1.3 §3.1.1.
    fn start(&mut self, features: u64) {
        self.set(STATUS, 1, 0);
        self.set(STATUS, 1, 3);
        for word in 0..2 {
            self.set(8, 4, word);
            self.set(12, 4, features >> (32 * word) & 0xffff_ffff);
        }
        self.set(STATUS, 1, 11);
        assert_eq!(self.get(STATUS, 1), 11);
        self.set_up_queue(features, 16);
        self.set(STATUS, 1, 15);
    }

    fn set_up_queue(&mut self, features: u64, size: u16) {
        self.driver = DriverQueue::new(&self.mem, BASE, size, features);
        let state = self.driver.state();
        self.set(SELECT, 2, 0);
        self.set(SIZE, 2, size.into());
        for (field, address) in [(0x20, state.desc_table), (0x28, state.avail_ring), (0x30, state.used_ring)] {
            self.set(field, 4, address & 0xffff_ffff);
            self.set(field + 4, 4, address >> 32);
        }
        self.set(ENABLE, 2, 1);
    }

    /// Reads `count` sectors with as many requests and checks the answers.
    fn read_sectors(&mut self, count: u8) {
        let mut posted = Vec::new();
        for sector in 0..count {
            self.disk.fill(512 * usize::from(sector), &[sector + 1; 512]);
            let header = [[0; 8], u64::from(sector).to_le_bytes()].concat();
            posted.push(self.driver.post(&[Buf::Read(header), Buf::Write(512), Buf::Write(1)]));
        }
        if self.driver.publish() {
            self.set(NOTIFY, 2, 0);
            assert_eq!(self.runner.kicked(), [0]);
        }
        assert!(self.runner.step(100));
        let expected: Vec<_> = posted.iter().map(|posted| Used { head: posted.head.into(), len: 513 }).collect();
        assert_eq!(self.driver.used(), expected);
        for (sector, posted) in (0..count).zip(posted) {
            assert_eq!(self.driver.read(posted.buffers[1]), [sector + 1; 512]);
        }
    }
}

fn features() -> Vec<u64> {
    let base = VERSION_1 | 1 << 9 | F_INDIRECT_DESC | F_RING_RESET;
    let rings = [0, F_RING_PACKED, F_IN_ORDER, F_RING_PACKED | F_IN_ORDER];
    rings.into_iter().flat_map(|rings| [base | rings, base | rings | F_EVENT_IDX]).collect()
}

#[test]
fn a_disk_works_with_every_ring_format_from_discovery_to_reset() {
    let mut machine = machine();
    for features in features() {
        machine.start(features);
        for _ in 0..10 {
            machine.read_sectors(5);
        }
        machine.set(STATUS, 1, 0);
        assert_eq!(machine.get(STATUS, 1), 0);
    }
}

#[test]
fn a_queue_is_reset_and_resized_while_its_disk_has_requests() {
    let mut machine = machine();
    for features in features() {
        machine.start(features);
        machine.read_sectors(3);
        machine.disk.hold(true);
        machine.driver.post(&[Buf::Read(vec![0; 16]), Buf::Write(512), Buf::Write(1)]);
        machine.driver.publish();
        assert!(machine.runner.step(100));
        machine.set(RESET, 2, 1);
        assert_eq!((machine.get(RESET, 2), machine.get(ENABLE, 2)), (1, 1));
        assert!(machine.runner.step(100));
        assert_eq!((machine.get(RESET, 2), machine.get(ENABLE, 2)), (0, 0));
        assert!(machine.driver.used().is_empty());
        machine.disk.hold(false);
        // A packed ring need not be a power of two.
        let size = if features & F_RING_PACKED != 0 { 23 } else { 32 };
        machine.set_up_queue(features, size);
        machine.read_sectors(7);
        assert_eq!(machine.get(STATUS, 1), 15);
    }
}

#[test]
fn a_queue_enabled_again_without_being_set_up_does_no_harm_beyond_the_next_reset() {
    let mut machine = machine();
    for features in features() {
        machine.start(features);
        machine.set(RESET, 2, 1);
        assert!(machine.runner.step(100));
        assert_eq!((machine.get(RESET, 2), machine.get(ENABLE, 2)), (0, 0));
        // Rings of the largest size at address 0, whatever is there.
        machine.set(ENABLE, 2, 1);
        machine.set(NOTIFY, 2, 0);
        assert!(machine.runner.step(100));
        machine.set(STATUS, 1, 0);
        assert!(machine.runner.step(100));
        assert_eq!(machine.get(STATUS, 1), 0);
        machine.start(features);
        machine.read_sectors(3);
    }
}

#[test]
fn a_paused_disk_goes_on_in_another_machine_in_every_format() {
    for features in features() {
        let mut one = machine();
        one.start(features);
        one.read_sectors(3);
        let queues = one.runner.pause(10).unwrap();
        let saved = one.function.save();
        // The same memory, as after a migration.
        let mut two = machine_over(one.mem.clone());
        two.function.restore(&saved, &queues).unwrap();
        std::mem::swap(&mut two.driver, &mut one.driver);
        let posted = two.driver.post(&[Buf::Read(vec![0; 16]), Buf::Write(512), Buf::Write(1)]);
        two.driver.publish();
        assert!(two.runner.step(100));
        assert_eq!(two.driver.used(), [Used { head: posted.head.into(), len: 513 }], "{features:#x}");
        assert_eq!(two.get(STATUS, 1), 15);
    }
}

#[test]
fn a_disk_that_its_driver_made_write_through_is_that_after_restore_too() {
    const WRITEBACK: u64 = 0x2000 + 32;
    let features = VERSION_1 | 1 << 9 | 1 << 11;
    let mut one = machine();
    one.start(features);
    assert_eq!(one.get(WRITEBACK, 1), 1);
    one.set(WRITEBACK, 1, 0);
    let queues = one.runner.pause(10).unwrap();
    let mut two = machine_over(one.mem.clone());
    two.function.restore(&one.function.save(), &queues).unwrap();
    std::mem::swap(&mut two.driver, &mut one.driver);
    assert_eq!(two.get(WRITEBACK, 1), 0);
    // Else a write would be acknowledged that a power cut can lose, and the driver sends no flush.
    let header = [1u32.to_le_bytes().as_slice(), &[0; 12]].concat();
    two.driver.post(&[Buf::Read(header), Buf::Read(vec![7; 512]), Buf::Write(1)]);
    two.driver.publish();
    assert!(two.runner.step(100));
    assert_eq!(two.disk.take_log(), [BlkOp::Write { durable: true }]);
}

#[test]
fn a_driver_that_looked_at_the_generation_before_a_restore_is_not_fooled_by_it_after() {
    let mut one = machine();
    one.start(VERSION_1);
    for sectors in [63, 62, 61] {
        one.device.set_capacity(sectors);
        one.get(GENERATION, 1);
    }
    let seen = one.get(GENERATION, 1);
    assert_ne!(seen, machine().get(GENERATION, 1), "a new device starts another count");
    let queues = one.runner.pause(10).unwrap();
    let saved = one.function.save();
    let restored = |capacity| {
        let machine = machine_of(one.mem.clone(), capacity);
        machine.function.restore(&saved, &queues).unwrap();
        machine
    };
    let mut same = restored(61);
    assert_eq!((same.get(GENERATION, 1), same.get(ISR, 1)), (seen, 0), "nothing has changed");
    same.device.set_capacity(60);
    assert_ne!(same.get(GENERATION, 1), seen);
    // The disk has another size where the machine goes on: the driver is told, and a look in two halves notices it.
    let mut other = restored(64);
    assert_eq!((other.get(CAPACITY, 1), other.get(ISR, 1)), (64, 2));
    assert_ne!(other.get(GENERATION, 1), seen);
}

#[test]
fn a_change_that_the_driver_has_not_seen_yet_shows_after_a_restore() {
    let mut one = machine();
    one.start(VERSION_1);
    let seen = one.get(GENERATION, 1);
    one.device.set_capacity(8);
    let queues = one.runner.pause(10).unwrap();
    let saved = one.function.save();
    let mut two = machine_of(one.mem.clone(), 8);
    two.function.restore(&saved, &queues).unwrap();
    assert_eq!(two.function.save(), saved);
    assert_ne!(two.get(GENERATION, 1), seen);
}
