//! The header in front of every frame, as the driver has settled it.

use super::backend::{HEADER_BYTES, Header, Offloads};
use super::device::feature;
use crate::virtio::WorkerActivation;

/// Bytes of the legacy header, which has no `num_buffers` (virtio 1.3 §5.1.6.1).
const LEGACY_HEADER_BYTES: usize = 10;
/// The longest frame there is: a 64 KiB segment behind an Ethernet header with a VLAN tag.
pub(super) const MAX_FRAME_BYTES: usize = 65536 + 18;

/// `VIRTIO_NET_HDR_F_NEEDS_CSUM`.
const FLAG_NEEDS_CSUM: u8 = 1;
/// `VIRTIO_NET_HDR_F_DATA_VALID`.
const FLAG_DATA_VALID: u8 = 2;
const GSO_NONE: u8 = 0;
const GSO_TCPV4: u8 = 1;
const GSO_TCPV6: u8 = 4;
/// `VIRTIO_NET_HDR_GSO_UDP_L4`: datagrams of UDP, over either IP.
const GSO_UDP_L4: u8 = 5;
/// `VIRTIO_NET_HDR_GSO_ECN`, a flag beside the type.
const GSO_ECN: u8 = 0x80;

/// How frames look on one driver's queues.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Framing {
    /// Bytes of the header in front of each frame.
    pub header_bytes: usize,
    /// A received frame may span several chains.
    pub mergeable: bool,
    /// What received frames may leave unfinished.
    pub offloads: Offloads,
    /// The largest packet without its Ethernet header, where the driver knows one.
    pub mtu: Option<u16>,
}

impl Framing {
    /// What the driver's features come to, on a card with this MTU. Its offloads are those it has accepted.
    pub fn new(activation: &WorkerActivation, mtu: Option<u16>) -> Self {
        let has = |bit| activation.features & bit != 0;
        let mergeable = has(feature::MRG_RXBUF);
        Self {
            header_bytes: if activation.legacy && !mergeable { LEGACY_HEADER_BYTES } else { HEADER_BYTES },
            mergeable,
            offloads: offloads(activation.features),
            mtu: mtu.filter(|_| has(feature::MTU)),
        }
    }

    /// Bytes of buffers that a frame of `len_bytes` takes.
    pub fn bytes_of(&self, len_bytes: usize) -> u64 {
        len_bytes.saturating_add(self.header_bytes) as u64
    }

    /// Whether a received frame is larger than the driver was told (virtio 1.3 §5.1.4.1). `ethertype` reads the two bytes
    /// at [`ETHERTYPE`]: it is asked only where they decide.
    pub fn exceeds_mtu(&self, header: &Header, len_bytes: usize, ethertype: impl FnOnce() -> [u8; 2]) -> bool {
        let [_, gso_type, ..] = header;
        let Some(mtu) = self.mtu.filter(|_| *gso_type == GSO_NONE) else { return false };
        let beyond = len_bytes.saturating_sub(usize::from(mtu).saturating_add(ETHERNET_BYTES));
        beyond > TAG_BYTES || beyond > 0 && !TAGGED.contains(&ethertype())
    }

    /// Brings the header of a received frame to what the driver may see (virtio 1.3 §5.1.6.4.1). `false` where the
    /// frame needs an offload the driver has not accepted, or is a segment that no driver could complete, so it cannot
    /// be delivered.
    pub fn admit(&self, header: &mut Header) -> bool {
        let [flags, gso_type, _, _, gso_size @ .., _, _, _, _, _, _] = header;
        // RSC_INFO would turn csum_start into a count for a driver that knows it, and RSC_EXT is not offered.
        *flags &= FLAG_NEEDS_CSUM | FLAG_DATA_VALID;
        if !self.offloads.csum {
            if *flags & FLAG_NEEDS_CSUM != 0 {
                return false;
            }
            *flags = 0;
        }
        let ecn = *gso_type & GSO_ECN != 0;
        let accepted = match *gso_type & !GSO_ECN {
            GSO_NONE => {
                *gso_type = GSO_NONE;
                return true;
            }
            GSO_TCPV4 => self.offloads.tso4 && (!ecn || self.offloads.ecn),
            GSO_TCPV6 => self.offloads.tso6 && (!ecn || self.offloads.ecn),
            GSO_UDP_L4 => self.offloads.uso && !ecn,
            _ => false,
        };
        accepted && *flags & FLAG_NEEDS_CSUM != 0 && *gso_size != [0, 0]
    }
}

/// Feature bits of what received frames may leave unfinished: those that `VIRTIO_NET_CTRL_GUEST_OFFLOADS_SET` knows
/// (virtio 1.3 §5.1.6.5.8.1) as far as they are offered.
pub(super) const GUEST_OFFLOADS: u64 = feature::GUEST_CSUM
    | feature::GUEST_TSO4
    | feature::GUEST_TSO6
    | feature::GUEST_ECN
    | feature::GUEST_USO4
    | feature::GUEST_USO6;

/// What such bits come to. §5.1.3.1: the segmentation features require the checksum one, and ECN one of them.
pub(super) fn offloads(bits: u64) -> Offloads {
    let has = |bit| bits & bit != 0;
    let csum = has(feature::GUEST_CSUM);
    let (tso4, tso6) = (csum && has(feature::GUEST_TSO4), csum && has(feature::GUEST_TSO6));
    let uso = csum && has(feature::GUEST_USO4) && has(feature::GUEST_USO6);
    Offloads { csum, tso4, tso6, ecn: (tso4 || tso6) && has(feature::GUEST_ECN), uso }
}

/// Bytes of an Ethernet header: two addresses and the type of the payload.
const ETHERNET_BYTES: usize = 14;
/// Where that type is.
pub(super) const ETHERTYPE: u64 = 12;
/// Bytes of a VLAN tag, and the types that say there is one (802.1Q, 802.1ad).
const TAG_BYTES: usize = 4;
const TAGGED: [[u8; 2]; 2] = [[0x81, 0x00], [0x88, 0xa8]];

/// Leaves of a sent frame's header what the link may go by: flags this device does not know, and `num_buffers`, are not
/// for it to interpret (virtio 1.3 §5.1.6.2.2).
pub(super) fn for_the_link(header: &mut Header) {
    let [flags, ..] = header;
    *flags &= FLAG_NEEDS_CSUM;
    set_num_buffers(header, 0);
}

/// Fills in `num_buffers`.
pub(super) fn set_num_buffers(header: &mut Header, buffers: u16) {
    let [.., low, high] = header;
    [*low, *high] = buffers.to_le_bytes();
}
