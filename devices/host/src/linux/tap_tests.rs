//! TAP devices in networks of the tests' own.

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
    make_as("zt0", 0)
}

fn make_as(name: &str, flags: libc::c_int) -> bool {
    let file = match OpenOptions::new().read(true).write(true).open("/dev/net/tun") {
        Ok(file) => file,
        Err(error) => {
            eprintln!("skipped: /dev/net/tun: {error}");
            return false;
        }
    };
    let mut request = request(name);
    request.ifr_ifru.ifru_flags = (libc::IFF_TAP | libc::IFF_NO_PI | flags) as libc::c_short;
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
    host_side_of("zt0")
}

fn host_side_of(name: &str) -> OwnedFd {
    let protocol = (libc::ETH_P_ALL as u16).to_be();
    // SAFETY: valid arguments; the address is a whole sockaddr_ll.
    unsafe {
        let fd = check(libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_NONBLOCK, protocol.into()));
        let socket = OwnedFd::from_raw_fd(fd.unwrap());
        let mut address: libc::sockaddr_ll = std::mem::zeroed();
        address.sll_family = libc::AF_PACKET as u16;
        address.sll_protocol = protocol;
        address.sll_ifindex = index_of(name).unwrap() as i32;
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
    tap.set_offloads(Offloads { csum: true, tso4: true, tso6: true, ecn: true, uso: false }).unwrap();
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

/// What a TAP device says it has it takes, whatever else is left unfinished; and asked for what it has not it says so.
#[test]
fn udp_segments_are_taken_where_the_kernel_has_them() {
    if !own_network() {
        return;
    }
    let tap = Tap::open("zt0").unwrap();
    let all = Offloads { csum: true, tso4: true, tso6: true, ecn: true, uso: true };
    assert_eq!(tap.set_offloads(all).is_ok(), tap.has_udp_segments());
    // They need the checksum's offload, and are left out without.
    tap.set_offloads(Offloads { uso: true, ..Offloads::default() }).unwrap();
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

/// Makes a TAP device `mq0` with several queues in a network of the calling thread, and sets it up.
fn own_network_of_several() -> bool {
    own_network() && make_as("mq0", libc::IFF_MULTI_QUEUE)
}

/// A frame of UDP over IPv4 in the flow of this port.
fn datagram(port: u16) -> Vec<u8> {
    let mut frame = frame(0x33, 80);
    frame[12..14].copy_from_slice(&[8, 0]);
    frame[14..34].copy_from_slice(&[0x45, 0, 0, 66, 0, 0, 0, 0, 64, 17, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
    frame[34..36].copy_from_slice(&port.to_be_bytes());
    frame[36..42].copy_from_slice(&[0, 9, 0, 46, 0, 0]);
    frame
}

/// Sends a frame of each of 64 flows to `mq0`; how many come to each queue.
fn spread(taps: &mut [Tap]) -> Vec<usize> {
    let host = host_side_of("mq0");
    let mem = GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), 0x1000)]).unwrap();
    let count = |tap: &mut Tap| {
        let (mut header, mut spill, mut ours) = ([0; HEADER_BYTES], [0; 2048], 0);
        while tap.receive(&mem, &mut header, [], &mut spill).is_ok() {
            ours += usize::from(spill[42..50] == [0x33; 8]);
        }
        ours
    };
    // The host's own chatter is none of ours, and is in the way.
    for tap in taps.iter_mut() {
        count(tap);
    }
    for port in 1000..1064 {
        let frame = datagram(port);
        // SAFETY: the buffer has the length given.
        check(unsafe { libc::write(host.as_raw_fd(), frame.as_ptr().cast(), frame.len()) }).unwrap();
    }
    std::thread::sleep(std::time::Duration::from_millis(50));
    taps.iter_mut().map(count).collect()
}

#[test]
fn of_several_queues_those_that_are_attached_get_the_frames_and_all_can_send() {
    if !own_network_of_several() {
        return;
    }
    let mut taps = Tap::open_queues("mq0", 3).unwrap();
    assert_eq!(spread(&mut taps), [64, 0, 0]);
    for (queue, attached) in [(1, true), (2, true), (1, false)] {
        taps[queue].set_attached(attached).unwrap();
        let found = spread(&mut taps);
        assert_eq!(found.iter().sum::<usize>(), 64);
        let idle = if (queue, attached) == (1, false) { Some(1) } else { (queue == 1).then_some(2) };
        assert!(found.iter().enumerate().all(|(queue, count)| (*count == 0) == (idle == Some(queue))), "{found:?}");
    }
    assert_eq!(taps[1].set_attached(false).unwrap_err().raw_os_error(), Some(libc::EINVAL));
    let (host, mem) = (host_side_of("mq0"), GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), 0x1000)]).unwrap());
    for (mark, tap) in (0x40..).zip(&mut taps) {
        mem.write_slice(&frame(mark, 100), GuestAddress(0)).unwrap();
        tap.send(&mem, &[0; HEADER_BYTES], [GuestRange { address: 0, len: 100 }]).unwrap();
    }
    let (mut seen, mut bytes) = (Vec::new(), [0u8; 2048]);
    while seen.len() < 3 {
        assert!(poll(&mut [PollFd::new(host.as_raw_fd()).readable(true)], Some(5_000_000_000)).unwrap() > 0);
        // SAFETY: the buffer has the length given.
        let got = check(unsafe { libc::read(host.as_raw_fd(), bytes.as_mut_ptr().cast(), bytes.len()) }).unwrap();
        if got == 100 && bytes[12..14] == [0x88, 0xb5] {
            seen.push(bytes[20]);
        }
    }
    assert_eq!(seen, [0x40, 0x41, 0x42]);
}

#[test]
fn a_tap_with_one_queue_and_one_with_several_are_not_taken_for_each_other() {
    if !own_network_of_several() || !make() {
        return;
    }
    let several = |name| Tap::open_queues(name, 2).map(drop).unwrap_err().to_string();
    let hint = "is not a TAP device with several queues: create it with `ip tuntap add dev";
    assert_eq!(several("zt0"), format!("zt0 {hint} zt0 mode tap multi_queue`"));
    assert_eq!(several("lo"), format!("lo {hint} lo mode tap multi_queue`"));
    assert_eq!(several("zt9"), "TAP device zt9 does not exist: create it with `ip tuntap add dev zt9 mode tap`");
    assert_eq!(several("a/b"), Tap::open("a/b").unwrap_err().to_string());
    assert_eq!(Tap::open("mq0").unwrap_err().to_string(), "mq0 is not a TAP device with one queue");
    let taps = Tap::open_queues("mq0", 2).unwrap();
    assert_eq!(several("mq0"), "TAP device mq0 is in use by another process");
    drop(taps);
    assert_eq!(Tap::open_queues("mq0", 2).unwrap().len(), 2);
    assert_eq!(Tap::open_queues("zt0", 1).unwrap().len(), 1);
}

#[test]
fn descriptors_that_were_inherited_are_queues_of_one_device_or_refused() {
    if !own_network_of_several() || !make() {
        return;
    }
    let attach = |name: &str, flags: libc::c_int| {
        let file = OpenOptions::new().read(true).write(true).open("/dev/net/tun").unwrap();
        let mut request = request(name);
        request.ifr_ifru.ifru_flags = flags as libc::c_short;
        // SAFETY: a valid request.
        check(unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF, &request) }).unwrap();
        file
    };
    let several = FRAMES | libc::IFF_MULTI_QUEUE;
    let (one, two, single) = (attach("mq0", several), attach("mq0", several), attach("zt0", FRAMES));
    let refused = |fds: &[RawFd]| Tap::inherit(fds).map(drop).unwrap_err().to_string();
    let null = File::open("/dev/null").unwrap();
    let fd = |file: &File| file.as_raw_fd();
    for (fds, fd, problem) in [
        (vec![999], 999, "is not open, or is one of the standard ones"),
        (vec![0], 0, "is not open, or is one of the standard ones"),
        (vec![-1], -1, "is not open, or is one of the standard ones"),
        (vec![fd(&null)], fd(&null), "is no TAP or macvtap device with an interface"),
        (vec![fd(&one), fd(&single)], fd(&single), "is of an interface with one queue"),
    ] {
        assert_eq!(refused(&fds), format!("file descriptor {fd} {problem}"));
    }
    let free = OpenOptions::new().read(true).write(true).open("/dev/net/tun").unwrap();
    assert_eq!(
        refused(&[fd(&free)]),
        format!("file descriptor {} is no TAP or macvtap device with an interface", fd(&free))
    );
    drop(single);
    let plain = attach("zt0", libc::IFF_TAP | libc::IFF_NO_PI);
    assert!(refused(&[fd(&plain)]).ends_with("(IFF_TAP, IFF_NO_PI, IFF_VNET_HDR)"));
    let mut taps = Tap::inherit(&[fd(&one), fd(&two)]).unwrap();
    assert_eq!(spread(&mut taps), [64, 0]);
    // Another device of several queues.
    assert!(make_as("mq1", libc::IFF_MULTI_QUEUE));
    let other = attach("mq1", several);
    assert_eq!(
        refused(&[fd(&one), fd(&other)]),
        format!("file descriptor {} is of another interface than the first one", fd(&other))
    );
}

/// Makes the macvtap interface `mv0` on `zt0` (rtnetlink(7), RTM_NEWLINK) and sets both up; `false` with the reason on stderr
/// where this kernel has none.
fn make_macvtap() -> bool {
    let attribute = |kind: u16, data: &[u8]| {
        let mut bytes = [(data.len() as u16 + 4).to_ne_bytes(), kind.to_ne_bytes()].concat();
        bytes.extend(data);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes
    };
    // IFLA_LINK, IFLA_IFNAME, and IFLA_LINKINFO with IFLA_INFO_KIND.
    let below = index_of("zt0").unwrap().to_ne_bytes();
    let kind = attribute(1, b"macvtap\0");
    let attributes = [attribute(5, &below), attribute(3, b"mv0\0"), attribute(18, &kind)].concat();
    let mut message = vec![0u8; 32];
    message[0..4].copy_from_slice(&(32 + attributes.len() as u32).to_ne_bytes());
    message[4..6].copy_from_slice(&libc::RTM_NEWLINK.to_ne_bytes());
    let flags = libc::NLM_F_REQUEST | libc::NLM_F_ACK | libc::NLM_F_CREATE | libc::NLM_F_EXCL;
    message[6..8].copy_from_slice(&(flags as u16).to_ne_bytes());
    message.extend(attributes);
    // SAFETY: the buffers have the lengths given.
    let code = unsafe {
        let fd = check(libc::socket(libc::AF_NETLINK, libc::SOCK_RAW, libc::NETLINK_ROUTE)).unwrap();
        let socket = OwnedFd::from_raw_fd(fd);
        check(libc::send(socket.as_raw_fd(), message.as_ptr().cast(), message.len(), 0)).unwrap();
        let mut answer = [0u8; 256];
        check(libc::recv(socket.as_raw_fd(), answer.as_mut_ptr().cast(), answer.len(), 0)).unwrap();
        i32::from_ne_bytes(answer[16..20].try_into().unwrap())
    };
    let made = match code {
        0 => std::fs::metadata(format!("/dev/tap{}", index_of("mv0").unwrap())).map(drop),
        error => Err(io::Error::from_raw_os_error(-error)),
    };
    if let Err(error) = made {
        eprintln!("skipped: a macvtap interface: {error}");
        return false;
    }
    set_up("mv0", true);
    true
}

#[test]
fn frames_go_both_ways_through_a_macvtap_interface_and_its_queues() {
    if !own_network() {
        return;
    }
    // What is below it is a TAP device that this test has open: what goes out of one comes out of the other.
    let mut below = Tap::open("zt0").unwrap();
    if !make_macvtap() {
        return;
    }
    let mem = GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), 0x1000)]).unwrap();
    let (mut header, mut spill) = ([0; HEADER_BYTES], [0; 2048]);
    let mut received = |tap: &mut Tap, mark: u8| {
        poll(&mut [PollFd::new(tap.as_raw_fd()).readable(true)], Some(1_000_000_000)).unwrap();
        let mut found = false;
        while tap.receive(&mem, &mut header, [], &mut spill).is_ok() {
            found |= spill[14..20] == [mark; 6];
        }
        found
    };
    let send = |tap: &mut Tap, mark: u8| {
        mem.write_slice(&frame(mark, 100), GuestAddress(0)).unwrap();
        tap.send(&mem, &[0; HEADER_BYTES], [GuestRange { address: 0, len: 100 }]).unwrap();
    };
    for queues in [1, 2] {
        let mut taps = Tap::open_macvtap("mv0", queues).unwrap();
        taps[0].set_offloads(Offloads { csum: true, tso4: true, tso6: true, ecn: true, uso: false }).unwrap();
        for (mark, tap) in (0x50..).zip(&mut taps) {
            send(tap, mark);
            assert!((0..50).any(|_| received(&mut below, mark)), "{queues} queues: {mark:#x} is sent");
        }
        send(&mut below, 0x60);
        assert!((0..50).any(|_| received(&mut taps[0], 0x60)));
        if let [first, second] = &mut taps[..] {
            second.set_attached(true).unwrap();
            first.set_attached(false).unwrap();
            send(&mut below, 0x61);
            assert!((0..50).any(|_| received(second, 0x61)) && !received(first, 0x61));
        }
    }
    let events = InterfaceEvents::listen().unwrap();
    let tap = Tap::open_macvtap("mv0", 1).unwrap().remove(0);
    assert_eq!(events.interface_of(&tap).unwrap(), Interface::Up);
    set_up("mv0", false);
    assert_eq!(events.interface_of(&tap).unwrap(), Interface::Down);
    let inherited = Tap::inherit(&[tap.as_raw_fd()]).unwrap();
    assert_eq!(events.interface_of(&inherited[0]).unwrap(), Interface::Down);
    let hint = "is not a macvtap interface: create it with `ip link add link ... name";
    for name in ["zt0", "lo", "none0"] {
        let message = Tap::open_macvtap(name, 1).unwrap_err().to_string();
        assert_eq!(message, format!("{name} {hint} {name} type macvtap`"));
    }
    // It goes with what is below it.
    drop(below);
    delete();
    assert_eq!(events.interface_of(&tap).unwrap(), Interface::Gone);
}
