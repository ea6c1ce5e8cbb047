//! An interrupt that remembers.

use std::sync::{Arc, Mutex};

use crate::virtio::{NeedsReset, VirtioInterrupt, WorkerActivation};

/// Records what a device told its driver.
#[derive(Debug, Default)]
pub struct RecordingInterrupt(Mutex<Record>);

#[derive(Debug, Default)]
struct Record {
    used: Vec<u16>,
    config_changes: usize,
    needs_reset: Vec<NeedsReset>,
}

impl RecordingInterrupt {
    /// An interrupt nobody has used yet.
    pub fn new() -> Arc<Self> {
        Arc::default()
    }

    /// What a worker is started with: `features`, and this interrupt. Without `VIRTIO_F_VERSION_1` the driver is a
    /// legacy one (virtio 1.3 §6.1).
    pub fn activation(self: &Arc<Self>, features: u64) -> WorkerActivation {
        WorkerActivation { features, legacy: features & super::driver::F_VERSION_1 == 0, interrupt: self.clone() }
    }

    /// Queues interrupted since the last call, in order.
    pub fn take_used(&self) -> Vec<u16> {
        std::mem::take(&mut self.0.lock().unwrap().used)
    }

    /// Configuration changes since the last call.
    pub fn take_config_changes(&self) -> usize {
        std::mem::take(&mut self.0.lock().unwrap().config_changes)
    }

    /// Resets asked for since the last call.
    pub fn take_needs_reset(&self) -> Vec<NeedsReset> {
        std::mem::take(&mut self.0.lock().unwrap().needs_reset)
    }
}

impl VirtioInterrupt for RecordingInterrupt {
    fn queue_used(&self, queue: u16) {
        self.0.lock().unwrap().used.push(queue);
    }

    fn config_changed(&self) {
        self.0.lock().unwrap().config_changes += 1;
    }

    fn needs_reset(&self, why: &NeedsReset) {
        self.0.lock().unwrap().needs_reset.push(why.clone());
    }
}
