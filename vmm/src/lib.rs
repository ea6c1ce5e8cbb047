//! The zvmm process: one hardware virtual machine.

pub mod cli;
pub mod config;
pub mod control;
pub mod exit;
pub mod hypervisor;
pub mod machine;
mod logging;
pub mod run;
pub mod vcpu;
pub mod worker;
