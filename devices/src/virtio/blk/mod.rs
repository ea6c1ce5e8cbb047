//! virtio-blk (virtio 1.3 §5.2).
//!
//! [`BlkDevice`] is what the registers show; a [`BlkWorker`] a queue turns chains into requests to a [`BlkBackend`],
//! the disk itself, which lives outside the device model.

mod backend;
mod device;
mod durability;
mod failure;
mod flight;
mod held;
#[cfg(test)]
mod proptests;
mod request;
mod stats;
#[cfg(test)]
mod tests;
mod worker;

pub use backend::{BlkBackend, BlkError, BlkOp, BlkRequest, RequestToken, SECTOR_BYTES};
pub use device::{BlkConfig, BlkDevice, EraseLimits, feature_names};
pub use failure::{Failure, FailureSink, OnError, Unheard};
pub use held::HeldRequests;
pub use stats::{BlkStats, BlkStatsSnapshot, ErrorsSnapshot, LatencySnapshot, OpsSnapshot};
pub use worker::BlkWorker;
