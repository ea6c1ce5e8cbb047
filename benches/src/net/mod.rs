//! A network card in one process and without a VM: guest memory, queue workers and link are zvmm's, the driver is a thread,
//! and the cable is a bridge between two TAP devices in a network of the bench's own.

mod card;
mod driver;
mod pair;
mod raw;

pub use card::{Card, Shape};
pub use pair::Pair;
pub use raw::Raw;

/// Bytes of the header before every frame.
pub const HEADER_BYTES: usize = 12;

/// Bytes before the data of a TCP segment: Ethernet, IPv4 and TCP without options.
const TCP_HEADERS_BYTES: usize = 14 + 20 + 20;
/// Data of each packet that a large segment becomes on a real wire.
const GSO_SIZE: usize = 1460;

/// What frames are like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Load {
    /// Its name in tables.
    pub name: &'static str,
    /// Bytes of a frame.
    pub frame_bytes: usize,
    /// Each is a TCP segment that is to become packets only where it has to.
    pub gso: bool,
    /// Bytes of each buffer that the driver posts for received ones: what Linux comes to for them.
    pub buffer_bytes: u32,
}

impl Load {
    /// Small packets.
    pub const SMALL: Self = Self { name: "64 B", frame_bytes: 64, gso: false, buffer_bytes: 1536 };
    /// Packets of an Ethernet's MTU.
    pub const MTU: Self = Self { name: "1500 B", frame_bytes: 14 + 1500, gso: false, buffer_bytes: 1536 };
    /// Segments as large as there are.
    pub const GSO: Self =
        Self { name: "64 KiB GSO", frame_bytes: TCP_HEADERS_BYTES + 44 * GSO_SIZE, gso: true, buffer_bytes: 4096 };

    /// A frame with its header, from the card or to it.
    #[must_use]
    pub fn frame(&self, from_card: bool) -> Vec<u8> {
        let mut bytes = vec![0; HEADER_BYTES];
        let (card, far) = ([2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2]);
        let [to, from]: [[u8; 6]; 2] = if from_card { [far, card] } else { [card, far] };
        bytes.extend(to);
        bytes.extend(from);
        if self.gso {
            // NEEDS_CSUM, TCPV4, hdr_len, gso_size, csum_start, csum_offset (virtio 1.3 §5.1.6.2).
            bytes[0] = 1;
            bytes[1] = 1;
            let fields = [TCP_HEADERS_BYTES, GSO_SIZE, 14 + 20, 16];
            for (to, field) in bytes[2..10].chunks_mut(2).zip(fields) {
                to.copy_from_slice(&(field as u16).to_le_bytes());
            }
            let total = (self.frame_bytes - 14) as u16;
            bytes.extend([8, 0, 0x45, 0]);
            bytes.extend(total.to_be_bytes());
            bytes.extend([0, 0, 0x40, 0, 64, 6, 0, 0, 192, 0, 2, 1, 192, 0, 2, 2]);
            // Ports, sequence and acknowledgement, the header's length and ACK, window, checksum and urgent pointer.
            bytes.extend([0x30, 0x39, 0x13, 0x89, 0, 0, 0, 1, 0, 0, 0, 1, 0x50, 0x10, 0xff, 0xff, 0, 0, 0, 0]);
        } else {
            // A type for experiments (IEEE 802, 0x88b5): nobody's stack answers.
            bytes.extend([0x88, 0xb5]);
        }
        let len = HEADER_BYTES + self.frame_bytes;
        bytes.extend((bytes.len()..len).map(|n| (n % 251) as u8));
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_are_as_long_as_they_say_and_segments_have_their_headers() {
        for load in [Load::SMALL, Load::MTU, Load::GSO] {
            for from_card in [false, true] {
                assert_eq!(load.frame(from_card).len(), HEADER_BYTES + load.frame_bytes);
            }
        }
        let frame = Load::GSO.frame(true);
        assert_eq!(frame[..12], [1, 1, 54, 0, 0xb4, 5, 34, 0, 16, 0, 0, 0]);
        assert_eq!(frame[12 + 12..12 + 16], [8, 0, 0x45, 0]);
        assert_eq!(usize::from(u16::from_be_bytes([frame[28], frame[29]])), 20 + 20 + 44 * 1460);
        // Where the segment's data begins.
        assert_eq!(frame[12 + 54..12 + 56], [66, 67]);
    }
}
