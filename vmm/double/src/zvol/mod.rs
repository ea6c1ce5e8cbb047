//! Volumes (zvols) by their raw device: `/dev/zvol/rdsk/…`.
//!
//! A volume's stable storage is a file, and its write cache is memory of this process: what was not committed when the
//! machine crashes ([`Zvol::crash`]), or when this process is killed, is not in the file.

mod content;
mod node;
pub mod rules;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use devices_host::sys::{Errno, OpenAccess, OpenFlags, SysResult};

use self::content::Content;
use self::node::OpenVolume;
use crate::node::{Driver, Node};
use crate::sys::DoubleSys;

/// Calls that are remembered; a guest must not eat the memory.
const MOST_CALLS: usize = 100_000;

/// What the driver does when it is asked to free space.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unmap {
    /// It does, and says so.
    Works,
    /// It says that it cannot (the tunable `zvol_unmap_enabled` is off).
    Refused,
}

/// What a volume is like.
#[derive(Clone, Debug)]
pub struct VolumeSpec {
    /// Its size in bytes.
    pub size_bytes: u64,
    /// Its `volblocksize`.
    pub block_bytes: u32,
    /// The property `readonly`.
    pub read_only: bool,
    /// Its write cache as the last one left it.
    pub write_cache: bool,
    /// Whether its write cache can be looked at and set, as every zvol's can.
    pub switchable: bool,
    /// Whether the driver has DKIOCGMEDIAINFOEXT, as every kernel of the last ten years does.
    pub media_ext: bool,
    /// Freeing space.
    pub unmap: Unmap,
}

impl VolumeSpec {
    /// A volume as they are made on SmartOS, of this size.
    #[must_use]
    pub fn new(size_bytes: u64) -> Self {
        Self {
            size_bytes,
            block_bytes: 8192,
            read_only: false,
            write_cache: false,
            switchable: true,
            media_ext: true,
            unmap: Unmap::Works,
        }
    }
}

/// The driver: all volumes of a host.
#[derive(Default)]
pub struct Zvols {
    volumes: Mutex<BTreeMap<String, Arc<Zvol>>>,
}

impl Zvols {
    /// The driver of a host without volumes.
    #[must_use]
    pub fn new() -> Arc<Self> {
        Arc::new(Self::default())
    }

    /// Makes a volume, with the raw device `path` and its content on stable storage in `stable`.
    pub fn add(&self, path: &str, stable: File, spec: VolumeSpec) -> Arc<Zvol> {
        let state = State {
            write_cache: spec.write_cache,
            size_bytes: spec.size_bytes,
            content: Content::new(stable),
            opens: 0,
            exclusive: false,
            calls: Vec::new(),
        };
        let volume = Arc::new(Zvol { spec, guest_memory: Mutex::default(), state: Mutex::new(state) });
        self.volumes.lock().unwrap_or_else(PoisonError::into_inner).insert(path.to_owned(), volume.clone());
        volume
    }

    fn find(&self, path: &str) -> Option<Arc<Zvol>> {
        self.volumes.lock().unwrap_or_else(PoisonError::into_inner).get(path).cloned()
    }
}

impl Driver for Zvols {
    fn serves(&self, path: &str) -> bool {
        self.find(path).is_some()
    }

    fn open(&self, process: &DoubleSys, path: &str, flags: OpenFlags) -> SysResult<Arc<dyn Node>> {
        let volume = self.find(path).ok_or(Errno::ENOENT)?;
        let writes = flags.access != OpenAccess::Read;
        if writes && volume.spec.read_only {
            return Err(Errno::EROFS);
        }
        if writes && !flags.exclusive {
            process.ledger().note(&rules::EXCLUSIVE, path);
        }
        let mut state = volume.state();
        if state.exclusive || (flags.exclusive && state.opens > 0) {
            return Err(Errno::EBUSY);
        }
        state.opens += 1;
        state.exclusive = flags.exclusive;
        state.note(|| "open".to_owned());
        drop(state);
        Ok(Arc::new(OpenVolume::new(process.host(), path, volume, writes)))
    }

    fn leaks(&self) -> Vec<String> {
        Vec::new()
    }
}

/// A volume.
pub struct Zvol {
    spec: VolumeSpec,
    guest_memory: Mutex<Vec<Range<usize>>>,
    state: Mutex<State>,
}

struct State {
    write_cache: bool,
    size_bytes: u64,
    content: Content,
    opens: usize,
    exclusive: bool,
    calls: Vec<String>,
}

impl State {
    fn note(&mut self, call: impl FnOnce() -> String) {
        if self.calls.len() < MOST_CALLS {
            self.calls.push(call());
        }
    }
}

impl Zvol {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Its write cache now.
    #[must_use]
    pub fn write_cache(&self) -> bool {
        self.state().write_cache
    }

    /// The machine crashes: what is not on stable storage is lost, but for the blocks of 512 bytes, by number, that had
    /// just been written back. Says how many were lost.
    ///
    /// # Errors
    /// What the file says.
    pub fn crash(&self, had_been_written: impl FnMut(u64) -> bool) -> io::Result<usize> {
        self.state().content.crash(had_been_written)
    }

    /// Changes its size, as `zfs set volsize` does.
    pub fn resize(&self, size_bytes: u64) {
        self.state().size_bytes = size_bytes;
    }

    /// What was asked of it so far, one call a line: requests by their names, transfers with offset and length.
    #[must_use]
    pub fn calls(&self) -> Vec<String> {
        self.state().calls.clone()
    }

    /// Memory of the process that is its guest's.
    pub fn guest_memory(&self, range: Range<usize>) {
        self.guest_memory.lock().unwrap_or_else(PoisonError::into_inner).push(range);
    }

    fn is_guest_memory(&self, bytes: &[u8]) -> bool {
        let bytes = bytes.as_ptr_range();
        let ranges = self.guest_memory.lock().unwrap_or_else(PoisonError::into_inner);
        ranges.iter().any(|range| bytes.start.addr() < range.end && range.start < bytes.end.addr())
    }
}
