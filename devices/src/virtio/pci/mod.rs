//! virtio over PCI, transitional and modern (virtio 1.3 §4.1).
//!
//! ```text
//! BAR0  ports    legacy header and device configuration        transitional devices only
//! BAR1  memory   MSI-X table and pending bits                   where there are vectors
//! BAR4  memory   common | ISR | device | notify, a page or more each     unless it is for legacy drivers alone
//! ```
//!
//! [`VirtioPci`] is the function on the bus: configuration space and BAR placement under its own lock. Behind it,
//! `Core` holds the virtio registers and the status state machine both interfaces share, and `Interrupts` the atomics
//! a worker needs to interrupt the guest. A BAR access never takes the configuration lock, a worker never takes either.

mod common;
mod core;
mod doorbell;
mod function;
mod interrupts;
mod layout;
mod legacy;
mod messages;
mod places;

#[cfg(test)]
mod tests;

pub use core::TransportState;
pub use doorbell::{Doorbell, Doorbells, NoDoorbells};
pub use function::{Interfaces, VirtioPci, VirtioPciParts, VirtioPciState};
pub use layout::{DEVICE, ISR, LEGACY_BAR, MODERN_BAR, MSIX_BAR, NOTIFY, NOTIFY_MULTIPLIER};
pub use messages::QueueMessages;
