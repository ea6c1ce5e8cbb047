//! The zvmm process: one hardware virtual machine.

pub mod config;
