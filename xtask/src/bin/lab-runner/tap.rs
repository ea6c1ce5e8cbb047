//! TAP devices with several queues, which busybox's `tunctl` cannot make (Documentation/networking/tuntap.rst).

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd as _;

use anyhow::{Context as _, bail, ensure};

/// Makes the device, which stays, or takes it away.
pub fn run(name: &str, what: &str) -> anyhow::Result<()> {
    let stays = match what {
        "on" => 1,
        "off" => 0,
        _ => bail!("a TAP device is made `on` or `off`, not `{what}`"),
    };
    ensure!((1..=15).contains(&name.len()), "`{name}` is no name of an interface");
    let tun = File::options().read(true).write(true).open("/dev/net/tun").context("cannot open /dev/net/tun")?;
    // SAFETY: all bits zero is a valid request.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from.cast_signed();
    }
    let flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR | libc::IFF_MULTI_QUEUE;
    request.ifr_ifru.ifru_flags = libc::c_short::try_from(flags)?;
    // SAFETY: the request lives through the call.
    ensure!(unsafe { libc::ioctl(tun.as_raw_fd(), libc::TUNSETIFF, &raw mut request) } == 0, last("TUNSETIFF"));
    // SAFETY: takes a number.
    ensure!(unsafe { libc::ioctl(tun.as_raw_fd(), libc::TUNSETPERSIST, stays) } == 0, last("TUNSETPERSIST"));
    Ok(())
}

fn last(call: &str) -> String {
    format!("{call}: {}", io::Error::last_os_error())
}
