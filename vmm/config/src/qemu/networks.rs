//! Network cards, links of the host, and the hubs of qemu that join them.
//!
//! What qemu calls a vlan is a hub, numbered by the command line; no 802.1Q is in it. Each card here has one link of its
//! own, so a hub has one of each.

use std::fmt;

use super::Reading;
use super::slots::addr;
use crate::options::Options;
use crate::{Carrier, ConfigError, DhcpConfig, Fate, Ip, Mac, NetConfig, Slot, nearest};

/// What `-device` calls a network card.
pub(super) const DRIVER: &str = "virtio-net-pci";

/// What a card or a link is plugged into.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Peer {
    Hub(u32),
    Netdev(String),
}

impl fmt::Display for Peer {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Hub(number) => write!(out, "vlan={number}"),
            Self::Netdev(id) => write!(out, "netdev={id}"),
        }
    }
}

/// A network card of the guest.
pub(super) struct Card {
    /// The option that made it.
    pub option: &'static str,
    pub mac: Option<Mac>,
    pub addr: Option<Slot>,
    peer: Peer,
    id: Option<String>,
}

/// A link of the host.
pub(super) struct HostEnd {
    option: &'static str,
    peer: Peer,
    name: Option<String>,
    ifname: String,
    dhcp: Option<DhcpConfig>,
    taken: bool,
}

/// The address of the card that is the `index`th without one, as qemu gives it.
pub(super) fn default_mac(index: usize) -> Mac {
    Mac([0x52, 0x54, 0, 0x12, 0x34, 0x56_u8.wrapping_add(u8::try_from(index % 256).unwrap_or(0))])
}

const DHCP_KEYS: [&str; 11] = [
    "ip",
    "netmask",
    "gateway_ip",
    "server_ip",
    "dns_ip",
    "dns_ip0",
    "dns_ip1",
    "dns_ip2",
    "dns_ip3",
    "hostname",
    "lease_time",
];

const VNIC_KEYS: &[&str] = &[
    "vlan",
    "name",
    "id",
    "ifname",
    "macaddr",
    "ip",
    "netmask",
    "gateway_ip",
    "server_ip",
    "dns_ip",
    "dns_ip0",
    "dns_ip1",
    "dns_ip2",
    "dns_ip3",
    "hostname",
    "lease_time",
];

impl Reading {
    /// `-net`.
    pub(super) fn read_net(&mut self, text: &str) -> Result<(), ConfigError> {
        self.has_net = true;
        match text.split(',').next().unwrap_or_default() {
            "none" => {}
            "nic" => {
                let card = nic(text)?;
                self.cards.push(card);
            }
            "vnic" => self.read_vnic("-net vnic", text)?,
            kind @ ("user" | "tap" | "socket" | "vde" | "dump") => {
                return Err(ConfigError::setting("-net", format!("{kind} is not built; use vnic,ifname=LINK")));
            }
            kind => {
                let problem = nearest::unknown("kind", kind, ["nic", "vnic", "none"].into_iter());
                return Err(ConfigError::setting("-net", problem));
            }
        }
        Ok(())
    }

    /// `-netdev`.
    pub(super) fn read_netdev(&mut self, text: &str) -> Result<(), ConfigError> {
        self.has_net = true;
        match text.split(',').next().unwrap_or_default() {
            "vnic" => self.read_vnic("-netdev vnic", text),
            kind => {
                let problem = format!("'{kind}' is not built; use vnic,id=ID,ifname=LINK");
                Err(ConfigError::setting("-netdev", problem))
            }
        }
    }

    fn read_vnic(&mut self, option: &'static str, text: &str) -> Result<(), ConfigError> {
        let given = Options::read(option, text, Some("type"), VNIC_KEYS)?;
        let ifname = given.required("ifname", "ifname=net0")?;
        let id = given.text("id")?;
        let (peer, name) = match (option, id) {
            ("-netdev vnic", None) => return Err(given.problem("id is missing; write for example id=net0")),
            ("-netdev vnic", Some(id)) => (Peer::Netdev(id.clone()), Some(id)),
            (_, id) => (Peer::Hub(given.number("vlan")?.unwrap_or(0)), id.or(given.text("name")?)),
        };
        if self.ends.iter().any(|other| other.peer == peer) {
            return Err(given.problem(format!("{peer} has two links; each network card has one of its own")));
        }
        if let Some(mac) = given.value::<Mac>("macaddr")? {
            // The card's address is what counts; the link's own was given to it when it was made.
            self.note(format!("{option} macaddr={mac}"), Fate::Ignored("the link has its address already"));
        }
        let dhcp = dhcp(&given)?;
        if dhcp.is_none() {
            for key in DHCP_KEYS {
                if let Some(value) = given.text(key)? {
                    self.note(format!("{option} {key}={value}"), Fate::Ignored("without ip= nobody answers DHCP here"));
                }
            }
        }
        self.ends.push(HostEnd { option, peer, name, ifname, dhcp, taken: false });
        Ok(())
    }

    /// `-device virtio-net-pci`.
    pub(super) fn read_card_device(&mut self, text: &str) -> Result<Card, ConfigError> {
        const KEYS: &[&str] =
            &["mac", "vlan", "netdev", "tx", "x-txtimer", "x-txburst", "vectors", "ioeventfd", "id", "addr"];
        const WHY: &str = "frames are sent at once, by a thread of their own";
        let option = "-device virtio-net-pci";
        let given = Options::read(option, text, Some("driver"), KEYS)?;
        if let Some(tx) = given.text("tx")? {
            if !matches!(tx.as_str(), "timer" | "bh") {
                return Err(given.problem(nearest::unknown("tx", &tx, ["timer", "bh"].into_iter())));
            }
            self.note(format!("{option} tx={tx}"), Fate::Ignored(WHY));
        }
        for key in ["x-txtimer", "x-txburst"] {
            if let Some(number) = given.number::<u32>(key)? {
                self.note(format!("{option} {key}={number}"), Fate::Ignored(WHY));
            }
        }
        if let Some(vectors) = given.number::<u32>("vectors")? {
            self.note(format!("{option} vectors={vectors}"), Fate::Ignored("each queue has its own"));
        }
        if given.text("ioeventfd")?.is_some() {
            let on = given.flag("ioeventfd")?;
            let what = format!("{option} ioeventfd={}", if on { "on" } else { "off" });
            self.note(what, Fate::Ignored("the hypervisor decides it"));
        }
        let peer = match (given.text("netdev")?, given.number("vlan")?) {
            (Some(_), Some(_)) => return Err(given.problem("netdev and vlan cannot both be given")),
            (Some(id), None) => Peer::Netdev(id),
            (None, Some(number)) => Peer::Hub(number),
            (None, None) => return Err(given.problem("vlan is missing; write for example vlan=0")),
        };
        Ok(Card {
            option,
            mac: given.value("mac")?,
            addr: addr(option, given.text("addr")?)?,
            peer,
            id: given.text("id")?,
        })
    }

    /// The interface of a card, with the link it is joined to.
    pub(super) fn connect(&mut self, card: Card, mac: Mac) -> Result<NetConfig, ConfigError> {
        let peer = &card.peer;
        let Some(end) = self.ends.iter_mut().find(|end| end.peer == *peer) else {
            let missing = match peer {
                Peer::Hub(number) => format!("give -net vnic,vlan={number},ifname=LINK"),
                Peer::Netdev(id) => format!("give -netdev vnic,id={id},ifname=LINK"),
            };
            return Err(ConfigError::setting(card.option, format!("{peer} has no link of the host; {missing}")));
        };
        if end.taken {
            let problem = format!("{peer} has two network cards; each has a link of its own");
            return Err(ConfigError::setting(card.option, problem));
        }
        end.taken = true;
        Ok(NetConfig {
            tap: end.ifname.clone(),
            carrier: Carrier::Tap,
            mac: Some(mac),
            id: card.id.or_else(|| end.name.clone()).unwrap_or_default(),
            slot: None,
            queue_size: NetConfig::DEFAULT_QUEUE_SIZE,
            packed: false,
            in_order: false,
            promiscuous: false,
            dhcp: end.dhcp.clone(),
            speed: None,
            duplex: None,
        })
    }

    /// No link is left over.
    pub(super) fn check_ends(&self) -> Result<(), ConfigError> {
        match self.ends.iter().find(|end| !end.taken) {
            None => Ok(()),
            Some(HostEnd { option, peer, .. }) => {
                let problem = format!("{peer} has no network card; give -device virtio-net-pci,{peer}");
                Err(ConfigError::setting(option, problem))
            }
        }
    }
}

/// `-net nic`.
fn nic(text: &str) -> Result<Card, ConfigError> {
    const KEYS: &[&str] = &["vlan", "netdev", "name", "id", "macaddr", "model", "addr", "vectors"];
    let option = "-net nic";
    let given = Options::read(option, text, Some("type"), KEYS)?;
    // What qemu takes without a model.
    let model = given.text("model")?.unwrap_or_else(|| "rtl8139".to_owned());
    if model != "virtio" {
        return Err(given.problem(format!("model={model} is not built; write model=virtio")));
    }
    given.number::<u32>("vectors")?;
    let peer = match given.text("netdev")? {
        Some(id) => Peer::Netdev(id),
        None => Peer::Hub(given.number("vlan")?.unwrap_or(0)),
    };
    let id = given.text("id")?.or(given.text("name")?);
    Ok(Card { option, mac: given.value("macaddr")?, addr: addr(option, given.text("addr")?)?, peer, id })
}

/// What the guest is told by DHCP: nothing without `ip=`.
fn dhcp(given: &Options) -> Result<Option<DhcpConfig>, ConfigError> {
    let ip_of = |key| given.value::<Ip>(key);
    let (ip, netmask, server, gateway) = (ip_of("ip")?, ip_of("netmask")?, ip_of("server_ip")?, ip_of("gateway_ip")?);
    let mut dns_ips = Vec::new();
    for key in ["dns_ip", "dns_ip0", "dns_ip1", "dns_ip2", "dns_ip3"] {
        dns_ips.extend(ip_of(key)?);
    }
    let (hostname, lease_time) = (given.text("hostname")?, given.number("lease_time")?);
    let Some(ip) = ip else { return Ok(None) };
    let Some(netmask) = netmask else {
        return Err(given.problem("netmask is missing; write for example ip=10.0.0.5,netmask=255.255.255.0"));
    };
    let mut dhcp = DhcpConfig::new(ip, netmask);
    dhcp.gateway_ip = gateway;
    dhcp.dns_ips = dns_ips;
    dhcp.hostname = hostname.unwrap_or_default();
    dhcp.server_ip = server.unwrap_or(dhcp.server_ip);
    dhcp.lease_time = lease_time.unwrap_or(dhcp.lease_time);
    Ok(Some(dhcp))
}
