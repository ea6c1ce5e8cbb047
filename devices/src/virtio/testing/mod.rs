//! The other side of every device, for tests, benches and the fuzzer: a virtual guest driver, an interrupt that
//! remembers, and back ends made of memory.
//!
//! Nothing here is part of a machine: it panics where a test went wrong.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]
#![allow(clippy::arithmetic_side_effects)]

mod disk;
mod driver;
mod interrupt;
mod link;
mod memory;
mod packed;
mod runner;

pub use disk::MemoryDisk;
pub use driver::{Buf, DriverQueue, Posted, Used, guest_ram};
pub use interrupt::RecordingInterrupt;
pub use link::MemoryLink;
pub use memory::FickleMemory;
pub use runner::InlineRunner;
