//! Queue workers without threads: woken as threads would be, and run when the machine says so.
//!
//! It follows the thread loop of the product (`vmm/src/worker.rs`): start, reset and pause are messages that wait until
//! the worker looks; a worker that nothing has woken does not run, so a lost notification is a queue that stands still.

use std::sync::Arc;

use devices::legacy::clock::{Clock as _, ManualClock};
use devices::park::Parked;
use devices::virtio::queue::{F_IN_ORDER, F_RING_PACKED};
use devices::virtio::{
    Activation, F_RING_RESET, NeedsReset, QueueRunner, QueueState, Step, VirtioInterrupt, VirtioWorker,
    WorkerActivation, WorkerState,
};
use devices::wake::WakeCounter;

use super::disk::Disk;
use super::ends::End;
use super::ram::Ram;
use crate::finding;
use crate::lone::Lone;
use crate::oracle::transport::Told;
use crate::oracle::{Device, Oracles, net, resources};

/// Ring features the workers carry.
pub const ALL_RINGS: u64 = F_RING_PACKED | F_IN_ORDER | F_RING_RESET;
/// Steps after which a worker that asks for another one is held to spin.
const MAX_STEPS: usize = 2000;

/// The workers of one device.
pub struct Runner {
    ram: Ram,
    oracles: Arc<Lone<Oracles>>,
    end: End,
    disk: Disk,
    clock: Arc<ManualClock>,
    features: u64,
    max_sizes: Vec<u16>,
    state: Lone<State>,
    told: Arc<Lone<Vec<Told>>>,
    /// Wakes of workers by others, each with a queue of the one that is woken.
    wakes: Vec<(u16, Arc<WakeCounter>)>,
}

#[derive(Default)]
struct State {
    slots: Vec<Slot>,
    started: bool,
    /// Kicks since the last look, for the trace.
    kicks: Vec<u16>,
}

struct Slot {
    worker: Box<dyn VirtioWorker<Ram>>,
    queues: Vec<u16>,
    mail: Vec<Message>,
    awake: bool,
    last: Step,
    mode: Mode,
    queue_resets: Vec<(u16, Parked)>,
    /// A pause waits for the resets of single queues.
    pause: bool,
}

enum Message {
    Start(Vec<(u16, QueueState)>, WorkerActivation),
    StartQueue(u16, QueueState),
    ResetQueue(u16, Parked),
    Reset(Parked),
    Pause,
}

enum Mode {
    Stopped,
    Running(WorkerActivation),
    Resetting(Vec<Parked>),
    Pausing(WorkerActivation),
    Paused(Vec<(u16, QueueState)>, WorkerActivation),
}

impl Runner {
    /// Workers over `ram`, offering `features` for their rings.
    #[must_use]
    pub fn new(
        ram: &Ram,
        oracles: &Arc<Lone<Oracles>>,
        (end, disk, clock): (&End, &Disk, &Arc<ManualClock>),
        features: u64,
        max_sizes: &[u16],
        workers: Vec<Box<dyn VirtioWorker<Ram>>>,
    ) -> Self {
        let slot = |worker: Box<dyn VirtioWorker<Ram>>| Slot {
            queues: worker.queues().to_vec(),
            worker,
            mail: Vec::new(),
            awake: false,
            last: Step::default(),
            mode: Mode::Stopped,
            queue_resets: Vec::new(),
            pause: false,
        };
        let state = State { slots: workers.into_iter().map(slot).collect(), ..State::default() };
        Self {
            ram: ram.clone(),
            oracles: oracles.clone(),
            end: end.clone(),
            disk: disk.clone(),
            clock: clock.clone(),
            features,
            max_sizes: max_sizes.to_vec(),
            state: Lone::new(state),
            told: Arc::default(),
            wakes: Vec::new(),
        }
    }

    /// The workers, which wake each other by `wakes`, each with a queue of the one that is woken.
    #[must_use]
    pub fn woken_by(self, wakes: Vec<(u16, Arc<WakeCounter>)>) -> Self {
        Self { wakes, ..self }
    }

    /// What the workers told the transport since the last call.
    #[must_use]
    pub fn take_told(&self) -> Vec<Told> {
        let told = &mut *self.told.open();
        if told.is_empty() { Vec::new() } else { std::mem::take(told) }
    }

    /// Queues kicked since the last call, sorted.
    #[must_use]
    pub fn take_kicks(&self) -> Vec<u16> {
        let mut state = self.state.open();
        let mut kicks = std::mem::take(&mut state.kicks);
        kicks.sort_unstable();
        kicks.dedup();
        kicks
    }

    /// The back end of `queue` has something to say.
    pub fn wake(&self, queue: u16) {
        for slot in self.state.open().slots.iter_mut().filter(|slot| slot.queues.contains(&queue)) {
            slot.awake = true;
        }
    }

    /// Lets every worker that is awake run until it sleeps; or at most `budget` steps in all.
    pub fn run(&self, budget: usize) {
        let mut state = self.state.open();
        let mut left = budget;
        for slot in &mut state.slots {
            self.run_slot(slot, &mut left);
        }
    }

    fn run_slot(&self, slot: &mut Slot, left: &mut usize) {
        let mut steps = 0;
        let before = resources::allocations();
        let mut starts = false;
        loop {
            let pair = slot.queues.first().map_or(0, |queue| usize::from(*queue / 2));
            let readable = || self.end.readable(pair);
            let ready = slot.last.want_readable && readable() || slot.last.want_writable && self.end.writable();
            let told = |(queue, wake): &(u16, Arc<WakeCounter>)| slot.queues.contains(queue) && wake.take() > 0;
            slot.awake |= self.wakes.iter().any(told);
            let ready = ready || slot.last.wake_at_ns.is_some_and(|at_ns| at_ns <= self.clock.monotonic_ns());
            if !(slot.awake || slot.last.again || ready || !slot.mail.is_empty()) || *left == 0 {
                break;
            }
            *left -= 1;
            steps += 1;
            if steps > MAX_STEPS {
                finding!(
                    "resources",
                    "the worker of queues {:?} takes {steps} steps without coming to rest",
                    slot.queues
                );
            }
            slot.awake = false;
            starts |= !slot.mail.is_empty();
            for message in std::mem::take(&mut slot.mail) {
                self.handle(slot, message);
            }
            self.reset_queues(slot);
            if slot.pause && slot.queue_resets.is_empty() {
                self.begin_pause(slot);
            }
            slot.last = Step::default();
            match slot.mode {
                Mode::Running(_) => {
                    self.oracles.open().fetches.begin();
                    slot.last = slot.worker.step(&self.ram);
                    let oracles = &mut *self.oracles.open();
                    oracles.rings.step_ended(&slot.queues, slot.last.again);
                    oracles.device.step_ended(oracles.rings.blind());
                    oracles.device.published(&slot.queues);
                    self.rests(slot, oracles);
                }
                Mode::Resetting(_) | Mode::Pausing(_) => self.drain(slot),
                Mode::Stopped | Mode::Paused(..) => {}
            }
        }
        let (count, bytes) = resources::allocations();
        if !starts && steps > 0 && count != before.0 {
            let (count, bytes) = (count - before.0, bytes - before.1);
            self.oracles.open().rings.allocated(&slot.queues, count, bytes);
        }
    }

    /// A worker that sleeps has left nothing undone that only a kick would bring it back to.
    fn rests(&self, slot: &Slot, oracles: &mut Oracles) {
        if self.disk.staged() > 0 {
            finding!("wedge", "the worker of queues {:?} never commits what it has asked the disk for", slot.queues);
        }
        if slot.last.again {
            return;
        }
        for &queue in &slot.queues {
            if let (Some(at_ns), Device::Blk(blk)) = (slot.last.wake_at_ns, &oracles.device) {
                match &blk.limit {
                    Some(limit) => limit.waits(queue, at_ns),
                    None => finding!("wedge", "queue {queue} waits until {at_ns} ns though nothing limits it"),
                }
            }
            let end = self.end.inner.open();
            let may_leave = match &oracles.device {
                Device::Any => false,
                Device::Blk(_) => self.disk.is_full() || slot.last.wake_at_ns.is_some(),
                // Frames and typed bytes come first; without them buffers wait.
                Device::Net(net) => match net.role(queue) {
                    net::Role::Receive(pair) => end.frames[pair].is_empty() || end.broken || !net.may_receive(pair),
                    net::Role::Send(_) => slot.last.want_writable,
                    net::Role::Control => false,
                },
                Device::Console(console) if queue == 0 => !console.has_input() && !end.has_typed(),
                Device::Console(_) => slot.last.want_writable,
                // A buffer that was put back is in flight for the model until it is taken again.
                Device::Rng(_) => end.broken || !oracles.rings.flying(queue).is_empty(),
            };
            drop(end);
            oracles.rings.rests(&self.ram, queue, may_leave);
        }
    }

    fn handle(&self, slot: &mut Slot, message: Message) {
        match message {
            Message::Start(queues, activation) => self.start_slot(slot, &queues, activation),
            Message::StartQueue(queue, state) => {
                if let Mode::Running(activation) = &slot.mode {
                    self.start_one(&mut *slot.worker, queue, state, activation);
                }
            }
            Message::ResetQueue(queue, done) => {
                if matches!(slot.mode, Mode::Running(_)) {
                    self.oracles.open().rings.stopping(queue, true);
                    slot.queue_resets.push((queue, done));
                } else {
                    done.complete();
                }
            }
            Message::Reset(done) => match &mut slot.mode {
                Mode::Stopped => done.complete(),
                Mode::Paused(..) => {
                    for &queue in &slot.queues {
                        slot.worker.forget(queue);
                        self.oracles.open().rings.forgotten(queue);
                    }
                    self.forget_driver(slot);
                    slot.mode = Mode::Stopped;
                    done.complete();
                }
                Mode::Resetting(waiting) => waiting.push(done),
                Mode::Running(_) | Mode::Pausing(_) => {
                    for &queue in &slot.queues {
                        self.oracles.open().rings.stopping(queue, true);
                    }
                    slot.worker.begin_stop(&self.ram);
                    slot.mode = Mode::Resetting(vec![done]);
                }
            },
            Message::Pause => slot.pause = true,
        }
    }

    fn begin_pause(&self, slot: &mut Slot) {
        slot.pause = false;
        if let Mode::Running(activation) = &slot.mode {
            let activation = activation.clone();
            for &queue in &slot.queues {
                self.oracles.open().rings.stopping(queue, false);
            }
            slot.worker.begin_stop(&self.ram);
            slot.mode = Mode::Pausing(activation);
        }
    }

    fn start_slot(&self, slot: &mut Slot, queues: &[(u16, QueueState)], activation: WorkerActivation) {
        for (queue, state) in queues {
            self.start_one(&mut *slot.worker, *queue, *state, &activation);
        }
        slot.mode = Mode::Running(activation);
    }

    fn start_one(
        &self,
        worker: &mut dyn VirtioWorker<Ram>,
        queue: u16,
        state: QueueState,
        activation: &WorkerActivation,
    ) {
        let goes_on = {
            let oracles = &mut *self.oracles.open();
            let goes_on = oracles.rings.goes_on(queue, &state);
            if goes_on {
                oracles.device.goes_on(oracles.rings.flying_mut(queue));
            } else {
                let max_size = self.max_sizes.get(usize::from(queue)).copied().unwrap_or(0);
                let serial = oracles.device.is_serial(queue);
                oracles.rings.start(&self.ram, queue, &state, activation.features, (max_size, serial));
            }
            oracles.device.started(queue, activation.features, activation.legacy);
            goes_on
        };
        worker.start(&self.ram, queue, state, activation);
        let oracles = &mut *self.oracles.open();
        if goes_on {
            oracles.device.went_on(queue, oracles.rings.flying_mut(queue));
        } else {
            oracles.rings.started(queue);
        }
        oracles.device.step_ended(oracles.rings.blind());
    }

    fn reset_queues(&self, slot: &mut Slot) {
        let pending = std::mem::take(&mut slot.queue_resets);
        for (queue, done) in pending {
            if !matches!(slot.mode, Mode::Running(_)) {
                done.complete();
            } else if slot.worker.reset_queue(&self.ram, queue) {
                let oracles = &mut *self.oracles.open();
                oracles.device.step_ended(oracles.rings.blind());
                oracles.rings.stopped(queue, None, true, false);
                oracles.device.stopped(queue);
                done.complete();
            } else {
                slot.queue_resets.push((queue, done));
            }
        }
    }

    fn drain(&self, slot: &mut Slot) {
        let abandon = matches!(slot.mode, Mode::Resetting(_));
        let stopped = slot.worker.poll_stopped(&self.ram, abandon);
        if !abandon {
            self.oracles.open().device.published(&slot.queues);
        }
        if !stopped {
            return;
        }
        let mut states = Vec::new();
        for &queue in &slot.queues {
            let state = slot.worker.take_state(queue);
            let oracles = &mut *self.oracles.open();
            oracles.device.step_ended(oracles.rings.blind());
            oracles.rings.stopped(queue, state, abandon, oracles.device.may_hold());
            if abandon {
                oracles.device.stopped(queue);
            }
            states.extend(state.map(|state| (queue, state)));
        }
        match std::mem::replace(&mut slot.mode, Mode::Stopped) {
            Mode::Resetting(waiting) => {
                self.forget_driver(slot);
                waiting.iter().for_each(Parked::complete);
                for (_, done) in slot.queue_resets.drain(..) {
                    done.complete();
                }
            }
            Mode::Pausing(activation) => slot.mode = Mode::Paused(states, activation),
            other => slot.mode = other,
        }
    }

    fn forget_driver(&self, slot: &mut Slot) {
        slot.worker.forget_driver();
        if let (Device::Net(net), true) = (&mut self.oracles.open().device, slot.queues.contains(&0)) {
            net.forget_driver();
        }
    }

    /// Asks all workers to stand still.
    pub fn pause(&self) {
        for slot in &mut self.state.open().slots {
            slot.mail.push(Message::Pause);
        }
    }

    /// The queues' states, once all workers stand still.
    #[must_use]
    pub fn paused(&self) -> Option<Vec<(u16, QueueState)>> {
        let mut found = Vec::new();
        for slot in &self.state.open().slots {
            match &slot.mode {
                Mode::Paused(states, _) => found.extend_from_slice(states),
                Mode::Stopped => {}
                _ => return None,
            }
            if !slot.mail.is_empty() || slot.pause {
                return None;
            }
        }
        Some(found)
    }

    /// When the first worker wakes by itself that a rate limit holds back.
    #[must_use]
    pub fn wakes_at_ns(&self) -> Option<u64> {
        self.state.open().slots.iter().filter_map(|slot| slot.last.wake_at_ns).min()
    }

    /// What the workers hold beside their queues.
    #[must_use]
    pub fn save(&self) -> Vec<WorkerState> {
        self.state.open().slots.iter().map(|slot| slot.worker.save()).collect()
    }

    /// Gives new workers what old ones held.
    pub fn restore(&self, saved: &[WorkerState]) {
        for (slot, state) in self.state.open().slots.iter_mut().zip(saved) {
            if let Err(error) = slot.worker.restore(state) {
                finding!("restore", "a worker refuses what another one saved: {error}");
            }
        }
    }

    /// Undoes [`pause`](Self::pause).
    pub fn resume(&self) {
        let mut state = self.state.open();
        for slot in &mut state.slots {
            match std::mem::replace(&mut slot.mode, Mode::Stopped) {
                Mode::Paused(queues, activation) => {
                    self.start_slot(slot, &queues, activation);
                    slot.awake = true;
                }
                other => slot.mode = other,
            }
        }
    }

    /// Has the workers of a restored device start at once, as [`resume`](Self::resume) does: what a start does by itself is no
    /// difference between the two.
    pub fn start_restored(&self) {
        let mut state = self.state.open();
        for slot in &mut state.slots {
            for message in std::mem::take(&mut slot.mail) {
                self.handle(slot, message);
                slot.awake = true;
            }
        }
    }

    /// Whether the reset of `queue` alone waits.
    #[must_use]
    pub fn resets(&self, queue: u16) -> bool {
        let state = self.state.open();
        state.slots.iter().any(|slot| {
            let mail = |message: &Message| matches!(message, Message::ResetQueue(other, _) if *other == queue);
            slot.queue_resets.iter().any(|(other, _)| *other == queue) || slot.mail.iter().any(mail)
        })
    }

    /// Whether a reset waits for the back end.
    #[must_use]
    pub fn resetting(&self) -> bool {
        let state = self.state.open();
        state.slots.iter().any(|slot| matches!(slot.mode, Mode::Resetting(_)) || !slot.queue_resets.is_empty())
    }
}

impl QueueRunner for Runner {
    fn start(&self, activation: Activation) {
        let mut state = self.state.open();
        if state.started {
            finding!("spec", "the queues are started while they run");
        }
        state.started = true;
        let Activation { features, legacy, queues, interrupt } = activation;
        let interrupt = Arc::new(Tap { inner: interrupt, oracles: self.oracles.clone(), told: self.told.clone() });
        let common = WorkerActivation { features, legacy, interrupt };
        for slot in &mut state.slots {
            let own = queues.iter().filter(|(queue, _)| slot.queues.contains(queue)).copied().collect();
            slot.mail.push(Message::Start(own, common.clone()));
        }
    }

    fn reset(&self, done: Parked) {
        let mut state = self.state.open();
        state.started = false;
        // One token for all workers: it is complete when the last one is.
        let parts: Vec<Parked> = state.slots.iter().map(|_| Parked::new()).collect();
        for (slot, part) in state.slots.iter_mut().zip(&parts) {
            slot.mail.push(Message::Reset(part.clone()));
        }
        drop(state);
        let all = Arc::new(Countdown { left: Lone::new(parts.len()), done });
        for part in parts {
            part.wake_on_complete(all.clone());
        }
    }

    fn kick(&self, queue: u16) {
        let mut state = self.state.open();
        if !state.started {
            finding!("spec", "queue {queue} is kicked while the device does not run");
        }
        state.kicks.push(queue);
        for slot in state.slots.iter_mut().filter(|slot| slot.queues.contains(&queue)) {
            slot.awake = true;
        }
    }

    fn ring_features(&self) -> u64 {
        self.features
    }

    fn reset_queue(&self, queue: u16, done: Parked) {
        let mut state = self.state.open();
        match state.slots.iter_mut().find(|slot| slot.queues.contains(&queue)) {
            Some(slot) => slot.mail.push(Message::ResetQueue(queue, done)),
            None => done.complete(),
        }
    }

    fn start_queue(&self, queue: u16, at: QueueState) {
        for slot in self.state.open().slots.iter_mut().filter(|slot| slot.queues.contains(&queue)) {
            slot.mail.push(Message::StartQueue(queue, at));
        }
    }
}

struct Countdown {
    left: Lone<usize>,
    done: Parked,
}

impl devices::wake::Wake for Countdown {
    fn wake(&self) {
        let mut left = self.left.open();
        *left -= 1;
        if *left == 0 {
            drop(left);
            self.done.complete();
        }
    }
}

/// Listens between workers and transport.
struct Tap {
    inner: Arc<dyn VirtioInterrupt>,
    oracles: Arc<Lone<Oracles>>,
    told: Arc<Lone<Vec<Told>>>,
}

impl VirtioInterrupt for Tap {
    fn queue_used(&self, queue: u16) {
        let quiet = resources::Quiet::begin();
        self.oracles.open().rings.interrupted(queue);
        self.told.open().push(Told::Used(queue));
        drop(quiet);
        self.inner.queue_used(queue);
    }

    fn config_changed(&self) {
        self.inner.config_changed();
    }

    fn needs_reset(&self, why: &NeedsReset) {
        let _quiet = resources::Quiet::begin();
        self.oracles.open().rings.needs_reset(why.queue, &why.reason);
        self.told.open().push(Told::NeedsReset(why.queue));
        self.inner.needs_reset(why);
    }
}
