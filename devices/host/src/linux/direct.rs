//! Whether a disk can be read and written around the page cache on Linux, and what that asks of requests.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, RawFd};

use crate::bounce::{Alignment, MAX_ALIGNMENT_BYTES};
use crate::check;

/// Where nothing was asked for: guests cache what they read themselves, and a second copy is memory and time lost.
pub(crate) fn is_default(_file: &File) -> io::Result<bool> {
    Ok(true)
}

/// Sets `file` to direct I/O and says what that asks of requests; `None` where there is none, and the file is as it was.
///
/// # Errors
/// What the system says to questions that it must know an answer to.
pub(crate) fn enable(file: &File) -> io::Result<Option<Alignment>> {
    let fd = file.as_raw_fd();
    let alignment = match reported(fd) {
        Reported::None => return Ok(None),
        Reported::Alignment(alignment) => Some(alignment),
        // Its files are the page cache, but since Linux 6.6 it lets programs believe otherwise.
        Reported::Unknown if is_memory(fd)? => return Ok(None),
        Reported::Unknown => None,
    };
    if let Err(error) = set(fd, true) {
        // How file systems without it answer.
        return if error.raw_os_error() == Some(libc::EINVAL) { Ok(None) } else { Err(error) };
    }
    let alignment = alignment.or_else(|| probed(fd));
    if alignment.is_none() {
        set(fd, false)?;
    }
    Ok(alignment)
}

/// Lets calls on `file` wait for the disk, and go through the page cache.
///
/// # Errors
/// What fcntl(2) says.
pub(crate) fn disable(file: &File) -> io::Result<()> {
    set(file.as_raw_fd(), false)
}

/// `O_NONBLOCK` goes in either case: it was for the open alone, and no call on a disk is to be put off.
fn set(fd: RawFd, direct: bool) -> io::Result<()> {
    // SAFETY: takes numbers only. The access mode, which it leaves alone, is all there was to keep.
    check(unsafe { libc::fcntl(fd, libc::F_SETFL, if direct { libc::O_DIRECT } else { 0 }) }).map(drop)
}

enum Reported {
    /// The kernel or the file system is too old to say.
    Unknown,
    None,
    Alignment(Alignment),
}

/// What statx(2) says (Linux 6.1).
fn reported(fd: RawFd) -> Reported {
    // linux/stat.h; not every C library has these fields.
    const STATX_DIOALIGN: libc::c_uint = 0x2000;
    #[repr(C)]
    struct Statx {
        mask: u32,
        others: [u32; 37],
        dio_mem_align: u32,
        dio_offset_align: u32,
        spare: [u32; 24],
    }
    const _: () = assert!(size_of::<Statx>() == 256 && std::mem::offset_of!(Statx, dio_mem_align) == 0x98);
    let mut answer = Statx { mask: 0, others: [0; 37], dio_mem_align: 0, dio_offset_align: 0, spare: [0; 24] };
    // SAFETY: the name is an empty C string, and the structure of the size that the kernel fills.
    let result = unsafe {
        libc::syscall(libc::SYS_statx, fd, c"".as_ptr(), libc::AT_EMPTY_PATH, STATX_DIOALIGN, &raw mut answer)
    };
    let (memory_bytes, offset_bytes) = (answer.dio_mem_align, answer.dio_offset_align);
    let is_possible = |bytes: u32| bytes.is_power_of_two() && bytes <= MAX_ALIGNMENT_BYTES;
    match result {
        0 if answer.mask & STATX_DIOALIGN == 0 => Reported::Unknown,
        0 if is_possible(memory_bytes) && is_possible(offset_bytes) => {
            Reported::Alignment(Alignment { memory_bytes, offset_bytes })
        }
        0 => Reported::None,
        _ => Reported::Unknown,
    }
}

/// Whether the file's only storage is memory.
fn is_memory(fd: RawFd) -> io::Result<bool> {
    // SAFETY: all-zero is a valid statfs; the structure is valid during the call.
    let mut answer: libc::statfs = unsafe { std::mem::zeroed() };
    // SAFETY: as above.
    check(unsafe { libc::fstatfs(fd, &mut answer) })?;
    // linux/magic.h: tmpfs, ramfs, hugetlbfs.
    #[allow(clippy::unnecessary_cast, reason = "another type with another C library")]
    Ok([0x0102_1994, 0x8584_58f6, 0x9584_58f6].contains(&(answer.f_type as u64)))
}

/// The smallest blocks that the file's start can be read in, and no more is asked of memory.
fn probed(fd: RawFd) -> Option<Alignment> {
    #[repr(align(4096))]
    struct Buffer([u8; 8192]);
    let mut buffer = Buffer([0; 8192]);
    [512, MAX_ALIGNMENT_BYTES].into_iter().find_map(|block| {
        let piece = &mut buffer.0[block as usize..2 * block as usize];
        // SAFETY: the buffer is valid for its length.
        let result = check(unsafe { libc::pread(fd, piece.as_mut_ptr().cast(), piece.len(), 0) });
        result.ok().map(|_| Alignment { memory_bytes: block, offset_bytes: block })
    })
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use vmm_sys_util::tempdir::TempDir;

    use super::*;
    use crate::disk::{Cache, Disk, DiskOptions, NoDirect};
    use crate::os::loop_device::LoopDevice;

    fn flags(file: &impl AsRawFd) -> libc::c_int {
        // SAFETY: takes numbers only.
        check(unsafe { libc::fcntl(file.as_raw_fd(), libc::F_GETFL) }).unwrap()
    }

    fn open(path: &Path, cache: Cache) -> Result<Disk, String> {
        Disk::open("d0", path, DiskOptions { cache, ..DiskOptions::default() }).map_err(|error| error.to_string())
    }

    fn open_flags(disk: &Disk) -> libc::c_int {
        flags(disk.file().unwrap()) & (libc::O_DIRECT | libc::O_NONBLOCK)
    }

    /// A file of a few sectors in this folder.
    fn file_in(dir: &TempDir) -> std::path::PathBuf {
        let path = dir.as_path().join("disk");
        File::create(&path).unwrap().set_len(1 << 20).unwrap();
        path
    }

    #[test]
    fn a_file_is_used_around_the_cache_where_its_file_system_can() {
        let dir = TempDir::new().unwrap();
        let path = file_in(&dir);
        if reported_by(&path).is_none() {
            println!("SKIP: {} has no direct I/O, or the kernel does not say", dir.as_path().display());
            return;
        }
        for cache in [Cache::Auto, Cache::Direct] {
            let disk = open(&path, cache).unwrap();
            assert_eq!((disk.alignment(), disk.why_not_direct()), (reported_by(&path), None));
            assert_eq!(open_flags(&disk), libc::O_DIRECT);
        }
        let disk = open(&path, Cache::Buffered).unwrap();
        assert_eq!((disk.alignment(), disk.why_not_direct(), open_flags(&disk)), (None, None, 0));
    }

    fn reported_by(path: &Path) -> Option<Alignment> {
        match reported(File::open(path).unwrap().as_raw_fd()) {
            Reported::Alignment(alignment) => Some(alignment),
            _ => None,
        }
    }

    #[test]
    fn what_the_kernel_says_and_what_a_trial_says_agree() {
        let dir = TempDir::new().unwrap();
        let path = file_in(&dir);
        let Some(said) = reported_by(&path) else {
            println!("SKIP: the kernel does not say");
            return;
        };
        let file = File::open(&path).unwrap();
        set(file.as_raw_fd(), true).unwrap();
        assert_eq!(probed(file.as_raw_fd()).unwrap().offset_bytes, said.offset_bytes);
    }

    #[test]
    fn a_file_in_memory_goes_through_the_cache_and_cannot_do_otherwise() {
        let dir = TempDir::new_in(Path::new("/dev/shm")).unwrap();
        let path = file_in(&dir);
        let file = File::open(&path).unwrap();
        if !is_memory(file.as_raw_fd()).unwrap() {
            println!("SKIP: /dev/shm is no tmpfs");
            return;
        }
        let disk = open(&path, Cache::Auto).unwrap();
        assert_eq!((disk.alignment(), disk.why_not_direct()), (None, Some(NoDirect::FileSystem)));
        assert_eq!(open_flags(&disk), 0);
        drop(disk);
        let line =
            "cache=direct is not possible: its file system has no direct I/O; leave it out, or use cache=buffered";
        assert_eq!(open(&path, Cache::Direct).unwrap_err(), format!("disk d0: {}: {line}", path.display()));
    }

    #[test]
    fn the_blocks_that_the_guest_is_shown_decide_and_not_the_disks() {
        let Some(device) = LoopDevice::new(8 << 20, 4096) else { return };
        let options = |cache, guest| DiskOptions { cache, guest_block_bytes: Some(guest), ..DiskOptions::default() };
        let blocks = NoDirect::Blocks { host_bytes: 4096, guest_bytes: 512 };
        let disk = Disk::open("d0", &device.path, options(Cache::Auto, 512)).unwrap();
        assert_eq!((disk.alignment(), disk.why_not_direct(), open_flags(&disk)), (None, Some(blocks), 0));
        drop(disk);
        assert!(Disk::open("d0", &device.path, options(Cache::Direct, 512)).is_err());
        let disk = Disk::open("d0", &device.path, options(Cache::Direct, 4096)).unwrap();
        assert_eq!(disk.alignment().unwrap().offset_bytes, 4096);
    }

    #[test]
    fn a_block_device_asks_for_its_own_blocks() {
        for block_bytes in [512, 4096] {
            let Some(device) = LoopDevice::new(8 << 20, block_bytes) else { return };
            let disk = open(&device.path, Cache::Direct).unwrap();
            assert_eq!(disk.logical_block_bytes(), block_bytes);
            assert_eq!(disk.alignment().unwrap().offset_bytes, block_bytes);
        }
    }
}
