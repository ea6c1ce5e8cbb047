//! A command line, and which property each part of it is from.

use std::fmt;

use super::{Brand, shell};
use crate::bhyve::{self, Request};
use crate::{ConfigError, Translation, qemu};

/// What one property comes to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Line {
    /// The property, with the index of a device: `disks[0]`.
    pub(super) key: String,
    pub(super) words: Vec<String>,
}

impl Line {
    pub(super) fn new(key: impl Into<String>, words: &[&str]) -> Self {
        Self { key: key.into(), words: words.iter().map(|word| (*word).to_owned()).collect() }
    }
}

/// The command line that SmartOS starts a guest with.
///
/// Its text is the one that a shell reads as this command line: a property a line, quoted where it has to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Argv {
    brand: Brand,
    lines: Vec<Line>,
}

impl Argv {
    /// A command line of these arguments.
    ///
    /// # Errors
    /// An argument that no process can be given.
    pub(super) fn new(brand: Brand, lines: Vec<Line>) -> Result<Self, ConfigError> {
        match lines.iter().find(|line| line.words.iter().any(|word| word.contains('\0'))) {
            Some(line) => Err(ConfigError::setting(&line.key, "no argument has a zero byte in it; leave it out")),
            None => Ok(Self { brand, lines }),
        }
    }

    /// The name that the program is called by: bhyve's own, and the file that VM.js' script looks for.
    pub fn program(&self) -> &'static str {
        match self.brand {
            Brand::Bhyve => "bhyve",
            Brand::Kvm => "/startvm.zone",
        }
    }

    /// Every argument in turn, the program's name excluded.
    pub fn args(&self) -> impl Iterator<Item = &str> {
        self.lines.iter().flat_map(|line| &line.words).map(String::as_str)
    }

    /// The machine that the command line comes to, by the front end that reads it when a zone starts.
    ///
    /// # Errors
    /// What the front end refuses, with the property that it is from.
    pub fn translate(&self) -> Result<Translation, ConfigError> {
        self.read(self.lines.len()).map_err(|error| {
            // What begins to be wrong with a line is mostly wrong with that line.
            let (mut good, mut wrong) = (0, self.lines.len());
            while good + 1 < wrong {
                let middle = good.midpoint(wrong);
                *(if self.read(middle).is_ok() { &mut good } else { &mut wrong }) = middle;
            }
            match wrong.checked_sub(1).and_then(|index| self.lines.get(index)) {
                Some(line) => ConfigError::setting(&line.key, error.to_string()),
                None => error,
            }
        })
    }

    /// Reads the first lines alone.
    fn read(&self, count: usize) -> Result<Translation, ConfigError> {
        let mut args: Vec<String> = self.lines.iter().take(count).flat_map(|line| line.words.clone()).collect();
        match self.brand {
            Brand::Kvm => qemu::translate(&args),
            Brand::Bhyve => {
                if count < self.lines.len() {
                    // Without a name at its end a command line of bhyve's is none.
                    args.push("SYSbhyve".to_owned());
                }
                match bhyve::translate(&args)? {
                    Request::Run(translation) => Ok(translation),
                    Request::Help => {
                        Err(ConfigError::setting("-h", "it asks for help, and no guest runs; leave it out"))
                    }
                    Request::Dump(_) => {
                        let problem = "it prints the configuration, and no guest runs; leave it out";
                        Err(ConfigError::setting("-o config.dump", problem))
                    }
                }
            }
        }
    }
}

impl fmt::Display for Argv {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(self.program())?;
        for line in self.lines.iter().filter(|line| !line.words.is_empty()) {
            out.write_str(" \\\n   ")?;
            for word in &line.words {
                write!(out, " {}", shell::quoted(word))?;
            }
        }
        Ok(())
    }
}
