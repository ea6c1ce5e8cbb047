//! virtio-blk (virtio 1.3 §5.2).

mod backend;

pub use backend::{BlkBackend, BlkError, BlkOp, BlkRequest, RequestToken, SECTOR_BYTES};
