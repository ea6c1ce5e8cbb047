//! The guest behind a control socket: a main loop's part in the conversation, and what has to come of each order.

use serde_json::{Value, json};
use zvmm::control::{Controller, DiskFailure, DiskResize, Event, Machine as _, Ticket};
use zvmm::fuzzing::qmp::{ErrorClass, Order, Orders, Outcome, Query, Request, event, failure, success};

use super::board::{Board, Call};
use super::life::{self, Life};
use super::monitor::{self, Meaning};
use super::{answers, judge, one_line};

/// A guest and everything that acts on it.
pub struct Guest {
    board: Board,
    controller: Controller,
    orders: Orders,
    life: Life,
    /// The last order that was answered later.
    ticket: u64,
}

/// What comes of an order.
#[derive(Default)]
struct Expected {
    answer: Answer,
    events: Vec<Event>,
    calls: Vec<Call>,
}

#[derive(Default)]
enum Answer {
    #[default]
    Nothing,
    Is(Value),
    About(Query),
    /// What the human monitor says: nothing, a line that says what is wrong, or what is shown of a topic.
    Text(Text),
    Refused(ErrorClass),
    Later(DiskResize),
}

enum Text {
    Empty,
    Problem,
    Info(&'static str),
    /// Nothing, if keys were pressed that can be those of a line.
    IfNoKeys,
}

type Result = std::result::Result<Value, (ErrorClass, String)>;

impl Guest {
    /// One of a machine by number, under a policy by number, whose highest bit has it wait to be started.
    pub fn new(machine: u8, policy: u8) -> Self {
        let board = Board::new(machine);
        let (policy, is_started) = (life::policy(policy), policy & 0x80 == 0);
        let (controller, life) = (Controller::new(policy, board.vcpus()), Life::new(policy, board.vcpus()));
        let mut guest = Self { board, controller, orders: Orders::default(), life, ticket: 0 };
        if is_started {
            guest.start();
        }
        guest
    }

    fn start(&mut self) {
        self.controller.start(&self.board);
        assert_eq!(self.board.take_calls(), self.life.start());
    }

    /// Something happens to it by itself, by number.
    pub fn happens(&mut self, which: u8) {
        let Some(report) = life::report(which) else { return self.start() };
        let (events, calls) = self.life.report(&report);
        let told = self.controller.machine_event(report.clone(), &self.board);
        assert_eq!((&told, self.board.take_calls()), (&events, calls), "{report:?}");
        told.iter().for_each(tell);
    }

    /// Does as the main loop does: carries out an order, tells what happens, then answers. `outcome`: what becomes of it where
    /// that is the host's matter.
    pub fn carry_out(&mut self, Request { order, id }: Request, outcome: u8) -> Value {
        let said = format!("{order:?} in state '{}'", self.life.status());
        let expected = self.expected(&order);
        let result = match self.orders.act(order, &mut self.controller, &self.board) {
            Outcome::Now(result, events) => {
                assert_eq!(events, expected.events, "{said}");
                let calls = self.board.take_calls();
                self.judge(&expected.answer, &result, &calls, &said);
                if !matches!(expected.answer, Answer::Text(Text::IfNoKeys)) {
                    assert_eq!(calls, expected.calls, "{said}");
                }
                events.iter().for_each(tell);
                result
            }
            Outcome::Later(Ticket(ticket)) => {
                let Answer::Later(resize) = expected.answer else { panic!("{said} is answered later") };
                assert!(ticket > self.ticket, "{said} has a ticket that was there before");
                self.ticket = ticket;
                assert_eq!(self.board.take_calls(), [Call::Resize(resize.clone(), Ticket(ticket))], "{said}");
                match self.board.has_disk(&resize.disk) && outcome & 8 != 0 {
                    true => Ok(json!({})),
                    false => Err((ErrorClass::GenericError, format!("unknown disk '{}'", resize.disk))),
                }
            }
        };
        let answer = match result {
            Ok(value) => success(id, value),
            Err((class, desc)) => failure(id, class, &desc),
        };
        judge(&answer);
        answer
    }

    fn expected(&mut self, order: &Order) -> Expected {
        let refused = |class| Expected { answer: Answer::Refused(class), ..Expected::default() };
        let now = |answer| Expected { answer, ..Expected::default() };
        match order {
            Order::QueryStatus => {
                let status = self.life.status();
                let is_running = status == "running";
                let answer = json!({"running": is_running, "singlestep": false, "status": status, "hwsetup": true});
                now(Answer::Is(answer))
            }
            Order::QueryStats => now(Answer::Is(self.board.stats())),
            Order::Query(query) => now(Answer::About(*query)),
            Order::Command(command) => match self.life.command(*command) {
                Some((events, calls)) => Expected { answer: Answer::Nothing, events, calls },
                None => refused(ErrorClass::GenericError),
            },
            Order::Monitor(line) => self.line(line),
            Order::NoDisplay(_) => now(Answer::Nothing),
            Order::ChangeMedium(device) if self.board.has_disk(device) => refused(ErrorClass::GenericError),
            Order::ChangeMedium(_) => refused(ErrorClass::DeviceNotFound),
            Order::ResizeDisk(_) | Order::SetLink(_) if self.life.has_ended() => refused(ErrorClass::GenericError),
            Order::SetLink(change) if self.board.has_net(&change.name) => {
                Expected { calls: vec![Call::Link(change.clone())], ..Expected::default() }
            }
            Order::SetLink(_) => refused(ErrorClass::DeviceNotFound),
            Order::ResizeDisk(resize) => now(Answer::Later(resize.clone())),
        }
    }

    fn line(&mut self, line: &str) -> Expected {
        let text = |text| Expected { answer: Answer::Text(text), ..Expected::default() };
        match monitor::meaning(line) {
            Meaning::Nothing => text(Text::Empty),
            Meaning::Wrong => text(Text::Problem),
            Meaning::Info(topic) => text(Text::Info(topic)),
            Meaning::SomeKeys => text(Text::IfNoKeys),
            Meaning::Keys(_) if !self.board.has_keyboard() => text(Text::Problem),
            Meaning::Keys(chord) => Expected { calls: vec![Call::Keys(chord)], ..text(Text::Empty) },
            Meaning::Command(command) => match self.life.command(command) {
                Some((events, calls)) => Expected { events, calls, ..text(Text::Empty) },
                None => text(Text::Problem),
            },
        }
    }

    fn judge(&self, expected: &Answer, result: &Result, calls: &[Call], said: &str) {
        let is_right = match (expected, result) {
            (Answer::Nothing, Ok(value)) => *value == json!({}),
            (Answer::Is(expected), Ok(value)) => value == expected,
            (Answer::About(query), Ok(value)) => {
                answers::judge(*query, value, &self.board.inventory());
                true
            }
            (Answer::Text(expected), Ok(Value::String(text))) => match expected {
                Text::Empty => text.is_empty(),
                Text::Problem => monitor::is_line(text),
                Text::Info(topic) => {
                    monitor::judge_info(topic, text, self.life.status(), &self.board.inventory());
                    true
                }
                Text::IfNoKeys => match calls {
                    [Call::Keys(chord)] => text.is_empty() && monitor::is_chord(chord),
                    _ => calls.is_empty() && monitor::is_line(text),
                },
            },
            (Answer::Refused(expected), Err((class, desc))) => class == expected && !desc.is_empty(),
            _ => false,
        };
        assert!(is_right, "{said} comes to {result:?}");
    }
}

/// An event is a line with a time.
fn tell(what: &Event) {
    let told = event(what, (1_700_000_000, 999_999_999));
    assert!(told["event"].is_string() && told["timestamp"]["microseconds"] == 999_999, "{told}");
    let data = &told["data"];
    let is_right = match what {
        Event::Reset { guest } | Event::Shutdown { guest, .. } => data["guest"] == *guest && data["reason"].is_string(),
        Event::DiskFailed(DiskFailure { disk, write, no_space, held, reason }) => {
            let (operation, action) = (if *write { "write" } else { "read" }, if *held { "stop" } else { "report" });
            *data
                == json!({
                    "device": disk, "node-name": disk, "operation": operation, "action": action, "nospace": no_space,
                    "reason": reason,
                })
        }
        Event::GuestPanicked => data["action"].is_string(),
        Event::Stopped | Event::Resumed | Event::PowerButton => data.is_null(),
    };
    assert!(is_right, "{what:?} is told as {told}");
    one_line(&told);
}

#[cfg(test)]
mod tests {
    use zvmm::control::{Command, LinkChange};
    use zvmm::fuzzing::qmp::Id;

    use super::*;

    fn carry_out(guest: &mut Guest, order: Order) -> Value {
        guest.carry_out(Request { order, id: Id::default() }, 0)
    }

    #[test]
    fn a_guest_is_held_reset_and_over_as_its_clients_know() {
        let mut guest = Guest::new(0, 0);
        let orders = [Command::Pause, Command::Reset, Command::Resume, Command::Nmi { vcpu: 2 }, Command::Quit];
        for (command, status) in orders.into_iter().zip(["paused", "paused", "running", "running", "shutdown"]) {
            carry_out(&mut guest, Order::Command(command));
            assert_eq!(carry_out(&mut guest, Order::QueryStatus)["return"]["status"], status);
        }
    }

    #[test]
    #[should_panic(expected = "Command(Resume) in state 'running'")]
    fn an_event_that_nobody_had_a_reason_to_tell_is_found() {
        let mut guest = Guest::new(0, 0);
        // Behind the back of the model.
        guest.controller.command(Command::Pause, &guest.board).unwrap();
        guest.board.take_calls();
        carry_out(&mut guest, Order::Command(Command::Resume));
    }

    #[test]
    #[should_panic(expected = "SetLink")]
    fn a_call_that_nobody_ordered_is_found() {
        let mut guest = Guest::new(0, 0);
        guest.board.inject_nmi(0);
        carry_out(&mut guest, Order::SetLink(LinkChange { name: "net0".to_owned(), up: false }));
    }

    #[test]
    #[should_panic(expected = "QueryStatus in state 'prelaunch' comes to")]
    fn a_wrong_status_is_found() {
        let mut guest = Guest::new(0, 0x80);
        guest.controller.start(&guest.board);
        carry_out(&mut guest, Order::QueryStatus);
    }
}
