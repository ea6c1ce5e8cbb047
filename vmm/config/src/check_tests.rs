use super::*;
use crate::dhcp::ip;
use crate::{
    Carrier, ConsoleConfig, CpuConfig, DhcpConfig, HugePages, Mac, MemoryConfig, NetConfig, Profile, Topology,
};

fn good() -> VmConfig {
    let mut config = VmConfig::default();
    config.boot.kernel = "vmlinuz".into();
    config
}

fn with_cpus(count: u8, topology: Option<(u8, u8, u8)>) -> VmConfig {
    let topology = topology.map(|(sockets, cores, threads)| Topology { sockets, cores, threads });
    VmConfig { cpus: CpuConfig { count, topology, ..CpuConfig::default() }, ..good() }
}

fn with_memory(size_bytes: u64) -> VmConfig {
    VmConfig { memory: MemoryConfig { size_bytes, ..MemoryConfig::default() }, ..good() }
}

fn with_nets(nets: &[(&str, [u8; 6])]) -> VmConfig {
    let net = |(tap, mac): &(&str, [u8; 6])| NetConfig { mac: Some(Mac(*mac)), ..NetConfig::new(*tap) };
    let mut config = VmConfig { nets: nets.iter().map(net).collect(), ..good() };
    config.name_devices();
    config
}

fn with_disk(disk: DiskConfig) -> VmConfig {
    let mut config = VmConfig { disks: vec![disk], ..good() };
    config.name_devices();
    config
}

fn with_dhcp(address: &str, netmask: &str, change: impl FnOnce(&mut DhcpConfig)) -> VmConfig {
    let mut config = with_nets(&[("tap0", [2; 6])]);
    let mut dhcp = DhcpConfig::new(ip(address), ip(netmask));
    change(&mut dhcp);
    config.nets[0].dhcp = Some(dhcp);
    config
}

#[track_caller]
fn refused(config: &VmConfig, message: &str) {
    assert_eq!(config.check().unwrap_err().to_string(), message);
}

#[test]
fn the_defaults_with_a_kernel_are_good() {
    assert_eq!(good().check(), Ok(()));
}

#[test]
fn no_kernel_is_refused() {
    refused(&VmConfig::default(), "boot.kernel (--kernel): no kernel is given, and there is nothing else to boot");
}

#[test]
fn vcpu_counts_of_0_and_255_are_refused_and_254_is_not() {
    refused(&with_cpus(0, None), "cpus.count (--cpus): 0 vCPUs are not possible; a guest has 1 to 254");
    refused(&with_cpus(255, None), "cpus.count (--cpus): 255 vCPUs are not possible; a guest has 1 to 254");
    assert_eq!(with_cpus(254, None).check(), Ok(()));
}

#[test]
fn a_topology_must_multiply_to_the_vcpu_count() {
    refused(
        &with_cpus(4, Some((1, 3, 1))),
        "cpus.topology (--topology): 1 sockets × 3 cores × 1 threads are 3 vCPUs, but cpus.count (--cpus) is 4",
    );
    assert_eq!(with_cpus(8, Some((2, 2, 2))).check(), Ok(()));
}

#[test]
fn a_topology_that_leaves_gaps_in_the_apic_ids_is_refused() {
    assert!(with_cpus(6, Some((1, 2, 3))).check().unwrap_err().to_string().contains("3 threads a core leave gaps"));
    assert!(with_cpus(6, Some((2, 3, 1))).check().unwrap_err().to_string().contains("3 cores × 1 threads a socket"));
    assert_eq!(with_cpus(6, Some((1, 6, 1))).check(), Ok(()));
    assert_eq!(with_cpus(6, Some((1, 3, 2))).check(), Ok(()));
    assert_eq!(with_cpus(3, Some((1, 1, 3))).check(), Ok(()));
}

#[test]
fn pinning_names_a_host_cpu_for_each_vcpu_or_none() {
    let mut config = with_cpus(2, None);
    config.cpus.pin = vec![0];
    refused(&config, "cpus.pin (--pin): 1 host CPUs for 2 vCPUs; name one for each vCPU");
    config.cpus.pin = vec![0, 0];
    assert_eq!(config.check(), Ok(()));
}

#[test]
fn memory_of_nothing_or_one_byte_is_refused() {
    refused(&with_memory(0), "memory.size (--memory): 0 bytes are too little; a guest has at least 1M");
    refused(&with_memory(1), "memory.size (--memory): 1 byte is too little; a guest has at least 1M");
}

#[test]
fn memory_that_was_probably_meant_in_mib_says_how_to_write_it() {
    let error = with_memory(512).check().unwrap_err().to_string();
    assert!(error.ends_with("(for 512 MiB write 512M)"), "{error}");
}

#[test]
fn memory_that_is_no_multiple_of_the_page_names_both_neighbours() {
    refused(
        &with_memory((64 << 20) + 1),
        "memory.size (--memory): 67108865 bytes are no multiple of the 4K page; use 64M or 65540K",
    );
    let mut config = with_memory(3 << 20);
    config.memory.huge_pages = Some(HugePages::Size2M);
    refused(&config, "memory.size (--memory): 3145728 bytes are no multiple of the 2M page; use 2M or 4M");
}

#[test]
fn memory_beyond_the_address_bits_of_x86_is_refused() {
    let error = with_memory(1 << 52).check().unwrap_err().to_string();
    assert_eq!(error, "memory.size (--memory): 4096T is beyond the 52 address bits of x86");
    assert!(with_memory(u64::MAX - 4095).check().is_err());
}

#[test]
fn a_low_split_outside_its_range_is_refused() {
    for split in [0, 4096, (3 << 30) + 4096, (2 << 30) + 1] {
        let mut config = good();
        config.memory.low_split_bytes = Some(split);
        assert!(config.check().unwrap_err().to_string().starts_with("memory.low_split (--low-split)"), "{split}");
    }
}

#[test]
fn a_multicast_or_zero_mac_is_refused() {
    refused(
        &with_nets(&[("tap0", [0x53, 0x54, 0, 0x12, 0x34, 0x56])]),
        "net0: mac 53:54:00:12:34:56 is multicast (the first octet is odd); use for example 52:54:00:12:34:56",
    );
    assert!(with_nets(&[("tap0", [0xff; 6])]).check().unwrap_err().to_string().contains("is multicast"));
    assert!(with_nets(&[("tap0", [0; 6])]).check().unwrap_err().to_string().contains("is no address"));
}

#[test]
fn a_tap_or_mac_used_twice_is_refused_with_both_names() {
    refused(&with_nets(&[("t", [2; 6]), ("t", [4; 6])]), "net1: tap t is already taken by net0");
    refused(&with_nets(&[("t", [2; 6]), ("u", [2; 6])]), "net1: mac 02:02:02:02:02:02 is already taken by net0");
}

#[test]
fn a_tap_name_that_no_link_can_have_is_refused() {
    for tap in ["", "a/b", "a b", "0123456789012345678901234567890123456789"] {
        assert!(with_nets(&[(tap, [2; 6])]).check().unwrap_err().to_string().contains("is not a link name"), "{tap}");
    }
}

#[test]
fn one_image_for_two_disks_is_refused_unless_neither_writes() {
    let mut config = VmConfig { disks: vec![DiskConfig::new("a"), DiskConfig::new("a")], ..good() };
    config.name_devices();
    refused(&config, "disk1: a is also disk0; a guest that writes would damage it");
    config.disks.iter_mut().for_each(|disk| disk.read_only = true);
    assert_eq!(config.check(), Ok(()));
}

#[test]
fn disk_settings_outside_their_limits_are_refused() {
    let disk = DiskConfig::new("d");
    let long = DiskConfig { serial: Some("x".repeat(21)), ..disk.clone() };
    assert!(with_disk(long).check().unwrap_err().to_string().contains("at most 20 printable"));
    for queues in [0, 17] {
        let bad = DiskConfig { queues: Some(queues), ..disk.clone() };
        assert!(with_disk(bad).check().unwrap_err().to_string().contains("a disk has 1 to 16"));
    }
    for queue_size in [0, 1, 2, 3, 100, 2048, 32768] {
        let bad = DiskConfig { queue_size, ..disk.clone() };
        assert!(with_disk(bad).check().unwrap_err().to_string().contains("power of two"), "{queue_size}");
    }
    for (block_size, physical_block_size) in [(Some(256), None), (Some(8192), None), (Some(4096), Some(512))] {
        let bad = DiskConfig { block_size, physical_block_size, ..disk.clone() };
        assert!(with_disk(bad).check().unwrap_err().to_string().contains("block_size"), "{block_size:?}");
    }
    for (queues, queue_size, block_size) in [(1, 4, 512), (16, 1024, 4096)] {
        let good = DiskConfig { queues: Some(queues), queue_size, block_size: Some(block_size), ..disk.clone() };
        assert_eq!(with_disk(good).check(), Ok(()));
    }
}

#[test]
fn the_serial_numbers_of_disks_stay_when_other_disks_come_and_go() {
    let serials = |paths: &[&str]| {
        let disks = paths.iter().map(|path| DiskConfig::new(*path)).collect();
        let mut config = VmConfig { disks, ..VmConfig::default() };
        config.name_devices();
        config.disks.into_iter().map(|disk| disk.serial.unwrap()).collect::<Vec<_>>()
    };
    let [a, b, c] = serials(&["a", "b", "a"]).try_into().unwrap();
    assert!(a != b && b != c && a != c);
    assert_eq!(serials(&["x", "b", "a"])[1..], [b, a]);
}

#[test]
fn a_serial_number_is_written_down_with_the_configuration() {
    let mut config = with_disk(DiskConfig { id: "root".into(), ..DiskConfig::new("d") });
    config.disks.push(DiskConfig::new("e"));
    config.name_devices();
    let again = VmConfig::from_json(std::path::Path::new("vm.json"), &config.to_json()).unwrap();
    assert_eq!(again, config, "an id that was not given is not taken for one that was");
    assert_eq!(config.disks[0].serial.as_deref(), Some("root"));
}

#[test]
fn an_id_used_twice_is_refused() {
    let mut config = with_nets(&[("tap0", [2; 6])]);
    config.disks = vec![DiskConfig { id: "net0".into(), ..DiskConfig::new("d") }];
    refused(&config, "id: 'net0' names two devices");
}

#[test]
fn the_terminal_can_be_given_to_one_line_only() {
    let mut config = good();
    config.serials[0] = Some(SerialBackend::Stdio);
    config.console = Some(ConsoleConfig { backend: SerialBackend::Stdio, slot: None });
    refused(&config, "console: stdio is already taken by com1; give one of them another back end");
}

#[test]
fn a_socket_path_must_fit_and_serve_one_purpose() {
    let mut config = good();
    config.serials[1] = Some(SerialBackend::Socket("/run/vm.sock".into()));
    config.qmp = Some("/run/vm.sock".into());
    refused(&config, "qmp (--qmp): /run/vm.sock is already the socket of com2");
    config.qmp = Some("x".repeat(108).into());
    refused(&config, "qmp (--qmp): a socket path has 1 to 107 bytes, this one has 108");
}

#[test]
fn smbios_strings_that_would_break_the_table_are_refused() {
    let mut config = good();
    config.smbios.product = Some(String::new());
    let error = config.check().unwrap_err().to_string();
    assert!(error.starts_with("smbios.product (--smbios product=): a string here has"), "{error}");
}

#[test]
fn every_problem_is_listed_not_only_the_first() {
    let mut config = with_memory(1);
    config.cpus.count = 0;
    config.boot.kernel = "".into();
    assert_eq!(config.problems().len(), 3);
}

#[test]
fn under_bhyve_the_debug_port_of_firmware_is_taken_and_the_line_says_what_is_free() {
    let mut config = VmConfig { profile: Profile::Bhyve, ..good() };
    config.debug_port = Some(DebugPortConfig { backend: SerialBackend::Null, port: DebugPortConfig::DEFAULT_PORT });
    refused(&config, "debug_port.port (--debug-port port=): port 0x402 belongs to power management; use port=0xe9");
    config.debug_port = Some(DebugPortConfig { backend: SerialBackend::Null, port: 0xe9 });
    assert_eq!(config.check(), Ok(()));
}

#[test]
fn an_address_for_the_guest_is_one_of_a_host() {
    let plain = |_: &mut DhcpConfig| ();
    for (address, netmask) in [
        ("10.0.0.5", "255.255.255.0"),
        ("10.0.1.0", "255.255.254.0"),
        ("10.0.0.255", "255.255.254.0"),
        // Networks of two and of one have none but hosts.
        ("10.0.0.4", "255.255.255.254"),
        ("10.0.0.5", "255.255.255.255"),
    ] {
        assert_eq!(with_dhcp(address, netmask, plain).check(), Ok(()), "{address}");
    }
    for address in ["0.0.0.0", "224.0.0.1", "255.255.255.255"] {
        let message = format!("net0: ip {address} is no address of one host; use for example 10.0.0.5");
        assert_eq!(with_dhcp(address, "255.0.0.0", plain).check().unwrap_err().to_string(), message);
    }
    for netmask in ["0.0.0.0", "255.0.255.0", "0.255.255.255", "255.255.255.1"] {
        let message = format!("net0: netmask {netmask} is not a network mask; use for example 255.255.255.0");
        refused(&with_dhcp("10.0.0.5", netmask, plain), &message);
    }
    refused(
        &with_dhcp("10.0.0.0", "255.255.255.0", plain),
        "net0: ip 10.0.0.0 with netmask 255.255.255.0 is the network itself, not a guest",
    );
    refused(
        &with_dhcp("10.0.1.255", "255.255.254.0", plain),
        "net0: ip 10.0.1.255 with netmask 255.255.254.0 is everybody in its network, not a guest",
    );
}

#[test]
fn what_goes_with_an_address_is_checked_too() {
    let changed = |change: fn(&mut DhcpConfig)| with_dhcp("10.0.0.5", "255.255.255.0", change);
    refused(&changed(|dhcp| dhcp.server_ip = ip("10.0.0.5")), "net0: server_ip 10.0.0.5 is the guest's own address");
    refused(&changed(|dhcp| dhcp.gateway_ip = Some(dhcp.ip)), "net0: gateway_ip 10.0.0.5 is the guest's own address");
    for (change, message) in [
        (
            (|dhcp| dhcp.server_ip = ip("0.0.0.0")) as fn(&mut DhcpConfig),
            "net0: server_ip 0.0.0.0 is no address of one host",
        ),
        (|dhcp| dhcp.gateway_ip = Some(ip("239.0.0.1")), "net0: gateway_ip 239.0.0.1 is no address of one host"),
        (|dhcp| dhcp.dns_ips = vec![ip("0.0.0.0")], "net0: dns_ip 0.0.0.0 is no address of one host"),
        (|dhcp| dhcp.dns_ips = vec![ip("8.8.8.8"); 5], "net0: 5 name servers are more than the 4 possible"),
        (|dhcp| dhcp.hostname = "h".repeat(256), "net0: hostname 'hhh"),
        (
            |dhcp| dhcp.hostname = "web 1".into(),
            "net0: hostname 'web 1' is not a host name; it has up to 255 printable",
        ),
        (|dhcp| dhcp.hostname = "web\n".into(), "net0: hostname 'web\\n' is not a host name"),
        (|dhcp| dhcp.lease_time = 0, "net0: lease_time 0 is no time; use for example 86400"),
    ] {
        let error = changed(change).check().unwrap_err().to_string();
        assert!(error.starts_with(message), "{error}");
    }
    let most = changed(|dhcp| {
        (dhcp.dns_ips, dhcp.hostname, dhcp.lease_time) = (vec![ip("8.8.8.8"); 4], "h".repeat(255), u32::MAX);
        // Where it is does not matter to a guest that is told to go there.
        dhcp.gateway_ip = Some(ip("192.168.0.1"));
    });
    assert_eq!(most.check(), Ok(()));
}

#[test]
fn an_interface_in_the_kernel_has_the_links_address_and_no_key_of_the_queues_here() {
    let with = |change: fn(&mut NetConfig)| {
        let mut config = with_nets(&[("net0", [2; 6])]);
        config.nets[0] = NetConfig { carrier: Carrier::Viona, mac: None, ..config.nets[0].clone() };
        change(&mut config.nets[0]);
        config
    };
    assert_eq!(with(|_| ()).check(), Ok(()));
    assert_eq!(with(|net| net.queues = Some(16)).check(), Ok(()));
    assert_eq!(with(|net| net.carrier = Carrier::Vnic).check(), Ok(()));
    let dhcp = |net: &mut NetConfig| net.dhcp = Some(DhcpConfig::new(ip("10.0.0.5"), ip("255.0.0.0")));
    refused(
        &with(|net| net.mac = Some(Mac([2; 6]))),
        "net0: mac does not go with viona: the guest has the address of the link",
    );
    refused(&with(|net| net.packed = true), "net0: packed does not go with viona: the kernel has no packed virtqueues");
    refused(
        &with(|net| net.in_order = true),
        "net0: in_order does not go with viona: the kernel does not use buffers in order",
    );
    refused(&with(dhcp), "net0: ip does not go with viona: the kernel carries the frames, and no request gets here");
}
