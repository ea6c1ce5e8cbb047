//! The heap on illumos.

/// libc has one heap for all threads.
pub(crate) fn share_one() {}
