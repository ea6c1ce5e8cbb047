//! The virtio registers both interfaces share, and the device status state machine (virtio 1.3 §2.1, §3.1).

use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use serde::{Deserialize, Serialize};
use virtio_bindings::bindings::virtio_config::{
    VIRTIO_F_ADMIN_VQ, VIRTIO_F_ANY_LAYOUT, VIRTIO_F_NOTIF_CONFIG_DATA, VIRTIO_F_NOTIFICATION_DATA,
    VIRTIO_F_NOTIFY_ON_EMPTY, VIRTIO_F_SR_IOV, VIRTIO_F_VERSION_1,
};
use virtio_bindings::bindings::virtio_ring::VIRTIO_RING_F_EVENT_IDX;

use super::doorbell::{Placer, Ringing};
use super::interrupts::{Interrupts, NO_VECTOR, status};
use super::places::{Places, index_of};
use crate::bus::Access;
use crate::park::Parked;
use crate::pci::{BarListener, StateError};
use crate::planted::{Defect, is_planted, panic_if_planted};
use crate::virtio::generation::Count;
use crate::virtio::queue::{F_IN_ORDER, F_RING_PACKED};
use crate::virtio::{
    Activation, F_RING_RESET, Generation, QueueRunner, QueueState, VirtioDevice, VirtioInterrupt as _,
};
use crate::wake::Wake;

const VERSION_1: u64 = 1 << VIRTIO_F_VERSION_1;
/// What is the runner's to offer, not the device's.
const OF_THE_RUNNER: u64 = F_RING_PACKED | F_IN_ORDER | F_RING_RESET;
/// What this transport does not do, whatever the device offers.
const NOT_OF_THIS_TRANSPORT: u64 =
    1 << VIRTIO_F_NOTIFICATION_DATA | 1 << VIRTIO_F_NOTIF_CONFIG_DATA | 1 << VIRTIO_F_ADMIN_VQ | 1 << VIRTIO_F_SR_IOV;
/// Bits that mean something on the legacy interface only (§6.3).
const LEGACY_ONLY: u64 = 1 << VIRTIO_F_NOTIFY_ON_EMPTY | 1 << VIRTIO_F_ANY_LAYOUT;
/// Bits the legacy interface can carry. Legacy Linux 6.14 deadlocks with EVENT_IDX, so it is not among them.
const LEGACY: u64 = 0xffff_ffff & !(1 << VIRTIO_RING_F_EVENT_IDX);

/// One queue's registers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct QueueRegisters {
    pub(super) size: u16,
    pub(super) desc_table: u64,
    pub(super) avail_ring: u64,
    pub(super) used_ring: u64,
    pub(super) enabled: bool,
    /// What a legacy driver wrote, to be read back.
    pub(super) pfn: u32,
    pub(super) reset: QueueReset,
}

/// How far a queue's own reset is (virtio 1.3 §2.6.1).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum QueueReset {
    /// Nobody asked for one.
    #[default]
    None,
    /// It waits for engines to let go of guest memory.
    Pending,
    /// The queue may be set up again while the device runs.
    Done,
}

impl QueueRegisters {
    fn new(size: u16) -> Self {
        Self { size, desc_table: 0, avail_ring: 0, used_ring: 0, enabled: false, pfn: 0, reset: QueueReset::None }
    }
}

impl QueueRegisters {
    /// Where a queue stands that starts from the beginning.
    fn start_state(&self, features: u64) -> QueueState {
        let QueueRegisters { size, desc_table, avail_ring, used_ring, .. } = *self;
        let next = if features & F_RING_PACKED != 0 { QueueState::PACKED_START } else { 0 };
        QueueState { size, desc_table, avail_ring, used_ring, next_avail: next, next_used: next }
    }
}

/// The registers that only vCPUs touch.
pub(super) struct Registers {
    pub(super) device_feature_select: u32,
    pub(super) driver_feature_select: u32,
    pub(super) driver_features: u64,
    /// The driver accepted a feature above bit 63; none is offered there.
    features_beyond: bool,
    pub(super) queue_select: u16,
    pub(super) queues: Vec<QueueRegisters>,
    /// A reset waits for engines to let go of guest memory; these accesses wait for it.
    resetting: Option<Vec<Parked>>,
    /// Counts device resets: a queue's reset that ends after one belongs to a driver that is gone.
    life: u64,
}

/// What a guest can have changed in the virtio registers of a transport.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TransportState {
    version: u16,
    status: u8,
    legacy: bool,
    isr: u8,
    device_feature_select: u32,
    driver_feature_select: u32,
    driver_features: u64,
    features_beyond: bool,
    queue_select: u16,
    queues: Vec<QueueRegisters>,
    config_vector: u16,
    queue_vectors: Vec<u16>,
    /// The queues were running.
    running: bool,
    /// A reset was pending: it is complete after restore, because nothing runs then.
    resetting: bool,
    /// The device's configuration space: what the driver has written to it, and what it has read of it.
    device_config: Vec<u8>,
    /// How often that has changed, as far as the driver knows.
    generation: Count,
}

/// The interface a register was written through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Interface {
    Modern,
    Legacy,
}

/// The device behind the registers.
pub(super) struct Core {
    pub(super) device: Arc<dyn VirtioDevice>,
    runner: Arc<dyn QueueRunner>,
    pub(super) interrupts: Arc<Interrupts>,
    doorbells: Placer,
    places: Arc<Places>,
    registers: Mutex<Registers>,
    /// Between DRIVER_OK and reset: only then do kicks go anywhere. (viona's kernel driver follows a null pointer on an
    /// early kick.)
    running: AtomicBool,
    this: Weak<Core>,
}

impl Core {
    pub(super) fn new(
        device: Arc<dyn VirtioDevice>,
        runner: Arc<dyn QueueRunner>,
        interrupts: Arc<Interrupts>,
        doorbells: Placer,
        places: Arc<Places>,
    ) -> Arc<Self> {
        Arc::new_cyclic(|this| {
            let registers = Mutex::new(Registers::new(&*device));
            let running = AtomicBool::new(false);
            Self { device, runner, interrupts, doorbells, places, registers, running, this: this.clone() }
        })
    }

    pub(super) fn registers(&self) -> MutexGuard<'_, Registers> {
        self.registers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn queue_count(&self) -> u16 {
        u16::try_from(self.device.queue_max_sizes().len()).unwrap_or(u16::MAX)
    }

    /// Features offered over `interface`.
    pub(super) fn offered(&self, interface: Interface) -> u64 {
        let rings = self.runner.ring_features() & OF_THE_RUNNER;
        let features = self.device.features() & !NOT_OF_THIS_TRANSPORT & !OF_THE_RUNNER | rings;
        match interface {
            Interface::Modern => features & !LEGACY_ONLY | VERSION_1,
            Interface::Legacy => features & LEGACY,
        }
    }

    /// Rings `queue`. Takes no lock.
    pub(super) fn kick(&self, queue: u16) {
        if self.running.load(SeqCst)
            && let Some(queue) = self.places.of_device(queue)
        {
            self.runner.kick(queue);
        }
    }

    /// Rings `queue` for a legacy driver. Linux before 3.18 reads the partition table while it probes, before it sets
    /// DRIVER_OK, and waits for ever where nobody answers; so the first kick of a queue that is set up starts the device.
    pub(super) fn kick_legacy(&self, queue: u16) {
        if !self.running.load(SeqCst) {
            self.change(|registers| {
                let started = status::FEATURES_OK | status::DRIVER_OK | status::FAILED;
                let early = self.interrupts.status() & (status::DRIVER | started) == status::DRIVER;
                let ready = registers.queues.get(usize::from(queue)).is_some_and(|queue| queue.enabled);
                if early && ready && !self.running.load(SeqCst) {
                    self.start(registers, true);
                }
            });
        }
        self.kick(queue);
    }

    /// Changes registers, unless a reset is under way: it is going to forget them all.
    pub(super) fn change(&self, edit: impl FnOnce(&mut Registers)) {
        let mut registers = self.registers();
        if registers.resetting.is_none() {
            edit(&mut registers);
        }
    }

    /// Changes the registers of the selected queue, where the driver may: after enabling it they are frozen, as are all
    /// queues after DRIVER_OK but those that were reset on their own. (Firecracker's CVE-2026-5747: they were not.)
    pub(super) fn change_queue(&self, edit: impl FnOnce(&mut QueueRegisters, u16)) {
        let maximum = |select: usize| self.device.queue_max_sizes().get(select).copied();
        self.change(|registers| {
            let select = usize::from(registers.queue_select);
            let queue = registers.queues.get_mut(select).zip(maximum(select));
            let running = self.running.load(SeqCst);
            let open = |queue: &QueueRegisters| {
                !queue.enabled && (!running || queue.reset == QueueReset::Done) || is_planted(Defect::RegistersStayOpen)
            };
            if let Some((queue, maximum)) = queue.filter(|(queue, _)| open(queue)) {
                edit(queue, maximum);
            }
        });
    }

    /// Word `select` of the driver's features.
    pub(super) fn write_features(&self, value: u32, interface: Interface) {
        self.change(|registers| {
            // Frozen with FEATURES_OK (§2.2.1) and, for legacy drivers, with the start.
            if self.interrupts.status() & status::FEATURES_OK != 0 || self.running.load(SeqCst) {
                return;
            }
            match (interface, registers.driver_feature_select) {
                (Interface::Legacy, _) => {
                    // There is no FEATURES_OK here: what was written last counts. The device is not told, because its
                    // configuration may not change by it (§5.2.5.3).
                    registers.driver_features = u64::from(value) & self.offered(Interface::Legacy);
                }
                (Interface::Modern, 0) => {
                    registers.driver_features = registers.driver_features & !0xffff_ffff | u64::from(value);
                }
                (Interface::Modern, 1) => {
                    registers.driver_features = registers.driver_features & 0xffff_ffff | u64::from(value) << 32;
                }
                (Interface::Modern, _) => registers.features_beyond |= value != 0,
            }
        });
    }

    /// Makes `pfn` the page of the selected queue (legacy, §4.1.5.1.3.1); 0 takes the queue away. The three rings lie
    /// as §2.7.2 lays them out, with the used ring on the next page border.
    pub(super) fn write_pfn(&self, pfn: u32) {
        let maximum = |select: usize| self.device.queue_max_sizes().get(select).copied().unwrap_or(0);
        self.change(|registers| {
            let select = usize::from(registers.queue_select);
            let Some(queue) = registers.queues.get_mut(select).filter(|_| !self.running.load(SeqCst)) else { return };
            if pfn == 0 {
                *queue = QueueRegisters::new(maximum(select));
            } else if queue.size != 0 && (!queue.enabled || queue.pfn != 0) {
                let size = u64::from(queue.size);
                let desc = u64::from(pfn) << 12;
                let avail = desc.wrapping_add(size.wrapping_mul(16));
                let used = avail.wrapping_add(size.wrapping_add(3).wrapping_mul(2)).next_multiple_of(4096);
                (queue.desc_table, queue.avail_ring, queue.used_ring) = (desc, avail, used);
                (queue.enabled, queue.pfn) = (true, pfn);
            }
        });
    }

    /// Accepts a queue size: a power of two for split rings, within the device's maximum; anything else is ignored.
    pub(super) fn write_queue_size(&self, size: u16) {
        let packed = self.registers().driver_features & F_RING_PACKED != 0;
        self.change_queue(|queue, maximum| {
            if size != 0 && size <= maximum && (packed || size.is_power_of_two()) {
                queue.size = size;
            }
        });
    }

    /// Enables the selected queue. Nothing disables it but a reset. One that was reset on its own starts at once.
    pub(super) fn enable_queue(&self, value: u16) {
        let ready = self.interrupts.status() & status::FEATURES_OK != 0;
        let mut enabled = false;
        self.change_queue(|queue, _| {
            queue.enabled = value == 1 && ready && queue.size != 0;
            enabled = queue.enabled;
        });
        if enabled {
            self.restart_queues();
        }
    }

    /// Starts the queues that were reset and are enabled again.
    fn restart_queues(&self) {
        self.change(|registers| {
            if !self.running.load(SeqCst) {
                return;
            }
            let features = registers.driver_features;
            for (index, queue) in (0u16..=u16::MAX).zip(&mut registers.queues) {
                if queue.enabled && queue.reset == QueueReset::Done {
                    queue.reset = QueueReset::None;
                    let Some(place) = self.places.of_device(index) else { continue };
                    self.runner.start_queue(place, queue.start_state(features));
                    self.doorbells.start(Ringing::Modern, std::iter::once(index));
                }
            }
        });
    }

    /// Resets the selected queue, where the driver negotiated that it may (virtio 1.3 §2.6.1, §4.1.4.3.1). The register
    /// reads 1 until no engine can touch guest memory on the queue's behalf; the access itself waits for nothing.
    pub(super) fn reset_queue(&self, value: u16) {
        let mut registers = self.registers();
        let negotiated = self.interrupts.status() & status::FEATURES_OK != 0
            && registers.driver_features & self.offered(Interface::Modern) & F_RING_RESET != 0;
        if value != 1 || !negotiated || registers.resetting.is_some() {
            return;
        }
        let (index, life) = (registers.queue_select, registers.life);
        let enabled = |queue: &&mut QueueRegisters| queue.enabled && queue.reset != QueueReset::Pending;
        let Some(queue) = registers.queues.get_mut(usize::from(index)).filter(enabled) else { return };
        if !self.running.load(SeqCst) {
            self.forget_queue(queue, index, QueueReset::None);
            return;
        }
        let Some(place) = self.places.of_device(index) else {
            self.forget_queue(queue, index, QueueReset::Done);
            return;
        };
        queue.reset = QueueReset::Pending;
        self.doorbells.stop_queue(index);
        let stopped = Parked::new();
        self.runner.reset_queue(place, stopped.clone());
        drop(registers);
        // Registered outside the lock: it fires at once where the queue has stopped already.
        stopped.wake_on_complete(Arc::new(QueueStopped { core: self.this.clone(), index, life }));
    }

    fn finish_queue_reset(&self, index: u16, life: u64) {
        let mut registers = self.registers();
        if registers.life != life || registers.resetting.is_some() {
            return;
        }
        let pending = |queue: &&mut QueueRegisters| queue.reset == QueueReset::Pending;
        if let Some(queue) = registers.queues.get_mut(usize::from(index)).filter(pending) {
            self.forget_queue(queue, index, QueueReset::Done);
        }
    }

    /// What the driver wrote about one queue is gone.
    fn forget_queue(&self, queue: &mut QueueRegisters, index: u16, reset: QueueReset) {
        let maximum = self.device.queue_max_sizes().get(usize::from(index)).copied().unwrap_or_default();
        *queue = QueueRegisters { reset, ..QueueRegisters::new(maximum) };
        self.interrupts.set_queue_vector(index, NO_VECTOR);
    }

    /// Writes the device status. Bits are only ever added, each after the one it depends on; 0 resets.
    pub(super) fn write_status(&self, value: u8, interface: Interface) -> Access {
        if value == 0 {
            return self.reset();
        }
        let mut registers = self.registers();
        let old = self.interrupts.status();
        if registers.resetting.is_some() {
            return Access::Done;
        }
        let mut new = old;
        let add = |bit: u8, allowed: bool, now: &mut u8| {
            if value & bit != 0 && allowed {
                *now |= bit;
            }
        };
        add(status::ACKNOWLEDGE, true, &mut new);
        add(status::DRIVER, new & status::ACKNOWLEDGE != 0, &mut new);
        let modern = interface == Interface::Modern;
        // A driver that started as a legacy one never negotiates again before reset.
        let negotiable = modern && new & status::DRIVER != 0 && !self.running.load(SeqCst);
        add(status::FEATURES_OK, negotiable && self.acceptable(&registers), &mut new);
        add(status::FAILED, true, &mut new);
        let negotiated = new & status::FEATURES_OK != 0 || !modern || is_planted(Defect::StatusUnchecked);
        let startable = new & status::DRIVER != 0 && negotiated && new & status::FAILED == 0;
        add(status::DRIVER_OK, startable, &mut new);
        if new & !old & status::FEATURES_OK != 0 {
            self.device.features_accepted(registers.driver_features);
        }
        self.interrupts.add_status(new);
        if new & !old & status::DRIVER_OK != 0 && !self.running.load(SeqCst) {
            self.start(&mut registers, new & status::FEATURES_OK == 0);
        }
        Access::Done
    }

    /// Whether FEATURES_OK may be set: nothing accepted that was not offered, and a modern driver is one (§6.1).
    fn acceptable(&self, registers: &Registers) -> bool {
        !registers.features_beyond
            && registers.driver_features & !self.offered(Interface::Modern) == 0
            && registers.driver_features & VERSION_1 != 0
    }

    /// Starts the enabled queues, with the registers locked: a reset on another vCPU comes before or after, never
    /// between.
    fn start(&self, registers: &mut Registers, legacy: bool) {
        let interface = if legacy { Interface::Legacy } else { Interface::Modern };
        // The modern register takes what nobody has offered, until FEATURES_OK; a driver that starts the legacy way
        // never asks for that. What stayed would make a saved state that no device takes back.
        registers.driver_features &= self.offered(interface);
        let features = registers.driver_features;
        let enabled = (0u16..=u16::MAX).zip(&registers.queues).filter(|(_, queue)| queue.enabled);
        let queues = enabled
            .filter_map(|(index, queue)| Some((self.device.queue_of(index, features)?, queue.start_state(features))));
        self.start_queues(features, legacy, queues.collect());
    }

    fn start_queues(&self, features: u64, legacy: bool, queues: Vec<(u16, QueueState)>) {
        self.interrupts.set_legacy(legacy);
        self.places.settle(&*self.device, features);
        let running: Vec<u16> = queues.iter().filter_map(|(index, _)| self.places.of_driver(*index)).collect();
        self.running.store(true, SeqCst);
        self.runner.start(Activation { features, legacy, queues, interrupt: self.interrupts.clone() });
        let ringing = if legacy { Ringing::Legacy } else { Ringing::Modern };
        self.doorbells.start(ringing, running.into_iter());
    }

    /// Resets the device: at once where nothing runs, else as soon as no engine can touch guest memory any more. Every
    /// access that asks meanwhile waits for the same reset.
    pub(super) fn reset(&self) -> Access {
        let mut registers = self.registers();
        let waiting = Parked::new();
        if let Some(waiters) = &mut registers.resetting {
            waiters.push(waiting.clone());
            return Access::Parked(waiting);
        }
        if !self.running.swap(false, SeqCst) {
            self.forget(&mut registers);
            return Access::Done;
        }
        registers.resetting = Some(vec![waiting.clone()]);
        self.doorbells.stop();
        let stopped = Parked::new();
        self.runner.reset(stopped.clone());
        drop(registers);
        // Registered outside the lock: it fires at once where the queues have stopped already.
        stopped.wake_on_complete(Arc::new(Stopped(self.this.clone())));
        if is_planted(Defect::ResetDoesNotWait) {
            self.finish_reset();
        }
        if waiting.is_complete() { Access::Done } else { Access::Parked(waiting) }
    }

    /// What the driver wrote is gone, for the transport and for the device.
    fn forget(&self, registers: &mut Registers) {
        let life = registers.life.wrapping_add(1);
        *registers = Registers { life, ..Registers::new(&*self.device) };
        self.interrupts.reset();
        self.device.features_accepted(0);
    }

    fn finish_reset(&self) {
        let mut registers = self.registers();
        let Some(waiters) = registers.resetting.take() else { return };
        self.forget(&mut registers);
        drop(registers);
        for waiter in waiters {
            waiter.complete();
        }
    }

    pub(super) fn save(&self) -> TransportState {
        let registers = self.registers();
        let interrupts = &self.interrupts;
        TransportState {
            version: 2,
            status: interrupts.status(),
            legacy: interrupts.legacy(),
            isr: interrupts.isr(),
            device_feature_select: registers.device_feature_select,
            driver_feature_select: registers.driver_feature_select,
            driver_features: registers.driver_features,
            features_beyond: registers.features_beyond,
            queue_select: registers.queue_select,
            queues: registers.queues.clone(),
            config_vector: interrupts.config_vector(),
            queue_vectors: (0..self.queue_count()).map(|queue| interrupts.queue_vector(queue)).collect(),
            running: self.running.load(SeqCst),
            resetting: registers.resetting.is_some(),
            device_config: self.device_config(),
            generation: self.device.generation().map(Generation::save).unwrap_or_default(),
        }
    }

    fn device_config(&self) -> Vec<u8> {
        let mut bytes = vec![0; self.device.config_len() as usize];
        self.device.read_config(0, &mut bytes);
        bytes
    }

    /// Whether [`restore`](Self::restore) takes this state with these queues.
    pub(super) fn check(&self, state: &TransportState, queues: &[(u16, QueueState)]) -> Result<(), StateError> {
        let refuse = |why| Err(StateError { what: "a virtio transport", why });
        let maximum = self.device.queue_max_sizes();
        if state.version != 2 {
            return refuse("its version is not 2");
        }
        if state.queues.len() != maximum.len() || state.queue_vectors.len() != maximum.len() {
            panic_if_planted(Defect::StateTrusted);
            return refuse("the number of queues differs");
        }
        if state.queues.iter().zip(maximum).any(|(queue, maximum)| queue.size > *maximum) {
            return refuse("a queue is larger than the device has it");
        }
        if state.device_config.len() != self.device.config_len() as usize {
            return refuse("the configuration space has another length");
        }
        let registers = self.registers();
        if self.running.load(SeqCst) || registers.resetting.is_some() {
            return refuse("the device is running");
        }
        if state.resetting {
            return Ok(());
        }
        let interface = if state.legacy { Interface::Legacy } else { Interface::Modern };
        if state.running && state.driver_features & !self.offered(interface) != 0 {
            return refuse("the driver accepted features this device does not offer");
        }
        let enabled = |index: u16| {
            let index = index_of(&*self.device, index, state.driver_features)?;
            state.queues.get(usize::from(index)).filter(|registers| registers.enabled)
        };
        if queues.iter().any(|(index, queue)| enabled(*index).is_none_or(|registers| queue.size > registers.size)) {
            return refuse("a running queue was not enabled");
        }
        Ok(())
    }

    /// Takes back a saved state, with nothing running, and starts the queues of a running driver from `queues`. Nothing has
    /// changed where it is refused.
    pub(super) fn restore(&self, state: &TransportState, queues: &[(u16, QueueState)]) -> Result<(), StateError> {
        self.check(state, queues)?;
        let mut registers = self.registers();
        if state.resetting {
            *registers = Registers::new(&*self.device);
            self.interrupts.reset();
            self.restore_generation(state);
            return Ok(());
        }
        let interface = if state.legacy { Interface::Legacy } else { Interface::Modern };
        let offered = self.offered(interface);
        let written = self.device.driver_config();
        let bytes = state.device_config.get(written.start as usize..written.end as usize).unwrap_or_default();
        self.device.write_config(written.start, bytes);
        registers.device_feature_select = state.device_feature_select;
        registers.driver_feature_select = state.driver_feature_select;
        registers.driver_features = state.driver_features;
        registers.features_beyond = state.features_beyond;
        registers.queue_select = state.queue_select;
        registers.queues.clone_from(&state.queues);
        let TransportState { status, legacy, isr, config_vector, queue_vectors, .. } = state;
        self.interrupts.restore(*status, *legacy, *isr, *config_vector, queue_vectors);
        for (index, queue) in (0u16..=u16::MAX).zip(&mut registers.queues) {
            match queue.reset {
                // Complete: nothing runs.
                QueueReset::Pending => self.forget_queue(queue, index, QueueReset::Done),
                QueueReset::Done if queue.enabled => queue.reset = QueueReset::None,
                QueueReset::Done | QueueReset::None => {}
            }
        }
        let changed = self.restore_generation(state);
        if state.running {
            self.start_queues(state.driver_features & offered, *legacy, queues.to_vec());
        }
        if changed {
            self.interrupts.config_changed();
        }
        Ok(())
    }

    /// Has the device count on from what the driver saw last. Says whether its configuration space looks different from
    /// what was saved: a disk that has another size by now.
    fn restore_generation(&self, state: &TransportState) -> bool {
        let changed = self.device_config() != state.device_config;
        if let Some(generation) = self.device.generation() {
            generation.restore(state.generation, changed);
        }
        changed
    }
}

impl Registers {
    /// As after reset.
    fn new(device: &dyn VirtioDevice) -> Self {
        Self {
            device_feature_select: 0,
            driver_feature_select: 0,
            driver_features: 0,
            features_beyond: false,
            queue_select: 0,
            queues: device.queue_max_sizes().iter().map(|size| QueueRegisters::new(*size)).collect(),
            resetting: None,
            life: 0,
        }
    }

    /// The selected queue; `None` where the driver selected one that does not exist.
    pub(super) fn selected(&self) -> Option<&QueueRegisters> {
        self.queues.get(usize::from(self.queue_select))
    }
}

impl BarListener for Core {
    fn bar_placed(&self, index: u8, at: Option<u64>) {
        self.doorbells.bar_placed(index, at);
    }
}

/// Finishes a reset when the queues have stopped.
struct Stopped(Weak<Core>);

impl Wake for Stopped {
    fn wake(&self) {
        if let Some(core) = self.0.upgrade() {
            core.finish_reset();
        }
    }
}

/// Finishes a queue's own reset when the queue has stopped.
struct QueueStopped {
    core: Weak<Core>,
    index: u16,
    life: u64,
}

impl Wake for QueueStopped {
    fn wake(&self) {
        if let Some(core) = self.core.upgrade() {
            core.finish_queue_reset(self.index, self.life);
        }
    }
}
