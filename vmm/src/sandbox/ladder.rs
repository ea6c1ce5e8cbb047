//! What an illumos process gives up, step by step (privileges(7)): the order and the sets, without the calls.
//!
//! Three steps down, none up but one. At the start goes what no VMM ever needs: no other process is started, looked at or
//! spoken to over the network. When the machine is built, all goes but to read files and timers of high resolution; what is
//! kept for the end is only permitted, so that no mistake before then can write a file. At the end the process may take its
//! sockets and the file with its id away again.
//!
//! Privileges belong to the whole process there, so threads have nothing to do.

use std::io;

/// A set of the process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Set {
    /// What it has.
    Effective,
    /// What it may take.
    Permitted,
    /// What it, and what it executes, can ever get.
    Limit,
}

/// What the process can have, of what is said here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Privilege {
    /// Open files for reading.
    FileRead,
    /// Change files, and remove them.
    FileWrite,
    /// Link to files of others.
    FileLinkAny,
    /// Use the network.
    NetAccess,
    /// Execute a program.
    ProcExec,
    /// Start a process.
    ProcFork,
    /// See other processes.
    ProcInfo,
    /// Change security flags.
    ProcSecflags,
    /// Signal processes of other sessions.
    ProcSession,
    /// Timers that fire more often than every 200 µs.
    ProcClockHighres,
}

impl Privilege {
    /// As the system calls it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::FileRead => "file_read",
            Self::FileWrite => "file_write",
            Self::FileLinkAny => "file_link_any",
            Self::NetAccess => "net_access",
            Self::ProcExec => "proc_exec",
            Self::ProcFork => "proc_fork",
            Self::ProcInfo => "proc_info",
            Self::ProcSecflags => "proc_secflags",
            Self::ProcSession => "proc_session",
            Self::ProcClockHighres => "proc_clock_highres",
        }
    }
}

fn names(privileges: &[Privilege]) -> String {
    privileges.iter().map(|privilege| privilege.name()).collect::<Vec<_>>().join(", ")
}

/// The calls.
pub trait Privileges {
    /// Whether a set has the privilege.
    fn has(&self, set: Set, privilege: Privilege) -> io::Result<bool>;

    /// Takes privileges out of a set. What the system does not know of is not there anyway.
    fn take_out(&self, set: Set, privileges: &[Privilege]) -> io::Result<()>;

    /// Makes a set these privileges and no others. Those must be permitted, unless the set is [`Set::Limit`].
    fn make(&self, set: Set, privileges: &[Privilege]) -> io::Result<()>;
}

/// What goes first.
const NEVER: [Privilege; 7] = [
    Privilege::FileLinkAny,
    Privilege::NetAccess,
    Privilege::ProcExec,
    Privilege::ProcFork,
    Privilege::ProcInfo,
    Privilege::ProcSecflags,
    Privilege::ProcSession,
];

/// Before anything is opened.
///
/// # Errors
/// What the system says.
pub fn start(system: &(impl Privileges + ?Sized)) -> io::Result<()> {
    // What is not permitted is not in effect either; the limit afterwards, so that nothing is refused for being beyond it.
    system.take_out(Set::Permitted, &NEVER)?;
    system.take_out(Set::Limit, &NEVER)?;
    log::debug!(target: super::LOG, "given up for ever: {}", names(&NEVER));
    Ok(())
}

/// When all is open and the machine is built.
///
/// # Errors
/// What the system says.
pub fn lock(system: &(impl Privileges + ?Sized)) -> io::Result<()> {
    let (in_effect, permitted) = kept(system)?;
    system.make(Set::Permitted, &permitted)?;
    system.make(Set::Limit, &permitted)?;
    system.make(Set::Effective, &in_effect)?;
    log::debug!(target: super::LOG, "in effect: {}; permitted: {}", names(&in_effect), names(&permitted));
    Ok(())
}

/// When the guest is gone.
///
/// # Errors
/// What the system says.
pub fn leave(system: &(impl Privileges + ?Sized)) -> io::Result<()> {
    let (_, permitted) = kept(system)?;
    system.make(Set::Effective, &permitted)?;
    log::debug!(target: super::LOG, "in effect, as the guest is gone: {}", names(&permitted));
    Ok(())
}

/// What is in effect, and what is permitted, while the guest runs: of both only what there was before.
fn kept(system: &(impl Privileges + ?Sized)) -> io::Result<(Vec<Privilege>, Vec<Privilege>)> {
    let mut kept = Vec::new();
    for privilege in [Privilege::FileRead, Privilege::ProcClockHighres, Privilege::FileWrite] {
        if system.has(Set::Permitted, privilege)? {
            kept.push(privilege);
        }
    }
    let in_effect = kept.iter().copied().filter(|privilege| *privilege != Privilege::FileWrite).collect();
    Ok((in_effect, kept))
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::collections::BTreeMap;

    use super::*;

    /// The system's rules (privileges(7), setppriv(2)): what is in effect is permitted, and nothing is added to what is
    /// permitted or to the limit.
    struct Double {
        sets: RefCell<BTreeMap<&'static str, Vec<Privilege>>>,
        calls: RefCell<Vec<String>>,
    }

    fn name(set: Set) -> &'static str {
        match set {
            Set::Effective => "effective",
            Set::Permitted => "permitted",
            Set::Limit => "limit",
        }
    }

    impl Double {
        /// A zone's root, with what the brand gives that is spoken of here.
        fn new(has: &[Privilege]) -> Self {
            let sets = ["effective", "permitted", "limit"].map(|set| (set, has.to_vec()));
            Self { sets: RefCell::new(sets.into()), calls: RefCell::default() }
        }

        fn set(&self, set: Set) -> Vec<Privilege> {
            self.sets.borrow()[name(set)].clone()
        }

        fn put(&self, set: Set, privileges: Vec<Privilege>) -> io::Result<()> {
            let within = |other| privileges.iter().all(|one| self.set(other).contains(one));
            let allowed = match set {
                Set::Effective | Set::Permitted => within(Set::Permitted),
                Set::Limit => within(Set::Limit),
            };
            if !allowed {
                return Err(io::ErrorKind::PermissionDenied.into());
            }
            if set == Set::Permitted {
                let effective = self.set(Set::Effective).into_iter().filter(|one| privileges.contains(one)).collect();
                self.sets.borrow_mut().insert("effective", effective);
            }
            self.sets.borrow_mut().insert(name(set), privileges);
            Ok(())
        }
    }

    impl Privileges for Double {
        fn has(&self, set: Set, privilege: Privilege) -> io::Result<bool> {
            Ok(self.set(set).contains(&privilege))
        }

        fn take_out(&self, set: Set, privileges: &[Privilege]) -> io::Result<()> {
            self.calls.borrow_mut().push(format!("{}-", name(set)));
            self.put(set, self.set(set).into_iter().filter(|one| !privileges.contains(one)).collect())
        }

        fn make(&self, set: Set, privileges: &[Privilege]) -> io::Result<()> {
            self.calls.borrow_mut().push(format!("{}=", name(set)));
            self.put(set, privileges.to_vec())
        }
    }

    const ALL: [Privilege; 10] = [
        Privilege::FileRead,
        Privilege::FileWrite,
        Privilege::FileLinkAny,
        Privilege::NetAccess,
        Privilege::ProcExec,
        Privilege::ProcFork,
        Privilege::ProcInfo,
        Privilege::ProcSecflags,
        Privilege::ProcSession,
        Privilege::ProcClockHighres,
    ];

    #[test]
    fn what_no_vmm_needs_goes_before_anything_is_opened_and_the_rest_in_the_order_permitted_limit_effective() {
        let system = Double::new(&ALL);
        start(&system).unwrap();
        for set in [Set::Effective, Set::Permitted, Set::Limit] {
            assert_eq!(
                system.set(set),
                [Privilege::FileRead, Privilege::FileWrite, Privilege::ProcClockHighres],
                "{set:?}"
            );
        }
        lock(&system).unwrap();
        assert_eq!(system.set(Set::Effective), [Privilege::FileRead, Privilege::ProcClockHighres]);
        let permitted = [Privilege::FileRead, Privilege::ProcClockHighres, Privilege::FileWrite];
        assert_eq!(system.set(Set::Permitted), permitted);
        assert_eq!(system.set(Set::Limit), permitted);
        leave(&system).unwrap();
        assert_eq!(system.set(Set::Effective), permitted);
        let calls = system.calls.borrow();
        assert_eq!(calls[..], ["permitted-", "limit-", "permitted=", "limit=", "effective=", "effective="]);
    }

    #[test]
    fn nothing_is_asked_for_that_the_zone_does_not_give() {
        let zone = [Privilege::FileRead, Privilege::FileWrite];
        let system = Double::new(&zone);
        start(&system).unwrap();
        lock(&system).unwrap();
        assert_eq!(system.set(Set::Effective), [Privilege::FileRead]);
        assert_eq!(system.set(Set::Permitted), zone);
    }

    #[test]
    fn the_double_refuses_what_the_system_would() {
        let system = Double::new(&[Privilege::FileRead]);
        assert!(system.make(Set::Effective, &[Privilege::ProcFork]).is_err());
        assert!(system.make(Set::Limit, &[Privilege::ProcFork]).is_err());
    }
}
