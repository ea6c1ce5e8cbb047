//! One module a target.

pub mod bhyve_argv;
pub mod blk;
pub mod config;
pub mod console;
pub mod dhcp;
pub mod legacy;
pub mod loaders;
pub mod metadata;
pub mod net;
pub mod pci_config;
pub mod qemu_argv;
pub mod qmp;
pub mod queue_packed;
pub mod queue_split;
pub mod rng;
pub mod saved_state;
pub mod transport;
pub mod vmadm;
pub mod zhyve_cmd;
