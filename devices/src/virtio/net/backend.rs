//! What a network link has to offer: the seam between virtio-net and whatever carries the frames.

use crate::virtio::queue::GuestRange;

/// Bytes of the virtio-net header as back ends see it: `struct virtio_net_hdr_v1`, whatever layout the driver uses
/// (virtio 1.3 §5.1.6).
pub const HEADER_BYTES: usize = 12;

/// The most guest ranges a frame is handed over in, so that a vector of them, the header and a spill buffer stay below
/// the 1024 that `readv` and `writev` take.
pub const MAX_FRAME_RANGES: usize = 512;

/// `struct virtio_net_hdr_v1`, little endian: flags, gso_type, hdr_len, gso_size, csum_start, csum_offset and
/// num_buffers. `num_buffers` is the device's to fill; back ends ignore it.
pub type Header = [u8; HEADER_BYTES];

/// The first bytes of every frame: whom it is for, then whom it is from.
pub type Addresses = [u8; 12];

/// What the guest can take in received frames, and so what the link may leave unfinished in them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Offloads {
    /// Partial checksums (`VIRTIO_NET_F_GUEST_CSUM`).
    pub csum: bool,
    /// Large TCP over IPv4 segments (`VIRTIO_NET_F_GUEST_TSO4`).
    pub tso4: bool,
    /// Large TCP over IPv6 segments (`VIRTIO_NET_F_GUEST_TSO6`).
    pub tso6: bool,
    /// Large segments with ECN (`VIRTIO_NET_F_GUEST_ECN`).
    pub ecn: bool,
    /// UDP datagrams in one segment, over IPv4 and IPv6 (`VIRTIO_NET_F_GUEST_USO4` and `_USO6`): links leave both or none.
    pub uso: bool,
}

/// What became of a frame given to [`NetBackend::send`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sent {
    /// It is on its way; its memory is free.
    Done,
    /// The link takes nothing right now. The same frame is offered again when the link is writable.
    WouldBlock,
}

/// What [`NetBackend::receive`] found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Received {
    /// A frame of this many bytes, the header not counted.
    Frame {
        /// Bytes of the frame: first in the guest ranges, and from where they end in the spill buffer. More than both
        /// together hold means that the frame was cut.
        len_bytes: usize,
    },
    /// No frame is waiting.
    WouldBlock,
}

/// How a link failed. A frame lost to it is counted and forgotten, as on any network.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NetError {
    /// The host refused, with this `errno` of the host.
    #[error("the link failed with errno {0}")]
    Host(i32),
    /// Guest memory could not be reached.
    #[error("guest memory could not be reached")]
    Memory,
    /// The link does not do that.
    #[error("the link does not do that")]
    Unsupported,
}

/// A link, as one worker sees it. Nothing here blocks, and nothing keeps the ranges after the call.
///
/// `M` is the guest memory the ranges point into; all of them lie inside it.
pub trait NetBackend<M: ?Sized>: Send {
    /// Sends one frame. `header` is the driver's, copied once and brought to the 12-byte layout; of its flags only
    /// `NEEDS_CSUM` is left, and nothing else of it is validated. At most [`MAX_FRAME_RANGES`] ranges.
    fn send(&mut self, mem: &M, header: &Header, frame: &[GuestRange]) -> Result<Sent, NetError>;

    /// As [`send`](Self::send), of a frame whose first bytes are `addresses` and whose other bytes are in `rest`, possibly in
    /// none: the guest cannot change what was looked at. For cards with a
    /// [checked source](super::NetDevice::with_checked_source); a link that has none need not write it.
    fn send_from(
        &mut self,
        _mem: &M,
        _header: &Header,
        _addresses: &Addresses,
        _rest: &[GuestRange],
    ) -> Result<Sent, NetError> {
        Err(NetError::Unsupported)
    }

    /// Receives one frame: its header into `header`, its bytes into `into`, and what does not fit there into `spill`.
    /// At most [`MAX_FRAME_RANGES`] ranges, possibly none. An error means that the link is gone: the worker tries again
    /// with the driver's next kick only. What may pass is [`Received::WouldBlock`].
    fn receive(
        &mut self,
        mem: &M,
        header: &mut Header,
        into: &[GuestRange],
        spill: &mut [u8],
    ) -> Result<Received, NetError>;

    /// Whether who waits for the link hears of every frame, also where several have come: then a frame that nobody asked for
    /// before the wait is not lost. Not so for a link that has taken frames from the host that it has not given yet.
    fn tells_of_every_frame(&self) -> bool {
        false
    }

    /// Says what received frames may look like from now on. Called when a driver takes over the receive queue, and when
    /// it changes its mind (`VIRTIO_NET_F_CTRL_GUEST_OFFLOADS`). After an error frames may look as before, or as asked.
    fn set_offloads(&mut self, offloads: Offloads) -> Result<(), NetError>;

    /// Gives received frames to the first `pairs` queue pairs from now on, those of one flow to one of them, and to the other
    /// pairs none. Called on the link of the first pair, of a card that was made with several; one is in use until it is
    /// called, and again after a reset. May take a few milliseconds. After an error it is as before.
    fn set_pairs(&mut self, pairs: u16) -> Result<(), NetError> {
        let _ = pairs;
        Ok(())
    }

    /// The driver resets the receive queue by itself (`false`), or lets it begin again (`true`; also with the whole card's reset):
    /// meanwhile frames that would have come by this link go to other pairs in use, where there are some, and are lost else
    /// (virtio 1.3 §5.1.6.5.6.2). A link that cannot see to that keeps them, and they are asked for and lost when the queue
    /// begins again. May take a few milliseconds. After an error it is as before.
    fn set_receiving(&mut self, receiving: bool) -> Result<(), NetError> {
        let _ = receiving;
        Ok(())
    }

    /// The card's own address is another one from now on, for links that have to do with that. Called on the link of the control
    /// queue. After an error it is as before, and the driver's command is refused.
    fn set_address(&mut self, mac: [u8; 6]) -> Result<(), NetError> {
        let _ = mac;
        Ok(())
    }
}

impl<M: ?Sized, B: NetBackend<M> + ?Sized> NetBackend<M> for Box<B> {
    fn send(&mut self, mem: &M, header: &Header, frame: &[GuestRange]) -> Result<Sent, NetError> {
        (**self).send(mem, header, frame)
    }

    fn send_from(
        &mut self,
        mem: &M,
        header: &Header,
        addresses: &Addresses,
        rest: &[GuestRange],
    ) -> Result<Sent, NetError> {
        (**self).send_from(mem, header, addresses, rest)
    }

    fn receive(
        &mut self,
        mem: &M,
        header: &mut Header,
        into: &[GuestRange],
        spill: &mut [u8],
    ) -> Result<Received, NetError> {
        (**self).receive(mem, header, into, spill)
    }

    fn tells_of_every_frame(&self) -> bool {
        (**self).tells_of_every_frame()
    }

    fn set_offloads(&mut self, offloads: Offloads) -> Result<(), NetError> {
        (**self).set_offloads(offloads)
    }

    fn set_pairs(&mut self, pairs: u16) -> Result<(), NetError> {
        (**self).set_pairs(pairs)
    }

    fn set_receiving(&mut self, receiving: bool) -> Result<(), NetError> {
        (**self).set_receiving(receiving)
    }

    fn set_address(&mut self, mac: [u8; 6]) -> Result<(), NetError> {
        (**self).set_address(mac)
    }
}
