//! The device model: state machines only.
//!
//! A device knows guest memory, its registers and the objects injected into it (interrupts, wake-ups, back ends, a
//! clock value). It knows no hypervisor, spawns no thread, reads no clock and owns no file descriptor, so the same code
//! runs under a worker thread, a fuzzer, a bench and a save/restore test.
//!
//! Nothing a guest can reach may panic: the lints below deny the usual ways outside tests.
#![forbid(unsafe_code)]
#![cfg_attr(
    not(test),
    deny(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic,
        clippy::unreachable,
        clippy::indexing_slicing,
        clippy::arithmetic_side_effects
    )
)]

pub mod bus;
pub mod interrupt;
pub mod legacy;
pub mod park;
pub mod pci;
pub mod planted;
pub mod virtio;
pub mod wake;

/// Guest RAM as every part of the process sees it: the one place where the dirty bitmap's type is chosen.
///
/// `()` tracks nothing. Code that touches guest memory is generic over [`vm_memory::GuestMemory`] where it can be, so
/// that tests and the fuzzer can put an adversarial memory in its place.
pub type GuestRam = vm_memory::GuestMemoryMmap<()>;
