use serde_json::{Value, json};

use super::*;
use crate::bhyve::Request;
use crate::{Fate, Slot, VmConfig, bhyve as bhyve_front_end, qemu as qemu_front_end};

const UUID: &str = "6e2b1f0a-2c55-4b63-9a53-0d6f3a1f7c11";
const BHYVE: &str = include_str!("bhyve.json");
const KVM: &str = include_str!("kvm.json");

/// The worked example of the boot hook.
const BHYVE_ARGV: &str = "bhyve -H -U U
-B 1,manufacturer=Joyent,product=SmartDC~HVM,version=7.20260305T000000Z,serial=U,sku=001,family=Virtual~Machine
-s 31,lpc
-l bootrom,/usr/share/bhyve/uefi-csm-rom.bin
-l com1,/dev/zconsole
-l com2,socket,/tmp/vm.ttyb
-s 0,hostbridge,model=i440fx
-c 2
-m 2048
-s 0:4:0,virtio-blk,/dev/zvol/rdsk/zones/U/disk0
-s 0:4:1,virtio-blk,/dev/zvol/rdsk/zones/U/disk1
-s 6:0,virtio-net-viona,net0
-s 6:1,virtio-net-viona,net1
-s 30:0,fbuf,vga=off,unix=/tmp/vm.vnc
-s 30:1,xhci,tablet
SYSbhyve-7";

/// The worked example of VM.js.
const KVM_ARGV: &str = "/startvm.zone -m 2048 -name U -uuid U -cpu qemu64 -smp 2
-drive file=/dev/zvol/rdsk/zones/U-disk0,if=virtio,index=0,media=disk,boot=on
-drive file=/dev/zvol/rdsk/zones/U-disk1,if=virtio,index=1,media=disk
-boot order=cd
-device virtio-net-pci,mac=b2:1e:ba:a5:6e:71,tx=timer,x-txtimer=200000,x-txburst=128,vlan=0
-net vnic,name=net0,vlan=0,ifname=net0,ip=10.0.0.5,netmask=255.255.255.0,gateway_ip=10.0.0.1,hostname=web1,dns_ip0=8.8.8.8
-device virtio-net-pci,mac=b2:1e:ba:a5:6e:72,tx=timer,x-txtimer=200000,x-txburst=128,vlan=1
-net vnic,name=net1,vlan=1,ifname=net1
-smbios type=1,manufacturer=Joyent,product=SmartDC~HVM,version=7.20260305T000000Z,serial=U,uuid=U,sku=001,family=Virtual~Machine
-pidfile /tmp/vm.pid
-vga std
-chardev socket,id=qmp,path=/tmp/vm.qmp,server,nowait -qmp chardev:qmp
-chardev socket,id=serial0,path=/tmp/vm.console,server,nowait -serial chardev:serial0
-chardev socket,id=serial1,path=/tmp/vm.ttyb,server,nowait -serial chardev:serial1
-vnc unix:/tmp/vm.vnc -parallel none -usb -usbdevice tablet -k en-us";

/// The words of an example, in which `U` is the UUID and `~` a blank inside of a word.
fn example(text: &str) -> Vec<String> {
    let named = |word: &str| match word {
        "U" => UUID.to_owned(),
        word => word.replace("/U", &format!("/{UUID}")).replace("=U,", &format!("={UUID},")).replace('~', " "),
    };
    text.split_whitespace().map(named).collect()
}

fn read(text: &str) -> Result<Document, String> {
    Document::from_json(Path::new("vm.json"), text).map_err(|error| error.to_string())
}

/// The document with some of its properties set to others; null takes one away.
#[track_caller]
fn changed(text: &str, properties: Value) -> Document {
    let mut document: Value = serde_json::from_str(text).unwrap();
    for (key, value) in properties.as_object().unwrap() {
        match value {
            Value::Null => drop(document.as_object_mut().unwrap().remove(key)),
            value => document[key] = value.clone(),
        }
    }
    read(&document.to_string()).unwrap()
}

fn all(argv: &Argv) -> Vec<String> {
    std::iter::once(argv.program()).chain(argv.args()).map(str::to_owned).collect()
}

#[track_caller]
fn argv(text: &str, properties: Value) -> Vec<String> {
    all(&changed(text, properties).argv().unwrap())
}

/// What there is to say of a document that no guest is started by.
#[track_caller]
fn refusal(text: &str, properties: Value) -> String {
    let refused = changed(text, properties).argv().and_then(|argv| argv.translate());
    refused.map(|read| read.config).unwrap_err().to_string()
}

#[test]
fn the_worked_examples_are_what_smartos_passes() {
    assert_eq!(argv(BHYVE, json!({})), example(BHYVE_ARGV));
    assert_eq!(argv(KVM, json!({})), example(KVM_ARGV));
}

/// One truth: the configuration is that of the command line, and its file reads back as the same.
#[test]
fn the_configuration_is_what_the_front_end_makes_of_the_command_line() {
    let of_bhyve = |args: &[String]| match bhyve_front_end::translate(args) {
        Ok(Request::Run(translation)) => translation,
        other => panic!("{other:?}"),
    };
    for (text, expected) in [
        (BHYVE, of_bhyve(&example(BHYVE_ARGV)[1..])),
        (KVM, qemu_front_end::translate(&example(KVM_ARGV)[1..]).unwrap()),
    ] {
        let translation = read(text).unwrap().argv().unwrap().translate().unwrap();
        assert_eq!(translation, expected);
        let printed = translation.config.to_json();
        assert_eq!(VmConfig::from_json(Path::new("printed"), &printed), Ok(translation.config.clone()));
        // What is missing is a kernel, and nothing else.
        let problems: Vec<String> = translation.config.problems().iter().map(ConfigError::to_string).collect();
        assert_eq!(problems, ["boot.kernel (--kernel): no kernel is given, and there is nothing else to boot"]);
        assert_eq!((translation.config.cpus.count, translation.config.memory.size_bytes), (2, 2 << 30));
        assert_eq!((translation.config.disks.len(), translation.config.nets.len()), (2, 2));
    }
}

#[test]
fn a_shell_reads_the_text_of_a_command_line_as_that_command_line() {
    for (text, properties) in [
        (BHYVE, json!({})),
        (KVM, json!({})),
        (BHYVE, json!({"bhyve_extra_opts": "-o zvmm.cmdline=a$b -o 'x=*;"})),
        (KVM, json!({"qemu_extra_opts": r#"-append "it's \"so\" & \\ so" -x '' -y '#z'"#})),
    ] {
        let argv = changed(text, properties).argv().unwrap();
        assert_eq!(shell::words("", &argv.to_string()).unwrap(), all(&argv), "{argv}");
    }
    let lines = read(KVM).unwrap().argv().unwrap().to_string();
    assert!(lines.starts_with("/startvm.zone \\\n    -m 2048 \\\n    -name "), "{lines}");
    assert_eq!(shell::quoted("a\u{1b}[2J'\u{9b}\\"), r"$'a\u001b[2J\'\u009b\\'");
}

#[test]
fn every_property_of_a_guest_of_bhyve_has_its_argument() {
    let has = |properties: Value, words: &[&str]| {
        let argv = argv(BHYVE, properties);
        assert!(argv.windows(words.len()).any(|some| some == words), "{words:?} is not in {argv:?}");
    };
    let com2 = "com2,socket,/tmp/vm.ttyb";
    has(json!({"bootrom": "uefi"}), &["31,lpc", "-l", "bootrom,/usr/share/bhyve/uefi-rom.bin", "-l"]);
    has(json!({"bootrom": "/own.rom"}), &["31,lpc", "-l", "bootrom,/own.rom", "-l", "com1,/dev/zconsole"]);
    has(json!({"bootrom": null}), &["-l", com2, "-l", "bootrom,/usr/share/bhyve/uefi-csm-rom.bin", "-s"]);
    has(json!({"bootrom": null, "com1": null}), &["-s", "31,lpc", "-l", com2, "-l"]);
    has(json!({"hostbridge": "q35"}), &["-s", "0,hostbridge,model=q35", "-c"]);
    has(json!({"hostbridge": "vendor=1,devid=2"}), &["-s", "0,hostbridge,vendor=1,devid=2", "-c"]);
    has(json!({"hostbridge": "none"}), &["-l", com2, "-c", "2"]);
    has(json!({"vcpus": null}), &["-s", "0,hostbridge,model=i440fx", "-m", "2048"]);
    let modes = |properties| {
        let argv = argv(BHYVE, properties);
        argv.iter().filter(|word| word.starts_with("virtio.")).cloned().collect::<Vec<_>>()
    };
    assert!(modes(json!({})).is_empty());
    assert_eq!(modes(json!({"virtio1": true})), ["virtio.legacy=true", "virtio.modern=true"]);
    assert_eq!(modes(json!({"virtio1": false})), ["virtio.legacy=true", "virtio.modern=false"]);
    assert_eq!(modes(json!({"virtio09": false})), ["virtio.legacy=false", "virtio.modern=false"]);
    has(
        json!({"bhyve_extra_opts": " -w\t-o  x='a b' "}),
        &["6:1,virtio-net-viona,net1", "-w", "-o", "x='a", "b'", "-s"],
    );
    has(json!({"vnc_port": -1}), &["6:1,virtio-net-viona,net1", "SYSbhyve-7"]);
    has(json!({"vnc_password": "geheim"}), &["-s", "30:0,fbuf,vga=off,unix=/tmp/vm.vnc,password=geheim", "-s"]);
    has(json!({"vnc_password": ""}), &["-s", "30:0,fbuf,vga=off,unix=/tmp/vm.vnc", "-s"]);
    has(json!({"zonedid": null}), &["30:1,xhci,tablet", "SYSbhyve-unknown"]);
    let system = |version: &str, serial: &str| {
        format!(
            "1,manufacturer=Joyent,product=SmartDC HVM,version={version},serial={serial},sku=001,family=Virtual Machine"
        )
    };
    has(json!({"platform_buildstamp": null}), &["-B", &system("7.?", UUID)]);
    has(json!({"zonename": "web"}), &["-B", &system("7.20260305T000000Z", "web")]);
}

/// VM.js gives these places to disks that were there before disks had places, and the boot hook always did.
#[test]
fn disks_of_bhyve_without_a_slot_have_those_that_they_always_had() {
    let disk = |path: &str, more: Value| {
        let mut disk = json!({"path": path, "model": "virtio"});
        disk.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        disk
    };
    let disks = json!([
        disk("/a", json!({})),
        disk("/b", json!({"boot": true, "guest_block_size": "0"})),
        disk("/c", json!({"model": "ahci", "media": "cdrom"})),
        disk("/d", json!({"pci_slot": "5", "notrim": true, "guest_block_size": "512/4096"})),
        disk("/e", json!({"media": "disk", "model": "nvme"})),
        disk("/f", json!({"model": "ahci", "pci_slot": "7:2"})),
        disk("/g", json!({"model": "virtio", "media": "cdrom", "pci_slot": "1:0:0"})),
    ]);
    let argv = argv(BHYVE, json!({"disks": disks}));
    let after = argv.iter().position(|word| word == "-m").unwrap() + 2;
    assert_eq!(
        argv[after..after + 14].iter().filter(|word| *word != "-s").collect::<Vec<_>>(),
        [
            "0:5:1,virtio-blk,/a",
            "0:4:0,virtio-blk,/b",
            "0:3:0,ahci-cd,/c",
            "0:5:0,virtio-blk,/d,nodelete,sectorsize=512/4096",
            "0:5:2,nvme,/e",
            "0:7:2,ahci-hd,/f",
            "1:0:0,virtio-blk,/g",
        ]
    );
}

#[test]
fn interfaces_of_bhyve_stay_in_their_order_and_the_primary_one_is_function_0() {
    let nic = |name: &str, more: Value| {
        let mut nic = json!({"interface": name, "mac": "b2:1e:ba:a5:6e:71"});
        nic.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        nic
    };
    let nics = json!([
        nic("net0", json!({})),
        nic("net1", json!({"primary": true, "allow_mac_spoofing": true})),
        nic("net2", json!({"primary": false})),
    ]);
    let argv = argv(BHYVE, json!({"nics": nics}));
    let nics: Vec<_> = argv.iter().filter(|word| word.contains("viona")).collect();
    assert_eq!(
        nics,
        ["6:1,virtio-net-viona,net0", "6:0,virtio-net-viona,net1,promiscphys=true", "6:2,virtio-net-viona,net2"]
    );
    let machine = changed(BHYVE, json!({})).argv().unwrap().translate().unwrap().config;
    assert_eq!(machine.nets[1].slot, Some(Slot { device: 6, function: 1 }));
}

#[test]
fn devices_of_the_host_want_wired_memory_once_and_tables_beyond_bus_0() {
    let devices = json!([
        {"path": "/devices/pci@0,0/a@1", "pci_slot": "8:0"},
        {"path": "/devices/pci@0,0/a@2", "pci_slot": "1:0:0"},
        {"path": "/devices/pci@0,0/a@3", "pci_slot": "2:0:1"},
    ]);
    let words = argv(BHYVE, json!({"pci_devices": devices}));
    let wired = words.iter().position(|word| word == "-S").unwrap();
    assert_eq!(
        words[wired..wired + 8],
        [
            "-S",
            "-s",
            "0:8:0,passthru,/devices/pci@0,0/a@1",
            "-A",
            "-s",
            "1:0:0,passthru,/devices/pci@0,0/a@2",
            "-s",
            "2:0:1,passthru,/devices/pci@0,0/a@3"
        ]
    );
    let line = "pci_devices[0]: -s 0:8:0,passthru: devices of the host cannot be given to a guest";
    assert_eq!(refusal(BHYVE, json!({"pci_devices": devices})), line);
}

#[test]
fn every_property_of_a_guest_of_kvm_has_its_argument() {
    let has = |properties: Value, words: &[&str]| {
        let argv = argv(KVM, properties);
        assert!(argv.windows(words.len()).any(|some| some == words), "{words:?} is not in {argv:?}");
    };
    has(json!({"cpu_type": "host", "vcpus": 1}), &["-cpu", "host", "-drive"]);
    has(json!({"cpu_type": null, "vcpus": null}), &["-cpu", "qemu64", "-drive"]);
    has(json!({"boot": "order=n,once=d"}), &["-boot", "order=n,once=d", "-device"]);
    has(json!({"vga": "cirrus"}), &["-vga", "cirrus", "-chardev"]);
    let card = "virtio-net-pci,mac=b2:1e:ba:a5:6e:71,tx=timer,x-txtimer=5,x-txburst=6,vlan=0";
    has(json!({"virtio_txtimer": 5, "virtio_txburst": 6}), &["-device", card, "-net"]);
    has(json!({"vnc_password": "geheim", "vnc_port": -1}), &["-vnc", "unix:/tmp/vm.vnc,password", "-parallel"]);
    has(json!({"vnc_password": ""}), &["-vnc", "unix:/tmp/vm.vnc", "-parallel"]);
    has(json!({"spice_port": -1}), &["-vnc", "unix:/tmp/vm.vnc", "-parallel"]);
    has(json!({"spice_port": 0}), &["-spice", "sock=/tmp/vm.spice,disable-ticketing", "-parallel"]);
    let spice = json!({"spice_port": 5901, "spice_password": "geheim", "spice_opts": "agent-mouse=off"});
    has(spice, &["-spice", "sock=/tmp/vm.spice,agent-mouse=off", "-parallel"]);
    has(json!({"qemu_extra_opts": "-kernel '/a b'"}), &["-k", "en-us", "-kernel", "/a b"]);
    let own =
        argv(KVM, json!({"qemu_opts": "-nodefaults", "qemu_extra_opts": "-x", "vnc_password": "p", "spice_port": 0}));
    assert_eq!(own[own.len() - 3..], ["chardev:serial1", "-nodefaults", "-x"]);
    // As VM.js has it where it does not know the platform.
    let argv = argv(KVM, json!({"platform_buildstamp": null}));
    assert!(argv.iter().any(|word| word.contains("product=SmartDC HVM,version=7.7.x,serial=")), "{argv:?}");
    let disks =
        json!([{"path": "/cd.iso", "model": "ide", "media": "cdrom"}, {"path": "/d", "model": "scsi", "boot": false}]);
    let argv = all(&changed(KVM, json!({"disks": disks})).argv().unwrap());
    let drives: Vec<_> = argv.iter().filter(|word| word.starts_with("file=")).collect();
    assert_eq!(drives, ["file=/cd.iso,if=ide,index=0,media=cdrom", "file=/d,if=scsi,index=1,media=disk"]);
}

#[test]
fn a_guest_of_kvm_is_told_of_the_network_where_it_has_an_address_and_is_primary() {
    let link = |nic: Value, more: Value| {
        let mut properties = json!({"nics": [nic]});
        properties.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        properties["nics"][0]["interface"] = "net0".into();
        properties["nics"][0]["mac"] = "b2:1e:ba:a5:6e:71".into();
        properties["nics"][0]["model"] = "e1000".into();
        let words = argv(KVM, properties);
        assert!(words.contains(&"nic,macaddr=b2:1e:ba:a5:6e:71,vlan=0,name=net0,model=e1000".to_owned()), "{words:?}");
        let link = words.iter().find_map(|word| word.strip_prefix("vnic,name=net0,vlan=0,ifname=net0"));
        link.unwrap().to_owned()
    };
    let none = || json!({});
    assert_eq!(link(json!({}), none()), "");
    assert_eq!(link(json!({"ips": ["addrconf", "fd00::1/64"], "primary": true}), none()), "");
    assert_eq!(link(json!({"ips": ["dhcp", "10.0.0.5/8"], "primary": true}), none()), "");
    assert_eq!(link(json!({"ip": "dhcp"}), none()), "");
    assert_eq!(link(json!({"ips": ["10.0.0.5/8", "dhcp"]}), none()), ",ip=10.0.0.5,netmask=255.0.0.0");
    assert_eq!(link(json!({"ips": ["10.0.0.5/33", "10.0.0.6/32"]}), none()), ",ip=10.0.0.6,netmask=255.255.255.255");
    assert_eq!(link(json!({"ips": [], "ip": "10.0.0.5"}), none()), "");
    let old = json!({"ip": "10.0.0.5", "netmask": "255.255.0.0", "gateway": "10.0.0.9", "primary": true});
    let told = ",ip=10.0.0.5,netmask=255.255.0.0,gateway_ip=10.0.0.9,hostname=web1,dns_ip0=8.8.8.8";
    assert_eq!(link(old, none()), told);
    let new = json!({"ips": ["10.0.0.5/16"], "gateways": ["fd00::9", "10.0.0.9"], "primary": true});
    let resolvers =
        json!({"resolvers": ["1.1.1.1", "::1", "2.2.2.2", "3.3.3.3", "4.4.4.4", "5.5.5.5"], "hostname": ""});
    assert_eq!(
        link(new.clone(), resolvers),
        ",ip=10.0.0.5,netmask=255.255.0.0,gateway_ip=10.0.0.9,dns_ip0=1.1.1.1,dns_ip1=2.2.2.2,dns_ip2=3.3.3.3,dns_ip3=4.4.4.4"
    );
    let unnamed = link(new, json!({"hostname": null, "resolvers": null}));
    assert_eq!(unnamed, format!(",ip=10.0.0.5,netmask=255.255.0.0,gateway_ip=10.0.0.9,hostname={UUID}"));

    let nic = |index: u8, primary| {
        let (name, mac) = (format!("net{index}"), format!("b2:1e:ba:a5:6e:7{index}"));
        json!({"interface": name, "mac": mac, "model": "virtio", "ips": [format!("10.0.{index}.5/24")], "primary": primary})
    };
    let words = argv(KVM, json!({"nics": [nic(0, false), nic(1, true), nic(2, true)]}));
    let told: Vec<_> = words.iter().filter(|word| word.contains("hostname=")).collect();
    assert_eq!(told.len(), 1, "{told:?}");
    assert!(told[0].starts_with("vnic,name=net1,vlan=1,ifname=net1,ip=10.0.1.5,"), "{told:?}");
}

#[test]
fn options_of_kvm_that_a_shell_reads_are_split_as_it_does() {
    let words = |text: &str| shell::words("qemu_opts", text).unwrap();
    assert_eq!(words(" -a\t-b  'c  d'\"e\"f "), ["-a", "-b", "c  def"]);
    assert_eq!(words(r#"a\ b "\$x \q \"" '$x \' a~b c#d "" ''"#), ["a b", r#"$x \q ""#, r"$x \", "a~b", "c#d", "", ""]);
    assert_eq!(words("a \\\n b\\\nc \"d\\\ne\""), ["a", "bc", "de"]);
    // No blank to a shell.
    assert_eq!(words("a\u{a0}b"), ["a\u{a0}b"]);
    for (text, problem) in [
        ("-x $HOME", "'$' is for a shell to read; write what it comes to"),
        ("-x \"`date`\"", "'`' is for a shell to read; write what it comes to"),
        ("-x a;b", "';' is for a shell to read; put it in quotes"),
        ("-x *.img", "'*' is for a shell to read; put it in quotes"),
        ("-x {a,b}", "'{' is for a shell to read; put it in quotes"),
        ("-x ~/a", "'~' at the start of a word is for a shell to read; put it in quotes"),
        ("-x # y", "'#' at the start of a word is for a shell to read; put it in quotes"),
        ("-x\n-y", "the command ends at a line break; write it in one line"),
        ("-x 'a", "the quote ' is not closed; add another"),
        ("-x \\", "nothing follows the backslash at its end; leave it out"),
    ] {
        for key in ["qemu_opts", "qemu_extra_opts"] {
            assert_eq!(refusal(KVM, json!({key: text})), format!("{key}: {problem}"));
        }
    }
}

#[test]
fn what_keeps_the_zone_from_starting_is_refused_with_its_property() {
    let disk = |more: Value| {
        let mut disk = json!({"path": "/a", "model": "virtio"});
        disk.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        disk
    };
    let plain = || disk(json!({}));
    let at = |slot: &str| disk(json!({"pci_slot": slot}));
    let nic = |name: &str, primary: bool| json!({"interface": name, "mac": "b2:1e:ba:a5:6e:71", "primary": primary});
    let form = "write DEVICE, DEVICE:FUNCTION or BUS:DEVICE:FUNCTION, up to 255:31:7";
    for (properties, line) in [
        (
            json!({"disks": [disk(json!({"model": "ide"}))]}),
            "disks[0].model: the bhyve brand has no disks of model 'ide'; set virtio, nvme or ahci".to_owned(),
        ),
        (
            json!({"disks": [disk(json!({"boot": true})), plain(), disk(json!({"boot": true}))]}),
            "disks[2].boot: a disk before it has boot, too; a guest boots from one, set it to false".to_owned(),
        ),
        (json!({"disks": [at("4:8")]}), format!("disks[0].pci_slot: '4:8' is not a slot; {form}")),
        (json!({"disks": [at("")]}), format!("disks[0].pci_slot: '' is not a slot; {form}")),
        (json!({"disks": [at("+4")]}), format!("disks[0].pci_slot: '+4' is not a slot; {form}")),
        (json!({"disks": [at("1:2:3:4")]}), format!("disks[0].pci_slot: '1:2:3:4' is not a slot; {form}")),
        (
            json!({"disks": [at("6:1")]}),
            "disks[0].pci_slot: device 6 is reserved for network interfaces; choose another slot".to_owned(),
        ),
        (
            json!({"disks": [at("7"), at("0:7:0")]}),
            "disks[1].pci_slot: 0:7:0 is the slot of disks[0], too; choose another".to_owned(),
        ),
        (
            json!({"disks": vec![plain(); 9]}),
            "disks[8].pci_slot: it is missing, and nothing of device 5 is free; choose a slot".to_owned(),
        ),
        (
            json!({"disks": [disk(json!({"path": format!("/{}", "a".repeat(250))}))]}),
            "disks[0]: its argument has 268 bytes, and the boot hook takes 255; shorten it".to_owned(),
        ),
        (
            json!({"nics": [nic("net0", false), nic("net1", false)]}),
            "nics: none of them is primary; set primary to true on one, or the zone does not boot".to_owned(),
        ),
        (
            json!({"nics": [nic("net0", true), nic("net1", true)]}),
            "nics[1].primary: a network interface before it is primary, too; set it to false, or the zone does not boot"
                .to_owned(),
        ),
        (
            json!({"pci_devices": [{"path": "/devices/a", "pci_slot": "32"}]}),
            format!("pci_devices[0].pci_slot: '32' is not a slot; {form}"),
        ),
        (
            json!({"bhyve_extra_opts": "-H ".repeat(68)}),
            "101 arguments are more than the 100 that a zone's boot hook passes; remove devices, or words of bhyve_extra_opts"
                .to_owned(),
        ),
        (json!({"disks": vec![plain(); 257]}), {
            "disks: 257 of them are more than the 256 places of a PCI bus; remove some".to_owned()
        }),
        (json!({"com1": "/dev/a\u{0}b"}), "com1: no argument has a zero byte in it; leave it out".to_owned()),
    ] {
        assert_eq!(refusal(BHYVE, properties), line);
    }
    assert_eq!(argv(BHYVE, json!({"bhyve_extra_opts": "-H ".repeat(67)})).len(), 100);
    for (properties, line) in [
        (
            json!({"nics": [{"interface": "net0", "mac": "b2:1e:ba:a5:6e:71"}]}),
            "nics[0].model: it is missing; set virtio, which is the one that zvmm has",
        ),
        (
            json!({"nics": [{"interface": "net0", "mac": "b2:1e:ba:a5:6e:71", "model": "virtio", "ip": "10.0.0.5"}]}),
            "nics[0].netmask: it is missing beside ip; set it, for example 255.255.255.0, or use ips",
        ),
        (json!({"hostname": "$(id)"}), "nics[0]: the shell that starts the guest reads '$' as its own; leave it out"),
        (
            json!({"spice_port": 0, "spice_opts": "a\"b"}),
            "spice_port: the shell that starts the guest reads '\"' as its own; leave it out",
        ),
    ] {
        assert_eq!(refusal(KVM, properties), line);
    }
}

#[test]
fn what_the_front_end_refuses_is_named_by_its_property() {
    let disk = |model: &str| json!({"path": format!("/{model}"), "model": model});
    let nics = |names: [&str; 9]| {
        let nic = |(index, name)| json!({"interface": name, "mac": "b2:1e:ba:a5:6e:71", "primary": index == 0});
        names.into_iter().enumerate().map(nic).collect::<Vec<_>>()
    };
    for (properties, line) in [
        (json!({"disks": [disk("virtio"), disk("nvme")]}), "disks[1]: -s 0:5:1,nvme: use virtio-blk"),
        (
            json!({"nics": nics(["a", "b", "c", "d", "e", "f", "g", "h", "i"])}),
            "nics[8]: -s 6:8,virtio-net-viona: '6:8' is not a slot; write DEVICE, DEVICE:FUNCTION or BUS:DEVICE:FUNCTION, up to \
             255:31:7",
        ),
        (json!({"vcpus": 0}), "vcpus: -c: cpus cannot be 0"),
        (json!({"uuid": "web"}), "uuid: -U: 'web' is not a UUID such as 6e2b1f0a-2c55-4b63-9a53-0d6f3a1f7c11"),
        (
            json!({"com2": "tcp"}),
            "com2: -l com2: 'tcp' is not a back end; write a device such as /dev/zconsole, stdio or socket,PATH",
        ),
        (json!({"bhyve_extra_opts": "-Q"}), "bhyve_extra_opts: unknown option '-Q'; -h explains those there are"),
        (json!({"bhyve_extra_opts": "-h"}), "bhyve_extra_opts: -h: it asks for help, and no guest runs; leave it out"),
        (
            json!({"bhyve_extra_opts": "-o config.dump=1"}),
            "bhyve_extra_opts: -o config.dump: it prints the configuration, and no guest runs; leave it out",
        ),
        (
            json!({"bhyve_extra_opts": "-H x"}),
            "bhyve_extra_opts: '-s' follows the name of the VM, 'x', which comes last",
        ),
        (json!({"disks": [{"path": "/a", "model": "virtio", "pci_slot": "1:0:0"}]}), {
            "disks[0]: -s 1:0:0,virtio-blk: this machine has no bridge to bus 1, only bus 0"
        }),
    ] {
        assert_eq!(refusal(BHYVE, properties), line);
    }
    for (properties, line) in [
        (json!({"disks": [disk("virtio"), disk("ide")]}), "disks[1]: -drive: if=ide is not built; write if=virtio"),
        (
            json!({"cpu_type": "core2duo"}),
            "cpu_type: -cpu: unknown CPU model 'core2duo'; the valid ones are qemu64, kvm64, host",
        ),
        (json!({"vga": "sdt"}), "vga: -vga: unknown graphics card 'sdt'; did you mean 'std'?"),
        (json!({"boot": "order=x"}), {
            "boot: -boot: order=x: 'x' is no boot device; they are a (floppy), c (disk), d (CD), n (network)"
        }),
        (json!({"hostname": "a,b"}), {
            "nics[0]: -net vnic: unknown key 'b'; the valid ones are vlan, name, id, ifname, macaddr, ip, netmask, gateway_ip, \
             server_ip, dns_ip, dns_ip0, dns_ip1, dns_ip2, dns_ip3, hostname, lease_time, type"
        }),
        (json!({"qemu_extra_opts": "-hda /x"}), {
            "qemu_extra_opts: -hda: IDE disks are not built; use -drive file=FILE,if=virtio"
        }),
    ] {
        assert_eq!(refusal(KVM, properties), line);
    }
    let unknown = changed(KVM, json!({"qemu_extra_opts": "-frob x"})).argv().unwrap().translate().unwrap().notes;
    assert!(unknown.iter().any(|note| note.what == "-frob x" && note.fate == Fate::Unknown), "{unknown:?}");
}

#[test]
fn what_is_no_document_of_a_guest_is_refused_with_its_place() {
    let guest = |more: &str| format!(r#"{{"brand": "kvm", "uuid": "U", "ram": 64{more}}}"#);
    assert!(read(&guest(r#", "tags": {"brand": []}, "disks": [], "whatever": [[{}]]"#)).is_ok());
    for (text, line) in [
        (r#"{"brand": "lx"}"#.to_owned(), "brand: unknown value 'lx'; the valid ones are bhyve, kvm"),
        (r#"{"brand": "kvm", "ram": 1}"#.to_owned(), ".: missing field 'uuid'"),
        (r#"{"brand": "kvm", "uuid": "U"}"#.to_owned(), ".: missing field 'ram'"),
        (guest(r#", "vcpus": "2""#), "vcpus: invalid type: string \"2\", expected u64"),
        (guest(r#", "vcpus": -1"#), "vcpus: invalid value: integer '-1', expected u64"),
        (guest(r#", "vnc_port": true"#), "vnc_port: invalid type: boolean 'true', expected i64"),
        (guest(r#", "resolvers": "8.8.8.8""#), "resolvers: invalid type: string \"8.8.8.8\", expected a sequence"),
        (guest(r#", "disks": {}"#), "disks: invalid type: map, expected a sequence"),
        (guest(r#", "disks": ["/a"]"#), "disks[0]: invalid type: string \"/a\", expected a disk, which is an object"),
        (
            guest(r#", "nics": [["net0", "b2:1e:ba:a5:6e:71"]]"#),
            "nics[0]: invalid type: sequence, expected a network interface, which is an object",
        ),
        (guest(r#", "disks": [{"model": "ide"}]"#), "disks[0]: missing field 'path'"),
        (
            guest(r#", "disks": [{"path": "/a", "model": "ide", "media": "tape"}]"#),
            "disks[0].media: unknown value 'tape'; the valid ones are disk, cdrom",
        ),
        (
            guest(r#", "nics": [{"interface": "net0", "mac": "m", "primary": "yes"}]"#),
            "nics[0].primary: invalid type: string \"yes\", expected a boolean",
        ),
        (guest(r#", "ram": 65"#), ".: duplicate field 'ram'"),
        ("[{}]".to_owned(), ".: invalid type: sequence, expected the object that 'vmadm get' prints"),
        ("".to_owned(), ".: EOF while parsing a value"),
        (guest("") + "x", ".: trailing characters"),
    ] {
        let error = read(&text).unwrap_err();
        let place_and_line = error.strip_prefix("vm.json:1:").and_then(|rest| rest.split_once(": "));
        assert_eq!(place_and_line.map(|(_, line)| line), Some(line), "{text}: {error}");
    }
    let unreadable = |path: &str| Document::read(Path::new(path)).unwrap_err().to_string();
    let line = "/nonexistent/vm.json: cannot read the configuration: No such file or directory";
    assert_eq!(unreadable("/nonexistent/vm.json"), line);
    assert_eq!(unreadable("/dev/zero"), "/dev/zero: cannot read the configuration: it is longer than 4 MiB");
}

/// Every property of the structures above [`Document`]'s methods is one that an operator can look up.
#[test]
fn every_property_that_is_read_stands_in_the_manual() {
    let (types, _) = include_str!("mod.rs").split_once("\nimpl Document {").unwrap();
    let names: Vec<&str> = types
        .lines()
        .filter_map(|line| line.strip_prefix("    ")?.split_once(": "))
        .map(|(name, _)| name)
        .filter(|name| {
            name.chars().all(|letter| letter.is_ascii_lowercase() || letter.is_ascii_digit() || letter == '_')
        })
        .collect();
    assert!(names.contains(&"ram") && names.contains(&"pci_slot"), "{names:?}");
    let (_, section) = include_str!("../../../../docs/smartos.md").split_once("## From vmadm to a machine").unwrap();
    let (section, _) = section.split_once("\n## ").unwrap();
    for name in names
        .into_iter()
        .filter(|name| *name != "brand" && *name != "disks" && *name != "nics" && *name != "pci_devices")
    {
        assert!([format!("`{name}`"), format!(".{name}`")].iter().any(|word| section.contains(word)), "{name}");
    }
}
