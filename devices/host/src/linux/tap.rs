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

impl Device {
    pub(crate) fn open(name: &str) -> Result<Self, TapError> {
        let interface = CString::new(name).map_err(|_| TapError::BadName(name.to_owned()))?;
        // TUNSETIFF would create the device for a privileged user: without address, down, and gone with us.
        // SAFETY: the name is a C string.
        if unsafe { libc::if_nametoindex(interface.as_ptr()) } == 0 {
            return Err(TapError::Missing(name.to_owned()));
        }
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_NONBLOCK)
            .open("/dev/net/tun")
            .map_err(TapError::NoTun)?;
        let mut request = request(name);
        request.ifr_ifru.ifru_flags = (libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR) as libc::c_short;
        // SAFETY: the request is a valid ifreq with a terminated name.
        check(unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF, &request) }).map_err(|error| {
            match error.raw_os_error() {
                Some(libc::EBUSY) => TapError::InUse(name.to_owned()),
                Some(libc::EPERM | libc::EACCES) => TapError::Permission(name.to_owned()),
                Some(libc::EINVAL) => TapError::NotATap(name.to_owned()),
                _ => TapError::Call { name: name.to_owned(), call: "TUNSETIFF", error },
            }
        })?;
        let header_bytes = HEADER_BYTES as libc::c_int;
        // SAFETY: the call reads one int.
        check(unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETVNETHDRSZ, &header_bytes) })
            .map_err(|error| TapError::Call { name: name.to_owned(), call: "TUNSETVNETHDRSZ", error })?;
        let device = Self(file);
        // The device keeps the offloads of its last user.
        device.set_offloads(Offloads::default()).map_err(|error| TapError::Call {
            name: name.to_owned(),
            call: "TUNSETOFFLOAD",
            error,
        })?;
        Ok(device)
    }

    pub(crate) fn try_clone(&self) -> io::Result<Self> {
        self.0.try_clone().map(Self)
    }

    pub(crate) fn set_offloads(&self, offloads: Offloads) -> io::Result<()> {
        let Offloads { csum, tso4, tso6, ecn } = offloads;
        let flags = [
            (csum, libc::TUN_F_CSUM),
            (csum && tso4, libc::TUN_F_TSO4),
            (csum && tso6, libc::TUN_F_TSO6),
            // The kernel takes ECN only together with a segmentation it applies to.
            (csum && ecn && (tso4 || tso6), libc::TUN_F_TSO_ECN),
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
            // The kernel takes the device away from who has it open.
            Err(error) if error.raw_os_error() == Some(libc::EBADFD) => return Ok(Interface::Gone),
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
mod tests {
    use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

    use super::*;
    use crate::iovec::{FrameError, GuestRange};
    use crate::poll::{PollFd, poll};
    use crate::tap::{InterfaceEvents, Tap};

    /// Moves the calling thread into a network of its own, with the TAP device `zt0` in it; `false` with the reason
    /// on stderr where the user may not.
    fn own_network() -> bool {
        // SAFETY: takes a number; only this thread moves.
        if let Err(error) = check(unsafe { libc::unshare(libc::CLONE_NEWNET) }) {
            eprintln!("skipped: a network namespace of its own: {error}");
            return false;
        }
        make()
    }

    /// Makes `zt0` in the calling thread's network, and sets it up; `false` as above.
    fn make() -> bool {
        let file = match OpenOptions::new().read(true).write(true).open("/dev/net/tun") {
            Ok(file) => file,
            Err(error) => {
                eprintln!("skipped: /dev/net/tun: {error}");
                return false;
            }
        };
        let mut request = request("zt0");
        request.ifr_ifru.ifru_flags = (libc::IFF_TAP | libc::IFF_NO_PI) as libc::c_short;
        // SAFETY: valid requests; then the interface is brought up through a socket of this network.
        unsafe {
            check(libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF, &request)).unwrap();
            check(libc::ioctl(file.as_raw_fd(), libc::TUNSETPERSIST, 1)).unwrap();
            let socket = OwnedFd::from_raw_fd(check(libc::socket(libc::AF_INET, libc::SOCK_DGRAM, 0)).unwrap());
            request.ifr_ifru.ifru_flags = libc::IFF_UP as libc::c_short;
            check(libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS as _, &request)).unwrap();
        }
        true
    }

    /// A socket that sees and sends the frames of `zt0` from the host's side.
    fn host_side() -> OwnedFd {
        let protocol = (libc::ETH_P_ALL as u16).to_be();
        // SAFETY: valid arguments; the address is a whole sockaddr_ll.
        unsafe {
            let fd = check(libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_NONBLOCK, protocol.into()));
            let socket = OwnedFd::from_raw_fd(fd.unwrap());
            let mut address: libc::sockaddr_ll = std::mem::zeroed();
            address.sll_family = libc::AF_PACKET as u16;
            address.sll_protocol = protocol;
            address.sll_ifindex = libc::if_nametoindex(c"zt0".as_ptr()) as i32;
            let len = std::mem::size_of_val(&address) as u32;
            check(libc::bind(socket.as_raw_fd(), (&raw const address).cast(), len)).unwrap();
            socket
        }
    }

    /// An Ethernet frame of a private ether type, told from the host's own chatter by `mark`.
    fn frame(mark: u8, len: usize) -> Vec<u8> {
        let mut frame = vec![mark; len];
        frame[..12].copy_from_slice(&[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 2, 0, 0, 0, 0, 1]);
        frame[12..14].copy_from_slice(&[0x88, 0xb5]);
        frame
    }

    #[test]
    fn frames_go_both_ways_with_their_header() {
        if !own_network() {
            return;
        }
        let mut tap = Tap::open("zt0").unwrap();
        tap.set_offloads(Offloads { csum: true, tso4: true, tso6: true, ecn: true }).unwrap();
        let host = host_side();
        let mem = GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), 0x10000)]).unwrap();

        mem.write_slice(&frame(0x11, 200), GuestAddress(0x100)).unwrap();
        let ranges = [GuestRange { address: 0x100, len: 14 }, GuestRange { address: 0x10e, len: 186 }];
        assert_eq!(tap.send(&mem, &[0; HEADER_BYTES], ranges).unwrap(), 212);
        let mut bytes = [0u8; 2048];
        loop {
            poll(&mut [PollFd::new(host.as_raw_fd()).readable(true)], Some(5_000_000_000)).unwrap();
            // SAFETY: the buffer has the length given.
            let got = unsafe { libc::read(host.as_raw_fd(), bytes.as_mut_ptr().cast(), bytes.len()) };
            if check(got).unwrap() == 200 && bytes[14] == 0x11 {
                break;
            }
        }
        assert_eq!(bytes[..200], frame(0x11, 200));

        let sent = frame(0x22, 300);
        // SAFETY: the buffer has the length given.
        check(unsafe { libc::write(host.as_raw_fd(), sent.as_ptr().cast(), sent.len()) }).unwrap();
        let (mut header, mut spill) = ([0xee; HEADER_BYTES], [0; 2048]);
        loop {
            poll(&mut [PollFd::new(tap.as_raw_fd()).readable(true)], Some(5_000_000_000)).unwrap();
            let into = [GuestRange { address: 0x1000, len: 100 }];
            match tap.receive(&mem, &mut header, into, &mut spill) {
                Ok(312) if spill[0] == 0x22 => break,
                Ok(_) => {}
                Err(error) => panic!("{error}"),
            }
        }
        assert_eq!(header[0..2], [0, 0], "no offload was used");
        let mut received = vec![0; 100];
        mem.read_slice(&mut received, GuestAddress(0x1000)).unwrap();
        received.extend_from_slice(&spill[..200]);
        assert_eq!(received, sent);

        loop {
            match tap.receive(&mem, &mut header, [], &mut spill) {
                Ok(_) => {}
                Err(FrameError::Io(error)) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => panic!("{error}"),
            }
        }
    }

    #[test]
    fn a_tap_that_is_taken_missing_or_no_tap_is_named() {
        if !own_network() {
            return;
        }
        let message = |name| Tap::open(name).unwrap_err().to_string();
        let first = Tap::open("zt0").unwrap();
        assert_eq!(message("zt0"), "TAP device zt0 is in use by another process");
        drop(first);
        Tap::open("zt0").unwrap();
        assert_eq!(message("zt9"), "TAP device zt9 does not exist: create it with `ip tuntap add dev zt9 mode tap`");
        assert_eq!(message("lo"), "lo is not a TAP device with one queue");
    }

    /// Changes flags of the interface `name`, in the calling thread's network.
    fn set_up(name: &str, up: bool) {
        let mut request = request(name);
        request.ifr_ifru.ifru_flags = if up { libc::IFF_UP as libc::c_short } else { 0 };
        // SAFETY: a valid request.
        unsafe {
            let socket = OwnedFd::from_raw_fd(check(libc::socket(libc::AF_INET, libc::SOCK_DGRAM, 0)).unwrap());
            check(libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS as _, &request)).unwrap();
        }
    }

    /// Deletes `zt0`, as `ip link del` does (rtnetlink(7), RTM_DELLINK): whoever has it open loses it.
    fn delete() {
        // SAFETY: valid arguments; the message is a header and an ifinfomsg, 32 bytes in all.
        unsafe {
            let fd = check(libc::socket(libc::AF_NETLINK, libc::SOCK_RAW, libc::NETLINK_ROUTE)).unwrap();
            let socket = OwnedFd::from_raw_fd(fd);
            let mut message = [0u8; 32];
            message[0..4].copy_from_slice(&32u32.to_ne_bytes());
            message[4..6].copy_from_slice(&libc::RTM_DELLINK.to_ne_bytes());
            message[6..8].copy_from_slice(&((libc::NLM_F_REQUEST | libc::NLM_F_ACK) as u16).to_ne_bytes());
            message[20..24].copy_from_slice(&libc::if_nametoindex(c"zt0".as_ptr()).to_ne_bytes());
            check(libc::send(socket.as_raw_fd(), message.as_ptr().cast(), message.len(), 0)).unwrap();
            let mut answer = [0u8; 64];
            check(libc::recv(socket.as_raw_fd(), answer.as_mut_ptr().cast(), answer.len(), 0)).unwrap();
            assert_eq!(answer[16..20], [0; 4], "the kernel refuses");
        }
    }

    fn heard(events: &InterfaceEvents, limit_ns: u64) -> bool {
        let heard = poll(&mut [PollFd::new(events.as_raw_fd()).readable(true)], Some(limit_ns)).unwrap() > 0;
        events.clear();
        heard
    }

    #[test]
    fn an_interface_that_goes_down_comes_up_or_is_deleted_is_heard_of() {
        if !own_network() {
            return;
        }
        let tap = Tap::open("zt0").unwrap();
        let events = InterfaceEvents::listen().unwrap();
        let now = || events.interface_of(&tap).unwrap();
        assert_eq!(now(), Interface::Up);
        // The kernel still says that it is up, and then nothing more.
        while heard(&events, 50_000_000) {}
        for (up, expected) in [(false, Interface::Down), (true, Interface::Up)] {
            set_up("zt0", up);
            assert!(heard(&events, 5_000_000_000));
            assert_eq!(now(), expected);
        }
        // More than a socket's buffer holds: what was lost does not matter.
        for _ in 0..2000 {
            set_up("zt0", false);
            set_up("zt0", true);
        }
        set_up("zt0", false);
        assert!(heard(&events, 0));
        assert_eq!(now(), Interface::Down);
        while heard(&events, 0) {}
        delete();
        assert!(heard(&events, 5_000_000_000));
        assert_eq!(now(), Interface::Gone);
        // One of the same name is another one.
        assert!(make());
        let other = Tap::open("zt0").unwrap();
        assert_eq!((now(), events.interface_of(&other).unwrap()), (Interface::Gone, Interface::Up));
    }

    #[test]
    fn an_interface_that_was_moved_out_of_sight_is_taken_for_up() {
        if !own_network() {
            return;
        }
        let tap = Tap::open("zt0").unwrap();
        assert!(own_network(), "and another one");
        let events = InterfaceEvents::listen().unwrap();
        delete();
        assert_eq!(events.interface_of(&tap).unwrap(), Interface::Up);
    }
}
