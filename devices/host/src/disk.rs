//! Files and block devices that hold a disk.

mod again;
mod size;

use std::fs::{File, FileType, Metadata, OpenOptions};
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use crate::bounce::Alignment;
use crate::iovec::Vectors;
use crate::os;
use crate::sys::Sys;
use crate::sys::dkio::Media;
use crate::zvol::Volume;

/// Bytes of a sector: a disk's size is a multiple of it.
pub const SECTOR_BYTES: u64 = 512;

/// How often a lock is tried for again that somebody else has.
const LOCK_TRIES: u32 = 20;
/// The time between two tries.
const LOCK_PAUSE: Duration = Duration::from_millis(10);

/// What a file system keeps a file in, as nearly all do: a write of less reads the rest first.
const FILE_BLOCK_BYTES: u32 = 4096;

/// Why a disk cannot be used. Every message names the disk as the configuration does, and its path.
#[derive(Debug, thiserror::Error)]
#[error("disk {id}: {path}: {why}", path = .path.display())]
pub struct DiskError {
    /// The disk's name in the configuration.
    pub id: String,
    /// What was to be opened.
    pub path: PathBuf,
    /// What is wrong.
    pub why: DiskProblem,
}

/// What is wrong with a disk.
#[derive(Debug, thiserror::Error)]
pub enum DiskProblem {
    /// It cannot be opened.
    #[error("cannot open it: {0}")]
    Open(io::Error),
    /// It is a directory, a pipe, a socket or a terminal.
    #[error("is a {0}, not a file or block device")]
    NotADisk(&'static str),
    /// Another process has it.
    #[error("is in use by another process or mounted")]
    InUse,
    /// It is read-only, and was to be written to.
    #[error("is read-only; with ro (in JSON \"read_only\": true) the guest gets it as such")]
    WriteProtected,
    /// It holds no whole sector.
    #[error("is too small: {0} bytes, a disk has at least one sector of 512")]
    TooSmall(u64),
    /// It cannot be used without the page cache, and was to be.
    #[error("cache=direct is not possible: {0}; leave it out, or use cache=buffered")]
    NoDirect(NoDirect),
    /// It was to be used through the page cache, and there is none in front of it.
    #[error("cache=buffered is not possible: it is a volume's raw device, in front of no page cache; leave it out")]
    NoPageCache,
    /// The system does not say what it needs to.
    #[error("cannot {what}: {error}")]
    Query {
        /// What was asked.
        what: &'static str,
        /// What it said.
        error: io::Error,
    },
}

/// Why a disk is read and written through the page cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoDirect {
    /// Nothing else exists for it.
    #[error("its file system has no direct I/O")]
    FileSystem,
    /// The guest's blocks are smaller than the host's. To write a part of a block is to read and write all of it, and what
    /// another request writes to the rest meanwhile would be lost.
    #[error(
        "direct I/O takes whole blocks of {host_bytes} bytes here, and the guest's have {guest_bytes} (block_size)"
    )]
    Blocks {
        /// What the host asks for.
        host_bytes: u32,
        /// The guest's logical block.
        guest_bytes: u32,
    },
}

/// Whether a disk is used through the host's page cache.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Cache {
    /// As for `Direct` where that is possible and this system's choice; through the cache elsewhere, which is said.
    #[default]
    Auto,
    /// Around the cache (`O_DIRECT`), or not at all.
    Direct,
    /// Through the cache.
    Buffered,
}

/// What a disk does best. What it does not say is 0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct IoSizes {
    /// The smallest block it writes without reading the rest of a larger one, in bytes.
    pub physical_block_bytes: u32,
    /// The smallest request without a penalty, in bytes.
    pub minimum_bytes: u32,
    /// The request it does best, in bytes: a stripe of a RAID set.
    pub optimal_bytes: u32,
    /// The smallest block it gives back, in bytes.
    pub discard_bytes: u32,
}

/// How a disk is opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DiskOptions {
    /// For reading only.
    pub read_only: bool,
    /// Through the page cache or around it.
    pub cache: Cache,
    /// The blocks that the guest is shown, in bytes: what its requests are multiples of. The disk's own where not given.
    pub guest_block_bytes: Option<u32>,
}

/// What keeps a disk's bytes.
#[derive(Debug)]
enum Store {
    /// A file or block device, under the kernel's own calls for those, and where it was opened.
    File(File, PathBuf),
    /// A volume, by its raw device: its data goes by way of bounce buffers always.
    Volume(Volume),
}

/// An open disk, locked against other processes of this and any other program that locks.
#[derive(Debug)]
pub struct Disk {
    store: Store,
    /// The one that this is an open file of, and which has the lock.
    _locked: Option<Arc<Disk>>,
    size_bytes: u64,
    left_out_bytes: u64,
    logical_block_bytes: u32,
    read_only: bool,
    is_block_device: bool,
    io_sizes: IoSizes,
    can_discard: bool,
    /// Direct I/O, or why not; neither where it was not wanted.
    direct: Result<Alignment, Option<NoDirect>>,
}

impl Disk {
    /// Opens the raw disk at `path`. `id` is what messages call it. A writable disk is locked exclusively, a read-only
    /// one against writers; the lock goes with the disk. What follows the last whole block is no part of it, which is said.
    ///
    /// # Errors
    /// See [`DiskProblem`].
    pub fn open(id: &str, path: &Path, options: DiskOptions) -> Result<Self, DiskError> {
        Self::open_through(os::disk::volumes().as_ref(), id, path, options)
    }

    /// The same, with volumes opened through `sys`: where the path leads to a character device there, it is a volume.
    ///
    /// # Errors
    /// See [`DiskProblem`].
    pub fn open_through(
        sys: Option<&Arc<dyn Sys>>,
        id: &str,
        path: &Path,
        options: DiskOptions,
    ) -> Result<Self, DiskError> {
        let error = |why| DiskError { id: id.to_owned(), path: path.to_owned(), why };
        let is_volume =
            |sys: &&Arc<dyn Sys>| path.to_str().is_some_and(|path| sys.is_character_device(path) == Ok(true));
        if let Some(sys) = sys.filter(is_volume) {
            if options.cache == Cache::Buffered {
                return Err(error(DiskProblem::NoPageCache));
            }
            return Volume::open(sys, path, options.read_only)
                .and_then(|volume| Self::of_volume(volume, options.read_only))
                .map_err(error);
        }
        let disk = Self::open_raw(path, options.read_only).and_then(|disk| disk.with_cache(options)).map_err(error)?;
        let (left_out_bytes, block_bytes) = (disk.left_out_bytes, disk.block_bytes());
        let path = path.display();
        if left_out_bytes > 0 {
            log::warn!("disk {id}: {path}: its last {left_out_bytes} bytes are no block of {block_bytes} and left out");
        }
        if let Err(Some(why)) = disk.direct {
            log::info!("disk {id}: {path}: goes through the host's page cache: {why}");
        }
        Ok(disk)
    }

    fn with_cache(mut self, options: DiskOptions) -> Result<Self, DiskProblem> {
        let DiskOptions { cache, guest_block_bytes, .. } = options;
        let guest_block_bytes = guest_block_bytes.unwrap_or(self.logical_block_bytes);
        let query = |error| DiskProblem::Query { what: "choose its cache", error };
        let wanted = match cache {
            Cache::Auto => self.file().and_then(os::direct::is_default).map_err(query)?,
            Cache::Direct => true,
            Cache::Buffered => false,
        };
        self.direct = match wanted {
            true => self.direct_alignment(guest_block_bytes).map_err(query)?.map_err(Some),
            false => Err(None),
        };
        match self.direct {
            Ok(_) => {}
            Err(Some(why)) if cache == Cache::Direct => return Err(DiskProblem::NoDirect(why)),
            Err(_) => self.file().and_then(os::direct::disable).map_err(query)?,
        }
        Ok(self)
    }

    /// Anything that can be read or written as if it were a disk, through the cache.
    #[cfg(test)]
    pub(crate) fn of_file(file: File, size_bytes: u64) -> Self {
        let path = format!("/proc/self/fd/{}", file.as_raw_fd());
        Self {
            store: Store::File(file, path.into()),
            _locked: None,
            size_bytes,
            left_out_bytes: 0,
            logical_block_bytes: 512,
            read_only: false,
            is_block_device: false,
            io_sizes: IoSizes::default(),
            can_discard: false,
            direct: Err(None),
        }
    }

    /// Turns direct I/O on where every request that a guest makes by whole blocks is one that the host takes.
    fn direct_alignment(&self, guest_block_bytes: u32) -> io::Result<Result<Alignment, NoDirect>> {
        let alignment = os::direct::enable(self.file()?)?;
        Ok(alignment.ok_or(NoDirect::FileSystem).and_then(|asked| suits(asked, guest_block_bytes)))
    }

    /// A volume's size is a multiple of its blocks, and there is no cache of the host's to go through.
    fn of_volume(volume: Volume, read_only: bool) -> Result<Self, DiskProblem> {
        let Media { size_bytes, logical_block_bytes, physical_block_bytes } = volume.media();
        if size_bytes == 0 {
            return Err(DiskProblem::TooSmall(size_bytes));
        }
        Ok(Self {
            size_bytes,
            left_out_bytes: 0,
            logical_block_bytes,
            read_only,
            is_block_device: true,
            io_sizes: IoSizes { physical_block_bytes, discard_bytes: physical_block_bytes, ..IoSizes::default() },
            can_discard: volume.can_free(),
            direct: Ok(Alignment { memory_bytes: 1, offset_bytes: 1 }),
            store: Store::Volume(volume),
            _locked: None,
        })
    }

    /// What its size is a multiple of.
    fn block_bytes(&self) -> u64 {
        u64::from(self.logical_block_bytes).max(SECTOR_BYTES)
    }

    fn open_raw(path: &Path, read_only: bool) -> Result<Self, DiskProblem> {
        let open = |flags| {
            // Non-blocking, or opening a pipe would wait for its other end before its type can be refused.
            OpenOptions::new()
                .read(true)
                .write(!read_only)
                .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY | flags)
                .open(path)
        };
        // By name first: opening a directory for writing, or a socket, fails with an error that does not name the type.
        let named = std::fs::metadata(path).map_err(DiskProblem::Open)?;
        refuse_other_types(&named)?;
        // A device that the host has mounted must not be written to under its file system.
        let flags = if named.is_file() || read_only { 0 } else { os::disk::EXCLUSIVE };
        let file = open(flags).map_err(|error| match error.raw_os_error() {
            Some(libc::EBUSY) => DiskProblem::InUse,
            Some(libc::EROFS) => DiskProblem::WriteProtected,
            _ => DiskProblem::Open(error),
        })?;
        // And again by descriptor: the name may stand for something else by now.
        let metadata = file.metadata().map_err(DiskProblem::Open)?;
        refuse_other_types(&metadata)?;
        let is_block_device = !metadata.file_type().is_file();
        // A process that was killed has its io_uring taken down when the kernel finds the time, a moment after its end; who
        // restarts it at once must not be told that the disk is in use.
        let mut tries = 0..LOCK_TRIES;
        while !os::disk::lock(file.as_fd(), !read_only)
            .map_err(|error| DiskProblem::Query { what: "lock it", error })?
        {
            tries.next().ok_or(DiskProblem::InUse)?;
            std::thread::sleep(LOCK_PAUSE);
        }
        let query = |what| move |error| DiskProblem::Query { what, error };
        let (size_bytes, logical_block_bytes) = match is_block_device {
            true => os::disk::block_device_size(&file).map_err(query("read its size"))?,
            false => (metadata.len(), SECTOR_BYTES as u32),
        };
        let io_sizes = match is_block_device {
            true => os::disk::block_device_sizes(&file).map_err(query("read its block sizes"))?,
            false => IoSizes { physical_block_bytes: FILE_BLOCK_BYTES, ..IoSizes::default() },
        };
        let can_discard = !read_only && os::disk::can_discard(&file, is_block_device, size_bytes);
        let mut disk = Self {
            store: Store::File(file, path.to_owned()),
            _locked: None,
            size_bytes,
            left_out_bytes: 0,
            logical_block_bytes,
            read_only,
            is_block_device,
            io_sizes,
            can_discard,
            direct: Err(None),
        };
        disk.left_out_bytes = size_bytes % disk.block_bytes();
        disk.size_bytes -= disk.left_out_bytes;
        if disk.size_bytes == 0 {
            return Err(DiskProblem::TooSmall(size_bytes));
        }
        Ok(disk)
    }

    /// Size in bytes when it was opened, a multiple of 512 and of the logical block.
    #[must_use]
    pub fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    /// The smallest block the disk reads or writes by itself, in bytes: 512 for a file.
    #[must_use]
    pub fn logical_block_bytes(&self) -> u32 {
        self.logical_block_bytes
    }

    /// Whether it was opened for reading only.
    #[must_use]
    pub fn is_read_only(&self) -> bool {
        self.read_only
    }

    /// Whether it is a block device and not a file.
    #[must_use]
    pub fn is_block_device(&self) -> bool {
        self.is_block_device
    }

    /// What it does best.
    #[must_use]
    pub fn io_sizes(&self) -> IoSizes {
        self.io_sizes
    }

    /// Whether [`discard`](Self::discard) works here, as far as asking tells: worth telling the guest.
    #[must_use]
    pub fn can_discard(&self) -> bool {
        self.can_discard
    }

    /// What requests must keep to, where it is used around the page cache; nothing where it goes through it.
    #[must_use]
    pub fn alignment(&self) -> Option<Alignment> {
        self.direct.ok()
    }

    /// Why it is used through the page cache, where that is not what was asked for.
    #[must_use]
    pub fn why_not_direct(&self) -> Option<NoDirect> {
        self.direct.err().flatten()
    }

    /// Reads from `offset_bytes` into guest memory, which is as [`alignment`](Self::alignment) asks.
    ///
    /// # Errors
    /// As [`Vectors::read_exact_at`].
    pub fn read(&self, vectors: Vectors<'_>, offset_bytes: u64) -> io::Result<()> {
        vectors.read_exact_at(self.file()?.as_fd(), offset_bytes, self.alignment())
    }

    /// Writes guest memory, which is as [`alignment`](Self::alignment) asks, at `offset_bytes`; `durable`: it is on stable
    /// storage when this returns, where the disk is used around the page cache, and after a [`flush`](Self::flush) elsewhere.
    ///
    /// # Errors
    /// As [`Vectors::write_all_at`].
    pub fn write(&self, vectors: Vectors<'_>, offset_bytes: u64, durable: bool) -> io::Result<()> {
        if durable && self.tells_of_each_write() {
            os::disk::write_durably(self.file()?.as_fd(), vectors, offset_bytes)
        } else {
            vectors.write_all_at(self.file()?.as_fd(), offset_bytes)
        }
    }

    /// Whether a write that is to be durable and cannot be is one that fails. Through the page cache the failure is the
    /// file's, and told to one of those who write to it at that time: such a write is durable after a [`flush`](Self::flush).
    pub(crate) fn tells_of_each_write(&self) -> bool {
        self.direct.is_ok()
    }

    /// Says whether writes may stay in a volatile cache: see [`Volume::set_write_cache`]. What is no volume says of each
    /// write whether it is durable, and has nothing to switch.
    pub fn set_write_cache(&self, write_back: bool) {
        if let Store::Volume(volume) = &self.store {
            volume.set_write_cache(write_back);
        }
    }

    /// The volume that it is, whose requests are run by the volume itself.
    pub(crate) fn volume(&self) -> Option<&Volume> {
        match &self.store {
            Store::File(..) => None,
            Store::Volume(volume) => Some(volume),
        }
    }

    /// The file or block device that it is.
    ///
    /// # Errors
    /// `Unsupported` where it is a volume: no system call is made on guest memory there.
    pub(crate) fn file(&self) -> io::Result<&File> {
        match &self.store {
            Store::File(file, _) => Ok(file),
            Store::Volume(_) => {
                Err(io::Error::new(io::ErrorKind::Unsupported, "a volume is read and written by threads"))
            }
        }
    }

    /// Whether the disk takes this memory as it is.
    pub(crate) fn takes(&self, vectors: &Vectors<'_>) -> bool {
        self.alignment().is_none_or(|alignment| alignment.is_met_by(vectors.as_slice()))
    }

    /// Puts everything written so far on stable storage.
    ///
    /// # Errors
    /// What fdatasync(2) says. After an error the system may have dropped the data: it is not worth a second try.
    pub fn flush(&self) -> io::Result<()> {
        let file = match &self.store {
            Store::File(file, _) => file,
            Store::Volume(volume) => return volume.flush(),
        };
        crate::retry(|| {
            // SAFETY: the descriptor is open.
            unsafe { libc::fdatasync(file.as_raw_fd()) }
        })
        .map(drop)
    }

    /// Gives the range's blocks back to the file system or device; what it reads as afterwards is undefined.
    ///
    /// # Errors
    /// `Unsupported` where the system, file system or device cannot; what it says otherwise.
    pub fn discard(&self, offset_bytes: u64, len_bytes: u64) -> io::Result<()> {
        if let Store::Volume(volume) = &self.store {
            return volume.discard(offset_bytes, len_bytes);
        }
        os::disk::discard(self.file()?, self.is_block_device, offset_bytes, len_bytes).map_err(as_unsupported)
    }

    /// Makes the range read as zeroes, durably after a [`flush`](Self::flush); `unmap`: its blocks may be given back. `go_on`
    /// is asked between the steps of a long operation, which ends early with `Interrupted` where it says no.
    ///
    /// # Errors
    /// What the system says.
    pub fn write_zeroes(
        &self,
        offset_bytes: u64,
        len_bytes: u64,
        unmap: bool,
        go_on: &dyn Fn() -> bool,
    ) -> io::Result<()> {
        let zeroed = os::disk::zero_range(self.file()?, self.is_block_device, offset_bytes, len_bytes, unmap);
        match zeroed.map_err(as_unsupported) {
            Err(error) if error.kind() == io::ErrorKind::Unsupported => {
                crate::iovec::write_zeroes_at(self.file()?.as_fd(), offset_bytes, len_bytes, go_on)
            }
            result => result,
        }
    }
}

/// Whether a file is the raw device of a volume, which some systems make a character device.
#[must_use]
pub fn is_raw_device(file_type: &FileType) -> bool {
    os::disk::is_raw_device(file_type)
}

/// Whether every request of whole blocks of the guest is one of whole blocks of the host.
fn suits(alignment: Alignment, guest_bytes: u32) -> Result<Alignment, NoDirect> {
    let host_bytes = alignment.offset_bytes;
    if guest_bytes.is_multiple_of(host_bytes) {
        Ok(alignment)
    } else {
        Err(NoDirect::Blocks { host_bytes, guest_bytes })
    }
}

fn refuse_other_types(metadata: &Metadata) -> Result<(), DiskProblem> {
    let file_type = metadata.file_type();
    let other = if file_type.is_file() || file_type.is_block_device() || os::disk::is_raw_device(&file_type) {
        return Ok(());
    } else if file_type.is_dir() {
        "directory"
    } else if file_type.is_fifo() {
        "named pipe"
    } else if file_type.is_socket() {
        "socket"
    } else {
        "character device"
    };
    Err(DiskProblem::NotADisk(other))
}

fn as_unsupported(error: io::Error) -> io::Error {
    // A file system says EOPNOTSUPP, or ENOTSUP where that is another number, a device without the operation EINVAL or
    // ENOTTY.
    let refusals = [libc::EOPNOTSUPP, libc::ENOTSUP, libc::ENOSYS, libc::EINVAL, libc::ENOTTY];
    match error.raw_os_error() {
        Some(number) if refusals.contains(&number) => io::ErrorKind::Unsupported.into(),
        _ => error,
    }
}

#[cfg(test)]
mod tests {
    use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};
    use vmm_sys_util::tempdir::TempDir;

    use super::*;
    use crate::iovec::{GuestRange, VectorBuffer};

    const WRITABLE: DiskOptions = DiskOptions { read_only: false, cache: Cache::Auto, guest_block_bytes: None };
    const READ_ONLY: DiskOptions = DiskOptions { read_only: true, cache: Cache::Auto, guest_block_bytes: None };

    fn file(dir: &TempDir, len: u64) -> PathBuf {
        let path = dir.as_path().join(format!("disk-{len}"));
        File::create(&path).unwrap().set_len(len).unwrap();
        path
    }

    fn refusal(path: &Path) -> String {
        let message = Disk::open("d0", path, WRITABLE).unwrap_err().to_string();
        let start = format!("disk d0: {}: ", path.display());
        message.strip_prefix(&start).unwrap_or_else(|| panic!("{message}")).to_owned()
    }

    #[test]
    fn what_is_not_a_disk_is_refused_by_its_type() {
        let dir = TempDir::new().unwrap();
        assert_eq!(refusal(dir.as_path()), "is a directory, not a file or block device");
        let pipe = dir.as_path().join("pipe");
        let name = std::ffi::CString::new(pipe.to_str().unwrap()).unwrap();
        // SAFETY: the name is a C string.
        crate::check(unsafe { libc::mkfifo(name.as_ptr(), 0o600) }).unwrap();
        assert_eq!(refusal(&pipe), "is a named pipe, not a file or block device");
        let socket = dir.as_path().join("socket");
        let _listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
        assert_eq!(refusal(&socket), "is a socket, not a file or block device");
        assert_eq!(refusal(Path::new("/dev/null")), "is a character device, not a file or block device");
        assert_eq!(refusal(&dir.as_path().join("none")), "cannot open it: No such file or directory (os error 2)");
    }

    #[test]
    fn sizes_that_are_no_disk_are_refused() {
        let dir = TempDir::new().unwrap();
        assert_eq!(refusal(&file(&dir, 0)), "is too small: 0 bytes, a disk has at least one sector of 512");
        assert_eq!(refusal(&file(&dir, 511)), "is too small: 511 bytes, a disk has at least one sector of 512");
        for (len, size) in [(512, 512), (1023, 512), (1024, 1024), (1025, 1024)] {
            assert_eq!(Disk::open("d0", &file(&dir, len), WRITABLE).unwrap().size_bytes(), size);
        }
    }

    #[test]
    fn blocks_of_the_guest_that_are_a_part_of_the_hosts_go_through_the_cache() {
        let host = |offset_bytes| Alignment { memory_bytes: 4, offset_bytes };
        for (asked, guest) in [(512, 512), (512, 4096), (4096, 4096), (1, 512)] {
            assert_eq!(suits(host(asked), guest), Ok(host(asked)));
        }
        let why = suits(host(4096), 512).unwrap_err();
        assert_eq!(
            DiskProblem::NoDirect(why).to_string(),
            "cache=direct is not possible: direct I/O takes whole blocks of 4096 bytes here, and the guest's have 512 (block_size); \
             leave it out, or use cache=buffered"
        );
    }

    #[test]
    fn a_disk_is_opened_by_one_writer_or_many_readers() {
        let dir = TempDir::new().unwrap();
        let path = file(&dir, 4096);
        let writer = Disk::open("d0", &path, WRITABLE).unwrap();
        assert_eq!(refusal(&path), "is in use by another process or mounted");
        assert!(Disk::open("d0", &path, READ_ONLY).is_err());
        drop(writer);
        let readers = [Disk::open("d0", &path, READ_ONLY).unwrap(), Disk::open("d1", &path, READ_ONLY).unwrap()];
        assert_eq!(refusal(&path), "is in use by another process or mounted");
        drop(readers);
        Disk::open("d0", &path, WRITABLE).unwrap();
    }

    #[test]
    fn a_read_only_file_opens_read_only_and_refuses_writes() {
        let dir = TempDir::new().unwrap();
        let disk = Disk::open("d0", &file(&dir, 4096), READ_ONLY).unwrap();
        assert!(disk.is_read_only() && !disk.can_discard());
        let mem = GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), 0x1000)]).unwrap();
        let mut buffer = VectorBuffer::default();
        let vectors = buffer.fill(&mem, [GuestRange { address: 0, len: 512 }]).unwrap();
        assert_eq!(disk.write(vectors, 0, false).unwrap_err().raw_os_error(), Some(libc::EBADF));
    }

    #[test]
    fn written_zeroed_and_discarded_ranges_read_back_as_they_should() {
        let dir = TempDir::new().unwrap();
        let disk = Disk::open("d0", &file(&dir, 1 << 20), WRITABLE).unwrap();
        let mem = GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), 0x20000)]).unwrap();
        let mut buffer = VectorBuffer::default();
        let mut all = |write: bool| {
            let vectors = buffer.fill(&mem, [GuestRange { address: 0, len: 0x20000 }]).unwrap();
            if write { disk.write(vectors, 4096, true).unwrap() } else { disk.read(vectors, 4096).unwrap() }
        };
        for unmap in [false, true] {
            mem.write_slice(&[0x5a; 0x20000], GuestAddress(0)).unwrap();
            all(true);
            disk.write_zeroes(4096 + 512, 0x10000, unmap, &|| true).unwrap();
            mem.write_slice(&[1; 0x20000], GuestAddress(0)).unwrap();
            all(false);
            let mut bytes = vec![0; 0x20000];
            mem.read_slice(&mut bytes, GuestAddress(0)).unwrap();
            assert!(bytes[..512].iter().all(|&byte| byte == 0x5a));
            assert!(bytes[512..512 + 0x10000].iter().all(|&byte| byte == 0));
            assert!(bytes[512 + 0x10000..].iter().all(|&byte| byte == 0x5a));
        }
        match disk.discard(4096, 0x10000) {
            Ok(()) => {}
            Err(error) => assert_eq!(error.kind(), io::ErrorKind::Unsupported),
        }
        assert_eq!(disk.file().unwrap().metadata().unwrap().len(), 1 << 20, "a disk never changes its size");
        disk.flush().unwrap();
    }
}
