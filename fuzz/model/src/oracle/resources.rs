//! What a step may cost: allocations and rounds are bounded by queue sizes, never by a guest's numbers.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

/// Counts allocations of each thread and their bytes.
pub struct Counting;

thread_local! {
    static COUNT: Cell<u64> = const { Cell::new(0) };
    static BYTES: Cell<u64> = const { Cell::new(0) };
}

fn count(bytes: usize) {
    // A thread that is ending has no counters any more.
    let _ = COUNT.try_with(|count| count.set(count.get() + 1));
    let _ = BYTES.try_with(|total| total.set(total.get().wrapping_add(bytes as u64)));
}

// SAFETY: every call goes to the system's allocator unchanged; the counters need no allocation of their own.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size());
        // SAFETY: the caller's promises are passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count(layout.size());
        // SAFETY: the caller's promises are passed on.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count(size);
        // SAFETY: the caller's promises are passed on.
        unsafe { System.realloc(pointer, layout, size) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller's promises are passed on.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Allocations of this thread so far, and their bytes.
#[must_use]
pub fn allocations() -> (u64, u64) {
    (COUNT.get(), BYTES.get())
}

/// While it lives, allocations are the oracles' and not counted.
pub struct Quiet(u64, u64);

impl Quiet {
    /// Stops counting.
    #[must_use]
    pub fn begin() -> Self {
        Self(COUNT.get(), BYTES.get())
    }
}

impl Drop for Quiet {
    fn drop(&mut self) {
        COUNT.set(self.0);
        BYTES.set(self.1);
    }
}
