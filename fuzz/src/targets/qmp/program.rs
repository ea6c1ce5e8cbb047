//! What a client of the control socket sends, as data: eight bytes of knobs, then eight bytes an operation, so that the
//! mutator of the machines' programs knows these too. What a message must lead to follows from how it was made, not from
//! the code that reads it.

use std::sync::LazyLock;

use serde_json::Value;
use zvmm::control::{Command as Act, DiskResize, LinkChange};
use zvmm::fuzzing::qmp::{MAX_MESSAGE, Order, Query};

use super::monitor;

use crate::program::mutate::mutate_within;
use crate::program::{KNOBS, RECORD};

/// Shorter conversations say little, and longer ones find no more than their halves.
const LEAST_SENT: usize = 16;
const MAX_SENT: usize = 20;

/// One thing that is done.
#[derive(Debug)]
pub enum Sent {
    /// A message as one may be written, or spoilt in one way.
    Message(Message),
    /// Pieces of messages, inside so many brackets.
    Pieces([usize; 5], usize),
    /// Any bytes.
    Bytes([u8; 7], usize),
    /// The byte that has half a message forgotten.
    StartOver,
    /// The end of a line.
    LineEnd,
    /// Another client comes: a new session.
    NewClient { of_another_guest: bool },
    /// Something happens to the guest by itself, by number.
    Event(u8),
}

/// A message.
#[derive(Debug)]
pub struct Message {
    /// Number of its command.
    pub command: usize,
    /// Number of its id.
    pub id: usize,
    /// How it is written.
    pub form: Form,
    /// White space around and inside, letters as escapes, members in another order.
    pub layout: u8,
    /// What the host makes of it; or what a line of the human monitor is made of.
    pub outcome: u8,
    /// Number of its arguments, where its command takes some, in the lower half.
    pub arguments: u8,
    /// Whether half a message may lie before it: then nobody knows what it leads to.
    pub is_glued: bool,
}

/// Well, or spoilt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    Plain,
    NoArguments,
    NothingEnabled,
    SomethingEnabled,
    UnknownArgument,
    ArgumentsOfAnotherType,
    CommandOfAnotherType,
    NoCommand,
    UnknownMember,
    List,
    Word,
    OpenString,
}

/// What a message must lead to.
#[derive(Debug, PartialEq, Eq)]
pub enum Expected {
    Order(Order),
    Return,
    GenericError,
    CommandNotFound,
}

/// The commands that take arguments, by number.
const RESIZE: usize = 11;
const SET_LINK: usize = 12;
const MONITOR: usize = 24;
const SET_PASSWORD: usize = 25;
const SCREENDUMP: usize = 26;
const CHANGE: usize = 27;

/// A disk, and the size it is to have.
type Resize = (&'static str, Option<u64>);

/// Arguments of the first, with what they say; `None`: it must refuse them.
const RESIZES: [(&str, Option<Resize>); 16] = [
    ("{\"device\":\"disk0\",\"size\":1048576}", Some(("disk0", Some(1 << 20)))),
    ("{\"size\":18446744073709551615,\"node-name\":\"\"}", Some(("", Some(u64::MAX)))),
    ("{\"device\":\"\\u0000\\\"}]\"}", Some(("\0\"}]", None))),
    ("{\"\\u0064evice\":\"d\",\"size\":0}", Some(("d", Some(0)))),
    ("{\"size\":512}", None),
    ("{\"device\":\"d\",\"node-name\":\"d\",\"size\":512}", None),
    ("{\"device\":\"d\",\"size\":null}", None),
    ("{\"device\":null,\"size\":512}", None),
    ("{\"device\":[\"d\"],\"size\":512}", None),
    ("{\"device\":\"d\",\"size\":-1}", None),
    ("{\"device\":\"d\",\"size\":1.5}", None),
    ("{\"device\":\"d\",\"size\":1e3}", None),
    ("{\"device\":\"d\",\"size\":18446744073709551616}", None),
    ("{\"device\":\"d\",\"size\":\"512\"}", None),
    ("{\"device\":\"d\",\"size\":512,\"siez\":1}", None),
    ("{\"device\":\"d\",\"size\":{\"size\":512}}", None),
];

/// An interface, and whether its link is to be up.
type Link = (&'static str, bool);

/// Arguments of the second.
const LINKS: [(&str, Option<Link>); 16] = [
    ("{\"name\":\"net0\",\"up\":true}", Some(("net0", true))),
    ("{\"up\":false,\"name\":\"\"}", Some(("", false))),
    ("{\"name\":\"\\u0000\\\"}]\",\"up\":false}", Some(("\0\"}]", false))),
    ("{\"\\u0075p\":true,\"n\\u0061me\":\"n\"}", Some(("n", true))),
    ("{\"name\":\"net0\"}", None),
    ("{\"up\":true}", None),
    ("{\"name\":\"net0\",\"up\":null}", None),
    ("{\"name\":null,\"up\":true}", None),
    ("{\"name\":[\"net0\"],\"up\":true}", None),
    ("{\"name\":\"net0\",\"up\":1}", None),
    ("{\"name\":\"net0\",\"up\":\"true\"}", None),
    ("{\"name\":0,\"up\":true}", None),
    ("{\"name\":\"net0\",\"up\":true,\"down\":false}", None),
    ("{\"name\":\"net0\",\"up\":{\"up\":true}}", None),
    ("{\"Name\":\"net0\",\"up\":true}", None),
    ("{\"name\":\"net0\",\"up\":[true]}", None),
];

/// Around a line of the human monitor; whether that is an order.
const MONITORS: [(&str, &str, bool); 16] = [
    ("{\"command-line\":", "}", true),
    ("{ \"command-line\" : ", "\r\n}", true),
    ("{\"cpu-index\":0,\"command-line\":", "}", true),
    ("{\"command-line\":", ",\"cpu-index\":18446744073709551615}", true),
    ("{\"c\\u006fmmand-line\":", "}", true),
    ("{\"command-line\":", "}", true),
    ("{\"command-line\":", "}", true),
    ("{\"command-line\":", "}", true),
    ("{\"command-line\":", ",\"cpu-index\":-1}", false),
    ("{\"command-line\":", ",\"cpu-index\":null}", false),
    ("{\"command-line\":", ",\"cpu_index\":0}", false),
    ("{\"command_line\":", "}", false),
    ("{\"command-line\":[", "]}", false),
    ("{\"command-line\":{\"command-line\":", "}}", false),
    ("{\"command-line\":null,\"cpu-index\":", "}", false),
    ("{\"cpu-index\":", "}", false),
];

/// Arguments of `set_password`, and whether they are an order.
const PASSWORDS: [(&str, bool); 8] = [
    ("{\"protocol\":\"vnc\",\"password\":\"secret\"}", true),
    ("{\"password\":\"\",\"protocol\":\"spice\",\"connected\":\"keep\"}", true),
    ("{\"protocol\":\"VNC\",\"password\":\"\"}", false),
    ("{\"protocol\":\"vnc\"}", false),
    ("{\"password\":\"secret\"}", false),
    ("{\"protocol\":\"vnc\",\"password\":null}", false),
    ("{\"protocol\":\"vnc\",\"password\":\"\",\"connected\":1}", false),
    ("{\"protocol\":\"vnc\",\"password\":\"\",\"time\":\"now\"}", false),
];

/// Arguments of `screendump`.
const DUMPS: [(&str, bool); 4] = [
    ("{\"filename\":\"/tmp/vm.ppm\"}", true),
    ("{\"filename\":\"\\u0000\"}", true),
    ("{\"filename\":[\"/tmp/vm.ppm\"]}", false),
    ("{\"filename\":\"/tmp/vm.ppm\",\"head\":0}", false),
];

/// Arguments of `change`, and the device they name.
const CHANGES: [(&str, Option<&str>); 8] = [
    ("{\"device\":\"vnc\",\"target\":\"password\",\"arg\":\"secret\"}", Some("vnc")),
    ("{\"target\":\"\",\"device\":\"disk0\"}", Some("disk0")),
    ("{\"device\":\"\\u0000\\\"}]\",\"target\":\"eject\"}", Some("\0\"}]")),
    ("{\"device\":\"Vnc\",\"target\":\"password\"}", Some("Vnc")),
    ("{\"device\":\"vnc\"}", None),
    ("{\"target\":\"password\"}", None),
    ("{\"device\":\"vnc\",\"target\":null}", None),
    ("{\"device\":\"vnc\",\"target\":\"password\",\"arg\":[]}", None),
];

/// Commands that there are, with what each orders.
pub const KNOWN: [(&str, Option<Order>); 28] = [
    ("qmp_capabilities", None),
    ("query-version", None),
    ("query-commands", None),
    ("query-status", Some(Order::QueryStatus)),
    ("query-stats", Some(Order::QueryStats)),
    ("stop", Some(Order::Command(Act::Pause))),
    ("cont", Some(Order::Command(Act::Resume))),
    ("system_powerdown", Some(Order::Command(Act::PowerButton))),
    ("system_reset", Some(Order::Command(Act::Reset))),
    ("quit", Some(Order::Command(Act::Quit))),
    ("inject-nmi", Some(Order::Command(Act::Nmi { vcpu: 0 }))),
    ("block_resize", None),
    ("set_link", None),
    ("query-name", Some(Order::Query(Query::Name))),
    ("query-uuid", Some(Order::Query(Query::Uuid))),
    ("query-kvm", Some(Order::Query(Query::Kvm))),
    ("query-block", Some(Order::Query(Query::Block))),
    ("query-blockstats", Some(Order::Query(Query::BlockStats))),
    ("query-cpus", Some(Order::Query(Query::Cpus))),
    ("query-cpus-fast", Some(Order::Query(Query::CpusFast))),
    ("query-chardev", Some(Order::Query(Query::Characters))),
    ("query-pci", Some(Order::Query(Query::Pci))),
    ("query-vnc", Some(Order::Query(Query::Display))),
    ("query-spice", Some(Order::Query(Query::Display))),
    ("human-monitor-command", None),
    ("set_password", None),
    ("screendump", None),
    ("change", None),
];

/// Commands that there are not: near to one, and near to none.
const UNKNOWN: [&str; 5] = ["sytem_reset", "nonsense", "", "Quit", "\u{1b}[2J\u{202e}\u{0}"];

/// Ids as they are sent; the first is none.
const IDS: [&str; 12] = [
    "",
    "1",
    "\"one\"",
    "null",
    "-0.5e3",
    "18446744073709551615",
    "[1,{\"id\":[]}]",
    "{\"execute\":\"quit\",\"id\":{}}",
    "\"}\\\"]{\\\\\"",
    "\"\\u001b\\n\\ud83d\\ude00\u{fe}\"",
    "true",
    "\"\"",
];

/// Pieces that messages are made of, and some that belong in none.
pub const PIECES: [&[u8]; 40] = [
    b"{",
    b"}",
    b"[",
    b"]",
    b"\"",
    b"\\",
    b":",
    b",",
    b"\n",
    b"\xff",
    b"\"execute\":",
    b"\"stop\"",
    b"\"qmp_capabilities\"",
    b"\"id\":",
    b"\"arguments\":",
    b"{}",
    b"\"enable\":[]",
    b"1",
    b"-",
    b"1e999",
    b"true",
    b"null",
    b"\"\\u00e9\"",
    b"\"\\ud800\"",
    b"\xfe",
    b"\xc3",
    b"\r",
    b" ",
    b"\0",
    b"{\"execute\":\"query-version\"}",
    b"{\"execute\":\"cont\",\"id\":2}",
    b"\"quit\"",
    b"{\"execute\":\"human-monitor-command\",\"arguments\":{\"command-line\":\"",
    b"{\"execute\":\"human-monitor-command\",\"arguments\":{\"command-line\":\"sendkey ",
    b"\"}}",
    b"info ",
    b"f12-",
    b"print",
    b"\"command-line\":\"q\"",
    b"\"human-monitor-command\"",
];

static ID_VALUES: LazyLock<Vec<Value>> =
    LazyLock::new(|| IDS.iter().map(|id| serde_json::from_str(id).unwrap_or_default()).collect());

impl Message {
    fn read(record: [u8; RECORD]) -> Self {
        let [_, command, id, form, layout, outcome, glued, arguments] = record;
        const FORMS: [Form; 11] = [
            Form::NoArguments,
            Form::NothingEnabled,
            Form::SomethingEnabled,
            Form::UnknownArgument,
            Form::ArgumentsOfAnotherType,
            Form::CommandOfAnotherType,
            Form::NoCommand,
            Form::UnknownMember,
            Form::List,
            Form::Word,
            Form::OpenString,
        ];
        Self {
            // One of eight is unknown: looking for the name that is nearest takes longer than most commands.
            // One of five is a line of the human monitor, which is a language of its own.
            command: match usize::from(command) {
                known @ 0..=167 => known % KNOWN.len(),
                168..=223 => MONITOR,
                unknown => KNOWN.len() + unknown % UNKNOWN.len(),
            },
            id: usize::from(id) % IDS.len(),
            // The mutator leaves two of three records below four.
            form: form.checked_sub(4).map_or(Form::Plain, |form| FORMS[usize::from(form) % FORMS.len()]),
            layout,
            outcome,
            arguments,
            is_glued: glued > 0xe0,
        }
    }

    /// Its command.
    pub fn command(&self) -> &'static str {
        KNOWN.get(self.command).map_or_else(|| UNKNOWN[self.command - KNOWN.len()], |(name, _)| *name)
    }

    /// What the answer must belong to: what is no object has no id.
    pub fn id(&self) -> Option<&'static Value> {
        let is_object = !matches!(self.form, Form::List | Form::Word | Form::OpenString);
        ID_VALUES.get(self.id).filter(|_| is_object && self.id > 0)
    }

    /// What it must lead to, in a session that has negotiated or not.
    pub fn expected(&self, negotiated: bool) -> Expected {
        let negotiates = self.command == 0;
        match self.form {
            Form::ArgumentsOfAnotherType
            | Form::CommandOfAnotherType
            | Form::NoCommand
            | Form::UnknownMember
            | Form::List
            | Form::Word
            | Form::OpenString => return Expected::GenericError,
            _ => {}
        }
        let Some((_, order)) = KNOWN.get(self.command).filter(|_| negotiated || negotiates) else {
            return Expected::CommandNotFound;
        };
        match self.form {
            Form::SomethingEnabled | Form::UnknownArgument => return Expected::GenericError,
            Form::NothingEnabled if !negotiates => return Expected::GenericError,
            Form::NoArguments if self.takes_arguments() => return Expected::GenericError,
            _ => {}
        }
        if self.takes_arguments() {
            return self.order_of_arguments().map_or(Expected::GenericError, Expected::Order);
        }
        match order {
            Some(order) => Expected::Order(order.clone()),
            None if negotiates && negotiated => Expected::CommandNotFound,
            None => Expected::Return,
        }
    }

    fn takes_arguments(&self) -> bool {
        matches!(self.command, RESIZE | SET_LINK | MONITOR | SET_PASSWORD | SCREENDUMP | CHANGE)
    }

    /// Which of these arguments it has.
    fn chosen<T>(&self, of: &'static [T]) -> &'static T {
        &of[usize::from(self.arguments & 0xf) % of.len()]
    }

    /// What its arguments make of its command; `None` where they are refused.
    fn order_of_arguments(&self) -> Option<Order> {
        match self.command {
            RESIZE => self
                .chosen(&RESIZES)
                .1
                .map(|(disk, size_bytes)| Order::ResizeDisk(DiskResize { disk: disk.to_owned(), size_bytes })),
            SET_LINK => {
                self.chosen(&LINKS).1.map(|(name, up)| Order::SetLink(LinkChange { name: name.to_owned(), up }))
            }
            MONITOR => self.chosen(&MONITORS).2.then(|| Order::Monitor(self.line())),
            SET_PASSWORD => self.chosen(&PASSWORDS).1.then_some(Order::NoDisplay("set_password")),
            SCREENDUMP => self.chosen(&DUMPS).1.then_some(Order::NoDisplay("screendump")),
            _ => self.chosen(&CHANGES).1.map(|device| match device {
                "vnc" => Order::NoDisplay("change"),
                other => Order::ChangeMedium(other.to_owned()),
            }),
        }
    }

    /// Its line of the human monitor.
    fn line(&self) -> String {
        monitor::line(self.outcome & 0xf, self.outcome >> 4 | self.arguments & 0x10, self.arguments >> 5)
    }

    fn write_arguments(&self, text: &mut Vec<u8>) {
        let plain = match self.command {
            RESIZE => self.chosen(&RESIZES).0,
            SET_LINK => self.chosen(&LINKS).0,
            SET_PASSWORD => self.chosen(&PASSWORDS).0,
            SCREENDUMP => self.chosen(&DUMPS).0,
            CHANGE => self.chosen(&CHANGES).0,
            _ => {
                let (before, behind, _) = self.chosen(&MONITORS);
                text.extend_from_slice(format!("{before}{}{behind}", Value::from(self.line())).as_bytes());
                return;
            }
        };
        text.extend_from_slice(plain.as_bytes());
    }

    /// Writes it as it is sent.
    pub fn write(&self, text: &mut Vec<u8>) {
        match self.form {
            Form::List => return text.extend_from_slice(b"[{\"execute\":\"stop\",\"id\":1}]"),
            Form::Word => return text.extend_from_slice(b"stop\n"),
            Form::OpenString => return text.extend_from_slice(b"{\"execute\":\"stop}\n"),
            _ => {}
        }
        let space: &[u8] =
            [b"".as_slice(), b"", b"", b" ", b"\n", b"\r\n\t", b"  ", b"\r\n"][usize::from(self.layout & 7)];
        let id_first = self.layout & 8 != 0;
        text.extend_from_slice(space);
        text.push(b'{');
        let mut members = 0;
        let mut member = |text: &mut Vec<u8>, name: &str, write: &dyn Fn(&mut Vec<u8>)| {
            if members > 0 {
                text.push(b',');
            }
            members += 1;
            text.extend_from_slice(space);
            text.push(b'"');
            text.extend_from_slice(name.as_bytes());
            text.extend_from_slice(b"\":");
            text.extend_from_slice(space);
            write(text);
        };
        let id = |text: &mut Vec<u8>| text.extend_from_slice(IDS[self.id].as_bytes());
        if id_first && self.id > 0 {
            member(text, "id", &id);
        }
        match self.form {
            Form::NoCommand => {}
            Form::CommandOfAnotherType => member(text, "execute", &|text| text.extend_from_slice(b"[\"stop\"]")),
            _ => member(text, "execute", &|text| self.write_command(text)),
        }
        let arguments: Option<&[u8]> = match self.form {
            Form::NoArguments => Some(b"{}"),
            Form::NothingEnabled => Some(b"{\"enable\":[]}"),
            Form::SomethingEnabled => Some(b"{\"enable\":[\"oob\"]}"),
            Form::UnknownArgument => Some(b"{\"fd\\n\":{\"\":\"]}\"}}"),
            Form::ArgumentsOfAnotherType => Some(b"[]"),
            _ => None,
        };
        if let Some(arguments) = arguments {
            member(text, "arguments", &|text| text.extend_from_slice(arguments));
        } else if self.form == Form::Plain && self.takes_arguments() {
            member(text, "arguments", &|text| self.write_arguments(text));
        }
        if self.form == Form::UnknownMember {
            member(text, "exec-oob", &|text| text.extend_from_slice(b"\"stop\""));
        }
        if !id_first && self.id > 0 {
            member(text, "id", &id);
        }
        text.extend_from_slice(space);
        text.push(b'}');
    }

    fn write_command(&self, text: &mut Vec<u8>) {
        let plain = self.layout & 0xf0 != 0;
        text.push(b'"');
        for byte in self.command().bytes() {
            match byte {
                // JSON has these as escapes only.
                0..=0x1f => text.extend_from_slice(format!("\\u{byte:04x}").as_bytes()),
                b'e' if !plain => text.extend_from_slice(b"\\u0065"),
                _ => text.push(byte),
            }
        }
        text.push(b'"');
    }
}

/// The first knob of programs without a long message, at most.
const MOST_SHORT: u8 = 0xfb;

/// The message that is as long as one may be, or longer: in front of all others, as it takes as long as they do together.
#[derive(Debug)]
pub struct Long {
    /// What it is full of; `None`: the id of a good message.
    pub fill: Option<u8>,
    pub len: usize,
}

impl Long {
    /// What stands before and behind the id that is as long as it takes.
    pub const AROUND: [&'static [u8]; 2] = [b"{\"execute\":\"query-version\",\"id\":\"", b"\"}"];

    fn read(knobs: &[u8]) -> Option<Self> {
        // None of these ends a message.
        const FILLS: [u8; 8] = [b'[', b'{', b'"', b'\\', b'a', b'1', 0, 0xfe];
        let [knob, fill, len] = [0, 1, 2].map(|at| knobs.get(at).copied().unwrap_or(0));
        let fill = (knob & 1 != 0).then_some(FILLS[usize::from(fill & 7)]);
        (knob > MOST_SHORT).then_some(Self { fill, len: MAX_MESSAGE - 1 + usize::from(len % 3) })
    }
}

/// A conversation.
pub struct Program<'a> {
    pub long: Option<Long>,
    /// Which machine the guest has.
    pub machine: u8,
    /// What becomes of it when it resets itself or panics, and whether it waits to be started.
    pub policy: u8,
    records: &'a [u8],
}

impl<'a> Program<'a> {
    /// Any bytes are one.
    pub fn read(data: &'a [u8]) -> Self {
        let (knobs, records) = data.split_at(data.len().min(KNOBS));
        let [machine, policy] = [3, 4].map(|at| knobs.get(at).copied().unwrap_or(0));
        Self { long: Long::read(knobs), machine, policy, records: &records[..records.len().min(MAX_SENT * RECORD)] }
    }

    /// How many operations it has, with the message that ends each.
    pub fn len(&self) -> usize {
        1 + self.records.len().div_ceil(RECORD) + usize::from(self.long.is_some())
    }

    /// What is done, one after the other.
    pub fn sent(&self) -> impl Iterator<Item = Sent> + '_ {
        self.records.chunks(RECORD).map(|chunk| {
            let mut record = [0; RECORD];
            record[..chunk.len()].copy_from_slice(chunk);
            sent(record)
        })
    }
}

fn sent(record: [u8; RECORD]) -> Sent {
    let [code, a, b, c, d, e, f, g] = record;
    let high = usize::from(code >> 4);
    match code & 0xf {
        0..=6 => Sent::Message(Message::read(record)),
        7..=10 => {
            // Readers of JSON go so deep that their stack lasts: around there.
            let brackets = if c < 4 { 0 } else { c.into() };
            Sent::Pieces([a, b, d, e, f].map(|piece| usize::from(piece) % PIECES.len()), brackets)
        }
        11..=13 => Sent::Bytes([a, b, c, d, e, f, g], 1 + high % 7),
        14 if high & 1 == 0 => Sent::StartOver,
        14 => Sent::LineEnd,
        _ if high < 3 => Sent::NewClient { of_another_guest: high == 2 },
        _ => Sent::Event(a),
    }
}

/// Changes a conversation: see [`mutate_within`].
pub fn mutate(data: &mut [u8], size: usize, max: usize, seed: u32) -> usize {
    mutate_within(data, size, max, seed, LEAST_SENT..=MAX_SENT)
}

/// A long message costs as much as hundreds of programs: few mutations leave one in.
pub fn rarely_long(data: &mut [u8], seed: u32) {
    if let Some(knob) = data.first_mut()
        && !(seed >> 16).is_multiple_of(128)
    {
        *knob = (*knob).min(MOST_SHORT);
    }
}
