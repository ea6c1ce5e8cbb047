//! A process on its way into a zone, between fork and exec: system calls only, nothing allocated.
//!
//! It gets a mount namespace of its own, in which the zone's root has what the brand mounts there, and where the zone has links
//! a network namespace, in which the global zone makes them.

use std::ffi::{CStr, CString};
use std::io;

/// What the zone has of the global zone: the file or folder there, and here.
pub struct Mount {
    pub from: CString,
    pub to: CString,
    /// Nobody in the zone can change it.
    pub read_only: bool,
}

/// What it takes to enter a zone.
pub struct Way {
    pub root: CString,
    pub mounts: Vec<Mount>,
    /// Names of TAP interfaces.
    pub links: Vec<CString>,
    /// Where the zone is told of its links: what a door of the zone is on illumos is a file system on Linux.
    pub links_told: CString,
}

/// Moves this process into the zone.
pub fn enter(way: &Way) -> io::Result<()> {
    // Whoever plays the global zone may be killed, and a guest without one would run for ever.
    // SAFETY: changes only this process.
    check(unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) })?;
    // One of the network takes the kernel longer than everything else here.
    let network = if way.links.is_empty() { 0 } else { libc::CLONE_NEWNET };
    let namespaces = libc::CLONE_NEWNS | network;
    // SAFETY: changes only this process.
    if unsafe { libc::unshare(namespaces) } != 0 {
        // Not root: in a user namespace of its own, this process may mount and make networks.
        // SAFETY: as above.
        check(unsafe { libc::unshare(namespaces | libc::CLONE_NEWUSER) })?;
    }
    // What is mounted here is seen by nobody else.
    mount(c"none", c"/", libc::MS_REC | libc::MS_PRIVATE)?;
    for Mount { from, to, read_only } in &way.mounts {
        mount(from, to, libc::MS_BIND)?;
        if *read_only {
            mount(from, to, libc::MS_BIND | libc::MS_REMOUNT | libc::MS_RDONLY)?;
        }
    }
    for link in &way.links {
        make_link(link)?;
    }
    if network != 0 {
        let kind = c"sysfs".as_ptr();
        // SAFETY: all are C strings.
        check(unsafe { libc::mount(kind, way.links_told.as_ptr(), kind, libc::MS_RDONLY, std::ptr::null()) })?;
    }
    // SAFETY: both paths are C strings.
    unsafe {
        check(libc::chroot(way.root.as_ptr()))?;
        check(libc::chdir(c"/".as_ptr()))?;
    }
    Ok(())
}

fn mount(from: &CStr, to: &CStr, flags: libc::c_ulong) -> io::Result<()> {
    // SAFETY: all are C strings.
    check(unsafe { libc::mount(from.as_ptr(), to.as_ptr(), c"none".as_ptr(), flags, std::ptr::null()) }).map(drop)
}

/// Makes a TAP interface that stays when nobody has it open.
fn make_link(name: &CStr) -> io::Result<()> {
    // SAFETY: all bits zero is a valid request.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(name.to_bytes()) {
        *to = *from as libc::c_char;
    }
    request.ifr_ifru.ifru_flags = (libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR) as libc::c_short;
    // SAFETY: the path is a C string, the request lives through the calls, and the descriptors are this function's own.
    unsafe {
        let tun = check(libc::open(c"/dev/net/tun".as_ptr(), libc::O_RDWR | libc::O_CLOEXEC))?;
        check(libc::ioctl(tun, libc::TUNSETIFF, &raw mut request))?;
        check(libc::ioctl(tun, libc::TUNSETPERSIST, 1))?;
        let socket = check(libc::socket(libc::AF_INET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0))?;
        request.ifr_ifru.ifru_flags = libc::IFF_UP as libc::c_short;
        check(libc::ioctl(socket, libc::SIOCSIFFLAGS as _, &raw mut request))?;
        libc::close(socket);
        libc::close(tun);
    }
    Ok(())
}

fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}
