//! The zvmm process: one hardware virtual machine.

pub mod cli;
pub mod config;
pub mod exit;
pub mod hypervisor;
pub mod run;
pub mod vcpu;
pub mod worker;
