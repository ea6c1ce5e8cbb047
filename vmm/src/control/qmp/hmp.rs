//! Lines of qemu's human monitor, as far as tools send them through `human-monitor-command`.

use std::fmt::Write as _;

use super::keys;
use super::query::{class_name, uuid};
use crate::config::nearest;
use crate::control::inventory::{BarFacts, Inventory, PciFacts};
use crate::control::{Chord, Command, State};

/// How long keys are held down unless the line says so, in milliseconds.
const HOLD_MS: u32 = 100;

/// The longest they may be held down, in milliseconds.
const MAX_HOLD_MS: u32 = 60_000;

/// What a line means.
#[derive(Debug, PartialEq, Eq)]
pub enum Line {
    /// An empty line.
    Nothing,
    /// Act on the guest.
    Command(Command),
    /// Press keys.
    Keys(Chord),
    /// Show something.
    Info(Topic),
}

/// What `info` shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Topic {
    /// Disks.
    Block,
    /// vCPUs.
    Cpus,
    /// Serial lines and control socket.
    Characters,
    /// Whether the hypervisor is a KVM.
    Kvm,
    /// Name of the guest.
    Name,
    /// Network interfaces.
    Network,
    /// PCI functions.
    Pci,
    /// Whether the guest runs.
    Status,
    /// Identity of the guest.
    Uuid,
    /// Version of the process.
    Version,
}

/// Topics by name.
pub(super) const TOPICS: [(&str, Topic); 10] = [
    ("block", Topic::Block),
    ("chardev", Topic::Characters),
    ("cpus", Topic::Cpus),
    ("kvm", Topic::Kvm),
    ("name", Topic::Name),
    ("network", Topic::Network),
    ("pci", Topic::Pci),
    ("status", Topic::Status),
    ("uuid", Topic::Uuid),
    ("version", Topic::Version),
];

/// The first words of lines.
pub(super) const WORDS: [&str; 8] =
    ["info", "sendkey", "nmi", "stop", "cont", "system_powerdown", "system_reset", "quit"];

/// Reads a line; the error is what the monitor says to it.
pub fn parse(line: &str) -> Result<Line, String> {
    let mut words = line.split_ascii_whitespace();
    let Some(command) = words.next() else { return Ok(Line::Nothing) };
    let meaning = match command {
        "info" => Line::Info(topic(words.next())?),
        "sendkey" => Line::Keys(chord(words.next(), words.next())?),
        "nmi" => Line::Command(Command::Nmi { vcpu: vcpu(words.next())? }),
        "stop" => Line::Command(Command::Pause),
        "cont" | "c" => Line::Command(Command::Resume),
        "system_powerdown" => Line::Command(Command::PowerButton),
        "system_reset" => Line::Command(Command::Reset),
        "quit" | "q" => Line::Command(Command::Quit),
        unknown => {
            let refused = format!("unknown command: '{unknown}'");
            return Err(match nearest::nearest(unknown, &WORDS) {
                Some(word) => format!("{refused}; did you mean '{word}'?"),
                None => refused,
            });
        }
    };
    match words.next() {
        None => Ok(meaning),
        Some(more) => Err(format!("{command}: extraneous characters at the end of line: '{more}'")),
    }
}

fn topic(name: Option<&str>) -> Result<Topic, String> {
    let names = || TOPICS.iter().map(|(name, _)| *name);
    let name = name.ok_or_else(|| format!("info: one of {}", names().collect::<Vec<_>>().join(", ")))?;
    let found = TOPICS.iter().find(|(known, _)| *known == name).map(|(_, topic)| *topic);
    found.ok_or_else(|| nearest::unknown("topic of info", name, names()))
}

fn chord(keys: Option<&str>, hold_ms: Option<&str>) -> Result<Chord, String> {
    let keys = keys::parse(keys.ok_or("sendkey: keys expected, such as ctrl-alt-delete")?)?;
    let hold_ms = match hold_ms {
        None => HOLD_MS,
        Some(text) => match text.parse() {
            Ok(hold_ms) if hold_ms <= MAX_HOLD_MS => hold_ms,
            _ => return Err(format!("sendkey: '{text}' is no time in milliseconds up to {MAX_HOLD_MS}")),
        },
    };
    Ok(Chord { keys, hold_ms })
}

fn vcpu(text: Option<&str>) -> Result<u8, String> {
    // Without a number the boot processor, as later qemus do.
    let Some(text) = text else { return Ok(0) };
    text.parse().map_err(|_| format!("nmi: '{text}' is no number of a vCPU"))
}

/// A line that the monitor writes; on the control socket its lines end in CR LF.
pub fn text(line: &str) -> String {
    format!("{line}\r\n")
}

/// What `info` says.
#[cold]
pub fn info(topic: Topic, state: State, machine: impl FnOnce() -> Inventory) -> String {
    match topic {
        Topic::Status => text(&format!("VM status: {}", status(state))),
        Topic::Version => text(concat!(env!("CARGO_PKG_VERSION"), " (zvmm)")),
        _ => about(topic, &machine()),
    }
}

fn about(topic: Topic, machine: &Inventory) -> String {
    let each = |lines: Vec<String>| lines.iter().map(|line| text(line)).collect::<String>();
    let bit = u8::from;
    match topic {
        Topic::Name => text(&machine.name),
        Topic::Uuid => text(uuid(machine)),
        Topic::Kvm => text(&format!("kvm support: {}", if machine.is_kvm { "enabled" } else { "not compiled" })),
        Topic::Block => each(
            machine
                .disks
                .iter()
                .map(|disk| {
                    let (id, path, ro) = (&disk.id, &disk.path, bit(disk.read_only));
                    format!("{id}: type=hd removable=0 file={path} ro={ro} drv=raw encrypted=0")
                })
                .collect(),
        ),
        Topic::Network => each(
            (0..)
                .zip(&machine.nets)
                .flat_map(|(index, net)| {
                    let (id, mac, host) = (&net.id, &net.mac, &net.host);
                    let link = if net.is_up { "up" } else { "down" };
                    let card = format!("{id}: index={index},type=nic,model=virtio-net-pci,macaddr={mac},link={link}");
                    [card, format!(" \\ {host}: index={index},type=tap,ifname={host}")]
                })
                .collect(),
        ),
        Topic::Cpus => each(
            (0..)
                .zip(&machine.vcpus)
                .map(|(index, vcpu)| {
                    let mark = if index == 0 { '*' } else { ' ' };
                    format!("{mark} CPU #{index}: thread_id={}", vcpu.thread_id)
                })
                .collect(),
        ),
        Topic::Characters => {
            each(machine.characters.iter().map(|line| format!("{}: filename={}", line.label, line.filename)).collect())
        }
        Topic::Pci => machine.functions.iter().map(function).collect(),
        Topic::Status | Topic::Version => String::new(),
    }
}

fn status(state: State) -> &'static str {
    match state {
        State::Running | State::Resetting { paused: false } => "running",
        State::Starting => "paused (prelaunch)",
        State::Paused | State::Resetting { paused: true } => "paused",
        State::DiskFailed => "paused (io-error)",
        State::Stopped(_) => "paused (shutdown)",
    }
}

fn function(function: &PciFacts) -> String {
    let mut lines = String::new();
    let mut line = |what: std::fmt::Arguments<'_>| {
        // Writing to a text cannot fail.
        let _ = write!(lines, "{what}\r\n");
    };
    line(format_args!("  Bus  0, device {:3}, function {}:", function.slot, function.function));
    let ids = format!("PCI device {:04x}:{:04x}", function.vendor, function.device);
    match class_name(function.class) {
        Some(class) => line(format_args!("    {class}: {ids}")),
        None => line(format_args!("    Class {:04x}: {ids}", function.class)),
    }
    if let Some(irq) = function.irq {
        line(format_args!("      IRQ {irq}."));
    }
    for BarFacts { index, is_io, is_prefetchable, is_64_bit, address, len } in function.bars.iter().copied() {
        let last = address.wrapping_add(len).wrapping_sub(1);
        if is_io {
            line(format_args!("      BAR{index}: I/O at 0x{address:04x} [0x{last:04x}]."));
        } else {
            let (bits, prefetch) =
                (if is_64_bit { 64 } else { 32 }, if is_prefetchable { " prefetchable" } else { "" });
            let kind = format!("{bits} bit{prefetch} memory");
            line(format_args!("      BAR{index}: {kind} at 0x{address:08x} [0x{last:08x}]."));
        }
    }
    line(format_args!("      id \"{}\"", function.id));
    lines
}

#[cfg(test)]
#[path = "hmp_tests.rs"]
mod tests;
