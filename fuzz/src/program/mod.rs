//! What an input means: a typed program, a record of eight bytes an operation.
//!
//! ```text
//! byte 0..8     knobs: what the machine is made of, how its driver starts, which oracle runs twice
//! byte 8 + 8·n  operation n: code, three small operands, a 32-bit value
//! ```
//!
//! Every input is a program, and zeroes are a valid driver on a healthy device: a mutation changes one decision, not
//! the meaning of all that follows.

pub mod chain;
pub mod explain;
pub mod mutate;
pub mod ops;
pub mod pairs;
pub mod play;
pub mod queue;

use devices::virtio::blk::OnError;

use crate::machine::Setup;
use crate::machine::vmm::{Kind, Shape};
use crate::machine::wires::Wiring;
use ops::{Code, Op};

/// Bytes of knobs.
pub const KNOBS: usize = 8;
/// Bytes of an operation.
pub const RECORD: usize = 8;
/// Operations of the longest program.
pub const MAX_OPS: usize = 64;

/// Which two machines a program runs in, to be compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pair {
    /// One machine; the models alone judge.
    Single,
    /// One is wired as KVM, the other one as bhyve.
    Wirings,
    /// One is paused, the other one is saved and restored in another process.
    Restore,
}

/// The knobs of a program.
#[derive(Clone, Copy, Debug)]
pub struct Knobs<'a>(&'a [u8]);

impl Knobs<'_> {
    fn at(&self, index: usize) -> u8 {
        self.0.get(index).copied().unwrap_or(0)
    }

    /// What the machine is made of.
    #[must_use]
    pub fn shape(&self, kind: Kind) -> Shape {
        // A process that takes over has its whole burst again, which its guest can tell.
        let limited = self.at(6) & 0x30 == 0x30 && self.pair() != Pair::Restore;
        let mut shape = Shape { limited, timed: self.at(7) & 0xc0 == 0xc0, ..Shape::new(kind, self.at(0)) };
        let policy =
            |bits: u8| [OnError::Report, OnError::Hold, OnError::HoldIfFull, OnError::Report][usize::from(bits & 3)];
        if kind == Kind::Net && self.at(7) & 0x0c == 0x0c {
            shape.pairs = 2;
        }
        shape.disk.on_write_error = policy(self.at(7) >> 2);
        shape.disk.on_read_error = policy(self.at(7) >> 4);
        shape
    }

    /// How the driver sets the device up before the first operation; `None`: not at all.
    #[must_use]
    pub fn setup(&self) -> Option<Setup> {
        (self.at(1) & 7 != 7).then(|| setup(self.at(1), self.at(2), self.at(3)))
    }

    /// Whether workers run after every operation.
    #[must_use]
    pub fn auto(&self) -> bool {
        self.at(4) & 3 != 3
    }

    /// Whether the disk holds its requests, and does not end them when they are cancelled.
    #[must_use]
    pub fn hold(&self) -> (bool, bool) {
        (self.at(4) & 0x30 != 0, self.at(4) & 0x40 != 0)
    }

    /// Which machines the program runs in.
    #[must_use]
    pub fn pair(&self) -> Pair {
        match self.at(5) & 7 {
            6 => Pair::Wirings,
            5 | 7 => Pair::Restore,
            _ => Pair::Single,
        }
    }

    /// How a single machine is wired.
    #[must_use]
    pub fn wiring(&self) -> Wiring {
        if self.at(5) & 0x10 == 0 { Wiring::Kvm } else { Wiring::Bhyve }
    }

    /// What second fetches are altered with.
    #[must_use]
    pub fn flip(&self) -> Option<u8> {
        let flips = [0xff, 0x01, 0x02, 0x10, 0x80, 0x04, 0x20, 0x08];
        (self.at(6) & 1 == 0).then(|| flips[usize::from(self.at(6) >> 1 & 7)])
    }
}

/// Sizes of queues a driver may choose.
const SIZES: [u16; 8] = [16, 8, 4, 2, 1, 128, 7, 32];
/// Features of the device a driver may leave.
const LEFT: [u64; 4] = [0, 1 << 9 | 1 << 22, 1 << 15 | 1 << 11, 0x3fff & !(1 << 9)];

/// A driver's choices from three bytes; zeroes are a modern split driver with everything on.
#[must_use]
pub fn setup(a: u8, b: u8, c: u8) -> Setup {
    Setup {
        legacy: a & 0x18 == 0x18,
        packed: a & 0x20 != 0,
        no_event_idx: b & 1 != 0,
        no_indirect: b & 0x0e == 0x0e,
        in_order: b & 0x30 == 0x30,
        without: LEFT[usize::from(b >> 6)],
        size: SIZES[usize::from(c & 7)],
        msix: c & 8 != 0,
        one_queue: c & 0x70 == 0x70,
    }
}

/// Three bytes that mean these choices; a size or a set of features that no bytes mean is taken for the first there is.
#[must_use]
pub fn setup_bytes(wanted: Setup) -> [u8; 3] {
    let bit = |on: bool, bits: u8| if on { bits } else { 0 };
    let without = LEFT.iter().position(|left| *left == wanted.without).unwrap_or(0) as u8;
    let size = SIZES.iter().position(|size| *size == wanted.size).unwrap_or(0) as u8;
    [
        bit(wanted.legacy, 0x18) | bit(wanted.packed, 0x20),
        bit(wanted.no_event_idx, 1) | bit(wanted.no_indirect, 0x0e) | bit(wanted.in_order, 0x30) | without << 6,
        size | bit(wanted.msix, 8) | bit(wanted.one_queue, 0x70),
    ]
}

/// The input that is this program: at most [`MAX_OPS`] operations. `None` where `table` lacks one.
#[must_use]
pub fn encode(knobs: [u8; KNOBS], ops: &[Op], table: &[Code]) -> Option<Vec<u8>> {
    let mut data = knobs.to_vec();
    for op in ops.iter().take(MAX_OPS) {
        data.extend(op.encode(table)?);
    }
    Some(data)
}

/// A decoded input.
#[derive(Clone, Copy, Debug)]
pub struct Program<'a> {
    /// Its knobs.
    pub knobs: Knobs<'a>,
    records: &'a [u8],
    table: &'static [Code],
}

impl<'a> Program<'a> {
    /// Any bytes are one; `table` says what their codes mean.
    #[must_use]
    pub fn new(data: &'a [u8], table: &'static [Code]) -> Self {
        let (knobs, records) = data.split_at(data.len().min(KNOBS));
        Self { knobs: Knobs(knobs), records: &records[..records.len().min(MAX_OPS * RECORD)], table }
    }

    /// Its operations.
    pub fn ops(&self) -> impl Iterator<Item = Op> + '_ {
        self.records.chunks(RECORD).map(|chunk| {
            let mut record = [0; RECORD];
            record[..chunk.len()].copy_from_slice(chunk);
            Op::decode(record, self.table)
        })
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.records.len().div_ceil(RECORD)
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.records.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::ops::{REGISTERS, REQUESTS};
    use super::*;

    #[test]
    fn every_set_up_has_bytes_that_mean_it() {
        for byte in 0..=255 {
            for wanted in [setup(byte, 0, 0), setup(0, byte, 0), setup(0, 0, byte), setup(byte, byte, byte)] {
                let [a, b, c] = setup_bytes(wanted);
                assert_eq!(setup(a, b, c), wanted);
            }
        }
    }

    #[test]
    fn a_program_that_is_encoded_decodes_to_the_same_steps() {
        let mut random = mutate::Random::new(5);
        for table in [REQUESTS, REGISTERS] {
            let mut data = Vec::new();
            mutate::generate(&mut random, 40, &mut data);
            let ops: Vec<Op> = Program::new(&data, table).ops().collect();
            let again = encode(data[..KNOBS].try_into().unwrap(), &ops, table).unwrap();
            assert_eq!(again[..KNOBS], data[..KNOBS]);
            assert!(Program::new(&again, table).ops().eq(ops));
        }
    }
}
