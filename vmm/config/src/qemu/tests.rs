use super::*;
use crate::devices::default_serial;
use crate::dhcp::ip;
use crate::{
    BootConfig, Carrier, CpuConfig, DebugPortConfig, DhcpConfig, DiskCache, DiskConfig, Mac, NetConfig, OnReset,
    OnTripleFault, ReadError, SandboxMode, SerialBackend, Slot, SmbiosConfig, Topology, WriteError,
};

const UUID: &str = "6e2b1f0a-2c55-4b63-9a53-0d6f3a1f7c11";

/// What VM.js makes of a guest with two vCPUs, two disks, a card with an address and one without.
const EXAMPLE: &str = r#"-m
2048
-name
U
-uuid
U
-cpu
qemu64
-smp
2
-drive
file=/dev/zvol/rdsk/zones/U-disk0,if=virtio,index=0,media=disk,boot=on
-drive
file=/dev/zvol/rdsk/zones/U-disk1,if=virtio,index=1,media=disk
-boot
order=cd
-device
virtio-net-pci,mac=b2:1e:ba:a5:6e:71,tx=timer,x-txtimer=200000,x-txburst=128,vlan=0
-net
vnic,name=net0,vlan=0,ifname=net0,ip=10.0.0.5,netmask=255.255.255.0,gateway_ip=10.0.0.1,hostname=web1,dns_ip0=8.8.8.8
-device
virtio-net-pci,mac=b2:1e:ba:a5:6e:72,tx=timer,x-txtimer=200000,x-txburst=128,vlan=1
-net
vnic,name=net1,vlan=1,ifname=net1
-smbios
type=1,manufacturer=Joyent,product=SmartDC HVM,version=7.20260305T000000Z,serial=U,uuid=U,sku=001,family=Virtual Machine
-pidfile
/tmp/vm.pid
-vga
std
-chardev
socket,id=qmp,path=/tmp/vm.qmp,server,nowait
-qmp
chardev:qmp
-chardev
socket,id=serial0,path=/tmp/vm.console,server,nowait
-serial
chardev:serial0
-chardev
socket,id=serial1,path=/tmp/vm.ttyb,server,nowait
-serial
chardev:serial1
-vnc
unix:/tmp/vm.vnc
-parallel
none
-usb
-usbdevice
tablet
-k
en-us"#;

fn example() -> Vec<String> {
    let uuid = |word: &str| match word {
        "U" => UUID.to_owned(),
        _ => word.replace("/U-", &format!("/{UUID}-")).replace("=U,", &format!("={UUID},")),
    };
    EXAMPLE.lines().map(uuid).collect()
}

/// Words with single blanks between them.
fn words(text: &str) -> Vec<String> {
    text.split_whitespace().map(str::to_owned).collect()
}

#[track_caller]
fn read(text: &str) -> VmConfig {
    translate(&words(text)).unwrap_or_else(|error| panic!("{text}: {error}")).config
}

fn refusal(text: &str) -> String {
    match translate(&words(text)) {
        Ok(read) => panic!("{text} is taken: {:?}", read.notes),
        Err(error) => error.to_string(),
    }
}

fn notes(text: &str) -> Vec<String> {
    translate(&words(text)).unwrap().notes.iter().map(Note::to_string).collect()
}

/// A card and its link, and what comes before and after it.
fn with_card(before: &str, after: &str) -> String {
    format!("{before} -device virtio-net-pci,vlan=0 -net vnic,vlan=0,ifname=net0 {after}")
}

#[test]
fn the_worked_example_is_this_machine() {
    let disk = |index: usize, slot| {
        let path = format!("/dev/zvol/rdsk/zones/{UUID}-disk{index}");
        DiskConfig {
            id: format!("virtio{index}"),
            serial: Some(default_serial("", path.as_ref(), 0)),
            slot: Some(Slot::device(slot)),
            block_size: Some(512),
            werror: WriteError::Enospc,
            rerror: ReadError::Report,
            cache: None,
            ..DiskConfig::new(path)
        }
    };
    let net = |index: u8, slot, dhcp| NetConfig {
        tap: format!("net{index}"),
        carrier: Carrier::Tap,
        mac: Some(Mac([0xb2, 0x1e, 0xba, 0xa5, 0x6e, 0x71 + index])),
        id: format!("net{index}"),
        slot: Some(Slot::device(slot)),
        queue_size: 256,
        packed: false,
        in_order: false,
        promiscuous: false,
        dhcp,
        speed: None,
        duplex: None,
    };
    let dhcp = DhcpConfig {
        gateway_ip: Some(ip("10.0.0.1")),
        dns_ips: vec![ip("8.8.8.8")],
        hostname: "web1".into(),
        ..DhcpConfig::new(ip("10.0.0.5"), ip("255.255.255.0"))
    };
    let text = |text: &str| Some(text.to_owned());
    let socket = |path: &str| Some(SerialBackend::Socket(path.into()));
    let expected = VmConfig {
        name: UUID.into(),
        uuid: UUID.parse().ok(),
        profile: Profile::I440fx,
        cpus: CpuConfig {
            count: 2,
            model: "x86-64-v2".into(),
            topology: Some(Topology { sockets: 2, cores: 1, threads: 1 }),
            pin: Vec::new(),
        },
        memory: MemoryConfig { size_bytes: 2 << 30, lock: true, prealloc: true, ..MemoryConfig::default() },
        boot: BootConfig::default(),
        disks: vec![disk(0, 5), disk(1, 6)],
        nets: vec![net(0, 3, Some(dhcp)), net(1, 4, None)],
        serials: [socket("/tmp/vm.console"), socket("/tmp/vm.ttyb"), None, None],
        smbios: SmbiosConfig {
            manufacturer: text("Joyent"),
            product: text("SmartDC HVM"),
            version: text("7.20260305T000000Z"),
            serial: text(UUID),
            sku: text("001"),
            family: text("Virtual Machine"),
        },
        on_reset: OnReset::Restart,
        on_triple_fault: OnTripleFault::Reset,
        qmp: Some("/tmp/vm.qmp".into()),
        pid_file: Some("/tmp/vm.pid".into()),
        ..VmConfig::default()
    };
    let read = translate(&example()).unwrap();
    assert_eq!(read.config, expected);
    // What is missing is a kernel, and nothing else.
    let problems: Vec<String> = read.config.problems().iter().map(ConfigError::to_string).collect();
    assert_eq!(problems, ["boot.kernel (--kernel): no kernel is given, and there is nothing else to boot"]);
    let logged: Vec<&str> = read.notes.iter().filter(|note| note.is_logged()).map(|note| note.what.as_str()).collect();
    assert_eq!(logged, ["-boot order=cd", "-vga std", "-vnc unix:/tmp/vm.vnc", "-usb", "-usbdevice tablet"]);
    let quiet = read.notes.iter().filter(|note| !note.is_logged()).count();
    assert_eq!(quiet, 2 * 3 + 2, "{:?}", read.notes);
}

#[test]
fn options_mean_the_same_in_any_order() {
    let expected = translate(&example()).unwrap().config;
    let words = example();
    // Each option with its argument.
    let mut options: Vec<Vec<String>> = Vec::new();
    for word in words {
        match options.last_mut() {
            Some(last) if !word.starts_with('-') => last.push(word),
            _ => options.push(vec![word]),
        }
    }
    options.sort_by_key(|option| option.concat().len());
    // What a guest remembers an order of keeps it.
    for kind in ["-drive", "-device", "-serial"] {
        let places: Vec<usize> = (0..options.len()).filter(|index| options[*index][0] == kind).collect();
        let mut sorted: Vec<Vec<String>> = places.iter().map(|index| options[*index].clone()).collect();
        sorted.sort_by_key(|option| example().iter().position(|word| *word == option[1]));
        places.iter().zip(sorted).for_each(|(index, option)| options[*index] = option);
    }
    assert_eq!(translate(&options.concat()).unwrap().config, expected);
}

#[test]
fn every_option_of_the_table_does_what_its_status_says() {
    for option in options() {
        let word = format!("-{}", option.name);
        let alone = translate(std::slice::from_ref(&word));
        if option.argument.is_some() {
            assert_eq!(alone.unwrap_err().to_string(), format!("{word}: its argument is missing"));
            continue;
        }
        match (option.status, alone) {
            (Status::Refused, Err(error)) => assert_eq!(error.to_string(), format!("{word}: {}", option.about)),
            (Status::Implemented, Ok(read)) => {
                assert!(read.notes.is_empty(), "{word}");
                assert_ne!(read.config, translate(&[]).unwrap().config, "{word} does nothing");
            }
            (Status::Ignored, Ok(read)) => assert_eq!(read.notes[0].fate, Fate::Ignored(option.about)),
            (Status::NotBuilt, Ok(read)) => assert_eq!(read.notes[0].fate, Fate::NotBuilt),
            (_, alone) => panic!("{word}: {alone:?}"),
        }
    }
}

#[test]
fn every_option_with_a_wrong_value_is_refused_with_a_line_that_names_it() {
    for (args, line) in [
        ("-m 1X", "-m: '1X' is not a size; write a number of MiB, or a number with K, M, G or T"),
        ("-m 99999999999999999", "-m: 99999999999999999 MiB do not fit in 64 bits"),
        ("-name a,proces=b", "-name: unknown key 'proces=b'; the valid one is process"),
        ("-uuid 12", "-uuid: '12' is not a UUID such as"),
        ("-cpu qemu46", "-cpu: unknown CPU model 'qemu46'; did you mean 'qemu64'?"),
        ("-cpu host,+frob", "-cpu: "),
        ("-cpu qemu64,level=2", "-cpu: 'level=2' is not built; after the model come +FEATURE and -FEATURE"),
        ("-smp 0", "-smp: cpus=0 is not possible"),
        ("-smp two", "-smp: cpus=two is not a number"),
        ("-smp 255", "-smp: 255 vCPUs are not possible; a guest has 1 to 254"),
        ("-smp 4,core=2", "-smp: unknown key 'core'; did you mean 'cores'?"),
        ("-smp 4,cores=3", "-smp: 4 vCPUs do not fill sockets of 3 cores × 1 threads"),
        ("-smp 4,maxcpus=3", "-smp: maxcpus=3 is not between the 4 vCPUs and 255"),
        ("-M isapc", "-M: 'isapc' is not built; the machine is pc"),
        ("-machine pc,accel=tcg", "-machine: accel=tcg is not built; a guest runs on the hypervisor"),
        ("-smbios type=2", "-smbios: type=2 is not built; the type is 1"),
        ("-smbios product=x", "-smbios: type is missing"),
        ("-smbios type=1,produkt=x", "-smbios: unknown key 'produkt'; did you mean 'product'?"),
        ("-smbios type=1,uuid=x", "-smbios: uuid=x: 'x' is not a UUID"),
        ("-smbios file=x", "-smbios: tables from files are not built"),
        ("-rtc base=localtime", "-rtc: base=localtime is not built; the clock has base=utc"),
        ("-boot order=cx", "-boot: order=cx: 'x' is no boot device"),
        ("-boot cc", "-boot: order=cc has 'c' twice"),
        ("-boot once=d,ordr=c", "-boot: unknown key 'ordr'; did you mean 'order'?"),
        ("-boot menu=maybe", "-boot: menu='maybe' is neither on nor off"),
        ("-vga sdt", "-vga: unknown graphics card 'sdt'; did you mean 'std'?"),
        ("-sandbox yes", "-sandbox: enable='yes' is neither on nor off"),
        ("-sandbox on,spwan=deny", "-sandbox: unknown key 'spwan'; did you mean 'spawn'?"),
        ("-sandbox on,spawn=no", "-sandbox: spawn=no is neither allow nor deny"),
        ("-balloon virtio", "-balloon: 'virtio' is not built; write none"),
        ("-usbdevice disk:/x", "-usbdevice: 'disk' is not built"),
        ("-net user", "-net: user is not built; use vnic,ifname=LINK"),
        ("-net vnci,ifname=a", "-net: unknown kind 'vnci'; did you mean 'vnic'?"),
        ("-net nic,model=e1000", "-net nic: model=e1000 is not built; write model=virtio"),
        ("-net nic,model=rtl8139", "-net nic: model=rtl8139 is not built; write model=virtio"),
        ("-net nic", "-net nic: model=rtl8139 is not built; write model=virtio"),
        ("-net vnic", "-net vnic: ifname is missing; write for example ifname=net0"),
        ("-net vnic,ifname=a,ip=10.0.0", "-net vnic: ip=10.0.0: '10.0.0' is not an IPv4 address"),
        ("-net vnic,ifname=a,ip=10.0.0.5", "-net vnic: netmask is missing"),
        ("-net vnic,ifname=a,gateway=1", "-net vnic: unknown key 'gateway'; did you mean 'gateway_ip'?"),
        ("-net vnic,ifname=a,vlan=x", "-net vnic: vlan=x is not a number"),
        ("-netdev user,id=a", "-netdev: 'user' is not built; use vnic,id=ID,ifname=LINK"),
        ("-netdev vnic,ifname=a", "-netdev vnic: id is missing; write for example id=net0"),
        ("-device e1000,vlan=0", "-device: 'e1000' is not built; the drivers are virtio-net-pci and virtio-blk-pci"),
        ("-device virtio-net-pic", "-device: 'virtio-net-pic' is not built; did you mean 'virtio-net-pci'?"),
        ("-device virtio-net-pci", "-device virtio-net-pci: vlan is missing; write for example vlan=0"),
        ("-device virtio-net-pci,vlan=0,mac=5", "-device virtio-net-pci: mac=5: '5' is not a MAC address"),
        ("-device virtio-net-pci,vlan=0,tx=tmer", "-device virtio-net-pci: unknown tx 'tmer'; did you mean 'timer'?"),
        ("-device virtio-net-pci,vlan=0,x-txburst=-1", "-device virtio-net-pci: x-txburst=-1 is not a number"),
        ("-device virtio-net-pci,vlan=0,addr=20", "-device virtio-net-pci: addr=20 is no place on the PCI bus"),
        ("-device virtio-blk-pci,drive=x", "-device virtio-blk-pci: there is no drive 'x'"),
        ("-chardev socket,path=/a,server", "-chardev: id is missing"),
        ("-chardev udp,id=a", "-chardev: back end 'udp' is not built"),
        ("-chardev socket,id=a,path=/a", "-chardev: /a without server is not built"),
        ("-chardev socket,id=a,host=b,port=1,server", "-chardev: TCP is not built"),
        ("-chardev socket,id=a,path=/a,server -chardev pty,id=a", "-chardev: id=a is given twice"),
        ("-chardev pty,id=com1 -serial chardev:com", "-serial: unknown chardev 'com'; did you mean 'com1'?"),
        ("-serial tcp:1.2.3.4:5", "-serial: device 'tcp' is not built"),
        ("-serial null -serial null -serial null -serial null -serial null", "-serial: a guest has four serial ports"),
        ("-qmp stdio", "-qmp: stdio is not built; use unix:PATH,server,nowait"),
        ("-qmp chardev:qmp", "-qmp: there is no chardev 'qmp'"),
        ("-qmp unix:/a,server -qmp unix:/b,server", "-qmp: there is one control socket already"),
        ("-mon qmp,mode=contrl", "-mon: unknown mode 'contrl'; did you mean 'control'?"),
        ("-debugcon tcp:a", "-debugcon: device 'tcp' is not built"),
        ("root.img", "'root.img' belongs to no option; a disk is given by -drive file=root.img,if=virtio"),
    ] {
        let error = refusal(args);
        assert!(error.starts_with(line) && error.lines().count() == 1, "{args}: {error}");
    }
}

#[test]
fn every_key_of_a_drive_with_a_wrong_value_is_refused() {
    for (keys, line) in [
        ("if=ide", "if=ide is not built; write if=virtio"),
        ("if=scsi", "if=scsi is not built; write if=virtio"),
        ("if=virtoi", "unknown if 'virtoi'; did you mean 'virtio'?"),
        ("media=cdrom,if=virtio", "media=cdrom is not built; write media=disk,readonly=on"),
        ("if=virtio,media=dsik", "unknown media 'dsik'; did you mean 'disk'?"),
        ("if=virtio,index=x", "index=x is not a number"),
        ("if=virtio,index=0,unit=0", "index says it all; leave bus and unit out"),
        ("if=virtio,boot=maybe", "boot='maybe' is neither on nor off"),
        ("if=virtio,readonly=1", "readonly='1' is neither on nor off"),
        ("if=virtio,cache=wirteback", "unknown cache 'wirteback'; did you mean 'writeback'?"),
        ("if=virtio,cache=unsafe", "cache=unsafe is not built"),
        ("if=virtio,format=qcow2", "format=qcow2 is not built; disks are raw"),
        ("if=virtio,werror=ignore", "werror=ignore is not built"),
        ("if=virtio,werror=stpo", "unknown werror 'stpo'; did you mean 'stop'?"),
        ("if=virtio,rerror=enospc", "unknown rerror 'enospc'"),
        ("if=virtio,aio=nativ", "unknown aio 'nativ'; did you mean 'native'?"),
        ("if=virtio,snapshot=on", "snapshot=on is not built"),
        ("if=virtio,addr=zz", "addr=zz is no place on the PCI bus"),
        ("if=virtio,fiel=a", "unknown key 'fiel'; did you mean 'file'?"),
        ("", "if=ide is not built; write if=virtio"),
    ] {
        let comma = if keys.is_empty() { "" } else { "," };
        let error = refusal(&format!("-drive file=/a{comma}{keys}"));
        assert!(error.starts_with(&format!("-drive: {line}")), "{keys}: {error}");
    }
    assert!(refusal("-drive if=virtio").starts_with("-drive: file is missing; write for example file="));
}

#[test]
fn two_drives_have_neither_place_nor_name_nor_the_boot_in_common() {
    let both = |a: &str, b: &str| refusal(&format!("-drive file=/a,if=virtio,{a} -drive file=/b,if=virtio,{b}"));
    assert_eq!(both("index=1", "index=1"), "-drive: index=1 is given to two drives");
    assert_eq!(both("index=1", "unit=1"), "-drive: unit=1 is given to two drives");
    assert_eq!(both("boot=on", "boot=on"), "-drive: boot=on is given to two drives");
    assert_eq!(both("id=a", "id=a"), "-drive: id=a is given to two drives");
    let config = read("-drive file=/a,if=virtio,addr=7 -drive file=/b,if=virtio,addr=7 -kernel k");
    assert!(config.check().unwrap_err().to_string().contains("slot 7 is already taken by virtio0"));
    let config = read("-drive file=/a,if=virtio,index=1 -drive file=/b,if=virtio");
    assert_eq!((config.disks[0].id.as_str(), config.disks[1].id.as_str()), ("virtio1", "virtio0"));
}

#[test]
fn a_hub_has_one_card_and_one_link() {
    assert_eq!(
        refusal("-device virtio-net-pci,vlan=3"),
        "-device virtio-net-pci: vlan=3 has no link of the host; give -net vnic,vlan=3,ifname=LINK"
    );
    assert_eq!(
        refusal("-net vnic,vlan=3,ifname=net0"),
        "-net vnic: vlan=3 has no network card; give -device virtio-net-pci,vlan=3"
    );
    assert_eq!(
        refusal(&with_card("-device virtio-net-pci,vlan=0", "")),
        "-device virtio-net-pci: vlan=0 has two network cards; each has a link of its own"
    );
    assert_eq!(
        refusal(&with_card("-net vnic,vlan=0,ifname=net1", "")),
        "-net vnic: vlan=0 has two links; each network card has one of its own"
    );
    assert_eq!(
        refusal("-device virtio-net-pci,netdev=a -netdev vnic,id=b,ifname=b"),
        "-device virtio-net-pci: netdev=a has no link of the host; give -netdev vnic,id=a,ifname=LINK"
    );
}

#[test]
fn cards_and_links_meet_at_their_hub_whatever_their_order() {
    let config = read(
        "-net vnic,vlan=7,ifname=b,name=second -device virtio-net-pci,vlan=5,mac=2:0:0:0:0:5 \
         -net nic,model=virtio,vlan=7,macaddr=2:0:0:0:0:7 -net vnic,vlan=5,ifname=a",
    );
    let found: Vec<_> = config
        .nets
        .iter()
        .map(|net| (net.tap.as_str(), net.mac.map_or(0, |mac| mac.0[5]), net.slot, &*net.id))
        .collect();
    // qemu makes -net nic before any -device.
    let slot = |device| Some(Slot::device(device));
    assert_eq!(found, [("b", 7, slot(3), "second"), ("a", 5, slot(4), "net1")]);
    let netdev = read("-device virtio-net-pci,netdev=a -netdev vnic,id=a,ifname=l0");
    assert_eq!((netdev.nets[0].tap.as_str(), netdev.nets[0].id.as_str()), ("l0", "a"));
}

#[test]
fn devices_are_in_the_slots_where_qemu_has_them() {
    let slots = |args: &str| {
        let config = read(args);
        let slot = |slot: Option<Slot>| slot.unwrap().device;
        let nets: Vec<u8> = config.nets.iter().map(|net| slot(net.slot)).collect();
        (nets, config.disks.iter().map(|disk| slot(disk.slot)).collect::<Vec<_>>())
    };
    const DISK: &str = "-drive file=/a,if=virtio";
    // Slot 2 is the graphics card's; a disk comes after all cards, wherever it is given.
    assert_eq!(slots(&with_card(DISK, "-vga std")), (vec![3], vec![4]));
    assert_eq!(slots(&with_card(DISK, "-vga none")), (vec![2], vec![3]));
    assert_eq!(slots(&with_card(DISK, "-nodefaults")), (vec![2], vec![3]));
    assert_eq!(slots(&with_card(DISK, "-nodefaults -vga cirrus")), (vec![3], vec![4]));
    // Without any -net qemu has a card of its own, in slot 3.
    assert_eq!(slots(DISK), (vec![], vec![4]));
    assert_eq!(slots(&format!("{DISK} -net none")), (vec![], vec![3]));
    // Who says where goes there, and nobody else.
    assert_eq!(
        slots(&with_card("-drive file=/a,if=virtio,addr=0x1f -drive file=/b,if=virtio", "")),
        (vec![3], vec![31, 4])
    );
    // A disk that is a -device goes with the devices.
    let own = "-drive file=/a,if=none,id=a -device virtio-blk-pci,drive=a";
    assert_eq!(slots(&with_card(own, DISK)), (vec![4], vec![3, 5]));
    let many = "-drive file=/d,if=virtio ".repeat(28);
    assert_eq!(refusal(&with_card(&many, "-drive file=/d,if=virtio")), "-drive: no PCI slot is left for it");
}

#[test]
fn what_an_unknown_option_is_followed_by_goes_with_it_unless_it_is_an_option() {
    assert_eq!(
        notes("-frobnicate a=b -m 64 -x -m 128 --frob"),
        [
            "-frobnicate a=b: unknown; the guest runs without it",
            "-x: unknown; the guest runs without it",
            "--frob: unknown; the guest runs without it",
        ]
    );
    assert_eq!(read("-x -m 128").memory.size_bytes, 128 << 20);
    assert_eq!(read("--m 128").memory.size_bytes, 128 << 20, "two dashes are one");
}

#[test]
fn the_last_of_an_option_counts() {
    let config = read("-m 64 -name a -smp 2 -m 1.5 -m 128".replace("-m 1.5 ", "").as_str());
    assert_eq!((config.memory.size_bytes, config.cpus.count), (128 << 20, 2));
    assert_eq!(read("-m 2G").memory.size_bytes, 2 << 30);
    assert_eq!([read("").memory.size_bytes, read("-m 0").memory.size_bytes], [128 << 20; 2]);
    assert_eq!(read("-m 67108864b").memory.size_bytes, 64 << 20);
}

#[test]
fn vcpus_are_grouped_as_in_qemu() {
    let shape = |args: &str| {
        let cpus = read(args).cpus;
        let Topology { sockets, cores, threads } = cpus.topology();
        (cpus.count, [sockets, cores, threads])
    };
    for (args, expected) in [
        ("", (1, [1, 1, 1])),
        ("-smp 4", (4, [4, 1, 1])),
        ("-smp 4,sockets=2", (4, [2, 2, 1])),
        ("-smp 4,cores=2", (4, [2, 2, 1])),
        ("-smp 4,cores=4", (4, [1, 4, 1])),
        ("-smp 8,sockets=2,cores=2", (8, [2, 2, 2])),
        ("-smp sockets=2,cores=2,threads=2", (8, [2, 2, 2])),
        ("-smp 2,maxcpus=4", (2, [2, 1, 1])),
    ] {
        assert_eq!(shape(args), expected, "{args}");
    }
}

#[test]
fn a_doubled_comma_is_a_comma_and_blanks_stay() {
    let args = ["-drive", "file=/a,,b c,if=virtio", "-smbios", "type=1,product=A,, B", "-append", "a, b"];
    let config = translate(&args.map(str::to_owned)).unwrap().config;
    assert_eq!(config.disks[0].path.to_str(), Some("/a,b c"));
    assert_eq!((config.smbios.product.as_deref(), config.boot.cmdline.as_str()), (Some("A, B"), "a, b"));
}

#[test]
fn what_a_drive_says_is_what_the_disk_does() {
    let disk = |keys: &str| read(&format!("-drive file=/a,if=virtio,{keys}")).disks.remove(0);
    let given =
        disk("readonly=on,cache=none,werror=report,rerror=stop,serial=abc,aio=native,format=raw,id=root,addr=1f.0");
    assert_eq!((given.read_only, given.cache, given.id.as_str()), (true, Some(DiskCache::Direct), "root"));
    assert_eq!(
        (given.werror, given.rerror, given.serial.as_deref()),
        (WriteError::Report, ReadError::Stop, Some("abc"))
    );
    assert_eq!(disk("cache=writeback").cache, Some(DiskCache::Buffered));
    let forced =
        ["cache=writethrough", "cache=writeback", "cache=none", "boot=off"].map(|keys| disk(keys).write_through);
    assert_eq!(forced, [true, false, false, false]);
    assert_eq!((disk("cache=writethrough").cache, disk("werror=stop").werror), (None, WriteError::Stop));
}

#[test]
fn lines_lead_where_they_are_told_to() {
    let config = read(
        "-serial chardev:b -serial none -serial unix:/s,server,nowait -serial file:/f -chardev pty,id=b \
         -debugcon stdio -mon chardev=q,mode=control -chardev socket,id=q,path=/q,server,nowait",
    );
    let socket = Some(SerialBackend::Socket("/s".into()));
    let file = Some(SerialBackend::File("/f".into()));
    assert_eq!(config.serials, [Some(SerialBackend::Pty), socket, file, None]);
    assert_eq!(config.qmp.as_deref().and_then(|path| path.to_str()), Some("/q"));
    assert_eq!(config.debug_port, Some(DebugPortConfig { backend: SerialBackend::Stdio, port: 0xe9 }));
    let first = |args| read(args).serials[0].clone();
    let console = Some(SerialBackend::Device("/dev/zconsole".into()));
    assert_eq!(first("-serial /dev/zconsole"), console);
    assert_eq!(first("-chardev tty,id=a,path=/dev/zconsole -serial chardev:a"), console);
    assert_eq!(first(""), Some(SerialBackend::Null), "qemu's first port is there, and nobody at it");
    assert_eq!((first("-nodefaults"), first("-nographic")), (None, Some(SerialBackend::Stdio)));
}

#[test]
fn dhcp_is_answered_only_with_an_address_and_what_else_is_said_is_noted() {
    let args = |keys: &str| format!("-device virtio-net-pci,vlan=0 -net vnic,vlan=0,ifname=net0{keys}");
    assert_eq!(read(&args("")).nets[0].dhcp, None);
    assert_eq!(
        notes(&args(",hostname=web,dns_ip0=8.8.8.8")),
        [
            "-net vnic dns_ip0=8.8.8.8: ignored: without ip= nobody answers DHCP here",
            "-net vnic hostname=web: ignored: without ip= nobody answers DHCP here",
        ]
    );
    let all = ",ip=10.0.0.5,netmask=255.0.0.0,server_ip=10.0.0.9,dns_ip=1.1.1.1,dns_ip1=2.2.2.2,lease_time=60";
    let dhcp = read(&args(all)).nets[0].dhcp.clone().unwrap();
    assert_eq!((dhcp.server_ip, dhcp.lease_time), (ip("10.0.0.9"), 60));
    assert_eq!(dhcp.dns_ips, [ip("1.1.1.1"), ip("2.2.2.2")]);
}

#[test]
fn a_direct_boot_and_the_rest_of_the_machine() {
    let config = read("-kernel k -initrd i -append console=ttyS0 -no-reboot -cpu host -enable-kvm -M pc -rtc base=utc");
    assert_eq!(
        config.boot,
        BootConfig { kernel: "k".into(), initrd: Some("i".into()), cmdline: "console=ttyS0".into() }
    );
    assert_eq!((config.on_reset, config.cpus.model.as_str()), (OnReset::Exit, "host"));
    assert_eq!(config.check(), Ok(()));
    assert_eq!(read("-sandbox off").sandbox, SandboxMode::Off);
    assert_eq!(read("-sandbox on,obsolete=deny,spawn=allow").sandbox, SandboxMode::Strict);
    assert_eq!(read("-cpu kvm64,-popcnt").cpus.model, "x86-64-v2,-popcnt");
    assert_eq!(
        notes("-parallel null -monitor none"),
        ["-parallel null", "-monitor none"].map(|what| format!("{what}: ignored: there is none"))
    );
    assert_eq!(
        notes("-spice sock=/s,password=secret"),
        ["-spice sock=/s,password=…: not built yet; the guest runs without it"]
    );
    assert_eq!(
        notes("-monitor stdio -smbios type=0,vendor=x"),
        ["-monitor stdio", "-smbios type=0,vendor=x"]
            .map(|what| format!("{what}: not built yet; the guest runs without it"))
    );
}
