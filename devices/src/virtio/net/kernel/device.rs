//! What the registers show of a card whose data queues are in a kernel.

use std::sync::Arc;

use super::{Carried, KernelQueues, KernelWorker};
use crate::virtio::counters::QueueCounters;
use crate::virtio::net::NetDevice;
use crate::virtio::net::device::feature;
use crate::virtio::{Generation, VirtioDevice};

/// Features that take no data queue: registers, configuration space and control queue have them.
const OURS: u64 = feature::MAC
    | feature::STATUS
    | feature::MTU
    | feature::CTRL_VQ
    | feature::CTRL_RX
    | feature::MQ
    | feature::GUEST_ANNOUNCE
    | feature::SPEED_DUPLEX;

/// A [`NetDevice`] as far as a kernel carries it.
#[derive(Clone)]
pub struct KernelNet {
    card: NetDevice,
    /// What the kernel has of the card's features, and what it needs no kernel for.
    features: u64,
    promiscuous: bool,
}

impl KernelNet {
    /// The card `card`, with what `queues` carry of its features.
    pub fn new(card: NetDevice, queues: &dyn KernelQueues) -> Self {
        let features = card.features() & (queues.features() | OURS);
        Self { card, features, promiscuous: false }
    }

    /// The card, with every frame of the network, whatever its driver asks for. Its driver may also give it another address,
    /// where the kernel has that (`VIRTIO_NET_F_CTRL_MAC_ADDR`): others than such a card's may not, as hosts that keep guests to
    /// their addresses know them by what the kernel has.
    #[must_use]
    pub fn promiscuous(self, promiscuous: bool) -> Self {
        Self { promiscuous, ..self }
    }

    /// Whether it always gets every frame.
    pub(super) fn is_promiscuous(&self) -> bool {
        self.promiscuous
    }

    /// The card: what its operator does to its link.
    pub fn card(&self) -> &NetDevice {
        &self.card
    }

    /// Queues that carry frames: all but the last one, which is the control queue.
    pub fn data_queues(&self) -> u16 {
        let queues = self.card.queue_max_sizes().len().saturating_sub(1);
        u16::try_from(queues).unwrap_or(u16::MAX)
    }

    /// The worker of all queues, with the counters of each by its index.
    pub fn worker(&self, carried: Arc<Carried>, counters: &[Arc<QueueCounters>]) -> KernelWorker {
        KernelWorker::new(self, carried, counters)
    }
}

impl VirtioDevice for KernelNet {
    fn device_type(&self) -> u16 {
        self.card.device_type()
    }

    fn features(&self) -> u64 {
        if self.promiscuous { self.features } else { self.features & !feature::CTRL_MAC_ADDR }
    }

    fn queue_max_sizes(&self) -> &[u16] {
        self.card.queue_max_sizes()
    }

    fn queue_of(&self, index: u16, features: u64) -> Option<u16> {
        self.card.queue_of(index, features)
    }

    fn read_config(&self, offset: u32, data: &mut [u8]) {
        self.card.read_config(offset, data);
    }

    fn write_config(&self, offset: u32, data: &[u8]) {
        self.card.write_config(offset, data);
    }

    fn config_len(&self) -> u32 {
        self.card.config_len()
    }

    fn generation(&self) -> Option<&Generation> {
        self.card.generation()
    }
}
