mod alone;
mod control;
mod filter;
mod lengths;
mod limits;
mod link;
mod mtu;
mod multiqueue;
mod offloads;
mod responder;
mod source;

use std::sync::Arc;

use vm_memory::{Bytes, GuestAddress};

use super::*;
use crate::GuestRam;
use crate::virtio::counters::QueueCounters;
use crate::virtio::queue::F_INDIRECT_DESC;
use crate::virtio::testing::{Buf, DriverQueue, MemoryLink, Posted, RecordingInterrupt, guest_ram};
use crate::virtio::{QueueState, Step, VirtioDevice, VirtioWorker, WorkerState};

const V1: u64 = 1 << 32 | F_INDIRECT_DESC;
const MRG: u64 = 1 << 15;
const GUEST_CSUM: u64 = 1 << 1;
const GUEST_TSO4: u64 = 1 << 7;
const SIZE: u16 = 64;

fn config() -> NetConfig {
    NetConfig { mac: [2, 0, 0, 0, 0, 1], mtu: None, offloads: true, queue_size: SIZE, speed_mbits: None, duplex: None }
}

struct Rig {
    mem: GuestRam,
    worker: Box<dyn VirtioWorker<GuestRam>>,
    link: MemoryLink,
    rx: DriverQueue,
    tx: DriverQueue,
    control: DriverQueue,
    device: NetDevice,
    interrupt: Arc<RecordingInterrupt>,
    rx_counters: Arc<QueueCounters>,
    tx_counters: Arc<QueueCounters>,
    control_counters: Arc<QueueCounters>,
    features: u64,
}

fn rig(features: u64) -> Rig {
    rig_of(config(), features)
}

fn rig_of(config: NetConfig, features: u64) -> Rig {
    rig_around(NetDevice::new(config), features)
}

fn rig_around(device: NetDevice, features: u64) -> Rig {
    let mem = guest_ram(0x40_0000);
    let link = MemoryLink::default();
    let [rx_counters, tx_counters, control_counters] = [(); 3].map(|()| Arc::<QueueCounters>::default());
    let worker = device.worker(link.clone(), [rx_counters.clone(), tx_counters.clone(), control_counters.clone()]);
    let mut rig = Rig {
        rx: DriverQueue::new(&mem, 0x10_0000, SIZE, features),
        tx: DriverQueue::new(&mem, 0x20_0000, SIZE, features),
        control: DriverQueue::new(&mem, 0x30_0000, SIZE, features),
        mem,
        device,
        worker: Box::new(worker),
        link,
        interrupt: RecordingInterrupt::new(),
        rx_counters,
        tx_counters,
        control_counters,
        features,
    };
    rig.start([rig.rx.state(), rig.tx.state(), rig.control.state()]);
    rig
}

/// A header with this flags and gso_type.
fn header(flags: u8, gso_type: u8) -> Header {
    [flags, gso_type, 54, 0, 0, 5, 34, 0, 16, 0, 0, 0]
}

fn frame(len: usize) -> Vec<u8> {
    (0..len).map(|i| (i % 251) as u8).collect()
}

impl Rig {
    fn start(&mut self, queues: [QueueState; 3]) {
        let activation = self.interrupt.activation(self.features);
        for (index, queue) in [RX_QUEUE, TX_QUEUE, CONTROL_QUEUE].into_iter().zip(queues) {
            self.worker.start(&self.mem, index, queue, &activation);
        }
    }

    /// Stops as for a pause: where the queues stand.
    fn pause(&mut self) -> [QueueState; 3] {
        self.worker.begin_stop(&self.mem);
        assert!(self.worker.poll_stopped(&self.mem, false));
        [RX_QUEUE, TX_QUEUE, CONTROL_QUEUE].map(|queue| self.worker.take_state(queue).unwrap())
    }

    /// The driver resets the device and sets it up again.
    fn restart(&mut self) {
        self.worker.begin_stop(&self.mem);
        assert!(self.worker.poll_stopped(&self.mem, true));
        for queue in [RX_QUEUE, TX_QUEUE, CONTROL_QUEUE] {
            self.worker.take_state(queue);
        }
        self.worker.forget_driver();
        self.rx = DriverQueue::new(&self.mem, 0x10_0000, SIZE, self.features);
        self.tx = DriverQueue::new(&self.mem, 0x20_0000, SIZE, self.features);
        self.control = DriverQueue::new(&self.mem, 0x30_0000, SIZE, self.features);
        self.start([self.rx.state(), self.tx.state(), self.control.state()]);
    }

    fn step(&mut self) -> Step {
        for _ in 0..100 {
            let step = self.worker.step(&self.mem);
            if !step.again {
                return step;
            }
        }
        panic!("the worker never came to rest");
    }

    fn post_rx(&mut self, sizes: &[u32]) -> Vec<Posted> {
        let posted = sizes.iter().map(|&size| self.rx.post(&[Buf::Write(size)])).collect();
        self.rx.publish();
        posted
    }

    /// What the driver received: each used chain's bytes.
    fn received(&mut self, posted: &[Posted]) -> Vec<Vec<u8>> {
        let used = self.rx.used();
        used.iter()
            .map(|used| {
                let chain = posted.iter().rfind(|chain| u32::from(chain.head) == used.head).unwrap();
                let mut bytes: Vec<u8> = chain.buffers.iter().flat_map(|&range| self.rx.read(range)).collect();
                bytes.truncate(used.len as usize);
                bytes
            })
            .collect()
    }

    fn send(&mut self, bufs: &[Buf]) {
        self.tx.post(bufs);
        self.tx.publish();
        self.step();
    }
}

#[test]
fn a_frame_is_sent_with_its_header_however_it_is_cut() {
    let mut rig = rig(V1);
    let mut bytes = header(1, 1).to_vec();
    bytes[10] = 7; // num_buffers, which a driver leaves zero
    bytes.extend(frame(100));
    for cuts in [vec![12, 112], vec![112], vec![5, 40, 112], vec![11, 13, 112]] {
        let mut from = 0;
        let bufs: Vec<Buf> =
            cuts.iter().map(|&to| Buf::Read(bytes[std::mem::replace(&mut from, to)..to].into())).collect();
        rig.send(&bufs);
        assert_eq!(rig.link.take_sent(), [(header(1, 1), frame(100))], "cut at {cuts:?}");
    }
    assert_eq!(rig.tx.used().len(), 4);
    assert_eq!(rig.tx_counters.bytes_from_guest.get(), 400);
}

#[test]
fn a_legacy_driver_without_mergeable_buffers_has_a_header_of_ten_bytes() {
    let mut rig = rig(0);
    rig.send(&[Buf::Read(header(0, 0)[..10].into()), Buf::Read(frame(60))]);
    assert_eq!(rig.link.take_sent(), [(header(0, 0), frame(60))]);
    let posted = rig.post_rx(&[1526]);
    rig.link.arrive(header(0, 0), &frame(60));
    rig.step();
    let received = rig.received(&posted);
    assert_eq!((&received[0][..10], &received[0][10..]), (&header(0, 0)[..10], frame(60).as_slice()));
}

#[test]
fn a_legacy_driver_with_mergeable_buffers_has_a_header_of_twelve_bytes() {
    let mut rig = rig(MRG);
    rig.send(&[Buf::Read(header(0, 0).into()), Buf::Read(frame(60))]);
    assert_eq!(rig.link.take_sent(), [(header(0, 0), frame(60))]);
}

#[test]
fn frames_without_a_header_or_without_a_payload_are_returned_and_not_sent() {
    let mut rig = rig(V1);
    for bufs in [vec![Buf::Read(vec![0; 11])], vec![Buf::Read(vec![0; 12])], vec![Buf::Write(100)]] {
        rig.send(&bufs);
    }
    assert_eq!(rig.tx.used().len(), 3);
    assert_eq!(rig.link.take_sent(), []);
    assert_eq!(rig.tx_counters.malformed.get(), 3);
    assert!(rig.interrupt.take_needs_reset().is_empty());
}

#[test]
fn frames_longer_than_any_are_lost_and_counted() {
    let mut rig = rig(V1);
    rig.send(&[Buf::Read(header(0, 0).into()), Buf::Read(vec![0; 65536 + 19])]);
    assert_eq!((rig.tx.used().len(), rig.tx_counters.dropped.get()), (1, 1));
    rig.send(&[Buf::Read(header(0, 0).into()), Buf::Read(vec![0; 65536 + 18])]);
    assert_eq!(rig.link.take_sent().len(), 1);
}

#[test]
fn a_full_link_keeps_frames_waiting_in_order() {
    let mut rig = rig(V1);
    rig.link.set_full(true);
    for len in [60, 61, 62] {
        rig.tx.post(&[Buf::Read(header(0, 0).into()), Buf::Read(frame(len))]);
    }
    rig.tx.publish();
    assert!(rig.step().want_writable);
    assert_eq!(rig.tx.used(), []);
    rig.link.set_full(false);
    assert!(!rig.step().want_writable);
    let lens: Vec<usize> = rig.link.take_sent().iter().map(|(_, frame)| frame.len()).collect();
    assert_eq!(lens, [60, 61, 62]);
    assert_eq!(rig.tx.used().len(), 3);
}

#[test]
fn a_broken_link_loses_frames_without_stopping_the_queue() {
    let mut rig = rig(V1);
    rig.link.set_broken(true);
    let step = rig.step();
    assert!(!step.want_readable);
    rig.send(&[Buf::Read(header(0, 0).into()), Buf::Read(frame(60))]);
    assert_eq!((rig.tx.used().len(), rig.tx_counters.dropped.get()), (1, 1));
    rig.link.set_broken(false);
    rig.send(&[Buf::Read(header(0, 0).into()), Buf::Read(frame(60))]);
    assert_eq!(rig.link.take_sent().len(), 1);
}

#[test]
fn a_broken_link_with_buffers_waiting_does_not_make_the_worker_spin() {
    let mut rig = rig(V1);
    rig.link.set_broken(true);
    rig.post_rx(&[2000; 4]);
    assert_eq!(rig.step(), Step::default());
}

#[test]
fn a_received_frame_lies_behind_its_header() {
    for features in [V1, V1 | MRG] {
        let mut rig = rig(features);
        let posted = rig.post_rx(&[2000; 2]);
        rig.link.arrive(header(0, 0), &frame(1000));
        assert!(rig.step().want_readable);
        let received = rig.received(&posted);
        assert_eq!(received.len(), 1);
        let mut expected = header(0, 0);
        expected[10] = 1;
        assert_eq!((&received[0][..12], &received[0][12..]), (expected.as_slice(), frame(1000).as_slice()));
        assert_eq!(rig.interrupt.take_used(), [RX_QUEUE]);
        assert_eq!(rig.rx_counters.bytes_to_guest.get(), 1000);
    }
}

#[test]
fn a_frame_spans_as_many_mergeable_buffers_as_it_needs_each_full_but_the_last() {
    let mut rig = rig(V1 | MRG);
    let posted = rig.post_rx(&[100; 20]);
    rig.link.arrive(header(0, 0), &frame(300));
    rig.step();
    let received = rig.received(&posted);
    let lens: Vec<usize> = received.iter().map(Vec::len).collect();
    assert_eq!(lens, [100, 100, 100, 12]);
    let bytes = received.concat();
    assert_eq!(bytes[10..12], [4, 0], "num_buffers");
    assert_eq!(bytes[12..], frame(300));
    assert_eq!(rig.interrupt.take_used(), [RX_QUEUE], "one interrupt for all of them");
}

#[test]
fn with_room_for_any_frame_nothing_is_copied() {
    let mut rig = rig(V1 | MRG | GUEST_CSUM | GUEST_TSO4);
    let posted = rig.post_rx(&[1536; 60]);
    for len in [60, 1514, 40_000] {
        rig.link.arrive(header(1, if len > 1514 { 1 } else { 0 }), &frame(len));
    }
    rig.step();
    let bytes = rig.received(&posted).concat();
    assert_eq!(bytes.len(), 60 + 1514 + 40_000 + 3 * 12);
    // The first two frames had a full window of buffers; the third found what they left.
    assert_eq!(rig.link.take_copied_bytes(), 0);
}

#[test]
fn a_frame_that_does_not_fit_yet_waits_for_buffers_and_nothing_overtakes_it() {
    // CVE-2020-16843: a receive queue that ran dry never recovered.
    let mut rig = rig(V1 | MRG);
    let mut posted = rig.post_rx(&[500; 4]);
    for len in [1000, 1200, 10] {
        rig.link.arrive(header(0, 0), &frame(len));
    }
    let step = rig.step();
    assert!(!step.want_readable, "the link is not asked while a frame waits");
    assert_eq!(rig.received(&posted).concat()[12..1012], frame(1000));
    assert_eq!(rig.link.waiting(), 1);
    posted.extend(rig.post_rx(&[500; 4]));
    assert!(rig.step().want_readable);
    let received = rig.received(&posted);
    let lens: Vec<usize> = received.iter().map(Vec::len).collect();
    assert_eq!(lens, [500, 500, 212, 22]);
    assert_eq!(received.concat()[12..1212], frame(1200));
    assert_eq!(rig.rx_counters.dropped.get(), 0);
}

/// A card whose link has given it a frame of 1200 bytes for which its driver has posted no room yet, stopped as for a pause.
fn stopped_with_a_frame_waiting() -> (Rig, Vec<Posted>, [QueueState; 3]) {
    let mut rig = rig(V1 | MRG | GUEST_CSUM);
    let posted = rig.post_rx(&[500; 4]);
    for len in [1000, 1200] {
        rig.link.arrive(header(1, 0), &frame(len));
    }
    rig.step();
    let states = rig.pause();
    (rig, posted, states)
}

#[test]
fn a_frame_that_waits_for_buffers_survives_a_pause_and_goes_with_the_saved_state() {
    for elsewhere in [false, true] {
        let (mut rig, mut posted, states) = stopped_with_a_frame_waiting();
        if elsewhere {
            let state = rig.worker.save();
            let worker = NetDevice::new(config()).worker(rig.link.clone(), Default::default());
            rig.worker = Box::new(worker);
            rig.worker.restore(&state).unwrap();
            assert_eq!(rig.worker.save(), state);
        }
        rig.start(states);
        assert!(!rig.step().want_readable, "the frame still waits");
        posted.extend(rig.post_rx(&[500; 4]));
        rig.step();
        let received = rig.received(&posted).concat();
        assert_eq!((&received[12..1012], &received[1024..]), (&*frame(1000), &*frame(1200)));
    }
}

#[test]
fn a_frame_that_waits_for_buffers_is_looked_at_again_for_another_driver() {
    let (mut rig, _, states) = stopped_with_a_frame_waiting();
    rig.features = V1 | MRG;
    rig.start(states);
    assert!(rig.step().want_readable, "its checksum is not complete, which this driver cannot do");
    assert_eq!(rig.rx_counters.dropped.get(), 1);
}

#[test]
fn a_saved_frame_that_is_none_is_refused() {
    let mut worker = NetDevice::new(config()).worker(MemoryLink::default(), Default::default());
    let worker: &mut dyn VirtioWorker<GuestRam> = &mut worker;
    for (len, is_one) in [(0, true), (1, false), (11, false), (12, true), (12 + 65554, true), (12 + 65555, false)] {
        let state = WorkerState { to_guest: vec![0; len], ..WorkerState::default() };
        assert_eq!(worker.restore(&state).is_ok(), is_one, "{len} bytes");
    }
    assert!(worker.restore(&WorkerState { from_guest: vec![0], ..WorkerState::default() }).is_err());
    assert!(worker.restore(&WorkerState { version: 2, ..WorkerState::default() }).is_err());
}

#[test]
fn a_frame_larger_than_everything_ever_posted_is_dropped_not_waited_for() {
    // CVE-2015-7295.
    for features in [V1, V1 | MRG] {
        let mut rig = rig(features);
        let posted = rig.post_rx(&[600; 3]);
        rig.link.arrive(header(0, 0), &frame(9000));
        rig.link.arrive(header(0, 0), &frame(100));
        assert!(rig.step().want_readable);
        assert_eq!(rig.rx_counters.dropped.get(), 1);
        assert_eq!(rig.received(&posted).concat()[12..], frame(100));
    }
}

#[test]
fn a_frame_that_ends_exactly_with_its_buffer_fits() {
    for features in [V1, V1 | MRG] {
        let mut rig = rig(features);
        let posted = rig.post_rx(&[112, 112]);
        rig.link.arrive(header(0, 0), &frame(100));
        rig.step();
        assert_eq!(rig.received(&posted).len(), 1);
    }
}

#[test]
fn a_frame_in_spite_of_buffers_beyond_the_iovec_limit_arrives_whole() {
    let mut rig = rig(V1 | MRG);
    // 40 chains of 16 ranges each: more ranges than a frame is handed over in.
    let posted: Vec<Posted> = (0..40).map(|_| rig.rx.post_indirect(&vec![Buf::Write(64); 16])).collect();
    rig.rx.publish();
    rig.link.arrive(header(0, 0), &frame(40_000));
    rig.step();
    assert_eq!(rig.received(&posted).concat()[12..], frame(40_000));
}

#[test]
fn buffers_too_small_for_a_header_go_back_unused() {
    let mut rig = rig(V1 | MRG);
    let posted = rig.post_rx(&[11, 1, 200]);
    rig.link.arrive(header(0, 0), &frame(50));
    rig.step();
    let lens: Vec<usize> = rig.received(&posted).iter().map(Vec::len).collect();
    assert_eq!(lens, [0, 0, 62]);
    assert_eq!(rig.rx_counters.malformed.get(), 2);
}

#[test]
fn without_buffers_the_link_is_left_alone_until_some_are_posted() {
    let mut rig = rig(V1);
    rig.link.arrive(header(0, 0), &frame(50));
    assert_eq!(rig.step(), Step::default(), "waiting for the link would be a busy loop");
    assert_eq!(rig.link.waiting(), 1);
    let posted: Vec<Posted> = vec![rig.rx.post(&[Buf::Write(200)])];
    assert!(rig.rx.publish(), "the device wants to hear of buffers");
    rig.step();
    assert_eq!(rig.received(&posted).len(), 1);
}

#[test]
fn a_driver_sees_only_the_offloads_it_accepted() {
    let frames = [header(0, 0), header(2, 0), header(1, 0), header(1, 1), header(1, 4), header(1, 5), header(1, 3)];
    for (features, delivered, flags) in [
        (V1, 2, 0),
        (V1 | GUEST_CSUM, 3, 2),
        (V1 | GUEST_CSUM | GUEST_TSO4, 4, 2),
        // §5.1.3.1: TSO4 alone means nothing.
        (V1 | GUEST_TSO4, 2, 0),
    ] {
        let mut rig = rig(features);
        let posted = rig.post_rx(&[200; 8]);
        for header in frames {
            rig.link.arrive(header, &frame(60));
        }
        rig.step();
        let received = rig.received(&posted);
        assert_eq!(received.len(), delivered, "{features:#x}");
        assert_eq!(received[1][0], flags, "{features:#x}: DATA_VALID is for drivers that accepted checksums");
        assert_eq!(rig.rx_counters.dropped.get(), (frames.len() - delivered) as u64);
        let offloads = rig.link.offloads();
        assert_eq!(offloads.csum, features & GUEST_CSUM != 0);
        assert_eq!(offloads.tso4, features & GUEST_CSUM != 0 && features & GUEST_TSO4 != 0);
    }
}

#[test]
fn a_pause_gives_back_every_buffer_and_frame_it_holds() {
    let mut rig = rig(V1 | MRG);
    let posted = rig.post_rx(&[1000; 8]);
    rig.link.set_full(true);
    rig.tx.post(&[Buf::Read(header(0, 0).into()), Buf::Read(frame(60))]);
    rig.tx.publish();
    rig.step();
    let states = rig.pause();
    assert_eq!(rig.step(), Step::default());
    assert_eq!(states.map(|queue| queue.next_avail), [0; 3], "held chains were put back");
    rig.link.set_full(false);
    rig.start(states);
    rig.link.arrive(header(0, 0), &frame(2500));
    rig.step();
    assert_eq!(rig.received(&posted).concat()[12..], frame(2500));
    assert_eq!(rig.link.take_sent().len(), 1);
}

#[test]
fn after_a_reset_nothing_of_the_old_driver_is_left() {
    let mut rig = rig(V1 | MRG);
    rig.post_rx(&[500; 4]);
    rig.link.arrive(header(0, 0), &frame(1000));
    rig.link.arrive(header(0, 0), &frame(1200));
    rig.step();
    rig.restart();
    let posted = rig.post_rx(&[200; 4]);
    rig.link.arrive(header(0, 0), &frame(77));
    rig.step();
    assert_eq!(rig.received(&posted).concat()[12..], frame(77));
}

#[test]
fn a_broken_ring_needs_a_reset_and_the_card_works_after_it() {
    let mut rig = rig(V1 | MRG);
    rig.post_rx(&[500; 4]);
    rig.step();
    rig.rx.set_avail_index(1000);
    rig.link.arrive(header(0, 0), &frame(60));
    rig.step();
    assert_eq!(rig.interrupt.take_needs_reset()[0].queue, RX_QUEUE);
    rig.restart();
    let posted = rig.post_rx(&[500; 4]);
    rig.link.arrive(header(0, 0), &frame(61));
    rig.step();
    assert_eq!(rig.received(&posted).len(), 1);
}

#[test]
fn queues_may_have_workers_of_their_own() {
    let mem = guest_ram(0x40_0000);
    let device = NetDevice::new(config());
    let link = MemoryLink::default();
    let mut rx: Box<dyn VirtioWorker<GuestRam>> =
        Box::new(device.rx_worker(link.clone(), Arc::default(), Arc::default()));
    let mut tx: Box<dyn VirtioWorker<GuestRam>> = Box::new(device.tx_worker(link.clone(), Arc::default()));
    assert_eq!((rx.queues(), tx.queues()), ([RX_QUEUE, CONTROL_QUEUE].as_slice(), [TX_QUEUE].as_slice()));
    let activation = RecordingInterrupt::new().activation(V1);
    let mut rx_driver = DriverQueue::new(&mem, 0x10_0000, SIZE, V1);
    let mut tx_driver = DriverQueue::new(&mem, 0x20_0000, SIZE, V1);
    rx.start(&mem, RX_QUEUE, rx_driver.state(), &activation);
    tx.start(&mem, TX_QUEUE, tx_driver.state(), &activation);
    tx_driver.post(&[Buf::Read(header(0, 0).into()), Buf::Read(frame(60))]);
    tx_driver.publish();
    tx.step(&mem);
    assert_eq!(link.take_sent().len(), 1);
    rx_driver.post(&[Buf::Write(200)]);
    rx_driver.publish();
    link.arrive(header(0, 0), &frame(60));
    rx.step(&mem);
    assert_eq!(rx_driver.used().len(), 1);
    assert_eq!(rx.take_state(TX_QUEUE), None);
}

#[test]
fn configuration_space_shows_the_card() {
    let device = NetDevice::new(NetConfig { mac: [2, 3, 4, 5, 6, 7], mtu: Some(9000), ..config() });
    let read = || {
        let mut space = [0xff; 14];
        device.read_config(0, &mut space);
        space
    };
    assert_eq!(read(), [2, 3, 4, 5, 6, 7, 1, 0, 1, 0, 0x28, 0x23, 0, 0]);
    let generation = device.config_generation();
    assert!(device.set_link(false) && !device.set_link(false));
    assert_ne!(device.config_generation(), generation);
    device.write_config(0, &[0xff; 12]);
    assert_eq!(read()[..8], [2, 3, 4, 5, 6, 7, 0, 0]);
    assert_ne!(device.features() & 1 << 3, 0);
    assert_eq!(NetDevice::new(config()).features() & 1 << 3, 0, "no MTU, no feature");
}

/// Virtio 1.3 §5.1.6.5.6.2. There is no other queue.
#[test]
fn frames_that_come_while_their_queue_is_being_reset_are_lost_and_counted() {
    let mut rig = rig(1 << 32);
    rig.post_rx(&[2048]);
    rig.step();
    assert!(rig.worker.reset_queue(&rig.mem, RX_QUEUE));
    for _ in 0..3 {
        rig.link.arrive(header(0, 0), &frame(60));
    }
    rig.step();
    rig.rx = DriverQueue::new(&rig.mem, 0x10_0000, SIZE, 1 << 32);
    let posted = rig.post_rx(&[2048; 4]);
    let activation = rig.interrupt.activation(1 << 32);
    rig.worker.start(&rig.mem, RX_QUEUE, rig.rx.state(), &activation);
    rig.link.arrive(header(0, 0), &frame(70));
    rig.step();
    let received = rig.received(&posted);
    assert_eq!((received.len(), received[0].len(), rig.rx_counters.dropped.get()), (1, 12 + 70, 3));
    // A pause is no reset: what comes meanwhile waits.
    let states = rig.pause();
    rig.link.arrive(header(0, 0), &frame(80));
    rig.start(states);
    rig.step();
    assert_eq!((rig.received(&posted).len(), rig.rx_counters.dropped.get()), (1, 3));
}

#[test]
fn a_queue_reset_leaves_the_other_queue_running() {
    let mut rig = rig(1 << 32);
    rig.rx.post(&[Buf::Write(2048)]);
    rig.rx.publish();
    rig.worker.step(&rig.mem);
    assert!(rig.worker.reset_queue(&rig.mem, RX_QUEUE));
    rig.link.arrive(header(0, 0), &frame(60));
    rig.tx.post(&[Buf::Read(header(0, 0).to_vec()), Buf::Read(frame(60))]);
    rig.tx.publish();
    rig.worker.step(&rig.mem);
    assert_eq!((rig.rx.used().len(), rig.tx.used().len(), rig.link.waiting()), (0, 1, 1));
    rig.rx = DriverQueue::new(&rig.mem, 0x10_0000, SIZE, 1 << 32);
    rig.rx.post(&[Buf::Write(2048)]);
    rig.rx.publish();
    let activation = rig.interrupt.activation(1 << 32);
    rig.worker.start(&rig.mem, RX_QUEUE, rig.rx.state(), &activation);
    rig.link.arrive(header(0, 0), &frame(60));
    rig.worker.step(&rig.mem);
    assert_eq!((rig.rx.used().len(), rig.link.waiting()), (1, 0));
    assert!(rig.worker.reset_queue(&rig.mem, TX_QUEUE));
    rig.tx.post(&[Buf::Read(header(0, 0).to_vec()), Buf::Read(frame(60))]);
    rig.tx.publish();
    rig.worker.step(&rig.mem);
    assert!(rig.tx.used().is_empty());
}
