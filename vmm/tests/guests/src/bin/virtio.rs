//! zvmm's virtio devices under a driver that is not ours: the crate `virtio-drivers`, over modern virtio-pci.
//!
//! Tests every device it finds. Options: `pci=ports|ecam`; `expect=blk,net,rng,console` fails when one is missing;
//! `arp=<address>` asks the network for that IPv4 address, from `ip=<address>`, and pings it: the host's end of a TAP
//! answers by itself. Sector 0 of the disk is left alone; from sector 8 on it is scratch.

#![no_std]
#![no_main]

extern crate alloc;

use alloc::vec;
use alloc::vec::Vec;

use guests::pci::{self, Access};
use guests::pool::Identity;
use guests::{interrupts, println, pvh};
use virtio_drivers::Error;
use virtio_drivers::device::blk::VirtIOBlk;
use virtio_drivers::device::console::VirtIOConsole;
use virtio_drivers::device::net::{TxBuffer, VirtIONet};
use virtio_drivers::device::rng::VirtIORng;
use virtio_drivers::transport::DeviceType;
use virtio_drivers::transport::pci::bus::{DeviceFunction, PciRoot};
use virtio_drivers::transport::pci::{PciTransport, virtio_device_type};

guests::guest!(main);

type Net = VirtIONet<Identity, PciTransport, 8>;

fn main() {
    interrupts::start_clock(30_000);
    let access = Access::choose();
    pci::place_bars(access);
    let mut root = PciRoot::new(access);
    let found: Vec<(DeviceFunction, DeviceType)> =
        root.enumerate_bus(0).filter_map(|(function, info)| Some((function, virtio_device_type(&info)?))).collect();
    let mut seen = Vec::new();
    for (function, kind) in found {
        let transport = PciTransport::new::<Identity, _>(&mut root, function).expect("virtio transport");
        seen.push(match kind {
            DeviceType::Block => block(transport),
            DeviceType::Network => network(transport),
            DeviceType::EntropySource => entropy(transport),
            DeviceType::Console => console(transport),
            other => {
                println!("INFO {function} {other:?} is not tested");
                continue;
            }
        });
    }
    for wanted in pvh::option("expect").into_iter().flat_map(|list| list.split(',')) {
        assert!(seen.contains(&wanted), "there is no {wanted} device");
    }
    assert!(!seen.is_empty(), "there is no virtio device");
}

/// Bytes that tell where they belong.
fn pattern(sector: usize, length: usize) -> Vec<u8> {
    (0..length).map(|at| (at as u8) ^ (at >> 8) as u8 ^ (sector as u8).wrapping_mul(29)).collect()
}

fn block(transport: PciTransport) -> &'static str {
    let mut disk = VirtIOBlk::<Identity, _>::new(transport).expect("virtio block device");
    let capacity = disk.capacity() as usize;
    println!("INFO blk {capacity} sectors, read-only {}", disk.readonly());
    assert!(capacity >= 64, "the disk has only {capacity} sectors, the test needs 64");

    // One sector, some sectors, the last sector.
    for (sector, sectors) in [(8, 1), (9, 3), (16, 16), (40, 8), (capacity - 1, 1)] {
        let written = pattern(sector, sectors * 512);
        disk.write_blocks(sector, &written).expect("write");
        let mut read = vec![0; written.len()];
        disk.read_blocks(sector, &mut read).expect("read");
        assert!(read == written, "sector {sector} reads back wrong");
    }
    disk.flush().expect("flush");
    // What was written first is still there.
    let mut read = vec![0; 512];
    disk.read_blocks(8, &mut read).expect("read");
    assert!(read == pattern(8, 512), "sector 8 changed by itself");
    println!("PASS blk data");

    let past_the_end = disk.read_blocks(capacity, &mut read);
    assert!(past_the_end == Err(Error::IoError), "a read past the end gives {past_the_end:?}");
    let past_the_end = disk.write_blocks(capacity - 1, &[0; 1024]);
    assert!(past_the_end == Err(Error::IoError), "a write past the end gives {past_the_end:?}");
    disk.read_blocks(capacity - 1, &mut read).expect("read after an error");
    assert!(read == pattern(capacity - 1, 512), "a refused write changed the disk");
    println!("PASS blk range");

    let mut id = [0; 20];
    match disk.device_id(&mut id) {
        Ok(length) => println!("INFO blk id {:?}", core::str::from_utf8(&id[..length]).unwrap_or("not text")),
        Err(error) => println!("INFO blk id: {error:?}"),
    }
    println!("PASS blk");
    "blk"
}

fn entropy(transport: PciTransport) -> &'static str {
    let mut rng = VirtIORng::<Identity, _>::new(transport).expect("virtio entropy device");
    let mut all = [0; 64];
    let mut filled = 0;
    while filled < all.len() {
        let got = rng.request_entropy(&mut all[filled..]).expect("random bytes");
        assert!(got > 0, "the entropy device returned nothing");
        filled += got;
    }
    assert!(all.iter().any(|&byte| byte != all[0]), "64 random bytes are all {:#x}", all[0]);
    assert!(all[..32] != all[32..], "the entropy device repeats itself");
    println!("PASS rng");
    "rng"
}

fn console(transport: PciTransport) -> &'static str {
    let mut console = VirtIOConsole::<Identity, _>::new(transport).expect("virtio console device");
    console.send_bytes(b"hello from the guest\n").expect("console output");
    println!("PASS console");
    "console"
}

fn network(transport: PciTransport) -> &'static str {
    let mut net = Net::new(transport, 2048).expect("virtio network device");
    let mac = net.mac_address();
    println!("INFO net mac {:02x}:{:02x}:{:02x}:{:02x}:{:02x}:{:02x}", mac[0], mac[1], mac[2], mac[3], mac[4], mac[5]);
    assert!(mac[0] & 1 == 0 && mac != [0; 6], "the MAC address is not a unicast one");
    let Some(peer) = pvh::option("arp") else {
        // An experimental EtherType (IEEE 802, 88B5): nobody takes it for something else.
        net.send(TxBuffer::from(&frame([0xff; 6], mac, 0x88b5, &[0; 46]))).expect("send");
        println!("PASS net send");
        return "net";
    };
    let peer = ipv4(peer);
    let own = ipv4(pvh::option("ip").expect("arp= needs ip="));
    let peer_mac = resolve(&mut net, mac, own, peer);
    println!("PASS net arp");
    for (sequence, length) in [0, 1, 56, 1000, 1472].into_iter().enumerate() {
        ping(&mut net, (mac, own), (peer_mac, peer), sequence as u16, length);
    }
    println!("PASS net");
    "net"
}

fn ipv4(text: &str) -> [u8; 4] {
    let mut address = [0; 4];
    let mut parts = text.split('.');
    for byte in &mut address {
        *byte = parts.next().and_then(|part| part.parse().ok()).expect("an option is not an IPv4 address");
    }
    address
}

fn frame(to: [u8; 6], from: [u8; 6], kind: u16, payload: &[u8]) -> Vec<u8> {
    let mut frame = Vec::with_capacity(14 + payload.len());
    frame.extend_from_slice(&to);
    frame.extend_from_slice(&from);
    frame.extend_from_slice(&kind.to_be_bytes());
    frame.extend_from_slice(payload);
    frame.resize(frame.len().max(60), 0);
    frame
}

/// Sends a frame until one comes back that `accept` takes; every second again, three times.
fn exchange<T>(net: &mut Net, what: &str, frame: &[u8], mut accept: impl FnMut(&[u8]) -> Option<T>) -> T {
    for _ in 0..3 {
        net.send(TxBuffer::from(frame)).expect("send");
        let mut answer = None;
        let _ = interrupts::wait(1_000, || {
            while answer.is_none() && net.can_recv() {
                let buffer = net.receive().expect("receive");
                answer = accept(buffer.packet());
                net.recycle_rx_buffer(buffer).expect("recycle a buffer");
            }
            answer.is_some()
        });
        if let Some(answer) = answer {
            return answer;
        }
    }
    panic!("no answer to {what}")
}

/// ARP (RFC 826).
fn resolve(net: &mut Net, mac: [u8; 6], own: [u8; 4], peer: [u8; 4]) -> [u8; 6] {
    let mut request = vec![0, 1, 8, 0, 6, 4, 0, 1];
    request.extend_from_slice(&mac);
    request.extend_from_slice(&own);
    request.extend_from_slice(&[0; 6]);
    request.extend_from_slice(&peer);
    exchange(net, "ARP", &frame([0xff; 6], mac, 0x0806, &request), |packet| {
        let is_answer = packet.len() >= 42
            && packet[12..14] == [8, 6]
            && packet[20..22] == [0, 2]
            && packet[28..32] == peer
            && packet[32..38] == mac;
        is_answer.then(|| packet[22..28].try_into().expect("six bytes"))
    })
}

/// The internet checksum (RFC 1071).
fn checksum(bytes: &[u8]) -> [u8; 2] {
    let mut sum: u32 =
        bytes.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0))).sum();
    while sum >> 16 != 0 {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    (!(sum as u16)).to_be_bytes()
}

/// ICMP echo with `length` bytes of data (RFC 792), over IPv4 (RFC 791).
fn ping(net: &mut Net, own: ([u8; 6], [u8; 4]), peer: ([u8; 6], [u8; 4]), sequence: u16, length: usize) {
    let data = pattern(usize::from(sequence), length);
    let mut echo = vec![8, 0, 0, 0, 0x5a, 0x5a];
    echo.extend_from_slice(&sequence.to_be_bytes());
    echo.extend_from_slice(&data);
    let sum = checksum(&echo);
    echo[2..4].copy_from_slice(&sum);

    let mut packet = vec![0x45, 0, 0, 0, 0, 0, 0, 0, 64, 1, 0, 0];
    packet.extend_from_slice(&own.1);
    packet.extend_from_slice(&peer.1);
    packet[2..4].copy_from_slice(&(20 + echo.len() as u16).to_be_bytes());
    let sum = checksum(&packet);
    packet[10..12].copy_from_slice(&sum);
    packet.extend_from_slice(&echo);

    exchange(net, "ping", &frame(peer.0, own.0, 0x0800, &packet), |answer| {
        let end = 42 + length;
        let is_answer = answer.len() >= end
            && answer[12..14] == [8, 0]
            && answer[23] == 1
            && answer[26..30] == peer.1
            && answer[34] == 0
            && answer[38..42] == echo[4..8];
        is_answer.then(|| assert!(answer[42..end] == data, "a ping of {length} bytes came back changed"))
    });
}
