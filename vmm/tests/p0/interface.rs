//! What becomes of the TAP device of a network namespace while a program uses it.

use std::io;
use std::mem;
use std::os::fd::AsRawFd;

use super::tap::NAME;

/// Sets the TAP device of the calling thread's network up or down.
pub fn set_up(up: bool) -> io::Result<()> {
    // SAFETY: all bits zero is a valid request.
    let mut request: libc::ifreq = unsafe { mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(NAME.bytes()) {
        *to = from as libc::c_char;
    }
    request.ifr_ifru.ifru_flags = if up { libc::IFF_UP as libc::c_short } else { 0 };
    // SAFETY: takes numbers; then the request lives through the call, and the descriptor is this function's own.
    unsafe {
        let socket = check(libc::socket(libc::AF_INET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0))?;
        let result = check(libc::ioctl(socket, libc::SIOCSIFFLAGS as _, &raw mut request));
        libc::close(socket);
        result.map(drop)
    }
}

/// Deletes the TAP device, whoever has it open (rtnetlink(7), RTM_DELLINK).
pub fn delete() -> io::Result<()> {
    // SAFETY: takes numbers.
    let socket =
        check(unsafe { libc::socket(libc::AF_NETLINK, libc::SOCK_RAW | libc::SOCK_CLOEXEC, libc::NETLINK_ROUTE) })?;
    let name = std::ffi::CString::new(NAME)?;
    // A header of 16 bytes, and an ifinfomsg with the index of the interface.
    let mut message = [0u8; 32];
    message[0..4].copy_from_slice(&32u32.to_ne_bytes());
    message[4..6].copy_from_slice(&libc::RTM_DELLINK.to_ne_bytes());
    message[6..8].copy_from_slice(&((libc::NLM_F_REQUEST | libc::NLM_F_ACK) as u16).to_ne_bytes());
    // SAFETY: the name is a C string.
    message[20..24].copy_from_slice(&unsafe { libc::if_nametoindex(name.as_ptr()) }.to_ne_bytes());
    let mut answer = [0u8; 64];
    // SAFETY: the buffers have the lengths given, and the descriptor is this function's own.
    let done = unsafe {
        let sent = libc::send(socket, message.as_ptr().cast(), message.len(), 0);
        let got = libc::recv(socket, answer.as_mut_ptr().cast(), answer.len(), 0);
        libc::close(socket);
        sent == 32 && got > 0
    };
    // An acknowledgement is an error of 0.
    if done && answer[16..20] == [0; 4] { Ok(()) } else { Err(io::Error::other("RTM_DELLINK is refused")) }
}

/// Moves the calling thread into the network of process `pid`.
pub fn join(pid: u32) -> io::Result<()> {
    let network = std::fs::File::open(format!("/proc/{pid}/ns/net"))?;
    // SAFETY: the descriptor is open; only this thread moves.
    check(unsafe { libc::setns(network.as_raw_fd(), libc::CLONE_NEWNET) }).map(drop)
}

fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}
