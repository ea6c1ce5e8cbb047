//! Two TAP devices on a bridge, in a network of the process's own: what is written to one is read from the other.

use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::os::unix::fs::OpenOptionsExt as _;
use std::thread::JoinHandle;
use std::time::Duration;

use devices_host::poll::{PollFd, poll};

use super::HEADER_BYTES;

/// The end for a card.
pub const CARD: &str = "bench0";
const FAR: &str = "bench1";
const BRIDGE: &str = "bench2";

/// Frames that each end keeps until somebody reads them.
pub const QUEUE_FRAMES: usize = 8192;

// linux/sockios.h.
const SIOCBRADDBR: libc::c_ulong = 0x89a0;
const SIOCBRADDIF: libc::c_ulong = 0x89a2;

/// The pair, of which this is the far end. It goes with the process.
pub struct Pair(File);

impl Pair {
    /// Makes it, in a network of its own into which the calling thread moves: threads that it starts are in it, too.
    ///
    /// # Errors
    /// When the process may not, or the system has no such devices.
    pub fn make() -> io::Result<Self> {
        // SAFETY: takes a number; only this thread moves.
        check(unsafe { libc::unshare(libc::CLONE_NEWNET) }).map_err(named("a network of its own"))?;
        // Nobody but the bench shall send anything.
        for (file, value) in [
            ("ipv6/conf/default/disable_ipv6", "1"),
            ("ipv4/igmp_link_local_mcast_reports", "0"),
            ("bridge/bridge-nf-call-iptables", "0"),
        ] {
            // A system without it needs no telling.
            let _ = std::fs::write(format!("/proc/sys/net/{file}"), value);
        }
        let card = tap(CARD)?;
        // SAFETY: takes a number.
        check(unsafe { libc::ioctl(card.as_raw_fd(), libc::TUNSETPERSIST, 1) })?;
        let far = tap(FAR)?;
        let header_bytes = HEADER_BYTES as libc::c_int;
        // SAFETY: the call reads one int.
        check(unsafe { libc::ioctl(far.as_raw_fd(), libc::TUNSETVNETHDRSZ, &header_bytes) })?;
        // Segments stay whole.
        let offloads = libc::c_ulong::from(libc::TUN_F_CSUM | libc::TUN_F_TSO4 | libc::TUN_F_TSO6);
        // SAFETY: takes a number.
        check(unsafe { libc::ioctl(far.as_raw_fd(), libc::TUNSETOFFLOAD, offloads) })?;
        // SAFETY: takes numbers.
        let socket = check(unsafe { libc::socket(libc::AF_INET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0) })?;
        // SAFETY: the descriptor is new, and nobody else's.
        let socket = unsafe { OwnedFd::from_raw_fd(socket) };
        let mut bridge = [0u8; libc::IFNAMSIZ];
        bridge[..BRIDGE.len()].copy_from_slice(BRIDGE.as_bytes());
        // SAFETY: the name is one of an interface, with its end.
        check(unsafe { libc::ioctl(socket.as_raw_fd(), SIOCBRADDBR as _, bridge.as_ptr()) })
            .map_err(named("a bridge"))?;
        for name in [CARD, FAR] {
            let mut end = request(name);
            end.ifr_ifru.ifru_ifindex = QUEUE_FRAMES as libc::c_int;
            let mut port = request(BRIDGE);
            // SAFETY: requests that live through the calls; the name is a C string.
            unsafe {
                check(libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFTXQLEN as _, &raw mut end))?;
                check(libc::ioctl(socket.as_raw_fd(), libc::SIOCGIFINDEX as _, &raw mut end))?;
                port.ifr_ifru.ifru_ifindex = end.ifr_ifru.ifru_ifindex;
                check(libc::ioctl(socket.as_raw_fd(), SIOCBRADDIF as _, &raw mut port))?;
            }
        }
        for name in [CARD, FAR, BRIDGE] {
            let mut up = request(name);
            up.ifr_ifru.ifru_flags = libc::IFF_UP as libc::c_short;
            // SAFETY: the request lives through the call.
            check(unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS as _, &raw mut up) })?;
        }
        Ok(Self(far))
    }

    /// Sends a frame, with its header, so many times.
    ///
    /// # Errors
    /// What the system says.
    pub fn send(&self, frame: &[u8], times: u64) -> io::Result<()> {
        (0..times).try_for_each(|_| whole((&self.0).write(frame), frame.len()))
    }

    /// Waits for a frame and reads it, with its header: its length.
    ///
    /// # Errors
    /// `TimedOut` where none comes for so long.
    pub fn receive(&self, into: &mut [u8], within: Duration) -> io::Result<usize> {
        wait_readable(&self.0, within)?;
        (&self.0).read(into)
    }

    /// Reads all frames that are there: how many.
    ///
    /// # Errors
    /// What the system says.
    pub fn drain(&self) -> io::Result<u64> {
        // What does not fit is thrown away: the bytes of a frame were looked at before.
        let mut start = [0; 128];
        let mut frames = 0;
        loop {
            match (&self.0).read(&mut start) {
                Ok(_) => frames += 1,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(frames),
                Err(error) => return Err(error),
            }
        }
    }

    /// Reads all frames that are there, so many: passes on how long it took to send them.
    ///
    /// # Errors
    /// When others arrived than these.
    pub fn taken(&self, frames: u64, time: Duration) -> io::Result<Duration> {
        match self.drain()? {
            came if came == frames => Ok(time),
            came => Err(io::Error::other(format!("{came} of {frames} frames arrived"))),
        }
    }

    /// Has a thread on the caller's CPU answer so many frames with `frame`.
    ///
    /// # Errors
    /// When the process has no descriptor or thread left.
    pub fn echo(&self, frame: Vec<u8>, times: u64) -> io::Result<JoinHandle<io::Result<()>>> {
        let far = Self(self.0.try_clone()?);
        std::thread::Builder::new().spawn(move || {
            let mut received = vec![0; frame.len()];
            (0..times).try_for_each(|_| {
                far.receive(&mut received, PATIENCE)?;
                far.send(&frame, 1)
            })
        })
    }
}

/// Who waits for longer waits in vain.
pub(super) const PATIENCE: Duration = Duration::from_secs(5);

/// Sleeps until a frame can be read.
pub(super) fn wait_readable(end: &File, within: Duration) -> io::Result<()> {
    match poll(&mut [PollFd::new(end.as_raw_fd()).readable(true)], Some(within.as_nanos() as u64))? {
        0 => Err(io::Error::new(io::ErrorKind::TimedOut, "no frame came")),
        _ => Ok(()),
    }
}

/// Whether all of a frame was written.
pub(super) fn whole(written: io::Result<usize>, len: usize) -> io::Result<()> {
    match written? {
        moved if moved == len => Ok(()),
        moved => Err(io::Error::other(format!("{moved} of {len} bytes of a frame were sent"))),
    }
}

/// Makes a TAP device.
fn tap(name: &str) -> io::Result<File> {
    let file = File::options()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NONBLOCK)
        .open("/dev/net/tun")
        .map_err(named("/dev/net/tun"))?;
    let mut request = request(name);
    request.ifr_ifru.ifru_flags = (libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR) as libc::c_short;
    // SAFETY: the request lives through the call.
    check(unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF, &raw mut request) })
        .map_err(named("a TAP device"))?;
    Ok(file)
}

/// A request about the interface `name`.
fn request(name: &str) -> libc::ifreq {
    // SAFETY: all bits zero is a valid request.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().take(libc::IFNAMSIZ - 1).zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    request
}

fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// Says what could not be had.
fn named(what: &'static str) -> impl Fn(io::Error) -> io::Error {
    move |error| io::Error::new(error.kind(), format!("{what}: {error}"))
}
