//! The meters behind the rate limits of a configuration.

use devices::virtio::limit::{Meters, Rate};

use crate::config::{DirectionLimitConfig, DiskConfig, LimitConfig, LimitGroupConfig};

/// The meters of all groups.
pub struct Groups(Vec<(String, Meters)>);

impl Groups {
    /// Full buckets.
    pub fn new(groups: &[LimitGroupConfig]) -> Self {
        Self(groups.iter().map(|group| (group.name.clone(), meters(&group.limits))).collect())
    }

    /// What holds `disk` back: meters of its own, for all its queues, and those of its group. An unknown group, which the
    /// check refuses, limits nothing.
    pub fn meters_of(&self, disk: &DiskConfig) -> [Meters; 2] {
        let group = self.0.iter().find(|(name, _)| disk.limit_group.as_ref() == Some(name));
        [meters(&disk.limits), group.map(|(_, meters)| meters.clone()).unwrap_or_default()]
    }
}

/// The meters of one direction of a network interface, for all its queues.
pub fn of_direction(limits: &DirectionLimitConfig) -> Meters {
    let rate = |per_second: Option<u64>, burst| per_second.map(|per_second| Rate { per_second, burst });
    Meters::new(rate(limits.packets, limits.packets_burst), rate(limits.bytes, limits.bytes_burst))
}

fn meters(limits: &LimitConfig) -> Meters {
    let rate = |per_second: Option<u64>, burst| per_second.map(|per_second| Rate { per_second, burst });
    Meters::new(rate(limits.ops, limits.ops_burst), rate(limits.bytes, limits.bytes_burst))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[test]
    fn disks_of_a_group_share_its_meters_and_have_their_own_for_themselves() {
        let limits = LimitConfig { ops: Some(10), ..LimitConfig::default() };
        let group = |name: &str| LimitGroupConfig { name: name.to_owned(), limits: limits.clone() };
        let groups = Groups::new(&[group("a"), group("b")]);
        let disk = |group: Option<&str>| DiskConfig {
            limits: LimitConfig { bytes: Some(1 << 20), ..LimitConfig::default() },
            limit_group: group.map(str::to_owned),
            ..DiskConfig::new("d")
        };
        let [one, two, other, alone] =
            [Some("a"), Some("a"), Some("b"), None].map(|group| groups.meters_of(&disk(group)));
        let same = |a: &[Meters; 2], b: &[Meters; 2]| matches!((&a[1].requests, &b[1].requests), (Some(a), Some(b)) if Arc::ptr_eq(a, b));
        assert!(same(&one, &two) && !same(&one, &other));
        assert!(alone[1].requests.is_none() && alone[1].bytes.is_none());
        let bytes = |meters: &[Meters; 2]| meters[0].bytes.clone().unwrap();
        assert!(!Arc::ptr_eq(&bytes(&one), &bytes(&two)));
        assert!(one[0].requests.is_none() && one[1].bytes.is_none());
    }
}
