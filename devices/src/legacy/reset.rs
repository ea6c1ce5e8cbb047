//! Ports through which a guest resets its machine: 0xCF9 (Intel 82371SB (PIIX3) datasheet §2.7; the FADT's reset
//! register points there too) and the fast reset of port 0x92 (PS/2 system control port A).

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use crate::bus::{Access, BusDevice};
use crate::legacy::power::{PowerSink, ResetSource};
use crate::legacy::{read_bytes, write_bytes};

/// What the FADT's RESET_VALUE must be for [`ResetControl`]: a hard reset.
pub const RESET_CONTROL_VALUE: u8 = 0x06;

/// Bit 1: hard and not soft; bit 2: reset when it rises.
const RESET_CPU: u8 = 1 << 2;

/// What reads back of 0xCF9: hard or soft, and full reset.
const RESET_CONTROL_KEPT: u8 = 1 << 1 | RESET_CPU | 1 << 3;

/// The reset control register at port 0xCF9, one port. It lies inside the PCI configuration address register
/// (0xCF8 to 0xCFB), which takes accesses of 4 bytes only: whoever owns that range hands single bytes at 0xCF9 on.
pub struct ResetControl {
    value: AtomicU8,
    power: Arc<dyn PowerSink>,
}

impl ResetControl {
    /// The register after power-on.
    pub fn new(power: Arc<dyn PowerSink>) -> Self {
        Self { value: AtomicU8::new(0), power }
    }

    /// Back to the state after power-on.
    pub fn reset(&self) {
        self.value.store(0, Ordering::Relaxed);
    }

    /// The register's value, all of its state.
    pub fn save(&self) -> u8 {
        self.value.load(Ordering::Relaxed)
    }

    /// Puts a saved value back, without resetting anything.
    pub fn restore(&self, value: u8) {
        self.value.store(value & RESET_CONTROL_KEPT, Ordering::Relaxed);
    }
}

impl BusDevice for ResetControl {
    fn read(&self, offset: u64, data: &mut [u8]) -> Access {
        read_bytes(offset, data, |at| if at == 0 { self.save() } else { 0xff })
    }

    fn write(&self, offset: u64, data: &[u8]) -> Access {
        write_bytes(offset, data, |at, value| {
            if at != 0 {
                return;
            }
            let before = self.value.swap(value & RESET_CONTROL_KEPT, Ordering::Relaxed);
            if value & !before & RESET_CPU != 0 {
                self.power.reset(ResetSource::Port0Cf9);
            }
        })
    }
}

/// Reset when it rises.
const FAST_RESET: u8 = 1 << 0;

/// Address line 20 is on.
const FAST_A20: u8 = 1 << 1;

/// System control port A at port 0x92, one port. Address line 20 is always on; its bit only remembers.
pub struct Port92 {
    value: AtomicU8,
    power: Arc<dyn PowerSink>,
}

impl Port92 {
    /// The register after power-on: address line 20 on, as firmware leaves it.
    pub fn new(power: Arc<dyn PowerSink>) -> Self {
        Self { value: AtomicU8::new(FAST_A20), power }
    }

    /// Back to the state after power-on.
    pub fn reset(&self) {
        self.value.store(FAST_A20, Ordering::Relaxed);
    }

    /// The register's value, all of its state.
    pub fn save(&self) -> u8 {
        self.value.load(Ordering::Relaxed)
    }

    /// Puts a saved value back, without resetting anything.
    pub fn restore(&self, value: u8) {
        self.value.store(value & (FAST_A20 | FAST_RESET), Ordering::Relaxed);
    }
}

impl BusDevice for Port92 {
    fn read(&self, offset: u64, data: &mut [u8]) -> Access {
        read_bytes(offset, data, |at| if at == 0 { self.save() } else { 0xff })
    }

    fn write(&self, offset: u64, data: &[u8]) -> Access {
        write_bytes(offset, data, |at, value| {
            if at != 0 {
                return;
            }
            let before = self.value.swap(value & (FAST_A20 | FAST_RESET), Ordering::Relaxed);
            if value & !before & FAST_RESET != 0 {
                self.power.reset(ResetSource::Port92);
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::legacy::power::PowerLog;
    use crate::legacy::testing::{any_access, perform, read, write};

    #[test]
    fn port_0cf9_resets_when_its_reset_bit_rises() {
        let power = Arc::new(PowerLog::default());
        let port = ResetControl::new(power.clone());
        // Linux: the type first, then the type with the reset bit.
        write(&port, 0, 0x02);
        assert_eq!(power.take(), []);
        write(&port, 0, 0x06);
        assert_eq!(power.take(), [Some(ResetSource::Port0Cf9)]);
        assert_eq!(read(&port, 0), 0x06);
        write(&port, 0, 0x06);
        assert_eq!(power.take(), [], "it did not rise");
        port.reset();
        for value in [RESET_CONTROL_VALUE, 0x04, 0x0e, 0x0f] {
            write(&port, 0, value);
            assert_eq!(power.take(), [Some(ResetSource::Port0Cf9)], "{value:#x}");
            write(&port, 0, 0);
        }
        assert_eq!(power.take(), []);
    }

    #[test]
    fn port_92_resets_when_its_lowest_bit_rises_and_remembers_a20() {
        let power = Arc::new(PowerLog::default());
        let port = Port92::new(power.clone());
        assert_eq!(read(&port, 0), 0x02);
        write(&port, 0, 0x00);
        assert_eq!(read(&port, 0), 0x00);
        write(&port, 0, 0x03);
        assert_eq!(power.take(), [Some(ResetSource::Port92)]);
        write(&port, 0, 0x03);
        assert_eq!(power.take(), []);
    }

    proptest! {
        #[test]
        fn a_reset_comes_only_from_a_rising_bit_of_the_first_byte(
            accesses in prop::collection::vec(any_access(), 0..100),
        ) {
            let power = Arc::new(PowerLog::default());
            let (control, fast) = (ResetControl::new(power.clone()), Port92::new(power.clone()));
            for access in accesses {
                let rises = |before: u8, bit: u8| {
                    usize::from(access.0 && access.1 == 0 && access.3 as u8 & !before & bit != 0)
                };
                let expected = rises(control.save(), RESET_CPU) + rises(fast.save(), FAST_RESET);
                perform(&control, access);
                perform(&fast, access);
                prop_assert_eq!(power.take().len(), expected);
            }
        }
    }
}
