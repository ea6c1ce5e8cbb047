//! The command line from outside: what each wrong word leads to on stderr, and with which exit status.
//!
//! None of these runs reaches the point where a guest gets memory: they run in an address space that has no room for it.
//! So they need no hypervisor either.

#![cfg(target_os = "linux")]

#[path = "cli/audit.rs"]
mod audit;
#[path = "cli/bhyve.rs"]
mod bhyve;
#[path = "cli/disk_info.rs"]
mod disk_info;
#[path = "cli/files.rs"]
mod files;
#[path = "cli/from_vmadm.rs"]
mod from_vmadm;
#[path = "cli/images.rs"]
mod images;
#[path = "cli/process.rs"]
mod process;
#[path = "cli/qemu.rs"]
mod qemu;
#[path = "cli/refused.rs"]
mod refused;
#[path = "cli/values.rs"]
mod values;

use std::fs;
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::{Command, Stdio};

use process::{Place, empty_dev, forbidden_kvm, refused, zvmm, zvmm_after};

#[test]
fn a_good_configuration_is_called_good() {
    let place = Place::new();
    let options = place.options(&["--disk=@root.img", "--net=tap=tap0,mac=52:54:00:12:34:56", "--serial=stdio"]);
    let mut args: Vec<&str> = options.iter().map(String::as_str).collect();
    args[0] = "check-config";
    let outcome = zvmm(&args);
    assert_eq!((outcome.status, outcome.output.as_str()), (Some(0), "configuration: good\n"), "{outcome:?}");
}

#[test]
fn printed_options_are_a_file_that_says_the_same() {
    let place = Place::new();
    let options = place.options(&["--disk=@root.img,ro,slot=4", "--rng", "--memory=1G", "--on-reset=exit"]);
    let mut args: Vec<&str> = options.iter().map(String::as_str).collect();
    args[0] = "check-config";
    args.push("--print");
    let printed = zvmm(&args);
    assert_eq!(printed.status, Some(0), "{printed:?}");
    fs::write(place.path("vm.json"), &printed.output).expect("a file");
    let again = zvmm(&["check-config", "--print", &place.text("vm.json")]);
    assert_eq!((again.status, again.output), (Some(0), printed.output));
}

#[test]
fn check_config_lists_every_problem_and_where_it_is() {
    let place = Place::new();
    let file = place.text("vm.json");
    fs::write(&file, "{\"cpus\": {\"count\": 0}, \"memory\": {\"size\": 1}}").expect("a file");
    let outcome = zvmm(&["check-config", &file]);
    let lines: Vec<&str> = outcome.errors.lines().collect();
    assert_eq!(outcome.status, Some(2));
    assert_eq!(
        lines,
        [
            format!("zvmm: {file}: cpus.count (--cpus): 0 vCPUs are not possible; a guest has 1 to 254"),
            format!("zvmm: {file}: memory.size (--memory): 1 byte is too little; a guest has at least 1M"),
            format!("zvmm: {file}: boot.kernel (--kernel): no kernel is given, and there is nothing else to boot"),
        ]
    );
}

#[test]
fn check_config_can_leave_this_host_out_of_it() {
    let args = ["check-config", "--kernel=/nonexistent/vmlinuz"];
    assert_eq!(zvmm(&args).status, Some(2));
    assert_eq!(zvmm(&[args[0], args[1], "--no-host"]).status, Some(0));
}

#[test]
fn an_unknown_json_key_is_named_with_line_column_path_and_the_nearest_key() {
    let place = Place::new();
    let file = place.text("vm.json");
    for (text, message) in [
        ("{\n  \"memroy\": {}\n}", "2:10: memroy: unknown key 'memroy'; did you mean 'memory'?"),
        ("{\"cpus\": {\"cuont\": 2}}", "1:17: cpus.cuont: unknown key 'cuont'; did you mean 'count'?"),
        (
            "{\"disks\": [{\"path\": \"a\", \"redonly\": true}]}",
            "1:34: disks[0].redonly: unknown key 'redonly'; did you mean 'read_only'?",
        ),
        (
            "{\"memory\": {\"size\": \"1Q\"}}",
            "1:24: memory.size: '1Q' is not a size; write a number of bytes, or a number with K, M, G or T, such as 512M",
        ),
        ("{", "1:1: .: EOF while parsing an object"),
    ] {
        fs::write(&file, text).expect("a file");
        for args in [&["check-config", &file][..], &["run", "--config", &file]] {
            refused(args, &format!("{file}:{message}"));
        }
    }
    refused(
        &["run", "--config", "/nonexistent"],
        "/nonexistent: cannot read the configuration: No such file or directory",
    );
}

#[test]
fn an_unknown_option_or_command_is_answered_with_the_nearest_one() {
    refused(&["run", "--dsk", "x"], "unknown option '--dsk'; did you mean '--disk'?");
    refused(&["run", "--memroy=1G"], "unknown option '--memroy'; did you mean '--memory'?");
    refused(&["run", "--xyzzy"], "unknown option '--xyzzy'");
    refused(&["run", "vmlinuz"], "'vmlinuz' belongs to no option");
    refused(&["rnu"], "unknown command 'rnu'; did you mean 'run'?");
    refused(
        &[],
        "no command; the commands are run, check-config, disk-info, bhyve, qemu, explain and from-vmadm, and --help explains them",
    );
    refused(&["run", "--memory"], "--memory: no value is given");
}

#[test]
fn an_unknown_key_inside_an_option_is_answered_with_the_nearest_one() {
    let place = Place::new();
    place.refuses(
        &["--disk=@root.img,xyzzy"],
        "--disk: unknown key 'xyzzy'; the valid ones are ro, slot, serial, queues, queue_size, block_size, physical_block_size, packed, in_order, engine, cache, werror, rerror, id, limit_group, latency, poll_us, discard, write_through, limit_ops, limit_ops_burst, limit_bytes, limit_bytes_burst, path",
    );
    place.refuses(&["--disk=@root.img,slto=4"], "--disk: unknown key 'slto'; did you mean 'slot'?");
    place.refuses(&["--net=tap=t,mca=52:54:00:12:34:56"], "--net: unknown key 'mca'; did you mean 'mac'?");
    place.refuses(&["--topology=sokets=1"], "--topology: unknown key 'sokets'; did you mean 'sockets'?");
    place.refuses(&["--smbios=serail=1"], "--smbios: unknown key 'serail'; did you mean 'serial'?");
    place.refuses(&["--profile=micor"], "--profile: unknown value 'micor'; did you mean 'micro'?");
}

#[test]
fn a_kernel_that_is_missing_empty_or_a_directory_is_refused() {
    let place = Place::new();
    refused(&["run"], "boot.kernel (--kernel): no kernel is given, and there is nothing else to boot");
    refused(
        &["run", "--kernel=/nonexistent/vmlinuz"],
        "boot.kernel (--kernel): cannot open /nonexistent/vmlinuz: No such file or directory",
    );
    let directory = place.0.path().display().to_string();
    refused(
        &["run", "--kernel", &directory],
        &format!("boot.kernel (--kernel): {directory} is a directory, not a file"),
    );
    fs::write(place.path("vmlinuz"), "").expect("a file");
    place.refuses(&[], "boot.kernel (--kernel): @vmlinuz is empty");
}

#[test]
fn an_initrd_that_is_missing_or_larger_than_memory_is_refused() {
    let place = Place::new();
    place.refuses(&["--initrd=@none"], "boot.initrd (--initrd): cannot open @none: No such file or directory");
    fs::File::create(place.path("big")).and_then(|file| file.set_len(64 << 20)).expect("a file");
    place.refuses(
        &["--initrd=@big", "--memory=64M"],
        "boot.initrd (--initrd): @big has 64M bytes and cannot fit in 64M of memory",
    );
}

#[test]
fn memory_of_0_or_1_byte_or_more_than_the_host_is_refused() {
    let place = Place::new();
    place.refuses(&["--memory=0"], "memory.size (--memory): 0 bytes are too little; a guest has at least 1M");
    place.refuses(&["--memory=1"], "memory.size (--memory): 1 byte is too little; a guest has at least 1M");
    place.refuses(
        &["--memory=512"],
        "memory.size (--memory): 512 bytes are too little; a guest has at least 1M (for 512 MiB write 512M)",
    );
    let page = "memory.size (--memory): 1048577 bytes are no multiple of the 4K page; use 1M or 1028K";
    place.refuses(&["--memory=1048577"], page);
    place.refuses(&["--memory=8192T"], "memory.size (--memory): 8192T is beyond the 52 address bits of x86");
    let options = place.options(&["--memory=1024T"]);
    let outcome = zvmm(&options.iter().map(String::as_str).collect::<Vec<_>>());
    assert_eq!(outcome.status, Some(2));
    assert!(
        outcome.errors.starts_with("zvmm: memory.size (--memory): 1P")
            || outcome.errors.contains("1024T is more than the host has"),
        "{outcome:?}"
    );
}

#[test]
fn vcpu_counts_outside_1_to_254_are_refused() {
    let place = Place::new();
    place.refuses(&["--cpus=0"], "cpus.count (--cpus): 0 vCPUs are not possible; a guest has 1 to 254");
    place.refuses(&["--cpus=255"], "cpus.count (--cpus): 255 vCPUs are not possible; a guest has 1 to 254");
    place.refuses(&["--cpus=256"], "--cpus: 256 vCPUs are not possible; a guest has 1 to 254");
    place.refuses(&["--cpus=-1"], "--cpus: '-1' is not a number");
    place.refuses(
        &["--cpus=6", "--topology=sockets=2,cores=3"],
        "cpus.topology (--topology): 3 cores × 1 threads a socket leave gaps in the APIC ids; make their product a power of two",
    );
}

#[test]
fn a_disk_that_is_a_directory_missing_or_given_twice_is_refused() {
    let place = Place::new();
    let directory = place.0.path().display().to_string();
    place.refuses(
        &["--disk", &directory],
        &format!("disk0: {directory} is a directory; a disk is a file or a block device"),
    );
    place.refuses(&["--disk=@none"], "disk0: cannot open @none: No such file or directory");
    place.refuses(
        &["--disk=@root.img", "--disk=@root.img"],
        "disk1: @root.img is also disk0; a guest that writes would damage it",
    );
    symlink(place.path("root.img"), place.path("link")).expect("a link");
    place.refuses(
        &["--disk=@root.img", "--disk=@link"],
        "disk1: @link is the same file as disk0; a guest that writes would damage it",
    );
}

#[test]
fn two_devices_in_one_slot_are_both_named() {
    let place = Place::new();
    place.refuses(
        &["--disk=@root.img,slot=5", "--rng=slot=5"],
        "rng: slot 5 is already taken by disk0; give one of them another slot",
    );
    place.refuses(
        &["--disk=@root.img,slot=1"],
        "disk0: slot 1 belongs to the PIIX of profile i440fx; choose another slot",
    );
    place.refuses(
        &["--disk=@root.img,slot=32"],
        "--disk: slot=32: '32' is not a PCI slot; write device or device.function, 0 to 31 and 0 to 7",
    );
}

#[test]
fn a_mac_that_is_multicast_or_zero_and_a_tap_used_twice_are_refused() {
    let place = Place::new();
    place.refuses(
        &["--net=tap=tap0,mac=53:54:00:12:34:56"],
        "net0: mac 53:54:00:12:34:56 is multicast (the first octet is odd); use for example 52:54:00:12:34:56",
    );
    place.refuses(
        &["--net=tap=tap0,mac=00:00:00:00:00:00"],
        "net0: mac 00:00:00:00:00:00 is no address; use for example 52:54:00:12:34:56",
    );
    place.refuses(
        &["--net=tap=tap0,mac=52:54:00:12:34:56", "--net=tap=tap0,mac=52:54:00:12:34:57"],
        "net1: tap tap0 is already taken by net0",
    );
}

#[test]
fn an_address_for_the_guest_that_is_none_is_refused() {
    let place = Place::new();
    let net = |keys: &str| format!("--net=tap=tap0,mac=52:54:00:12:34:56,{keys}");
    place.refuses(
        &[&net("ip=10.0.0.300,netmask=255.0.0.0")],
        "--net: ip=10.0.0.300: '10.0.0.300' is not an IPv4 address such as 10.0.0.5",
    );
    place.refuses(
        &[&net("ip=10.0.0.5,netmask=255.0.255.0")],
        "net0: netmask 255.0.255.0 is not a network mask; use for example 255.255.255.0",
    );
    place.refuses(
        &[&net("gateway_ip=10.0.0.1")],
        "--net: gateway_ip is for ip=, the guest's address, which is not given",
    );
}

#[test]
fn a_socket_path_that_is_a_file_or_served_by_others_is_refused() {
    let place = Place::new();
    place.refuses(&["--qmp=@root.img"], "qmp (--qmp): @root.img exists and is a file, not a socket");
    place.refuses(&["--serial=socket:@root.img"], "com1: @root.img exists and is a file, not a socket");
    place.refuses(&["--qmp=@no/socket"], "qmp (--qmp): the directory @no does not exist");
    let _served = UnixListener::bind(place.path("served")).expect("a socket");
    place.refuses(&["--qmp=@served"], "qmp: @served is served by another process");
    place.refuses(&["--serial=socket:@served"], "com1: @served is served by another process");
    assert!(place.path("served").exists() && fs::metadata(place.path("root.img")).is_ok());
}

#[test]
fn a_device_that_is_no_terminal_is_refused() {
    Place::new().refuses(&["--serial=device:/dev/null"], "com1: cannot open /dev/null: it is not a terminal");
}

#[test]
fn a_metadata_file_with_something_wrong_is_refused_with_the_place() {
    let place = Place::new();
    for (text, problem) in [
        ("[1]", "1:0: invalid type: sequence, expected an object with the keys and values of the metadata"),
        ("{\"a\": \"1\",\n \"a\": \"2\"}", "2:10: 'a' is there twice"),
        ("{\"a\": null}", "1:11: 'a' has no value; leave out what does not exist"),
        ("{\"a\": ", "1:6: EOF while parsing a value"),
    ] {
        fs::write(place.path("m.json"), text).expect("a file");
        place.refuses(&["--serial=com2=metadata:@m.json"], &format!("com2: @m.json:{problem}"));
    }
    fs::write(place.path("m.json"), "{}").expect("a file");
    place.refuses(
        &["--serial=com1=metadata:@m.json", "--serial=com2=metadata:@m.json"],
        "com2: metadata:@m.json is already taken by com1; give one of them another back end",
    );
    place.refuses(&["--serial=metadata"], "--serial: 'metadata' has no file; write metadata:FILE");
}

#[test]
fn the_terminal_is_given_to_one_line_only() {
    Place::new().refuses(
        &["--serial=stdio", "--console=stdio"],
        "console: stdio is already taken by com1; give one of them another back end",
    );
}

#[test]
fn help_and_version_go_to_stdout_and_succeed() {
    for args in [
        &["--help"][..],
        &["-h"],
        &["--version"],
        &["run", "--help"],
        &["check-config", "--help"],
        &["disk-info", "--help"],
        &["from-vmadm", "--help"],
    ] {
        let outcome = zvmm(args);
        assert_eq!((outcome.status, outcome.errors.as_str()), (Some(0), ""), "{args:?}");
        assert!(!outcome.output.is_empty());
    }
    let help = zvmm(&["run", "--help"]).output;
    for words in
        ["Ctrl-A x leaves", "Exit statuses:", "130  stopped at once by a second SIGINT", "--on-reset", "SIGTERM"]
    {
        assert!(help.contains(words), "{words}");
    }
}

#[test]
fn help_into_a_closed_pipe_is_no_failure() {
    let mut child = Command::new(env!("CARGO_BIN_EXE_zvmm"))
        .args(["run", "--help"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the binary runs");
    drop(child.stdout.take());
    let outcome = child.wait_with_output().expect("it ends");
    assert_eq!((outcome.status.code(), outcome.stderr.is_empty()), (Some(0), true));
}

#[test]
fn a_refused_run_leaves_no_socket_behind() {
    let place = Place::new();
    let _served = UnixListener::bind(place.path("served")).expect("a socket");
    place.refuses(&["--qmp=@qmp", "--serial=socket:@served"], "com1: @served is served by another process");
    assert!(!Path::exists(&place.path("qmp")));
}

#[test]
fn a_missing_or_forbidden_dev_kvm_says_what_to_do() {
    let place = Place::new();
    let args = place.options(&["--disk=@root.img"]);
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let missing = zvmm_after(empty_dev, &args);
    let module = if Path::new("/sys/module/kvm").exists() {
        "load kvm_intel or kvm_amd; is virtualization switched off in the firmware?"
    } else {
        "load the kvm module, or make the device visible in this container"
    };
    let line = format!("zvmm: /dev/kvm: No such file or directory: {module}\n");
    assert_eq!((missing.status, missing.errors), (Some(3), line));
    let forbidden = zvmm_after(forbidden_kvm, &args);
    let line = "zvmm: /dev/kvm: Permission denied: add the user to the group that owns it (usually kvm)\n";
    assert_eq!((forbidden.status, forbidden.errors.as_str()), (Some(3), line));
}

#[test]
fn what_another_system_has_is_refused_by_its_name() {
    let place = Place::new();
    for (option, status, line) in [
        ("--hypervisor=bhyve", 3, "zvmm: hypervisor: bhyve is illumos': this host has kvm\n"),
        ("--reservoir", 3, "zvmm: memory: the reservoir is bhyve's, and kvm takes memory where it is free\n"),
    ] {
        let args = place.options(&[option]);
        let outcome = zvmm(&args.iter().map(String::as_str).collect::<Vec<_>>());
        assert_eq!((outcome.status, outcome.errors.as_str()), (Some(status), line));
    }
}

#[test]
fn words_that_are_no_text_are_named() {
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt as _;
    let mut command = Command::new(env!("CARGO_BIN_EXE_zvmm"));
    let run = command.arg("run").arg(OsStr::from_bytes(b"--name=\xff")).output().expect("the binary runs");
    let errors = String::from_utf8_lossy(&run.stderr).into_owned();
    assert_eq!((run.status.code(), errors.as_str()), (Some(2), "zvmm: '--name=\u{fffd}' is not UTF-8 text\n"));
}

#[test]
fn a_debug_port_in_the_way_of_a_profile_is_told_a_free_one() {
    Place::new().refuses(
        &["--profile=bhyve", "--debug-port=null"],
        "debug_port.port (--debug-port port=): port 0x402 belongs to power management; use port=0xe9",
    );
}

#[test]
fn a_file_given_twice_is_refused() {
    refused(&["check-config", "a.json", "--config=b.json"], "[FILE] and --config cannot both be given");
    refused(&["check-config", "a.json", "b.json"], "'b.json' belongs to no option");
}
