//! One module a target.

pub mod blk;
pub mod config;
pub mod legacy;
pub mod loaders;
pub mod pci_config;
pub mod qmp;
pub mod saved_state;
