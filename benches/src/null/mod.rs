//! Queues whose back ends do everything at once, and nothing.

mod disk;
mod net;

pub use disk::NullQueue;
pub use net::{NullCard, Way};

use devices::legacy::clock::Clock;

/// The machine's clock.
struct HostClock;

impl Clock for HostClock {
    fn realtime(&self) -> (i64, u32) {
        devices_host::clock::realtime()
    }
    fn monotonic_ns(&self) -> u64 {
        devices_host::clock::monotonic_ns()
    }
}
