//! The command lines that follow from a guest's properties: what the boot hook of the bhyve brand and vmadm's start of the kvm
//! brand put together, argument by argument in their order.

use std::path::PathBuf;

/// What vmadm knows of a guest.
#[derive(Debug, Clone)]
pub struct Properties {
    /// Name and UUID of its zone.
    pub uuid: &'static str,
    /// Number of its zone (`zonedid`).
    pub did: u32,
    /// Memory, MiB.
    pub ram_mib: u32,
    /// Number of vCPUs.
    pub vcpus: u32,
    /// `qemu64` or `host`; of the kvm brand alone.
    pub cpu_type: &'static str,
    /// In the order of their numbers.
    pub disks: Vec<Disk>,
    /// In the order of their numbers.
    pub nics: Vec<Nic>,
    /// `bhyve_extra_opts`, or `qemu_extra_opts`.
    pub extra: String,
}

/// A disk.
#[derive(Debug, Clone)]
pub struct Disk {
    /// As the zone sees it.
    pub path: &'static str,
    /// Whether the guest boots from it.
    pub boot: bool,
    /// What it is a copy of; an empty one of a MiB where nothing is said.
    pub image: Option<PathBuf>,
}

/// A network interface.
#[derive(Debug, Clone)]
pub struct Nic {
    /// The name of its link in the zone.
    pub link: &'static str,
    /// The guest's address.
    pub mac: &'static str,
    /// Whether it is the first one for the guest.
    pub primary: bool,
    /// Address and mask, where it is a static one.
    pub ip: Option<(&'static str, &'static str)>,
}

impl Properties {
    /// A guest of 16 MiB with one vCPU, and nothing else that the brands do not give every guest.
    #[must_use]
    pub fn small() -> Self {
        Self {
            uuid: "6e2b1f0a-2c55-4b63-9a53-0d6f3a1f7c11",
            did: 7,
            ram_mib: 16,
            vcpus: 1,
            // Not the other one, which a KVM without hardware support cannot be.
            cpu_type: "host",
            disks: Vec::new(),
            nics: Vec::new(),
            extra: String::new(),
        }
    }

    /// That of the documented examples: two vCPUs, two disks, two cards, the second one without an address; with less memory,
    /// as the kvm brand locks all of it.
    #[must_use]
    pub fn example() -> Self {
        let disk = |path, boot| Disk { path, boot, image: None };
        let nic = |link, mac, primary, ip| Nic { link, mac, primary, ip };
        Self {
            ram_mib: 64,
            vcpus: 2,
            disks: vec![
                disk("/dev/zvol/rdsk/zones/6e2b1f0a-2c55-4b63-9a53-0d6f3a1f7c11/disk0", true),
                disk("/dev/zvol/rdsk/zones/6e2b1f0a-2c55-4b63-9a53-0d6f3a1f7c11/disk1", false),
            ],
            nics: vec![
                nic("net0", "b2:1e:ba:a5:6e:71", true, Some(("10.0.0.5", "255.255.255.0"))),
                nic("net1", "b2:1e:ba:a5:6e:72", false, None),
            ],
            ..Self::small()
        }
    }

    /// The command line of the bhyve brand, the program's name included.
    #[must_use]
    pub fn bhyve(&self) -> Vec<String> {
        let Self { uuid, did, ram_mib, vcpus, .. } = self;
        let mut argv = strings(&["bhyve", "-H", "-U", uuid]);
        argv.push("-B".to_owned());
        argv.push(format!(
            "1,manufacturer=Joyent,product=SmartDC HVM,version=7.20260305T000000Z,serial={uuid},sku=001,family=Virtual Machine"
        ));
        argv.extend(strings(&["-s", "31,lpc", "-l", "bootrom,/usr/share/bhyve/uefi-csm-rom.bin"]));
        argv.extend(strings(&["-l", "com1,/dev/zconsole", "-l", "com2,socket,/tmp/vm.ttyb"]));
        argv.extend(strings(&["-s", "0,hostbridge,model=i440fx"]));
        argv.extend(["-c".to_owned(), vcpus.to_string(), "-m".to_owned(), ram_mib.to_string()]);
        // The boot disk first, all of them functions of one device.
        let (boot, others): (Vec<&Disk>, Vec<&Disk>) = self.disks.iter().partition(|disk| disk.boot);
        for (function, disk) in boot.into_iter().chain(others).enumerate() {
            argv.extend(["-s".to_owned(), format!("0:4:{function},virtio-blk,{}", disk.path)]);
        }
        let (primary, others): (Vec<&Nic>, Vec<&Nic>) = self.nics.iter().partition(|nic| nic.primary);
        for (function, nic) in primary.into_iter().chain(others).enumerate() {
            argv.extend(["-s".to_owned(), format!("6:{function},virtio-net-viona,{}", nic.link)]);
        }
        // Split at blanks, and no quotes known.
        argv.extend(self.extra.split_whitespace().map(str::to_owned));
        argv.extend(strings(&["-s", "30:0,fbuf,vga=off,unix=/tmp/vm.vnc", "-s", "30:1,xhci,tablet"]));
        argv.push(format!("SYSbhyve-{did}"));
        argv
    }

    /// The command line of the kvm brand, the program's name included.
    #[must_use]
    pub fn kvm(&self) -> Vec<String> {
        let Self { uuid, ram_mib, vcpus, cpu_type, .. } = self;
        let mut argv = strings(&["/startvm.zone", "-m", &ram_mib.to_string(), "-name", uuid, "-uuid", uuid]);
        argv.extend(strings(&["-cpu", cpu_type]));
        if *vcpus > 1 {
            argv.extend(["-smp".to_owned(), vcpus.to_string()]);
        }
        for (index, Disk { path, boot, .. }) in self.disks.iter().enumerate() {
            let boot = if *boot { ",boot=on" } else { "" };
            argv.extend(["-drive".to_owned(), format!("file={path},if=virtio,index={index},media=disk{boot}")]);
        }
        argv.extend(strings(&["-boot", "order=cd"]));
        for (hub, Nic { link, mac, primary, ip }) in self.nics.iter().enumerate() {
            let card = format!("virtio-net-pci,mac={mac},tx=timer,x-txtimer=200000,x-txburst=128,vlan={hub}");
            let mut net = format!("vnic,name={link},vlan={hub},ifname={link}");
            if let Some((ip, netmask)) = ip {
                net.push_str(&format!(",ip={ip},netmask={netmask}"));
            }
            if *primary {
                net.push_str(",gateway_ip=10.0.0.1,hostname=web1,dns_ip0=8.8.8.8");
            }
            argv.extend(["-device".to_owned(), card, "-net".to_owned(), net]);
        }
        argv.push("-smbios".to_owned());
        argv.push(format!(
            "type=1,manufacturer=Joyent,product=SmartDC HVM,version=7.20260305T000000Z,serial={uuid},uuid={uuid},sku=001,\
             family=Virtual Machine"
        ));
        argv.extend(strings(&["-pidfile", "/tmp/vm.pid", "-vga", "std"]));
        for (id, path, user) in
            [("qmp", "vm.qmp", "-qmp"), ("serial0", "vm.console", "-serial"), ("serial1", "vm.ttyb", "-serial")]
        {
            argv.extend(["-chardev".to_owned(), format!("socket,id={id},path=/tmp/{path},server,nowait")]);
            argv.extend([user.to_owned(), format!("chardev:{id}")]);
        }
        argv.extend(strings(&["-vnc", "unix:/tmp/vm.vnc", "-parallel", "none", "-usb", "-usbdevice", "tablet"]));
        argv.extend(strings(&["-k", "en-us"]));
        argv.extend(shell_words(&self.extra));
        argv
    }
}

fn strings(texts: &[&str]) -> Vec<String> {
    texts.iter().map(|text| (*text).to_owned()).collect()
}

/// The words of a text as a shell makes them, of which single quotes are all that is known here.
fn shell_words(text: &str) -> Vec<String> {
    let (mut words, mut word, mut quoted) = (Vec::new(), None::<String>, false);
    for letter in text.chars() {
        match letter {
            '\'' => {
                quoted = !quoted;
                word.get_or_insert_default();
            }
            blank if blank.is_whitespace() && !quoted => words.extend(word.take()),
            letter => word.get_or_insert_default().push(letter),
        }
    }
    words.extend(word);
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_of_an_operator_are_split_at_blanks_outside_of_quotes() {
        assert_eq!(shell_words(" -kernel /k  -append 'a b'c '' "), ["-kernel", "/k", "-append", "a bc", ""]);
        assert_eq!(shell_words(" "), [""; 0]);
    }
}
