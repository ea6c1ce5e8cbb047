//! The back ends for plain frames, their own code on the strict double of frame devices and streams.
#![cfg(target_os = "linux")]

mod net;

use std::collections::BTreeSet;
use std::os::unix::net::UnixDatagram;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use devices::virtio::net::{HEADER_BYTES, NetError, Received, Sent};
use devices::virtio::queue::GuestRange;
use devices::wake::Wake;
use devices_host::poll::{PollFd, poll};
use devices_host::sys::{Errno, Sys};
use net::{FACTS, NAME, Rig, frame, ranges};
use vm_memory::{Bytes, GuestAddress};
use zvmm::hypervisor::frames::{FrameDevice, LinkError, LinkState};
use zvmm::hypervisor::illumos_kvm::open_link;
use zvmm_double::links::Links;
use zvmm_double::{DoubleSys, Host, Injecting, Injection, Mutating, Privilege, Zone};

const BOTH: [FrameDevice; 2] = [FrameDevice::Vnd, FrameDevice::Dlpi];

#[test]
fn frames_of_every_size_go_both_ways_unchanged() {
    for device in BOTH {
        let rig = Rig::new(device);
        let link = rig.open().unwrap();
        assert_eq!((link.mac(), link.mtu()), (Some(FACTS.mac), FACTS.mtu));
        let mut end = link.clone().end();
        for len in [14, 15, 60, 61, 1514, 1518] {
            let sent = frame(len, len as u8);
            assert_eq!(rig.send(&mut end, &sent, 1), Ok(Sent::Done));
            assert_eq!(rig.arrived(), Some(sent.clone()), "{device:?}, {len} bytes out");
            rig.cable.send(&sent).unwrap();
            for pieces in [1, 7] {
                // Into buffers that hold all of it, and into some that leave the rest to the spill buffer.
                for room in [2048, len / 2] {
                    if (pieces, room) != (1, 2048) {
                        rig.cable.send(&sent).unwrap();
                    }
                    assert_eq!(rig.receive(&mut end, room, pieces), Ok(Some(sent.clone())), "{device:?}, {len} in");
                }
            }
        }
        assert_eq!(rig.receive(&mut end, 2048, 1), Ok(None));
        drop((end, link));
        rig.assert_kept();
    }
}

#[test]
fn a_frame_in_more_pieces_than_a_call_takes_is_one_frame_still() {
    for device in BOTH {
        let rig = Rig::new(device);
        let mut end = rig.open().unwrap().end();
        for pieces in [31, 32, 33, 512] {
            let sent = frame(1200, pieces as u8);
            assert_eq!(rig.send(&mut end, &sent, pieces), Ok(Sent::Done));
            assert_eq!(rig.arrived(), Some(sent.clone()), "{device:?}, {pieces} pieces");
            rig.cable.send(&sent).unwrap();
            assert_eq!(rig.receive(&mut end, 1100, pieces), Ok(Some(sent)), "{device:?}, {pieces} pieces");
        }
        assert_eq!(rig.arrived(), None, "nothing went twice");
        drop(end);
        rig.assert_kept();
    }
}

/// As a card that checks its source hands them over.
#[test]
fn a_frame_whose_addresses_were_looked_at_goes_with_those() {
    for device in BOTH {
        let rig = Rig::new(device);
        let mut end = rig.open().unwrap().end();
        let sent = frame(1200, 9);
        // What the guest makes of the addresses meanwhile is not sent.
        rig.ram.write_slice(&frame(1200, 9)[12..], GuestAddress(0x2000)).unwrap();
        let addresses = sent[..12].try_into().unwrap();
        for pieces in [1, 31, 32, 33, 500] {
            let rest = ranges(0x2000, 1188, pieces);
            assert_eq!(end.backend.send_from(&rig.ram, &[0; HEADER_BYTES], &addresses, &rest), Ok(Sent::Done));
            assert_eq!(rig.arrived(), Some(sent.clone()), "{device:?}, {pieces} pieces");
        }
        assert_eq!(end.backend.send_from(&rig.ram, &[0; HEADER_BYTES], &addresses, &[]), Err(NetError::Host(34)));
        assert_eq!(rig.arrived(), None);
        drop(end);
        rig.assert_kept();
    }
}

#[test]
fn frames_that_are_none_or_too_long_are_lost_and_those_behind_them_go() {
    for device in BOTH {
        let rig = Rig::new(device);
        let mut end = rig.open().unwrap().end();
        for len in [0, 1, 13, 1519, 9000, 65_550, 66_000] {
            let result = rig.send(&mut end, &frame(len, 1), 1);
            assert_eq!(result, Err(NetError::Host(Errno::ERANGE.0)), "{device:?}, {len} bytes");
        }
        assert_eq!(rig.send(&mut end, &frame(60, 2), 1), Ok(Sent::Done));
        assert_eq!(rig.arrived(), Some(frame(60, 2)));
        // As the link's MTU was raised, or a neighbour does not keep to it.
        rig.cable.send(&frame(70_000, 3)).unwrap();
        rig.cable.send(&frame(60, 4)).unwrap();
        let mut spill = vec![0; 65_554];
        let received = end.backend.receive(&rig.ram, &mut [0; HEADER_BYTES], &[], &mut spill);
        match device {
            // Its driver gives up no frame that does not fit: the link is opened anew.
            FrameDevice::Vnd => assert!(received.is_err()),
            FrameDevice::Dlpi => {
                assert_eq!(received, Ok(Received::Frame { len_bytes: 70_000 }), "cut, and known to be");
                assert_eq!(rig.receive(&mut end, 2048, 1), Ok(Some(frame(60, 4))));
            }
        }
        drop(end);
        rig.assert_kept();
    }
}

#[test]
fn memory_that_is_not_the_guests_is_refused_and_nothing_goes() {
    for device in BOTH {
        let rig = Rig::new(device);
        let mut end = rig.open().unwrap().end();
        let outside = [GuestRange { addr: 0x40_0000, len: 60 }];
        assert!(end.backend.send(&rig.ram, &[0; HEADER_BYTES], &outside).is_err());
        assert_eq!(rig.arrived(), None);
        rig.cable.send(&frame(60, 1)).unwrap();
        let result = end.backend.receive(&rig.ram, &mut [0; HEADER_BYTES], &outside, &mut [0; 2048]);
        assert!(result.is_err());
        rig.cable.send(&frame(60, 2)).unwrap();
        assert!(rig.receive(&mut end, 2048, 1).unwrap().is_some());
        drop(end);
        rig.assert_kept();
    }
}

/// Counts wake-ups.
#[derive(Default)]
struct Main(AtomicUsize);

impl Wake for Main {
    fn wake(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

fn is_readable(fd: i32) -> bool {
    let mut fds = [PollFd::new(fd).readable(true)];
    poll(&mut fds, Some(0)).unwrap() > 0
}

#[test]
fn a_link_that_loses_its_carrier_says_so_and_says_nothing_otherwise() {
    for device in BOTH {
        let rig = Rig::new(device);
        let link = rig.open().unwrap();
        assert_eq!(link.look(0), LinkState::Up);
        let quiet = |what: &str| {
            assert!(!is_readable(link.events_fd()), "{device:?}: {what}");
            assert_eq!(link.deadline_ns(), None, "{device:?}: {what}");
        };
        quiet("while nothing happens");
        for up in [false, true, false, true] {
            rig.links.set_carrier(NAME, up);
            assert!(is_readable(link.events_fd()));
            assert_eq!(link.look(0), if up { LinkState::Up } else { LinkState::Down });
            quiet("once it was heard");
        }
        drop(link);
        rig.assert_kept();
    }
}

#[test]
fn a_link_that_is_gone_is_looked_for_and_its_ends_go_on_with_the_new_one() {
    for device in BOTH {
        let mut rig = Rig::new(device);
        let link = rig.open().unwrap();
        let main = Arc::new(Main::default());
        link.on_failure(main.clone());
        let (mut rx, mut tx) = (link.clone().end(), link.clone().end());
        let before = rx.ready.get();
        rig.links.remove(NAME);
        assert!(rig.send(&mut tx, &frame(60, 1), 1).is_err());
        assert!(rig.receive(&mut rx, 2048, 1).is_err());
        assert!(rig.send(&mut tx, &frame(60, 1), 1).is_err());
        assert_eq!(main.0.load(Ordering::Relaxed), 1, "one wake-up, whoever found out");
        assert_eq!(link.deadline_ns(), Some(0));
        let mut now_ns = devices_host::clock::monotonic_ns();
        assert_eq!(link.look(now_ns), LinkState::Gone);
        for _ in 0..3 {
            now_ns += 500_000_000;
            assert_eq!(link.look(now_ns), LinkState::Gone, "nothing to find yet");
        }
        assert!(link.deadline_ns().is_some_and(|at_ns| at_ns > now_ns));
        rig.plug();
        now_ns += 2_000_000_000;
        assert_eq!(link.look(now_ns), LinkState::Up);
        assert_eq!(link.deadline_ns(), None);
        assert_eq!(rig.send(&mut tx, &frame(60, 2), 1), Ok(Sent::Done));
        assert_eq!(rig.arrived(), Some(frame(60, 2)));
        rig.cable.send(&frame(60, 3)).unwrap();
        assert_ne!(rx.ready.get(), before, "what the worker waits for is the new one");
        assert!(is_readable(rx.ready.get()));
        assert_eq!(rig.receive(&mut rx, 2048, 1), Ok(Some(frame(60, 3))));
        rig.links.set_carrier(NAME, false);
        assert_eq!(link.look(now_ns), LinkState::Down);
        drop((rx, tx, link));
        rig.assert_kept();
    }
}

#[test]
fn a_watch_alone_finds_a_link_that_is_gone() {
    for device in BOTH {
        let rig = Rig::new(device);
        let link = rig.open().unwrap();
        rig.links.remove(NAME);
        assert!(is_readable(link.events_fd()));
        assert_eq!(link.look(0), LinkState::Gone);
        assert_eq!(link.events_fd(), -1, "nothing to hear any more");
        drop(link);
        rig.assert_kept();
    }
}

#[test]
fn a_link_that_is_full_has_its_worker_wait_whatever_its_descriptor_says() {
    for device in BOTH {
        let rig = Rig::new(device);
        let mut end = rig.open().unwrap().end();
        rig.links.set_full(NAME, true);
        for _ in 0..3 {
            assert_eq!(rig.send(&mut end, &frame(60, 1), 1), Ok(Sent::WouldBlock));
            let mut fds = [PollFd::new(end.ready.get()).writable(true)];
            assert_eq!(poll(&mut fds, Some(0)).unwrap(), 1, "as that of the driver");
            assert_eq!(end.ready.is_full(), device == FrameDevice::Vnd);
        }
        rig.links.set_full(NAME, false);
        assert_eq!(rig.send(&mut end, &frame(60, 1), 1), Ok(Sent::Done));
        assert!(!end.ready.is_full());
        drop(end);
        rig.assert_kept();
    }
}

#[test]
fn links_that_cannot_be_used_are_named_with_what_to_do() {
    let refused = |zone: Zone, device, name: &str, prepare: &dyn Fn(&Arc<dyn Sys>)| {
        let links = Links::new();
        let host = Host::new(links.drivers());
        let _cable = links.add(&host, NAME, FACTS).unwrap();
        let sys: Arc<dyn Sys> = DoubleSys::new(&host, zone);
        prepare(&sys);
        match open_link(&sys, device, name).err().unwrap() {
            LinkError::Config(line) => line,
            other => panic!("{other:?}"),
        }
    };
    let nothing = |_: &Arc<dyn Sys>| {};
    let kvm = || Zone::kvm(1);
    for device in BOTH {
        for name in ["", "..", "a/b", "net 0", "-net0", "n\u{e9}t0", &"n".repeat(32)] {
            assert_eq!(
                refused(kvm(), device, name, &nothing),
                format!("'{name}' is no name of a link: 1 to 31 letters, digits, '-', '_' and '.', no sign first")
            );
        }
        let missing = refused(kvm(), device, "net7", &nothing);
        assert_eq!(missing, "the zone has no link net7: `dladm show-link` lists those it has");
    }
    let without = || kvm().without(Privilege::NetRawAccess);
    let denied = refused(without(), FrameDevice::Vnd, NAME, &nothing);
    assert_eq!(denied, "/dev/vnd/net0: Not owner: it takes the privilege net_rawaccess");
    let denied = refused(without(), FrameDevice::Dlpi, NAME, &nothing);
    assert_eq!(denied, "/dev/net/net0: Permission denied: it takes the privilege net_rawaccess");
    // Somebody else has the link by the other kind of device, so that the zone's own was never made.
    let taken = |device| move |sys: &Arc<dyn Sys>| std::mem::forget(open_link(sys, device, NAME).unwrap());
    let busy = refused(kvm(), FrameDevice::Dlpi, NAME, &taken(FrameDevice::Vnd));
    assert_eq!(busy, "link net0 is in use by somebody else");
    let busy = refused(kvm(), FrameDevice::Vnd, NAME, &taken(FrameDevice::Dlpi));
    let hint = "`vndadm create -z ZONE net0` in the global zone makes it";
    assert_eq!(busy, format!("the zone has no frame device /dev/vnd/net0: {hint}"));
    let busy = refused(Zone::global(), FrameDevice::Vnd, NAME, &taken(FrameDevice::Dlpi));
    assert_eq!(busy, "link net0 is in use by somebody else");
}

/// The calls of a life on a link, each made to fail with each error in turn: the life ends with an error or goes on without
/// one, and what was open is closed.
#[test]
fn every_call_may_fail_and_nothing_is_left_behind() {
    let errnos = ["EPERM", "EIO", "ENXIO", "EAGAIN", "ENOMEM", "EBUSY", "EINVAL", "ENOSR"];
    let calls = [
        (FrameDevice::Vnd, vec!["link", "open", "VND_IOC_GETMINTU", "VND_IOC_GETMAXTU", "VND_IOC_SETRXBUF"]),
        (FrameDevice::Vnd, vec!["VND_IOC_SETTXBUF", "VND_IOC_FRAMEIO_READ", "VND_IOC_FRAMEIO_WRITE"]),
        (FrameDevice::Dlpi, vec!["link", "open", "DLIOCRAW"]),
    ];
    let every = |device, call: &str, moment: usize| {
        for errno in errnos {
            let rig = Rig::new(device);
            let injection: Injection = format!("{call}:{moment}:{errno}").parse().unwrap();
            let sys = Injecting::new(rig.process.clone(), vec![injection]);
            let _ = rig.live(&(sys as Arc<dyn Sys>));
            rig.assert_kept();
        }
    };
    for (device, calls) in calls {
        for call in calls {
            every(device, call, 1);
        }
    }
    for moment in 1..=9 {
        every(FrameDevice::Dlpi, "putmsg", moment);
        every(FrameDevice::Dlpi, "getmsg", moment);
        every(FrameDevice::Dlpi, "poll", moment);
    }
    for device in BOTH {
        every(device, "fcntl", 1);
        every(device, "fcntl", 2);
        every(device, "open", 2);
    }
    // A signal interrupts and changes nothing.
    for (device, call) in
        [(FrameDevice::Vnd, "VND_IOC_FRAMEIO_WRITE"), (FrameDevice::Dlpi, "putmsg"), (FrameDevice::Dlpi, "getmsg")]
    {
        let rig = Rig::new(device);
        let after = if device == FrameDevice::Vnd { 1 } else { 9 };
        let injection: Injection = format!("{call}:{after}x3:EINTR").parse().unwrap();
        let sys = Injecting::new(rig.process.clone(), vec![injection]);
        assert_eq!(rig.live(&(sys as Arc<dyn Sys>)), Ok(()), "{call}");
        rig.assert_kept();
    }
}

/// Damages to the back ends' calls, and the rule that notices each.
#[test]
fn the_double_notices_what_is_wrong_with_a_call() {
    let vnd = [
        ("drop:VND_IOC_GETMINTU:1", "vnd-limits-asked"),
        ("drop:VND_IOC_SETRXBUF:1", "vnd-buffers-set"),
        ("drop:VND_IOC_SETTXBUF:1", "vnd-buffers-set"),
        ("resize=-8:VND_IOC_SETRXBUF:1", "vnd-argument"),
        ("resize=8:VND_IOC_GETMAXTU:1", "vnd-argument"),
        ("kind:VND_IOC_SETTXBUF:1", "vnd-argument"),
        ("bytes=0+0001000000000000:VND_IOC_SETTXBUF:1", "vnd-buffer-room"),
        ("bytes=12+05000000:VND_IOC_SETRXBUF:1", "vnd-errno-clear"),
        ("drop:fcntl:1", "vnd-nonblocking"),
        ("bytes=0+02000000:VND_IOC_FRAMEIO_WRITE:1", "vnd-version"),
        ("bytes=4+01000000:VND_IOC_FRAMEIO_WRITE:1", "vnd-one-frame"),
        ("bytes=8+21000000:VND_IOC_FRAMEIO_WRITE:1", "vnd-vectors"),
        ("resize=-24:VND_IOC_FRAMEIO_WRITE:1", "vnd-vectors"),
        ("resize=-60:VND_IOC_FRAMEIO_WRITE:1", "vnd-argument"),
        ("kind:VND_IOC_FRAMEIO_READ:1", "vnd-argument"),
        ("bytes=24+0000000000000000:VND_IOC_FRAMEIO_WRITE:1", "vnd-vector"),
        ("bytes=16+1000000000000000:VND_IOC_FRAMEIO_WRITE:1", "vnd-memory"),
        ("bytes=24+0008000000000000:VND_IOC_FRAMEIO_WRITE:1", "vnd-limits-kept"),
        ("bytes=32+0100000000000000:VND_IOC_FRAMEIO_READ:1", "vnd-length-clear"),
        ("bytes=48+1000000000000000:VND_IOC_FRAMEIO_READ:1", "vnd-read-room"),
        ("drop:close:1", "sys-leak-handle"),
        ("duplicate:close:1", "sys-close-once"),
    ];
    let dlpi = [
        ("duplicate:putmsg:1", "dlpi-answer-taken"),
        ("resize=-4:putmsg:2", "dlpi-size"),
        ("kind:putmsg:1", "dlpi-urgent"),
        ("kind:putmsg:3", "dlpi-urgent"),
        ("bytes=0+99000000:putmsg:2", "dlpi-primitive"),
        ("drop:DLIOCRAW:1", "dlpi-raw-first"),
        ("kind:DLIOCRAW:1", "dlpi-command"),
        ("bytes=4+06000000:putmsg:2", "dlpi-bind-mode"),
        ("bytes=4+01000000:putmsg:5", "dlpi-level"),
        ("bytes=4+02000000:putmsg:3", "dlpi-rx-only-first"),
        ("bytes=4+02000000:putmsg:4", "dlpi-fixups-first"),
        ("bytes=4+ff000000:putmsg:8", "dlpi-notes"),
        ("drop:fcntl:1", "dlpi-nonblocking"),
        ("resize=-60:putmsg:9", "dlpi-ethernet"),
        ("resize=-300:getmsg:1", "dlpi-control-room"),
        ("value=100:getmsg:9", "dlpi-read-room"),
        ("drop:close:1", "sys-leak-handle"),
    ];
    for cases in [&vnd[..], &dlpi] {
        let rules: BTreeSet<_> = cases.iter().map(|(_, rule)| rule).collect();
        assert!(rules.len() >= 15, "{} rules: {rules:?}", rules.len());
    }
    let cases =
        vnd.iter().map(|case| (FrameDevice::Vnd, case)).chain(dlpi.iter().map(|case| (FrameDevice::Dlpi, case)));
    for (device, (mutation, rule)) in cases {
        let rig = Rig::new(device);
        let sys = Mutating::new(rig.process.clone(), vec![mutation.parse().unwrap()]);
        let _ = rig.live(&(sys as Arc<dyn Sys>));
        let broken = rig.broken();
        assert!(broken.contains(rule), "{device:?} {mutation}: {broken:?}");
    }
}

/// Damages that break no rule, as the driver cannot know what was meant: who is at the other end of the cable notices.
#[test]
fn the_other_end_notices_frames_that_are_lost_doubled_or_cut() {
    for (device, mutation) in [
        (FrameDevice::Vnd, "drop:VND_IOC_FRAMEIO_WRITE:1"),
        (FrameDevice::Vnd, "duplicate:VND_IOC_FRAMEIO_WRITE:1"),
        (FrameDevice::Vnd, "drop:VND_IOC_FRAMEIO_READ:1"),
        (FrameDevice::Dlpi, "drop:putmsg:9"),
        (FrameDevice::Dlpi, "duplicate:putmsg:9"),
        (FrameDevice::Dlpi, "late:putmsg:9"),
        (FrameDevice::Dlpi, "bytes=14+ff:putmsg:9"),
    ] {
        let rig = Rig::new(device);
        let sys = Mutating::new(rig.process.clone(), vec![mutation.parse().unwrap()]);
        assert!(rig.live(&(sys as Arc<dyn Sys>)).is_err(), "{device:?} {mutation}");
    }
}

#[test]
fn a_link_of_an_old_kernel_is_used_as_it_is() {
    let rig = Rig::new(FrameDevice::Dlpi);
    rig.links.set_old(NAME);
    let sys: Arc<dyn Sys> = rig.process.clone();
    assert_eq!(rig.live(&sys), Ok(()));
    rig.assert_kept();
}

#[test]
fn a_zone_that_does_not_tell_of_its_links_can_use_them() {
    for device in BOTH {
        let rig = Rig::new(device);
        let silent = vec!["link:1+:EIO".parse::<Injection>().unwrap()];
        let sys: Arc<dyn Sys> = Injecting::new(rig.process.clone(), silent);
        let link = open_link(&sys, device, NAME).unwrap();
        assert_eq!((link.mac(), link.mtu()), (None, FACTS.mtu), "the MTU is the device's own limit");
        drop(link);
        assert_eq!(rig.live(&sys), Ok(()));
        rig.assert_kept();
    }
}

#[test]
fn a_device_of_one_s_own_is_attached_in_the_global_zone() {
    let links = Links::new();
    let host = Host::new(links.drivers());
    let cable: UnixDatagram = links.add(&host, NAME, FACTS).unwrap();
    // The zone has no such node: nobody made one.
    let mut zone = Zone::global();
    zone.nodes = vec!["/dev/vnd/ctl".to_owned(), "/dev/net/*".to_owned()];
    let process = DoubleSys::new(&host, zone);
    let sys: Arc<dyn Sys> = process.clone();
    let ram = net::ram();
    {
        let mut end = open_link(&sys, FrameDevice::Vnd, NAME).unwrap().end();
        ram.write_slice(&frame(60, 1), GuestAddress(0x1000)).unwrap();
        let sent = end.backend.send(&ram, &[0; HEADER_BYTES], &ranges(0x1000, 60, 1));
        assert_eq!(sent, Ok(Sent::Done));
        let mut got = [0; 2048];
        let len = cable.recv(&mut got).unwrap();
        assert_eq!(got[..len], frame(60, 1));
    }
    // To look for a node that is not there is no more than to learn that.
    let broken: Vec<_> =
        process.violations().into_iter().filter(|broken| broken.rule.name != "sys-node-in-zone").collect();
    assert!(broken.is_empty(), "{broken:?}");
    assert!(process.leaks().is_empty());
}
