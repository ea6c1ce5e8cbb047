//! The rules of an interface, and the book of those that were broken.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

use devices_host::sys::Errno;

/// One rule of an interface.
#[derive(Debug, PartialEq, Eq)]
pub struct Rule {
    /// Its name: stable, unique, and what tests look for.
    pub name: &'static str,
    /// Where it comes from: interface and section of its description.
    pub source: &'static str,
    /// What it asks for, in a sentence.
    pub says: &'static str,
}

/// Declares rules as statics, and `ALL`, the list of them.
#[macro_export]
macro_rules! rules {
    ($($id:ident = $name:literal, $source:literal, $says:literal;)*) => {
        $(
            #[doc = concat!($says, " (", $source, ").")]
            pub static $id: $crate::Rule = $crate::Rule { name: $name, source: $source, says: $says };
        )*

        /// Every rule here.
        pub static ALL: &[&$crate::Rule] = &[$(&$id),*];
    };
}

/// The rules that hold for any device.
pub mod system {
    rules! {
        HANDLE_OPEN = "sys-handle-open", "bhyve 0.1", "a call names a handle that is open";
        CLOSE_ONCE = "sys-close-once", "bhyve 1.3", "a handle is closed once";
        MUNMAP_WHOLE = "sys-munmap-whole", "bhyve 2.4", "a mapping is unmapped as a whole, and once";
        MMAP_PAGES = "sys-mmap-pages", "bhyve 2.4", "offset and length of a mapping are whole pages, and not none";
        MLOCK_PRIVILEGE = "sys-mlock-privilege", "smartos-zone 6", "locking memory needs the privilege proc_lock_memory";
        MLOCK_MAPPED = "sys-mlock-mapped", "smartos-zone 7.3", "memory that is locked is mapped";
        KICK_ALIVE = "sys-kick-alive", "bhyve 2.5", "a signal goes to a thread that is alive";
        NODE_IN_ZONE = "sys-node-in-zone", "bhyve 1.5", "only device nodes that the zone has are opened";
        LEAK_HANDLE = "sys-leak-handle", "bhyve 1.3", "every handle is closed at the end";
        LEAK_MAPPING = "sys-leak-mapping", "bhyve 2.4", "every mapping is unmapped at the end";
        LEAK_OBJECT = "sys-leak-object", "bhyve 1.3", "nothing that outlives the process is left at the end";
    }
}

/// A rule that was broken.
#[derive(Clone, Debug)]
pub struct Violation {
    /// Which.
    pub rule: &'static Rule,
    /// By what.
    pub detail: String,
}

impl std::fmt::Display for Violation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { rule, detail } = self;
        write!(f, "rule {} broken: {} ({}): {detail}", rule.name, rule.says, rule.source)
    }
}

/// The broken rules of one host, in the order they were broken.
#[derive(Debug, Default)]
pub struct Ledger {
    entries: Mutex<Vec<Violation>>,
    echo: AtomicBool,
}

impl Ledger {
    /// Violations that are kept; a loop that breaks a rule for ever must not eat the memory.
    const MOST: usize = 1000;

    /// Prints every violation on stderr when it happens, too: a process that is killed has still said it.
    pub fn echo(&self) {
        self.echo.store(true, Ordering::Relaxed);
    }

    /// Takes a violation down.
    pub fn note(&self, rule: &'static Rule, detail: impl Into<String>) {
        let violation = Violation { rule, detail: detail.into() };
        let mut entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        if entries.len() >= Self::MOST {
            return;
        }
        if self.echo.load(Ordering::Relaxed) {
            eprintln!("zvmm-double: {violation}");
        }
        entries.push(violation);
    }

    /// Takes a violation down, and gives the error that the call fails with.
    pub fn refuse(&self, rule: &'static Rule, errno: Errno, detail: impl Into<String>) -> Errno {
        self.note(rule, detail);
        errno
    }

    /// What was broken so far.
    pub fn violations(&self) -> Vec<Violation> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_rule_has_a_name_of_its_own_and_a_source() {
        let mut names = Vec::new();
        let links = crate::links::rules::vnd::ALL.iter().chain(crate::links::rules::dlpi::ALL);
        let all = system::ALL.iter().chain(crate::bhyve::rules::ALL).chain(crate::zvol::rules::ALL).chain(links);
        for rule in all.chain(crate::viona::rules::ALL).chain(crate::privileges::rules::ALL) {
            let sources = ["bhyve ", "smartos-zone ", "rshyve ", "illumos "];
            assert!(sources.iter().any(|source| rule.source.starts_with(source)), "{rule:?}");
            assert!(!rule.says.ends_with('.') && rule.says.len() > 15, "{rule:?}");
            names.push(rule.name);
        }
        let count = names.len();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), count);
    }

    #[test]
    fn a_loop_that_breaks_a_rule_does_not_eat_the_memory() {
        let ledger = Ledger::default();
        for at in 0..5000 {
            ledger.note(&system::CLOSE_ONCE, format!("{at}"));
        }
        assert_eq!(ledger.violations().len(), Ledger::MOST);
    }
}
