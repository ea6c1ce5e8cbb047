//! What a network interface is on.

use std::fmt;

use devices_host::tap::LONGEST_NAME_BYTES;

use super::check::Problems;
use super::{Carrier, NetConfig};

/// What carries a network interface's frames.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LinkConfig<'a> {
    /// A link by its name.
    Named(Carrier, &'a str),
    /// A macvtap interface.
    Macvtap(&'a str),
    /// Descriptors that the process was started with, a queue each.
    Fds(&'a [i32]),
}

impl fmt::Display for LinkConfig<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Named(carrier, name) => write!(formatter, "{} {name}", carrier.key()),
            Self::Macvtap(name) => write!(formatter, "macvtap {name}"),
            Self::Fds(fds) => {
                let numbers: Vec<_> = fds.iter().map(i32::to_string).collect();
                write!(formatter, "fd {}", numbers.join(":"))
            }
        }
    }
}

/// Reads a mask of features: a number in decimal, or with 0x in hexadecimal.
///
/// # Errors
/// What is wrong with it.
pub fn mask(text: &str) -> Result<u64, String> {
    let number = match text.strip_prefix("0x") {
        Some(hex) => u64::from_str_radix(hex, 16),
        None => text.parse(),
    };
    number.map_err(|_| format!("'{text}' is not a number of 64 bits such as 0x800"))
}

impl NetConfig {
    /// The most queue pairs an interface may have.
    pub const MOST_QUEUES: u16 = 16;

    /// What it is on; where several are given, which the check refuses, one of them.
    pub fn link(&self) -> LinkConfig<'_> {
        match (&self.macvtap, self.fds.as_slice()) {
            (Some(name), _) => LinkConfig::Macvtap(name),
            (None, []) => LinkConfig::Named(self.carrier, &self.tap),
            (None, fds) => LinkConfig::Fds(fds),
        }
    }

    /// The host's name for what it is on.
    pub fn link_name(&self) -> String {
        match self.link() {
            LinkConfig::Named(_, name) | LinkConfig::Macvtap(name) => name.to_owned(),
            fds @ LinkConfig::Fds(_) => fds.to_string(),
        }
    }

    /// The number of queue pairs, the default applied.
    pub fn queue_count(&self) -> u16 {
        self.queues.unwrap_or_else(|| u16::try_from(self.fds.len()).unwrap_or(u16::MAX).max(1))
    }

    /// Those given of the keys that viona alone has to do with.
    pub fn viona_keys(&self) -> impl Iterator<Item = &'static str> {
        let keys = [("tx_copy_data", self.tx_copy_data.is_some()), ("tx_header_pad", self.tx_header_pad.is_some())];
        keys.into_iter().filter(|(_, given)| *given).map(|(key, _)| key)
    }

    pub(super) fn check_link(&self, found: &mut Problems) {
        let id = &self.id;
        let given = [!self.tap.is_empty(), self.macvtap.is_some(), !self.fds.is_empty()];
        if given.iter().filter(|given| **given).count() > 1 {
            found.add(id, "tap, macvtap and fds (fd=) exclude each other; an interface is on one of them");
            return;
        }
        match self.link() {
            LinkConfig::Named(carrier, name) => {
                check_name(id, carrier.key(), name, carrier.longest_name_bytes(), found)
            }
            LinkConfig::Macvtap(name) => check_name(id, "macvtap", name, LONGEST_NAME_BYTES, found),
            LinkConfig::Fds(fds) => {
                if let Some(fd) = fds.iter().find(|fd| **fd < 3) {
                    found.add(id, format!("fd {fd} is not one to inherit; those up to 2 are the standard ones"));
                }
                if let Some((_, fd)) = fds.iter().enumerate().find(|(index, fd)| fds[..*index].contains(fd)) {
                    found.add(id, format!("fd {fd} is there twice; each queue has one of its own"));
                }
                if self.mac.is_none() {
                    found.add(id, "has no mac, and that of a file descriptor's interface is another end's");
                }
            }
        }
        self.check_carried(found);
        let (queues, most) = (self.queue_count(), Self::MOST_QUEUES);
        if !(1..=most).contains(&queues) {
            found.add(id, format!("{queues} queue pairs are not possible; an interface has 1 to {most}"));
        } else if queues > 1 && !matches!(self.carrier, Carrier::Tap | Carrier::Vnic | Carrier::Viona) {
            found.add(id, format!("{queues} queue pairs are not possible on {}; it has one", self.carrier.key()));
        } else if !self.fds.is_empty() && usize::from(queues) != self.fds.len() {
            let fds = self.fds.len();
            found.add(id, format!("{queues} queue pairs are not possible with {fds} file descriptors; each has one"));
        }
    }

    /// What an interface cannot have whose queues a kernel carries.
    fn check_carried(&self, found: &mut Problems) {
        let id = &self.id;
        let of_the_process = [
            ("packed", self.packed, "the kernel has no packed virtqueues"),
            ("in_order", self.in_order, "the kernel does not use buffers in order"),
            ("ip", self.dhcp.is_some(), "the kernel carries the frames, and no request gets here"),
            ("limits", !self.limits.is_empty(), "the kernel carries the frames, and nobody here counts them"),
        ];
        if self.carrier == Carrier::Viona {
            let mac = ("mac", self.mac.is_some(), "the guest has the address of the link");
            let check = ("mac_check", self.mac_check, "the kernel carries the frames; dladm protects the link");
            refuse(id, "viona", [&mac].into_iter().chain(&of_the_process).chain([&check]), found);
        }
        if !matches!(self.carrier, Carrier::Viona | Carrier::Vnic) || self.vhost || self.macvtap.is_some() {
            for key in self.viona_keys() {
                found.add(id, format!("{key} is for viona, which is none of this link's"));
            }
        }
        if self.vhost {
            let carrier = self.carrier;
            if !matches!(carrier, Carrier::Tap | Carrier::Vnic) {
                let key = carrier.key();
                found.add(
                    id,
                    format!("vhost does not go with {key}: it is Linux', and carries a TAP interface's frames"),
                );
            }
            let check = ("mac_check", self.mac_check, "the kernel carries the frames, and nobody here looks at them");
            refuse(id, "vhost", of_the_process.iter().chain([&check]), found);
        }
    }
}

/// A key of an interface, whether it is given, and why it cannot be.
type Refused = (&'static str, bool, &'static str);

fn refuse<'a>(id: &str, with: &str, keys: impl Iterator<Item = &'a Refused>, found: &mut Problems) {
    for (key, _, why) in keys.filter(|(_, given, _)| *given) {
        found.add(id, format!("{key} does not go with {with}: {why}"));
    }
}

fn check_name(id: &str, key: &str, name: &str, longest: usize, found: &mut Problems) {
    if name.is_empty() || name.len() > longest || name.contains(|c: char| c == '/' || c.is_whitespace()) {
        let problem = format!("{key} '{name}' is not a link name; it has 1 to {longest} letters, no blank or '/'");
        found.add(id, problem);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{ConfigError, Mac, VmConfig};

    fn problems(nets: Vec<NetConfig>) -> Vec<String> {
        let mut config = VmConfig { nets, ..VmConfig::default() };
        config.boot.kernel = "vmlinuz".into();
        config.name_devices();
        config.problems().iter().map(ConfigError::to_string).collect()
    }

    fn on_fds(last: u8, fds: &[i32]) -> NetConfig {
        NetConfig { fds: fds.to_vec(), mac: Some(Mac([2, 0, 0, 0, 0, last])), ..NetConfig::new("") }
    }

    fn on_macvtap(last: u8, name: &str) -> NetConfig {
        NetConfig { macvtap: Some(name.into()), fds: Vec::new(), ..on_fds(last, &[]) }
    }

    #[test]
    fn an_interface_is_on_one_link_and_has_as_many_queues_as_that_or_one() {
        let tap = |queues| NetConfig { queues, ..NetConfig::new("tap0") };
        let nets = vec![tap(Some(16)), on_macvtap(1, "mv0"), on_fds(2, &[5, 4])];
        assert_eq!(problems(nets.clone()), [""; 0]);
        assert_eq!(nets.iter().map(NetConfig::queue_count).collect::<Vec<_>>(), [16, 1, 2]);
        assert_eq!(nets.iter().map(NetConfig::link_name).collect::<Vec<_>>(), ["tap0", "mv0", "fd 5:4"]);
        assert_eq!(tap(None).queue_count(), 1);
        let both = "net0: tap, macvtap and fds (fd=) exclude each other; an interface is on one of them";
        for (net, problem) in [
            (tap(Some(0)), "net0: 0 queue pairs are not possible; an interface has 1 to 16"),
            (tap(Some(17)), "net0: 17 queue pairs are not possible; an interface has 1 to 16"),
            (NetConfig { macvtap: Some("m".into()), ..tap(None) }, both),
            (NetConfig { fds: vec![3], ..tap(None) }, both),
            (NetConfig { fds: vec![3], ..on_macvtap(1, "m") }, both),
            (NetConfig::new(""), "net0: tap '' is not a link name; it has 1 to 15 letters, no blank or '/'"),
            (on_macvtap(1, "a/b"), "net0: macvtap 'a/b' is not a link name; it has 1 to 15 letters, no blank or '/'"),
            (on_fds(1, &[3, 2]), "net0: fd 2 is not one to inherit; those up to 2 are the standard ones"),
            (on_fds(1, &[3, 4, 3]), "net0: fd 3 is there twice; each queue has one of its own"),
            (
                NetConfig { mac: None, ..on_fds(1, &[3]) },
                "net0: has no mac, and that of a file descriptor's interface is another end's",
            ),
            (
                NetConfig { queues: Some(3), ..on_fds(1, &[3, 4]) },
                "net0: 3 queue pairs are not possible with 2 file descriptors; each has one",
            ),
            (
                NetConfig { carrier: Carrier::Vnd, ..tap(Some(2)) },
                "net0: 2 queue pairs are not possible on vnd; it has one",
            ),
        ] {
            assert_eq!(problems(vec![net]), [problem]);
        }
    }

    #[test]
    fn what_viona_alone_does_is_refused_on_other_links() {
        let keys = |net: NetConfig| NetConfig { tx_copy_data: Some(false), tx_header_pad: Some(32), ..net };
        let on = |carrier| keys(NetConfig { carrier, ..NetConfig::new("net0") });
        for carrier in [Carrier::Viona, Carrier::Vnic] {
            assert_eq!(problems(vec![on(carrier)]), [""; 0]);
        }
        let refused = ["tx_copy_data", "tx_header_pad"]
            .map(|key| format!("net0: {key} is for viona, which is none of this link's"));
        let vhost = NetConfig { vhost: true, ..on(Carrier::Vnic) };
        for net in [on(Carrier::Tap), on(Carrier::Vnd), on(Carrier::Dlpi), keys(on_macvtap(1, "mv0")), vhost] {
            assert_eq!(problems(vec![net]), refused);
        }
    }

    #[test]
    fn what_needs_the_frames_in_the_process_does_not_go_with_vhost() {
        let vhost = |net: NetConfig| NetConfig { vhost: true, ..net };
        let tap = || vhost(NetConfig { mac: Some(Mac([2, 0, 0, 0, 0, 1])), ..NetConfig::new("tap0") });
        let nets = vec![
            NetConfig { queues: Some(16), ..tap() },
            vhost(NetConfig { queues: Some(2), ..on_macvtap(2, "mv0") }),
            vhost(on_fds(3, &[5, 6])),
        ];
        assert_eq!(problems(nets), [""; 0]);
        let dhcp = serde_json::from_str(r#"{"ip": "10.0.0.5", "netmask": "255.255.255.0"}"#).unwrap();
        let limits = serde_json::from_str(r#"{"tx": {"packets": 1000}}"#).unwrap();
        for (net, problem) in [
            (NetConfig { packed: true, ..tap() }, "packed does not go with vhost: the kernel has no packed virtqueues"),
            (
                NetConfig { in_order: true, ..tap() },
                "in_order does not go with vhost: the kernel does not use buffers in order",
            ),
            (
                NetConfig { dhcp: Some(dhcp), ..tap() },
                "ip does not go with vhost: the kernel carries the frames, and no request gets here",
            ),
            (
                NetConfig { limits, ..tap() },
                "limits does not go with vhost: the kernel carries the frames, and nobody here counts them",
            ),
            (
                NetConfig { mac_check: true, ..tap() },
                "mac_check does not go with vhost: the kernel carries the frames, and nobody here looks at them",
            ),
            (
                NetConfig { carrier: Carrier::Vnd, ..tap() },
                "vhost does not go with vnd: it is Linux', and carries a TAP interface's frames",
            ),
        ] {
            assert_eq!(problems(vec![net]), [format!("net0: {problem}")]);
        }
    }

    #[test]
    fn a_link_is_taken_once() {
        for (one, two, name) in
            [(on_macvtap(1, "mv0"), on_macvtap(2, "mv0"), "macvtap mv0"), (on_fds(1, &[3]), on_fds(2, &[3]), "fd 3")]
        {
            assert_eq!(problems(vec![one, two]), [format!("net1: {name} is already taken by net0")]);
        }
    }
}
