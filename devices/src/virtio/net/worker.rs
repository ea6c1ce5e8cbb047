//! virtio-net's queue worker: some or all queues of a card over one handle to its link.

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use vm_memory::GuestMemory;

use super::backend::NetBackend;
use super::control::Control;
use super::filter::{Filter, FilterState};
use super::header::Framing;
use super::link::{Link, Reason};
use super::responder::AnswersState;
use super::rx::Rx;
use super::tx::Tx;
use crate::virtio::{QueueState, StateError, Step, VirtioWorker, WorkerActivation, WorkerState};

/// Runs the receive queue with the control queue, the transmit queue, or all of a [`NetDevice`](super::NetDevice).
///
/// A step moves at most a ring of frames in each direction. What the link refuses is dropped and counted, what it cannot take
/// now waits in the ring; one received frame can wait for buffers, and is part of the worker's saved state. While the link is
/// [down](super::NetDevice::set_link) frames of both directions are taken and dropped.
pub struct NetWorker<B> {
    backend: B,
    link: Arc<Link>,
    mtu: Option<u16>,
    indices: Vec<u16>,
    rx: Option<Rx>,
    control: Option<Control>,
    tx: Option<Tx>,
    stopping: bool,
}

impl<B> NetWorker<B> {
    pub(super) fn new(
        backend: B,
        link: Arc<Link>,
        mtu: Option<u16>,
        receiver: Option<(Rx, Control)>,
        tx: Option<Tx>,
    ) -> Self {
        let (rx, control) = receiver.unzip();
        let queues = [
            rx.as_ref().map(|rx| rx.queue.index()),
            tx.as_ref().map(|tx| tx.queue.index()),
            control.as_ref().map(|control| control.queue.index()),
        ];
        Self { backend, link, mtu, indices: queues.into_iter().flatten().collect(), rx, control, tx, stopping: false }
    }

    /// The link.
    pub fn backend(&mut self) -> &mut B {
        &mut self.backend
    }

    /// What the driver wants to receive, of the worker of the control queue.
    pub(super) fn filter(&mut self) -> Option<&mut Filter> {
        self.rx.as_mut().map(|rx| &mut rx.filter)
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
        if let Some(tx) = &mut self.tx {
            tx.abandon();
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
        let framing = Framing::new(activation, self.mtu);
        let Self { backend, link, rx, control, tx, .. } = self;
        if let Some(rx) = rx {
            rx.filter.accept(activation.features);
            link.accepted(activation.features);
        }
        if let Some(control) = control.as_mut().filter(|control| control.queue.index() == queue) {
            control.queue.start(mem, &state, activation);
            control.started(activation.features);
        }
        if let Some(rx) = rx.as_mut().filter(|rx| rx.queue.index() == queue) {
            rx.release();
            rx.queue.start(mem, &state, activation);
            rx.started(backend, activation.features, framing);
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
        let (mut rx_again, mut want_readable, mut tx_again, mut want_writable) = (false, false, false, false);
        let (mut control_again, up) = (false, self.link.is_up());
        if let Some(rx) = &mut self.rx {
            if let Some(control) = &mut self.control {
                control_again = control.step(mem, &mut self.backend, &self.link, rx);
            }
            (rx_again, want_readable) =
                if up { rx.step(mem, &mut self.backend) } else { rx.lose(mem, &mut self.backend) };
        }
        if let Some(tx) = &mut self.tx {
            (tx_again, want_writable) = tx.step(mem, &mut self.backend, up);
        }
        Step { again: rx_again || tx_again || control_again, want_readable, want_writable, ..Step::default() }
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
            return control.queue.take_state();
        }
        let tx = self.tx(queue)?;
        tx.release();
        tx.queue.take_state()
    }

    fn save(&self) -> WorkerState {
        let Some(rx) = &self.rx else { return WorkerState::default() };
        let (announce, offloads) = (self.link.is_announcing(), rx.chosen_offloads());
        let (unplugged, answers) = (self.link.is_down_for(Reason::Unplugged), rx.save_answers());
        let card = CardState { filter: rx.filter.save(), announce, offloads, unplugged, answers };
        let filter = Filter::new(self.link.first_mac()).save();
        let untouched = CardState { filter, announce: false, offloads: None, unplugged: false, answers: None };
        let card = (card != untouched).then_some(card);
        WorkerState { to_guest: rx.save(), card, ..WorkerState::default() }
    }

    fn restore(&mut self, state: &WorkerState) -> Result<(), StateError> {
        let refuse = |why| Err(StateError { what: "a network card's worker", why });
        let WorkerState { version, from_guest, to_guest, unsettled: false, lost: false, card } = state else {
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
        self.link.reset();
        rx.forget_driver();
        match card {
            None => {
                rx.filter.reset(self.link.first_mac());
                self.link.restore(self.link.first_mac(), false, false);
                rx.restore_answers(None);
            }
            Some(CardState { filter, announce, offloads, unplugged, answers }) => {
                if !rx.restore_answers(answers.as_ref()) {
                    return refuse("it holds no answers of a responder's");
                }
                if !rx.filter.restore(filter) || !rx.restore_offloads(*offloads) {
                    return refuse("no driver can have set that");
                }
                self.link.restore(rx.filter.mac(), *announce, *unplugged);
            }
        }
        if rx.restore(to_guest) { Ok(()) } else { refuse("what it holds for the guest is no frame") }
    }

    fn forget(&mut self, queue: u16) {
        if let Some(rx) = self.rx(queue) {
            rx.abandon();
        }
    }

    fn forget_driver(&mut self) {
        if let Some(rx) = &mut self.rx {
            rx.filter.reset(self.link.first_mac());
            rx.forget_driver();
            self.link.reset();
        }
    }

    fn reset_queue(&mut self, _mem: &M, queue: u16) -> bool {
        // The link keeps no guest memory beyond a call.
        if let Some(rx) = self.rx(queue) {
            rx.abandon();
            rx.queue.take_state();
        }
        if let Some(control) = self.control(queue) {
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
}
