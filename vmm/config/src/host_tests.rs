use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;

use tempfile::TempDir;

use super::*;
use crate::{CpuConfig, DiskConfig};

const HOST: HostFacts = HostFacts { memory_bytes: 8 << 30, cpus: 4, phys_addr_bits: 36 };

/// A directory with a kernel and a disk image, and a configuration that uses the kernel.
fn place() -> (TempDir, VmConfig) {
    let dir = TempDir::new().unwrap();
    fs::write(dir.path().join("vmlinuz"), "kernel").unwrap();
    fs::write(dir.path().join("root.img"), [0; 4096]).unwrap();
    let mut config = VmConfig::default();
    config.boot.kernel = dir.path().join("vmlinuz");
    (dir, config)
}

#[track_caller]
fn refused(config: &VmConfig, message: &str) {
    let error = config.check_files().unwrap_err().to_string();
    assert!(error.contains(message), "{error}");
}

#[test]
fn memory_beyond_the_host_is_refused_with_both_sizes() {
    let mut config = VmConfig::default();
    config.memory.size_bytes = 9 << 30;
    let error = config.check_facts(&HOST).unwrap_err().to_string();
    assert_eq!(error, "memory.size (--memory): 9G is more than the host has (8192M)");
    config.memory.size_bytes = 8 << 30;
    assert_eq!(config.check_facts(&HOST), Ok(()));
}

#[test]
fn memory_beyond_the_address_bits_of_the_host_is_refused() {
    let mut config = VmConfig::default();
    config.memory.size_bytes = 63 << 30;
    let host = HostFacts { memory_bytes: 1 << 40, ..HOST };
    assert_eq!(config.check_facts(&host), Ok(()));
    // The hole from 3 to 4 GiB pushes the last GiB over 64 GiB, which 36 bits do not reach.
    config.memory.size_bytes = 64 << 30;
    let error = config.check_facts(&host).unwrap_err().to_string();
    assert_eq!(error, "memory.size (--memory): 64G does not fit in the 36 physical address bits of this host");
}

#[test]
fn a_host_cpu_that_does_not_exist_is_refused() {
    let config = VmConfig { cpus: CpuConfig { pin: vec![4], ..CpuConfig::default() }, ..VmConfig::default() };
    let error = config.check_facts(&HOST).unwrap_err().to_string();
    assert_eq!(error, "cpus.pin (--pin): the host has no CPU 4; its CPUs are 0 to 3");
}

#[test]
fn this_host_has_memory_a_cpu_and_at_least_32_address_bits() {
    let host = HostFacts::read();
    assert!(host.memory_bytes > 1 << 20 && host.cpus >= 1 && (32..=52).contains(&host.phys_addr_bits), "{host:?}");
}

#[test]
fn a_missing_kernel_is_named_with_what_the_system_says() {
    let (_dir, mut config) = place();
    assert_eq!(config.check_files(), Ok(()));
    config.boot.kernel = "/nonexistent/vmlinuz".into();
    refused(&config, "boot.kernel (--kernel): cannot open /nonexistent/vmlinuz: No such file or directory");
}

#[test]
fn a_kernel_that_is_empty_or_a_directory_is_refused() {
    let (dir, mut config) = place();
    config.boot.kernel = dir.path().into();
    refused(&config, "is a directory, not a file");
    config.boot.kernel = dir.path().join("empty");
    fs::write(&config.boot.kernel, "").unwrap();
    refused(&config, "empty is empty");
}

#[test]
fn an_initrd_larger_than_memory_is_refused_with_both_sizes() {
    let (dir, mut config) = place();
    let path = dir.path().join("initrd");
    File::create(&path).unwrap().set_len(64 << 20).unwrap();
    config.boot.initrd = Some(path);
    config.memory.size_bytes = 64 << 20;
    refused(&config, "initrd has 64M bytes and cannot fit in 64M of memory");
}

fn with_disks(config: &mut VmConfig, disks: &[std::path::PathBuf]) {
    config.disks = disks.iter().map(DiskConfig::new).collect();
    config.name_devices();
}

#[test]
fn a_disk_that_is_a_directory_or_a_device_of_another_kind_is_refused() {
    let (dir, mut config) = place();
    with_disks(&mut config, &[dir.path().into()]);
    refused(&config, "is a directory; a disk is a file or a block device");
    with_disks(&mut config, &["/dev/null".into()]);
    refused(&config, "disk0: /dev/null is a character device");
}

#[test]
fn a_disk_smaller_than_a_sector_is_refused() {
    let (dir, mut config) = place();
    let path = dir.path().join("tiny");
    fs::write(&path, [0; 511]).unwrap();
    with_disks(&mut config, &[path]);
    refused(&config, "has 511 bytes, not even one sector of 512");
}

#[test]
fn a_read_only_file_serves_a_read_only_disk_and_no_other() {
    // SAFETY: geteuid has no arguments and cannot fail.
    if unsafe { libc::geteuid() } == 0 {
        eprintln!("skipped: root may write to every file");
        return;
    }
    let (dir, mut config) = place();
    let path = dir.path().join("root.img");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o400)).unwrap();
    with_disks(&mut config, &[path]);
    refused(&config, "root.img: Permission denied");
    config.disks[0].read_only = true;
    assert_eq!(config.check_files(), Ok(()));
}

#[test]
fn one_image_under_two_names_is_refused() {
    let (dir, mut config) = place();
    let (path, other) = (dir.path().join("root.img"), dir.path().join("link.img"));
    fs::hard_link(&path, &other).unwrap();
    with_disks(&mut config, &[path, other]);
    refused(&config, "link.img is the same file as disk0");
    config.disks.iter_mut().for_each(|disk| disk.read_only = true);
    assert_eq!(config.check_files(), Ok(()));
}

#[test]
fn a_socket_path_that_exists_as_a_file_is_refused_and_a_socket_is_not() {
    let (dir, mut config) = place();
    config.qmp = Some(dir.path().join("vmlinuz"));
    refused(&config, "qmp (--qmp): ");
    refused(&config, "vmlinuz exists and is a file, not a socket");
    let socket = dir.path().join("socket");
    let _listener = UnixListener::bind(&socket).unwrap();
    config.qmp = Some(socket);
    assert_eq!(config.check_files(), Ok(()));
    config.qmp = Some(dir.path().join("missing/socket"));
    refused(&config, "missing does not exist");
}

#[test]
fn a_serial_file_cannot_be_a_directory_or_lie_in_a_missing_one() {
    let (dir, mut config) = place();
    config.serials[1] = Some(SerialBackend::File(dir.path().into()));
    refused(&config, "com2: ");
    config.serials[1] = Some(SerialBackend::File("/nonexistent/log".into()));
    refused(&config, "com2: the directory /nonexistent does not exist");
}
