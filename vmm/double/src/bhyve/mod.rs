//! bhyve: `/dev/vmmctl` and `/dev/vmm/<name>`.

pub mod rules;

use std::sync::Arc;

use devices_host::sys::{Errno, OpenFlags, SysResult};

use crate::node::{Driver, Node};
use crate::sys::DoubleSys;

/// The driver.
#[derive(Default)]
pub struct Vmm;

impl Vmm {
    /// The driver of a machine without VMs.
    #[must_use]
    pub fn new() -> Arc<Self> {
        Arc::default()
    }
}

impl Driver for Vmm {
    fn serves(&self, path: &str) -> bool {
        path == "/dev/vmmctl" || path.starts_with("/dev/vmm/")
    }

    fn open(&self, _process: &DoubleSys, _path: &str, _flags: OpenFlags) -> SysResult<Arc<dyn Node>> {
        Err(Errno::ENXIO)
    }

    fn leaks(&self) -> Vec<String> {
        Vec::new()
    }
}
