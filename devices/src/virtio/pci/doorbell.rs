//! Where drivers ring: the addresses a hypervisor may watch in our stead.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::layout;
use super::places::Places;
use crate::planted::{Defect, is_planted};

/// The address a driver writes to when a queue has new buffers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Doorbell {
    /// A write of any value to guest-physical `address` (virtio 1.3 §4.1.4.4).
    Mmio {
        /// First byte.
        address: u64,
        /// Width of the driver's write in bytes: 2, the queue index.
        len: u8,
    },
    /// A 16-bit write of `datamatch` to `port` (legacy, virtio 1.3 §4.1.4.10).
    Pio {
        /// The queue notify port, shared by all queues.
        port: u16,
        /// The queue index.
        datamatch: u16,
    },
}

/// Watches doorbells: an ioeventfd, or a kernel's own notify hook. What it does not take arrives as a bus write, so an
/// implementation may refuse silently.
pub trait Doorbells: Send + Sync {
    /// The doorbell of the device's queue `queue` is at `at` now, or nowhere. Called only on changes, and only between DRIVER_OK and reset
    /// with an address; one call replaces the doorbell before it. Called on vCPU threads; never blocks.
    fn place(&self, queue: u16, at: Option<Doorbell>);
}

/// Leaves every doorbell to the bus.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoDoorbells;

impl Doorbells for NoDoorbells {
    fn place(&self, _queue: u16, _at: Option<Doorbell>) {}
}

/// Which doorbell the running driver uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ringing {
    Modern,
    Legacy,
}

#[derive(Default)]
struct Placement {
    notify: Option<u64>,
    ports: Option<u64>,
    ringing: Option<Ringing>,
    /// By queue: whether it runs, and what the watcher was told last.
    queues: Vec<(bool, Option<Doorbell>)>,
}

/// Keeps the watcher in line with BARs and driver. Its lock is taken last and calls only the watcher under it.
pub(super) struct Placer {
    watcher: Arc<dyn Doorbells>,
    places: Arc<Places>,
    placement: Mutex<Placement>,
}

impl Placer {
    pub(super) fn new(watcher: Arc<dyn Doorbells>, queues: usize, places: Arc<Places>) -> Self {
        let placement = Placement { queues: vec![(false, None); queues], ..Default::default() };
        Self { watcher, places, placement: Mutex::new(placement) }
    }

    /// A BAR has moved.
    pub(super) fn bar_placed(&self, bar: u8, at: Option<u64>) {
        if is_planted(Defect::DoorbellsStay) && self.lock().ringing.is_some() {
            return;
        }
        let mut placement = self.lock();
        match bar {
            layout::MODERN_BAR => placement.notify = at.and_then(|at| at.checked_add(layout::NOTIFY)),
            layout::LEGACY_BAR => placement.ports = at,
            _ => return,
        }
        self.update(&mut placement);
    }

    /// The queues in `running` have started.
    pub(super) fn start(&self, ringing: Ringing, running: impl Iterator<Item = u16>) {
        let mut placement = self.lock();
        placement.ringing = Some(ringing);
        for queue in running {
            if let Some(entry) = placement.queues.get_mut(usize::from(queue)) {
                entry.0 = true;
            }
        }
        self.update(&mut placement);
    }

    /// `queue` has stopped.
    pub(super) fn stop_queue(&self, queue: u16) {
        let mut placement = self.lock();
        if let Some(entry) = placement.queues.get_mut(usize::from(queue)) {
            entry.0 = false;
        }
        self.update(&mut placement);
    }

    /// All queues have stopped.
    pub(super) fn stop(&self) {
        let mut placement = self.lock();
        placement.ringing = None;
        for entry in &mut placement.queues {
            entry.0 = false;
        }
        self.update(&mut placement);
    }

    fn update(&self, placement: &mut Placement) {
        let Placement { notify, ports, ringing, queues } = placement;
        for (queue, (running, placed)) in (0u16..=u16::MAX).zip(queues) {
            let wanted = match ringing.filter(|_| *running) {
                None => None,
                Some(Ringing::Modern) => notify.and_then(|notify| {
                    let offset = u64::from(queue).checked_mul(layout::NOTIFY_MULTIPLIER)?;
                    Some(Doorbell::Mmio { address: notify.checked_add(offset)?, len: 2 })
                }),
                Some(Ringing::Legacy) => ports.and_then(|ports| {
                    let port = u16::try_from(ports.checked_add(super::legacy::QUEUE_NOTIFY)?).ok()?;
                    Some(Doorbell::Pio { port, datamatch: queue })
                }),
            };
            if *placed != wanted {
                *placed = wanted;
                if let Some(place) = self.places.of_device(queue) {
                    self.watcher.place(place, wanted);
                }
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Placement> {
        self.placement.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
