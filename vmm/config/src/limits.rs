//! Rate limits of disks, each for itself and in groups, and of network interfaces.

use serde::{Deserialize, Serialize};

use super::check::Problems;
use super::values::{format_size, optional_size_text};
use super::{VmConfig, nearest};

/// The highest limit: far beyond what any disk or network can do, so a larger one is a typing error.
const MAX_PER_SECOND: u64 = 1 << 40;

/// The longest time whose worth can be saved up for a burst, in seconds: a week.
const MAX_BURST_S: u64 = 7 * 24 * 3600;

/// How much a disk, or a group of disks together, may do. What is not given is not limited.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LimitConfig {
    /// Requests a second, of whatever kind.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ops: Option<u64>,
    /// Requests that may be done at once after a pause; a tenth of a second's worth when not given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ops_burst: Option<u64>,
    /// Bytes a second, read, written and zeroed.
    #[serde(with = "optional_size_text", skip_serializing_if = "Option::is_none")]
    pub bytes: Option<u64>,
    /// Bytes that may be moved at once after a pause; a tenth of a second's worth when not given.
    #[serde(with = "optional_size_text", skip_serializing_if = "Option::is_none")]
    pub bytes_burst: Option<u64>,
}

/// Limits that several disks share.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LimitGroupConfig {
    /// What disks call it.
    pub name: String,
    /// What its disks may do together.
    pub limits: LimitConfig,
}

impl LimitConfig {
    /// Whether nothing is limited.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    fn check(&self, owner: &str, found: &mut Problems) {
        let plain = |value: u64| value.to_string();
        check_one((owner, "disk"), ("ops", self.ops, self.ops_burst), plain, found);
        check_one((owner, "disk"), ("bytes", self.bytes, self.bytes_burst), format_size, found);
    }
}

/// How much a network interface may receive and send. What is not given is not limited.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct NetLimitConfig {
    /// What goes to the guest. More than that waits in the link, which drops what it has no room for.
    #[serde(skip_serializing_if = "DirectionLimitConfig::is_empty")]
    pub rx: DirectionLimitConfig,
    /// What comes from the guest. More than that waits in the guest.
    #[serde(skip_serializing_if = "DirectionLimitConfig::is_empty")]
    pub tx: DirectionLimitConfig,
}

/// How much may go one way through a network interface.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DirectionLimitConfig {
    /// Packets a second. One of up to 64 KiB that is cut into frames later is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub packets: Option<u64>,
    /// Packets that may go at once after a pause; a tenth of a second's worth when not given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub packets_burst: Option<u64>,
    /// Bytes of packets a second, with their Ethernet headers.
    #[serde(with = "optional_size_text", skip_serializing_if = "Option::is_none")]
    pub bytes: Option<u64>,
    /// Bytes that may go at once after a pause; a tenth of a second's worth when not given.
    #[serde(with = "optional_size_text", skip_serializing_if = "Option::is_none")]
    pub bytes_burst: Option<u64>,
}

impl NetLimitConfig {
    /// Whether nothing is limited.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    fn check(&self, owner: &str, found: &mut Problems) {
        for (way, limits) in [("rx", &self.rx), ("tx", &self.tx)] {
            let DirectionLimitConfig { packets, packets_burst, bytes, bytes_burst } = *limits;
            let plain = |value: u64| value.to_string();
            check_one((owner, "network"), (&format!("{way}_packets"), packets, packets_burst), plain, found);
            check_one((owner, "network"), (&format!("{way}_bytes"), bytes, bytes_burst), format_size, found);
        }
    }
}

impl DirectionLimitConfig {
    /// Whether nothing is limited.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// `kind` is what the limit is of, in words.
fn check_one(
    (owner, kind): (&str, &str),
    (what, limit, burst): (&str, Option<u64>, Option<u64>),
    show: fn(u64) -> String,
    found: &mut Problems,
) {
    let key = format!("limit_{what}");
    match (limit, burst) {
        (None, None) => {}
        (None, Some(burst)) => {
            found.add(owner, format!("{key}_burst {} is a burst of no limit; give {key}, too", show(burst)));
        }
        (Some(0), _) => found.add(owner, format!("{key} 0 would let nothing through; leave it out for no limit")),
        (Some(limit), _) if limit > MAX_PER_SECOND => {
            let most = show(MAX_PER_SECOND);
            found.add(owner, format!("{key} {} is more than any {kind} can do; the most is {most}", show(limit)));
        }
        (Some(_), Some(0)) => {
            found
                .add(owner, format!("{key}_burst 0 would let nothing through; leave it out for a tenth of a second's"));
        }
        (Some(limit), Some(burst)) if burst / limit > MAX_BURST_S => {
            let (limit, burst) = (show(limit), show(burst));
            found.add(owner, format!("{key}_burst {burst} is more than a week's worth of {key} {limit}"));
        }
        (Some(_), _) => {}
    }
}

impl VmConfig {
    pub(super) fn check_limits(&self, found: &mut Problems) {
        let names: Vec<&str> = self.limit_groups.iter().map(|group| group.name.as_str()).collect();
        for (index, group) in self.limit_groups.iter().enumerate() {
            let owner = format!("limit group {}", group.name);
            let fits = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
            if group.name.is_empty() || group.name.len() > 64 || !group.name.bytes().all(fits) {
                let problem =
                    format!("'{}' is not a name; it has 1 to 64 letters, digits, '-', '_' and '.'", group.name);
                found.add("limit_groups (--limit-group)", problem);
            } else if names[..index].contains(&group.name.as_str()) {
                found.add(&owner, "it is configured twice");
            } else if group.limits.is_empty() {
                found.add(&owner, "it limits nothing; give limit_ops or limit_bytes");
            }
            group.limits.check(&owner, found);
        }
        self.nets.iter().for_each(|net| net.limits.check(&net.id, found));
        for disk in &self.disks {
            disk.limits.check(&disk.id, found);
            let Some(name) = &disk.limit_group else { continue };
            if names.is_empty() {
                let problem = format!("limit_group {name} is not configured; give --limit-group {name},limit_ops=N");
                found.add(&disk.id, problem);
            } else if !names.contains(&name.as_str()) {
                found.add(&disk.id, nearest::unknown("limit_group", name, names.iter().copied()));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{ConfigError, DiskConfig, Mac, NetConfig};

    fn group(name: &str, limits: LimitConfig) -> LimitGroupConfig {
        LimitGroupConfig { name: name.to_owned(), limits }
    }

    fn problems(disk: LimitConfig, limit_group: Option<&str>, limit_groups: Vec<LimitGroupConfig>) -> Vec<String> {
        let disk =
            DiskConfig { limits: disk, limit_group: limit_group.map(str::to_owned), ..DiskConfig::new("root.img") };
        let mut config = VmConfig { disks: vec![disk], limit_groups, ..VmConfig::default() };
        config.boot.kernel = "vmlinuz".into();
        config.name_devices();
        config.problems().iter().map(ConfigError::to_string).collect()
    }

    #[test]
    fn limits_that_can_be_kept_are_good() {
        let all = LimitConfig { ops: Some(100), ops_burst: Some(1), bytes: Some(1 << 20), bytes_burst: Some(4 << 30) };
        let groups = vec![group("slow", all.clone()), group("unused", all.clone())];
        assert_eq!(problems(all, Some("slow"), groups), [""; 0]);
        assert_eq!(problems(LimitConfig::default(), None, Vec::new()), [""; 0]);
    }

    #[test]
    fn limits_that_cannot_be_meant_are_refused_with_their_key() {
        let none = LimitConfig::default();
        let ops = |ops, ops_burst| LimitConfig { ops, ops_burst, ..LimitConfig::default() };
        let bytes = |bytes, bytes_burst| LimitConfig { bytes, bytes_burst, ..LimitConfig::default() };
        for (limits, message) in [
            (ops(Some(0), None), "disk0: limit_ops 0 would let nothing through; leave it out for no limit"),
            (bytes(Some(0), Some(1)), "disk0: limit_bytes 0 would let nothing through; leave it out for no limit"),
            (ops(None, Some(5)), "disk0: limit_ops_burst 5 is a burst of no limit; give limit_ops, too"),
            (bytes(None, Some(1 << 20)), "disk0: limit_bytes_burst 1M is a burst of no limit; give limit_bytes, too"),
            (
                ops(Some(9), Some(0)),
                "disk0: limit_ops_burst 0 would let nothing through; leave it out for a tenth of a second's",
            ),
            (bytes(Some(1 << 41), None), "disk0: limit_bytes 2T is more than any disk can do; the most is 1T"),
            (ops(Some(u64::MAX), None), "disk0: limit_ops 18446744073709551615 is more than any disk can do"),
            (
                bytes(Some(1 << 10), Some(1 << 40)),
                "disk0: limit_bytes_burst 1T is more than a week's worth of limit_bytes 1K",
            ),
        ] {
            let found = problems(limits.clone(), None, Vec::new());
            assert!(found.len() == 1 && found[0].starts_with(message), "{found:?}");
            let in_group = problems(none.clone(), None, vec![group("g", limits)]);
            assert!(in_group.len() == 1 && in_group[0].starts_with(&message.replace("disk0", "limit group g")));
        }
    }

    #[test]
    fn limits_of_a_network_interface_are_refused_with_their_direction() {
        let problems = |rx, tx| {
            let limits = NetLimitConfig { rx, tx };
            let net = NetConfig { mac: Some(Mac([2; 6])), limits, ..NetConfig::new("tap0") };
            let mut config = VmConfig { nets: vec![net], ..VmConfig::default() };
            config.boot.kernel = "vmlinuz".into();
            config.name_devices();
            config.problems().iter().map(ConfigError::to_string).collect::<Vec<_>>()
        };
        let none = DirectionLimitConfig::default;
        let packets = |packets, packets_burst| DirectionLimitConfig { packets, packets_burst, ..none() };
        let bytes = |bytes, bytes_burst| DirectionLimitConfig { bytes, bytes_burst, ..none() };
        assert_eq!(problems(packets(Some(10), Some(5)), bytes(Some(1 << 20), None)), [""; 0]);
        for (rx, tx, message) in [
            (packets(Some(0), None), none(), "limit_rx_packets 0 would let nothing through; leave it out for no limit"),
            (none(), bytes(Some(0), None), "limit_tx_bytes 0 would let nothing through; leave it out for no limit"),
            (
                packets(None, Some(4)),
                none(),
                "limit_rx_packets_burst 4 is a burst of no limit; give limit_rx_packets, too",
            ),
            (none(), bytes(Some(1 << 41), None), "limit_tx_bytes 2T is more than any network can do; the most is 1T"),
            (
                bytes(Some(9), Some(0)),
                none(),
                "limit_rx_bytes_burst 0 would let nothing through; leave it out for a tenth of a second's",
            ),
        ] {
            assert_eq!(problems(rx, tx), [format!("net0: {message}")]);
        }
    }

    #[test]
    fn a_group_that_is_not_there_is_answered_with_the_nearest_one() {
        let limits = || LimitConfig { ops: Some(1), ..LimitConfig::default() };
        let groups = || vec![group("tenants", limits()), group("backup", limits())];
        let found = problems(LimitConfig::default(), Some("tenant"), groups());
        assert_eq!(found, ["disk0: unknown limit_group 'tenant'; did you mean 'tenants'?"]);
        let found = problems(LimitConfig::default(), Some("xyz"), groups());
        assert_eq!(found, ["disk0: unknown limit_group 'xyz'; the valid ones are tenants, backup"]);
        let found = problems(LimitConfig::default(), Some("xyz"), Vec::new());
        assert_eq!(found, ["disk0: limit_group xyz is not configured; give --limit-group xyz,limit_ops=N"]);
    }

    #[test]
    fn a_group_has_one_name_of_its_own_and_limits_something() {
        let limits = || LimitConfig { ops: Some(1), ..LimitConfig::default() };
        for (groups, message) in [
            (vec![group("", limits())], "limit_groups (--limit-group): '' is not a name"),
            (vec![group("a b", limits())], "limit_groups (--limit-group): 'a b' is not a name"),
            (vec![group("a", limits()), group("a", limits())], "limit group a: it is configured twice"),
            (
                vec![group("a", LimitConfig::default())],
                "limit group a: it limits nothing; give limit_ops or limit_bytes",
            ),
        ] {
            let found = problems(LimitConfig::default(), None, groups);
            assert!(found.len() == 1 && found[0].starts_with(message), "{found:?}");
        }
    }
}
