//! What virtio 1.3 §5.4.6 makes of a buffer: random bytes, each given once.

use super::blk::gather;
use super::ring::{Flying, Plan, Rings};
use crate::finding;
use crate::ram::Ram;

/// The most bytes a request gets.
const MAX_BYTES: u64 = 4096;

/// The generator as the device uses it.
#[derive(Debug, Default)]
pub struct Rng {
    /// Bytes asked for so far.
    pub given: u64,
    /// What the buffer popped last still has to be filled with.
    pending: Option<u32>,
}

/// Byte `n` of the generator.
#[must_use]
pub fn byte(n: u64) -> u8 {
    (n.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8 | 1
}

impl Rng {
    pub(super) fn popped(&mut self, chain: &mut Flying) {
        let wanted = chain.writable_bytes.min(MAX_BYTES) as u32;
        chain.plan = Plan::Random(wanted, self.given);
        chain.leaving = true;
        self.pending = (wanted > 0).then_some(wanted);
    }

    /// The generator is asked for `len` bytes and gives them, or fails: the buffer goes back into its ring then.
    pub fn asked(&mut self, rings: &mut Rings, len: usize, fails: bool) {
        if !rings.blind() && self.pending != Some(len as u32) {
            finding!("spec", "the generator is asked for {len} bytes where a buffer wants {:?}", self.pending);
        }
        self.pending = None;
        if fails {
            rings.put_back(0);
        } else {
            self.given += len as u64;
        }
    }

    pub(super) fn used(&self, ram: &Ram, chain: &Flying, len: u32) {
        let Plan::Random(wanted, from) = chain.plan else { return };
        if len != wanted {
            finding!("spec", "used length {len} of a buffer that gets {wanted} random bytes");
        }
        if chain.shared {
            return;
        }
        let mut bytes = [0; MAX_BYTES as usize];
        let bytes = &mut bytes[..wanted as usize];
        gather(ram, &chain.writable, 0, bytes);
        if let Some(at) = bytes.iter().zip(from..).position(|(found, n)| *found != byte(n)) {
            finding!("spec", "random byte {at} is not one the generator gave for this buffer");
        }
    }
}
