//! The control socket's conversation: bytes from a hostile client into one session.
//!
//! Oracles: no panic; every message is answered once, in order, under its id, by an answer that is JSON in one line;
//! whatever was sent before, a client that starts over (a line end, then the byte that has half a message forgotten) is
//! heard; and no more is kept than one message may be long.

use std::fmt::Write as _;

use arbitrary::Unstructured;
use serde_json::{Value, json};
use zvmm::control::{Command, Event, State};
use zvmm::exit::Exit;
use zvmm::fuzzing::qmp::{ErrorClass, Id, MAX_MESSAGE, Order, Request, Session, Step, event, failure, status, success};

use crate::stats;

const MAX_STEPS: usize = 256;

/// One thing a client sends.
enum Sent<'a> {
    Bytes(&'a [u8]),
    /// One byte many times: messages beyond the limit.
    Many(u8, usize),
    /// Starts over, then a good message with an id.
    Command(&'static str, Option<Value>),
}

const COMMANDS: [&str; 12] = [
    "qmp_capabilities",
    "query-commands",
    "query-version",
    "query-status",
    "query-stats",
    "stop",
    "cont",
    "nonsense",
    "inject-nmi",
    "system_powerdown",
    "system_reset",
    "quit",
];

fn read(data: &[u8]) -> Vec<Sent<'_>> {
    let mut input = Unstructured::new(data);
    let mut sent = Vec::new();
    while sent.len() < MAX_STEPS {
        let Ok(kind) = input.arbitrary::<u8>().map(|kind| (kind, input.is_empty())) else { break };
        let more = |input: &mut Unstructured<'_>| input.arbitrary::<u8>().unwrap_or(0);
        match kind {
            (_, true) => break,
            (0..=127, _) => {
                let len = usize::from(more(&mut input) & 0x3f).min(input.len());
                sent.push(Sent::Bytes(input.bytes(len).unwrap_or_default()));
            }
            // At the start only, as it takes long.
            (255, _) if sent.is_empty() => sent.push(Sent::Many(more(&mut input), MAX_MESSAGE + 1)),
            (kind, _) => {
                let id = match more(&mut input) {
                    0..=63 => None,
                    id @ 64..=191 => Some(json!(id)),
                    id => Some(json!({"text\n\u{fe}": [id, null, "\u{1b}"]})),
                };
                sent.push(Sent::Command(COMMANDS[usize::from(kind) % COMMANDS.len()], id));
            }
        }
    }
    sent
}

/// Talks to a session.
///
/// # Panics
/// On a finding.
pub fn run(data: &[u8]) {
    let sent = read(data);
    stats::operations(sent.len());
    let mut session = Session::default();
    for what in &sent {
        match what {
            Sent::Bytes(bytes) => bytes.iter().for_each(|byte| judge(session.byte(*byte))),
            Sent::Many(byte, count) => (0..*count).for_each(|_| judge(session.byte(*byte))),
            Sent::Command(command, id) => ask(&mut session, command, id.as_ref()),
        }
        assert!(session.buffered_bytes() <= MAX_MESSAGE);
    }
    ask(&mut session, "query-version", Some(&json!("last")));
}

/// A session may answer whatever it likes to nonsense, as long as it is one line of JSON with either of two members.
fn judge(step: Option<Step>) {
    match step {
        None => {}
        Some(Step::Do(request)) => {
            carry_out(request);
        }
        Some(Step::Answer(answer)) => judge_answer(&answer),
    }
}

/// Does as the main loop does: tells what happens, then answers.
fn carry_out(Request { order, id }: Request) -> Value {
    let tell = |what: &Event| {
        let line = event(what, (1_700_000_000, 999_999_999));
        assert!(line["event"].is_string() && line["timestamp"]["microseconds"] == 999_999, "{line}");
        assert!(!line.to_string().contains('\n'));
    };
    let answer = match order {
        Order::QueryStatus => {
            let states = [State::Starting, State::Running, State::Paused, State::Resetting { paused: true }];
            for state in states.into_iter().chain([State::Stopped(Exit::Done)]) {
                assert!(status(state)["status"].is_string());
            }
            success(id, status(State::Running))
        }
        Order::QueryStats => success(id, json!({"vcpus": []})),
        Order::Command(Command::Nmi { vcpu }) => {
            failure(id, ErrorClass::GenericError, &format!("the guest has no vCPU {vcpu}"))
        }
        Order::Command(command) => {
            tell(&match command {
                Command::Pause => Event::Stopped,
                Command::Resume => Event::Resumed,
                Command::PowerButton => Event::PowerButton,
                Command::Reset => Event::Reset { guest: false },
                Command::Quit => Event::Shutdown { guest: false, reason: "host-qmp-quit" },
                Command::Nmi { .. } => Event::GuestPanicked,
            });
            success(id, json!({}))
        }
    };
    judge_answer(&answer);
    answer
}

fn judge_answer(answer: &Value) {
    let members = answer.as_object().expect("an answer is an object");
    assert!(members.contains_key("return") != members.contains_key("error"), "{answer}");
    let line = answer.to_string();
    assert!(!line.contains(['\n', '\r']), "{line}");
    if let Some(error) = members.get("error") {
        assert!(error["class"].is_string() && error["desc"].as_str().is_some_and(|desc| !desc.is_empty()), "{answer}");
    }
}

/// A good message is answered under its id, once, whatever came before.
fn ask(session: &mut Session, command: &str, id: Option<&Value>) {
    judge(session.byte(b'\n'));
    judge(session.byte(0xff));
    let mut message = json!({"execute": command});
    if let Some(id) = id {
        message["id"] = id.clone();
    }
    let text = message.to_string();
    let mut steps = text.bytes().filter_map(|byte| session.byte(byte));
    let answer = match (steps.next(), steps.next()) {
        (Some(Step::Answer(answer)), None) => answer,
        (Some(Step::Do(request)), None) => {
            assert_eq!(request.id, Id::from(id.cloned()));
            carry_out(request)
        }
        other => panic!("{text} led to {other:?}"),
    };
    judge_answer(&answer);
    assert_eq!(answer.get("id"), id, "{text} was answered by {answer}");
}

/// What is sent.
#[must_use]
pub fn explain(data: &[u8]) -> String {
    let mut text = String::new();
    for what in read(data) {
        let _ = match what {
            Sent::Bytes(bytes) => writeln!(text, "sends {:?}", bytes.escape_ascii().to_string()),
            Sent::Many(byte, count) => writeln!(text, "sends {byte:#x} {count} times"),
            Sent::Command(command, id) => writeln!(text, "starts over and sends {command} under {id:?}"),
        };
    }
    text + "starts over and sends query-version"
}
