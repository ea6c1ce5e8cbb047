//! UDP datagrams that are handed over many at once (`UDP_SEGMENT` of udp(7)), so that the network card divides them where it
//! can.

use std::net::{SocketAddr, UdpSocket};
use std::os::fd::AsRawFd as _;
use std::time::Duration;

use anyhow::{Context as _, ensure};

use crate::Pattern;

const SILENCE: Duration = Duration::from_secs(30);
/// Fits an MTU of 1500 behind an IPv6 header.
const SEGMENT_BYTES: usize = 1400;
/// Datagrams in a message: less than 64 KiB, and what a receiver's buffer holds in any case.
const SEGMENTS: usize = 40;

/// Receives so many messages on an address, each as its datagrams, and answers each with one.
pub fn serve(address: &str, count: u32) -> anyhow::Result<()> {
    let socket = socket(address.parse().with_context(|| format!("{address} is no address with a port"))?)?;
    let (mut theirs, mut ours) = (Pattern::new(), Pattern::new());
    for nth in 0..count {
        if nth == 0 {
            let (_, from) = socket.peek_from(&mut [0; 1]).context("nobody sends anything")?;
            socket.connect(from)?;
        }
        receive(&socket, &mut theirs, nth)?;
        send(&socket, &mut ours, nth)?;
    }
    println!("served {count} messages of {SEGMENTS} datagrams");
    Ok(())
}

/// Sends so many messages to an address, one after the answer to the other.
pub fn call(address: &str, count: u32) -> anyhow::Result<()> {
    let address: SocketAddr = address.parse().with_context(|| format!("{address} is no address with a port"))?;
    let any = if address.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    let socket = socket(any.parse()?)?;
    socket.connect(address)?;
    let (mut theirs, mut ours) = (Pattern::new(), Pattern::new());
    for nth in 0..count {
        send(&socket, &mut ours, nth)?;
        receive(&socket, &mut theirs, nth)?;
    }
    println!("called with {count} messages of {SEGMENTS} datagrams");
    Ok(())
}

fn socket(address: SocketAddr) -> anyhow::Result<UdpSocket> {
    let socket = UdpSocket::bind(address).with_context(|| format!("cannot bind to {address}"))?;
    socket.set_read_timeout(Some(SILENCE))?;
    let bytes = libc::c_int::try_from(SEGMENT_BYTES)?;
    // SAFETY: the call reads one int.
    let set = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_UDP,
            libc::UDP_SEGMENT,
            (&raw const bytes).cast(),
            size_of_val(&bytes) as libc::socklen_t,
        )
    };
    ensure!(set == 0, "the kernel divides no datagrams: {}", std::io::Error::last_os_error());
    Ok(socket)
}

fn send(socket: &UdpSocket, pattern: &mut Pattern, nth: u32) -> anyhow::Result<()> {
    let mut message = vec![0; SEGMENTS * SEGMENT_BYTES];
    pattern.fill(&mut message);
    let sent = socket.send(&message).with_context(|| format!("cannot send message {nth}"))?;
    ensure!(sent == message.len(), "{sent} bytes of message {nth} were sent");
    Ok(())
}

fn receive(socket: &UdpSocket, pattern: &mut Pattern, nth: u32) -> anyhow::Result<()> {
    let mut message = vec![0; SEGMENTS * SEGMENT_BYTES];
    pattern.fill(&mut message);
    let mut got = vec![0; message.len()];
    for (at, want) in message.chunks(SEGMENT_BYTES).enumerate() {
        let len = socket.recv(&mut got).with_context(|| format!("no datagram {at} of message {nth}"))?;
        ensure!(got[..len] == *want, "datagram {at} of message {nth} is not what was sent");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_come_as_their_datagrams() {
        for local in ["127.0.0.1:0", "[::1]:0"] {
            let Ok(free) = UdpSocket::bind(local) else { continue };
            let address = free.local_addr().unwrap().to_string();
            drop(free);
            std::thread::scope(|scope| {
                let server = scope.spawn(|| serve(&address, 3));
                std::thread::sleep(Duration::from_millis(100));
                call(&address, 3).unwrap();
                server.join().unwrap().unwrap();
            });
        }
    }

    #[test]
    fn a_datagram_that_is_not_the_next_one_is_noticed() {
        let server = UdpSocket::bind("127.0.0.1:0").unwrap();
        let caller = UdpSocket::bind("127.0.0.1:0").unwrap();
        caller.send_to(&[0; SEGMENT_BYTES], server.local_addr().unwrap()).unwrap();
        let error = receive(&server, &mut Pattern::new(), 0).unwrap_err().to_string();
        assert!(error.contains("is not what was sent"), "{error}");
    }
}
