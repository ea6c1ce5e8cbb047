//! TAP devices on Linux (Documentation/networking/tuntap.rst).

use std::ffi::CString;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::fs::OpenOptionsExt;

use crate::check;
use crate::tap::{HEADER_BYTES, Interface, Offloads, TapError};

#[derive(Debug)]
pub(crate) struct Device(File);

/// What frames look like: Ethernet, with the header of virtio-net before them and nothing else.
const FRAMES: libc::c_int = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;

/// The flags of a device with one queue, or of a queue of several.
fn flags(several: bool) -> libc::c_short {
    (if several { FRAMES | libc::IFF_MULTI_QUEUE } else { FRAMES }) as libc::c_short
}

/// The index of an interface, 0 where there is none of that name.
fn index_of(name: &str) -> Result<libc::c_uint, TapError> {
    let interface = CString::new(name).map_err(|_| TapError::BadName(name.to_owned()))?;
    // SAFETY: the name is a C string.
    Ok(unsafe { libc::if_nametoindex(interface.as_ptr()) })
}

/// Refuses a TAP device that somebody has open: the kernel lets several processes share one that has several queues, each
/// with frames that the other one misses. One without a queue has no carrier, which is seen while it is up.
pub(crate) fn check_unused(name: &str) -> Result<(), TapError> {
    if index_of(name)? == 0 {
        return Err(TapError::Missing(name.to_owned()));
    }
    // Others have a carrier of their own, and are refused for what they are.
    let used = || -> io::Result<bool> {
        // SAFETY: takes numbers.
        let fd = check(unsafe { libc::socket(libc::AF_INET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0) })?;
        // SAFETY: the descriptor is new, and nobody else's.
        let socket = unsafe { OwnedFd::from_raw_fd(fd) };
        // struct ethtool_drvinfo has the driver's name first, and struct ethtool_value nothing but the answer.
        let driver: [u8; 192] = ethtool(&socket, name, ETHTOOL_GDRVINFO)?;
        Ok(driver.starts_with(b"tun\0") && ethtool::<4>(&socket, name, ETHTOOL_GLINK)? != [0; 4])
    };
    match used() {
        Ok(true) => Err(TapError::InUse(name.to_owned())),
        // What nobody says of it is found out by opening it.
        Ok(false) | Err(_) => Ok(()),
    }
}

// linux/ethtool.h.
const ETHTOOL_GDRVINFO: u32 = 3;
const ETHTOOL_GLINK: u32 = 10;

/// What an interface answers to a question of ethtool's, of a structure that has `N` bytes behind the question.
fn ethtool<const N: usize>(socket: &OwnedFd, name: &str, question: u32) -> io::Result<[u8; N]> {
    #[repr(C, align(8))]
    struct Question<const N: usize>(u32, [u8; N]);
    let mut asked = Question(question, [0; N]);
    let mut request = request(name);
    request.ifr_ifru.ifru_data = (&raw mut asked).cast();
    // SAFETY: the request is a valid ifreq that points to a whole structure, which the call fills in.
    check(unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCETHTOOL as _, &raw mut request) })?;
    Ok(asked.1)
}

impl Device {
    pub(crate) fn open(name: &str, several: bool) -> Result<Self, TapError> {
        // TUNSETIFF would create the device for a privileged user: without address, down, and gone with us.
        if index_of(name)? == 0 {
            return Err(TapError::Missing(name.to_owned()));
        }
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_NONBLOCK)
            .open("/dev/net/tun")
            .map_err(TapError::NoTun)?;
        let mut request = request(name);
        request.ifr_ifru.ifru_flags = flags(several);
        // SAFETY: the request is a valid ifreq with a terminated name.
        check(unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF, &request) }).map_err(|error| {
            match error.raw_os_error() {
                Some(libc::EBUSY) => TapError::InUse(name.to_owned()),
                Some(libc::EPERM | libc::EACCES) => TapError::Permission(name.to_owned()),
                Some(libc::EINVAL) if several => TapError::NotSeveral(name.to_owned()),
                Some(libc::EINVAL) => TapError::NotATap(name.to_owned()),
                _ => TapError::Call { name: name.to_owned(), call: "TUNSETIFF", error },
            }
        })?;
        Self(file).prepared(name)
    }

    /// A macvtap interface's frames come and go by a device file with its index in the name.
    pub(crate) fn open_macvtap(name: &str, several: bool) -> Result<Self, TapError> {
        let index = index_of(name)?;
        if index == 0 {
            return Err(TapError::NotAMacvtap(name.to_owned()));
        }
        let options = OpenOptions::new().read(true).write(true).custom_flags(libc::O_NONBLOCK).clone();
        let file = options.open(format!("/dev/tap{index}")).map_err(|error| match error.raw_os_error() {
            Some(libc::ENOENT | libc::ENXIO | libc::ENODEV) => TapError::NotAMacvtap(name.to_owned()),
            _ => TapError::Call { name: name.to_owned(), call: "open", error },
        })?;
        let mut request = request("");
        request.ifr_ifru.ifru_flags = flags(several);
        // SAFETY: the request is a valid ifreq with a terminated name.
        check(unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF, &request) }).map_err(|error| TapError::Call {
            name: name.to_owned(),
            call: "TUNSETIFF",
            error,
        })?;
        let device = Self(file);
        // Interfaces of other network namespaces may have the same index, and so the same file.
        match device.interface() {
            Ok((own, _)) if own == name => device.prepared(name),
            _ => Err(TapError::NotAMacvtap(name.to_owned())),
        }
    }

    /// A descriptor that was there before the process began; with the name of its interface.
    pub(crate) fn inherit(fd: RawFd, several: bool) -> Result<(Self, String), TapError> {
        let bad = |problem| TapError::BadFd { fd, problem };
        // The first three are the process's own, whatever they are.
        // SAFETY: takes numbers.
        if fd < 3 || unsafe { libc::fcntl(fd, libc::F_GETFD) } < 0 {
            return Err(bad("is not open, or is one of the standard ones"));
        }
        // SAFETY: takes numbers.
        let fresh = check(unsafe { libc::fcntl(fd, libc::F_DUPFD_CLOEXEC, 3) });
        let fresh = fresh.map_err(|_| bad("cannot be duplicated"))?;
        // SAFETY: the descriptor is new, and nobody else's.
        let device = Self(File::from(unsafe { OwnedFd::from_raw_fd(fresh) }));
        let (name, set) = device.interface().map_err(|_| bad("is no TAP or macvtap device with an interface"))?;
        if set & FRAMES != FRAMES {
            return Err(bad(
                "is not set up for frames with the header of virtio-net (IFF_TAP, IFF_NO_PI, IFF_VNET_HDR)",
            ));
        }
        if several && set & libc::IFF_MULTI_QUEUE == 0 {
            return Err(bad("is of an interface with one queue"));
        }
        // SAFETY: takes numbers; the given descriptor is duplicated and of no more use.
        check(unsafe { libc::fcntl(fresh, libc::F_SETFL, libc::O_NONBLOCK) }).map_err(|_| bad("cannot be set up"))?;
        Ok((device.prepared(&name)?, name))
    }

    /// The device with its header, and without the offloads of its last user.
    fn prepared(self, name: &str) -> Result<Self, TapError> {
        let failed = |call| move |error| TapError::Call { name: name.to_owned(), call, error };
        self.set_header_bytes(HEADER_BYTES).map_err(failed("TUNSETVNETHDRSZ"))?;
        self.set_offloads(Offloads::default()).map_err(failed("TUNSETOFFLOAD"))?;
        Ok(self)
    }

    /// Name and flags of the interface behind it.
    fn interface(&self) -> io::Result<(String, libc::c_int)> {
        let mut request = request("");
        // SAFETY: the request is a valid ifreq, which the call fills in.
        check(unsafe { libc::ioctl(self.0.as_raw_fd(), libc::TUNGETIFF, &raw mut request) })?;
        let name = request.ifr_name.iter().take_while(|byte| **byte != 0).map(|byte| char::from(*byte as u8));
        // SAFETY: the call has filled in the flags.
        Ok((name.collect(), i32::from(unsafe { request.ifr_ifru.ifru_flags })))
    }

    pub(crate) fn set_attached(&self, attached: bool) -> io::Result<()> {
        let mut request = request("");
        let flag = if attached { libc::IFF_ATTACH_QUEUE } else { libc::IFF_DETACH_QUEUE };
        request.ifr_ifru.ifru_flags = flag as libc::c_short;
        // SAFETY: the request is a valid ifreq.
        check(unsafe { libc::ioctl(self.0.as_raw_fd(), libc::TUNSETQUEUE, &request) }).map(drop)
    }

    pub(crate) fn try_clone(&self) -> io::Result<Self> {
        self.0.try_clone().map(Self)
    }

    pub(crate) fn set_header_bytes(&self, len_bytes: usize) -> io::Result<()> {
        let len_bytes = len_bytes as libc::c_int;
        // SAFETY: the call reads one int.
        check(unsafe { libc::ioctl(self.0.as_raw_fd(), libc::TUNSETVNETHDRSZ, &len_bytes) }).map(drop)
    }

    pub(crate) fn mtu(&self) -> io::Result<u32> {
        let (name, _) = self.interface()?;
        // SAFETY: takes numbers.
        let fd = check(unsafe { libc::socket(libc::AF_INET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0) })?;
        // SAFETY: the descriptor is new, and nobody else's.
        let socket = unsafe { OwnedFd::from_raw_fd(fd) };
        let mut request = request(&name);
        // SAFETY: the request is a valid ifreq with a terminated name, which the call fills in.
        check(unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCGIFMTU as _, &raw mut request) })?;
        // SAFETY: the call has filled in the MTU.
        Ok(unsafe { request.ifr_ifru.ifru_mtu }.unsigned_abs())
    }

    pub(crate) fn set_offloads(&self, offloads: Offloads) -> io::Result<()> {
        let Offloads { csum, tso4, tso6, ecn, uso } = offloads;
        let flags = [
            (csum, libc::TUN_F_CSUM),
            (csum && tso4, libc::TUN_F_TSO4),
            (csum && tso6, libc::TUN_F_TSO6),
            // The kernel takes ECN only together with a segmentation it applies to.
            (csum && ecn && (tso4 || tso6), libc::TUN_F_TSO_ECN),
            // And those of UDP together only.
            (csum && uso, libc::TUN_F_USO4 | libc::TUN_F_USO6),
        ];
        let flags = flags.iter().filter(|(wanted, _)| *wanted).fold(0, |all, (_, flag)| all | flag);
        // SAFETY: takes a number.
        check(unsafe { libc::ioctl(self.0.as_raw_fd(), libc::TUNSETOFFLOAD, libc::c_ulong::from(flags)) }).map(drop)
    }
}

impl AsFd for Device {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// A netlink socket that is sent every change of an interface (rtnetlink(7)). What the messages say is not read: they may
/// get lost (`ENOBUFS`), and the interface itself can be asked.
#[derive(Debug)]
pub(crate) struct Events(OwnedFd);

/// Messages taken in one go: whoever changes interfaces without a pause must not keep the reader.
const MOST_MESSAGES: usize = 64;

impl Events {
    pub(crate) fn listen() -> io::Result<Self> {
        let kind = libc::SOCK_RAW | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
        // SAFETY: takes numbers.
        let fd = check(unsafe { libc::socket(libc::AF_NETLINK, kind, libc::NETLINK_ROUTE) })?;
        // SAFETY: the descriptor is new, and nobody else's.
        let socket = unsafe { OwnedFd::from_raw_fd(fd) };
        // SAFETY: all-zero is a valid address.
        let mut address: libc::sockaddr_nl = unsafe { std::mem::zeroed() };
        address.nl_family = libc::AF_NETLINK as libc::sa_family_t;
        address.nl_groups = libc::RTMGRP_LINK as u32;
        let len = size_of_val(&address) as libc::socklen_t;
        // SAFETY: the address is whole and has the length given.
        check(unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast(), len) })?;
        Ok(Self(socket))
    }

    pub(crate) fn clear(&self) {
        let mut byte = [0u8];
        for _ in 0..MOST_MESSAGES {
            // SAFETY: the buffer has the length given; the rest of a message is thrown away.
            let got = unsafe { libc::recv(self.0.as_raw_fd(), byte.as_mut_ptr().cast(), byte.len(), 0) };
            match check(got) {
                Ok(_) => {}
                // Some were lost: the next ones follow.
                Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => break,
            }
        }
    }

    pub(crate) fn interface_of(&self, device: &Device) -> io::Result<Interface> {
        // Its name of now: it may have been given another one, or its old one may be another interface's.
        let mut request = request("");
        // SAFETY: the request is a valid ifreq, which the call fills in.
        match check(unsafe { libc::ioctl(device.0.as_raw_fd(), libc::TUNGETIFF, &raw mut request) }) {
            Ok(_) => {}
            // The kernel takes the device away from who has it open; macvtap says it in its own way.
            Err(error) if matches!(error.raw_os_error(), Some(libc::EBADFD | libc::ENOLINK)) => {
                return Ok(Interface::Gone);
            }
            Err(error) => return Err(error),
        }
        // SAFETY: the request is a valid ifreq with a terminated name, and the call fills in its flags.
        match check(unsafe { libc::ioctl(self.0.as_raw_fd(), libc::SIOCGIFFLAGS as _, &raw mut request) }) {
            // SAFETY: the call has filled in the flags.
            Ok(_) if i32::from(unsafe { request.ifr_ifru.ifru_flags }) & libc::IFF_UP == 0 => Ok(Interface::Down),
            Ok(_) => Ok(Interface::Up),
            // It was moved into another namespace, where it may well be used.
            Err(error) if error.raw_os_error() == Some(libc::ENODEV) => Ok(Interface::Up),
            Err(error) => Err(error),
        }
    }

    pub(crate) fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

/// `IFNAMSIZ` counts the NUL.
pub(crate) const LONGEST_NAME_BYTES: usize = 15;

/// A request about the interface `name`, of at most 15 bytes.
fn request(name: &str) -> libc::ifreq {
    // SAFETY: all-zero is a valid ifreq.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().take(15).zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    request
}

#[cfg(test)]
#[path = "tap_tests.rs"]
mod tests;
