//! The paravirtual panic port (QEMU `docs/specs/pvpanic.rst`): one byte, usually at 0x505, by which a guest's kernel
//! tells that it panicked.

use std::sync::Arc;

use super::power::PowerSink;
use super::{read_bytes, write_bytes};
use crate::bus::{Access, BusDevice};

/// Where guests look for the port when no table names another.
pub const PVPANIC_PORT: u64 = 0x505;

/// Ports of the device.
pub const PVPANIC_PORTS: u64 = 1;

/// The kernel panicked.
const PANICKED: u8 = 0x01;

/// The kernel panicked and has started its crash kernel.
const CRASH_LOADED: u8 = 0x02;

/// The panic port. It has no state to save or reset.
pub struct PvPanic {
    power: Arc<dyn PowerSink>,
}

impl PvPanic {
    /// A port that tells `power`.
    pub fn new(power: Arc<dyn PowerSink>) -> Self {
        Self { power }
    }
}

impl BusDevice for PvPanic {
    /// The events that may be written.
    fn read(&self, offset: u64, data: &mut [u8]) -> Access {
        read_bytes(offset, data, |port| if port == 0 { PANICKED | CRASH_LOADED } else { 0xff })
    }

    fn write(&self, offset: u64, data: &[u8]) -> Access {
        write_bytes(offset, data, |port, events| match port {
            0 if events & PANICKED != 0 => self.power.panicked(),
            0 if events & CRASH_LOADED != 0 => self.power.crash_kernel_loaded(),
            _ => {}
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::legacy::power::PowerLog;
    use crate::legacy::testing::{any_access, perform, read, write};

    fn port() -> (PvPanic, Arc<PowerLog>) {
        let power = Arc::new(PowerLog::default());
        (PvPanic::new(power.clone()), power)
    }

    #[test]
    fn a_guest_finds_both_events_supported() {
        assert_eq!(read(&port().0, 0), 0x03);
    }

    #[test]
    fn a_panic_and_a_crash_kernel_are_told_apart_and_other_events_are_not_told() {
        let (port, power) = port();
        for (events, told) in [(0x01, (1, 0)), (0x02, (0, 1)), (0x03, (1, 0)), (0x00, (0, 0)), (0xfc, (0, 0))] {
            write(&port, 0, events);
            assert_eq!(power.take_panics(), told, "{events:#x}");
        }
        assert!(power.take().is_empty());
    }

    proptest! {
        #[test]
        fn any_access_tells_at_most_one_panic(access in any_access()) {
            let (port, power) = port();
            perform(&port, access);
            let (panics, crash_kernels) = power.take_panics();
            prop_assert!(panics + crash_kernels <= usize::from(access.0));
        }
    }
}
