//! Time in the machine: it passes when the program says so, or when the guest has nothing to do but wait.

use devices::legacy::clock::Clock as _;

use super::{MAX_ROUNDS, Machine};
use crate::finding;

impl Machine {
    /// Lets time pass. Whoever waits for it runs when workers run next.
    pub fn pass(&mut self, ns: u64) {
        self.clock.advance_ns(ns);
    }

    /// Lets time pass until no rate limit holds a worker back.
    pub(super) fn wait_out(&mut self) {
        for _ in 0..MAX_ROUNDS {
            let Some(at_ns) = self.vmm.runner.wakes_at_ns() else { return };
            self.pass(at_ns.saturating_sub(self.clock.monotonic_ns()));
            self.settle();
        }
        finding!("wedge", "a rate limit never ends");
    }
}
