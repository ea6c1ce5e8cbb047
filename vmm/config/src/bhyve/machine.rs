//! What is no device: vCPUs, memory, identity.

use super::super::values::parse_size;
use super::super::{Topology, Uuid, VmConfig, vcpu_limits};
use super::Reading;
use super::getopt::parts;

/// vCPUs as given: in whatever part, by `-c` or `-o`.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Cpus {
    cpus: Option<u64>,
    sockets: Option<u64>,
    cores: Option<u64>,
    threads: Option<u64>,
}

impl Cpus {
    /// Takes over the value of `-c`; what was given before stays where this says nothing.
    pub(super) fn read(&mut self, text: &str) -> Result<(), String> {
        if text.is_empty() {
            return Err("no value is given; write a number of vCPUs".to_owned());
        }
        for part in parts(text) {
            let (key, value) = part.split_once('=').unwrap_or(("cpus", part));
            self.set(key, value)?;
        }
        Ok(())
    }

    /// Takes over one number.
    pub(super) fn set(&mut self, key: &str, value: &str) -> Result<(), String> {
        let place = match key {
            "cpus" => &mut self.cpus,
            "sockets" => &mut self.sockets,
            "cores" => &mut self.cores,
            "threads" => &mut self.threads,
            _ => {
                let keys = ["cpus", "sockets", "cores", "threads"];
                return Err(super::super::nearest::unknown("key", key, keys.into_iter()));
            }
        };
        let is_number = !value.is_empty() && value.bytes().all(|byte| byte.is_ascii_digit());
        match value.parse::<u64>() {
            Ok(0) => Err(format!("{key} cannot be 0")),
            Ok(number) => {
                *place = Some(number);
                Ok(())
            }
            Err(_) if is_number => Err(format!("{key} {value} is too large")),
            Err(_) => Err(format!("'{value}' is not a number of {key}")),
        }
    }

    /// Gives the guest its vCPUs. Under bhyve a vCPU is a socket of its own unless something else is said.
    pub(super) fn put(self, config: &mut VmConfig) -> Result<(), String> {
        let (cores, threads) = (self.cores.unwrap_or(1), self.threads.unwrap_or(1));
        let in_socket = cores.saturating_mul(threads);
        let sockets = match (self.sockets, self.cpus) {
            (Some(sockets), _) => sockets,
            (None, Some(cpus)) => cpus.div_ceil(in_socket),
            (None, None) => 1,
        };
        let product = sockets.saturating_mul(in_socket);
        let cpus = self.cpus.unwrap_or(product);
        if cpus != product {
            let shape = format!("{sockets} sockets × {cores} cores × {threads} threads");
            return Err(format!("{shape} are {product} vCPUs, and not {cpus}"));
        }
        let small = |number| u8::try_from(number).map_err(|_| vcpu_limits(cpus));
        config.cpus.count = small(cpus)?;
        config.cpus.topology =
            Some(Topology { sockets: small(sockets)?, cores: small(cores)?, threads: small(threads)? });
        Ok(())
    }
}

/// Reads the size of memory: a plain number below 1 Mi counts MiB, any other bytes.
pub(super) fn memory(text: &str) -> Result<u64, String> {
    const MI: u64 = 1 << 20;
    let is_number = |text: &str, radix| !text.is_empty() && text.chars().all(|digit| digit.is_digit(radix));
    let hex = text.strip_prefix("0x").or_else(|| text.strip_prefix("0X"));
    let plain = match hex {
        Some(digits) if is_number(digits, 16) => u64::from_str_radix(digits, 16).ok(),
        None if is_number(text, 10) => {
            if text.len() > 1 && text.starts_with('0') {
                return Err(format!("'{text}' begins with 0, which bhyve reads as octal; write it without"));
            }
            text.parse().ok()
        }
        _ => return parse_size(text).map_err(|error| error.to_string()),
    };
    match plain {
        Some(number) if number < MI => Ok(number * MI),
        Some(number) => Ok(number),
        None => Err(format!("'{text}' does not fit in 64 bits")),
    }
}

impl Reading {
    /// Strings of SMBIOS: only those of type 1 can be given.
    pub(super) fn smbios(&mut self, text: &str) -> Result<(), String> {
        let (kind, rest) = text.split_once(',').unwrap_or((text, ""));
        if kind != "1" {
            return Err(format!("'{kind}' is not a type that can be given; write 1,KEY=VALUE,…"));
        }
        for part in parts(rest) {
            let Some((key, value)) = part.split_once('=') else {
                return Err(format!("'{part}' is no KEY=VALUE"));
            };
            let smbios = &mut self.config.smbios;
            let place = match key {
                "manufacturer" => &mut smbios.manufacturer,
                "product" => &mut smbios.product,
                "version" => &mut smbios.version,
                "serial" => &mut smbios.serial,
                "sku" => &mut smbios.sku,
                "family" => &mut smbios.family,
                "uuid" => {
                    self.uuid(value)?;
                    continue;
                }
                _ => {
                    let keys = ["manufacturer", "product", "version", "serial", "sku", "family", "uuid"];
                    return Err(super::super::nearest::unknown("key", key, keys.into_iter()));
                }
            };
            if value.is_empty() {
                return Err(format!("{key} is empty; leave it out for the built-in one"));
            }
            *place = Some(value.to_owned());
        }
        Ok(())
    }

    pub(super) fn uuid(&mut self, text: &str) -> Result<(), String> {
        let uuid: Uuid = text.parse().map_err(|error: super::super::BadValue| error.to_string())?;
        self.config.uuid = Some(uuid);
        Ok(())
    }
}
