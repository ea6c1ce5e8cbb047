//! Which of a device's queues a driver means by an index (virtio 1.3 §5.1.2): for most devices the one of that index.
//!
//! The registers, notifications and vectors of a queue are the driver's and go by its index; workers, doorbells' watchers
//! and saved queue states go by the device's. What the driver means depends on its features, so it is settled when the
//! queues start.

use std::sync::atomic::{AtomicU16, Ordering::Relaxed};

use crate::virtio::VirtioDevice;

const NONE: u16 = u16::MAX;

/// The indices of one running driver, both ways. They are written before the queues start, while nobody reads them.
#[derive(Debug)]
pub(super) struct Places {
    of_driver: Box<[AtomicU16]>,
    of_device: Box<[AtomicU16]>,
}

impl Places {
    /// Of a device with so many queues whose driver means the queue of that index.
    pub(super) fn new(queues: usize) -> Self {
        let same = || (0u16..=u16::MAX).take(queues).map(AtomicU16::new).collect();
        Self { of_driver: same(), of_device: same() }
    }

    /// A driver with these features begins.
    pub(super) fn settle(&self, device: &dyn VirtioDevice, features: u64) {
        self.of_device.iter().for_each(|driver| driver.store(NONE, Relaxed));
        for (index, place) in (0u16..=u16::MAX).zip(&self.of_driver) {
            let meant = device.queue_of(index, features);
            place.store(meant.unwrap_or(NONE), Relaxed);
            if let Some(driver) = meant.and_then(|meant| self.of_device.get(usize::from(meant))) {
                driver.store(index, Relaxed);
            }
        }
    }

    /// The device's queue behind the driver's queue `index`, where there is one.
    pub(super) fn of_device(&self, index: u16) -> Option<u16> {
        found(&self.of_driver, index)
    }

    /// What the driver calls the device's queue `index`, where it knows it.
    pub(super) fn of_driver(&self, index: u16) -> Option<u16> {
        found(&self.of_device, index)
    }
}

fn found(places: &[AtomicU16], index: u16) -> Option<u16> {
    places.get(usize::from(index)).map(|place| place.load(Relaxed)).filter(|place| *place != NONE)
}

/// What a driver with these features calls the device's queue `index`, where it knows it.
pub(super) fn index_of(device: &dyn VirtioDevice, index: u16, features: u64) -> Option<u16> {
    let queues = u16::try_from(device.queue_max_sizes().len()).unwrap_or(u16::MAX);
    (0..queues).find(|driver| device.queue_of(*driver, features) == Some(index))
}
