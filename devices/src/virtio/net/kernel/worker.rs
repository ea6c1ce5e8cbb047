//! The life of rings that a kernel runs, and the control queue beside them.

use std::sync::Arc;

use vm_memory::GuestMemory;

use super::{Carried, Groups, KernelError, KernelNet, Reception};
use crate::virtio::counters::QueueCounters;
use crate::virtio::net::device::feature;
use crate::virtio::net::filter::Mode;
use crate::virtio::net::{Header, NetBackend, NetDevice, NetError, NetWorker, Offloads, Received, Sent};
use crate::virtio::queue::{GuestRange, Queue};
use crate::virtio::{
    NeedsReset, QueueState, StateError, Step, VirtioDevice as _, VirtioWorker, WorkerActivation, WorkerState,
};

/// Legacy rings lie in pages (virtio 1.3 §2.7.2).
const PAGE_BYTES: u64 = 4096;

/// Runs the control queue of a [`KernelNet`] itself, and has the kernel run the others.
///
/// While the [link](NetDevice::set_link) is down the kernel's rings stand still: what the driver sends waits, and nothing
/// arrives. What a kernel refuses is either the driver's to mend (needs reset) or the link's end, until a driver begins anew.
/// Its back end's descriptor is the kernel's, which polls readable while an interrupt waits that has no message, or a ring
/// has been given up.
pub struct KernelWorker {
    carried: Arc<Carried>,
    card: NetDevice,
    /// Runs the control queue, and knows what the driver has set there. It has no data queue.
    control: NetWorker<Pairs>,
    control_index: u16,
    indices: Vec<u16>,
    max_sizes: Vec<u16>,
    activation: Option<WorkerActivation>,
    /// Initialised in the kernel: where the driver put them.
    running: Vec<(u16, QueueState)>,
    /// Stopped, with the place to go on.
    halted: Vec<(u16, QueueState)>,
    reception: Reception,
    always_promiscuous: bool,
    /// A driver may give the card another address.
    has_addresses: bool,
    /// The kernel failed this driver.
    failed: bool,
    /// How many drivers it failed.
    failures: u64,
    stopping: bool,
}

impl KernelWorker {
    pub(super) fn new(device: &KernelNet, carried: Arc<Carried>, counters: &[Arc<QueueCounters>]) -> Self {
        let card = device.card().clone();
        let of = |index: u16| counters.get(usize::from(index)).cloned().unwrap_or_default();
        let control_index = device.data_queues();
        let mut worker = Self {
            control: card.rx_worker(Pairs(carried.clone()), of(0), of(control_index)),
            carried,
            control_index,
            indices: (0..=control_index).collect(),
            max_sizes: card.queue_max_sizes().to_vec(),
            card,
            activation: None,
            running: Vec::new(),
            halted: Vec::new(),
            reception: Reception::default(),
            always_promiscuous: device.is_promiscuous(),
            has_addresses: device.features() & feature::CTRL_MAC_ADDR != 0,
            failed: false,
            failures: 0,
            stopping: false,
        };
        worker.expect_nothing_of_others();
        worker
    }

    /// A driver gets frames to other stations where it asks for them: kernels do not begin promiscuous. Those to groups it gets
    /// until it says which of them, as not every driver does.
    fn expect_nothing_of_others(&mut self) {
        self.control.settings().change(|now| {
            now.filter.set_mode(Mode::Promiscuous, false);
            now.filter.set_mode(Mode::AllMulticast, true);
        });
    }

    /// Has the kernel receive what the driver wants.
    fn follow_filter(&mut self) {
        let features = self.activation.as_ref().map_or(0, |activation| activation.features);
        let wanted = {
            let now = self.control.settings().now();
            let others = self.always_promiscuous || now.filter.wants_others(features);
            let groups = if others { None } else { now.filter.wanted_groups(features) };
            Reception { others, groups: groups.map_or(Groups::All, Groups::Only) }
        };
        if self.reception != wanted {
            self.carried.queues().set_reception(&wanted);
            self.reception = wanted;
        }
    }

    /// Has the kernel know the card by the address that it has now. What it refuses it has logged.
    fn follow_address(&mut self) {
        if self.has_addresses {
            let mac = self.control.settings().now().filter.mac();
            let _ = self.carried.queues().set_address(mac);
        }
    }

    /// Initialises a ring in the kernel and lets it run, or keeps it until the link is up.
    fn run_ring<M: GuestMemory>(&mut self, mem: &M, queue: u16, state: QueueState) {
        let Some(activation) = self.activation.clone() else { return };
        if self.failed || !self.card.is_up() {
            self.halted.push((queue, state));
            return;
        }
        let max_size = self.max_sizes.get(usize::from(queue)).copied().unwrap_or_default();
        let sound = Queue::new(mem, &state, activation.features, max_size).map(drop).map_err(|error| error.to_string());
        let sound = sound.and_then(|()| if activation.legacy { lies_legacy(&state) } else { Ok(()) });
        if let Err(reason) = sound {
            activation.interrupt.needs_reset(&NeedsReset { queue, reason });
            return;
        }
        let queues = self.carried.queues();
        let begun = if self.running.is_empty() { self.accept(activation.features) } else { Ok(()) };
        match begun.and_then(|()| queues.init(queue, &state, activation.legacy)) {
            Ok(()) => {
                self.running.push((queue, state));
                self.carried.started(queue);
                // Once, even where the kernel watches the doorbell: it does so for running rings only, and what the driver
                // rang before is nobody else's to tell it.
                self.carried.queues().kick(queue);
            }
            Err(KernelError::Ring(reason)) => activation.interrupt.needs_reset(&NeedsReset { queue, reason }),
            Err(KernelError::Failed(reason)) => self.fail(&activation, &reason),
        }
    }

    /// Has the kernel begin with what the driver has settled and set.
    fn accept(&self, features: u64) -> Result<(), KernelError> {
        let queues = self.carried.queues();
        queues.accept(features)?;
        match self.card.pairs_in_use() {
            1 => Ok(()),
            pairs => queues.use_pairs(pairs),
        }
    }

    /// The kernel failed: the driver sees its link go down.
    fn fail(&mut self, activation: &WorkerActivation, reason: &str) {
        self.failures = self.failures.saturating_add(1);
        // A driver can begin as often as it likes: 1, 2, 4, 8 … are enough for the log.
        if self.failures.is_power_of_two() {
            let count = self.failures;
            log::error!("virtio-net: {reason}: the guest's link is down until its driver begins anew (time {count})");
        }
        self.failed = true;
        if self.card.set_carrier(false) {
            activation.interrupt.config_changed();
        }
    }

    /// Ends the link where a call without an answer has failed; whether it did.
    fn follow_failure(&mut self) -> bool {
        let Some(reason) = self.carried.queues().failure() else { return false };
        match self.activation.clone().filter(|_| !self.failed) {
            Some(activation) => self.fail(&activation, &reason),
            None => return false,
        }
        true
    }

    /// Stops every ring, in the order reset, or with its place kept.
    fn halt(&mut self, keep: bool) {
        let running = std::mem::take(&mut self.running);
        // Before the first one stops, so that no doorbell is the kernel's while some have.
        running.iter().for_each(|(queue, _)| self.carried.stopping(*queue));
        for (queue, state) in running {
            let queues = self.carried.queues();
            if keep {
                match queues.pause(queue).and_then(|()| queues.state(queue)) {
                    Ok((next_avail, next_used)) => {
                        self.halted.push((queue, QueueState { next_avail, next_used, ..state }));
                    }
                    Err(error) => {
                        if let Some(activation) = self.activation.clone() {
                            self.fail(&activation, &error.to_string());
                        }
                    }
                }
            }
            self.carried.queues().reset(queue);
        }
    }

    /// Follows the link: rings stand still while it is down.
    fn follow_link<M: GuestMemory>(&mut self, mem: &M) {
        if !self.card.is_up() {
            self.halt(true);
        } else if !self.failed {
            for (queue, state) in std::mem::take(&mut self.halted) {
                self.run_ring(mem, queue, state);
            }
        }
    }

    /// Interrupts the guest for rings that have no message of their own.
    fn pass_interrupts(&self) {
        if (self.carried.take_look() || self.must_poll())
            && let Some(activation) = &self.activation
        {
            self.carried.queues().poll(&mut |queue| {
                if self.is_running(queue) {
                    activation.interrupt.queue_used(queue);
                }
            });
        }
    }

    /// Whether the kernel's descriptor has something to say.
    fn must_poll(&self) -> bool {
        self.carried.must_poll() || (!self.running.is_empty() && self.carried.queues().tells_of_broken())
    }

    /// Resets the rings that the kernel has given up: they are the driver's to mend.
    fn end_broken(&mut self) {
        let mut broken = Vec::new();
        self.carried.queues().take_broken(&mut |queue| broken.push(queue));
        for queue in broken {
            if !self.is_running(queue) {
                continue;
            }
            self.end_ring(queue);
            if let Some(activation) = &self.activation {
                let reason = "the kernel cannot go on with what the driver put there".to_owned();
                activation.interrupt.needs_reset(&NeedsReset { queue, reason });
            }
        }
    }

    fn end_ring(&mut self, queue: u16) {
        self.carried.stopping(queue);
        self.carried.queues().reset(queue);
        self.running.retain(|(running, _)| *running != queue);
    }

    fn is_running(&self, queue: u16) -> bool {
        self.running.iter().any(|(running, _)| *running == queue)
    }
}

/// Whether a ring lies as the legacy interface lays it out, which is all that it tells the kernel (virtio 1.3 §2.7.2).
fn lies_legacy(state: &QueueState) -> Result<(), String> {
    let size = u64::from(state.size);
    let avail = state.desc_table.wrapping_add(size.wrapping_mul(16));
    let used = avail.wrapping_add(size.wrapping_add(3).wrapping_mul(2)).checked_next_multiple_of(PAGE_BYTES);
    let lies =
        state.desc_table.is_multiple_of(PAGE_BYTES) && state.avail_ring == avail && Some(state.used_ring) == used;
    if lies { Ok(()) } else { Err("its parts do not lie as those of a legacy ring".to_owned()) }
}

impl<M: GuestMemory> VirtioWorker<M> for KernelWorker {
    fn queues(&self) -> &[u16] {
        &self.indices
    }

    fn start(&mut self, mem: &M, queue: u16, state: QueueState, activation: &WorkerActivation) {
        self.stopping = false;
        self.activation = Some(activation.clone());
        if queue == self.control_index {
            self.follow_filter();
            self.control.start(mem, queue, state, activation);
        } else {
            self.run_ring(mem, queue, state);
        }
    }

    fn step(&mut self, mem: &M) -> Step {
        if self.stopping {
            return Step::default();
        }
        // First: a pair that goes out of use now cannot be asked any more.
        self.end_broken();
        self.pass_interrupts();
        let again = self.control.step(mem).again;
        self.follow_filter();
        self.follow_failure();
        self.follow_link(mem);
        for queue in self.carried.take_kicks() {
            if self.is_running(queue) {
                self.carried.queues().kick(queue);
            }
        }
        let again = again || self.follow_failure();
        Step { again, want_readable: self.must_poll(), ..Step::default() }
    }

    fn begin_stop(&mut self, mem: &M) {
        self.stopping = true;
        self.control.begin_stop(mem);
    }

    fn poll_stopped(&mut self, mem: &M, abandon: bool) -> bool {
        self.halt(!abandon);
        if abandon {
            self.halted.clear();
        }
        self.control.poll_stopped(mem, abandon)
    }

    fn take_state(&mut self, queue: u16) -> Option<QueueState> {
        if queue == self.control_index {
            return VirtioWorker::<M>::take_state(&mut self.control, queue);
        }
        let at = self.halted.iter().position(|(halted, _)| *halted == queue)?;
        Some(self.halted.swap_remove(at).1)
    }

    fn forget(&mut self, queue: u16) {
        self.halted.retain(|(halted, _)| *halted != queue);
    }

    fn forget_driver(&mut self) {
        VirtioWorker::<M>::forget_driver(&mut self.control);
        self.expect_nothing_of_others();
        self.activation = None;
        self.follow_filter();
        self.follow_address();
        // What was met on the way out is no matter of the next driver's.
        self.carried.queues().failure();
        if std::mem::take(&mut self.failed) {
            self.card.set_carrier(true);
        }
    }

    fn save(&self) -> WorkerState {
        VirtioWorker::<M>::save(&self.control)
    }

    fn restore(&mut self, state: &WorkerState) -> Result<(), StateError> {
        // A card that says nothing is promiscuous, as those begin whose frames are moved here: the driver has asked for it.
        VirtioWorker::<M>::restore(&mut self.control, state)?;
        self.follow_filter();
        self.follow_address();
        Ok(())
    }

    fn reset_queue(&mut self, mem: &M, queue: u16) -> bool {
        if queue == self.control_index {
            return self.control.reset_queue(mem, queue);
        }
        if self.is_running(queue) {
            self.end_ring(queue);
        }
        VirtioWorker::<M>::forget(self, queue);
        true
    }
}

/// The link of a worker that has no frame to move, as far as the control queue has to do with it: queue pairs in use, and the
/// card's address.
struct Pairs(Arc<Carried>);

impl<M> NetBackend<M> for Pairs {
    fn set_pairs(&mut self, pairs: u16) -> Result<(), NetError> {
        // A kernel without a ring is told when the next one begins.
        if !self.0.is_live() {
            return Ok(());
        }
        self.0.queues().use_pairs(pairs).map_err(|_| NetError::Unsupported)
    }

    fn set_address(&mut self, mac: [u8; 6]) -> Result<(), NetError> {
        self.0.queues().set_address(mac).map_err(|_| NetError::Unsupported)
    }

    fn send(&mut self, _mem: &M, _header: &Header, _frame: &[GuestRange]) -> Result<Sent, NetError> {
        Ok(Sent::Done)
    }

    fn receive(
        &mut self,
        _mem: &M,
        _header: &mut Header,
        _into: &[GuestRange],
        _spill: &mut [u8],
    ) -> Result<Received, NetError> {
        Ok(Received::WouldBlock)
    }

    fn set_offloads(&mut self, _offloads: Offloads) -> Result<(), NetError> {
        Ok(())
    }
}
