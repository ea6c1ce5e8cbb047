//! `-s SLOT,virtio-net-viona,LINK,…`: network interfaces.

use super::super::nets::mask;
use super::super::{Carrier, NetConfig, Slot};
use super::Reading;
use super::getopt::{boolean, key, parts};
use super::support::NET_KEYS;

/// What viona has when nothing is said, and the most we have.
const QUEUE_SIZE: u16 = 1024;

/// The most viona has.
const MOST_QUEUE_SIZE: u32 = 32768;
const MOST_PAIRS: u32 = 256;

impl Reading {
    /// A network interface on a link of the zone; `who` is what notes call it. Its address is the link's.
    pub(super) fn net(&mut self, slot: Slot, conf: &str, who: &str) -> Result<(), String> {
        let mut given = parts(conf);
        let Some(link) = given.next().filter(|link| !link.is_empty()) else {
            return Err("no link is given; write virtio-net-viona,LINK".to_owned());
        };
        let mut net =
            NetConfig { slot: Some(slot), queue_size: QUEUE_SIZE, carrier: Carrier::Vnic, ..NetConfig::new(link) };
        for part in given {
            let (known, value) = key(part, &NET_KEYS)?;
            if known.argument == "BOOL" {
                boolean(value).map_err(|why| format!("{}: {why}", known.word))?;
            }
            if !self.is_done(known, &format!("{who}: {part}")).map_err(|why| format!("{part}: {why}"))? {
                continue;
            }
            match known.word {
                "vqsize" => net.queue_size = descriptors(value)?,
                "qpair" => net.queues = Some(pairs(value)?),
                "feature_mask" => net.feature_mask = mask(value).map_err(|why| format!("feature_mask: {why}"))?,
                "promiscphys" => net.promiscuous = boolean(value)?,
                "tx_copy_data" => net.tx_copy_data = Some(boolean(value)?),
                "tx_header_pad" => {
                    let bytes =
                        value.parse().map_err(|_| format!("tx_header_pad: '{value}' is not a number up to 65535"))?;
                    net.tx_header_pad = Some(bytes);
                }
                word => return Err(format!("{word} has no reader")),
            }
        }
        self.config.nets.push(net);
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

fn pairs(text: &str) -> Result<u16, String> {
    let most = NetConfig::MOST_QUEUES;
    match text.parse::<u32>() {
        Ok(pairs) if !(1..=MOST_PAIRS).contains(&pairs) => {
            Err(format!("qpair {pairs} is not possible; it is a number from 1 to {MOST_PAIRS}"))
        }
        Ok(pairs) => match u16::try_from(pairs).ok().filter(|pairs| *pairs <= most) {
            Some(pairs) => Ok(pairs),
            None => Err(format!("qpair {pairs} is more than an interface has here; the most is {most}")),
        },
        Err(_) => Err(format!("qpair: '{text}' is not a number")),
    }
}
