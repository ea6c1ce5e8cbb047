//! virtio-net as the registers see it: features and configuration space.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::rx::Rx;
use super::tx::Tx;
use super::worker::NetWorker;
use crate::virtio::VirtioDevice;
use crate::virtio::counters::QueueCounters;
use crate::virtio::generation::Generation;
use crate::virtio::queue::{F_EVENT_IDX, F_INDIRECT_DESC};
use crate::virtio::worker::WorkerQueue;

/// Feature bits of virtio 1.3 §5.1.3.
pub(super) mod feature {
    pub const CSUM: u64 = 1;
    pub const GUEST_CSUM: u64 = 1 << 1;
    pub const MTU: u64 = 1 << 3;
    pub const MAC: u64 = 1 << 5;
    pub const GUEST_TSO4: u64 = 1 << 7;
    pub const GUEST_TSO6: u64 = 1 << 8;
    pub const GUEST_ECN: u64 = 1 << 9;
    pub const HOST_TSO4: u64 = 1 << 11;
    pub const HOST_TSO6: u64 = 1 << 12;
    pub const HOST_ECN: u64 = 1 << 13;
    pub const MRG_RXBUF: u64 = 1 << 15;
    pub const STATUS: u64 = 1 << 16;
}

/// The receive queue's index (virtio 1.3 §5.1.2).
pub const RX_QUEUE: u16 = 0;
/// The transmit queue's index.
pub const TX_QUEUE: u16 = 1;

/// Bytes of configuration space: mac, status, max_virtqueue_pairs and mtu (virtio 1.3 §5.1.4).
const CONFIG_BYTES: usize = 12;

/// The least MTU that may be offered (virtio 1.3 §5.1.4.1).
const LEAST_MTU: u16 = 68;

/// What a network card looks like to its guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetConfig {
    /// Its address; not a multicast one.
    pub mac: [u8; 6],
    /// The largest packet of the link without its Ethernet header, where the guest shall be told (`VIRTIO_NET_F_MTU`). One
    /// below 68 is none.
    pub mtu: Option<u16>,
    /// Offer checksum and segmentation offloads both ways: the link understands the virtio-net header.
    pub offloads: bool,
    /// Largest size of each queue: a power of two up to 32768.
    pub queue_size: u16,
}

/// A virtio network device with one pair of queues (virtio 1.3 §5.1).
#[derive(Clone, Debug)]
pub struct NetDevice {
    config: NetConfig,
    queue_sizes: [u16; 2],
    link: Arc<Link>,
}

#[derive(Debug)]
struct Link {
    up: AtomicBool,
    generation: Generation,
}

impl NetDevice {
    /// A card that looks like `config`, with its link up.
    pub fn new(config: NetConfig) -> Self {
        let link = Link { up: AtomicBool::new(true), generation: Generation::default() };
        Self { queue_sizes: [config.queue_size; 2], config, link: Arc::new(link) }
    }

    /// Plugs the cable or pulls it. The caller tells the driver where this returns `true`, through
    /// [`VirtioInterrupt::config_changed`](crate::virtio::VirtioInterrupt::config_changed).
    pub fn set_link(&self, up: bool) -> bool {
        self.link.generation.change(|| self.link.up.swap(up, Ordering::AcqRel) != up)
    }

    /// The worker of the receive queue, over its own handle to the link.
    pub fn rx_worker<B>(&self, backend: B, counters: Arc<QueueCounters>) -> NetWorker<B> {
        NetWorker::new(backend, self.mtu(), Some(self.rx(counters)), None)
    }

    /// The worker of the transmit queue, over its own handle to the link.
    pub fn tx_worker<B>(&self, backend: B, counters: Arc<QueueCounters>) -> NetWorker<B> {
        NetWorker::new(backend, self.mtu(), None, Some(self.tx(counters)))
    }

    /// One worker for both queues.
    pub fn worker<B>(&self, backend: B, rx: Arc<QueueCounters>, tx: Arc<QueueCounters>) -> NetWorker<B> {
        NetWorker::new(backend, self.mtu(), Some(self.rx(rx)), Some(self.tx(tx)))
    }

    fn rx(&self, counters: Arc<QueueCounters>) -> Rx {
        Rx::new(WorkerQueue::new(RX_QUEUE, self.config.queue_size, counters))
    }

    fn tx(&self, counters: Arc<QueueCounters>) -> Tx {
        Tx::new(WorkerQueue::new(TX_QUEUE, self.config.queue_size, counters))
    }

    /// The MTU the guest is told: no smaller one may be (§5.1.4.1).
    fn mtu(&self) -> Option<u16> {
        self.config.mtu.filter(|mtu| *mtu >= LEAST_MTU)
    }

    fn config_space(&self) -> [u8; CONFIG_BYTES] {
        let [m0, m1, m2, m3, m4, m5] = self.config.mac;
        // Bit 0 of status is VIRTIO_NET_S_LINK_UP.
        let [s0, s1] = u16::from(self.link.up.load(Ordering::Acquire)).to_le_bytes();
        let [p0, p1] = 1u16.to_le_bytes();
        let [t0, t1] = self.mtu().unwrap_or_default().to_le_bytes();
        [m0, m1, m2, m3, m4, m5, s0, s1, p0, p1, t0, t1]
    }
}

impl VirtioDevice for NetDevice {
    fn device_type(&self) -> u16 {
        1
    }

    fn features(&self) -> u64 {
        let mut features = feature::MAC | feature::STATUS | feature::MRG_RXBUF | F_INDIRECT_DESC | F_EVENT_IDX;
        if self.mtu().is_some() {
            features |= feature::MTU;
        }
        if self.config.offloads {
            features |= feature::CSUM | feature::HOST_TSO4 | feature::HOST_TSO6 | feature::HOST_ECN;
            features |= feature::GUEST_CSUM | feature::GUEST_TSO4 | feature::GUEST_TSO6 | feature::GUEST_ECN;
        }
        features
    }

    fn queue_max_sizes(&self) -> &[u16] {
        &self.queue_sizes
    }

    fn read_config(&self, offset: u32, data: &mut [u8]) {
        crate::virtio::read_config_space(&self.config_space(), offset, data);
    }

    fn write_config(&self, _offset: u32, _data: &[u8]) {
        // §5.1.4.2: the driver writes to none of the fields.
    }

    fn config_len(&self) -> u32 {
        CONFIG_BYTES as u32
    }

    fn generation(&self) -> Option<&Generation> {
        Some(&self.link.generation)
    }
}
