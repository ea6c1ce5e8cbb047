//! The process's heap.

use crate::os;

/// Lets all threads share one heap. Threads here allocate at their start and then no more, so they have nothing to
/// contend for, and a heap a thread costs system calls, page faults and pages that stay. Call it while the process has
/// one thread.
pub fn share_one() {
    os::heap::share_one();
}
