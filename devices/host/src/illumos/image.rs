//! The program's segments on illumos.

/// The system maps what is touched, and no more: there is nothing to give back.
pub(crate) fn give_back() {}
