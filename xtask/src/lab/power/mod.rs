//! A disk for the outer machine that loses power as disks do: what was written since the last flush is lost, all of it or
//! any part. It is an NBD server (the protocol's document: github.com/NetworkBlockDevice/nbd, doc/proto.md) of one export
//! on a unix socket, and it keeps a record of the order in which journal records reach it.

mod nbd;
mod trace;

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use anyhow::Context as _;

pub use trace::Trace;

/// What a client may read and write.
pub const SECTOR: usize = 512;
/// Sectors of a physical block, which a disk writes whole or not at all. ext4 counts on it: a journal whose last commit is
/// there in part is one that it refuses to mount.
const BLOCK_SECTORS: u64 = 8;

/// The disk's state.
struct State {
    /// What is on it for good.
    stable: File,
    size_bytes: u64,
    /// What is in its cache, by sector.
    cache: BTreeMap<u64, [u8; SECTOR]>,
    trace: Trace,
}

impl State {
    fn read(&self, offset: u64, bytes: &mut [u8]) -> io::Result<()> {
        self.stable.read_exact_at(bytes, offset)?;
        let first = offset / SECTOR as u64;
        let sectors = (bytes.len() / SECTOR) as u64;
        for (number, sector) in self.cache.range(first..first + sectors) {
            let at = (number - first) as usize * SECTOR;
            bytes[at..at + SECTOR].copy_from_slice(sector);
        }
        Ok(())
    }

    fn write(&mut self, offset: u64, bytes: &[u8], durable: bool) -> io::Result<()> {
        self.trace.written(bytes, durable);
        let first = offset / SECTOR as u64;
        for (number, sector) in (first..).zip(bytes.as_chunks::<SECTOR>().0) {
            if durable {
                self.cache.remove(&number);
            } else {
                self.cache.insert(number, *sector);
            }
        }
        if durable { self.stable.write_all_at(bytes, offset) } else { Ok(()) }
    }

    fn flush(&mut self) -> io::Result<()> {
        self.trace.flushed();
        self.keep(|_| true)
    }

    /// Empties the cache; the blocks of which `survives` says so get onto the disk.
    fn keep(&mut self, mut survives: impl FnMut(u64) -> bool) -> io::Result<()> {
        for (number, sector) in std::mem::take(&mut self.cache) {
            if survives(number / BLOCK_SECTORS) {
                self.stable.write_all_at(&sector, number * SECTOR as u64)?;
            }
        }
        Ok(())
    }
}

/// The disk, for one life of the outer machine.
pub struct PowerDisk {
    state: Arc<Mutex<State>>,
    server: JoinHandle<anyhow::Result<()>>,
}

impl PowerDisk {
    /// Offers `image` on `socket` to one client. It has the records that were acknowledged `before`, by stream.
    ///
    /// # Errors
    /// When one of them cannot be opened.
    pub fn serve(image: &Path, socket: &Path, before: &BTreeMap<char, u64>) -> anyhow::Result<Self> {
        let stable = File::options().read(true).write(true).open(image).context("cannot open the disk's image")?;
        let size_bytes = stable.metadata()?.len() / SECTOR as u64 * SECTOR as u64;
        let trace = Trace::after(before);
        let state = Arc::new(Mutex::new(State { stable, size_bytes, cache: BTreeMap::new(), trace }));
        let _ = std::fs::remove_file(socket);
        let listener = UnixListener::bind(socket).context("cannot offer the disk")?;
        let served = state.clone();
        let server = std::thread::spawn(move || nbd::serve(&listener.accept()?.0, &served));
        Ok(Self { state, server })
    }

    /// The power is gone, and with it the client (which must have ended): of what was not flushed only those blocks of
    /// 4096 bytes are there of which `survives` says so. Returns what the disk has seen.
    ///
    /// # Errors
    /// When the client said what no client says, or the image cannot be written.
    pub fn cut_power(self, survives: impl FnMut(u64) -> bool) -> anyhow::Result<Trace> {
        self.server.join().map_err(|_| anyhow::anyhow!("the disk's thread panicked"))??;
        let mut state = lock(&self.state);
        state.keep(survives).context("cannot write the disk's image")?;
        Ok(std::mem::take(&mut state.trace))
    }
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn disk(dir: &tempfile::TempDir) -> State {
        let path = dir.path().join("disk");
        let stable = File::options().create(true).truncate(true).read(true).write(true).open(path).unwrap();
        stable.set_len(1 << 20).unwrap();
        State { stable, size_bytes: 1 << 20, cache: BTreeMap::new(), trace: Trace::default() }
    }

    fn read(state: &State, sector: u64) -> u8 {
        let mut bytes = [0; SECTOR];
        state.read(sector * SECTOR as u64, &mut bytes).unwrap();
        assert!(bytes.iter().all(|byte| *byte == bytes[0]));
        bytes[0]
    }

    #[test]
    fn what_was_flushed_outlives_the_power_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let mut disk = disk(&dir);
        disk.write(0, &[1; 4 * SECTOR], false).unwrap();
        disk.flush().unwrap();
        disk.write(SECTOR as u64, &[2; 16 * SECTOR], false).unwrap();
        assert_eq!([0, 1, 7, 8, 16, 17].map(|sector| read(&disk, sector)), [1, 2, 2, 2, 2, 0]);
        disk.keep(|block| block == 1).unwrap();
        assert_eq!([0, 1, 7, 8, 16, 17].map(|sector| read(&disk, sector)), [1, 1, 0, 2, 0, 0]);
    }

    #[test]
    fn a_durable_write_is_there_and_takes_older_ones_out_of_the_cache() {
        let dir = tempfile::tempdir().unwrap();
        let mut disk = disk(&dir);
        disk.write(0, &[1; 2 * SECTOR], false).unwrap();
        disk.write(0, &[2; SECTOR], true).unwrap();
        assert_eq!([0, 1].map(|sector| read(&disk, sector)), [2, 1]);
        disk.keep(|_| false).unwrap();
        assert_eq!([0, 1].map(|sector| read(&disk, sector)), [2, 0]);
    }
}
