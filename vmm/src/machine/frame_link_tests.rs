use std::sync::atomic::{AtomicI32, AtomicU64, AtomicUsize, Ordering};

use devices::GuestRam;
use devices::virtio::net::{NetConfig as Card, NetDevice, RX_QUEUE, TX_QUEUE};
use devices::virtio::testing::{Buf, DriverQueue, MemoryLink, RecordingInterrupt, guest_ram};
use devices::virtio::{Activation, QueueRunner};
use devices_host::event::Event;

use super::*;
use crate::hypervisor::frames::LinkFd;

const VERSION_1: u64 = 1 << 32;
const SIZE: u16 = 16;

/// A link that is as the test says.
struct Scripted {
    state: Mutex<LinkState>,
    looks: AtomicUsize,
    deadline_ns: AtomicU64,
    events: AtomicI32,
}

impl FrameLink for Scripted {
    fn mac(&self) -> Option<[u8; 6]> {
        Some([2; 6])
    }

    fn mtu(&self) -> u32 {
        1500
    }

    fn end(self: Arc<Self>) -> FrameEnd {
        FrameEnd { backend: Box::new(MemoryLink::default()), ready: Arc::new(LinkFd::new(-1)) }
    }

    fn events_fd(&self) -> RawFd {
        self.events.load(Ordering::Relaxed)
    }

    fn on_failure(&self, _wake: Arc<dyn Wake>) {}

    fn deadline_ns(&self) -> Option<u64> {
        Some(self.deadline_ns.load(Ordering::Relaxed)).filter(|at_ns| *at_ns != 0)
    }

    fn look(&self, _now_ns: u64) -> LinkState {
        self.looks.fetch_add(1, Ordering::Relaxed);
        *self.state.lock().unwrap()
    }
}

struct Nobody;

impl Wake for Nobody {
    fn wake(&self) {}
}

struct Rig {
    script: Arc<Scripted>,
    link: Arc<GuestLink>,
    device: NetDevice,
    memory: MemoryLink,
    interrupt: Arc<RecordingInterrupt>,
    workers: Arc<DeviceWorkers>,
    tx: DriverQueue,
    _rx: DriverQueue,
    _ram: GuestRam,
}

impl Rig {
    fn new(state: LinkState) -> Self {
        let card = Card { mac: [2; 6], mtu: None, offloads: false, queue_size: SIZE, speed_mbits: None, duplex: None };
        let (device, memory, ram) = (NetDevice::new(card), MemoryLink::default(), guest_ram(0x40_0000));
        let spec = WorkerSpec {
            name: "net0".into(),
            worker: Box::new(device.worker(memory.clone(), Default::default())),
            wake: Arc::new(Event::new().unwrap()),
            backend_fd: None,
            counters: Vec::new(),
            poll_ns: 0,
        };
        let workers = DeviceWorkers::spawn(&ram, Rings::default(), vec![spec]).unwrap();
        let interrupt = RecordingInterrupt::new();
        let (rx, tx) =
            (DriverQueue::new(&ram, 0x10_0000, SIZE, VERSION_1), DriverQueue::new(&ram, 0x20_0000, SIZE, VERSION_1));
        let queues = vec![(RX_QUEUE, rx.state()), (TX_QUEUE, tx.state())];
        workers.start(Activation { features: VERSION_1, legacy: false, queues, interrupt: interrupt.clone() });
        let script = Arc::new(Scripted {
            state: Mutex::new(state),
            looks: AtomicUsize::new(0),
            deadline_ns: AtomicU64::new(0),
            events: AtomicI32::new(-1),
        });
        let link = GuestLink {
            id: "net0".into(),
            name: "lan0".into(),
            link: script.clone(),
            device: device.clone(),
            workers: workers.clone(),
            interrupt: interrupt.clone(),
            seen: Mutex::new(LinkState::Up),
            log: Pace::default(),
        };
        let link = link.listen(&(Arc::new(Nobody) as Arc<dyn Wake>));
        Self { script, link, device, memory, interrupt, workers, tx, _rx: rx, _ram: ram }
    }

    fn say(&self, state: LinkState) {
        *self.script.state.lock().unwrap() = state;
        self.link.ready();
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        self.workers.join();
    }
}

#[test]
fn a_guest_is_told_once_when_its_link_goes_and_once_when_it_is_back() {
    use LinkState::{Down, Gone, Up};
    let rig = Rig::new(Up);
    for (state, up, told) in [
        (Up, true, 0),
        (Down, false, 1),
        (Down, false, 0),
        (Gone, false, 0),
        (Up, true, 1),
        (Gone, false, 1),
        (Up, true, 1),
    ] {
        rig.say(state);
        assert_eq!((rig.device.is_up(), rig.interrupt.take_config_changes()), (up, told), "{state:?}");
    }
}

#[test]
fn a_link_that_is_down_at_the_start_is_down_for_the_guest() {
    let rig = Rig::new(LinkState::Down);
    assert!(!rig.device.is_up() && !rig.device.has_carrier() && rig.device.is_plugged());
}

#[test]
fn the_main_loop_is_not_woken_for_a_link_that_is_there_and_looks_for_one_that_is_not() {
    let rig = Rig::new(LinkState::Up);
    assert_eq!((rig.link.deadline_ns(), rig.link.as_raw_fd()), (None, -1));
    rig.script.deadline_ns.store(5, Ordering::Relaxed);
    rig.script.events.store(7, Ordering::Relaxed);
    assert_eq!((rig.link.deadline_ns(), rig.link.as_raw_fd()), (Some(5), 7));
    let looks = rig.script.looks.load(Ordering::Relaxed);
    rig.link.tick(5);
    assert_eq!(rig.script.looks.load(Ordering::Relaxed), looks + 1);
}

#[test]
fn a_frame_that_waits_for_a_link_comes_back_when_that_is_gone() {
    let mut rig = Rig::new(LinkState::Up);
    rig.memory.set_full(true);
    rig.tx.post(&[Buf::Read(vec![0; 12]), Buf::Read(vec![7; 60])]);
    rig.tx.publish();
    rig.workers.kick(TX_QUEUE);
    std::thread::sleep(std::time::Duration::from_millis(20));
    rig.say(LinkState::Gone);
    let end_ns = clock::monotonic_ns() + 10_000_000_000;
    while rig.tx.used().is_empty() {
        assert!(clock::monotonic_ns() < end_ns, "the buffer does not come back");
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
}
