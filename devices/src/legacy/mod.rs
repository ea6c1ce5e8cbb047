//! What a PC has had since before PCI: serial ports, the real-time clock, power management and reset registers, the
//! keyboard controller, and the ports guests print to.
//!
//! Each is a [`BusDevice`](crate::bus::BusDevice) that any vCPU may touch at any width: an access wider than a register
//! falls apart into bytes, as on the bus these devices were made for.

pub mod clock;
pub mod cmos;
pub mod debug_port;
pub mod pm;
pub mod power;
pub mod ps2;
pub mod pvpanic;
pub mod reset;
#[cfg(test)]
mod testing;
pub mod uart;

use crate::bus::Access;

/// Answers a read byte by byte.
fn read_bytes(offset: u64, data: &mut [u8], mut read: impl FnMut(u64) -> u8) -> Access {
    let mut at = offset;
    for byte in data {
        *byte = read(at);
        at = at.saturating_add(1);
    }
    Access::Done
}

/// Takes a write byte by byte.
fn write_bytes(offset: u64, data: &[u8], mut write: impl FnMut(u64, u8)) -> Access {
    let mut at = offset;
    for &byte in data {
        write(at, byte);
        at = at.saturating_add(1);
    }
    Access::Done
}

/// A device's lock, whatever happened to another holder: a register file is valid after every statement.
fn lock<T>(mutex: &std::sync::Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}
