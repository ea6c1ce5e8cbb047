//! Once a queue runs, its worker allocates nothing: every request's memory is there from the start or comes back from
//! an earlier one.

use std::collections::VecDeque;
use std::sync::Arc;

use devices::GuestRam;
use devices::legacy::clock::ManualClock;
use devices::virtio::blk::{BlkBackend, BlkConfig, BlkDevice, BlkError, BlkRequest, BlkStats, RequestToken};
use devices::virtio::limit::{Meters, Rate, Throttle};
use devices::virtio::net::responder::{Lease, Responder};
use devices::virtio::net::{
    CONTROL_QUEUE, Header, NetBackend, NetConfig, NetDevice, NetError, Offloads, RX_QUEUE, Received, Sent, TX_QUEUE,
};
use devices::virtio::queue::{F_EVENT_IDX, F_IN_ORDER, F_INDIRECT_DESC, F_RING_PACKED, GuestRange, Queue};
use devices::virtio::testing::{Buf, DriverQueue, RecordingInterrupt, guest_ram};
use devices::virtio::{VirtioDevice, VirtioWorker};
use devices::wake::WakeCounter;

mod counting;

#[global_allocator]
static ALLOCATOR: counting::Counting = counting::Counting;

/// Steps the worker until it rests; the allocations that took.
fn allocations_of(worker: &mut dyn VirtioWorker<GuestRam>, mem: &GuestRam) -> u64 {
    let before = counting::so_far();
    while worker.step(mem).again {}
    counting::so_far() - before
}

#[test]
fn a_queue_of_either_format_allocates_nothing_once_it_runs() {
    for rings in [0, F_IN_ORDER, F_RING_PACKED, F_RING_PACKED | F_IN_ORDER] {
        let mem = guest_ram(0x40_0000);
        let features = rings | F_INDIRECT_DESC | F_EVENT_IDX;
        let mut driver = DriverQueue::new(&mem, 0x10_0000, 256, features);
        let mut queue = Queue::new(&mem, &driver.state(), features, 256).unwrap();
        let mut flying = Vec::with_capacity(64);
        for round in 0..20 {
            for _ in 0..30 {
                driver.post(&[Buf::Read(vec![0; 16]), Buf::Write(512), Buf::Write(1)]);
                driver.post_indirect(&[Buf::Read(vec![0; 16]), Buf::Write(512), Buf::Write(1)]);
            }
            driver.publish();
            let before = counting::so_far();
            while let Some(chain) = queue.pop(&mem).unwrap() {
                flying.push(chain);
            }
            // Out of order, with one taken back and popped again.
            queue.unpop(flying.pop().unwrap());
            flying.extend(queue.pop(&mem).unwrap());
            while let Some(chain) = flying.pop() {
                queue.push(&mem, chain, 513).unwrap();
            }
            queue.publish(&mem).unwrap();
            queue.enable_kicks(&mem).unwrap();
            let allocations = counting::so_far() - before;
            assert_eq!(driver.used().len(), 60);
            assert!(round == 0 || allocations == 0, "{rings:#x}, round {round}: {allocations}");
        }
    }
}

/// A disk that completes everything at once.
struct NullDisk(VecDeque<RequestToken>);

impl<M: ?Sized> BlkBackend<M> for NullDisk {
    fn submit(&mut self, _mem: &M, request: BlkRequest<'_>) -> Result<(), BlkError> {
        self.0.push_back(request.token);
        Ok(())
    }
    fn poll(&mut self, _mem: &M, done: &mut dyn FnMut(RequestToken, Result<(), BlkError>)) {
        self.0.drain(..).for_each(|token| done(token, Ok(())));
    }
    fn cancel_all(&mut self) {}
    fn in_flight(&self) -> usize {
        self.0.len()
    }
}

#[test]
fn a_disk_queue_allocates_nothing_once_it_runs() {
    let mem = guest_ram(0x40_0000);
    let interrupt = RecordingInterrupt::new();
    let features = 1 << 32 | F_INDIRECT_DESC | F_EVENT_IDX;
    let device = BlkDevice::new(BlkConfig { capacity_sectors: 1000, ..Default::default() });
    // Held back by limits that it never reaches, and with all there is to count.
    let rate = Some(Rate { per_second: 1_000_000_000, burst: Some(1_000_000_000) });
    let clock = Arc::new(ManualClock::new(0));
    let mut worker = device
        .worker(0, NullDisk(VecDeque::with_capacity(256)), Default::default())
        .with_throttle(Throttle::new(&[Meters::new(rate, rate), Meters::new(rate, rate)], clock.clone()))
        .with_stats(Arc::new(BlkStats::new(true)), clock);
    let mut driver = DriverQueue::new(&mem, 0x10_0000, 256, features);
    worker.start(&mem, 0, driver.state(), &interrupt.activation(features));
    for round in 0..5 {
        for _ in 0..30 {
            driver.post(&[Buf::Read(vec![0; 16]), Buf::Write(512), Buf::Write(1)]);
            driver.post_indirect(&[Buf::Read(vec![0; 16]), Buf::Write(512), Buf::Write(512), Buf::Write(1)]);
        }
        driver.publish();
        let allocations = allocations_of(&mut worker, &mem);
        assert_eq!(driver.used().len(), 60);
        assert!(round == 0 || allocations == 0, "round {round}: {allocations}");
        interrupt.take_used();
    }
}

/// A link with `frames` waiting.
struct NullLink {
    frames: usize,
}

impl<M: ?Sized> NetBackend<M> for NullLink {
    fn send(&mut self, _mem: &M, _header: &Header, _frame: &[GuestRange]) -> Result<Sent, NetError> {
        Ok(Sent::Done)
    }
    fn receive(
        &mut self,
        _mem: &M,
        _header: &mut Header,
        _into: &[GuestRange],
        _spill: &mut [u8],
    ) -> Result<Received, NetError> {
        match self.frames {
            0 => Ok(Received::WouldBlock),
            _ => {
                self.frames -= 1;
                Ok(Received::Frame { len_bytes: 3000 })
            }
        }
    }
    fn set_offloads(&mut self, _offloads: Offloads) -> Result<(), NetError> {
        Ok(())
    }
}

#[test]
fn network_queues_allocate_nothing_once_they_run() {
    let mem = guest_ram(0x40_0000);
    let interrupt = RecordingInterrupt::new();
    let device = NetDevice::new(NetConfig {
        mac: [2; 6],
        mtu: None,
        offloads: true,
        queue_size: 256,
        speed_mbits: None,
        duplex: None,
    });
    let lease = Lease::new([10, 0, 0, 5].into(), [255, 0, 0, 0].into());
    let device = device.with_responder(Responder::new(&lease).unwrap(), Arc::new(WakeCounter::default()));
    let arp = [&[2; 12][..], &[8, 6, 0, 1, 8, 0, 6, 4, 0, 1], &[2; 16], &[169, 254, 169, 254]].concat();
    let features = device.features() | 1 << 32;
    let mut worker = device.worker(NullLink { frames: 0 }, Default::default());
    let mut rx = DriverQueue::new(&mem, 0x20_0000, 256, features);
    let mut tx = DriverQueue::new(&mem, 0x30_0000, 256, features);
    worker.start(&mem, RX_QUEUE, rx.state(), &interrupt.activation(features));
    worker.start(&mem, TX_QUEUE, tx.state(), &interrupt.activation(features));
    let mut control = DriverQueue::new(&mem, 0x10_0000, 64, features);
    worker.start(&mem, CONTROL_QUEUE, control.state(), &interrupt.activation(features));
    // Promiscuous mode off, frames to everybody wanted: each one is looked at.
    control.post(&[Buf::Read(vec![0, 0, 0]), Buf::Write(1)]);
    control.post(&[Buf::Read(vec![0, 2, 1]), Buf::Write(1)]);
    control.publish();
    for round in 0..5 {
        while rx.free() > 0 {
            rx.post(&[Buf::Write(1536)]);
        }
        rx.publish();
        for _ in 0..60 {
            tx.post(&[Buf::Read(vec![0; 12]), Buf::Read(vec![0; 1500])]);
        }
        tx.post(&[Buf::Read(vec![0; 12]), Buf::Read(arp.clone())]);
        tx.publish();
        // A MAC table, as drivers send with every change of their groups.
        control.post(&[Buf::Read([&[1, 0, 0, 0, 0, 0, 2, 0, 0, 0][..], &[0x33; 12]].concat()), Buf::Write(1)]);
        control.publish();
        worker.backend().frames = 60;
        let allocations = allocations_of(&mut worker, &mem);
        // The answer to the ARP request comes with the next round.
        assert_eq!((rx.used().len(), tx.used().len()), (120 + usize::from(round > 0), 61));
        control.used();
        assert!(round == 0 || allocations == 0, "round {round}: {allocations}");
        interrupt.take_used();
    }
}
