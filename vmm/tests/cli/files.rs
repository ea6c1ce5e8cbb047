//! Every file that the configuration names: missing, a directory, a pipe, empty, forbidden.

use std::ffi::CString;
use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::Path;

use crate::process::{Place, obey_permissions, zvmm, zvmm_after};

fn pipe(path: &Path) {
    let name = CString::new(path.as_os_str().as_bytes()).expect("a path");
    // SAFETY: the path is a C string.
    assert_eq!(unsafe { libc::mkfifo(name.as_ptr(), 0o600) }, 0);
}

/// What becomes of each file when it is `@missing`, `@directory`, `@pipe`, `@empty` or `@forbidden`; `None`: it is good.
type Answers = [Option<&'static str>; 5];

const FILES: [(&str, Answers); 9] = [
    (
        "--config=",
        [
            Some("@missing: cannot read the configuration: No such file or directory"),
            Some("@directory: cannot read the configuration: Is a directory"),
            // Whoever writes into it may still come.
            None,
            Some("@empty:1:0: .: EOF while parsing a value"),
            Some("@forbidden: cannot read the configuration: Permission denied"),
        ],
    ),
    (
        "--kernel=",
        [
            Some("boot.kernel (--kernel): cannot open @missing: No such file or directory"),
            Some("boot.kernel (--kernel): @directory is a directory, not a file"),
            Some("boot.kernel (--kernel): @pipe is a pipe, not a file"),
            Some("boot.kernel (--kernel): @empty is empty"),
            Some("boot.kernel (--kernel): cannot open @forbidden: Permission denied"),
        ],
    ),
    (
        "--initrd=",
        [
            Some("boot.initrd (--initrd): cannot open @missing: No such file or directory"),
            Some("boot.initrd (--initrd): @directory is a directory, not a file"),
            Some("boot.initrd (--initrd): @pipe is a pipe, not a file"),
            Some("boot.initrd (--initrd): @empty is empty"),
            Some("boot.initrd (--initrd): cannot open @forbidden: Permission denied"),
        ],
    ),
    (
        "--disk=",
        [
            Some("disk0: cannot open @missing: No such file or directory"),
            Some("disk0: @directory is a directory; a disk is a file or a block device"),
            Some("disk0: @pipe is a pipe; a disk is a file or a block device"),
            Some("disk0: @empty has 0 bytes, not even one sector of 512"),
            Some("disk0: cannot open @forbidden: Permission denied"),
        ],
    ),
    (
        "--serial=file:",
        [
            None,
            Some("com1: @directory is a directory, not a file"),
            Some("com1: cannot open @pipe: it is a pipe that nobody reads, or no device"),
            None,
            Some("com1: cannot open @forbidden: Permission denied"),
        ],
    ),
    (
        "--serial=socket:",
        [
            None,
            Some("com1: @directory exists and is a directory, not a socket"),
            Some("com1: @pipe exists and is a pipe, not a socket"),
            Some("com1: @empty exists and is a file, not a socket"),
            Some("com1: @forbidden exists and is a file, not a socket"),
        ],
    ),
    (
        "--serial=device:",
        [
            Some("com1: cannot open @missing: No such file or directory"),
            Some("com1: @directory is a directory, not a terminal or serial line"),
            Some("com1: @pipe is a pipe, not a terminal or serial line"),
            Some("com1: @empty is a file, not a terminal or serial line"),
            Some("com1: @forbidden is a file, not a terminal or serial line"),
        ],
    ),
    (
        "--serial=metadata:",
        [
            Some("com1: cannot open @missing: No such file or directory"),
            Some("com1: @directory is a directory, not a file"),
            Some("com1: @pipe is a pipe, not a file"),
            Some("com1: @empty:1:0: EOF while parsing a value"),
            Some("com1: cannot open @forbidden: Permission denied"),
        ],
    ),
    (
        "--qmp=",
        [
            None,
            Some("qmp (--qmp): @directory exists and is a directory, not a socket"),
            Some("qmp (--qmp): @pipe exists and is a pipe, not a socket"),
            Some("qmp (--qmp): @empty exists and is a file, not a socket"),
            Some("qmp (--qmp): @forbidden exists and is a file, not a socket"),
        ],
    ),
];

#[test]
fn every_file_that_cannot_be_used_is_refused_with_its_name_and_why() {
    let place = Place::new();
    fs::create_dir(place.path("directory")).expect("a directory");
    fs::write(place.path("empty"), "").expect("a file");
    pipe(&place.path("pipe"));
    let forbidden =
        fs::File::options().write(true).create_new(true).mode(0o000).open(place.path("forbidden")).expect("a file");
    forbidden.set_len(4096).expect("a size");
    for (option, answers) in FILES {
        for (what, answer) in ["missing", "directory", "pipe", "empty", "forbidden"].iter().zip(answers) {
            let Some(line) = answer else { continue };
            let word = place.fill(&format!("{option}@{what}"));
            let kernel = format!("--kernel={}", place.text("vmlinuz"));
            let args = if option == "--kernel=" { vec!["run", &word] } else { vec!["run", &kernel, &word] };
            let outcome = zvmm_after(obey_permissions, &args);
            assert_eq!((outcome.status, outcome.errors), (Some(2), format!("zvmm: {}\n", place.fill(line))), "{word}");
        }
    }
}

#[test]
fn a_directory_that_forbids_sockets_and_files_is_the_configurations_fault() {
    let place = Place::new();
    let closed = place.path("closed");
    fs::create_dir(&closed).expect("a directory");
    fs::set_permissions(&closed, fs::Permissions::from_mode(0o500)).expect("a mode");
    for (option, line) in [
        ("--qmp=@closed/s", "qmp: cannot listen on @closed/s: Permission denied"),
        ("--serial=socket:@closed/s", "com1: cannot listen on @closed/s: Permission denied"),
        ("--serial=file:@closed/s", "com1: cannot open @closed/s: Permission denied"),
    ] {
        let args = place.options(&[option]);
        let outcome = zvmm_after(obey_permissions, &args.iter().map(String::as_str).collect::<Vec<_>>());
        assert_eq!((outcome.status, outcome.errors), (Some(2), format!("zvmm: {}\n", place.fill(line))));
    }
}

/// Everything is on a file system that cannot be written to.
fn read_only_files() -> std::io::Result<()> {
    crate::process::own_mounts()?;
    let (none, flags) = (std::ptr::null(), libc::MS_REMOUNT | libc::MS_BIND | libc::MS_RDONLY);
    // SAFETY: the path is a C string, and the rest is not looked at.
    match unsafe { libc::mount(none, c"/".as_ptr(), none, flags, none.cast()) } {
        0 => Ok(()),
        _ => Err(std::io::Error::last_os_error()),
    }
}

#[test]
fn a_disk_on_a_read_only_file_system_is_refused_unless_the_guest_only_reads() {
    let place = Place::new();
    let image = place.text("root.img");
    let outcome = zvmm_after(read_only_files, &["disk-info", &image]);
    let line = format!("zvmm: disk0: cannot open {image}: Read-only file system\n");
    assert_eq!((outcome.status, outcome.errors), (Some(2), line));
    let kernel = place.text("vmlinuz");
    let outcome = zvmm_after(read_only_files, &["run", "--kernel", &kernel, "--disk", &image]);
    let line = format!("zvmm: disk0: cannot open {image}: Read-only file system\n");
    assert_eq!((outcome.status, outcome.errors), (Some(2), line));
    let outcome = zvmm_after(read_only_files, &["disk-info", &format!("{image},ro")]);
    assert_eq!((outcome.status, outcome.errors.as_str()), (Some(0), ""));
    assert!(outcome.output.contains("read-only     yes"), "{outcome:?}");
}

#[test]
fn a_configuration_that_is_no_text_or_has_no_end_is_refused() {
    let place = Place::new();
    let file = place.text("vm.json");
    fs::write(&file, b"{\"name\": \"\xff\"}").expect("a file");
    for (file, why) in [(file.as_str(), "stream did not contain valid UTF-8"), ("/dev/zero", "it is longer than 1 MiB")]
    {
        let outcome = zvmm(&["run", "--config", file]);
        let line = format!("zvmm: {file}: cannot read the configuration: {why}\n");
        assert_eq!((outcome.status, outcome.errors), (Some(2), line));
    }
}

#[test]
fn a_disk_of_less_than_a_sector_or_a_terminal_is_refused() {
    let place = Place::new();
    fs::write(place.path("tiny.img"), [0; 511]).expect("a file");
    place.refuses(&["--disk=@tiny.img"], "disk0: @tiny.img has 511 bytes, not even one sector of 512");
    fs::write(place.path("small.img"), [0; 4095]).expect("a file");
    let line = "disk0: @small.img has 4095 bytes, not even one block of 4096";
    place.refuses(&["--disk=@small.img,block_size=4096"], line);
    let line = "disk0: /dev/null is a character device; a disk is a file or a block device";
    place.refuses(&["--disk=/dev/null"], line);
}
