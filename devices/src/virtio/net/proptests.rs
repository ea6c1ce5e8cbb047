//! Any sequence of buffers and frames: what arrives is what was sent, in order, whole or not at all.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use proptest::prelude::*;

use super::*;
use crate::GuestRam;
use crate::virtio::counters::QueueCounters;
use crate::virtio::queue::{F_EVENT_IDX, GuestRange};
use crate::virtio::testing::{Buf, DriverQueue, MemoryLink, RecordingInterrupt, guest_ram};
use crate::virtio::{VirtioDevice, VirtioWorker};

const SIZE: u16 = 16;
const V1: u64 = 1 << 32;
const MRG: u64 = 1 << 15;

#[derive(Clone, Debug)]
enum Op {
    Post(Vec<u32>),
    Arrive(usize),
    Step,
    Collect,
    Pause,
}

fn op() -> impl Strategy<Value = Op> {
    let size = prop_oneof![1 => 0u32..13, 6 => 13u32..400, 2 => 1500u32..5000];
    prop_oneof![
        6 => prop::collection::vec(size, 1..4).prop_map(Op::Post),
        6 => prop_oneof![1usize..300, 1usize..9000].prop_map(Op::Arrive),
        6 => Just(Op::Step),
        4 => Just(Op::Collect),
        1 => Just(Op::Pause),
    ]
}

/// A frame that names itself: its number in each byte.
fn frame(number: u8, len: usize) -> Vec<u8> {
    (0..len).map(|i| number ^ (i >> 8) as u8).collect()
}

struct Machine {
    mem: GuestRam,
    worker: Box<dyn VirtioWorker<GuestRam>>,
    link: MemoryLink,
    driver: DriverQueue,
    posted: HashMap<u16, Vec<GuestRange>>,
    interrupt: Arc<RecordingInterrupt>,
    counters: Arc<QueueCounters>,
    features: u64,
    arrived: VecDeque<Vec<u8>>,
    number: u8,
    delivered: u64,
}

impl Machine {
    fn new(features: u64) -> Self {
        let mem = guest_ram(0x20_0000);
        let device = NetDevice::new(NetConfig {
            mac: [2; 6],
            mtu: None,
            offloads: true,
            queue_size: SIZE,
            speed_mbits: None,
            duplex: None,
        });
        assert_eq!(features & !(device.features() | V1), 0);
        let (link, counters) = (MemoryLink::default(), Arc::<QueueCounters>::default());
        let mut worker: Box<dyn VirtioWorker<GuestRam>> =
            Box::new(device.rx_worker(link.clone(), counters.clone(), Arc::default()));
        let driver = DriverQueue::new(&mem, 0x10_0000, SIZE, features);
        let interrupt = RecordingInterrupt::new();
        worker.start(&mem, RX_QUEUE, driver.state(), &interrupt.activation(features));
        Self {
            mem,
            worker,
            link,
            driver,
            posted: HashMap::new(),
            interrupt,
            counters,
            features,
            arrived: VecDeque::new(),
            number: 0,
            delivered: 0,
        }
    }

    fn run(&mut self, op: Op) {
        match op {
            Op::Post(sizes) => {
                if self.driver.free() < sizes.len() {
                    return;
                }
                let bufs: Vec<Buf> = sizes.into_iter().map(Buf::Write).collect();
                let posted = self.driver.post(&bufs);
                self.posted.insert(posted.head, posted.buffers);
                self.driver.publish();
            }
            Op::Arrive(len) => {
                let frame = frame(self.number, len);
                self.number = self.number.wrapping_add(1);
                self.link.arrive([0; HEADER_BYTES], &frame);
                self.arrived.push_back(frame);
            }
            Op::Step => self.step(),
            Op::Collect => self.collect(),
            Op::Pause => {
                self.worker.begin_stop(&self.mem);
                assert!(self.worker.poll_stopped(&self.mem, false));
                let state = self.worker.take_state(RX_QUEUE).unwrap();
                self.worker.start(&self.mem, RX_QUEUE, state, &self.interrupt.activation(self.features));
            }
        }
    }

    fn step(&mut self) {
        for _ in 0..20 {
            if !self.worker.step(&self.mem).again {
                return;
            }
        }
        panic!("the worker spins");
    }

    /// Reads frames out of the used ring as a driver does.
    fn collect(&mut self) {
        let mut used = self.driver.used().into_iter();
        while let Some(first) = used.next() {
            let mut bytes = self.bytes(first.head as u16, first.len);
            if bytes.is_empty() {
                continue; // A buffer too small for a header.
            }
            let mut buffers = u16::from_le_bytes([bytes[10], bytes[11]]);
            assert!(buffers == 1 || buffers > 1 && self.features & MRG != 0);
            while buffers > 1 {
                let next = used.next().expect("all buffers of a frame are used together");
                bytes.extend(self.bytes(next.head as u16, next.len));
                buffers -= 1;
            }
            // Frames may be missing, but not changed, repeated or overtaken.
            let frame = bytes.split_off(HEADER_BYTES);
            let at = self.arrived.iter().position(|arrived| *arrived == frame).expect("a frame that was sent");
            self.arrived.drain(..=at);
            self.delivered += 1;
        }
    }

    fn bytes(&mut self, head: u16, len: u32) -> Vec<u8> {
        let buffers = self.posted.remove(&head).expect("each buffer is used once");
        let mut bytes: Vec<u8> = buffers.iter().flat_map(|&range| self.driver.read(range)).collect();
        bytes.truncate(len as usize);
        bytes
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 150, ..ProptestConfig::default() })]

    #[test]
    fn frames_arrive_whole_in_order_and_at_most_once(
        ops in prop::collection::vec(op(), 1..80),
        mergeable in any::<bool>(),
        event_idx in any::<bool>(),
    ) {
        let features = V1 | if mergeable { MRG } else { 0 } | if event_idx { F_EVENT_IDX } else { 0 };
        let mut machine = Machine::new(features);
        for op in ops {
            machine.run(op);
        }
        // With buffers enough the queue recovers from whatever state it was in.
        for _ in 0..40 {
            machine.step();
            machine.collect();
            while machine.driver.free() > 0 {
                machine.run(Op::Post(vec![9100]));
            }
        }
        machine.step();
        machine.collect();
        prop_assert_eq!(machine.link.waiting(), 0, "the queue is stuck");
        let accounted = machine.delivered + machine.counters.dropped.get();
        prop_assert_eq!(accounted, u64::from(machine.number), "every frame is delivered or counted as lost");
        // Without mergeable buffers a frame may meet a buffer too small for it, but not for ever.
        for _ in 0..=if mergeable { 0 } else { SIZE } {
            machine.run(Op::Arrive(1000));
            machine.step();
            machine.collect();
            machine.run(Op::Post(vec![9100]));
        }
        prop_assert!(machine.arrived.is_empty(), "the last frame arrives");
    }
}
