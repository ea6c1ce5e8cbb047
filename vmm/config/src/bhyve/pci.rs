//! `-s`: PCI devices and their places.

use super::super::{ConfigError, ConsoleConfig, Fate, RngConfig, SerialBackend, Slot};
use super::Reading;
use super::getopt::parts;
use super::support::{DRIVERS, find, unknown};

/// Who has which place, in the words of the command line.
#[derive(Debug, Default)]
pub(super) struct Places(Vec<(Slot, String)>);

impl Places {
    fn take(&mut self, slot: Slot, who: &str) -> Result<(), String> {
        if let Some((_, other)) = self.0.iter().find(|(taken, _)| *taken == slot) {
            return Err(format!("slot {slot} is already taken by {other}"));
        }
        self.0.push((slot, who.to_owned()));
        Ok(())
    }
}

impl Reading {
    pub(super) fn pci_device(&mut self, text: &str) -> Result<(), ConfigError> {
        let wrong = |problem: String| ConfigError::setting("-s", problem);
        let Some((place, device)) = text.split_once(',') else {
            return Err(wrong(format!("'{text}' names no driver; write -s SLOT,DRIVER")));
        };
        let (driver, conf) = device.split_once(',').unwrap_or((device, ""));
        let Some(known) = find(&DRIVERS, driver) else {
            return Err(ConfigError::setting(&format!("-s {place}"), unknown("driver", driver, &DRIVERS)));
        };
        let who = format!("-s {place},{driver}");
        let problem = |problem: String| ConfigError::setting(&who, problem);
        let slot = slot(place).map_err(problem)?;
        let shown = format!("-s {}", without_secret(text));
        let is_done = self.is_done(known, &shown).map_err(problem)?;
        self.places.take(slot, &who).map_err(problem)?;
        if !is_done {
            return Ok(());
        }
        let done = match driver {
            "hostbridge" => host_bridge(slot, conf),
            "lpc" => lpc_bridge(slot, conf),
            "virtio-blk" => self.disk(slot, conf, &who),
            "virtio-net-viona" => self.net(slot, conf, &who),
            "virtio-rnd" => self.entropy(slot, conf),
            "virtio-console" => self.console(slot, conf, &who),
            _ => Err("it has no reader".to_owned()),
        };
        done.map_err(problem)
    }

    fn entropy(&mut self, slot: Slot, conf: &str) -> Result<(), String> {
        nothing_more(conf)?;
        if self.config.rng.is_some() {
            return Err("a guest has one entropy source".to_owned());
        }
        self.config.rng = Some(RngConfig { slot: Some(slot) });
        Ok(())
    }

    fn console(&mut self, slot: Slot, conf: &str, who: &str) -> Result<(), String> {
        if self.config.console.is_some() {
            return Err("a guest has one virtio-console".to_owned());
        }
        let mut ports = parts(conf);
        let port = ports.next().and_then(|port| port.split_once('='));
        let Some((name, path)) = port.filter(|(name, path)| !name.is_empty() && !path.is_empty()) else {
            return Err("no port is given; write virtio-console,NAME=SOCKET".to_owned());
        };
        if ports.next().is_some() {
            return Err("it has one port".to_owned());
        }
        self.note(&format!("{who}: the name '{name}' of its port"), Fate::NotBuilt);
        self.config.console = Some(ConsoleConfig { backend: SerialBackend::Socket(path.into()), slot: Some(slot) });
        Ok(())
    }
}

/// Reads `DEVICE`, `DEVICE:FUNCTION` or `BUS:DEVICE:FUNCTION`.
fn slot(text: &str) -> Result<Slot, String> {
    let wrong =
        || format!("'{text}' is not a slot; write DEVICE, DEVICE:FUNCTION or BUS:DEVICE:FUNCTION, up to 255:31:7");
    let number = |part: &str, most: u8| {
        let digits = !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
        part.parse::<u8>().ok().filter(|number| digits && *number <= most).ok_or_else(wrong)
    };
    let given: Vec<&str> = text.split(':').collect();
    let (bus, device, function) = match given[..] {
        [device] => ("0", device, "0"),
        [device, function] => ("0", device, function),
        [bus, device, function] => (bus, device, function),
        _ => return Err(wrong()),
    };
    let (bus, device, function) = (number(bus, 255)?, number(device, 31)?, number(function, 7)?);
    if bus != 0 {
        return Err(format!("this machine has no bridge to bus {bus}, only bus 0"));
    }
    Ok(Slot { device, function })
}

fn nothing_more(conf: &str) -> Result<(), String> {
    if conf.is_empty() { Ok(()) } else { Err(format!("it takes nothing more, and '{conf}' follows")) }
}

fn host_bridge(slot: Slot, conf: &str) -> Result<(), String> {
    if slot != Slot::device(0) {
        return Err(format!("the host bridge is at 0 and cannot be at {slot}"));
    }
    for part in parts(conf) {
        match part.split_once('=') {
            Some(("model", "i440fx")) => {}
            Some(("model", model)) => return Err(format!("model '{model}' is not built; use model=i440fx")),
            Some(("vendor" | "devid", _)) => return Err(format!("{part}: its ids are those of model=i440fx")),
            _ => return Err(format!("unknown key '{part}'; the valid one is model")),
        }
    }
    Ok(())
}

fn lpc_bridge(slot: Slot, conf: &str) -> Result<(), String> {
    nothing_more(conf)?;
    if slot != Slot::device(31) {
        return Err(format!("the LPC bridge is at 31, as SmartOS has it, and cannot be at {slot}"));
    }
    Ok(())
}

/// The text without the password of a display, which belongs in no log.
fn without_secret(text: &str) -> String {
    let hide = |part: &str| if part.starts_with("password=") { "password=…".to_owned() } else { part.to_owned() };
    text.split(',').map(hide).collect::<Vec<_>>().join(",")
}
