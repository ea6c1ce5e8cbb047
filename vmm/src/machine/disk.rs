//! What a configured disk comes to: on the host, and in its guest's eyes.

use std::sync::Arc;

use devices::virtio::blk::{BlkConfig, EraseLimits, OnError, SECTOR_BYTES};
use devices_host::disk::{Cache, Disk, DiskError, DiskOptions, DiskProblem, IoSizes};
use devices_host::engine::{EngineOptions, Kind, MAX_THREADS};
use devices_host::sys::Sys;

use super::StartError;
use crate::config::{DiskCache, DiskConfig, DiskEngine, ReadError, WriteError};

/// Threads of one disk's engine, shared out among its queues.
const DISK_THREADS: usize = 8;

/// Most bytes of bounce buffers of one disk, shared out among its queues.
const BOUNCE_BYTES: usize = 16 << 20;

/// Most sectors of one DISCARD or WRITE_ZEROES request: 1 GiB, so that one request cannot keep a worker for long.
const ERASE_SECTORS: u32 = 1 << 21;

/// Most segments of one DISCARD or WRITE_ZEROES request: what a guest frees in one go is rarely in one piece.
const ERASE_SEGMENTS: u32 = 16;

/// Opens a disk: a volume through `sys`, if that is given, and else through the system that the process runs on.
///
/// # Errors
/// One line that names the disk. What the configuration names and nobody can use is its fault; anything else is the
/// host's.
pub fn open(config: &DiskConfig, sys: Option<&Arc<dyn Sys>>) -> Result<Arc<Disk>, StartError> {
    opened(config, sys).map_err(start_error).and_then(|disk| fitting(config, disk))
}

/// The disk, where the configured blocks suit it; what is left out of it is said.
fn fitting(config: &DiskConfig, disk: Disk) -> Result<Arc<Disk>, StartError> {
    let line = |what: &str| format!("disk {}: {}: {what}", config.id, config.path.display());
    if let Some(what) = left_out(config, &disk).map_err(|what| StartError::Config(line(&what)))? {
        log::warn!("{}", line(&what));
    }
    Ok(Arc::new(disk))
}

/// Checks that a disk can be opened as it is configured. One that is in use may be so by the very guest that is configured,
/// and is not looked at.
///
/// # Errors
/// As [`open`].
pub fn check(config: &DiskConfig) -> Result<(), StartError> {
    match opened(config, None) {
        Err(DiskError { why: DiskProblem::InUse, .. }) => Ok(()),
        opened => opened.map_err(start_error).and_then(|disk| fitting(config, disk)).map(drop),
    }
}

fn opened(config: &DiskConfig, sys: Option<&Arc<dyn Sys>>) -> Result<Disk, DiskError> {
    let cache = match config.cache {
        None => Cache::Auto,
        Some(DiskCache::Direct) => Cache::Direct,
        Some(DiskCache::Buffered) => Cache::Buffered,
    };
    let options = DiskOptions { read_only: config.read_only, cache, guest_block_bytes: config.block_size };
    match sys {
        Some(_) => Disk::open_through(sys, &config.id, &config.path, options),
        None => Disk::open(&config.id, &config.path, options),
    }
}

fn start_error(error: DiskError) -> StartError {
    match error.why {
        DiskProblem::Query { .. } => StartError::Host(error.to_string()),
        _ => StartError::Config(error.to_string()),
    }
}

/// Whether the configured blocks suit the disk, and what is to be said of what follows its last whole one. A guest that is
/// shown smaller blocks than the disk has would ask for parts of one.
fn left_out(config: &DiskConfig, disk: &Disk) -> Result<Option<String>, String> {
    let least_bytes = disk.logical_block_bytes();
    let block_bytes = config.block_size.unwrap_or(least_bytes);
    if block_bytes < least_bytes {
        return Err(format!("has blocks of {least_bytes} bytes, so its block_size cannot be {block_bytes}"));
    }
    if config.physical_block_size.is_some_and(|bytes| bytes < block_bytes) {
        return Err(format!("has blocks of {block_bytes} bytes, so its physical_block_size cannot be less"));
    }
    let (size_bytes, left_out_bytes) = (disk.size_bytes(), disk.size_bytes() % u64::from(block_bytes));
    if left_out_bytes == size_bytes {
        return Err(format!("is too small: {size_bytes} bytes, a disk has at least one block of {block_bytes}"));
    }
    let what = format!("its last {left_out_bytes} bytes are no block of {block_bytes} and left out");
    Ok((left_out_bytes > 0).then_some(what))
}

/// How long a queue's thread looks for the next request before it sleeps. Where the process has one CPU, the guest needs it
/// to make that request.
pub fn poll_ns(config: &DiskConfig) -> u64 {
    let default = || if has_one_cpu() { 0 } else { DiskConfig::DEFAULT_POLL_US };
    u64::from(config.poll_us.unwrap_or_else(default)) * 1000
}

/// Whether vCPUs and workers take turns.
fn has_one_cpu() -> bool {
    std::thread::available_parallelism().map_or(1, std::num::NonZero::get) == 1
}

/// Bytes from which on a queue's worker does no request itself. Where it shares one CPU with the guest and copies much, it
/// has had more of that CPU than the guest: a kick then does not get it the CPU before the guest has gone to sleep, which
/// stops and starts the guest's tick as well. One that passes on what takes long runs when it is kicked.
fn apart_bytes(one_cpu: bool) -> u64 {
    if one_cpu { 64 << 10 } else { u64::MAX }
}

/// Bytes after which a step of a queue's worker takes no more requests, where the disk answers at once. io_uring costs a
/// call a step, which a second request of the usual largest size shares; it is left out where the guest may have to wait for
/// the worker's CPU, and where threads do the work: they do a single request in place. Past the page cache (`is_direct`) that
/// would be one after the other, where the threads can wait for the disk side by side.
pub fn round_bytes(kind: Kind, poll_ns: u64, is_direct: bool) -> u64 {
    match kind {
        Kind::IoUring if poll_ns > 0 => 256 << 10,
        Kind::Threads if is_direct => u64::MAX,
        _ => 128 << 10,
    }
}

/// What the guest sees of it.
pub fn seen(config: &DiskConfig, disk: &Disk, vcpus: u8) -> BlkConfig {
    let IoSizes { physical_block_bytes, minimum_bytes, optimal_bytes, discard_bytes } = disk.io_sizes();
    let block_bytes = config.block_size.unwrap_or(disk.logical_block_bytes());
    let physical_block_bytes = config.physical_block_size.unwrap_or(physical_block_bytes).max(block_bytes);
    let size_bytes = disk.size_bytes() - disk.size_bytes() % u64::from(block_bytes);
    let whole_blocks = |bytes: u32| if bytes.is_multiple_of(block_bytes) { bytes } else { 0 };
    let sectors = |bytes: u32| bytes / SECTOR_BYTES as u32;
    let zeroed = EraseLimits {
        max_sectors: ERASE_SECTORS,
        max_segments: ERASE_SEGMENTS,
        alignment_sectors: sectors(physical_block_bytes),
    };
    let discarded = EraseLimits { alignment_sectors: sectors(discard_bytes.max(physical_block_bytes)), ..zeroed };
    BlkConfig {
        capacity_sectors: size_bytes / SECTOR_BYTES,
        block_bytes,
        physical_block_bytes,
        minimum_io_bytes: whole_blocks(minimum_bytes),
        optimal_io_bytes: whole_blocks(optimal_bytes),
        read_only: disk.is_read_only(),
        serial: config.serial.clone().unwrap_or_else(|| config.id.clone()),
        queue_size: config.queue_size,
        queues: config.queue_count(vcpus),
        discard: (config.discard && disk.can_discard()).then_some(discarded),
        write_zeroes: (!disk.is_read_only()).then_some(zeroed),
        config_wce: true,
        on_write_error: match config.werror {
            WriteError::Report => OnError::Report,
            WriteError::Stop => OnError::Hold,
            WriteError::Enospc => OnError::HoldIfFull,
        },
        on_read_error: match config.rerror {
            ReadError::Report => OnError::Report,
            ReadError::Stop => OnError::Hold,
        },
    }
}

/// How each of its queues is worked on.
pub fn engine(config: &DiskConfig, queues: u16) -> EngineOptions {
    let queues = usize::from(queues).max(1);
    EngineOptions {
        threads: (DISK_THREADS / queues).clamp(1, MAX_THREADS),
        depth: usize::from(config.queue_size),
        inline_single: true,
        apart_bytes: apart_bytes(has_one_cpu()),
        cpus: Vec::new(),
        kind: match config.engine {
            DiskEngine::Threads => Kind::Threads,
            DiskEngine::IoUring => Kind::IoUring,
        },
        bounce_bytes: BOUNCE_BYTES / queues,
    }
}

/// Who does its work, as the configuration says it.
pub fn engine_name(config: &DiskConfig) -> &'static str {
    match config.engine {
        DiskEngine::Threads => "threads",
        DiskEngine::IoUring => "io_uring",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bounce_buffers_of_all_queues_and_threads_are_within_the_limit() {
        let config = DiskConfig::new("disk");
        for queues in 1..=16 {
            let options = engine(&config, queues);
            assert!(options.bounce_bytes * usize::from(queues) <= BOUNCE_BYTES && options.bounce_bytes >= 512 << 10);
            assert!(options.threads >= 1);
        }
    }

    #[test]
    fn a_step_is_longer_only_where_it_spares_a_call_and_nobody_waits_for_the_cpu() {
        let bytes = [(Kind::IoUring, 50_000), (Kind::IoUring, 0), (Kind::Threads, 50_000)]
            .map(|(kind, poll_ns)| round_bytes(kind, poll_ns, false));
        assert_eq!(bytes, [256 << 10, 128 << 10, 128 << 10]);
    }

    #[test]
    fn threads_that_wait_for_the_disk_are_given_all_there_is() {
        assert_eq!([50_000, 0].map(|poll_ns| round_bytes(Kind::Threads, poll_ns, true)), [u64::MAX; 2]);
        assert_eq!(round_bytes(Kind::IoUring, 50_000, true), 256 << 10);
    }

    #[test]
    fn a_worker_leaves_long_requests_to_others_only_where_the_guest_has_no_cpu_of_its_own() {
        assert_eq!([true, false].map(apart_bytes), [64 << 10, u64::MAX]);
        let cpus = std::thread::available_parallelism().unwrap().get();
        assert_eq!(engine(&DiskConfig::new("disk"), 1).apart_bytes, apart_bytes(cpus == 1));
    }

    #[test]
    fn configured_blocks_are_shown_and_the_size_is_a_multiple_of_them() {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(4096 + 512).unwrap();
        let config = DiskConfig {
            id: "d0".into(),
            block_size: Some(4096),
            physical_block_size: Some(8192),
            ..DiskConfig::new(file.path())
        };
        let disk = open(&config, None).unwrap();
        let shown = seen(&config, &disk, 1);
        assert_eq!((shown.capacity_sectors, shown.block_bytes, shown.physical_block_bytes), (8, 4096, 8192));
        let said = left_out(&config, &disk).unwrap();
        assert_eq!(said.as_deref(), Some("its last 512 bytes are no block of 4096 and left out"));
        let narrow = DiskConfig { block_size: None, physical_block_size: Some(1024), ..config.clone() };
        assert_eq!((seen(&narrow, &disk, 1).physical_block_bytes, left_out(&narrow, &disk)), (1024, Ok(None)));
        drop(disk);
        file.as_file().set_len(4095).unwrap();
        let refused = open(&config, None).err().unwrap().to_string();
        assert!(refused.ends_with("is too small: 3584 bytes, a disk has at least one block of 4096"), "{refused}");
    }

    #[test]
    fn a_file_shows_the_blocks_of_its_file_system_and_no_others() {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(1 << 20).unwrap();
        let config = DiskConfig { id: "d0".into(), ..DiskConfig::new(file.path()) };
        let disk = open(&config, None).unwrap();
        let seen = seen(&config, &disk, 2);
        assert_eq!((seen.capacity_sectors, seen.block_bytes, seen.physical_block_bytes), (2048, 512, 4096));
        assert_eq!((seen.minimum_io_bytes, seen.optimal_io_bytes, seen.queues), (0, 0, 2));
        assert_eq!((seen.serial.as_str(), seen.read_only), ("d0", false));
        let limits = EraseLimits { max_sectors: ERASE_SECTORS, max_segments: ERASE_SEGMENTS, alignment_sectors: 8 };
        assert_eq!(seen.write_zeroes, Some(limits));
        assert_eq!(seen.discard, disk.can_discard().then_some(limits));
    }
}
