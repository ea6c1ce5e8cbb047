//! A network card whose link takes every frame and always has another one.

use std::sync::Arc;

use devices::virtio::net::{
    Header, NetBackend, NetConfig, NetDevice, NetError, NetWorker, Offloads, RX_QUEUE, Received, Sent, TX_QUEUE,
};
use devices::virtio::queue::GuestRange;
use devices::virtio::testing::Buf;

use super::{Null, QUEUE_SIZE, Running};

/// `VIRTIO_F_VERSION_1` and `VIRTIO_NET_F_MRG_RXBUF`.
const FEATURES: u64 = 1 << 32 | 1 << 15;
const HEADER_BYTES: usize = 12;
/// What frames have here, and each of the buffers that Linux posts for them.
const FRAME_BYTES: usize = 64;
const BUFFER_BYTES: u32 = 1536;

/// Where frames go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// From the guest.
    Tx,
    /// To it.
    Rx,
}

/// A link with so many frames waiting.
struct NullLink(u64);

impl<M: ?Sized> NetBackend<M> for NullLink {
    fn send(&mut self, _mem: &M, _header: &Header, _frame: &[GuestRange]) -> Result<Sent, NetError> {
        Ok(Sent::Done)
    }
    fn receive(
        &mut self,
        _mem: &M,
        _header: &mut Header,
        _into: &[GuestRange],
        _spill: &mut [u8],
    ) -> Result<Received, NetError> {
        let Some(left) = self.0.checked_sub(1) else { return Ok(Received::WouldBlock) };
        self.0 = left;
        Ok(Received::Frame { len_bytes: FRAME_BYTES })
    }
    fn set_offloads(&mut self, _offloads: Offloads) -> Result<(), NetError> {
        Ok(())
    }
}

/// One queue of a card.
pub struct NullCard {
    way: Way,
    queue: Running<NetWorker<NullLink>>,
}

impl NullCard {
    /// One with a ring of either format. A receive queue has a buffer in each entry.
    #[must_use]
    pub fn new(way: Way, packed: bool) -> Self {
        let device = NetDevice::new(NetConfig {
            mac: [2, 0, 0, 0, 0, 1],
            mtu: None,
            offloads: true,
            queue_size: QUEUE_SIZE,
            speed_mbits: None,
            duplex: None,
        });
        let (link, counters) = (NullLink(0), Arc::default());
        let (worker, index) = match way {
            Way::Tx => (device.tx_worker(link, counters), TX_QUEUE),
            Way::Rx => (device.rx_worker(link, counters, Arc::default()), RX_QUEUE),
        };
        let mut card = Self { way, queue: Running::start(worker, index, FEATURES, packed) };
        card.refill();
        card
    }

    fn refill(&mut self) {
        let driver = &mut self.queue.driver;
        while self.way == Way::Rx && driver.free() > 0 {
            driver.post(&[Buf::Write(BUFFER_BYTES)]);
        }
        driver.publish();
    }
}

impl Null for NullCard {
    fn post(&mut self, count: u64) {
        match self.way {
            Way::Tx => {
                for _ in 0..count {
                    // Header and frame in one buffer, as Linux has them.
                    self.queue.driver.post(&[Buf::Read(vec![0; HEADER_BYTES + FRAME_BYTES])]);
                }
                self.queue.driver.publish();
            }
            Way::Rx => self.queue.worker.backend().0 = count,
        }
    }

    fn step(&mut self) {
        self.queue.step();
    }

    /// A receive queue has new buffers then.
    fn take_back(&mut self, count: u64) {
        self.queue.take_back(count);
        self.refill();
    }
}
