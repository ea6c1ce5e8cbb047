//! Random programs without a fuzzer, numbered: the same number is the same program, whatever ran before it.

use std::sync::atomic::{AtomicU64, Ordering};
use std::{env, panic};

use crate::Target;
use crate::program::mutate::{Random, generate};

/// The variable that holds how many programs to run in place of fuzzing.
const SOAK: &str = "ZVMM_FUZZ_SOAK";

/// The program that runs.
static NUMBER: AtomicU64 = AtomicU64::new(0);

/// In a fuzzing build: runs so many programs and ends the process, when the environment asks for that. A finding ends it
/// with a panic that says which program it was.
///
/// # Panics
/// On a finding, and when the variable holds no number.
pub fn if_asked(target: &Target) {
    let Ok(programs) = env::var(SOAK) else { return };
    let programs: u64 = programs.parse().expect(SOAK);
    let said = panic::take_hook();
    panic::set_hook(Box::new(move |info| {
        eprintln!("program {} of the soak", NUMBER.load(Ordering::Relaxed));
        said(info);
    }));
    let mut data = Vec::new();
    for number in 1..=programs {
        program(number, &mut data);
        // Panics abort here: a hook is the last that is heard.
        NUMBER.store(number, Ordering::Relaxed);
        (target.run)(&data);
    }
    println!("{}: {programs} programs", target.name);
    std::process::exit(0);
}

/// Program `number`.
pub fn program(number: u64, data: &mut Vec<u8>) {
    let mut random = Random::new(number);
    let count = 8 + random.below(25);
    generate(&mut random, count, data);
}
