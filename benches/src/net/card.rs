//! zvmm's own way from a driver's rings to a TAP device and back: queue workers in their threads, real wake-ups.

use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use devices::GuestRam;
use devices::park::Parked;
use devices::virtio::counters::{QueueCounters, QueueCountersSnapshot};
use devices::virtio::net::{
    Header, NetBackend, NetConfig, NetDevice, NetError, Offloads, RX_QUEUE, Received, Sent, TX_QUEUE,
};
use devices::virtio::queue::GuestRange;
use devices::virtio::{Activation, NeedsReset, QueueRunner as _, VirtioInterrupt};
use devices_host::Event;
use devices_host::ram::{RamOptions, allocate};
use devices_host::tap::Tap;
use zvmm::machine::TapLink;
use zvmm::sandbox::ThreadKind;
use zvmm::worker::{BackendFd, DeviceWorkers, Holder, Rings, WorkerSpec};

use super::driver::{Events, FEATURES, Receiver, Sender, memory};
use super::pair::{CARD, PATIENCE};
use super::{HEADER_BYTES, Load, Pair};
use crate::null::Way;
use crate::ring::SIZE;
use crate::threads::{Sleeper, next_number, on_worker_cpu, wait_for_thread};

/// How a card is built.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Shape {
    /// How long the driver's CPU looks for what comes back before it sleeps.
    pub halt_poll: Duration,
    /// Count the bytes that workers copy themselves, which costs them instructions.
    pub counts_copies: bool,
}

/// A running card with its drivers.
pub struct Card {
    workers: Arc<DeviceWorkers>,
    sender: Sender,
    receiver: Receiver,
    tap: OwnedFd,
    counters: [Arc<QueueCounters>; 2],
    copies: Arc<Copies>,
    /// The threads of the receive queue and of the transmit queue.
    pub threads: [i32; 2],
    sleeper: Sleeper,
}

impl Card {
    /// Starts one on the near end of `pair`, and has a frame go each way. The calling thread may run on the driver's CPU only
    /// from now on.
    ///
    /// # Errors
    /// When the device cannot be opened, a thread not started, or what arrives is not what was sent.
    pub fn start(pair: &Pair, load: &Load, shape: Shape) -> io::Result<Self> {
        let mem = allocate(&memory(load), &RamOptions::default()).map_err(io::Error::other)?;
        let tap = Tap::open(CARD).map_err(io::Error::other)?;
        let again = tap.as_fd().try_clone_to_owned()?;
        let device = NetDevice::new(NetConfig {
            mac: [2, 0, 0, 0, 0, 1],
            mtu: None,
            offloads: true,
            queue_size: SIZE,
            speed_mbits: None,
            duplex: None,
        });
        let events = || -> io::Result<Events> {
            Ok(Events { kick: Arc::new(Event::new()?), interrupt: Arc::new(Event::new()?), halt_poll: shape.halt_poll })
        };
        let [receives, sends] = [events()?, events()?];
        let counters = [(); 2].map(|()| Arc::new(QueueCounters::default()));
        let copies = Arc::new(Copies::default());
        let links = (TapLink::new(tap.try_clone()?), TapLink::new(tap));
        let parts =
            Parts { device: &device, kicks: [&receives.kick, &sends.kick], fd: again.as_raw_fd(), counters: &counters };
        let (specs, names) = if shape.counts_copies {
            let counting = |link| Counting { link, copies: copies.clone() };
            parts.specs(counting(links.0), counting(links.1))
        } else {
            parts.specs(links.0, links.1)
        };
        let workers = on_worker_cpu(|| DeviceWorkers::spawn_as(ThreadKind::NetQueue, &mem, Rings::default(), specs))??;
        let threads = [wait_for_thread(&names[0])?, wait_for_thread(&names[1])?];
        let lines = [receives.interrupt.clone(), sends.interrupt.clone()];
        let (sender, receiver) = (Sender::new(mem.clone(), load, sends), Receiver::new(mem, load, receives));
        let sleeper = Sleeper::new()?;
        let mut card = Self { workers, sender, receiver, tap: again, counters, copies, threads, sleeper };
        card.workers.start(Activation {
            features: FEATURES,
            legacy: false,
            queues: vec![(RX_QUEUE, card.receiver.state()), (TX_QUEUE, card.sender.state())],
            interrupt: Arc::new(Lines(lines)),
        });
        card.receiver.fill();
        // Until the workers have begun: before, the device takes large segments apart.
        card.pause();
        card.resume();
        card.check(pair, load)?;
        Ok(card)
    }

    /// Has a frame go each way, and looks at it.
    fn check(&mut self, pair: &Pair, load: &Load) -> io::Result<()> {
        let (out, back) = (load.frame(true), load.frame(false));
        let mut received = vec![0; out.len() + 1];
        let start = Instant::now();
        let len = loop {
            self.sender.send(1, 1);
            // The bridge passes frames on from some time after the device was opened.
            match pair.receive(&mut received, Duration::from_millis(20)) {
                Err(error) if error.kind() == io::ErrorKind::TimedOut && start.elapsed() < PATIENCE => {}
                len => break len?,
            }
        };
        let mangled = |way: &str| Err(io::Error::other(format!("a frame {way} did not arrive as it was sent")));
        if received[..len] != out {
            return mangled("from the card");
        }
        pair.send(&back, 1)?;
        let mut received = self.receiver.receive_whole(back.len())?;
        // num_buffers, which the card fills in.
        received[HEADER_BYTES - 2..HEADER_BYTES].fill(0);
        if received == back { Ok(()) } else { mangled("to the card") }
    }

    /// The transmit queue's driver.
    pub fn sender(&mut self) -> &mut Sender {
        &mut self.sender
    }

    /// The receive queue's driver.
    pub fn receiver(&mut self) -> &mut Receiver {
        &mut self.receiver
    }

    /// Sends so many frames, which the far end takes when all are sent; at most its `QUEUE_FRAMES`.
    ///
    /// # Errors
    /// When they did not arrive.
    pub fn send(&mut self, pair: &Pair, frames: u64) -> io::Result<Duration> {
        let time = self.sender.send(frames, SIZE.into());
        pair.taken(frames, time)
    }

    /// Receives so many frames, which wait in the device before the workers begin.
    ///
    /// # Errors
    /// When they cannot be sent.
    pub fn receive(&mut self, pair: &Pair, frame: &[u8], frames: u64) -> io::Result<Duration> {
        self.pause();
        pair.send(frame, frames)?;
        self.resume();
        Ok(self.receiver.receive(frames))
    }

    /// Has a frame go there and come back so many times: µs each. Who echoes it is another thread.
    pub fn round_trips_us(&mut self, count: u64) -> Vec<f64> {
        let mut times_us = Vec::with_capacity(count as usize);
        for _ in 0..count {
            let start = Instant::now();
            self.sender.post();
            self.receiver.receive(1);
            times_us.push(start.elapsed().as_nanos() as f64 / 1e3);
        }
        times_us
    }

    /// Has the workers stand still.
    pub fn pause(&self) {
        let token = Parked::new();
        self.workers.pause(Holder::Machine, token.clone());
        self.sleeper.wait_for(&token);
    }

    /// Has them go on.
    pub fn resume(&self) {
        self.workers.resume(Holder::Machine);
    }

    /// The device that the card has open.
    ///
    /// # Errors
    /// When the process has no descriptors left.
    pub fn tap(&self) -> io::Result<OwnedFd> {
        self.tap.try_clone()
    }

    /// A queue's counters.
    #[must_use]
    pub fn counters(&self, way: Way) -> QueueCountersSnapshot {
        self.counters[usize::from(way == Way::Tx)].snapshot()
    }

    /// Bytes of frames and headers that the workers have copied themselves so far, where they are counted.
    #[must_use]
    pub fn copied_bytes(&self, way: Way) -> u64 {
        let Copies { received, sent } = &*self.copies;
        match way {
            Way::Rx => received,
            Way::Tx => sent,
        }
        .load(Ordering::Relaxed)
    }
}

impl Drop for Card {
    fn drop(&mut self) {
        self.workers.join();
    }
}

/// What workers are made of.
struct Parts<'a> {
    device: &'a NetDevice,
    kicks: [&'a Arc<Event>; 2],
    fd: i32,
    counters: &'a [Arc<QueueCounters>; 2],
}

impl Parts<'_> {
    /// As the machine has them: one to receive, one to send. With their threads' names.
    fn specs<B: NetBackend<GuestRam> + 'static>(&self, receives: B, sends: B) -> (Vec<WorkerSpec>, [String; 2]) {
        let [rx, tx] = self.counters.clone();
        let number = next_number();
        let names = ["rx", "tx"].map(|way| format!("bench{number}-{way}"));
        let spec = |at: usize, worker| WorkerSpec {
            name: names[at].clone(),
            worker,
            wake: self.kicks[at].clone(),
            backend_fd: Some(BackendFd::Fixed(self.fd)),
            counters: vec![self.counters[at].clone()],
            poll_ns: 0,
        };
        let specs = vec![
            spec(0, Box::new(self.device.rx_worker(receives, rx, Arc::default()))),
            spec(1, Box::new(self.device.tx_worker(sends, tx))),
        ];
        (specs, names)
    }
}

/// Interrupts as KVM takes them: one write to an eventfd each.
struct Lines([Arc<Event>; 2]);

impl VirtioInterrupt for Lines {
    fn queue_used(&self, queue: u16) {
        if let Some(line) = self.0.get(usize::from(queue)) {
            line.wake();
        }
    }

    fn config_changed(&self) {}

    fn needs_reset(&self, why: &NeedsReset) {
        panic!("the device refused its driver: {}", why.reason);
    }
}

/// Bytes that did not go between the kernel and guest memory directly.
#[derive(Default)]
struct Copies {
    received: AtomicU64,
    sent: AtomicU64,
}

/// A link that counts them: what it is given, or asked to fill, outside of guest memory.
struct Counting {
    link: TapLink,
    copies: Arc<Copies>,
}

impl NetBackend<GuestRam> for Counting {
    fn send(&mut self, mem: &GuestRam, header: &Header, frame: &[GuestRange]) -> Result<Sent, NetError> {
        let sent = self.link.send(mem, header, frame);
        if sent == Ok(Sent::Done) {
            self.copies.sent.fetch_add(header.len() as u64, Ordering::Relaxed);
        }
        sent
    }

    fn receive(
        &mut self,
        mem: &GuestRam,
        header: &mut Header,
        into: &[GuestRange],
        spill: &mut [u8],
    ) -> Result<Received, NetError> {
        let received = self.link.receive(mem, header, into, spill);
        if let Ok(Received::Frame { len_bytes }) = received {
            let room: u64 = into.iter().map(|range| u64::from(range.len)).sum();
            let copied = (len_bytes as u64).saturating_sub(room) + header.len() as u64;
            self.copies.received.fetch_add(copied, Ordering::Relaxed);
        }
        received
    }

    fn tells_of_every_frame(&self) -> bool {
        self.link.tells_of_every_frame()
    }

    fn set_offloads(&mut self, offloads: Offloads) -> Result<(), NetError> {
        self.link.set_offloads(offloads)
    }
}
