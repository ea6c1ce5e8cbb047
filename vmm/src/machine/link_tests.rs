#[allow(dead_code)]
#[path = "../../tests/p0/interface.rs"]
mod interface;
#[allow(dead_code)]
#[path = "../../tests/p0/tap.rs"]
mod tap;

use devices::GuestRam;
use devices::virtio::counters::QueueCounters;
use devices::virtio::net::{NetConfig, RX_QUEUE, TX_QUEUE};
use devices::virtio::testing::{Buf, DriverQueue, MemoryLink, RecordingInterrupt, guest_ram};
use devices::virtio::{Activation, QueueRunner};
use devices_host::event::Event;
use devices_host::poll::{PollFd, poll};

use super::*;
use crate::machine::tap_link::TapLink;
use crate::worker::{BackendFd, Rings, WorkerSpec};

const VERSION_1: u64 = 1 << 32;
const SIZE: u16 = 16;

fn card() -> NetDevice {
    let (speed_mbits, duplex) = (None, None);
    NetDevice::new(NetConfig { mac: [2; 6], mtu: None, offloads: false, queue_size: SIZE, speed_mbits, duplex })
}

/// Waits until something is so, which a worker's thread makes.
fn eventually(what: &str, mut is_so: impl FnMut() -> bool) {
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
            host: None,
        };
        let links = Links::new(vec![link("net0"), link("lan")], None);
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
        Links::new(Vec::new(), None).set(&LinkChange { name: "net0".into(), up: true }),
        Err("Device 'net0' not found".into())
    );
}

/// A running driver on a TAP device in a network of the calling thread, with a worker for each direction.
struct TapRig {
    links: Links,
    interrupt: Arc<RecordingInterrupt>,
    workers: Arc<DeviceWorkers>,
    device: NetDevice,
    counters: [Arc<QueueCounters>; 3],
    tx: DriverQueue,
    rx: DriverQueue,
    _ram: GuestRam,
}

impl TapRig {
    /// `None` with a printed reason where the user may not.
    fn new() -> Option<Self> {
        if let Err(error) = tap::enter() {
            println!("SKIP: a network namespace with a TAP device: {error}");
            return None;
        }
        Some(Self::here())
    }

    fn here() -> Self {
        let (device, ram) = (card(), guest_ram(0x40_0000));
        let tap = Tap::open(tap::NAME).unwrap();
        let (sender, watched) = (tap.try_clone().unwrap(), tap.try_clone().unwrap());
        let counters: [Arc<QueueCounters>; 3] = Default::default();
        let [rx_counters, tx_counters, control_counters] = counters.clone();
        let spec = |name: &str, fd, worker| WorkerSpec {
            name: name.into(),
            worker,
            wake: Arc::new(Event::new().unwrap()),
            backend_fd: Some(BackendFd::Fixed(fd)),
            counters: Vec::new(),
            poll_ns: 0,
        };
        let (rx_fd, tx_fd) = (tap.as_raw_fd(), sender.as_raw_fd());
        let receiver = device.rx_worker(TapLink::new(tap), rx_counters, control_counters);
        let sender = device.tx_worker(TapLink::new(sender), tx_counters);
        let specs = vec![spec("rx", rx_fd, Box::new(receiver)), spec("tx", tx_fd, Box::new(sender))];
        let workers = DeviceWorkers::spawn(&ram, Rings::default(), specs).unwrap();
        let interrupt = RecordingInterrupt::new();
        let mut rx = DriverQueue::new(&ram, 0x10_0000, SIZE, VERSION_1);
        let tx = DriverQueue::new(&ram, 0x20_0000, SIZE, VERSION_1);
        (0..8).for_each(|_| drop(rx.post(&[Buf::Write(2048)])));
        rx.publish();
        let queues = vec![(RX_QUEUE, rx.state()), (TX_QUEUE, tx.state())];
        workers.start(Activation { features: VERSION_1, legacy: false, queues, interrupt: interrupt.clone() });
        let link = NetLink {
            id: "net0".into(),
            device: device.clone(),
            workers: workers.clone(),
            interrupt: interrupt.clone(),
            host: Some(HostSide::new(tap::NAME.into(), watched)),
        };
        let links = Links::new(vec![link], Some(InterfaceEvents::listen().unwrap()));
        Self { links, interrupt, workers, device, counters, tx, rx, _ram: ram }
    }

    /// Turns of the main loop until the guest sees its link so.
    fn seen(&self, up: bool) {
        eventually("the link follows the interface", || {
            let mut fds = [PollFd::new(self.links.as_raw_fd()).readable(true)];
            poll(&mut fds, Some(10_000_000)).unwrap();
            if fds[0].is_readable() {
                self.links.ready();
            }
            self.device.is_up() == up
        });
    }

    /// Sends an ARP request for the host's address.
    fn ask(&mut self) {
        let mut frame = vec![0xff; 6];
        frame.extend([2, 2, 2, 2, 2, 2, 8, 6, 0, 1, 8, 0, 6, 4, 0, 1, 2, 2, 2, 2, 2, 2, 192, 0, 2, 2]);
        frame.extend([0, 0, 0, 0, 0, 0, 192, 0, 2, 1]);
        frame.resize(60, 0);
        self.tx.post(&[Buf::Read(vec![0; 12]), Buf::Read(frame)]);
        self.tx.publish();
        self.workers.kick(TX_QUEUE);
    }

    /// Whether frames go both ways: the host answers.
    fn works(&mut self) {
        self.ask();
        let mut answered = 0;
        eventually("the host answers", || {
            answered += self.rx.used().len();
            answered > 0
        });
        eventually("the buffer comes back", || !self.tx.used().is_empty());
        (0..answered).for_each(|_| drop(self.rx.post(&[Buf::Write(2048)])));
        self.rx.publish();
        self.workers.kick(RX_QUEUE);
    }
}

impl Drop for TapRig {
    fn drop(&mut self) {
        self.workers.join();
    }
}

#[test]
fn an_interface_of_the_host_that_is_set_down_takes_the_guests_link_down_until_it_is_up() {
    let Some(mut rig) = TapRig::new() else { return };
    assert!(rig.device.is_up());
    rig.works();
    for _ in 0..3 {
        interface::set_up(false).unwrap();
        rig.seen(false);
        assert!(rig.interrupt.take_config_changes() == 1 && rig.device.is_plugged());
        let lost = rig.counters[1].link_down.get();
        rig.ask();
        eventually("the buffer comes back", || !rig.tx.used().is_empty());
        assert_eq!(rig.counters[1].link_down.get(), lost + 1);
        interface::set_up(true).unwrap();
        rig.seen(true);
        assert_eq!(rig.interrupt.take_config_changes(), 1);
        rig.works();
    }
    assert_eq!(rig.counters[0].errors.get(), 0);
}

#[test]
fn an_interface_that_is_deleted_leaves_the_link_down_and_the_workers_at_rest() {
    let Some(mut rig) = TapRig::new() else { return };
    rig.works();
    interface::delete().unwrap();
    rig.seen(false);
    // Its descriptor only reports errors from now on: whoever waited for it would never rest.
    let errors = || rig.counters[0].errors.get();
    eventually("the workers rest", || {
        let before = errors();
        std::thread::sleep(std::time::Duration::from_millis(100));
        errors() == before
    });
    assert!(errors() <= 4, "{} attempts", errors());
    for _ in 0..3 {
        rig.ask();
        eventually("the buffer comes back", || !rig.tx.used().is_empty());
    }
    assert_eq!(rig.counters[1].link_down.get(), 3);
    // One of the same name is another one.
    let other = tap::attach(libc::O_CLOEXEC).unwrap();
    interface::set_up(true).unwrap();
    rig.links.ready();
    assert!(!rig.device.is_up() && !rig.device.has_carrier());
    // SAFETY: the descriptor is this test's own.
    unsafe { libc::close(other) };
}

#[test]
fn a_guest_that_starts_on_an_interface_that_is_down_sees_no_link_until_it_is_up() {
    let Some(rig) = TapRig::new() else { return };
    drop(rig);
    interface::set_up(false).unwrap();
    let mut rig = TapRig::here();
    assert!(!rig.device.is_up());
    interface::set_up(true).unwrap();
    rig.seen(true);
    rig.works();
}

#[test]
fn a_cable_and_an_interface_are_both_needed() {
    let Some(rig) = TapRig::new() else { return };
    let set = |up| rig.links.set(&LinkChange { name: "net0".into(), up }).unwrap();
    set(false);
    interface::set_up(false).unwrap();
    eventually("the interface is seen down", || {
        rig.links.ready();
        !rig.device.has_carrier()
    });
    set(true);
    assert!(!rig.device.is_up());
    interface::set_up(true).unwrap();
    rig.seen(true);
    assert_eq!(rig.interrupt.take_config_changes(), 2);
}
