//! Queue pairs with threads of their own on a TAP device with several queues, under traffic.

use std::os::fd::{AsFd as _, AsRawFd as _, FromRawFd as _, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use std::{io, mem};

use devices::virtio::counters::QueueCounters;
use devices::virtio::net::{NetConfig, NetDevice};
use devices::virtio::testing::{Buf, DriverQueue, RecordingInterrupt, guest_ram};
use devices::virtio::{Activation, QueueRunner as _};
use devices::wake::Wake;
use devices_host::event::Event;

use super::super::adapters::WorkerWake;
use super::*;
use crate::worker::{BackendFd, DeviceWorkers, Rings, WorkerSpec};

const NAME: &str = "mq0";
const SIZE: u16 = 64;
/// `VIRTIO_F_VERSION_1`, `VIRTIO_NET_F_CTRL_VQ` and `VIRTIO_NET_F_MQ`.
const FEATURES: u64 = 1 << 32 | 1 << 17 | 1 << 22;
const CONTROL: u16 = 4;
const FLOWS: u16 = 64;

fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

fn request() -> libc::ifreq {
    // SAFETY: all bits zero is a valid request.
    let mut request: libc::ifreq = unsafe { mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(NAME.bytes()) {
        *to = from as libc::c_char;
    }
    request
}

/// Moves the calling thread into a network of its own, with the device in it.
fn enter() -> io::Result<()> {
    // SAFETY: takes a number; only this thread moves.
    check(unsafe { libc::unshare(libc::CLONE_NEWNET) })?;
    let tun = std::fs::File::options().read(true).write(true).open("/dev/net/tun")?;
    let mut request = request();
    let flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR | libc::IFF_MULTI_QUEUE;
    request.ifr_ifru.ifru_flags = flags as libc::c_short;
    // SAFETY: the requests live through the calls, and the socket is this function's own.
    unsafe {
        check(libc::ioctl(tun.as_raw_fd(), libc::TUNSETIFF, &raw mut request))?;
        check(libc::ioctl(tun.as_raw_fd(), libc::TUNSETPERSIST, 1))?;
        let socket = OwnedFd::from_raw_fd(check(libc::socket(libc::AF_INET, libc::SOCK_DGRAM, 0))?);
        request.ifr_ifru.ifru_flags = libc::IFF_UP as libc::c_short;
        check(libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS as _, &raw mut request)).map(drop)
    }
}

/// A socket that sends frames to the guest.
fn host_side() -> OwnedFd {
    // SAFETY: valid arguments; the address is a whole sockaddr_ll.
    unsafe {
        let socket = OwnedFd::from_raw_fd(
            check(libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_NONBLOCK, 0)).unwrap(),
        );
        let mut address: libc::sockaddr_ll = mem::zeroed();
        address.sll_family = libc::AF_PACKET as u16;
        address.sll_ifindex = libc::if_nametoindex(c"mq0".as_ptr()) as i32;
        let len = size_of_val(&address) as u32;
        check(libc::bind(socket.as_raw_fd(), (&raw const address).cast(), len)).unwrap();
        socket
    }
}

/// A datagram of this flow, as long as any, with bytes that tell whether it is whole.
fn datagram(flow: u16) -> Vec<u8> {
    let mut frame = vec![2, 2, 2, 2, 2, 2, 2, 0, 0, 0, 0, 1, 8, 0, 0x45, 0, 0, 86, 0, 0, 0, 0, 64, 17, 0, 0];
    frame.extend([10, 0, 0, 1, 10, 0, 0, 2]);
    frame.extend((1000 + flow).to_be_bytes());
    frame.extend([0, 9, 0, 66, 0, 0]);
    frame.resize(100, flow as u8);
    frame
}

/// Sends frames of all flows until it is told to stop, as fast as the device takes them.
fn storm(stop: &AtomicBool, socket: &OwnedFd) {
    for flow in (0..FLOWS).cycle() {
        if stop.load(Ordering::Relaxed) {
            return;
        }
        let frame = datagram(flow);
        // SAFETY: the buffer has the length given. What the device does not take is lost, as on any network.
        unsafe { libc::send(socket.as_raw_fd(), frame.as_ptr().cast(), frame.len(), 0) };
        if flow % 8 == 0 {
            std::thread::sleep(Duration::from_micros(50));
        }
    }
}

struct Card {
    /// The queues of the device.
    fds: [i32; 2],
    ram: GuestRam,
    workers: Arc<DeviceWorkers>,
    device: NetDevice,
    queues: Vec<DriverQueue>,
    /// The buffers of each receive queue, by their head.
    posted: [Vec<(u16, devices::virtio::queue::GuestRange)>; 2],
    counters: Vec<Arc<QueueCounters>>,
}

impl Card {
    fn new() -> Self {
        let ram = guest_ram(0x80_0000);
        let taps = Tap::open_queues(NAME, 2).unwrap();
        let fds = [&taps[0], &taps[1]].map(|tap| tap.as_fd().as_raw_fd());
        let wakes: Vec<Arc<Event>> = (0..2).map(|_| Arc::new(Event::new().unwrap())).collect();
        let receivers = wakes.iter().map(|wake| -> Arc<dyn Wake> { Arc::new(WorkerWake(wake.clone())) });
        let config =
            NetConfig { mac: [2; 6], mtu: None, offloads: true, queue_size: SIZE, speed_mbits: None, duplex: None };
        let device = NetDevice::new(config).with_pairs(receivers.collect());
        let counters: Vec<Arc<QueueCounters>> = (0..=CONTROL).map(|_| Arc::default()).collect();
        let mut links = TapLink::of_queues(taps).unwrap();
        let (second, first) = (links.pop().unwrap(), links.pop().unwrap());
        let receivers = [
            device.rx_worker(first, counters[0].clone(), counters[4].clone()),
            device.further_rx_worker(1, second, counters[2].clone()),
        ];
        let specs = receivers.into_iter().zip(wakes).zip(fds).map(|((worker, wake), fd)| WorkerSpec {
            name: "rx".into(),
            worker: Box::new(worker),
            wake,
            backend_fd: Some(BackendFd::Fixed(fd)),
            counters: Vec::new(),
            poll_ns: 0,
        });
        let workers = DeviceWorkers::spawn(&ram, Rings::default(), specs.collect()).unwrap();
        let mut card = Self { fds, ram, workers, device, queues: Vec::new(), posted: Default::default(), counters };
        card.start();
        card
    }

    fn start(&mut self) {
        let queue = |n: u64| DriverQueue::new(&self.ram, (n + 1) << 20, SIZE, FEATURES);
        self.queues = (0..=u64::from(CONTROL)).map(queue).collect();
        self.posted = Default::default();
        let indices = [0, 2, CONTROL];
        for pair in 0..2 {
            (0..SIZE).for_each(|_| self.post(pair));
            self.queues[2 * pair].publish();
        }
        let queues = indices.map(|index| (index, self.queues[usize::from(index)].state())).to_vec();
        let interrupt = RecordingInterrupt::new();
        self.workers.start(Activation { features: FEATURES, legacy: false, queues, interrupt });
    }

    fn post(&mut self, pair: usize) {
        let posted = self.queues[2 * pair].post(&[Buf::Write(256)]);
        self.posted[pair].retain(|(head, _)| *head != posted.head);
        self.posted[pair].push((posted.head, posted.buffers[0]));
    }

    /// Takes what came to a pair and posts its buffers again: how many frames, each of them whole.
    fn take(&mut self, pair: usize) -> usize {
        let used = self.queues[2 * pair].used();
        for used in &used {
            let (_, range) = self.posted[pair].iter().find(|(head, _)| u32::from(*head) == used.head).unwrap();
            let bytes = self.queues[2 * pair].read(*range);
            // The kernel's own chatter is not ours to look into.
            if used.len == 112 && bytes[24..26] == [8, 0] {
                assert_eq!(bytes[12..112], datagram(u16::from(bytes[111])), "pair {pair}");
            }
        }
        used.iter().for_each(|_| self.post(pair));
        self.queues[2 * pair].publish();
        self.workers.kick(2 * pair as u16);
        used.len()
    }

    /// How many frames come to each pair, until `enough` says so.
    fn take_until(&mut self, what: &str, enough: impl Fn([usize; 2]) -> bool) {
        let (mut all, end) = ([0; 2], Instant::now() + Duration::from_secs(20));
        while !enough(all) {
            assert!(Instant::now() < end, "{what}: {all:?}");
            for (pair, count) in all.iter_mut().enumerate() {
                *count += self.take(pair);
            }
            std::thread::sleep(Duration::from_micros(100));
        }
    }

    fn set_pairs(&mut self, pairs: u16) {
        let command = [[4, 0], pairs.to_le_bytes()].concat();
        let posted = self.queues[usize::from(CONTROL)].post(&[Buf::Read(command), Buf::Write(1)]);
        self.queues[usize::from(CONTROL)].publish();
        self.workers.kick(CONTROL);
        let end = Instant::now() + Duration::from_secs(20);
        while self.queues[usize::from(CONTROL)].used().is_empty() {
            assert!(Instant::now() < end, "no answer");
            std::thread::yield_now();
        }
        assert_eq!(self.queues[usize::from(CONTROL)].read(posted.buffers[1]), [0]);
    }

    fn reset(&mut self) {
        let done = devices::park::Parked::new();
        self.workers.reset(done.clone());
        wait(&done);
    }

    /// The driver resets the receive queue of a pair.
    fn reset_queue(&mut self, pair: usize) {
        let done = devices::park::Parked::new();
        self.workers.reset_queue(2 * pair as u16, done.clone());
        wait(&done);
    }

    /// It sets it up again.
    fn start_queue(&mut self, pair: usize) {
        self.queues[2 * pair] = DriverQueue::new(&self.ram, (2 * pair as u64 + 1) << 20, SIZE, FEATURES);
        self.posted[pair].clear();
        (0..SIZE).for_each(|_| self.post(pair));
        self.queues[2 * pair].publish();
        self.workers.start_queue(2 * pair as u16, self.queues[2 * pair].state());
    }

    /// Whether the device takes a frame by the queue of a pair.
    fn sends_by(&self, pair: usize) -> bool {
        let frame = [vec![0; 12], datagram(0)].concat();
        // SAFETY: the buffer has the length given.
        let sent = unsafe { libc::write(self.fds[pair], frame.as_ptr().cast(), frame.len()) };
        usize::try_from(sent) == Ok(frame.len())
    }
}

fn wait(done: &devices::park::Parked) {
    let end = Instant::now() + Duration::from_secs(20);
    while !done.is_complete() {
        assert!(Instant::now() < end, "the reset does not end");
        std::thread::yield_now();
    }
}

/// Runs `check` while frames of all flows come.
fn under_traffic(check: impl FnOnce()) {
    let (stop, socket) = (AtomicBool::new(false), host_side());
    std::thread::scope(|scope| {
        scope.spawn(|| storm(&stop, &socket));
        // However the test ends, the thread does.
        struct Stop<'a>(&'a AtomicBool);
        impl Drop for Stop<'_> {
            fn drop(&mut self) {
                self.0.store(true, Ordering::Relaxed);
            }
        }
        let _stop = Stop(&stop);
        check();
    });
}

#[test]
fn a_queue_that_is_being_reset_has_its_frames_go_to_the_other_and_sends_on() {
    if let Err(error) = enter() {
        println!("SKIP: a network namespace with a TAP device of several queues: {error}");
        return;
    }
    let mut card = Card::new();
    under_traffic(|| {
        card.set_pairs(2);
        card.take_until("both pairs", |all| all.iter().all(|count| *count > 10));
        for round in 0..10 {
            let (pair, other) = (round % 2, 1 - round % 2);
            card.reset_queue(pair);
            card.queues[2 * pair].used();
            assert!(card.sends_by(pair));
            // More than one pair in use has of as many flows: those of both.
            card.take_until("the other pair", |all| all[other] > 200);
            assert_eq!(card.queues[2 * pair].used().len(), 0, "round {round}");
            // Where there is no other, all are lost, and that is no error.
            card.reset_queue(other);
            std::thread::sleep(Duration::from_millis(5));
            if round == 9 {
                // The whole card begins anew with queues that are being reset.
                card.reset();
                card.start();
                card.set_pairs(2);
            } else {
                card.start_queue(other);
                // What the driver asks for meanwhile does not bring the queue back.
                card.set_pairs(1);
                card.set_pairs(2);
                card.start_queue(pair);
            }
            card.take_until("both pairs again", |all| all.iter().all(|count| *count > 10));
        }
    });
    card.workers.join();
    assert_eq!([0, 2, 4].map(|queue: usize| card.counters[queue].errors.get()), [0; 3]);
}

#[test]
fn pairs_change_under_traffic_and_no_frame_comes_to_one_beyond_the_answer() {
    if let Err(error) = enter() {
        println!("SKIP: a network namespace with a TAP device of several queues: {error}");
        return;
    }
    let mut card = Card::new();
    under_traffic(|| {
        card.take_until("the first pair", |[first, _]| first > 100);
        for round in 0..30 {
            card.set_pairs(2);
            card.take_until("both pairs", |all| all.iter().all(|count| *count > 10));
            if round % 10 == 9 {
                card.reset();
                card.start();
                assert_eq!(card.device.pairs_in_use(), 1);
                card.take_until("the first pair after a reset", |[first, _]| first > 100);
                assert_eq!(card.queues[2].used().len(), 0, "a pair nobody asked for since");
                continue;
            }
            card.set_pairs(1);
            // What was there before the answer is; what comes now breaks virtio 1.3 §5.1.6.5.6.2.
            card.take(1);
            card.take_until("the first pair", |[first, _]| first > 50);
            assert_eq!(card.take(1), 0, "round {round}");
        }
    });
    card.workers.join();
    assert!(card.counters[2].bytes_to_guest.get() > 0);
    assert_eq!([0, 2, 4].map(|queue: usize| card.counters[queue].errors.get()), [0; 3]);
}
