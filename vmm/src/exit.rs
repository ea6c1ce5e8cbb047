//! How the process ends.

/// Why the process ended, as its exit status tells.
///
/// Each reason has a status of its own, so that a supervisor never has to read stderr.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// The guest powered itself off, the operator ordered an end (`quit`, Ctrl-A x), or there was no guest to run
    /// (`--help`, `check-config`).
    Done,
    /// The command line or the configuration is wrong, or names what cannot be used: missing, of another kind, not
    /// permitted, taken by another process. Who starts it again unchanged gets the same answer.
    Config,
    /// The host lacks something that every guest, or a kind of device, needs: `/dev/kvm`, a capability of it,
    /// `/dev/net/tun`.
    HostLacks,
    /// The guest could not be started, or a call of the host failed while it ran.
    HostFailed,
    /// The guest reset itself, and the configuration says to leave then.
    GuestReset,
    /// A triple fault, and the configuration says to leave then.
    TripleFault,
    /// The guest reported a panic, and the configuration says to leave then.
    GuestPanic,
    /// All vCPUs are halted for ever, which ends a guest only where the process was started as bhyve: no way out of ours.
    Halted,
    /// Stopped at once by an interrupt (SIGINT) that came again.
    Interrupted,
}

impl Exit {
    /// Every way out with a status of our own, in the order of the exit status.
    pub const ALL: [Self; 8] = [
        Self::Done,
        Self::Config,
        Self::HostLacks,
        Self::HostFailed,
        Self::GuestReset,
        Self::TripleFault,
        Self::GuestPanic,
        Self::Interrupted,
    ];

    /// The exit status. 1 and 101 are left free: they are what a program ends with that knows no reason.
    pub const fn status(self) -> u8 {
        match self {
            Self::Done => 0,
            Self::Config => 2,
            Self::HostLacks => 3,
            Self::HostFailed => 4,
            Self::GuestReset => 5,
            Self::TripleFault => 6,
            Self::GuestPanic => 7,
            Self::Halted => 8,
            // 128 + SIGINT, as shells report it.
            Self::Interrupted => 130,
        }
    }

    /// What the status means, for `--help`.
    pub const fn meaning(self) -> &'static str {
        match self {
            Self::Done => "the guest powered off, or the operator ordered the end (quit, Ctrl-A x)",
            Self::Config => {
                "the command line or the configuration is wrong, or names what is missing, forbidden or taken"
            }
            Self::HostLacks => "the host lacks something, such as /dev/kvm or a capability of it",
            Self::HostFailed => "the guest could not be started, or the host failed while it ran",
            Self::GuestReset => "the guest reset itself and --on-reset is exit",
            Self::TripleFault => "a triple fault and --on-triple-fault is exit",
            Self::GuestPanic => "the guest reported a panic and --on-panic is exit",
            Self::Halted => "all vCPUs are halted for ever",
            Self::Interrupted => "stopped at once by a second SIGINT",
        }
    }

    /// The table of all statuses, one a line.
    pub fn table() -> String {
        let line = |exit: Self| format!("  {:3}  {}\n", exit.status(), exit.meaning());
        Self::ALL.into_iter().map(line).collect()
    }
}

/// Whose exit statuses the process ends with, and whose signals and habits it has: those of the program that its starter
/// takes it for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum ExitConvention {
    /// Our own: [`Exit::status`].
    #[default]
    Own,
    /// bhyve's, as the bhyve brand of SmartOS reads them: 0 starts the guest again, and everything else halts its zone.
    Bhyve,
    /// qemu's: 0 when the guest is gone as somebody wanted it, 1 for whatever went wrong. The kvm brand of SmartOS halts the
    /// zone either way.
    Qemu,
}

impl ExitConvention {
    /// The exit status.
    pub const fn status(self, exit: Exit) -> u8 {
        match (self, exit) {
            (Self::Own, exit) => exit.status(),
            (Self::Bhyve, Exit::GuestReset) => 0,
            // Without a guest, too: 0 would ask for the help a thousand times a second.
            (Self::Bhyve, Exit::Done) => 1,
            (Self::Bhyve, Exit::Halted) => 2,
            (Self::Bhyve, Exit::TripleFault) => 3,
            (Self::Bhyve, Exit::Config | Exit::HostLacks | Exit::HostFailed | Exit::GuestPanic) => 4,
            // What a program that a signal killed shows, as bhyve would be.
            (Self::Bhyve, Exit::Interrupted) => exit.status(),
            (Self::Qemu, Exit::Done | Exit::GuestReset | Exit::Interrupted) => 0,
            (Self::Qemu, _) => 1,
        }
    }

    /// Whether a guest that resets itself after its end was ordered has ended: whoever ordered it waits for the process.
    pub const fn stop_wins(self) -> bool {
        !matches!(self, Self::Own)
    }

    /// Whether a client of a serial line that has one already is let go at once.
    pub const fn turns_second_clients_away(self) -> bool {
        matches!(self, Self::Bhyve)
    }

    /// Whether the process is the one who tells that the zone's guest runs.
    pub const fn marks_provisioned(self) -> bool {
        matches!(self, Self::Bhyve)
    }

    /// Whether a guest ends when all its vCPUs are halted for ever.
    pub const fn ends_halted(self) -> bool {
        matches!(self, Self::Bhyve)
    }

    /// Whether whoever started the process starts it again at once when the guest was reset.
    pub const fn restarts(self) -> bool {
        matches!(self, Self::Bhyve)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_has_its_own_status() {
        let statuses = Exit::ALL.map(Exit::status);
        assert_eq!(statuses, [0, 2, 3, 4, 5, 6, 7, 130]);
    }

    #[test]
    fn bhyves_statuses_are_those_that_its_brand_reads() {
        let statuses = Exit::ALL.map(|exit| ExitConvention::Bhyve.status(exit));
        assert_eq!(statuses, [1, 4, 4, 4, 0, 3, 4, 130]);
        assert_eq!(ExitConvention::Bhyve.status(Exit::Halted), 2);
        assert_eq!(Exit::ALL.map(|exit| ExitConvention::Own.status(exit)), Exit::ALL.map(Exit::status));
        assert!(ExitConvention::Bhyve.restarts() && !ExitConvention::Own.restarts());
    }

    #[test]
    fn qemus_statuses_tell_success_from_failure() {
        assert_eq!(Exit::ALL.map(|exit| ExitConvention::Qemu.status(exit)), [0, 1, 1, 1, 0, 1, 1, 0]);
        assert!(!ExitConvention::Qemu.restarts());
    }

    #[test]
    fn the_table_names_every_status_and_its_meaning() {
        let table = Exit::table();
        for exit in Exit::ALL {
            assert!(table.contains(&format!("{:3}  {}", exit.status(), exit.meaning())));
        }
    }
}
