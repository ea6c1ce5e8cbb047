//! One ring in the kernel: its state, and the thread that runs it, as the kernel has one.
//!
//! What moves the frames is zvmm's own worker for queues in the process, on the guest's memory as the kernel has it.

use std::os::fd::{AsRawFd, RawFd};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use devices::GuestRam;
use devices::virtio::counters::QueueCounters;
use devices::virtio::net::{NetConfig, NetDevice, NetWorker, RX_QUEUE, TX_QUEUE};
use devices::virtio::{NeedsReset, QueueState, Step, VirtioInterrupt, VirtioWorker, WorkerActivation};
use devices_host::Event;
use devices_host::poll::{PollFd, poll};

use super::lanes::Lanes;
use super::pairs::MOST_RINGS;
use super::wire::WireEnd;
use crate::bhyve::VmHold;

/// The largest ring.
pub const MOST_ENTRIES: u16 = 32768;

/// Where a ring is in its life (reference section 4.4).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Phase {
    /// It has neither place nor thread.
    #[default]
    Reset,
    /// Initialised, and waiting for its first kick.
    Ready,
    /// It moves frames.
    Running,
    /// Stopped with its place kept.
    Paused,
}

/// How rings interrupt the guest, or whoever polls for it.
pub struct Signals {
    hold: VmHold,
    slots: [Mutex<Slot>; MOST_RINGS],
    lanes: Arc<Lanes>,
    /// Readable while an interrupt of a pair in use waits.
    waiting: Event,
    /// How long one may wait.
    patience: Duration,
}

#[derive(Default)]
struct Slot {
    /// Address and data; address 0 is none.
    message: (u64, u64),
    /// Since when an interrupt waits.
    since: Option<Instant>,
}

impl Signals {
    /// # Errors
    /// When the process has no descriptors left.
    pub fn new(hold: VmHold, lanes: Arc<Lanes>, patience: Duration) -> std::io::Result<Arc<Self>> {
        let slots = std::array::from_fn(|_| Mutex::default());
        Ok(Arc::new(Self { hold, slots, lanes, waiting: Event::new()?, patience }))
    }

    /// Rings of the pairs in use.
    pub fn usable(&self) -> usize {
        2 * usize::from(self.lanes.used())
    }

    /// The VM.
    pub fn hold(&self) -> &VmHold {
        &self.hold
    }

    fn slot(&self, ring: usize) -> std::sync::MutexGuard<'_, Slot> {
        self.slots[ring].lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What polls readable while an interrupt waits.
    pub fn descriptor(&self) -> RawFd {
        self.waiting.as_raw_fd()
    }

    /// Sets a ring's message.
    pub fn set_message(&self, ring: usize, address: u64, data: u64) {
        self.slot(ring).message = (address, data);
    }

    /// Whether an interrupt of a ring waits.
    pub fn is_waiting(&self, ring: usize) -> bool {
        self.slot(ring).since.is_some()
    }

    /// Whether one has waited for so long that nobody looks.
    pub fn is_overdue(&self, ring: usize) -> bool {
        self.slot(ring).since.is_some_and(|since| since.elapsed() > self.patience)
    }

    /// Takes a waiting interrupt away.
    pub fn clear(&self, ring: usize) {
        self.slot(ring).since = None;
        self.update();
    }

    /// Says anew whether an interrupt waits.
    pub fn update(&self) {
        self.waiting.clear();
        if (0..self.usable()).any(|ring| self.is_waiting(ring)) {
            self.waiting.wake();
        }
    }

    fn raise(&self, ring: usize) {
        let mut slot = self.slot(ring);
        let (address, data) = slot.message;
        if address != 0 {
            drop(slot);
            self.hold.msi(address, data);
        } else {
            slot.since.get_or_insert_with(Instant::now);
            drop(slot);
            if ring < self.usable() {
                self.waiting.wake();
            }
        }
    }
}

/// The guest, for the worker of this ring.
struct Guest(Arc<Signals>, usize);

impl VirtioInterrupt for Guest {
    fn queue_used(&self, _queue: u16) {
        self.0.raise(self.1);
    }

    fn config_changed(&self) {}

    // The kernel gives such a ring up without a word.
    fn needs_reset(&self, _why: &NeedsReset) {}
}

enum Order {
    Start,
    Pause(Sender<QueueState>),
    End,
}

/// One ring.
#[derive(Default)]
pub struct Ring {
    pub phase: Phase,
    /// Where it was initialised to lie.
    pub place: QueueState,
    /// Where it stood when it was paused last.
    pub left_at: Option<QueueState>,
    /// Kicks of a running ring that did not come by the hook.
    pub kicks: usize,
    thread: Option<Thread>,
}

struct Thread {
    orders: Sender<Order>,
    wake: Arc<Event>,
    handle: JoinHandle<()>,
}

/// What a ring's thread is made of.
pub struct Making {
    pub index: u16,
    pub place: QueueState,
    pub features: u64,
    pub legacy: bool,
    pub mac: [u8; 6],
    pub mtu: u16,
    pub wire: WireEnd,
    pub ram: GuestRam,
    pub signals: Arc<Signals>,
    pub lanes: Arc<Lanes>,
}

impl Making {
    /// The pair whose frames it receives, where it is a receive ring.
    fn receives(&self) -> Option<u16> {
        self.index.is_multiple_of(2).then_some(self.index / 2)
    }
}

impl Ring {
    /// Initialises it, with a thread that waits for the first kick.
    ///
    /// # Errors
    /// When the machine has no thread or descriptor left.
    pub fn init(&mut self, making: Making) -> std::io::Result<()> {
        let wake = Arc::new(Event::new()?);
        let (orders, taken) = channel();
        let place = making.place;
        making.signals.set_message(making.index.into(), 0, 0);
        if let Some(pair) = making.receives() {
            making.lanes.set_ring(pair, Some(wake.clone()));
        }
        let body = {
            let wake = wake.clone();
            move || run(making, &wake, &taken)
        };
        let handle = devices_host::thread::spawn("viona-ring", &[], body)?;
        (self.phase, self.place, self.kicks) = (Phase::Ready, place, 0);
        self.thread = Some(Thread { orders, wake, handle });
        Ok(())
    }

    fn order(&self, order: Order) {
        if let Some(thread) = &self.thread {
            let _ = thread.orders.send(order);
            thread.wake.wake();
        }
    }

    /// Lets it run.
    pub fn start(&mut self) {
        self.phase = Phase::Running;
        self.order(Order::Start);
    }

    /// Has it look at what the guest has posted.
    pub fn wake(&self) {
        if let Some(thread) = &self.thread {
            thread.wake.wake();
        }
    }

    /// Stops it between two frames; where it stands.
    pub fn pause(&mut self) {
        let (reply, answer) = channel();
        self.order(Order::Pause(reply));
        if let Ok(state) = answer.recv() {
            self.left_at = Some(state);
        }
        self.phase = Phase::Paused;
    }

    /// Takes place and thread away.
    pub fn reset(&mut self) {
        self.order(Order::End);
        if let Some(thread) = self.thread.take() {
            let _ = thread.handle.join();
        }
        self.phase = Phase::Reset;
    }
}

fn run(making: Making, wake: &Event, orders: &Receiver<Order>) {
    let receives = making.receives();
    let Making { index: ring, place, features, legacy, mac, mtu, wire, ram, signals, lanes } = making;
    let fd = wire.raw();
    let device = NetDevice::new(NetConfig {
        mac,
        mtu: Some(mtu),
        offloads: true,
        queue_size: MOST_ENTRIES,
        speed_mbits: None,
        duplex: None,
    });
    let counters = Arc::new(QueueCounters::default());
    // Each one is of a card of its own: frames find their ring here.
    let (index, mut worker): (u16, NetWorker<WireEnd>) = match receives {
        Some(_) => (RX_QUEUE, device.rx_worker(wire, counters.clone(), counters)),
        None => (TX_QUEUE, device.tx_worker(wire, counters)),
    };
    let activation = WorkerActivation { features, legacy, interrupt: Arc::new(Guest(signals, ring.into())) };
    let mut place = place;
    let mut runs = false;
    let mut step = Step::default();
    loop {
        if !step.again {
            wait(wake, fd, step);
        }
        while let Ok(order) = orders.try_recv() {
            match order {
                Order::Start => {
                    worker.start(&ram, index, place, &activation);
                    runs = true;
                }
                Order::Pause(reply) => {
                    if std::mem::take(&mut runs) {
                        worker.begin_stop(&ram);
                        while !worker.poll_stopped(&ram, false) {}
                        place = VirtioWorker::<GuestRam>::take_state(&mut worker, index).unwrap_or(place);
                    }
                    let _ = reply.send(place);
                }
                Order::End => {
                    worker.begin_stop(&ram);
                    while !worker.poll_stopped(&ram, true) {}
                    return;
                }
            }
        }
        let is_used = receives.is_none_or(|pair| pair < lanes.used());
        step = if runs && is_used { worker.step(&ram) } else { Step::default() };
    }
}

fn wait(wake: &Event, fd: RawFd, step: Step) {
    let mut fds = [
        PollFd::new(wake.as_raw_fd()).readable(true),
        PollFd::new(fd).readable(step.want_readable).writable(step.want_writable),
    ];
    let wanted = if step.want_readable || step.want_writable { 2 } else { 1 };
    if poll(&mut fds[..wanted], None).is_ok() && fds[0].is_readable() {
        wake.clear();
    }
}
