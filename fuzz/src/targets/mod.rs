//! One module a target.

pub mod config;
