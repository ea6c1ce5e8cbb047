//! What the tests of this folder share.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use crate::bus::{Access, BusDevice};
use crate::interrupt::IrqLine;

/// A line that remembers its level and how often it rose.
#[derive(Debug, Default)]
pub struct Line {
    level: AtomicBool,
    rises: AtomicUsize,
}

impl Line {
    pub fn new() -> Arc<Self> {
        Arc::default()
    }

    pub fn level(&self) -> bool {
        self.level.load(Ordering::Relaxed)
    }

    pub fn take_rises(&self) -> usize {
        self.rises.swap(0, Ordering::Relaxed)
    }
}

impl IrqLine for Line {
    fn set(&self, asserted: bool) {
        if !self.level.swap(asserted, Ordering::Relaxed) && asserted {
            self.rises.fetch_add(1, Ordering::Relaxed);
        }
    }
}

pub fn read(device: &dyn BusDevice, offset: u64) -> u8 {
    let mut data = [0x5a];
    assert!(matches!(device.read(offset, &mut data), Access::Done));
    data[0]
}

pub fn write(device: &dyn BusDevice, offset: u64, value: u8) {
    assert!(matches!(device.write(offset, &[value]), Access::Done));
}

/// Any access at all: offsets beyond the device, every width.
pub fn any_access() -> impl proptest::strategy::Strategy<Value = (bool, u64, usize, u64)> {
    use proptest::prelude::*;
    let offset = prop_oneof![8 => 0u64..0x80, 1 => any::<u64>(), 1 => Just(u64::MAX)];
    (any::<bool>(), offset, prop_oneof![6 => Just(1usize), 1 => Just(2), 1 => Just(4), 1 => Just(8)], any::<u64>())
}

/// Performs an access of [`any_access`].
pub fn perform(device: &dyn BusDevice, (is_write, offset, width, value): (bool, u64, usize, u64)) {
    let mut data = value.to_le_bytes();
    if is_write {
        device.write(offset, &data[..width]);
    } else {
        device.read(offset, &mut data[..width]);
    }
}
