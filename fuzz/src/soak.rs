//! Random programs without a fuzzer, numbered: the same number is the same program, whatever ran before it.

use crate::program::mutate::{Random, generate};

/// Program `number`.
pub fn program(number: u64, data: &mut Vec<u8>) {
    let mut random = Random::new(number);
    let count = 8 + random.below(25);
    generate(&mut random, count, data);
}
