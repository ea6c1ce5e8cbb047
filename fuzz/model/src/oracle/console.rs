//! What virtio 1.3 §5.3.6 makes of a console's buffers: two streams of bytes, none lost, doubled or out of place.

use std::collections::VecDeque;

use super::ring::{Flying, Plan, Rings};
use crate::finding;
use crate::ram::Ram;

const RX: u16 = 0;
const TX: u16 = 1;
/// The most bytes of a half-written buffer that outlive a pause.
const CARRY_BYTES: usize = 64 << 10;

/// Both streams, where they are inside the device.
#[derive(Debug, Default)]
pub struct Console {
    /// Read from the driver's buffers, not taken by the terminal yet.
    output: VecDeque<u8>,
    /// Given by the terminal, not in a buffer yet.
    input: VecDeque<u8>,
    /// Its content is not known any more, since the device worked on orders it had rewritten itself.
    lost: bool,
}

/// Byte `n` that somebody types.
#[must_use]
pub fn typed(n: u64) -> u8 {
    (n % 251) as u8
}

impl Console {
    /// The device reads driver memory: output on its way, if it is that.
    pub(super) fn read(&mut self, ram: &Ram, rings: &mut Rings, addr: u64, len: usize) {
        if rings.blind() {
            self.lost = true;
            return;
        }
        let Some(chain) = rings.flying_mut(TX).iter_mut().find(|chain| !chain.leaving) else { return };
        if chain.shared {
            // Its bytes are something else as well, so a read of them says nothing.
            self.lost = true;
            return;
        }
        let position = match chain.plan {
            Plan::Output(position) => position,
            _ => 0,
        };
        let mut skip = position;
        for &(at, size) in &chain.readable {
            let size = u64::from(size);
            if skip < size {
                // Ring words that lie in a buffer are read for themselves.
                if at + skip == addr && (size - skip) >= len as u64 {
                    let start = self.output.len();
                    self.output.resize(start + len, 0);
                    let bytes = self.output.make_contiguous();
                    ram.peek(addr, &mut bytes[start..]);
                    chain.plan = Plan::Output(position + len as u64);
                    chain.leaving = position + len as u64 == chain.readable_bytes;
                }
                return;
            }
            skip -= size;
        }
    }

    /// The terminal is given `bytes` and takes the first `taken` of them.
    pub fn shown(&mut self, bytes: &[u8], taken: usize) {
        let matches = self.output.make_contiguous().starts_with(bytes);
        if !matches && !self.lost {
            finding!("spec", "the console shows {} bytes that are not the next ones the driver wrote", bytes.len());
        }
        self.output.drain(..taken.min(self.output.len()));
    }

    /// The terminal gives `bytes`.
    pub fn typed(&mut self, bytes: &[u8]) {
        self.input.extend(bytes);
    }

    /// Whether typed bytes wait for a buffer.
    #[must_use]
    pub fn has_input(&self) -> bool {
        !self.input.is_empty() && !self.lost
    }

    pub(super) fn used(&mut self, ram: &Ram, queue: u16, chain: &Flying, len: u32) {
        match queue {
            TX => {
                if len != 0 {
                    finding!("spec", "used length {len} of an output buffer");
                }
                let done = match chain.plan {
                    Plan::Output(position) => position,
                    _ => 0,
                };
                // A pause may cut the end of a buffer off that is longer than what is carried over it.
                let cut = self.output.len() >= CARRY_BYTES.min(chain.readable_bytes as usize);
                if done != chain.readable_bytes && !cut && !self.lost {
                    finding!("spec", "an output buffer of {} bytes goes back after {done}", chain.readable_bytes);
                }
            }
            RX => {
                if len as usize > self.input.len() && !self.lost {
                    finding!("spec", "{len} bytes of input where {} were typed", self.input.len());
                }
                let expected: Vec<u8> = self.input.drain(..(len as usize).min(self.input.len())).collect();
                if chain.shared || self.lost {
                    return;
                }
                let mut found = vec![0; len as usize];
                super::blk::gather(ram, &chain.writable, 0, &mut found);
                if found != expected {
                    finding!("spec", "the input in a buffer is not what was typed");
                }
            }
            _ => {}
        }
    }
}
