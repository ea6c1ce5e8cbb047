//! What `zvmm disk-info` says of disks, and that it refuses what `run` refuses.

use std::fs;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::OpenOptionsExt as _;

use serde_json::Value;

use crate::process::{Place, refused, zvmm};

/// The one disk that these words describe.
fn info(args: &[&str]) -> Value {
    let outcome = zvmm(&[&["disk-info", "--json"], args].concat());
    assert_eq!((outcome.status, outcome.errors.as_str()), (Some(0), ""), "{args:?}");
    let Value::Array(mut disks) = serde_json::from_str(&outcome.output).expect("JSON") else { panic!("{outcome:?}") };
    assert_eq!(disks.len(), 1);
    disks.remove(0)
}

#[test]
fn a_disk_is_told_as_a_guest_would_see_it() {
    let place = Place::new();
    let image = place.text("root.img");
    let disk = info(&[&format!("{image},serial=S1,queue_size=64,id=root,packed,cache=buffered"), "--cpus=3"]);
    for (key, value) in [
        ("id", Value::from("root")),
        ("path", image.as_str().into()),
        ("capacity_bytes", (1 << 20).into()),
        ("logical_block_bytes", 512.into()),
        ("physical_block_bytes", 4096.into()),
        ("minimum_io_bytes", 0.into()),
        ("optimal_io_bytes", 0.into()),
        ("read_only", false.into()),
        ("serial", "S1".into()),
        ("queues", 3.into()),
        ("queue_size", 64.into()),
        ("cache", "buffered".into()),
        ("why_buffered", Value::Null),
    ] {
        assert_eq!(disk[key], value, "{key}");
    }
    assert_eq!(disk["write_zeroes"]["max_bytes"], 1 << 30);
    let features = disk["features"].as_array().expect("a list");
    for name in ["FLUSH", "MQ", "WRITE_ZEROES", "INDIRECT_DESC", "RING_PACKED"] {
        assert!(features.contains(&name.into()), "{name}: {features:?}");
    }
    assert!(!features.contains(&"RO".into()) && !features.contains(&"IN_ORDER".into()));

    let forced = info(&[&format!("{image},write_through=on")]);
    let features = forced["features"].as_array().expect("a list");
    assert!(!features.contains(&"FLUSH".into()) && !features.contains(&"CONFIG_WCE".into()), "{features:?}");

    let disk = info(&[&format!("{image},ro,engine=threads")]);
    assert_eq!(
        (&disk["read_only"], &disk["discard"], &disk["write_zeroes"]),
        (&true.into(), &Value::Null, &Value::Null)
    );
    assert_eq!((disk["engine"].as_str(), disk["queues"].as_u64()), (Some("threads"), Some(1)));
    assert!(disk["features"].as_array().is_some_and(|features| features.contains(&"RO".into())));
}

#[test]
fn people_get_lines_and_one_block_for_each_disk_of_a_configuration() {
    let place = Place::new();
    fs::write(place.path("data.img"), vec![0; 4096]).expect("a file");
    let [root, data] = ["root.img", "data.img"].map(|name| place.text(name));
    let file = place.text("vm.json");
    fs::write(&file, format!("{{\"disks\": [{{\"path\": \"{root}\"}}]}}")).expect("a file");
    let outcome = zvmm(&["disk-info", "--config", &file, &format!("{data},ro,cache=buffered")]);
    assert_eq!((outcome.status, outcome.errors.as_str()), (Some(0), ""), "{outcome:?}");
    for line in [
        &format!("disk0: {root}"),
        "  capacity      1048576 bytes",
        "  blocks        512 bytes logical, 4096 physical",
        "  best I/O      smallest not said, optimal not said",
        "  write zeroes  up to 16 ranges of 1073741824 bytes a request, aligned to 4096",
        &format!("disk1: {data}"),
        "  capacity      4096 bytes",
        "  read-only     yes",
        "  cache         buffered",
        "  write zeroes  not offered",
    ] {
        assert!(outcome.output.lines().any(|said| said == line), "{line}: {outcome:?}");
    }
}

#[test]
fn a_disk_in_memory_is_told_to_go_through_the_cache_and_refused_where_it_is_not_to() {
    let place = Place::new();
    let dir = tempfile::TempDir::new_in("/dev/shm").expect("a directory");
    let image = dir.path().join("disk");
    fs::write(&image, [0; 4096]).expect("a file");
    let image = image.display().to_string();
    let disk = info(&[&image]);
    let why = "its file system has no direct I/O";
    assert_eq!((disk["cache"].as_str(), disk["why_buffered"].as_str()), (Some("buffered"), Some(why)));
    let direct = format!("{image},cache=direct");
    let line = format!("disk disk0: {image}: cache=direct is not possible: {why}; leave it out, or use cache=buffered");
    refused(&["disk-info", &direct], &line);
    let kernel = place.text("vmlinuz");
    refused(&["check-config", "--kernel", &kernel, "--disk", &direct], &format!("configuration: {line}"));
    // And so it is by a run, which sees it once there is a hypervisor.
    if crate::images::has_kvm() {
        refused(&["run", "--kernel", &kernel, "--disk", &direct], &line);
    }
}

#[test]
fn a_configuration_whose_disk_somebody_works_on_is_as_good_as_it_was() {
    let place = Place::new();
    let image = place.0.path().join("disk");
    fs::write(&image, [0; 4096]).expect("a file");
    let _used =
        devices_host::disk::Disk::open("d0", &image, devices_host::disk::DiskOptions::default()).expect("a disk");
    let (kernel, image) = (place.text("vmlinuz"), image.display().to_string());
    let checked = zvmm(&["check-config", "--kernel", &kernel, "--disk", &image]);
    assert_eq!(checked.output, "configuration: good\n", "{checked:?}");
    refused(&["disk-info", &image], &format!("disk disk0: {image}: is in use by another process or mounted"));
}

#[test]
fn what_a_run_refuses_is_refused_with_the_same_line() {
    let place = Place::new();
    let directory = place.0.path().display().to_string();
    refused(
        &["disk-info", &directory],
        &format!("disk0: {directory} is a directory; a disk is a file or a block device"),
    );
    let missing = place.text("none");
    refused(&["disk-info", &missing], &format!("disk0: cannot open {missing}: No such file or directory"));
    fs::write(place.path("tiny.img"), [0; 511]).expect("a file");
    let tiny = place.text("tiny.img");
    refused(&["disk-info", &tiny], &format!("disk0: {tiny} has 511 bytes, not even one sector of 512"));
    let image = place.text("root.img");
    refused(
        &["disk-info", &image, &image],
        &format!("disk1: {image} is also disk0; a guest that writes would damage it"),
    );
    refused(&["disk-info", &format!("{image},queues=0")], "disk0: 0 queues are not possible; a disk has 1 to 16");
    refused(&["disk-info", &format!("{image},slto=4")], "--disk: unknown key 'slto'; did you mean 'slot'?");
    refused(&["disk-info"], "no disk is given; name one, or a configuration that has one");
}

#[test]
fn a_disk_of_a_running_guest_is_in_use() {
    let place = Place::new();
    let holder = fs::File::options().read(true).write(true).mode(0o600).open(place.path("root.img")).expect("a file");
    // SAFETY: all-zero is a valid flock, and means the whole file.
    let mut lock: libc::flock = unsafe { std::mem::zeroed() };
    lock.l_type = libc::F_WRLCK as libc::c_short;
    // SAFETY: the lock is valid during the call.
    assert_eq!(unsafe { libc::fcntl(holder.as_raw_fd(), libc::F_OFD_SETLK, &lock) }, 0);
    let image = place.text("root.img");
    refused(&["disk-info", &image], &format!("disk disk0: {image}: is in use by another process or mounted"));
}
