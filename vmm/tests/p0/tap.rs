//! A network namespace with one TAP device, whose other end is the kernel: it answers ARP and ping by itself.

use std::io;
use std::mem;

/// Name of the TAP device in the namespace.
pub const NAME: &str = "tap0";
/// The kernel's address on it, with a netmask of 24 bits (RFC 5737: for documentation).
pub const HOST_ADDRESS: &str = "192.0.2.1";

/// Moves this process into a fresh network namespace and makes the TAP device there. For a process between fork and
/// exec: system calls only.
pub fn enter() -> io::Result<()> {
    // SAFETY: changes only this process.
    if unsafe { libc::unshare(libc::CLONE_NEWNET) } != 0 {
        // Not root: in a user namespace of its own, this process may make networks.
        // SAFETY: as above.
        check(unsafe { libc::unshare(libc::CLONE_NEWUSER | libc::CLONE_NEWNET) })?;
    }
    let tun = attach(libc::O_CLOEXEC)?;
    // Else it would go with this file descriptor, before anyone attached to it.
    // SAFETY: takes a number.
    check(unsafe { libc::ioctl(tun, libc::TUNSETPERSIST, 1) })?;

    // SAFETY: takes numbers.
    let socket = check(unsafe { libc::socket(libc::AF_INET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0) })?;
    for (call, address) in [(libc::SIOCSIFADDR as _, [192, 0, 2, 1]), (libc::SIOCSIFNETMASK as _, [255, 255, 255, 0])] {
        let mut request = self::request();
        // SAFETY: all bits zero is a valid address structure.
        let mut inet: libc::sockaddr_in = unsafe { mem::zeroed() };
        inet.sin_family = libc::AF_INET as libc::sa_family_t;
        inet.sin_addr.s_addr = u32::from_ne_bytes(address);
        // SAFETY: both address structures are plain bytes of the same size.
        request.ifr_ifru.ifru_addr = unsafe { mem::transmute::<libc::sockaddr_in, libc::sockaddr>(inet) };
        // SAFETY: the request lives through the call.
        check(unsafe { libc::ioctl(socket, call, &raw mut request) })?;
    }
    let mut request = self::request();
    request.ifr_ifru.ifru_flags = libc::IFF_UP as libc::c_short;
    // SAFETY: the request lives through the call.
    check(unsafe { libc::ioctl(socket, libc::SIOCSIFFLAGS as _, &raw mut request) })?;
    // The device is free for the program.
    // SAFETY: both descriptors are this function's own.
    unsafe {
        libc::close(socket);
        libc::close(tun);
    }
    Ok(())
}

/// Opens the TAP device, and makes it where there is none.
pub fn attach(flags: libc::c_int) -> io::Result<libc::c_int> {
    // SAFETY: the path is a C string.
    let tun = check(unsafe { libc::open(c"/dev/net/tun".as_ptr(), libc::O_RDWR | flags) })?;
    let mut request = request();
    request.ifr_ifru.ifru_flags = (libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR) as libc::c_short;
    // SAFETY: the request lives through the call.
    check(unsafe { libc::ioctl(tun, libc::TUNSETIFF, &raw mut request) })?;
    Ok(tun)
}

/// An interface request for the device.
fn request() -> libc::ifreq {
    // SAFETY: all bits zero is a valid request.
    let mut request: libc::ifreq = unsafe { mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(NAME.bytes()) {
        *to = from as libc::c_char;
    }
    request
}

fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}
