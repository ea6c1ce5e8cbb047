//! The control socket, framed as QEMU's Machine Protocol, so that tools made for qemu work.
//!
//! Sources: the QMP specification (docs/interop/qmp-spec.rst of QEMU) for greeting, negotiation, replies, errors and
//! events; SmartOS's vmadmd, which also reads `hwsetup` in `query-status`.

mod arguments;
mod commands;
mod framing;
pub mod hmp;
mod keys;
pub mod query;
mod server;

use serde_json::{Map, Value, json};

use super::{Command, DiskFailure, DiskResize, Event, LinkChange, State};
use crate::config::nearest;
use commands::{COMMANDS, Meaning};
pub use framing::MAX_MESSAGE;
use framing::{Frame, Framing};
use query::Query;
pub use server::{Outcome, QmpServer};

/// What a client wants to be done, besides what the session answers by itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Order {
    /// Act on the guest.
    Command(Command),
    /// Show the guest's state.
    QueryStatus,
    /// Show the counters.
    QueryStats,
    /// Give a disk another size.
    ResizeDisk(DiskResize),
    /// Plug a network interface's cable, or pull it.
    SetLink(LinkChange),
    /// Show what the machine is made of.
    Query(Query),
    /// A line for the human monitor.
    Monitor(String),
    /// A command about a display, by name. There is none yet.
    NoDisplay(&'static str),
    /// Put another medium into a drive.
    ChangeMedium(String),
}

/// A message that was understood: the order, and the id to answer under.
#[derive(Debug, PartialEq)]
pub struct Request {
    /// What is to be done.
    pub order: Order,
    /// Where the answer belongs.
    pub id: Id,
}

/// The id of a request, any JSON value, echoed in the answer.
#[derive(Debug, Default, PartialEq)]
pub struct Id(Option<Value>);

impl From<Option<Value>> for Id {
    fn from(id: Option<Value>) -> Self {
        Self(id)
    }
}

/// What a message led to.
#[derive(Debug, PartialEq)]
pub enum Step {
    /// The order is for the main loop, which answers with [`success`] or [`failure`].
    Do(Request),
    /// The answer is complete.
    Answer(Value),
}

/// How QMP tells errors apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrorClass {
    /// Everything that has no class of its own.
    GenericError,
    /// No such command, or not at this time.
    CommandNotFound,
    /// The guest has no such device.
    DeviceNotFound,
}

impl ErrorClass {
    fn name(self) -> &'static str {
        match self {
            Self::GenericError => "GenericError",
            Self::CommandNotFound => "CommandNotFound",
            Self::DeviceNotFound => "DeviceNotFound",
        }
    }
}

/// One client's conversation. It knows no socket and no clock.
#[derive(Debug, Default)]
pub struct Session {
    framing: Framing,
    negotiated: bool,
}

impl Session {
    /// What a client is told first.
    pub fn greeting() -> Value {
        json!({"QMP": {"version": version(), "capabilities": []}})
    }

    /// Whether events may be sent: not before the client has negotiated.
    pub fn wants_events(&self) -> bool {
        self.negotiated
    }

    /// Bytes of a message that is not complete yet: at most [`MAX_MESSAGE`].
    pub fn buffered_bytes(&self) -> usize {
        self.framing.buffered_bytes()
    }

    /// Feeds one byte; gives what it led to.
    pub fn byte(&mut self, byte: u8) -> Option<Step> {
        self.framing.byte(byte).map(|frame| match frame {
            Frame::Message(message) => self.message(&message),
            Frame::TooLong => {
                let desc = format!("the message is longer than {MAX_MESSAGE} bytes");
                Step::Answer(failure(Id::default(), ErrorClass::GenericError, &desc))
            }
        })
    }

    fn message(&mut self, message: &[u8]) -> Step {
        let generic = |id, desc: &str| Step::Answer(failure(id, ErrorClass::GenericError, desc));
        let mut request: Map<String, Value> = match serde_json::from_slice(message) {
            Ok(Value::Object(request)) => request,
            Ok(_) => return generic(Id::default(), "a message must be a JSON object"),
            Err(error) => return generic(Id::default(), &format!("invalid JSON: {error}")),
        };
        let id = Id(request.remove("id"));
        let command = match request.remove("execute") {
            Some(Value::String(command)) => command,
            Some(_) => return generic(id, "'execute' must be a string"),
            None => return generic(id, "'execute' is missing"),
        };
        let arguments = match request.remove("arguments") {
            Some(Value::Object(arguments)) => arguments,
            None => Map::new(),
            Some(_) => return generic(id, "'arguments' must be an object"),
        };
        if let Some(key) = request.keys().next() {
            return generic(id, &format!("unexpected member '{key}'"));
        }
        self.execute(&command, arguments, id)
    }

    fn execute(&mut self, command: &str, mut arguments: Map<String, Value>, id: Id) -> Step {
        let not_found = |id, desc: &str| Step::Answer(failure(id, ErrorClass::CommandNotFound, desc));
        if !self.negotiated && command != "qmp_capabilities" {
            return not_found(id, "capabilities must be negotiated first, with 'qmp_capabilities'");
        }
        let Some((name, meaning)) = COMMANDS.iter().find(|(name, _)| *name == command) else {
            let names = COMMANDS.iter().map(|(name, _)| *name);
            return not_found(id, &nearest::unknown("command", command, names));
        };
        if let Meaning::With(read) = meaning {
            return match read(arguments) {
                Ok(order) => Step::Do(Request { order, id }),
                Err(desc) => Step::Answer(failure(id, ErrorClass::GenericError, &desc)),
            };
        }
        // The one argument there is: capabilities to enable, of which none is offered.
        if *name == "qmp_capabilities" && arguments.get("enable") == Some(&json!([])) {
            arguments.remove("enable");
        }
        if let Some(key) = arguments.keys().next() {
            let desc = arguments::unknown(name, key, std::iter::empty());
            return Step::Answer(failure(id, ErrorClass::GenericError, &desc));
        }
        if let Meaning::Order(order) = meaning {
            return Step::Do(Request { order: order.clone(), id });
        }
        Step::Answer(match *name {
            "qmp_capabilities" if self.negotiated => {
                return not_found(id, "capabilities are negotiated already");
            }
            "qmp_capabilities" => {
                self.negotiated = true;
                success(id, json!({}))
            }
            "query-version" => success(id, version()),
            _ => success(id, COMMANDS.iter().map(|(name, _)| json!({"name": name})).collect()),
        })
    }
}

/// The answer to a request that was carried out.
pub fn success(id: Id, value: Value) -> Value {
    with_id(json!({"return": value}), id)
}

/// The answer to a request that was not.
pub fn failure(id: Id, class: ErrorClass, desc: &str) -> Value {
    with_id(json!({"error": {"class": class.name(), "desc": desc}}), id)
}

fn with_id(mut answer: Value, id: Id) -> Value {
    if let (Some(answer), Some(id)) = (answer.as_object_mut(), id.0) {
        answer.insert("id".to_owned(), id);
    }
    answer
}

/// The answer to `query-status`.
pub fn status(state: State) -> Value {
    let (running, status) = match state {
        State::Starting => (false, "prelaunch"),
        State::Running | State::Resetting { paused: false } => (true, "running"),
        State::Paused | State::Resetting { paused: true } => (false, "paused"),
        State::DiskFailed => (false, "io-error"),
        State::Stopped(_) => (false, "shutdown"),
    };
    // `hwsetup` is SmartOS's: true once the machine is built, which it is before anybody can ask.
    json!({"running": running, "singlestep": false, "status": status, "hwsetup": true})
}

/// An event as clients see it; `now` is the real time in seconds and nanoseconds.
pub fn event(event: &Event, now: (i64, u32)) -> Value {
    let (name, data) = match event {
        Event::Stopped => ("STOP", None),
        Event::Resumed => ("RESUME", None),
        Event::PowerButton => ("POWERDOWN", None),
        Event::Reset { guest } => {
            let reason = if *guest { "guest-reset" } else { "host-qmp-system-reset" };
            ("RESET", Some(json!({"guest": guest, "reason": reason})))
        }
        Event::Shutdown { guest, reason } => ("SHUTDOWN", Some(json!({"guest": guest, "reason": reason}))),
        Event::GuestPanicked => ("GUEST_PANICKED", Some(json!({"action": "run"}))),
        Event::DiskFailed(DiskFailure { disk, write, no_space, held, reason }) => {
            let operation = if *write { "write" } else { "read" };
            let action = if *held { "stop" } else { "report" };
            let data = json!({
                "device": disk, "node-name": disk, "operation": operation, "action": action, "nospace": no_space,
                "reason": reason,
            });
            ("BLOCK_IO_ERROR", Some(data))
        }
    };
    let (seconds, nanoseconds) = now;
    let mut value = json!({"event": name, "timestamp": {"seconds": seconds, "microseconds": nanoseconds / 1000}});
    if let (Some(value), Some(data)) = (value.as_object_mut(), data) {
        value.insert("data".to_owned(), data);
    }
    value
}

/// qemu's three numbers, which clients compare, hold ours.
fn version() -> Value {
    let number = |text: &str| text.parse::<u32>().unwrap_or(0);
    json!({
        "qemu": {
            "major": number(env!("CARGO_PKG_VERSION_MAJOR")),
            "minor": number(env!("CARGO_PKG_VERSION_MINOR")),
            "micro": number(env!("CARGO_PKG_VERSION_PATCH")),
        },
        "package": concat!("zvmm ", env!("CARGO_PKG_VERSION")),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exit::Exit;

    fn feed(session: &mut Session, text: &str) -> Vec<Step> {
        text.bytes().filter_map(|byte| session.byte(byte)).collect()
    }

    fn negotiated() -> Session {
        let mut session = Session::default();
        assert_eq!(feed(&mut session, r#"{"execute":"qmp_capabilities"}"#), [Step::Answer(json!({"return": {}}))]);
        session
    }

    fn error(class: &str, desc: &str) -> Step {
        Step::Answer(json!({"error": {"class": class, "desc": desc}}))
    }

    #[test]
    fn the_greeting_has_version_and_capabilities() {
        let greeting = Session::greeting();
        assert!(greeting["QMP"]["version"]["qemu"]["major"].is_u64() && greeting["QMP"]["capabilities"] == json!([]));
    }

    #[test]
    fn nothing_is_answered_before_negotiation_and_negotiation_happens_once() {
        let mut session = Session::default();
        let early = feed(&mut session, r#"{"execute":"query-status"}"#);
        let desc = "capabilities must be negotiated first, with 'qmp_capabilities'";
        assert_eq!(early, [error("CommandNotFound", desc)]);
        assert!(!session.wants_events());
        let mut session = negotiated();
        assert!(session.wants_events());
        let again = feed(&mut session, r#"{"execute":"qmp_capabilities"}"#);
        assert_eq!(again, [error("CommandNotFound", "capabilities are negotiated already")]);
    }

    #[test]
    fn every_command_is_either_answered_or_an_order() {
        for (name, meaning) in COMMANDS.iter().skip(1) {
            let steps = feed(&mut negotiated(), &format!("{{\"execute\":\"{name}\",\"id\":7}}\r\n"));
            match (&steps[..], meaning) {
                ([Step::Do(request)], Meaning::Order(order)) => {
                    assert_eq!((&request.order, &request.id), (order, &Id(Some(json!(7)))));
                }
                ([Step::Answer(answer)], Meaning::OfTheSession) => {
                    assert!(answer["id"] == 7 && answer.get("return").is_some());
                }
                // Without the arguments that it needs.
                ([Step::Answer(answer)], Meaning::With(_)) => {
                    assert!(answer["id"] == 7 && answer.get("error").is_some());
                }
                _ => panic!("{name}: {steps:?}"),
            }
        }
    }

    #[test]
    fn an_id_of_any_kind_is_echoed_in_answers_and_errors() {
        for id in ["0", "\"a\"", "null", "{\"x\":[1]}"] {
            let steps = feed(&mut negotiated(), &format!("{{\"execute\":\"nope\",\"id\":{id}}}"));
            let [Step::Answer(answer)] = &steps[..] else { panic!("{steps:?}") };
            assert_eq!(answer.get("id").map(ToString::to_string).as_deref(), Some(id));
        }
    }

    #[test]
    fn every_wrong_message_is_answered_with_what_is_wrong() {
        for (message, class, desc) in [
            (
                r#"{"execute":"query-sttaus"}"#,
                "CommandNotFound",
                "unknown command 'query-sttaus'; did you mean 'query-status'?",
            ),
            ("hello\n", "GenericError", "invalid JSON: expected value at line 1 column 1"),
            ("{,}", "GenericError", "invalid JSON: key must be a string at line 1 column 2"),
            ("[]", "GenericError", "a message must be a JSON object"),
            ("{}", "GenericError", "'execute' is missing"),
            (r#"{"execute":1}"#, "GenericError", "'execute' must be a string"),
            (r#"{"execute":"stop","arguments":[]}"#, "GenericError", "'arguments' must be an object"),
            (r#"{"execute":"stop","extra":1}"#, "GenericError", "unexpected member 'extra'"),
            (r#"{"execute":"stop","arguments":{"x":1}}"#, "GenericError", "'stop' has no parameter 'x'"),
        ] {
            assert_eq!(feed(&mut negotiated(), message), [error(class, desc)], "{message}");
        }
    }

    #[test]
    fn deep_nesting_is_an_error_and_not_a_stack_overflow() {
        let steps = feed(&mut negotiated(), &format!("{}{}", "[".repeat(30000), "]".repeat(30000)));
        let [Step::Answer(answer)] = &steps[..] else { panic!("{steps:?}") };
        assert!(answer["error"]["desc"].as_str().unwrap().contains("recursion limit"));
    }

    #[test]
    fn a_message_that_is_too_long_is_an_error_and_the_next_one_works() {
        let text = format!("{{\"execute\":\"{}\"}}\n{{\"execute\":\"stop\"}}", "x".repeat(MAX_MESSAGE));
        let steps = feed(&mut negotiated(), &text);
        assert_eq!(steps[0], error("GenericError", "the message is longer than 65536 bytes"));
        assert!(matches!(&steps[1..], [Step::Do(Request { order: Order::Command(Command::Pause), .. })]));
    }

    #[test]
    fn status_names_every_state_and_says_that_the_hardware_is_set_up() {
        for (state, running, name) in [
            (State::Starting, false, "prelaunch"),
            (State::Running, true, "running"),
            (State::Resetting { paused: false }, true, "running"),
            (State::Paused, false, "paused"),
            (State::DiskFailed, false, "io-error"),
            (State::Stopped(Exit::Done), false, "shutdown"),
        ] {
            let status = status(state);
            assert_eq!(
                (&status["running"], &status["status"], &status["hwsetup"]),
                (&json!(running), &json!(name), &json!(true))
            );
        }
    }

    #[test]
    fn events_have_a_timestamp_in_seconds_and_microseconds() {
        let reset = event(&Event::Reset { guest: true }, (5, 7_999_999));
        assert_eq!(
            reset,
            json!({"event": "RESET", "data": {"guest": true, "reason": "guest-reset"},
                "timestamp": {"seconds": 5, "microseconds": 7999}})
        );
        let full = Event::DiskFailed(DiskFailure {
            disk: "disk0".into(),
            write: true,
            no_space: true,
            held: true,
            reason: "No space left on device".into(),
        });
        let data = json!({"device": "disk0", "node-name": "disk0", "operation": "write", "action": "stop",
            "nospace": true, "reason": "No space left on device"});
        assert_eq!((&event(&full, (0, 0))["event"], &event(&full, (0, 0))["data"]), (&json!("BLOCK_IO_ERROR"), &data));
        let names = [Event::Stopped, Event::Resumed, Event::PowerButton].map(|e| event(&e, (0, 0))["event"].clone());
        assert_eq!(names, ["STOP", "RESUME", "POWERDOWN"].map(Value::from));
    }

    /// A million pieces of messages in an order that nobody would think of.
    #[test]
    fn no_stream_of_pieces_breaks_a_session() {
        let pieces = [
            "{",
            "}",
            "[",
            "]",
            "\"",
            "\\",
            ":",
            ",",
            "\n",
            "execute",
            "\"execute\":",
            "\"stop\"",
            "\"id\":1",
            "\u{fe}",
            "0",
        ];
        let (mut session, mut state) = (negotiated(), 1_u64);
        for _ in 0..1_000_000 {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let piece = pieces[(state >> 33) as usize % pieces.len()];
            for step in feed(&mut session, piece) {
                if let Step::Answer(answer) = step {
                    assert!(answer.get("return").is_some() != answer.get("error").is_some(), "{answer}");
                }
            }
        }
        let last: Vec<Step> = b"\xff{\"execute\":\"query-version\"}".iter().filter_map(|b| session.byte(*b)).collect();
        assert!(matches!(&last[..], [Step::Answer(answer)] if answer.get("return").is_some()), "{last:?}");
    }
}
