//! virtio-net (virtio 1.3 §5.1).
//!
//! [`NetDevice`] is what the registers show; a [`NetWorker`] moves frames between its queues and a [`NetBackend`], the
//! link, which lives outside the device model. Frames are not copied on their way: the link gets guest ranges. A card has one
//! pair of queues or several, of which its driver says how many it uses; the worker of the first receive queue also has the
//! control queue, whose commands are about received frames. A card can answer its guest's DHCP and ARP requests itself
//! ([`responder`]).
//!
//! Of the offloads, UDP fragmentation (`VIRTIO_NET_F_HOST_UFO`, `_GUEST_UFO`) is not offered, on no link. Linux took it out of its
//! network in 4.14: a TAP device takes `TUN_F_UFO` and gives no such datagram, and cuts what is sent so into the fragments
//! that the guest would have sent itself. A driver that knows the bits loses nothing, and drivers of now use segments (`_USO`).

mod backend;
mod control;
mod device;
mod filter;
mod header;
mod held;
pub mod kernel;
mod lately;
mod link;
#[cfg(test)]
mod proptests;
pub mod responder;
mod rx;
mod settings;
#[cfg(test)]
mod tests;
mod tx;
mod worker;

pub use backend::{Addresses, HEADER_BYTES, Header, MAX_FRAME_RANGES, NetBackend, NetError, Offloads, Received, Sent};
pub use device::{CONTROL_QUEUE, Duplex, MAX_PAIRS, NetConfig, NetDevice, RX_QUEUE, TX_QUEUE};
pub use worker::{CardState, NetWorker};
