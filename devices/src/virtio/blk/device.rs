//! virtio-blk as the registers see it: features and configuration space.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use super::backend::BlkOp;
use super::durability::Durability;
use super::failure::{FailureSink, OnError, Unheard};
use super::worker::BlkWorker;
use crate::virtio::VirtioDevice;
use crate::virtio::counters::QueueCounters;
use crate::virtio::generation::Generation;
use crate::virtio::queue::{F_EVENT_IDX, F_INDIRECT_DESC};

/// Feature bits of virtio 1.3 §5.2.3.
pub(super) mod feature {
    pub const SEG_MAX: u64 = 1 << 2;
    pub const RO: u64 = 1 << 5;
    pub const BLK_SIZE: u64 = 1 << 6;
    pub const FLUSH: u64 = 1 << 9;
    pub const TOPOLOGY: u64 = 1 << 10;
    pub const CONFIG_WCE: u64 = 1 << 11;
    pub const MQ: u64 = 1 << 12;
    pub const DISCARD: u64 = 1 << 13;
    pub const WRITE_ZEROES: u64 = 1 << 14;
}

/// The names of the features in `features` that are virtio-blk's own (virtio 1.3 §5.2.3) or its rings'.
pub fn feature_names(features: u64) -> impl Iterator<Item = &'static str> {
    let names = [
        (feature::SEG_MAX, "SEG_MAX"),
        (feature::RO, "RO"),
        (feature::BLK_SIZE, "BLK_SIZE"),
        (feature::FLUSH, "FLUSH"),
        (feature::TOPOLOGY, "TOPOLOGY"),
        (feature::CONFIG_WCE, "CONFIG_WCE"),
        (feature::MQ, "MQ"),
        (feature::DISCARD, "DISCARD"),
        (feature::WRITE_ZEROES, "WRITE_ZEROES"),
        (F_INDIRECT_DESC, "INDIRECT_DESC"),
        (F_EVENT_IDX, "EVENT_IDX"),
    ];
    names.into_iter().filter_map(move |(bit, name)| (features & bit != 0).then_some(name))
}

/// Bytes of configuration space: everything up to and including `unused1` (virtio 1.3 §5.2.4). Drivers are known to
/// map the whole structure, so it is there whatever features are offered.
const CONFIG_BYTES: usize = 60;
/// Offset of `writeback`.
const WRITEBACK: u32 = 32;
/// Bytes of the device ID string (virtio 1.3 §5.2.6).
pub(super) const ID_BYTES: usize = 20;

/// How far discard and write-zeroes requests may go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EraseLimits {
    /// Most sectors a segment.
    pub max_sectors: u32,
    /// Most segments a request, at least one.
    pub max_segments: u32,
    /// What requests should be aligned to, in sectors.
    pub alignment_sectors: u32,
}

impl EraseLimits {
    const NONE: Self = Self { max_sectors: 0, max_segments: 0, alignment_sectors: 0 };
}

/// What a disk looks like to its guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BlkConfig {
    /// Size in 512-byte sectors.
    pub capacity_sectors: u64,
    /// Logical block size in bytes: a power of two from 512 on.
    pub block_bytes: u32,
    /// Physical block size in bytes: a power of two, not below the logical one.
    pub physical_block_bytes: u32,
    /// The smallest request without a penalty, in bytes; at least a physical block is shown.
    pub minimum_io_bytes: u32,
    /// The request the disk does best, in bytes; 0 for none.
    pub optimal_io_bytes: u32,
    /// Writes fail.
    pub read_only: bool,
    /// What GET_ID answers; cut to 20 bytes.
    pub serial: String,
    /// Largest size of each queue: a power of two, 4 to 32768. Requests have up to two segments less.
    pub queue_size: u16,
    /// Number of queues, at least one.
    pub queues: u16,
    /// Offer DISCARD.
    pub discard: Option<EraseLimits>,
    /// Offer WRITE_ZEROES.
    pub write_zeroes: Option<EraseLimits>,
    /// Let the driver switch the write cache (`VIRTIO_BLK_F_CONFIG_WCE`).
    pub config_wce: bool,
    /// What becomes of writes, flushes and erasures that the disk fails.
    pub on_write_error: OnError,
    /// What becomes of reads that the disk fails.
    pub on_read_error: OnError,
}

impl BlkConfig {
    pub(super) fn on_error(&self, op: BlkOp) -> OnError {
        if op == BlkOp::Read { self.on_read_error } else { self.on_write_error }
    }
}

impl Default for BlkConfig {
    /// An empty disk with 512-byte blocks and one queue of 256 entries.
    fn default() -> Self {
        Self {
            capacity_sectors: 0,
            block_bytes: 512,
            physical_block_bytes: 512,
            minimum_io_bytes: 0,
            optimal_io_bytes: 0,
            read_only: false,
            serial: String::new(),
            queue_size: 256,
            queues: 1,
            discard: None,
            write_zeroes: None,
            config_wce: false,
            on_write_error: OnError::Report,
            on_read_error: OnError::Report,
        }
    }
}

/// What the device and its workers share.
pub(super) struct Shared {
    pub config: BlkConfig,
    pub capacity_sectors: AtomicU64,
    pub generation: Generation,
    /// `writeback` of the configuration space.
    pub writeback: AtomicBool,
    pub durability: Durability,
    pub failures: Arc<dyn FailureSink>,
}

/// A virtio block device (virtio 1.3 §5.2).
#[derive(Clone)]
pub struct BlkDevice {
    shared: Arc<Shared>,
    queue_sizes: Vec<u16>,
}

impl BlkDevice {
    /// A disk that looks like `config`, whose failures nobody hears of.
    pub fn new(config: BlkConfig) -> Self {
        Self::with_sink(config, Arc::new(Unheard))
    }

    /// A disk that looks like `config`, and tells `failures` what goes wrong.
    pub fn with_sink(config: BlkConfig, failures: Arc<dyn FailureSink>) -> Self {
        let queue_sizes = vec![config.queue_size; usize::from(config.queues)];
        let shared = Shared {
            capacity_sectors: AtomicU64::new(config.capacity_sectors),
            generation: Generation::default(),
            writeback: AtomicBool::new(true),
            durability: Durability::default(),
            failures,
            config,
        };
        Self { shared: Arc::new(shared), queue_sizes }
    }

    /// The worker of queue `queue`, over its own handle to the disk.
    pub fn worker<B>(&self, queue: u16, backend: B, counters: Arc<QueueCounters>) -> BlkWorker<B> {
        BlkWorker::new(self.shared.clone(), queue, backend, counters)
    }

    /// The size of the disk, in 512-byte sectors.
    pub fn capacity_sectors(&self) -> u64 {
        self.shared.capacity_sectors.load(Ordering::Acquire)
    }

    /// Changes the size of the disk. The caller tells the driver, through
    /// [`VirtioInterrupt::config_changed`](crate::virtio::VirtioInterrupt::config_changed). Requests in flight keep
    /// the bounds they were checked against, so a disk is made smaller only after its requests have drained.
    pub fn set_capacity(&self, sectors: u64) {
        let Shared { capacity_sectors, generation, .. } = &*self.shared;
        generation.change(|| capacity_sectors.swap(sectors, Ordering::AcqRel) != sectors);
    }

    /// Whether a flush has succeeded since the last write that failed or was cancelled.
    #[must_use]
    pub fn is_settled(&self) -> bool {
        self.shared.durability.is_settled()
    }

    /// Whether a flush failed, and nobody has said to [`go_on`](Self::go_on).
    #[must_use]
    pub fn is_lost(&self) -> bool {
        self.shared.durability.is_lost()
    }

    /// The operator says to go on after a failed flush: flushes and durable writes are tried again. Until then they fail,
    /// whatever the guest does.
    pub fn go_on(&self) {
        self.shared.durability.go_on();
    }

    fn config_space(&self) -> [u8; CONFIG_BYTES] {
        let config = &self.shared.config;
        let physical_ratio = config.physical_block_bytes.checked_div(config.block_bytes).unwrap_or(1).max(1);
        let discard = config.discard.unwrap_or(EraseLimits::NONE);
        let zeroes = config.write_zeroes.unwrap_or(EraseLimits::NONE);
        let mut space = ConfigSpace::default();
        space.put(0, &self.shared.capacity_sectors.load(Ordering::Acquire).to_le_bytes());
        space.put(12, &u32::from(config.queue_size.saturating_sub(2)).to_le_bytes());
        space.put(20, &config.block_bytes.to_le_bytes());
        space.put(24, &[u8::try_from(physical_ratio.ilog2()).unwrap_or_default()]);
        let blocks = |bytes: u32| bytes.checked_div(config.block_bytes).unwrap_or_default();
        let minimum = blocks(config.minimum_io_bytes).max(physical_ratio);
        space.put(26, &u16::try_from(minimum).unwrap_or(u16::MAX).to_le_bytes());
        space.put(28, &blocks(config.optimal_io_bytes).to_le_bytes());
        space.put(32, &[u8::from(self.shared.writeback.load(Ordering::Acquire))]);
        space.put(34, &config.queues.to_le_bytes());
        space.put(36, &discard.max_sectors.to_le_bytes());
        space.put(40, &discard.max_segments.to_le_bytes());
        space.put(44, &discard.alignment_sectors.to_le_bytes());
        space.put(48, &zeroes.max_sectors.to_le_bytes());
        space.put(52, &zeroes.max_segments.to_le_bytes());
        space.put(56, &[u8::from(config.write_zeroes.is_some())]);
        space.0
    }
}

struct ConfigSpace([u8; CONFIG_BYTES]);

impl Default for ConfigSpace {
    fn default() -> Self {
        Self([0; CONFIG_BYTES])
    }
}

impl ConfigSpace {
    fn put(&mut self, offset: usize, field: &[u8]) {
        for (to, from) in self.0.iter_mut().skip(offset).zip(field) {
            *to = *from;
        }
    }
}

impl VirtioDevice for BlkDevice {
    fn device_type(&self) -> u16 {
        2
    }

    fn features(&self) -> u64 {
        let config = &self.shared.config;
        let mut features = feature::SEG_MAX | feature::BLK_SIZE | feature::FLUSH | feature::TOPOLOGY;
        for (offered, bit) in [
            (config.read_only, feature::RO),
            (config.config_wce, feature::CONFIG_WCE),
            (config.queues > 1, feature::MQ),
            (config.discard.is_some(), feature::DISCARD),
            (config.write_zeroes.is_some(), feature::WRITE_ZEROES),
        ] {
            if offered {
                features |= bit;
            }
        }
        features | F_INDIRECT_DESC | F_EVENT_IDX
    }

    fn queue_max_sizes(&self) -> &[u16] {
        &self.queue_sizes
    }

    fn read_config(&self, offset: u32, data: &mut [u8]) {
        crate::virtio::read_config_space(&self.config_space(), offset, data);
    }

    fn write_config(&self, offset: u32, data: &[u8]) {
        let writeback = WRITEBACK.checked_sub(offset).and_then(|at| data.get(at as usize));
        if let Some(value) = writeback.filter(|_| self.shared.config.config_wce) {
            self.shared.writeback.store(value & 1 != 0, Ordering::Release);
        }
    }

    fn driver_config(&self) -> std::ops::Range<u32> {
        WRITEBACK..WRITEBACK.saturating_add(1)
    }

    fn config_len(&self) -> u32 {
        CONFIG_BYTES as u32
    }

    fn generation(&self) -> Option<&Generation> {
        Some(&self.shared.generation)
    }

    fn features_accepted(&self, features: u64) {
        // §5.2.5.2: with CONFIG_WCE but without FLUSH the cache starts as write-through. Everywhere else, and after a
        // reset, it starts as write-back.
        let write_through = features & (feature::CONFIG_WCE | feature::FLUSH) == feature::CONFIG_WCE;
        self.shared.writeback.store(!write_through, Ordering::Release);
    }
}
