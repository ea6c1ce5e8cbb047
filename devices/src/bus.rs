//! Port and memory-mapped dispatch.
//!
//! Guests move BARs while they run, so the map changes under the vCPUs. A lookup may not take a lock: every vCPU keeps
//! its own [`BusView`] of an immutable map and refreshes it only when the bus's generation has changed.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use crate::park::Parked;

/// How a bus access ended.
#[derive(Debug)]
pub enum Access {
    /// Finished: read data is in place, the write has taken effect.
    Done,
    /// A write that is accepted and takes effect later: the vCPU must not enter the guest before the token completes.
    Parked(Parked),
}

/// A device on a port or memory bus. Accesses arrive from any vCPU thread; `offset` is relative to the start of the
/// range the device was inserted at, and an access never crosses its end. Widths are 1, 2, 4 or 8 bytes.
pub trait BusDevice: Send + Sync {
    /// Fills `data`; what the device does not define reads as all ones.
    fn read(&self, offset: u64, data: &mut [u8]) -> Access;

    /// Takes `data`; what the device does not define is ignored.
    fn write(&self, offset: u64, data: &[u8]) -> Access;
}

/// Why a range cannot be put on a bus.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum BusError {
    /// The range is empty or wraps around.
    #[error("bus range {start:#x}+{len:#x} is empty or wraps")]
    BadRange {
        /// First address.
        start: u64,
        /// Length in bytes.
        len: u64,
    },
    /// Another device is there.
    #[error("bus range {start:#x}+{len:#x} overlaps the device at {other:#x}")]
    Overlap {
        /// First address.
        start: u64,
        /// Length in bytes.
        len: u64,
        /// Start of the range that is in the way.
        other: u64,
    },
}

struct Range {
    start: u64,
    /// Last address, inclusive, so that a range may end at the top of the address space.
    last: u64,
    device: Arc<dyn BusDevice>,
}

/// An address space with devices in it.
#[derive(Default)]
pub struct Bus {
    /// Sorted by start, without overlaps.
    ranges: Mutex<Arc<Vec<Range>>>,
    generation: AtomicU64,
}

impl Bus {
    /// An empty bus.
    pub fn new() -> Self {
        Self::default()
    }

    /// Puts `device` at `start`, `len` bytes long.
    pub fn insert(&self, start: u64, len: u64, device: Arc<dyn BusDevice>) -> Result<(), BusError> {
        let last =
            len.checked_sub(1).and_then(|extent| start.checked_add(extent)).ok_or(BusError::BadRange { start, len })?;
        self.change(|ranges| {
            if let Some(other) = ranges.iter().find(|range| range.start <= last && start <= range.last) {
                return Err(BusError::Overlap { start, len, other: other.start });
            }
            let at = ranges.partition_point(|range| range.start < start);
            ranges.insert(at, Range { start, last, device });
            Ok(())
        })
    }

    /// Takes away the range that starts at `start`; `false` where there is none.
    pub fn remove(&self, start: u64) -> bool {
        self.change(|ranges| {
            let before = ranges.len();
            ranges.retain(|range| range.start != start);
            ranges.len() != before
        })
    }

    fn change<R>(&self, edit: impl FnOnce(&mut Vec<Range>) -> R) -> R {
        let mut current = self.ranges.lock().unwrap_or_else(PoisonError::into_inner);
        let mut next: Vec<Range> = current
            .iter()
            .map(|range| Range { start: range.start, last: range.last, device: range.device.clone() })
            .collect();
        let result = edit(&mut next);
        *current = Arc::new(next);
        self.generation.fetch_add(1, Ordering::Release);
        result
    }
}

/// One thread's view of a [`Bus`]: lookups take no lock while the map stands still.
pub struct BusView {
    bus: Arc<Bus>,
    ranges: Arc<Vec<Range>>,
    generation: u64,
}

impl BusView {
    /// A view of `bus` as it is now.
    pub fn new(bus: Arc<Bus>) -> Self {
        let mut view = Self { bus, ranges: Arc::default(), generation: u64::MAX };
        view.refresh();
        view
    }

    /// Reads at `address`; unclaimed addresses, and accesses that cross a device's end, read as all ones.
    pub fn read(&mut self, address: u64, data: &mut [u8]) -> Access {
        match self.find(address, data.len()) {
            Some((device, offset)) => device.read(offset, data),
            None => {
                data.fill(0xff);
                Access::Done
            }
        }
    }

    /// Writes at `address`; unclaimed writes are dropped.
    pub fn write(&mut self, address: u64, data: &[u8]) -> Access {
        match self.find(address, data.len()) {
            Some((device, offset)) => device.write(offset, data),
            None => Access::Done,
        }
    }

    fn find(&mut self, address: u64, len: usize) -> Option<(&dyn BusDevice, u64)> {
        if self.bus.generation.load(Ordering::Acquire) != self.generation {
            self.refresh();
        }
        let last = address.checked_add(u64::try_from(len).ok()?.checked_sub(1)?)?;
        let after = self.ranges.partition_point(|range| range.start <= address);
        let range = self.ranges.get(after.checked_sub(1)?)?;
        (last <= range.last).then(|| (&*range.device, address.wrapping_sub(range.start)))
    }

    fn refresh(&mut self) {
        let current = self.bus.ranges.lock().unwrap_or_else(PoisonError::into_inner);
        self.generation = self.bus.generation.load(Ordering::Acquire);
        self.ranges = current.clone();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Echo(u8);

    impl BusDevice for Echo {
        fn read(&self, offset: u64, data: &mut [u8]) -> Access {
            data.fill(self.0.wrapping_add(offset as u8));
            Access::Done
        }
        fn write(&self, _offset: u64, _data: &[u8]) -> Access {
            Access::Done
        }
    }

    fn read(view: &mut BusView, address: u64, len: usize) -> Vec<u8> {
        let mut data = vec![0; len];
        assert!(matches!(view.read(address, &mut data), Access::Done));
        data
    }

    #[test]
    fn an_access_reaches_the_device_that_covers_it_with_a_relative_offset() {
        let bus = Arc::new(Bus::new());
        bus.insert(0x100, 8, Arc::new(Echo(0x10))).unwrap();
        bus.insert(0x108, 8, Arc::new(Echo(0x80))).unwrap();
        let mut view = BusView::new(bus);
        assert_eq!(read(&mut view, 0x103, 1), [0x13]);
        assert_eq!(read(&mut view, 0x10c, 4), [0x84; 4]);
    }

    #[test]
    fn unclaimed_and_straddling_accesses_read_all_ones() {
        let bus = Arc::new(Bus::new());
        bus.insert(0x100, 8, Arc::new(Echo(0))).unwrap();
        let mut view = BusView::new(bus);
        assert_eq!(read(&mut view, 0xff, 1), [0xff]);
        assert_eq!(read(&mut view, 0x106, 4), [0xff; 4]);
        assert_eq!(read(&mut view, u64::MAX, 2), [0xff; 2]);
    }

    #[test]
    fn a_view_sees_a_device_move() {
        let bus = Arc::new(Bus::new());
        let mut view = BusView::new(bus.clone());
        bus.insert(0x1000, 0x1000, Arc::new(Echo(1))).unwrap();
        assert_eq!(read(&mut view, 0x1000, 1), [1]);
        assert!(bus.remove(0x1000));
        bus.insert(0x9000, 0x1000, Arc::new(Echo(1))).unwrap();
        assert_eq!(read(&mut view, 0x1000, 1), [0xff]);
        assert_eq!(read(&mut view, 0x9000, 1), [1]);
    }

    #[test]
    fn overlapping_empty_and_wrapping_ranges_are_refused() {
        let bus = Bus::new();
        bus.insert(0x100, 0x10, Arc::new(Echo(0))).unwrap();
        assert_eq!(
            bus.insert(0x10f, 1, Arc::new(Echo(0))),
            Err(BusError::Overlap { start: 0x10f, len: 1, other: 0x100 })
        );
        assert_eq!(bus.insert(0x200, 0, Arc::new(Echo(0))), Err(BusError::BadRange { start: 0x200, len: 0 }));
        assert!(bus.insert(u64::MAX, 2, Arc::new(Echo(0))).is_err());
        bus.insert(u64::MAX, 1, Arc::new(Echo(0))).unwrap();
    }
}
