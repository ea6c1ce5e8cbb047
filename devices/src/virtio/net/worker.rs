//! virtio-net's queue worker: some or all queues of a card over one handle to its link.

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use vm_memory::GuestMemory;

use super::backend::NetBackend;
use super::control::Control;
use super::filter::{Filter, FilterState};
use super::header::{Framing, GUEST_OFFLOADS};
use super::link::{Link, Reason};
use super::responder::AnswersState;
use super::rx::Rx;
use super::settings::Settings;
use super::tx::{Round, Tx};
use crate::planted::{Defect, is_planted};
use crate::virtio::limit::Throttle;
use crate::virtio::{QueueState, StateError, Step, VirtioWorker, WorkerActivation, WorkerState};

/// Runs a receive queue, the first one with the control queue, a transmit queue, or those of a pair of a
/// [`NetDevice`](super::NetDevice).
///
/// A step moves a few dozen frames in each direction at most. What the link refuses is dropped and counted, what it cannot take
/// now waits in the ring; one received frame can wait for buffers, and is part of the worker's saved state. While the link is
/// [down](super::NetDevice::set_link) frames of both directions are taken and dropped.
pub struct NetWorker<B> {
    backend: B,
    link: Arc<Link>,
    settings: Arc<Settings>,
    mtu: Option<u16>,
    indices: Vec<u16>,
    rx: Option<Rx>,
    control: Option<Control>,
    tx: Option<Tx>,
    /// The link has refused to go by the pairs in use, and is asked again as the next driver begins or goes.
    link_lags: bool,
    stopping: bool,
}

impl<B> NetWorker<B> {
    pub(super) fn new(
        backend: B,
        (link, settings): (Arc<Link>, Arc<Settings>),
        mtu: Option<u16>,
        rx: Option<Rx>,
        control: Option<Control>,
        tx: Option<Tx>,
    ) -> Self {
        let queues = [
            rx.as_ref().map(|rx| rx.queue.index()),
            tx.as_ref().map(|tx| tx.queue.index()),
            control.as_ref().map(|control| control.queue.index()),
        ];
        let indices = queues.into_iter().flatten().collect();
        Self { backend, link, settings, mtu, indices, rx, control, tx, link_lags: false, stopping: false }
    }

    /// Holds its receive queue and its transmit queue to rate limits, each counted in frames and in their bytes. What a limit
    /// holds back waits in the link or in the driver's ring.
    #[must_use]
    pub fn with_throttles(mut self, to_guest: Throttle, from_guest: Throttle) -> Self {
        if let Some(rx) = &mut self.rx {
            rx.throttle = to_guest;
        }
        if let Some(tx) = &mut self.tx {
            tx.throttle = from_guest;
        }
        self
    }

    /// The link.
    pub fn backend(&mut self) -> &mut B {
        &mut self.backend
    }

    /// What the driver has set through the control queue.
    pub(super) fn settings(&self) -> &Settings {
        &self.settings
    }

    fn rx(&mut self, queue: u16) -> Option<&mut Rx> {
        self.rx.as_mut().filter(|rx| rx.queue.index() == queue)
    }

    fn tx(&mut self, queue: u16) -> Option<&mut Tx> {
        self.tx.as_mut().filter(|tx| tx.queue.index() == queue)
    }

    fn control(&mut self, queue: u16) -> Option<&mut Control> {
        self.control.as_mut().filter(|control| control.queue.index() == queue)
    }

    fn abandon(&mut self) {
        if let Some(rx) = &mut self.rx {
            rx.abandon();
        }
        if let Some(control) = &mut self.control {
            control.abandon();
        }
        if let Some(tx) = &mut self.tx {
            tx.abandon();
        }
    }

    /// The card is its driver's no more: one pair of queues is in use, and what it has set is gone.
    fn reset_settings<M: GuestMemory>(&mut self)
    where
        B: NetBackend<M>,
    {
        let pairs = self.settings.now().pairs;
        if pairs != 1 || self.link_lags {
            self.tell_link(1);
        }
        self.settings.reset(self.link.first_mac());
        self.link.reset();
    }

    /// Has the link give frames to so many pairs.
    fn tell_link<M: GuestMemory>(&mut self, pairs: u16)
    where
        B: NetBackend<M>,
    {
        self.link_lags = self.backend.set_pairs(pairs).is_err();
        if self.link_lags {
            self.count_error();
        }
    }

    fn count_error(&self) {
        if let Some(rx) = &self.rx {
            rx.queue.counters().errors.count();
        }
    }
}

impl<B> Drop for NetWorker<B> {
    fn drop(&mut self) {
        self.abandon();
    }
}

impl<M: GuestMemory, B: NetBackend<M>> VirtioWorker<M> for NetWorker<B> {
    fn queues(&self) -> &[u16] {
        &self.indices
    }

    fn start(&mut self, mem: &M, queue: u16, state: QueueState, activation: &WorkerActivation) {
        self.stopping = false;
        if self.link_lags {
            let pairs = self.settings.now().pairs;
            self.tell_link(pairs);
        }
        let framing = Framing::new(activation, self.mtu);
        let Self { backend, link, settings, rx, control, tx, .. } = self;
        if control.is_some() {
            link.accepted(activation.features);
        }
        if let Some(control) = control.as_mut().filter(|control| control.queue.index() == queue) {
            control.queue.start(mem, &state, activation);
            control.started(activation.features);
        }
        if let Some(rx) = rx.as_mut().filter(|rx| rx.queue.index() == queue) {
            rx.release();
            rx.queue.start(mem, &state, activation);
            rx.started(backend, activation.features, framing, settings);
            rx.end_reset(mem, backend, link.is_up());
        }
        if let Some(tx) = tx.as_mut().filter(|tx| tx.queue.index() == queue) {
            tx.release();
            tx.queue.start(mem, &state, activation);
            tx.started(framing);
        }
    }

    fn step(&mut self, mem: &M) -> Step {
        if self.stopping {
            return Step::default();
        }
        let (mut received, mut sent) = (Round::default(), Round::default());
        let (mut control_again, up) = (false, self.link.is_up() || is_planted(Defect::DownLinkCarries));
        if let Some(rx) = &mut self.rx {
            if let Some(control) = &mut self.control {
                control_again = control.step(mem, &mut self.backend, &self.link, &self.settings, rx);
            }
            self.settings.enter(rx.pair());
            rx.renew(&self.settings);
            received = if up { rx.step(mem, &mut self.backend) } else { rx.lose(mem, &mut self.backend) };
            self.settings.leave(rx.pair());
        }
        if let Some(tx) = &mut self.tx {
            sent = tx.step(mem, &mut self.backend, up);
        }
        Step {
            again: received.again || sent.again || control_again,
            want_readable: received.want_link,
            want_writable: sent.want_link,
            wake_at_ns: [received.wake_at_ns, sent.wake_at_ns].into_iter().flatten().min(),
            ..Step::default()
        }
    }

    fn begin_stop(&mut self, _mem: &M) {
        self.stopping = true;
    }

    fn poll_stopped(&mut self, _mem: &M, abandon: bool) -> bool {
        if abandon {
            self.abandon();
        }
        // The link keeps no guest memory beyond a call.
        true
    }

    fn take_state(&mut self, queue: u16) -> Option<QueueState> {
        if let Some(rx) = self.rx(queue) {
            rx.release();
            return rx.queue.take_state();
        }
        if let Some(control) = self.control(queue) {
            control.release();
            return control.queue.take_state();
        }
        let tx = self.tx(queue)?;
        tx.release();
        tx.queue.take_state()
    }

    fn save(&self) -> WorkerState {
        let Some(rx) = &self.rx else { return WorkerState::default() };
        let card = self.control.as_ref().and_then(|_| {
            let now = self.settings.now();
            let (announce, offloads, pairs) = (self.link.is_announcing(), now.offloads, now.pairs);
            let (unplugged, answers) = (self.link.is_down_for(Reason::Unplugged), rx.save_answers());
            let card = CardState { filter: now.filter.save(), announce, offloads, unplugged, answers, pairs };
            let filter = Filter::new(self.link.first_mac()).save();
            let untouched =
                CardState { filter, announce: false, offloads: None, unplugged: false, answers: None, pairs: 1 };
            (card != untouched).then_some(card)
        });
        WorkerState { to_guest: rx.save(), card, ..WorkerState::default() }
    }

    fn restore(&mut self, state: &WorkerState) -> Result<(), StateError> {
        let refuse = |why| Err(StateError { what: "a network card's worker", why });
        let WorkerState { version, from_guest, to_guest, unsettled: false, lost: false, card, held: None } = state
        else {
            return refuse("it is a disk's");
        };
        if *version != 1 {
            return refuse("its version is not 1");
        }
        if !from_guest.is_empty() {
            return refuse("it holds no bytes of the guest's");
        }
        let Some(rx) = &mut self.rx else {
            return if to_guest.is_empty() && card.is_none() { Ok(()) } else { refuse("it is a receiver's") };
        };
        if !rx.restore(to_guest) {
            return refuse("what it holds for the guest is no frame");
        }
        if self.control.is_none() {
            return if card.is_none() { Ok(()) } else { refuse("it is that of the control queue's") };
        }
        rx.forget_driver(&mut self.backend);
        rx.restore_answers(None);
        let unplugged = card.as_ref().is_some_and(|card| card.unplugged);
        self.reset_settings();
        self.link.restore(self.link.first_mac(), false, unplugged);
        let Some(CardState { filter, announce, offloads, answers, pairs, .. }) = card else { return Ok(()) };
        if !self.rx.as_mut().is_some_and(|rx| rx.restore_answers(answers.as_ref())) {
            return refuse("it holds no answers of a responder's");
        }
        let mut set = Filter::new(self.link.first_mac());
        let known = offloads.is_none_or(|bits| bits & !GUEST_OFFLOADS == 0);
        if !set.restore(filter) || !known || !(1..=self.settings.pairs()).contains(pairs) {
            return refuse("no driver can have set that");
        }
        if *pairs != 1 && self.backend.set_pairs(*pairs).is_err() {
            return refuse("its link does not give frames to so many queues");
        }
        self.link.restore(set.mac(), *announce, unplugged);
        self.settings.change(|now| {
            now.filter.clone_from(&set);
            (now.offloads, now.pairs) = (*offloads, *pairs);
        });
        Ok(())
    }

    fn forget(&mut self, queue: u16) {
        if let Some(rx) = self.rx(queue) {
            rx.abandon();
        }
    }

    fn forget_driver(&mut self) {
        let Self { backend, rx, .. } = self;
        if let Some(rx) = rx {
            rx.forget_driver(backend);
        }
        if self.control.is_some() {
            self.reset_settings();
        }
    }

    fn reset_queue(&mut self, _mem: &M, queue: u16) -> bool {
        // The link keeps no guest memory beyond a call.
        let Self { backend, rx, .. } = self;
        if let Some(rx) = rx.as_mut().filter(|rx| rx.queue.index() == queue) {
            rx.reset_alone(backend);
        }
        if let Some(control) = self.control(queue) {
            control.abandon();
            control.queue.take_state();
        }
        if let Some(tx) = self.tx(queue) {
            tx.abandon();
            tx.queue.take_state();
        }
        true
    }
}

/// What a card's driver and its operator have set, of a worker that is saved.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CardState {
    pub(super) filter: FilterState,
    /// An announcement is due.
    announce: bool,
    /// Its choice of offloads, where it has made one.
    #[serde(default)]
    pub(super) offloads: Option<u64>,
    /// The operator has pulled the cable.
    #[serde(default)]
    unplugged: bool,
    /// Of a card with a responder: what that goes on with.
    #[serde(default)]
    pub(super) answers: Option<AnswersState>,
    /// Queue pairs in use.
    #[serde(default = "one")]
    pub(super) pairs: u16,
}

fn one() -> u16 {
    1
}
