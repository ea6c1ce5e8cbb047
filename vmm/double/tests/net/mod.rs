//! A link of a zone of the kvm brand, whose cable ends in the test.

use std::os::unix::net::UnixDatagram;
use std::sync::Arc;

use devices::GuestRam;
use devices::virtio::net::{HEADER_BYTES, NetError, Received, Sent};
use devices::virtio::queue::GuestRange;
use devices_host::sys::{Link, Sys};
use vm_memory::{Bytes, GuestAddress};
use zvmm::hypervisor::frames::{FrameDevice, FrameEnd, FrameLink, LinkError};
use zvmm::hypervisor::illumos_kvm::open_link;
use zvmm_double::links::Links;
use zvmm_double::{DoubleSys, Host, Zone};

pub const NAME: &str = "net0";
pub const FACTS: Link = Link { id: 7, mac: [2, 8, 0x20, 1, 2, 3], mtu: 1500 };

/// Where frames lie in the guest's memory.
const FRAME: u64 = 0x1_0000;

pub struct Rig {
    pub links: Arc<Links>,
    host: Arc<Host>,
    pub process: Arc<DoubleSys>,
    /// The other end.
    pub cable: UnixDatagram,
    pub ram: GuestRam,
    device: FrameDevice,
}

/// A frame of this many bytes of a private ether type.
pub fn frame(len: usize, mark: u8) -> Vec<u8> {
    let mut frame: Vec<u8> = (0..len).map(|at| (at as u8).wrapping_mul(7).wrapping_add(mark)).collect();
    let header = [0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 2, 8, 0x20, 1, 2, 3, 0x88, 0xb5];
    let headed = len.min(14);
    frame[..headed].copy_from_slice(&header[..headed]);
    frame
}

/// `len` bytes from `start`, in this many pieces.
pub fn ranges(start: u64, len: usize, pieces: usize) -> Vec<GuestRange> {
    let each = len / pieces;
    let range = |nth: usize| {
        let len = if nth + 1 == pieces { len - each * nth } else { each };
        GuestRange { addr: start + (each * nth) as u64, len: len as u32 }
    };
    (0..pieces).map(range).collect()
}

pub fn ram() -> GuestRam {
    GuestRam::from_ranges(&[(GuestAddress(0), 0x10_0000)]).unwrap()
}

impl Rig {
    pub fn new(device: FrameDevice) -> Self {
        let links = Links::new();
        let host = Host::new(links.drivers());
        let cable = links.add(&host, NAME, FACTS).unwrap();
        let process = DoubleSys::new(&host, Zone::kvm(1));
        Self { links, host, process, cable, ram: ram(), device }
    }

    /// Makes the link again.
    pub fn plug(&mut self) {
        self.cable = self.links.add(&self.host, NAME, FACTS).unwrap();
    }

    pub fn open(&self) -> Result<Arc<dyn FrameLink>, LinkError> {
        let sys: Arc<dyn Sys> = self.process.clone();
        open_link(&sys, self.device, NAME)
    }

    pub fn send(&self, end: &mut FrameEnd, frame: &[u8], pieces: usize) -> Result<Sent, NetError> {
        self.ram.write_slice(frame, GuestAddress(FRAME)).unwrap();
        end.backend.send(&self.ram, &[0; HEADER_BYTES], &ranges(FRAME, frame.len(), pieces))
    }

    /// The next frame at the other end.
    pub fn arrived(&self) -> Option<Vec<u8>> {
        let mut bytes = vec![0; 1 << 17];
        let len = self.cable.recv(&mut bytes).ok()?;
        bytes.truncate(len);
        Some(bytes)
    }

    /// The next frame, received into `room` bytes of guest memory in this many pieces and a spill buffer behind them.
    pub fn receive(&self, end: &mut FrameEnd, room: usize, pieces: usize) -> Result<Option<Vec<u8>>, NetError> {
        let (mut header, mut spill) = ([0xee; HEADER_BYTES], vec![0; 65_554]);
        let into = ranges(FRAME, room, pieces);
        match end.backend.receive(&self.ram, &mut header, &into, &mut spill)? {
            Received::WouldBlock => Ok(None),
            Received::Frame { len_bytes } => {
                assert_eq!(header, [0; HEADER_BYTES], "no offload was used");
                let mut frame = vec![0; len_bytes.min(room)];
                self.ram.read_slice(&mut frame, GuestAddress(FRAME)).unwrap();
                frame.extend_from_slice(&spill[..len_bytes.saturating_sub(room)]);
                Ok(Some(frame))
            }
        }
    }

    /// A life on the link through `sys`: opened, one frame each way, a look at it, closed. An error where something did not
    /// go, or did not arrive as it went.
    pub fn live(&self, sys: &Arc<dyn Sys>) -> Result<(), String> {
        let link = open_link(sys, self.device, NAME).map_err(|error| error.to_string())?;
        let mut end = link.clone().end();
        let wrong = |what: &str| Err(what.to_owned());
        let sent = frame(60, 1);
        match self.send(&mut end, &sent, 2) {
            Ok(Sent::Done) => {}
            other => return Err(format!("{other:?}")),
        }
        if self.arrived() != Some(sent) || self.arrived().is_some() {
            return wrong("another frame arrived");
        }
        let expected = frame(100, 2);
        self.cable.send(&expected).unwrap();
        if self.receive(&mut end, 40, 1).map_err(|error| error.to_string())? != Some(expected) {
            return wrong("another frame was received");
        }
        link.look(devices_host::clock::monotonic_ns());
        Ok(())
    }

    pub fn broken(&self) -> Vec<&'static str> {
        let leaks: Vec<_> = self.process.leaks();
        leaks.into_iter().for_each(|leak| self.process.note_leak(leak));
        self.process.violations().iter().map(|violation| violation.rule.name).collect()
    }

    /// No rule was broken, and nothing is left open.
    pub fn assert_kept(&self) {
        let broken = self.process.violations();
        assert!(broken.is_empty(), "{broken:?}");
        assert_eq!(self.process.leaks(), []);
    }
}
