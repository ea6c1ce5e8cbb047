//! Lines of the human monitor: how clients write them, and what each of them must lead to.

use devices::legacy::ps2::KeyCode;
use zvmm::control::inventory::Inventory;
use zvmm::control::{Chord, Command};

/// What a line begins with.
const FIRST: [&str; 16] = [
    "info",
    "sendkey",
    "nmi",
    "stop",
    "cont",
    "c",
    "system_powerdown",
    "system_reset",
    "quit",
    "q",
    "",
    "help",
    "inof",
    "Stop",
    "\u{1b}[2J\0",
    "\u{a0}stop",
];

/// What goes on with it.
const SECOND: [&str; 32] = [
    "",
    "block",
    "chardev",
    "cpus",
    "kvm",
    "name",
    "network",
    "pci",
    "status",
    "uuid",
    "version",
    "blokc",
    "ctrl-alt-delete",
    "a",
    "0x1d-a",
    "a-0xff",
    "0x0",
    "0x100",
    "a-",
    "-",
    "ret-ret-ret-ret-ret-ret-ret-ret-ret-ret-ret-ret-ret-ret-ret-ret",
    "ret-ret-ret-ret-ret-ret-ret-ret-ret-ret-ret-ret-ret-ret-ret-ret-ret",
    "A",
    "hyper",
    "0",
    "1",
    "15",
    "16",
    "255",
    "256",
    "-1",
    "18446744073709551616",
];

/// What it ends in.
const LAST: [&str; 8] = ["", "\t", "  1\r\n", " 0 ", "\u{c}60000", " 60001", " a", " 1 2"];

/// The keys of the above.
const KEYS: [(&str, u8); 8] = [
    ("ctrl", 0x1d),
    ("alt", 0x38),
    ("delete", 0xd3),
    ("a", 0x1e),
    ("ret", 0x1c),
    ("0", 0x0b),
    ("1", 0x02),
    ("2", 0x03),
];

const TOPICS: [&str; 10] = ["block", "chardev", "cpus", "kvm", "name", "network", "pci", "status", "uuid", "version"];

const HOLD_MS: u32 = 100;
const MOST_HOLD_MS: u32 = 60_000;
const MOST_KEYS: usize = 16;

/// A line, by number.
pub fn line(first: u8, second: u8, last: u8) -> String {
    let [first, second, last] = [(&FIRST[..], first), (&SECOND[..], second), (&LAST[..], last)]
        .map(|(pieces, which)| pieces[usize::from(which) % pieces.len()]);
    format!("{first} {second}{last}")
}

/// What a line must lead to.
#[derive(Debug, PartialEq, Eq)]
pub enum Meaning {
    Nothing,
    Command(Command),
    Keys(Chord),
    /// Keys of which not every one is known here.
    SomeKeys,
    Info(&'static str),
    Wrong,
}

/// What this line must lead to.
pub fn meaning(line: &str) -> Meaning {
    let words: Vec<&str> = line.split([' ', '\t', '\r', '\n', '\u{c}']).filter(|word| !word.is_empty()).collect();
    match words[..] {
        [] => Meaning::Nothing,
        ["info", topic] => TOPICS.into_iter().find(|known| *known == topic).map_or(Meaning::Wrong, Meaning::Info),
        ["sendkey", keys] => chord(keys, HOLD_MS),
        ["sendkey", keys, hold_ms] => match hold_ms.parse() {
            Ok(hold_ms @ 0..=MOST_HOLD_MS) => chord(keys, hold_ms),
            _ => Meaning::Wrong,
        },
        ["nmi"] => Meaning::Command(Command::Nmi { vcpu: 0 }),
        ["nmi", vcpu] => vcpu.parse().map_or(Meaning::Wrong, |vcpu| Meaning::Command(Command::Nmi { vcpu })),
        ["stop"] => Meaning::Command(Command::Pause),
        ["cont" | "c"] => Meaning::Command(Command::Resume),
        ["system_powerdown"] => Meaning::Command(Command::PowerButton),
        ["system_reset"] => Meaning::Command(Command::Reset),
        ["quit" | "q"] => Meaning::Command(Command::Quit),
        _ => Meaning::Wrong,
    }
}

fn chord(keys: &str, hold_ms: u32) -> Meaning {
    let mut codes = Vec::new();
    for name in keys.split('-') {
        let code = match name.strip_prefix("0x").map(|digits| u32::from_str_radix(digits, 16)) {
            Some(Ok(code @ 1..=0xff)) => code as u8,
            Some(_) => return Meaning::Wrong,
            None => match KEYS.iter().find(|(known, _)| *known == name) {
                Some((_, code)) => *code,
                // Of what this target makes of its pieces, none is a key.
                None if name.is_empty() || SECOND.contains(&name) || name == "60000" || name == "60001" => {
                    return Meaning::Wrong;
                }
                None => return Meaning::SomeKeys,
            },
        };
        codes.push(KeyCode(code));
    }
    if codes.len() > MOST_KEYS {
        return Meaning::Wrong;
    }
    Meaning::Keys(Chord { keys: codes, hold_ms })
}

/// Whether keys that were pressed can be those of a line.
pub fn is_chord(chord: &Chord) -> bool {
    (1..=MOST_KEYS).contains(&chord.keys.len())
        && chord.hold_ms <= MOST_HOLD_MS
        && chord.keys.iter().all(|key| key.0 != 0)
}

/// Whether this is one line that says something.
pub fn is_line(text: &str) -> bool {
    text.strip_suffix("\r\n").is_some_and(|line| !line.is_empty() && !line.contains(['\r', '\n']))
}

/// What is shown of a topic, in a machine whose guest has this status.
///
/// # Panics
/// On a finding.
pub fn judge_info(topic: &str, text: &str, status: &str, machine: &Inventory) {
    let lines: Vec<&str> = text.split_terminator("\r\n").collect();
    let each = |count: usize, is_right: &dyn Fn(usize, &str) -> bool| {
        lines.len() == count && lines.iter().enumerate().all(|(index, line)| is_right(index, line))
    };
    let one = |what: &str| each(1, &|_, line| line == what);
    let is_right = match topic {
        "status" => one(&match status {
            "running" | "paused" => format!("VM status: {status}"),
            other => format!("VM status: paused ({other})"),
        }),
        "version" => each(1, &|_, line| line.ends_with(" (zvmm)")),
        "name" => one(&machine.name),
        "uuid" => one(machine.uuid.as_deref().unwrap_or("00000000-0000-0000-0000-000000000000")),
        "kvm" => one(if machine.is_kvm { "kvm support: enabled" } else { "kvm support: not compiled" }),
        "block" => each(machine.disks.len(), &|index, line| {
            let disk = &machine.disks[index];
            line.starts_with(&format!("{}: type=hd removable=0 file={} ", disk.id, disk.path))
                && line.contains(if disk.read_only { " ro=1 " } else { " ro=0 " })
        }),
        "network" => each(2 * machine.nets.len(), &|index, line| {
            let net = &machine.nets[index / 2];
            let link = if net.is_up { ",link=up" } else { ",link=down" };
            match index % 2 {
                0 => line.starts_with(&format!("{}: index={}", net.id, index / 2)) && line.ends_with(link),
                _ => line.starts_with(" \\ ") && line.ends_with(&format!("ifname={}", net.host)),
            }
        }),
        "cpus" => each(machine.vcpus.len(), &|index, line| {
            let mark = if index == 0 { '*' } else { ' ' };
            line == format!("{mark} CPU #{index}: thread_id={}", machine.vcpus[index].thread_id)
        }),
        "chardev" => each(machine.characters.len(), &|index, line| {
            let shown = &machine.characters[index];
            line == format!("{}: filename={}", shown.label, shown.filename)
        }),
        _ => {
            let functions = &machine.functions;
            let heads: Vec<_> = lines.iter().filter(|line| line.starts_with("  Bus ")).collect();
            let is_head = |(index, line): (usize, &&&str)| {
                let (slot, function) = (functions[index].slot, functions[index].function);
                **line == format!("  Bus  0, device {slot:3}, function {function}:")
            };
            let bars: usize = functions.iter().map(|function| function.bars.len()).sum();
            heads.len() == functions.len()
                && heads.iter().enumerate().all(is_head)
                && lines.iter().filter(|line| line.starts_with("      BAR")).count() == bars
                && functions.iter().all(|function| lines.contains(&&*format!("      id \"{}\"", function.id)))
        }
    };
    assert!(is_right && (text.is_empty() || text.ends_with("\r\n")), "info {topic} of {machine:?}: {text:?}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_made_of_pieces_and_mean_what_the_manual_says() {
        let keys = |codes: &[u8], hold_ms| {
            Meaning::Keys(Chord { keys: codes.iter().map(|code| KeyCode(*code)).collect(), hold_ms })
        };
        assert_eq!(line(1, 12, 2), "sendkey ctrl-alt-delete  1\r\n");
        assert_eq!(meaning(&line(1, 12, 2)), keys(&[0x1d, 0x38, 0xd3], 1));
        assert_eq!(meaning(&line(1, 14, 0)), keys(&[0x1d, 0x1e], 100));
        assert_eq!(meaning(&line(1, 21, 0)), Meaning::Wrong);
        assert_eq!(meaning(&line(1, 13, 5)), Meaning::Wrong);
        assert_eq!(meaning(&line(0, 1, 0)), Meaning::Info("block"));
        assert_eq!(meaning(&line(2, 27, 1)), Meaning::Command(Command::Nmi { vcpu: 16 }));
        assert_eq!(meaning(&line(3, 0, 0)), Meaning::Command(Command::Pause));
        assert_eq!(meaning(&line(3, 0, 6)), Meaning::Wrong);
        assert_eq!(meaning(&line(10, 0, 1)), Meaning::Nothing);
        assert_eq!(meaning("sendkey f12"), Meaning::SomeKeys);
    }

    #[test]
    #[should_panic(expected = "info network of")]
    fn a_link_that_is_shown_wrong_is_found() {
        let mut machine = Inventory { nets: vec![Default::default()], ..Inventory::default() };
        let text = ": index=0,type=nic,link=down\r\n \\ : index=0,type=tap,ifname=\r\n";
        judge_info("network", text, "running", &machine);
        machine.nets[0].is_up = true;
        judge_info("network", text, "running", &machine);
    }
}
