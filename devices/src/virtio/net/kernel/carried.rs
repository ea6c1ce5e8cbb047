//! What a kernel follows while it carries queues: doorbells and messages, as the driver moves them.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::{KernelQueues, Window};
use crate::interrupt::MsiMessage;
use crate::virtio::pci::{Doorbell, Doorbells, NOTIFY_MULTIPLIER, QueueMessages};
use crate::wake::Wake;

/// The queues that a kernel carries, between the transport, which knows where the driver rings and what interrupts it, and
/// the worker, which knows which rings there are. Both see to it that the kernel knows both.
pub struct Carried {
    queues: Arc<dyn KernelQueues>,
    /// The worker.
    wake: Arc<dyn Wake>,
    state: Mutex<State>,
    /// Queues that the driver rang and the kernel did not hear: a bit each.
    kicked: Box<[AtomicU64]>,
    /// A message has changed: an interrupt may wait that nobody looks for.
    look: AtomicBool,
}

struct State {
    rings: Vec<Ring>,
    /// Where the driver rings, as the transport said last.
    window: Option<Window>,
    /// What the kernel was told last.
    hooked: Option<Window>,
}

impl State {
    fn is_live(&self) -> bool {
        self.rings.iter().any(|ring| ring.live)
    }
}

#[derive(Clone, Copy, Default)]
struct Ring {
    /// Initialised: the kernel takes messages for it.
    live: bool,
    message: Option<MsiMessage>,
    /// Whether it has a doorbell.
    rings: bool,
}

impl Carried {
    /// `count` data queues, none of them initialised. `wake` wakes their worker.
    pub fn new(queues: Arc<dyn KernelQueues>, count: u16, wake: Arc<dyn Wake>) -> Arc<Self> {
        let rings = vec![Ring::default(); usize::from(count)];
        let kicked = (0..=count / 64).map(|_| AtomicU64::new(0)).collect();
        let state = Mutex::new(State { rings, window: None, hooked: None });
        Arc::new(Self { queues, wake, state, kicked, look: AtomicBool::new(false) })
    }

    /// The queues.
    pub(super) fn queues(&self) -> &dyn KernelQueues {
        &*self.queues
    }

    /// The driver rang for `queue`, and the kernel did not hear it. The caller wakes the worker.
    pub fn note_kick(&self, queue: u16) {
        if let Some(word) = self.kicked.get(usize::from(queue / 64)) {
            word.fetch_or(1 << (queue % 64), SeqCst);
        }
    }

    /// The queues noted since the last call.
    pub(super) fn take_kicks(&self) -> impl Iterator<Item = u16> + '_ {
        (0u16..).zip(&self.kicked).flat_map(|(word, bits)| {
            let bits = bits.swap(0, SeqCst);
            (0u16..64).filter(move |bit| bits >> bit & 1 != 0).map(move |bit| word.wrapping_mul(64).wrapping_add(bit))
        })
    }

    /// The ring of `queue` is initialised: it gets its message and its doorbell.
    pub(super) fn started(&self, queue: u16) {
        let mut state = self.state();
        if let Some(ring) = state.rings.get_mut(usize::from(queue)) {
            ring.live = true;
            if ring.message.is_some() {
                self.queues.set_msi(queue, ring.message);
            }
        }
        self.update_window(&mut state);
    }

    /// The ring of `queue` is about to be stopped: no message and, with the last one, no doorbell is the kernel's any more.
    pub(super) fn stopping(&self, queue: u16) {
        let mut state = self.state();
        if let Some(ring) = state.rings.get_mut(usize::from(queue)) {
            ring.live = false;
        }
        self.update_window(&mut state);
    }

    /// Whether a ring is initialised.
    pub(super) fn is_live(&self) -> bool {
        self.state().is_live()
    }

    /// Whether an interrupt may wait for somebody to look: of an initialised ring without a message.
    pub(super) fn must_poll(&self) -> bool {
        self.state().rings.iter().any(|ring| ring.live && ring.message.is_none())
    }

    /// Whether a message has changed since the last call, so that one may wait all the same.
    pub(super) fn take_look(&self) -> bool {
        self.look.swap(false, SeqCst)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn update_window(&self, state: &mut State) {
        let wanted = state.window.filter(|_| state.is_live());
        if state.hooked != wanted {
            state.hooked = wanted;
            self.queues.notify_window(wanted);
        }
    }
}

/// The window in which the doorbell of `queue` lies at `at`: that of `count` queues.
fn window(queue: u16, at: Doorbell, count: usize) -> Option<Window> {
    match at {
        Doorbell::Pio { port, .. } => Some(Window::Port(port)),
        Doorbell::Mmio { address, .. } => {
            let before = u64::from(queue).checked_mul(NOTIFY_MULTIPLIER)?;
            let len_bytes = u64::try_from(count).ok()?.checked_mul(NOTIFY_MULTIPLIER)?;
            Some(Window::Mmio { address: address.checked_sub(before)?, len_bytes: u32::try_from(len_bytes).ok()? })
        }
    }
}

impl Doorbells for Carried {
    fn place(&self, queue: u16, at: Option<Doorbell>) {
        let mut state = self.state();
        let count = state.rings.len();
        // The control queue's doorbell is none of the kernel's.
        let Some(ring) = state.rings.get_mut(usize::from(queue)) else { return };
        ring.rings = at.is_some();
        match at {
            Some(at) => state.window = window(queue, at, count),
            None if state.rings.iter().any(|ring| ring.rings) => {}
            None => state.window = None,
        }
        self.update_window(&mut state);
    }
}

impl QueueMessages for Carried {
    fn place(&self, queue: u16, message: Option<MsiMessage>) {
        let mut state = self.state();
        let Some(ring) = state.rings.get_mut(usize::from(queue)) else { return };
        ring.message = message;
        if ring.live {
            self.queues.set_msi(queue, message);
            self.look.store(true, SeqCst);
            self.wake.wake();
        }
    }
}
