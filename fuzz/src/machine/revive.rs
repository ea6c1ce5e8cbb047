//! The wedge oracle: whatever a program has done, a reset and one valid request work afterwards, within a budget.

use devices::virtio::queue::Descriptor;

use super::vmm::{Kind, SECTORS};
use super::{MAX_ROUNDS, Machine, Setup};
use crate::finding;
use crate::oracle::Device;

/// A sector nothing else is written to at the end.
const SECTOR: u64 = SECTORS - 8;

impl Machine {
    /// Takes all faults of the host away, resets the device as a guest would and has it serve one request on each of
    /// its queues.
    pub fn revive(&mut self) {
        self.heal();
        self.auto = true;
        self.forget_rings();
        self.keep_bars();
        self.complete_all();
        self.run(usize::MAX);
        self.look();
        self.judge_times();
        if !self.reset(MAX_ROUNDS) {
            finding!("wedge", "a reset does not end");
        }
        let driven = self.set_up(Setup { size: 8, ..Setup::default() });
        if !driven.running {
            finding!("wedge", "the device does not start after its reset, status {:#x}", self.transport.status());
        }
        match self.shape.kind {
            Kind::Blk => self.revive_disk(),
            Kind::Net => self.revive_card(),
            Kind::Console => self.revive_console(),
            Kind::Rng => self.revive_generator(),
        }
    }

    fn heal(&mut self) {
        {
            let mut disk = self.disk.0.open();
            (disk.hold, disk.room, disk.refuse, disk.slow_cancel) = (false, 16, None, false);
        }
        let mut end = self.end.inner.open();
        (end.full, end.broken, end.room) = (false, false, usize::MAX >> 1);
        end.frames.iter_mut().for_each(std::collections::VecDeque::clear);
        drop(end);
        let oracles = &mut *self.oracles.open();
        oracles.fetches.change_with(None);
        match (&mut oracles.device, &self.vmm.handle) {
            (Device::Blk(blk), super::Handle::Blk(device)) => {
                blk.capacity = SECTORS;
                device.set_capacity(SECTORS);
            }
            (Device::Net(net), super::Handle::Net(device)) => {
                net.set_link(true, &mut oracles.rings);
                device.set_link(true);
            }
            _ => {}
        }
    }

    /// Posts a chain, kicks where the device wants it, and gives the used length of what has to come back for it.
    fn serve(&mut self, queue: u16, chain: &[Descriptor]) -> u32 {
        let driver = &mut self.drivers[usize::from(queue)];
        if !driver.place(&self.ram, chain) {
            finding!("wedge", "a fresh ring of queue {queue} has no room");
        }
        let head = u32::from(driver.last);
        if driver.publish(&self.ram) {
            self.word_at(queue);
        }
        self.settle();
        self.wait_out();
        match self.drivers[usize::from(queue)].collect(&self.ram) {
            Some((id, len)) if id == head => len,
            other => finding!(
                "wedge",
                "queue {queue} answers {other:?} to a valid request after a reset, status {:#x}, {:x?}",
                self.transport.status(),
                self.oracles.open().rings.live(queue)
            ),
        }
    }

    fn word_at(&mut self, queue: u16) {
        self.write(super::Bar::Modern, 0x3000 + 4 * u64::from(queue), &queue.to_le_bytes());
    }

    fn place(&mut self, queue: u16, content: &[u8], flags: u16) -> Descriptor {
        let addr = self.drivers[usize::from(queue)].buffer(content.len() as u32);
        self.ram.poke(addr, content);
        Descriptor { addr, len: content.len() as u32, flags, next: 0 }
    }

    fn revive_disk(&mut self) {
        let pattern = [0x5a; 512];
        if let Device::Blk(blk) = &mut self.oracles.open().device {
            blk.bytes[SECTOR as usize * 512..][..512].copy_from_slice(&pattern);
        }
        for queue in 0..self.queues() {
            let mut header = [0; 16];
            header[8..].copy_from_slice(&SECTOR.to_le_bytes());
            let chain = [
                self.place(queue, &header, 0),
                self.place(queue, &[0xee; 512], Descriptor::WRITE),
                self.place(queue, &[0xee], Descriptor::WRITE),
            ];
            let len = self.serve(queue, &chain);
            let mut data = [0; 512];
            self.ram.peek(chain[1].addr, &mut data);
            if len != 513 || data != pattern || self.ram.word(chain[2].addr, 1) != 0 {
                finding!("wedge", "a read after a reset gives {len} bytes, status {}", self.ram.word(chain[2].addr, 1));
            }
        }
    }

    fn revive_card(&mut self) {
        let header = [0; 12];
        let frame = [0xab; 60];
        let pairs = self.shape.pairs;
        for queue in (0..pairs).map(|pair| 2 * pair + 1) {
            let chain = [self.place(queue, &header, 0), self.place(queue, &frame, 0)];
            self.serve(queue, &chain);
        }
        // One pair is in use until the driver asks for more: frames of every flow come to it.
        for flow in 0..pairs {
            self.revive_receiver(flow, 0);
        }
        self.command(&[0, 0, 1]);
        if pairs > 1 {
            let [low, high] = pairs.to_le_bytes();
            self.command(&[4, 0, low, high]);
            for flow in 0..pairs {
                self.revive_receiver(flow, 2 * flow);
            }
        }
    }

    /// A frame of this flow is received in this queue.
    fn revive_receiver(&mut self, flow: u16, queue: u16) {
        self.end.arrive(flow as u8, 60, (0, 0), None);
        let buffer = self.place(queue, &[0xee; 1526], Descriptor::WRITE);
        let len = self.serve(queue, &[buffer]);
        if len != 72 {
            finding!("wedge", "a frame of 60 bytes is received as {len} after a reset");
        }
    }

    fn command(&mut self, bytes: &[u8]) {
        let queue = self.control();
        let command = [self.place(queue, bytes, 0), self.place(queue, &[0xee], Descriptor::WRITE)];
        let len = self.serve(queue, &command);
        let answer = self.ram.word(command[1].addr, 1);
        if len != 1 || answer != 0 {
            finding!("wedge", "command {bytes:?} is answered with {answer} after a reset");
        }
    }

    fn revive_console(&mut self) {
        let out = self.place(1, b"hello", 0);
        self.serve(1, &[out]);
        // What was typed before comes first.
        self.end.inner.open().typed += 3;
        let input = self.place(0, &[0xee; 64], Descriptor::WRITE);
        let len = self.serve(0, &[input]);
        if len == 0 {
            finding!("wedge", "typed bytes do not arrive after a reset");
        }
    }

    fn revive_generator(&mut self) {
        let buffer = self.place(0, &[0; 16], Descriptor::WRITE);
        let len = self.serve(0, &[buffer]);
        if len != 16 || self.ram.word(buffer.addr, 8) == 0 {
            finding!("wedge", "a request for random bytes gives {len} after a reset");
        }
    }
}
