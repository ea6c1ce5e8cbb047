//! Another process's rings of io_uring, and the syncs among what it has put into them: each becomes a read of no bytes
//! before the kernel sees it, which a ring that is restricted to what a disk needs may ask for, too. A ring's requests lie
//! in memory that the process shares with the kernel, and so can whoever has the ring's descriptor.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};

use anyhow::Context as _;

/// Bytes of a request (`struct io_uring_sqe`), and where in it are those that matter.
const REQUEST_BYTES: usize = 64;
const OPCODE: usize = 0;
const FLAGS: usize = 28;

const OP_FSYNC: u8 = 3;
const OP_READ: u8 = 22;
/// Where in a ring its requests can be mapped from.
const OFFSET_REQUESTS: libc::off_t = 0x1000_0000;

/// Lets every io_uring_enter(2) of `process` that `listener` hears of begin when there is no sync among the requests of its
/// ring any more. Ends when the process does.
pub fn watch(listener: &File, process: u32) -> anyhow::Result<()> {
    let process = open_process(process)?;
    let mut rings: HashMap<libc::c_int, Requests> = HashMap::new();
    loop {
        // SAFETY: all zeroes is one, and what the call wants to be given.
        let mut call: libc::seccomp_notif = unsafe { std::mem::zeroed() };
        // SAFETY: `call` is what the request fills.
        if unsafe { libc::ioctl(listener.as_raw_fd(), libc::SECCOMP_IOCTL_NOTIF_RECV, &mut call) } < 0 {
            match io::Error::last_os_error() {
                // A thread that ended, or a signal.
                error if matches!(error.raw_os_error(), Some(libc::EINTR)) => continue,
                error if matches!(error.raw_os_error(), Some(libc::ENOENT)) => {
                    if has_ended(&process)? {
                        return Ok(());
                    }
                    continue;
                }
                error => return Err(error).context("cannot hear of calls"),
            }
        }
        let [ring, requests, ..] = call.data.args;
        let ring = ring as libc::c_int;
        if requests > 0 {
            let known = match rings.entry(ring) {
                std::collections::hash_map::Entry::Occupied(known) => known.into_mut(),
                std::collections::hash_map::Entry::Vacant(new) => new.insert(Requests::of(&process, call.pid, ring)?),
            };
            known.take_syncs_away();
        }
        let answer = libc::seccomp_notif_resp {
            id: call.id,
            val: 0,
            error: 0,
            flags: libc::SECCOMP_USER_NOTIF_FLAG_CONTINUE as u32,
        };
        // SAFETY: `answer` is what the request reads. It fails where a signal has ended the call meanwhile: it comes again.
        unsafe { libc::ioctl(listener.as_raw_fd(), libc::SECCOMP_IOCTL_NOTIF_SEND, &answer) };
    }
}

fn open_process(process: u32) -> anyhow::Result<OwnedFd> {
    // SAFETY: takes numbers only.
    owned(unsafe { libc::syscall(libc::SYS_pidfd_open, process, 0) }).context("cannot open the program's process")
}

/// The descriptor that a system call has just made, for nobody else.
fn owned(result: libc::c_long) -> io::Result<OwnedFd> {
    match libc::c_int::try_from(result) {
        // SAFETY: as the callers say.
        Ok(fd) if fd >= 0 => Ok(unsafe { OwnedFd::from_raw_fd(fd) }),
        _ => Err(io::Error::last_os_error()),
    }
}

fn has_ended(process: &OwnedFd) -> anyhow::Result<bool> {
    let mut poll = libc::pollfd { fd: process.as_raw_fd(), events: libc::POLLIN, revents: 0 };
    // SAFETY: one `pollfd` is there.
    let ready = unsafe { libc::poll(&mut poll, 1, 0) };
    anyhow::ensure!(ready >= 0, io::Error::last_os_error());
    Ok(ready > 0)
}

/// The places for requests in another process's ring, mapped for as long as this process lives.
struct Requests {
    first: *mut u8,
    count: usize,
}

impl Requests {
    /// Those of the ring that a thread of `process` has as `ring`.
    fn of(process: &OwnedFd, thread: u32, ring: libc::c_int) -> anyhow::Result<Self> {
        let about = format!("/proc/{thread}/fdinfo/{ring}");
        let about = std::fs::read_to_string(&about).with_context(|| format!("cannot read {about}"))?;
        let mask = about.lines().find_map(|line| line.strip_prefix("SqMask:")).context("the ring has no mask")?;
        let mask = mask.trim();
        let mask =
            usize::from_str_radix(mask.strip_prefix("0x").unwrap_or(mask), 16).context("its mask is no number")?;
        let count = mask + 1;
        // SAFETY: takes numbers only.
        let own = owned(unsafe { libc::syscall(libc::SYS_pidfd_getfd, process.as_raw_fd(), ring, 0) })
            .context("cannot have the program's ring")?;
        let (len, protection) = (count * REQUEST_BYTES, libc::PROT_READ | libc::PROT_WRITE);
        // SAFETY: at an address of the kernel's choice. The ring outlives its descriptor while it is mapped.
        let first = unsafe {
            libc::mmap(std::ptr::null_mut(), len, protection, libc::MAP_SHARED, own.as_raw_fd(), OFFSET_REQUESTS)
        };
        anyhow::ensure!(first != libc::MAP_FAILED, "cannot map the program's ring: {}", io::Error::last_os_error());
        Ok(Self { first: first.cast(), count })
    }

    /// Old ones among them are past caring. Nobody writes to them meanwhile: the thread whose ring it is waits for its call.
    fn take_syncs_away(&self) {
        for number in 0..self.count {
            // SAFETY: all of them are mapped, writable, and until the process ends; each has the bytes of a request.
            unsafe {
                let request = self.first.add(number * REQUEST_BYTES);
                if request.add(OPCODE).read_volatile() == OP_FSYNC {
                    request.add(OPCODE).write_volatile(OP_READ);
                    // These mean something else there; where to, and how much, is zero in a sync.
                    request.add(FLAGS).cast::<u32>().write_volatile(0);
                }
            }
        }
    }
}
