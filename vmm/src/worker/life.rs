//! What a queue worker's thread does with its messages, without the thread: a state machine from start to exit.

use devices::park::Parked;
use devices::virtio::{QueueState, Step, VirtioWorker, WorkerActivation};

use super::Countdown;

/// What the transport and the machine ask of a worker.
pub enum Message {
    /// Run these queues: the device goes live.
    Start(Vec<(u16, QueueState)>, WorkerActivation),
    /// Stop all queues and forget them.
    Reset(Countdown),
    /// Stop one queue and forget it, while the others go on.
    ResetQueue(u16, Parked),
    /// Run one queue that was reset on its own.
    StartQueue(u16, QueueState),
    /// Stand still with the queues' states kept.
    Pause(Holder, Countdown),
    /// Undo a pause.
    Resume(Holder),
    /// Do something else on the worker's thread, whatever the queues do meanwhile: nothing.
    Run(Box<dyn FnOnce() + Send>),
    /// Stop for good.
    Exit,
}

/// Who has the queues stand still. They run when nobody does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Holder {
    /// The whole machine stands still.
    Machine,
    /// The device is changed where its queues must not run: its vCPUs do, so a start has to wait as well.
    Change,
}

/// Who holds the queues now.
#[derive(Default)]
struct Held {
    machine: bool,
    change: bool,
}

impl Held {
    fn set(&mut self, holder: Holder, held: bool) {
        match holder {
            Holder::Machine => self.machine = held,
            Holder::Change => self.change = held,
        }
    }

    fn any(&self) -> bool {
        self.machine || self.change
    }
}

/// A worker and where its queues are.
pub struct Life<M> {
    worker: Box<dyn VirtioWorker<M>>,
    state: State,
    held: Held,
    /// Queues whose own reset waits for the back end to let go of guest memory.
    resetting: Vec<(u16, Parked)>,
}

enum State {
    Stopped,
    Running(WorkerActivation),
    /// Draining: what to do when nothing is in flight any more.
    Stopping(AfterStop),
    Paused(Vec<(u16, QueueState)>, WorkerActivation),
    Ended,
}

enum AfterStop {
    Reset(Vec<Countdown>),
    Pause {
        waiting: Vec<Countdown>,
        activation: WorkerActivation,
        /// Queues the driver enabled while the others drained.
        enabled: Vec<(u16, QueueState)>,
    },
    /// Whoever waits for a reset or pause is told only now, too.
    Exit(Vec<Countdown>),
}

impl<M> Life<M> {
    /// A worker none of whose queues run.
    pub fn new(worker: Box<dyn VirtioWorker<M>>) -> Self {
        Self { worker, state: State::Stopped, held: Held::default(), resetting: Vec::new() }
    }

    /// Whether the worker has stopped for good: nothing of it touches guest memory any more.
    pub fn has_ended(&self) -> bool {
        matches!(self.state, State::Ended)
    }

    /// Takes in a message. What it asks for may need further [`step`](Self::step)s.
    pub fn handle(&mut self, mem: &M, message: Message) {
        match message {
            Message::Start(queues, activation) => self.start(mem, &queues, activation),
            Message::Reset(done) => self.reset(mem, done),
            Message::ResetQueue(queue, done) => self.reset_queue(queue, done),
            Message::StartQueue(queue, at) => self.start_queue(mem, queue, at),
            Message::Pause(holder, done) => {
                self.held.set(holder, true);
                self.pause(mem, done);
            }
            Message::Resume(holder) => {
                self.held.set(holder, false);
                self.resume(mem);
            }
            Message::Run(job) => job(),
            Message::Exit => self.exit(mem),
        }
    }

    /// Does what can be done without waiting; to be called after messages, kicks and whatever the back end says.
    pub fn step(&mut self, mem: &M) -> Step {
        self.step_by(mem, |worker| worker.step(mem))
    }

    /// As [`step`](Self::step), by somebody who looks at [`has_work`](Self::has_work) for a while where the step
    /// [says so](Step::lingers).
    pub fn linger(&mut self, mem: &M) -> Step {
        self.step_by(mem, |worker| worker.linger(mem))
    }

    /// Whether a worker that lingers has something to do.
    pub fn has_work(&self, mem: &M) -> bool {
        self.worker.has_work(mem)
    }

    fn step_by(&mut self, mem: &M, step: impl FnOnce(&mut dyn VirtioWorker<M>) -> Step) -> Step {
        match self.state {
            State::Running(_) => {
                self.poll_resets(mem);
                step(&mut *self.worker)
            }
            State::Stopping(_) => {
                self.drain(mem);
                Step { again: matches!(self.state, State::Running(_)), ..Step::default() }
            }
            State::Stopped | State::Paused(..) | State::Ended => Step::default(),
        }
    }

    fn start(&mut self, mem: &M, queues: &[(u16, QueueState)], activation: WorkerActivation) {
        if self.held.any() {
            self.state = State::Paused(queues.to_vec(), activation);
            return;
        }
        for (index, state) in queues {
            self.worker.start(mem, *index, *state, &activation);
        }
        self.state = State::Running(activation);
    }

    fn start_queue(&mut self, mem: &M, queue: u16, at: QueueState) {
        match &mut self.state {
            State::Running(activation) => self.worker.start(mem, queue, at, activation),
            State::Paused(queues, _) => queues.push((queue, at)),
            State::Stopping(AfterStop::Pause { enabled, .. }) => enabled.push((queue, at)),
            // A reset of the device, or the end, overtook it.
            State::Stopping(AfterStop::Reset(_) | AfterStop::Exit(_)) | State::Stopped | State::Ended => {}
        }
    }

    fn reset(&mut self, mem: &M, done: Countdown) {
        match &mut self.state {
            State::Stopped | State::Ended => done.part_done(),
            State::Paused(..) => {
                for queue in self.worker.queues().to_vec() {
                    self.worker.forget(queue);
                }
                self.worker.forget_driver();
                self.state = State::Stopped;
                done.part_done();
            }
            State::Running(_) => self.begin_stop(mem, AfterStop::Reset(vec![done])),
            // A reset overtakes a pause: whoever waits for the pause gets a device that stands still as well.
            State::Stopping(AfterStop::Pause { waiting, .. }) => {
                let mut waiting = std::mem::take(waiting);
                waiting.push(done);
                self.state = State::Stopping(AfterStop::Reset(waiting));
            }
            State::Stopping(AfterStop::Reset(waiting) | AfterStop::Exit(waiting)) => waiting.push(done),
        }
    }

    fn reset_queue(&mut self, queue: u16, done: Parked) {
        match &mut self.state {
            // The worker gives it up in the next step; while it drains, when everything has stopped.
            State::Running(_) | State::Stopping(_) => self.resetting.push((queue, done)),
            State::Paused(queues, _) => {
                queues.retain(|(paused, _)| *paused != queue);
                self.worker.forget(queue);
                done.complete();
            }
            State::Stopped | State::Ended => done.complete(),
        }
    }

    fn pause(&mut self, mem: &M, done: Countdown) {
        match &mut self.state {
            State::Running(activation) => {
                let activation = activation.clone();
                let (waiting, enabled) = (vec![done], Vec::new());
                self.begin_stop(mem, AfterStop::Pause { waiting, activation, enabled });
            }
            State::Stopping(
                AfterStop::Pause { waiting, .. } | AfterStop::Reset(waiting) | AfterStop::Exit(waiting),
            ) => waiting.push(done),
            State::Stopped | State::Paused(..) | State::Ended => done.part_done(),
        }
    }

    /// A pause that is undone before it is complete comes to its end first.
    fn resume(&mut self, mem: &M) {
        match std::mem::replace(&mut self.state, State::Stopped) {
            State::Paused(queues, activation) => self.start(mem, &queues, activation),
            other => self.state = other,
        }
    }

    fn exit(&mut self, mem: &M) {
        match std::mem::replace(&mut self.state, State::Ended) {
            State::Running(_) => self.begin_stop(mem, AfterStop::Exit(Vec::new())),
            State::Stopping(
                AfterStop::Reset(waiting) | AfterStop::Pause { waiting, .. } | AfterStop::Exit(waiting),
            ) => self.state = State::Stopping(AfterStop::Exit(waiting)),
            State::Stopped | State::Paused(..) | State::Ended => {}
        }
    }

    fn begin_stop(&mut self, mem: &M, then: AfterStop) {
        self.worker.begin_stop(mem);
        self.state = State::Stopping(then);
    }

    fn poll_resets(&mut self, mem: &M) {
        let worker = &mut self.worker;
        self.resetting.retain(|(queue, done)| {
            let stopped = worker.reset_queue(mem, *queue);
            if stopped {
                done.complete();
            }
            !stopped
        });
    }

    /// Finishes a stop if nothing is in flight.
    fn drain(&mut self, mem: &M) {
        let abandon = !matches!(self.state, State::Stopping(AfterStop::Pause { .. }));
        if !self.worker.poll_stopped(mem, abandon) {
            return;
        }
        let resetting = std::mem::take(&mut self.resetting);
        let mut stopped = Vec::new();
        for queue in self.worker.queues().to_vec() {
            let state = self.worker.take_state(queue);
            let kept = resetting.iter().all(|(reset, _)| *reset != queue);
            stopped.extend(state.filter(|_| kept).map(|state| (queue, state)));
        }
        resetting.iter().for_each(|(_, done)| done.complete());
        match std::mem::replace(&mut self.state, State::Stopped) {
            State::Stopping(AfterStop::Pause { waiting, activation, enabled }) => {
                stopped.extend(enabled);
                self.start(mem, &stopped, activation);
                waiting.iter().for_each(Countdown::part_done);
            }
            State::Stopping(AfterStop::Reset(waiting)) => {
                self.worker.forget_driver();
                waiting.iter().for_each(Countdown::part_done);
            }
            State::Stopping(AfterStop::Exit(waiting)) => {
                self.state = State::Ended;
                waiting.iter().for_each(Countdown::part_done);
            }
            other => self.state = other,
        }
    }
}
