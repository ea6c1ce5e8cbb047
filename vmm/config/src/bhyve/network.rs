//! `-s SLOT,virtio-net-viona,LINK,…`: network interfaces.

use super::super::{Carrier, NetConfig, Slot};
use super::Reading;
use super::getopt::{boolean, key, parts};
use super::support::NET_KEYS;

/// What viona has when nothing is said, and the most we have.
const QUEUE_SIZE: u16 = 1024;

/// The most viona has.
const MOST_QUEUE_SIZE: u32 = 32768;

impl Reading {
    /// A network interface on a link of the zone; `who` is what notes call it. Its address is the link's.
    pub(super) fn net(&mut self, slot: Slot, conf: &str, who: &str) -> Result<(), String> {
        let mut given = parts(conf);
        let Some(link) = given.next().filter(|link| !link.is_empty()) else {
            return Err("no link is given; write virtio-net-viona,LINK".to_owned());
        };
        let (mut queue_size, mut promiscuous) = (QUEUE_SIZE, false);
        for part in given {
            let (known, value) = key(part, &NET_KEYS)?;
            if known.argument == "BOOL" {
                boolean(value).map_err(|why| format!("{}: {why}", known.word))?;
            }
            if !self.is_done(known, &format!("{who}: {part}")).map_err(|why| format!("{part}: {why}"))? {
                continue;
            }
            match known.word {
                "vqsize" => queue_size = descriptors(value)?,
                "feature_mask" => no_mask(value)?,
                "promiscphys" => promiscuous = boolean(value)?,
                word => return Err(format!("{word} has no reader")),
            }
        }
        self.config.nets.push(NetConfig {
            slot: Some(slot),
            queue_size,
            carrier: Carrier::Vnic,
            promiscuous,
            ..NetConfig::new(link)
        });
        Ok(())
    }
}

fn descriptors(text: &str) -> Result<u16, String> {
    match text.parse::<u32>() {
        Ok(size) if !(4..=MOST_QUEUE_SIZE).contains(&size) || !size.is_power_of_two() => {
            Err(format!("vqsize {size} is not possible; it is a power of two from 4 to {MOST_QUEUE_SIZE}"))
        }
        Ok(size) => match u16::try_from(size).ok().filter(|size| *size <= QUEUE_SIZE) {
            Some(size) => Ok(size),
            None => Err(format!("vqsize {size} is more than a queue has here; the most is {QUEUE_SIZE}")),
        },
        Err(_) => Err(format!("vqsize: '{text}' is not a number")),
    }
}

fn no_mask(text: &str) -> Result<(), String> {
    let number = match text.strip_prefix("0x") {
        Some(hex) => u64::from_str_radix(hex, 16),
        None => text.parse(),
    };
    match number {
        Ok(0) => Ok(()),
        Ok(_) => Err(format!("feature_mask={text}: features are not masked; leave it out")),
        Err(_) => Err(format!("feature_mask: '{text}' is not a number")),
    }
}
