//! Ethernet frames that no stack would send: to addresses that nobody has, and with any VLAN's tag.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};

use anyhow::{Context as _, ensure};

/// The local experimental EtherType (IEEE 802): nobody answers.
const TYPE: u16 = 0x88b5;
/// The EtherType of a VLAN tag.
const TAG: u16 = 0x8100;
/// The least an Ethernet frame has, without its checksum.
const FRAME_BYTES: usize = 60;

/// Sends `count` frames to address `to` out of an interface; VLAN 0 is no tag at all.
pub fn send(interface: &str, to: &str, vlan: u16, count: u32) -> anyhow::Result<()> {
    let name = CString::new(interface)?;
    // SAFETY: the name is a string that ends with a zero byte.
    let index = unsafe { libc::if_nametoindex(name.as_ptr()) };
    ensure!(index != 0, "no interface {interface}: {}", io::Error::last_os_error());
    // Protocol 0: it is sent from only.
    // SAFETY: takes numbers only.
    let socket = unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0) };
    ensure!(socket >= 0, "no packet socket: {}", io::Error::last_os_error());
    // SAFETY: the call has just made it, and nobody else has it.
    let socket = unsafe { OwnedFd::from_raw_fd(socket) };
    // SAFETY: all its fields are numbers.
    let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    address.sll_family = u16::try_from(libc::AF_PACKET)?;
    address.sll_ifindex = i32::try_from(index)?;
    let frame = frame(parse(to)?, vlan);
    for _ in 0..count {
        // SAFETY: frame and address are valid for as many bytes as are named.
        let sent = unsafe {
            libc::sendto(
                socket.as_raw_fd(),
                frame.as_ptr().cast(),
                frame.len(),
                0,
                (&raw const address).cast(),
                size_of::<libc::sockaddr_ll>() as libc::socklen_t,
            )
        };
        ensure!(usize::try_from(sent) == Ok(frame.len()), "cannot send: {}", io::Error::last_os_error());
    }
    println!("sent {count} frames");
    Ok(())
}

fn parse(address: &str) -> anyhow::Result<[u8; 6]> {
    let bytes: Vec<u8> = address.split(':').map(|byte| u8::from_str_radix(byte, 16)).collect::<Result<_, _>>()?;
    bytes.try_into().ok().with_context(|| format!("{address} is no Ethernet address"))
}

fn frame(to: [u8; 6], vlan: u16) -> Vec<u8> {
    // The sender's address has the bit of those that are given locally.
    let mut frame = [to, [2, 0, 0, 0, 0, 1]].concat();
    if vlan != 0 {
        frame.extend([TAG.to_be_bytes(), vlan.to_be_bytes()].concat());
    }
    frame.extend(TYPE.to_be_bytes());
    frame.resize(FRAME_BYTES, 0);
    frame
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_has_its_tag_between_addresses_and_type() {
        let to = parse("52:54:00:12:34:56").unwrap();
        assert_eq!(to, [0x52, 0x54, 0, 0x12, 0x34, 0x56]);
        assert_eq!(frame(to, 0)[12..14], [0x88, 0xb5]);
        assert_eq!(frame(to, 7)[12..18], [0x81, 0, 0, 7, 0x88, 0xb5]);
        assert_eq!((frame(to, 0).len(), frame(to, 7).len()), (60, 60));
    }

    #[test]
    fn what_is_no_address_is_refused() {
        for text in ["", "52:54:00:12:34", "52:54:00:12:34:56:78", "52:54:00:12:34:xx", "52:54:00:12:34:156"] {
            assert!(parse(text).is_err(), "{text}");
        }
    }
}
