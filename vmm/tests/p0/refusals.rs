//! What the configuration names and nobody can use is its fault (status 2); what the host lacks is the host's (3).

use std::io;
use std::path::Path;

use zvmm::config::VmConfig;

use crate::process::{Zvmm, guests};
use crate::{PROFILES, tap};

/// The TAP device, in use.
fn taken() -> io::Result<()> {
    tap::enter()?;
    // Inherited by the program, and so open as long as it.
    tap::attach(0).map(drop)
}

/// The TAP device, of another user.
fn forbidden() -> io::Result<()> {
    // Linux capabilities(7).
    const CAP_NET_ADMIN: libc::c_ulong = 12;
    tap::enter()?;
    let tun = tap::attach(libc::O_CLOEXEC)?;
    // SAFETY: takes numbers.
    unsafe {
        check(libc::ioctl(tun, libc::TUNSETOWNER, 12_345))?;
        libc::close(tun);
        check(libc::prctl(libc::PR_CAPBSET_DROP, CAP_NET_ADMIN, 0, 0, 0))
    }
}

/// The TAP device, and no way to open it.
fn without_tun() -> io::Result<()> {
    tap::enter()?;
    // SAFETY: changes only this process; all are C strings.
    unsafe {
        check(libc::unshare(libc::CLONE_NEWNS))?;
        let flags = libc::MS_REC | libc::MS_PRIVATE;
        check(libc::mount(c"none".as_ptr(), c"/".as_ptr(), c"none".as_ptr(), flags, std::ptr::null()))?;
        check(libc::mount(c"tmpfs".as_ptr(), c"/dev/net".as_ptr(), c"tmpfs".as_ptr(), 0, std::ptr::null()))
    }
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[test]
fn a_device_for_frames_is_refused_where_the_host_has_none() {
    let Some(guests) = guests() else { return };
    for key in ["vnd", "dlpi"] {
        let outcome = Zvmm::new(&guests, "exits").args(["--net", &format!("{key}=net0")]).run();
        outcome.ended_with(2);
        let line = format!("zvmm: net0: link net0 by {key}: only illumos has that; use tap=net0 on this host\n");
        assert_eq!(outcome.errors(), line);
        assert_eq!(outcome.output(), "", "no guest ran");
    }
}

#[test]
fn queues_in_the_kernel_are_refused_where_the_kernel_carries_none() {
    let Some(guests) = guests() else { return };
    if Path::new("/dev/vhost-net").exists() {
        println!("not shown here: this machine has /dev/vhost-net");
        return;
    }
    let net = format!("tap={},mac=52:54:00:12:34:56,vhost=on", tap::NAME);
    let outcome = Zvmm::new(&guests, "exits").args(["--net", &net]).with_tap().run();
    outcome.ended_with(3);
    let line = "zvmm: net0: /dev/vhost-net: No such file or directory: load the module vhost_net, or make the device \
                visible in this container\n";
    assert_eq!(outcome.errors(), line);
    assert_eq!(outcome.output(), "", "no guest ran");
}

#[test]
fn a_tap_device_that_cannot_be_used_is_refused_with_what_to_do() {
    let Some(guests) = guests() else { return };
    let net = |name: &str| format!("tap={name},mac=52:54:00:12:34:56");
    for (prepare, name, status, line) in [
        (
            tap::enter as fn() -> io::Result<()>,
            "none0",
            2,
            "zvmm: net0: TAP device none0 does not exist: create it with `ip tuntap add dev none0 mode tap`\n",
        ),
        (tap::enter, "lo", 2, "zvmm: net0: lo is not a TAP device with one queue\n"),
        (taken, tap::NAME, 2, "zvmm: net0: TAP device tap0 is in use by another process\n"),
        (
            forbidden,
            tap::NAME,
            2,
            "zvmm: net0: no permission to open TAP device tap0: it belongs to another user (`ip tuntap add dev tap0 mode \
             tap user ...`)\n",
        ),
        (without_tun, tap::NAME, 3, "zvmm: net0: cannot open /dev/net/tun: No such file or directory"),
    ] {
        let outcome = Zvmm::new(&guests, "exits").args(["--net", &net(name)]).after(prepare).run();
        outcome.ended_with(status);
        assert!(outcome.errors().starts_with(line) && outcome.errors().lines().count() == 1, "{line}: {outcome:?}");
        assert_eq!(outcome.output(), "", "no guest ran");
    }
}

#[test]
fn a_link_with_other_queues_than_it_has_and_one_that_is_none_are_refused_with_what_to_do() {
    let Some(guests) = guests() else { return };
    for (link, line) in [
        (
            "tap=tap0,queues=2",
            "tap0 is not a TAP device with several queues: create it with `ip tuntap add dev tap0 mode tap multi_queue`",
        ),
        ("tap=none0,queues=2", "TAP device none0 does not exist: create it with `ip tuntap add dev none0 mode tap`"),
        (
            "macvtap=tap0",
            "tap0 is not a macvtap interface: create it with `ip link add link ... name tap0 type macvtap`",
        ),
        ("fd=977", "file descriptor 977 is not open, or is one of the standard ones"),
    ] {
        let net = format!("{link},mac=52:54:00:12:34:56");
        let outcome = Zvmm::new(&guests, "exits").args(["--net", &net]).after(tap::enter).run();
        outcome.ended_with(2);
        assert_eq!(
            (outcome.errors(), outcome.output()),
            (format!("zvmm: net0: {line}\n").as_str(), ""),
            "no guest ran"
        );
    }
}

/// The options of a guest with everything that has ports, and a debug port.
fn crowded(profile: &str, port: usize) -> [String; 9] {
    let words = ["--profile", profile, "--serial=com2=null", "--serial=com3=null", "--serial=com4=null", "--pvpanic"];
    let mut all = words.map(str::to_owned).to_vec();
    all.extend(["--kvmclock=off".to_owned(), "--on-reset=exit".to_owned(), format!("--debug-port=null,port={port}")]);
    all.try_into().expect("nine words")
}

#[test]
fn every_port_that_a_debug_port_may_have_is_free() {
    let Some(guests) = guests() else { return };
    for profile in PROFILES {
        let json = format!(
            r#"{{"profile": "{profile}", "boot": {{"kernel": "k"}}, "pvpanic": true, "kvmclock": false,
            "serial": {{"com1": "stdio", "com2": "null", "com3": "null", "com4": "null"}},
            "debug_port": {{"backend": "null", "port": 233}}}}"#
        );
        let mut config = VmConfig::from_json(Path::new("vm.json"), &json).expect("a configuration");
        let mut is_free = |port: u16| {
            config.debug_port.as_mut().expect("a debug port").port = port;
            config.check().is_ok()
        };
        let free: Vec<bool> = (0..=u16::MAX).map(&mut is_free).collect();
        let at = |port: usize| free.get(port).copied().unwrap_or_default();
        // The first and the last port of every range that is called free: what lies beside it is not.
        let borders = (1..free.len()).filter(|&port| at(port) && !(at(port - 1) && at(port + 1)));
        let mut tried = 0;
        for port in borders {
            let words = crowded(profile, port);
            let outcome = Zvmm::new(&guests, "exits").args(words.each_ref().map(String::as_str)).run();
            outcome.ended_with(5);
            tried += 1;
        }
        assert!(tried > 10, "{profile}: {tried}");
    }
}
