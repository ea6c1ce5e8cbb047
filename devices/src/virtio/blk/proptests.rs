//! Any program of a driver, honest or not, with a disk that answers late, out of order and with errors.

use std::collections::HashMap;
use std::sync::Arc;

use proptest::prelude::*;

use super::*;
use crate::GuestRam;
use crate::virtio::VirtioWorker;
use crate::virtio::queue::{Descriptor, F_EVENT_IDX, F_INDIRECT_DESC, GuestRange};
use crate::virtio::testing::{Buf, DriverQueue, MemoryDisk, RecordingInterrupt, guest_ram};

const SIZE: u16 = 8;
const SECTORS: u64 = 16;
const V1: u64 = 1 << 32;

#[derive(Clone, Debug)]
enum Op {
    Request { kind: u32, sector: u64, len: u32, indirect: bool },
    Raw { index: u16, desc: Descriptor },
    Offer(u16),
    Jump(u16),
    Publish,
    Step,
    Complete(usize),
    Fail(BlkError),
    Hold(bool),
    Room(usize),
    Pause,
    Reset,
    Resize(u64),
}

fn op() -> impl Strategy<Value = Op> {
    let kind = prop_oneof![4 => Just(0u32), 4 => Just(1), 2 => Just(4), 1 => Just(8), 1 => Just(13), 1 => any::<u32>()];
    let sector = prop_oneof![8 => 0..SECTORS + 2, 1 => any::<u64>()];
    let len = prop_oneof![8 => (0u32..4).prop_map(|sectors| sectors * 512), 1 => 0u32..2000];
    let addr = prop_oneof![3 => 0u64..0x20_0000, 1 => any::<u64>()];
    let desc = (addr, prop_oneof![0u32..600, any::<u32>()], 0u16..8, 0..SIZE + 1)
        .prop_map(|(addr, len, flags, next)| Descriptor { addr, len, flags, next });
    let error = prop_oneof![Just(BlkError::Host(5)), Just(BlkError::Unsupported), Just(BlkError::Short)];
    prop_oneof![
        12 => (kind, sector, len, any::<bool>())
            .prop_map(|(kind, sector, len, indirect)| Op::Request { kind, sector, len, indirect }),
        1 => (0..SIZE, desc).prop_map(|(index, desc)| Op::Raw { index, desc }),
        1 => (0..SIZE + 1).prop_map(Op::Offer),
        1 => any::<u16>().prop_map(Op::Jump),
        8 => Just(Op::Publish),
        10 => Just(Op::Step),
        6 => (0usize..4).prop_map(Op::Complete),
        2 => error.prop_map(Op::Fail),
        3 => any::<bool>().prop_map(Op::Hold),
        1 => (1usize..5).prop_map(Op::Room),
        2 => Just(Op::Pause),
        1 => Just(Op::Reset),
        1 => (0..=SECTORS).prop_map(Op::Resize),
    ]
}

struct Machine {
    mem: GuestRam,
    device: BlkDevice,
    worker: Box<dyn VirtioWorker<GuestRam>>,
    disk: MemoryDisk,
    driver: DriverQueue,
    interrupt: Arc<RecordingInterrupt>,
    features: u64,
    /// Requests the driver waits for, with their readable buffers and what was in them.
    waiting: HashMap<u16, Vec<(GuestRange, Vec<u8>)>>,
    /// The driver has broken the rules since the last reset: only the device's survival is judged.
    hostile: bool,
}

impl Machine {
    fn new(features: u64) -> Self {
        let mem = guest_ram(0x20_0000);
        let erase = Some(EraseLimits { max_sectors: 4, max_segments: 1, alignment_sectors: 1 });
        let device = BlkDevice::new(BlkConfig {
            capacity_sectors: SECTORS,
            queue_size: SIZE,
            write_zeroes: erase,
            ..Default::default()
        });
        let disk = MemoryDisk::new(SECTORS as usize * 512);
        let worker = Box::new(device.worker(0, disk.clone(), Arc::default()));
        let driver = DriverQueue::new(&mem, 0x10_0000, SIZE, features);
        let interrupt = RecordingInterrupt::new();
        let mut machine =
            Self { mem, device, worker, disk, driver, interrupt, features, waiting: HashMap::new(), hostile: false };
        machine.worker.start(&machine.mem, 0, machine.driver.state(), &machine.interrupt.activation(features));
        machine
    }

    fn step(&mut self) {
        // Each round takes a ring of chains and then looks once more: more rounds mean that it spins.
        for _ in 0..4 {
            if !self.worker.step(&self.mem).again {
                break;
            }
        }
        assert!(!self.worker.step(&self.mem).again || self.hostile, "the worker spins");
        self.collect();
    }

    fn collect(&mut self) {
        for used in self.driver.used() {
            if self.hostile {
                continue;
            }
            let readable = self.waiting.remove(&(used.head as u16)).expect("each request is answered once");
            for (range, content) in readable {
                assert_eq!(self.driver.read(range), content, "a readable buffer was written");
            }
        }
    }

    fn request(&mut self, kind: u32, sector: u64, len: u32, indirect: bool) -> Option<(u16, Vec<GuestRange>)> {
        let mut bufs = vec![Buf::Read([kind.to_le_bytes().as_slice(), &[0; 4], &sector.to_le_bytes()].concat())];
        match kind {
            1 => bufs.push(Buf::Read(vec![0x5a; len as usize])),
            13 => bufs.push(Buf::Read([sector.to_le_bytes().as_slice(), &(len / 512).to_le_bytes(), &[0; 4]].concat())),
            0 | 8 => bufs.push(Buf::Write(len)),
            _ => {}
        }
        bufs.push(Buf::Write(1));
        let indirect = indirect && self.features & F_INDIRECT_DESC != 0;
        if self.driver.free() < if indirect { 1 } else { bufs.len() } {
            return None;
        }
        let posted = if indirect { self.driver.post_indirect(&bufs) } else { self.driver.post(&bufs) };
        let readable = posted
            .buffers
            .iter()
            .zip(&bufs)
            .filter_map(|(&range, buf)| match buf {
                Buf::Read(content) => Some((range, content.clone())),
                Buf::Write(_) => None,
            })
            .collect();
        self.waiting.insert(posted.head, readable);
        Some((posted.head, posted.buffers))
    }

    fn stop(&mut self, abandon: bool) -> crate::virtio::QueueState {
        self.worker.begin_stop(&self.mem);
        for _ in 0..2 * SIZE {
            if self.worker.poll_stopped(&self.mem, abandon) {
                break;
            }
            self.disk.complete(0);
        }
        assert!(self.worker.poll_stopped(&self.mem, abandon), "the worker does not come to a stop");
        self.collect();
        self.worker.take_state(0).expect("it was running")
    }

    fn reset(&mut self) {
        self.stop(true);
        self.disk.hold(false);
        self.disk.limit(usize::MAX);
        self.driver = DriverQueue::new(&self.mem, 0x10_0000, SIZE, self.features);
        self.waiting.clear();
        self.hostile = false;
        self.interrupt.take_needs_reset();
        self.worker.start(&self.mem, 0, self.driver.state(), &self.interrupt.activation(self.features));
    }

    fn run(&mut self, op: Op) {
        match op {
            Op::Request { kind, sector, len, indirect } => {
                self.request(kind, sector, len, indirect);
            }
            Op::Raw { index, desc } => {
                self.hostile = true;
                self.driver.write_descriptor(index, desc);
            }
            Op::Offer(head) => {
                self.hostile = true;
                self.driver.offer(head);
            }
            Op::Jump(index) => {
                self.hostile = true;
                self.driver.set_avail_index(index);
            }
            Op::Publish => {
                self.driver.publish();
            }
            Op::Step => self.step(),
            Op::Complete(nth) => {
                self.disk.complete(nth);
            }
            Op::Fail(error) => self.disk.fail_next(error),
            Op::Hold(hold) => self.disk.hold(hold),
            Op::Room(room) => self.disk.limit(room),
            Op::Pause => {
                let state = self.stop(false);
                self.worker.start(&self.mem, 0, state, &self.interrupt.activation(self.features));
            }
            Op::Reset => self.reset(),
            Op::Resize(sectors) => self.device.set_capacity(sectors),
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 250, ..ProptestConfig::default() })]

    #[test]
    fn no_program_breaks_the_disk_for_good(
        ops in prop::collection::vec(op(), 1..60),
        indirect in any::<bool>(),
        event_idx in any::<bool>(),
    ) {
        let features = V1 | if indirect { F_INDIRECT_DESC } else { 0 } | if event_idx { F_EVENT_IDX } else { 0 };
        let mut machine = Machine::new(features);
        for op in ops {
            machine.run(op);
        }
        // An honest driver gets every answer in the end.
        if !machine.hostile {
            machine.disk.hold(false);
            machine.disk.limit(usize::MAX);
            machine.driver.publish();
            while machine.disk.complete(0) {}
            machine.step();
            prop_assert!(machine.waiting.is_empty(), "requests were lost: {:?}", machine.waiting.keys());
            prop_assert!(machine.interrupt.take_needs_reset().is_empty(), "nothing was wrong");
        }
        // And after a reset the disk works, whatever happened before.
        machine.reset();
        machine.device.set_capacity(SECTORS);
        // Failures that were ordered and not used up hit requests that do not count.
        while machine.request(4, 0, 0, false).is_some() {}
        machine.driver.publish();
        machine.step();
        for _ in 0..20 {
            machine.device.go_on();
            machine.request(4, 0, 0, false);
            machine.driver.publish();
            machine.step();
        }
        machine.device.go_on();
        let (_, buffers) = machine.request(1, 3, 512, false).expect("room for a request");
        machine.driver.publish();
        machine.step();
        prop_assert_eq!(machine.driver.read(buffers[2]), [0]);
        prop_assert_eq!(&machine.disk.bytes()[3 * 512..4 * 512], [0x5a; 512]);
    }
}
