//! The zvmm process: one hardware virtual machine.

pub mod cli;
pub mod control;
pub mod exit;
#[doc(hidden)]
pub mod fuzzing;
pub mod hypervisor;
mod logging;
pub mod machine;
pub mod run;
pub mod sandbox;
pub mod vcpu;
pub mod worker;

pub use cli::main_with;
pub use zvmm_config as config;
