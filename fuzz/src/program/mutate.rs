//! A mutator that knows records, and programs from a seed.

use std::ops::RangeInclusive;

use super::{KNOBS, RECORD};

/// A small generator: xorshift64*.
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// From a seed.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    /// The next number.
    pub fn draw(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// A number below `bound`, which is not zero.
    pub fn below(&mut self, bound: usize) -> usize {
        ((self.draw() >> 33) as usize) % bound
    }
}

/// Operations a program has at least after a mutation: short ones say little in the time they take.
const LEAST_OPS: usize = 10;
/// Operations it grows to: what needs more than a few of them needs those few close together, and two programs of half the
/// length are two chances.
const MOST_OPS: usize = 19;

/// A program of `ops` operations.
pub fn generate(random: &mut Random, ops: usize, out: &mut Vec<u8>) {
    out.clear();
    for index in 0..KNOBS {
        // Every other knob is left where everything works.
        let byte = random.draw() as u8;
        out.push(if random.below(2) == 0 && index != 7 { 0 } else { byte });
    }
    for _ in 0..ops {
        out.extend_from_slice(&record(random));
    }
}

fn record(random: &mut Random) -> [u8; RECORD] {
    let mut bytes = random.draw().to_le_bytes();
    // Mostly unspoiled, mostly direct.
    if random.below(3) > 0 {
        bytes[3] &= 0x03;
    }
    bytes
}

/// Changes `data[..size]` in place, at most `max` bytes; the new size.
pub fn mutate(data: &mut [u8], size: usize, max: usize, seed: u32) -> usize {
    mutate_within(data, size, max, seed, LEAST_OPS..=MOST_OPS)
}

/// The same for a target with another length of programs.
pub fn mutate_within(data: &mut [u8], size: usize, max: usize, seed: u32, ops_range: RangeInclusive<usize>) -> usize {
    let mut random = Random::new(seed.into());
    let max = max.min(data.len());
    let most = max.saturating_sub(KNOBS) / RECORD;
    if most == 0 {
        return size.min(max);
    }
    let mut ops = size.saturating_sub(KNOBS) / RECORD;
    if size < KNOBS {
        data[size..KNOBS].fill(0);
    }
    let (least_ops, most) = (*ops_range.start(), most.min(*ops_range.end()));
    ops = ops.min(most);
    for _ in 0..1 + random.below(3) {
        let at = |op: usize| KNOBS + op * RECORD;
        match random.below(8) {
            // A knob.
            0 => data[random.below(KNOBS)] = random.draw() as u8,
            // A new operation, somewhere.
            1 if ops < most => {
                let place = random.below(ops + 1);
                data.copy_within(at(place)..at(ops), at(place + 1));
                data[at(place)..at(place + 1)].copy_from_slice(&record(&mut random));
                ops += 1;
            }
            // One less.
            2 | 3 if ops > least_ops => {
                let place = random.below(ops);
                data.copy_within(at(place + 1)..at(ops), at(place));
                ops -= 1;
            }
            // One again, elsewhere.
            4 if ops > 0 && ops < most => {
                let (from, to) = (random.below(ops), random.below(ops + 1));
                let mut copy = [0; RECORD];
                copy.copy_from_slice(&data[at(from)..at(from + 1)]);
                data.copy_within(at(to)..at(ops), at(to + 1));
                data[at(to)..at(to + 1)].copy_from_slice(&copy);
                ops += 1;
            }
            // Two change places.
            5 if ops > 1 => {
                let (one, other) = (random.below(ops), random.below(ops));
                for byte in 0..RECORD {
                    data.swap(at(one) + byte, at(other) + byte);
                }
            }
            // One byte of one.
            _ if ops > 0 => {
                let byte = at(random.below(ops)) + random.below(RECORD);
                data[byte] = match random.below(3) {
                    0 => random.draw() as u8,
                    1 => data[byte] ^ 1 << random.below(8),
                    _ => data[byte].wrapping_add(1),
                };
            }
            _ => {}
        }
    }
    while ops < least_ops.min(most) {
        let start = KNOBS + ops * RECORD;
        data[start..start + RECORD].copy_from_slice(&record(&mut random));
        ops += 1;
    }
    KNOBS + ops * RECORD
}

/// Bytes an input has at least that is no program of records: about as many operations as those have.
const LEAST_BYTES: usize = 112;

/// Lets an input of `data[..size]` go on at random where it is short, at most `max` bytes; the new size. libFuzzer alone
/// prefers short ones, which say little in the time it takes to build a machine.
pub fn lengthen(data: &mut [u8], size: usize, max: usize, seed: u32) -> usize {
    let least = LEAST_BYTES.min(max).min(data.len());
    let mut random = Random::new(seed.into());
    if let Some(rest) = data.get_mut(size..least) {
        rest.fill_with(|| random.draw() as u8);
    }
    size.max(least)
}
