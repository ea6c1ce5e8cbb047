//! illumos bhyve: `/dev/vmmctl` and `/dev/vmm/<name>`, behind [`Sys`](devices_host::sys::Sys).

pub mod abi;
