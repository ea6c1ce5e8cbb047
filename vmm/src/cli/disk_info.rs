//! `zvmm disk-info`: what guests would see of disks, without a guest.

use std::fmt;
use std::path::PathBuf;

use clap::Args;
use devices::virtio::VirtioDevice as _;
use devices::virtio::blk::{BlkDevice, EraseLimits, SECTOR_BYTES, feature_names};
use serde::Serialize;

use super::GuestArgs;
use crate::config::{ConfigError, DiskConfig, VmConfig};
use crate::exit::Exit;
use crate::logging;
use crate::machine::write_through::WriteThrough;
use crate::machine::{StartError, disk};

#[derive(Debug, Args)]
pub(super) struct DiskInfoArgs {
    /// A disk, as for --disk
    #[arg(value_name = "PATH[,KEY=VALUE…]")]
    disks: Vec<String>,
    /// Print JSON: a list with an object for each disk
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    pub(super) guest: Box<GuestArgs>,
}

/// Everything a guest and its operator can know of a disk before it runs. Sizes in bytes.
#[derive(Debug, Serialize)]
struct DiskInfo {
    id: String,
    path: PathBuf,
    capacity_bytes: u64,
    logical_block_bytes: u32,
    physical_block_bytes: u32,
    minimum_io_bytes: u32,
    optimal_io_bytes: u32,
    read_only: bool,
    serial: String,
    queues: u16,
    queue_size: u16,
    /// Device features by their name in virtio 1.3 §5.2.3, and those of its rings.
    features: Vec<&'static str>,
    /// `direct` or `buffered`.
    cache: &'static str,
    /// Why not `direct`, where that was not asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    why_buffered: Option<String>,
    engine: &'static str,
    discard: Option<Erase>,
    write_zeroes: Option<Erase>,
}

#[derive(Debug, Serialize)]
struct Erase {
    /// Of one segment.
    max_bytes: u64,
    /// Of one request.
    max_segments: u32,
    alignment_bytes: u64,
}

impl From<EraseLimits> for Erase {
    fn from(limits: EraseLimits) -> Self {
        let bytes = |sectors: u32| u64::from(sectors) * SECTOR_BYTES;
        Self {
            max_bytes: bytes(limits.max_sectors),
            max_segments: limits.max_segments,
            alignment_bytes: bytes(limits.alignment_sectors),
        }
    }
}

impl DiskInfo {
    /// Opens the disk as a run would, and closes it again.
    fn of(config: &DiskConfig, vcpus: u8) -> Result<Self, StartError> {
        let opened = disk::open(config, None)?;
        let seen = disk::seen(config, &opened, vcpus);
        let device = BlkDevice::new(seen.clone());
        let features = match config.write_through {
            true => WriteThrough(device).features(),
            false => device.features(),
        };
        let rings = [(config.packed, "RING_PACKED"), (config.in_order, "IN_ORDER")];
        let rings = rings.into_iter().filter_map(|(offered, name)| offered.then_some(name));
        Ok(Self {
            id: config.id.clone(),
            path: config.path.clone(),
            capacity_bytes: seen.capacity_sectors * SECTOR_BYTES,
            logical_block_bytes: seen.block_bytes,
            physical_block_bytes: seen.physical_block_bytes,
            minimum_io_bytes: seen.minimum_io_bytes,
            optimal_io_bytes: seen.optimal_io_bytes,
            read_only: seen.read_only,
            serial: seen.serial,
            queues: seen.queues,
            queue_size: seen.queue_size,
            features: feature_names(features).chain(rings).collect(),
            cache: if opened.alignment().is_some() { "direct" } else { "buffered" },
            why_buffered: opened.why_not_direct().map(|why| why.to_string()),
            engine: disk::engine_name(config),
            discard: seen.discard.map(Erase::from),
            write_zeroes: seen.write_zeroes.map(Erase::from),
        })
    }
}

impl fmt::Display for DiskInfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { capacity_bytes, logical_block_bytes, physical_block_bytes, queues, queue_size, .. } = self;
        let or_none = |bytes: u32| if bytes == 0 { "not said".to_owned() } else { format!("{bytes} bytes") };
        let erase = |erase: &Option<Erase>| match erase {
            None => "not offered".to_owned(),
            Some(Erase { max_bytes, max_segments, alignment_bytes }) => {
                format!("up to {max_segments} ranges of {max_bytes} bytes a request, aligned to {alignment_bytes}")
            }
        };
        let why = self.why_buffered.as_ref().map(|why| format!(" ({why})")).unwrap_or_default();
        writeln!(f, "{}: {}", self.id, logging::line(self.path.display()))?;
        writeln!(f, "  capacity      {capacity_bytes} bytes")?;
        writeln!(f, "  blocks        {logical_block_bytes} bytes logical, {physical_block_bytes} physical")?;
        writeln!(
            f,
            "  best I/O      smallest {}, optimal {}",
            or_none(self.minimum_io_bytes),
            or_none(self.optimal_io_bytes)
        )?;
        writeln!(f, "  read-only     {}", if self.read_only { "yes" } else { "no" })?;
        writeln!(f, "  serial        {}", self.serial)?;
        writeln!(f, "  queues        {queues} of {queue_size} descriptors")?;
        writeln!(f, "  features      {}", self.features.join(" "))?;
        writeln!(f, "  cache         {}{why}", self.cache)?;
        writeln!(f, "  engine        {}", self.engine)?;
        writeln!(f, "  discard       {}", erase(&self.discard))?;
        write!(f, "  write zeroes  {}", erase(&self.write_zeroes))
    }
}

/// Prints what the guest of a configuration would see of its disks.
pub(super) fn run(args: DiskInfoArgs) -> Result<Exit, ConfigError> {
    let DiskInfoArgs { disks, json, mut guest } = args;
    guest.disk.extend(disks);
    let config: VmConfig = guest.into_config()?;
    if config.disks.is_empty() {
        return Err(ConfigError::Usage("no disk is given; name one, or a configuration that has one".to_owned()));
    }
    if let Some(problem) = config.disk_problems().into_iter().next() {
        return Err(problem);
    }
    config.check_images()?;
    logging::init(&config.log);
    let mut infos = Vec::new();
    for disk in &config.disks {
        match DiskInfo::of(disk, config.cpus.count) {
            Ok(info) => infos.push(info),
            Err(error) => {
                logging::say(&error);
                return Ok(error.exit());
            }
        }
    }
    if json {
        logging::print(serde_json::to_string_pretty(&infos).unwrap_or_else(|error| error.to_string()));
    } else {
        infos.iter().for_each(logging::print);
    }
    Ok(Exit::Done)
}
