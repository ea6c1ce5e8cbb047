//! What a counted run does with a disk: reads of 4 KiB at random, which the page cache has.

use std::io;
use std::path::Path;

use devices_host::engine::Kind;

use super::{EngineShape, Load, Stack, open_disk, prepare_file};
use crate::counted::CountedRun;

const FILE_BYTES: u64 = 16 << 20;

/// Makes the file that runs read.
///
/// # Errors
/// What the system says.
pub fn prepare_counted(path: &Path) -> io::Result<()> {
    prepare_file(path, FILE_BYTES)
}

/// What is read.
#[must_use]
pub fn counted_load(told: &CountedRun) -> Load {
    Load { depth: told.depth, bytes: 4096, piece_bytes: 4096, random: true, writes: false, direct: false }
}

/// zvmm's own stack, with the engine that the side is named after.
///
/// # Errors
/// As [`Stack::start`]'s, and where the file cannot be opened.
pub fn counted_stack(told: &CountedRun) -> io::Result<Stack> {
    let kind = if told.side == "threads" { Kind::Threads } else { Kind::IoUring };
    let load = counted_load(told);
    Stack::start(open_disk(&told.path, &load)?, &load, EngineShape::sleeping(kind))
}
