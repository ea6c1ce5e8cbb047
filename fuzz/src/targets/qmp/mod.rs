//! The control socket's conversation: a hostile client, and a main loop that answers it.
//!
//! Oracles: no panic; every message is answered once, in order, under its id, by an answer that is JSON in one line, and
//! what it leads to follows from how it was written; whatever was sent before, a client that starts over (a line end, then
//! the byte that has half a message forgotten) is heard; and no more is kept than one message may be long. What is ordered
//! is carried out on a guest: what is asked of its machine, the events and the answer follow from what clients know of it.

mod answers;
mod board;
mod guest;
mod life;
mod monitor;
mod program;

use std::fmt::Write as _;

use serde_json::{Value, json};
use zvmm::fuzzing::qmp::{Id, MAX_MESSAGE, Session, Step};

use crate::stats;
use guest::Guest;
use program::{Expected, KNOWN, Long, Message, PIECES, Program, Sent};
pub use program::{mutate, rarely_long};

/// Talks to a session.
///
/// # Panics
/// On a finding.
pub fn run(data: &[u8]) {
    let program = Program::read(data);
    stats::operations(program.len());
    let mut talk = Talk::new(&program);
    if let Some(long) = &program.long {
        talk.long(long);
    }
    for sent in program.sent() {
        talk.perform(&sent);
        assert!(talk.session.buffered_bytes() <= MAX_MESSAGE);
    }
    talk.start_over();
    let last = json!("last");
    let answer = talk.answer_to(b"{\"execute\":\"query-version\",\"id\":\"last\"}");
    assert_eq!(answer.get("id"), Some(&last), "{answer}");
    talk.session = Session::default();
    talk.answer_to(b"{\"execute\":\"qmp_capabilities\"}");
    talk.answer_to(b"{\"execute\":\"query-status\"}");
}

/// A conversation so far, and what is known about it.
struct Talk {
    machine: u8,
    policy: u8,
    guest: Guest,
    session: Session,
    /// Whether half a message, or the rest of one that is skipped, may stand before what comes.
    is_within: bool,
    text: Vec<u8>,
}

impl Talk {
    fn new(program: &Program<'_>) -> Self {
        let (machine, policy) = (program.machine, program.policy);
        let (guest, session) = (Guest::new(machine, policy), Session::default());
        Self { machine, policy, guest, session, is_within: false, text: Vec::new() }
    }

    fn perform(&mut self, sent: &Sent) {
        match sent {
            Sent::Message(message) if message.is_glued => {
                let mut text = std::mem::take(&mut self.text);
                text.clear();
                message.write(&mut text);
                self.feed(&text);
                self.text = text;
            }
            Sent::Message(message) => self.ask(message),
            Sent::Pieces(pieces, brackets) => {
                (0..*brackets).for_each(|_| self.feed(b"["));
                pieces.iter().for_each(|piece| self.feed(PIECES[*piece]));
                for _ in 0..*brackets {
                    // A bracket that closes nothing is a message of its own: many of them say no more than one.
                    if self.session.buffered_bytes() == 0 {
                        break;
                    }
                    self.feed(b"]");
                }
            }
            Sent::Bytes(bytes, count) => self.feed(&bytes[..*count]),
            Sent::StartOver => self.start_over(),
            Sent::LineEnd => self.feed(b"\n"),
            Sent::NewClient { of_another_guest } => {
                (self.session, self.is_within) = (Session::default(), false);
                if *of_another_guest {
                    self.guest = Guest::new(self.machine, self.policy);
                }
                let greeting = Session::greeting();
                assert!(greeting["QMP"]["version"].is_object() && greeting["QMP"]["capabilities"].is_array());
                assert!(!self.session.wants_events(), "a client that has not negotiated is told of events");
            }
            Sent::Event(which) => self.guest.happens(*which),
        }
    }

    /// Bytes of which nobody knows what they lead to.
    fn feed(&mut self, bytes: &[u8]) {
        for byte in bytes {
            if let Some(step) = self.session.byte(*byte) {
                // A session may answer whatever it likes to nonsense, as long as it is one line of JSON.
                match step {
                    Step::Do(request) => drop(self.guest.carry_out(request, *byte)),
                    Step::Answer(answer) => judge(&answer),
                }
            }
        }
        self.is_within = true;
    }

    fn start_over(&mut self) {
        self.feed(b"\n\xff");
        assert_eq!(self.session.buffered_bytes(), 0);
        self.is_within = false;
    }

    /// A message is answered under its id, once and at its end, as it deserves.
    fn ask(&mut self, message: &Message) {
        if self.is_within {
            self.start_over();
        }
        let negotiated = self.session.wants_events();
        let expected = message.expected(negotiated);
        let mut text = std::mem::take(&mut self.text);
        text.clear();
        message.write(&mut text);
        let said = |step: &dyn std::fmt::Debug| format!("{} led to {step:?}", text.escape_ascii());
        let answer = match self.step_of(&text) {
            Step::Do(request) => {
                assert_eq!(Expected::Order(request.order.clone()), expected, "{}", said(&request));
                assert_eq!(request.id, Id::from(message.id().cloned()), "{}", said(&request));
                self.guest.carry_out(request, message.outcome)
            }
            Step::Answer(answer) => {
                judge(&answer);
                let is = match answer["error"]["class"].as_str() {
                    None => Expected::Return,
                    Some("GenericError") => Expected::GenericError,
                    Some("DeviceNotFound") => panic!("{}", said(&answer)),
                    Some(_) => Expected::CommandNotFound,
                };
                assert_eq!(is, expected, "{}", said(&answer));
                check_return(message.command(), message.outcome.into(), &answer);
                answer
            }
        };
        assert_eq!(answer.get("id"), message.id(), "{}", said(&answer));
        let negotiates = message.command() == KNOWN[0].0 && expected == Expected::Return;
        assert_eq!(self.session.wants_events(), negotiated || negotiates, "{}", said(&answer));
        self.text = text;
    }

    /// The one step that a message leads to: at its last byte.
    fn step_of(&mut self, text: &[u8]) -> Step {
        let (last, before) = text.split_last().expect("a message");
        for byte in before {
            let step = self.session.byte(*byte);
            assert!(step.is_none(), "{} led to {step:?} before its end", text.escape_ascii());
        }
        let Some(step) = self.session.byte(*last) else { panic!("{} led to nothing", text.escape_ascii()) };
        step
    }

    fn answer_to(&mut self, text: &[u8]) -> Value {
        match self.step_of(text) {
            Step::Do(request) => self.guest.carry_out(request, 0),
            Step::Answer(answer) => {
                judge(&answer);
                answer
            }
        }
    }

    /// A message as long as one may be is heard; one that is longer is not, and is answered once.
    fn long(&mut self, long: &Long) {
        let [before, behind] = Long::AROUND;
        let Some(fill) = long.fill else {
            let mut text = before.to_vec();
            text.resize(long.len - behind.len(), b'i');
            text.extend_from_slice(behind);
            let answer = self.answer_to(&text);
            let id = answer["id"].as_str().map_or(0, str::len);
            let heard = if long.len <= MAX_MESSAGE { long.len - before.len() - behind.len() } else { 0 };
            assert_eq!(id, heard, "the id of a message of {} bytes", long.len);
            // What follows belongs to it, up to the end of the line.
            self.is_within = heard == 0;
            return;
        };
        let mut answers = 0;
        for _ in 0..long.len {
            answers += usize::from(self.session.byte(fill).is_some());
            assert!(self.session.buffered_bytes() <= MAX_MESSAGE);
        }
        assert_eq!(answers, usize::from(long.len > MAX_MESSAGE), "{} bytes of {fill:#x}", long.len);
        self.is_within = true;
    }
}

/// What a return has to hold.
fn check_return(command: &str, which: usize, answer: &Value) {
    let Some(value) = answer.get("return") else { return };
    let is_right = match command {
        "query-version" => value["qemu"]["major"].is_u64() && value["package"].is_string(),
        // One name of all, another one for each message.
        "query-commands" => value.as_array().is_some_and(|commands| {
            let (name, _) = &KNOWN[which % KNOWN.len()];
            commands.len() == KNOWN.len() && commands.iter().any(|command| command["name"] == *name)
        }),
        _ => value.as_object().is_some_and(serde_json::Map::is_empty),
    };
    assert!(is_right, "{command} was answered by {answer}");
}

/// An answer has either of two members.
fn judge(answer: &Value) {
    let members = answer.as_object().expect("an answer is an object");
    let error = members.get("error");
    assert!(members.contains_key("return") != error.is_some(), "{answer}");
    one_line(answer);
    if let Some(error) = error {
        assert!(error["class"].is_string() && error["desc"].as_str().is_some_and(|desc| !desc.is_empty()), "{answer}");
    }
}

fn one_line(value: &Value) {
    let line = value.to_string();
    assert!(!line.bytes().any(|byte| byte < b' '), "{line}");
}

/// What is sent.
#[must_use]
pub fn explain(data: &[u8]) -> String {
    let program = Program::read(data);
    let mut text = format!("machine {}, policy {:?}\n", program.machine, life::policy(program.policy));
    if let Some(long) = &program.long {
        let _ = writeln!(text, "sends a message of {} bytes, full of {:?}", long.len, long.fill);
    }
    for sent in program.sent() {
        let _ = match sent {
            Sent::Message(message) => {
                let mut bytes = Vec::new();
                message.write(&mut bytes);
                let before = if message.is_glued { "goes on with" } else { "starts over if need be and sends" };
                writeln!(text, "{before} {}", bytes.escape_ascii())
            }
            Sent::Pieces(pieces, brackets) => {
                let pieces = pieces.map(|piece| PIECES[piece].escape_ascii().to_string()).concat();
                writeln!(text, "sends {pieces} inside {brackets} brackets")
            }
            Sent::Bytes(bytes, count) => writeln!(text, "sends {}", bytes[..count].escape_ascii()),
            Sent::StartOver => writeln!(text, "starts over"),
            Sent::LineEnd => writeln!(text, "ends the line"),
            Sent::NewClient { of_another_guest: false } => writeln!(text, "another client comes"),
            Sent::NewClient { of_another_guest: true } => writeln!(text, "a client of another guest comes"),
            Sent::Event(which) => match life::report(which) {
                Some(report) => writeln!(text, "the machine reports {report:?}"),
                None => writeln!(text, "the guest is started if it was not"),
            },
        };
    }
    text + "starts over and sends query-version; a client that comes then asks for the status"
}
