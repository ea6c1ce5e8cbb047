//! The size of a disk while it is open: files can be given another one, and both files and devices can have one.

use std::io;

use super::{Disk, Store};
use crate::os;

impl Disk {
    /// What the file or device holds now, in bytes: unlike [`size_bytes`](Self::size_bytes), which is from when it was
    /// opened, and not rounded to blocks.
    ///
    /// # Errors
    /// What the system says.
    pub fn bytes_now(&self) -> io::Result<u64> {
        match &self.store {
            Store::Volume(volume) => volume.bytes_now(),
            Store::File(file, _) if self.is_block_device => os::disk::block_device_size(file).map(|(bytes, _)| bytes),
            Store::File(file, _) => file.metadata().map(|metadata| metadata.len()),
        }
    }

    /// Makes the disk's file this long: what is added reads as zeroes and takes no space yet, what is cut off is lost.
    /// May take long where much is cut off. In a process that does not ignore SIGXFSZ, its limit of a file's size ends it
    /// here instead of being an error.
    ///
    /// # Errors
    /// `EFBIG` for what no file system has, and what ftruncate(2) says.
    pub fn set_file_bytes(&self, bytes: u64) -> io::Result<()> {
        if libc::off_t::try_from(bytes).is_err() {
            return Err(io::Error::from_raw_os_error(libc::EFBIG));
        }
        self.file()?.set_len(bytes)
    }
}

#[cfg(test)]
mod tests {
    use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};
    use vmm_sys_util::tempdir::TempDir;

    use super::*;
    use crate::disk::DiskOptions;
    use crate::iovec::{GuestRange, VectorBuffer};

    fn disk(dir: &TempDir, len: u64) -> Disk {
        let path = dir.as_path().join("disk");
        std::fs::File::create(&path).unwrap().set_len(len).unwrap();
        Disk::open("d0", &path, DiskOptions::default()).unwrap()
    }

    #[test]
    fn a_file_that_has_grown_can_be_used_to_its_new_end_and_one_that_was_cut_off_ends_there() {
        let dir = TempDir::new().unwrap();
        let disk = disk(&dir, 4096);
        let mem = GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), 0x1000)]).unwrap();
        let mut buffer = VectorBuffer::default();
        let mut read = |at| {
            let vectors = buffer.fill(&mem, [GuestRange { address: 0, len: 512 }]).unwrap();
            disk.read(vectors, at).map(|()| mem.read_obj::<u64>(GuestAddress(0)).unwrap())
        };
        assert_eq!(read(8192 - 512).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
        disk.set_file_bytes(8192).unwrap();
        mem.write_obj(u64::MAX, GuestAddress(0)).unwrap();
        assert_eq!((read(8192 - 512).unwrap(), disk.bytes_now().unwrap()), (0, 8192));
        disk.set_file_bytes(512).unwrap();
        assert_eq!(disk.bytes_now().unwrap(), 512);
        assert_eq!(read(512).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    }

    #[test]
    fn what_somebody_else_did_to_the_file_is_seen() {
        let dir = TempDir::new().unwrap();
        let disk = disk(&dir, 4096);
        std::fs::File::options().write(true).open(dir.as_path().join("disk")).unwrap().set_len(10_000).unwrap();
        assert_eq!((disk.bytes_now().unwrap(), disk.size_bytes()), (10_000, 4096));
    }

    #[test]
    fn a_length_beyond_every_file_system_is_an_error_and_changes_nothing() {
        let dir = TempDir::new().unwrap();
        let disk = disk(&dir, 4096);
        for bytes in [u64::MAX, 1 << 63] {
            assert_eq!(disk.set_file_bytes(bytes).unwrap_err().raw_os_error(), Some(libc::EFBIG), "{bytes}");
        }
        assert_eq!(disk.bytes_now().unwrap(), 4096);
    }
}
