//! The table of commands.

use serde_json::{Map, Value};

use super::query::Query;
use super::{Order, arguments};
use crate::control::Command;

/// What a command is.
pub(super) enum Meaning {
    /// The session answers it by itself.
    OfTheSession,
    /// An order without arguments.
    Order(Order),
    /// An order that its arguments make.
    With(fn(Map<String, Value>) -> Result<Order, String>),
}

/// All commands; docs/qmp.md says where each comes from and how it is answered.
pub(super) const COMMANDS: [(&str, Meaning); 28] = [
    ("qmp_capabilities", Meaning::OfTheSession),
    ("query-commands", Meaning::OfTheSession),
    ("query-version", Meaning::OfTheSession),
    ("query-status", Meaning::Order(Order::QueryStatus)),
    ("query-stats", Meaning::Order(Order::QueryStats)),
    ("stop", Meaning::Order(Order::Command(Command::Pause))),
    ("cont", Meaning::Order(Order::Command(Command::Resume))),
    ("system_powerdown", Meaning::Order(Order::Command(Command::PowerButton))),
    ("system_reset", Meaning::Order(Order::Command(Command::Reset))),
    ("quit", Meaning::Order(Order::Command(Command::Quit))),
    // As on a PC: LINT1 of the boot processor.
    ("inject-nmi", Meaning::Order(Order::Command(Command::Nmi { vcpu: 0 }))),
    ("block_resize", Meaning::With(arguments::block_resize)),
    ("set_link", Meaning::With(arguments::set_link)),
    ("query-name", Meaning::Order(Order::Query(Query::Name))),
    ("query-uuid", Meaning::Order(Order::Query(Query::Uuid))),
    ("query-kvm", Meaning::Order(Order::Query(Query::Kvm))),
    ("query-block", Meaning::Order(Order::Query(Query::Block))),
    ("query-blockstats", Meaning::Order(Order::Query(Query::BlockStats))),
    ("query-cpus", Meaning::Order(Order::Query(Query::Cpus))),
    ("query-cpus-fast", Meaning::Order(Order::Query(Query::CpusFast))),
    ("query-chardev", Meaning::Order(Order::Query(Query::Characters))),
    ("query-pci", Meaning::Order(Order::Query(Query::Pci))),
    ("query-vnc", Meaning::Order(Order::Query(Query::Display))),
    ("query-spice", Meaning::Order(Order::Query(Query::Display))),
    ("human-monitor-command", Meaning::With(arguments::human_monitor_command)),
    ("set_password", Meaning::With(arguments::set_password)),
    ("screendump", Meaning::With(arguments::screendump)),
    ("change", Meaning::With(arguments::change)),
];

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::control::qmp::event;
    use crate::control::qmp::hmp::{TOPICS, WORDS};
    use crate::control::{DiskFailure, Event};

    const MANUAL: &str = include_str!("../../../../docs/qmp.md");

    fn section(title: &str) -> &'static str {
        let (_, rest) = MANUAL.split_once(&format!("\n## {title}\n")).expect("the section");
        rest.split("\n## ").next().unwrap_or_default()
    }

    /// Everything in backquotes in the first column of the section's table.
    fn first_column(title: &str) -> Vec<&'static str> {
        let rows = section(title).lines().filter(|line| line.starts_with("| `"));
        rows.flat_map(|row| row.split('|').nth(1).unwrap_or_default().split('`').skip(1).step_by(2)).collect()
    }

    #[test]
    fn the_manual_has_a_row_for_every_command_and_for_nothing_else() {
        let rows = first_column("Commands");
        let names: BTreeSet<_> = COMMANDS.iter().map(|(name, _)| *name).collect();
        assert_eq!((rows.iter().copied().collect::<BTreeSet<_>>(), rows.len()), (names, COMMANDS.len()));
        for row in section("Commands").lines().filter(|line| line.starts_with("| `")) {
            let columns: Vec<_> = row.trim_matches('|').split('|').map(str::trim).collect();
            assert!(columns.len() == 4 && !columns[2].is_empty() && !columns[3].is_empty(), "{row}");
        }
    }

    #[test]
    fn the_manual_has_every_line_of_the_human_monitor() {
        let title = "Lines of the human monitor";
        let rows: BTreeSet<_> = first_column(title).into_iter().filter(|word| word.len() > 1).collect();
        assert_eq!(rows, BTreeSet::from(WORDS));
        for (topic, _) in TOPICS {
            assert!(section(title).contains(&format!("`{topic}`")), "{topic}");
        }
    }

    #[test]
    fn the_manual_has_every_event_and_its_data() {
        let events = [
            Event::Stopped,
            Event::Resumed,
            Event::PowerButton,
            Event::Reset { guest: true },
            Event::Shutdown { guest: true, reason: "guest-shutdown" },
            Event::GuestPanicked,
            Event::DiskFailed(DiskFailure {
                disk: "disk0".to_owned(),
                write: true,
                no_space: false,
                held: false,
                reason: "Input/output error".to_owned(),
            }),
        ];
        // Whoever adds an event adds it above and in the manual.
        let known = |event: &Event| match event {
            Event::Stopped | Event::Resumed | Event::PowerButton | Event::Reset { .. } | Event::Shutdown { .. } => (),
            Event::GuestPanicked | Event::DiskFailed(_) => (),
        };
        events.iter().for_each(known);
        let shown = events.map(|what| event(&what, (0, 0)));
        let names: BTreeSet<_> = shown.iter().filter_map(|event| event["event"].as_str()).collect();
        assert_eq!(first_column("Events").into_iter().collect::<BTreeSet<_>>(), names);
        for event in &shown {
            let name = event["event"].as_str().unwrap_or_default();
            let row = section("Events").lines().find(|line| line.starts_with(&format!("| `{name}`"))).expect("a row");
            for key in event["data"].as_object().into_iter().flat_map(Map::keys) {
                assert!(row.contains(&format!("`{key}`")), "{name}: {key}");
            }
        }
    }
}
