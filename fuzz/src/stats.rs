//! What a campaign has done so far, told on stderr once a second: `cargo xtask fuzz` reads it.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{LazyLock, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::counters::uncounted;

static PROGRAMS: AtomicU64 = AtomicU64::new(0);
static OPERATIONS: AtomicU64 = AtomicU64::new(0);
static TOLD: LazyLock<Mutex<Instant>> = LazyLock::new(|| Mutex::new(Instant::now()));

/// Adds the operations of one program: a target calls this once a run, when it knows how many steps its input has.
pub fn operations(count: usize) {
    OPERATIONS.fetch_add(count as u64, Relaxed);
}

/// One more program runs.
pub fn program() {
    let programs = PROGRAMS.fetch_add(1, Relaxed) + 1;
    // A clock costs more than most programs. And it is no doing of an input's that a second is over: counted, it would make
    // some input look new, another one each time, and with it all that follow.
    if programs.is_multiple_of(256) {
        uncounted(|| tell(programs));
    }
}

fn tell(programs: u64) {
    let mut told = TOLD.lock().unwrap_or_else(PoisonError::into_inner);
    if told.elapsed() >= Duration::from_secs(1) {
        *told = Instant::now();
        eprintln!("zvmm-fuzz: {programs} programs {} operations", OPERATIONS.load(Relaxed));
    }
}
