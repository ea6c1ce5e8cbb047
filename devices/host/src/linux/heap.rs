//! The heap on Linux.

/// glibc gives every thread a heap of its own; musl has one.
pub(crate) fn share_one() {
    #[cfg(target_env = "gnu")]
    // SAFETY: sets a number in the allocator, before the second thread exists.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 1);
    }
}
