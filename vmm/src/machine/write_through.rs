//! A disk whose guest cannot flush: each write is on stable storage before the guest is told of it.

use std::ops::Range;

use devices::virtio::VirtioDevice;
use devices::virtio::blk::BlkDevice;

/// The features by which a driver makes a write cache its own affair (virtio 1.3 §5.2.3): FLUSH and CONFIG_WCE. A device of
/// which neither is negotiated has no volatile write cache for its driver (§5.2.6.2).
const CACHE_FEATURES: u64 = 1 << 9 | 1 << 11;

/// The disk, without them.
pub struct WriteThrough(pub BlkDevice);

impl VirtioDevice for WriteThrough {
    fn device_type(&self) -> u16 {
        self.0.device_type()
    }

    fn features(&self) -> u64 {
        self.0.features() & !CACHE_FEATURES
    }

    fn queue_max_sizes(&self) -> &[u16] {
        self.0.queue_max_sizes()
    }

    fn read_config(&self, offset: u32, data: &mut [u8]) {
        self.0.read_config(offset, data);
    }

    fn write_config(&self, offset: u32, data: &[u8]) {
        self.0.write_config(offset, data);
    }

    fn driver_config(&self) -> Range<u32> {
        self.0.driver_config()
    }

    fn config_len(&self) -> u32 {
        self.0.config_len()
    }

    fn generation(&self) -> Option<&devices::virtio::Generation> {
        self.0.generation()
    }

    fn config_generation(&self) -> u8 {
        self.0.config_generation()
    }

    fn features_accepted(&self, features: u64) {
        self.0.features_accepted(features);
    }
}

#[cfg(test)]
mod tests {
    use devices::virtio::blk::{BlkConfig, feature_names};

    use super::*;

    #[test]
    fn nothing_is_offered_by_which_a_write_could_be_told_of_before_it_is_stable() {
        let disk = || BlkDevice::new(BlkConfig { config_wce: true, queues: 2, ..BlkConfig::default() });
        let gone = disk().features() & !WriteThrough(disk()).features();
        assert_eq!(feature_names(gone).collect::<Vec<_>>(), ["FLUSH", "CONFIG_WCE"]);
        assert_eq!(WriteThrough(disk()).queue_max_sizes(), disk().queue_max_sizes());
    }
}
