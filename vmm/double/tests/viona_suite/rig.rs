//! A card in the doubled kernel, driven as machine and driver drive it: transport and worker thread are this thread.

use std::os::unix::net::UnixDatagram;
use std::sync::Arc;
use std::time::{Duration, Instant};

use devices::GuestRam;
use devices::interrupt::MsiMessage;
use devices::virtio::net::kernel::{Carried, KernelNet, KernelWorker};
use devices::virtio::net::{NetConfig, NetDevice};
use devices::virtio::pci::{Doorbell, Doorbells, QueueMessages};
use devices::virtio::testing::{Buf, DriverQueue, RecordingInterrupt};
use devices::virtio::{QueueState, VirtioDevice, VirtioWorker};
use devices::wake::{Wake, WakeCounter};
use devices_host::poll::{PollFd, poll};
use devices_host::sys::{Link, Sys};
use zvmm::hypervisor::bhyve::{BhyveConfig, BhyveHypervisor, BhyveVm};
use zvmm::hypervisor::{HypervisorError, LinkOptions, Vm, VmSpec};
use zvmm_double::viona::{Config, LinkState, Viona, Wire};
use zvmm_double::{DoubleSys, Host, Injecting, Injection, Mutating, Mutation, Zone, bhyve};

pub const MAC: [u8; 6] = [2, 8, 0x20, 1, 2, 3];
pub const OTHER: [u8; 6] = [2, 8, 0x20, 9, 9, 9];
pub const VERSION_1: u64 = 1 << 32;
pub const CTRL_VQ: u64 = 1 << 17;
pub const MRG_RXBUF: u64 = 1 << 15;
pub const MQ: u64 = 1 << 22;
pub const CTRL_MAC_ADDR: u64 = 1 << 23;
pub const RX: u16 = 0;
pub const TX: u16 = 1;
pub const CONTROL: u16 = 2;

/// Where the doorbells are, at first.
pub const NOTIFY: u64 = 0xe000_3000;
const SIZE: u16 = 1024;
const HEADER: usize = 12;
const PATIENCE: Duration = Duration::from_secs(10);

/// A process of the doubled system, and the far end of its link.
pub struct Host1 {
    pub process: Arc<DoubleSys>,
    viona: Arc<Viona>,
    pub sys: Arc<dyn Sys>,
    pub far: UnixDatagram,
}

/// A kernel with one link, `net0`, whose calls are damaged so.
pub fn host(config: Config, mutations: Vec<Mutation>) -> Host1 {
    let mut host = failing(config, &[]);
    host.sys = Mutating::new(host.process.clone(), mutations);
    host
}

/// The same, whose calls fail so.
pub fn failing(config: Config, injections: &[&str]) -> Host1 {
    let queues = Viona::with(config);
    let host = Host::new(vec![bhyve::Vmm::new(), queues.clone()]);
    let (near, far) = UnixDatagram::pair().unwrap();
    near.set_nonblocking(true).unwrap();
    far.set_read_timeout(Some(PATIENCE)).unwrap();
    host.add_link("net0", Link { id: 7, mac: MAC, mtu: 9000 });
    queues.connect("net0", Wire::Socket(near.into()));
    let process = DoubleSys::new(&host, Zone::bhyve(1));
    let injections: Vec<Injection> = injections.iter().map(|text| text.parse().unwrap()).collect();
    let sys = Injecting::new(process.clone(), injections);
    Host1 { process, viona: queues, sys, far }
}

impl Host1 {
    /// Names of the rules that were broken.
    pub fn broken(&self) -> Vec<&'static str> {
        self.process.violations().iter().map(|violation| violation.rule.name).collect()
    }

    /// The link's parameters: whether sent frames are copied, and the room before them.
    pub fn params(&self) -> (String, bool, u16) {
        let LinkState { copies, pad, .. } = self.viona.state_of("net0").unwrap();
        ("net0".to_owned(), copies, pad)
    }

    /// The link's own address.
    pub fn address(&self) -> [u8; 6] {
        self.viona.state_of("net0").unwrap().mac
    }

    /// The next process of the same zone.
    pub fn next(&self) -> Self {
        let process = DoubleSys::new(self.process.host(), Zone::bhyve(1));
        let viona = self.viona.clone();
        Self { sys: process.clone(), process, viona, far: self.far.try_clone().unwrap() }
    }

    /// A VM with its RAM.
    pub fn vm(&self) -> (BhyveHypervisor, BhyveVm) {
        let config = BhyveConfig { name: "guest".to_owned(), reservoir: false };
        let hypervisor = BhyveHypervisor::open(self.sys.clone(), config).unwrap();
        let ram = vec![(0, 16 << 20)];
        let vm = hypervisor.create(&VmSpec { name: "guest".to_owned(), ram, ram_options: Default::default() }).unwrap();
        (hypervisor, vm)
    }
}

/// A card of a machine.
pub struct Card {
    pub mem: GuestRam,
    pub device: KernelNet,
    pub carried: Arc<Carried>,
    pub worker: KernelWorker,
    pub interrupt: Arc<RecordingInterrupt>,
    descriptor: i32,
    pub queues: Vec<DriverQueue>,
    features: u64,
    pairs: u16,
}

impl Card {
    /// Attached to the link, with no driver.
    pub fn new(vm: &dyn Vm, sys: &dyn Sys) -> Result<Self, HypervisorError> {
        Self::with_pairs(vm, sys, 1)
    }

    /// The same with so many queue pairs.
    pub fn with_pairs(vm: &dyn Vm, sys: &dyn Sys, pairs: u16) -> Result<Self, HypervisorError> {
        Self::with(vm, sys, &LinkOptions::new(pairs), false)
    }

    /// The same with all options, of which one has it receive every frame.
    pub fn with(vm: &dyn Vm, sys: &dyn Sys, options: &LinkOptions, every: bool) -> Result<Self, HypervisorError> {
        let pairs = options.pairs;
        let link = sys.link("net0").map_err(|errno| HypervisorError::Unavailable(errno.to_string()))?;
        let nic = vm.attach_link("net0", &link, options)?;
        let config = NetConfig {
            mac: link.mac,
            mtu: nic.mtu,
            offloads: true,
            queue_size: SIZE,
            speed_mbits: None,
            duplex: None,
        };
        let wake = Arc::new(WakeCounter::default());
        let receivers = (0..pairs).map(|_| wake.clone() as Arc<dyn Wake>).collect();
        let device = KernelNet::new(NetDevice::new(config).with_pairs(receivers), &*nic.queues).promiscuous(every);
        let carried = Carried::new(nic.queues, device.data_queues(), wake);
        let worker = device.worker(carried.clone(), &[]);
        Ok(Self {
            mem: vm.ram().clone(),
            device,
            carried,
            worker,
            interrupt: RecordingInterrupt::new(),
            descriptor: nic.descriptor,
            queues: Vec::new(),
            features: 0,
            pairs,
        })
    }

    /// The control queue.
    fn control(&self) -> u16 {
        2 * self.pairs
    }

    /// DRIVER_OK of a driver with these of the offered features: every queue starts, and each has a doorbell.
    pub fn drive(&mut self, features: u64) {
        self.features = features;
        let sizes = self.device.queue_max_sizes().to_vec();
        self.queues =
            (1..).zip(sizes).map(|(at, size)| DriverQueue::new(&self.mem, at << 20, size, features)).collect();
        let states: Vec<_> = (0..).zip(self.queues.iter().map(DriverQueue::state)).collect();
        self.start(&states);
        self.ring_at(Some(NOTIFY));
    }

    /// What the worker's thread does when the transport starts queues, or goes on after a pause.
    pub fn start(&mut self, states: &[(u16, QueueState)]) {
        let activation = self.interrupt.activation(self.features);
        let has_control = self.features & CTRL_VQ != 0;
        let rings = if self.features & MQ == 0 { 2 } else { self.control() };
        let control = self.control();
        let has = |queue: u16| queue < rings || queue == control && has_control;
        for (queue, state) in states.iter().filter(|(queue, _)| has(*queue)) {
            self.worker.start(&self.mem, *queue, *state, &activation);
        }
        self.step();
    }

    /// Where BAR and driver put the doorbells now.
    pub fn ring_at(&self, notify: Option<u64>) {
        let legacy = self.features & VERSION_1 == 0;
        for queue in 0..=self.control() {
            let at = notify.map(|notify| match legacy {
                true => Doorbell::Pio { port: 0xc010, datamatch: queue },
                false => Doorbell::Mmio { address: notify + 4 * u64::from(queue), len: 2 },
            });
            Doorbells::place(&*self.carried, queue, at);
        }
    }

    /// What the guest writes to its MSI-X table comes to.
    pub fn interrupt_with(&self, queue: u16, data: Option<u32>) {
        let message = data.map(|data| MsiMessage { address: 0xfee0_0000, data });
        QueueMessages::place(&*self.carried, queue, message);
    }

    /// A round of the worker's thread.
    pub fn step(&mut self) {
        self.worker.step(&self.mem);
    }

    /// Waits for an interrupt that has no message, as the thread does.
    pub fn wait(&mut self, queue: u16) {
        let until = Instant::now() + PATIENCE;
        while !self.interrupt.take_used().contains(&queue) {
            assert!(Instant::now() < until, "no interrupt of queue {queue}");
            poll(&mut [PollFd::new(self.descriptor).readable(true)], Some(10_000_000)).unwrap();
            self.step();
        }
    }

    /// The bus has a write for `queue` that the kernel did not take.
    pub fn kick(&mut self, queue: u16) {
        self.carried.note_kick(queue);
        self.step();
    }

    /// Sends a frame from the guest.
    pub fn send(&mut self, frame: &[u8]) {
        self.send_by(0, frame);
    }

    /// The same by another pair.
    pub fn send_by(&mut self, pair: u16, frame: &[u8]) {
        let header = vec![0; self.header_bytes()];
        let queue = &mut self.queues[usize::from(2 * pair + TX)];
        queue.post(&[Buf::Read([&header, frame].concat())]);
        queue.publish();
        self.kick(2 * pair + TX);
    }

    /// Has the guest offer a buffer to a pair.
    pub fn offer(&mut self, pair: u16) {
        let queue = &mut self.queues[usize::from(2 * pair)];
        queue.post(&[Buf::Write(2048)]);
        queue.publish();
        self.kick(2 * pair);
    }

    /// Waits until so many of the buffers of a pair have a frame; how many have by then.
    pub fn received_by(&mut self, pair: u16, count: usize) -> usize {
        let until = Instant::now() + if count > 0 { PATIENCE } else { Duration::from_millis(30) };
        let mut used = 0;
        while Instant::now() < until && (used < count || count == 0) {
            used += self.queues[usize::from(2 * pair)].used().len();
            std::thread::sleep(Duration::from_millis(1));
        }
        used
    }

    fn header_bytes(&self) -> usize {
        if self.features & (VERSION_1 | MRG_RXBUF) == 0 { 10 } else { HEADER }
    }

    /// Has the guest offer a buffer, and gives what has come in it by then.
    pub fn receive(&mut self, arrives: impl FnOnce()) -> Vec<u8> {
        let posted = self.queues[usize::from(RX)].post(&[Buf::Write(2048)]);
        self.queues[usize::from(RX)].publish();
        self.kick(RX);
        arrives();
        let until = Instant::now() + PATIENCE;
        loop {
            if let [used] = self.queues[usize::from(RX)].used()[..] {
                let bytes = self.queues[usize::from(RX)].read(posted.buffers[0]);
                return bytes[self.header_bytes()..used.len as usize].to_vec();
            }
            assert!(Instant::now() < until, "nothing was received");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// A command on the control queue; its answer.
    pub fn command(&mut self, bytes: &[u8]) -> u8 {
        let control = usize::from(self.control());
        let queue = &mut self.queues[control];
        let posted = queue.post(&[Buf::Read(bytes.to_vec()), Buf::Write(1)]);
        queue.publish();
        self.step();
        let queue = &mut self.queues[control];
        assert_eq!(queue.used().len(), 1);
        queue.read(posted.buffers[1])[0]
    }

    /// The machine stands still: where each queue stands.
    pub fn pause(&mut self) -> Vec<(u16, QueueState)> {
        self.worker.begin_stop(&self.mem);
        assert!(self.worker.poll_stopped(&self.mem, false));
        (0..=self.control())
            .filter_map(|queue| Some((queue, VirtioWorker::<GuestRam>::take_state(&mut self.worker, queue)?)))
            .collect()
    }

    /// Status 0, and the end of the process: doorbells first, as the transport has it.
    pub fn reset(&mut self) {
        self.ring_at(None);
        self.worker.begin_stop(&self.mem);
        assert!(self.worker.poll_stopped(&self.mem, true));
        for queue in 0..=self.control() {
            VirtioWorker::<GuestRam>::take_state(&mut self.worker, queue);
        }
        VirtioWorker::<GuestRam>::forget_driver(&mut self.worker);
    }

    pub fn offered(&self) -> u64 {
        self.device.features()
    }
}

/// A frame to `to` with something in it.
pub fn frame(to: [u8; 6], content: u8) -> Vec<u8> {
    [&to[..], &OTHER, &[0x88, 0xb5], &[content; 60]].concat()
}

/// A frame to the card of a flow that goes to this of two pairs.
pub fn flow(pair: u16, content: u8) -> Vec<u8> {
    let mut frame = frame(MAC, content);
    frame[11] = if (flow_of(&frame) % 2) == pair { frame[11] } else { frame[11] ^ 1 };
    frame
}

fn flow_of(frame: &[u8]) -> u16 {
    frame[..12].iter().map(|byte| u16::from(*byte)).sum()
}

/// A frame as the wire has it.
pub fn on_the_wire(frame: &[u8]) -> Vec<u8> {
    [&[0; HEADER][..], frame].concat()
}

/// The next frame that the guest sent.
pub fn sent(far: &UnixDatagram) -> Vec<u8> {
    let mut bytes = vec![0; 70_000];
    let len = far.recv(&mut bytes).expect("a frame");
    bytes[HEADER..len].to_vec()
}
