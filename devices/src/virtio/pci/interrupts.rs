//! How workers interrupt the guest: atomics only, unless the driver fell back to INTx.

use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU16, AtomicU32, Ordering::SeqCst};
use std::sync::{Arc, Mutex, PoisonError};

use super::messages::{Messages, QueueMessages};
use super::places::Places;
use crate::interrupt::IrqLine;
use crate::pci::Msix;
use crate::planted::{Defect, panic_if_planted};
use crate::virtio::{NeedsReset, VirtioInterrupt};

/// The vector that stands for "none" (virtio 1.3 §4.1.4.3).
pub(super) const NO_VECTOR: u16 = 0xffff;

const ISR_QUEUE: u8 = 1 << 0;
const ISR_CONFIG: u8 = 1 << 1;

/// Device status bits (virtio 1.3 §2.1).
pub(super) mod status {
    pub(in super::super) const ACKNOWLEDGE: u8 = 1;
    pub(in super::super) const DRIVER: u8 = 2;
    pub(in super::super) const DRIVER_OK: u8 = 4;
    pub(in super::super) const FEATURES_OK: u8 = 8;
    pub(in super::super) const NEEDS_RESET: u8 = 64;
    pub(in super::super) const FAILED: u8 = 128;
}

/// The interrupt half of a transport, shared with its workers.
pub(super) struct Interrupts {
    name: String,
    msix: Arc<Msix>,
    line: Arc<dyn IrqLine>,
    /// The level the line was given last; also orders changes of everything the level follows from.
    level: Mutex<bool>,
    isr: AtomicU8,
    status: AtomicU8,
    legacy: AtomicBool,
    intx_disabled: AtomicBool,
    config_vector: AtomicU16,
    queue_vectors: Box<[AtomicU16]>,
    places: Arc<Places>,
    /// Whoever sends interrupts of queues itself.
    messages: Option<Messages>,
    /// Rings broken since the start.
    broken: AtomicU32,
}

impl Interrupts {
    pub(super) fn new(
        name: &str,
        msix: Arc<Msix>,
        line: Arc<dyn IrqLine>,
        queues: usize,
        places: Arc<Places>,
        messages: Option<Arc<dyn QueueMessages>>,
    ) -> Self {
        Self {
            name: name.to_owned(),
            msix,
            line,
            level: Mutex::new(false),
            isr: AtomicU8::new(0),
            status: AtomicU8::new(0),
            legacy: AtomicBool::new(false),
            intx_disabled: AtomicBool::new(false),
            config_vector: AtomicU16::new(NO_VECTOR),
            queue_vectors: std::iter::repeat_with(|| AtomicU16::new(NO_VECTOR)).take(queues).collect(),
            places,
            messages: messages.map(|watcher| Messages::new(watcher, queues)),
            broken: AtomicU32::new(0),
        }
    }

    pub(super) fn msix_enabled(&self) -> bool {
        self.msix.enabled()
    }

    pub(super) fn status(&self) -> u8 {
        self.status.load(SeqCst)
    }

    /// Adds status bits; a worker may add NEEDS_RESET meanwhile.
    pub(super) fn add_status(&self, bits: u8) {
        self.status.fetch_or(bits, SeqCst);
    }

    /// Which interface the running driver uses.
    pub(super) fn set_legacy(&self, legacy: bool) {
        self.legacy.store(legacy, SeqCst);
    }

    pub(super) fn legacy(&self) -> bool {
        self.legacy.load(SeqCst)
    }

    /// What a driver reads from the ISR status: reading clears it and lets go of the line (§4.1.4.5).
    pub(super) fn take_isr(&self) -> u8 {
        let isr = self.isr.swap(0, SeqCst);
        if isr != 0 {
            self.update_line();
        }
        isr
    }

    /// The ISR status without the side effect: for the PCI status register and for saving.
    pub(super) fn isr(&self) -> u8 {
        self.isr.load(SeqCst)
    }

    /// The command register's INTx disable bit.
    pub(super) fn set_intx_disabled(&self, disabled: bool) {
        if self.intx_disabled.swap(disabled, SeqCst) != disabled {
            self.update_line();
        }
    }

    pub(super) fn config_vector(&self) -> u16 {
        self.config_vector.load(SeqCst)
    }

    pub(super) fn set_config_vector(&self, vector: u16) {
        self.config_vector.store(self.mapped(vector), SeqCst);
    }

    /// The vector of `queue`; none for a queue that does not exist.
    pub(super) fn queue_vector(&self, queue: u16) -> u16 {
        self.queue_vectors.get(usize::from(queue)).map_or(NO_VECTOR, |vector| vector.load(SeqCst))
    }

    pub(super) fn set_queue_vector(&self, queue: u16, vector: u16) {
        if let Some(slot) = self.queue_vectors.get(usize::from(queue)) {
            slot.store(self.mapped(vector), SeqCst);
            self.update_messages();
        } else {
            panic_if_planted(Defect::QueueSelectUnchecked);
        }
    }

    /// A vector that does not exist cannot be mapped: the driver reads back "none" (§4.1.5.1.2.1).
    fn mapped(&self, vector: u16) -> u16 {
        if usize::from(vector) < self.msix.len() { vector } else { NO_VECTOR }
    }

    /// Device reset: no status, no vector, no interrupt.
    pub(super) fn reset(&self) {
        self.status.store(0, SeqCst);
        self.legacy.store(false, SeqCst);
        self.config_vector.store(NO_VECTOR, SeqCst);
        for vector in &self.queue_vectors {
            vector.store(NO_VECTOR, SeqCst);
        }
        self.update_messages();
        self.isr.store(0, SeqCst);
        self.update_line();
    }

    /// Takes back saved registers.
    pub(super) fn restore(&self, status: u8, legacy: bool, isr: u8, config_vector: u16, queue_vectors: &[u16]) {
        self.status.store(status, SeqCst);
        self.legacy.store(legacy, SeqCst);
        self.set_config_vector(config_vector);
        for (slot, vector) in self.queue_vectors.iter().zip(queue_vectors) {
            slot.store(self.mapped(*vector), SeqCst);
        }
        self.update_messages();
        self.isr.store(isr & (ISR_QUEUE | ISR_CONFIG), SeqCst);
        self.update_line();
    }

    /// Brings the line in line with ISR, INTx disable and MSI-X enable. Whoever changes one of them calls this after.
    pub(super) fn update_line(&self) {
        let mut level = self.level.lock().unwrap_or_else(PoisonError::into_inner);
        let asserted = self.isr() != 0 && !self.intx_disabled.load(SeqCst) && !self.msix.enabled();
        if *level != asserted {
            *level = asserted;
            self.line.set(asserted);
        }
    }

    /// Tells whoever sends interrupts of queues itself what they are now. Whoever changes a vector or the MSI-X table calls
    /// this after.
    pub(super) fn update_messages(&self) {
        if let Some(messages) = &self.messages {
            messages.update(|queue| self.msix.message(self.queue_vector(queue)));
        }
    }

    fn raise(&self, bit: u8) {
        if self.isr.fetch_or(bit, SeqCst) & bit == 0 {
            self.update_line();
        }
    }
}

impl VirtioInterrupt for Interrupts {
    fn queue_used(&self, queue: u16) {
        if self.msix.enabled() {
            // "None" is 0xffff, which MSI-X never has.
            self.msix.trigger(self.places.of_driver(queue).map_or(NO_VECTOR, |index| self.queue_vector(index)));
        } else {
            self.raise(ISR_QUEUE);
        }
    }

    fn config_changed(&self) {
        // No notification before DRIVER_OK (§2.1.2).
        if self.status() & status::DRIVER_OK == 0 {
            return;
        }
        // The ISR bit is set with MSI-X, too (§4.1.4.5.1).
        self.raise(ISR_CONFIG);
        if self.msix.enabled() {
            self.msix.trigger(self.config_vector());
        }
    }

    fn needs_reset(&self, why: &NeedsReset) {
        let count = self.broken.fetch_add(1, SeqCst).wrapping_add(1);
        // A guest can break a ring as often as it likes: 1, 2, 4, 8 … are enough for the log.
        if count.is_power_of_two() {
            log::warn!(
                "{}: queue {} is stopped until the driver resets the device: {} (time {count})",
                self.name,
                self.places.of_driver(why.queue).unwrap_or(why.queue),
                why.reason
            );
        }
        if self.legacy() {
            return;
        }
        self.add_status(status::NEEDS_RESET);
        self.config_changed();
    }
}
