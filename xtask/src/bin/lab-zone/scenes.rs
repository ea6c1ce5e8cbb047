//! What is done with a guest and its zone.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::{Duration, Instant};

use zvmm_zone::global::Stop;
use zvmm_zone::root::Brand;

use crate::guest::{Guest, METADATA, PATIENCE};

/// Every scene with its name.
pub const ALL: [(&str, Scene); 2] = [("life", life), ("reboots", reboots)];

/// A brand, the VMM, and what it takes before the brand's arguments.
type Scene = fn(Brand, &str, &[String]);

/// A Debian root with an init of its own; the same disk as everywhere in the lab.
const ROOT: &str = "/tools/debian-root.img";
/// A disk with the guest's side of the metadata protocol, and room.
const DATA: &str = "/zone-data.img";
const MDATA: &str = "/data/bin/lab-mdata";
/// How often the guest reboots, and how often somebody stops it meanwhile.
const REBOOTS: usize = 5;
const RACES: u32 = 3;
/// By how much the VMM's memory may differ from one of the guest's lives to the next, KiB.
const SCATTER_KIB: u64 = 256;
/// bhyve's status for a guest that has powered off.
const POWER_OFF: i32 = 1;
/// How long until an operator presses a button again.
const AGAIN: Duration = Duration::from_secs(5);

/// Says that something was shown.
fn shown(what: &str) {
    println!("SHOWN {what}");
}

/// One life of a Debian guest, from a zone that is not provisioned to one that is stopped in time.
fn life(brand: Brand, program: &str, words: &[String]) {
    let mut guest = Guest::boot(brand, program, words, &["root=/dev/vda"], [ROOT, DATA]);
    provisioned(&mut guest);
    guest.ready();
    shown("console");
    let machine = guest.run("cat /sys/class/dmi/id/product_name; ls -d /sys/block/vd? /sys/class/net/*/device | wc -l");
    assert_eq!(machine, "SmartDC HVM\n4\n", "two disks and two cards");
    assert_eq!(guest.run("grep -c ^processor /proc/cpuinfo"), "2\n");
    guest.run("mkdir /data && mount /dev/vdb /data");
    metadata(&mut guest);

    guest.run("umount /data && touch /var/tmp/unsynced");
    // Twice, as an operator presses who does not see at once that something happens.
    guest.press_button(true);
    guest.press_button(false);
    guest.expect("LAB-DOWN poweroff");
    assert_eq!(guest.zone.wait_for_end(PATIENCE), Stop::InTime);
    assert_eq!(guest.zone.ends(), [after_power_off(brand)], "{}", guest.zone.said());
    shown("stop");
    guest.disks_are_clean();
    shown("clean disks");
    let files: &[&str] = if brand == Brand::Kvm { &["vm.log"] } else { &[] };
    let files = files.iter().map(|name| (*name).to_owned()).collect();
    assert_eq!(guest.zone.sockets_and_files(), (vec![], files));
}

/// Reboots of a guest with a small root, without a trace; and what else can end it.
fn reboots(brand: Brand, program: &str, words: &[String]) {
    let mut guest = Guest::boot(brand, program, words, &[], [DATA, DATA]);
    provisioned(&mut guest);
    guest.ready();
    let first = traces(&mut guest);
    let mut memory_kib = Vec::new();
    for reboot in 1..=REBOOTS {
        guest.send("reboot -f\n");
        guest.ready();
        assert_eq!(traces(&mut guest), first, "after reboot {reboot}");
        memory_kib.push(guest.zone.memory().anonymous_kib);
        // The kernel of the bhyve brand has started it again; in the kvm brand nobody outside has noticed.
        let ends = if brand == Brand::Bhyve { vec![0; reboot] } else { vec![] };
        assert_eq!(guest.zone.ends(), ends, "{}", guest.zone.said());
    }
    println!("memory of the VMM that is no file's, KiB: {memory_kib:?}");
    // A double keeps a volume's cache in its own memory.
    if let (Some(before), Some(after), false) = (memory_kib.first(), memory_kib.last(), guest.on_double) {
        assert!(*after <= before + SCATTER_KIB, "{memory_kib:?}");
    }
    // The agent came back to each process, and was never left by one that went on.
    let connections = guest.agent.state().connections;
    assert!(if brand == Brand::Bhyve { connections > REBOOTS } else { connections == 1 }, "{connections}");
    shown("reboots");
    interrupted(&mut guest);
    for race in 0..RACES {
        race_of_a_stop_and_a_reboot(&mut guest, race);
        guest.boot_again();
        guest.ready();
    }
    shown("races");
    guest.send("poweroff -f\n");
    guest.zone.until_halted();
    let status = if brand == Brand::Bhyve { 1 } else { 0 };
    assert_eq!(guest.zone.ends(), [status], "{}", guest.zone.said());
    shown("power-off");
    guest.disks_are_clean();
}

/// The zone's mark is renamed: by the VMM in the bhyve brand, by vmadmd in the other.
fn provisioned(guest: &mut Guest) {
    match guest.zone.brand {
        Brand::Bhyve => guest.zone.until("the mark", |zone| zone.root.names("/var/svc") == ["provision_success"]),
        Brand::Kvm => {
            guest.zone.until("the control socket", |zone| zone.socket("vm.qmp").exists());
            guest.zone.until("the hardware is set up", |zone| zone.provision());
        }
    }
    assert_eq!(guest.zone.root.names("/var/svc"), ["provision_success"]);
    shown("provisioned");
}

/// The guest gets its metadata by both versions of the protocol, and changes them by the second.
fn metadata(guest: &mut Guest) {
    for version in [1, 2] {
        for (key, value) in METADATA {
            assert_eq!(guest.run(&format!("{MDATA} {version} get {key}")), value, "version {version}: {key}");
        }
        let keys = guest.run(&format!("{MDATA} {version} keys"));
        assert_eq!(keys.lines().collect::<Vec<_>>(), ["root_authorized_keys", "user-script"], "version {version}");
        assert_eq!(guest.try_run(&format!("{MDATA} {version} get nothing")).0, "1", "version {version}");
    }
    shown("metadata v1");
    // A long one is made by the guest's shell, as no terminal takes so long a line.
    let (long, makes_long) = ("0123456789abcdef".repeat(256), "\"$(printf '0123456789abcdef%.0s' $(seq 256))\"");
    for (key, value, word) in [("note", "a b.c  $d", "'a b.c  $d'"), ("long", &long, makes_long)] {
        assert_eq!(guest.run(&format!("{MDATA} 2 put {key} {word}")), "OK");
        assert_eq!(guest.run(&format!("{MDATA} 2 get {key}")), value);
        assert_eq!(guest.agent.state().values.get(key).map(String::as_str), Some(value));
    }
    assert_eq!(guest.run(&format!("{MDATA} 2 delete note")), "OK");
    assert_eq!(guest.try_run(&format!("{MDATA} 2 get note")).0, "1");
    assert!(!guest.agent.state().values.contains_key("note"));
    assert_eq!(guest.try_run(&format!("{MDATA} 2 put sdc:uuid other")).0, "2", "it is the host's");
    let requests = guest.agent.state().requests;
    assert!(requests[0] >= METADATA.len() + 2 && requests[1] >= METADATA.len() + 9, "{requests:?}");
    shown("metadata v2");
    if guest.try_run("test -x /data/bin/mdata-get").0 == "0" {
        smartos_own_programs(guest);
    }
}

/// The same by the programs that SmartOS' guests have, where somebody has put them on the disk.
fn smartos_own_programs(guest: &mut Guest) {
    for (key, value) in METADATA {
        let said = guest.run(&format!("/data/bin/mdata-get {key}"));
        assert_eq!(said, format!("{value}\n"), "{key}");
    }
    assert_eq!(guest.try_run("/data/bin/mdata-get nothing").0, "1");
    let lists = |guest: &mut Guest, key: &str| guest.run("/data/bin/mdata-list").lines().any(|line| line == key);
    assert!(lists(guest, "user-script"));
    guest.run("/data/bin/mdata-put own 'a b.c  $d'");
    assert_eq!(guest.run("/data/bin/mdata-get own"), "a b.c  $d\n");
    guest.run("head -c 3000 /dev/zero | tr '\\0' x | /data/bin/mdata-put long");
    assert_eq!(guest.run("/data/bin/mdata-get long | wc -c"), "3001\n");
    guest.run("/data/bin/mdata-delete own");
    assert!(!lists(guest, "own") && !guest.agent.state().values.contains_key("own"));
    assert_ne!(guest.try_run("/data/bin/mdata-put sdc:uuid other").0, "0", "it is the host's");
    shown("SmartOS' own programs");
}

/// What a life of a guest leaves in its zone: descriptors and threads of the VMM, and every file there is.
type Traces = (usize, Vec<String>, BTreeSet<String>);

/// Whether a thread is one of those that do a disk's work, of which there are as many as it was ever worth.
fn is_of_a_pool(thread: &str) -> bool {
    thread.starts_with("disk") && thread.matches('-').count() > 1
}

/// Has the guest use its disks and its metadata, and looks what there is then.
fn traces(guest: &mut Guest) -> Traces {
    guest.run("mkdir -p /data && mount -t ext4 /dev/vda /data");
    assert_eq!(guest.run(&format!("{MDATA} 1 get sdc:hostname")), "web1");
    guest.run("date >> /data/lives && umount /data");
    // The agent may have come back a moment ago.
    let mut belongings = guest.zone.belongings();
    guest.zone.until("nothing moves any more", |zone| {
        std::thread::sleep(Duration::from_millis(200));
        let before = std::mem::replace(&mut belongings, zone.belongings());
        before == belongings
    });
    let mut files = BTreeSet::new();
    list(&guest.zone.root.path("/"), &mut files);
    let (descriptors, threads) = belongings;
    (descriptors, threads.into_iter().filter(|thread| !is_of_a_pool(thread)).collect(), files)
}

fn list(folder: &Path, files: &mut BTreeSet<String>) {
    for entry in std::fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("an entry").path();
        if path.is_dir() && !path.is_symlink() {
            list(&path, files);
        }
        files.insert(path.display().to_string());
    }
}

/// A non-maskable interrupt reaches the guest's kernel, which counts it.
fn interrupted(guest: &mut Guest) {
    const COUNT: &str = "awk '/NMI:/ { print $2 + $3 }' /proc/interrupts";
    // The kernel says on the console what it thinks of such an interrupt, before or after the answer.
    let count =
        |guest: &mut Guest| guest.run(COUNT).lines().find_map(|line| line.parse::<u64>().ok()).expect("a number");
    let before = count(guest);
    guest.send_nmi();
    let end = Instant::now() + PATIENCE;
    while count(guest) == before {
        assert!(Instant::now() < end, "no interrupt came");
    }
    shown("nmi");
}

/// The operator stops a guest that reboots itself: whatever comes first, the zone is halted, and not started again.
fn race_of_a_stop_and_a_reboot(guest: &mut Guest, race: u32) {
    guest.send("reboot -f\n");
    std::thread::sleep(Duration::from_millis(150) * race);
    guest.press_button(race % 2 == 1);
    let before = guest.zone.ends().len() - guest.zone.ends_since_signal().len();
    let (mut presses, end) = (1, Instant::now() + PATIENCE);
    // A guest that began anew just before does not hear the button until its kernel looks after it. It does so only once: a
    // reset after the first press is an end.
    while guest.zone.runs_for(AGAIN) {
        assert!(Instant::now() < end, "the zone runs on\n{}", guest.zone.said());
        presses += 1;
        guest.press_button(false);
    }
    let ends = guest.zone.ends();
    println!("race {race}: the button was pressed {presses} times; ends {ends:?}");
    match guest.zone.brand {
        Brand::Bhyve => {
            // The signal itself, where it came before there was somebody to hear it.
            let since = &ends[before..];
            assert!(since == [POWER_OFF] || since == [-libc::SIGTERM], "{ends:?}\n{}", guest.zone.said());
        }
        Brand::Kvm => assert_eq!(ends, [0], "{}", guest.zone.said()),
    }
}

/// The status that the brand reads as the end of a guest that has powered off.
fn after_power_off(brand: Brand) -> i32 {
    match brand {
        Brand::Bhyve => POWER_OFF,
        Brand::Kvm => 0,
    }
}
