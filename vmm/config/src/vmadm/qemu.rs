//! What VM.js passes to the kvm brand's qemu.

use std::net::Ipv4Addr;

use super::{Argv, Brand, Document, Line, Media, Nic, shell};
use crate::ConfigError;

/// How long a virtio card waits for more frames before it sends, and how many it sends at once, unless the guest has its
/// own: VM.js' defaults.
const TX_TIMER_NS: u64 = 200_000;
const TX_BURST: u64 = 128;

/// Name servers that qemu's responder can tell.
const MOST_RESOLVERS: usize = 4;

impl Document {
    /// The command line of qemu.
    pub(super) fn qemu(&self) -> Result<Argv, ConfigError> {
        let uuid = &self.uuid;
        let mut lines = vec![
            Line::new("ram", &["-m", &self.ram.to_string()]),
            Line::new("uuid", &["-name", uuid, "-uuid", uuid]),
            Line::new("cpu_type", &["-cpu", self.cpu_type.as_deref().unwrap_or("qemu64")]),
        ];
        if let Some(vcpus) = self.vcpus.filter(|vcpus| *vcpus > 1) {
            lines.push(Line::new("vcpus", &["-smp", &vcpus.to_string()]));
        }
        self.drives(&mut lines);
        lines.push(Line::new("boot", &["-boot", self.boot.as_deref().unwrap_or("order=cd")]));
        self.cards(&mut lines)?;
        // VM.js puts the 7 in front of this, too.
        let version = self.platform_buildstamp.as_deref().unwrap_or("7.x");
        let system = format!("manufacturer=Joyent,product=SmartDC HVM,version=7.{version},serial={uuid},uuid={uuid}");
        let system = format!("type=1,{system},sku=001,family=Virtual Machine");
        lines.push(Line::new("platform_buildstamp", &["-smbios", &system]));
        lines.push(Line::new("brand", &["-pidfile", "/tmp/vm.pid"]));
        lines.push(Line::new("vga", &["-vga", self.vga.as_deref().unwrap_or("std")]));
        for (id, path, option) in [
            ("qmp", "/tmp/vm.qmp", "-qmp"),
            ("serial0", "/tmp/vm.console", "-serial"),
            ("serial1", "/tmp/vm.ttyb", "-serial"),
        ] {
            let socket = format!("socket,id={id},path={path},server,nowait");
            lines.push(Line::new("brand", &["-chardev", &socket, option, &format!("chardev:{id}")]));
        }
        let (own, extra) = (given(&self.qemu_opts), given(&self.qemu_extra_opts));
        if own.is_none() {
            self.displays(&mut lines);
        }
        for line in &lines {
            shell::check_in_quotes(&line.key, &line.words)?;
        }
        for (key, text) in [("qemu_opts", own), ("qemu_extra_opts", extra)] {
            let words = shell::words(key, text.unwrap_or_default())?;
            lines.push(Line { key: key.to_owned(), words });
        }
        Argv::new(Brand::Kvm, lines)
    }

    fn drives(&self, lines: &mut Vec<Line>) {
        for (index, disk) in self.disks.iter().enumerate() {
            let media = match disk.media {
                Media::Disk => "disk",
                Media::Cdrom => "cdrom",
            };
            let boot = if disk.boot { ",boot=on" } else { "" };
            let (path, model) = (&disk.path, &disk.model);
            let drive = format!("file={path},if={model},index={index},media={media}{boot}");
            lines.push(Line::new(format!("disks[{index}]"), &["-drive", &drive]));
        }
    }

    /// Network cards, each with its link. One of them is told how to get further, and who the guest is.
    fn cards(&self, lines: &mut Vec<Line>) -> Result<(), ConfigError> {
        let mut is_told = false;
        for (index, nic) in self.nics.iter().enumerate() {
            let Nic { interface, mac, .. } = nic;
            let Some(model) = nic.model.as_deref() else {
                let problem = "it is missing; set virtio, which is the one that zvmm has";
                return Err(ConfigError::setting(&format!("nics[{index}].model"), problem));
            };
            let card = match model {
                "virtio" => {
                    let timer = self.virtio_txtimer.unwrap_or(TX_TIMER_NS);
                    let burst = self.virtio_txburst.unwrap_or(TX_BURST);
                    let card = format!("mac={mac},tx=timer,x-txtimer={timer},x-txburst={burst},vlan={index}");
                    ["-device", &format!("virtio-net-pci,{card}")].map(str::to_owned)
                }
                model => {
                    let card = format!("macaddr={mac},vlan={index},name={interface},model={model}");
                    ["-net", &format!("nic,{card}")].map(str::to_owned)
                }
            };
            let mut link = format!("vnic,name={interface},vlan={index},ifname={interface}");
            if let Some((ip, netmask)) = address(index, nic)? {
                link.push_str(&format!(",ip={ip},netmask={netmask}"));
                if nic.primary && !is_told {
                    is_told = true;
                    self.tell(nic, &mut link);
                }
            }
            let words = card.into_iter().chain(["-net".to_owned(), link]).collect();
            lines.push(Line { key: format!("nics[{index}]"), words });
        }
        Ok(())
    }

    /// What the guest is told beside its address.
    fn tell(&self, nic: &Nic, link: &mut String) {
        let is_ipv4 = |text: &&String| text.parse::<Ipv4Addr>().is_ok();
        // vmadm prints the first of several as the only one, too.
        if let Some(gateway) = nic.gateway.as_ref().or(nic.gateways.iter().find(is_ipv4)) {
            link.push_str(&format!(",gateway_ip={gateway}"));
        }
        let hostname = self.hostname.as_ref().unwrap_or(&self.uuid);
        if !hostname.is_empty() {
            link.push_str(&format!(",hostname={hostname}"));
        }
        for (index, resolver) in self.resolvers.iter().filter(is_ipv4).take(MOST_RESOLVERS).enumerate() {
            link.push_str(&format!(",dns_ip{index}={resolver}"));
        }
    }

    /// Displays and what belongs to them, in place of which the guest may have options of its operator's own.
    fn displays(&self, lines: &mut Vec<Line>) {
        // VM.js starts it whatever vnc_port says: the port is vmadmd's, which opens none then.
        let password = if given(&self.vnc_password).is_some() { ",password" } else { "" };
        lines.push(Line::new("vnc_password", &["-vnc", &format!("unix:/tmp/vm.vnc{password}")]));
        if self.spice_port.is_some_and(|port| port != -1) {
            let ticketing = if given(&self.spice_password).is_none() { ",disable-ticketing" } else { "" };
            let opts = given(&self.spice_opts).map(|opts| format!(",{opts}")).unwrap_or_default();
            lines.push(Line::new("spice_port", &["-spice", &format!("sock=/tmp/vm.spice{ticketing}{opts}")]));
        }
        lines.push(Line::new("brand", &["-parallel", "none", "-usb", "-usbdevice", "tablet", "-k", "en-us"]));
    }
}

/// A property that is there and not empty.
fn given(text: &Option<String>) -> Option<&str> {
    text.as_deref().filter(|text| !text.is_empty())
}

/// The address that the guest is given for good, and its mask: the first of IPv4, unless DHCP of the network's comes before.
fn address(index: usize, nic: &Nic) -> Result<Option<(String, String)>, ConfigError> {
    if let Some(ips) = &nic.ips {
        let first = ips.iter().find_map(|ip| if ip == "dhcp" { Some(None) } else { Some(Some(of_cidr(ip)?)) });
        return Ok(first.flatten());
    }
    match (nic.ip.as_deref(), nic.netmask.as_deref()) {
        (None | Some("dhcp"), _) => Ok(None),
        (Some(ip), Some(netmask)) => Ok(Some((ip.to_owned(), netmask.to_owned()))),
        (Some(_), None) => {
            let problem = "it is missing beside ip; set it, for example 255.255.255.0, or use ips";
            Err(ConfigError::setting(&format!("nics[{index}].netmask"), problem))
        }
    }
}

/// Address and mask of `10.0.0.5/24`; `None` for what is none of IPv4.
fn of_cidr(text: &str) -> Option<(String, String)> {
    let (ip, bits) = text.split_once('/')?;
    let ip: Ipv4Addr = ip.parse().ok()?;
    let bits: u32 = bits.parse().ok().filter(|bits| (8..=32).contains(bits))?;
    Some((ip.to_string(), Ipv4Addr::from(u32::MAX << (32 - bits)).to_string()))
}
