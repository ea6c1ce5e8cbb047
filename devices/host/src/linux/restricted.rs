//! What the kernel does for a disk's ring, and nothing else: it carries out what a ring says without asking seccomp, so a
//! thread that a guest has taken over could open files and sockets through one.

use std::io;
use std::os::fd::RawFd;

use io_uring::register::Restriction;
use io_uring::{IoUring, Probe, opcode};

/// IOSQE_FIXED_FILE (io_uring_enter(2)): the file is one of the ring's own.
const FIXED_FILE: u8 = 1 << 0;
/// IOSQE_ASYNC (the same): one of the kernel's threads does it.
const ASYNC: u8 = 1 << 4;
/// IORING_UNREGISTER_FILES (`include/uapi/linux/io_uring.h`).
const UNREGISTER_FILES: u8 = 3;

/// A ring of `entries` that knows `files` and wakes `eventfd`, and does for ever after what a disk needs: reads, writes, data
/// syncs and cancelling, and giving its files back.
///
/// # Errors
/// As io_uring_setup(2) and io_uring_register(2): before Linux 5.10 a ring cannot be restricted, and EINVAL says so.
pub(crate) fn ring(entries: u32, files: &[RawFd], eventfd: RawFd) -> io::Result<IoUring> {
    let ring = IoUring::builder().setup_r_disabled().build(entries)?;
    let submitter = ring.submitter();
    submitter.register_probe(&mut Probe::new())?;
    submitter.register_files(files)?;
    submitter.register_eventfd(eventfd)?;
    let calls = [
        opcode::Read::CODE,
        opcode::Readv::CODE,
        opcode::Writev::CODE,
        opcode::Fsync::CODE,
        opcode::AsyncCancel2::CODE,
    ];
    let mut allowed: Vec<_> = calls.into_iter().map(Restriction::sqe_op).collect();
    allowed.push(Restriction::sqe_flags_allowed(FIXED_FILE | ASYNC));
    allowed.push(Restriction::register_op(UNREGISTER_FILES));
    submitter.register_restrictions(&mut allowed)?;
    submitter.register_enable_rings()?;
    Ok(ring)
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd as _;

    use io_uring::types::{Fd, Fixed};
    use vmm_sys_util::eventfd::EventFd;
    use vmm_sys_util::tempfile::TempFile;

    use super::*;

    /// What the kernel says to one entry.
    fn outcome(ring: &mut IoUring, entry: &io_uring::squeue::Entry) -> i32 {
        // SAFETY: what the entries of the tests point to is constant.
        unsafe { ring.submission().push(entry) }.unwrap();
        ring.submit_and_wait(1).unwrap();
        ring.completion().next().unwrap().result()
    }

    #[test]
    fn a_ring_syncs_its_disk_and_opens_no_file_or_socket_and_takes_no_other_file() {
        let file = TempFile::new().unwrap().into_file();
        let wake = EventFd::new(0).unwrap();
        let mut ring = ring(4, &[file.as_raw_fd()], wake.as_raw_fd()).unwrap();
        assert_eq!(outcome(&mut ring, &opcode::Fsync::new(Fixed(0)).build()), 0);
        let path = c"/etc/passwd".as_ptr();
        let refused = [
            opcode::OpenAt::new(Fd(libc::AT_FDCWD), path).build(),
            opcode::UnlinkAt::new(Fd(libc::AT_FDCWD), path).build(),
            opcode::Socket::new(libc::AF_INET, libc::SOCK_STREAM, 0).build(),
            opcode::Nop::new().build(),
            opcode::Fsync::new(Fixed(0)).build().flags(io_uring::squeue::Flags::IO_DRAIN),
        ];
        for entry in &refused {
            assert_eq!(outcome(&mut ring, entry), -libc::EACCES, "{entry:?}");
        }
        let refused = ring.submitter().register_eventfd(wake.as_raw_fd()).unwrap_err();
        assert_eq!(refused.raw_os_error(), Some(libc::EACCES));
        ring.submitter().unregister_files().unwrap();
    }
}
