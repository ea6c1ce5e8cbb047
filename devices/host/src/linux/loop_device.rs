//! Block devices for tests: files as loop devices, where the machine lets the test make one.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd};
use std::path::PathBuf;

use vmm_sys_util::tempdir::TempDir;

use crate::check;

/// A loop device over a file of its own, gone when it is dropped.
pub(crate) struct LoopDevice {
    pub path: PathBuf,
    /// What holds its blocks.
    pub file: PathBuf,
    /// The same, open for writing.
    pub backing: File,
    /// The last descriptor of it takes the device away.
    _device: File,
    _dir: Option<TempDir>,
}

impl LoopDevice {
    /// A device with blocks of this size; `None`, and a line that says why, where this machine has none for us.
    pub(crate) fn new(bytes: u64, block_bytes: u32) -> Option<Self> {
        or_skip(Self::in_a_folder(bytes, block_bytes))
    }

    /// The same with its blocks in memory: in a file that can be sealed (fcntl(2)).
    pub(crate) fn in_memory(bytes: u64, block_bytes: u32) -> Option<Self> {
        // SAFETY: the name is a C string.
        let fd = check(unsafe { libc::memfd_create(c"loop".as_ptr(), libc::MFD_ALLOW_SEALING) }).unwrap();
        // SAFETY: the descriptor is new and nobody else's.
        let file = unsafe { File::from_raw_fd(fd) };
        or_skip(Self::over(file, format!("/proc/self/fd/{fd}").into(), bytes, block_bytes))
    }

    fn in_a_folder(bytes: u64, block_bytes: u32) -> io::Result<Self> {
        let dir = TempDir::new().map_err(|error| io::Error::other(error.to_string()))?;
        let path = dir.as_path().join("loop");
        let file = File::options().read(true).write(true).create_new(true).open(&path)?;
        Ok(Self { _dir: Some(dir), ..Self::over(file, path, bytes, block_bytes)? })
    }

    fn over(backing: File, file: PathBuf, bytes: u64, block_bytes: u32) -> io::Result<Self> {
        // linux/loop.h
        const LOOP_CTL_GET_FREE: libc::Ioctl = 0x4c82;
        const LOOP_CONFIGURE: libc::Ioctl = 0x4c0a;
        const LO_FLAGS_AUTOCLEAR: u32 = 4;
        #[repr(C)]
        struct Config {
            fd: u32,
            block_bytes: u32,
            info: [u32; 13],
            flags: u32,
            rest: [u64; 30],
        }
        const _: () = assert!(size_of::<Config>() == 304);
        backing.set_len(bytes)?;
        let control = File::options().read(true).write(true).open("/dev/loop-control")?;
        // Somebody else may take the one that is free first.
        for _ in 0..20 {
            // SAFETY: takes no argument.
            let number = check(unsafe { libc::ioctl(control.as_raw_fd(), LOOP_CTL_GET_FREE) })?;
            let path = PathBuf::from(format!("/dev/loop{number}"));
            let device = File::options().read(true).write(true).open(&path)?;
            let config = Config {
                fd: backing.as_raw_fd() as u32,
                block_bytes,
                info: [0; 13],
                flags: LO_FLAGS_AUTOCLEAR,
                rest: [0; 30],
            };
            // SAFETY: the structure is the one that the call reads.
            match check(unsafe { libc::ioctl(device.as_raw_fd(), LOOP_CONFIGURE, &raw const config) }) {
                Ok(_) => return Ok(Self { path, file, backing, _device: device, _dir: None }),
                Err(error) if error.raw_os_error() == Some(libc::EBUSY) => {}
                Err(error) => return Err(error),
            }
        }
        Err(io::ErrorKind::ResourceBusy.into())
    }
}

fn or_skip(made: io::Result<LoopDevice>) -> Option<LoopDevice> {
    made.map_err(|error| println!("SKIP: no loop device: {error}")).ok()
}
