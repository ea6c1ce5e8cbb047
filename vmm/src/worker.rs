//! Queue workers: thin threads around [`VirtioWorker`] state machines.
//!
//! A device has one or more workers, each with a thread and one wake-up object. The doorbells of its queues (ioeventfd,
//! or the bus write) and the completions of its back end all signal that object; control messages lie in a mailbox. A
//! round is: wait, clear, look into the mailbox, step until there is nothing left to do without waiting. Before it waits, a
//! worker may look for the next request for a few microseconds, as long as that has been worth it.

#[cfg(test)]
mod deadline_tests;
#[cfg(test)]
mod full_tests;
mod life;
#[cfg(test)]
mod linger_tests;
mod patience;
#[cfg(test)]
mod tests;

use std::os::fd::{AsRawFd, RawFd};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use devices::GuestRam;
use devices::park::Parked;
use devices::virtio::counters::QueueCounters;
use devices::virtio::queue::{F_IN_ORDER, F_RING_PACKED};
use devices::virtio::{Activation, F_RING_RESET, QueueRunner, QueueState, Step, VirtioWorker, WorkerActivation};
use devices_host::clock::monotonic_ns;
use devices_host::event::Event;
use devices_host::poll::{PollFd, poll};

use crate::hypervisor::frames::LinkFd;
use crate::sandbox::{self, ThreadKind};

pub use life::Holder;
use life::{Life, Message};
use patience::Patience;

/// A worker with what its thread waits for.
pub struct WorkerSpec {
    /// Thread name, such as `disk0-q0`.
    pub name: String,
    /// The state machine.
    pub worker: Box<dyn VirtioWorker<GuestRam>>,
    /// Signalled by doorbells and by the back end's completions.
    pub wake: Arc<Event>,
    /// A descriptor of the back end to wait for when the step says so (a TAP).
    pub backend_fd: Option<BackendFd>,
    /// Counters of its queues, for the wake-ups that only the thread sees.
    pub counters: Vec<Arc<QueueCounters>>,
    /// How long the thread looks for the next request at most before it sleeps, in nanoseconds.
    pub poll_ns: u64,
}

/// The descriptor of a back end.
#[derive(Clone)]
pub enum BackendFd {
    /// The same one for good.
    Fixed(RawFd),
    /// That of a link which may be opened anew.
    Link(Arc<LinkFd>),
}

/// How long a link that takes no frame, and does not tell when it does, is left alone.
const FULL_LINK_NS: u64 = 500_000;

impl BackendFd {
    fn get(&self) -> RawFd {
        match self {
            Self::Fixed(fd) => *fd,
            Self::Link(link) => link.get(),
        }
    }

    /// Whether its being writable says nothing.
    fn is_full(&self) -> bool {
        matches!(self, Self::Link(link) if link.is_full())
    }
}

/// What a device's rings can do beside what every driver knows. A queue can always be reset on its own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rings {
    /// Offer packed virtqueues (virtio 1.3 §2.8).
    pub packed: bool,
    /// Offer to use buffers in the order they were made available (virtio 1.3 §2.7.9).
    pub in_order: bool,
}

/// All workers of one device: the [`QueueRunner`] of its transport, and the handle by which the machine pauses it.
pub struct DeviceWorkers {
    workers: Vec<Arc<Shared>>,
    rings: Rings,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

struct Shared {
    queues: Vec<u16>,
    wake: Arc<Event>,
    mailbox: Mutex<Vec<Message>>,
    /// Whether the mailbox has something: spares the lock in every round.
    mail: AtomicBool,
}

/// Completes a token when the last of several workers has done its part.
#[derive(Clone)]
struct Countdown(Arc<(AtomicUsize, Parked)>);

impl Countdown {
    fn new(parts: usize, token: Parked) -> Self {
        if parts == 0 {
            token.complete();
        }
        Self(Arc::new((AtomicUsize::new(parts), token)))
    }

    fn part_done(&self) {
        if self.0.0.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.0.1.complete();
        }
    }
}

impl DeviceWorkers {
    /// Starts a thread for every worker: those of a disk's queues, as far as the sandbox goes.
    ///
    /// # Errors
    /// When the system has no thread left.
    pub fn spawn(ram: &GuestRam, rings: Rings, specs: Vec<WorkerSpec>) -> std::io::Result<Arc<Self>> {
        Self::spawn_as(ThreadKind::DiskQueue, ram, rings, specs)
    }

    /// Starts a thread of this kind for every worker.
    ///
    /// # Errors
    /// When the system has no thread left.
    pub fn spawn_as(
        kind: ThreadKind,
        ram: &GuestRam,
        rings: Rings,
        specs: Vec<WorkerSpec>,
    ) -> std::io::Result<Arc<Self>> {
        let mut workers = Vec::new();
        let mut threads = Vec::new();
        for spec in specs {
            let shared = Arc::new(Shared {
                queues: spec.worker.queues().to_vec(),
                wake: spec.wake.clone(),
                mailbox: Mutex::default(),
                mail: AtomicBool::new(false),
            });
            workers.push(shared.clone());
            let ram = ram.clone();
            threads.push(devices_host::thread::spawn(&spec.name, &[], move || {
                sandbox::enter(kind);
                let WorkerSpec { worker, backend_fd, counters, poll_ns, .. } = spec;
                let (life, patience) = (Life::new(worker), Patience::new(poll_ns));
                Loop { shared, life, ram, backend_fd, counters, patience }.run();
            })?);
        }
        Ok(Arc::new(Self { workers, rings, threads: Mutex::new(threads) }))
    }

    /// The wake-up object behind `queue`'s doorbell.
    pub fn wake_of(&self, queue: u16) -> Option<&Arc<Event>> {
        self.worker_of(queue).map(|worker| &worker.wake)
    }

    fn worker_of(&self, queue: u16) -> Option<&Arc<Shared>> {
        self.workers.iter().find(|worker| worker.queues.contains(&queue))
    }

    /// Stops touching guest memory, keeping the queues' states; `done` completes when all workers stand still. A queue
    /// that the driver starts meanwhile waits, too.
    pub fn pause(&self, holder: Holder, done: Parked) {
        let countdown = Countdown::new(self.workers.len(), done);
        for worker in &self.workers {
            worker.post(Message::Pause(holder, countdown.clone()));
        }
    }

    /// Undoes the [`pause`](Self::pause) of this holder: the queues run on when no other one holds them.
    pub fn resume(&self, holder: Holder) {
        for worker in &self.workers {
            worker.post(Message::Resume(holder));
        }
    }

    /// Has every worker look at what there is to do, as a kick of each queue would.
    pub fn wake(&self) {
        self.workers.iter().for_each(|worker| worker.wake.wake());
    }

    /// Has the first worker's thread do something that may block, as its own requests may. Lost where the worker has
    /// ended.
    pub fn run(&self, job: Box<dyn FnOnce() + Send>) {
        if let Some(worker) = self.workers.first() {
            worker.post(Message::Run(job));
        }
    }

    /// Ends and joins the threads. Requests in flight are waited for: a disk write that the guest was told nothing
    /// about may still be running, and its buffer is guest memory.
    pub fn join(&self) {
        for worker in &self.workers {
            worker.post(Message::Exit);
        }
        for thread in self.threads.lock().unwrap_or_else(PoisonError::into_inner).drain(..) {
            if thread.join().is_err() {
                log::error!("a queue worker ended by a panic");
            }
        }
    }
}

impl QueueRunner for DeviceWorkers {
    fn start(&self, activation: Activation) {
        let common = WorkerActivation {
            features: activation.features,
            legacy: activation.legacy,
            interrupt: activation.interrupt.clone(),
        };
        for worker in &self.workers {
            let queues: Vec<_> =
                activation.queues.iter().filter(|(index, _)| worker.queues.contains(index)).copied().collect();
            worker.post(Message::Start(queues, common.clone()));
        }
    }

    fn reset(&self, done: Parked) {
        let countdown = Countdown::new(self.workers.len(), done);
        for worker in &self.workers {
            worker.post(Message::Reset(countdown.clone()));
        }
    }

    fn kick(&self, queue: u16) {
        if let Some(wake) = self.wake_of(queue) {
            wake.wake();
        }
    }

    fn ring_features(&self) -> u64 {
        let offered = |offer: bool, feature: u64| if offer { feature } else { 0 };
        F_RING_RESET | offered(self.rings.packed, F_RING_PACKED) | offered(self.rings.in_order, F_IN_ORDER)
    }

    fn reset_queue(&self, queue: u16, done: Parked) {
        match self.worker_of(queue) {
            Some(worker) => worker.post(Message::ResetQueue(queue, done)),
            None => done.complete(),
        }
    }

    fn start_queue(&self, queue: u16, state: QueueState) {
        if let Some(worker) = self.worker_of(queue) {
            worker.post(Message::StartQueue(queue, state));
        }
    }
}

impl Shared {
    fn post(&self, message: Message) {
        self.mailbox.lock().unwrap_or_else(PoisonError::into_inner).push(message);
        self.mail.store(true, Ordering::Release);
        self.wake.wake();
    }

    fn take_mail(&self) -> Vec<Message> {
        if !self.mail.swap(false, Ordering::Acquire) {
            return Vec::new();
        }
        std::mem::take(&mut *self.mailbox.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// A worker's thread.
struct Loop {
    shared: Arc<Shared>,
    life: Life<GuestRam>,
    ram: GuestRam,
    backend_fd: Option<BackendFd>,
    counters: Vec<Arc<QueueCounters>>,
    patience: Patience,
}

impl Loop {
    fn run(mut self) {
        let mut step = Step::default();
        // Since when there is nothing to do; to be known only where it decides how long to look.
        let mut idle_since_ns = None;
        loop {
            let mut in_vain = false;
            if step.lingers {
                let since_ns = monotonic_ns();
                idle_since_ns = Some(since_ns);
                in_vain = !self.look_for_work(since_ns);
            } else if !step.again {
                let since_ns = idle_since_ns.or_else(|| self.patience.learns().then(monotonic_ns));
                self.wait(step);
                if let Some(since_ns) = since_ns {
                    self.patience.waited(monotonic_ns().saturating_sub(since_ns));
                }
            }
            for message in self.shared.take_mail() {
                self.life.handle(&self.ram, message);
            }
            step = match self.patience.get() {
                Some(_) if !in_vain => self.life.linger(&self.ram),
                _ => self.life.step(&self.ram),
            };
            if !in_vain {
                idle_since_ns = None;
            }
            if self.life.has_ended() {
                return;
            }
        }
    }

    /// Looks for something to do, for as long as that has been worth it lately. Makes no system call.
    fn look_for_work(&mut self, since_ns: u64) -> bool {
        let until_ns = since_ns.saturating_add(self.patience.get().unwrap_or(0));
        loop {
            if self.life.has_work(&self.ram) {
                self.patience.paid_off();
                self.counters.iter().for_each(|counters| counters.polled.count());
                return true;
            }
            if self.shared.mail.load(Ordering::Relaxed) {
                return true;
            }
            if monotonic_ns() >= until_ns {
                return false;
            }
            std::hint::spin_loop();
        }
    }

    fn wait(&self, step: Step) {
        let full = step.want_writable && self.backend_fd.as_ref().is_some_and(BackendFd::is_full);
        let want_writable = step.want_writable && !full;
        let wants_fd = self.backend_fd.is_some() && (step.want_readable || step.want_writable);
        if !wants_fd && step.wake_at_ns.is_none() {
            self.shared.wake.wait();
            return self.counters.iter().for_each(|counters| counters.wakeups.count());
        }
        let mut fds = [
            PollFd::new(self.shared.wake.as_raw_fd()).readable(true),
            PollFd::new(self.backend_fd.as_ref().map_or(-1, BackendFd::get))
                .readable(step.want_readable)
                .writable(want_writable),
        ];
        let until_wake_ns = step.wake_at_ns.map(|at_ns| at_ns.saturating_sub(monotonic_ns()));
        let timeout_ns = until_wake_ns.into_iter().chain(full.then_some(FULL_LINK_NS)).min();
        match poll(&mut fds[..if wants_fd { 2 } else { 1 }], timeout_ns) {
            Ok(_) => {
                if fds[0].is_readable() {
                    self.shared.wake.clear();
                    self.counters.iter().for_each(|counters| counters.wakeups.count());
                }
            }
            Err(error) => log::error!("worker: poll: {error}"),
        }
    }
}
