//! `-s SLOT,virtio-blk,PATH,…`: disks.

use super::super::{DiskCache, DiskConfig, Slot};
use super::Reading;
use super::getopt::{key, parts};
use super::support::DISK_KEYS;

impl Reading {
    /// A disk; `who` is what notes call it.
    pub(super) fn disk(&mut self, slot: Slot, conf: &str, who: &str) -> Result<(), String> {
        let mut given = parts(conf);
        let Some(path) = given.next().filter(|path| !path.is_empty()) else {
            return Err("no path is given; write virtio-blk,PATH".to_owned());
        };
        let mut disk = DiskConfig { slot: Some(slot), ..DiskConfig::new(path) };
        for part in given {
            let (known, value) = key(part, &DISK_KEYS)?;
            if !self.is_done(known, &format!("{who}: {part}")).map_err(|why| format!("{part}: {why}"))? {
                continue;
            }
            match known.word {
                "nocache" => disk.cache = Some(DiskCache::Direct),
                "ro" => disk.read_only = true,
                "nodelete" => disk.discard = false,
                "sync" | "direct" => disk.write_through = true,
                "ser" | "serial" => disk.serial = Some(value.to_owned()),
                "sectorsize" => {
                    // One size is both, as bhyve has it.
                    let (logical, physical) = value.split_once('/').unwrap_or((value, value));
                    (disk.block_size, disk.physical_block_size) = (Some(bytes(logical)?), Some(bytes(physical)?));
                }
                word => return Err(format!("{word} has no reader")),
            }
        }
        self.config.disks.push(disk);
        Ok(())
    }
}

fn bytes(text: &str) -> Result<u32, String> {
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let number = text.parse().ok().filter(|_| digits);
    number.ok_or_else(|| format!("sectorsize: '{text}' is not a number of bytes; write sectorsize=LOGICAL[/PHYSICAL]"))
}
