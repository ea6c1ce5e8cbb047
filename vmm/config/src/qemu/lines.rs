//! `-chardev`, `-serial`, `-qmp` and the like: which lines of the guest lead where.

use std::cell::Cell;
use std::path::PathBuf;

use super::drives::unknown;
use super::{Fate, Reading};
use crate::options::Options;
use crate::{ConfigError, DebugPortConfig, SerialBackend, nearest};

/// Where qemu has its debug console.
const DEBUG_PORT: u16 = 0xe9;

/// `-chardev`.
pub(super) struct Chardev {
    id: String,
    backend: SerialBackend,
    used: Cell<bool>,
}

const KEYS: &[&str] = &[
    "id", "path", "server", "nowait", "wait", "host", "port", "to", "ipv4", "ipv6", "telnet", "delay", "nodelay",
    "mux", "signal",
];

impl Reading {
    /// `-chardev`.
    pub(super) fn read_chardev(&mut self, text: &str) -> Result<(), ConfigError> {
        let given = Options::read("-chardev", text, Some("backend"), KEYS)?;
        let id = given.required("id", "socket,id=qmp,path=/tmp/vm.qmp,server,nowait")?;
        if self.chardevs.iter().any(|other| other.id == id) {
            return Err(given.problem(format!("id={id} is given twice")));
        }
        if given.flag("mux")? {
            return Err(given.problem("mux=on is not built: a line has one end"));
        }
        let path = || given.required("path", "path=/tmp/vm.console");
        let backend = match given.text("backend")?.unwrap_or_default().as_str() {
            "socket" => SerialBackend::Socket(unix_server(&given)?),
            "file" => SerialBackend::File(path()?.into()),
            "tty" => SerialBackend::Device(path()?.into()),
            "pty" => SerialBackend::Pty,
            "stdio" => SerialBackend::Stdio,
            "null" => SerialBackend::Null,
            backend => return Err(given.problem(not_built("back end", backend))),
        };
        self.chardevs.push(Chardev { id, backend, used: Cell::new(false) });
        Ok(())
    }

    /// `-mon`.
    pub(super) fn read_mon(&mut self, text: &str) -> Result<(), ConfigError> {
        let given = Options::read("-mon", text, Some("chardev"), &["mode", "default"])?;
        given.flag("default")?;
        let chardev = given.required("chardev", "chardev=qmp,mode=control")?;
        match given.text("mode")?.as_deref() {
            Some("control") => self.qmp.push(("-mon", format!("chardev:{chardev}"))),
            None | Some("readline") => self.note(format!("-mon {text}"), Fate::NotBuilt),
            Some(mode) => {
                return Err(given.problem(nearest::unknown("mode", mode, ["control", "readline"].into_iter())));
            }
        }
        Ok(())
    }

    /// Joins the guest's lines to their ends, once all of these are known.
    pub(super) fn connect_lines(&mut self) -> Result<(), ConfigError> {
        let mut serials = self.config.serials.iter_mut();
        let mut given = std::mem::take(&mut self.serials);
        if given.is_empty() && self.defaults {
            // qemu has its first port on a console of its display then: a port whose other end is nobody.
            given.push(if self.nographic { "stdio" } else { "null" }.to_owned());
        }
        for text in given.iter().filter(|text| *text != "none") {
            let Some(serial) = serials.next() else {
                return Err(ConfigError::setting("-serial", "a guest has four serial ports at most"));
            };
            *serial = Some(end("-serial", text, &self.chardevs)?);
        }
        if let Some(text) = self.debug_port.take() {
            let backend = end("-debugcon", &text, &self.chardevs)?;
            self.config.debug_port = Some(DebugPortConfig { backend, port: DEBUG_PORT });
        }
        for (option, text) in std::mem::take(&mut self.qmp) {
            if text == "none" || text == "null" {
                continue;
            }
            match end(option, &text, &self.chardevs)? {
                SerialBackend::Socket(path) if self.config.qmp.is_none() => self.config.qmp = Some(path),
                SerialBackend::Socket(_) => {
                    return Err(ConfigError::setting(option, "there is one control socket already"));
                }
                other => {
                    let problem = format!("{other} is not built; use unix:PATH,server,nowait or a chardev of it");
                    return Err(ConfigError::setting(option, problem));
                }
            }
        }
        let idle: Vec<String> =
            self.chardevs.iter().filter(|chardev| !chardev.used.get()).map(|c| c.id.clone()).collect();
        for id in idle {
            self.note(
                format!("-chardev id={id}"),
                Fate::Ignored("no line of the guest leads there, so it is not made"),
            );
        }
        Ok(())
    }
}

/// What a line is joined to.
fn end(option: &'static str, text: &str, chardevs: &[Chardev]) -> Result<SerialBackend, ConfigError> {
    let problem = |problem| Err(ConfigError::setting(option, problem));
    match text.split_once(':') {
        Some(("chardev", id)) => match chardevs.iter().find(|chardev| chardev.id == id) {
            Some(chardev) => {
                chardev.used.set(true);
                Ok(chardev.backend.clone())
            }
            None => problem(unknown("chardev", id, chardevs.iter().map(|chardev| chardev.id.as_str()))),
        },
        Some(("unix", socket)) => {
            let given = Options::read(option, socket, Some("path"), &["server", "nowait", "wait"])?;
            Ok(SerialBackend::Socket(unix_server(&given)?))
        }
        Some(("file", path)) if !path.is_empty() => Ok(SerialBackend::File(path.into())),
        Some(("file", _)) => problem("file has no path; write file:PATH".to_owned()),
        Some((kind, _)) => problem(not_built("device", kind)),
        None => match text {
            "stdio" => Ok(SerialBackend::Stdio),
            "pty" => Ok(SerialBackend::Pty),
            // A console of the display, which there is not.
            "null" | "vc" => Ok(SerialBackend::Null),
            _ if text.starts_with("/dev/") => Ok(SerialBackend::Device(text.into())),
            _ => problem(not_built("device", text)),
        },
    }
}

/// The path of a unix socket that this process is to make.
fn unix_server(given: &Options) -> Result<PathBuf, ConfigError> {
    let inet = |key| given.text(key).map_or(true, |value| value.is_some());
    if inet("host") || inet("port") || given.flag("telnet")? {
        return Err(given.problem("TCP is not built; write path=PATH,server,nowait"));
    }
    let path = given.required("path", "path=/tmp/vm.console,server,nowait")?;
    if !given.flag("server")? {
        return Err(
            given.problem(format!("{path} without server is not built: zvmm makes sockets and connects to none"))
        );
    }
    // Nobody is waited for, whether the command line says so or not: a guest without its client runs.
    given.flag("nowait")?;
    given.flag("wait")?;
    Ok(path.into())
}

fn not_built(what: &str, kind: &str) -> String {
    format!("{what} '{kind}' is not built; there are sockets (unix), files, terminals (tty), pty, stdio and null")
}
