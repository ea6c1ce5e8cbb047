//! Queues in the kernel, whose kicks are to be seen: everything is delegated but where the doorbells are.

use std::sync::Arc;

use devices::interrupt::MsiMessage;
use devices::virtio::QueueState;
use devices::virtio::net::kernel::{KernelError, KernelQueues, Reception, Window};

/// Queues whose kernel hears of no doorbell, so that every kick comes out of the guest.
pub(super) struct Unwatched(pub(super) Arc<dyn KernelQueues>);

impl KernelQueues for Unwatched {
    fn features(&self) -> u64 {
        self.0.features()
    }

    fn accept(&self, features: u64) -> Result<(), KernelError> {
        self.0.accept(features)
    }

    fn use_pairs(&self, pairs: u16) -> Result<(), KernelError> {
        self.0.use_pairs(pairs)
    }

    fn init(&self, queue: u16, ring: &QueueState, legacy: bool) -> Result<(), KernelError> {
        self.0.init(queue, ring, legacy)
    }

    fn kick(&self, queue: u16) {
        self.0.kick(queue);
    }

    fn set_msi(&self, queue: u16, message: Option<MsiMessage>) {
        self.0.set_msi(queue, message);
    }

    fn pause(&self, queue: u16) -> Result<(), KernelError> {
        self.0.pause(queue)
    }

    fn state(&self, queue: u16) -> Result<(u16, u16), KernelError> {
        self.0.state(queue)
    }

    fn reset(&self, queue: u16) {
        self.0.reset(queue);
    }

    fn notify_window(&self, _window: Option<Window>) {}

    fn poll(&self, raised: &mut dyn FnMut(u16)) {
        self.0.poll(raised);
    }

    fn tells_of_broken(&self) -> bool {
        self.0.tells_of_broken()
    }

    fn take_broken(&self, broken: &mut dyn FnMut(u16)) {
        self.0.take_broken(broken);
    }

    fn set_reception(&self, reception: &Reception) {
        self.0.set_reception(reception);
    }

    fn set_address(&self, mac: [u8; 6]) -> Result<(), KernelError> {
        self.0.set_address(mac)
    }

    fn failure(&self) -> Option<String> {
        self.0.failure()
    }
}
