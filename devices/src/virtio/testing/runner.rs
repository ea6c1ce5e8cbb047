//! Queue workers without threads.

use std::collections::BTreeSet;
use std::sync::Mutex;

use crate::GuestRam;
use crate::park::Parked;
use crate::virtio::queue::{F_IN_ORDER, F_RING_PACKED};
use crate::virtio::{Activation, F_RING_RESET, QueueRunner, QueueState, VirtioWorker, WorkerActivation};

/// Runs a device's workers in the calling thread, whenever [`step`](Self::step) is called: a kick only makes a note. For
/// tests and the fuzzer, where time passes when they say so.
pub struct InlineRunner {
    mem: GuestRam,
    ring_features: u64,
    state: Mutex<State>,
}

struct State {
    workers: Vec<Box<dyn VirtioWorker<GuestRam>>>,
    activation: Option<WorkerActivation>,
    kicked: BTreeSet<u16>,
    /// Resets of the whole device, and of single queues, that wait for a back end.
    resets: Vec<Parked>,
    queue_resets: Vec<(u16, Parked)>,
    /// Whether the workers have been told of the pending device reset.
    stopping: bool,
    paused: Vec<(u16, QueueState)>,
}

impl InlineRunner {
    /// Every ring feature a worker of this crate carries.
    pub const ALL_RINGS: u64 = F_RING_PACKED | F_IN_ORDER | F_RING_RESET;

    /// Workers over `mem`, offering `ring_features`.
    pub fn new(mem: &GuestRam, ring_features: u64, workers: Vec<Box<dyn VirtioWorker<GuestRam>>>) -> Self {
        let state = State {
            workers,
            activation: None,
            kicked: BTreeSet::new(),
            resets: Vec::new(),
            queue_resets: Vec::new(),
            stopping: false,
            paused: Vec::new(),
        };
        Self { mem: mem.clone(), ring_features, state: Mutex::new(state) }
    }

    /// Lets every worker do what it can: up to `budget` steps each. Says whether all came to rest.
    pub fn step(&self, budget: usize) -> bool {
        let state = &mut *self.state.lock().unwrap();
        state.kicked.clear();
        let mem = &self.mem;
        let mut rested = true;
        if state.activation.is_some() && !state.stopping && state.paused.is_empty() {
            for worker in &mut state.workers {
                rested &= (0..budget).any(|_| !worker.step(mem).again);
            }
            let pending = std::mem::take(&mut state.queue_resets);
            for (queue, done) in pending {
                let worker = state.workers.iter_mut().find(|worker| worker.queues().contains(&queue));
                match worker.is_none_or(|worker| worker.reset_queue(mem, queue)) {
                    true => done.complete(),
                    false => state.queue_resets.push((queue, done)),
                }
            }
        }
        if state.stopping && state.workers.iter_mut().all(|worker| worker.poll_stopped(mem, true)) {
            state.forget();
        }
        rested
    }

    /// Queues kicked since the last step.
    pub fn kicked(&self) -> Vec<u16> {
        self.state.lock().unwrap().kicked.iter().copied().collect()
    }

    /// Stops the queues and gives their states; `None` where a back end does not let go within `budget` polls.
    pub fn pause(&self, budget: usize) -> Option<Vec<(u16, QueueState)>> {
        let state = &mut *self.state.lock().unwrap();
        let mut found = Vec::new();
        for worker in &mut state.workers {
            worker.begin_stop(&self.mem);
            if !(0..budget).any(|_| worker.poll_stopped(&self.mem, false)) {
                return None;
            }
            for queue in worker.queues().to_vec() {
                found.extend(worker.take_state(queue).map(|at| (queue, at)));
            }
        }
        state.paused = found.clone();
        Some(found)
    }

    /// Undoes [`pause`](Self::pause).
    pub fn resume(&self) {
        let state = &mut *self.state.lock().unwrap();
        for (queue, at) in std::mem::take(&mut state.paused) {
            state.start(&self.mem, queue, at);
        }
    }
}

impl State {
    fn start(&mut self, mem: &GuestRam, queue: u16, at: QueueState) {
        let worker = self.workers.iter_mut().find(|worker| worker.queues().contains(&queue));
        if let (Some(worker), Some(activation)) = (worker, &self.activation) {
            worker.start(mem, queue, at, activation);
        }
    }

    /// All queues have stopped for good.
    fn forget(&mut self) {
        for worker in &mut self.workers {
            for queue in worker.queues().to_vec() {
                worker.take_state(queue);
            }
            worker.forget_driver();
        }
        self.activation = None;
        self.stopping = false;
        self.paused.clear();
        self.kicked.clear();
        let queues = self.queue_resets.drain(..).map(|(_, done)| done);
        self.resets.drain(..).chain(queues).for_each(|done| done.complete());
    }
}

impl QueueRunner for InlineRunner {
    fn start(&self, activation: Activation) {
        let state = &mut *self.state.lock().unwrap();
        let Activation { features, legacy, queues, interrupt } = activation;
        assert!(state.activation.is_none(), "started while running");
        state.activation = Some(WorkerActivation { features, legacy, interrupt });
        for (queue, at) in queues {
            state.start(&self.mem, queue, at);
        }
    }

    fn reset(&self, done: Parked) {
        let state = &mut *self.state.lock().unwrap();
        state.resets.push(done);
        if !state.stopping {
            state.stopping = true;
            state.workers.iter_mut().for_each(|worker| worker.begin_stop(&self.mem));
        }
        if state.workers.iter_mut().all(|worker| worker.poll_stopped(&self.mem, true)) {
            state.forget();
        }
    }

    fn kick(&self, queue: u16) {
        self.state.lock().unwrap().kicked.insert(queue);
    }

    fn ring_features(&self) -> u64 {
        self.ring_features
    }

    fn reset_queue(&self, queue: u16, done: Parked) {
        let state = &mut *self.state.lock().unwrap();
        state.paused.retain(|(paused, _)| *paused != queue);
        state.queue_resets.push((queue, done));
    }

    fn start_queue(&self, queue: u16, at: QueueState) {
        self.state.lock().unwrap().start(&self.mem, queue, at);
    }
}
