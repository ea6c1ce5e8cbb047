//! The `zvmm` process.

fn main() {}
