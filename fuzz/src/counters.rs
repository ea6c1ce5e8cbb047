//! What a fuzzer does not count: building a machine and taking it apart is the same code in every program, has nothing of
//! the guest's in it, and going through its counters took as long as running it.

#[cfg(fuzzing)]
pub use counted::uncounted;

/// Runs `work`: without a fuzzer nothing is counted.
#[cfg(not(fuzzing))]
pub fn uncounted<T>(work: impl FnOnce() -> T) -> T {
    work()
}

#[cfg(fuzzing)]
mod counted {
    use std::cell::Cell;

    // The linker's names for the two ends of the section that SanitizerCoverage keeps its counters in, one byte each.
    unsafe extern "C" {
        static mut __start___sancov_cntrs: u8;
        static mut __stop___sancov_cntrs: u8;
    }

    thread_local! {
        /// Kept for its allocation.
        static KEPT: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
    }

    fn counters() -> (*mut u8, usize) {
        let (start, stop) = (&raw mut __start___sancov_cntrs, &raw mut __stop___sancov_cntrs);
        (start, stop.addr() - start.addr())
    }

    /// Runs `work` and leaves the coverage counters of this process as they were before.
    pub fn uncounted<T>(work: impl FnOnce() -> T) -> T {
        let (counters, len) = counters();
        let mut kept = KEPT.take();
        kept.resize(len, 0);
        // SAFETY: the linker puts both symbols around one section, every byte of which is a counter, and the copy is as
        // long. Instrumented code adds to counters with plain loads and stores; programs run in one thread, so that none
        // of it does so meanwhile.
        unsafe { kept.as_mut_ptr().copy_from_nonoverlapping(counters, len) };
        let value = work();
        // SAFETY: as above.
        unsafe { counters.copy_from_nonoverlapping(kept.as_ptr(), len) };
        KEPT.set(kept);
        value
    }
}
