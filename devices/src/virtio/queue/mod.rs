//! Virtqueues: from the driver's rings to owned chains and back.
//!
//! [`Queue::pop`] reads each descriptor exactly once and returns an owned [`Chain`], *empty*, or the rule the driver
//! broke. Nothing downstream reads a descriptor again, so the guest cannot change its mind between check and use.
//! Request code sees a [`Reader`] and a [`Writer`], never addresses.

mod chain;
mod error;
#[cfg(test)]
mod exhaustive;
#[cfg(test)]
mod gaps;
mod io;
mod mem;
mod near;
mod order;
mod packed;
#[cfg(test)]
mod packed_tests;
#[cfg(test)]
mod proptests;
mod ring;
mod saved;
mod split;
#[cfg(test)]
mod tests;
mod walk;

pub use chain::{Chain, GuestRange};
pub use error::QueueError;
pub use io::{ChainError, Reader, Writer};
pub use mem::{Descriptor, OutsideMemory, RingMem};
pub use near::Near;
pub use ring::{F_EVENT_IDX, F_IN_ORDER, F_INDIRECT_DESC, F_RING_PACKED, Queue};
pub use saved::{SavedChain, SavedFlight};
