use super::*;
use crate::config::{Mac, OnReset, Profile, Slot};
use clap::Parser;
use std::path::Path;

#[derive(Parser)]
struct Line {
    #[command(flatten)]
    guest: GuestArgs,
}

fn read(args: &[&str]) -> Result<VmConfig, String> {
    let line = Line::try_parse_from(std::iter::once(&"zvmm").chain(args)).map_err(|error| error.to_string())?;
    line.guest.into_config().map_err(|error| error.to_string())
}

const FULL: &[&str] = &[
    "--name=web",
    "--uuid=6e2b1f0a-2c55-4b63-9a53-0d6f3a1f7c11",
    "--profile=micro",
    "--hypervisor=bhyve",
    "--cpus=2",
    "--cpu=host,-avx512f",
    "--topology=cores=2",
    "--pin=0,1",
    "--memory=1G",
    "--hugepages=2M",
    "--prealloc",
    "--mlock",
    "--numa-node=0",
    "--shared-memory",
    "--reservoir",
    "--low-split=512M",
    "--kernel=vmlinuz",
    "--initrd=initrd.img",
    "--cmdline=console=ttyS0 -- -x",
    "--disk=root.img,ro,slot=4,serial=x,queues=2,queue_size=64,block_size=4096,physical_block_size=8192,packed,in_order=off,engine=io_uring,cache=buffered,werror=enospc,rerror=stop,id=root,limit_ops=100,limit_ops_burst=20,limit_bytes=10M,limit_bytes_burst=64K,limit_group=both,latency=off,poll_us=30",
    "--disk=data.img",
    "--limit-group=both,limit_ops=150,limit_bytes=1G",
    "--net=tap=tap0,mac=52:54:00:12:34:56,slot=6,speed=10000,duplex=full,queues=2,mac_check,limit_rx_packets=1000,limit_rx_packets_burst=10,limit_rx_bytes=1M,limit_rx_bytes_burst=64K,limit_tx_packets=2000,limit_tx_packets_burst=20,limit_tx_bytes=2M,limit_tx_bytes_burst=128K",
    "--net=macvtap=mv0,slot=20,vhost=on",
    "--net=fd=5:6,mac=52:54:00:12:34:58,slot=21",
    "--net=tap=tap1,mac=52:54:00:12:34:57,slot=10,ip=10.0.0.5,netmask=255.255.255.0,server_ip=10.0.0.2,gateway_ip=10.0.0.1,dns_ip0=8.8.8.8,dns_ip1=8.8.4.4,hostname=web,lease_time=60",
    "--serial=stdio",
    "--serial=com4=socket:/run/c",
    "--console=pty,slot=7",
    "--rng",
    "--debug-port=file:/tmp/x,port=0xe9",
    "--pvpanic",
    "--ps2=off",
    "--kvmclock=off",
    "--virtio=modern",
    "--smbios=product=Box,serial=1,,2",
    "--on-reset=exit",
    "--on-triple-fault=exit",
    "--on-panic=exit",
    "--qmp=/run/q",
    "--pid-file=/run/p",
    "--sandbox=log",
    "--jail=/var/empty,user=nobody",
    "--log=info,zvmm::vcpu=debug",
];

const FULL_JSON: &str = r#"{
    "name": "web", "uuid": "6e2b1f0a-2c55-4b63-9a53-0d6f3a1f7c11", "profile": "micro",
    "hypervisor": "bhyve",
    "cpus": {"count": 2, "model": "host,-avx512f", "topology": {"cores": 2}, "pin": [0, 1]},
    "memory": {"size": "1G", "huge_pages": "2M", "prealloc": true, "lock": true, "numa_node": 0, "shared": true,
        "reservoir": true, "low_split": "512M"},
    "boot": {"kernel": "vmlinuz", "initrd": "initrd.img", "cmdline": "console=ttyS0 -- -x"},
    "disks": [{"path": "root.img", "read_only": true, "slot": 4, "serial": "x", "queues": 2, "queue_size": 64,
        "block_size": 4096, "physical_block_size": 8192, "packed": true, "engine": "io_uring", "cache": "buffered", "werror": "enospc", "rerror": "stop",
        "id": "root", "limits": {"ops": 100, "ops_burst": 20, "bytes": "10M", "bytes_burst": 65536}, "limit_group": "both",
        "latency": false, "poll_us": 30},
        {"path": "data.img"}],
    "limit_groups": [{"name": "both", "limits": {"ops": 150, "bytes": "1G"}}],
    "nets": [{"tap": "tap0", "mac": "52:54:00:12:34:56", "slot": 6, "speed": 10000, "duplex": "full", "queues": 2,
            "mac_check": true, "limits": {"rx": {"packets": 1000, "packets_burst": 10, "bytes": "1M", "bytes_burst": "64K"},
                "tx": {"packets": 2000, "packets_burst": 20, "bytes": "2M", "bytes_burst": "128K"}}},
        {"macvtap": "mv0", "slot": 20, "vhost": true}, {"fds": [5, 6], "mac": "52:54:00:12:34:58", "slot": 21},
        {"tap": "tap1", "mac": "52:54:00:12:34:57", "slot": 10, "dhcp": {"ip": "10.0.0.5", "netmask": "255.255.255.0",
            "server_ip": "10.0.0.2", "gateway_ip": "10.0.0.1", "dns_ips": ["8.8.8.8", "8.8.4.4"], "hostname": "web",
            "lease_time": 60}}],
    "serial": {"com1": "stdio", "com4": "socket:/run/c"}, "console": {"backend": "pty", "slot": 7}, "rng": {},
    "debug_port": {"backend": "file:/tmp/x", "port": 233}, "pvpanic": true, "ps2": false, "kvmclock": false,
    "virtio": "modern",
    "smbios": {"product": "Box", "serial": "1,2"}, "on_reset": "exit", "on_triple_fault": "exit", "on_panic": "exit",
    "qmp": "/run/q", "pid_file": "/run/p", "sandbox": "log", "jail": {"dir": "/var/empty", "user": "nobody"},
    "log": ["info", "zvmm::vcpu=debug"] }"#;

#[test]
fn every_option_and_its_json_key_give_the_same_configuration() {
    let from_json = VmConfig::from_json(Path::new("vm.json"), FULL_JSON).map_err(|error| error.to_string());
    assert_eq!(read(FULL), from_json);
    assert_eq!(from_json.unwrap().check(), Ok(()));
}

#[test]
fn every_option_of_the_command_line_is_in_the_full_example() {
    let command = <Line as clap::CommandFactory>::command();
    for option in command.get_arguments().filter_map(|argument| argument.get_long()) {
        let used = FULL.iter().any(|text| text.trim_start_matches("--").split('=').next() == Some(option));
        assert!(used || ["config", "help"].contains(&option), "--{option}");
    }
}

#[test]
fn no_options_are_the_defaults() {
    assert_eq!(read(&[]), Ok(VmConfig::default()));
}

#[test]
fn options_beside_a_file_override_values_and_add_to_lists() {
    let dir = tempfile::TempDir::new().unwrap();
    let file = dir.path().join("vm.json");
    std::fs::write(&file, FULL_JSON).unwrap();
    let file = file.to_str().unwrap();
    let config = read(&["--config", file, "--memory=2G", "--disk=more.img", "--on-reset=restart"]).unwrap();
    assert_eq!(
        (config.memory.size_bytes, config.on_reset, config.profile),
        (2 << 30, OnReset::Restart, Profile::Micro)
    );
    let ids: Vec<&str> = config.disks.iter().map(|disk| disk.id.as_str()).collect();
    assert_eq!(ids, ["root", "disk1", "disk2"]);
}

#[test]
fn serial_lines_fill_the_com_ports_in_turn() {
    let config = read(&["--serial=stdio", "--serial", "pty"]).unwrap();
    assert_eq!(config.serials, [Some(SerialBackend::Stdio), Some(SerialBackend::Pty), None, None]);
}

#[test]
fn the_entropy_source_takes_a_slot_or_nothing() {
    assert_eq!(read(&["--rng"]).unwrap().rng, Some(RngConfig { slot: None }));
    assert_eq!(read(&["--rng=slot=9"]).unwrap().rng, Some(RngConfig { slot: Some(Slot::device(9)) }));
}

#[test]
fn a_network_interface_has_its_tap_and_address() {
    let config = read(&["--net", "tap=tap0,mac=52:54:00:12:34:56"]).unwrap();
    assert_eq!(
        (config.nets[0].tap.as_str(), config.nets[0].mac),
        ("tap0", Some(Mac([0x52, 0x54, 0, 0x12, 0x34, 0x56])))
    );
}

#[test]
fn an_interface_by_a_device_for_frames_has_the_address_of_its_link_or_another() {
    let net = |text: &str| read(&["--net", text]).unwrap().nets.swap_remove(0);
    for (key, carrier) in [("vnd", Carrier::Vnd), ("dlpi", Carrier::Dlpi)] {
        let own = net(&format!("{key}=net0"));
        assert_eq!((own.tap.as_str(), own.carrier, own.mac), ("net0", carrier, None));
        let other = net(&format!("{key}=net0,mac=52:54:00:12:34:56,queue_size=64"));
        assert_eq!((other.mac, other.queue_size), (Some(Mac([0x52, 0x54, 0, 0x12, 0x34, 0x56])), 64));
    }
    assert_eq!(net("tap=tap0,mac=52:54:00:12:34:56").carrier, Carrier::Tap);
}

#[test]
fn an_interface_has_its_features_masked_and_its_kernels_parameters_set() {
    let net = |text: &str| read(&["--net", text]).unwrap().nets.swap_remove(0);
    let plain = net("viona=net0");
    assert_eq!((plain.feature_mask, plain.tx_copy_data, plain.tx_header_pad), (0, None, None));
    let given = net("viona=net0,queues=2,feature_mask=0x8000000000000800,tx_copy_data=off,tx_header_pad=64");
    assert_eq!((given.feature_mask, given.tx_copy_data, given.tx_header_pad), (1 << 63 | 0x800, Some(false), Some(64)));
    assert_eq!(net("tap=tap0,mac=52:54:00:12:34:56,feature_mask=1").feature_mask, 1);
    let problems = read(&["--net", "tap=tap0,mac=52:54:00:12:34:56,tx_copy_data=on"]).unwrap().problems();
    let line = "tx_copy_data is for viona, which is none of this link's";
    assert!(problems.iter().any(|problem| problem.to_string().ends_with(line)), "{problems:?}");
}

#[test]
fn an_interface_gives_its_guest_an_address_where_it_has_one() {
    let dhcp = |keys: &str| {
        let config = read(&["--net", &format!("tap=tap0,mac=52:54:00:12:34:56{keys}")])?;
        Ok::<_, String>(config.nets[0].dhcp.clone())
    };
    assert_eq!(dhcp(""), Ok(None));
    let (ip, netmask) = ("10.0.0.5".parse().unwrap(), "255.0.0.0".parse().unwrap());
    let plain = DhcpConfig::new(ip, netmask);
    assert_eq!((plain.server_ip.to_string().as_str(), plain.lease_time), ("169.254.169.254", 86400));
    assert_eq!(dhcp(",ip=10.0.0.5,netmask=255.0.0.0"), Ok(Some(plain.clone())));
    let dns_ips = vec!["9.9.9.9".parse().unwrap()];
    for key in ["dns_ip", "dns_ip0"] {
        let expected = DhcpConfig { dns_ips: dns_ips.clone(), ..plain.clone() };
        assert_eq!(dhcp(&format!(",ip=10.0.0.5,netmask=255.0.0.0,{key}=9.9.9.9")), Ok(Some(expected)));
    }
    for (keys, message) in [
        ("netmask=255.0.0.0", "--net: netmask is for ip=, the guest's address, which is not given"),
        ("dns_ip3=1.1.1.1", "--net: dns_ip3 is for ip=, "),
        ("hostname=web", "--net: hostname is for ip=, "),
        ("ip=10.0.0.5", "--net: netmask is missing; write for example --net tap=tap0,mac=52:54:00:12:34:56,ip=10"),
        ("ip=10.0.0.5/8", "--net: ip=10.0.0.5/8: '10.0.0.5/8' is not an IPv4 address such as 10.0.0.5"),
        ("ip", "--net: ip has no value; write ip=…"),
        ("ip=10.0.0.5,netmask=24", "--net: netmask=24: '24' is not an IPv4 address"),
        ("ip=10.0.0.5,netmask=255.0.0.0,gateway_ip=gw", "--net: gateway_ip=gw: 'gw' is not an IPv4 address"),
        ("ip=10.0.0.5,netmask=255.0.0.0,server_ip=", "--net: server_ip=: '' is not an IPv4 address"),
        ("ip=10.0.0.5,netmask=255.0.0.0,gateway=10.0.0.1", "--net: unknown key 'gateway'; did you mean 'gateway_ip'?"),
        ("ip=10.0.0.5,netmask=255.0.0.0,dns_ip1=1.1.1.1", "--net: dns_ip0 is missing before those that follow it"),
        ("ip=10.0.0.5,netmask=255.0.0.0,dns_ip=1.1.1.1,dns_ip0=1.1.1.1", "--net: dns_ip is dns_ip0 by another name"),
        ("ip=10.0.0.5,netmask=255.0.0.0,lease_time=day", "--net: lease_time=day is not a number"),
        ("ip=10.0.0.5,netmask=255.0.0.0,lease_time=4294967296", "--net: lease_time=4294967296 is too large"),
    ] {
        let error = dhcp(&format!(",{keys}")).unwrap_err();
        assert!(error.starts_with(message), "{keys}: {error}");
    }
}

#[test]
fn every_wrong_option_is_named_with_what_is_wrong() {
    for (args, message) in [
        (["--memory", "lots"], "--memory: 'lots' is not a size"),
        (["--memory", "-1"], "--memory: '-1' is not a size"),
        (["--cpus", "1000"], "--cpus: 1000 vCPUs are not possible; a guest has 1 to 254"),
        (["--cpus", "-1"], "--cpus: '-1' is not a number"),
        (["--cpus", "two"], "--cpus: 'two' is not a number"),
        (["--profile", "i440"], "--profile: unknown value 'i440'; did you mean 'i440fx'?"),
        (["--profile", "q35"], "--profile: unknown value 'q35'; the valid ones are i440fx, bhyve, micro"),
        (["--profile", "byhve"], "--profile: unknown value 'byhve'; did you mean 'bhyve'?"),
        (["--hugepages", "4M"], "--hugepages: unknown value '4M'; did you mean '2M'?"),
        (["--on-reset", "exti"], "--on-reset: unknown value 'exti'; did you mean 'exit'?"),
        (["--on-triple-fault", "x"], "--on-triple-fault: unknown value 'x'; the valid ones are reset, exit"),
        (["--hypervisor", "xen"], "--hypervisor: unknown value 'xen'; the valid ones are bhyve, kvm"),
        (["--on-panic", "x"], "--on-panic: unknown value 'x'; the valid ones are report, exit"),
        (["--topology", "socket=1"], "--topology: unknown key 'socket'; did you mean 'sockets'?"),
        (["--topology", "cores=300"], "--topology: cores=300 is too large"),
        (["--pin", "0,x"], "--pin: 'x' is not a number"),
        (["--numa-node", "-1"], "--numa-node: '-1' is not a number"),
        (["--low-split", "x"], "--low-split: 'x' is not a size"),
        (["--uuid", "x"], "--uuid: 'x' is not a UUID"),
        (["--disk", "a,slto=4"], "--disk: unknown key 'slto'; did you mean 'slot'?"),
        (["--disk", "a,slot=40"], "--disk: slot=40: '40' is not a PCI slot"),
        (["--disk", "a,limit_opps=4"], "--disk: unknown key 'limit_opps'; did you mean 'limit_ops'?"),
        (["--disk", "a,limit_ops=-4"], "--disk: limit_ops=-4 is not a number"),
        (["--disk", "a,limit_ops_burst=1e9"], "--disk: limit_ops_burst=1e9 is not a number"),
        (["--disk", "a,limit_bytes=-1M"], "--disk: limit_bytes=-1M: '-1M' is not a size"),
        (
            ["--disk", "a,limit_bytes=99999999999T"],
            "--disk: limit_bytes=99999999999T: '99999999999T' does not fit in 64",
        ),
        (["--disk", "a,latency=0"], "--disk: latency: '0' is neither on nor off"),
        (["--limit-group", "limit_ops=4"], "--limit-group: name is missing; write for example --limit-group tenant,"),
        (["--limit-group", "a,ops=4"], "--limit-group: unknown key 'ops'; "),
        (["--disk", "a,cache=off"], "--disk: cache: unknown value 'off'; the valid ones are direct, buffered"),
        (["--disk", "a,cache"], "--disk: cache has no value; write cache=…"),
        (["--disk", "ro"], "--disk: path is missing; write for example --disk root.img"),
        (["--net", "tap=tap0"], "--net: mac is missing; write for example --net tap=tap0,mac="),
        (["--net", "mac=52:54:00:12:34:56"], "--net: tap is missing"),
        (["--net", "tap=t,mac=52"], "--net: mac=52: '52' is not a MAC address"),
        (["--net", "viona=a,tap=b"], "--net: tap, viona, vnd and dlpi are one link each; give one of them"),
        (["--net", "viona=net0,mtu=9000"], "--net: unknown key 'mtu'"),
        (["--net", "viona=net0,tx_copy_data=1"], "--net: tx_copy_data: '1' is neither on nor off"),
        (["--net", "viona=net0,tx_header_pad=65536"], "--net: tx_header_pad=65536 is too large"),
        (["--net", "viona=net0,feature_mask=tso"], "--net: feature_mask=tso: 'tso' is not a number of 64 bits"),
        (["--net", "viona"], "--net: viona has no value; write viona=…"),
        (["--net", "tap0"], "--net: unknown key 'tap0'; did you mean 'tap'?"),
        (["--serial", "sdtio"], "--serial: 'sdtio' is not a serial back end"),
        (["--serial", "com5=pty"], "--serial: 'com5' is not one of com1 to com4"),
        (["--console", "hvc"], "--console: 'hvc' is not a serial back end"),
        (["--console", "pty,slat=3"], "--console: unknown key 'slat'; did you mean 'slot'?"),
        (["--debug-port", "pty,port=70000"], "--debug-port: port=70000 is not an I/O port"),
        (["--rng", "slto=1"], "--rng: unknown key 'slto'; did you mean 'slot'?"),
        (["--ps2", "yes"], "--ps2: 'yes' is neither on nor off"),
        (["--virtio", "moden"], "--virtio: unknown value 'moden'; did you mean 'modern'?"),
        (["--kvmclock", "0"], "--kvmclock: '0' is neither on nor off"),
        (["--smbios", "produkt=x"], "--smbios: unknown key 'produkt'; did you mean 'product'?"),
        (["--log", "loud"], "--log: 'loud' is not a log level"),
        (["--config", "/nonexistent"], "/nonexistent: cannot read the configuration: No such file or directory"),
    ] {
        let error = read(&args).unwrap_err();
        assert!(error.starts_with(message), "{args:?}: {error}");
    }
    let five = ["--serial=pty", "--serial=pty", "--serial=pty", "--serial=pty", "--serial=pty"];
    assert_eq!(read(&five).unwrap_err(), "--serial: there are only four COM ports");
}
