//! What the front ends of the zone brands have in common: another VMM's command line becomes a [`VmConfig`].

use std::fmt;

use super::VmConfig;

/// What another VMM's command line comes to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Translation {
    /// The machine. Neither [`VmConfig::check`] nor [`VmConfig::check_host`] has judged it yet.
    pub config: VmConfig,
    /// What the command line said that the machine does not show, in its order.
    pub notes: Vec<Note>,
}

/// An argument without an effect on the machine, and why that is right.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Note {
    /// The argument as it was given, its value included: `-usbdevice tablet`.
    pub what: String,
    /// Why it has none.
    pub fate: Fate,
}

/// Why an argument has no effect.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// It is what zvmm does anyway, or means nothing for it; the text says which. Not worth a line in the log.
    Ignored(&'static str),
    /// A display or firmware that zvmm does not have yet. The guest runs without; logged once.
    NotBuilt,
    /// Nobody knows it, and the brand asks for a warning and no more.
    Unknown,
}

impl Note {
    /// Whether an operator should read of it at every start.
    pub fn is_logged(&self) -> bool {
        !matches!(self.fate, Fate::Ignored(_))
    }
}

impl fmt::Display for Note {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.fate {
            Fate::Ignored(why) => write!(out, "{}: ignored: {why}", self.what),
            Fate::NotBuilt => write!(out, "{}: not built yet; the guest runs without it", self.what),
            Fate::Unknown => write!(out, "{}: unknown; the guest runs without it", self.what),
        }
    }
}
