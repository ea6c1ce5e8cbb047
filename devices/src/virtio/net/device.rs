//! virtio-net as the registers see it: features and configuration space.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use super::control::Control;
use super::filter::{Filter, Mac, packed, unpacked};
use super::responder::{Ear, Responder, Station};
use super::rx::Rx;
use super::tx::Tx;
use super::worker::NetWorker;
use crate::virtio::VirtioDevice;
use crate::virtio::counters::QueueCounters;
use crate::virtio::generation::Generation;
use crate::virtio::queue::{F_EVENT_IDX, F_INDIRECT_DESC};
use crate::virtio::worker::WorkerQueue;
use crate::wake::Wake;

/// Feature bits of virtio 1.3 §5.1.3.
pub(super) mod feature {
    pub const CSUM: u64 = 1;
    pub const GUEST_CSUM: u64 = 1 << 1;
    pub const CTRL_GUEST_OFFLOADS: u64 = 1 << 2;
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
    pub const CTRL_VQ: u64 = 1 << 17;
    pub const CTRL_RX: u64 = 1 << 18;
    pub const CTRL_VLAN: u64 = 1 << 19;
    pub const CTRL_RX_EXTRA: u64 = 1 << 20;
    pub const GUEST_ANNOUNCE: u64 = 1 << 21;
    pub const CTRL_MAC_ADDR: u64 = 1 << 23;
}

/// The receive queue's index (virtio 1.3 §5.1.2).
pub const RX_QUEUE: u16 = 0;
/// The transmit queue's index.
pub const TX_QUEUE: u16 = 1;
/// The control queue's index: behind the only pair there is (virtio 1.3 §5.1.2).
pub const CONTROL_QUEUE: u16 = 2;

/// Entries of the control queue, where the others do not have less. Drivers have a few commands under way at once.
const CONTROL_QUEUE_SIZE: u16 = 64;

/// Bytes of configuration space: mac, status, max_virtqueue_pairs and mtu (virtio 1.3 §5.1.4).
const CONFIG_BYTES: usize = 12;

/// The least MTU that may be offered (virtio 1.3 §5.1.4.1).
const LEAST_MTU: u16 = 68;

/// What a network card looks like to its guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetConfig {
    /// Its address; not a multicast one. A driver may set another one, until it resets the card.
    pub mac: [u8; 6],
    /// The largest packet of the link without its Ethernet header, where the guest shall be told (`VIRTIO_NET_F_MTU`). One
    /// below 68 is none.
    pub mtu: Option<u16>,
    /// Offer checksum and segmentation offloads both ways: the link understands the virtio-net header.
    pub offloads: bool,
    /// Largest size of each queue that carries frames: a power of two up to 32768.
    pub queue_size: u16,
}

/// A virtio network device with one pair of queues and a control queue (virtio 1.3 §5.1).
#[derive(Clone, Debug)]
pub struct NetDevice {
    config: NetConfig,
    queue_sizes: [u16; 3],
    link: Arc<Link>,
    station: Option<Arc<Station>>,
}

/// What the configuration space shows that changes while a driver looks at it.
#[derive(Debug)]
pub(super) struct Link {
    up: AtomicBool,
    /// `VIRTIO_NET_S_ANNOUNCE`: the driver is asked to tell the network where it is.
    announce: AtomicBool,
    /// There is a driver that would.
    announces: AtomicBool,
    /// The address now, in the lower six bytes.
    mac: AtomicU64,
    first_mac: Mac,
    generation: Generation,
}

impl Link {
    /// The address after a reset.
    pub fn first_mac(&self) -> Mac {
        self.first_mac
    }

    /// The driver, or who restores one, sets the address (§5.1.6.5.2).
    pub fn set_mac(&self, mac: Mac) {
        self.generation.change(|| self.mac.swap(packed(mac), Ordering::AcqRel) != packed(mac));
    }

    /// A driver with these features begins.
    pub fn accepted(&self, features: u64) {
        let needed = feature::STATUS | feature::CTRL_VQ | feature::GUEST_ANNOUNCE;
        self.announces.store(features & needed == needed, Ordering::Release);
    }

    /// The driver has announced itself (§5.1.6.5.4).
    pub fn announced(&self) {
        self.generation.change(|| self.announce.swap(false, Ordering::AcqRel));
    }

    /// Whether an announcement is due.
    pub fn is_announcing(&self) -> bool {
        self.announce.load(Ordering::Acquire)
    }

    /// Goes on where a saved card stopped.
    pub fn restore(&self, mac: Mac, announce: bool) {
        self.set_mac(mac);
        self.generation.change(|| self.announce.swap(announce, Ordering::AcqRel) != announce);
    }

    /// As after a reset: what the driver has set is gone.
    pub fn reset(&self) {
        self.announces.store(false, Ordering::Release);
        self.restore(self.first_mac, false);
    }

    fn ask_to_announce(&self) -> bool {
        let due = self.announces.load(Ordering::Acquire) && self.up.load(Ordering::Acquire);
        due && self.generation.change(|| !self.announce.swap(true, Ordering::AcqRel))
    }
}

impl NetDevice {
    /// A card that looks like `config`, with its link up.
    pub fn new(config: NetConfig) -> Self {
        let link = Link {
            up: AtomicBool::new(true),
            announce: AtomicBool::new(false),
            announces: AtomicBool::new(false),
            mac: AtomicU64::new(packed(config.mac)),
            first_mac: config.mac,
            generation: Generation::default(),
        };
        let size = config.queue_size;
        Self { queue_sizes: [size, size, size.min(CONTROL_QUEUE_SIZE)], config, link: Arc::new(link), station: None }
    }

    /// The card, with a responder that takes what is for it from the frames its driver sends. `receiver` wakes the worker of
    /// the receive queue: one answer waits for it, a later one takes its place.
    #[must_use]
    pub fn with_responder(self, responder: Responder, receiver: Arc<dyn Wake>) -> Self {
        Self { station: Some(Arc::new(Station::new(responder, receiver))), ..self }
    }

    /// Plugs the cable or pulls it; where it is plugged in again the driver is also asked to announce itself, as the
    /// network may be another one. The caller tells the driver where this returns `true`, through
    /// [`VirtioInterrupt::config_changed`](crate::virtio::VirtioInterrupt::config_changed).
    pub fn set_link(&self, up: bool) -> bool {
        let changed = self.link.generation.change(|| self.link.up.swap(up, Ordering::AcqRel) != up);
        if changed && up {
            self.link.ask_to_announce();
        }
        changed
    }

    /// Asks the driver to tell the network where it is, where it can (`VIRTIO_NET_F_GUEST_ANNOUNCE`, virtio 1.3
    /// §5.1.6.5.4) and the link is up. The caller tells it where this returns `true`, as with
    /// [`set_link`](Self::set_link).
    pub fn announce(&self) -> bool {
        self.link.ask_to_announce()
    }

    /// The worker of the receive queue and the control queue, over its own handle to the link.
    pub fn rx_worker<B>(&self, backend: B, rx: Arc<QueueCounters>, control: Arc<QueueCounters>) -> NetWorker<B> {
        NetWorker::new(backend, self.link.clone(), self.mtu(), Some((self.rx(rx), self.control(control))), None)
    }

    /// The worker of the transmit queue, over its own handle to the link.
    pub fn tx_worker<B>(&self, backend: B, counters: Arc<QueueCounters>) -> NetWorker<B> {
        NetWorker::new(backend, self.link.clone(), self.mtu(), None, Some(self.tx(counters)))
    }

    /// One worker for all queues, with the counters of each by its index.
    pub fn worker<B>(&self, backend: B, [rx, tx, control]: [Arc<QueueCounters>; 3]) -> NetWorker<B> {
        let receiver = (self.rx(rx), self.control(control));
        NetWorker::new(backend, self.link.clone(), self.mtu(), Some(receiver), Some(self.tx(tx)))
    }

    fn rx(&self, counters: Arc<QueueCounters>) -> Rx {
        let queue = WorkerQueue::new(RX_QUEUE, self.config.queue_size, counters);
        Rx::new(queue, Filter::new(self.config.mac), self.station.clone())
    }

    fn control(&self, counters: Arc<QueueCounters>) -> Control {
        let [.., size] = self.queue_sizes;
        Control::new(WorkerQueue::new(CONTROL_QUEUE, size, counters))
    }

    fn tx(&self, counters: Arc<QueueCounters>) -> Tx {
        let queue = WorkerQueue::new(TX_QUEUE, self.config.queue_size, counters);
        Tx::new(queue, self.station.clone().map(Ear::new))
    }

    /// The MTU the guest is told: no smaller one may be (§5.1.4.1).
    fn mtu(&self) -> Option<u16> {
        self.config.mtu.filter(|mtu| *mtu >= LEAST_MTU)
    }

    fn config_space(&self) -> [u8; CONFIG_BYTES] {
        let [m0, m1, m2, m3, m4, m5] = unpacked(self.link.mac.load(Ordering::Acquire));
        // Bit 0 of status is VIRTIO_NET_S_LINK_UP, bit 1 VIRTIO_NET_S_ANNOUNCE.
        let up = u16::from(self.link.up.load(Ordering::Acquire));
        let [s0, s1] = (up | u16::from(self.link.is_announcing()) << 1).to_le_bytes();
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
        features |= feature::CTRL_VQ | feature::CTRL_RX | feature::CTRL_RX_EXTRA | feature::CTRL_VLAN;
        features |= feature::CTRL_MAC_ADDR | feature::GUEST_ANNOUNCE;
        if self.mtu().is_some() {
            features |= feature::MTU;
        }
        if self.config.offloads {
            features |= feature::CSUM | feature::HOST_TSO4 | feature::HOST_TSO6 | feature::HOST_ECN;
            features |= feature::GUEST_CSUM | feature::GUEST_TSO4 | feature::GUEST_TSO6 | feature::GUEST_ECN;
            features |= feature::CTRL_GUEST_OFFLOADS;
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
