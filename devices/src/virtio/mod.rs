//! virtio: the contract between transports, devices and the workers that run queues.
//!
//! ```text
//! vCPU ── register access ──► transport ── start / stop / kick ──► QueueRunner ──► VirtioWorker::step ──► back end
//!                                ▲                                                      │
//!                                └───────────── VirtioInterrupt ◄──── used ring ◄───────┘
//! ```

pub mod blk;
pub mod console;
pub mod counters;
mod generation;
pub mod histogram;
pub mod limit;
pub mod net;
pub mod pci;
pub mod queue;
pub mod rng;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
pub mod worker;

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::park::Parked;
use crate::pci::StateError;
pub use generation::Generation;

/// Where a driver put one virtqueue and how far it has got (virtio 1.3 §2.7, §2.8): all a worker needs to start it, and all
/// that is left of it when it stops. Start and stop with this state are reset, pause, save and restore alike.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct QueueState {
    /// Entries in the ring: up to the device's maximum, and a power of two where the ring is split.
    pub size: u16,
    /// Guest address of the descriptor table or packed descriptor ring, 16-byte aligned.
    pub desc_table: u64,
    /// Guest address of the available ring, 2-byte aligned, or of a packed ring's driver area, 4-byte aligned.
    pub avail_ring: u64,
    /// Guest address of the used ring or of a packed ring's device area, 4-byte aligned.
    pub used_ring: u64,
    /// Index of the next available entry the device will look at. In a packed ring bit 15 is the wrap counter.
    pub next_avail: u16,
    /// Index of the next used entry the device will write. In a packed ring bit 15 is the wrap counter.
    pub next_used: u16,
}

impl QueueState {
    /// `next_avail` and `next_used` of a packed ring that has not been used: descriptor 0, wrap counter 1
    /// (virtio 1.3 §2.8.1).
    pub const PACKED_START: u16 = 1 << 15;
}

/// The registers' view of a device: what the transport asks. Called on vCPU threads; never blocks.
pub trait VirtioDevice: Send + Sync {
    /// Device type (virtio 1.3 §5): 1 network, 2 block, 3 console, 4 entropy.
    fn device_type(&self) -> u16;

    /// Feature bits offered, indirect descriptors and event indices included; the transport adds `VIRTIO_F_VERSION_1` and
    /// what the [runner](QueueRunner::ring_features) carries, and drops what the legacy interface cannot.
    fn features(&self) -> u64;

    /// Largest size of each queue; its length is the number of queues.
    fn queue_max_sizes(&self) -> &[u16];

    /// Which of its queues a driver with these features means by `index`, where it means one. For all devices but a network
    /// interface with several pairs of queues it is that of the same index. Workers and their states go by the device's
    /// index, registers and vectors by the driver's.
    fn queue_of(&self, index: u16, features: u64) -> Option<u16> {
        let _ = features;
        Some(index)
    }

    /// Reads device configuration space at `offset`; bytes beyond its end read zero.
    fn read_config(&self, offset: u32, data: &mut [u8]);

    /// Writes device configuration space at `offset`; read-only fields and bytes beyond the end are left alone.
    fn write_config(&self, offset: u32, data: &[u8]);

    /// The part of the configuration space that keeps what a driver writes: what a saved machine has to bring back.
    fn driver_config(&self) -> std::ops::Range<u32> {
        0..0
    }

    /// Length of the device configuration space in bytes.
    fn config_len(&self) -> u32;

    /// What counts the changes of the configuration space, of a device whose space the host changes.
    fn generation(&self) -> Option<&Generation> {
        None
    }

    /// Differs from what it was at the last call where the configuration space has changed since (virtio 1.3 §2.5,
    /// §4.1.4.3.1).
    fn config_generation(&self) -> u8 {
        self.generation().map_or(0, Generation::show)
    }

    /// The driver has settled its features (FEATURES_OK): the configuration space may look different from now on. Called
    /// with 0 at reset, and by legacy drivers never else: what they see does not change by their features (virtio 1.3
    /// §5.2.5.3).
    fn features_accepted(&self, features: u64) {
        let _ = features;
    }
}

/// Reads `space` at `offset`; bytes beyond its end read zero. What [`VirtioDevice::read_config`] does for most.
fn read_config_space(space: &[u8], offset: u32, data: &mut [u8]) {
    let from = space.get(offset as usize..).unwrap_or_default();
    for (to, from) in data.iter_mut().zip(from.iter().copied().chain(std::iter::repeat(0))) {
        *to = from;
    }
}

/// Why a device asks the driver to reset it (virtio 1.3 §2.1.2 DEVICE_NEEDS_RESET).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NeedsReset {
    /// The queue that broke the rules.
    pub queue: u16,
    /// What it did, for the operator's log.
    pub reason: String,
}

/// How a worker reaches the guest: implemented by the transport. Never blocks.
pub trait VirtioInterrupt: Send + Sync {
    /// Used buffers were published on `queue` and the driver wants to know.
    fn queue_used(&self, queue: u16);

    /// The device configuration changed.
    fn config_changed(&self);

    /// The driver broke the ring: sets DEVICE_NEEDS_RESET and notifies (legacy: silence until status 0).
    fn needs_reset(&self, why: &NeedsReset);
}

/// A device's queues going live (DRIVER_OK).
pub struct Activation {
    /// The features the driver accepted.
    pub features: u64,
    /// Whether the driver uses the legacy interface (virtio 1.3 §7.4): no `VIRTIO_F_VERSION_1`.
    pub legacy: bool,
    /// The enabled queues by the device's index ([`VirtioDevice::queue_of`]).
    pub queues: Vec<(u16, QueueState)>,
    /// How the workers reach the guest.
    pub interrupt: Arc<dyn VirtioInterrupt>,
}

/// Where a device's queues run: worker threads in the process, in-line in tests and under the fuzzer. Called by the
/// transport on vCPU threads; never blocks.
pub trait QueueRunner: Send + Sync {
    /// Starts the queues. Called only when all queues are stopped.
    fn start(&self, activation: Activation);

    /// Stops every queue and forgets their state (device reset). In-flight back-end requests are cancelled at once;
    /// `done` completes when no engine can touch guest memory any more. Completes at once when nothing runs.
    fn reset(&self, done: Parked);

    /// Tells the worker of `queue` that the driver notified it. An index without a queue is ignored.
    fn kick(&self, queue: u16);

    /// Ring features this runner's workers carry beside indirect descriptors and event indices, which are the device's
    /// to offer: of [`F_RING_PACKED`](queue::F_RING_PACKED), [`F_IN_ORDER`](queue::F_IN_ORDER) and [`F_RING_RESET`].
    /// The transport offers them to modern drivers. A kernel-carried queue usually has none of them.
    fn ring_features(&self) -> u64 {
        0
    }

    /// Stops one running queue and forgets its state, while the others go on; `done` is completed as in
    /// [`reset`](Self::reset). Called only where [`F_RING_RESET`] is among the [ring features](Self::ring_features). A
    /// device reset may come before it is done.
    fn reset_queue(&self, queue: u16, done: Parked) {
        let _ = (queue, done);
    }

    /// Starts one queue again that was [reset](Self::reset_queue).
    fn start_queue(&self, queue: u16, state: QueueState) {
        let _ = (queue, state);
    }
}

/// `VIRTIO_F_RING_RESET` (virtio 1.3 §6): the driver may reset one queue.
pub const F_RING_RESET: u64 = 1 << 40;

/// What a worker wants next.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Step {
    /// Call `step` again at once after looking at control messages: there is more to do (a budget ended the round, so
    /// that one busy queue can neither starve a stop nor loop for ever).
    pub again: bool,
    /// Wake when the back end's descriptor is readable (a TAP with a frame waiting).
    pub want_readable: bool,
    /// Wake when the back end's descriptor is writable.
    pub want_writable: bool,
    /// Wake at this moment of the [clock](crate::legacy::clock::Clock::monotonic_ns) at the latest: a rate limit holds
    /// chains back until then. Kicks are of no use before.
    pub wake_at_ns: Option<u64>,
    /// There is nothing to do, and the driver has not been asked to kick: whoever called [`linger`](VirtioWorker::linger)
    /// looks at [`has_work`](VirtioWorker::has_work) for a while, and calls `step` before it sleeps.
    pub lingers: bool,
}

/// The part of a device that runs one or more queues: a state machine over guest memory `M`, driven by whoever calls
/// it. It owns its back end; a back end that completes asynchronously wakes the same worker.
pub trait VirtioWorker<M>: Send {
    /// The queues this worker serves, by index.
    fn queues(&self) -> &[u16];

    /// Takes over one of its queues. An invalid layout (outside memory, misaligned) is reported through `interrupt`
    /// as needs-reset and leaves the queue dead until the reset.
    fn start(&mut self, mem: &M, queue: u16, state: QueueState, activation: &WorkerActivation);

    /// Does what can be done without waiting: pops, submits, collects completions, publishes. Called after start, on
    /// every kick and whenever the back end has something to say.
    fn step(&mut self, mem: &M) -> Step;

    /// As [`step`](Self::step), by somebody who looks for the next chain for a while before it sleeps: a worker that is only
    /// waiting for one may leave kicks off and say so ([`Step::lingers`]). A driver that works while the worker looks need
    /// not kick, which is an exit from the guest and a wake-up.
    fn linger(&mut self, mem: &M) -> Step {
        self.step(mem)
    }

    /// Whether a worker that lingers has something to do. One load from guest memory: it is asked over and over.
    fn has_work(&self, _mem: &M) -> bool {
        true
    }

    /// Begins to stop all queues: takes no new chains, cancels what the back end can cancel.
    fn begin_stop(&mut self, mem: &M);

    /// Whether nothing in flight can touch guest memory any more; collects completions. `abandon` says whether
    /// completions are thrown away (reset) or still published (pause).
    fn poll_stopped(&mut self, mem: &M, abandon: bool) -> bool;

    /// Gives back the state of a stopped queue, `None` where it was not running. A worker may keep requests of the queue
    /// that wait for an operator; it goes on with them when it is started with that state.
    fn take_state(&mut self, queue: u16) -> Option<QueueState>;

    /// A queue that stands still, its state taken, is reset: what the worker kept of it is over.
    fn forget(&mut self, _queue: u16) {}

    /// The device is reset and all of the queues stand still: what the driver has set beside them is over.
    fn forget_driver(&mut self) {}

    /// Bytes on their way and requests that wait for an operator, which a worker with stopped queues holds beside them, and
    /// which a machine restored from the queues alone would lose. Most workers hold none.
    fn save(&self) -> WorkerState {
        WorkerState::default()
    }

    /// Takes saved bytes and requests back, before any queue is started. With requests a worker goes on when it is started
    /// with the state that the queue had; where they cannot be in flight there, the driver is told that it has to reset the
    /// device.
    ///
    /// # Errors
    /// Where the state is not one of such a worker.
    fn restore(&mut self, state: &WorkerState) -> Result<(), StateError> {
        if *state == WorkerState::default() {
            Ok(())
        } else {
            Err(StateError { what: "a queue worker", why: "it holds no bytes" })
        }
    }

    /// Gives up `queue` while the other ones go on (virtio 1.3 §2.6.1): takes none of its chains any more, cancels what
    /// the back end can cancel of them and throws completions away. `true` once nothing in flight can touch guest memory
    /// on its behalf: the queue is stopped then. Until then it is called again after each wake-up.
    ///
    /// What is here does for workers of one queue; one that serves several has to write its own.
    fn reset_queue(&mut self, mem: &M, queue: u16) -> bool {
        self.begin_stop(mem);
        let stopped = self.poll_stopped(mem, true);
        if stopped {
            self.take_state(queue);
        }
        stopped
    }
}

/// What a [`VirtioWorker`] holds beside its queues.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkerState {
    /// 1, or 2 where there are [`held`](Self::held) requests: who knows only of 1 would lose them.
    pub version: u16,
    /// Read from the guest's buffers, which it has back, and not taken by the back end yet.
    pub from_guest: Vec<u8>,
    /// Given by the back end, and in no buffer of the guest's yet.
    pub to_guest: Vec<u8>,
    /// Of a disk: a write failed or was cancelled, and no flush has succeeded since.
    #[serde(default)]
    pub unsettled: bool,
    /// Of a disk: a flush failed, and nobody has said to go on.
    #[serde(default)]
    pub lost: bool,
    /// Of a network card: what its driver has set, where that is anything.
    #[serde(default)]
    pub card: Option<net::CardState>,
    /// Of a disk: requests that wait for the operator.
    #[serde(default)]
    pub held: Option<blk::HeldRequests>,
}

impl Default for WorkerState {
    fn default() -> Self {
        Self {
            version: 1,
            from_guest: Vec::new(),
            to_guest: Vec::new(),
            unsettled: false,
            lost: false,
            card: None,
            held: None,
        }
    }
}

/// What [`VirtioWorker::start`] needs beside the queue.
#[derive(Clone)]
pub struct WorkerActivation {
    /// Accepted features.
    pub features: u64,
    /// Whether the driver is a legacy one.
    pub legacy: bool,
    /// How the worker reaches the guest.
    pub interrupt: Arc<dyn VirtioInterrupt>,
}
