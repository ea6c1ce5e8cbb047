//! What a campaign has done so far, told on stderr once a second: `cargo xtask fuzz` reads it.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{LazyLock, Mutex, PoisonError};
use std::time::{Duration, Instant};

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
    // A clock costs more than most programs.
    if programs.is_multiple_of(256) {
        let mut told = TOLD.lock().unwrap_or_else(PoisonError::into_inner);
        if told.elapsed() >= Duration::from_secs(1) {
            *told = Instant::now();
            eprintln!("zvmm-fuzz: {programs} programs {} operations", OPERATIONS.load(Relaxed));
        }
    }
}
