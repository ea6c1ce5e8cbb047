//! `-o`: values of bhyve's configuration, and our own in its manner.

use super::super::{ConfigError, Fate, SandboxMode};
use super::support::{KEYS, Word, find, unknown};
use super::{Reading, getopt, machine};

impl Reading {
    pub(super) fn key(&mut self, text: &str) -> Result<(), ConfigError> {
        let Some((name, value)) = text.split_once('=').filter(|(name, _)| !name.is_empty()) else {
            return Err(ConfigError::setting("-o", format!("'{text}' is no KEY=VALUE")));
        };
        let setting = format!("-o {name}");
        let problem = |problem: String| ConfigError::setting(&setting, problem);
        let Some(key) = find(&KEYS, name) else {
            if name.starts_with("zvmm.") {
                let own: Vec<Word> = KEYS.iter().filter(|key| key.word.starts_with("zvmm.")).copied().collect();
                return Err(ConfigError::setting("-o", unknown("key", name, &own)));
            }
            // bhyve stores any key, and looks only at those it knows.
            self.note(&format!("-o {text}"), Fate::Unknown);
            return Ok(());
        };
        let truth = if key.argument == "BOOL" { getopt::boolean(value).map_err(problem)? } else { false };
        if !self.is_done(key, &format!("-o {text}")).map_err(problem)? {
            return Ok(());
        }
        let given = || match value {
            "" => Err(format!("no value is given; write -o {name}={}", key.argument)),
            value => Ok(value),
        };
        let memory = &mut self.config.memory;
        let done = match name {
            "memory.size" => machine::memory(value).map(|bytes| memory.size_bytes = bytes),
            "memory.wired" => {
                memory.lock = truth;
                Ok(())
            }
            "memory.use_reservoir" => {
                memory.reservoir = truth;
                Ok(())
            }
            "cpus" | "sockets" | "cores" | "threads" => self.cpus.set(name, value),
            "uuid" => self.uuid(value),
            "config.dump" => {
                self.dump = truth;
                Ok(())
            }
            "virtio.legacy" => {
                self.legacy = truth;
                Ok(())
            }
            "virtio.modern" => {
                self.modern = truth;
                Ok(())
            }
            "privileges.debug" => {
                self.privileges = truth;
                Ok(())
            }
            "zvmm.qmp" => given().map(|path| self.config.qmp = Some(path.into())),
            "zvmm.kernel" => given().map(|path| self.config.boot.kernel = path.into()),
            "zvmm.initrd" => given().map(|path| self.config.boot.initrd = Some(path.into())),
            "zvmm.sandbox" => sandbox(value).map(|mode| self.config.sandbox = mode),
            "zvmm.cmdline" => {
                // The brand splits its extra options at blanks, so that a command line comes in words.
                let cmdline = &mut self.config.boot.cmdline;
                if !cmdline.is_empty() {
                    cmdline.push(' ');
                }
                cmdline.push_str(value);
                Ok(())
            }
            _ => Err("it has no reader".to_owned()),
        };
        done.map_err(problem)
    }
}

fn sandbox(value: &str) -> Result<SandboxMode, String> {
    match value {
        "strict" => Ok(SandboxMode::Strict),
        "log" => Ok(SandboxMode::Log),
        "off" => Ok(SandboxMode::Off),
        other => Err(format!("'{other}' is none of strict, log and off")),
    }
}
