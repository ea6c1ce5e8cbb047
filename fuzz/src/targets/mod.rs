//! One module a target.

pub mod blk;
pub mod config;
