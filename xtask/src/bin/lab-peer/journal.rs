//! A journaled writer: each record is on stable storage, as far as the file system says, before its number is. After a
//! power failure every record that was said must be there, and every one before the last that is.
//!
//! Records go by turns to the end of a log (fdatasync), into a file of their own (fsync, rename, fsync of the folder) and
//! into a slot of a file that never grows (`O_DSYNC`): what databases do.

use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Write as _};
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail, ensure};

/// A record begins with this, its stream, its length and its number: 32 bytes at a multiple of [`BLOCK`] of its file.
pub const MAGIC: &[u8; 16] = b"zvmm-lab-journal";
const BLOCK: usize = 4096;
/// A record has one to this many blocks.
const BLOCKS_MAX: u64 = 8;

const SLOTS: u64 = 64;
const SLOT_BYTES: u64 = BLOCKS_MAX * BLOCK as u64;
/// A file is removed when as many records have been written after its.
const FILE_LIFE: u64 = 60;

/// Writes records for ever from the first that is not there, or looks whether all up to `sequence` are.
pub fn run(action: &str, stream: char, folder: &Path, sequence: u64) -> anyhow::Result<()> {
    let journal = Journal { stream, folder: folder.to_owned() };
    match action {
        "check" => {
            let found = journal.check()?;
            ensure!(found >= sequence, "LOST: {stream} ends with record {found}, but {sequence} was acknowledged");
            println!("LAB-FOUND {stream} {found}");
            Ok(())
        }
        "write" => journal.write(u64::MAX, |number| {
            // One call, so that lines of two streams do not mix.
            let mut out = std::io::stdout().lock();
            out.write_all(format!("LAB-ACK {stream} {number}\n").as_bytes())?;
            Ok(out.flush()?)
        }),
        _ => bail!("a journal is written or checked, not `{action}`"),
    }
}

/// Where a record goes.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Log,
    File,
    Slot,
}

impl Kind {
    fn of(number: u64) -> Self {
        match number % 3 {
            0 => Self::Log,
            1 => Self::File,
            _ => Self::Slot,
        }
    }
}

struct Journal {
    stream: char,
    folder: PathBuf,
}

impl Journal {
    fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    fn file_path(&self, number: u64) -> PathBuf {
        self.path(&format!("record-{number}"))
    }

    /// Writes records until `last`, and calls `acknowledge` after each.
    fn write(&self, last: u64, mut acknowledge: impl FnMut(u64) -> anyhow::Result<()>) -> anyhow::Result<()> {
        let first = self.check()? + 1;
        let folder = File::open(&self.folder)?;
        let log = OpenOptions::new().create(true).append(true).open(self.path("log"))?;
        // What of a record is behind the last whole one.
        log.set_len(self.log()?.1)?;
        let slots = self.slots()?;
        // The names of both must last as long as what is in them.
        log.sync_all()?;
        folder.sync_all()?;
        for number in first..=last {
            let record = self.record(number);
            match Kind::of(number) {
                Kind::Log => {
                    (&log).write_all(&record)?;
                    log.sync_data()?;
                }
                Kind::File => {
                    let temporary = self.path("new");
                    let mut file = File::create(&temporary)?;
                    file.write_all(&record)?;
                    file.sync_all()?;
                    fs::rename(temporary, self.file_path(number))?;
                    folder.sync_all()?;
                    match number.checked_sub(FILE_LIFE).map(|old| fs::remove_file(self.file_path(old))) {
                        Some(Err(error)) if error.kind() != ErrorKind::NotFound => return Err(error.into()),
                        _ => {}
                    }
                }
                Kind::Slot => slots.write_all_at(&record, slot(number))?,
            }
            acknowledge(number)?;
        }
        Ok(())
    }

    /// The file of slots, of its full size from the beginning, where each write is on stable storage when it returns.
    fn slots(&self) -> anyhow::Result<File> {
        let path = self.path("slots");
        let mut options = OpenOptions::new();
        options.read(true).write(true);
        if fs::metadata(&path).map_or(0, |metadata| metadata.len()) < SLOTS * SLOT_BYTES {
            let mut file = options.clone().create(true).truncate(true).open(&path)?;
            file.write_all(&vec![0; (SLOTS * SLOT_BYTES) as usize])?;
            file.sync_all()?;
        }
        Ok(options.custom_flags(libc::O_DSYNC).open(path)?)
    }

    /// Number of the last record; all before it are there, or an error says which is not.
    fn check(&self) -> anyhow::Result<u64> {
        let (logged, _) = self.log()?;
        let mut last = logged.last().copied().unwrap_or(0);
        let mut files = Vec::new();
        for entry in fs::read_dir(&self.folder).context("cannot read the folder")? {
            let name = entry?.file_name().to_string_lossy().into_owned();
            let Some(number) = name.strip_prefix("record-") else { continue };
            let number: u64 = number.parse().with_context(|| format!("a file `{name}`"))?;
            let whole = fs::read(self.path(&name))? == self.record(number);
            // It had its content before it had its name.
            ensure!(whole, "LOST: file {name} is not record {number}");
            files.push(number);
            last = last.max(number);
        }
        let slots = fs::read(self.path("slots")).or_else(|error| match error.kind() {
            ErrorKind::NotFound => Ok(Vec::new()),
            _ => Err(error),
        })?;
        let held: Vec<Option<u64>> = slots.chunks(SLOT_BYTES as usize).map(|slot| self.whole(slot)).collect();
        last = last.max(held.iter().flatten().copied().max().unwrap_or(0));
        for number in 1..=last {
            match Kind::of(number) {
                Kind::Log => ensure!(logged.contains(&number), "LOST: record {number} of {last} is not in the log"),
                // The record after the last may have been begun, which removes nothing yet.
                Kind::File if number + FILE_LIFE > last => {
                    ensure!(files.contains(&number), "LOST: record {number} of {last} has no file");
                }
                // A later record may have taken its slot, or been about to: then it was the one after the last.
                Kind::Slot if number + 3 * SLOTS > last + 1 => {
                    let at = (slot(number) / SLOT_BYTES) as usize;
                    let there = held.get(at).copied().flatten();
                    ensure!(
                        there == Some(number),
                        "LOST: record {number} of {last} is not in slot {at}, but {there:?}"
                    );
                }
                Kind::File | Kind::Slot => {}
            }
        }
        Ok(last)
    }

    /// The whole records in the log, and the bytes they take; behind them may be part of one.
    fn log(&self) -> anyhow::Result<(Vec<u64>, u64)> {
        let bytes = match fs::read(self.path("log")) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok((Vec::new(), 0)),
            result => result.context("cannot read the log")?,
        };
        let (mut numbers, mut at) = (Vec::new(), 0);
        while let Some(number) = bytes.get(at..).and_then(|rest| self.whole(rest)) {
            at += record_bytes(number);
            numbers.push(number);
        }
        Ok((numbers, at as u64))
    }

    /// The number of the record that bytes begin with, if it is whole.
    fn whole(&self, bytes: &[u8]) -> Option<u64> {
        let number = u64::from_le_bytes(bytes.get(24..32)?.try_into().ok()?);
        let record = self.record(number);
        (number > 0 && bytes.get(..record.len())? == record).then_some(number)
    }

    fn record(&self, number: u64) -> Vec<u8> {
        let mut bytes = vec![0; record_bytes(number)];
        let mut state = number ^ (self.stream as u64) << 40;
        for word in bytes.chunks_mut(8) {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            word.copy_from_slice(&state.to_le_bytes()[..word.len()]);
        }
        bytes[..16].copy_from_slice(MAGIC);
        bytes[16..20].copy_from_slice(&(self.stream as u32).to_le_bytes());
        let len = bytes.len() as u32;
        bytes[20..24].copy_from_slice(&len.to_le_bytes());
        bytes[24..32].copy_from_slice(&number.to_le_bytes());
        bytes
    }
}

/// Bytes of a record, whole blocks.
fn record_bytes(number: u64) -> usize {
    (1 + number.wrapping_mul(0x9e37_79b9_7f4a_7c15) % BLOCKS_MAX) as usize * BLOCK
}

/// Where a record's slot is.
fn slot(number: u64) -> u64 {
    number / 3 % SLOTS * SLOT_BYTES
}

#[cfg(test)]
mod tests {
    use super::*;

    fn journal(dir: &tempfile::TempDir) -> Journal {
        Journal { stream: 'e', folder: dir.path().to_owned() }
    }

    /// Writes up to `last`, and returns what was acknowledged.
    fn numbers_of(journal: &Journal, last: u64) -> Vec<u64> {
        let mut numbers = Vec::new();
        let acknowledge = |number| {
            numbers.push(number);
            Ok(())
        };
        journal.write(last, acknowledge).unwrap();
        numbers
    }

    fn written(last: u64) -> (tempfile::TempDir, Journal) {
        let dir = tempfile::tempdir().unwrap();
        let journal = journal(&dir);
        assert!(numbers_of(&journal, last).into_iter().eq(1..=last));
        (dir, journal)
    }

    #[test]
    fn what_was_written_is_found_and_goes_on_from_there() {
        let (_dir, journal) = written(260);
        assert_eq!(journal.check().unwrap(), 260);
        assert_eq!(numbers_of(&journal, 263), [261, 262, 263]);
        assert_eq!(journal.check().unwrap(), 263);
    }

    #[test]
    fn an_empty_folder_holds_no_record_and_no_folder_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(journal(&dir).check().unwrap(), 0);
        assert!(run("check", 'e', dir.path(), 0).is_ok());
        assert!(run("check", 'e', dir.path(), 1).unwrap_err().to_string().contains("LOST"));
        assert!(run("check", 'e', &dir.path().join("none"), 0).is_err());
    }

    #[test]
    fn a_record_that_is_missing_from_the_log_the_folder_or_its_slot_is_missed() {
        for (damage, name) in [
            (&|dir: &Path| fs::remove_file(dir.join("log")).unwrap() as _, "log"),
            (&|dir: &Path| fs::remove_file(dir.join("record-100")).unwrap() as _, "file"),
            (&|dir: &Path| fs::remove_file(dir.join("slots")).unwrap() as _, "slots"),
            (&|dir: &Path| fs::write(dir.join("record-100"), "torn").unwrap() as _, "torn file"),
            (
                &|dir: &Path| {
                    let slots = OpenOptions::new().write(true).open(dir.join("slots")).unwrap();
                    slots.write_all_at(b"x", slot(98) + 40).unwrap();
                },
                "torn slot",
            ),
            (
                &|dir: &Path| {
                    let log = OpenOptions::new().write(true).open(dir.join("log")).unwrap();
                    log.write_all_at(b"x", 50).unwrap();
                },
                "torn log",
            ),
        ] as [(&dyn Fn(&Path), &str); 6]
        {
            let (dir, journal) = written(100);
            damage(dir.path());
            let error = journal.check().expect_err(name).to_string();
            assert!(error.contains("LOST"), "{name}: {error}");
        }
    }

    /// The power went while the next record was being written.
    #[test]
    fn what_of_the_next_record_is_there_is_no_error_and_is_cleared_away() {
        for last in [97, 98, 99, 100] {
            let (_dir, journal) = written(last);
            let next = journal.record(last + 1);
            match Kind::of(last + 1) {
                Kind::Log => {
                    let mut log = OpenOptions::new().append(true).open(journal.path("log")).unwrap();
                    log.write_all(&next[..next.len() / 2]).unwrap();
                }
                Kind::File => fs::write(journal.path("new"), &next[..10]).unwrap(),
                Kind::Slot => {
                    let slots = OpenOptions::new().write(true).open(journal.path("slots")).unwrap();
                    slots.write_all_at(&next[..512], slot(last + 1)).unwrap();
                }
            }
            assert_eq!(journal.check().unwrap(), last);
            journal.write(last + 3, |_| Ok(())).unwrap();
            assert_eq!(journal.check().unwrap(), last + 3);
        }
    }

    #[test]
    fn streams_do_not_take_each_others_records() {
        let (_dir, journal) = written(9);
        let other = Journal { stream: 'x', folder: journal.folder };
        assert!(other.check().is_err());
    }
}
