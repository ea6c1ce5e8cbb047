//! Every word that is carried out, with a value that it cannot have.

use super::support::{DISK_KEYS, DRIVERS, KEYS, LETTERS, LPC_DEVICES, NET_KEYS, Support, Word};
use super::*;

/// The word, what is wrong, and the line.
const LETTER_VALUES: &[(&str, &[&str], &str)] = &[
    ("B", &["-B", "2,product=x"], "-B: '2' is not a type that can be given; write 1,KEY=VALUE,…"),
    ("B", &["-B", "1,produkt=x"], "-B: unknown key 'produkt'; did you mean 'product'?"),
    ("B", &["-B", "1,sku="], "-B: sku is empty; leave it out for the built-in one"),
    ("c", &["-c", "0"], "-c: cpus cannot be 0"),
    ("c", &["-c", "cpus=4,cores=3"], "-c: 2 sockets × 3 cores × 1 threads are 6 vCPUs, and not 4"),
    ("l", &["-l", "com5,stdio"], "-l: unknown device 'com5'; did you mean 'com4'?"),
    ("m", &["-m", "02048"], "-m: '02048' begins with 0, which bhyve reads as octal; write it without"),
    ("o", &["-o", "cpus"], "-o: 'cpus' is no KEY=VALUE"),
    ("s", &["-s", "4"], "-s: '4' names no driver; write -s SLOT,DRIVER"),
    (
        "s",
        &["-s", "32,virtio-rnd"],
        "-s 32,virtio-rnd: '32' is not a slot; write DEVICE, DEVICE:FUNCTION or BUS:DEVICE:FUNCTION, up to 255:31:7",
    ),
    ("s", &["-s", "1:4:0,virtio-rnd"], "-s 1:4:0,virtio-rnd: this machine has no bridge to bus 1, only bus 0"),
    ("s", &["-s", "4,virtio-blc,/d"], "-s 4: unknown driver 'virtio-blc'; did you mean 'virtio-blk'?"),
    ("U", &["-U", "x"], "-U: "),
];
const DRIVER_VALUES: &[(&str, &[&str], &str)] = &[
    ("hostbridge", &["-s", "1,hostbridge"], "-s 1,hostbridge: the host bridge is at 0 and cannot be at 1"),
    ("hostbridge", &["-s", "0,hostbridge,model=q35"], "-s 0,hostbridge: model 'q35' is not built; use model=i440fx"),
    ("lpc", &["-s", "1,lpc"], "-s 1,lpc: the LPC bridge is at 31, as SmartOS has it, and cannot be at 1"),
    ("virtio-blk", &["-s", "4,virtio-blk"], "-s 4,virtio-blk: no path is given; write virtio-blk,PATH"),
    (
        "virtio-net-viona",
        &["-s", "6,virtio-net-viona"],
        "-s 6,virtio-net-viona: no link is given; write virtio-net-viona,LINK",
    ),
    (
        "virtio-rnd",
        &["-s", "7,virtio-rnd,/dev/random"],
        "-s 7,virtio-rnd: it takes nothing more, and '/dev/random' follows",
    ),
    (
        "virtio-console",
        &["-s", "8,virtio-console"],
        "-s 8,virtio-console: no port is given; write virtio-console,NAME=SOCKET",
    ),
];
const DISK_VALUES: &[(&str, &str, &str)] = &[
    ("nocache", "nocache=1", "nocache takes no value"),
    ("sync", "sync=1", "sync takes no value"),
    ("direct", "direct=1", "direct takes no value"),
    ("ro", "ro=1", "ro takes no value"),
    ("nodelete", "nodelete=1", "nodelete takes no value"),
    ("sectorsize", "sectorsize=big", "sectorsize: 'big' is not a number of bytes; write sectorsize=LOGICAL[/PHYSICAL]"),
    ("ser", "ser", "ser has no value; write ser=TEXT"),
    ("serial", "serial=", "serial has no value; write serial=TEXT"),
];
const NET_VALUES: &[(&str, &str, &str)] = &[
    ("vqsize", "vqsize=100", "vqsize 100 is not possible; it is a power of two from 4 to 32768"),
    ("vqsize", "vqsize=2048", "vqsize 2048 is more than a queue has here; the most is 1024"),
    ("qpair", "qpair=300", "qpair 300 is not possible; it is a number from 1 to 256"),
    ("feature_mask", "feature_mask=0xg", "feature_mask: '0xg' is not a number of 64 bits such as 0x800"),
    ("promiscphys", "promiscphys=perhaps", "promiscphys: 'perhaps' is neither true nor false"),
    ("tx_copy_data", "tx_copy_data=2", "tx_copy_data: '2' is neither true nor false"),
    ("tx_header_pad", "tx_header_pad=-1", "tx_header_pad: '-1' is not a number up to 65535"),
];
const KEY_VALUES: &[(&str, &str, &str)] = &[
    ("zvmm.kernel", "", "no value is given; write -o zvmm.kernel=PATH"),
    ("zvmm.initrd", "", "no value is given; write -o zvmm.initrd=PATH"),
    ("zvmm.qmp", "", "no value is given; write -o zvmm.qmp=PATH"),
    ("zvmm.sandbox", "on", "'on' is none of strict, log and off"),
    (
        "memory.size",
        "lots",
        "'lots' is not a size; write a number of bytes, or a number with K, M, G or T, such as 512M",
    ),
    ("memory.wired", "2", "'2' is neither true nor false"),
    ("memory.use_reservoir", "x", "'x' is neither true nor false"),
    ("cpus", "x", "'x' is not a number of cpus"),
    ("sockets", "0", "sockets cannot be 0"),
    ("cores", "-1", "'-1' is not a number of cores"),
    ("threads", "", "'' is not a number of threads"),
    ("uuid", "x", ""),
    ("config.dump", "x", "'x' is neither true nor false"),
    ("virtio.legacy", "x", "'x' is neither true nor false"),
    ("virtio.modern", "x", "'x' is neither true nor false"),
    ("privileges.debug", "x", "'x' is neither true nor false"),
];
const LPC_VALUES: &[(&str, &str, &str)] = &[
    ("com1", "", "no back end is given; write a device such as /dev/zconsole, stdio or socket,PATH"),
    ("com2", ",socket", "socket has no path; write a device such as /dev/zconsole, stdio or socket,PATH"),
    (
        "com3",
        ",socket,/a,/b",
        "'/b' follows the path of the socket; write a device such as /dev/zconsole, stdio or socket,PATH",
    ),
    ("com4", ",tty", "'tty' is not a back end; write a device such as /dev/zconsole, stdio or socket,PATH"),
];

#[track_caller]
fn refused(args: &[&str], line: &str) {
    let args: Vec<String> = args.iter().chain(&["vm"]).map(|arg| (*arg).to_owned()).collect();
    match translate(&args) {
        Ok(_) => panic!("{args:?} is taken"),
        // The rest of such a line is another reader's.
        Err(error) if line.ends_with(": ") => assert!(error.to_string().starts_with(line), "{error}"),
        Err(error) => assert_eq!(error.to_string(), line),
    }
}

/// Every word of a table that is carried out and takes something is among those that were tried.
#[track_caller]
fn all_tried<'a>(table: &[Word], tried: impl Iterator<Item = &'a str>, free: &[&str]) {
    let tried: Vec<&str> = tried.collect();
    for word in table.iter().filter(|word| word.support == Support::Implemented && !word.argument.is_empty()) {
        assert!(tried.contains(&word.word) || free.contains(&word.word), "{} was not tried", word.word);
    }
}

#[test]
fn every_word_with_a_wrong_value_is_refused_with_a_line_that_names_it() {
    for (_, args, line) in LETTER_VALUES.iter().chain(DRIVER_VALUES) {
        refused(args, line);
    }
    for (_, part, why) in DISK_VALUES {
        refused(&["-s", &format!("4,virtio-blk,/d,{part}")], &format!("-s 4,virtio-blk: {why}"));
    }
    for (_, part, why) in NET_VALUES {
        refused(&["-s", &format!("6,virtio-net-viona,net0,{part}")], &format!("-s 6,virtio-net-viona: {why}"));
    }
    for (key, value, why) in KEY_VALUES {
        refused(&["-o", &format!("{key}={value}")], &format!("-o {key}: {why}"));
    }
    for (port, conf, why) in LPC_VALUES {
        refused(&["-l", &format!("{port}{conf}")], &format!("-l {port}: {why}"));
    }
    refused(&["-l", "bootrom"], "-l bootrom: no path is given; write -l bootrom,PATH");

    all_tried(&LETTERS, LETTER_VALUES.iter().map(|tried| tried.0), &[]);
    all_tried(&DRIVERS, DRIVER_VALUES.iter().map(|tried| tried.0), &[]);
    all_tried(&DISK_KEYS, DISK_VALUES.iter().map(|tried| tried.0), &[]);
    all_tried(&NET_KEYS, NET_VALUES.iter().map(|tried| tried.0), &[]);
    // Any text is a command line.
    all_tried(&KEYS, KEY_VALUES.iter().map(|tried| tried.0), &["zvmm.cmdline"]);
    all_tried(&LPC_DEVICES, LPC_VALUES.iter().map(|tried| tried.0), &[]);
}
