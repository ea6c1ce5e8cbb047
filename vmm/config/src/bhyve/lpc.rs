//! `-l`: firmware and serial lines.

use super::super::{ConfigError, Fate, SerialBackend};
use super::Reading;
use super::support::{LPC_DEVICES, find, unknown};

impl Reading {
    pub(super) fn lpc_device(&mut self, text: &str) -> Result<(), ConfigError> {
        let (name, conf) = text.split_once(',').unwrap_or((text, ""));
        let setting = format!("-l {name}");
        let problem = |problem: String| ConfigError::setting(&setting, problem);
        let Some(device) = find(&LPC_DEVICES, name) else {
            return Err(ConfigError::setting("-l", unknown("device", name, &LPC_DEVICES)));
        };
        if name == "bootrom" && (conf.is_empty() || conf.starts_with(',')) {
            return Err(problem("no path is given; write -l bootrom,PATH".to_owned()));
        }
        if !self.is_done(device, &format!("-l {text}")).map_err(problem)? {
            return Ok(());
        }
        let port = ["com1", "com2", "com3", "com4"].iter().position(|port| *port == name);
        let place = port.and_then(|port| self.config.serials.get_mut(port));
        let Some(place) = place else { return Err(problem("it has no reader".to_owned())) };
        let before = place.replace(serial(conf).map_err(problem)?);
        if let Some(before) = before {
            self.note(&format!("-l {name} {before}"), Fate::Ignored("a later one for the same port replaces it"));
        }
        Ok(())
    }
}

fn serial(conf: &str) -> Result<SerialBackend, String> {
    let wrong = |what: String| Err(format!("{what}; write a device such as /dev/zconsole, stdio or socket,PATH"));
    match conf.split_once(',') {
        None if conf == "stdio" => Ok(SerialBackend::Stdio),
        None if conf.starts_with('/') => Ok(SerialBackend::Device(conf.into())),
        None if conf.is_empty() => wrong("no back end is given".to_owned()),
        None if conf == "socket" => wrong("socket has no path".to_owned()),
        Some(("socket", path)) if path.contains(',') => {
            wrong(format!("'{}' follows the path of the socket", path.split_once(',').map_or("", |(_, more)| more)))
        }
        Some(("socket", path)) if !path.is_empty() => Ok(SerialBackend::Socket(path.into())),
        Some(("socket", _)) => wrong("socket has no path".to_owned()),
        _ => wrong(format!("'{conf}' is not a back end")),
    }
}
