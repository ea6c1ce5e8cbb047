//! The front end of the bhyve brand: bhyve's command line becomes a [`VmConfig`].
//!
//! Sources: bhyve(8) of illumos and what the zone brand of SmartOS passes. Nothing that is asked for is passed over in
//! silence: it is done, or it is in the notes, or there is no guest. What becomes of each option stands in tables, in
//! `support`.

mod block;
mod cmdfile;
mod getopt;
mod keys;
mod lpc;
mod machine;
#[cfg(test)]
mod manual;
mod network;
mod pci;
mod support;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod wrong_tests;

use std::fmt::Write;

use log::LevelFilter;

use super::{
    ConfigError, Fate, LogRule, Note, OnReset, OnTripleFault, Profile, Translation, VirtioInterfaces, VmConfig,
};
use getopt::Given;
use support::{LETTERS, Support, Word};

pub use cmdfile::{CmdFileError, decode as decode_cmd_file};

/// The brand's boot hook passes at most that many arguments, the program's name included.
pub const MOST_ARGUMENTS: usize = 100;

/// Where the process logs what it gives up.
const SANDBOX_LOG: &str = "zvmm::sandbox";

/// What bhyve starts with when nothing is said.
const DEFAULT_MEMORY_BYTES: u64 = 256 << 20;

/// What a command line asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Request {
    /// A guest.
    Run(Translation),
    /// Its configuration, printed, and no guest (`-o config.dump=1`).
    Dump(Translation),
    /// What the options are.
    Help,
}

/// Reads a command line, the program's name excluded.
///
/// # Errors
/// The first thing that is wrong with it. What is wrong with the machine it describes, [`VmConfig::check`] says.
pub fn translate(args: &[String]) -> Result<Request, ConfigError> {
    let count = args.len().saturating_add(1);
    if count > MOST_ARGUMENTS {
        let line = format!("{count} arguments are more than the {MOST_ARGUMENTS} that a zone's boot hook passes");
        return Err(ConfigError::Usage(line));
    }
    let (options, rest) = getopt::split(args)?;
    if options.iter().any(|given| given.letter.word == "h") {
        return Ok(Request::Help);
    }
    let mut reading = Reading::new();
    for given in options {
        reading.option(given)?;
    }
    reading.config.name = match rest {
        [name] => name.clone(),
        [] => return Err(ConfigError::Usage("the name of the VM is missing; it comes last".to_owned())),
        [name, more, ..] => {
            return Err(ConfigError::Usage(format!("'{more}' follows the name of the VM, '{name}', which comes last")));
        }
    };
    let dump = reading.dump;
    let translation = reading.end()?;
    Ok(if dump { Request::Dump(translation) } else { Request::Run(translation) })
}

/// A command line that is being read.
struct Reading {
    config: VmConfig,
    notes: Vec<Note>,
    cpus: machine::Cpus,
    /// Who has which place on the bus.
    places: pci::Places,
    dump: bool,
    /// Which drivers find the virtio devices.
    legacy: bool,
    modern: bool,
    /// Whether what the process gives up is logged.
    privileges: bool,
}

impl Reading {
    fn new() -> Self {
        let mut config = VmConfig {
            profile: Profile::Bhyve,
            on_reset: OnReset::Exit,
            on_triple_fault: OnTripleFault::Exit,
            ..VmConfig::default()
        };
        config.memory.size_bytes = DEFAULT_MEMORY_BYTES;
        Self {
            config,
            notes: Vec::new(),
            cpus: machine::Cpus::default(),
            places: pci::Places::default(),
            dump: false,
            legacy: true,
            modern: true,
            privileges: false,
        }
    }

    fn option(&mut self, given: Given<'_>) -> Result<(), ConfigError> {
        let Given { letter, argument } = given;
        let what = format!("-{}", letter.word);
        let shown = if argument.is_empty() { what.clone() } else { format!("{what} {argument}") };
        if !self.is_done(letter, &shown).map_err(|problem| ConfigError::setting(&what, problem))? {
            return Ok(());
        }
        let done = match letter.word {
            "s" => return self.pci_device(argument),
            "l" => return self.lpc_device(argument),
            "o" => return self.key(argument),
            "B" => self.smbios(argument),
            "c" => self.cpus.read(argument),
            "m" => machine::memory(argument).map(|bytes| self.config.memory.size_bytes = bytes),
            "U" => self.uuid(argument),
            "S" => {
                self.config.memory.lock = true;
                Ok(())
            }
            letter => Err(format!("-{letter} has no reader")),
        };
        done.map_err(|problem| ConfigError::setting(&what, problem))
    }

    /// Whether a word of the tables is to be carried out. Where it is not, `shown` is what a note says was given.
    fn is_done(&mut self, word: &Word, shown: &str) -> Result<bool, String> {
        let fate = match word.support {
            Support::Implemented => return Ok(true),
            Support::Refused(why) => return Err(why.to_owned()),
            Support::Ignored(why) => Fate::Ignored(why),
            Support::NotBuilt => Fate::NotBuilt,
        };
        self.note(shown, fate);
        Ok(false)
    }

    fn note(&mut self, what: &str, fate: Fate) {
        self.notes.push(Note { what: what.to_owned(), fate });
    }

    fn end(self) -> Result<Translation, ConfigError> {
        let Self { mut config, notes, cpus, legacy, modern, privileges, .. } = self;
        config.virtio = match (legacy, modern) {
            (true, true) => VirtioInterfaces::Both,
            (true, false) => VirtioInterfaces::Legacy,
            (false, true) => VirtioInterfaces::Modern,
            (false, false) => {
                let problem = "with virtio.legacy=false as well no driver finds a device";
                return Err(ConfigError::setting("-o virtio.modern", problem));
            }
        };
        if privileges {
            let rule = |module, level| LogRule { module, level };
            config.log = vec![rule(None, LevelFilter::Warn), rule(Some(SANDBOX_LOG.to_owned()), LevelFilter::Debug)];
        }
        cpus.put(&mut config).map_err(|problem| ConfigError::setting("-c", problem))?;
        config.name_devices();
        Ok(Translation { config, notes })
    }
}

/// What the options are, for a reader at a terminal.
pub fn help() -> String {
    let mut text = String::from(
        "Usage: bhyve OPTIONS… NAME\n\nRuns the guest NAME on the machine that bhyve's options describe.\n\n",
    );
    for Word { word, argument, meaning, support } in &LETTERS {
        let fate = match support {
            Support::Implemented => "",
            Support::Ignored(_) => " (no effect)",
            Support::NotBuilt => " (not built yet)",
            Support::Refused(_) => " (refused)",
        };
        // A String takes whatever is written.
        let _ = writeln!(text, "  -{word} {argument:<40} {meaning}{fate}");
    }
    text.push_str(
        "\nA kernel boots in place of a ROM with -o zvmm.kernel=PATH, -o zvmm.initrd=PATH and -o zvmm.cmdline=TEXT.\n\
         'zvmm explain bhyve OPTIONS… NAME' shows the machine without running it.\n",
    );
    text
}
