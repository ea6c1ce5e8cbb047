//! The life of a worker, message by message, over a worker that does what the test says.

use std::sync::{Arc, Mutex};

use devices::virtio::testing::RecordingInterrupt;
use devices::virtio::{QueueState, Step, VirtioWorker, WorkerActivation};

use super::life::{Holder, Life, Message};
use super::*;

/// What was asked of the worker, and whether its back end still holds guest memory.
#[derive(Default)]
struct Script {
    log: Vec<String>,
    busy: bool,
    running: Vec<u16>,
    /// Drivers whose settings are over, each with its queues at a standstill.
    forgotten: u32,
}

/// Serves queues 0 and 1.
struct Scripted(Arc<Mutex<Script>>);

impl VirtioWorker<()> for Scripted {
    fn queues(&self) -> &[u16] {
        &[0, 1]
    }

    fn start(&mut self, _mem: &(), queue: u16, state: QueueState, _activation: &WorkerActivation) {
        let script = &mut *self.0.lock().unwrap();
        assert!(!script.running.contains(&queue), "queue {queue} runs already");
        script.running.push(queue);
        script.log.push(format!("start {queue} at {}", state.next_avail));
    }

    fn step(&mut self, _mem: &()) -> Step {
        self.0.lock().unwrap().log.push("step".to_owned());
        Step::default()
    }

    fn begin_stop(&mut self, _mem: &()) {
        self.0.lock().unwrap().log.push("stop".to_owned());
    }

    fn poll_stopped(&mut self, _mem: &(), abandon: bool) -> bool {
        let script = &mut *self.0.lock().unwrap();
        script.log.push(format!("{} {}", if abandon { "abandon" } else { "finish" }, !script.busy));
        !script.busy
    }

    fn take_state(&mut self, queue: u16) -> Option<QueueState> {
        let running = &mut self.0.lock().unwrap().running;
        let at = running.iter().position(|running| *running == queue)?;
        running.remove(at);
        Some(QueueState { next_avail: 100 + queue, ..QueueState::default() })
    }

    fn forget_driver(&mut self) {
        let script = &mut *self.0.lock().unwrap();
        assert!(script.running.is_empty(), "the driver may still change what it has set");
        script.forgotten += 1;
    }

    fn reset_queue(&mut self, _mem: &(), queue: u16) -> bool {
        let script = &mut *self.0.lock().unwrap();
        script.log.push(format!("reset {queue} {}", !script.busy));
        if !script.busy {
            script.running.retain(|running| *running != queue);
        }
        !script.busy
    }
}

struct Rig {
    script: Arc<Mutex<Script>>,
    life: Life<()>,
}

impl Rig {
    fn new() -> Self {
        let script = Arc::<Mutex<Script>>::default();
        Self { life: Life::new(Box::new(Scripted(script.clone()))), script }
    }

    /// With both queues running.
    fn running() -> Self {
        let mut rig = Self::new();
        let queues = [0, 1].map(|queue| (queue, QueueState::default())).into();
        rig.life.handle(&(), Message::Start(queues, RecordingInterrupt::new().activation(0)));
        assert_eq!(rig.log(), ["start 0 at 0", "start 1 at 0"]);
        rig
    }

    fn send(&mut self, message: impl FnOnce(Countdown) -> Message) -> Parked {
        let token = Parked::new();
        self.life.handle(&(), message(Countdown::new(1, token.clone())));
        token
    }

    fn reset_queue(&mut self, queue: u16) -> Parked {
        let token = Parked::new();
        self.life.handle(&(), Message::ResetQueue(queue, token.clone()));
        token
    }

    fn start_queue(&mut self, queue: u16) {
        self.life.handle(&(), Message::StartQueue(queue, QueueState { next_avail: 7, ..QueueState::default() }));
    }

    fn step(&mut self) -> Vec<String> {
        self.life.step(&());
        self.log()
    }

    fn log(&self) -> Vec<String> {
        std::mem::take(&mut self.script.lock().unwrap().log)
    }

    fn busy(&self, busy: bool) {
        self.script.lock().unwrap().busy = busy;
    }

    fn queues(&self) -> Vec<u16> {
        self.script.lock().unwrap().running.clone()
    }
}

fn machine_pause(done: Countdown) -> Message {
    Message::Pause(Holder::Machine, done)
}

fn change_pause(done: Countdown) -> Message {
    Message::Pause(Holder::Change, done)
}

#[test]
fn one_queue_is_reset_and_started_again_while_the_other_one_runs() {
    let mut rig = Rig::running();
    let done = rig.reset_queue(1);
    assert!(!done.is_complete(), "the worker has to be asked first");
    assert_eq!(rig.step(), ["reset 1 true", "step"]);
    assert!(done.is_complete());
    assert_eq!(rig.queues(), [0]);
    rig.start_queue(1);
    assert_eq!(rig.step(), ["start 1 at 7", "step"]);
}

#[test]
fn a_queue_whose_back_end_is_busy_is_asked_again_in_each_step_and_the_other_one_goes_on() {
    let mut rig = Rig::running();
    rig.busy(true);
    let done = rig.reset_queue(0);
    for _ in 0..2 {
        assert_eq!(rig.step(), ["reset 0 false", "step"]);
        assert!(!done.is_complete());
    }
    rig.busy(false);
    assert_eq!(rig.step(), ["reset 0 true", "step"]);
    assert!(done.is_complete());
    assert_eq!(rig.step(), ["step"], "nobody is asked again");
}

#[test]
fn a_pause_keeps_every_queue_but_those_whose_reset_it_overtook() {
    let mut rig = Rig::running();
    rig.busy(true);
    let reset = rig.reset_queue(0);
    let paused = rig.send(machine_pause);
    assert_eq!(rig.step(), ["stop", "finish false"]);
    rig.busy(false);
    assert_eq!(rig.step(), ["finish true"]);
    assert!(reset.is_complete() && paused.is_complete());
    rig.life.handle(&(), Message::Resume(Holder::Machine));
    assert_eq!(rig.step(), ["start 1 at 101", "step"]);
}

#[test]
fn a_paused_queue_that_is_reset_and_started_again_runs_from_its_new_start_after_the_pause() {
    let mut rig = Rig::running();
    rig.send(machine_pause);
    rig.step();
    rig.log();
    assert!(rig.reset_queue(1).is_complete());
    rig.start_queue(1);
    assert_eq!(rig.step(), [""; 0], "not before the pause ends");
    rig.life.handle(&(), Message::Resume(Holder::Machine));
    assert_eq!(rig.log(), ["start 0 at 100", "start 1 at 7"]);
}

#[test]
fn a_queue_enabled_while_a_pause_drains_starts_after_the_pause() {
    let mut rig = Rig::running();
    rig.reset_queue(1);
    rig.step();
    rig.busy(true);
    rig.send(machine_pause);
    rig.step();
    rig.log();
    rig.start_queue(1);
    rig.busy(false);
    assert_eq!(rig.step(), ["finish true"]);
    rig.life.handle(&(), Message::Resume(Holder::Machine));
    assert_eq!(rig.log(), ["start 0 at 100", "start 1 at 7"]);
}

#[test]
fn a_pause_undone_before_it_is_complete_starts_the_queues_again_and_looks_at_them() {
    let mut rig = Rig::running();
    rig.busy(true);
    let paused = rig.send(machine_pause);
    rig.step();
    rig.life.handle(&(), Message::Resume(Holder::Machine));
    rig.busy(false);
    rig.log();
    let step = rig.life.step(&());
    assert_eq!(rig.log(), ["finish true", "start 0 at 100", "start 1 at 101"]);
    assert!(step.again, "a kick may have come while nobody looked");
    assert!(paused.is_complete());
    assert_eq!(rig.step(), ["step"]);
}

#[test]
fn queues_run_when_nobody_holds_them_any_more_in_whatever_order_they_let_go() {
    use Holder::{Change, Machine};
    for (first, last) in [(Machine, Change), (Change, Machine)] {
        for busy in [false, true] {
            let mut rig = Rig::running();
            rig.busy(busy);
            let held = [rig.send(machine_pause), rig.send(change_pause)];
            rig.step();
            rig.life.handle(&(), Message::Resume(first));
            rig.busy(false);
            rig.step();
            assert!(held.iter().all(Parked::is_complete));
            assert_eq!(rig.queues(), [0; 0], "{first:?} let go, {last:?} did not");
            rig.life.handle(&(), Message::Resume(last));
            assert_eq!(rig.log(), ["start 0 at 100", "start 1 at 101"]);
        }
    }
}

#[test]
fn a_driver_that_starts_its_queues_while_they_are_held_waits_for_them() {
    let mut rig = Rig::running();
    rig.send(change_pause);
    rig.step();
    rig.send(Message::Reset);
    rig.log();
    let queues = [0, 1].map(|queue| (queue, QueueState::default())).into();
    rig.life.handle(&(), Message::Start(queues, RecordingInterrupt::new().activation(0)));
    assert_eq!(rig.step(), [""; 0]);
    rig.life.handle(&(), Message::Resume(Holder::Change));
    assert_eq!(rig.step(), ["start 0 at 0", "start 1 at 0", "step"]);
}

#[test]
fn a_reset_while_the_queues_are_held_takes_nothing_back() {
    let mut rig = Rig::running();
    rig.send(change_pause);
    rig.step();
    assert!(rig.send(Message::Reset).is_complete());
    rig.life.handle(&(), Message::Resume(Holder::Change));
    rig.log();
    assert_eq!((rig.step(), rig.queues()), (vec![], vec![]));
}

#[test]
fn what_a_driver_has_set_is_over_with_the_devices_reset_and_with_nothing_else() {
    for paused in [false, true] {
        let mut rig = Rig::running();
        rig.reset_queue(0);
        rig.step();
        rig.start_queue(0);
        rig.send(machine_pause);
        rig.step();
        rig.life.handle(&(), Message::Resume(Holder::Machine));
        if paused {
            rig.send(machine_pause);
        }
        rig.step();
        assert_eq!(rig.script.lock().unwrap().forgotten, 0, "paused {paused}");
        let done = rig.send(Message::Reset);
        rig.step();
        assert!(done.is_complete());
        assert_eq!(rig.script.lock().unwrap().forgotten, 1, "paused {paused}");
    }
}

#[test]
fn other_work_is_done_before_the_end_that_was_ordered_after_it() {
    let mut rig = Rig::running();
    let (sender, done) = std::sync::mpsc::channel();
    rig.busy(true);
    rig.send(change_pause);
    rig.life.handle(&(), Message::Run(Box::new(move || sender.send(()).unwrap())));
    rig.life.handle(&(), Message::Exit);
    assert_eq!(done.try_recv(), Ok(()));
    assert!(!rig.life.has_ended());
}

#[test]
fn a_device_reset_ends_queue_resets_and_a_pause_that_drains() {
    let mut rig = Rig::running();
    rig.busy(true);
    let (queue, paused) = (rig.reset_queue(0), rig.send(machine_pause));
    rig.step();
    let reset = rig.send(Message::Reset);
    assert_eq!(rig.step().last().unwrap(), "abandon false");
    assert!(!reset.is_complete() && !paused.is_complete() && !queue.is_complete());
    rig.busy(false);
    rig.step();
    assert!(reset.is_complete() && paused.is_complete() && queue.is_complete());
    assert_eq!(rig.queues(), [0; 0]);
    rig.start_queue(0);
    assert_eq!(rig.step(), [""; 0], "a start of the driver before is forgotten");
}

#[test]
fn whatever_is_asked_of_a_stopped_worker_is_done_at_once() {
    let mut rig = Rig::new();
    assert!(rig.send(Message::Reset).is_complete());
    assert!(rig.send(machine_pause).is_complete());
    assert!(rig.reset_queue(0).is_complete());
    rig.life.handle(&(), Message::Resume(Holder::Machine));
    assert_eq!(rig.step(), [""; 0]);
    rig.life.handle(&(), Message::Exit);
    assert!(rig.life.has_ended());
    assert!(rig.send(Message::Reset).is_complete());
}

#[test]
fn an_exit_waits_for_the_back_end_and_only_then_tells_who_waits() {
    for first in [Message::Reset as fn(Countdown) -> Message, machine_pause] {
        let mut rig = Rig::running();
        rig.busy(true);
        let before = rig.send(first);
        rig.life.handle(&(), Message::Exit);
        let after = rig.send(Message::Reset);
        rig.step();
        assert!(!rig.life.has_ended() && !before.is_complete() && !after.is_complete());
        rig.busy(false);
        rig.step();
        assert!(rig.life.has_ended() && before.is_complete() && after.is_complete());
    }
}

#[test]
fn a_countdown_completes_with_its_last_part_and_at_once_without_any() {
    let token = Parked::new();
    Countdown::new(0, token.clone());
    assert!(token.is_complete());
    let token = Parked::new();
    let countdown = Countdown::new(2, token.clone());
    countdown.part_done();
    assert!(!token.is_complete());
    countdown.part_done();
    assert!(token.is_complete());
}
