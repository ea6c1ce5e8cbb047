//! Benches of the hot paths, and the floors they are measured against.
