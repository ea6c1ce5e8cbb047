//! virtio-net (virtio 1.3 §5.1).

mod backend;

pub use backend::{HEADER_BYTES, Header, MAX_FRAME_RANGES, NetBackend, NetError, Offloads, Received, Sent};
