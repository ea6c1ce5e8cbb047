//! Chains as requests: of the nearest type and size that an operation can say.

use super::Chain;
use crate::machine::vmm::{Kind, SECTORS};
use crate::program::chain::palette;
use crate::program::ops::{Code, Op};

/// The request a driver made with `chain`, placed but not shown.
pub fn request(kind: Kind, queue: u16, chain: &Chain) -> Op {
    let a = queue as u8 & 1 | 0x30;
    let c = u8::from(chain.indirect);
    let (b, v) = match kind {
        Kind::Blk => disk(chain),
        Kind::Net if queue == 0 => (nearest(&palette::RECEIVE_BYTES, sum(chain, true)), 0),
        Kind::Net => frame(chain),
        Kind::Console => (nearest(&palette::TEXT_BYTES, sum(chain, queue == 0)), word(chain, 0)),
        Kind::Rng => (nearest(&palette::RANDOM_BYTES, sum(chain, true)), 0),
    };
    Op { code: Code::Request, a, b, c, v }
}

fn disk(chain: &Chain) -> (u8, u32) {
    let kind = word(chain, 0);
    let b = palette::DISK.iter().position(|known| *known == kind).unwrap_or(0) as u8;
    let sector = u64::from(word(chain, 8)) | u64::from(word(chain, 12)) << 32;
    let sector = |bytes: u32| (sector % SECTORS).min(SECTORS - u64::from(bytes.div_ceil(512)).min(SECTORS)) as u32;
    // Between the header and the status byte is the data.
    let data = chain.descs.iter().skip(1).rev().skip(1).map(|(len, _)| len).sum();
    let v = match kind {
        0 | 1 => {
            let which = nearest(&palette::DISK_BYTES, data);
            sector(palette::DISK_BYTES[usize::from(which)]) | u32::from(which) << 8
        }
        // How many sectors is in the segment, which no record holds.
        11 | 13 => sector(512 * 8) | u32::from(nearest(&palette::ERASE_SECTORS, 8)) << 8,
        _ => 0,
    };
    (b, v)
}

fn frame(chain: &Chain) -> (u8, u32) {
    const HEADER: u32 = 12;
    let len = nearest(&palette::FRAME_BYTES, sum(chain, false).saturating_sub(HEADER));
    let together = chain.descs.first().is_some_and(|(len, _)| *len > HEADER);
    (len | if together { 0x30 } else { 0 }, word(chain, 0))
}

fn sum(chain: &Chain, writable: bool) -> u32 {
    chain.descs.iter().filter(|(_, is_writable)| *is_writable == writable).map(|(len, _)| len).sum()
}

/// Four of the first bytes the device reads.
fn word(chain: &Chain, at: usize) -> u32 {
    let mut bytes = [0; 4];
    for (to, from) in bytes.iter_mut().zip(chain.head.iter().skip(at)) {
        *to = *from;
    }
    u32::from_le_bytes(bytes)
}

/// Which entry is nearest; of equals the first.
pub fn nearest(palette: &[u32], wanted: u32) -> u8 {
    (0..palette.len()).min_by_key(|at| palette[*at].abs_diff(wanted)).unwrap_or(0) as u8
}
