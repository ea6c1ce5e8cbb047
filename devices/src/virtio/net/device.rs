//! virtio-net as the registers see it: features and configuration space.

use std::sync::Arc;

use super::control::Control;
use super::filter::{Filter, unpacked};
use super::link::{Link, Reason};
use super::responder::{Ear, Responder, Station};
use super::rx::Rx;
use super::settings::Settings;
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
    pub const MQ: u64 = 1 << 22;
    pub const CTRL_MAC_ADDR: u64 = 1 << 23;
    pub const GUEST_USO4: u64 = 1 << 54;
    pub const GUEST_USO6: u64 = 1 << 55;
    pub const HOST_USO: u64 = 1 << 56;
    pub const SPEED_DUPLEX: u64 = 1 << 63;
}

/// The first receive queue's index (virtio 1.3 §5.1.2); that of pair *n*, counted from 0, is 2*n*.
pub const RX_QUEUE: u16 = 0;
/// The first transmit queue's index; that of pair *n* is 2*n* + 1.
pub const TX_QUEUE: u16 = 1;
/// The control queue's index of a card with one pair: behind it (virtio 1.3 §5.1.2). See [`NetDevice::control_queue`].
pub const CONTROL_QUEUE: u16 = 2;

/// The most queue pairs a card has: as many as a disk has queues. Drivers use one a processor, and more of them than this
/// would not be faster with one link behind them.
pub const MAX_PAIRS: u16 = 16;

/// Entries of the control queue, where the others do not have less. Drivers have a few commands under way at once.
const CONTROL_QUEUE_SIZE: u16 = 64;

/// Bytes of configuration space: mac, status, max_virtqueue_pairs and mtu (virtio 1.3 §5.1.4).
const CONFIG_BYTES: usize = 12;
/// Of a card that shows speed and duplex behind them.
const LONGEST_CONFIG_BYTES: usize = CONFIG_BYTES + 5;

/// The fastest link there is a number for, in Mbit/s; all ones means unknown (virtio 1.3 §5.1.4.1).
const MOST_SPEED_MBITS: u32 = 0x7fff_ffff;
const UNKNOWN_SPEED: u32 = u32::MAX;
const UNKNOWN_DUPLEX: u8 = 0xff;

/// The least MTU that may be offered (virtio 1.3 §5.1.4.1).
const LEAST_MTU: u16 = 68;

/// Features that ask for one of others (virtio 1.3 §5.1.3.1), in an order in which none asks for one further down.
const NEEDS: &[(u64, u64)] = &[
    (feature::HOST_TSO4 | feature::HOST_TSO6 | feature::HOST_USO, feature::CSUM),
    (feature::HOST_ECN, feature::HOST_TSO4 | feature::HOST_TSO6),
    (feature::GUEST_TSO4 | feature::GUEST_TSO6 | feature::GUEST_USO4 | feature::GUEST_USO6, feature::GUEST_CSUM),
    (feature::GUEST_ECN, feature::GUEST_TSO4 | feature::GUEST_TSO6),
    (feature::CTRL_RX | feature::CTRL_RX_EXTRA | feature::CTRL_VLAN | feature::CTRL_MAC_ADDR, feature::CTRL_VQ),
    (feature::CTRL_GUEST_OFFLOADS | feature::GUEST_ANNOUNCE | feature::MQ, feature::CTRL_VQ),
];

/// Features without some of them, and without those that ask for one that is missing.
fn without(features: u64, withheld: u64) -> u64 {
    let left = features & !withheld;
    NEEDS.iter().fold(left, |left, (askers, asked)| if left & asked == 0 { left & !askers } else { left })
}

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
    /// What the link is said to carry in Mbit/s (`VIRTIO_NET_F_SPEED_DUPLEX`), for what asks the guest; nothing is slower
    /// or faster for it. Above 0x7fffffff it is unknown, as when not given.
    pub speed_mbits: Option<u32>,
    /// Whether the link is said to carry that both ways at once; unknown when not given.
    pub duplex: Option<Duplex>,
}

/// How the two directions of a link share it (virtio 1.3 §5.1.4).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Duplex {
    /// One at a time.
    Half = 0,
    /// Both at once.
    Full = 1,
}

/// A virtio network device with one pair of queues or several, and a control queue (virtio 1.3 §5.1).
#[derive(Clone, Debug)]
pub struct NetDevice {
    config: NetConfig,
    queue_sizes: Vec<u16>,
    link: Arc<Link>,
    settings: Arc<Settings>,
    station: Option<Arc<Station>>,
    checks_source: bool,
    udp_segments: bool,
    withheld: u64,
}

impl NetDevice {
    /// A card that looks like `config`, with its link up.
    pub fn new(config: NetConfig) -> Self {
        let (size, mac) = (config.queue_size, config.mac);
        let (link, settings) = (Arc::new(Link::new(mac)), Arc::new(Settings::new(mac, Vec::new())));
        let queue_sizes = vec![size, size, size.min(CONTROL_QUEUE_SIZE)];
        Self {
            config,
            queue_sizes,
            link,
            settings,
            station: None,
            checks_source: false,
            udp_segments: false,
            withheld: 0,
        }
    }

    /// The card, with a queue pair for each of `receivers`, which wake the workers of their receive queues: 1 to
    /// [`MAX_PAIRS`], what is beyond is left out. A driver that accepts `VIRTIO_NET_F_MQ` says how many it uses.
    #[must_use]
    pub fn with_pairs(self, mut receivers: Vec<Arc<dyn Wake>>) -> Self {
        receivers.truncate(usize::from(MAX_PAIRS));
        let (size, pairs) = (self.config.queue_size, receivers.len());
        if pairs < 2 {
            return self;
        }
        // Where the driver does not accept MQ, the third queue is the control queue, and all are as long as that.
        let mut queue_sizes = vec![size; pairs.saturating_mul(2)];
        queue_sizes.push(size.min(CONTROL_QUEUE_SIZE));
        Self { queue_sizes, settings: Arc::new(Settings::new(self.config.mac, receivers)), ..self }
    }

    /// The card, with a driver that can send frames from the card's own address only, for hosts whose network does not see to
    /// that: others are dropped and counted, and the address cannot be changed (`VIRTIO_NET_F_CTRL_MAC_ADDR` is not offered).
    #[must_use]
    pub fn with_checked_source(self) -> Self {
        Self { checks_source: true, ..self }
    }

    /// The card, on a link that takes UDP datagrams in segments and gives them so: where it has
    /// [offloads](NetConfig::offloads), this one is offered, too (`VIRTIO_NET_F_HOST_USO`, `_GUEST_USO4` and `_GUEST_USO6`,
    /// which drivers of the modern interface see).
    #[must_use]
    pub fn with_udp_segments(self) -> Self {
        Self { udp_segments: true, ..self }
    }

    /// The card, without these of the features that it would offer, and without those that ask for one of them (virtio 1.3
    /// §5.1.3.1).
    #[must_use]
    pub fn without_features(self, withheld: u64) -> Self {
        Self { withheld, ..self }
    }

    /// Queue pairs there are.
    pub fn pairs(&self) -> u16 {
        self.settings.pairs()
    }

    /// What the driver has set, for tests that take a worker's part.
    #[cfg(test)]
    pub(super) fn settings(&self) -> &Settings {
        &self.settings
    }

    /// Queue pairs that the driver uses.
    pub fn pairs_in_use(&self) -> u16 {
        self.settings.now().pairs
    }

    /// The index by which workers know the control queue: behind all pairs.
    pub fn control_queue(&self) -> u16 {
        self.pairs().saturating_mul(2)
    }

    /// The card, with a responder that takes what is for it from the frames its driver sends. `receiver` wakes the worker of
    /// the receive queue: one answer waits for it, a later one takes its place.
    #[must_use]
    pub fn with_responder(self, responder: Responder, receiver: Arc<dyn Wake>) -> Self {
        Self { station: Some(Arc::new(Station::new(responder, receiver))), ..self }
    }

    /// Plugs the cable or pulls it. While it is out workers move no frames: what the driver sends is taken and lost, and so
    /// is what arrives for it, each counted; a round that has begun may still move its frames. Where the link is up again
    /// the driver is also asked to announce itself, as the network may be another one.
    ///
    /// The caller tells the driver where this returns `true`, through
    /// [`VirtioInterrupt::config_changed`](crate::virtio::VirtioInterrupt::config_changed), and wakes the workers: a frame
    /// that waits for the network, or for the driver's buffers, is theirs to drop.
    pub fn set_link(&self, up: bool) -> bool {
        self.link.set_down(Reason::Unplugged, !up)
    }

    /// As [`set_link`](Self::set_link), but for what the card is plugged into: the link is up where there is a cable and a
    /// carrier. It is no part of the saved state.
    pub fn set_carrier(&self, up: bool) -> bool {
        self.link.set_down(Reason::NoCarrier, !up)
    }

    /// Its address, as long as no driver sets another one.
    pub fn mac(&self) -> [u8; 6] {
        self.config.mac
    }

    /// Whether the driver sees the link up.
    pub fn is_up(&self) -> bool {
        self.link.is_up()
    }

    /// Whether the cable is plugged in, as [`set_link`](Self::set_link) said last.
    pub fn is_plugged(&self) -> bool {
        !self.link.is_down_for(Reason::Unplugged)
    }

    /// Whether there is a carrier, as [`set_carrier`](Self::set_carrier) said last.
    pub fn has_carrier(&self) -> bool {
        !self.link.is_down_for(Reason::NoCarrier)
    }

    /// Asks the driver to tell the network where it is, where it can (`VIRTIO_NET_F_GUEST_ANNOUNCE`, virtio 1.3
    /// §5.1.6.5.4) and the link is up. The caller tells it where this returns `true`, as with
    /// [`set_link`](Self::set_link).
    pub fn announce(&self) -> bool {
        self.link.ask_to_announce()
    }

    /// The worker of the first receive queue and the control queue, over its own handle to the link.
    pub fn rx_worker<B>(&self, backend: B, rx: Arc<QueueCounters>, control: Arc<QueueCounters>) -> NetWorker<B> {
        self.assemble(backend, Some(self.rx(0, rx)), Some(self.control(control)), None)
    }

    /// The worker of the first transmit queue, over its own handle to the link.
    pub fn tx_worker<B>(&self, backend: B, counters: Arc<QueueCounters>) -> NetWorker<B> {
        self.further_tx_worker(0, backend, counters)
    }

    /// The worker of the receive queue of a pair from 1 on, over that pair's handle to the link.
    pub fn further_rx_worker<B>(&self, pair: u16, backend: B, counters: Arc<QueueCounters>) -> NetWorker<B> {
        self.assemble(backend, Some(self.rx(pair, counters)), None, None)
    }

    /// The worker of the transmit queue of a pair, over that pair's handle to the link.
    pub fn further_tx_worker<B>(&self, pair: u16, backend: B, counters: Arc<QueueCounters>) -> NetWorker<B> {
        self.assemble(backend, None, None, Some(self.tx(pair, counters)))
    }

    /// One worker for the first pair and the control queue, with the counters of each.
    pub fn worker<B>(&self, backend: B, [rx, tx, control]: [Arc<QueueCounters>; 3]) -> NetWorker<B> {
        self.assemble(backend, Some(self.rx(0, rx)), Some(self.control(control)), Some(self.tx(0, tx)))
    }

    fn assemble<B>(&self, backend: B, rx: Option<Rx>, control: Option<Control>, tx: Option<Tx>) -> NetWorker<B> {
        NetWorker::new(backend, (self.link.clone(), self.settings.clone()), self.mtu(), rx, control, tx)
    }

    fn rx(&self, pair: u16, counters: Arc<QueueCounters>) -> Rx {
        let queue = WorkerQueue::new(RX_QUEUE.saturating_add(pair.saturating_mul(2)), self.config.queue_size, counters);
        // One of them takes the responder's answers to the driver.
        let station = self.station.clone().filter(|_| pair == 0);
        Rx::new(queue, pair, Filter::new(self.config.mac), station)
    }

    fn control(&self, counters: Arc<QueueCounters>) -> Control {
        // As long as the longest queue that a driver finds it at.
        let size = self.queue_sizes.get(usize::from(CONTROL_QUEUE)).copied().unwrap_or_default();
        Control::new(WorkerQueue::new(self.control_queue(), size, counters))
    }

    fn tx(&self, pair: u16, counters: Arc<QueueCounters>) -> Tx {
        let queue = WorkerQueue::new(TX_QUEUE.saturating_add(pair.saturating_mul(2)), self.config.queue_size, counters);
        Tx::new(queue, self.station.clone().map(Ear::new), self.checks_source.then_some(self.config.mac))
    }

    /// The MTU the guest is told: no smaller one may be (§5.1.4.1).
    fn mtu(&self) -> Option<u16> {
        self.config.mtu.filter(|mtu| *mtu >= LEAST_MTU)
    }

    /// What the guest is told of speed and duplex, where it is told anything.
    fn speed_and_duplex(&self) -> Option<(u32, u8)> {
        let speed = self.config.speed_mbits.filter(|speed| *speed <= MOST_SPEED_MBITS);
        let duplex = self.config.duplex.map(|duplex| duplex as u8);
        let told = speed.is_some() || duplex.is_some();
        told.then_some((speed.unwrap_or(UNKNOWN_SPEED), duplex.unwrap_or(UNKNOWN_DUPLEX)))
    }

    fn config_space(&self) -> [u8; LONGEST_CONFIG_BYTES] {
        let [m0, m1, m2, m3, m4, m5] = unpacked(self.link.mac());
        // Bit 0 of status is VIRTIO_NET_S_LINK_UP, bit 1 VIRTIO_NET_S_ANNOUNCE.
        let [s0, s1] = (u16::from(self.is_up()) | u16::from(self.link.is_announcing()) << 1).to_le_bytes();
        let [p0, p1] = self.pairs().to_le_bytes();
        let [t0, t1] = self.mtu().unwrap_or_default().to_le_bytes();
        let (speed, duplex) = self.speed_and_duplex().unwrap_or((UNKNOWN_SPEED, UNKNOWN_DUPLEX));
        let [v0, v1, v2, v3] = speed.to_le_bytes();
        [m0, m1, m2, m3, m4, m5, s0, s1, p0, p1, t0, t1, v0, v1, v2, v3, duplex]
    }
}

impl VirtioDevice for NetDevice {
    fn device_type(&self) -> u16 {
        1
    }

    fn features(&self) -> u64 {
        let mut features = feature::MAC | feature::STATUS | feature::MRG_RXBUF | F_INDIRECT_DESC | F_EVENT_IDX;
        features |= feature::CTRL_VQ | feature::CTRL_RX | feature::CTRL_RX_EXTRA | feature::CTRL_VLAN;
        features |= feature::GUEST_ANNOUNCE;
        if !self.checks_source {
            features |= feature::CTRL_MAC_ADDR;
        }
        if self.mtu().is_some() {
            features |= feature::MTU;
        }
        if self.pairs() > 1 {
            features |= feature::MQ;
        }
        if self.config.offloads {
            features |= feature::CSUM | feature::HOST_TSO4 | feature::HOST_TSO6 | feature::HOST_ECN;
            features |= feature::GUEST_CSUM | feature::GUEST_TSO4 | feature::GUEST_TSO6 | feature::GUEST_ECN;
            features |= feature::CTRL_GUEST_OFFLOADS;
            if self.udp_segments {
                features |= feature::HOST_USO | feature::GUEST_USO4 | feature::GUEST_USO6;
            }
        }
        if self.speed_and_duplex().is_some() {
            features |= feature::SPEED_DUPLEX;
        }
        without(features, self.withheld)
    }

    fn queue_max_sizes(&self) -> &[u16] {
        &self.queue_sizes
    }

    /// §5.1.2: without `VIRTIO_NET_F_MQ` there is one pair, and the control queue is behind it.
    fn queue_of(&self, index: u16, features: u64) -> Option<u16> {
        match index {
            _ if self.pairs() == 1 || features & feature::MQ != 0 => Some(index),
            RX_QUEUE | TX_QUEUE => Some(index),
            CONTROL_QUEUE => Some(self.control_queue()),
            _ => None,
        }
    }

    fn read_config(&self, offset: u32, data: &mut [u8]) {
        let space = self.config_space();
        let shown = space.get(..self.config_len() as usize).unwrap_or_default();
        crate::virtio::read_config_space(shown, offset, data);
    }

    fn write_config(&self, _offset: u32, _data: &[u8]) {
        // §5.1.4.2: the driver writes to none of the fields.
    }

    fn config_len(&self) -> u32 {
        let bytes = if self.speed_and_duplex().is_some() { LONGEST_CONFIG_BYTES } else { CONFIG_BYTES };
        bytes as u32
    }

    fn generation(&self) -> Option<&Generation> {
        Some(self.link.generation())
    }
}
