//! Queue workers: thin threads around [`VirtioWorker`] state machines.
//!
//! A device has one or more workers, each with a thread and one wake-up object. The doorbells of its queues (ioeventfd,
//! or the bus write) and the completions of its back end all signal that object; control messages lie in a mailbox. A
//! round is: wait, clear, look into the mailbox, step until there is nothing left to do without waiting.

use std::os::fd::{AsRawFd, RawFd};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use devices::GuestRam;
use devices::park::Parked;
use devices::virtio::counters::QueueCounters;
use devices::virtio::{Activation, QueueRunner, QueueState, Step, VirtioWorker, WorkerActivation};
use devices_host::event::Event;
use devices_host::poll::{PollFd, poll};

/// A worker with what its thread waits for.
pub struct WorkerSpec {
    /// Thread name, such as `disk0-q0`.
    pub name: String,
    /// The state machine.
    pub worker: Box<dyn VirtioWorker<GuestRam>>,
    /// Signalled by doorbells and by the back end's completions.
    pub wake: Arc<Event>,
    /// A descriptor of the back end to wait for when the step says so (a TAP).
    pub backend_fd: Option<RawFd>,
    /// Counters of its queues, for the wake-ups that only the thread sees.
    pub counters: Vec<Arc<QueueCounters>>,
}

/// All workers of one device: the [`QueueRunner`] of its transport, and the handle by which the machine pauses it.
pub struct DeviceWorkers {
    workers: Vec<Arc<Shared>>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

struct Shared {
    queues: Vec<u16>,
    wake: Arc<Event>,
    mailbox: Mutex<Vec<Message>>,
    /// Whether the mailbox has something: spares the lock in every round.
    mail: AtomicBool,
}

enum Message {
    Start(Vec<(u16, QueueState)>, WorkerActivation),
    Reset(Countdown),
    Pause(Countdown),
    Resume,
    Exit,
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
    /// Starts a thread for every worker.
    ///
    /// # Errors
    /// When the system has no thread left.
    pub fn spawn(ram: &GuestRam, specs: Vec<WorkerSpec>) -> std::io::Result<Arc<Self>> {
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
                let WorkerSpec { worker, backend_fd, counters, .. } = spec;
                Loop { shared, worker, ram, backend_fd, counters, state: State::Stopped }.run();
            })?);
        }
        Ok(Arc::new(Self { workers, threads: Mutex::new(threads) }))
    }

    /// The wake-up object behind `queue`'s doorbell.
    pub fn wake_of(&self, queue: u16) -> Option<&Arc<Event>> {
        self.workers.iter().find(|worker| worker.queues.contains(&queue)).map(|worker| &worker.wake)
    }

    /// Stops touching guest memory, keeping the queues' states; `done` completes when all workers stand still.
    pub fn pause(&self, done: Parked) {
        let countdown = Countdown::new(self.workers.len(), done);
        for worker in &self.workers {
            worker.post(Message::Pause(countdown.clone()));
        }
    }

    /// Undoes [`pause`](Self::pause).
    pub fn resume(&self) {
        for worker in &self.workers {
            worker.post(Message::Resume);
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

/// Where the queues are, from the worker's point of view.
enum State {
    Stopped,
    Running(WorkerActivation),
    /// Draining: what to do when nothing is in flight any more.
    Stopping(AfterStop),
    Paused(Vec<(u16, QueueState)>, WorkerActivation),
}

enum AfterStop {
    Reset(Vec<Countdown>),
    /// `resume`: the pause was undone before it was complete, so the queues start again right after it.
    Pause {
        waiting: Vec<Countdown>,
        activation: WorkerActivation,
        resume: bool,
    },
    Exit,
}

struct Loop {
    shared: Arc<Shared>,
    worker: Box<dyn VirtioWorker<GuestRam>>,
    ram: GuestRam,
    backend_fd: Option<RawFd>,
    counters: Vec<Arc<QueueCounters>>,
    state: State,
}

impl Loop {
    fn run(mut self) {
        let mut step = Step::default();
        loop {
            if !step.again {
                self.wait(step);
            }
            for message in self.shared.take_mail() {
                if self.handle(message) {
                    return;
                }
            }
            step = match self.state {
                State::Running(_) => self.worker.step(&self.ram),
                State::Stopping(_) => {
                    if self.drain() {
                        return;
                    }
                    Step::default()
                }
                State::Stopped | State::Paused(..) => Step::default(),
            };
        }
    }

    fn wait(&self, step: Step) {
        let mut fds = [
            PollFd::new(self.shared.wake.as_raw_fd()).readable(true),
            PollFd::new(self.backend_fd.unwrap_or(-1)).readable(step.want_readable).writable(step.want_writable),
        ];
        let wanted = if self.backend_fd.is_some() && (step.want_readable || step.want_writable) { 2 } else { 1 };
        match poll(&mut fds[..wanted], None) {
            Ok(_) => {
                if fds[0].is_readable() {
                    self.shared.wake.clear();
                    self.counters.iter().for_each(|counters| counters.wakeups.count());
                }
            }
            Err(error) => log::error!("worker: poll: {error}"),
        }
    }

    /// Returns `true` when the thread is to end.
    fn handle(&mut self, message: Message) -> bool {
        match message {
            Message::Start(queues, activation) => self.start(&queues, activation),
            Message::Reset(done) => match &mut self.state {
                State::Stopped => done.part_done(),
                State::Paused(..) => {
                    self.state = State::Stopped;
                    done.part_done();
                }
                State::Running(_) => self.begin_stop(AfterStop::Reset(vec![done])),
                // A reset overtakes a pause: whoever waits for the pause gets a device that stands still as well.
                State::Stopping(AfterStop::Pause { waiting, .. }) => {
                    let mut waiting = std::mem::take(waiting);
                    waiting.push(done);
                    self.state = State::Stopping(AfterStop::Reset(waiting));
                }
                State::Stopping(AfterStop::Reset(waiting)) => waiting.push(done),
                State::Stopping(AfterStop::Exit) => done.part_done(),
            },
            Message::Pause(done) => match &mut self.state {
                State::Running(activation) => {
                    let activation = activation.clone();
                    self.begin_stop(AfterStop::Pause { waiting: vec![done], activation, resume: false });
                }
                State::Stopping(AfterStop::Pause { waiting, resume, .. }) => {
                    *resume = false;
                    waiting.push(done);
                }
                State::Stopping(AfterStop::Reset(waiting)) => waiting.push(done),
                State::Stopped | State::Paused(..) | State::Stopping(AfterStop::Exit) => done.part_done(),
            },
            Message::Resume => match std::mem::replace(&mut self.state, State::Stopped) {
                State::Paused(queues, activation) => self.start(&queues, activation),
                State::Stopping(AfterStop::Pause { waiting, activation, .. }) => {
                    self.state = State::Stopping(AfterStop::Pause { waiting, activation, resume: true });
                }
                other => self.state = other,
            },
            Message::Exit => match self.state {
                State::Running(_) => self.begin_stop(AfterStop::Exit),
                State::Stopping(_) => self.state = State::Stopping(AfterStop::Exit),
                State::Stopped | State::Paused(..) => return true,
            },
        }
        false
    }

    fn start(&mut self, queues: &[(u16, QueueState)], activation: WorkerActivation) {
        for (index, state) in queues {
            self.worker.start(&self.ram, *index, *state, &activation);
        }
        self.state = State::Running(activation);
    }

    fn begin_stop(&mut self, then: AfterStop) {
        self.worker.begin_stop(&self.ram);
        self.state = State::Stopping(then);
    }

    /// Finishes a stop if nothing is in flight; returns `true` when the thread is to end.
    fn drain(&mut self) -> bool {
        let abandon = !matches!(self.state, State::Stopping(AfterStop::Pause { .. }));
        if !self.worker.poll_stopped(&self.ram, abandon) {
            return false;
        }
        let queues: Vec<_> = self
            .shared
            .queues
            .iter()
            .filter_map(|&queue| self.worker.take_state(queue).map(|state| (queue, state)))
            .collect();
        match std::mem::replace(&mut self.state, State::Stopped) {
            State::Stopping(AfterStop::Pause { waiting, activation, resume }) => {
                if resume {
                    self.start(&queues, activation);
                } else {
                    self.state = State::Paused(queues, activation);
                }
                waiting.iter().for_each(Countdown::part_done);
            }
            State::Stopping(AfterStop::Reset(waiting)) => waiting.iter().for_each(Countdown::part_done),
            State::Stopping(AfterStop::Exit) => return true,
            other => self.state = other,
        }
        false
    }
}
