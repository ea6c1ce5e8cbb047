use std::path::Path;

use super::support::DRIVERS;
use super::*;
use crate::{
    BootConfig, Carrier, CpuConfig, DiskCache, DiskConfig, NetConfig, SandboxMode, SerialBackend, Slot, SmbiosConfig,
    Topology,
};

const UUID: &str = "6e2b1f0a-2c55-4b63-9a53-0d6f3a1f7c11";

/// What the boot hook of SmartOS passes for a guest with two disks and two interfaces.
fn example() -> Vec<String> {
    let system = "1,manufacturer=Joyent,product=SmartDC HVM,version=7.20260305T000000Z,serial=U,sku=001,\
                  family=Virtual Machine";
    let args = [
        "-H",
        "-U",
        UUID,
        "-B",
        system,
        "-s",
        "31,lpc",
        "-l",
        "bootrom,/usr/share/bhyve/uefi-csm-rom.bin",
        "-l",
        "com1,/dev/zconsole",
        "-l",
        "com2,socket,/tmp/vm.ttyb",
        "-s",
        "0,hostbridge,model=i440fx",
        "-c",
        "2",
        "-m",
        "2048",
        "-s",
        "0:4:0,virtio-blk,/dev/zvol/rdsk/zones/U/disk0",
        "-s",
        "0:4:1,virtio-blk,/dev/zvol/rdsk/zones/U/disk1",
        "-s",
        "6:0,virtio-net-viona,net0",
        "-s",
        "6:1,virtio-net-viona,net1",
        "-o",
        "virtio.legacy=true",
        "-o",
        "virtio.modern=false",
        "-s",
        "30:0,fbuf,vga=off,unix=/tmp/vm.vnc,password=secret",
        "-s",
        "30:1,xhci,tablet",
        "SYSbhyve-7",
    ];
    args.map(str::to_owned).to_vec()
}

fn read(args: &[&str]) -> Result<Translation, String> {
    let args: Vec<String> = args.iter().map(|arg| (*arg).to_owned()).collect();
    match translate(&args) {
        Ok(Request::Run(translation)) => Ok(translation),
        Ok(other) => Err(format!("{other:?}")),
        Err(error) => Err(error.to_string()),
    }
}

/// The machine of these options.
#[track_caller]
fn machine(options: &[&str]) -> VmConfig {
    read(&[options, &["vm"]].concat()).unwrap().config
}

#[track_caller]
fn refused(options: &[&str], line: &str) {
    assert_eq!(read(&[options, &["vm"]].concat()).err().as_deref(), Some(line), "{options:?}");
}

fn slot(device: u8, function: u8) -> Option<Slot> {
    Some(Slot { device, function })
}

#[test]
fn what_the_boot_hook_passes_is_the_machine_it_means() {
    let Ok(Request::Run(Translation { config, notes })) = translate(&example()) else { panic!() };
    let disk = |name: &str, function| DiskConfig {
        slot: slot(4, function),
        ..DiskConfig::new(format!("/dev/zvol/rdsk/zones/U/{name}"))
    };
    let net = |name: &str, function| NetConfig {
        carrier: Carrier::Vnic,
        slot: slot(6, function),
        queue_size: 1024,
        ..NetConfig::new(name)
    };
    let mut expected = VmConfig {
        name: "SYSbhyve-7".to_owned(),
        uuid: UUID.parse().ok(),
        profile: Profile::Bhyve,
        cpus: CpuConfig {
            count: 2,
            topology: Some(Topology { sockets: 2, cores: 1, threads: 1 }),
            ..CpuConfig::default()
        },
        disks: vec![disk("disk0", 0), disk("disk1", 1)],
        nets: vec![net("net0", 0), net("net1", 1)],
        serials: [
            Some(SerialBackend::Device("/dev/zconsole".into())),
            Some(SerialBackend::Socket("/tmp/vm.ttyb".into())),
            None,
            None,
        ],
        smbios: SmbiosConfig {
            manufacturer: Some("Joyent".to_owned()),
            product: Some("SmartDC HVM".to_owned()),
            version: Some("7.20260305T000000Z".to_owned()),
            serial: Some("U".to_owned()),
            sku: Some("001".to_owned()),
            family: Some("Virtual Machine".to_owned()),
        },
        virtio: VirtioInterfaces::Legacy,
        on_reset: OnReset::Exit,
        on_triple_fault: OnTripleFault::Exit,
        ..VmConfig::default()
    };
    expected.memory.size_bytes = 2 << 30;
    expected.name_devices();
    assert_eq!(config, expected);
    let notes: Vec<String> = notes.iter().filter(|note| note.is_logged()).map(Note::to_string).collect();
    assert_eq!(
        notes,
        [
            "-l bootrom,/usr/share/bhyve/uefi-csm-rom.bin: not built yet; the guest runs without it",
            "-s 30:0,fbuf,vga=off,unix=/tmp/vm.vnc,password=…: not built yet; the guest runs without it",
            "-s 30:1,xhci,tablet: not built yet; the guest runs without it",
        ]
    );
    let problems = config.problems().iter().map(ToString::to_string).collect::<Vec<_>>();
    assert_eq!(problems, ["boot.kernel (--kernel): no kernel is given, and there is nothing else to boot"]);
}

#[test]
fn a_kernel_in_place_of_the_rom_comes_by_extra_options_in_words() {
    let mut args = example();
    let name = args.pop().unwrap();
    let cmdline = ["zvmm.cmdline=root=/dev/vda", "zvmm.cmdline=console=ttyS0,115200"];
    for extra in ["zvmm.kernel=/k", "zvmm.initrd=/i", "zvmm.sandbox=strict"].into_iter().chain(cmdline) {
        args.extend(["-o".to_owned(), extra.to_owned()]);
    }
    args.push(name);
    let Ok(Request::Run(Translation { config, .. })) = translate(&args) else { panic!() };
    let cmdline = "root=/dev/vda console=ttyS0,115200".to_owned();
    assert_eq!(config.sandbox, SandboxMode::Strict);
    assert_eq!(config.boot, BootConfig { kernel: "/k".into(), initrd: Some("/i".into()), cmdline });
    assert_eq!(config.check(), Ok(()));
}

#[test]
fn without_options_a_guest_has_what_bhyve_gives_it() {
    let config = machine(&[]);
    assert_eq!((config.cpus.count, config.memory.size_bytes, config.name.as_str()), (1, 256 << 20, "vm"));
    assert_eq!((config.disks.len(), config.nets.len(), config.rng, config.console), (0, 0, None, None));
}

#[test]
fn letters_are_told_apart_as_getopt_does() {
    let plain = machine(&["-m", "2048", "-c", "2", "-H", "-A"]);
    for options in [
        &["-m2048", "-c2", "-HA"][..],
        &["-AHm2048", "-c", "2"],
        &["-HAm", "2048", "-c2", "--"],
        &["-m", "1", "-HAPSwuWYxaeID", "-m2048", "-c", "2"],
    ] {
        let mut config = machine(options);
        config.memory.lock = false;
        assert_eq!(config, plain, "{options:?}");
    }
    assert_eq!(read(&["--", "-vm"]).map(|read| read.config.name), Ok("-vm".to_owned()));
    assert_eq!(read(&["-"]).map(|read| read.config.name), Ok("-".to_owned()));
    refused(&["-Q"], "unknown option '-Q'; -h explains those there are");
    refused(&["-HQ"], "unknown option '-Q'; -h explains those there are");
    refused(&["--memory", "1G"], "'--memory' is no option of bhyve's; they are letters, and -h explains them");
    assert_eq!(read(&["-m"]), Err("-m: no value is given; write -m SIZE".to_owned()));
    assert_eq!(translate(&["-H".to_owned(), "-?".to_owned()]), Ok(Request::Help));
    assert_eq!(translate(&["-Hh".to_owned()]), Ok(Request::Help));
}

#[test]
fn the_name_comes_last_and_once() {
    assert_eq!(read(&["-H"]), Err("the name of the VM is missing; it comes last".to_owned()));
    let line = "'-H' follows the name of the VM, 'vm', which comes last".to_owned();
    assert_eq!(read(&["vm", "-H"]), Err(line));
}

#[test]
fn a_hundred_arguments_are_read_and_one_more_is_not() {
    let mut args = vec!["-H"; 98];
    args.push("vm");
    assert!(read(&args).is_ok());
    args.push("vm");
    let line = "101 arguments are more than the 100 that a zone's boot hook passes".to_owned();
    assert_eq!(read(&args), Err(line));
}

#[test]
fn every_letter_is_carried_out_noted_or_refused() {
    for letter in &LETTERS {
        let option = format!("-{}", letter.word);
        let value = match letter.word {
            "B" => "1,sku=1",
            "c" | "m" => "1",
            "o" => "a=b",
            "l" => "com1,stdio",
            "s" => "0,hostbridge",
            "U" => UUID,
            "G" | "k" => "1",
            _ => "",
        };
        assert_eq!(letter.argument.is_empty(), value.is_empty(), "{option}");
        let given = [option.as_str(), value, "vm"];
        let given: Vec<&str> = given.into_iter().filter(|arg| !arg.is_empty()).collect();
        match (letter.support, read(&given)) {
            (Support::Ignored(why), Ok(read)) => {
                assert_eq!(read.notes, [Note { what: option, fate: Fate::Ignored(why) }]);
            }
            (Support::Refused(why), Err(error)) => assert_eq!(error, format!("{option}: {why}")),
            (Support::Implemented, Err(_)) if letter.word == "h" => {}
            (Support::Implemented, Ok(_)) => {}
            (support, read) => panic!("{option} is {support:?} and reads as {read:?}"),
        }
    }
}

#[test]
fn memory_counts_mib_below_one_mi_and_bytes_above() {
    for (text, bytes) in [
        ("1", 1 << 20),
        ("2048", 2 << 30),
        ("1048575", 1_048_575 << 20),
        ("1048576", 1 << 20),
        ("0x800", 2 << 30),
        ("512k", 512 << 10),
        ("256m", 256 << 20),
        ("3G", 3 << 30),
        ("1t", 1 << 40),
        ("0", 0),
    ] {
        assert_eq!(machine(&["-m", text]).memory.size_bytes, bytes, "{text}");
        assert_eq!(machine(&["-o", &format!("memory.size={text}")]).memory.size_bytes, bytes, "{text}");
    }
    let example = "write a number of bytes, or a number with K, M, G or T, such as 512M";
    refused(&["-m", "lots"], &format!("-m: 'lots' is not a size; {example}"));
    refused(&["-m", "-1"], &format!("-m: '-1' is not a size; {example}"));
    refused(&["-m", "0x"], &format!("-m: '0x' is not a size; {example}"));
    refused(&["-m", "0512"], "-m: '0512' begins with 0, which bhyve reads as octal; write it without");
    refused(&["-m", "99999999999999999999"], "-m: '99999999999999999999' does not fit in 64 bits");
}

#[test]
fn a_vcpu_is_a_socket_unless_a_topology_is_given() {
    let shape = |text: &str| {
        let config = machine(&["-c", text]);
        let Topology { sockets, cores, threads } = config.cpus.topology();
        (config.cpus.count, sockets, cores, threads)
    };
    for (text, expected) in [
        ("1", (1, 1, 1, 1)),
        ("4", (4, 4, 1, 1)),
        ("cpus=4", (4, 4, 1, 1)),
        ("4,cores=2", (4, 2, 2, 1)),
        ("cpus=8,sockets=2,cores=2,threads=2", (8, 2, 2, 2)),
        ("sockets=2,threads=2", (4, 2, 1, 2)),
        ("cores=4", (4, 1, 4, 1)),
        ("254", (254, 254, 1, 1)),
    ] {
        assert_eq!(shape(text), expected, "{text}");
    }
    assert_eq!(machine(&["-c", "4", "-o", "cores=4"]).cpus.topology().sockets, 1);
    refused(&["-c", "3,sockets=2"], "-c: 2 sockets × 1 cores × 1 threads are 2 vCPUs, and not 3");
    refused(&["-c", "3,cores=2"], "-c: 2 sockets × 2 cores × 1 threads are 4 vCPUs, and not 3");
    refused(&["-c", "0"], "-c: cpus cannot be 0");
    refused(&["-c", "two"], "-c: 'two' is not a number of cpus");
    refused(&["-c", ""], "-c: no value is given; write a number of vCPUs");
    refused(&["-c", "core=2"], "-c: unknown key 'core'; did you mean 'cores'?");
    refused(&["-c", "1000"], "-c: 1000 vCPUs are not possible; a guest has 1 to 254");
    refused(&["-c", "99999999999999999999"], "-c: cpus 99999999999999999999 is too large");
}

#[test]
fn smbios_strings_are_those_of_type_1() {
    assert_eq!(machine(&["-B", &format!("1,uuid={UUID}")]).uuid, UUID.parse().ok());
    refused(&["-B", "2,serial=1"], "-B: '2' is not a type that can be given; write 1,KEY=VALUE,…");
    refused(&["-B", "1,serail=1"], "-B: unknown key 'serail'; did you mean 'serial'?");
    refused(&["-B", "1,Joyent"], "-B: 'Joyent' is no KEY=VALUE");
    refused(&["-B", "1,sku="], "-B: sku is empty; leave it out for the built-in one");
    refused(&["-U", "U"], "-U: 'U' is not a UUID such as 6e2b1f0a-2c55-4b63-9a53-0d6f3a1f7c11");
    refused(&["-o", "uuid=U"], "-o uuid: 'U' is not a UUID such as 6e2b1f0a-2c55-4b63-9a53-0d6f3a1f7c11");
}

#[test]
fn serial_lines_are_devices_sockets_or_the_terminal_and_the_last_one_counts() {
    let config = machine(&["-l", "com3,stdio", "-l", "com4,/dev/term/a"]);
    assert_eq!(config.serials[2], Some(SerialBackend::Stdio));
    assert_eq!(config.serials[3], Some(SerialBackend::Device("/dev/term/a".into())));
    let again = read(&["-l", "com1,stdio", "-l", "com1,socket,/tmp/s", "vm"]).unwrap();
    assert_eq!(again.config.serials[0], Some(SerialBackend::Socket("/tmp/s".into())));
    let line = "-l com1 stdio: ignored: a later one for the same port replaces it";
    assert_eq!(again.notes.iter().map(Note::to_string).collect::<Vec<_>>(), [line]);

    let forms = "write a device such as /dev/zconsole, stdio or socket,PATH";
    refused(&["-l", "com1,tcp=0.0.0.0:1"], &format!("-l com1: 'tcp=0.0.0.0:1' is not a back end; {forms}"));
    refused(&["-l", "com1"], &format!("-l com1: no back end is given; {forms}"));
    refused(&["-l", "com2,socket,"], &format!("-l com2: socket has no path; {forms}"));
    refused(&["-l", "com2,socket"], &format!("-l com2: socket has no path; {forms}"));
    refused(&["-l", "com2,socket,/a,b"], &format!("-l com2: 'b' follows the path of the socket; {forms}"));
    refused(&["-l", "com5,stdio"], "-l: unknown device 'com5'; did you mean 'com4'?");
    refused(&["-l", "bootrom"], "-l bootrom: no path is given; write -l bootrom,PATH");
    refused(&["-l", "tpm,swtpm,/tmp/t"], "-l tpm: there is no TPM");
}

#[test]
fn a_slot_is_a_device_with_or_without_function_on_bus_0() {
    let place = |text: &str| machine(&["-s", &format!("{text},virtio-rnd")]).rng.unwrap().slot;
    assert_eq!(place("5"), slot(5, 0));
    assert_eq!(place("6:0"), slot(6, 0));
    assert_eq!(place("29:7"), slot(29, 7));
    assert_eq!(place("0:31:7"), slot(31, 7));
    for wrong in ["", "32", "4:8", "256:1:0", "a", "-1", "+4", "1:2:3:4", "0x4", ":4"] {
        let line = format!(
            "-s {wrong},virtio-rnd: '{wrong}' is not a slot; write DEVICE, DEVICE:FUNCTION or BUS:DEVICE:FUNCTION, up to 255:31:7"
        );
        refused(&["-s", &format!("{wrong},virtio-rnd")], &line);
    }
    refused(&["-s", "1:0:0,virtio-rnd"], "-s 1:0:0,virtio-rnd: this machine has no bridge to bus 1, only bus 0");
    refused(&["-s", "5"], "-s: '5' names no driver; write -s SLOT,DRIVER");
}

#[test]
fn two_devices_in_one_slot_are_refused_whatever_they_are() {
    let rnd = "5,virtio-rnd";
    refused(
        &["-s", "0:5:0,virtio-blk,/d", "-s", rnd],
        "-s 5,virtio-rnd: slot 5 is already taken by -s 0:5:0,virtio-blk",
    );
    refused(&["-s", "5:0,fbuf", "-s", rnd], "-s 5,virtio-rnd: slot 5 is already taken by -s 5:0,fbuf");
    refused(
        &["-s", "0,hostbridge", "-s", "0,virtio-rnd"],
        "-s 0,virtio-rnd: slot 0 is already taken by -s 0,hostbridge",
    );
    // The bridges are there even where nobody names them.
    let error = machine(&["-s", "31,virtio-rnd"]).slot_plan().unwrap_err().to_string();
    assert!(error.starts_with("rng: slot 31 belongs to the LPC bridge"), "{error}");
}

#[test]
fn bridges_are_where_smartos_has_them() {
    refused(&["-s", "1,lpc"], "-s 1,lpc: the LPC bridge is at 31, as SmartOS has it, and cannot be at 1");
    refused(&["-s", "2,hostbridge"], "-s 2,hostbridge: the host bridge is at 0 and cannot be at 2");
    refused(&["-s", "0,hostbridge,model=q35"], "-s 0,hostbridge: model 'q35' is not built; use model=i440fx");
    refused(&["-s", "0,hostbridge,vendor=0x1022"], "-s 0,hostbridge: vendor=0x1022: its ids are those of model=i440fx");
    refused(&["-s", "0,hostbridge,x"], "-s 0,hostbridge: unknown key 'x'; the valid one is model");
    refused(&["-s", "31,lpc,x"], "-s 31,lpc: it takes nothing more, and 'x' follows");
}

#[test]
fn every_driver_is_built_noted_or_refused_by_its_name() {
    for driver in &DRIVERS {
        let place = match driver.word {
            "hostbridge" => 0,
            "lpc" => 31,
            _ => 5,
        };
        let conf = match driver.word {
            "virtio-blk" => ",/d",
            "virtio-net-viona" => ",net0",
            "virtio-console" => ",agent=/tmp/agent",
            _ => "",
        };
        let device = format!("{place},{}{conf}", driver.word);
        match (driver.support, read(&["-s", &device, "vm"])) {
            (Support::Refused(why), Err(error)) => {
                assert_eq!(error, format!("-s {place},{}: {why}", driver.word));
            }
            (Support::NotBuilt, Ok(read)) => {
                assert_eq!(read.notes, [Note { what: format!("-s {device}"), fate: Fate::NotBuilt }]);
            }
            (Support::Implemented, Ok(_)) => {}
            (support, read) => panic!("{device} is {support:?} and reads as {read:?}"),
        }
    }
    refused(&["-s", "5,virtio-blkk,/d"], "-s 5: unknown driver 'virtio-blkk'; did you mean 'virtio-blk'?");
    let usable = "hostbridge, lpc, virtio-blk, virtio-net-viona, virtio-rnd, virtio-console, fbuf, xhci";
    refused(&["-s", "5,qqq"], &format!("-s 5: unknown driver 'qqq'; the valid ones are {usable}"));
}

#[test]
fn a_disk_has_its_keys() {
    let disk = |conf: &str| machine(&["-s", &format!("5,virtio-blk,{conf}")]).disks.remove(0);
    let all = disk("/d=1,ro,nocache,nodelete,sectorsize=512/4096,ser=S1");
    assert_eq!((all.path.to_str(), all.read_only, all.discard), (Some("/d=1"), true, false));
    assert_eq!((all.block_size, all.physical_block_size), (Some(512), Some(4096)));
    assert_eq!((all.serial.as_deref(), all.cache), (Some("S1"), Some(DiskCache::Direct)));
    assert_eq!(["/d", "/d,sync", "/d,direct"].map(|conf| disk(conf).write_through), [false, true, true]);
    let one = disk("/d,sectorsize=4096,serial=S2");
    assert_eq!((one.block_size, one.physical_block_size, one.serial.as_deref()), (Some(4096), Some(4096), Some("S2")));
    let noted = read(&["-s", "5,virtio-blk,/d,bootindex=1", "vm"]).unwrap().notes;
    assert_eq!(noted[0].to_string(), "-s 5,virtio-blk: bootindex=1: not built yet; the guest runs without it");

    let who = "-s 5,virtio-blk";
    let wrong = |conf: &str, line: &str| refused(&["-s", &format!("5,virtio-blk{conf}")], &format!("{who}: {line}"));
    wrong("", "no path is given; write virtio-blk,PATH");
    wrong(",", "no path is given; write virtio-blk,PATH");
    wrong(",/d,nodelet", "unknown key 'nodelet'; did you mean 'nodelete'?");
    wrong(",/d,ro=1", "ro takes no value");
    wrong(",/d,ser", "ser has no value; write ser=TEXT");
    wrong(",/d,sectorsize", "sectorsize has no value; write sectorsize=LOGICAL[/PHYSICAL]");
    let form = "is not a number of bytes; write sectorsize=LOGICAL[/PHYSICAL]";
    wrong(",/d,sectorsize=4K", &format!("sectorsize: '4K' {form}"));
    wrong(",/d,sectorsize=512/", &format!("sectorsize: '' {form}"));
}

#[test]
fn an_interface_has_its_keys_and_the_address_of_its_link() {
    let net = |conf: &str| machine(&["-s", &format!("6:0,virtio-net-viona,{conf}")]).nets.remove(0);
    let plain = net("net0");
    assert_eq!((plain.tap.as_str(), plain.mac, plain.queue_size), ("net0", None, 1024));
    assert_eq!((plain.carrier, plain.promiscuous), (Carrier::Vnic, false));
    assert_eq!((plain.queues, plain.feature_mask, plain.tx_copy_data, plain.tx_header_pad), (None, 0, None, None));
    let given = net("net0,vqsize=4,feature_mask=0x801,promiscphys=true,promiscmulti=off,qpair=16");
    assert_eq!((given.queue_size, given.promiscuous, given.queues, given.feature_mask), (4, true, Some(16), 0x801));
    let params = net("net0,tx_copy_data=off,tx_header_pad=64,feature_mask=2048");
    assert_eq!((params.tx_copy_data, params.tx_header_pad, params.feature_mask), (Some(false), Some(64), 2048));
    assert!(!net("net0,promiscphys=no").promiscuous);

    let who = "-s 6,virtio-net-viona";
    let wrong =
        |conf: &str, line: &str| refused(&["-s", &format!("6,virtio-net-viona{conf}")], &format!("{who}: {line}"));
    wrong("", "no link is given; write virtio-net-viona,LINK");
    wrong(",net0,vqsize=1000", "vqsize 1000 is not possible; it is a power of two from 4 to 32768");
    wrong(",net0,vqsize=2", "vqsize 2 is not possible; it is a power of two from 4 to 32768");
    wrong(",net0,vqsize=2048", "vqsize 2048 is more than a queue has here; the most is 1024");
    wrong(",net0,vqsize=many", "vqsize: 'many' is not a number");
    wrong(",net0,feature_mask=x", "feature_mask: 'x' is not a number of 64 bits such as 0x800");
    wrong(",net0,qpair=0", "qpair 0 is not possible; it is a number from 1 to 256");
    wrong(",net0,qpair=17", "qpair 17 is more than an interface has here; the most is 16");
    wrong(",net0,qpair=two", "qpair: 'two' is not a number");
    wrong(",net0,tx_copy_data=some", "tx_copy_data: 'some' is neither true nor false");
    wrong(",net0,tx_header_pad=65536", "tx_header_pad: '65536' is not a number up to 65535");
    wrong(",net0,promiscphys=maybe", "promiscphys: 'maybe' is neither true nor false");
    wrong(",net0,promiscphy=true", "unknown key 'promiscphy'; did you mean 'promiscphys'?");
}

#[test]
fn a_guest_has_one_entropy_source_and_one_console_port() {
    let config = machine(&["-s", "8,virtio-console,agent=/tmp/agent", "-s", "9,virtio-rnd"]);
    let console = config.console.unwrap();
    assert_eq!((console.backend, console.slot), (SerialBackend::Socket("/tmp/agent".into()), slot(8, 0)));
    refused(&["-s", "8,virtio-console"], "-s 8,virtio-console: no port is given; write virtio-console,NAME=SOCKET");
    refused(&["-s", "8,virtio-console,a=/a,b=/b"], "-s 8,virtio-console: it has one port");
    refused(
        &["-s", "8,virtio-console,a=/a", "-s", "9,virtio-console,b=/b"],
        "-s 9,virtio-console: a guest has one virtio-console",
    );
    refused(&["-s", "8,virtio-rnd", "-s", "9,virtio-rnd"], "-s 9,virtio-rnd: a guest has one entropy source");
    refused(&["-s", "8,virtio-rnd,x"], "-s 8,virtio-rnd: it takes nothing more, and 'x' follows");
}

#[test]
fn keys_of_the_configuration_mean_what_they_mean_and_others_are_stored() {
    let config = machine(&["-o", "memory.use_reservoir=true", "-o", "memory.wired=on", "-o", "cpus=2"]);
    assert_eq!((config.memory.reservoir, config.memory.lock, config.cpus.count), (true, true, 2));
    let virtio = |words: [&str; 2]| machine(&["-o", words[0], "-o", words[1]]).virtio;
    assert_eq!(virtio(["virtio.legacy=true", "virtio.modern=false"]), VirtioInterfaces::Legacy);
    assert_eq!(virtio(["virtio.legacy=true", "virtio.modern=true"]), VirtioInterfaces::Both);
    assert_eq!(virtio(["virtio.modern=on", "virtio.legacy=0"]), VirtioInterfaces::Modern);
    assert_eq!(machine(&["-o", "virtio.modern=true"]).virtio, VirtioInterfaces::Both);
    let neither = ["-o", "virtio.legacy=false", "-o", "virtio.modern=false"];
    refused(&neither, "-o virtio.modern: with virtio.legacy=false as well no driver finds a device");
    let log = |word: &str| machine(&["-o", word]).log.iter().map(ToString::to_string).collect::<Vec<_>>();
    assert_eq!(log("privileges.debug=true"), ["warn", "zvmm::sandbox=debug"]);
    assert_eq!(log("privileges.debug=false"), [""; 0]);
    assert_eq!(machine(&["-o", "zvmm.qmp=/tmp/vm.qmp"]).qmp.as_deref(), Some(Path::new("/tmp/vm.qmp")));
    let unknown = read(&["-o", "x86.strictmsr=false", "vm"]).unwrap().notes;
    assert_eq!(unknown, [Note { what: "-o x86.strictmsr=false".to_owned(), fate: Fate::Unknown }]);
    let dump = ["-o", "config.dump=1", "vm"].map(str::to_owned);
    assert!(matches!(translate(&dump), Ok(Request::Dump(_))));
    refused(&["-o", "verbose"], "-o: 'verbose' is no KEY=VALUE");
    refused(&["-o", "=x"], "-o: '=x' is no KEY=VALUE");
    refused(&["-o", "zvmm.kernal=/k"], "-o: unknown key 'zvmm.kernal'; did you mean 'zvmm.kernel'?");
    refused(&["-o", "zvmm.sandbox=on"], "-o zvmm.sandbox: 'on' is none of strict, log and off");
    refused(&["-o", "zvmm.kernel="], "-o zvmm.kernel: no value is given; write -o zvmm.kernel=PATH");
    refused(&["-o", "virtio.modern=perhaps"], "-o virtio.modern: 'perhaps' is neither true nor false");
    refused(&["-o", "pci.0.4.0.path=/x"], "-o pci.0.4.0.path: give devices with -s");
    refused(&["-o", "lpc.com1.path=/x"], "-o lpc.com1.path: give devices with -l");
}

#[test]
fn the_help_names_every_letter() {
    let help = help();
    for letter in &LETTERS {
        assert!(help.contains(&format!("\n  -{} ", letter.word)) && help.contains(letter.meaning), "{}", letter.word);
    }
}
