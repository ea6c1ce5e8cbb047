//! Carries out what clients of the control socket want.

use serde_json::{Value, json};

use super::qmp::hmp::{self, Line};
use super::qmp::{self, ErrorClass, Order, Outcome, query};
use super::{CommandError, Controller, Event, Machine, State, Ticket};

/// Whoever carries out orders; it knows which were not answered at once, and what was said before.
#[derive(Debug, Default)]
pub struct Orders {
    tickets: u64,
    /// Commands without effect that the log has already told of.
    said: Vec<&'static str>,
}

impl Orders {
    /// Carries out one order.
    pub fn act(&mut self, order: Order, controller: &mut Controller, machine: &dyn Machine) -> Outcome {
        match order {
            Order::QueryStatus => now(Ok(qmp::status(controller.state()))),
            Order::QueryStats => now(Ok(machine.stats())),
            Order::Query(what) => now(Ok(query::answer(what, &machine.inventory()))),
            Order::Command(command) => match controller.command(command, machine) {
                Ok(events) => Outcome::Now(Ok(json!({})), events),
                Err(error) => refuse(error.to_string()),
            },
            Order::Monitor(line) => {
                let (text, events) = monitor(&line, controller, machine);
                Outcome::Now(Ok(Value::String(text)), events)
            }
            Order::NoDisplay(command) => {
                self.say_once(command);
                now(Ok(json!({})))
            }
            Order::ChangeMedium(device) => now(Err(refuse_medium(&device, machine))),
            Order::ResizeDisk(_) | Order::SetLink(_) if matches!(controller.state(), State::Stopped(_)) => {
                refuse(CommandError::Stopped.to_string())
            }
            Order::SetLink(change) => {
                let result = machine.set_link(&change).map(|()| json!({}));
                now(result.map_err(|desc| (ErrorClass::DeviceNotFound, desc)))
            }
            Order::ResizeDisk(resize) => {
                self.tickets += 1;
                let ticket = Ticket(self.tickets);
                machine.resize_disk(&resize, ticket);
                Outcome::Later(ticket)
            }
        }
    }

    /// Says that there is no display, once a command: whoever polls for screen shots must not fill the log.
    fn say_once(&mut self, command: &'static str) {
        if !self.said.contains(&command) {
            self.said.push(command);
            log::warn!("qmp: {command} has no effect: displays are not built yet (said once)");
        }
    }
}

fn now(result: Result<Value, (ErrorClass, String)>) -> Outcome {
    Outcome::Now(result, Vec::new())
}

fn refuse(desc: String) -> Outcome {
    now(Err((ErrorClass::GenericError, desc)))
}

fn refuse_medium(device: &str, machine: &dyn Machine) -> (ErrorClass, String) {
    if machine.inventory().disks.iter().any(|disk| disk.id == device) {
        (ErrorClass::GenericError, format!("Device '{device}' is not removable"))
    } else {
        (ErrorClass::DeviceNotFound, format!("Device '{device}' not found"))
    }
}

/// What the human monitor says to a line, and what everybody is to be told. As in qemu it knows no errors: they are text.
fn monitor(line: &str, controller: &mut Controller, machine: &dyn Machine) -> (String, Vec<Event>) {
    let done = |result: Result<Vec<Event>, String>| match result {
        Ok(events) => (String::new(), events),
        Err(problem) => (hmp::text(&problem), Vec::new()),
    };
    match hmp::parse(line) {
        Err(problem) => done(Err(problem)),
        Ok(Line::Nothing) => done(Ok(Vec::new())),
        Ok(Line::Command(command)) => done(controller.command(command, machine).map_err(|error| error.to_string())),
        Ok(Line::Keys(chord)) => done(machine.press_keys(&chord).map(|()| Vec::new())),
        Ok(Line::Info(topic)) => (hmp::info(topic, controller.state(), || machine.inventory()), Vec::new()),
    }
}

#[cfg(test)]
#[path = "orders_tests.rs"]
mod tests;
