//! virtio-net's queue worker: one or both queues of a card over one handle to its link.

use vm_memory::GuestMemory;

use super::backend::NetBackend;
use super::header::Framing;
use super::rx::Rx;
use super::tx::Tx;
use crate::virtio::{QueueState, StateError, Step, VirtioWorker, WorkerActivation, WorkerState};

/// Runs the receive queue, the transmit queue or both of a [`NetDevice`](super::NetDevice).
///
/// A step moves at most a ring of frames in each direction. What the link refuses is dropped and counted, what it cannot take
/// now waits in the ring; one received frame can wait for buffers, and is part of the worker's saved state.
pub struct NetWorker<B> {
    backend: B,
    mtu: Option<u16>,
    indices: Vec<u16>,
    rx: Option<Rx>,
    tx: Option<Tx>,
    stopping: bool,
}

impl<B> NetWorker<B> {
    pub(super) fn new(backend: B, mtu: Option<u16>, rx: Option<Rx>, tx: Option<Tx>) -> Self {
        let queues = [rx.as_ref().map(|rx| rx.queue.index()), tx.as_ref().map(|tx| tx.queue.index())];
        Self { backend, mtu, indices: queues.into_iter().flatten().collect(), rx, tx, stopping: false }
    }

    /// The link.
    pub fn backend(&mut self) -> &mut B {
        &mut self.backend
    }

    fn rx(&mut self, queue: u16) -> Option<&mut Rx> {
        self.rx.as_mut().filter(|rx| rx.queue.index() == queue)
    }

    fn tx(&mut self, queue: u16) -> Option<&mut Tx> {
        self.tx.as_mut().filter(|tx| tx.queue.index() == queue)
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
        let Self { backend, rx, tx, .. } = self;
        if let Some(rx) = rx.as_mut().filter(|rx| rx.queue.index() == queue) {
            rx.release();
            rx.queue.start(mem, &state, activation);
            rx.started(backend, framing);
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
        if let Some(rx) = &mut self.rx {
            (rx_again, want_readable) = rx.step(mem, &mut self.backend);
        }
        if let Some(tx) = &mut self.tx {
            (tx_again, want_writable) = tx.step(mem, &mut self.backend);
        }
        Step { again: rx_again || tx_again, want_readable, want_writable, ..Step::default() }
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
        let tx = self.tx(queue)?;
        tx.release();
        tx.queue.take_state()
    }

    fn save(&self) -> WorkerState {
        WorkerState { to_guest: self.rx.as_ref().map(Rx::save).unwrap_or_default(), ..WorkerState::default() }
    }

    fn restore(&mut self, state: &WorkerState) -> Result<(), StateError> {
        let refuse = |why| Err(StateError { what: "a network card's worker", why });
        let WorkerState { version, from_guest, to_guest, unsettled: false, lost: false } = state else {
            return refuse("it is a disk's");
        };
        if *version != 1 {
            return refuse("its version is not 1");
        }
        if !from_guest.is_empty() {
            return refuse("it holds no bytes of the guest's");
        }
        let taken = match &mut self.rx {
            Some(rx) => rx.restore(to_guest),
            None => to_guest.is_empty(),
        };
        if taken { Ok(()) } else { refuse("what it holds for the guest is no frame") }
    }

    fn reset_queue(&mut self, _mem: &M, queue: u16) -> bool {
        // The link keeps no guest memory beyond a call.
        if let Some(rx) = self.rx(queue) {
            rx.abandon();
            rx.queue.take_state();
        }
        if let Some(tx) = self.tx(queue) {
            tx.abandon();
            tx.queue.take_state();
        }
        true
    }
}
