use devices::GuestRam;
use devices::virtio::net::{NetConfig, RX_QUEUE, TX_QUEUE};
use devices::virtio::testing::{Buf, DriverQueue, MemoryLink, RecordingInterrupt, guest_ram};
use devices::virtio::{Activation, QueueRunner};
use devices_host::clock;
use devices_host::event::Event;

use super::*;
use crate::worker::{Rings, WorkerSpec};

const VERSION_1: u64 = 1 << 32;
const SIZE: u16 = 16;

pub(super) fn card() -> NetDevice {
    let (speed_mbits, duplex) = (None, None);
    NetDevice::new(NetConfig { mac: [2; 6], mtu: None, offloads: false, queue_size: SIZE, speed_mbits, duplex })
}

/// Waits until something is so, which a worker's thread makes.
pub(super) fn eventually(what: &str, mut is_so: impl FnMut() -> bool) {
    let end_ns = clock::monotonic_ns() + 10_000_000_000;
    while !is_so() {
        assert!(clock::monotonic_ns() < end_ns, "{what}");
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
}

/// A running guest's driver with one interface, `net0`, of which the link is in memory.
struct Rig {
    links: Links,
    memory: MemoryLink,
    interrupt: Arc<RecordingInterrupt>,
    workers: Arc<DeviceWorkers>,
    device: NetDevice,
    tx: DriverQueue,
    _rx: DriverQueue,
    _ram: GuestRam,
}

impl Rig {
    fn new() -> Self {
        let (device, memory, ram) = (card(), MemoryLink::default(), guest_ram(0x40_0000));
        let worker = device.worker(memory.clone(), Default::default());
        let spec = WorkerSpec {
            name: "net0".into(),
            worker: Box::new(worker),
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
        let link = |id: &str| NetLink {
            id: id.into(),
            device: if id == "net0" { device.clone() } else { card() },
            workers: workers.clone(),
            interrupt: interrupt.clone(),
        };
        let links = Links::new(vec![link("net0"), link("lan")]);
        Self { links, memory, interrupt, workers, device, tx, _rx: rx, _ram: ram }
    }

    fn set(&self, name: &str, up: bool) -> Result<(), String> {
        self.links.set(&LinkChange { name: name.into(), up })
    }

    fn send(&mut self) {
        self.tx.post(&[Buf::Read(vec![0; 12]), Buf::Read(vec![7; 60])]);
        self.tx.publish();
        self.workers.kick(TX_QUEUE);
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        self.workers.join();
    }
}

#[test]
fn a_link_goes_down_and_up_and_its_driver_is_told_once_each_time() {
    let mut rig = Rig::new();
    for (up, told) in [(true, 0), (false, 1), (false, 0), (true, 1), (true, 0)] {
        assert_eq!(rig.set("net0", up), Ok(()));
        assert_eq!((rig.device.is_up(), rig.interrupt.take_config_changes()), (up, told));
    }
    rig.send();
    eventually("the frame is sent", || rig.memory.take_sent().len() == 1);
}

#[test]
fn a_frame_that_waits_for_the_network_comes_back_when_the_link_goes_down() {
    let mut rig = Rig::new();
    rig.memory.set_full(true);
    rig.send();
    // Nobody kicks again: the order alone has the worker look.
    std::thread::sleep(std::time::Duration::from_millis(20));
    rig.set("net0", false).unwrap();
    eventually("the buffer comes back", || rig.tx.used().len() == 1);
    rig.memory.set_full(false);
    rig.set("net0", true).unwrap();
    rig.send();
    eventually("the next frame is sent", || rig.memory.take_sent().len() == 1);
}

#[test]
fn an_interface_that_is_not_there_is_named_in_the_words_of_qemu() {
    let rig = Rig::new();
    for (name, problem) in [
        ("net1", "Device 'net1' not found; did you mean 'net0'?"),
        ("disk0", "Device 'disk0' not found"),
        ("", "Device '' not found"),
    ] {
        assert_eq!(rig.set(name, false), Err(problem.to_owned()));
    }
    assert_eq!(rig.interrupt.take_config_changes(), 0);
    assert_eq!(
        Links::new(Vec::new()).set(&LinkChange { name: "net0".into(), up: true }),
        Err("Device 'net0' not found".into())
    );
}
