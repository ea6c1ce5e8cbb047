//! A network card whose link takes every frame and always has another one.

use std::sync::Arc;

use devices::GuestRam;
use devices::virtio::VirtioWorker as _;
use devices::virtio::net::{
    Header, NetBackend, NetConfig, NetDevice, NetError, NetWorker, Offloads, RX_QUEUE, Received, Sent, TX_QUEUE,
};
use devices::virtio::queue::{F_EVENT_IDX, F_INDIRECT_DESC, F_RING_PACKED, GuestRange};
use devices::virtio::testing::{Buf, DriverQueue, RecordingInterrupt, guest_ram};

/// `VIRTIO_F_VERSION_1` and `VIRTIO_NET_F_MRG_RXBUF`.
const FEATURES: u64 = 1 << 32 | 1 << 15 | F_INDIRECT_DESC | F_EVENT_IDX;
const QUEUE_SIZE: u16 = 256;
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

/// One queue of a card, with its worker and its driver.
pub struct NullCard {
    mem: GuestRam,
    way: Way,
    worker: NetWorker<NullLink>,
    driver: DriverQueue,
    interrupt: Arc<RecordingInterrupt>,
}

impl NullCard {
    /// One with a ring of 256 entries, of either format. A receive queue has a buffer in each.
    #[must_use]
    pub fn new(way: Way, packed: bool) -> Self {
        let mem = guest_ram(0x40_0000);
        let features = FEATURES | if packed { F_RING_PACKED } else { 0 };
        let device = NetDevice::new(NetConfig {
            mac: [2, 0, 0, 0, 0, 1],
            mtu: None,
            offloads: true,
            queue_size: QUEUE_SIZE,
            speed_mbits: None,
            duplex: None,
        });
        let (link, counters) = (NullLink(0), Arc::default());
        let (mut worker, queue) = match way {
            Way::Tx => (device.tx_worker(link, counters), TX_QUEUE),
            Way::Rx => (device.rx_worker(link, counters, Arc::default()), RX_QUEUE),
        };
        let driver = DriverQueue::new(&mem, 0x10_0000, QUEUE_SIZE, features);
        let interrupt = RecordingInterrupt::new();
        worker.start(&mem, queue, driver.state(), &interrupt.activation(features));
        let mut card = Self { mem, way, worker, driver, interrupt };
        if way == Way::Rx {
            card.refill();
        }
        card
    }

    fn refill(&mut self) {
        while self.driver.free() > 0 {
            self.driver.post(&[Buf::Write(BUFFER_BYTES)]);
        }
        self.driver.publish();
    }

    /// So many frames are there to be moved.
    pub fn post(&mut self, count: u64) {
        match self.way {
            Way::Tx => {
                for _ in 0..count {
                    // Header and frame in one buffer, as Linux has them.
                    self.driver.post(&[Buf::Read(vec![0; HEADER_BYTES + FRAME_BYTES])]);
                }
                self.driver.publish();
            }
            Way::Rx => self.worker.backend().0 = count,
        }
    }

    /// The worker does what there is to do.
    pub fn step(&mut self) {
        while self.worker.step(&self.mem).again {}
    }

    /// The driver takes its buffers back, and gives new ones to the receive queue.
    ///
    /// # Panics
    /// When there are not so many.
    pub fn take_back(&mut self, count: u64) {
        assert_eq!(self.driver.used().len() as u64, count);
        if self.way == Way::Rx {
            self.refill();
        }
        self.interrupt.take_used();
    }
}
